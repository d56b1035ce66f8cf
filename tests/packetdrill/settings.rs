//! What a script is run with: addresses, tolerance, and a network namespace whose `net.ipv4.tcp_*` it may change.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use crate::script::{Script, Us};
use crate::world::Link;

/// Server port, on whichever side the server is.
const PORT: u16 = 8080;

/// Linux's defaults, so that a script sees the same whatever this host has been set to.
const SYSCTLS: [(&str, &str); 20] = [
    ("tcp_rmem", "4096 131072 6291456"),
    ("tcp_wmem", "4096 16384 4194304"),
    ("tcp_timestamps", "1"),
    ("tcp_sack", "1"),
    ("tcp_window_scaling", "1"),
    ("tcp_ecn", "2"),
    ("tcp_fastopen", "1"),
    ("tcp_syn_retries", "6"),
    ("tcp_synack_retries", "5"),
    ("tcp_retries2", "15"),
    ("tcp_orphan_retries", "0"),
    ("tcp_fin_timeout", "60"),
    ("tcp_slow_start_after_idle", "1"),
    ("tcp_rto_min_us", "200000"),
    ("tcp_rto_max_ms", "120000"),
    ("tcp_keepalive_time", "7200"),
    ("tcp_keepalive_intvl", "75"),
    ("tcp_keepalive_probes", "9"),
    ("tcp_shrink_window", "0"),
    ("tcp_congestion_control", "cubic"),
];

/// Which addresses and sockets a script is played with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V4,
    V6,
    /// IPv4 through IPv6 sockets.
    Mapped,
}

impl Version {
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
            Self::Mapped => "ipv4-mapped-ipv6",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.name() == name)
    }
}

/// Settings of one run.
#[derive(Debug)]
pub struct Settings {
    pub link: Link,
    pub remote: IpAddr,
    pub port: u16,
    pub tolerance: Us,
    /// Microseconds of a tick of TSval; 0: it is not compared.
    pub ts_tick: Us,
    pub strict_segments: bool,
    /// Longest payload of one segment that the stack may send, by the options of the script's SYN.
    pub peer_mss: u32,
    pub verbose: bool,
    /// Where commands run.
    folder: PathBuf,
}

