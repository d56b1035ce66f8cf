//! What the fault layer does, written as `loss=1%,reorder=1%,seed=7`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How likely something is, as a share of 2⁶⁴.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Chance {
    percent: f64,
}

impl Chance {
    /// Whether a random number is among the hits.
    pub(crate) fn includes(self, random: u64) -> bool {
        // 53 bits are what a float can tell apart.
        const STEPS: f64 = 9_007_199_254_740_992.0;
        #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
        let uniform = (random >> 11) as f64 / STEPS;
        uniform * 100.0 < self.percent
    }
}

/// Which direction suffers, seen from the user of the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// Frames in both directions.
    #[default]
    Both,
    /// Received frames.
    In,
    /// Sent frames.
    Out,
}

/// A bad link. Parse it from text: faults by comma, `loss=1%,delay=5ms,jitter=1ms,rate=100mbit,seed=7`.
///
/// | word | what it does |
/// |---|---|
/// | `loss=1%` | a frame vanishes |
/// | `burst=0.1%/25%` | with the first chance per frame a burst begins in which every frame vanishes, with the second it ends |
/// | `duplicate=1%` | a frame comes twice |
/// | `reorder=1%` | a frame comes after one to three later ones |
/// | `corrupt=0.1%` | one bit behind the link header flips (a peer with partial checksums can't notice: switch its offload off) |
/// | `delay=5ms`, `jitter=1ms` | every frame takes that long, and up to that much longer |
/// | `rate=100mbit` | frames leave one after the other at that rate |
/// | `queue=1000` | frames that can wait for delay or rate; more are dropped |
/// | `side=in`, `side=out` | received or sent frames only |
/// | `seed=7` | another seed, other victims; the same seed, the same |
#[derive(Clone, Debug, PartialEq)]
pub struct FaultSpec {
    pub(crate) loss: Chance,
    pub(crate) burst_enter: Chance,
    pub(crate) burst_leave: Chance,
    pub(crate) duplicate: Chance,
    pub(crate) reorder: Chance,
    pub(crate) corrupt: Chance,
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    pub(crate) rate_bits_per_s: Option<u64>,
    pub(crate) queue_frames_max: usize,
    pub(crate) side: Side,
    pub(crate) seed: u64,
}

impl Default for FaultSpec {
    fn default() -> Self {
        Self {
            loss: Chance::default(),
            burst_enter: Chance::default(),
            burst_leave: Chance { percent: 100.0 },
            duplicate: Chance::default(),
            reorder: Chance::default(),
            corrupt: Chance::default(),
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            rate_bits_per_s: None,
            queue_frames_max: 10_000,
            side: Side::Both,
            seed: 1,
        }
    }
}

/// Why a fault string was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// A word without a value.
    #[error("{word:?} is not of the form fault=value, as in \"loss=1%,seed=7\"")]
    NoValue {
        /// As written.
        word: String,
    },
    /// An unknown fault.
    #[error(
        "unknown fault {name:?}; there are loss, burst, duplicate, reorder, corrupt, delay, jitter, rate, queue, side and seed"
    )]
    Unknown {
        /// As written.
        name: String,
    },
    /// A value that makes no sense.
    #[error("{name}={value}: {expected}")]
    BadValue {
        /// The fault.
        name: &'static str,
        /// As written.
        value: String,
        /// What would do.
        expected: &'static str,
    },
}

impl FromStr for FaultSpec {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let mut spec = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let Some((name, value)) = word.split_once('=') else {
                return Err(FaultError::NoValue { word: word.into() });
            };
            spec.set(name.trim(), value.trim())?;
        }
        Ok(spec)
    }
}

impl FaultSpec {
    fn set(&mut self, name: &str, value: &str) -> Result<(), FaultError> {
        match name {
            "loss" => self.loss = chance("loss", value)?,
            "burst" => {
                let expected = "two percentages: begins/ends, as in 0.1%/25%";
                let bad = || FaultError::BadValue { name: "burst", value: value.into(), expected };
                let (enter, leave) = value.split_once('/').ok_or_else(bad)?;
                self.burst_enter = chance("burst", enter)?;
                self.burst_leave = chance("burst", leave)?;
            }
            "duplicate" => self.duplicate = chance("duplicate", value)?,
            "reorder" => self.reorder = chance("reorder", value)?,
            "corrupt" => self.corrupt = chance("corrupt", value)?,
            "delay" => self.delay = duration("delay", value)?,
            "jitter" => self.jitter = duration("jitter", value)?,
            "rate" => self.rate_bits_per_s = Some(rate(value)?),
            "queue" => {
                let expected = "a number of frames, at least 1";
                let bad = || FaultError::BadValue { name: "queue", value: value.into(), expected };
                self.queue_frames_max = value.parse().ok().filter(|frames| *frames > 0).ok_or_else(bad)?;
            }
            "side" => {
                self.side = match value {
                    "both" => Side::Both,
                    "in" => Side::In,
                    "out" => Side::Out,
                    _ => {
                        let expected = "write in, out or both";
                        return Err(FaultError::BadValue { name: "side", value: value.into(), expected });
                    }
                }
            }
            "seed" => {
                let expected = "a whole number";
                let bad = |_| FaultError::BadValue { name: "seed", value: value.into(), expected };
                self.seed = value.parse().map_err(bad)?;
            }
            _ => return Err(FaultError::Unknown { name: name.into() }),
        }
        Ok(())
    }
}

