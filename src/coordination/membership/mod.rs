//! Who is in one consumer group, and who owns which partition.
//!
//! [`Membership`] is told what happens and when, and answers with [`Effect`]s; it does no I/O and reads no clock. It lives
//! in the memory of the group's coordinator from the first join until the last member is gone.
//!
//! - **Incremental.** When members or topics change, [`assign`] says anew who should have what. Whoever has too much is
//!   told to give up just that; a partition that stays is never mentioned. What is released goes to whoever should have it
//!   by then.
//! - **One owner.** A partition has a new owner only after the old one released it, left, or was fenced.
//! - **Epochs.** The group's epoch is `term << 32` plus a counter that grows with every change; a member's epoch is the
//!   group's at the member's last change. A partition knows since which epoch its owner has it without interruption,
//!   and commits with an older one are refused.
//! - **Sessions.** A member is reached by the newest stream that joined as it. What an older one says is ignored. The new
//!   one gets at once what the older one had, without anybody else's change.
//!
//! | file | idea |
//! |---|---|
//! | `mod` | the machine |
//! | `effect` | what it answers |
//! | `member` | a member: what it says of itself, what is known of it, what people see of it |
//! | `topics` | what topics there are, and which of them a member wants |

mod effect;
mod member;
mod topics;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

pub use super::SessionId;
pub use effect::{Cause, Effect, FenceReason, Fenced};
pub use member::{Description, MemberDescription, MemberSpec};
pub use topics::{PatternError, TopicFilter, TopicView};

use member::Member;

use super::PartitionKey;
use super::assignment::{Current, Partition, Reader, assign};
use crate::metadata::TopicId;

/// Names a member for as long as it is in the group, whatever id and stream it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct MemberKey(u64);

#[derive(Debug, Default)]
struct Slot {
    owner: Option<Owner>,
    /// Who should have it. INVARIANT between calls: the owner, unless the owner is giving it up.
    target: Option<MemberKey>,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    member: MemberKey,
    /// The epoch since when it is the member's without interruption.
    since: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Membership {
    epoch: u64,
    /// How many members there have been.
    joined: u64,
    members: BTreeMap<MemberKey, Member>,
    ids: BTreeMap<Arc<str>, MemberKey>,
    topics: TopicView,
    /// Partitions that somebody owns or should own.
    slots: BTreeMap<PartitionKey, Slot>,
    /// Partitions that their owners are to release, and by when.
    revoking: BTreeMap<PartitionKey, Instant>,
    /// When the change was after which not everybody has what it should have.
    unsettled: Option<Instant>,
}

impl Membership {
    /// A group without members, coordinated in a Raft term.
    #[must_use]
    pub fn new(term: u32) -> Self {
        Membership::continuing(u64::from(term) << 32)
    }

    /// A group without members whose last epoch was `epoch`, in the same term. Without it, a commit from before the last
    /// member left could be taken for one of a new member with the same id.
    #[must_use]
    pub fn continuing(epoch: u64) -> Self {
        Membership {
            epoch,
            joined: 0,
            members: BTreeMap::new(),
            ids: BTreeMap::new(),
            topics: TopicView::default(),
            slots: BTreeMap::new(),
            revoking: BTreeMap::new(),
            unsettled: None,
        }
    }

    /// Takes a member in. If it has the member id or the instance id of one that is there, it takes that one's place and
    /// partitions, and the other's stream is fenced.
    pub fn join(
        &mut self,
        now: Instant,
        spec: MemberSpec,
        session: SessionId,
        topics: &TopicView,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.see(topics);
        self.epoch += 1;
        let same_instance = spec.instance_id.as_ref().and_then(|instance| self.with_instance(instance));
        let mut same_id = self.ids.get(&spec.member_id).copied();
        if same_instance.is_some()
            && let Some(other) = same_id.take_if(|key| same_instance != Some(*key))
        {
            // It can take the place of one only.
            self.remove(other, Some(FenceReason::Replaced), &mut effects);
        }
        let reads = topics.matching(&spec.topics);
        let (key, cause) = match same_instance.or(same_id) {
            Some(key) => (key, self.make_room(key, &reads, &mut effects)),
            None => {
                self.joined += 1;
                (MemberKey(self.joined), Cause::Joined)
            }
        };
        let member = spec.member_id.clone();
        self.ids.insert(member.clone(), key);
        let (connected, heard, asked, epoch) = (true, now, None, self.epoch);
        self.members.insert(key, Member { spec, reads, session, connected, heard, asked, epoch });
        effects.push(Effect::Joined { session, member, epoch });
        self.rebalance();
        self.rebalanced(now, cause, &mut effects);
        self.reconcile(now, Some(key), &mut effects);
        effects
    }

