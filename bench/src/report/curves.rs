//! Curves: what both sides do over connections, sizes, messages of a connection.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::html::escape;
use super::{figure, unit};
use crate::compare::Row;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 44.0;
/// (name, colour) in the order of [`values`].
const SIDES: [(&str, &str); 2] = [("kernel", "#8a8f98"), ("utcp", "#2a7d4f")];

/// A point: x, and what the kernel and utcp have there.
type Place = (f64, [Option<f64>; 2]);

/// One plot for each curve that has two points or more.
#[must_use]
pub fn curves(rows: &[Row]) -> String {
    let mut all: BTreeMap<(String, &str, &str), Vec<Place>> = BTreeMap::new();
    for row in rows {
        let Some((axis, x)) = row.point else { continue };
        // A case may have several rows; each metric is a curve of its own.
        let name = format!("{} {}: {}", row.scenario, row.app, unit(row.metric));
        all.entry((name, axis, row.metric)).or_default().push((x, [row.kernel, row.utcp]));
    }
    let mut text = String::new();
    for ((name, axis, _), mut places) in all {
        places.sort_by(|a, b| a.0.total_cmp(&b.0));
        if places.len() > 1 {
            plot(&mut text, &name, axis, &places);
        }
    }
    if text.is_empty() { text } else { format!("<h2>Curves</h2>\n<div class=\"curves\">{text}</div>\n") }
}

/// x logarithmic, y from zero.
fn plot(text: &mut String, name: &str, axis: &str, places: &[Place]) {
    let xs = || places.iter().map(|(x, _)| x.max(1.0).ln());
    let (first, last) = (xs().fold(f64::INFINITY, f64::min), xs().fold(f64::NEG_INFINITY, f64::max));
    let span = (last - first).max(1e-9);
    let highest =
        places.iter().flat_map(|(_, y)| y.iter().flatten().copied()).fold(0.0, f64::max).max(1e-9) * 1.05;
    let x_at = |x: f64| LEFT + (WIDTH - LEFT - RIGHT) * (x.max(1.0).ln() - first) / span;
    let y_at = |y: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / highest;
    let _ = writeln!(
        text,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\" font-family=\"system-ui,sans-serif\" \
         font-size=\"12\">\n<text x=\"{LEFT}\" y=\"16\" font-weight=\"600\">{0}</text>",
        escape(name)
    );
    for quarter in 0..=4 {
        let y = highest * f64::from(quarter) / 4.0;
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#e3e3e3\"/>\
             <text x=\"{2:.0}\" y=\"{3:.1}\" text-anchor=\"end\">{4}</text>",
            WIDTH - RIGHT,
            y_at(y),
            LEFT - 6.0,
            y_at(y) + 4.0,
            figure(Some(y))
        );
    }
    for (x, _) in places {
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
            x_at(*x),
            HEIGHT - BOTTOM + 16.0,
            short(*x)
        );
    }
    let _ = writeln!(
        text,
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 10.0,
        escape(axis)
    );
    for (side, (label, colour)) in SIDES.iter().enumerate() {
        let of_side: Vec<(f64, f64)> =
            places.iter().filter_map(|(x, y)| Some((x_at(*x), y_at(y[side]?)))).collect();
        let points: Vec<String> = of_side.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        for (x, y) in &of_side {
            let _ = write!(text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let at = WIDTH - RIGHT - 60.0 * (2 - side) as f64;
        let _ = writeln!(text, "<text x=\"{at:.0}\" y=\"16\" fill=\"{colour}\">{label}</text>");
    }
    text.push_str("</svg>\n");
}

/// A place on the x axis: 64, 1k, 100k, 1M.
fn short(x: f64) -> String {
    match x {
        x if x >= 1e6 => format!("{:.0}M", x / 1e6),
        x if x >= 1e3 => format!("{:.0}k", x / 1e3),
        x => format!("{x:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn two_points_make_a_curve_and_one_does_not() {
        let row = report().rows[0].clone();
        let at = |x| Row { point: Some(("connections", x)), ..row.clone() };
        assert_eq!(curves(&[row.clone(), at(1.0)]), "");
        let text = curves(&[at(1.0), at(1000.0), at(50.0)]);
        assert_eq!(text.matches("<svg").count(), 1);
        assert_eq!((text.matches("<polyline").count(), text.matches("<circle").count()), (2, 6));
        assert!(text.contains(">1k<") && text.contains(">connections<") && !text.contains("NaN"));
    }
}
