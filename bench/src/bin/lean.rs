//! The lean generator as a program: loads a server over a device of its own.
//!
//! It takes one command a line on its input (`msg …`, `hold …`, `end`) and answers each with one line of JSON, so that
//! one open device serves a warm-up and what is measured. Between commands it keeps connections alive.

use std::io::BufRead;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use utcp_bench::lean::{Generator, Link, Load, Place};

#[derive(Parser)]
#[command(name = "utcp-lean", version, about = "A message client that costs little, on a device of its own.")]
struct Arguments {
    /// Device, such as xdp:eth0 or pipe:NAME.
    #[arg(long)]
    device: String,
    /// Our address there.
    #[arg(long)]
    address: Ipv4Addr,
    /// The server's.
    #[arg(long)]
    server: Ipv4Addr,
    /// The first port that it listens on.
    #[arg(long)]
    port: u16,
    /// How many ports, one after the other.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    ports: u16,
    /// Link address of the server or of the way to it, such as 02:00:00:00:00:01; a pipe knows it.
    #[arg(long, value_parser = mac)]
    next_hop: Option<[u8; 6]>,
}

#[derive(Parser)]
#[command(multicall = true)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Messages.
    Msg(Messages),
    /// Connections that do nothing, until the next command.
    Hold {
        #[arg(long)]
        connections: u32,
    },
    /// Resets all connections.
    End,
}

#[derive(Args)]
struct Messages {
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    bytes: u32,
    /// Messages of a connection; 0: it stays.
    #[arg(long, default_value_t = 0)]
    messages: u32,
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Messages under way at a time; 0: one on each connection.
    #[arg(long, default_value_t = 0)]
    in_flight: u32,
    /// Messages per second (open loop).
    #[arg(long)]
    rate: Option<f64>,
    /// Acknowledge every answer at once.
    #[arg(long)]
    quick_ack: bool,
    /// How long at least.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How many messages at least.
    #[arg(long, default_value_t = 0)]
    operations: u64,
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    let bytes = bytes.map_err(|error| error.to_string())?;
    bytes.try_into().map_err(|_| "six bytes in hexadecimal, with colons between them".to_owned())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("utcp-lean: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { address, server, port, ports, .. } = *arguments;
    let place = Place { local: address, server, port, ports };
    let link = Link::open(&arguments.device, arguments.next_hop, place)?;
    let mut generator = Generator::new(link);
    let lines = input();
    println!("ready");
    loop {
        let mut line = None;
        generator.idle(|| match lines.try_recv() {
            Ok(text) => {
                line = Some(text);
                false
            }
            Err(TryRecvError::Empty) => true,
            Err(TryRecvError::Disconnected) => false,
        })?;
        let Some(line) = line else { return Ok(()) };
        println!("{}", answer(&mut generator, &line)?);
    }
}

/// What a command gives, as JSON.
fn answer(generator: &mut Generator, line: &str) -> Result<String, Box<dyn std::error::Error>> {
    let summary = match Line::try_parse_from(line.split_whitespace())?.command {
        Command::Msg(asked) => generator.run(Load {
            bytes: asked.bytes,
            messages: asked.messages,
            connections: asked.connections,
            in_flight: asked.in_flight,
            rate: asked.rate,
            quick_ack: asked.quick_ack,
            time: Duration::from_secs_f64(asked.seconds.clamp(0.001, 1e5)),
            operations: asked.operations,
        })?,
        Command::Hold { connections } => generator.hold(connections)?,
        Command::End => {
            generator.end_all()?;
            utcp_bench::load::Summary::default()
        }
    };
    Ok(serde_json::to_string(&summary)?)
}

/// Lines of the standard input, read by a thread of their own.
fn input() -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
