//! What readers see of a partition: its bounds, its newest batches in memory, and a bell for news.
//!
//! The replica publishes; any number of readers look. Locks guard leaf data and are held for a few pointer copies.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::index::Entry;
use super::signal::{Listeners, Signal};
use crate::clock::Timestamp;
use crate::record::Offset;

/// Memory for newest batches, shared by all partitions of a broker.
#[derive(Debug)]
pub struct TailBudget {
    used: AtomicUsize,
    limit: usize,
    per_partition: usize,
}

impl TailBudget {
    /// At most `limit` bytes for all partitions, and `per_partition` for each. The newest entry of each partition is
    /// kept whatever its size.
    pub fn new(limit: usize, per_partition: usize) -> Arc<Self> {
        Arc::new(TailBudget { used: AtomicUsize::new(0), limit, per_partition })
    }

    /// Bytes held now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// The bounds of what can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Offset of the oldest retained record.
    pub log_start: Offset,
    /// Offset after the last committed record.
    pub high_watermark: Offset,
}

/// See the module.
#[derive(Debug)]
pub struct View {
    log_start: AtomicU64,
    high_watermark: AtomicU64,
    bytes_end: AtomicU64,
    /// Bytes of all batches below the log start.
    bytes_start: AtomicU64,
    inner: Mutex<Inner>,
    budget: Arc<TailBudget>,
}

#[derive(Debug, Default)]
struct Inner {
    /// INVARIANT: adjoining entries, the last one ends at the high watermark.
    tail: VecDeque<(Arc<Entry>, Bytes)>,
    tail_bytes: usize,
    last_append: Timestamp,
    listeners: Listeners,
}

impl View {
    /// A view of an empty partition.
    pub fn new(budget: Arc<TailBudget>) -> Arc<Self> {
        Arc::new(View {
            log_start: AtomicU64::new(0),
            high_watermark: AtomicU64::new(0),
            bytes_end: AtomicU64::new(0),
            bytes_start: AtomicU64::new(0),
            inner: Mutex::default(),
            budget,
        })
    }

    /// What can be read now.
    pub fn bounds(&self) -> Bounds {
        // The log start is read first: it never passes a high watermark that is read later.
        let log_start = Offset(self.log_start.load(Ordering::Acquire));
        Bounds { log_start, high_watermark: Offset(self.high_watermark.load(Ordering::Acquire)) }
    }

    /// Bytes of retained batches.
    pub fn size_bytes(&self) -> u64 {
        let start = self.bytes_start.load(Ordering::Acquire);
        self.bytes_end.load(Ordering::Acquire).saturating_sub(start)
    }

    /// Bytes of all batches ever appended.
    pub fn bytes_end(&self) -> u64 {
        self.bytes_end.load(Ordering::Acquire)
    }

    /// When the newest batch was appended.
    pub fn last_append(&self) -> Timestamp {
        self.lock().last_append
    }

    /// The newest entries from the one that holds `from` on, until `max_bytes` is reached; at least one. `None` if
    /// memory does not go back that far.
    pub fn tail(&self, from: Offset, max_bytes: usize) -> Option<Vec<(Arc<Entry>, Bytes)>> {
        let inner = self.lock();
        if inner.tail.front().is_none_or(|(entry, _)| entry.base > from) {
            return None;
        }
        let first = inner.tail.partition_point(|(entry, _)| entry.end <= from);
        let mut bytes = 0;
        let mut entries = Vec::new();
        for (entry, command) in inner.tail.range(first..) {
            entries.push((entry.clone(), command.clone()));
            bytes += command.len();
            if bytes >= max_bytes {
                break;
            }
        }
        (!entries.is_empty()).then_some(entries)
    }

    /// When the record at `offset` was appended, if its entry is in memory.
    pub fn append_time(&self, offset: Offset) -> Option<Timestamp> {
        let inner = self.lock();
        let at = inner.tail.partition_point(|(entry, _)| entry.end <= offset);
        let (entry, _) = inner.tail.get(at).filter(|(entry, _)| entry.base <= offset)?;
        Some(entry.append_time)
    }

    /// Rings `signal` at `slot` whenever something new can be read.
    pub fn listen(&self, signal: &Arc<Signal>, slot: usize) {
        self.lock().listeners.add(signal, slot);
    }

    /// Stops ringing `signal` at `slot`.
    pub fn unlisten(&self, signal: &Arc<Signal>, slot: usize) {
        self.lock().listeners.remove(signal, slot);
    }

    /// Rings everybody, to make them look again (a partition that goes away, for example).
    pub fn ring(&self) {
        self.lock().listeners.ring();
    }

