//! Creating, listing, describing, altering and deleting topics, and their offsets.

use std::sync::Arc;
use std::time::Duration;

use super::fetch::FetchPartition;
use super::produce::in_partition;
use super::{Broker, Error};
use crate::clock::Timestamp;
use crate::metadata::{self, Command, Outcome, Settings, validate_name};
use crate::partition;
use crate::record::{CodecSet, Offset};

/// Most topics of a page.
const PAGE_MAX: u32 = 1_000;
/// Shortest retention.
const RETENTION_MIN: Duration = Duration::from_secs(1);

/// Effective settings of a topic.
pub type TopicSettings = Settings;

/// Settings to change; those that are `None` stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicChanges {
    /// How long records are kept; `Some(None)` is without limit.
    pub retention: Option<Option<Duration>>,
    /// How many bytes a partition keeps; `Some(None)` is without limit.
    pub retention_bytes: Option<Option<u64>>,
    /// Largest record, in bytes.
    pub record_bytes_max: Option<u32>,
    /// Largest batch before compression, in bytes.
    pub batch_bytes_max: Option<u32>,
    /// Codecs that batches may use.
    pub codecs: Option<CodecSet>,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Distinguishes it from an earlier topic of the same name.
    pub id: u32,
    /// Its name.
    pub name: Arc<str>,
    /// Its settings.
    pub settings: TopicSettings,
    /// Number of partitions.
    pub partition_count: u32,
    /// Replicas of each partition.
    pub replication_factor: u32,
    /// When it was created.
    pub created: Timestamp,
}

impl From<&metadata::Topic> for Topic {
    fn from(topic: &metadata::Topic) -> Self {
        Topic {
            id: topic.id.0,
            name: topic.name.clone(),
            settings: topic.settings.clone(),
            partition_count: topic.partitions.len() as u32,
            replication_factor: topic.replication_factor,
            created: topic.created,
        }
    }
}

/// A partition and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Its number.
    pub partition: u32,
    /// Who leads it.
    pub leader: Option<u64>,
    /// Who holds a replica.
    pub replicas: Vec<u64>,
    /// Offset of the oldest retained record.
    pub log_start: Offset,
    /// Offset after the last committed record.
    pub high_watermark: Offset,
    /// Bytes of retained batches.
    pub size_bytes: u64,
    /// Raft term.
    pub term: u64,
}

