//! Groups, between the protocol's types and the broker's.

use std::time::Duration;

use super::{
    Error, accepted_codecs, duration_from_proto, duration_to_proto, timestamp_from_proto, timestamp_to_proto,
};
use crate::api::status::Failure;
use crate::broker::Position;
use crate::broker::groups::{
    AckKind, Acknowledgement, AssignedPartition, CommitResult, CommittedOffset, GroupDescription,
    GroupListing, GroupPartition, Join, Kind, LeasedRange, MemberClaim, MemberDescription, OffsetReset,
    OffsetToCommit, Reset, ResetOffset, ResetTo, ShareJoin, TopicPartition,
};
use crate::proto::v1;
use crate::record::Offset;

/// Most entries of a list in one request.
const ENTRIES_MAX: usize = 1_000;

fn bounded<T>(list: &[T], field: &'static str) -> Result<(), Error> {
    if list.len() > ENTRIES_MAX {
        return Err(Error::TooMany { field, found: list.len(), most: ENTRIES_MAX });
    }
    Ok(())
}

fn some<T>(list: &[T], field: &'static str, hint: &'static str) -> Result<(), Error> {
    if list.is_empty() {
        return Err(Error::missing(field, hint));
    }
    bounded(list, field)
}

fn duration(given: Option<prost_types::Duration>, field: &'static str) -> Result<Option<Duration>, Error> {
    given.map(|duration| duration_from_proto(duration, field)).transpose()
}

/// The member that a stream wants to be.
pub(in crate::api) enum Wanted {
    /// Of a consumer group.
    Consumer(Join),
    /// Of a share group.
    Share(ShareJoin),
}

impl TryFrom<v1::JoinGroup> for Wanted {
    type Error = Error;

    fn try_from(join: v1::JoinGroup) -> Result<Self, Error> {
        bounded(&join.topics, "join.topics")?;
        let offset_reset = match v1::OffsetReset::try_from(join.offset_reset) {
            Ok(v1::OffsetReset::Unspecified | v1::OffsetReset::Earliest) => OffsetReset::Earliest,
            Ok(v1::OffsetReset::Latest) => OffsetReset::Latest,
            Ok(v1::OffsetReset::Error) => OffsetReset::Error,
            Err(_) => {
                return Err(Error::invalid("join.offset_reset", join.offset_reset, "a known OffsetReset"));
            }
        };
        let wanted = Join {
            group: join.group,
            member_id: join.member_id,
            instance_id: join.instance_id,
            rack: join.rack,
            client_id: join.client_id,
            topics: join.topics,
            topic_pattern: join.topic_pattern,
            credit_bytes: join.credit_bytes,
            in_flight_records_max: join.in_flight_records_max,
            session_timeout: duration(join.session_timeout, "join.session_timeout")?,
            rebalance_timeout: duration(join.rebalance_timeout, "join.rebalance_timeout")?,
            offset_reset,
            accepted: accepted_codecs(&join.accepted_codecs)?,
        };
        Ok(match join.share {
            None => Wanted::Consumer(wanted),
            Some(share) => Wanted::Share(ShareJoin {
                join: wanted,
                lease: duration(share.lease, "join.share.lease")?,
                deliveries_max: share.deliveries_max,
                dead_letter_topic: share.dead_letter_topic,
            }),
        })
    }
}

/// The broker's form of offsets to commit: at least one, at most 1,000.
pub(in crate::api) fn commits(
    offsets: Vec<v1::OffsetCommit>,
    field: &'static str,
) -> Result<Vec<OffsetToCommit>, Error> {
    some(&offsets, field, "name at least one offset")?;
    let commit = |offset: v1::OffsetCommit| OffsetToCommit {
        topic: offset.topic,
        partition: offset.partition,
        offset: Offset(offset.offset),
        metadata: offset.metadata,
    };
    Ok(offsets.into_iter().map(commit).collect())
}

