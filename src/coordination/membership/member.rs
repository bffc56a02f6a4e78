//! A member: what it says of itself, what is known of it, and what people see of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::{PartitionKey, SessionId};
use super::topics::TopicFilter;
use crate::metadata::TopicId;

/// A member, as it describes itself when it joins.
#[derive(Clone, Debug)]
pub struct MemberSpec {
    /// Its id within the group.
    pub member_id: Arc<str>,
    /// Makes it static: if its stream ends without [`leave`](super::Membership::leave), it keeps its partitions until its
    /// session times out, and whoever joins with the same instance id by then takes its place.
    pub instance_id: Option<Arc<str>>,
    /// Where it runs.
    pub rack: Option<Arc<str>>,
    /// What the program calls itself.
    pub client_id: Option<Arc<str>>,
    /// What it wants to read.
    pub topics: TopicFilter,
    /// It is removed when nothing is heard of it for so long.
    pub session_timeout: Duration,
    /// It is fenced when it does not release a partition for so long.
    pub rebalance_timeout: Duration,
}

/// A group, as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its epoch.
    pub epoch: u64,
    /// Its members by id.
    pub members: Vec<MemberDescription>,
}

/// A member, as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDescription {
    /// See [`MemberSpec`].
    pub member_id: Arc<str>,
    /// See [`MemberSpec`].
    pub instance_id: Option<Arc<str>>,
    /// See [`MemberSpec`].
    pub client_id: Option<Arc<str>>,
    /// See [`MemberSpec`].
    pub rack: Option<Arc<str>>,
    /// Its epoch.
    pub epoch: u64,
    /// False while a static member is away.
    pub connected: bool,
    /// What it owns and may keep, ascending.
    pub assigned: Vec<PartitionKey>,
    /// What it owns and is to give up, ascending.
    pub revoking: Vec<PartitionKey>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) spec: MemberSpec,
    /// The topics that it wants and that exist.
    pub(super) reads: BTreeSet<TopicId>,
    /// The newest stream.
    pub(super) session: SessionId,
    /// Whether that stream is open. Only static members stay without one.
    pub(super) connected: bool,
    /// When something was heard of it, its stream's end included.
    pub(super) heard: Instant,
    /// When it was asked for a sign of life since then.
    pub(super) asked: Option<Instant>,
    pub(super) epoch: u64,
}

impl Member {
    /// When it is removed, if nothing is heard of it. None before it was asked for a sign of life, if it can be: a coordinator
    /// that was held up must not take its own silence for that of members. They have as long to answer as if they had been
    /// asked in time.
    pub(super) fn times_out(&self) -> Option<Instant> {
        match self.connected {
            true => self.asked.map(|asked| asked + (self.spec.session_timeout - self.asked_after())),
            false => Some(self.heard + self.spec.session_timeout),
        }
    }

    /// When it is to be asked for a sign of life. None if it was, or cannot be.
    pub(super) fn asks(&self) -> Option<Instant> {
        (self.connected && self.asked.is_none()).then(|| self.heard + self.asked_after())
    }

    fn asked_after(&self) -> Duration {
        self.spec.session_timeout / 3
    }
}
