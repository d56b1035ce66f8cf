//! Medians and ratios of pairs.

/// The median, or none of nothing. Of an even number: the mean of the middle two.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Which way a metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// A rate.
    Higher,
    /// A time or an amount that is used up.
    Lower,
}

impl Better {
    /// How many times better `utcp` is: above 1 means utcp wins, whichever way the metric goes.
    #[must_use]
    pub fn ratio(self, kernel: f64, utcp: f64) -> f64 {
        match self {
            Self::Higher => utcp / kernel,
            Self::Lower => kernel / utcp,
        }
    }
}

/// The ratios of pairs: median and spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Median of the pairwise ratios.
    pub median: f64,
    /// The worst pair.
    pub min: f64,
    /// The best pair.
    pub max: f64,
}

/// The spread of the ratios of `(kernel, utcp)` pairs. Pairs with a zero or something that is no number
/// have no ratio and are left out.
#[must_use]
pub fn spread(better: Better, pairs: &[(f64, f64)]) -> Option<Spread> {
    let ratios: Vec<f64> = pairs
        .iter()
        .map(|(kernel, utcp)| better.ratio(*kernel, *utcp))
        .filter(|ratio| ratio.is_finite() && *ratio > 0.0)
        .collect();
    Some(Spread {
        median: median(&ratios)?,
        min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
        max: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 9.0]), Some(3.5));
        assert_eq!(median(&[f64::NAN, 2.0, f64::INFINITY]), Some(2.0));
    }

    #[test]
    fn a_ratio_above_one_means_that_utcp_is_better() {
        assert!(Better::Higher.ratio(100.0, 200.0) > 1.9);
        assert!(Better::Lower.ratio(100.0, 200.0) < 0.6);
    }

    #[test]
    fn the_median_of_ratios_is_not_the_ratio_of_medians() {
        // The machine was three times as fast during the second pair; both pairs say 2x, and so do we.
        let pairs = [(100.0, 200.0), (300.0, 600.0), (100.0, 150.0)];
        let spread = spread(Better::Higher, &pairs).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.5, 2.0));
    }

    #[test]
    fn pairs_without_a_ratio_do_not_count() {
        assert_eq!(spread(Better::Higher, &[(0.0, 1.0), (f64::NAN, 1.0)]), None);
        let spread = spread(Better::Lower, &[(0.0, 1.0), (3.0, 1.0)]).unwrap();
        assert_eq!(spread, Spread { median: 3.0, min: 3.0, max: 3.0 });
    }
}
