//! The rules of membership, one by one; [`model`] has them all at once.

mod model;

use std::time::Duration;

use super::*;

const SESSION_TIMEOUT: Duration = Duration::from_secs(30);
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(20);

fn key(topic: u32, partition: u32) -> PartitionKey {
    PartitionKey { topic: TopicId(topic), partition }
}

fn keys<const N: usize>(partitions: [u32; N]) -> Vec<PartitionKey> {
    partitions.map(|partition| key(1, partition)).to_vec()
}

fn view(topics: &[(&str, u32, usize)]) -> TopicView {
    TopicView::new(
        topics.iter().map(|(name, id, count)| (Arc::from(*name), TopicId(*id), vec![Vec::new(); *count])),
    )
}

fn filter(names: &[&str], pattern: Option<&str>) -> TopicFilter {
    TopicFilter::new(names.iter().map(|name| Arc::from(*name)), pattern).expect("a good pattern")
}

/// A member that reads `orders`.
fn member(id: &str) -> MemberSpec {
    MemberSpec {
        member_id: id.into(),
        instance_id: None,
        rack: None,
        client_id: None,
        topics: filter(&["orders"], None),
        session_timeout: SESSION_TIMEOUT,
        rebalance_timeout: REBALANCE_TIMEOUT,
    }
}

fn fixed(id: &str, instance: &str) -> MemberSpec {
    MemberSpec { instance_id: Some(instance.into()), ..member(id) }
}

/// A group in term 1 with a topic `orders`, id 1, and a clock.
struct Group {
    membership: Membership,
    start: Instant,
    now: Instant,
    topics: TopicView,
}

impl Group {
    fn of(partitions: usize) -> Self {
        let now = Instant::now();
        Group { membership: Membership::new(1), start: now, now, topics: view(&[("orders", 1, partitions)]) }
    }

    fn after(&mut self, seconds: u64) -> &mut Self {
        self.now = self.start + Duration::from_secs(seconds);
        self
    }

    fn join(&mut self, spec: MemberSpec, session: u64) -> Vec<Effect> {
        self.membership.join(self.now, spec, SessionId(session), &self.topics)
    }

    fn release(&mut self, id: &str, session: u64, partitions: &[PartitionKey]) -> Vec<Effect> {
        self.membership.release(self.now, id, SessionId(session), partitions)
    }

    fn leave(&mut self, id: &str, session: u64) -> Vec<Effect> {
        self.membership.leave(self.now, id, SessionId(session))
    }

    fn disconnected(&mut self, id: &str, session: u64) -> Vec<Effect> {
        self.membership.disconnected(self.now, id, SessionId(session))
    }

    fn heard(&mut self, id: &str, session: u64) {
        self.membership.heard(self.now, id, SessionId(session));
    }

    fn tick(&mut self) -> Vec<Effect> {
        self.membership.tick(self.now)
    }

    /// Commits by way of the member's stream.
    fn commit(&self, id: &str, session: u64, epoch: u64, partition: u32) -> Result<(), Fenced> {
        self.membership.may_commit(id, Some(SessionId(session)), epoch, key(1, partition))
    }

    fn assigned(&self, id: &str) -> Vec<PartitionKey> {
        let members = self.membership.describe().members;
        members.into_iter().find(|member| *member.member_id == *id).expect("a member").assigned
    }
}

const fn epoch(counter: u64) -> u64 {
    (1 << 32) + counter
}

fn joined(session: u64, member: &str, counter: u64) -> Effect {
    Effect::Joined { session: SessionId(session), member: member.into(), epoch: epoch(counter) }
}

fn assign(session: u64, counter: u64, partitions: Vec<PartitionKey>) -> Effect {
    Effect::Assign { session: SessionId(session), epoch: epoch(counter), partitions }
}

fn revoke(session: u64, counter: u64, partitions: Vec<PartitionKey>) -> Effect {
    let deadline = REBALANCE_TIMEOUT;
    Effect::Revoke { session: SessionId(session), epoch: epoch(counter), partitions, deadline }
}

