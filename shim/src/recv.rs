//! Taking bytes out of a socket: a copy and one compare-and-swap, no lock, no system call.
//!
//! ```text
//!   read rx_head, rx_buf, rx_tail ── copy ── rx_buf still the same? ── swap rx_head forward
//!            ▲                                     │ no                      │ failed
//!            └─────────────────────────────────────┴─────────────────────────┘
//! ```
//!
//! Nobody is excluded meanwhile. A second reader may copy the same bytes, but only one of them moves
//! `rx_head`; the other starts anew. The engine may put the stream into a larger buffer: then what was copied
//! may be stale, and is copied again. The slot may be closed and reused: the generation in the
//! upper bits of `rx_head` makes the swap fail. The engine may take the positions away ([`utcp_abi::freeze`]): for the moment there
//! is nothing to read, and no end of file either.

use core::ffi::c_int;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use core::sync::atomic::{AtomicU64, fence};

use libc::iovec;
use utcp_abi::freeze::{FROZEN, advance};
use utcp_abi::pair::{CLASSES, STREAM_MAX};
use utcp_abi::socket::{BufRef, file, intent, is_anothers, status};
use utcp_abi::stream::pieces;

use crate::handle::Sock;
use crate::pair::{self, End};
use crate::signals::{Calm, Ending};
use crate::sleep::{self, Woken};
use crate::sys::{Errno, Sys};
use crate::user::Buffers;
use crate::{relayed, sigio, urgent, zerocopy};

/// One look at the rx stream.
#[derive(Debug, Clone, Copy)]
struct View {
    head: u64,
    available: u64,
    /// Position of the last urgent byte + 1; 0: none.
    mark: u64,
    place: Place,
    capacity: u64,
    /// What the capacity can become.
    capacity_max: u64,
    /// `rx_buf`, which names the place.
    word: u64,
}

/// Where the bytes are.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// In the program's own region; the engine puts them there.
    Region(BufRef),
    /// Where the program at the other end puts them, and the class of its stream.
    Pair(End, u32),
}

impl View {
    /// The bytes are on their way to another place.
    fn is_frozen(&self) -> bool {
        self.head == FROZEN
    }

    /// The buffer's first byte.
    fn base(&self, sock: &Sock) -> Option<*mut u8> {
        match self.place {
            Place::Region(buf) => sock.att.region().stream(buf),
            Place::Pair(end, class) => end.view.stream(end.at.slot, 1 - end.at.side, class),
        }
    }

    /// Whether the stream has not been moved to another buffer since.
    fn is_there(&self, sock: &Sock) -> bool {
        match self.place {
            Place::Region(buf) => sock.shared.rx_buf.load(Acquire) == buf.0,
            Place::Pair(end, class) => end.other().class.load(Acquire) == class,
        }
    }

    /// Where readers meet.
    fn head_cell(&self, sock: &Sock) -> &'static AtomicU64 {
        match self.place {
            Place::Region(_) => &sock.shared.rx_head,
            Place::Pair(end, _) => &end.own().head,
        }
    }
}

/// A look at a stream that the program at the other end writes. It may lie: what it says is cut to a buffer.
fn view_pair(end: End, word: u64) -> Sys<View> {
    loop {
        let head = end.own().head.load(Acquire);
        let class = end.other().class.load(Acquire);
        let tail = end.other().tail.load(Acquire);
        let mark = end.other().urgent.load(Acquire);
        let place = Place::Pair(end, class);
        if head == FROZEN || tail == FROZEN {
            return Ok(frozen(place, word));
        }
        if is_anothers(head, end.at.generation, &end.own().generation) {
            return Err(Errno(libc::EBADF)); // Closed by another thread meanwhile.
        }
        if class != end.other().class.load(Acquire) {
            continue;
        }
        let capacity = if CLASSES.contains(&class) { 1 << class } else { 0 };
        let available = tail.wrapping_sub(head);
        let available = if available > capacity { 0 } else { available };
        return Ok(View { head, available, mark, place, capacity, capacity_max: STREAM_MAX, word });
    }
}

/// A look at a stream that moves to another place just now.
#[cold]
fn frozen(place: Place, word: u64) -> View {
    View { head: FROZEN, available: 0, mark: 0, place, capacity: 0, capacity_max: u64::MAX, word }
}

