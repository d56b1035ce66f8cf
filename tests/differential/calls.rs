//! The calls of a script. Each prints its return, the name of errno, and what it gave back.
#![allow(
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "the numbers of a script are small, and C wants its own types"
)]

use std::mem::{size_of, zeroed};
use std::ptr;

use libc::{c_int, c_void};

use crate::messages;
use crate::names::{self, message_flags};
use crate::pointers;
use crate::processes;
use crate::signals;
use crate::stdio;
use crate::words::{Words, bytes_of, shown};
use crate::{Fds, count_signal};

unsafe extern "C" {
    fn sockatmark(fd: c_int) -> c_int;
}

/// A return value as a transcript shows it.
pub fn result(value: isize) -> String {
    if value >= 0 {
        return value.to_string();
    }
    let error = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    format!("-1 {}", names::errno(error))
}

/// A return value, and more if it was a success.
fn result_with(value: isize, more: impl FnOnce(usize) -> String) -> String {
    match usize::try_from(value) {
        Ok(count) => format!("{value} {}", more(count)),
        Err(_) => result(value),
    }
}

pub fn descriptor(fds: &mut Fds, name: &str, fd: c_int) -> String {
    if fd < 0 {
        return result(-1);
    }
    fds.insert(name, fd);
    "fd".to_owned()
}

/// Runs one call and says what came of it.
pub fn run(fds: &mut Fds, words: &Words) -> String {
    let fd = |at: usize| fds.number(words.get(at));
    match words.first() {
        "socket" => socket(fds, words),
        "pair" => pair(fds, words),
        "bind" => bind(fds, words),
        // SAFETY: numbers only.
        "listen" => result(unsafe { libc::listen(fd(1), words.number(2) as c_int) } as isize),
        "connect" => connect(fds, words),
        "accept" => accept(fds, words),
        "send" | "recv" | "read" | "write" | "readv" | "writev" | "sendmsg" | "recvmsg" => {
            transfer(fd(1), words)
        }
        "drain" => drain(fd(1)),
        "fill" => fill(fd(1)),
        "sendfile" => sendfile(fd(1), fd(2), words),
        "file" => file(fds, words),
        "pipe" => pipe(fds, words),
        "splice" => splice(fd(1), fd(2), words),
        "shutdown" => {
            let how = ["rd", "wr", "rdwr"].iter().position(|how| *how == words.get(2)).unwrap_or(9);
            // SAFETY: numbers only.
            result(unsafe { libc::shutdown(fd(1), how as c_int) } as isize)
        }
        "close" => {
            let number = fd(1);
            if words.get(2) != "keep" {
                fds.remove(words.get(1));
            }
            // SAFETY: numbers only.
            result(unsafe { libc::close(number) } as isize)
        }
        "dup" => {
            // SAFETY: numbers only.
            let copy = unsafe { libc::dup(fd(2)) };
            descriptor(fds, words.get(1), copy)
        }
        // SAFETY: numbers only.
        "dup2" => match unsafe { libc::dup2(fd(1), fd(2)) } {
            -1 => result(-1),
            number => format!("{}", number == fd(2)),
        },
        "poll" => poll(fds, words),
        "select" => select(fds, words),
        "epoll" => {
            // SAFETY: numbers only.
            let set = unsafe { libc::epoll_create1(0) };
            descriptor(fds, words.get(1), set)
        }
        "ctl" => control(fds, words),
        "wait" => wait(fds, words),
        "getopt" => get_option(fd(1), words.get(2)),
        "setopt" => set_option(fd(1), words),
        "name" | "peer" => name(fd(1), words),
        "fionread" | "outq" | "outqnsd" => count_of(fd(1), words.first()),
        // SAFETY: numbers only.
        "atmark" => result(unsafe { sockatmark(fd(1)) } as isize),
        "fionbio" => {
            let mut on = words.number(2) as c_int;
            // SAFETY: the request reads one int.
            result(unsafe { libc::ioctl(fd(1), libc::FIONBIO, &raw mut on) } as isize)
        }
        "getfl" => {
            // SAFETY: numbers only.
            let flags = unsafe { libc::fcntl(fd(1), libc::F_GETFL) };
            result_with(flags as isize, |_| {
                format!(
                    "rdwr:{} nonblock:{}",
                    flags & libc::O_ACCMODE == libc::O_RDWR,
                    flags & libc::O_NONBLOCK != 0
                )
            })
        }
        "getfd" => {
            // SAFETY: numbers only.
            result(unsafe { libc::fcntl(fd(1), libc::F_GETFD) } as isize)
        }
        "setfl" => {
            let flags = if words.get(2) == "nonblock" { libc::O_NONBLOCK } else { 0 };
            // SAFETY: numbers only.
            result(unsafe { libc::fcntl(fd(1), libc::F_SETFL, flags | libc::O_RDWR) } as isize)
        }
        // SAFETY: numbers only.
        "lseek" => result(unsafe { libc::lseek(fd(1), 0, libc::SEEK_CUR) } as isize),
        "pread" => {
            let mut bytes = [0u8; 16];
            // SAFETY: the buffer is that long.
            result(unsafe { libc::pread(fd(1), bytes.as_mut_ptr().cast(), bytes.len(), 0) })
        }
        "fstat" => {
            // SAFETY: a zeroed stat is a valid one, and is only written.
            let mut stat: libc::stat = unsafe { zeroed() };
            // SAFETY: a place for a stat.
            let value = unsafe { libc::fstat(fd(1), &raw mut stat) };
            result_with(value as isize, |_| {
                format!("socket:{}", stat.st_mode & libc::S_IFMT == libc::S_IFSOCK)
            })
        }
        "alarm" => alarm(words),
        "print" | "getline" | "dprintf" => stdio::run(fd(1), words),
        "serve" => processes::serve(fd(1), words),
        "reap" => processes::reap(),
        "pass" => processes::pass(fds, words),
        "sleep" => {
            std::thread::sleep(std::time::Duration::from_millis(words.number(1).unsigned_abs()));
            "0".to_owned()
        }
        _ => rarer(fds, words),
    }
}

