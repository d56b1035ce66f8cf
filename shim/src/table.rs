//! Every symbol that this library puts in front of libc, once.
//!
//! A line is: who handles it, the symbol with its C signature, other names of the same function in
//! brackets, and the system call to make should libc not have the symbol. From the table come
//! - the exported functions, which do nothing but call the handler;
//! - `real::NAME`, libc's own. Its pointer first points to a stub that looks the symbol up and
//!   replaces it, so it works in whatever order constructors run (allocators call through us before ours
//!   has run), and takes no lock.
//!
//! Variadic functions of C (`fcntl`, `ioctl`, `syscall`) have a fixed number of words here: under the System V
//! ABI of x86-64 and on AArch64 Linux a caller puts variadic words where it puts named ones.

use core::ptr::NonNull;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::Relaxed;

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};

use libc::{
    epoll_event, fd_set, iovec, mmsghdr, msghdr, nfds_t, off_t, pollfd, rlimit64, sigset_t, size_t, sockaddr,
    socklen_t, ssize_t, timespec, timeval,
};

use crate::{
    accept, close, connect, control, epoll, epoll_wait, epolls, exec, fork, guard, io, io_uring, listen,
    memory, names, numbers, options, poll, privilege, relayed, sandbox, select, signals, splice,
};

/// Looks `name` up behind us.
pub fn find(name: &CStr) -> *mut () {
    // SAFETY: a NUL-terminated name.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }.cast()
}

/// An argument as a word of a system call.
pub trait Word {
    /// The word.
    fn word(self) -> usize;
}

macro_rules! words {
    ($($kind:ty),*) => { $(impl Word for $kind { fn word(self) -> usize { self as usize } })* };
}
words!(c_int, c_uint, c_long, c_ulong, usize, isize);

impl<T> Word for *const T {
    fn word(self) -> usize {
        self as usize
    }
}

impl<T> Word for *mut T {
    fn word(self) -> usize {
        self as usize
    }
}

/// What to do for a symbol that libc lacks: its system call, or ENOSYS.
macro_rules! missing {
    ([$($arg:ident)*] $number:ident) => {{
        let mut args = [0usize; 6];
        for (to, from) in args.iter_mut().zip([$(Word::word($arg)),*]) {
            *to = from;
        }
        // SAFETY: the program's own arguments, in the order that the system call has them.
        crate::errno::into_libc(crate::sys::check(unsafe { crate::sys::raw(libc::$number, args) }))
    }};
    ([$($arg:ident)*]) => {{
        $(let _ = $arg;)*
        crate::errno::fail(crate::sys::Errno(libc::ENOSYS))
    }};
}

macro_rules! export {
    ($name:ident ($($arg:ident: $kind:ty),*) -> $result:ty, $handler:path) => {
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($arg: $kind),*) -> $result {
            // SAFETY: the program's own arguments, under its contract with libc.
            unsafe { $handler($($arg),*) }
        }
    };
}

macro_rules! resolver {
    ($name:ident ($($arg:ident: $kind:ty),*) -> $result:ty $(, $number:ident)?) => {
        /// libc's own.
        ///
        /// # Safety
        /// As the C function.
        #[inline]
        pub unsafe fn $name($($arg: $kind),*) -> $result {
            type Function = unsafe extern "C" fn($($kind),*) -> $result;
            static POINTER: AtomicPtr<()> = AtomicPtr::new(resolve as *mut ());

            #[cold]
            unsafe extern "C" fn resolve($($arg: $kind),*) -> $result {
                match NonNull::new(find(concat_c!($name))) {
                    Some(found) => {
                        POINTER.store(found.as_ptr(), Relaxed);
                        // SAFETY: libc's function of this name has this type.
                        unsafe { core::mem::transmute::<*mut (), Function>(found.as_ptr())($($arg),*) }
                    }
                    None => missing!([$($arg)*] $($number)?),
                }
            }

            // SAFETY: the pointer is `resolve`, or libc's function; both have this type.
            unsafe { core::mem::transmute::<*mut (), Function>(POINTER.load(Relaxed))($($arg),*) }
        }
    };
}

macro_rules! concat_c {
    ($name:ident) => {
        match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
            Ok(name) => name,
            Err(_) => c"",
        }
    };
}

