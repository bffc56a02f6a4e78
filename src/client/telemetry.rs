//! Spans and metrics of a client, made with the providers of the program that it is part of.
//!
//! Names and bounds are those of the OpenTelemetry messaging conventions, version 1.44, which are in development.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::global::{BoxedSpan, BoxedTracer};
use opentelemetry::metrics::{BoundCounter, BoundHistogram, Counter, Histogram, Meter};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags,
    TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue, Value};

use super::{Error, Header};

/// Name of the header and field with a W3C trace context.
pub(super) const TRACEPARENT: &str = "traceparent";
/// Name of the header and field with what vendors add to it.
pub(super) const TRACESTATE: &str = "tracestate";

const SYSTEM: &str = "streambus";
const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Links that a span keeps by default in the SDKs; more would be dropped there.
const LINKS_MAX: usize = 128;

/// The instrumentation scope of everything here.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("streambus.client").with_version(env!("CARGO_PKG_VERSION")).build()
}

/// What a client does, as the conventions name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Send,
    Poll,
    Process,
    Commit,
    Acknowledge,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Send => "send",
            Operation::Poll => "poll",
            Operation::Process => "process",
            Operation::Commit => "commit",
            Operation::Acknowledge => "ack",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Operation::Send => "send",
            Operation::Poll => "receive",
            Operation::Process => "process",
            Operation::Commit | Operation::Acknowledge => "settle",
        }
    }
}

/// A way in which a member of a group settles records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settle {
    /// Offsets are committed.
    Commit,
    /// Leased records are acknowledged.
    Acknowledge,
}

impl Settle {
    fn operation(self) -> Operation {
        match self {
            Settle::Commit => Operation::Commit,
            Settle::Acknowledge => Operation::Acknowledge,
        }
    }
}

/// A client's tracer and instruments.
#[derive(Clone, Debug)]
pub(super) struct Telemetry {
    tracer: Arc<BoxedTracer>,
    client_id: Option<Value>,
    /// The consumer group on whose behalf everything here happens.
    group: Option<Value>,
    operation_duration: Histogram<f64>,
    sent_messages: Counter<u64>,
    consumed_messages: Counter<u64>,
    process_duration: Histogram<f64>,
}

impl Telemetry {
    pub(super) fn new(tracer: BoxedTracer, meter: &Meter, client_id: Option<String>) -> Telemetry {
        Telemetry {
            tracer: Arc::new(tracer),
            client_id: client_id.map(Value::from),
            group: None,
            operation_duration: meter
                .f64_histogram("messaging.client.operation.duration")
                .with_unit("s")
                .with_description(
                    "Duration of messaging operation initiated by a producer or consumer client.",
                )
                .with_boundaries(BOUNDS.to_vec())
                .build(),
            sent_messages: meter
                .u64_counter("messaging.client.sent.messages")
                .with_unit("{message}")
                .with_description("Number of messages producer attempted to send to the broker.")
                .build(),
            consumed_messages: meter
                .u64_counter("messaging.client.consumed.messages")
                .with_unit("{message}")
                .with_description("Number of messages that were delivered to the application.")
                .build(),
            process_duration: meter
                .f64_histogram("messaging.process.duration")
                .with_unit("s")
                .with_description("Duration of processing operation.")
                .with_boundaries(BOUNDS.to_vec())
                .build(),
        }
    }

    /// The same tracer and instruments for a member of `group`, whose name everything carries.
    pub(super) fn for_group(&self, group: &str) -> Telemetry {
        Telemetry { group: Some(Value::from(group.to_owned())), ..self.clone() }
    }

    /// The instruments of sending to `topic`.
    pub(super) fn sending(self: &Arc<Self>, topic: &str) -> Sending {
        let attributes = self.attributes(Operation::Send, topic);
        Sending {
            duration: self.operation_duration.bind(&attributes),
            messages: self.sent_messages.bind(&attributes),
            attributes,
            telemetry: Arc::clone(self),
        }
    }

    /// The instruments of reading `topic`.
    pub(super) fn polling(self: &Arc<Self>, topic: &str) -> Polling {
        let attributes = self.attributes(Operation::Poll, topic);
        Polling {
            duration: self.operation_duration.bind(&attributes),
            messages: self.consumed_messages.bind(&attributes),
        }
    }

