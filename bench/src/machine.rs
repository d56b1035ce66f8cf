//! What a figure was measured on.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// The machine, the kernel, versions and settings: printed on every result.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// Cores that we may use.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Whether a hypervisor is below.
    pub virtual_machine: bool,
    /// Kernel release.
    pub kernel: String,
    /// Distribution.
    pub system: String,
    /// When, UTC.
    pub date: String,
    /// Programs and their versions; utcp's is its commit.
    pub versions: BTreeMap<String, String>,
    /// What the runs were told.
    pub settings: BTreeMap<String, String>,
}

impl Machine {
    /// Looks around. `root` is the folder of the repository, if there is one.
    #[must_use]
    pub fn here(root: Option<&Path>) -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let field = |text: &str, name: &str| {
            text.lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| Some(line.split_once([':', '='])?.1.trim().trim_matches('"').to_owned()))
        };
        let memory_kib = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Self {
            cpu: field(&cpuinfo, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            memory_mib: memory_kib.unwrap_or(0) / 1024,
            virtual_machine: field(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            system: field(&read("/etc/os-release"), "PRETTY_NAME").unwrap_or_default(),
            date: says("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).unwrap_or_default(),
            versions: versions(root),
            settings: BTreeMap::new(),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The first line that a program prints.
fn says(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    // nginx, wrk and others tell their version on the error output or with a failure.
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Some(String::from_utf8_lossy(&text).lines().next()?.trim().to_owned())
}

fn versions(root: Option<&Path>) -> BTreeMap<String, String> {
    let asked: [(&str, &str, &[&str]); 5] = [
        ("nginx", "/usr/sbin/nginx", &["-v"]),
        ("redis", "redis-server", &["--version"]),
        ("wrk", "wrk", &["-v"]),
        ("redis-benchmark", "redis-benchmark", &["--version"]),
        ("rustc", "rustc", &["--version"]),
    ];
    let mut versions = BTreeMap::new();
    for (name, program, arguments) in asked {
        if let Some(text) = says(program, arguments) {
            versions.insert(name.to_owned(), version_in(&text).to_owned());
        }
    }
    let root = root.map_or_else(|| ".".to_owned(), |root| root.to_string_lossy().into_owned());
    let mut utcp = env!("CARGO_PKG_VERSION").to_owned();
    let commit = says("git", &["-C", &root, "rev-parse", "--short", "HEAD"]);
    if let Some(commit) = commit.filter(|text| text.chars().all(|c| c.is_ascii_hexdigit())) {
        let changed = says("git", &["-C", &root, "status", "--porcelain", "--untracked-files=no"]).is_some();
        utcp = format!("{utcp} {commit}{}", if changed { " with changes" } else { "" });
    }
    versions.insert("utcp".to_owned(), utcp);
    versions
}

/// The first word with a digit in it, without what stands around the number.
fn version_in(text: &str) -> &str {
    let with_digit = text.split_whitespace().find(|word| word.contains(|c: char| c.is_ascii_digit()));
    let word = with_digit.unwrap_or(text);
    let start = word.find(|c: char| c.is_ascii_digit()).unwrap_or(0);
    &word[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found() {
        for (text, version) in [
            ("nginx version: nginx/1.22.1", "1.22.1"),
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0", "7.0.15"),
            ("wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012 Will Glozer", "4.1.0-3+b2"),
            ("rustc 1.95.0 (59807616e 2026-04-14)", "1.95.0"),
            ("redis-benchmark 7.0.15", "7.0.15"),
        ] {
            assert_eq!(version_in(text), version);
        }
    }

    #[test]
    fn here_is_somewhere() {
        let here = Machine::here(None);
        assert!(here.cores > 0 && here.memory_mib > 0 && !here.kernel.is_empty(), "{here:?}");
    }
}
