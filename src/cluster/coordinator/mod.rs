//! The coordinator shards: groups that agree on consumer groups and their offsets.
//!
//! | file | idea |
//! |---|---|
//! | [`replica`] | the pure state as a state machine of a shard's Raft group |
//! | [`writer`] | the one writer of a shard: gathers commands into log entries |
//!
//! A shard's number is one less than its Raft group's, 0 being the control group's. Which shard a consumer group belongs
//! to follows from its name and the number of shards, which is fixed for the life of the cluster.
//!
//! A command is decided by the leader of a term, from what it holds in memory, and is applied in that term or not at all:
//! what a leader has decided cannot come into the log of its successor.

mod replica;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use replica::Replica;
use writer::{QUEUE_COMMANDS, Submission, Writer};

use super::purge::{self, Growth};
use crate::coordination::{self, Command, Outcome, State, encode_entry, shard_of};
use crate::raft::{self, Group, NodeId, Status};
use crate::storage::GroupId;
use crate::task::{Criticality, Tasks};

/// How long what is under way may take when a shard is closed.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a majority has to say that this broker leads.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);
/// Most shards.
const SHARDS_MAX: u32 = 256;
/// What a place in the queue takes of the buffer before the command's length is known.
const RESERVED_BYTES: u32 = 4 << 10;

/// Settings of the coordinator shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Groups that share the work of keeping offsets. Fixed when the cluster first starts: a different setting later
    /// has no effect, and the log says so.
    pub shards: u32,
    /// Bytes of commands of a shard that may wait to be written, or are being written. A full buffer makes callers wait.
    #[serde(with = "crate::units::size")]
    pub buffer_bytes: u64,
    /// Bytes after which a shard's log, and that of the control group, is replaced by a checkpoint of the state; four
    /// times the state if that is more.
    #[serde(with = "crate::units::size")]
    pub log_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { shards: 4, buffer_bytes: 4 << 20, log_bytes: 4 << 20 }
    }
}

impl Config {
    /// Every setting that is out of range, by name, with what is wrong.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut within = |name, value: u64, least: u64, most: u64| {
            if value < least || value > most {
                found.push((name, format!("{value} is not between {least} and {most}")));
            }
        };
        within("shards", self.shards.into(), 1, SHARDS_MAX.into());
        within("buffer_bytes", self.buffer_bytes, 64 << 10, 1 << 30);
        within("log_bytes", self.log_bytes, 4 << 10, 1 << 40);
        found
    }
}

