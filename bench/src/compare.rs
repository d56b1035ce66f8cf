//! Alternating pairs, and the row that they become.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::case::{Case, Point, Scenario, Setting};
use crate::engine::Files;
use crate::net::Net;
use crate::run::{self, Pinning, Sample, Side};
use crate::stats::{self, Better};
use crate::{Error, cpu};

/// One value for each side; none where no run succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sides<T> {
    /// The kernel's.
    pub kernel: T,
    /// utcp's.
    pub utcp: T,
}

/// One line of the result, as BENCH.md §7 gives it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Scenario.
    pub scenario: &'static str,
    /// Program.
    pub app: &'static str,
    /// Case.
    pub case: String,
    /// What the figures are.
    pub metric: &'static str,
    /// Which way they are better.
    pub better: Better,
    /// Median of the kernel's runs.
    pub kernel: Option<f64>,
    /// Median of utcp's runs.
    pub utcp: Option<f64>,
    /// Median of the pairwise ratios; above 1 utcp is better.
    pub ratio: Option<f64>,
    /// The worst pair's.
    pub ratio_min: Option<f64>,
    /// The best pair's.
    pub ratio_max: Option<f64>,
    /// Pairs in which both sides succeeded.
    pub pairs: usize,
    /// CPU time of all cores per operation.
    pub cpu_us_per_op: Sides<Option<f64>>,
    /// Failed operations, and failed runs.
    pub errors: Sides<u64>,
    /// Latency, where the load generator tells it: medians over the runs, µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<Sides<Latency>>,
    /// Cores that server, engine and the receive work of the server's device kept busy: 1 where they have one core and it
    /// is the bottleneck.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving_cores: Option<Sides<Option<f64>>>,
    /// Frames that the device lost, in all runs: with any, a rate tells of the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_frames: Option<Sides<u64>>,
    /// Which curve it belongs to, and where on its x axis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point: Option<Point>,
}

/// Percentiles of a latency, µs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: Option<f64>,
    /// 99 %.
    pub p99: Option<f64>,
    /// 99.9 %.
    pub p999: Option<f64>,
}

/// Everything measured of one case.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The case.
    pub case: Case,
    /// Pairs in which both sides succeeded.
    pub pairs: Vec<Sides<Sample>>,
    /// Failed runs.
    pub failed: Sides<u64>,
    /// Why they failed, each reason once.
    pub reasons: Vec<String>,
}

/// How to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What.
    pub cases: Vec<Case>,
    /// Pairs of each case.
    pub pairs: u32,
    /// Length of a run.
    pub seconds: u32,
    /// Where.
    pub pinning: Pinning,
    /// What is run.
    pub files: Files,
}

/// What is told while it works.
pub trait Progress {
    /// One run begins.
    fn begins(&mut self, case: Case, side: Side, pair: u32);
    /// It ended.
    fn ended(&mut self, case: Case, side: Side, sample: &Sample);
    /// It failed.
    fn failed(&mut self, case: Case, side: Side, error: &Error);
    /// Both sides of a pair succeeded.
    fn pair(&mut self, ratio: f64, took: Duration);
}

/// A side that failed so often in a row has no result in this case.
const FAILURES_MAX: u32 = 2;

