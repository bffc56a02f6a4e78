//! What is printed.

use std::fmt;
use std::time::Duration;

use serde_json::json;

use super::Settle;

/// The line.
pub(super) struct Report {
    pub(super) settle: Settle,
    /// From the first attempt to join until every member was in its group.
    pub(super) joined: Duration,
    /// From then until the last member heard its final assignment.
    pub(super) settled: Duration,
    /// From the deaths until the last member heard what it inherits.
    pub(super) resettled: Duration,
    /// Partitions that have another owner after the deaths.
    pub(super) moved: usize,
    /// Those of them that living members had, and those that living members had to give up.
    pub(super) moved_of_others: usize,
    /// The largest gap between deliveries of a partition while nothing happened.
    pub(super) gap_before: Duration,
    /// The same from the deaths on, of partitions that did not move.
    pub(super) gap: Duration,
    /// The largest gap between acknowledged records of a partition at the same time.
    pub(super) produce_gap: Duration,
    pub(super) sync: Option<String>,
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
            "resettled_ms": millis(self.resettled),
            "moved": self.moved,
            "moved_of_others": self.moved_of_others,
            "every_ms": millis(settle.every.0),
            "gap_before_ms": millis(self.gap_before),
            "gap_ms": millis(self.gap),
            "produce_gap_ms": millis(self.produce_gap),
            "sync": self.sync,
            "threads": settle.threads,
        })
        .fmt(f)
    }
}

/// With one decimal.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}
