//! One interface, as the port that is to drive it needs it.

use std::fs;
use std::io;
use std::process::Command;

use utcp_engine::DeviceSpec;
use utcp_engine::host::{HostMirror, HostView, Interface, Kind};
use utcp_engine::inspect::{self, Offload, RingSizes};
use utcp_engine::rss::Rss;
use utcp_engine::station::{DeviceConfig, DeviceConfigError};

use super::Finding;

/// An AF_XDP buffer holds a packet of this length at most; longer ones come in pieces.
const XDP_MTU_MAX: u32 = 4096 - 256 - 18;

/// Looks at the interface that a device string names, as `UTCP_DEVICE` has it.
pub fn look(device: &str) -> Result<Vec<Finding>, String> {
    let (name, bare) = match DeviceConfig::parse(device) {
        Ok(config) => (config.device, None),
        // The name alone is enough to look at it, if not to drive it.
        Err(error @ DeviceConfigError::NoAddress(_)) => {
            (device.to_owned(), Some(Finding::note("address", error.to_string())))
        }
        Err(error) => return Err(error.to_string()),
    };
    let spec: DeviceSpec = name.parse().map_err(|error: utcp_engine::SpecError| error.to_string())?;
    let mut findings = look_at(&spec)?;
    findings.extend(bare);
    Ok(findings)
}

fn look_at(spec: &DeviceSpec) -> Result<Vec<Finding>, String> {
    let (name, port, queue) = match spec {
        DeviceSpec::Xdp { interface, queue } => (interface, Port::Xdp, *queue),
        DeviceSpec::Netmap { name, .. } if name.contains(':') => {
            return Ok(vec![Finding::good("device", "a port of a VALE switch has no interface to look at")]);
        }
        // Its rings need not be the driver's queues: `@conf:` sets them, and the module says so itself.
        DeviceSpec::Netmap { name, .. } => (name, Port::Netmap, None),
        DeviceSpec::Tap { name } => return Ok(vec![tap(name, host()?.as_ref())]),
        DeviceSpec::Pipe { .. } => return Ok(vec![Finding::good("device", "a pipe needs nothing")]),
        DeviceSpec::Switch { name } => return Ok(vec![switch(name)]),
    };
    let host = host()?;
    let Some(interface) = host.interface_named(name) else {
        let words = format!("no interface {name:?} in this network namespace; `ip link` lists them");
        return Ok(vec![Finding::bad("device", words)]);
    };
    let mut findings = vec![link(interface)];
    findings.extend(kind(interface, &host, port));
    findings.extend(driver(interface, queue));
    findings.push(interrupts(name));
    match port {
        Port::Xdp => findings.extend(xdp(interface)),
        Port::Netmap => findings.extend(netmap(interface)),
    }
    Ok(findings)
}

fn switch(name: &str) -> Finding {
    match utcp_engine::switch::report(name) {
        Ok(text) => Finding::good("device", text.trim_end().to_owned()),
        Err(error) => Finding::bad(
            "device",
            format!("no switch {name} answers ({error}); start `utcp switch xdp:{name}`"),
        ),
    }
}

#[derive(Clone, Copy)]
enum Port {
    Xdp,
    Netmap,
}

fn host() -> Result<std::sync::Arc<HostView>, String> {
    HostMirror::open()
        .map(|(_, view)| view)
        .map_err(|error| format!("the kernel does not tell about its interfaces: {error}"))
}

fn tap(name: &str, host: &HostView) -> Finding {
    match host.interface_named(name) {
        None => Finding::good("device", format!("{name} is not there yet; the engine makes it")),
        Some(interface) if interface.kind == Kind::Tun => {
            Finding::good("device", format!("{name} is there, MTU {}", interface.mtu))
        }
        Some(_) => {
            Finding::bad("device", format!("{name} is there and is no TAP device; choose another name"))
        }
    }
}

fn link(interface: &Interface) -> Finding {
    let Interface { name, mtu, .. } = interface;
    if !interface.ethernet {
        return Finding::bad("device", format!("{name} is not an Ethernet interface"));
    }
    if interface.running {
        return Finding::good("device", format!("{name} is up, MTU {mtu}"));
    }
    if interface.up {
        return Finding::bad(
            "device",
            format!("{name} has no carrier: a cable, or the other end, is missing"),
        );
    }
    let finding = Finding::bad("device", format!("{name} is down; `ip link set {name} up`"));
    let name = name.clone();
    finding.fixed_by(move || {
        let status = Command::new("ip").args(["link", "set", &name, "up"]).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other("`ip link` refused")) }
    })
}

