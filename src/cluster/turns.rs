//! Whose turn it is: which damaged replicas are repaired now, and how many partitions may begin to move beside. Pure but for
//! [`Patience`].
//!
//! A partition takes a place from when its replicas begin to move, or one of them to be repaired, until that is over; there
//! are `cluster.moves_at_once` places. What has begun goes on, repairs come before moves, and what cannot go on keeps nobody
//! else waiting: a damaged replica that cannot leave its group gives up its turn, since it has all that it had, and what waits
//! for a broker or a leader does not count meanwhile. All of it follows from the metadata, so whoever leads the control group
//! next goes on with it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::group_of;
use crate::metadata::{BrokerId, Command, PartitionAssignment, RepairStage, State, TopicId};
use crate::storage::GroupId;

/// How long something that has begun may not go on before others have its place.
const PATIENCE: Duration = Duration::from_secs(30);

/// What may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turns {
    /// Repairs that begin, and those that give up their turns.
    pub(crate) commands: Vec<Command>,
    /// How many partitions may begin to move.
    pub(crate) free: usize,
}

/// A partition at a revision.
type Place = (TopicId, u32, u32);

/// Gives `places` to those who have waited. `stuck` have begun and cannot go on. Only what is `led` begins.
pub(crate) fn turns(
    state: &State,
    places: usize,
    stuck: &HashSet<GroupId>,
    led: impl Fn(GroupId) -> bool,
    reached: impl Fn(BrokerId) -> bool,
) -> Turns {
    let takes_replicas = |id| state.broker(id).is_some_and(|broker| broker.takes_replicas());
    let mut taken = 0;
    let mut waiting: Vec<(u32, Place)> = Vec::new();
    let mut late: Vec<Place> = Vec::new();
    let mut commands = Vec::new();
    for topic in state.topics() {
        for (number, assignment) in topic.partitions.iter().enumerate() {
            let number = number as u32;
            let place = (topic.id, number, assignment.revision);
            let stuck = || stuck.contains(&group_of(topic, number));
            let next = assignment.next_repair();
            match assignment.under_repair().map(|repair| repair.stage) {
                // Another one of the same partition may be able to leave.
                Some(RepairStage::Leaving) if next.is_some() && stuck() => commands.push(defer(place)),
                Some(RepairStage::Leaving) => {
                    taken += 1;
                    if stuck() {
                        late.push(place);
                    }
                }
                Some(_) => taken += usize::from(!stuck()),
                None if assignment.is_moving() => taken += usize::from(!stuck()),
                None => {
                    // A broker that is to go loses the replica anyway.
                    if let Some(next) = next
                        && takes_replicas(next.broker)
                        && can_leave(assignment, next.broker, &reached)
                        && led(group_of(topic, number))
                    {
                        waiting.push((next.deferred, place));
                    }
                }
            }
        }
    }
    waiting.sort_unstable();
    let free = places.saturating_sub(taken);
    let begin = waiting.len().min(free);
    commands.extend(waiting.drain(..begin).map(|(_, (topic, partition, revision))| Command::AdvanceRepair {
        topic,
        partition,
        revision,
        from: RepairStage::Waiting,
    }));
    // A move does not make a repair give up its turn, and does not wait for one that cannot go on, which may be for ever.
    let free = places.saturating_sub(taken - late.len() + begin);
    commands.extend(late.into_iter().take(waiting.len()).map(defer));
    Turns { commands, free }
}

fn defer((topic, partition, revision): Place) -> Command {
    Command::DeferRepair { topic, partition, revision }
}

/// Whether the damaged replica of `broker` can be done without: there is a majority of the others, and one that is intact.
pub(crate) fn can_leave(
    assignment: &PartitionAssignment,
    broker: BrokerId,
    reached: impl Fn(BrokerId) -> bool,
) -> bool {
    let others: Vec<BrokerId> = assignment.replicas.iter().copied().filter(|id| *id != broker).collect();
    let there = others.iter().filter(|id| reached(**id)).count();
    let intact = others.iter().any(|id| reached(*id) && !assignment.is_damaged(*id));
    reached(broker) && there * 2 > others.len() && intact
}

