//! Reading batches: once with a long poll, and the parts that a subscription shares with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::config::BATCH_BYTES_LIMIT;
use super::produce::in_partition;
use super::{Broker, Error, Room, Share};
use crate::clock::Timestamp;
use crate::cluster::partition_ref::PartitionRef;
use crate::cluster::routing::Route;
use crate::partition::signal::Signal;
use crate::partition::{self, StoredBatch};
use crate::record::{self, Codec, CodecSet, Offset, SpanLink, decompress_batch};
use crate::telemetry::{FetchPhases, Metrics, RequestTrace, TraceIds};

/// Where to begin reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// At this offset.
    Offset(Offset),
    /// At the oldest retained record.
    Earliest,
    /// At the next record to be appended.
    Latest,
    /// At the first record whose append time is at or after this time.
    Time(Timestamp),
}

/// A partition and where to begin reading it.
#[derive(Clone, Debug)]
pub struct FetchPartition {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: u32,
    /// Where to begin.
    pub position: Position,
}

/// One read of several partitions.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// What to read.
    pub partitions: Vec<FetchPartition>,
    /// Answer as soon as so many bytes are there.
    pub min_bytes: u32,
    /// Answer with no more than about so many bytes.
    pub max_bytes: u32,
    /// Answer after this time at the latest.
    pub max_wait: Duration,
    /// Codecs that the consumer knows.
    pub accepted: CodecSet,
    /// The call's span.
    pub trace: RequestTrace,
    /// Room for what is read, until the client has it.
    pub room: Room,
}

/// A batch for a consumer.
#[derive(Clone, Debug)]
pub struct FetchedBatch {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Number of records.
    pub record_count: u32,
    /// When it was appended.
    pub append_time: Timestamp,
    /// The span in which the broker got the batch, if that was sampled.
    pub span: Option<SpanLink>,
    /// The batch, in a codec that the consumer knows.
    pub batch: Bytes,
}

/// What was read of one partition.
#[derive(Debug)]
pub struct Fetched {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: u32,
    /// Offset of the oldest retained record.
    pub log_start: Offset,
    /// Offset after the last committed record.
    pub high_watermark: Offset,
    /// Where to read on.
    pub next_offset: Offset,
    /// The batches.
    pub batches: Vec<FetchedBatch>,
    /// Why the partition could not be read.
    pub error: Option<Error>,
}

impl Fetched {
    pub(super) fn failed(topic: &str, partition: u32, error: Error) -> Self {
        // Whoever asked for an offset that is not there can go on from one that is.
        let (log_start, high_watermark) = match &error {
            Error::Partition {
                source: partition::Error::OffsetOutOfRange { log_start, high_watermark, .. },
                ..
            } => (*log_start, *high_watermark),
            _ => (Offset(0), Offset(0)),
        };
        Fetched {
            topic: topic.into(),
            partition,
            log_start,
            high_watermark,
            next_offset: Offset(0),
            batches: Vec::new(),
            error: Some(error),
        }
    }

