//! The kernel, what we may do, and how much of it.

use std::fs;
use std::io;
use std::path::Path;

use utcp_engine::shard::DEVICE_PORTS;
use utcp_engine::{inspect, probe};

use super::Finding;

/// The oldest kernel with everything that the library needs.
const KERNEL: (u32, u32) = (5, 16);
/// Packet memory of one AF_XDP queue: two rings of 2048 buffers of 2048 bytes.
const QUEUE_BYTES: u64 = 2 * 2048 * 2048;
/// Every connection takes a descriptor of the program and one of the engine.
const DESCRIPTORS: u64 = 65_536;
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

const CAPABILITIES: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (39, "CAP_BPF")];
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;

/// Looks at everything; `devices`: those are going to be driven.
pub fn look(devices: &[String]) -> Vec<Finding> {
    let is = |kind: &str| devices.iter().any(|device| device.starts_with(kind));
    let (device, on_netmap) = (!devices.is_empty(), is("netmap:") || is("vale"));
    vec![
        kernel(),
        futex_waitv(),
        descriptors(),
        privileges(device),
        af_xdp(device, is("xdp:")),
        bpf(device, is("xdp:")),
        locked_memory(),
        tun(is("tap:")),
        netmap(on_netmap),
        client_ports(device),
    ]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = KERNEL;
    if version >= KERNEL {
        Finding::good("kernel", format!("{release}, needed is {major}.{minor}"))
    } else {
        Finding::bad("kernel", format!("{release} is older than {major}.{minor}, which has futex_waitv"))
    }
}

fn futex_waitv() -> Finding {
    match probe::futex_waitv() {
        Ok(()) => Finding::good("futex_waitv", "answers"),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Finding::bad(
            "futex_waitv",
            "refused, as old seccomp filters of container runtimes do; allow the call or update the runtime",
        ),
        Err(error) => Finding::bad("futex_waitv", format!("{error}; a blocked program could not sleep")),
    }
}

/// A line of `/proc/self/limits`: soft and hard limit; unlimited is the largest number.
fn limit(name: &str) -> Option<(u64, u64)> {
    let text = read("/proc/self/limits");
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let mut values = line.split_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
    Some((values.next()?, values.next()?))
}

fn descriptors() -> Finding {
    let Some((_, hard)) = limit("Max open files") else {
        return Finding::note("open files", "the limit can't be read");
    };
    if hard >= DESCRIPTORS {
        return Finding::good("open files", format!("up to {hard} (the engine lifts its own limit to that)"));
    }
    Finding::note(
        "open files",
        format!("up to {hard}: every connection takes one; `ulimit -Hn` or LimitNOFILE= sets more"),
    )
}

fn capabilities() -> u64 {
    let status = read("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or("0");
    u64::from_str_radix(line.trim(), 16).unwrap_or(0)
}

fn may(capability: u32) -> bool {
    capabilities() >> capability & 1 == 1
}

/// Bad only for whoever wants a device.
fn serious(device: bool, what: &'static str, words: String) -> Finding {
    if device { Finding::bad(what, words) } else { Finding::note(what, words) }
}

fn privileges(device: bool) -> Finding {
    let lacking: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| !(may(*bit) || *bit == 39 && may(CAP_SYS_ADMIN)))
        .map(|(_, name)| *name)
        .collect();
    if lacking.is_empty() {
        return Finding::good("privileges", "enough for every device");
    }
    let words = format!(
        "without {}: same-host traffic needs none, a device of the network does (root, or `setcap \
         cap_net_admin,cap_net_raw,cap_bpf+ep` on the utcp binary)",
        lacking.join(", ")
    );
    serious(device, "privileges", words)
}

fn af_xdp(device: bool, needed: bool) -> Finding {
    match inspect::af_xdp() {
        Ok(()) => Finding::good("AF_XDP", "answers"),
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            let words = "this kernel was built without (CONFIG_XDP_SOCKETS); tap: devices work";
            serious(needed, "AF_XDP", words.to_owned())
        }
        Err(error) => serious(device, "AF_XDP", format!("{error}; see privileges")),
    }
}

