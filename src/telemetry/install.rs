//! Puts telemetry together, serves scrapes, and takes it apart.

use std::io::Write;
use std::num::NonZeroU32;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::{Instrument, SdkMeterProvider, Stream};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Dispatch;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;

use super::catalog::ROWS;
use super::config::{Config, Error};
use super::control::Control;
use super::detailed::{self, DetailedFamilies, PartitionLevels};
use super::exemplars::Store;
use super::export::{Exporters, Running};
use super::exporting::{QueueLevels, Signal};
use super::instruments::{Collection, lock};
use super::live_filter::LiveFilters;
use super::log_writer::LogWriter;
use super::logs;
use super::metrics::Metrics;
use super::negotiation::{Format, accepts_gzip};
use super::openmetrics;
use super::pipeline::{LogEntrance, SpanEntrance};
use super::resource::{Identity, resource};
use super::sampling::Sampler;
use super::trace::{Ids, Tracer, scope};

/// The telemetry of the process: instruments, spans, and the ways out. Clones share them.
#[derive(Clone, Debug)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    tracer: Tracer,
    control: Control,
    /// None while metrics are off.
    meters: Option<Meters>,
    running: Mutex<Option<Running>>,
    // Kept alive: layers hold it weakly.
    _tracers: SdkTracerProvider,
}

/// What metrics are collected from.
#[derive(Debug)]
struct Meters {
    registry: prometheus::Registry,
    collection: Arc<Collection>,
    exemplars: Arc<Store>,
    /// The removals that the Prometheus reader has seen.
    seen: AtomicU64,
    /// Kept alive: instruments hold it weakly.
    provider: SdkMeterProvider,
}

/// Why there is nothing to scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metrics are off: the broker was started with telemetry.metrics.enabled = false")]
pub struct MetricsOff;

/// An answer for `/metrics`.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// The value of `Content-Type`.
    pub content_type: &'static str,
    /// The value of `Content-Encoding`, if any.
    pub encoding: Option<&'static str>,
    /// The body.
    pub body: Bytes,
}

impl Scrape {
    fn new(format: Format, text: String, accept_encoding: Option<&str>) -> Self {
        let compressed = accepts_gzip(accept_encoding).then(|| gzip(text.as_bytes())).flatten();
        let (encoding, body) = match compressed {
            Some(body) => (Some("gzip"), body),
            None => (None, text.into_bytes()),
        };
        Scrape { content_type: format.content_type(), encoding, body: body.into() }
    }
}

impl Telemetry {
    /// Sets telemetry up and makes it the process's: log events and `tracing` spans go through it from now on.
    ///
    /// Only the first call in a process can do the latter, because the subscriber of `tracing` is global; later ones
    /// (in tests) have everything else. Does not wait for the collector.
    pub fn install(config: &Config, identity: &Identity) -> Result<Self, Error> {
        let (telemetry, dispatch) = Telemetry::to_standard_error(config, identity)?;
        // An earlier subscriber stays; see above.
        let _ = tracing::dispatcher::set_global_default(dispatch);
        Ok(telemetry)
    }

    /// Telemetry without export and without a subscriber. A caller's sampled trace is followed.
    pub fn for_tests() -> Self {
        let identity = Identity { cluster_id: "test".to_owned(), broker_id: "1".to_owned() };
        let (telemetry, _) = Telemetry::build(&Config::default(), &identity, |_| {})
            .expect("the default configuration is valid");
        telemetry
    }

    /// Everything but making it global, with lines that go to standard error.
    pub(super) fn to_standard_error(config: &Config, identity: &Identity) -> Result<(Self, Dispatch), Error> {
        let writer = LogWriter::of_the_process().map_err(Error::Thread)?;
        let (telemetry, dispatch) = Telemetry::build(config, identity, |line| writer.leave(line))?;
        telemetry.metrics().exporting.lines_dropped.set(Arc::new(|| Some(writer.dropped())));
        Ok((telemetry, dispatch))
    }