fn fence(session: u64, reason: FenceReason) -> Effect {
    Effect::Fence { session: SessionId(session), reason }
}

const fn rebalanced(cause: Cause) -> Effect {
    Effect::Rebalanced { cause }
}

const fn settled(seconds: u64) -> Effect {
    Effect::Settled { took: Duration::from_secs(seconds) }
}

const fn keepalive(session: u64) -> Effect {
    Effect::Keepalive { session: SessionId(session) }
}

fn not_owner(owner: Option<&str>) -> Result<(), Fenced> {
    Err(Fenced::NotOwner { owner: owner.map(Arc::from) })
}

#[test]
fn the_first_member_gets_everything_at_once() {
    let mut group = Group::of(3);
    let effects = group.join(member("a"), 1);
    let all = assign(1, 1, keys([0, 1, 2]));
    assert_eq!(effects, [joined(1, "a", 1), rebalanced(Cause::Joined), all, settled(0)]);
}

#[test]
fn a_member_that_joins_gets_what_the_other_releases_and_nothing_else_is_mentioned() {
    let mut group = Group::of(4);
    group.join(member("a"), 1);
    let effects = group.after(1).join(member("b"), 2);
    assert_eq!(effects, [joined(2, "b", 2), rebalanced(Cause::Joined), revoke(1, 2, keys([2, 3]))]);
    assert_eq!(group.after(2).release("a", 1, &keys([3])), [assign(2, 3, keys([3]))]);
    assert_eq!(group.after(4).release("a", 1, &keys([2])), [assign(2, 4, keys([2])), settled(3)]);
    assert_eq!((group.assigned("a"), group.assigned("b")), (keys([0, 1]), keys([2, 3])));
}

#[test]
fn commits_are_accepted_until_the_partition_is_released() {
    let mut group = Group::of(2);
    group.join(member("a"), 1);
    group.join(member("b"), 2);
    assert_eq!(group.commit("a", 1, epoch(1), 1), Ok(()));
    assert_eq!(group.commit("a", 1, epoch(2), 1), Ok(()));
    assert_eq!(group.commit("b", 2, epoch(2), 1), not_owner(Some("a")));
    group.release("a", 1, &keys([1]));
    assert_eq!(group.commit("a", 1, epoch(2), 1), not_owner(Some("b")));
    assert_eq!(group.commit("b", 2, epoch(3), 1), Ok(()));
    // What stays was never interrupted.
    assert_eq!(group.commit("a", 1, epoch(1), 0), Ok(()));
}

#[test]
fn commits_with_epochs_that_do_not_fit_are_refused() {
    let mut group = Group::of(2);
    group.join(member("a"), 1);
    group.join(member("b"), 2);
    group.release("a", 1, &keys([1]));
    assert_eq!(
        group.commit("b", 2, epoch(2), 1),
        Err(Fenced::StaleEpoch { epoch: epoch(2), since: epoch(3) })
    );
    assert_eq!(
        group.commit("b", 2, epoch(4), 1),
        Err(Fenced::UnknownEpoch { epoch: epoch(4), newest: epoch(3) })
    );
    assert_eq!(group.commit("c", 2, epoch(3), 1), Err(Fenced::UnknownMember { member: "c".to_owned() }));
    assert_eq!(group.commit("b", 1, epoch(3), 1), Err(Fenced::Replaced));
    assert_eq!(group.commit("b", 2, epoch(3), 7), not_owner(None));
}

#[test]
fn commits_outside_of_the_stream_are_held_to_member_and_epoch() {
    let mut group = Group::of(1);
    group.join(member("a"), 1);
    assert_eq!(group.membership.may_commit("a", None, epoch(1), key(1, 0)), Ok(()));
    let stale = Err(Fenced::StaleEpoch { epoch: epoch(0), since: epoch(1) });
    assert_eq!(group.membership.may_commit("a", None, epoch(0), key(1, 0)), stale);
}

