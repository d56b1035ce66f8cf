//! The options of a kernel socket: set as ours were, or learned from it.

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use utcp_abi::socket::{Options, congestion, option};

use super::{Line, Meaning, TABLE, keys, load_half, load_int, put_flag, store_int};
use crate::handle::Sock;
use crate::sys::{self, Sys};

/// Sets on kernel socket `fd` what was set on ours.
pub fn replay(sock: &Sock, fd: c_int, inet6: bool) {
    for line in &TABLE {
        if line.level == libc::IPPROTO_IPV6 && !inet6 {
            continue;
        }
        replay_one(&sock.shared.options, line, fd);
    }
    keys::replay(sock, fd);
    if let us @ 1.. = sock.shared.busy_poll.load(Relaxed) {
        let _ = sys::setsockopt(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, &us.wrapping_sub(1));
    }
}

fn replay_one(options: &Options, line: &Line, fd: c_int) {
    let value = match line.meaning {
        Meaning::Linger if options.has(option::LINGER) => {
            let linger = libc::linger { l_onoff: 1, l_linger: options.linger_s.load(Relaxed) as c_int };
            let _ = sys::setsockopt(fd, line.level, line.name, &linger);
            return;
        }
        Meaning::Timeout(receive) => {
            let us = if receive { &options.rcvtimeo_us } else { &options.sndtimeo_us }.load(Relaxed);
            if us != 0 {
                let time =
                    libc::timeval { tv_sec: (us / 1_000_000) as i64, tv_usec: (us % 1_000_000) as i64 };
                let _ = sys::setsockopt(fd, line.level, line.name, &time);
            }
            return;
        }
        Meaning::Congestion => {
            match options.congestion.load(Relaxed) {
                congestion::CUBIC => drop(sys::setsockopt(fd, line.level, line.name, b"cubic")),
                congestion::RENO => drop(sys::setsockopt(fd, line.level, line.name, b"reno")),
                congestion::BBR => drop(sys::setsockopt(fd, line.level, line.name, b"bbr")),
                _ => {}
            }
            return;
        }
        Meaning::QuickAck if options.has(option::NO_QUICKACK) => 0,
        Meaning::QuickAck if !options.has(option::QUICKACK) => return,
        Meaning::PacingRate => {
            match !options.max_pacing.load(Relaxed) {
                u64::MAX => {}
                rate => drop(sys::setsockopt(fd, line.level, line.name, &rate)),
            }
            return;
        }
        Meaning::PeekOff if options.peek_off.load(Relaxed) == 0 => return,
        Meaning::IncomingCpu if options.incoming_cpu.load(Relaxed) == 0 => return,
        Meaning::Linger2 => options.linger2_s.load(Relaxed),
        Meaning::MaxSeg => options.maxseg.load(Relaxed) as c_int,
        Meaning::MtuDiscover(v4) if load_half(&options.mtu_discover, v4, 8) == 0 => return,
        // The kernel doubles it again.
        Meaning::Buffer { word, .. } => (word(options).load(Relaxed) / 2) as c_int,
        Meaning::Int { word, .. } => word(options).load(Relaxed) as c_int,
        Meaning::HopLimit(v4) if load_half(&options.ttl, v4, 16) == 0 => return,
        Meaning::HopLimit(false) => load_int(options, line.meaning),
        Meaning::Flag(option::V6ONLY) if !options.has(option::V6ONLY) => return,
        Meaning::LowWater => options.rcvlowat.load(Relaxed) as c_int,
        meaning => load_int(options, meaning),
    };
    let zero_counts = matches!(
        line.meaning,
        Meaning::QuickAck | Meaning::HopLimit(false) | Meaning::PeekOff | Meaning::IncomingCpu
    );
    if value != 0 || zero_counts {
        let _ = sys::setsockopt(fd, line.level, line.name, &value);
    }
}

