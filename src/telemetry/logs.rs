//! Log lines on standard error.
//!
//! A line is one JSON object: `timestamp`, `level`, `target`, `event` (the event's name where it has one), `message`,
//! the ids of the current span, and the event's fields beside them. The text format has the same content for people.

use std::fmt::{self, Write as _};
use std::time::SystemTime;

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer;

use super::config::{Error, LogFormat};
use super::exporting::LogLevel;
use super::metrics::Metrics;
use super::traceparent::TraceIds;
use crate::units::rfc3339_micros;

/// Targets whose spans and events never reach the OTel layers: exporting would cause more of them.
const FEEDBACK: [&str; 5] = ["h2", "hyper", "tonic", "tower", "opentelemetry"];

/// Whether `target` is one of [`FEEDBACK`], a module of it, or a crate of its family such as `hyper_util`.
pub(super) fn feeds_back(target: &str) -> bool {
    FEEDBACK.iter().any(|name| {
        target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '_', '-']))
    })
}

/// What is logged of libraries that a filter does not name. The agreement library tells each of its many steps; the SDK of
/// OpenTelemetry repeats what the exporter says once.
const QUIET: [(&str, &[&str]); 2] = [
    ("openraft", &["openraft=error"]),
    (
        "opentelemetry",
        &["opentelemetry=off", "opentelemetry_sdk=off", "opentelemetry-otlp=off", "opentelemetry_otlp=off"],
    ),
];

/// Reads a filter.
pub(super) fn env_filter(filter: &str) -> Result<EnvFilter, Error> {
    let parsed = EnvFilter::builder()
        .parse(filter)
        .map_err(|source| Error::Filter { filter: filter.to_owned(), source })?;
    let is_off = parsed.max_level_hint() == Some(LevelFilter::OFF);
    let unnamed = QUIET.into_iter().filter(|(library, _)| !is_off && !filter.contains(library));
    Ok(unnamed
        .flat_map(|(_, directives)| directives)
        .filter_map(|directive| directive.parse().ok())
        .fold(parsed, EnvFilter::add_directive))
}

/// Counts warnings and errors.
#[derive(Debug)]
pub(super) struct Counting(pub(super) Metrics);

impl<S: Subscriber> Layer<S> for Counting {
    fn on_event(&self, event: &Event<'_>, _context: layer::Context<'_, S>) {
        match *event.metadata().level() {
            Level::ERROR => self.0.exporting.logged(LogLevel::Error),
            Level::WARN => self.0.exporting.logged(LogLevel::Warn),
            _ => {}
        }
    }
}

/// Writes a line per event. `output` takes finished lines, each with its line feed.
#[derive(Debug)]
pub(super) struct Lines<O> {
    format: LogFormat,
    output: O,
}

impl<O: Fn(&[u8])> Lines<O> {
    pub(super) fn new(format: LogFormat, output: O) -> Self {
        Lines { format, output }
    }
}

impl<S: Subscriber, O: Fn(&[u8]) + 'static> Layer<S> for Lines<O> {
    fn on_event(&self, event: &Event<'_>, _context: layer::Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let line = Line {
            at: SystemTime::now(),
            level: metadata.level().as_str(),
            target: metadata.target(),
            // An event without a name is given one by `tracing`, after its place in the source.
            event: Some(metadata.name()).filter(|name| !name.starts_with("event ")),
            // Direct spans are attached as the current context, and the bridge attaches those of `tracing`.
            trace: Context::map_current(|context| {
                context.has_active_span().then(|| TraceIds::of(context.span().span_context()))
            })
            .filter(TraceIds::is_valid),
            fields,
        };
        let mut text = match self.format {
            LogFormat::Json => line.json(),
            LogFormat::Text => line.text(),
        };
        text.push('\n');
        (self.output)(text.as_bytes());
    }
}

struct Line<'a> {
    at: SystemTime,
    level: &'static str,
    target: &'a str,
    event: Option<&'a str>,
    trace: Option<TraceIds>,
    fields: Fields,
}

impl Line<'_> {
    fn json(self) -> String {
        let mut object = Map::new();
        object.insert("timestamp".to_owned(), rfc3339_micros(self.at).into());
        object.insert("level".to_owned(), self.level.into());
        object.insert("target".to_owned(), self.target.into());
        if let Some(event) = self.event {
            object.insert("event".to_owned(), event.into());
        }
        if let Some(message) = self.fields.message {
            object.insert("message".to_owned(), message.into());
        }
        if let Some(trace) = self.trace {
            object.insert("trace_id".to_owned(), trace.trace_hex().into());
            object.insert("span_id".to_owned(), trace.span_hex().into());
        }
        for (name, value) in self.fields.others {
            // A field must not replace what the line is known by.
            let name = if object.contains_key(name) { format!("field.{name}") } else { name.to_owned() };
            object.insert(name, value);
        }
        Value::Object(object).to_string()
    }

    fn text(self) -> String {
        let mut line = format!("{} {:>5} {}:", rfc3339_micros(self.at), self.level, self.target);
        // INVARIANT of every `write!` below: writing into a `String` cannot fail.
        if let Some(message) = &self.fields.message {
            let _ = write!(line, " {}", message.replace('\n', "\\n"));
        }
        if let Some(event) = self.event {
            let _ = write!(line, " event={event}");
        }
        for (name, value) in &self.fields.others {
            let _ = write!(line, " {name}={value}");
        }
        if let Some(trace) = self.trace {
            let _ = write!(line, " trace_id={} span_id={}", trace.trace_hex(), trace.span_hex());
        }
        line
    }
}

