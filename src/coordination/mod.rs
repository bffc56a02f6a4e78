//! What the coordinators of consumer groups agree on, and the machines that they run in memory.
//!
//! Pure and deterministic: no I/O, no clock, no chance, no unordered iteration. Time is an argument.
//!
//! | file | idea |
//! |---|---|
//! | `assignment` | which member should read which partition |
//! | `membership` | who is in a group and who owns what, from join to leave |

pub mod assignment;
pub mod membership;

use crate::metadata::TopicId;

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
