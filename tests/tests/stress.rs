//! Calls from everywhere at once (`stress/stress.c`): threads on shared descriptors, signal handlers that use the socket of the
//! call they interrupt, forks, cancelled threads, jumps out of handlers. Nothing hangs or crashes, bytes are what they should be, and
//! nothing stays behind.

use std::path::PathBuf;
use std::time::Duration;

use utcp_tests::{Engine, Lab, is_installed, measured, not_run};

const PROGRAM: &str = include_str!("stress/stress.c");

/// The program, built with `options`.
fn build(lab: &Lab, options: &[&str]) -> PathBuf {
    let (source, program) = (lab.file("stress.c", PROGRAM), lab.path("stress"));
    let run = lab.run("cc").args(["-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Werror"]).args(options);
    let _ = run.arg("-o").arg(&program).arg(source).ok();
    program
}

/// Seconds in the long run, and otherwise.
fn seconds(short: u64) -> u64 {
    if std::env::var("UTCP_TEST_LONG").as_deref() == Ok("yes") { 60 } else { short }
}

fn stress(kind: &str, path: &str, short: u64) {
    if !is_installed("cc") {
        return not_run("no C compiler");
    }
    let lab = Lab::new(&format!("stress-{kind}-{path}"));
    let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
    let seconds = seconds(short);
    let run = lab.run(build(&lab, &[])).args([kind, &seconds.to_string(), "1"]);
    let mut program = run.under(&engine).spawn();
    let text = utcp_tests::wait_until("it is done", Duration::from_secs(seconds + 60), || {
        let (text, alive) = (program.stdout(), program.is_alive());
        assert!(alive, "it ended: {}\n{text}", program.stderr());
        text.contains("done").then_some(text)
    });
    measured(&format!("stress {kind}, cut-through {path}: {}", text.lines().next().unwrap_or_default()));
    engine.went_through(1);
    // The program still lives, so what is left now is what it or the engine forgot.
    engine.wait_until_gone("sockets", Duration::from_secs(15), |socket| socket.state != "TIME-WAIT");
    let counters = engine.counters();
    for name in ["corrupt_clients", "out_of_sockets"] {
        assert_eq!(counters.get(name), 0, "{name}");
    }
    assert!(program.is_alive(), "{}", program.stderr());
}

#[test]
fn threads_on_shared_descriptors() {
    stress("shared", "off", 5);
}

#[test]
fn threads_on_shared_descriptors_cut_through() {
    stress("shared", "on", 5);
}

/// Who is late does nothing to the socket that has the place of the one that was meant.
#[test]
fn threads_that_are_late() {
    stress("late", "off", 4);
}

#[test]
fn threads_that_are_late_cut_through() {
    stress("late", "on", 4);
}

#[test]
fn signals() {
    stress("signals", "off", 4);
}

#[test]
fn signals_cut_through() {
    stress("signals", "on", 4);
}

#[test]
fn forks() {
    stress("forks", "off", 4);
}

#[test]
fn forks_cut_through() {
    stress("forks", "on", 4);
}

#[test]
fn cancelled_threads_and_jumps() {
    stress("cancel", "off", 3);
}

#[test]
fn cancelled_threads_and_jumps_cut_through() {
    stress("cancel", "on", 3);
}
