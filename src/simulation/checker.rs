//! What must be true at every moment of a run, whatever happens to its brokers.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::COORDINATOR;
use super::chance::digest;
use super::trace::Trace;
use crate::coordination::{PartitionKey, State as Coordination};
use crate::partition::machine;
use crate::partition::{Committed, StoredBatch};
use crate::raft::message::Request;
use crate::raft::{NodeId, Role, Status};
use crate::record::Offset;
use crate::storage::{GroupId, ObservedState};

/// A broker from one start to its end.
type Life = (NodeId, u64);

/// See the module.
pub(super) struct Checker(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    violation: Option<String>,
    counts: Counts,
    /// Who leads a term of a group.
    leaders: BTreeMap<(GroupId, u64), NodeId>,
    /// The state as of an entry: the entry's term, and what stands for members and state.
    states: BTreeMap<(GroupId, u64), (u64, u64)>,
    /// What never moves back within a broker's life.
    marks: BTreeMap<(Life, GroupId, Mark), u64>,
    /// What a state says of what never moves back from entry to entry.
    levels: BTreeMap<(GroupId, Level), BTreeMap<u64, u64>>,
    logs: BTreeMap<GroupId, Log>,
    /// The highest offset whose commit was acknowledged.
    commits: BTreeMap<(String, PartitionKey), u64>,
}

/// What a run did, to see that it did something.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) acked: u64,
    pub(super) duplicates: u64,
    pub(super) unknown: u64,
    pub(super) read: u64,
    pub(super) commits: u64,
    pub(super) terms: u64,
    pub(super) entries: u64,
    pub(super) snapshots: u64,
    pub(super) trims: u64,
    pub(super) changes: u64,
    pub(super) repairs: u64,
    pub(super) lost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Applied,
    CommitIndex,
    HighWatermark,
    LogStart,
    Term,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    NextOffset,
    LogStart,
    GroupOffset(String, PartitionKey),
}

/// The records of a partition, as far as anybody has seen them.
#[derive(Default)]
struct Log {
    /// By base offset.
    batches: BTreeMap<u64, Batch>,
    /// Base offset by digest. No batch is there twice.
    places: BTreeMap<u64, u64>,
    acked: BTreeMap<u64, Batch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batch {
    end: u64,
    digest: u64,
    append_time: i64,
}

impl Checker {
    pub(super) fn new() -> Self {
        Checker(Mutex::default())
    }

    /// Notes that something is wrong. The first such note ends the run.
    pub(super) fn fail(&self, what: String) {
        self.lock().fail(what);
    }

    pub(super) fn violation(&self) -> Option<String> {
        self.lock().violation.clone()
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().counts
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.lock().counts);
    }

    /// A broker said something to another.
    pub(super) fn sent(&self, from: NodeId, group: GroupId, request: &Request) {
        let mut inner = self.lock();
        match request {
            Request::Append(append) => inner.leads(group, append.ballot.term, append.ballot.node),
            Request::Snapshot(snapshot) => {
                inner.counts.snapshots += 1;
                inner.leads(group, snapshot.ballot.term, snapshot.ballot.node);
            }
            Request::Vote(vote) if vote.ballot.node != from => {
                inner.fail(format!("node {from} asks for votes in the name of node {}", vote.ballot.node));
            }
            _ => {}
        }
    }

    /// A replica's machine is in a state.
    pub(super) fn state(&self, trace: &Trace, life: Life, observed: &ObservedState) {
        let ObservedState { group, at, members, state } = observed;
        let sum = digest(state) ^ digest(members).rotate_left(1);
        trace.fold(5, [life.0, at.index, sum]);
        let mut inner = self.lock();
        inner.rises((life, *group, Mark::Applied), at.index, true);
        let known = inner.states.insert((*group, at.index), (at.term, sum));
        match known {
            Some(known) if known == (at.term, sum) => return,
            Some((term, _)) if term != at.term => inner.fail(format!(
                "entry {} of group {group} is of term {term} on one node and of term {} on node {}",
                at.index, at.term, life.0
            )),
            Some(_) => inner.fail(format!(
                "the state of group {group} after entry {} is another on node {} than on one before",
                at.index, life.0
            )),
            None => {}
        }
        inner.counts.entries += 1;
        if *group == COORDINATOR {
            let Ok(state) = Coordination::decode(state) else {
                return inner.fail("a coordinator's state cannot be read".to_owned());
            };
            for consumers in state.groups() {
                for (key, committed) in consumers.offsets() {
                    let level = Level::GroupOffset(consumers.name.to_string(), *key);
                    inner.level(*group, level, at.index, committed.offset.0);
                }
            }
        } else {
            let Ok(state) = machine::State::decode(state) else {
                return inner.fail("a partition's state cannot be read".to_owned());
            };
            inner.level(*group, Level::NextOffset, at.index, state.next_offset().0);
            inner.level(*group, Level::LogStart, at.index, state.log_start().0);
        }
    }

