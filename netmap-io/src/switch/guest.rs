//! One stack, seen from the switch: its control connection, its pipe, and what it asked for.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::message::{LEN, Question, Welcome, answer};
use super::table::{Entered, Owner, Table};
use super::{BLOCK, CLIENT_PORTS, CLIENT_TUPLES_MAX, STACK_TUPLES_MAX, STACKS_MAX};
use crate::{Flow, Port, PortError, Proto, Steering, Tuple};

/// Tuples that one stack has entered or taken out in one round: a few microseconds each.
const STEP: u32 = 32;

/// What was done for one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that it got.
    pub rx_frames: u64,
    /// Frames for it that its full pipe had no room for.
    pub rx_no_room: u64,
    /// Frames that it sent.
    pub tx_frames: u64,
    /// Frames that it may not send: from an address and port that it did not register.
    pub tx_spoofed: u64,
}

/// A range of tuples on its way in or out.
#[derive(Clone, Copy, Debug)]
struct Job {
    tuple: Tuple,
    first: u16,
    next: u16,
    last: u16,
    /// In, or out.
    enter: bool,
    /// Answer when it is done.
    errno: i32,
}

/// A connection. It is a stack's once there is a pipe.
pub(super) struct Guest {
    /// Its number in the table, from 1; also its place among the blocks of client ports.
    pub(super) owner: Owner,
    pub(super) name: String,
    pub(super) stream: UnixStream,
    pub(super) port: Option<Box<dyn Port>>,
    pub(super) counts: Counts,
    /// The part of a question that came.
    partial: Vec<u8>,
    job: Option<Job>,
    tuples: u32,
    pub(super) dead: bool,
}

impl Guest {
    /// A connection that has not said yet what it is.
    pub(super) fn new(owner: Owner, stream: UnixStream) -> Self {
        Self {
            owner,
            name: String::new(),
            stream,
            port: None,
            counts: Counts::default(),
            partial: Vec::with_capacity(LEN),
            job: None,
            tuples: 0,
            dead: false,
        }
    }

    /// Its client ports, first and last.
    pub(super) fn client_ports(&self) -> (u16, u16) {
        let place = u16::try_from(self.owner.saturating_sub(1)).unwrap_or(0);
        let first = CLIENT_PORTS.start() + place * BLOCK;
        (first, first + BLOCK - 1)
    }

    /// Whose block of client ports begins with `first`.
    pub(super) fn owner_of(first: u16) -> Option<Owner> {
        let place = first.checked_sub(*CLIENT_PORTS.start())? / BLOCK;
        (usize::from(place) < STACKS_MAX).then(|| Owner::from(place) + 1)
    }

    /// Whether a range of tuples is on its way, or it is to be forgotten.
    pub(super) fn is_busy(&self) -> bool {
        self.job.is_some() || self.dead
    }

