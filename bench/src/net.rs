//! Where a comparison runs: network namespaces of its own, joined by a veth pair for the device
//! scenario, with the same settings for both sides.
//!
//! ```text
//!   same-host:  [ namespace: lo ]              (an ordinary user: this host's own lo)
//!   device:     [ server: sPID ]==veth==[ client: cPID ]
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::Duration;

use crate::case::Scenario;
use crate::{Error, interrupt};

/// Settings of every namespace, for kernel and utcp runs alike. Close-per-request loads run out of ports
/// without the first two.
const SYSCTLS: [&str; 8] = [
    "net.ipv4.ip_local_port_range=10000 65535",
    "net.ipv4.tcp_tw_reuse=1",
    "net.ipv4.tcp_congestion_control=cubic",
    "net.ipv4.tcp_max_syn_backlog=8192",
    "net.core.somaxconn=8192",
    "net.ipv4.tcp_timestamps=1",
    "net.ipv4.tcp_sack=1",
    "net.ipv4.tcp_ecn=0",
];

/// Offloads of both ends of the veth pair. Without segmentation offload GRO makes veth use NAPI, which then can be pinned, and
/// the lean generator's AF_XDP has none. Bulk has it, on both sides ([`Net::long_segments`]).
const OFFLOADS: [&str; 8] = ["tso", "off", "gso", "off", "gro", "on", "tx", "on"];

/// What stands in front of both ends of the veth pair: its ring of 256 frames then holds a sender back when it is full, as a
/// NIC's does (Linux 6.16), instead of losing the burst. A lost SYN is a second without that connection.
const QUEUE: [&str; 4] = ["root", "pfifo", "limit", "1000"];

/// How often a setting that was refused is tried again.
const ALLOWED_AGAIN: u32 = 5;
const SERVER_IP: &str = "198.18.77.1";
/// The client's address on a device.
pub const CLIENT_IP: &str = "198.18.77.2";

/// A named network namespace of ours.
#[derive(Debug)]
struct Namespace {
    name: String,
}

