//! What the engine costs for a message, by itself; for callgrind and for curves over connections.

use std::process::ExitCode;

use clap::Parser;
use utcp_bench::solo::{Work, run};

#[derive(Parser)]
#[command(name = "utcp-solo", version, about = "One shard by itself: what a message costs in the engine.")]
struct Arguments {
    /// Connections.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=131_000))]
    connections: u32,
    /// Bytes of a message.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    bytes: u32,
    /// Messages of a connection, which a new one follows; 0: connections stay.
    #[arg(long, default_value_t = 0)]
    each: u32,
    /// Messages on each connection.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Messages at least in all.
    #[arg(long, default_value_t = 200_000)]
    messages: u64,
}

fn main() -> ExitCode {
    let Arguments { connections, bytes, each, rounds, messages } = Arguments::parse();
    match run(Work { connections, bytes, each, rounds, least: messages }) {
        Ok(summary) => {
            println!("{}", serde_json::json!(summary));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("utcp-solo: {error}");
            ExitCode::FAILURE
        }
    }
}
