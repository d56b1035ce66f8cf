//! Runs packetdrill scripts against utcp, in memory and on virtual time. `tests/packetdrill/run` calls it.
//!
//! ```text
//!  main ── a process for each script and version of IP ──► World (engine, shim, wire)
//!    ▲                                                       ▲ turns, packets, calls
//!    └── pass, fail, not applicable ◄── Run ◄── Script ◄── parse ◄── lexer
//! ```

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_lossless,
    reason = "arguments of C's calls and fields of packets: a script's numbers are checked where it is read"
)]

mod calls;
mod code;
mod compare;
mod connection;
mod lexer;
mod memory;
mod packets;
mod parse;
mod report;
mod run;
mod script;
mod settings;
mod shim;
mod symbols;
mod threads;
mod wire;
mod world;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use calls::{Places, Program};
use run::{Failure, Run};
use settings::{Settings, Version};
use shim::Shim;
use world::World;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("--one") {
        let (Some(version), Some(file)) = (args.next(), args.next()) else { return ExitCode::from(2) };
        let Some(version) = Version::from_name(&version) else { return ExitCode::from(2) };
        let verbose = args.next().is_some();
        let outcome = one(version, Path::new(&file), verbose);
        settings::tidy();
        let code = match outcome {
            Ok(()) => {
                println!("pass");
                0
            }
            Err(Failure { line, why }) => {
                println!("{line}: {why}");
                1
            }
        };
        // Threads are left where they are: some sleep in calls that nothing will end.
        std::process::exit(code);
    }
    report::main(std::env::args().skip(1).collect())
}

/// Runs one script in this process.
fn one(version: Version, file: &Path, verbose: bool) -> Result<(), Failure> {
    let nowhere = |why: String| Failure { line: 0, why };
    settings::enter_namespace().map_err(nowhere)?;
    let text = fs::read_to_string(file).map_err(|error| nowhere(error.to_string()))?;
    let script = parse::script(&text, &settings::defines(version)).map_err(nowhere)?;
    let folder = file.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    let folder = fs::canonicalize(if folder.as_os_str().is_empty() { Path::new(".") } else { &folder })
        .map_err(|error| nowhere(error.to_string()))?;
    let mut settings = Settings::new(version, &script, folder, verbose).map_err(nowhere)?;
    for command in &script.init {
        settings.command(command).map_err(nowhere)?;
    }
    // SAFETY: no other thread exists yet.
    unsafe {
        std::env::set_var("UTCP_STACK", "packetdrill");
        std::env::set_var("UTCP_SPIN_US", "0");
        for name in ["UTCP_ENGINE", "UTCP_DISABLE", "UTCP_DEVICE"] {
            std::env::remove_var(name);
        }
    }
    let world = World::new(settings.link).map_err(nowhere)?;
    let library = library().map_err(nowhere)?;
    let places = Places {
        local: SocketAddr::new(settings.link.local, settings.port),
        remote: SocketAddr::new(settings.remote, settings.port),
        mapped: version == Version::Mapped,
    };
    let program = Program::new(Shim::load(&library).map_err(nowhere)?, places);
    Run::new(&mut settings, world, program).play(&script)
}

/// libutcp.so beside this program.
fn library() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("UTCP_LIBRARY") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let found =
        own.ancestors().skip(1).take(3).map(|folder| folder.join("libutcp.so")).find(|path| path.exists());
    found.ok_or_else(|| "libutcp.so is not beside this program: cargo build --release".into())
}
