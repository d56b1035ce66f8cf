//! The program's own memory: buffers, vectors and addresses, as it hands them to us.
//!
//! A pointer that leads nowhere is EFAULT, as in the kernel: everything is copied by [`guard`], or looked at
//! by [`probe`] before it is used in place.

use core::ffi::c_int;
use core::mem::MaybeUninit;
use core::ptr;

use libc::{iovec, sockaddr, socklen_t};
use utcp_abi::socket::Addr;

use crate::guard;
use crate::sys::{Errno, Sys};

/// The kernel's limit for one vector.
const IOV_MAX: c_int = 1024;
/// Bytes that one call moves at most (Linux MAX_RW_COUNT, on pages of 4 KiB).
pub const BYTES_MAX: usize = 0x7fff_f000;

/// A list of buffers and a place in it.
#[derive(Debug, Clone, Copy)]
pub struct Buffers<'a> {
    list: &'a [iovec],
    /// Bytes of all.
    whole: usize,
    rest: &'a [iovec],
    /// Bytes of the first buffer that are done.
    done: usize,
    left: usize,
}

impl<'a> Buffers<'a> {
    /// Over `list`, as Linux judges it: all lengths, then all places, those of no bytes too. What is more than one call moves is cut.
    ///
    /// # Errors
    /// EINVAL for a negative length, EFAULT for an address that no program can have.
    #[inline]
    pub fn new(list: &'a [iovec]) -> Sys<Self> {
        if list.iter().any(|buffer| buffer.iov_len > isize::MAX as usize) {
            return Err(Errno(libc::EINVAL));
        }
        // A single one is cut before it is looked at.
        let cut = if list.len() == 1 { BYTES_MAX } else { usize::MAX };
        let mut left = 0usize;
        for buffer in list {
            if !guard::is_possible(buffer.iov_base as usize, buffer.iov_len.min(cut)) {
                return Err(Errno(libc::EFAULT));
            }
            left = left.saturating_add(buffer.iov_len).min(BYTES_MAX);
        }
        Ok(Self { list, whole: left, rest: list, done: 0, left })
    }

    /// Bytes from here to the end.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Calls `copy` with the program's memory for the next `len` bytes, piece by piece.
    fn walk(&mut self, mut len: usize, mut copy: impl FnMut(*mut u8, usize) -> Sys<()>) -> Sys<()> {
        while len > 0 {
            let Some((first, rest)) = self.rest.split_first() else { return Ok(()) };
            let piece = first.iov_len.saturating_sub(self.done).min(len);
            if piece == 0 {
                (self.rest, self.done) = (rest, 0);
                continue;
            }
            // Inside the buffer: `done + piece <= iov_len`.
            copy(first.iov_base.cast::<u8>().wrapping_add(self.done), piece)?;
            self.done = self.done.wrapping_add(piece);
            self.left = self.left.saturating_sub(piece);
            len = len.wrapping_sub(piece);
        }
        Ok(())
    }

    /// Copies `len` bytes from `from` into the buffers.
    ///
    /// # Safety
    /// `from` must be readable for `len` bytes; what can be written of the program's buffers is its own.
    ///
    /// # Errors
    /// EFAULT; bytes up to there are in the buffers.
    pub unsafe fn fill(&mut self, mut from: *const u8, len: usize) -> Sys<()> {
        self.walk(len, |to, piece| {
            // SAFETY: the program's buffer of at least `piece` bytes, and the caller's promise.
            unsafe { guard::copy(from, to, piece) }?;
            from = from.wrapping_add(piece);
            Ok(())
        })
    }

    /// Copies the next `len` bytes of the buffers to `to`.
    ///
    /// # Safety
    /// `to` must be writable for `len` bytes; what can be read of the program's buffers is its own.
    ///
    /// # Errors
    /// EFAULT; bytes up to there are at `to`.
    pub unsafe fn drain(&mut self, mut to: *mut u8, len: usize) -> Sys<()> {
        self.walk(len, |from, piece| {
            // SAFETY: the program's buffer of at least `piece` bytes, and the caller's promise.
            unsafe { guard::copy(from, to, piece) }?;
            to = to.wrapping_add(piece);
            Ok(())
        })
    }

