//! System calls that several backends share: mappings, interface facts, sleeping on a descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::time::Duration;

/// A mapping of memory, undone when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; whoever holds it decides who touches it.
unsafe impl Send for Mapping {}
// SAFETY: as above: a shared reference gives out no more than the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed private memory, present from the start so that the fast path takes no page fault.
    pub(crate) fn anonymous(bytes: usize) -> io::Result<Self> {
        Self::map(bytes, READ_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE, -1, 0)
    }

    /// The same, taking memory only as it is touched.
    pub(crate) fn on_demand(bytes: usize) -> io::Result<Self> {
        Self::map(bytes, READ_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// `bytes` of `fd` from `offset`, shared with whoever else maps them.
    pub(crate) fn shared(fd: BorrowedFd<'_>, offset: libc::off_t, bytes: usize) -> io::Result<Self> {
        Self::map(bytes, READ_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), offset)
    }

    /// The same, only to be read.
    pub(crate) fn shared_to_read(fd: BorrowedFd<'_>, offset: libc::off_t, bytes: usize) -> io::Result<Self> {
        Self::map(bytes, libc::PROT_READ, libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), offset)
    }

    fn map(
        bytes: usize,
        access: libc::c_int,
        flags: libc::c_int,
        fd: libc::c_int,
        offset: libc::off_t,
    ) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, bytes })
    }

    /// In large pages, where the kernel has them: for memory that is used from end to end, such as packet buffers, in which
    /// every frame otherwise costs a walk through the page tables.
    pub(crate) fn in_large_pages(self) -> Self {
        // SAFETY: the advice concerns this mapping alone and changes no byte. Where there are none, nothing happens.
        let _ = unsafe { libc::madvise(self.base.as_ptr().cast(), self.bytes, libc::MADV_HUGEPAGE) };
        self
    }

    /// Where it starts; page-aligned.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Its length.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// The address `offset` bytes into it.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.bytes, "offset {offset} is behind the mapping's {} bytes", self.bytes);
        // SAFETY: the offset was checked against the mapping's length.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `map` made, and every borrower has ended with the owner.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Bytes of a page of this machine.
