//! Two hosts joined by a cable: network namespaces and a veth pair.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::unique;

/// A network namespace with one interface.
#[derive(Debug, Clone)]
pub struct Host {
    namespace: String,
    /// Its interface.
    pub interface: String,
    /// Its IPv4 address.
    pub addr: String,
    /// Its IPv6 address.
    pub addr6: String,
}

impl Host {
    /// Its network namespace's name.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn named(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            interface: String::new(),
            addr: String::new(),
            addr6: String::new(),
        }
    }
}

/// Two hosts; they go when it is dropped.
#[derive(Debug)]
pub struct Net {
    /// Where servers run.
    pub server: Host,
    /// Where clients run.
    pub client: Host,
}

impl Net {
    /// Two namespaces, a veth pair between them, an IPv4 and an IPv6 address on each.
    ///
    /// # Panics
    /// If they can't be made (that takes root).
    #[must_use]
    pub fn new() -> Self {
        let net = Self::namespaces();
        ip(&format!(
            "link add {} netns {} type veth peer name {} netns {}",
            net.server.interface, net.server.namespace, net.client.interface, net.client.namespace
        ));
        net.configure();
        net
    }

    /// The two namespaces, with no cable between them yet.
    pub(crate) fn namespaces() -> Self {
        let number = unique();
        let prefix = format!("ut-{}-{number}", std::process::id());
        let host = |side: &str, last: u8| Host {
            namespace: format!("{prefix}{side}"),
            // Interface names have 15 bytes at most; they are alone in their namespace.
            interface: format!("veth{side}"),
            addr: format!("10.77.0.{last}"),
            addr6: format!("fd00:77::{last}"),
        };
        let net = Self { server: host("s", 1), client: host("c", 2) };
        for side in [&net.server, &net.client] {
            ip(&format!("netns add {}", side.namespace));
            // Duplicate address detection: no neighbour is asked for anything by IPv6 for the first seconds, for want of a link-local address.
            for which in ["all", "default"] {
                let dad = format!("net.ipv6.conf.{which}.accept_dad=0");
                ip(&format!("netns exec {} sysctl -qw {dad}", side.namespace));
            }
        }
        net
    }

    /// Gives both interfaces their addresses and sets them up.
    pub(crate) fn configure(&self) {
        for side in [&self.server, &self.client] {
            let within = |command: &str| ip(&format!("-n {} {command}", side.namespace));
            within(&format!("addr add {}/24 dev {}", side.addr, side.interface));
            // Without nodad the address is not usable for a second or two.
            within(&format!("addr add {}/64 dev {} nodad", side.addr6, side.interface));
            within(&format!("link set {} up", side.interface));
            within("link set lo up");
        }
        for side in [&self.server, &self.client] {
            side.wait_for_ipv6();
        }
    }
}

impl Host {
    /// The kernel hears of a new cable up to a second late. Before, IPv6 has no link-local address and no route for groups there.
    fn wait_for_ipv6(&self) {
        let show =
            ["-n", &self.namespace, "-6", "-o", "addr", "show", "dev", &self.interface, "scope", "link"];
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            let shown = Command::new("ip").args(show).output().expect("ip (iproute2) can be run").stdout;
            if !shown.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for side in [&self.server, &self.client] {
            let _ = Command::new("ip").args(["netns", "del", &side.namespace]).stderr(Stdio::null()).status();
        }
    }
}

#[track_caller]
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip (iproute2) can be run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

/// A URL's host: IPv6 addresses stand in brackets there.
#[must_use]
pub fn bracketed(addr: &str) -> String {
    if addr.contains(':') { format!("[{addr}]") } else { addr.to_owned() }
}
