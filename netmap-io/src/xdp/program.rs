//! The steering program: which frames of the device are ours.
//!
//! ```text
//! Ethernet ─► [priority tag] ─► IPv4 or IPv6 ─► TCP or UDP ───► flow registered? ─► tuple registered?
//!     │             │                │            ICMP error:        │                   │
//!     │             │                │            its quoted ports   │                   │
//!     └─────────────┴────────────────┴── anything else: XDP_PASS     └── its verdict     └─► our socket
//! ```
//!
//! Of a fragmented TCP packet, only the first fragment has ports. Its name (addresses, identification) is remembered with whose it is, and the
//! others follow it. One that comes before the first may be anybody's: behind GRO both get it, and whoever gets the rest puts the
//! packet together. In front of the stack it can't be in two places; it goes to the kernel, and TCP sends again.
//!
//! The same program stands behind the driver, too ([`Hook::Behind`]): there it gets socket buffers, and `behind` is its end.
//!
//! IPv6's headers of options, and of a route that is used up, are stepped over. What it doesn't understand, it passes to the
//! kernel: ARP, ND, other protocols and extension headers (IPsec's among them), tunnels, truncated frames, frames of VLAN
//! interfaces, frames to groups and to other stations. The verifier proves that it terminates and reads inside the frame alone.

use super::asm::{Asm, Helper, If, Insn, Label, Reg, Width};
use super::behind::{self, ShortMaps};
use crate::frame::EXTENSIONS_MAX;
use Reg::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};

/// XDP verdict: away with it.
pub(super) const XDP_DROP: i32 = 1;
/// XDP verdict: on to the kernel's stack.
pub(super) const XDP_PASS: i32 = 2;
/// tcx verdict: the next program decides.
const TCX_NEXT: i32 = -1;

/// Where the program stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// In front of everything; what is ours goes to the AF_XDP socket of its queue, or gets the verdict where there is none.
    Xdp(i32),
    /// Behind GRO (tcx): what is ours goes to packet sockets, short frames to a ring buffer if there is one.
    Behind(Option<ShortMaps>),
}

/// Key of the tuple map: what [`Tuple`](crate::Tuple) says, in network byte order. Or the range of an address, with port 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct TupleKey {
    pub(super) addr: [u8; 16],
    pub(super) port: [u8; 2],
    pub(super) proto: u8,
    /// 1: a range, whose first and last port are the entry's value.
    pub(super) range: u8,
}
const _: () = assert!(size_of::<TupleKey>() == 20);

/// Key of the flow map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FlowKey {
    pub(super) local_addr: [u8; 16],
    pub(super) peer_addr: [u8; 16],
    pub(super) local_port: [u8; 2],
    pub(super) peer_port: [u8; 2],
    pub(super) proto: u8,
    pub(super) zero: [u8; 3],
}
const _: () = assert!(size_of::<FlowKey>() == 40);

/// Key of the fragment map: names a packet that comes in fragments. TCP's alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FragmentKey {
    pub(super) local_addr: [u8; 16],
    pub(super) peer_addr: [u8; 16],
    pub(super) ident: [u8; 4],
}
const _: () = assert!(size_of::<FragmentKey>() == 36);

/// The one value of the state map, which the program reads and the engine writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Number of entries in the flow map: while it is 0, the program need not look there.
    pub(super) flows: u32,
    /// The lowest port of any range: below, none is looked for.
    pub(super) ranges_from: u32,
}
/// Where that is in it.
const RANGES_FROM: i16 = 4;

/// Value of a tuple: ours, whoever else has sockets there.
pub(super) const TUPLE_OURS: u32 = 1;
/// Value of a tuple: one port of a range.
pub(super) const TUPLE_OF_RANGE: u32 = 2;
/// Value of a flow: take it.
pub(super) const FLOW_TAKE: u32 = 1;
/// Value of a flow: leave it to the kernel.
pub(super) const FLOW_LEAVE: u32 = 2;

