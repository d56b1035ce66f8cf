//! `utcp ss`, `utcp why` and the like: one question to the engine, its answer printed.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use utcp_abi::message::{Kind, Message, Reply, Report};
use utcp_engine::config::{system_path, user_name};
use utcp_engine::sys::{self, UnixName, Wait};

/// Which engine to ask.
#[derive(clap::Args)]
pub struct Where {
    /// The engine that listens at this path.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The named stack (UTCP_STACK).
    #[arg(long, value_name = "NAME")]
    stack: Option<String>,
}

/// Arguments of `utcp why`.
#[derive(clap::Args)]
pub struct Why {
    /// A TCP port or a process id. `port:N` or `pid:N` if it could be both.
    #[arg(value_name = "PORT|PID")]
    what: String,
    #[command(flatten)]
    at: Where,
}

/// Answers `utcp why`.
pub fn why(why: &Why) -> Result<(), String> {
    let (kind, number) = match why.what.split_once(':') {
        Some(("port", number)) => (1, number),
        Some(("pid", number)) => (2, number),
        None => (0, why.what.as_str()),
        Some(_) => return Err(format!("{}: expected a number, port:N or pid:N", why.what)),
    };
    let number: u64 = number.parse().map_err(|_| format!("{number}: expected a port or a process id"))?;
    match connect(&why.at) {
        Ok(engine) => ask(&engine, Report::Why, number, kind, &mut io::stdout().lock()),
        Err(reason) => {
            println!("{number}: not accelerated. {reason}");
            Ok(())
        }
    }
}

/// Prints a report.
pub fn report(at: &Where, report: Report, b: u64, c: u64) -> Result<(), String> {
    ask(&connect(at)?, report, b, c, &mut io::stdout().lock())
}

/// The engine that a program of this user would find.
pub fn connect(at: &Where) -> Result<OwnedFd, String> {
    if let Some(path) = &at.socket {
        return sys::connect_seqpacket(&UnixName::Path(path.clone()))
            .map_err(|error| format!("no engine answers at {}: {error}", path.display()));
    }
    let stack = at.stack.clone().or_else(|| std::env::var("UTCP_STACK").ok());
    let system = || sys::connect_seqpacket(&UnixName::Path(system_path()?)).ok();
    if let Some(engine) = stack.is_none().then(system).flatten() {
        return Ok(engine);
    }
    let name = user_name(stack.as_deref()).map_err(|error| error.to_string())?;
    sys::connect_seqpacket(&name).map_err(|_| {
        "No engine runs for this user in this network namespace; it starts with the first program under utcp."
            .to_owned()
    })
}

/// Writes the engine's answer to `out`.
pub fn ask(engine: &OwnedFd, report: Report, b: u64, c: u64, out: &mut impl Write) -> Result<(), String> {
    let mut message = Message::new(Kind::Report);
    (message.a, message.b, message.c) = (report as u64, b, c);
    let failed = |error: io::Error| format!("the engine does not answer: {error}");
    sys::send(engine.as_fd(), message.as_bytes(), &[]).map_err(failed)?;
    let mut bytes = vec![0; 64 * 1024];
    let len = sys::receive(engine.as_fd(), &mut bytes, &mut Vec::new(), Wait::Sleep).map_err(failed)?;
    let reply = Reply::from_bytes(&bytes[..len]).ok_or("the engine is of another version")?;
    let mut left = reply.a;
    while left > 0 {
        let len = sys::receive(engine.as_fd(), &mut bytes, &mut Vec::new(), Wait::Sleep).map_err(failed)?;
        if len == 0 {
            return Err("the engine ended in the middle of its answer".to_owned());
        }
        left = left.saturating_sub(len as u64);
        if out.write_all(&bytes[..len]).is_err() {
            return Ok(()); // The reader of our output has seen enough.
        }
    }
    Ok(())
}
