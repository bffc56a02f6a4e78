//! The one writer of a partition: gathers waiting batches into log entries and answers when they are applied.
//!
//! Batches that wait while earlier entries are under way share the next entry, so the cost of agreement and of the
//! disk is paid per entry, not per batch, and a lone batch never waits for company.
//!
//! How many entries may be under way is counted for the whole broker, because the processor time that entries take
//! is. A busy partition alone has several, so that one is gathered while others are agreed on and written. Where many
//! are busy, each has one: the entries of the others already keep the broker busy, and a second of its own would only
//! take batches away from the one that follows. A partition without an entry under way may always begin one, so
//! nobody waits for another partition, and whoever waits is woken by an entry of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::machine::Outcome;
use super::replica::{Applied, Replica};
use super::{Committed, Error, Timing};
use crate::clock::{Clock, Timestamp};
use crate::raft::{self, Group, Proposed};
use crate::record::FrameHeader;
use crate::record::command::AppendWriter;
use crate::storage::{self, CommandBuf};
use crate::telemetry::{Metrics, StorageFailure};

/// Batches that may wait for a partition beside those in the buffer's byte limit. A full queue makes
/// [`Partition::submit`](super::Partition::submit) wait.
pub(super) const QUEUE_BATCHES: usize = 8_192;

/// A batch that waits to be appended.
pub(super) struct Submission {
    pub(super) batch: Bytes,
    pub(super) header: FrameHeader,
    pub(super) received: Instant,
    /// The batch's share of the broker's buffer, held until it is answered.
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) done: oneshot::Sender<Result<Committed, Error>>,
}

/// Limits of an [`Appender`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of batches after which a log entry is closed. A larger batch has an entry of its own.
    pub(super) entry_bytes: usize,
    /// Log entries that may be under way in the whole broker before a partition is left with one.
    pub(super) entries_in_flight: usize,
}

/// Log entries that are under way in all partitions.
#[derive(Debug, Default)]
pub struct UnderWay(AtomicUsize);

/// An entry that is counted until it is dropped.
struct Counted(Arc<UnderWay>);

impl UnderWay {
    fn count(self: &Arc<Self>) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(self))
    }

    fn entries(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See the module.
pub(super) struct Appender {
    pub(super) group: Group<Replica>,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) limits: Limits,
    pub(super) under_way: Arc<UnderWay>,
    pub(super) queue: mpsc::Receiver<Submission>,
}