impl Broker {
    /// Creates a topic; its partitions can be used when this returns. `partitions` and `replication_factor` of 0 stand
    /// for the defaults. With `validate_only` everything is checked and nothing created.
    ///
    /// # Errors
    /// An argument is invalid, a limit is reached, the topic exists, or agreement failed.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        replication_factor: u32,
        changes: TopicChanges,
        validate_only: bool,
    ) -> Result<Topic, Error> {
        let cluster = &self.running()?.cluster;
        validate_name(name).map_err(|error| invalid("name", error.to_string()))?;
        let config = &self.0.config;
        let partitions = if partitions == 0 { config.default_partitions } else { partitions };
        let replication_factor = replication_factor.max(1);
        if replication_factor > cluster.broker_count() {
            return Err(invalid(
                "replication_factor",
                format!("{replication_factor} exceeds the number of brokers, {}", cluster.broker_count()),
            ));
        }
        let settings = self.change(config.topic_defaults(), changes)?;
        // One at a time, so that two requests cannot pass a limit together.
        let _alone = self.0.changing.lock().await;
        let state = cluster.state();
        if state.topic(name).is_some() {
            return Err(Error::TopicExists { topic: name.to_owned() });
        }
        self.check_room(&state, 1, partitions)?;
        let command = Command::CreateTopic {
            name: name.into(),
            settings,
            replication_factor,
            created: self.0.clock.now(),
            partitions: cluster
                .place(partitions, replication_factor)
                .map_err(|e| invalid("replication_factor", e.to_string()))?,
        };
        let outcome = if validate_only {
            metadata::State::clone(&state)
                .apply(command)
                .map_err(|e| Error::from(crate::cluster::control::Error::from(e)))?
        } else {
            cluster.change(&command).await?
        };
        topic_of(outcome)
    }

    /// A page of topics by name, and the token of the next page, empty on the last.
    ///
    /// # Errors
    /// The page size is too large.
    pub fn list_topics(&self, page_size: u32, page_token: &str) -> Result<(Vec<Topic>, String), Error> {
        let cluster = &self.running()?.cluster;
        if page_size > PAGE_MAX {
            return Err(invalid("page_size", format!("{page_size} exceeds the limit of {PAGE_MAX}")));
        }
        let size = if page_size == 0 { PAGE_MAX } else { page_size } as usize;
        let state = cluster.state();
        let mut after = state.topics_after(page_token);
        let page: Vec<Topic> = after.by_ref().take(size).map(|topic| Topic::from(&**topic)).collect();
        let token = match (after.next(), page.last()) {
            (Some(_), Some(last)) => last.name.to_string(),
            _ => String::new(),
        };
        Ok((page, token))
    }

    /// A topic and its partitions.
    ///
    /// # Errors
    /// There is no such topic.
    pub fn describe_topic(&self, name: &str) -> Result<(Topic, Vec<PartitionInfo>), Error> {
        let route = self.route(name)?;
        let partitions = route.topic.partitions.iter().zip(&route.partitions).enumerate();
        let partitions = partitions.map(|(number, (assignment, partition))| {
            let replicas = assignment.replicas.iter().map(|id| id.0).collect();
            let bounds = partition.bounds();
            PartitionInfo {
                partition: number as u32,
                leader: partition.leader().map(|id| id.0),
                replicas,
                log_start: bounds.log_start,
                high_watermark: bounds.high_watermark,
                size_bytes: partition.size_bytes(),
                term: partition.term(),
            }
        });
        Ok((Topic::from(&*route.topic), partitions.collect()))
    }

    /// Changes settings of a topic.
    ///
    /// # Errors
    /// There is no such topic, a setting is invalid, or agreement failed.
    pub async fn alter_topic(&self, name: &str, changes: TopicChanges) -> Result<Topic, Error> {
        let cluster = &self.running()?.cluster;
        let _alone = self.0.changing.lock().await;
        let settings = self.change(self.route(name)?.topic.settings.clone(), changes)?;
        topic_of(cluster.change(&Command::AlterTopic { name: name.into(), settings }).await?)
    }

    /// Raises the number of partitions to `count`.
    ///
    /// # Errors
    /// There is no such topic, `count` is not more than there are, a limit is reached, or agreement failed.
    pub async fn add_topic_partitions(&self, name: &str, count: u32) -> Result<Topic, Error> {
        let cluster = &self.running()?.cluster;
        let _alone = self.0.changing.lock().await;
        let topic = self.route(name)?.topic.clone();
        let present = topic.partitions.len() as u32;
        if count <= present {
            return Err(Error::Metadata(metadata::Error::PartitionsNotMore {
                name: name.to_owned(),
                present,
                requested: count,
            }));
        }
        self.check_room(&cluster.state(), 0, count - present)?;
        let placed = cluster.place(count - present, topic.replication_factor);
        let partitions = placed.map_err(|e| invalid("partition_count", e.to_string()))?;
        topic_of(cluster.change(&Command::AddPartitions { name: name.into(), partitions }).await?)
    }

    /// Deletes a topic with its records.
    ///
    /// # Errors
    /// There is no such topic, or agreement failed.
    pub async fn delete_topic(&self, name: &str) -> Result<(), Error> {
        let cluster = &self.running()?.cluster;
        let _alone = self.0.changing.lock().await;
        cluster.change(&Command::DeleteTopic { name: name.into() }).await?;
        Ok(())
    }

    /// Deletes the records below `before`, and gives the new log start.
    ///
    /// # Errors
    /// There is no such partition, `before` lies beyond the high watermark, or agreement failed.
    pub async fn delete_records(&self, topic: &str, partition: u32, before: Offset) -> Result<Offset, Error> {
        let route = self.route(topic)?;
        let replica = self.partition(&route, partition)?;
        let fail = |source| in_partition(topic, partition, source);
        let bounds = replica.fresh_bounds().await.map_err(fail)?;
        if before > bounds.high_watermark {
            return Err(fail(partition::Error::OffsetOutOfRange {
                offset: before,
                log_start: bounds.log_start,
                high_watermark: bounds.high_watermark,
            }));
        }
        replica.trim(before).await.map_err(fail)
    }

    /// Resolves positions to offsets, in the same order.
    pub async fn list_offsets(
        &self,
        positions: Vec<FetchPartition>,
    ) -> Vec<(String, u32, Result<Offset, Error>)> {
        let mut resolved = Vec::with_capacity(positions.len());
        for wanted in positions {
            let offset = self.cursor(&wanted).await.map(|cursor| cursor.next);
            resolved.push((wanted.topic, wanted.partition, offset));
        }
        resolved
    }

    /// A producer id that nobody else has, and its first epoch.
    ///
    /// # Errors
    /// Agreement failed.
    pub async fn init_producer(&self) -> Result<(u64, u32), Error> {
        match self.running()?.cluster.change(&Command::AllocateProducerId).await? {
            Outcome::ProducerId(id) => Ok((id, 0)),
            _ => Err(Error::Internal("an id was asked for and something else given")),
        }
    }

    fn check_room(&self, state: &metadata::State, topics: u32, partitions: u32) -> Result<(), Error> {
        let config = &self.0.config;
        if state.topic_count() as u64 + u64::from(topics) > config.topics_max.into() {
            let limit = config.topics_max.into();
            return Err(Error::LimitReached { what: "topics", limit, setting: "broker.topics_max" });
        }
        if state.partition_count() as u64 + u64::from(partitions) > config.partitions_max.into() {
            let limit = config.partitions_max.into();
            return Err(Error::LimitReached { what: "partitions", limit, setting: "broker.partitions_max" });
        }
        Ok(())
    }

    fn change(&self, mut settings: Settings, changes: TopicChanges) -> Result<Settings, Error> {
        if let Some(retention) = changes.retention {
            if retention.is_some_and(|retention| retention < RETENTION_MIN) {
                return Err(invalid("config.retention_time", "must be 0 or at least 1 s".to_owned()));
            }
            settings.retention = retention;
        }
        if let Some(bytes) = changes.retention_bytes {
            settings.retention_bytes = bytes;
        }
        if let Some(bytes) = changes.record_bytes_max {
            settings.record_bytes_max = bytes;
        }
        if let Some(bytes) = changes.batch_bytes_max {
            settings.batch_bytes_max = bytes;
            // Who lowers the batch limit alone means records too.
            if changes.record_bytes_max.is_none() {
                settings.record_bytes_max = settings.record_bytes_max.min(bytes);
            }
        }
        if let Some(codecs) = changes.codecs {
            settings.codecs = codecs;
        }
        let batch_limit = self.0.config.batch_bytes_max;
        if settings.batch_bytes_max == 0 || u64::from(settings.batch_bytes_max) > batch_limit {
            let problem = format!(
                "{} is not from 1 to {batch_limit}, the broker's `broker.batch_bytes_max`",
                settings.batch_bytes_max
            );
            return Err(invalid("config.batch_bytes_max", problem));
        }
        if settings.record_bytes_max == 0 || settings.record_bytes_max > settings.batch_bytes_max {
            let problem = format!(
                "{} is not from 1 to {}, the topic's `batch_bytes_max`",
                settings.record_bytes_max, settings.batch_bytes_max
            );
            return Err(invalid("config.record_bytes_max", problem));
        }
        if settings.codecs.is_empty() {
            return Err(invalid("config.codecs_allowed", "must name at least one codec".to_owned()));
        }
        Ok(settings)
    }
}

fn invalid(field: &'static str, problem: String) -> Error {
    Error::InvalidArgument { field, problem }
}

fn topic_of(outcome: Outcome) -> Result<Topic, Error> {
    match outcome {
        Outcome::Topic(topic) => Ok(Topic::from(&*topic)),
        _ => Err(Error::Internal("a topic was asked for and something else given")),
    }
}