/// Calls that few programs make.
fn rarer(fds: &mut Fds, words: &Words) -> String {
    let fd = |at: usize| fds.number(words.get(at));
    match words.first() {
        "tee" => tee([fd(1), fd(2)], words),
        "vmsplice" => tee([fd(1), -1], words),
        "preadv2" | "pwritev2" => positioned(fd(1), words),
        "fault" => pointers::fault(fd(2), words),
        "edge" => pointers::edge(fd(2), words),
        "message" => messages::receive(fd(1), words),
        "recvmmsg" => messages::receive_many(fd(1), words),
        "sendmmsg" => messages::send_many(fd(1), words),
        "sendcmsg" => messages::send_control(fd(1), words),
        "owner" | "fioasync" | "async" | "getown" | "setsig" | "signals" => signals::run(fds, words),
        "rawget" => raw_get(fd(1), words),
        "rawset" => raw_set(fd(1), words),
        other => panic!("{other} is no call, in: {}", words.text()),
    }
}

/// `fionread NAME`, `outq NAME`, `outqnsd NAME`: bytes in the queues.
fn count_of(fd: c_int, queue: &str) -> String {
    let request = match queue {
        "outq" => libc::TIOCOUTQ,
        "outqnsd" => 0x894b,
        _ => libc::FIONREAD,
    };
    let mut count: c_int = 0;
    // SAFETY: the requests write one int.
    let value = unsafe { libc::ioctl(fd, request, &raw mut count) };
    result_with(value as isize, |_| count.to_string())
}

/// `socket NAME [udp] [unix] [v6] [nonblock] [cloexec] [limits]`
fn socket(fds: &mut Fds, words: &Words) -> String {
    let family = match () {
        () if words.has("v6") => libc::AF_INET6,
        () if words.has("unix") => libc::AF_UNIX,
        () => libc::AF_INET,
    };
    let mut kind = if words.has("udp") { libc::SOCK_DGRAM } else { libc::SOCK_STREAM };
    if words.has("nonblock") {
        kind |= libc::SOCK_NONBLOCK;
    }
    if words.has("cloexec") {
        kind |= libc::SOCK_CLOEXEC;
    }
    // SAFETY: numbers only.
    let fd = unsafe { libc::socket(family, kind, 0) };
    limits(fd, words);
    descriptor(fds, words.get(1), fd)
}

