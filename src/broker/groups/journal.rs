//! When records of a partition were delivered to a group and acknowledged by it: the newest of both, in memory.
//!
//! One note for each delivery, each committed offset and each accepted range, whatever the number of records. A partition
//! of a group has room for [`NOTES_MAX`] notes of either kind, and all of them together for [`ALL_MAX`]; what is beyond is
//! the oldest, and is forgotten. What was forgotten is known as that: [`Journal::look_up`] tells "never" from "not
//! known any more".

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Timestamp;
use crate::coordination::PartitionKey;
use crate::record::{Offset, SpanLink};

/// Notes of a kind that one partition of a group keeps.
pub(super) const NOTES_MAX: usize = 256;
/// Notes of a kind that are kept in all.
const ALL_MAX: usize = 65_536;
/// Partitions of groups that are kept apart. Those that were quiet for the longest time are forgotten first.
const PAIRS_MAX: usize = 16_384;

/// Records that were delivered together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// When.
    pub at: Timestamp,
    /// To whom.
    pub member: Arc<str>,
    /// The span of the delivery, if it was sampled.
    pub span: Option<SpanLink>,
}

/// Whether something happened to a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known<T> {
    /// It did; this was the first time since the memory begins.
    First(T),
    /// It did not, as far as the memory reaches, and that is far enough.
    Never,
    /// The memory does not reach back far enough.
    Forgotten,
}

/// What is remembered of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) delivery: Known<Delivery>,
    pub(super) acknowledgement: Known<Timestamp>,
    /// When the first thing was noted of the partition and the group.
    pub(super) since: Option<Timestamp>,
}

impl Found {
    /// Nothing is remembered.
    pub(super) const NOTHING: Found =
        Found { delivery: Known::Forgotten, acknowledgement: Known::Forgotten, since: None };
}

/// A partition of a group, in a term in which this broker coordinates it.
pub(super) struct Place<'a> {
    pub(super) group: &'a Arc<str>,
    pub(super) key: PartitionKey,
    pub(super) term: u32,
}

