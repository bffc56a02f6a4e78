//! Batches of one partition: the open one that records are encoded into, and full ones on their way to the driver.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use opentelemetry::trace::SpanContext;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::budget::Budget;
use super::delivery::{Committed, Delivery, Outcome};
use super::topics::Shared;
use crate::client::telemetry::{SendSpan, Sending, Way};
use crate::client::{Codec, CodecSet, Error, RecordMetadata};
use crate::record::{BatchBuilder, Draft, ProducerSequence};

/// What a program wants to be called with a record's outcome.
pub(super) type Callback = Box<dyn FnOnce(Result<RecordMetadata, Error>) + Send>;

/// A batch's buffer never begins larger than this on a mere guess.
const CAPACITY_GUESS: usize = 4 << 10;

/// The batches of one partition that the driver has not taken yet.
pub(super) struct Buffer {
    pub(super) topic: Arc<str>,
    pub(super) partition: u32,
    sending: Arc<Sending>,
    /// Whether the driver has been told that there is something new here.
    announced: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<OpenBatch>,
    full: VecDeque<Batch>,
    closed: bool,
    /// Size of the last batch, from which the next one's buffer is guessed.
    last_bytes: usize,
}

/// Limits of the batches of a partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
    pub(super) bytes: usize,
    pub(super) records: u32,
    pub(super) compression: Compression,
}

/// How batches of a topic are compressed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compression {
    pub(super) codec: Codec,
    /// What the topic takes. If that is not also uncompressed batches, they are compressed although they grow.
    pub(super) allowed: CodecSet,
}

/// A record with what accompanies it into the batch.
pub(super) struct Entry<'a, H> {
    pub(super) draft: Draft<'a, H>,
    pub(super) span: Option<SendSpan>,
    pub(super) callback: Option<Callback>,
    /// Bytes taken from the budget for it.
    pub(super) reserved: usize,
}

/// What the driver has to know about a buffer after looking into it.
pub(super) struct Found {
    pub(super) full: VecDeque<Batch>,
    /// When the open batch was begun, if there is one.
    pub(super) open_since: Option<Instant>,
}

/// Whether a batch of this partition became full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    No,
    Yes,
}

impl Buffer {
    pub(super) fn new(topic: Arc<str>, partition: u32, sending: Arc<Sending>) -> Buffer {
        Buffer { topic, partition, sending, announced: AtomicBool::new(false), state: Mutex::default() }
    }

    /// Encodes a record into the open batch. On failure the caller still owns the reserved bytes.
    pub(super) fn push<'a, H>(
        self: &Arc<Self>,
        entry: Entry<'a, H>,
        limits: BatchLimits,
        shared: &Arc<Shared>,
    ) -> Result<(Delivery, Filled), Error>
    where
        H: Iterator<Item = (&'a str, &'a [u8])> + Clone,
    {
        let mut filled = Filled::No;
        let mut news = false;
        let delivery = {
            let mut state = self.lock();
            if state.closed {
                return Err(Error::Closed { may_have_been_written: false });
            }
            if state.open.as_ref().is_some_and(|open| !open.fits(&entry.draft, limits)) {
                state.seal(limits.compression);
                filled = Filled::Yes;
            }
            let guess = (state.last_bytes + state.last_bytes / 8).max(CAPACITY_GUESS).min(limits.bytes);
            let open = state.open.get_or_insert_with(|| {
                news = true;
                OpenBatch::new(self, shared, guess)
            });
            let delivery = open.push(entry);
            if open.builder.records() >= limits.records || open.builder.len() >= limits.bytes {
                state.seal(limits.compression);
                filled = Filled::Yes;
            }
            delivery
        };
        if news || filled == Filled::Yes {
            self.announce(shared);
        }
        Ok((delivery, filled))
    }

    /// Completes the open batch if `draft` does not fit into it.
    pub(super) fn make_room<'a, H>(
        self: &Arc<Self>,
        draft: &Draft<'a, H>,
        limits: BatchLimits,
        shared: &Shared,
    ) -> Filled
    where
        H: Iterator<Item = (&'a str, &'a [u8])> + Clone,
    {
        {
            let mut state = self.lock();
            if state.open.as_ref().is_none_or(|open| open.fits(draft, limits)) {
                return Filled::No;
            }
            state.seal(limits.compression);
        }
        self.announce(shared);
        Filled::Yes
    }

    /// Takes the full batches. What is put in from now on is announced anew.
    pub(super) fn take_full(&self) -> Found {
        self.announced.store(false, Ordering::Release);
        let mut state = self.lock();
        Found {
            full: std::mem::take(&mut state.full),
            open_since: state.open.as_ref().map(|open| open.batch.created),
        }
    }

    /// When the open batch was begun, if there is one.
    pub(super) fn open_since(&self) -> Option<Instant> {
        self.lock().open.as_ref().map(|open| open.batch.created)
    }

    /// Takes everything, also the open batch.
    pub(super) fn take_all(&self, compression: Compression) -> VecDeque<Batch> {
        let mut state = self.lock();
        state.seal(compression);
        std::mem::take(&mut state.full)
    }

    /// Refuses further records.
    pub(super) fn close(&self) {
        self.lock().closed = true;
    }

    fn announce(self: &Arc<Self>, shared: &Shared) {
        if !self.announced.swap(true, Ordering::AcqRel) {
            shared.announce(Arc::clone(self));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }
}