pub(crate) fn page_bytes() -> usize {
    // SAFETY: has no effect.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Asks for the cache line in which `of` begins, so that it is there when it is needed. A hint: nothing waits.
#[inline]
pub(crate) fn prefetch<T>(of: Option<&T>) {
    if let Some(of) = of {
        prefetch_at(NonNull::from(of).cast());
    }
}

/// The same for the line at an address, whatever is there.
#[inline]
pub(crate) fn prefetch_at(at: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction never faults, whatever the address, and reads nothing that a program could see.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The same, for who is about to write there: no other core keeps the line.
#[inline]
pub(crate) fn prefetch_to_write_at(at: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `prefetch_at`. Processors without it take it for nothing to do. The intrinsic would be the other prefetch on those
    // that the compiler builds for by default.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at.as_ptr(), options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// `-1` becomes `errno`, everything else the value.
pub(crate) fn check(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Takes ownership of a descriptor that a system call just made; `-1` becomes `errno`.
pub(crate) fn own(fd: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the caller passes the fresh result of a system call that makes a descriptor; nobody
    // else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor's number as the kernel's unsigned fields want it.
pub(crate) fn number(fd: &impl AsFd) -> u32 {
    u32::try_from(fd.as_fd().as_raw_fd()).expect("an open descriptor has a number")
}

/// What the kernel says about an interface.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    pub(crate) mac: [u8; 6],
    /// Set up by the administrator.
    pub(crate) up: bool,
    /// Ethernet, so that frames have the header that everybody expects.
    pub(crate) ethernet: bool,
    /// Receive queues that the driver uses now.
    pub(crate) queues: u32,
    /// Name of the driver; empty when it does not tell.
    pub(crate) driver: String,
}

/// A command and its number: `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    value: u32,
}

/// `struct ethtool_ringparam`.
#[repr(C)]
#[derive(Default)]
struct RingParam {
    cmd: u32,
    rx_max: u32,
    unused_max: [u32; 2],
    tx_max: u32,
    rx: u32,
    unused: [u32; 2],
    tx: u32,
}
const _: () = assert!(size_of::<RingParam>() == 36);

/// Asks the driver of `name` for the number that the ethtool command `cmd` stands for.
pub(crate) fn ethtool_get(name: &str, cmd: u32) -> io::Result<u32> {
    let mut value = EthtoolValue { cmd, value: 0 };
    ethtool(&ioctl_socket()?, name, &mut value)?;
    Ok(value.value)
}

/// Tells the driver of `name` a number.
pub(crate) fn ethtool_set(name: &str, cmd: u32, value: u32) -> io::Result<()> {
    ethtool(&ioctl_socket()?, name, &mut EthtoolValue { cmd, value })
}

/// Slots of the NIC's own rings, now and at most: `(rx, tx, rx_max, tx_max)`.
pub(crate) fn ring_sizes(name: &str) -> io::Result<(u32, u32, u32, u32)> {
    let mut rings = RingParam { cmd: ETHTOOL_GRINGPARAM, ..RingParam::default() };
    ethtool(&ioctl_socket()?, name, &mut rings)?;
    Ok((rings.rx, rings.tx, rings.rx_max, rings.tx_max))
}

/// How a NIC spreads frames over its queues, in ethtool's numbers.
pub(crate) struct RssTold {
    /// Bits of the hash functions in use.
    pub(crate) function: u8,
    /// What is done to the fields first.
    pub(crate) transform: u8,
    pub(crate) indirection: Vec<u32>,
    pub(crate) key: Vec<u8>,
}

/// The head of `struct ethtool_rxfh`, in words: command, context, entries of the table, bytes of the key, function and
/// transform in two bytes, reserved. Table and key follow.
const RXFH_HEAD: usize = 6;

/// Asks the driver of `name` for its hash.
pub(crate) fn rss(name: &str) -> io::Result<RssTold> {
    let socket = ioctl_socket()?;
    let mut head = [0_u32; RXFH_HEAD];
    head[0] = ETHTOOL_GRSSH;
    // With sizes of 0 the driver tells the sizes alone.
    ethtool(&socket, name, &mut head)?;
    let (entries, key_len) = (head[2].min(RSS_MAX) as usize, head[3].min(RSS_MAX) as usize);
    let mut all = vec![0_u32; RXFH_HEAD + entries + key_len.div_ceil(4)];
    all[..4].copy_from_slice(&[ETHTOOL_GRSSH, 0, head[2].min(RSS_MAX), head[3].min(RSS_MAX)]);
    let Some(first) = all.first_mut() else { return Err(io::ErrorKind::InvalidData.into()) };
    // SAFETY: ETHTOOL_GRSSH reads and writes a head of six words and, behind it, as many entries and key bytes as the
    // head says: exactly what `all` has room for.
    unsafe { ethtool_raw(&socket, name, std::ptr::from_mut(first).cast()) }?;
    let [function, transform, ..] = all[4].to_ne_bytes();
    let key = all[RXFH_HEAD + entries..].iter().flat_map(|word| word.to_ne_bytes()).take(key_len).collect();
    Ok(RssTold { function, transform, indirection: all[RXFH_HEAD..RXFH_HEAD + entries].to_vec(), key })
}

/// The fields of packets of a flow type that the hash covers, as bits.
pub(crate) fn rss_fields(name: &str, flow_type: u32) -> io::Result<u64> {
    let mut question = RxFields { cmd: ETHTOOL_GRXFH, flow_type, data: 0 };
    ethtool(&ioctl_socket()?, name, &mut question)?;
    Ok(question.data)
}

/// The first form of `struct ethtool_rxnfc`.
#[repr(C)]
struct RxFields {
    cmd: u32,
    flow_type: u32,
    data: u64,
}

const ETHTOOL_GRSSH: u32 = 0x46;
const ETHTOOL_GRXFH: u32 = 0x29;
/// Entries and key bytes that are believed.
const RSS_MAX: u32 = 4096;

/// While the descriptor is open, the interface takes frames for every group of the link, whoever has asked for them
/// (`PACKET_MR_ALLMULTI`, packet(7)). It hears none of them itself.
///
/// # Errors
/// No right to packet sockets, or no such interface.
pub(crate) fn all_groups(index: u32) -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor, touches no memory.
    let socket = own(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    let wish = libc::packet_mreq {
        mr_ifindex: i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?,
        mr_type: u16::try_from(libc::PACKET_MR_ALLMULTI).unwrap_or(0),
        mr_alen: 0,
        mr_address: [0; 8],
    };
    let len = libc::socklen_t::try_from(size_of_val(&wish)).unwrap_or(0);
    let (level, name) = (libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP);
    // SAFETY: the kernel reads one wish, which lives until the call returns.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const wish).cast(), len) })?;
    Ok(socket)
}

fn ioctl_socket() -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor, touches no memory.
    own(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })
}

const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}
const _: () = assert!(size_of::<DriverInfo>() == 196);

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    cmd: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}
const _: () = assert!(size_of::<Channels>() == 36);

