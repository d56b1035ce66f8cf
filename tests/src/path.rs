//! A bad path between two hosts, the same for whatever stack runs on them: two TAP devices that a thread of the test
//! joins through the fault layer.
//!
//! ```text
//!   [ server: veths ]══TAP══╗ loss, delay, rate, queue … ╔══TAP══[ client: vethc ]
//!                           ╚════ thread of the test ════╝
//! ```
//!
//! The devices belong to the thread: when it ends, in whatever way, they go. Neither end can cut segments or leave
//! checksums to the other, so each frame is one segment and each loss one segment's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use utcp_netmap_io::faults::wrap_spec;
use utcp_netmap_io::{Counters, FaultSpec, OpenOptions, Port, open};

use crate::lab::unique;
use crate::net::{Net, ip};

/// How long the thread sleeps at most, so that it hears of its end.
const NAP: Duration = Duration::from_millis(100);
/// Holds the longest frame that AF_XDP takes.
const FRAME: u32 = 4096;

/// The thread between two hosts. Dropping it cuts the path.
#[derive(Debug)]
pub struct Path {
    stop: Arc<AtomicBool>,
    relay: Option<JoinHandle<Counters>>,
}

impl Net {
    /// Two hosts at the ends of a path with these faults (`loss=1%,delay=10ms,rate=20mbit,queue=100`), which each
    /// direction meets alike.
    ///
    /// # Panics
    /// If it can't be made (that takes root), or the faults make no sense.
    #[must_use]
    pub fn over(faults: &str) -> (Self, Path) {
        let spec: FaultSpec = faults.parse().expect("faults that make sense");
        let net = Self::namespaces();
        let options = OpenOptions { frame_size: Some(FRAME), ..OpenOptions::default() };
        let ports = [&net.server, &net.client].map(|host| {
            let name = format!("ut{}x{}", std::process::id() % 10_000_000, unique());
            let device = open(&format!("tap:{name}"), &options).expect("a TAP device can be made");
            ip(&format!("link set {name} netns {} name {}", host.namespace(), host.interface));
            device.ports.into_iter().next().expect("a TAP device has one queue")
        });
        net.configure();
        let [near, far] = ports;
        let near = wrap_spec(near, &spec).expect("memory for frames");
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let relay = std::thread::spawn(move || relay([near, far], &flag));
        (net, Path { stop, relay: Some(relay) })
    }
}

impl Path {
    /// Cuts it; returns what it did to the frames.
    ///
    /// # Panics
    /// If the thread did.
    #[must_use]
    pub fn cut(mut self) -> Counters {
        self.stop.store(true, Ordering::Relaxed);
        self.relay.take().expect("it runs until now").join().expect("the relay lives")
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(relay) = self.relay.take() {
            let _ = relay.join();
        }
    }
}

/// Carries frames both ways until told to stop. An end that is gone (its namespace was removed) ends it, too.
fn relay(mut ports: [Box<dyn Port>; 2], stop: &AtomicBool) -> Counters {
    while !stop.load(Ordering::Relaxed) {
        let [near, far] = &mut ports;
        let (Some(there), Some(back)) =
            (carry(near.as_mut(), far.as_mut()), carry(far.as_mut(), near.as_mut()))
        else {
            break;
        };
        if there + back == 0 {
            sleep(&ports);
        }
    }
    ports[0].counters()
}

/// Moves what has arrived at `from` to `to`; `None` when one of them is gone.
fn carry(from: &mut dyn Port, to: &mut dyn Port) -> Option<usize> {
    let mut moved = 0;
    from.rx_sync().ok()?;
    let mut tx = to.tx();
    for frame in from.rx() {
        // A queue that overflows here would be another fault than those asked for; it holds 2048 frames.
        moved += usize::from(tx.push(&frame));
    }
    to.tx_sync().ok()?;
    Some(moved)
}

fn sleep(ports: &[Box<dyn Port>; 2]) {
    let due = ports.iter().filter_map(|port| port.resync_in()).min().unwrap_or(NAP).min(NAP);
    let mut fds: Vec<libc::pollfd> = ports
        .iter()
        .flat_map(|port| port.poll_fds().iter().collect::<Vec<_>>())
        .map(|fd| libc::pollfd { fd: fd.fd, events: fd.events, revents: 0 })
        .collect();
    let time = libc::timespec { tv_sec: 0, tv_nsec: i64::from(due.subsec_nanos()) };
    // SAFETY: `fds` and `time` live until the call returns; a null mask changes none.
    unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, &raw const time, std::ptr::null()) };
}
