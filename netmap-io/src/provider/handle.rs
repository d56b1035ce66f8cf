//! An open descriptor: what it is asked, and what it is bound to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::request::{Asked, text};
use super::{Driver, NicShape, Provider, Side, State, errno};
use crate::netmap::abi::{
    Legacy, Mode, NIOCCTRL, NIOCGINFO, NIOCREGIF, NIOCRXSYNC, NIOCTXSYNC, OptCsb, OptOffsets, PoolsInfo,
    PortHdr, PortInfo, Register, VERSIONS_LEGACY, flag, kind, legacy,
};
use crate::netmap::layout::NetmapIf;
use crate::netmap::sys::Handle;
use crate::pipe::sys as pipe_sys;
use crate::sys::Mapping;

/// What a descriptor is bound to.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub(super) nic: usize,
    memory: usize,
    /// Of the interface in the region.
    interface: usize,
    /// Indices of rings.
    pub(super) tx: Vec<usize>,
    pub(super) rx: Vec<usize>,
    exclusive: bool,
    /// The rings' words stand there.
    pub(super) csb: Option<OptCsb>,
}

/// An open descriptor.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) provider: Provider,
    bell: Arc<OwnedFd>,
    bound: Mutex<Option<Bound>>,
    /// Somebody is the loop of the rings; it is to end.
    pub(super) looping: AtomicBool,
    pub(super) stopping: AtomicBool,
}

