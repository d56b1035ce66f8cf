//! Floods, until it is killed.
//!
//! `utcp-flooder udp ADDR PORT [RATE]`: a kernel's datagrams, as fast as they leave, or so many a second.
//!
//! `utcp-flooder switch:eth0 ADDR PORT`: a stack's frames that it may not send. PORT is another stack's. It sends segments that claim to come from there and from ports that nobody has, datagrams, bytes
//! that make no frame, and among them now and then one that it may send. It registers nothing but port 7.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use utcp_netmap_io::{OpenOptions, PortError, Proto, Tuple};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, addr, port, rate @ ..] = arguments.as_slice() else { return ExitCode::from(2) };
    let (Ok(addr), Ok(port)) = (addr.parse(), port.parse()) else { return ExitCode::from(2) };
    let error = if device == "udp" {
        let rate = rate.first().and_then(|rate| rate.parse().ok()).unwrap_or(f64::INFINITY);
        datagrams(addr, port, rate).to_string()
    } else {
        let Err(error) = flood(device, addr, port);
        error.to_string()
    };
    eprintln!("utcp-flooder: {error}");
    ExitCode::FAILURE
}

/// Datagrams of a minimal frame, many with each call; why it ended.
fn datagrams(addr: Ipv4Addr, port: u16, rate: f64) -> std::io::Error {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect((addr, port))?;
        Ok(socket)
    });
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => return error,
    };
    let payload = [0_u8; 18];
    let mut part = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: a structure of numbers and addresses, of which zero is one each.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (&raw mut part, 1);
    let mut messages = [message; 64];
    println!("floods");
    let (begin, mut due) = (Instant::now(), Duration::ZERO);
    loop {
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
        due += Duration::from_secs_f64(64.0 / rate);
        // SAFETY: the kernel reads the payload by all of them, and writes how much of it was sent into each.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), 64, 0) };
        let error = std::io::Error::last_os_error();
        // An ICMP error about one before, or a full queue.
        if sent < 0
            && !matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::ENOBUFS | libc::EAGAIN))
        {
            return error;
        }
    }
}

/// A packet without anything in it, for a documentation address that nobody has (RFC 5737).
fn packet(mac: [u8; 6], addr: Ipv4Addr, proto: u8, port: u16) -> Vec<u8> {
    let mut frame = [[0x02, 0, 0, 0, 0, 0x99], mac].concat();
    frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, proto, 0, 0]);
    frame.extend(addr.octets());
    frame.extend([192, 0, 2, 1]);
    frame.extend(port.to_be_bytes());
    frame.extend([0; 18]);
    frame
}

fn flood(device: &str, addr: Ipv4Addr, port: u16) -> Result<std::convert::Infallible, PortError> {
    let options = OpenOptions { stack: "flooder".into(), ..OpenOptions::default() };
    let mut opened = utcp_netmap_io::open(device, &options)?;
    if let Some(steering) = &opened.steering {
        steering.register(Tuple::new(addr.octets(), 7, Proto::TCP))?;
    }
    let own = &mut opened.ports[0];
    let mac = own.caps().mac;
    let spoofed = [
        packet(mac, addr, 6, port),
        packet(mac, addr, 6, 9),
        packet(mac, addr, 17, 7),
        packet(mac, Ipv4Addr::new(192, 0, 2, 7), 6, 7),
        vec![0xff; 60],
        vec![0; 1],
    ];
    let allowed = packet(mac, addr, 6, 7);
    println!("floods");
    let mut round = 0_u64;
    loop {
        round += 1;
        let full = spoofed.iter().any(|frame| !own.tx().push(frame));
        if round.is_multiple_of(1000) {
            own.tx().push(&allowed);
        }
        own.rx_sync()?;
        own.rx().for_each(drop);
        own.tx_sync()?;
        if full {
            std::thread::yield_now();
        }
    }
}
