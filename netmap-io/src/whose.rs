//! Whose a frame is: one table for everything that steers, whatever it is made of.
//!
//! Registered are TCP 10.0.0.1:80 and [fd00::1]:80, and UDP 10.0.0.1:53. What is not ours has to reach the kernel.

use std::net::{IpAddr, Ipv6Addr};

use crate::testing::Frame;
use crate::{PortError, Proto, Steering, Tuple};

pub(crate) const US4: [u8; 4] = [10, 0, 0, 1];
pub(crate) const PEER4: [u8; 4] = [10, 0, 0, 2];
pub(crate) const US6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// Registers what the table asks for.
pub(crate) fn register(steering: &dyn Steering) -> Result<(), PortError> {
    steering.register(Tuple::new(US4, 80, Proto::TCP))?;
    steering.register(Tuple::new(US6, 80, Proto::TCP))?;
    steering.register(Tuple::new(US4, 53, Proto::UDP))
}

/// A frame, and whether it is ours.
pub(crate) struct Case {
    pub(crate) what: String,
    pub(crate) frame: Vec<u8>,
    pub(crate) ours: bool,
    /// A fragment before its first one: nobody knows yet.
    pub(crate) unknown: bool,
}

impl Case {
    /// The frame for a station of that address, unless it is for a group.
    pub(crate) fn to(&self, mac: [u8; 6]) -> Vec<u8> {
        let mut frame = self.frame.clone();
        if frame[0] & 1 == 0 {
            frame[..6].copy_from_slice(&mac);
        }
        frame
    }
}

/// The table. Its order matters: fragments follow their first.
pub(crate) fn cases() -> Vec<Case> {
    let mut table = Table { cases: Vec::new() };
    table.plain();
    table.on_the_link();
    table.tunnels();
    table.fragments();
    table.extensions();
    table.errors();
    table.cases
}

fn tcp4(port: u16) -> Vec<u8> {
    Frame::new(Proto::TCP, (PEER4.into(), 40_000), (US4.into(), port)).build()
}

fn tcp6(port: u16) -> Vec<u8> {
    Frame::new(Proto::TCP, (PEER6.into(), 40_000), (US6.into(), port)).build()
}

fn edited(mut frame: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    changes.iter().for_each(|(at, value)| frame[*at] = *value);
    frame
}

/// Bytes put in at a place.
fn spliced(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame.splice(at..at, bytes.iter().copied());
    frame
}

/// IPv6 with headers between the first one and TCP. `first` says what they begin with.
fn with_headers(port: u16, first: u8, headers: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + headers.len()).unwrap().to_be_bytes();
    let frame = edited(tcp6(port), &[(20, first), (18, len[0]), (19, len[1])]);
    spliced(frame, 54, headers)
}

/// The IP packet of a frame that was sent, as a router quotes it: header and eight bytes.
pub(crate) fn sent(from: IpAddr, port: u16, to: IpAddr) -> Vec<u8> {
    let frame = Frame::new(Proto::TCP, (from, port), (to, 40_000)).build();
    frame[14..if from.is_ipv4() { 42 } else { 62 }].to_vec()
}

/// An ICMP error from a router to us.
pub(crate) fn icmp4(kind: u8, quoted: &[u8]) -> Vec<u8> {
    let mut frame = Frame::new(Proto::UDP, ([10, 0, 0, 9].into(), 0), (US4.into(), 0)).build();
    frame.truncate(34);
    let total = u16::try_from(28 + quoted.len()).unwrap().to_be_bytes();
    frame = edited(frame, &[(23, 1), (16, total[0]), (17, total[1])]);
    frame.extend([kind, 4, 0, 0, 0, 0, 0, 0]);
    frame.extend(quoted);
    frame
}

fn icmp6(kind: u8, quoted: &[u8]) -> Vec<u8> {
    let router = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9);
    let mut frame = Frame::new(Proto::UDP, (router.into(), 0), (US6.into(), 0)).build();
    frame.truncate(54);
    let len = u16::try_from(8 + quoted.len()).unwrap().to_be_bytes();
    frame = edited(frame, &[(20, 58), (18, len[0]), (19, len[1])]);
    frame.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(quoted);
    frame
}

