//! exec and spawn: the new program gets our preload and settings, and the descriptors that it is meant to get.
//!
//! - A program may clean the environment (nginx does for a binary upgrade): LD_PRELOAD and UTCP_* are
//!   put back, unless the program took LD_PRELOAD out by `unsetenv`, which is how a user says no.
//! - FD_CLOEXEC of our sockets is kept in the table while the kernel has it always set; before an
//!   exec the kernel is told the truth.
//! - Listeners are the kernel's and survive as such. Connected sockets go through the engine's relay from then on
//!   ([`crate::relayed`]); at once if the new program can't have this library ([`crate::foreign`]). `UTCP_INHERIT` tells its copy of this
//!   library that it may meet either.
//!
//! Everything is built on the stack: the caller may be the child of a `vfork`, on its parent's memory.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use crate::fd_table::{self, Kind};
use crate::foreign::Program;
use crate::io::pass;
use crate::sys;
use crate::table::{exports, real};
use crate::text::Text;
use crate::{config, launch, process, relayed, tls};

type Strings = *const *const c_char;

/// Variables of an environment that is added to; a larger one is passed as it is.
const ENTRIES: usize = 1024;

/// 1: the program took LD_PRELOAD out of its environment.
static REFUSED: AtomicU32 = AtomicU32::new(0);

/// `unsetenv(3)`, which may be the program's way to leave us behind.
///
/// # Safety
/// As `unsetenv`.
pub unsafe fn unsetenv(name: *const c_char) -> c_int {
    // SAFETY: the program's own string, if it is not null.
    if !name.is_null() && unsafe { CStr::from_ptr(name) } == c"LD_PRELOAD" {
        REFUSED.store(1, Relaxed);
    }
    pass!(unsetenv(name))
}

/// An environment with our variables in it.
struct Environment {
    entries: [*const c_char; ENTRIES],
    preload: Text<4200>,
    /// What to use instead, if nothing has to be added.
    given: Strings,
    added: bool,
}

impl Environment {
    fn new(given: Strings) -> Self {
        Self { entries: [core::ptr::null(); ENTRIES], preload: Text::new(), given, added: false }
    }

    /// Adds what is missing; the result is valid as long as `self` stays where it is.
    ///
    /// # Safety
    /// `given` is an environment or null.
    unsafe fn complete(&mut self) -> Strings {
        if REFUSED.load(Relaxed) != 0 || config::disabled() {
            return self.given;
        }
        // SAFETY: the caller's promise.
        let given = unsafe { config::strings(self.given) };
        let (mut count, mut has_preload) = (0usize, false);
        for entry in given {
            has_preload |= entry.to_bytes().starts_with(b"LD_PRELOAD=");
            if !self.push(&mut count, entry) {
                return self.given;
            }
        }
        if !has_preload {
            let Some(library) = launch::library() else { return self.given };
            self.preload.push(b"LD_PRELOAD=").push(library.to_bytes());
            let Some(entry) = self.preload.as_c_str().map(CStr::as_ptr) else { return self.given };
            let Some(place) = self.entries.get_mut(count).filter(|_| count < ENTRIES - 1) else {
                return self.given;
            };
            *place = entry;
            (count, self.added) = (count + 1, true);
        }
        for entry in config::settings().filter(|entry| entry.to_bytes().starts_with(b"UTCP_")) {
            let name = entry.to_bytes().split(|byte| *byte == b'=').next().unwrap_or_default();
            // SAFETY: the caller's promise.
            let known =
                unsafe { config::strings(self.given) }.any(|other| config::value_of(other, name).is_some());
            if !known {
                self.added = true;
                if !self.push(&mut count, entry) {
                    return self.given;
                }
            }
        }
        if (passes_listeners() || relayed::may_be_inherited()) && config::variable(b"UTCP_INHERIT").is_none()
        {
            self.added = true;
            if !self.push(&mut count, c"UTCP_INHERIT=1") {
                return self.given;
            }
        }
        if self.added { self.entries.as_ptr() } else { self.given }
    }

    fn push(&mut self, count: &mut usize, entry: &CStr) -> bool {
        let Some(place) = self.entries.get_mut(*count).filter(|_| *count < ENTRIES - 1) else { return false };
        *place = entry.as_ptr();
        *count += 1;
        true
    }
}