    /// Its next question, if one is there whole and the one before it is done with.
    pub(super) fn question(&mut self) -> Option<Question> {
        if self.job.is_some() || self.dead {
            return None;
        }
        let mut bytes = [0; LEN];
        let room = LEN - self.partial.len();
        match self.stream.read(&mut bytes[..room]) {
            Ok(0) => self.dead = true,
            Ok(len) => self.partial.extend_from_slice(&bytes[..len]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
            Err(_) => self.dead = true,
        }
        let whole: [u8; LEN] = self.partial.as_slice().try_into().ok()?;
        self.partial.clear();
        let question = Question::from_bytes(&whole);
        self.dead |= question.is_none();
        question
    }

    /// Answers a question. Who does not read its answers is dropped.
    pub(super) fn answer(&mut self, errno: i32, welcome: &Welcome) {
        self.dead |= self.stream.write_all(&answer(errno, welcome)).is_err();
    }

    /// Begins to enter or take out a range.
    pub(super) fn begin(&mut self, enter: bool, tuple: Tuple, first: u16, last: u16) {
        let errno = if first > last { libc::EINVAL } else { 0 };
        if errno != 0 {
            return self.answer(errno, &Welcome::default());
        }
        self.job = Some(Job { tuple, first, next: first, last, enter, errno: 0 });
    }

    /// Goes on with the range that is on its way; true if there is more to do.
    pub(super) fn step(&mut self, table: &mut Table, steering: Option<&dyn Steering>) -> bool {
        for _ in 0..STEP {
            let Some(mut job) = self.job.take() else { return false };
            let tuple = Tuple { port: job.next, ..job.tuple };
            let mut done = job.next == job.last;
            if !job.enter {
                self.take_out(tuple, table, steering);
            } else if let Err(errno) = self.enter(tuple, table, steering) {
                // All or nothing: what was entered before is taken out again.
                done = job.next == job.first;
                job = Job { next: job.first, last: job.next.wrapping_sub(1), enter: false, errno, ..job };
                if !done {
                    self.job = Some(job);
                    continue;
                }
            }
            if done {
                self.answer(job.errno, &Welcome::default());
                return false;
            }
            job.next += 1;
            self.job = Some(job);
        }
        true
    }

    fn enter(&mut self, tuple: Tuple, table: &mut Table, steering: Option<&dyn Steering>) -> Result<(), i32> {
        let (first, last) = self.client_ports();
        let client = CLIENT_PORTS.contains(&tuple.port);
        if client && !(first..=last).contains(&tuple.port) {
            return Err(libc::EADDRINUSE);
        }
        if !matches!(tuple.proto, Proto::TCP | Proto::UDP) {
            return Err(libc::EPROTONOSUPPORT);
        }
        if self.tuples >= if client { CLIENT_TUPLES_MAX } else { STACK_TUPLES_MAX } {
            return Err(libc::ENOSPC);
        }
        match table.enter(tuple, self.owner) {
            Entered::Taken => return Err(libc::EADDRINUSE),
            Entered::Inherited => {}
            Entered::New => {
                let register = |steering: &dyn Steering| match client {
                    true => steering.register_range(tuple, tuple.port..=tuple.port),
                    false => steering.register(tuple),
                };
                if let Some(Err(error)) = steering.map(register) {
                    table.remove(tuple, self.owner);
                    return Err(errno(&error));
                }
            }
        }
        self.tuples += 1;
        Ok(())
    }

    fn take_out(&mut self, tuple: Tuple, table: &mut Table, steering: Option<&dyn Steering>) {
        if table.remove(tuple, self.owner) {
            self.tuples = self.tuples.saturating_sub(1);
            // The kernel refuses only what is not there.
            let _ = steering.map(|steering| steering.unregister(tuple));
        }
    }

    /// Enters an exception for a flow; 0 or an errno.
    pub(super) fn enter_flow(
        &mut self,
        flow: Flow,
        verdict: crate::PeerVerdict,
        table: &mut Table,
        steering: Option<&dyn Steering>,
    ) -> i32 {
        if self.tuples >= STACK_TUPLES_MAX {
            return libc::ENOSPC;
        }
        if !table.enter_flow(flow, self.owner, verdict) {
            return libc::EADDRINUSE;
        }
        if let Some(Err(error)) = steering.map(|steering| steering.register_flow(flow, verdict)) {
            table.remove_flow(flow, self.owner);
            return errno(&error);
        }
        self.tuples += 1;
        0
    }

    /// Takes it out again.
    pub(super) fn take_flow_out(&mut self, flow: Flow, table: &mut Table, steering: Option<&dyn Steering>) {
        if table.remove_flow(flow, self.owner) {
            self.tuples = self.tuples.saturating_sub(1);
            let _ = steering.map(|steering| steering.unregister_flow(flow));
        }
    }
}

fn errno(error: &PortError) -> i32 {
    match error {
        PortError::InUse { .. } => libc::EADDRINUSE,
        PortError::System { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        _ => libc::ENOSPC,
    }
}
