//! What the coordinators of consumer groups agree on, and the machines that they run in memory.
//!
//! Pure and deterministic: no I/O, no clock, no chance, no unordered iteration. Time is an argument.
//!
//! | file | idea |
//! |---|---|
//! | `state` | groups, and the commands that change them |
//! | `share` | how far a share group is with a partition: what is done, what was tried how often |
//! | `codec` | stored forms |
//! | [`membership`], [`assignment`] | in memory: who is in a consumer group, and who should read which partition |
//! | `leases` | in memory: who has which records of a share group |
//!
//! A group belongs to one shard, which its name chooses ([`shard_of`]). Partitions are named by [`TopicId`], so a topic
//! that is deleted and created again inherits nothing.

pub mod assignment;
mod codec;
mod leases;
pub mod membership;
mod share;
mod state;
#[cfg(test)]
mod tests;

pub use codec::{Entry, decode_entry, encode_entry, put_term};
pub use leases::{Dead, DeathReason, Lease, LeaseExpired, LeaseSpec, Leases, Returned, Trimmed};
pub use share::{Attempts, OffsetRange, Progress, ShareUpdate};
pub use state::{Command, Committed, Group, Kind, Outcome, State};

use crate::metadata::TopicId;

/// Longest metadata of a committed offset, in bytes.
pub const METADATA_BYTES_MAX: usize = 4 << 10;
/// Longest group name, in bytes.
const NAME_BYTES_MAX: usize = 249;

/// A partition of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey {
    /// The topic.
    pub topic: TopicId,
    /// The partition's number.
    pub partition: u32,
}

/// An open stream of a member, as the broker that holds it has numbered it. Never used twice by a coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Why a command was refused, or could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name breaks a rule of group names.
    #[error("group name {name:?} {problem}")]
    InvalidName {
        /// The name.
        name: String,
        /// The rule it breaks.
        problem: &'static str,
    },
    /// There is no group of that name.
    #[error("there is no group {0:?}")]
    UnknownGroup(String),
    /// The group is not of the kind that the command is for.
    #[error("group {group:?} is a {kind} group")]
    KindMismatch {
        /// The group.
        group: String,
        /// What it is.
        kind: Kind,
    },
    /// The metadata of an offset is too long.
    #[error("metadata of {bytes} bytes is longer than {METADATA_BYTES_MAX}")]
    MetadataTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The command contradicts itself, or stored bytes are not of this format.
    #[error("malformed: {0}")]
    Malformed(String),
}

/// Checks a group name, by the rules of topic names: 1 to 249 of `a-z A-Z 0-9 . _ -`, not `.` or `..`, not beginning
/// with `__`.
///
/// # Errors
/// [`Error::InvalidName`], which says what is wrong.
pub fn validate_group_name(name: &str) -> Result<(), Error> {
    let invalid = |problem| Err(Error::InvalidName { name: name.chars().take(300).collect(), problem });
    if name.is_empty() {
        return invalid("is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return invalid("is longer than 249 bytes");
    }
    if name == "." || name == ".." {
        return invalid("is not allowed: `.` and `..` are directory names");
    }
    if name.starts_with("__") {
        return invalid("begins with `__`, which is reserved for internal groups");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return invalid("has a character other than `a-z A-Z 0-9 . _ -`");
    }
    Ok(())
}

/// Checks the length of the metadata of a committed offset.
///
/// # Errors
/// [`Error::MetadataTooLong`].
pub fn validate_metadata(metadata: &str) -> Result<(), Error> {
    match metadata.len() {
        bytes if bytes > METADATA_BYTES_MAX => Err(Error::MetadataTooLong { bytes }),
        _ => Ok(()),
    }
}

/// The shard, from 0, of a group among `shards`: [`crate::record::partition_for_key`] of the name's bytes. What is stored
/// depends on it, so it never changes.
#[must_use]
pub fn shard_of(group: &str, shards: u32) -> u32 {
    crate::record::partition_for_key(group.as_bytes(), shards)
}