/// The maps that the program uses, by descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    /// `TupleKey` → `TUPLE_OURS` or `TUPLE_OF_RANGE`; of a range: its first and last port, 16 bits each.
    pub(super) tuples: i32,
    /// `FlowKey` → `FLOW_TAKE` or `FLOW_LEAVE`.
    pub(super) flows: i32,
    /// `State`, one.
    pub(super) state: i32,
    /// Queue → AF_XDP socket.
    pub(super) sockets: i32,
    /// `FragmentKey` → `FLOW_TAKE` or `FLOW_LEAVE`.
    pub(super) fragments: i32,
}

// Offsets in `struct xdp_md`.
const MD_DATA: i16 = 0;
const MD_DATA_END: i16 = 4;
const MD_RX_QUEUE: i16 = 16;
// Offsets in `struct __sk_buff`.
pub(super) const SKB_LEN: i16 = 0;
const SKB_TYPE: i16 = 4;
pub(super) const SKB_MARK: i16 = 8;
const SKB_PROTOCOL: i16 = 16;
const SKB_VLAN_PRESENT: i16 = 20;
const SKB_VLAN_TCI: i16 = 24;
const SKB_DATA: i16 = 76;
const SKB_DATA_END: i16 = 80;
/// Headers that lie in one piece in every segment of a kernel; where fewer do, so many are asked for.
const HEADERS_USUAL: i32 = 54;
const HEADERS_MAX: i32 = 160;

// The keys on the stack. The addresses of both begin with the local one, so it is written twice.
const FLOW: i16 = -40;
const FLOW_PEER: i16 = FLOW + 16;
const FLOW_LOCAL_PORT: i16 = FLOW + 32;
const FLOW_PEER_PORT: i16 = FLOW + 34;
const FLOW_PROTO: i16 = FLOW + 36;
const TUPLE: i16 = FLOW - 24;
const TUPLE_PORT: i16 = TUPLE + 16;
const TUPLE_PROTO: i16 = TUPLE + 18;
const TUPLE_RANGE: i16 = TUPLE + 19;
/// Key of the fragment map. Then two words: whether the frame is a first fragment, and the map's value: whose the packet is.
const FRAGMENT: i16 = TUPLE - 40;
const FRAGMENT_PEER: i16 = FRAGMENT + 16;
const FRAGMENT_IDENT: i16 = FRAGMENT + 32;
const IS_FIRST: i16 = FRAGMENT - 8;
const WHOSE: i16 = FRAGMENT - 4;
/// First bytes of the link's header: as it is, or as it is to be.
pub(super) const LINK: i16 = FRAGMENT - 16;
/// The kernel's name of a connection. It lies below all that the ends of the program use.
const SOCKET: i16 = LINK - 64;
/// State of what has that name, and flags of the segment.
const STATE: i16 = SOCKET - 4;
const FLAGS: i16 = SOCKET - 8;
const TCP_FLAGS: i16 = 13;
const SYN: i32 = 0x02;
const ACK: i32 = 0x10;
/// Offset in `struct bpf_sock`, and a value there.
const SOCK_STATE: i16 = 72;
const TCP_LISTEN: i32 = 10;
/// The network namespace of the interface (`BPF_F_CURRENT_NETNS`).
const THIS_NAMESPACE: i32 = -1;
/// What the helper that loads bytes counts from (`BPF_HDR_START_MAC`).
const FROM_LINK: i32 = 0;

const ETHER_HEADER: i32 = 14;
const VLAN_TAG: i32 = 4;
const IPV4_HEADER: i32 = 20;
const IPV6_HEADER: i32 = 40;
const TCP: i32 = 6;
const UDP: i32 = 17;
const ICMPV4: i32 = 1;
const ICMPV6: i32 = 58;
/// IPv6's header of a fragment, and those that are stepped over.
const FRAGMENT_V6: i32 = 44;
const HOP_BY_HOP: i32 = 0;
const ROUTING: i32 = 43;
const DESTINATION: i32 = 60;
/// Type, code, checksum and four bytes more; behind it the packet that was refused.
const ICMP_HEADER: i16 = 8;

/// A 16-bit number as a little- or big-endian machine reads it from a frame.
fn wire16(value: u16) -> i32 {
    i32::from(u16::from_ne_bytes(value.to_be_bytes()))
}

