//! Device strings with addresses: `tap:utcp0,addr=10.9.0.2/24,addr=fd09::2/64,gw=10.9.0.1`.

use std::fmt;
use std::net::IpAddr as StdAddr;

use utcp_netmap_io::{DeviceSpec, Rings};
use utcp_proto::wire::IpAddr;

use crate::host::Prefix;

/// A device and what the engine is on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// For netmap-io: the string without addresses.
    pub device: String,
    /// A host of its own; `None`: the engine lives behind the interface's own addresses.
    pub station: Option<StationConfig>,
}

/// Addresses of the engine on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StationConfig {
    /// Each with the length of its link's prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Who takes what is not on the link; one of a family.
    pub gateways: Vec<IpAddr>,
}

/// Why a device string can't be used; the text says what to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceConfigError {
    /// Not a device string of netmap-io.
    Device(String),
    /// An option that means nothing.
    Option {
        /// As written.
        option: String,
        /// What it may be.
        wanted: &'static str,
    },
    /// A device without an address of the kernel's needs one of its own.
    NoAddress(String),
    /// The engine serves the interface's own addresses.
    NotOurs(String),
    /// A gateway that is not on the link.
    FarGateway(String),
}

impl fmt::Display for DeviceConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(text) => f.write_str(text),
            Self::Option { option, wanted } => write!(f, "{option:?}: expected {wanted}"),
            Self::NoAddress(device) => write!(
                f,
                "{device}: the engine is a host of its own there and needs an address, as in \
                 {device},addr=10.9.0.2/24,gw=10.9.0.1"
            ),
            Self::NotOurs(device) => {
                write!(f, "{device}: the interface's own addresses are served there; leave addr= and gw= out")
            }
            Self::FarGateway(gateway) => {
                write!(f, "gw={gateway}: a gateway has to be on the link of one of the addresses")
            }
        }
    }
}

impl std::error::Error for DeviceConfigError {}

/// Cuts a list of devices at its commas; an option (`key=value`) belongs to the device in front of it.
#[must_use]
pub fn split_devices(list: &str) -> Vec<String> {
    let mut devices: Vec<String> = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let is_option =
            part.find('=').is_some_and(|equals| part.find(':').is_none_or(|colon| equals < colon));
        match devices.last_mut() {
            Some(device) if is_option => {
                device.push(',');
                device.push_str(part);
            }
            _ => devices.push(part.to_owned()),
        }
    }
    devices
}

impl DeviceConfig {
    /// Understands a device string with its options.
    ///
    /// # Errors
    /// [`DeviceConfigError`].
    pub fn parse(text: &str) -> Result<Self, DeviceConfigError> {
        let mut parts = text.split(',');
        let mut device = parts.next().unwrap_or_default().to_owned();
        let mut station = StationConfig::default();
        for option in parts {
            // Keys of netmap's own options ('@conf:rings=2,slots=512') stand behind commas, too.
            let own = option.starts_with("addr=") || option.starts_with("gw=");
            if device.contains('@') && !own && station == StationConfig::default() {
                device.push(',');
                device.push_str(option);
                continue;
            }
            match option.split_once('=') {
                Some(("addr", value)) => station.addresses.push(address(option, value)?),
                Some(("gw", value)) => station.gateways.push(gateway(option, value)?),
                _ => {
                    let wanted = "addr=ADDRESS/LENGTH or gw=ADDRESS";
                    return Err(DeviceConfigError::Option { option: option.to_owned(), wanted });
                }
            }
        }
        let spec: DeviceSpec = device
            .parse()
            .map_err(|error: utcp_netmap_io::SpecError| DeviceConfigError::Device(error.to_string()))?;
        let near = |gateway: &IpAddr| {
            let same = |(own, _): &&(IpAddr, u8)| own.is_v4() == gateway.is_v4();
            station.addresses.iter().filter(same).any(|&(own, len)| Prefix::new(own, len).contains(*gateway))
        };
        if let Some(far) = station.gateways.iter().find(|gateway| !near(gateway)) {
            return Err(DeviceConfigError::FarGateway(far.to_string()));
        }
        let none = station.addresses.is_empty();
        match kernel_is_there(&spec) {
            Some(true) if !none => Err(DeviceConfigError::NotOurs(device)),
            Some(false) if none => Err(DeviceConfigError::NoAddress(device)),
            _ => Ok(Self { device, station: (!none).then_some(station) }),
        }
    }
}

