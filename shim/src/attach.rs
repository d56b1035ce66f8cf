//! Being attached to an engine: its region, its page, its channel, its doors.
//!
//! A program attaches when it makes its first TCP socket. An engine may die and another take its
//! place; sockets of the old one stay readable in the old region, so attachments are never
//! unmapped and there may be [`ATTACHMENTS`] of them in a process's life.

use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64};

use utcp_abi::layout::{INFOS, MAGIC, REGION_LEN, REGION_LEN_SMALL, SHARDS_MAX, SOCKETS_MANY};
use utcp_abi::message::{Kind, Message, Reply};
use utcp_abi::page::EnginePage;
use utcp_abi::{ABI_VERSION, Region};

use crate::channel::{self, Channel, Quiet, Word};
use crate::fd_table::{self, Entry};
use crate::notice::{self, Topic};
use crate::pool::Pool;
use crate::sys::{self, Sys};
use crate::{config, death, finder, guard, io_uring, memory, numbers, process, tls};

/// Engines that one process may be attached to during its life.
pub const ATTACHMENTS: usize = 16;
/// Engines that may end on us one after the other before we give up.
const GREETINGS: u32 = 4;
/// After a failure, how long sockets go to the kernel before an engine is looked for again.
const RETRY_NS: u64 = 2_000_000_000;

/// One engine as this process sees it.
#[derive(Debug)]
pub struct Attachment {
    index: AtomicU32,
    region: UnsafeCell<Region>,
    page: AtomicPtr<EnginePage>,
    shards: AtomicU32,
    doors: [AtomicI32; SHARDS_MAX],
    channel: Channel,
    pool: Pool,
    /// 0 = it lives; 1 = its sockets were told of its death.
    buried: AtomicU32,
}

// SAFETY: `region` is written once, before `COUNT` publishes the attachment, and only read afterwards;
// everything else is atomic.
unsafe impl Sync for Attachment {}

static LIST: [Attachment; ATTACHMENTS] = [const { Attachment::new() }; ATTACHMENTS];
/// Attachments made so far; the last one is in use.
static COUNT: AtomicU32 = AtomicU32::new(0);
static ATTACHING: Word = Word::new();
static FAILED_AT: AtomicU64 = AtomicU64::new(0);

impl Attachment {
    const fn new() -> Self {
        Self {
            index: AtomicU32::new(0),
            // SAFETY: the null view is replaced before anything can reach it.
            region: UnsafeCell::new(unsafe { Region::new(ptr::null_mut()) }),
            page: AtomicPtr::new(ptr::null_mut()),
            shards: AtomicU32::new(0),
            doors: [const { AtomicI32::new(-1) }; SHARDS_MAX],
            channel: Channel::new(),
            pool: Pool::new(),
            buried: AtomicU32::new(0),
        }
    }

    /// Its number.
    pub fn index(&self) -> u32 {
        self.index.load(Relaxed)
    }

    /// Its region.
    #[inline]
    pub fn region(&'static self) -> &'static Region {
        // SAFETY: see `Sync`: whoever has a reference to a published attachment only reads.
        unsafe { &*self.region.get() }
    }

    /// The engine's page.
    #[inline]
    pub fn page(&self) -> &'static EnginePage {
        // SAFETY: set to a mapping that stays before the attachment was published.
        unsafe { &*self.page.load(Relaxed) }
    }

    /// The control channel.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The descriptors in stock.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Number of shards.
    pub fn shards(&self) -> u32 {
        self.shards.load(Relaxed)
    }

    /// How many of them, the first ones, get new sockets; at least one.
    pub fn active_shards(&self) -> u32 {
        self.page().active.load(Relaxed).clamp(1, self.shards().max(1))
    }

    /// Whether the engine lives and still serves this client.
    #[inline]
    pub fn is_alive(&'static self) -> bool {
        self.page().is_alive() && self.region().header().closed.load(Relaxed) == 0
    }

    /// True once for the thread that shall tell the sockets of the engine's death.
    pub fn bury(&self) -> bool {
        self.buried.swap(1, AcqRel) == 0
    }

    /// Makes `shard` look at socket `slot`.
    #[inline]
    pub fn kick(&'static self, shard: u32, slot: u32) {
        self.region().dirty(shard).set(slot);
        let Some(count) = self.page().sleeping(shard) else { return };
        let (Some(rung), Some(door)) =
            (self.region().header().rung.get(shard as usize), self.doors.get(shard as usize))
        else {
            return;
        };
        if rung.load(Acquire) != count {
            // The write comes first: whoever sees `rung` may rely on it.
            sys::eventfd_ring(door.load(Relaxed));
            rung.store(count, Release);
        }
    }
}