    /// A replica is seen from outside.
    pub(super) fn status(&self, life: Life, group: GroupId, status: &Status) {
        let mut inner = self.lock();
        if status.role == Role::Leader {
            inner.leads(group, status.term, life.0);
        }
        if status.role != Role::Stopped {
            inner.rises((life, group, Mark::Term), status.term, false);
        }
        if let Some(committed) = status.committed {
            inner.rises((life, group, Mark::CommitIndex), committed, false);
        }
    }

    /// A partition is seen from outside.
    pub(super) fn bounds(&self, life: Life, group: GroupId, log_start: Offset, high_watermark: Offset) {
        let mut inner = self.lock();
        inner.rises((life, group, Mark::LogStart), log_start.0, false);
        inner.rises((life, group, Mark::HighWatermark), high_watermark.0, false);
    }

    /// A producer was told that its batch is in the log.
    pub(super) fn acked(&self, group: GroupId, batch: &[u8], records: u32, committed: &Committed) {
        let base = committed.base_offset.0;
        let append_time = committed.append_time.0;
        let acked = Batch { end: base + u64::from(records), digest: digest(batch), append_time };
        let mut inner = self.lock();
        inner.counts.acked += u64::from(records);
        inner.counts.duplicates += u64::from(committed.duplicate);
        // A retry is told the time of its own entry, not that of the one that holds the batch.
        let log = inner.logs.entry(group).or_default();
        let acked = match log.batches.get(&base) {
            Some(known) if committed.duplicate => Batch { append_time: known.append_time, ..acked },
            _ => acked,
        };
        log.acked.insert(base, acked);
        let outcome = if committed.duplicate { log.compare(base, &acked) } else { log.place(base, acked) };
        if let Err(what) = outcome {
            inner.fail(format!("group {group}: a batch was acknowledged at offset {base}, but {what}"));
        }
    }

    /// A consumer read `batches` from offset `from` on.
    pub(super) fn read(&self, node: NodeId, group: GroupId, from: Offset, batches: &[StoredBatch]) {
        let mut inner = self.lock();
        let mut next = from.0;
        for batch in batches {
            let base = batch.base.0;
            let end = batch.end().0;
            if base > next || end <= next {
                return inner.fail(format!(
                    "group {group}: node {node} serves records {base} to {end} where {next} is due"
                ));
            }
            next = end;
            inner.counts.read += u64::from(batch.records);
            let seen = Batch { end, digest: digest(&batch.batch), append_time: batch.append_time.0 };
            let log = inner.logs.entry(group).or_default();
            if let Err(what) = log.place(base, seen) {
                return inner.fail(format!("group {group}: node {node} serves offset {base}, but {what}"));
            }
        }
    }

    /// A group of consumers was told that its offset is committed.
    pub(super) fn offset_committed(&self, name: &str, key: PartitionKey, offset: Offset) {
        let mut inner = self.lock();
        inner.counts.commits += 1;
        let highest = inner.commits.entry((name.to_owned(), key)).or_default();
        *highest = offset.0.max(*highest);
    }

