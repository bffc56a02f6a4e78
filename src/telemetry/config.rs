//! Configuration of telemetry.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::exporting::Signal;
use super::route::{Route, check_endpoint, header, is_secure, with_scheme};
use super::sampling::Sampling;
use super::tls::{File, Tls};

/// Configuration of telemetry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Attributes of the resource that every signal carries, besides and before those that are built in, such as
    /// `deployment.environment.name`, or `service.name` if it is to be another than `streambus`.
    pub resource: BTreeMap<String, String>,
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
    /// Everything that is wrong with these settings, by name.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = self.otlp.problems();
        if problems.is_empty() {
            problems = self.tls_problems();
        }
        let mut complain = |name: &str, what: String| problems.push((name.to_owned(), what));
        if self.resource.contains_key("") {
            complain("resource", "an attribute has no name".to_owned());
        }
        let ratio = self.trace.sample_ratio;
        if !(0.0..=1.0).contains(&ratio) {
            complain("trace.sample_ratio", format!("is {ratio}: expected a number from 0 to 1"));
        }
        if let Err(error) = super::logs::env_filter(&self.log.filter) {
            complain("log.filter", error.in_full());
        }
        problems
    }

    /// What is given and has no effect, by name.
    #[must_use]
    pub fn warnings(&self) -> Vec<(String, String)> {
        let used: Vec<_> = Signal::ALL.into_iter().filter_map(|signal| self.tls(signal)).collect();
        let is_used = |setting: &str| used.iter().any(|tls| tls.names(setting));
        let mut warnings: Vec<_> = self
            .otlp
            .files()
            .into_iter()
            .filter(|file| !is_used(&file.setting))
            .map(|file| {
                let what = format!(
                    "is `{}`, but has no effect: no signal that it counts for goes to an endpoint with https://",
                    file.path.display()
                );
                (file.setting, what)
            })
            .collect();
        warnings.extend(self.otlp.useless_insecure());
        warnings
    }

    /// How a signal leaves the process; none if it does not. Relies on there being no [`problems`](Self::problems).
    #[must_use]
    pub fn route(&self, signal: Signal) -> Option<Route> {
        let endpoint = self.endpoint(signal)?;
        let (otlp, own) = (&self.otlp, self.otlp.of(signal));
        let headers = if own.headers.is_empty() { &otlp.headers } else { &own.headers };
        Some(Route {
            endpoint,
            headers: headers.iter().map(|(name, value)| header(name, value).expect("no problem")).collect(),
            timeout: otlp.timeout(signal),
            compression: own.compression.unwrap_or(otlp.compression),
            tls: self.tls(signal),
        })
    }

    /// Where a signal goes, with the scheme; none if it goes nowhere.
    fn endpoint(&self, signal: Signal) -> Option<String> {
        let is_made = match signal {
            Signal::Traces => self.makes_traces(),
            Signal::Metrics => self.metrics.enabled,
            Signal::Logs => true,
        };
        let (otlp, own) = (&self.otlp, self.otlp.of(signal));
        let endpoint = otlp.endpoint(signal);
        let is_exported = is_made && otlp.enabled && own.enabled && !endpoint.is_empty();
        is_exported.then(|| with_scheme(endpoint, otlp.is_insecure(signal)))
    }

    /// What a signal needs for TLS; none if it is not exported, or without TLS.
    fn tls(&self, signal: Signal) -> Option<Tls> {
        self.endpoint(signal).filter(|endpoint| is_secure(endpoint)).map(|_| self.otlp.tls(signal))
    }

    /// Reads the files of all signals, each once, to find what is wrong with them.
    fn tls_problems(&self) -> Vec<(String, String)> {
        let (mut read, mut problems) = (Vec::new(), Vec::new());
        for tls in Signal::ALL.into_iter().filter_map(|signal| self.tls(signal)) {
            if !read.contains(&tls) {
                problems.extend(tls.client_config().err().into_iter().flatten());
                read.push(tls);
            }
        }
        // Signals share files, and so their mistakes.
        problems.sort();
        problems.dedup();
        problems
    }

    /// Which traces are recorded.
    pub(super) fn sampling(&self) -> Sampling {
        if !self.makes_traces() {
            return Sampling::NEVER;
        }
        if self.route(Signal::Traces).is_none() {
            // Nobody could ever see a trace that begins here and is not exported. The caller's traces still count: their
            // ids belong into logs and exemplars.
            return Sampling { parent_based: true, ratio: 0.0 };
        }
        Sampling { parent_based: self.trace.follow_callers, ratio: self.trace.sample_ratio }
    }

    fn makes_traces(&self) -> bool {
        self.trace.enabled && (self.trace.follow_callers || self.trace.sample_ratio > 0.0)
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpConfig {
    /// Off: nothing is exported, whatever endpoint is named.
    pub enabled: bool,
    /// The collector, for example `http://localhost:4317`, or `https://collector:4317` for TLS. Empty: only signals with
    /// an endpoint of their own are exported.
    pub endpoint: String,
    /// Whether an endpoint that has no scheme is plain text, as if it began with `http://`. It is not unless this says so.
    pub insecure: Option<bool>,
    /// The authorities that may have signed the certificate of the collector, in a PEM file. Empty: those that the
    /// operating system trusts.
    pub certificate: PathBuf,
    /// The certificate that is shown to the collector, in a PEM file with those between it and its authority.
    pub client_certificate: PathBuf,
    /// The key of that certificate, in a PEM file, not encrypted.
    pub client_key: PathBuf,
    /// How exports are compressed.
    pub compression: Compression,
    /// Headers of every export. Names and values that the collector asks for, such as an API key.
    pub headers: BTreeMap<String, String>,
    /// The longest that one export may take, retries included.
    #[serde(with = "crate::units::duration")]
    pub timeout: Duration,
    /// Time between two exports of metrics.
    #[serde(with = "crate::units::duration")]
    pub metrics_interval: Duration,
    /// Spans that may wait for export; more are dropped and counted.
    pub span_queue: usize,
    /// Log records that may wait for export; more are dropped and counted.
    pub log_queue: usize,
    /// The most spans or log records in one export.
    pub batch: usize,
    /// The most spans in one export, if that is to be another number.
    pub span_batch: Option<usize>,
    /// The most log records in one export, if that is to be another number.
    pub log_batch: Option<usize>,
    /// How long the first span or log record of a batch waits for others.
    #[serde(with = "crate::units::duration")]
    pub batch_delay: Duration,
    /// The same for spans, if it is to be another time.
    #[serde(with = "crate::units::optional_duration")]
    pub span_batch_delay: Option<Duration>,
    /// The same for log records, if it is to be another time.
    #[serde(with = "crate::units::optional_duration")]
    pub log_batch_delay: Option<Duration>,
    /// What is different for traces.
    pub traces: SignalConfig,
    /// What is different for metrics.
    pub metrics: SignalConfig,
    /// What is different for logs.
    pub logs: SignalConfig,
}

impl Default for OtlpConfig {
    fn default() -> Self {
        OtlpConfig {
            enabled: true,
            endpoint: String::new(),
            insecure: None,
            certificate: PathBuf::new(),
            client_certificate: PathBuf::new(),
            client_key: PathBuf::new(),
            compression: Compression::None,
            headers: BTreeMap::new(),
            timeout: Duration::from_secs(10),
            metrics_interval: Duration::from_secs(15),
            span_queue: 8192,
            log_queue: 8192,
            batch: 512,
            span_batch: None,
            log_batch: None,
            batch_delay: Duration::from_secs(1),
            span_batch_delay: None,
            log_batch_delay: None,
            traces: SignalConfig::default(),
            metrics: SignalConfig::default(),
            logs: SignalConfig::default(),
        }
    }
}

/// Far above what makes sense, and far below what a queue could not represent.
const QUEUE_MAX: usize = 1 << 24;

impl OtlpConfig {
    fn of(&self, signal: Signal) -> &SignalConfig {
        match signal {
            Signal::Traces => &self.traces,
            Signal::Metrics => &self.metrics,
            Signal::Logs => &self.logs,
        }
    }

    /// Where a signal goes, as it was given.
    fn endpoint(&self, signal: Signal) -> &str {
        let own = &self.of(signal).endpoint;
        if own.is_empty() { &self.endpoint } else { own }
    }

    fn is_insecure(&self, signal: Signal) -> bool {
        self.of(signal).insecure.or(self.insecure).unwrap_or(false)
    }

    /// The files for a signal, each its own or the common one.
    fn tls(&self, signal: Signal) -> Tls {
        let (common, own) = (self.common_files(), self.own_files(signal));
        let [certificate, client_certificate, client_key] =
            std::array::from_fn(|index| own[index].clone().or_else(|| common[index].clone()));
        Tls { certificate, client_certificate, client_key }
    }

    /// Every file that is given.
    fn files(&self) -> Vec<File> {
        let own = Signal::ALL.into_iter().flat_map(|signal| self.own_files(signal));
        self.common_files().into_iter().chain(own).flatten().collect()
    }

    fn common_files(&self) -> [Option<File>; 3] {
        files("otlp", [&self.certificate, &self.client_certificate, &self.client_key])
    }

    fn own_files(&self, signal: Signal) -> [Option<File>; 3] {
        let own = self.of(signal);
        let section = format!("otlp.{}", signal.as_str());
        files(&section, [&own.certificate, &own.client_certificate, &own.client_key])
    }

    /// Where `insecure` is the opposite of what all endpoints say that it counts for.
    fn useless_insecure(&self) -> Vec<(String, String)> {
        let signals = |is_meant: &dyn Fn(Signal) -> bool| -> Vec<&str> {
            let endpoints = Signal::ALL.into_iter().filter(|signal| is_meant(*signal));
            endpoints.map(|signal| self.endpoint(signal)).filter(|endpoint| !endpoint.is_empty()).collect()
        };
        let mut given =
            vec![("otlp".to_owned(), self.insecure, signals(&|signal| self.of(signal).insecure.is_none()))];
        for signal in Signal::ALL {
            let section = format!("otlp.{}", signal.as_str());
            given.push((section, self.of(signal).insecure, signals(&|other| other == signal)));
        }
        let useless = |(section, insecure, endpoints): (String, Option<bool>, Vec<&str>)| {
            let insecure = insecure?;
            let opposite = if insecure { "https://" } else { "http://" };
            let (first, _) = endpoints.split_first()?;
            endpoints.iter().all(|endpoint| endpoint.starts_with(opposite)).then(|| {
                let what = format!("is {insecure}, but has no effect: {first} begins with {opposite}");
                (format!("{section}.insecure"), what)
            })
        };
        given.into_iter().filter_map(useless).collect()
    }

    /// The longest that one export of a signal may take.
    pub(super) fn timeout(&self, signal: Signal) -> Duration {
        self.of(signal).timeout.unwrap_or(self.timeout)
    }

    /// How spans gather before they are exported: the most in one export, and how long the first one waits.
    pub(super) fn span_batches(&self) -> (usize, Duration) {
        (self.span_batch.unwrap_or(self.batch), self.span_batch_delay.unwrap_or(self.batch_delay))
    }

    /// The same for log records.
    pub(super) fn log_batches(&self) -> (usize, Duration) {
        (self.log_batch.unwrap_or(self.batch), self.log_batch_delay.unwrap_or(self.batch_delay))
    }

    fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let [traces, metrics, logs] = [&self.traces, &self.metrics, &self.logs];
        let insecure = |own: &SignalConfig| own.insecure.or(self.insecure).unwrap_or(false);
        for (section, endpoint, insecure, headers) in [
            ("otlp", &self.endpoint, self.insecure.unwrap_or(false), &self.headers),
            ("otlp.traces", &traces.endpoint, insecure(traces), &traces.headers),
            ("otlp.metrics", &metrics.endpoint, insecure(metrics), &metrics.headers),
            ("otlp.logs", &logs.endpoint, insecure(logs), &logs.headers),
        ] {
            if let Err(what) = check_endpoint(endpoint, insecure) {
                problems.push((format!("{section}.endpoint"), format!("is `{endpoint}`: {what}")));
            }
            for (name, value) in headers {
                // The value may be a secret and is not repeated.
                if let Err(what) = header(name, value) {
                    problems.push((format!("{section}.headers.{name}"), what.to_owned()));
                }
            }
        }
        for (name, time) in [
            ("otlp.timeout", Some(self.timeout)),
            ("otlp.traces.timeout", traces.timeout),
            ("otlp.metrics.timeout", metrics.timeout),
            ("otlp.logs.timeout", logs.timeout),
            ("otlp.metrics_interval", Some(self.metrics_interval)),
            ("otlp.batch_delay", Some(self.batch_delay)),
            ("otlp.span_batch_delay", self.span_batch_delay),
            ("otlp.log_batch_delay", self.log_batch_delay),
        ] {
            if time.is_some_and(|time| time.is_zero()) {
                problems.push((name.to_owned(), "must be longer than zero".to_owned()));
            }
        }
        for (name, size) in [
            ("otlp.span_queue", Some(self.span_queue)),
            ("otlp.log_queue", Some(self.log_queue)),
            ("otlp.batch", Some(self.batch)),
            ("otlp.span_batch", self.span_batch),
            ("otlp.log_batch", self.log_batch),
        ] {
            if let Some(size) = size.filter(|size| !(1..=QUEUE_MAX).contains(size)) {
                problems.push((name.to_owned(), format!("is {size}: expected 1 to {QUEUE_MAX}")));
            }
        }
        problems
    }
}

