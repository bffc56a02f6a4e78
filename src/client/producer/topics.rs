//! Topics that a producer sends to, and the choice of a partition.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, oneshot};

use super::ProducerConfig;
use super::budget::Budget;
use super::buffer::{BatchLimits, Buffer, Callback, Compression, Entry, Filled};
use super::delivery::Delivery;
use crate::client::routing::Route;
use crate::client::telemetry::{SendSpan, Sending, Telemetry};
use crate::client::{Codec, CodecSet, Error, ProducerRecord};
use crate::record::{Draft, partition_for_key};

/// An upper bound of the bytes that a record takes in a batch beyond its own length: a tag and a length.
const RECORD_OVERHEAD: usize = 6;
/// A bound of the trace headers that may be added to a record, in bytes; the W3C recommends 512 for the state.
const TRACE_HEADERS: usize = 640;

/// Records without a key go to one partition for a run of batches that have about this many bytes together, and then
/// to the next. A batch of the default size is a run of its own. Smaller ones come to their broker in runs, which it
/// appends as one or two log entries; given to every partition in turn, they would each cost an entry.
const RUN_BYTES: usize = 128 << 10;
/// A run has no more batches than this, so that even a few tiny ones spread.
const RUN_BATCHES: usize = 8;

/// What the handles of a producer and its driver share.
pub(super) struct Shared {
    pub(super) config: ProducerConfig,
    pub(super) budget: Budget,
    telemetry: Arc<Telemetry>,
    topics: ArcSwap<HashMap<Arc<str>, Arc<Topic>>>,
    inbox: Mutex<Inbox>,
    /// The driver has something in its inbox or is to close.
    pub(super) wake: Notify,
    closing: AtomicBool,
}

/// What the driver is told.
#[derive(Default)]
pub(super) struct Inbox {
    /// Buffers with something new.
    pub(super) announced: Vec<Arc<Buffer>>,
    /// To be attached to every batch that is not done.
    pub(super) latches: Vec<oneshot::Sender<()>>,
}

impl Shared {
    pub(super) fn new(config: ProducerConfig, telemetry: Arc<Telemetry>) -> Shared {
        Shared {
            budget: Budget::new(config.buffer_bytes),
            config,
            telemetry,
            topics: ArcSwap::default(),
            inbox: Mutex::default(),
            wake: Notify::new(),
            closing: AtomicBool::new(false),
        }
    }

    pub(super) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.load().get(name).cloned()
    }

    pub(super) fn topics(&self) -> Vec<Arc<Topic>> {
        self.topics.load().values().cloned().collect()
    }

    /// Makes a topic known, or brings its limits and number of partitions up to date.
    pub(super) fn learn(&self, route: &Route) -> Arc<Topic> {
        // Partitions are added under the lock so that two callers do not both make one.
        let _guard = self.inbox();
        if let Some(topic) = self.topic(&route.topic) {
            topic.update(route);
            return topic;
        }
        let topic = Arc::new(Topic::new(route, &self.config, self.telemetry.sending(&route.topic)));
        let mut topics = HashMap::clone(&self.topics.load());
        topics.insert(Arc::clone(&route.topic), Arc::clone(&topic));
        self.topics.store(Arc::new(topics));
        topic
    }

    pub(super) fn announce(&self, buffer: Arc<Buffer>) {
        self.inbox().announced.push(buffer);
        self.wake.notify_one();
    }

    pub(super) fn flush(&self, latch: oneshot::Sender<()>) {
        self.inbox().latches.push(latch);
        self.wake.notify_one();
    }

    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Replaces `inbox` with what has come in since.
    pub(super) fn take_inbox(&self) -> Inbox {
        std::mem::take(&mut *self.inbox())
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().expect("no holder of this lock can panic")
    }
}

