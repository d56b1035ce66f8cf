//! `syscall(2)`: programs that go around libc's names for calls that we intercept (libuv closes so).
//!
//! A call that makes a process is handed on by a jump, as in [`crate::fork`]: its child may return on the
//! same stack. Every other call is decoded.

use core::ffi::{c_int, c_long, c_ulong};

use crate::fork::{restore_and_jump, save_arguments};
use crate::table::{exports as hook, find};
use crate::{process, select};

/// Bytes of a mask of signals, as the kernel has it.
const MASK: usize = 8;

/// About to make a process by number: libc's own `syscall`, to jump to.
extern "C" fn before_clone() -> *mut () {
    process::before_fork();
    find(c"syscall")
}

/// `syscall(2)` with six words, whatever the call takes.
///
/// # Safety
/// As the call itself.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn syscall() -> c_long {
    core::arch::naked_asm!(
        "cmp rdi, {clone}",
        "je 2f",
        "cmp rdi, {fork}",
        "je 2f",
        "cmp rdi, {vfork}",
        "je 2f",
        "cmp rdi, {clone3}",
        "je 2f",
        "jmp {decode}",
        "2:",
        save_arguments!(),
        "call {before}",
        restore_and_jump!(),
        clone = const libc::SYS_clone,
        fork = const libc::SYS_fork,
        vfork = const libc::SYS_vfork,
        clone3 = const libc::SYS_clone3,
        decode = sym decode,
        before = sym before_clone,
    )
}

/// `syscall(2)` with six words, whatever the call takes.
///
/// # Safety
/// As the call itself.
#[cfg(target_arch = "aarch64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn syscall() -> c_long {
    core::arch::naked_asm!(
        "cmp x0, {clone}",
        "b.eq 2f",
        "cmp x0, {clone3}",
        "b.eq 2f",
        "b {decode}",
        "2:",
        save_arguments!(),
        "bl {before}",
        restore_and_jump!(),
        clone = const libc::SYS_clone,
        clone3 = const libc::SYS_clone3,
        decode = sym decode,
        before = sym before_clone,
    )
}

