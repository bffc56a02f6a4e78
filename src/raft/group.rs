//! The handle to one replica of a group.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use openraft::ChangeMembers;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use tokio::sync::oneshot;

use super::apply::Applier;
use super::catch_up::CatchUp;
use super::checkpoint::Checkpoint;
use super::hand_over::HandOver;
use super::log_store::LogStore;
use super::machine::Machine;
use super::network::{self, Peers, Transport};
use super::pace::{Metronome, Pace};
use super::promise::{self, Promise};
use super::proposal::{self, Waiter};
use super::shared::Shared;
use super::tail::Tail;
use super::types::{Command, Types, position};
use super::{Config, Error, Members, NodeId, Proposal, Role, Watch, message, observe, vote};
use crate::storage::{Batch, CommandBuf, Durability, GroupId, Position, Store};
use crate::task::{Criticality, Tasks};

type Agreement = openraft::Raft<Types, Applier>;

/// What all groups of a broker share.
#[derive(Clone)]
pub struct Env {
    /// Where logs, votes and checkpoints are kept.
    pub store: Store,
    /// Who runs the groups' background work.
    pub tasks: Tasks,
    /// Settings.
    pub config: Config,
    /// When leaders send heartbeats; one for all groups of the broker.
    pub(super) metronome: Metronome,
    /// What groups read at once for followers; one for all groups of the broker.
    pub(super) catch_up: CatchUp,
    /// How other nodes are reached.
    pub transport: Arc<dyn Transport>,
}

impl Env {
    /// What groups share that keep their data in `store`, run on `tasks` and reach others by `transport`.
    #[must_use]
    pub fn new(store: Store, tasks: Tasks, config: Config, transport: Arc<dyn Transport>) -> Self {
        let (metronome, catch_up) = (Metronome::new(), CatchUp::default());
        Env { store, tasks, config, metronome, catch_up, transport }
    }
}

/// How long is waited for a purge. A follower that is being sent the entries can hold it up for longer.
const PURGE_PATIENCE: Duration = Duration::from_secs(1);

/// A replica of a group whose machine is an `M`. Clones are handles to the same replica.
///
/// The replica runs until [`Group::shutdown`], however many handles are left.
pub struct Group<M> {
    core: Arc<Core>,
    machine: PhantomData<fn() -> M>,
}

impl<M> Clone for Group<M> {
    fn clone(&self) -> Self {
        Group { core: Arc::clone(&self.core), machine: PhantomData }
    }
}

/// A replica as other nodes see it, whatever its machine: the receiving end of a [`Transport`].
#[derive(Clone)]
pub struct Replica {
    core: Arc<Core>,
}

/// A running replica.
pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    pub(super) agreement: Agreement,
    pub(super) node: NodeId,
    pub(super) hand_over: HandOver,
    /// Purging is a sequence of steps; one caller at a time does them.
    purging: tokio::sync::Mutex<()>,
    /// Completes when openraft's state machine task has ended.
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

