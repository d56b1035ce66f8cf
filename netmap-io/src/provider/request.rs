//! Requests as they come: header, body, options. What the module refuses before it looks at what is meant.

use std::io;

use super::{Provider, errno};
use crate::netmap::abi::{Header, Opt, OptCsb, OptOffsets, VERSIONS, kind, option};

/// Bytes of the body of each kind of request; `None`: there is no such kind.
fn body_bytes(kind: u16) -> Option<usize> {
    Some(match kind {
        kind::REGISTER => 56,
        kind::PORT_INFO_GET => 32,
        kind::VALE_ATTACH | kind::POOLS_INFO_GET => 64,
        kind::VALE_DETACH
        | kind::VALE_LIST
        | kind::PORT_HDR_SET
        | kind::PORT_HDR_GET
        | kind::SYNC_KLOOP_START => 8,
        kind::VALE_NEWIF | kind::VALE_POLLING_ENABLE | kind::VALE_POLLING_DISABLE => 16,
        kind::VALE_DELIF | kind::SYNC_KLOOP_STOP | kind::CSB_ENABLE => 0,
        _ => return None,
    })
}

/// A request that is well formed.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) kind: u16,
    pub(super) name: String,
    /// Address of the body.
    body: usize,
    /// Address of the first option.
    options: usize,
}

impl Asked {
    /// # Safety
    /// `argument` is what [`Handle::ioctl`](crate::netmap::sys::Handle::ioctl) promises for `NIOCCTRL`.
    pub(super) unsafe fn read(argument: usize) -> io::Result<Self> {
        // SAFETY: the caller's contract.
        let header = unsafe { *std::ptr::with_exposed_provenance::<Header>(argument) };
        let Header { version, kind, reserved, name, options, body } = header;
        let bytes = body_bytes(kind);
        if !VERSIONS.contains(&version) || reserved != 0 || bytes.is_none_or(|n| (n > 0) != (body != 0)) {
            return Err(errno(libc::EINVAL));
        }
        let [body, options] = [body, options].map(|at| usize::try_from(at).unwrap_or(0));
        let asked = Self { kind, name: text(&name[..name.len() - 1]), body, options };
        // Whatever nobody takes up is not supported.
        // SAFETY: the caller's contract.
        unsafe { asked.each_option(|opt, _| opt.status = libc::EOPNOTSUPP.unsigned_abs()) };
        Ok(asked)
    }

    /// Calls `with` with every option's head and address.
    ///
    /// # Safety
    /// As for [`Self::read`].
    unsafe fn each_option(&self, mut with: impl FnMut(&mut Opt, usize)) {
        let mut at = self.options;
        while at != 0 {
            // SAFETY: the caller's contract: a chain of options that end with address 0.
            let opt = unsafe { &mut *std::ptr::with_exposed_provenance_mut::<Opt>(at) };
            with(opt, at);
            at = usize::try_from(opt.next).unwrap_or(0);
        }
    }

    /// Answers option `number`, if it is there, with what `judge` says of its address.
    ///
    /// # Safety
    /// As for [`Self::read`].
    unsafe fn answer(&self, number: u32, mut judge: impl FnMut(usize) -> io::Result<()>) -> io::Result<bool> {
        let mut found = Ok(false);
        // SAFETY: the caller's contract.
        unsafe {
            self.each_option(|opt, at| {
                if opt.kind == number {
                    let answer = judge(at);
                    let code = answer.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0);
                    opt.status = code.unsigned_abs();
                    found = answer.map(|()| true);
                }
            });
        }
        found
    }

    /// The words outside of the rings that are asked for.
    ///
    /// # Safety
    /// As for [`Self::read`].
    pub(super) unsafe fn csb(
        &self,
        mut judge: impl FnMut(OptCsb) -> io::Result<()>,
    ) -> io::Result<Option<OptCsb>> {
        let mut csb = None;
        // SAFETY: the caller's contract; an option of this kind is such a structure.
        let found = unsafe {
            self.answer(option::CSB, |at| {
                let asked = *std::ptr::with_exposed_provenance::<OptCsb>(at);
                csb = Some(asked);
                judge(asked)
            })
        };
        found.map(|_| csb)
    }

    /// Where frames are to begin in their buffers; `judge` says the largest offset that there is, which is told.
    ///
    /// # Safety
    /// As for [`Self::read`].
    pub(super) unsafe fn offsets(
        &self,
        mut judge: impl FnMut(OptOffsets) -> io::Result<u64>,
    ) -> io::Result<()> {
        let mut told = None;
        // SAFETY: the caller's contract; an option of this kind is such a structure.
        unsafe {
            self.answer(option::OFFSETS, |at| {
                let max = judge(*std::ptr::with_exposed_provenance::<OptOffsets>(at))?;
                told = Some((at, max));
                Ok(())
            })?;
            if let Some((at, max)) = told {
                (*std::ptr::with_exposed_provenance_mut::<OptOffsets>(at)).offset_max = max;
            }
        }
        Ok(())
    }

    /// Whether something was asked for that nobody took up.
    ///
    /// # Safety
    /// As for [`Self::read`].
    pub(super) unsafe fn check_options(&self) -> io::Result<()> {
        let mut left = false;
        // SAFETY: the caller's contract.
        unsafe { self.each_option(|opt, _| left |= opt.status == libc::EOPNOTSUPP.unsigned_abs()) };
        if left { Err(errno(libc::EOPNOTSUPP)) } else { Ok(()) }
    }

    /// The body.
    ///
    /// # Safety
    /// As for [`Self::read`], and `B` is the body of this kind.
    pub(super) unsafe fn body<B: Copy>(&self) -> B {
        debug_assert_eq!(Some(size_of::<B>()), body_bytes(self.kind), "a body of another kind");
        // SAFETY: the caller's contract.
        unsafe { *std::ptr::with_exposed_provenance::<B>(self.body) }
    }

    /// Writes it back.
    ///
    /// # Safety
    /// As for [`Self::body`].
    pub(super) unsafe fn reply<B: Copy>(&self, body: B) {
        // SAFETY: the caller's contract.
        unsafe { *std::ptr::with_exposed_provenance_mut::<B>(self.body) = body };
    }

    /// Writes a name into the header.
    ///
    /// # Safety
    /// As for [`Self::read`], of the same argument.
    pub(super) unsafe fn reply_name(argument: usize, name: &str) {
        // SAFETY: the caller's contract.
        let header = unsafe { &mut *std::ptr::with_exposed_provenance_mut::<Header>(argument) };
        header.name = [0; 64];
        header.name.iter_mut().zip(name.bytes().take(63)).for_each(|(to, from)| *to = from);
    }
}

/// The name in a field.
pub(super) fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

impl Provider {
    /// Memory that a tx slot of a switch points to (`NS_INDIRECT`); `None`: there is none at that address.
    pub(super) fn copy_in(address: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len };
        let from = std::ptr::without_provenance_mut(usize::try_from(address).ok()?);
        let remote = libc::iovec { iov_base: from, iov_len: len };
        // SAFETY: writes into `bytes` alone; the kernel checks the other address. Our own process: needs no privilege.
        let read =
            unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
        (usize::try_from(read) == Ok(len)).then_some(bytes)
    }
}