fn chance(name: &'static str, value: &str) -> Result<Chance, FaultError> {
    let percent = value.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
    let expected = "a percentage from 0% to 100%";
    percent.map(|percent| Chance { percent }).ok_or_else(|| FaultError::BadValue {
        name,
        value: value.into(),
        expected,
    })
}

/// A number with one of some units behind it.
fn with_unit(value: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (unit, scale) = units.iter().find(|(unit, _)| value.ends_with(unit))?;
    let number: f64 = value.strip_suffix(unit)?.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number * scale)
}

fn duration(name: &'static str, value: &str) -> Result<Duration, FaultError> {
    let seconds = with_unit(value, &[("ms", 1e-3), ("us", 1e-6), ("s", 1.0)]);
    let expected = "a time up to an hour, as in 5ms, 200us or 1.5s";
    let bad = || FaultError::BadValue { name, value: value.into(), expected };
    seconds.filter(|seconds| *seconds <= 3600.0).map(Duration::from_secs_f64).ok_or_else(bad)
}

fn rate(value: &str) -> Result<u64, FaultError> {
    let rate = with_unit(value, &[("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)]);
    let expected = "bits per second, as in 64kbit, 100mbit or 2.5gbit";
    let bad = || FaultError::BadValue { name: "rate", value: value.into(), expected };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
    rate.filter(|rate| (1e3..=1e13).contains(rate)).map(|rate| rate as u64).ok_or_else(bad)
}

impl fmt::Display for FaultSpec {
    /// What differs from a perfect link, in the form that parses back; `none` for nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { loss, burst_enter, burst_leave, duplicate, reorder, corrupt, .. } = self;
        let Self { delay, jitter, rate_bits_per_s, queue_frames_max, side, seed, .. } = self;
        let plain = Self::default();
        let mut words = Vec::new();
        for (name, chance) in
            [("loss", loss), ("duplicate", duplicate), ("reorder", reorder), ("corrupt", corrupt)]
        {
            if chance.percent > 0.0 {
                words.push(format!("{name}={}%", chance.percent));
            }
        }
        if burst_enter.percent > 0.0 {
            words.push(format!("burst={}%/{}%", burst_enter.percent, burst_leave.percent));
        }
        for (name, time) in [("delay", delay), ("jitter", jitter)] {
            if !time.is_zero() {
                words.push(format!("{name}={}us", time.as_micros()));
            }
        }
        if let Some(rate) = rate_bits_per_s {
            words.push(format!("rate={}kbit", rate / 1000));
        }
        if *queue_frames_max != plain.queue_frames_max {
            words.push(format!("queue={queue_frames_max}"));
        }
        if *side != plain.side {
            words.push(format!("side={}", if *side == Side::In { "in" } else { "out" }));
        }
        if words.is_empty() {
            return f.write_str("none");
        }
        write!(f, "{},seed={seed}", words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        let spec: FaultSpec = text.parse().unwrap();
        assert_eq!(spec.to_string(), want);
        if want != "none" {
            assert_eq!(want.parse::<FaultSpec>().unwrap(), spec, "parses back");
        }
    }

    #[track_caller]
    fn check_error(text: &str, want: &str) {
        assert_eq!(text.parse::<FaultSpec>().unwrap_err().to_string(), want);
    }

    #[test]
    fn every_fault_is_parsed_and_printed_back() {
        check("", "none");
        check("seed=9", "none");
        check("loss=1%,reorder=1%,seed=7", "loss=1%,reorder=1%,seed=7");
        check(" loss = 0.5% , duplicate=2%", "loss=0.5%,duplicate=2%,seed=1");
        check("burst=0.1%/25%,corrupt=3%", "corrupt=3%,burst=0.1%/25%,seed=1");
        check("delay=5ms,jitter=200us", "delay=5000us,jitter=200us,seed=1");
        check("rate=2.5gbit,queue=50,side=out", "rate=2500000kbit,queue=50,side=out,seed=1");
        check("side=in,loss=100%,side=both", "loss=100%,seed=1");
    }

    #[test]
    fn a_wrong_fault_says_what_is_wrong_with_it() {
        check_error("loss", "\"loss\" is not of the form fault=value, as in \"loss=1%,seed=7\"");
        check_error(
            "lose=1%",
            "unknown fault \"lose\"; there are loss, burst, duplicate, reorder, corrupt, delay, jitter, rate, queue, side and seed",
        );
        check_error("loss=1", "loss=1: a percentage from 0% to 100%");
        check_error("loss=101%", "loss=101%: a percentage from 0% to 100%");
        check_error("loss=NaN%", "loss=NaN%: a percentage from 0% to 100%");
        check_error("burst=1%", "burst=1%: two percentages: begins/ends, as in 0.1%/25%");
        check_error("delay=5", "delay=5: a time up to an hour, as in 5ms, 200us or 1.5s");
        check_error("delay=-5ms", "delay=-5ms: a time up to an hour, as in 5ms, 200us or 1.5s");
        check_error("rate=1bit", "rate=1bit: bits per second, as in 64kbit, 100mbit or 2.5gbit");
        check_error("queue=0", "queue=0: a number of frames, at least 1");
        check_error("side=left", "side=left: write in, out or both");
        check_error("seed=x", "seed=x: a whole number");
    }
}
