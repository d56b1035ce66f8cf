//! [`Steering`] of an AF_XDP device: the maps behind the program, and its attachment.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::behind::ShortMaps;
use super::bpf::{self, Kind, MAPPABLE, Map, MapType, Program, Update};
use super::hook::{Hooked, hooked};
use super::packets::{FILTERS_AT, RING, Signs};
use super::program::{self, FragmentKey, Hook, Maps, XDP_DROP, XDP_PASS};
use super::registered::Registered;
use super::rules;
use crate::sys::{Interface, Mapping, interface_name, number, page_bytes};
use crate::{Flow, PeerVerdict, PortError, Steering, Tuple, XdpMode};

/// Name of our program, as `bpftool prog` and another engine see it.
pub(crate) const PROGRAM_NAME: &str = "utcp_steer";
/// Where the program stands that is no XDP program.
const BEHIND: &str = "tcx";
/// How often, and how far apart, a hook that another engine holds is tried again.
const BUSY_RETRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// Fragmented packets of ours that are on their way at a time.
const FRAGMENTS_MAX: u32 = 1024;
/// What the kernel asks for.
const NEED: &str = "CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF in the initial user namespace";
const SETCAP: &str = "cap_net_admin,cap_net_raw,cap_bpf";

/// Turns a refusal for want of privilege into the error that says so.
pub(super) fn refused(what: &'static str, error: io::Error) -> PortError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => PortError::Privilege { what, need: NEED, setcap: SETCAP },
        Some(libc::ENOSYS) => PortError::Option {
            option: "xdp:".into(),
            reason: format!("{what}: this kernel was built without bpf(2); use a tap: port"),
        },
        _ => PortError::io(what, error),
    }
}

/// The steering program of one interface with its maps. Detaches when the last holder is dropped.
#[derive(Debug)]
pub(super) struct XdpSteering {
    registered: Registered,
    sockets: Map<u32, u32>,
    /// The program's own; held for its descriptor.
    _fragments: Map<FragmentKey, u32>,
    program: Program,
    attached: Option<Attached>,
    short: Option<Short>,
    /// Rules of nftables stand at the interface, see [`Steering::look_again`].
    filters: AtomicBool,
}

/// Where the program behind GRO leaves short frames.
#[derive(Debug)]
pub(super) struct Short {
    pub(super) ring: Map<(), ()>,
    pub(super) signs: Map<u32, Signs>,
    page: Mapping,
}

impl Short {
    pub(super) fn new() -> io::Result<Self> {
        let ring = Map::new(MapType::RingBuffer, "utcp_short", RING, 0)?;
        let signs: Map<u32, Signs> = Map::new(MapType::Array, "utcp_signs", 1, MAPPABLE)?;
        let page = Mapping::shared(signs.fd(), 0, page_bytes())?;
        Ok(Self { ring, signs, page })
    }

    /// Says whether all is to go by packet sockets.
    fn filters(&self, yes: bool) {
        let at = usize::try_from(FILTERS_AT).unwrap_or(0);
        // SAFETY: an aligned word of the signs' page, which we alone write, in one step.
        let sign = unsafe { AtomicU32::from_ptr(self.page.at(at).cast().as_ptr()) };
        sign.store(u32::from(yes), Ordering::Relaxed);
    }

    fn maps(&self) -> ShortMaps {
        ShortMaps { ring: self.ring.raw_fd(), signs: self.signs.raw_fd() }
    }
}

#[derive(Debug)]
struct Attached {
    interface: String,
    ifindex: u32,
    /// How, in words.
    way: &'static str,
    /// Closing it detaches, also when the kernel closes it for a killed process; unless others hold it, too.
    link: OwnedFd,
    /// The link's program is still that of whoever made it.
    inherited: AtomicBool,
    /// Others may hold the link: whoever comes next is allowed to find it.
    kept: bool,
}

