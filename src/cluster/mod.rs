//! The cluster as one broker sees it: the agreed metadata, and this broker's partitions.
//!
//! | file | idea |
//! |---|---|
//! | [`control`] | the group that agrees on metadata |
//! | [`reconciler`] | makes partitions what the metadata says |
//! | [`routing`] | finds a partition by topic and number |
//! | [`retention`] | trims what topics do not keep |
//! | [`identity`] | who this broker is, kept on its disk |
//!
//! A broker alone is a cluster of one and runs the same code.

pub mod control;
pub mod identity;
mod reconciler;
mod retention;
pub mod routing;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use control::Control;
use identity::Identity;
use reconciler::Reconciler;
use routing::Routing;

use crate::metadata::{Broker, BrokerId, Command, Outcome, State};
use crate::partition;
use crate::task::{Criticality, Tasks};

pub use reconciler::group_of;

/// A handle of the cluster. Clones share it.
#[derive(Clone)]
pub struct Cluster {
    identity: Identity,
    control: Control,
    routing: Arc<Routing>,
    reconciled: watch::Receiver<Arc<State>>,
    /// Of the reconciler and everything below it.
    tasks: Tasks,
}

impl Cluster {
    /// Opens the control group, registers this broker, and opens its partitions. Returns when all of them can be
    /// written and read, but for those that cannot be opened, which the log and the health checks name.
    ///
    /// # Errors
    /// The store failed, or holds something else.
    pub async fn open(
        identity: Identity,
        broker: Broker,
        env: partition::Env,
        tasks: &Tasks,
    ) -> Result<Self, control::Error> {
        let node = identity.broker;
        let control = Control::open(node.0, &[node.0], &env.raft).await?;
        control.ready().await?;
        control.change(&Command::RegisterBroker(broker)).await?;
        let routing = Arc::new(Routing::default());
        let (reconciled_to, reconciled) = watch::channel(Arc::new(State::default()));
        let tasks = tasks.child();
        let reconciler = Reconciler {
            node,
            control: control.clone(),
            env: env.clone(),
            routing: routing.clone(),
            tasks: tasks.clone(),
            reconciled: reconciled_to,
            open: Default::default(),
        };
        tasks.spawn("reconciler", Criticality::Critical, reconciler.run());
        let retention = retention::run(routing.clone(), env.clock.clone(), env.config.retention_interval);
        tasks.spawn_until_stopped("retention", Criticality::Critical, retention);
        let cluster = Cluster { identity, control, routing, reconciled, tasks };
        cluster.settled(&cluster.control.state()).await;
        Ok(cluster)
    }

    /// Who this broker is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The metadata as this broker knows it.
    pub fn state(&self) -> Arc<State> {
        self.control.state()
    }

    /// The metadata that this broker's partitions follow, now and whenever that changes.
    pub fn reconciled(&self) -> watch::Receiver<Arc<State>> {
        self.reconciled.clone()
    }

    /// The partitions that this broker can reach.
    pub fn routing(&self) -> &Routing {
        &self.routing
    }

    /// The state of the control group.
    pub fn control_status(&self) -> watch::Receiver<crate::raft::Status> {
        self.control.status()
    }

    /// Changes the metadata, and waits until this broker's partitions follow.
    ///
    /// # Errors
    /// See [`Control::change`].
    pub async fn change(&self, command: &Command) -> Result<Outcome, control::Error> {
        let outcome = self.control.change(command).await?;
        if !matches!(command, Command::AllocateProducerId) {
            self.settled(&self.control.state()).await;
        }
        Ok(outcome)
    }

    /// Waits until the partitions were made to follow `state` or something newer.
    async fn settled(&self, state: &Arc<State>) {
        let mut reconciled = self.reconciled.clone();
        let control = &self.control;
        // An error means that the reconciler is gone because the broker stops.
        let _ = reconciled.wait_for(|now| now == state || *now == control.state()).await;
    }

    /// Replicas that each partition of a topic created now gets, by partition number.
    pub fn place(&self, partitions: u32) -> Vec<crate::metadata::PartitionAssignment> {
        let replicas = vec![self.identity.broker];
        vec![crate::metadata::PartitionAssignment { replicas }; partitions as usize]
    }

    /// How many brokers a topic's replicas can be spread over.
    pub fn broker_count(&self) -> u32 {
        self.state().brokers().count() as u32
    }

    /// The broker that leads the control group.
    pub fn controller(&self) -> Option<BrokerId> {
        self.control.status().borrow().leader.map(BrokerId)
    }

    /// Closes all partitions and the control group.
    pub async fn close(&self, deadline: Duration) {
        self.tasks.stop(deadline).await;
        self.control.close().await;
    }
}
