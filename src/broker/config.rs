//! Settings of the broker itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::metadata::Settings;
use crate::record::CodecSet;

/// The most that `batch_bytes_max` may be on any broker at any time: no stored batch is larger, whatever is set today.
pub(super) const BATCH_BYTES_LIMIT: u64 = 1 << 30;

/// Limits that protect the broker, and what topics get that do not say otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
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
    /// Every setting that is out of range, by name, with what is wrong.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut within = |name, value: u64, least: u64, most: u64| {
            if value < least || value > most {
                found.push((name, format!("{value} is not between {least} and {most}")));
            }
        };
        within("topics_max", self.topics_max.into(), 1, 1_000_000);
        within("partitions_max", self.partitions_max.into(), 1, 1_000_000);
        within("batch_bytes_max", self.batch_bytes_max, 1 << 10, BATCH_BYTES_LIMIT);
        within("fetch_bytes_max", self.fetch_bytes_max, 1 << 10, 1 << 30);
        within("delivery_bytes", self.delivery_bytes, 1 << 10, 1 << 30);
        within("default_partitions", self.default_partitions.into(), 1, self.partitions_max.into());
        within("default_batch_bytes_max", self.default_batch_bytes_max, 1, self.batch_bytes_max);
        within("default_record_bytes_max", self.default_record_bytes_max, 1, self.default_batch_bytes_max);
        if !self.default_retention.is_zero() && self.default_retention < Duration::from_secs(1) {
            found.push(("default_retention", "must be 0s or at least 1s".to_owned()));
        }
        found
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
