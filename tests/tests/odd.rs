//! Calls with odd arguments in every state of a TCP socket, on the kernel and on both of utcp's same-host paths: what they return, the errno, the
//! signals, and what the socket is like afterwards. The programs are in C (`odd/`), where a call can have any argument.
//!
//! Some thousands of cases run by default; `UTCP_TEST_LONG=yes` runs all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use utcp_tests::{Engine, Lab, is_installed, not_run};

/// Of so many cases one is run by default: no divisor of the lengths of the lists that the programs go through.
const EVERY: &str = "11";
/// Cases that differ are looked at again with so much more patience: a busy machine delays what a call started.
const PATIENCE: [&str; 3] = ["1", "5", "40"];

fn build(lab: &Lab, name: &str) -> Option<PathBuf> {
    if !is_installed("cc") {
        not_run("no C compiler");
        return None;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/odd");
    let to = lab.path(name);
    let run = lab.run("cc").args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&to);
    run.arg(folder.join(format!("{name}.c"))).ok();
    Some(to)
}

/// What each case came to.
fn results(
    lab: &Lab,
    engine: Option<&Engine<'_>>,
    program: &Path,
    settings: &[(&str, &str)],
) -> BTreeMap<String, String> {
    let mut run = lab.run(program).limit(Duration::from_secs(300));
    for (name, value) in settings {
        run = run.env(name, value);
    }
    let text = match engine {
        Some(engine) => run.under(engine),
        None => run,
    }
    .ok()
    .text();
    assert!(text.ends_with("done\n"), "it ended early: {}", text.lines().last().unwrap_or_default());
    let cases = text.lines().filter_map(|line| line.rsplit_once(" = "));
    cases.map(|(name, result)| (name.to_owned(), result.to_owned())).collect()
}

/// Cases that differ however much time they take, in words.
fn differences(lab: &Lab, engine: &Engine<'_>, program: &Path, path: &str) -> Vec<String> {
    let every = if std::env::var("UTCP_TEST_LONG").as_deref() == Ok("yes") { "1" } else { EVERY };
    let mut only: Option<PathBuf> = None;
    let mut found = Vec::new();
    for patience in PATIENCE {
        let file = only.as_ref().map(|file| file.display().to_string());
        let mut settings = vec![("ODD_EVERY", every), ("ODD_PATIENCE", patience)];
        settings.extend(file.as_deref().map(|file| ("ODD_ONLY", file)));
        let kernel = results(lab, None, program, &settings);
        let utcp = results(lab, Some(engine), program, &settings);
        assert!(only.is_some() || kernel.len() > 1000, "{} cases", kernel.len());
        found = Vec::new();
        let mut names = String::new();
        for name in kernel.keys().chain(utcp.keys().filter(|name| !kernel.contains_key(*name))) {
            let (there, here) = (kernel.get(name), utcp.get(name));
            if there != here {
                found.push(format!("{name}\n      kernel {there:?}\n      utcp   {here:?}"));
                names += &format!("{name}\n");
            }
        }
        if found.is_empty() {
            break;
        }
        only = Some(lab.file(&format!("only-{path}-{patience}"), names));
    }
    found
}

fn same(name: &str) {
    let lab = Lab::new(&format!("odd-{name}"));
    let Some(program) = build(&lab, name) else { return };
    for path in ["on", "off"] {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        let found = differences(&lab, &engine, &program, path);
        assert!(found.is_empty(), "cut-through {path}: {} cases differ:\n{}", found.len(), found.join("\n"));
        engine.went_through(500);
    }
}

#[test]
fn calls_that_move_bytes() {
    same("bytes");
}
