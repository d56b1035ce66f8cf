//! An open descriptor: what it is asked, and what it is bound to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Provider, Side, State};
use crate::netmap::abi::{
    Header, Legacy, Mode, NIOCCTRL, NIOCGINFO, NIOCREGIF, NIOCRXSYNC, NIOCTXSYNC, PoolsInfo, PortInfo,
    Register, VERSIONS, VERSIONS_LEGACY, flag, kind, legacy,
};
use crate::netmap::layout::NetmapIf;
use crate::netmap::sys::Handle;
use crate::pipe::sys as pipe_sys;
use crate::sys::Mapping;

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// What a descriptor is bound to.
#[derive(Clone, Debug)]
struct Bound {
    nic: usize,
    /// Of the interface in the region.
    interface: usize,
    /// Indices of rings.
    tx: Vec<usize>,
    rx: Vec<usize>,
    exclusive: bool,
}

/// An open descriptor.
#[derive(Debug)]
pub(super) struct Open {
    provider: Provider,
    bell: Arc<OwnedFd>,
    bound: Mutex<Option<Bound>>,
}

impl Open {
    pub(super) fn new(provider: Provider) -> io::Result<Self> {
        let [bell, _] = pipe_sys::doorbells()?;
        Ok(Self { provider, bell: Arc::new(bell), bound: Mutex::new(None) })
    }

    fn bound(&self) -> Option<Bound> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// # Safety
    /// As [`Handle::ioctl`] for `NIOCCTRL`.
    unsafe fn control(&self, state: &mut State, argument: usize) -> io::Result<()> {
        let header = std::ptr::with_exposed_provenance_mut::<Header>(argument);
        // SAFETY: the caller's contract.
        let asked = unsafe { *header };
        if state.shape.legacy {
            return Err(errno(libc::ENOTTY));
        }
        if !VERSIONS.contains(&asked.version) {
            return Err(errno(libc::EINVAL));
        }
        let name = text(&asked.name);
        let body = usize::try_from(asked.body).unwrap_or(0);
        match asked.kind {
            kind::REGISTER => {
                let body = std::ptr::with_exposed_provenance_mut::<Register>(body);
                // SAFETY: the body of this kind, by the caller's contract.
                let reply = self.register(state, &name, unsafe { *body })?;
                // SAFETY: as above.
                unsafe { *body = reply };
            }
            kind::PORT_INFO_GET => {
                let info = info(state, &name)?;
                // SAFETY: as above.
                unsafe { *std::ptr::with_exposed_provenance_mut::<PortInfo>(body) = info };
            }
            kind::POOLS_INFO_GET => {
                let pools = PoolsInfo {
                    mem_size: state.memory.bytes() as u64,
                    mem_id: 1,
                    buf_total: state.shape.buffers,
                    buf_size: state.shape.buf_size,
                    ..PoolsInfo::default()
                };
                // SAFETY: as above.
                unsafe { *std::ptr::with_exposed_provenance_mut::<PoolsInfo>(body) = pools };
            }
            _ => return Err(errno(libc::EINVAL)),
        }
        Ok(())
    }

    /// # Safety
    /// As [`Handle::ioctl`] for the requests of old modules.
    unsafe fn old(&self, state: &mut State, request: u64, argument: usize) -> io::Result<()> {
        let request_at = std::ptr::with_exposed_provenance_mut::<Legacy>(argument);
        // SAFETY: the caller's contract.
        let mut asked = unsafe { *request_at };
        let answer = if VERSIONS_LEGACY.contains(&asked.version) {
            if request == NIOCGINFO {
                old_info(state, &mut asked)
            } else {
                self.old_register(state, &mut asked)
            }
        } else {
            asked.version = VERSIONS_LEGACY[0];
            Err(errno(libc::EINVAL))
        };
        // SAFETY: as above; it comes back whatever the answer is.
        unsafe { *request_at = asked };
        answer
    }

    fn old_register(&self, state: &mut State, asked: &mut Legacy) -> io::Result<()> {
        let polling = |bit: u16, flag: u64| if asked.ring_id & bit == 0 { 0 } else { flag };
        let wanted = Register {
            ring_id: asked.ring_id & legacy::RING_MASK,
            mode: asked.flags & legacy::MODE_MASK,
            mem_id: asked.arg2,
            extra_bufs: asked.arg3,
            flags: u64::from(asked.flags & !legacy::MODE_MASK)
                | polling(legacy::NO_TX_POLL, flag::NO_TX_POLL)
                | polling(legacy::DO_RX_POLL, flag::DO_RX_POLL),
            ..Register::default()
        };
        let reply = self.register(state, &text(&asked.name), wanted)?;
        asked.offset = u32::try_from(reply.offset).unwrap_or(0);
        asked.mem_size = u32::try_from(reply.mem_size).unwrap_or(0);
        (asked.tx_slots, asked.rx_slots) = (reply.tx_slots, reply.rx_slots);
        (asked.tx_rings, asked.rx_rings) = (reply.tx_rings, reply.rx_rings);
        (asked.arg2, asked.arg3) = (reply.mem_id, reply.extra_bufs);
        Ok(())
    }

