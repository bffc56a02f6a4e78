//! How far a share group is with a partition.
//!
//! Records are kept as ranges, so the size and the cost follow the number of gaps, not of records.

use std::collections::BTreeMap;

use super::Error;
use crate::record::Offset;

/// Consecutive records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OffsetRange {
    /// The first.
    pub first: Offset,
    /// The last, included. Not below the first.
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

    /// Whether a record is one of these.
    #[must_use]
    pub fn contains(self, offset: Offset) -> bool {
        (self.first..=self.last).contains(&offset)
    }

    /// Every record has one after it, so the largest number is no record's.
    pub(super) fn check(self) -> Result<(), Error> {
        match self {
            OffsetRange { first, last } if first > last => {
                Err(Error::Malformed(format!("the range {first} to {last} ends before it begins")))
            }
            OffsetRange { last: Offset(u64::MAX), .. } => {
                Err(Error::Malformed(format!("offset {} is no record's", u64::MAX)))
            }
            _ => Ok(()),
        }
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

/// A change of the progress in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareUpdate {
    /// The records are done. Those that are done already stay so.
    Accept(OffsetRange),
    /// The records were delivered so often by now; 0 forgets that they ever were. Nothing for those that are done.
    Attempts(OffsetRange, u32),
    /// All records below are done. Nothing if the progress has come further.
    AdvanceTo(Offset),
}

impl ShareUpdate {
    /// Whether the range is one.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self {
            ShareUpdate::Accept(range) | ShareUpdate::Attempts(range, _) => range.check(),
            ShareUpdate::AdvanceTo(_) => Ok(()),
        }
    }
}

/// What is done of a partition, and how often the rest was delivered.
///
/// INVARIANT: `done` begins above `start`, and its ranges neither overlap nor touch. `attempts` lies at or above `start`,
/// its ranges do not overlap each other or `done`, and those that touch differ in count. So equal progress has one
/// representation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    start: u64,
    /// Last by first, both included.
    done: BTreeMap<u64, u64>,
    done_count: u64,
    /// Last and count by first.
    attempts: BTreeMap<u64, (u64, u32)>,
}

impl Progress {
    /// The progress of a group that begins at `start`.
    #[must_use]
    pub fn starting_at(start: Offset) -> Self {
        Progress { start: start.0, ..Progress::default() }
    }

    /// All records below are done. This one is not.
    #[must_use]
    pub fn start(&self) -> Offset {
        Offset(self.start)
    }

    /// Whether a record is done.
    #[must_use]
    pub fn is_done(&self, offset: Offset) -> bool {
        offset.0 < self.start || covering(&self.done, offset.0, |last| *last).is_some()
    }

    /// What is done above the start, in order, with gaps between.
    pub fn done_ranges(&self) -> impl DoubleEndedIterator<Item = OffsetRange> {
        self.done.iter().map(|(first, last)| OffsetRange::new(Offset(*first), Offset(*last)))
    }

    /// How many records above the start are done.
    #[must_use]
    pub fn done_count(&self) -> u64 {
        self.done_count
    }

    /// How often a record was delivered; 0 if it is done.
    #[must_use]
    pub fn attempts(&self, offset: Offset) -> u32 {
        covering(&self.attempts, offset.0, |(last, _)| *last).map_or(0, |(_, (_, count))| count)
    }

    /// All records that were delivered and are not done, in order.
    pub fn attempt_ranges(&self) -> impl DoubleEndedIterator<Item = Attempts> {
        self.attempts.iter().map(|(first, (last, count))| Attempts {
            range: OffsetRange::new(Offset(*first), Offset(*last)),
            count: *count,
        })
    }

    /// Does what an update says.
    pub fn update(&mut self, update: ShareUpdate) {
        match update {
            ShareUpdate::Accept(range) => self.accept(range),
            ShareUpdate::Attempts(range, count) => self.note_attempts(range, count),
            ShareUpdate::AdvanceTo(offset) => self.advance_to(offset),
        }
    }

