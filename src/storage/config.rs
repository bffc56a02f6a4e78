//! Settings of the storage module.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When written data is forced to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sync {
    /// Before a write is acknowledged. Survives a power failure.
    #[default]
    Always,
    /// Every `sync_interval`. An acknowledged write survives the end of the process, and a power failure may cost
    /// what was written since the last sync.
    Interval,
}

/// Where and how data is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory of all data of this broker. Created when missing; used by one process at a time.
    pub data_dir: PathBuf,
    /// When written data is forced to the disk.
    pub sync: Sync,
    /// Longest time written data stays unsynced, in milliseconds: the period of `sync = "interval"`, and the bound for
    /// lazy rows under `sync = "always"`.
    #[serde(with = "millis", rename = "sync_interval_ms")]
    pub sync_interval: Duration,
    /// Free disk space that producers may not use, in bytes. It keeps room for journals, tables being written and the
    /// deletes that free space again. Writes of records stop while less than this is free.
    pub reserve_bytes: u64,
    /// Cache of table blocks, in bytes. The tail of a log is served from memory anyway; this helps consumers that lag.
    pub cache_bytes: u64,
    /// Rows in memory that are not yet in tables, over all groups, in bytes. Above it writers wait. Larger values make
    /// larger tables when many partitions are written at once.
    pub write_buffer_bytes: u64,
    /// Rows of one group in memory before they become a table, in bytes.
    pub table_bytes: u64,
    /// Journal files on disk, in bytes; at least 64 MiB. All of it is replayed on start after a crash, at 1 to 2 GB/s.
    pub journal_bytes: u64,
    /// Batches that wait for the writer, in bytes. When full, `reserve` waits.
    pub commit_queue_bytes: u64,
    /// Most bytes that are written before one sync. Bounds how long a small write waits behind large ones.
    pub round_bytes: u64,
    /// Threads that turn memory into tables. 0 means one per core, at most 4.
    pub flush_threads: usize,
}

const MIB: u64 = 1024 * 1024;

impl Config {
    /// The defaults with another data directory.
    pub fn in_dir(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), ..Self::default() }
    }

    /// Every mistake in these settings, as sentences that name the field. Empty when all is well.
    pub fn mistakes(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut at_least = |name: &str, value: u64, least: u64| {
            if value < least {
                found.push(format!("storage.{name} is {value}, but must be at least {least}"));
            }
        };
        at_least("journal_bytes", self.journal_bytes, 64 * MIB);
        at_least("table_bytes", self.table_bytes, MIB);
        at_least("write_buffer_bytes", self.write_buffer_bytes, 4 * MIB);
        at_least("commit_queue_bytes", self.commit_queue_bytes, MIB);
        at_least("round_bytes", self.round_bytes, 64 * 1024);
        if self.data_dir.as_os_str().is_empty() {
            found.push("storage.data_dir is empty".to_owned());
        }
        if self.sync_interval.is_zero() {
            found.push("storage.sync_interval_ms is 0, but must be at least 1".to_owned());
        }
        found
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            sync: Sync::Always,
            sync_interval: Duration::from_millis(200),
            reserve_bytes: 512 * MIB,
            cache_bytes: 32 * MIB,
            write_buffer_bytes: 256 * MIB,
            table_bytes: 32 * MIB,
            journal_bytes: 128 * MIB,
            commit_queue_bytes: 64 * MIB,
            round_bytes: 16 * MIB,
            flush_threads: 0,
        }
    }
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Ok(Duration::from_millis(u64::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_have_no_mistakes() {
        assert_eq!(Config::default().mistakes(), Vec::<String>::new());
    }

    #[test]
    fn names_every_setting_that_is_too_small() {
        let config =
            Config { journal_bytes: 1, round_bytes: 1, sync_interval: Duration::ZERO, ..Config::default() };

        let mistakes = config.mistakes();

        assert_eq!(mistakes.len(), 3);
        assert!(mistakes[0].contains("storage.journal_bytes"));
        assert!(mistakes[1].contains("storage.round_bytes"));
        assert!(mistakes[2].contains("storage.sync_interval_ms"));
    }

    #[test]
    fn rejects_an_unknown_setting() {
        assert!(toml::from_str::<Config>("fsync = true").is_err());
        assert_eq!(
            toml::from_str::<Config>("sync = \"interval\"").map(|c| c.sync).ok(),
            Some(Sync::Interval)
        );
    }
}
