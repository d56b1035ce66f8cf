//! Starts an engine for this user when none runs.
//!
//! The program must not notice: no SIGCHLD, no child for its `wait`, no descriptor inherited, nothing
//! on its terminal. So: a raw clone that signals nothing, which starts the engine as a grandchild
//! in a session of its own and ends; it is reaped by `__WCLONE`, which no `wait` of the program can do by
//! accident. Between clone and exec only raw system calls are made: other threads of the
//! program may have held any lock of libc at that moment.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int};
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::{Acquire, Release};

use crate::config;
use crate::finder::Failure;
use crate::notice::{self, Topic};
use crate::sys::{self, at, call};
use crate::text::Text;

/// How long an engine may take until it listens.
const PATIENCE_MS: u64 = 5000;
/// Variables that the engine may inherit.
const ENVIRONMENT_MAX: usize = 64;
/// The number that the engine's end of the pipe gets.
const READY_FD: c_int = 3;

type Path = Text<4096>;

/// Room for an absolute path of this library.
struct Absolute(UnsafeCell<[c_char; 4096]>);

// SAFETY: written once, by the constructor, before `LIBRARY` publishes it.
unsafe impl Sync for Absolute {}

static LIBRARY: AtomicPtr<c_char> = AtomicPtr::new(core::ptr::null_mut());
static ABSOLUTE: Absolute = Absolute(UnsafeCell::new([0; 4096]));

/// Remembers where this library was loaded from. In the constructor: later the program may have gone to
/// another directory, and LD_PRELOAD may be a relative path.
pub fn remember_library() {
    let mut info = libc::Dl_info {
        dli_fname: core::ptr::null(),
        dli_fbase: core::ptr::null_mut(),
        dli_sname: core::ptr::null(),
        dli_saddr: core::ptr::null_mut(),
    };
    // SAFETY: an address in this library, and a structure to fill.
    let found = unsafe { libc::dladdr((remember_library as *const fn()).cast(), &raw mut info) } != 0;
    if !found || info.dli_fname.is_null() {
        return;
    }
    // SAFETY: the loader's own string.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    if name.to_bytes().starts_with(b"/") {
        LIBRARY.store(info.dli_fname.cast_mut(), Release);
        return;
    }
    let mut directory = [0u8; 2048];
    let Ok(len) = call!(libc::SYS_getcwd, directory.as_mut_ptr(), directory.len()) else { return };
    let mut path = Path::new();
    path.push(directory.get(..len.saturating_sub(1)).unwrap_or_default()).push(b"/").push(name.to_bytes());
    let Some(path) = path.as_c_str() else { return };
    // SAFETY: the constructor runs once and is the only writer; nobody reads before `LIBRARY` is set.
    let room = unsafe { &mut *ABSOLUTE.0.get() };
    for (to, from) in room.iter_mut().zip(path.to_bytes_with_nul()) {
        *to = *from as c_char;
    }
    LIBRARY.store(room.as_mut_ptr(), Release);
}

/// The path that this library was loaded from.
pub fn library() -> Option<&'static CStr> {
    let path = LIBRARY.load(Acquire);
    // SAFETY: the loader's own string; it lives as long as the library.
    (!path.is_null()).then(|| unsafe { CStr::from_ptr(path) })
}

/// Starts an engine and waits until it listens.
pub fn engine() -> Result<(), Failure> {
    let path = program().ok_or(Failure::NoProgram)?;
    let path = path.as_c_str().ok_or(Failure::NoProgram)?;
    let [ready, theirs] = sys::pipe(libc::O_CLOEXEC).map_err(|_| Failure::NotReady)?;
    let started = start(path, theirs);
    let _ = sys::close(theirs);
    let answer = if started { wait_ready(ready) } else { Err(Failure::NotReady) };
    let _ = sys::close(ready);
    answer
}

/// One byte says that the engine's socket listens; the end of the pipe without one, that it failed.
fn wait_ready(pipe: c_int) -> Result<(), Failure> {
    let mut list = [libc::pollfd { fd: pipe, events: libc::POLLIN, revents: 0 }];
    let _ = sys::poll(&mut list, PATIENCE_MS);
    let mut words = [0; 256];
    let [entry] = list;
    if entry.revents & libc::POLLIN != 0
        && let Ok(count) = sys::read(pipe, &mut words)
        && let Some(words) = words.get(..count).filter(|words| !words.is_empty())
    {
        if words == b"1" {
            return Ok(());
        }
        // It says why; nobody says it better.
        let kernel = b"); sockets of this process use the kernel";
        notice::say(Topic::Engine, &[b"no engine could be started (", words, kernel]);
    }
    Err(Failure::NotReady)
}

