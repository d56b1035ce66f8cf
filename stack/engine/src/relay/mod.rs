//! The relay: programs that hold a descriptor of a utcp socket and don't have the library's memory for it.
//!
//! ```text
//!  a program after exec, libc's stdio, a process that got the descriptor by SCM_RIGHTS, without the library
//!      └ read, write, poll on its end of the socket pair ──► the far end, here ──► streams ──► TCP
//! ```
//!
//! The relay is a client of the engine like any program, with a region of its own that nobody else maps. A socket is moved
//! there ([`crate::shard`]) and its bytes are carried between the far end of the pair and its streams. It has a thread of its own, started at
//! the first need, so neither the control thread nor a shard ever copies for it.

mod line;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::life::Life;
use crate::shard::client::ClientRegion;
use crate::sys;

pub use line::{Left, Line, without_request};

/// The relay's only set: what has news stands there.
pub const SET: u32 = 0;
/// What the epoll says of the bell.
const BELL: u64 = u64::MAX;
/// Bytes that go to a program at a time.
const SCRATCH: usize = 64 * 1024;

/// The relay as the control thread knows it.
#[derive(Debug)]
pub struct Relay {
    /// Its region.
    pub shared: Arc<ClientRegion>,
    /// What shards ring when a socket of it has news.
    pub bell: Arc<sys::Bell>,
    new: Sender<Line>,
    doorbell: Arc<OwnedFd>,
}

impl Relay {
    /// Starts it, as client `id` of an engine of `shards` shards.
    ///
    /// # Errors
    /// If memory, descriptors or threads are short.
    pub fn start(id: u32, shards: usize, life: Arc<Life>) -> io::Result<Self> {
        let shared =
            Arc::new(ClientRegion::new(id, std::process::id(), sys::euid(), "relay".to_owned(), shards)?);
        let region = shared.region();
        // The first claim of a fresh region.
        let set = region.free_sets().claim();
        debug_assert_eq!(set, Some(SET));
        let doorbell = Arc::new(sys::eventfd()?);
        let bell = Arc::new(sys::Bell::new(doorbell.try_clone()?)?);
        let (new, incoming) = channel();
        let mut carrier = Carrier {
            shared: shared.clone(),
            life,
            incoming,
            doorbell: doorbell.clone(),
            epoll: sys::Epoll::new()?,
            lines: HashMap::new(),
            scratch: vec![0; SCRATCH],
        };
        carrier.epoll.add(carrier.doorbell.as_fd(), libc::EPOLLIN, BELL)?;
        std::thread::Builder::new().name("utcp-relay".to_owned()).spawn(move || carrier.run())?;
        Ok(Self { shared, bell, new, doorbell })
    }

    /// Carries `line` from now on.
    pub fn carry(&self, line: Line) {
        if self.new.send(line).is_ok() {
            sys::ring(self.doorbell.as_fd());
        }
    }
}

/// The relay's thread.
struct Carrier {
    shared: Arc<ClientRegion>,
    life: Arc<Life>,
    incoming: Receiver<Line>,
    doorbell: Arc<OwnedFd>,
    epoll: sys::Epoll,
    lines: HashMap<u32, Line>,
    scratch: Vec<u8>,
}

impl Carrier {
    fn run(&mut self) {
        let region = self.shared.region();
        let (Some(set), Some(ready)) = (region.set(SET), region.ready(SET)) else { return };
        let mut due: Vec<u32> = Vec::new();
        loop {
            set.bell.arm();
            while let Ok(line) = self.incoming.try_recv() {
                let sock = line.sock();
                if self.epoll.add(line.far_end(), line.interest(), u64::from(sock)).is_ok() {
                    self.lines.insert(sock, line);
                    due.push(sock);
                }
            }
            // A bit that comes from here on rings the bell that was armed before.
            ready.take_all(|interest| due.push(interest));
            for sock in due.drain(..) {
                self.carry(sock, 0);
            }
            let mut events = Vec::new();
            if self.epoll.wait(-1, |data, what| events.push((data, what))).is_err() {
                return;
            }
            for (data, what) in events {
                match u32::try_from(data) {
                    Ok(sock) => self.carry(sock, what),
                    Err(_) => sys::drain(self.doorbell.as_fd()),
                }
            }
        }
    }

    /// Carries what there is on one line; `what` its far end reports.
    fn carry(&mut self, sock: u32, what: u32) {
        let region = self.shared.region();
        let (Some(line), Some(socket)) = (self.lines.get_mut(&sock), region.socket(sock)) else { return };
        let before = line.interest();
        if what & libc::EPOLLHUP as u32 != 0 && !line.is_hung_up() {
            // It would be told for ever; what is left to carry, the shard tells of.
            line.hang_up();
            self.epoll.remove(line.far_end());
        }
        let news = line.carry(region, socket, &mut self.scratch);
        if news {
            line::tell_shard(&self.shared, socket, sock, &self.life);
        }
        if line.is_over() {
            self.epoll.remove(line.far_end());
            if let Some(line) = self.lines.remove(&sock) {
                line.end();
            }
        } else if line.interest() != before && !line.is_hung_up() {
            let _ = self.epoll.change(line.far_end(), line.interest(), u64::from(sock));
        }
    }
}
