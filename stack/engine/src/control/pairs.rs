//! What programs ask of pair regions: their memory, and the eventfds by which they ring each other's epoll sets.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use utcp_abi::layout::SETS_MAX;
use utcp_abi::message::{Kind, Message, Reply};

use super::Control;
use crate::shard::PairRegion;

/// A pair region and the bells of its lanes.
#[derive(Debug)]
pub(super) struct PairEntry {
    region: Arc<PairRegion>,
    /// By side and set.
    bells: HashMap<(u32, u32), OwnedFd>,
}

impl Control {
    pub(super) fn on_pair_made(&mut self, region: Arc<PairRegion>) {
        self.pairs.insert(region.number, PairEntry { region, bells: HashMap::new() });
    }

    /// Nobody is connected over it any more, and one of its programs is gone: the other one's sets forget it.
    pub(super) fn on_pair_gone(&mut self, number: u32) {
        let Some(entry) = self.pairs.remove(&number) else { return };
        for &(side, set) in entry.bells.keys() {
            let client = entry.region.clients.get(side as usize).and_then(|id| self.clients.get(id));
            let Some(region) = client.map(|client| client.shared.region()) else { continue };
            let Some(set) = region.set(set) else { continue };
            for word in &set.lanes {
                let found = word.load(Ordering::Acquire);
                if found as u32 == number.wrapping_add(1) {
                    let _ = word.compare_exchange(found, 0, Ordering::AcqRel, Ordering::Relaxed);
                }
            }
        }
    }

    /// [`Kind::Pair`], [`Kind::Lane`] and [`Kind::LaneBell`].
    pub(super) fn on_pair_message(
        &mut self,
        channel: u32,
        client: u32,
        kind: Kind,
        message: &Message,
        fd: Option<OwnedFd>,
    ) {
        // What the program asks for was announced before it could know of it.
        self.on_outbox();
        let side = (message.c & 1) as u32;
        let entry = self.pairs.get_mut(&(message.a as u32)).filter(|e| e.region.clients.contains(&client));
        let answer = match (entry, kind) {
            (None, _) => Err(libc::ESRCH),
            (Some(entry), Kind::Pair) => copy(entry.region.fd()).map(Some),
            (Some(entry), Kind::Lane) => entry.hang(client, side, message.b, fd).map(|()| None),
            (Some(entry), _) => entry.bell(client, side, message.b).and_then(copy).map(Some),
        };
        let error = answer.as_ref().err().copied().unwrap_or(0);
        let answer = answer.ok().flatten();
        let fds: Vec<BorrowedFd<'_>> = answer.iter().map(AsFd::as_fd).collect();
        self.reply(channel, &Reply { error, ..Reply::default() }, &fds);
    }
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd, i32> {
    fd.try_clone().map_err(|error| error.raw_os_error().unwrap_or(libc::EMFILE))
}

impl PairEntry {
    /// `client` says what rings its set `set`.
    fn hang(&mut self, client: u32, side: u32, set: u64, fd: Option<OwnedFd>) -> Result<(), i32> {
        if self.region.clients[side as usize] != client || set >= u64::from(SETS_MAX) {
            return Err(libc::EINVAL);
        }
        // Who shares an open file can make the other's writes block: only within one user.
        if self.region.users[0] != self.region.users[1] {
            return Err(libc::EPERM);
        }
        self.bells.insert((side, set as u32), fd.ok_or(libc::EBADF)?);
        Ok(())
    }

    /// `client` asks for what rings the other's set `set`.
    fn bell(&self, client: u32, side: u32, set: u64) -> Result<&OwnedFd, i32> {
        if self.region.clients[1 - side as usize] != client {
            return Err(libc::EINVAL);
        }
        let set = u32::try_from(set).map_err(|_| libc::EINVAL)?;
        self.bells.get(&(side, set)).ok_or(libc::ENOENT)
    }
}
