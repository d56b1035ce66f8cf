//! Waiting between two calls until what the first one started has arrived everywhere.
//!
//! `CALLS_SETTLE_MS=N` sleeps. `CALLS_SETTLE_MS=meet` makes a connection and takes it, twice: who does the work of the
//! calls before (the kernel at once, an engine in its rounds) does that of the connection after it. That takes some
//! microseconds, where a sleep that is long enough on a busy machine takes many milliseconds; what comes by a timer,
//! such as a delayed ACK, has not come then.

use std::mem::{size_of, zeroed};
use std::ptr;
use std::time::Duration;

use libc::{c_int, c_void, socklen_t};

/// How to wait.
pub enum Settle {
    /// For a time.
    Sleep(Duration),
    /// For connections to this listener, which is at this address.
    Meet(c_int, libc::sockaddr_in),
}

impl Settle {
    /// As the environment says.
    pub fn from_environment() -> Self {
        match std::env::var("CALLS_SETTLE_MS").as_deref() {
            Ok("meet") => Self::meeting_place(),
            Ok(ms) => {
                Self::Sleep(Duration::from_millis(ms.parse().expect("CALLS_SETTLE_MS is a number or meet")))
            }
            Err(_) => Self::Sleep(Duration::from_millis(10)),
        }
    }

    fn meeting_place() -> Self {
        // SAFETY: a zeroed address is a valid one; its own length; a limit of its own length.
        unsafe {
            let listener = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
            let mut address: libc::sockaddr_in = zeroed();
            address.sin_family = libc::AF_INET as libc::sa_family_t;
            address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
            let mut len = size_of::<libc::sockaddr_in>() as socklen_t;
            // Nobody waits here for ever, whatever happens to a connection.
            let limit = libc::timeval { tv_sec: 0, tv_usec: 300_000 };
            set(listener, libc::SO_RCVTIMEO, &limit);
            let bound = libc::bind(listener, (&raw const address).cast(), len) == 0
                && libc::listen(listener, 8) == 0
                && libc::getsockname(listener, (&raw mut address).cast(), &raw mut len) == 0;
            assert!(bound, "a port to meet at");
            Self::Meet(listener, address)
        }
    }

    /// Waits.
    pub fn wait(&self) {
        match self {
            Self::Sleep(time) => std::thread::sleep(*time),
            Self::Meet(listener, address) => (0..2).for_each(|_| meet(*listener, address)),
        }
    }
}

/// One connection, ended by a reset so that it leaves no TIME-WAIT. A signal may cut it short.
fn meet(listener: c_int, address: &libc::sockaddr_in) {
    // SAFETY: an address and its length; no address is asked for; an option of its own length; our own descriptors.
    unsafe {
        let client = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        let len = size_of::<libc::sockaddr_in>() as socklen_t;
        if libc::connect(client, ptr::from_ref(address).cast(), len) == 0 {
            let accepted = libc::accept4(listener, ptr::null_mut(), ptr::null_mut(), libc::SOCK_CLOEXEC);
            let reset = libc::linger { l_onoff: 1, l_linger: 0 };
            set(client, libc::SO_LINGER, &reset);
            libc::close(client);
            if accepted >= 0 {
                libc::close(accepted);
            }
        } else {
            libc::close(client);
        }
    }
}

/// # Safety
/// `T` is what the option takes.
unsafe fn set<T>(fd: c_int, option: c_int, value: &T) {
    let value: *const c_void = ptr::from_ref(value).cast();
    // SAFETY: the value and its length.
    unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value, size_of::<T>() as socklen_t) };
}
