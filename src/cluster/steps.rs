//! Which step the members of a group need next, and who takes over a leadership best. Pure: it follows from what is wanted
//! and from what the leader knows.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use super::peers::Standing;
use crate::metadata::{PartitionAssignment, RepairStage};
use crate::raft::{Follower, NodeId, Status};

/// Entries that a member may lack when it is given a vote, or a leadership.
const CAUGHT_UP_ENTRIES: u64 = 100;
/// A member that did not answer for so long is not handed a leadership.
const HEARD: Duration = Duration::from_millis(1_500);

/// One change of a group's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It gets entries, and has no vote.
    Invite(NodeId),
    /// These have votes, and nobody else.
    GiveVotes(BTreeSet<NodeId>),
    /// It leaves.
    Expel(NodeId),
}

/// What is to be done about a group's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// This.
    Do(Step),
    /// Another one leads first.
    HandOver(NodeId),
    /// Nothing before something else has happened.
    Wait,
    /// This stage of a repair is over.
    Advance(RepairStage),
    /// The replicas have moved.
    FinishMove,
    /// Nothing: they are as wanted.
    Done,
}

/// Who should be in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) voters: BTreeSet<NodeId>,
    /// Members without a vote.
    pub(crate) learners: BTreeSet<NodeId>,
}

/// A group as its leader sees it.
pub(crate) struct Leading<'a> {
    /// The leader.
    pub(crate) node: NodeId,
    /// Its replica.
    pub(crate) status: &'a Status,
    /// The other members.
    pub(crate) followers: &'a [Follower],
    /// Whether a broker is reached, and can serve.
    pub(crate) standing: &'a dyn Fn(NodeId) -> Standing,
    /// Whether a replica has lost something.
    pub(crate) damaged: &'a dyn Fn(NodeId) -> bool,
}

