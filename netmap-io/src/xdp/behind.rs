//! The end of the steering program behind GRO: what is ours goes to the port.
//!
//! ```text
//!  ours ─┬─ long, or something is apart, or filters stand behind us, or no room ─► marked, "for another host", to a station that
//!        │                                                                           nobody is: a packet socket has it
//!        └─ else copied into the ring buffer ─┬─ the port sleeps: marked, a packet socket wakes it
//!                                             └─ else: dropped, that is done with
//! ```
//!
//! [`records`](super::packets) has the reader and the rules.
//!
//! "For another host" keeps the kernel's IP from a frame, and a bridge takes that back: of an interface that becomes a bridge's member, IP would
//! have our frames before we have heard of it, and reset their connections; our sockets would hear none. What is for the group of LLDP (IEEE 802.1AB
//! §7.1) a bridge leaves to the interface it came by. So what goes on has that address, and the port puts the interface's own back.

use super::asm::{Asm, Helper, If, Label, Reg, Width};
use super::packets::{APART_AT, ASLEEP_AT, FILTERS_AT, FRAME_AT, MARK, MARKED_AT, NOBODY, ROOMS, WAKE};
use super::program::{LINK, SKB_LEN, SKB_MARK};
use Reg::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};

/// tcx verdicts: on to the stack, and done with.
const TCX_PASS: i32 = 0;
const TCX_DROP: i32 = 2;
/// What a frame is made that the kernel's IP is not to take (`PACKET_OTHERHOST`).
const OTHER_HOST: i32 = 3;
/// Submitting wakes nobody (`BPF_RB_NO_WAKEUP`).
const NO_WAKEUP: i32 = 1;

/// The maps for short frames, by descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShortMaps {
    /// The ring buffer.
    pub(super) ring: i32,
    /// An array of one value: the signs.
    pub(super) signs: i32,
}

/// Writes the end for what is ours. R6: context, R7: where the frame begins, R9: its IP header.
pub(super) fn write(asm: &mut Asm, short: Option<ShortMaps>) {
    let bare = asm.label();
    // Its link header is out of reach: a socket has it, as it is.
    asm.jump_if(R9, If::Equal, R7, bare);
    if let Some(maps) = short {
        let socket = asm.label();
        write_short(asm, maps, socket);
        asm.place(socket);
        write_apart(asm, maps);
    }
    write_mark(asm, MARK);
    write_for_nobody(asm);
    asm.exit();

    asm.place(bare);
    if let Some(maps) = short {
        write_apart(asm, maps);
    }
    write_mark(asm, MARK);
    write_for_another(asm);
    asm.exit();
}

/// Writes what is to be done with a frame that we and the kernel are to get. R6: context.
pub(super) fn write_for_both(asm: &mut Asm, short: Option<ShortMaps>) {
    if let Some(maps) = short {
        write_apart(asm, maps);
    }
    write_mark(asm, MARK);
}

/// A frame goes to a packet socket.
fn write_apart(asm: &mut Asm, maps: ShortMaps) {
    asm.load_map_value(R7, maps.signs);
    // The number first: who finds that as many have come out of the sockets finds none on its way.
    asm.mov_imm(R1, 1);
    asm.atomic_add(R7, MARKED_AT, R1);
    asm.store_imm(Width::Word, R7, APART_AT, 1);
}

/// Packet sockets are to hear it.
fn write_mark(asm: &mut Asm, mark: u32) {
    asm.mov_imm(R1, mark.cast_signed());
    asm.store(Width::Word, R6, SKB_MARK, R1);
}

/// The frame goes on, but the kernel's IP leaves it alone.
fn write_for_another(asm: &mut Asm) {
    asm.mov(R1, R6);
    asm.mov_imm(R2, OTHER_HOST);
    asm.call(Helper::ChangeType);
    asm.mov_imm(R0, TCX_PASS);
}

/// The same, and a bridge does, too.
fn write_for_nobody(asm: &mut Asm) {
    let [a, b, c, d, e, f] = NOBODY;
    asm.store_imm(Width::Word, R10, LINK, i32::from_ne_bytes([a, b, c, d]));
    asm.store_imm(Width::Half, R10, LINK + 4, i32::from(u16::from_ne_bytes([e, f])));
    asm.mov(R1, R6);
    asm.mov_imm(R2, 0);
    asm.mov(R3, R10);
    asm.add_imm(R3, i32::from(LINK));
    asm.mov_imm(R4, 6);
    asm.mov_imm(R5, 0);
    asm.call(Helper::StoreBytes);
    write_for_another(asm);
}

/// A short frame into the ring. R7: signs, R8: length, R9: the record.
fn write_short(asm: &mut Asm, maps: ShortMaps, socket: Label) {
    let [copied, discard] = std::array::from_fn(|_| asm.label());
    asm.load_map_value(R7, maps.signs);
    asm.load(Width::Word, R1, R7, APART_AT);
    asm.jump_if_imm(R1, If::NotEqual, 0, socket);
    asm.load(Width::Word, R1, R7, FILTERS_AT);
    asm.jump_if_imm(R1, If::NotEqual, 0, socket);
    asm.load(Width::Word, R8, R6, SKB_LEN);
    asm.jump_if_imm(R8, If::Equal, 0, socket);
    for room in ROOMS {
        let longer = asm.label();
        asm.jump_if_imm(R8, If::Greater, i32::from(room), longer);
        asm.load_map(R1, maps.ring);
        asm.mov_imm(R2, i32::from(FRAME_AT) + i32::from(room));
        asm.mov_imm(R3, 0);
        asm.call(Helper::RingReserve);
        asm.jump_if_imm(R0, If::Equal, 0, socket);
        asm.mov(R9, R0);
        asm.store(Width::Word, R9, 0, R8);
        asm.mov(R1, R6);
        asm.mov_imm(R2, 0);
        asm.mov(R3, R9);
        asm.add_imm(R3, i32::from(FRAME_AT));
        asm.mov(R4, R8);
        asm.call(Helper::LoadBytes);
        asm.jump_if_imm(R0, If::NotEqual, 0, discard);
        asm.jump(copied);
        asm.place(longer);
    }
    asm.jump(socket);

    asm.place(discard);
    asm.mov(R1, R9);
    asm.mov_imm(R2, NO_WAKEUP);
    asm.call(Helper::RingDiscard);
    asm.jump(socket);

    asm.place(copied);
    asm.mov(R1, R9);
    asm.mov_imm(R2, NO_WAKEUP);
    asm.call(Helper::RingSubmit);
    let done = asm.label();
    // Submitting is a full barrier: the record stands before this look.
    asm.load(Width::Word, R1, R7, ASLEEP_AT);
    asm.jump_if_imm(R1, If::Equal, 0, done);
    // One wakes it.
    asm.mov_imm(R1, 0);
    asm.exchange(R7, ASLEEP_AT, R1);
    asm.jump_if_imm(R1, If::Equal, 0, done);
    write_mark(asm, WAKE);
    write_for_nobody(asm);
    asm.exit();
    asm.place(done);
    asm.mov_imm(R0, TCX_DROP);
    asm.exit();
}
