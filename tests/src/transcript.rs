//! What a script of calls (`tests/differential`) printed, on the kernel or under an engine, and where two such texts differ.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::lab::Lab;

/// How long a script may take beside the time between its calls: none waits for longer than some seconds in all.
const SCRIPT_MAX: Duration = Duration::from_secs(6);
/// About as many calls as the longest script has.
const CALLS_MAX: u32 = 60;

/// The words with which a transcript ends that is no whole one: the script hung, or was ended.
pub const BROKEN: &str = "... and";

/// Runs case `case` of `file` by `calls`, the program utcp-calls; `settle` is what it does between two calls.
///
/// # Panics
/// If it can't be started.
#[must_use]
pub fn transcript(
    lab: &Lab,
    engine: Option<&Engine<'_>>,
    calls: &str,
    (file, case): (&Path, &str),
    settle: &str,
) -> String {
    let run =
        lab.run(calls).arg(file).arg(case).env("CALLS_SETTLE_MS", settle).limit(Duration::from_secs(30));
    let run = match engine {
        Some(engine) => run.under(engine),
        None => run,
    };
    let mut program = run.spawn();
    let between = Duration::from_millis(settle.parse().unwrap_or(0));
    let deadline = Instant::now() + SCRIPT_MAX + between * CALLS_MAX;
    while program.is_alive() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    if program.is_alive() {
        let text = program.stdout();
        program.forget_logs();
        return format!("{text}{BROKEN} hangs\n");
    }
    let end = program.end_within(Duration::from_secs(1));
    program.forget_logs();
    let how =
        if end.status.success() { String::new() } else { format!("{BROKEN} ends with {}\n", end.status) };
    end.text() + &how + &end.err
}

/// Lines of both, one above the other where they differ.
#[must_use]
pub fn difference(kernel: &str, utcp: &str) -> String {
    let (mut left, mut right) = (kernel.lines(), utcp.lines());
    let mut text = String::new();
    loop {
        match (left.next(), right.next()) {
            (None, None) => return text,
            (a, b) if a == b => text.push_str(&format!("      {}\n", a.unwrap_or(""))),
            (a, b) => {
                for (who, line) in [("kernel", a), ("utcp", b)] {
                    if let Some(line) = line {
                        text.push_str(&format!("  {who:>6}: {line}\n"));
                    }
                }
            }
        }
    }
}