/// Measures one case in `net`, and waits up to `calm` for others to leave the machine alone.
///
/// # Errors
/// [`Error::Interrupted`] alone: other errors are part of the result.
pub fn measure(
    plan: &Plan,
    case: Case,
    net: &Net,
    calm: &mut Duration,
    progress: &mut dyn Progress,
) -> Result<Measured, Error> {
    let mut measured = Measured { case, pairs: Vec::new(), failed: Sides::default(), reasons: Vec::new() };
    let rate = match case.setting {
        Setting::Tail => match tail_rate(plan, case, net) {
            Ok(rate) => Some(rate),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => {
                progress.failed(case, Side::Kernel, &error);
                measured.failed.kernel = 1;
                measured.reasons.push(format!("kernel: {error}"));
                return Ok(measured);
            }
        },
        _ => None,
    };
    let mut failures_in_a_row = 0;
    for pair in 1..=plan.pairs {
        let start = Instant::now();
        let mut side = |side: Side| {
            cpu::wait_calm(calm)?;
            progress.begins(case, side, pair);
            match run::once(case, side, net, &plan.pinning, &plan.files, plan.seconds, rate) {
                Ok(sample) => {
                    progress.ended(case, side, &sample);
                    Ok(Some(sample))
                }
                Err(Error::Interrupted) => Err(Error::Interrupted),
                Err(error) => {
                    progress.failed(case, side, &error);
                    let reason = format!("{}: {error}", if side == Side::Utcp { "utcp" } else { "kernel" });
                    if !measured.reasons.contains(&reason) {
                        measured.reasons.push(reason);
                    }
                    Ok(None)
                }
            }
        };
        let both = Sides { kernel: side(Side::Kernel)?, utcp: side(Side::Utcp)? };
        measured.failed.kernel += u64::from(both.kernel.is_none());
        measured.failed.utcp += u64::from(both.utcp.is_none());
        if let (Some(kernel), Some(utcp)) = (both.kernel, both.utcp) {
            failures_in_a_row = 0;
            let value = |sample: &Sample| main_value(case, sample);
            let ratio = case.metric().1.ratio(value(&kernel), value(&utcp));
            progress.pair(ratio, start.elapsed());
            measured.pairs.push(Sides { kernel, utcp });
        } else {
            failures_in_a_row += 1;
            if failures_in_a_row == FAILURES_MAX {
                break;
            }
        }
    }
    Ok(measured)
}

/// 70 % of what the kernel can do: both sides get the same load. In one second of three others may have had the machine.
fn tail_rate(plan: &Plan, case: Case, net: &Net) -> Result<f64, Error> {
    const SHARE: f64 = 0.7;
    let mut best: f64 = 0.0;
    for _ in 0..3 {
        let closed = run::once(case, Side::Kernel, net, &plan.pinning, &plan.files, 1, None)?;
        best = best.max(closed.load.per_second);
    }
    Ok(best * SHARE)
}

/// What a case is about.
fn main_value(case: Case, sample: &Sample) -> f64 {
    match case.setting {
        Setting::Tail => sample.load.p99_us.unwrap_or(f64::NAN),
        _ => sample.load.per_second,
    }
}

/// The rows of one case. Over a device with a client on the kernel, the same on both sides and often the bottleneck,
/// the row of the case itself is what all cores' CPU time buys, and the rate on the wall clock is beside it
/// as `CASE-rate`; as `CASE-own`, what CPU time of the run's own processes and threads buys, which others on the machine don't change
/// (not where receive work is left to interrupts, which belong to nobody). With the lean generator the server's core is the bottleneck: the row is the rate, and beside it, as
/// `CASE-cpu`, what CPU time of all that serves buys.
#[must_use]
pub fn rows(measured: &Measured) -> Vec<Row> {
    let case = measured.case;
    let (metric, better) = case.metric();
    let name = || case.name.to_owned();
    let main = |name| row(measured, name, metric, better, |sample| main_value(case, sample));
    match case.scenario {
        _ if case.setting == Setting::Tail => vec![main(name())],
        Scenario::Device if case.is_lean() => vec![
            main(name()),
            row(measured, format!("{}-cpu", case.name), per_cpu(metric), better, |s| {
                1e6 / s.serving_us_per_op()
            }),
        ],
        Scenario::Device => {
            let by = |name, cost: fn(&Sample) -> f64| {
                row(measured, name, per_cpu(metric), better, move |sample| 1e6 / cost(sample))
            };
            let own = (case.setting != Setting::LongSegments)
                .then(|| by(format!("{}-own", case.name), Sample::own_us_per_op));
            let all = by(name(), Sample::cpu_us_per_op);
            [all, main(format!("{}-rate", case.name))].into_iter().chain(own).collect()
        }
        _ => vec![main(name())],
    }
}

fn per_cpu(metric: &str) -> &'static str {
    match metric {
        "connections_per_second" => "connections_per_cpu_second",
        "messages_per_second" => "messages_per_cpu_second",
        "round_trips_per_second" => "round_trips_per_cpu_second",
        "mib_per_second" => "mib_per_cpu_second",
        _ => "requests_per_cpu_second",
    }
}