impl Open {
    pub(super) fn new(provider: Provider) -> io::Result<Self> {
        let [bell, _] = pipe_sys::doorbells()?;
        let (looping, stopping) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { provider, bell: Arc::new(bell), bound: Mutex::new(None), looping, stopping })
    }

    fn lock_bound(&self) -> MutexGuard<'_, Option<Bound>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn bound(&self) -> Option<Bound> {
        self.lock_bound().clone()
    }

    /// # Safety
    /// As [`Handle::ioctl`] for `NIOCCTRL`.
    unsafe fn control(&self, state: &mut State, argument: usize) -> io::Result<()> {
        // SAFETY: the caller's contract, for this and for every body and option below.
        unsafe {
            let asked = Asked::read(argument)?;
            match asked.kind {
                kind::REGISTER => {
                    let reply = self.register(state, &asked.name, asked.body())?;
                    let refused = self.take_options(state, &asked);
                    if refused.is_err() {
                        self.unbind(state);
                    }
                    refused?;
                    asked.reply(reply);
                }
                kind::PORT_INFO_GET => {
                    let wanted: PortInfo = asked.body();
                    asked.reply(info(state, &asked.name, &wanted)?);
                }
                kind::POOLS_INFO_GET => asked.reply(pools(state, &asked.name)?),
                kind::CSB_ENABLE => {
                    let csb = asked.csb(|csb| self.check_csb(csb))?.ok_or_else(|| errno(libc::EINVAL))?;
                    self.lock_bound().iter_mut().for_each(|bound| bound.csb = Some(csb));
                }
                kind::PORT_HDR_GET => {
                    let at = state.find(&asked.name).ok_or_else(|| errno(libc::ENXIO))?;
                    let header_len = u32::try_from(state.nics[at].header).unwrap_or(0);
                    asked.reply(PortHdr { header_len, pad: 0 });
                }
                kind::PORT_HDR_SET => state.set_header(&asked.name, asked.body())?,
                kind::VALE_ATTACH => asked.reply(state.attach(&asked.name, asked.body())?),
                kind::VALE_DETACH => asked.reply(state.detach(&asked.name)?),
                kind::VALE_LIST => {
                    let (name, reply) = state.list(&asked.name, asked.body())?;
                    Asked::reply_name(argument, &name);
                    asked.reply(reply);
                }
                kind::VALE_NEWIF => asked.reply(state.new_interface(&asked.name, asked.body())?),
                kind::VALE_DELIF => state.delete_interface(&asked.name)?,
                kind::VALE_POLLING_ENABLE | kind::VALE_POLLING_DISABLE => {
                    let on = asked.kind == kind::VALE_POLLING_ENABLE;
                    state.poll_in_kernel(&asked.name, on.then(|| asked.body()))?;
                }
                _ => return Err(errno(libc::EINVAL)),
            }
        }
        Ok(())
    }

    /// Looks at what a registration asks for besides.
    ///
    /// # Safety
    /// As for [`Asked::read`].
    unsafe fn take_options(&self, state: &mut State, asked: &Asked) -> io::Result<()> {
        // SAFETY: the caller's contract.
        unsafe {
            asked.offsets(|wanted| match self.bound() {
                Some(bound) => state.set_offsets(&bound, wanted),
                None => Err(errno(libc::EINVAL)),
            })?;
            if let Some(csb) = asked.csb(|csb| self.check_csb(csb))? {
                self.lock_bound().iter_mut().for_each(|bound| bound.csb = Some(csb));
            }
            asked.check_options()
        }
    }

    /// # Safety
    /// As [`Handle::ioctl`] for the requests of old modules.
    unsafe fn old(&self, state: &mut State, request: u64, argument: usize) -> io::Result<()> {
        let request_at = std::ptr::with_exposed_provenance_mut::<Legacy>(argument);
        // SAFETY: the caller's contract.
        let mut asked = unsafe { *request_at };
        // A module of today takes the old structure with today's versions in it; one of yesterday knows 11 and 12.
        let known = if state.shape.legacy { (11..=12).contains(&asked.version) } else { asked.version >= 14 };
        let answer = if known {
            if request == NIOCGINFO {
                old_info(state, &mut asked)
            } else {
                self.old_register(state, &mut asked)
            }
        } else {
            if state.shape.legacy {
                asked.version = VERSIONS_LEGACY[0];
            }
            Err(errno(libc::EINVAL))
        };
        // SAFETY: as above; it comes back whatever the answer is.
        unsafe { *request_at = asked };
        answer
    }

    fn old_register(&self, state: &mut State, asked: &mut Legacy) -> io::Result<()> {
        let polling = |bit: u16, flag: u64| if asked.ring_id & bit == 0 { 0 } else { flag };
        let wanted = Register {
            tx_slots: asked.tx_slots,
            rx_slots: asked.rx_slots,
            tx_rings: asked.tx_rings,
            rx_rings: asked.rx_rings,
            ring_id: asked.ring_id & legacy::RING_MASK,
            mode: asked.flags & legacy::MODE_MASK,
            mem_id: asked.arg2,
            extra_bufs: asked.arg3,
            flags: u64::from(asked.flags & !legacy::MODE_MASK)
                | polling(legacy::NO_TX_POLL, flag::NO_TX_POLL)
                | polling(legacy::DO_RX_POLL, flag::DO_RX_POLL),
            ..Register::default()
        };
        // An old pipe's end is a mode and a number.
        let (name, bracket) = (text(&asked.name), ['{', '}']);
        let (name, wanted) = match wanted.mode.checked_sub(legacy::PIPE_MASTER) {
            Some(end @ (0 | 1)) => {
                let name = format!("{name}{}{}", bracket[end as usize], wanted.ring_id);
                (name, Register { mode: Mode::AllNic as u32, ring_id: 0, ..wanted })
            }
            _ => (name, wanted),
        };
        let reply = self.register(state, &name, wanted)?;
        asked.offset = u32::try_from(reply.offset).unwrap_or(0);
        asked.mem_size = u32::try_from(reply.mem_size).unwrap_or(0);
        (asked.tx_slots, asked.rx_slots) = (reply.tx_slots, reply.rx_slots);
        (asked.tx_rings, asked.rx_rings) = (reply.tx_rings, reply.rx_rings);
        (asked.arg2, asked.arg3) = (reply.mem_id, reply.extra_bufs);
        Ok(())
    }

    /// Binds the descriptor.
    fn register(&self, state: &mut State, name: &str, wanted: Register) -> io::Result<Register> {
        if self.lock_bound().is_some() {
            return Err(errno(libc::EBUSY));
        }
        state.check_memory(wanted.mem_id)?;
        let at = state.find_or_make(name, &wanted)?;
        let reply = self.bind(state, at, name, wanted);
        if reply.is_err() {
            state.end_unused(at);
        }
        reply
    }

    fn bind(&self, state: &mut State, at: usize, name: &str, wanted: Register) -> io::Result<Register> {
        let nic = &state.nics[at];
        let (shape, place) = (nic.shape, nic.memory);
        if nic.attached && !super::vale::is_vale(name) {
            return Err(errno(libc::EBUSY));
        }
        if nic.header > 0 && wanted.flags & flag::ACCEPT_VNET_HDR == 0 {
            return Err(errno(libc::EIO));
        }
        let rings = nic.rings_of(&wanted, state.shape.legacy)?;
        let all = usize::from(shape.rings + shape.host_rings);
        let first_user = nic.users.iter().all(|users| *users == 0);
        if first_user && wanted.flags & flag::TX_RINGS_ONLY == 0 && !nic.fits_mtu() {
            return Err(errno(libc::EINVAL));
        }
        let exclusive = wanted.flags & flag::EXCLUSIVE != 0;
        if rings.iter().any(|&ring| nic.exclusive[ring] || (exclusive && nic.users[ring] > 0)) {
            return Err(errno(libc::EBUSY));
        }
        let only = |bit: u64| if wanted.flags & bit == 0 { rings.clone() } else { Vec::new() };
        let (tx, rx) = (only(flag::RX_RINGS_ONLY), only(flag::TX_RINGS_ONLY));
        // Whoever has no host rings is told of one pair all the same, which is nowhere.
        let entries = all.max(usize::from(shape.rings) + 1);
        let mut offsets = vec![0; 2 * entries];
        tx.iter().for_each(|&ring| offsets[ring] = nic.tx[ring].at.at);
        rx.iter().for_each(|&ring| offsets[entries + ring] = nic.rx[ring].at.at);
        let memory = state.memories[place].as_mut().ok_or_else(|| errno(libc::ENXIO))?;
        let interface = memory.make_interface(interface(name, shape, state.shape.legacy), &offsets)?;
        let (head, got) = memory.take_chain(wanted.extra_bufs);
        memory.set_bufs_head(interface, head);
        let mem_size = memory.bytes() as u64;
        let nic = &mut state.nics[at];
        for &ring in &rings {
            nic.users[ring] += 1;
            nic.exclusive[ring] |= exclusive;
        }
        for &ring in &tx {
            nic.senders[ring] += 1;
        }
        for &ring in &rx {
            nic.readers[ring] += 1;
            nic.rx[ring].bells.push(Arc::downgrade(&self.bell));
        }
        let reply = Register {
            offset: interface as u64,
            mem_size,
            tx_slots: shape.slots,
            rx_slots: shape.slots,
            tx_rings: shape.rings,
            rx_rings: shape.rings,
            host_tx_rings: shape.host_rings,
            host_rx_rings: shape.host_rings,
            mem_id: State::memory_id(place),
            extra_bufs: got,
            ..wanted
        };
        *self.lock_bound() = Some(Bound { nic: at, memory: place, interface, tx, rx, exclusive, csb: None });
        Ok(reply)
    }

    /// Whether nobody else has its rings; `None`: it has none.
    pub(super) fn exclusive(&self) -> Option<bool> {
        self.lock_bound().as_ref().map(|bound| bound.exclusive)
    }

    fn unbind(&self, state: &mut State) {
        let Some(bound) = self.lock_bound().take() else { return };
        if let Some(memory) = &mut state.memories[bound.memory] {
            memory.end_interface(bound.interface);
        }
        let nic = &mut state.nics[bound.nic];
        bound.tx.iter().for_each(|ring| nic.senders[*ring] -= 1);
        bound.rx.iter().for_each(|ring| nic.readers[*ring] -= 1);
        let mut rings: Vec<usize> = bound.tx.iter().chain(&bound.rx).copied().collect();
        rings.sort_unstable();
        rings.dedup();
        for ring in rings {
            nic.users[ring] -= 1;
            nic.exclusive[ring] &= !bound.exclusive;
            if let (0, Some(memory)) = (nic.users[ring], &state.memories[bound.memory]) {
                nic.tx[ring].end_offsets(memory);
                nic.rx[ring].end_offsets(memory);
            }
        }
        state.end_unused(bound.nic);
    }

    pub(super) fn tx_sync(state: &mut State, bound: &Bound) {
        for &index in &bound.tx {
            let State { memories, nics, violations, .. } = state;
            let nic = &mut nics[bound.nic];
            if nic.pipe.is_some() {
                state.pipe_tx(bound.nic, index);
                continue;
            }
            if nic.vale {
                state.vale_tx(bound.nic, index);
                continue;
            }
            let Some(memory) = &memories[bound.memory] else { return };
            let (rings, cable) = (nic.shape.rings, nic.cable);
            let mut ring = std::mem::take(&mut nic.tx);
            let number = u16::try_from(index).unwrap_or(0);
            match cable.filter(|_| number < rings) {
                Some(peer) => ring[index].tx_sync(memory, violations, |frame| {
                    let peer = &mut nics[peer];
                    // What the peer has no room for stays here.
                    peer.has_room(number) && peer.arrive(Side::Nic, number, std::mem::take(frame))
                }),
                None => {
                    let (side, number) =
                        if number < rings { (Side::Nic, number) } else { (Side::Host, number - rings) };
                    let mut room = nic.room(side);
                    let out = nic.out(side);
                    ring[index].tx_sync(memory, violations, |frame| {
                        let taken = room > 0;
                        if taken {
                            room -= 1;
                            out.push_back((number, std::mem::take(frame)));
                        }
                        taken
                    });
                }
            }
            nics[bound.nic].tx = ring;
        }
    }

    pub(super) fn rx_sync(&self, state: &mut State, bound: &Bound) {
        if state.nics[bound.nic].pipe.is_some() {
            pipe_sys::clear(&self.bell);
            bound.rx.iter().for_each(|ring| state.pipe_rx(bound.nic, *ring));
            return;
        }
        let State { memories, nics, violations, .. } = state;
        let Some(memory) = &memories[bound.memory] else { return };
        let nic = &mut nics[bound.nic];
        let mut pending = false;
        for &ring in &bound.rx {
            nic.rx[ring].rx_sync(memory, nic.high_flags, violations);
            pending |= !nic.rx[ring].queue.is_empty();
        }
        if !pending {
            pipe_sys::clear(&self.bell);
        }
    }

    /// `NIOCTXSYNC` and `NIOCRXSYNC`.
    fn sync(&self, request: u64) -> io::Result<()> {
        let bound = self.bound().ok_or_else(|| errno(libc::ENXIO))?;
        if bound.csb.is_some() {
            return Err(errno(libc::EBUSY));
        }
        let mut state = self.provider.when_up(bound.nic);
        if !state.nics[bound.nic].present {
            return Err(errno(libc::EIO));
        }
        match request {
            NIOCTXSYNC => Self::tx_sync(&mut state, &bound),
            _ => self.rx_sync(&mut state, &bound),
        }
        Ok(())
    }
}

