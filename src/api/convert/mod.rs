//! Between the protocol's types and the broker's. A failed conversion names the field.

pub(super) mod control;
pub(super) mod groups;

use std::time::Duration;

use crate::broker::{
    BrokerInfo, BrokerStatus, ClusterInfo, ClusterStatus, FetchPartition, Fetched, FetchedBatch,
    PartitionInfo, PartitionProblem, Position, Problem, Produced, RoutingInfo, Topic, TopicChanges,
    TopicSettings,
};
use crate::clock::Timestamp;
use crate::proto::v1;
use crate::record::{Codec, CodecSet, Offset, ProducerSequence};

use super::status::Failure;

/// A request with a field that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field that must be set is not.
    #[error("{field} is missing: {hint}")]
    Missing {
        /// Path of the field.
        field: String,
        /// What it must hold.
        hint: &'static str,
    },
    /// A field holds a value that it cannot have.
    #[error("{field} is {value}: it must be {hint}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What it holds.
        value: String,
        /// What it may hold.
        hint: &'static str,
    },
    /// A list has more entries than allowed.
    #[error("{field} has {found} entries, at most {most} are allowed")]
    TooMany {
        /// Path of the field.
        field: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        most: usize,
    },
}

impl Error {
    /// Path of the offending field, such as `partitions[3].position`.
    #[must_use]
    pub fn field(&self) -> &str {
        match self {
            Error::Missing { field, .. } | Error::Invalid { field, .. } => field,
            Error::TooMany { field, .. } => field,
        }
    }

    fn missing(field: impl Into<String>, hint: &'static str) -> Self {
        Error::Missing { field: field.into(), hint }
    }

    fn invalid(field: impl Into<String>, value: impl ToString, hint: &'static str) -> Self {
        Error::Invalid { field: field.into(), value: value.to_string(), hint }
    }
}

/// Most partitions of one request.
const PARTITIONS_MAX: usize = 1_000;
const FETCH_MIN_BYTES: u32 = 1;
const FETCH_MAX_BYTES: u32 = 1 << 20;
const FETCH_MAX_WAIT: Duration = Duration::from_millis(500);
const FETCH_MAX_WAIT_LIMIT: Duration = Duration::from_secs(60);

// ---- time

/// The protocol's form of a duration. Durations of more than 292 billion years become that long.
#[must_use]
pub fn duration_to_proto(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

fn duration_from_proto(duration: prost_types::Duration, field: &'static str) -> Result<Duration, Error> {
    Duration::try_from(duration).map_err(|_| {
        Error::invalid(
            field,
            format!("{} s {} ns", duration.seconds, duration.nanos),
            "a duration of zero or longer",
        )
    })
}

fn timestamp_to_proto(timestamp: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: timestamp.0.div_euclid(1_000),
        nanos: (timestamp.0.rem_euclid(1_000) * 1_000_000) as i32,
    }
}

