//! What tools read: `utcp ss`, `utcp why`, counters.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use utcp_abi::message::Message;
use utcp_abi::region::{LOG_RECORDS, LogCode};

use utcp_proto::Endpoint;
use utcp_proto::wire::IpAddr;

use super::Control;
use super::devices::Device;
use crate::counters::Counters;
use crate::host::{Interface, Kind};
use crate::shard::client::ClientRegion;
use crate::shard::{Report, ReportRequest, SocketLine, endpoint};

/// Reasons that are kept for `utcp why`.
const LOG_KEPT: usize = 1024;

/// Something that a program's shim said: why a socket went to the kernel.
#[derive(Debug, Clone)]
pub(super) struct LogLine {
    pub(super) pid: u32,
    pub(super) port: u32,
    pub(super) text: String,
}

impl Control {
    pub(super) fn on_report(&mut self, number: u32, message: &Message) {
        let regions: Vec<Arc<ClientRegion>> = self.clients.values().map(|c| c.shared.clone()).collect();
        for region in &regions {
            self.drain_log(region);
        }
        let text = match message.a {
            1 => self.sockets(),
            2 => self.counters(),
            3 => self.why(message.b, message.c),
            4 => self.clients_text(),
            _ => String::new(),
        };
        self.tell(number, text);
    }

    fn lines(&self) -> Vec<SocketLine> {
        let mut all = self.socket_lines();
        // A listener is in every shard: shown once.
        all.retain(|line| line.shard == 0 || line.state != "LISTEN");
        all
    }

    fn sockets(&self) -> String {
        let mut text = format!(
            "{:<11}{:>9}{:>9} {:<28}{:<28}{:<24}{}\n",
            "State", "Recv-Q", "Send-Q", "Local", "Peer", "Process", "Detail"
        );
        for line in self.lines() {
            let process =
                if line.pid == 0 { "-".to_owned() } else { format!("{}/{}", line.program, line.pid) };
            let (local, remote) = line.ends();
            let _ = writeln!(
                text,
                "{:<11}{:>9}{:>9} {:<28}{:<28}{:<24}shard:{} {}",
                line.state, line.recv_queue, line.send_queue, local, remote, process, line.shard, line.detail
            );
        }
        text
    }

    fn counters(&self) -> String {
        let mut total = Counters::default();
        let mut ports = Vec::new();
        for report in self.ask(ReportRequest::Counters) {
            if let Report::Counters(counters, more) = report {
                total.add(&counters);
                ports.extend(more);
            }
        }
        let mut text = String::new();
        for (name, value, meaning) in total.list() {
            let _ = writeln!(text, "{name} {value} #{meaning}");
        }
        for (name, value, meaning) in [
            ("shards", self.inboxes.len() as u64, "Shards there are."),
            ("shards_active", self.balance.active().into(), "Shards that get new connections, by the load."),
            ("shards_added", self.balance.added, "Times a shard began to get new connections."),
            ("shards_removed", self.balance.removed, "Times a shard got new connections no longer."),
        ] {
            let _ = writeln!(text, "{name} {value} # {meaning}");
        }
        for (index, inbox) in self.inboxes.iter().enumerate().filter(|_| self.inboxes.len() > 1) {
            let ms = inbox.effort() / 1_000_000;
            let _ = writeln!(text, "shard{index}_busy_ms {ms} # Milliseconds of rounds that found work.");
        }
        for (port, name, value) in ports {
            let _ = writeln!(text, "{port}.{name} {value}");
        }
        text
    }

    fn clients_text(&self) -> String {
        let mut text = String::new();
        for (id, client) in &self.clients {
            let _ = writeln!(
                text,
                "client {id}: {} pid {} uid {}, {} processes, {} listeners",
                client.shared.name,
                client.shared.pid,
                client.shared.uid,
                client.channels,
                client.listeners.len()
            );
        }
        text
    }