/// Jumps to `out` unless `bytes` bytes from `at` on are inside the frame.
fn need(asm: &mut Asm, at: Reg, bytes: i32, out: Label) {
    asm.mov(R2, at);
    asm.add_imm(R2, bytes);
    asm.jump_if(R2, If::Greater, R8, out);
}

/// Copies a word behind `base` to places on the stack.
fn copy_word(asm: &mut Asm, base: Reg, from: i16, to: &[i16]) {
    asm.load(Width::Word, R3, base, from);
    for &offset in to {
        asm.store(Width::Word, R10, offset, R3);
    }
}

/// Assembles the program.
///
/// R6: context, R7: frame, R8: its end, R9: IP header, R5: header behind it, R4: its protocol.
pub(super) fn assemble(maps: Maps, hook: Hook) -> Vec<Insn> {
    let mut asm = Asm::default();
    let [pass, untagged, ipv4, ipv6, ports, quoted, keys, tuple, foreign, take, later] =
        std::array::from_fn(|_| asm.label());

    asm.mov(R6, R1);
    match hook {
        Hook::Xdp(_) => {
            asm.load(Width::Word, R7, R6, MD_DATA);
            asm.load(Width::Word, R8, R6, MD_DATA_END);
        }
        Hook::Behind(_) => {
            write_buffer(&mut asm, pass);
            write_link(&mut asm, pass, untagged);
        }
    }
    need(&mut asm, R7, ETHER_HEADER, pass);
    // RFC 1122 §3.3.6: what is for a group on the link and for one of us above it, IP may discard, and TCP does so.
    asm.load(Width::Byte, R3, R7, 0);
    asm.and_imm(R3, 1);
    asm.jump_if_imm(R3, If::NotEqual, 0, pass);
    asm.load(Width::Half, R3, R7, 12);
    asm.mov(R9, R7);
    asm.add_imm(R9, ETHER_HEADER);
    asm.jump_if_imm(R3, If::NotEqual, wire16(0x8100), untagged);
    // IEEE 802.1Q: VLAN 0 is a priority tag on the interface's own traffic. Any other VLAN has an
    // interface of its own, whose frames are not ours even if the address is the same.
    need(&mut asm, R7, ETHER_HEADER + VLAN_TAG, pass);
    asm.load(Width::Half, R3, R7, 14);
    asm.and_imm(R3, wire16(0x0fff));
    asm.jump_if_imm(R3, If::NotEqual, 0, pass);
    asm.load(Width::Half, R3, R7, 16);
    asm.add_imm(R9, VLAN_TAG);
    asm.place(untagged);
    asm.jump_if_imm(R3, If::Equal, wire16(0x0800), ipv4);
    asm.jump_if_imm(R3, If::Equal, wire16(0x86dd), ipv6);
    asm.jump(pass);

    asm.place(ipv4);
    write_ipv4(&mut asm, pass, later);
    asm.jump_if_imm(R4, If::NotEqual, ICMPV4, ports);
    write_icmpv4(&mut asm, pass);
    asm.jump(quoted);

    asm.place(ipv6);
    write_ipv6(&mut asm, pass, later);
    asm.jump_if_imm(R4, If::NotEqual, ICMPV6, ports);
    write_icmpv6(&mut asm, pass);

    // TCP and UDP begin with the two ports. In a packet that we sent, and that an ICMP error quotes, the
    // first is ours; in all others the second. R1: ours, R3: the peer's.
    asm.place(quoted);
    need(&mut asm, R5, 4, pass);
    asm.load(Width::Half, R1, R5, 0);
    asm.load(Width::Half, R3, R5, 2);
    asm.store_imm(Width::Byte, R10, FLAGS, 0);
    asm.jump(keys);
    asm.place(ports);
    need(&mut asm, R5, 4, pass);
    asm.load(Width::Half, R1, R5, 2);
    asm.load(Width::Half, R3, R5, 0);
    asm.store_imm(Width::Byte, R10, FLAGS, 0);
    need(&mut asm, R5, i32::from(TCP_FLAGS) + 1, keys);
    asm.load(Width::Byte, R2, R5, TCP_FLAGS);
    asm.store(Width::Byte, R10, FLAGS, R2);
    asm.place(keys);
    write_keys(&mut asm, pass);
    write_lookups(&mut asm, maps, [foreign, tuple, take]);
    write_ends(&mut asm, maps, hook, [foreign, take, later, pass]);
    asm.finish()
}

