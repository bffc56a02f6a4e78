//! The client library.
//!
//! A [`Client`] knows a cluster: it holds connections, learns which broker leads which partition, and makes what
//! programs use.
//!
//! - [`Producer`] batches records per partition, sends them in order over one stream per broker, retries what
//!   failed, and tells each record's [`RecordMetadata`] through its [`Delivery`].
//! - [`Consumer`] reads partitions from chosen [`Position`]s as a stream of records, resuming where it was when a
//!   connection breaks.
//! - [`GroupConsumer`] is a member of a consumer group, which shares partitions out to its members and remembers how far
//!   each was read; [`ShareConsumer`] is a member of a share group, which hands out and takes back single records.
//! - [`Admin`] manages topics, groups and what brokers log and trace, looks at the cluster, and explains records.
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use streambus::client::{Client, ClientConfig, ConsumerConfig, Position, ProducerConfig, ProducerRecord, TopicSpec};
//!
//! # async fn run() -> Result<(), streambus::client::Error> {
//! let client = Client::connect("localhost:9092", ClientConfig::default()).await?;
//! client.admin().create_topic(TopicSpec::new("orders").partitions(4)).await?;
//!
//! let producer = client.producer(ProducerConfig::default()).await?;
//! let delivery = producer.send(ProducerRecord::new("orders").key("customer-7").value("two apples")).await?;
//! let written = delivery.await?;
//! println!("partition {}, offset {}", written.partition, written.offset);
//! producer.close().await;
//!
//! let start = client.partitions("orders").await?.into_iter().map(|partition| (partition, Position::Earliest));
//! let mut consumer = client.consumer(start, ConsumerConfig::default()).await?;
//! while let Some(record) = consumer.next().await {
//!     let record = record?;
//!     consumer.process(&record, async |record| println!("{:?}", record.value)).await;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Delivery
//!
//! A producer is idempotent unless [`ProducerConfig::idempotent`] is off: the broker recognises a batch that it has
//! already and appends it once, and batches of a partition are appended in the order in which they were sent, retries
//! included. [`Error::may_have_been_written`] says of a failed record whether it may be in the log all the same.
//!
//! A member of a consumer group is given a record again unless its offset was committed; with automatic commits that
//! happens after the record was processed, so that each is processed at least once.
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use streambus::client::{Client, ClientConfig, GroupConfig};
//!
//! # async fn run() -> Result<(), streambus::client::Error> {
//! # let client = Client::connect("localhost:9092", ClientConfig::default()).await?;
//! let mut consumer = client.group_consumer(GroupConfig::new("billing", ["orders"])).await?;
//! while let Some(record) = consumer.next().await {
//!     let record = record?;
//!     consumer.process(&record, async |record| println!("{:?}", record.value)).await;
//! }
//! consumer.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Telemetry
//!
//! The client uses the OpenTelemetry providers of the program it is part of (the global ones, or those given to
//! [`ClientBuilder`]) and owns no exporter. Following the messaging conventions (status: development) it makes
//! `send <topic>`, `poll <topic>`, `process <topic>`, `commit <topic>` and `ack <topic>` spans and records `messaging.client.operation.duration`,
//! `messaging.client.sent.messages`, `messaging.client.consumed.messages` and `messaging.process.duration`.
//!
//! What members of groups do carries `messaging.consumer.group.name`. A commit has a span if it is made while a sampled
//! span is current; acknowledgements also if one of the records was created in one.
//!
//! A record that is sent while a sampled span is current gets a `send` span and, unless it has one, a `traceparent`
//! header with that span's context. A record that brings a sampled `traceparent` of its own keeps it; its `send` span
//! links to it. Without either there is no span and the cost is one look at the current context. A `send` span that took long says
//! why: `streambus.send.resend_count` is how often the record's batch was sent again, and `streambus.send.held_up_by` what
//! failed, as in `error.type`, be it this batch or one that must come before it.

mod admin;
mod backoff;
mod config;
mod connection;
mod consumer;
mod error;
mod group;
mod member;
mod message;
mod producer;
mod routing;
mod share;
mod telemetry;
#[cfg(test)]
mod testing;

use std::sync::Arc;

pub use admin::{
    Admin, BrokerDescription, BrokerStatus, ClusterDescription, ClusterStatus, CommittedOffset,
    ControlOutcome, Explanation, FoundBatch, FoundBatches, GroupDescription, GroupFacts, GroupKind,
    GroupListing, GroupMember, GroupPartition, LogFilterOverride, OverrideTerms, Overrides,
    PartitionDescription, PartitionProblem, ProblemKind, ProducerFacts, ProducerIdentity, RecordFacts,
    ReplicaFacts, ResetOffset, ResetSpec, ResetTo, SamplingOverride, SamplingScope, TermsInForce,
    TopicConfig, TopicDescription, TopicSpec, TopicSummary, TraceReference, WhenKnown,
};
pub use backoff::Backoff;
pub use config::{ClientBuilder, ClientConfig};
pub use consumer::{
    ConsumedBatch, ConsumedRecords, Consumer, ConsumerConfig, FetchOptions, FetchedPartition, OffsetReset,
    Processor,
};
pub use error::{Error, ErrorCode};
pub use group::{
    AssignedPartition, CommitMode, Committer, GroupConfig, GroupConsumer, PendingCommit, RebalanceListener,
};
pub use message::{ConsumedRecord, OffsetCommit, Position, ProducerRecord, RecordMetadata, TopicPartition};
pub use producer::{Delivery, Producer, ProducerConfig};
pub use share::{Acknowledged, ShareConfig, ShareConsumer, SharedRecord};