/// Whether what has begun with a partition goes on by itself, however long it takes. Who leaves its group, or deletes what
/// it has, is expected to have done so soon.
fn goes_on(
    assignment: &PartitionAssignment,
    led: bool,
    leader_is_intact: bool,
    reached: impl Fn(BrokerId) -> bool,
) -> bool {
    let arrived = |id: &BrokerId| assignment.moving_from.contains(id) || reached(*id);
    match assignment.under_repair() {
        None => led && assignment.replicas.iter().all(arrived),
        Some(repair) => match repair.stage {
            RepairStage::Waiting | RepairStage::Leaving | RepairStage::Emptying => false,
            RepairStage::Joining => led && leader_is_intact && reached(repair.broker),
        },
    }
}

/// Since when what has begun does not go on, as far as this control leader has seen. Another one has as much patience again.
pub(crate) struct Patience {
    /// How long it lasts.
    lasts: Duration,
    since: HashMap<GroupId, (Stage, Instant)>,
}

/// What goes on with a partition: its revision, and how far a repair is.
type Stage = (u32, Option<RepairStage>);

impl Default for Patience {
    fn default() -> Self {
        Patience::new(PATIENCE)
    }
}

impl Patience {
    pub(crate) fn new(lasts: Duration) -> Self {
        Patience { lasts, since: HashMap::new() }
    }