/// What becomes of a frame (R7, its IP header at R9): it is not ours by what it says, or is; or goes where its first fragment went; or is not understood.
fn write_ends(asm: &mut Asm, maps: Maps, hook: Hook, [foreign, take, later, pass]: [Label; 4]) {
    let [redirect, unknown] = std::array::from_fn(|_| asm.label());
    asm.jump(take);

    // A first fragment: the others of its packet go the same way, whoever had its name before.
    for (label, whose, way) in [(foreign, FLOW_LEAVE, pass), (take, FLOW_TAKE, redirect)] {
        asm.place(label);
        asm.load(Width::Word, R3, R10, IS_FIRST);
        asm.jump_if_imm(R3, If::Equal, 0, way);
        asm.store_imm(Width::Word, R10, WHOSE, whose.cast_signed());
        asm.load_map(R1, maps.fragments);
        asm.mov(R2, R10);
        asm.add_imm(R2, i32::from(FRAGMENT));
        asm.mov(R3, R10);
        asm.add_imm(R3, i32::from(WHOSE));
        asm.mov_imm(R4, 0);
        asm.call(Helper::MapUpdate);
        asm.jump(way);
    }
    asm.place(later);
    lookup(asm, maps.fragments, FRAGMENT);
    asm.jump_if_imm(R0, If::Equal, 0, unknown);
    asm.load(Width::Word, R0, R0, 0);
    asm.jump_if_imm(R0, If::NotEqual, FLOW_TAKE.cast_signed(), pass);

    asm.place(redirect);
    match hook {
        Hook::Xdp(absent) => {
            asm.load(Width::Word, R2, R6, MD_RX_QUEUE);
            asm.load_map(R1, maps.sockets);
            asm.mov_imm(R3, absent);
            asm.call(Helper::RedirectMap);
            asm.exit();
        }
        Hook::Behind(short) => behind::write(asm, short),
    }

    asm.place(unknown);
    if let Hook::Behind(short) = hook {
        behind::write_for_both(asm, short);
    }
    asm.place(pass);
    asm.mov_imm(R0, if matches!(hook, Hook::Xdp(_)) { XDP_PASS } else { TCX_NEXT });
    asm.exit();
}

/// The frame of a socket buffer, into R7 and R8. Its tag stands beside it, and only its first bytes lie in one piece.
fn write_buffer(asm: &mut Asm, pass: Label) {
    let [untagged, pull, ready] = std::array::from_fn(|_| asm.label());
    // For a group, or for another station that somebody listens to (a promiscuous interface).
    asm.load(Width::Word, R1, R6, SKB_TYPE);
    asm.jump_if_imm(R1, If::NotEqual, 0, pass);
    asm.load(Width::Word, R1, R6, SKB_VLAN_PRESENT);
    asm.jump_if_imm(R1, If::Equal, 0, untagged);
    // As below: VLAN 0 is a priority tag.
    asm.load(Width::Word, R1, R6, SKB_VLAN_TCI);
    asm.and_imm(R1, 0x0fff);
    asm.jump_if_imm(R1, If::NotEqual, 0, pass);
    asm.place(untagged);
    asm.load(Width::Word, R7, R6, SKB_DATA);
    asm.load(Width::Word, R8, R6, SKB_DATA_END);
    asm.mov(R3, R7);
    asm.add_imm(R3, HEADERS_USUAL);
    asm.jump_if(R3, If::Greater, R8, pull);
    asm.jump(ready);
    asm.place(pull);
    let short = asm.label();
    asm.load(Width::Word, R2, R6, SKB_LEN);
    asm.jump_if_imm(R2, If::Less, HEADERS_MAX, short);
    asm.mov_imm(R2, HEADERS_MAX);
    asm.place(short);
    asm.mov(R1, R6);
    asm.call(Helper::PullData);
    asm.load(Width::Word, R7, R6, SKB_DATA);
    asm.load(Width::Word, R8, R6, SKB_DATA_END);
    asm.place(ready);
}