    /// Something was heard of a member.
    pub fn heard(&mut self, now: Instant, member: &str, session: SessionId) {
        if let Some(key) = self.connected(member, session) {
            let member = self.members.get_mut(&key).expect("ids name members");
            member.heard = now;
            member.asked = None;
        }
    }

    /// A member gives up partitions. Those that it was not told to give up stay its own.
    pub fn release(
        &mut self,
        now: Instant,
        member: &str,
        session: SessionId,
        partitions: &[PartitionKey],
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(key) = self.connected(member, session) else { return effects };
        self.heard(now, member, session);
        let mut released = false;
        for partition in partitions {
            let Some(slot) = self.slots.get_mut(partition) else { continue };
            if slot.owner.is_some_and(|owner| owner.member == key)
                && self.revoking.remove(partition).is_some()
            {
                slot.owner = None;
                released = true;
            }
        }
        if released {
            self.epoch += 1;
            self.reconcile(now, None, &mut effects);
        }
        effects
    }

    /// A member leaves for good, static or not.
    pub fn leave(&mut self, now: Instant, member: &str, session: SessionId) -> Vec<Effect> {
        match self.connected(member, session) {
            Some(key) => self.without(now, &[(key, None, Cause::Left)]),
            None => Vec::new(),
        }
    }

    /// A member's stream has ended. A static member stays until its session times out, counted from now; but what it was
    /// told to give up is free, for it cannot be asked any more.
    pub fn disconnected(&mut self, now: Instant, member: &str, session: SessionId) -> Vec<Effect> {
        let Some(key) = self.connected(member, session) else { return Vec::new() };
        let member = self.members.get_mut(&key).expect("ids name members");
        if member.spec.instance_id.is_none() {
            return self.without(now, &[(key, None, Cause::Left)]);
        }
        member.connected = false;
        member.heard = now;
        let mut effects = Vec::new();
        if self.free_revoked(key) {
            self.epoch += 1;
            self.reconcile(now, None, &mut effects);
        }
        effects
    }

    /// Topics were created, deleted, or given more partitions.
    pub fn topics_changed(&mut self, now: Instant, topics: &TopicView) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.see(topics) && self.rebalance() {
            self.epoch += 1;
            self.rebalanced(now, Cause::TopicsChanged, &mut effects);
            self.reconcile(now, None, &mut effects);
        }
        effects
    }

    /// Does what is due: removes members that were silent for too long or kept what they were to release, and asks others
    /// for signs of life.
    pub fn tick(&mut self, now: Instant) -> Vec<Effect> {
        let late: BTreeSet<MemberKey> = self
            .revoking
            .iter()
            .filter(|(_, deadline)| **deadline <= now)
            .filter_map(|(partition, _)| self.slots[partition].owner.map(|owner| owner.member))
            .collect();
        let mut gone = Vec::new();
        for (key, member) in &self.members {
            if member.times_out().is_some_and(|at| at <= now) {
                gone.push((*key, Some(FenceReason::SessionTimeout), Cause::SessionTimeout));
            } else if late.contains(key) {
                gone.push((*key, Some(FenceReason::ReleaseTimeout), Cause::ReleaseTimeout));
            }
        }
        let mut effects = if gone.is_empty() { Vec::new() } else { self.without(now, &gone) };
        for member in self.members.values_mut().filter(|member| member.asks().is_some_and(|due| due <= now)) {
            member.asked = Some(now);
            effects.push(Effect::Keepalive { session: member.session });
        }
        effects
    }

