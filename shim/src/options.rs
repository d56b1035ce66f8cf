//! Socket options: kept in the socket's shared words, where the engine reads them.
//!
//! One table says what each option is, and four things are made of it: `setsockopt`, `getsockopt`,
//! the replay onto a kernel socket (when a socket turns out to be the kernel's), and the import from one (when
//! a kernel socket begins to listen). An option that utcp can't serve makes a socket that is not yet
//! connected the kernel's, which then judges it; so a success is always true.

use core::ffi::{c_int, c_void};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use libc::socklen_t;
use utcp_abi::region::LogCode;
use utcp_abi::socket::{OpCode, Options, congestion, intent, option, status};

use crate::fd_table::Kind;
use crate::handle::{self, Sock};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{config, connect, errno, fast_open, info, listen, log, relayed, swap};

/// What SO_SNDBUF and SO_RCVBUF say before anybody set them.
const SNDBUF: u32 = 16_384;
const RCVBUF: u32 = 131_072;

/// What an option is.
#[derive(Clone, Copy)]
enum Meaning {
    /// A bit of [`Options::flags`].
    Flag(u32),
    /// An int in a word, within bounds, with the value that an unset (0) word means.
    Int { word: fn(&Options) -> &AtomicU32, low: c_int, high: c_int, unset: c_int },
    /// A bit of [`Options::flags`] about Fast Open, 0 or 1, to be set before the connection begins.
    Early(u32),
    /// SO_SNDBUF and SO_RCVBUF: doubled and bounded.
    Buffer { word: fn(&Options) -> &AtomicU32, most: fn() -> u32, least: u32, unset: u32 },
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
    /// TCP_QUICKACK: on and off are both different from "not said".
    QuickAck,
    /// TCP_DEFER_ACCEPT: seconds, rounded as Linux does.
    Defer,
    /// IP_TOS and IPV6_TCLASS: true for the first; halves of one word.
    TypeOfService(bool),
    /// IP_TTL and IPV6_UNICAST_HOPS: true for the first; halves of one word.
    HopLimit(bool),
    /// Taken and given back as set to 0, which is what it is.
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
static TABLE: [Line; 44] = lines! {
    SOL_SOCKET SO_REUSEADDR => Meaning::Flag(option::REUSEADDR);
    SOL_SOCKET SO_REUSEPORT => Meaning::Flag(option::REUSEPORT);
    SOL_SOCKET SO_KEEPALIVE => Meaning::Flag(option::KEEPALIVE);
    SOL_SOCKET SO_BROADCAST => Meaning::Flag(option::BROADCAST);
    SOL_SOCKET SO_DONTROUTE => Meaning::Flag(option::DONTROUTE);
    SOL_SOCKET SO_OOBINLINE => Meaning::Flag(option::OOBINLINE);
    SOL_SOCKET SO_TIMESTAMP => Meaning::Flag(option::TIMESTAMP);
    SOL_SOCKET SO_SNDBUF => Meaning::Buffer { word: |options| &options.sndbuf, most: config::sndbuf_max, least: 4608, unset: SNDBUF };
    SOL_SOCKET SO_RCVBUF => Meaning::Buffer { word: |options| &options.rcvbuf, most: config::rcvbuf_max, least: 2304, unset: RCVBUF };
    SOL_SOCKET SO_RCVLOWAT => Meaning::LowWater;
    SOL_SOCKET SO_PRIORITY => Meaning::Privileged { word: |options| &options.priority, free: 6 };
    SOL_SOCKET SO_MARK => Meaning::Privileged { word: |options| &options.mark, free: -1 };
    SOL_SOCKET SO_LINGER => Meaning::Linger;
    SOL_SOCKET SO_RCVTIMEO => Meaning::Timeout(true);
    SOL_SOCKET SO_SNDTIMEO => Meaning::Timeout(false);
    SOL_SOCKET SO_NO_CHECK => Meaning::Zero;
    SOL_SOCKET SO_BSDCOMPAT => Meaning::Zero;
    SOL_SOCKET SO_DEBUG => Meaning::Zero;
    IPPROTO_TCP TCP_NODELAY => Meaning::Flag(option::NODELAY);
    IPPROTO_TCP TCP_CORK => Meaning::Flag(option::CORK);
    IPPROTO_TCP TCP_QUICKACK => Meaning::QuickAck;
    IPPROTO_TCP TCP_KEEPIDLE => int!(keepidle_s, 1, 32767, 7200);
    IPPROTO_TCP TCP_KEEPINTVL => int!(keepintvl_s, 1, 32767, 75);
    IPPROTO_TCP TCP_KEEPCNT => int!(keepcnt, 1, 127, 9);
    IPPROTO_TCP TCP_SYNCNT => int!(syncnt, 1, 127, 6);
    IPPROTO_TCP TCP_USER_TIMEOUT => int!(user_timeout_ms, 0, c_int::MAX, 0);
    IPPROTO_TCP TCP_DEFER_ACCEPT => Meaning::Defer;
    IPPROTO_TCP TCP_MAXSEG => int!(maxseg, 88, 32767, 536);
    IPPROTO_TCP TCP_NOTSENT_LOWAT => int!(notsent_lowat, c_int::MIN, c_int::MAX, 0);
    IPPROTO_TCP TCP_CONGESTION => Meaning::Congestion;
    IPPROTO_TCP TCP_FASTOPEN => int!(fastopen, 0, 65535, 0);
    IPPROTO_TCP TCP_FASTOPEN_CONNECT => Meaning::Early(option::FASTOPEN_CONNECT);
    IPPROTO_TCP TCP_FASTOPEN_NO_COOKIE => Meaning::Early(option::FASTOPEN_NO_COOKIE);
    IPPROTO_TCP TCP_WINDOW_CLAMP => Meaning::WindowClamp;
    IPPROTO_IP IP_TOS => Meaning::TypeOfService(true);
    IPPROTO_IP IP_TTL => Meaning::HopLimit(true);
    IPPROTO_IP IP_FREEBIND => Meaning::Flag(option::FREEBIND);
    IPPROTO_IP IP_RECVERR => Meaning::Zero;
    IPPROTO_IP IP_PKTINFO => Meaning::Zero;
    IPPROTO_IPV6 IPV6_V6ONLY => Meaning::Flag(option::V6ONLY);
    IPPROTO_IPV6 IPV6_TCLASS => Meaning::TypeOfService(false);
    IPPROTO_IPV6 IPV6_UNICAST_HOPS => Meaning::HopLimit(false);
    IPPROTO_IPV6 IPV6_RECVERR => Meaning::Zero;
    IPPROTO_IPV6 IPV6_RECVPKTINFO => Meaning::Zero;
};

fn line(level: c_int, name: c_int) -> Option<&'static Line> {
    TABLE.iter().find(|line| line.level == level && line.name == name)
}

