//! The comparison itself: every kind of case gives its rows, and nothing is left behind. What the rows say is no
//! business of a test.

use std::fs;
use std::process::Command;
use std::time::Duration;

use utcp_tests::{Lab, is_root, not_run, release_file};

/// Runs one case for a second; its rows as (case, text of the row).
fn rows(lab: &Lab, scenario: &str, app: &str, case: &str) -> Vec<serde_json::Value> {
    let json = lab.path("rows.json");
    let html = lab.path("rows.html");
    lab.run(release_file("utcp-compare"))
        .args(["--quick", "--pairs", "1", "--seconds", "1", "--calm", "0"])
        .args(["--scenario", scenario, "--app", app, "--case", case])
        .arg("--json")
        .arg(&json)
        .arg("--html")
        .arg(&html)
        .limit(Duration::from_secs(120))
        .ok();
    let page = fs::read_to_string(&html).expect("the page");
    assert!(page.contains(case) && page.trim_end().ends_with("</html>"));
    let text = fs::read_to_string(&json).expect("the result");
    let result: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    result["rows"].as_array().expect("rows").clone()
}

/// A row with a figure of either side and without errors.
#[track_caller]
fn check(rows: &[serde_json::Value], scenario: &str, app: &str, case: &str) {
    let row = rows.iter().find(|row| row["case"] == case).unwrap_or_else(|| panic!("no {case} in {rows:?}"));
    assert_eq!((row["scenario"].as_str(), row["app"].as_str()), (Some(scenario), Some(app)));
    for side in ["kernel", "utcp"] {
        assert!(row[side].as_f64().is_some_and(|value| value > 0.0), "{row}");
        assert_eq!(row["errors"][side], 0, "{row}");
    }
    assert!(row["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0), "{row}");
}

fn one(scenario: &str, app: &str, case: &str) {
    if scenario != "same-host" && !is_root() {
        return not_run("needs root");
    }
    let lab = Lab::new("compare");
    check(&rows(&lab, scenario, app, case), scenario, app, case);
    nothing_is_left();
}

/// Namespaces bear the number of the process that made them.
#[track_caller]
fn nothing_is_left() {
    let list = Command::new("ip").args(["netns", "list"]).output().expect("ip");
    for name in String::from_utf8_lossy(&list.stdout).split_whitespace() {
        let Some(owner) = name.strip_prefix("utcp-compare-").and_then(|rest| rest.split('-').next()) else {
            continue;
        };
        assert!(fs::exists(format!("/proc/{owner}")).unwrap_or(true), "{name} was left behind");
    }
}

#[test]
fn same_host_pingpong() {
    one("same-host", "pingpong", "64B-same-core");
}

#[test]
fn same_host_connections() {
    one("same-host", "accept", "c64");
}

#[test]
fn same_host_many_streams() {
    one("same-host", "stream", "4-flows");
}

#[test]
fn same_host_open_loop() {
    one("same-host", "pingpong", "64B-tail-c64");
}

/// Whether a program is there that setup can do without.
fn has(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let there = path.split(':').any(|folder| fs::exists(format!("{folder}/{program}")).unwrap_or(false));
    if !there {
        not_run(&format!("{program} is not installed"));
    }
    there
}

#[test]
fn same_host_proxy() {
    if has("haproxy") {
        one("same-host", "haproxy", "http-close");
    }
}

#[test]
fn same_host_memcached() {
    if has("memcaslap") {
        one("same-host", "memcached", "get-c50");
    }
}

#[test]
fn device_by_the_lean_generator() {
    one("device", "msg", "64B-k8");
}

/// A generator's burst is longer than veth's ring; a SYN that is lost there is a second without its connection, which made the
/// kernel look fifty times slower than it is.
#[test]
fn a_burst_of_connections_loses_no_frame() {
    if !is_root() {
        return not_run("needs root");
    }
    let lab = Lab::new("compare");
    let rows = rows(&lab, "device", "msg", "64B-k1-burst");
    check(&rows, "device", "msg", "64B-k1-burst");
    assert_eq!(rows[0]["lost_frames"], serde_json::json!({"kernel": 0, "utcp": 0}), "{}", rows[0]);
    nothing_is_left();
}

#[test]
fn device_files() {
    one("device", "nginx", "file-16KB");
}

#[test]
fn device_tls() {
    one("device", "nginx", "tls-close-hello");
}

#[test]
fn stack_limit_messages() {
    one("stack-limit", "msg", "64B-k1");
}

#[test]
fn stack_limit_echo() {
    one("stack-limit", "echo", "64B-one-core");
}

#[test]
fn memory_of_idle_connections() {
    one("idle", "idle", "memory-1k");
}

#[test]
fn cost_over_connections() {
    one("scale", "msg", "1k-flows");
}

/// What has no counterpart in the kernel has a figure of ours alone.
#[test]
fn a_shard_and_a_switch_by_themselves() {
    if !is_root() {
        return not_run("needs root");
    }
    let lab = Lab::new("compare");
    for (app, case) in [("engine", "64B"), ("demux", "validated")] {
        let rows = rows(&lab, "stack-limit", app, case);
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert!(rows[0]["utcp"].as_f64().is_some_and(|value| value > 0.0), "{rows:?}");
        assert!(rows[0]["kernel"].is_null() && rows[0]["errors"]["utcp"] == 0, "{rows:?}");
    }
}

/// Ctrl-C in the middle of a run: an error code, no namespace, no process.
#[test]
fn an_interrupt_cleans_up() {
    if !is_root() {
        return not_run("needs root");
    }
    let lab = Lab::new("compare-interrupt");
    let mut compare = lab
        .run(release_file("utcp-compare"))
        .args(["--scenario", "device", "--app", "msg", "--case", "64B-k1", "--calm", "0", "--seconds", "60"])
        .spawn();
    let namespace = format!("utcp-compare-{}-s", compare.pid());
    let pids = || {
        let output = Command::new("ip").args(["netns", "pids", &namespace]).output().expect("ip");
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    // One look decides: what sets the namespace up comes and goes before the server does.
    let came = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        pids() > 0
    });
    if !came {
        // It must not be killed as it is: nobody else would remove its namespaces.
        compare.signal(libc::SIGINT);
        compare.end_within(Duration::from_secs(20));
    }
    assert!(came, "no server came up");
    compare.signal(libc::SIGINT);
    compare.end_within(Duration::from_secs(20));
    nothing_is_left();
    assert_eq!(pids(), 0);
}
