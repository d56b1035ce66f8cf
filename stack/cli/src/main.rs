//! `utcp`: runs programs under utcp, is the engine, and tells what the engine does.

mod doctor;
mod engine;
mod find;
mod run;
mod switch;
mod tools;
mod top;
mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "utcp", version, about = "A user-level TCP/IP stack for unmodified programs.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a program with its TCP sockets on utcp.
    Run(run::Run),
    /// Run the engine in the foreground (programs start one by themselves when none runs).
    Engine(engine::Engine),
    /// Share a device between several engines, each with memory, ports and a process of its own.
    Switch(switch::Switch),
    /// Show the sockets that the engine serves.
    Ss(tools::Where),
    /// Show what the engine does, look after look.
    Top(top::Top),
    /// Say whether a port or process is accelerated, and why (not).
    Why(tools::Why),
    /// Show the engine's counters.
    Metrics(tools::Where),
    /// Show the programs that are attached.
    Clients(tools::Where),
    /// Look for what stands in the way on this machine, and set it right.
    Doctor(doctor::Doctor),
    /// Write down every frame on the engine's ports, for Wireshark and tcpdump.
    Trace(trace::Trace),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(run) => run::main(&run),
        Command::Engine(engine) => engine::main(engine),
        Command::Switch(switch) => switch::main(&switch),
        Command::Ss(at) => tools::report(&at, utcp_abi::message::Report::Sockets, 0, 0),
        Command::Top(top) => top::main(&top),
        Command::Why(why) => tools::why(&why),
        Command::Metrics(at) => tools::report(&at, utcp_abi::message::Report::Counters, 0, 0),
        Command::Clients(at) => tools::report(&at, utcp_abi::message::Report::Clients, 0, 0),
        Command::Doctor(doctor) => doctor::main(&doctor),
        Command::Trace(trace) => trace::main(&trace),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("utcp: {message}");
            ExitCode::FAILURE
        }
    }
}