impl Place<'_> {
    fn id(&self) -> (Arc<str>, PartitionKey) {
        (self.group.clone(), self.key)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Journal(Mutex<State>);

type Pairs = HashMap<(Arc<str>, PartitionKey), Pair>;

#[derive(Debug, Default)]
struct State {
    pairs: Pairs,
    deliveries: usize,
    acknowledgements: usize,
    /// Counts notes, to tell which pair was quiet for longest.
    clock: u64,
}

#[derive(Debug)]
struct Pair {
    /// The term in which this broker coordinates the group. In another term somebody else may have in between.
    term: u32,
    since: Timestamp,
    touched: u64,
    deliveries: Notes<Delivery>,
    acknowledgements: Notes<Timestamp>,
}

/// Ranges of offsets, last one excluded, in the order in which something happened to them.
#[derive(Debug)]
struct Notes<T> {
    notes: VecDeque<(Offset, Offset, T)>,
    /// Of notes that were forgotten: the end of the range that reached furthest.
    forgotten_to: Offset,
}

impl<T> Default for Notes<T> {
    fn default() -> Self {
        Notes { notes: VecDeque::new(), forgotten_to: Offset(0) }
    }
}

impl<T: Clone> Notes<T> {
    fn push(&mut self, first: Offset, end: Offset, what: T) {
        self.notes.push_back((first, end, what));
    }

    fn forget_oldest(&mut self) {
        if let Some((_, end, _)) = self.notes.pop_front() {
            self.forgotten_to = self.forgotten_to.max(end);
        }
    }

    /// `complete`: nothing can have happened before the memory began.
    fn look_up(&self, offset: Offset, complete: bool) -> Known<T> {
        if offset < self.forgotten_to {
            return Known::Forgotten;
        }
        match self.notes.iter().find(|(first, end, _)| (*first..*end).contains(&offset)) {
            Some((_, _, what)) => Known::First(what.clone()),
            None if complete => Known::Never,
            None => Known::Forgotten,
        }
    }
}

impl Journal {
    /// Records of a range, last one excluded, were delivered.
    pub(super) fn delivered(&self, at: &Place<'_>, range: Range<Offset>, delivery: Delivery) {
        let mut state = self.lock();
        let now = delivery.at;
        state.pair(at, now);
        let State { pairs, deliveries, .. } = &mut *state;
        make_room(
            pairs,
            deliveries,
            at,
            |pair| pair.deliveries.notes.len(),
            |pair| pair.deliveries.forget_oldest(),
        );
        state.pair(at, now).deliveries.push(range.start, range.end, delivery);
        state.deliveries += 1;
    }

    /// The newest delivery has this span.
    pub(super) fn delivered_in(&self, at: &Place<'_>, span: SpanLink) {
        let mut state = self.lock();
        let pair = state.pairs.get_mut(&at.id()).filter(|pair| pair.term == at.term);
        if let Some((_, _, delivery)) = pair.and_then(|pair| pair.deliveries.notes.back_mut()) {
            delivery.span.get_or_insert(span);
        }
    }

    /// The group is done with the records of a range, last one excluded.
    pub(super) fn acknowledged(&self, at: &Place<'_>, range: Range<Offset>, now: Timestamp) {
        let mut state = self.lock();
        state.pair(at, now);
        let State { pairs, acknowledgements, .. } = &mut *state;
        make_room(
            pairs,
            acknowledgements,
            at,
            |pair| pair.acknowledgements.notes.len(),
            |pair| pair.acknowledgements.forget_oldest(),
        );
        state.pair(at, now).acknowledgements.push(range.start, range.end, now);
        state.acknowledgements += 1;
    }

    /// What is remembered of the record at `offset`, which was appended at `appended`.
    pub(super) fn look_up(&self, at: &Place<'_>, offset: Offset, appended: Timestamp) -> Found {
        let state = self.lock();
        let Some(pair) = state.pairs.get(&at.id()).filter(|pair| pair.term == at.term) else {
            return Found::NOTHING;
        };
        // What was appended before the memory began may have been delivered before it, too.
        let complete = appended >= pair.since;
        Found {
            delivery: pair.deliveries.look_up(offset, complete),
            acknowledgement: pair.acknowledgements.look_up(offset, complete),
            since: Some(pair.since),
        }
    }

    /// Notes that the broker watches a partition for a group from now on, if it did not before.
    pub(super) fn begin(&self, at: &Place<'_>, now: Timestamp) {
        self.lock().pair(at, now);
    }

    /// Forgets a group, which is deleted.
    pub(super) fn forget(&self, group: &str) {
        let mut state = self.lock();
        let gone: Vec<_> = state.pairs.keys().filter(|(name, _)| **name == *group).cloned().collect();
        gone.iter().for_each(|key| state.remove(key));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pair(&mut self, at: &Place<'_>, now: Timestamp) -> &mut Pair {
        let id = at.id();
        if self.pairs.get(&id).is_some_and(|pair| pair.term != at.term) {
            self.remove(&id);
        }
        if !self.pairs.contains_key(&id) && self.pairs.len() >= PAIRS_MAX {
            self.forget_quietest();
        }
        self.clock += 1;
        let pair = self.pairs.entry(id).or_insert_with(|| Pair {
            term: at.term,
            since: now,
            touched: 0,
            deliveries: Notes::default(),
            acknowledgements: Notes::default(),
        });
        pair.touched = self.clock;
        pair
    }

    /// Forgets the pairs that were quiet for longest, some at once: finding them takes a look at all.
    fn forget_quietest(&mut self) {
        let mut touched: Vec<u64> = self.pairs.values().map(|pair| pair.touched).collect();
        let (_, limit, _) = touched.select_nth_unstable(PAIRS_MAX / 64);
        let quiet = self.pairs.iter().filter(|(_, pair)| pair.touched <= *limit);
        let quiet: Vec<_> = quiet.map(|(key, _)| key.clone()).collect();
        quiet.iter().for_each(|key| self.remove(key));
    }

    fn remove(&mut self, key: &(Arc<str>, PartitionKey)) {
        if let Some(pair) = self.pairs.remove(key) {
            self.deliveries -= pair.deliveries.notes.len();
            self.acknowledgements -= pair.acknowledgements.notes.len();
        }
    }
}

/// Forgets a note, if there is no room for one more of the pair: its own oldest if it has its share or more, else the
/// oldest of the pair that has the most.
fn make_room(
    pairs: &mut Pairs,
    total: &mut usize,
    at: &Place<'_>,
    notes: impl Fn(&Pair) -> usize,
    forget_oldest: impl Fn(&mut Pair),
) {
    let (id, count, full) = (at.id(), pairs.len().max(1), *total >= ALL_MAX);
    let own = pairs.get(&id).map_or(0, &notes);
    let victim = if own >= NOTES_MAX || full && own > 0 && own >= ALL_MAX / count {
        pairs.get_mut(&id)
    } else if full {
        pairs.values_mut().max_by_key(|pair| notes(pair))
    } else {
        None
    };
    if let Some(victim) = victim {
        forget_oldest(victim);
        *total -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::TopicId;

    fn place(group: &Arc<str>, partition: u32) -> Place<'_> {
        Place { group, key: PartitionKey { topic: TopicId(1), partition }, term: 1 }
    }

    fn to(member: &str, at: i64) -> Delivery {
        Delivery { at: Timestamp(at), member: member.into(), span: None }
    }

    fn deliver(journal: &Journal, at: &Place<'_>, range: Range<u64>, now: i64) {
        journal.delivered(at, Offset(range.start)..Offset(range.end), to("m", now));
    }

    #[test]
    fn the_first_delivery_and_the_first_acknowledgement_are_told() {
        let (journal, group): (Journal, Arc<str>) = (Journal::default(), "g".into());
        let at = place(&group, 0);
        journal.begin(&at, Timestamp(1));
        deliver(&journal, &at, 0..5, 10);
        deliver(&journal, &at, 0..9, 20);
        journal.acknowledged(&at, Offset(0)..Offset(3), Timestamp(30));
        let found = journal.look_up(&at, Offset(2), Timestamp(5));
        assert_eq!(found.delivery, Known::First(to("m", 10)));
        assert_eq!((found.acknowledgement, found.since), (Known::First(Timestamp(30)), Some(Timestamp(1))));
        let later = journal.look_up(&at, Offset(7), Timestamp(5));
        assert_eq!((later.delivery, later.acknowledgement), (Known::First(to("m", 20)), Known::Never));
        assert_eq!(journal.look_up(&at, Offset(9), Timestamp(5)).delivery, Known::Never);
    }

    #[test]
    fn what_is_older_than_the_memory_is_not_known() {
        let (journal, group): (Journal, Arc<str>) = (Journal::default(), "g".into());
        let at = place(&group, 0);
        assert_eq!(journal.look_up(&at, Offset(0), Timestamp(5)).delivery, Known::Forgotten);
        deliver(&journal, &at, 0..1, 10);
        // Appended before anything was noted: an earlier coordinator may have delivered it.
        assert_eq!(journal.look_up(&at, Offset(1), Timestamp(5)).delivery, Known::Forgotten);
        assert_eq!(journal.look_up(&at, Offset(1), Timestamp(10)).delivery, Known::Never);
        for offset in 1..=NOTES_MAX as u64 {
            deliver(&journal, &at, offset..offset + 1, 20);
        }
        assert_eq!(journal.look_up(&at, Offset(0), Timestamp(15)).delivery, Known::Forgotten);
        assert!(matches!(journal.look_up(&at, Offset(1), Timestamp(15)).delivery, Known::First(_)));
        journal.forget("g");
        assert_eq!(journal.look_up(&at, Offset(1), Timestamp(15)).since, None);
    }

    #[test]
    fn a_new_term_begins_a_new_memory() {
        let (journal, group): (Journal, Arc<str>) = (Journal::default(), "g".into());
        let (before, after) = (place(&group, 0), Place { term: 2, ..place(&group, 0) });
        deliver(&journal, &before, 0..1, 10);
        assert_eq!(journal.look_up(&after, Offset(0), Timestamp(10)).delivery, Known::Forgotten);
        journal.begin(&after, Timestamp(20));
        assert_eq!(journal.look_up(&after, Offset(0), Timestamp(20)).delivery, Known::Never);
        assert_eq!(journal.lock().deliveries, 0);
    }

    #[test]
    fn a_span_is_added_to_the_newest_delivery() {
        let (journal, group): (Journal, Arc<str>) = (Journal::default(), "g".into());
        let (at, span) = (place(&group, 0), SpanLink { trace_id: [1; 16], span_id: [2; 8] });
        journal.delivered_in(&at, span);
        deliver(&journal, &at, 0..1, 10);
        journal.delivered_in(&at, span);
        let found = journal.look_up(&at, Offset(0), Timestamp(10)).delivery;
        assert_eq!(found, Known::First(Delivery { span: Some(span), ..to("m", 10) }));
    }

    #[test]
    fn all_groups_together_have_a_bound_and_a_quiet_one_keeps_its_share() {
        let journal = Journal::default();
        let (quiet, busy): (Arc<str>, Arc<str>) = ("quiet".into(), "busy".into());
        deliver(&journal, &place(&quiet, 0), 0..1, 10);
        for partition in 0..(ALL_MAX / NOTES_MAX) as u32 + 8 {
            for offset in 0..NOTES_MAX as u64 {
                deliver(&journal, &place(&busy, partition), offset..offset + 1, 20);
            }
        }
        let state = journal.lock();
        let held: usize = state.pairs.values().map(|pair| pair.deliveries.notes.len()).sum();
        assert_eq!((held, state.deliveries), (ALL_MAX, ALL_MAX));
        drop(state);
        let found = journal.look_up(&place(&quiet, 0), Offset(0), Timestamp(10)).delivery;
        assert!(matches!(found, Known::First(_)));
    }
}