#[test]
fn members_of_an_earlier_term_are_fenced() {
    let mut old = Group::of(1);
    old.join(member("a"), 1);
    let old = old.membership.epoch();
    let mut new = Membership::new(2);
    new.join(Instant::now(), member("a"), SessionId(2), &view(&[("orders", 1, 1)]));
    let since = (2 << 32) + 1;
    assert_eq!(new.may_commit("a", None, old, key(1, 0)), Err(Fenced::StaleEpoch { epoch: old, since }));
}

#[test]
fn releasing_what_was_not_revoked_changes_nothing() {
    let mut group = Group::of(2);
    group.join(member("a"), 1);
    group.join(member("b"), 2);
    assert_eq!(group.release("a", 1, &keys([0])), []);
    assert_eq!(group.release("b", 2, &keys([1])), []);
    assert_eq!(group.release("a", 9, &keys([1])), []);
    assert_eq!(group.assigned("a"), keys([0]));
}

#[test]
fn what_a_member_had_goes_to_others_when_its_stream_ends() {
    let mut group = Group::of(2);
    group.join(member("a"), 1);
    group.join(member("b"), 2);
    group.release("a", 1, &keys([1]));
    assert_eq!(group.disconnected("b", 1), [], "not its stream");
    let effects = group.disconnected("b", 2);
    assert_eq!(effects, [rebalanced(Cause::Left), assign(1, 4, keys([1])), settled(0)]);
}

#[test]
fn a_static_member_that_leaves_is_gone_at_once() {
    let mut group = Group::of(1);
    group.join(fixed("a", "one"), 1);
    group.join(member("b"), 2);
    let effects = group.leave("a", 1);
    assert_eq!(effects, [rebalanced(Cause::Left), assign(2, 3, keys([0])), settled(0)]);
}

#[test]
fn a_static_member_that_comes_back_in_time_gets_the_same_and_nobody_else_notices() {
    let mut group = Group::of(2);
    group.join(fixed("a", "one"), 1);
    group.join(member("b"), 2);
    group.release("a", 1, &keys([1]));
    assert_eq!(group.after(1).disconnected("a", 1), []);
    group.after(20).heard("b", 2);
    let effects = group.after(30).join(fixed("a2", "one"), 3);
    let again = assign(3, 4, keys([0]));
    assert_eq!(effects, [joined(3, "a2", 4), rebalanced(Cause::Replaced), again, settled(0)]);
    assert_eq!(group.commit("a2", 3, epoch(4), 0), Ok(()));
    // The program from before knows an older epoch.
    assert_eq!(group.commit("a", 1, epoch(2), 0), Err(Fenced::UnknownMember { member: "a".to_owned() }));
    assert_eq!(
        group.commit("a2", 3, epoch(2), 0),
        Err(Fenced::StaleEpoch { epoch: epoch(2), since: epoch(4) })
    );
    assert_eq!(group.commit("b", 2, epoch(3), 1), Ok(()));
}

#[test]
fn a_static_member_that_stays_away_is_removed_a_session_timeout_after_its_stream_ended() {
    let mut group = Group::of(1);
    group.join(fixed("a", "one"), 1);
    group.join(member("b"), 2);
    group.after(15).disconnected("a", 1);
    group.after(44).heard("b", 2);
    assert_eq!(group.tick(), []);
    assert_eq!(group.membership.deadline(), Some(group.start + Duration::from_secs(45)));
    let effects = group.after(45).tick();
    assert_eq!(effects, [rebalanced(Cause::SessionTimeout), assign(2, 3, keys([0])), settled(0)]);
}

