//! Servers and clients of our own, on plain sockets and epoll. A client prints one line of JSON.

use std::net::{SocketAddr, TcpListener};
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
    Echo(Listen),
    /// Server: read and forget.
    Sink(Listen),
    /// Client of echo: messages on many connections, a new connection after some of them.
    Msg {
        #[command(flatten)]
        client: Client,
        /// Bytes of a message.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
        bytes: u32,
        /// Messages of a connection.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        messages: u32,
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
        /// Round trips per second (open loop). Without it the next begins when the last is done.
        #[arg(long, value_name = "PER_SECOND")]
        rate: Option<f64>,
    },
    /// Client of sink: one connection, as many bytes as go.
    Stream {
        #[command(flatten)]
        client: Client,
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
        Command::Echo(server) => return load::echo(&TcpListener::bind(server.listen)?),
        Command::Sink(server) => return load::sink(&TcpListener::bind(server.listen)?),
        Command::Msg { client, bytes, messages, connections } => {
            let load = Messages { bytes: bytes as usize, messages, connections: connections as usize };
            load::msg(client.connect, load, client.until())?
        }
        Command::Pingpong { client, bytes, rate } => {
            let load = Pingpong { bytes: bytes as usize, rate };
            load::pingpong(client.connect, load, client.until())?
        }
        Command::Stream { client } => load::stream(client.connect, client.until())?,
    };
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}
