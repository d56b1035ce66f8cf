//! Reports on their way to tools, as fast as these read.
//!
//! A report is longer than a socket holds, and who asked may be slow, or never read at all. So what did not go at once
//! waits here, the channel is asked for room instead of messages, and nothing more that it says is read before: one
//! report for each channel at a time. Of one user [`TELLINGS_MAX`] wait at most; for one more, the one that began first is given
//! up with its channel, so that nobody's sleeping readers keep the same user's next tool from its answer.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use utcp_abi::message::Reply;

use super::{Control, Source};
use crate::sys;

/// Longest piece of a report in one message.
const PIECE: usize = 32 * 1024;
/// Reports that wait for readers of one user.
const TELLINGS_MAX: usize = 16;

/// What a channel is still to be told.
#[derive(Debug)]
pub(super) struct Telling {
    /// It comes first.
    reply: Option<Reply>,
    text: String,
    /// Bytes of the text that went.
    told: usize,
    since: Instant,
}

impl Telling {
    /// Sends until the end (`true`), or until there is no room.
    fn go_on(&mut self, fd: impl AsFd) -> io::Result<bool> {
        loop {
            let rest = &self.text.as_bytes()[self.told..];
            let piece = match &self.reply {
                Some(reply) => reply.as_bytes(),
                None if rest.is_empty() => return Ok(true),
                None => &rest[..rest.len().min(PIECE)],
            };
            match sys::send(fd.as_fd(), piece, &[]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    let len = piece.len();
                    if self.reply.take().is_none() {
                        self.told += len;
                    }
                }
            }
        }
    }
}

impl Control {
    /// Tells channel `number` a report, now or as it reads.
    pub(super) fn tell(&mut self, number: u32, text: String) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let reply = Reply { a: text.len() as u64, ..Reply::default() };
        channel.telling = Some(Telling { reply: Some(reply), text, told: 0, since: Instant::now() });
        let uid = channel.uid;
        if self.has_more_to_hear(number) {
            self.give_up_the_oldest(uid);
        }
    }

    /// Goes on with what channel `number` is told. Whether it has more to hear, and no message of it is to be read before.
    pub(super) fn has_more_to_hear(&mut self, number: u32) -> bool {
        let Some(channel) = self.channels.get_mut(&number) else { return false };
        let Some(telling) = &mut channel.telling else { return false };
        let (events, more) = match telling.go_on(&channel.fd) {
            Ok(true) => (super::CHANNEL_EVENTS, false),
            // Without EPOLLRDHUP, which would wake us for nothing until there is room.
            Ok(false) => (libc::EPOLLOUT, true),
            Err(_) => {
                self.on_channel_gone(number);
                return false;
            }
        };
        if !more {
            channel.telling = None;
        }
        let source = Source::Channel(number).pack();
        if self.epoll.change(channel.fd.as_fd(), events, source).is_err() {
            self.on_channel_gone(number);
            return false;
        }
        more
    }

    fn give_up_the_oldest(&mut self, uid: u32) {
        let begun = |(number, channel): (&u32, &super::Channel)| {
            channel.telling.as_ref().filter(|_| channel.uid == uid).map(|telling| (telling.since, *number))
        };
        let mut begun: Vec<_> = self.channels.iter().filter_map(begun).collect();
        if begun.len() > TELLINGS_MAX {
            begun.sort_unstable();
            tracing::warn!(uid, "a report is given up: too many of this user's tools do not read theirs");
            self.on_channel_gone(begun[0].1);
        }
    }
}