/// The files that are given in a section: certificate, client's certificate, client's key.
fn files(section: &str, paths: [&PathBuf; 3]) -> [Option<File>; 3] {
    let names = ["certificate", "client_certificate", "client_key"];
    std::array::from_fn(|index| {
        let path = paths[index].clone();
        let is_given = !path.as_os_str().is_empty();
        is_given.then(|| File { setting: format!("{section}.{}", names[index]), path })
    })
}

/// How exports are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// With gzip, which every collector understands.
    Gzip,
}

/// Export of one signal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignalConfig {
    /// Off: this signal is not exported.
    pub enabled: bool,
    /// A collector of its own, in place of `otlp.endpoint`.
    pub endpoint: String,
    /// Its own, in place of `otlp.insecure`.
    pub insecure: Option<bool>,
    /// A file of its own, in place of `otlp.certificate`.
    pub certificate: PathBuf,
    /// A file of its own, in place of `otlp.client_certificate`.
    pub client_certificate: PathBuf,
    /// A file of its own, in place of `otlp.client_key`.
    pub client_key: PathBuf,
    /// Its own, in place of `otlp.compression`.
    pub compression: Option<Compression>,
    /// Headers of its own: if there are any, those of `otlp.headers` are not sent.
    pub headers: BTreeMap<String, String>,
    /// A time of its own, in place of `otlp.timeout`.
    #[serde(with = "crate::units::optional_duration")]
    pub timeout: Option<Duration>,
}