impl Attached {
    /// The interface may have been renamed since.
    fn name_now(&self) -> String {
        interface_name(self.ifindex).unwrap_or_else(|| self.interface.clone())
    }
}

impl XdpSteering {
    /// Loads the program for a device with `queues` queues. Nothing is taken before [`Self::attach`].
    /// `kept`: others hold its link as well; so as long as nobody has a socket, frames of ours are dropped.
    pub(super) fn load(queues: u32, tuples_max: u32, kept: bool) -> Result<Self, PortError> {
        Self::load_with(queues, tuples_max, Hook::Xdp(if kept { XDP_DROP } else { XDP_PASS }))
    }

    /// Puts the program behind GRO of `device`; `short`: it leaves short frames there.
    pub(super) fn behind(
        device: &Interface,
        tuples_max: u32,
        short: Option<Short>,
    ) -> Result<Self, PortError> {
        let mut steering = Self::load_with(1, tuples_max, Hook::Behind(short.as_ref().map(Short::maps)))?;
        steering.short = short;
        steering.set_filters(rules::filters(&device.name));
        let link = steering.program.attach_behind(device.index);
        let link = link.map_err(|error| refused("attaching the steering program", error))?;
        let (interface, inherited) = (device.name.clone(), AtomicBool::new(false));
        let ifindex = device.index;
        let attached = Attached { interface, ifindex, way: BEHIND, link, inherited, kept: false };
        steering.attached = Some(attached);
        Ok(steering)
    }

    fn set_filters(&self, yes: bool) {
        self.filters.store(yes, Ordering::Relaxed);
        if let Some(short) = &self.short {
            short.filters(yes);
        }
    }

    /// Whether all is to go by packet sockets, since somebody filters what they send and get.
    pub(super) fn filters(&self) -> bool {
        self.filters.load(Ordering::Relaxed)
    }

    /// [`Self::load`] for another hook, or another verdict for frames of ours that find no socket.
    fn load_with(queues: u32, tuples_max: u32, hook: Hook) -> Result<Self, PortError> {
        let map = |error| refused("making a BPF map", error);
        let registered = Registered::new(tuples_max).map_err(map)?;
        let sockets = Map::new(MapType::XskMap, "utcp_sockets", queues, 0).map_err(map)?;
        let fragments = Map::new(MapType::LruHash, "utcp_fragments", FRAGMENTS_MAX, 0).map_err(map)?;
        let maps = Maps {
            tuples: registered.tuples.raw_fd(),
            flows: registered.flows.raw_fd(),
            state: registered.state.raw_fd(),
            sockets: sockets.raw_fd(),
            fragments: fragments.raw_fd(),
        };
        let insns = program::assemble(maps, hook);
        let kind = if matches!(hook, Hook::Xdp(_)) { Kind::Xdp } else { Kind::Buffers };
        let program = Program::load(PROGRAM_NAME, kind, &insns).map_err(|(source, log)| {
            if log.is_empty() {
                refused("loading the steering program", source)
            } else {
                PortError::Verifier { source, log }
            }
        })?;
        Ok(Self {
            registered,
            sockets,
            _fragments: fragments,
            program,
            attached: None,
            short: None,
            filters: AtomicBool::new(false),
        })
    }

    /// Frames of ours on `queue` go to `socket`.
    pub(super) fn set_socket(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), PortError> {
        let fd = number(&socket);
        self.sockets
            .update(&queue, &fd, Update::Any)
            .map_err(|e| refused("entering a socket for steering", e))
    }

