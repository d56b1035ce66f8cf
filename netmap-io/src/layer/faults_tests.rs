//! The dice of the fault layer on a clock of the test's own, and the layer by the conformance suite.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::OpenOptions;
use crate::conformance::{self, Pair};

/// A pipe whose end `a` suffers from `spec`, and the clock in microseconds.
fn bad_link(spec: &str, slots: u32) -> (FaultPort, Box<dyn Port>, Arc<AtomicU64>) {
    let options = OpenOptions { rx_slots: slots, tx_slots: slots, ..OpenOptions::default() };
    let [a, b] = crate::pipe::pair("bad", &options).unwrap();
    let time = Arc::new(AtomicU64::new(0));
    let clock = time.clone();
    let clock = Box::new(move || Duration::from_micros(clock.load(Ordering::Relaxed)));
    (FaultPort::new(a, &spec.parse().unwrap(), clock).unwrap(), b, time)
}

fn frame(number: u64) -> Vec<u8> {
    let mut frame = vec![0xaa; 60];
    frame[52..].copy_from_slice(&number.to_be_bytes());
    frame
}

fn number(frame: &[u8]) -> u64 {
    u64::from_be_bytes(frame[52..60].try_into().unwrap())
}

/// Sends `count` frames one per sync, a millisecond apart; what arrives.
fn send(spec: &str, count: u64) -> (Vec<Vec<u8>>, Counters) {
    let (mut a, mut b, time) = bad_link(spec, 256);
    let mut seen = Vec::new();
    let mut sync = |a: &mut FaultPort| {
        a.tx_sync().unwrap();
        b.rx_sync().unwrap();
        seen.extend(b.rx().map(|frame| frame.to_vec()));
        time.fetch_add(1_000, Ordering::Relaxed);
    };
    for n in 0..count {
        assert!(a.tx().push(&frame(n)), "no room for frame {n}");
        sync(&mut a);
    }
    // Everything that waits is due by then.
    for _ in 0..100 {
        sync(&mut a);
    }
    let counters = a.counters();
    assert_eq!(counters.tx_frames, count);
    assert_eq!(a.resync_in(), None, "nothing waits");
    (seen, counters)
}

fn numbers(frames: &[Vec<u8>]) -> Vec<u64> {
    frames.iter().map(|frame| number(frame)).collect()
}

#[test]
fn a_perfect_link_changes_nothing() {
    let (seen, counters) = send("", 500);
    assert_eq!(numbers(&seen), (0..500).collect::<Vec<_>>());
    assert_eq!(counters.fault_lost + counters.fault_duplicated + counters.fault_reordered, 0);
}

#[test]
fn losses_are_counted_and_near_their_share() {
    let (seen, counters) = send("loss=10%,seed=3", 5000);
    assert_eq!(seen.len() as u64 + counters.fault_lost, 5000);
    assert!((400..600).contains(&counters.fault_lost), "{} of 5000 at 10 %", counters.fault_lost);
    assert!(numbers(&seen).is_sorted());
}

#[test]
fn a_seed_repeats_itself_and_another_does_not() {
    let lost = |spec: &str| numbers(&send(spec, 1000).0);
    assert_eq!(lost("loss=5%,seed=3"), lost("loss=5%,seed=3"));
    assert_ne!(lost("loss=5%,seed=3"), lost("loss=5%,seed=4"));
    // The victims of one fault don't depend on another.
    let both = lost("loss=5%,duplicate=5%,seed=3");
    let mut both_once = both.clone();
    both_once.dedup();
    assert_eq!(both_once, lost("loss=5%,seed=3"));
    assert!(both.len() > both_once.len());
}

#[test]
fn bursts_lose_frames_in_a_row() {
    let (seen, counters) = send("burst=1%/20%,seed=5", 5000);
    assert_eq!(seen.len() as u64 + counters.fault_lost, 5000);
    let numbers = numbers(&seen);
    let gaps: Vec<u64> =
        numbers.windows(2).map(|pair| pair[1] - pair[0] - 1).filter(|gap| *gap > 0).collect();
    let mean = gaps.iter().sum::<u64>() / gaps.len() as u64;
    assert!((3..8).contains(&mean), "bursts of {mean} frames where 5 are due: {gaps:?}");
}

#[test]
fn duplicates_follow_their_original() {
    let (seen, counters) = send("duplicate=10%,seed=3", 1000);
    assert_eq!(seen.len() as u64, 1000 + counters.fault_duplicated);
    assert!((60..140).contains(&counters.fault_duplicated), "{}", counters.fault_duplicated);
    assert!(numbers(&seen).is_sorted());
}

#[test]
fn a_reordered_frame_comes_one_to_three_frames_late() {
    let (seen, counters) = send("reorder=5%,seed=3", 1000);
    assert_eq!(seen.len(), 1000, "nothing is lost");
    let numbers = numbers(&seen);
    let late = numbers.iter().zip(0_u64..).filter(|(n, place)| *n < place).count() as u64;
    assert!((20..100).contains(&counters.fault_reordered), "{}", counters.fault_reordered);
    assert!(late > 0 && late <= counters.fault_reordered, "{late} late of {}", counters.fault_reordered);
    for (number, place) in numbers.iter().zip(0_u64..) {
        assert!(number + 4 >= place, "frame {number} came at place {place}");
    }
}

