//! Signals of what happens to a descriptor: O_ASYNC, F_SETOWN and its kin.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use libc::{c_int, c_void, siginfo_t};

use crate::Fds;
use crate::calls::result;
use crate::words::Words;

static COUNT: AtomicU32 = AtomicU32::new(0);
static FD: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    COUNT.fetch_add(1, Ordering::SeqCst);
    // si_band is a long, and si_fd the int behind it.
    // SAFETY: the kernel's structure, which is larger.
    FD.store(unsafe { info.cast::<c_int>().add(6).read() }, Ordering::SeqCst);
}

/// `owner NAME me|none|init`, `fioasync NAME 0|1`, `async NAME 0|1`, `getown NAME`, `setsig NAME SIGNAL`,
/// `signals SIGNAL [NAME] [soon]`: whether any came since the last look (and of which descriptor)
pub fn run(fds: &Fds, words: &Words) -> String {
    let number = || fds.number(words.get(1));
    // SAFETY: numbers, a place for an int, and a handler that only stores to atomics.
    unsafe {
        match words.first() {
            "owner" => {
                let pid = match words.get(2) {
                    "me" => libc::getpid(),
                    "none" => 0,
                    _ => 1 << 30,
                };
                result(libc::fcntl(number(), libc::F_SETOWN, pid) as isize)
            }
            "getown" => match libc::fcntl(number(), libc::F_GETOWN) {
                pid if pid == libc::getpid() => "me".to_owned(),
                other => result(other as isize),
            },
            "setsig" => result(libc::fcntl(number(), 10, words.number(2)) as isize),
            "fioasync" => {
                let on = c_int::from(words.get(2) == "1");
                result(libc::ioctl(number(), libc::FIOASYNC, &raw const on) as isize)
            }
            "async" => {
                let flags = libc::fcntl(number(), libc::F_GETFL);
                let before = flags & libc::O_ASYNC != 0;
                let flags = if words.get(2) == "1" { flags | libc::O_ASYNC } else { flags & !libc::O_ASYNC };
                let set = libc::fcntl(number(), libc::F_SETFL, flags);
                let after = libc::fcntl(number(), libc::F_GETFL) & libc::O_ASYNC != 0;
                format!("{before} {} {after}", result(set as isize))
            }
            _ => signals(fds, words),
        }
    }
}

fn signals(fds: &Fds, words: &Words) -> String {
    let signal = if words.get(1) == "io" { libc::SIGIO } else { libc::SIGRTMIN() + 3 };
    // Where one has to come, a busy machine has time for it.
    for _ in 0..if words.has("soon") { 200 } else { 0 } {
        if COUNT.load(Ordering::SeqCst) > 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let any = COUNT.swap(0, Ordering::SeqCst) > 0;
    let of = FD.swap(-1, Ordering::SeqCst);
    // SAFETY: a zeroed sigaction is a valid one; the handler only stores to atomics.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
    match words.get(2) {
        "" | "soon" => any.to_string(),
        name => format!("{any} {}", of == fds.number(name)),
    }
}
