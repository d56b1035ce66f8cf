//! A script's calls: from expressions to arguments, and back to what is to be compared.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::memory::{self, Memory};
use crate::script::{Call, Expr};
use crate::shim::Shim;
use crate::symbols;
use crate::world::Outcome;

/// What a call's result is compared with besides its value.
pub type Check = Box<dyn FnOnce(i64) -> Result<(), String>>;

/// A call that can be made.
pub struct Prepared {
    /// Makes it, on the program's thread.
    pub job: Box<dyn FnOnce() -> Outcome + Send>,
    /// Looks at what it wrote.
    pub check: Check,
    /// The script's number of the descriptor that it returns.
    pub gives_fd: bool,
}

/// Addresses that `...` stands for.
#[derive(Clone, Copy)]
pub struct Places {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// IPv4 through an IPv6 socket.
    pub mapped: bool,
}

/// The program's view: its library, its descriptors.
pub struct Program {
    shim: Shim,
    places: Places,
    /// Script's number to ours.
    fds: HashMap<i64, i32>,
}

type Args<'a> = &'a [Expr];

/// Runs `call` and says what errno is.
fn outcome(call: impl FnOnce() -> i64) -> Outcome {
    let value = call();
    (value, if value < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 })
}

/// A number as it is, or as a name.
pub fn number(expr: &Expr) -> Result<i64, String> {
    match expr {
        Expr::Int(value) => Ok(*value),
        Expr::Word(name) => symbols::value(name).ok_or_else(|| format!("{name} is unknown")),
        Expr::Or(a, b) => Ok(number(a)? | number(b)?),
        Expr::Apply(name, args) if name == "htons" => match args.as_slice() {
            [port] => Ok(i64::from((number(port)? as u16).to_be())),
            _ => Err("htons takes one number".into()),
        },
        other => Err(format!("{other:?} is no number")),
    }
}

fn int(args: Args<'_>, at: usize) -> Result<i32, String> {
    Ok(number(args.get(at).ok_or_else(|| format!("argument {at} is missing"))?)? as i32)
}

fn size(args: Args<'_>, at: usize) -> Result<usize, String> {
    Ok(number(args.get(at).ok_or_else(|| format!("argument {at} is missing"))?)? as usize)
}

/// Whether the second is as the first wants it.
fn same(what: &str, wanted: i64, got: i64) -> Result<(), String> {
    if wanted == got {
        Ok(())
    } else {
        Err(format!("{what} is {got} ({got:#x}), not {wanted} ({wanted:#x})"))
    }
}

macro_rules! job {
    ($call:expr) => {
        // SAFETY: arguments of the right types; memory is leaked on purpose and outlives every call, and pointers
        // that lead nowhere are what the script asks for.
        Box::new(move || outcome(|| unsafe { $call } as i64))
    };
}

impl Program {
    pub fn new(shim: Shim, places: Places) -> Self {
        Self { shim, places, fds: HashMap::new() }
    }

    /// Our number for the script's descriptor.
    pub fn fd(&self, script: i64) -> i32 {
        self.fds.get(&script).copied().unwrap_or(script as i32)
    }

    /// The script calls our `live` descriptor `script`.
    pub fn learn(&mut self, script: i64, live: i32) {
        self.fds.insert(script, live);
    }

    fn arg_fd(&self, args: Args<'_>, at: usize) -> Result<i32, String> {
        Ok(self.fd(number(args.get(at).ok_or("the descriptor is missing")?)?))
    }

    /// An address argument: `...` is `default`.
    fn address(&self, expr: Option<&Expr>, default: SocketAddr) -> Result<(Memory, u32), String> {
        match expr {
            None | Some(Expr::Ellipsis) => Ok(memory::address(default, self.places.mapped)),
            Some(Expr::Word(name)) if name == "AF_UNSPEC" => Ok((Memory::zeroed(16), 16)),
            Some(Expr::Word(name)) if name == "NULL" => Ok((Memory::null(), 0)),
            Some(Expr::Int(_)) => Ok((Memory::at(number(expr.ok_or("no address")?)?), 16)),
            Some(given) => {
                let port = given.field("sin_port").ok_or("an address without sin_port")?;
                let Some(Expr::Apply(_, addr)) = given.field("sin_addr") else {
                    return Err("an address without sin_addr".into());
                };
                let Some(Expr::Text(text)) = addr.first() else { return Err("no address in quotes".into()) };
                let addr: IpAddr = String::from_utf8_lossy(text).parse().map_err(|_| "no IP address")?;
                Ok(memory::address(SocketAddr::new(addr, (number(port)? as u16).to_be()), false))
            }
        }
    }