#[test]
fn nobody_waits_for_a_static_member_that_is_away() {
    let mut group = Group::of(4);
    group.join(fixed("a", "one"), 1);
    group.join(member("b"), 2);
    // What it was told to give up before it went.
    assert_eq!(group.disconnected("a", 1), [assign(2, 3, keys([2, 3])), settled(0)]);
    // What it would be told to give up now.
    let effects = group.join(member("c"), 3);
    assert_eq!(effects, [joined(3, "c", 4), rebalanced(Cause::Joined), assign(3, 4, keys([1])), settled(0)]);
    let effects = group.join(fixed("a", "one"), 4);
    assert_eq!(effects[2..], [assign(4, 5, keys([0])), settled(0)]);
}

#[test]
fn a_newer_stream_of_a_member_replaces_the_older_and_gets_its_partitions() {
    let mut group = Group::of(2);
    group.join(member("a"), 1);
    let effects = group.join(member("a"), 2);
    assert_eq!(effects[..2], [fence(1, FenceReason::Replaced), joined(2, "a", 2)]);
    assert_eq!(effects[2..], [rebalanced(Cause::Replaced), assign(2, 2, keys([0, 1])), settled(0)]);
    assert_eq!(group.commit("a", 1, epoch(2), 0), Err(Fenced::Replaced));
    // Nothing that the older stream says counts any more.
    assert_eq!(group.disconnected("a", 1), []);
    assert_eq!(group.leave("a", 1), []);
    assert_eq!(group.assigned("a"), keys([0, 1]));
}

#[test]
fn what_a_replaced_stream_was_to_give_up_is_free() {
    let mut group = Group::of(2);
    group.join(member("a"), 1);
    group.join(member("b"), 2);
    let effects = group.join(member("a"), 3);
    assert_eq!(effects[3..], [assign(3, 3, keys([0])), assign(2, 3, keys([1])), settled(0)]);
}

#[test]
fn a_stream_with_the_instance_id_of_a_connected_member_takes_its_place() {
    let mut group = Group::of(2);
    group.join(fixed("a", "one"), 1);
    let effects = group.join(fixed("b", "one"), 2);
    assert_eq!(effects[..2], [fence(1, FenceReason::Replaced), joined(2, "b", 2)]);
    assert_eq!(effects[3], assign(2, 2, keys([0, 1])));
    assert_eq!((group.membership.len(), group.membership.contains("a")), (1, false));
}

#[test]
fn a_stream_with_the_ids_of_two_members_replaces_both() {
    let mut group = Group::of(2);
    group.join(fixed("a", "one"), 1);
    group.join(member("b"), 2);
    group.release("a", 1, &keys([1]));
    let effects = group.join(fixed("b", "one"), 3);
    let fenced = [fence(2, FenceReason::Replaced), fence(1, FenceReason::Replaced)];
    assert_eq!(effects[..3], [&fenced[..], &[joined(3, "b", 4)]].concat());
    assert_eq!(effects[4..], [assign(3, 4, keys([0, 1])), settled(0)]);
    assert_eq!(group.membership.len(), 1);
}

#[test]
fn a_member_that_comes_back_with_other_wishes_is_never_given_what_it_does_not_want() {
    let mut group = Group::of(2);
    group.topics = view(&[("orders", 1, 1), ("audit", 2, 1)]);
    group.join(MemberSpec { topics: filter(&["orders", "audit"], None), ..member("a") }, 1);
    let effects = group.join(MemberSpec { topics: filter(&["audit"], None), ..member("a") }, 2);
    assert_eq!(effects[2..], [rebalanced(Cause::TopicsChanged), assign(2, 2, vec![key(2, 0)]), settled(0)]);
}

#[test]
fn a_silent_member_is_asked_once_after_a_third_of_its_session_timeout() {
    let mut group = Group::of(1);
    group.join(member("a"), 1);
    assert_eq!(group.membership.deadline(), Some(group.start + Duration::from_secs(10)));
    assert_eq!(group.after(9).tick(), []);
    assert_eq!(group.after(10).tick(), [keepalive(1)]);
    assert_eq!(group.after(11).tick(), []);
    assert_eq!(group.membership.deadline(), Some(group.start + Duration::from_secs(30)));
    group.after(12).heard("a", 1);
    assert_eq!(group.after(21).tick(), []);
    assert_eq!(group.after(22).tick(), [keepalive(1)]);
}

