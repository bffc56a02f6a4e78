//! How far a share group is with a partition.

use std::collections::BTreeMap;

use crate::record::Offset;

/// Consecutive offsets, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OffsetRange {
    /// The first offset.
    pub first: Offset,
    /// The last offset; not below the first.
    pub last: Offset,
}

impl OffsetRange {
    /// The records from `first` to `last`, both included.
    #[must_use]
    pub fn new(first: Offset, last: Offset) -> Self {
        OffsetRange { first, last }
    }

    /// How many records these are.
    #[must_use]
    pub fn count(self) -> u64 {
        self.last.saturating_since(self.first).saturating_add(1)
    }
}

/// Records that were delivered and are not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// The records.
    pub range: OffsetRange,
    /// How often each was delivered; at least once.
    pub count: u32,
}

/// A change of a [`Progress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareUpdate {
    /// The records are done.
    Accept(OffsetRange),
    /// The records were delivered this often and are not done.
    Attempts(OffsetRange, u32),
    /// Everything below the offset is done.
    AdvanceTo(Offset),
}

/// How far a share group is with a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    start: Offset,
    done: BTreeMap<Offset, ()>,
    attempts: BTreeMap<Offset, u32>,
}

impl Progress {
    /// Progress of a group that begins at `start`.
    #[must_use]
    pub fn starting_at(start: Offset) -> Self {
        Progress { start, ..Progress::default() }
    }

    /// Everything below is done.
    #[must_use]
    pub fn start(&self) -> Offset {
        self.start
    }

    /// Whether the record is done.
    #[must_use]
    pub fn is_done(&self, offset: Offset) -> bool {
        offset < self.start || self.done.contains_key(&offset)
    }

    /// What is done above the start.
    pub fn done_ranges(&self) -> impl Iterator<Item = OffsetRange> + '_ {
        self.done.keys().map(|offset| OffsetRange { first: *offset, last: *offset })
    }

    /// How often the records that are not done were delivered; those that never were are left out.
    pub fn attempt_ranges(&self) -> impl Iterator<Item = Attempts> + '_ {
        let range = |offset: &Offset| OffsetRange::new(*offset, *offset);
        self.attempts.iter().map(move |(offset, count)| Attempts { range: range(offset), count: *count })
    }

    /// Applies an update.
    pub fn update(&mut self, update: ShareUpdate) {
        let offsets = |range: OffsetRange| (range.first.0..=range.last.0).map(Offset);
        match update {
            ShareUpdate::Accept(range) => self.done.extend(offsets(range).map(|offset| (offset, ()))),
            ShareUpdate::Attempts(range, count) => {
                self.attempts.extend(offsets(range).map(|offset| (offset, count)));
            }
            ShareUpdate::AdvanceTo(offset) => self.start = self.start.max(offset),
        }
        while self.done.contains_key(&self.start) {
            self.start = self.start.saturating_add(1);
        }
        let (start, done) = (self.start, &mut self.done);
        done.retain(|offset, ()| *offset >= start);
        self.attempts.retain(|offset, _| *offset >= start && !done.contains_key(offset));
    }
}
