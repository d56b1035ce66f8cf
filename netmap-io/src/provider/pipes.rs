//! Netmap pipes: `x{1` and `x}1`. What one end commits appears in the ring of the other, slot by slot, buffers and flags
//! included; what that one gives back comes the same way. Nothing is copied, and a full pipe pushes back.

use std::io;

use super::kring::Kring;
use super::memory::Memory;
use super::nic::Nic;
use super::{Driver, NicShape, State, errno};
use crate::netmap::abi::{Mode, Register};
use crate::ring::SlotFlags;

/// Slots of a pipe's rings unless it is asked for others, and at most.
const SLOTS: u32 = 1024;
const SLOTS_MAX: u32 = 4096;
const RINGS_MAX: u16 = 256;

/// The name of the other end; `None`: it is no pipe.
fn other_end(name: &str) -> Option<String> {
    let at = name.rfind('{').or_else(|| name.rfind('}'))?;
    let other = if name.as_bytes()[at] == b'{' { '}' } else { '{' };
    Some(format!("{}{other}{}", &name[..at], &name[at + 1..]))
}

impl State {
    /// A pipe's end, made together with the other one by whoever asks first; `None`: it is no pipe.
    pub(super) fn pipe(&mut self, name: &str, wanted: &Register) -> Option<io::Result<usize>> {
        let other = other_end(name)?;
        let hardware = wanted.mode == Mode::AllNic as u32 || wanted.mode == Mode::OneNic as u32;
        if name.starts_with(['{', '}']) || name.ends_with(['{', '}']) || !hardware {
            return Some(Err(errno(libc::EINVAL)));
        }
        Some(self.make_pipe(name, &other, wanted))
    }

    fn make_pipe(&mut self, name: &str, other: &str, wanted: &Register) -> io::Result<usize> {
        let slots = match wanted.tx_slots.max(wanted.rx_slots) {
            0 => SLOTS,
            asked => asked.min(SLOTS_MAX),
        };
        let rings = wanted.tx_rings.max(wanted.rx_rings).clamp(1, RINGS_MAX);
        let shape = NicShape { rings, host_rings: 0, slots, mtu: 0, driver: Driver::Native };
        let buffers = 2 * u32::from(rings) * slots;
        let mut memory = Memory::for_port(self.shape.buf_size, buffers, wanted.extra_bufs)?;
        let (place, first) = (self.memories.len(), self.nics.len());
        let mut one = Nic::pipe_end(name, shape, &mut memory, place, None)?;
        let mut two = Nic::pipe_end(other, shape, &mut memory, place, Some(&one))?;
        (one.pipe, two.pipe) = (Some(first + 1), Some(first));
        self.memories.push(Some(memory));
        self.nics.extend([one, two]);
        Ok(first)
    }

    /// Both ends of one ring of a pipe, and their memory.
    fn ends(&mut self, nic: usize) -> Option<(&mut Nic, &mut Nic, &Memory, &mut Vec<String>)> {
        let Self { nics, memories, violations, .. } = self;
        let peer = nics[nic].pipe?;
        let memory = memories[nics[nic].memory].as_ref()?;
        let [one, two] = nics.get_disjoint_mut([nic, peer]).ok()?;
        Some((one, two, memory, violations))
    }

    /// `NIOCTXSYNC` of a pipe's end.
    pub(super) fn pipe_tx(&mut self, nic: usize, ring: usize) {
        let Some((one, two, memory, violations)) = self.ends(nic) else { return };
        let (tx, rx) = (&mut one.tx[ring], &mut two.rx[ring]);
        if !tx.prologue(memory, violations) {
            return;
        }
        tx.hw_tail = tx.pipe_tail;
        let mut whole = None;
        while tx.hw_cur != tx.head {
            let slot = exchange(memory, tx, rx);
            if slot & SlotFlags::MORE_FRAG == 0 {
                whole = Some(tx.hw_cur);
            }
        }
        tx.finish(memory);
        // Frames that are whole alone are shown.
        if let Some(end) = whole {
            rx.pipe_tail = end;
            rx.wake();
        }
    }

    /// `NIOCRXSYNC` of a pipe's end.
    pub(super) fn pipe_rx(&mut self, nic: usize, ring: usize) {
        let Some((one, two, memory, violations)) = self.ends(nic) else { return };
        let (rx, tx) = (&mut one.rx[ring], &mut two.tx[ring]);
        rx.prologue(memory, violations);
        rx.hw_tail = rx.pipe_tail;
        while rx.hw_cur != rx.head {
            exchange(memory, rx, tx);
        }
        tx.pipe_tail = tx.before(rx.hw_cur);
        rx.finish(memory);
        rx.stamp(memory);
    }
}

/// The next slot goes to the same place of the other ring; its flags.
fn exchange(memory: &Memory, from: &mut Kring, to: &Kring) -> u16 {
    let index = from.hw_cur;
    let slot = memory.unmark(from.at, index);
    memory.set_slot(to.at, index, slot);
    from.hw_cur = from.next(index);
    slot.flags
}
