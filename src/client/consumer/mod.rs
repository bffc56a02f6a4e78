//! Reading records.
//!
//! A [`Consumer`] has one subscription ([`session`]) per broker that leads some of its partitions, and no task: it
//! works while it is polled, and credit bounds what a broker sends ahead. A partition whose session broke, or which
//! its broker does not lead any more, is assigned anew at the offset after the last one received.

mod assignment;
mod batch;
mod config;
mod fetch;
mod process;
mod session;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures_util::Stream;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, Sleep, sleep};

pub(super) use batch::Received;
pub use batch::{ConsumedBatch, ConsumedRecords};
pub use config::{ConsumerConfig, OffsetReset};
pub(super) use fetch::fetch;
pub use fetch::{FetchOptions, FetchedPartition};
pub use process::Processor;

use super::admin::list_offsets;
use super::routing::Router;
use super::telemetry::{Polling, Telemetry};
use super::{ConsumedRecord, Error, ErrorCode, Offset, Position, TopicPartition};
use crate::proto::v1;
use assignment::Assignment;
use session::Session;

/// Reads partitions. Made by [`Client::consumer`](super::Client::consumer).
///
/// It is a [`Stream`] of records; [`next_batch`](Self::next_batch) gives them in the batches in which they are stored.
/// Records of a partition come in order. An `Err` item concerns one partition, which is not read any further until
/// [`seek`](Self::seek) repositions it; failures that may pass are retried instead and not told. The stream ends when
/// no partition is left to read.
///
/// Nothing happens between polls, except that brokers send until the credit is used up.
pub struct Consumer {
    router: Arc<Router>,
    telemetry: Arc<Telemetry>,
    config: ConsumerConfig,
    partitions: HashMap<TopicPartition, Tracked>,
    /// By broker.
    sessions: BTreeMap<u64, Session>,
    generations: u64,
    /// What was received and is not handed out yet.
    ready: VecDeque<Ready>,
    /// The batch whose records are being handed out.
    current: Option<ConsumedBatch>,
    assigning: Option<BoxFuture<'static, Assignment>>,
    /// No assignment begins before this is over.
    pause: Option<Pin<Box<Sleep>>>,
    failures: u32,
    waiting: Option<(Instant, SystemTime)>,
}

struct Tracked {
    /// Where to go on after what was received.
    fetch: Position,
    /// Where to go on after what was handed out.
    handed_out: Position,
    state: State,
    polling: Arc<Polling>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unassigned,
    /// Read from this broker.
    Assigned(u64),
    /// Not read, because of an error that was told.
    Failed,
}

enum Ready {
    /// `generation` is that of the session that it came from.
    Batch {
        at: TopicPartition,
        broker: u64,
        generation: u64,
        received: Received,
    },
    Failure(Error),
}

impl Consumer {
    pub(super) async fn open(
        router: Arc<Router>,
        telemetry: Arc<Telemetry>,
        start: Vec<(TopicPartition, Position)>,
        config: ConsumerConfig,
    ) -> Result<Consumer, Error> {
        config.check()?;
        let mut consumer = Consumer {
            router,
            telemetry,
            config,
            partitions: HashMap::new(),
            sessions: BTreeMap::new(),
            generations: 0,
            ready: VecDeque::new(),
            current: None,
            assigning: None,
            pause: None,
            failures: 0,
            waiting: None,
        };
        consumer.add(start).await?;
        Ok(consumer)
    }

    /// Reads further partitions, or repositions ones that are being read.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTopic`], [`Error::UnknownPartition`], or that [`Position::Latest`] or a time could not be
    /// resolved. Then nothing has changed.
    pub async fn add(
        &mut self,
        start: impl IntoIterator<Item = (TopicPartition, Position)>,
    ) -> Result<(), Error> {
        let mut start: Vec<_> = start.into_iter().collect();
        let topics: HashSet<Arc<str>> = start.iter().map(|(at, _)| Arc::clone(&at.topic)).collect();
        for topic in topics {
            let route = self.router.refresh(&topic).await?;
            for (at, _) in start.iter().filter(|(at, _)| at.topic == topic) {
                route.check(at.partition)?;
            }
        }
        Self::resolve(&self.router, &mut start).await?;
        for (at, position) in start {
            self.forget_received(&at);
            let polling = self.polling(&at.topic);
            let tracked =
                Tracked { fetch: position, handed_out: position, state: State::Unassigned, polling };
            if let Some(old) = self.partitions.insert(at.clone(), tracked) {
                self.interrupt(old.state);
            } else {
                self.interrupt_if_read_before(&at);
            }
        }
        Ok(())
    }

