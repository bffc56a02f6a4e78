//! Everything that can be wrong with a request, and the closed set of codes that it folds into.

use std::time::Duration;

use crate::cluster::control;
use crate::partition::{self, producers::Refusal};
use crate::record::Offset;
use crate::{metadata, raft, record, storage};

/// How long a client that meets a full buffer or disk, or a broker that is not ready, should wait.
const RETRY_SOON: Duration = Duration::from_millis(100);
const RETRY_LATER: Duration = Duration::from_secs(1);

/// What kind of failure a request met. Closed: clients, metrics and status tables know all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // Each variant is documented once, in `proto/streambus/v1/error.proto`.
pub enum ErrorCode {
    InvalidArgument,
    MalformedBatch,
    RecordTooLarge,
    BatchTooLarge,
    CodecNotAllowed,
    UnknownTopic,
    UnknownPartition,
    TopicExists,
    OffsetOutOfRange,
    SequenceOutOfOrder,
    ProducerFenced,
    UnknownProducer,
    LimitReached,
    Busy,
    DiskFull,
    NotLeader,
    NotReady,
    OutcomeUnknown,
    Corrupt,
    Storage,
    Internal,
    UnknownGroup,
    GroupNotEmpty,
    GroupKindMismatch,
    MemberFenced,
    LeaseExpired,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: &[ErrorCode] = &[
        ErrorCode::InvalidArgument,
        ErrorCode::MalformedBatch,
        ErrorCode::RecordTooLarge,
        ErrorCode::BatchTooLarge,
        ErrorCode::CodecNotAllowed,
        ErrorCode::UnknownTopic,
        ErrorCode::UnknownPartition,
        ErrorCode::TopicExists,
        ErrorCode::OffsetOutOfRange,
        ErrorCode::SequenceOutOfOrder,
        ErrorCode::ProducerFenced,
        ErrorCode::UnknownProducer,
        ErrorCode::LimitReached,
        ErrorCode::Busy,
        ErrorCode::DiskFull,
        ErrorCode::NotLeader,
        ErrorCode::NotReady,
        ErrorCode::OutcomeUnknown,
        ErrorCode::Corrupt,
        ErrorCode::Storage,
        ErrorCode::Internal,
        ErrorCode::UnknownGroup,
        ErrorCode::GroupNotEmpty,
        ErrorCode::GroupKindMismatch,
        ErrorCode::MemberFenced,
        ErrorCode::LeaseExpired,
    ];

    /// The code's name as clients and metrics see it.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::InvalidArgument => "INVALID_ARGUMENT",
            ErrorCode::MalformedBatch => "MALFORMED_BATCH",
            ErrorCode::RecordTooLarge => "RECORD_TOO_LARGE",
            ErrorCode::BatchTooLarge => "BATCH_TOO_LARGE",
            ErrorCode::CodecNotAllowed => "CODEC_NOT_ALLOWED",
            ErrorCode::UnknownTopic => "UNKNOWN_TOPIC",
            ErrorCode::UnknownPartition => "UNKNOWN_PARTITION",
            ErrorCode::TopicExists => "TOPIC_EXISTS",
            ErrorCode::OffsetOutOfRange => "OFFSET_OUT_OF_RANGE",
            ErrorCode::SequenceOutOfOrder => "SEQUENCE_OUT_OF_ORDER",
            ErrorCode::ProducerFenced => "PRODUCER_FENCED",
            ErrorCode::UnknownProducer => "UNKNOWN_PRODUCER",
            ErrorCode::LimitReached => "LIMIT_REACHED",
            ErrorCode::Busy => "BUSY",
            ErrorCode::DiskFull => "DISK_FULL",
            ErrorCode::NotLeader => "NOT_LEADER",
            ErrorCode::NotReady => "NOT_READY",
            ErrorCode::OutcomeUnknown => "OUTCOME_UNKNOWN",
            ErrorCode::Corrupt => "CORRUPT",
            ErrorCode::Storage => "STORAGE",
            ErrorCode::Internal => "INTERNAL",
            ErrorCode::UnknownGroup => "UNKNOWN_GROUP",
            ErrorCode::GroupNotEmpty => "GROUP_NOT_EMPTY",
            ErrorCode::GroupKindMismatch => "GROUP_KIND_MISMATCH",
            ErrorCode::MemberFenced => "MEMBER_FENCED",
            ErrorCode::LeaseExpired => "LEASE_EXPIRED",
        }
    }
}

