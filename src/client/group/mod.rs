//! Reading as a member of a consumer group.
//!
//! A [`GroupConsumer`] is a member of a group, which the broker gives partitions and takes them away. Its tasks
//! ([`membership`]) serve the stream and carry out changes of the assignment; what they and the program share is in
//! [`state`], how far the program is with each partition in [`progress`], and what is committed of that in [`commits`].
//!
//! An assignment of a partition is a *claim* with a number. Everything that was received or is being processed names its
//! claim, so that what belongs to a partition that was lost and came back is not taken for something new.

mod commits;
mod config;
mod listener;
mod membership;
mod progress;
mod state;

#[cfg(test)]
mod tests;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use futures_util::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

pub use commits::{Committer, PendingCommit};
pub use config::{CommitMode, GroupConfig};
pub use listener::{AssignedPartition, RebalanceListener};

use super::admin::fetch_offsets;
use super::consumer::{ConsumedBatch, Processor};
use super::routing::Router;
use super::telemetry::Telemetry;
use super::{CommittedOffset, ConsumedRecord, Error, Offset, OffsetCommit, TopicPartition, member};
use membership::{Change, Member, Rebalancer};
use state::{ClaimId, HandOut, Next, Shared};

/// Reads the partitions that its group gives it. Made by [`Client::group_consumer`](super::Client::group_consumer).
///
/// It is a [`Stream`] of records; [`next_batch`](Self::next_batch) gives them in the batches in which they are stored.
/// Records of a partition come in order, beginning at what the group has committed. What the group delivers is
/// committed as [`CommitMode`] says. After a failure a record is delivered again unless its offset was committed.
///
/// A task of its own keeps the membership alive while the program is busy, and joins again when the connection breaks or
/// the broker has removed the member: records that were received and not handed out are dropped then, and reading goes
/// on at what was committed. An `Err` item concerns one partition, which is not read any further; or it says why the
/// member cannot join any more, and then the stream ends.
///
/// [`close`](Self::close) commits and leaves. Dropping the consumer only closes the stream: nothing is committed.
pub struct GroupConsumer {
    shared: Arc<Shared>,
    changes: mpsc::UnboundedSender<Change>,
    /// The batch whose records are being handed out.
    current: Option<(ClaimId, ConsumedBatch)>,
    /// Batches of which the program was given a part when it paused their partitions.
    aside: Vec<(ClaimId, ConsumedBatch)>,
    waiting: Option<(Instant, SystemTime)>,
    /// End when this is dropped.
    tasks: JoinSet<()>,
}

impl GroupConsumer {
    pub(super) async fn join(
        router: Arc<Router>,
        telemetry: &Telemetry,
        mut config: GroupConfig,
        listener: impl RebalanceListener,
    ) -> Result<GroupConsumer, Error> {
        config.check()?;
        if config.client_id.is_none() {
            config.client_id.clone_from(&router.config().client_id);
        }
        let telemetry = Arc::new(telemetry.for_group(&config.group));
        let shared = Arc::new(Shared::new(config, Arc::clone(&router), telemetry));
        let (changes, receiver) = mpsc::unbounded_channel();
        let member = Arc::new(Member { shared: Arc::clone(&shared), changes: changes.clone() });
        let rebalancer =
            Rebalancer { shared: Arc::clone(&shared), listener: Box::new(listener), changes: receiver };
        let (first, joined) = oneshot::channel();
        // A library has no supervisor of its own; the tasks end with the consumer.
        let mut tasks = JoinSet::new();
        tasks.spawn(member::run(member, router, first));
        tasks.spawn(rebalancer.run());
        let gone = || Error::Connection { reason: "the runtime is shutting down".into() };
        joined.await.unwrap_or_else(|_| Err(gone()))?;
        Ok(GroupConsumer { shared, changes, current: None, aside: Vec::new(), waiting: None, tasks })
    }

    /// The next batch, or what is left of the one whose records are being handed out. Asking for it says that
    /// everything before is processed. `None` when the member cannot join its group any more.
    ///
    /// # Errors
    ///
    /// See [`GroupConsumer`].
    ///
    /// # Cancellation
    ///
    /// Nothing is lost when the call is dropped before it finishes.
    pub async fn next_batch(&mut self) -> Option<Result<ConsumedBatch, Error>> {
        std::future::poll_fn(|cx| self.poll_next_batch(cx)).await
    }