struct Table {
    cases: Vec<Case>,
}

impl Table {
    fn add(&mut self, what: &str, frame: Vec<u8>, ours: bool) {
        self.cases.push(Case { what: what.to_owned(), frame, ours, unknown: false });
    }

    fn early(&mut self, what: &str, frame: Vec<u8>) {
        self.cases.push(Case { what: what.to_owned(), frame, ours: false, unknown: true });
    }

    fn plain(&mut self) {
        self.add("a registered IPv4 tuple", tcp4(80), true);
        self.add("another port", tcp4(81), false);
        self.add("a registered IPv6 tuple", tcp6(80), true);
        self.add("another IPv6 port", tcp6(81), false);
        let udp = |port| Frame::new(Proto::UDP, (PEER4.into(), 40_000), (US4.into(), port)).build();
        self.add("the same port of UDP", udp(80), false);
        self.add("a registered UDP tuple", udp(53), true);
        self.add("a TCP port that is registered for UDP", tcp4(53), false);
        let other = Frame::new(Proto::TCP, (PEER4.into(), 40_000), ([10, 0, 0, 9].into(), 80));
        self.add("another address", other.build(), false);
        let back = Frame::new(Proto::TCP, (US4.into(), 80), (PEER4.into(), 40_000));
        self.add("our tuple as the source", back.build(), false);
        self.add("do not fragment", edited(tcp4(80), &[(20, 0x40)]), true);
        self.add("ICMP", edited(tcp4(80), &[(23, 1)]), false);
        self.add("SCTP", edited(tcp4(80), &[(23, 132)]), false);
        self.add("IP version 5", edited(tcp4(80), &[(14, 0x55)]), false);
        self.add("a header of four words", edited(tcp4(80), &[(14, 0x44)]), false);
        let options = spliced(edited(tcp4(80), &[(14, 0x46), (17, 44)]), 34, &[1, 1, 1, 0]);
        self.add("IPv4 options", options.clone(), true);
        self.add("options that are not there", edited(options, &[(14, 0x4f)]), false);
        for (frame, ports_end) in [(tcp4(80), 38), (tcp6(80), 58)] {
            // Less than a link header no kernel sends.
            for len in 14..frame.len() {
                self.add(&format!("the first {len} bytes"), frame[..len].to_vec(), len >= ports_end);
            }
        }
    }

    fn on_the_link(&mut self) {
        self.add("ARP", edited(tcp4(80), &[(12, 8), (13, 6)]), false);
        let tagged = |tag: [u8; 4]| spliced(tcp4(80), 12, &tag);
        self.add("VLAN 0 with a priority", tagged([0x81, 0, 0xe0, 0]), true);
        self.add("VLAN 5", tagged([0x81, 0, 0, 5]), false);
        self.add("VLAN 256, whose low byte is 0", tagged([0x81, 0, 1, 0]), false);
        self.add("a provider's tag", tagged([0x88, 0xa8, 0, 5]), false);
        self.add("two tags", spliced(tagged([0x81, 0, 0, 5]), 12, &[0x88, 0xa8, 0, 6]), false);
        self.add("for everybody on the link", edited(tcp4(80), &[(0, 0xff)]), false);
        self.add("for a group on the link", edited(tcp6(80), &[(0, 0x33), (1, 0x33)]), false);
        let group = |to: [u8; 4]| {
            let frame = Frame::new(Proto::TCP, (PEER4.into(), 40_000), (to.into(), 80));
            frame.macs([1, 0, 0x5e, 0, 0, 1], [2, 0, 0, 0, 0, 2]).build()
        };
        self.add("for a group", group([224, 0, 0, 1]), false);
        self.add("for everybody", group([255; 4]), false);
    }

