//! The export thread: a runtime of its own that moves spans, log records and metrics to the collector.
//!
//! Requests never wait for it. While the collector is away, queues fill up to their limits, what does not fit or
//! cannot be delivered is dropped and counted, and one log line says so; another one says when it is over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::{ExporterBuildError, LogExporter, SpanExporter, WithExportConfig, WithTonicConfig};
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
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tracing::dispatcher::WeakDispatch;
use tracing::{info, warn};

use super::config::{Error, Settings};
use super::exporting::{Loss, Signal};
use super::instruments::Collection;
use super::metric_export::MetricExporter;
use super::metrics::Metrics;
use super::pipeline::{LogItem, drain};

/// The exporters, built but not yet running.
pub(super) struct Exporters {
    runtime: Runtime,
    spans: Option<SpanExporter>,
    logs: Option<LogExporter>,
    metrics: Option<(MetricExporter, SharedReader)>,
}

impl Exporters {
    /// Builds an exporter per configured signal. None if there is no signal to export.
    pub(super) fn build(settings: &Settings, resource: &Resource) -> Result<Option<Self>, Error> {
        if settings.traces.is_none() && settings.metrics.is_none() && settings.logs.is_none() {
            return Ok(None);
        }
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
        // The channels are bound to the runtime in which they are made.
        let entered = runtime.enter();
        let for_metrics = metadata(&settings.metrics_headers)?;
        let metadata = metadata(&settings.headers)?;
        let spans = settings.traces.as_ref().map(|endpoint| {
            let builder = SpanExporter::builder().with_tonic();
            let mut exporter = configure(builder, endpoint, settings, &metadata).build()?;
            exporter.set_resource(resource);
            Ok(exporter)
        });
        let logs = settings.logs.as_ref().map(|endpoint| {
            let builder = LogExporter::builder().with_tonic();
            let mut exporter = configure(builder, endpoint, settings, &metadata).build()?;
            exporter.set_resource(resource);
            Ok(exporter)
        });
        let metrics = settings.metrics.as_ref().map(|endpoint| {
            let exporter = MetricExporter::new(endpoint, settings.timeout, for_metrics)?;
            let reader = ManualReader::builder().with_temporality(Temporality::Cumulative).build();
            Ok((exporter, SharedReader(Arc::new(reader))))
        });
        let metrics = metrics.transpose().map_err(Error::Channel)?;
        drop(entered);
        let built = |error: ExporterBuildError| Error::Exporter(error);
        Ok(Some(Exporters {
            runtime,
            spans: spans.transpose().map_err(built)?,
            logs: logs.transpose().map_err(built)?,
            metrics,
        }))
    }

    /// The reader to register with the meter provider.
    pub(super) fn reader(&self) -> Option<SharedReader> {
        self.metrics.as_ref().map(|(_, reader)| reader.clone())
    }

    /// Starts the thread.
    pub(super) fn run(
        self,
        settings: &Settings,
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
            timeout: settings.timeout,
            dispatch,
        };
        let settings = settings.clone();
        let (token, collection) = (stop.clone(), collection.clone());
        let Exporters { runtime, spans: span_exporter, logs: log_exporter, metrics: metric_exporter } = self;
        let work = async move {
            let spans = async {
                if let (Some(exporter), Some(queue)) = (span_exporter, spans) {
                    export_spans(&exporter, queue, &settings, token.clone(), &report).await;
                }
            };
            let logs = async {
                if let (Some(exporter), Some(queue)) = (log_exporter, logs) {
                    export_logs(&exporter, queue, &settings, token.clone(), &report).await;
                }
            };
            let metrics = async {
                if let Some((exporter, reader)) = metric_exporter {
                    export_metrics(&exporter, &reader, &collection, &settings, token.clone(), &report).await;
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

fn configure<B: WithExportConfig + WithTonicConfig>(
    builder: B,
    endpoint: &str,
    settings: &Settings,
    metadata: &MetadataMap,
) -> B {
    builder.with_endpoint(endpoint).with_timeout(settings.timeout).with_metadata(metadata.clone())
}

fn metadata(headers: &BTreeMap<String, String>) -> Result<MetadataMap, Error> {
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        // The value may be a secret and is not repeated.
        let malformed = |reason: &str| Error::Setting {
            name: format!("telemetry.otlp.headers.{name}"),
            value: "…".to_owned(),
            reason: reason.to_owned(),
        };
        let key = MetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes())
            .map_err(|_| malformed("the name is no valid header name"))?;
        let value =
            MetadataValue::try_from(value).map_err(|_| malformed("the value is not printable ASCII"))?;
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// Counts what becomes of exports, and says once when they begin to fail and once when they work again.
struct Report {
    metrics: Metrics,
    /// One bit per signal whose last export failed.
    failing: AtomicU8,
    timeout: Duration,
    /// Where log lines go: the export thread is outside of any scope that a test sets up.
    dispatch: WeakDispatch,
}

impl Report {
    /// Waits for one export of `items` items and accounts for it.
    async fn of(&self, signal: Signal, items: u64, export: impl Future<Output = OTelSdkResult>) {
        // The exporter's own time limit covers each attempt; this one covers all of them.
        let result = match timeout(self.timeout, export).await {
            Ok(result) => result,
            Err(_) => Err(OTelSdkError::Timeout(self.timeout)),
        };
        let bit = 1 << signal as u8;
        match result {
            Ok(()) => {
                self.metrics.exporting.exported(signal, items);
                if self.failing.fetch_and(!bit, Ordering::AcqRel) == bit {
                    self.log(
                        || info!(name: "telemetry.export.recovered", "the collector takes telemetry again"),
                    );
                }
            }
            Err(error) => {
                self.metrics.exporting.failed(signal);
                self.metrics.exporting.dropped(signal, Loss::ExportFailed, items);
                if self.failing.fetch_or(bit, Ordering::AcqRel) == 0 {
                    self.log(|| {
                        warn!(
                            name: "telemetry.export.failing",
                            signal = signal.as_str(),
                            error = &error as &dyn std::error::Error,
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

async fn export_spans(
    exporter: &SpanExporter,
    queue: mpsc::Receiver<SpanData>,
    settings: &Settings,
    stop: CancellationToken,
    report: &Report,
) {
    drain(queue, settings.batch, settings.batch_delay, stop, |batch| {
        report.of(Signal::Traces, batch.len() as u64, exporter.export(batch))
    })
    .await;
}

async fn export_logs(
    exporter: &LogExporter,
    queue: mpsc::Receiver<LogItem>,
    settings: &Settings,
    stop: CancellationToken,
    report: &Report,
) {
    drain(queue, settings.batch, settings.batch_delay, stop, |batch: Vec<LogItem>| async move {
        let borrowed: Vec<_> = batch.iter().map(|item| (&item.0, &item.1)).collect();
        report.of(Signal::Logs, borrowed.len() as u64, exporter.export(LogBatch::new(&borrowed))).await;
    })
    .await;
}

async fn export_metrics(
    exporter: &MetricExporter,
    reader: &SharedReader,
    collection: &Collection,
    settings: &Settings,
    stop: CancellationToken,
    report: &Report,
) {
    let seen = AtomicU64::new(0);
    let first = tokio::time::Instant::now() + settings.metrics_interval;
    let mut ticks = interval_at(first, settings.metrics_interval);
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
