//! What a failure looks like to clients: the only table from error codes to gRPC and HTTP.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::convert;
use crate::broker::{self, ErrorCode};
use crate::proto::v1;

/// The domain of every `google.rpc.ErrorInfo` of this API.
pub const DOMAIN: &str = "streambus";

/// Retry advice when the broker gives no better one.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// How one [`ErrorCode`] is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The code in metrics.
    pub label: &'static str,
    /// Status of a gRPC call. `UNAVAILABLE` and `RESOURCE_EXHAUSTED` promise that nothing was written.
    pub grpc: Code,
    /// Status of an HTTP request.
    pub http: u16,
    /// Whether the same request can succeed later.
    pub retry: bool,
    /// Whether a write may have happened although it was not acknowledged.
    pub may_have_been_written: bool,
    /// The code in the protocol.
    pub proto: v1::ErrorCode,
}

/// How `code` is reported.
#[must_use]
pub const fn mapping(code: ErrorCode) -> Mapping {
    use v1::ErrorCode as Proto;
    match code {
        ErrorCode::InvalidArgument => {
            refused("invalid_argument", Code::InvalidArgument, 400, Proto::InvalidArgument)
        }
        ErrorCode::MalformedBatch => {
            refused("malformed_batch", Code::InvalidArgument, 400, Proto::MalformedBatch)
        }
        ErrorCode::RecordTooLarge => {
            refused("record_too_large", Code::InvalidArgument, 413, Proto::RecordTooLarge)
        }
        ErrorCode::BatchTooLarge => {
            refused("batch_too_large", Code::InvalidArgument, 413, Proto::BatchTooLarge)
        }
        ErrorCode::CodecNotAllowed => {
            refused("codec_not_allowed", Code::InvalidArgument, 400, Proto::CodecNotAllowed)
        }
        ErrorCode::UnknownTopic => refused("unknown_topic", Code::NotFound, 404, Proto::UnknownTopic),
        ErrorCode::UnknownPartition => {
            refused("unknown_partition", Code::NotFound, 404, Proto::UnknownPartition)
        }
        ErrorCode::TopicExists => refused("topic_exists", Code::AlreadyExists, 409, Proto::TopicExists),
        ErrorCode::OffsetOutOfRange => {
            refused("offset_out_of_range", Code::OutOfRange, 416, Proto::OffsetOutOfRange)
        }
        ErrorCode::SequenceOutOfOrder => {
            refused("sequence_out_of_order", Code::FailedPrecondition, 409, Proto::SequenceOutOfOrder)
        }
        ErrorCode::ProducerFenced => {
            refused("producer_fenced", Code::FailedPrecondition, 409, Proto::ProducerFenced)
        }
        ErrorCode::UnknownProducer => {
            refused("unknown_producer", Code::FailedPrecondition, 409, Proto::UnknownProducer)
        }
        ErrorCode::LimitReached => {
            refused("limit_reached", Code::ResourceExhausted, 429, Proto::LimitReached)
        }
        ErrorCode::Busy => retry("busy", Code::ResourceExhausted, 429, Proto::Busy),
        ErrorCode::DiskFull => retry("disk_full", Code::ResourceExhausted, 507, Proto::DiskFull),
        ErrorCode::NotLeader => retry("not_leader", Code::Unavailable, 503, Proto::NotLeader),
        ErrorCode::NotReady => retry("not_ready", Code::Unavailable, 503, Proto::NotReady),
        ErrorCode::OutcomeUnknown => Mapping {
            label: "outcome_unknown",
            grpc: Code::Unknown,
            http: 504,
            retry: true,
            may_have_been_written: true,
            proto: Proto::OutcomeUnknown,
        },
        ErrorCode::Corrupt => refused("corrupt", Code::DataLoss, 500, Proto::Corrupt),
        ErrorCode::Storage => failed("storage", Proto::Storage),
        ErrorCode::Internal => failed("internal", Proto::Internal),
        ErrorCode::UnknownGroup => refused("unknown_group", Code::NotFound, 404, Proto::UnknownGroup),
        ErrorCode::GroupNotEmpty => {
            refused("group_not_empty", Code::FailedPrecondition, 409, Proto::GroupNotEmpty)
        }
        ErrorCode::GroupKindMismatch => {
            refused("group_kind_mismatch", Code::FailedPrecondition, 409, Proto::GroupKindMismatch)
        }
        ErrorCode::MemberFenced => {
            refused("member_fenced", Code::FailedPrecondition, 409, Proto::MemberFenced)
        }
        ErrorCode::LeaseExpired => {
            refused("lease_expired", Code::FailedPrecondition, 409, Proto::LeaseExpired)
        }
    }
}

