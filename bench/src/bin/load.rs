//! Servers and clients of our own, on plain sockets and epoll. A client prints one line of JSON.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use utcp_bench::load::{self, Messages, Pingpong, Summary, Until};

#[derive(Parser)]
#[command(name = "utcp-load", version, about = "Loads for measuring TCP stacks, on plain sockets.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Server: send back what comes.
    Echo {
        #[command(flatten)]
        server: Listen,
        /// How many ports, one after the other.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
        ports: u16,
        /// A Unix socket to listen on, too.
        #[arg(long, value_name = "PATH")]
        unix: Option<PathBuf>,
    },
    /// Server: read and forget.
    Sink(Listen),
    /// Server: accept and close.
    Accept(Listen),
    /// Client of echo: messages on many connections, a new connection after some of them.
    Msg {
        #[command(flatten)]
        client: Client,
        /// Bytes of a message.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
        bytes: u32,
        /// Messages of a connection; 0: it stays.
        #[arg(long, default_value_t = 1)]
        messages: u32,
        /// Connections at a time.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
        connections: u32,
        /// Messages per second over all connections (open loop). Without it each connection sends its next when the
        /// last is answered.
        #[arg(long, value_name = "PER_SECOND")]
        rate: Option<f64>,
    },
    /// Client of accept: connections.
    Connect {
        #[command(flatten)]
        client: Client,
        /// Connections at a time.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
        connections: u32,
    },
    /// Client of echo: one connection, one message in flight, on blocking sockets.
    Pingpong {
        #[command(flatten)]
        client: Client,
        /// Bytes of a message.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
        bytes: u32,
        /// A Unix socket to use instead of TCP.
        #[arg(long, value_name = "PATH")]
        unix: Option<PathBuf>,
        /// Round trips per second (open loop). Without it the next begins when the last is done.
        #[arg(long, value_name = "PER_SECOND")]
        rate: Option<f64>,
    },
    /// Client of sink: as many bytes as go.
    Stream {
        #[command(flatten)]
        client: Client,
        /// Connections, a thread each.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
        flows: u32,
    },
}

#[derive(Args)]
struct Listen {
    /// Where to listen.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
}

#[derive(Args)]
struct Client {
    /// Where the server is.
    #[arg(long, value_name = "IP:PORT")]
    connect: SocketAddr,
    /// How long.
    #[arg(long, default_value_t = 1.0, conflicts_with = "operations")]
    seconds: f64,
    /// How many operations (messages, round trips, MiB), instead of how long.
    #[arg(long)]
    operations: Option<u64>,
}

impl Client {
    fn until(&self) -> Until {
        match self.operations {
            Some(operations) => Until::Operations(operations),
            None => Until::Time(Duration::from_secs_f64(self.seconds.clamp(0.001, 1e6))),
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("utcp-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> std::io::Result<()> {
    let summary: Summary = match command {
        Command::Echo { server, ports, unix } => {
            utcp_engine::sys::raise_descriptor_limit();
            return load::echo(&listeners(server.listen, ports, unix.as_deref())?);
        }
        Command::Sink(server) => return load::sink(&listen(server.listen)?),
        Command::Accept(server) => return load::accept(&listen(server.listen)?),
        Command::Connect { client, connections } => {
            load::connect(client.connect, connections as usize, client.until())?
        }
        Command::Msg { client, bytes, messages, connections, rate } => {
            utcp_engine::sys::raise_descriptor_limit();
            let (bytes, connections) = (bytes as usize, connections as usize);
            let load = Messages { bytes, messages, connections, rate };
            load::msg(client.connect, load, client.until())?
        }
        Command::Pingpong { client, bytes, unix, rate } => {
            let load = Pingpong { bytes: bytes as usize, rate };
            match unix {
                Some(path) => load::pingpong_unix(&path, load, client.until())?,
                None => load::pingpong(client.connect, load, client.until())?,
            }
        }
        Command::Stream { client, flows } => load::stream(client.connect, flows, client.until())?,
    };
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}

/// A listener with a queue that many clients at once don't overflow.
fn listen(at: SocketAddr) -> std::io::Result<TcpListener> {
    const BACKLOG: i32 = 4096;
    let listener = TcpListener::bind(at)?;
    // SAFETY: no memory is passed; listening once more only sets the backlog.
    if unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(listener)
}

/// Non-blocking listeners on `ports` ports from `first` on, and on a Unix socket.
fn listeners(first: SocketAddr, ports: u16, unix: Option<&Path>) -> std::io::Result<Vec<OwnedFd>> {
    let mut all = Vec::new();
    for at in 0..ports {
        let listener = listen((first.ip(), first.port().saturating_add(at)).into())?;
        listener.set_nonblocking(true)?;
        all.push(listener.into());
    }
    if let Some(path) = unix {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        all.push(listener.into());
    }
    Ok(all)
}
