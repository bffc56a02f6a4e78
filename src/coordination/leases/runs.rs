//! Runs of records that are in the same state, in the order of their offsets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::coordination::{OffsetRange, SessionId};
use crate::record::Offset;

use super::{DeathReason, LeaseSpec};

/// What holds of a record that was leased, or might have been, and is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// To be leased (again), if `ready_at` is over.
    Waiting { deliveries: u32, ready_at: Option<Instant> },
    /// With a member.
    Leased(Held),
    /// Accepted by a member, which is not committed yet.
    Accepting(Held),
    /// To be copied to the dead-letter topic.
    Dead(Death),
    /// On its way to the dead-letter topic.
    Copying(Death),
    /// Copied to the dead-letter topic; that it is done is not committed yet.
    Burying(Death),
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) holder: SessionId,
    pub(super) until: Instant,
    pub(super) spec: LeaseSpec,
    /// This lease included.
    pub(super) deliveries: u32,
}

/// Why a record is not delivered any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Death {
    pub(super) reason: DeathReason,
    pub(super) deliveries: u32,
}

impl State {
    /// When something happens to the record by itself.
    fn timer(&self) -> Option<Instant> {
        match self {
            State::Waiting { ready_at, .. } => *ready_at,
            State::Leased(held) => Some(held.until),
            State::Accepting(_) | State::Dead(_) | State::Copying(_) | State::Burying(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    last: Offset,
    state: State,
}

/// States of records by offset.
///
/// INVARIANT: runs do not overlap, and of two that touch the states differ. The indexes below follow from `runs`;
/// only `insert` and `remove` change either.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// By first offset.
    runs: BTreeMap<Offset, Run>,
    /// First offsets of the runs to which something happens by itself, by the time of it.
    timers: BTreeSet<(Instant, Offset)>,
    /// First offsets of the runs that wait.
    waiting: BTreeSet<Offset>,
    /// First offsets of the runs that are dead.
    dead: BTreeSet<Offset>,
    /// Number of records that are leased.
    leased: u64,
}

impl Runs {
    /// Puts all records of `range` into `state`, whatever they were; `None` forgets them.
    pub(super) fn set(&mut self, range: OffsetRange, state: Option<State>) {
        self.cut(range.first);
        if let Some(after) = range.last.checked_add(1) {
            self.cut(after);
        }
        let within: Vec<Offset> =
            self.runs.range(range.first..=range.last).map(|(first, _)| *first).collect();
        for first in within {
            self.remove(first);
        }
        if let Some(state) = state {
            self.insert_merged(range, state);
        }
    }

    /// The runs that have a part in `range`, cut to it.
    pub(super) fn within(&self, range: OffsetRange) -> impl Iterator<Item = (OffsetRange, &State)> {
        let before = self.runs.range(..range.first).next_back();
        let before = before.filter(|(_, run)| run.last >= range.first && range.first <= range.last);
        let inside = self.runs.range(range.first..).take_while(move |(first, _)| **first <= range.last);
        before.into_iter().chain(inside).map(move |(first, run)| {
            let first = (*first).max(range.first);
            (OffsetRange { first, last: run.last.min(range.last) }, &run.state)
        })
    }

    /// Every run.
    pub(super) fn iter(&self) -> impl Iterator<Item = (OffsetRange, &State)> {
        self.runs.iter().map(|(first, run)| (OffsetRange { first: *first, last: run.last }, &run.state))
    }

    /// The runs that wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (OffsetRange, &State)> {
        self.waiting.iter().filter_map(|first| self.run(*first))
    }

    /// The runs that are dead.
    pub(super) fn dead(&self) -> impl Iterator<Item = (OffsetRange, &State)> {
        self.dead.iter().filter_map(|first| self.run(*first))
    }

    /// The run to which something happens next, and when.
    pub(super) fn next_timer(&self) -> Option<(Instant, OffsetRange, &State)> {
        let (at, first) = *self.timers.first()?;
        self.run(first).map(|(range, state)| (at, range, state))
    }

    /// Number of records that are leased.
    pub(super) fn leased(&self) -> u64 {
        self.leased
    }

    fn run(&self, first: Offset) -> Option<(OffsetRange, &State)> {
        self.runs.get(&first).map(|run| (OffsetRange { first, last: run.last }, &run.state))
    }

    /// Makes a run that goes over `at` two, of which the second begins there.
    fn cut(&mut self, at: Offset) {
        let Some((&first, run)) = self.runs.range(..at).next_back() else { return };
        let Some(before) = at.checked_sub(1).filter(|_| run.last >= at) else { return };
        let Some(Run { last, state }) = self.remove(first) else { return };
        self.insert(first, Run { last: before, state: state.clone() });
        self.insert(at, Run { last, state });
    }

    /// Inserts a run where there is none, as one with neighbours of the same state.
    fn insert_merged(&mut self, range: OffsetRange, state: State) {
        let OffsetRange { mut first, mut last } = range;
        let before = self.runs.range(..first).next_back();
        if let Some((&start, run)) = before
            && run.last.checked_add(1) == Some(first)
            && run.state == state
        {
            self.remove(start);
            first = start;
        }
        if let Some(after) = last.checked_add(1)
            && self.runs.get(&after).is_some_and(|run| run.state == state)
            && let Some(run) = self.remove(after)
        {
            last = run.last;
        }
        self.insert(first, Run { last, state });
    }

    fn insert(&mut self, first: Offset, run: Run) {
        if let Some(at) = run.state.timer() {
            self.timers.insert((at, first));
        }
        match run.state {
            State::Waiting { .. } => drop(self.waiting.insert(first)),
            State::Dead(_) => drop(self.dead.insert(first)),
            State::Leased(_) => self.leased += OffsetRange { first, last: run.last }.count(),
            State::Accepting(_) | State::Copying(_) | State::Burying(_) => {}
        }
        let replaced = self.runs.insert(first, run);
        debug_assert!(replaced.is_none(), "runs do not overlap");
    }

    fn remove(&mut self, first: Offset) -> Option<Run> {
        let run = self.runs.remove(&first)?;
        if let Some(at) = run.state.timer() {
            self.timers.remove(&(at, first));
        }
        match run.state {
            State::Waiting { .. } => drop(self.waiting.remove(&first)),
            State::Dead(_) => drop(self.dead.remove(&first)),
            State::Leased(_) => self.leased -= OffsetRange { first, last: run.last }.count(),
            State::Accepting(_) | State::Copying(_) | State::Burying(_) => {}
        }
        Some(run)
    }
}

#[cfg(test)]
impl Runs {
    /// Asserts what holds of `runs` and its indexes.
    pub(super) fn check(&self) {
        let mut before: Option<(OffsetRange, &State)> = None;
        for (range, state) in self.iter() {
            assert!(range.first <= range.last, "{range:?} is no range");
            if let Some((earlier, same)) = before.replace((range, state)) {
                assert!(earlier.last < range.first, "{earlier:?} and {range:?} overlap");
                let touch = earlier.last.checked_add(1) == Some(range.first);
                assert!(!touch || same != state, "{earlier:?} and {range:?} could be one");
            }
        }
        let firsts = |which: fn(&State) -> bool| -> BTreeSet<Offset> {
            self.runs.iter().filter(|(_, run)| which(&run.state)).map(|(first, _)| *first).collect()
        };
        assert_eq!(self.waiting, firsts(|state| matches!(state, State::Waiting { .. })));
        assert_eq!(self.dead, firsts(|state| matches!(state, State::Dead(_))));
        let timers = self.runs.iter().filter_map(|(first, run)| run.state.timer().map(|at| (at, *first)));
        assert_eq!(self.timers, timers.collect());
        let leased = self.iter().filter(|(_, state)| matches!(state, State::Leased(_)));
        assert_eq!(self.leased, leased.map(|(range, _)| range.count()).sum::<u64>());
    }
}
