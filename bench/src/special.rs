//! Cases that are no load of so many operations a second: memory of idle connections, and cost over their number.

use std::time::{Duration, Instant};

use crate::case::{Case, Work};
use crate::compare::{Plan, Row, Sides};
use crate::crowd::{self, Crowd};
use crate::memory::Group;
use crate::net::Net;
use crate::run::Side;
use crate::stats::{self, Better};
use crate::{Error, demux, interrupt, solo};

/// Connections that growth is measured from.
const GROWTH_FROM: u32 = 100;
/// Messages under way at a time, whatever the number of connections.
const IN_FLIGHT: u32 = 64;
/// Messages to a shard by itself.
const SOLO_MESSAGES: u64 = 300_000;
/// How long idle connections are watched.
const WATCH: Duration = Duration::from_secs(3);

/// What one side of a pair gave.
#[derive(Debug, Clone, Copy)]
struct Value {
    /// What the row is about.
    main: f64,
    /// The part of it that programs and engine have themselves, without the kernel's.
    resident: f64,
    /// CPU µs of all that serves per message; for idle connections: its ms per second.
    cpu: f64,
}

/// The rows of a case, if it is one of these.
///
/// # Errors
/// [`Error::Interrupted`], or that of the first run that fails.
pub fn measure(
    plan: &Plan,
    case: Case,
    net: &Net,
    mut say: impl FnMut(&str),
) -> Result<Option<Vec<Row>>, Error> {
    if let Some(row) = in_process(plan, case, &mut say)? {
        return Ok(Some(vec![row]));
    }
    let (pairs, connections) = match case.work {
        // Memory does not depend on what else the machine does.
        Work::Hold { connections } => (1, connections),
        Work::Grow { connections } => (plan.pairs.min(3), connections),
        _ => return Ok(None),
    };
    let count = crowd::servers(connections);
    if count > 1 {
        say(&format!("{connections} connections over {count} servers, for want of descriptors (ulimit -Hn)"));
    }
    let mut all = Vec::new();
    for pair in 1..=pairs {
        let mut side = |side| {
            let value = match case.work {
                Work::Hold { .. } => idle(plan, side, net, connections, count)?,
                _ => growth(plan, side, net, connections, count)?,
            };
            let name = if side == Side::Kernel { "kernel" } else { "utcp" };
            let Value { main, cpu, .. } = value;
            say(&format!(
                "{} {} {pair}/{pairs} {name}: {main:.2} (CPU {cpu:.3})",
                case.scenario.name(),
                case.name
            ));
            Ok::<_, Error>(value)
        };
        all.push(Sides { kernel: side(Side::Kernel)?, utcp: side(Side::Utcp)? });
    }
    let (metric, better) = case.metric();
    let cpu = |value: &Value| value.cpu;
    let mut rows = vec![row(case, case.name.to_owned(), metric, better, &all, |value| value.main)];
    if let Work::Hold { .. } = case.work {
        let name = case.name.replace("memory", "cpu");
        rows.push(row(case, name, "cpu_ms_per_second", Better::Lower, &all, cpu));
        let name = format!("{}-resident", case.name);
        rows.push(row(case, name, metric, better, &all, |value| value.resident));
    } else {
        rows[0].cpu_us_per_op = medians(&all, cpu);
    }
    Ok(Some(rows))
}

/// What is measured in a thread of ours, on a core of the server's. The kernel has nothing like it.
fn in_process(plan: &Plan, case: Case, say: &mut impl FnMut(&str)) -> Result<Option<Row>, Error> {
    let time = Duration::from_secs(plan.seconds.into());
    // (value, CPU µs per operation, what was lost)
    type Found = (f64, f64, u64);
    let work: Box<dyn FnOnce() -> Result<Found, Error> + Send> = match case.work {
        Work::Demux { stacks, tuples, arrive, leave } => Box::new(move || {
            let found = demux::run(demux::Load { stacks, tuples, arrive, leave, time })?;
            Ok((found.per_second, 1e6 / found.per_second, found.lost))
        }),
        Work::Solo { connections, bytes } => Box::new(move || {
            let found = solo::run(solo_work(connections, bytes, 1))?;
            Ok((found.ns_per_message, found.ns_per_message / 1e3, found.errors))
        }),
        Work::SoloGrow { connections } => Box::new(move || {
            let few = solo::run(solo_work(GROWTH_FROM, 64, 1))?;
            let many = solo::run(solo_work(connections, 64, 3))?;
            let growth = many.ns_per_message / few.ns_per_message;
            Ok((growth, many.ns_per_message / 1e3, few.errors + many.errors))
        }),
        _ => return Ok(None),
    };
    let core = plan.pinning.server.as_deref().and_then(|list| list.split([',', '-']).next()?.parse().ok());
    let thread = std::thread::spawn(move || {
        if let Some(core) = core {
            utcp_engine::sys::pin(core).map_err(Error::io("can't pin the thread that is measured"))?;
        }
        work()
    });
    let (value, cpu_us, lost) =
        thread.join().map_err(|_| Error::Missing("the thread that is measured panicked".to_owned()))??;
    interrupt::check()?;
    let (metric, better) = case.metric();
    say(&format!("{} {} {}: {value:.2} {metric}", case.scenario.name(), case.app.name(), case.name));
    let mut row = row(case, case.name.to_owned(), metric, better, &[], |value| value.main);
    (row.utcp, row.cpu_us_per_op.utcp) = (Some(value), Some(cpu_us));
    (row.errors.utcp, row.pairs) = (lost, 1);
    Ok(Some(row))
}