/// The protocol's form of what became of offsets.
pub(in crate::api) fn commit_results(results: Vec<CommitResult>) -> Vec<v1::OffsetCommitResult> {
    let result = |result: CommitResult| v1::OffsetCommitResult {
        topic: result.topic,
        partition: result.partition,
        error: result.error.map(|error| Failure::from(error).into_proto()),
    };
    results.into_iter().map(result).collect()
}

/// The broker's form of acknowledgements: at least one, at most 1,000.
pub(in crate::api) fn acknowledgements(
    given: Vec<v1::Acknowledgement>,
) -> Result<Vec<Acknowledgement>, Error> {
    some(&given, "acknowledge.acknowledgements", "acknowledge at least one record")?;
    let one = |given: v1::Acknowledgement| {
        let delay = duration(given.delay, "acknowledge.acknowledgements.delay")?.unwrap_or_default();
        let kind = match v1::AckKind::try_from(given.kind) {
            Ok(v1::AckKind::Accept) => AckKind::Accept,
            Ok(v1::AckKind::Release) => AckKind::Release(delay),
            Ok(v1::AckKind::Reject) => AckKind::Reject(given.reason),
            Ok(v1::AckKind::Extend) => AckKind::Extend,
            Ok(v1::AckKind::Unspecified) | Err(_) => {
                let hint = "one of ACCEPT, RELEASE, REJECT, EXTEND";
                return Err(Error::invalid("acknowledge.acknowledgements.kind", given.kind, hint));
            }
        };
        Ok(Acknowledgement {
            topic: given.topic,
            partition: given.partition,
            first: Offset(given.first_offset),
            last: Offset(given.last_offset),
            kind,
        })
    };
    given.into_iter().map(one).collect()
}

/// The broker's form of partitions, at most 1,000.
pub(in crate::api) fn partitions(
    partitions: Vec<v1::TopicPartition>,
    field: &'static str,
) -> Result<Vec<TopicPartition>, Error> {
    bounded(&partitions, field)?;
    let one = |at: v1::TopicPartition| TopicPartition { topic: at.topic, partition: at.partition };
    Ok(partitions.into_iter().map(one).collect())
}

impl From<TopicPartition> for v1::TopicPartition {
    fn from(at: TopicPartition) -> Self {
        v1::TopicPartition { topic: at.topic, partition: at.partition }
    }
}

impl From<v1::Membership> for MemberClaim {
    fn from(membership: v1::Membership) -> Self {
        MemberClaim { member_id: membership.member_id, epoch: membership.epoch }
    }
}

impl From<AssignedPartition> for v1::AssignedPartition {
    fn from(assigned: AssignedPartition) -> Self {
        v1::AssignedPartition {
            topic: assigned.topic.to_string(),
            partition: assigned.partition,
            start_offset: assigned.start.0,
            metadata: assigned.metadata.to_string(),
            missed_records: assigned.missed,
        }
    }
}

impl From<LeasedRange> for v1::Lease {
    fn from(lease: LeasedRange) -> Self {
        v1::Lease {
            first_offset: lease.first.0,
            last_offset: lease.last.0,
            delivery_count: lease.delivery_count,
        }
    }
}

fn kind(kind: Kind) -> i32 {
    match kind {
        Kind::Consumer => v1::GroupKind::Consumer,
        Kind::Share => v1::GroupKind::Share,
    }
    .into()
}

impl From<GroupListing> for v1::GroupListing {
    fn from(listing: GroupListing) -> Self {
        v1::GroupListing {
            group: listing.name.to_string(),
            kind: kind(listing.kind),
            member_count: u32::try_from(listing.members).unwrap_or(u32::MAX),
        }
    }
}

