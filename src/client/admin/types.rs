//! What administration tells and takes.

use std::time::{Duration, SystemTime};

use crate::client::{CodecSet, Error, Offset};
use crate::proto::v1;
use crate::record::Codec;

/// Settings of a topic. In a request `None` means the broker's default (create) or no change (alter); in an answer
/// every setting is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicConfig {
    /// How long records are kept after their append, at least 1 s; zero keeps them without limit. Default 7 days.
    pub retention_time: Option<Duration>,
    /// How many bytes a partition keeps; zero keeps them without limit, the default.
    pub retention_bytes: Option<u64>,
    /// Largest encoded record, in bytes. Default 1 MiB.
    pub record_bytes_max: Option<u32>,
    /// Largest batch before compression, in bytes. Default 4 MiB.
    pub batch_bytes_max: Option<u32>,
    /// Codecs that batches may use. Default all.
    pub codecs_allowed: Option<CodecSet>,
}

impl From<TopicConfig> for v1::TopicConfig {
    fn from(config: TopicConfig) -> Self {
        v1::TopicConfig {
            // A time beyond what the protocol can say, some 10,000 years, stands for its largest.
            retention_time: config.retention_time.map(|time| {
                time.try_into().unwrap_or(prost_types::Duration { seconds: 315_576_000_000, nanos: 0 })
            }),
            retention_bytes: config.retention_bytes,
            record_bytes_max: config.record_bytes_max,
            batch_bytes_max: config.batch_bytes_max,
            codecs_allowed: config
                .codecs_allowed
                .map(|codecs| v1::AllowedCodecs { codecs: codecs.iter().map(Codec::number).collect() }),
        }
    }
}

impl From<v1::TopicConfig> for TopicConfig {
    fn from(config: v1::TopicConfig) -> Self {
        TopicConfig {
            retention_time: config.retention_time.and_then(|time| time.try_into().ok()),
            retention_bytes: config.retention_bytes,
            record_bytes_max: config.record_bytes_max,
            batch_bytes_max: config.batch_bytes_max,
            codecs_allowed: config.codecs_allowed.map(known_codecs),
        }
    }
}

/// The set that a broker tells. A codec that this version does not know cannot be named in it.
pub(in crate::client) fn known_codecs(allowed: v1::AllowedCodecs) -> CodecSet {
    allowed.codecs.into_iter().filter_map(|codec| Codec::try_from(codec).ok()).collect()
}

/// A topic to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    name: String,
    partitions: u32,
    replication_factor: u32,
    config: TopicConfig,
    validate_only: bool,
}

impl TopicSpec {
    /// A topic with one replica and the broker's defaults. Names have 1 to 249 of
    /// `a-z A-Z 0-9 . _ -` and are not `.` or `..`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        TopicSpec {
            name: name.into(),
            partitions: 0,
            replication_factor: 1,
            config: TopicConfig::default(),
            validate_only: false,
        }
    }

    /// Number of partitions; zero is the broker's `broker.default_partitions`, as if not called.
    #[must_use]
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions;
        self
    }

    /// Number of replicas of each partition, at most the number of brokers.
    #[must_use]
    pub fn replication_factor(mut self, replicas: u32) -> Self {
        self.replication_factor = replicas;
        self
    }

    /// Settings that differ from the defaults.
    #[must_use]
    pub fn config(mut self, config: TopicConfig) -> Self {
        self.config = config;
        self
    }

    /// Checks everything and creates nothing.
    #[must_use]
    pub fn validate_only(mut self, validate_only: bool) -> Self {
        self.validate_only = validate_only;
        self
    }
}

impl From<TopicSpec> for v1::CreateTopicRequest {
    fn from(spec: TopicSpec) -> Self {
        v1::CreateTopicRequest {
            name: spec.name,
            partition_count: spec.partitions,
            replication_factor: spec.replication_factor,
            config: Some(spec.config.into()),
            validate_only: spec.validate_only,
        }
    }
}