    /// A call with its arguments.
    ///
    /// # Errors
    /// It is unknown, or its arguments make no sense.
    pub fn prepare(&self, call: &Call) -> Result<Prepared, String> {
        let args = call.args.as_slice();
        let mut check: Check = Box::new(|_| Ok(()));
        let mut gives_fd = false;
        let s = self.shim;
        let job: Box<dyn FnOnce() -> Outcome + Send> = match call.name.as_str() {
            "socket" => {
                gives_fd = true;
                let v6 = self.places.mapped || self.places.local.is_ipv6();
                let domain = match &args[0] {
                    Expr::Ellipsis => {
                        if v6 {
                            libc::AF_INET6
                        } else {
                            libc::AF_INET
                        }
                    }
                    other => number(other)? as i32,
                };
                let (kind, protocol) = (int(args, 1)?, int(args, 2)?);
                job!((s.socket)(domain, kind, protocol))
            }
            "bind" | "connect" => {
                let fd = self.arg_fd(args, 0)?;
                let bind = call.name == "bind";
                let place = if bind { self.places.local } else { self.places.remote };
                let (address, len) = self.address(args.get(1), place)?;
                let function = if bind { s.bind } else { s.connect };
                job!(function(fd, address.ptr().cast(), len))
            }
            "listen" => {
                let (fd, backlog) = (self.arg_fd(args, 0)?, int(args, 1)?);
                job!((s.listen)(fd, backlog))
            }
            "accept" | "accept4" => {
                gives_fd = true;
                let fd = self.arg_fd(args, 0)?;
                let flags = if args.len() > 3 { int(args, 3)? } else { 0 };
                let (room, len) = (Memory::zeroed(128), Memory::bytes(&128u32.to_ne_bytes()));
                if call.name == "accept" {
                    job!((s.accept)(fd, room.ptr().cast(), len.ptr().cast()))
                } else {
                    job!((s.accept4)(fd, room.ptr().cast(), len.ptr().cast(), flags))
                }
            }
            "shutdown" => {
                let (fd, how) = (self.arg_fd(args, 0)?, int(args, 1)?);
                job!((s.shutdown)(fd, how))
            }
            "close" => {
                let fd = self.arg_fd(args, 0)?;
                job!((s.close)(fd))
            }
            "dup" => {
                gives_fd = true;
                let fd = self.arg_fd(args, 0)?;
                job!((s.dup)(fd))
            }
            "open" => {
                gives_fd = true;
                let Some(Expr::Text(path)) = args.first() else { return Err("open takes a path".into()) };
                let path = Memory::bytes(&[path.as_slice(), &[0]].concat());
                let flags = int(args, 1)?;
                job!(libc::open(path.ptr().cast(), flags, 0o600))
            }
            "epoll_create" | "epoll_create1" => {
                gives_fd = true;
                job!(libc::epoll_create1(0))
            }
            "fcntl" => {
                let (fd, command) = (self.arg_fd(args, 0)?, int(args, 1)?);
                let value = if args.len() > 2 { size(args, 2)? } else { 0 };
                job!((s.fcntl)(fd, command, value))
            }
            "usleep" => return Err("time is the script's alone".into()),
            name => {
                let known =
                    self.bytes(name, args).transpose().or_else(|| self.others(name, args).transpose());
                let (job, other) = known.ok_or_else(|| format!("{name}() is not known"))??;
                check = other;
                job
            }
        };
        Ok(Prepared { job, check, gives_fd })
    }