/// Why a command had no effect, or may have had none.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The command does not fit the state. It changed nothing.
    #[error(transparent)]
    Refused(#[from] coordination::Error),
    /// Agreement or the disk failed; the error says whether the command may have been written.
    #[error(transparent)]
    Raft(#[from] raft::Error),
    /// The shard is closed. Nothing was written.
    #[error("the coordinator is closed")]
    Stopped,
}

/// Handles of this broker's replicas of all shards. Clones share them.
#[derive(Clone)]
pub struct Coordinators(Arc<[Coordinator]>);

impl Coordinators {
    /// Opens all shards. `founders` found their groups if they are new; a broker without them waits until it is added.
    ///
    /// # Errors
    /// The store failed, or holds something else.
    pub async fn open(
        shards: u32,
        config: &Config,
        node: NodeId,
        founders: Option<&[NodeId]>,
        env: &raft::Env,
        tasks: &Tasks,
    ) -> Result<Self, raft::Error> {
        let open = (0..shards).map(|shard| Coordinator::open(shard, config, node, founders, env, tasks));
        Ok(Coordinators(try_join_all(open).await?.into()))
    }

    /// The shard of a group.
    pub fn of(&self, group: &str) -> &Coordinator {
        &self.0[shard_of(group, self.0.len() as u32) as usize]
    }

    /// All shards, by number.
    pub fn all(&self) -> &[Coordinator] {
        &self.0
    }

    /// Waits until every shard has a leader and, if it is this broker, has applied what was agreed on before.
    ///
    /// # Errors
    /// A replica failed or was closed.
    pub async fn ready(&self) -> Result<(), raft::Error> {
        try_join_all(self.all().iter().map(Coordinator::ready)).await.map(|_| ())
    }

    /// Stops taking commands, answers those that wait, and closes the replicas.
    pub async fn close(&self) {
        join_all(self.all().iter().map(Coordinator::close)).await;
    }
}

/// A handle of this broker's replica of one shard. Clones share it.
#[derive(Clone)]
pub struct Coordinator(Arc<Inner>);

struct Inner {
    shard: u32,
    node: NodeId,
    group: Group<Replica>,
    state: Arc<RwLock<State>>,
    changes: watch::Receiver<u64>,
    queue: mpsc::Sender<Submission>,
    /// Room for commands that wait or are under way, in bytes.
    buffer: Arc<Semaphore>,
    tasks: Tasks,
}

impl Coordinator {
    async fn open(
        shard: u32,
        config: &Config,
        node: NodeId,
        founders: Option<&[NodeId]>,
        env: &raft::Env,
        tasks: &Tasks,
    ) -> Result<Self, raft::Error> {
        let state = Arc::new(RwLock::new(State::default()));
        let (publish, changes) = watch::channel(0);
        let growth = Growth::new(config.log_bytes);
        let machine = Replica { state: state.clone(), changes: publish, growth: growth.clone() };
        let group = Group::open(group_of_shard(shard), node, machine, env).await?;
        if let Some(founders) = founders
            && group.status().now().last_index.is_none()
        {
            group.bootstrap(founders.iter().copied()).await?;
        }
        let tasks = tasks.child();
        let (queue, commands) = mpsc::channel(QUEUE_COMMANDS);
        let writer = Writer { group: group.clone(), queue: commands, stop: tasks.token().clone() };
        tasks.spawn("coordinator writer", Criticality::Critical, writer.run());
        let purger = purge::run(group.clone(), growth);
        tasks.spawn_until_stopped("coordinator log", Criticality::Critical, purger);
        let buffer = Arc::new(Semaphore::new(config.buffer_bytes as usize));
        let inner = Inner { shard, node, group, state, changes, queue, buffer, tasks };
        Ok(Coordinator(Arc::new(inner)))
    }

    /// The shard's number, from 0.
    pub fn shard(&self) -> u32 {
        self.0.shard
    }

    /// The term that this broker leads, once it has applied all that earlier leaders agreed on.
    pub fn leading(&self) -> Option<u64> {
        let status = self.0.group.status().now();
        status.is_ready_leader().then_some(status.term)
    }

    /// Makes sure that this broker leads the shard and knows everything that was acknowledged before the call.
    ///
    /// # Errors
    /// [`raft::Error::NotLeader`].
    pub async fn confirm(&self) -> Result<(), Error> {
        Ok(self.members().confirm(CONFIRM_TIMEOUT).await?)
    }

    /// The broker that leads the shard, as far as this one knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.0.group.status().now().leader
    }

    /// The members of the shard's Raft group.
    pub fn members(&self) -> raft::Members {
        self.0.group.members()
    }

    /// The state of the shard's Raft group.
    pub fn status(&self) -> raft::Watch {
        self.0.group.status()
    }

    /// Looks at the state. Commands wait meanwhile, so `look` must be quick, and must not call the coordinator.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A number that grows whenever commands were applied.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.clone()
    }

    /// Waits for a place in the queue of commands. Nothing else can happen between a check that the caller makes when it
    /// has the place, and its command's becoming part of the queue.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn reserve(&self) -> Result<Slot, Error> {
        let buffer = self.0.buffer.clone();
        let bytes = buffer.acquire_many_owned(RESERVED_BYTES).await.map_err(|_| Error::Stopped)?;
        let place = self.0.queue.clone().reserve_owned().await.map_err(|_| Error::Stopped)?;
        Ok(Slot { place, bytes, coordinator: self.clone() })
    }

    /// Enqueues a command. It is applied after those enqueued before. Waits while too much waits already. The receiver
    /// gets the outcome, when the state shows it.
    ///
    /// # Errors
    /// [`Error::Stopped`]. Nothing was written.
    pub async fn submit(&self, command: Command) -> Result<oneshot::Receiver<Result<Outcome, Error>>, Error> {
        Ok(self.reserve().await?.submit(command))
    }

    /// Applies a command and waits for its outcome.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn change(&self, command: Command) -> Result<Outcome, Error> {
        let outcome = self.submit(command).await?;
        outcome.await.unwrap_or(Err(Error::Raft(raft::Error::OutcomeUnknown)))
    }

    async fn ready(&self) -> Result<(), raft::Error> {
        let mut status = self.status();
        let node = self.0.node;
        let ready = |s: &Status| s.is_ready_leader() || s.leader.is_some_and(|leader| leader != node);
        match status.wait_for(|s| ready(s) || s.failed.is_some()).await {
            Ok(status) => status.failed.clone().map_or(Ok(()), Err),
            Err(_) => Err(raft::Error::Stopped),
        }
    }

    async fn close(&self) {
        self.0.tasks.stop(CLOSE_DEADLINE).await;
        self.0.group.shutdown().await;
    }
}

