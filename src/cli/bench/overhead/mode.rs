//! What is compared.

use clap::ValueEnum;

/// Beginnings of settings that this command decides.
pub(super) const DECIDED: [&str; 5] =
    ["telemetry.", "storage.data_dir", "storage.sync=", "api.grpc_listen", "api.http_listen"];

/// When brokers force records to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Sync {
    Always,
    Interval,
}

impl Sync {
    /// The value of `storage.sync`.
    pub(super) fn setting(self) -> &'static str {
        match self {
            Sync::Always => "always",
            Sync::Interval => "interval",
        }
    }
}

/// How much telemetry a broker makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// None.
    Off,
    /// Metrics, scraped and exported.
    Metrics,
    /// Also one trace in a hundred.
    SomeTraces,
    /// Also every trace.
    AllTraces,
}

/// All modes, in the order of their cost.
pub(super) const MODES: [Mode; 4] = [Mode::Off, Mode::Metrics, Mode::SomeTraces, Mode::AllTraces];

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::Metrics => "metrics",
            Mode::SomeTraces => "metrics, 1 % traces",
            Mode::AllTraces => "metrics, 100 % traces",
        }
    }

    /// Whether there are metrics.
    pub(super) fn measures(self) -> bool {
        self != Mode::Off
    }

    /// Whether every batch has a span.
    pub(super) fn traces_all(self) -> bool {
        self == Mode::AllTraces
    }

    /// Settings of a broker in this mode that exports to `endpoint`.
    pub(super) fn settings(self, sync: Sync, endpoint: &str) -> Vec<(&'static str, String)> {
        let ratio = match self {
            Mode::Off | Mode::Metrics => None,
            Mode::SomeTraces => Some("0.01"),
            Mode::AllTraces => Some("1"),
        };
        let mut settings = vec![
            ("storage.sync", sync.setting().to_owned()),
            ("telemetry.log.format", "json".to_owned()),
            ("telemetry.metrics.enabled", self.measures().to_string()),
            ("telemetry.trace.enabled", ratio.is_some().to_string()),
        ];
        if self.measures() {
            settings.push(("telemetry.otlp.endpoint", endpoint.to_owned()));
            // As often as the scrapes, so that a short run has exports in it.
            settings.push(("telemetry.otlp.metrics_interval", "1s".to_owned()));
        }
        settings.extend(ratio.map(|ratio| ("telemetry.trace.sample_ratio", ratio.to_owned())));
        settings
    }
}
