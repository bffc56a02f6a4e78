//! A share group that has members: who they are, and the leases of each partition.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::live::{Notice, SessionId};
use super::mailbox::Mailbox;
use super::registry::Coordinated;
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
    /// When it was asked for a sign of life since then.
    asked: Option<Instant>,
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
            asked: None,
        }
    }

    /// When it is asked for a sign of life, or removed because it did not answer. It has as long to answer as if it had been
    /// asked in time.
    fn due(&self) -> Instant {
        let first = self.session_timeout / 3;
        self.asked.map_or(self.heard + first, |asked| asked + (self.session_timeout - first))
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

/// See the module. Lives from the first join until the last member is gone, and longer while a record is being copied to
/// the dead-letter topic: whoever joins meanwhile meets the leases that know of it. Leases go with the queue: what was
/// leased then, or waited for its copy, is delivered again.
pub(super) struct Queue {
    pub(super) name: Arc<str>,
    term: u32,
    pub(super) window: u64,
    state: Mutex<State>,
    /// Told when a burial is over.
    buried: Notify,
}

struct State {
    members: BTreeMap<SessionId, QueueMember>,
    partitions: HashMap<PartitionKey, Leases>,
    dead_letter_topic: Arc<str>,
    /// Number of changes of the members.
    changes: u32,
    /// The record that is being copied to the dead-letter topic.
    ///
    /// INVARIANT: while it is there the leases of its partition are not made anew, unless somebody else coordinates
    /// the group.
    burying: Option<Burying>,
    over: bool,
}

struct Burying {
    key: PartitionKey,
    /// Its partition's leases are to be forgotten when the burial is over.
    reopen: bool,
}

/// A dead record that is being copied to the dead-letter topic. Over when dropped.
pub(super) struct Burial {
    pub(super) queue: Arc<Queue>,
    pub(super) dead: Dead,
    key: PartitionKey,
}

impl Burial {
    /// No copy came about. Returns whether the record is lost, because retention has deleted it meanwhile. Without effect
    /// after [`Leases::buried`].
    pub(super) fn not_copied(&self) -> bool {
        let range = range_of(self.dead.offset, 1);
        self.queue.with(self.key, |leases| leases.not_copied(range)).is_some_and(|missed| missed > 0)
    }
}

impl Drop for Burial {
    fn drop(&mut self) {
        self.not_copied();
        let mut state = self.queue.lock();
        if let Some(Burying { key, reopen: true }) = state.burying.take() {
            state.reopen(key);
        }
        state.end_if_empty();
        self.queue.buried.notify_waiters();
    }
}

impl Queue {
    pub(super) fn new(name: Arc<str>, term: u32, window: u32) -> Self {
        let state = State {
            members: BTreeMap::new(),
            partitions: HashMap::new(),
            dead_letter_topic: format!("{name}.dead-letter").into(),
            changes: 0,
            burying: None,
            over: false,
        };
        Queue { name, term, window: window.into(), state: Mutex::new(state), buried: Notify::new() }
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
            member.asked = None;
        }
    }

    /// The member's stream is gone, or it leaves.
    pub(super) fn leave(&self, session: SessionId) -> Vec<Said> {
        let mut state = self.lock();
        let said = state.remove(session, None);
        state.end_if_empty();
        said
    }

    /// Time-outs of members and leases. Gives what they had to say, and when the next is due.
    pub(super) fn tick(&self, now: Instant) -> (Vec<Said>, Option<Instant>) {
        let mut state = self.lock();
        let silent: Vec<_> = state
            .members
            .iter()
            .filter(|(_, member)| member.asked.is_some() && now >= member.due())
            .map(|(session, _)| *session)
            .collect();
        let mut said = Vec::new();
        for session in &silent {
            said.extend(state.remove(*session, Some(FenceReason::SessionTimeout)));
        }
        if !silent.is_empty() {
            state.end_if_empty();
        }
        for member in state.members.values_mut() {
            if member.asked.is_none() && now >= member.due() {
                member.asked = Some(now);
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
        let of_members = state.members.values().map(QueueMember::due);
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

    /// Forgets the leases of a partition, which are made anew from what is replicated when somebody reads it next. Not
    /// before a burial in it is over, of which new leases would not know.
    pub(super) fn reopen(&self, key: PartitionKey) {
        let mut state = self.lock();
        match &mut state.burying {
            Some(burying) if burying.key == key => burying.reopen = true,
            _ => state.reopen(key),
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

    /// Partitions with records that wait for their copies in the dead-letter topic.
    pub(super) fn with_dead(&self) -> Vec<PartitionKey> {
        let state = self.lock();
        let with_dead = state.partitions.iter().filter(|(_, leases)| leases.dead().next().is_some());
        with_dead.map(|(key, _)| *key).collect()
    }

    /// Begins to bury the first dead record of a partition from `from` on, if there is one and the group is not over. One at
    /// a time.
    pub(super) fn bury(self: &Arc<Self>, key: PartitionKey, from: Offset) -> Option<Burial> {
        let mut state = self.lock();
        if state.over || state.burying.is_some() {
            return None;
        }
        let dead = state.partitions.get_mut(&key)?.copy_first_dead(from)?;
        state.burying = Some(Burying { key, reopen: false });
        Some(Burial { queue: self.clone(), dead, key })
    }

    /// Ends the group if it has no members, after a burial that is under way. Gives how many members it has.
    pub(super) async fn end(&self) -> usize {
        loop {
            let buried = self.buried.notified();
            {
                let mut state = self.lock();
                if !state.members.is_empty() {
                    return state.members.len();
                }
                state.end_if_empty();
                if state.over {
                    return 0;
                }
            }
            buried.await;
        }
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Coordinated for Queue {
    fn term(&self) -> u32 {
        self.term
    }

    /// The last member is gone, and no burial is under way.
    fn is_over(&self) -> bool {
        self.lock().over
    }

    fn dissolve(&self, reason: FenceReason) {
        let mut state = self.lock();
        state.over = true;
        state.partitions.clear();
        for member in std::mem::take(&mut state.members).into_values() {
            member.mailbox.push(Notice::Fence(reason));
        }
    }
}

impl State {
    fn end_if_empty(&mut self) {
        self.over |= self.members.is_empty() && self.burying.is_none();
    }

    fn reopen(&mut self, key: PartitionKey) {
        self.partitions.remove(&key);
        for member in self.members.values() {
            member.mailbox.push(Notice::Topics);
        }
    }

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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::coordination::{DeathReason, LeaseSpec, Progress};
    use crate::metadata::TopicId;

    const KEY: PartitionKey = PartitionKey { topic: TopicId(1), partition: 0 };
    const FIRST: SessionId = SessionId(1);
    const NEXT: SessionId = SessionId(2);
    const SPEC: LeaseSpec = LeaseSpec { lease: Duration::from_secs(30), deliveries_max: 5 };

    fn join(queue: &Queue, session: SessionId) {
        let id = format!("member-{}", session.0).into();
        let topics = TopicFilter::new(["jobs".into()], None).expect("a filter");
        let member = QueueMember::new(id, None, None, topics, Duration::from_secs(30));
        queue.join(session, member, None).expect("the group is not over");
    }

    fn take(queue: &Queue, session: SessionId) -> Vec<OffsetRange> {
        let available = range_of(Offset(0), 2);
        let taken = queue.with(KEY, |leases| leases.acquire(Instant::now(), session, SPEC, available, 10));
        taken.expect("the partition is leased").into_iter().map(|lease| lease.range).collect()
    }

    /// A queue whose only member has rejected record 0 and has record 1.
    fn with_a_dead_record() -> Arc<Queue> {
        let queue = Arc::new(Queue::new("workers".into(), 1, 100));
        join(&queue, FIRST);
        queue.open(KEY, || Leases::new(&Progress::starting_at(Offset(0)), 100));
        assert_eq!(take(&queue, FIRST), [range_of(Offset(0), 2)]);
        let rejected = queue.with(KEY, |leases| leases.reject(FIRST, range_of(Offset(0), 1), &"bad".into()));
        rejected.expect("the partition is leased").expect("the record is leased");
        queue
    }

    fn note(burial: Burial) {
        let range = range_of(burial.dead.offset, 1);
        let noted = burial.queue.with(KEY, |leases| {
            assert_eq!(leases.buried(range), [ShareUpdate::Accept(range)]);
            leases.committed(range);
        });
        noted.expect("the leases are there");
    }

    #[test]
    fn who_joins_while_a_record_is_copied_does_not_get_it() {
        let queue = with_a_dead_record();
        let burial = queue.bury(KEY, Offset::ZERO).expect("a dead record");
        let reason = DeathReason::Rejected { detail: "bad".into() };
        assert_eq!(burial.dead, Dead { offset: Offset(0), reason, delivery_count: 1 });
        queue.leave(FIRST);
        assert!(!queue.is_over());
        join(&queue, NEXT);
        assert_eq!(take(&queue, NEXT), [range_of(Offset(1), 1)]);
        note(burial);
        assert_eq!(queue.with(KEY, |leases| leases.start()), Some(Offset(1)));
        queue.leave(NEXT);
        assert!(queue.is_over());
    }

    #[test]
    fn a_group_whose_last_member_goes_is_over_after_its_burial_and_begins_no_other() {
        let queue = with_a_dead_record();
        let burial = queue.bury(KEY, Offset::ZERO).expect("a dead record");
        queue.leave(FIRST);
        // The copy failed: the record is still dead.
        drop(burial);
        assert!(queue.is_over());
        assert!(queue.bury(KEY, Offset::ZERO).is_none());
    }

    #[test]
    fn leases_are_not_made_anew_while_a_record_is_copied() {
        let queue = with_a_dead_record();
        let burial = queue.bury(KEY, Offset::ZERO).expect("a dead record");
        queue.reopen(KEY);
        note(burial);
        assert!(queue.with(KEY, |_| ()).is_none(), "they are forgotten after that");
    }

    #[test]
    fn a_record_that_is_deleted_while_it_is_copied_is_lost_once_and_only_without_a_copy() {
        let delete = |queue: &Queue| queue.with(KEY, |leases| leases.trimmed(Offset(1)).missed);
        let queue = with_a_dead_record();
        let burial = queue.bury(KEY, Offset::ZERO).expect("a dead record");
        assert_eq!(delete(&queue), Some(0));
        note(burial);

        let queue = with_a_dead_record();
        let burial = queue.bury(KEY, Offset::ZERO).expect("a dead record");
        assert_eq!(delete(&queue), Some(0));
        assert_eq!([burial.not_copied(), burial.not_copied()], [true, false]);
        assert!(queue.bury(KEY, Offset::ZERO).is_none());
    }

    #[test]
    fn a_group_is_ended_after_its_burial_and_only_without_members() {
        let queue = with_a_dead_record();
        assert_eq!(queue.end().now_or_never(), Some(1));
        let burial = queue.bury(KEY, Offset::ZERO).expect("a dead record");
        queue.leave(FIRST);
        let mut end = Box::pin(queue.end());
        assert_eq!(end.as_mut().now_or_never(), None);
        drop(burial);
        assert_eq!(end.now_or_never(), Some(0));
    }
}