/// Whether the link's header stands in front. Behind an XDP program in generic mode that takes frames in pieces, the kernel works
/// on a copy of the buffer in which the header's length is 0 (seen in Linux 6.18: `skb_copy_header` leaves `mac_len` out):
/// programs of this hook get the packet from its IP header on.
fn write_link(asm: &mut Asm, pass: Label, untagged: Label) {
    let [version, there] = std::array::from_fn(|_| asm.label());
    need(asm, R7, ETHER_HEADER, pass);
    // An IP header begins with its version. Few stations have addresses that begin so; of them it has to be asked.
    asm.load(Width::Byte, R3, R7, 0);
    asm.and_imm(R3, 0xf0);
    asm.jump_if_imm(R3, If::Equal, 0x40, version);
    asm.jump_if_imm(R3, If::NotEqual, 0x60, there);
    asm.place(version);
    asm.mov(R1, R6);
    asm.mov_imm(R2, 0);
    asm.mov(R3, R10);
    asm.add_imm(R3, i32::from(LINK));
    asm.mov_imm(R4, 8);
    asm.mov_imm(R5, FROM_LINK);
    asm.call(Helper::LoadBytesRelative);
    asm.jump_if_imm(R0, If::NotEqual, 0, pass);
    asm.load(Width::Double, R1, R10, LINK);
    asm.load(Width::Double, R3, R7, 0);
    asm.jump_if(R1, If::Equal, R3, there);
    asm.mov(R9, R7);
    asm.load(Width::Word, R3, R6, SKB_PROTOCOL);
    asm.jump(untagged);
    asm.place(there);
}

/// IPv4 (RFC 791): addresses into the keys, R5 behind the header, R4 the protocol. Fragments without ports go on at `later`.
fn write_ipv4(asm: &mut Asm, pass: Label, later: Label) {
    let whole = asm.label();
    need(asm, R9, IPV4_HEADER, pass);
    // Version 4 and a header of at least five words; options are stepped over.
    asm.load(Width::Byte, R5, R9, 0);
    asm.jump_if_imm(R5, If::Less, 0x45, pass);
    asm.jump_if_imm(R5, If::Greater, 0x4f, pass);
    asm.and_imm(R5, 0x0f);
    asm.shift_left(R5, 2);
    asm.add(R5, R9);
    asm.load(Width::Byte, R4, R9, 9);
    // All of the fragment key is written on every way: the verifier of older kernels does not see that only fragments use
    // it.
    for key in [TUPLE, FLOW, FLOW_PEER, FRAGMENT, FRAGMENT_PEER] {
        asm.store_imm(Width::Double, R10, key, 0);
        asm.store_imm(Width::Word, R10, key + 8, i32::from_ne_bytes([0, 0, 0xff, 0xff]));
    }
    copy_word(asm, R9, 16, &[TUPLE + 12, FLOW + 12, FRAGMENT + 12]);
    copy_word(asm, R9, 12, &[FLOW_PEER + 12, FRAGMENT_PEER + 12]);
    asm.load(Width::Half, R1, R9, 4);
    asm.store(Width::Word, R10, FRAGMENT_IDENT, R1);
    asm.store_imm(Width::Double, R10, IS_FIRST, 0);
    // More fragments, or an offset.
    asm.load(Width::Half, R3, R9, 6);
    asm.and_imm(R3, wire16(0x3fff));
    asm.jump_if_imm(R3, If::Equal, 0, whole);
    asm.jump_if_imm(R4, If::NotEqual, TCP, pass);
    asm.and_imm(R3, wire16(0x1fff));
    asm.jump_if_imm(R3, If::NotEqual, 0, later);
    asm.store_imm(Width::Word, R10, IS_FIRST, 1);
    asm.place(whole);
}

