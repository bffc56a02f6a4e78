//! Which member of a group should read which partition.
//!
//! [`assign`] answers, in this order of importance:
//!
//! 1. **Complete.** Each partition has exactly one owner that reads its topic, if anybody does.
//! 2. **Even.** No partition, and no chain of partitions handed on from member to member, can be moved so that the loads
//!    of members become more even. If all members read the same topics, their loads differ by one at most.
//! 3. **Sticky.** A partition stays where it is held unless its owner is gone, does not read it any more, or has more
//!    than its even share. If all members read the same topics, no assignment that is as even moves fewer of them; if
//!    not, hardly any does.
//! 4. **Near.** Of the partitions that have to move or are new, those with a replica in a member's rack go to that member
//!    where this costs no evenness: neither handing one of them to another member nor exchanging two would bring more of
//!    them near. Nothing moves only to be near.
//!
//! The answer depends on ids and keys, not on the order in which they are given.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::PartitionKey;
use crate::metadata::TopicId;

/// A member, and what it reads.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// Its id, which no other reader has.
    pub id: &'a str,
    /// Where it runs, if that is known.
    pub rack: Option<&'a str>,
    /// The topics that it reads.
    pub topics: &'a BTreeSet<TopicId>,
}

/// A partition that should have an owner.
#[derive(Clone, Copy, Debug)]
pub struct Partition<'a> {
    /// Which one; given once.
    pub key: PartitionKey,
    /// The racks of its replicas, as far as they are known.
    pub racks: &'a [Arc<str>],
    /// Whose it is now.
    pub current: Current,
}

/// Whose a partition is before it is assigned anew. Readers are named by their place in the list of readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Current {
    /// Nobody's.
    #[default]
    Nobody,
    /// This reader has it, and is interrupted when it moves.
    Held(usize),
    /// It was meant for this reader, which does not have it yet: nobody notices if it goes elsewhere.
    Promised(usize),
}

/// Assigns partitions to readers; see the module. For each partition, in the order of the argument, the place of its
/// owner in `readers`, or none if nobody reads it.
#[must_use]
pub fn assign(readers: &[Reader<'_>], partitions: &[Partition<'_>]) -> Vec<Option<usize>> {
    let mut by_id: Vec<usize> = (0..readers.len()).collect();
    by_id.sort_unstable_by_key(|at| readers[*at].id);
    let mut by_key: Vec<usize> = (0..partitions.len()).collect();
    by_key.sort_unstable_by_key(|at| partitions[*at].key);

    let mut plan = Plan::new(readers, partitions, &by_id, &by_key);
    plan.place();
    plan.even_out();
    plan.bring_near();

    let mut owners = vec![None; partitions.len()];
    for (at, owner) in by_key.into_iter().zip(plan.owners) {
        owners[at] = owner.map(|reader| by_id[reader]);
    }
    owners
}

/// The work in progress. Readers and partitions are numbered in the order of their ids and keys.
struct Plan<'a> {
    readers: Vec<Reader<'a>>,
    partitions: Vec<Partition<'a>>,
    /// The class of each partition. Topics with the same readers are one class: it does not matter of which of them a
    /// partition is when loads are evened out, and one search serves them all.
    class_of: Vec<usize>,
    /// The readers of each class, ascending.
    class_readers: Vec<Vec<usize>>,
    /// Who holds a partition now.
    holders: Vec<Option<usize>>,
    owners: Vec<Option<usize>>,
    loads: Vec<usize>,
    /// How many of its load a reader holds now.
    held: Vec<usize>,
    /// The partitions of each reader by class; none of the lists is empty.
    owned: Vec<BTreeMap<usize, Vec<usize>>>,
}