impl Namespace {
    /// `allowed` keeps what was allowed for it.
    fn new(role: &str, allowed: &mut Vec<Restored>) -> Result<Self, Error> {
        let name = format!("utcp-compare-{}-{role}", process::id());
        command("ip", &["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.exec(&["ip", "link", "set", "lo", "up"])?;
        for sysctl in SYSCTLS {
            let mut result = namespace.exec(&["sysctl", "-qw", sysctl]);
            for _ in 0..ALLOWED_AGAIN {
                if result.is_ok() {
                    break;
                }
                // Another comparison has just put back what it had found.
                allowed.extend(allow_cubic()?);
                result = namespace.exec(&["sysctl", "-qw", sysctl]);
            }
            result?;
        }
        Ok(namespace)
    }

    fn exec(&self, words: &[&str]) -> Result<String, Error> {
        let mut all = vec!["netns", "exec", &self.name];
        all.extend(words);
        command("ip", &all)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nobody but us put a process here: whatever is left (an engine that a program started) goes.
        let pids = command("ip", &["netns", "pids", &self.name]).unwrap_or_default();
        for pid in pids.split_whitespace().filter_map(|word| word.parse().ok()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = command("ip", &["netns", "del", &self.name]);
    }
}

/// A setting of the host that is put back.
#[derive(Debug)]
struct Restored {
    path: PathBuf,
    before: String,
}

impl Restored {
    fn set(path: &str, value: &str) -> Result<Self, Error> {
        let path = PathBuf::from(path);
        let failed = || Error::io(path.display().to_string());
        let before = fs::read_to_string(&path).map_err(failed())?;
        fs::write(&path, value).map_err(failed())?;
        Ok(Self { before: before.trim().to_owned(), path })
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.before);
    }
}

/// Where server and client of a scenario run.
#[derive(Debug)]
pub struct Net {
    /// Which scenario this is for.
    pub scenario: Scenario,
    /// The address that the server listens at.
    pub server_ip: &'static str,
    server: Option<Namespace>,
    client: Option<Namespace>,
    /// The server's interface, and the client's.
    interfaces: Option<[String; 2]>,
    /// Link address of the server's interface.
    server_mac: Option<String>,
    settings: Vec<(String, String)>,
    /// Kernel threads that do the receive work of the server's interface, and of the client's.
    receive_threads: [Vec<u32>; 2],
    /// Cores of the server's receive work, and of the client's.
    cores: [Option<String>; 2],
    // Last: put back after the namespaces are gone.
    allowed: Vec<Restored>,
}

impl Net {
    /// Makes it. Core lists say where a device's receive work is pinned.
    ///
    /// # Errors
    /// When the system refuses, or for the device scenario without root.
    pub fn new(
        scenario: Scenario,
        server_cores: Option<&str>,
        client_cores: Option<&str>,
    ) -> Result<Self, Error> {
        let mut net = Self {
            scenario,
            server_ip: "127.0.0.1",
            server: None,
            client: None,
            interfaces: None,
            server_mac: None,
            settings: Vec::new(),
            receive_threads: Default::default(),
            cores: [server_cores, client_cores].map(|cores| cores.map(str::to_owned)),
            allowed: Vec::new(),
        };
        if !is_root() {
            if scenario != Scenario::SameHost {
                return Err(Error::Missing(
                    "this scenario makes network namespaces and loads an XDP program: run it as root"
                        .to_owned(),
                ));
            }
            net.note("namespace", "the host's own (not run as root)");
            return Ok(net);
        }
        net.allowed.extend(allow_cubic()?);
        net.server = Some(Namespace::new("s", &mut net.allowed)?);
        net.note("sysctls of the namespaces", &SYSCTLS.join(", "));
        if matches!(scenario, Scenario::Device | Scenario::Idle | Scenario::Scale) {
            net.client = Some(Namespace::new("c", &mut net.allowed)?);
            net.server_ip = SERVER_IP;
            net.join(server_cores, client_cores)?;
        }
        Ok(net)
    }

    /// Joins both namespaces by a veth pair.
    fn join(&mut self, server_cores: Option<&str>, client_cores: Option<&str>) -> Result<(), Error> {
        let (Some(server), Some(client)) = (&self.server, &self.client) else { return Ok(()) };
        let (s, c) = (format!("s{}", process::id()), format!("c{}", process::id()));
        // Born inside the namespaces: it never shows up among the host's interfaces.
        let add = [
            "link",
            "add",
            &s,
            "netns",
            &server.name,
            "type",
            "veth",
            "peer",
            "name",
            &c,
            "netns",
            &client.name,
        ];
        command("ip", &add)?;
        let ends = [(server, &s, SERVER_IP, server_cores), (client, &c, CLIENT_IP, client_cores)];
        for (namespace, interface, ip, _) in ends {
            namespace.exec(&["ip", "addr", "add", &format!("{ip}/24"), "dev", interface])?;
            let mut offloads = vec!["ethtool", "-K", interface];
            offloads.extend(OFFLOADS);
            namespace.exec(&offloads)?;
            let mut queue = vec!["tc", "qdisc", "replace", "dev", interface];
            queue.extend(QUEUE);
            namespace.exec(&queue)?;
            namespace.exec(&["ip", "link", "set", interface, "up"])?;
        }
        let (mut receive, mut threads) = (Vec::new(), <[Vec<u32>; 2]>::default());
        for ((namespace, interface, _, cores), threads) in ends.into_iter().zip(&mut threads) {
            receive.push(match cores {
                Some(cores) => pin_receive(namespace, interface, cores, threads)?,
                None => "where the sender runs".to_owned(),
            });
        }
        let up = interrupt::wait_for(Duration::from_secs(5), || {
            Ok(server.exec(&["ip", "-br", "link", "show", &s])?.contains("LOWER_UP"))
        })?;
        if !up {
            return Err(Error::Missing(format!("the veth pair {s} does not come up")));
        }
        let mac = server.exec(&["cat", &format!("/sys/class/net/{s}/address")])?.trim().to_owned();
        (self.server_mac, self.interfaces, self.receive_threads) = (Some(mac), Some([s, c]), threads);
        self.note("link", "veth, MTU 1500, AF_XDP in copy mode for utcp");
        self.note("offloads of both ends", &OFFLOADS.join(" "));
        self.note("queue of both ends", &QUEUE.join(" "));
        self.note("receive softirq of the server's end", &receive[0]);
        self.note("receive softirq of the client's end", &receive[1]);
        Ok(())
    }

    fn note(&mut self, name: &str, value: &str) {
        self.settings.push((format!("{}: {name}", self.scenario.name()), value.to_owned()));
    }

    /// The namespace of the server, if it has one of its own.
    #[must_use]
    pub fn server_netns(&self) -> Option<&str> {
        self.server.as_ref().map(|namespace| namespace.name.as_str())
    }

    /// The namespace of the client.
    #[must_use]
    pub fn client_netns(&self) -> Option<&str> {
        self.client.as_ref().or(self.server.as_ref()).map(|namespace| namespace.name.as_str())
    }

    /// The device of the server's engine.
    #[must_use]
    pub fn device(&self) -> Option<String> {
        self.interfaces.as_ref().map(|[server, _]| format!("xdp:{server}"))
    }

    /// The device of a client that brings its own TCP.
    #[must_use]
    pub fn client_device(&self) -> Option<String> {
        self.interfaces.as_ref().map(|[_, client]| format!("xdp:{client}"))
    }

    /// Link address of the server's device.
    #[must_use]
    pub fn server_mac(&self) -> Option<&str> {
        self.server_mac.as_deref()
    }

    /// Kernel threads that do the receive work of the server's device, and of the client's.
    #[must_use]
    pub fn receive_threads(&self) -> &[Vec<u32>; 2] {
        &self.receive_threads
    }

    /// Frames that the link lost so far, at either end: rings were full. A lost SYN costs a second, so a rate with such losses tells
    /// of the link.
    #[must_use]
    pub fn lost_frames(&self) -> u64 {
        let (Some(server), Some(client), Some([s, c])) = (&self.server, &self.client, &self.interfaces)
        else {
            return 0;
        };
        // On its way out (a full ring of the neighbour's), and on its way in (whoever receives there has no room).
        let count = |namespace: &Namespace, interface: &str| {
            let files =
                ["tx", "rx"].map(|way| format!("/sys/class/net/{interface}/statistics/{way}_dropped"));
            let text = namespace.exec(&["cat", &files[0], &files[1]]).unwrap_or_default();
            text.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum::<u64>()
        };
        count(server, s) + count(client, c)
    }

    /// Lets whoever waits in the server's kernel poll the device before it sleeps, for as long as the value
    /// that is returned lives.
    ///
    /// # Errors
    /// When the kernel has no such setting.
    pub fn busy_poll(&self) -> Result<BusyPoll<'_>, Error> {
        let sysctl = |name: &str| Restored::set(&format!("/proc/sys/net/core/{name}"), "50");
        let sysctls = [sysctl("busy_poll")?, sysctl("busy_read")?];
        let busy = BusyPoll { net: self, _sysctls: sysctls };
        busy.defer_interrupts(2, 200_000)?;
        Ok(busy)
    }

    /// Lets both ends of the device take long segments, for as long as the value that is returned lives.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn long_segments(&self) -> Result<LongSegments<'_>, Error> {
        let long = LongSegments { net: self };
        long.set("on", true)?;
        Ok(long)
    }

