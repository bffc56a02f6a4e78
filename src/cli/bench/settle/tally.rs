//! Who has which partition, and how steadily records come.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::client::{AssignedPartition, Committer, RebalanceListener, TopicPartition};

/// The partitions of each member, by group.
pub(super) type Assignment = Vec<Vec<BTreeSet<u32>>>;

/// What the members of all groups have, as they have heard it.
pub(super) struct Tally {
    partitions: u32,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    held: Assignment,
    /// Members that have died.
    dead: Vec<BTreeSet<usize>>,
    last_change: Instant,
    /// Partitions that members had to give up or have lost.
    taken: u64,
}

impl Tally {
    /// Nobody has anything.
    pub(super) fn new(groups: usize, members: usize, partitions: u32) -> Tally {
        let held = vec![vec![BTreeSet::new(); members]; groups];
        let dead = vec![BTreeSet::new(); groups];
        let state = State { held, dead, last_change: Instant::now(), taken: 0 };
        Tally { partitions, state: Mutex::new(state), changed: Notify::new() }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.last_change = Instant::now();
        drop(state);
        self.changed.notify_one();
    }

    /// A member is dead, and has nothing any more.
    pub(super) fn died(&self, group: usize, member: usize) {
        self.change(|state| {
            state.held[group][member].clear();
            state.dead[group].insert(member);
        });
    }

    /// A member joins, for the first time or again.
    pub(super) fn comes(&self, group: usize, member: usize) {
        self.change(|state| {
            state.dead[group].remove(&member);
        });
    }

    pub(super) fn assignment(&self) -> Assignment {
        self.lock().held.clone()
    }

    /// Partitions that living members had to give up or have lost so far.
    pub(super) fn taken(&self) -> u64 {
        self.lock().taken
    }

    /// Waits until every partition of each group has one owner, the living members have equally many, and nothing has
    /// changed for `stable`. Tells when the last change was.
    pub(super) async fn settled(&self, stable: Duration) -> Instant {
        loop {
            let (settled, last_change) = {
                let state = self.lock();
                (state.unsettled(self.partitions) == 0, state.last_change)
            };
            let left = stable.saturating_sub(last_change.elapsed());
            if settled && left.is_zero() {
                return last_change;
            }
            // Either way it is looked at again.
            let _ = timeout(if settled { left } else { stable }, self.changed.notified()).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }
}

impl State {
    /// Groups whose assignment is not complete or not balanced.
    fn unsettled(&self, partitions: u32) -> usize {
        let groups = self.held.iter().zip(&self.dead);
        groups.filter(|(held, dead)| !is_settled(held, dead, partitions)).count()
    }
}

fn is_settled(held: &[BTreeSet<u32>], dead: &BTreeSet<usize>, partitions: u32) -> bool {
    let total: usize = held.iter().map(BTreeSet::len).sum();
    let different: BTreeSet<_> = held.iter().flatten().collect();
    let living = held.iter().enumerate().filter(|(member, _)| !dead.contains(member));
    let counts: Vec<_> = living.map(|(_, held)| held.len()).collect();
    let spread = counts.iter().max().zip(counts.iter().min()).map_or(0, |(most, least)| most - least);
    total == partitions as usize && different.len() == total && spread <= 1
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        write!(f, "{} of {} are not", state.unsettled(self.partitions), state.held.len())
    }
}

/// How many partitions have another owner in `after` than in `before`.
pub(super) fn moved(before: &Assignment, after: &Assignment) -> usize {
    let pairs = before.iter().flatten().zip(after.iter().flatten());
    pairs.map(|(before, after)| before.difference(after).count()).sum()
}

/// Notes what a member is given and has taken away.
pub(super) struct Listener {
    tally: Arc<Tally>,
    group: usize,
    member: usize,
}

impl Listener {
    pub(super) fn new(tally: &Arc<Tally>, group: usize, member: usize) -> Listener {
        Listener { tally: Arc::clone(tally), group, member }
    }

