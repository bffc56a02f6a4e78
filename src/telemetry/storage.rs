//! The disk and what is on it.

use std::time::Duration;

use super::catalog;
use super::instruments::{Count, Counts, Distribution, Instruments, Observer, Slot, label};
use super::topics::TopicMetrics;

label! {
    /// What failed in the store.
    StorageFailure, "kind" {
        /// A read.
        Read = "read",
        /// A write, or forcing it to the disk.
        Write = "write",
        /// A checksum that does not match.
        Corrupt = "corrupt",
    }
}

/// Levels of the store.
#[derive(Clone, Copy, Debug)]
pub struct StorageLevels {
    /// Bytes on disk under the data directory.
    pub used_bytes: u64,
    /// Free bytes of its file system.
    pub available_bytes: u64,
    /// Free bytes below which writes are refused.
    pub reserve_bytes: u64,
    /// Whether writes are taken.
    pub writable: bool,
    /// Tables on disk.
    pub segments: u64,
    /// Compactions that ended since the store was opened.
    pub compactions: u64,
    /// Bytes that wait for the committer.
    pub queue_bytes: u64,
}

/// Instruments of the store.
#[derive(Debug)]
pub struct StorageMetrics {
    written: Count,
    fsync: Distribution,
    group: Distribution,
    failures: Counts<StorageFailure>,
    levels: Slot<StorageLevels>,
}

impl StorageMetrics {
    pub(super) fn new(instruments: &Instruments) -> Self {
        let levels = instruments.slot();
        instruments.level(catalog::STORAGE_USED, &levels, |levels: &StorageLevels| levels.used_bytes);
        instruments.level(catalog::STORAGE_AVAILABLE, &levels, |levels| levels.available_bytes);
        instruments.level(catalog::STORAGE_RESERVE, &levels, |levels| levels.reserve_bytes);
        instruments.level(catalog::STORAGE_WRITABLE, &levels, |levels| u64::from(levels.writable));
        instruments.level(catalog::SEGMENTS, &levels, |levels| levels.segments);
        instruments.level(catalog::COMPACTIONS, &levels, |levels| levels.compactions);
        instruments.level(catalog::STORAGE_QUEUE, &levels, |levels| levels.queue_bytes);
        StorageMetrics {
            written: instruments.count(catalog::STORAGE_WRITTEN),
            fsync: instruments.distribution(catalog::STORAGE_FSYNC),
            group: instruments.distribution(catalog::STORAGE_COMMIT_GROUP),
            failures: instruments.counts(catalog::STORAGE_ERRORS),
            levels,
        }
    }

    /// One commit carried this many writes with this many bytes.
    pub fn committed(&self, writes: usize, bytes: u64) {
        self.group.record(writes as f64, None);
        self.written.add(bytes);
    }

    /// Writes were forced to the disk, which took this long.
    pub fn synced(&self, took: Duration) {
        self.fsync.record_duration(took, None);
    }

    /// The store failed.
    pub fn failed(&self, failure: StorageFailure) {
        self.failures.add(failure, 1);
    }

    /// Retention deleted records.
    pub fn trimmed(&self, topic: &TopicMetrics, records: u64, bytes: u64) {
        topic.trimmed(records, bytes);
    }

    pub(super) fn observe(&self, observer: Observer<StorageLevels>) {
        self.levels.set(observer);
    }
}