macro_rules! hooks {
    ($($handler:path: $name:ident $args:tt -> $result:ty $([$($alias:ident)*])? $(= $number:ident)?;)*) => {
        /// The exported symbols.
        #[allow(non_snake_case, reason = "libc's names")]
        pub mod exports {
            use super::*;
            $(
                export!($name $args -> $result, $handler);
                $($(export!($alias $args -> $result, $handler);)*)?
            )*
        }

        /// libc's own functions.
        #[allow(dead_code, non_snake_case, reason = "libc's names; some have no caller but the stub's own")]
        pub mod real {
            use super::*;
            use core::ptr::NonNull;
            use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
            $(resolver!($name $args -> $result $(, $number)?);)*
        }
    };
}

hooks! {
    // Bytes in.
    io::read: read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t [__read] = SYS_read;
    io::read_chk: __read_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t) -> ssize_t = SYS_read;
    io::readv: readv(fd: c_int, list: *const iovec, count: c_int) -> ssize_t = SYS_readv;
    io::recv: recv(fd: c_int, buf: *mut c_void, len: size_t, flags: c_int) -> ssize_t [__recv];
    io::recv_chk: __recv_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t;
    io::recvfrom: recvfrom(fd: c_int, buf: *mut c_void, len: size_t, flags: c_int, from: *mut sockaddr, from_len: *mut socklen_t) -> ssize_t = SYS_recvfrom;
    io::recvfrom_chk: __recvfrom_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t, flags: c_int, from: *mut sockaddr, from_len: *mut socklen_t) -> ssize_t;
    io::recvmsg: recvmsg(fd: c_int, header: *mut msghdr, flags: c_int) -> ssize_t = SYS_recvmsg;
    io::recvmmsg: recvmmsg(fd: c_int, headers: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int = SYS_recvmmsg;
    io::preadv2: preadv2(fd: c_int, list: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t [preadv64v2];

    // Bytes out.
    io::write: write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t [__write] = SYS_write;
    io::writev: writev(fd: c_int, list: *const iovec, count: c_int) -> ssize_t = SYS_writev;
    io::send: send(fd: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t [__send];
    io::sendto: sendto(fd: c_int, buf: *const c_void, len: size_t, flags: c_int, to: *const sockaddr, to_len: socklen_t) -> ssize_t = SYS_sendto;
    io::sendmsg: sendmsg(fd: c_int, header: *const msghdr, flags: c_int) -> ssize_t = SYS_sendmsg;
    io::sendmmsg: sendmmsg(fd: c_int, headers: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int [__sendmmsg] = SYS_sendmmsg;
    io::pwritev2: pwritev2(fd: c_int, list: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t [pwritev64v2];
    splice::sendfile: sendfile(out: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t [sendfile64] = SYS_sendfile;
    splice::splice: splice(from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, len: size_t, flags: c_uint) -> ssize_t = SYS_splice;
    splice::tee: tee(from: c_int, to: c_int, len: size_t, flags: c_uint) -> ssize_t = SYS_tee;

    // Sockets.
    connect::socket: socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int = SYS_socket;
    connect::connect: connect(fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int [__connect] = SYS_connect;
    listen::bind: bind(fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int = SYS_bind;
    listen::listen: listen(fd: c_int, backlog: c_int) -> c_int = SYS_listen;
    accept::accept: accept(fd: c_int, to: *mut sockaddr, len: *mut socklen_t) -> c_int;
    accept::accept4: accept4(fd: c_int, to: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int = SYS_accept4;
    close::shutdown: shutdown(fd: c_int, how: c_int) -> c_int = SYS_shutdown;
    names::getsockname: getsockname(fd: c_int, to: *mut sockaddr, len: *mut socklen_t) -> c_int = SYS_getsockname;
    names::getpeername: getpeername(fd: c_int, to: *mut sockaddr, len: *mut socklen_t) -> c_int = SYS_getpeername;
    names::isfdtype: isfdtype(fd: c_int, kind: c_int) -> c_int;
    names::sockatmark: sockatmark(fd: c_int) -> c_int;
    options::setsockopt: setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int = SYS_setsockopt;
    options::getsockopt: getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int = SYS_getsockopt;

    // Descriptors.
    close::close_hook: close(fd: c_int) -> c_int [__close] = SYS_close;
    close::close_range: close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int = SYS_close_range;
    close::dup: dup(fd: c_int) -> c_int = SYS_dup;
    close::dup2: dup2(old: c_int, new: c_int) -> c_int [__dup2];
    close::dup3: dup3(old: c_int, new: c_int, flags: c_int) -> c_int = SYS_dup3;
    control::fcntl: fcntl(fd: c_int, command: c_int, arg: usize) -> c_int [fcntl64 __fcntl] = SYS_fcntl;
    control::ioctl: ioctl(fd: c_int, request: c_ulong, arg: usize) -> c_int = SYS_ioctl;
    numbers::socketpair: socketpair(domain: c_int, kind: c_int, protocol: c_int, to: *mut c_int) -> c_int = SYS_socketpair;
    numbers::pipe: pipe(to: *mut c_int) -> c_int;
    numbers::pipe2: pipe2(to: *mut c_int, flags: c_int) -> c_int = SYS_pipe2;
    numbers::eventfd: eventfd(count: c_uint, flags: c_int) -> c_int;
    numbers::open: open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int [__open];
    numbers::open64: open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int [__open64];
    numbers::openat: openat(folder: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int = SYS_openat;
    numbers::openat64: openat64(folder: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int = SYS_openat;

    // Readiness.
    epolls::epoll_create: epoll_create(size: c_int) -> c_int;
    epolls::epoll_create1: epoll_create1(flags: c_int) -> c_int = SYS_epoll_create1;
    epoll::epoll_ctl: epoll_ctl(epfd: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int = SYS_epoll_ctl;
    epoll_wait::epoll_wait: epoll_wait(epfd: c_int, events: *mut epoll_event, max: c_int, timeout_ms: c_int) -> c_int;
    epoll_wait::epoll_pwait: epoll_pwait(epfd: c_int, events: *mut epoll_event, max: c_int, timeout_ms: c_int, mask: *const sigset_t) -> c_int;
    epoll_wait::epoll_pwait2: epoll_pwait2(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    poll::poll: poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int [__poll];
    poll::ppoll: ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    poll::poll_chk: __poll_chk(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int, size: size_t) -> c_int;
    poll::ppoll_chk: __ppoll_chk(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t, size: size_t) -> c_int;
    select::select: select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int [__select];
    select::pselect: pselect(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int;

    // Processes. (`vfork` and the variadic exec calls are in `fork` and `exec`: no signature fits them.)
    fork::low_fork: _Fork() -> c_int;
    exec::execve: execve(path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int = SYS_execve;
    exec::execv: execv(path: *const c_char, arguments: *const *const c_char) -> c_int;
    exec::execvp: execvp(file: *const c_char, arguments: *const *const c_char) -> c_int;
    exec::execvpe: execvpe(file: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int;
    exec::fexecve: fexecve(fd: c_int, arguments: *const *const c_char, environment: *const *const c_char) -> c_int;
    exec::execveat: execveat(fd: c_int, path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char, flags: c_int) -> c_int = SYS_execveat;
    exec::posix_spawn: posix_spawn(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *const c_char, environment: *const *const c_char) -> c_int;
    exec::add_dup2: posix_spawn_file_actions_adddup2(actions: *mut c_void, fd: c_int, new: c_int) -> c_int;
    exec::posix_spawnp: posix_spawnp(pid: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *const c_char, environment: *const *const c_char) -> c_int;
    exec::system: system(command: *const c_char) -> c_int;

    exec::unsetenv: unsetenv(name: *const c_char) -> c_int;

    // What speaks of the whole process.
    memory::mlockall: mlockall(flags: c_int) -> c_int = SYS_mlockall;
    memory::munlockall: munlockall() -> c_int = SYS_munlockall;
    memory::setrlimit: setrlimit(resource: c_uint, new: *const rlimit64) -> c_int [setrlimit64];
    memory::getrlimit: getrlimit(resource: c_uint, old: *mut rlimit64) -> c_int [getrlimit64 __getrlimit];
    memory::prlimit: prlimit(pid: c_int, resource: c_uint, new: *const rlimit64, old: *mut rlimit64) -> c_int [prlimit64];
    privilege::setuid: setuid(id: c_uint) -> c_int = SYS_setuid;
    privilege::seteuid: seteuid(id: c_uint) -> c_int;
    privilege::setreuid: setreuid(id: c_uint, effective: c_uint) -> c_int = SYS_setreuid;
    privilege::setresuid: setresuid(id: c_uint, effective: c_uint, saved: c_uint) -> c_int = SYS_setresuid;
    sandbox::prctl: prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int = SYS_prctl;
    // liburing's, not libc's: its system calls are its own.
    io_uring::setup: io_uring_setup(entries: c_uint, params: *mut c_void) -> c_int = SYS_io_uring_setup;
    io_uring::queue_init: io_uring_queue_init(entries: c_uint, ring: *mut c_void, flags: c_uint) -> c_int;
    io_uring::queue_init_params: io_uring_queue_init_params(entries: c_uint, ring: *mut c_void, params: *mut c_void) -> c_int;
    io_uring::queue_init_mem: io_uring_queue_init_mem(entries: c_uint, ring: *mut c_void, params: *mut c_void, memory: *mut c_void, len: usize) -> c_int;
    signals::pthread_cancel: pthread_cancel(thread: c_ulong) -> c_int;
    signals::siginterrupt: siginterrupt(signal: c_int, on: c_int) -> c_int;
    signals::sigaction: sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int [__sigaction];
}

/// `signal` returns a pointer, and under its other names means other flags.
macro_rules! signals {
    ($($name:ident $flags:expr, $masks_itself:expr;)*) => { $(
        /// As `signal(2)`, with the flags of its name.
        ///
        /// # Safety
        /// As `signal`.
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C" fn $name(signal: c_int, handler: usize) -> usize {
            type Function = unsafe extern "C" fn(c_int, usize) -> usize;
            static LIBCS: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
            if let Some(before) = guard::signal(signal, handler, $flags, $masks_itself) {
                return before;
            }
            if LIBCS.load(Relaxed).is_null() {
                LIBCS.store(find(concat_c!($name)), Relaxed);
            }
            let Some(found) = NonNull::new(LIBCS.load(Relaxed)) else { return libc::SIG_ERR };
            // SAFETY: libc's function of this name has this type; the program's own arguments, or a handler of ours before its own.
            let install = |handler| unsafe { core::mem::transmute::<*mut (), Function>(found.as_ptr())(signal, handler) };
            signals::signal(signal, handler, $flags, install)
        }
    )* };
}

signals! {
    signal libc::SA_RESTART, true;
    bsd_signal libc::SA_RESTART, true;
    ssignal libc::SA_RESTART, true;
    sysv_signal libc::SA_RESETHAND | libc::SA_NODEFER, false;
    __sysv_signal libc::SA_RESETHAND | libc::SA_NODEFER, false;
    sigset 0, false;
}

/// `fdopen` returns a pointer, so no line above fits it either. libc's stdio reads and writes by calls that can't be
/// intercepted: the socket's bytes go through the kernel's descriptor from now on.
///
/// # Safety
/// As `fdopen`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn fdopen(fd: c_int, mode: *const c_char) -> *mut c_void {
    type Function = unsafe extern "C" fn(c_int, *const c_char) -> *mut c_void;
    static LIBCS: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
    relayed::pass(fd);
    if LIBCS.load(Relaxed).is_null() {
        LIBCS.store(find(c"fdopen"), Relaxed);
    }
    match NonNull::new(LIBCS.load(Relaxed)) {
        // SAFETY: libc's function of this name has this type; the program's own arguments.
        Some(found) => unsafe { core::mem::transmute::<*mut (), Function>(found.as_ptr())(fd, mode) },
        None => core::ptr::null_mut(),
    }
}

/// `popen` returns a pointer, too.
///
/// # Safety
/// As `popen`.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn popen(command: *const c_char, kind: *const c_char) -> *mut c_void {
    type Function = unsafe extern "C" fn(*const c_char, *const c_char) -> *mut c_void;
    static LIBCS: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
    if LIBCS.load(Relaxed).is_null() {
        LIBCS.store(find(c"popen"), Relaxed);
    }
    match NonNull::new(LIBCS.load(Relaxed)) {
        Some(found) => exec::by_libc(|| {
            // SAFETY: libc's function of this name has this type; the program's own arguments.
            unsafe { core::mem::transmute::<*mut (), Function>(found.as_ptr())(command, kind) }
        }),
        None => core::ptr::null_mut(),
    }
}

/// `closefrom` returns nothing, so no line above fits it.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn closefrom(first: c_int) {
    // SAFETY: a plain number.
    unsafe { close::closefrom(first) };
}
