//! The cluster as one broker sees it: the agreed metadata, and this broker's partitions.
//!
//! | file | idea |
//! |---|---|
//! | [`config`] | settings |
//! | [`identity`], [`join`] | who this broker is, and how it became a member of its cluster |
//! | [`contact`] | whether there is a majority, and whether this broker still belongs to the cluster |
//! | [`control`] | the group that agrees on metadata |
//! | [`coordinator`] | the groups that agree on consumer groups and their offsets |
//! | [`purge`] | keeps the logs of these groups short |
//! | [`peers`] | the other brokers: connections, and what they ask |
//! | [`placement`] | which brokers get replicas |
//! | [`membership`] | moves replicas and leaderships to where they should be |
//! | [`steps`], [`turns`] | what a group's members need next, and when that may begin; pure |
//! | [`reconciler`] | makes the replicas on this broker what the metadata says |
//! | [`routing`], [`partition_ref`] | a partition, wherever its leader is |
//! | [`retention`] | trims what topics do not keep |
//! | [`verify`] | finds damage before it is too late to repair it |
//!
//! A broker alone is a cluster of one and runs the same code. All brokers have copies of the metadata and of the
//! coordinator shards; some of them vote there. A partition has replicas on those that the metadata names.

pub mod config;
mod contact;
pub mod control;
pub mod coordinator;
pub mod identity;
pub mod join;
mod membership;
pub mod partition_ref;
pub mod peers;
pub mod placement;
mod purge;
mod reconciler;
mod retention;
pub mod routing;
pub(crate) mod steps;
pub(crate) mod turns;
mod verify;
pub(crate) mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use contact::Contact;
use control::Control;
use coordinator::Coordinators;
use identity::Identity;
use membership::Membership;
use partition_ref::PartitionRef;
use peers::Hub;
use reconciler::Reconciler;
use routing::Routing;

use crate::metadata::{Broker, BrokerId, Command, Outcome, State};
use crate::partition;
use crate::raft;
use crate::task::{Criticality, Tasks};

pub use config::Config;
pub use reconciler::group_of;

/// How long a new topic may take to have all its leaders before its creation is answered anyway.
const LEADERS_TIMEOUT: Duration = Duration::from_secs(10);
const LEADERS_LOOK: Duration = Duration::from_millis(5);
/// The pause between two attempts of a broker that starts to tell the cluster where it is.
const REGISTER_EVERY: Duration = Duration::from_millis(100);

/// A handle of the cluster. Clones share it.
#[derive(Clone)]
pub struct Cluster {
    identity: Identity,
    config: Config,
    control: Control,
    coordinators: Coordinators,
    routing: Arc<Routing>,
    hub: Hub,
    reconciled: watch::Receiver<Arc<State>>,
    contact: watch::Receiver<Contact>,
    /// Of the reconciler and everything below it.
    tasks: Tasks,
}

/// What a cluster is opened with.
pub struct Open<'a> {
    /// Who this broker is.
    pub identity: Identity,
    /// What the others should know of it.
    pub broker: Broker,
    /// Settings.
    pub config: Config,
    /// Settings of the coordinator shards.
    pub coordinator: &'a coordinator::Config,
    /// The other brokers.
    pub hub: Hub,
    /// What partitions share.
    pub env: partition::Env,
    /// Told what [`Cluster::open`] waits for.
    pub waiting: watch::Sender<&'static str>,
}