/// An event's fields.
#[derive(Default)]
struct Fields {
    message: Option<String>,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = Some(message),
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::String(value.to_owned()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(
            field,
            serde_json::Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number),
        );
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        // The causes belong to the message: what an operator needs is usually the last one.
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.add(field, Value::String(text));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::telemetry::instruments::lock;
    use crate::telemetry::{Sampling, Tracer};

    fn logged(format: LogFormat, act: impl FnOnce()) -> Vec<String> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = lines.clone();
        let output = move |line: &[u8]| lock(&seen).push(String::from_utf8_lossy(line).into_owned());
        let bridge = SdkTracerProvider::builder().build().tracer("test");
        let subscriber = tracing_subscriber::registry()
            .with(Lines::new(format, output))
            .with(tracing_opentelemetry::layer().with_tracer(bridge));
        tracing::subscriber::with_default(subscriber, act);
        lock(&lines).clone()
    }

    fn json(line: &str) -> Value {
        serde_json::from_str(line).expect("a line is a JSON object")
    }

    #[test]
    fn fields_stand_beside_the_fixed_ones_and_do_not_replace_them() {
        let lines = logged(LogFormat::Json, || {
            tracing::info!(name: "topic.created", target: "streambus::t", topic = "a\"b", n = 3, level = "x", "made\nit");
        });
        let line = json(&lines[0]);
        assert_eq!(line["event"], "topic.created");
        assert_eq!(line["target"], "streambus::t");
        assert_eq!(line["message"], "made\nit");
        assert_eq!(line["topic"], "a\"b");
        assert_eq!(line["n"], 3);
        assert_eq!((&line["level"], &line["field.level"]), (&"INFO".into(), &"x".into()));
        assert_eq!(lines[0].matches('\n').count(), 1);
    }

    #[test]
    fn an_event_without_a_name_has_none() {
        let lines = logged(LogFormat::Json, || tracing::warn!("plain"));
        assert_eq!(json(&lines[0]).get("event"), None);
        assert_eq!(json(&lines[0]).get("trace_id"), None);
    }

    #[test]
    fn carries_the_ids_of_a_direct_span() {
        let provider = SdkTracerProvider::builder().build();
        let tracer = Tracer::new(&provider, Sampling { parent_based: true, ratio: 1.0 });
        let trace = tracer.server("streambus.v1.ProduceService/Produce", &http::HeaderMap::new());
        let lines = logged(LogFormat::Json, || {
            let _attached = trace.attach();
            tracing::info!("inside");
        });
        let ids = trace.ids().expect("sampled");
        assert_eq!(json(&lines[0])["trace_id"], ids.trace_hex());
        assert_eq!(json(&lines[0])["span_id"], ids.span_hex());
    }

    #[test]
    fn carries_the_ids_of_a_tracing_span() {
        let lines = logged(LogFormat::Json, || {
            tracing::info_span!("background").in_scope(|| tracing::info!("inside"))
        });
        assert_eq!(json(&lines[0])["trace_id"].as_str().map(str::len), Some(32));
        assert_eq!(json(&lines[0])["span_id"].as_str().map(str::len), Some(16));
    }

    #[test]
    fn text_has_the_same_content() {
        let lines = logged(LogFormat::Text, || tracing::info!(name: "a.b", topic = "t", "two\nlines"));
        assert!(lines[0].contains("INFO"), "{}", lines[0]);
        assert!(lines[0].ends_with(": two\\nlines event=a.b topic=\"t\"\n"), "{}", lines[0]);
    }

    #[test]
    fn the_exporters_own_targets_do_not_feed_back() {
        for target in [
            "h2",
            "h2::proto",
            "hyper_util::client",
            "tonic::transport",
            "tower::buffer",
            "opentelemetry-otlp",
        ] {
            assert!(feeds_back(target), "{target}");
        }
        for target in ["streambus", "h2o", "streambus::tower", "hypersonic"] {
            assert!(!feeds_back(target), "{target}");
        }
    }

    #[test]
    fn the_agreement_library_says_more_than_errors_only_to_those_who_name_it() {
        let said = |filter: &str| {
            let lines = Arc::new(Mutex::new(String::new()));
            let seen = lines.clone();
            let output = move |line: &[u8]| lock(&seen).push_str(&String::from_utf8_lossy(line));
            let layer =
                Lines::new(LogFormat::Text, output).with_filter(env_filter(filter).expect("a filter"));
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                tracing::info!(target: "streambus::server", "ours");
                tracing::error!(target: "openraft::core", "a failure");
                tracing::info!(target: "openraft::core", "a step");
            });
            let lines = lock(&lines);
            ["ours", "a failure", "a step"].map(|text| lines.contains(text))
        };
        assert_eq!(said("info"), [true, true, false]);
        assert_eq!(said("debug"), [true, true, false]);
        assert_eq!(said("warn,streambus=info"), [true, true, false]);
        assert_eq!(said("info,openraft=info"), [true, true, true]);
        assert_eq!(said("off"), [false, false, false]);
    }

    #[test]
    fn rejects_a_malformed_filter() {
        assert!(matches!(env_filter("info,streambus=loud"), Err(Error::Filter { .. })));
    }
}
