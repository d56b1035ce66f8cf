//! A program that writes rubbish into all memory that it shares (`vandal/vandal.c`), while it goes on calling and until it dies of it.
//! The engine lives, nobody else's byte is lost, its peers answer others and are quiet afterwards, and nothing of it stays.

use std::time::Duration;

use utcp_tests::{Engine, Lab, cpu_ticks, is_installed, measured, not_run, on_kernel, wait_until};

const VANDAL: &str = include_str!("vandal/vandal.c");
const ECHO: &str = include_str!("vandal/echo.py");
const NEIGHBOUR: &str = include_str!("vandal/neighbour.py");

fn vandals(cut_through: &str, seeds: u64) {
    if on_kernel() {
        return not_run("the kernel shares no memory");
    }
    if !is_installed("cc") {
        return not_run("no C compiler");
    }
    let lab = Lab::new(&format!("vandal-{cut_through}"));
    let program = lab.path("vandal");
    let source = lab.file("vandal.c", VANDAL);
    let run = lab.run("cc").args(["-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Werror", "-o"]);
    let _ = run.arg(&program).arg(source).ok();
    let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", cut_through).run();
    let port = lab.port().to_string();
    let mut server = lab.python(ECHO).args([&port]).under(&engine).spawn();
    server.wait_for_output("ready");
    let mut neighbour = lab.python(NEIGHBOUR).args([&port]).under(&engine).spawn();
    neighbour.wait_for_output("ready");
    engine.went_through(4);
    let seeds = if std::env::var("UTCP_TEST_LONG").as_deref() == Ok("yes") { 50 * seeds } else { seeds };
    let first = std::env::var("UTCP_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut deaths = 0;
    for seed in first..first + seeds {
        let mut vandal = lab.run(&program).args([&port, &seed.to_string(), "150"]).under(&engine).spawn();
        let end = vandal.end_within(Duration::from_secs(20));
        assert!(
            end.text().contains("areas"),
            "seed {seed}: it shared nothing: {:?} {}",
            end.status,
            vandal.stderr()
        );
        deaths += u64::from(!end.status.success());
        assert!(neighbour.is_alive(), "seed {seed}: {}", neighbour.stderr());
        assert!(server.is_alive(), "seed {seed}: {}", server.stderr());
        assert!(engine.pid().is_some_and(|pid| cpu_ticks(pid) > 0), "seed {seed}: the engine ended");
    }
    neighbour.signal(libc::SIGUSR1);
    let rounds = neighbour.end_within(Duration::from_secs(30)).ok().text();
    // Nothing of the vandals stays: neither a connection nor work.
    let mine = format!(":{port}");
    engine.wait_until_gone("sockets", Duration::from_secs(20), |socket| {
        socket.state != "TIME-WAIT" && !(socket.state == "LISTEN" && socket.local.ends_with(&mine))
    });
    let pids = [engine.pid().expect("it lives"), server.pid()];
    wait_until("engine and server are quiet for a second", Duration::from_secs(20), || {
        let before = pids.map(cpu_ticks);
        std::thread::sleep(Duration::from_secs(1));
        pids.map(cpu_ticks).iter().zip(before).all(|(now, then)| now - then <= 2).then_some(())
    });
    measured(&format!(
        "{seeds} vandals, cut-through {cut_through}: {deaths} died of it, {} corrupt clients ended; {}",
        engine.counters().get("corrupt_clients"),
        rounds.lines().last().unwrap_or_default()
    ));
}

#[test]
fn by_segments() {
    vandals("off", 12);
}

#[test]
fn cut_through() {
    vandals("on", 12);
}