impl<M: Machine> Group<M> {
    /// Opens the replica of group `id` on this node: restores `machine` from the newest checkpoint,
    /// re-applies what is known to be committed after it, and takes part in the group. A group that never was
    /// opened here starts empty and waits for [`Group::bootstrap`] or for a leader that adds it.
    ///
    /// # Errors
    /// [`Error::Config`] for contradicting settings, [`Error::Storage`], [`Error::Corrupt`] and
    /// [`Error::Restore`] for what the store holds.
    pub async fn open(id: GroupId, node: NodeId, mut machine: M, env: &Env) -> Result<Self, Error> {
        let config = env.config.to_openraft().validate();
        let config = config.map_err(|error| Error::Config { reason: error.to_string() })?;
        let store = env.store.clone();
        let opened = env.store.blocking(move || {
            let log = store.log(id)?;
            let found = Found::read(id, &log)?;
            Ok::<_, Error>((log, found))
        });
        let (log, found) = opened.await.map_err(|_| Error::Stopped)??;
        if let Some(start) = &found.start {
            let restored = machine.restore(&start.state);
            restored.map_err(|source| Error::Restore { group: id, source: Arc::new(source) })?;
            machine.applied();
        }
        let applied = found.start.as_ref().map(|start| start.applied.index);
        let tail = Tail::new(found.last.map(|last| last.index), applied);
        let shared = Shared::new(
            log,
            env.config.append_bytes_max,
            env.catch_up.clone(),
            tail,
            found.vote,
            Promise::new(found.promised, found.last),
            Arc::clone(&env.transport),
        );
        shared.update_status(|status| {
            status.last_index = found.last.map(|last| last.index);
            status.purged = found.purged;
            status.applied = applied;
            status.committed = applied;
            status.applied_term = found.start.as_ref().map_or(0, |start| start.applied.leader_id.term);
        });
        let (ended_tx, ended) = oneshot::channel();
        let checkpoint_bytes = env.config.checkpoint_bytes;
        let applier = Applier::new(
            Arc::clone(&shared),
            Box::new(machine),
            found.start.as_ref(),
            checkpoint_bytes,
            ended_tx,
        );
        let peers = Peers {
            group: id,
            node,
            transport: Arc::clone(&env.transport),
            append_timeout: env.config.append_timeout,
            shared: Arc::clone(&shared),
        };
        let log_store = LogStore::new(Arc::clone(&shared));
        let agreement = Agreement::new(node, Arc::new(config), peers, log_store, applier).await;
        let agreement = agreement.map_err(|error| {
            tracing::error!(group = %id, error = %error, "the replica of a group cannot start");
            shared.stopped()
        })?;
        let core = Arc::new(Core {
            shared,
            agreement,
            node,
            // The successor may wait for entries on its disk before it stands.
            hand_over: HandOver::new(env.config.election_min),
            purging: tokio::sync::Mutex::new(()),
            ended: Mutex::new(Some(ended)),
        });
        env.transport.attach(Replica { core: Arc::clone(&core) });
        if let Err(error) = core.start().await {
            core.stop().await;
            return Err(error);
        }
        let pace = Pace::new(id, env.metronome, &env.config);
        env.tasks.spawn("raft group status", Criticality::BestEffort, observe::run(Arc::clone(&core), pace));
        Ok(Group { core, machine: PhantomData })
    }

    /// Proposes a command. Commands enter the log in the order of these calls. The future resolves when the
    /// command is applied on this node, or at once with [`Error::NotLeader`], [`Error::Busy`] or the reason
    /// why the replica stopped.
    ///
    /// How many bytes are in flight is the caller's to bound.
    pub fn propose(&self, command: CommandBuf) -> Proposal<M::Reply> {
        if self.core.shared.is_stopped() {
            return Proposal::refused(self.core.shared.stopped());
        }
        let (waiter, answer) = Waiter::new();
        let write = self.core.agreement.client_write_ff(Command::Proposed(command.freeze()), Some(waiter));
        // openraft's queue takes the command on the first poll or not at all. `unconstrained`, because a task
        // that has used up its turn would be told to wait although there is room.
        match tokio::task::unconstrained(write).now_or_never() {
            Some(Ok(())) => Proposal::enqueued(self.core.node, answer),
            Some(Err(_)) => Proposal::refused(self.core.shared.stopped()),
            None if self.core.shared.is_stopped() => Proposal::refused(self.core.shared.stopped()),
            None => Proposal::refused(Error::Busy),
        }
    }
}

impl<M> Group<M> {
    /// Which group this is.
    pub fn id(&self) -> GroupId {
        self.core.shared.group
    }

    /// The replica as other nodes see it.
    pub fn replica(&self) -> Replica {
        Replica { core: Arc::clone(&self.core) }
    }

    /// What is known about the replica, now and whenever it changes.
    pub fn status(&self) -> Watch {
        self.core.shared.watch()
    }

