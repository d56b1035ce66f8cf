//! Names of netmap ports, by the rules of netmap's own library (libnetmap, `nmport_prepare`).
//!
//! ```text
//!  netmap:eth0-3/x@conf:rx-slots=512,tx-slots=512@share=netmap:eth1
//!  │      │   │  │ └ options: key=value lists, each behind an '@'; a bare number (@2) is a memory's
//!  │      │   │  └ flags: x z t r R T
//!  │      │   └ rings: -N one pair, ^ the host's, ^N one of those, * the device's and the host's
//!  │      └ port: an interface, or anything for a pipe (NAME{id, NAME}id)
//!  └ netmap, or valeNAME: a switch
//! ```
//!
//! Two things are taken that libnetmap refuses: a '-' in an interface's name, where no number follows it, and the option
//! `@vnet=N`, which sets the length of a switch's port's virtio-net header.

use std::fmt;

use crate::spec::{SpecError, interface_name};

/// The longest name of a port: netmap's field has 64 bytes, the last of them zero.
const NAME_MAX: usize = 63;
/// Ring numbers end below netmap's mask of 12 bits.
const RING_MAX: u32 = 0xffe;

/// Which rings of a netmap device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rings {
    /// Every ring pair of the device.
    #[default]
    All,
    /// One ring pair (`-N`).
    One(u32),
    /// The rings of the host stack (`^`).
    Host,
    /// One pair of those (`^N`).
    OneHost(u32),
    /// The device's and the host's (`*`).
    AllAndHost,
}

/// What stands behind the rings in a netmap port's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetmapOptions {
    /// `x`: nobody else may have these rings.
    pub exclusive: bool,
    /// `z`: a monitor that copies no bytes.
    pub zero_copy_monitor: bool,
    /// `t`: a monitor of what is sent.
    pub monitor_tx: bool,
    /// `r`: a monitor of what is received.
    pub monitor_rx: bool,
    /// `R`: the rx rings alone.
    pub rx_only: bool,
    /// `T`: the tx rings alone.
    pub tx_only: bool,
    /// `@N`: number of the memory to use.
    pub mem_id: Option<u16>,
    /// `@share=PORT`: use that port's memory.
    pub share: Option<String>,
    /// `@conf:…`: sizes to ask for.
    pub conf: Conf,
    /// `@extmem=FILE`: the memory is that file, such as one of huge pages.
    pub extmem: Option<Extmem>,
    /// `@offset=N`: frames begin so many bytes into their buffers.
    pub offset: Option<Offset>,
    /// `@vnet=10` or `12`: frames begin with a virtio-net header of so many bytes.
    pub vnet: Option<u32>,
}

/// `@conf:`: sizes that a port is asked for; 0: as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conf {
    /// Rings of the device.
    pub tx_rings: u16,
    /// See `tx_rings`.
    pub rx_rings: u16,
    /// Rings of the host's stack.
    pub host_tx_rings: u16,
    /// See `host_tx_rings`.
    pub host_rx_rings: u16,
    /// Slots of a ring.
    pub tx_slots: u32,
    /// See `tx_slots`.
    pub rx_slots: u32,
}

/// `@extmem:`: a file as memory, and how it is cut up; 0: as the module likes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extmem {
    /// Path of the file.
    pub file: String,
    /// Number and bytes of the interfaces, rings and buffers in it.
    pub pools: [(u32, u32); 3],
}

/// `@offset:`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset {
    /// Where frames begin at first, in bytes; also the most.
    pub initial: u32,
    /// How many bits of a slot's pointer are the offset; 0: all.
    pub bits: u32,
}

/// A port's name, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortName {
    /// As the module knows it: `eth0`, `vale0:a`, `x{1`.
    pub(crate) name: String,
    pub(crate) rings: Rings,
    pub(crate) options: NetmapOptions,
}

/// Where the port's own name ends: at a flag, an option or rings. A '-' counts when it is the last one and digits follow.
fn name_end(rest: &str) -> usize {
    let end = rest.find(['*', '^', '/', '@']).unwrap_or(rest.len());
    match rest[..end].rfind('-') {
        Some(dash) if rest[dash + 1..end].bytes().all(|b| b.is_ascii_digit()) => dash,
        _ => end,
    }
}