    /// Packets of ours inside of others, which are the kernel's to unpack or to verify.
    fn tunnels(&mut self) {
        let inside = |proto: u8, header: &[u8]| {
            let outer = edited(tcp4(80), &[(23, proto)])[..34].to_vec();
            [&outer, header, &tcp4(80)[14..]].concat()
        };
        self.add("IP in IP", inside(4, &[]), false);
        self.add("GRE", inside(47, &[0, 0, 8, 0]), false);
        self.add("IPv6 in IPv4", inside(41, &[]), false);
        self.add("ESP", inside(50, &[0, 0, 0, 1, 0, 80, 0, 80]), false);
        let ah = [6, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
        let behind_ah = spliced(edited(tcp4(80), &[(23, 51)]), 34, &ah);
        self.add("AH", behind_ah, false);
        let vxlan = Frame::new(Proto::UDP, (PEER4.into(), 40_000), (US4.into(), 4789));
        let payload = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &tcp4(80)].concat();
        self.add("VXLAN", vxlan.payload(&payload).build(), false);
        self.add("AH in IPv6", with_headers(80, 51, &ah), false);
        self.add("ESP in IPv6", with_headers(80, 50, &[0, 0, 0, 1, 0, 80, 0, 80]), false);
        let inner = &tcp6(80)[14..];
        self.add("IPv6 in IPv6", spliced(edited(tcp6(80), &[(20, 41)]), 54, inner), false);
    }

    fn fragments(&mut self) {
        const MORE: u8 = 0x20;
        let v4 = |port, ident: u8, flags: u8, offset: u8| {
            edited(tcp4(port), &[(19, ident), (20, flags), (21, offset)])
        };
        self.early("the last fragment, before the first", v4(80, 7, 0, 9));
        self.add("the first", v4(80, 7, MORE, 0), true);
        self.add("one in the middle", v4(1, 7, MORE, 4), true);
        self.add("one that overlaps it", v4(1, 7, MORE, 3), true);
        self.add("the last", v4(1, 7, 0, 9), true);
        self.add("the last, again", v4(1, 7, 0, 9), true);
        self.early("a fragment of another packet", v4(80, 8, 0, 9));
        self.add("a first to another port", v4(81, 9, MORE, 0), false);
        self.add("what follows it", v4(80, 9, 0, 9), false);
        self.early("a fragment from somebody else", edited(v4(80, 7, 0, 9), &[(29, 77)]));
        self.add("a fragment of UDP", edited(v4(53, 10, MORE, 0), &[(23, 17)]), false);
        // The number comes again, for a packet of the kernel's.
        self.add("a first to another port, whose name was ours", v4(81, 7, MORE, 0), false);
        self.add("what follows that", v4(80, 7, 0, 9), false);
        self.add("and ours once more", v4(80, 7, MORE, 0), true);
        self.add("what follows ours", v4(1, 7, 0, 9), true);

        let v6 = |port, ident: u8, offset: u16, next: u8| {
            let [high, low] = offset.to_be_bytes();
            with_headers(port, 44, &[next, 0, high, low, 0, 0, 0, ident])
        };
        self.early("IPv6: the last fragment, before the first", v6(80, 7, 64, 6));
        self.add("IPv6: the first", v6(80, 7, 1, 6), true);
        self.add("IPv6: the last", v6(1, 7, 64, 6), true);
        self.early("IPv6: a fragment of another packet", v6(80, 8, 64, 6));
        self.add("IPv6: a first to another port", v6(81, 9, 1, 6), false);
        self.add("IPv6: what follows it", v6(80, 9, 64, 6), false);
        self.add("IPv6: all of a packet", v6(80, 10, 0, 6), true);
        self.add("IPv6: all of a datagram", v6(53, 10, 0, 17), false);
        self.add("IPv6: more headers in fragments", v6(80, 11, 1, 60), false);
        self.add("IPv6: a first to another port, whose name was ours", v6(81, 7, 1, 6), false);
        self.add("IPv6: what follows that", v6(80, 7, 64, 6), false);
        let hops = |ident: u8, offset: u8| {
            let headers = [44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, offset, 0, 0, 0, ident];
            with_headers(if offset == 1 { 80 } else { 1 }, 0, &headers)
        };
        self.add("IPv6: a first with options", hops(12, 1), true);
        self.add("IPv6: the last with options", hops(12, 64), true);
    }

