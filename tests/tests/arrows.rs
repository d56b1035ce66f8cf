//! Who may know whom: the table of DESIGN §2 against what the manifests say.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use utcp_tests::repository;

/// Crate, and the crates of this workspace that it may import. Tests and benches may import anything.
const ARROWS: &[(&str, &[&str])] = &[
    ("utcp-abi", &[]),
    ("utcp-proto", &[]),
    ("utcp-engine", &["utcp-abi", "utcp-proto", "utcp-netmap-io"]),
    ("utcp", &["utcp-abi", "utcp-engine"]),
    ("utcp-netmap-io", &[]),
    ("utcp-shim", &["utcp-abi"]),
];
const FREE: &[&str] = &["utcp-tests", "utcp-bench"];
/// What the crates that programs or attackers meet may import from outside; their tests may import anything.
const OUTSIDE: &[(&str, &[&str])] =
    &[("utcp-abi", &["loom"]), ("utcp-proto", &[]), ("utcp-shim", &["libc", "ctor", "once_cell"])];

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(repository())
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata writes JSON")
}

/// Name of each crate, and the crates that it depends on in a way that `counts`: "normal", "build" or "dev".
fn crates(counts: impl Fn(&str) -> bool) -> Vec<(String, BTreeSet<String>)> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |value: &serde_json::Value| value["name"].as_str().expect("a name").to_owned();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let counted = dependencies.iter().filter(|one| counts(one["kind"].as_str().unwrap_or("normal")));
            (name(package), counted.map(name).collect())
        })
        .collect()
}

#[test]
fn the_table_has_every_arrow() {
    let crates = crates(|_| true);
    let members: BTreeSet<String> = crates.iter().map(|(name, _)| name.clone()).collect();
    for (name, dependencies) in &crates {
        if FREE.contains(&name.as_str()) {
            continue;
        }
        let allowed = ARROWS.iter().find(|(from, _)| from == name);
        let allowed = allowed.unwrap_or_else(|| panic!("{name} is not in the table of DESIGN §2")).1;
        for dependency in dependencies.intersection(&members) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} imports {dependency}: DESIGN §2 forbids it"
            );
        }
    }
}

#[test]
fn the_table_has_no_crate_that_is_gone() {
    let members: BTreeSet<String> = crates(|_| true).into_iter().map(|(name, _)| name).collect();
    for (name, allowed) in ARROWS {
        assert!(members.contains(*name), "{name}");
        assert!(allowed.iter().all(|to| members.contains(*to)), "{name}: {allowed:?}");
    }
}

#[test]
fn the_small_crates_import_little_from_outside() {
    let crates = crates(|kind| kind != "dev");
    let members: BTreeSet<String> = crates.iter().map(|(name, _)| name.clone()).collect();
    for (name, allowed) in OUTSIDE {
        let (_, dependencies) = crates.iter().find(|(n, _)| n == name).expect("a member");
        for dependency in dependencies.difference(&members) {
            assert!(allowed.contains(&dependency.as_str()), "{name} imports {dependency}");
        }
    }
}

fn source(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// That it really needs no std is proved by building it for a target without one (scripts/test).
#[test]
fn proto_is_pure() {
    let root = source("stack/proto/src/lib.rs");
    assert!(root.contains("#![forbid(unsafe_code)]"));
    assert!(root.contains("no_std"));
    each_source(Path::new("stack/proto/src"), &mut |path, text| {
        // Unit tests may have std.
        let text = text.replace("#[cfg(test)]\nextern crate std;", "");
        for word in ["extern crate alloc", "extern crate std", "Instant::now", "allow(unsafe_code)"] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    });
}

#[test]
fn the_shim_has_no_std() {
    assert!(source("shim/src/lib.rs").contains("no_std"));
    each_source(Path::new("shim/src"), &mut |path, text| {
        if !path.ends_with("tests.rs") {
            assert!(!text.contains("extern crate alloc"), "{}", path.display());
        }
    });
}

fn each_source(folder: &Path, check: &mut impl FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(repository().join(folder)).expect("a folder of sources") {
        let path = folder.join(entry.expect("an entry").file_name());
        if repository().join(&path).is_dir() {
            each_source(&path, check);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            check(&path, &source(path.to_str().expect("a plain name")));
        }
    }
}
