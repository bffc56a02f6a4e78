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
    /// Every `sync_interval`, and whenever 32 MiB wait for it. An acknowledged write survives the end of the process, and a
    /// power failure may cost what was written since the last finished sync began.
    Interval,
}

impl Sync {
    /// As it is configured.
    pub fn name(self) -> &'static str {
        match self {
            Sync::Always => "always",
            Sync::Interval => "interval",
        }
    }
}

/// Where and how data is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory of all data of this broker. Created when missing; used by one process at a time.
    pub data_dir: PathBuf,
    /// When written data is forced to the disk.
    pub sync: Sync,
    /// Longest time written data stays unsynced: the period of `sync = "interval"`, and the bound for lazy rows under
    /// `sync = "always"`.
    #[serde(with = "crate::units::duration")]
    pub sync_interval: Duration,
    /// Free disk space that producers may not use, in bytes. It keeps room for journals, tables being written and the
    /// deletes that free space again. Writes of records stop while less than this is free.
    #[serde(with = "crate::units::size")]
    pub reserve_bytes: u64,
    /// Cache of table blocks, in bytes. The tail of a log is served from memory anyway; this helps consumers that lag.
    #[serde(with = "crate::units::size")]
    pub cache_bytes: u64,
    /// Rows in memory that are not yet in tables, over all groups, in bytes. Above it writers wait. Larger values make
    /// larger tables when many partitions are written at once.
    #[serde(with = "crate::units::size")]
    pub write_buffer_bytes: u64,
    /// Rows of one group in memory before they become a table, in bytes; `None` stands for what suits `sync`, see
    /// [`Config::table_bytes`].
    #[serde(with = "crate::units::size_or_auto")]
    pub table_bytes: Option<u64>,
    /// Journal files on disk, in bytes; at least 64 MiB. All of it is replayed on start after a crash, at 1 to 2 GB/s. Much
    /// less than twice `write_buffer_bytes` makes small tables when many partitions are written at once: a journal goes
    /// only when everything in it is in tables.
    #[serde(with = "crate::units::size")]
    pub journal_bytes: u64,
    /// Batches that wait for the writer, in bytes. When full, `reserve` waits.
    #[serde(with = "crate::units::size")]
    pub commit_queue_bytes: u64,
    /// Most bytes that are written before one sync. Bounds how long a small write waits behind large ones.
    #[serde(with = "crate::units::size")]
    pub round_bytes: u64,
    /// Threads that turn memory into tables, and merge those. One writes as fast as most disks, and with more the
    /// engine has its first thread wait for flushes alone: while the others are busy it turns in a circle and takes a
    /// whole core.
    pub flush_threads: usize,
}

const MIB: u64 = 1024 * 1024;

impl Config {
    /// The defaults with another data directory.
    pub fn in_dir(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), ..Self::default() }
    }

    /// Rows of one group in memory before they become a table, in bytes. By itself 8 MiB with `sync = "always"`, where
    /// each sync waits for the table that is written at the time, and so do all whom it is to acknowledge; 32 MiB with
    /// `sync = "interval"`, where nobody waits for a sync and larger tables cost less.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        self.table_bytes.unwrap_or(match self.sync {
            Sync::Always => 8 * MIB,
            Sync::Interval => 32 * MIB,
        })
    }

    /// Every setting that is out of range, by name, with what is wrong.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut at_least = |name, value: u64, least: u64| {
            if value < least {
                found.push((name, format!("{value} is less than {least}")));
            }
        };
        at_least("journal_bytes", self.journal_bytes, 64 * MIB);
        at_least("table_bytes", self.table_bytes(), MIB);
        at_least("write_buffer_bytes", self.write_buffer_bytes, 4 * MIB);
        at_least("commit_queue_bytes", self.commit_queue_bytes, MIB);
        at_least("round_bytes", self.round_bytes, 64 * 1024);
        at_least("flush_threads", self.flush_threads as u64, 1);
        if self.data_dir.as_os_str().is_empty() {
            found.push(("data_dir", "must not be empty".to_owned()));
        }
        if self.sync_interval.is_zero() {
            found.push(("sync_interval", "must be longer than zero".to_owned()));
        }
        found
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            sync: Sync::Always,
            sync_interval: Duration::from_secs(1),
            reserve_bytes: 512 * MIB,
            cache_bytes: 32 * MIB,
            write_buffer_bytes: 320 * MIB,
            table_bytes: None,
            journal_bytes: 640 * MIB,
            commit_queue_bytes: 64 * MIB,
            round_bytes: 16 * MIB,
            flush_threads: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_in_range() {
        assert_eq!(Config::default().problems(), []);
    }

    #[test]
    fn names_every_setting_that_is_too_small() {
        let config =
            Config { journal_bytes: 1, round_bytes: 1, sync_interval: Duration::ZERO, ..Config::default() };

        let names: Vec<_> = config.problems().into_iter().map(|(name, _)| name).collect();

        assert_eq!(names, ["journal_bytes", "round_bytes", "sync_interval"]);
    }

    #[test]
    fn tables_are_small_where_syncs_are_waited_for_unless_told_otherwise() {
        let table_bytes = |text: &str| toml::from_str::<Config>(text).expect("settings").table_bytes();
        assert_eq!(table_bytes(""), 8 * MIB);
        assert_eq!(table_bytes("sync = \"interval\""), 32 * MIB);
        assert_eq!(table_bytes("table_bytes = \"16MiB\""), 16 * MIB);
        assert_eq!(table_bytes("sync = \"interval\"\ntable_bytes = \"16MiB\""), 16 * MIB);
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