    /// Of each eight bytes, unless they say that they have more.
    fn extensions(&mut self) {
        let header = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let route = |next: u8, left: u8| [next, 0, 4, left, 0, 0, 0, 0];
        let chain = |first, headers: &[[u8; 8]]| with_headers(80, first, &headers.concat());
        self.add("hop-by-hop options", chain(0, &[header(6)]), true);
        self.add("destination options", chain(60, &[header(6)]), true);
        self.add("a route that is used up", chain(43, &[route(6, 0)]), true);
        self.add("a route that goes on", chain(43, &[route(6, 1)]), false);
        let all = [header(60), header(43), route(60, 0), header(6)];
        self.add("all of them", chain(0, &all), true);
        self.add("to another port", with_headers(81, 60, &header(6)), false);
        self.add("long options", with_headers(80, 60, &[&[6, 1][..], &[0; 14]].concat()), true);
        self.add("five of them", chain(60, &[[60, 0, 1, 4, 0, 0, 0, 0]; 5]), false);
        self.add("options behind the end", chain(60, &[[6, 9, 1, 4, 0, 0, 0, 0]]), false);
        self.add("no next header", chain(60, &[header(59)]), false);
        self.add("mobility", chain(135, &[header(6)]), false);
        let whole = chain(0, &[header(60), header(6)]);
        for len in 54..74 {
            self.add(&format!("options, the first {len} bytes"), whole[..len].to_vec(), len >= 74);
        }
    }

    /// Errors about what we sent.
    fn errors(&mut self) {
        let ours = sent(US4.into(), 80, PEER4.into());
        for (kind, want) in [(3, true), (11, true), (12, true), (0, false), (8, false), (5, false)] {
            self.add(&format!("ICMP type {kind}"), icmp4(kind, &ours), want);
        }
        self.add("about a packet of the kernel", icmp4(3, &sent(US4.into(), 81, PEER4.into())), false);
        let lie = sent([10, 0, 0, 7].into(), 80, PEER4.into());
        self.add("about a packet that somebody else sent", icmp4(3, &lie), false);
        let options = spliced(edited(ours.clone(), &[(0, 0x46)]), 20, &[1, 1, 1, 0]);
        self.add("about a packet with options", icmp4(3, &options), true);
        self.add("about a later fragment", icmp4(3, &edited(ours.clone(), &[(7, 1)])), false);
        self.add("about a tunnel's packet", icmp4(3, &edited(ours.clone(), &[(9, 47)])), false);
        self.add("in fragments", edited(icmp4(3, &ours), &[(20, 0x20)]), false);
        let whole = icmp4(3, &ours);
        for len in 34..whole.len() {
            self.add(&format!("ICMP, the first {len} bytes"), whole[..len].to_vec(), len >= 34 + 8 + 20 + 4);
        }

        let ours = sent(US6.into(), 80, PEER6.into());
        for kind in [1, 2, 3, 4, 0, 5, 100, 128, 135] {
            self.add(&format!("ICMPv6 type {kind}"), icmp6(kind, &ours), (1..=4).contains(&kind));
        }
        self.add("IPv6: about a packet of the kernel", icmp6(1, &sent(US6.into(), 81, PEER6.into())), false);
        let lie = sent(PEER6.into(), 80, PEER6.into());
        self.add("IPv6: about a packet that somebody else sent", icmp6(1, &lie), false);
        let options = spliced(edited(icmp6(2, &ours), &[(20, 60)]), 54, &[58, 0, 1, 4, 0, 0, 0, 0]);
        self.add("IPv6: an error behind options", options, true);
        let headers = spliced(edited(ours.clone(), &[(6, 60)]), 40, &[6, 0, 1, 4, 0, 0, 0, 0]);
        self.add("IPv6: about a packet with options, which we never sent", icmp6(1, &headers), false);
        let whole = icmp6(2, &ours);
        for len in 54..whole.len() {
            self.add(
                &format!("ICMPv6, the first {len} bytes"),
                whole[..len].to_vec(),
                len >= 54 + 8 + 40 + 4,
            );
        }
    }
}
