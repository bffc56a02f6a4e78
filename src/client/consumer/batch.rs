//! Batches as they come from the broker and as programs get them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use opentelemetry::trace::SpanContext;

use crate::client::message::time_of;
use crate::client::telemetry::parse_traceparent;
use crate::client::{ConsumedRecord, Error, Offset, TopicPartition};
use crate::proto::v1;
use crate::record::{Records, decode, decompress_batch, for_each_traceparent};

/// Contexts of a batch that are worth knowing: as many as a span keeps links.
const CONTEXTS_MAX: usize = 128;

/// A batch as it was received.
#[derive(Debug)]
pub(in crate::client) struct Received {
    stored: v1::StoredBatch,
    /// The first offset that is wanted.
    from: Offset,
    high_watermark: Offset,
    log_start: Offset,
}

impl Received {
    pub(in crate::client) fn new(
        stored: v1::StoredBatch,
        from: Offset,
        high_watermark: u64,
        log_start: u64,
    ) -> Received {
        Received { stored, from, high_watermark: Offset(high_watermark), log_start: Offset(log_start) }
    }

    /// What it costs of the credit.
    pub(in crate::client) fn bytes(&self) -> u64 {
        self.stored.batch.len() as u64
    }

    /// Number of its records that are wanted.
    pub(in crate::client) fn records(&self) -> u32 {
        let skipped = self.from.saturating_since(Offset(self.stored.base_offset));
        self.stored.record_count.saturating_sub(u32::try_from(skipped).unwrap_or(u32::MAX))
    }

    /// Decompresses the batch, checks it, and skips what is not wanted.
    pub(in crate::client) fn open(
        self,
        at: &TopicPartition,
        uncompressed_bytes_max: usize,
    ) -> Result<ConsumedBatch, Error> {
        let bad = |source| Error::Batch { topic: at.topic.to_string(), partition: at.partition, source };
        let stored = self.stored;
        let plain = decompress_batch(&stored.batch, uncompressed_bytes_max).map_err(bad)?;
        let mut records = decode(&plain, uncompressed_bytes_max).map_err(bad)?;
        if records.len() != stored.record_count as usize {
            let what = format!(
                "the batch at offset {} of topic {}, partition {} has {} records instead of {}",
                stored.base_offset,
                at.topic,
                at.partition,
                records.len(),
                stored.record_count
            );
            return Err(Error::InvalidResponse { what });
        }
        let base = Offset(stored.base_offset);
        let end = base.saturating_add(u64::from(stored.record_count));
        let first = self.from.max(base).min(end);
        for _ in base.0..first.0 {
            records.next();
        }
        Ok(ConsumedBatch {
            topic: Arc::clone(&at.topic),
            partition: at.partition,
            next: first,
            end,
            append_time_ms: stored.append_time_ms,
            high_watermark: self.high_watermark,
            log_start: self.log_start,
            stored_bytes: stored.batch.len(),
            skipped: first.saturating_since(base),
            plain,
            records,
        })
    }
}

/// Records of one partition that are stored together. Iterating decodes them one by one, without copying.
#[derive(Clone, Debug)]
pub struct ConsumedBatch {
    topic: Arc<str>,
    partition: u32,
    /// Offset of the next record.
    next: Offset,
    end: Offset,
    append_time_ms: i64,
    high_watermark: Offset,
    log_start: Offset,
    stored_bytes: usize,
    /// Records before the first one that was wanted.
    skipped: u64,
    plain: Bytes,
    records: Records,
}

impl ConsumedBatch {
    /// Topic name.
    #[must_use]
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// Partition number.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Its partition.
    #[must_use]
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition { topic: Arc::clone(&self.topic), partition: self.partition }
    }

    /// Offset of the first record that is left; that after the last one if none is.
    #[must_use]
    pub fn base_offset(&self) -> Offset {
        self.next
    }

    /// Offset after the last record.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.end
    }

    /// Number of records that are left.
    #[must_use]
    pub fn record_count(&self) -> u32 {
        u32::try_from(self.records.len()).unwrap_or(u32::MAX)
    }

    /// Whether no record is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.len() == 0
    }

    /// When the leader appended it, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn append_time_ms(&self) -> i64 {
        self.append_time_ms
    }

    /// When the leader appended it.
    #[must_use]
    pub fn append_time(&self) -> SystemTime {
        time_of(self.append_time_ms)
    }

    /// Offset after the last committed record of the partition when this batch was sent.
    #[must_use]
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Offset of the oldest retained record of the partition when this batch was sent.
    #[must_use]
    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    /// Size as stored and sent, in bytes.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.stored_bytes
    }

    /// Size after decompression, in bytes.
    #[must_use]
    pub fn uncompressed_bytes(&self) -> usize {
        self.plain.len()
    }

    /// The records that are left.
    #[must_use]
    pub fn records(&self) -> ConsumedRecords {
        ConsumedRecords { batch: self.clone() }
    }

    pub(in crate::client) fn next_record(&mut self) -> Option<ConsumedRecord> {
        let record = self.records.next()?;
        let offset = self.next;
        self.next = offset.saturating_add(1);
        Some(ConsumedRecord {
            topic: Arc::clone(&self.topic),
            partition: self.partition,
            offset,
            append_time_ms: self.append_time_ms,
            timestamp_ms: record.timestamp_ms,
            key: record.key,
            value: record.value,
            headers: record.headers,
        })
    }

    /// Contexts of the spans in which the wanted records were created, as far as they are sampled.
    pub(in crate::client) fn sampled_contexts(&self) -> Vec<SpanContext> {
        let mut contexts = Vec::new();
        for_each_traceparent(&self.plain, |record, value| {
            if u64::from(record) >= self.skipped {
                contexts.extend(parse_traceparent(value));
            }
            if contexts.len() < CONTEXTS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        contexts
    }
}

impl IntoIterator for ConsumedBatch {
    type Item = ConsumedRecord;
    type IntoIter = ConsumedRecords;

    fn into_iter(self) -> ConsumedRecords {
        ConsumedRecords { batch: self }
    }
}

/// The records of a [`ConsumedBatch`].
#[derive(Clone, Debug)]
pub struct ConsumedRecords {
    batch: ConsumedBatch,
}

impl Iterator for ConsumedRecords {
    type Item = ConsumedRecord;

    fn next(&mut self) -> Option<ConsumedRecord> {
        self.batch.next_record()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.batch.records.size_hint()
    }
}

impl ExactSizeIterator for ConsumedRecords {}
