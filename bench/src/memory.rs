//! What a set of programs uses of memory, the kernel's for their sockets included: a memory control group.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use crate::Error;

/// A control group of ours. Dropped, it is removed; its processes must have ended.
#[derive(Debug)]
pub struct Group {
    folder: PathBuf,
    unified: bool,
}

impl Group {
    /// Makes one.
    ///
    /// # Errors
    /// When there is no memory controller, or we may not use it.
    pub fn new() -> Result<Self, Error> {
        let mounts = fs::read_to_string("/proc/mounts").map_err(Error::io("/proc/mounts"))?;
        let (root, unified) = find(&mounts).ok_or_else(|| {
            Error::Missing(
                "memory is measured by a memory control group, and none is mounted here".to_owned(),
            )
        })?;
        if unified {
            // Refused where it is on already, and where processes live in the root of a container.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
        }
        let folder = root.join(format!("utcp-compare-{}", process::id()));
        fs::create_dir(&folder)
            .map_err(Error::io(format!("can't make the control group {}", folder.display())))?;
        Ok(Self { folder, unified })
    }

    /// Where processes are put into it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is in use.
    ///
    /// # Errors
    /// When the controller is not there.
    pub fn used(&self) -> Result<Used, Error> {
        let read = |name: &str| {
            let path = self.folder.join(name);
            fs::read_to_string(&path).map_err(Error::io(path.display().to_string()))
        };
        let (usage, cache, own) = match self.unified {
            true => ("memory.current", "file", "anon"),
            false => ("memory.usage_in_bytes", "cache", "rss"),
        };
        let total: u64 = read(usage)?.trim().parse().unwrap_or(0);
        let stat = read("memory.stat")?;
        let value = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let resident = value(own) + value("shmem");
        let all = total.saturating_sub(value(cache)).saturating_sub(value(own));
        // In the older hierarchy nobody pays for the TCP sockets that the kernel makes of handshakes.
        let sockets = if self.unified { 0 } else { tcp_sockets()? };
        Ok(Used { resident, kernel: all + sockets })
    }
}

/// Bytes in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Anonymous and shared memory of the programs. Not the page cache of files.
    pub resident: u64,
    /// The kernel's: sockets, files, page tables.
    pub kernel: u64,
}

/// Bytes of all IPv4 TCP sockets of the machine.
fn tcp_sockets() -> Result<u64, Error> {
    let text = fs::read_to_string("/proc/slabinfo").map_err(Error::io("/proc/slabinfo"))?;
    Ok(slab_bytes(&text, "TCP").unwrap_or(0))
}

/// Bytes of a cache: slabs times pages.
fn slab_bytes(text: &str, name: &str) -> Option<u64> {
    const PAGE: u64 = 4096;
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    let pages: u64 = line.split_whitespace().nth(5)?.parse().ok()?;
    let slabs: u64 = line.split("slabdata").nth(1)?.split_whitespace().nth(1)?.parse().ok()?;
    Some(slabs * pages * PAGE)
}

impl Drop for Group {
    fn drop(&mut self) {
        // Processes that were killed leave it a moment later.
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// Where the memory controller is, and whether it is that of the unified hierarchy.
fn find(mounts: &str) -> Option<(PathBuf, bool)> {
    let entry = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (at, kind, options) = (words.next()?, words.next()?, words.next()?);
        match kind {
            "cgroup" if options.split(',').any(|option| option == "memory") => {
                Some((PathBuf::from(at), false))
            }
            "cgroup2" => Some((PathBuf::from(at), true)),
            _ => None,
        }
    };
    let all: Vec<_> = mounts.lines().filter_map(entry).collect();
    all.iter().find(|(_, unified)| !unified).or(all.first()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_counted_whole() {
        let text = "slabinfo - version: 2.1\nTCPv6 1 2 2560 12 8 : tunables 0 0 0 : slabdata 1 9 0\n\
            TCP                   20     26   2432   13    8 : tunables    0    0    0 : slabdata      2      3      0\n";
        assert_eq!(slab_bytes(text, "TCP"), Some(3 * 8 * 4096));
        assert_eq!(slab_bytes(text, "UDP"), None);
    }

    #[test]
    fn the_memory_controller_is_found() {
        let v1 = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
            cgroup /sys/fs/cgroup/memory cgroup rw,nosuid,memory 0 0\n";
        assert_eq!(find(v1), Some(("/sys/fs/cgroup/memory".into(), false)));
        assert_eq!(find("none /sys/fs/cgroup cgroup2 rw 0 0\n"), Some(("/sys/fs/cgroup".into(), true)));
        assert_eq!(find("proc /proc proc rw 0 0\n"), None);
    }
}