    /// Runs `handler` on a record inside a `process` span; see [`Processor::process`]. The record is processed when the
    /// handler is done, and not before, even if the program asks for the next one meanwhile: handlers may run side by
    /// side. If the future is dropped before, the record counts as processed when the program asks for what follows.
    ///
    /// The future does not borrow the consumer, so it is `Send` if the handler's is.
    pub fn process<'a, T, H>(
        &self,
        record: &'a ConsumedRecord,
        handler: H,
    ) -> impl Future<Output = T> + use<'a, T, H>
    where
        H: AsyncFnOnce(&'a ConsumedRecord) -> T,
    {
        let handling = self.shared.begin(record);
        let processor = self.processor();
        async move {
            let result = processor.process(record, handler).await;
            if let Some(handling) = handling {
                handling.done();
            }
            result
        }
    }

    /// Makes `process` spans and metrics, also on other tasks, without a bearing on what is committed.
    #[must_use]
    pub fn processor(&self) -> Processor {
        Processor::new(Arc::clone(&self.shared.telemetry))
    }

    /// Commits offsets, also on other tasks.
    #[must_use]
    pub fn committer(&self) -> Committer {
        Committer::new(Arc::clone(&self.shared))
    }

    /// Commits everything that was handed out; see [`Committer::commit`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn commit(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let committer = self.committer();
        async move { committer.commit().await }
    }

    /// Commits what the program says; see [`Committer::commit_offsets`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn commit_offsets<I>(&self, offsets: I) -> impl Future<Output = Result<(), Error>> + Send + use<I>
    where
        I: IntoIterator<Item = OffsetCommit> + Send,
    {
        let committer = self.committer();
        async move { committer.commit_offsets(offsets).await }
    }

    /// Sends a commit without waiting for what becomes of it; see [`Committer::commit_async`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn commit_async<I>(
        &self,
        offsets: I,
    ) -> impl Future<Output = Result<PendingCommit, Error>> + Send + use<I>
    where
        I: IntoIterator<Item = OffsetCommit> + Send,
    {
        let committer = self.committer();
        async move { committer.commit_async(offsets).await }
    }

    /// What the group has committed of the partitions that the member has.
    ///
    /// # Errors
    ///
    /// That no broker answered.
    pub fn committed(&self) -> impl Future<Output = Result<Vec<CommittedOffset>, Error>> + Send + use<> {
        let (shared, assignment) = (Arc::clone(&self.shared), self.assignment());
        async move {
            if assignment.is_empty() {
                return Ok(Vec::new());
            }
            fetch_offsets(&shared.router, &shared.config.group, &assignment).await
        }
    }

    /// The partitions that the member has, in order, without those that it is to give up.
    #[must_use]
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.shared.lock().assignment()
    }

    /// Hands out nothing more of these partitions until they are [resumed](Self::resume), and has the broker send nothing
    /// more. The member keeps them and its place in them: it stays in its group, what it was given can be committed as
    /// before, and their lag counts. Other partitions go on.
    ///
    /// What was received and is not handed out yet is kept, up to [`credit_bytes`](GroupConfig::credit_bytes) for each
    /// partition and beside those for the others; a batch from [`next_batch`](Self::next_batch) is the program's
    /// already. A pause lasts when the connection breaks and the member gets the partition back. It ends when the
    /// partition is taken away. Partitions that the member does not have are passed over.
    pub fn pause(&self, partitions: &[TopicPartition]) {
        self.shared.pause(partitions);
    }

    /// Goes on with paused partitions after the last record that was handed out. Those that are not paused are passed
    /// over. If retention has deleted what follows, they are assigned anew, as when the member joins.
    pub fn resume(&self, partitions: &[TopicPartition]) {
        self.shared.resume(partitions);
    }

    /// The partitions that the member has and the program has paused, in order.
    #[must_use]
    pub fn paused(&self) -> Vec<TopicPartition> {
        self.shared.lock().paused()
    }

    /// The offset after the last record of a partition that was handed out, or where the partition began. `None` if the
    /// member does not have it.
    #[must_use]
    pub fn position(&self, at: &TopicPartition) -> Option<Offset> {
        self.shared.lock().position(at)
    }

    /// The member's name within its group.
    #[must_use]
    pub fn member_id(&self) -> String {
        self.shared.lock().member_id.clone()
    }

    /// Tells the listener that all partitions go, commits (in [`CommitMode::Auto`]) everything that was handed out,
    /// except for records on which a handler runs, and leaves the group.
    ///
    /// # Errors
    ///
    /// That something was not committed, or may not have been. The consumer is closed all the same.
    pub async fn close(mut self) -> Result<(), Error> {
        self.current = None;
        self.shared.lock().settle_all();
        self.shared.settled.notify_waiters();
        let (done, left) = oneshot::channel();
        // Both tasks live as long as the consumer.
        let _ = self.changes.send(Change::Leave(done));
        let result = left.await.unwrap_or(Ok(()));
        let connected = self.shared.lock().session.is_some();
        if connected {
            // The broker ends the stream when it has carried out everything; whether it says so is of no consequence.
            let _ = timeout(self.shared.router.config().request_timeout, self.tasks.join_next()).await;
        }
        result
    }

    fn poll_next_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ConsumedBatch, Error>>> {
        loop {
            if let Some((claim, batch)) = self.current.take().filter(|(_, batch)| !batch.is_empty()) {
                match self.shared.hand_out(claim, batch.next_offset()) {
                    HandOut::Given => return Poll::Ready(Some(Ok(batch))),
                    HandOut::Paused => self.aside.push((claim, batch)),
                    HandOut::Over => {}
                }
            }
            match ready!(self.poll_batch(cx)) {
                Some(Ok(current)) => self.current = Some(current),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }

    /// A batch that was put aside, and whose partition is not paused any more.
    fn resumed(&mut self) -> Option<(ClaimId, ConsumedBatch)> {
        if self.aside.is_empty() {
            return None;
        }
        let state = self.shared.lock();
        self.aside.retain(|(claim, _)| state.holds(*claim));
        let at = self.aside.iter().position(|(claim, _)| !state.is_paused(*claim))?;
        Some(self.aside.remove(at))
    }

    /// The batch that comes next.
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(ClaimId, ConsumedBatch), Error>>> {
        if let Some(resumed) = self.resumed() {
            return Poll::Ready(Some(Ok(resumed)));
        }
        let Poll::Ready(next) = self.shared.poll_next(cx) else {
            self.waiting.get_or_insert_with(|| (Instant::now(), SystemTime::now()));
            return Poll::Pending;
        };
        let (since, began) = self.waiting.take().unwrap_or_else(|| (Instant::now(), SystemTime::now()));
        let telemetry = &self.shared.telemetry;
        let result = match next {
            Next::End => return Poll::Ready(None),
            Next::Failure(error) => Err(error),
            Next::Batch { claim, at, polling, received } => {
                match received.open(&at, self.shared.config.uncompressed_bytes_max) {
                    Ok(batch) => {
                        polling.handed_out(batch.record_count(), since.elapsed());
                        let contexts = batch.sampled_contexts();
                        telemetry.polled(&at.topic, at.partition, batch.record_count(), began, &contexts);
                        Ok((claim, batch))
                    }
                    Err(error) => {
                        self.shared.spoil(claim);
                        Err(error)
                    }
                }
            }
        };
        if let Err(error) = &result {
            telemetry.poll_failed(since.elapsed(), error);
        }
        Poll::Ready(Some(result))
    }
}

impl Stream for GroupConsumer {
    type Item = Result<ConsumedRecord, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some((claim, mut batch)) = this.current.take().filter(|(_, batch)| !batch.is_empty()) {
                match this.shared.hand_out(claim, batch.base_offset().saturating_add(1)) {
                    HandOut::Given => {
                        let record = batch.next_record();
                        this.current = Some((claim, batch));
                        return Poll::Ready(record.map(Ok));
                    }
                    HandOut::Paused => this.aside.push((claim, batch)),
                    HandOut::Over => {}
                }
            }
            match ready!(this.poll_batch(cx)) {
                Some(Ok(current)) => this.current = Some(current),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl fmt::Debug for GroupConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupConsumer")
            .field("config", &self.shared.config)
            .field("assignment", &self.assignment())
            .finish_non_exhaustive()
    }
}