    /// In words: is port or pid `value` accelerated, and why (not)? `kind` 0: either, 1: port, 2: pid.
    fn why(&self, value: u64, kind: u64) -> String {
        let mut text = String::new();
        let lines = self.lines();
        if let Some(port) = u16::try_from(value).ok().filter(|_| kind != 2) {
            let listens = |l: &&SocketLine| l.local.port == port && l.remote.is_none() && !l.kernels;
            for line in lines.iter().filter(listens) {
                let _ = writeln!(
                    text,
                    "port {value}: accelerated. {}/{} listens at {} in this engine; programs under utcp on this host \
                     reach it through shared memory{}; everybody else reaches its kernel socket.",
                    line.program,
                    line.pid,
                    line.ends().0,
                    self.device_words()
                );
            }
            let count = lines.iter().filter(|l| l.remote.is_some() && l.has_port(port)).count();
            if count > 0 {
                let are = if count == 1 { "connection is" } else { "connections are" };
                let _ = writeln!(text, "port {value}: {count} {are} served by this engine.");
            }
        }
        if kind != 1 {
            for line in lines.iter().filter(|l| u64::from(l.pid) == value) {
                let (local, remote) = line.ends();
                let state = line.state;
                let _ = writeln!(text, "pid {value}: {state} {local} ↔ {remote} is served by this engine.");
            }
            for client in self.clients.values().filter(|c| u64::from(c.shared.pid) == value) {
                let _ = writeln!(text, "pid {value}: {} is attached to this engine.", client.shared.name);
            }
        }
        for line in &self.kernel_log {
            if u64::from(line.port) == value && kind != 2 || u64::from(line.pid) == value && kind != 1 {
                let _ = writeln!(text, "pid {}: {}", line.pid, line.text);
            }
        }
        if text.is_empty() {
            let _ = writeln!(
                text,
                "{value}: not accelerated. No program under utcp has such a port or pid in this engine: the program was \
                 started without libutcp.so, by another user, in another network namespace, uses io_uring (UTCP_IO_URING), \
                 or it ended."
            );
        }
        text
    }

    fn device_words(&self) -> String {
        if self.devices.is_empty() {
            String::new()
        } else {
            let devices: Vec<String> = self
                .devices
                .iter()
                .filter(|device| !device.is_past())
                .map(|device| self.device_state(device))
                .collect();
            format!(", hosts behind {} through the engine's own TCP", devices.join(", "))
        }
    }

    /// A device, and what is wrong with the interface below it.
    fn device_state(&self, device: &Device) -> String {
        let text = &device.text;
        if let Some(why) = &device.away {
            return format!("{text} (which is gone: {why}; it is opened again when it is back)");
        }
        let Some((opened, ifindex)) = &device.interface else { return text.clone() };
        let Some(interface) = self.host.interface(*ifindex) else {
            return format!("{text} (which is gone)");
        };
        let renamed = if interface.name == *opened { "" } else { &format!(" (now {})", interface.name) };
        let master = interface.master.and_then(|master| self.host.interface(master));
        let master = master.map_or(String::new(), |master| self.membership(device, master));
        match interface {
            interface if !interface.up => format!("{text}{renamed} (which is down){master}"),
            interface if !interface.running => format!("{text}{renamed} (which has no carrier){master}"),
            _ => {
                let trouble = device.steering.as_ref().and_then(|steering| steering.trouble());
                format!(
                    "{text}{renamed}{master}{}",
                    trouble.map_or(String::new(), |words| format!(" ({words})"))
                )
            }
        }
    }

    /// What it means for a device that it is a member of `master`.
    fn membership(&self, device: &Device, master: &Interface) -> String {
        let (name, kind) = (&master.name, kind_words(master.kind));
        if self.devices.iter().any(|other| other.away.is_none() && other.drives(master.index)) {
            return format!(" (a member of {name}, {kind}, which this engine drives, too)");
        }
        let refused = device.master_refused.as_ref().map_or(String::new(), |(_, why)| format!("; {why}"));
        format!(
            " (a member of {name}, {kind}: packets to its addresses don't come by this interface{refused})"
        )
    }

    /// A program asked for other devices than this engine has.
    pub(super) fn note_other_devices(&mut self, pid: u32, ours: &str) {
        let text = format!("its UTCP_DEVICE has no effect: this engine ran already and has {ours}.");
        self.note(LogLine { pid, port: 0, text });
    }

    /// A shard left a connection to the kernel: writes down why.
    pub(super) fn note_left_to_kernel(&mut self, pid: u32, to: Endpoint, reason: &str) {
        let text = format!("a connection to {} runs on the kernel: {reason}.", endpoint(to.addr, to.port));
        self.note(LogLine { pid, port: u32::from(to.port), text });
    }

    /// Why a connection to `to` can't be ours.
    pub(super) fn reason_for_kernel(&self, to: IpAddr, scope: u32) -> String {
        if self.host.is_local(to) {
            return "no program under utcp listens there on this host".to_owned();
        }
        if self.devices.is_empty() {
            return "this engine has no device (UTCP_DEVICE)".to_owned();
        }
        let oif = (scope != 0).then_some(scope);
        let Some(route) = self.host.route_by(to, None, oif) else {
            let gone: Vec<&str> = self
                .devices
                .iter()
                .filter(|d| d.away.is_some() && !d.is_past())
                .map(|d| d.text.as_str())
                .collect();
            let gone =
                if gone.is_empty() { String::new() } else { format!(", and {} is gone", gone.join(", ")) };
            return format!("no route leads there, or one that only the kernel can judge{gone}");
        };
        let Some(interface) = self.host.interface(route.ifindex) else {
            return "the interface of its route is gone".to_owned();
        };
        let name = &interface.name;
        let below = |device: &&Device| {
            let member = device.interface.as_ref().and_then(|(_, i)| self.host.interface(*i));
            let parent = match interface.kind {
                Kind::Vlan { parent, .. } => Some(parent),
                _ => None,
            };
            member.is_some_and(|m| m.master == Some(interface.index) || parent == Some(m.index))
        };
        let member = self.devices.iter().find(below).map_or(String::new(), |device| {
            format!("; {} is below it, and frames of {name} are not its own", device.text)
        });
        format!(
            "its route leaves by {name} ({}), which is no device of this engine{member}",
            kind_words(interface.kind)
        )
    }

