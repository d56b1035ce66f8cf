//! Putting bytes into a socket: a copy into the tx stream under its arbiter, and a bit for the engine.
//!
//! ```text
//!   head            tail               held
//!    ▼               ▼                  ▼
//!  [ b b b b b b b b c c c c c c c c c c      free ]     c: accepted, but corked: the other end does not see them yet
//! ```
//!
//! Between two programs of one host (a pair region) what TCP_CORK and MSG_MORE hold back is held here. The engine ends the wait
//! after 200 ms. It may take the positions away at any time ([`utcp_abi::freeze`]): then nothing was sent.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::fence;

use libc::iovec;
use utcp_abi::freeze::{FROZEN, accepted, advance};
use utcp_abi::pair::{STREAM_MAX, class_for};
use utcp_abi::socket::{BufRef, intent, option, status};
use utcp_abi::stream::pieces;
use utcp_abi::ticks;

use crate::fast_open;
use crate::guard;
use crate::handle::Sock;
use crate::pair::{self, End};
use crate::relayed;
use crate::signals::{Calm, Ending};
use crate::sleep::{self, Woken};
use crate::sys::{self, Errno, Sys};
use crate::user::{Buffers, buffer};
use crate::zerocopy;

/// Where the bytes of a stream come from.
pub trait Source {
    /// Bytes still to come.
    fn left(&self) -> usize;
    /// Puts up to `len` of them at `to`; how many.
    ///
    /// # Safety
    /// `to` must be writable for `len` bytes.
    unsafe fn put(&mut self, to: *mut u8, len: usize) -> Sys<usize>;
    /// The last `len` bytes that were put shall come again, before which `left` were left.
    fn put_back(&mut self, len: usize, left: usize);
}

/// What TCP_CORK holds back at most, bytes: as a segment of the kernel's loopback.
const HELD_MAX: u64 = 1 << 15;

impl Source for Buffers<'_> {
    fn left(&self) -> usize {
        self.left()
    }

    unsafe fn put(&mut self, to: *mut u8, len: usize) -> Sys<usize> {
        // SAFETY: the caller's promise; the program's buffers are readable by its own.
        unsafe { self.drain(to, len) }?;
        Ok(len)
    }

    fn put_back(&mut self, _len: usize, left: usize) {
        self.back_to(left);
    }
}

/// One look at the tx stream, by whoever holds the right to write.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// Where the next byte goes.
    tail: u64,
    /// Behind the last byte that the other end may see.
    published: u64,
    /// Bytes that are not taken or acknowledged yet.
    queued: u64,
    /// Bytes that the stream can hold, grown if need be.
    capacity_max: u64,
    /// Bytes that may come before those that were never sent are too many (TCP_NOTSENT_LOWAT).
    unsent_room: u64,
    place: Place,
}

/// What Linux takes beyond TCP_NOTSENT_LOWAT, if there is any room below it: a segment as long as it makes them.
const LOWAT_EXCESS: u64 = 65_536;

/// Where bytes go.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Into the program's own region; the engine takes them from there.
    Region(BufRef),
    /// To where the program at the other end takes them.
    Pair(End),
}

impl Room {
    fn of(sock: &Sock) -> Sys<Self> {
        let word = sock.shared.tx_buf.load(Acquire);
        if let Some(end) = pair::named(sock.att, word) {
            let end = match end {
                Ok(end) => end,
                Err(error) => {
                    pair::give_up(sock, error);
                    return Ok(Self::none());
                }
            };
            let published = end.own().tail.load(Relaxed);
            let tail = if sock.intends(intent::MORE) {
                accepted(published, sock.shared.tx_held.load(Relaxed), STREAM_MAX)
            } else {
                published
            };
            // What the other side says may be a lie: then there is no room, to its own harm.
            let head = end.other().head.load(Acquire);
            let queued =
                if published == FROZEN || head == FROZEN { u64::MAX } else { tail.wrapping_sub(head) };
            let capacity_max = bound(sock, &end);
            let unsent_room = u64::MAX; // What stands there has arrived.
            return Ok(Self { tail, published, queued, capacity_max, unsent_room, place: Place::Pair(end) });
        }
        let buf = BufRef(word);
        let tail = sock.shared.tx_tail.load(Relaxed);
        let queued =
            if tail == FROZEN { u64::MAX } else { tail.wrapping_sub(sock.shared.tx_head.load(Acquire)) };
        // SO_SNDBUF, if it was set.
        let capacity_max = match u64::from(sock.shared.options.sndbuf.load(Relaxed)) {
            0 => buf.capacity(),
            set => set.min(buf.capacity()),
        };
        let unsent_room = unsent_room(sock, tail);
        Ok(Self { tail, published: tail, queued, capacity_max, unsent_room, place: Place::Region(buf) })
    }