impl State {
    /// Frames of these rings are to begin at offsets (`netmap_offsets_init`). Where drivers know netmap, they know that, too; of what a
    /// switch and a pipe do is nothing known.
    fn set_offsets(&mut self, bound: &Bound, wanted: OptOffsets) -> io::Result<u64> {
        let State { nics, memories, .. } = self;
        let nic = &mut nics[bound.nic];
        let Some(memory) = &memories[bound.memory] else { return Err(errno(libc::ENXIO)) };
        if nic.vale || nic.shape.driver != Driver::Native {
            return Err(errno(libc::EOPNOTSUPP));
        }
        let OptOffsets { offset_max: max, offset_initial: first, offset_bits: bits, .. } = wanted;
        let mask = match bits {
            0 | 64 => u64::MAX,
            1..64 => (1 << bits) - 1,
            _ => return Err(errno(libc::EINVAL)),
        };
        if max > u64::from(memory.buf_size()) || max & mask != max || first > max {
            return Err(errno(libc::EINVAL));
        }
        let mut told = max;
        let (tx, rx) =
            (bound.tx.iter().map(|ring| (true, *ring)), bound.rx.iter().map(|ring| (false, *ring)));
        for (is_tx, ring) in tx.chain(rx) {
            let alone = nic.users[ring] == 1;
            let kring = if is_tx { &mut nic.tx[ring] } else { &mut nic.rx[ring] };
            told = kring.set_offsets(memory, (mask, max), Some(first).filter(|first| alone && *first > 0))?;
        }
        Ok(told)
    }
}