#[inline]
fn view(sock: &Sock) -> Sys<View> {
    let word = sock.shared.rx_buf.load(Acquire);
    match pair::named(sock.att, word) {
        None => {}
        Some(Ok(end)) => return view_pair(end, word),
        Some(Err(error)) => {
            pair::give_up(sock, error);
            return Ok(frozen(Place::Region(BufRef::NONE), word));
        }
    }
    loop {
        let head = sock.shared.rx_head.load(Acquire);
        let buf = sock.shared.rx_buf.load(Acquire);
        let tail = sock.shared.rx_tail.load(Acquire);
        let mark = sock.shared.rx_urgent.load(Acquire);
        if head == FROZEN {
            return Ok(frozen(Place::Region(BufRef(buf)), buf));
        }
        if is_anothers(head, sock.entry.generation(), &sock.shared.generation) {
            return Err(Errno(libc::EBADF)); // Closed by another thread meanwhile.
        }
        if buf != sock.shared.rx_buf.load(Acquire) {
            continue;
        }
        if buf >> 63 != 0 {
            return view(sock); // It has got a place in a pair region just now.
        }
        let (buf, word) = (BufRef(buf), buf);
        let capacity = buf.capacity();
        // Another reader may have moved on since: then the difference is nonsense, and is cut.
        let available = tail.wrapping_sub(head);
        let available = if available > capacity { 0 } else { available };
        let place = Place::Region(buf);
        return Ok(View { head, available, mark, place, capacity, capacity_max: capacity, word });
    }
}

/// Positions of an rx stream, see [`marks`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Marks {
    /// Position of the last urgent byte + 1; 0: none.
    pub mark: u64,
    /// Position of the next byte.
    pub head: u64,
    /// Position behind the last byte that came.
    pub tail: u64,
    /// What names the place: positions of another place mean other bytes.
    pub place: u64,
}

/// What to do with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Take,
    Peek,
    /// MSG_TRUNC on a stream: take without a copy.
    Discard,
    /// Both: only count.
    Count,
}

impl Mode {
    fn of(flags: c_int) -> Self {
        match (flags & libc::MSG_PEEK != 0, flags & libc::MSG_TRUNC != 0) {
            (false, false) => Self::Take,
            (true, false) => Self::Peek,
            (false, true) => Self::Discard,
            (true, true) => Self::Count,
        }
    }

    fn copies(self) -> bool {
        matches!(self, Self::Take | Self::Peek)
    }

    fn takes(self) -> bool {
        matches!(self, Self::Take | Self::Discard)
    }
}

/// What [`grab`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grab {
    /// So many bytes were moved.
    Bytes(usize),
    /// Nothing is there.
    Nothing,
    /// What is there moves to another place: whoever does that will tell.
    Later,
}

/// Moves what is there, at most what the buffers hold.
fn grab(sock: &Sock, buffers: &mut Buffers<'_>, mode: Mode) -> Sys<Grab> {
    loop {
        let seen = view(sock)?;
        let (hole, available) = up_to_mark(sock, &seen);
        let skipped = if mode.takes() { 0 } else { peek_offset(sock) };
        let (hole, available) = (hole.saturating_add(skipped), available.saturating_sub(skipped));
        let len = available.min(buffers.left() as u64);
        if len == 0 {
            if seen.is_frozen() {
                return Ok(Grab::Later);
            }
            if hole > 0 && mode.takes() && buffers.left() > 0 {
                let next = seen.head.wrapping_add(hole);
                let _ = advance(seen.head_cell(sock), seen.head, next);
            }
            return Ok(Grab::Nothing);
        }
        let (start, before) = (seen.head.wrapping_add(hole), *buffers);
        if mode.copies() {
            let Some(base) = seen.base(sock) else { return Err(Errno(libc::EIO)) };
            for piece in pieces(seen.capacity, start, len) {
                // SAFETY: a piece of the stream's buffer, which lies in the region.
                unsafe { buffers.fill(base.wrapping_add(piece.offset), piece.len) }?;
            }
        } else {
            buffers.skip(len as usize);
        }
        // Our copies before the looks that tell whether they were good.
        fence(SeqCst);
        let same = seen.is_there(sock);
        let head = seen.head_cell(sock);
        let ours = match mode {
            _ if !same => false,
            Mode::Peek | Mode::Count => head.load(Acquire) == seen.head,
            Mode::Take | Mode::Discard => advance(head, seen.head, start.wrapping_add(len)),
        };
        if !ours {
            *buffers = before;
            continue;
        }
        if mode.takes() && sock.shared.file.load(Relaxed) & file::PEEK_OFF != 0 {
            shift_peeks(sock, -(len as i64));
        }
        if let Place::Pair(end, _) = seen.place {
            if mode.takes() {
                end.tell_space(sock);
            }
            return Ok(Grab::Bytes(len as usize));
        }
        // The engine looks at what was taken whenever data comes. A peer that filled its window sends none until
        // it hears of more: so the engine must never be behind by more than a part of the stream. One with Nagle's algorithm
        // sends no second small segment before the first is acknowledged.
        let drained = len == available && hole.saturating_add(len) == seen.available;
        let next = start.wrapping_add(len);
        if mode.takes() && sock.shared.awaits_reader(next, seen.capacity, drained) {
            sock.kick();
        }
        return Ok(Grab::Bytes(len as usize));
    }
}

