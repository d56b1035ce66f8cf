//! The result, for people and for programs.

mod curves;
mod html;
mod table;

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::Error;
use crate::compare::Row;
use crate::machine::Machine;

pub use html::html;
pub use table::table;

/// All of it, as BENCH.md §7 gives it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where it was measured.
    pub machine: Machine,
    /// What was measured.
    pub rows: Vec<Row>,
}

impl Report {
    /// As JSON.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_json(&self, path: &Path) -> Result<(), Error> {
        let failed = || Error::io(format!("can't write {}", path.display()));
        let mut text = serde_json::to_string_pretty(self).map_err(|error| failed()(error.into()))?;
        text.push('\n');
        fs::write(path, text).map_err(failed())
    }

    /// As a page.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_html(&self, path: &Path) -> Result<(), Error> {
        fs::write(path, html(self)).map_err(Error::io(format!("can't write {}", path.display())))
    }
}

/// A figure with as many digits as mean something.
fn figure(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value >= 1e6 => format!("{:.2} M", value / 1e6),
        Some(value) if value >= 1e4 => format!("{:.1} k", value / 1e3),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

fn ratio(row: &Row) -> String {
    match (row.ratio, row.ratio_min, row.ratio_max) {
        (Some(ratio), Some(min), Some(max)) => format!("{ratio:.2}x ({min:.2}–{max:.2})"),
        _ => "–".to_owned(),
    }
}

/// What a metric is called beside a figure.
fn unit(metric: &str) -> String {
    metric.replace("_per_", "/").replace("cpu_second", "cpu-s").replace("second", "s").replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Sides;
    use crate::stats::Better;

    pub(crate) fn report() -> Report {
        let row = Row {
            scenario: "same-host",
            app: "nginx",
            case: "close-hello".to_owned(),
            metric: "connections_per_second",
            better: Better::Higher,
            kernel: Some(17_437.0),
            utcp: Some(52_311.0),
            ratio: Some(3.0),
            ratio_min: Some(2.9),
            ratio_max: Some(3.2),
            pairs: 5,
            cpu_us_per_op: Sides { kernel: Some(100.0), utcp: Some(33.3) },
            errors: Sides { kernel: 0, utcp: 0 },
            latency_us: None,
            lost_frames: None,
            serving_cores: None,
            point: None,
        };
        let failed = Row { ratio: None, ratio_min: None, ratio_max: None, utcp: None, ..row.clone() };
        let mut machine = Machine::here(None);
        machine.settings.insert("a <setting>".to_owned(), "of \"a\" & b".to_owned());
        Report { machine, rows: vec![row, failed] }
    }

    #[test]
    fn figures_are_short() {
        for (value, text) in [
            (Some(1_234_567.0), "1.23 M"),
            (Some(63_935.0), "63.9 k"),
            (Some(8149.0), "8149"),
            (Some(31.25), "31.2"),
            (Some(1.5), "1.50"),
            (None, "–"),
        ] {
            assert_eq!(figure(value), text);
        }
        assert_eq!(unit("requests_per_cpu_second"), "requests/cpu-s");
        assert_eq!(unit("round_trips_per_second"), "round trips/s");
    }

    #[test]
    fn the_json_has_a_machine_and_rows() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["machine", "rows"]);
        assert_eq!(json["rows"].as_array().unwrap().len(), 2);
        for name in ["cpu", "cores", "kernel", "versions", "settings"] {
            assert!(!json["machine"][name].is_null(), "{name}");
        }
    }

    #[test]
    fn the_page_is_whole_and_escaped() {
        let page = html(&report());
        assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
        assert!(page.contains("a &lt;setting&gt;") && page.contains("of &quot;a&quot; &amp; b"));
        assert_eq!(page.matches("<svg").count(), 1);
        assert!(page.contains("3.00x"));
    }

    #[test]
    fn the_table_is_aligned() {
        let text = table(&report().rows);
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
    }
}
