//! What every port must do, whatever is below it: the same cases for all of them.
//!
//! A case gets two ports that are joined (a pipe, a veth pair, two ports of a switch) and a maker of
//! frames that pass between them. It returns what it found wrong instead of panicking, so that a
//! program without a test harness can run the suite on a machine with the real device.

use std::time::{Duration, Instant};

use crate::{Counters, Port, PortError};

/// Two joined ports.
pub struct Pair {
    /// One end.
    pub a: Box<dyn Port>,
    /// The other.
    pub b: Box<dyn Port>,
    /// Makes a frame from `a` to `b` (`true`) or back, of exactly that many bytes, whose last bytes are
    /// free for the case.
    pub frame: Box<dyn Fn(bool, usize) -> Vec<u8>>,
    /// The shortest frame that `frame` can make, with eight bytes to mark it.
    pub frame_len_min: usize,
    /// The device never drops when the receiver is slow: it stops taking frames instead.
    pub pushes_back: bool,
    /// System calls that sending one batch may cost.
    pub kicks_max: u64,
    /// Names of cases that can't hold for this device.
    pub skip: &'static [&'static str],
}

/// One thing that a port must do.
pub struct Case {
    /// In words.
    pub name: &'static str,
    /// The test itself.
    pub run: fn(&mut Pair) -> Result<(), String>,
}

/// Every case.
pub const CASES: &[Case] = &[
    Case { name: "a frame arrives as it was sent, of every size, both ways", run: every_size },
    Case { name: "idle syncs cost no system call", run: idle_is_free },
    Case { name: "a batch costs one kick", run: one_kick },
    Case { name: "frames stay in order over many laps of the rings", run: many_laps },
    Case { name: "a full tx ring refuses, and has room after a sync", run: full_tx_ring },
    Case { name: "a slot that was not committed is not sent", run: uncommitted_slot },
    Case { name: "unread frames survive syncs", run: unread_frames_stay },
    Case { name: "frames of a batch can be held together", run: held_together },
    Case { name: "what a slow receiver loses is counted", run: slow_receiver },
    Case { name: "forwarding swaps buffers without mixing them up", run: forwarding },
    Case { name: "arming refuses while frames wait", run: arming },
    Case { name: "the descriptor wakes a sleeper", run: waking },
    Case { name: "frames and bytes are counted exactly", run: counting },
];

/// How long a frame may take, behind the one before it, before it counts as lost.
const ARRIVAL: Duration = Duration::from_secs(2);
/// Long enough to see that nothing comes.
const QUIET: Duration = Duration::from_millis(20);

macro_rules! ensure {
    ($condition:expr, $($words:tt)*) => {
        if !$condition {
            return Err(format!($($words)*));
        }
    };
}

fn words(error: impl Into<PortError>) -> String {
    error.into().to_string()
}

impl Pair {
    /// A frame with a number in its last eight bytes.
    fn numbered(&self, to_b: bool, len: usize, number: u64) -> Vec<u8> {
        let mut frame = (self.frame)(to_b, len.max(self.frame_len_min));
        let at = frame.len() - 8;
        frame[at..].copy_from_slice(&number.to_be_bytes());
        frame
    }

    /// The longest frame that both ends take.
    fn len_max(&self) -> usize {
        let port =
            |port: &dyn Port| (port.caps().mtu as usize + 14).min(port.caps().frame_bytes_max as usize);
        port(&*self.a).min(port(&*self.b))
    }

    /// Commits as many of the frames as there is room for; how many.
    fn send(port: &mut dyn Port, frames: &[Vec<u8>]) -> Result<usize, String> {
        port.tx_sync().map_err(words)?;
        let mut tx = port.tx();
        let sent = frames.iter().take_while(|frame| tx.push(frame)).count();
        port.tx_sync().map_err(words)?;
        Ok(sent)
    }

    /// Waits until `want` frames have arrived and returns copies of them.
    fn receive(port: &mut dyn Port, want: usize) -> Result<Vec<Vec<u8>>, String> {
        let mut got = Vec::new();
        let mut until = Instant::now() + ARRIVAL;
        while got.len() < want {
            if port.rx_sync().map_err(words)? > 0 {
                until = Instant::now() + ARRIVAL;
            }
            got.extend(port.rx().map(|frame| frame.to_vec()));
            ensure!(Instant::now() < until, "{} of {want} frames arrived at {}", got.len(), port.caps().name);
        }
        // Gives the slots back, which on some devices is what gives the sender room.
        port.rx_sync().map_err(words)?;
        Ok(got)
    }