fn row(
    measured: &Measured,
    case: String,
    metric: &'static str,
    better: Better,
    value: impl Fn(&Sample) -> f64,
) -> Row {
    let of = |value: &dyn Fn(&Sample) -> f64| {
        let pairs: Vec<(f64, f64)> =
            measured.pairs.iter().map(|pair| (value(&pair.kernel), value(&pair.utcp))).collect();
        let (kernel, utcp): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
        (pairs, Sides { kernel: stats::median(&kernel), utcp: stats::median(&utcp) })
    };
    let (pairs, medians) = of(&value);
    let (_, cpu_us_per_op) = of(&Sample::cpu_us_per_op);
    let spread = stats::spread(better, &pairs);
    let lean = measured.case.is_lean();
    let (_, serving) = of(&Sample::serving_cores);
    let latency = {
        let of_load = |value: fn(&crate::parse::Load) -> Option<f64>| {
            of(&move |sample: &Sample| value(&sample.load).unwrap_or(f64::NAN)).1
        };
        let (p50, p99, p999) = (of_load(|l| l.p50_us), of_load(|l| l.p99_us), of_load(|l| l.p999_us));
        Sides {
            kernel: Latency { p50: p50.kernel, p99: p99.kernel, p999: p999.kernel },
            utcp: Latency { p50: p50.utcp, p99: p99.utcp, p999: p999.utcp },
        }
    };
    let lost = |side: fn(&Sides<Sample>) -> &Sample| {
        measured.pairs.iter().map(|pair| side(pair).lost_frames).sum::<u64>()
    };
    let on_device = measured.case.scenario == Scenario::Device;
    let errors = |side: fn(&Sides<Sample>) -> &Sample| {
        measured.pairs.iter().map(|pair| side(pair).load.errors).sum::<u64>()
    };
    Row {
        scenario: measured.case.scenario.name(),
        app: measured.case.app.name(),
        case,
        metric,
        better,
        kernel: medians.kernel,
        utcp: medians.utcp,
        ratio: spread.map(|s| s.median),
        ratio_min: spread.map(|s| s.min),
        ratio_max: spread.map(|s| s.max),
        pairs: measured.pairs.len(),
        cpu_us_per_op,
        errors: Sides {
            kernel: errors(|pair| &pair.kernel) + measured.failed.kernel,
            utcp: errors(|pair| &pair.utcp) + measured.failed.utcp,
        },
        latency_us: (latency != Sides::default()).then_some(latency),
        serving_cores: lean.then_some(serving),
        lost_frames: on_device
            .then(|| Sides { kernel: lost(|pair| &pair.kernel), utcp: lost(|pair| &pair.utcp) }),
        point: measured.case.point,
    }
}

/// The length of a run with which all of `cases` end in `budget`.
#[must_use]
pub fn seconds_within(budget: Duration, cases: usize, pairs: u32, longest: u32) -> u32 {
    /// Start, a second of warm-up, and stop.
    const OVERHEAD: Duration = Duration::from_millis(2200);
    let runs = u32::try_from(cases).unwrap_or(u32::MAX).saturating_mul(pairs).saturating_mul(2).max(1);
    let each = (budget / runs).saturating_sub(OVERHEAD);
    u32::try_from(each.as_secs()).unwrap_or(u32::MAX).clamp(1, longest)
}

/// How many runs shared the machine with so much other work that their CPU time is not theirs alone.
#[must_use]
pub fn disturbed(measured: &Measured) -> usize {
    const SHARE_MAX: f64 = 0.15;
    let runs = measured.pairs.iter().flat_map(|pair| [&pair.kernel, &pair.utcp]);
    runs.filter(|sample| sample.foreign_share() > SHARE_MAX).count()
}