/// An ICMP error (RFC 792) quotes the packet that it is about: one that we sent, so its source is ours.
/// Peer and ports of the quoted packet go into the keys, its protocol into R4. Everything else that is ICMP
/// passes: the kernel answers pings.
fn write_icmpv4(asm: &mut Asm, pass: Label) {
    const QUOTED: i16 = ICMP_HEADER;
    let error = asm.label();
    need(asm, R5, i32::from(QUOTED) + IPV4_HEADER, pass);
    asm.load(Width::Byte, R3, R5, 0);
    // Destination unreachable (with "fragmentation needed"), time exceeded, parameter problem.
    asm.jump_if_imm(R3, If::Equal, 3, error);
    asm.jump_if_imm(R3, If::Equal, 11, error);
    asm.jump_if_imm(R3, If::NotEqual, 12, pass);
    asm.place(error);
    // Errors go to who sent the packet: a quote of someone else's is a lie.
    asm.load(Width::Word, R3, R5, QUOTED + 12);
    asm.load(Width::Word, R1, R9, 16);
    asm.jump_if(R1, If::NotEqual, R3, pass);
    copy_word(asm, R5, QUOTED + 16, &[FLOW_PEER + 12]);
    // Only the first fragment has ports.
    asm.load(Width::Half, R3, R5, QUOTED + 6);
    asm.and_imm(R3, wire16(0x1fff));
    asm.jump_if_imm(R3, If::NotEqual, 0, pass);
    asm.load(Width::Byte, R4, R5, QUOTED + 9);
    asm.load(Width::Byte, R1, R5, QUOTED);
    asm.jump_if_imm(R1, If::Less, 0x45, pass);
    asm.jump_if_imm(R1, If::Greater, 0x4f, pass);
    asm.and_imm(R1, 0x0f);
    asm.shift_left(R1, 2);
    asm.add(R1, R5);
    asm.mov(R5, R1);
    asm.add_imm(R5, i32::from(QUOTED));
}

/// The same for ICMPv6 (RFC 4443): types below 128 are errors, 1 to 4 are the ones that exist.
fn write_icmpv6(asm: &mut Asm, pass: Label) {
    const QUOTED: i16 = ICMP_HEADER;
    need(asm, R5, i32::from(QUOTED) + IPV6_HEADER, pass);
    asm.load(Width::Byte, R3, R5, 0);
    asm.jump_if_imm(R3, If::Equal, 0, pass);
    asm.jump_if_imm(R3, If::Greater, 4, pass);
    for word in [0, 4, 8, 12] {
        asm.load(Width::Word, R3, R5, QUOTED + 8 + word);
        asm.load(Width::Word, R1, R9, 24 + word);
        asm.jump_if(R1, If::NotEqual, R3, pass);
        copy_word(asm, R5, QUOTED + 24 + word, &[FLOW_PEER + word]);
    }
    asm.load(Width::Byte, R4, R5, QUOTED + 6);
    asm.add_imm(R5, i32::from(QUOTED) + IPV6_HEADER);
}

/// IPv6 (RFC 8200): the same. Extension headers that are not known pass to the kernel by their protocol number.
fn write_ipv6(asm: &mut Asm, pass: Label, later: Label) {
    let whole = asm.label();
    need(asm, R9, IPV6_HEADER, pass);
    asm.load(Width::Byte, R4, R9, 6);
    asm.mov(R5, R9);
    asm.add_imm(R5, IPV6_HEADER);
    for word in [0, 4, 8, 12] {
        copy_word(asm, R9, 24 + word, &[TUPLE + word, FLOW + word, FRAGMENT + word]);
        copy_word(asm, R9, 8 + word, &[FLOW_PEER + word, FRAGMENT_PEER + word]);
    }
    asm.store_imm(Width::Double, R10, IS_FIRST, 0);
    asm.store_imm(Width::Word, R10, FRAGMENT_IDENT, 0);
    write_extensions(asm, pass);
    asm.jump_if_imm(R4, If::NotEqual, FRAGMENT_V6, whole);
    // RFC 8200 §4.5: next header, a byte of zero, offset and "more", identification.
    need(asm, R5, 8, pass);
    asm.load(Width::Byte, R4, R5, 0);
    asm.jump_if_imm(R4, If::NotEqual, TCP, pass);
    copy_word(asm, R5, 4, &[FRAGMENT_IDENT]);
    asm.load(Width::Half, R3, R5, 2);
    asm.add_imm(R5, 8);
    asm.mov(R1, R3);
    asm.and_imm(R1, wire16(0xfff8));
    asm.jump_if_imm(R1, If::NotEqual, 0, later);
    // Without "more" either it is whole (RFC 6946).
    asm.and_imm(R3, wire16(0x0001));
    asm.jump_if_imm(R3, If::Equal, 0, whole);
    asm.store_imm(Width::Word, R10, IS_FIRST, 1);
    asm.place(whole);
}

