use super::*;
use proptest::prelude::*;
use std::boxed::Box;
use std::vec::Vec;

const UNA: SeqNum = SeqNum::new(0xffff_f000);

fn tick(n: u32) -> Tick {
    Tick(n)
}

/// A board that has borrowed.
fn roomy() -> Scoreboard {
    let mut board = Scoreboard::new(UNA);
    board.lend(Box::leak(Box::default()));
    board
}

fn board(ends: &[(u32, u32)]) -> Scoreboard {
    let mut board = roomy();
    for &(end, at) in ends {
        board.append(UNA + end, tick(at));
    }
    board
}

fn ack(board: &mut Scoreboard, to: u32) -> Delivered {
    let mut delivered = Delivered::default();
    board.ack_to(UNA + to, &mut delivered);
    board.check();
    delivered
}

fn sack(board: &mut Scoreboard, from: u32, to: u32) -> Delivered {
    let mut delivered = Delivered::default();
    board.sack(UNA + from, UNA + to, &mut delivered);
    board.check();
    delivered
}

#[test]
fn bytes_sent_at_the_same_time_share_a_record() {
    let mut b = board(&[(100, 5), (200, 5), (300, 9)]);
    assert_eq!((b.len, b.pipe()), (2, 300));
    let d = ack(&mut b, 150);
    assert_eq!((d.bytes, d.oldest_once, d.newest_once), (150, Some(tick(5)), Some(tick(5))));
    let d = ack(&mut b, 300);
    assert_eq!((d.bytes, d.oldest_once, d.newest_once), (150, Some(tick(5)), Some(tick(9))));
    assert_eq!((b.len, b.pipe()), (0, 0));
}

#[test]
fn sacks_split_and_merge() {
    let mut b = board(&[(1_000, 5)]);
    assert_eq!(sack(&mut b, 200, 300).bytes, 100);
    assert_eq!(sack(&mut b, 250, 400).bytes, 100, "only what is new");
    assert_eq!((b.len, b.sacked(), b.pipe()), (3, 200, 800));
    assert_eq!(b.highest_sacked(), Some(UNA + 400));
    assert_eq!(sack(&mut b, 0, 200).bytes, 200);
    assert!(b.head_is_sacked());
    assert_eq!(ack(&mut b, 400).bytes, 0, "known before");
    assert_eq!((b.sacked(), b.pipe()), (0, 600));
}

#[test]
fn losses_are_resent_in_order_and_may_be_lost_again() {
    let mut b = board(&[(100, 1), (200, 2), (300, 3), (400, 9)]);
    sack(&mut b, 300, 400);
    let newest = (tick(9), UNA + 400);
    assert_eq!(b.detect_lost(tick(10), newest, 8), (200, Some(1)));
    assert_eq!((b.lost(), b.to_resend(), b.pipe()), (200, 200, 100));
    assert_eq!(b.next_to_resend(), Some((UNA, 200)));
    b.resend(UNA, 100, tick(10));
    b.check();
    assert_eq!((b.next_to_resend(), b.pipe()), (Some((UNA + 100, 100)), 200));
    b.resend(UNA + 100, 100, tick(10));
    assert_eq!((b.to_resend(), b.resent()), (0, 200));
    // One that was sent after the repetition arrives: it is lost again.
    b.append(UNA + 500, tick(12));
    sack(&mut b, 400, 500);
    let (marked, _) = b.detect_lost(tick(20), (tick(12), UNA + 500), 8);
    assert_eq!(marked, 300);
    assert_eq!((b.resent(), b.to_resend()), (0, 300));
    b.check();
}

#[test]
fn a_repeated_segment_gives_no_sample() {
    let mut b = board(&[(100, 1), (200, 2)]);
    b.lose_all();
    b.resend(UNA, 100, tick(50));
    let d = ack(&mut b, 200);
    assert_eq!((d.oldest_once, d.newest_once), (None, None), "what was held for lost is no measure either");
    let again = Sent { by: tick(50), first: tick(50), end: UNA + 100, ambiguous: true };
    assert_eq!(d.newest, Some(again));
    assert!(d.original, "the second was held for lost and never sent again");
}

#[test]
fn a_full_board_blurs_times_but_counts_every_byte() {
    fill(Scoreboard::new(UNA));
    fill(roomy());
}

fn fill(mut b: Scoreboard) {
    let room = b.room();
    for n in 1..=1_000 {
        b.append(UNA + n * 10, tick(n * 100));
        b.check();
    }
    assert!(usize::from(b.len) <= room);
    assert_eq!(b.pipe(), 10_000);
    // Every other segment is sacked: far more ranges than records.
    for n in 0..500 {
        sack(&mut b, n * 20, n * 20 + 10);
    }
    assert!(b.sacked() > 0 && b.sacked() <= 5_000);
    b.append(UNA + 10_010, tick(200_000));
    b.check();
    let sacked = b.sacked();
    assert_eq!(ack(&mut b, 10_010).bytes, 10_010 - sacked);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Append(u32),
    Ack(u32),
    Sack(u32, u32),
    Detect(u32),
    LoseAll,
    Resend(u32),
    Unlose,
    Forget,
    LoseHead,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1u32..400).prop_map(Op::Append),
        2 => (1u32..500).prop_map(Op::Ack),
        6 => (0u32..5_000, 1u32..600).prop_map(|(from, len)| Op::Sack(from, len)),
        2 => (0u32..50).prop_map(Op::Detect),
        1 => Just(Op::LoseAll),
        3 => (1u32..300).prop_map(Op::Resend),
        1 => Just(Op::Unlose),
        1 => Just(Op::Forget),
        1 => Just(Op::LoseHead),
    ]
}

