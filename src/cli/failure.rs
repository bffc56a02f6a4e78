//! Saying what went wrong and what to do about it.

use std::io::Write as _;
use std::process::ExitCode;

use crate::client::{self, ErrorCode};
use crate::config::Mistakes;

use super::output::Closed;

/// Exit code of a command that was told something that makes no sense.
pub(super) const USAGE: u8 = 2;

/// A command that cannot be carried out as given.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// Prints `error`, with advice if there is any, and gives the exit code.
pub(super) fn tell(error: &anyhow::Error) -> ExitCode {
    if error.is::<Closed>() {
        return ExitCode::SUCCESS;
    }
    let mut text = format!("error: {}\n", in_full(error));
    if let Some(advice) = advice(error) {
        text.push_str("  ");
        text.push_str(&advice);
        text.push('\n');
    }
    // If nobody reads, there is still the exit code.
    let _ = std::io::stderr().write_all(text.as_bytes());
    if error.is::<Usage>() || error.is::<Mistakes>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}

/// What the error and its causes say, each thing once: some causes are part of what they cause.
fn in_full(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |mut text, cause| {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
        text
    })
}

/// What to do about a failure of the client library.
fn advice(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| cause.downcast_ref::<client::Error>()).and_then(advice_on)
}

fn advice_on(error: &client::Error) -> Option<String> {
    if let client::Error::DeliveryTimeout { last: Some(last), .. } = error
        && let Some(advice) = advice_on(last)
    {
        return Some(advice);
    }
    if let client::Error::Unreachable { .. } = error {
        return Some(
            "is a broker running there? Start one with `streambus serve`, or name another with --broker HOST:PORT"
                .to_owned(),
        );
    }
    if let client::Error::Status { .. } | client::Error::Connection { .. } = error {
        return Some("is this the gRPC port of a StreamBus broker? It is 9092 by default".to_owned());
    }
    if let client::Error::Timeout { .. } | client::Error::DeliveryTimeout { .. } = error {
        return Some(
            "a broker may be stopped, cut off or overloaded, or too few may be left to agree: look at /health on its HTTP port and at \
             `streambus cluster status` (ask another broker with --broker HOST:PORT if this one does not answer), or wait longer \
             with --timeout"
                .to_owned(),
        );
    }
    let text = match error.code()? {
        ErrorCode::UnknownTopic => {
            "`streambus topic list` names the topics; `streambus topic create NAME` makes one"
        }
        ErrorCode::UnknownPartition => "`streambus topic describe NAME` shows the partitions",
        ErrorCode::TopicExists => "to change it, use `streambus topic alter`",
        ErrorCode::RecordTooLarge => {
            "to allow larger records, use `streambus topic alter NAME --record-bytes-max SIZE`"
        }
        ErrorCode::BatchTooLarge => {
            "make batches smaller, or use `streambus topic alter NAME --batch-bytes-max SIZE`"
        }
        ErrorCode::CodecNotAllowed => "choose one that it allows with --compression",
        ErrorCode::OffsetOutOfRange => "`streambus topic offsets NAME` shows which offsets there are",
        ErrorCode::UnknownGroup => {
            "`streambus group list` names the groups; one is made when its first member joins"
        }
        ErrorCode::GroupNotEmpty => "`streambus group describe NAME` shows the members",
        ErrorCode::GroupKindMismatch => {
            "`streambus group list` shows of which kind it is: members of share groups use --share, others do not; or use \
             another name"
        }
        ErrorCode::MemberFenced => {
            "the partition or the member's place was given to somebody else; what was not committed is read again"
        }
        ErrorCode::DiskFull => "free some space on the broker's disk; it recovers by itself",
        ErrorCode::NotReady => "the broker is starting or stopping; try again in a moment",
        ErrorCode::NotLeader => {
            "no leader was found in time: `streambus cluster status` shows which brokers are away and what has no leader"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn advice_is_found_below_added_context() {
        let error = client::Error::UnknownTopic { topic: "orders".to_owned() };
        let error = Err::<(), _>(error).context("cannot produce").unwrap_err();
        assert!(advice(&error).expect("advice").contains("topic create"));
    }

    #[test]
    fn a_record_that_was_not_delivered_in_time_is_advised_on_by_what_held_it_up() {
        let full = client::Error::Broker {
            code: ErrorCode::DiskFull,
            message: "the disk is full".to_owned(),
            retry_after: None,
            may_have_been_written: false,
        };
        let late = |last| client::Error::DeliveryTimeout {
            after: std::time::Duration::from_secs(1),
            may_have_been_written: false,
            last,
        };
        assert!(advice_on(&late(Some(Box::new(full)))).expect("advice").contains("free some space"));
        assert!(advice_on(&late(None)).expect("advice").contains("cluster status"));
    }

    #[test]
    fn a_cause_that_was_told_already_is_not_repeated() {
        let error = anyhow::anyhow!("in use").context("cannot listen: in use").context("cannot start");
        assert_eq!(in_full(&error), "cannot start: cannot listen: in use");
    }

    #[test]
    fn a_mistake_in_the_command_is_told_from_a_failure() {
        assert_eq!(tell(&anyhow::Error::new(Usage("no".to_owned()))), ExitCode::from(USAGE));
        assert_eq!(tell(&anyhow::anyhow!("no")), ExitCode::FAILURE);
        assert_eq!(tell(&anyhow::Error::new(Closed)), ExitCode::SUCCESS);
    }
}
