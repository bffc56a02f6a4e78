//! Managing topics, consumer groups and telemetry, and looking at the cluster and at records.

mod cluster;
mod control;
mod explain;
mod groups;
mod types;

use std::sync::Arc;

pub use cluster::{BrokerStatus, ClusterStatus, PartitionProblem, ProblemKind};
pub use control::{
    ControlOutcome, LogFilterOverride, OverrideTerms, Overrides, SamplingOverride, SamplingScope,
    TermsInForce,
};
pub use explain::{
    Explanation, FoundBatch, FoundBatches, GroupFacts, ProducerFacts, RecordFacts, ReplicaFacts,
    TraceReference, WhenKnown,
};
pub(super) use groups::fetch_offsets;
pub use groups::{
    CommittedOffset, GroupDescription, GroupKind, GroupListing, GroupMember, GroupPartition, ResetOffset,
    ResetSpec, ResetTo,
};
pub(super) use types::known_codecs;
pub use types::{
    BrokerDescription, ClusterDescription, PartitionDescription, ProducerIdentity, TopicConfig,
    TopicDescription, TopicSpec, TopicSummary,
};

use tokio::time::{Instant, sleep};

use super::connection::Broker;
use super::message::partition_position;
use super::routing::{Repeat, Router};
use super::{Error, Offset, Position, TopicPartition};
use crate::proto::v1;

/// Largest number of positions that one call resolves.
const POSITIONS_MAX: usize = 1_000;
const TOPIC_PAGE: u32 = 1_000;

/// Manages topics and consumer groups, and describes the cluster. Made by [`Client::admin`](super::Client::admin); cheap to clone.
///
/// Calls are retried with backoff while the broker says that it could not serve them, until
/// [`request_timeout`](super::ClientConfig::request_timeout); calls that change something only if they certainly had
/// no effect.
#[derive(Clone, Debug)]
pub struct Admin {
    router: Arc<Router>,
}

impl Admin {
    pub(super) fn new(router: Arc<Router>) -> Admin {
        Admin { router }
    }

    /// Creates a topic and returns it with its effective settings.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::TopicExists`](super::ErrorCode::TopicExists), `InvalidArgument` for names and settings that are
    /// not allowed, `LimitReached`.
    pub async fn create_topic(&self, spec: TopicSpec) -> Result<TopicSummary, Error> {
        let request = v1::CreateTopicRequest::from(spec);
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.topics().create_topic(request).await }
        };
        TopicSummary::from_response(self.router.call(Repeat::Harmful, call).await?.topic)
    }

    /// Every topic, in the order of their names.
    ///
    /// # Errors
    ///
    /// That no broker answered.
    pub async fn list_topics(&self) -> Result<Vec<TopicSummary>, Error> {
        let mut topics = Vec::new();
        let mut request = v1::ListTopicsRequest { page_size: TOPIC_PAGE, page_token: String::new() };
        loop {
            let call = |broker: Broker| {
                let request = request.clone();
                async move { broker.topics().list_topics(request).await }
            };
            let page = self.router.call(Repeat::Harmless, call).await?;
            topics.extend(page.topics.into_iter().map(TopicSummary::from));
            if page.next_page_token.is_empty() {
                return Ok(topics);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// A topic and each of its partitions.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::UnknownTopic`](super::ErrorCode::UnknownTopic).
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, Error> {
        let request = v1::DescribeTopicRequest { name: name.to_owned() };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.topics().describe_topic(request).await }
        };
        let response = self.router.call(Repeat::Harmless, call).await?;
        Ok(TopicDescription {
            topic: TopicSummary::from_response(response.topic)?,
            partitions: response.partitions.into_iter().map(PartitionDescription::from).collect(),
        })
    }

    /// Changes the settings of a topic that `config` gives and leaves the others. Returns the topic as it is then.
    ///
    /// # Errors
    ///
    /// `UnknownTopic`, `InvalidArgument`.
    pub async fn alter_topic(&self, name: &str, config: TopicConfig) -> Result<TopicSummary, Error> {
        let request = v1::AlterTopicRequest { name: name.to_owned(), config: Some(config.into()) };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.topics().alter_topic(request).await }
        };
        TopicSummary::from_response(self.router.call(Repeat::Harmless, call).await?.topic)
    }

    /// Raises the number of a topic's partitions to `partitions` in total. Keys may then map to other partitions
    /// than before.
    ///
    /// # Errors
    ///
    /// `UnknownTopic`, `InvalidArgument` unless the number grows, `LimitReached`.
    pub async fn add_partitions(&self, name: &str, partitions: u32) -> Result<TopicSummary, Error> {
        let request = v1::AddTopicPartitionsRequest { name: name.to_owned(), partition_count: partitions };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.topics().add_topic_partitions(request).await }
        };
        TopicSummary::from_response(self.router.call(Repeat::Harmful, call).await?.topic)
    }

    /// Deletes a topic and its records.
    ///
    /// # Errors
    ///
    /// `UnknownTopic`.
    pub async fn delete_topic(&self, name: &str) -> Result<(), Error> {
        let request = v1::DeleteTopicRequest { name: name.to_owned() };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.topics().delete_topic(request).await }
        };
        self.router.call(Repeat::Harmful, call).await.map(drop)
    }

    /// Deletes the records of a partition below `before`, and returns the log start that results.
    ///
    /// # Errors
    ///
    /// `UnknownTopic`, `UnknownPartition`, `OffsetOutOfRange` if `before` lies beyond the high watermark.
    pub async fn delete_records(&self, at: &TopicPartition, before: Offset) -> Result<Offset, Error> {
        let request = v1::DeleteRecordsRequest {
            topic: at.topic.to_string(),
            partition: at.partition,
            before_offset: before.0,
        };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.topics().delete_records(request).await }
        };
        let response = self.router.call(Repeat::Harmless, call).await?;
        Ok(Offset(response.log_start_offset))
    }

    /// Resolves positions to offsets, in the order given. For a time after the last record that is the high
    /// watermark. What cannot be resolved is in its own result.
    ///
    /// # Errors
    ///
    /// That no broker answered.
    pub async fn list_offsets(
        &self,
        positions: &[(TopicPartition, Position)],
    ) -> Result<Vec<Result<Offset, Error>>, Error> {
        list_offsets(&self.router, positions).await
    }

    /// The brokers of the cluster.
    ///
    /// # Errors
    ///
    /// That no broker answered.
    pub async fn describe_cluster(&self) -> Result<ClusterDescription, Error> {
        let (_, response) = self.router.describe(Vec::new()).await?;
        Ok(response.into())
    }

    /// Allocates a producer id. [`Producer`](super::Producer) does this itself; it is for programs that write batches
    /// on their own.
    ///
    /// # Errors
    ///
    /// That no broker answered or the cluster has no controller.
    pub async fn init_producer(&self) -> Result<ProducerIdentity, Error> {
        init_producer(&self.router).await
    }
}

