//! Socket options: kept in the socket's shared words, where the engine reads them.
//!
//! One table says what each option is, and four things are made of it: `setsockopt`, `getsockopt`,
//! the replay onto a kernel socket (when a socket turns out to be the kernel's), and the import from one (when
//! a kernel socket begins to listen). An option that utcp can't serve makes a socket that is not yet
//! connected the kernel's, which then judges it; so a success is always true.
//!
//! - [`calls`]: the two calls, and [`judge`], which asks a kernel socket what it would say;
//! - [`copies`]: replay and import;
//! - [`keys`]: TCP_FASTOPEN_KEY, which is longer than the words of an option.

use core::ffi::{c_int, c_void};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use libc::socklen_t;
use utcp_abi::socket::{Options, congestion, option, quiet};

use crate::sys::{self, Errno, Sys};
use crate::{config, user};

mod calls;
mod copies;
mod judge;
mod keys;

pub use calls::{getsockopt, setsockopt, word};
pub use copies::{default_congestion, import, replay};
pub use keys::carry as keep_keys;

/// Not an errno: a value that utcp does not serve, while the kernel may.
const UNSERVED: Errno = Errno(0);

/// What SO_SNDBUF and SO_RCVBUF say before anybody set them.
const SNDBUF: u32 = 16_384;
const RCVBUF: u32 = 131_072;

/// What an option is.
#[derive(Clone, Copy)]
enum Meaning {
    /// A bit of [`Options::flags`].
    Flag(u32),
    /// A bit of [`Options::flags`] that takes 0 and 1 and no other number.
    Switch(u32),
    /// A bit of [`Options::quiet`]: what the kernel says of the value, it says.
    Quiet(u32),
    /// An int in a word, within bounds, with the value that an unset (0) word means.
    Int { word: fn(&Options) -> &AtomicU32, low: c_int, high: c_int, unset: c_int },
    /// A bit of [`Options::flags`] about Fast Open, 0 or 1, to be set before the connection begins.
    Early(u32),
    /// SO_SNDBUF and SO_RCVBUF: doubled and bounded.
    Buffer { word: fn(&Options) -> &AtomicU32, most: fn() -> u32, least: u32, unset: u32 },
    /// SO_SNDBUFFORCE and SO_RCVBUFFORCE: the same words without the bound, for the privileged.
    Force { word: fn(&Options) -> &AtomicU32, least: u32 },
    /// SO_RCVLOWAT: at most half of what the receive buffer can grow to.
    LowWater,
    /// SO_PRIORITY and SO_MARK: root may set any value, others only those from 0 to `free`.
    Privileged { word: fn(&Options) -> &AtomicU32, free: c_int },
    /// TCP_WINDOW_CLAMP: 0, or not less than half the smallest receive buffer.
    WindowClamp,
    /// SO_LINGER.
    Linger,
    /// SO_RCVTIMEO, SO_SNDTIMEO: true for the first.
    Timeout(bool),
    /// TCP_CONGESTION.
    Congestion,
    /// SO_MAX_PACING_RATE: 4 or 8 bytes.
    PacingRate,
    /// SO_PEEK_OFF: where the next peek begins, which peeks and reads move.
    PeekOff,
    /// SO_INCOMING_CPU: who sets it on a connection hears it again; it chooses among listeners alone.
    IncomingCpu,
    /// SO_BUSY_POLL: kept beside the options. How long a call looks for news before it sleeps is learned ([`crate::sleep`]).
    BusyPoll,
    /// TCP_LINGER2: at most two minutes, -1 for "not at all".
    Linger2,
    /// TCP_MAXSEG: 0 for "not said".
    MaxSeg,
    /// TCP_FASTOPEN: not once there is a connection.
    FastOpen,
    /// TCP_FASTOPEN_KEY: see [`keys`].
    FastOpenKey,
    /// IP_MTU_DISCOVER and IPV6_MTU_DISCOVER: true for the first; packets are never fragmented on their way.
    MtuDiscover(bool),
    /// The forms of SO_TIMESTAMP: off.
    Timestamp(usize),
    /// TCP_QUICKACK: on and off are both different from "not said".
    QuickAck,
    /// TCP_DEFER_ACCEPT: seconds, rounded as Linux does.
    Defer,
    /// IP_TOS and IPV6_TCLASS: true for the first; halves of one word.
    TypeOfService(bool),
    /// IP_TTL and IPV6_UNICAST_HOPS: true for the first; halves of one word.
    HopLimit(bool),
    /// Taken and given back as 0, whatever was set: so the kernel does it.
    Zero,
}