/// Nothing was written, and the same request fails again.
const fn refused(label: &'static str, grpc: Code, http: u16, proto: v1::ErrorCode) -> Mapping {
    Mapping { label, grpc, http, retry: false, may_have_been_written: false, proto }
}

/// Nothing was written, and the same request can succeed later.
const fn retry(label: &'static str, grpc: Code, http: u16, proto: v1::ErrorCode) -> Mapping {
    Mapping { label, grpc, http, retry: true, may_have_been_written: false, proto }
}

/// The broker is at fault; it may have failed after it wrote.
const fn failed(label: &'static str, proto: v1::ErrorCode) -> Mapping {
    Mapping { label, grpc: Code::Internal, http: 500, retry: false, may_have_been_written: true, proto }
}

/// A failure on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    code: ErrorCode,
    message: String,
    retry_after: Option<Duration>,
    facts: Vec<(&'static str, String)>,
}

impl Failure {
    /// A failure that the API itself finds.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), retry_after: None, facts: Vec::new() }
    }

    /// A message that exceeds what the broker accepts in one piece.
    #[must_use]
    pub fn oversized(found: u64, most: u64) -> Self {
        Failure {
            facts: vec![
                ("field", "batch".to_owned()),
                ("limit", "broker.batch_bytes_max".to_owned()),
                ("limit_bytes", most.to_string()),
                ("found", found.to_string()),
            ],
            ..Failure::new(
                ErrorCode::BatchTooLarge,
                format!(
                    "a message of {found} bytes exceeds this broker's limit of {most}: send smaller batches or raise broker.batch_bytes_max"
                ),
            )
        }
    }

    /// A message for whose bytes there is no room.
    #[must_use]
    pub fn no_room() -> Self {
        Failure {
            facts: vec![("limit", "api.receiving_bytes_max".to_owned())],
            ..Failure::new(
                ErrorCode::Busy,
                "too many large messages are on their way to this broker (api.receiving_bytes_max): retry, or send smaller batches",
            )
        }
    }

    /// An answer of so many bytes for which there is no room. `writes` says whether the call may have changed something.
    #[must_use]
    pub fn no_room_for_answer(bytes: usize, writes: bool) -> Self {
        let (code, advice) = match writes {
            true => {
                (ErrorCode::OutcomeUnknown, "the call may have been carried out: look, or repeat it later")
            }
            false => (ErrorCode::Busy, "retry, or ask for less"),
        };
        Failure {
            facts: vec![("limit", "api.fetched_bytes_max".to_owned()), ("found", bytes.to_string())],
            ..Failure::new(
                code,
                format!(
                    "the answer takes {bytes} bytes, and clients do not read what others take (api.fetched_bytes_max): {advice}"
                ),
            )
        }
    }

    /// A message that does not come in full.
    #[must_use]
    pub fn stalled(came: usize, length: usize, timeout: Duration) -> Self {
        Failure {
            facts: vec![
                ("limit", "api.message_timeout".to_owned()),
                ("found", came.to_string()),
                ("expected", length.to_string()),
            ],
            ..Failure::new(
                ErrorCode::Busy,
                format!(
                    "{came} of the {length} bytes of a message have come, and hardly any in the last {timeout:?} (api.message_timeout)"
                ),
            )
        }
    }

    /// The broker stops, and nothing of the request was done.
    #[must_use]
    pub fn stopping() -> Self {
        Failure::new(
            ErrorCode::NotReady,
            "the broker is stopping: reconnect and repeat what was not acknowledged",
        )
    }

    /// What kind of failure.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The status of a call that fails so.
    #[must_use]
    pub fn grpc(&self) -> Code {
        mapping(self.code).grpc
    }

    /// The advice to clients, absent if a retry cannot help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        mapping(self.code).retry.then(|| self.retry_after.unwrap_or(RETRY_AFTER))
    }

    /// The failure of one part of a request whose other parts may succeed.
    #[must_use]
    pub fn into_proto(self) -> v1::Error {
        let mapping = mapping(self.code);
        v1::Error {
            code: mapping.proto.into(),
            retry_after: self.retry_after().map(convert::duration_to_proto),
            may_have_been_written: mapping.may_have_been_written,
            message: self.message,
        }
    }
}