impl State {
    fn seal(&mut self, compression: Compression) {
        let Some(mut open) = self.open.take() else { return };
        self.last_bytes = open.builder.len();
        open.batch.records = open.builder.records();
        match open.builder.finish_for(compression.codec, compression.allowed) {
            Ok(payload) => open.batch.payload = payload,
            // Told by the driver: nothing that a program may have given is called under the lock.
            Err(source) => {
                let buffer = &open.batch.buffer;
                let (topic, partition) = (buffer.topic.to_string(), buffer.partition);
                open.batch.broken = Some(Error::Batch { topic, partition, source });
            }
        }
        self.full.push_back(open.batch);
    }
}

/// A batch that still takes records.
struct OpenBatch {
    builder: BatchBuilder,
    batch: Batch,
}

impl OpenBatch {
    fn new(buffer: &Arc<Buffer>, shared: &Arc<Shared>, capacity: usize) -> OpenBatch {
        let outcome = Arc::new(Outcome::new(Arc::clone(&buffer.topic), buffer.partition));
        OpenBatch {
            builder: BatchBuilder::with_capacity(capacity),
            batch: Batch {
                payload: Bytes::new(),
                records: 0,
                created: Instant::now(),
                sequence: None,
                first_sent: None,
                way: Way::default(),
                uncertain: false,
                broken: None,
                trace: None,
                buffer: Arc::clone(buffer),
                shared: Arc::clone(shared),
                reserved: 0,
                outcome,
                spans: Vec::new(),
                callbacks: Vec::new(),
                latches: Vec::new(),
                finished: false,
            },
        }
    }

    fn fits<'a, H>(&self, draft: &Draft<'a, H>, limits: BatchLimits) -> bool
    where
        H: Iterator<Item = (&'a str, &'a [u8])> + Clone,
    {
        self.builder.would_be_len(draft) <= limits.bytes
    }

    fn push<'a, H>(&mut self, entry: Entry<'a, H>) -> Delivery
    where
        H: Iterator<Item = (&'a str, &'a [u8])> + Clone,
    {
        let index = self.builder.records();
        self.builder.push(&entry.draft);
        let batch = &mut self.batch;
        batch.reserved += entry.reserved;
        if let Some(span) = entry.span {
            batch.trace.get_or_insert_with(|| span.context().clone());
            batch.spans.push(span);
        }
        batch.callbacks.extend(entry.callback.map(|callback| (index, callback)));
        Delivery::new(Arc::clone(&batch.outcome), index)
    }
}

/// Records that are appended together. It is finished exactly once; one that is dropped unfinished tells
/// [`Error::Closed`].
pub(super) struct Batch {
    pub(super) payload: Bytes,
    pub(super) records: u32,
    /// When its first record came.
    pub(super) created: Instant,
    /// What the broker recognises it by, from when it is sent first.
    pub(super) sequence: Option<ProducerSequence>,
    pub(super) first_sent: Option<Instant>,
    /// What its way has been so far.
    pub(super) way: Way,
    /// Whether an attempt ended without telling if the batch was written.
    pub(super) uncertain: bool,
    /// Why it cannot be sent at all.
    pub(super) broken: Option<Error>,
    /// Context of the first sampled record.
    pub(super) trace: Option<SpanContext>,
    /// Dropped when the batch is done.
    pub(super) latches: Vec<Arc<oneshot::Sender<()>>>,
    buffer: Arc<Buffer>,
    shared: Arc<Shared>,
    reserved: usize,
    outcome: Arc<Outcome>,
    spans: Vec<SendSpan>,
    callbacks: Vec<(u32, Callback)>,
    finished: bool,
}

impl Batch {
    /// Tells the outcome to everybody who waits for it, and frees the batch's memory.
    pub(super) fn finish(mut self, result: Result<Committed, Error>) {
        self.tell(result);
    }

    fn tell(&mut self, result: Result<Committed, Error>) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let failure = result.as_ref().err();
        let began = self.first_sent.unwrap_or(self.created);
        self.buffer.sending.done(self.records, began.elapsed(), failure);
        for span in self.spans.drain(..) {
            span.end(self.way, failure);
        }
        self.outcome.set(result);
        for (index, callback) in self.callbacks.drain(..) {
            if let Some(result) = self.outcome.of_record(index) {
                callback(result);
            }
        }
        self.payload = Bytes::new();
        self.budget().release(self.reserved);
    }

    fn budget(&self) -> &Budget {
        &self.shared.budget
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let may_have_been_written = self.first_sent.is_some();
        self.tell(Err(Error::Closed { may_have_been_written }));
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("records", &self.records)
            .field("sequence", &self.sequence)
            .field("uncertain", &self.uncertain)
            .finish_non_exhaustive()
    }
}