/// Why a request failed. The text is for people: it names the field, the limit and what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A field is missing, malformed or out of range.
    #[error("field `{field}`: {problem}")]
    InvalidArgument {
        /// The field, as the API spells it.
        field: &'static str,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// The batch breaks the wire format or a limit of its topic.
    #[error("field `batch`: {0}")]
    Batch(#[from] record::Error),
    /// No such topic.
    #[error("there is no topic {topic:?}; create it with `streambus topic create`")]
    UnknownTopic {
        /// Its name.
        topic: String,
    },
    /// No such partition.
    #[error("topic {topic:?} has no partition {partition}: it has {partitions}, numbered from 0")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The partition that was asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The topic exists.
    #[error("topic {topic:?} exists already")]
    TopicExists {
        /// Its name.
        topic: String,
    },
    /// A configured limit is reached.
    #[error("the limit of {limit} {what} is reached; raise `{setting}` or remove some")]
    LimitReached {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// The setting that holds it.
        setting: &'static str,
    },
    /// The broker is starting or stopping.
    #[error("the broker is {0}; retry")]
    NotReady(&'static str),
    /// A partition refused or failed.
    #[error("{topic}/{partition}: {source}")]
    Partition {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// What happened.
        #[source]
        source: partition::Error,
    },
    /// A producer sent a batch that does not decompress into what it says. It is stored as it was sent.
    #[error(
        "{topic}/{partition}: the producer's batch at offset {offset} cannot be decompressed: {source}; read on at {end}"
    )]
    UnreadableBatch {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// Offset of the batch.
        offset: Offset,
        /// The first offset behind it.
        end: Offset,
        /// What is wrong with it.
        #[source]
        source: record::Error,
    },
    /// The control group failed.
    #[error("the change of metadata failed: {0}")]
    Control(#[source] raft::Error),
    /// The metadata does not allow the change.
    #[error(transparent)]
    Metadata(metadata::Error),
    /// No such consumer group.
    #[error(
        "there is no consumer group {group:?}; a group exists once it was joined or something was committed to it"
    )]
    UnknownGroup {
        /// Its name.
        group: String,
    },
    /// What was asked for is possible only while the group has no members.
    #[error("group {group:?} has {members} members: stop them first")]
    GroupNotEmpty {
        /// The group.
        group: String,
        /// How many members it has.
        members: usize,
    },
    /// The group is of the other kind.
    #[error("group {group:?} is a {kind} group: use another name, or delete it first")]
    GroupKindMismatch {
        /// The group.
        group: String,
        /// What it is.
        kind: &'static str,
    },
    /// The member, or its hold on a partition, is no longer what it claims.
    #[error("group {group:?}: {reason}; join anew")]
    MemberFenced {
        /// The group.
        group: String,
        /// What happened.
        reason: String,
    },
    /// Records are not leased to the member.
    #[error("{topic}/{partition}: records {first} to {last} are not all leased to this member (any more)")]
    LeaseExpired {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The first record.
        first: Offset,
        /// The last record.
        last: Offset,
    },
    /// A record cannot be copied to a dead-letter topic.
    #[error(transparent)]
    DeadLetter(#[from] record::dead_letter::Error),
    /// The group's coordinator failed, or is not to be reached.
    #[error("the coordinator of the group failed: {0}")]
    Coordinator(#[source] raft::Error),
    /// A bug.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl From<control::Error> for Error {
    fn from(error: control::Error) -> Self {
        match error {
            control::Error::Raft(error) => Error::Control(error),
            control::Error::Refused(metadata::Error::TopicExists(topic)) => Error::TopicExists { topic },
            control::Error::Refused(metadata::Error::UnknownTopic(topic)) => Error::UnknownTopic { topic },
            control::Error::Refused(other) => Error::Metadata(other),
        }
    }
}

impl Error {
    /// The code that clients and metrics see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Error::InvalidArgument { .. } => ErrorCode::InvalidArgument,
            Error::Batch(error) => batch_code(error),
            Error::UnknownTopic { .. } => ErrorCode::UnknownTopic,
            Error::UnknownPartition { .. } => ErrorCode::UnknownPartition,
            Error::TopicExists { .. } => ErrorCode::TopicExists,
            Error::LimitReached { .. } => ErrorCode::LimitReached,
            Error::NotReady(_) => ErrorCode::NotReady,
            Error::Partition { source, .. } => partition_code(source),
            Error::UnreadableBatch { .. } => ErrorCode::MalformedBatch,
            Error::Control(error) => raft_code(error),
            Error::Metadata(_) => ErrorCode::InvalidArgument,
            Error::UnknownGroup { .. } => ErrorCode::UnknownGroup,
            Error::GroupNotEmpty { .. } => ErrorCode::GroupNotEmpty,
            Error::GroupKindMismatch { .. } => ErrorCode::GroupKindMismatch,
            Error::MemberFenced { .. } => ErrorCode::MemberFenced,
            Error::LeaseExpired { .. } => ErrorCode::LeaseExpired,
            Error::DeadLetter(_) => ErrorCode::Corrupt,
            Error::Coordinator(error) => raft_code(error),
            Error::Internal(_) => ErrorCode::Internal,
        }
    }

    /// How long to wait before a retry can help. `None` when it cannot.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.code() {
            ErrorCode::Busy | ErrorCode::NotLeader | ErrorCode::NotReady => Some(RETRY_SOON),
            ErrorCode::DiskFull => Some(RETRY_LATER),
            _ => None,
        }
    }

    /// What a program may want to know, by name.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Error::InvalidArgument { field, .. } => vec![("field", (*field).to_owned())],
            Error::Batch(error) => batch_facts(error),
            Error::UnknownTopic { topic } | Error::TopicExists { topic } => vec![("topic", topic.clone())],
            Error::UnknownPartition { topic, partition, partitions } => vec![
                ("topic", topic.clone()),
                ("partition", partition.to_string()),
                ("partitions", partitions.to_string()),
            ],
            Error::LimitReached { limit, setting, .. } => {
                vec![("limit", limit.to_string()), ("setting", (*setting).to_owned())]
            }
            Error::UnknownGroup { group } | Error::MemberFenced { group, .. } => {
                vec![("group", group.clone())]
            }
            Error::GroupNotEmpty { group, members } => {
                vec![("group", group.clone()), ("members", members.to_string())]
            }
            Error::GroupKindMismatch { group, kind } => {
                vec![("group", group.clone()), ("kind", (*kind).to_owned())]
            }
            Error::LeaseExpired { topic, partition, .. } => {
                vec![("topic", topic.clone()), ("partition", partition.to_string())]
            }
            Error::Partition { topic, partition, source } => {
                let mut facts = vec![("topic", topic.clone()), ("partition", partition.to_string())];
                facts.extend(partition_facts(source));
                facts
            }
            Error::UnreadableBatch { topic, partition, offset, end, .. } => vec![
                ("topic", topic.clone()),
                ("partition", partition.to_string()),
                ("offset", offset.to_string()),
                ("end_offset", end.to_string()),
            ],
            _ => Vec::new(),
        }
    }
}