/// An address with room for both families.
struct Address {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl Address {
    fn empty() -> Self {
        // SAFETY: all zero is a valid sockaddr_storage.
        Self { storage: unsafe { zeroed() }, len: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    fn loopback(v6: bool, port: u16) -> Self {
        let mut address = Self::empty();
        if v6 {
            // SAFETY: the storage is large enough and aligned for every kind of address.
            let place = unsafe { &mut *(&raw mut address.storage).cast::<libc::sockaddr_in6>() };
            place.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            place.sin6_port = port.to_be();
            place.sin6_addr.s6_addr[15] = 1;
            address.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        } else {
            // SAFETY: as above.
            let place = unsafe { &mut *(&raw mut address.storage).cast::<libc::sockaddr_in>() };
            place.sin_family = libc::AF_INET as libc::sa_family_t;
            place.sin_port = port.to_be();
            place.sin_addr.s_addr = u32::from_be_bytes([127, 0, 0, 1]).to_be();
            address.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        }
        address
    }

    /// The address that `fd` is bound to; one where nobody listens if it is no socket.
    fn of(fd: c_int) -> Self {
        let mut address = Self::empty();
        // SAFETY: the storage and its length.
        let known = unsafe { libc::getsockname(fd, (&raw mut address.storage).cast(), &raw mut address.len) };
        if known == 0 { address } else { Self::loopback(false, 1) }
    }

    fn pointer(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    /// Family, address, and whether there is a port.
    fn shown(&self) -> String {
        match c_int::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says what it is.
                let place = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in>() };
                let addr = std::net::Ipv4Addr::from(u32::from_be(place.sin_addr.s_addr));
                format!("{addr}:{} ({} bytes)", if place.sin_port == 0 { "0" } else { "port" }, self.len)
            }
            libc::AF_INET6 => {
                // SAFETY: the family says what it is.
                let place = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in6>() };
                let addr = std::net::Ipv6Addr::from(place.sin6_addr.s6_addr);
                format!("[{addr}]:{} ({} bytes)", if place.sin6_port == 0 { "0" } else { "port" }, self.len)
            }
            family => format!("family {family} ({} bytes)", self.len),
        }
    }
}

/// `limits`: no call on the socket waits for longer than 30 ms, and it sends at once what it is given.
fn limits(fd: c_int, words: &Words) {
    if words.has("limits") && fd >= 0 {
        for line in ["setopt x RCVTIMEO 30", "setopt x SNDTIMEO 30", "setopt x NODELAY 1"] {
            let _ = set_option(fd, &Words::parse(line));
        }
    }
}

/// `pair CLIENT ACCEPTED LISTENER [v6] [limits]`: three descriptors.
fn pair(fds: &mut Fds, words: &Words) -> String {
    let family = if words.has("v6") { "v6" } else { "" };
    let limits = if words.has("limits") { "limits" } else { "" };
    let (client, accepted, listener) = (words.get(1), words.get(2), words.get(3));
    let mut all = String::new();
    for line in [
        format!("socket {listener} {family} {limits}"),
        format!("bind {listener} loopback {family}"),
        format!("listen {listener} 10"),
        format!("socket {client} {family} {limits}"),
        format!("connect {client} {listener}"),
        format!("accept {accepted} {listener} {limits}"),
    ] {
        all.push_str(&run(fds, &Words::parse(&line)));
        all.push(' ');
    }
    all.trim_end().to_owned()
}

/// `bind NAME loopback|any|like:OTHER|foreign [v6]`
fn bind(fds: &mut Fds, words: &Words) -> String {
    let v6 = words.has("v6");
    let address = match words.get(2) {
        "loopback" => Address::loopback(v6, 0),
        // TEST-NET-1 is no address of this host.
        "foreign" => {
            let mut address = Address::loopback(false, 0);
            // SAFETY: it is an IPv4 address.
            let place = unsafe { &mut *(&raw mut address.storage).cast::<libc::sockaddr_in>() };
            place.sin_addr.s_addr = u32::from_be_bytes([192, 0, 2, 1]).to_be();
            address
        }
        other => match other.strip_prefix("like:") {
            Some(other) => Address::of(fds.number(other)),
            None => panic!("bind to {other}"),
        },
    };
    // SAFETY: an address and its length.
    result(unsafe { libc::bind(fds.number(words.get(1)), address.pointer(), address.len) } as isize)
}

