//! `utcp top`: what the engine does just now, look after look: rates of its counters, and each program's connections and bytes.
//!
//! Everything is the difference of two looks at what `utcp ss` and `utcp metrics` show. Bytes of a connection that ended between two
//! looks are in neither.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use utcp_abi::message::Report;
use utcp_engine::sys;

use crate::tools::{self, Where};

/// Arguments of `utcp top`.
#[derive(clap::Args)]
pub struct Top {
    /// Seconds from look to look.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
    /// Show so many looks, then end.
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    at: Where,
}

/// What is shown of the counters: words, and the counters whose sum it is.
const RATES: [(&str, &[&str]); 10] = [
    ("connected", &["connects"]),
    ("accepted", &["accepts"]),
    ("ended", &["closed"]),
    ("left to the kernel", &["connects_kernel"]),
    ("segments here", &["local_segments"]),
    ("frames in", &["rx_frames"]),
    ("frames out", &["tx_frames"]),
    ("sent again", &["retransmits"]),
    ("dropped", &["dropped_segments", "dropped_frames", "dropped_tx_full", "listen_overflows"]),
    ("wake-ups", &["wakes_set", "wakes_socket"]),
];

/// One program, or what its sockets are together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Program {
    connections: u64,
    listeners: u64,
    received: u64,
    sent: u64,
    recv_queue: u64,
    send_queue: u64,
}

/// One look.
#[derive(Debug, Default)]
struct Look {
    at_ns: u64,
    counters: HashMap<String, u64>,
    /// Of each connection (program, ends): bytes received and sent.
    bytes: HashMap<String, [u64; 2]>,
    /// By `name/pid`; bytes not counted yet.
    programs: BTreeMap<String, Program>,
}

/// Shows one look after the other, until it is interrupted.
pub fn main(top: &Top) -> Result<(), String> {
    let interval = Duration::try_from_secs_f64(top.interval)
        .ok()
        .filter(|interval| (Duration::from_millis(50)..=Duration::from_secs(3600)).contains(interval))
        .ok_or_else(|| format!("--interval {}: expected seconds, 0.05 to 3600", top.interval))?;
    let engine = tools::connect(&top.at)?;
    let mut before = look(&engine)?;
    let mut shown = 0;
    while top.count.is_none_or(|count| shown < count) {
        std::thread::sleep(interval);
        let now = look(&engine)?;
        let page = page(&before, &now);
        let mut out = io::stdout().lock();
        let clear = if out.is_terminal() { "\x1b[H\x1b[2J" } else { "" };
        if write!(out, "{clear}{page}").and_then(|()| out.flush()).is_err() {
            return Ok(()); // The reader of our output has seen enough.
        }
        before = now;
        shown += 1;
    }
    Ok(())
}