    /// What to print beside the figures.
    #[must_use]
    pub fn settings(&self) -> &[(String, String)] {
        &self.settings
    }
}

/// Busy polling that is put back. The sysctls are the whole host's: they exist once.
#[derive(Debug)]
pub struct BusyPoll<'a> {
    net: &'a Net,
    _sysctls: [Restored; 2],
}

impl BusyPoll<'_> {
    fn defer_interrupts(&self, irqs: u32, flush_ns: u32) -> Result<(), Error> {
        let (Some(server), Some([interface, _])) = (&self.net.server, &self.net.interfaces) else {
            return Ok(());
        };
        let device = format!("/sys/class/net/{interface}");
        let script = format!(
            "echo {irqs} > {device}/napi_defer_hard_irqs; echo {flush_ns} > {device}/gro_flush_timeout"
        );
        server.exec(&["sh", "-ec", &script]).map(drop)
    }
}

impl Drop for BusyPoll<'_> {
    fn drop(&mut self) {
        let _ = self.defer_interrupts(0, 0);
    }
}

/// Segmentation offload that is taken back.
#[derive(Debug)]
pub struct LongSegments<'a> {
    net: &'a Net,
}

impl LongSegments<'_> {
    fn set(&self, offload: &str, steer: bool) -> Result<(), Error> {
        let (Some(server), Some(client), Some([s, c])) =
            (&self.net.server, &self.net.client, &self.net.interfaces)
        else {
            return Ok(());
        };
        for (namespace, interface, cores) in
            [(server, s, &self.net.cores[0]), (client, c, &self.net.cores[1])]
        {
            namespace.exec(&["ethtool", "-K", interface, "tso", offload, "gso", offload])?;
            let mask = cores.as_deref().filter(|_| steer).map_or(0, mask_of);
            let script = format!("echo {mask:x} > /sys/class/net/{interface}/queues/rx-0/rps_cpus");
            namespace.exec(&["sh", "-c", &script])?;
        }
        Ok(())
    }
}

