//! The export thread: a runtime of its own that moves spans, log records and metrics to the collector.
//!
//! Requests never wait for it. While the collector is away, queues fill up to their limits, what does not fit or
//! cannot be delivered is dropped and counted, and one log line per collector says so; another one says when it is over.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::{LogExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::logs::{LogBatch, LogExporter as _};
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{InstrumentKind, ManualReader, Pipeline, Temporality};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::dispatcher::WeakDispatch;
use tracing::{info, warn};

use super::config::{Config, Error, OtlpConfig};
use super::exporting::{Loss, Signal};
use super::instruments::Collection;
use super::metric_export::MetricExporter;
use super::metrics::Metrics;
use super::pipeline::{LogItem, drain};
use super::route::Route;

/// The exporters, built but not yet running.
pub(super) struct Exporters {
    runtime: Runtime,
    spans: Option<SpanExporter>,
    logs: Option<LogExporter>,
    metrics: Option<(MetricExporter, SharedReader)>,
    /// For each signal one bit per signal that goes to the same collector, itself included.
    companions: [u8; 3],
}

impl Exporters {
    /// Builds an exporter per exported signal. None if there is no signal to export.
    pub(super) fn build(config: &Config, resource: &Resource) -> Result<Option<Self>, Error> {
        let [traces, metrics, logs] = Signal::ALL.map(|signal| config.route(signal));
        if traces.is_none() && metrics.is_none() && logs.is_none() {
            return Ok(None);
        }
        let routes = [&traces, &metrics, &logs];
        let companions = routes.map(|route| {
            let bits =
                routes.iter().enumerate().filter(|(_, other)| same_collector(route.as_ref(), other.as_ref()));
            bits.fold(0, |bits, (index, _)| bits | 1 << index)
        });
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
        // The channels are bound to the runtime in which they are made.
        let entered = runtime.enter();
        let spans = traces.map(|route| {
            let builder = route.applied_to(SpanExporter::builder().with_tonic())?;
            let mut exporter = builder.build().map_err(Error::Exporter)?;
            exporter.set_resource(resource);
            Ok::<_, Error>(exporter)
        });
        let logs = logs.map(|route| {
            let builder = route.applied_to(LogExporter::builder().with_tonic())?;
            let mut exporter = builder.build().map_err(Error::Exporter)?;
            exporter.set_resource(resource);
            Ok::<_, Error>(exporter)
        });
        let metrics = metrics.map(|route| {
            let exporter = MetricExporter::new(&route)?;
            let reader = ManualReader::builder().with_temporality(Temporality::Cumulative).build();
            Ok::<_, Error>((exporter, SharedReader(Arc::new(reader))))
        });
        drop(entered);
        Ok(Some(Exporters {
            runtime,
            spans: spans.transpose()?,
            logs: logs.transpose()?,
            metrics: metrics.transpose()?,
            companions,
        }))
    }

    /// The reader to register with the meter provider.
    pub(super) fn reader(&self) -> Option<SharedReader> {
        self.metrics.as_ref().map(|(_, reader)| reader.clone())
    }

    /// Starts the thread.
    pub(super) fn run(
        self,
        otlp: &OtlpConfig,
        metrics: &Metrics,
        collection: &Arc<Collection>,
        spans: Option<mpsc::Receiver<SpanData>>,
        logs: Option<mpsc::Receiver<LogItem>>,
        dispatch: WeakDispatch,
    ) -> Result<Running, Error> {
        let stop = CancellationToken::new();
        let (ended, done) = oneshot::channel();
        let report = Report {
            metrics: metrics.clone(),
            failing: AtomicU8::new(0),
            companions: self.companions,
            timeouts: Signal::ALL.map(|signal| otlp.timeout(signal)),
            dispatch,
        };
        let otlp = otlp.clone();
        let (token, collection) = (stop.clone(), collection.clone());
        let Exporters { runtime, spans: span_exporter, logs: log_exporter, metrics: metric_exporter, .. } =
            self;
        let work = async move {
            let spans = async {
                if let (Some(exporter), Some(queue)) = (span_exporter, spans) {
                    export_spans(&exporter, queue, &otlp, token.clone(), &report).await;
                }
            };
            let logs = async {
                if let (Some(exporter), Some(queue)) = (log_exporter, logs) {
                    export_logs(&exporter, queue, &otlp, token.clone(), &report).await;
                }
            };
            let metrics = async {
                if let Some((exporter, reader)) = metric_exporter {
                    export_metrics(&exporter, &reader, &collection, &otlp, token.clone(), &report).await;
                }
            };
            tokio::join!(spans, logs, metrics);
        };
        std::thread::Builder::new()
            .name("telemetry".to_owned())
            .spawn(move || {
                let _suppressed = Context::enter_telemetry_suppressed_scope();
                runtime.block_on(work);
                // Nobody waits any more if the deadline of the shutdown has passed.
                let _ = ended.send(());
            })
            .map_err(Error::Thread)?;
        Ok(Running { stop: stop.drop_guard(), done })
    }
}

/// The running export thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    stop: DropGuard,
    done: oneshot::Receiver<()>,
}

