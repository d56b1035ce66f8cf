//! TCP/IP as a pure function: no allocation, no clock, no I/O, no unsafe code.
//!
//! Time is an argument ([`Instant`]), entropy a key ([`isn::Secret`]), bytes are lengths and offsets, effects are
//! return values ([`Actions`], [`Transmit`]). The crate knows the sequence space and the headers; it never sees
//! payload, except that [`wire::checksum`] can add it up.
//!
//! ```text
//!          frame ──wire::*──► Segment ─┐                        ┌─► Actions: copy, release, publish, report
//!                                      ▼                        │
//!   Transmit of a same-host peer ─► Tcb::on_segment ────────────┤
//!   UserCall ─────────────────────► Tcb::on_user ───────────────┤
//!   a deadline passed ────────────► Tcb::on_timer ──────────────┤
//!   ICMP error ───────────────────► Tcb::on_icmp ───────────────┘
//!                                   Tcb::poll_transmit ─► Transmit until None ──wire::*──► frame
//!                                   Tcb::next_deadline ─► when to call on_timer
//! ```
//!
//! # One connection, from both sides
//!
//! * A program connects: [`Tcb::connect`], then [`Tcb::poll_transmit`] gives the SYN. `Events::CONNECTED` comes with
//!   the SYN-ACK.
//! * A SYN for a listener: [`HalfOpen::on_syn`], send [`HalfOpen::syn_ack`], keep the record. Segments for the
//!   same four-tuple go to [`HalfOpen::on_segment`]; at `Established` make a TCB by [`Tcb::from_half_open`]. When the
//!   SYN queue is full, answer by [`cookie::encode`] and keep nothing; [`cookie::decode`] finds the record in the ACK.
//! * Fast Open: [`Tcb::connect_asking`] for a client without a cookie, [`Tcb::connect_fast`] with one; a server whose SYN brings the cookie of
//!   [`isn::Secret::fast_open_cookie`] may go from [`HalfOpen::on_syn`] to [`Tcb::fast_open`] at once.
//! * After `Events::TIME_WAIT` replace the TCB by the [`TimeWait`] of [`Tcb::time_wait`]; after `Events::CLOSED` drop it.
//!   In both cases poll first: the last ACK or RST is still inside.
//! * A segment for nothing at all: [`reset_for`].
//!
//! * A TCB is small, and borrows from a [`Lender`] while it has much in flight or out of order: call [`Tcb::borrow_for`]
//!   before `on_segment`, [`Tcb::borrow_to_send`] before `poll_transmit`, [`Tcb::give_back`] when it has worked, and
//!   [`Tcb::end_loan`] at its end. Who does not lend gets a connection that recovers more slowly from losses.
//!
//! # Where the bytes are
//!
//! ```text
//!   transmit stream:   snd.una ──────────── snd.nxt ──────────── end (what the program queued)
//!                         └ Transmit.offset counts from here; Actions.released moves it
//!   receive stream:    consumed ─── rcv.nxt ─── [out of order] ─── right edge of the window
//!                                     └ Place.at counts from here (its value before the call); Actions.advanced moves it
//! ```
//!
//! SYN and FIN are no stream bytes: no offset or count in [`Actions`] and [`Transmit`] includes them.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod config;
pub mod cookie;
pub mod isn;
pub mod seq;
pub mod siphash;
pub mod time;
pub mod wire;

mod actions;
mod challenge;
mod congestion;
mod half_open;
mod info;
mod reassembly;
mod reset;
mod rtt;
mod scoreboard;
mod segment;
mod tcb;
mod time_wait;

pub use actions::{
    Actions, DropReason, Events, IcmpError, IcmpKind, Place, SocketError, UserCall, UserError,
};
pub use challenge::{CHALLENGES_PER_SECOND, ChallengeLimit};
pub use config::{Config, CongestionKind, EcnMode, Keepalive, MtuProbing};
pub use half_open::{HalfOpen, HalfOpenTimer, HalfOpenVerdict};
pub use info::{PathModel, RecoveryState, State, TcpInfo};
pub use reassembly::ArrivedRuns;
pub use reset::reset_for;
pub use scoreboard::SentRecords;
pub use segment::{
    Endpoint, FastOpenCookie, Flags, FourTuple, Options, SackBlock, SackBlocks, Segment, Timestamps,
    Transmit, TxLimits,
};
pub use seq::SeqNum;
pub use tcb::{Lender, Tcb};
pub use time::{Duration, Instant};
pub use time_wait::{TimeWait, TimeWaitVerdict};
