//! A partition: a log of batches that one Raft group agrees on.
//!
//! | file | idea |
//! |---|---|
//! | [`appender`] | the one writer: gathers batches into log entries |
//! | [`machine`], [`producers`] | pure state: offsets, duplicates, log start |
//! | [`replica`] | the pure state as a state machine of the group |
//! | [`view`], [`signal`] | what readers see, and how they are woken |
//! | [`index`] | where batches lie |
//! | [`reader`] | batches from memory or from the store |
//! | [`retention`] | what is old or too much is trimmed |
//!
//! Owner: the reconciler of `cluster` opens and closes partitions. One task per partition, the appender, writes.
//!
//! Invariants: the Raft log is the record log, so a batch is written once. An acknowledged batch is applied. Offsets are
//! dense. The log start never moves back. Readers see only what is committed.

mod appender;
pub mod index;
pub mod machine;
pub mod producers;
mod reader;
mod replica;
pub mod retention;
pub mod signal;
pub mod view;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot};

use appender::{Appender, QUEUE_BATCHES, Submission, UnderWay};
use reader::Reader;
use replica::{Applied, Replica};
use view::{Bounds, TailBudget, View};

use crate::clock::{Clock, Timestamp};
use crate::raft::{self, Group, NodeId};
use crate::record::command::Command;
use crate::record::{FrameHeader, Offset};
use crate::storage::{self, CommandBuf, GroupId, Log, Store};
use crate::task::{Criticality, Tasks};
use crate::telemetry::{Metrics, StorageFailure, TopicMetrics};

pub use reader::{Origin, StoredBatch};

/// Settings of partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bytes of batches, over all partitions, that may wait to be committed. A full buffer makes producers wait.
    #[serde(with = "crate::units::size")]
    pub buffer_bytes: u64,
    /// How long a batch waits for room in the buffer before it is refused with `BUSY`.
    #[serde(with = "crate::units::duration")]
    pub admit_timeout: Duration,
    /// Bytes of batches after which a log entry is closed and the next one begun. A larger batch has an entry of its own.
    #[serde(with = "crate::units::size")]
    pub entry_bytes: u64,
    /// Log entries that may be under way at once in the broker before each partition is left with one, in which more
    /// batches gather.
    pub entries_in_flight: usize,
    /// Memory for the newest batches of all partitions, which serves consumers that keep up, in bytes.
    #[serde(with = "crate::units::size")]
    pub tail_bytes: u64,
    /// The same for each partition.
    #[serde(with = "crate::units::size")]
    pub partition_tail_bytes: u64,
    /// How often retention looks for what is too old or too much.
    #[serde(with = "crate::units::duration")]
    pub retention_interval: Duration,
    /// How long a broker rests, after its start and whenever it has read all its replicas, before it reads them to see
    /// whether they are intact.
    #[serde(with = "crate::units::duration")]
    pub verify_interval: Duration,
    /// Bytes a second that it reads for that. What is damaged is repaired from other replicas.
    #[serde(with = "crate::units::size")]
    pub verify_bytes_per_second: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            buffer_bytes: 64 << 20,
            admit_timeout: Duration::from_secs(1),
            entry_bytes: 1 << 20,
            entries_in_flight: 4,
            tail_bytes: 64 << 20,
            partition_tail_bytes: 8 << 20,
            retention_interval: Duration::from_secs(5),
            verify_interval: Duration::from_secs(24 * 60 * 60),
            verify_bytes_per_second: 16 << 20,
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
        within("buffer_bytes", self.buffer_bytes, 1 << 20, u32::MAX.into());
        within("entry_bytes", self.entry_bytes, 4 << 10, 1 << 30);
        within("entries_in_flight", self.entries_in_flight as u64, 1, 1_024);
        within("verify_bytes_per_second", self.verify_bytes_per_second, 64 << 10, 1 << 40);
        if self.verify_interval < Duration::from_millis(100) {
            found.push(("verify_interval", "must be at least 100ms".to_owned()));
        }
        if self.retention_interval < Duration::from_millis(10) {
            found.push(("retention_interval", "must be at least 10ms".to_owned()));
        }
        found
    }
}

