//! What the rounds say together.

use std::io::IsTerminal as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::cli::bench::Load;
use crate::cli::bench::report::micros;
use crate::cli::output::{Format, grouped, line, table};

use super::Run;
use super::mode::{MODES, Mode, Sync};

/// All runs: of each round, of each mode in the order of [`MODES`].
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) load: Load,
    pub(super) sync: Sync,
    pub(super) rounds: Vec<[Vec<Run>; MODES.len()]>,
}

/// What is known of one mode.
struct Row {
    mode: Mode,
    /// Of each run.
    speeds: Vec<f64>,
    /// Of each round: the speed as a share of that without telemetry.
    ratios: Vec<f64>,
    latency: Histogram<u64>,
    /// Microseconds of the broker's processor time for each record, of each run.
    processor: Vec<f64>,
    scrapes: u64,
    spans_exported: u64,
    spans_dropped: u64,
}

/// 10^6 bytes of payload in a second.
pub(super) fn mb_per_s(load: &Load, took: Duration) -> f64 {
    load.records.unwrap_or_default() as f64 * load.record_bytes as f64 / 1e6 / took.as_secs_f64().max(1e-9)
}

impl Summary {
    /// A line of JSON for each mode, and below them a table if a person reads.
    pub(super) fn print(&self, format: Format) -> anyhow::Result<()> {
        let rows = (0..MODES.len()).map(|at| self.row(at)).collect::<anyhow::Result<Vec<_>>>()?;
        for row in &rows {
            line(self.json(row))?;
        }
        if format == Format::Text && std::io::stdout().is_terminal() {
            let headings = ["MODE", "MB/S", "OF OFF", "P50 US", "P99 US", "CPU US/RECORD", "SPANS", "RUNS"];
            table(headings, &rows.iter().map(Row::cells).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn row(&self, at: usize) -> anyhow::Result<Row> {
        let records = self.load.records.unwrap_or_default().max(1) as f64;
        let runs = || self.rounds.iter().flat_map(|round| &round[at]);
        let mut latency = Histogram::new(3)?;
        for run in runs() {
            latency.add(&run.latency)?;
        }
        let micros_of = |time: Duration| time.as_secs_f64() * 1e6 / records;
        Ok(Row {
            mode: MODES[at],
            speeds: runs().map(|run| mb_per_s(&self.load, run.took)).collect(),
            ratios: self.rounds.iter().map(|round| seconds(&round[0]) / seconds(&round[at])).collect(),
            latency,
            processor: runs().filter_map(|run| run.processor).map(micros_of).collect(),
            scrapes: runs().map(|run| run.scrapes).sum(),
            spans_exported: runs().map(|run| run.spans.exported).sum(),
            spans_dropped: runs().map(|run| run.spans.dropped).sum(),
        })
    }

    fn json(&self, row: &Row) -> Value {
        let load = &self.load;
        json!({
            "peer": "streambus",
            "workload": "overhead",
            "mode": row.mode.name(),
            "mb_per_s": rounded(median(&row.speeds), 1),
            "ratio": rounded(median(&row.ratios), 4),
            "p50_us": micros(&row.latency, 0.5),
            "p99_us": micros(&row.latency, 0.99),
            "cpu_us_per_record": rounded(median(&row.processor), 3),
            "rounds": self.rounds.len(),
            "ratios": each(&row.ratios, 4),
            "runs_mb_per_s": each(&row.speeds, 1),
            "spans_exported": row.spans_exported,
            "spans_dropped": row.spans_dropped,
            "scrapes": row.scrapes,
            "sync": self.sync.setting(),
            "record_bytes": load.record_bytes,
            "records": load.records,
            "batch_bytes": load.batch_bytes.0,
            "single": load.single,
            "producers": load.producers,
            "partitions": load.partitions,
            "threads": load.threads,
        })
    }
}

impl Row {
    fn cells(&self) -> [String; 8] {
        [
            self.mode.name().to_owned(),
            format!("{:.1}", median(&self.speeds).unwrap_or_default()),
            format!("{:.1} %", median(&self.ratios).unwrap_or_default() * 100.0),
            format!("{:.1}", micros(&self.latency, 0.5)),
            format!("{:.1}", micros(&self.latency, 0.99)),
            median(&self.processor).map_or_else(|| "-".to_owned(), |time| format!("{time:.2}")),
            grouped(self.spans_exported),
            self.speeds.iter().map(|speed| format!("{speed:.0}")).collect::<Vec<_>>().join(" "),
        ]
    }
}

fn seconds(runs: &[Run]) -> f64 {
    runs.iter().map(|run| run.took.as_secs_f64()).sum::<f64>().max(1e-9)
}

/// The middle one, or the mean of the two in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + upper) / 2.0 } else { upper })
}

fn rounded(value: Option<f64>, digits: i32) -> Option<f64> {
    let scale = 10_f64.powi(digits);
    value.map(|value| (value * scale).round() / scale)
}

fn each(values: &[f64], digits: i32) -> Vec<Option<f64>> {
    values.iter().map(|value| rounded(Some(*value), digits)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }
}
