//! Counters and distributions with a group label.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Duration;

use opentelemetry::KeyValue;

use super::{AckKind, DeliveryStage};
use crate::telemetry::catalog::{self, GROUP_TOPICS_MAX, GROUPS_MAX, Row};
use crate::telemetry::histograms::Series;
use crate::telemetry::instruments::{Collection, Instruments, Label, Sink};

/// The counters and distributions of one consumer group. Hold the handle, do not look it up per batch.
///
/// A handle that outlives its group may still be counted on; nobody reads it any more.
#[derive(Debug)]
pub struct GroupMetrics {
    /// Empty for what the groups beyond the budget share.
    name: Arc<str>,
    /// Whether the group acknowledges messages one by one, and so has the series of share groups.
    share: AtomicBool,
    acknowledgements: Vec<(Vec<KeyValue>, AtomicU64)>,
    delivery: Vec<Series>,
    registry: Weak<Registry>,
}

impl GroupMetrics {
    fn new(name: Arc<str>, label: &KeyValue, registry: Weak<Registry>) -> Self {
        GroupMetrics {
            name,
            share: AtomicBool::new(false),
            acknowledgements: AckKind::all()
                .into_iter()
                .map(|kind| (with(label, kind), AtomicU64::new(0)))
                .collect(),
            delivery: DeliveryStage::all()
                .into_iter()
                .map(|stage| Series::new(catalog::GROUP_DELIVERY, with(label, stage)))
                .collect(),
            registry,
        }
    }

    /// The group is a share group: its series of acknowledgements, redeliveries and dead letters exist from now on, at
    /// zero. Whoever counts one of these says so too.
    pub fn share(&self) {
        self.share.store(true, Ordering::Relaxed);
    }

    /// A batch is handed to a member, this long after it was appended.
    pub fn delivered(&self, since_append: Duration) {
        self.delivery[DeliveryStage::Delivered.index()].record(since_append.as_secs_f64());
    }

    /// A partition's offset is committed, or a range of messages accepted; what it ends with was appended this long ago.
    pub fn acknowledged(&self, since_append: Duration) {
        self.delivery[DeliveryStage::Acknowledged.index()].record(since_append.as_secs_f64());
    }

    /// The lease of this many messages was ended or extended.
    pub fn acknowledgements(&self, kind: AckKind, messages: u64) {
        self.share();
        self.acknowledgements[kind.index()].1.fetch_add(messages, Ordering::Relaxed);
    }

    /// This many messages of `topic` were deleted before the group read them.
    pub fn missed(&self, topic: &str, messages: u64) {
        self.topic(topic).missed.fetch_add(messages, Ordering::Relaxed);
    }

    /// This many messages of `topic` are delivered that were delivered before.
    pub fn redelivered(&self, topic: &str, messages: u64) {
        self.share();
        self.topic(topic).redeliveries.fetch_add(messages, Ordering::Relaxed);
    }

    /// The group gave up on this many messages of `topic`.
    pub fn dead_lettered(&self, topic: &str, messages: u64) {
        self.share();
        self.topic(topic).dead_letters.fetch_add(messages, Ordering::Relaxed);
    }

    fn topic(&self, name: &str) -> Arc<TopicCounts> {
        self.registry.upgrade().map_or_else(Arc::default, |registry| registry.topic(self, name))
    }

    fn show_acknowledgements(&self, sink: &mut Sink<'_, u64>) {
        for (attributes, count) in &self.acknowledgements {
            sink(count.load(Ordering::Relaxed), attributes);
        }
    }
}

/// What one group counted for one topic.
#[derive(Debug, Default)]
struct TopicCounts {
    attributes: Vec<KeyValue>,
    missed: AtomicU64,
    redeliveries: AtomicU64,
    dead_letters: AtomicU64,
}

impl TopicCounts {
    fn new(attributes: Vec<KeyValue>) -> Self {
        TopicCounts { attributes, ..Default::default() }
    }
}

/// The groups that have series.
#[derive(Debug)]
pub(in crate::telemetry) struct Registry {
    live: RwLock<Live>,
    /// Takes what the groups beyond the budget do.
    overflow: Arc<GroupMetrics>,
    /// Takes what the pairs of group and topic beyond the budget do.
    overflow_topic: Arc<TopicCounts>,
    collection: Arc<Collection>,
}

#[derive(Debug, Default)]
struct Live {
    groups: BTreeMap<Arc<str>, Group>,
    /// INVARIANT: how many topics all groups have together.
    pairs: usize,
    /// Whether any group was beyond the budget.
    overflown: bool,
}

#[derive(Debug)]
struct Group {
    metrics: Arc<GroupMetrics>,
    topics: BTreeMap<Box<str>, Arc<TopicCounts>>,
}

