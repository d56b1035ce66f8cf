//! The engine as a host of its own on a device that the kernel does not share with it: TAP, pipe, VALE.
//!
//! Elsewhere the engine lives behind the kernel's addresses and the kernel answers ARP; here it has addresses by the
//! device string (`tap:utcp0,addr=10.9.0.2/24,gw=10.9.0.1`), finds its neighbours and answers to them itself.
//!
//! ```text
//!  program ─ TCP ─┐                                        ┌─ kernel, or another engine
//!                 ├─ Station 10.9.0.2 ══ TAP, pipe, VALE ══┤  10.9.0.1
//!  ARP, ND, echo ─┘   addresses, gateways, neighbours      └─ …
//! ```
//!
//! Only what a TCP host must do is done: ARP and neighbour discovery in both directions, echo replies. Everything else
//! that comes is dropped and counted.

mod config;
mod neighbours;

#[cfg(test)]
mod tests;

use utcp_netmap_io::{Caps, TxRing};
use utcp_proto::Instant;
use utcp_proto::wire::arp::{self, Operation};
use utcp_proto::wire::ethernet::{self, BROADCAST, Mac};
use utcp_proto::wire::ndisc::{self, Neighbor};
use utcp_proto::wire::{ICMPV4, ICMPV6, IpAddr, TCP, WireError, icmpv4, icmpv6, ipv4, ipv6};

use crate::host::Prefix;

pub use config::{DeviceConfig, DeviceConfigError, StationConfig, split_devices};
pub use neighbours::{Answer, Learnt, Neighbours};

const HOP_LIMIT: u8 = 64;
/// RFC 4861 §7.1: a message of neighbour discovery that did not cross a router has this hop limit.
const ND_HOP_LIMIT: u8 = 255;
/// All nodes of the link (RFC 4291 §2.7.1).
const ALL_NODES: IpAddr = IpAddr([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// What a frame was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// TCP or an error about it, to one of our addresses: the shard goes on with it.
    Ours,
    /// Done with: an echo.
    Done,
    /// Done with: a question or an answer about link addresses. Stations of the same host on other queues should hear it.
    Neighbours,
    /// Not for us, or nothing that we know.
    Foreign,
}

/// The way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Our address to come from.
    pub source: IpAddr,
    /// Who takes the packet: the destination itself, or a gateway.
    pub next: IpAddr,
}

/// Where answers go.
enum Out<'a, 'r> {
    Ring(&'a mut TxRing<'r>),
    /// Somebody else has answered.
    Nowhere,
}

/// Addresses, gateways and neighbours of one port.
#[derive(Debug)]
pub struct Station {
    mac: Mac,
    /// Bytes of virtio-net header in front of what we send; all zero: nothing is left to the device.
    vnet: usize,
    /// Where there is exactly one other station, nobody is asked.
    peer: Option<Mac>,
    addresses: Vec<(IpAddr, Prefix)>,
    gateways: Vec<IpAddr>,
    neighbours: Neighbours,
    /// Our addresses are told to the link with the first poll.
    announced: bool,
    /// Someone else on the link claims an address of ours.
    conflicts: u64,
}

impl Station {
    /// The station of `config` on a port.
    #[must_use]
    pub fn new(config: &StationConfig, caps: &Caps) -> Self {
        let addresses = config.addresses.iter().map(|&(addr, len)| (addr, Prefix::new(addr, len))).collect();
        Self {
            mac: caps.mac,
            vnet: usize::from(caps.vnet_header),
            peer: caps.peer_mac,
            addresses,
            gateways: config.gateways.clone(),
            neighbours: Neighbours::default(),
            announced: false,
            conflicts: 0,
        }
    }

