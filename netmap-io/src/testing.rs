//! What the tests of several ports need: frames, and namespaces that vanish with their thread.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Device, OpenOptions, PortError, Proto, sys};

/// Why a test that needs `what` can't run here; `None` when it can.
pub(crate) fn missing(what: &str) -> Option<String> {
    let has = |bit: u32| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or("0");
        u64::from_str_radix(line.trim(), 16).unwrap_or(0) >> bit & 1 == 1
    };
    const NET_ADMIN: u32 = 12;
    const NET_RAW: u32 = 13;
    const SYS_ADMIN: u32 = 21;
    const BPF: u32 = 39;
    let need: &[(u32, &str)] = match what {
        "bpf" => &[(NET_ADMIN, "CAP_NET_ADMIN"), (BPF, "CAP_BPF")],
        "namespaces" => &[
            (NET_ADMIN, "CAP_NET_ADMIN"),
            (NET_RAW, "CAP_NET_RAW"),
            (SYS_ADMIN, "CAP_SYS_ADMIN"),
            (BPF, "CAP_BPF"),
        ],
        other => panic!("unknown need {other:?}"),
    };
    need.iter().find(|(bit, _)| !has(*bit)).map(|(_, name)| (*name).to_owned())
}

/// Leaves the test with a visible reason when a privilege is missing; with `UTCP_TEST_NO_SKIP` set, fails.
macro_rules! skip_without {
    ($what:ident) => {
        if let Some(name) = $crate::testing::missing(stringify!($what)) {
            let place = module_path!();
            assert!(std::env::var_os("UTCP_TEST_NO_SKIP").is_none(), "{place}: needs {name}");
            // To the terminal itself: the harness shows what a passing test prints only on demand.
            let line = format!("SKIPPED {place}:{}: needs {name}\n", line!());
            let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
            return;
        }
    };
}
pub(crate) use skip_without;

/// A frame that looks like TCP or UDP to the steering program; its checksums are zero.
pub(crate) struct Frame {
    proto: Proto,
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    macs: [[u8; 6]; 2],
    payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(proto: Proto, from: (IpAddr, u16), to: (IpAddr, u16)) -> Self {
        Self { proto, from, to, macs: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]], payload: Vec::new() }
    }

    /// Destination and source address of the link.
    pub(crate) fn macs(mut self, to: [u8; 6], from: [u8; 6]) -> Self {
        self.macs = [to, from];
        self
    }

    pub(crate) fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Bytes in front of the payload.
    pub(crate) fn header_len(&self) -> usize {
        14 + if self.to.0.is_ipv4() { 20 } else { 40 } + if self.proto == Proto::TCP { 20 } else { 8 }
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let transport = if self.proto == Proto::TCP { 20 } else { 8 } + self.payload.len();
        let len16 = |len: usize| u16::try_from(len).unwrap().to_be_bytes();
        let mut out: Vec<u8> = self.macs.concat();
        match (self.from.0, self.to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                out.extend([8, 0, 0x45, 0]);
                out.extend(len16(20 + transport));
                out.extend([0, 0, 0, 0, 64, self.proto.0, 0, 0]);
                out.extend(from.octets());
                out.extend(to.octets());
                let sum =
                    out[14..34].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
                let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
                out[24..26].copy_from_slice(&(!folded).to_be_bytes());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                out.extend(len16(transport));
                out.extend([self.proto.0, 64]);
                out.extend(from.octets());
                out.extend(to.octets());
            }
            _ => panic!("both addresses of one family"),
        }
        out.extend(self.from.1.to_be_bytes());
        out.extend(self.to.1.to_be_bytes());
        if self.proto == Proto::TCP {
            out.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            out.extend(len16(transport));
            out.extend([0, 0]);
        }
        out.extend(&self.payload);
        out
    }
}

/// A thread in a network namespace of its own, which runs what it is given until it is dropped.
///
/// The namespace has no name and no file: it goes with the thread, also when the test is killed.
pub(crate) struct Host {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    id: i32,
}

type Job = Box<dyn FnOnce() + Send>;

impl Host {
    pub(crate) fn new() -> Self {
        let (jobs, work) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        let body = move || {
            sys::leave_network().unwrap();
            tell.send(sys::thread_id()).unwrap();
            work.into_iter().for_each(|job| job());
        };
        let thread = std::thread::Builder::new().name("nio-host".into()).spawn(body).unwrap();
        let host = Self { jobs: Some(jobs), thread: Some(thread), id: told.recv().unwrap() };
        host.ip("link set lo up");
        host
    }