fn kind(interface: &Interface, host: &HostView, port: Port) -> Option<Finding> {
    let master = interface.master.and_then(|index| host.interface(index));
    match (interface.kind, master) {
        (_, Some(Interface { name, kind: Kind::Bridge, .. })) if matches!(port, Port::Xdp) => {
            let words = format!(
                "it is a member of {name}, a bridge, which has the addresses: the engine drives that, too"
            );
            Some(Finding::note("device", words))
        }
        (_, Some(Interface { name, .. })) => Some(Finding::bad(
            "device",
            format!("it is a member of {name}, which has the addresses: utcp would find none here"),
        )),
        (Kind::Bridge, _) => Some(Finding::note(
            "device",
            "a bridge: its frames are taken in generic mode, which is slower than a NIC's own",
        )),
        (Kind::Vlan { .. } | Kind::Bond | Kind::Virtual | Kind::Vrf, _) => Some(Finding::note(
            "device",
            "not a NIC: XDP may not see its frames (a macvlan's it does not), and then the kernel serves them; a tap: \
             device with an address of its own, in a bridge, is sure",
        )),
        _ => None,
    }
}

fn driver(interface: &Interface, queue: Option<u32>) -> Vec<Finding> {
    let facts = match inspect::driver(&interface.name) {
        Ok(Some(facts)) => facts,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![Finding::note("driver", format!("does not tell: {error}"))],
    };
    let name = if facts.name.is_empty() { "unknown" } else { &facts.name };
    let queues = facts.queues;
    let mut all =
        vec![Finding::good("driver", format!("{name}, {queues} queue(s): as many shards can serve it"))];
    if let Some(queue) = queue.filter(|queue| *queue >= queues) {
        let (name, last) = (&interface.name, queues.saturating_sub(1));
        let words = format!("{name} has none of number {queue}; name one up to xdp:{name}-{last}");
        all.push(Finding::bad("queue", words));
    }
    if queues > 1 {
        all.push(spreading(&interface.name));
    }
    if let Some(RingSizes { rx, tx, rx_max, tx_max }) = facts.ring_sizes {
        all.push(Finding::good("rings", format!("{rx} of {rx_max} rx slots, {tx} of {tx_max} tx slots")));
        if name == "ice" && (rx < 2048 || tx < 2048) {
            let words =
                format!("netmap wants 2048 slots of ice: `ethtool -G {} rx 2048 tx 2048`", interface.name);
            all.push(Finding::note("rings", words));
        }
    }
    all
}

/// How the NIC chooses a queue: it decides whether replies come to the shard that connects.
fn spreading(name: &str) -> Finding {
    match Rss::of(name) {
        Ok(Some(rss)) => {
            Finding::good("RSS", format!("{}: replies come to the shard that connects", rss.describe()))
        }
        Ok(None) => Finding::note(
            "RSS",
            "not a Toeplitz hash that could be computed: shards hand frames to each other (frames_handed_over); \
             `ethtool -X IFACE hfunc toeplitz` may help",
        ),
        Err(error) => Finding::note(
            "RSS",
            format!("its key is not told ({error}): shards hand frames to each other (frames_handed_over)"),
        ),
    }
}

/// Which cores take the interface's interrupts.
fn interrupts(name: &str) -> Finding {
    const WHAT: &str = "interrupts";
    let table = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let numbers: Vec<&str> = table
        .lines()
        .filter(|line| line.split([' ', '-', '@', ',']).any(|word| word == name))
        .filter_map(|line| line.trim().split(':').next())
        .collect();
    if numbers.is_empty() {
        return Finding::good(
            WHAT,
            format!("none carries {name}'s name (a virtual interface, or its driver's)"),
        );
    }
    let cores: Vec<String> = numbers
        .iter()
        .filter_map(|n| fs::read_to_string(format!("/proc/irq/{n}/effective_affinity_list")).ok())
        .map(|list| list.trim().to_owned())
        .collect();
    Finding::good(WHAT, format!("{} on cores {}; keep shards near them", numbers.len(), cores.join(" ")))
}

fn xdp(interface: &Interface) -> Vec<Finding> {
    let Interface { name, mtu, index, .. } = interface;
    let mut all = Vec::new();
    let drives = |id| {
        Finding::note("XDP", format!("an engine of utcp drives {name} (program {id}); a second one can't"))
    };
    let behind = inspect::steers_behind(*index);
    all.push(match (interface.xdp, &behind) {
        (_, Some((id, _))) => drives(*id),
        (None, None) => Finding::good("XDP", "no program is attached"),
        (Some(id), None) => match inspect::xdp_program_name(id) {
            Some(program) if program == inspect::STEERING_PROGRAM => drives(id),
            program if inspect::stands_behind(name) => Finding::note(
                "XDP",
                format!(
                    "program {:?} (number {id}) is attached: it stands in front of ours, which sees what it passes",
                    program.unwrap_or_default()
                ),
            ),
            program => Finding::bad(
                "XDP",
                format!(
                    "program {:?} (number {id}) is attached; whoever attached it must detach it (`ip link set dev \
                     {name} xdp off` if nobody does)",
                    program.unwrap_or_default()
                ),
            ),
        },
    });
    if let Some((_, before)) = behind.filter(|(_, before)| !before.is_empty()) {
        let words = inspect::program_words(&before);
        all.push(Finding::note(
            "tcx",
            format!("asked before ours: {words}; what they keep never comes to utcp"),
        ));
    }
    let chains = if inspect::stands_behind(name) { inspect::ingress_chains(name) } else { Vec::new() };
    if !chains.is_empty() {
        let words =
            format!("ingress chains {}: what they drop never comes to utcp either", chains.join(", "));
        all.push(Finding::note("nftables", words));
    }
    if inspect::stands_behind(name) && inspect::bpf().is_ok() {
        all.push(short_frames(inspect::short_ways()));
    }
    if *mtu > XDP_MTU_MAX {
        let words = format!(
            "{mtu} is more than {XDP_MTU_MAX}, the longest packet of an AF_XDP buffer: longer ones come in pieces and \
             are put together by a copy (Linux 6.6 or later; before, they are cut to that length by the MSS)"
        );
        all.push(Finding::note("MTU", words));
    }
    all.extend(must_be_off(name, &[(Offload::Lro, "it joins segments before XDP sees them")]));
    if Offload::RxVlan.is_on(name).unwrap_or(false) {
        let words = format!(
            "the NIC takes VLAN tags off, so XDP can't tell a VLAN's frames from others: if {name} carries VLANs, \
             `ethtool -K {name} rxvlan off`"
        );
        all.push(Finding::note("offload rxvlan", words));
    }
    all
}

