//! Between a partition's or a group's errors and how they travel.

use crate::partition::{self, producers::Refusal};
use crate::proto::internal as wire;
use crate::proto::internal::peer_error::Error as Wire;
use crate::proto::internal::{metadata_error, metadata_error::Error as WireMetadata};
use crate::record::Offset;
use crate::{metadata, raft, storage};

/// How a partition's error travels.
pub(super) fn to_wire(error: &partition::Error) -> wire::PeerError {
    use partition::Error;
    let error = match error {
        Error::OffsetOutOfRange { offset, log_start, high_watermark } => {
            Wire::OffsetOutOfRange(wire::OffsetOutOfRange {
                offset: offset.0,
                log_start: log_start.0,
                high_watermark: high_watermark.0,
            })
        }
        Error::Refused(Refusal::SequenceOutOfOrder { expected, actual }) => {
            Wire::SequenceOutOfOrder(wire::SequenceError { expected: *expected, actual: *actual })
        }
        Error::Refused(Refusal::Fenced { current, actual }) => {
            Wire::Fenced(wire::SequenceError { expected: *current, actual: *actual })
        }
        Error::Refused(Refusal::UnknownProducer { actual }) => Wire::UnknownProducer(*actual),
        Error::Busy => Wire::Busy(true),
        Error::Corrupt { offset, end, what } => {
            Wire::Corrupt(wire::CorruptRecords { offset: offset.0, end: end.0, what: what.clone() })
        }
        Error::Damaged(what) => Wire::Damaged(what.clone()),
        Error::Raft(error) => return raft_to_wire(error),
        Error::Storage(storage::Error::DiskFull { available, reserve }) => {
            Wire::DiskFull(wire::DiskFull { available: *available, reserve: *reserve })
        }
        Error::Storage(error) => Wire::Damaged(error.to_string()),
        Error::Stopped => Wire::Stopped(true),
    };
    wire::PeerError { error: Some(error) }
}

/// How a group's error travels.
pub(super) fn raft_to_wire(error: &raft::Error) -> wire::PeerError {
    let error = match error {
        raft::Error::NotLeader { leader } => Wire::NotLeader(leader.unwrap_or(0)),
        raft::Error::Busy => Wire::Busy(true),
        raft::Error::OutcomeUnknown => Wire::OutcomeUnknown(true),
        raft::Error::Stopped => Wire::Stopped(true),
        other => Wire::Damaged(other.to_string()),
    };
    wire::PeerError { error: Some(error) }
}

/// The error that travelled.
pub(super) fn from_wire(error: wire::PeerError) -> partition::Error {
    use partition::Error;
    match error.error {
        Some(Wire::OffsetOutOfRange(at)) => Error::OffsetOutOfRange {
            offset: Offset(at.offset),
            log_start: Offset(at.log_start),
            high_watermark: Offset(at.high_watermark),
        },
        Some(Wire::SequenceOutOfOrder(at)) => {
            Error::Refused(Refusal::SequenceOutOfOrder { expected: at.expected, actual: at.actual })
        }
        Some(Wire::Fenced(at)) => Error::Refused(Refusal::Fenced { current: at.expected, actual: at.actual }),
        Some(Wire::UnknownProducer(actual)) => Error::Refused(Refusal::UnknownProducer { actual }),
        Some(Wire::Busy(_)) => Error::Busy,
        Some(Wire::Stopped(_)) => Error::Raft(raft::Error::NotLeader { leader: None }),
        Some(Wire::DiskFull(at)) => {
            Error::Storage(storage::Error::DiskFull { available: at.available, reserve: at.reserve })
        }
        Some(Wire::Corrupt(at)) => {
            Error::Corrupt { offset: Offset(at.offset), end: Offset(at.end), what: at.what }
        }
        Some(Wire::Damaged(what)) => Error::Damaged(what),
        Some(Wire::NotLeader(leader)) => {
            Error::Raft(raft::Error::NotLeader { leader: (leader != 0).then_some(leader) })
        }
        Some(Wire::OutcomeUnknown(_)) | None => Error::Raft(raft::Error::OutcomeUnknown),
    }
}

