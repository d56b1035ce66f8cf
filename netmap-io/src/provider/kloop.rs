//! A loop that syncs in its user's stead, until another thread stops it; and the words that it exchanges outside of the rings.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::handle::{Bound, Open};
use super::request::Asked;
use super::{State, errno};
use crate::netmap::abi::{CsbToKernel, CsbToUser, KloopStart, OptCsb, kind};

/// The longest nap that the loop can be told to take.
const SLEEP_US_MAX: u32 = 1_000_000;
/// How soon [`Open::looped`] sees that a loop has ended.
const LOOK: Duration = Duration::from_millis(1);

impl Asked {
    /// Whether it concerns a loop, which runs without the provider's lock.
    pub(super) fn is_of_loop(&self) -> bool {
        matches!(self.kind, kind::SYNC_KLOOP_START | kind::SYNC_KLOOP_STOP)
    }
}

impl Open {
    /// # Safety
    /// As for [`Asked::read`].
    pub(super) unsafe fn looped(&self, asked: &Asked) -> io::Result<()> {
        if asked.kind == kind::SYNC_KLOOP_STOP {
            self.bound().ok_or_else(|| errno(libc::ENXIO))?;
            self.stopping.store(true, Ordering::SeqCst);
            while self.looping.load(Ordering::SeqCst) {
                std::thread::sleep(LOOK);
            }
            return Ok(());
        }
        // SAFETY: the caller's contract.
        let KloopStart { sleep_us, .. } = unsafe { asked.body() };
        if sleep_us > SLEEP_US_MAX {
            return Err(errno(libc::EINVAL));
        }
        let bound = self.bound().ok_or_else(|| errno(libc::ENXIO))?;
        let csb = bound.csb.ok_or_else(|| errno(libc::EINVAL))?;
        if self.looping.swap(true, Ordering::SeqCst) {
            return Err(errno(libc::EBUSY));
        }
        while !self.stopping.swap(false, Ordering::SeqCst) {
            // SAFETY: the user promised the words to be there as long as the descriptor is open.
            unsafe { self.exchange(&bound, &csb) };
            std::thread::sleep(Duration::from_micros(sleep_us.into()));
        }
        self.looping.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// One round: the user's words go into the rings, those are synced, and the kernel's words come out.
    ///
    /// # Safety
    /// `csb` passed [`Self::check_csb`].
    unsafe fn exchange(&self, bound: &Bound, csb: &OptCsb) {
        let mut state = self.provider.lock();
        let state = &mut *state;
        let user = |at: usize| {
            let base =
                std::ptr::with_exposed_provenance::<CsbToKernel>(usize::try_from(csb.to_kernel).unwrap_or(0));
            // SAFETY: the caller's contract: as many entries as there are rings.
            let entry = unsafe { &*base.add(at) };
            (entry.head.load(Ordering::Acquire), entry.cur.load(Ordering::Acquire))
        };
        for (at, (tx, index)) in rings_of(bound).enumerate() {
            let (head, cur) = user(at);
            state.set_words(bound.nic, tx, index, head, cur);
        }
        Self::tx_sync(state, bound);
        self.rx_sync(state, bound);
        for (at, (tx, index)) in rings_of(bound).enumerate() {
            let nic = &state.nics[bound.nic];
            let ring = if tx { &nic.tx[index] } else { &nic.rx[index] };
            let base =
                std::ptr::with_exposed_provenance::<CsbToUser>(usize::try_from(csb.to_user).unwrap_or(0));
            // SAFETY: as above.
            let entry = unsafe { &*base.add(at) };
            entry.hwcur.store(ring.hw_cur, Ordering::Release);
            entry.hwtail.store(ring.hw_tail, Ordering::Release);
        }
    }

    /// Whether the words can be kept there: the rings have to be nobody else's, and the addresses aligned.
    pub(super) fn check_csb(&self, csb: OptCsb) -> io::Result<()> {
        let bound = self.bound().ok_or_else(|| errno(libc::EINVAL))?;
        let aligned = [csb.to_kernel, csb.to_user].iter().all(|at| *at != 0 && at.is_multiple_of(64));
        let Some(exclusive) = self.exclusive().filter(|_| aligned) else { return Err(errno(libc::EINVAL)) };
        if self.looping.load(Ordering::SeqCst) {
            return Err(errno(libc::EBUSY));
        }
        if !exclusive || rings_of(&bound).next().is_none() {
            return Err(errno(libc::EINVAL));
        }
        Ok(())
    }
}

/// All rings that a descriptor has, in the order of their words: whether it is a tx ring, and its index.
fn rings_of(bound: &Bound) -> impl Iterator<Item = (bool, usize)> + '_ {
    bound.tx.iter().map(|ring| (true, *ring)).chain(bound.rx.iter().map(|ring| (false, *ring)))
}

impl State {
    /// Writes head and cur into a ring.
    fn set_words(&self, nic: usize, tx: bool, index: usize, head: u32, cur: u32) {
        let nic = &self.nics[nic];
        let ring = if tx { &nic.tx[index] } else { &nic.rx[index] };
        if let Some(memory) = &self.memories[nic.memory] {
            ring.set_words(memory, head, cur);
        }
    }
}
