//! Which programs leave this library behind: those without a dynamic linker, of another architecture, or with rights that their
//! starter does not have.
//!
//! Such a program finds the kernel's descriptors and nothing else, so the connections that it inherits have to be relayed before it begins
//! ([`crate::relayed`]). What is found here is a matter of speed and comfort alone: a program that is taken for one of these has its
//! connections relayed, and one that is not recognised must write to a connection before it reads.
//!
//! Everything is on the stack: the caller may be the child of a `vfork`.

use core::ffi::{CStr, c_char, c_int};

use crate::config;
use crate::sys::{self, Errno, Sys};
use crate::text::Text;

/// Bytes of a program that are looked at: its header, and its segments in all programs that are known.
const HEAD: usize = 1024;
/// Interpreters of interpreters, as far as the kernel follows them (execve(2)).
const INTERPRETERS: u32 = 4;
/// Longest path.
const PATH_LEN: usize = 4096;

/// What an exec is about to run.
#[derive(Debug, Clone, Copy)]
pub enum Program {
    /// A path, from this folder on (AT_FDCWD: the working folder).
    At(c_int, *const c_char),
    /// A name that is looked for on PATH, unless it has a slash.
    Named(*const c_char),
    /// An open file.
    Open(c_int),
}

impl Program {
    /// Whether it leaves this library behind. False if it can't be found or read: exec may fail then, too.
    ///
    /// # Safety
    /// Names are strings, or null.
    pub unsafe fn leaves_us_behind(self) -> bool {
        let (dir, name) = match self {
            Self::Open(fd) => return Head::of(fd).is_ok_and(|head| head.leaves_us_behind(0)),
            Self::At(_, name) | Self::Named(name) if name.is_null() => return false,
            // SAFETY: the caller's promise.
            Self::At(dir, name) => (dir, unsafe { CStr::from_ptr(name) }),
            // SAFETY: the caller's promise.
            Self::Named(name) => match unsafe { CStr::from_ptr(name) } {
                name if name.to_bytes().contains(&b'/') => (libc::AT_FDCWD, name),
                name => return on_path(name),
            },
        };
        Head::at(dir, name).is_ok_and(|head| head.leaves_us_behind(0))
    }
}

/// The first program of this name on PATH, as execvp(3) finds it.
fn on_path(name: &CStr) -> bool {
    // SAFETY: the environment is an array of strings, or null.
    let all = unsafe { config::strings(config::environment()) };
    let mut path = all.filter_map(|entry| config::value_of(entry, b"PATH"));
    let folders = path.next().map_or(&b"/bin:/usr/bin"[..], CStr::to_bytes);
    for folder in folders.split(|byte| *byte == b':') {
        let mut text = Text::<PATH_LEN>::new();
        if !folder.is_empty() {
            text.push(folder).push(b"/");
        }
        let Some(file) = text.push(name.to_bytes()).as_c_str() else { continue };
        if sys::is_executable(file) {
            return Head::at(libc::AT_FDCWD, file).is_ok_and(|head| head.leaves_us_behind(0));
        }
    }
    false
}

/// The beginning of a program.
struct Head {
    bytes: [u8; HEAD],
    len: usize,
    /// It runs with rights that its starter does not have: the dynamic linker leaves libraries of unsafe places out (ld.so(8), secure-execution mode).
    secure: bool,
}

impl Head {
    fn at(dir: c_int, path: &CStr) -> Sys<Self> {
        // Opening is no mere look at what is no plain file: somebody may wait at the other end of a pipe for it.
        if !sys::is_plain_file(dir, path) {
            return Err(Errno(libc::EACCES));
        }
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let fd = sys::call!(libc::SYS_openat, dir, path.as_ptr(), flags)? as c_int;
        let head = Self::of(fd);
        let _ = sys::close(fd);
        head
    }

    fn of(fd: c_int) -> Sys<Self> {
        let mut head = Self { bytes: [0; HEAD], len: 0, secure: sys::gives_rights(fd)? };
        let into = head.bytes.as_mut_ptr();
        head.len = sys::call!(libc::SYS_pread64, fd, into, HEAD, 0)?;
        Ok(head)
    }

    fn leaves_us_behind(&self, depth: u32) -> bool {
        let Some(bytes) = self.bytes.get(..self.len) else { return false };
        if let Some(line) = bytes.strip_prefix(b"#!") {
            let Some(path) = interpreter(line) else { return false };
            return depth < INTERPRETERS
                && Head::at(libc::AT_FDCWD, path.as_c_str().unwrap_or_default())
                    .is_ok_and(|head| head.leaves_us_behind(depth.wrapping_add(1)));
        }
        is_elf(bytes) && (self.secure || !is_dynamic(bytes))
    }
}

/// The program that a script names in its first line.
fn interpreter(line: &[u8]) -> Option<Text<256>> {
    let mut words = line.split(|byte| matches!(*byte, b' ' | b'\t' | b'\n')).filter(|word| !word.is_empty());
    let mut text = Text::new();
    text.push(words.next()?);
    Some(text)
}

fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// Whether a dynamic linker that can load this library starts it: it is of our architecture and has a PT_INTERP (elf(5)).
fn is_dynamic(bytes: &[u8]) -> bool {
    let short = |at: usize| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let is_64 = bytes.get(4) == Some(&2);
    if !is_64 || short(18) != Some(MACHINE) {
        return false;
    }
    let (Some(table), Some(size), Some(count)) = (long(32), short(54), short(56)) else { return false };
    // Beyond what was read: a program unlike those that are known, and no reason to relay.
    (0..usize::from(count)).any(|index| {
        let at = (table as usize).checked_add(index.wrapping_mul(usize::from(size)));
        at.and_then(word).is_none_or(|kind| kind == libc::PT_INTERP)
    })
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_scripts() {
        let check = |name: &CStr| {
            // SAFETY: a string.
            unsafe { Program::Named(name.as_ptr()).leaves_us_behind() }
        };
        assert!(
            !check(c"sh") && !check(c"/proc/self/exe") && !check(c"/nowhere") && !check(c"no such program")
        );
        assert!(!check(c"/etc/passwd"), "no program at all");
        let path = interpreter(b" /usr/bin/env -S python3 -u\nimport").expect("a path");
        assert_eq!(path.as_c_str(), Some(c"/usr/bin/env"));
        assert!(interpreter(b"\n").is_none());
    }

    #[test]
    fn headers() {
        let own = std::fs::read("/proc/self/exe").expect("readable");
        let mut bytes = own.get(..HEAD).expect("long").to_vec();
        assert!(is_elf(&bytes) && is_dynamic(&bytes));
        let head = |bytes: &[u8], secure| {
            let mut head = Head { bytes: [0; HEAD], len: bytes.len(), secure };
            head.bytes.get_mut(..bytes.len()).expect("fits").copy_from_slice(bytes);
            head.leaves_us_behind(0)
        };
        assert!(!head(&bytes, false) && head(&bytes, true));
        // Another machine.
        let machine = bytes.get_mut(18).expect("long");
        *machine ^= 1;
        assert!(head(&bytes, false));
        assert!(!head(b"\x7fEL", true) && !head(b"", true) && !head(b"#!/nowhere/at/all", false));
        // A header that points nowhere.
        let mut wild = own.get(..HEAD).expect("long").to_vec();
        wild.get_mut(32..40).expect("long").fill(0xff);
        assert!(!head(&wild, false));
    }
}
