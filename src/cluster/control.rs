//! The control group: the cluster's metadata, agreed on.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use tracing::error;

use super::purge::{self, Growth};
use crate::metadata::{self, Command, Outcome, State};
use crate::raft::{self, Group, Machine, MachineError, NodeId};
use crate::storage::{Batch, CommandBuf, GroupId};
use crate::task::{Criticality, Tasks};

/// The control group's number.
pub const GROUP: GroupId = GroupId(0);

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
}

impl Control {
    /// Opens the replica. `voters` found the group if it is new. Its log is purged every `log_bytes`.
    ///
    /// # Errors
    /// The store failed, or holds something else.
    pub async fn open(
        node: NodeId,
        voters: &[NodeId],
        log_bytes: u64,
        env: &raft::Env,
        tasks: &Tasks,
    ) -> Result<Self, Error> {
        let (publish, state) = watch::channel(Arc::new(State::default()));
        let growth = Growth::new(log_bytes);
        let machine = Replica { state: State::default(), publish, growth: growth.clone() };
        let group = Group::open(GROUP, node, machine, env).await?;
        if group.status().borrow().last_index.is_none() {
            group.bootstrap(voters.iter().copied()).await?;
        }
        let purger = purge::run(group.clone(), growth);
        tasks.spawn_until_stopped("control log", Criticality::Critical, purger);
        Ok(Control { group, state })
    }

    /// Waits until this replica leads and has applied what was agreed on before.
    ///
    /// # Errors
    /// The replica failed.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut status = self.status();
        match status.wait_for(|s| s.is_ready_leader() || s.failed.is_some()).await {
            Ok(status) => status.failed.clone().map_or(Ok(()), |error| Err(error.into())),
            Err(_) => Err(raft::Error::Stopped.into()),
        }
    }

    /// Changes the metadata. The change is applied on this broker when this returns.
    ///
    /// # Errors
    /// [`Error::Refused`] if the change does not fit, otherwise agreement failed.
    pub async fn change(&self, command: &Command) -> Result<Outcome, Error> {
        let encoded = command.encode();
        let mut buf = CommandBuf::with_capacity(encoded.len());
        buf.extend_from_slice(&encoded);
        Ok(self.group.propose(buf).await?.reply?)
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
    pub fn status(&self) -> watch::Receiver<raft::Status> {
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

    fn apply(&mut self, index: u64, _term: u64, command: &Bytes, _batch: &mut Batch) -> Self::Reply {
        self.growth.applied(command);
        let command = Command::decode(command).inspect_err(|unreadable| {
            error!(index, error = %unreadable, "control entry left out: it is no command of this version");
        })?;
        self.state.apply(command)
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