pub(super) async fn init_producer(router: &Router) -> Result<ProducerIdentity, Error> {
    let call =
        |broker: Broker| async move { broker.produce().init_producer(v1::InitProducerRequest {}).await };
    // A producer id that nobody uses does no harm.
    let response = router.call(Repeat::Harmless, call).await?;
    Ok(ProducerIdentity { id: response.producer_id, epoch: response.epoch })
}

pub(super) async fn list_offsets(
    router: &Router,
    positions: &[(TopicPartition, Position)],
) -> Result<Vec<Result<Offset, Error>>, Error> {
    let mut resolved = Vec::with_capacity(positions.len());
    for chunk in positions.chunks(POSITIONS_MAX) {
        resolved.extend(list_some_offsets(router, chunk).await?);
    }
    Ok(resolved)
}

/// The same, of as many positions as fit into a request. Partitions that are without a leader at the moment are asked for
/// again, until `request_timeout`.
async fn list_some_offsets(
    router: &Router,
    positions: &[(TopicPartition, Position)],
) -> Result<Vec<Result<Offset, Error>>, Error> {
    let deadline = router.deadline();
    let mut resolved = ask_for_offsets(router, positions).await?;
    for failures in 1.. {
        let passes = |found: &&Result<Offset, Error>| found.as_ref().is_err_and(Error::is_retriable);
        let Some(Err(error)) = resolved.iter().find(passes) else { break };
        let delay = router.config().backoff.delay_after(failures, error);
        if Instant::now() + delay >= deadline {
            break;
        }
        sleep(delay).await;
        let again: Vec<usize> = (0..positions.len()).filter(|place| passes(&&resolved[*place])).collect();
        let asked: Vec<_> = again.iter().map(|place| positions[*place].clone()).collect();
        for (place, found) in again.into_iter().zip(ask_for_offsets(router, &asked).await?) {
            resolved[place] = found;
        }
    }
    Ok(resolved)
}

async fn ask_for_offsets(
    router: &Router,
    positions: &[(TopicPartition, Position)],
) -> Result<Vec<Result<Offset, Error>>, Error> {
    let request = v1::ListOffsetsRequest {
        positions: positions.iter().map(|(at, position)| partition_position(at, *position)).collect(),
    };
    let call = |broker: Broker| {
        let request = request.clone();
        async move { broker.topics().list_offsets(request).await }
    };
    let response = router.call(Repeat::Harmless, call).await?;
    if response.offsets.len() != positions.len() {
        let what = format!("{} offsets for {} positions", response.offsets.len(), positions.len());
        return Err(Error::InvalidResponse { what });
    }
    let found = response.offsets.into_iter().map(|offset| match offset.error {
        None => Ok(Offset(offset.offset)),
        Some(error) => Err(Error::from(error).at(&offset.topic, offset.partition)),
    });
    Ok(found.collect())
}