/// Where the next peek begins behind the next byte: SO_PEEK_OFF, if it is on.
fn peek_offset(sock: &Sock) -> u64 {
    if sock.shared.file.load(Relaxed) & file::PEEK_OFF == 0 {
        return 0;
    }
    u64::from(sock.shared.options.peek_off.load(Relaxed).wrapping_sub(1) & i32::MAX as u32)
}

/// Moves where the next peek begins: a peek ahead, a read back to the next byte at most.
#[cold]
fn shift_peeks(sock: &Sock, by: i64) {
    let _ = sock.shared.options.peek_off.fetch_update(Relaxed, Relaxed, |kept| {
        let now = kept.wrapping_sub(1) as i32;
        (now >= 0).then(|| {
            let moved = i64::from(now).saturating_add(by).clamp(0, i64::from(i32::MAX));
            (moved as u32).wrapping_add(1)
        })
    });
}

/// SO_PEEK_OFF was set: says so where every reader looks.
pub fn move_peeks(sock: &Sock) {
    move_peeks_of(sock.shared);
}

/// As [`move_peeks`], of a socket that was accepted with its listener's options.
pub fn move_peeks_of(shared: &utcp_abi::socket::Socket) {
    if shared.options.peek_off.load(Relaxed).wrapping_sub(1) as i32 >= 0 {
        shared.file.fetch_or(file::PEEK_OFF, AcqRel);
    } else if shared.file.load(Relaxed) & file::PEEK_OFF != 0 {
        shared.file.fetch_and(!file::PEEK_OFF, AcqRel);
    }
}

/// The urgent byte ends a read, or is a hole at the start of one: the hole's bytes, and those that may be read behind it.
#[inline]
fn up_to_mark(sock: &Sock, seen: &View) -> (u64, u64) {
    match urgent::ahead(seen.mark, seen.head) {
        None => (0, seen.available),
        Some(0) if urgent::is_inline(sock) || seen.available == 0 => (0, seen.available),
        Some(0) => (1, seen.available.saturating_sub(1)),
        Some(ahead) => (0, seen.available.min(ahead)),
    }
}

/// The byte at `position` of the rx stream in `place`, as it is now.
pub fn byte_at(sock: &Sock, position: u64, place: u64) -> Sys<u8> {
    loop {
        let seen = view(sock)?;
        if seen.is_frozen() || (seen.word ^ place) >> 63 != 0 {
            return Err(Errno(libc::EAGAIN));
        }
        let Some(base) = seen.base(sock) else { return Err(Errno(libc::EIO)) };
        let [piece, _] = pieces(seen.capacity, position, 1);
        // SAFETY: a byte of the stream's buffer, which lies in the region.
        let byte = unsafe { base.wrapping_add(piece.offset).read_volatile() };
        fence(SeqCst);
        if seen.is_there(sock) {
            return Ok(byte);
        }
    }
}