/// Why a partition refused or failed. Cloned to everybody who shared a log entry.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The offset cannot be read from.
    #[error("offset {offset} is out of range: the log starts at {log_start} and ends at {high_watermark}")]
    OffsetOutOfRange {
        /// The offset.
        offset: Offset,
        /// Offset of the oldest retained record.
        log_start: Offset,
        /// Offset after the last committed record.
        high_watermark: Offset,
    },
    /// The batch's producer sequence does not fit. Nothing was written.
    #[error(transparent)]
    Refused(producers::Refusal),
    /// The broker's buffer stayed full. Nothing was written.
    #[error("the broker's buffer for waiting batches is full")]
    Busy,
    /// Stored batches do not have the bytes that were written. They are not served.
    #[error(
        "records {offset} to {end} (without the last) are corrupt on disk: {what}; read on at {end}, or restore them"
    )]
    Corrupt {
        /// Offset of the first record that cannot be read.
        offset: Offset,
        /// The first offset behind the damage.
        end: Offset,
        /// What is wrong.
        what: String,
    },
    /// The index or the state of the partition is damaged.
    #[error("the partition is damaged: {0}")]
    Damaged(String),
    /// Agreement failed.
    #[error(transparent)]
    Raft(raft::Error),
    /// The disk failed, or is full.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The partition is closed. Nothing was written.
    #[error("the partition is closed")]
    Stopped,
}

impl Error {
    /// Whether this replica does not have the bytes any more that it wrote. Others may.
    pub fn is_damage(&self) -> bool {
        match self {
            Error::Corrupt { .. } | Error::Damaged(_) => true,
            Error::Raft(error) => error.is_damage(),
            Error::Storage(error) => error.is_damage(),
            _ => false,
        }
    }
}

impl Error {
    /// Whether all that is lost is where records lie, which their log tells.
    pub fn is_of_index(&self) -> bool {
        matches!(self, Error::Storage(storage::Error::IndexDamaged { .. }))
    }
}

impl From<raft::Error> for Error {
    fn from(error: raft::Error) -> Self {
        match error {
            raft::Error::Busy => Error::Busy,
            raft::Error::Stopped => Error::Stopped,
            raft::Error::Storage(error) => Error::Storage(error),
            other => Error::Raft(other),
        }
    }
}

/// When an acknowledged batch passed each stage.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The broker had read it from the network.
    pub received: Instant,
    /// Its log entry was proposed.
    pub proposed: Instant,
    /// Its log entry was durable on this broker.
    pub appended: Instant,
    /// A majority had it.
    pub committed: Instant,
    /// It had its offset.
    pub applied: Instant,
}

/// An acknowledged batch.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// When the log entry was appended.
    pub append_time: Timestamp,
    /// Whether an earlier attempt had appended it.
    pub duplicate: bool,
    /// When it passed each stage.
    pub timing: Timing,
}

/// What all partitions of a broker share.
#[derive(Clone)]
pub struct Env {
    /// Where logs are kept.
    pub store: Store,
    /// What groups need.
    pub raft: raft::Env,
    /// Tells append times.
    pub clock: Clock,
    /// Where things that happen are counted.
    pub metrics: Metrics,
    /// Settings.
    pub config: Config,
    /// Room for batches that wait, in bytes.
    pub buffer: Arc<Semaphore>,
    /// Room for the newest batches.
    pub tail: Arc<TailBudget>,
    /// Counts the log entries that are under way.
    pub under_way: Arc<UnderWay>,
}

impl Env {
    /// The shared parts for these settings.
    pub fn new(store: Store, raft: raft::Env, clock: Clock, metrics: Metrics, config: Config) -> Self {
        let buffer = Arc::new(Semaphore::new(config.buffer_bytes as usize));
        let tail = TailBudget::new(config.tail_bytes as usize, config.partition_tail_bytes as usize);
        Env { store, raft, clock, metrics, config, buffer, tail, under_way: Arc::default() }
    }
}

/// A handle of a partition's replica on this broker. Clones share it.
#[derive(Clone)]
pub struct Partition(Arc<Inner>);

