//! One socket that the relay carries: the far end of its pair on one side, its streams on the other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use utcp_abi::Region;
use utcp_abi::layout::SHARDS_MAX;
use utcp_abi::message::{Kind, MESSAGE_LEN, Message};
use utcp_abi::socket::{BufRef, Socket, intent, status};
use utcp_abi::stream::pieces;

use crate::life::Life;
use crate::shard::client::ClientRegion;
use crate::shard::{Inbox, Place, ToShard};
use crate::sys::{self, Wait};

/// Bytes carried one way before the other way has its turn.
const TURN: u64 = 256 * 1024;

/// The slot that a socket had before it became the relay's. Its holders, of several processes maybe, learn there that it was
/// moved, so it stays until the last of them has let go.
#[derive(Debug)]
pub struct Left {
    /// The shard that gives it back.
    pub inbox: Arc<Inbox>,
    /// Where it is.
    pub place: Place,
    /// The slot's generation then.
    pub generation: u32,
}

impl Left {
    /// Gives the slot back to its client. By the shard, which alone frees slots: whether it is still the same use of it can't
    /// change there between the look and the deed.
    fn release(self) {
        self.inbox.send(ToShard::Left { place: self.place, generation: self.generation });
    }
}

/// Has the shard of `socket` look at it.
pub fn tell_shard(shared: &ClientRegion, socket: &Socket, sock: u32, life: &Life) {
    let shard = socket.shard.load(Ordering::Relaxed) % SHARDS_MAX as u32;
    shared.region().dirty(shard).set(sock);
    if life.page().sleeping(shard).is_some()
        && let Some(door) = shared.doorbells().get(shard as usize)
    {
        sys::ring(door.as_fd());
    }
}

/// A socket of the relay's.
#[derive(Debug)]
pub struct Line {
    sock: u32,
    left: Left,
    far_end: OwnedFd,
    /// What the kernel must not forget as long as the connection lives: the bound socket of a client that chose its port.
    _held: Option<OwnedFd>,
    /// Bytes that the program had written before the relay began.
    first: Vec<u8>,
    /// The program sends no more.
    sent_all: bool,
    /// The peer sends no more, and the program was told.
    told_end: bool,
    /// The program's end takes no bytes at the moment.
    is_full: bool,
    /// The tx stream takes no bytes at the moment.
    is_waiting: bool,
    hung_up: bool,
    over: bool,
}

impl Line {
    /// Carries between slot `sock` and `far_end`; `first` was read from there already. The socket `left` its program.
    #[must_use]
    pub fn new(sock: u32, left: Left, far_end: OwnedFd, held: Option<OwnedFd>, first: Vec<u8>) -> Self {
        Self {
            sock,
            left,
            far_end,
            _held: held,
            first,
            sent_all: false,
            told_end: false,
            is_full: false,
            is_waiting: false,
            hung_up: false,
            over: false,
        }
    }

    /// Its slot in the relay's region.
    #[must_use]
    pub fn sock(&self) -> u32 {
        self.sock
    }

    /// Ends it: nobody needs what it left behind any more.
    pub fn end(self) {
        self.left.release();
    }

