//! The kernel goes on using an interface that is in netmap mode: a veth pair of our own, ping from the other side.
//!
//! ```text
//!  thread "other": a network namespace           thread "here": another one
//!  kernel 10.78.0.2 ── utcpv1 ══ utcpv0 ── netmap:utcpv0 ── host rings ── kernel 10.78.0.1
//! ```
//!
//! The same case over `xdp:` proves the case itself, on a machine without the module (`--host xdp:`).
//!
//! Needs root and nothing else: the pair is made by one message of rtnetlink, the rest by ioctl.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use utcp_netmap_io::inspect::Offload;
use utcp_netmap_io::{Counters, OpenOptions, PortError, Proto, Tuple};

use crate::Tally;

const HERE: [u8; 4] = [10, 78, 0, 1];
const OTHER: [u8; 4] = [10, 78, 0, 2];
/// A port that is ours, and one that is the kernel's.
const OURS: u16 = 7001;
const PINGS: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(2);
/// Which mode the module prefers for drivers: 2 is emulated. Native veth talks to another netmap port at its peer alone.
const MODE: &str = "/sys/module/netmap/parameters/admode";

/// Runs the case; a machine that can't is told of.
pub fn check(tally: &mut Tally, kind: &str) {
    let before = std::fs::read_to_string(MODE).ok();
    let _ = std::fs::write(MODE, "2");
    let result = run(kind);
    if let Some(before) = before {
        let _ = std::fs::write(MODE, before.trim());
    }
    let name = format!("{kind}veth beside the kernel: ping goes on, and what is registered is ours");
    match result {
        Ok(counters) => {
            let Counters { to_host, from_host, to_host_dropped, from_host_waited, .. } = counters;
            println!(
                "note  to the kernel {to_host}, dropped {to_host_dropped}; from the kernel {from_host}, waited {from_host_waited}"
            );
            tally.result(&name, Ok(()));
        }
        Err(Failure::LeftOut(why)) => {
            println!("note  the host rings are left out: {why}");
            tally.left_out += 1;
        }
        Err(Failure::Failed(why)) => tally.failed(&name, &why),
    }
}

