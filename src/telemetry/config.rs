//! Configuration of telemetry, and how it combines with the standard `OTEL_*` variables.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sampling::Sampling;

/// What is logged when nothing says otherwise: of the agreement library, whose steps are many, only errors.
const DEFAULT_FILTER: &str = "info,openraft=error";

/// Configuration of telemetry.
///
/// Where a field is unset, the standard OpenTelemetry variable counts, then the default. Where both are set, the
/// configuration wins, with one exception: `OTEL_SDK_DISABLED=true` always turns export off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Metrics.
    pub metrics: MetricsConfig,
    /// Export to a collector.
    pub otlp: OtlpConfig,
    /// Traces.
    pub trace: TraceConfig,
    /// Logs.
    pub log: LogConfig,
}

impl Config {
    /// What is wrong with these settings, by name. Variables are not looked at.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, String)> {
        let problem = match Settings::resolve(self, &|_| None) {
            Ok(settings) => match super::logs::env_filter(&settings.filter) {
                Ok(_) => return Vec::new(),
                Err(error) => ("log.filter".to_owned(), error.to_string()),
            },
            Err(Error::Setting { name, value, reason }) => {
                let name = name.strip_prefix("telemetry.").unwrap_or(&name).to_owned();
                (name, format!("is `{value}`: {reason}"))
            }
            Err(other) => ("otlp".to_owned(), other.to_string()),
        };
        vec![problem]
    }
}

/// Whether there are metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Off: nothing is measured, `/metrics` answers 404 and says why, and no metrics go to a collector. For finding
    /// out what metrics cost.
    pub enabled: bool,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        MetricsConfig { enabled: true }
    }
}

/// Export of metrics, traces and logs over OTLP/gRPC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpConfig {
    /// The collector, for example `http://localhost:4317`; no TLS. Empty: `OTEL_EXPORTER_OTLP_ENDPOINT` (or the
    /// variable of a single signal), and without that nothing is exported.
    pub endpoint: String,
    /// Headers of every export. Names and values that the collector asks for, such as an API key. Those of
    /// `OTEL_EXPORTER_OTLP_HEADERS` are sent as well.
    pub headers: BTreeMap<String, String>,
    /// The longest that one export may take, retries included. Default `10s`; `OTEL_EXPORTER_OTLP_TIMEOUT`.
    #[serde(with = "duration")]
    pub timeout: Option<Duration>,
    /// Time between two exports of metrics. Default `15s`; `OTEL_METRIC_EXPORT_INTERVAL`.
    #[serde(with = "duration")]
    pub metrics_interval: Option<Duration>,
    /// Spans that may wait for export; more are dropped and counted. Default 8192; `OTEL_BSP_MAX_QUEUE_SIZE`.
    pub span_queue: Option<usize>,
    /// Log records that may wait for export; more are dropped and counted. Default 8192; `OTEL_BLRP_MAX_QUEUE_SIZE`.
    pub log_queue: Option<usize>,
    /// The most spans or log records in one export. Default 512; `OTEL_BSP_MAX_EXPORT_BATCH_SIZE`.
    pub batch: Option<usize>,
    /// How long the first span or log record of a batch waits for others. Default `1s`; `OTEL_BSP_SCHEDULE_DELAY`.
    #[serde(with = "duration")]
    pub batch_delay: Option<Duration>,
}

/// Which traces are recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceConfig {
    /// Off: no span is made, whatever callers ask for.
    pub enabled: bool,
    /// The share, from 0 to 1, of requests without a caller's decision that are traced. Default 0.01;
    /// `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`. A caller's decision is always followed when this is set.
    pub sample_ratio: Option<f64>,
}

impl Default for TraceConfig {
    fn default() -> Self {
        TraceConfig { enabled: true, sample_ratio: None }
    }
}

/// What is logged and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level (`info`) or directives (`info,streambus::raft=debug`). Empty: `RUST_LOG`, and without that `info`
    /// (and of the agreement library only errors).
    pub filter: String,
    /// How a line on standard error looks.
    pub format: LogFormat,
}