/// Steps over options and routes: R4 is the next header, R5 where it begins.
fn write_extensions(asm: &mut Asm, pass: Label) {
    let end = asm.label();
    for _ in 0..EXTENSIONS_MAX {
        let step = asm.label();
        asm.jump_if_imm(R4, If::Equal, HOP_BY_HOP, step);
        asm.jump_if_imm(R4, If::Equal, DESTINATION, step);
        asm.jump_if_imm(R4, If::NotEqual, ROUTING, end);
        // RFC 8200 §4.4: where the route goes on, the packet is not for us.
        need(asm, R5, 8, pass);
        asm.load(Width::Byte, R3, R5, 3);
        asm.jump_if_imm(R3, If::NotEqual, 0, pass);
        asm.place(step);
        need(asm, R5, 8, pass);
        asm.load(Width::Byte, R4, R5, 0);
        asm.load(Width::Byte, R3, R5, 1);
        asm.shift_left(R3, 3);
        asm.add_imm(R3, 8);
        asm.add(R5, R3);
    }
    asm.place(end);
}

/// Ports and protocol complete the keys.
fn write_keys(asm: &mut Asm, pass: Label) {
    let known = asm.label();
    asm.jump_if_imm(R4, If::Equal, TCP, known);
    asm.jump_if_imm(R4, If::NotEqual, UDP, pass);
    asm.place(known);
    asm.store(Width::Half, R10, TUPLE_PORT, R1);
    asm.store(Width::Half, R10, FLOW_LOCAL_PORT, R1);
    asm.store(Width::Half, R10, FLOW_PEER_PORT, R3);
    // The protocol and the zero bytes behind it; the byte order of the machine decides which is first.
    asm.store_imm(Width::Half, R10, TUPLE_PROTO, 0);
    asm.store(Width::Byte, R10, TUPLE_PROTO, R4);
    asm.store_imm(Width::Word, R10, FLOW_PROTO, 0);
    asm.store(Width::Byte, R10, FLOW_PROTO, R4);
}

/// A registered flow decides; else a registered tuple does, or the range of its address. What is ours by those falls through.
fn write_lookups(asm: &mut Asm, maps: Maps, [pass, tuple, take]: [Label; 3]) {
    asm.load_map_value(R1, maps.state);
    asm.load(Width::Word, R1, R1, 0);
    asm.jump_if_imm(R1, If::Equal, 0, tuple);
    lookup(asm, maps.flows, FLOW);
    asm.jump_if_imm(R0, If::Equal, 0, tuple);
    asm.load(Width::Word, R0, R0, 0);
    let take_flow = i32::from_ne_bytes(FLOW_TAKE.to_ne_bytes());
    asm.jump_if_imm(R0, If::Equal, take_flow, take);
    asm.jump(pass);

    asm.place(tuple);
    let [ranges, kernels, ours] = std::array::from_fn(|_| asm.label());
    lookup(asm, maps.tuples, TUPLE);
    asm.jump_if_imm(R0, If::Equal, 0, ranges);
    asm.load(Width::Word, R1, R0, 0);
    asm.jump_if_imm(R1, If::Equal, TUPLE_OURS.cast_signed(), ours);
    asm.jump(kernels);

    asm.place(ranges);
    asm.load_map_value(R1, maps.state);
    asm.load(Width::Word, R1, R1, RANGES_FROM);
    load_port(asm, R3);
    asm.jump_if(R3, If::Less, R1, pass);
    asm.store_imm(Width::Half, R10, TUPLE_PORT, 0);
    asm.store_imm(Width::Byte, R10, TUPLE_RANGE, 1);
    lookup(asm, maps.tuples, TUPLE);
    asm.jump_if_imm(R0, If::Equal, 0, pass);
    load_port(asm, R3);
    asm.load(Width::Half, R1, R0, 0);
    asm.jump_if(R3, If::Less, R1, pass);
    asm.load(Width::Half, R1, R0, 2);
    asm.jump_if(R3, If::Greater, R1, pass);
    asm.place(kernels);
    write_kernels(asm, pass);
    asm.place(ours);
}