    /// Starts the group with these voters, of which this node must be one. Does nothing to a group that has
    /// started.
    ///
    /// Exactly one member's call is needed; equal calls by several are harmless.
    ///
    /// # Errors
    /// [`Error::Membership`] if this node is not among `members`, and what ends the replica.
    pub async fn bootstrap(&self, members: impl IntoIterator<Item = NodeId>) -> Result<(), Error> {
        let members: BTreeSet<NodeId> = members.into_iter().collect();
        match self.core.agreement.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotInMembers(error))) => {
                Err(Error::Membership { reason: error.to_string() })
            }
            Err(RaftError::Fatal(_)) => Err(self.core.shared.stopped()),
        }
    }

    /// The replica as one that sees and changes the members.
    pub fn members(&self) -> Members {
        Members { core: Arc::clone(&self.core) }
    }

    /// Adds a member that receives entries but has no vote. Waits until it has caught up.
    ///
    /// # Errors
    /// [`Error::NotLeader`], [`Error::Membership`] while another change is under way,
    /// [`Error::OutcomeUnknown`].
    pub async fn add_learner(&self, node: NodeId) -> Result<(), Error> {
        self.core.changed(self.core.agreement.add_learner(node, (), true).await)
    }

    /// As [`Members::give_votes`], but who loses its vote leaves the group.
    ///
    /// # Errors
    /// As there.
    pub async fn change_voters(&self, voters: impl IntoIterator<Item = NodeId>) -> Result<(), Error> {
        self.core.replace_voters(voters.into_iter().collect(), false).await
    }

    /// See [`Members::transfer_leadership`].
    ///
    /// # Errors
    /// As there.
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), Error> {
        self.members().transfer_leadership(to).await
    }

    /// Forgets entries up to at most `index`: the newest checkpoint at or below it becomes the snapshot, and
    /// the log before it goes, also from disk. Without such a checkpoint nothing happens. Returns up to where
    /// the log is purged now: less, if followers are being sent those entries, which then go when they have them.
    ///
    /// # Errors
    /// What ended the replica, or what the store failed with.
    pub async fn purge_to(&self, index: u64) -> Result<Option<u64>, Error> {
        self.core.purge_to(index).await
    }

    /// Stops the replica: writes a last checkpoint and waits for everything in flight. Commands not yet
    /// applied get [`Error::OutcomeUnknown`]. Returns when nothing of the replica touches the store any more.
    /// Later calls do nothing.
    pub async fn shutdown(&self) {
        self.core.shutdown().await;
    }
}

#[cfg(test)]
impl<M> Group<M> {
    /// Stops as a crash would, as far as one process can: no last checkpoint.
    pub(crate) async fn stop_without_checkpoint(&self) {
        self.core.stop().await;
    }

    /// Index and term of every retained entry.
    pub(super) fn entries(&self) -> Vec<(u64, u64)> {
        let first = self.core.shared.log.purged().unwrap().map_or(0, |purged| purged.index + 1);
        let rows = LogStore::new(Arc::clone(&self.core.shared)).read(first..u64::MAX, u64::MAX).unwrap();
        rows.iter().map(|row| (row.index, row.term)).collect()
    }
}

/// What the store holds for a group.
struct Found {
    vote: Option<super::types::Vote>,
    /// The newest state.
    start: Option<Checkpoint>,
    last: Option<Position>,
    purged: Option<u64>,
    promised: Option<Position>,
}

impl Found {
    /// Blocking.
    fn read(group: GroupId, log: &crate::storage::Log) -> Result<Self, Error> {
        let corrupt = |what| Error::Corrupt { group, what };
        let decode = |bytes, what| Checkpoint::decode(&bytes).ok_or(corrupt(what));
        let mut vote =
            log.vote()?.map(|bytes| vote::decode(&bytes).ok_or(corrupt("the vote"))).transpose()?;
        let checkpoint = log.checkpoint_at(u64::MAX)?;
        let checkpoint = checkpoint.map(|(_, bytes)| decode(bytes, "a checkpoint")).transpose()?;
        let snapshot = log.snapshot()?.map(|bytes| decode(bytes, "the snapshot")).transpose()?;
        let snapshot_at = snapshot.as_ref().map(|snapshot| position(&snapshot.applied));
        if let Some(snapshot_at) = snapshot_at {
            // A crash may have come between taking up the snapshot and purging what it replaces.
            log.purge_to(snapshot_at)?;
        }
        let purged = log.purged()?.map(|purged| purged.index);
        let (last, mut promised) = (log.last()?, log.promised()?);
        if log.is_doubted()? {
            (vote, promised) = promise::doubt(log, vote, promised)?;
        }
        let start = match (checkpoint, snapshot) {
            (Some(checkpoint), Some(snapshot)) if checkpoint.applied < snapshot.applied => Some(snapshot),
            (checkpoint, snapshot) => checkpoint.or(snapshot),
        };
        if purged > start.as_ref().map(|start| start.applied.index) {
            return Err(corrupt("the log is purged beyond every state that is stored"));
        }
        if last.map(|last| last.index) < start.as_ref().map(|start| start.applied.index) {
            return Err(corrupt("the log ends before what was applied"));
        }
        Ok(Found { vote, start, last, purged, promised })
    }
}

