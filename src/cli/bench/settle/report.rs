//! What is printed.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::Settle;

/// The line.
pub(super) struct Report {
    pub(super) settle: Settle,
    /// From the first attempt to join until every member was in its group.
    pub(super) joined: Duration,
    /// From the first attempt to join until the last member heard its final assignment.
    pub(super) settled: Duration,
    /// While nothing happened.
    pub(super) before: Noticed,
    /// From when members died.
    pub(super) leave: Noticed,
    /// From when they joined again.
    pub(super) join: Noticed,
    pub(super) sync: Option<String>,
}

/// What there was to notice since a moment.
#[derive(Default)]
pub(super) struct Noticed {
    /// Until the last member heard of its final assignment.
    pub(super) settled: Duration,
    /// Partitions that another member has than before.
    pub(super) moved: usize,
    /// Partitions that living members had to give up, and not to one that joined.
    pub(super) needless: usize,
    /// Partitions that get records and that a member has kept, over all groups.
    pub(super) watched: usize,
    /// The largest time between two deliveries of such a partition to its member.
    pub(super) gap: Duration,
    /// The largest time between two acknowledged records of a partition.
    pub(super) produce_gap: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settle = &self.settle;
        json!({
            "peer": "streambus",
            "workload": "settle",
            "groups": settle.groups,
            "members": settle.members,
            "partitions": settle.partitions,
            "joined_ms": millis(self.joined),
            "settled_ms": millis(self.settled),
            "killed": settle.kill,
            "fed": settle.fed,
            "every_ms": millis(settle.every.0),
            "quiet": noticed(&self.before),
            "leave": noticed(&self.leave),
            "join": noticed(&self.join),
            "sync": self.sync,
            "threads": settle.threads,
        })
        .fmt(f)
    }
}

fn noticed(noticed: &Noticed) -> Value {
    json!({
        "settled_ms": millis(noticed.settled),
        "moved": noticed.moved,
        "moved_needlessly": noticed.needless,
        "watched": noticed.watched,
        "gap_ms": millis(noticed.gap),
        "produce_gap_ms": millis(noticed.produce_gap),
    })
}

/// With one decimal.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}