fn batch_code(error: &record::Error) -> ErrorCode {
    match error {
        record::Error::RecordTooLarge { .. } => ErrorCode::RecordTooLarge,
        record::Error::BatchTooLarge { .. } => ErrorCode::BatchTooLarge,
        record::Error::CodecNotAllowed { .. } => ErrorCode::CodecNotAllowed,
        _ => ErrorCode::MalformedBatch,
    }
}

fn batch_facts(error: &record::Error) -> Vec<(&'static str, String)> {
    let mut facts = vec![("field", "batch".to_owned())];
    match error {
        record::Error::RecordTooLarge { record, bytes, limit } => facts.extend([
            ("record", record.to_string()),
            ("limit", "record_bytes_max".to_owned()),
            ("limit_bytes", limit.to_string()),
            ("found", bytes.to_string()),
        ]),
        record::Error::BatchTooLarge { bytes, limit } => facts.extend([
            ("limit", "batch_bytes_max".to_owned()),
            ("limit_bytes", limit.to_string()),
            ("found", bytes.to_string()),
        ]),
        record::Error::CodecNotAllowed { codec, allowed } => {
            facts.extend([("codec", codec.to_string()), ("allowed", allowed.to_string())]);
        }
        record::Error::TooManyHeaders { record, limit } => {
            facts.extend([("record", record.to_string()), ("limit_headers", limit.to_string())]);
        }
        record::Error::HeaderKeyTooLong { record, header, bytes, limit } => facts.extend([
            ("record", record.to_string()),
            ("header", header.to_string()),
            ("limit_bytes", limit.to_string()),
            ("found", bytes.to_string()),
        ]),
        record::Error::HeaderKeyEmpty { record, header } => {
            facts.extend([("record", record.to_string()), ("header", header.to_string())]);
        }
        _ => {}
    }
    facts
}