    /// Everything but making it global. `output` takes log lines and must not wait.
    pub(super) fn build(
        config: &Config,
        identity: &Identity,
        output: impl Fn(&[u8]) + Send + Sync + 'static,
    ) -> Result<(Self, Dispatch), Error> {
        if let Some((name, what)) = config.problems().into_iter().next() {
            return Err(Error::Setting { name, what });
        }
        let filters = LiveFilters::new(&config.log.filter)?;
        let resource = resource(identity, &config.resource);
        let exporters = Exporters::build(config, &resource)?;
        let exports = |signal| config.route(signal).is_some();
        let meters = match config.metrics.enabled {
            true => Some(Meters::new(exporters.as_ref(), resource.clone())?),
            false => None,
        };
        let metrics = meters.as_ref().map_or_else(Metrics::detached, Meters::metrics);
        let sampler = Sampler::new(config.sampling());
        let sampler = match NonZeroU32::new(config.trace.max_per_second) {
            Some(limit) => sampler.limited(limit, metrics.exporting.traces_limited.clone()),
            None => sampler,
        };

        let (span_entrance, spans) =
            SpanEntrance::new(Signal::Traces, config.otlp.span_queue, metrics.clone());
        let (log_entrance, log_items) =
            LogEntrance::new(Signal::Logs, config.otlp.log_queue, metrics.clone());
        let mut tracers = SdkTracerProvider::builder()
            .with_id_generator(Ids::default())
            .with_resource(resource.clone())
            .with_sampler(sampler.clone());
        if exports(Signal::Traces) {
            tracers = tracers.with_span_processor(span_entrance.clone());
        }
        let tracers = tracers.build();
        let tracer = Tracer::new(&tracers, sampler.clone());
        let control =
            Control::new(filters.clone(), sampler, config.trace.enabled, exports(Signal::Traces), &metrics);

        let bridged_spans = exports(Signal::Traces).then(|| {
            tracing_opentelemetry::layer()
                .with_tracer(tracers.tracer_with_scope(scope()))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_filter(filters.export_layer())
        });
        let bridged_logs = exports(Signal::Logs).then(|| {
            let provider = SdkLoggerProvider::builder()
                .with_resource(resource)
                .with_log_processor(log_entrance.clone())
                .build();
            OpenTelemetryTracingBridge::new(&provider).with_filter(filters.export_layer())
        });
        let subscriber = tracing_subscriber::registry()
            .with(bridged_spans)
            .with(bridged_logs)
            .with(logs::Counting(metrics.clone()).with_filter(LevelFilter::WARN).with_filter(filters.layer()))
            .with(logs::Lines::new(config.log.format, output).with_filter(filters.layer()));
        let dispatch = Dispatch::new(subscriber);

        let running = match exporters {
            Some(exporters) => {
                for signal in Signal::ALL.into_iter().filter(|signal| exports(*signal)) {
                    metrics.exporting.activated(signal);
                }
                metrics.exporting.queues.set(Arc::new(move || {
                    Some(QueueLevels { spans: span_entrance.waiting(), logs: log_entrance.waiting() })
                }));
                let weak = dispatch.downgrade();
                let collection = meters.as_ref().map(|meters| meters.collection.clone()).unwrap_or_default();
                Some(exporters.run(
                    &config.otlp,
                    &metrics,
                    &collection,
                    Some(spans),
                    Some(log_items),
                    weak,
                )?)
            }
            None => None,
        };
        let inner =
            Inner { metrics, tracer, control, meters, running: Mutex::new(running), _tracers: tracers };
        Ok((Telemetry(Arc::new(inner)), dispatch))
    }

    /// The instruments.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Makes the spans of requests.
    pub fn tracer(&self) -> &Tracer {
        &self.0.tracer
    }

    /// Changes the log filter and the sampling of traces while the process runs.
    pub fn control(&self) -> &Control {
        &self.0.control
    }

    /// Collects and encodes all metrics, for the headers `Accept` and `Accept-Encoding`.
    ///
    /// Takes milliseconds, more with thousands of topics, and blocks: call it from `spawn_blocking`.
    ///
    /// # Errors
    /// Metrics are off.
    pub fn scrape(&self, accept: Option<&str>, accept_encoding: Option<&str>) -> Result<Scrape, MetricsOff> {
        let started = Instant::now();
        let inner = &*self.0;
        let meters = inner.meters.as_ref().ok_or(MetricsOff)?;
        let format = Format::negotiate(accept);
        let mut families = meters.collection.run(&meters.seen, || meters.registry.gather());
        families.extend(meters.collection.histograms.families());
        let exposition = openmetrics::encode(families, &meters.exemplars, format);
        let scrape = Scrape::new(format, exposition.text, accept_encoding);
        inner.metrics.exporting.scraped(started.elapsed(), exposition.series, exposition.overflowing);
        Ok(scrape)
    }

    /// Writes families of partitions for `/metrics/detailed`, for the headers `Accept` and `Accept-Encoding`. Blocks like
    /// [`Telemetry::scrape`].
    ///
    /// # Errors
    /// Metrics are off.
    pub fn detail(
        &self,
        families: &DetailedFamilies,
        partitions: &[PartitionLevels],
        accept: Option<&str>,
        accept_encoding: Option<&str>,
    ) -> Result<Scrape, MetricsOff> {
        self.0.meters.as_ref().ok_or(MetricsOff)?;
        let format = Format::negotiate(accept);
        Ok(Scrape::new(format, detailed::encode(families, partitions, format), accept_encoding))
    }

    /// Exports what waits, then stops exporting. Returns whether everything was handed over before the deadline.
    /// Metrics can still be scraped. A second call does nothing.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        let running = lock(&self.0.running).take();
        match running {
            Some(running) => running.flush(deadline).await,
            None => true,
        }
    }
}

impl Meters {
    fn new(exporters: Option<&Exporters>, resource: Resource) -> Result<Self, Error> {
        let registry = prometheus::Registry::new();
        let provider = meter_provider(&registry, exporters, resource)?;
        Ok(Meters {
            registry,
            collection: Arc::default(),
            exemplars: Arc::default(),
            seen: AtomicU64::new(0),
            provider,
        })
    }

    /// The instruments that are collected here.
    fn metrics(&self) -> Metrics {
        let meter = self.provider.meter_with_scope(scope());
        Metrics::new(meter, self.collection.clone(), self.exemplars.clone())
    }
}

fn meter_provider(
    registry: &prometheus::Registry,
    exporters: Option<&Exporters>,
    resource: Resource,
) -> Result<SdkMeterProvider, Error> {
    let prometheus = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .without_units()
        .without_counter_suffixes()
        .scope_info_enabled(false)
        .build()
        .map_err(Error::Prometheus)?;
    let mut builder =
        SdkMeterProvider::builder().with_resource(resource).with_reader(prometheus).with_view(budget);
    if let Some(reader) = exporters.and_then(Exporters::reader) {
        builder = builder.with_reader(reader);
    }
    Ok(builder.build())
}

/// Limits an instrument to its row's budget. The SDK reserves room for the limit, so a small one also saves memory.
fn budget(instrument: &Instrument) -> Option<Stream> {
    let row = ROWS.iter().find(|row| row.otel == instrument.name())?;
    Stream::builder().with_cardinality_limit(row.series).build().ok()
}

/// None if compression fails, which memory does not: the body is then sent as it is.
fn gzip(text: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 8), Compression::fast());
    encoder.write_all(text).ok()?;
    encoder.finish().ok()
}