    /// For the moment.
    fn none() -> Self {
        Self {
            tail: FROZEN,
            published: FROZEN,
            queued: u64::MAX,
            capacity_max: 0,
            unsent_room: 0,
            place: Place::Region(BufRef::NONE),
        }
    }

    fn free(&self) -> u64 {
        self.capacity_max.saturating_sub(self.queued).min(self.unsent_room)
    }
}

/// How many bytes TCP_NOTSENT_LOWAT lets follow `tail` (Linux tcp_stream_memory_free).
#[inline]
fn unsent_room(sock: &Sock, tail: u64) -> u64 {
    let lowat = match sock.shared.options.notsent_lowat.load(Relaxed) {
        0 => sock.att.page().notsent_lowat.load(Relaxed),
        set => set,
    };
    if lowat == u32::MAX { u64::MAX } else { below_lowat(sock, tail, lowat) }
}

#[cold]
fn below_lowat(sock: &Sock, tail: u64, lowat: u32) -> u64 {
    let sent = sock.shared.tx_sent.load(Acquire);
    // The engine has not been told yet, or just took the slot for this connection.
    let unsent = if sent == 0 { 0 } else { tail.wrapping_sub(sent) };
    if unsent < u64::from(lowat) { LOWAT_EXCESS } else { 0 }
}

/// Bytes that may be on their way to the program at the other end: what SO_SNDBUF here and SO_RCVBUF there allow together.
fn bound(sock: &Sock, end: &End) -> u64 {
    let part = |set: u32| if set == 0 { STREAM_MAX / 2 } else { u64::from(set) };
    let (ours, theirs) = (&sock.shared.options.sndbuf, &end.other().rcvbuf);
    part(ours.load(Relaxed)).saturating_add(part(theirs.load(Relaxed))).min(STREAM_MAX)
}

/// Whether `send` would take at least a byte; another thread may be faster. True also if it would fail.
pub fn has_room(sock: &Sock) -> bool {
    Room::of(sock).map_or(true, |room| room.free() > 0)
}

/// How many bytes `send` would take now, if no other thread is faster. Any number if it would fail.
pub fn room(sock: &Sock) -> usize {
    Room::of(sock).map_or(usize::MAX, |room| room.free() as usize)
}

/// Whether poll says "writable": Linux's rule, free space at least half of what is queued.
pub fn is_writable(sock: &Sock) -> bool {
    Room::of(sock).map_or(true, |room| {
        let free = room.capacity_max.saturating_sub(room.queued);
        free > 0 && free >= room.queued / 2 && room.unsent_room > 0
    })
}

/// Bytes that the peer has not acknowledged (SIOCOUTQ). What stands in a pair region has arrived, unless it is held back: it
/// waits for the peer's program alone, as in a receive queue.
pub fn queued(sock: &Sock) -> u64 {
    if pair::of(sock).is_some() {
        Room::of(sock).map_or(0, |room| room.tail.wrapping_sub(room.published))
    } else {
        sock.shared.tx_queued()
    }
}

/// Whether nothing can be sent any more, or not yet.
pub fn is_closed(sock: &Sock) -> bool {
    let now = sock.status();
    let broken = now & (status::DEAD | status::TX_FIN) != 0 || sock.intends(intent::SHUT_WR);
    // Connecting: no buffer yet, so it waits, or would block.
    broken || now & (status::CONNECTED | status::CONNECTING) == 0
}

/// Bytes of a write that is one of many …
const BULK: u64 = 65_536;
/// … of which so many shall fit into the stream.
const BULK_WRITES: u64 = 8;

/// Moves the stream of `end` to a larger place, so that `wanted` bytes fit, if there is one. The right to write is held.
/// Returns the class then in use, `None` if the word makes no sense.
fn grow(end: &End, room: &Room, wanted: u64) -> Option<u32> {
    let side = end.own();
    let class = side.class.load(Relaxed);
    let stream = |class| end.view.stream(end.at.slot, end.at.side, class);
    let old = stream(class)?;
    // Who writes much at a time gets room for several writes: in a short stream writer and reader are at each other's heels, and every
    // line comes out of the other core's cache instead of the one that they share (a third to a sixth of the speed).
    let writes = if wanted >= BULK { BULK_WRITES } else { 1 };
    let fit = room.queued.saturating_add(wanted * writes);
    if fit <= 1 << class {
        return Some(class);
    }
    let larger = class_for(fit);
    if larger <= class {
        return Some(class);
    }
    let new = stream(larger)?;
    let mut at = room.tail.wrapping_sub(room.queued);
    for from in pieces(1 << class, at, room.queued) {
        let mut source = old.wrapping_add(from.offset);
        for to in pieces(1 << larger, at, from.len as u64) {
            // Not libc's memcpy: a sanitizer watches that one, and takes what we do with our own memory for a race of the program's.
            // SAFETY: pieces of two places of this stream that don't overlap. A reader may read either meanwhile.
            let _ = unsafe { guard::copy(source, new.wrapping_add(to.offset), to.len) };
            source = source.wrapping_add(to.len);
        }
        at = at.wrapping_add(from.len as u64);
    }
    // SeqCst: a reader compares the class after its copy. The old place is not written any more.
    side.class.store(larger, SeqCst);
    Some(larger)
}