#[test]
fn a_member_that_stays_silent_is_fenced_and_its_partitions_move() {
    let mut group = Group::of(2);
    group.join(member("a"), 1);
    group.join(member("b"), 2);
    group.release("a", 1, &keys([1]));
    assert_eq!(group.after(10).tick(), [keepalive(1), keepalive(2)]);
    group.after(25).heard("b", 2);
    assert_eq!(group.after(29).tick(), []);
    let effects = group.after(30).tick();
    assert_eq!(effects[..2], [fence(1, FenceReason::SessionTimeout), rebalanced(Cause::SessionTimeout)]);
    assert_eq!(effects[2..], [assign(2, 4, keys([0])), settled(0)]);
    assert_eq!(group.commit("a", 1, epoch(2), 0), Err(Fenced::UnknownMember { member: "a".to_owned() }));
}

#[test]
fn a_member_that_was_asked_late_has_as_long_to_answer() {
    let mut group = Group::of(1);
    group.join(member("a"), 1);
    // The coordinator was held up for long.
    assert_eq!(group.after(100).tick(), [keepalive(1)]);
    assert_eq!(group.membership.deadline(), Some(group.start + Duration::from_secs(120)));
    assert_eq!(group.after(119).tick(), []);
    let effects = group.after(120).tick();
    assert_eq!(effects[..1], [fence(1, FenceReason::SessionTimeout)]);
}

#[test]
fn a_member_that_does_not_release_in_time_is_fenced_though_it_lives() {
    let mut group = Group::of(2);
    group.join(member("a"), 1);
    group.after(5).join(member("b"), 2);
    for second in (6..25).step_by(3) {
        group.after(second).heard("a", 1);
        group.heard("b", 2);
        assert_eq!(group.tick(), []);
    }
    assert_eq!(group.membership.deadline(), Some(group.start + Duration::from_secs(25)));
    let effects = group.after(25).tick();
    assert_eq!(effects[..2], [fence(1, FenceReason::ReleaseTimeout), rebalanced(Cause::ReleaseTimeout)]);
    assert_eq!(effects[2..], [assign(2, 3, keys([0, 1])), settled(20)]);
}

#[test]
fn partitions_of_topics_that_are_created_or_grow_are_given_to_those_who_want_them() {
    let mut group = Group::of(1);
    group.join(MemberSpec { topics: filter(&[], Some("or.*")), ..member("a") }, 1);
    group.join(MemberSpec { topics: filter(&["orders", "orchids"], None), ..member("b") }, 2);
    let topics = view(&[("orders", 1, 1), ("orchids", 2, 1), ("audit", 3, 9)]);
    let effects = group.membership.topics_changed(group.now, &topics);
    assert_eq!(effects, [rebalanced(Cause::TopicsChanged), assign(2, 3, vec![key(2, 0)]), settled(0)]);
    assert_eq!(group.membership.topics_changed(group.now, &topics), []);
    let topics = view(&[("orders", 1, 3), ("orchids", 2, 1), ("audit", 3, 9)]);
    let effects = group.membership.topics_changed(group.now, &topics);
    assert_eq!(effects[1..], [assign(1, 4, keys([1])), assign(2, 4, keys([2])), settled(0)]);
    let topics = view(&[("orders", 1, 3), ("orchids", 2, 1), ("audit", 3, 10)]);
    assert_eq!(group.membership.topics_changed(group.now, &topics), [], "nobody reads it");
}

#[test]
fn partitions_of_a_deleted_topic_are_revoked_and_forgotten_when_they_are_released() {
    let mut group = Group::of(2);
    group.join(member("a"), 1);
    let effects = group.membership.topics_changed(group.now, &view(&[]));
    assert_eq!(effects, [rebalanced(Cause::TopicsChanged), revoke(1, 2, keys([0, 1]))]);
    assert_eq!(group.release("a", 1, &keys([0, 1])), [settled(0)]);
    assert_eq!(group.commit("a", 1, epoch(2), 0), not_owner(None));
    // One that is created again under the same name is another one.
    let effects = group.membership.topics_changed(group.now, &view(&[("orders", 2, 1)]));
    assert_eq!(effects[1..], [assign(1, 4, vec![key(2, 0)]), settled(0)]);
}