    /// Begins the `send` span of a record, if there is to be one: if a sampled span is current, or the record
    /// brings the context of one.
    ///
    /// Without a `traceparent` of its own the record is created by this span, which is therefore a PRODUCER and
    /// whose context the record is to carry; otherwise it is a CLIENT that links to the record's context.
    pub(super) fn begin_send(&self, topic: &str, partition: u32, headers: &[Header]) -> Option<SendSpan> {
        let brought = creation_context(headers);
        let current = sampled_current();
        let parent = match (&current, &brought) {
            (Some(current), _) => Cow::Borrowed(current),
            (None, Some(brought)) if brought.is_sampled() => {
                Cow::Owned(Context::new().with_remote_span_context(brought.clone()))
            }
            (None, _) => return None,
        };
        // A header that does not parse is left alone too: it is the program's.
        let has_own = headers.iter().any(|header| header.key() == TRACEPARENT);
        let kind = if has_own { SpanKind::Client } else { SpanKind::Producer };
        let builder = self
            .span(Operation::Send, topic, Some(partition), kind)
            .with_links(brought.into_iter().map(|context| Link::new(context, Vec::new(), 0)).collect());
        let span = self.tracer.build_with_context(builder, &parent);
        let context = span.span_context().clone();
        let injects = !has_own && context.is_valid();
        Some(SendSpan { span, context, injects })
    }

    /// Records a `poll` span over the time since `began` for a batch that is handed to the program, if the current
    /// span or one of the records is sampled. `contexts` are the sampled creation contexts of the batch's records.
    pub(super) fn polled(
        &self,
        topic: &str,
        partition: u32,
        messages: u32,
        began: SystemTime,
        contexts: &[SpanContext],
    ) {
        let current = sampled_current();
        if current.is_none() && contexts.is_empty() {
            return;
        }
        let links = contexts.iter().take(LINKS_MAX).map(|context| Link::new(context.clone(), Vec::new(), 0));
        let builder = self
            .span(Operation::Poll, topic, Some(partition), SpanKind::Client)
            .with_start_time(began)
            .with_links(links.collect());
        // The records of a batch come from many traces, so none of those is the parent.
        let mut span = self.tracer.build_with_context(builder, &current.unwrap_or_default());
        span.set_attribute(KeyValue::new("messaging.batch.message_count", i64::from(messages)));
        span.end();
    }

    /// The context of a new `process` span: a child of the context in which the record was created, linked to the
    /// span that is current. Without a creation context it is a child of the current span.
    pub(super) fn begin_process(&self, topic: &str, partition: u32, headers: &[Header]) -> Context {
        let current = Context::current();
        let builder = self.span(Operation::Process, topic, Some(partition), SpanKind::Consumer);
        let Some(created) = creation_context(headers) else {
            let span = self.tracer.build_with_context(builder, &current);
            return current.with_span(span);
        };
        let ambient = current.span().span_context().clone();
        let links = ambient.is_valid().then(|| Link::new(ambient, Vec::new(), 0)).into_iter().collect();
        let parent = current.with_remote_span_context(created);
        let span = self.tracer.build_with_context(builder.with_links(links), &parent);
        current.with_span(span)
    }

    pub(super) fn processed(&self, topic: &str, took: Duration) {
        self.process_duration.record(took.as_secs_f64(), &self.attributes(Operation::Process, topic));
    }

    pub(super) fn poll_failed(&self, took: Duration, error: &Error) {
        let mut attributes = vec![
            KeyValue::new("messaging.operation.name", Operation::Poll.name()),
            KeyValue::new("messaging.system", SYSTEM),
            KeyValue::new("error.type", error.kind()),
        ];
        attributes.extend(self.group_attribute());
        self.operation_duration.record(took.as_secs_f64(), &attributes);
    }