    /// Notes that records are done.
    pub fn accept(&mut self, range: OffsetRange) {
        let (mut first, mut last) = (range.first.0.max(self.start), range.last.0);
        if first > last || last == u64::MAX {
            return;
        }
        self.clear_attempts(first, last);
        if let Some((&before, &end)) = self.done.range(..first).next_back()
            && end + 1 >= first
        {
            first = before;
            last = last.max(end);
        }
        // Ranges that the new one covers or touches become part of it.
        while let Some((&begin, &end)) = self.done.range(first..=last + 1).next() {
            self.done.remove(&begin);
            self.done_count -= end - begin + 1;
            last = last.max(end);
        }
        if first == self.start {
            self.start = last + 1;
        } else {
            self.done.insert(first, last);
            self.done_count += last - first + 1;
        }
    }

    /// Notes how often records were delivered.
    pub fn note_attempts(&mut self, range: OffsetRange, count: u32) {
        let (first, last) = (range.first.0.max(self.start), range.last.0);
        if first > last || last == u64::MAX {
            return;
        }
        self.clear_attempts(first, last);
        if count == 0 {
            return;
        }
        for (first, last) in self.open_between(first, last) {
            self.put_attempts(first, last, count);
        }
    }

    /// Notes that all records below `offset` are done.
    pub fn advance_to(&mut self, offset: Offset) {
        if offset.0 > self.start {
            self.accept(OffsetRange::new(Offset(self.start), Offset(offset.0 - 1)));
        }
    }

    /// What of `first..=last` is not done; `first` is not below the start.
    fn open_between(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut open = Vec::new();
        let mut from = covering(&self.done, first, |last| *last).map_or(first, |(_, end)| end + 1);
        for (&begin, &end) in self.done.range(from..=last.max(from)) {
            if begin > last {
                break;
            }
            open.push((from, begin - 1));
            from = end + 1;
        }
        if from <= last {
            open.push((from, last));
        }
        open
    }

    /// Forgets how often the records of `first..=last` were delivered.
    fn clear_attempts(&mut self, first: u64, last: u64) {
        if let Some((begin, (end, count))) = covering(&self.attempts, first, |(last, _)| *last) {
            self.attempts.remove(&begin);
            if begin < first {
                self.attempts.insert(begin, (first - 1, count));
            }
            if end > last {
                self.attempts.insert(last + 1, (end, count));
            }
        }
        while let Some((&begin, &(end, count))) = self.attempts.range(first..=last).next() {
            self.attempts.remove(&begin);
            if end > last {
                self.attempts.insert(last + 1, (end, count));
            }
        }
    }

    /// Adds a range that nothing overlaps, joined with its neighbours of the same count.
    fn put_attempts(&mut self, mut first: u64, mut last: u64, count: u32) {
        if let Some((&begin, &(end, same))) = self.attempts.range(..first).next_back()
            && end + 1 == first
            && same == count
        {
            first = begin;
        }
        if let Some(&(end, same)) = self.attempts.get(&(last + 1))
            && same == count
        {
            self.attempts.remove(&(last + 1));
            last = end;
        }
        self.attempts.insert(first, (last, count));
    }

    /// The progress of these parts.
    ///
    /// # Errors
    /// [`Error::Malformed`]: they break the invariant.
    pub(super) fn from_parts(start: u64, done: &[OffsetRange], attempts: &[Attempts]) -> Result<Self, Error> {
        let mut progress = Progress::starting_at(Offset(start));
        for range in done {
            range.check()?;
            progress.accept(*range);
        }
        for Attempts { range, count } in attempts {
            range.check()?;
            progress.note_attempts(*range, *count);
        }
        let same = progress.start == start
            && progress.done_ranges().eq(done.iter().copied())
            && progress.attempt_ranges().eq(attempts.iter().copied());
        if same { Ok(progress) } else { Err(Error::Malformed("progress breaks its invariant".to_owned())) }
    }
}

/// The range that covers `offset`, of ranges by their first offset.
fn covering<V: Copy>(ranges: &BTreeMap<u64, V>, offset: u64, last: impl Fn(&V) -> u64) -> Option<(u64, V)> {
    let (first, value) = ranges.range(..=offset).next_back()?;
    (last(value) >= offset).then_some((*first, *value))
}