/// Name of the interface with that number in this network namespace (if_indextoname(3)).
pub(crate) fn interface_name(index: u32) -> Option<String> {
    let mut name: [libc::c_char; libc::IF_NAMESIZE] = [0; libc::IF_NAMESIZE];
    // SAFETY: room for a name and its zero, as the call demands; it is read only when the call says that it wrote one.
    let name = unsafe {
        let found = libc::if_indextoname(index, name.as_mut_ptr());
        (!found.is_null()).then(|| std::ffi::CStr::from_ptr(name.as_ptr()))
    };
    Some(name?.to_str().ok()?.to_owned())
}

/// Asks the kernel about the interface `name` in the network namespace of this thread; `None` when
/// there is none.
pub(crate) fn interface(name: &str) -> io::Result<Option<Interface>> {
    let socket = ioctl_socket()?;
    let index = match ifreq(&socket, name, libc::SIOCGIFINDEX) {
        Ok(reply) => reply,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        Err(error) => return Err(error),
    };
    // SAFETY: SIOCGIFINDEX fills this member of the union.
    let index = u32::try_from(unsafe { index.ifr_ifru.ifru_ifindex }).unwrap_or(0);
    let mtu = ifreq(&socket, name, libc::SIOCGIFMTU)?;
    // SAFETY: SIOCGIFMTU fills this member of the union.
    let mtu = u32::try_from(unsafe { mtu.ifr_ifru.ifru_mtu }).unwrap_or(0);
    let address = ifreq(&socket, name, libc::SIOCGIFHWADDR)?;
    // SAFETY: SIOCGIFHWADDR fills this member of the union.
    let address = unsafe { address.ifr_ifru.ifru_hwaddr };
    let mac = hardware_address(address);
    let flags = ifreq(&socket, name, libc::SIOCGIFFLAGS)?;
    // SAFETY: SIOCGIFFLAGS fills this member of the union.
    let flags = libc::c_int::from(unsafe { flags.ifr_ifru.ifru_flags });
    let up = flags & libc::IFF_UP != 0;
    let mut info = DriverInfo { cmd: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    let driver = match ethtool(&socket, name, &mut info) {
        Ok(()) => String::from_utf8_lossy(info.driver.split(|b| *b == 0).next().unwrap_or(&[])).into_owned(),
        Err(_) => String::new(),
    };
    let mut channels = Channels { cmd: ETHTOOL_GCHANNELS, ..Channels::default() };
    let queues = match ethtool(&socket, name, &mut channels) {
        Ok(()) => (channels.rx + channels.combined).max(1),
        Err(_) => 1,
    };
    let ethernet = address.sa_family == libc::ARPHRD_ETHER;
    Ok(Some(Interface { name: name.into(), index, mtu, mac, up, ethernet, queues, driver }))
}

/// Asks again and again whether an interface is up, and for its link address. By its number: a renamed one keeps that.
#[derive(Debug)]
pub(crate) struct Flags {
    socket: OwnedFd,
    index: libc::c_int,
}

impl Flags {
    /// Of the interface with that number in this network namespace.
    pub(crate) fn of(index: u32) -> io::Result<Self> {
        let index = libc::c_int::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(Self { socket: ioctl_socket()?, index })
    }

    /// Whether it is up; `None`: it is not there (any more).
    pub(crate) fn up(&self) -> Option<bool> {
        let request = self.ask(libc::SIOCGIFFLAGS)?;
        // SAFETY: SIOCGIFFLAGS filled this member of the union.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        Some(flags & libc::IFF_UP != 0)
    }

    /// Its link address, the same.
    pub(crate) fn mac(&self) -> Option<[u8; 6]> {
        let request = self.ask(libc::SIOCGIFHWADDR)?;
        // SAFETY: SIOCGIFHWADDR filled this member of the union.
        Some(hardware_address(unsafe { request.ifr_ifru.ifru_hwaddr }))
    }

    fn ask(&self, what: libc::Ioctl) -> Option<libc::ifreq> {
        let mut request = ifreq_named("");
        request.ifr_ifru.ifru_ifindex = self.index;
        for command in [libc::SIOCGIFNAME, what] {
            // SAFETY: both read and write one `ifreq`, which lives until the call returns; the first leaves in it the name
            // that the second wants.
            check(unsafe { libc::ioctl(self.socket.as_raw_fd(), command, &raw mut request) }).ok()?;
        }
        Some(request)
    }
}

/// The link address in a socket address.
fn hardware_address(address: libc::sockaddr) -> [u8; 6] {
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(address.sa_data) {
        *to = u8::from_ne_bytes(from.to_ne_bytes());
    }
    mac
}

/// An `ifreq` with the name filled in; the rest zero.
pub(crate) fn ifreq_named(name: &str) -> libc::ifreq {
    // SAFETY: zeroes are a value of every member of `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes(from.to_ne_bytes());
    }
    request
}

