//! The broker's use cases, one file each. The only door: gRPC, HTTP and tests come through here.
//!
//! | file | use case |
//! |---|---|
//! | [`produce`] | append a batch |
//! | [`fetch`], [`subscription`] | read batches, once or as they come |
//! | [`room`] | bound what is held for clients |
//! | [`topics`] | manage topics and offsets |
//! | [`cluster`] | look at the cluster, move replicas and leaderships |
//! | [`detail`] | levels of each partition, on demand |
//! | [`control`] | change the log filter and the sampling of traces for a while |
//! | [`explain`], [`memory`] | what became of a record |
//! | [`groups`] | consumer and share groups |
//! | [`health`] | whether the broker can do its work |
//! | [`error`] | everything that can be wrong with a request |

mod cluster;
mod config;
mod control;
mod detail;
mod error;
mod explain;
mod fetch;
pub mod groups;
pub mod health;
mod levels;
mod memory;
mod observe;
mod produce;
mod room;
mod subscription;
mod topics;

use std::sync::{Arc, OnceLock};

use tokio::sync::{Mutex, Notify, watch};

use health::Reporter;
use levels::Levels;
use memory::Memory;

use crate::clock::{Clock, Timestamp};
use crate::cluster::Cluster;
use crate::cluster::partition_ref::PartitionRef;
use crate::cluster::routing::Route;
use crate::partition;
use crate::storage;
use crate::telemetry::{Control, Metrics, Tracer};

pub use cluster::{BrokerStatus, ClusterStatus, PartitionProblem, Problem};
pub use config::Config;
pub use control::{Order, Overrides};
pub use detail::{DetailPage, DetailQuery};
pub use error::{Error, ErrorCode};
pub use explain::{GroupFacts, RecordFacts};
pub use fetch::{Fetch, FetchPartition, Fetched, FetchedBatch, Position, Responding};
pub use health::{Check, Health, Phase};
pub use memory::TracedBatch;
pub use produce::{PendingProduce, Produce, Produced};
pub use room::{Room, Share};
pub use subscription::Subscription;
pub use topics::{PartitionInfo, Topic, TopicChanges, TopicSettings};

/// A handle of the broker. Clones share it.
#[derive(Clone)]
pub struct Broker(Arc<Inner>);

struct Inner {
    config: Config,
    metrics: Metrics,
    tracer: Tracer,
    control: Control,
    overrides_changed: Notify,
    clock: Clock,
    health: Reporter,
    levels: Levels,
    memory: Arc<Memory>,
    /// Held while metadata is checked and changed.
    changing: Mutex<()>,
    storage: storage::Config,
    /// Set once, when the broker can serve.
    open: OnceLock<Open>,
}

/// What a broker works with once its store and cluster are open.
pub struct Open {
    /// Metadata and partitions.
    pub cluster: Cluster,
    /// What partitions share.
    pub partitions: partition::Env,
    /// Consumer groups.
    pub groups: groups::Groups,
}

/// What a broker is made of from the start.
pub struct Parts {
    /// Settings.
    pub config: Config,
    /// Settings of the store.
    pub storage: storage::Config,
    /// Counts what happens.
    pub metrics: Metrics,
    /// Makes spans.
    pub tracer: Tracer,
    /// Changes what is logged and traced.
    pub control: Control,
    /// Tells the time.
    pub clock: Clock,
}

/// A broker of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerInfo {
    /// Its number.
    pub id: u64,
    /// Where clients reach it.
    pub grpc_address: String,
    /// Where it serves `/metrics` and `/health`.
    pub http_address: String,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started: Timestamp,
    /// When it forces writes to the disk: `always` or `interval`. Empty for other brokers than this.
    pub storage_sync: String,
    /// Where it stands.
    pub rack: String,
}

/// A topic and who leads its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingInfo {
    /// The topic.
    pub topic: Topic,
    /// The leader of each partition, by number.
    pub leaders: Vec<Option<u64>>,
}

/// The cluster as this broker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Kept for the life of the cluster.
    pub cluster_id: String,
    /// This broker.
    pub broker_id: u64,
    /// Who leads the control group.
    pub controller_id: Option<u64>,
    /// Every broker, by id.
    pub brokers: Vec<BrokerInfo>,
    /// The topics that were asked for.
    pub topics: Vec<RoutingInfo>,
}

impl Broker {
    /// A broker that is starting: it tells its health, and refuses everything else with `NOT_READY`.
    pub fn new(parts: Parts) -> Self {
        let Parts { config, storage, metrics, tracer, control, clock } = parts;
        let broker = Broker(Arc::new(Inner {
            config,
            metrics,
            tracer,
            control,
            overrides_changed: Notify::new(),
            clock,
            health: Reporter::default(),
            levels: Levels::default(),
            memory: Arc::default(),
            changing: Mutex::new(()),
            storage,
            open: OnceLock::new(),
        }));
        broker.observe();
        broker
    }

    /// Gives the broker what it works with, and lets it serve.
    ///
    /// # Panics
    /// If it was called before.
    pub fn open(&self, open: Open) {
        assert!(self.0.open.set(open).is_ok(), "a broker is opened once");
        self.check_health();
        self.0.health.enter(Phase::Running);
    }

    /// The time, by the broker's clock.
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Where the broker is in its life.
    pub fn lifecycle(&self) -> &Reporter {
        &self.0.health
    }

