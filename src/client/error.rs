//! What can go wrong.

use std::error::Error as _;
use std::time::Duration;

use tonic::Code;
use tonic_types::StatusExt as _;

use crate::proto::v1;
use crate::record;

pub use crate::proto::v1::ErrorCode;

/// The domain of the broker's `google.rpc.ErrorInfo`.
const DOMAIN: &str = "streambus";
/// Metadata of the broker's `google.rpc.ErrorInfo` that says whether a failed write may have happened.
const MAY_HAVE_BEEN_WRITTEN: &str = "may_have_been_written";

/// Why something failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A broker refused the request or failed to serve it.
    #[error("{message}")]
    Broker {
        /// What kind of failure. [`ErrorCode::Unspecified`] if the broker is newer than this client.
        code: ErrorCode,
        /// What is wrong, which limit, what to do. For people: do not match on it.
        message: String,
        /// How long to wait before a retry; absent when a retry cannot help.
        retry_after: Option<Duration>,
        /// Whether the write may have happened although it was not acknowledged.
        may_have_been_written: bool,
    },
    /// No connection came about. Nothing was sent.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// The address or addresses that were tried.
        address: String,
        /// What happened.
        reason: String,
    },
    /// A connection broke, or a peer on the way answered in the broker's place. The request may have been served.
    #[error("the connection failed: {reason}")]
    Connection {
        /// What happened.
        reason: String,
    },
    /// A gRPC status without a `streambus` error code, for example of a proxy or of another kind of server.
    #[error("the server answered: {status}: {message}")]
    Status {
        /// The gRPC status code.
        status: Code,
        /// Its message.
        message: String,
    },
    /// The answer did not come in time. The request may have been served.
    #[error("no answer {}within {after:?}", from.as_ref().map(|from| format!("from {from} ")).unwrap_or_default())]
    Timeout {
        /// The address of the broker that did not answer, where a single one was asked.
        from: Option<String>,
        /// How long was waited.
        after: Duration,
    },
    /// There is no such topic.
    #[error("topic {topic} does not exist")]
    UnknownTopic {
        /// Its name.
        topic: String,
    },
    /// The topic has no such partition.
    #[error("topic {topic} has no partition {partition}; it has {partitions}, numbered from 0")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The partition asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The record's encoded size exceeds a limit. It was not sent.
    #[error("the record has {bytes} bytes; {limit_name} is {limit}")]
    RecordTooLarge {
        /// Encoded size of key, value, headers and timestamp.
        bytes: usize,
        /// Which limit.
        limit_name: &'static str,
        /// Its value, in bytes.
        limit: usize,
    },
    /// The record has a header or a number of headers that no broker accepts. It was not sent.
    #[error("{reason}")]
    InvalidRecord {
        /// What is wrong.
        reason: String,
    },
    /// The producer's buffer is full. The record was not taken.
    #[error("the producer's buffer of {limit} bytes is full")]
    BufferFull {
        /// `buffer_bytes`.
        limit: usize,
    },
    /// Nothing is known of the topic yet; `Producer::prepare` learns it. The record was not taken.
    #[error("topic {topic} is not prepared: call prepare or send first")]
    NotPrepared {
        /// The topic.
        topic: String,
    },
    /// The record was not acknowledged within `delivery_timeout`.
    #[error("not delivered within {after:?}{}", last.as_ref().map(|last| format!("; last failure: {last}")).unwrap_or_default())]
    DeliveryTimeout {
        /// `delivery_timeout`.
        after: Duration,
        /// Whether it may have been written although it was not acknowledged.
        may_have_been_written: bool,
        /// What the last attempt failed with, if one failed.
        last: Option<Box<Error>>,
    },
    /// The producer cannot say whether the record was written: an earlier batch of its partition was given up, so
    /// that repeating this one could append it twice.
    #[error("it is unknown whether the record was written: {reason}")]
    OutcomeUnknown {
        /// What happened.
        reason: String,
    },
    /// The producer is closed, or its runtime went away before the outcome was known.
    #[error("the producer is closed")]
    Closed {
        /// Whether the record may have been written although it was not acknowledged.
        may_have_been_written: bool,
    },
    /// The program is not a member of its group at the moment, so that nothing was committed or acknowledged.
    #[error("not a member of group {group} at the moment: {reason}")]
    NotMember {
        /// The group.
        group: String,
        /// Why not.
        reason: String,
    },
    /// The record is not leased to this program any more. Nothing happened; it is delivered again.
    #[error("the lease is over: {reason}")]
    LeaseOver {
        /// Why.
        reason: String,
    },
    /// A setting makes no sense.
    #[error("invalid setting {field}: {reason}")]
    InvalidConfig {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The broker's answer lacks something or contradicts itself.
    #[error("the broker's answer cannot be used: {what}")]
    InvalidResponse {
        /// What is wrong with it.
        what: String,
    },
    /// A batch cannot be encoded or decoded.
    #[error("topic {topic}, partition {partition}: {source}")]
    Batch {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// What is wrong with it.
        source: record::Error,
    },
    /// A failure that concerns one partition of several.
    #[error("topic {topic}, partition {partition}: {error}")]
    Partition {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// What failed.
        error: Box<Error>,
    },
}

