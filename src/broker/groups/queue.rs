//! A share group that has members: who they are, and the leases of each partition.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::live::{Notice, SessionId};
use super::mailbox::Mailbox;
use crate::coordination::membership::{FenceReason, TopicFilter};
use crate::coordination::{Dead, Leases, OffsetRange, PartitionKey, Returned, ShareUpdate};
use crate::partition::signal::Signal;
use crate::record::Offset;

/// The slot of a member's bell that is rung when records wait to be delivered again. Partitions have those above it.
pub(super) const REDELIVERY: usize = 0;

/// A member of a share group.
#[derive(Clone)]
pub(super) struct QueueMember {
    pub(super) id: Arc<str>,
    pub(super) client_id: Option<Arc<str>>,
    pub(super) rack: Option<Arc<str>>,
    pub(super) topics: TopicFilter,
    pub(super) session_timeout: Duration,
    pub(super) mailbox: Arc<Mailbox<Notice>>,
    pub(super) signal: Arc<Signal>,
    heard: Instant,
    asked: bool,
}

impl QueueMember {
    pub(super) fn new(
        id: Arc<str>,
        client_id: Option<Arc<str>>,
        rack: Option<Arc<str>>,
        topics: TopicFilter,
        session_timeout: Duration,
    ) -> Self {
        QueueMember {
            id,
            client_id,
            rack,
            topics,
            session_timeout,
            mailbox: Arc::default(),
            signal: Signal::new(),
            heard: Instant::now(),
            asked: false,
        }
    }
}

/// What the leases of a partition have to say to others.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) key: PartitionKey,
    pub(super) updates: Vec<ShareUpdate>,
    /// Leases that ended by themselves.
    pub(super) expired: u64,
    /// Records that are lost.
    pub(super) missed: u64,
}

/// See the module. Lives from the first join until the last member is gone. Leases go with it: what was leased then is
/// delivered again.
pub(super) struct Queue {
    pub(super) name: Arc<str>,
    /// The term in which this broker coordinates the group.
    pub(super) term: u32,
    pub(super) window: u64,
    state: Mutex<State>,
}

struct State {
    members: BTreeMap<SessionId, QueueMember>,
    partitions: HashMap<PartitionKey, Leases>,
    dead_letter_topic: Arc<str>,
    /// Number of changes of the members.
    changes: u32,
    over: bool,
}

impl Queue {
    pub(super) fn new(name: Arc<str>, term: u32, window: u32) -> Self {
        let state = State {
            members: BTreeMap::new(),
            partitions: HashMap::new(),
            dead_letter_topic: format!("{name}.dead-letter").into(),
            changes: 0,
            over: false,
        };
        Queue { name, term, window: window.into(), state: Mutex::new(state) }
    }

    /// Takes a member in, and gives its epoch. An older stream with the same id is fenced, and what it had leased is
    /// to be delivered again. `None` if the group is over.
    pub(super) fn join(
        &self,
        session: SessionId,
        member: QueueMember,
        dead_letter_topic: Option<Arc<str>>,
    ) -> Option<(u64, Vec<Said>)> {
        let mut state = self.lock();
        if state.over {
            return None;
        }
        let replaced =
            state.members.iter().find(|(_, other)| other.id == member.id).map(|(session, _)| *session);
        let mut said = Vec::new();
        if let Some(replaced) = replaced {
            said = state.remove(replaced, Some(FenceReason::Replaced));
        }
        if let Some(topic) = dead_letter_topic {
            state.dead_letter_topic = topic;
        }
        state.members.insert(session, member);
        state.changes += 1;
        Some((self.epoch(&state), said))
    }

    fn epoch(&self, state: &State) -> u64 {
        u64::from(self.term) << 32 | u64::from(state.changes)
    }

    /// The member gave a sign of life.
    pub(super) fn heard(&self, session: SessionId) {
        if let Some(member) = self.lock().members.get_mut(&session) {
            member.heard = Instant::now();
            member.asked = false;
        }
    }

    /// The member's stream is gone, or it leaves.
    pub(super) fn leave(&self, session: SessionId) -> Vec<Said> {
        let mut state = self.lock();
        let said = state.remove(session, None);
        state.over |= state.members.is_empty();
        said
    }

    /// Time-outs of members and leases. Gives what they had to say, and when the next is due.
    pub(super) fn tick(&self, now: Instant) -> (Vec<Said>, Option<Instant>) {
        let mut state = self.lock();
        let silent: Vec<_> = state
            .members
            .iter()
            .filter(|(_, member)| now >= member.heard + member.session_timeout)
            .map(|(session, _)| *session)
            .collect();
        let mut said = Vec::new();
        for session in &silent {
            said.extend(state.remove(*session, Some(FenceReason::SessionTimeout)));
        }
        if !silent.is_empty() {
            state.over |= state.members.is_empty();
        }
        for member in state.members.values_mut() {
            if !member.asked && now >= member.heard + member.session_timeout / 3 {
                member.asked = true;
                member.mailbox.push(Notice::Keepalive);
            }
        }
        let mut again = false;
        for (key, leases) in &mut state.partitions {
            let returned = leases.expire(now);
            again |= leases.redeliverable(now).is_some();
            said.extend(say(*key, returned));
        }
        if again {
            state.ring();
        }
        let of_members = state.members.values().map(|member| {
            member.heard + if member.asked { member.session_timeout } else { member.session_timeout / 3 }
        });
        let of_leases = state.partitions.values().filter_map(Leases::deadline);
        let next = of_members.chain(of_leases).min();
        (said, next)
    }

