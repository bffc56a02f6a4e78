//! Counters with a topic label.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use opentelemetry::KeyValue;

use super::catalog::{self, Row, TOPICS_MAX};
use super::instruments::{Collection, Instruments};

/// Records and bytes that took the same step.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Flow {
    records: AtomicU64,
    bytes: AtomicU64,
}

impl Flow {
    fn add(&self, records: u64, bytes: u64) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The counters of one topic. Hold the handle, do not look it up per batch.
///
/// A handle that outlives its topic may still be counted on; nobody reads it any more.
#[derive(Debug)]
pub struct TopicMetrics {
    attributes: [KeyValue; 1],
    produced: Flow,
    consumed: Flow,
    stored: Flow,
    trimmed: Flow,
}

impl TopicMetrics {
    fn new(attribute: KeyValue) -> Arc<Self> {
        Arc::new(TopicMetrics {
            attributes: [attribute],
            produced: Flow::default(),
            consumed: Flow::default(),
            stored: Flow::default(),
            trimmed: Flow::default(),
        })
    }

    pub(super) fn produced(&self, records: u64, bytes: u64) {
        self.produced.add(records, bytes);
    }

    pub(super) fn consumed(&self, records: u64, bytes: u64) {
        self.consumed.add(records, bytes);
    }

    pub(super) fn stored(&self, records: u64, bytes: u64) {
        self.stored.add(records, bytes);
    }

    pub(super) fn trimmed(&self, records: u64, bytes: u64) {
        self.trimmed.add(records, bytes);
    }
}

/// The topics that have series on `/metrics`.
#[derive(Debug)]
pub(super) struct Topics {
    live: Arc<RwLock<HashMap<Box<str>, Arc<TopicMetrics>>>>,
    /// Takes the traffic of all topics beyond the budget.
    overflow: Arc<TopicMetrics>,
    collection: Arc<Collection>,
}

impl Topics {
    pub(super) fn new(instruments: &Instruments) -> Self {
        let topics = Topics {
            live: Arc::default(),
            overflow: TopicMetrics::new(KeyValue::new("otel.metric.overflow", true)),
            collection: instruments.collection(),
        };
        topics.observe(instruments, catalog::MESSAGES_PRODUCED, |topic| &topic.produced.records);
        topics.observe(instruments, catalog::BYTES_PRODUCED, |topic| &topic.produced.bytes);
        topics.observe(instruments, catalog::MESSAGES_CONSUMED, |topic| &topic.consumed.records);
        topics.observe(instruments, catalog::BYTES_CONSUMED, |topic| &topic.consumed.bytes);
        topics.observe(instruments, catalog::MESSAGES_STORED, |topic| &topic.stored.records);
        topics.observe(instruments, catalog::BYTES_STORED, |topic| &topic.stored.bytes);
        topics.observe(instruments, catalog::RETENTION_MESSAGES, |topic| &topic.trimmed.records);
        topics.observe(instruments, catalog::RETENTION_BYTES, |topic| &topic.trimmed.bytes);
        topics
    }

    fn observe(&self, instruments: &Instruments, row: Row, read: fn(&TopicMetrics) -> &AtomicU64) {
        let live = self.live.clone();
        let overflow = self.overflow.clone();
        instruments.integers(row, move |sink| {
            let live = live.read().unwrap_or_else(PoisonError::into_inner);
            for topic in live.values() {
                sink(read(topic).load(Ordering::Relaxed), &topic.attributes);
            }
            let beyond = read(&overflow).load(Ordering::Relaxed);
            if beyond > 0 {
                sink(beyond, &overflow.attributes);
            }
        });
    }

    /// The handle of `name`, made if there is none. Beyond the budget all topics share one handle.
    pub(super) fn get(&self, name: &str) -> Arc<TopicMetrics> {
        if let Some(topic) = self.live.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return topic.clone();
        }
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(topic) = live.get(name) {
            return topic.clone();
        }
        // One series of the budget is left for the overflow.
        if live.len() + 1 >= TOPICS_MAX {
            return self.overflow.clone();
        }
        let topic = TopicMetrics::new(KeyValue::new("topic", name.to_owned()));
        live.insert(name.into(), topic.clone());
        topic
    }

    /// Forgets `name`: its series are gone at the next collection.
    pub(super) fn remove(&self, name: &str) {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        if live.remove(name).is_some() {
            self.collection.removed();
        }
    }
}
