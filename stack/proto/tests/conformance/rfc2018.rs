//! RFC 2018 (SACK), RFC 2883 (DSACK), RFC 6675 (recovery with SACK).

use crate::lab::{Lab, irs, iss, plain, seg, with_sack};
use utcp_proto::{Config, Flags, Options, RecoveryState, Transmit};

fn blocks(tx: &Transmit) -> Vec<(u32, u32)> {
    tx.options
        .sack
        .as_slice()
        .iter()
        .map(|b| (irs().distance_to(b.start), irs().distance_to(b.end)))
        .collect()
}

/// §2: the option is offered in the SYN, and used if both did.
#[test]
pub fn section_2_sack_permitted() {
    let (_, syn) = Lab::connecting(&with_sack());
    assert!(syn.options.sack_permitted);
    let mut lab = Lab::passive_with(&with_sack(), Options::default(), Flags::NONE);
    lab.get(seg(1_001, 100).ack(1));
    assert!(lab.expect_ack(1).options.sack.is_empty());
}

/// §4: the first block holds the segment that caused the ACK, the others follow by age.
#[test]
pub fn section_4_order_of_blocks() {
    let mut lab = Lab::passive(&with_sack());
    lab.get(seg(1_001, 100).ack(1));
    assert_eq!(blocks(&lab.expect_ack(1)), [(1_001, 1_101)]);
    lab.get(seg(3_001, 100).ack(1));
    assert_eq!(blocks(&lab.expect_ack(1)), [(3_001, 3_101), (1_001, 1_101)]);
    lab.get(seg(1_101, 100).ack(1));
    assert_eq!(blocks(&lab.expect_ack(1)), [(1_001, 1_201), (3_001, 3_101)]);
    for n in 0..4 {
        lab.get(seg(4_001 + n * 500, 100).ack(1));
        lab.drain();
    }
    lab.get(seg(6_001, 100).ack(1));
    let four = blocks(&lab.expect_ack(1));
    assert_eq!(four, [(6_001, 6_101), (5_501, 5_601), (5_001, 5_101), (4_501, 4_601)]);
}

/// §3: with timestamps there is room for three.
#[test]
pub fn section_3_three_blocks_with_timestamps() {
    let mut lab = Lab::passive(&Config { timestamps: true, ..with_sack() });
    for n in 1..=5 {
        lab.get(seg(1 + n * 1_000, 100).ack(1).ts(1_020, 0));
        let tx = lab.expect_ack(1);
        assert_eq!(tx.options.sack.len(), (n as usize).min(3));
        assert!(utcp_proto::wire::tcp::header_len(&tx.options) <= 60);
    }
}

/// RFC 2883 §4.1: a duplicate is reported first.
#[test]
pub fn rfc_2883_dsack() {
    let mut lab = Lab::passive(&with_sack());
    lab.get(seg(1, 1_000).ack(1));
    lab.drain();
    lab.get(seg(1, 500).ack(1));
    assert_eq!(blocks(&lab.expect_ack(1_001)), [(1, 501)]);
    // §4.2: partly old; §4.1.2: a duplicate of what lies out of order, followed by its block.
    lab.get(seg(501, 1_000).ack(1));
    assert_eq!(blocks(&lab.expect_ack(1_501)), [(501, 1_001)]);
    lab.get(seg(3_001, 1_000).ack(1));
    lab.drain();
    lab.get(seg(3_001, 500).ack(1));
    assert_eq!(blocks(&lab.expect_ack(1_501)), [(3_001, 3_501), (3_001, 4_001)]);
    // It is said once.
    lab.get(seg(1_501, 100).ack(1));
    assert_eq!(blocks(&lab.expect_ack(1_601)), [(3_001, 4_001)]);
}

/// RFC 6675 §5: what is sacked is not sent again, what lies between is.
#[test]
pub fn rfc_6675_only_the_holes_are_sent_again() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(10_000);
    assert_eq!(lab.drain().len(), 10);
    lab.wait_ms(10);
    // Segments 1, 4 and 5 are lost.
    lab.get(seg(1, 0).ack(1).sack(1_001, 2_001));
    lab.get(seg(1, 0).ack(1).sack(1_001, 3_001));
    lab.get(seg(1, 0).ack(1).sack(5_001, 6_001).sack(1_001, 3_001));
    lab.wait_ms(3);
    for n in 6..10 {
        lab.get(seg(1, 0).ack(1).sack(5_001, 1 + (n + 1) * 1_000).sack(1_001, 3_001));
    }
    let mut again: Vec<(u32, u32)> = Vec::new();
    for _ in 0..10 {
        again.extend(
            lab.drain().iter().filter(|t| t.retransmission).map(|t| (iss().distance_to(t.seq), t.len)),
        );
        if again.len() >= 3 {
            break;
        }
        lab.fire();
    }
    assert_eq!(again, [(1, 1_000), (3_001, 1_000), (4_001, 1_000)]);
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(10_001));
    assert_eq!(lab.tcb.info(lab.now).recovery, RecoveryState::Open);
    assert_eq!(lab.tcb.info(lab.now).total_retrans, 3);
}

/// §5.1, §8: blocks that make no sense are ignored.
#[test]
pub fn nonsense_blocks_are_ignored() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(5_000);
    lab.drain();
    for (start, end) in [(3_001, 3_001), (4_001, 3_001), (4_001, 9_001), (20_000, 30_000)] {
        lab.get(seg(1, 0).ack(1).sack(start, end));
        assert_eq!(lab.tcb.info(lab.now).sacked, 0, "{start}..{end}");
    }
}

/// §8: the receiver may throw away what it sacked; a timeout forgets the SACKs once the receiver proves it did.
#[test]
pub fn section_8_reneging() {
    let mut lab = Lab::passive(&with_sack());
    lab.send(4_000);
    lab.drain();
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(1).sack(1_001, 4_001));
    lab.drain();
    // The hole is filled, but the ACK does not go over what was sacked.
    lab.get(seg(1, 0).ack(1_001));
    let mut again = 0;
    for _ in 0..6 {
        lab.fire();
        again += lab.drain().iter().filter(|tx| tx.seq == iss() + 1_001).count();
    }
    assert!(again >= 1);
}

/// Without agreement SACK blocks mean nothing.
#[test]
pub fn unexpected_blocks_are_ignored() {
    let mut lab = Lab::passive(&plain());
    lab.send(5_000);
    lab.drain();
    lab.get(seg(1, 0).ack(1).sack(1_001, 5_001));
    assert_eq!(lab.tcb.info(lab.now).sacked, 0);
}