    /// At the end: a replica serves from `log_start` to `high_watermark`, and was read from one to the other.
    pub(super) fn serves_all(&self, node: NodeId, group: GroupId, log_start: Offset, high_watermark: Offset) {
        let mut inner = self.lock();
        let Some(log) = inner.logs.get(&group) else { return };
        let missing = log.acked.iter().find_map(|(base, acked)| {
            let beyond = acked.end > high_watermark.0;
            let trimmed = acked.end <= log_start.0;
            let found = trimmed || log.batches.get(base).is_some_and(|found| found.digest == acked.digest);
            (beyond || !found).then_some(*base)
        });
        if let Some(base) = missing {
            inner.fail(format!(
                "group {group}: records at {base} were acknowledged, and node {node}, which serves {log_start} to \
                 {high_watermark}, does not have them"
            ));
        }
    }

    /// At the end: what a replica says is committed.
    pub(super) fn offsets_stand(&self, node: NodeId, state: &Coordination) {
        let mut inner = self.lock();
        let missing = inner.commits.iter().find(|((name, key), offset)| {
            let found = state.group(name).and_then(|group| group.offsets().get(key));
            found.is_none_or(|found| found.offset.0 < **offset)
        });
        if let Some(((name, _), offset)) = missing {
            let what = format!("group {name} committed offset {offset}, and node {node} does not know it");
            inner.fail(what);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A term has one leader.
    fn leads(&mut self, group: GroupId, term: u64, node: NodeId) {
        let terms = self.leaders.len();
        let leader = *self.leaders.entry((group, term)).or_insert(node);
        self.counts.terms += (self.leaders.len() - terms) as u64;
        if leader != node {
            self.fail(format!("nodes {leader} and {node} both lead term {term} of group {group}"));
        }
    }

    fn rises(&mut self, key: (Life, GroupId, Mark), value: u64, strictly: bool) {
        let last = self.marks.insert(key, value);
        if last.is_some_and(|last| value < last || (strictly && value == last)) {
            let ((node, _), group, mark) = key;
            self.fail(format!(
                "{mark:?} of group {group} on node {node} moves from {} to {value}",
                last.unwrap_or_default()
            ));
        }
    }

    /// As of the entry at `index`, the level is `value`.
    fn level(&mut self, group: GroupId, level: Level, index: u64, value: u64) {
        let known = self.levels.entry((group, level.clone())).or_default();
        let before = known.range(..index).next_back().is_some_and(|(_, before)| *before > value);
        let after = known.range(index..).next().is_some_and(|(_, after)| *after < value);
        known.insert(index, value);
        if before || after {
            self.fail(format!("{level:?} of group {group} moves back at entry {index}, where it is {value}"));
        }
    }
}

impl Log {
    /// Notes what lies at an offset, or says what is wrong about it.
    fn place(&mut self, base: u64, batch: Batch) -> Result<(), String> {
        if self.batches.contains_key(&base) {
            return self.compare(base, &batch);
        }
        if let Some(place) = self.places.insert(batch.digest, base) {
            return Err(format!("the same batch lies at {place}"));
        }
        if let Some((other, before)) = self.batches.range(..base).next_back() {
            if before.end > base {
                return Err(format!("another batch lies at {other} to {}", before.end));
            }
            if before.append_time > batch.append_time {
                return Err(format!("the batch at {other}, before it, was appended later"));
            }
        }
        if let Some((after, later)) = self.batches.range(base..).next() {
            if *after < batch.end {
                return Err(format!("another batch lies at {after}"));
            }
            if later.append_time < batch.append_time {
                return Err(format!("the batch at {after}, behind it, was appended earlier"));
            }
        }
        self.batches.insert(base, batch);
        Ok(())
    }

    fn compare(&self, base: u64, batch: &Batch) -> Result<(), String> {
        match self.batches.get(&base) {
            Some(known) if known == batch => Ok(()),
            Some(_) => Err("another batch was seen there".to_owned()),
            None => match self.places.get(&batch.digest) {
                Some(place) => Err(format!("it was seen at {place}")),
                None => Ok(()),
            },
        }
    }
}

/// What a run must have done to have tested something.
impl Counts {
    pub(super) fn add(&mut self, other: &Counts) {
        self.acked += other.acked;
        self.duplicates += other.duplicates;
        self.unknown += other.unknown;
        self.read += other.read;
        self.commits += other.commits;
        self.terms += other.terms;
        self.entries += other.entries;
        self.snapshots += other.snapshots;
        self.trims += other.trims;
        self.changes += other.changes;
        self.repairs += other.repairs;
        self.lost += other.lost;
    }
}
