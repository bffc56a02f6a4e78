//! The one thread that writes.
//!
//! Batches wait in one queue. Each pass takes what waits (up to `round_bytes`), writes it as one atomic engine batch,
//! which is a *round*, syncs once if a batch asked for it, and then completes every batch in order. So the cost of a sync
//! is shared by all groups, and one slow disk delays everybody by one sync instead of many.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::background_sync::BackgroundSync;
use super::batch::Batch;
use super::boot;
use super::engine::Engine;
use super::keys::Round;
use super::store::CheckFile;
use super::{Config, Durability, Error, Sync};

/// Called once, with the fate of a batch. Runs on the committer's thread, so it must be short and must not block.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Called after each sync, on a thread of the store. Must be short and must not block.
pub type SyncObserver = Arc<dyn Fn(SyncObservation) + Send + std::marker::Sync>;

/// One sync of the journal.
#[derive(Clone, Copy, Debug)]
pub struct SyncObservation {
    /// How long the disk took.
    pub duration: Duration,
    /// Bytes written since the sync before.
    pub bytes: u64,
    /// Batches written since the sync before.
    pub commits: u64,
}

impl SyncObservation {
    const NOTHING: Self = SyncObservation { duration: Duration::ZERO, bytes: 0, commits: 0 };
}

/// What the committer did since the store was opened. Each number only rises.
#[derive(Debug, Default)]
pub struct Stats {
    /// Batches written.
    pub commits: AtomicU64,
    /// Engine batches that they were gathered into.
    pub rounds: AtomicU64,
    /// Syncs of the journal.
    pub syncs: AtomicU64,
    /// Bytes of rows handed to the journal.
    pub written_bytes: AtomicU64,
    /// Nanoseconds that writing waited because too much was in memory.
    pub stalled_nanos: AtomicU64,
    /// Bytes that wait in the queue now. The only number here that falls.
    pub queued_bytes: AtomicU64,
}

/// Room in the commit queue. Dropping it gives the room back; [`Batch::hold`] ties it to a batch.
#[derive(Debug)]
pub struct Permit {
    _room: OwnedSemaphorePermit,
}

/// A sync beside writing begins at the latest when this much is not on disk, and as often the page cache is emptied of
/// journals. With more, much of the memory that is written to has not been used for long, and virtual machines are slow
/// to hand it out.
const BACKGROUND_BYTES: u64 = 32 * 1024 * 1024;

/// How often the committer looks whether the thread beside it has ended what it does.
const BUSY_POLL: Duration = Duration::from_millis(5);

/// Room is counted in units of this many bytes, because a semaphore hands out at most `u32::MAX`.
const ROOM_UNIT_BYTES: u64 = 1024;

/// The queue in front of the thread, shared by every handle of the store.
pub struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    room: Arc<Semaphore>,
    room_units: u32,
    failure: OnceLock<Arc<dyn std::error::Error + Send + std::marker::Sync>>,
    failed: AtomicBool,
    /// Cancelled when writing ends with a failure.
    pub over: CancellationToken,
    check_file: CheckFile,
    pub stats: Stats,
    /// Rings when a batch came.
    #[cfg(test)]
    pub bell: tokio::sync::Notify,
}

#[derive(Default)]
struct Waiting {
    items: VecDeque<Item>,
    closing: bool,
    /// Whether the thread sleeps, so that a commit to a busy thread costs no system call.
    sleeping: bool,
}

struct Item {
    batch: Batch,
    durability: Durability,
    done: Done,
}

impl Queue {
    pub fn new(config: &Config, check_file: CheckFile) -> Self {
        let units =
            u32::try_from(config.commit_queue_bytes.div_ceil(ROOM_UNIT_BYTES)).unwrap_or(u32::MAX).max(1);
        Self {
            waiting: Mutex::default(),
            wake: Condvar::new(),
            room: Arc::new(Semaphore::new(units as usize)),
            room_units: units,
            failure: OnceLock::new(),
            failed: AtomicBool::new(false),
            over: CancellationToken::new(),
            check_file,
            stats: Stats::default(),
            #[cfg(test)]
            bell: tokio::sync::Notify::new(),
        }
    }

    /// Waits for room. A batch larger than the whole queue waits for an empty one.
    pub async fn reserve(&self, bytes: u64) -> Result<Permit, Error> {
        let room = Arc::clone(&self.room).acquire_many_owned(self.units(bytes)).await;
        Ok(Permit { _room: room.map_err(|_| Error::Closed)? })
    }