impl PortName {
    /// Takes `rest` apart, what stands behind the colon of `text`; `vale`: the switch in front of the colon.
    pub(crate) fn parse(text: &str, vale: Option<&str>, rest: &str) -> Result<Self, SpecError> {
        let (port, suffix) = rest.split_at(name_end(rest));
        check_port(text, vale.is_some(), port)?;
        let name = vale.map_or_else(|| port.to_owned(), |vale| format!("{vale}:{port}"));
        if name.len() > NAME_MAX {
            return Err(bad(text, &name, "longer than netmap's 63 bytes"));
        }
        let mut parser = Suffix { text, rest: suffix, rings: Rings::All, options: NetmapOptions::default() };
        parser.rings()?;
        parser.flags_and_options()?;
        Ok(Self { name, rings: parser.rings, options: parser.options })
    }
}

fn bad(text: &str, name: &str, reason: &'static str) -> SpecError {
    SpecError::BadName { text: text.into(), name: name.into(), what: "a netmap port", reason }
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// An interface, or the end of a pipe.
fn check_port(text: &str, vale: bool, port: &str) -> Result<(), SpecError> {
    let example = if vale { "vale0:a" } else { "netmap:eth0" };
    let Some(at) = port.find(['{', '}']) else {
        return interface_name(text, port, example).map(drop);
    };
    let (parent, id) = (&port[..at], &port[at + 1..]);
    if !is_identifier(id) {
        return Err(bad(text, port, "a pipe's end has a name of letters, digits and '_', as in x{1"));
    }
    if parent.is_empty() {
        return Err(bad(text, port, "a pipe stands on a name, as in x{1"));
    }
    Ok(())
}

/// What is still to be read.
struct Suffix<'t> {
    text: &'t str,
    rest: &'t str,
    rings: Rings,
    options: NetmapOptions,
}

impl Suffix<'_> {
    fn number(&mut self) -> Result<u32, SpecError> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        let bad = || SpecError::BadNumber {
            text: self.text.into(),
            number: digits.into(),
            what: "ring number",
            max: RING_MAX,
        };
        digits.parse().ok().filter(|n| *n <= RING_MAX).ok_or_else(bad)
    }

    fn error(&self, reason: &'static str) -> SpecError {
        SpecError::BadSuffix { text: self.text.into(), suffix: self.rest.into(), reason }
    }

    fn rings(&mut self) -> Result<(), SpecError> {
        let Some(first) = self.rest.chars().next().filter(|c| matches!(c, '-' | '^' | '*')) else {
            return Ok(());
        };
        self.rest = &self.rest[1..];
        let digit = self.rest.starts_with(|c: char| c.is_ascii_digit());
        self.rings = match first {
            '-' => Rings::One(self.number()?),
            '*' => Rings::AllAndHost,
            _ if digit => Rings::OneHost(self.number()?),
            _ => Rings::Host,
        };
        Ok(())
    }

    fn flags_and_options(&mut self) -> Result<(), SpecError> {
        while let Some(first) = self.rest.chars().next() {
            match first {
                '/' => self.flags()?,
                '@' if self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) => self.memory()?,
                '@' => return self.named_options(),
                _ => return Err(self.error("expected '/' and flags, or '@' and an option")),
            }
        }
        Ok(())
    }

    fn flags(&mut self) -> Result<(), SpecError> {
        self.rest = &self.rest[1..];
        let end = self.rest.find('@').unwrap_or(self.rest.len());
        let (flags, rest) = self.rest.split_at(end);
        // "/@" is taken by libnetmap: no flags, and on with the options.
        if flags.is_empty() && rest.is_empty() {
            return Err(self.error("expected flags behind '/': x, z, t, r, R, T"));
        }
        for flag in flags.chars() {
            let options = &mut self.options;
            *match flag {
                'x' => &mut options.exclusive,
                'z' => &mut options.zero_copy_monitor,
                't' => &mut options.monitor_tx,
                'r' => &mut options.monitor_rx,
                'R' => &mut options.rx_only,
                'T' => &mut options.tx_only,
                _ => return Err(self.error("expected flags behind '/': x, z, t, r, R, T")),
            } = true;
        }
        self.rest = rest;
        Ok(())
    }

    fn memory(&mut self) -> Result<(), SpecError> {
        let all = self.rest;
        let end = all[1..].find(|c: char| !c.is_ascii_digit()).map_or(all.len(), |at| at + 1);
        let id = all[1..end].parse().ok().filter(|id| *id > 0);
        let id = id.ok_or_else(|| self.error("a memory has a number from 1 to 65535"))?;
        if self.options.mem_id.is_some_and(|old| old != id) {
            return Err(self.error("the memory was named before"));
        }
        self.options.mem_id = Some(id);
        self.rest = &all[end..];
        Ok(())
    }

    fn named_options(&mut self) -> Result<(), SpecError> {
        for option in self.rest[1..].split('@') {
            let end = option.find([':', '=']).unwrap_or(option.len());
            let (name, body) = option.split_at(end);
            let keys = Keys { suffix: self, option };
            match name {
                "conf" => self.options.conf = keys.conf(body)?,
                "share" => self.options.share = Some(keys.one(body, "port")?),
                "extmem" => self.options.extmem = Some(keys.extmem(body)?),
                "offset" => self.options.offset = Some(keys.offset(body)?),
                "vnet" => self.options.vnet = Some(keys.vnet(body)?),
                "" => return Err(self.error("an '@' without an option or a memory's number behind it")),
                _ => return Err(keys.error("options are conf, share, extmem, offset and vnet")),
            }
        }
        self.rest = "";
        Ok(())
    }
}