impl Cluster {
    /// Opens the control group and this broker's partitions, registers it, and opens the coordinator shards. Returns when
    /// metadata and offsets can be read and written; partitions that cannot be opened, or have no leader yet, are named
    /// by the log and the health checks.
    ///
    /// # Errors
    /// The store failed or holds something else, or the cluster does not want this broker (any more).
    pub async fn open(open: Open<'_>, tasks: &Tasks) -> Result<Self, control::Error> {
        let Open { identity, broker, config, coordinator, hub, env, waiting } = open;
        let (node, founds) = (identity.broker, identity.founds());
        let tasks = tasks.child();
        waiting.send_replace("the metadata");
        let control =
            Control::open(node.0, founds, coordinator.log_bytes, hub.clone(), &env.raft, &tasks).await?;
        let book = {
            let store = env.store.clone();
            let read = tokio::task::spawn_blocking(move || peers::Book::load(&store));
            let read = read.await.map_err(|_| raft::Error::Stopped)?;
            read.map_err(raft::Error::from)?
        };
        hub.remember(&book);
        let routing = Arc::new(Routing::default());
        hub.serve(control.clone(), routing.clone());
        let (reconciled_to, reconciled) = watch::channel(Arc::new(State::default()));
        let reconciler = Reconciler {
            node,
            control: control.clone(),
            hub: hub.clone(),
            env: env.clone(),
            routing: routing.clone(),
            tasks: tasks.clone(),
            reconciled: reconciled_to,
            open: Default::default(),
            known: Default::default(),
            book,
        };
        tasks.spawn("reconciler", Criticality::Critical, reconciler.run());
        waiting.send_replace("a leader of the control group, which a majority of its voters must elect");
        register(&control, &hub, &config.seeds, broker).await?;
        control.ready().await?;
        let shards = fixed_shards(&control, coordinator).await?;
        waiting.send_replace("leaders of the coordinator shards");
        let alone = [node.0];
        let founders = founds.then_some(&alone[..]);
        let coordinators =
            Coordinators::open(shards, coordinator, node.0, founders, &env.raft, &tasks).await?;
        let membership = Membership {
            node,
            config: config.clone(),
            control: control.clone(),
            coordinators: coordinators.clone(),
            routing: routing.clone(),
            hub: hub.clone(),
            metrics: env.metrics.clone(),
            tasks: tasks.clone(),
            settles_in: env.raft.store.settles_in(),
        };
        tasks.spawn_until_stopped("membership", Criticality::Critical, membership.run());
        coordinators.ready().await?;
        let retention = retention::run(routing.clone(), env.clock.clone(), env.config.retention_interval);
        tasks.spawn_until_stopped("retention", Criticality::Critical, retention);
        let verify = verify::run(routing.clone(), env.config.clone());
        tasks.spawn_until_stopped("verify", Criticality::Critical, verify);
        let (keeping, contact) = watch::channel(Contact::default());
        let cluster =
            Cluster { identity, config, control, coordinators, routing, hub, reconciled, contact, tasks };
        waiting.send_replace("what the leader of the control group knows");
        // Topics that were created while this broker was down are known before it says anything about them.
        cluster.control.caught_up().await?;
        keeping.send_replace(Contact::fresh());
        let contact = contact::keep(node, cluster.control.clone(), cluster.hub.clone(), keeping);
        cluster.tasks.spawn_until_stopped("contact", Criticality::Critical, contact);
        waiting.send_replace("partitions");
        cluster.settled(&cluster.control.state()).await;
        cluster.hub.set_ready(true);
        Ok(cluster)
    }

    /// Who this broker is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The metadata as this broker knows it.
    pub fn state(&self) -> Arc<State> {
        self.control.state()
    }

    /// The metadata that this broker's partitions follow, now and whenever that changes.
    pub fn reconciled(&self) -> watch::Receiver<Arc<State>> {
        self.reconciled.clone()
    }

    /// The partitions of the cluster.
    pub fn routing(&self) -> &Routing {
        &self.routing
    }

    /// The coordinator shards.
    pub fn coordinators(&self) -> &Coordinators {
        &self.coordinators
    }

    /// The other brokers.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The state of the control group.
    pub fn control_status(&self) -> raft::Watch {
        self.control.status()
    }

    /// The members of the control group.
    pub fn control_members(&self) -> raft::Members {
        self.control.members()
    }