/// A topic that a producer sends to.
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    buffers: ArcSwap<Vec<Arc<Buffer>>>,
    /// Where records without a key go until a batch is full and the run is over.
    sticky: AtomicU32,
    /// Full batches that this partition got in its run.
    run: AtomicUsize,
    record_bytes_max: AtomicUsize,
    batch_bytes_max: AtomicUsize,
    /// Bits of the [`CodecSet`] that the topic allows.
    codecs: AtomicU32,
    sending: Arc<Sending>,
}

/// A record that passed all checks.
pub(super) struct Admitted {
    buffer: Arc<Buffer>,
    sticky: bool,
    /// Bytes to be taken from the budget.
    pub(super) bytes: usize,
}

impl Topic {
    fn new(route: &Route, config: &ProducerConfig, sending: Sending) -> Topic {
        let topic = Topic {
            name: Arc::clone(&route.topic),
            buffers: ArcSwap::default(),
            // Producers that start together begin at different partitions.
            sticky: AtomicU32::new(rand::random_range(0..route.partitions().max(1))),
            run: AtomicUsize::new(0),
            record_bytes_max: AtomicUsize::new(route.record_bytes_max),
            batch_bytes_max: AtomicUsize::new(route.batch_bytes_max),
            codecs: AtomicU32::new(route.codecs.bits()),
            sending: Arc::new(sending),
        };
        debug_assert!(config.batch_bytes > 0);
        topic.update(route);
        topic
    }

    /// Takes over limits, and partitions that were added. Partitions never become fewer, except when a topic is
    /// deleted and created anew; then the broker refuses what goes to the missing ones.
    fn update(&self, route: &Route) {
        self.record_bytes_max.store(route.record_bytes_max, Ordering::Relaxed);
        self.batch_bytes_max.store(route.batch_bytes_max, Ordering::Relaxed);
        self.codecs.store(route.codecs.bits(), Ordering::Relaxed);
        let known = self.partitions();
        if known < route.partitions() {
            let mut buffers = Vec::clone(&self.buffers.load());
            buffers.extend((known..route.partitions()).map(|partition| {
                Arc::new(Buffer::new(Arc::clone(&self.name), partition, Arc::clone(&self.sending)))
            }));
            self.buffers.store(Arc::new(buffers));
        }
    }

    pub(super) fn partitions(&self) -> u32 {
        u32::try_from(self.buffers.load().len()).unwrap_or(u32::MAX)
    }

    pub(super) fn buffers(&self) -> Arc<Vec<Arc<Buffer>>> {
        self.buffers.load_full()
    }