/// Where the next bytes go: the buffer, its capacity, and how many fit.
fn target(sock: &Sock, room: &Room, wanted: u64) -> Option<(*mut u8, u64, u64)> {
    match room.place {
        Place::Region(buf) => {
            let free = room.free();
            if free == 0 {
                return Some((core::ptr::null_mut(), buf.capacity(), 0));
            }
            Some((sock.att.region().stream(buf)?, buf.capacity(), free))
        }
        Place::Pair(end) => {
            let free = room.free();
            if free == 0 {
                return Some((core::ptr::null_mut(), STREAM_MAX, 0));
            }
            let class = grow(&end, room, wanted.min(free))?;
            let capacity = 1u64 << class;
            let base = end.view.stream(end.at.slot, end.at.side, class)?;
            Some((base, capacity, free.min(capacity.saturating_sub(room.queued))))
        }
    }
}

/// What became of bytes that were copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Published {
    /// The other end can have them.
    Yes,
    /// They are accepted and held back.
    Held,
    /// The engine has taken the place away: they were not sent.
    Gone,
}

/// The bytes before `end` are queued; `last`: they end what `flags` are about.
fn publish(sock: &Sock, room: &Room, end: u64, flags: c_int, last: bool) -> Published {
    let shared = sock.shared;
    let urgent = match room.place {
        Place::Region(_) => {
            let more = flags & libc::MSG_MORE != 0;
            if more != sock.intends(intent::MORE) {
                let _ = if more { sock.want(intent::MORE) } else { sock.want_no_more(intent::MORE) };
            }
            &shared.tx_urgent
        }
        Place::Pair(pair) => &pair.own().urgent,
    };
    if flags & libc::MSG_OOB != 0 && last {
        // The mark before the byte: nobody may read past it unawares.
        urgent.store(end, Release);
    }
    let sent = match room.place {
        Place::Region(_) => advance(&shared.tx_tail, room.tail, end),
        Place::Pair(pair) => {
            let may_hold = last && flags & libc::MSG_OOB == 0;
            let wanted = flags & libc::MSG_MORE != 0 || shared.options.has(option::CORK);
            if may_hold && wanted || sock.intends(intent::MORE) {
                return publish_part(sock, &pair, room, end, may_hold && wanted);
            }
            if room.queued == 0 {
                pair.own().sent_at.store(ticks(), Relaxed);
            }
            advance(&pair.own().tail, room.tail, end)
        }
    };
    if sent { Published::Yes } else { Published::Gone }
}

/// As [`publish`], where bytes are held back or shall be: all but the last segment's, if it is not full.
#[cold]
fn publish_part(sock: &Sock, pair: &End, room: &Room, end: u64, hold: bool) -> Published {
    let shared = sock.shared;
    let kept = if hold { end.wrapping_sub(room.published) % HELD_MAX } else { 0 };
    let upto = end.wrapping_sub(kept);
    let was_held = room.tail != room.published;
    if kept > 0 {
        let _ = sock.want(intent::MORE);
    }
    if kept > 0 || was_held {
        // First what is accepted, then what is seen: if the engine comes in between it has taken all that was accepted.
        let before = shared.tx_held.load(Relaxed);
        if before == FROZEN || !advance(&shared.tx_held, before, end) {
            return Published::Gone;
        }
        let tail = &pair.own().tail;
        let mut seen = room.published;
        while seen != upto && seen != FROZEN && !advance(tail, seen, upto) {
            seen = tail.load(Acquire);
        }
    } else if !advance(&pair.own().tail, room.tail, end) {
        return Published::Gone;
    }
    if kept == 0 {
        let _ = sock.want_no_more(intent::MORE);
    } else {
        // The engine lets go of what waits too long. Pairs with its fence: what is held before our look at whether it looks.
        fence(SeqCst);
        if shared.held_watched.load(Relaxed) == 0 {
            sock.kick();
        }
    }
    if upto == room.published { Published::Held } else { Published::Yes }
}

