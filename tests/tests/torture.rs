//! Everything at once and at random: servers of every kind, clients that read and write as they please, every byte checked.

use std::time::Duration;

use utcp_tests::{Engine, Lab, measured, not_run};

const PROGRAM: &str = include_str!("torture/echo.py");

fn torture(name: &str, cut_through: &str, seconds: u64, seed: u64) {
    let lab = Lab::new(&format!("{name}-{cut_through}"));
    let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", cut_through).run();
    let program = lab.file("echo.py", PROGRAM);
    let run = lab.run("python3").arg(&program).args([seconds.to_string(), seed.to_string()]);
    let text = run.under(&engine).limit(Duration::from_secs(seconds + 90)).ok().text();
    let connections: u64 =
        text.lines().filter_map(|line| line.strip_suffix(" connections")?.parse::<u64>().ok()).sum();
    measured(&format!("torture: {connections} connections in {seconds} s, seed {seed}"));
    assert!(connections > 50, "{text}");
    engine.went_through(connections);
}

#[test]
fn echo_of_every_kind() {
    torture("torture", "on", 10, 1);
}

#[test]
fn echo_of_every_kind_by_segments() {
    torture("torture", "off", 10, 1);
}

#[test]
fn echo_of_every_kind_for_long() {
    if std::env::var("UTCP_TEST_LONG").as_deref() != Ok("yes") {
        return not_run("only with --long");
    }
    for seed in 2..12 {
        torture("torture-long", if seed % 2 == 0 { "on" } else { "off" }, 60, seed);
    }
}
