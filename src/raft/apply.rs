//! openraft's view of a group's state machine: applies committed entries, writes checkpoints, gives and takes
//! snapshots.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Error;
use super::checkpoint::Checkpoint;
use super::machine::AnyMachine;
use super::shared::Shared;
use super::types::{Command, Entry, LogId, Reply, Snapshot, SnapshotMeta, StoredMembership, Types, position};
use crate::storage::{Batch, Durability};

/// How often the committed position is written. It only saves waiting at the next start.
const COMMITTED_EVERY: Duration = Duration::from_secs(1);

/// A checkpoint costs its state's size, so it is written after at least this many times that size of
/// commands.
const COMMANDS_PER_STATE: u64 = 8;

/// Feeds a machine with committed entries.
pub(super) struct Applier {
    shared: Arc<Shared>,
    /// A lock only because openraft wants `Sync`; whoever has the applier mutably needs none.
    machine: Mutex<Box<dyn AnyMachine>>,
    applied: Option<LogId>,
    members: StoredMembership,
    /// After how many bytes of commands a checkpoint is due, from the settings.
    checkpoint_bytes: u64,
    /// Bytes of commands since the last checkpoint.
    bytes_since_checkpoint: u64,
    /// The entry of the last checkpoint.
    checkpoint_at: Option<u64>,
    state_bytes: u64,
    committed_written: Instant,
    /// Dropped with the applier, when openraft's task for it has ended.
    _ended: oneshot::Sender<()>,
}

impl Applier {
    /// Continues from `start`, the newest state in the store, which `machine` holds already.
    pub(super) fn new(
        shared: Arc<Shared>,
        machine: Box<dyn AnyMachine>,
        start: Option<&Checkpoint>,
        checkpoint_bytes: u64,
        ended: oneshot::Sender<()>,
    ) -> Self {
        Applier {
            shared,
            machine: Mutex::new(machine),
            applied: start.map(|start| start.applied),
            members: start.map(|start| start.members.clone()).unwrap_or_default(),
            checkpoint_bytes,
            bytes_since_checkpoint: 0,
            checkpoint_at: start.map(|start| start.applied.index),
            state_bytes: start.map_or(0, |start| start.state.len() as u64),
            committed_written: Instant::now(),
            _ended: ended,
        }
    }

    /// Writes a checkpoint now, if anything was applied since the last one and what is applied is not after
    /// `limit`. The receiver completes when the store has it.
    pub(super) fn checkpoint_up_to(&mut self, limit: u64) -> oneshot::Receiver<()> {
        let (written, receiver) = oneshot::channel();
        let applied = self.applied.map(|applied| applied.index);
        if applied == self.checkpoint_at || applied.is_none_or(|applied| applied > limit) {
            return receiver;
        }
        let mut batch = Batch::new();
        self.put_checkpoint(&mut batch);
        let progress = Arc::clone(&self.shared.progress);
        let done = move |result| {
            if let Err(error) = result {
                progress.fail_in_background(error);
            }
            // Nobody listens when the caller gave up waiting.
            let _ = written.send(());
        };
        self.shared.store.commit(batch, Durability::Lazy, Box::new(done));
        receiver
    }

    fn put_checkpoint(&mut self, batch: &mut Batch) {
        let Some(checkpoint) = self.checkpoint() else { return };
        batch.put_checkpoint(self.shared.group, checkpoint.applied.index, checkpoint.encode());
        batch.put_committed(self.shared.group, position(&checkpoint.applied));
        self.bytes_since_checkpoint = 0;
        self.checkpoint_at = Some(checkpoint.applied.index);
        self.state_bytes = checkpoint.state.len() as u64;
    }

    fn machine(&mut self) -> &mut dyn AnyMachine {
        self.machine.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut()
    }

    fn checkpoint(&mut self) -> Option<Checkpoint> {
        let state = Bytes::from(self.machine().encode());
        self.applied.map(|applied| Checkpoint { applied, members: self.members.clone(), state })
    }

