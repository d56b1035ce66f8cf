//! How two processes that name the same pipe find each other.
//!
//! ```text
//!  first                                    second
//!  lock, connect fails, listen, unlock
//!  wait                                     lock, connect, unlock
//!  make memory and doorbells ──descriptors──► check and map
//!        └──────── the connection stays open: its hang-up is the other's death ────────┘
//! ```
//!
//! The meeting place is a directory that only the user can enter, not an abstract socket: those belong
//! to a network namespace, and the two engines that a pipe joins usually live in two of them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::provider::{Shape, SharedMemory};
use super::sys;
use crate::{PortError, sys as common};

/// What both processes have once they met.
pub(super) struct Met {
    /// 0 for the first, 1 for the second.
    pub(super) end: u32,
    pub(super) memory: SharedMemory,
    /// Ours, and the other's.
    pub(super) doorbells: [OwnedFd; 2],
    pub(super) peer: OwnedFd,
}

/// Meets whoever names the same pipe. The first one's `shape` counts.
pub(super) fn meet(name: &str, shape: Shape, wait: Duration) -> Result<Met, PortError> {
    let device = format!("pipe:{name}");
    let failed = |error| PortError::io(format!("opening {device}"), error);
    let directory = directory().map_err(failed)?;
    let address = directory.join(format!("{name}.sock"));
    // One lock for all names, held for a moment: a lock of its own for each would stay behind for each.
    let lock = File::create(directory.join("lock")).map_err(failed)?;
    lock_file(&lock).map_err(failed)?;
    let absent = || PortError::PeerAbsent { device: device.clone(), waited_s: wait.as_secs() };
    match UnixStream::connect(&address) {
        Ok(stream) => {
            drop(lock);
            let peer = OwnedFd::from(stream);
            if !readable(&peer, wait) {
                return Err(absent());
            }
            second(peer).map_err(failed)
        }
        Err(_) => {
            // A socket that nobody listens on was left by a process that was killed.
            let _ = fs::remove_file(&address);
            let listener = UnixListener::bind(&address).map_err(failed)?;
            drop(lock);
            let result = first(&listener, shape, wait).map_err(failed);
            let _ = fs::remove_file(&address);
            result?.ok_or_else(absent)
        }
    }
}

/// Where the pipes of this user meet.
fn directory() -> io::Result<PathBuf> {
    let user = sys::effective_user();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let path = match runtime {
        _ if user == 0 => PathBuf::from("/run/utcp/pipe"),
        Some(runtime) => runtime.join("utcp-pipe"),
        None => PathBuf::from(format!("/tmp/utcp-pipe-{user}")),
    };
    // The pipes are nobody else's business, but the system's engine listens for every user one folder above.
    let above = if user == 0 { fs::create_dir_all("/run/utcp") } else { Ok(()) };
    let made = above.and_then(|()| fs::DirBuilder::new().mode(0o700).create(&path));
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(io::Error::new(error.kind(), format!("making {}: {error}", path.display())));
    }
    check_directory(&path, user)?;
    Ok(path)
}

/// Anyone may make names in `/tmp`: what is there must be a directory of ours that others can't enter.
fn check_directory(path: &Path, user: u32) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let text = format!("{} is not a directory that belongs to this user alone; remove it", path.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// Only one process at a time decides whether it is the first.
fn lock_file(file: &File) -> io::Result<()> {
    common::lock(file.as_raw_fd())
}

fn readable(fd: &impl AsRawFd, wait: Duration) -> bool {
    common::poll(&mut [libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }], wait)
}

/// Waits for the second and gives it everything. `None` when nobody came.
fn first(listener: &UnixListener, shape: Shape, wait: Duration) -> io::Result<Option<Met>> {
    let memory = SharedMemory::create(shape)?;
    let [ours, theirs] = sys::doorbells()?;
    if !readable(listener, wait) {
        return Ok(None);
    }
    let peer = OwnedFd::from(listener.accept()?.0);
    sys::send_descriptors(&peer, [memory.file(), &theirs, &ours])?;
    Ok(Some(Met { end: 0, memory, doorbells: [ours, theirs], peer }))
}

fn second(peer: OwnedFd) -> io::Result<Met> {
    let [file, ours, theirs] = sys::receive_descriptors(&peer)?;
    let memory = SharedMemory::join(file)?;
    Ok(Met { end: 1, memory, doorbells: [ours, theirs], peer })
}