    /// Takes whatever still arrives, so that a case begins with empty rings.
    fn drain(&mut self) -> Result<(), String> {
        for port in [&mut self.a, &mut self.b] {
            let mut quiet_since = Instant::now();
            while quiet_since.elapsed() < QUIET {
                if port.rx_sync().map_err(words)? > 0 {
                    port.rx().for_each(drop);
                    quiet_since = Instant::now();
                }
                port.tx_sync().map_err(words)?;
            }
        }
        Ok(())
    }
}

/// Runs every case on one pair; the names of the cases that failed with what was wrong.
pub fn run(pair: &mut Pair, mut report: impl FnMut(&Case, &Result<(), String>)) -> usize {
    let mut failed = 0;
    let skip = pair.skip;
    for case in CASES.iter().filter(|case| !skip.contains(&case.name)) {
        let result = pair.drain().and_then(|()| (case.run)(pair));
        failed += usize::from(result.is_err());
        report(case, &result);
    }
    failed
}

fn compare(got: &[Vec<u8>], want: &[Vec<u8>]) -> Result<(), String> {
    ensure!(got.len() == want.len(), "{} frames instead of {}", got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        ensure!(got.len() == want.len(), "frame {index} has {} bytes instead of {}", got.len(), want.len());
        let differs = got.iter().zip(want).position(|(got, want)| got != want);
        ensure!(differs.is_none(), "frame {index} of {} bytes differs at byte {differs:?}", want.len());
    }
    Ok(())
}

fn every_size(pair: &mut Pair) -> Result<(), String> {
    let sizes: Vec<usize> =
        (pair.frame_len_min..=pair.len_max()).step_by(37).chain([pair.len_max()]).collect();
    for to_b in [true, false] {
        let frames: Vec<_> = sizes.iter().map(|&len| pair.numbered(to_b, len, len as u64)).collect();
        let (from, to) = if to_b { (&mut pair.a, &mut pair.b) } else { (&mut pair.b, &mut pair.a) };
        for chunk in frames.chunks(8) {
            ensure!(Pair::send(&mut **from, chunk)? == chunk.len(), "no room for {} frames", chunk.len());
            compare(&Pair::receive(&mut **to, chunk.len())?, chunk)?;
        }
    }
    Ok(())
}

fn idle_is_free(pair: &mut Pair) -> Result<(), String> {
    let before = (pair.a.counters(), pair.b.counters());
    for _ in 0..1000 {
        for port in [&mut pair.a, &mut pair.b] {
            port.rx_sync().map_err(words)?;
            port.tx_sync().map_err(words)?;
        }
    }
    let calls = |c: Counters| c.rx_syscalls + c.tx_syscalls;
    let made = calls(pair.a.counters()) + calls(pair.b.counters()) - calls(before.0) - calls(before.1);
    ensure!(made == 0, "2000 idle syncs made {made} system calls");
    Ok(())
}

fn one_kick(pair: &mut Pair) -> Result<(), String> {
    let count = 64.min(pair.a.caps().tx_slots as usize / 2 - 1);
    let frames: Vec<_> = (0..count).map(|n| pair.numbered(true, 200, n as u64)).collect();
    let before = pair.a.counters().tx_syscalls;
    ensure!(Pair::send(&mut *pair.a, &frames)? == count, "no room for {count} frames");
    let calls = pair.a.counters().tx_syscalls - before;
    ensure!(calls <= pair.kicks_max, "{count} frames took {calls} system calls to send");
    compare(&Pair::receive(&mut *pair.b, count)?, &frames)
}