/// `netmap_if` of a NIC. One of API 11 says nothing of host rings, which are a pair always; today's tells of one at least.
fn interface(name: &str, shape: NicShape, old: bool) -> NetmapIf {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(name.bytes().take(15)).for_each(|(to, from)| *to = from);
    let host = if old { 0 } else { u32::from(shape.host_rings).max(1) };
    NetmapIf {
        name: bytes,
        version: 0,
        flags: 0,
        tx_rings: shape.rings.into(),
        rx_rings: shape.rings.into(),
        bufs_head: 0,
        host_tx_rings: host,
        host_rx_rings: host,
        spare: [0; 3],
    }
}

/// A port that is asked about need not be there yet, if it is a switch's: it is made, and ended again.
fn info(state: &mut State, name: &str, asked: &PortInfo) -> io::Result<PortInfo> {
    state.check_memory(asked.mem_id)?;
    let PortInfo { tx_slots, rx_slots, tx_rings, rx_rings, .. } = *asked;
    let mode = Mode::AllNic as u32;
    let wanted = Register { tx_slots, rx_slots, tx_rings, rx_rings, mode, ..Register::default() };
    let at = state.find_or_make(name, &wanted)?;
    let nic = &state.nics[at];
    let mem_size = state.memories[nic.memory].as_ref().map_or(0, |memory| memory.bytes() as u64);
    let told = PortInfo {
        mem_size,
        tx_slots: nic.shape.slots,
        rx_slots: nic.shape.slots,
        tx_rings: nic.shape.rings,
        rx_rings: nic.shape.rings,
        host_tx_rings: nic.shape.host_rings,
        host_rx_rings: nic.shape.host_rings,
        mem_id: State::memory_id(nic.memory),
        ..PortInfo::default()
    };
    state.end_unused(at);
    Ok(told)
}

