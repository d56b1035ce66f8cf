//! CPU time: of the machine and of the processes of a run.

use std::fs;
use std::time::{Duration, Instant};

use crate::{Error, interrupt};

/// What `/proc` counts in: USER_HZ is 100 on every Linux that we run on.
const TICK_MS: u64 = 10;

fn ticks(number: u64) -> Duration {
    Duration::from_millis(number.saturating_mul(TICK_MS))
}

/// CPU time used by all cores since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Machine {
    /// Neither idle nor waiting for a disk nor taken by the hypervisor.
    pub busy: Duration,
    /// The part of `busy` in softirq.
    pub softirq: Duration,
    /// Taken by the hypervisor.
    pub stolen: Duration,
}

impl Machine {
    /// Reads `/proc/stat`.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn now() -> Result<Self, Error> {
        let text = fs::read_to_string("/proc/stat").map_err(Error::io("/proc/stat"))?;
        Self::parse(&text).ok_or_else(|| Error::Missing("/proc/stat has no line for all cpus".to_owned()))
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let counts: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal guest guest_nice; guest is part of user.
        let [user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] = counts[..] else { return None };
        let busy = [user, nice, system, irq, softirq].iter().map(|count| ticks(*count)).sum();
        Some(Self { busy, softirq: ticks(softirq), stolen: ticks(stolen) })
    }

    /// The time used since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(earlier.busy),
            softirq: self.softirq.saturating_sub(earlier.softirq),
            stolen: self.stolen.saturating_sub(earlier.stolen),
        }
    }
}

/// Cores that are busy just now, over `how_long`.
///
/// # Errors
/// [`Error::Interrupted`].
pub fn busy_cores(how_long: Duration) -> Result<f64, Error> {
    let (start, before) = (Instant::now(), Machine::now()?);
    interrupt::sleep(how_long)?;
    let busy = Machine::now()?.since(before).busy;
    Ok(busy.as_secs_f64() / start.elapsed().as_secs_f64())
}

/// Waits until others leave the machine alone, and takes the time from `patience`. Without any left it
/// does not even look.
///
/// # Errors
/// [`Error::Interrupted`].
pub fn wait_calm(patience: &mut Duration) -> Result<(), Error> {
    const CALM_CORES: f64 = 0.3;
    let start = Instant::now();
    while start.elapsed() < *patience && busy_cores(Duration::from_millis(100))? > CALM_CORES {}
    *patience = patience.saturating_sub(start.elapsed().saturating_sub(Duration::from_millis(100)));
    Ok(())
}

/// One line of `/proc/PID/stat`.
struct Stat {
    group: u32,
    state: char,
    /// User and system time of its threads.
    own: Duration,
    /// That of the children that it waited for.
    children: Duration,
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name in parentheses may hold anything; the last parenthesis ends it.
    let mut words = text.rsplit_once(')')?.1.split_whitespace();
    let state = words.next()?.chars().next()?;
    let group = words.nth(1)?.parse().ok()?;
    let mut times = words.skip(8).map_while(|word| word.parse().ok()).map(ticks);
    let (own, children) = (times.next()? + times.next()?, times.next()? + times.next()?);
    Some(Stat { group, state, own, children })
}

fn processes() -> impl Iterator<Item = (u32, Stat)> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = parse_stat(&fs::read_to_string(entry.path().join("stat")).ok()?)?;
        Some((pid, stat))
    })
}

/// CPU time of the living processes of a group.
#[must_use]
pub fn of_group(group: u32) -> Duration {
    processes().filter(|(_, stat)| stat.group == group).map(|(_, stat)| stat.own).sum()
}

/// CPU time of one process or kernel thread; none if it is gone.
#[must_use]
pub fn of_process(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    parse_stat(&text).map_or(Duration::ZERO, |stat| stat.own)
}

/// The living processes of a group.
#[must_use]
pub fn members(group: u32) -> Vec<u32> {
    processes().filter(|(_, s)| s.group == group && s.state != 'Z').map(|(pid, _)| pid).collect()
}

/// Whether a process of the group lives.
#[must_use]
pub fn group_lives(group: u32) -> bool {
    !members(group).is_empty()
}

/// CPU time of our children that ended.
#[must_use]
pub fn of_ended_children() -> Duration {
    fs::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|text| parse_stat(&text))
        .map_or(Duration::ZERO, |s| s.children)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_busy_with_everything_but_idling() {
        let text = "cpu  100 1 20 5000 7 2 30 4 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        let machine = Machine::parse(text).unwrap();
        assert_eq!(machine.busy, Duration::from_millis(1530));
        assert_eq!(machine.softirq, Duration::from_millis(300));
        assert_eq!(machine.stolen, Duration::from_millis(40));
        assert_eq!(Machine::parse("intr 1"), None);
    }

    #[test]
    fn a_process_name_may_hold_anything() {
        let text = "77 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 11 12 13 14 20 0 1 0 5 6 7";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.group, stat.state), (42, 'S'));
        assert_eq!(stat.own, Duration::from_millis(230));
        assert_eq!(stat.children, Duration::from_millis(270));
    }

    #[test]
    fn we_are_alive() {
        let own = rustix::process::getpgrp().as_raw_nonzero().get();
        assert!(group_lives(u32::try_from(own).unwrap()));
        assert!(Machine::now().unwrap().busy > Duration::ZERO);
    }
}