    /// Adds a batch. One that comes without a permit takes what room there is and is accepted in any case.
    pub fn push(&self, mut batch: Batch, durability: Durability, done: Done) {
        if let Err(error) = self.healthy() {
            return run(done, Err(error));
        }
        if !batch.holds_permit()
            && let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(self.units(batch.bytes()))
        {
            batch.hold(Permit { _room: room });
        }
        let bytes = batch.bytes();
        let mut waiting = self.lock();
        if waiting.closing {
            drop(waiting);
            return run(done, Err(Error::Closed));
        }
        self.stats.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        waiting.items.push_back(Item { batch, durability, done });
        let wake = std::mem::take(&mut waiting.sleeping);
        drop(waiting);
        #[cfg(test)]
        self.bell.notify_one();
        if wake {
            self.wake.notify_one();
        }
    }

    /// Lets the thread finish what waits and then stop. Later batches fail with [`Error::Closed`].
    pub fn close(&self) {
        self.lock().closing = true;
        self.room.close();
        self.wake.notify_one();
    }

    /// The failure that ended writing, if there was one.
    pub fn healthy(&self) -> Result<(), Error> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.failure.get().map_or(Ok(()), |source| Err(Error::Failed { source: Arc::clone(source) }))
    }

    pub(super) fn fail(&self, error: &Error) {
        let source: Arc<dyn std::error::Error + Send + std::marker::Sync> = Arc::new(error.clone());
        if self.failure.set(source).is_ok() {
            // The engine's own threads end when they are to merge a file that is damaged, and do not say which.
            self.check_file.put();
            tracing::error!(
                name: "storage.failed",
                error = error as &dyn std::error::Error,
                "the store failed; no more writes are accepted"
            );
        }
        self.failed.store(true, Ordering::Release);
        self.over.cancel();
    }

    fn units(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(ROOM_UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, self.room_units)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that holds the lock can panic half-way through a change, so a poisoned lock is still consistent.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for batches until `deadline`. Returns nothing once the queue is closed and empty.
    fn take(&self, round_bytes: u64, deadline: Option<Instant>) -> Option<Vec<Item>> {
        let mut waiting = self.lock();
        loop {
            if !waiting.items.is_empty() {
                return Some(self.take_round(&mut waiting, round_bytes));
            }
            if waiting.closing {
                return None;
            }
            waiting.sleeping = true;
            waiting = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                None => self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Some(Vec::new()),
                Some(left) => self.wake.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn take_round(&self, waiting: &mut Waiting, round_bytes: u64) -> Vec<Item> {
        let mut bytes = 0;
        let mut count = 0;
        for item in &waiting.items {
            if count > 0 && bytes + item.batch.bytes() > round_bytes {
                break;
            }
            bytes += item.batch.bytes();
            count += 1;
        }
        self.stats.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        waiting.items.drain(..count).collect()
    }
}

/// The state of the writing thread.
pub struct Committer {
    queue: Arc<Queue>,
    engine: Arc<Engine>,
    sync: Sync,
    sync_interval: Duration,
    round_bytes: u64,
    observer: Option<SyncObserver>,
    round: Round,
    /// When the oldest unsynced write happened.
    unsynced: Option<Instant>,
    since_sync: SyncObservation,
    /// Bytes that this thread synced and that may still be in the page cache.
    remembered: u64,
    /// Who works on the journals while this thread writes.
    background: Option<BackgroundSync>,
}

impl Committer {
    pub fn new(
        config: &Config,
        queue: Arc<Queue>,
        engine: Arc<Engine>,
        last_round: u64,
        observer: Option<SyncObserver>,
        background: Option<BackgroundSync>,
    ) -> Self {
        Self {
            background,
            queue,
            engine,
            sync: config.sync,
            sync_interval: config.sync_interval,
            round_bytes: config.round_bytes,
            observer,
            round: Round { number: last_round, synced: last_round },
            unsynced: None,
            since_sync: SyncObservation::NOTHING,
            remembered: 0,
        }
    }

    /// Writes until the queue is closed and empty, then records that everything is on disk. A panic on the way is a failure of
    /// the store: nobody else would answer what waits.
    pub fn run(mut self) {
        let work = |this: &mut Self| {
            while let Some(items) = this.queue.take(this.round_bytes, this.deadline()) {
                this.pass(items);
            }
        };
        while catch_unwind(AssertUnwindSafe(|| work(&mut self))).is_err() {
            self.queue.fail(&Error::storage("write", std::io::Error::other("the committer panicked")));
        }
        if self.queue.healthy().is_ok()
            && let Err(error) = self.finish()
        {
            self.queue.fail(&error);
        }
    }

    /// Writes one round of what waits, without waiting for it. Returns whether there was anything.
    #[cfg(test)]
    pub fn step(&mut self) -> bool {
        let items = {
            let mut waiting = self.queue.lock();
            self.queue.take_round(&mut waiting, self.round_bytes)
        };
        let any = !items.is_empty();
        if any {
            self.pass(items);
        }
        any
    }

    /// Ends as a crash does: of what waits, `begun` batches may reach the disk, but nobody hears of it.
    #[cfg(test)]
    pub fn crash(&mut self, begun: impl FnOnce(usize) -> usize) {
        let items: Vec<Item> = {
            let mut waiting = self.queue.lock();
            waiting.items.drain(..).collect()
        };
        self.queue.close();
        let begun = begun(items.len());
        if self.queue.healthy().is_ok() {
            // The disk may fail too; a crash makes no difference to it.
            let _ = self.write(&items[..begun]);
        }
        for item in items {
            run(item.done, Err(Error::Closed));
        }
    }

    /// When a sync is due.
    fn deadline(&self) -> Option<Instant> {
        let due = self.unsynced? + self.sync_interval;
        let busy = self.background.as_ref().is_some_and(BackgroundSync::is_busy);
        Some(if busy { due.max(Instant::now() + BUSY_POLL) } else { due })
    }

    fn pass(&mut self, items: Vec<Item>) {
        let outcome = self.queue.healthy().and_then(|()| self.write_and_sync(&items));
        if let Err(error) = &outcome
            && self.queue.healthy().is_ok()
        {
            self.queue.fail(error);
        }
        for item in items {
            // The room is given back before the callback, which may well commit the next batch.
            drop(item.batch);
            run(item.done, outcome.clone());
        }
    }

    fn write_and_sync(&mut self, items: &[Item]) -> Result<(), Error> {
        self.write(items)?;
        let wanted = items.iter().any(|item| match item.durability {
            Durability::Always => true,
            Durability::Sync => self.sync == Sync::Always,
            Durability::Lazy => false,
        });
        let overdue = self.unsynced.is_some_and(|at| {
            self.since_sync.bytes >= BACKGROUND_BYTES || at.elapsed() >= self.sync_interval
        });
        match &self.background {
            _ if wanted => self.sync_now(),
            Some(background) if overdue && self.sync == Sync::Interval => {
                if background.begin(self.round.number, self.since_sync) {
                    self.unsynced = None;
                    self.since_sync = SyncObservation::NOTHING;
                }
                Ok(())
            }
            _ if overdue => self.sync_now(),
            _ => Ok(()),
        }
    }

    fn write(&mut self, items: &[Item]) -> Result<(), Error> {
        let mut commits = 0;
        let mut bytes = 0;
        let mut rest = items;
        while !rest.is_empty() {
            // A batch that removes "from here on" must see what was written before it, so it starts a round.
            let next = rest.iter().skip(1).position(|item| self.engine.needs_own_round(&item.batch));
            let (round, later) = rest.split_at(next.map_or(rest.len(), |at| at + 1));
            rest = later;
            if round.iter().all(|item| item.batch.is_empty()) {
                commits += round.len() as u64;
                continue;
            }
            self.round.number += 1;
            if let Some(background) = &self.background {
                self.round.synced = self.round.synced.max(background.synced());
            }
            self.unsynced.get_or_insert_with(Instant::now);
            self.engine.write(round.iter().map(|item| &item.batch), self.round)?;
            self.queue.stats.rounds.fetch_add(1, Ordering::Relaxed);
            commits += round.len() as u64;
            bytes += round.iter().map(|item| item.batch.bytes()).sum::<u64>();
        }
        self.queue.stats.commits.fetch_add(commits, Ordering::Relaxed);
        self.queue.stats.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.since_sync.commits += commits;
        self.since_sync.bytes += bytes;
        let stalled = self.engine.bound_memory(bytes)?;
        self.queue.stats.stalled_nanos.fetch_add(stalled.as_nanos() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn sync_now(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        self.engine.sync()?;
        self.round.synced = self.round.number;
        self.unsynced = None;
        self.queue.stats.syncs.fetch_add(1, Ordering::Relaxed);
        self.remembered += self.since_sync.bytes;
        if self.remembered >= BACKGROUND_BYTES && self.background.as_ref().is_some_and(BackgroundSync::forget)
        {
            self.remembered = 0;
        }
        let observation = SyncObservation { duration: started.elapsed(), ..self.since_sync };
        self.since_sync = SyncObservation::NOTHING;
        if let Some(observer) = &self.observer
            && catch_unwind(AssertUnwindSafe(|| observer(observation))).is_err()
        {
            tracing::error!("an observer of syncs panicked");
        }
        Ok(())
    }

    /// Syncs, and writes down that all was synced, so that damage to the last round is found on the next start.
    fn finish(&mut self) -> Result<(), Error> {
        self.background = None;
        self.sync_now()?;
        self.round.number += 1;
        let mut last = Batch::new();
        if self.sync == Sync::Interval {
            boot::forget(&mut last);
        }
        self.engine.write(std::iter::once(&last), self.round)?;
        self.sync_now()
    }
}

/// A callback that panics is a defect of its owner; it must not end everybody's writing.
fn run(done: Done, outcome: Result<(), Error>) {
    if catch_unwind(AssertUnwindSafe(|| done(outcome))).is_err() {
        tracing::error!("a commit callback panicked");
    }
}
