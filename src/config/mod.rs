//! The settings of a broker: every module's own `Config`, composed, and filled from five sources.
//!
//! Later sources win: the defaults, the standard's variables (`OTEL_…` and `RUST_LOG`), a TOML file, the environment
//! (`STREAMBUS_SECTION__KEY`, two underscores between levels), flags (`--set section.key=value` and the few flags that stand
//! for one setting). Nothing is ignored without a word: a [`load`] that finds mistakes reports all of them, from all sources,
//! and gives no configuration; what has no effect is warned of.
//!
//! A module's `Config` is a plain struct with serde's `default` and `deny_unknown_fields`. What may be set is learnt
//! from [`Config::default`] as serde writes it, so a new field or section needs a line in [`Config`] and nothing else. An
//! optional setting must be written as null by default, not skipped.

mod directives;
mod environment;
mod file;
mod known;
mod merge;
mod mistake;
mod server;
mod source;
mod standard;

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{api, broker, cluster, partition, raft, storage, telemetry};

pub use environment::CLI_VARIABLES;
pub use merge::Entry;
pub use mistake::{Mistake, Mistakes, Problem};
pub use server::Server;
pub use source::{Origin, Setting};

/// Every setting of a broker. A field is a section of the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The process: threads, advertised addresses, shutdown.
    pub server: Server,
    /// Ports and connections.
    pub api: api::Config,
    /// Limits, and what topics get by default.
    pub broker: broker::Config,
    /// Consumer groups.
    pub groups: broker::groups::Config,
    /// The way of batches into the log and out of memory.
    pub partition: partition::Config,
    /// The cluster: how it is found, and how it spreads its work.
    pub cluster: cluster::Config,
    /// The groups that keep offsets.
    pub coordinator: cluster::coordinator::Config,
    /// Agreement.
    pub raft: raft::Config,
    /// The disk.
    pub storage: storage::Config,
    /// Metrics, traces and logs.
    pub telemetry: telemetry::Config,
}

impl Config {
    /// What is given and has no effect.
    #[must_use]
    pub fn warnings(&self) -> Vec<Problem> {
        let mut warnings = Problem::of_section("telemetry", self.telemetry.warnings());
        warnings.extend(directives::without_effect(&self.telemetry.log.filter));
        warnings
    }

    /// What single values that are well-formed, but out of range or in contradiction to others, get wrong.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Problem::of_section("server", self.server.problems());
        problems.extend(Problem::of_section("api", self.api.problems()));
        problems.extend(Problem::of_section("broker", self.broker.problems()));
        problems.extend(Problem::of_section("groups", self.groups.problems()));
        problems.extend(Problem::of_section("partition", self.partition.problems()));
        problems.extend(Problem::of_section("cluster", self.cluster.problems()));
        problems.extend(Problem::of_section("coordinator", self.coordinator.problems()));
        problems.extend(Problem::of_section("raft", self.raft.problems()));
        problems.extend(Problem::of_section("storage", self.storage.problems()));
        problems.extend(Problem::of_section("telemetry", self.telemetry.problems()));
        problems
    }
}

/// Where settings come from besides the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A TOML file. It must exist.
    pub file: Option<PathBuf>,
    /// The environment, usually [`std::env::vars_os`].
    pub environment: Vec<(OsString, OsString)>,
    /// Flags, in the order of the command line; see [`Setting::flag`] and [`Setting::assignment`].
    pub flags: Vec<Setting>,
    /// Flags that could not even be read.
    pub flag_mistakes: Vec<Mistake>,
}

/// A configuration, and where each of its values comes from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every setting in the order of keys.
    pub entries: Vec<Entry>,
    /// What was given and has no effect.
    pub warnings: Vec<String>,
}

/// Merges all sources.
///
/// # Errors
/// Every mistake of every source: unknown settings, values of the wrong type or out of range, a file that cannot be
/// read or parsed.
pub fn load(sources: Sources) -> Result<Loaded, Mistakes> {
    let mut settings = Vec::new();
    let mut mistakes = Vec::new();
    let mut warnings = standard::read(&sources.environment, &mut settings, &mut mistakes);
    let variables = sources.environment.clone();
    if let Some(path) = &sources.file {
        file::read(path, &mut settings, &mut mistakes);
    }
    environment::read(sources.environment, &mut settings, &mut mistakes);
    settings.extend(sources.flags);
    mistakes.extend(sources.flag_mistakes);
    let merged = merge::merge::<Config>(settings, mistakes, Config::problems)?;
    warnings.extend(standard::without_endpoint(&merged));
    warnings.extend(standard::despite_settings(&variables, &merged.config));
    warnings.extend(merged.config.warnings().into_iter().map(|warning| merged.told(warning).to_string()));
    Ok(Loaded { config: merged.config, entries: merged.entries, warnings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        let loaded = load(Sources::default()).expect("no mistake");
        assert_eq!(loaded.config, Config::default());
        assert!(loaded.entries.iter().all(|entry| entry.origin == Origin::Default));
    }

    #[test]
    fn defaults_written_as_toml_read_back_the_same() {
        let text = toml::to_string(&Config::default()).expect("serialises");
        assert_eq!(toml::from_str::<Config>(&text).expect("parses"), Config::default());
    }
}
