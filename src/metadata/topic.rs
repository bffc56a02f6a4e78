//! Topics, their settings and names.

use std::sync::Arc;
use std::time::Duration;

use super::{BrokerId, Error};
use crate::clock::Timestamp;
use crate::record::CodecSet;

/// Longest topic name, in bytes.
const NAME_BYTES_MAX: usize = 249;

/// Number of a topic. Never reused, so that a topic which is deleted and created again is another one. From 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub u32);

/// Effective settings of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a record is kept after its append; none is without limit. Millisecond precision.
    pub retention: Option<Duration>,
    /// How many bytes of batches a partition keeps; none is without limit.
    pub retention_bytes: Option<u64>,
    /// Largest record, in bytes of its serialization.
    pub record_bytes_max: u32,
    /// Largest batch, in bytes before compression.
    pub batch_bytes_max: u32,
    /// Codecs that batches may use.
    pub codecs: CodecSet,
}

/// The replicas of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionAssignment {
    /// Brokers that are to hold a replica; the first is preferred as leader.
    pub replicas: Vec<BrokerId>,
    /// While replicas move: the brokers that held them before. The leader moves them, and says when it has.
    pub moving_from: Vec<BrokerId>,
    /// How often the replicas were reassigned. Only replicas of revision 0 found their group: those of a later one find
    /// it there.
    pub revision: u32,
    /// Damaged replicas, which get their records anew from the others, one after the other.
    ///
    /// INVARIANT: at most one per broker, and at most one that has begun. Those that wait are in the order of their turns.
    pub repairs: Vec<Repair>,
}

/// A damaged replica on its way out of its group, and in again.
///
/// A replica that has lost what it acknowledged must not vote on the strength of it. So it leaves the group while it
/// still has what it promised, is emptied when it is no member any more, and joins as a new one. Before that it waits for
/// its turn, because all replicas of a broker may be damaged at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The broker that has the replica.
    pub broker: BrokerId,
    /// How far it is.
    pub stage: RepairStage,
    /// What was found, for operators.
    pub reason: String,
    /// How often it gave up its turn because it could not leave its group. Who did so less often goes first.
    pub deferred: u32,
}

/// How far a repair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RepairStage {
    /// It is a member as before until its turn comes, which the control leader says.
    Waiting,
    /// The leader takes its vote and expels it.
    Leaving,
    /// It is no member. Its broker deletes what it has.
    Emptying,
    /// It is empty, and the leader invites it like a new one.
    Joining,
}

impl PartitionAssignment {
    /// The replicas of a new partition.
    pub fn new(replicas: Vec<BrokerId>) -> Self {
        PartitionAssignment { replicas, ..PartitionAssignment::default() }
    }

    /// Whether `broker` holds a replica, or is to hold one.
    pub fn involves(&self, broker: BrokerId) -> bool {
        self.replicas.contains(&broker) || self.moving_from.contains(&broker)
    }

    /// Whether the replica of `broker` is damaged and must not be in the group before it is empty.
    pub fn is_barred(&self, broker: BrokerId) -> bool {
        let barred = |repair: &Repair| repair.broker == broker && repair.stage < RepairStage::Joining;
        self.under_repair().is_some_and(barred)
    }

    /// The repair of the replica of `broker`, if that is damaged.
    pub fn repair_of(&self, broker: BrokerId) -> Option<&Repair> {
        self.repairs.iter().find(|repair| repair.broker == broker)
    }

    /// The repair that has begun and is not over.
    pub fn under_repair(&self) -> Option<&Repair> {
        self.repairs.iter().find(|repair| repair.stage > RepairStage::Waiting)
    }

    /// The repair whose turn is next.
    pub fn next_repair(&self) -> Option<&Repair> {
        self.repairs.iter().find(|repair| repair.stage == RepairStage::Waiting)
    }

    /// Whether the replica of `broker` is known to have lost something, and has not begun to get everything anew.
    pub fn is_damaged(&self, broker: BrokerId) -> bool {
        self.repair_of(broker).is_some_and(|repair| repair.stage < RepairStage::Joining)
    }

    /// The replica of `broker` is damaged: it is to wait for its turn. If it was getting its records anew, it has to begin
    /// again.
    pub(crate) fn begin_repair(&mut self, broker: BrokerId, reason: String) {
        if !self.can_repair(broker) {
            return;
        }
        match self.repairs.iter_mut().find(|repair| repair.broker == broker) {
            None => self.repairs.push(Repair { broker, stage: RepairStage::Waiting, reason, deferred: 0 }),
            Some(repair) if repair.stage == RepairStage::Joining => {
                (repair.stage, repair.reason) = (RepairStage::Leaving, reason);
                self.revision += 1;
            }
            Some(_) => {}
        }
    }

    /// A stage of a repair is over. Who waits does not begin before another one is done.
    pub(crate) fn advance_repair(&mut self, from: RepairStage) {
        let occupied = self.under_repair().is_some() || self.is_moving();
        let Some(at) = self.repairs.iter().position(|repair| repair.stage == from) else { return };
        match from {
            RepairStage::Waiting if occupied => {}
            RepairStage::Waiting => {
                self.repairs[at].stage = RepairStage::Leaving;
                self.revision += 1;
            }
            RepairStage::Leaving => self.repairs[at].stage = RepairStage::Emptying,
            RepairStage::Emptying => self.repairs[at].stage = RepairStage::Joining,
            RepairStage::Joining => drop(self.repairs.remove(at)),
        }
    }