fn many_laps(pair: &mut Pair) -> Result<(), String> {
    let total = 20 * u64::from(pair.a.caps().tx_slots.max(pair.b.caps().rx_slots));
    let batch_max = u64::from(pair.a.caps().tx_slots.min(pair.b.caps().rx_slots)) / 2;
    let span = (pair.len_max() - pair.frame_len_min) as u64 + 1;
    let mut random = 0x9e37_79b9_u64;
    let (mut sent, mut seen) = (0, 0);
    let mut until = Instant::now() + 5 * ARRIVAL;
    while seen < total {
        // A linear congruential generator is random enough to vary sizes.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let room = (random >> 33) % batch_max + 1;
        let batch = room.min(total - sent).min(batch_max.saturating_sub(sent - seen));
        let lens = |n: u64| pair.frame_len_min + usize::try_from((n * 7919) % span).unwrap_or(0);
        let frames: Vec<_> = (sent..sent + batch).map(|n| pair.numbered(true, lens(n), n)).collect();
        sent += Pair::send(&mut *pair.a, &frames)? as u64;
        pair.b.rx_sync().map_err(words)?;
        for frame in pair.b.rx() {
            let want = pair.frame_len_min + usize::try_from((seen * 7919) % span).unwrap_or(0);
            ensure!(frame.len() == want, "frame {seen} has {} bytes instead of {want}", frame.len());
            let tail = frame[frame.len() - 8..].try_into().map(u64::from_be_bytes).unwrap_or(u64::MAX);
            ensure!(tail == seen, "frame {tail} arrived when {seen} was due");
            seen += 1;
            until = Instant::now() + 5 * ARRIVAL;
        }
        ensure!(Instant::now() < until, "{seen} of {total} frames arrived, {sent} were sent");
    }
    Ok(())
}

fn full_tx_ring(pair: &mut Pair) -> Result<(), String> {
    let frame = pair.numbered(true, 100, 0);
    pair.a.tx_sync().map_err(words)?;
    let mut tx = pair.a.tx();
    let space = tx.space();
    let mut taken = 0;
    while tx.push(&frame) {
        taken += 1;
    }
    ensure!(taken == space, "took {taken} frames where space said {space}");
    ensure!(tx.slot().is_none() && tx.space() == 0, "a full ring still gave a slot");
    // A slot is always the device's, and at most half of the others have left without a word.
    let slots = pair.a.caps().tx_slots;
    ensure!(
        (slots / 2 - 1..slots).contains(&taken),
        "an idle ring of {slots} slots had room for {taken} frames"
    );
    let until = Instant::now() + ARRIVAL;
    let mut seen = 0;
    // Devices tell late, and are not asked again as long as half of the ring is free.
    while seen < taken || pair.a.tx().space() < taken / 2 {
        pair.a.tx_sync().map_err(words)?;
        pair.b.rx_sync().map_err(words)?;
        seen += u32::try_from(pair.b.rx().count()).unwrap_or(0);
        let space = pair.a.tx().space();
        ensure!(Instant::now() < until, "{seen} of {taken} frames arrived, space is {space}");
    }
    Ok(())
}

fn uncommitted_slot(pair: &mut Pair) -> Result<(), String> {
    let frame = pair.numbered(true, 100, 77);
    let mut tx = pair.a.tx();
    let space = tx.space();
    if let Some(mut slot) = tx.slot() {
        slot[..4].copy_from_slice(b"junk");
    }
    ensure!(tx.space() == space, "a dropped slot was used up");
    ensure!(Pair::send(&mut *pair.a, std::slice::from_ref(&frame))? == 1, "no room for one frame");
    compare(&Pair::receive(&mut *pair.b, 1)?, &[frame])
}

fn unread_frames_stay(pair: &mut Pair) -> Result<(), String> {
    let frames: Vec<_> = (0..10).map(|n| pair.numbered(true, 300, n)).collect();
    ensure!(Pair::send(&mut *pair.a, &frames)? == 10, "no room for 10 frames");
    let mut got = Vec::new();
    let until = Instant::now() + ARRIVAL;
    while got.len() < 10 {
        pair.b.rx_sync().map_err(words)?;
        let mut rx = pair.b.rx();
        let peeked = rx.peek().map(|frame| frame.to_vec());
        let read = rx.next().map(|frame| frame.to_vec());
        ensure!(peeked == read, "peek and next disagree");
        got.extend(read);
        ensure!(Instant::now() < until, "{} of 10 frames arrived", got.len());
    }
    compare(&got, &frames)
}