    fn taken(&self, partitions: &[TopicPartition]) {
        self.tally.change(|state| {
            let held = &mut state.held[self.group][self.member];
            held.retain(|held| !partitions.iter().any(|at| at.partition == *held));
            state.taken += partitions.len() as u64;
        });
    }
}

impl RebalanceListener for Listener {
    async fn on_assigned(&self, partitions: &[AssignedPartition], _: &Committer) {
        self.tally.change(|state| {
            let given = partitions.iter().map(|given| given.at.partition);
            state.held[self.group][self.member].extend(given);
        });
    }

    async fn on_revoked(&self, partitions: &[TopicPartition], _: &Committer) {
        self.taken(partitions);
    }

    async fn on_lost(&self, partitions: &[TopicPartition]) {
        self.taken(partitions);
    }
}

/// How long the records of partitions were apart.
#[derive(Default)]
pub(super) struct Gaps(Mutex<HashMap<u32, Gap>>);

struct Gap {
    last: Instant,
    largest: Duration,
}

impl Gaps {
    /// A record of a partition came.
    pub(super) fn seen(&self, partition: u32) {
        let now = Instant::now();
        self.lock()
            .entry(partition)
            .and_modify(|gap| {
                gap.largest = gap.largest.max(now.saturating_duration_since(gap.last));
                gap.last = now;
            })
            .or_insert(Gap { last: now, largest: Duration::ZERO });
    }

    /// Forgets the gaps that are over. Those that last go on.
    pub(super) fn restart(&self) {
        self.lock().values_mut().for_each(|gap| gap.largest = Duration::ZERO);
    }

    /// The largest gap of a partition; that which lasts counts. `None` before its first record.
    pub(super) fn of(&self, partition: u32) -> Option<Duration> {
        let gaps = self.lock();
        gaps.get(&partition).map(|gap| gap.largest.max(gap.last.elapsed()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Gap>> {
        self.0.lock().expect("no holder of this lock can panic")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets<const N: usize>(held: [&[u32]; N]) -> Vec<BTreeSet<u32>> {
        held.iter().map(|of_member| of_member.iter().copied().collect()).collect()
    }

    #[test]
    fn an_assignment_is_settled_when_it_is_complete_without_doubles_and_balanced() {
        let nobody = BTreeSet::new();
        assert!(is_settled(&sets([&[0, 1], &[2]]), &nobody, 3));
        assert!(!is_settled(&sets([&[0], &[2]]), &nobody, 3));
        assert!(!is_settled(&sets([&[0, 1], &[1]]), &nobody, 3));
        assert!(!is_settled(&sets([&[0, 1, 2], &[]]), &nobody, 3));
        assert!(is_settled(&sets([&[0, 1, 2], &[]]), &BTreeSet::from([1]), 3));
    }

    #[test]
    fn what_moved_is_what_a_member_had_and_has_no_more() {
        let before = vec![sets([&[0, 1], &[2, 3]])];
        assert_eq!(moved(&before, &vec![sets([&[], &[0, 1, 2, 3]])]), 2);
        assert_eq!(moved(&before, &vec![sets([&[2], &[0, 1, 3]])]), 3);
    }

    #[test]
    fn a_gap_that_lasts_counts() {
        let gaps = Gaps::default();
        gaps.seen(0);
        assert!(gaps.of(0) > Some(Duration::ZERO));
        assert_eq!(gaps.of(1), None);
    }

    #[test]
    fn a_member_that_comes_back_has_to_get_its_share() {
        let tally = Tally::new(1, 2, 2);
        tally.change(|state| state.held[0][1].extend([0, 1]));
        tally.died(0, 0);
        assert_eq!(tally.lock().unsettled(2), 0);
        tally.comes(0, 0);
        assert_eq!(tally.lock().unsettled(2), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn settling_is_timed_until_the_last_change() {
        let tally = Tally::new(1, 1, 1);
        let waiting = tally.settled(Duration::from_millis(1));
        let assigned = async {
            tally.change(|state| state.held[0][0].extend([0]));
            tally.lock().last_change
        };
        let (settled, assigned) = tokio::join!(waiting, assigned);
        assert_eq!(settled, assigned);
    }
}
