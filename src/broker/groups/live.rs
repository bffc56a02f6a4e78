//! A consumer group that has members: who they are, and the way to their sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::mailbox::Mailbox;
use super::registry::Coordinated;
use crate::coordination::PartitionKey;
use crate::coordination::membership::{
    Cause, Description, Effect, FenceReason, Fenced, MemberSpec, Membership, TopicView,
};
use crate::telemetry::{Metrics, RebalanceCause};

pub(super) use crate::coordination::SessionId;

/// What a session is told.
#[derive(Clone, Debug)]
pub(super) enum Notice {
    /// It is given partitions.
    Assign { epoch: u64, partitions: Vec<PartitionKey> },
    /// It is to give up partitions.
    Revoke { epoch: u64, partitions: Vec<PartitionKey>, deadline: Duration },
    /// It has fallen behind the start of a partition's log. Said by the session to itself.
    Restart(PartitionKey),
    /// Topics were created, deleted or given more partitions.
    Topics,
    /// It is not a member any more.
    Fence(FenceReason),
    /// It is asked for a sign of life.
    Keepalive,
}

/// See the module. Lives from the first join until the last member is gone.
pub(super) struct Live {
    pub(super) name: Arc<str>,
    term: u32,
    metrics: Metrics,
    state: Mutex<State>,
}

struct State {
    membership: Membership,
    mailboxes: HashMap<SessionId, Arc<Mailbox<Notice>>>,
    /// Nobody can join any more: whoever wants to needs a new one.
    over: bool,
}

impl Live {
    /// A group without members yet. `epoch` is the newest that it ever had in this term, or less.
    pub(super) fn new(name: Arc<str>, term: u32, epoch: u64, metrics: Metrics) -> Self {
        let membership = Membership::continuing(epoch.max(u64::from(term) << 32));
        let state = State { membership, mailboxes: HashMap::new(), over: false };
        Live { name, term, metrics, state: Mutex::new(state) }
    }

    /// Takes a member in, and gives its epoch. `None` if the group is over.
    pub(super) fn join(
        &self,
        now: Instant,
        spec: MemberSpec,
        session: SessionId,
        mailbox: Arc<Mailbox<Notice>>,
        topics: &TopicView,
    ) -> Option<u64> {
        let mut state = self.lock();
        if state.over {
            return None;
        }
        state.mailboxes.insert(session, mailbox);
        let effects = state.membership.join(now, spec, session, topics);
        let joined = effects.iter().find_map(|effect| match effect {
            Effect::Joined { session: joined, epoch, .. } if *joined == session => Some(*epoch),
            _ => None,
        });
        self.act(&mut state, effects);
        Some(joined.unwrap_or_else(|| state.membership.epoch()))
    }

    /// The member gave a sign of life.
    pub(super) fn heard(&self, now: Instant, member: &str, session: SessionId) {
        self.lock().membership.heard(now, member, session);
    }

    /// The member gives up partitions.
    pub(super) fn release(
        &self,
        now: Instant,
        member: &str,
        session: SessionId,
        partitions: &[PartitionKey],
    ) {
        self.change(|membership| membership.release(now, member, session, partitions));
    }

    /// The member leaves for good.
    pub(super) fn leave(&self, now: Instant, member: &str, session: SessionId) {
        self.change(|membership| membership.leave(now, member, session));
    }

    /// The member's stream is gone.
    pub(super) fn disconnected(&self, now: Instant, member: &str, session: SessionId) {
        self.change(|membership| membership.disconnected(now, member, session));
        self.lock().mailboxes.remove(&session);
    }

    /// Topics were created, deleted, or given more partitions.
    pub(super) fn topics_changed(&self, now: Instant, topics: &TopicView) {
        self.change(|membership| membership.topics_changed(now, topics));
    }

    /// Does what is due, and tells when something is due next.
    pub(super) fn tick(&self, now: Instant) -> Option<Instant> {
        self.change(|membership| membership.tick(now));
        self.lock().membership.deadline()
    }

    /// Whether `member` may commit an offset of a partition.
    pub(super) fn may_commit(
        &self,
        member: &str,
        session: Option<SessionId>,
        epoch: u64,
        partition: PartitionKey,
    ) -> Result<(), Fenced> {
        self.lock().membership.may_commit(member, session, epoch, partition)
    }

    pub(super) fn member_count(&self) -> usize {
        self.lock().membership.len()
    }

    pub(super) fn has_member(&self, member: &str) -> bool {
        self.lock().membership.contains(member)
    }

    pub(super) fn describe(&self) -> Description {
        self.lock().membership.describe()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.lock().membership.epoch()
    }

    fn change(&self, change: impl FnOnce(&mut Membership) -> Vec<Effect>) {
        let mut state = self.lock();
        let effects = change(&mut state.membership);
        self.act(&mut state, effects);
    }

    fn act(&self, state: &mut State, effects: Vec<Effect>) {
        for effect in effects {
            let (session, notice) = match effect {
                Effect::Joined { .. } => continue,
                Effect::Assign { session, epoch, partitions } => {
                    (session, Notice::Assign { epoch, partitions })
                }
                Effect::Revoke { session, epoch, partitions, deadline } => {
                    (session, Notice::Revoke { epoch, partitions, deadline })
                }
                Effect::Fence { session, reason } => {
                    if let Some(mailbox) = state.mailboxes.remove(&session) {
                        mailbox.push(Notice::Fence(reason));
                    }
                    continue;
                }
                Effect::Keepalive { session } => (session, Notice::Keepalive),
                Effect::Rebalanced { cause } => {
                    self.metrics.groups.rebalanced(cause_of(cause));
                    continue;
                }
                Effect::Settled { took } => {
                    self.metrics.groups.settled(took);
                    continue;
                }
                Effect::Empty => {
                    state.over = true;
                    continue;
                }
            };
            if let Some(mailbox) = state.mailboxes.get(&session) {
                mailbox.push(notice);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Coordinated for Live {
    fn term(&self) -> u32 {
        self.term
    }

    /// The last member is gone.
    fn is_over(&self) -> bool {
        self.lock().over
    }

    fn dissolve(&self, reason: FenceReason) {
        let mut state = self.lock();
        if state.over {
            return;
        }
        state.over = true;
        self.metrics.groups.rebalanced(RebalanceCause::FailOver);
        for (_, mailbox) in state.mailboxes.drain() {
            mailbox.push(Notice::Fence(reason));
        }
    }
}

fn cause_of(cause: Cause) -> RebalanceCause {
    match cause {
        Cause::Joined => RebalanceCause::Joined,
        Cause::Left => RebalanceCause::Left,
        Cause::SessionTimeout => RebalanceCause::SessionTimeout,
        Cause::ReleaseTimeout => RebalanceCause::ReleaseTimeout,
        Cause::TopicsChanged => RebalanceCause::TopicsChanged,
        Cause::Replaced => RebalanceCause::Replaced,
    }
}
