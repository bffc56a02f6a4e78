//! Committing offsets: who may, what may be committed, and what became of it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::journal::{Journal, Place};
use super::live::{Live, SessionId};
use super::registry::Coordinated as _;
use crate::broker::produce::in_partition;
use crate::broker::{Broker, Error, ErrorCode};
use crate::clock::Timestamp;
use crate::cluster::coordinator;
use crate::coordination::{Command, METADATA_BYTES_MAX, Outcome, PartitionKey};
use crate::partition;
use crate::record::Offset;
use crate::telemetry::{CommitOutcome, Metrics};

/// An offset to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetToCommit {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: u32,
    /// The next record that the group is to read.
    pub offset: Offset,
    /// Kept with the offset.
    pub metadata: String,
}

/// What became of one offset.
#[derive(Debug)]
pub struct CommitResult {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: u32,
    /// The offset.
    pub offset: Offset,
    /// Why it was not committed.
    pub error: Option<Error>,
}

/// Who commits.
pub(super) enum Committer {
    /// A member, over its stream (then `session` says which) or beside it.
    Member { live: Arc<Live>, member: Arc<str>, session: Option<SessionId>, epoch: u64 },
    /// A program that is no member; the group had none a moment ago.
    Outsider,
}

/// A commit on its way. Dropping it does not withdraw it: what becomes of it is noted and counted all the same.
pub(super) struct PendingCommit {
    results: Vec<CommitResult>,
    /// Whether nobody waits for the results any more.
    left_alone: bool,
    receiver: Option<oneshot::Receiver<Result<Outcome, coordinator::Error>>>,
    metrics: Metrics,
    received: Instant,
    /// What to note when it is committed.
    noted: Noted,
}

/// Offsets that a group commits, and where that is noted.
#[derive(Clone)]
struct Noted {
    journal: Arc<Journal>,
    group: Arc<str>,
    /// The term in which this broker coordinates the group; none if it does not any more.
    term: Option<u32>,
    at: Timestamp,
    offsets: Vec<(PartitionKey, Offset)>,
}

impl Noted {
    fn committed(&self) {
        let Some(term) = self.term else { return };
        for (key, offset) in &self.offsets {
            let place = Place { group: &self.group, key: *key, term };
            self.journal.acknowledged(&place, Offset::ZERO..*offset, self.at);
        }
    }
}

impl Broker {
    /// Checks offsets and hands those that may be committed to the group's coordinator, behind earlier commits.
    ///
    /// # Errors
    /// The coordinator cannot take anything, or the group of an outsider has members by now. What is wrong with one offset is
    /// said in its result.
    pub(super) async fn begin_commit(
        &self,
        group: &str,
        committer: &Committer,
        offsets: Vec<OffsetToCommit>,
        received: Instant,
    ) -> Result<PendingCommit, Error> {
        for wanted in &offsets {
            // Where this broker does not lead, it may know less of a partition than whoever read it. What it cannot
            // learn is refused below.
            if let Ok(route) = self.route(&wanted.topic)
                && let Ok(partition) = self.partition(&route, wanted.partition)
            {
                let _ = partition.bounds_for(wanted.offset).await;
            }
        }
        // Room first: between the check of the member and the place in the queue nothing may happen, or a partition
        // could have a new owner by then.
        let slot = self.groups()?.coordinators.of(group).reserve().await?;
        if matches!(committer, Committer::Outsider) {
            let members = self.groups()?.member_count(group);
            if members > 0 {
                return Err(Error::GroupNotEmpty { group: group.to_owned(), members });
            }
        }
        let mut results = Vec::with_capacity(offsets.len());
        let mut accepted = Vec::new();
        for wanted in offsets {
            let checked = self.check_offset(group, committer, &wanted);
            let OffsetToCommit { topic, partition, offset, metadata } = wanted;
            let error = match checked {
                Ok(key) => {
                    accepted.push((key, offset, Arc::<str>::from(metadata)));
                    None
                }
                Err(error) => Some(error),
            };
            results.push(CommitResult { topic, partition, offset, error });
        }
        let (groups, at) = (self.groups()?, self.0.clock.now());
        let noted = Noted {
            journal: groups.journal.clone(),
            group: group.into(),
            term: match committer {
                Committer::Member { live, .. } => Some(live.term()),
                Committer::Outsider => groups.term(group).ok(),
            },
            at,
            offsets: accepted.iter().map(|(key, offset, _)| (*key, *offset)).collect(),
        };
        let receiver = (!accepted.is_empty()).then(|| {
            let command = Command::CommitOffsets { group: noted.group.clone(), at, offsets: accepted };
            match committer {
                // What was checked against this membership holds in its term only.
                Committer::Member { live, .. } => slot.submit_in(live.term().into(), command),
                Committer::Outsider => slot.submit(command),
            }
        });
        let metrics = self.0.metrics.clone();
        Ok(PendingCommit { results, left_alone: false, receiver, metrics, received, noted })
    }