pub use crate::record::{Codec, CodecSet, Header, Offset};

use routing::Router;
use telemetry::Telemetry;

/// A cluster as its clients see it. Cheap to clone; clones share connections and routing.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    router: Arc<Router>,
    telemetry: Arc<Telemetry>,
}

impl Client {
    /// Sets up a client with several bootstrap addresses or with telemetry providers of its own.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Connects to the cluster that the broker at `address` (`host:port`) belongs to.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for an address or setting that makes no sense, [`Error::Unreachable`] if nothing
    /// answers there within [`ClientConfig::connect_timeout`], or what the broker answers.
    pub async fn connect(address: impl Into<String>, config: ClientConfig) -> Result<Client, Error> {
        Client::builder().bootstrap(address).config(config).connect().await
    }

    fn new(router: Arc<Router>, telemetry: Arc<Telemetry>) -> Client {
        Client { inner: Arc::new(Inner { router, telemetry }) }
    }

    /// Manages topics and describes the cluster.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.inner.router))
    }

    /// Starts a producer. It has a task of its own on the current Tokio runtime and a connection of its own to
    /// each broker that it writes to.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`], or, for an idempotent producer, that no producer id could be had.
    pub async fn producer(&self, config: ProducerConfig) -> Result<Producer, Error> {
        Producer::start(Arc::clone(&self.inner.router), Arc::clone(&self.inner.telemetry), config).await
    }

    /// Opens a consumer of the given partitions, each read from its position. More can be added later. It has a
    /// connection of its own to each broker that it reads from.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`]; [`Error::UnknownTopic`] and [`Error::UnknownPartition`]; that
    /// [`Position::Latest`] or a time could not be resolved to an offset.
    pub async fn consumer(
        &self,
        start: impl IntoIterator<Item = (TopicPartition, Position)>,
        config: ConsumerConfig,
    ) -> Result<Consumer, Error> {
        let start = start.into_iter().collect();
        Consumer::open(Arc::clone(&self.inner.router), Arc::clone(&self.inner.telemetry), start, config).await
    }

    /// Joins a consumer group, and returns when the member is in it. It has two tasks of its own on the current Tokio
    /// runtime and a connection of its own.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`]; [`ErrorCode::GroupKindMismatch`] if there is a share group of that name; that no broker
    /// could take the member in within [`ClientConfig::request_timeout`].
    pub async fn group_consumer(&self, config: GroupConfig) -> Result<GroupConsumer, Error> {
        self.group_consumer_with(config, ()).await
    }

    /// Like [`group_consumer`](Self::group_consumer); `listener` is told which partitions come and go.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn group_consumer_with(
        &self,
        config: GroupConfig,
        listener: impl RebalanceListener,
    ) -> Result<GroupConsumer, Error> {
        GroupConsumer::join(Arc::clone(&self.inner.router), &self.inner.telemetry, config, listener).await
    }

    /// Joins a share group, and returns when the member is in it. It has a task of its own on the current Tokio runtime
    /// and a connection of its own.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`]; [`ErrorCode::GroupKindMismatch`] if there is a consumer group of that name; that no
    /// broker could take the member in within [`ClientConfig::request_timeout`].
    pub async fn share_consumer(&self, config: ShareConfig) -> Result<ShareConsumer, Error> {
        ShareConsumer::join(Arc::clone(&self.inner.router), &self.inner.telemetry, config).await
    }

    /// Reads once, waiting until there is something or [`FetchOptions::max_wait`] is over. The answers are in the
    /// order of `partitions`; what cannot be read from one partition is in its own result.
    ///
    /// # Errors
    ///
    /// That a broker could not be asked at all.
    pub async fn fetch(
        &self,
        partitions: &[(TopicPartition, Position)],
        options: &FetchOptions,
    ) -> Result<Vec<Result<FetchedPartition, Error>>, Error> {
        consumer::fetch(&self.inner.router, &self.inner.telemetry, partitions, options).await
    }

    /// Every partition of `topic`, in order.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTopic`], or that no broker answered.
    pub async fn partitions(&self, topic: &str) -> Result<Vec<TopicPartition>, Error> {
        let route = self.inner.router.refresh(topic).await?;
        Ok((0..route.partitions())
            .map(|number| TopicPartition::new(Arc::clone(&route.topic), number))
            .collect())
    }
}
