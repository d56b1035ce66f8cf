//! Counts and times the operations of a client, whichever clock it looks at.

use hdrhistogram::Histogram;

use crate::load::Summary;

/// What was counted.
#[derive(Debug)]
pub(crate) struct Meter {
    /// Operations that succeeded.
    pub operations: u64,
    /// Connections made.
    pub connections: u64,
    /// What failed.
    pub errors: u64,
    latency_ns: Histogram<u64>,
}

impl Meter {
    pub fn new() -> std::io::Result<Self> {
        // 1 ns to 60 s, three digits.
        let latency_ns = Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(std::io::Error::other)?;
        Ok(Self { operations: 0, connections: 0, errors: 0, latency_ns })
    }

    /// An operation took so long.
    pub fn done(&mut self, ns: u64) {
        self.operations += 1;
        self.latency_ns.saturating_record(ns.max(1));
    }

    /// All of it in `seconds`.
    #[allow(clippy::cast_precision_loss, reason = "counts and nanoseconds below 2^52")]
    pub fn summary(&self, seconds: f64) -> Summary {
        let at = |quantile| {
            (!self.latency_ns.is_empty()).then(|| self.latency_ns.value_at_quantile(quantile) as f64 / 1e3)
        };
        Summary {
            operations: self.operations,
            connections: self.connections,
            per_second: self.operations as f64 / seconds,
            errors: self.errors,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
        }
    }
}
