//! Records as programs give and get them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::Error;
use crate::proto::v1;
use crate::record::{Header, Offset};

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number, from 0.
    pub partition: u32,
}

impl TopicPartition {
    /// Partition number `partition` of `topic`.
    #[must_use]
    pub fn new(topic: impl Into<Arc<str>>, partition: u32) -> Self {
        TopicPartition { topic: topic.into(), partition }
    }
}

/// Where to begin reading a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// This offset, which must lie between the log start and the log end, both included.
    Offset(Offset),
    /// The oldest retained record.
    Earliest,
    /// The next record to be appended.
    Latest,
    /// The first record whose append time is at or after this time.
    Time(SystemTime),
}

impl From<Position> for v1::Position {
    fn from(position: Position) -> Self {
        use v1::position::At;
        let at = match position {
            Position::Offset(offset) => At::Offset(offset.0),
            Position::Earliest => At::Earliest(()),
            Position::Latest => At::Latest(()),
            Position::Time(time) => At::Time(time.into()),
        };
        v1::Position { at: Some(at) }
    }
}

pub(super) fn partition_position(at: &TopicPartition, position: Position) -> v1::PartitionPosition {
    v1::PartitionPosition {
        topic: at.topic.to_string(),
        partition: at.partition,
        position: Some(position.into()),
    }
}

impl From<&TopicPartition> for v1::TopicPartition {
    fn from(at: &TopicPartition) -> Self {
        v1::TopicPartition { topic: at.topic.to_string(), partition: at.partition }
    }
}

impl From<v1::TopicPartition> for TopicPartition {
    fn from(at: v1::TopicPartition) -> Self {
        TopicPartition::new(at.topic, at.partition)
    }
}

/// An offset that a group is to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetCommit {
    /// The partition.
    pub at: TopicPartition,
    /// The next record that the group is to read: the one after the last that was processed.
    pub offset: Offset,
    /// Kept with the offset, for the program. At most 4 KiB.
    pub metadata: String,
}

impl OffsetCommit {
    /// Commits `offset` without metadata.
    #[must_use]
    pub fn new(at: TopicPartition, offset: Offset) -> Self {
        OffsetCommit { at, offset, metadata: String::new() }
    }
}

impl From<OffsetCommit> for v1::OffsetCommit {
    fn from(commit: OffsetCommit) -> Self {
        v1::OffsetCommit {
            topic: commit.at.topic.to_string(),
            partition: commit.at.partition,
            offset: commit.offset.0,
            metadata: commit.metadata,
        }
    }
}

/// A record to be sent.
#[derive(Clone, Debug)]
pub struct ProducerRecord {
    pub(super) topic: Arc<str>,
    pub(super) partition: Option<u32>,
    pub(super) key: Option<Bytes>,
    pub(super) value: Option<Bytes>,
    pub(super) headers: Vec<Header>,
    pub(super) timestamp_ms: i64,
}

impl ProducerRecord {
    /// A record without key, value, headers and timestamp. A topic name in an `Arc<str>` is not copied.
    #[must_use]
    pub fn new(topic: impl Into<Arc<str>>) -> Self {
        ProducerRecord {
            topic: topic.into(),
            partition: None,
            key: None,
            value: None,
            headers: Vec::new(),
            timestamp_ms: 0,
        }
    }

    /// Names what the record is about. Records with equal keys go to the same partition, in order.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The payload. A record without one marks the deletion of its key.
    #[must_use]
    pub fn value(mut self, value: impl Into<Bytes>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// Adds a header; names may repeat. The broker takes up to 128, with names of 1 to 255 bytes.
    #[must_use]
    pub fn header(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header::new(key, value));
        self
    }

    /// Sends it to this partition, whatever its key.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// When the event happened, in milliseconds since the Unix epoch; zero for unknown.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = timestamp_ms;
        self
    }

    /// When the event happened, kept to the millisecond.
    #[must_use]
    pub fn timestamp(self, time: SystemTime) -> Self {
        self.timestamp_ms(millis_of(time))
    }

    /// Fails for headers that no broker takes.
    pub(super) fn check_headers(&self) -> Result<(), Error> {
        const COUNT_MAX: usize = 128;
        const KEY_BYTES_MAX: usize = 255;
        let count = self.headers.len();
        if count > COUNT_MAX {
            let reason = format!("the record has {count} headers; at most {COUNT_MAX} are allowed");
            return Err(Error::InvalidRecord { reason });
        }
        for (number, header) in self.headers.iter().enumerate() {
            let bytes = header.key().len();
            if bytes == 0 || bytes > KEY_BYTES_MAX {
                let reason = format!(
                    "the name of header {number} has {bytes} bytes; 1 to {KEY_BYTES_MAX} are allowed"
                );
                return Err(Error::InvalidRecord { reason });
            }
        }
        Ok(())
    }
}

/// Where an acknowledged record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordMetadata {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: u32,
    /// The record's position in the partition.
    pub offset: Offset,
    /// When the leader appended it, in milliseconds since the Unix epoch.
    pub append_time_ms: i64,
}

impl RecordMetadata {
    /// When the leader appended it.
    #[must_use]
    pub fn append_time(&self) -> SystemTime {
        time_of(self.append_time_ms)
    }
}

/// A record that was read. Key, value and headers are slices of the batch they came in and keep it in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedRecord {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: u32,
    /// The record's position in the partition.
    pub offset: Offset,
    /// When the leader appended it, in milliseconds since the Unix epoch.
    pub append_time_ms: i64,
    /// When the event happened by the producer's clock, in milliseconds since the Unix epoch; zero if it gave none.
    pub timestamp_ms: i64,
    /// What the record is about.
    pub key: Option<Bytes>,
    /// The payload; `None` marks the deletion of the key.
    pub value: Option<Bytes>,
    /// Headers in the producer's order; names may repeat.
    pub headers: Vec<Header>,
}

impl ConsumedRecord {
    /// The value of the first header named `key`.
    #[must_use]
    pub fn header(&self, key: &str) -> Option<&Bytes> {
        self.headers.iter().find(|header| header.key() == key).map(Header::value)
    }

    /// When the leader appended it.
    #[must_use]
    pub fn append_time(&self) -> SystemTime {
        time_of(self.append_time_ms)
    }

    /// When the event happened, if the producer said.
    #[must_use]
    pub fn timestamp(&self) -> Option<SystemTime> {
        (self.timestamp_ms != 0).then(|| time_of(self.timestamp_ms))
    }

    /// Its partition.
    #[must_use]
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition { topic: Arc::clone(&self.topic), partition: self.partition }
    }
}

/// The time so many milliseconds after the Unix epoch; the epoch itself if that cannot be represented.
pub(super) fn time_of(millis: i64) -> SystemTime {
    let distance = Duration::from_millis(millis.unsigned_abs());
    let time = if millis < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn millis_of(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |millis| -millis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_way_through_milliseconds() {
        for millis in [0, 1, -1, 1_700_000_000_123, -86_400_000] {
            assert_eq!(millis_of(time_of(millis)), millis);
        }
    }

    #[test]
    fn headers_without_a_name_are_refused() {
        let record = ProducerRecord::new("t").header("a", "1").header("", "2");
        assert!(matches!(record.check_headers(), Err(Error::InvalidRecord { .. })));
    }

    #[test]
    fn at_most_128_headers_are_taken() {
        let full = (0..128).fold(ProducerRecord::new("t"), |record, n| record.header(format!("h{n}"), "v"));
        assert!(full.check_headers().is_ok());
        assert!(full.header("one", "more").check_headers().is_err());
    }
}