/// How short frames go on a veth pair.
fn short_frames((ring, xdp): (bool, bool)) -> Finding {
    let comes = if ring {
        "by a ring buffer of BPF's"
    } else {
        "by packet sockets, which costs more (no ring buffer can be had)"
    };
    let leaves =
        if xdp { "by AF_XDP" } else { "by packet sockets, which costs more (AF_XDP sends nothing here)" };
    let words = format!(
        "they come {comes} and leave {leaves}; all by packet sockets while nftables has chains at the interface's hooks"
    );
    if ring && xdp { Finding::good("short frames", words) } else { Finding::note("short frames", words) }
}

/// Where the module says how long its buffers are.
const NETMAP_BUFFER: &str = "/sys/module/netmap/parameters/buf_size";
/// Ethernet header and one VLAN tag.
const LINK_HEADER: u32 = 18;

/// What the kernel sends has to fit one buffer; the module drops longer frames.
fn netmap_buffers(mtu: u32, told: &str) -> Option<Finding> {
    let bytes = told.trim().parse::<u32>().ok()?;
    if bytes >= mtu + LINK_HEADER {
        return Some(Finding::good("netmap buffers", format!("{bytes} bytes, for an MTU of {mtu}")));
    }
    let need = (mtu + LINK_HEADER).next_multiple_of(64);
    Some(Finding::bad(
        "netmap buffers",
        format!(
            "{bytes} bytes are too few for an MTU of {mtu}: longer frames of the kernel are dropped; `echo {need} > \
             {NETMAP_BUFFER}` while nobody uses netmap, or a smaller MTU"
        ),
    ))
}

fn netmap(interface: &Interface) -> Vec<Finding> {
    const HOST: &str = "the host's frames pass netmap as they are, and nobody would finish them";
    const JOINED: &str = "it joins segments into frames that fit no slot";
    let mut all = must_be_off(
        &interface.name,
        &[
            (Offload::Lro, JOINED),
            (Offload::Gro, JOINED),
            (Offload::Tso, HOST),
            (Offload::Gso, HOST),
            (Offload::TxChecksum, HOST),
            (Offload::RxChecksum, "netmap has no word for its result, so it is verified again anyway"),
        ],
    );
    all.extend(netmap_buffers(interface.mtu, &fs::read_to_string(NETMAP_BUFFER).unwrap_or_default()));
    all
}

fn must_be_off(interface: &str, offloads: &[(Offload, &str)]) -> Vec<Finding> {
    let mut all = Vec::new();
    for &(offload, why) in offloads {
        let short = offload.ethtool_name();
        // Who can't say has none.
        if !offload.is_on(interface).unwrap_or(false) {
            continue;
        }
        let words = format!("{short} is on: {why}; `ethtool -K {interface} {short} off`");
        let finding = match offload {
            Offload::RxChecksum => Finding::note("offload", words),
            _ => Finding::bad("offload", words),
        };
        let interface = interface.to_owned();
        all.push(finding.fixed_by(move || offload.switch_off(&interface)));
    }
    if all.is_empty() {
        all.push(Finding::good("offloads", "none that would be in the way is on"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn short_buffers_of_netmap_are_told_of() {
        let level = |mtu, told: &str| netmap_buffers(mtu, told).map(|finding| finding.level);
        assert_eq!(level(1500, "2048\n"), Some(Level::Good));
        assert_eq!(level(9000, "2048\n"), Some(Level::Bad));
        assert_eq!(level(2031, "2048"), Some(Level::Bad));
        assert_eq!(level(2030, "2048"), Some(Level::Good));
        // Without the module there is nothing to say.
        assert_eq!(level(9000, ""), None);
        let words = netmap_buffers(9000, "2048").map(|finding| finding.words).unwrap_or_default();
        assert!(words.contains("echo 9024 > /sys/module/netmap/parameters/buf_size"), "{words}");
    }
}
