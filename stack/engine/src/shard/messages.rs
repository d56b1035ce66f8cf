//! What shards and the control thread tell each other: queues between threads, never on a connection's path.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use crossbeam_queue::SegQueue;
use utcp_abi::socket::Addr;
use utcp_netmap_io::Capture;

use super::client::ClientRegion;
use super::device::DevicePort;
use super::fast_client::Lesson;
use super::moving::Place;
use super::pairs::PairRegion;
use super::report::{Cursor, SocketLine};
use crate::counters::Counters;
use crate::host::HostView;
use crate::sys;

/// What the control thread tells a shard.
#[derive(Debug)]
pub enum ToShard {
    /// A new client.
    Attach(Arc<ClientRegion>),
    /// No process of the client is left.
    Detach(u32),
    /// Serve a listener.
    Listen(ListenRequest),
    /// A listener is gone.
    Unlisten {
        /// Client number.
        client: u32,
        /// Socket slot.
        sock: u32,
    },
    /// A process of the client gave up a listener that other programs have, too.
    Yield {
        /// Client number.
        client: u32,
        /// Socket slot.
        sock: u32,
    },
    /// A listener's new connections come by the kernel.
    LeaveToKernel {
        /// Client number.
        client: u32,
        /// Socket slot.
        sock: u32,
    },
    /// The last reference to the descriptor under a socket is gone.
    Hangup {
        /// Client number.
        client: u32,
        /// Socket slot.
        sock: u32,
        /// Token of the descriptor.
        token: u32,
    },
    /// A socket changes its client.
    Move {
        /// Where it is.
        from: Place,
        /// Token of its descriptor.
        token: u32,
        /// Where it shall be.
        to: Place,
        /// Whether it happens: false until the shard begins, or whoever asked has waited for too long.
        decided: Arc<AtomicBool>,
        /// Told whether it was moved.
        done: SyncSender<bool>,
    },
    /// The last descriptor of a socket that was moved away is gone: nobody looks at its old slot any more.
    Left {
        /// Where it was.
        place: Place,
        /// The slot's generation then.
        generation: u32,
    },
    /// A process died: repair what it may have left half done.
    ProcessGone(u32),
    /// The bell of an epoll set.
    SetBell {
        /// Client number.
        client: u32,
        /// Set slot.
        set: u32,
        /// What to ring.
        bell: Arc<sys::Bell>,
    },
    /// The host's addresses or routes changed.
    Host(Arc<HostView>),
    /// Addresses from which connections may leave by devices, in order: what is sent to their client ports comes to us. Not those of stations.
    Sources(Arc<[utcp_proto::wire::IpAddr]>),
    /// A frame that came to another shard's queue.
    Frame {
        /// Interface of that queue.
        interface: Option<u32>,
        /// From the link header on.
        frame: Box<[u8]>,
    },
    /// A connection that led to no port of the shards before.
    Connect(PassedConnect),
    /// What was said of a socket to another shard, which it left meanwhile.
    Misdirected {
        /// Client number.
        client: u32,
        /// Socket slot.
        sock: u32,
        /// As in [`ToShard::Hangup`]; none: the socket wants a look.
        token: Option<u32>,
        /// How often it may be told on.
        left: u32,
    },
    /// What another shard has learned of a server's Fast Open, and how many shards don't know it yet.
    Lesson(Lesson, u32),
    /// A device that was away is back: its new port, for the place of the old one. Or the port of one more device.
    Port {
        /// Index of the old one in the shard's ports, or their number.
        place: usize,
        /// The new one.
        port: Box<DevicePort>,
    },
    /// Write down what passes the ports that `port` means (empty: all).
    Trace {
        /// Where to.
        capture: Capture,
        /// Name of a port or of its device.
        port: String,
    },
    /// The trace is over.
    Untrace,
    /// Somebody wants to know.
    Report(ReportRequest, SyncSender<Report>),
}

/// A connection that a program asked one shard for, and that may be another's.
#[derive(Debug, Clone, Copy)]
pub struct PassedConnect {
    /// Client number.
    pub client: u32,
    /// Socket slot.
    pub sock: u32,
    /// Its generation: the program may have died and the slot been used again.
    pub generation: u32,
    /// Shards that are left to ask.
    pub left: u32,
}

/// A socket begins to listen.
#[derive(Debug, Clone)]
pub struct ListenRequest {
    /// Client number.
    pub client: u32,
    /// Socket slot.
    pub sock: u32,
    /// Listener slot in the client's region.
    pub slot: u32,
    /// Where.
    pub addr: Addr,
    /// How many connections may wait.
    pub backlog: u32,
    /// Not IPv4 on an IPv6 wildcard.
    pub one_family: bool,
    /// Shares the address with other listeners.
    pub reuseport: bool,
    /// Its connections come by the kernel.
    pub kernels: bool,
    /// Inode of the kernel's socket: programs that share it share its connections.
    pub inode: u64,
    /// Shards that have it still. The last one to give it up gives its socket slot back: until then, no shard may take that for another's.
    pub holders: Arc<AtomicU32>,
}

