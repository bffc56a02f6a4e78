//! Consumer groups: members and their sessions, committed offsets, lag, and what is done about groups that are over.
//!
//! | file | idea |
//! |---|---|
//! | [`config`] | settings |
//! | [`registry`] | the groups that have members |
//! | [`live`], [`mailbox`] | a consumer group that has members, and the way to their sessions |
//! | [`member`] | one member's stream |
//! | [`start`] | where a member begins to read a partition, and what it has missed |
//! | [`commit`] | committing offsets |
//! | [`offsets`] | look-ups, resets, deletion, progress |
//! | [`describe`] | what can be told of a group |
//! | [`journal`] | when records were delivered and acknowledged |
//! | [`lag`] | how far behind groups are |
//! | [`upkeep`] | time-outs, topics that come and go, groups that expire |
//! | [`queue`], [`share`], [`burial`] | share groups: leases, their members' streams (a folder), dead letters |
//!
//! Membership is in memory, at the broker that leads the shard of the group's name; offsets are replicated
//! ([`crate::coordination`], [`crate::cluster::coordinator`]). Invariants: a partition of a consumer group has at most one
//! member that can commit. What was committed or accepted is on the disks of a majority before it is answered.

mod burial;
mod commit;
mod config;
mod describe;
mod journal;
mod lag;
mod live;
mod mailbox;
mod member;
mod offsets;
mod queue;
mod registry;
mod share;
mod start;
mod upkeep;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore};

use journal::{Journal, Place};
use lag::Ages;
use live::{Live, SessionId};
use queue::Queue;
use registry::Registry;

use super::{Broker, Error, GroupFacts};
use crate::clock::Timestamp;
use crate::cluster::coordinator::{self, Coordinators};
use crate::coordination::{self, Group, PartitionKey};
use crate::record::Offset;
use crate::task::Tasks;
use crate::telemetry::Metrics;

pub use crate::coordination::Kind;
pub use commit::{CommitResult, OffsetToCommit};
pub use config::Config;
pub use describe::{GroupDescription, MemberDescription};
pub use journal::{Delivery, Known};
pub use member::{AssignedPartition, Join, Member, MemberEvent, OffsetReset};
pub use offsets::{
    CommittedOffset, GroupListing, GroupPartition, MemberClaim, Reset, ResetOffset, ResetTo, TopicPartition,
};
pub use share::{AckKind, Acknowledgement, LeasedRange, ShareJoin, ShareMember};

/// The groups that this broker coordinates.
pub struct Groups {
    config: Config,
    coordinators: Coordinators,
    metrics: Metrics,
    /// Consumer groups with members.
    live: Registry<Live>,
    /// Share groups with members.
    queues: Registry<Queue>,
    /// Groups that must stay without members for the moment.
    kept_empty: Mutex<HashSet<Arc<str>>>,
    ages: Ages,
    /// Shared with commits on their way, which outlive their callers.
    journal: Arc<Journal>,
    /// The newest epochs of groups that have no members, so that nobody who was one is taken for a newer member.
    epochs: Mutex<HashMap<Arc<str>, u64>>,
    sessions: AtomicU64,
    tasks: Tasks,
    /// Rung when something may be due earlier than it was.
    changed: Notify,
    /// Rung when records may wait for their copies in a dead-letter topic.
    dead: Notify,
    /// Taken to copy a record there, until that is noted. Closed when the broker stops.
    burials: Semaphore,
}

/// Keeps a group without members until it is dropped.
struct KeptEmpty<'a> {
    groups: &'a Groups,
    name: Arc<str>,
}

impl Drop for KeptEmpty<'_> {
    fn drop(&mut self) {
        lock(&self.groups.kept_empty).remove(&self.name);
    }
}

impl Groups {
    /// No group has members yet.
    pub fn new(config: Config, coordinators: Coordinators, metrics: Metrics, tasks: Tasks) -> Self {
        Groups {
            config,
            coordinators,
            metrics,
            live: Registry::default(),
            queues: Registry::default(),
            kept_empty: Mutex::default(),
            ages: Ages::default(),
            journal: Arc::default(),
            epochs: Mutex::default(),
            sessions: AtomicU64::new(1),
            tasks,
            changed: Notify::new(),
            dead: Notify::new(),
            burials: Semaphore::new(1),
        }
    }