fn held_together(pair: &mut Pair) -> Result<(), String> {
    let frames: Vec<_> = (0..8).map(|n| pair.numbered(true, 400, n)).collect();
    ensure!(Pair::send(&mut *pair.a, &frames)? == 8, "no room for 8 frames");
    let until = Instant::now() + ARRIVAL;
    while pair.b.rx_sync().map_err(words)? < 8 {
        ensure!(Instant::now() < until, "{} of 8 frames arrived", pair.b.rx().available());
    }
    let held: Vec<_> = pair.b.rx().collect();
    let copies: Vec<_> = held.iter().map(|frame| frame.to_vec()).collect();
    compare(&copies, &frames)
}

fn slow_receiver(pair: &mut Pair) -> Result<(), String> {
    let before = pair.b.counters();
    let total = 3 * pair.b.caps().rx_slots as usize;
    let mut sent = 0;
    let until = Instant::now() + QUIET;
    while sent < total && Instant::now() < until {
        let frame = pair.numbered(true, 100, sent as u64);
        sent += Pair::send(&mut *pair.a, &[frame])?;
    }
    ensure!(!pair.pushes_back || sent < total, "the device took {sent} frames though nobody read");
    let mut last = None;
    let mut seen = 0;
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < 3 * QUIET {
        pair.a.tx_sync().map_err(words)?;
        if pair.b.rx_sync().map_err(words)? > 0 {
            quiet_since = Instant::now();
        }
        for frame in pair.b.rx() {
            let number = frame[frame.len() - 8..].try_into().map(u64::from_be_bytes).unwrap_or(0);
            ensure!(last < Some(number), "frame {number} came after {last:?}");
            last = Some(number);
            seen += 1;
        }
    }
    let after = pair.b.counters();
    let lost = after.rx_ring_full - before.rx_ring_full + after.rx_dropped - before.rx_dropped;
    ensure!(seen + lost == sent as u64, "{sent} sent, {seen} received, {lost} counted as lost");
    ensure!(!pair.pushes_back || lost == 0, "{lost} frames lost on a port that pushes back");
    Ok(())
}

fn forwarding(pair: &mut Pair) -> Result<(), String> {
    let total = 5 * u64::from(pair.b.caps().rx_slots);
    let batch = u64::from(pair.b.caps().rx_slots.min(pair.b.caps().tx_slots)) / 4;
    let (mut sent, mut seen) = (0, 0);
    let mut until = Instant::now() + 5 * ARRIVAL;
    while seen < total {
        let upto = (sent + batch).min(seen + batch).min(total);
        let frames: Vec<_> = (sent..upto).map(|n| pair.numbered(true, 100 + (n % 300) as usize, n)).collect();
        sent += Pair::send(&mut *pair.a, &frames)? as u64;
        pair.b.rx_sync().map_err(words)?;
        let (mut rx, mut tx) = pair.b.rings();
        while rx.forward(&mut tx) {}
        pair.b.tx_sync().map_err(words)?;
        pair.a.rx_sync().map_err(words)?;
        for frame in pair.a.rx() {
            let want = (pair.frame)(true, (100 + (seen % 300) as usize).max(pair.frame_len_min));
            let (head, tail) = frame.split_at(frame.len() - 8);
            ensure!(head == &want[..want.len() - 8], "frame {seen} came back changed");
            let number = tail.try_into().map(u64::from_be_bytes).unwrap_or(u64::MAX);
            ensure!(number == seen, "frame {number} came back when {seen} was due");
            seen += 1;
            until = Instant::now() + 5 * ARRIVAL;
        }
        ensure!(Instant::now() < until, "{seen} of {total} frames came back, {sent} were sent");
    }
    Ok(())
}

/// poll(2) by the port's own descriptors.
fn sleep_on(port: &dyn Port, timeout: Duration) -> bool {
    let mut fds: Vec<_> = port
        .poll_fds()
        .iter()
        .map(|poll| libc::pollfd { fd: poll.fd, events: poll.events, revents: 0 })
        .collect();
    crate::sys::poll(&mut fds, timeout)
}