/// `connect NAME LISTENER|nobody|unspec|short [v6]`
fn connect(fds: &mut Fds, words: &Words) -> String {
    let fd = fds.number(words.get(1));
    let mut address = match words.get(2) {
        "nobody" => {
            // A port that was free a moment ago.
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let port = listener.local_addr().expect("bound").port();
            drop(listener);
            Address::loopback(words.has("v6"), port)
        }
        "unspec" => {
            let mut address = Address::loopback(false, 0);
            address.storage.ss_family = libc::AF_UNSPEC as libc::sa_family_t;
            address
        }
        listener => Address::of(fds.number(listener)),
    };
    if words.has("short") {
        address.len = 3;
    }
    // SAFETY: an address and its length.
    result(unsafe { libc::connect(fd, address.pointer(), address.len) } as isize)
}

/// `accept NAME LISTENER [nonblock] [cloexec] [address] [badflags] [plain] [limits]`
fn accept(fds: &mut Fds, words: &Words) -> String {
    let listener = fds.number(words.get(2));
    let mut flags = 0;
    for (word, flag) in [("nonblock", libc::SOCK_NONBLOCK), ("cloexec", libc::SOCK_CLOEXEC), ("badflags", 1)]
    {
        if words.has(word) {
            flags |= flag;
        }
    }
    let mut address = Address::empty();
    let (place, len): (*mut libc::sockaddr, *mut libc::socklen_t) = if words.has("address") {
        ((&raw mut address.storage).cast(), &raw mut address.len)
    } else {
        (ptr::null_mut(), ptr::null_mut())
    };
    // SAFETY: no address, or a storage and its length.
    let fd = unsafe {
        if words.has("plain") {
            libc::accept(listener, place, len)
        } else {
            libc::accept4(listener, place, len, flags)
        }
    };
    limits(fd, words);
    let more = if fd >= 0 && words.has("address") { format!(" {}", address.shown()) } else { String::new() };
    descriptor(fds, words.get(1), fd) + &more
}

/// `send NAME DATA [flags]`, `recv NAME COUNT [flags]`, `readv NAME COUNT…`, `writev NAME DATA…` …
fn transfer(fd: c_int, words: &Words) -> String {
    let flags = message_flags(words.iter().skip(2));
    match words.first() {
        "send" | "write" | "writev" | "sendmsg" => {
            let pieces: Vec<Vec<u8>> = words.iter().skip(2).filter(|w| is_data(w)).map(bytes_of).collect();
            let list: Vec<libc::iovec> = pieces
                .iter()
                .map(|piece| libc::iovec { iov_base: piece.as_ptr() as *mut c_void, iov_len: piece.len() })
                .collect();
            let first =
                list.first().copied().unwrap_or(libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 });
            // SAFETY: the pieces live until the call returns and are only read.
            let value = unsafe {
                match words.first() {
                    "send" => libc::send(fd, first.iov_base, first.iov_len, flags),
                    "write" => libc::write(fd, first.iov_base, first.iov_len),
                    "writev" => libc::writev(fd, list.as_ptr(), list.len() as c_int),
                    _ => libc::sendmsg(fd, &message(&list), flags),
                }
            };
            result(value)
        }
        kind => {
            let counts = words.iter().skip(2).filter_map(|word| word.parse::<usize>().ok());
            let mut pieces: Vec<Vec<u8>> = counts.map(|count| vec![b'.'; count]).collect();
            let list: Vec<libc::iovec> = pieces
                .iter_mut()
                .map(|piece| libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() })
                .collect();
            let first =
                list.first().copied().unwrap_or(libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 });
            let mut header = message(&list);
            // SAFETY: the pieces live until the call returns and are as long as the list says.
            let value = unsafe {
                match kind {
                    "recv" => libc::recv(fd, first.iov_base, first.iov_len, flags),
                    "read" => libc::read(fd, first.iov_base, first.iov_len),
                    "readv" => libc::readv(fd, list.as_ptr(), list.len() as c_int),
                    _ => libc::recvmsg(fd, &raw mut header, flags),
                }
            };
            result_with(value, |count| {
                let all: Vec<u8> = pieces.concat();
                shown(all.get(..count.min(all.len())).unwrap_or_default())
            })
        }
    }
}

fn is_data(word: &str) -> bool {
    word.starts_with('"') || word.starts_with("bytes:")
}