impl Core {
    /// Starts what openraft waits with: an election at once if this node is the only voter, otherwise the
    /// ticks that lead to one in time.
    async fn start(&self) -> Result<(), Error> {
        let node = self.node;
        let voters = self.agreement.with_raft_state(|state| {
            let voters: Vec<NodeId> = state.membership_state.effective().voter_ids().collect();
            voters
        });
        let voters = voters.await.map_err(|_| self.shared.stopped())?;
        let alone = voters == [node];
        if alone || voters.len() == 2 {
            self.shared.promise.others_have_all();
        }
        // The log of one that was emptied may not have come to where others became members yet.
        if alone && self.shared.promise.owed().is_none() {
            self.agreement.trigger().elect(false).await.map_err(|_| self.shared.stopped())?;
        }
        Ok(())
    }

    /// Makes `voters` the members with a vote. Who loses its vote stays a member if `retain` says so.
    pub(super) async fn replace_voters(&self, voters: BTreeSet<NodeId>, retain: bool) -> Result<(), Error> {
        if !voters.contains(&self.node) {
            return Err(self.must_hand_over());
        }
        let change = ChangeMembers::<NodeId, ()>::ReplaceAllVoters(voters);
        self.changed(self.agreement.change_membership(change, retain).await)
    }

    /// Why this replica does not do what would cost it its vote.
    pub(super) fn must_hand_over(&self) -> Error {
        let status = self.shared.status();
        if status.role != Role::Leader {
            return Error::NotLeader { leader: status.leader };
        }
        Error::Membership { reason: format!("node {} leads, and must hand over before it leaves", self.node) }
    }

    pub(super) fn changed<T>(
        &self,
        result: Result<T, RaftError<Types, ClientWriteError<Types>>>,
    ) -> Result<(), Error> {
        match result {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(Error::NotLeader { leader: proposal::other(self.node, forward.leader_id) })
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => Err(Error::OutcomeUnknown),
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                Err(Error::Membership { reason: error.to_string() })
            }
            Err(RaftError::APIError(ClientWriteError::PreconditionFailed(error))) => {
                Err(Error::Membership { reason: error.to_string() })
            }
            Err(RaftError::Fatal(_)) => Err(Error::OutcomeUnknown),
        }
    }

    async fn purge_to(&self, index: u64) -> Result<Option<u64>, Error> {
        let _alone = self.purging.lock().await;
        self.checkpoint_up_to(index).await?;
        let Some(at) = self.store_snapshot(index).await? else {
            return Ok(self.shared.status().purged);
        };
        self.shared.update_status(|status| status.purge_failed = None);
        // Taking up the snapshot makes openraft purge the log up to it, once no follower is being sent those
        // entries.
        self.agreement.trigger().snapshot().await.map_err(|_| self.shared.stopped())?;
        let mut status = self.shared.watch();
        let done = status.wait_for(|status| {
            status.purged >= Some(at) || status.purge_failed.is_some() || status.role == Role::Stopped
        });
        match tokio::time::timeout(PURGE_PATIENCE, done).await {
            Ok(Ok(status)) if status.role != Role::Stopped => match &status.purge_failed {
                Some(error) => Err(error.clone()),
                None => Ok(status.purged),
            },
            Ok(_) => Err(self.shared.stopped()),
            Err(_) => Ok(self.shared.status().purged),
        }
    }

    /// Makes the newest checkpoint at or below `index` the snapshot, and gives its entry. Nothing if there is none, or none
    /// that is newer than what the log is purged to, or is about to be.
    async fn store_snapshot(&self, index: u64) -> Result<Option<u64>, Error> {
        // A leader's snapshot that is being taken up is as good as there: the log will be purged up to it.
        let mut newest = self.shared.snapshot.lock().await;
        let Some((at, checkpoint)) = self.shared.log.checkpoint_at(index)? else { return Ok(None) };
        if Some(at) <= self.shared.status().purged || Some(at) < *newest {
            return Ok(None);
        }
        let mut batch = Batch::new();
        batch.put_snapshot(self.shared.group, checkpoint);
        self.shared.store.commit_and_wait(batch, Durability::Lazy).await?;
        *newest = Some(at);
        Ok(Some(at))
    }

    /// Has a checkpoint written if what is applied is not after `limit`, and waits until it can be read.
    async fn checkpoint_up_to(&self, limit: u64) -> Result<(), Error> {
        let written = self.agreement.with_state_machine(move |applier: &mut Applier| {
            let written = applier.checkpoint_up_to(limit);
            Box::pin(std::future::ready(written))
        });
        let written = written.await.map_err(|_| self.shared.stopped())?;
        // An error here means that no checkpoint was due.
        let _ = written.await;
        Ok(())
    }

    async fn shutdown(&self) {
        // A replica that failed cannot write a checkpoint; the next start applies from an older one.
        let _ = self.checkpoint_up_to(u64::MAX).await;
        self.stop().await;
    }

    async fn stop(&self) {
        self.shared.transport.detach(self.shared.group);
        // Fails only for a task that was cancelled, which is as good as stopped.
        let _ = self.agreement.shutdown().await;
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ended) = ended {
            // An error is what is waited for: the sender goes with the state machine.
            let _ = ended.await;
        }
        self.shared.purges.close();
        self.shared.purges.wait().await;
        self.shared.update_status(|status| {
            status.role = Role::Stopped;
            status.leader = None;
        });
    }
}