    /// Puts the program in front of the interface. Returns whether it runs in the driver. `kept`: a link of ours that is
    /// there already is inherited, and gets the program later ([`Steering::take_over`]).
    pub(super) fn attach(
        &mut self,
        interface: &str,
        ifindex: u32,
        mode: XdpMode,
        kept: bool,
    ) -> Result<bool, PortError> {
        if kept && let Some(native) = self.inherit(interface, ifindex) {
            return Ok(native);
        }
        let mut native = mode != XdpMode::Generic;
        let link = match self.attach_when_free(ifindex, native) {
            // Busy stays busy in the other mode. Any other refusal is the driver's: it has no XDP, or
            // not with this MTU or number of queues.
            Err(error) if mode == XdpMode::Auto && !is_busy(&error) => {
                native = false;
                self.program.attach(ifindex, native)
            }
            other => other,
        };
        let link = link.map_err(|error| Self::attach_error(interface, ifindex, mode, error))?;
        let (inherited, kept) = (AtomicBool::new(false), kept && self.can_be_found(ifindex));
        let (interface, way) = (interface.into(), way(native));
        self.attached = Some(Attached { interface, ifindex, way, link, inherited, kept });
        Ok(native)
    }

    /// Whether whoever comes next may ask for the link.
    fn can_be_found(&self, ifindex: u32) -> bool {
        bpf::link_of(ifindex, self.program.id()).is_some()
    }

    /// Takes part in a link that one of ours made on the interface; whether it is the driver's.
    fn inherit(&mut self, interface: &str, ifindex: u32) -> Option<bool> {
        let Hooked { program, native } = hooked(ifindex).ok()??;
        if bpf::program_name(program).as_deref() != Some(PROGRAM_NAME) {
            return None;
        }
        let link = bpf::link_of(ifindex, program)?;
        let inherited = AtomicBool::new(true);
        let (interface, way) = (interface.into(), way(native));
        self.attached = Some(Attached { interface, ifindex, way, link, inherited, kept: true });
        Some(native)
    }

    /// An engine that is being replaced may hold the hook for a moment longer than its process lives.
    fn attach_when_free(&self, ifindex: u32, native: bool) -> io::Result<OwnedFd> {
        let ours = || attached(ifindex).is_none_or(|(_, name)| name == PROGRAM_NAME || name.is_empty());
        for _ in 0..BUSY_RETRIES {
            match self.program.attach(ifindex, native) {
                Err(error) if is_busy(&error) && ours() => std::thread::sleep(BUSY_PAUSE),
                other => return other,
            }
        }
        self.program.attach(ifindex, native)
    }

    /// Our link is the hook's while we live, but who names it (`bpftool link`) may detach it, or give it another program.
    fn displaced(&self, attached: &Attached) -> Option<String> {
        let (ifindex, program) = bpf::place_of(&attached.link).ok()?;
        let what = if ifindex == 0 {
            "its steering program was taken off".to_owned()
        } else if program != self.program.id() && !self.is_inherited() {
            let words = crate::inspect::program_words(&[program]);
            format!("its steering program gave way to {words}, which somebody put into our link")
        } else {
            return None;
        };
        Some(format!("{what}: nothing comes here until the engine is started again"))
    }

    fn attach_error(interface: &str, ifindex: u32, mode: XdpMode, error: io::Error) -> PortError {
        if is_busy(&error) {
            let detail = match attached(ifindex).filter(|(_, name)| !name.is_empty()) {
                Some((id, name)) if name == PROGRAM_NAME => {
                    format!("another utcp engine drives it (program {id}); stop that one or attach to it")
                }
                // libxdp's, in front of the programs that it chains.
                Some((id, name)) if name == "xdp_dispatcher" => format!(
                    "libxdp's dispatcher (program {id}) has it; `xdp-loader status {interface}` shows its programs, \
                     `xdp-loader unload {interface} --all` frees it. Our program decides for a frame alone and can't stand in its chain"
                ),
                Some((id, name)) => format!(
                    "XDP program {name:?} (number {id}) is attached; `bpftool net` shows by whom, and it must be detached first"
                ),
                None => format!(
                    "an XDP program is attached; `ip link set dev {interface} xdp off` detaches one that was left behind"
                ),
            };
            return PortError::InUse { what: format!("the XDP hook of {interface}"), detail };
        }
        if mode == XdpMode::Native && matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) {
            return PortError::Option {
                option: "xdp_mode native".into(),
                reason: format!("the driver of {interface} refused ({error}); use automatic or generic mode"),
            };
        }
        refused("attaching the steering program", error)
    }
}