/// Counters of utcp's runs per operation, medians over the pairs: wake-ups, sleeps and the like.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "counts below 2^52")]
pub fn counters_per_op(measured: &Measured) -> BTreeMap<String, f64> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for pair in &measured.pairs {
        for (name, value) in &pair.utcp.counters {
            let per_op = *value as f64 / pair.utcp.load.operations.max(1) as f64;
            all.entry(name.clone()).or_default().push(per_op);
        }
    }
    all.into_iter().filter_map(|(name, values)| Some((name, stats::median(&values)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{App, Work};
    use crate::parse::Load;

    pub(crate) fn sample(operations: u64, per_second: f64, busy_ms: u64, errors: u64) -> Sample {
        Sample {
            load: Load { operations, per_second, errors, ..Load::default() },
            machine: cpu::Machine { busy: Duration::from_millis(busy_ms), ..Default::default() },
            counters: [("sleeps".to_owned(), operations / 2)].into(),
            ..Sample::default()
        }
    }

    fn measured(scenario: Scenario) -> Measured {
        let work = Work::Http { close: false, bytes: 0, tls: false };
        Measured {
            case: Case {
                scenario,
                app: App::Nginx,
                name: "keepalive-hello",
                work,
                setting: Setting::Plain,
                point: None,
            },
            pairs: vec![
                Sides { kernel: sample(1000, 100.0, 20, 0), utcp: sample(2000, 200.0, 20, 3) },
                Sides { kernel: sample(1000, 110.0, 30, 1), utcp: sample(2000, 330.0, 20, 0) },
            ],
            failed: Sides { kernel: 0, utcp: 1 },
            reasons: Vec::new(),
        }
    }

    #[test]
    fn a_row_has_the_shape_that_programs_read() {
        let rows = rows(&measured(Scenario::SameHost));
        assert_eq!(rows.len(), 1);
        let json = serde_json::to_value(&rows[0]).unwrap();
        let expected = serde_json::json!({
            "scenario": "same-host", "app": "nginx", "case": "keepalive-hello", "metric": "requests_per_second",
            "better": "higher", "kernel": 105.0, "utcp": 265.0, "ratio": 2.5, "ratio_min": 2.0, "ratio_max": 3.0,
            "pairs": 2, "cpu_us_per_op": {"kernel": 25.0, "utcp": 10.0}, "errors": {"kernel": 1, "utcp": 4}
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn over_a_device_cpu_time_is_what_counts() {
        let mut measured = measured(Scenario::Device);
        for Sides { kernel, utcp } in &mut measured.pairs {
            (kernel.server, utcp.server) = (Duration::from_millis(15), Duration::from_millis(10));
        }
        let rows = rows(&measured);
        let names: Vec<_> = rows.iter().map(|row| (row.case.as_str(), row.metric)).collect();
        assert_eq!(
            names,
            [
                ("keepalive-hello", "requests_per_cpu_second"),
                ("keepalive-hello-rate", "requests_per_second"),
                ("keepalive-hello-own", "requests_per_cpu_second")
            ]
        );
        // Whatever others did meanwhile: 15 µs against 5 µs.
        assert_eq!((rows[2].ratio, rows[2].ratio_min), (Some(3.0), Some(3.0)));
        // 20 µs and 30 µs against 10 µs.
        assert_eq!((rows[0].ratio, rows[0].ratio_min, rows[0].ratio_max), (Some(2.5), Some(2.0), Some(3.0)));
    }

    #[test]
    fn no_pair_no_figure() {
        let nothing = Measured { pairs: Vec::new(), ..measured(Scenario::SameHost) };
        let json = serde_json::to_value(&rows(&nothing)[0]).unwrap();
        assert!(json["ratio"].is_null() && json["utcp"].is_null());
        assert_eq!((&json["pairs"], &json["errors"]["utcp"]), (&0.into(), &1.into()));
    }

    #[test]
    fn runs_fit_the_budget() {
        // The default: ten cases, five pairs, below ten minutes.
        let seconds = seconds_within(Duration::from_secs(570), 10, 5, 3);
        assert!((2..=3).contains(&seconds), "{seconds}");
        assert_eq!(seconds_within(Duration::from_secs(100), 3, 3, 3), 3);
        assert_eq!(seconds_within(Duration::from_secs(1), 100, 5, 3), 1);
    }

    #[test]
    fn cpu_time_of_nobody_we_know_is_foreign() {
        let mut one = sample(1, 1.0, 1000, 0);
        assert_eq!(one.foreign_share(), 1.0);
        one.server = Duration::from_millis(500);
        one.machine.softirq = Duration::from_millis(400);
        assert!((one.foreign_share() - 0.1).abs() < 1e-9);
        let pairs = vec![Sides { kernel: one, utcp: sample(1, 1.0, 1000, 0) }];
        assert_eq!(disturbed(&Measured { pairs, ..measured(Scenario::SameHost) }), 1);
    }

    #[test]
    fn counters_are_told_per_operation() {
        assert_eq!(counters_per_op(&measured(Scenario::SameHost))["sleeps"], 0.5);
    }
}