    /// Our end of the pair.
    #[must_use]
    pub fn far_end(&self) -> BorrowedFd<'_> {
        self.far_end.as_fd()
    }

    /// Whether there is nothing to carry any more: its slot is given back.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// What to watch the far end for. (A hang-up is always told.)
    #[must_use]
    pub fn interest(&self) -> i32 {
        let input = if self.sent_all || self.is_waiting { 0 } else { libc::EPOLLIN };
        input | if self.is_full { libc::EPOLLOUT } else { 0 }
    }

    /// The program has no descriptor of it any more.
    pub fn hang_up(&mut self) {
        self.hung_up = true;
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        self.hung_up
    }

    /// Carries what can be carried, both ways, by way of `scratch`; true if the shard has to look at the socket.
    pub fn carry(&mut self, region: Region, socket: &Socket, scratch: &mut [u8]) -> bool {
        let mut news = self.send_on(region, socket);
        news |= self.hand_in(region, socket, scratch);
        let told = self.told_end && is_dead(socket); // Writing fails from now on, as after a reset.
        if told || self.hung_up && self.sent_all {
            socket.intent.fetch_or(intent::CLOSE, Ordering::AcqRel);
            self.over = true;
            news = true;
        }
        news
    }

    /// Program → tx stream.
    fn send_on(&mut self, region: Region, socket: &Socket) -> bool {
        let (mut news, mut moved) = (false, 0);
        self.is_waiting = false;
        while !self.sent_all && moved < TURN {
            if is_dead(socket) {
                self.sent_all = true; // As EPIPE would tell: what is written now goes nowhere.
                break;
            }
            let buf = BufRef(socket.tx_buf.load(Ordering::Acquire));
            let tail = socket.tx_tail.load(Ordering::Relaxed);
            let room =
                buf.capacity().saturating_sub(tail.wrapping_sub(socket.tx_head.load(Ordering::Acquire)));
            let [piece, _] = pieces(buf.capacity(), tail, room);
            let Some(base) = region.stream(buf).filter(|_| piece.len > 0) else {
                self.is_waiting = true;
                // The shard tells when there is room; it may have come just now.
                let before = socket.intent.fetch_or(intent::TX_FULL, Ordering::SeqCst);
                if before & intent::TX_FULL == 0 {
                    news = true;
                }
                if buf.capacity() > 0
                    && tail.wrapping_sub(socket.tx_head.load(Ordering::SeqCst)) < buf.capacity()
                {
                    self.is_waiting = false;
                    continue;
                }
                break;
            };
            // The shard puts the stream into a larger buffer only while nobody writes.
            if socket.tx_arbiter.try_take(sys::gettid()).is_err() {
                sys::yield_now();
                continue;
            }
            let taken = if socket.tx_buf.load(Ordering::Acquire) == buf.0 {
                // SAFETY: a piece of the stream's buffer behind `tail`; the shard reads below it only, and nobody but
                // this thread writes streams of this region.
                let to = unsafe { std::slice::from_raw_parts_mut(base.add(piece.offset), piece.len) };
                self.take(to)
            } else {
                Err(io::ErrorKind::Interrupted.into())
            };
            if let Ok(count) = taken {
                socket.tx_tail.store(tail.wrapping_add(count as u64), Ordering::Release);
            }
            socket.tx_arbiter.give();
            match taken {
                Ok(0) => {
                    self.sent_all = true;
                    socket.intent.fetch_or(intent::SHUT_WR, Ordering::AcqRel);
                    news = true;
                }
                Ok(count) => {
                    moved += count as u64;
                    news = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.sent_all = true;
                    news = true;
                }
            }
        }
        news
    }

    /// The program's next bytes.
    fn take(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.first.is_empty() {
            let mut fds = Vec::new();
            let count = sys::receive(self.far_end.as_fd(), to, &mut fds, Wait::Never)?;
            let bytes = to.get(..count).unwrap_or_default();
            // Of several holders each may have asked for the relay.
            return match without_request(self.far_end.as_fd(), bytes, &fds) {
                0 if count > 0 => Err(io::ErrorKind::Interrupted.into()),
                own => Ok(own),
            };
        }
        let count = self.first.len().min(to.len());
        for (to, from) in to.iter_mut().zip(self.first.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    /// Rx stream → program.
    fn hand_in(&mut self, region: Region, socket: &Socket, scratch: &mut [u8]) -> bool {
        let (mut news, mut moved) = (false, 0);
        self.is_full = false;
        while moved < TURN {
            // The end first: what came before it is carried before it is told.
            let ended = socket.status.load(Ordering::Acquire) & (status::RX_FIN | status::DEAD) != 0;
            let buf = BufRef(socket.rx_buf.load(Ordering::Acquire));
            let head = socket.rx_head.load(Ordering::Relaxed);
            let available = socket.rx_tail.load(Ordering::Acquire).wrapping_sub(head);
            if available == 0 {
                if ended && !self.told_end {
                    self.told_end = true;
                    let _ = sys::shut_down_writing(self.far_end.as_fd());
                }
                break;
            }
            let [piece, _] = pieces(buf.capacity(), head, available);
            let Some(base) = region.stream(buf) else { break };
            let len = piece.len.min(scratch.len());
            // SAFETY: a piece of the stream's buffer and the scratch, which is ours.
            unsafe { std::ptr::copy_nonoverlapping(base.add(piece.offset), scratch.as_mut_ptr(), len) };
            fence(Ordering::SeqCst);
            if socket.rx_buf.load(Ordering::Acquire) != buf.0 {
                continue; // The shard moved the stream meanwhile: what was copied may be another's.
            }
            match sys::give(self.far_end.as_fd(), scratch.get(..len).unwrap_or_default()) {
                Ok(count) => {
                    socket.rx_head.store(head.wrapping_add(count as u64), Ordering::Release);
                    moved += count as u64;
                    let drained = count as u64 == available;
                    let head = head.wrapping_add(count as u64);
                    news |= socket.awaits_reader(head, buf.capacity(), drained);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_full = true;
                    break;
                }
                Err(_) => {
                    // The program reads no more: its end is shut, or gone.
                    socket.rx_head.store(head.wrapping_add(available), Ordering::Release);
                    news = true;
                }
            }
        }
        // What its turn left comes in the next one, whether the shard has more to tell or not: there is room, which is told at once.
        self.is_full |= moved >= TURN;
        news
    }
}

/// How many of the `bytes` that came over a far end, and `fds` with them, are the program's own, if a request for the relay is among
/// them: no byte of a program's comes with a descriptor. The kernel glues a message with descriptors to bytes that came before it, not
/// to later ones; what of it did not fit is taken from `far` and thrown away.
pub fn without_request(far: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> usize {
    if fds.is_empty() {
        return bytes.len();
    }
    let request = Message::new(Kind::Relay);
    let request = request.as_bytes();
    let begins = |&at: &usize| bytes.get(at..).is_some_and(|end| request.starts_with(end));
    let Some(own) = (bytes.len().saturating_sub(request.len())..bytes.len()).find(begins) else {
        return bytes.len();
    };
    let mut rest = [0; MESSAGE_LEN];
    let missing = request.len().saturating_sub(bytes.len() - own);
    if missing > 0 {
        let _ = sys::receive(far, rest.get_mut(..missing).unwrap_or_default(), &mut Vec::new(), Wait::Never);
    }
    own
}

fn is_dead(socket: &Socket) -> bool {
    socket.status.load(Ordering::Acquire) & status::DEAD != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever came before a request, and wherever the buffer ends: the program's bytes are its own, and no others.
    #[test]
    fn a_request_is_taken_out_of_the_bytes() {
        for (before, room) in [(0, 128), (0, 5), (6, 300), (6, 128), (6, 7), (6, 6), (200, 210), (200, 128)] {
            let (near, far) = sys::socket_pair().expect("a pair");
            let text: Vec<u8> = (b'a'..=b'z').cycle().take(before).collect();
            sys::give(near.as_fd(), &text).expect("bytes");
            let token = sys::eventfd().expect("a descriptor");
            let message = Message::new(Kind::Relay);
            sys::send(near.as_fd(), message.as_bytes(), &[std::os::fd::AsRawFd::as_raw_fd(&token)])
                .expect("sent");
            sys::give(near.as_fd(), b"after").expect("bytes");
            let mut got = Vec::new();
            while !got.ends_with(b"after") {
                let (mut bytes, mut fds) = (vec![0; room], Vec::new());
                let count = sys::receive(far.as_fd(), &mut bytes, &mut fds, Wait::Never).expect("something");
                let own = without_request(far.as_fd(), &bytes[..count], &fds);
                got.extend_from_slice(&bytes[..own]);
            }
            assert_eq!(got, [&text[..], b"after"].concat(), "{before} before, room {room}");
        }
    }
}