    /// Calls that move bytes.
    fn bytes(&self, name: &str, args: Args<'_>) -> Result<Option<Found>, String> {
        let s = self.shim;
        let nothing: Check = Box::new(|_| Ok(()));
        let fd = || self.arg_fd(args, 0);
        let buffer = || Ok::<_, String>((memory::buffer(args.get(1), size(args, 2)?)?, size(args, 2)?));
        Ok(Some(match name {
            "read" => {
                let (fd, (to, len)) = (fd()?, buffer()?);
                (job!((s.read)(fd, to.ptr().cast(), len)), nothing)
            }
            "write" => {
                let (fd, (from, len)) = (fd()?, buffer()?);
                (job!((s.write)(fd, from.ptr().cast(), len)), nothing)
            }
            "recv" => {
                let (fd, (to, len), flags) = (fd()?, buffer()?, int(args, 3)?);
                (job!((s.recv)(fd, to.ptr().cast(), len, flags)), nothing)
            }
            "recvfrom" => {
                let (fd, (to, len), flags) = (fd()?, buffer()?, int(args, 3)?);
                (
                    job!((s.recvfrom)(
                        fd,
                        to.ptr().cast(),
                        len,
                        flags,
                        std::ptr::null_mut(),
                        std::ptr::null_mut()
                    )),
                    nothing,
                )
            }
            "send" => {
                let (fd, (from, len), flags) = (fd()?, buffer()?, int(args, 3)?);
                (job!((s.send)(fd, from.ptr().cast(), len, flags)), nothing)
            }
            "sendto" => {
                let (fd, (from, len), flags) = (fd()?, buffer()?, int(args, 3)?);
                let (to, to_len) = self.address(args.get(4), self.places.remote)?;
                (job!((s.sendto)(fd, from.ptr().cast(), len, flags, to.ptr().cast(), to_len)), nothing)
            }
            "readv" | "writev" => {
                let fd = fd()?;
                let (list, count) = memory::vectors(args.get(1).ok_or("no list")?)?;
                if name == "readv" {
                    (job!((s.readv)(fd, list.ptr().cast(), count as i32)), nothing)
                } else {
                    (job!((s.writev)(fd, list.ptr().cast(), count as i32)), nothing)
                }
            }
            "sendmsg" | "recvmsg" => {
                let (fd, flags) = (fd()?, int(args, 2)?);
                let given = args.get(1).ok_or("no message")?;
                let send = name == "sendmsg";
                let (remote, mapped) = (self.places.remote, self.places.mapped);
                let named = send && flags & libc::MSG_FASTOPEN != 0;
                let to = named.then(|| memory::address(remote, mapped));
                let (header, check) = memory::message(given, to, send)?;
                if send {
                    (job!((s.sendmsg)(fd, header.ptr().cast(), flags)), check)
                } else {
                    (job!((s.recvmsg)(fd, header.ptr().cast(), flags)), check)
                }
            }
            "sendfile" => {
                let (out, from, len) = (fd()?, self.arg_fd(args, 1)?, size(args, 3)?);
                let offset = match args.get(2) {
                    Some(Expr::List(items)) => {
                        Memory::bytes(&number(items.first().ok_or("no offset")?)?.to_ne_bytes())
                    }
                    _ => Memory::null(),
                };
                (job!((s.sendfile)(out, from, offset.ptr().cast(), len)), nothing)
            }
            "splice" => {
                let (from, to, len, flags) = (fd()?, self.arg_fd(args, 2)?, size(args, 4)?, int(args, 5)?);
                let none = std::ptr::null_mut;
                (job!((s.splice)(from, none(), to, none(), len, flags as u32)), nothing)
            }
            _ => return Ok(None),
        }))
    }

