//! The generator's end of a device: frames in, frames out.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use utcp_engine::shard::frame::{self, Body, Headers, Parsed};
use utcp_engine::sys;
use utcp_netmap_io::{OpenOptions, Port, PortError, RxRing, Steering, Tuple};
use utcp_proto::wire::IpAddr;
use utcp_proto::wire::checksum::Verify;
use utcp_proto::{Endpoint, FourTuple, Segment, Transmit};

use super::{BYTE, PORTS};

/// What messages are made of.
const BYTES: [u8; 1024] = [BYTE; 1024];

/// Frames that may wait for us: the answers of all connections of a load at once (64 of 64 KiB are 2900), or what the server sends is
/// lost here.
const RX_SLOTS: u32 = 8192;
/// IPv4 and TCP headers without options, bytes.
const HEADERS: u32 = 40;

/// Who talks to whom.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Ours.
    pub local: Ipv4Addr,
    /// The server's.
    pub server: Ipv4Addr,
    /// The first port that it listens on.
    pub port: u16,
    /// How many, one after the other: with one alone, local ports limit a client to some 55 000 connections.
    pub ports: u16,
}

impl Place {
    /// The four-tuple of a connection.
    pub(super) fn tuple(&self, local: u16, server: u16) -> FourTuple {
        let end = |addr: Ipv4Addr, port| Endpoint { addr: IpAddr::v4(addr.octets()), port };
        FourTuple { local: end(self.local, local), remote: end(self.server, server) }
    }
}

/// Why frames can't pass.
#[derive(Debug)]
pub enum LinkError {
    /// The port's reason.
    Port(PortError),
    /// Nobody told the server's link address, and the device does not know it.
    NoNextHop,
}

impl std::fmt::Display for LinkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(error) => error.fmt(f),
            Self::NoNextHop => f.write_str("the server's link address is needed: --next-hop"),
        }
    }
}

impl std::error::Error for LinkError {}

impl From<PortError> for LinkError {
    fn from(error: PortError) -> Self {
        Self::Port(error)
    }
}

/// An open device.
pub struct Link {
    /// Away while a batch is read.
    port: Option<Box<dyn Port>>,
    /// What brings our frames to us.
    _steering: Option<Arc<dyn Steering>>,
    place: Place,
    mac: [u8; 6],
    next_hop: [u8; 6],
    verify: Verify,
    mtu: u32,
}

impl Link {
    /// Opens `device`; `next_hop` is the server's link address, where the device does not know it.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn open(device: &str, next_hop: Option<[u8; 6]>, place: Place) -> Result<Self, LinkError> {
        let mut options = OpenOptions { pipe_wait: Duration::from_secs(15), ..OpenOptions::default() };
        if device.starts_with("xdp:") {
            // A pipe's ring holds the server back instead.
            options.rx_slots = RX_SLOTS;
        }
        let mut open = utcp_netmap_io::open(device, &options)?;
        let first = PORTS.start;
        if let Some(steering) = &open.steering {
            let tuple = Tuple::new(std::net::IpAddr::V4(place.local), first, utcp_netmap_io::Proto::TCP);
            steering.register_range(tuple, first..=PORTS.end - 1)?;
        }
        // One queue is enough: the generator is one thread.
        let port = open.ports.swap_remove(0);
        Self::new(port, open.steering, next_hop, place)
    }

    /// Over a port that knows who is at its other end.
    ///
    /// # Errors
    /// [`LinkError::NoNextHop`].
    pub fn over(port: Box<dyn Port>, place: Place) -> Result<Self, LinkError> {
        Self::new(port, None, None, place)
    }

    fn new(
        port: Box<dyn Port>,
        steering: Option<Arc<dyn Steering>>,
        next_hop: Option<[u8; 6]>,
        place: Place,
    ) -> Result<Self, LinkError> {
        let caps = port.caps();
        let next_hop = next_hop.or(caps.peer_mac).ok_or(LinkError::NoNextHop)?;
        let verify = match (caps.rx_checksum, caps.local) {
            (true, _) => Verify::Trust,
            (false, true) => Verify::AllowPartial,
            (false, false) => Verify::Full,
        };
        let (mac, mtu) = (caps.mac, caps.mtu);
        Ok(Self { port: Some(port), _steering: steering, place, mac, next_hop, verify, mtu })
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    pub(super) fn mss(&self) -> u16 {
        u16::try_from(self.mtu.saturating_sub(HEADERS)).unwrap_or(u16::MAX)
    }

    /// The frames that arrived; `None`: none did.
    pub(super) fn receive(&mut self) -> Result<Option<Batch>, LinkError> {
        let Some(mut port) = self.port.take() else { return Ok(None) };
        let result = port.rx_sync();
        let waiting = result.as_ref().is_ok_and(|frames| *frames > 0);
        if waiting {
            return Ok(Some(Batch { port, verify: self.verify }));
        }
        self.port = Some(port);
        result?;
        Ok(None)
    }

    /// The batch is read.
    pub(super) fn give_back(&mut self, batch: Batch) {
        self.port = Some(batch.port);
    }

    pub(super) fn has_room(&mut self) -> bool {
        self.port.as_mut().is_some_and(|port| port.tx().space() > 0)
    }

    /// Puts a segment on the ring, if there is room.
    pub(super) fn send(&mut self, tuple: &FourTuple, transmit: &Transmit) {
        let Some(port) = self.port.as_mut() else { return };
        let mut tx = port.tx();
        let Some(mut slot) = tx.slot() else { return };
        let headers = Headers { mac: self.mac, next_hop: self.next_hop, tuple, transmit, vnet: false };
        let fill = |body: &mut Body<'_>| {
            while body.room() > 0 {
                body.put(&BYTES);
            }
        };
        if let Some(len) = frame::build(&mut slot, &headers, fill) {
            slot.commit(len);
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), LinkError> {
        if let Some(port) = self.port.as_mut() {
            port.tx_sync()?;
        }
        Ok(())
    }

    /// Sleeps until a frame arrives, at most `patience`.
    pub(super) fn sleep(&mut self, patience: Duration) -> Result<(), LinkError> {
        let Some(port) = self.port.as_mut() else { return Ok(()) };
        if !port.arm()? {
            return Ok(());
        }
        let wanted =
            |poll: utcp_netmap_io::PollFd| libc::pollfd { fd: poll.fd, events: poll.events, revents: 0 };
        let mut fds: Vec<libc::pollfd> = port.poll_fds().iter().map(wanted).collect();
        sys::poll(&mut fds, u64::try_from(patience.as_nanos()).ok());
        Ok(())
    }
}

/// Frames that are being read. They stay in the ring until all are.
pub(super) struct Batch {
    port: Box<dyn Port>,
    verify: Verify,
}

impl Batch {
    /// The next segment: whose it is (our side is local), its header, its payload.
    pub(super) fn next(&mut self) -> Option<(FourTuple, Segment, &[u8])> {
        let rx: RxRing<'_> = self.port.rx();
        for frame in rx {
            let bytes = frame.bytes();
            if let Ok(Parsed::Segment { tuple, segment, payload, .. }) = frame::parse(bytes, self.verify) {
                return Some((tuple, segment, bytes.get(payload).unwrap_or_default()));
            }
        }
        None
    }
}