    /// Who could not leave its group waits again, behind all others. It still has everything that it had.
    pub(crate) fn defer_repair(&mut self) {
        let leaving = self.repairs.iter().position(|repair| repair.stage == RepairStage::Leaving);
        if let Some(at) = leaving {
            let repair = self.repairs.remove(at);
            let deferred = repair.deferred.saturating_add(1);
            self.repairs.push(Repair { stage: RepairStage::Waiting, deferred, ..repair });
            // What the leader says of it may be of before, and it may be a member again.
            self.revision += 1;
        }
    }

    /// Whether a damaged replica of `broker` could get its records from others now.
    pub fn can_repair(&self, broker: BrokerId) -> bool {
        self.replicas.len() > 1 && self.replicas.contains(&broker) && !self.is_moving()
    }

    /// The brokers whose replicas should be members of the partition's group.
    pub fn members(&self) -> impl Iterator<Item = BrokerId> {
        self.replicas.iter().copied().filter(|id| !self.is_barred(*id))
    }

    /// The brokers whose replicas may have records that others have lost: also a damaged one, until it is emptied.
    pub fn holders(&self) -> impl Iterator<Item = BrokerId> {
        let emptied = |repair: &Repair| repair.stage == RepairStage::Emptying;
        self.replicas.iter().copied().filter(move |id| !self.repair_of(*id).is_some_and(emptied))
    }

    /// Whether brokers that are not `reached` are needed for a majority, so that nobody can be elected leader without them.
    ///
    /// Which replicas vote is known to the leader. While replicas move, those vote that were there before, those that are to
    /// be there, or both; and one that is repaired votes or does not. So each of these must have a majority.
    pub fn lacks_majority(&self, reached: impl Fn(BrokerId) -> bool) -> bool {
        let repaired = self.under_repair().map(|repair| repair.broker);
        let others = self.replicas.iter().copied().filter(|id| Some(*id) != repaired).collect();
        let electorates = [self.replicas.clone(), others, self.moving_from.clone()];
        electorates.iter().any(|voters| {
            let there = voters.iter().filter(|id| reached(**id)).count();
            !voters.is_empty() && there * 2 <= voters.len()
        })
    }

    /// Whether replicas are on their way to other brokers.
    pub fn is_moving(&self) -> bool {
        !self.moving_from.is_empty()
    }
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its number.
    pub id: TopicId,
    /// Its name; see [`validate_name`].
    pub name: Arc<str>,
    /// Its settings.
    pub settings: Settings,
    /// Replicas that each partition should have.
    pub replication_factor: u32,
    /// When it was created, by the control leader's clock.
    pub created: Timestamp,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionAssignment>,
}

/// Checks a topic name: 1 to 249 of `a-z A-Z 0-9 . _ -`, not `.` or `..`, not beginning with `__`, which is
/// reserved for topics of the broker itself.
///
/// # Errors
/// [`Error::InvalidName`], which says what is wrong.
pub fn validate_name(name: &str) -> Result<(), Error> {
    let invalid = |problem| Err(Error::InvalidName { name: name.chars().take(300).collect(), problem });
    if name.is_empty() {
        return invalid("is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return invalid("is longer than 249 bytes");
    }
    if name == "." || name == ".." {
        return invalid("is not allowed: `.` and `..` are directory names");
    }
    if name.starts_with("__") {
        return invalid("begins with `__`, which is reserved for internal topics");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return invalid("has a character other than `a-z A-Z 0-9 . _ -`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_needed_wherever_the_votes_may_be() {
        let ids = |ids: &[u64]| ids.iter().copied().map(BrokerId).collect::<Vec<_>>();
        let lacks = |assignment: &PartitionAssignment, away: &[u64]| {
            assignment.lacks_majority(|id| !away.contains(&id.0))
        };
        let three = PartitionAssignment::new(ids(&[1, 2, 3]));
        assert!(!lacks(&three, &[]) && !lacks(&three, &[2]) && lacks(&three, &[2, 3]));
        let two = PartitionAssignment::new(ids(&[1, 2]));
        assert!(!lacks(&two, &[3]) && lacks(&two, &[1]));
        let moves = PartitionAssignment { moving_from: ids(&[3]), ..PartitionAssignment::new(ids(&[1])) };
        assert!(!lacks(&moves, &[2]) && lacks(&moves, &[1]));
        assert!(lacks(&moves, &[3]), "its only replica has not left it yet");
        let spreads = PartitionAssignment { moving_from: ids(&[1, 2, 3]), ..two };
        assert!(!lacks(&spreads, &[3]) && lacks(&spreads, &[2]));
        let mut repaired = three;
        repaired.begin_repair(BrokerId(3), "row 7".to_owned());
        assert!(!lacks(&repaired, &[1]), "it votes until its turn comes");
        repaired.advance_repair(RepairStage::Waiting);
        repaired.advance_repair(RepairStage::Leaving);
        assert!(!lacks(&repaired, &[3]) && lacks(&repaired, &[1]), "two of two are needed");
    }

    #[test]
    fn names_of_allowed_characters_are_valid() {
        for name in ["a", "orders", "Orders.v1_eu-west", "_x", &"n".repeat(249)] {
            assert_eq!(validate_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn names_that_break_a_rule_are_refused() {
        for name in ["", ".", "..", "__internal", "a b", "a/b", "ä", "a\n", &"n".repeat(250)] {
            assert!(matches!(validate_name(name), Err(Error::InvalidName { .. })), "{name:?}");
        }
    }
}