impl Error {
    /// The broker's code, or the one that it would have used had the client not noticed first.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Broker { code, .. } => Some(*code),
            Error::UnknownTopic { .. } => Some(ErrorCode::UnknownTopic),
            Error::UnknownPartition { .. } => Some(ErrorCode::UnknownPartition),
            Error::RecordTooLarge { .. } => Some(ErrorCode::RecordTooLarge),
            Error::InvalidRecord { .. } => Some(ErrorCode::InvalidArgument),
            Error::OutcomeUnknown { .. } => Some(ErrorCode::OutcomeUnknown),
            Error::NotMember { .. } => Some(ErrorCode::MemberFenced),
            Error::LeaseOver { .. } => Some(ErrorCode::LeaseExpired),
            Error::Partition { error, .. } => error.code(),
            Error::Unreachable { .. }
            | Error::Connection { .. }
            | Error::Status { .. }
            | Error::Timeout { .. }
            | Error::BufferFull { .. }
            | Error::NotPrepared { .. }
            | Error::DeliveryTimeout { .. }
            | Error::Closed { .. }
            | Error::InvalidConfig { .. }
            | Error::InvalidResponse { .. }
            | Error::Batch { .. } => None,
        }
    }

    /// Whether the same request may succeed later. Of a write, look at
    /// [`may_have_been_written`](Self::may_have_been_written) too: repeating it may write twice.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Error::Broker { code, retry_after, .. } => {
                retry_after.is_some()
                    || matches!(
                        code,
                        ErrorCode::Busy
                            | ErrorCode::DiskFull
                            | ErrorCode::NotLeader
                            | ErrorCode::NotReady
                            | ErrorCode::OutcomeUnknown
                    )
            }
            Error::Status { status, .. } => {
                matches!(status, Code::Unavailable | Code::ResourceExhausted | Code::Aborted)
            }
            Error::Unreachable { .. }
            | Error::Connection { .. }
            | Error::Timeout { .. }
            | Error::BufferFull { .. }
            | Error::OutcomeUnknown { .. } => true,
            Error::Partition { error, .. } => error.is_retriable(),
            _ => false,
        }
    }

    /// Whether trying again will do as soon as somebody leads, or the broker is there.
    pub(super) fn awaits_leader(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Connection { .. } => true,
            Error::Partition { error, .. } => error.awaits_leader(),
            other => matches!(other.code(), Some(ErrorCode::NotLeader | ErrorCode::NotReady)),
        }
    }

    /// How long the broker asks to wait before a retry.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Broker { retry_after, .. } => *retry_after,
            Error::Partition { error, .. } => error.retry_after(),
            _ => None,
        }
    }

    /// Whether a write that failed so may have happened all the same.
    #[must_use]
    pub fn may_have_been_written(&self) -> bool {
        match self {
            Error::Broker { may_have_been_written, .. }
            | Error::DeliveryTimeout { may_have_been_written, .. }
            | Error::Closed { may_have_been_written } => *may_have_been_written,
            Error::Connection { .. }
            | Error::Status { .. }
            | Error::Timeout { .. }
            | Error::OutcomeUnknown { .. } => true,
            Error::Partition { error, .. } => error.may_have_been_written(),
            _ => false,
        }
    }

    /// A short name from a closed set, for `error.type`.
    pub(super) fn kind(&self) -> &'static str {
        if let Some(code) = self.code() {
            let name = code.as_str_name();
            return name.strip_prefix("ERROR_CODE_").unwrap_or(name);
        }
        match self {
            Error::Unreachable { .. } => "unreachable",
            Error::Connection { .. } => "connection",
            Error::Timeout { .. } | Error::DeliveryTimeout { .. } => "timeout",
            Error::BufferFull { .. } => "buffer_full",
            Error::Closed { .. } => "closed",
            Error::Batch { .. } | Error::InvalidResponse { .. } => "malformed",
            _ => "_OTHER",
        }
    }

    /// What a broker says of a partition that nobody leads at the moment.
    pub(super) fn no_leader(topic: &str, partition: u32) -> Error {
        Error::Broker {
            code: ErrorCode::NotLeader,
            message: format!("partition {partition} of topic {topic} has no leader"),
            retry_after: None,
            may_have_been_written: false,
        }
    }

    pub(super) fn at(self, topic: &str, partition: u32) -> Error {
        Error::Partition { topic: topic.to_owned(), partition, error: Box::new(self) }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        if let Some(info) = status.get_details_error_info().filter(|info| info.domain == DOMAIN) {
            let code = ErrorCode::from_str_name(&format!("ERROR_CODE_{}", info.reason));
            let code = code.unwrap_or(ErrorCode::Unspecified);
            let told = info.metadata.get(MAY_HAVE_BEEN_WRITTEN).map(|value| value == "true");
            return Error::Broker {
                code,
                message: status.message().to_owned(),
                retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
                may_have_been_written: told.unwrap_or(code == ErrorCode::OutcomeUnknown),
            };
        }
        // A status that was made on this side has a source; UNAVAILABLE without details comes from this side too, or
        // from a proxy that lost the broker.
        if status.source().is_some() || status.code() == Code::Unavailable {
            return Error::Connection { reason: reason_of(&status) };
        }
        Error::Status { status: status.code(), message: status.message().to_owned() }
    }
}