/// Why no byte will come, if so: end of file, an error, not connected.
fn end(sock: &Sock) -> Option<Sys<usize>> {
    let now = sock.status();
    if now & (status::DEAD | status::RX_FIN) == 0
        && now & status::CONNECTED != 0
        && !sock.intends(intent::SHUT_RD)
    {
        return None;
    }
    // As on Linux, an error that came after the peer's FIN is nothing to a reader (SOCK_DONE is looked at first): a writer
    // gets it.
    if now & status::RX_FIN != 0 {
        return Some(Ok(0));
    }
    if let Some(error) = sock.take_error() {
        return Some(Err(error));
    }
    if now & status::CONNECTED == 0 {
        if now & (status::CONNECTING | status::DEAD) == status::CONNECTING {
            return None;
        }
        // An attempt that failed has shut both sides, until a call tells of it; so has a `shutdown`, though that fails.
        let shut = now & status::DEAD != 0 && !sock.is_as_new(now) || sock.intends(intent::SHUT_RD);
        return Some(if shut { Ok(0) } else { Err(Errno(libc::ENOTCONN)) });
    }
    Some(Ok(0))
}

/// An error that was taken while there were bytes to return: the next call tells it.
pub fn report_later(sock: &Sock, error: Errno) {
    let _ = sock.shared.error.compare_exchange(0, error.0, AcqRel, Relaxed);
}

/// How many bytes must be there before a blocking `recv` of `len` returns.
fn target(sock: &Sock, flags: c_int, len: usize) -> usize {
    if flags & libc::MSG_WAITALL != 0 {
        return len.max(1);
    }
    (sock.shared.options.rcvlowat.load(Relaxed) as usize).clamp(1, len.max(1))
}

/// `recv` into `list`.
pub fn recv(sock: &Sock, list: &[iovec], flags: c_int) -> Sys<usize> {
    if flags & libc::MSG_ERRQUEUE != 0 {
        return zerocopy::take(sock).map(|_| 0);
    }
    sigio::hear(sock);
    let mut buffers = Buffers::new(list)?;
    if flags & libc::MSG_OOB != 0 {
        return urgent::take(sock, &mut buffers, flags);
    }
    let mode = Mode::of(flags);
    if !mode.takes() && sock.shared.file.load(Relaxed) & file::PEEK_OFF != 0 {
        let peeked = rest(sock, list, buffers, flags, mode, 0);
        if let Ok(count) = peeked {
            shift_peeks(sock, count as i64);
        }
        return peeked;
    }
    let len = buffers.left();
    // The way of nearly every call.
    if let Grab::Bytes(count) = grab(sock, &mut buffers, mode)? {
        let enough = flags & libc::MSG_WAITALL == 0 || count == len;
        if enough {
            return Ok(count);
        }
        return rest(sock, list, buffers, flags, mode, count);
    }
    rest(sock, list, buffers, flags, mode, 0)
}

