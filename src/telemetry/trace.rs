//! Spans of requests, made directly with the OpenTelemetry API and only for sampled requests.
//!
//! The decision comes first: an unsampled request costs two header look-ups and one random number, and allocates
//! nothing. Spans below the call (append, replicate, …) are built afterwards from recorded instants.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanId, SpanKind, Status, TraceContextExt, TraceId, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, ContextGuard, InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracer, SdkTracerProvider};
use tonic::Code;

use super::sampling::{Chosen, Sampler, Sampling};
use super::traceparent::{TraceIds, TraceParent, parse_tracestate};

/// A span carries at most this many links; the number of the others is its attribute `streambus.links.dropped`.
pub const LINKS_MAX: usize = 128;

/// The instrumentation scope of all spans.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("streambus").with_version(env!("CARGO_PKG_VERSION")).build()
}

thread_local! {
    /// The id of the span that is built next on this thread, if that is not left to chance.
    static CHOSEN_SPAN: Cell<Option<[u8; 8]>> = const { Cell::new(None) };
}

/// Ids of spans: random, but for those that other brokers derive for themselves.
#[derive(Debug, Default)]
pub(super) struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        self.0.new_trace_id()
    }

    fn new_span_id(&self) -> SpanId {
        CHOSEN_SPAN.take().map_or_else(|| self.0.new_span_id(), SpanId::from_bytes)
    }
}

/// The span in which a batch is replicated, from the one in which a broker got it. Followers know only the latter, from
/// the batch's header, and put their part below the former.
#[must_use]
pub fn replication_of(batch: TraceIds) -> TraceIds {
    let id = u64::from_be_bytes(batch.span);
    // Any mapping to other ids that all brokers agree on; an odd factor makes it one to one.
    let derived = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5265_706c_6963_6174;
    let derived = if derived == 0 { id } else { derived };
    TraceIds { trace: batch.trace, span: derived.to_be_bytes() }
}

/// Makes spans. Clones share exporters and sampling.
#[derive(Clone)]
pub struct Tracer {
    tracer: SdkTracer,
    sampler: Sampler,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").field("sampler", &self.sampler).finish_non_exhaustive()
    }
}

impl Tracer {
    pub(super) fn new(provider: &SdkTracerProvider, sampler: impl Into<Sampler>) -> Self {
        Tracer { tracer: provider.tracer_with_scope(scope()), sampler: sampler.into() }
    }

    /// A tracer that samples nothing, for tests of other modules.
    pub fn disabled() -> Self {
        Tracer::new(&SdkTracerProvider::builder().build(), Sampling::NEVER)
    }

    /// Whether anything may be sampled.
    pub fn is_on(&self) -> bool {
        !self.sampler.is_never()
    }