fn bpf(device: bool, needed: bool) -> Finding {
    match inspect::bpf() {
        Ok(()) => Finding::good("BPF", "answers"),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            serious(needed, "BPF", "this kernel was built without; tap: devices work".to_owned())
        }
        Err(error) => serious(device, "BPF", format!("{error}; see privileges")),
    }
}

fn locked_memory() -> Finding {
    const WHAT: &str = "locked memory";
    if may(CAP_IPC_LOCK) {
        return Finding::good(WHAT, "no limit (CAP_IPC_LOCK)");
    }
    let Some((_, hard)) = limit("Max locked memory") else {
        return Finding::note(WHAT, "the limit can't be read");
    };
    let queues = hard / QUEUE_BYTES;
    let mib = hard >> 20;
    if hard == u64::MAX || queues >= 8 {
        return Finding::good(WHAT, format!("{mib} MiB, enough for {queues} AF_XDP queues"));
    }
    Finding::note(
        WHAT,
        format!(
            "{mib} MiB are enough for {queues} AF_XDP queue(s) (8 MiB each); `ulimit -Hl` or LimitMEMLOCK="
        ),
    )
}

fn tun(needed: bool) -> Finding {
    const WHAT: &str = "TAP";
    match fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::good(WHAT, "/dev/net/tun answers"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let words = "no /dev/net/tun; `modprobe tun`, or give the container the device";
            serious(needed, WHAT, words.to_owned())
        }
        Err(error) => serious(needed, WHAT, format!("/dev/net/tun: {error}")),
    }
}

fn netmap(needed: bool) -> Finding {
    const WHAT: &str = "netmap";
    let version = read("/sys/module/netmap/version");
    match inspect::netmap() {
        Ok(()) => Finding::good(WHAT, format!("the module answers {version}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let words = "no module (/dev/netmap); needed for netmap: and vale devices only";
            serious(needed, WHAT, words.to_owned())
        }
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Finding::bad(
            WHAT,
            format!("the module {version} speaks another version of its interface; needed is API 14 or 15"),
        ),
        Err(error) => serious(needed, WHAT, format!("/dev/netmap: {error}")),
    }
}

/// Whether a port number stands in a list such as `80,61000-65535`.
fn listed(list: &str, port: u32) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let bounds = first.trim().parse::<u32>().ok().zip(last.trim().parse::<u32>().ok());
        bounds.is_some_and(|(first, last)| (first..=last).contains(&port))
    })
}

/// Connections of the kernel that come from these ports may have the same four-tuple as one of ours; with netmap, they hear nothing.
fn client_ports(device: bool) -> Finding {
    const WHAT: &str = "client ports";
    let (first, last) = (DEVICE_PORTS.start, DEVICE_PORTS.end - 1);
    let range = read(RANGE);
    let kernel_last = range.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(60_999);
    let reserved = read(RESERVED);
    let clash = (first..=last.min(kernel_last)).any(|port| !listed(&reserved, port));
    if !clash {
        return Finding::good(WHAT, format!("the kernel leaves {first}-{last} to utcp"));
    }
    let words = format!(
        "the kernel's programs may connect from some of {first}-{last}, from which utcp connects over a device, and meet its connections \
         (with netmap:, they hear nothing there): `sysctl net.ipv4.ip_local_reserved_ports={first}-{last}`"
    );
    serious(device, WHAT, words).fixed_by(move || {
        let comma = if reserved.is_empty() { "" } else { "," };
        fs::write(Path::new(RESERVED), format!("{reserved}{comma}{first}-{last}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_ports_are_read() {
        for (list, port, yes) in [
            ("", 61_000, false),
            ("61000", 61_000, true),
            ("80,61000-65535", 65_535, true),
            ("80,61000-65535", 81, false),
            ("x-y", 0, false),
        ] {
            assert_eq!(listed(list, port), yes, "{list:?} {port}");
        }
    }

    #[test]
    fn limits_are_read() {
        let (soft, hard) = limit("Max open files").expect("Linux tells");
        assert!(soft <= hard && hard > 0);
    }
}
