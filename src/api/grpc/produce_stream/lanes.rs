//! Queues of waiting batches, one per partition.

use std::collections::{HashMap, VecDeque};

/// Identifies a lane until it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaneId(usize);

/// Entries in the order of their partitions: an entry leaves only when it is ready and all earlier ones of its lane
/// have left. A partition that stalls holds up nobody else.
pub(super) struct Lanes<T> {
    lanes: Vec<Lane<T>>,
    /// Lanes with entries.
    busy: Vec<usize>,
    by_partition: HashMap<String, HashMap<u32, usize>>,
    /// The lane of the last entry. Most streams send runs to one partition.
    last: usize,
    len: usize,
}

struct Lane<T> {
    topic: String,
    partition: u32,
    entries: VecDeque<T>,
}

/// Lanes without entries that are kept for the entries to come.
const IDLE_LANES_MAX: usize = 4_096;

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Lanes { lanes: Vec::new(), busy: Vec::new(), by_partition: HashMap::new(), last: 0, len: 0 }
    }
}

impl<T> Lanes<T> {
    /// Number of entries in all lanes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The lane of a partition, made if there is none. It must be used before the next call.
    pub(super) fn of(&mut self, topic: &str, partition: u32) -> LaneId {
        let is_last = |lane: &Lane<T>| lane.partition == partition && lane.topic == topic;
        if !self.lanes.get(self.last).is_some_and(is_last) {
            self.last = self.find(topic, partition).unwrap_or_else(|| self.add(topic, partition));
        }
        LaneId(self.last)
    }

    fn find(&self, topic: &str, partition: u32) -> Option<usize> {
        self.by_partition.get(topic)?.get(&partition).copied()
    }

    fn add(&mut self, topic: &str, partition: u32) -> usize {
        // Names that clients make up must not collect. The number of busy lanes is bounded by the window.
        if self.lanes.len() >= IDLE_LANES_MAX + 2 * self.busy.len() {
            self.forget_idle();
        }
        let index = self.lanes.len();
        self.lanes.push(Lane { topic: topic.to_owned(), partition, entries: VecDeque::new() });
        self.by_partition.entry(topic.to_owned()).or_default().insert(partition, index);
        index
    }

    fn forget_idle(&mut self) {
        let mut old: Vec<Option<Lane<T>>> = std::mem::take(&mut self.lanes).into_iter().map(Some).collect();
        self.by_partition = HashMap::new();
        for index in &mut self.busy {
            let Some(lane) = old[*index].take() else { continue };
            *index = self.lanes.len();
            self.by_partition.entry(lane.topic.clone()).or_default().insert(lane.partition, *index);
            self.lanes.push(lane);
        }
    }

    pub(super) fn push(&mut self, lane: LaneId, entry: T) {
        let entries = &mut self.lanes[lane.0].entries;
        if entries.is_empty() {
            self.busy.push(lane.0);
        }
        entries.push_back(entry);
        self.len += 1;
    }

    /// Offers the first entry of each lane, and removes it and offers the next one while `take` returns true.
    pub(super) fn drain_ready(&mut self, mut take: impl FnMut(&mut T) -> bool) {
        let (lanes, len) = (&mut self.lanes, &mut self.len);
        self.busy.retain(|lane| {
            let entries = &mut lanes[*lane].entries;
            while let Some(first) = entries.front_mut() {
                if !take(first) {
                    return true;
                }
                entries.pop_front();
                *len -= 1;
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_within_a_partition_and_not_across_partitions() {
        let mut lanes = Lanes::default();
        for (partition, entry) in [(0, "a0"), (1, "b0"), (0, "a1"), (1, "b1")] {
            let lane = lanes.of("orders", partition);
            lanes.push(lane, entry);
        }
        let mut left = Vec::new();
        lanes.drain_ready(|entry| {
            let ready = *entry != "a0";
            if ready {
                left.push(*entry);
            }
            ready
        });
        assert_eq!(left, ["b0", "b1"]);
        assert_eq!(lanes.len(), 2);
        lanes.drain_ready(|_| true);
        assert!(lanes.is_empty());
    }

    #[test]
    fn partitions_of_different_topics_have_lanes_of_their_own() {
        let mut lanes = Lanes::<()>::default();
        let lane = lanes.of("orders", 0);
        assert_ne!(lane, lanes.of("invoices", 0));
        assert_eq!(lane, lanes.of("orders", 0));
    }

    #[test]
    fn names_that_are_made_up_do_not_collect() {
        let mut lanes = Lanes::default();
        for number in 0..3 * IDLE_LANES_MAX as u32 {
            let lane = lanes.of("made up", number);
            lanes.push(lane, ());
            lanes.drain_ready(|()| true);
        }
        assert!(lanes.lanes.len() <= IDLE_LANES_MAX);
    }

    #[test]
    fn nor_do_they_while_a_partition_stalls() {
        let mut lanes = Lanes::default();
        let stalled = lanes.of("orders", 0);
        lanes.push(stalled, "first");
        for number in 0..3 * IDLE_LANES_MAX as u32 {
            let lane = lanes.of("made up", number);
            lanes.push(lane, "refused");
            lanes.drain_ready(|entry| *entry == "refused");
        }
        assert!(lanes.lanes.len() <= IDLE_LANES_MAX + 2);
        let stalled = lanes.of("orders", 0);
        lanes.push(stalled, "second");
        let mut left = Vec::new();
        lanes.drain_ready(|entry| {
            left.push(*entry);
            true
        });
        assert_eq!(left, ["first", "second"]);
    }
}