    /// Begins the server span of a gRPC call, if it is to be sampled. `method` is the full name without leading
    /// slash, such as `streambus.v1.ProduceService/Produce`.
    pub fn server(&self, method: &'static str, headers: &HeaderMap) -> RequestTrace {
        let parent = headers.get("traceparent").and_then(|header| TraceParent::parse(header.as_bytes()));
        let state = parent.and_then(|_| headers.get("tracestate")).map(HeaderValue::as_bytes);
        self.start(SpanKind::Server, parent, state, || {
            let attributes =
                vec![KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", method)];
            (Cow::Borrowed(method), attributes)
        })
    }

    /// Begins a span, if it is to be sampled; only then `describe` is called for its name and attributes.
    /// `parent` and `state` are the caller's, from a carrier that is not a header map.
    pub fn start(
        &self,
        kind: SpanKind,
        parent: Option<TraceParent>,
        state: Option<&[u8]>,
        describe: impl FnOnce() -> (Cow<'static, str>, Vec<KeyValue>),
    ) -> RequestTrace {
        self.start_if(self.sampler.chooses(parent.as_ref()), kind, parent, state, describe)
    }

    /// [`Tracer::start`] for a request that produces to `topic`, which may have a share of its own.
    pub fn start_for_topic(
        &self,
        topic: &str,
        kind: SpanKind,
        parent: Option<TraceParent>,
        describe: impl FnOnce() -> (Cow<'static, str>, Vec<KeyValue>),
    ) -> RequestTrace {
        self.start_if(self.sampler.chooses_for(topic, parent.as_ref()), kind, parent, None, describe)
    }

    fn start_if(
        &self,
        chosen: bool,
        kind: SpanKind,
        parent: Option<TraceParent>,
        state: Option<&[u8]>,
        describe: impl FnOnce() -> (Cow<'static, str>, Vec<KeyValue>),
    ) -> RequestTrace {
        if !chosen {
            return RequestTrace::Unsampled(parent.map(|parent| parent.ids));
        }
        let mut context = Context::new().with_value(Chosen);
        if let Some(parent) = parent {
            let state = state.and_then(parse_tracestate).unwrap_or_default();
            context = context.with_remote_span_context(parent.ids.remote(parent.sampled, state));
        }
        let (name, attributes) = describe();
        self.build(&context, kind, name, attributes, Vec::new(), Instant::now())
    }

    /// Begins the span of a delivery of records to a consumer.
    ///
    /// It links to the spans that wrote the records (`links`; invalid ids are those of unsampled writes). It is a
    /// child of `request` if that is sampled. Otherwise it is the root of a trace of its own, so that a stream that
    /// is open for hours has one short trace per delivery; and if no link is valid it is not sampled.
    pub fn delivery(
        &self,
        request: &RequestTrace,
        links: impl IntoIterator<Item = TraceIds>,
        describe: impl FnOnce() -> (Cow<'static, str>, Vec<KeyValue>),
    ) -> RequestTrace {
        let mut kept: Vec<Link> = Vec::new();
        let mut dropped = 0;
        let mut last = TraceIds::default();
        // Records of one batch share one context; neighbours with the same are linked once.
        for ids in links.into_iter().filter(TraceIds::is_valid) {
            if ids == last {
                continue;
            }
            last = ids;
            if kept.len() < LINKS_MAX {
                kept.push(Link::with_context(ids.remote(true, Default::default())));
            } else {
                dropped += 1;
            }
        }
        let context = match request {
            RequestTrace::Sampled(sampled) => sampled.context.clone(),
            RequestTrace::Unsampled(_) if kept.is_empty() || self.sampler.is_never() => {
                return RequestTrace::Unsampled(None);
            }
            RequestTrace::Unsampled(_) => Context::new().with_value(Chosen),
        };
        let (name, mut attributes) = describe();
        if dropped > 0 {
            attributes.push(KeyValue::new("streambus.links.dropped", dropped));
        }
        self.build(&context, SpanKind::Internal, name, attributes, kept, Instant::now())
    }

    /// Writes a span that is over, below a span of another process: a follower's part in a replication.
    /// `parent` invalid means that the request is not sampled, and nothing happens.
    pub fn remote_child(
        &self,
        parent: TraceIds,
        name: &'static str,
        started: Instant,
        ended: Instant,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) {
        if !parent.is_valid() || self.sampler.is_never() {
            return;
        }
        let context = Context::new()
            .with_value(Chosen)
            .with_remote_span_context(parent.remote(true, Default::default()));
        let times = Times::now();
        self.finished(&context, &times, name, started, ended, attributes());
    }

    fn finished(
        &self,
        context: &Context,
        times: &Times,
        name: &'static str,
        started: Instant,
        ended: Instant,
        attributes: Vec<KeyValue>,
    ) -> TraceIds {
        let builder = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Internal)
            .with_start_time(times.wall(started))
            .with_attributes(attributes);
        let mut span = self.tracer.build_with_context(builder, context);
        let ids = TraceIds::of(span.span_context());
        span.end_with_timestamp(times.wall(ended));
        ids
    }

    fn build(
        &self,
        context: &Context,
        kind: SpanKind,
        name: Cow<'static, str>,
        attributes: Vec<KeyValue>,
        links: Vec<Link>,
        started: Instant,
    ) -> RequestTrace {
        let times = Times::now();
        let builder = SpanBuilder::from_name(name)
            .with_kind(kind)
            .with_start_time(times.wall(started))
            .with_attributes(attributes)
            .with_links(links);
        let span = self.tracer.build_with_context(builder, context);
        let ids = TraceIds::of(span.span_context());
        RequestTrace::Sampled(Arc::new(SampledRequest {
            tracer: self.clone(),
            context: context.with_span(span),
            ids,
            times,
        }))
    }
}

/// How far the readings of both clocks may be apart, and how often they are read at most to be no further.
const READINGS_APART: Duration = Duration::from_micros(20);
const READINGS_MAX: u32 = 4;

/// Ties the monotonic clock to the wall clock at one moment.
#[derive(Clone, Copy, Debug)]
struct Times {
    instant: Instant,
    wall: SystemTime,
}

impl Times {
    /// A thread that is interrupted between the two readings would put spans milliseconds behind those around them.
    fn now() -> Self {
        let read = || {
            let (instant, wall) = (Instant::now(), SystemTime::now());
            (instant.elapsed(), Times { instant, wall })
        };
        let (mut apart, mut times) = read();
        for _ in 1..READINGS_MAX {
            if apart <= READINGS_APART {
                break;
            }
            let again = read();
            if again.0 < apart {
                (apart, times) = again;
            }
        }
        times
    }

    fn wall(&self, instant: Instant) -> SystemTime {
        match instant.checked_duration_since(self.instant) {
            Some(after) => self.wall + after,
            None => self.wall.checked_sub(self.instant - instant).unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }
}

/// The tracing side of a request; travels with it. Clones name the same span.
///
/// The span ends with [`RequestTrace::finish`] or [`RequestTrace::end`], at the latest when the last clone is dropped.
#[derive(Clone, Debug)]
pub enum RequestTrace {
    /// Not recorded. Holds the caller's ids if the caller sent any.
    Unsampled(Option<TraceIds>),
    /// Recorded.
    Sampled(Arc<SampledRequest>),
}

/// The span of a sampled request.
pub struct SampledRequest {
    tracer: Tracer,
    context: Context,
    ids: TraceIds,
    times: Times,
}

impl fmt::Debug for SampledRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SampledRequest").field(&self.ids).finish()
    }
}

impl RequestTrace {
    /// A request that is not traced and has no caller.
    pub const NONE: RequestTrace = RequestTrace::Unsampled(None);

    /// Whether the request is recorded.
    pub fn is_sampled(&self) -> bool {
        matches!(self, RequestTrace::Sampled(_))
    }

    /// The names of the request's span if it is sampled: for exemplars, for the frame header of a batch, for links.
    pub fn ids(&self) -> Option<TraceIds> {
        match self {
            RequestTrace::Unsampled(_) => None,
            RequestTrace::Sampled(sampled) => Some(sampled.ids),
        }
    }

    /// The context whose active span is the request's, if it is sampled. Attach it around synchronous work, or use
    /// `opentelemetry::trace::FutureExt::with_context`, so that log events carry the ids.
    pub fn context(&self) -> Option<&Context> {
        match self {
            RequestTrace::Unsampled(_) => None,
            RequestTrace::Sampled(sampled) => Some(&sampled.context),
        }
    }

    /// Makes the request's span current on this thread until the guard is dropped. Never hold it across an await.
    pub fn attach(&self) -> Option<ContextGuard> {
        self.context().map(|context| context.clone().attach())
    }

    /// Writes a child span that is over. Does nothing, and calls nothing, if the request is not sampled.
    pub fn child(
        &self,
        name: &'static str,
        started: Instant,
        ended: Instant,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) -> Option<TraceIds> {
        let RequestTrace::Sampled(sampled) = self else {
            return None;
        };
        let SampledRequest { tracer, context, times, .. } = &**sampled;
        Some(tracer.finished(context, times, name, started, ended, attributes()))
    }

    /// Writes the child span of the batch's replication, which is over. Its id is [`replication_of`] the request's, so
    /// that what followers wrote lies below it. Does nothing if the request is not sampled.
    pub fn replication(&self, started: Instant, ended: Instant) {
        let RequestTrace::Sampled(sampled) = self else { return };
        CHOSEN_SPAN.set(Some(replication_of(sampled.ids).span));
        self.child("replicate", started, ended, Vec::new);
        CHOSEN_SPAN.set(None);
    }

    /// Adds attributes to the span. Does nothing, and calls nothing, if the request is not sampled.
    pub fn annotate(&self, attributes: impl FnOnce() -> Vec<KeyValue>) {
        if let RequestTrace::Sampled(sampled) = self {
            sampled.context.span().set_attributes(attributes());
        }
    }

    /// Ends the server span of a call with its status.
    pub fn finish(&self, code: Code) {
        let RequestTrace::Sampled(sampled) = self else {
            return;
        };
        let span = sampled.context.span();
        span.set_attribute(KeyValue::new("rpc.status_code", code_name(code)));
        if is_server_error(code) {
            span.set_attribute(KeyValue::new("error.type", code_name(code)));
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// Ends a span that is not a call's: with an error of the named type, from a closed set, or without.
    pub fn end(&self, error: Option<&'static str>) {
        let RequestTrace::Sampled(sampled) = self else {
            return;
        };
        let span = sampled.context.span();
        if let Some(error) = error {
            span.set_attribute(KeyValue::new("error.type", error));
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// What to send along when this request causes another one. The decision travels with it: a request that is not
    /// sampled here is not sampled there.
    pub fn parent(&self) -> TraceParent {
        match self {
            RequestTrace::Sampled(sampled) => TraceParent { ids: sampled.ids, sampled: true },
            RequestTrace::Unsampled(Some(ids)) => TraceParent { ids: *ids, sampled: false },
            RequestTrace::Unsampled(None) => {
                let mut ids = TraceIds { trace: rand::random(), span: rand::random() };
                // Zero is no name; it comes up once in 2^64 requests.
                ids.trace[15] |= 1;
                ids.span[7] |= 1;
                TraceParent { ids, sampled: false }
            }
        }
    }

    /// Writes `traceparent` and `tracestate` into the metadata of an outgoing call.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::from_bytes(&self.parent().format()) {
            headers.insert("traceparent", value);
        }
        if let RequestTrace::Sampled(sampled) = self {
            let state = sampled.context.span().span_context().trace_state().header();
            if let Some(value) = HeaderValue::from_str(&state).ok().filter(|value| !value.is_empty()) {
                headers.insert("tracestate", value);
            }
        }
    }
}

/// The canonical name of a gRPC status code.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Whether the semantic conventions count this status as an error of the server. The others are the client's.
pub fn is_server_error(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}