#[cfg(test)]
impl Coordinator {
    /// The replica as other nodes see it.
    pub(crate) fn replica(&self) -> raft::Replica {
        self.0.group.replica()
    }

    /// Which Raft group the shard is.
    pub(crate) fn group(&self) -> GroupId {
        self.0.group.id()
    }
}

/// A place in a shard's queue of commands. Dropped, it is free again.
pub struct Slot {
    place: mpsc::OwnedPermit<Submission>,
    bytes: OwnedSemaphorePermit,
    coordinator: Coordinator,
}

impl Slot {
    /// Enqueues a command that was decided in the term that this broker leads now. The receiver gets the outcome, when
    /// the state shows it; [`raft::Error::NotLeader`] if this broker does not lead, or no more when the command's turn
    /// comes.
    pub fn submit(self, command: Command) -> oneshot::Receiver<Result<Outcome, Error>> {
        match self.coordinator.leading() {
            Some(term) => self.submit_in(term, command),
            None => {
                let (done, outcome) = oneshot::channel();
                let leader = self.coordinator.status().now().leader;
                // The receiver is here.
                let _ = done.send(Err(raft::Error::NotLeader { leader }.into()));
                outcome
            }
        }
    }

    /// As [`Slot::submit`], for a command that was decided in `term`: in a later one it changes nothing, and the outcome
    /// is [`raft::Error::NotLeader`].
    pub fn submit_in(self, term: u64, command: Command) -> oneshot::Receiver<Result<Outcome, Error>> {
        let Slot { place, mut bytes, coordinator } = self;
        let entry = encode_entry(&[command]);
        let (reserved, needed) = (RESERVED_BYTES as usize, entry.len());
        match needed.checked_sub(reserved) {
            None | Some(0) => drop(bytes.split(reserved - needed)),
            Some(more) => {
                // What a large command takes beyond the reserve was in memory before it came here. If the buffer has no
                // room for it, nothing else gets in until it is through, and that is bound enough.
                let more = u32::try_from(more).unwrap_or(u32::MAX);
                let room = coordinator.0.buffer.clone();
                if let Ok(more) = room.try_acquire_many_owned(more) {
                    bytes.merge(more);
                }
            }
        }
        let (done, outcome) = oneshot::channel();
        place.send(Submission { entry, term, done, permit: bytes });
        outcome
    }
}

/// The Raft group of a shard.
fn group_of_shard(shard: u32) -> GroupId {
    GroupId(u64::from(shard) + 1)
}