/// An int argument of `setsockopt`.
///
/// # Safety
/// `value` has `len` readable bytes.
unsafe fn int(value: *const c_void, len: socklen_t) -> Sys<c_int> {
    if value.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    if (len as usize) < size_of::<c_int>() {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: the length was checked.
    Ok(unsafe { value.cast::<c_int>().read_unaligned() })
}

/// A structure argument of `setsockopt`.
///
/// # Safety
/// `value` has `len` readable bytes; every bit pattern of `T` is valid.
unsafe fn structure<T: Copy>(value: *const c_void, len: socklen_t) -> Sys<T> {
    if value.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    if (len as usize) < size_of::<T>() {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: the length was checked.
    Ok(unsafe { value.cast::<T>().read_unaligned() })
}

/// `setsockopt(2)`.
///
/// # Safety
/// As `setsockopt`.
pub unsafe fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    if handle::is_hidden(fd) {
        return errno::fail(Errno(libc::EBADF));
    }
    let Some(sock) = handle::ours(fd) else {
        // SAFETY: the program's own arguments.
        let result = unsafe { real::setsockopt(fd, level, name, value, len) };
        return if result < 0 && relayed::forgives(fd, level) { 0 } else { result };
    };
    if sock.entry.kind() == Kind::Listener {
        // The kernel's half is the judge; ours, and those that it accepts, follow.
        // SAFETY: the program's own arguments.
        let result = unsafe { real::setsockopt(fd, level, name, value, len) };
        if result == 0 {
            // SAFETY: as above.
            let _ = unsafe { set(&sock, level, name, value, len) };
        }
        return result;
    }
    // SAFETY: the program's own arguments.
    match unsafe { set(&sock, level, name, value, len) } {
        Some(result) => errno::into_libc(result.map(|()| 0)),
        // SAFETY: as above.
        None => unsafe { unknown(&sock, level, name, value, len) },
    }
}

/// An option that is not in the table.
///
/// # Safety
/// As `setsockopt`.
unsafe fn unknown(sock: &Sock, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int {
    let begun = status::CONNECTING | status::CONNECTED | status::DEAD;
    if sock.status() & begun == 0 && swap::to_kernel(sock).is_ok() {
        // SAFETY: the program's own arguments; `fd` is the kernel's socket now.
        return unsafe { real::setsockopt(sock.fd, level, name, value, len) };
    }
    log::record(sock.att, LogCode::UnknownOption, (level as u32) << 16 | name as u32 & 0xffff);
    errno::fail(Errno(libc::ENOPROTOOPT))
}

/// Sets what the table knows; `None`: it does not.
///
/// # Safety
/// As `setsockopt`.
unsafe fn set(
    sock: &Sock,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> Option<Sys<()>> {
    if level == libc::IPPROTO_IPV6 && !sock.is_inet6() {
        return Some(Err(Errno(libc::ENOPROTOOPT)));
    }
    let line = line(level, alias(level, name))?;
    if matches!(line.meaning, Meaning::Early(_))
        && sock.entry.kind() != Kind::Listener
        && let Err(error) = may_be_early(sock, name)
    {
        return Some(Err(error));
    }
    // SAFETY: the program's own value.
    let result = unsafe { store(&sock.shared.options, line.meaning, value, len) };
    if result.is_ok() && sock.shared.intent.fetch_or(intent::OPTIONS, AcqRel) & intent::OPTIONS == 0
        || matches!(line.meaning, Meaning::Flag(option::CORK | option::NODELAY))
    {
        let begun = status::CONNECTING | status::CONNECTED | status::LISTENING;
        if sock.shared.status.load(Acquire) & begun != 0 {
            sock.kick();
        }
    }
    Some(result)
}

/// Whether option `name` of Fast Open may be set now (Linux do_tcp_setsockopt).
fn may_be_early(sock: &Sock, name: c_int) -> Sys<()> {
    if name == libc::TCP_FASTOPEN_CONNECT && !fast_open::is_allowed(sock) {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    let begun = status::CONNECTING | status::CONNECTED | status::DEAD;
    if sock.status() & begun != 0 { Err(Errno(libc::EINVAL)) } else { Ok(()) }
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
unsafe fn store(options: &Options, meaning: Meaning, value: *const c_void, len: socklen_t) -> Sys<()> {
    match meaning {
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
        // SAFETY: the caller's promise.
        Meaning::Congestion => return unsafe { set_congestion(options, value, len) },
        _ => {}
    }
    // SAFETY: the caller's promise.
    store_int(options, meaning, unsafe { int(value, len) }?)
}

fn store_int(options: &Options, meaning: Meaning, value: c_int) -> Sys<()> {
    match meaning {
        Meaning::Flag(bit) => put_flag(options, bit, value != 0),
        Meaning::Early(bit) => {
            if !(0..=1).contains(&value) {
                return Err(Errno(libc::EINVAL));
            }
            put_flag(options, bit, value != 0);
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
            put_half(&options.ttl, v4, value.max(0) as u32, 16);
        }
        Meaning::Zero | Meaning::Linger | Meaning::Timeout(_) | Meaning::Congestion => {}
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
    let (mut period, mut timeout) = (1u32, 1u32);
    while seconds > period && period < 40_000 {
        timeout = (timeout * 2).min(120);
        period = period.saturating_add(timeout);
    }
    period
}

/// # Safety
/// `value` has `len` readable bytes.
unsafe fn set_congestion(options: &Options, value: *const c_void, len: socklen_t) -> Sys<()> {
    if value.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    if len == 0 {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { core::slice::from_raw_parts(value.cast::<u8>(), (len as usize).min(15)) };
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

/// `getsockopt(2)`.
///
/// # Safety
/// As `getsockopt`.
pub unsafe fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    if handle::is_hidden(fd) {
        return errno::fail(Errno(libc::EBADF));
    }
    // A program that got its listeners by exec asks them who they are, while it still has its privileges.
    listen::meet(fd);
    let Some(sock) = handle::stream(fd) else {
        // SAFETY: the program's own arguments.
        return unsafe { real::getsockopt(fd, level, name, value, len) };
    };
    if value.is_null() || len.is_null() {
        return errno::fail(Errno(libc::EFAULT));
    }
    // SAFETY: the program's own length.
    let room = unsafe { len.read_unaligned() };
    if (room as c_int) < 0 {
        return errno::fail(Errno(libc::EINVAL));
    }
    let mut answer = Answer { value: value.cast(), room: room as usize, given: 0 };
    // SAFETY: the program's own buffer of `room` bytes.
    let result = unsafe { get(&sock, level, name, &mut answer) };
    if result.is_ok() {
        // SAFETY: as above.
        unsafe { len.write_unaligned(answer.given as socklen_t) };
    }
    errno::into_libc(result.map(|()| 0))
}

/// The program's buffer for an answer.
struct Answer {
    value: *mut u8,
    room: usize,
    given: usize,
}

impl Answer {
    /// Writes `value`, cut to the room.
    ///
    /// # Safety
    /// The buffer must have its `room`.
    unsafe fn put<T: Copy>(&mut self, value: T) {
        // SAFETY: at most the room, and at most the value.
        unsafe { self.put_bytes(core::ptr::from_ref(&value).cast(), size_of::<T>()) };
    }

    /// # Safety
    /// The buffer must have its `room`; `from` has `len` bytes.
    unsafe fn put_bytes(&mut self, from: *const u8, len: usize) {
        self.given = len.min(self.room);
        // SAFETY: the caller's promise.
        unsafe { core::ptr::copy_nonoverlapping(from, self.value, self.given) };
    }
}

/// # Safety
/// `answer` names the program's buffer.
unsafe fn get(sock: &Sock, level: c_int, name: c_int, answer: &mut Answer) -> Sys<()> {
    if level == libc::IPPROTO_IPV6 && !sock.is_inet6() {
        return Err(Errno(libc::ENOPROTOOPT));
    }
    let options = &sock.shared.options;
    let name = alias(level, name);
    if let Some(line) = line(level, name) {
        // SAFETY: the caller's promise.
        unsafe { load(sock, options, line.meaning, name, answer) };
        return Ok(());
    }
    let now = sock.status();
    let plain = match (level, name) {
        (libc::SOL_SOCKET, libc::SO_ERROR) => sock.take_error().map_or(0, |error| error.0),
        (libc::SOL_SOCKET, libc::SO_TYPE) => libc::SOCK_STREAM,
        (libc::SOL_SOCKET, libc::SO_DOMAIN) if sock.is_inet6() => libc::AF_INET6,
        (libc::SOL_SOCKET, libc::SO_DOMAIN) => libc::AF_INET,
        (libc::SOL_SOCKET, libc::SO_PROTOCOL) => libc::IPPROTO_TCP,
        (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => 0,
        (libc::SOL_SOCKET, libc::SO_SNDLOWAT) => 1,
        (libc::SOL_SOCKET, libc::SO_INCOMING_CPU) => sock.shared.shard.load(Relaxed) as c_int,
        (libc::SOL_SOCKET, libc::SO_ZEROCOPY) => 0,
        (libc::IPPROTO_IP, libc::IP_TRANSPARENT) => 0,
        (libc::IPPROTO_TCP, libc::TCP_LINGER2) => match options.linger2_s.load(Relaxed) {
            0 => 60,
            set => set,
        },
        (libc::IPPROTO_TCP, libc::TCP_INFO) => {
            connect::operate(sock, OpCode::Info, [0; 6])?;
            // SAFETY: the caller's promise.
            unsafe { answer.put(info::tcp_info(sock, now)) };
            return Ok(());
        }
        _ => {
            // A question about a socket of the kernel's that is as ours was when it was made.
            // SAFETY: the caller's promise.
            return unsafe { ask_kernel(sock, level, name, answer) };
        }
    };
    // SAFETY: the caller's promise.
    unsafe { answer.put(plain) };
    Ok(())
}

/// Answers with what a fresh kernel socket says.
///
/// # Safety
/// `answer` names the program's buffer.
unsafe fn ask_kernel(sock: &Sock, level: c_int, name: c_int, answer: &mut Answer) -> Sys<()> {
    let domain = if sock.is_inet6() { libc::AF_INET6 } else { libc::AF_INET };
    let fresh = sys::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)?;
    let mut len = answer.room as socklen_t;
    let result = sys::call!(libc::SYS_getsockopt, fresh, level, name, answer.value, sys::at_mut(&mut len));
    let _ = sys::close(fresh);
    answer.given = len as usize;
    result.map(|_| ())
}

/// # Safety
/// `answer` names the program's buffer.
unsafe fn load(sock: &Sock, options: &Options, meaning: Meaning, name: c_int, answer: &mut Answer) {
    // SAFETY (all): the caller's promise.
    match meaning {
        Meaning::Linger => {
            let linger = libc::linger {
                l_onoff: c_int::from(options.has(option::LINGER)),
                l_linger: options.linger_s.load(Relaxed) as c_int,
            };
            // SAFETY: the caller's promise.
            unsafe { answer.put(linger) };
        }
        Meaning::Timeout(receive) => {
            let us = if receive { &options.rcvtimeo_us } else { &options.sndtimeo_us }.load(Relaxed);
            let time = libc::timeval { tv_sec: (us / 1_000_000) as i64, tv_usec: (us % 1_000_000) as i64 };
            // SAFETY: the caller's promise.
            unsafe { answer.put(time) };
        }
        Meaning::Congestion => {
            let name: &[u8; 16] = match options.congestion.load(Relaxed) {
                congestion::RENO => b"reno\0\0\0\0\0\0\0\0\0\0\0\0",
                congestion::BBR => b"bbr\0\0\0\0\0\0\0\0\0\0\0\0\0",
                _ => b"cubic\0\0\0\0\0\0\0\0\0\0\0",
            };
            // SAFETY: the caller's promise.
            unsafe { answer.put(*name) };
        }
        Meaning::Int { word, .. } if name == libc::TCP_MAXSEG && sock.was_connected() => {
            // The true one, once there is a connection.
            let _ = connect::operate(sock, OpCode::Info, [0; 6]);
            let mss = match info::snd_mss(sock) {
                0 => word(options).load(Relaxed) as c_int,
                mss => mss,
            };
            // SAFETY: the caller's promise.
            unsafe { answer.put(mss) };
        }
        // SAFETY: the caller's promise.
        _ => unsafe { answer.put(load_int(options, meaning)) },
    }
}

fn load_int(options: &Options, meaning: Meaning) -> c_int {
    let or = |value: u32, unset: c_int| if value == 0 { unset } else { value as c_int };
    match meaning {
        Meaning::Flag(bit) | Meaning::Early(bit) => c_int::from(options.has(bit)),
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
        Meaning::HopLimit(false) => or(options.ttl.load(Relaxed) >> 16, 64),
        Meaning::Zero | Meaning::Linger | Meaning::Timeout(_) | Meaning::Congestion => 0,
    }
}

/// Sets on kernel socket `fd` what was set on ours.
pub fn replay(options: &Options, fd: c_int, inet6: bool) {
    for line in &TABLE {
        if line.level == libc::IPPROTO_IPV6 && !inet6 {
            continue;
        }
        replay_one(options, line, fd);
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
        // The kernel doubles it again.
        Meaning::Buffer { word, .. } => (word(options).load(Relaxed) / 2) as c_int,
        Meaning::Int { word, .. } => word(options).load(Relaxed) as c_int,
        Meaning::HopLimit(v4) if load_half(&options.ttl, v4, 16) == 0 => return,
        Meaning::Flag(option::V6ONLY) if !options.has(option::V6ONLY) => return,
        Meaning::LowWater => options.rcvlowat.load(Relaxed) as c_int,
        meaning => load_int(options, meaning),
    };
    if value != 0 || matches!(line.meaning, Meaning::QuickAck) {
        let _ = sys::setsockopt(fd, line.level, line.name, &value);
    }
}

fn load_half(word: &AtomicU32, lower: bool, shift: u32) -> u32 {
    let value = word.load(Relaxed);
    if lower { value & (1u32 << shift).wrapping_sub(1) } else { value >> shift }
}

/// Learns the options of kernel socket `fd`, which listens: those whom the engine accepts inherit them.
pub fn import(options: &Options, fd: c_int, inet6: bool) {
    options.reset();
    // Buffers count only if somebody set them; the kernel says so in bits (send 1, receive 2).
    const SO_BUF_LOCK: c_int = 72;
    let locked = sys::getsockopt_int(fd, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(0);
    for line in &TABLE {
        let skip = match line.meaning {
            Meaning::Buffer { .. } => locked & if line.name == libc::SO_SNDBUF { 1 } else { 2 } == 0,
            Meaning::Int { .. } => line.name == libc::TCP_MAXSEG || line.name == libc::TCP_NOTSENT_LOWAT,
            Meaning::Zero | Meaning::QuickAck => true,
            _ => line.level == libc::IPPROTO_IPV6 && !inet6,
        };
        if !skip {
            import_one(options, line, fd);
        }
    }
}

/// Whether every socket of the kernel has BBR unless it asks for something else. The kernel's BBR is another one than ours:
/// whoever wants ours has to have asked for it.
fn bbr_is_the_default() -> bool {
    let Ok(fresh) = sys::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) else {
        return true;
    };
    let name = sys::getsockopt(fresh, libc::IPPROTO_TCP, libc::TCP_CONGESTION, [0u8; 16]);
    let _ = sys::close(fresh);
    name.is_ok_and(|name| name.starts_with(b"bbr\0"))
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
                    () if name.starts_with(b"bbr\0") && !bbr_is_the_default() => congestion::BBR,
                    () => congestion::DEFAULT,
                };
                options.congestion.store(number, Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defer_is_rounded_as_linux_does() {
        for (asked, given) in [(0, 0), (1, 1), (2, 3), (3, 3), (5, 7), (30, 31), (31, 31), (32, 63)] {
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
            let plain = !matches!(line.meaning, Meaning::Linger | Meaning::Timeout(_) | Meaning::Congestion);
            if !plain || line.name == libc::TCP_NOTSENT_LOWAT {
                continue;
            }
            let (level, name) = (line.level, line.name);
            let theirs = sys::getsockopt_int(fd, level, name).expect("get");
            assert_eq!(load_int(&options, line.meaning), theirs, "default of {level}/{name}");
            for value in [1, 5, 300, -1] {
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
