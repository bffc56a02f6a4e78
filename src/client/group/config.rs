//! How a member of a consumer group behaves.

use std::time::Duration;

use crate::client::member::duration;
use crate::client::{CodecSet, Error, OffsetReset};
use crate::proto::v1;
use crate::record::Codec;

/// Who commits what was processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitMode {
    /// The consumer does: every `interval`, before it gives up a partition, and when it is closed. A record is
    /// processed when the next one is asked for, or when the handler that
    /// [`process`](super::GroupConsumer::process) runs on it is done; records that were only received are never
    /// committed.
    Auto {
        /// Time between commits.
        interval: Duration,
    },
    /// The program does, with [`commit`](super::GroupConsumer::commit) and its siblings.
    Manual,
}

impl Default for CommitMode {
    fn default() -> Self {
        CommitMode::Auto { interval: Duration::from_secs(5) }
    }
}

/// How a member of a consumer group behaves. [`GroupConfig::new`] has the defaults:
///
/// ```
/// # use streambus::client::{CommitMode, GroupConfig};
/// let config = GroupConfig { commit: CommitMode::Manual, ..GroupConfig::new("billing", ["orders"]) };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// Name of the group, by the rules of topic names. It is created if it does not exist.
    pub group: String,
    /// Topics to read; they need not exist yet. Topics or a pattern must be given.
    pub topics: Vec<String>,
    /// Reads also the topics whose whole name matches this regular expression, those created later included.
    /// Default none.
    pub topic_pattern: Option<String>,
    /// Names the member within its group, in at most 255 bytes. Of two members of the same name the newer replaces the
    /// older. Default: the broker chooses a name.
    pub member_id: Option<String>,
    /// Makes the member static: when it comes back with the same instance id within its session timeout, it gets its
    /// partitions back and nobody else notices. Default none.
    pub instance_id: Option<String>,
    /// Where the member runs; partitions with a replica in the same rack are preferred. Default nowhere.
    pub rack: Option<String>,
    /// What the program calls itself, for people who look at the group. Default: the client's
    /// [`client_id`](crate::client::ClientConfig::client_id).
    pub client_id: Option<String>,
    /// A member of which nothing was heard for this long is removed and its partitions move. Default 30 s.
    pub session_timeout: Duration,
    /// How long the member may take to give up a partition: to finish the record at hand, call the listener and commit.
    /// Default 30 s, at most 1 h.
    pub rebalance_timeout: Duration,
    /// Where to begin if nothing is committed, or if what is committed was deleted. With [`OffsetReset::Fail`] such a
    /// partition gives an `OffsetOutOfRange` error, and nothing more until its offset is reset. Default earliest.
    pub offset_reset: OffsetReset,
    /// Bytes of batches that the broker may send ahead of what is handed out. The last batch may exceed it.
    /// Default 8 MiB.
    pub credit_bytes: u64,
    /// Records that may be delivered and not yet committed; delivery pauses above it. With automatic commits the
    /// consumer commits earlier than the interval says if that is what keeps records from coming. Zero, the default, is
    /// no limit.
    pub in_flight_records_max: u32,
    /// Codecs that batches may arrive in; the broker decompresses the others. Default all.
    pub accepted_codecs: CodecSet,
    /// Largest batch after decompression that is accepted, in bytes. Default 64 MiB.
    pub uncompressed_bytes_max: usize,
    /// Who commits. Default: the consumer, every 5 s.
    pub commit: CommitMode,
    /// Commits that may be under way; more wait. Default 64.
    pub commits_in_flight_max: usize,
}

impl GroupConfig {
    /// A member of `group` that reads `topics`.
    pub fn new<T: Into<String>>(group: impl Into<String>, topics: impl IntoIterator<Item = T>) -> Self {
        GroupConfig {
            group: group.into(),
            topics: topics.into_iter().map(Into::into).collect(),
            topic_pattern: None,
            member_id: None,
            instance_id: None,
            rack: None,
            client_id: None,
            session_timeout: Duration::from_secs(30),
            rebalance_timeout: Duration::from_secs(30),
            offset_reset: OffsetReset::Earliest,
            credit_bytes: 8 << 20,
            in_flight_records_max: 0,
            accepted_codecs: CodecSet::ALL,
            uncompressed_bytes_max: 64 << 20,
            commit: CommitMode::default(),
            commits_in_flight_max: 64,
        }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let invalid = |field, reason: &str| Err(Error::InvalidConfig { field, reason: reason.to_owned() });
        if self.topics.is_empty() && self.topic_pattern.is_none() {
            return invalid("topics", "give topics, or a topic_pattern");
        }
        if self.credit_bytes == 0 {
            return invalid("credit_bytes", "it must be at least 1");
        }
        if self.commits_in_flight_max == 0 {
            return invalid("commits_in_flight_max", "it must be at least 1");
        }
        if self.commit == (CommitMode::Auto { interval: Duration::ZERO }) {
            return invalid("commit", "the interval must be longer than nothing");
        }
        Ok(())
    }

    /// The request to join, under the name that the member has.
    pub(super) fn request(&self, member_id: String) -> v1::JoinGroup {
        v1::JoinGroup {
            group: self.group.clone(),
            member_id,
            instance_id: self.instance_id.clone().unwrap_or_default(),
            rack: self.rack.clone().unwrap_or_default(),
            topics: self.topics.clone(),
            topic_pattern: self.topic_pattern.clone().unwrap_or_default(),
            credit_bytes: self.credit_bytes,
            in_flight_records_max: self.in_flight_records_max,
            session_timeout: duration(self.session_timeout),
            rebalance_timeout: duration(self.rebalance_timeout),
            offset_reset: self.offset_reset.for_group().into(),
            accepted_codecs: self.accepted_codecs.iter().map(Codec::number).collect(),
            share: None,
            client_id: self.client_id.clone().unwrap_or_default(),
        }
    }
}
