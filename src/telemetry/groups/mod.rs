//! Consumer groups: how far they are, what they commit, how they share partitions, what they could not process.
//!
//! * [`ConsumerGroups`] are the instruments without a group label; [`GroupMetrics`] is the handle of one group.
//! * [`GroupLevels`] are read from the owner of the groups at each collection.
//!
//! A group that is removed has no series any more, its histograms included; see [`super::histograms`].

mod levels;
mod series;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use levels::{GroupLag, GroupLevels};
pub use series::GroupMetrics;

use self::levels::Levels;
use self::series::Registry;
use super::catalog;
use super::instruments::{Counts, Distribution, Instruments, Observer, label};
use super::traceparent::TraceIds;

label! {
    /// What became of an offset that a member asked to commit.
    CommitOutcome, "outcome" {
        /// It is replicated.
        Committed = "committed",
        /// The member or its epoch does not own the partition any more.
        Fenced = "fenced",
        /// The request is wrong, or not allowed.
        Refused = "refused",
        /// The broker could not do it, or does not know whether it did.
        Failed = "failed",
    }
}

label! {
    /// Why it had to be computed anew which member of a group has which partitions.
    RebalanceCause, "cause" {
        /// A member joined.
        Joined = "joined",
        /// A member left.
        Left = "left",
        /// A member was not heard of for too long.
        SessionTimeout = "session_timeout",
        /// A member did not release a partition in time.
        ReleaseTimeout = "release_timeout",
        /// Topics or partitions came or went, or a member wants others.
        TopicsChanged = "topics_changed",
        /// A static member came back under a new connection.
        Replaced = "replaced",
        /// Another broker coordinates the group now.
        FailOver = "fail_over",
    }
}

label! {
    /// How a lease of a share group was ended or extended.
    AckKind, "kind" {
        /// The message is processed.
        Accept = "accept",
        /// Another member, or the same later, should have it.
        Release = "release",
        /// Nobody can process it.
        Reject = "reject",
        /// Its member needs more time.
        Extend = "extend",
        /// Its member let the time run out.
        Expire = "expire",
    }
}

label! {
    /// How far a message's way was when its age was taken.
    DeliveryStage, "stage" {
        /// It was handed to a member of the group.
        Delivered = "delivered",
        /// The group committed or acknowledged it.
        Acknowledged = "acknowledged",
    }
}

/// Instruments of consumer groups.
#[derive(Debug)]
pub struct ConsumerGroups {
    commits: Counts<CommitOutcome>,
    commit_latency: Distribution,
    rebalances: Counts<RebalanceCause>,
    rebalance_time: Distribution,
    levels: Levels,
    pub(super) series: Arc<Registry>,
}

impl ConsumerGroups {
    pub(super) fn new(instruments: &Instruments) -> Self {
        ConsumerGroups {
            commits: instruments.counts(catalog::GROUP_COMMITS),
            commit_latency: instruments.distribution(catalog::COMMIT_LATENCY),
            rebalances: instruments.counts(catalog::GROUP_REBALANCES),
            rebalance_time: instruments.distribution(catalog::GROUP_REBALANCE_TIME),
            levels: Levels::new(instruments),
            series: Registry::new(instruments),
        }
    }

    /// One offset of a commit was answered with `outcome`.
    pub fn committed(&self, outcome: CommitOutcome) {
        self.commits.add(outcome, 1);
    }

    /// A commit request is answered, however; it took this long since it was received. `trace` names the span of the
    /// request or stream if it is sampled.
    pub fn commit_answered(&self, took: Duration, trace: Option<TraceIds>) {
        self.commit_latency.record_duration(took, trace);
    }

    /// A group's assignment was computed anew.
    pub fn rebalanced(&self, cause: RebalanceCause) {
        self.rebalances.add(cause, 1);
    }

    /// Every member of a group has what it should have, this long after the first change that is over with it.
    pub fn settled(&self, took: Duration) {
        self.rebalance_time.record_duration(took, None);
    }

    pub(super) fn observe(&self, observer: Observer<GroupLevels>) {
        self.levels.observe(observer);
    }
}