/// `UTCP_BIN`, or `utcp` beside the library, or `utcp` on PATH.
fn program() -> Option<Path> {
    if let Some(named) = config::variable(b"UTCP_BIN").filter(|value| !value.is_empty()) {
        let mut path = Path::new();
        path.push(named.to_bytes());
        return executable(path);
    }
    let beside = library().and_then(|library| {
        let bytes = library.to_bytes();
        let slash = bytes.iter().rposition(|byte| *byte == b'/')?;
        let mut path = Path::new();
        path.push(bytes.get(..=slash)?).push(b"utcp");
        executable(path)
    });
    if beside.is_some() {
        return beside;
    }
    let folders = config::variable(b"PATH")?.to_bytes();
    folders.split(|byte| *byte == b':').filter(|folder| folder.starts_with(b"/")).find_map(|folder| {
        let mut path = Path::new();
        path.push(folder).push(b"/utcp");
        executable(path)
    })
}

fn executable(path: Path) -> Option<Path> {
    path.as_c_str().is_some_and(sys::is_executable).then_some(path)
}

/// Clones, twice; true if the grandchild was on its way.
fn start(path: &CStr, ready: c_int) -> bool {
    let mut environment: [*const c_char; ENVIRONMENT_MAX] = [core::ptr::null(); ENVIRONMENT_MAX];
    for (to, from) in environment.iter_mut().take(ENVIRONMENT_MAX - 1).zip(config::settings()) {
        *to = from.as_ptr();
    }
    let arguments: [*const c_char; 6] = [
        path.as_ptr(),
        c"engine".as_ptr(),
        c"--embedded".as_ptr(),
        c"--ready-fd".as_ptr(),
        c"3".as_ptr(),
        core::ptr::null(),
    ];
    let Ok(child) = call!(libc::SYS_clone, 0, 0, 0, 0, 0) else { return false };
    if child == 0 {
        let _ = call!(libc::SYS_setsid, 0);
        match call!(libc::SYS_clone, 0, 0, 0, 0, 0) {
            Ok(0) => become_engine(path, ready, &arguments, &environment),
            Ok(_) => exit(0),
            Err(_) => exit(1),
        }
    }
    let mut status: c_int = 1;
    // __WCLONE: a child that signals nothing is waited for by those who know of it.
    let _ = call!(libc::SYS_wait4, child, sys::at_mut(&mut status), libc::__WCLONE, 0);
    status == 0
}

fn exit(code: c_int) -> ! {
    loop {
        let _ = call!(libc::SYS_exit_group, code);
    }
}

/// In the grandchild: nothing of the program's is kept but the pipe.
fn become_engine(
    path: &CStr,
    ready: c_int,
    arguments: &[*const c_char; 6],
    environment: &[*const c_char; ENVIRONMENT_MAX],
) -> ! {
    if ready == READY_FD {
        let _ = sys::fcntl(ready, libc::F_SETFD, 0);
    } else if sys::dup3(ready, READY_FD, 0).is_err() {
        exit(1);
    }
    let _ = call!(libc::SYS_close_range, READY_FD + 1, u32::MAX, 0);
    if let Ok(null) = call!(libc::SYS_openat, libc::AT_FDCWD, c"/dev/null".as_ptr(), libc::O_RDWR) {
        for stream in 0..3 {
            let _ = sys::dup3(null as c_int, stream, 0);
        }
        if null as c_int > READY_FD {
            let _ = sys::close(null as c_int);
        }
    }
    default_signals();
    let _ = call!(libc::SYS_execve, path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
    exit(127)
}

/// Ignored and blocked signals are inherited through exec; the program's choices are not the engine's.
fn default_signals() {
    // The kernel's sigaction: handler, flags, restorer, mask: all zero is the default action.
    let action = [0u64; 4];
    for signal in 1..=64 {
        let _ = call!(libc::SYS_rt_sigaction, signal, at(&action), 0, 8);
    }
    let none = 0u64;
    let _ = call!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, at(&none), 0, 8);
}
