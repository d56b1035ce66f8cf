//! What a segment costs in instructions, as callgrind counts them: the same on every machine and in every run.

use std::time::Duration;

use utcp_tests::{Lab, measured, not_run, release_file, repository};

/// Rounds of four segments, and their number.
const ROUNDS: u64 = 2_000;

/// What is counted: the function of `stack/proto/examples/segments.rs`, and the most that it may cost: a tenth more than
/// it did when this was written; of an ACK no more than the 400 that are wanted of it.
const BOUNDS: [(&str, u64); 4] = [("on_data", 195), ("on_ack", 400), ("poll_data", 555), ("poll_ack", 260)];

/// The same for `bench/examples/paths.rs`; what a table costs varies with its random key.
const PATHS: [(&str, u64); 8] = [
    ("frame_build", 435),
    ("frame_parse", 515),
    ("flow_get", 125),
    ("wheel_turn", 110),
    ("bits_turn", 110),
    ("ring_turn", 50),
    ("pipe_turn", 1600),
    ("checksum_full", 650),
];

#[test]
fn of_a_segment_and_its_ack() {
    check("utcp-proto", "segments", &BOUNDS);
}

#[test]
fn of_the_ways_through_the_engine() {
    check("utcp-bench", "paths", &PATHS);
}

/// Counts the functions of an example, which prints each one's name and how often it was called.
fn check(package: &str, example: &str, bounds: &[(&str, u64)]) {
    let lab = Lab::new(&format!("instructions-{example}"));
    let there = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join("valgrind").exists());
    if !there {
        return not_run("valgrind is not installed (scripts/setup)");
    }
    let target = release_file("utcp").parent().and_then(std::path::Path::parent).map(ToOwned::to_owned);
    let target = target.expect("release/utcp lies two folders deep");
    let build = std::process::Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "-p", package, "--example", example])
        .current_dir(repository())
        .env("CARGO_TARGET_DIR", &target)
        .status();
    assert!(build.expect("cargo runs").success(), "the example can be built");
    let program = target.join("release/examples").join(example);
    for &(function, bound) in bounds {
        let out = lab.path(function);
        let run = lab
            .run("valgrind")
            .arg("--tool=callgrind")
            .arg(format!("--toggle-collect={example}::{function}"));
        let run =
            run.arg(format!("--callgrind-out-file={}", out.display())).arg(&program).arg(ROUNDS.to_string());
        let said = run.limit(Duration::from_secs(120)).ok().text();
        let mut words = said.split_whitespace();
        let calls = words
            .by_ref()
            .skip_while(|word| *word != function)
            .nth(1)
            .and_then(|n| n.trim_end_matches(';').parse::<u64>().ok());
        let calls = calls.unwrap_or_else(|| panic!("no calls of {function} in {said:?}"));
        let text = std::fs::read_to_string(&out).expect("callgrind's file");
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<u64>().ok());
        let each = total.expect("callgrind's sum") / calls;
        measured(&format!("{function}: {each} instructions"));
        // Fewer than any call costs: the function was not found.
        assert!(
            each > 20 && each <= bound,
            "{function}: {each} instructions each, at most {bound} are allowed"
        );
    }
}