impl Drop for LongSegments<'_> {
    fn drop(&mut self) {
        let _ = self.set("off", false);
    }
}

/// A core list (`0,2-3`) as a mask; what is not understood is left out.
fn mask_of(cores: &str) -> u64 {
    let ends = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?))
    };
    let of = |(first, last)| {
        (first..=last).filter(|core| *core < 64).fold(0_u64, |mask, core| mask | 1_u64 << core)
    };
    cores.split(',').filter_map(ends).map(of).fold(0, |all, mask| all | mask)
}

/// Whether this process may make namespaces.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A child namespace may use a congestion controller only if the host allows it to every user.
fn allow_cubic() -> Result<Option<Restored>, Error> {
    const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    let allowed = fs::read_to_string(ALLOWED).map_err(Error::io(ALLOWED))?;
    if allowed.split_whitespace().any(|name| name == "cubic") {
        return Ok(None);
    }
    Restored::set(ALLOWED, &format!("{} cubic", allowed.trim())).map(Some)
}

/// Receives frames of `interface` in a thread of its own, pinned to `cores`. Without that a veth
/// pair's receive work is done, and paid for, on the sender's core.
fn pin_receive(
    namespace: &Namespace,
    interface: &str,
    cores: &str,
    threads: &mut Vec<u32>,
) -> Result<String, Error> {
    let threaded = format!("echo 1 > /sys/class/net/{interface}/threaded");
    if namespace.exec(&["sh", "-c", &threaded]).is_err() {
        return Ok("where the sender runs (this kernel has no threaded NAPI)".to_owned());
    }
    let name = format!("napi/{interface}-");
    let before = threads.len();
    for pid in kernel_threads(&name) {
        command("taskset", &["-pc", cores, &pid.to_string()])?;
        threads.push(pid);
    }
    if threads.len() == before {
        return Ok("where the sender runs (veth here does not use NAPI)".to_owned());
    }
    Ok(format!("threaded NAPI on core {cores}"))
}

fn kernel_threads(prefix: &str) -> Vec<u32> {
    let starts =
        |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.starts_with(prefix));
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| starts(&entry.path()))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Runs a short command to its end; what it printed.
fn command(program: &str, arguments: &[&str]) -> Result<String, Error> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .output()
        .map_err(Error::io(format!("can't run {program}")))?;
    if !output.status.success() {
        return Err(Error::Program {
            name: format!("{program} {}", arguments.join(" ")),
            status: output.status.to_string(),
            tail: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::mask_of;

    #[test]
    fn a_list_of_cores_is_a_mask() {
        assert_eq!((mask_of("0"), mask_of("1,3-5"), mask_of("any"), mask_of("99")), (1, 0b11_1010, 0, 0));
    }
}
