//! Lends memory to connections, as an engine does: what came back is lent again.
#![allow(dead_code, reason = "shared by several test programs")]

use std::cell::RefCell;

use utcp_proto::{ArrivedRuns, Lender, SentRecords};

thread_local! {
    static RECORDS: RefCell<Vec<&'static mut SentRecords>> = const { RefCell::new(Vec::new()) };
    static RUNS: RefCell<Vec<&'static mut ArrivedRuns>> = const { RefCell::new(Vec::new()) };
}

/// The shelf of this thread.
#[derive(Clone, Copy, Debug)]
pub struct Shelf;

impl Lender for Shelf {
    fn records(&mut self) -> Option<&'static mut SentRecords> {
        RECORDS.with_borrow_mut(Vec::pop).or_else(|| Some(Box::leak(Box::default())))
    }

    fn take_records(&mut self, records: &'static mut SentRecords) {
        RECORDS.with_borrow_mut(|shelf| shelf.push(records));
    }

    fn runs(&mut self) -> Option<&'static mut ArrivedRuns> {
        RUNS.with_borrow_mut(Vec::pop).or_else(|| Some(Box::leak(Box::default())))
    }

    fn take_runs(&mut self, runs: &'static mut ArrivedRuns) {
        RUNS.with_borrow_mut(|shelf| shelf.push(runs));
    }
}
