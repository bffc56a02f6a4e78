//! The telemetry of the command itself.
//!
//! With `OTEL_EXPORTER_OTLP_ENDPOINT` set, the spans and metrics that the client library makes go there over gRPC, and
//! are flushed before the command ends. The other standard `OTEL_*` variables count too.

use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::trace::{Span as _, SpanKind, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};

use crate::client::ClientBuilder;

use super::output::note;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
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
        let set = |name| std::env::var(name).is_ok_and(|value: String| !value.is_empty());
        let disabled =
            std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
        let exports = set(ENDPOINT) && !disabled;
        if !exports && roots == Roots::None {
            return Ok(Telemetry::default());
        }
        let resource = resource();
        let sampler = match roots {
            Roots::None => Sampler::AlwaysOff,
            Roots::All => Sampler::AlwaysOn,
        };
        let mut tracers = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_sampler(Sampler::ParentBased(Box::new(sampler)));
        let mut meters = None;
        if exports {
            let unusable = || format!("cannot export to what {ENDPOINT} names");
            let spans = SpanExporter::builder().with_tonic().build().with_context(unusable)?;
            let mut batches = BatchConfigBuilder::default();
            if !set(SPAN_QUEUE) {
                batches = batches.with_max_queue_size(SPAN_QUEUE_DEFAULT);
            }
            let processor = BatchSpanProcessor::builder(spans).with_batch_config(batches.build()).build();
            tracers = tracers.with_span_processor(processor);
            let metrics = MetricExporter::builder().with_tonic().build().with_context(unusable)?;
            let reader = PeriodicReader::builder(metrics).build();
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

fn resource() -> Resource {
    let mut builder = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "streambus-cli"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    if let Ok(name) = std::env::var("OTEL_SERVICE_NAME")
        && !name.is_empty()
    {
        builder = builder.with_service_name(name);
    }
    builder.build()
}
