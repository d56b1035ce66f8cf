//! The page: table, bars, and what it was measured on. One file without references to others.

use std::fmt::Write;

use super::curves::curves;
use super::{Report, figure, ratio, unit};
use crate::compare::Row;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}\
    table{border-collapse:collapse;width:100%}th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd}\
    th:nth-child(-n+3),td:nth-child(-n+3){text-align:left}.bad{color:#a22}dt{font-weight:600;margin-top:.4rem}\
    dd{margin:0 0 0 1rem}svg{width:100%;height:auto}footer{color:#666;margin-top:2rem}\
    .curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(22rem,1fr));gap:1rem}";

/// The whole page.
#[must_use]
pub fn html(report: &Report) -> String {
    let mut page = String::new();
    page.push_str("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
    page.push_str(
        "<meta name=\"viewport\" content=\"width=device-width\">\n<title>utcp against the kernel</title>\n",
    );
    let _ = writeln!(page, "<style>{STYLE}</style></head><body>\n<h1>utcp against the kernel</h1>");
    page.push_str(
        "<p>The same unmodified programs, once on the kernel's TCP and once on utcp, in alternating runs. A ratio is the \
         median over the pairs (worst and best pair in brackets); above 1 utcp is better. CPU time is that of all \
         cores, spinning included.</p>\n",
    );
    page.push_str(&bars(&report.rows));
    page.push_str(&rows(&report.rows));
    page.push_str(&curves(&report.rows));
    page.push_str("<h2>Measured on</h2>\n");
    page.push_str(&machine(report));
    page.push_str("</body></html>\n");
    page
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn rows(rows: &[Row]) -> String {
    let mut text = String::from(
        "<table><tr><th>scenario</th><th>case</th><th>metric</th><th>kernel</th><th>utcp</th><th>ratio</th>\
         <th>CPU µs/op<br>kernel</th><th>CPU µs/op<br>utcp</th><th>p99 µs<br>kernel, utcp</th><th>pairs</th><th>errors<br>kernel, utcp</th></tr>\n",
    );
    for row in rows {
        let bad = if row.errors.kernel + row.errors.utcp > 0 { " class=\"bad\"" } else { "" };
        let _ = writeln!(
            text,
            "<tr><td>{}</td><td>{} {}</td><td>{}</td><td>{}</td><td>{}</td><td><b>{}</b></td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td{bad}>{}, {}</td></tr>",
            row.scenario,
            row.app,
            escape(&row.case),
            unit(row.metric),
            figure(row.kernel),
            figure(row.utcp),
            ratio(row),
            figure(row.cpu_us_per_op.kernel),
            figure(row.cpu_us_per_op.utcp),
            row.latency_us.map_or_else(String::new, |l| format!(
                "{}, {}",
                figure(l.kernel.p99),
                figure(l.utcp.p99)
            )),
            row.pairs,
            row.errors.kernel,
            row.errors.utcp,
        );
    }
    text.push_str("</table>\n");
    text
}

/// A bar for each ratio, with its spread, and a line at 1.
fn bars(rows: &[Row]) -> String {
    const LEFT: f64 = 300.0;
    const WIDTH: f64 = 560.0;
    const STEP: f64 = 26.0;
    let top = rows.iter().filter_map(|row| row.ratio_max).fold(1.5, f64::max);
    let x = |ratio: f64| LEFT + WIDTH * ratio / top;
    let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
    let height = STEP * f64::from(count) + 30.0;
    let mut text = format!(
        "<svg viewBox=\"0 0 960 {height:.0}\" role=\"img\" aria-label=\"ratios\" font-family=\"system-ui,sans-serif\" \
         font-size=\"13\">\n"
    );
    let mut y = 8.0;
    for row in rows {
        let name = format!("{} {} {}", row.scenario, row.app, escape(&row.case));
        let _ = writeln!(
            text,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{name}</text>",
            LEFT - 8.0,
            y + 13.0
        );
        if let (Some(ratio), Some(min), Some(max)) = (row.ratio, row.ratio_min, row.ratio_max) {
            let color = if ratio >= 1.0 { "#2a7d4f" } else { "#b5533c" };
            let middle = y + 9.0;
            let _ = writeln!(
                text,
                "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"18\" fill=\"{color}\"/>\
                 <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.0}\" y2=\"{middle:.0}\" stroke=\"#111\"/>\
                 <text x=\"{:.1}\" y=\"{:.0}\">{ratio:.2}x</text>",
                x(ratio) - LEFT,
                x(min),
                x(max),
                x(max) + 6.0,
                y + 13.0,
            );
        }
        y += STEP;
    }
    let _ = writeln!(
        text,
        "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"0\" y2=\"{1:.0}\" stroke=\"#111\" stroke-dasharray=\"4 3\"/>\
         <text x=\"{0:.1}\" y=\"{2:.0}\" text-anchor=\"middle\">kernel = 1</text>\n</svg>",
        x(1.0),
        y,
        y + 16.0
    );
    text
}

fn machine(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = String::from("<dl>");
    let mut item = |name: &str, value: &str| {
        let _ = writeln!(text, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
    };
    let guest = if machine.virtual_machine { ", a virtual machine" } else { "" };
    item("machine", &format!("{}, {} cores, {} MiB{guest}", machine.cpu, machine.cores, machine.memory_mib));
    item("kernel", &format!("Linux {}, {}", machine.kernel, machine.system));
    for (name, version) in &machine.versions {
        item(name, version);
    }
    for (name, value) in &machine.settings {
        item(name, value);
    }
    let _ = writeln!(text, "</dl>\n<footer>{}</footer>", escape(&machine.date));
    text
}
