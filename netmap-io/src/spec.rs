//! Device strings: `xdp:eth0-3`, `netmap:eth0^`, `vale0:a`, `tap:utcp0`, `pipe:NAME`.

use std::fmt;
use std::str::FromStr;

use crate::netmap::name::{NetmapOptions, PortName, Rings};

/// The longest interface name of Linux, without the terminating zero.
const IFNAME_MAX: usize = 15;
/// The longest name of a pipe: it becomes part of a socket address.
const PIPE_NAME_MAX: usize = 80;
/// More queues than any driver has.
const QUEUE_MAX: u32 = 4095;

/// What a device string asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// `netmap:eth0…` or, through a VALE switch, `vale0:a…`.
    Netmap {
        /// The name that the module knows it by: `eth0`, or `vale0:a`.
        name: String,
        /// Which rings.
        rings: Rings,
        /// What stands behind them.
        options: Box<NetmapOptions>,
    },
    /// `xdp:eth0`, `xdp:eth0-3`.
    Xdp {
        /// Interface.
        interface: String,
        /// One queue, or all.
        queue: Option<u32>,
    },
    /// `tap:utcp0`.
    Tap {
        /// Name of the TAP device; made when it is not there.
        name: String,
    },
    /// `pipe:NAME`.
    Pipe {
        /// Both ends give the same name.
        name: String,
    },
    /// `switch:eth0`: a share of what `utcp switch` drives.
    Switch {
        /// What the switch is called.
        name: String,
    },
}

/// Why a device string was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Nothing, or nothing in front of the colon.
    #[error("{text:?} names no kind of port; write one of {KINDS}")]
    NoKind {
        /// The whole string.
        text: String,
    },
    /// A kind that does not exist.
    #[error("unknown kind of port {kind:?} in {text:?}; write one of {KINDS}")]
    UnknownKind {
        /// The whole string.
        text: String,
        /// What stands in front of the colon.
        kind: String,
    },
    /// Nothing behind the colon.
    #[error("{text:?} names no {what} after the colon, as in {example:?}")]
    NoName {
        /// The whole string.
        text: String,
        /// What should stand there.
        what: &'static str,
        /// A right one.
        example: &'static str,
    },
    /// A name that no interface can have.
    #[error("{name:?} in {text:?} is not {what}: {reason}")]
    BadName {
        /// The whole string.
        text: String,
        /// The name.
        name: String,
        /// What it should be.
        what: &'static str,
        /// Why it can't be one.
        reason: &'static str,
    },
    /// Flags or an option that mean nothing.
    #[error("{suffix:?} in {text:?}: {reason}")]
    BadSuffix {
        /// The whole string.
        text: String,
        /// What was not understood.
        suffix: String,
        /// What would be.
        reason: &'static str,
    },
    /// A number that is not one, or too large.
    #[error("{number:?} in {text:?} is not a {what} (0 to {max})")]
    BadNumber {
        /// The whole string.
        text: String,
        /// The number as written.
        number: String,
        /// What it counts.
        what: &'static str,
        /// The largest.
        max: u32,
    },
}

/// The kinds, for error texts.
const KINDS: &str = "netmap:eth0, xdp:eth0, switch:eth0, tap:utcp0, pipe:NAME, vale0:port";

impl FromStr for DeviceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let Some((kind, rest)) = text.split_once(':').filter(|(kind, _)| !kind.is_empty()) else {
            return Err(SpecError::NoKind { text: text.into() });
        };
        match kind {
            "xdp" => {
                let (name, queue) = split_queue(text, rest)?;
                let interface = interface_name(text, name, "xdp:eth0")?;
                Ok(Self::Xdp { interface, queue })
            }
            "tap" => Ok(Self::Tap { name: interface_name(text, rest, "tap:utcp0")? }),
            "pipe" => Ok(Self::Pipe { name: pipe_name(text, rest)? }),
            "switch" => Ok(Self::Switch { name: pipe_name(text, rest)? }),
            "netmap" => Ok(netmap(PortName::parse(text, None, rest)?)),
            vale if is_vale(vale) => Ok(netmap(PortName::parse(text, Some(vale), rest)?)),
            _ => Err(SpecError::UnknownKind { text: text.into(), kind: kind.into() }),
        }
    }
}