/// Rounds up to whole milliseconds, so that "at or after this time" holds.
fn timestamp_from_proto(timestamp: prost_types::Timestamp) -> Option<Timestamp> {
    let nanos = u32::try_from(timestamp.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    let millis = timestamp.seconds.checked_mul(1_000)?.checked_add(i64::from(nanos.div_ceil(1_000_000)))?;
    Some(Timestamp(millis))
}

// ---- codecs

fn codec_set(numbers: &[i32], field: &'static str) -> Result<CodecSet, Error> {
    numbers.iter().enumerate().try_fold(CodecSet::EMPTY, |set, (at, number)| {
        let codec = Codec::try_from(*number)
            .map_err(|_| Error::invalid(format!("{field}[{at}]"), number, "a known Codec"))?;
        Ok(set.with(codec))
    })
}

/// What a consumer can read: uncompressed batches always, further codecs if it lists them.
pub(super) fn accepted_codecs(numbers: &[i32]) -> Result<CodecSet, Error> {
    Ok(codec_set(numbers, "accepted_codecs")?.with(Codec::None))
}

fn codecs_to_proto(codecs: CodecSet) -> v1::AllowedCodecs {
    v1::AllowedCodecs { codecs: codecs.iter().map(Codec::number).collect() }
}

// ---- produce

/// The broker's form of a producer sequence.
pub(super) fn producer(sequence: v1::ProducerSequence) -> ProducerSequence {
    ProducerSequence {
        producer_id: sequence.producer_id,
        epoch: sequence.epoch,
        base_sequence: sequence.base_sequence,
    }
}

impl From<Produced> for v1::ProduceResponse {
    fn from(produced: Produced) -> Self {
        v1::ProduceResponse {
            base_offset: produced.base_offset.0,
            append_time_ms: produced.append_time.0,
            duplicate: produced.duplicate,
        }
    }
}

// ---- consume

/// The broker's form of a list of positions: at least one, at most 1,000.
pub(super) fn positions(
    positions: Vec<v1::PartitionPosition>,
    field: &'static str,
) -> Result<Vec<FetchPartition>, Error> {
    if positions.is_empty() {
        return Err(Error::missing(field, "name at least one partition"));
    }
    if positions.len() > PARTITIONS_MAX {
        return Err(Error::TooMany { field, found: positions.len(), most: PARTITIONS_MAX });
    }
    positions
        .into_iter()
        .enumerate()
        .map(|(index, entry)| {
            let at = entry.position.and_then(|position| position.at).ok_or_else(|| {
                Error::missing(
                    format!("{field}[{index}].position"),
                    "set one of offset, earliest, latest, time",
                )
            })?;
            Ok(FetchPartition {
                topic: entry.topic,
                partition: entry.partition,
                position: position(at, field, index)?,
            })
        })
        .collect()
}

fn position(at: v1::position::At, field: &str, index: usize) -> Result<Position, Error> {
    use v1::position::At;
    Ok(match at {
        At::Offset(offset) => Position::Offset(Offset(offset)),
        At::Earliest(()) => Position::Earliest,
        At::Latest(()) => Position::Latest,
        At::Time(time) => Position::Time(timestamp_from_proto(time).ok_or_else(|| {
            Error::invalid(
                format!("{field}[{index}].position.time"),
                format!("{} s {} ns", time.seconds, time.nanos),
                "a valid timestamp",
            )
        })?),
    })
}

/// A fetch with its defaults filled in, all but the trace.
pub(super) struct FetchPlan {
    pub(super) partitions: Vec<FetchPartition>,
    pub(super) min_bytes: u32,
    pub(super) max_bytes: u32,
    pub(super) max_wait: Duration,
    pub(super) accepted: CodecSet,
}

impl TryFrom<v1::FetchRequest> for FetchPlan {
    type Error = Error;

    fn try_from(request: v1::FetchRequest) -> Result<Self, Error> {
        let max_wait = match request.max_wait {
            None => FETCH_MAX_WAIT,
            Some(wait) => duration_from_proto(wait, "max_wait")?,
        };
        if max_wait > FETCH_MAX_WAIT_LIMIT {
            return Err(Error::invalid("max_wait", format!("{} s", max_wait.as_secs_f64()), "at most 60 s"));
        }
        Ok(FetchPlan {
            partitions: positions(request.partitions, "partitions")?,
            min_bytes: or_default(request.min_bytes, FETCH_MIN_BYTES),
            max_bytes: or_default(request.max_bytes, FETCH_MAX_BYTES),
            max_wait,
            accepted: accepted_codecs(&request.accepted_codecs)?,
        })
    }
}

fn or_default(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

impl From<FetchedBatch> for v1::StoredBatch {
    fn from(fetched: FetchedBatch) -> Self {
        v1::StoredBatch {
            base_offset: fetched.base_offset.0,
            record_count: fetched.record_count,
            append_time_ms: fetched.append_time.0,
            batch: fetched.batch,
        }
    }
}

/// `error` is the failure in `fetched`, which the caller has taken out and counted.
pub(super) fn records(fetched: Fetched, error: Option<Failure>) -> v1::PartitionRecords {
    v1::PartitionRecords {
        topic: fetched.topic.as_ref().to_owned(),
        partition: fetched.partition,
        log_start_offset: fetched.log_start.0,
        high_watermark: fetched.high_watermark.0,
        next_offset: fetched.next_offset.0,
        batches: fetched.batches.into_iter().map(Into::into).collect(),
        error: error.map(Failure::into_proto),
        leases: Vec::new(),
    }
}

// ---- topics

impl TryFrom<v1::TopicConfig> for TopicChanges {
    type Error = Error;

    fn try_from(config: v1::TopicConfig) -> Result<Self, Error> {
        let retention = config
            .retention_time
            .map(|time| duration_from_proto(time, "config.retention_time"))
            .transpose()?
            .map(|time| (!time.is_zero()).then_some(time));
        let codecs = match config.codecs_allowed {
            None => None,
            Some(allowed) if allowed.codecs.is_empty() => {
                return Err(Error::missing("config.codecs_allowed.codecs", "allow at least one codec"));
            }
            Some(allowed) => Some(codec_set(&allowed.codecs, "config.codecs_allowed.codecs")?),
        };
        Ok(TopicChanges {
            retention,
            retention_bytes: config.retention_bytes.map(|bytes| (bytes != 0).then_some(bytes)),
            record_bytes_max: config.record_bytes_max,
            batch_bytes_max: config.batch_bytes_max,
            codecs,
        })
    }
}

/// The changes of a request, none if it names none.
pub(super) fn changes(config: Option<v1::TopicConfig>) -> Result<TopicChanges, Error> {
    config.unwrap_or_default().try_into()
}

impl From<&TopicSettings> for v1::TopicConfig {
    fn from(settings: &TopicSettings) -> Self {
        v1::TopicConfig {
            retention_time: Some(duration_to_proto(settings.retention.unwrap_or_default())),
            retention_bytes: Some(settings.retention_bytes.unwrap_or_default()),
            record_bytes_max: Some(settings.record_bytes_max),
            batch_bytes_max: Some(settings.batch_bytes_max),
            codecs_allowed: Some(codecs_to_proto(settings.codecs)),
        }
    }
}

impl From<Topic> for v1::Topic {
    fn from(topic: Topic) -> Self {
        v1::Topic {
            config: Some((&topic.settings).into()),
            name: topic.name.as_ref().to_owned(),
            topic_id: topic.id,
            partition_count: topic.partition_count,
            replication_factor: topic.replication_factor,
            create_time: Some(timestamp_to_proto(topic.created)),
        }
    }
}

impl From<PartitionInfo> for v1::PartitionDescription {
    fn from(info: PartitionInfo) -> Self {
        v1::PartitionDescription {
            partition: info.partition,
            leader_id: info.leader,
            replica_ids: info.replicas,
            log_start_offset: info.log_start.0,
            high_watermark: info.high_watermark.0,
            size_bytes: info.size_bytes,
            term: info.term,
        }
    }
}

// ---- cluster

impl From<BrokerInfo> for v1::Broker {
    fn from(info: BrokerInfo) -> Self {
        v1::Broker {
            broker_id: info.id,
            grpc_address: info.grpc_address,
            http_address: info.http_address,
            version: info.version,
            start_time: Some(timestamp_to_proto(info.started)),
            storage_sync: info.storage_sync,
            rack: info.rack,
        }
    }
}

impl From<RoutingInfo> for v1::TopicRouting {
    fn from(info: RoutingInfo) -> Self {
        v1::TopicRouting {
            topic: info.topic.name.as_ref().to_owned(),
            topic_id: info.topic.id,
            config: Some((&info.topic.settings).into()),
            leader_ids: info.leaders.into_iter().map(Option::unwrap_or_default).collect(),
        }
    }
}

impl From<ClusterInfo> for v1::DescribeClusterResponse {
    fn from(info: ClusterInfo) -> Self {
        v1::DescribeClusterResponse {
            cluster_id: info.cluster_id,
            broker_id: info.broker_id,
            controller_id: info.controller_id.unwrap_or_default(),
            brokers: info.brokers.into_iter().map(Into::into).collect(),
            topics: info.topics.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<ClusterStatus> for v1::GetClusterStatusResponse {
    fn from(status: ClusterStatus) -> Self {
        v1::GetClusterStatusResponse {
            brokers: status.brokers.into_iter().map(Into::into).collect(),
            controller_id: status.controller.unwrap_or_default(),
            controller_voter_ids: status.controller_voters,
            coordinator_ids: status.coordinators.into_iter().map(Option::unwrap_or_default).collect(),
            partition_count: status.partitions as u32,
            problems: status.problems.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<BrokerStatus> for v1::BrokerStatus {
    fn from(status: BrokerStatus) -> Self {
        v1::BrokerStatus {
            broker_id: status.id,
            grpc_address: status.grpc_address,
            version: status.version,
            rack: status.rack,
            reached: status.reached,
            draining: status.draining,
            replaced_by: status.replaced_by.unwrap_or_default(),
            replica_count: status.replicas as u32,
            leader_count: status.leaders as u32,
            vote_count: status.votes as u32,
        }
    }
}

impl From<PartitionProblem> for v1::PartitionProblem {
    fn from(problem: PartitionProblem) -> Self {
        let kind = match problem.problem {
            Problem::Offline => v1::PartitionProblemKind::Offline,
            Problem::Leaderless => v1::PartitionProblemKind::Leaderless,
            Problem::UnderReplicated => v1::PartitionProblemKind::UnderReplicated,
            Problem::Moving => v1::PartitionProblemKind::Moving,
            Problem::Damaged => v1::PartitionProblemKind::Damaged,
        };
        v1::PartitionProblem {
            moving_from_ids: problem.moving_from,
            topic: problem.topic,
            partition: problem.partition,
            kind: kind.into(),
            leader_id: problem.leader.unwrap_or_default(),
            replica_ids: problem.replicas,
            lagging_ids: problem.lagging,
            reason: problem.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: Option<v1::position::At>) -> v1::PartitionPosition {
        v1::PartitionPosition {
            topic: "orders".to_owned(),
            partition: 3,
            position: Some(v1::Position { at }),
        }
    }

    #[test]
    fn a_position_without_a_choice_is_named_by_its_path() {
        let earliest = Some(v1::position::At::Earliest(()));
        let error = positions(vec![at(earliest), at(None)], "start.partitions").unwrap_err();
        assert_eq!(error.field(), "start.partitions[1].position");
    }

    #[test]
    fn lists_of_positions_have_bounds() {
        assert_eq!(positions(vec![], "partitions").unwrap_err().field(), "partitions");
        let many = vec![at(Some(v1::position::At::Latest(()))); PARTITIONS_MAX + 1];
        assert!(matches!(positions(many, "partitions"), Err(Error::TooMany { found: 1_001, .. })));
    }

    #[test]
    fn times_round_up_to_milliseconds_and_must_be_valid() {
        let time = |seconds, nanos| timestamp_from_proto(prost_types::Timestamp { seconds, nanos });
        assert_eq!(time(1, 1), Some(Timestamp(1_001)));
        assert_eq!(time(-1, 500_000_000), Some(Timestamp(-500)));
        assert_eq!(time(1, -1), None);
        assert_eq!(time(i64::MAX, 0), None);
        assert_eq!(
            timestamp_to_proto(Timestamp(-500)),
            prost_types::Timestamp { seconds: -1, nanos: 500_000_000 }
        );
    }

    #[test]
    fn fetch_fills_in_the_documented_defaults() {
        let partitions = vec![at(Some(v1::position::At::Offset(9)))];
        let plan = FetchPlan::try_from(v1::FetchRequest { partitions, ..Default::default() }).unwrap();
        assert_eq!((plan.min_bytes, plan.max_bytes), (1, 1 << 20));
        assert_eq!(plan.max_wait, Duration::from_millis(500));
        assert!(plan.accepted.contains(Codec::None) && !plan.accepted.contains(Codec::Zstd));
    }

    #[test]
    fn fetch_refuses_a_wait_that_is_negative_or_too_long() {
        for seconds in [-1, 61] {
            let request = v1::FetchRequest {
                partitions: vec![at(Some(v1::position::At::Latest(())))],
                max_wait: Some(prost_types::Duration { seconds, nanos: 0 }),
                ..Default::default()
            };
            assert_eq!(FetchPlan::try_from(request).err().expect("refused").field(), "max_wait");
        }
    }

    #[test]
    fn zero_retention_means_without_limit_and_absent_means_unchanged() {
        let changes = changes(Some(v1::TopicConfig {
            retention_time: Some(prost_types::Duration::default()),
            retention_bytes: Some(7),
            ..Default::default()
        }))
        .unwrap();
        assert_eq!(changes.retention, Some(None));
        assert_eq!(changes.retention_bytes, Some(Some(7)));
        assert_eq!(changes.record_bytes_max, None);
        assert!(changes.codecs.is_none());
    }

    #[test]
    fn unknown_and_empty_codec_lists_are_refused() {
        let config = |codecs| v1::TopicConfig {
            codecs_allowed: Some(v1::AllowedCodecs { codecs }),
            ..Default::default()
        };
        assert_eq!(changes(Some(config(vec![0, 9]))).unwrap_err().field(), "config.codecs_allowed.codecs[1]");
        assert_eq!(changes(Some(config(vec![]))).unwrap_err().field(), "config.codecs_allowed.codecs");
    }
}