/// Attachment `index`, if it was made.
#[inline]
pub fn get(index: u32) -> Option<&'static Attachment> {
    (index < COUNT.load(Acquire)).then(|| LIST.get(index as usize)).flatten()
}

/// Calls `each` with every attachment.
pub fn each(each: impl FnMut(&'static Attachment)) {
    LIST.iter().take(COUNT.load(Acquire) as usize).for_each(each);
}

/// In the child of a fork: what was the parent's alone is given up.
pub fn forked() {
    ATTACHING.forked();
    crate::pair::forked();
    crate::lane::forked();
    each(|attachment| {
        attachment.channel.forked();
        attachment.pool.drain();
    });
    for (fd, _) in fd_table::used().filter(|(_, entry)| *entry == Entry::CHANGING) {
        fd_table::set(fd, Entry::KERNEL); // Whoever was at it is not in this process.
    }
    // Other threads of the parent had some in their hands, on their way into the pool or out of it.
    for (fd, _) in fd_table::used().filter(|(_, entry)| entry.kind() == fd_table::Kind::Pool) {
        fd_table::set(fd, Entry::KERNEL);
        let _ = sys::close(fd);
    }
}

/// The program wants number `fd` for itself, where something of ours stands: moves it, and says whether that
/// could be done.
pub fn relocate(fd: c_int) -> bool {
    let Ok(copy) = sys::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) else { return false };
    let copy = channel::hide(copy);
    let swap = |word: &AtomicI32| {
        let _ = word.compare_exchange(fd, copy, AcqRel, Relaxed);
    };
    each(|attachment| {
        swap(attachment.channel.number());
        attachment.doors.iter().for_each(swap);
    });
    crate::set::bells().for_each(swap);
    crate::pair::relocate(fd, copy);
    numbers::relocate(fd, copy);
    crate::lane::relocate(fd, copy);
    fd_table::set(fd, Entry::KERNEL);
    true
}

/// The attachment in use, if there is one that lives.
#[inline]
pub fn existing() -> Option<&'static Attachment> {
    let last = get(COUNT.load(Acquire).wrapping_sub(1))?;
    process::notice_fork();
    last.is_alive().then_some(last)
}

/// The attachment to use for a new socket: `None` means the kernel.
#[inline]
pub fn current() -> Option<&'static Attachment> {
    if io_uring::in_use() {
        io_uring::say();
        return None;
    }
    existing().or_else(attach)
}

#[cold]
fn attach() -> Option<&'static Attachment> {
    if config::disabled() || tls::thread().is_vfork_child() {
        return None;
    }
    let failed = FAILED_AT.load(Relaxed);
    if failed != 0 && sys::now_ns().wrapping_sub(failed) < RETRY_NS {
        return None;
    }
    let quiet = Quiet::new();
    let held = ATTACHING.take()?;
    if let Some(attachment) = existing() {
        return Some(attachment); // Another thread was faster.
    }
    if let Some(last) = get(COUNT.load(Acquire).wrapping_sub(1)) {
        death::notice(last);
    }
    if let Some(variable) = config::mistake() {
        notice::say(
            Topic::Environment,
            &[b"unknown setting or value in the environment: ", variable.to_bytes()],
        );
    }
    let outcome = find_and_greet();
    let result = match outcome {
        Ok(attachment) => {
            guard::stand();
            Some(attachment)
        }
        Err(failure) => {
            FAILED_AT.store(sys::now_ns().max(1), Relaxed);
            let reason = failure.words().as_bytes();
            notice::say(Topic::Engine, &[reason, b"; sockets of this process use the kernel"]);
            None
        }
    };
    drop(held);
    drop(quiet);
    result
}

/// An engine that ends while we greet it (its last client left, or it gave way to another that started at the same
/// moment) has a successor, or will have one that we start.
fn find_and_greet() -> Result<&'static Attachment, finder::Failure> {
    let mut len = REGION_LEN;
    for attempt in 0..GREETINGS {
        match welcome(finder::connect()?, len) {
            Ok(attachment) => return Ok(attachment),
            // Little address space: valgrind, `ulimit -v`.
            Err(sys::Errno(libc::ENOMEM | libc::EINVAL)) if len == REGION_LEN => len = REGION_LEN_SMALL,
            Err(sys::Errno(libc::ECONNRESET | libc::EPIPE)) => sys::nap_ms(5 << attempt),
            Err(_) => break,
        }
    }
    Err(finder::Failure::Refused)
}