    /// Runs `work` on the leases of a partition, if somebody reads it.
    pub(super) fn with<T>(&self, key: PartitionKey, work: impl FnOnce(&mut Leases) -> T) -> Option<T> {
        self.lock().partitions.get_mut(&key).map(work)
    }

    /// Begins to lease a partition, unless it is leased already.
    pub(super) fn open(&self, key: PartitionKey, make: impl FnOnce() -> Leases) {
        self.lock().partitions.entry(key).or_insert_with(make);
    }

    /// Forgets the leases of a partition, which are made anew from what is replicated when somebody reads it next.
    pub(super) fn reopen(&self, key: PartitionKey) {
        let mut state = self.lock();
        state.partitions.remove(&key);
        for member in state.members.values() {
            member.mailbox.push(Notice::Topics);
        }
    }

    /// Whether a stream is still a member.
    pub(super) fn contains(&self, session: SessionId) -> bool {
        self.lock().members.contains_key(&session)
    }

    /// Wakes the members: there is something to be delivered again.
    pub(super) fn ring(&self) {
        self.lock().ring();
    }

    /// Topics were created, deleted or given more partitions.
    pub(super) fn topics_changed(&self) {
        for member in self.lock().members.values() {
            member.mailbox.push(Notice::Topics);
        }
    }

    /// Records that wait for their copies in the dead-letter topic, at most `most` of each partition.
    pub(super) fn dead(&self, most: usize) -> Vec<(PartitionKey, Vec<Dead>)> {
        let state = self.lock();
        let dead = state.partitions.iter().map(|(key, leases)| (*key, leases.dead().take(most).collect()));
        dead.filter(|(_, dead): &(_, Vec<_>)| !dead.is_empty()).collect()
    }

    pub(super) fn dead_letter_topic(&self) -> Arc<str> {
        self.lock().dead_letter_topic.clone()
    }

    /// Records of a partition that are leased.
    pub(super) fn leased(&self, key: PartitionKey) -> u64 {
        self.lock().partitions.get(&key).map_or(0, Leases::leased)
    }

    /// Records that are leased to a member.
    pub(super) fn leased_to(&self, session: SessionId) -> u64 {
        self.lock().partitions.values().map(|leases| leases.leased_to(session)).sum()
    }

    pub(super) fn member_count(&self) -> usize {
        self.lock().members.len()
    }

    pub(super) fn has_member(&self, id: &str) -> bool {
        self.lock().members.values().any(|member| &*member.id == id)
    }

    /// Epoch, members, and the partitions that are leased.
    pub(super) fn describe(&self) -> (u64, Vec<QueueMember>, BTreeSet<PartitionKey>) {
        let state = self.lock();
        let partitions = state.partitions.keys().copied().collect();
        (self.epoch(&state), state.members.values().cloned().collect(), partitions)
    }

    /// Whether the last member is gone.
    pub(super) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// Ends every session: somebody else coordinates the group now.
    pub(super) fn dissolve(&self, reason: FenceReason) {
        let mut state = self.lock();
        state.over = true;
        state.partitions.clear();
        for member in std::mem::take(&mut state.members).into_values() {
            member.mailbox.push(Notice::Fence(reason));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, session: SessionId, fence: Option<FenceReason>) -> Vec<Said> {
        let Some(member) = self.members.remove(&session) else { return Vec::new() };
        self.changes += 1;
        if let Some(reason) = fence {
            member.mailbox.push(Notice::Fence(reason));
        }
        let said: Vec<_> = self
            .partitions
            .iter_mut()
            .filter_map(|(key, leases)| say(*key, leases.drop_holder(session)))
            .collect();
        self.ring();
        said
    }

    fn ring(&self) {
        for member in self.members.values() {
            member.signal.ring(REDELIVERY);
        }
    }
}

/// What came back without being accepted, if anything did.
fn say(key: PartitionKey, returned: Returned) -> Option<Said> {
    let Returned { updates, records, missed, .. } = returned;
    (records > 0).then_some(Said { key, updates, expired: records, missed })
}

/// The part of a batch from `base` with `records` records, as a range.
pub(super) fn range_of(base: Offset, records: u32) -> OffsetRange {
    OffsetRange { first: base, last: base.saturating_add(u64::from(records.max(1)) - 1) }
}
