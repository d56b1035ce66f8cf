//! Where programs come in: the engine's socket.
//!
//! Nobody may keep others out. A user's channels that have not said which program they are ([`Kind::Hello`](utcp_abi::message::Kind))
//! are few; a channel that talks without end takes turns with the others ([`MESSAGES_MAX`]); and when descriptors are used
//! up, who comes is sent away at once: it would wait for an answer, and the socket would wake us for ever.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::{CHANNEL_EVENTS, Channel, Control, Source};
use crate::config::Config;
use crate::sys::{self, UnixName};

/// Messages of one channel, and programs at the door, before everybody else has a turn.
pub(super) const MESSAGES_MAX: usize = 64;
/// Channels of one user that are no program's yet, or a tool's.
const STRANGERS_MAX: usize = 256;

/// A descriptor to give up when there are no others: with its number, who comes is taken in and sent away.
#[derive(Debug)]
pub(super) struct Spare(Option<OwnedFd>);

impl Spare {
    pub(super) fn new() -> Self {
        Self(sys::placeholder().ok())
    }

    /// Takes whoever waits at `door` in and closes the channel; whether somebody waited.
    fn turn_away(&mut self, door: &OwnedFd) -> bool {
        self.0 = None;
        let came = sys::accept(door.as_fd()).is_ok();
        *self = Self::new();
        came
    }
}

/// Whether a call failed because no more files can be open.
fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Whether a user's programs may come in: an abstract name has no permissions, so it serves its own user and root. A path's
/// permissions were checked by the kernel.
fn admits(config: &Config, uid: u32) -> bool {
    !matches!(config.name, UnixName::Abstract(_)) || uid == sys::euid() || uid == 0
}

impl Control {
    /// Programs knock.
    pub(super) fn on_door(&mut self) {
        for _ in 0..MESSAGES_MAX {
            match sys::accept(self.door.as_fd()) {
                Ok(fd) => self.on_knock(fd),
                Err(error) if is_out_of_files(&error) => {
                    if !self.spare.turn_away(&self.door) {
                        return;
                    }
                    tracing::warn!(%error, "refused: no descriptor is left for another program");
                }
                Err(_) => return,
            }
        }
    }

    fn on_knock(&mut self, fd: OwnedFd) {
        let Ok((pid, uid)) = sys::peer(fd.as_fd()) else { return };
        if !admits(&self.config, uid) {
            tracing::warn!(pid, uid, "refused: another user's program");
            return;
        }
        self.make_room_for_a_stranger(uid);
        if let Some(number) = self.add_channel(fd, None, pid, uid) {
            // It speaks first, and mostly has: then it is no stranger any more.
            self.on_channel(number);
        }
    }

    /// When too many of a user's channels are nobody's, one ends: of those that never said a word the first that came, so that whoever
    /// comes next is heard.
    fn make_room_for_a_stranger(&mut self, uid: u32) {
        let strangers = self.channels.iter().filter(|(_, c)| c.client.is_none() && c.uid == uid);
        let ages: Vec<_> = strangers.map(|(number, c)| (c.spoke, *number)).collect();
        if let Some((_, number)) = ages.iter().min().filter(|_| ages.len() >= STRANGERS_MAX) {
            tracing::warn!(uid, "a channel is closed: too many of this user's programs say nothing");
            self.on_channel_gone(*number);
        }
    }

    /// Listens to what a process says from now on.
    pub(super) fn add_channel(
        &mut self,
        fd: OwnedFd,
        client: Option<u32>,
        pid: u32,
        uid: u32,
    ) -> Option<u32> {
        let number = self.number();
        self.epoll.add(fd.as_fd(), CHANNEL_EVENTS, Source::Channel(number).pack()).ok()?;
        // What the process calls itself, in its own pid namespace: told by Hello or Adopt.
        let channel =
            Channel { fd: Arc::new(fd), client, pid, own_pid: pid, uid, spoke: false, telling: None };
        self.channels.insert(number, channel);
        if let Some(entry) = client.and_then(|client| self.clients.get_mut(&client)) {
            entry.channels += 1;
        }
        Some(number)
    }
}