    /// Leaves out the batches behind the first `most` records; the first batch stays in any case.
    pub(super) fn keep_records(&mut self, most: u64) {
        let mut records = 0;
        let mut fits = |batch: &&FetchedBatch| {
            records += u64::from(batch.record_count);
            records <= most
        };
        let kept = self.batches.iter().take_while(|batch| fits(batch)).count().max(1);
        if kept < self.batches.len() {
            self.batches.truncate(kept);
            if let Some(last) = self.batches.last() {
                self.next_offset = last.base_offset.saturating_add(last.record_count.into());
            }
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.batches.iter().map(|batch| batch.batch.len() as u64).sum()
    }

    fn records(&self) -> u64 {
        self.batches.iter().map(|batch| u64::from(batch.record_count)).sum()
    }
}

/// Times an answer with batches from the end of its reading until the transport has it. If it is dropped before, the
/// client has gone, and nothing is recorded.
#[derive(Debug)]
pub struct Responding {
    metrics: Metrics,
    wait: Duration,
    read: Duration,
    since: Instant,
    trace: Option<TraceIds>,
}

impl Responding {
    /// The answer is encoded, and the transport has it.
    pub fn handed_over(self) {
        let phases = FetchPhases { wait: self.wait, read: self.read, respond: self.since.elapsed() };
        self.metrics.consume.completed(&phases, self.trace);
    }
}

/// A partition that is being read, and where.
pub(super) struct Cursor {
    pub(super) route: Arc<Route>,
    pub(super) number: u32,
    pub(super) partition: PartitionRef,
    pub(super) next: Offset,
}

impl Cursor {
    /// Whether this broker knows of something to read.
    fn has_more(&self) -> bool {
        self.next < self.partition.bounds().high_watermark
    }
}

impl Broker {
    /// Reads from several partitions; waits until there is enough or `max_wait` is over. If there are batches in the
    /// answer, what times its way to the client comes with it, and its share of the room.
    ///
    /// What there is to read waits for room, if need be longer than `max_wait`. Whoever waits for something to read holds
    /// none.
    ///
    /// # Errors
    /// The broker is not ready. What is wrong with one partition is said in its [`Fetched::error`].
    pub async fn fetch(&self, request: Fetch) -> Result<(Vec<Fetched>, Option<(Responding, Share)>), Error> {
        self.running()?;
        let started = Instant::now();
        let mut cursors = Vec::with_capacity(request.partitions.len());
        for wanted in &request.partitions {
            cursors.push(self.cursor(wanted).await);
        }
        let signal = Signal::new();
        for (slot, cursor) in cursors.iter().enumerate() {
            if let Ok(cursor) = cursor {
                cursor.partition.listen(&signal, slot);
            }
        }
        let max_bytes = u64::from(request.max_bytes).min(self.0.config.fetch_bytes_max);
        // The last batch of an answer may exceed what is left of `max_bytes`.
        let batch_bytes_max =
            cursors.iter().flatten().map(|cursor| cursor.route.limits.batch_bytes_max).max();
        let answer_bytes_max = max_bytes.saturating_add(batch_bytes_max.unwrap_or(0).into());
        let deadline = tokio::time::Instant::now() + request.max_wait;
        let mut found = false;
        loop {
            found |= cursors.iter().flatten().any(Cursor::has_more);
            let share = match found {
                true => Some(request.room.clone().take(answer_bytes_max).await),
                false => None,
            };
            let read_from = Instant::now();
            let mut fetched = Vec::with_capacity(cursors.len());
            let mut bytes = 0;
            for (wanted, cursor) in request.partitions.iter().zip(&cursors) {
                let left = max_bytes.saturating_sub(bytes);
                let one = match cursor {
                    Ok(cursor) => self.read_or_gone(cursor, left, request.accepted).await,
                    Err(error) => Fetched::failed(&wanted.topic, wanted.partition, error.clone()),
                };
                bytes += one.bytes();
                fetched.push(one);
            }
            if share.is_none() && bytes > 0 {
                // It has come just now.
                found = true;
                continue;
            }
            // What did not fit is there already, so waiting would not make the answer larger.
            let settled = |one: &Fetched| one.error.is_some() || one.next_offset < one.high_watermark;
            let enough = bytes >= u64::from(request.min_bytes) || fetched.iter().any(settled);
            let over = tokio::time::Instant::now() >= deadline;
            if enough || over {
                self.count_deliveries(&cursors, &fetched);
                let answer = share.filter(|_| bytes > 0).map(|mut share| {
                    share.keep(bytes);
                    (self.responding(started, read_from, request.trace.ids()), share)
                });
                return Ok((fetched, answer));
            }
            // What is too little is read anew when there is more.
            drop((fetched, share));
            found = false;
            // Woken by news or by time, look again either way.
            let waiting = self.0.levels.waiting();
            let _ = tokio::time::timeout_at(deadline, signal.wait()).await;
            drop(waiting);
        }
    }

    /// An answer whose reading is over now.
    pub(super) fn responding(
        &self,
        asked: Instant,
        read_from: Instant,
        trace: Option<TraceIds>,
    ) -> Responding {
        let since = Instant::now();
        Responding {
            metrics: self.0.metrics.clone(),
            wait: read_from.saturating_duration_since(asked),
            read: since.saturating_duration_since(read_from),
            since,
            trace,
        }
    }

    fn count_deliveries(&self, cursors: &[Result<Cursor, Error>], fetched: &[Fetched]) {
        for (cursor, fetched) in cursors.iter().zip(fetched) {
            if let Ok(cursor) = cursor {
                self.count_delivery(cursor, fetched);
            }
        }
    }

    pub(super) fn count_delivery(&self, cursor: &Cursor, fetched: &Fetched) {
        self.0.metrics.consume.delivered(&cursor.route.metrics, fetched.records(), fetched.bytes());
    }