impl From<broker::Error> for Failure {
    fn from(error: broker::Error) -> Self {
        Failure {
            code: error.code(),
            message: error.to_string(),
            retry_after: error.retry_after(),
            facts: error.facts(),
        }
    }
}

impl From<convert::Error> for Failure {
    fn from(error: convert::Error) -> Self {
        Failure {
            facts: vec![("field", error.field().to_owned())],
            ..Failure::new(ErrorCode::InvalidArgument, error.to_string())
        }
    }
}

/// The status of a call whose deadline has passed, which is the client's own. If it writes, its outcome is unknown: what
/// was handed to the log goes on without it.
pub(super) fn deadline_exceeded(writes: bool) -> Status {
    let message = if writes {
        "the deadline of the call has passed; it may have been carried out all the same: repeat it with the same \
         sequence, or read to find out"
    } else {
        "the deadline of the call has passed; nothing was changed: repeat it with more time"
    };
    let mut details = ErrorDetails::new();
    details.set_error_info(ErrorCode::OutcomeUnknown.as_str(), DOMAIN, std::collections::HashMap::new());
    Status::with_error_details(Code::DeadlineExceeded, message, details)
}

/// A failed call: `google.rpc.ErrorInfo` names the code and its facts, `google.rpc.RetryInfo` says when to retry.
impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut details = ErrorDetails::new();
        let facts: std::collections::HashMap<_, _> =
            failure.facts.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        details.set_error_info(failure.code.as_str(), DOMAIN, facts);
        if let Some(delay) = failure.retry_after() {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(mapping(failure.code).grpc, failure.message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_name_of_its_own_in_the_protocol() {
        let mut seen = std::collections::HashSet::new();
        for code in ErrorCode::ALL {
            let proto = mapping(*code).proto;
            assert_eq!(proto.as_str_name(), format!("ERROR_CODE_{}", code.as_str()));
            assert_eq!(mapping(*code).label, code.as_str().to_lowercase());
            assert!(seen.insert(proto));
        }
        let in_protocol = (1..).take_while(|number| v1::ErrorCode::try_from(*number).is_ok()).count();
        assert_eq!(seen.len(), in_protocol);
    }

    #[test]
    fn unavailable_and_exhausted_promise_that_nothing_was_written() {
        for code in ErrorCode::ALL {
            let mapping = mapping(*code);
            if matches!(mapping.grpc, Code::Unavailable | Code::ResourceExhausted) {
                assert!(!mapping.may_have_been_written, "{code:?}");
            }
        }
    }

    #[test]
    fn a_status_carries_reason_facts_and_retry_advice() {
        for code in ErrorCode::ALL {
            let failure = Failure { facts: vec![("limit", "7".to_owned())], ..Failure::new(*code, "why") };
            let status = Status::from(failure);
            assert_eq!(status.code(), mapping(*code).grpc);
            assert_eq!(status.message(), "why");
            let info = status.get_details_error_info().expect("error info");
            assert_eq!((info.domain.as_str(), info.reason.as_str()), (DOMAIN, code.as_str()));
            assert_eq!(info.metadata["limit"], "7");
            assert_eq!(status.get_details_retry_info().is_some(), mapping(*code).retry, "{code:?}");
        }
    }

    #[test]
    fn a_result_in_a_stream_says_the_same_as_a_status() {
        let failure = Failure {
            retry_after: Some(Duration::from_millis(1_500)),
            ..Failure::new(ErrorCode::Busy, "full")
        };
        let error = failure.into_proto();
        assert_eq!(error.code(), v1::ErrorCode::Busy);
        assert_eq!(error.message, "full");
        assert_eq!(error.retry_after, Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }));
        assert!(!error.may_have_been_written);
        assert!(Failure::new(ErrorCode::OutcomeUnknown, "").into_proto().may_have_been_written);
        assert_eq!(Failure::new(ErrorCode::TopicExists, "").into_proto().retry_after, None);
    }
}
