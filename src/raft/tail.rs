//! The entries of a log that are still on their way: appended, but not yet both written and applied.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

use crate::storage::Row;

/// The end of a log, in memory.
///
/// It is as long as what is in flight: proposers and the store's commit queue bound that.
///
/// INVARIANT: the rows are consecutive, and every entry after the last row that left is here.
#[derive(Debug, Default)]
pub(super) struct Tail {
    rows: VecDeque<Row>,
    /// When entries up to an index were written, for entries not yet applied.
    writes: VecDeque<(u64, Instant)>,
    written: Option<u64>,
    applied: Option<u64>,
}

impl Tail {
    /// A tail behind entries that are all written and applied up to `applied`.
    pub(super) fn new(written: Option<u64>, applied: Option<u64>) -> Self {
        Tail { written, applied, ..Tail::default() }
    }

    /// Takes entries that were handed to the store.
    pub(super) fn push(&mut self, row: Row) {
        debug_assert!(
            self.rows.back().is_none_or(|last| last.index + 1 == row.index),
            "rows are consecutive"
        );
        self.rows.push_back(row);
    }

    /// Notes that entries up to `index` are written.
    pub(super) fn written(&mut self, index: u64, at: Instant) {
        self.written = self.written.max(Some(index));
        if self.applied < Some(index) {
            self.writes.push_back((index, at));
        }
        self.shrink();
    }

    /// Notes that entries up to `index` are applied.
    pub(super) fn applied(&mut self, index: u64) {
        self.applied = self.applied.max(Some(index));
        while self.writes.front().is_some_and(|(upto, _)| *upto <= index) {
            self.writes.pop_front();
        }
        self.shrink();
    }

    /// Forgets the entries after `last`, which conflict with the leader's. The store must have forgotten
    /// them.
    pub(super) fn truncate_after(&mut self, last: Option<u64>) {
        while self.rows.back().is_some_and(|row| Some(row.index) > last) {
            self.rows.pop_back();
        }
        self.written = self.written.min(last);
        self.writes.retain(|(upto, _)| Some(*upto) <= last);
    }

    /// Forgets the entries up to `index`, which a snapshot replaces.
    pub(super) fn purge_to(&mut self, index: u64) {
        self.written = self.written.max(Some(index));
        self.applied(index);
    }

    /// When the entry at `index` was written, if it is not yet noted as applied.
    pub(super) fn written_at(&self, index: u64) -> Option<Instant> {
        let at = self.writes.partition_point(|(upto, _)| *upto < index);
        self.writes.get(at).map(|(_, at)| *at)
    }

    /// The entries of `range` that are here. They are the end of what exists of the range: entries before the
    /// first of them, or all if none is here, are in the store.
    pub(super) fn read(&self, range: Range<u64>) -> Vec<Row> {
        let Some(first) = self.rows.front().map(|row| row.index) else { return Vec::new() };
        let start = range.start.max(first);
        let end = range.end.min(first + self.rows.len() as u64);
        if start >= end {
            return Vec::new();
        }
        self.rows.range((start - first) as usize..(end - first) as usize).cloned().collect()
    }

    fn shrink(&mut self) {
        let done = self.written.min(self.applied);
        while self.rows.front().is_some_and(|row| Some(row.index) <= done) {
            self.rows.pop_front();
        }
        // A burst's memory is not kept for an idle group.
        if self.rows.is_empty() && self.rows.capacity() > 64 {
            self.rows = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Command, Kind, Position};

    fn tail(indexes: Range<u64>) -> Tail {
        let mut tail = Tail::new(indexes.start.checked_sub(1), indexes.start.checked_sub(1));
        for index in indexes {
            let at = Position { index, term: 1, leader: 1 };
            tail.push(Row::encode(at, Kind::Command, Command::copy_from_slice(b"x")));
        }
        tail
    }

    fn indexes(rows: &[Row]) -> Vec<u64> {
        rows.iter().map(|row| row.index).collect()
    }

    #[test]
    fn an_entry_leaves_when_it_is_both_written_and_applied() {
        let mut tail = tail(3..7);
        tail.applied(5);
        assert_eq!(indexes(&tail.read(0..99)), [3, 4, 5, 6]);
        tail.written(4, Instant::now());
        assert_eq!(indexes(&tail.read(0..99)), [5, 6]);
        tail.written(6, Instant::now());
        assert_eq!(indexes(&tail.read(0..99)), [6]);
        tail.applied(6);
        assert_eq!(indexes(&tail.read(0..99)), [0; 0]);
    }

    #[test]
    fn reads_only_what_is_asked_for() {
        let tail = tail(3..7);
        assert_eq!(indexes(&tail.read(4..6)), [4, 5]);
        assert_eq!(indexes(&tail.read(0..3)), [0; 0]);
        assert_eq!(indexes(&tail.read(7..9)), [0; 0]);
    }

    #[test]
    fn truncated_entries_are_gone_and_their_writes_forgotten() {
        let mut tail = tail(3..7);
        tail.written(6, Instant::now());
        tail.truncate_after(Some(4));
        assert_eq!(indexes(&tail.read(0..99)), [3, 4]);
        tail.applied(4);
        let at = Position { index: 5, term: 2, leader: 1 };
        tail.push(Row::encode(at, Kind::Blank, Command::copy_from_slice(b"")));
        tail.applied(5);
        assert_eq!(indexes(&tail.read(0..99)), [5], "an entry that is not written stays");
    }

    #[test]
    fn tells_when_an_entry_was_written_until_it_is_applied() {
        let mut tail = tail(3..7);
        let (first, second) = (Instant::now(), Instant::now());
        tail.written(4, first);
        tail.written(6, second);
        assert_eq!(tail.written_at(4), Some(first));
        assert_eq!(tail.written_at(5), Some(second));
        assert_eq!(tail.written_at(7), None);
        tail.applied(5);
        assert_eq!(tail.written_at(6), Some(second));
    }
}
