//! Figures of repeated measurements: medians, spreads, ratios repetition by repetition.

use comfy_table::Table;
use serde_json::{Value, json};

/// One metric of one mode, a value per repetition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match (sorted.len(), sorted.get(sorted.len() / 2)) {
            (n, Some(upper)) if n % 2 == 0 => f64::midpoint(sorted[n / 2 - 1], *upper),
            (_, Some(middle)) => *middle,
            (_, None) => f64::NAN,
        }
    }

    fn spread(&self) -> (f64, f64) {
        let low = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (low, high)
    }

    /// Repetition by repetition: what drifts during the run drifts in both.
    fn ratio(&self, base: &Self) -> Self {
        Self(self.0.iter().zip(&base.0).map(|(a, b)| a / b).collect())
    }
}

/// A metric: its name and how its values are shown.
#[derive(Clone, Copy)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) scale: f64,
    pub(crate) digits: usize,
}

/// Rows of modes, columns of metrics.
pub(crate) struct Figures {
    metrics: Vec<Metric>,
    modes: Vec<(&'static str, Vec<Series>)>,
}

impl Figures {
    pub(crate) fn new(metrics: &[Metric], modes: &[&'static str]) -> Self {
        let row = || vec![Series::default(); metrics.len()];
        Self { metrics: metrics.to_vec(), modes: modes.iter().map(|m| (*m, row())).collect() }
    }

    pub(crate) fn push(&mut self, mode: usize, metric: usize, value: f64) {
        self.modes[mode].1[metric].push(value);
    }

    /// `median (min-max) ratio to the base mode (its min-max)`.
    pub(crate) fn table(&self, base: usize) -> Table {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
        let names = self.metrics.iter().map(|m| m.name.to_owned());
        table.set_header(std::iter::once("mode".to_owned()).chain(names));
        for (mode, series) in &self.modes {
            let cells = series.iter().zip(&self.modes[base].1).zip(&self.metrics);
            let cells = cells.map(|((own, base), metric)| cell(own, &own.ratio(base), *metric));
            table.add_row(std::iter::once((*mode).to_owned()).chain(cells));
        }
        table
    }

    pub(crate) fn json(&self, base: usize) -> Value {
        let mut out = serde_json::Map::new();
        for (mode, series) in &self.modes {
            let mut row = serde_json::Map::new();
            for ((own, base), metric) in series.iter().zip(&self.modes[base].1).zip(&self.metrics) {
                let value =
                    json!({"median": own.median(), "values": own.0, "ratio": own.ratio(base).median()});
                row.insert(metric.name.to_owned(), value);
            }
            out.insert((*mode).to_owned(), row.into());
        }
        out.into()
    }
}

fn cell(own: &Series, ratio: &Series, metric: Metric) -> String {
    let (scale, digits) = (metric.scale, metric.digits);
    if own.median().is_nan() {
        return "-".to_owned();
    }
    let (low, high) = own.spread();
    let (ratio_low, ratio_high) = ratio.spread();
    format!(
        "{:.digits$} ({:.digits$}-{:.digits$}) {:.2}x ({ratio_low:.2}-{ratio_high:.2})",
        own.median() * scale,
        low * scale,
        high * scale,
        ratio.median(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        let series = |values: &[f64]| Series(values.to_vec());
        assert!((series(&[3.0, 1.0, 2.0]).median() - 2.0).abs() < 1e-9);
        assert!((series(&[4.0, 1.0]).median() - 2.5).abs() < 1e-9);
        assert!(series(&[]).median().is_nan());
        let ratio = series(&[2.0, 6.0]).ratio(&series(&[1.0, 2.0]));
        assert_eq!(ratio.0, [2.0, 3.0]);
    }
}