fn look(engine: &OwnedFd) -> Result<Look, String> {
    let text = |report| {
        let mut bytes = Vec::new();
        tools::ask(engine, report, 0, 0, &mut bytes)?;
        Ok::<_, String>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let counters = text(Report::Counters)?;
    let sockets = text(Report::Sockets)?;
    Ok(read(&counters, &sockets, sys::now_ns()))
}

/// A look, from what the engine says in words.
fn read(counters: &str, sockets: &str, at_ns: u64) -> Look {
    let mut look = Look { at_ns, ..Look::default() };
    for line in counters.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(value)) = (words.next(), words.next().and_then(|v| v.parse().ok())) {
            look.counters.insert(name.to_owned(), value);
        }
    }
    for line in sockets.lines().skip(1) {
        let mut words = line.split_whitespace();
        let (Some(state), Some(recv), Some(send), Some(local), Some(remote), Some(owner)) =
            (words.next(), words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let program = look.programs.entry(owner.to_owned()).or_default();
        if state == "LISTEN" {
            program.listeners += 1;
            continue;
        }
        program.connections += 1;
        program.recv_queue += recv.parse().unwrap_or(0);
        program.send_queue += send.parse().unwrap_or(0);
        let mut bytes = [0; 2];
        for word in words {
            match word.split_once(':') {
                Some(("bytes_received", value)) => bytes[0] = value.parse().unwrap_or(0),
                Some(("bytes_acked", value)) => bytes[1] = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        look.bytes.insert(format!("{owner} {local} {remote}"), bytes);
    }
    look
}

/// The page that shows what happened between two looks.
fn page(before: &Look, now: &Look) -> String {
    let seconds = Duration::from_nanos(now.at_ns.saturating_sub(before.at_ns)).as_secs_f64().max(1e-6);
    let mut programs = now.programs.clone();
    for (key, bytes) in &now.bytes {
        let old = before.bytes.get(key).copied().unwrap_or_default();
        let owner = key.split(' ').next().unwrap_or_default();
        if let Some(program) = programs.get_mut(owner) {
            // Fewer than before: other ends of the same name.
            let grown = |i: usize| bytes[i].checked_sub(old[i]).unwrap_or(bytes[i]);
            program.received += grown(0);
            program.sent += grown(1);
        }
    }
    let mut list: Vec<(&String, &Program)> = programs.iter().collect();
    list.sort_by_key(|(name, p)| (std::cmp::Reverse((p.received + p.sent, p.connections)), *name));
    let connections: u64 = list.iter().map(|(_, program)| program.connections).sum();
    let listeners: u64 = list.iter().map(|(_, program)| program.listeners).sum();
    let mut text =
        format!("utcp: {connections} connections, {listeners} listeners; per second, over {seconds:.1} s:\n");
    let sum = |look: &Look, names: &[&str]| -> u64 {
        names.iter().map(|name| look.counters.get(*name).copied().unwrap_or(0)).sum()
    };
    for (place, (words, names)) in RATES.iter().enumerate() {
        let grown = sum(now, names).saturating_sub(sum(before, names));
        let end = if place % 5 == 4 { "\n" } else { "" };
        text += &format!("{:>20} {:>7}{end}", words, short(per_second(grown, seconds)));
    }
    text += &format!(
        "\n{:<24}{:>8}{:>8}{:>10}{:>10}{:>10}{:>10}\n",
        "PROGRAM/PID", "CONNS", "LISTEN", "RECV B/s", "SENT B/s", "RECV-Q", "SEND-Q"
    );
    for (name, program) in list {
        text += &format!(
            "{:<24}{:>8}{:>8}{:>10}{:>10}{:>10}{:>10}\n",
            name,
            program.connections,
            program.listeners,
            short(per_second(program.received, seconds)),
            short(per_second(program.sent, seconds)),
            short(program.recv_queue),
            short(program.send_queue),
        );
    }
    text
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "for people"
)]
fn per_second(count: u64, seconds: f64) -> u64 {
    (count as f64 / seconds).round() as u64
}

/// A number in at most five characters: thousands are K, M, G, T.
fn short(number: u64) -> String {
    let mut unit = 1;
    for letter in ["", "K", "M", "G", "T"] {
        let whole = number / unit;
        if whole < 10_000 || letter == "T" {
            return format!("{whole}{letter}");
        }
        unit *= 1000;
    }
    number.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "State Recv-Q Send-Q Local Peer Process Detail\n";

    #[test]
    fn rates_are_differences() {
        let line = |received: u32| {
            format!(
                "{HEAD}LISTEN 0 511 127.0.0.1:80 *:* nginx/7 shard:0 syn-queue:0\n\
                 ESTAB 3 4 127.0.0.1:80 127.0.0.1:5000 nginx/7 shard:0 path:same-host bytes_acked:10 bytes_received:{received}\n\
                 TIME-WAIT 0 0 1.2.3.4:80 1.2.3.5:6 - shard:0\n"
            )
        };
        let before = read("accepts 5 # Words.\nxdp:eth0.lost 3\n", &line(100), 0);
        let now = read("accepts 25 # Words.\n", &line(1100), 2_000_000_000);
        assert_eq!(before.counters.get("xdp:eth0.lost"), Some(&3));
        let page = page(&before, &now);
        assert!(page.starts_with("utcp: 2 connections, 1 listeners"), "{page}");
        assert!(page.contains("accepted      10"), "{page}");
        let row: Vec<&str> =
            page.lines().find(|l| l.starts_with("nginx/7")).expect("a row").split_whitespace().collect();
        assert_eq!(row, ["nginx/7", "1", "1", "500", "0", "3", "4"]);
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in
            [(0, "0"), (9_999, "9999"), (10_000, "10K"), (12_345_678, "12M"), (u64::MAX, "18446744T")]
        {
            assert_eq!(short(number), text);
        }
    }
}