/// What a program calls by number is what the hook does by name.
unsafe extern "C" fn decode(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let (fd, second, third, fourth) = (a as c_int, b as c_int, c as c_int, d as c_int);
    // SAFETY: the program's own arguments.
    unsafe {
        match number {
            libc::SYS_close => c_long::from(hook::close(fd)),
            libc::SYS_close_range => c_long::from(hook::close_range(a as u32, b as u32, third)),
            libc::SYS_read => hook::read(fd, b as *mut _, c) as c_long,
            libc::SYS_write => hook::write(fd, b as *const _, c) as c_long,
            libc::SYS_readv => hook::readv(fd, b as *const _, third) as c_long,
            libc::SYS_writev => hook::writev(fd, b as *const _, third) as c_long,
            libc::SYS_recvfrom => {
                hook::recvfrom(fd, b as *mut _, c, fourth, e as *mut _, f as *mut _) as c_long
            }
            libc::SYS_sendto => hook::sendto(fd, b as *const _, c, fourth, e as *const _, f as u32) as c_long,
            libc::SYS_recvmsg => hook::recvmsg(fd, b as *mut _, third) as c_long,
            libc::SYS_sendmsg => hook::sendmsg(fd, b as *const _, third) as c_long,
            libc::SYS_sendfile => hook::sendfile(fd, second, c as *mut _, d) as c_long,
            libc::SYS_socket => c_long::from(hook::socket(fd, second, third)),
            libc::SYS_connect => c_long::from(hook::connect(fd, b as *const _, c as u32)),
            libc::SYS_bind => c_long::from(hook::bind(fd, b as *const _, c as u32)),
            libc::SYS_listen => c_long::from(hook::listen(fd, second)),
            libc::SYS_accept => c_long::from(hook::accept(fd, b as *mut _, c as *mut _)),
            libc::SYS_accept4 => c_long::from(hook::accept4(fd, b as *mut _, c as *mut _, fourth)),
            libc::SYS_shutdown => c_long::from(hook::shutdown(fd, second)),
            libc::SYS_getsockname => c_long::from(hook::getsockname(fd, b as *mut _, c as *mut _)),
            libc::SYS_getpeername => c_long::from(hook::getpeername(fd, b as *mut _, c as *mut _)),
            libc::SYS_setsockopt => {
                c_long::from(hook::setsockopt(fd, second, third, d as *const _, e as u32))
            }
            libc::SYS_getsockopt => {
                c_long::from(hook::getsockopt(fd, second, third, d as *mut _, e as *mut _))
            }
            libc::SYS_dup => c_long::from(hook::dup(fd)),
            libc::SYS_dup3 => c_long::from(hook::dup3(fd, second, third)),
            libc::SYS_fcntl => c_long::from(hook::fcntl(fd, second, c)),
            libc::SYS_ioctl => c_long::from(hook::ioctl(fd, b as u64, c)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_epoll_create => c_long::from(hook::epoll_create(fd)),
            libc::SYS_epoll_create1 => c_long::from(hook::epoll_create1(fd)),
            libc::SYS_epoll_ctl => c_long::from(hook::epoll_ctl(fd, second, third, d as *mut _)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_epoll_wait => c_long::from(hook::epoll_wait(fd, b as *mut _, third, fourth)),
            // The kernel's masks are 8 bytes, and only those are looked at in libc's. A wrong length is the first thing that it sees.
            libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 if e != 0 && f != MASK => {
                crate::errno::fail(crate::sys::Errno(libc::EINVAL))
            }
            libc::SYS_ppoll if d != 0 && e != MASK => crate::errno::fail(crate::sys::Errno(libc::EINVAL)),
            libc::SYS_epoll_pwait => {
                c_long::from(hook::epoll_pwait(fd, b as *mut _, third, fourth, e as *const _))
            }
            libc::SYS_epoll_pwait2 => {
                c_long::from(hook::epoll_pwait2(fd, b as *mut _, third, d as *const _, e as *const _))
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_poll => c_long::from(hook::poll(a as *mut _, b as u64, third)),
            libc::SYS_ppoll => c_long::from(hook::ppoll(a as *mut _, b as u64, c as *const _, d as *const _)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_select if select::is_ours(fd, b, c, d) => {
                c_long::from(hook::select(fd, b as *mut _, c as *mut _, d as *mut _, e as *mut _))
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_dup2 => c_long::from(hook::dup2(fd, second)),
            libc::SYS_pselect6 if select::is_ours(fd, b, c, d) => {
                let sets = [b as *mut _, c as *mut _, d as *mut _];
                c_long::from(select::pselect6(fd, sets, e as *const _, f as *const _))
            }
            libc::SYS_tee => hook::tee(fd, second, c, d as u32) as c_long,
            // The position is one word on 64-bit machines, in the place of the lower half.
            libc::SYS_preadv2 => hook::preadv2(fd, b as *const _, third, d as i64, f as c_int) as c_long,
            libc::SYS_pwritev2 => hook::pwritev2(fd, b as *const _, third, d as i64, f as c_int) as c_long,
            libc::SYS_recvmmsg => {
                c_long::from(hook::recvmmsg(fd, b as *mut _, c as u32, fourth, e as *mut _))
            }
            libc::SYS_sendmmsg => c_long::from(hook::sendmmsg(fd, b as *mut _, c as u32, fourth)),
            libc::SYS_splice => hook::splice(fd, b as *mut _, third, d as *mut _, e, f as u32) as c_long,
            libc::SYS_execve => c_long::from(hook::execve(a as *const _, b as *const _, c as *const _)),
            libc::SYS_execveat => {
                c_long::from(hook::execveat(fd, b as *const _, c as *const _, d as *const _, e as c_int))
            }
            // By libc's name every thread changes, by number this one alone.
            libc::SYS_setuid | libc::SYS_setreuid | libc::SYS_setresuid => {
                crate::privilege::before(if number == libc::SYS_setuid { a } else { b } as u32);
                crate::errno::into_libc(crate::sys::check(crate::sys::raw(number, [a, b, c, d, e, f])))
            }
            libc::SYS_io_uring_setup if !crate::io_uring::admit() => {
                crate::errno::fail(crate::sys::Errno(libc::ENOSYS))
            }
            libc::SYS_prlimit64 => c_long::from(hook::prlimit(fd, b as u32, c as *const _, d as *mut _)),
            libc::SYS_prctl => {
                c_long::from(hook::prctl(fd, b as c_ulong, c as c_ulong, d as c_ulong, e as c_ulong))
            }
            libc::SYS_seccomp => {
                crate::sandbox::enter();
                crate::errno::into_libc(crate::sys::check(crate::sys::raw(number, [a, b, c, d, e, f])))
            }
            libc::SYS_mlockall => c_long::from(hook::mlockall(fd)),
            libc::SYS_munlockall => c_long::from(hook::munlockall()),
            _ => open(number, [a, b, c, d, e, f]),
        }
    }
}

/// Calls that make a descriptor of the kernel's ([`crate::numbers`]), and all that we know nothing of.
///
/// # Safety
/// As the call itself.
unsafe fn open(number: c_long, words: [usize; 6]) -> c_long {
    let [a, b, c, d, e, f] = words;
    let (fd, second, third) = (a as c_int, b as c_int, c as c_int);
    // SAFETY: the program's own arguments.
    unsafe {
        match number {
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => c_long::from(hook::open(a as *const _, second, c as u32)),
            libc::SYS_openat => c_long::from(hook::openat(fd, b as *const _, third, d as u32)),
            libc::SYS_socketpair => c_long::from(hook::socketpair(fd, second, third, d as *mut _)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_pipe => c_long::from(hook::pipe(a as *mut _)),
            libc::SYS_pipe2 => c_long::from(hook::pipe2(a as *mut _, second)),
            libc::SYS_mmap => {
                crate::memory::mmap(a as *mut _, b, third, d as c_int, e as c_int, f as i64) as c_long
            }
            libc::SYS_eventfd2 => c_long::from(hook::eventfd(a as u32, second)),
            _ => crate::errno::into_libc(crate::sys::check(crate::sys::raw(number, words))),
        }
    }
}