    /// Options, readiness and the rest.
    fn others(&self, name: &str, args: Args<'_>) -> Result<Option<Found>, String> {
        let s = self.shim;
        let nothing: Check = Box::new(|_| Ok(()));
        Ok(Some(match name {
            "setsockopt" => {
                let (fd, level, option) = (self.arg_fd(args, 0)?, int(args, 1)?, int(args, 2)?);
                let (value, len) = (memory::option(args.get(3).ok_or("no value")?)?, int(args, 4)?);
                (job!((s.setsockopt)(fd, level, option, value.ptr().cast(), len as u32)), nothing)
            }
            "getsockopt" => {
                let (fd, level, option) = (self.arg_fd(args, 0)?, int(args, 1)?, int(args, 2)?);
                let wanted = memory::option(args.get(3).ok_or("no value")?)?;
                let Some(Expr::List(lens)) = args.get(4) else { return Err("[LENGTH] is missing".into()) };
                let len = number(lens.first().ok_or("no length")?)?;
                let (room, room_len) = (Memory::zeroed(256), Memory::bytes(&(len as u32).to_ne_bytes()));
                let check = move |value: i64| {
                    let got = room.read(wanted.len().min(len as usize));
                    if value < 0 || got == wanted.read(got.len()) {
                        Ok(())
                    } else {
                        Err(format!("the value is {got:?}"))
                    }
                };
                (
                    job!((s.getsockopt)(fd, level, option, room.ptr().cast(), room_len.ptr().cast())),
                    Box::new(check),
                )
            }
            "ioctl" => {
                let (fd, request) = (self.arg_fd(args, 0)?, size(args, 1)?);
                let wanted = match args.get(2) {
                    Some(Expr::List(items)) => Some(number(items.first().ok_or("no value")?)?),
                    _ => None,
                };
                let room = Memory::zeroed(8);
                let check = move |value: i64| match wanted {
                    Some(wanted) if value >= 0 => same("the answer", wanted, i64::from(room.int(0))),
                    _ => Ok(()),
                };
                (job!((s.ioctl)(fd, request as u64, room.ptr() as usize)), Box::new(check))
            }
            "poll" => self.poll(args)?,
            "pipe" => {
                let room = Memory::zeroed(8);
                (job!(libc::pipe(room.ptr().cast())), nothing)
            }
            "epoll_ctl" => {
                let (set, operation, fd) = (self.arg_fd(args, 0)?, int(args, 1)?, self.arg_fd(args, 2)?);
                let event = memory::epoll_event(args.get(3).ok_or("no event")?, |fd| self.fd(fd))?;
                (job!((s.epoll_ctl)(set, operation, fd, event.ptr().cast())), nothing)
            }
            "epoll_wait" => {
                let (set, most, timeout) = (self.arg_fd(args, 0)?, int(args, 2)?, int(args, 3)?);
                let wanted = memory::epoll_event(args.get(1).ok_or("no event")?, |fd| self.fd(fd))?;
                let room = Memory::zeroed(12 * most.max(1) as usize);
                let check = move |value: i64| {
                    if value <= 0 {
                        return Ok(());
                    }
                    same("events", i64::from(wanted.int(0)), i64::from(room.int(0)))?;
                    same("data", i64::from(wanted.int(4)), i64::from(room.int(4)))
                };
                (job!((s.epoll_wait)(set, room.ptr().cast(), most, timeout)), Box::new(check))
            }
            _ => return Ok(None),
        }))
    }

    fn poll(&self, args: Args<'_>) -> Result<Found, String> {
        let s = self.shim;
        let Some(Expr::List(list)) = args.first() else { return Err("poll takes a list".into()) };
        let (mut bytes, mut wanted) = (Vec::new(), Vec::new());
        for item in list {
            let part = |name| item.field(name).map_or(Ok(0), number);
            bytes.extend(self.fd(part("fd")?).to_ne_bytes());
            bytes.extend((part("events")? as i16).to_ne_bytes());
            bytes.extend([0; 2]);
            wanted.push(part("revents")? as i16);
        }
        let (room, count, timeout) = (Memory::bytes(&bytes), int(args, 1)?, int(args, 2)?);
        let check = move |_: i64| {
            for (at, wanted) in wanted.iter().enumerate() {
                let got = (room.int(at * 8 + 4) >> 16) as i16;
                same("revents", i64::from(*wanted), i64::from(got))?;
            }
            Ok(())
        };
        Ok((job!((s.poll)(room.ptr().cast(), count as u64, timeout)), Box::new(check)))
    }

    /// TCP_INFO of a descriptor of ours, when it was asked for.
    pub fn tcp_info(&self, fd: i32) -> (Box<dyn FnOnce() -> Outcome + Send>, Memory) {
        let (room, len) = (Memory::zeroed(512), Memory::bytes(&256u32.to_ne_bytes()));
        let s = self.shim;
        (
            job!((s.getsockopt)(fd, libc::IPPROTO_TCP, libc::TCP_INFO, room.ptr().cast(), len.ptr().cast())),
            room,
        )
    }

    /// `pipe([5, 6])`: the script's names for what came back need the memory, so it is made here.
    pub fn pipe(&mut self, call: &Call) -> Result<Option<Outcome>, String> {
        if call.name != "pipe" {
            return Ok(None);
        }
        let Some(Expr::List(names)) = call.args.first() else { return Err("pipe takes [A, B]".into()) };
        let mut pair = [0; 2];
        // SAFETY: room for two descriptors.
        let result = outcome(|| i64::from(unsafe { libc::pipe(pair.as_mut_ptr()) }));
        for (name, live) in names.iter().zip(pair) {
            self.learn(number(name)?, live);
        }
        Ok(Some(result))
    }
}

/// A job and what to look at behind it.
type Found = (Box<dyn FnOnce() -> Outcome + Send>, Check);
