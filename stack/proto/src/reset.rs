//! The RST that answers a segment for which there is no connection (RFC 9293 §3.10.7.1).

use crate::segment::{Flags, Segment, Transmit};
use crate::seq::SeqNum;

/// The reset for a segment that belongs to nothing; `None` for a reset, which is never answered.
#[must_use]
pub fn reset_for(seg: &Segment) -> Option<Transmit> {
    if seg.flags.any(Flags::RST) {
        return None;
    }
    // RFC 9293 §3.10.7.1: with ACK, <SEQ=SEG.ACK><CTL=RST>; without, <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>.
    let (seq, ack) = match seg.ack {
        Some(ack) => (ack, None),
        None => (SeqNum::new(0), Some(seg.end())),
    };
    Some(Transmit { seq, ack, flags: Flags::RST, ..Transmit::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_an_ack_with_its_own_number() {
        let seg = Segment { seq: SeqNum::new(7), ack: Some(SeqNum::new(99)), len: 5, ..Segment::default() };
        let rst = reset_for(&seg).expect("a reset");
        assert_eq!((rst.seq, rst.ack, rst.flags), (SeqNum::new(99), None, Flags::RST));
    }

    #[test]
    fn acknowledges_what_has_no_ack() {
        let seg = Segment { seq: SeqNum::new(7), flags: Flags::SYN, len: 5, ..Segment::default() };
        let rst = reset_for(&seg).expect("a reset");
        assert_eq!((rst.seq, rst.ack), (SeqNum::new(0), Some(SeqNum::new(13))));
    }

    #[test]
    fn never_answers_a_reset() {
        assert_eq!(reset_for(&Segment { flags: Flags::RST, ..Segment::default() }), None);
    }
}