/// A topic as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSummary {
    /// Name.
    pub name: String,
    /// Distinguishes it from an earlier topic of the same name.
    pub topic_id: u32,
    /// Number of partitions.
    pub partitions: u32,
    /// Number of replicas of each partition.
    pub replication_factor: u32,
    /// Every setting, with its effective value.
    pub config: TopicConfig,
    /// When it was created.
    pub created: Option<SystemTime>,
}

impl TopicSummary {
    pub(super) fn from_response(topic: Option<v1::Topic>) -> Result<TopicSummary, Error> {
        topic
            .map(TopicSummary::from)
            .ok_or_else(|| Error::InvalidResponse { what: "field topic is missing".into() })
    }
}

impl From<v1::Topic> for TopicSummary {
    fn from(topic: v1::Topic) -> Self {
        TopicSummary {
            name: topic.name,
            topic_id: topic.topic_id,
            partitions: topic.partition_count,
            replication_factor: topic.replication_factor,
            config: topic.config.unwrap_or_default().into(),
            created: topic.create_time.and_then(|time| time.try_into().ok()),
        }
    }
}

/// A topic and each of its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// The topic.
    pub topic: TopicSummary,
    /// Its partitions in order.
    pub partitions: Vec<PartitionDescription>,
}

/// A partition and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDescription {
    /// Partition number.
    pub partition: u32,
    /// Broker that leads it; `None` while there is none.
    pub leader_id: Option<u64>,
    /// Brokers that hold a replica.
    pub replica_ids: Vec<u64>,
    /// Offset of the oldest retained record.
    pub log_start: Offset,
    /// Offset after the last committed record.
    pub high_watermark: Offset,
    /// Bytes of retained batches.
    pub size_bytes: u64,
    /// Raft term.
    pub term: u64,
}

impl From<v1::PartitionDescription> for PartitionDescription {
    fn from(partition: v1::PartitionDescription) -> Self {
        PartitionDescription {
            partition: partition.partition,
            leader_id: partition.leader_id,
            replica_ids: partition.replica_ids,
            log_start: Offset(partition.log_start_offset),
            high_watermark: Offset(partition.high_watermark),
            size_bytes: partition.size_bytes,
            term: partition.term,
        }
    }
}

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterDescription {
    /// Kept for the life of the cluster.
    pub cluster_id: String,
    /// The broker that answered.
    pub broker_id: u64,
    /// The broker that leads the control group; `None` while there is none.
    pub controller_id: Option<u64>,
    /// Every broker, by id.
    pub brokers: Vec<BrokerDescription>,
}

impl From<v1::DescribeClusterResponse> for ClusterDescription {
    fn from(cluster: v1::DescribeClusterResponse) -> Self {
        ClusterDescription {
            cluster_id: cluster.cluster_id,
            broker_id: cluster.broker_id,
            controller_id: (cluster.controller_id != 0).then_some(cluster.controller_id),
            brokers: cluster.brokers.into_iter().map(BrokerDescription::from).collect(),
        }
    }
}

/// A broker of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerDescription {
    /// Unique in the cluster and kept across restarts.
    pub broker_id: u64,
    /// Where clients reach its gRPC API, as `host:port`.
    pub grpc_address: String,
    /// Where `/metrics` and `/health` are served, as `host:port`.
    pub http_address: String,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started: Option<SystemTime>,
    /// When it forces writes to its disk, `always` or `interval`; empty if the answering broker does not know.
    pub storage_sync: String,
    /// Where it stands, for placement; empty if nobody said.
    pub rack: String,
}

impl From<v1::Broker> for BrokerDescription {
    fn from(broker: v1::Broker) -> Self {
        BrokerDescription {
            broker_id: broker.broker_id,
            grpc_address: broker.grpc_address,
            http_address: broker.http_address,
            version: broker.version,
            started: broker.start_time.and_then(|time| time.try_into().ok()),
            storage_sync: broker.storage_sync,
            rack: broker.rack,
        }
    }
}

/// What makes a producer's batches recognisable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerIdentity {
    /// Unique in the cluster.
    pub id: u64,
    /// Fences older users of the same id.
    pub epoch: u32,
}