struct Inner {
    group: Group<Replica>,
    reader: Reader,
    env: Env,
    topic: Arc<TopicMetrics>,
    /// Held by a trim, so that two at once do not count the same records.
    trimming: tokio::sync::Mutex<()>,
    /// The log start up to which the log was purged.
    freed: tokio::sync::Mutex<Offset>,
    /// The first damage that was found.
    damage: OnceLock<String>,
    /// Gone once the partition is closed.
    queue: std::sync::RwLock<Option<mpsc::Sender<Submission>>>,
    tasks: Tasks,
}

impl Partition {
    /// Opens the replica, which catches up with its log in the background. `founders` found the group if it is new; a
    /// replica without them waits for a leader that adds it.
    ///
    /// # Errors
    /// The store failed, or holds something else than a partition.
    pub async fn open(
        id: GroupId,
        node: NodeId,
        founders: Option<&[NodeId]>,
        topic: Arc<TopicMetrics>,
        env: &Env,
        tasks: &Tasks,
    ) -> Result<Self, Error> {
        let log = open_log(&env.store, id).await?;
        let last = {
            let log = log.clone();
            blocking(&env.store, move || Ok(log.last_index()?)).await?
        };
        let view = View::new(env.tail.clone());
        let replica = Replica::new(id, view.clone(), env.metrics.clone(), topic.clone(), last);
        let group = Group::open(id, node, replica, &env.raft).await?;
        if let (None, Some(founders)) = (last, founders) {
            group.bootstrap(founders.iter().copied()).await?;
        }
        let (sender, queue) = mpsc::channel(QUEUE_BATCHES);
        let limits = appender::Limits {
            entry_bytes: env.config.entry_bytes as usize,
            entries_in_flight: env.config.entries_in_flight,
        };
        let appender = Appender {
            group: group.clone(),
            clock: env.clock.clone(),
            metrics: env.metrics.clone(),
            limits,
            under_way: Arc::clone(&env.under_way),
            queue,
        };
        let tasks = tasks.child();
        tasks.spawn("partition appender", Criticality::Critical, appender.run());
        let reader = Reader { view, log };
        let queue = std::sync::RwLock::new(Some(sender));
        Ok(Partition(Arc::new(Inner {
            group,
            reader,
            env: env.clone(),
            topic,
            trimming: Default::default(),
            freed: Default::default(),
            damage: OnceLock::new(),
            queue,
            tasks,
        })))
    }

