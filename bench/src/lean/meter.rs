//! Counts and times the messages of a load.

use hdrhistogram::Histogram;

use crate::load::Summary;

#[derive(Debug)]
pub(super) struct Meter {
    pub start_ns: u64,
    pub operations: u64,
    pub connections: u64,
    pub errors: u64,
    latency_ns: Histogram<u64>,
}

impl Meter {
    pub fn new(start_ns: u64) -> std::io::Result<Self> {
        // 1 ns to 60 s, three digits.
        let latency_ns = Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(std::io::Error::other)?;
        Ok(Self { start_ns, operations: 0, connections: 0, errors: 0, latency_ns })
    }

    pub fn done(&mut self, began_ns: u64, now_ns: u64) {
        self.operations += 1;
        self.latency_ns.saturating_record(now_ns.saturating_sub(began_ns).max(1));
    }

    #[allow(clippy::cast_precision_loss, reason = "counts and nanoseconds below 2^52")]
    pub fn summary(&self, now_ns: u64) -> Summary {
        let seconds = now_ns.saturating_sub(self.start_ns).max(1) as f64 / 1e9;
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