fn pools(state: &mut State, name: &str) -> io::Result<PoolsInfo> {
    let at = state.find_or_make(name, &Register::default())?;
    let place = state.nics[at].memory;
    let told = state.memories[place].as_ref().map(|memory| memory.pools(State::memory_id(place)));
    state.end_unused(at);
    told.ok_or_else(|| errno(libc::EINVAL))
}

fn old_info(state: &mut State, asked: &mut Legacy) -> io::Result<()> {
    let wanted = PortInfo { mem_id: asked.arg2, ..PortInfo::default() };
    let info = info(state, &text(&asked.name), &wanted)?;
    asked.mem_size = u32::try_from(info.mem_size).unwrap_or(0);
    (asked.tx_slots, asked.rx_slots) = (info.tx_slots, info.rx_slots);
    (asked.tx_rings, asked.rx_rings, asked.arg2) = (info.tx_rings, info.rx_rings, info.mem_id);
    Ok(())
}

impl Handle for Open {
    unsafe fn ioctl(&self, request: u64, argument: usize) -> io::Result<()> {
        if request == NIOCCTRL && self.provider.lock().shape.legacy {
            return Err(errno(libc::ENOTTY));
        }
        match request {
            NIOCTXSYNC | NIOCRXSYNC => self.sync(request),
            // SAFETY: the caller's contract.
            NIOCCTRL if unsafe { Asked::read(argument) }.is_ok_and(|asked| asked.is_of_loop()) => unsafe {
                self.looped(&Asked::read(argument)?)
            },
            // SAFETY: the caller's contract.
            NIOCCTRL => unsafe { self.control(&mut self.provider.lock(), argument) },
            // SAFETY: the caller's contract.
            NIOCREGIF | NIOCGINFO => unsafe { self.old(&mut self.provider.lock(), request, argument) },
            _ => Err(errno(libc::ENOTTY)),
        }
    }

    fn map(&self, bytes: usize) -> io::Result<Mapping> {
        let state = self.provider.lock();
        let bound = self.bound().ok_or_else(|| errno(libc::EINVAL))?;
        state.memories[bound.memory].as_ref().ok_or_else(|| errno(libc::EINVAL))?.map(bytes)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn in_error(&self) -> bool {
        let state = self.provider.lock();
        self.bound().is_none_or(|bound| bound.csb.is_some() || !state.nics[bound.nic].present)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let provider = self.provider.clone();
        self.unbind(&mut provider.lock());
    }
}