/// The slow way: nothing (or too little) is there.
#[cold]
#[inline(never)]
fn rest<'a>(
    sock: &Sock,
    list: &'a [iovec],
    mut buffers: Buffers<'a>,
    flags: c_int,
    mode: Mode,
    mut got: usize,
) -> Sys<usize> {
    let len = got.saturating_add(buffers.left());
    let want = target(sock, flags, len);
    let nonblocking = flags & libc::MSG_DONTWAIT != 0 || sock.is_nonblocking();
    let (mut deadline, mut calm) = (None, None);
    loop {
        if relayed::is_moved(sock) {
            return if got > 0 { Ok(got) } else { Err(Errno(libc::EINTR)) }; // The kernel's, from the next call on.
        }
        let mut over = end(sock);
        // Bytes that came before the end are delivered before it.
        if !mode.takes() {
            buffers = Buffers::new(list)?;
            got = 0;
        }
        if got > 0 && urgent::at_mark(sock) {
            return Ok(got); // No read goes over the mark.
        }
        match grab(sock, &mut buffers, mode)? {
            Grab::Bytes(count) => got = got.saturating_add(count),
            Grab::Nothing => {}
            Grab::Later if sock.att.is_alive() => {
                sock.kick(); // Who else could say so was not the engine, which finds that out.
                if let Some(Err(error)) = over.take() {
                    report_later(sock, error);
                }
            }
            Grab::Later => {}
        }
        let anything = if len == 0 { readable(sock) > 0 } else { got >= want };
        if anything {
            if let Some(Err(error)) = over {
                report_later(sock, error);
            }
            return Ok(got);
        }
        if let Some(over) = over {
            return match (got, over) {
                (0, over) => over,
                (_, Ok(_)) => Ok(got),
                (_, Err(error)) => {
                    report_later(sock, error);
                    Ok(got)
                }
            };
        }
        if nonblocking {
            return if got > 0 { Ok(got) } else { Err(Errno(libc::EAGAIN)) };
        }
        if deadline.is_none() {
            deadline = Some(sleep::deadline_us(sock.shared.options.rcvtimeo_us.load(Relaxed)));
        }
        let skipped = peek_offset(sock) as usize;
        let more = if !mode.takes() { want.saturating_add(skipped) } else { want.saturating_sub(got) };
        if let Some(end) = pair::of(sock) {
            end.adopt(sock);
        }
        let until = deadline.flatten();
        let calm = calm.get_or_insert_with(|| Calm::on(Ending::with_timeout(until), sock));
        match sleep::until(sock.att, || pair::bells(sock).0, until, calm, || is_ready(sock, more)) {
            // As Linux does it: who asks for nothing waits once, and then has it, whatever ended the wait.
            _ if len == 0 => return Ok(0),
            Woken::News => {}
            Woken::Timeout if got > 0 => return Ok(got),
            Woken::Timeout => return Err(Errno(libc::EAGAIN)),
            Woken::Signal if got > 0 => return Ok(got),
            Woken::Signal => return Err(Errno(libc::EINTR)),
        }
    }
}

/// Whether a sleeper that wants `want` bytes should look again.
fn is_ready(sock: &Sock, want: usize) -> bool {
    let ended = status::RX_FIN | status::DEAD | status::MOVED;
    let Ok(seen) = view(sock) else { return true };
    if seen.is_frozen() {
        return relayed::is_moved(sock) || !sock.att.is_alive();
    }
    let (_, available) = up_to_mark(sock, &seen);
    // More than fits never comes: a full buffer must do. Nor does anything before a mark that was reached.
    available >= (want as u64).min(seen.capacity_max.max(1))
        || sock.shared.status.load(Acquire) & ended != 0
        || sock.shared.error.load(Relaxed) != 0
        || sock.intends(intent::SHUT_RD)
        || available > 0 && available < seen.available
}

/// Bytes that wait (FIONREAD): as Linux counts them, up to the urgent one.
pub fn waiting(sock: &Sock) -> usize {
    let Ok(seen) = view(sock) else { return 0 };
    match urgent::ahead(seen.mark, seen.head) {
        Some(ahead) if !urgent::is_inline(sock) => seen.available.min(ahead) as usize,
        _ => seen.available as usize,
    }
}

/// Whether a reader who wants `least` bytes should try: they are there, or an error is.
#[inline]
pub fn has(sock: &Sock, least: usize) -> bool {
    view(sock).is_err() || readable(sock) >= least
}

/// Where the urgent mark, the next byte and the end of what came are.
pub fn marks(sock: &Sock) -> Marks {
    view(sock).map_or(Marks::default(), |seen| Marks {
        mark: seen.mark,
        head: seen.head,
        tail: seen.head.wrapping_add(seen.available),
        place: seen.word,
    })
}

/// Bytes that make a socket readable: all but an urgent one at the head.
#[inline]
pub fn readable(sock: &Sock) -> usize {
    let Ok(seen) = view(sock) else { return 0 };
    let hole = urgent::ahead(seen.mark, seen.head) == Some(0) && !urgent::is_inline(sock);
    (seen.available as usize).saturating_sub(usize::from(hole))
}

/// `read` of `list`: as `recv`, but who asks for nothing gets it at once.
pub fn read(sock: &Sock, list: &[iovec], flags: c_int) -> Sys<usize> {
    if list.iter().all(|one| one.iov_len == 0) {
        return Buffers::new(list).map(|_| 0);
    }
    recv(sock, list, flags)
}