/// A port of a range may be one that sockets of the kernel's have: connections, and those that listen, to which SYNs go and
/// nothing else (RFC 9293 §3.10.7.2), so that a connection of ours may have the same port. Where we listen, the port stands by itself.
fn write_kernels(asm: &mut Asm, pass: Label) {
    let [v6, look, ours] = std::array::from_fn(|_| asm.label());
    asm.load(Width::Byte, R3, R10, FLOW_PROTO);
    asm.jump_if_imm(R3, If::NotEqual, TCP, ours);
    // `struct bpf_sock_tuple`: source, destination, and their ports.
    asm.load(Width::Double, R1, R10, FLOW);
    asm.jump_if_imm(R1, If::NotEqual, 0, v6);
    asm.load(Width::Half, R1, R10, FLOW + 8);
    asm.jump_if_imm(R1, If::NotEqual, 0, v6);
    asm.load(Width::Half, R1, R10, FLOW + 10);
    asm.jump_if_imm(R1, If::NotEqual, 0xffff, v6);
    for (from, to) in [(FLOW_PEER + 12, 0), (FLOW + 12, 4)] {
        asm.load(Width::Word, R1, R10, from);
        asm.store(Width::Word, R10, SOCKET + to, R1);
    }
    write_ports(asm, SOCKET + 8);
    asm.mov_imm(R3, 12);
    asm.jump(look);
    asm.place(v6);
    for (from, to) in [(FLOW_PEER, 0), (FLOW_PEER + 8, 8), (FLOW, 16), (FLOW + 8, 24)] {
        asm.load(Width::Double, R1, R10, from);
        asm.store(Width::Double, R10, SOCKET + to, R1);
    }
    write_ports(asm, SOCKET + 32);
    asm.mov_imm(R3, 36);
    asm.place(look);
    asm.mov(R1, R6);
    asm.mov(R2, R10);
    asm.add_imm(R2, i32::from(SOCKET));
    asm.mov_imm(R4, THIS_NAMESPACE);
    asm.mov_imm(R5, 0);
    asm.call(Helper::SocketLookupTcp);
    asm.jump_if_imm(R0, If::Equal, 0, ours);
    asm.load(Width::Word, R1, R0, SOCK_STATE);
    asm.store(Width::Word, R10, STATE, R1);
    asm.mov(R1, R0);
    asm.call(Helper::SocketRelease);
    asm.load(Width::Word, R1, R10, STATE);
    asm.jump_if_imm(R1, If::NotEqual, TCP_LISTEN, pass);
    asm.load(Width::Byte, R1, R10, FLAGS);
    asm.and_imm(R1, SYN | ACK);
    asm.jump_if_imm(R1, If::Equal, SYN, pass);
    asm.place(ours);
}

/// The peer's port and ours, to a place on the stack.
fn write_ports(asm: &mut Asm, to: i16) {
    for (from, to) in [(FLOW_PEER_PORT, to), (FLOW_LOCAL_PORT, to + 2)] {
        asm.load(Width::Half, R1, R10, from);
        asm.store(Width::Half, R10, to, R1);
    }
}

/// The local port as a number, into `to`.
fn load_port(asm: &mut Asm, to: Reg) {
    asm.load(Width::Byte, to, R10, FLOW_LOCAL_PORT);
    asm.shift_left(to, 8);
    asm.load(Width::Byte, R2, R10, FLOW_LOCAL_PORT + 1);
    asm.add(to, R2);
}

/// `r0 = map[key on the stack]`, or null.
fn lookup(asm: &mut Asm, map: i32, key: i16) {
    asm.load_map(R1, map);
    asm.mov(R2, R10);
    asm.add_imm(R2, i32::from(key));
    asm.call(Helper::MapLookup);
}