/// Says hello on `fd`, maps `len` bytes of what comes back and publishes the attachment.
fn welcome(fd: c_int, len: usize) -> Sys<&'static Attachment> {
    let slot = COUNT.load(Acquire);
    let Some(attachment) = LIST.get(slot as usize) else {
        let _ = sys::close(fd);
        return Err(sys::Errno(libc::ENOSPC));
    };
    let mut message = Message::new(Kind::Hello);
    message.a = u64::from(ABI_VERSION);
    message.b = u64::from(process::pid());
    message.c = if len == REGION_LEN { 0 } else { len as u64 };
    message.name = channel::name();
    let devices = config::variable(b"UTCP_DEVICE").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let message = message.with_text(devices);
    channel::set_patience(fd);
    let result =
        channel::send(fd, &message, None).and_then(|()| channel::receive(fd)).and_then(|(reply, fds)| {
            let result = if reply.error == 0 {
                tell_of_other_devices(devices, &reply);
                if reply.c == len as u64 {
                    install(attachment, &fds, reply.b, len)
                } else {
                    Err(sys::Errno(libc::EPROTO))
                }
            } else {
                Err(sys::Errno(reply.error))
            };
            if result.is_err() {
                fds.close();
            }
            result
        });
    if let Err(errno) = result {
        let _ = sys::close(fd);
        return Err(errno);
    }
    process::watch_silent_forks();
    attachment.index.store(slot, Relaxed);
    attachment.channel.open(channel::hide(fd));
    COUNT.store(slot.wrapping_add(1), Release);
    Ok(attachment)
}

/// The engine was there before this program and has other devices than its environment asks for.
fn tell_of_other_devices(wanted: &str, reply: &Reply) {
    let text = reply.text();
    let devices = text.split(|&byte| byte == 0).next().unwrap_or_default();
    if !devices.is_empty() {
        notice::say(
            Topic::Device,
            &[
                b"UTCP_DEVICE=",
                wanted.as_bytes(),
                b" has no effect: an engine runs already and has ",
                devices,
                b"; stop it, or name another with UTCP_STACK",
            ],
        );
    }
}

/// Maps the region and the page, and keeps the doors.
fn install(attachment: &Attachment, fds: &channel::Fds, shards: u64, len: usize) -> Sys<()> {
    let wrong = sys::Errno(libc::EPROTO);
    let [region_fd, page_fd, doors @ ..] = fds.as_slice() else { return Err(wrong) };
    if doors.len() != shards as usize || doors.is_empty() || doors.len() > SHARDS_MAX {
        return Err(wrong);
    }
    let base = memory::map_shared(*region_fd, len, libc::PROT_READ | libc::PROT_WRITE)?;
    let page = match memory::map_shared(*page_fd, size_of::<EnginePage>(), libc::PROT_READ) {
        Ok(page) => page,
        Err(errno) => {
            memory::unmap(base, len);
            return Err(errno);
        }
    };
    // SAFETY: a fresh shared mapping of that length, page-aligned, which stays unless it is refused below.
    let region = unsafe { Region::new(base) };
    let header = region.header();
    if header.magic.load(Acquire) != MAGIC || header.version.load(Relaxed) != ABI_VERSION {
        memory::unmap(base, len);
        memory::unmap(page, size_of::<EnginePage>());
        return Err(wrong);
    }
    sys::madvise(base, len, libc::MADV_DONTDUMP);
    sys::madvise(base.wrapping_add(SOCKETS_MANY), INFOS - SOCKETS_MANY, libc::MADV_HUGEPAGE);
    // SAFETY: not published yet, and the attaching arbiter is held: nobody else looks at it.
    unsafe { *attachment.region.get() = region };
    attachment.page.store(page.cast(), Release);
    attachment.shards.store(shards as u32, Relaxed);
    let _ = sys::close(*region_fd);
    let page_fd = channel::hide(*page_fd);
    if !numbers::keep_back(page_fd) {
        fd_table::set(page_fd, Entry::KERNEL);
        let _ = sys::close(page_fd);
    }
    for (to, door) in attachment.doors.iter().zip(doors) {
        to.store(channel::hide(*door), Relaxed);
    }
    Ok(())
}