/// netmap's rule: `vale` and letters, digits or `_`.
fn is_vale(kind: &str) -> bool {
    let tail = kind.strip_prefix("vale");
    tail.is_some_and(|tail| tail.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

/// Cuts `-3` off the end. A name that itself ends so (`br-12`) is written with its queue: `br-12-0`.
fn split_queue<'t>(text: &str, rest: &'t str) -> Result<(&'t str, Option<u32>), SpecError> {
    match rest.rsplit_once('-') {
        Some((name, digits)) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Ok((name, Some(number(text, digits, "queue number")?)))
        }
        _ => Ok((rest, None)),
    }
}

fn netmap(PortName { name, rings, options }: PortName) -> DeviceSpec {
    DeviceSpec::Netmap { name, rings, options: Box::new(options) }
}

fn number(text: &str, digits: &str, what: &'static str) -> Result<u32, SpecError> {
    let bad = || SpecError::BadNumber { text: text.into(), number: digits.into(), what, max: QUEUE_MAX };
    digits.parse().ok().filter(|n| *n <= QUEUE_MAX).ok_or_else(bad)
}

/// The kernel's rule for interface names (`dev_valid_name`).
pub(crate) fn interface_name(text: &str, name: &str, example: &'static str) -> Result<String, SpecError> {
    let what = "interface name";
    let bad = |reason| SpecError::BadName {
        text: text.into(),
        name: name.into(),
        what: "an interface name",
        reason,
    };
    if name.is_empty() {
        return Err(SpecError::NoName { text: text.into(), what, example });
    }
    if name.len() > IFNAME_MAX {
        return Err(bad("longer than 15 bytes"));
    }
    if name == "." || name == ".." {
        return Err(bad("reserved"));
    }
    if name.bytes().any(|b| b.is_ascii_whitespace() || matches!(b, b'/' | b':' | 0)) {
        return Err(bad("blanks, '/' and ':' can't be in one"));
    }
    Ok(name.into())
}