fn partition_code(error: &partition::Error) -> ErrorCode {
    match error {
        partition::Error::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        partition::Error::Refused(Refusal::SequenceOutOfOrder { .. }) => ErrorCode::SequenceOutOfOrder,
        partition::Error::Refused(Refusal::Fenced { .. }) => ErrorCode::ProducerFenced,
        partition::Error::Refused(Refusal::UnknownProducer { .. }) => ErrorCode::UnknownProducer,
        partition::Error::Busy => ErrorCode::Busy,
        partition::Error::Corrupt { .. } | partition::Error::Damaged(_) => ErrorCode::Corrupt,
        partition::Error::Raft(error) => raft_code(error),
        partition::Error::Storage(error) => storage_code(error),
        partition::Error::Stopped => ErrorCode::NotReady,
    }
}

fn partition_facts(error: &partition::Error) -> Vec<(&'static str, String)> {
    match error {
        partition::Error::OffsetOutOfRange { offset, log_start, high_watermark } => vec![
            ("offset", offset.to_string()),
            ("log_start_offset", log_start.to_string()),
            ("high_watermark", high_watermark.to_string()),
        ],
        partition::Error::Refused(Refusal::SequenceOutOfOrder { expected, .. }) => {
            vec![("expected_sequence", expected.to_string())]
        }
        partition::Error::Corrupt { offset, end, .. } => {
            vec![("offset", offset.to_string()), ("end_offset", end.to_string())]
        }
        partition::Error::Raft(raft::Error::NotLeader { leader: Some(leader) }) => {
            vec![("leader_id", leader.to_string())]
        }
        _ => Vec::new(),
    }
}

fn raft_code(error: &raft::Error) -> ErrorCode {
    match error {
        raft::Error::NotLeader { .. } => ErrorCode::NotLeader,
        raft::Error::Busy => ErrorCode::Busy,
        raft::Error::OutcomeUnknown => ErrorCode::OutcomeUnknown,
        raft::Error::Storage(error) => storage_code(error),
        raft::Error::Stopped | raft::Error::UnknownCommand { .. } => ErrorCode::NotReady,
        raft::Error::Corrupt { .. } | raft::Error::Restore { .. } => ErrorCode::Corrupt,
        raft::Error::Membership { .. } | raft::Error::Config { .. } => ErrorCode::Internal,
    }
}

fn storage_code(error: &storage::Error) -> ErrorCode {
    match error {
        storage::Error::DiskFull { .. } => ErrorCode::DiskFull,
        storage::Error::Corrupt { .. }
        | storage::Error::CorruptJournal { .. }
        | storage::Error::BadRecord { .. } => ErrorCode::Corrupt,
        storage::Error::Closed => ErrorCode::NotReady,
        _ => ErrorCode::Storage,
    }
}
