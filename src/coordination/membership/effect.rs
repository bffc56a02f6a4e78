//! What follows from something that happens to a group.

use std::sync::Arc;
use std::time::Duration;

use super::super::{PartitionKey, SessionId};

/// Something to do after a change, in the order in which it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A member is in the group. Comes before anything else that its session is told.
    Joined {
        /// Its session.
        session: SessionId,
        /// Its id.
        member: Arc<str>,
        /// Its epoch.
        epoch: u64,
    },
    /// A member owns partitions from now on, beside those that it has.
    Assign {
        /// Its session.
        session: SessionId,
        /// Its epoch from now on.
        epoch: u64,
        /// What is new, ascending.
        partitions: Vec<PartitionKey>,
    },
    /// A member is to give up partitions, and to say so with [`release`](super::Membership::release).
    Revoke {
        /// Its session.
        session: SessionId,
        /// Its epoch from now on.
        epoch: u64,
        /// What is taken, ascending.
        partitions: Vec<PartitionKey>,
        /// How long it may take.
        deadline: Duration,
    },
    /// A session is not a member's any more.
    Fence {
        /// The session.
        session: SessionId,
        /// Why.
        reason: FenceReason,
    },
    /// A sign of life is wanted.
    Keepalive {
        /// From this session.
        session: SessionId,
    },
    /// Who should have which partitions was computed anew.
    Rebalanced {
        /// What made it necessary.
        cause: Cause,
    },
    /// Every member has what it should have.
    Settled {
        /// Since the first change after which not everybody had.
        took: Duration,
    },
    /// The last member is gone. A group that gets members again in the same term must go on from
    /// [`epoch`](super::Membership::epoch); see [`continuing`](super::Membership::continuing).
    Empty,
}

/// Why a session is not a member's any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FenceReason {
    /// A newer stream has the same member id or instance id.
    Replaced,
    /// Nothing was heard of the member.
    SessionTimeout,
    /// The member kept a partition that it was told to give up.
    ReleaseTimeout,
    /// Another broker coordinates the group now, or this one in another term. Not found out here, but by whoever knows
    /// of terms.
    CoordinatorChanged,
}

impl std::fmt::Display for FenceReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FenceReason::Replaced => "a newer stream with the same member id or instance id has replaced it",
            FenceReason::SessionTimeout => "nothing was heard of it within its session timeout",
            FenceReason::ReleaseTimeout => {
                "it did not release revoked partitions within its rebalance timeout"
            }
            FenceReason::CoordinatorChanged => "the coordinator of the group has changed",
        })
    }
}

/// Why the assignment of a group was computed anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// A member joined.
    Joined,
    /// A member left, or the stream of one that is not static ended.
    Left,
    /// A member was not heard of for too long.
    SessionTimeout,
    /// A member did not release a partition in time.
    ReleaseTimeout,
    /// Topics or partitions came or went, or a member came back that reads others than before.
    TopicsChanged,
    /// A newer stream took a member's place.
    Replaced,
}

/// Why a member may not commit an offset of a partition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fenced {
    /// There is no such member, or not any more.
    #[error("the group has no member {member:?}")]
    UnknownMember {
        /// The id.
        member: String,
    },
    /// Another stream has taken the member's place.
    #[error("a newer stream of the member has replaced this one")]
    Replaced,
    /// The member was never told of this epoch.
    #[error("epoch {epoch} is not the member's: its newest is {newest}")]
    UnknownEpoch {
        /// The epoch that was given.
        epoch: u64,
        /// The member's newest.
        newest: u64,
    },
    /// The partition is not the member's.
    #[error("the partition is {}", match owner { Some(owner) => format!("owned by member {owner:?}"), None => "owned by nobody".to_owned() })]
    NotOwner {
        /// Whose it is.
        owner: Option<Arc<str>>,
    },
    /// The partition is the member's, but was not in that epoch: somebody else, or an earlier stream of the
    /// member, may have had it since.
    #[error("epoch {epoch} is stale: the member owns the partition since epoch {since}")]
    StaleEpoch {
        /// The epoch that was given.
        epoch: u64,
        /// Since when the member owns it without interruption.
        since: u64,
    },
}