/// Whether the kernel keeps the interface, and answers for its addresses; `None`: as the user likes.
fn kernel_is_there(spec: &DeviceSpec) -> Option<bool> {
    match spec {
        DeviceSpec::Xdp { .. } | DeviceSpec::Switch { .. } => Some(true),
        // A NIC in netmap mode has left the kernel, unless its host rings lead there.
        DeviceSpec::Netmap { name, rings: Rings::All | Rings::One(_) | Rings::AllAndHost, .. }
            if !name.contains([':', '{', '}']) =>
        {
            None
        }
        DeviceSpec::Tap { .. } | DeviceSpec::Pipe { .. } | DeviceSpec::Netmap { .. } => Some(false),
    }
}

fn ip(text: &str) -> Option<IpAddr> {
    let addr = match text.parse().ok()? {
        StdAddr::V4(v4) => IpAddr::v4(v4.octets()),
        StdAddr::V6(v6) => IpAddr::v6(v6.octets()),
    };
    (!addr.is_unspecified() && !addr.is_multicast() && !addr.is_broadcast() && !addr.is_loopback())
        .then_some(addr)
}

fn address(option: &str, value: &str) -> Result<(IpAddr, u8), DeviceConfigError> {
    let wanted = "an address of the engine's own and the length of its link's prefix, as in addr=10.9.0.2/24";
    let error = || DeviceConfigError::Option { option: option.to_owned(), wanted };
    let (addr, len) = value.split_once('/').ok_or_else(error)?;
    let addr = ip(addr).ok_or_else(error)?;
    let max = if addr.is_v4() { 32 } else { 128 };
    let len = len.parse().ok().filter(|len| (1..=max).contains(len)).ok_or_else(error)?;
    Ok((addr, len))
}

fn gateway(option: &str, value: &str) -> Result<IpAddr, DeviceConfigError> {
    let wanted = "a router's address, as in gw=10.9.0.1";
    ip(value).ok_or_else(|| DeviceConfigError::Option { option: option.to_owned(), wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_stay_with_their_device() {
        let list = "xdp:eth0,tap:utcp0,addr=10.9.0.2/24,addr=fd09::2/64,gw=10.9.0.1,pipe:a,addr=10.8.0.1/30";
        let devices = split_devices(list);
        assert_eq!(
            devices,
            ["xdp:eth0", "tap:utcp0,addr=10.9.0.2/24,addr=fd09::2/64,gw=10.9.0.1", "pipe:a,addr=10.8.0.1/30"]
        );
        let tap = DeviceConfig::parse(&devices[1]).unwrap();
        let station = tap.station.unwrap();
        assert_eq!(tap.device, "tap:utcp0");
        assert_eq!(station.addresses[0], (IpAddr::v4([10, 9, 0, 2]), 24));
        assert_eq!((station.addresses[1].1, station.gateways.len()), (64, 1));
        assert_eq!(DeviceConfig::parse("xdp:eth0").unwrap().station, None);
        assert!(DeviceConfig::parse("netmap:eth0,addr=10.0.0.1/8").unwrap().station.is_some());
        assert!(DeviceConfig::parse("netmap:eth0-1").unwrap().station.is_none(), "beside the kernel");
        let list = "netmap:eth0@conf:rings=2,slots=512,addr=10.0.0.1/8,gw=10.0.0.2,xdp:eth1";
        let devices = split_devices(list);
        assert_eq!(devices.len(), 2);
        let netmap = DeviceConfig::parse(&devices[0]).unwrap();
        assert_eq!(netmap.device, "netmap:eth0@conf:rings=2,slots=512");
        assert_eq!(netmap.station.unwrap().gateways.len(), 1);
    }

    #[test]
    fn a_wrong_string_says_what_to_write() {
        for (text, words) in [
            ("tap:utcp0", "needs an address, as in tap:utcp0,addr=10.9.0.2/24"),
            ("pipe:a", "needs an address"),
            ("vale0:a", "needs an address"),
            ("netmap:eth0^", "needs an address"),
            ("netmap:x{1", "needs an address"),
            ("netmap:eth0@conf:rings=2,wings=3", "keys of conf are"),
            ("xdp:eth0,addr=10.0.0.1/8", "leave addr= and gw= out"),
            ("tap:x,addr=10.0.0.1", "length of its link's prefix"),
            ("tap:x,addr=10.0.0.1/33", "length of its link's prefix"),
            ("tap:x,addr=127.0.0.1/8", "of the engine's own"),
            ("tap:x,addr=10.0.0.1/24,gw=10.0.1.1", "gw=10.0.1.1: a gateway has to be on the link"),
            ("tap:x,addr=10.0.0.1/24,mtu=9000", "expected addr=ADDRESS/LENGTH or gw=ADDRESS"),
            ("dpdk:x", "unknown kind of port"),
        ] {
            let error = DeviceConfig::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