impl<'a> Plan<'a> {
    fn new(readers: &[Reader<'a>], partitions: &[Partition<'a>], by_id: &[usize], by_key: &[usize]) -> Self {
        let readers: Vec<_> = by_id.iter().map(|at| readers[*at]).collect();
        let mut rank = vec![0; readers.len()];
        for (place, at) in by_id.iter().enumerate() {
            rank[*at] = place;
        }
        let partitions: Vec<_> = by_key.iter().map(|at| partitions[*at]).collect();
        let (class_of, class_readers) = classes(&readers, &partitions);
        let mut plan = Plan {
            loads: vec![0; readers.len()],
            held: vec![0; readers.len()],
            owned: vec![BTreeMap::new(); readers.len()],
            holders: vec![None; partitions.len()],
            owners: vec![None; partitions.len()],
            readers,
            partitions,
            class_of,
            class_readers,
        };
        for partition in 0..plan.partitions.len() {
            let (owner, held) = match plan.partitions[partition].current {
                Current::Nobody => continue,
                Current::Held(at) => (rank[at], true),
                Current::Promised(at) => (rank[at], false),
            };
            if plan.may_read(owner, partition) {
                plan.holders[partition] = held.then_some(owner);
                plan.give(partition, owner);
            }
        }
        plan
    }

    /// Gives what nobody has to those who have least.
    fn place(&mut self) {
        for partition in 0..self.partitions.len() {
            if self.owners[partition].is_some() {
                continue;
            }
            let readers = &self.class_readers[self.class_of[partition]];
            let cost = |reader: &usize| (self.loads[*reader], !self.is_near(*reader, partition), *reader);
            if let Some(reader) = readers.iter().copied().min_by_key(cost) {
                self.give(partition, reader);
            }
        }
    }

    /// Hands partitions from those who have most, over others if need be, to those who have least.
    ///
    /// Loads are as even as they can be when no chain of such moves makes them more even, which is when none leads from
    /// a reader to one that has two partitions less.
    fn even_out(&mut self) {
        // From these no chain makes anything more even, nor does one that passes them: whoever they reach is among
        // them and has at most one partition less than anybody who is left.
        let mut done = vec![false; self.readers.len()];
        // Of those who have most, rather one that can give what it does not hold yet.
        let most = |plan: &Self, done: &[bool]| {
            let rank = |reader: &usize| {
                (plan.loads[*reader], plan.held[*reader] < plan.loads[*reader], Reverse(*reader))
            };
            (0..done.len()).filter(|reader| !done[*reader]).max_by_key(rank)
        };
        while let Some(from) = most(self, &done) {
            let (reached, steps) = self.reachable(from, &done);
            let least = reached.iter().copied().min_by_key(|reader| self.loads[*reader]);
            match least {
                Some(least) if self.loads[least] + 2 <= self.loads[from] => self.hand_on(from, least, &steps),
                _ => reached.into_iter().for_each(|reader| done[reader] = true),
            }
        }
    }

    /// Who can get a partition from `from` by way of others, nearest first, `from` itself included; and for each the
    /// reader before it on the way and the class of the partition that it gets from that one.
    fn reachable(&self, from: usize, done: &[bool]) -> (Vec<usize>, Vec<Option<(usize, usize)>>) {
        let mut steps = vec![None; self.readers.len()];
        let mut seen = done.to_vec();
        let mut seen_class = vec![false; self.class_readers.len()];
        let mut reached = vec![from];
        let mut queue = VecDeque::from([from]);
        seen[from] = true;
        while let Some(giver) = queue.pop_front() {
            for &class in self.owned[giver].keys() {
                if std::mem::replace(&mut seen_class[class], true) {
                    continue;
                }
                for &taker in &self.class_readers[class] {
                    if !std::mem::replace(&mut seen[taker], true) {
                        steps[taker] = Some((giver, class));
                        reached.push(taker);
                        queue.push_back(taker);
                    }
                }
            }
        }
        (reached, steps)
    }

    /// Moves a partition along each step of the way from `from` to `to`.
    fn hand_on(&mut self, from: usize, to: usize, steps: &[Option<(usize, usize)>]) {
        let mut taker = to;
        while taker != from {
            let (giver, class) = steps[taker].expect("every reader that is reached has one before it");
            // Rather one whose move interrupts nobody, then one that gets nearer.
            let cost = |partition: &usize| {
                let held = self.holders[*partition] == Some(giver);
                (held, self.is_near(giver, *partition), !self.is_near(taker, *partition), Reverse(*partition))
            };
            let partition = self.owned[giver][&class].iter().copied().min_by_key(cost);
            self.give(partition.expect("a reader is left by classes of which it has partitions"), taker);
            taker = giver;
        }
    }

