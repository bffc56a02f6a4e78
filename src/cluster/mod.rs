//! The cluster as one broker sees it: the agreed metadata, and this broker's partitions.
//!
//! | file | idea |
//! |---|---|
//! | [`control`] | the group that agrees on metadata |
//! | [`coordinator`] | the groups that agree on consumer groups and their offsets |
//! | [`purge`] | keeps the logs of these groups short |
//! | [`reconciler`] | makes partitions what the metadata says |
//! | [`routing`] | finds a partition by topic and number |
//! | [`retention`] | trims what topics do not keep |
//! | [`identity`] | who this broker is, kept on its disk |
//!
//! A broker alone is a cluster of one and runs the same code.

pub mod control;
pub mod coordinator;
pub mod identity;
mod purge;
mod reconciler;
mod retention;
pub mod routing;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use control::Control;
use coordinator::Coordinators;
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
    coordinators: Coordinators,
    routing: Arc<Routing>,
    reconciled: watch::Receiver<Arc<State>>,
    /// Of the reconciler and everything below it.
    tasks: Tasks,
}

impl Cluster {
    /// Opens the control group, registers this broker, and opens the coordinator shards and its partitions. Returns when
    /// all of them can be written and read, but for partitions that cannot be opened, which the log and the health
    /// checks name.
    ///
    /// # Errors
    /// The store failed, or holds something else.
    pub async fn open(
        identity: Identity,
        broker: Broker,
        config: &coordinator::Config,
        env: partition::Env,
        tasks: &Tasks,
    ) -> Result<Self, control::Error> {
        let node = identity.broker;
        let tasks = tasks.child();
        let control = Control::open(node.0, &[node.0], config.log_bytes, &env.raft, &tasks).await?;
        control.ready().await?;
        control.change(&Command::RegisterBroker(broker)).await?;
        let shards = fixed_shards(&control, config).await?;
        let coordinators = Coordinators::open(shards, config, node.0, &[node.0], &env.raft, &tasks).await?;
        coordinators.ready().await?;
        let routing = Arc::new(Routing::default());
        let (reconciled_to, reconciled) = watch::channel(Arc::new(State::default()));
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
        let cluster = Cluster { identity, control, coordinators, routing, reconciled, tasks };
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

    /// The coordinator shards.
    pub fn coordinators(&self) -> &Coordinators {
        &self.coordinators
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

    /// Closes all partitions, the coordinator shards and the control group.
    pub async fn close(&self, deadline: Duration) {
        self.tasks.stop(deadline).await;
        self.coordinators.close().await;
        self.control.close().await;
    }
}

/// How many coordinator shards the cluster has, which its first start decided.
async fn fixed_shards(control: &Control, config: &coordinator::Config) -> Result<u32, control::Error> {
    let shards = match control.state().coordinator_shards() {
        Some(shards) => shards,
        None => match control.change(&Command::FixCoordinatorShards { shards: config.shards }).await? {
            Outcome::CoordinatorShards(shards) => shards,
            Outcome::Done | Outcome::Topic(_) | Outcome::ProducerId(_) => config.shards,
        },
    };
    if shards != config.shards {
        let configured = config.shards;
        warn!(
            name: "coordinator.shards_fixed",
            configured, shards,
            "coordinator.shards = {configured} has no effect: the cluster has had {shards} since its first start"
        );
    }
    Ok(shards)
}
