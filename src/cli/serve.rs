//! `streambus serve`.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};

use crate::config::{Loaded, Mistakes, Setting, Sources, load};
use crate::telemetry;

/// How long the last log lines may take to be written.
const LOG_DEADLINE: Duration = Duration::from_secs(1);

/// Where the settings of a broker come from.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Settings {
    /// A TOML file with settings. Without it there are the defaults, `STREAMBUS_SECTION__KEY` variables and flags
    #[arg(long, env = "STREAMBUS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets any setting, for example `--set storage.sync_interval=100ms`. `streambus config show` lists all
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Where the data is [storage.data_dir; default: ./data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address of the gRPC port [api.grpc_listen; default: 0.0.0.0:9092]
    #[arg(long, value_name = "IP:PORT")]
    grpc_listen: Option<String>,
    /// Address of the port with /metrics and /health [api.http_listen; default: 0.0.0.0:8080]
    #[arg(long, value_name = "IP:PORT")]
    http_listen: Option<String>,
    /// OpenTelemetry collector that gets metrics, traces and logs over gRPC, such as http://localhost:4317
    /// [telemetry.otlp.endpoint]
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Whether records are on the disk before they are acknowledged, or up to an interval later [storage.sync;
    /// default: always]
    #[arg(long, value_name = "WHEN", value_parser = Offered(&["always", "interval"]))]
    sync: Option<String>,
    /// gRPC addresses of the brokers of a cluster to join, with commas between [cluster.seeds; default: none, which founds
    /// a cluster]
    #[arg(long, value_name = "HOST:PORT,...")]
    seeds: Option<String>,
    /// How log lines look [telemetry.log.format; default: json]
    #[arg(long, value_name = "FORMAT", value_parser = Offered(&["json", "text"]))]
    log_format: Option<String>,
}

/// Values that help and completions offer. Others are refused with all other settings, so that a mistake here hides none
/// there.
#[derive(Clone)]
struct Offered(&'static [&'static str]);

impl TypedValueParser for Offered {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().copied().map(PossibleValue::new)))
    }
}

impl Settings {
    /// Merges all sources, this process's environment included.
    ///
    /// # Errors
    /// Every mistake of every source.
    pub(super) fn load(self) -> Result<Loaded, Mistakes> {
        load(self.into_sources())
    }

    fn into_sources(self) -> Sources {
        let mut sources =
            Sources { file: self.config, environment: std::env::vars_os().collect(), ..Sources::default() };
        for text in &self.set {
            match Setting::assignment(text) {
                Ok(setting) => sources.flags.push(setting),
                Err(mistake) => sources.flag_mistakes.push(mistake),
            }
        }
        let flags = [
            ("--data-dir", "storage.data_dir", self.data_dir),
            ("--grpc-listen", "api.grpc_listen", self.grpc_listen),
            ("--http-listen", "api.http_listen", self.http_listen),
            ("--otlp-endpoint", "telemetry.otlp.endpoint", self.otlp_endpoint),
            ("--sync", "storage.sync", self.sync),
            ("--seeds", "cluster.seeds", self.seeds),
            ("--log-format", "telemetry.log.format", self.log_format),
        ];
        for (flag, key, value) in flags {
            sources.flags.extend(value.map(|value| Setting::flag(flag, key, value)));
        }
        sources
    }
}

/// Runs a broker.
#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    settings: Settings,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Loaded { config, warnings, .. } = self.settings.load()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.server.effective_worker_threads())
            .thread_name("streambus")
            .enable_all()
            .build()
            .context("the runtime cannot be started")?;
        let outcome = runtime.block_on(crate::server::run(config, &warnings));
        // What the log says comes before what is said about the end.
        telemetry::finish_log(LOG_DEADLINE);
        Ok(outcome?)
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;

    use super::*;

    #[test]
    fn flags_become_settings_and_every_mistake_in_them_is_told() {
        let settings = Settings {
            set: vec!["storage.sync=always".to_owned(), "nonsense".to_owned(), "no.such=1".to_owned()],
            grpc_listen: Some("nowhere".to_owned()),
            sync: Some("bogus".to_owned()),
            log_format: Some("zzz".to_owned()),
            ..Settings::default()
        };
        let sources = Sources { environment: Vec::new(), ..settings.into_sources() };
        let mistakes = load(sources).expect_err("mistakes");
        let told = mistakes.to_string();
        assert_eq!(mistakes.0.len(), 5, "{told}");
        for part in [
            "--set: nonsense",
            "--set: no.such",
            "--grpc-listen: api.grpc_listen",
            "--sync: storage.sync: unknown variant `bogus`, expected `always` or `interval`",
            "--log-format: telemetry.log.format: unknown variant `zzz`, expected `json` or `text`",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn every_value_that_is_offered_for_a_flag_is_accepted() {
        let command = Serve::augment_args(clap::Command::new("serve").no_binary_name(true));
        let mut offered = Vec::new();
        for flag in command.get_arguments() {
            for value in flag.get_possible_values() {
                let words = [format!("--{}", flag.get_long().expect("a flag")), value.get_name().to_owned()];
                let given = command.clone().try_get_matches_from(&words).expect("parses");
                let settings = Settings::from_arg_matches(&given).expect("parses");
                load(Sources { environment: Vec::new(), ..settings.into_sources() }).expect("no mistake");
                offered.push(words.join(" "));
            }
        }
        assert_eq!(offered, ["--sync always", "--sync interval", "--log-format json", "--log-format text"]);
    }

    #[test]
    fn a_flag_of_its_own_wins_over_set() {
        let settings = Settings {
            set: vec!["storage.data_dir=a".to_owned()],
            data_dir: Some("b".to_owned()),
            ..Settings::default()
        };
        let sources = Sources { environment: Vec::new(), ..settings.into_sources() };
        assert_eq!(load(sources).expect("no mistake").config.storage.data_dir, PathBuf::from("b"));
    }
}