fn pipe_name(text: &str, name: &str) -> Result<String, SpecError> {
    let bad =
        |reason| SpecError::BadName { text: text.into(), name: name.into(), what: "a pipe name", reason };
    if name.is_empty() {
        return Err(SpecError::NoName { text: text.into(), what: "name", example: "pipe:a" });
    }
    if name.len() > PIPE_NAME_MAX {
        return Err(bad("longer than 80 bytes"));
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) {
        return Err(bad("only letters, digits, '_', '-' and '.' can be in one"));
    }
    Ok(name.into())
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xdp { interface, queue: None } => write!(f, "xdp:{interface}"),
            Self::Xdp { interface, queue: Some(queue) } => write!(f, "xdp:{interface}-{queue}"),
            Self::Tap { name } => write!(f, "tap:{name}"),
            Self::Pipe { name } => write!(f, "pipe:{name}"),
            Self::Switch { name } => write!(f, "switch:{name}"),
            Self::Netmap { name, rings, options } => {
                let kind = if name.starts_with("vale") && name.contains(':') { "" } else { "netmap:" };
                write!(f, "{kind}{name}{rings}{options}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netmap::name::{Extmem, Offset};

    #[track_caller]
    fn check(text: &str, want: &DeviceSpec) {
        let got: DeviceSpec = text.parse().unwrap();
        assert_eq!(&got, want);
        assert_eq!(got.to_string(), text, "prints as it was written");
    }

    #[track_caller]
    fn check_error(text: &str, want: &str) {
        let error = text.parse::<DeviceSpec>().unwrap_err().to_string();
        assert!(error.contains(want), "{text:?} gave {error:?}, which lacks {want:?}");
    }

    #[test]
    fn every_kind_is_parsed_and_printed_back() {
        let xdp = |name: &str, queue| DeviceSpec::Xdp { interface: name.into(), queue };
        check("xdp:eth0", &xdp("eth0", None));
        check("xdp:eth0-3", &xdp("eth0", Some(3)));
        check("xdp:br-lan", &xdp("br-lan", None));
        check("xdp:br-12-0", &xdp("br-12", Some(0)));
        check("tap:utcp0", &DeviceSpec::Tap { name: "utcp0".into() });
        check("pipe:a.b-c_1", &DeviceSpec::Pipe { name: "a.b-c_1".into() });
        check("switch:eth0", &DeviceSpec::Switch { name: "eth0".into() });
        check("netmap:eth0", &netmap("eth0", Rings::All, |_| {}));
    }

    #[test]
    fn a_wrong_string_says_what_is_wrong_with_it() {
        check_error("", "names no kind of port");
        check_error("eth0", "names no kind of port");
        check_error(":eth0", "names no kind of port");
        check_error("dpdk:eth0", "unknown kind of port \"dpdk\"");
        check_error("valet-x:a", "unknown kind of port \"valet-x\"");
        check_error("xdp:", "names no interface name after the colon, as in \"xdp:eth0\"");
        check_error("xdp:-1", "names no interface name");
        check_error("xdp:eth0-99999", "is not a queue number (0 to 4095)");
        check_error("xdp:interfacename16c", "longer than 15 bytes");
        check_error("xdp:a b", "blanks");
        check_error("tap:..", "reserved");
        check_error("pipe:", "names no name after the colon");
        check_error("pipe:a/b", "only letters, digits");
    }

    fn netmap(name: &str, rings: Rings, set: impl FnOnce(&mut NetmapOptions)) -> DeviceSpec {
        let mut options = Box::new(NetmapOptions::default());
        set(&mut options);
        DeviceSpec::Netmap { name: name.into(), rings, options }
    }

    /// What libnetmap makes of the same strings.
    #[test]
    fn names_of_netmap_ports_mean_what_they_mean_to_libnetmap() {
        let plain = |text: &str, name: &str, rings| check(text, &netmap(name, rings, |_| {}));
        plain("netmap:eth0", "eth0", Rings::All);
        plain("netmap:eth0-3", "eth0", Rings::One(3));
        plain("netmap:eth0-4094", "eth0", Rings::One(4094));
        plain("netmap:eth0^", "eth0", Rings::Host);
        plain("netmap:eth0^2", "eth0", Rings::OneHost(2));
        plain("netmap:eth0*", "eth0", Rings::AllAndHost);
        plain("netmap:x{1", "x{1", Rings::All);
        plain("netmap:x}ab_2", "x}ab_2", Rings::All);
        plain("netmap:eth0{1-0", "eth0{1", Rings::One(0));
        plain("vale0:a", "vale0:a", Rings::All);
        plain("vale:a", "vale:a", Rings::All);
        plain("vale_x9:a-1", "vale_x9:a", Rings::One(1));
        plain("vale0:a{3", "vale0:a{3", Rings::All);
        plain("netmap:br-lan", "br-lan", Rings::All);
        plain("netmap:br-12-0", "br-12", Rings::One(0));
        let with = |text: &str, rings, set: fn(&mut NetmapOptions)| check(text, &netmap("eth0", rings, set));
        with("netmap:eth0/x", Rings::All, |o| o.exclusive = true);
        with("netmap:eth0-1/zR", Rings::One(1), |o| (o.zero_copy_monitor, o.rx_only) = (true, true));
        with("netmap:eth0^/T", Rings::Host, |o| o.tx_only = true);
        with("netmap:eth0/tr", Rings::All, |o| (o.monitor_tx, o.monitor_rx) = (true, true));
        with("netmap:eth0@2", Rings::All, |o| o.mem_id = Some(2));
        with("netmap:eth0*/x@7", Rings::AllAndHost, |o| (o.exclusive, o.mem_id) = (true, Some(7)));
        with("netmap:eth0@share=netmap:eth1", Rings::All, |o| o.share = Some("netmap:eth1".into()));
        with("netmap:eth0@conf:tx-rings=2,rx-slots=512", Rings::All, |o| {
            (o.conf.tx_rings, o.conf.rx_slots) = (2, 512);
        });
        with("netmap:eth0@2@conf:host-tx-rings=4,host-rx-rings=4", Rings::All, |o| {
            o.mem_id = Some(2);
            (o.conf.host_tx_rings, o.conf.host_rx_rings) = (4, 4);
        });
        with("netmap:eth0@extmem:file=/dev/hugepages/nm,buf-num=4096", Rings::All, |o| {
            let pools = [(0, 0), (0, 0), (4096, 0)];
            o.extmem = Some(Extmem { file: "/dev/hugepages/nm".into(), pools });
        });
        with("netmap:eth0@offset:initial=16,bits=12", Rings::All, |o| {
            o.offset = Some(Offset { initial: 16, bits: 12 });
        });
    }

    /// The same port by another spelling, printed in one way.
    #[test]
    fn what_stands_for_both_directions_is_taken_apart() {
        for (text, printed) in [
            (
                "netmap:eth0@conf:slots=256,rings=2",
                "netmap:eth0@conf:tx-rings=2,rx-rings=2,tx-slots=256,rx-slots=256",
            ),
            ("netmap:eth0@conf:ring-slots=256", "netmap:eth0@conf:tx-slots=256,rx-slots=256"),
            ("netmap:eth0@conf:rx_slots=64,slots=256", "netmap:eth0@conf:tx-slots=256,rx-slots=64"),
            ("netmap:eth0@conf:host-rings=3", "netmap:eth0@conf:host-tx-rings=3,host-rx-rings=3"),
            ("netmap:eth0@extmem=/f", "netmap:eth0@extmem:file=/f"),
            ("netmap:eth0/@3", "netmap:eth0@3"),
            ("netmap:eth0@3/x", "netmap:eth0/x@3"),
            ("netmap:eth0-007", "netmap:eth0-7"),
        ] {
            assert_eq!(text.parse::<DeviceSpec>().unwrap().to_string(), printed, "{text}");
        }
    }

    #[test]
    fn what_libnetmap_refuses_is_refused_with_a_reason() {
        for (text, want) in [
            ("netmap:", "names no interface name"),
            ("netmap:-1", "names no interface name"),
            ("netmap:^", "names no interface name"),
            ("netmap:x{", "a pipe's end has a name"),
            ("netmap:x}a.b", "a pipe's end has a name"),
            ("netmap:{1", "a pipe stands on a name"),
            ("netmap:eth0-", "is not a ring number (0 to 4094)"),
            ("netmap:eth0-4095", "is not a ring number (0 to 4094)"),
            ("netmap:eth0-99999999999", "is not a ring number"),
            ("netmap:eth0^9999", "is not a ring number"),
            ("netmap:eth0*1", "expected '/' and flags"),
            ("netmap:eth0^x", "expected '/' and flags"),
            ("netmap:eth0*^", "expected '/' and flags"),
            ("netmap:eth0/", "expected flags behind '/'"),
            ("netmap:eth0/q", "expected flags behind '/'"),
            ("netmap:eth0/x/z", "expected flags behind '/'"),
            ("netmap:eth0@", "an '@' without an option"),
            ("netmap:eth0@0", "a memory has a number"),
            ("netmap:eth0@70000", "a memory has a number"),
            ("netmap:eth0@1@2", "the memory was named before"),
            ("netmap:eth0@frob:x=1", "options are conf, share"),
            ("netmap:eth0@conf", "expected ':' and key=value"),
            ("netmap:eth0@conf=1", "expected ':' and key=value"),
            ("netmap:eth0@conf:", "expected ':' and key=value"),
            ("netmap:eth0@conf:rings", "expected key=value"),
            ("netmap:eth0@conf:rings=x", "expected a number"),
            ("netmap:eth0@conf:rings=70000", "expected a number"),
            ("netmap:eth0@conf:rings=1,rings=2", "twice"),
            ("netmap:eth0@conf:wings=1", "keys of conf are"),
            ("netmap:eth0@share=", "expected a value"),
            ("netmap:eth0@extmem:buf-num=1", "extmem needs a file"),
            ("netmap:eth0@offset:bits=3", "offset needs initial"),
            ("netmap:eth0@conf:rings=1@", "an '@' without an option"),
            ("vale-x:a", "unknown kind of port"),
            ("netmap:interfacename16c", "longer than 15 bytes"),
        ] {
            check_error(text, want);
        }
        let long = format!("netmap:{}{{1", "x".repeat(62));
        check_error(&long, "longer than netmap's 63 bytes");
    }
}
