//! System calls of the server per request, in a steady state.
//!
//! strace is attached after the warm-up, for one bounded load; what it counts is divided by the load's
//! operations. It slows the server down, so a count says nothing about speed: it says whether the
//! hot path leaves the kernel alone. Opening the load's own connections is in the count.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::time::Duration;

use crate::apps::Amount;
use crate::case::{Case, Work};
use crate::child::Launch;
use crate::cpu;
use crate::engine::{self, Files};
use crate::interrupt;
use crate::net::Net;
use crate::run::{Pinning, Side, Stage};
use crate::{Error, parse};

/// Calls that a server makes for its network traffic: on sockets, to wait for them, to be woken, and what
/// libutcp.so does around them.
const NETWORK: [&str; 38] = [
    "accept",
    "accept4",
    "bind",
    "close",
    "connect",
    "dup",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "fcntl",
    "futex",
    "getsockname",
    "getsockopt",
    "ioctl",
    "listen",
    "poll",
    "ppoll",
    "pselect6",
    "read",
    "readv",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "rt_sigprocmask",
    "sched_yield",
    "select",
    "sendfile",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "socket",
    "splice",
    "write",
    "writev",
];

/// What was counted on one side of a case.
#[derive(Debug)]
pub struct Counted {
    /// The case.
    pub case: Case,
    /// The side.
    pub side: Side,
    /// Operations of the load.
    pub operations: u64,
    /// System calls of the server by name.
    pub calls: BTreeMap<String, u64>,
    /// What the engine counted.
    pub engine: engine::Counters,
}

impl Counted {
    /// Networking system calls per operation.
    #[must_use]
    pub fn network_per_op(&self) -> f64 {
        self.per_op(
            self.calls.iter().filter(|(name, _)| NETWORK.contains(&name.as_str())).map(|(_, n)| n).sum(),
        )
    }

    /// All system calls per operation.
    #[must_use]
    pub fn all_per_op(&self) -> f64 {
        self.per_op(self.calls.values().sum())
    }

    #[allow(clippy::cast_precision_loss, reason = "counts below 2^52")]
    fn per_op(&self, count: u64) -> f64 {
        count as f64 / self.operations.max(1) as f64
    }
}

/// Counts one side of a case.
///
/// # Errors
/// When the run fails or strace can't attach.
pub fn count(case: Case, side: Side, net: &Net, pinning: &Pinning, files: &Files) -> Result<Counted, Error> {
    let mut stage = Stage::set(case, side, net, pinning, files)?;
    let mut warm = stage.warm_up()?;
    // Under strace the rate is far lower; the count of operations is bounded all the same.
    warm.per_second = warm.per_second.min(20_000.0);
    let seconds = if matches!(case.work, Work::Http { .. }) { 2 } else { 1 };
    let (client, amount) = stage.application().measured(&warm, seconds, None);

    let output = stage.folder().join("strace.txt");
    let pids = cpu::members(stage.server_id());
    let mut strace = Launch::new("strace").args(["-f", "-c", "-o"]).args([output.as_os_str()]);
    for pid in &pids {
        strace = strace.args(["-p", &pid.to_string()]);
    }
    let mut strace = strace.start(stage.folder())?;
    strace.wait_ready(Duration::from_secs(10), |_| Ok(pids.iter().all(|pid| is_traced(*pid))))?;
    let before = stage.counters()?;
    let load = stage.load(client, amount)?;
    let after = stage.counters()?;
    // SIGINT is how strace is told to print.
    strace.interrupt();
    strace.wait(Duration::from_secs(10))?;
    let text = fs::read_to_string(&output).map_err(Error::io("can't read what strace counted"))?;
    let engine = engine::growth(&before, &after);
    stage.expect_utcp(&load, &engine)?;
    stage.end()?;
    interrupt::check()?;
    let calls = parse::strace(&text)?.into_iter().collect();
    debug_assert!(
        !matches!(amount, Amount::Operations(n) if n != load.operations),
        "a bounded load ends whole"
    );
    Ok(Counted { case, side, operations: load.operations, calls, engine })
}

/// Whether every thread of a process has a tracer.
fn is_traced(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    })
}

/// A table of what was counted.
#[must_use]
pub fn table(all: &[Counted]) -> String {
    let mut text = String::new();
    let title = ["scenario", "case", "side", "operations", "networking/op", "all/op"];
    let _ = writeln!(
        text,
        "{:<10} {:<22} {:<6} {:>10} {:>13} {:>8}   calls per operation",
        title[0], title[1], title[2], title[3], title[4], title[5]
    );
    for one in all {
        let side = if one.side == Side::Utcp { "utcp" } else { "kernel" };
        let _ = writeln!(
            text,
            "{:<10} {:<22} {side:<6} {:>10} {:>13.4} {:>8.4}   {}",
            one.case.scenario.name(),
            format!("{} {}", one.case.app.name(), one.case.name),
            one.operations,
            one.network_per_op(),
            one.all_per_op(),
            most(one.calls.iter().map(|(name, count)| (name.as_str(), one.per_op(*count)))),
        );
        if one.side == Side::Utcp {
            let counters = one.engine.iter().map(|(name, count)| (name.as_str(), one.per_op(*count)));
            let _ = writeln!(text, "{:<10} {:<22} engine, per operation: {}", "", "", most(counters));
        }
    }
    text
}

/// The largest few, largest first.
fn most<'a>(items: impl Iterator<Item = (&'a str, f64)>) -> String {
    let mut items: Vec<_> = items.filter(|(_, per_op)| *per_op >= 0.0005).collect();
    items.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    let words: Vec<String> =
        items.iter().take(9).map(|(name, per_op)| format!("{name} {per_op:.3}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{App, Scenario, Setting};

    #[test]
    fn networking_calls_are_told_apart() {
        let counted = Counted {
            case: Case {
                scenario: Scenario::SameHost,
                app: App::Redis,
                name: "get-d1-c50",
                work: Work::Get { depth: 1, connections: 50, close: false },
                setting: Setting::Plain,
                point: None,
            },
            side: Side::Utcp,
            operations: 1000,
            calls: [("epoll_wait", 50), ("read", 10), ("getpid", 40)].map(|(n, c)| (n.to_owned(), c)).into(),
            engine: [("sleeps".to_owned(), 20)].into(),
        };
        assert!((counted.network_per_op() - 0.06).abs() < 1e-9);
        assert!((counted.all_per_op() - 0.1).abs() < 1e-9);
        let text = table(&[counted]);
        assert!(text.contains("epoll_wait 0.050, getpid 0.040, read 0.010"), "{text}");
        assert!(text.contains("sleeps 0.020"), "{text}");
    }
}