/// A line of the table.
struct Line {
    level: c_int,
    name: c_int,
    meaning: Meaning,
}

macro_rules! int {
    ($word:ident, $low:expr, $high:expr, $unset:expr) => {
        Meaning::Int { word: |options| &options.$word, low: $low, high: $high, unset: $unset }
    };
}

macro_rules! lines {
    ($($level:ident $name:ident => $meaning:expr;)*) => {
        [$(Line { level: libc::$level, name: libc::$name, meaning: $meaning }),*]
    };
}

/// The order is that of a replay.
static TABLE: [Line; 81] = lines! {
    SOL_SOCKET SO_REUSEADDR => Meaning::Flag(option::REUSEADDR);
    SOL_SOCKET SO_REUSEPORT => Meaning::Flag(option::REUSEPORT);
    SOL_SOCKET SO_KEEPALIVE => Meaning::Flag(option::KEEPALIVE);
    SOL_SOCKET SO_BROADCAST => Meaning::Flag(option::BROADCAST);
    SOL_SOCKET SO_DONTROUTE => Meaning::Flag(option::DONTROUTE);
    SOL_SOCKET SO_OOBINLINE => Meaning::Flag(option::OOBINLINE);
    SOL_SOCKET SO_ZEROCOPY => Meaning::Switch(option::ZEROCOPY);
    SOL_SOCKET SO_TIMESTAMP => Meaning::Timestamp(4);
    SOL_SOCKET SO_TIMESTAMPNS => Meaning::Timestamp(4);
    SOL_SOCKET SO_TIMESTAMPING => Meaning::Timestamp(8);
    SOL_SOCKET SO_TIMESTAMP_NEW => Meaning::Timestamp(4);
    SOL_SOCKET SO_TIMESTAMPNS_NEW => Meaning::Timestamp(4);
    SOL_SOCKET SO_TIMESTAMPING_NEW => Meaning::Timestamp(8);
    SOL_SOCKET SO_SNDBUF => Meaning::Buffer { word: |options| &options.sndbuf, most: config::sndbuf_max, least: 4608, unset: SNDBUF };
    SOL_SOCKET SO_RCVBUF => Meaning::Buffer { word: |options| &options.rcvbuf, most: config::rcvbuf_max, least: 2304, unset: RCVBUF };
    SOL_SOCKET SO_SNDBUFFORCE => Meaning::Force { word: |options| &options.sndbuf, least: 4608 };
    SOL_SOCKET SO_RCVBUFFORCE => Meaning::Force { word: |options| &options.rcvbuf, least: 2304 };
    SOL_SOCKET SO_RCVLOWAT => Meaning::LowWater;
    SOL_SOCKET SO_INCOMING_CPU => Meaning::IncomingCpu;
    SOL_SOCKET SO_PEEK_OFF => Meaning::PeekOff;
    SOL_SOCKET SO_PRIORITY => Meaning::Privileged { word: |options| &options.priority, free: 6 };
    SOL_SOCKET SO_MARK => Meaning::Privileged { word: |options| &options.mark, free: -1 };
    SOL_SOCKET SO_LINGER => Meaning::Linger;
    SOL_SOCKET SO_RCVTIMEO => Meaning::Timeout(true);
    SOL_SOCKET SO_SNDTIMEO => Meaning::Timeout(false);
    SOL_SOCKET SO_MAX_PACING_RATE => Meaning::PacingRate;
    SOL_SOCKET SO_SELECT_ERR_QUEUE => Meaning::Quiet(quiet::SELECT_ERR_QUEUE);
    SOL_SOCKET SO_DEBUG => Meaning::Quiet(1 << 1);
    SOL_SOCKET SO_NO_CHECK => Meaning::Quiet(1 << 2);
    SOL_SOCKET SO_RXQ_OVFL => Meaning::Quiet(1 << 3);
    SOL_SOCKET SO_WIFI_STATUS => Meaning::Quiet(1 << 4);
    SOL_SOCKET SO_NOFCS => Meaning::Quiet(1 << 5);
    SOL_SOCKET SO_RCVMARK => Meaning::Quiet(1 << 6);
    SOL_SOCKET SO_PREFER_BUSY_POLL => Meaning::Quiet(1 << 25);
    SOL_SOCKET SO_BUSY_POLL => Meaning::BusyPoll;
    SOL_SOCKET SO_BSDCOMPAT => Meaning::Zero;
    IPPROTO_TCP TCP_NODELAY => Meaning::Flag(option::NODELAY);
    IPPROTO_TCP TCP_CORK => Meaning::Flag(option::CORK);
    IPPROTO_TCP TCP_QUICKACK => Meaning::QuickAck;
    IPPROTO_TCP TCP_KEEPIDLE => int!(keepidle_s, 1, 32767, 7200);
    IPPROTO_TCP TCP_KEEPINTVL => int!(keepintvl_s, 1, 32767, 75);
    IPPROTO_TCP TCP_KEEPCNT => int!(keepcnt, 1, 127, 9);
    IPPROTO_TCP TCP_SYNCNT => int!(syncnt, 1, 127, 6);
    IPPROTO_TCP TCP_LINGER2 => Meaning::Linger2;
    IPPROTO_TCP TCP_USER_TIMEOUT => int!(user_timeout_ms, 0, c_int::MAX, 0);
    IPPROTO_TCP TCP_DEFER_ACCEPT => Meaning::Defer;
    IPPROTO_TCP TCP_MAXSEG => Meaning::MaxSeg;
    IPPROTO_TCP TCP_NOTSENT_LOWAT => int!(notsent_lowat, c_int::MIN, c_int::MAX, 0);
    IPPROTO_TCP TCP_CONGESTION => Meaning::Congestion;
    IPPROTO_TCP TCP_FASTOPEN => Meaning::FastOpen;
    IPPROTO_TCP TCP_FASTOPEN_KEY => Meaning::FastOpenKey;
    IPPROTO_TCP TCP_FASTOPEN_CONNECT => Meaning::Early(option::FASTOPEN_CONNECT);
    IPPROTO_TCP TCP_FASTOPEN_NO_COOKIE => Meaning::Early(option::FASTOPEN_NO_COOKIE);
    IPPROTO_TCP TCP_WINDOW_CLAMP => Meaning::WindowClamp;
    IPPROTO_TCP TCP_INQ => Meaning::Switch(option::INQ);
    IPPROTO_IP IP_TOS => Meaning::TypeOfService(true);
    IPPROTO_IP IP_TTL => Meaning::HopLimit(true);
    IPPROTO_IP IP_FREEBIND => Meaning::Flag(option::FREEBIND);
    IPPROTO_IP IP_BIND_ADDRESS_NO_PORT => Meaning::Flag(option::BIND_ADDRESS_NO_PORT);
    IPPROTO_IP IP_MTU_DISCOVER => Meaning::MtuDiscover(true);
    IPPROTO_IP IP_RECVERR => Meaning::Quiet(1 << 8);
    IPPROTO_IP IP_PKTINFO => Meaning::Quiet(1 << 9);
    IPPROTO_IP IP_RECVOPTS => Meaning::Quiet(1 << 10);
    IPPROTO_IP IP_RETOPTS => Meaning::Quiet(1 << 11);
    IPPROTO_IP IP_RECVTTL => Meaning::Quiet(1 << 12);
    IPPROTO_IP IP_RECVTOS => Meaning::Quiet(1 << 13);
    IPPROTO_IP IP_PASSSEC => Meaning::Quiet(1 << 14);
    IPPROTO_IP IP_RECVORIGDSTADDR => Meaning::Quiet(1 << 15);
    IPPROTO_IP IP_CHECKSUM => Meaning::Quiet(1 << 16);
    IPPROTO_IPV6 IPV6_V6ONLY => Meaning::Flag(option::V6ONLY);
    IPPROTO_IPV6 IPV6_TCLASS => Meaning::TypeOfService(false);
    IPPROTO_IPV6 IPV6_UNICAST_HOPS => Meaning::HopLimit(false);
    IPPROTO_IPV6 IPV6_MTU_DISCOVER => Meaning::MtuDiscover(false);
    IPPROTO_IPV6 IPV6_RECVERR => Meaning::Quiet(1 << 17);
    IPPROTO_IPV6 IPV6_RECVPKTINFO => Meaning::Quiet(1 << 18);
    IPPROTO_IPV6 IPV6_2292PKTINFO => Meaning::Quiet(1 << 19);
    IPPROTO_IPV6 IPV6_RECVHOPLIMIT => Meaning::Quiet(1 << 20);
    IPPROTO_IPV6 IPV6_RECVTCLASS => Meaning::Quiet(1 << 21);
    IPPROTO_IPV6 IPV6_RECVPATHMTU => Meaning::Quiet(1 << 22);
    IPPROTO_IPV6 IPV6_RECVORIGDSTADDR => Meaning::Quiet(1 << 23);
    IPPROTO_IPV6 IPV6_DONTFRAG => Meaning::Quiet(1 << 24);
};