pub fn message(list: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: all zero is a valid msghdr: no name, no control data.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = list.as_ptr().cast_mut();
    header.msg_iovlen = list.len() as _;
    header
}

/// Reads until the end, an error or EAGAIN; says how much came and what ended it.
fn drain(fd: c_int) -> String {
    let mut all = Vec::new();
    let mut bytes = vec![0u8; 65_536];
    loop {
        // SAFETY: the buffer is that long.
        let value = unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(value) {
            // Nobody else counts as many bytes as the filler of a stream.
            Ok(0) if all.first() == Some(&b'f') => return "what fill sent, end".to_owned(),
            Ok(0) => return format!("{} end", shown(&all)),
            Ok(count) => all.extend_from_slice(&bytes[..count]),
            Err(_) => return format!("{} {}", shown(&all), result(value)),
        }
    }
}

/// Sends until nothing fits for a while; says what ended it. (How much fits differs, and may; and a stack that takes bytes
/// on in the background may be full for a moment only. Linux calls a socket writable when a third is free, and takes a byte where there is
/// less: so the end is a try that fails after a while without room.)
fn fill(fd: c_int) -> String {
    let bytes = [b'f'; 4096];
    let mut quiet = false;
    for _ in 0..100_000 {
        // SAFETY: the buffer is that long.
        let value = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) };
        if value >= 0 {
            quiet = false;
        } else if quiet {
            return result(value);
        } else {
            let mut entry = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
            // SAFETY: one entry.
            quiet = unsafe { libc::poll(&raw mut entry, 1, 200) } <= 0;
        }
    }
    "never full".to_owned()
}

/// `sendfile OUT FILE COUNT [OFFSET]`
fn sendfile(out: c_int, file: c_int, words: &Words) -> String {
    let mut offset = words.number(4);
    let place = if words.get(4).is_empty() { ptr::null_mut() } else { &raw mut offset };
    // SAFETY: null, or a place for an offset.
    let value = unsafe { libc::sendfile(out, file, place, words.number(3) as usize) };
    result_with(value, |_| format!("offset {offset}"))
}

/// `file NAME DATA`: a file with that content.
fn file(fds: &mut Fds, words: &Words) -> String {
    let bytes = words.bytes(2);
    // SAFETY: a literal name; the bytes are as long as said.
    let fd = unsafe {
        let fd = libc::memfd_create(c"utcp-calls".as_ptr(), 0);
        libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        libc::lseek(fd, 0, libc::SEEK_SET);
        fd
    };
    descriptor(fds, words.get(1), fd)
}

/// `pipe READ WRITE`
fn pipe(fds: &mut Fds, words: &Words) -> String {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    let value = unsafe { libc::pipe(ends.as_mut_ptr()) };
    fds.insert(words.get(1), ends[0]);
    fds.insert(words.get(2), ends[1]);
    result(value as isize)
}

/// `splice FROM TO COUNT [nonblock] [badflags] [offset-from] [offset-to]`
fn splice(from: c_int, to: c_int, words: &Words) -> String {
    let mut flags = if words.has("nonblock") { libc::SPLICE_F_NONBLOCK } else { 0 };
    flags |= if words.has("badflags") { 1 << 9 } else { 0 };
    let (mut first, mut second) = (0, 0);
    let first = if words.has("offset-from") { &raw mut first } else { ptr::null_mut() };
    let second = if words.has("offset-to") { &raw mut second } else { ptr::null_mut() };
    // SAFETY: no offsets, or places for them.
    result(unsafe { libc::splice(from, first, to, second, words.number(3) as usize, flags) })
}

/// `tee FROM TO COUNT`, `vmsplice PIPE`
fn tee(fds: [c_int; 2], words: &Words) -> String {
    let bytes = [b'v'; 64];
    let list = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: bytes that are only read.
    result(unsafe {
        match words.first() {
            "tee" => libc::tee(fds[0], fds[1], words.number(3) as usize, libc::SPLICE_F_NONBLOCK),
            _ => libc::vmsplice(fds[0], &raw const list, 1, libc::SPLICE_F_NONBLOCK),
        }
    })
}

