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

    /// `median (min-max)`
    pub(crate) fn cell(&self, scale: f64, digits: usize) -> String {
        let median = self.median() * scale;
        if median.is_nan() {
            return "-".to_owned();
        }
        let (low, high) = self.spread();
        format!("{median:.digits$} ({:.digits$}-{:.digits$})", low * scale, high * scale)
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

pub(crate) const fn metric(name: &'static str, scale: f64, digits: usize) -> Metric {
    Metric { name, scale, digits }
}

/// Rows of metrics, columns of modes and of their ratios to one of them.
pub(crate) struct Figures {
    metrics: Vec<Metric>,
    /// The mode that the others are divided by.
    base: usize,
    modes: Vec<(&'static str, Vec<Series>)>,
}

impl Figures {
    pub(crate) fn new(metrics: &[Metric], modes: &[&'static str], base: usize) -> Self {
        let row = || vec![Series::default(); metrics.len()];
        Self { metrics: metrics.to_vec(), base, modes: modes.iter().map(|m| (*m, row())).collect() }
    }

    pub(crate) fn push(&mut self, mode: usize, metric: usize, value: f64) {
        self.modes[mode].1[metric].push(value);
    }

    pub(crate) fn table(&self) -> Table {
        let all: Vec<usize> = (0..self.modes.len()).collect();
        self.table_of(&all)
    }

    /// Of these modes, and of their ratios to the one that all are divided by.
    pub(crate) fn table_of(&self, modes: &[usize]) -> Table {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
        let modes: Vec<_> = modes.iter().map(|i| (*i != self.base, &self.modes[*i])).collect();
        let shown = || modes.iter().map(|(_, mode)| mode);
        // The last first: it is the one that matters.
        let compared = || modes.iter().rev().filter(|(compared, _)| *compared).map(|(_, mode)| mode);
        let base = &self.modes[self.base];
        let names = shown().map(|(name, _)| (*name).to_owned());
        let ratios = compared().map(|(name, _)| format!("{name} / {}", base.0));
        table.set_header(std::iter::once("metric".to_owned()).chain(names).chain(ratios));
        for (i, metric) in self.metrics.iter().enumerate() {
            if shown().all(|(_, all)| all[i].0.is_empty()) {
                continue;
            }
            let cells = shown().map(|(_, all)| all[i].cell(metric.scale, metric.digits));
            let ratios = compared().map(|(_, all)| all[i].ratio(&base.1[i]).cell(1.0, 2));
            table.add_row(std::iter::once(metric.name.to_owned()).chain(cells).chain(ratios));
        }
        table
    }

    pub(crate) fn json(&self) -> Value {
        let mut out = serde_json::Map::new();
        for (mode, all) in &self.modes {
            let mut row = serde_json::Map::new();
            for ((own, base), metric) in all.iter().zip(&self.modes[self.base].1).zip(&self.metrics) {
                let value =
                    json!({"median": own.median(), "values": own.0, "ratio": own.ratio(base).median()});
                row.insert(metric.name.to_owned(), value);
            }
            out.insert((*mode).to_owned(), row.into());
        }
        out.into()
    }
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
        assert_eq!(ratio.cell(10.0, 1), "25.0 (20.0-30.0)");
        assert_eq!(series(&[f64::NAN]).cell(1.0, 0), "-");
    }
}
