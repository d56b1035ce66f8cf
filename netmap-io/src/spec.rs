//! Device strings: `xdp:eth0-3`, `netmap:eth0^`, `vale0:a`, `tap:utcp0`, `pipe:NAME`.

use std::fmt;
use std::str::FromStr;

/// The longest interface name of Linux, without the terminating zero.
const IFNAME_MAX: usize = 15;
/// The longest name of a pipe: it becomes part of a socket address.
const PIPE_NAME_MAX: usize = 80;
/// More queues than any driver has.
const QUEUE_MAX: u32 = 4095;

/// Which rings of a netmap device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rings {
    /// Every ring pair of the device.
    All,
    /// One ring pair.
    One(u32),
    /// The rings of the host stack (`^`).
    Host,
    /// The device's and the host's (`*`).
    AllAndHost,
    /// The side of a netmap pipe that made it (`{n`).
    PipeMaster(u32),
    /// The other side (`}n`).
    PipeSlave(u32),
}

/// What a device string asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// `netmap:eth0…` or, through a VALE switch, `vale0:a…`.
    Netmap {
        /// The name that the module knows it by: `eth0`, or `vale0:a`.
        name: String,
        /// Which rings.
        rings: Rings,
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
            "netmap" => {
                let (name, rings) = split_rings(text, rest)?;
                Ok(Self::Netmap { name: interface_name(text, name, "netmap:eth0")?, rings })
            }
            vale if is_vale(vale) => {
                let (name, rings) = split_rings(text, rest)?;
                let port = interface_name(text, name, "vale0:a")?;
                Ok(Self::Netmap { name: format!("{vale}:{port}"), rings })
            }
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

/// Cuts netmap's ring suffix off the end.
fn split_rings<'t>(text: &str, rest: &'t str) -> Result<(&'t str, Rings), SpecError> {
    if let Some(name) = rest.strip_suffix('^') {
        return Ok((name, Rings::Host));
    }
    if let Some(name) = rest.strip_suffix('*') {
        return Ok((name, Rings::AllAndHost));
    }
    if let Some((name, id)) = rest.rsplit_once('{') {
        return Ok((name, Rings::PipeMaster(number(text, id, "pipe number")?)));
    }
    if let Some((name, id)) = rest.rsplit_once('}') {
        return Ok((name, Rings::PipeSlave(number(text, id, "pipe number")?)));
    }
    let (name, queue) = split_queue(text, rest)?;
    Ok((name, queue.map_or(Rings::All, Rings::One)))
}

fn number(text: &str, digits: &str, what: &'static str) -> Result<u32, SpecError> {
    let bad = || SpecError::BadNumber { text: text.into(), number: digits.into(), what, max: QUEUE_MAX };
    digits.parse().ok().filter(|n| *n <= QUEUE_MAX).ok_or_else(bad)
}

/// The kernel's rule for interface names (`dev_valid_name`).
fn interface_name(text: &str, name: &str, example: &'static str) -> Result<String, SpecError> {
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
            Self::Netmap { name, rings } => {
                let kind = if name.starts_with("vale") && name.contains(':') { "" } else { "netmap:" };
                write!(f, "{kind}{name}")?;
                match rings {
                    Rings::All => Ok(()),
                    Rings::One(ring) => write!(f, "-{ring}"),
                    Rings::Host => f.write_str("^"),
                    Rings::AllAndHost => f.write_str("*"),
                    Rings::PipeMaster(id) => write!(f, "{{{id}"),
                    Rings::PipeSlave(id) => write!(f, "}}{id}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let netmap = |name: &str, rings| DeviceSpec::Netmap { name: name.into(), rings };
        check("netmap:eth0", &netmap("eth0", Rings::All));
        check("netmap:eth0-3", &netmap("eth0", Rings::One(3)));
        check("netmap:eth0^", &netmap("eth0", Rings::Host));
        check("netmap:eth0*", &netmap("eth0", Rings::AllAndHost));
        check("netmap:x{1", &netmap("x", Rings::PipeMaster(1)));
        check("netmap:x}1", &netmap("x", Rings::PipeSlave(1)));
        check("vale0:a", &netmap("vale0:a", Rings::All));
        check("vale_x9:a-1", &netmap("vale_x9:a", Rings::One(1)));
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
        check_error("netmap:x{", "is not a pipe number");
        check_error("netmap:x}y", "is not a pipe number");
    }
}