/// Whether a listener will survive an exec.
fn passes_listeners() -> bool {
    fd_table::used().any(|(fd, entry)| entry.kind() == Kind::Listener && relayed::is_inherited(fd))
}

/// Tells the kernel which of our sockets shall survive an exec (`true`), or that none shall.
fn tell_cloexec(truth: bool) {
    for (fd, entry) in fd_table::used() {
        if entry.kind() == Kind::Socket && !entry.cloexec() {
            let _ = sys::fcntl(fd, libc::F_SETFD, if truth { 0 } else { libc::FD_CLOEXEC as usize });
        }
    }
}

/// In the child of a `vfork` FD_CLOEXEC is the kernel's to keep, as the table is the parent's: it is told what the table says, once, before the
/// child asks for it or changes it.
pub fn tell_in_vfork_child() {
    if tls::thread().tells_first() {
        tell_cloexec(true);
    }
}

/// Runs `exec`, which returns only if it failed, with a completed environment.
///
/// # Safety
/// `environment` is one, or null; the names in `program` are strings, or null.
unsafe fn with(program: Program, environment: Strings, exec: impl FnOnce(Strings) -> c_int) -> c_int {
    let mut complete = Environment::new(environment);
    // SAFETY: the caller's promise.
    let environment = unsafe { complete.complete() };
    // First of all: a socket whose connection is over may leave the table while the others are seen to.
    let borrowed = tls::thread().is_vfork_child();
    if borrowed {
        tell_in_vfork_child();
    } else {
        tell_cloexec(true);
    }
    relayed::before_exec();
    // SAFETY: the caller's promise.
    let foreign = || REFUSED.load(Relaxed) != 0 || unsafe { program.leaves_us_behind() };
    if (relayed::may_be_inherited() || passes_listeners()) && foreign() {
        relayed::before_foreign();
    }
    relayed::tell_all();
    let result = exec(environment);
    if !borrowed {
        tell_cloexec(false);
    }
    result
}

/// `execve(2)`.
///
/// # Safety
/// As `execve`.
pub unsafe fn execve(path: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    // SAFETY: the program's own arguments.
    unsafe {
        with(Program::At(libc::AT_FDCWD, path), environment, |environment| {
            real::execve(path, arguments, environment)
        })
    }
}

/// `execv(3)`.
///
/// # Safety
/// As `execv`.
pub unsafe fn execv(path: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the program's own arguments.
    unsafe { execve(path, arguments, config::environment()) }
}

/// `execvp(3)`.
///
/// # Safety
/// As `execvp`.
pub unsafe fn execvp(file: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the program's own arguments.
    unsafe { execvpe(file, arguments, config::environment()) }
}

/// `execvpe(3)`.
///
/// # Safety
/// As `execvpe`.
pub unsafe fn execvpe(file: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    // SAFETY: the program's own arguments.
    unsafe {
        with(Program::Named(file), environment, |environment| real::execvpe(file, arguments, environment))
    }
}

/// `fexecve(3)`.
///
/// # Safety
/// As `fexecve`.
pub unsafe fn fexecve(fd: c_int, arguments: Strings, environment: Strings) -> c_int {
    // SAFETY: the program's own arguments.
    unsafe { with(Program::Open(fd), environment, |environment| real::fexecve(fd, arguments, environment)) }
}

/// `execveat(2)`.
///
/// # Safety
/// As `execveat`.
pub unsafe fn execveat(
    fd: c_int,
    path: *const c_char,
    arguments: Strings,
    environment: Strings,
    flags: c_int,
) -> c_int {
    // SAFETY: the program's own arguments.
    unsafe {
        let own = flags & libc::AT_EMPTY_PATH != 0 && !path.is_null() && *path == 0;
        let program = if own { Program::Open(fd) } else { Program::At(fd, path) };
        with(program, environment, |environment| real::execveat(fd, path, arguments, environment, flags))
    }
}

/// `posix_spawn(3)`.
///
/// # Safety
/// As `posix_spawn`.
pub unsafe fn posix_spawn(
    pid: *mut c_int,
    path: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    process::before_fork();
    // SAFETY: the program's own arguments.
    unsafe {
        with(Program::At(libc::AT_FDCWD, path), environment, |environment| {
            real::posix_spawn(pid, path, actions, attributes, arguments, environment)
        })
    }
}