    /// Changes the metadata, and waits until this broker's partitions follow and those of a new topic have leaders.
    ///
    /// # Errors
    /// See [`Control::change`].
    pub async fn change(&self, command: &Command) -> Result<Outcome, control::Error> {
        let outcome = self.control.change(command).await?;
        if !matches!(command, Command::AllocateProducerId) {
            self.settled(&self.control.state()).await;
        }
        if let (Command::CreateTopic { name, .. } | Command::AddPartitions { name, .. }, Outcome::Topic(_)) =
            (command, &outcome)
        {
            self.led(name).await;
        }
        Ok(outcome)
    }

    /// Waits until this broker knows a leader of each partition of a topic; not for long, since a broker that is down
    /// delays the leaders of its partitions, which come without anybody waiting.
    pub async fn led(&self, topic: &str) {
        let led = async {
            while !self.is_led(topic) {
                tokio::time::sleep(LEADERS_LOOK).await;
            }
        };
        let _ = tokio::time::timeout(LEADERS_TIMEOUT, led).await;
    }

    fn is_led(&self, topic: &str) -> bool {
        self.routing
            .topic(topic)
            .is_none_or(|route| route.partitions.iter().all(|partition| partition.leader().is_some()))
    }

    /// Waits until the partitions were made to follow `state` or something newer.
    async fn settled(&self, state: &Arc<State>) {
        let mut reconciled = self.reconciled.clone();
        // The second round that ends from now on began after this, so it follows what is known now. Waiting for the newest
        // state instead would take as long as there are changes.
        for _ in 0..2 {
            let now = Arc::clone(&reconciled.borrow_and_update());
            // An error means that the reconciler is gone because the broker stops.
            if now == *state || now == self.control.state() || reconciled.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until this broker knows what the leader of the control group knew at some moment after the call. Returns
    /// whether it does: the leader may not answer.
    pub async fn catch_up(&self) -> bool {
        let caught_up = self.control.catch_up().await;
        self.settled(&self.control.state()).await;
        caught_up
    }

    /// Replicas that each partition of a topic created now gets, by partition number.
    ///
    /// # Errors
    /// There are too few brokers.
    pub fn place(
        &self,
        partitions: u32,
        factor: u32,
    ) -> Result<Vec<crate::metadata::PartitionAssignment>, placement::TooFew> {
        let candidates = placement::candidates(&self.state(), |id| self.hub.is_up(id.0));
        placement::place(candidates, partitions, factor)
    }

    /// How many brokers a topic's replicas can be spread over.
    pub fn broker_count(&self) -> u32 {
        self.state().brokers().filter(|broker| broker.takes_replicas()).count() as u32
    }

    /// The broker that leads the control group, as [`Hub::leader_of`] has it, if it is known that a majority follows.
    pub fn controller(&self) -> Option<BrokerId> {
        let leader = BrokerId(self.hub.leader_of(&self.control.members())?);
        (leader == self.identity.broker || self.contact.borrow().is_confirmed()).then_some(leader)
    }

    /// The broker that leads the control group and is reached, if it does not say that a majority follows.
    pub fn doubted_controller(&self) -> Option<BrokerId> {
        let leader = self.hub.leader_of(&self.control.members())?;
        self.contact.borrow().doubts(leader).then_some(BrokerId(leader))
    }

    /// Why this broker does not belong to the cluster any more, and what to do, if that is so.
    pub fn left(&self) -> Option<String> {
        self.contact.borrow().left().map(str::to_owned)
    }

    /// Hands the leadership of a partition that this broker leads to another one that has a replica.
    ///
    /// # Errors
    /// What ended the replica.
    pub async fn transfer(&self, partition: &PartitionRef, to: BrokerId) -> Result<(), raft::Error> {
        match partition.replica() {
            Some(replica) => replica.members().transfer_leadership(to.0).await,
            None => Err(raft::Error::NotLeader { leader: partition.leader().map(|id| id.0) }),
        }
    }

    /// Hands leaderships that this broker has to those who should have them, and gives how many.
    pub async fn balance(&self) -> usize {
        let state = self.control.state();
        membership::balance(self.identity.broker, &state, &self.routing, &self.coordinators, &self.hub).await
    }

    /// In how many of the groups that hold metadata and offsets a broker votes, as far as this one knows.
    pub fn votes_of(&self, id: BrokerId) -> usize {
        let shards = self.coordinators.all().iter().map(coordinator::Coordinator::members);
        let groups = std::iter::once(self.control.members()).chain(shards);
        groups.filter(|members| members.status().now().voters.contains(&id.0)).count()
    }

    /// The most log entries that each other broker lacks in any group that this one leads.
    pub fn lags(&self) -> BTreeMap<u64, u64> {
        let partitions = self.routing.partitions();
        let replicas = partitions.values().filter_map(PartitionRef::replica).map(|replica| replica.members());
        let coordinators = self.coordinators.all().iter().map(coordinator::Coordinator::members);
        let mut lags = BTreeMap::new();
        for members in replicas.chain(coordinators).chain([self.control.members()]) {
            let last = members.status().now().last_index.map_or(0, |last| last + 1);
            for follower in members.followers() {
                let lag = last.saturating_sub(follower.matched.map_or(0, |matched| matched + 1));
                let most: &mut u64 = lags.entry(follower.node).or_default();
                *most = lag.max(*most);
            }
        }
        lags
    }

    /// Hands all leaderships to other brokers, as far as they can take them; also those that come meanwhile. The others hear
    /// that this one is about to stop.
    pub async fn hand_over(&self) {
        self.hub.set_ready(false);
        let over = Instant::now() + self.config.handover_timeout;
        loop {
            let partitions = self.routing.partitions();
            let replicas =
                partitions.values().filter_map(PartitionRef::replica).map(|replica| replica.members());
            let coordinators = self.coordinators.all().iter().map(coordinator::Coordinator::members);
            let all = replicas.chain(coordinators).chain([self.control.members()]);
            let groups: Vec<raft::Members> = all.filter(|members| self.leads_others(members)).collect();
            if groups.is_empty()
                || !Membership::hand_over(self.identity.broker, groups, &self.hub, over).await
            {
                return;
            }
        }
    }

    fn leads_others(&self, members: &raft::Members) -> bool {
        let status = members.status().now();
        status.leader == Some(self.identity.broker.0) && status.voters.len() > 1
    }

    /// Closes all partitions, the coordinator shards and the control group.
    pub async fn close(&self, deadline: Duration) {
        self.tasks.stop(deadline).await;
        self.coordinators.close().await;
        self.control.close().await;
        self.hub.close(deadline).await;
    }
}

/// Tells the cluster where this broker is now. Waits for a leader as long as it takes.
///
/// The leader may look for this broker where it was before, and not find it; so any broker that is reached will do.
async fn register(
    control: &Control,
    hub: &Hub,
    seeds: &[String],
    broker: Broker,
) -> Result<(), control::Error> {
    loop {
        if control.ready_now().is_some() {
            match control.change(&Command::RegisterBroker(broker.clone())).await {
                Ok(_) => return Ok(()),
                Err(control::Error::Raft(
                    raft::Error::NotLeader { .. } | raft::Error::Busy | raft::Error::OutcomeUnknown,
                )) => {}
                Err(error) => return Err(error),
            }
        }
        let state = control.state();
        let known = state.brokers().filter(|known| known.id != broker.id).map(|known| &known.grpc_address);
        let addresses: BTreeSet<&String> = known.chain(seeds).collect();
        for address in addresses.into_iter().filter(|address| **address != broker.grpc_address) {
            match hub.announce(address, &broker).await {
                Ok(()) => return Ok(()),
                Err(Some(refusal)) => return Err(refusal.into()),
                Err(None) => {}
            }
        }
        tokio::time::sleep(REGISTER_EVERY).await;
    }
}

/// How many coordinator shards the cluster has, which its first start decided.
async fn fixed_shards(control: &Control, config: &coordinator::Config) -> Result<u32, control::Error> {
    let shards = match control.state().coordinator_shards() {
        Some(shards) => shards,
        None => match control.change(&Command::FixCoordinatorShards { shards: config.shards }).await? {
            Outcome::CoordinatorShards(shards) => shards,
            _ => config.shards,
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