    /// Health, now and whenever it changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.watch()
    }

    /// Makes sure that this broker knows topics that others have made: it may hear of them a moment after whoever asked
    /// for them. Costs nothing for topics that are known, and a question to the controller for others.
    pub async fn look_for(&self, topics: &[String]) {
        let Ok(open) = self.running() else { return };
        let routing = open.cluster.routing();
        if topics.iter().any(|name| routing.topic(name).is_none()) {
            // A controller that does not answer cannot have made one either.
            let _ = open.cluster.catch_up().await;
        }
    }

    /// The brokers, and the routing of the topics that exist of those asked for.
    ///
    /// # Errors
    /// The broker is not ready.
    pub fn describe_cluster(&self, topics: &[String]) -> Result<ClusterInfo, Error> {
        let cluster = &self.running()?.cluster;
        let identity = cluster.identity();
        let state = cluster.state();
        let brokers = state.brokers().map(|broker| BrokerInfo {
            id: broker.id.0,
            grpc_address: broker.grpc_address.clone(),
            http_address: broker.http_address.clone(),
            version: broker.version.clone(),
            started: broker.started,
            storage_sync: broker.storage_sync.clone(),
            rack: broker.rack.clone(),
        });
        let routes = topics.iter().filter_map(|name| cluster.routing().topic(name));
        Ok(ClusterInfo {
            cluster_id: identity.cluster.to_string(),
            broker_id: identity.broker.0,
            controller_id: cluster.controller().map(|id| id.0),
            brokers: brokers.collect(),
            topics: routes.map(|route| routing(&route)).collect(),
        })
    }

    /// This broker's number, once it is open.
    pub fn id(&self) -> Option<u64> {
        self.0.open.get().map(|open| open.cluster.identity().broker.0)
    }

    /// The broker that leads the control group, if it is another one, and this one serves.
    pub fn controller_elsewhere(&self) -> Option<u64> {
        let cluster = &self.running().ok()?.cluster;
        // Also if it is not reached: what cannot be forwarded says so.
        cluster.control_status().now().leader.filter(|id| *id != cluster.identity().broker.0)
    }

    /// The broker that coordinates a group, if it is another one, and this one serves.
    pub fn coordinator_elsewhere(&self, group: &str) -> Option<u64> {
        let cluster = &self.running().ok()?.cluster;
        let leader = cluster.coordinators().of(group).leader();
        leader.filter(|id| *id != cluster.identity().broker.0)
    }

    /// The other brokers that are reached.
    pub fn peers(&self) -> Vec<u64> {
        let Some(open) = self.0.open.get() else { return Vec::new() };
        open.cluster.hub().peers().into_iter().filter(|(_, up)| *up).map(|(id, _)| id).collect()
    }

    /// A connection to another broker that calls share; none if its address is not known.
    pub fn channel(&self, broker: u64) -> Option<tonic::transport::Channel> {
        self.0.open.get()?.cluster.hub().channel(broker)
    }

    /// A new connection to another broker.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn connect(&self, broker: u64) -> Result<tonic::transport::Channel, String> {
        let open = self.0.open.get().ok_or("the broker is starting")?;
        open.cluster.hub().connect(broker).await
    }

    /// Waits until this broker knows what the leader of the control group knew at some moment after the call.
    /// And until it knows the leaders of `topic`, if that exists.
    pub async fn catch_up(&self, topic: &str) {
        if let Some(open) = self.0.open.get() {
            open.cluster.catch_up().await;
            open.cluster.led(topic).await;
        }
    }

    /// Hands all leaderships to other brokers, as far as they can take them.
    pub async fn hand_over(&self) {
        if let Some(open) = self.0.open.get() {
            open.cluster.hand_over().await;
        }
    }

    /// Closes the partitions and the control group.
    pub async fn close(&self, deadline: std::time::Duration) {
        if let Some(open) = self.0.open.get() {
            open.cluster.close(deadline).await;
        }
    }

    /// What the broker works with, while it serves or drains.
    fn running(&self) -> Result<&Open, Error> {
        match (self.0.health.is_serving(), self.0.open.get()) {
            (true, Some(open)) => Ok(open),
            (false, Some(open)) if open.cluster.left().is_some() => {
                Err(Error::NotReady("no member of its cluster any more: use another one"))
            }
            (false, Some(_)) => Err(Error::NotReady("stopping")),
            (_, None) => Err(Error::NotReady("starting")),
        }
    }

    fn route(&self, topic: &str) -> Result<Arc<Route>, Error> {
        let unknown = || Error::UnknownTopic { topic: topic.chars().take(300).collect() };
        self.running()?.cluster.routing().topic(topic).ok_or_else(unknown)
    }

    fn partition<'a>(&self, route: &'a Route, number: u32) -> Result<&'a PartitionRef, Error> {
        route.partitions.get(number as usize).ok_or_else(|| Error::UnknownPartition {
            topic: route.topic.name.to_string(),
            partition: number,
            partitions: route.partitions.len() as u32,
        })
    }
}

fn routing(route: &Route) -> RoutingInfo {
    let leader = |partition: &PartitionRef| partition.leader().map(|id| id.0);
    RoutingInfo { topic: Topic::from(&*route.topic), leaders: route.partitions.iter().map(leader).collect() }
}
