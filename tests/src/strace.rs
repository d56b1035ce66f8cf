//! Counting system calls.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::lab::Lab;
use crate::wait::{WAIT, wait_until};

/// System calls by name.
#[derive(Debug, Clone, Default)]
pub struct Calls(pub BTreeMap<String, u64>);

impl Calls {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Calls per `operations`, the total and the most frequent ones, for a measured line.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a few thousand calls")]
    pub fn per(&self, operations: u64) -> (f64, String) {
        let each = |calls: u64| calls as f64 / operations.max(1) as f64;
        let mut list: Vec<(&String, &u64)> = self.0.iter().collect();
        list.sort_by_key(|(_, calls)| std::cmp::Reverse(**calls));
        let most: Vec<String> =
            list.iter().take(6).map(|(name, calls)| format!("{name} {:.3}", each(**calls))).collect();
        (each(self.total()), format!("{:.3} system calls each ({})", each(self.total()), most.join(", ")))
    }
}

/// The system calls that the processes `pids` (all their threads, and what they fork) make during `load`.
///
/// # Panics
/// If strace can't attach.
#[track_caller]
pub fn count(lab: &Lab, pids: &[u32], load: impl FnOnce()) -> Calls {
    let table = lab.path(&format!("calls-{}.strace", crate::lab::unique()));
    let mut run = lab.run("strace").args(["-f", "-c", "-o"]).arg(&table);
    for pid in pids {
        run = run.arg("-p").arg(pid.to_string());
    }
    let mut strace = run.spawn();
    wait_until("strace attaches", WAIT, || {
        assert!(strace.is_alive(), "strace ended: {}", strace.stderr());
        (strace.stderr().matches("attached").count() >= pids.len()).then_some(())
    });
    load();
    strace.signal(libc::SIGINT);
    let _ = strace.end_within(Duration::from_secs(20));
    parse(&fs::read_to_string(table).expect("strace wrote its table"))
}

fn parse(table: &str) -> Calls {
    let mut calls = BTreeMap::new();
    for line in table.lines() {
        // "% time  seconds  usecs/call  calls  [errors]  syscall"
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(name), Some(Ok(count))) = (fields.last(), fields.get(3).map(|n| n.parse::<u64>())) else {
            continue;
        };
        if *name != "total" && fields.len() >= 5 {
            *calls.entry((*name).to_owned()).or_default() += count;
        }
    }
    Calls(calls)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn tables_are_read() {
        let calls = parse(
            "% time     seconds  usecs/call     calls    errors syscall\n\
             ------ ----------- ----------- --------- --------- ----------------\n \
             90.00    0.000100           5        20         3 epoll_wait\n \
             10.00    0.000010           1        10           read\n\
             ------ ----------- ----------- --------- --------- ----------------\n\
             100.00    0.000110                   30         3 total\n",
        );
        assert_eq!((calls.total(), calls.0["epoll_wait"], calls.0["read"]), (30, 20, 10));
    }
}
