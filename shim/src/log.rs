//! Records for the engine's log: fixed size, in the region, put into words by the engine.

use core::sync::atomic::Ordering::{Relaxed, Release};

use utcp_abi::region::{LOG_RECORDS, LogCode};

use crate::attach::Attachment;
use crate::process;

/// Writes one record. An old one that was not read yet may be lost; nobody waits.
pub fn record(att: &'static Attachment, code: LogCode, subject: u32) {
    record_with(att, code, subject, 0);
}

/// Writes one record with a first word of detail.
pub fn record_with(att: &'static Attachment, code: LogCode, subject: u32, detail: u32) {
    let header = att.region().header();
    let ticket = header.log_next.fetch_add(1, Relaxed);
    let Some(record) = header.log.get(ticket as usize % LOG_RECORDS) else { return };
    record.ready.store(0, Release);
    record.code.store(code as u32, Relaxed);
    record.pid.store(process::pid(), Relaxed);
    record.subject.store(subject, Relaxed);
    let [first, ..] = &record.detail;
    first.store(u64::from(detail), Relaxed);
    record.ready.store(ticket.wrapping_add(1), Release);
}
