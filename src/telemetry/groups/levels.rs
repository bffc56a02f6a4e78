//! The levels of consumer groups, read at each collection.

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry::KeyValue;

use crate::telemetry::catalog::{self, GROUPS_MAX, LAGS_MAX};
use crate::telemetry::instruments::{Collection, Instruments, Observer, Slot};

/// Levels of the consumer groups that this broker coordinates.
#[derive(Clone, Debug, Default)]
pub struct GroupLevels {
    /// How many groups.
    pub groups: u64,
    /// How many members they have.
    pub members: u64,
    /// The records on which members hold a lease, for each share group.
    pub leased: Vec<(Arc<str>, u64)>,
    /// The lag of each group in each partition that it has a position in. One entry per group, topic and partition.
    pub lags: Vec<GroupLag>,
}

/// How far a group is behind in one partition.
#[derive(Clone, Debug)]
pub struct GroupLag {
    /// The group.
    pub group: Arc<str>,
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// Messages that the group has still to finish.
    pub messages: u64,
    /// The age in seconds of the oldest of them, 0 if there is none.
    pub seconds: f64,
}

impl GroupLag {
    fn attributes(&self) -> [KeyValue; 3] {
        [
            KeyValue::new("group", self.group.clone()),
            KeyValue::new("partition", i64::from(self.partition)),
            KeyValue::new("topic", self.topic.clone()),
        ]
    }
}

impl GroupLevels {
    /// A number that is another one when series came or went. Does not depend on their order.
    fn fingerprint(&self) -> u64 {
        let mut sum = 0_u64;
        let mut add = |key: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            key(&mut hasher);
            sum = sum.wrapping_add(hasher.finish());
        };
        for (group, _) in &self.leased {
            add(&|hasher| group.hash(hasher));
        }
        for lag in &self.lags {
            add(&|hasher| (&lag.group, &lag.topic, lag.partition).hash(hasher));
        }
        sum
    }
}

/// The rows of [`GroupLevels`].
#[derive(Debug)]
pub(super) struct Levels {
    slot: Slot<GroupLevels>,
    collection: Arc<Collection>,
}

impl Levels {
    pub(super) fn new(instruments: &Instruments) -> Self {
        let slot = instruments.slot();
        instruments.level(catalog::GROUPS, &slot, |levels: &GroupLevels| levels.groups);
        instruments.level(catalog::GROUP_MEMBERS, &slot, |levels| levels.members);
        instruments.each(catalog::GROUP_LEASED, &slot, |levels, sink| {
            let (kept, beyond) = split(&levels.leased, GROUPS_MAX, |(_, records)| *records);
            for (group, records) in &kept {
                sink(*records, &[KeyValue::new("group", group.clone())]);
            }
            if !beyond.is_empty() {
                sink(beyond.iter().map(|(_, records)| records).sum(), &[overflow()]);
            }
        });
        instruments.each(catalog::GROUP_LAG, &slot, |levels, sink| {
            let (kept, beyond) = split(&levels.lags, LAGS_MAX, |lag| lag.messages);
            for lag in &kept {
                sink(lag.messages, &lag.attributes());
            }
            if !beyond.is_empty() {
                sink(beyond.iter().map(|lag| lag.messages).sum(), &[overflow()]);
            }
        });
        instruments.each_f64(catalog::GROUP_LAG_TIME, &slot, |levels, sink| {
            let (kept, beyond) = split(&levels.lags, LAGS_MAX, |lag| lag.messages);
            for lag in &kept {
                sink(lag.seconds, &lag.attributes());
            }
            if !beyond.is_empty() {
                sink(beyond.iter().map(|lag| lag.seconds).fold(0.0, f64::max), &[overflow()]);
            }
        });
        Levels { slot, collection: instruments.collection() }
    }

    /// Replaces the observer. A group or partition that it does not speak of any more is gone at once for all readers.
    pub(super) fn observe(&self, observer: Observer<GroupLevels>) {
        let collection = self.collection.clone();
        let before = AtomicU64::new(GroupLevels::default().fingerprint());
        self.slot.set(Arc::new(move || {
            let levels = observer();
            let now = levels.as_ref().map_or(0, GroupLevels::fingerprint);
            if before.swap(now, Ordering::Relaxed) != now {
                collection.removed();
            }
            levels
        }));
    }
}

fn overflow() -> KeyValue {
    KeyValue::new("otel.metric.overflow", true)
}

/// The `budget - 1` largest of `all` and, if there are more, the others: one series is left for them.
fn split<T>(all: &[T], budget: usize, size: impl Fn(&T) -> u64) -> (Vec<&T>, Vec<&T>) {
    let mut kept: Vec<(usize, &T)> = all.iter().enumerate().collect();
    if kept.len() < budget {
        return (all.iter().collect(), Vec::new());
    }
    // Equals stay in their order, so that all rows draw the line at the same place.
    kept.select_nth_unstable_by_key(budget - 1, |(index, item)| (Reverse(size(item)), *index));
    let beyond = kept.split_off(budget - 1);
    let item = |(_, item)| item;
    (kept.into_iter().map(item).collect(), beyond.into_iter().map(item).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_kept_apart_and_one_series_is_left_for_the_others() {
        let sizes = [5, 9, 7, 9, 1, 7];
        for (budget, kept, beyond) in [
            (7, vec![1, 5, 7, 7, 9, 9], vec![]),
            (6, vec![5, 7, 7, 9, 9], vec![1]),
            (4, vec![7, 9, 9], vec![1, 5, 7]),
            (1, vec![], vec![1, 5, 7, 7, 9, 9]),
        ] {
            let (mut apart, mut others) = split(&sizes, budget, |size| *size);
            apart.sort_unstable();
            others.sort_unstable();
            assert_eq!((apart, others), (kept.iter().collect(), beyond.iter().collect()), "{budget}");
        }
        let (apart, _) = split(&sizes, 4, |size| *size);
        assert!(apart.iter().any(|kept| std::ptr::eq(*kept, &sizes[2])), "the first of equals stays");
    }
}