    fn check_offset(
        &self,
        group: &str,
        committer: &Committer,
        wanted: &OffsetToCommit,
    ) -> Result<PartitionKey, Error> {
        if wanted.metadata.len() > METADATA_BYTES_MAX {
            let problem =
                format!("has {} bytes, at most {METADATA_BYTES_MAX} are kept", wanted.metadata.len());
            return Err(Error::InvalidArgument { field: "metadata", problem });
        }
        let route = self.route(&wanted.topic)?;
        let partition = self.partition(&route, wanted.partition)?;
        let key = PartitionKey { topic: route.topic.id, partition: wanted.partition };
        let bounds = partition.bounds();
        if wanted.offset > bounds.high_watermark {
            let beyond = partition::Error::OffsetOutOfRange {
                offset: wanted.offset,
                log_start: bounds.log_start,
                high_watermark: bounds.high_watermark,
            };
            return Err(in_partition(&wanted.topic, wanted.partition, beyond));
        }
        if let Committer::Member { live, member, session, epoch } = committer {
            live.may_commit(member, *session, *epoch, key).map_err(|fenced| Error::MemberFenced {
                group: group.to_owned(),
                reason: format!("{}/{}: {fenced}", wanted.topic, wanted.partition),
            })?;
        }
        Ok(key)
    }
}

impl PendingCommit {
    /// Waits until what was accepted is committed, or not.
    pub(super) async fn outcome(mut self) -> Vec<CommitResult> {
        if let Some(receiver) = &mut self.receiver {
            // A coordinator that is gone may have written the entry all the same.
            let unknown = Err(coordinator::Error::Raft(crate::raft::Error::OutcomeUnknown));
            let outcome = receiver.await.unwrap_or(unknown);
            self.receiver = None;
            match outcome {
                Ok(_) => self.noted.committed(),
                Err(error) => {
                    let error = Error::from(error);
                    for result in self.results.iter_mut().filter(|result| result.error.is_none()) {
                        result.error = Some(error.clone());
                    }
                }
            }
        }
        for result in &self.results {
            self.metrics.groups.committed(outcome_of(result.error.as_ref()));
        }
        self.metrics.groups.commit_answered(self.received.elapsed(), None);
        std::mem::take(&mut self.results)
    }
}

impl Drop for PendingCommit {
    fn drop(&mut self) {
        let Some(receiver) = self.receiver.take().filter(|_| !self.left_alone) else { return };
        // Without a runtime the broker has stopped.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let rest = PendingCommit {
            results: std::mem::take(&mut self.results),
            left_alone: true,
            receiver: Some(receiver),
            metrics: self.metrics.clone(),
            received: self.received,
            noted: self.noted.clone(),
        };
        runtime.spawn(rest.outcome());
    }
}

fn outcome_of(error: Option<&Error>) -> CommitOutcome {
    match error.map(Error::code) {
        None => CommitOutcome::Committed,
        Some(ErrorCode::MemberFenced) => CommitOutcome::Fenced,
        Some(
            ErrorCode::Storage
            | ErrorCode::Internal
            | ErrorCode::OutcomeUnknown
            | ErrorCode::NotReady
            | ErrorCode::NotLeader
            | ErrorCode::Busy
            | ErrorCode::DiskFull
            | ErrorCode::Corrupt,
        ) => CommitOutcome::Failed,
        Some(_) => CommitOutcome::Refused,
    }
}