fn way(native: bool) -> &'static str {
    if native { "native XDP" } else { "generic XDP" }
}

/// Number of the program on the hook of an interface, and its name, where the kernel lets us ask.
pub(super) fn attached(ifindex: u32) -> Option<(u32, String)> {
    let Hooked { program, .. } = hooked(ifindex).ok()??;
    Some((program, bpf::program_name(program).unwrap_or_default()))
}

/// Someone else's program is there, in this or the other mode.
fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

impl Steering for XdpSteering {
    fn register(&self, tuple: Tuple) -> Result<(), PortError> {
        self.registered.add(tuple)
    }

    fn unregister(&self, tuple: Tuple) -> Result<(), PortError> {
        self.registered.remove(tuple)
    }

    fn register_range(&self, first: Tuple, ports: RangeInclusive<u16>) -> Result<(), PortError> {
        self.registered.add_range(first, ports)
    }

    fn unregister_range(&self, first: Tuple, ports: RangeInclusive<u16>) -> Result<(), PortError> {
        self.registered.remove_range(first, ports)
    }

    fn register_flow(&self, flow: Flow, verdict: PeerVerdict) -> Result<(), PortError> {
        self.registered.add_flow(flow, verdict)
    }

    fn unregister_flow(&self, flow: Flow) -> Result<(), PortError> {
        self.registered.remove_flow(flow)
    }

    fn hold(&self) -> Option<OwnedFd> {
        self.attached.as_ref().filter(|attached| attached.kept)?.link.try_clone().ok()
    }

    fn is_inherited(&self) -> bool {
        self.attached.as_ref().is_some_and(|attached| attached.inherited.load(Ordering::Relaxed))
    }

    fn take_over(&self) -> Result<(), PortError> {
        let Some(attached) = self.attached.as_ref().filter(|_| self.is_inherited()) else { return Ok(()) };
        attached.inherited.store(false, Ordering::Relaxed);
        self.program.replace_in(&attached.link).map_err(|e| refused("replacing the steering program", e))
    }

    fn trouble(&self) -> Option<String> {
        let attached = self.attached.as_ref()?;
        if let Some(words) = self.displaced(attached) {
            return Some(words);
        }
        if attached.way != BEHIND {
            return None;
        }
        let mut before = bpf::programs_behind(attached.ifindex);
        let own = self.program.id();
        before.truncate(before.iter().position(|id| *id == own)?);
        let chains = super::rules_before(&attached.name_now());
        let mut words = Vec::new();
        if !before.is_empty() {
            words.push(format!("tcx programs before ours: {}", crate::inspect::program_words(&before)));
        }
        if !chains.is_empty() {
            let all = if self.short.is_some() && self.filters() {
                " (for them, short frames go by packet sockets)"
            } else {
                ""
            };
            words.push(format!("rules of nftables at the ingress hook: {}{all}", chains.join(", ")));
        }
        (!words.is_empty()).then(|| format!("{}; what they drop never comes here", words.join("; ")))
    }

    fn leave(&self) {
        let Some(attached) = &self.attached else { return };
        // Refused where the interface is gone: then there is nothing to take off.
        let _ = bpf::detach(&attached.link);
    }

    fn look_again(&self) {
        if let Some(attached) = self.attached.as_ref().filter(|attached| attached.way == BEHIND) {
            self.set_filters(rules::filters(&attached.name_now()));
        }
    }

    fn describe(&self) -> String {
        let id = self.program.id();
        match &self.attached {
            Some(Attached { interface, way, .. }) => format!("{way} on {interface} (program {id})"),
            None => format!("XDP program {id}, not attached"),
        }
    }
}

#[cfg(test)]
#[path = "steer_tests.rs"]
mod tests;
