//! exec and spawn: the new program gets our preload and settings, and the descriptors that it is meant to get.
use core::ffi::{c_char, c_int, c_void};

use crate::io::pass;
use crate::table::real;

type Strings = *const *const c_char;

/// `execve(2)`.
///
/// # Safety
/// As `execve`.
pub unsafe fn execve(path: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    pass!(execve(path, arguments, environment))
}

/// `execv(3)`.
///
/// # Safety
/// As `execv`.
pub unsafe fn execv(path: *const c_char, arguments: Strings) -> c_int {
    pass!(execv(path, arguments))
}

/// `execvp(3)`.
///
/// # Safety
/// As `execvp`.
pub unsafe fn execvp(file: *const c_char, arguments: Strings) -> c_int {
    pass!(execvp(file, arguments))
}

/// `execvpe(3)`.
///
/// # Safety
/// As `execvpe`.
pub unsafe fn execvpe(file: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    pass!(execvpe(file, arguments, environment))
}

/// `fexecve(3)`.
///
/// # Safety
/// As `fexecve`.
pub unsafe fn fexecve(fd: c_int, arguments: Strings, environment: Strings) -> c_int {
    pass!(fexecve(fd, arguments, environment))
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
    pass!(execveat(fd, path, arguments, environment, flags))
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
    pass!(posix_spawn(pid, path, actions, attributes, arguments, environment))
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
    pass!(posix_spawnp(pid, file, actions, attributes, arguments, environment))
}
