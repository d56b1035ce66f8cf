//! Random programs of socket calls, once on the kernel and on each of utcp's two same-host paths: same returns, errno,
//! bytes, events.
//!
//! `UTCP_GENERATOR_SEED` chooses other programs, `UTCP_GENERATOR_PROGRAMS` how many, `UTCP_GENERATOR_SECONDS` how long at
//! most. A program that differs is cut down to the lines that matter, printed, and kept as a case in
//! `tests/differential/cases/generated.calls`, which `tests/tests/differential.rs` runs from then on.

#[path = "generated/program.rs"]
mod program;

use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use utcp_tests::transcript::{BROKEN, difference, transcript};
use utcp_tests::{Engine, Lab, measured, repository};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn long() -> bool {
    std::env::var("UTCP_TEST_LONG").as_deref() == Ok("yes")
}

/// Both of utcp's ways, and the kernel beside them.
struct Sides<'a> {
    lab: &'a Lab,
    engines: [(&'static str, Engine<'a>); 2],
}

impl<'a> Sides<'a> {
    fn new(lab: &'a Lab) -> Self {
        let engine = |path| (path, Engine::new(lab).set("UTCP_CUT_THROUGH", path).run());
        Self { lab, engines: [engine("off"), engine("on")] }
    }

    /// Where the program differs with this way of waiting between its calls, in words.
    fn look(&self, lines: &[String], settle: &str) -> Option<String> {
        let file = self.lab.file("generated.calls", format!("== program\n{}\n", lines.join("\n")));
        let on = |engine| {
            transcript(self.lab, engine, env!("CARGO_BIN_EXE_utcp-calls"), (&file, "program"), settle)
        };
        let kernel = on(None);
        if kernel.contains(BROKEN) {
            return None; // It waits for what never comes, or breaks itself: nothing to compare.
        }
        self.engines.iter().find_map(|(path, engine)| {
            let utcp = on(Some(engine));
            (kernel != utcp).then(|| format!("cut-through {path}:\n{}", difference(&kernel, &utcp)))
        })
    }

    /// Where the program differs however much time it takes.
    fn differs(&self, lines: &[String], patience: &[&str]) -> Option<String> {
        let mut found = None;
        for settle in patience {
            found = Some(self.look(lines, settle)?);
        }
        found
    }
}

/// Adds the program to the cases that are run by hand-written ones' side.
fn keep(name: &str, lines: &[String]) -> std::io::Result<()> {
    let path = repository().join("tests/differential/cases/generated.calls");
    let mut file = fs::OpenOptions::new().append(true).open(path)?;
    write!(file, "\n== {name}\n{}\n", lines.join("\n"))
}

#[test]
fn random_programs() {
    let seed = setting("UTCP_GENERATOR_SEED").unwrap_or_else(|| {
        let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        if long() { now().map_or(1, |time| time.as_secs()) } else { 1 }
    });
    let programs = setting("UTCP_GENERATOR_PROGRAMS").unwrap_or(if long() { 20_000 } else { 400 });
    let seconds = setting("UTCP_GENERATOR_SECONDS").unwrap_or(if long() { 480 } else { 50 });
    let lab = Lab::new("generated");
    let sides = Sides::new(&lab);
    let (run, found) = (Cell::new(0_u64), Cell::new(false));
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: u32::try_from(programs).unwrap_or(u32::MAX),
        failure_persistence: None,
        max_shrink_iters: 400,
        // Where programs hang or the machine is busy, each look takes seconds.
        max_shrink_time: 40_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&program::program(4..24), |lines| {
        if !found.get() && Instant::now() > deadline {
            return Ok(());
        }
        run.set(run.get() + 1);
        // A difference counts once it stays with 200 ms between two calls; shrinking is less patient.
        let patience: &[&str] = if found.get() { &["meet", "12"] } else { &["meet", "12", "60", "200"] };
        match sides.differs(&lines, patience) {
            None => Ok(()),
            Some(text) => {
                found.set(true);
                Err(TestCaseError::fail(text))
            }
        }
    });
    if let Err(TestError::Fail(_, lines)) = outcome {
        let text =
            sides.differs(&lines, &["60"]).unwrap_or_else(|| "(only when it is run fast)\n".to_owned());
        let name = format!("seed {seed}, program {}", run.get());
        let kept =
            keep(&name, &lines).map_or_else(|error| format!("not kept: {error}"), |()| "kept".to_owned());
        panic!(
            "{name}: {text}\n{}\n({kept}; again: cargo test -p utcp-tests --test differential generated, or UTCP_GENERATOR_SEED={seed})",
            lines.join("\n")
        );
    }
    measured(&format!("{} random programs are the same on the kernel and on utcp (seed {seed})", run.get()));
    for (_, engine) in &sides.engines {
        engine.went_through(run.get());
        // Whatever order they closed in, nothing stays behind.
        engine.wait_until_gone("sockets", Duration::from_secs(20), |socket| socket.state != "TIME-WAIT");
        assert_eq!(engine.counters().get("corrupt_clients"), 0);
    }
}