impl From<MemberDescription> for v1::GroupMember {
    fn from(member: MemberDescription) -> Self {
        let text = |text: Option<std::sync::Arc<str>>| text.map(|text| text.to_string()).unwrap_or_default();
        v1::GroupMember {
            member_id: member.member_id.to_string(),
            instance_id: text(member.instance_id),
            client_id: text(member.client_id),
            rack: text(member.rack),
            epoch: member.epoch,
            connected: member.connected,
            assigned: member.assigned.into_iter().map(Into::into).collect(),
            revoking: member.revoking.into_iter().map(Into::into).collect(),
        }
    }
}

/// The protocol's form of a description; `now_ms` is what the age of the lag is told against.
pub(in crate::api) fn description(
    described: GroupDescription,
    now: crate::clock::Timestamp,
) -> v1::DescribeGroupResponse {
    let partition = |(at, owner): (GroupPartition, Option<std::sync::Arc<str>>)| {
        let age = at.lag_since.map_or(0, |since| now.millis_since(since));
        v1::GroupPartition {
            topic: at.topic.to_string(),
            partition: at.partition,
            committed_offset: Some(at.committed.0),
            metadata: at.metadata.to_string(),
            commit_time: at.committed_at.map(timestamp_to_proto),
            log_start_offset: at.log_start.0,
            high_watermark: at.high_watermark.0,
            lag: at.lag,
            lag_time: Some(duration_to_proto(Duration::from_millis(age))),
            member_id: owner.map(|owner| owner.to_string()).unwrap_or_default(),
            leased: at.leased,
        }
    };
    v1::DescribeGroupResponse {
        group: described.name.to_string(),
        kind: kind(described.kind),
        epoch: described.epoch,
        coordinator_id: described.coordinator,
        members: described.members.into_iter().map(Into::into).collect(),
        partitions: described.partitions.into_iter().map(partition).collect(),
    }
}

impl From<CommittedOffset> for v1::CommittedOffset {
    fn from(offset: CommittedOffset) -> Self {
        let CommittedOffset { topic, partition, committed } = offset;
        match committed {
            None => v1::CommittedOffset { topic, partition, ..Default::default() },
            Some((offset, metadata, at)) => v1::CommittedOffset {
                topic,
                partition,
                offset: Some(offset.0),
                metadata: metadata.to_string(),
                commit_time: Some(timestamp_to_proto(at)),
            },
        }
    }
}

impl TryFrom<v1::ResetOffsetsRequest> for Reset {
    type Error = Error;

    fn try_from(request: v1::ResetOffsetsRequest) -> Result<Self, Error> {
        use v1::reset_offsets_request::To;
        bounded(&request.topics, "topics")?;
        let to = request
            .to
            .ok_or_else(|| Error::missing("to", "set one of offset, earliest, latest, time, shift"))?;
        let to = match to {
            To::Offset(offset) => ResetTo::Position(Position::Offset(Offset(offset))),
            To::Earliest(()) => ResetTo::Position(Position::Earliest),
            To::Latest(()) => ResetTo::Position(Position::Latest),
            To::Time(time) => {
                ResetTo::Position(Position::Time(timestamp_from_proto(time).ok_or_else(|| {
                    let value = format!("{} s {} ns", time.seconds, time.nanos);
                    Error::invalid("time", value, "a valid timestamp")
                })?))
            }
            To::Shift(by) => ResetTo::Shift(by),
        };
        Ok(Reset {
            group: request.group,
            partitions: partitions(request.partitions, "partitions")?,
            topics: request.topics,
            to,
            execute: request.execute,
        })
    }
}

impl From<ResetOffset> for v1::ResetOffset {
    fn from(moved: ResetOffset) -> Self {
        let (to_offset, error) = match moved.to {
            Ok(offset) => (offset.0, None),
            Err(error) => (0, Some(Failure::from(error).into_proto())),
        };
        v1::ResetOffset {
            topic: moved.at.topic,
            partition: moved.at.partition,
            from_offset: moved.from.map(|offset| offset.0),
            to_offset,
            error,
        }
    }
}
