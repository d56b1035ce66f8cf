//! libutcp.so: the preload library that gives an unmodified program utcp's sockets.
//!
//! ```text
//!  program ── recv(7) ──► table ──► fd_table: 7 is … ──┬─► the kernel's: libc's recv, untouched
//!                                                       └─► ours: loads and stores in the region
//! ```
//!
//! Where things are:
//! - [`table`]: every intercepted symbol, once; [`fd_table`]: what a descriptor number means.
//! - [`attach`] (with [`finder`], [`launch`], [`channel`], [`pool`]): being a client of an engine; [`numbers`]: the limit of descriptors.
//! - [`connect`], [`bound`], [`listen`], [`accept`], [`close`], [`swap`]: the life of a socket.
//! - [`user`], [`guard`]: the program's memory, whose pointers may lead nowhere.
//! - [`options`], [`control`], [`control_data`], [`sigio`], [`zerocopy`], [`io_uring`]: what else can be asked of a socket.
//! - [`recv`], [`send`], [`urgent`], [`io`], [`splice`]: bytes. [`ready`], [`set`], [`epolls`], [`epoll`], [`epoll_wait`], [`nested`], [`poll`], [`select`],
//!   [`sleep`], [`arrival`]: waiting.
//! - [`fork`], [`exec`], [`relayed`], [`process`], [`death`]: what happens to processes and engines.
//!
//! Ground rules, each paid for by a program that broke (a library in someone else's process may not
//! do what it likes): no allocation, no lock that a signal handler could meet, no thread-local with
//! a destructor, no panic, no text log, no call of ours through a name that we intercept. A
//! call that is not about us goes to libc with its arguments untouched, after one load.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    test,
    allow(dead_code, reason = "the hooks are exported by the table, which unit tests leave out")
)]
#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![cfg_attr(not(test), deny(clippy::expect_used))]
#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_lossless,
    reason = "the C ABI: every call converts between int, size_t and ssize_t"
)]

mod accept;
mod arrival;
mod attach;
mod bound;
mod channel;
mod close;
mod config;
mod connect;
mod control;
mod control_data;
mod death;
mod epoll;
mod epoll_wait;
mod epolls;
mod errno;
mod exec;
mod fast_open;
mod fd_table;
mod fdinfo;
mod finder;
mod foreign;
mod fork;
mod guard;
mod handle;
mod info;
mod io;
mod io_uring;
mod lane;
mod launch;
mod listen;
mod log;
mod memory;
mod names;
mod nested;
mod notice;
mod numbers;
mod options;
mod pair;
mod poll;
mod poll_set;
mod pool;
mod privilege;
mod process;
mod raw_call;
mod ready;
mod recv;
mod relayed;
mod rights;
mod sandbox;
mod select;
mod send;
mod set;
mod sigio;
mod signals;
mod sleep;
mod splice;
mod swap;
mod sys;
mod table;
mod text;
mod tls;
mod urgent;
mod user;
mod zerocopy;

/// What must be looked at before the program can change it. Nothing here is needed for a call to work: other
/// libraries' constructors may run, and call through us, before this does.
#[cfg(not(test))]
mod start {
    ctor::declarative::ctor! {
        #[ctor(unsafe)]
        fn start() {
            // In this order: what standard error is comes first, should anything below want to speak one day.
            crate::notice::remember();
            crate::config::remember();
            crate::memory::remember_mmap();
            crate::launch::remember_library();
            crate::process::watch_forks();
            if crate::config::variable(b"UTCP_INHERIT").is_some() {
                crate::guard::stand();
                crate::listen::expect_strangers();
                crate::relayed::inherit();
            }
        }
    }
}

/// Nothing in this crate panics (the lints above see to it), and were it to, unwinding into somebody
/// else's program would be worse than ending it.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::die()
}

#[cfg(all(not(test), target_arch = "x86_64"))]
macro_rules! jump {
    () => {
        "jmp {die}"
    };
}
#[cfg(all(not(test), target_arch = "aarch64"))]
macro_rules! jump {
    () => {
        "b {die}"
    };
}

// The prebuilt `core` was made for unwinding and names its personality routine in tables that are never used
// here. The symbol stays inside this library.
#[cfg(not(test))]
core::arch::global_asm!(
    ".globl rust_eh_personality",
    ".hidden rust_eh_personality",
    ".type rust_eh_personality, %function",
    "rust_eh_personality:",
    ".globl _Unwind_Resume",
    ".hidden _Unwind_Resume",
    ".type _Unwind_Resume, %function",
    "_Unwind_Resume:",
    jump!(),
    die = sym die_entry,
);

/// Where nobody ever comes.
#[cfg(not(test))]
extern "C" fn die_entry() -> ! {
    sys::die()
}
