//! What a measurement prints.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::Load;

/// What a workload found out.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) workload: &'static str,
    /// Records, commits or calls.
    pub(super) records: u64,
    pub(super) took: Duration,
    /// Nanoseconds.
    pub(super) latency: Option<Histogram<u64>>,
    pub(super) in_flight: usize,
    pub(super) linger: Duration,
    pub(super) partitions: usize,
}

/// The line.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) load: Load,
    pub(super) measured: Measured,
    pub(super) sync: Option<String>,
}

impl Report {
    fn json(&self) -> Value {
        let (load, measured) = (&self.load, &self.measured);
        let seconds = measured.took.as_secs_f64().max(1e-9);
        let records_per_s = measured.records as f64 / seconds;
        // Empty calls and commits carry nothing.
        let carries_nothing = matches!(measured.workload, "rpc" | "commits");
        let record_bytes = if carries_nothing { 0 } else { load.record_bytes };
        let mb_per_s = records_per_s * record_bytes as f64 / 1e6;
        let mut line = json!({
            "peer": "streambus",
            "workload": measured.workload,
            "record_bytes": record_bytes,
            "records": measured.records,
            "records_per_s": records_per_s as u64,
            "mb_per_s": (mb_per_s * 10.0).round() / 10.0,
            "seconds": (seconds * 1e3).round() / 1e3,
            "sync": self.sync,
            "batch_bytes": load.batch_bytes.0,
            "single": load.single,
            "linger_ms": measured.linger.as_secs_f64() * 1e3,
            "producers": load.producers,
            "in_flight": measured.in_flight,
            "partitions": measured.partitions,
            "threads": load.threads,
        });
        if let Some(rate) = load.rate {
            line["rate"] = json!(rate);
        }
        if let Some(latency) = &measured.latency {
            put_quantiles(&mut line, latency);
        }
        line
    }
}

/// Adds the quantiles of a latency to a line.
pub(super) fn put_quantiles(line: &mut Value, latency: &Histogram<u64>) {
    for (name, quantile) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
        line[name] = json!(micros(latency, quantile));
    }
}

/// A quantile of nanoseconds, in microseconds with one decimal.
pub(super) fn micros(latency: &Histogram<u64>, quantile: f64) -> f64 {
    (latency.value_at_quantile(quantile) as f64 / 100.0).round() / 10.0
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.json().fmt(f)
    }
}