    /// Our addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|(own, _)| *own)
    }

    /// Whether `addr` is ours.
    #[must_use]
    pub fn owns(&self, addr: IpAddr) -> bool {
        self.addresses.iter().any(|(own, _)| *own == addr)
    }

    /// The way to a destination on the link.
    #[must_use]
    pub fn on_link(&self, to: IpAddr) -> Option<Hop> {
        let near = |(own, prefix): &&(IpAddr, Prefix)| own.is_v4() == to.is_v4() && prefix.contains(to);
        let (source, _) = self.addresses.iter().filter(near).max_by_key(|(_, prefix)| prefix.len())?;
        Some(Hop { source: *source, next: to })
    }

    /// The way by a gateway.
    #[must_use]
    pub fn by_gateway(&self, to: IpAddr) -> Option<Hop> {
        let gateway = *self.gateways.iter().find(|gateway| gateway.is_v4() == to.is_v4())?;
        Some(Hop { source: self.on_link(gateway)?.source, next: gateway })
    }

    /// The link address of a next hop; asks for it if it is not known.
    pub fn resolve(&mut self, now: Instant, next: IpAddr) -> Option<Mac> {
        if self.peer.is_some() {
            return self.peer;
        }
        match self.neighbours.want(now, next) {
            Answer::At(mac) => Some(mac),
            Answer::Asking => None,
        }
    }

    /// The link address of a next hop, if it is known.
    #[must_use]
    pub fn link_address(&self, next: IpAddr) -> Option<Mac> {
        self.peer.or_else(|| self.neighbours.at(next))
    }

    /// A segment to `to` was not answered: perhaps whoever takes it has moved.
    pub fn doubt(&mut self, now: Instant, to: IpAddr) {
        if let Some(hop) = self.on_link(to).or_else(|| self.by_gateway(to)) {
            self.neighbours.doubt(now, hop.next);
        }
    }

    /// Whether a neighbour has another link address, or has one at last, since the last call.
    pub fn take_news(&mut self) -> bool {
        self.neighbours.take_news()
    }

    /// Times that someone else claimed an address of ours.
    #[must_use]
    pub fn conflicts(&self) -> u64 {
        self.conflicts
    }

    /// When [`Self::poll`] has work.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.announced { self.neighbours.next_deadline() } else { Some(Instant::ZERO) }
    }

    /// Asks what is to be asked now. What finds no room is asked again later.
    pub fn poll(&mut self, now: Instant, tx: &mut TxRing<'_>) {
        let tx = &mut Out::Ring(tx);
        if !self.announced {
            self.announced = true;
            self.announce(tx);
        }
        while let Some((target, mac)) = self.neighbours.poll_ask(now) {
            if let Some(Hop { source, .. }) = self.on_link(target) {
                self.ask(source, target, mac, tx);
            }
        }
    }

    /// Whoever knows our addresses from before learns where they are now (RFC 5227 §2.3, RFC 4861 §7.2.6).
    fn announce(&self, tx: &mut Out<'_, '_>) {
        if self.peer.is_some() {
            return;
        }
        for &(own, _) in &self.addresses {
            if own.is_v4() {
                self.send_arp(
                    tx,
                    BROADCAST,
                    &arp::Repr {
                        operation: Operation::Request,
                        sender_mac: self.mac,
                        sender_ip: own,
                        target_mac: [0; 6],
                        target_ip: own,
                    },
                );
            } else {
                let advert = Neighbor::Advert {
                    target: own,
                    mac: Some(self.mac),
                    router: false,
                    solicited: false,
                    overrides: true,
                };
                self.send_neighbor(tx, ethernet::multicast_v6(ALL_NODES), own, ALL_NODES, &advert);
            }
        }
    }

    fn ask(&self, source: IpAddr, target: IpAddr, known: Option<Mac>, tx: &mut Out<'_, '_>) {
        if target.is_v4() {
            let request = arp::Repr {
                operation: Operation::Request,
                sender_mac: self.mac,
                sender_ip: source,
                target_mac: [0; 6],
                target_ip: target,
            };
            return self.send_arp(tx, known.unwrap_or(BROADCAST), &request);
        }
        let solicit = Neighbor::Solicit { target, source: Some(self.mac) };
        let group = ndisc::solicited_node(target);
        let (mac, dst) = match known {
            Some(mac) => (mac, target),
            None => (ethernet::multicast_v6(group), group),
        };
        self.send_neighbor(tx, mac, source, dst, &solicit);
    }

    /// Whether a frame is an IPv4 packet with TCP for one of our addresses, sent to us alone: what nearly all frames are, told
    /// by a few bytes. Whoever takes it in checks the rest.
    #[must_use]
    pub fn is_plainly_ours(&self, frame: &[u8]) -> bool {
        let Some((&[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1], packet)) =
            frame.split_first_chunk()
        else {
            return false;
        };
        let Some(&[0x45, .., a, b, c, d]) = packet.first_chunk::<20>() else { return false };
        let whole = packet[6] & 0x3f == 0 && packet[7] == 0;
        let ours = [d0, d1, d2, d3, d4, d5] == self.mac && [s0, s1, s2, s3, s4, s5] != self.mac;
        ours && [t0, t1] == [8, 0] && whole && packet[9] == TCP && self.owns(IpAddr::v4([a, b, c, d]))
    }

    /// A frame came; answers go to `tx` at once.
    pub fn on_frame(&mut self, now: Instant, frame: &[u8], tx: &mut TxRing<'_>) -> Verdict {
        // A malformed frame is as foreign as any other.
        self.understand(now, frame, &mut Out::Ring(tx)).unwrap_or(Verdict::Foreign)
    }

    /// A frame that came to another queue of this device, where it was answered.
    pub fn hear(&mut self, now: Instant, frame: &[u8]) -> Verdict {
        self.understand(now, frame, &mut Out::Nowhere).unwrap_or(Verdict::Foreign)
    }

    fn understand(&mut self, now: Instant, frame: &[u8], tx: &mut Out<'_, '_>) -> Result<Verdict, WireError> {
        let (link, at) = ethernet::parse(frame)?;
        let group = link.dst[0] & 1 == 1;
        if link.vlan.is_some() || !(group || link.dst == self.mac) || link.src == self.mac {
            return Ok(Verdict::Foreign);
        }
        let packet = frame.get(at..).ok_or(WireError::Truncated)?;
        match link.ethertype {
            ethernet::ARP => self.on_arp(now, &arp::parse(packet)?, tx),
            ethernet::IPV4 => {
                let (ip, range) = ipv4::parse(packet)?;
                // RFC 1122 §3.3.6: nothing that came by a link-layer broadcast is for a connection.
                if group || !self.owns(ip.dst) {
                    return Ok(Verdict::Foreign);
                }
                if ip.protocol != ICMPV4 || ip.fragment.is_some() {
                    return Ok(tcp_or_foreign(ip.protocol));
                }
                let body = packet.get(range).ok_or(WireError::Truncated)?;
                self.on_icmp(&ip, body, link.src, tx)
            }
            ethernet::IPV6 => {
                let (ip, range) = ipv6::parse(packet)?;
                if ip.protocol != ICMPV6 || ip.fragment.is_some() {
                    let ours = !group && self.owns(ip.dst);
                    return Ok(if ours { tcp_or_foreign(ip.protocol) } else { Verdict::Foreign });
                }
                let body = packet.get(range).ok_or(WireError::Truncated)?;
                self.on_icmpv6(now, &ip, body, link.src, tx)
            }
            _ => Ok(Verdict::Foreign),
        }
    }

    /// RFC 826, "Packet Reception".
    fn on_arp(&mut self, now: Instant, arp: &arp::Repr, tx: &mut Out<'_, '_>) -> Result<Verdict, WireError> {
        if self.owns(arp.sender_ip) {
            self.conflict(arp.sender_ip, arp.sender_mac);
            return Ok(Verdict::Neighbours);
        }
        let for_us = self.owns(arp.target_ip);
        let plausible = arp.sender_mac[0] & 1 == 0 && self.on_link(arp.sender_ip).is_some();
        if plausible {
            let learnt = match arp.operation {
                Operation::Reply if for_us => Learnt::Answer,
                // Only who asks for us is worth an entry of its own.
                _ if for_us => Learnt::Asker,
                _ => Learnt::Gossip,
            };
            self.neighbours.learn(now, arp.sender_ip, arp.sender_mac, learnt);
        }
        if for_us && arp.operation == Operation::Request {
            self.send_arp(tx, arp.sender_mac, &arp.reply(self.mac));
        }
        Ok(Verdict::Neighbours)
    }

    fn on_icmp(
        &self,
        ip: &ipv4::Repr,
        body: &[u8],
        asker: Mac,
        tx: &mut Out<'_, '_>,
    ) -> Result<Verdict, WireError> {
        match icmpv4::parse(body)? {
            icmpv4::Message::EchoRequest { ident_seq, data } => {
                let data = body.get(data).ok_or(WireError::Truncated)?;
                self.send_v4(tx, asker, ip.dst, ip.src, |out| icmpv4::emit_echo_reply(ident_seq, data, out));
                Ok(Verdict::Done)
            }
            icmpv4::Message::TcpError { .. } => Ok(Verdict::Ours),
            icmpv4::Message::Other => Ok(Verdict::Foreign),
        }
    }

    fn on_icmpv6(
        &mut self,
        now: Instant,
        ip: &ipv6::Repr,
        body: &[u8],
        asker: Mac,
        tx: &mut Out<'_, '_>,
    ) -> Result<Verdict, WireError> {
        match icmpv6::parse(ip, body)? {
            icmpv6::Message::Neighbor(message) => {
                self.on_neighbor(now, ip, message, asker, tx);
                Ok(Verdict::Neighbours)
            }
            icmpv6::Message::EchoRequest { ident_seq, data } if self.owns(ip.dst) => {
                let data = body.get(data).ok_or(WireError::Truncated)?;
                let (src, dst) = (ip.dst, ip.src);
                self.send_v6(tx, asker, src, dst, HOP_LIMIT, |out| {
                    icmpv6::emit_echo_reply(src, dst, ident_seq, data, out)
                });
                Ok(Verdict::Done)
            }
            icmpv6::Message::TcpError { .. } if self.owns(ip.dst) => Ok(Verdict::Ours),
            _ => Ok(Verdict::Foreign),
        }
    }

    /// RFC 4861 §7.2.3 and §7.2.5.
    fn on_neighbor(
        &mut self,
        now: Instant,
        ip: &ipv6::Repr,
        message: Neighbor,
        asker: Mac,
        tx: &mut Out<'_, '_>,
    ) {
        match message {
            Neighbor::Solicit { target, source } if self.owns(target) => {
                if let Some(mac) = source.filter(|mac| mac[0] & 1 == 0) {
                    self.neighbours.learn(now, ip.src, mac, Learnt::Asker);
                }
                // Whoever has no address yet looks whether somebody has it: told to all (RFC 4861 §7.2.4).
                let nameless = ip.src.is_unspecified();
                let (mac, dst) = match nameless {
                    true => (ethernet::multicast_v6(ALL_NODES), ALL_NODES),
                    false => (source.unwrap_or(asker), ip.src),
                };
                let advert = Neighbor::Advert {
                    target,
                    mac: Some(self.mac),
                    router: false,
                    solicited: !nameless,
                    overrides: true,
                };
                self.send_neighbor(tx, mac, target, dst, &advert);
            }
            Neighbor::Advert { target, mac: Some(mac), .. } if self.owns(target) => {
                self.conflict(target, mac);
            }
            Neighbor::Advert { target, mac: Some(mac), solicited, overrides, .. } if mac[0] & 1 == 0 => {
                let learnt = match (solicited, overrides) {
                    (true, true) => Learnt::Answer,
                    (true, false) => Learnt::SecondAnswer,
                    (false, _) => Learnt::Gossip,
                };
                self.neighbours.learn(now, target, mac, learnt);
            }
            _ => {}
        }
    }

    fn conflict(&mut self, addr: IpAddr, mac: Mac) {
        if self.conflicts == 0 {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            tracing::warn!(%addr, mac, "another station of the link claims the engine's address");
        }
        self.conflicts += 1;
    }

    fn send_arp(&self, tx: &mut Out<'_, '_>, dst: Mac, repr: &arp::Repr) {
        let link = ethernet::Repr { dst, src: self.mac, ethertype: ethernet::ARP, vlan: None };
        self.put(tx, |out| {
            let at = ethernet::emit(&link, out)?;
            Ok(at + arp::emit(repr, out.get_mut(at..).ok_or(WireError::NoRoom)?)?)
        });
    }

    fn send_neighbor(&self, tx: &mut Out<'_, '_>, mac: Mac, src: IpAddr, dst: IpAddr, message: &Neighbor) {
        self.send_v6(tx, mac, src, dst, ND_HOP_LIMIT, |out| ndisc::emit(src, dst, message, out));
    }

    fn send_v4(
        &self,
        tx: &mut Out<'_, '_>,
        mac: Mac,
        src: IpAddr,
        dst: IpAddr,
        body: impl FnOnce(&mut [u8]) -> Result<usize, WireError>,
    ) {
        let link = ethernet::Repr { dst: mac, src: self.mac, ethertype: ethernet::IPV4, vlan: None };
        self.put(tx, |out| {
            let at = ethernet::emit(&link, out)?;
            let packet = out.get_mut(at..).ok_or(WireError::NoRoom)?;
            let len = body(packet.get_mut(ipv4::HEADER_LEN..).ok_or(WireError::NoRoom)?)?;
            let repr = ipv4::Repr {
                src,
                dst,
                protocol: ICMPV4,
                ttl: HOP_LIMIT,
                dscp: 0,
                ecn: 0,
                ident: 0, // RFC 6864 §4.1: an atomic datagram's identification means nothing.
                dont_fragment: true,
                fragment: None,
                payload_len: u16::try_from(len).map_err(|_| WireError::NoRoom)?,
            };
            Ok(at + ipv4::emit(&repr, packet)? + len)
        });
    }

    /// Writes a frame into the next slot, if there is one and it fits.
    fn put(&self, tx: &mut Out<'_, '_>, write: impl FnOnce(&mut [u8]) -> Result<usize, WireError>) {
        if let Out::Ring(tx) = tx
            && let Some(mut slot) = tx.slot()
            && let Some((front, out)) = slot.split_at_mut_checked(self.vnet)
            && let Ok(len) = write(out)
        {
            front.fill(0);
            slot.commit(self.vnet + len);
        }
    }

    fn send_v6(
        &self,
        tx: &mut Out<'_, '_>,
        mac: Mac,
        src: IpAddr,
        dst: IpAddr,
        hop_limit: u8,
        body: impl FnOnce(&mut [u8]) -> Result<usize, WireError>,
    ) {
        let link = ethernet::Repr { dst: mac, src: self.mac, ethertype: ethernet::IPV6, vlan: None };
        self.put(tx, |out| {
            let at = ethernet::emit(&link, out)?;
            let packet = out.get_mut(at..).ok_or(WireError::NoRoom)?;
            let len = body(packet.get_mut(ipv6::HEADER_LEN..).ok_or(WireError::NoRoom)?)?;
            let repr = ipv6::Repr { hop_limit, ..ndisc::ip_header(src, dst, len) };
            Ok(at + ipv6::emit(&repr, packet)? + len)
        });
    }
}

fn tcp_or_foreign(protocol: u8) -> Verdict {
    if protocol == TCP { Verdict::Ours } else { Verdict::Foreign }
}