/// The same for a group that is no partition.
pub(super) fn raft_from_wire(error: wire::PeerError) -> raft::Error {
    match from_wire(error) {
        partition::Error::Raft(error) => error,
        partition::Error::Busy => raft::Error::Busy,
        partition::Error::Storage(error) => raft::Error::Storage(error),
        _ => raft::Error::OutcomeUnknown,
    }
}

/// How a refused change of metadata travels.
pub(super) fn metadata_to_wire(error: &metadata::Error) -> wire::MetadataError {
    use metadata::Error;
    let error = match error {
        Error::InvalidName { name, problem } => WireMetadata::InvalidName(wire::InvalidName {
            name: name.clone(),
            problem: (*problem).to_owned(),
        }),
        Error::TopicExists(name) => WireMetadata::TopicExists(name.clone()),
        Error::UnknownTopic(name) => WireMetadata::UnknownTopic(name.clone()),
        Error::PartitionsNotMore { name, present, requested } => {
            WireMetadata::PartitionsNotMore(wire::PartitionsNotMore {
                name: name.clone(),
                present: *present,
                requested: *requested,
            })
        }
        Error::UnknownBroker(id) => WireMetadata::UnknownBroker(id.0),
        Error::Refused(text) => WireMetadata::Refused(text.clone()),
        Error::Malformed(text) => WireMetadata::Malformed(text.clone()),
    };
    wire::MetadataError { error: Some(error) }
}

/// The refusal that travelled.
pub(super) fn metadata_from_wire(error: wire::MetadataError) -> metadata::Error {
    use metadata::Error;
    match error.error {
        Some(metadata_error::Error::InvalidName(invalid)) => {
            Error::Refused(format!("topic name {:?} {}", invalid.name, invalid.problem))
        }
        Some(metadata_error::Error::TopicExists(name)) => Error::TopicExists(name),
        Some(metadata_error::Error::UnknownTopic(name)) => Error::UnknownTopic(name),
        Some(metadata_error::Error::PartitionsNotMore(at)) => {
            Error::PartitionsNotMore { name: at.name, present: at.present, requested: at.requested }
        }
        Some(metadata_error::Error::UnknownBroker(id)) => Error::UnknownBroker(metadata::BrokerId(id)),
        Some(metadata_error::Error::Refused(text)) => Error::Refused(text),
        Some(metadata_error::Error::Malformed(text)) => Error::Malformed(text),
        None => Error::Malformed("the refusal has no reason".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_clients_tell_apart_arrive_as_they_were() {
        let errors = [
            partition::Error::OffsetOutOfRange {
                offset: Offset(1),
                log_start: Offset(2),
                high_watermark: Offset(3),
            },
            partition::Error::Refused(Refusal::SequenceOutOfOrder { expected: 1, actual: 2 }),
            partition::Error::Refused(Refusal::Fenced { current: 2, actual: 1 }),
            partition::Error::Refused(Refusal::UnknownProducer { actual: 4 }),
            partition::Error::Busy,
            partition::Error::Corrupt { offset: Offset(1), end: Offset(2), what: "torn".to_owned() },
            partition::Error::Raft(raft::Error::NotLeader { leader: Some(3) }),
            partition::Error::Raft(raft::Error::NotLeader { leader: None }),
            partition::Error::Raft(raft::Error::OutcomeUnknown),
            partition::Error::Storage(storage::Error::DiskFull { available: 1, reserve: 2 }),
        ];
        for error in errors {
            assert_eq!(format!("{:?}", from_wire(to_wire(&error))), format!("{error:?}"));
        }
    }

    #[test]
    fn a_partition_that_is_closed_there_may_be_led_by_another_broker() {
        let arrived = from_wire(to_wire(&partition::Error::Stopped));
        assert!(matches!(arrived, partition::Error::Raft(raft::Error::NotLeader { leader: None })));
    }
}
