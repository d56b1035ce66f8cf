//! Finds the engine of this network namespace and user, or starts one.
//!
//! Order: what `UTCP_ENGINE` names; the system's engine, under /run/utcp by the namespace's number; the
//! user's own, by an abstract name (those exist once per network namespace), whose owner must be root or
//! ourselves: anybody can bind such a name, and an engine sees every byte.

use core::ffi::c_int;
use core::mem::MaybeUninit;

use crate::sys::{self, Errno, Sys};
use crate::text::Text;
use crate::{config, launch};

/// Why there is no engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// `UTCP_ENGINE` names a socket on which nobody listens.
    Named,
    /// The `utcp` program is not where the library is, nor on PATH.
    NoProgram,
    /// It could not be started, or ended before it was ready.
    NotReady,
    /// It answered, but not with a region of this version.
    Refused,
    /// Somebody else's process has the name of this user's engine.
    Foreign,
}

impl Failure {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Named => "no engine listens where UTCP_ENGINE points",
            Self::NoProgram => "no engine runs, and no utcp program was found beside libutcp.so or on PATH",
            Self::NotReady => "no engine could be started (utcp engine ended before it was ready)",
            Self::Refused => "the engine refused this program (a different version, or no room)",
            Self::Foreign => "another user's process took the name of this user's engine",
        }
    }
}

/// A connected channel to an engine, which is started if need be.
pub fn connect() -> Result<c_int, Failure> {
    if let Some(named) = config::variable(b"UTCP_ENGINE").filter(|value| !value.is_empty()) {
        let path = named.to_bytes();
        let (is_abstract, path) = match path.strip_prefix(b"@") {
            Some(rest) => (true, rest),
            None => (false, path),
        };
        return open(path, is_abstract).map_err(|_| Failure::Named);
    }
    if let Some(fd) = system() {
        return Ok(fd);
    }
    if let Some(found) = own() {
        return found;
    }
    let started = launch::engine();
    // Ours, or that of another program that started one at the same moment: then ours gave way.
    match (own(), started) {
        (Some(found), _) => found,
        (None, Err(failure)) => Err(failure),
        (None, Ok(())) => Err(Failure::NotReady),
    }
}

fn system() -> Option<c_int> {
    let namespace = sys::inode_of(c"/proc/self/ns/net").ok()?;
    let mut path = Text::<64>::new();
    path.push(b"/run/utcp/").push_number(namespace).push(b".sock");
    open(path.bytes(), false).ok()
}

/// The user's own engine; `None` if nobody has its name.
fn own() -> Option<Result<c_int, Failure>> {
    let user = sys::geteuid();
    let mut name = Text::<108>::new();
    name.push(b"utcp/").push_number(u64::from(user));
    if let Some(stack) = config::variable(b"UTCP_STACK").filter(|value| !value.is_empty()) {
        name.push(b"/").push(stack.to_bytes());
    }
    let fd = open(name.bytes(), true).ok()?;
    let nobody = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    match sys::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, nobody) {
        Ok(peer) if peer.uid == 0 || peer.uid == user => Some(Ok(fd)),
        _ => {
            let _ = sys::close(fd);
            Some(Err(Failure::Foreign))
        }
    }
}

/// Connects to a unix socket by path or abstract name.
fn open(name: &[u8], is_abstract: bool) -> Sys<c_int> {
    // SAFETY: zero bytes are a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sun_family = libc::AF_UNIX as u16;
    let start = usize::from(is_abstract); // An abstract name begins with a NUL.
    let end = start.checked_add(name.len()).ok_or(Errno(libc::EINVAL))?;
    let room = address.sun_path.get_mut(start..end).ok_or(Errno(libc::ENAMETOOLONG))?;
    for (to, from) in room.iter_mut().zip(name) {
        *to = *from as _;
    }
    // A path has its NUL at the end, an abstract name is as long as it is.
    let len = size_of::<libc::sa_family_t>() + end + usize::from(!is_abstract);
    let fd = sys::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0)?;
    crate::channel::set_patience(fd);
    match sys::connect(fd, &address, len) {
        Ok(()) => Ok(fd),
        Err(errno) => {
            let _ = sys::close(fd);
            Err(errno)
        }
    }
}