/// `preadv2 NAME COUNT OFFSET FLAGS`, `pwritev2 NAME DATA OFFSET FLAGS`
fn positioned(fd: c_int, words: &Words) -> String {
    let (offset, flags) = (words.number(3), words.number(4) as c_int);
    if words.first() == "pwritev2" {
        let bytes = words.bytes(2);
        let list = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: bytes that live until the call returns.
        return result(unsafe { libc::pwritev2(fd, &raw const list, 1, offset, flags) });
    }
    let mut bytes = vec![0u8; words.number(2) as usize];
    let list = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: as above.
    let value = unsafe { libc::preadv2(fd, &raw const list, 1, offset, flags) };
    result_with(value, |count| shown(&bytes[..count]))
}

/// `poll TIMEOUT NAME:events…`
fn poll(fds: &Fds, words: &Words) -> String {
    let mut names = Vec::new();
    let mut list: Vec<libc::pollfd> = Vec::new();
    for word in words.iter().skip(2) {
        let (name, wanted) = word.split_once(':').expect("NAME:events");
        names.push(name);
        list.push(libc::pollfd { fd: fds.number(name), events: names::events(wanted) as i16, revents: 0 });
    }
    // SAFETY: a list and its length.
    let value =
        unsafe { libc::poll(list.as_mut_ptr(), list.len() as libc::nfds_t, words.number(1) as c_int) };
    result_with(value as isize, |_| {
        let each = names.iter().zip(&list);
        let words = each
            .map(|(name, entry)| format!("{name}:{}", names::events_text(u32::from(entry.revents as u16))));
        words.collect::<Vec<_>>().join(" ")
    })
}

/// `select TIMEOUT r:NAME… w:NAME… e:NAME…`
fn select(fds: &Fds, words: &Words) -> String {
    // SAFETY: an fd_set of zeros is the empty set.
    let mut sets: [libc::fd_set; 3] = unsafe { zeroed() };
    let mut highest = -1;
    let asked: Vec<(usize, &str)> = words
        .iter()
        .skip(2)
        .map(|word| {
            let (kind, name) = word.split_once(':').expect("r:NAME");
            (["r", "w", "e"].iter().position(|k| *k == kind).expect("r, w or e"), name)
        })
        .collect();
    for (set, name) in &asked {
        // SAFETY: a set, and a descriptor below its size (scripts open few).
        unsafe { libc::FD_SET(fds.number(name), &raw mut sets[*set]) };
        highest = highest.max(fds.number(name));
    }
    let ms = words.number(1);
    let mut timeout = libc::timeval { tv_sec: ms / 1000, tv_usec: ms % 1000 * 1000 };
    let [read, write, except] = &mut sets;
    // SAFETY: three sets and a timeout.
    let value = unsafe { libc::select(highest + 1, read, write, except, &raw mut timeout) };
    result_with(value as isize, |_| {
        // SAFETY: as above.
        let ready = asked
            .iter()
            .filter(|(set, name)| unsafe { libc::FD_ISSET(fds.number(name), &raw const sets[*set]) });
        ready.map(|(set, name)| format!("{}:{name}", ["r", "w", "e"][*set])).collect::<Vec<_>>().join(" ")
    })
}

/// `ctl SET add|mod|del NAME events`
fn control(fds: &Fds, words: &Words) -> String {
    let operation = match words.get(2) {
        "add" => libc::EPOLL_CTL_ADD,
        "mod" => libc::EPOLL_CTL_MOD,
        "del" => libc::EPOLL_CTL_DEL,
        other => panic!("ctl {other}"),
    };
    let name = words.get(3);
    let fd = fds.number(name);
    let mut event = libc::epoll_event { events: names::events(words.get(4)), u64: tag(name) };
    // SAFETY: an event to read.
    result(unsafe { libc::epoll_ctl(fds.number(words.get(1)), operation, fd, &raw mut event) } as isize)
}

/// Eight letters of a name as an event's data.
fn tag(name: &str) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    u64::from_le_bytes(bytes)
}