impl Registry {
    pub(super) fn new(instruments: &Instruments) -> Arc<Self> {
        let beyond = KeyValue::new("otel.metric.overflow", true);
        let registry = Arc::new_cyclic(|registry| Registry {
            live: RwLock::default(),
            overflow: Arc::new(GroupMetrics::new("".into(), &beyond, registry.clone())),
            overflow_topic: Arc::new(TopicCounts::new(vec![beyond])),
            collection: instruments.collection(),
        });
        registry.pairs(instruments, catalog::GROUP_MISSED, |_| true, |topic| &topic.missed);
        let share = |group: &GroupMetrics| group.share.load(Ordering::Relaxed);
        registry.pairs(instruments, catalog::GROUP_REDELIVERIES, share, |topic| &topic.redeliveries);
        registry.pairs(instruments, catalog::GROUP_DEAD_LETTERS, share, |topic| &topic.dead_letters);
        let weak = Arc::downgrade(&registry);
        instruments.integers(catalog::GROUP_ACKNOWLEDGEMENTS, move |sink| {
            if let Some(registry) = weak.upgrade() {
                registry.each(|group| {
                    if share(group) {
                        group.show_acknowledgements(sink)
                    }
                });
            }
        });
        let weak = Arc::downgrade(&registry);
        instruments.histogram(catalog::GROUP_DELIVERY, move |show| {
            if let Some(registry) = weak.upgrade() {
                registry.each(|group| group.delivery.iter().for_each(&mut *show));
            }
        });
        registry
    }

    /// Shows a counter of each pair whose group is `of`.
    fn pairs(
        self: &Arc<Self>,
        instruments: &Instruments,
        row: Row,
        of: fn(&GroupMetrics) -> bool,
        read: fn(&TopicCounts) -> &AtomicU64,
    ) {
        let weak = Arc::downgrade(self);
        instruments.integers(row, move |sink| {
            let Some(registry) = weak.upgrade() else { return };
            let live = registry.read();
            for group in live.groups.values().filter(|group| of(&group.metrics)) {
                for topic in group.topics.values() {
                    sink(read(topic).load(Ordering::Relaxed), &topic.attributes);
                }
            }
            let beyond = read(&registry.overflow_topic).load(Ordering::Relaxed);
            if beyond > 0 {
                sink(beyond, &registry.overflow_topic.attributes);
            }
        });
    }

    /// Shows each group, and what the groups beyond the budget share if there are any.
    fn each(&self, mut show: impl FnMut(&GroupMetrics)) {
        let live = self.read();
        live.groups.values().for_each(|group| show(&group.metrics));
        if live.overflown {
            show(&self.overflow);
        }
    }

    /// The handle of `name`, made if there is none. Beyond the budget all groups share one handle.
    pub(in crate::telemetry) fn get(self: &Arc<Self>, name: &str) -> Arc<GroupMetrics> {
        if let Some(group) = self.read().groups.get(name) {
            return group.metrics.clone();
        }
        let mut live = self.write();
        if let Some(group) = live.groups.get(name) {
            return group.metrics.clone();
        }
        // One group of the budget is left for the overflow.
        if live.groups.len() + 1 >= GROUPS_MAX {
            live.overflown = true;
            return self.overflow.clone();
        }
        let name: Arc<str> = name.into();
        let label = KeyValue::new("group", name.clone());
        let metrics = Arc::new(GroupMetrics::new(name.clone(), &label, Arc::downgrade(self)));
        live.groups.insert(name, Group { metrics: metrics.clone(), topics: BTreeMap::new() });
        metrics
    }

    fn topic(&self, group: &GroupMetrics, topic: &str) -> Arc<TopicCounts> {
        if std::ptr::eq(group, &*self.overflow) {
            return self.overflow_topic.clone();
        }
        let name = &group.name;
        // A group that was removed is not found, also if another one has its name now.
        let same = |live: &Group| std::ptr::eq(&*live.metrics, group);
        let known = |live: &Live| {
            let group = live.groups.get(name).filter(|live| same(live))?;
            group.topics.get(topic).cloned()
        };
        if let Some(counts) = known(&self.read()) {
            return counts;
        }
        let mut live = self.write();
        if let Some(counts) = known(&live) {
            return counts;
        }
        let Live { groups, pairs, .. } = &mut *live;
        let Some(group) = groups.get_mut(name).filter(|live| same(live)) else {
            return Arc::default();
        };
        // One series of the budget is left for the overflow.
        if *pairs + 1 >= GROUP_TOPICS_MAX {
            return self.overflow_topic.clone();
        }
        *pairs += 1;
        let attributes = vec![KeyValue::new("group", name.clone()), KeyValue::new("topic", topic.to_owned())];
        let counts = Arc::new(TopicCounts::new(attributes));
        group.topics.insert(topic.into(), counts.clone());
        counts
    }

    /// All that are there.
    pub(in crate::telemetry) fn names(&self) -> Vec<Arc<str>> {
        self.read().groups.keys().cloned().collect()
    }

    /// Forgets `name`: its series are gone at the next collection.
    pub(in crate::telemetry) fn remove(&self, name: &str) {
        let mut live = self.write();
        if let Some(group) = live.groups.remove(name) {
            live.pairs -= group.topics.len();
            self.collection.removed();
        }
    }

    /// Forgets what all groups counted for the topic `name`.
    pub(in crate::telemetry) fn remove_topic(&self, name: &str) {
        let mut live = self.write();
        let removed = live.groups.values_mut().filter_map(|group| group.topics.remove(name)).count();
        if removed > 0 {
            live.pairs -= removed;
            self.collection.removed();
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Live> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The labels of a group's series with a second, closed label.
fn with(group: &KeyValue, label: impl Label) -> Vec<KeyValue> {
    let mut attributes = label.attributes();
    attributes.push(group.clone());
    attributes.sort_by(|a, b| a.key.cmp(&b.key));
    attributes
}