/// Words that scripts expect whoever runs them to define.
pub fn defines(version: Version) -> HashMap<String, String> {
    // Cookies of the key and the addresses that the public scripts use.
    let (cookie, zero, level, kind) = match version {
        Version::V6 => ("c1d1e9742a47a9bc", "82af1a8f9a205c34", "SOL_IPV6", "IPV6_RECVERR"),
        Version::V4 => ("3021b9d889017eeb", "b7c12350a90dc8f5", "SOL_IP", "IP_RECVERR"),
        Version::Mapped => ("3021b9d889017eeb", "b7c12350a90dc8f5", "SOL_IPV6", "IPV6_RECVERR"),
    };
    let code = if version == Version::V6 { "address_unreachable" } else { "host_unreachable" };
    let pairs = [
        ("TFO_COOKIE", cookie),
        ("TFO_COOKIE_ZERO", zero),
        ("CMSG_LEVEL_IP", level),
        ("CMSG_TYPE_RECVERR", kind),
        ("CODE", code),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

impl Settings {
    /// Those of `script`, which stands in `folder`.
    ///
    /// # Errors
    /// An option that is not understood.
    pub fn new(version: Version, script: &Script, folder: PathBuf, verbose: bool) -> Result<Self, String> {
        let address = |text: &str| text.parse::<IpAddr>().map_err(|_| format!("{text} is no address"));
        let v6 = version == Version::V6;
        let (local, gateway, remote) = if v6 {
            ("fd3d:0a0b:17d6::1", "fd3d:0a0b:17d6::2", "fd3d:fa7b:d17d::1")
        } else {
            ("192.168.0.1", "192.168.0.254", "192.0.2.1")
        };
        let link = Link {
            local: address(local)?,
            prefix: if v6 { 64 } else { 16 },
            gateway: address(gateway)?,
            // So that the MSS is the same.
            mtu: if v6 { 1520 } else { 1500 },
        };
        let mut settings = Self {
            link,
            remote: address(remote)?,
            port: PORT,
            tolerance: 14_000,
            ts_tick: 0,
            strict_segments: false,
            peer_mss: 536,
            verbose,
            folder,
        };
        for (name, value) in &script.options {
            settings.option(name, value)?;
        }
        Ok(settings)
    }

    fn option(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<i64>().map_err(|_| format!("--{name}={value}: a number is wanted"));
        let address =
            || value.parse::<IpAddr>().map_err(|_| format!("--{name}={value}: an address is wanted"));
        match name {
            "tolerance_usecs" => self.tolerance = self.tolerance.max(number()?),
            "tcp_ts_tick_usecs" => self.ts_tick = number()?,
            "mtu" => self.link.mtu = number()? as u32,
            "remote_ip" if address()?.is_ipv4() == self.remote.is_ipv4() => self.remote = address()?,
            "local_ip" if address()?.is_ipv4() == self.remote.is_ipv4() => self.link.local = address()?,
            "bind_port" | "connect_port" => self.port = number()? as u16,
            "strict_segments" => self.strict_segments = true,
            "send_omit_free" | "mss" | "ip_version" | "gateway_ip" | "netmask_ip" | "local_ip"
            | "remote_ip" | "tcp_ts_ecr_scaled" | "define" | "D" | "" => {}
            _ => return Err(format!("--{name} is not known")),
        }
        Ok(())
    }

    /// Runs a shell command of the script's, in its folder. What it says about interfaces and counters of the
    /// kernel's stack does not matter, so neither does its end.
    ///
    /// # Errors
    /// No shell could be started.
    pub fn command(&mut self, command: &str) -> Result<(), String> {
        if let Some(mtu) = command.lines().find_map(mtu) {
            self.link.mtu = mtu;
        }
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(command).current_dir(&self.folder);
        shell.env("PACKETDRILL_PID", std::process::id().to_string());
        let output = shell.output().map_err(|error| format!("sh: {error}"))?;
        if self.verbose && !output.stderr.is_empty() {
            eprintln!("{command}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

/// `ip link set dev tun0 mtu N`: the interface of the original runner, in whose place our link stands. It counts before the
/// first event.
fn mtu(line: &str) -> Option<u32> {
    let rest = line.trim().strip_prefix("ip link set dev tun0 mtu ")?;
    rest.trim().parse().ok()
}

/// Enters a network namespace of our own, where a script may set what it likes and bind what it likes.
///
/// # Errors
/// Neither root nor user namespaces.
pub fn enter_namespace() -> Result<(), String> {
    // SAFETY: plain numbers; the process has one thread yet.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    // SAFETY: as above.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        // SAFETY: as above.
        if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) } != 0 {
            return Err(format!("no network namespace to be had: {}", std::io::Error::last_os_error()));
        }
        let _ = fs::write("/proc/self/setgroups", "deny");
        let _ = fs::write("/proc/self/uid_map", format!("0 {uid} 1"));
        let _ = fs::write("/proc/self/gid_map", format!("0 {gid} 1"));
    }
    for file in ["ipv4/ip_nonlocal_bind", "ipv6/ip_nonlocal_bind"] {
        fs::write(format!("/proc/sys/net/{file}"), "1").map_err(|error| format!("{file}: {error}"))?;
    }
    for (name, value) in SYSCTLS {
        // One that this kernel lacks or forbids here (cubic, unless the host allows it) has its default.
        let _ = fs::write(format!("/proc/sys/net/ipv4/{name}"), value);
    }
    Ok(())
}

/// What `set_sysctls.py` of the public suites leaves behind.
pub fn tidy() {
    let _ = fs::remove_file(format!("/tmp/sysctl_restore_{}.sh", std::process::id()));
}