/// The keys of one option.
struct Keys<'a> {
    suffix: &'a Suffix<'a>,
    option: &'a str,
}

impl Keys<'_> {
    fn error(&self, reason: &'static str) -> SpecError {
        SpecError::BadSuffix { text: self.suffix.text.into(), suffix: self.option.into(), reason }
    }

    /// `key=value` pairs behind a colon, or the value of `default` behind an equals sign. A '-' in a key is a '_'.
    fn pairs(&self, body: &str, default: Option<&'static str>) -> Result<Vec<(String, String)>, SpecError> {
        if let Some(value) = body.strip_prefix('=') {
            let Some(key) = default else { return Err(self.error("expected ':' and key=value")) };
            if value.is_empty() {
                return Err(self.error("expected a value"));
            }
            return Ok(vec![(key.into(), value.into())]);
        }
        let Some(list) = body.strip_prefix(':').filter(|list| !list.is_empty()) else {
            return Err(self.error("expected ':' and key=value, separated by commas"));
        };
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in list.split(',') {
            let (key, value) = pair.split_once('=').ok_or_else(|| self.error("expected key=value"))?;
            let key = key.replace('-', "_");
            if pairs.iter().any(|(old, _)| *old == key) {
                return Err(self.error("a key stands there twice"));
            }
            pairs.push((key, value.into()));
        }
        Ok(pairs)
    }

    fn one(&self, body: &str, key: &'static str) -> Result<String, SpecError> {
        let mut pairs = self.pairs(body, Some(key))?;
        match pairs.pop() {
            Some((only, value)) if only == key && pairs.is_empty() && !value.is_empty() => Ok(value),
            _ => Err(self.error("expected one value")),
        }
    }

    fn value<T: std::str::FromStr>(&self, value: &str) -> Result<T, SpecError> {
        value.parse().map_err(|_| self.error("expected a number that is not too large"))
    }

    fn conf(&self, body: &str) -> Result<Conf, SpecError> {
        let pairs = self.pairs(body, None)?;
        let mut conf = Conf::default();
        // What means both directions first: what means one of them outranks it, wherever it stands.
        for (key, value) in &pairs {
            match key.as_str() {
                "rings" => (conf.tx_rings, conf.rx_rings) = (self.value(value)?, self.value(value)?),
                "host_rings" => {
                    (conf.host_tx_rings, conf.host_rx_rings) = (self.value(value)?, self.value(value)?);
                }
                "slots" | "ring_slots" => {
                    (conf.tx_slots, conf.rx_slots) = (self.value(value)?, self.value(value)?);
                }
                _ => {}
            }
        }
        for (key, value) in &pairs {
            match key.as_str() {
                "rings" | "host_rings" | "slots" | "ring_slots" => {}
                "tx_rings" => conf.tx_rings = self.value(value)?,
                "rx_rings" => conf.rx_rings = self.value(value)?,
                "host_tx_rings" => conf.host_tx_rings = self.value(value)?,
                "host_rx_rings" => conf.host_rx_rings = self.value(value)?,
                "tx_slots" => conf.tx_slots = self.value(value)?,
                "rx_slots" => conf.rx_slots = self.value(value)?,
                _ => {
                    return Err(
                        self.error("keys of conf are rings, host-rings, slots, tx-… and rx-… of them")
                    );
                }
            }
        }
        Ok(conf)
    }

    fn extmem(&self, body: &str) -> Result<Extmem, SpecError> {
        let mut extmem = Extmem::default();
        for (key, value) in self.pairs(body, Some("file"))? {
            let [interfaces, rings, buffers] = &mut extmem.pools;
            let number = match key.as_str() {
                "file" => {
                    extmem.file = value;
                    continue;
                }
                "if_num" => &mut interfaces.0,
                "if_size" => &mut interfaces.1,
                "ring_num" => &mut rings.0,
                "ring_size" => &mut rings.1,
                "buf_num" => &mut buffers.0,
                "buf_size" => &mut buffers.1,
                _ => return Err(self.error("keys of extmem are file, if-num, if-size, ring-…, buf-…")),
            };
            *number = self.value(&value)?;
        }
        if extmem.file.is_empty() {
            return Err(self.error("extmem needs a file"));
        }
        Ok(extmem)
    }

    fn vnet(&self, body: &str) -> Result<u32, SpecError> {
        let len = self.value(&self.one(body, "len")?)?;
        if [0, 10, 12].contains(&len) {
            Ok(len)
        } else {
            Err(self.error("a virtio-net header has 10 or 12 bytes"))
        }
    }

    fn offset(&self, body: &str) -> Result<Offset, SpecError> {
        let mut offset = Offset::default();
        let mut set = false;
        for (key, value) in self.pairs(body, Some("initial"))? {
            match key.as_str() {
                "initial" => (offset.initial, set) = (self.value(&value)?, true),
                "bits" => offset.bits = self.value(&value)?,
                _ => return Err(self.error("keys of offset are initial and bits")),
            }
        }
        if set { Ok(offset) } else { Err(self.error("offset needs initial")) }
    }
}

