//! Messages of programs: attach, adopt, pool, bells, listen, reports.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use utcp_abi::layout::{LISTENERS_MAX, REGION_LEN, REGION_LEN_SMALL};
use utcp_abi::message::{FDS_MAX, Kind, MESSAGE_LEN, Message, Reply};

use super::door::MESSAGES_MAX;
use super::{CHANNELS_MAX, CLIENTS_PER_USER_MAX, ClientEntry, Control, Source, TOKENS_MAX, Token};
use crate::shard::ToShard;
use crate::shard::client::ClientRegion;
use crate::sys::{self, Wait};

impl Control {
    /// A process says something, or is gone.
    pub(super) fn on_channel(&mut self, number: u32) {
        for _ in 0..MESSAGES_MAX {
            if self.has_more_to_hear(number) {
                return;
            }
            let Some(fd) = self.channels.get(&number).map(|c| c.fd.clone()) else { return };
            let mut bytes = [0; MESSAGE_LEN + 1];
            let mut fds = Vec::new();
            match sys::receive(fd.as_fd(), &mut bytes, &mut fds, Wait::Never) {
                Ok(0) => return self.on_channel_gone(number),
                Ok(len) => {
                    let message = bytes.get(..len).and_then(Message::from_bytes);
                    let kind = message.and_then(|m| Kind::from_u32(m.kind));
                    if let (Some(message), Some(kind)) = (message, kind) {
                        self.on_message(number, kind, &message, fds);
                    } else {
                        tracing::warn!(number, len, "a message that means nothing; channel closed");
                        return self.on_channel_gone(number);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.on_channel_gone(number),
            }
        }
    }

    fn on_message(&mut self, number: u32, kind: Kind, message: &Message, mut fds: Vec<OwnedFd>) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        channel.spoke = true;
        let client = channel.client;
        match (kind, client) {
            (Kind::Hello, None) => self.on_hello(number, message),
            (Kind::Report, _) => self.on_report(number, message),
            (Kind::Trace, None) => self.on_trace(number, message),
            (Kind::Adopt, Some(client)) => {
                let uid = self.channels.get(&number).map_or(0, |c| c.uid);
                let entry = self.clients.get(&client).filter(|entry| entry.channels < CHANNELS_MAX);
                // Anything else may never say that its other end is gone, or say so for ever: its client would stay, or keep us busy.
                let fd = fds.pop().filter(|fd| sys::is_channel(fd.as_fd()));
                if let (Some(fd), true) = (fd, entry.is_some()) {
                    let _ = self.add_channel(fd, Some(client), message.b as u32, uid);
                }
            }
            (Kind::Pool, Some(client)) => self.on_pool(number, client, message.a),
            (Kind::SetBell, Some(client)) => {
                let error =
                    fds.pop().map_or(libc::EBADF, |fd| self.on_set_bell(number, client, message.a, fd));
                self.reply(number, &Reply { error, ..Reply::default() }, &[]);
            }
            (Kind::Listen, Some(client)) => {
                let reply = match fds.pop() {
                    Some(fd) => self.on_listen(client, message, &fd),
                    None => Reply { error: libc::EBADF, ..Reply::default() },
                };
                self.reply(number, &reply, &[]);
            }
            (Kind::Pair | Kind::Lane | Kind::LaneBell, Some(client)) => {
                self.on_pair_message(number, client, kind, message, fds.pop());
            }
            (Kind::Group, Some(_)) => {
                let error = Reply { error: libc::EBADF, ..Reply::default() };
                let reply = fds.pop().map_or(error, |fd| self.on_group(&fd));
                self.reply(number, &reply, &[]);
            }
            (Kind::ListenCheck, Some(client)) => {
                let sock = message.a as u32;
                if message.b == 0 {
                    self.on_listen_check(client, Some(sock));
                } else {
                    let _ = self.leave_to_kernel(|of, listener| of == client && listener.sock == sock);
                }
                if message.b == 1 {
                    self.drop_listener(client, sock);
                }
                self.reply(number, &Reply::default(), &[]);
            }
            _ => self.reply(number, &Reply { error: libc::EPROTO, ..Reply::default() }, &[]),
        }
    }

    pub(super) fn reply(&self, number: u32, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        let Some(channel) = self.channels.get(&number) else { return };
        let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        if let Err(error) = sys::send(channel.fd.as_fd(), reply.as_bytes(), &raw) {
            tracing::warn!(pid = channel.pid, %error, "a reply could not be sent");
        }
    }

    /// A program attaches: it gets a region of its own.
    fn on_hello(&mut self, number: u32, message: &Message) {
        if message.a != u64::from(utcp_abi::ABI_VERSION) {
            tracing::warn!(theirs = message.a, ours = utcp_abi::ABI_VERSION, "a program of another version");
            return self.reply(number, &Reply { error: libc::EPROTONOSUPPORT, ..Reply::default() }, &[]);
        }
        let id = self.number();
        let uid = self.channels.get(&number).map_or(0, |c| c.uid);
        if self.clients.values().filter(|c| c.shared.uid == uid).count() >= CLIENTS_PER_USER_MAX {
            tracing::warn!(uid, "refused: this user runs too many programs under utcp");
            return self.reply(number, &Reply { error: libc::EUSERS, ..Reply::default() }, &[]);
        }
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let name: String = message
            .name
            .iter()
            .take_while(|&&byte| byte != 0)
            .map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' })
            .collect();
        let len = if message.c == REGION_LEN_SMALL as u64 { REGION_LEN_SMALL } else { REGION_LEN };
        let shared = match ClientRegion::new(id, channel.pid, channel.uid, name, self.inboxes.len()) {
            Ok(shared) => Arc::new(shared.of_len(len)),
            Err(error) => {
                tracing::error!(%error, "no region can be made");
                let errno = error.raw_os_error().unwrap_or(libc::ENOMEM);
                return self.reply(number, &Reply { error: errno, ..Reply::default() }, &[]);
            }
        };
        channel.client = Some(id);
        channel.own_pid = message.b as u32;
        tracing::info!(client = id, pid = channel.pid, name = shared.name, "client attached");
        self.to_all(|| ToShard::Attach(shared.clone()));
        let mut fds = vec![shared.fd().as_fd(), self.life.fd().as_fd()];
        fds.extend(shared.doorbells().iter().map(AsFd::as_fd));
        let reply =
            Reply { a: u64::from(id), b: self.inboxes.len() as u64, c: len as u64, ..Reply::default() };
        let wanted = message.text();
        let wanted = wanted.split(|&byte| byte == 0).next().unwrap_or_default();
        let other = self.other_devices(&String::from_utf8_lossy(wanted));
        self.reply(number, &reply.with_text(other.as_deref().unwrap_or_default()), &fds);
        if let Some(devices) = other {
            self.note_other_devices(shared.pid, &devices);
        }
        self.clients.insert(
            id,
            ClientEntry {
                shared: shared.clone(),
                channels: 1,
                tokens: 0,
                listeners: Vec::new(),
                free_listener_slots: (0..LISTENERS_MAX).rev().collect(),
                leaving: Vec::new(),
            },
        );
    }

    /// Our devices in words, if they are others than the `wanted` ones of a program (which may be cut off).
    fn other_devices(&self, wanted: &str) -> Option<String> {
        let cut = wanted.len() >= Message::TEXT_MAX;
        let wanted = crate::station::split_devices(wanted).join(",");
        let ours = self.config.devices.join(",");
        let same = wanted.is_empty() || wanted == ours || cut && ours.starts_with(&wanted);
        let words = if ours.is_empty() { "no device".to_owned() } else { ours };
        (!same).then_some(words)
    }

    /// The bell of an epoll set; 0 or an errno.
    fn on_set_bell(&mut self, number: u32, client: u32, set: u64, fd: OwnedFd) -> i32 {
        let foreign = self.channels.get(&number).is_none_or(|c| c.uid != sys::euid() && c.uid != 0);
        match sys::Bell::new(fd) {
            Ok(bell) if foreign && !bell.is_safe() => libc::EPERM,
            Ok(bell) => {
                let bell = Arc::new(bell);
                self.to_all(|| ToShard::SetBell { client, set: set as u32, bell: bell.clone() });
                0
            }
            Err(error) => error.raw_os_error().unwrap_or(libc::EBADF),
        }
    }

    /// Descriptors for sockets: pairs whose far ends stay here.
    fn on_pool(&mut self, number: u32, client: u32, wanted: u64) {
        let mut reply = Reply::default();
        let mut near_ends = Vec::new();
        let held = self.clients.get(&client).map_or(TOKENS_MAX, |c| c.tokens);
        let wanted = wanted.min(FDS_MAX as u64).min(u64::from(TOKENS_MAX.saturating_sub(held)));
        for slot in reply.tokens.iter_mut().take(wanted as usize) {
            let Ok((near, far)) = sys::socket_pair() else { break };
            let token = self.number();
            let events = libc::EPOLLIN | libc::EPOLLRDHUP;
            if self.epoll.add(far.as_fd(), events, Source::Token(token).pack()).is_err()
                || sys::mark_stand(near.as_fd()).is_err()
            {
                break;
            }
            self.tokens.insert(token, Token { client, far_end: far, held: None, signalled: false });
            *slot = token;
            near_ends.push(near);
        }
        reply.a = near_ends.len() as u64;
        if let Some(entry) = self.clients.get_mut(&client) {
            entry.tokens += near_ends.len() as u32;
        }
        if near_ends.is_empty() {
            reply.error = libc::EMFILE;
        }
        let fds: Vec<BorrowedFd<'_>> = near_ends.iter().map(AsFd::as_fd).collect();
        self.reply(number, &reply, &fds);
    }
}