    /// Binds the descriptor.
    fn register(&self, state: &mut State, name: &str, wanted: Register) -> io::Result<Register> {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if bound.is_some() {
            return Err(errno(libc::EBUSY));
        }
        if wanted.mem_id > 1 {
            return Err(errno(libc::EINVAL));
        }
        let at = state.find(name).ok_or_else(|| errno(libc::ENXIO))?;
        let nic = &state.nics[at];
        let shape = nic.shape;
        let (nics, all) = (usize::from(shape.rings), usize::from(shape.rings + shape.host_rings));
        let one = usize::from(wanted.ring_id);
        let rings: Vec<usize> = match wanted.mode {
            mode if mode == Mode::AllNic as u32 => (0..nics).collect(),
            mode if mode == Mode::Host as u32 => (nics..all).collect(),
            mode if mode == Mode::NicAndHost as u32 => (0..all).collect(),
            mode if mode == Mode::OneNic as u32 && one < nics => vec![one],
            mode if mode == Mode::OneHost as u32 && one < all - nics && !state.shape.legacy => {
                vec![nics + one]
            }
            _ => return Err(errno(libc::EINVAL)),
        };
        let exclusive = wanted.flags & flag::EXCLUSIVE != 0;
        if rings.iter().any(|&ring| nic.exclusive[ring] || (exclusive && nic.users[ring] > 0)) {
            return Err(errno(libc::EBUSY));
        }
        let only = |bit: u64| if wanted.flags & bit == 0 { rings.clone() } else { Vec::new() };
        let (tx, rx) = (only(flag::RX_RINGS_ONLY), only(flag::TX_RINGS_ONLY));
        let mut offsets = vec![0; 2 * all];
        tx.iter().for_each(|&ring| offsets[ring] = nic.tx[ring].at.at);
        rx.iter().for_each(|&ring| offsets[all + ring] = nic.rx[ring].at.at);
        let interface = state.memory.make_interface(interface(name, shape, state.shape.legacy), &offsets)?;
        let (head, got) = state.memory.take_chain(wanted.extra_bufs);
        state.memory.set_bufs_head(interface, head);
        let nic = &mut state.nics[at];
        for &ring in &rings {
            nic.users[ring] += 1;
            nic.exclusive[ring] |= exclusive;
        }
        for &ring in &rx {
            nic.rx[ring].bells.push(Arc::downgrade(&self.bell));
        }
        let reply = Register {
            offset: interface as u64,
            mem_size: state.memory.bytes() as u64,
            tx_slots: shape.slots,
            rx_slots: shape.slots,
            tx_rings: shape.rings,
            rx_rings: shape.rings,
            host_tx_rings: shape.host_rings,
            host_rx_rings: shape.host_rings,
            mem_id: 1,
            extra_bufs: got,
            ..wanted
        };
        *bound = Some(Bound { nic: at, interface, tx, rx, exclusive });
        Ok(reply)
    }

    fn tx_sync(&self, state: &mut State, bound: &Bound) {
        let State { memory, nics, violations, .. } = state;
        for &index in &bound.tx {
            let nic = &mut nics[bound.nic];
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

    fn rx_sync(&self, state: &mut State, bound: &Bound) {
        let State { memory, nics, violations, .. } = state;
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
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// `netmap_if` of a NIC. One of API 11 says nothing of host rings, which are a pair always.
fn interface(name: &str, shape: super::NicShape, old: bool) -> NetmapIf {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(name.bytes().take(15)).for_each(|(to, from)| *to = from);
    let host = if old { 0 } else { shape.host_rings.into() };
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

fn info(state: &State, name: &str) -> io::Result<PortInfo> {
    let nic = &state.nics[state.find(name).ok_or_else(|| errno(libc::ENXIO))?];
    Ok(PortInfo {
        mem_size: state.memory.bytes() as u64,
        tx_slots: nic.shape.slots,
        rx_slots: nic.shape.slots,
        tx_rings: nic.shape.rings,
        rx_rings: nic.shape.rings,
        host_tx_rings: nic.shape.host_rings,
        host_rx_rings: nic.shape.host_rings,
        mem_id: 1,
        ..PortInfo::default()
    })
}

fn old_info(state: &State, asked: &mut Legacy) -> io::Result<()> {
    let info = info(state, &text(&asked.name))?;
    asked.mem_size = u32::try_from(info.mem_size).unwrap_or(0);
    (asked.tx_slots, asked.rx_slots) = (info.tx_slots, info.rx_slots);
    (asked.tx_rings, asked.rx_rings, asked.arg2) = (info.tx_rings, info.rx_rings, info.mem_id);
    Ok(())
}

impl Handle for Open {
    unsafe fn ioctl(&self, request: u64, argument: usize) -> io::Result<()> {
        let mut state = self.provider.lock();
        let state = &mut *state;
        match request {
            // SAFETY: the caller's contract.
            NIOCCTRL => unsafe { self.control(state, argument) },
            // SAFETY: the caller's contract.
            NIOCREGIF | NIOCGINFO => unsafe { self.old(state, request, argument) },
            NIOCTXSYNC | NIOCRXSYNC => {
                let bound = self.bound().ok_or_else(|| errno(libc::ENXIO))?;
                if !state.nics[bound.nic].present {
                    return Err(errno(libc::ENXIO));
                }
                match request {
                    NIOCTXSYNC => self.tx_sync(state, &bound),
                    _ => self.rx_sync(state, &bound),
                }
                Ok(())
            }
            _ => Err(errno(libc::ENOTTY)),
        }
    }

    fn map(&self, bytes: usize) -> io::Result<Mapping> {
        let state = self.provider.lock();
        if self.bound().is_none() {
            return Err(errno(libc::EINVAL));
        }
        state.memory.map(bytes)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn in_error(&self) -> bool {
        let state = self.provider.lock();
        self.bound().is_none_or(|bound| !state.nics[bound.nic].present)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.provider.lock();
        let Some(bound) = self.bound() else { return };
        let state = &mut *state;
        state.memory.end_interface(bound.interface);
        let nic = &mut state.nics[bound.nic];
        let mut rings: Vec<usize> = bound.tx.iter().chain(&bound.rx).copied().collect();
        rings.sort_unstable();
        rings.dedup();
        for ring in rings {
            nic.users[ring] -= 1;
            nic.exclusive[ring] &= !bound.exclusive;
        }
    }
}