/// Learns the options of kernel socket `fd`, which listens: those whom the engine accepts inherit them.
pub fn import(sock: &Sock, fd: c_int, inet6: bool) {
    let options = &sock.shared.options;
    options.reset();
    keys::import(sock, fd);
    if let Ok(us) = sys::getsockopt_int(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL) {
        sock.shared.busy_poll.store((us as u32).wrapping_add(1), Relaxed);
    }
    // Buffers count only if somebody set them; the kernel says so in bits (send 1, receive 2).
    const SO_BUF_LOCK: c_int = 72;
    let locked = sys::getsockopt_int(fd, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(0);
    for line in &TABLE {
        let skip = match line.meaning {
            Meaning::Buffer { .. } => locked & if line.name == libc::SO_SNDBUF { 1 } else { 2 } == 0,
            // What the kernel says then may be its own default.
            Meaning::MaxSeg | Meaning::Zero | Meaning::QuickAck | Meaning::Force { .. } => true,
            Meaning::FastOpenKey | Meaning::BusyPoll => true,
            _ => line.level == libc::IPPROTO_IPV6 && !inet6,
        };
        if !skip {
            import_one(options, line, fd);
        }
    }
}

/// TCP_CONGESTION of every socket of the kernel that asks for nothing else.
fn default_of_kernel() -> Sys<[u8; 16]> {
    let fresh = sys::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)?;
    let name = sys::getsockopt(fresh, libc::IPPROTO_TCP, libc::TCP_CONGESTION, [0u8; 16]);
    let _ = sys::close(fresh);
    name
}

/// The kernel's BBR is another one than ours: whoever wants ours has to have asked for it.
fn bbr_is_the_default() -> bool {
    default_of_kernel().is_ok_and(|name| name.starts_with(b"bbr\0"))
}

/// The controller of a socket with [`congestion::DEFAULT`]: the system's, if the engine has it, else CUBIC.
pub fn default_congestion() -> u32 {
    let is_reno = default_of_kernel().is_ok_and(|name| name.starts_with(b"reno\0"));
    if is_reno { congestion::RENO } else { congestion::CUBIC }
}

fn import_one(options: &Options, line: &Line, fd: c_int) {
    match line.meaning {
        Meaning::Linger => {
            let none = libc::linger { l_onoff: 0, l_linger: 0 };
            if let Ok(linger) = sys::getsockopt(fd, line.level, line.name, none) {
                options.linger_s.store(linger.l_linger as u32, Relaxed);
                put_flag(options, option::LINGER, linger.l_onoff != 0);
            }
        }
        Meaning::Timeout(receive) => {
            let none = libc::timeval { tv_sec: 0, tv_usec: 0 };
            if let Ok(time) = sys::getsockopt(fd, line.level, line.name, none) {
                let word = if receive { &options.rcvtimeo_us } else { &options.sndtimeo_us };
                word.store(
                    (time.tv_sec as u64).wrapping_mul(1_000_000).wrapping_add(time.tv_usec as u64),
                    Relaxed,
                );
            }
        }
        Meaning::Congestion => {
            if let Ok(name) = sys::getsockopt(fd, line.level, line.name, [0u8; 16]) {
                let number = match () {
                    () if name.starts_with(b"reno\0") => congestion::RENO,
                    () if name.starts_with(b"cubic\0") => congestion::CUBIC,
                    () if name.starts_with(b"bbr\0") && !bbr_is_the_default() => congestion::BBR,
                    () => congestion::DEFAULT,
                };
                options.congestion.store(number, Relaxed);
            }
        }
        Meaning::PacingRate => {
            if let Ok(rate) = sys::getsockopt(fd, line.level, line.name, u64::MAX) {
                options.max_pacing.store(!rate, Relaxed);
            }
        }
        Meaning::Buffer { word, .. } => {
            if let Ok(value) = sys::getsockopt_int(fd, line.level, line.name) {
                word(options).store(value as u32, Relaxed);
            }
        }
        meaning => {
            if let Ok(value) = sys::getsockopt_int(fd, line.level, line.name) {
                let default = load_int(options, meaning);
                if value != default {
                    let _ = store_int(options, meaning, value);
                }
            }
        }
    }
}
