//! The port of a connection decides the queue that replies come to.

use std::sync::Arc;
use std::time::Duration;

use utcp_netmap_io::rss::Rss;
use utcp_netmap_io::{
    Caps, Counters, OpenOptions, PollFd, PollFds, Port, PortError, RxRing, SlotFlags, TxRing, mapped, open,
};
use utcp_proto::wire::IpAddr;
use utcp_proto::{Endpoint, Instant, isn::Secret};

use super::device::{DEVICE_PORTS, DevicePort};
use super::flow::Path;
use super::{Inbox, Outbox, Shard, ShardConfig};
use crate::host::HostMirror;
use crate::life::Life;

/// One queue of a NIC that says how it spreads frames; below, one end of a pipe.
struct Queue {
    caps: Caps,
    inner: Box<dyn Port>,
}

impl Port for Queue {
    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn rx_sync(&mut self) -> Result<u32, PortError> {
        self.inner.rx_sync()
    }
    fn tx_sync(&mut self) -> Result<u32, PortError> {
        self.inner.tx_sync()
    }
    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>) {
        self.inner.rings()
    }
    fn arm(&mut self) -> Result<bool, PortError> {
        self.inner.arm()
    }
    fn poll_fds(&self) -> PollFds {
        self.inner.poll_fds()
    }
    fn tx_poll_fd(&self) -> Option<PollFd> {
        self.inner.tx_poll_fd()
    }
    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

/// Both ends of a pipe.
fn pipe(name: &str) -> [Box<dyn Port>; 2] {
    let name = format!("pipe:{name}-{}", std::process::id());
    let end = move || {
        let options = OpenOptions { pipe_wait: Duration::from_secs(20), ..OpenOptions::default() };
        open(&name, &options).expect("a pipe").ports.remove(0)
    };
    let other = std::thread::spawn(end.clone());
    [end(), other.join().expect("the other end")]
}

/// Shard `index` of four, on that queue of the NIC.
fn shard(index: u32, rss: &Arc<Rss>) -> (Shard, Box<dyn Port>) {
    let [inner, other] = pipe(&format!("rss-{index}-{:p}", Arc::as_ptr(rss)));
    let caps = Caps { queue: index, ifindex: Some(7), rss: Some(rss.clone()), ..inner.caps().clone() };
    let port = DevicePort::new(Box::new(Queue { caps, inner }), None);
    let config = ShardConfig {
        index,
        count: 4,
        core: None,
        spin_ns: 0,
        coalesce_ns: 0,
        local: true,
        cut_through: false,
        secret: Secret::new(1, 2),
        tcp: crate::host::TcpSettings::DEFAULT,
    };
    let life = Arc::new(Life::new(4).expect("page"));
    let (inbox, outbox) =
        (Arc::new(Inbox::new().expect("eventfd")), Arc::new(Outbox::new().expect("eventfd")));
    let (_, host) = HostMirror::open().expect("netlink");
    (Shard::new(config, life, inbox, outbox, vec![port], host).expect("shard"), other)
}

const KEY: [u8; 40] = [0x5a; 40];

/// Connects to many peers; the queue that replies come to for each, and the counter.
fn queues_of_replies(index: u32, rss: &Arc<Rss>) -> (Vec<Option<u32>>, u64) {
    let (mut shard, _other) = shard(index, rss);
    let source = IpAddr::v4([10, 0, 0, 1]);
    let path = Path::Device { port: 0, next_hop: [2; 6] };
    let queue = |n: u8| {
        let remote = Endpoint { addr: IpAddr::v4([10, 0, 1, n]), port: 443 };
        let tuple = shard.choose_port(source, 0, remote, path).expect("a port");
        let port = tuple.local.port;
        assert!(DEVICE_PORTS.contains(&u32::from(port)) && u32::from(port) % 4 == (61_000 + index) % 4);
        rss.queue((mapped([10, 0, 1, n].into()), 443), (mapped([10, 0, 0, 1].into()), port))
    };
    let queues = (0..100).map(queue).collect();
    (queues, shard.counters.connects_hashed)
}

#[test]
fn replies_come_to_the_shard_that_connects() {
    // A key whose every 32 bits differ: the first 40 bytes of the squares.
    let key: Vec<u8> = (1..=40_u32).map(|n| (n * n * 37 % 251) as u8).collect();
    let rss = Arc::new(Rss::new(key, (0..128).map(|n| n % 4).collect()));
    for index in 0..4 {
        let (queues, hashed) = queues_of_replies(index, &rss);
        assert!(queues.iter().all(|queue| *queue == Some(index)), "shard {index}: {queues:?}");
        assert_eq!(hashed, 100);
    }
}

/// No port can make replies come here: any will do, and the frames are handed over.
#[test]
fn a_hash_that_leads_elsewhere_stops_nobody() {
    let rss = Arc::new(Rss::new(KEY.to_vec(), vec![9; 128]));
    let (queues, hashed) = queues_of_replies(1, &rss);
    assert!(queues.iter().all(|queue| *queue == Some(9)));
    assert_eq!(hashed, 0);
}

/// An IPv4 fragment of TCP for the station `mac`: counted as soon as it is understood.
fn fragment(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..6].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..26].copy_from_slice(&[0x45, 0, 0, 44, 0, 9, 0x20, 0, 64, 6, 0, 0]);
    frame[26..34].copy_from_slice(&[10, 0, 0, 9, 10, 0, 0, 1]);
    let sum: u32 = frame[14..34].chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("one carry");
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// A frame that is longer than a buffer comes in pieces (netmap's `NS_MOREFRAG`), and who sent it chose what each begins with.
#[test]
fn a_piece_of_a_longer_frame_is_no_frame() {
    let rss = Arc::new(Rss::new(KEY.to_vec(), vec![0]));
    let (mut shard, mut other) = shard(0, &rss);
    let frame = fragment(shard.ports[0].link.mac);
    let mut send = |flags: &[u16]| {
        for flags in flags {
            let mut tx = other.tx();
            let mut slot = tx.slot().expect("room");
            slot[..frame.len()].copy_from_slice(&frame);
            slot.commit_flags(frame.len(), *flags);
        }
        other.tx_sync().expect("a pipe");
    };
    let more = SlotFlags::MORE_FRAG;
    send(&[0]);
    shard.turn(Instant::from_millis(1));
    assert_eq!((shard.counters.fragments, shard.counters.dropped_frames), (1, 0));
    send(&[more, more, 0]);
    shard.turn(Instant::from_millis(2));
    assert_eq!((shard.counters.fragments, shard.counters.dropped_frames), (1, 3));
    send(&[0]);
    shard.turn(Instant::from_millis(3));
    assert_eq!(shard.counters.fragments, 2, "the next one is whole again");
}

/// Whoever listens to a link in promiscuous mode makes us hear frames of others, too.
#[test]
fn frames_for_other_stations_are_not_ours() {
    let rss = Arc::new(Rss::new(KEY.to_vec(), vec![0]));
    let (mut shard, mut other) = shard(0, &rss);
    let own = shard.ports[0].link.mac;
    let [first, .., last] = own;
    for mac in
        [[first, own[1], own[2], own[3], own[4], last ^ 1], [0xff; 6], [first | 1, 0, 0, 0, 0, last], own]
    {
        assert!(other.tx().push(&fragment(mac)));
    }
    other.tx_sync().expect("a pipe");
    shard.turn(Instant::from_millis(1));
    assert_eq!((shard.counters.fragments, shard.counters.dropped_frames), (1, 3));
}