fn ifreq(socket: &OwnedFd, name: &str, command: libc::Ioctl) -> io::Result<libc::ifreq> {
    let mut request = ifreq_named(name);
    // SAFETY: the interface requests read and write one `ifreq`, which lives until the call returns.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), command, &raw mut request) })?;
    Ok(request)
}

fn ethtool<T>(socket: &OwnedFd, name: &str, command: &mut T) -> io::Result<()> {
    // SAFETY: the kernel reads and writes the structure that belongs to the command number in its
    // first word; every caller passes that structure at its full size.
    unsafe { ethtool_raw(socket, name, std::ptr::from_mut(command).cast()) }
}

/// # Safety
/// `command` points to the whole structure that belongs to the command number in its first word.
unsafe fn ethtool_raw(socket: &OwnedFd, name: &str, command: *mut libc::c_char) -> io::Result<()> {
    let mut request = ifreq_named(name);
    request.ifr_ifru.ifru_data = command;
    // SAFETY: by the caller's contract.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })?;
    Ok(())
}

/// Lifts the soft limit of locked memory to the hard one, and both to `bytes` if we may. Best effort:
/// the call that needs the memory says whether it was enough.
pub(crate) fn raise_memlock(bytes: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills the structure that we own.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } != 0 {
        return;
    }
    let want = limit.rlim_cur.saturating_add(bytes);
    let raised = libc::rlimit { rlim_cur: want, rlim_max: limit.rlim_max.max(want) };
    // SAFETY: reads the structure that we own.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const raised) } != 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: reads the structure that we own.
        let _ = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    }
}

/// poll(2); whether any descriptor is ready.
pub(crate) fn poll(fds: &mut [libc::pollfd], timeout: Duration) -> bool {
    let count = libc::nfds_t::try_from(fds.len()).unwrap_or(0);
    let millis = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the kernel reads and writes `count` entries of the slice.
    unsafe { libc::poll(fds.as_mut_ptr(), count, millis) > 0 }
}

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: makes a descriptor, touches no memory.
        own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    #[cfg(test)]
    pub(crate) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Wakes when `fd` is readable, which `data` tells then.
    pub(crate) fn add(&self, fd: RawFd, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN.unsigned_abs(), u64: data };
        // SAFETY: the kernel reads one event, which lives until the call returns.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) })
            .map(drop)
    }

    /// Wakes no more. One that is not there is not missed.
    pub(crate) fn remove(&self, fd: RawFd) {
        // SAFETY: looks a number up, touches no memory.
        unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
    }

    /// epoll_wait(2); `each` gets data and events of whatever is ready, or of some of it.
    pub(crate) fn wait(&self, timeout: Duration, mut each: impl FnMut(u64, libc::c_int)) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        let room = libc::c_int::try_from(events.len()).unwrap_or(0);
        let millis = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: room for as many events as we say.
        let got = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), room, millis) };
        for event in &events[..usize::try_from(got).unwrap_or(0)] {
            each(event.u64, event.events.cast_signed());
        }
    }
}

/// Waits for an exclusive lock on an open file, which ends when the file is closed.
pub(crate) fn lock(fd: libc::c_int) -> io::Result<()> {
    // SAFETY: acts on a descriptor and touches no memory.
    check(unsafe { libc::flock(fd, libc::LOCK_EX) }).map(drop)
}

/// Moves this thread into a network namespace of its own, which ends with it.
#[cfg(test)]
pub(crate) fn leave_network() -> io::Result<()> {
    // SAFETY: changes the kernel's view of this thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// The kernel's number of this thread.
#[cfg(test)]
pub(crate) fn thread_id() -> i32 {
    // SAFETY: has no arguments and can't fail.
    unsafe { libc::gettid() }
}

/// Sends one ICMP echo request by a raw socket; whether the answer comes.
#[cfg(test)]
pub(crate) fn ping(addr: [u8; 4], timeout: Duration) -> io::Result<bool> {
    use std::io::{Read, Write};
    // SAFETY: makes a descriptor, touches no memory.
    let socket = own(unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP) })?;
    // SAFETY: zeroes are a value of every member of `sockaddr_in`.
    let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    to.sin_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0);
    to.sin_addr.s_addr = u32::from_ne_bytes(addr);
    let len = libc::socklen_t::try_from(size_of_val(&to)).unwrap_or(0);
    // SAFETY: the kernel reads one address, which lives until the call returns.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), len) })?;
    let mut file = std::fs::File::from(socket);
    // Echo request, identifier 0x7777; the checksum of these two words is their complement.
    file.write_all(&[8, 0, 0x80, 0x88, 0x77, 0x77, 0, 0])?;
    let mut fds = [libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    let mut answer = [0; 128];
    Ok(poll(&mut fds, timeout) && file.read(&mut answer)? >= 28 && answer[20] == 0)
}