impl Running {
    /// Exports what is left. Returns whether that was done before the deadline; the thread is not waited for longer.
    pub(super) async fn flush(self, deadline: Duration) -> bool {
        drop(self.stop);
        matches!(timeout(deadline, self.done).await, Ok(Ok(())))
    }
}

/// Whether two signals are told the same by whoever takes them.
fn same_collector(one: Option<&Route>, other: Option<&Route>) -> bool {
    one.zip(other).is_some_and(|(one, other)| one.endpoint == other.endpoint && one.tls == other.tls)
}

/// Counts what becomes of exports, and says once for each collector when they begin to fail and once when they work again.
struct Report {
    metrics: Metrics,
    /// One bit per signal whose last export failed.
    failing: AtomicU8,
    companions: [u8; 3],
    /// The longest that one export may take, by signal.
    timeouts: [Duration; 3],
    /// Where log lines go: the export thread is outside of any scope that a test sets up.
    dispatch: WeakDispatch,
}

impl Report {
    /// Waits for one export of `items` items and accounts for it.
    async fn of(&self, signal: Signal, items: u64, export: impl Future<Output = OTelSdkResult>) {
        // The exporter's own time limit covers each attempt; this one covers all of them.
        let limit = self.timeouts[signal as usize];
        let result = match timeout(limit, export).await {
            Ok(result) => result,
            Err(_) => Err(OTelSdkError::Timeout(limit)),
        };
        let (bit, companions) = (1 << signal as u8, self.companions[signal as usize]);
        match result {
            Ok(()) => {
                self.metrics.exporting.exported(signal, items);
                if self.failing.fetch_and(!bit, Ordering::AcqRel) & companions == bit {
                    self.log(
                        || info!(name: "telemetry.export.recovered", "the collector takes telemetry again"),
                    );
                }
            }
            Err(error) => {
                self.metrics.exporting.failed(signal);
                self.metrics.exporting.dropped(signal, Loss::ExportFailed, items);
                if self.failing.fetch_or(bit, Ordering::AcqRel) & companions == 0 {
                    self.log(|| {
                        warn!(
                            name: "telemetry.export.failing",
                            signal = signal.as_str(),
                            error = once(&error.to_string()),
                            "the collector does not take telemetry; it is dropped and counted until it does",
                        );
                    });
                }
            }
        }
    }
}

impl Report {
    fn log(&self, line: impl FnOnce()) {
        if let Some(dispatch) = self.dispatch.upgrade() {
            tracing::dispatcher::with_default(&dispatch, line);
        }
    }
}

/// What an error says, without an end that repeats what comes before: some causes are part of what they cause.
fn once(text: &str) -> &str {
    let parts = text.match_indices(": ").map(|(at, _)| (&text[..at], &text[at + 2..]));
    parts.into_iter().find(|(before, after)| before.ends_with(after)).map_or(text, |(before, _)| before)
}

async fn export_spans(
    exporter: &SpanExporter,
    queue: mpsc::Receiver<SpanData>,
    otlp: &OtlpConfig,
    stop: CancellationToken,
    report: &Report,
) {
    let (size, delay) = otlp.span_batches();
    drain(queue, size, delay, stop, |batch| {
        report.of(Signal::Traces, batch.len() as u64, exporter.export(batch))
    })
    .await;
}

async fn export_logs(
    exporter: &LogExporter,
    queue: mpsc::Receiver<LogItem>,
    otlp: &OtlpConfig,
    stop: CancellationToken,
    report: &Report,
) {
    let (size, delay) = otlp.log_batches();
    drain(queue, size, delay, stop, |batch: Vec<LogItem>| async move {
        let borrowed: Vec<_> = batch.iter().map(|item| (&item.0, &item.1)).collect();
        report.of(Signal::Logs, borrowed.len() as u64, exporter.export(LogBatch::new(&borrowed))).await;
    })
    .await;
}

async fn export_metrics(
    exporter: &MetricExporter,
    reader: &SharedReader,
    collection: &Collection,
    otlp: &OtlpConfig,
    stop: CancellationToken,
    report: &Report,
) {
    let seen = AtomicU64::new(0);
    let first = tokio::time::Instant::now() + otlp.metrics_interval;
    let mut ticks = interval_at(first, otlp.metrics_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => {}
            _ = ticks.tick() => {}
        }
        let mut metrics = ResourceMetrics::default();
        let collected = collection.run(&seen, || reader.collect(&mut metrics));
        let export = async {
            collected?;
            exporter.export(&metrics, &collection.histograms.metrics()).await
        };
        report.of(Signal::Metrics, 1, export).await;
        if stop.is_cancelled() {
            return;
        }
    }
}

/// A reader that both the meter provider and the export thread hold.
#[derive(Clone, Debug)]
pub(super) struct SharedReader(Arc<ManualReader>);

impl MetricReader for SharedReader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::once;

    #[test]
    fn an_end_that_repeats_what_was_said_is_left_out() {
        assert_eq!(once("Unknown: transport error: no: x: no: x"), "Unknown: transport error: no: x");
        assert_eq!(
            once("Unknown: transport error: connection refused"),
            "Unknown: transport error: connection refused"
        );
        assert_eq!(once("silent"), "silent");
    }
}
