//! One test's surroundings.

use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use crate::net::Host;
use crate::run::Run;

/// Bytes of each log that a failing test prints.
const LOG_SHOWN: usize = 6000;

/// Whether this run proves the tests themselves, with everything on the kernel.
#[must_use]
pub fn on_kernel() -> bool {
    std::env::var_os("UTCP_TEST_ON").is_some_and(|on| on == "kernel")
}

/// The root of the checkout.
#[must_use]
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// A file of the release build: the programs under test. `UTCP_TEST_RELEASE` names another folder.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn release_file(name: &str) -> PathBuf {
    let target =
        || std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    let folder =
        std::env::var_os("UTCP_TEST_RELEASE").map_or_else(|| target().join("release"), PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: cargo build --release --workspace", path.display());
    path
}

fn note(line: &str) {
    println!("{line}");
    let Some(path) = std::env::var_os("UTCP_TEST_NOTES") else { return };
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) {
        let _ = file.write_all(format!("{line}\n").as_bytes()); // One write: parallel tests don't mix.
    }
}

/// Says that this test can't run here; the caller returns. `scripts/test` lists it and doesn't count it.
pub fn not_run(reason: &str) {
    let thread = std::thread::current();
    note(&format!("not run: {}: {reason}", thread.name().unwrap_or("?")));
}

/// Prints a figure that a test measured, in the log of `scripts/test`, too.
pub fn measured(text: &str) {
    note(&format!("measured: {text}"));
}

/// Whether a program is there that only some tests need.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

/// The calling user is root.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: no arguments, can't fail.
    unsafe { libc::geteuid() == 0 }
}

/// A test's folder, ports and log files.
#[derive(Debug)]
pub struct Lab {
    name: String,
    dir: PathBuf,
    next_log: Cell<u32>,
}

impl Lab {
    /// Surroundings for the test `name`.
    ///
    /// # Panics
    /// If the temporary folder can't be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("ut-{}-{}-{name}", std::process::id(), unique()));
        fs::create_dir_all(&dir).expect("the temporary folder can be made");
        // Some programs give up root and still have to read their files.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("it is ours");
        Self { name: name.to_owned(), dir, next_log: Cell::new(0) }
    }

    /// The test's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path in the test's own folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Lets another user write into the test's own folder, where the caller may say so.
    ///
    /// # Panics
    /// If the caller may not.
    pub fn give_to(&self, uid: u32) {
        std::os::unix::fs::chown(&self.dir, Some(uid), Some(uid)).expect("root may give a folder away");
    }

    /// Writes a file into the test's own folder.
    ///
    /// # Panics
    /// If that fails.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).expect("a folder can be made");
        }
        fs::write(&path, content).expect("a file can be written");
        path
    }

    /// SHA-256 of a file, in hexadecimal digits.
    #[must_use]
    pub fn digest(&self, path: &Path) -> String {
        self.run("sha256sum").arg(path).ok().text()[..64].to_owned()
    }

    /// A file of `len` bytes that don't repeat and don't compress, the same for the same `len`.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn random_file(&self, name: &str, len: usize) -> PathBuf {
        let mut state = len as u64 | 1;
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            // xorshift64: Marsaglia's.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(len);
        self.file(name, bytes)
    }

    /// A TCP port that nobody uses, below the range of client ports.
    #[must_use]
    pub fn port(&self) -> u16 {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        loop {
            let base = (std::process::id() % 900) as u16 * 10;
            let port = 20_000 + (base + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
            if TcpListener::bind(("0.0.0.0", port)).is_ok() {
                return port;
            }
        }
    }

    /// A program to run, on the kernel unless told otherwise.
    #[must_use]
    pub fn run(&self, program: impl AsRef<std::ffi::OsStr>) -> Run<'_> {
        Run::new(self, program.as_ref())
    }

    /// Runs Debian's Python on `script`.
    #[must_use]
    pub fn python(&self, script: &str) -> Run<'_> {
        // Not whatever "python3" is on PATH: a distribution's own is what users have.
        self.run("/usr/bin/python3").arg("-u").arg("-c").arg(script)
    }

    /// The next path for a log of `program`.
    pub(crate) fn log(&self, program: &str, suffix: &str) -> PathBuf {
        let number = self.next_log.get();
        self.next_log.set(number + 1);
        self.dir.join(format!("{number:03}-{program}.{suffix}"))
    }

    fn print_logs(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let is_log =
                path.extension().is_some_and(|e| e == "out" || e == "err" || e == "log" || e == "strace");
            let bytes = fs::read(&path).unwrap_or_default();
            if !is_log || bytes.is_empty() {
                continue;
            }
            let shown = &bytes[bytes.len().saturating_sub(LOG_SHOWN)..];
            let name = path.file_name().unwrap_or_default().display();
            eprintln!("---- {}/{name} (end):\n{}", self.name, String::from_utf8_lossy(shown));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        if std::env::var_os("UTCP_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A number that no other caller in this process has.
pub(crate) fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// `ip WORDS` on a host, which has to succeed.
#[track_caller]
pub fn ip(lab: &Lab, host: &Host, words: &str) {
    let _ = lab.run("ip").args(words.split(' ')).inside(host).ok();
}