fn line(level: c_int, name: c_int) -> Option<&'static Line> {
    TABLE.iter().find(|line| line.level == level && line.name == name)
}

/// An int argument of `setsockopt`. The options of IPv4 take a byte for one, too, and those of IPv6 take no place for 0.
///
/// # Safety
/// `value` has `len` readable bytes.
unsafe fn int(level: c_int, value: *const c_void, len: socklen_t) -> Sys<c_int> {
    match len as usize {
        0 if level == libc::IPPROTO_IP => Ok(0),
        // SAFETY: the length was checked.
        1..4 if level == libc::IPPROTO_IP => unsafe { user::fetch(value.cast::<u8>()) }.map(c_int::from),
        0..4 => Err(Errno(libc::EINVAL)),
        _ if level == libc::IPPROTO_IPV6 && value.is_null() => Ok(0),
        // SAFETY: the length was checked.
        _ => unsafe { user::fetch(value.cast::<c_int>()) },
    }
}

/// A structure argument of `setsockopt`.
///
/// # Safety
/// `value` has `len` readable bytes; every bit pattern of `T` is valid.
unsafe fn structure<T: Copy>(value: *const c_void, len: socklen_t) -> Sys<T> {
    if (len as usize) < size_of::<T>() {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: the length was checked.
    unsafe { user::fetch(value.cast::<T>()) }
}

/// Other numbers of the same options.
fn alias(level: c_int, name: c_int) -> c_int {
    match (level, name) {
        // The forms with 64-bit time are the ordinary ones here.
        (libc::SOL_SOCKET, 66) => libc::SO_RCVTIMEO,
        (libc::SOL_SOCKET, 67) => libc::SO_SNDTIMEO,
        _ => name,
    }
}

fn put_flag(options: &Options, bit: u32, on: bool) {
    if on {
        options.flags.fetch_or(bit, Relaxed);
    } else {
        options.flags.fetch_and(!bit, Relaxed);
    }
}

/// # Safety
/// `value` has `len` readable bytes.
unsafe fn store(options: &Options, line: &Line, value: *const c_void, len: socklen_t) -> Sys<()> {
    if line.level == libc::SOL_SOCKET {
        // Linux asks for an int before it knows whether the option is one (sk_setsockopt).
        // SAFETY: the caller's promise.
        unsafe { int(line.level, value, len) }?;
    }
    match line.meaning {
        Meaning::Linger => {
            // SAFETY: the caller's promise.
            let linger: libc::linger = unsafe { structure(value, len) }?;
            options.linger_s.store(linger.l_linger.max(0) as u32, Relaxed);
            put_flag(options, option::LINGER, linger.l_onoff != 0);
            return Ok(());
        }
        Meaning::Timeout(receive) => {
            // SAFETY: the caller's promise.
            let time: libc::timeval = unsafe { structure(value, len) }?;
            if !(0..1_000_000).contains(&time.tv_usec) {
                return Err(Errno(libc::EDOM));
            }
            let us =
                (time.tv_sec.max(0) as u64).saturating_mul(1_000_000).saturating_add(time.tv_usec as u64);
            let word = if receive { &options.rcvtimeo_us } else { &options.sndtimeo_us };
            word.store(if time.tv_sec < 0 { 1 } else { us }, Relaxed);
            return Ok(());
        }
        Meaning::Flag(option::FREEBIND) if len == 0 => return Err(Errno(libc::EINVAL)),
        // SAFETY: the caller's promise.
        Meaning::Congestion => return unsafe { set_congestion(options, value, len) },
        Meaning::PacingRate if len as usize == size_of::<u64>() => {
            // SAFETY: the caller's promise.
            let rate: u64 = unsafe { structure(value, len) }?;
            options.max_pacing.store(!rate, Relaxed);
            return Ok(());
        }
        Meaning::Quiet(_) | Meaning::PeekOff => {
            // SAFETY: the caller's promise.
            unsafe { judge::set(line, value, len) }?;
            if line.level == libc::IPPROTO_IPV6 && (len as usize) < size_of::<c_int>() {
                // What the kernel takes of too few bytes is a 0 (do_ipv6_setsockopt).
                return store_int(options, line.meaning, 0);
            }
        }
        // SAFETY: the caller's promise.
        Meaning::Force { .. } => unsafe { judge::set(line, value, len) }?,
        _ => {}
    }
    // SAFETY: the caller's promise.
    store_int(options, line.meaning, unsafe { int(line.level, value, len) }?)
}

fn store_int(options: &Options, meaning: Meaning, value: c_int) -> Sys<()> {
    match meaning {
        Meaning::Flag(bit) => put_flag(options, bit, value != 0),
        Meaning::Switch(_) | Meaning::Early(_) if !(0..=1).contains(&value) => {
            return Err(Errno(libc::EINVAL));
        }
        Meaning::Switch(bit) | Meaning::Early(bit) => put_flag(options, bit, value != 0),
        Meaning::Quiet(bit) => {
            let _ = options
                .quiet
                .fetch_update(Relaxed, Relaxed, |old| Some(if value == 0 { old & !bit } else { old | bit }));
        }
        Meaning::Int { word, low, high, .. } => {
            if value < low || value > high {
                return Err(Errno(libc::EINVAL));
            }
            word(options).store(value as u32, Relaxed);
        }
        Meaning::Buffer { word, most, least, .. } => {
            let doubled = (value as u32).min(most()).saturating_mul(2).max(least);
            word(options).store(doubled, Relaxed);
        }
        Meaning::Force { word, least } => {
            word(options).store((value.max(0) as u32).saturating_mul(2).max(least), Relaxed);
        }
        Meaning::PacingRate if value == -1 => options.max_pacing.store(0, Relaxed),
        Meaning::PacingRate => options.max_pacing.store(!u64::from(value as u32), Relaxed),
        Meaning::PeekOff => options.peek_off.store((value as u32).wrapping_add(1), Relaxed),
        Meaning::IncomingCpu => options.incoming_cpu.store((value as u32).wrapping_add(2), Relaxed),
        Meaning::Linger2 => options.linger2_s.store(value.clamp(-1, 120), Relaxed),
        Meaning::MaxSeg if value != 0 && !(88..=32767).contains(&value) => return Err(Errno(libc::EINVAL)),
        Meaning::MaxSeg => options.maxseg.store(value as u32, Relaxed),
        Meaning::FastOpen if value < 0 => return Err(Errno(libc::EINVAL)),
        Meaning::FastOpen => options.fastopen.store((value as u32).min(config::backlog_max()), Relaxed),
        Meaning::MtuDiscover(_) if !(0..=5).contains(&value) => return Err(Errno(libc::EINVAL)),
        // Only WANT and DO tell what we do: packets that must not be fragmented, sized by what the path takes.
        Meaning::MtuDiscover(_) if !(1..=2).contains(&value) => return Err(UNSERVED),
        Meaning::MtuDiscover(v4) => put_half(&options.mtu_discover, v4, value as u32 + 1, 8),
        Meaning::Timestamp(_) if value != 0 => return Err(UNSERVED),
        Meaning::Privileged { word, free } => {
            if !(0..=free).contains(&value) && sys::geteuid() != 0 {
                return Err(Errno(libc::EPERM));
            }
            word(options).store(value as u32, Relaxed);
        }
        Meaning::WindowClamp => {
            let bytes = if value == 0 { 0 } else { value.max(1152) };
            options.window_clamp.store(bytes as u32, Relaxed);
        }
        Meaning::LowWater => {
            let value = if value < 0 { c_int::MAX } else { value };
            let buffer = match options.rcvbuf.load(Relaxed) {
                0 => config::rcvbuf_limit(),
                set => set,
            };
            options.rcvlowat.store((value as u32).min(buffer / 2).max(1), Relaxed);
        }
        Meaning::QuickAck => {
            put_flag(options, option::QUICKACK, value != 0);
            put_flag(options, option::NO_QUICKACK, value == 0);
        }
        Meaning::Defer => options.defer_accept_s.store(rounded_defer(value.max(0) as u32), Relaxed),
        Meaning::TypeOfService(v4) => {
            if !v4 && !(-1..=255).contains(&value) {
                return Err(Errno(libc::EINVAL));
            }
            // The lowest two bits are the stack's (ECN).
            let value = if v4 { value } else { value.max(0) };
            put_half(&options.tos, v4, value as u32 & 0xfc, 8);
        }
        Meaning::HopLimit(v4) => {
            if !(-1..=255).contains(&value) || v4 && value == 0 {
                return Err(Errno(libc::EINVAL));
            }
            // IPv6 takes 0, which must differ from "not said".
            let number = if v4 { value.max(0) } else { value.wrapping_add(1) };
            put_half(&options.ttl, v4, number as u32, 16);
        }
        Meaning::Timestamp(_)
        | Meaning::Zero
        | Meaning::BusyPoll
        | Meaning::Linger
        | Meaning::Timeout(_)
        | Meaning::FastOpenKey
        | Meaning::Congestion => {}
    }
    Ok(())
}

/// Sets the lower (or upper) part of `word`, the parts `shift` bits apart.
fn put_half(word: &AtomicU32, lower: bool, value: u32, shift: u32) {
    let mask = (1u32 << shift).wrapping_sub(1);
    let _ = word.fetch_update(Relaxed, Relaxed, |old| {
        Some(if lower { old & !mask | value } else { old & mask | value << shift })
    });
}

/// TCP_DEFER_ACCEPT counts retransmissions: seconds become what so many of them take.
fn rounded_defer(seconds: u32) -> u32 {
    if seconds == 0 {
        return 0;
    }
    let (mut period, mut timeout, mut count) = (1u32, 1u32, 1u32);
    while seconds > period && count < 255 {
        count = count.wrapping_add(1);
        timeout = (timeout * 2).min(120);
        period = period.saturating_add(timeout);
    }
    period
}

/// # Safety
/// `value` has `len` readable bytes.
unsafe fn set_congestion(options: &Options, value: *const c_void, len: socklen_t) -> Sys<()> {
    if len == 0 {
        return Err(Errno(libc::EINVAL));
    }
    let mut bytes = [0u8; 15];
    // SAFETY: the caller's promise; the array is as long.
    unsafe { user::copy_in(value.cast(), bytes.as_mut_ptr(), (len as usize).min(15)) }?;
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let number = match name {
        b"cubic" => congestion::CUBIC,
        b"reno" => congestion::RENO,
        b"bbr" => congestion::BBR,
        _ => return Err(Errno(libc::ENOENT)),
    };
    options.congestion.store(number, Relaxed);
    Ok(())
}

fn load_int(options: &Options, meaning: Meaning) -> c_int {
    let or = |value: u32, unset: c_int| if value == 0 { unset } else { value as c_int };
    match meaning {
        Meaning::Flag(bit) | Meaning::Switch(bit) | Meaning::Early(bit) => c_int::from(options.has(bit)),
        Meaning::Quiet(bit) => c_int::from(options.quiet.load(Relaxed) & bit != 0),
        Meaning::PeekOff => options.peek_off.load(Relaxed).wrapping_sub(1) as c_int,
        Meaning::IncomingCpu => match options.incoming_cpu.load(Relaxed) {
            0 => -1,
            set => set.wrapping_sub(2) as c_int,
        },
        Meaning::Linger2 => or(options.linger2_s.load(Relaxed) as u32, 60),
        Meaning::MaxSeg => or(options.maxseg.load(Relaxed), 536),
        Meaning::FastOpen => options.fastopen.load(Relaxed) as c_int,
        Meaning::MtuDiscover(v4) => match load_half(&options.mtu_discover, v4, 8) {
            0 => 1,
            set => set as c_int - 1,
        },
        Meaning::Int { word, unset, .. } => or(word(options).load(Relaxed), unset),
        Meaning::Buffer { word, unset, .. } => or(word(options).load(Relaxed), unset as c_int),
        Meaning::Privileged { word, .. } => word(options).load(Relaxed) as c_int,
        Meaning::WindowClamp => options.window_clamp.load(Relaxed) as c_int,
        Meaning::LowWater => or(options.rcvlowat.load(Relaxed), 1),
        Meaning::QuickAck => c_int::from(!options.has(option::NO_QUICKACK)),
        Meaning::Defer => options.defer_accept_s.load(Relaxed) as c_int,
        Meaning::TypeOfService(true) => (options.tos.load(Relaxed) & 0xff) as c_int,
        Meaning::TypeOfService(false) => (options.tos.load(Relaxed) >> 8 & 0xff) as c_int,
        Meaning::HopLimit(true) => or(options.ttl.load(Relaxed) & 0xffff, 64),
        Meaning::HopLimit(false) => match options.ttl.load(Relaxed) >> 16 {
            0 => 64,
            set => set as c_int - 1,
        },
        Meaning::PacingRate
        | Meaning::Force { .. }
        | Meaning::Timestamp(_)
        | Meaning::Zero
        | Meaning::BusyPoll
        | Meaning::Linger
        | Meaning::Timeout(_)
        | Meaning::FastOpenKey
        | Meaning::Congestion => 0,
    }
}

fn load_half(word: &AtomicU32, lower: bool, shift: u32) -> u32 {
    let value = word.load(Relaxed);
    if lower { value & (1u32 << shift).wrapping_sub(1) } else { value >> shift }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defer_is_rounded_as_linux_does() {
        for (asked, given) in
            [(0, 0), (1, 1), (2, 3), (3, 3), (5, 7), (30, 31), (31, 31), (32, 63), (70_000, 29_887)]
        {
            assert_eq!(rounded_defer(asked), given, "{asked}");
        }
    }

    #[test]
    fn halves_do_not_touch_each_other() {
        let word = AtomicU32::new(0);
        put_half(&word, true, 0x10, 8);
        put_half(&word, false, 0x20, 8);
        put_half(&word, true, 0x08, 8);
        assert_eq!((load_half(&word, true, 8), load_half(&word, false, 8)), (0x08, 0x20));
    }

    /// The kernel is asked the same: defaults, then each int option set to a small value.
    #[test]
    fn answers_as_the_kernel_does() {
        let fd = sys::socket(libc::AF_INET6, libc::SOCK_STREAM, 0).expect("socket");
        let options = Options::default();
        for line in &TABLE {
            let plain = !matches!(
                line.meaning,
                Meaning::Linger
                    | Meaning::Timeout(_)
                    | Meaning::Congestion
                    | Meaning::PacingRate
                    | Meaning::Force { .. }
                    | Meaning::FastOpenKey
                    | Meaning::BusyPoll
                    | Meaning::Timestamp(_)
            );
            if !plain {
                continue;
            }
            let (level, name) = (line.level, line.name);
            let theirs = sys::getsockopt_int(fd, level, name).expect("get");
            assert_eq!(load_int(&options, line.meaning), theirs, "default of {level}/{name}");
            for value in [1, 5, 300, -1] {
                if store_int(&Options::default(), line.meaning, value) == Err(UNSERVED) {
                    continue;
                }
                let set = sys::setsockopt(fd, level, name, &value);
                if matches!(line.meaning, Meaning::Zero) || set == Err(Errno(libc::EPERM)) {
                    continue;
                }
                assert_eq!(store_int(&options, line.meaning, value), set, "{level}/{name} = {value}");
                let theirs = sys::getsockopt_int(fd, level, name).expect("get");
                assert_eq!(load_int(&options, line.meaning), theirs, "{level}/{name} after {value}");
            }
        }
    }
}