/// How a log line on standard error looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Why telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting has a value that cannot be used.
    #[error("{name} is `{value}`: {reason}")]
    Setting {
        /// The configuration key or environment variable.
        name: String,
        /// What it is set to.
        value: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The log filter is malformed.
    #[error("log filter `{filter}` is malformed")]
    Filter {
        /// The filter.
        filter: String,
        /// Where it is malformed.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// An exporter cannot be built.
    #[error("the OTLP exporter cannot be built")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    /// The channel to the collector of metrics cannot be made.
    #[error("the OTLP exporter of metrics cannot be built")]
    Channel(#[source] tonic::transport::Error),
    /// The Prometheus exporter cannot be built.
    #[error("the Prometheus exporter cannot be built")]
    Prometheus(#[source] opentelemetry_sdk::error::OTelSdkError),
    /// The export thread cannot be started.
    #[error("the export thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// What the configuration and the environment say together.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    /// Endpoints of traces, metrics and logs; none is exported where absent.
    pub(super) traces: Option<String>,
    pub(super) metrics: Option<String>,
    pub(super) logs: Option<String>,
    /// Whether anything is measured, exported or not.
    pub(super) measures: bool,
    pub(super) headers: BTreeMap<String, String>,
    /// `headers` with those of the environment, which the other exporters add by themselves.
    pub(super) metrics_headers: BTreeMap<String, String>,
    pub(super) timeout: Duration,
    pub(super) metrics_interval: Duration,
    pub(super) span_queue: usize,
    pub(super) log_queue: usize,
    pub(super) batch: usize,
    pub(super) batch_delay: Duration,
    pub(super) sampling: Sampling,
    pub(super) filter: String,
    pub(super) format: LogFormat,
}

impl Settings {
    /// Combines `config` with the variables that `env` reads.
    pub(super) fn resolve(config: &Config, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let env = Environment(env);
        let disabled = env.text("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let endpoint = |signal: &str| {
            if disabled {
                return Ok(None);
            }
            let variable = format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT");
            let (name, value) = if !config.otlp.endpoint.is_empty() {
                ("telemetry.otlp.endpoint", config.otlp.endpoint.clone())
            } else if let Some(value) = env.text(&variable) {
                (variable.as_str(), value)
            } else if let Some(value) = env.text("OTEL_EXPORTER_OTLP_ENDPOINT") {
                ("OTEL_EXPORTER_OTLP_ENDPOINT", value)
            } else {
                return Ok(None);
            };
            endpoint(name, value).map(Some)
        };
        let otlp = &config.otlp;
        let settings = Settings {
            traces: endpoint("TRACES")?,
            metrics: endpoint("METRICS")?,
            logs: endpoint("LOGS")?,
            measures: config.metrics.enabled,
            headers: otlp.headers.clone(),
            metrics_headers: env.with_headers(&otlp.headers, "METRICS"),
            timeout: env.millis(otlp.timeout, "OTEL_EXPORTER_OTLP_TIMEOUT", Duration::from_secs(10))?,
            metrics_interval: env.millis(
                otlp.metrics_interval,
                "OTEL_METRIC_EXPORT_INTERVAL",
                Duration::from_secs(15),
            )?,
            span_queue: env.size(otlp.span_queue, "OTEL_BSP_MAX_QUEUE_SIZE", 8192)?,
            log_queue: env.size(otlp.log_queue, "OTEL_BLRP_MAX_QUEUE_SIZE", 8192)?,
            batch: env.size(otlp.batch, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)?,
            batch_delay: env.millis(otlp.batch_delay, "OTEL_BSP_SCHEDULE_DELAY", Duration::from_secs(1))?,
            sampling: env.sampling(config.trace.sample_ratio)?,
            filter: match config.log.filter.as_str() {
                "" => env.text("RUST_LOG").unwrap_or_else(|| DEFAULT_FILTER.to_owned()),
                filter => filter.to_owned(),
            },
            format: config.log.format,
        };
        Ok(settings.without_what_is_off(config).without_pointless_traces())
    }

    /// What is switched off is not exported either, whoever names an endpoint.
    fn without_what_is_off(mut self, config: &Config) -> Self {
        if !config.metrics.enabled {
            self.metrics = None;
        }
        if !config.trace.enabled {
            self.sampling = Sampling::NEVER;
        }
        if self.sampling == Sampling::NEVER {
            self.traces = None;
        }
        self
    }

    /// Nobody could ever see a trace that begins here and is not exported. The caller's traces still count: their
    /// ids belong into logs and exemplars.
    fn without_pointless_traces(mut self) -> Self {
        if self.traces.is_none() && self.sampling != Sampling::NEVER {
            self.sampling = Sampling { parent_based: true, ratio: 0.0 };
        }
        self
    }
}

fn invalid(name: &str, value: impl ToString, reason: &str) -> Error {
    Error::Setting { name: name.to_owned(), value: value.to_string(), reason: reason.to_owned() }
}

/// Checks an endpoint. Without a scheme it is plain text.
fn endpoint(name: &str, value: String) -> Result<String, Error> {
    if value.starts_with("https://") {
        let reason =
            "this build has no TLS for OTLP; use http:// and a collector on the same host or network";
        return Err(invalid(name, value, reason));
    }
    let uri = if value.contains("://") { value.clone() } else { format!("http://{value}") };
    let usable = uri
        .parse::<http::Uri>()
        .is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()));
    if usable { Ok(uri) } else { Err(invalid(name, value, "expected http://host:port")) }
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

struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    /// An empty variable counts as unset, as the OpenTelemetry specification demands.
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// `headers` and those that the environment names for `signal`, which win. What is not `name=value` is passed over.
    fn with_headers(&self, headers: &BTreeMap<String, String>, signal: &str) -> BTreeMap<String, String> {
        let lower = |(name, value): (&String, &String)| (name.to_ascii_lowercase(), value.clone());
        let mut headers: BTreeMap<_, _> = headers.iter().map(lower).collect();
        let listed = self
            .text(&format!("OTEL_EXPORTER_OTLP_{signal}_HEADERS"))
            .or_else(|| self.text("OTEL_EXPORTER_OTLP_HEADERS"))
            .unwrap_or_default();
        for (name, value) in listed.split(',').filter_map(|header| header.split_once('=')) {
            if let Some(value) = percent_decoded(value.trim()) {
                headers.insert(name.trim().to_ascii_lowercase(), value);
            }
        }
        headers
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Error> {
        let parse =
            |value: String| value.parse().map_err(|_| invalid(name, &value, "expected a whole number"));
        self.text(name).map(parse).transpose()
    }

    fn millis(&self, set: Option<Duration>, name: &str, default: Duration) -> Result<Duration, Error> {
        let duration = match set {
            Some(duration) => duration,
            None => self.number(name)?.map_or(default, Duration::from_millis),
        };
        if duration.is_zero() { Err(invalid(name, "0", "expected more than zero")) } else { Ok(duration) }
    }

    fn size(&self, set: Option<usize>, name: &str, default: usize) -> Result<usize, Error> {
        let size = match set {
            Some(size) => size,
            None => self.number(name)?.map_or(default, |size| usize::try_from(size).unwrap_or(usize::MAX)),
        };
        // The upper bound is far above what makes sense and far below what the queue could not represent.
        if (1..=1 << 24).contains(&size) {
            Ok(size)
        } else {
            Err(invalid(name, size, "expected 1 to 16777216"))
        }
    }

    fn sampling(&self, set: Option<f64>) -> Result<Sampling, Error> {
        if let Some(ratio) = set {
            return Ok(Sampling { parent_based: true, ratio: share("telemetry.trace.sample_ratio", ratio)? });
        }
        let Some(sampler) = self.text("OTEL_TRACES_SAMPLER") else {
            return Ok(Sampling { parent_based: true, ratio: 0.01 });
        };
        let (parent_based, root) = match sampler.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, sampler.as_str()),
        };
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => {
                const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
                let text = self.text(ARGUMENT).unwrap_or_else(|| "1".to_owned());
                let ratio =
                    text.parse().map_err(|_| invalid(ARGUMENT, &text, "expected a number from 0 to 1"))?;
                share(ARGUMENT, ratio)?
            }
            _ => {
                let reason =
                    "expected always_on, always_off or traceidratio, each also with the prefix parentbased_";
                return Err(invalid("OTEL_TRACES_SAMPLER", sampler, reason));
            }
        };
        Ok(Sampling { parent_based, ratio })
    }
}

