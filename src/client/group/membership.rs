//! The tasks of a consumer: one serves the stream, one carries out what the broker assigns and revokes.
//!
//! They are two so that keepalives are answered while the listener is at work, and neither is the program's own, so
//! that a program that is busy with a record remains a member.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::listener::AnyListener;
use super::progress::Progress;
use super::state::{ClaimId, Shared};
use super::{AssignedPartition, CommitMode, Committer};
use crate::client::member::{Requests, Responses, Role, ended};
use crate::client::{Error, OffsetCommit, TopicPartition};
use crate::proto::v1;
use crate::proto::v1::subscribe_request::Action;
use crate::proto::v1::subscribe_response::Event;

/// What is to be done about partitions, in order.
pub(super) enum Change {
    Assigned(Vec<(ClaimId, AssignedPartition)>),
    Revoked {
        claims: Vec<ClaimId>,
        since: Instant,
        within: Duration,
    },
    Lost(Vec<TopicPartition>),
    /// Leave the group, and tell what became of the last commit.
    Leave(oneshot::Sender<Result<(), Error>>),
}

/// Serves a member's stream.
pub(super) struct Member {
    pub(super) shared: Arc<Shared>,
    /// Unbounded: there are no more changes than what the broker assigns.
    pub(super) changes: mpsc::UnboundedSender<Change>,
}

impl Role for Member {
    fn request(&self) -> v1::JoinGroup {
        let member_id = self.shared.lock().member_id.clone();
        self.shared.config.request(member_id)
    }

    fn joined(&self, joined: v1::GroupJoined, requests: Requests) {
        self.shared.joined(joined, requests);
    }

    async fn serve(&self, responses: &mut Responses) -> Error {
        // A consumer that does not commit by itself has a timer that nobody looks at.
        let period = match self.shared.config.commit {
            CommitMode::Auto { interval } => interval,
            CommitMode::Manual => Duration::from_secs(3600),
        };
        let commits = self.shared.commits_itself();
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        loop {
            tokio::select! {
                response = responses.message() => {
                    let handled = match response {
                        Ok(Some(response)) => self.handle(response),
                        Ok(None) => Err(ended()),
                        Err(status) => Err(status.into()),
                    };
                    if let Err(error) = handled {
                        return error;
                    }
                }
                _ = ticks.tick(), if commits => self.shared.commit_processed(),
                () = self.shared.commit_now.notified(), if commits => self.shared.commit_processed(),
            }
        }
    }

    fn lost(&self, error: &Error) {
        let partitions = self.shared.lost();
        self.shared.fail_commits(error);
        if !partitions.is_empty() {
            self.change(Change::Lost(partitions));
        }
    }

    fn failed(&self, error: Error) {
        self.shared.end(Some(error));
    }

    fn leaving(&self) -> bool {
        self.shared.lock().leaving
    }
}

impl Member {
    fn handle(&self, response: v1::SubscribeResponse) -> Result<(), Error> {
        match response.event {
            Some(Event::Records(records)) => self.shared.received(records)?,
            Some(Event::Keepalive(_)) => {
                if let Some(session) = &self.shared.lock().session {
                    session.requests.send(Action::Heartbeat(v1::Heartbeat {}));
                }
            }
            Some(Event::Assigned(assigned)) => {
                let claims = self.shared.assigned(assigned);
                for (_, partition) in claims.iter().filter(|(_, partition)| partition.missed_records > 0) {
                    tracing::warn!(
                        topic = &*partition.at.topic,
                        partition = partition.at.partition,
                        missed_records = partition.missed_records,
                        "records were deleted before the group read them"
                    );
                }
                self.change(Change::Assigned(claims));
            }
            Some(Event::Revoked(revoked)) => {
                let claims = self.shared.revoked(&revoked);
                let within = revoked.deadline.and_then(|deadline| deadline.try_into().ok());
                let within = within.unwrap_or(self.shared.config.rebalance_timeout);
                self.change(Change::Revoked { claims, since: Instant::now(), within });
            }
            Some(Event::Committed(committed)) => self.shared.committed(committed)?,
            // Joined comes once, acknowledged is for share groups, and the rest is not known yet.
            Some(Event::Joined(_) | Event::Acknowledged(_)) | None => {}
        }
        Ok(())
    }

    fn change(&self, change: Change) {
        // The other task ends only when the consumer does.
        let _ = self.changes.send(change);
    }
}

/// Carries out changes of the assignment, one after the other.
pub(super) struct Rebalancer {
    pub(super) shared: Arc<Shared>,
    pub(super) listener: Box<dyn AnyListener>,
    pub(super) changes: mpsc::UnboundedReceiver<Change>,
}

impl Rebalancer {
    pub(super) async fn run(mut self) {
        while let Some(change) = self.changes.recv().await {
            match change {
                Change::Assigned(claims) => self.assigned(claims).await,
                Change::Revoked { claims, since, within } => {
                    // An outcome that is unknown shows when the next owner reads on.
                    if let Err(error) = self.give_up(&claims, since, within).await {
                        tracing::warn!(%error, "the last commit of revoked partitions failed");
                    }
                    self.shared.release(&claims);
                }
                Change::Lost(partitions) => self.listener.lost(&partitions).await,
                Change::Leave(done) => {
                    let result = self.leave().await;
                    let _ = done.send(result);
                }
            }
        }
    }

    async fn assigned(&self, claims: Vec<(ClaimId, AssignedPartition)>) {
        // What was lost meanwhile is not announced.
        let held: Vec<_> = {
            let state = self.shared.lock();
            claims.into_iter().filter(|(claim, _)| state.holds(*claim)).collect()
        };
        let (claims, partitions): (Vec<_>, Vec<_>) = held.into_iter().unzip();
        if claims.is_empty() {
            return;
        }
        let committer = Committer::of(Arc::clone(&self.shared), &claims);
        self.listener.assigned(&partitions, &committer).await;
        self.shared.activate(&claims);
    }

    /// Lets the program finish what it has in hand, tells the listener, and commits: with half of the time for the
    /// first and most of the rest for the second.
    async fn give_up(&self, claims: &[ClaimId], since: Instant, within: Duration) -> Result<(), Error> {
        let quiet = self.shared.until(|state| state.is_quiet(claims));
        if timeout_at(since + within / 2, quiet).await.is_err() {
            tracing::warn!("a record of a revoked partition is still being processed");
        }
        let partitions = self.shared.lock().partitions(claims);
        if partitions.is_empty() {
            return Ok(());
        }
        let committer = Committer::of(Arc::clone(&self.shared), claims);
        let told = self.listener.revoked(&partitions, &committer);
        if timeout_at(since + within * 9 / 10, told).await.is_err() {
            tracing::warn!("the listener took too long; partitions are released");
        }
        if !self.shared.commits_itself() {
            return Ok(());
        }
        let offsets = self.shared.lock().progress_of(Some(claims), Progress::unacknowledged);
        let offsets = offsets.into_iter().map(|(at, offset)| OffsetCommit::new(at, offset));
        let committed = timeout_at(since + within, committer.commit_offsets(offsets)).await;
        committed.unwrap_or(Err(Error::Timeout { from: None, after: within }))
    }

    /// Gives up everything, and says so.
    async fn leave(&self) -> Result<(), Error> {
        let claims = self.shared.revoke_all();
        let within = self.shared.config.rebalance_timeout;
        let result = self.give_up(&claims, Instant::now(), within).await;
        self.shared.leave();
        result
    }
}