    /// Runs `job` in the namespace and waits for it. A panic in it becomes a panic here.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        let job = move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            tell.send(result).unwrap();
        };
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
        told.recv().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts `job` in the namespace without waiting.
    pub(crate) fn start(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
    }

    /// `ip ARGS` in the namespace.
    #[track_caller]
    /// A process of this test program in the namespace, that does what the ignored test of that name does.
    pub(crate) fn victim(&self, test: &'static str) -> std::process::Child {
        self.run(move || {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", test, "--ignored"]).stdout(std::process::Stdio::null());
            command.spawn().unwrap()
        })
    }

    pub(crate) fn ip(&self, args: &str) {
        let words: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
        let output = self.run(|| Command::new("ip").args(words).output().expect("the ip program (iproute2)"));
        assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.jobs.take();
        let _ = self.thread.take().unwrap().join();
    }
}

/// Two hosts joined by a veth pair: `nio-a` (10.77.0.1, fd77::1) and `nio-b` (10.77.0.2, fd77::2).
pub(crate) struct Network {
    pub(crate) a: Host,
    pub(crate) b: Host,
}

pub(crate) const MAC_A: [u8; 6] = [2, 0, 0, 0, 0x77, 1];
pub(crate) const MAC_B: [u8; 6] = [2, 0, 0, 0, 0x77, 2];
pub(crate) const IP_A: [u8; 4] = [10, 77, 0, 1];
pub(crate) const IP_B: [u8; 4] = [10, 77, 0, 2];

impl Network {
    pub(crate) fn new(queues: u32, mtu: u32) -> Self {
        let (a, b) = (Host::new(), Host::new());
        let many = format!("numrxqueues {queues} numtxqueues {queues} mtu {mtu}");
        let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        let (mac_a, mac_b) = (mac(MAC_A), mac(MAC_B));
        a.ip(&format!(
            "link add nio-a {many} address {mac_a} type veth peer name nio-b {many} address {mac_b} netns {}",
            b.id
        ));
        for (host, dev, me, you, mac) in [(&a, "nio-a", 1, 2, &mac_b), (&b, "nio-b", 2, 1, &mac_a)] {
            host.ip(&format!("addr add 10.77.0.{me}/24 dev {dev}"));
            host.ip(&format!("addr add fd77::{me}/64 dev {dev} nodad"));
            host.ip(&format!("link set {dev} up"));
            host.ip(&format!("neigh replace 10.77.0.{you} dev {dev} lladdr {mac} nud permanent"));
            host.ip(&format!("neigh replace fd77::{you} dev {dev} lladdr {mac} nud permanent"));
        }
        Self { a, b }
    }

    /// Opens `device` on host `a` or `b`.
    pub(crate) fn open(&self, host: &Host, device: &str, options: &OpenOptions) -> Result<Device, PortError> {
        let (device, options) = (device.to_owned(), options.clone());
        host.run(move || crate::open(&device, &options))
    }
}

/// Hears every frame that comes to an interface and goes on to the kernel, and sends frames by it.
pub(crate) struct Tap(OwnedFd);

impl Tap {
    pub(crate) fn new(interface: &str) -> io::Result<Self> {
        let index = sys::interface(interface)?.ok_or(io::ErrorKind::NotFound)?.index;
        // SAFETY: makes a descriptor.
        let fd = sys::own(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: a structure of numbers, of which zero is one.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = i32::try_from(index).unwrap();
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the kernel reads one address, which lives until the call returns.
        sys::check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
        Ok(Self(fd))
    }

    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the kernel reads as many bytes as there are.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame that came, without the tag that the kernel has taken off; not what was sent here, nor IPv6's own talk.
    pub(crate) fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let until = Instant::now() + patience;
        loop {
            let mut fds = [libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            if !sys::poll(&mut fds, until.saturating_duration_since(Instant::now())) {
                return None;
            }
            let mut bytes = vec![0; 65_536];
            // SAFETY: a structure of numbers, of which zero is one.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut from_len = size_of_val(&from) as libc::socklen_t;
            // SAFETY: the kernel writes at most as much as there is room, and one address.
            let got = unsafe {
                let address = (&raw mut from).cast();
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    bytes.as_mut_ptr().cast(),
                    bytes.len(),
                    0,
                    address,
                    &raw mut from_len,
                )
            };
            bytes.truncate(usize::try_from(got).unwrap_or(0));
            // From a link-local address, or from none yet.
            let talk = bytes.get(12..14) == Some(&[0x86, 0xdd])
                && matches!(bytes.get(22..24), Some([0xfe, 0x80] | [0, 0]));
            if from.sll_pkttype != libc::PACKET_OUTGOING && !talk {
                return Some(bytes);
            }
        }
    }
}