enum Failure {
    LeftOut(String),
    Failed(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

fn run(kind: &str) -> Result<Counters, Failure> {
    let device = format!("{kind}utcpv0");
    let (to_other, jobs) = channel::<()>();
    let (say, heard) = channel();
    let other = std::thread::spawn(move || other_side(&say, &jobs));
    let id = match heard.recv() {
        Ok(Said::Here(id)) => id,
        Ok(Said::Failed(why)) => return Err(Failure::LeftOut(why)),
        _ => return Err(Failure::LeftOut("a thread could not be started".into())),
    };
    // On a thread of its own too: this one stays where it was.
    let here = std::thread::spawn(move || here_side(&device, id, &to_other, &heard));
    let result = here.join().map_err(|_| "its thread broke".to_owned())?;
    let _ = other.join();
    result
}

enum Said {
    /// The thread's number, whose namespace it is.
    Here(i32),
    /// Echoes that were answered; whether both datagrams were sent.
    Pinged(u32),
    Failed(String),
}

/// The other host: waits for the pair, then pings.
fn other_side(say: &Sender<Said>, jobs: &Receiver<()>) {
    let pinged = || -> Result<u32, String> {
        leave_network().map_err(|error| format!("a network namespace of its own: {error}"))?;
        // SAFETY: has no arguments and can't fail.
        let id = unsafe { libc::gettid() };
        let _ = say.send(Said::Here(id));
        jobs.recv().map_err(|_| "the pair was not made".to_owned())?;
        configure("utcpv1", OTHER).map_err(|error| format!("setting utcpv1 up: {error}"))?;
        let _ = say.send(Said::Pinged(0));
        jobs.recv().map_err(|_| "the port was not opened".to_owned())?;
        let answered = ping(HERE).map_err(|error| format!("pinging: {error}"))?;
        for port in [OURS, OURS + 1] {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
            let _ = socket.send_to(b"datagram", (std::net::Ipv4Addr::from(HERE), port));
        }
        Ok(answered)
    };
    let _ = say.send(pinged().map_or_else(Said::Failed, Said::Pinged));
}

/// This host: makes the pair, and stands between NIC and kernel while the other one pings.
fn here_side(
    device: &str,
    other: i32,
    jobs: &Sender<()>,
    heard: &Receiver<Said>,
) -> Result<Counters, Failure> {
    let left_out = |what: &str, error: io::Error| Failure::LeftOut(format!("{what}: {error}"));
    leave_network().map_err(|error| left_out("a network namespace of its own", error))?;
    make_pair(other).map_err(|error| left_out("making a veth pair", error))?;
    configure("utcpv0", HERE).map_err(|error| left_out("setting utcpv0 up", error))?;
    let _ = jobs.send(());
    match heard.recv_timeout(PATIENCE) {
        Ok(Said::Pinged(_)) => {}
        Ok(Said::Failed(why)) => return Err(Failure::LeftOut(why)),
        _ => return Err(Failure::LeftOut("the other side did not come up".into())),
    }
    let options = OpenOptions { beside_kernel: true, ..OpenOptions::default() };
    let words = |error: PortError| Failure::Failed(error.to_string());
    let mut device = utcp_netmap_io::open(device, &options).map_err(words)?;
    let steering = device.steering.take().ok_or_else(|| "no steering".to_owned())?;
    steering.register(Tuple::new(HERE, OURS, Proto::UDP)).map_err(words)?;
    // The kernel's half of the port that is ours must not hear what comes to it.
    let ours = std::net::UdpSocket::bind(("0.0.0.0", OURS)).map_err(|error| error.to_string())?;
    let kernels = std::net::UdpSocket::bind(("0.0.0.0", OURS + 1)).map_err(|error| error.to_string())?;
    for socket in [&ours, &kernels] {
        socket.set_nonblocking(true).map_err(|error| error.to_string())?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let _ = jobs.send(());
    let (mut seen, mut answered, mut until) = (0, None, Instant::now() + Duration::from_secs(60));
    while Instant::now() < until {
        for port in &mut device.ports {
            port.rx_sync().map_err(words)?;
            seen += port.rx().count();
            port.tx_sync().map_err(words)?;
        }
        match heard.try_recv() {
            Ok(Said::Pinged(count)) => {
                answered = Some(count);
                until = Instant::now() + Duration::from_millis(300);
            }
            Ok(Said::Failed(why)) => return Err(Failure::Failed(why)),
            _ => std::thread::sleep(Duration::from_micros(100)),
        }
    }
    let heard_by_kernel = [&ours, &kernels].map(|socket| socket.recv(&mut [0; 16]).is_ok());
    let counters = device.ports[0].counters();
    match (answered, seen, heard_by_kernel) {
        (Some(PINGS), 1, [false, true]) => Ok(counters),
        (answered, seen, heard) => Err(Failure::Failed(format!(
            "{answered:?} of {PINGS} pings answered, {seen} frames of ours came instead of 1, the kernel heard (ours, its own) {heard:?}; {counters:?}"
        ))),
    }
}

fn check_call(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn leave_network() -> io::Result<()> {
    // SAFETY: changes the kernel's view of this thread only.
    check_call(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor, touches no memory.
    let fd = check_call(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: nobody else owns what was just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Address, up, offloads off.
fn configure(name: &str, addr: [u8; 4]) -> io::Result<()> {
    let control = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: zeroes are a value of every member.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request
        .ifr_name
        .iter_mut()
        .zip(name.bytes())
        .for_each(|(to, from)| *to = libc::c_char::from_ne_bytes([from]));
    for (command, addr) in [(libc::SIOCSIFADDR, addr), (libc::SIOCSIFNETMASK, [255, 255, 255, 0])] {
        let mut data = [0; 14];
        data[2..6].copy_from_slice(&addr.map(|byte| libc::c_char::from_ne_bytes([byte])));
        request.ifr_ifru.ifru_addr = libc::sockaddr { sa_family: libc::AF_INET as u16, sa_data: data };
        // SAFETY: these requests read one `ifreq`, which lives until the call returns.
        check_call(unsafe { libc::ioctl(control.as_raw_fd(), command as _, &raw mut request) })?;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: as above.
    check_call(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) })?;
    for offload in [Offload::TxChecksum, Offload::Tso, Offload::Gso, Offload::Gro] {
        // What a driver does not have it can't switch off.
        let _ = offload.switch_off(name);
    }
    Ok(())
}

/// An attribute of rtnetlink, padded.
fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len() + 4).unwrap_or(0);
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// `utcpv0` here, `utcpv1` in the namespace of that thread: `ip link add utcpv0 type veth peer name utcpv1 netns ID`.
fn make_pair(other: i32) -> io::Result<()> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_NET_NS_PID: u16 = 19;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    const VETH_INFO_PEER: u16 = 1;
    const IFINFOMSG: [u8; 16] = [0; 16];
    let peer = [
        IFINFOMSG.to_vec(),
        attribute(IFLA_IFNAME, b"utcpv1\0"),
        attribute(IFLA_NET_NS_PID, &other.to_ne_bytes()),
    ]
    .concat();
    let data = attribute(IFLA_INFO_DATA, &attribute(VETH_INFO_PEER, &peer));
    let info = [attribute(IFLA_INFO_KIND, b"veth"), data].concat();
    let body =
        [IFINFOMSG.to_vec(), attribute(IFLA_IFNAME, b"utcpv0\0"), attribute(IFLA_LINKINFO, &info)].concat();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    let mut message = u32::try_from(16 + body.len()).unwrap_or(0).to_ne_bytes().to_vec();
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    let netlink = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    // SAFETY: the kernel reads the message, which lives until the call returns.
    let sent = unsafe { libc::send(netlink.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    check_call(libc::c_int::try_from(sent).unwrap_or(-1))?;
    let mut answer = [0_u8; 512];
    // SAFETY: the kernel writes at most as much as there is room.
    let got = unsafe { libc::recv(netlink.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    check_call(libc::c_int::try_from(got).unwrap_or(-1))?;
    // An NLMSG_ERROR: behind its header of 16 bytes the negative errno, 0 for done.
    match i32::from_ne_bytes(answer[16..20].try_into().unwrap_or_default()) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// Echo requests, one after the other; how many were answered. The first may wait for ARP.
fn ping(to: [u8; 4]) -> io::Result<u32> {
    let raw = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
    // SAFETY: zeroes are a value of every member.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as u16;
    address.sin_addr.s_addr = u32::from_ne_bytes(to);
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads one address, which lives until the call returns.
    check_call(unsafe { libc::connect(raw.as_raw_fd(), (&raw const address).cast(), len) })?;
    let wait = libc::timeval { tv_sec: 2, tv_usec: 0 };
    let wait_len = size_of_val(&wait) as libc::socklen_t;
    // SAFETY: the kernel reads one time, which lives until the call returns.
    check_call(unsafe {
        libc::setsockopt(
            raw.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const wait).cast(),
            wait_len,
        )
    })?;
    let mut file = std::fs::File::from(raw);
    let mut answered = 0;
    for number in 0..PINGS as u16 {
        // Type 8, identifier 0x7574; the checksum of these words is the complement of their sum.
        let sum = 0x0800_u32 + 0x7574 + u32::from(number);
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        let [a, b] = sum.to_be_bytes();
        let [c, d] = number.to_be_bytes();
        io::Write::write_all(&mut file, &[8, 0, a, b, 0x75, 0x74, c, d])?;
        let until = Instant::now() + PATIENCE;
        let mut answer = [0; 128];
        while Instant::now() < until {
            let got = io::Read::read(&mut file, &mut answer).unwrap_or(0);
            if got >= 28 && answer[20] == 0 && answer[26..28] == [c, d] {
                answered += 1;
                break;
            }
        }
    }
    Ok(answered)
}