    /// When [`tick`](Membership::tick) has something to do next, if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let members = self.members.values().filter_map(|member| member.asks().or(member.times_out()));
        members.chain(self.revoking.values().copied()).min()
    }

    /// Whether a member that knows of `epoch` may commit an offset of a partition. `session` is that of the stream on
    /// which it does, if it does so on its stream.
    ///
    /// # Errors
    /// It may not; says why.
    pub fn may_commit(
        &self,
        member: &str,
        session: Option<SessionId>,
        epoch: u64,
        partition: PartitionKey,
    ) -> Result<(), Fenced> {
        let Some(key) = self.ids.get(member) else {
            return Err(Fenced::UnknownMember { member: member.to_owned() });
        };
        let member = &self.members[key];
        if session.is_some_and(|session| session != member.session) {
            return Err(Fenced::Replaced);
        }
        if epoch > member.epoch {
            return Err(Fenced::UnknownEpoch { epoch, newest: member.epoch });
        }
        match self.slots.get(&partition).and_then(|slot| slot.owner) {
            Some(owner) if owner.member == *key && owner.since <= epoch => Ok(()),
            Some(owner) if owner.member == *key => Err(Fenced::StaleEpoch { epoch, since: owner.since }),
            owner => Err(Fenced::NotOwner {
                owner: owner.map(|owner| self.members[&owner.member].spec.member_id.clone()),
            }),
        }
    }

    /// The group's epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many members there are, static ones that are away included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether there is a member of this id.
    #[must_use]
    pub fn contains(&self, member: &str) -> bool {
        self.ids.contains_key(member)
    }

    /// The group, as people see it.
    #[must_use]
    pub fn describe(&self) -> Description {
        let mut owned: BTreeMap<MemberKey, (Vec<PartitionKey>, Vec<PartitionKey>)> = BTreeMap::new();
        for (partition, slot) in &self.slots {
            let Some(owner) = slot.owner else { continue };
            let (assigned, revoking) = owned.entry(owner.member).or_default();
            let list = if self.revoking.contains_key(partition) { revoking } else { assigned };
            list.push(*partition);
        }
        let describe = |key: &MemberKey| {
            let Member { spec, epoch, connected, .. } = &self.members[key];
            let (assigned, revoking) = owned.remove(key).unwrap_or_default();
            MemberDescription {
                member_id: spec.member_id.clone(),
                instance_id: spec.instance_id.clone(),
                client_id: spec.client_id.clone(),
                rack: spec.rack.clone(),
                epoch: *epoch,
                connected: *connected,
                assigned,
                revoking,
            }
        };
        Description { epoch: self.epoch, members: self.ids.values().map(describe).collect() }
    }

    /// The member of this id, if this is its stream and open.
    fn connected(&self, member: &str, session: SessionId) -> Option<MemberKey> {
        let key = *self.ids.get(member)?;
        let member = &self.members[&key];
        (member.connected && member.session == session).then_some(key)
    }

    fn with_instance(&self, instance: &Arc<str>) -> Option<MemberKey> {
        let is = |member: &Member| member.spec.instance_id.as_ref() == Some(instance);
        self.members.iter().find(|(_, member)| is(member)).map(|(key, _)| *key)
    }

    /// Notes which topics there are. False if that is known.
    fn see(&mut self, topics: &TopicView) -> bool {
        if self.topics == *topics {
            return false;
        }
        self.topics = topics.clone();
        for member in self.members.values_mut() {
            member.reads = topics.matching(&member.spec.topics);
        }
        true
    }

    /// Prepares for another stream to take a member's place, and tells what that is the cause of.
    fn make_room(&mut self, key: MemberKey, reads: &BTreeSet<TopicId>, effects: &mut Vec<Effect>) -> Cause {
        let member = &self.members[&key];
        let cause = if member.reads == *reads { Cause::Replaced } else { Cause::TopicsChanged };
        self.ids.remove(&member.spec.member_id);
        if member.connected {
            effects.push(Effect::Fence { session: member.session, reason: FenceReason::Replaced });
        }
        self.free_revoked(key);
        cause
    }

    /// Frees what a member is to give up, since it cannot do anything with it any more. False if there is nothing.
    fn free_revoked(&mut self, key: MemberKey) -> bool {
        let before = self.revoking.len();
        self.revoking.retain(|partition, _| {
            let slot = self.slots.get_mut(partition).expect("what is revoked is owned");
            slot.owner.take_if(|owner| owner.member == key).is_none()
        });
        self.revoking.len() < before
    }

    /// Removes members, and gives what they had to others.
    fn without(&mut self, now: Instant, gone: &[(MemberKey, Option<FenceReason>, Cause)]) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.epoch += 1;
        for (key, reason, cause) in gone {
            self.remove(*key, *reason, &mut effects);
            self.rebalanced(now, *cause, &mut effects);
        }
        self.rebalance();
        self.reconcile(now, None, &mut effects);
        if self.members.is_empty() {
            effects.push(Effect::Empty);
        }
        effects
    }

    fn remove(&mut self, key: MemberKey, reason: Option<FenceReason>, effects: &mut Vec<Effect>) {
        self.free_revoked(key);
        let member = self.members.remove(&key).expect("only members are removed");
        self.ids.remove(&member.spec.member_id);
        for slot in self.slots.values_mut() {
            slot.owner.take_if(|owner| owner.member == key);
            slot.target.take_if(|target| *target == key);
        }
        if let Some(reason) = reason.filter(|_| member.connected) {
            effects.push(Effect::Fence { session: member.session, reason });
        }
    }

    /// Computes anew who should have what. False if nothing is different.
    fn rebalance(&mut self) -> bool {
        let keys: Vec<MemberKey> = self.members.keys().copied().collect();
        let place = |key: MemberKey| keys.binary_search(&key).expect("owners and targets are members");
        let readers: Vec<_> = self
            .members
            .values()
            .map(|Member { spec, reads, .. }| Reader {
                id: &spec.member_id,
                rack: spec.rack.as_deref(),
                topics: reads,
            })
            .collect();
        let current = |partition: &PartitionKey| match self.slots.get(partition) {
            Some(Slot { owner: Some(owner), .. }) if !self.revoking.contains_key(partition) => {
                Current::Held(place(owner.member))
            }
            // Who is giving it up must, whoever gets it then.
            Some(Slot { target: Some(target), .. }) => Current::Promised(place(*target)),
            _ => Current::Nobody,
        };
        let read: BTreeSet<&TopicId> = self.members.values().flat_map(|member| &member.reads).collect();
        let mut partitions = Vec::new();
        for (topic, racks) in self.topics.iter().filter(|(topic, _)| read.contains(topic)) {
            for (partition, racks) in (0..).zip(racks) {
                let key = PartitionKey { topic, partition };
                partitions.push(Partition { key, racks, current: current(&key) });
            }
        }
        let owners = assign(&readers, &partitions);
        let targets = partitions.iter().zip(owners);
        let mut targets: BTreeMap<PartitionKey, MemberKey> =
            targets.filter_map(|(partition, owner)| Some((partition.key, keys[owner?]))).collect();
        let mut changed = false;
        for (partition, slot) in &mut self.slots {
            let target = targets.remove(partition);
            changed |= slot.target != target;
            slot.target = target;
        }
        changed |= !targets.is_empty();
        let new = |target| Slot { owner: None, target: Some(target) };
        self.slots.extend(targets.into_iter().map(|(partition, target)| (partition, new(target))));
        changed
    }

    /// Gives what is free to those who should have it, and takes what others have. The stream of `fresh` is new: it has
    /// nothing yet, but the member may own partitions from before.
    fn reconcile(&mut self, now: Instant, fresh: Option<MemberKey>, effects: &mut Vec<Effect>) {
        let mut given: BTreeMap<MemberKey, Vec<PartitionKey>> = BTreeMap::new();
        let mut taken: BTreeMap<MemberKey, Vec<PartitionKey>> = BTreeMap::new();
        for (partition, slot) in &mut self.slots {
            if let Some(owner) = slot.owner {
                let is_fresh = Some(owner.member) == fresh;
                let member = &self.members[&owner.member];
                if self.revoking.contains_key(partition) || (slot.target == Some(owner.member) && !is_fresh) {
                    continue;
                }
                if slot.target != Some(owner.member) && !is_fresh && member.connected {
                    self.revoking.insert(*partition, now + member.spec.rebalance_timeout);
                    taken.entry(owner.member).or_default().push(*partition);
                    continue;
                }
            }
            slot.owner = slot.target.map(|member| Owner { member, since: self.epoch });
            if let Some(target) = slot.target {
                given.entry(target).or_default().push(*partition);
            }
        }
        self.slots.retain(|_, slot| slot.owner.is_some());
        for (key, partitions) in taken {
            let member = self.changed(key);
            let (session, epoch, deadline) = (member.session, member.epoch, member.spec.rebalance_timeout);
            effects.push(Effect::Revoke { session, epoch, partitions, deadline });
        }
        for (key, partitions) in given {
            let member = self.changed(key);
            let (session, epoch) = (member.session, member.epoch);
            if member.connected {
                effects.push(Effect::Assign { session, epoch, partitions });
            }
        }
        if self.revoking.is_empty()
            && let Some(since) = self.unsettled.take()
            && !self.members.is_empty()
        {
            effects.push(Effect::Settled { took: now.saturating_duration_since(since) });
        }
    }

    fn changed(&mut self, key: MemberKey) -> &mut Member {
        let member = self.members.get_mut(&key).expect("owners are members");
        member.epoch = self.epoch;
        member
    }

    /// Tells that the assignment was computed anew. From now on not everybody may have what it should have.
    fn rebalanced(&mut self, now: Instant, cause: Cause, effects: &mut Vec<Effect>) {
        self.unsettled.get_or_insert(now);
        effects.push(Effect::Rebalanced { cause });
    }
}

#[cfg(test)]
mod tests;