fn solo_work(connections: u32, bytes: u32, rounds: u32) -> solo::Work {
    solo::Work { connections, bytes, each: 0, rounds, least: SOLO_MESSAGES }
}

fn medians(all: &[Sides<Value>], of: impl Fn(&Value) -> f64) -> Sides<Option<f64>> {
    let (kernel, utcp): (Vec<f64>, Vec<f64>) =
        all.iter().map(|pair| (of(&pair.kernel), of(&pair.utcp))).unzip();
    Sides { kernel: stats::median(&kernel), utcp: stats::median(&utcp) }
}

fn row(
    case: Case,
    name: String,
    metric: &'static str,
    better: Better,
    all: &[Sides<Value>],
    of: impl Fn(&Value) -> f64,
) -> Row {
    let pairs: Vec<(f64, f64)> = all.iter().map(|pair| (of(&pair.kernel), of(&pair.utcp))).collect();
    let (spread, medians) = (stats::spread(better, &pairs), medians(all, of));
    Row {
        scenario: case.scenario.name(),
        app: case.app.name(),
        case: name,
        metric,
        better,
        kernel: medians.kernel,
        utcp: medians.utcp,
        ratio: spread.map(|s| s.median),
        ratio_min: spread.map(|s| s.min),
        ratio_max: spread.map(|s| s.max),
        pairs: all.len(),
        cpu_us_per_op: Sides::default(),
        errors: Sides::default(),
        latency_us: None,
        lost_frames: None,
        serving_cores: None,
        point: case.point,
    }
}

/// Memory per idle connection, and CPU time while nothing happens.
#[allow(clippy::cast_precision_loss, reason = "bytes below 2^52")]
fn idle(plan: &Plan, side: Side, net: &Net, connections: u32, count: u16) -> Result<Value, Error> {
    // Before the crowd, so that it is dropped after it.
    let group = Group::new()?;
    let mut crowd = Crowd::set(side, net, &plan.pinning, &plan.files, count, Some(group.folder()))?;
    // What is there once, whatever the number of connections, is there before the count begins.
    crowd.hold(u32::from(count))?;
    interrupt::sleep(Duration::from_millis(500))?;
    let before = group.used()?;
    crowd.hold(connections)?;
    // Timers of the handshakes run out.
    interrupt::sleep(Duration::from_secs(1))?;
    let used = group.used()?;
    let per_connection = |after: u64, before: u64| {
        after.saturating_sub(before) as f64 / f64::from(connections - u32::from(count))
    };
    let resident = per_connection(used.resident, before.resident);
    let (start, cpu) = (Instant::now(), crowd.serving(side, net));
    interrupt::sleep(WATCH)?;
    let cpu = crowd.serving(side, net).saturating_sub(cpu);
    Ok(Value {
        main: resident + per_connection(used.kernel, before.kernel),
        resident,
        cpu: 1e3 * cpu.as_secs_f64() / start.elapsed().as_secs_f64(),
    })
}

/// How much more a message costs over `connections` than over a hundred.
#[allow(clippy::cast_precision_loss, reason = "counts below 2^52")]
fn growth(plan: &Plan, side: Side, net: &Net, connections: u32, count: u16) -> Result<Value, Error> {
    let mut crowd = Crowd::set(side, net, &plan.pinning, &plan.files, count, None)?;
    let mut cost = |connections: u32| {
        crowd.hold(connections)?;
        // Every connection's first message touches memory that later ones find there.
        crowd.messages(connections, IN_FLIGHT, 1, 2)?;
        let before = crowd.serving(side, net);
        let summary = crowd.messages(connections, IN_FLIGHT, plan.seconds, 0)?;
        let cpu = crowd.serving(side, net).saturating_sub(before);
        if summary.errors > 0 {
            return Err(Error::Missing(format!("{} messages failed", summary.errors)));
        }
        Ok(cpu.as_secs_f64() * 1e6 / summary.operations.max(1) as f64)
    };
    let few = cost(GROWTH_FROM.max(u32::from(count)))?;
    let many = cost(connections)?;
    Ok(Value { main: many / few, resident: 0.0, cpu: many })
}
