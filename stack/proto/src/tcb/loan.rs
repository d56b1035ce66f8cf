//! Memory that a connection borrows while it has much in flight, or much out of order.
//!
//! ```text
//!   TCB  │ … │ 4 records │ 2 ranges │          idle, or a message at a time: nothing else
//!              └──────────────────────► SentRecords  (512)   many segments in flight, or losses
//!                          └──────────► ArrivedRuns  (256)   holes in what arrived
//! ```
//!
//! What is lent is a reference that nobody else has, so nothing here can be used twice; who drops a TCB with a loan loses
//! the memory, no more.

use super::Tcb;
use crate::reassembly::ArrivedRuns;
use crate::scoreboard::SentRecords;
use crate::segment::Segment;

/// Who lends memory to connections. `None`: there is no more, and the connection makes do with what it has.
pub trait Lender {
    /// Records of what is in flight.
    fn records(&mut self) -> Option<&'static mut SentRecords>;
    /// Takes them back.
    fn take_records(&mut self, records: &'static mut SentRecords);
    /// Ranges of what is out of order.
    fn runs(&mut self) -> Option<&'static mut ArrivedRuns>;
    /// Takes them back.
    fn take_runs(&mut self, runs: &'static mut ArrivedRuns);
}

impl Tcb {
    /// Borrows what `seg` may make necessary; to be called before [`Tcb::on_segment`].
    #[inline]
    pub fn borrow_for(&mut self, seg: &Segment, lender: &mut impl Lender) {
        if self.board.wants_many(!seg.options.sack.as_slice().is_empty()) {
            self.borrow_records(lender);
        }
        if seg.len > 0 && self.reassembly.wants_many() && seg.seq.after(self.rcv.nxt) {
            self.borrow_runs(lender);
        }
    }

    /// Borrows what another segment may make necessary; to be called before [`Tcb::poll_transmit`].
    #[inline]
    pub fn borrow_to_send(&mut self, lender: &mut impl Lender) {
        if self.board.wants_many(false) {
            self.borrow_records(lender);
        }
    }

    /// Gives back what is not needed any more.
    #[inline]
    pub fn give_back(&mut self, lender: &mut impl Lender) {
        if let Some(records) = self.board.give_back() {
            lender.take_records(records);
        }
        if let Some(runs) = self.reassembly.give_back() {
            lender.take_runs(runs);
        }
    }

    /// Gives back everything, as nothing happens to this connection any more.
    pub fn end_loan(&mut self, lender: &mut impl Lender) {
        if let Some(records) = self.board.end_loan() {
            lender.take_records(records);
        }
        if let Some(runs) = self.reassembly.end_loan() {
            lender.take_runs(runs);
        }
    }

    #[cold]
    fn borrow_records(&mut self, lender: &mut impl Lender) {
        if let Some(records) = lender.records() {
            self.board.lend(records);
        }
    }

    #[cold]
    fn borrow_runs(&mut self, lender: &mut impl Lender) {
        if let Some(runs) = lender.runs() {
            self.reassembly.lend(runs);
        }
    }
}