/// `posix_spawn_file_actions_adddup2(3)`: where we can't see a socket becoming a standard stream, in libc's child, it is
/// relayed beforehand.
///
/// # Safety
/// As `posix_spawn_file_actions_adddup2`.
pub unsafe fn add_dup2(actions: *mut c_void, fd: c_int, new: c_int) -> c_int {
    if (0..3).contains(&new) {
        relayed::pass(fd);
    }
    pass!(posix_spawn_file_actions_adddup2(actions, fd, new))
}

/// `posix_spawnp(3)`.
///
/// # Safety
/// As `posix_spawnp`.
pub unsafe fn posix_spawnp(
    pid: *mut c_int,
    file: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    process::before_fork();
    // SAFETY: the program's own arguments.
    unsafe {
        with(Program::Named(file), environment, |environment| {
            real::posix_spawnp(pid, file, actions, attributes, arguments, environment)
        })
    }
}

/// Runs what starts a shell by libc's own ways: it inherits our sockets as the kernel's, and its environment has the library already.
pub fn by_libc<T>(start: impl FnOnce() -> T) -> T {
    if tls::thread().is_vfork_child() {
        return start();
    }
    process::before_fork();
    tell_cloexec(true);
    relayed::before_exec();
    relayed::tell_all();
    let result = start();
    tell_cloexec(false);
    result
}

/// `system(3)`.
///
/// # Safety
/// As `system`.
pub unsafe fn system(command: *const c_char) -> c_int {
    if command.is_null() {
        return pass!(system(command));
    }
    by_libc(|| pass!(system(command)))
}

/// `execl`, its arguments laid out as `execv` wants them.
unsafe extern "C" fn listed(path: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the program's own arguments.
    unsafe { exports::execv(path, arguments) }
}

/// `execlp`.
unsafe extern "C" fn listed_on_path(file: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the program's own arguments.
    unsafe { exports::execvp(file, arguments) }
}

/// `execle`: the environment follows the null that ends the arguments.
unsafe extern "C" fn listed_with_environment(path: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the program's own arguments; the environment stands where `execle` wants it.
    unsafe {
        let mut end = arguments;
        while !(*end).is_null() {
            end = end.add(1);
        }
        let environment = *end.add(1).cast::<Strings>();
        exports::execve(path, arguments, environment)
    }
}

/// A variadic exec call: the words in registers are put below those on the stack, which makes them one array.
macro_rules! variadic {
    ($name:ident, $handler:ident) => {
        /// The C function of this name.
        ///
        /// # Safety
        /// As the C function.
        #[cfg(target_arch = "x86_64")]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                "pop rax", // The return address stands where the array has to continue.
                "push r9",
                "push r8",
                "push rcx",
                "push rdx",
                "push rsi",
                "mov rsi, rsp",
                "push rax",
                "call {handler}",
                "pop rdx",
                "add rsp, 40",
                "push rdx",
                "ret",
                handler = sym $handler,
            )
        }

        /// The C function of this name.
        ///
        /// # Safety
        /// As the C function.
        #[cfg(target_arch = "aarch64")]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                "sub sp, sp, 64",
                "str x1, [sp, 8]",
                "stp x2, x3, [sp, 16]",
                "stp x4, x5, [sp, 32]",
                "stp x6, x7, [sp, 48]",
                "add x1, sp, 8",
                "stp x29, x30, [sp, -16]!",
                "mov x29, sp",
                "bl {handler}",
                "ldp x29, x30, [sp], 16",
                "add sp, sp, 64",
                "ret",
                handler = sym $handler,
            )
        }
    };
}

variadic!(execl, listed);
variadic!(execlp, listed_on_path);
variadic!(execle, listed_with_environment);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_added_twice() {
        // Whatever of ours this test's own process was started with, so that nothing is missing.
        let mut full = std::vec![c"LD_PRELOAD=/x.so".as_ptr(), c"A=b".as_ptr()];
        full.extend(config::settings().map(CStr::as_ptr));
        full.push(core::ptr::null());
        let mut environment = Environment::new(full.as_ptr());
        // SAFETY: an environment.
        assert_eq!(unsafe { environment.complete() }, full.as_ptr());
        assert!(!environment.added);
    }
}