    /// Those that have not gone on for too long. `leads` says whether a partition has a leader, and whether the replica of
    /// that is intact.
    pub(crate) fn stuck(
        &mut self,
        state: &State,
        leads: impl Fn(GroupId) -> (bool, bool),
        reached: impl Fn(BrokerId) -> bool,
    ) -> HashSet<GroupId> {
        let now = Instant::now();
        let before = std::mem::take(&mut self.since);
        for topic in state.topics() {
            for (number, assignment) in topic.partitions.iter().enumerate() {
                if !assignment.is_moving() && assignment.under_repair().is_none() {
                    continue;
                }
                let group = group_of(topic, number as u32);
                let (led, intact) = leads(group);
                if !goes_on(assignment, led, intact, &reached) {
                    let stage = (assignment.revision, assignment.under_repair().map(|repair| repair.stage));
                    let known = before.get(&group).filter(|(known, _)| *known == stage);
                    self.since.insert(group, known.copied().unwrap_or((stage, now)));
                }
            }
        }
        let late = self.since.iter().filter(|(_, (_, since))| now - *since >= self.lasts);
        late.map(|(group, _)| *group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::metadata::{Broker, Settings};
    use crate::record::CodecSet;

    const TOPIC: TopicId = TopicId(1);

    /// Four brokers, and a topic with so many partitions on the first three of them.
    fn state(partitions: usize) -> State {
        let mut state = State::default();
        let settings = Settings {
            retention: None,
            retention_bytes: None,
            record_bytes_max: 1000,
            batch_bytes_max: 2000,
            codecs: CodecSet::ALL,
        };
        let create = Command::CreateTopic {
            name: "a".into(),
            settings,
            replication_factor: 3,
            created: Timestamp(0),
            partitions: vec![PartitionAssignment::new([1, 2, 3].map(BrokerId).to_vec()); partitions],
        };
        let admitted = (2..=4).map(|address| Command::AdmitBroker(Broker::fake(address)));
        apply(
            &mut state,
            [Command::RegisterBroker(Broker::fake(1))].into_iter().chain(admitted).chain([create]),
        );
        state
    }

    fn apply(state: &mut State, commands: impl IntoIterator<Item = Command>) {
        for command in commands {
            state.apply(command).expect("it fits");
        }
    }

    fn now(state: &State, partition: u32) -> &PartitionAssignment {
        &state.topic("a").expect("there").partitions[partition as usize]
    }

    fn damaged(state: &mut State, partition: u32, broker: u64) {
        let (revision, broker) = (now(state, partition).revision, BrokerId(broker));
        apply(
            state,
            [Command::BeginRepair { topic: TOPIC, partition, revision, broker, reason: "row 7".into() }],
        );
    }

    fn over(state: &mut State, partition: u32, stages: &[RepairStage]) {
        for from in stages {
            let revision = now(state, partition).revision;
            apply(state, [Command::AdvanceRepair { topic: TOPIC, partition, revision, from: *from }]);
        }
    }

    fn moves(state: &mut State, partition: u32) {
        let replicas = [1, 2, 4].map(BrokerId).to_vec();
        apply(state, [Command::ReassignPartition { name: "a".into(), partition, replicas }]);
    }

    fn group(partition: u32) -> GroupId {
        GroupId::partition(TOPIC.0, partition)
    }

    /// Gives turns while all brokers but `away` are reached, and the number of moves that may begin beside.
    fn give(state: &mut State, places: usize, stuck: &[u32], away: &[u64]) -> usize {
        let stuck = stuck.iter().copied().map(group).collect();
        let given = turns(state, places, &stuck, |_| true, |id| !away.contains(&id.0));
        apply(state, given.commands);
        given.free
    }

    /// Partitions of which a replica is being repaired, with its broker.
    fn begun(state: &State) -> Vec<(u32, u64)> {
        let partitions = &state.topic("a").expect("there").partitions;
        let begun = (0..).zip(partitions);
        begun.filter_map(|(number, one)| Some((number, one.under_repair()?.broker.0))).collect()
    }

    use RepairStage::{Emptying, Joining, Leaving};

    #[test]
    fn repairs_begin_a_few_at_a_time_and_before_moves() {
        let mut state = state(5);
        assert_eq!(give(&mut state, 2, &[], &[]), 2);
        for partition in 0..5 {
            damaged(&mut state, partition, 3);
        }
        assert_eq!(give(&mut state, 2, &[], &[]), 0);
        assert_eq!(begun(&state), [(0, 3), (1, 3)]);
        over(&mut state, 0, &[Leaving]);
        over(&mut state, 1, &[Leaving, Emptying]);
        assert_eq!(give(&mut state, 2, &[], &[]), 0);
        assert_eq!(begun(&state), [(0, 3), (1, 3)], "what has begun goes on");
        over(&mut state, 1, &[Joining]);
        assert_eq!(give(&mut state, 2, &[], &[]), 0);
        assert_eq!(begun(&state), [(0, 3), (2, 3)]);
        assert_eq!(give(&mut state, 8, &[], &[]), 4);
        assert_eq!(begun(&state).len(), 4);
    }

    #[test]
    fn moves_and_repairs_share_the_places() {
        let mut state = state(4);
        for partition in 0..3 {
            moves(&mut state, partition);
        }
        damaged(&mut state, 3, 3);
        assert_eq!(give(&mut state, 3, &[], &[]), 0);
        assert_eq!(begun(&state), []);
        assert_eq!(give(&mut state, 4, &[], &[]), 0);
        assert_eq!(begun(&state), [(3, 3)]);
        assert_eq!(give(&mut state, 5, &[], &[]), 1);
    }

    #[test]
    fn a_replica_that_cannot_leave_gives_its_turn_to_others() {
        let mut state = state(3);
        for partition in 0..3 {
            damaged(&mut state, partition, 3);
        }
        give(&mut state, 1, &[], &[]);
        assert_eq!(begun(&state), [(0, 3)]);
        give(&mut state, 1, &[], &[]);
        assert_eq!(begun(&state), [(0, 3)]);
        for (stuck, next) in [(0, 1), (1, 2), (2, 0), (0, 1)] {
            give(&mut state, 1, &[stuck], &[]);
            assert_eq!(begun(&state), [], "{stuck} gives up its turn");
            give(&mut state, 1, &[], &[]);
            assert_eq!(begun(&state), [(next, 3)]);
        }
    }

    #[test]
    fn a_replica_that_cannot_leave_keeps_its_turn_if_nobody_else_waits() {
        let mut state = state(2);
        damaged(&mut state, 0, 3);
        give(&mut state, 1, &[], &[]);
        give(&mut state, 1, &[0], &[]);
        assert_eq!(begun(&state), [(0, 3)]);
        damaged(&mut state, 0, 2);
        give(&mut state, 1, &[0], &[]);
        give(&mut state, 1, &[], &[]);
        assert_eq!(begun(&state), [(0, 2)], "another replica of the partition may be able to");
    }

    #[test]
    fn what_waits_for_a_broker_or_a_leader_keeps_nobody_waiting() {
        let mut state = state(3);
        damaged(&mut state, 0, 3);
        give(&mut state, 2, &[], &[]);
        over(&mut state, 0, &[Leaving]);
        moves(&mut state, 1);
        damaged(&mut state, 2, 3);
        give(&mut state, 2, &[], &[]);
        assert_eq!(begun(&state), [(0, 3)]);
        give(&mut state, 2, &[1], &[]);
        assert_eq!(begun(&state), [(0, 3), (2, 3)]);
        assert_eq!(give(&mut state, 2, &[0, 1], &[]), 1);
    }

    #[test]
    fn a_repair_that_could_not_go_on_does_not_begin() {
        let cannot = |damage: &[u64], away: &[u64], draining: Option<u64>| {
            let mut state = state(2);
            damage.iter().for_each(|broker| damaged(&mut state, 0, *broker));
            let drain = draining.map(|id| Command::DrainBroker { id: BrokerId(id), draining: true });
            apply(&mut state, drain);
            let free = give(&mut state, 1, &[], away);
            begun(&state).is_empty() && free == 1
        };
        assert!(!cannot(&[3], &[4], None));
        assert!(!cannot(&[3, 2], &[], None));
        assert!(cannot(&[3], &[3], None), "its broker is away");
        assert!(cannot(&[3], &[2], None), "there is no majority of the others");
        assert!(cannot(&[3, 2, 1], &[], None), "no other one is intact");
        assert!(cannot(&[3], &[], Some(3)), "it moves away anyway");
        let mut state = state(1);
        damaged(&mut state, 0, 3);
        let nothing = Turns { commands: Vec::new(), free: 1 };
        assert_eq!(turns(&state, 1, &HashSet::new(), |_| false, |_| true), nothing, "nobody leads");
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_for_what_does_not_go_on() {
        let mut state = state(4);
        for partition in [0, 1, 3] {
            damaged(&mut state, partition, 3);
        }
        moves(&mut state, 2);
        give(&mut state, 4, &[], &[]);
        over(&mut state, 1, &[Leaving, Emptying]);
        over(&mut state, 3, &[Leaving]);
        let mut patience = Patience::default();
        let mut look = |state: &State, led: bool, intact: bool, away: u64| {
            let stuck = patience.stuck(state, |_| (led, intact), |id| id.0 != away);
            let mut numbers: Vec<u32> = stuck.into_iter().map(|group| group.0 as u32).collect();
            numbers.sort_unstable();
            numbers
        };
        assert_eq!(look(&state, true, true, 0), [0; 0]);
        tokio::time::advance(PATIENCE).await;
        assert_eq!(look(&state, true, true, 0), [0, 3], "it should have left, it should be empty");
        assert_eq!(look(&state, false, true, 0), [0, 3], "for a moment");
        tokio::time::advance(PATIENCE).await;
        assert_eq!(look(&state, false, true, 0), [0, 1, 2, 3], "nobody leads");
        assert_eq!(look(&state, true, true, 0), [0, 3], "somebody does");
        for (intact, away, stuck) in
            [(true, 3, &[0, 1, 3][..]), (true, 4, &[0, 2, 3]), (false, 0, &[0, 1, 3])]
        {
            look(&state, true, intact, away);
            tokio::time::advance(PATIENCE).await;
            assert_eq!(look(&state, true, intact, away), stuck, "{intact} {away}");
            look(&state, true, true, 0);
        }
        over(&mut state, 0, &[Leaving]);
        over(&mut state, 3, &[Emptying]);
        assert_eq!(look(&state, true, true, 0), [0; 0]);
    }
}
