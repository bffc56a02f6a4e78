//! The control group: the cluster's metadata, agreed on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::peers::Hub;
use super::purge::{self, Growth};
use crate::metadata::{self, Broker, BrokerId, Command, Outcome, State};
use crate::raft::{self, Group, Machine, MachineError, NodeId, Role};
use crate::storage::{Batch, CommandBuf, GroupId};
use crate::task::{Criticality, Tasks};

/// The control group's number.
pub const GROUP: GroupId = GroupId(0);
/// How long a change is offered to one leader after the other before it fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a broker tries to learn what the leader knows.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a majority has to say that this broker leads.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause between two attempts.
const RETRY: Duration = Duration::from_millis(50);

/// Why a change of metadata did not happen.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The change does not fit the metadata.
    #[error(transparent)]
    Refused(#[from] metadata::Error),
    /// Agreement or the disk failed.
    #[error(transparent)]
    Raft(#[from] raft::Error),
}

/// A handle of this broker's replica of the control group.
#[derive(Clone)]
pub struct Control {
    group: Group<Replica>,
    state: watch::Receiver<Arc<State>>,
    hub: Hub,
    node: NodeId,
}

impl Control {
    /// Opens the replica. A broker that `founds` the cluster founds the group, if it is new. Its log is purged every
    /// `log_bytes`.
    ///
    /// # Errors
    /// The store failed, or holds something else.
    pub async fn open(
        node: NodeId,
        founds: bool,
        log_bytes: u64,
        hub: Hub,
        env: &raft::Env,
        tasks: &Tasks,
    ) -> Result<Self, Error> {
        let (publish, state) = watch::channel(Arc::new(State::default()));
        let growth = Growth::new(log_bytes);
        let machine = Replica { state: State::default(), publish, growth: growth.clone() };
        let group = Group::open(GROUP, node, machine, env).await?;
        if founds && group.status().now().last_index.is_none() {
            group.bootstrap([node]).await?;
        }
        let purger = purge::run(group.clone(), growth);
        tasks.spawn_until_stopped("control log", Criticality::Critical, purger);
        Ok(Control { group, state, hub, node })
    }

    /// Waits until the group has a leader, and this replica, if it is that, has applied what was agreed on before.
    ///
    /// # Errors
    /// The replica failed.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut status = self.status();
        let node = self.node;
        let ready =
            move |s: &raft::Status| s.is_ready_leader() || s.leader.is_some_and(|leader| leader != node);
        match status.wait_for(|s| ready(s) || s.failed.is_some()).await {
            Ok(status) => status.failed.clone().map_or(Ok(()), |error| Err(error.into())),
            Err(_) => Err(raft::Error::Stopped.into()),
        }
    }

    /// The leader, if there is one and this replica, in case it is that, has applied what was agreed on before.
    pub fn ready_now(&self) -> Option<BrokerId> {
        let status = self.status().now();
        let leader = status.leader.filter(|leader| *leader != self.node || status.is_ready_leader());
        leader.filter(|_| status.applied.is_some()).map(BrokerId)
    }

    /// Changes the metadata, here or at the broker that leads. The change is applied on this broker when this returns. If
    /// the leader changes meanwhile, the change is offered to the next one.
    ///
    /// # Errors
    /// [`Error::Refused`] if the change does not fit, otherwise agreement failed.
    pub async fn change(&self, command: &Command) -> Result<Outcome, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leader = self.status().now().leader;
            let changed = match leader {
                Some(leader) if leader != self.node => {
                    self.hub.change_metadata(leader, command.encode()).await
                }
                _ => self.change_here(command).await,
            };
            match changed {
                Ok((index, outcome)) => {
                    self.applied(index).await;
                    return Ok(outcome?);
                }
                Err(raft::Error::NotLeader { .. } | raft::Error::Busy) if Instant::now() < deadline => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Changes the metadata if this broker leads the group. Gives the change's log index and what it gave.
    ///
    /// # Errors
    /// Agreement failed.
    pub async fn change_here(
        &self,
        command: &Command,
    ) -> Result<(u64, Result<Outcome, metadata::Error>), raft::Error> {
        let encoded = command.encode();
        let mut buf = CommandBuf::with_capacity(encoded.len());
        buf.extend_from_slice(&encoded);
        let proposed = self.group.propose(buf).await?;
        Ok((proposed.index, proposed.reply))
    }

    /// Waits until this broker knows what was agreed on when this was called. What it knew before may be old: it has just
    /// started, or was cut off. Returns whether that is so; if the leader does not answer soon it is not.
    pub(super) async fn catch_up(&self) -> bool {
        let catching_up = async {
            let Some(index) = self.leader_index().await else { return false };
            self.applied(index).await;
            self.status().now().applied >= Some(index)
        };
        tokio::time::timeout(CATCH_UP_TIMEOUT, catching_up).await.unwrap_or(false)
    }

    /// As [`Control::catch_up`], however long it takes.
    ///
    /// # Errors
    /// The replica ended.
    pub(super) async fn caught_up(&self) -> Result<(), Error> {
        while !self.catch_up().await {
            let status = self.status().now();
            if status.role == Role::Stopped {
                return Err(status.failed.unwrap_or(raft::Error::Stopped).into());
            }
            tokio::time::sleep(RETRY).await;
        }
        Ok(())
    }

    /// How far the leader has applied its log, if it answers.
    async fn leader_index(&self) -> Option<u64> {
        let leader = self.status().now().leader?;
        if leader == self.node {
            return self.leading_index().await;
        }
        self.hub.metadata_index(leader).await.ok()
    }

    /// How far this replica has applied its log, if it leads for sure. One that was started again, or cut off, may take
    /// itself for the leader when another one has been elected long ago.
    pub(super) async fn leading_index(&self) -> Option<u64> {
        self.members().confirm(CONFIRM_TIMEOUT).await.ok()?;
        self.status().now().applied
    }

    /// Waits until this replica has applied the entry at `index`; not for long.
    pub(super) async fn applied(&self, index: u64) {
        let mut status = self.status();
        let applied = status.wait_for(|status| status.applied >= Some(index) || status.failed.is_some());
        // Whoever needs it will see it a moment later.
        let _ = tokio::time::timeout(PATIENCE, applied).await;
    }

    /// Makes a broker a member of the cluster, and gives its number. One that was at its address is replaced.
    ///
    /// # Errors
    /// [`Error::Refused`] if a living broker has the address, otherwise agreement failed.
    pub async fn admit(&self, broker: Broker) -> Result<BrokerId, Error> {
        let address = broker.grpc_address.clone();
        let state = self.state();
        let mut holders = state.brokers().filter(|known| known.replaced_by.is_none());
        if let Some(holder) = holders.find(|known| known.grpc_address == address) {
            let answers = match holder.id.0 == self.node {
                true => true,
                false => super::peers::identify(&address).await.is_ok_and(|who| who.broker_id == holder.id.0),
            };
            if answers {
                let text = format!(
                    "broker {} is alive at {address}: give the new one its own server.grpc_advertise",
                    holder.id
                );
                return Err(metadata::Error::Refused(text).into());
            }
        }
        match self.change(&Command::AdmitBroker(broker)).await? {
            Outcome::Broker(id) => Ok(id),
            _ => Err(raft::Error::OutcomeUnknown.into()),
        }
    }

    /// The members of the group.
    pub fn members(&self) -> raft::Members {
        self.group.members()
    }

    /// The metadata as this broker knows it.
    pub fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    /// The metadata, now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// The state of the group.
    pub fn status(&self) -> raft::Watch {
        self.group.status()
    }

    /// Closes the replica.
    pub async fn close(&self) {
        self.group.shutdown().await;
    }
}

struct Replica {
    state: State,
    publish: watch::Sender<Arc<State>>,
    growth: Arc<Growth>,
}

impl Machine for Replica {
    type Reply = Result<Outcome, metadata::Error>;

    fn apply(
        &mut self,
        _index: u64,
        _term: u64,
        command: &Bytes,
        _batch: &mut Batch,
    ) -> Result<Self::Reply, MachineError> {
        self.growth.applied(command);
        let command = Command::decode(command).map_err(|e| MachineError { reason: e.to_string() })?;
        Ok(self.state.apply(command))
    }

    fn applied(&mut self) {
        let state = &self.state;
        self.publish.send_if_modified(|published| {
            let changed = **published != *state;
            if changed {
                *published = Arc::new(state.clone());
            }
            changed
        });
    }

    fn encode(&self) -> Vec<u8> {
        let encoded = self.state.encode();
        self.growth.encoded(&encoded);
        encoded
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        self.state = State::decode(state).map_err(|e| MachineError { reason: e.to_string() })?;
        self.growth.encoded(state);
        Ok(())
    }
}