impl fmt::Display for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::One(ring) => write!(f, "-{ring}"),
            Self::Host => f.write_str("^"),
            Self::OneHost(ring) => write!(f, "^{ring}"),
            Self::AllAndHost => f.write_str("*"),
        }
    }
}

impl fmt::Display for NetmapOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { exclusive, zero_copy_monitor, monitor_tx, monitor_rx, rx_only, tx_only, .. } = *self;
        let flags = [
            (exclusive, 'x'),
            (zero_copy_monitor, 'z'),
            (monitor_tx, 't'),
            (monitor_rx, 'r'),
            (rx_only, 'R'),
            (tx_only, 'T'),
        ];
        let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag).collect();
        if !flags.is_empty() {
            write!(f, "/{flags}")?;
        }
        if let Some(id) = self.mem_id {
            write!(f, "@{id}")?;
        }
        let Conf { tx_rings, rx_rings, host_tx_rings, host_rx_rings, tx_slots, rx_slots } = self.conf;
        let conf = [
            ("tx-rings", u32::from(tx_rings)),
            ("rx-rings", u32::from(rx_rings)),
            ("host-tx-rings", u32::from(host_tx_rings)),
            ("host-rx-rings", u32::from(host_rx_rings)),
            ("tx-slots", tx_slots),
            ("rx-slots", rx_slots),
        ];
        write_keys(f, "conf", None, &conf)?;
        if let Some(port) = &self.share {
            write!(f, "@share={port}")?;
        }
        if let Some(Extmem { file, pools: [interfaces, rings, buffers] }) = &self.extmem {
            let keys = [
                ("if-num", interfaces.0),
                ("if-size", interfaces.1),
                ("ring-num", rings.0),
                ("ring-size", rings.1),
                ("buf-num", buffers.0),
                ("buf-size", buffers.1),
            ];
            write_keys(f, "extmem", Some(("file", file)), &keys)?;
        }
        if let Some(Offset { initial, bits }) = self.offset {
            write_keys(f, "offset", Some(("initial", &initial.to_string())), &[("bits", bits)])?;
        }
        if let Some(len) = self.vnet {
            write!(f, "@vnet={len}")?;
        }
        Ok(())
    }
}

/// An option and those of its keys that say something.
fn write_keys(
    f: &mut fmt::Formatter<'_>,
    option: &str,
    first: Option<(&str, &str)>,
    keys: &[(&str, u32)],
) -> fmt::Result {
    let mut separator = ':';
    let numbers = keys.iter().filter(|(_, value)| *value != 0).map(|(key, value)| (*key, value.to_string()));
    let all = first.map(|(key, value)| (key, value.to_owned())).into_iter().chain(numbers);
    for (key, value) in all {
        match separator {
            ':' => write!(f, "@{option}:{key}={value}")?,
            _ => write!(f, ",{key}={value}")?,
        }
        separator = ',';
    }
    Ok(())
}