/// `wait SET TIMEOUT [MAX]`
fn wait(fds: &Fds, words: &Words) -> String {
    let max = if words.get(3).is_empty() { 16 } else { words.number(3) };
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
    // SAFETY: room for 16 events; scripts ask for no more, or for a number that must be refused.
    let value = unsafe {
        libc::epoll_wait(
            fds.number(words.get(1)),
            events.as_mut_ptr(),
            max as c_int,
            words.number(2) as c_int,
        )
    };
    result_with(value as isize, |count| {
        let mut list: Vec<String> = events[..count]
            .iter()
            .map(|event| {
                let (data, what) = (event.u64.to_le_bytes(), event.events);
                let name = String::from_utf8_lossy(&data);
                format!("{}:{}", name.trim_end_matches('\0'), names::events_text(what))
            })
            .collect();
        list.sort(); // Their order is nobody's promise.
        list.join(" ")
    })
}

fn get_option(fd: c_int, word: &str) -> String {
    let (level, name) = names::option(word);
    let mut value = [0u8; 256];
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: room and its length.
    let returned = unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut len) };
    result_with(returned as isize, |_| {
        let bytes = &value[..len as usize];
        match word {
            // What is in them differs, and may; that they are there does not.
            "INFO" => format!("state {}", bytes[0]),
            "SNDBUF" | "RCVBUF" | "MAXSEG" => "a number".to_owned(),
            "CONGESTION" => "a name".to_owned(),
            _ => bytes
                .chunks(4)
                .map(|word| {
                    word.try_into().map_or_else(|_| "?".to_owned(), |w| i32::from_ne_bytes(w).to_string())
                })
                .collect::<Vec<_>>()
                .join(" "),
        }
    })
}

/// `setopt NAME OPTION VALUE [VALUE2]`; for timeouts milliseconds, for `LINGER` onoff and seconds, `short` for two bytes.
fn set_option(fd: c_int, words: &Words) -> String {
    let (level, name) = names::option(words.get(2));
    let mut value: Vec<u8> = match words.get(2) {
        "RCVTIMEO" | "SNDTIMEO" => {
            let ms = words.number(3);
            [ms / 1000, ms % 1000 * 1000].iter().flat_map(|part| part.to_ne_bytes()).collect()
        }
        "LINGER" => {
            [words.number(3), words.number(4)].iter().flat_map(|part| (*part as i32).to_ne_bytes()).collect()
        }
        "CONGESTION" => words.bytes(3),
        _ => (words.number(3) as i32).to_ne_bytes().to_vec(),
    };
    if words.has("short") {
        value.truncate(2);
    }
    // SAFETY: bytes and their length.
    result(
        unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), value.len() as libc::socklen_t) }
            as isize,
    )
}

/// `rawget NAME OPTION ROOM`: the length and the bytes that came, of as much room (or length word) as said.
fn raw_get(fd: c_int, words: &Words) -> String {
    let (level, name) = names::option(words.get(2));
    let mut value = [0xaau8; 256];
    let mut len = words.number(3) as libc::socklen_t;
    // SAFETY: scripts ask for less than the room, or for a number that must be refused.
    let returned = unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut len) };
    result_with(returned as isize, |_| {
        let bytes = value.get(..(len as usize).min(32)).unwrap_or_default();
        format!("{len}: {}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    })
}

/// `rawset NAME OPTION BYTE…`: in hexadecimal.
fn raw_set(fd: c_int, words: &Words) -> String {
    let (level, name) = names::option(words.get(2));
    let digits = words.get(3);
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal");
    let value: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
    let len = value.len() as libc::socklen_t;
    // SAFETY: bytes and their length.
    result(unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) } as isize)
}

/// `name NAME`, `peer NAME`
fn name(fd: c_int, words: &Words) -> String {
    let mut address = Address::empty();
    let place: *mut libc::sockaddr = (&raw mut address.storage).cast();
    // SAFETY: the storage and its length.
    let value = unsafe {
        if words.first() == "name" {
            libc::getsockname(fd, place, &raw mut address.len)
        } else {
            libc::getpeername(fd, place, &raw mut address.len)
        }
    };
    result_with(value as isize, |_| address.shown())
}

/// `alarm MS [restart]`: a signal that interrupts a call, or lets it go on.
fn alarm(words: &Words) -> String {
    count_signal(libc::SIGALRM, if words.has("restart") { libc::SA_RESTART } else { 0 });
    let ms = words.number(1);
    let none = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let when = libc::itimerval {
        it_interval: none,
        it_value: libc::timeval { tv_sec: ms / 1000, tv_usec: ms % 1000 * 1000 },
    };
    // SAFETY: a timer to read.
    result(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const when, ptr::null_mut()) } as isize)
}