impl Default for SignalConfig {
    fn default() -> Self {
        SignalConfig {
            enabled: true,
            endpoint: String::new(),
            insecure: None,
            certificate: PathBuf::new(),
            client_certificate: PathBuf::new(),
            client_key: PathBuf::new(),
            compression: None,
            headers: BTreeMap::new(),
            timeout: None,
        }
    }
}

/// Which traces are recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceConfig {
    /// Off: no span is made, whatever callers ask for.
    pub enabled: bool,
    /// The share, from 0 to 1, of requests that are traced where this process decides.
    pub sample_ratio: f64,
    /// At most so many requests per second, and as many at once, are traced by a share below 1; 0: no limit.
    pub max_per_second: u32,
    /// Whether the decision of a caller that has taken one is followed. Off: this process decides always.
    pub follow_callers: bool,
}

impl Default for TraceConfig {
    fn default() -> Self {
        TraceConfig { enabled: true, sample_ratio: 0.01, max_per_second: 100, follow_callers: true }
    }
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level (`info`) or directives (`info,streambus::raft=debug`). Of the agreement library, whose steps are many,
    /// only errors are logged unless a directive names it (`openraft=info`).
    pub filter: String,
    /// How a line on standard error looks.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { filter: "info".to_owned(), format: LogFormat::default() }
    }
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
    #[error("telemetry.{name}: {what}")]
    Setting {
        /// Its name below `telemetry`.
        name: String,
        /// What is wrong.
        what: String,
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
    /// The channel to a collector cannot be made.
    #[error("the channel to {endpoint} cannot be made")]
    Channel {
        /// The collector.
        endpoint: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// The Prometheus exporter cannot be built.
    #[error("the Prometheus exporter cannot be built")]
    Prometheus(#[source] opentelemetry_sdk::error::OTelSdkError),
    /// The thread that exports, or the one that writes log lines, cannot be started.
    #[error("a thread of telemetry cannot be started")]
    Thread(#[source] std::io::Error),
}

impl Error {
    /// What it says, and what its cause says.
    pub(super) fn in_full(&self) -> String {
        use std::error::Error as _;
        match self.source() {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).expect("well-formed")
    }

    fn endpoint(config: &Config, signal: Signal) -> Option<String> {
        config.route(signal).map(|route| route.endpoint)
    }

    #[test]
    fn nothing_is_exported_by_default() {
        let config = config("");
        assert!(Signal::ALL.into_iter().all(|signal| config.route(signal).is_none()));
        assert_eq!(config.sampling(), Sampling { parent_based: true, ratio: 0.0 });
        assert_eq!(config.problems(), []);
    }

    #[test]
    fn a_signal_of_its_own_mind_goes_another_way() {
        let config = config(
            "otlp.endpoint = 'collector:4317'\notlp.headers = { Key = 'a', x = 'b' }\notlp.timeout = '3s'\n\
             otlp.insecure = true\notlp.compression = 'gzip'\n\
             otlp.logs = { endpoint = 'http://logs:4317', headers = { only = 'c' }, timeout = '1s', compression = 'none' }\n\
             otlp.metrics.enabled = false",
        );
        let (traces, logs) =
            (config.route(Signal::Traces).expect("one"), config.route(Signal::Logs).expect("one"));
        let headers =
            |route: &Route| route.metadata().into_headers().keys().map(ToString::to_string).collect();
        let (of_traces, of_logs): (Vec<String>, Vec<String>) = (headers(&traces), headers(&logs));
        assert_eq!((&traces.endpoint[..], traces.timeout.as_secs()), ("http://collector:4317", 3));
        assert_eq!((&logs.endpoint[..], logs.timeout.as_secs()), ("http://logs:4317", 1));
        assert_eq!((traces.compression, logs.compression), (Compression::Gzip, Compression::None));
        assert_eq!(of_traces.len(), 2);
        assert_eq!(of_logs, ["only"], "what is meant for one collector is not told to another");
        assert_eq!(config.route(Signal::Metrics), None);
    }

    #[test]
    fn batches_of_spans_and_of_logs_may_differ() {
        let otlp = config("otlp.batch = 7\notlp.log_batch = 8\notlp.span_batch_delay = '2s'").otlp;
        assert_eq!(otlp.span_batches(), (7, Duration::from_secs(2)));
        assert_eq!(otlp.log_batches(), (8, Duration::from_secs(1)));
    }

    #[test]
    fn export_can_be_off_as_a_whole() {
        let config = config("otlp.endpoint = 'http://ours:4317'\notlp.enabled = false");
        assert!(Signal::ALL.into_iter().all(|signal| config.route(signal).is_none()));
    }

    #[test]
    fn what_is_off_is_not_exported_whoever_names_an_endpoint() {
        let text = "metrics.enabled = false\ntrace.enabled = false\notlp.endpoint = 'http://ours:4317'";
        let off = config(text);
        assert_eq!((endpoint(&off, Signal::Metrics), endpoint(&off, Signal::Traces)), (None, None));
        assert_eq!(off.sampling(), Sampling::NEVER);
        let logs = endpoint(&off, Signal::Logs);
        assert_eq!(logs.as_deref(), Some("http://ours:4317"), "logs are not switched off");
        let off = config("trace.enabled = false");
        assert_eq!(off.sampling(), Sampling::NEVER, "no caller is followed, not even without an endpoint");
    }

    #[test]
    fn every_value_that_cannot_be_used_is_named() {
        let config = config(
            "otlp.endpoint = 'https://'\notlp.logs.endpoint = 'ftp://collector'\notlp.batch = 0\n\
             otlp.timeout = '0s'\notlp.traces.timeout = '0s'\notlp.headers = { 'a b' = 'secret' }\n\
             trace.sample_ratio = 1.5\nlog.filter = 'info,streambus=loud'",
        );
        let problems = config.problems();
        let names: Vec<_> = problems.iter().map(|(name, _)| &name[..]).collect();
        let expected = [
            "otlp.endpoint",
            "otlp.headers.a b",
            "otlp.logs.endpoint",
            "otlp.timeout",
            "otlp.traces.timeout",
            "otlp.batch",
            "trace.sample_ratio",
            "log.filter",
        ];
        assert_eq!(names, expected);
        assert!(problems[0].1.contains("https://host:port"), "{problems:?}");
        assert!(problems.iter().all(|(_, what)| !what.contains("secret")), "{problems:?}");
    }

    #[test]
    fn an_endpoint_without_a_scheme_has_tls_unless_it_is_called_insecure() {
        let text = "otlp.endpoint = 'collector:4317'\notlp.logs.insecure = true\n\
                    otlp.metrics = { endpoint = 'http://collector:1', insecure = false }";
        let config = config(text);
        assert_eq!(endpoint(&config, Signal::Traces).as_deref(), Some("https://collector:4317"));
        assert_eq!(endpoint(&config, Signal::Logs).as_deref(), Some("http://collector:4317"));
        assert_eq!(endpoint(&config, Signal::Metrics).as_deref(), Some("http://collector:1"));
        let warnings = config.warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert_eq!(warnings[0].0, "otlp.metrics.insecure");
    }

    #[test]
    fn a_file_for_tls_that_no_signal_uses_is_warned_of_and_not_read() {
        let config = config(
            "otlp.endpoint = 'http://collector:4317'\notlp.certificate = '/no/such'\notlp.client_key = '/no/such'\n\
             otlp.logs = { endpoint = 'https://logs:4317', certificate = '/nor/this' }",
        );
        let named =
            |found: Vec<(String, String)>| -> Vec<_> { found.into_iter().map(|(name, _)| name).collect() };
        assert_eq!(named(config.warnings()), ["otlp.certificate"]);
        assert_eq!(named(config.problems()), ["otlp.client_key", "otlp.logs.certificate"]);
    }

    #[test]
    fn rejects_unknown_fields_and_malformed_durations() {
        assert!(toml::from_str::<Config>("otlp.endpont = ''").is_err());
        assert!(toml::from_str::<Config>("otlp.timeout = '10 parsecs'").is_err());
        assert!(toml::from_str::<Config>("otlp.timeout = 10").is_err());
    }
}