/// Who waits for a log entry.
struct Waiting {
    done: oneshot::Sender<Result<Committed, Error>>,
    received: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Appender {
    /// Runs until every sender of the queue is gone and what was queued is answered.
    pub(super) async fn run(mut self) {
        let mut gathered = Vec::new();
        let mut in_flight = FuturesOrdered::new();
        let mut open = true;
        while open || !in_flight.is_empty() {
            tokio::select! {
                biased;
                Some((result, waiting, proposed)) = in_flight.next() => {
                    if matches!(result, Err(raft::Error::Storage(_))) {
                        self.metrics.storage.failed(StorageFailure::Write);
                    }
                    let voters = self.group.status().now().voters.len();
                    answer(result.map_err(|error| refusal(error, voters)), waiting, proposed);
                }
                count = self.queue.recv_many(&mut gathered, QUEUE_BATCHES),
                    if open && may_begin(in_flight.len(), self.under_way.entries(), self.limits) =>
                {
                    open = count > 0;
                    let mut rest = gathered.drain(..).peekable();
                    while rest.peek().is_some() {
                        let (command, waiting) = gather(&mut rest, self.clock.now(), self.limits.entry_bytes);
                        self.metrics.produce.grouped(waiting.len());
                        let proposed = Instant::now();
                        let proposal = self.group.propose(command);
                        let counted = self.under_way.count();
                        in_flight.push_back(async move {
                            let result = proposal.await;
                            drop(counted);
                            (result, waiting, proposed)
                        });
                    }
                }
            }
        }
    }
}

/// Whether a partition with `own` entries under way takes batches from its queue, where the broker has `all`.
fn may_begin(own: usize, all: usize, limits: Limits) -> bool {
    own == 0 || all < limits.entries_in_flight
}

/// Makes one log entry of the batches that fit.
fn gather(
    queued: &mut std::iter::Peekable<impl Iterator<Item = Submission>>,
    now: Timestamp,
    entry_bytes: usize,
) -> (CommandBuf, Vec<Waiting>) {
    let mut chosen: Vec<Submission> = Vec::new();
    let mut bytes = AppendWriter::COMMAND_OVERHEAD;
    while let Some(next) = queued.next_if(|next| {
        chosen.is_empty() || bytes + AppendWriter::FRAME_OVERHEAD + next.batch.len() <= entry_bytes
    }) {
        bytes += AppendWriter::FRAME_OVERHEAD + next.batch.len();
        chosen.push(next);
    }
    let mut command = CommandBuf::with_capacity(bytes);
    let mut writer = AppendWriter::new(command.buffer(), now.0);
    let mut waiting = Vec::with_capacity(chosen.len());
    for submission in chosen {
        writer.push(&submission.header, &submission.batch);
        let Submission { done, received, permit, .. } = submission;
        waiting.push(Waiting { done, received, _permit: permit });
    }
    writer.finish();
    (command, waiting)
}

/// Why batches were not appended by a partition with so many voters.
fn refusal(error: raft::Error, voters: usize) -> Error {
    match error {
        raft::Error::Storage(error) => passed_on(error, voters),
        other => Error::from(other),
    }
}

/// A store that has failed takes nothing for good. Where there are other voters, that is a matter of this broker only: one
/// of them is about to lead.
pub(super) fn passed_on(error: storage::Error, voters: usize) -> Error {
    match error {
        storage::Error::Failed { .. } | storage::Error::Storage { .. } if voters > 1 => {
            Error::Raft(raft::Error::NotLeader { leader: None })
        }
        other => Error::Storage(other),
    }
}

fn answer(result: Result<Proposed<Applied>, Error>, waiting: Vec<Waiting>, proposed: Instant) {
    let proposal = match result {
        Ok(proposal) => proposal,
        Err(error) => {
            return waiting.into_iter().for_each(|w| drop(w.done.send(Err(error.clone()))));
        }
    };
    let Applied::Appended(appended) = proposal.reply else {
        let other = || Error::Damaged("an append was answered with something else".to_owned());
        return waiting.into_iter().for_each(|w| drop(w.done.send(Err(other()))));
    };
    for (outcome, waiter) in appended.outcomes.into_iter().zip(waiting) {
        let committed = |base_offset, duplicate| {
            let raft::Timing { appended: durable, committed, applied } = proposal.timing;
            let timing =
                Timing { received: waiter.received, proposed, appended: durable, committed, applied };
            Committed { base_offset, append_time: appended.append_time, duplicate, timing }
        };
        let result = match outcome {
            Outcome::Appended(offset) => Ok(committed(offset, false)),
            Outcome::Duplicate(offset) => Ok(committed(offset, true)),
            Outcome::Refused(refusal) => Err(Error::Refused(refusal)),
        };
        // A caller that went away does not need its answer.
        let _ = waiter.done.send(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { entry_bytes: 1 << 20, entries_in_flight: 4 };

    #[test]
    fn a_partition_alone_has_several_entries_under_way() {
        assert!(may_begin(3, 3, LIMITS));
        assert!(!may_begin(4, 4, LIMITS));
    }

    #[test]
    fn many_busy_partitions_have_one_entry_each() {
        assert!(may_begin(0, 100, LIMITS));
        assert!(!may_begin(1, 100, LIMITS));
    }

    #[test]
    fn an_entry_counts_until_it_is_over_or_abandoned() {
        let under_way = Arc::new(UnderWay::default());
        let (first, second) = (under_way.count(), under_way.count());
        assert_eq!(under_way.entries(), 2);
        drop(first);
        assert_eq!(under_way.entries(), 1);
        drop(second);
        assert_eq!(under_way.entries(), 0);
    }

    #[test]
    fn a_failed_store_is_a_matter_of_this_broker_where_others_can_lead() {
        let failed = || {
            let source = Arc::new(std::io::Error::other("the disk is gone"));
            storage::Error::Failed { source }
        };
        let not_leader = |error| matches!(error, Error::Raft(raft::Error::NotLeader { leader: None }));
        assert!(not_leader(passed_on(failed(), 3)));
        assert!(not_leader(refusal(raft::Error::Storage(failed()), 3)));
        assert!(matches!(passed_on(failed(), 1), Error::Storage(storage::Error::Failed { .. })));
        assert!(matches!(refusal(raft::Error::Stopped, 3), Error::Stopped));
    }

    #[test]
    fn a_full_disk_is_told_whoever_else_could_lead() {
        let full = storage::Error::DiskFull { available: 1, reserve: 2 };
        assert!(matches!(passed_on(full, 3), Error::Storage(storage::Error::DiskFull { .. })));
    }
}
