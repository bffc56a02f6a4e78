//! Positions as they are written on the command line.

use std::str::FromStr;
use std::time::SystemTime;

use crate::client::{Client, Offset, Position, TopicPartition};

/// `earliest`, `latest`, an offset, an RFC 3339 time, or `@` and milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PositionArg(pub(super) Position);

/// Why a position cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "write earliest, latest, an offset such as 1500, a time such as 2026-01-31T12:00:00Z, or @ and Unix milliseconds \
     such as @1767225600000"
)]
pub(super) struct Malformed;

impl FromStr for PositionArg {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let position = match text {
            "earliest" => Position::Earliest,
            "latest" => Position::Latest,
            _ => {
                if let Some(millis) = text.strip_prefix('@') {
                    Position::Time(from_millis(millis.parse().map_err(|_| Malformed)?).ok_or(Malformed)?)
                } else if let Ok(offset) = text.parse() {
                    Position::Offset(Offset(offset))
                } else {
                    Position::Time(from_rfc_3339(text).ok_or(Malformed)?)
                }
            }
        };
        Ok(PositionArg(position))
    }
}

/// An RFC 3339 time, or `@` and milliseconds since the Unix epoch.
pub(super) fn time(text: &str) -> Result<SystemTime, &'static str> {
    match text.parse() {
        Ok(PositionArg(Position::Time(time))) => Ok(time),
        _ => Err(
            "write a time such as 2026-01-31T12:00:00Z, or @ and Unix milliseconds such as @1767225600000",
        ),
    }
}

fn from_millis(millis: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(millis))
}

fn from_rfc_3339(text: &str) -> Option<SystemTime> {
    text.parse::<prost_types::Timestamp>().ok()?.try_into().ok()
}

/// The partitions of `topic` that are meant: those in `chosen`, or all if it is empty.
///
/// # Errors
/// If the topic or one of the partitions does not exist.
pub(super) async fn partitions(
    client: &Client,
    topic: &str,
    chosen: &[u32],
) -> anyhow::Result<Vec<TopicPartition>> {
    let all = client.partitions(topic).await?;
    if chosen.is_empty() {
        return Ok(all);
    }
    let mut numbers = chosen.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    let find = |number: u32| {
        let found = all.iter().find(|at| at.partition == number).cloned();
        found.ok_or_else(|| crate::client::Error::UnknownPartition {
            topic: topic.to_owned(),
            partition: number,
            partitions: u32::try_from(all.len()).unwrap_or(u32::MAX),
        })
    };
    Ok(numbers.into_iter().map(find).collect::<Result<_, _>>()?)
}

/// The offsets of `position` in each of `partitions`.
///
/// # Errors
/// If the broker cannot tell one of them.
pub(super) async fn resolve(
    client: &Client,
    partitions: &[TopicPartition],
    position: Position,
) -> anyhow::Result<Vec<Offset>> {
    if let Position::Offset(offset) = position {
        return Ok(vec![offset; partitions.len()]);
    }
    let positions: Vec<_> = partitions.iter().map(|at| (at.clone(), position)).collect();
    let offsets = client.admin().list_offsets(&positions).await?;
    Ok(offsets.into_iter().collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(text: &str) -> Option<Position> {
        text.parse::<PositionArg>().ok().map(|arg| arg.0)
    }

    fn seconds(seconds: u64) -> Position {
        Position::Time(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn every_form_is_understood() {
        assert_eq!(parse("earliest"), Some(Position::Earliest));
        assert_eq!(parse("latest"), Some(Position::Latest));
        assert_eq!(parse("0"), Some(Position::Offset(Offset(0))));
        assert_eq!(parse("1357034400000"), Some(Position::Offset(Offset(1_357_034_400_000))));
        assert_eq!(parse("@1357034400000"), Some(seconds(1_357_034_400)));
        assert_eq!(parse("2013-01-01T10:00:00Z"), Some(seconds(1_357_034_400)));
        assert_eq!(parse("2013-01-01T12:00:00+02:00"), Some(seconds(1_357_034_400)));
    }

    #[test]
    fn a_time_is_no_other_position() {
        assert!(time("@1357034400000").is_ok() && time("2013-01-01T10:00:00Z").is_ok());
        assert!(time("earliest").is_err() && time("1357034400000").is_err());
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "-1", "first", "@", "@-5", "@soon", "2013-13-01T00:00:00Z", "18446744073709551616"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