#[test]
fn the_last_frame_is_not_held_back_forever() {
    let (mut a, mut b, time) = bad_link("reorder=100%", 16);
    assert!(a.tx().push(&frame(0)));
    a.tx_sync().unwrap();
    assert_eq!((b.rx_sync().unwrap(), a.resync_in()), (0, Some(REORDER_WAIT)));
    time.fetch_add(5_000, Ordering::Relaxed);
    a.tx_sync().unwrap();
    assert_eq!((b.rx_sync().unwrap(), a.resync_in()), (1, None));
}

#[test]
fn corruption_flips_one_bit_behind_the_link_header() {
    let (seen, counters) = send("corrupt=20%,seed=3", 500);
    let mut spoilt = 0;
    for (got, n) in seen.iter().zip(0..) {
        let want = frame(n);
        let bits: u32 = got.iter().zip(&want).map(|(got, want)| (got ^ want).count_ones()).sum();
        assert_eq!(got[..14], want[..14], "link header of frame {n}");
        assert!(bits <= 1, "{bits} bits of frame {n}");
        spoilt += u64::from(bits);
    }
    assert_eq!(spoilt, counters.fault_corrupted);
    assert!((60..140).contains(&spoilt), "{spoilt} of 500 at 20 %");
}

#[test]
fn delay_holds_every_frame_and_says_until_when() {
    let (mut a, mut b, time) = bad_link("delay=5ms", 16);
    assert!(a.tx().push(&frame(0)));
    a.tx_sync().unwrap();
    assert_eq!((b.rx_sync().unwrap(), a.resync_in()), (0, Some(Duration::from_millis(5))));
    time.store(4_999, Ordering::Relaxed);
    a.tx_sync().unwrap();
    assert_eq!((b.rx_sync().unwrap(), a.resync_in()), (0, Some(Duration::from_micros(1))));
    time.store(5_000, Ordering::Relaxed);
    a.tx_sync().unwrap();
    assert_eq!((b.rx_sync().unwrap(), a.resync_in()), (1, None));
    // And the other way.
    assert!(b.tx().push(&frame(1)));
    b.tx_sync().unwrap();
    assert_eq!(a.rx_sync().unwrap(), 0);
    time.store(10_000, Ordering::Relaxed);
    assert_eq!(a.rx_sync().unwrap(), 1);
    assert_eq!(number(&a.rx().next().unwrap()), 1);
}

#[test]
fn a_rate_spaces_frames_and_a_full_queue_drops() {
    // 60 bytes at 480 kbit/s take a millisecond.
    let (mut a, mut b, time) = bad_link("rate=480kbit,queue=10", 64);
    for n in 0..15 {
        assert!(a.tx().push(&frame(n)));
    }
    a.tx_sync().unwrap();
    assert_eq!(a.counters().fault_queue_full, 5);
    for millis in 1..=10_u64 {
        time.store(millis * 1_000 - 1, Ordering::Relaxed);
        a.tx_sync().unwrap();
        assert_eq!(b.rx_sync().unwrap(), 0, "before {millis} ms");
        time.store(millis * 1_000, Ordering::Relaxed);
        a.tx_sync().unwrap();
        assert_eq!(b.rx_sync().unwrap(), 1, "at {millis} ms");
        b.rx().for_each(drop);
    }
}

#[test]
fn one_side_can_suffer_alone() {
    for (spec, out, back) in [("loss=100%,side=out", 0, 1), ("loss=100%,side=in", 1, 0), ("loss=100%", 0, 0)]
    {
        let (mut a, mut b, _) = bad_link(spec, 16);
        assert!(a.tx().push(&frame(0)) && b.tx().push(&frame(0)));
        a.tx_sync().unwrap();
        b.tx_sync().unwrap();
        assert_eq!((b.rx_sync().unwrap(), a.rx_sync().unwrap()), (out, back), "{spec}");
    }
}

/// Without faults the layer is a port like any other.
#[test]
fn the_layer_conforms() {
    let options = OpenOptions { rx_slots: 64, tx_slots: 64, ..OpenOptions::default() };
    let [a, b] = crate::pipe::pair("layer", &options).unwrap();
    let none = "";
    let frame = |_, len: usize| (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let mut pair = Pair {
        a: wrap(a, none).unwrap(),
        b: wrap(b, none).unwrap(),
        frame: Box::new(frame),
        frame_len_min: 14,
        pushes_back: false,
        kicks_max: 2,
        // The layer has a queue of its own between the rings, so a ring's limits are not those of the port.
        skip: &["what a slow receiver loses is counted"],
    };
    let mut failures = Vec::new();
    conformance::run(&mut pair, |case, result| {
        if let Err(error) = result {
            failures.push(format!("{}: {error}", case.name));
        }
    });
    assert!(failures.is_empty(), "{failures:#?}");
}