    /// Keeps a line for `utcp why`; one that was said already moves to the end.
    pub(super) fn note(&mut self, line: LogLine) {
        tracing::info!(pid = line.pid, "{}", line.text);
        self.kernel_log.retain(|old| old.pid != line.pid || old.text != line.text);
        if self.kernel_log.len() >= LOG_KEPT {
            self.kernel_log.remove(0);
        }
        self.kernel_log.push(line);
    }

    /// Takes what a program's shim wrote into its log ring.
    pub(super) fn drain_log(&mut self, region: &ClientRegion) {
        let view = region.region();
        let header = view.header();
        let next = header.log_next.load(Ordering::Acquire);
        for ticket in next.saturating_sub(LOG_RECORDS as u32)..next {
            let Some(record) = header.log.get(ticket as usize % LOG_RECORDS) else { continue };
            if record.ready.swap(0, Ordering::Acquire) != ticket.wrapping_add(1) {
                continue;
            }
            let (pid, port) = (record.pid.load(Ordering::Relaxed), record.subject.load(Ordering::Relaxed));
            let detail = record.detail[0].load(Ordering::Relaxed);
            let text = match record.code.load(Ordering::Relaxed) {
                c if c == LogCode::ConnectKernel as u32 => format!(
                    "a connection to port {port} runs on the kernel: no program under utcp listens there on this host, \
                     and no device of the engine leads there."
                ),
                c if c == LogCode::ListenRefused as u32 => {
                    format!(
                        "the listener on port {port} runs on the kernel alone: the engine refused it (errno {detail})."
                    )
                }
                c if c == LogCode::Exhausted as u32 => {
                    "a socket runs on the kernel: the program has no free utcp socket left.".to_owned()
                }
                c if c == LogCode::UnknownOption as u32 => {
                    format!("socket option {} of level {} was refused.", port & 0xffff, port >> 16)
                }
                c if c == LogCode::KernelOption as u32 => format!(
                    "a socket runs on the kernel: utcp can't serve option {} of level {}, which the program set.",
                    port & 0xffff,
                    port >> 16
                ),
                c if c == LogCode::Rings as u32 => {
                    "the program uses io_uring: its sockets run on the kernel (UTCP_IO_URING=refuse would keep it from that)."
                        .to_owned()
                }
                c if c == LogCode::KeptListener as u32 && detail == 1 => {
                    format!("the listener on port {port} runs on the kernel alone: its program uses io_uring.")
                }
                c if c == LogCode::KeptListener as u32 && detail == 2 => {
                    format!(
                        "the listener on port {port} runs on the kernel alone: a program that can't have libutcp.so (static, or with other \
                         rights) inherited it."
                    )
                }
                c if c == LogCode::KeptListener as u32 && detail == 3 => {
                    format!("the listener on port {port} runs on the kernel alone: it was shut down before it listened.")
                }
                c if c == LogCode::KeptListener as u32 && detail == 0 => {
                    format!(
                        "the listener on port {port} runs on the kernel alone: its program wants signals of it (O_ASYNC)."
                    )
                }
                c if c == LogCode::KeptListener as u32 => format!(
                    "the listener on port {port} runs on the kernel alone: utcp can't serve option {} of level {}, which \
                     the program set.",
                    detail & 0xffff,
                    detail >> 16 & 0xffff
                ),
                _ => continue,
            };
            self.note(LogLine { pid, port, text });
        }
    }
}

/// What an interface is, for people.
fn kind_words(kind: Kind) -> &'static str {
    match kind {
        Kind::Device => "a device",
        Kind::Loopback => "the loopback device",
        Kind::Vlan { .. } => "a VLAN",
        Kind::Bond => "a bond or team",
        Kind::Bridge => "a bridge",
        Kind::Veth => "a veth",
        Kind::Tun => "a TUN or TAP device",
        Kind::Vrf => "a VRF",
        Kind::Virtual => "a virtual interface",
    }
}
