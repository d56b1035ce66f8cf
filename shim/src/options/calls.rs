//! `setsockopt` and `getsockopt`.

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use libc::socklen_t;
use utcp_abi::region::LogCode;
use utcp_abi::socket::{OpCode, Options, congestion, file, intent, option, status};

use super::{Line, Meaning, UNSERVED, alias, judge, keys, line, load_int, store};
use crate::fd_table::Kind;
use crate::handle::{self, Sock};
use crate::sys::{self, Errno, Sys};
use crate::table::real;
use crate::{bound, connect, errno, fast_open, info, listen, log, names, recv, relayed, send, swap, user};

/// A connection is there, is being made, or was.
const BEGUN: u32 = status::CONNECTING | status::CONNECTED | status::DEAD;

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
    let Some(sock) = handle::stream(fd) else {
        if handle::is_hidden(fd) {
            return errno::fail(Errno(libc::EBADF));
        }
        // SAFETY: the program's own arguments.
        return unsafe { of_kernel(fd, level, name, value, len) };
    };
    // SAFETY: the program's own arguments.
    match unsafe { set(&sock, level, name, value, len) } {
        Err(UNSERVED) => {}
        result => return errno::into_libc(result.map(|()| 0)),
    }
    // SAFETY: as above.
    match unsafe { unserved(&sock, level, name, value, len) } {
        // SAFETY: as above; `fd` is the kernel's socket now.
        Ok(Unserved::Swapped) => unsafe { of_kernel(fd, level, name, value, len) },
        Ok(Unserved::AsItWas) => 0,
        Err(error) => errno::fail(error),
    }
}