    /// Makes more of the partitions that move or are new near, as long as one move or exchange does.
    fn bring_near(&mut self) {
        let known = self.readers.iter().any(|reader| reader.rack.is_some());
        if !known || self.partitions.iter().all(|partition| partition.racks.is_empty()) {
            return;
        }
        let free = |partition: &usize| self.owners[*partition].is_some() && !self.is_held(*partition);
        let free: Vec<usize> = (0..self.partitions.len()).filter(free).collect();
        // Each round but the last makes one partition more near, so there are at most as many as partitions.
        while free.iter().filter(|partition| self.bring_one_near(**partition)).count() > 0 {}
    }

    fn bring_one_near(&mut self, partition: usize) -> bool {
        let Some(owner) = self.owners[partition].filter(|owner| !self.is_near(*owner, partition)) else {
            return false;
        };
        let readers = &self.class_readers[self.class_of[partition]];
        for taker in readers.iter().copied().filter(|taker| self.is_near(*taker, partition)) {
            if self.loads[taker] + 1 == self.loads[owner] {
                self.give(partition, taker);
                return true;
            }
            let exchangeable = |other: &usize| {
                let no_loss = !self.is_near(taker, *other) || self.is_near(owner, *other);
                no_loss && !self.is_held(*other) && self.may_read(owner, *other)
            };
            if let Some(other) = self.owned[taker].values().flatten().copied().find(exchangeable) {
                self.give(other, owner);
                self.give(partition, taker);
                return true;
            }
        }
        false
    }

    /// Makes `reader` the owner of a partition, whoever was before.
    fn give(&mut self, partition: usize, reader: usize) {
        let class = self.class_of[partition];
        if let Some(before) = self.owners[partition].replace(reader) {
            self.loads[before] -= 1;
            self.held[before] -= usize::from(self.holders[partition] == Some(before));
            let list = self.owned[before].get_mut(&class).expect("an owner has a list of the class");
            let at = list.iter().position(|other| *other == partition);
            list.swap_remove(at.expect("an owner has the partition in its list"));
            if list.is_empty() {
                self.owned[before].remove(&class);
            }
        }
        self.loads[reader] += 1;
        self.held[reader] += usize::from(self.holders[partition] == Some(reader));
        self.owned[reader].entry(class).or_default().push(partition);
    }

    /// Whether the partition stays with the one that has it now.
    fn is_held(&self, partition: usize) -> bool {
        self.holders[partition].is_some() && self.holders[partition] == self.owners[partition]
    }

    fn is_near(&self, reader: usize, partition: usize) -> bool {
        let racks = self.partitions[partition].racks;
        self.readers[reader].rack.is_some_and(|rack| racks.iter().any(|other| **other == *rack))
    }

    fn may_read(&self, reader: usize, partition: usize) -> bool {
        self.class_readers[self.class_of[partition]].binary_search(&reader).is_ok()
    }
}

/// The class of each partition, and the readers of each class. Partitions come by key, so topic after topic.
fn classes(readers: &[Reader<'_>], partitions: &[Partition<'_>]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut class_of = Vec::with_capacity(partitions.len());
    let mut known: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
    for topic in partitions.chunk_by(|a, b| a.key.topic == b.key.topic) {
        let reads = |reader: &usize| readers[*reader].topics.contains(&topic[0].key.topic);
        let class = known.len();
        let class = *known.entry((0..readers.len()).filter(reads).collect()).or_insert(class);
        class_of.extend(std::iter::repeat_n(class, topic.len()));
    }
    let mut class_readers = vec![Vec::new(); known.len()];
    for (readers, class) in known {
        class_readers[class] = readers;
    }
    (class_of, class_readers)
}

#[cfg(test)]
mod tests;