    /// Resolves where to begin.
    pub(super) async fn cursor(&self, wanted: &FetchPartition) -> Result<Cursor, Error> {
        let route = self.route(&wanted.topic)?;
        let partition = self.partition(&route, wanted.partition)?.clone();
        let fail = |source| in_partition(&wanted.topic, wanted.partition, source);
        let bounds = match wanted.position {
            Position::Offset(offset) => partition.bounds_for(offset).await.map_err(fail)?,
            // The leader's word counts: what was acknowledged must not be passed over.
            Position::Earliest | Position::Latest => partition.fresh_bounds().await.map_err(fail)?,
            Position::Time(_) => partition.bounds(),
        };
        let next = match wanted.position {
            Position::Earliest => bounds.log_start,
            Position::Latest => bounds.high_watermark,
            Position::Time(time) => partition.offset_at(time).await.map_err(fail)?,
            Position::Offset(offset) if offset < bounds.log_start || offset > bounds.high_watermark => {
                return Err(fail(partition::Error::OffsetOutOfRange {
                    offset,
                    log_start: bounds.log_start,
                    high_watermark: bounds.high_watermark,
                }));
            }
            Position::Offset(offset) => offset,
        };
        Ok(Cursor { route, number: wanted.partition, partition, next })
    }

    /// As [`Broker::read`]; a partition that is gone and has nothing more is an error.
    async fn read_or_gone(&self, cursor: &Cursor, max_bytes: u64, accepted: CodecSet) -> Fetched {
        let mut fetched = self.read(cursor, max_bytes, accepted).await;
        if fetched.error.is_none() && fetched.batches.is_empty() && cursor.partition.is_closed() {
            fetched.error = Some(in_partition(&fetched.topic, cursor.number, partition::Error::Stopped));
        }
        fetched
    }

    /// Reads what is there now, at most about `max_bytes`; nothing if that is zero.
    pub(super) async fn read(&self, cursor: &Cursor, max_bytes: u64, accepted: CodecSet) -> Fetched {
        let bounds = cursor.partition.bounds();
        let mut fetched = Fetched {
            topic: cursor.route.topic.name.clone(),
            partition: cursor.number,
            log_start: bounds.log_start,
            high_watermark: bounds.high_watermark,
            next_offset: cursor.next,
            batches: Vec::new(),
            error: None,
        };
        if max_bytes == 0 {
            return fetched;
        }
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let result = match cursor.partition.read(cursor.next, max_bytes).await {
            Ok(stored) => transcode(stored, accepted, max_bytes).await,
            Err(error) => Err(Unread::Partition(error)),
        };
        match result {
            Ok(batches) => {
                if let Some(last) = batches.last() {
                    fetched.next_offset = Offset(last.base_offset.0 + u64::from(last.record_count));
                }
                fetched.batches = batches;
            }
            Err(unread) => fetched.error = Some(unread.of(&fetched.topic, cursor.number)),
        }
        fetched
    }
}

/// Why nothing can be delivered.
enum Unread {
    Partition(partition::Error),
    /// The bytes are as the producer sent them, and are no batch.
    Batch {
        offset: Offset,
        end: Offset,
        source: record::Error,
    },
}

impl Unread {
    fn of(self, topic: &str, partition: u32) -> Error {
        match self {
            Unread::Partition(source) => in_partition(topic, partition, source),
            Unread::Batch { offset, end, source } => {
                Error::UnreadableBatch { topic: topic.to_owned(), partition, offset, end, source }
            }
        }
    }
}

/// Decompresses the batches whose codec the consumer does not know. They were read by their size before that, so only
/// as many are given as fit `max_bytes` after it; at least one.
async fn transcode(
    stored: Vec<StoredBatch>,
    accepted: CodecSet,
    max_bytes: usize,
) -> Result<Vec<FetchedBatch>, Unread> {
    let served = |stored: StoredBatch| FetchedBatch {
        base_offset: stored.base,
        record_count: stored.records,
        append_time: stored.append_time,
        span: stored.span,
        batch: stored.batch,
    };
    let known = move |codec: Codec| codec == Codec::None || accepted.contains(codec);
    if stored.iter().all(|stored| known(stored.codec)) {
        return Ok(stored.into_iter().map(served).collect());
    }
    let work = move || {
        let mut batches = Vec::with_capacity(stored.len());
        let mut bytes = 0;
        for mut stored in stored {
            if !known(stored.codec) {
                // The topic may have allowed larger batches when this one came than it does now.
                match decompress_batch(&stored.batch, BATCH_BYTES_LIMIT as usize) {
                    Ok(plain) => stored.batch = plain,
                    // What comes before is served; the next read begins here and reports it.
                    Err(_) if !batches.is_empty() => return Ok(batches),
                    Err(source) => {
                        let (offset, end) = (stored.base, stored.end());
                        return Err(Unread::Batch { offset, end, source });
                    }
                }
            }
            bytes += stored.batch.len();
            if bytes > max_bytes && !batches.is_empty() {
                return Ok(batches);
            }
            batches.push(served(stored));
        }
        Ok(batches)
    };
    let stopped = Err(Unread::Partition(partition::Error::Stopped));
    tokio::task::spawn_blocking(work).await.unwrap_or(stopped)
}
