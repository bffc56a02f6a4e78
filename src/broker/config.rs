//! Settings of the broker itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::metadata::Settings;
use crate::record::CodecSet;

/// Limits that protect the broker, and what topics get that do not say otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address under which clients reach the gRPC port, `host:port`. Empty: this machine's name and the port that is
    /// listened on.
    pub advertised_grpc: String,
    /// Address under which the HTTP port is reached, `host:port`. Empty: as for gRPC.
    pub advertised_http: String,
    /// Threads that serve requests. 0: half the cores, at least 1: the store's writer, its flushers and the clients on
    /// the same machine want cores too.
    pub worker_threads: usize,
    /// How long requests under way may take to finish when the broker stops.
    #[serde(with = "crate::units::duration")]
    pub drain_timeout: Duration,
    /// Most topics.
    pub topics_max: u32,
    /// Most partitions, over all topics.
    pub partitions_max: u32,
    /// Largest batch that any topic may allow, before compression.
    #[serde(with = "crate::units::size")]
    pub batch_bytes_max: u64,
    /// Most bytes that a fetch may ask for.
    #[serde(with = "crate::units::size")]
    pub fetch_bytes_max: u64,
    /// Bytes of batches that one delivery of a subscription holds at most, beyond the first batch.
    #[serde(with = "crate::units::size")]
    pub delivery_bytes: u64,
    /// Partitions of a topic that is created without saying how many.
    pub default_partitions: u32,
    /// How long records are kept in a topic that does not say; `0s` is without limit.
    #[serde(with = "crate::units::duration")]
    pub default_retention: Duration,
    /// How many bytes a partition keeps in a topic that does not say; 0 is without limit.
    #[serde(with = "crate::units::size")]
    pub default_retention_bytes: u64,
    /// Largest record in a topic that does not say.
    #[serde(with = "crate::units::size")]
    pub default_record_bytes_max: u64,
    /// Largest batch in a topic that does not say, before compression.
    #[serde(with = "crate::units::size")]
    pub default_batch_bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            advertised_grpc: String::new(),
            advertised_http: String::new(),
            worker_threads: 0,
            drain_timeout: Duration::from_secs(4),
            topics_max: 10_000,
            partitions_max: 10_000,
            batch_bytes_max: 16 << 20,
            fetch_bytes_max: 64 << 20,
            delivery_bytes: 1 << 20,
            default_partitions: 1,
            default_retention: Duration::from_secs(7 * 24 * 3600),
            default_retention_bytes: 0,
            default_record_bytes_max: 1 << 20,
            default_batch_bytes_max: 4 << 20,
        }
    }
}

impl Config {
    /// Every mistake in these settings, as sentences that name the field. Empty when all is well.
    pub fn mistakes(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut within = |name: &str, value: u64, least: u64, most: u64| {
            if value < least || value > most {
                found.push(format!("broker.{name} is {value}, but must be from {least} to {most}"));
            }
        };
        within("worker_threads", self.worker_threads as u64, 0, 1_024);
        within("topics_max", self.topics_max.into(), 1, 1_000_000);
        within("partitions_max", self.partitions_max.into(), 1, 1_000_000);
        within("batch_bytes_max", self.batch_bytes_max, 1 << 10, 1 << 30);
        within("fetch_bytes_max", self.fetch_bytes_max, 1 << 10, 1 << 30);
        within("delivery_bytes", self.delivery_bytes, 1 << 10, 1 << 30);
        within("default_partitions", self.default_partitions.into(), 1, self.partitions_max.into());
        within("default_batch_bytes_max", self.default_batch_bytes_max, 1, self.batch_bytes_max);
        within("default_record_bytes_max", self.default_record_bytes_max, 1, self.default_batch_bytes_max);
        if !self.default_retention.is_zero() && self.default_retention < Duration::from_secs(1) {
            found.push("broker.default_retention must be 0s or at least 1s".to_owned());
        }
        found
    }

    /// Threads that serve requests on this machine.
    pub fn effective_worker_threads(&self) -> usize {
        match self.worker_threads {
            0 => std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1)),
            threads => threads,
        }
    }

    /// The settings of a topic that says nothing.
    pub(super) fn topic_defaults(&self) -> Settings {
        Settings {
            retention: Some(self.default_retention).filter(|retention| !retention.is_zero()),
            retention_bytes: Some(self.default_retention_bytes).filter(|bytes| *bytes > 0),
            record_bytes_max: u32::try_from(self.default_record_bytes_max).unwrap_or(u32::MAX),
            batch_bytes_max: u32::try_from(self.default_batch_bytes_max).unwrap_or(u32::MAX),
            codecs: CodecSet::ALL,
        }
    }
}