#[test]
fn it_borrows_before_its_own_records_are_full_and_gives_back_when_all_is_acknowledged() {
    let mut b = Scoreboard::new(UNA);
    for n in 1..FEW as u32 {
        assert!(!b.wants_many(false), "{n}");
        b.append(UNA + n * 100, tick(n * 50));
    }
    assert!(b.wants_many(false));
    b.lend(Box::leak(Box::default()));
    assert!(!b.wants_many(true) && b.give_back().is_none());
    b.append(UNA + 400, tick(400));
    b.append(UNA + 500, tick(500));
    assert_eq!((b.len, b.pipe(), b.oldest_sent_at()), (5, 500, Some(tick(50))));
    let d = ack(&mut b, 500);
    assert_eq!((d.bytes, d.oldest_once, d.newest_once), (500, Some(tick(50)), Some(tick(500))));
    assert!(b.give_back().is_some() && b.give_back().is_none());
    b.append(UNA + 600, tick(600));
    assert_eq!((b.end(), b.pipe()), (UNA + 600, 100));
    assert!(b.wants_many(true) && !b.wants_many(false), "a SACK cuts into pieces");
}

/// More holes than there are records for: what was sent again is told from what still waits, or the rest of the hole would wait for
/// the timer.
#[test]
fn a_full_board_knows_what_was_sent_again() {
    let mut b = board(&[(20_000, 5)]);
    for n in 0..500 {
        sack(&mut b, 20 + 40 * n, 40 + 40 * n);
    }
    let sacked = b.sacked();
    assert!((4_000..10_000).contains(&sacked), "{sacked}: the board is full");
    b.lose_all();
    for piece in 0..(20_000 - sacked) / 10 {
        assert_eq!(b.resent(), 10 * piece);
        let (start, len) = b.next_to_resend().expect("not all was sent again");
        b.resend(start, len.min(10), tick(9 + piece));
        b.check();
    }
    assert_eq!(b.next_to_resend(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Against a list with one entry per byte: what the board calls sacked has been sacked, what it calls lost can be sent
    /// again, no byte is counted twice as delivered.
    #[test]
    fn agrees_with_a_list_of_bytes(
        borrow_at in 0usize..400,
        ops in proptest::collection::vec(op(), 1..200),
    ) {
        let mut b = Scoreboard::new(UNA);
        let mut many = Some(Box::<SentRecords>::default());
        let (mut una, mut nxt, mut now) = (0u32, 0u32, 0u32);
        let mut seen: Vec<bool> = Vec::new();
        for (at, op) in ops.into_iter().enumerate() {
            now += 3;
            if at >= borrow_at && let Some(many) = many.take() {
                b.lend(Box::leak(many));
            }
            if let Some(back) = b.give_back() {
                // Its own records are enough, until it borrows again.
                prop_assert!(b.len == 0);
                b.lend(back);
            }
            let mut d = Delivered::default();
            match op {
                Op::Append(n) => {
                    nxt += n;
                    seen.resize(nxt as usize, false);
                    b.append(UNA + nxt, tick(now));
                }
                Op::Ack(n) if una < nxt => {
                    una = (una + n).min(nxt);
                    b.ack_to(UNA + una, &mut d);
                    seen[..una as usize].fill(true);
                }
                Op::Sack(from, len) => {
                    let from = una + from.min(nxt - una);
                    let to = (from + len).min(nxt);
                    b.sack(UNA + from, UNA + to, &mut d);
                    seen[from as usize..to as usize].fill(true);
                }
                Op::Detect(wait) => {
                    b.detect_lost(tick(now), (tick(now), UNA + nxt), wait);
                }
                Op::LoseAll => b.lose_all(),
                Op::Resend(max) => {
                    if let Some((seq, len)) = b.next_to_resend() {
                        let before = b.to_resend();
                        b.resend(seq, len.min(max), tick(now));
                        prop_assert!(b.to_resend() < before);
                    }
                }
                Op::Unlose => b.unlose_all(),
                Op::Forget => b.forget_sacks(),
                Op::LoseHead => {
                    b.lose_head(100);
                }
                Op::Ack(_) => {}
            }
            b.check();
            let flight = nxt - una;
            prop_assert_eq!(UNA.distance_to(b.end()), nxt);
            prop_assert!(b.sacked() + b.lost() <= flight);
            prop_assert!(b.pipe() <= flight);
            let truly = seen[una as usize..].iter().filter(|&&s| s).count() as u32;
            prop_assert!(b.sacked() <= truly, "sacked {} of {}", b.sacked(), truly);
        }
    }
}

/// Bytes that share a record were not all sent at its first moment: what a SACK leaves of it may have been sent after a
/// retransmission that was delivered since.
#[test]
fn the_rest_of_a_record_is_as_young_as_its_last_byte() {
    let mut b = Scoreboard::new(UNA);
    b.set_grain(1 << 20);
    b.append(UNA + 100, tick(10));
    b.append(UNA + 200, tick(50));
    assert_eq!(b.len, 1, "one record");
    let mut d = Delivered::default();
    b.sack(UNA, UNA + 100, &mut d);
    // Something else was sent at 40 and has arrived: the second hundred was sent later.
    assert_eq!(b.detect_lost(tick(100), (tick(40), UNA - 100), 1), (0, None));
    assert_eq!(b.detect_lost(tick(100), (tick(51), UNA + 300), 1), (100, None));
}