#[test]
fn a_partition_that_is_being_given_up_comes_back_only_after_its_release() {
    let mut group = Group::of(2);
    group.join(member("a"), 1);
    group.join(member("b"), 2);
    assert_eq!(group.leave("b", 2), [rebalanced(Cause::Left)]);
    let described = group.membership.describe().members;
    assert_eq!((&described[0].assigned, &described[0].revoking), (&keys([0]), &keys([1])));
    assert_eq!(group.after(3).release("a", 1, &keys([1])), [assign(1, 4, keys([1])), settled(3)]);
    assert_eq!(
        group.commit("a", 1, epoch(2), 1),
        Err(Fenced::StaleEpoch { epoch: epoch(2), since: epoch(4) })
    );
}

#[test]
fn the_last_member_leaves_an_empty_group_whose_epochs_go_on() {
    let mut group = Group::of(1);
    group.join(member("a"), 1);
    assert_eq!(group.leave("a", 1), [rebalanced(Cause::Left), Effect::Empty]);
    assert!(group.membership.is_empty());
    assert_eq!(group.membership.deadline(), None);
    let mut next = Membership::continuing(group.membership.epoch());
    next.join(group.now, member("a"), SessionId(2), &group.topics);
    let stale = Err(Fenced::StaleEpoch { epoch: epoch(1), since: epoch(3) });
    assert_eq!(next.may_commit("a", None, epoch(1), key(1, 0)), stale);
}

#[test]
fn what_is_promised_stays_promised_when_something_happens_that_concerns_nobody() {
    let mut group = Group::of(12);
    for (session, id) in [(1, "c"), (2, "b"), (3, "a")] {
        group.join(member(id), session);
    }
    let topics = view(&[("orders", 1, 12), ("audit", 2, 3)]);
    assert_eq!(group.membership.topics_changed(group.now, &topics), []);
}

/// Members join one after the other, each when `answers` are released of what is revoked. Counts revocations.
fn revocations(members: usize, partitions: usize, answers: bool) -> usize {
    let mut group = Group::of(partitions);
    let mut revoked = Vec::new();
    let mut count = 0;
    for session in 1..=members as u64 {
        let mut effects = group.join(member(&format!("member-{session}")), session);
        while let Some(effect) = effects.pop() {
            let Effect::Revoke { session, partitions, .. } = effect else { continue };
            count += partitions.len();
            revoked.push((session, partitions));
        }
        if answers {
            for (session, partitions) in revoked.drain(..) {
                let answer = group.release(&format!("member-{}", session.0), session.0, &partitions);
                assert!(answer.iter().all(|effect| !matches!(effect, Effect::Revoke { .. })), "{answer:?}");
            }
        }
    }
    for (session, partitions) in revoked {
        group.release(&format!("member-{}", session.0), session.0, &partitions);
    }
    let loads: Vec<_> =
        group.membership.describe().members.iter().map(|member| member.assigned.len()).collect();
    assert_eq!(loads, vec![partitions / members; members]);
    count
}

#[test]
fn members_that_join_together_cost_each_partition_one_revocation_at_most() {
    assert_eq!(revocations(10, 100, false), 90);
    // One after the other, each gets its share from all that were there: 50 + 33 + 25 + … + 10.
    assert_eq!(revocations(10, 100, true), 50 + 33 + 25 + 20 + 16 + 14 + 12 + 11 + 10);
}

#[test]
fn a_hundred_groups_of_ten_members_and_a_hundred_partitions_settle() {
    for _ in 0..100 {
        revocations(10, 100, true);
    }
}
