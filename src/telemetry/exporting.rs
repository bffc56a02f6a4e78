//! Telemetry about telemetry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;

use super::catalog;
use super::instruments::{Count, Counts, Distribution, Instruments, Label, Slot, label};

label! {
    /// A kind of telemetry.
    Signal, "signal" {
        /// Spans.
        Traces = "traces",
        /// Metric collections.
        Metrics = "metrics",
        /// Log records.
        Logs = "logs",
    }
}

impl Signal {
    /// Every kind, in the order of their indices.
    pub const ALL: [Signal; 3] = [Signal::Traces, Signal::Metrics, Signal::Logs];
}

label! {
    /// Why telemetry was lost.
    Loss, "reason" {
        /// It came faster than it could be exported.
        QueueFull = "queue_full",
        /// The collector did not take it.
        ExportFailed = "export_failed",
    }
}

label! {
    /// The level of a counted log event.
    LogLevel, "level" {
        /// Something is off.
        Warn = "warn",
        /// A person must act.
        Error = "error",
    }
}

/// How full the export queues are.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLevels {
    pub(super) spans: u64,
    pub(super) logs: u64,
}

/// Instruments of the exporters and the scrape endpoint.
#[derive(Debug)]
pub struct ExportingMetrics {
    exported: Counts<Signal>,
    dropped: Counts<(Loss, Signal)>,
    failures: Counts<Signal>,
    log_events: Counts<LogLevel>,
    pub(super) scrape: Distribution,
    pub(super) queues: Slot<QueueLevels>,
    /// Log lines that standard error did not take.
    pub(super) lines_dropped: Slot<u64>,
    /// Requests that were to be traced, and that the limit per second left out.
    pub(super) traces_limited: Count,
    /// Milliseconds from `started` to the last success of each signal.
    last: Arc<[AtomicU64; 3]>,
    active: Arc<[AtomicU64; 3]>,
    started: Instant,
    series: Arc<AtomicU64>,
    overflowing: Arc<AtomicU64>,
}

impl ExportingMetrics {
    pub(super) fn new(instruments: &Instruments) -> Self {
        let queues = instruments.slot();
        instruments.each(catalog::TELEMETRY_QUEUE, &queues, |levels: &QueueLevels, sink| {
            sink(levels.spans, &Signal::Traces.attributes());
            sink(levels.logs, &Signal::Logs.attributes());
        });
        let lines_dropped = instruments.slot();
        instruments.level(catalog::LOG_LINES_DROPPED, &lines_dropped, |lines: &u64| *lines);
        let panics = instruments.panics();
        instruments.integers(catalog::TELEMETRY_PANICS, move |sink| sink(panics.get(), &[]));
        let metrics = ExportingMetrics {
            exported: instruments.counts(catalog::TELEMETRY_EXPORTED),
            dropped: instruments.counts(catalog::TELEMETRY_DROPPED),
            failures: instruments.counts(catalog::TELEMETRY_FAILURES),
            log_events: instruments.counts(catalog::LOG_EVENTS),
            scrape: instruments.distribution(catalog::TELEMETRY_SCRAPE),
            queues,
            lines_dropped,
            traces_limited: instruments.count(catalog::TRACES_LIMITED),
            last: Arc::default(),
            active: Arc::default(),
            started: Instant::now(),
            series: Arc::default(),
            overflowing: Arc::default(),
        };
        let (last, active, started) = (metrics.last.clone(), metrics.active.clone(), metrics.started);
        let attributes: Vec<Vec<KeyValue>> = Signal::all().into_iter().map(Signal::attributes).collect();
        instruments.floats(catalog::TELEMETRY_AGE, move |sink| {
            for ((last, active), attributes) in last.iter().zip(active.iter()).zip(&attributes) {
                if active.load(Ordering::Relaxed) != 0 {
                    let last = Duration::from_millis(last.load(Ordering::Relaxed));
                    sink(started.elapsed().saturating_sub(last).as_secs_f64(), attributes);
                }
            }
        });
        let series = metrics.series.clone();
        instruments
            .integers(catalog::TELEMETRY_SERIES, move |sink| sink(series.load(Ordering::Relaxed), &[]));
        let overflowing = metrics.overflowing.clone();
        instruments.integers(catalog::TELEMETRY_OVERFLOW, move |sink| {
            sink(overflowing.load(Ordering::Relaxed), &[])
        });
        metrics
    }

    /// From now on the age of the last export of `signal` is shown.
    pub(super) fn activated(&self, signal: Signal) {
        self.active[signal.index()].store(1, Ordering::Relaxed);
    }

    pub(super) fn exported(&self, signal: Signal, items: u64) {
        self.exported.add(signal, items);
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last[signal.index()].store(now, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self, signal: Signal, loss: Loss, items: u64) {
        self.dropped.add((loss, signal), items);
    }

    pub(super) fn failed(&self, signal: Signal) {
        self.failures.add(signal, 1);
    }

    pub(super) fn logged(&self, level: LogLevel) {
        self.log_events.add(level, 1);
    }

    pub(super) fn scraped(&self, took: Duration, series: u64, overflowing: u64) {
        self.scrape.record_duration(took, None);
        self.series.store(series, Ordering::Relaxed);
        self.overflowing.store(overflowing, Ordering::Relaxed);
    }

    /// Items of `signal` that the collector took so far.
    pub fn exported_so_far(&self, signal: Signal) -> u64 {
        self.exported.get(signal)
    }

    /// Items of `signal` that were lost so far for the reason `loss`.
    pub fn dropped_so_far(&self, signal: Signal, loss: Loss) -> u64 {
        self.dropped.get((loss, signal))
    }

    /// Exports of `signal` that failed so far.
    pub fn failures_so_far(&self, signal: Signal) -> u64 {
        self.failures.get(signal)
    }
}
