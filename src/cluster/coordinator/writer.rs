//! The one writer of a shard: gathers waiting commands into log entries and answers when they are applied.
//!
//! Commands that wait while earlier entries are under way share the next entry, so thousands of commits cost a few
//! syncs, and a lone commit never waits for company.

use std::iter::Peekable;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Error;
use super::replica::{Applied, Replica};
use crate::coordination::{Outcome, put_term};
use crate::raft::{self, Group, Proposed};
use crate::storage::CommandBuf;

/// Commands that may wait for a shard, beside the limit in bytes.
pub(super) const QUEUE_COMMANDS: usize = 8_192;
/// Log entries that may be under way. Those made of commands that were taken from the queue together may be more.
const ENTRIES_IN_FLIGHT: usize = 4;
/// Bytes of commands after which a log entry is closed. A larger command has an entry of its own.
const ENTRY_BYTES: usize = 256 << 10;
/// The term that ends an entry, at most.
const TERM_BYTES: usize = 11;

/// A command that waits to be proposed.
pub(super) struct Submission {
    /// The stored form of an entry of this command alone.
    pub(super) entry: Vec<u8>,
    /// The term in which it was decided.
    pub(super) term: u64,
    pub(super) done: oneshot::Sender<Result<Outcome, Error>>,
    /// The command's share of the shard's buffer, held until it is answered.
    pub(super) permit: OwnedSemaphorePermit,
}

/// See the module.
pub(super) struct Writer {
    pub(super) group: Group<Replica>,
    pub(super) queue: mpsc::Receiver<Submission>,
    /// Tells that no more commands are taken.
    pub(super) stop: CancellationToken,
}

/// Who waits for a log entry.
struct Waiting {
    done: oneshot::Sender<Result<Outcome, Error>>,
    _permit: OwnedSemaphorePermit,
}

impl Writer {
    /// Runs until it is told to stop and what was queued by then is answered.
    pub(super) async fn run(mut self) {
        let mut gathered = Vec::new();
        let mut in_flight = FuturesOrdered::new();
        let mut open = true;
        while open || !in_flight.is_empty() {
            tokio::select! {
                biased;
                Some((result, waiting)) = in_flight.next() => answer(result, waiting),
                () = self.stop.cancelled(), if !self.queue.is_closed() => self.queue.close(),
                count = self.queue.recv_many(&mut gathered, QUEUE_COMMANDS),
                    if open && in_flight.len() < ENTRIES_IN_FLIGHT =>
                {
                    open = count > 0;
                    let mut rest = gathered.drain(..).peekable();
                    while rest.peek().is_some() {
                        let (entry, waiting) = gather(&mut rest);
                        let proposal = self.group.propose(entry);
                        in_flight.push_back(async move { (proposal.await, waiting) });
                    }
                }
            }
        }
    }
}

/// Makes one log entry of the commands that fit: they follow one another, and were decided in the same term.
fn gather(queued: &mut Peekable<impl Iterator<Item = Submission>>) -> (CommandBuf, Vec<Waiting>) {
    let mut chosen: Vec<Submission> = Vec::new();
    let mut bytes = 0;
    while let Some(next) = queued.next_if(|next| match chosen.first() {
        None => true,
        Some(first) => first.term == next.term && bytes + next.entry.len() <= ENTRY_BYTES,
    }) {
        bytes += next.entry.len();
        chosen.push(next);
    }
    let mut entry = CommandBuf::with_capacity(bytes + TERM_BYTES);
    for submission in &chosen {
        entry.extend_from_slice(&submission.entry);
    }
    if let Some(first) = chosen.first() {
        put_term(entry.buffer(), first.term);
    }
    let waiting = chosen.into_iter().map(|Submission { done, permit, .. }| Waiting { done, _permit: permit });
    (entry, waiting.collect())
}

fn answer(result: Result<Proposed<Applied>, raft::Error>, waiting: Vec<Waiting>) {
    let same_for_all = |error: Error, waiting: Vec<Waiting>| {
        waiting.into_iter().for_each(|waiter| drop(waiter.done.send(Err(error.clone()))));
    };
    match result.map(|proposed| proposed.reply) {
        Ok(Applied::Commands(results)) => {
            for (result, waiter) in results.into_iter().zip(waiting) {
                // A caller that went away does not need its answer.
                let _ = waiter.done.send(result.map_err(Error::Refused));
            }
        }
        Ok(Applied::OtherTerm) => same_for_all(raft::Error::NotLeader { leader: None }.into(), waiting),
        Err(error) => same_for_all(error.into(), waiting),
    }
}
