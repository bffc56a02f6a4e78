//! What the broker remembers of producers and traces, so that a record can be explained: the newest of each, in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Timestamp;
use crate::record::Offset;

/// Producer ids, and sampled batches, that are remembered.
const PRODUCERS_MAX: usize = 16_384;
const BATCHES_MAX: usize = 16_384;
/// Longest name of a program that is kept, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Most batches that one look-up gives.
const FOUND_MAX: usize = 100;

/// A batch that was written in a sampled trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracedBatch {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: u32,
    /// Offset of its first record.
    pub base: Offset,
    /// Number of records.
    pub records: u32,
    /// When it was appended.
    pub append_time: Timestamp,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Memory {
    producers: Mutex<Producers>,
    batches: Mutex<VecDeque<([u8; 16], TracedBatch)>>,
}

#[derive(Debug, Default)]
struct Producers {
    names: HashMap<u64, Arc<str>>,
    order: VecDeque<u64>,
}

impl Memory {
    /// A program got a producer id.
    pub(super) fn producer(&self, id: u64, name: &str) {
        let name = name.char_indices().take_while(|(at, c)| at + c.len_utf8() <= NAME_BYTES_MAX);
        let name: String = name.map(|(_, c)| c).collect();
        let mut producers = lock(&self.producers);
        if producers.names.insert(id, name.into()).is_none() {
            producers.order.push_back(id);
        }
        if producers.order.len() > PRODUCERS_MAX
            && let Some(oldest) = producers.order.pop_front()
        {
            producers.names.remove(&oldest);
        }
    }

    /// What the program calls itself that got the producer id.
    pub(super) fn producer_name(&self, id: u64) -> Option<Arc<str>> {
        lock(&self.producers).names.get(&id).cloned()
    }

    /// A sampled batch was committed.
    pub(super) fn batch(&self, trace: [u8; 16], batch: TracedBatch) {
        let mut batches = lock(&self.batches);
        if batches.len() == BATCHES_MAX {
            batches.pop_front();
        }
        batches.push_back((trace, batch));
    }

    /// The batches of a trace, oldest first.
    pub(super) fn batches(&self, trace: [u8; 16]) -> Vec<TracedBatch> {
        let batches = lock(&self.batches);
        let found = batches.iter().filter(|(of, _)| *of == trace).map(|(_, batch)| batch.clone());
        found.take(FOUND_MAX).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(base: u64) -> TracedBatch {
        let (topic, append_time) = ("orders".into(), Timestamp(1));
        TracedBatch { topic, partition: 0, base: Offset(base), records: 1, append_time }
    }

    #[test]
    fn the_oldest_producers_are_forgotten() {
        let memory = Memory::default();
        for id in 0..=PRODUCERS_MAX as u64 {
            memory.producer(id, "shop");
        }
        assert_eq!(memory.producer_name(0), None);
        assert_eq!(memory.producer_name(1).as_deref(), Some("shop"));
        memory.producer(7, &"ä".repeat(100));
        assert_eq!(memory.producer_name(7).map(|name| name.len()), Some(NAME_BYTES_MAX));
    }

    #[test]
    fn batches_of_a_trace_are_found_until_newer_ones_take_their_place() {
        let memory = Memory::default();
        memory.batch([1; 16], batch(0));
        memory.batch([2; 16], batch(1));
        memory.batch([1; 16], batch(2));
        assert_eq!(memory.batches([1; 16]), [batch(0), batch(2)]);
        for base in 0..BATCHES_MAX as u64 - 1 {
            memory.batch([3; 16], batch(base));
        }
        assert_eq!(memory.batches([1; 16]), [batch(2)]);
        assert_eq!(memory.batches([3; 16]).len(), FOUND_MAX);
    }
}