    fn apply_entry(&mut self, entry: Entry, batch: &mut Batch) -> Result<Reply, Error> {
        let log_id = entry.log_id;
        let reply = match entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(command) => {
                let payload = match command {
                    Command::Row(row) => row.payload,
                    Command::Proposed(command) => command.payload(),
                };
                self.bytes_since_checkpoint += payload.len() as u64;
                let (index, term) = (log_id.index, log_id.leader_id.term);
                let applied = self.machine().apply(index, term, &payload, batch);
                Some(applied.map_err(|source| Error::UnknownCommand {
                    group: self.shared.group,
                    index,
                    source: Arc::new(source),
                })?)
            }
            EntryPayload::Membership(members) => {
                self.members = StoredMembership::new(Some(log_id), members);
                None
            }
        };
        self.applied = Some(log_id);
        #[cfg(test)]
        self.observe();
        Ok(Reply::new(reply))
    }

    /// Shows a simulation which state the machine is in.
    #[cfg(test)]
    fn observe(&mut self) {
        let shared = Arc::clone(&self.shared);
        shared.store.observe_state(|| {
            let Checkpoint { applied, members, state } = self.checkpoint()?;
            let members = super::membership::encode(members.membership()).into();
            Some(crate::storage::ObservedState {
                group: shared.group,
                at: position(&applied),
                members,
                state,
            })
        });
    }

    /// Hands the rows of a run of entries to the store, with a checkpoint if one is due.
    fn store(&mut self, mut batch: Batch, applied: LogId) {
        let due = self.checkpoint_bytes.max(self.state_bytes.saturating_mul(COMMANDS_PER_STATE));
        if self.bytes_since_checkpoint >= due {
            self.put_checkpoint(&mut batch);
        }
        if self.committed_written.elapsed() >= COMMITTED_EVERY {
            batch.put_committed(self.shared.group, position(&applied));
            self.committed_written = Instant::now();
        }
        if batch.is_empty() {
            return;
        }
        let progress = Arc::clone(&self.shared.progress);
        let done = move |result| {
            if let Err(error) = result {
                progress.fail_in_background(error);
            }
        };
        self.shared.store.commit(batch, Durability::Lazy, Box::new(done));
    }
}

impl RaftStateMachine<Types> for Applier {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.members.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<(Entry, Option<ApplyResponder<Types>>), io::Error>> + Unpin + Send,
    {
        let mut batch = Batch::new();
        let mut answers = Vec::new();
        let mut outcome = Ok(());
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            let index = entry.log_id.index;
            match (self.apply_entry(entry, &mut batch), responder) {
                (Ok(reply), Some(responder)) => answers.push((index, responder, reply)),
                (Ok(_), None) => {}
                (Err(error), _) => {
                    outcome = Err(self.shared.fail(error));
                    break; // What comes before is applied all the same.
                }
            }
        }
        let Some(applied) = self.applied else { return outcome };
        self.store(batch, applied);
        self.machine().applied();
        {
            let mut tail = self.shared.tail();
            for (index, _, reply) in &mut answers {
                reply.set_appended(tail.written_at(*index));
            }
            tail.applied(applied.index);
        }
        self.shared.update_status(|status| {
            status.applied = Some(applied.index);
            status.applied_term = applied.leader_id.term;
            status.committed = status.committed.max(Some(applied.index));
        });
        for (_, responder, reply) in answers {
            responder.send(reply);
        }
        outcome
    }

    async fn try_create_snapshot_builder(&mut self, _: bool) -> Option<Builder> {
        Some(Builder { shared: Arc::clone(&self.shared) })
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { shared: Arc::clone(&self.shared) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, state: Bytes) -> Result<(), io::Error> {
        let Some(applied) = meta.last_log_id else { return Ok(()) };
        let group = self.shared.group;
        let restored = self.machine().restore(&state);
        restored.map_err(|source| self.shared.fail(Error::Restore { group, source: Arc::new(source) }))?;
        let snapshot = Checkpoint { applied, members: meta.last_membership.clone(), state };
        let mut batch = Batch::new();
        batch.put_snapshot(group, snapshot.encode());
        batch.put_committed(group, position(&applied));
        {
            let mut newest = self.shared.snapshot.lock().await;
            let stored = self.shared.store.commit_and_wait(batch, Durability::Sync).await;
            stored.map_err(|error| self.shared.fail(error))?;
            *newest = Some(applied.index);
        }
        self.applied = Some(applied);
        self.members = snapshot.members;
        self.bytes_since_checkpoint = 0;
        self.checkpoint_at = Some(applied.index);
        self.state_bytes = snapshot.state.len() as u64;
        #[cfg(test)]
        self.observe();
        self.machine().applied();
        self.shared.tail().applied(applied.index);
        self.shared.update_status(|status| {
            status.applied = Some(applied.index);
            status.applied_term = applied.leader_id.term;
            status.committed = status.committed.max(Some(applied.index));
        });
        self.shared.transport.installed(group);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        current_snapshot(&self.shared)
    }
}

/// Gives openraft the snapshot that [`super::Group::purge_to`] chose and stored.
pub(super) struct Builder {
    shared: Arc<Shared>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let snapshot = current_snapshot(&self.shared)?;
        snapshot.ok_or_else(|| {
            self.shared.fail(Error::Corrupt {
                group: self.shared.group,
                what: "the log is purged but no snapshot exists",
            })
        })
    }
}

fn current_snapshot(shared: &Shared) -> Result<Option<Snapshot>, io::Error> {
    let stored = shared.log.snapshot().map_err(|error| shared.fail(error))?;
    let Some(stored) = stored else { return Ok(None) };
    let corrupt = || shared.fail(Error::Corrupt { group: shared.group, what: "the snapshot" });
    let snapshot = Checkpoint::decode(&stored).ok_or_else(corrupt)?;
    Ok(Some(Snapshot { meta: snapshot.meta(), snapshot: snapshot.state }))
}