impl Leading<'_> {
    /// Whether a member could lead at once: it has answered just now, and has nearly everything.
    pub(crate) fn is_fit(&self, node: NodeId) -> bool {
        let keeps_up = |follower: &Follower| {
            follower.heard.is_some_and(|heard| heard < HEARD) && self.lacks(follower) <= CAUGHT_UP_ENTRIES
        };
        node == self.node
            || (self.standing)(node) > Standing::Away && self.follower(node).is_some_and(keeps_up)
    }

    /// Who of these takes a leadership best, first of all somebody who can at once: whose replica is intact, who votes before
    /// and after a change of members that is half done, whose broker serves already, who has most, and who was heard last.
    pub(crate) fn best_heir(&self, able: impl IntoIterator<Item = NodeId>) -> Option<NodeId> {
        let others = able.into_iter().filter(|node| *node != self.node);
        others.max_by_key(|node| {
            let follower = self.follower(*node);
            (
                self.is_fit(*node),
                !(self.damaged)(*node),
                self.status.lasting_voters.contains(node),
                (self.standing)(*node),
                follower.and_then(|one| one.matched),
                Reverse(follower.and_then(|one| one.heard).unwrap_or(Duration::MAX)),
            )
        })
    }

    /// As [`Leading::best_heir`], if that can lead at once. One that cannot would keep the group waiting until its leadership
    /// is let go.
    pub(crate) fn fit_heir(&self, able: impl IntoIterator<Item = NodeId>) -> Option<NodeId> {
        self.best_heir(able).filter(|node| self.is_fit(*node))
    }

    /// Whether a leadership may be handed to a voter that should have it, and serves clients. One that starts may have caught
    /// up with the group and still refuse them.
    pub(crate) fn may_be_handed_to(&self, node: NodeId) -> bool {
        self.status.is_ready_leader()
            && self.status.voters.contains(&node)
            && (self.standing)(node) == Standing::Ready
            && self.is_fit(node)
    }

    fn follower(&self, node: NodeId) -> Option<&Follower> {
        self.followers.iter().find(|follower| follower.node == node)
    }

    /// How many entries a member lacks.
    fn lacks(&self, follower: &Follower) -> u64 {
        let last = self.status.last_index.map_or(0, |last| last + 1);
        last.saturating_sub(follower.matched.map_or(0, |matched| matched + 1))
    }

    /// Whether a member has nearly everything. The leader lacks nothing.
    fn has_caught_up(&self, node: NodeId) -> bool {
        self.follower(node)
            .is_none_or(|follower| follower.matched.is_some() && self.lacks(follower) <= CAUGHT_UP_ENTRIES)
    }

    /// What brings the group to `wanted`. A leader that is to lose its vote leads until others can, and hands over to one of
    /// them.
    pub(crate) fn next(&self, wanted: &Wanted) -> Next {
        self.decide(|| self.keep_vote(self.next_step(wanted)))
    }

    /// What a leader does that is ready, which is `otherwise` unless it cannot read what others lack.
    fn decide(&self, otherwise: impl FnOnce() -> Next) -> Next {
        let ready = self.status.is_ready_leader();
        if self.status.unreadable.is_some() {
            // Whoever can give the others what they lack; if need be one that has lost something else.
            let voters = || self.status.voters.iter().copied();
            let heir = match ready {
                true => self.fit_heir(voters()),
                // It cannot even find out what the others have, so nothing is agreed on while it leads. If the one that is
                // asked cannot lead, the leadership is let go.
                false => self.best_heir(voters().filter(|node| (self.standing)(*node) > Standing::Away)),
            };
            if let Some(heir) = heir {
                return Next::HandOver(heir);
            }
        }
        if ready { otherwise() } else { Next::Wait }
    }

    fn next_step(&self, wanted: &Wanted) -> Next {
        if !self.status.members_agreed {
            return Next::Wait;
        }
        let is_member = |node: &NodeId| self.status.members.contains(node);
        let missing = wanted.voters.iter().chain(&wanted.learners).find(|node| !is_member(node));
        if let Some(missing) = missing {
            return Next::Do(Step::Invite(*missing));
        }
        let voters: BTreeSet<NodeId> = self.status.voters.iter().copied().collect();
        // A change that is half done needs majorities of both, and nobody else ends it.
        let half_done = self.status.lasting_voters != self.status.voters;
        if half_done || voters != wanted.voters {
            let ready = wanted.voters.difference(&voters).all(|node| self.has_caught_up(*node));
            return if ready { Next::Do(Step::GiveVotes(wanted.voters.clone())) } else { Next::Wait };
        }
        let all: BTreeSet<NodeId> = wanted.voters.union(&wanted.learners).copied().collect();
        let unwanted = self.status.members.iter().find(|node| !all.contains(node));
        unwanted.map_or(Next::Done, |node| Next::Do(Step::Expel(*node)))
    }

    fn keep_vote(&self, next: Next) -> Next {
        let voters = &self.status.voters;
        match next {
            Next::Do(Step::GiveVotes(after)) if !after.contains(&self.node) => {
                let able = voters.iter().copied().filter(|node| after.contains(node));
                if let Some(heir) = self.fit_heir(able) {
                    return Next::HandOver(heir);
                }
                // None of the new ones can lead yet: let them vote, beside this one.
                let beside: BTreeSet<NodeId> = after.into_iter().chain([self.node]).collect();
                if beside.iter().all(|node| voters.contains(node)) {
                    return Next::Wait;
                }
                Next::Do(Step::GiveVotes(beside))
            }
            // It leads without a vote if it took over while another one's change was half done.
            Next::Do(Step::Expel(node)) if node == self.node => {
                self.fit_heir(voters.iter().copied()).map_or(Next::Wait, Next::HandOver)
            }
            next => next,
        }
    }

    /// What a partition's leader does next about its replicas.
    pub(crate) fn next_of_partition(&self, assignment: &PartitionAssignment) -> Next {
        self.decide(|| self.next_of_replicas(assignment))
    }

    fn next_of_replicas(&self, assignment: &PartitionAssignment) -> Next {
        let voters = assignment.members().map(|id| id.0).collect();
        let wanted = Wanted { voters, learners: BTreeSet::new() };
        let next = self.next_step(&wanted);
        if assignment.under_repair().is_some()
            && let Next::Do(Step::GiveVotes(voters)) = &next
            && !self.can_do_without_others(voters)
        {
            return Next::Wait;
        }
        // Votes may have gone to others before one of these was found to be damaged, too.
        let leaves = assignment.under_repair().is_some_and(|repair| repair.stage == RepairStage::Leaving);
        if leaves
            && matches!(next, Next::Do(Step::Expel(_)) | Next::Done)
            && self.status.voters.iter().all(|node| (self.damaged)(*node))
        {
            return Next::Wait;
        }
        match self.keep_vote(next) {
            Next::Done => match assignment.under_repair().map(|repair| repair.stage) {
                Some(RepairStage::Emptying) => Next::Wait,
                Some(stage) => Next::Advance(stage),
                None if assignment.is_moving() => Next::FinishMove,
                None => Next::Done,
            },
            next => next,
        }
    }

    /// Whether a damaged replica may lose its vote to `voters`: a majority of them has everything, and at least one of those
    /// has lost nothing. Only who has all records can give them to it when it comes back empty.
    fn can_do_without_others(&self, voters: &BTreeSet<NodeId>) -> bool {
        let fit: Vec<NodeId> = voters.iter().copied().filter(|node| self.is_fit(*node)).collect();
        fit.len() * 2 > voters.len() && fit.iter().any(|node| !(self.damaged)(*node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::BrokerId;
    use crate::raft::Role;

    /// A group that node 1 leads. Those who follow were heard just now.
    struct Group {
        status: Status,
        followers: Vec<Follower>,
        standing: fn(NodeId) -> Standing,
        damaged: fn(NodeId) -> bool,
    }

    fn group(voters: &[NodeId], learners: &[NodeId]) -> Group {
        let mut members = [voters, learners].concat();
        members.sort_unstable();
        let followers = members.iter().filter(|node| **node != 1).map(|node| follower(*node, Some(999)));
        let followers = followers.collect();
        let status = Status {
            role: Role::Leader,
            leader: Some(1),
            last_index: Some(999),
            applied: Some(999),
            voters: voters.into(),
            lasting_voters: voters.into(),
            members: members.into(),
            members_agreed: true,
            ..Status::default()
        };
        Group { status, followers, standing: |_| Standing::Ready, damaged: |_| false }
    }

    fn follower(node: NodeId, matched: Option<u64>) -> Follower {
        Follower { node, matched, heard: Some(Duration::from_millis(100)) }
    }

    impl Group {
        fn with(mut self, follower: Follower) -> Self {
            self.followers.retain(|known| known.node != follower.node);
            self.followers.push(follower);
            self
        }

        fn silent(self, node: NodeId) -> Self {
            let heard = Some(HEARD);
            self.with(Follower { heard, ..follower(node, Some(999)) })
        }

        fn leading(&self) -> Leading<'_> {
            let Group { status, followers, standing, damaged } = self;
            Leading { node: 1, status, followers, standing, damaged }
        }

        fn next(&self, wanted: &Wanted) -> Next {
            self.leading().next(wanted)
        }

        fn next_of_partition(&self, assignment: &PartitionAssignment) -> Next {
            self.leading().next_of_partition(assignment)
        }
    }

    fn wanted(voters: &[NodeId]) -> Wanted {
        Wanted { voters: voters.iter().copied().collect(), learners: BTreeSet::new() }
    }

    fn give(voters: &[NodeId]) -> Next {
        Next::Do(Step::GiveVotes(voters.iter().copied().collect()))
    }

    /// Replicas on brokers 1 to 3, of which some are damaged. The repair of the first of these has come so far.
    fn assignment(damaged: &[u64], stage: RepairStage) -> PartitionAssignment {
        let mut assignment = PartitionAssignment::new([1, 2, 3].map(BrokerId).to_vec());
        for broker in damaged {
            assignment.begin_repair(BrokerId(*broker), "row 7".to_owned());
        }
        for from in [RepairStage::Waiting, RepairStage::Leaving, RepairStage::Emptying] {
            if from < stage {
                assignment.advance_repair(from);
            }
        }
        assignment
    }

    #[test]
    fn a_group_grows_by_inviting_waiting_and_giving_votes() {
        let goal = wanted(&[1, 2, 3]);
        assert_eq!(group(&[1], &[]).next(&goal), Next::Do(Step::Invite(2)));
        assert_eq!(group(&[1], &[2]).with(follower(2, None)).next(&goal), Next::Do(Step::Invite(3)));
        let behind = group(&[1], &[2, 3]).with(follower(3, Some(10)));
        assert_eq!(behind.next(&goal), Next::Wait, "a member that lacks much gets no vote yet");
        assert_eq!(group(&[1], &[2, 3]).with(follower(3, None)).next(&goal), Next::Wait);
        assert_eq!(group(&[1], &[2, 3]).with(follower(3, Some(950))).next(&goal), give(&[1, 2, 3]));
        assert_eq!(group(&[1, 2, 3], &[]).next(&goal), Next::Done);
    }

    #[test]
    fn a_change_that_is_half_done_is_ended() {
        let goal = wanted(&[1, 2, 3]);
        let mut grows = group(&[1, 2, 3], &[]);
        grows.status.lasting_voters = [1, 2].into();
        assert_eq!(
            grows.next(&goal),
            give(&[1, 2, 3]),
            "all have votes, but 1 and 2 must agree on everything"
        );
        grows.status.members_agreed = false;
        assert_eq!(grows.next(&goal), Next::Wait);
    }

    #[test]
    fn what_follows_from_members_waits_until_they_are_agreed_on() {
        let leaving = assignment(&[3], RepairStage::Leaving);
        let mut without = group(&[1, 2], &[]);
        assert_eq!(without.next_of_partition(&leaving), Next::Advance(RepairStage::Leaving));
        without.status.members_agreed = false;
        assert_eq!(without.next_of_partition(&leaving), Next::Wait);
    }

    #[test]
    fn a_replica_moves_and_the_old_one_leaves_last() {
        let goal = wanted(&[1, 4]);
        assert_eq!(group(&[1, 2], &[]).next(&goal), Next::Do(Step::Invite(4)));
        assert_eq!(group(&[1, 2], &[4]).next(&goal), give(&[1, 4]));
        assert_eq!(group(&[1, 4], &[2]).next(&goal), Next::Do(Step::Expel(2)));
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_before_it_loses_its_vote() {
        let all = group(&[1, 2, 3], &[4]).with(follower(2, Some(990)));
        assert_eq!(
            all.next(&wanted(&[2, 3, 4])),
            Next::HandOver(3),
            "4 has no vote yet, and 3 has more than 2"
        );
        let none = group(&[1, 2, 3], &[4, 5]);
        assert_eq!(none.next(&wanted(&[4, 5])), give(&[1, 4, 5]), "nobody could take over");
        assert_eq!(group(&[1, 2, 3], &[4]).next(&wanted(&[1, 2, 4])), give(&[1, 2, 4]));
        assert_eq!(group(&[2, 3], &[1]).next(&wanted(&[2, 3])), Next::HandOver(3));
        assert_eq!(group(&[1, 2], &[4]).next(&wanted(&[1, 2])), Next::Do(Step::Expel(4)));
    }

    #[test]
    fn a_leader_that_is_to_go_leads_on_until_another_one_can() {
        let silent = group(&[1, 2], &[]).silent(2);
        assert_eq!(silent.next(&wanted(&[2])), Next::Wait);
        let away = Group { standing: |_| Standing::Away, ..group(&[1, 2], &[]) };
        assert_eq!(away.next(&wanted(&[2])), Next::Wait);
        let learner = group(&[2, 3], &[1]).silent(2).with(follower(3, Some(10)));
        assert_eq!(
            learner.next(&wanted(&[2, 3])),
            Next::Wait,
            "it took over with another one's change half done"
        );
        let unready = Group { standing: |_| Standing::NotReady, ..group(&[1, 2], &[]) };
        assert_eq!(unready.next(&wanted(&[2])), Next::HandOver(2), "it starts, and can lead");
    }

    #[test]
    fn leaderships_are_balanced_to_brokers_that_serve() {
        let may = |change: fn(&mut Group)| {
            let mut group = group(&[1, 2], &[3]);
            (group.status.applied_term, group.status.term) = (1, 1);
            change(&mut group);
            group.leading().may_be_handed_to(2)
        };
        assert!(may(|_| {}));
        assert!(!may(|group| group.standing = |_| Standing::NotReady), "it starts, or stops");
        assert!(!may(|group| group.standing = |_| Standing::Away));
        assert!(!may(|group| group.followers[0].heard = None));
        assert!(!may(|group| group.status.voters = [1].into()));
        assert!(!may(|group| group.status.term = 2), "this one does not know yet what was agreed on before");
    }

    #[test]
    fn the_best_heir_can_lead_at_once() {
        let heir = |group: &Group| group.leading().best_heir([1, 2, 3, 4]);
        let all = || group(&[1, 2, 3, 4], &[]);
        let only = |node: NodeId| {
            [2, 3, 4]
                .into_iter()
                .filter(|other| *other != node)
                .fold(all(), |group, other| group.silent(other))
        };
        for node in [2, 3, 4] {
            assert_eq!(heir(&only(node)), Some(node), "it alone was heard");
        }
        let down =
            Group { standing: |node| if node == 2 { Standing::NotReady } else { Standing::Away }, ..all() };
        assert_eq!(heir(&down), Some(2), "it alone is reached");
        let behind = all().with(follower(4, Some(100))).with(follower(3, Some(998)));
        assert_eq!(heir(&behind), Some(2));
        let mut late = only(2);
        late.followers.iter_mut().for_each(|one| one.matched = Some(if one.node == 2 { 950 } else { 999 }));
        assert_eq!(heir(&late), Some(2), "who is silent has more");
    }

    #[test]
    fn among_heirs_that_can_lead_the_intact_the_lasting_and_the_ready_come_first() {
        let heir = |group: &Group| group.leading().best_heir([2, 3, 4]);
        let with = |change: fn(&mut Group)| {
            let mut group =
                group(&[1, 2, 3, 4], &[]).with(follower(2, Some(990))).with(follower(3, Some(991)));
            change(&mut group);
            heir(&group)
        };
        assert_eq!(with(|_| {}), Some(4), "it has most");
        assert_eq!(
            with(|group| group.standing = |node| if node == 4 { Standing::NotReady } else { Standing::Ready }),
            Some(3)
        );
        assert_eq!(
            with(|group| group.status.lasting_voters = [1, 2].into()),
            Some(2),
            "4 votes only afterwards"
        );
        assert_eq!(
            with(|group| {
                group.status.lasting_voters = [1, 2].into();
                group.damaged = |node| node == 2;
            }),
            Some(4)
        );
    }

    #[test]
    fn a_damaged_replica_leaves_when_a_majority_of_the_others_has_everything() {
        let leaving = assignment(&[3], RepairStage::Leaving);
        let damaged = |node| node == 3;
        let all = || Group { damaged, ..group(&[1, 2, 3], &[]) };
        assert_eq!(
            all().next_of_partition(&assignment(&[3], RepairStage::Waiting)),
            Next::Done,
            "not its turn"
        );
        assert_eq!(all().next_of_partition(&leaving), give(&[1, 2]));
        assert_eq!(all().silent(2).next_of_partition(&leaving), Next::Wait);
        assert_eq!(all().with(follower(2, Some(10))).next_of_partition(&leaving), Next::Wait);
        let out = || Group { damaged, ..group(&[1, 2], &[3]) };
        assert_eq!(out().next_of_partition(&leaving), Next::Do(Step::Expel(3)));
        assert_eq!(group(&[1, 2], &[]).next_of_partition(&leaving), Next::Advance(RepairStage::Leaving));
        let emptying = assignment(&[3], RepairStage::Emptying);
        assert_eq!(group(&[1, 2], &[]).next_of_partition(&emptying), Next::Wait, "its broker does that");
        let joining = assignment(&[3], RepairStage::Joining);
        assert_eq!(group(&[1, 2], &[]).next_of_partition(&joining), Next::Do(Step::Invite(3)));
        assert_eq!(group(&[1, 2], &[3]).next_of_partition(&joining), give(&[1, 2, 3]));
        assert_eq!(group(&[1, 2, 3], &[]).next_of_partition(&joining), Next::Advance(RepairStage::Joining));
    }

    #[test]
    fn a_damaged_replica_stays_while_no_other_one_is_intact() {
        let two = Group { damaged: |node| node != 2, ..group(&[1, 2, 3], &[]) };
        assert_eq!(two.next_of_partition(&assignment(&[3, 1], RepairStage::Leaving)), give(&[1, 2]));
        let all = Group { damaged: |_| true, ..group(&[1, 2, 3], &[]) };
        assert_eq!(all.next_of_partition(&assignment(&[3, 1, 2], RepairStage::Leaving)), Next::Wait);
        // That the others are damaged, too, was found when it was empty already. What it has now is intact.
        let joining = Group { damaged: |node| node != 3, ..group(&[1, 2], &[3]) };
        assert_eq!(
            joining.next_of_partition(&assignment(&[3, 1, 2], RepairStage::Joining)),
            give(&[1, 2, 3])
        );
    }

    #[test]
    fn a_leader_that_cannot_read_lets_another_one_lead_best_an_intact_one() {
        let unreadable = |mut group: Group| {
            group.status.unreadable = Some(crate::raft::Error::Busy);
            group
        };
        let leaving = assignment(&[3, 1], RepairStage::Leaving);
        let damaged = |node| node != 2;
        let all = || unreadable(Group { damaged, ..group(&[1, 2, 3], &[]) });
        assert_eq!(all().next_of_partition(&leaving), Next::HandOver(2));
        // What 2 lacks may be intact where something else is damaged.
        let behind = all().with(follower(2, Some(10)));
        assert_eq!(behind.next_of_partition(&leaving), Next::HandOver(3));
        let alone = all().with(follower(2, Some(10))).silent(3);
        assert_eq!(alone.next_of_partition(&leaving), Next::Wait, "nobody can lead");
    }

    #[test]
    fn a_leader_that_cannot_find_out_what_others_have_lets_them_lead() {
        let mut new = group(&[1, 2, 3], &[]).with(follower(2, None)).with(follower(3, Some(7)));
        new.status.term = 1;
        assert_eq!(
            new.next(&wanted(&[1, 2, 3])),
            Next::Wait,
            "it does not know yet what was agreed on before"
        );
        new.status.unreadable = Some(crate::raft::Error::Busy);
        assert_eq!(new.next(&wanted(&[1, 2, 3])), Next::HandOver(3));
        new.standing = |_| Standing::Away;
        assert_eq!(new.next(&wanted(&[1, 2, 3])), Next::Wait);
    }
}
