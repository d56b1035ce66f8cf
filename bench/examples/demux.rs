//! The switch by itself, for a profiler: `demux [STACKS] [TUPLES] [MILLISECONDS]`.

use std::time::Duration;

use utcp_bench::demux::{Load, run};

fn main() -> Result<(), utcp_bench::Error> {
    let words: Vec<u32> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let word = |at: usize, default| words.get(at).copied().unwrap_or(default);
    let stacks = u16::try_from(word(0, 8)).unwrap_or(8);
    let time = Duration::from_millis(word(2, 300).into());
    let summary = run(Load { stacks, tuples: word(1, 1000), arrive: true, leave: true, time })?;
    println!("{}", serde_json::json!(summary));
    Ok(())
}
