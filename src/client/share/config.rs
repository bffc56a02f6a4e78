//! How a member of a share group behaves.

use std::time::Duration;

use crate::client::member::duration;
use crate::client::{CodecSet, Error, OffsetReset};
use crate::proto::v1;
use crate::record::Codec;

/// How a member of a share group behaves. [`ShareConfig::new`] has the defaults:
///
/// ```
/// # use streambus::client::ShareConfig;
/// # use std::time::Duration;
/// let config = ShareConfig { lease: Duration::from_secs(120), ..ShareConfig::new("mailer", ["mails"]) };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareConfig {
    /// Name of the group, by the rules of topic names. It is created if it does not exist.
    pub group: String,
    /// Topics to read; they need not exist yet. Topics or a pattern must be given.
    pub topics: Vec<String>,
    /// Reads also the topics whose whole name matches this regular expression, those created later included.
    /// Default none.
    pub topic_pattern: Option<String>,
    /// Names the member within its group, in at most 255 bytes. Default: the broker chooses a name.
    pub member_id: Option<String>,
    /// Where the member runs. Default nowhere.
    pub rack: Option<String>,
    /// What the program calls itself, for people who look at the group. Default: the client's
    /// [`client_id`](crate::client::ClientConfig::client_id).
    pub client_id: Option<String>,
    /// A member of which nothing was heard for this long is removed. Default 30 s.
    pub session_timeout: Duration,
    /// How long the member may take to give up a partition. Default 30 s, at most 1 h.
    pub rebalance_timeout: Duration,
    /// Where a new group begins, and where this member goes on if records were deleted that are not done and that no
    /// member has. [`OffsetReset::Earliest`], the default: with what is left. [`OffsetReset::Latest`]: too, but if also
    /// records were deleted that had never been delivered, after all those that are there by then. [`OffsetReset::Fail`]:
    /// the partition gives an `OffsetOutOfRange` error, and nothing more to this member until the group's offset is reset.
    pub offset_reset: OffsetReset,
    /// Bytes of batches that the broker may send ahead of what is handed out. The last batch may exceed it.
    /// Default 8 MiB.
    pub credit_bytes: u64,
    /// Records that may be delivered to the member and not yet acknowledged. Zero: what the broker has as its default,
    /// 500.
    pub in_flight_records_max: u32,
    /// Codecs that batches may arrive in; the broker decompresses the others. Default all.
    pub accepted_codecs: CodecSet,
    /// Largest batch after decompression that is accepted, in bytes. Default 64 MiB.
    pub uncompressed_bytes_max: usize,
    /// How long a delivered record is leased to the member; it is delivered again if it was not acknowledged by then.
    /// Default 30 s, from 1 s to 1 h.
    pub lease: Duration,
    /// Extends the leases of all records that the member has, again and again, until they are acknowledged or dropped.
    /// A program that hangs keeps its records then for as long as it lives. Default off.
    pub auto_extend: bool,
    /// How often a record is delivered before it goes to the dead-letter topic. Default 5, at most 1,000.
    pub deliveries_max: u32,
    /// Where records go that were delivered too often or were rejected. Default: the group's name followed by
    /// `.dead-letter`.
    pub dead_letter_topic: Option<String>,
}

impl ShareConfig {
    /// A member of `group` that reads `topics`.
    pub fn new<T: Into<String>>(group: impl Into<String>, topics: impl IntoIterator<Item = T>) -> Self {
        ShareConfig {
            group: group.into(),
            topics: topics.into_iter().map(Into::into).collect(),
            topic_pattern: None,
            member_id: None,
            rack: None,
            client_id: None,
            session_timeout: Duration::from_secs(30),
            rebalance_timeout: Duration::from_secs(30),
            offset_reset: OffsetReset::Earliest,
            credit_bytes: 8 << 20,
            in_flight_records_max: 0,
            accepted_codecs: CodecSet::ALL,
            uncompressed_bytes_max: 64 << 20,
            lease: Duration::from_secs(30),
            auto_extend: false,
            deliveries_max: 5,
            dead_letter_topic: None,
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
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.lease) {
            return invalid("lease", "it must be from 1 s to 1 h");
        }
        if self.deliveries_max == 0 {
            return invalid("deliveries_max", "it must be at least 1");
        }
        Ok(())
    }

    /// The request to join, under the name that the member has.
    pub(super) fn request(&self, member_id: String) -> v1::JoinGroup {
        v1::JoinGroup {
            group: self.group.clone(),
            member_id,
            instance_id: String::new(),
            rack: self.rack.clone().unwrap_or_default(),
            topics: self.topics.clone(),
            topic_pattern: self.topic_pattern.clone().unwrap_or_default(),
            credit_bytes: self.credit_bytes,
            in_flight_records_max: self.in_flight_records_max,
            session_timeout: duration(self.session_timeout),
            rebalance_timeout: duration(self.rebalance_timeout),
            offset_reset: self.offset_reset.for_group().into(),
            accepted_codecs: self.accepted_codecs.iter().map(Codec::number).collect(),
            share: Some(v1::ShareOptions {
                lease: duration(self.lease),
                deliveries_max: self.deliveries_max,
                dead_letter_topic: self.dead_letter_topic.clone().unwrap_or_default(),
            }),
            client_id: self.client_id.clone().unwrap_or_default(),
        }
    }
}