#[cfg(test)]
impl Replica {
    /// Whether it must not vote for everybody, because it has lost something.
    pub(crate) fn owes(&self) -> bool {
        self.core.shared.promise.owed().is_some()
    }

    /// A handle that can do all but propose, whatever the machine is.
    pub(crate) fn handle_of_any(&self) -> Group<()> {
        Group { core: Arc::clone(&self.core), machine: PhantomData }
    }
}

impl Replica {
    /// Which group this is.
    pub fn id(&self) -> GroupId {
        self.core.shared.group
    }

    /// Answers another node's message.
    ///
    /// # Errors
    /// [`Error::Storage`] for bytes that are not as they were sent, [`Error::Corrupt`] for such a snapshot,
    /// and what ended the replica.
    pub async fn handle(&self, request: message::Request) -> Result<message::Response, Error> {
        let agreement = &self.core.agreement;
        let stopped = || self.core.shared.stopped();
        if let message::Request::Vote(request) | message::Request::PreVote(request) = &request
            && let Some(owed) = self.core.shared.promise.against(request.last)
        {
            return Ok(message::Response::Vote(network::refused(*self.core.shared.vote(), owed)));
        }
        match request {
            message::Request::Append(request) => {
                if !request.rows.is_empty() && self.id().is_partition() {
                    self.core.shared.store.can_follow()?;
                }
                // Held until they are written: leaders send as fast as they can read.
                let bytes = request.rows.iter().map(|row| row.len()).sum::<usize>() as u64;
                let _room = match bytes {
                    0 => None,
                    bytes => Some(self.core.shared.store.reserve(bytes).await?),
                };
                let request = network::append_from(self.id(), request)?;
                let response = agreement.append_entries(request).await.map_err(|_| stopped())?;
                if !matches!(response, openraft::raft::AppendEntriesResponse::HigherVote(_)) {
                    self.core.shared.hear();
                }
                Ok(message::Response::Append(network::appended_from(response)))
            }
            message::Request::Vote(request) => {
                let response = agreement.vote(network::vote_from(&request)).await.map_err(|_| stopped())?;
                Ok(message::Response::Vote(network::voted_from(&response)))
            }
            message::Request::PreVote(request) => {
                let response =
                    agreement.pre_vote(network::vote_from(&request)).await.map_err(|_| stopped())?;
                Ok(message::Response::Vote(network::voted_from(&response)))
            }
            message::Request::Snapshot(request) => {
                let corrupt = Error::Corrupt { group: self.id(), what: "a received snapshot" };
                let (vote, snapshot) = network::snapshot_from(&request).ok_or(corrupt)?;
                let response =
                    agreement.install_full_snapshot(vote, snapshot).await.map_err(|_| stopped())?;
                Ok(message::Response::Snapshot(network::installed_from(&response)))
            }
            message::Request::TransferLeader(request) if self.core.shared.promise.owed().is_some() => {
                let behind = message::Transferred::Behind { expected: request.last, actual: None };
                Ok(message::Response::TransferLeader(behind))
            }
            message::Request::Entries(request) => {
                let rows = LogStore::new(Arc::clone(&self.core.shared)).give(request).await?;
                Ok(message::Response::Entries(rows.iter().map(|row| row.bytes().clone()).collect()))
            }
            message::Request::TransferLeader(request) => {
                let request = network::transfer_from(&request);
                let response = agreement.handle_transfer_leader(request).await.map_err(|_| stopped())?;
                Ok(message::Response::TransferLeader(network::transferred_from(response)))
            }
        }
    }
}
