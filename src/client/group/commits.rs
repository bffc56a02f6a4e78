//! Committing offsets on a member's stream.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::progress::Progress;
use super::state::{ClaimId, Shared};
use crate::client::telemetry::{Settle, Settled, sampled_current};
use crate::client::{Error, ErrorCode, Offset, OffsetCommit, TopicPartition};
use crate::proto::v1;
use crate::proto::v1::subscribe_request::Action;

/// Offsets that one request takes.
const OFFSETS_MAX: usize = 1_000;

/// Commits offsets of a [`GroupConsumer`](super::GroupConsumer). Cheap to clone, and of use on other tasks.
///
/// A commit that succeeded is on the disks of a majority. One that fails with the code
/// [`MemberFenced`](ErrorCode::MemberFenced) was for a partition that is not the member's any more: whoever has it now
/// reads again what was not committed.
#[derive(Clone)]
pub struct Committer {
    shared: Arc<Shared>,
    /// Given to a listener: the partitions that it is about.
    claims: Option<Arc<[ClaimId]>>,
}

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committer").field("group", &self.shared.config.group).finish_non_exhaustive()
    }
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>) -> Committer {
        Committer { shared, claims: None }
    }

    /// One for a listener, whose `commit` leaves other partitions alone.
    pub(super) fn of(shared: Arc<Shared>, claims: &[ClaimId]) -> Committer {
        Committer { shared, claims: Some(claims.into()) }
    }

    /// Commits everything that the program was given, which says that it has been processed; except for records on
    /// which a handler still runs (see [`process`](super::GroupConsumer::process)), and what follows them. In a
    /// listener: what was processed of the partitions that it is told of.
    ///
    /// A broker that is busy is asked again until `request_timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Partition`] with the first partition that failed; [`Error::NotMember`] while the member is joining
    /// anew; a connection that broke, in which case the commit may have happened.
    pub async fn commit(&self) -> Result<(), Error> {
        if self.claims.is_none() {
            self.shared.lock().settle_all();
        }
        self.shared.settled.notify_waiters();
        // Looked at anew for each attempt: the interval may have committed more meanwhile.
        let unacknowledged = || {
            let progress = self.shared.lock().progress_of(self.claims.as_deref(), Progress::unacknowledged);
            progress.into_iter().map(|(at, offset)| OffsetCommit::new(at, offset)).collect()
        };
        self.commit_with_retries(unacknowledged).await
    }

    /// Commits what the program says, whether it was handed out or not.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub async fn commit_offsets(
        &self,
        offsets: impl IntoIterator<Item = OffsetCommit> + Send,
    ) -> Result<(), Error> {
        let offsets: Vec<OffsetCommit> = offsets.into_iter().collect();
        self.commit_with_retries(|| offsets.clone()).await
    }

    async fn commit_with_retries(
        &self,
        offsets: impl Fn() -> Vec<OffsetCommit> + Send + Sync,
    ) -> Result<(), Error> {
        let config = self.shared.router.config();
        let give_up = Instant::now() + config.request_timeout;
        let mut failures = 0;
        loop {
            let limit = give_up.saturating_duration_since(Instant::now());
            let attempt = async { self.commit_async(offsets()).await?.await };
            let result = timeout(limit, attempt).await;
            let result = result.unwrap_or(Err(Error::Timeout { from: None, after: config.request_timeout }));
            let Err(error) = result else { return Ok(()) };
            failures += 1;
            let delay = config.backoff.delay_after(failures, &error);
            // After a connection broke others may have the partitions, and may have committed more.
            let refused = error.code().is_some() && error.is_retriable();
            if !refused || Instant::now() + delay >= give_up {
                return Err(error);
            }
            sleep(delay).await;
        }
    }

    /// Sends a commit, waiting only while
    /// [`commits_in_flight_max`](super::GroupConfig::commits_in_flight_max) are under way. What became of it is told by
    /// the [`PendingCommit`], which may be dropped. Commits are carried out in the order in which they are sent.
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`], without anything having been sent.
    pub async fn commit_async(
        &self,
        offsets: impl IntoIterator<Item = OffsetCommit> + Send,
    ) -> Result<PendingCommit, Error> {
        let offsets: Vec<OffsetCommit> = offsets.into_iter().collect();
        let mut waiting = Vec::new();
        for chunk in offsets.chunks(OFFSETS_MAX) {
            let permit = Arc::clone(&self.shared.permits).acquire_owned().await;
            let permit = permit.expect("nobody closes the semaphore");
            let (waiter, outcome) = oneshot::channel();
            self.shared.send_commit(chunk.to_vec(), Some(waiter), permit)?;
            waiting.push(outcome);
        }
        let outcome = async move {
            let mut result = Ok(());
            for outcome in waiting {
                let gone = || Error::Connection { reason: "the consumer is gone".into() };
                result = result.and(outcome.await.unwrap_or_else(|_| Err(gone())));
            }
            result
        };
        Ok(PendingCommit { outcome: outcome.boxed() })
    }

    /// The partitions that the member has, in order, without those that it is to give up.
    #[must_use]
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.shared.lock().assignment()
    }

    /// The offset after the last record of a partition that the program was given, or where the partition began.
    /// `None` if the member does not have it.
    #[must_use]
    pub fn position(&self, at: &TopicPartition) -> Option<Offset> {
        self.shared.lock().position(at)
    }
}

/// A commit that was sent. Awaiting it tells whether all of its offsets were committed.
#[must_use = "a failure is told only here"]
pub struct PendingCommit {
    outcome: BoxFuture<'static, Result<(), Error>>,
}

impl Future for PendingCommit {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.outcome.poll_unpin(cx)
    }
}

impl fmt::Debug for PendingCommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingCommit").finish_non_exhaustive()
    }
}

/// Commits under way, by correlation id.
#[derive(Default)]
pub(super) struct Commits {
    made: u64,
    under_way: BTreeMap<u64, Commit>,
}

struct Commit {
    offsets: Vec<(TopicPartition, Offset)>,
    waiter: Option<oneshot::Sender<Result<(), Error>>>,
    began: SystemTime,
    parent: Option<opentelemetry::Context>,
    _permit: OwnedSemaphorePermit,
}

impl Shared {
    /// Sends what was processed and not committed yet. What does not fit under way is left for the next time.
    pub(super) fn commit_processed(&self) {
        let offsets = self.lock().progress_of(None, Progress::uncommitted);
        for chunk in offsets.chunks(OFFSETS_MAX) {
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return };
            let chunk = chunk.iter().map(|(at, offset)| OffsetCommit::new(at.clone(), *offset)).collect();
            // Without a session there is nothing to commit any more.
            if self.send_commit(chunk, None, permit).is_err() {
                return;
            }
        }
    }

    fn send_commit(
        &self,
        offsets: Vec<OffsetCommit>,
        waiter: Option<oneshot::Sender<Result<(), Error>>>,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), Error> {
        let parent = sampled_current();
        let mut state = self.lock();
        if state.session.is_none() {
            let reason = if state.leaving { "it is closed" } else { "it is joining anew" };
            return Err(Error::NotMember { group: self.config.group.clone(), reason: reason.into() });
        }
        for commit in &offsets {
            if let Some(progress) = state.progress_mut(&commit.at) {
                progress.ask(commit.offset);
            }
        }
        state.commits.made += 1;
        let correlation_id = state.commits.made;
        let noted = offsets.iter().map(|commit| (commit.at.clone(), commit.offset)).collect();
        let commit = Commit { offsets: noted, waiter, began: SystemTime::now(), parent, _permit: permit };
        state.commits.under_way.insert(correlation_id, commit);
        if let Some(session) = &state.session {
            let offsets = offsets.into_iter().map(v1::OffsetCommit::from).collect();
            session.requests.send(Action::Commit(v1::Commit {
                correlation_id,
                epoch: session.epoch,
                offsets,
            }));
        }
        Ok(())
    }

    /// The broker said what became of a commit.
    pub(super) fn committed(&self, committed: v1::Committed) -> Result<(), Error> {
        let mut state = self.lock();
        let Some(commit) = state.commits.under_way.remove(&committed.correlation_id) else {
            let what = format!("commit {} was not sent", committed.correlation_id);
            return Err(Error::InvalidResponse { what });
        };
        let wrong = committed.results.len() != commit.offsets.len();
        let errors = committed.results.into_iter().map(|result| result.error.map(Error::from));
        let mut failures: Vec<(&TopicPartition, Error)> = Vec::new();
        for ((at, offset), error) in commit.offsets.iter().zip(errors) {
            if let Some(progress) = state.progress_mut(at) {
                progress.answered(*offset, error.is_none());
            }
            failures.extend(error.map(|error| (at, error)));
        }
        drop(state);
        if wrong {
            let what = "a commit's answer has a wrong number of results".to_owned();
            let error = Error::InvalidResponse { what };
            commit.tell(Err(error.clone()));
            return Err(error);
        }
        self.note_commit(&commit, &failures);
        let mut failures = failures.into_iter().map(|(at, error)| error.at(&at.topic, at.partition));
        let first = failures.next();
        if commit.waiter.is_none() {
            for error in first.iter().cloned().chain(failures) {
                // It was given up meanwhile; whoever has it now reads it again.
                if error.code() == Some(ErrorCode::MemberFenced) {
                    tracing::debug!(%error, "offset not committed");
                } else {
                    tracing::warn!(%error, "offset not committed");
                }
            }
        }
        commit.tell(first.map_or(Ok(()), Err));
        Ok(())
    }

    /// The membership is over; commits that were not answered may have happened.
    pub(super) fn fail_commits(&self, error: &Error) {
        let commits = std::mem::take(&mut self.lock().commits.under_way);
        for commit in commits.into_values() {
            self.note_commit(
                &commit,
                &commit.offsets.iter().map(|(at, _)| (at, error.clone())).collect::<Vec<_>>(),
            );
            commit.tell(Err(error.clone()));
        }
    }

    fn note_commit(&self, commit: &Commit, failures: &[(&TopicPartition, Error)]) {
        let topics: std::collections::BTreeSet<&str> =
            commit.offsets.iter().map(|(at, _)| &*at.topic).collect();
        for topic in topics {
            let failure = failures.iter().find(|(at, _)| &*at.topic == topic).map(|(_, error)| error);
            self.telemetry.settled(
                Settle::Commit,
                &Settled {
                    topic,
                    began: commit.began,
                    parent: commit.parent.as_ref(),
                    contexts: &[],
                    messages: None,
                    failure,
                },
            );
        }
    }
}

impl Commit {
    fn tell(self, result: Result<(), Error>) {
        if let Some(waiter) = self.waiter {
            // Whoever asked may not care any more.
            let _ = waiter.send(result);
        }
    }
}
