//! The compiled library holds no call that could panic: built for a target without std, no symbol of `core::panicking` is
//! left in its object file.

use std::path::Path;
use std::process::Command;

const TARGET: &str = "x86_64-unknown-none";

/// True if the toolchain has the target; without it there is nothing to look at.
fn target_is_installed() -> bool {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let out = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    out.is_ok_and(|out| Path::new(String::from_utf8_lossy(&out.stdout).trim()).exists())
}

fn objects(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).expect("the target directory");
    entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "o")).collect()
}

#[test]
fn the_release_library_has_no_panic_path() {
    if !target_is_installed() {
        eprintln!("skipped: target {TARGET} is not installed");
        return;
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no_panic");
    let status = Command::new(env!("CARGO"))
        .args(["rustc", "--lib", "--release", "--target", TARGET, "--target-dir"])
        .arg(&dir)
        .args(["--config", "profile.release.lto=false", "--config", "profile.release.debug=false"])
        .args(["--", "--emit=obj"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo");
    assert!(status.success());
    let deps = dir.join(TARGET).join("release/deps");
    let objects = objects(&deps);
    assert!(!objects.is_empty(), "no object file in {}", deps.display());
    for object in objects {
        let bytes = std::fs::read(&object).expect("an object file");
        for name in [&b"panicking"[..], b"slice_index_fail", b"unwrap_failed", b"expect_failed"] {
            let found = bytes.windows(name.len()).any(|w| w == name);
            assert!(!found, "{} refers to {}", object.display(), String::from_utf8_lossy(name));
        }
    }
}