impl From<v1::Error> for Error {
    fn from(error: v1::Error) -> Self {
        Error::Broker {
            code: error.code(),
            retry_after: error.retry_after.and_then(|delay| delay.try_into().ok()),
            may_have_been_written: error.may_have_been_written,
            message: error.message,
        }
    }
}

/// The status's message and those of its sources, without repetitions.
fn reason_of(status: &tonic::Status) -> String {
    let mut reason = status.message().to_owned();
    append_sources(&mut reason, status.source());
    reason
}

/// Appends what each error in a chain says, unless it was said before.
pub(super) fn append_sources(reason: &mut String, mut source: Option<&(dyn std::error::Error + 'static)>) {
    while let Some(error) = source {
        let text = error.to_string();
        if !reason.contains(&text) {
            if !reason.is_empty() {
                reason.push_str(": ");
            }
            reason.push_str(&text);
        }
        source = error.source();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::ErrorDetails;

    #[test]
    fn decodes_the_details_of_a_status() {
        let mut details = ErrorDetails::new();
        details.set_error_info("BUSY", DOMAIN, HashMap::new());
        details.set_retry_info(Some(Duration::from_millis(40)));
        let status = tonic::Status::with_error_details(Code::ResourceExhausted, "full", details);

        let error = Error::from(status);

        assert_eq!(error.code(), Some(ErrorCode::Busy));
        assert_eq!(error.retry_after(), Some(Duration::from_millis(40)));
        assert_eq!(error.to_string(), "full");
        assert!(error.is_retriable() && !error.may_have_been_written());
    }

    #[test]
    fn an_unknown_outcome_may_have_been_written() {
        let mut details = ErrorDetails::new();
        details.set_error_info("OUTCOME_UNKNOWN", DOMAIN, HashMap::new());
        let error = Error::from(tonic::Status::with_error_details(Code::Unknown, "?", details));
        assert!(error.is_retriable() && error.may_have_been_written());
    }

    #[test]
    fn a_code_that_is_not_known_yet_is_not_retried() {
        let mut details = ErrorDetails::new();
        details.set_error_info("OUT_OF_PAPER", DOMAIN, HashMap::new());
        let error = Error::from(tonic::Status::with_error_details(Code::Internal, "no", details));
        assert_eq!(error.code(), Some(ErrorCode::Unspecified));
        assert!(!error.is_retriable());
    }

    #[test]
    fn a_status_of_somebody_else_is_no_broker_error() {
        let error = Error::from(tonic::Status::not_found("no such path"));
        assert!(matches!(error, Error::Status { status: Code::NotFound, .. }), "{error:?}");
        assert!(error.may_have_been_written());
    }
}