    /// Shows a state that was restored: nothing of it is in memory.
    pub(super) fn restored(&self, bounds: Bounds, bytes_end: u64, last_append: Timestamp) {
        let mut inner = self.lock();
        let freed = std::mem::take(&mut inner.tail_bytes);
        self.budget.used.fetch_sub(freed, Ordering::Relaxed);
        inner.tail.clear();
        inner.last_append = last_append;
        self.bytes_end.store(bytes_end, Ordering::Release);
        self.high_watermark.store(bounds.high_watermark.0, Ordering::Release);
        self.log_start.store(bounds.log_start.0, Ordering::Release);
    }

    /// Shows applied entries and wakes readers.
    pub(super) fn publish(
        &self,
        entries: impl Iterator<Item = (Arc<Entry>, Bytes)>,
        bounds: Bounds,
        bytes_end: u64,
    ) {
        let mut inner = self.lock();
        let before = inner.tail_bytes;
        for (entry, command) in entries {
            inner.tail_bytes += command.len();
            inner.last_append = entry.append_time;
            inner.tail.push_back((entry, command));
        }
        let grown = inner.tail_bytes - before;
        let total = self.budget.used.fetch_add(grown, Ordering::Relaxed) + grown;
        let mut freed = 0;
        while inner.tail.len() > 1
            && (inner.tail_bytes > self.budget.per_partition || total - freed > self.budget.limit)
        {
            if let Some((_, command)) = inner.tail.pop_front() {
                inner.tail_bytes -= command.len();
                freed += command.len();
            }
        }
        self.budget.used.fetch_sub(freed, Ordering::Relaxed);
        self.bytes_end.store(bytes_end, Ordering::Release);
        self.high_watermark.store(bounds.high_watermark.0, Ordering::Release);
        self.log_start.store(bounds.log_start.0, Ordering::Release);
        inner.listeners.ring();
    }

    /// Bytes of batches that lie below the log start.
    pub(super) fn bytes_start(&self) -> u64 {
        self.bytes_start.load(Ordering::Acquire)
    }

    /// Notes how many bytes lie below the log start.
    pub(super) fn set_bytes_start(&self, bytes: u64) {
        self.bytes_start.fetch_max(bytes, Ordering::AcqRel);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let held = self.lock().tail_bytes;
        self.budget.used.fetch_sub(held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(base: u64, end: u64, bytes: usize) -> (Arc<Entry>, Bytes) {
        let entry = Entry {
            base: Offset(base),
            end: Offset(end),
            raft_index: base,
            append_time: Timestamp(1),
            bytes_before: 0,
            skipped: vec![],
        };
        (Arc::new(entry), Bytes::from(vec![0; bytes]))
    }

    fn publish(view: &View, entries: Vec<(Arc<Entry>, Bytes)>) {
        let high_watermark = entries.last().expect("some").0.end;
        view.publish(entries.into_iter(), Bounds { log_start: Offset(0), high_watermark }, 0);
    }

    #[test]
    fn the_tail_starts_at_the_entry_that_holds_the_offset() {
        let view = View::new(TailBudget::new(1000, 1000));
        publish(&view, vec![entry(0, 5, 10), entry(5, 6, 10), entry(6, 9, 10)]);
        let bases = |from, max| {
            view.tail(Offset(from), max).map(|t| t.iter().map(|(e, _)| e.base.0).collect::<Vec<_>>())
        };
        assert_eq!(bases(0, 1), Some(vec![0]));
        assert_eq!(bases(4, 20), Some(vec![0, 5]));
        assert_eq!(bases(5, 100), Some(vec![5, 6]));
        assert_eq!(bases(9, 100), None);
    }

    #[test]
    fn old_entries_leave_memory_when_the_partition_or_the_broker_holds_too_much() {
        let budget = TailBudget::new(100, 30);
        let view = View::new(budget.clone());
        publish(&view, vec![entry(0, 1, 20), entry(1, 2, 20)]);
        assert_eq!(view.tail(Offset(0), 1), None);
        assert!(view.tail(Offset(1), 1).is_some());
        assert_eq!(budget.used(), 20);
        let other = View::new(budget.clone());
        publish(&other, vec![entry(0, 1, 200)]);
        publish(&view, vec![entry(2, 3, 5)]);
        assert_eq!(view.tail(Offset(1), 1), None);
        assert!(other.tail(Offset(0), 1).is_some());
        drop(view);
        drop(other);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn readers_are_woken_by_what_is_published() {
        let view = View::new(TailBudget::new(100, 100));
        let signal = Signal::new();
        view.listen(&signal, 4);
        publish(&view, vec![entry(0, 2, 1)]);
        assert_eq!(signal.wait().await, vec![4]);
        assert_eq!(view.bounds().high_watermark, Offset(2));
    }
}