    /// Records that `messages` of a topic were settled, or that they could not be. There is a span if one is current
    /// in the `parent` context, or if one of the messages was created in a sampled span (`contexts`).
    pub(super) fn settled(&self, settle: Settle, settled: &Settled<'_>) {
        let took = settled.began.elapsed().unwrap_or_default();
        let operation = settle.operation();
        let mut attributes = self.attributes(operation, settled.topic);
        attributes.extend(settled.failure.map(|error| KeyValue::new("error.type", error.kind())));
        self.operation_duration.record(took.as_secs_f64(), &attributes);
        if settled.parent.is_none() && settled.contexts.is_empty() {
            return;
        }
        let links =
            settled.contexts.iter().take(LINKS_MAX).map(|context| Link::new(context.clone(), Vec::new(), 0));
        let builder = self
            .span(operation, settled.topic, None, SpanKind::Client)
            .with_start_time(settled.began)
            .with_links(links.collect());
        let parent = settled.parent.cloned().unwrap_or_default();
        let mut span = self.tracer.build_with_context(builder, &parent);
        if let Some(messages) = settled.messages {
            span.set_attribute(KeyValue::new("messaging.batch.message_count", messages));
        }
        if let Some(error) = settled.failure {
            span.set_attribute(KeyValue::new("error.type", error.kind()));
            span.set_status(Status::error(error.to_string()));
        }
        span.end();
    }

    fn attributes(&self, operation: Operation, topic: &str) -> Vec<KeyValue> {
        let mut all = Vec::with_capacity(4);
        all.extend([
            KeyValue::new("messaging.operation.name", operation.name()),
            KeyValue::new("messaging.system", SYSTEM),
            KeyValue::new("messaging.destination.name", topic.to_owned()),
        ]);
        all.extend(self.group_attribute());
        all
    }

    fn group_attribute(&self) -> Option<KeyValue> {
        self.group.as_ref().map(|group| KeyValue::new("messaging.consumer.group.name", group.clone()))
    }

    fn span(&self, operation: Operation, topic: &str, partition: Option<u32>, kind: SpanKind) -> SpanBuilder {
        let mut all = self.attributes(operation, topic);
        all.push(KeyValue::new("messaging.operation.type", operation.kind()));
        if let Some(partition) = partition {
            all.push(KeyValue::new("messaging.destination.partition.id", partition.to_string()));
        }
        if let Some(id) = &self.client_id {
            all.push(KeyValue::new("messaging.client.id", id.clone()));
        }
        SpanBuilder::from_name(format!("{} {topic}", operation.name())).with_kind(kind).with_attributes(all)
    }
}

/// What became of messages of one topic that a member settled.
#[derive(Debug)]
pub(super) struct Settled<'a> {
    pub(super) topic: &'a str,
    pub(super) began: SystemTime,
    /// The context in which the program asked for it, if that is sampled.
    pub(super) parent: Option<&'a Context>,
    /// Sampled contexts in which the messages were created.
    pub(super) contexts: &'a [SpanContext],
    /// How many, where that is known.
    pub(super) messages: Option<i64>,
    pub(super) failure: Option<&'a Error>,
}

/// The current context if it has a sampled span.
pub(super) fn sampled_current() -> Option<Context> {
    Context::map_current(|context| {
        let sampled = context.has_active_span() && {
            let span = context.span();
            span.span_context().is_valid() && span.span_context().is_sampled()
        };
        (sampled && !context.is_telemetry_suppressed()).then(|| context.clone())
    })
}

/// The current span's context as it travels, if it is sampled.
pub(super) fn current_wire_context() -> Option<WireContext> {
    sampled_current().map(|context| WireContext::of(context.span().span_context()))
}

/// The instruments of sending to one topic.
#[derive(Debug)]
pub(super) struct Sending {
    duration: BoundHistogram<f64>,
    messages: BoundCounter<u64>,
    attributes: Vec<KeyValue>,
    telemetry: Arc<Telemetry>,
}

impl Sending {
    pub(super) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// A batch is done, so long after it was sent first.
    pub(super) fn done(&self, messages: u32, took: Duration, failure: Option<&Error>) {
        let Some(error) = failure else {
            self.messages.add(u64::from(messages));
            self.duration.record(took.as_secs_f64());
            return;
        };
        let mut attributes = self.attributes.clone();
        attributes.push(KeyValue::new("error.type", error.kind()));
        self.telemetry.sent_messages.add(u64::from(messages), &attributes);
        self.telemetry.operation_duration.record(took.as_secs_f64(), &attributes);
    }
}