    fn next_session(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Ordering::Relaxed))
    }

    /// The term in which this broker coordinates `group`.
    fn term(&self, group: &str) -> Result<u32, Error> {
        let not_leader = || Error::Coordinator(crate::raft::Error::NotLeader { leader: None });
        let term = self.coordinators.of(group).leading().ok_or_else(not_leader)?;
        u32::try_from(term).map_err(|_| Error::Internal("a Raft term beyond 32 bits"))
    }

    /// The group if it has members and is a consumer group.
    fn live(&self, group: &str) -> Option<Arc<Live>> {
        self.live.get(group)
    }

    /// The group, made if it has no members yet.
    fn live_or_new(&self, group: &str) -> Result<Arc<Live>, Error> {
        self.refuse_if_kept_empty(group)?;
        let make = |name: Arc<str>, term, over: Option<&Live>| {
            let noted = lock(&self.epochs).get(&name).copied();
            let epoch = over.map(Live::epoch).max(noted).unwrap_or(0);
            Live::new(name, term, epoch, self.metrics.clone())
        };
        self.live.get_or_make(group, || self.term(group), make)
    }

    /// The queue of a share group that has members.
    fn queue(&self, group: &str) -> Option<Arc<Queue>> {
        self.queues.get(group)
    }

    fn queue_or_new(&self, group: &str) -> Result<Arc<Queue>, Error> {
        self.refuse_if_kept_empty(group)?;
        let make = |name, term, _: Option<&Queue>| Queue::new(name, term, self.config.share_window);
        self.queues.get_or_make(group, || self.term(group), make)
    }

    fn refuse_if_kept_empty(&self, group: &str) -> Result<(), Error> {
        if lock(&self.kept_empty).contains(group) {
            return Err(Error::NotReady("changing the group's offsets"));
        }
        Ok(())
    }

    /// Records of a partition that are leased to members of a share group.
    fn leased(&self, group: &str, key: PartitionKey) -> u64 {
        self.queue(group).map_or(0, |queue| queue.leased(key))
    }

    fn member_count(&self, group: &str) -> usize {
        let consumers = self.live(group).map_or(0, |live| live.member_count());
        consumers + self.queue(group).map_or(0, |queue| queue.member_count())
    }

    /// Members of all groups.
    fn members(&self) -> usize {
        let consumers: usize = self.live.all().iter().map(|live| live.member_count()).sum();
        consumers + self.queues.all().iter().map(|queue| queue.member_count()).sum::<usize>()
    }

    /// Runs `read` on what is replicated of a group.
    fn with_group<T>(&self, name: &str, read: impl FnOnce(&Group) -> T) -> Result<T, Error> {
        let found = self.coordinators.of(name).read(|state| state.group(name).map(read));
        found.ok_or_else(|| Error::UnknownGroup { group: short(name) })
    }

    /// Checks that a group of this name and kind exists or may be made.
    fn admit(&self, name: &str, kind: Kind) -> Result<(), Error> {
        coordination::validate_group_name(name)
            .map_err(|error| Error::InvalidArgument { field: "group", problem: error.to_string() })?;
        match self.with_group(name, |group| group.kind) {
            Ok(found) if found == kind => {}
            Ok(found) => {
                return Err(Error::GroupKindMismatch { group: name.to_owned(), kind: found.as_str() });
            }
            Err(_) => {
                let present: usize =
                    self.coordinators.all().iter().map(|shard| shard.read(coordination::State::len)).sum();
                let limit = self.config.groups_max;
                if present >= limit as usize {
                    let (what, setting) = ("consumer groups", "groups.groups_max");
                    return Err(Error::LimitReached { what, limit: limit.into(), setting });
                }
            }
        }
        Ok(())
    }

    /// Checks that a group exists and has no members, and keeps it so. What is on its way to the dead-letter topic is done
    /// then.
    async fn keep_empty(&self, name: &str) -> Result<KeptEmpty<'_>, Error> {
        self.with_group(name, |_| ())?;
        // A leader that no majority follows any more knows of no members, and what it proposes may be agreed on much later.
        self.coordinators.of(name).confirm().await?;
        let key: Arc<str> = name.into();
        if !lock(&self.kept_empty).insert(key.clone()) {
            return Err(Error::NotReady("changing the group's offsets"));
        }
        let kept = KeptEmpty { groups: self, name: key };
        let mut members = self.member_count(name);
        if members == 0
            && let Some(queue) = self.queue(name)
        {
            members = queue.end().await;
        }
        match members {
            0 => Ok(kept),
            members => Err(Error::GroupNotEmpty { group: name.to_owned(), members }),
        }
    }

    /// What is known of a record and each group that has a position in its partition, by name. Of groups that another
    /// broker coordinates that is what is replicated, as far as it is known here.
    pub(super) fn explain(&self, key: PartitionKey, offset: Offset, appended: Timestamp) -> Vec<GroupFacts> {
        let mut facts = Vec::new();
        for coordinator in self.coordinators.all() {
            let term = coordinator.leading().and_then(|term| u32::try_from(term).ok());
            coordinator.read(|state| {
                for group in state.groups() {
                    let Some((committed, _, at)) = offsets::standing_at(group, key) else { continue };
                    let found = match term {
                        Some(term) => {
                            self.journal.look_up(&Place { group: &group.name, key, term }, offset, appended)
                        }
                        None => journal::Found::NOTHING,
                    };
                    let accepted = group.shares().get(&key).is_some_and(|progress| progress.is_done(offset));
                    facts.push(GroupFacts {
                        group: group.name.clone(),
                        kind: group.kind,
                        coordinator: coordinator.leader(),
                        coordinated_here: term.is_some(),
                        committed,
                        committed_at: (group.kind == Kind::Consumer).then_some(at),
                        done: offset < committed || accepted,
                        delivery: found.delivery,
                        acknowledgement: found.acknowledgement,
                        since: found.since,
                    });
                }
            });
        }
        facts.sort_by(|a, b| a.group.cmp(&b.group));
        facts
    }

    /// Forgets what is shown of a group.
    fn forget(&self, name: &str) {
        self.metrics.remove_group(name);
        self.journal.forget(name);
        lock(&self.epochs).remove(name);
    }
}

impl Broker {
    pub(super) fn groups(&self) -> Result<&Groups, Error> {
        Ok(&self.running()?.groups)
    }
}

impl From<coordinator::Error> for Error {
    fn from(error: coordinator::Error) -> Self {
        match error {
            coordinator::Error::Refused(coordination::Error::UnknownGroup(group)) => {
                Error::UnknownGroup { group }
            }
            coordinator::Error::Refused(coordination::Error::KindMismatch { group, kind }) => {
                Error::GroupKindMismatch { group, kind: kind.as_str() }
            }
            coordinator::Error::Refused(_) => Error::Internal("the coordinator refused its own command"),
            coordinator::Error::Raft(error) => Error::Coordinator(error),
            coordinator::Error::Stopped => Error::NotReady("stopping"),
        }
    }
}

/// A name as errors repeat it: names of any length can be asked for.
fn short(name: &str) -> String {
    name.chars().take(300).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
