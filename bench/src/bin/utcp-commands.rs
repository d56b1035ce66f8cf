//! What a command costs: bits in a shared map (what utcp does) against per-thread rings with a flag per
//! socket (what the design began with). One shard takes; 1, 2 and 4 program threads set; 64 and 100 000 sockets.
//!
//! Both do the same job: "socket N has news", duplicates merged, nothing lost. The figure is nanoseconds per
//! command that a program thread sends, everything included, and commands merged before the shard looked.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use utcp_abi::bits::{Bits, middle_len};

const COMMANDS: u64 = 4_000_000;
const RING: usize = 4096;

fn zeros(n: usize) -> Vec<AtomicU64> {
    (0..n).map(|_| AtomicU64::new(0)).collect()
}

/// A small, even generator, the same for both.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Returns (ns per command, share of commands that the shard saw).
fn with_bits(threads: u64, sockets: u64) -> (f64, f64) {
    let words = (sockets as usize).div_ceil(64);
    let (words, middle, top) = (zeros(words), zeros(middle_len(words)), AtomicU64::new(0));
    let left = AtomicU64::new(threads);
    let mut seen = 0u64;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for seed in 0..threads {
            let (words, middle, top, left) = (&words, &middle, &top, &left);
            scope.spawn(move || {
                let bits = Bits::new(words, middle, top);
                let mut state = seed;
                for _ in 0..COMMANDS / threads {
                    bits.set((next(&mut state) % sockets) as u32);
                }
                left.fetch_sub(1, Ordering::Release);
            });
        }
        let bits = Bits::new(&words, &middle, &top);
        while left.load(Ordering::Acquire) > 0 || !bits.is_empty() {
            bits.take_all(|_| seen += 1);
        }
    });
    (begin.elapsed().as_nanos() as f64 / COMMANDS as f64, seen as f64 / COMMANDS as f64)
}

/// A single-producer ring of socket numbers.
struct Ring {
    head: AtomicU32,
    tail: AtomicU32,
    slots: Vec<AtomicU32>,
}

fn with_rings(threads: u64, sockets: u64) -> (f64, f64) {
    let pending: Vec<AtomicBool> = (0..sockets).map(|_| AtomicBool::new(false)).collect();
    let rings: Vec<Ring> = (0..threads)
        .map(|_| Ring {
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            slots: (0..RING).map(|_| AtomicU32::new(0)).collect(),
        })
        .collect();
    let left = AtomicU64::new(threads);
    let mut seen = 0u64;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for (seed, ring) in rings.iter().enumerate() {
            let (pending, left) = (&pending, &left);
            scope.spawn(move || {
                let mut state = seed as u64;
                for _ in 0..COMMANDS / threads {
                    let socket = next(&mut state) % sockets;
                    // The flag merges duplicates; without it the ring would overflow under load.
                    if pending[socket as usize].swap(true, Ordering::SeqCst) {
                        continue;
                    }
                    let tail = ring.tail.load(Ordering::Relaxed);
                    while tail.wrapping_sub(ring.head.load(Ordering::Acquire)) as usize == RING {
                        std::thread::yield_now(); // Full: another protocol that rings need and bits don't.
                    }
                    ring.slots[tail as usize % RING].store(socket as u32, Ordering::Relaxed);
                    ring.tail.store(tail.wrapping_add(1), Ordering::Release);
                }
                left.fetch_sub(1, Ordering::Release);
            });
        }
        loop {
            let done = left.load(Ordering::Acquire) == 0;
            for ring in &rings {
                let head = ring.head.load(Ordering::Relaxed);
                let tail = ring.tail.load(Ordering::Acquire);
                for index in 0..tail.wrapping_sub(head) {
                    let socket = ring.slots[head.wrapping_add(index) as usize % RING].load(Ordering::Relaxed);
                    pending[socket as usize].swap(false, Ordering::SeqCst);
                    seen += 1;
                }
                ring.head.store(tail, Ordering::Release);
            }
            if done && rings.iter().all(|r| r.head.load(Ordering::Relaxed) == r.tail.load(Ordering::Acquire))
            {
                break;
            }
        }
    });
    (begin.elapsed().as_nanos() as f64 / COMMANDS as f64, seen as f64 / COMMANDS as f64)
}

fn main() {
    println!("threads  sockets   bits ns  (taken)   rings ns  (taken)   ratio");
    for threads in [1, 2, 4] {
        for sockets in [1, 64, 100_000] {
            let mut ratios = Vec::new();
            let mut last = ((0.0, 0.0), (0.0, 0.0));
            for _ in 0..5 {
                last = (with_bits(threads, sockets), with_rings(threads, sockets));
                ratios.push(last.1.0 / last.0.0);
            }
            ratios.sort_by(f64::total_cmp);
            let ((bits, bits_taken), (rings, rings_taken)) = last;
            let ratio = ratios[ratios.len() / 2];
            println!(
                "{threads:>7} {sockets:>8} {bits:>9.1} {bits_taken:>9.3} {rings:>10.1} {rings_taken:>9.3} {ratio:>7.2}"
            );
        }
    }
}