/// What is held back goes out now. The right to write is held; true: there was something.
fn release_held(sock: &Sock, room: &Room) -> bool {
    let Place::Pair(pair) = room.place else { return false };
    if room.tail == room.published {
        return false;
    }
    let _ = sock.want_no_more(intent::MORE);
    advance(&pair.own().tail, room.published, room.tail)
}

/// What is held back goes out now: it was uncorked, or no more will follow.
pub fn flush(sock: &Sock) {
    if !sock.intends(intent::MORE) || pair::of(sock).is_none() {
        return;
    }
    let released = {
        let right = sock.take_tx();
        right.is_ok() && Room::of(sock).is_ok_and(|room| release_held(sock, &room))
    };
    if released {
        announce(sock);
    }
}

/// What became of the bytes of a source.
#[derive(Debug, Clone, Copy, Default)]
struct Pushed {
    count: usize,
    /// The other end has something new to see.
    news: bool,
}

/// Copies what fits. Nothing: the stream is full, or moves to another place just now.
fn push(sock: &Sock, source: &mut impl Source, flags: c_int) -> Sys<Pushed> {
    let _right = sock.take_tx()?;
    if sock.intends(intent::SHUT_WR) {
        return Ok(Pushed::default()); // Shut down while we waited for the right: the caller finds out.
    }
    let room = Room::of(sock)?;
    let wanted = source.left() as u64;
    let Some((base, capacity, free)) = target(sock, &room, wanted) else { return Err(Errno(libc::EIO)) };
    let (tail, len) = (room.tail, free.min(wanted));
    if len == 0 {
        // Who can't write more waits for a reader, who must see it all.
        let news = wanted > 0 && room.queued != u64::MAX && release_held(sock, &room);
        return Ok(Pushed { count: 0, news });
    }
    let mut done = 0usize;
    for piece in pieces(capacity, tail, len) {
        if piece.len == 0 {
            break;
        }
        // SAFETY: a piece of the stream's buffer behind `tail`, which is ours by the right to write.
        let put = unsafe { source.put(base.wrapping_add(piece.offset), piece.len) };
        match put {
            Ok(count) => {
                done = done.saturating_add(count);
                if count < piece.len {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    let what = publish(sock, &room, tail.wrapping_add(done as u64), flags, source.left() == 0);
    if what == Published::Gone {
        // Copied to a place that the engine took away meanwhile.
        source.put_back(done, wanted as usize);
        return Ok(Pushed::default());
    }
    Ok(Pushed { count: done, news: what == Published::Yes })
}

/// Bytes were queued: whoever takes them hears of it.
#[inline]
fn announce(sock: &Sock) {
    match pair::of(sock) {
        Some(end) => end.tell_bytes(sock),
        None => sock.kick(),
    }
}

/// The stream was full: whoever makes space shall say so. The caller looks once more.
fn wish_for_room(sock: &Sock) {
    match pair::of(sock) {
        Some(end) => {
            end.adopt(sock);
            end.wish();
        }
        None => sock.intend(intent::TX_FULL),
    }
}

/// `send` of `list`.
pub fn send(sock: &Sock, list: &[iovec], flags: c_int) -> Sys<usize> {
    let mut buffers = Buffers::new(list)?;
    let count = send_from(sock, &mut buffers, flags)?;
    zerocopy::note(sock, flags, count);
    Ok(count)
}

/// `writev` of `list`: as `send`, but who has nothing to send is done at once.
pub fn write(sock: &Sock, list: &[iovec], flags: c_int) -> Sys<usize> {
    if list.iter().all(|one| one.iov_len == 0) {
        return Buffers::new(list).map(|_| 0);
    }
    send(sock, list, flags)
}

/// Waits until `sock` may send, or an error says that it never will. With a SYN that waits for bytes it may.
pub fn await_connection(sock: &Sock, flags: c_int) -> Sys<()> {
    let nonblocking = flags & libc::MSG_DONTWAIT != 0 || sock.is_nonblocking();
    let deadline = sleep::deadline_us(sock.shared.options.sndtimeo_us.load(Relaxed));
    let calm = Calm::on(Ending::with_timeout(deadline), sock);
    loop {
        if let Some(error) = refusal(sock, flags) {
            return Err(error);
        }
        if sock.was_connected() || fast_open::is_deferred(sock) {
            return Ok(());
        }
        if nonblocking {
            return Err(Errno(libc::EAGAIN));
        }
        match wait_for_room(sock, deadline, &calm) {
            Woken::News => {}
            Woken::Timeout => return Err(Errno(libc::EAGAIN)),
            Woken::Signal => return Err(Errno(libc::EINTR)),
        }
    }
}

/// Sends all of `source`, or as much as a socket that does not block takes.
pub fn send_from(sock: &Sock, source: &mut impl Source, flags: c_int) -> Sys<usize> {
    let nonblocking = flags & libc::MSG_DONTWAIT != 0 || sock.is_nonblocking();
    let mut sent = 0usize;
    let (mut deadline, mut calm) = (None, None);
    loop {
        if relayed::is_moved(sock) {
            return if sent > 0 { Ok(sent) } else { Err(Errno(libc::EINTR)) }; // The kernel's, from the next call on.
        }
        // The error stays for the next call if this one has something to tell.
        if sent > 0 && is_closed(sock) {
            return Ok(sent);
        }
        if let Some(error) = refusal(sock, flags) {
            return Err(error);
        }
        match push(sock, source, flags) {
            Ok(Pushed { count, news }) => {
                if news {
                    announce(sock);
                }
                sent = sent.saturating_add(count);
                if sent == 0 && fast_open::is_deferred(sock) {
                    return fast_open::send_first(sock, source, flags);
                }
                if source.left() == 0 {
                    // Who has nothing to send waits for the connection all the same (Linux tcp_sendmsg).
                    return if sent > 0 { Ok(sent) } else { await_connection(sock, flags).map(|()| 0) };
                }
                if count > 0 && has_room(sock) {
                    continue; // The source gave less than there was room for, or space came.
                }
            }
            Err(_) if sent > 0 => return Ok(sent),
            Err(error) => return Err(error),
        }
        // It may have come just now.
        wish_for_room(sock);
        if has_room(sock) {
            continue;
        }
        if nonblocking {
            return if sent > 0 { Ok(sent) } else { Err(Errno(libc::EAGAIN)) };
        }
        if deadline.is_none() {
            deadline = Some(sleep::deadline_us(sock.shared.options.sndtimeo_us.load(Relaxed)));
        }
        let until = deadline.flatten();
        let calm = calm.get_or_insert_with(|| Calm::on(Ending::with_timeout(until), sock));
        match wait_for_room(sock, until, calm) {
            Woken::News => {}
            _ if sent > 0 => return Ok(sent),
            Woken::Timeout => return Err(Errno(libc::EAGAIN)),
            Woken::Signal => return Err(Errno(libc::EINTR)),
        }
    }
}

fn wait_for_room(sock: &Sock, deadline_ns: Option<u64>, calm: &Calm<'_>) -> Woken {
    sleep::until(
        sock.att,
        || pair::bells(sock).1,
        deadline_ns,
        calm,
        || {
            let end = pair::of(sock);
            if let Some(end) = end {
                // Whoever told us of space took the wish back.
                end.wish();
            }
            if sock.shared.status.load(Acquire) & (status::DEAD | status::TX_FIN | status::MOVED) != 0
                || sock.intends(intent::SHUT_WR)
                || !sock.is_current()
                || is_writable(sock)
            {
                return true;
            }
            // As above.
            if end.is_none() && !sock.intends(intent::TX_FULL) {
                sock.intend(intent::TX_FULL);
            }
            false
        },
    )
}

/// Why nothing can be sent any more, or not yet, if so; the program is told by a signal, too.
pub fn refusal(sock: &Sock, flags: c_int) -> Option<Errno> {
    if !is_closed(sock) {
        return None;
    }
    let error = sock.take_error().unwrap_or(Errno(libc::EPIPE));
    if error == Errno(libc::EPIPE) && flags & libc::MSG_NOSIGNAL == 0 {
        sys::raise(libc::SIGPIPE);
    }
    Some(error)
}

/// Sends `bytes`, for which there was room and which can't be given back to where they were taken: all of them, if the connection holds,
/// even if another thread has taken the room meanwhile. How many.
pub fn send_taken(sock: &Sock, bytes: &[u8]) -> Sys<usize> {
    let list = buffer(bytes.as_ptr().cast(), bytes.len());
    let mut buffers = Buffers::new(&list)?;
    let mut sent = 0usize;
    loop {
        match send_from(sock, &mut buffers, 0) {
            Ok(count) => sent = sent.saturating_add(count),
            Err(Errno(libc::EAGAIN | libc::EINTR)) if !relayed::is_moved(sock) => {
                wait_for_room(sock, None, &Calm::now(Ending::Every));
            }
            Err(error) if sent == 0 => return Err(error),
            Err(_) => return Ok(sent),
        }
        if buffers.left() == 0 {
            return Ok(sent);
        }
    }
}
