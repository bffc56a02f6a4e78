//! All instrument groups together.

use std::ops::Deref;
use std::sync::Arc;

use opentelemetry::metrics::Meter;

use super::broker::{BrokerLevels, BrokerMetrics, HealthCheck};
use super::cluster::{ClusterLevels, ClusterMetrics, RaftLevels, TopicLevels};
use super::consume::{ConsumeLevels, ConsumeMetrics};
use super::control::ControlMetrics;
use super::exemplars::Store;
use super::exporting::ExportingMetrics;
use super::groups::{ConsumerGroups, GroupLevels, GroupMetrics};
use super::instruments::{Collection, Instruments, Observer};
use super::network::NetworkMetrics;
use super::process;
use super::produce::{BufferLevels, ProduceMetrics};
use super::runtime::RuntimeMetrics;
use super::storage::{StorageLevels, StorageMetrics};
use super::topics::{TopicMetrics, Topics};

/// Every instrument of the process, in groups. Clones share them.
///
/// A verb costs one or two atomic additions, and as many for each distribution it records. Observers are called
/// on the collecting thread, at most once per collection; they must only read atomics or hold short locks. One that
/// panics loses its own samples of that collection and is counted.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Groups>);

/// The groups of [`Metrics`].
#[derive(Debug)]
pub struct Groups {
    /// Producing.
    pub produce: ProduceMetrics,
    /// Consuming.
    pub consume: ConsumeMetrics,
    /// The store.
    pub storage: StorageMetrics,
    /// Connections and calls.
    pub network: NetworkMetrics,
    /// Exporters and the scrape endpoint.
    pub exporting: ExportingMetrics,
    /// Consumer groups.
    pub groups: ConsumerGroups,
    /// The cluster and agreement.
    pub cluster: ClusterMetrics,
    /// What is changed at run time.
    pub(super) control: ControlMetrics,
    broker: BrokerMetrics,
    runtime: RuntimeMetrics,
    topics: Topics,
}

impl Deref for Metrics {
    type Target = Groups;

    fn deref(&self) -> &Groups {
        &self.0
    }
}

impl Metrics {
    pub(super) fn new(meter: Meter, collection: Arc<Collection>, exemplars: Arc<Store>) -> Self {
        let instruments = Instruments::new(meter, collection, exemplars);
        process::register(&instruments);
        Metrics::of(&instruments)
    }

    /// Instruments that nobody reads: distributions record nothing, levels are never asked for. For brokers whose
    /// metrics are off, and for tests of other modules.
    pub fn detached() -> Self {
        Metrics::of(&Instruments::off())
    }

    fn of(instruments: &Instruments) -> Self {
        Metrics(Arc::new(Groups {
            produce: ProduceMetrics::new(instruments),
            consume: ConsumeMetrics::new(instruments),
            storage: StorageMetrics::new(instruments),
            network: NetworkMetrics::new(instruments),
            exporting: ExportingMetrics::new(instruments),
            groups: ConsumerGroups::new(instruments),
            control: ControlMetrics::new(instruments),
            broker: BrokerMetrics::new(instruments),
            cluster: ClusterMetrics::new(instruments),
            runtime: RuntimeMetrics::new(instruments),
            topics: Topics::new(instruments),
        }))
    }

    /// The counters of the topic `name`, made if there are none. Look up once and keep the handle.
    ///
    /// Beyond [`super::catalog::TOPICS_MAX`] topics all others share one handle whose series carries
    /// `otel_metric_overflow="true"` instead of a topic.
    pub fn topic(&self, name: &str) -> Arc<TopicMetrics> {
        self.topics.get(name)
    }

    /// Forgets the counters of the topic `name`, those of consumer groups for it included: its series are gone at the
    /// next scrape. A topic of the same name that is created later starts at zero.
    pub fn remove_topic(&self, name: &str) {
        self.topics.remove(name);
        self.groups.series.remove_topic(name);
    }

    /// The counters and distributions of the consumer group `name`, made if there are none. Look up once and keep the
    /// handle, but not longer than the group.
    ///
    /// Beyond [`super::catalog::GROUPS_MAX`] groups all others share one handle, whose series carry
    /// `otel_metric_overflow="true"` instead of a group.
    pub fn group(&self, name: &str) -> Arc<GroupMetrics> {
        self.groups.series.get(name)
    }

    /// Forgets the consumer group `name`, deleted or no longer coordinated here: its series, histograms included, are
    /// gone at the next scrape and the next export. A group of the same name that comes later starts at zero.
    pub fn remove_group(&self, name: &str) {
        self.groups.series.remove(name);
    }

    /// The consumer groups that have counters and distributions.
    pub fn groups_named(&self) -> Vec<Arc<str>> {
        self.groups.series.names()
    }

    /// Registers who knows the consumer groups that this broker coordinates.
    pub fn observe_groups(&self, observer: Observer<GroupLevels>) {
        self.groups.observe(observer);
    }

    /// Registers who knows the broker's state and load.
    pub fn observe_broker(&self, observer: Observer<BrokerLevels>) {
        self.broker.observe(observer);
    }

    /// Registers who knows the results of the health checks.
    pub fn observe_health(&self, observer: Observer<Vec<HealthCheck>>) {
        self.broker.observe_health(observer);
    }

    /// Registers who knows how many topics, partitions and replicas there are.
    pub fn observe_topics(&self, observer: Observer<TopicLevels>) {
        self.cluster.observe_topics(observer);
    }

    /// Registers who knows the members of the cluster.
    pub fn observe_cluster(&self, observer: Observer<ClusterLevels>) {
        self.cluster.observe_cluster(observer);
    }

    /// Registers who knows the state of the Raft groups.
    pub fn observe_raft(&self, observer: Observer<RaftLevels>) {
        self.cluster.observe_raft(observer);
    }

    /// Registers who knows the state of the store.
    pub fn observe_storage(&self, observer: Observer<StorageLevels>) {
        self.storage.observe(observer);
    }

    /// Registers who knows how many bytes wait to be written.
    pub fn observe_produce_buffer(&self, observer: Observer<BufferLevels>) {
        self.produce.observe(observer);
    }

    /// Registers who knows the open subscriptions and waiting fetches.
    pub fn observe_consume(&self, observer: Observer<ConsumeLevels>) {
        self.consume.observe(observer);
    }

    /// Shows the state of the runtime that serves requests.
    pub fn observe_runtime(&self, handle: &tokio::runtime::Handle) {
        self.runtime.observe(handle);
    }
}