    /// Checks a record against the limits and chooses its partition.
    pub(super) fn admit(&self, record: &ProducerRecord, shared: &Shared) -> Result<Admitted, Error> {
        let too_large = |bytes, limit_name, limit| Error::RecordTooLarge { bytes, limit_name, limit };
        record.check_headers()?;
        let len = draft(record).encoded_len();
        let record_max = self.record_bytes_max.load(Ordering::Relaxed);
        if len > record_max {
            return Err(too_large(len, "record_bytes_max", record_max));
        }
        let batch_max = self.batch_bytes_max.load(Ordering::Relaxed);
        if len + RECORD_OVERHEAD > batch_max {
            return Err(too_large(len, "batch_bytes_max", batch_max));
        }
        let bytes = len + RECORD_OVERHEAD;
        if bytes > shared.config.buffer_bytes {
            return Err(too_large(len, "buffer_bytes", shared.config.buffer_bytes));
        }
        let buffers = self.buffers.load();
        let partitions = u32::try_from(buffers.len()).unwrap_or(u32::MAX);
        let sticky = record.partition.is_none() && record.key.is_none();
        let partition = match (record.partition, &record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, partitions),
            (None, None) => self.sticky.load(Ordering::Relaxed),
        };
        let buffer = buffers.get(partition as usize).ok_or_else(|| Error::UnknownPartition {
            topic: self.name.to_string(),
            partition,
            partitions,
        })?;
        Ok(Admitted { buffer: Arc::clone(buffer), sticky, bytes })
    }

    /// Puts an admitted record, for which the bytes have been taken from the budget, into its batch.
    pub(super) fn append(
        &self,
        record: &ProducerRecord,
        admitted: Admitted,
        callback: Option<Callback>,
        shared: &Arc<Shared>,
    ) -> Result<Delivery, Error> {
        let Admitted { mut buffer, sticky, bytes: reserved } = admitted;
        let limits = self.batch_limits(shared);
        // A record that finds no room in the last batch of a run begins the next run. Left here it would begin a batch
        // that nothing follows into, and that lingers for this one record.
        if sticky
            && self.is_last_of_run(limits)
            && buffer.make_room(&draft(record), limits, shared) == Filled::Yes
        {
            self.move_on(buffer.partition);
            let buffers = self.buffers.load();
            if let Some(next) = buffers.get(self.sticky.load(Ordering::Relaxed) as usize) {
                buffer = Arc::clone(next);
            }
        }
        let telemetry = self.sending.telemetry();
        let span = telemetry.begin_send(&self.name, buffer.partition, &record.headers);
        let injected =
            span.as_ref().and_then(SendSpan::injected).filter(|_| self.has_room_for_trace(reserved));
        let plain = draft(record);
        let pushed = match &injected {
            None => buffer.push(Entry { draft: plain, span, callback, reserved }, limits, shared),
            Some(context) => {
                let draft = Draft {
                    key: plain.key,
                    value: plain.value,
                    headers: plain.headers.chain(context.headers()),
                    timestamp_ms: plain.timestamp_ms,
                };
                buffer.push(Entry { draft, span, callback, reserved }, limits, shared)
            }
        };
        match pushed {
            Ok((delivery, filled)) => {
                if sticky && filled == Filled::Yes {
                    if self.is_last_of_run(limits) {
                        self.move_on(buffer.partition);
                    } else {
                        self.run.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(delivery)
            }
            Err(error) => {
                shared.budget.release(reserved);
                Err(error)
            }
        }
    }

    pub(super) fn batch_limits(&self, shared: &Shared) -> BatchLimits {
        let compression = self.compression(shared);
        let mut most = self.batch_bytes_max.load(Ordering::Relaxed);
        if !compression.allowed.contains(Codec::None) {
            // Room for what compressing adds to records that do not compress.
            most = most.saturating_sub(most / 1024 + 64).max(1);
        }
        BatchLimits {
            bytes: shared.config.batch_bytes.min(most),
            records: shared.config.max_batch_records,
            compression,
        }
    }

    pub(super) fn compression(&self, shared: &Shared) -> Compression {
        let allowed = CodecSet::from_bits(self.codecs.load(Ordering::Relaxed)).unwrap_or_default();
        Compression { codec: shared.config.compression, allowed }
    }

    /// Whether the next batch to become full ends the run.
    fn is_last_of_run(&self, limits: BatchLimits) -> bool {
        let batches = (RUN_BYTES / limits.bytes.max(1)).clamp(1, RUN_BATCHES);
        self.run.load(Ordering::Relaxed) + 1 >= batches
    }

    /// Lets records without a key go to the next partition if they went to `from`.
    pub(super) fn move_on(&self, from: u32) {
        let next = (from + 1).checked_rem(self.partitions()).unwrap_or(0);
        // Somebody else may have moved it on already; then it stays there.
        if self.sticky.compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.run.store(0, Ordering::Relaxed);
        }
    }

    /// Whether a record stays within the limits with trace headers. A trace is not worth a refused record.
    fn has_room_for_trace(&self, bytes: usize) -> bool {
        let with_trace = bytes + TRACE_HEADERS;
        with_trace <= self.record_bytes_max.load(Ordering::Relaxed)
            && with_trace <= self.batch_bytes_max.load(Ordering::Relaxed)
    }
}

fn draft(record: &ProducerRecord) -> Draft<'_, impl Iterator<Item = (&str, &[u8])> + Clone> {
    Draft {
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: record.headers.iter().map(|header| (header.key(), &header.value()[..])),
        timestamp_ms: record.timestamp_ms,
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic").field("name", &self.name).field("partitions", &self.partitions()).finish()
    }
}
