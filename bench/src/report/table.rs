//! The table on the terminal.

use super::{figure, ratio, unit};
use crate::compare::Row;

const TITLES: [&str; 8] =
    ["scenario", "case", "", "kernel", "utcp", "utcp ÷ kernel (min–max)", "CPU µs/op kernel utcp", "errors"];

/// One line for each row.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut lines: Vec<[String; 8]> = vec![TITLES.map(str::to_owned)];
    for row in rows {
        lines.push([
            row.scenario.to_owned(),
            format!("{} {}", row.app, row.case),
            unit(row.metric),
            figure(row.kernel),
            figure(row.utcp),
            ratio(row),
            format!("{} {:>7}", figure(row.cpu_us_per_op.kernel), figure(row.cpu_us_per_op.utcp)),
            format!("{} {}", row.errors.kernel, row.errors.utcp),
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            // Words to the left, figures to the right.
            let (before, after) = if column < 3 { ("", pad.as_str()) } else { (pad.as_str(), "") };
            text.push_str(if column == 0 { "" } else { "  " });
            text.push_str(&format!("{before}{cell}{after}"));
        }
        text.push('\n');
        if at == 0 {
            text.push_str(&"─".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)));
            text.push('\n');
        }
    }
    text
}
