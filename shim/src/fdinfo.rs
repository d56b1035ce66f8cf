//! What the kernel's half of an epoll descriptor has, by `/proc/self/fdinfo`. proc_pid_fdinfo(5):
//!
//! ```text
//! tfd:        5 events:       19 data:               4d  pos:0 ino:61af sdev:5
//! ```

use core::ffi::c_int;

use crate::sys::{self, Sys};
use crate::text::Text;

/// Bytes of one line at most; a longer one is left out.
const LINE: usize = 256;

/// A member of the kernel's set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelMember {
    /// The number by which it was added.
    pub fd: c_int,
    /// What it is asked for, and how.
    pub events: u32,
    /// The program's data.
    pub data: u64,
    /// Its file's inode.
    pub inode: u64,
}

/// Hands every member of the kernel's set `epfd` to `found`.
///
/// # Errors
/// `/proc` can't be read.
pub fn each_member(epfd: c_int, mut found: impl FnMut(KernelMember)) -> Sys<()> {
    let mut path = Text::<48>::new();
    path.push(b"/proc/self/fdinfo/").push_number(epfd.max(0) as u64);
    let Some(path) = path.as_c_str() else { return Ok(()) };
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    let file = sys::call!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags)? as c_int;
    let mut line = Text::<LINE>::new();
    let mut bytes = [0u8; 1024];
    let result = loop {
        match sys::read(file, &mut bytes) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                for byte in bytes.get(..count).unwrap_or_default() {
                    if *byte != b'\n' {
                        line.push(&[*byte]);
                        continue;
                    }
                    if let Some(member) = member_in(line.bytes()) {
                        found(member);
                    }
                    line = Text::new();
                }
            }
            Err(error) => break Err(error),
        }
    };
    let _ = sys::close(file);
    result
}

/// The member that a line is about.
fn member_in(line: &[u8]) -> Option<KernelMember> {
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let mut after = |name: &[u8]| if words.next()? == name { words.next() } else { None };
    let fd = number(after(b"tfd:")?, 10)?;
    let events = number(after(b"events:")?, 16)?;
    let data = number(after(b"data:")?, 16)?;
    let inode = words.find_map(|word| word.strip_prefix(b"ino:"))?;
    Some(KernelMember { fd: fd as c_int, events: events as u32, data, inode: number(inode, 16)? })
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines_of_members_alone() {
        let line = b"tfd:        5 events: 8000001d data: ffffffff0000004d  pos:0 ino:61af sdev:5";
        let member = KernelMember { fd: 5, events: 0x8000_001d, data: 0xffff_ffff_0000_004d, inode: 0x61af };
        assert_eq!(member_in(line), Some(member));
        for other in
            [&b"pos:\t0"[..], b"flags:\t02", b"tfd: x events: 1", b"tfd:        5 events:       19", b""]
        {
            assert_eq!(member_in(other), None);
        }
    }

    #[test]
    fn finds_what_was_added() {
        // SAFETY: plain numbers, and a structure that lives as long as the call.
        let (epfd, pipe, added) = unsafe {
            let mut pipe = [-1; 2];
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
            let epfd = libc::epoll_create1(0);
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 77 };
            let added = libc::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, pipe[0], &mut event);
            (epfd, pipe, added)
        };
        assert_eq!(added, 0);
        let mut seen = None;
        each_member(epfd, |member| seen = Some(member)).expect("/proc");
        let seen = seen.expect("one member");
        assert_eq!((seen.fd, seen.events & 1, seen.data), (pipe[0], 1, 77));
        assert_eq!(sys::identity(pipe[0]).map(|(_, inode)| inode), Ok(seen.inode));
        for fd in [epfd, pipe[0], pipe[1]] {
            let _ = sys::close(fd);
        }
    }
}