    /// Waits until this replica leads and has applied what was committed before, or has stopped.
    ///
    /// # Errors
    /// The replica failed or was closed.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut status = self.status();
        match status.wait_for(|s| s.is_ready_leader() || s.failed.is_some()).await {
            Ok(status) => status.failed.clone().map_or(Ok(()), |error| Err(Error::from(error)))?,
            Err(_) => return Err(Error::Stopped),
        }
        self.measure().await
    }

    /// Finds out what the retained batches take, for a replica that has not led yet.
    ///
    /// # Errors
    /// The store failed.
    pub async fn measure(&self) -> Result<(), Error> {
        self.measure_start().await
    }

    /// The members of the group.
    pub fn members(&self) -> raft::Members {
        self.0.group.members()
    }

    /// Enqueues a batch that was skimmed; it is appended after those enqueued before. Waits for room in the buffer. The
    /// receiver gets the outcome.
    ///
    /// # Errors
    /// Nothing was written: [`Error::Busy`] after `admit_timeout` without room, [`storage::Error::DiskFull`],
    /// [`Error::Stopped`], or [`raft::Error::NotLeader`] if the store has failed and others can lead.
    pub async fn submit(
        &self,
        batch: Bytes,
        header: FrameHeader,
        received: Instant,
    ) -> Result<oneshot::Receiver<Result<Committed, Error>>, Error> {
        let Inner { env, queue, .. } = &*self.0;
        env.store.writable().map_err(|error| self.passed_on(error))?;
        let queue = {
            let queue = queue.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            queue.clone().ok_or(Error::Stopped)?
        };
        // A batch larger than the whole buffer waits for all of it.
        let bytes = u32::try_from((batch.len() as u64).min(env.config.buffer_bytes)).unwrap_or(u32::MAX);
        let permit = match env.buffer.clone().try_acquire_many_owned(bytes) {
            Ok(permit) => permit,
            Err(_) => {
                let wait = env.config.admit_timeout;
                match tokio::time::timeout(wait, env.buffer.clone().acquire_many_owned(bytes)).await {
                    Ok(Ok(permit)) => permit,
                    Ok(Err(_)) => return Err(Error::Stopped),
                    Err(_) => return Err(Error::Busy),
                }
            }
        };
        let (done, outcome) = oneshot::channel();
        let submission = Submission { batch, header, received, permit, done };
        match queue.send(submission).await {
            Ok(()) => Ok(outcome),
            Err(_) => Err(Error::Stopped),
        }
    }

    /// What a refusal of the store means for the partition.
    fn passed_on(&self, error: storage::Error) -> Error {
        appender::passed_on(error, self.status().now().voters.len())
    }

    /// Committed batches from the one that holds `from` on, until `max_bytes` is reached; at least one if there is one.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`], [`Error::Corrupt`], or the store failed.
    pub async fn read(&self, from: Offset, max_bytes: usize) -> Result<Vec<StoredBatch>, Error> {
        self.0.reader.read(from, max_bytes).await.inspect_err(|error| self.note_failure(error))
    }

    /// Offset of the first record that was appended at or after `time`; the high watermark if there is none.
    ///
    /// # Errors
    /// The store failed.
    pub async fn offset_at(&self, time: Timestamp) -> Result<Offset, Error> {
        self.0.reader.offset_at(time).await.inspect_err(|error| self.note_failure(error))
    }

    /// When the record at `offset` was appended; none beyond the high watermark.
    ///
    /// # Errors
    /// The store failed.
    pub async fn append_time(&self, offset: Offset) -> Result<Option<Timestamp>, Error> {
        if let Some(time) = self.view().append_time(offset) {
            return Ok(Some(time));
        }
        let entry =
            self.0.reader.entry_holding(offset).await.inspect_err(|error| self.note_failure(error))?;
        Ok(entry.map(|entry| entry.append_time))
    }

    /// Where the record at `offset` came from.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`], [`Error::Corrupt`], or the store failed.
    pub async fn origin(&self, offset: Offset) -> Result<Origin, Error> {
        self.0.reader.origin(offset).await.inspect_err(|error| self.note_failure(error))
    }

    /// What readers see.
    pub fn view(&self) -> &Arc<View> {
        &self.0.reader.view
    }

    /// What can be read now.
    pub fn bounds(&self) -> Bounds {
        self.view().bounds()
    }

    /// The state of the group.
    pub fn status(&self) -> raft::Watch {
        self.0.group.status()
    }

    /// The counters of the topic.
    pub fn topic(&self) -> &Arc<TopicMetrics> {
        &self.0.topic
    }

    /// Deletes the records below `before` and gives the new log start. Disk space follows.
    ///
    /// # Errors
    /// Agreement or the store failed.
    pub async fn trim(&self, before: Offset) -> Result<Offset, Error> {
        let _alone = self.0.trimming.lock().await;
        let bounds = self.bounds();
        let bytes_start = self.view().bytes_start();
        let mut command = CommandBuf::with_capacity(Command::TRIM_LEN);
        Command::encode_trim(before, command.buffer());
        let proposed = self.0.group.propose(command).await?;
        let Applied::Trimmed(log_start) = proposed.reply else {
            return Err(Error::Damaged("a trim was answered with something else".to_owned()));
        };
        self.measure_start().await?;
        // Appends go on meanwhile, so a change of the size would not tell what was deleted.
        let records = log_start.saturating_since(bounds.log_start);
        let bytes = self.view().bytes_start().saturating_sub(bytes_start);
        self.0.env.metrics.storage.trimmed(&self.0.topic, records, bytes);
        self.free().await?;
        Ok(log_start)
    }

    /// Purges the log entries whose records all lie below the log start, if it has moved.
    async fn free(&self) -> Result<(), Error> {
        let mut freed = self.0.freed.lock().await;
        let bounds = self.bounds();
        if bounds.log_start <= *freed {
            return Ok(());
        }
        let purge_to = if bounds.log_start == bounds.high_watermark {
            // Nothing is retained: everything that is applied may go.
            self.status().now().applied
        } else {
            let entry = self.0.reader.entry_holding(bounds.log_start).await?;
            entry.and_then(|entry| entry.raft_index.checked_sub(1))
        };
        if let Some(index) = purge_to {
            let purged = self.0.group.purge_to(index).await.map_err(Error::from);
            purged.inspect_err(|error| self.note_failure(error))?;
        }
        *freed = bounds.log_start;
        Ok(())
    }

    /// Finds out how many bytes lie below the log start.
    async fn measure_start(&self) -> Result<(), Error> {
        let bounds = self.bounds();
        if bounds.log_start == bounds.high_watermark {
            return Ok(()); // The replica noted it.
        }
        if let Some(entry) = self.0.reader.entry_holding(bounds.log_start).await? {
            self.view().set_bytes_start(entry.bytes_before);
        }
        Ok(())
    }

    /// Whether [`Partition::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.0.queue.read().unwrap_or_else(std::sync::PoisonError::into_inner).is_none()
    }

    /// What this replica has lost of what it wrote, if that was noticed: by a reader, by a follower, or when it looked.
    pub fn damage(&self) -> Option<String> {
        let status = self.status().now();
        let noticed = status.damaged.as_ref().or(status.failed.as_ref());
        if let Some(error) = noticed.filter(|error| error.is_damage())
            && self.0.damage.set(in_full(error)).is_ok()
        {
            self.0.env.metrics.storage.failed(StorageFailure::Corrupt);
        }
        self.0.damage.get().cloned()
    }

    /// Reads the log from the entry at `from` on, about `bytes` of it, to see whether it is intact. Gives where to go on.
    ///
    /// # Errors
    /// It is not, or the store failed.
    pub async fn verify(&self, from: u64, bytes: u64) -> Result<Option<u64>, Error> {
        let applied = self.status().now().applied;
        let Some(applied) = applied.filter(|applied| *applied >= from) else { return Ok(None) };
        let log = self.0.reader.log.clone();
        let read = move || match log.read(from, applied + 1, bytes) {
            Ok(rows) => Ok(rows.last().map(|row| row.index + 1)),
            Err(storage::Error::Purged { purged, .. }) => Ok(Some(purged + 1)),
            Err(error) => Err(error.into()),
        };
        blocking(&self.0.env.store, read).await.inspect_err(|error| self.note_failure(error))
    }

    /// Reads so many index rows from that of `from` on, to see whether they are intact. Gives where to go on.
    ///
    /// # Errors
    /// They are not, or the store failed.
    pub async fn verify_index(&self, from: Offset, rows: usize) -> Result<Option<Offset>, Error> {
        let log = self.0.reader.log.clone();
        let read = move || Ok(log.verify_index(from.0, rows)?.map(Offset));
        blocking(&self.0.env.store, read).await.inspect_err(|error| self.note_failure(error))
    }

    fn note_failure(&self, error: &Error) {
        let failure = match error {
            error if error.is_damage() => {
                // What was found first is enough to know.
                let _ = self.0.damage.set(error.to_string());
                StorageFailure::Corrupt
            }
            Error::Storage(_) => StorageFailure::Read,
            _ => return,
        };
        self.0.env.metrics.storage.failed(failure);
    }

    /// Stops taking batches, answers those that wait, and closes the replica.
    pub async fn close(&self) {
        self.0.queue.write().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        self.0.tasks.stop(Duration::from_secs(5)).await;
        self.0.group.shutdown().await;
        self.view().ring();
    }
}

#[cfg(test)]
impl Partition {
    /// The replica as other nodes see it.
    pub(crate) fn replica(&self) -> raft::Replica {
        self.0.group.replica()
    }
}

/// An error with what caused it.
pub fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

async fn open_log(store: &Store, id: GroupId) -> Result<Log, Error> {
    let own = store.clone();
    blocking(store, move || Ok(own.log(id)?)).await
}

/// Runs disk work off the runtime.
async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    store.blocking(work).await.unwrap_or(Err(Error::Stopped))
}
