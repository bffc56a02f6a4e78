//! The telemetry of the command itself.
//!
//! With `OTEL_EXPORTER_OTLP_ENDPOINT` set, the spans and metrics that the client library makes go there over gRPC, and
//! are flushed before the command ends. The other standard `OTEL_*` variables count as they do for a broker.

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry::trace::{Span as _, SpanKind, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};

use crate::client::ClientBuilder;
use crate::config::{Mistakes, Sources, load};
use crate::telemetry::{self, Signal};

use super::output::note;

const SPAN_QUEUE: &str = "OTEL_BSP_MAX_QUEUE_SIZE";
/// Spans that may wait for export unless the environment says otherwise. A traced run makes one per record, faster than
/// most collectors take them.
const SPAN_QUEUE_DEFAULT: usize = 65_536;
/// How long the last export may take.
const FLUSH_DEADLINE: Duration = Duration::from_secs(10);

/// Which traces begin here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Roots {
    /// None; those that records bring along are continued.
    None,
    /// Every span without a parent begins one.
    All,
}

/// The providers of this process. `None` in both if nothing asks for them, so that nothing is made for nobody.
#[derive(Debug, Default)]
pub(super) struct Telemetry {
    tracers: Option<SdkTracerProvider>,
    meters: Option<SdkMeterProvider>,
}

impl Telemetry {
    /// Sets telemetry up as the environment says. Must be called on the runtime that the exporters are to use.
    ///
    /// # Errors
    /// If an exporter cannot be made of what the environment says.
    pub(super) fn start(roots: Roots) -> anyhow::Result<Telemetry> {
        let settings = settings()?;
        let (traces, metrics) = (settings.route(Signal::Traces), settings.route(Signal::Metrics));
        if traces.is_none() && metrics.is_none() && roots == Roots::None {
            return Ok(Telemetry::default());
        }
        let resource = resource(settings.resource);
        let sampler = match roots {
            Roots::None => Sampler::AlwaysOff,
            Roots::All => Sampler::AlwaysOn,
        };
        let mut tracers = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_sampler(Sampler::ParentBased(Box::new(sampler)));
        if let Some(route) = traces {
            let exporter = route.applied_to(SpanExporter::builder().with_tonic())?.build()?;
            let mut batches = BatchConfigBuilder::default();
            if std::env::var_os(SPAN_QUEUE).is_none_or(|size| size.is_empty()) {
                batches = batches.with_max_queue_size(SPAN_QUEUE_DEFAULT);
            }
            let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches.build()).build();
            tracers = tracers.with_span_processor(processor);
        }
        let mut meters = None;
        if let Some(route) = metrics {
            let exporter = route.applied_to(MetricExporter::builder().with_tonic())?.build()?;
            let reader = PeriodicReader::builder(exporter).build();
            meters = Some(SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build());
        }
        Ok(Telemetry { tracers: Some(tracers.build()), meters })
    }

    /// Whether spans are made.
    pub(super) fn traces(&self) -> bool {
        self.tracers.is_some()
    }

    /// Lets a client use these providers.
    pub(super) fn applied_to(&self, mut builder: ClientBuilder) -> ClientBuilder {
        if let Some(tracers) = &self.tracers {
            builder = builder.with_tracer_provider(tracers);
        }
        if let Some(meters) = &self.meters {
            builder = builder.with_meter_provider(meters);
        }
        builder
    }

    /// A context with a new span, the first of a trace. `None` without tracing.
    pub(super) fn root(&self, name: &'static str, attributes: Vec<KeyValue>) -> Option<Context> {
        let tracer = self.tracers.as_ref()?.tracer("streambus.cli");
        let builder = tracer.span_builder(name).with_kind(SpanKind::Internal).with_attributes(attributes);
        let span = tracer.build_with_context(builder, &Context::new());
        span.is_recording().then(|| Context::new().with_span(span))
    }

    /// Exports what waits. What cannot be delivered is told and lost.
    pub(super) async fn finish(self) {
        let flush = move || {
            let tracers = self.tracers.map(|provider| provider.shutdown_with_timeout(FLUSH_DEADLINE));
            let meters = self.meters.map(|provider| provider.shutdown_with_timeout(FLUSH_DEADLINE));
            tracers.into_iter().chain(meters).collect::<Result<Vec<()>, _>>()
        };
        // The providers' threads need the runtime while they are waited for.
        match tokio::task::spawn_blocking(flush).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => note(format_args!("warning: telemetry was not exported in full: {error}")),
            Err(_) => note("warning: telemetry was not exported"),
        }
    }
}

/// What the standard's variables say. Settings of a broker are none of this command's business.
fn settings() -> Result<telemetry::Config, Mistakes> {
    let is_standard = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.starts_with("OTEL_"));
    let environment = std::env::vars_os().filter(|(name, _)| is_standard(name)).collect();
    let loaded = load(Sources { environment, ..Sources::default() })?;
    for warning in &loaded.warnings {
        note(format_args!("warning: {warning}"));
    }
    Ok(loaded.config.telemetry)
}

fn resource(configured: BTreeMap<String, String>) -> Resource {
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "streambus-cli"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(configured.into_iter().map(|(name, value)| KeyValue::new(name, value)))
        .build()
}