/// What a tool wants to know of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportRequest {
    /// Sockets from here on, as many as a shard tells without a pause that anybody would notice.
    Sockets(Cursor),
    /// Counters.
    Counters,
    /// How many flows and clients are alive.
    Alive,
}

/// A shard's answer.
#[derive(Debug)]
pub enum Report {
    /// A line per socket, and where the rest begins.
    Sockets(Vec<SocketLine>, Option<Cursor>),
    /// Counters, and (device, counter, value) of the ports.
    Counters(Box<Counters>, Vec<(String, &'static str, u64)>),
    /// Flows that still have something to send or that a program holds.
    Alive {
        /// Flows.
        flows: usize,
    },
}

/// How the control thread reaches a shard.
#[derive(Debug)]
pub struct Inbox {
    queue: SegQueue<ToShard>,
    waiting: AtomicBool,
    doorbell: OwnedFd,
    /// ns that the shard has worked.
    effort: AtomicU64,
}

impl Inbox {
    /// A new one.
    pub fn new() -> std::io::Result<Self> {
        let (waiting, effort) = (AtomicBool::new(false), AtomicU64::new(0));
        Ok(Self { queue: SegQueue::new(), waiting, doorbell: sys::eventfd()?, effort })
    }

    /// Sends a message and wakes the shard.
    pub fn send(&self, message: ToShard) {
        self.queue.push(message);
        // Whoever found it set before has rung, and the shard has not looked since.
        if !self.waiting.swap(true, Ordering::SeqCst) {
            sys::ring(self.doorbell.as_fd());
        }
    }

    /// Whether messages came since the last look; the answer counts as a look.
    pub(super) fn take_waiting(&self) -> bool {
        self.waiting.swap(false, Ordering::SeqCst)
    }

    /// Whether messages wait.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Whether there is a message that was not taken yet, be it announced or already being looked at.
    pub(super) fn has_more(&self) -> bool {
        self.is_waiting() || !self.queue.is_empty()
    }

    /// What waits is left for the next look.
    pub(super) fn leave_rest(&self) {
        if !self.queue.is_empty() {
            self.waiting.store(true, Ordering::SeqCst);
        }
    }

    /// Takes the oldest message.
    pub(super) fn receive(&self) -> Option<ToShard> {
        self.queue.pop()
    }

    /// The shard has worked for so many ns.
    pub(super) fn tell_effort(&self, ns: u64) {
        self.effort.store(ns, Ordering::Relaxed);
    }

    /// ns that the shard has worked; told where there are several alone.
    #[must_use]
    pub fn effort(&self) -> u64 {
        self.effort.load(Ordering::Relaxed)
    }

    /// The engine's own eventfd: programs never see it, so they can't drain or fill it.
    #[must_use]
    pub fn doorbell(&self) -> &OwnedFd {
        &self.doorbell
    }
}

/// What a shard tells the control thread.
#[derive(Debug)]
pub enum ToControl {
    /// The link address of a next hop is needed.
    Resolve {
        /// Interface.
        ifindex: u32,
        /// Whose.
        next_hop: utcp_proto::wire::IpAddr,
    },
    /// Two programs may ask for a pair region.
    PairMade(Arc<PairRegion>),
    /// Nobody uses it any more.
    PairGone(u32),
    /// Something happened to a socket whose program asked for signals (O_ASYNC).
    Signal(Place),
    /// A port passes no frames any more: its device went away.
    PortGone {
        /// Its name.
        name: String,
    },
    /// Segments pass to and fro by this next hop: the kernel, which does not see them, is to keep its entry fresh.
    Touch {
        /// Interface.
        ifindex: u32,
        /// Whose.
        next_hop: utcp_proto::wire::IpAddr,
    },
    /// A shard is busy, and there are others.
    Busy,
    /// A connection is the kernel's: `utcp why` is to say why.
    LeftToKernel {
        /// Process that asked for it.
        pid: u32,
        /// Destination.
        to: utcp_proto::Endpoint,
        /// Scope of a link-local destination, else 0.
        scope: u32,
        /// Why, if it is not for the way to there.
        reason: Option<&'static str>,
    },
}

/// Messages beyond which programs' signals are left out.
const CROWD: usize = 1024;

/// How shards reach the control thread.
#[derive(Debug)]
pub struct Outbox {
    queue: SegQueue<ToControl>,
    doorbell: OwnedFd,
}

impl Outbox {
    /// A new one.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { queue: SegQueue::new(), doorbell: sys::eventfd()? })
    }

    /// Sends a message.
    pub fn send(&self, message: ToControl) {
        self.queue.push(message);
        sys::ring(self.doorbell.as_fd());
    }

    /// Whether more waits than the control thread should be behind with.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.queue.len() > CROWD
    }

    /// Takes the oldest message.
    #[must_use]
    pub fn receive(&self) -> Option<ToControl> {
        self.queue.pop()
    }

    /// Readable when there are messages.
    #[must_use]
    pub fn doorbell(&self) -> &OwnedFd {
        &self.doorbell
    }
}