fn arming(pair: &mut Pair) -> Result<(), String> {
    ensure!(pair.b.arm().map_err(words)?, "arming refused on an empty port");
    pair.b.rx_sync().map_err(words)?;
    let frame = pair.numbered(true, 100, 5);
    ensure!(Pair::send(&mut *pair.a, std::slice::from_ref(&frame))? == 1, "no room for one frame");
    let until = Instant::now() + ARRIVAL;
    // Where waiting itself is what looks (netmap), it ends at once instead.
    while pair.b.arm().map_err(words)? && !sleep_on(&*pair.b, Duration::ZERO) {
        ensure!(Instant::now() < until, "arming never saw the frame");
    }
    let got = Pair::receive(&mut *pair.b, 1)?;
    compare(&got, &[frame])?;
    ensure!(pair.b.arm().map_err(words)?, "arming refused after everything was read");
    Ok(())
}

fn waking(pair: &mut Pair) -> Result<(), String> {
    for round in 0..50 {
        pair.b.rx_sync().map_err(words)?;
        ensure!(pair.b.arm().map_err(words)?, "arming refused on an empty port (round {round})");
        ensure!(!sleep_on(&*pair.b, Duration::ZERO), "woken by nothing (round {round})");
        let frame = pair.numbered(true, 100, round);
        ensure!(Pair::send(&mut *pair.a, std::slice::from_ref(&frame))? == 1, "no room for one frame");
        ensure!(sleep_on(&*pair.b, ARRIVAL), "slept through a frame (round {round})");
        compare(&Pair::receive(&mut *pair.b, 1)?, &[frame])?;
    }
    Ok(())
}

fn counting(pair: &mut Pair) -> Result<(), String> {
    let frames: Vec<_> = (0..7).map(|n| pair.numbered(true, 100 + n, n as u64)).collect();
    let bytes: u64 = frames.iter().map(|frame| frame.len() as u64).sum();
    let before = (pair.a.counters(), pair.b.counters());
    ensure!(Pair::send(&mut *pair.a, &frames)? == 7, "no room for 7 frames");
    Pair::receive(&mut *pair.b, 7)?;
    let (a, b) = (pair.a.counters(), pair.b.counters());
    let sent = (a.tx_frames - before.0.tx_frames, a.tx_bytes - before.0.tx_bytes);
    let seen = (b.rx_frames - before.1.rx_frames, b.rx_bytes - before.1.rx_bytes);
    ensure!(sent == (7, bytes), "7 frames of {bytes} bytes were counted as {sent:?} sent");
    ensure!(seen == (7, bytes), "7 frames of {bytes} bytes were counted as {seen:?} received");
    Ok(())
}

/// What sending frames in batches costs.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Bytes of a frame.
    pub frame_len: usize,
    /// Frames in a batch.
    pub batch: usize,
    /// Time of one frame, sent, received and read by one thread.
    pub nanos_per_frame: u64,
    /// System calls per frame, both ends together.
    pub calls_per_frame: f64,
}

/// Measures `frames` frames from `a` to `b` in batches, both driven by this thread.
///
/// # Errors
/// When the frames don't arrive.
pub fn rate(pair: &mut Pair, frame_len: usize, batch: usize, frames: usize) -> Result<Rate, String> {
    pair.drain()?;
    let frame = pair.numbered(true, frame_len, 0);
    let calls = |pair: &Pair| [&pair.a, &pair.b].map(|p| p.counters()).map(|c| c.rx_syscalls + c.tx_syscalls);
    let before: u64 = calls(pair).iter().sum();
    let start = Instant::now();
    let (mut sent, mut seen, mut sum) = (0, 0, 0_u64);
    while seen < frames {
        pair.a.tx_sync().map_err(words)?;
        let mut tx = pair.a.tx();
        while sent < frames && sent - seen < batch && tx.push(&frame) {
            sent += 1;
        }
        pair.a.tx_sync().map_err(words)?;
        pair.b.rx_sync().map_err(words)?;
        for frame in pair.b.rx() {
            sum += u64::from(frame[frame.len() - 1]);
            seen += 1;
        }
        ensure!(start.elapsed() < 20 * ARRIVAL, "{seen} of {frames} frames arrived (sum {sum})");
    }
    let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let made = calls(pair).iter().sum::<u64>() - before;
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let calls_per_frame = made as f64 / frames as f64;
    Ok(Rate { frame_len: frame.len(), batch, nanos_per_frame: nanos / frames as u64, calls_per_frame })
}
