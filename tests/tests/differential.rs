//! The same calls on the kernel and under utcp: same returns, errno, bytes, events.
//!
//! A case whose lines differ fails, unless `differences.md` gives a reason; one that is listed there and does
//! not differ any more fails, too, so that the list stays true.

use std::fs;
use std::path::PathBuf;

use utcp_tests::transcript::{BROKEN, difference, transcript};
use utcp_tests::{Engine, Lab, on_kernel, repository};

fn cases_file(area: &str) -> PathBuf {
    repository().join(format!("tests/differential/cases/{area}.calls"))
}

/// The scripts of an area.
fn cases(area: &str) -> Vec<String> {
    let text = fs::read_to_string(cases_file(area)).expect("an area has a file of cases");
    text.lines().filter_map(|line| line.strip_prefix("== ")).map(str::to_owned).collect()
}

/// Cases that may differ: lines "- `area: case` …" of differences.md, and whether only where connections are cut through
/// ("- `area: case` (cut-through) …").
fn listed() -> Vec<(String, bool)> {
    let text = fs::read_to_string(repository().join("tests/differences.md")).unwrap_or_default();
    let names = text.lines().filter_map(|line| line.strip_prefix("- `")?.split_once('`'));
    names.map(|(name, rest)| (name.to_owned(), rest.starts_with(" (cut-through)"))).collect()
}

/// What utcp does on one of its same-host paths is what the kernel does.
fn same_on_both(area: &str, cut_through: bool) {
    let path = if cut_through { "on" } else { "off" };
    let lab = Lab::new(&format!("same-{area}-{path}"));
    let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
    let listed = listed();
    let mut wrong = Vec::new();
    let all = cases(area);
    assert!(!all.is_empty());
    for case in &all {
        let name = format!("{area}: {case}");
        let mut found = None;
        // A busy machine may delay what a line started: look again with more patience before it counts.
        for settle_ms in ["5", "60", "200"] {
            let file = cases_file(area);
            let on =
                |engine| transcript(&lab, engine, env!("CARGO_BIN_EXE_utcp-calls"), (&file, case), settle_ms);
            let (kernel, utcp) = (on(None), on(Some(&engine)));
            assert!(!kernel.contains(BROKEN), "{name}: the case itself is wrong:\n{kernel}");
            found = (kernel != utcp).then(|| difference(&kernel, &utcp));
            if found.is_none() {
                break;
            }
        }
        let is_listed = listed.iter().any(|(case, only)| *case == name && (cut_through || !only));
        match (found, is_listed) {
            (Some(text), false) => wrong.push(format!("== {name}\n{text}")),
            (None, true) if !on_kernel() => {
                wrong.push(format!("== {name}\n  does not differ any more: take it off differences.md\n"));
            }
            _ => {}
        }
    }
    engine.went_through(1);
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}

macro_rules! areas {
    ($($area:ident)*) => {
        $(#[test] fn $area() { same_on_both(stringify!($area), false); })*

        /// The same where the bytes of connections of one host go straight from program to program.
        mod cut_through {
            $(#[test] fn $area() { super::same_on_both(stringify!($area), true); })*
        }

        #[test]
        fn every_file_has_its_test() {
            let areas = [$(stringify!($area)),*];
            let folder = repository().join("tests/differential/cases");
            for entry in fs::read_dir(folder).expect("a folder of cases") {
                let path = entry.expect("an entry").path();
                let area = path.file_stem().and_then(|stem| stem.to_str()).expect("a plain name");
                assert!(areas.contains(&area), "{area}");
            }
        }
    };
}

areas! {
    connect accept shutdown transfer epoll nested poll options descriptors handover waiting pointers splice messages
    signals lowat generated
}

#[test]
fn the_list_names_cases_that_exist() {
    for (name, _) in listed() {
        let (area, case) = name.split_once(": ").expect("area: case");
        assert!(cases(area).iter().any(|c| c == case), "{name}");
    }
}