/// The instruments of reading one topic.
#[derive(Debug)]
pub(super) struct Polling {
    duration: BoundHistogram<f64>,
    messages: BoundCounter<u64>,
}

impl Polling {
    /// A batch was handed to the program, which had waited so long for it.
    pub(super) fn handed_out(&self, messages: u32, waited: Duration) {
        self.messages.add(u64::from(messages));
        self.duration.record(waited.as_secs_f64());
    }
}

/// What a `send` span says of the time that it took, if the batch did not just go to the broker and was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// How often the batch was sent again.
    pub(super) resends: u32,
    /// What kept the partition's batches from being sent, this one's failure or that of one before it; as in
    /// `error.type`.
    pub(super) held_up_by: Option<&'static str>,
}

/// The `send` span of one record; it ends when the record's outcome is known.
#[derive(Debug)]
pub(super) struct SendSpan {
    span: BoxedSpan,
    context: SpanContext,
    injects: bool,
}

impl SendSpan {
    /// The context that the batch carries to the broker.
    pub(super) fn context(&self) -> &SpanContext {
        &self.context
    }

    /// The headers that the record is to carry.
    pub(super) fn injected(&self) -> Option<WireContext> {
        self.injects.then(|| WireContext::of(&self.context))
    }

    pub(super) fn end(mut self, way: Way, failure: Option<&Error>) {
        if way.resends > 0 {
            self.span.set_attribute(KeyValue::new("streambus.send.resend_count", i64::from(way.resends)));
        }
        if let Some(kind) = way.held_up_by {
            self.span.set_attribute(KeyValue::new("streambus.send.held_up_by", kind));
        }
        if let Some(error) = failure {
            self.span.set_attribute(KeyValue::new("error.type", error.kind()));
            self.span.set_status(Status::error(error.to_string()));
        }
        self.span.end();
    }
}

/// A trace context as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WireContext {
    pub(super) traceparent: String,
    pub(super) tracestate: String,
}

impl WireContext {
    pub(super) fn of(context: &SpanContext) -> WireContext {
        let flags = context.trace_flags().to_u8();
        WireContext {
            traceparent: format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id()),
            tracestate: context.trace_state().header(),
        }
    }

    /// The headers, without an empty one.
    pub(super) fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> + Clone {
        let all = [(TRACEPARENT, self.traceparent.as_bytes()), (TRACESTATE, self.tracestate.as_bytes())];
        all.into_iter().filter(|(_, value)| !value.is_empty())
    }
}

/// The context in which a record was created, from its headers.
pub(super) fn creation_context(headers: &[Header]) -> Option<SpanContext> {
    let value = |name| headers.iter().find(|header| header.key() == name).map(|header| &header.value()[..]);
    let parent = value(TRACEPARENT)?;
    let context = parse_traceparent(parent)?;
    let Some(state) = value(TRACESTATE) else { return Some(context) };
    // A tracestate that cannot be read is dropped, as the W3C recommendation says; the context stays.
    let state = std::str::from_utf8(state).ok().and_then(|text| text.parse::<TraceState>().ok());
    Some(SpanContext::new(
        context.trace_id(),
        context.span_id(),
        context.trace_flags(),
        true,
        state.unwrap_or_default(),
    ))
}

/// A valid W3C `traceparent`.
pub(super) fn parse_traceparent(value: &[u8]) -> Option<SpanContext> {
    let text = std::str::from_utf8(value).ok()?;
    let mut fields = text.split('-');
    let (version, trace, span, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let hex = |field: &str, len| {
        field.len() == len && field.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
    };
    let well_formed = hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2) && version != "ff";
    if !well_formed || (version == "00" && fields.next().is_some()) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_survives_the_wire() {
        let context = parse_traceparent(PARENT.as_bytes()).expect("valid");
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(WireContext::of(&context).traceparent, PARENT);
    }

    #[test]
    fn broken_contexts_are_ignored() {
        for broken in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert_eq!(parse_traceparent(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn the_creation_context_carries_its_state() {
        let headers = [Header::new(TRACEPARENT, PARENT), Header::new(TRACESTATE, "vendor=1")];
        let context = creation_context(&headers).expect("valid");
        assert_eq!(context.trace_state().get("vendor"), Some("1"));
    }
}
