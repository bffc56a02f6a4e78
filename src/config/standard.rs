//! Settings from the variables that are no program's own: those of OpenTelemetry, and `RUST_LOG`.
//!
//! They count less than a file: who writes a setting for this program means it more than who exports a variable for many.
//! What they ask for and this build lacks is a mistake; what has no effect here is warned of.

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde_json::Value;

use super::merge::Merged;
use super::source::{Given, Setting};
use super::{Config, Mistake, Origin};
use crate::telemetry::{Compression, Signal};

/// How a variable is read.
#[derive(Clone, Copy, Debug)]
enum Reading {
    /// The setting's value.
    Plain(&'static str),
    /// The setting's value in milliseconds.
    Millis(&'static str),
    /// The setting's value, in small letters.
    Word(&'static str),
    /// `true` or `false`, which is the setting's value.
    Switch(&'static str),
    /// `true` switches the setting off, `false` leaves it.
    Off(&'static str),
    /// `otlp` or `none`: whether the setting is on.
    Exporter(&'static str),
    /// A list `name=value,name=value`, with values in percent encoding, that is the setting's map.
    Pairs(&'static str),
    /// One of the samplers.
    Sampler,
    /// Read with [`Reading::Sampler`].
    SamplerArgument,
    /// A number that the SDK reads itself.
    Number,
    /// The only value that this build can do.
    Only(&'static str),
    /// What is done, whatever else is asked for.
    Fixed(&'static str),
}

use Reading::{
    Exporter, Fixed, Millis, Number, Off, Only, Pairs, Plain, Sampler, SamplerArgument, Switch, Word,
};

const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";

/// The standard's variables that mean something here. Of two for one setting the later counts.
const VARIABLES: &[(&str, Reading)] = &[
    ("RUST_LOG", Plain("telemetry.log.filter")),
    ("OTEL_SDK_DISABLED", Off("telemetry.otlp.enabled")),
    ("OTEL_RESOURCE_ATTRIBUTES", Pairs("telemetry.resource")),
    ("OTEL_SERVICE_NAME", Plain("telemetry.resource.service.name")),
    ("OTEL_TRACES_EXPORTER", Exporter("telemetry.otlp.traces.enabled")),
    ("OTEL_METRICS_EXPORTER", Exporter("telemetry.otlp.metrics.enabled")),
    ("OTEL_LOGS_EXPORTER", Exporter("telemetry.otlp.logs.enabled")),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", Plain("telemetry.otlp.endpoint")),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", Plain("telemetry.otlp.traces.endpoint")),
    ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", Plain("telemetry.otlp.metrics.endpoint")),
    ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", Plain("telemetry.otlp.logs.endpoint")),
    ("OTEL_EXPORTER_OTLP_INSECURE", Switch("telemetry.otlp.insecure")),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", Plain("telemetry.otlp.certificate")),
    ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", Plain("telemetry.otlp.client_certificate")),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", Plain("telemetry.otlp.client_key")),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", Word("telemetry.otlp.compression")),
    ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", Switch("telemetry.otlp.traces.insecure")),
    ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", Plain("telemetry.otlp.traces.certificate")),
    ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", Plain("telemetry.otlp.traces.client_certificate")),
    ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", Plain("telemetry.otlp.traces.client_key")),
    ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", Word("telemetry.otlp.traces.compression")),
    ("OTEL_EXPORTER_OTLP_METRICS_INSECURE", Switch("telemetry.otlp.metrics.insecure")),
    ("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", Plain("telemetry.otlp.metrics.certificate")),
    ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE", Plain("telemetry.otlp.metrics.client_certificate")),
    ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", Plain("telemetry.otlp.metrics.client_key")),
    ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", Word("telemetry.otlp.metrics.compression")),
    ("OTEL_EXPORTER_OTLP_LOGS_INSECURE", Switch("telemetry.otlp.logs.insecure")),
    ("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", Plain("telemetry.otlp.logs.certificate")),
    ("OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE", Plain("telemetry.otlp.logs.client_certificate")),
    ("OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY", Plain("telemetry.otlp.logs.client_key")),
    ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", Word("telemetry.otlp.logs.compression")),
    ("OTEL_EXPORTER_OTLP_HEADERS", Pairs("telemetry.otlp.headers")),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", Pairs("telemetry.otlp.traces.headers")),
    ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", Pairs("telemetry.otlp.metrics.headers")),
    ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", Pairs("telemetry.otlp.logs.headers")),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", Millis("telemetry.otlp.timeout")),
    ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", Millis("telemetry.otlp.traces.timeout")),
    ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", Millis("telemetry.otlp.metrics.timeout")),
    ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", Millis("telemetry.otlp.logs.timeout")),
    ("OTEL_METRIC_EXPORT_INTERVAL", Millis("telemetry.otlp.metrics_interval")),
    ("OTEL_BSP_MAX_QUEUE_SIZE", Plain("telemetry.otlp.span_queue")),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", Plain("telemetry.otlp.span_batch")),
    ("OTEL_BSP_SCHEDULE_DELAY", Millis("telemetry.otlp.span_batch_delay")),
    ("OTEL_BLRP_MAX_QUEUE_SIZE", Plain("telemetry.otlp.log_queue")),
    ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", Plain("telemetry.otlp.log_batch")),
    ("OTEL_BLRP_SCHEDULE_DELAY", Millis("telemetry.otlp.log_batch_delay")),
    (SAMPLER, Sampler),
    (SAMPLER_ARGUMENT, SamplerArgument),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", Number),
    ("OTEL_SPAN_EVENT_COUNT_LIMIT", Number),
    ("OTEL_SPAN_LINK_COUNT_LIMIT", Number),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", Only("grpc")),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", Only("grpc")),
    ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", Only("grpc")),
    ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", Only("grpc")),
    ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", Only("cumulative")),
    ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", Only("explicit_bucket_histogram")),
    ("OTEL_PROPAGATORS", Fixed("tracecontext")),
    ("OTEL_METRICS_EXEMPLAR_FILTER", Fixed("trace_based")),
];

/// Adds what the variables set, and gives warnings of those that have no effect. An empty variable counts as unset, as
/// the specification demands.
pub(super) fn read(
    variables: &[(OsString, OsString)],
    settings: &mut Vec<Setting>,
    mistakes: &mut Vec<Mistake>,
) -> Vec<String> {
    let mut given = BTreeMap::new();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| *name == "RUST_LOG" || name.starts_with("OTEL_")) else {
            continue;
        };
        match value.to_str().map(str::trim) {
            Some("") => {}
            Some(value) => drop(given.insert(name, value)),
            None => mistakes.push(mistake(name, "is not valid UTF-8".to_owned())),
        }
    }
    let mut warnings = Vec::new();
    for (name, reading) in VARIABLES {
        let Some(value) = given.get(name) else { continue };
        match read_one(name, value, *reading, &given) {
            Ok(read) => settings.extend(read),
            Err(Refused::Mistake(what)) => mistakes.push(mistake(name, what)),
            Err(Refused::NoEffect(what)) => warnings.push(format!("{name}: {what}")),
        }
    }
    let is_known = |name: &str| VARIABLES.iter().any(|(known, _)| *known == name);
    warnings.extend(
        given.keys().filter(|name| !is_known(name)).map(|name| format!("{name}: has no effect here")),
    );
    warnings
}

/// Warns of signals that a variable wants exported, but for which no collector is named: without one there is no export.
pub(super) fn without_endpoint(merged: &Merged<Config>) -> Vec<String> {
    let telemetry = &merged.config.telemetry;
    [(Signal::Traces, "traces"), (Signal::Metrics, "metrics"), (Signal::Logs, "logs")]
        .into_iter()
        .filter(|(signal, _)| telemetry.otlp.endpoint.is_empty() && telemetry.route(*signal).is_none())
        .filter_map(|(_, name)| {
            let key = format!("telemetry.otlp.{name}.enabled");
            let entry = merged.entries.iter().find(|entry| entry.key == key && entry.value == true)?;
            let Origin::Environment { variable } = &entry.origin else { return None };
            Some(format!("{variable}: nothing is exported, since telemetry.otlp.endpoint is not set"))
        })
        .collect()
}

/// Warns of signals that are compressed although a setting that counts more says that they are not: for spans and logs the
/// exporter goes by the variable where nothing else asks for compression.
pub(super) fn despite_settings(variables: &[(OsString, OsString)], config: &Config) -> Vec<String> {
    let value = |name: &str| {
        let (_, value) = variables.iter().rfind(|(known, _)| known == name)?;
        value.to_str().map(str::trim).filter(|value| !value.is_empty())
    };
    [(Signal::Traces, "TRACES"), (Signal::Logs, "LOGS")]
        .into_iter()
        .filter(|(signal, _)| {
            config.telemetry.route(*signal).is_some_and(|route| route.compression == Compression::None)
        })
        .filter_map(|(signal, name)| {
            let own = format!("OTEL_EXPORTER_OTLP_{name}_COMPRESSION");
            let names = [&own[..], "OTEL_EXPORTER_OTLP_COMPRESSION"];
            let (variable, value) = names.into_iter().find_map(|name| Some((name, value(name)?)))?;
            value.eq_ignore_ascii_case("gzip").then(|| {
                let signal = signal.as_str();
                format!("{variable}: is `{value}`, so {signal} are compressed whatever other settings say; unset it")
            })
        })
        .collect()
}

fn mistake(variable: &str, what: String) -> Mistake {
    let origin = Origin::Environment { variable: variable.to_owned() };
    Mistake { origin, key: String::new(), what, suggestion: None }
}

/// Why a variable sets nothing.
#[derive(Debug)]
enum Refused {
    Mistake(String),
    NoEffect(String),
}

fn wrong(value: &str, expected: &str) -> Refused {
    Refused::Mistake(format!("is `{value}`: {expected}"))
}

fn read_one(
    name: &str,
    value: &str,
    reading: Reading,
    given: &BTreeMap<&str, &str>,
) -> Result<Vec<Setting>, Refused> {
    let setting = |key: &str, given: Given| {
        vec![Setting {
            key: key.to_owned(),
            given,
            origin: Origin::Environment { variable: name.to_owned() },
        }]
    };
    let typed = |key: &str, value: Value| setting(key, Given::Typed(value));
    match reading {
        Plain(key) => Ok(setting(key, Given::Text(value.to_owned()))),
        Millis(key) => match value.parse::<u64>() {
            Ok(millis) => Ok(setting(key, Given::Text(format!("{millis}ms")))),
            Err(_) => Err(wrong(value, "expected milliseconds, a whole number")),
        },
        Word(key) => Ok(setting(key, Given::Text(value.to_ascii_lowercase()))),
        Switch(key) => Ok(typed(key, Value::Bool(truth(value)?))),
        Off(key) if truth(value)? => Ok(typed(key, Value::Bool(false))),
        Off(_) => Ok(Vec::new()),
        Exporter(key) => match value {
            "otlp" => Ok(typed(key, Value::Bool(true))),
            "none" => Ok(typed(key, Value::Bool(false))),
            _ => Err(wrong(value, "expected otlp or none (/metrics is served in any case)")),
        },
        Pairs(key) => Ok(typed(key, pairs(value)?)),
        Sampler => sampler(value, given),
        SamplerArgument if given.get(SAMPLER).is_some_and(|sampler| sampler.ends_with("traceidratio")) => {
            Ok(Vec::new())
        }
        SamplerArgument => Err(Refused::NoEffect(format!("has no effect without {SAMPLER}=traceidratio"))),
        Number if value.parse::<u32>().is_ok() => Ok(Vec::new()),
        Number => Err(wrong(value, "expected a whole number")),
        Only(possible) if value.eq_ignore_ascii_case(possible) => Ok(Vec::new()),
        Only(possible) => Err(wrong(value, &format!("this build can only do {possible}"))),
        Fixed(done) if value == done => Ok(Vec::new()),
        Fixed(done) => {
            Err(Refused::NoEffect(format!("is `{value}`, but has no effect: it is always {done}")))
        }
    }
}

fn truth(value: &str) -> Result<bool, Refused> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(wrong(value, "expected true or false")),
    }
}

fn pairs(list: &str) -> Result<Value, Refused> {
    let mut map = serde_json::Map::new();
    // The last entry may be followed by a comma.
    let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    for (entry, number) in entries.zip(1..) {
        let pair = entry.split_once('=').filter(|(name, _)| !name.trim().is_empty());
        let pair = pair.and_then(|(name, value)| Some((name.trim(), percent_decoded(value.trim())?)));
        // The values may be secrets and are not repeated.
        let Some((name, value)) = pair else {
            let what =
                format!("entry {number} of the list is not name=value with the value in percent encoding");
            return Err(Refused::Mistake(what));
        };
        map.insert(name.to_owned(), Value::String(value));
    }
    Ok(Value::Object(map))
}

fn sampler(sampler: &str, given: &BTreeMap<&str, &str>) -> Result<Vec<Setting>, Refused> {
    let (follow_callers, root) = match sampler.strip_prefix("parentbased_") {
        Some(root) => (true, root),
        None => (false, sampler),
    };
    let (origin, ratio) = match root {
        "always_on" => (SAMPLER, "1"),
        "always_off" => (SAMPLER, "0"),
        "traceidratio" => match given.get(SAMPLER_ARGUMENT) {
            Some(ratio) => (SAMPLER_ARGUMENT, *ratio),
            None => (SAMPLER, "1"),
        },
        _ => {
            let expected =
                "expected always_on, always_off or traceidratio, each also with the prefix parentbased_";
            return Err(wrong(sampler, expected));
        }
    };
    let setting = |key: &str, given: Given, variable: &str| Setting {
        key: key.to_owned(),
        given,
        origin: Origin::Environment { variable: variable.to_owned() },
    };
    Ok(vec![
        setting("telemetry.trace.follow_callers", Given::Typed(Value::Bool(follow_callers)), SAMPLER),
        setting("telemetry.trace.sample_ratio", Given::Text(ratio.to_owned()), origin),
        // The standard's samplers know no limit.
        setting("telemetry.trace.max_per_second", Given::Typed(Value::from(0)), SAMPLER),
    ])
}

/// `text` with each `%41` replaced; none if it is malformed.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digits = [*high, *low];
                (u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?, tail)
            }
            (b'%', _) => return None,
            _ => (first, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use crate::config::{Entry, Loaded, Mistakes, Sources, load};

    fn loaded(variables: &[(&str, &str)]) -> Result<Loaded, Mistakes> {
        let environment = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        load(Sources { environment, ..Sources::default() })
    }

    fn shown(loaded: &Loaded, key: &str) -> String {
        let entry = loaded.entries.iter().find(|entry| entry.key == key);
        let Entry { value, origin, .. } = entry.expect("a setting");
        format!("{value} of {origin}")
    }

    #[test]
    fn each_variable_decides_its_setting_and_is_named_as_origin() {
        let loaded = loaded(&[
            ("RUST_LOG", "warn"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "True"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "GZIP"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_HEADERS", " key = the%20one%2C ,other=2,"),
            ("OTEL_METRICS_EXPORTER", "none"),
            ("OTEL_LOGS_EXPORTER", "otlp"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_BLRP_SCHEDULE_DELAY", "20"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "7"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,team.name=payments"),
            ("OTEL_SERVICE_NAME", "orders-bus"),
            ("OTEL_SDK_DISABLED", ""),
        ])
        .expect("no mistake");
        assert_eq!(loaded.warnings, [""; 0]);
        for (key, expected) in [
            ("log.filter", "\"warn\" of RUST_LOG"),
            ("otlp.enabled", "true of default"),
            ("otlp.endpoint", "\"collector:4317\" of OTEL_EXPORTER_OTLP_ENDPOINT"),
            ("otlp.insecure", "true of OTEL_EXPORTER_OTLP_INSECURE"),
            ("otlp.compression", "\"gzip\" of OTEL_EXPORTER_OTLP_COMPRESSION"),
            ("otlp.metrics.compression", "\"none\" of OTEL_EXPORTER_OTLP_METRICS_COMPRESSION"),
            ("otlp.logs.endpoint", "\"http://logs:4317\" of OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"),
            ("otlp.traces.timeout", "\"2500ms\" of OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"),
            ("otlp.headers.key", "\"the one,\" of OTEL_EXPORTER_OTLP_HEADERS"),
            ("otlp.metrics.enabled", "false of OTEL_METRICS_EXPORTER"),
            ("otlp.logs.enabled", "true of OTEL_LOGS_EXPORTER"),
            ("otlp.log_batch_delay", "\"20ms\" of OTEL_BLRP_SCHEDULE_DELAY"),
            ("otlp.span_batch", "7 of OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
            ("trace.follow_callers", "false of OTEL_TRACES_SAMPLER"),
            ("trace.sample_ratio", "0.5 of OTEL_TRACES_SAMPLER_ARG"),
            ("resource.service.name", "\"orders-bus\" of OTEL_SERVICE_NAME"),
            ("resource.team.name", "\"payments\" of OTEL_RESOURCE_ATTRIBUTES"),
        ] {
            assert_eq!(shown(&loaded, &format!("telemetry.{key}")), expected);
        }
    }

    #[test]
    fn a_setting_of_this_program_wins_whoever_gives_it() {
        let loaded = loaded(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://theirs:4317"),
            ("STREAMBUS_TELEMETRY__OTLP__ENDPOINT", "http://ours:4317"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "key=theirs,other=theirs"),
            ("STREAMBUS_TELEMETRY__OTLP__HEADERS__KEY", "ours"),
        ])
        .expect("no mistake");
        let otlp = &loaded.config.telemetry.otlp;
        assert_eq!(otlp.endpoint, "http://ours:4317");
        assert_eq!((otlp.headers["key"].as_str(), otlp.headers["other"].as_str()), ("ours", "theirs"));
    }

    #[test]
    fn the_kill_switch_turns_export_off() {
        let loaded = loaded(&[
            ("OTEL_SDK_DISABLED", "TRUE"),
            ("STREAMBUS_TELEMETRY__OTLP__ENDPOINT", "http://ours:4317"),
        ]);
        assert!(!loaded.expect("no mistake").config.telemetry.otlp.enabled);
    }

    #[test]
    fn every_wrong_value_is_told_with_what_would_be_right() {
        let mistakes = loaded(&[
            ("RUST_LOG", "info,streambus=loud"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector:4317"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "key=secret,nonsense"),
            ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "key=%f"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "perhaps"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
            ("OTEL_BLRP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "7"),
            ("OTEL_SDK_DISABLED", "maybe"),
        ])
        .expect_err("mistakes");
        let told: Vec<_> = mistakes.0.iter().map(ToString::to_string).collect();
        for (variable, what) in [
            ("RUST_LOG", "telemetry.log.filter"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "only do grpc"),
            ("OTEL_TRACES_EXPORTER", "expected otlp or none"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "expected http://host:port"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "milliseconds"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "entry 2"),
            ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "entry 1"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "true or false"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "expected `none` or `gzip`"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "expected a whole number"),
            ("OTEL_BLRP_MAX_QUEUE_SIZE", "expected 1 to"),
            ("OTEL_TRACES_SAMPLER_ARG", "from 0 to 1"),
            ("OTEL_SDK_DISABLED", "true or false"),
        ] {
            let is_it = |line: &&String| line.starts_with(&format!("{variable}: ")) && line.contains(what);
            assert!(told.iter().any(|line| is_it(&line)), "{variable}: {what}\n{told:#?}");
        }
        assert_eq!(told.len(), 13, "{told:#?}");
        assert!(told.iter().all(|line| !line.contains("secret")), "{told:#?}");
    }

    #[test]
    fn files_for_tls_are_named_by_their_variables_and_each_mistake_in_them_is_told() {
        let mistakes = loaded(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/ca.pem"),
            ("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", "/no/such/logs.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/no/such/client.key"),
        ])
        .expect_err("mistakes");
        let told: Vec<_> = mistakes.0.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 3, "{told:#?}");
        for (variable, what) in [
            (
                "OTEL_EXPORTER_OTLP_CERTIFICATE",
                "telemetry.otlp.certificate: is `/no/such/ca.pem`: cannot be read",
            ),
            (
                "OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE",
                "telemetry.otlp.logs.certificate: is `/no/such/logs.pem`",
            ),
            (
                "OTEL_EXPORTER_OTLP_CLIENT_KEY",
                "telemetry.otlp.client_key: is `/no/such/client.key`: needs its",
            ),
        ] {
            let is_it = |line: &&String| line.starts_with(&format!("{variable}: {what}"));
            assert!(told.iter().any(|line| is_it(&line)), "{variable}: {what}\n{told:#?}");
        }
    }

    #[test]
    fn files_for_tls_have_no_effect_without_it() {
        let loaded = loaded(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/ca.pem"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "false"),
        ])
        .expect("no mistake");
        let [certificate, insecure] = &loaded.warnings[..] else { panic!("{:?}", loaded.warnings) };
        assert!(certificate.starts_with("OTEL_EXPORTER_OTLP_CERTIFICATE: telemetry.otlp.certificate: is"));
        assert!(insecure.starts_with("OTEL_EXPORTER_OTLP_INSECURE: telemetry.otlp.insecure: is false"));
    }

    #[test]
    fn compression_that_a_variable_forces_is_warned_of() {
        let loaded = loaded(&[
            ("STREAMBUS_TELEMETRY__OTLP__ENDPOINT", "http://ours:4317"),
            ("STREAMBUS_TELEMETRY__OTLP__COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "none"),
        ])
        .expect("no mistake");
        let [warning] = &loaded.warnings[..] else { panic!("{:?}", loaded.warnings) };
        assert!(warning.starts_with("OTEL_EXPORTER_OTLP_COMPRESSION: is `gzip`, so traces"), "{warning}");
    }

    #[test]
    fn what_has_no_effect_is_warned_of() {
        let loaded = loaded(&[
            ("OTEL_PROPAGATORS", "b3"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "1"),
            ("OTEL_TRACES_SAMPLER_ARG", "1"),
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTHER", "1"),
        ])
        .expect("no mistake");
        let of: Vec<_> =
            loaded.warnings.iter().filter_map(|warning| Some(warning.split_once(':')?.0)).collect();
        let expected = [
            "OTEL_TRACES_SAMPLER_ARG",
            "OTEL_PROPAGATORS",
            "OTEL_BSP_EXPORT_TIMEOUT",
            "OTEL_TRACES_EXPORTER",
        ];
        assert_eq!(of, expected, "{:?}", loaded.warnings);
    }
}