    /// Goes on reading a partition at another position; also one whose error was told.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    pub async fn seek(&mut self, at: TopicPartition, position: Position) -> Result<(), Error> {
        self.add([(at, position)]).await
    }

    /// Stops reading partitions. Nothing of them is handed out any more.
    pub fn remove<'a>(&mut self, partitions: impl IntoIterator<Item = &'a TopicPartition>) {
        for at in partitions {
            self.forget_received(at);
            let Some(tracked) = self.partitions.remove(at) else { continue };
            if let State::Assigned(broker) = tracked.state
                && let Some(session) = self.sessions.get_mut(&broker)
            {
                session.remove(at);
            }
        }
    }

    /// The partitions that are being read, including those whose error was told, in no particular order.
    pub fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.partitions.keys()
    }

    /// Where a partition stands: the offset after the last record that was handed out, or where it began. `None` for
    /// a partition that is not being read.
    #[must_use]
    pub fn position(&self, at: &TopicPartition) -> Option<Position> {
        self.partitions.get(at).map(|tracked| tracked.handed_out)
    }

    /// The next batch, or what is left of the one whose records are being handed out. `None` when no partition is left
    /// to read.
    ///
    /// # Errors
    ///
    /// What keeps a partition from being read; see [`Consumer`].
    ///
    /// # Cancellation
    ///
    /// Nothing is lost when the call is dropped before it finishes.
    pub async fn next_batch(&mut self) -> Option<Result<ConsumedBatch, Error>> {
        std::future::poll_fn(|cx| self.poll_next_batch(cx)).await
    }

    /// Makes `process` spans and metrics, also on other tasks.
    #[must_use]
    pub fn processor(&self) -> Processor {
        Processor::new(Arc::clone(&self.telemetry))
    }

    /// Runs `handler` on a record inside a `process` span; see [`Processor::process`].
    /// The future does not borrow the consumer, so it is `Send` if the handler's is.
    pub fn process<'a, T, H>(
        &self,
        record: &'a ConsumedRecord,
        handler: H,
    ) -> impl Future<Output = T> + use<'a, T, H>
    where
        H: AsyncFnOnce(&'a ConsumedRecord) -> T,
    {
        let processor = self.processor();
        async move { processor.process(record, handler).await }
    }

    fn poll_next_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ConsumedBatch, Error>>> {
        let batch = match self.current.take().filter(|batch| !batch.is_empty()) {
            Some(batch) => Ok(batch),
            None => match std::task::ready!(self.poll_batch(cx)) {
                Some(result) => result,
                None => return Poll::Ready(None),
            },
        };
        if let Ok(batch) = &batch {
            self.handed_out(&batch.topic_partition(), batch.next_offset());
        }
        Poll::Ready(Some(batch))
    }

    /// A batch that was not handed out before.
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ConsumedBatch, Error>>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                let waiting = self.waiting.take();
                if let Some(result) = self.hand_out(ready, waiting) {
                    return Poll::Ready(Some(result));
                }
                continue;
            }
            let progress = self.poll_assignment(cx) | self.poll_sessions(cx);
            if !self.ready.is_empty() || progress {
                continue;
            }
            if self.partitions.values().all(|tracked| tracked.state == State::Failed) {
                return Poll::Ready(None);
            }
            self.waiting.get_or_insert_with(|| (Instant::now(), SystemTime::now()));
            return Poll::Pending;
        }
    }

    fn hand_out(
        &mut self,
        ready: Ready,
        waiting: Option<(Instant, SystemTime)>,
    ) -> Option<Result<ConsumedBatch, Error>> {
        let (since, began) = waiting.unwrap_or_else(|| (Instant::now(), SystemTime::now()));
        let (at, received) = match ready {
            Ready::Failure(error) => {
                self.telemetry.poll_failed(since.elapsed(), &error);
                return Some(Err(error));
            }
            Ready::Batch { at, broker, generation, received } => {
                self.grant(broker, generation, received.bytes());
                (at, received)
            }
        };
        let polling = Arc::clone(&self.partitions.get(&at)?.polling);
        match received.open(&at, self.config.uncompressed_bytes_max) {
            Ok(batch) => {
                polling.handed_out(batch.record_count(), since.elapsed());
                let contexts = batch.sampled_contexts();
                self.telemetry.polled(&at.topic, at.partition, batch.record_count(), began, &contexts);
                Some(Ok(batch))
            }
            Err(error) => {
                self.telemetry.poll_failed(since.elapsed(), &error);
                self.fail(&at);
                Some(Err(error))
            }
        }
    }

    fn handed_out(&mut self, at: &TopicPartition, next: Offset) {
        if let Some(tracked) = self.partitions.get_mut(at) {
            tracked.handed_out = Position::Offset(next);
        }
    }

    fn grant(&mut self, broker: u64, generation: u64, bytes: u64) {
        if let Some(session) = self.sessions.get_mut(&broker)
            && session.generation() == generation
        {
            session.grant(bytes);
        }
    }

    // Reading from sessions.

    /// Says whether something was received or changed.
    fn poll_sessions(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        let brokers: Vec<u64> = self.sessions.keys().copied().collect();
        for broker in brokers {
            // One message per session and turn, so that a busy broker does not keep others waiting.
            let Some(session) = self.sessions.get_mut(&broker) else { continue };
            let Poll::Ready(message) = session.poll(cx) else { continue };
            progress = true;
            match message {
                Ok(Some(records)) => self.received(broker, records),
                Ok(None) => {}
                Err(_) => self.session_lost(broker),
            }
        }
        progress
    }

    fn received(&mut self, broker: u64, records: v1::PartitionRecords) {
        let at = TopicPartition::new(records.topic, records.partition);
        let Some(generation) = self.sessions.get(&broker).map(Session::generation) else { return };
        let tracked = self.partitions.get_mut(&at).filter(|tracked| tracked.state == State::Assigned(broker));
        let Some(tracked) = tracked else {
            // It was removed while this was on its way.
            let bytes = records.batches.iter().map(|batch| batch.batch.len() as u64).sum();
            self.grant(broker, generation, bytes);
            return;
        };
        let mut skipped = 0;
        for stored in records.batches {
            let end = Offset(stored.base_offset).saturating_add(u64::from(stored.record_count));
            let from = match tracked.fetch {
                Position::Offset(from) => from,
                _ => Offset(stored.base_offset),
            };
            if end <= from {
                skipped += stored.batch.len() as u64;
                continue;
            }
            tracked.fetch = Position::Offset(end);
            let received = Received::new(stored, from, records.high_watermark, records.log_start_offset);
            self.ready.push_back(Ready::Batch { at: at.clone(), broker, generation, received });
        }
        if skipped > 0 {
            self.grant(broker, generation, skipped);
        }
        match records.error {
            Some(error) => self.partition_failed(broker, &at, error.into()),
            None => self.failures = 0,
        }
    }

    /// The broker stopped reading a partition.
    fn partition_failed(&mut self, broker: u64, at: &TopicPartition, error: Error) {
        if let Some(session) = self.sessions.get_mut(&broker) {
            session.ended(at);
        }
        let Some(tracked) = self.partitions.get_mut(at) else { return };
        let reset = match self.config.on_out_of_range {
            OffsetReset::Fail => None,
            OffsetReset::Earliest => Some(Position::Earliest),
            OffsetReset::Latest => Some(Position::Latest),
        };
        match (error.code(), reset) {
            (Some(ErrorCode::OffsetOutOfRange), Some(position)) => {
                tracked.fetch = position;
                tracked.state = State::Unassigned;
            }
            _ if error.is_retriable() => {
                tracked.state = State::Unassigned;
                self.pause(&error);
            }
            _ => {
                tracked.state = State::Failed;
                self.ready.push_back(Ready::Failure(error.at(&at.topic, at.partition)));
            }
        }
    }

    fn session_lost(&mut self, broker: u64) {
        let Some(mut session) = self.sessions.remove(&broker) else { return };
        let error = session.take_error();
        let passes = error.is_retriable();
        tracing::warn!(broker, %error, retry = passes, "subscription lost");
        for (at, tracked) in &mut self.partitions {
            if tracked.state != State::Assigned(broker) {
                continue;
            }
            if passes {
                tracked.state = State::Unassigned;
            } else {
                tracked.state = State::Failed;
                self.ready.push_back(Ready::Failure(error.clone().at(&at.topic, at.partition)));
            }
        }
        if passes {
            self.pause(&error);
        }
    }

    /// Waits before the next assignment.
    fn pause(&mut self, error: &Error) {
        if self.pause.is_none() {
            self.failures = self.failures.saturating_add(1);
            let delay = self.router.config().backoff.delay_after(self.failures, error);
            self.pause = Some(Box::pin(sleep(delay)));
        }
    }

    fn fail(&mut self, at: &TopicPartition) {
        self.forget_received(at);
        let Some(tracked) = self.partitions.get_mut(at) else { return };
        if let State::Assigned(broker) = std::mem::replace(&mut tracked.state, State::Failed)
            && let Some(session) = self.sessions.get_mut(&broker)
        {
            session.remove(at);
        }
    }

    /// Ends the session of a partition that is repositioned: what is on its way could not be told from what comes
    /// after. The session's other partitions go on in a new one.
    fn interrupt(&mut self, state: State) {
        let State::Assigned(broker) = state else { return };
        self.sessions.remove(&broker);
        for tracked in self.partitions.values_mut() {
            if tracked.state == State::Assigned(broker) {
                tracked.state = State::Unassigned;
            }
        }
    }

    /// The same for a partition that was removed and comes back.
    fn interrupt_if_read_before(&mut self, at: &TopicPartition) {
        let has_read = |(_, session): &(&u64, &Session)| session.has_read(at);
        if let Some(broker) = self.sessions.iter().find(has_read).map(|(broker, _)| *broker) {
            self.interrupt(State::Assigned(broker));
        }
    }

    /// Drops what was received of a partition and not handed out.
    fn forget_received(&mut self, at: &TopicPartition) {
        if self.current.as_ref().is_some_and(|batch| batch.topic_partition() == *at) {
            self.current = None;
        }
        for ready in std::mem::take(&mut self.ready) {
            match ready {
                Ready::Batch { at: of, broker, generation, received } if of == *at => {
                    self.grant(broker, generation, received.bytes());
                }
                other => self.ready.push_back(other),
            }
        }
    }

    /// Replaces positions that mean something else after a reconnection by the offsets that they mean now.
    ///
    /// Without the consumer, which is not `Sync`: a future that borrowed it could not be spawned.
    async fn resolve(router: &Router, start: &mut [(TopicPartition, Position)]) -> Result<(), Error> {
        let moving: Vec<usize> = (0..start.len())
            .filter(|at| matches!(start[*at].1, Position::Latest | Position::Time(_)))
            .collect();
        if moving.is_empty() {
            return Ok(());
        }
        let asked: Vec<_> = moving.iter().map(|at| start[*at].clone()).collect();
        for (at, offset) in moving.into_iter().zip(list_offsets(router, &asked).await?) {
            start[at].1 = Position::Offset(offset?);
        }
        Ok(())
    }

    /// The instruments of a topic; its partitions share them.
    fn polling(&self, topic: &str) -> Arc<Polling> {
        let known = self.partitions.iter().find(|(at, _)| &*at.topic == topic);
        match known {
            Some((_, tracked)) => Arc::clone(&tracked.polling),
            None => Arc::new(self.telemetry.polling(topic)),
        }
    }
}

impl Stream for Consumer {
    type Item = Result<ConsumedRecord, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(record) = self.current.as_mut().and_then(ConsumedBatch::next_record) {
                let next = record.offset.saturating_add(1);
                self.handed_out(&record.topic_partition(), next);
                return Poll::Ready(Some(Ok(record)));
            }
            match std::task::ready!(self.poll_batch(cx)) {
                Some(Ok(batch)) => self.current = Some(batch),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("config", &self.config)
            .field("partitions", &self.partitions.len())
            .field("sessions", &self.sessions.len())
            .finish_non_exhaustive()
    }
}