/// On a socket of the kernel's, which is the judge. Of a listener, our half and those that it accepts follow.
///
/// # Safety
/// As `setsockopt`.
unsafe fn of_kernel(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int {
    // SAFETY: the program's own arguments.
    let result = unsafe { real::setsockopt(fd, level, name, value, len) };
    if result < 0 {
        return if relayed::forgives(fd, level) { 0 } else { result };
    }
    let chooses = level == libc::SOL_SOCKET && listen::CHOOSERS.contains(&name);
    if let Some(sock) = handle::listener(fd) {
        if chooses {
            listen::say_chosen(fd);
            return result;
        }
        // SAFETY: as above.
        if unsafe { set(&sock, level, name, value, len) } == Err(UNSERVED) && is_kernels(level, name) {
            listen::withdraw(&sock, word(level, name));
        }
    } else if chooses || is_kernels(level, name) {
        bound::keep(fd, word(level, name));
    }
    result
}

/// An option as a log record names it.
pub fn word(level: c_int, name: c_int) -> u32 {
    (level as u32) << 16 | name as u32 & 0xffff
}

/// What an IPv4 address begins with in IPv6.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// TCP_MD5SIG_EXT, and the first and the last of TCP_AO_ADD_KEY and its kin.
const TCP_MD5SIG_EXT: c_int = 32;
const TCP_AO_ADD_KEY: c_int = 38;
const TCP_AO_REPAIR: c_int = 42;
const SO_BINDTOIFINDEX: c_int = 62;
const IP_PROTOCOL: c_int = 52;
const TCP_ZEROCOPY_RECEIVE: c_int = 35;
const IPV6_PATHMTU: c_int = 61;

/// Options of a listener that change which connections it gets, or what these are, in a way that utcp does not: whoever sets
/// one has a listener of the kernel's alone.
fn is_kernels(level: c_int, name: c_int) -> bool {
    match level {
        libc::SOL_SOCKET => matches!(
            name,
            libc::SO_ATTACH_FILTER
                | libc::SO_ATTACH_BPF
                | libc::SO_BINDTODEVICE
                | SO_BINDTOIFINDEX
                | libc::SO_TIMESTAMP
                | libc::SO_TIMESTAMPNS
                | libc::SO_TIMESTAMPING
        ),
        libc::IPPROTO_TCP => {
            matches!(name, libc::TCP_SAVE_SYN | libc::TCP_MD5SIG | TCP_MD5SIG_EXT)
                || matches!(name, TCP_AO_ADD_KEY..=TCP_AO_REPAIR)
        }
        libc::IPPROTO_IP => matches!(name, libc::IP_OPTIONS | libc::IP_MINTTL | libc::IP_MTU_DISCOVER),
        libc::IPPROTO_IPV6 => matches!(name, libc::IPV6_MINHOPCOUNT | libc::IPV6_MTU_DISCOVER),
        _ => false,
    }
}

/// What became of an option that utcp does not serve.
enum Unserved {
    /// The socket is the kernel's now.
    Swapped,
    /// It has this value in any case.
    AsItWas,
}

/// An option that utcp does not serve. A socket that has not begun is the kernel's from now on, unless the kernel
/// would refuse the option, too; one that has begun can't have it.
///
/// # Safety
/// As `setsockopt`.
unsafe fn unserved(
    sock: &Sock,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> Sys<Unserved> {
    let begun = sock.status() & BEGUN != 0;
    let chooses = level == libc::SOL_SOCKET && listen::CHOOSERS.contains(&name);
    if chooses && !begun && sock.shared.options.has(option::REUSEPORT) {
        // A socket without SO_REUSEPORT, as is asked below, may not have it.
        swap::to_kernel(sock)?;
        return Ok(Unserved::Swapped);
    }
    // SAFETY: the program's own value.
    let judged = unsafe { judge::changes(domain(sock), level, name, value, len) };
    let tcp = level == libc::IPPROTO_TCP;
    match (name, judged) {
        (_, Ok(false)) => Ok(Unserved::AsItWas),
        (_, Err(error)) if !begun => Err(error),
        (_, Err(Errno(libc::EFAULT))) => Err(Errno(libc::EFAULT)),
        (_, Ok(true)) if !begun => {
            swap::to_kernel(sock)?;
            log::record(sock.att, LogCode::KernelOption, word(level, name));
            Ok(Unserved::Swapped)
        }
        // As a kernel without kTLS says it.
        (libc::TCP_ULP, _) if tcp && len > 0 => Err(Errno(libc::ENOENT)),
        // As to a program without CAP_NET_ADMIN.
        (libc::TCP_REPAIR, Ok(_)) if tcp && len >= 4 => Err(Errno(libc::EPERM)),
        (libc::TCP_QUEUE_SEQ, Err(_)) if tcp && len >= 4 && !sock.is_over(sock.status()) => {
            Err(Errno(libc::EPERM))
        }
        (libc::IPV6_ADDRFORM, Err(Errno(libc::ENOTCONN))) if level == libc::IPPROTO_IPV6 => {
            become_ipv4(sock).map(|()| Unserved::AsItWas)
        }
        (_, Err(error)) => Err(error),
        (_, Ok(_)) => {
            log::record(sock.att, LogCode::UnknownOption, word(level, name));
            Err(Errno(libc::ENOPROTOOPT))
        }
    }
}

/// IPV6_ADDRFORM: a connection over IPv4 on an IPv6 socket is one of an IPv4 socket from now on (ipv6(7)).
fn become_ipv4(sock: &Sock) -> Sys<()> {
    if sock.status() & (status::CONNECTED | status::RX_FIN | status::DEAD) != status::CONNECTED {
        return Err(Errno(libc::ENOTCONN));
    }
    let mapped = sock.shared.remote.load().ip.starts_with(&MAPPED);
    if sock.shared.options.has(option::V6ONLY) || !mapped {
        return Err(Errno(libc::EADDRNOTAVAIL));
    }
    sock.shared.file.fetch_and(!file::INET6, AcqRel);
    Ok(())
}

fn domain(sock: &Sock) -> c_int {
    if sock.is_inet6() { libc::AF_INET6 } else { libc::AF_INET }
}

/// Sets what the table knows. [`UNSERVED`]: not that option, or not that value.
///
/// # Safety
/// As `setsockopt`.
unsafe fn set(sock: &Sock, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> Sys<()> {
    if len.cast_signed() < 0 {
        return Err(Errno(libc::EINVAL));
    }
    if level == libc::IPPROTO_IPV6 && !sock.is_inet6() {
        return Err(Errno(libc::ENOPROTOOPT));
    }
    let line = line(level, alias(level, name)).ok_or(UNSERVED)?;
    // SAFETY: the program's own value.
    unsafe { check_state(sock, line, value, len) }?;
    if let Meaning::FastOpenKey = line.meaning {
        // SAFETY: as above. The engine reads them with the next SYN.
        return unsafe { keys::set(sock, value, len) };
    }
    if let Meaning::BusyPoll = line.meaning {
        // SAFETY: as above.
        unsafe { judge::set(line, value, len) }?;
        // SAFETY: as above.
        let us = unsafe { super::int(level, value, len) }?;
        sock.shared.busy_poll.store((us as u32).wrapping_add(1), Relaxed);
        return Ok(());
    }
    // SAFETY: as above.
    unsafe { store(&sock.shared.options, line, value, len) }?;
    let told = sock.want(intent::OPTIONS).is_none_or(|before| before & intent::OPTIONS != 0);
    if !told || matches!(line.meaning, Meaning::Flag(option::CORK | option::NODELAY)) {
        let begun = status::CONNECTING | status::CONNECTED | status::LISTENING;
        if sock.shared.status.load(Acquire) & begun != 0 {
            sock.kick();
        }
    }
    let options = &sock.shared.options;
    match line.meaning {
        Meaning::PeekOff => recv::move_peeks(sock),
        Meaning::Flag(option::CORK) if !options.has(option::CORK) => send::flush(sock),
        // Pushes what is there even through a cork (tcp(7)).
        Meaning::Flag(option::NODELAY) if options.has(option::NODELAY) => send::flush(sock),
        _ => {}
    }
    Ok(())
}

/// Options that a socket takes only as long as it has not begun.
///
/// # Safety
/// `value` has `len` readable bytes.
unsafe fn check_state(sock: &Sock, line: &Line, value: *const c_void, len: socklen_t) -> Sys<()> {
    let of_stream = sock.entry.kind() == Kind::Socket;
    let of_fresh = match line.meaning {
        Meaning::Early(option::FASTOPEN_CONNECT) if of_stream && !fast_open::is_allowed(sock) => {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        Meaning::Early(_) | Meaning::FastOpen | Meaning::Flag(option::V6ONLY) => true,
        // SAFETY: the caller's promise.
        Meaning::WindowClamp => (unsafe { super::int(line.level, value, len) }) == Ok(0),
        _ => false,
    };
    let now = sock.status();
    let connected = of_stream && now & BEGUN != 0 && !sock.is_over(now);
    if of_fresh {
        // It is read before anything is said of it (Linux do_tcp_setsockopt, do_ipv6_setsockopt).
        // SAFETY: the caller's promise.
        unsafe { super::int(line.level, value, len) }?;
    }
    if of_fresh && connected { Err(Errno(libc::EINVAL)) } else { Ok(()) }
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
    // A program that got its listeners by exec asks them who they are, while it still has its privileges.
    listen::meet(fd);
    let Some(sock) = handle::stream(fd) else {
        if handle::is_hidden(fd) {
            return errno::fail(Errno(libc::EBADF));
        }
        // SAFETY: the program's own arguments.
        return unsafe { real::getsockopt(fd, level, name, value, len) };
    };
    // SAFETY: the program's own buffer and length.
    errno::into_libc(unsafe { ask(&sock, level, name, value, len) }.map(|()| 0))
}

/// # Safety
/// As `getsockopt`.
unsafe fn ask(sock: &Sock, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> Sys<()> {
    if level == libc::IPPROTO_IPV6 && !sock.is_inet6() {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    // Levels that are no TCP socket's, whatever else is asked for (Linux tcp_getsockopt, ip_getsockopt, ipv6_getsockopt).
    if !matches!(level, libc::SOL_SOCKET | libc::IPPROTO_TCP | libc::IPPROTO_IP | libc::IPPROTO_IPV6) {
        return Err(Errno(if sock.is_inet6() { libc::ENOPROTOOPT } else { libc::EOPNOTSUPP }));
    }
    // SAFETY: the program's own length.
    let room = unsafe { user::fetch(len) }? as c_int;
    if room < 0 {
        // The options of IPv6 take it for a large number.
        if level != libc::IPPROTO_IPV6 {
            return Err(Errno(libc::EINVAL));
        }
    }
    let mut answer = Answer { value: value.cast(), room: room as u32 as usize, given: 0 };
    // SAFETY: the program's own buffer of `room` bytes.
    unsafe { get(sock, level, name, &mut answer) }?;
    // SAFETY: as above.
    unsafe { user::give(len, answer.given as socklen_t) }
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
    unsafe fn put<T: Copy>(&mut self, value: T) -> Sys<()> {
        self.given = size_of::<T>().min(self.room);
        // SAFETY: at most the room, and at most the value.
        unsafe { user::copy_out(core::ptr::from_ref(&value).cast(), self.value, self.given) }
    }

    /// Writes an int as the options of IPv4 do: a small one as a byte, where there is no room for more.
    ///
    /// # Safety
    /// As [`Self::put`].
    unsafe fn put_v4(&mut self, value: c_int) -> Sys<()> {
        if (1..4).contains(&self.room)
            && let Ok(byte) = u8::try_from(value)
        {
            // SAFETY: the caller's promise.
            return unsafe { self.put(byte) };
        }
        // SAFETY: the caller's promise.
        unsafe { self.put(value) }
    }
}

/// # Safety
/// `answer` names the program's buffer.
unsafe fn get(sock: &Sock, level: c_int, name: c_int, answer: &mut Answer) -> Sys<()> {
    let options = &sock.shared.options;
    let name = alias(level, name);
    if let Some(line) = line(level, name)
        && !matches!(line.meaning, Meaning::Force { .. })
    {
        // SAFETY: the caller's promise.
        return unsafe { load(sock, options, line, answer) };
    }
    let now = sock.status();
    let connected = now & status::CONNECTED != 0;
    let has_path = now & (status::CONNECTING | status::CONNECTED) != 0 && !fast_open::is_deferred(sock);
    let plain = match (level, name) {
        (libc::SOL_SOCKET, libc::SO_ERROR) => sock.take_error().map_or(0, |error| error.0),
        (libc::SOL_SOCKET, libc::SO_TYPE) => libc::SOCK_STREAM,
        (libc::SOL_SOCKET, libc::SO_DOMAIN) => domain(sock),
        (libc::SOL_SOCKET, libc::SO_PROTOCOL) => libc::IPPROTO_TCP,
        (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => 0,
        (libc::SOL_SOCKET, libc::SO_SNDLOWAT) => 1,
        (libc::IPPROTO_IP, libc::IP_MTU) | (libc::IPPROTO_IPV6, libc::IPV6_MTU) if has_path => {
            connect::operate(sock, OpCode::Info, [0; 6])?;
            info::path_mtu(sock)
        }
        // SAFETY: the caller's promise.
        (libc::IPPROTO_IPV6, IPV6_PATHMTU) if has_path => return unsafe { put_path_mtu(sock, answer) },
        (libc::IPPROTO_IP, IP_PROTOCOL) => bound_port(sock, now),
        (libc::IPPROTO_IPV6, libc::IPV6_ADDRFORM) if connected => libc::AF_INET6,
        // SAFETY: the caller's promise.
        (libc::SOL_SOCKET, libc::SO_PEERNAME) => return unsafe { put_peer(sock, answer) },
        // SAFETY: the caller's promise.
        (libc::SOL_SOCKET, libc::SO_COOKIE) => return unsafe { put_cookie(sock, answer) },
        // SAFETY: the caller's promise.
        (libc::SOL_SOCKET, libc::SO_MEMINFO) => return unsafe { answer.put(memory(sock)) },
        (libc::IPPROTO_TCP, libc::TCP_INFO) => {
            connect::operate(sock, OpCode::Info, [0; 6])?;
            // SAFETY: the caller's promise.
            return unsafe { answer.put(info::tcp_info(sock, now)) };
        }
        // SAFETY: the caller's promise.
        (libc::IPPROTO_TCP, libc::TCP_CC_INFO) => return unsafe { put_controller(sock, now, answer) },
        // SAFETY: the caller's promise.
        (libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE) => return unsafe { put_zerocopy(sock, now, answer) },
        // A question about a socket of the kernel's that is as ours was when it was made.
        _ => {
            // SAFETY: the caller's promise.
            answer.given = unsafe { judge::get(domain(sock), level, name, answer.value, answer.room) }?;
            return Ok(());
        }
    };
    if level == libc::IPPROTO_IP {
        // SAFETY: the caller's promise.
        unsafe { answer.put_v4(plain) }
    } else {
        // SAFETY: the caller's promise.
        unsafe { answer.put(plain) }
    }
}

/// SO_PEERNAME: the whole name or, unlike `getpeername`, its beginning.
///
/// # Safety
/// `answer` names the program's buffer.
unsafe fn put_peer(sock: &Sock, answer: &mut Answer) -> Sys<()> {
    let (name, len) = names::peer(sock)?;
    if answer.room > len as usize {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: the caller's promise; the structure is larger than the room.
    unsafe { answer.put(name) }
}

fn controller(options: &Options) -> u32 {
    match options.congestion.load(Relaxed) {
        congestion::DEFAULT => super::default_congestion(),
        number => number,
    }
}

/// TCP_CC_INFO: BBR tells of its model, the others nothing (Linux tcp_congestion_ops::get_info).
///
/// # Safety
/// `answer` names the program's buffer.
unsafe fn put_controller(sock: &Sock, now: u32, answer: &mut Answer) -> Sys<()> {
    if controller(&sock.shared.options) != congestion::BBR {
        // SAFETY: the caller's promise.
        return unsafe { answer.put([0u8; 0]) };
    }
    let mut model = [0; 5];
    if now & BEGUN != 0 {
        connect::operate(sock, OpCode::Info, [0; 6])?;
        model = info::path_model(sock);
    }
    // SAFETY: the caller's promise.
    unsafe { answer.put(model) }
}

/// TCP_ZEROCOPY_RECEIVE: nothing is mapped, as with bytes that fill no pages; how many are to be received by copying is told.
///
/// # Safety
/// `answer` names the program's buffer.
unsafe fn put_zerocopy(sock: &Sock, now: u32, answer: &mut Answer) -> Sys<()> {
    // struct tcp_zerocopy_receive: address (8 bytes), length, recv_skip_hint, inq, err …
    // SAFETY: the caller's promise.
    answer.given = unsafe {
        judge::get(domain(sock), libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, answer.value, answer.room)
    }?;
    let waiting = recv::waiting(sock).min(u32::MAX as usize) as u32;
    let over = now & status::RX_FIN != 0;
    if waiting == 0 && over {
        return Err(Errno(libc::EIO));
    }
    let whole = matches!(answer.given, 20 | 24 | 32 | 36 | 40 | 48 | 56 | 60..); // What ends within a field has none behind `recv_skip_hint`.
    let hint = (12, Some(waiting));
    let inq = (16, whole.then_some(waiting.max(u32::from(over))));
    let error = if whole && answer.given > 20 { sock.take_error() } else { None };
    let error = (20, error.map(|error| error.0.wrapping_neg() as u32));
    for (at, value) in [hint, inq, error] {
        if let Some(value) = value.filter(|_| answer.given >= at + size_of::<u32>()) {
            // SAFETY: inside what was given.
            unsafe {
                user::copy_out(
                    core::ptr::from_ref(&value).cast(),
                    answer.value.wrapping_add(at),
                    size_of::<u32>(),
                )
            }?;
        }
    }
    Ok(())
}

/// IP_PROTOCOL, which Linux answers with the port that the socket holds (do_ip_getsockopt).
fn bound_port(sock: &Sock, now: u32) -> c_int {
    if now & status::CONNECTING != 0 {
        connect::settle(sock);
    }
    let chosen = sock.shared.file.load(Relaxed) & file::BOUND != 0;
    let gone = now & (status::DEAD | status::CLOSED) != 0 && !chosen;
    if gone { 0 } else { c_int::from(sock.shared.local.load().port) }
}

/// IPV6_PATHMTU: an address of zeros, and the path's MTU.
///
/// # Safety
/// `answer` names the program's buffer.
unsafe fn put_path_mtu(sock: &Sock, answer: &mut Answer) -> Sys<()> {
    if answer.room < size_of::<[u32; 8]>() {
        return Err(Errno(libc::EINVAL));
    }
    connect::operate(sock, OpCode::Info, [0; 6])?;
    // SAFETY: the caller's promise.
    unsafe { answer.put([0, 0, 0, 0, 0, 0, 0, info::path_mtu(sock) as u32]) }
}

/// SO_COOKIE: a number that no other socket of this host has. The descriptor under ours has one, and is used again for
/// other sockets.
///
/// # Safety
/// `answer` names the program's buffer.
unsafe fn put_cookie(sock: &Sock, answer: &mut Answer) -> Sys<()> {
    if answer.room < size_of::<u64>() {
        return Err(Errno(libc::EINVAL));
    }
    let cookie = sys::getsockopt(sock.fd, libc::SOL_SOCKET, libc::SO_COOKIE, 0u64)?;
    // SAFETY: the caller's promise.
    unsafe { answer.put(cookie.wrapping_add(u64::from(sock.entry.generation()) << 48)) }
}

/// SO_MEMINFO: rmem_alloc, rcvbuf, wmem_alloc, sndbuf, fwd_alloc, wmem_queued, optmem, backlog, drops.
fn memory(sock: &Sock) -> [u32; 9] {
    let options = &sock.shared.options;
    let limit = |name| line(libc::SOL_SOCKET, name).map_or(0, |line| load_int(options, line.meaning) as u32);
    let queued = send::queued(sock).min(u64::from(u32::MAX)) as u32;
    let waiting = recv::waiting(sock).min(u32::MAX as usize) as u32;
    [waiting, limit(libc::SO_RCVBUF), queued, limit(libc::SO_SNDBUF), 0, queued, 0, 0, 0]
}

/// # Safety
/// `answer` names the program's buffer.
unsafe fn load(sock: &Sock, options: &Options, line: &Line, answer: &mut Answer) -> Sys<()> {
    match line.meaning {
        Meaning::Linger => {
            let linger = libc::linger {
                l_onoff: c_int::from(options.has(option::LINGER)),
                l_linger: options.linger_s.load(Relaxed) as c_int,
            };
            // SAFETY: the caller's promise.
            unsafe { answer.put(linger) }
        }
        Meaning::Timeout(receive) => {
            let us = if receive { &options.rcvtimeo_us } else { &options.sndtimeo_us }.load(Relaxed);
            let time = libc::timeval { tv_sec: (us / 1_000_000) as i64, tv_usec: (us % 1_000_000) as i64 };
            // SAFETY: the caller's promise.
            unsafe { answer.put(time) }
        }
        Meaning::Congestion => {
            let name: &[u8; 16] = match controller(options) {
                congestion::RENO => b"reno\0\0\0\0\0\0\0\0\0\0\0\0",
                congestion::BBR => b"bbr\0\0\0\0\0\0\0\0\0\0\0\0\0",
                _ => b"cubic\0\0\0\0\0\0\0\0\0\0\0",
            };
            // SAFETY: the caller's promise.
            unsafe { answer.put(*name) }
        }
        Meaning::IncomingCpu if options.incoming_cpu.load(Relaxed) == 0 && sock.was_connected() => {
            // SAFETY: the caller's promise.
            unsafe { answer.put(sock.shared.shard.load(Relaxed) as c_int) }
        }
        Meaning::MaxSeg if sock.was_connected() => {
            // The true one, once there is a connection.
            let _ = connect::operate(sock, OpCode::Info, [0; 6]);
            let mss = match info::snd_mss(sock) {
                0 => load_int(options, line.meaning),
                mss => mss,
            };
            // SAFETY: the caller's promise.
            unsafe { answer.put(mss) }
        }
        Meaning::BusyPoll => match sock.shared.busy_poll.load(Relaxed) {
            0 => {
                // SAFETY: the caller's promise.
                answer.given =
                    unsafe { judge::get(domain(sock), line.level, line.name, answer.value, answer.room) }?;
                Ok(())
            }
            // SAFETY: as above.
            set => unsafe { answer.put(set.wrapping_sub(1)) },
        },
        Meaning::FastOpenKey => match keys::of(sock) {
            // SAFETY: the caller's promise.
            Some(keys::Keys { words, count: 1 }) => unsafe { answer.put([words[0], words[1]]) },
            // SAFETY: as above.
            Some(keys) => unsafe { answer.put(keys.words) },
            // The host's are not told.
            // SAFETY: as above.
            None => unsafe { answer.put([0u64; 0]) },
        },
        Meaning::PacingRate => {
            let rate = !options.max_pacing.load(Relaxed);
            if answer.room >= size_of::<u64>() {
                // SAFETY: the caller's promise.
                return unsafe { answer.put(rate) };
            }
            // SAFETY: the caller's promise.
            unsafe { answer.put(u32::try_from(rate).unwrap_or(u32::MAX)) }
        }
        // SAFETY: the caller's promise.
        Meaning::Timestamp(8) => unsafe { answer.put([0 as c_int; 2]) },
        // SAFETY: the caller's promise.
        _ if line.level == libc::IPPROTO_IP => unsafe { answer.put_v4(load_int(options, line.meaning)) },
        // SAFETY: the caller's promise.
        _ => unsafe { answer.put(load_int(options, line.meaning)) },
    }
}