fn share(name: &str, ratio: f64) -> Result<f64, Error> {
    if (0.0..=1.0).contains(&ratio) {
        Ok(ratio)
    } else {
        Err(invalid(name, ratio, "expected a number from 0 to 1"))
    }
}

/// Durations as text: a whole number and `ms`, `s`, `m` or `h`.
mod duration {
    use std::time::Duration;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.serialize_some(&format!("{}ms", value.as_millis())),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        let unit_at = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        let millis = match text[unit_at..].trim() {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        let number = text[..unit_at].parse::<u64>().ok();
        match number.zip(millis).and_then(|(number, millis)| number.checked_mul(millis)) {
            Some(millis) => Ok(Some(Duration::from_millis(millis))),
            None => Err(D::Error::custom(format!(
                "`{text}` is no duration: expected for example 250ms, 10s or 5m"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(config: &str, env: &[(&str, &str)]) -> Result<Settings, Error> {
        let config = toml::from_str(config).expect("valid configuration");
        let read =
            |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::resolve(&config, &read)
    }

    #[test]
    fn nothing_is_exported_by_default() {
        let settings = resolve("", &[]).expect("valid");
        assert_eq!((settings.traces, settings.metrics, settings.logs), (None, None, None));
        assert_eq!(settings.sampling, Sampling { parent_based: true, ratio: 0.0 });
        assert_eq!(settings.filter, DEFAULT_FILTER);
    }

    #[test]
    fn standard_variables_count_where_the_configuration_is_silent() {
        let env = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:4317"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
        ];
        let settings = resolve("", &env).expect("valid");
        assert_eq!(settings.traces.as_deref(), Some("http://collector:4317"));
        assert_eq!(settings.logs.as_deref(), Some("http://logs:4317"));
        assert_eq!(settings.timeout, Duration::from_millis(2500));
        assert_eq!(settings.sampling, Sampling { parent_based: false, ratio: 0.5 });
    }

    #[test]
    fn the_configuration_wins_over_the_variables() {
        let config = "otlp.endpoint = 'http://ours:4317'\notlp.timeout = '3s'\ntrace.sample_ratio = 0.1";
        let env = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://theirs:4317"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_TRACES_SAMPLER", "always_off"),
        ];
        let settings = resolve(config, &env).expect("valid");
        assert_eq!(settings.metrics.as_deref(), Some("http://ours:4317"));
        assert_eq!(settings.timeout, Duration::from_secs(3));
        assert_eq!(settings.sampling, Sampling { parent_based: true, ratio: 0.1 });
    }

    #[test]
    fn headers_of_the_environment_are_sent_with_metrics_too() {
        let config = "otlp.headers = { Ours = '1', both = 'ours' }";
        let env = [("OTEL_EXPORTER_OTLP_HEADERS", " Both = the%20irs%2C ,theirs=2,nonsense,bad=%f")];
        let settings = resolve(config, &env).expect("valid");
        let headers: Vec<_> =
            settings.metrics_headers.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        assert_eq!(headers, [("both", "the irs,"), ("ours", "1"), ("theirs", "2")]);
        let env = [env[0], ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "only=3")];
        let settings = resolve("", &env).expect("valid");
        assert_eq!(settings.metrics_headers, BTreeMap::from([("only".to_owned(), "3".to_owned())]));
    }

    #[test]
    fn the_kill_switch_turns_export_off() {
        let settings = resolve("otlp.endpoint = 'http://ours:4317'", &[("OTEL_SDK_DISABLED", "TRUE")]);
        assert_eq!(settings.expect("valid").traces, None);
    }

    #[test]
    fn what_is_off_is_not_exported_whoever_names_an_endpoint() {
        let env = [
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://theirs:4317"),
            ("OTEL_TRACES_SAMPLER", "always_on"),
        ];
        let config = "metrics.enabled = false\ntrace.enabled = false\notlp.endpoint = 'http://ours:4317'";
        let settings = resolve(config, &env).expect("valid");
        assert_eq!((settings.metrics, settings.traces), (None, None));
        assert_eq!((settings.measures, settings.sampling), (false, Sampling::NEVER));
        assert_eq!(settings.logs.as_deref(), Some("http://ours:4317"), "logs are not switched off");
        let off = resolve("trace.enabled = false", &[]).expect("valid");
        assert_eq!(off.sampling, Sampling::NEVER, "no caller is followed, not even without an endpoint");
    }

    #[test]
    fn refuses_what_it_cannot_do_and_says_why() {
        let tls = resolve("otlp.endpoint = 'https://collector'", &[]).expect_err("no TLS").to_string();
        assert!(tls.contains("no TLS"), "{tls}");
        for (config, env) in [
            ("otlp.endpoint = 'ftp://collector'", ("", "")),
            ("trace.sample_ratio = 1.5", ("", "")),
            ("otlp.batch = 0", ("", "")),
            ("", ("OTEL_TRACES_SAMPLER", "xray")),
            ("", ("OTEL_BSP_MAX_QUEUE_SIZE", "many")),
        ] {
            assert!(matches!(resolve(config, &[env]), Err(Error::Setting { .. })), "{config} {env:?}");
        }
    }

    #[test]
    fn rejects_unknown_fields_and_malformed_durations() {
        assert!(toml::from_str::<Config>("otlp.endpont = ''").is_err());
        assert!(toml::from_str::<Config>("otlp.timeout = '10 parsecs'").is_err());
        assert!(toml::from_str::<Config>("otlp.timeout = 10").is_err());
    }
}