    /// Goes back to where `left` bytes were left.
    pub fn back_to(&mut self, left: usize) {
        let before = self.whole.saturating_sub(left);
        *self = Self { rest: self.list, done: 0, left: self.whole, ..*self };
        self.skip(before);
    }

    /// Passes `len` bytes over without a copy.
    pub fn skip(&mut self, len: usize) {
        let _ = self.walk(len, |_, _| Ok(()));
    }
}

/// Copies `len` bytes of the program to a place of ours.
///
/// # Safety
/// `to` must be writable for `len` bytes; `from` is the program's.
///
/// # Errors
/// EFAULT.
pub unsafe fn copy_in(from: *const u8, to: *mut u8, len: usize) -> Sys<()> {
    if len != 0 && !guard::is_possible(from as usize, len) {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller's promise.
    unsafe { guard::copy(from, to, len) }
}

/// Copies `len` bytes of ours to a place of the program.
///
/// # Safety
/// `from` must be readable for `len` bytes; `to` is the program's.
///
/// # Errors
/// EFAULT.
pub unsafe fn copy_out(from: *const u8, to: *mut u8, len: usize) -> Sys<()> {
    if len != 0 && !guard::is_possible(to as usize, len) {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller's promise.
    unsafe { guard::copy(from, to, len) }
}

/// A value of the program, wherever it stands.
///
/// # Safety
/// Every bit pattern of `T` is valid; `from` is the program's.
///
/// # Errors
/// EFAULT.
pub unsafe fn fetch<T: Copy>(from: *const T) -> Sys<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the value is as large as said, and any bytes make one.
    unsafe {
        copy_in(from.cast(), value.as_mut_ptr().cast(), size_of::<T>())?;
        Ok(value.assume_init())
    }
}

/// Writes a value where the program wants it.
///
/// # Safety
/// `to` is the program's.
///
/// # Errors
/// EFAULT.
pub unsafe fn give<T: Copy>(to: *mut T, value: T) -> Sys<()> {
    // SAFETY: the value is as large as said.
    unsafe { copy_out(ptr::from_ref(&value).cast(), to.cast(), size_of::<T>()) }
}

/// Looks whether `len` bytes of the program can be read: for what is then used in place.
///
/// # Errors
/// EFAULT.
pub fn probe(from: *const u8, len: usize) -> Sys<()> {
    if len == 0 {
        return Ok(());
    }
    let (mut at, last) = (0usize, len.wrapping_sub(1));
    loop {
        let mut byte = 0u8;
        // SAFETY: one byte of ours.
        unsafe { copy_in(from.wrapping_add(at), &raw mut byte, 1) }?;
        if at == last {
            return Ok(());
        }
        at = at.saturating_add(4096).min(last);
    }
}

/// The vector of `count` buffers at `list`.
///
/// # Safety
/// As `readv`: `list` has `count` elements.
pub unsafe fn vector<'a>(list: *const iovec, count: c_int) -> Sys<&'a [iovec]> {
    if !(0..=IOV_MAX).contains(&count) {
        return Err(Errno(libc::EINVAL));
    }
    if count == 0 {
        return Ok(&[]);
    }
    probe(list.cast(), (count as usize).wrapping_mul(size_of::<iovec>()))?;
    // SAFETY: the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts(list, count as usize) })
}

/// One buffer as a vector.
pub fn buffer(base: *const core::ffi::c_void, len: usize) -> [iovec; 1] {
    [iovec { iov_base: base.cast_mut(), iov_len: len.min(isize::MAX as usize) }]
}

/// One buffer as `read` and `write` have it, which look at its end before they cut it.
///
/// # Errors
/// EFAULT.
#[inline]
pub fn whole_buffer(base: *const core::ffi::c_void, len: usize) -> Sys<[iovec; 1]> {
    if len > BYTES_MAX && !guard::is_possible(base as usize, len) {
        return Err(Errno(libc::EFAULT));
    }
    Ok(buffer(base, len))
}

/// Looks at the address of a message, as Linux does for every kind of socket before one that is connected passes it over.
///
/// # Errors
/// EINVAL for a length that no address has, EFAULT.
pub fn check_name(name: *const sockaddr, len: socklen_t) -> Sys<()> {
    if name.is_null() {
        return Ok(());
    }
    if len as usize > size_of::<libc::sockaddr_storage>() {
        return Err(Errno(libc::EINVAL));
    }
    probe(name.cast(), len as usize)
}

/// An IPv4 address as IPv6 writes it.
pub fn mapped(v4: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = v4;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The IPv4 address in a mapped one.
pub fn unmapped(ip: &[u8; 16]) -> Option<[u8; 4]> {
    match *ip {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
        _ => None,
    }
}

/// The family of an address of the program.
///
/// # Safety
/// `address` has `len` readable bytes.
pub unsafe fn family(address: *const sockaddr, len: socklen_t) -> Sys<c_int> {
    // The kernel copies all of it before it looks at anything.
    if len as usize > size_of::<libc::sockaddr_storage>() {
        return Err(Errno(libc::EINVAL));
    }
    probe(address.cast(), len as usize)?;
    if (len as usize) < size_of::<libc::sa_family_t>() {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: the length was checked; the program's structure may stand anywhere.
    Ok(c_int::from(unsafe { fetch(address.cast::<libc::sa_family_t>()) }?))
}

/// Reads an address of the program, of the family that a socket has.
///
/// # Safety
/// `address` has `len` readable bytes.
///
/// # Errors
/// As `connect`: EFAULT, EINVAL (too short), EAFNOSUPPORT (another family).
pub unsafe fn address(address: *const sockaddr, len: socklen_t, inet6: bool) -> Sys<Addr> {
    // SAFETY: the caller's promise.
    let family = unsafe { family(address, len) }?;
    if inet6 {
        // A scope id may be missing (RFC 2133's structure has 24 bytes).
        if len < 24 {
            return Err(Errno(libc::EINVAL));
        }
        if family != libc::AF_INET6 {
            return Err(Errno(libc::EAFNOSUPPORT));
        }
        let mut full = MaybeUninit::<libc::sockaddr_in6>::zeroed();
        let wanted = (len as usize).min(size_of::<libc::sockaddr_in6>());
        // SAFETY: `wanted` bytes are readable and have room; zero bytes are valid for the rest.
        let full = unsafe {
            copy_in(address.cast::<u8>(), full.as_mut_ptr().cast::<u8>(), wanted)?;
            full.assume_init()
        };
        let scope = full.sin6_scope_id;
        return Ok(Addr { ip: full.sin6_addr.s6_addr, port: u16::from_be(full.sin6_port), scope });
    }
    if (len as usize) < size_of::<libc::sockaddr_in>() {
        return Err(Errno(libc::EINVAL));
    }
    if family != libc::AF_INET {
        return Err(Errno(libc::EAFNOSUPPORT));
    }
    // SAFETY: the length was checked; the program's structure may stand anywhere.
    let short = unsafe {
        let mut short = MaybeUninit::<libc::sockaddr_in>::uninit();
        copy_in(address.cast(), short.as_mut_ptr().cast(), size_of::<libc::sockaddr_in>())?;
        short.assume_init()
    };
    let ip = mapped(short.sin_addr.s_addr.to_ne_bytes());
    Ok(Addr { ip, port: u16::from_be(short.sin_port), scope: 0 })
}

/// Writes `addr` where the program wants it, cut to its room, and the true length.
///
/// # Safety
/// As `accept`: `len` is readable and writable, and `to` has as many bytes as it says. Both may be null.
///
/// # Errors
/// EFAULT for a buffer without a length, EINVAL for a negative one.
pub unsafe fn give_address(addr: Addr, inet6: bool, to: *mut sockaddr, len: *mut socklen_t) -> Sys<()> {
    if to.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe { give_name(addr, inet6, to, len) }
}

/// As [`give_address`] for who can't do without: no place is a place for nothing.
///
/// # Safety
/// As [`give_address`].
///
/// # Errors
/// EFAULT, EINVAL.
pub unsafe fn give_name(addr: Addr, inet6: bool, to: *mut sockaddr, len: *mut socklen_t) -> Sys<()> {
    // SAFETY: the program's own length.
    let room = unsafe { fetch(len) }?;
    if (room as c_int) < 0 {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: zero bytes are valid for both structures.
    let (mut long, mut short): (libc::sockaddr_in6, libc::sockaddr_in) =
        unsafe { (MaybeUninit::zeroed().assume_init(), MaybeUninit::zeroed().assume_init()) };
    let (from, size) = if inet6 {
        long.sin6_family = libc::AF_INET6 as u16;
        long.sin6_port = addr.port.to_be();
        long.sin6_addr.s6_addr = addr.ip;
        long.sin6_scope_id = addr.scope;
        (ptr::from_ref(&long).cast::<u8>(), size_of_val(&long))
    } else {
        short.sin_family = libc::AF_INET as u16;
        short.sin_port = addr.port.to_be();
        short.sin_addr.s_addr = u32::from_ne_bytes(unmapped(&addr.ip).unwrap_or_default());
        (ptr::from_ref(&short).cast::<u8>(), size_of_val(&short))
    };
    // SAFETY: at most `room` bytes of the program's buffer, and at most the structure.
    unsafe {
        copy_out(from, to.cast::<u8>(), size.min(room as usize))?;
        give(len, size as socklen_t)
    }
}

/// Whether `ip` is this host in any case: loopback, or "any", which means loopback to `connect`.
pub fn is_loopback(ip: &[u8; 16]) -> bool {
    match unmapped(ip) {
        Some([first, ..]) => first == 127 || unmapped(ip) == Some([0; 4]),
        None => {
            let number = u128::from_be_bytes(*ip);
            number == 0 || number == 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_walk_over_borders() {
        let (mut a, mut b) = (*b"____", *b"______");
        let list = [
            iovec { iov_base: a.as_mut_ptr().cast(), iov_len: 4 },
            iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 6 },
        ];
        let mut buffers = Buffers::new(&list).expect("valid");
        // SAFETY: all of it is this test's own memory.
        unsafe {
            buffers.fill(b"abc".as_ptr(), 3).expect("mapped");
            buffers.fill(b"defg".as_ptr(), 4).expect("mapped");
        }
        assert_eq!(buffers.left(), 3);
        assert_eq!((&a, &b), (b"abcd", b"efg___"));
        let mut buffers = Buffers::new(&list).expect("valid");
        buffers.skip(2);
        let mut out = [0u8; 5];
        // SAFETY: as above.
        unsafe { buffers.drain(out.as_mut_ptr(), 5) }.expect("mapped");
        assert_eq!(&out, b"cdefg");
    }

    #[test]
    fn nonsense_is_refused() {
        let list = [iovec { iov_base: ptr::without_provenance_mut(usize::MAX), iov_len: 1 }];
        assert_eq!(Buffers::new(&list).map(|_| ()), Err(Errno(libc::EFAULT)));
        // SAFETY: refused before it is looked at.
        unsafe {
            assert_eq!(vector(ptr::null(), -1).map(<[_]>::len), Err(Errno(libc::EINVAL)));
            assert_eq!(vector(ptr::null(), 1025).map(<[_]>::len), Err(Errno(libc::EINVAL)));
            assert_eq!(vector(ptr::null(), 0).map(<[_]>::len), Ok(0));
        }
    }

    #[test]
    fn addresses_there_and_back() {
        let addr = Addr { ip: mapped([127, 0, 0, 1]), port: 8080, scope: 0 };
        // SAFETY: this test's own structures, of their true lengths.
        unsafe {
            let mut room: libc::sockaddr_in6 = MaybeUninit::zeroed().assume_init();
            let at = ptr::from_mut(&mut room).cast::<sockaddr>();
            for inet6 in [false, true] {
                let mut len = size_of_val(&room) as socklen_t;
                assert_eq!(give_address(addr, inet6, at, &raw mut len), Ok(()));
                assert_eq!(address(at, len, inet6), Ok(addr));
                assert!(address(at, len, !inet6).is_err());
            }
            let mut len = 2;
            assert_eq!(give_address(addr, false, at, &raw mut len), Ok(()));
            assert_eq!(len, 16, "the true length");
        }
        assert!(is_loopback(&addr.ip) && is_loopback(&[0; 16]) && is_loopback(&mapped([0; 4])));
        assert!(!is_loopback(&mapped([10, 0, 0, 1])));
    }
}
