//! Makes the members of each group those that the metadata wants. The leader of a group does it, wherever that is.
//!
//! One step at a time and group ([`super::steps`]): a missing member is invited, then, when it has caught up, votes are given
//! as wanted, then who is not wanted any more is expelled. Every step is decided from what is, so whoever leads next goes on
//! where the last one was interrupted. When the replicas of a partition have moved, its leader says so to the control group.
//!
//! A damaged replica leaves its group, is emptied by its broker, and joins again ([`crate::metadata::Repair`]). That its
//! group is without it is decided here, too: its broker only says that it is damaged, and that it is empty.
//!
//! The control leader also says when the repairs of damaged replicas begin ([`super::turns`]), gives the partitions of
//! draining brokers other replicas, a few at a time, and removes brokers that were replaced once they have nothing left.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{info, warn};

use super::control::Control;
use super::coordinator::Coordinators;
use super::peers::Hub;
use super::placement::{self, Candidate};
use super::routing::Routing;
use super::steps::{Leading, Next, Step, Wanted};
use super::turns::{self, Patience, Turns};
use super::{Config, group_of};
use crate::metadata::{BrokerId, Command, PartitionAssignment, RepairStage, State, Topic};
use crate::raft::{Members, NodeId, Role, Status};
use crate::storage::GroupId;
use crate::task::{Criticality, Tasks};
use crate::telemetry::Metrics;

/// How often the groups are looked at: those of partitions only while something changes.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often partitions are looked at although nothing seems to change.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_secs(1);
/// Groups whose members change at the same time.
const STEPS_AT_ONCE: usize = 16;
/// How long a change of members may take before it is looked at anew.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the other members have to confirm that a leader leads.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);
/// Leaderships of partitions that are handed over in one round.
const TRANSFERS_PER_ROUND: usize = 50;
/// A leader that cannot read something, has let others lead, and leads again, leads on for so long: it may be that nobody
/// has it.
const RESIGN_AGAIN: Duration = Duration::from_secs(60);
/// What is kept of what is wrong with a replica.
const REASON_CHARS_MAX: usize = 300;

/// Which brokers are in the groups that all brokers share: all of them, and as many as allowed with a vote.
fn wanted_in_system_groups(state: &State, status: &Status, config: &Config) -> Wanted {
    let lasting = |broker: &&crate::metadata::Broker| broker.replaced_by.is_none();
    let brokers: Vec<_> = state.brokers().filter(lasting).collect();
    let able = brokers.iter().filter(|broker| broker.takes_replicas()).count();
    let most = (config.voters as usize).min(able.max(1));
    let most = most - usize::from(most.is_multiple_of(2));
    // Who votes now goes on, and who has to leave comes last.
    let rank = |broker: &crate::metadata::Broker| {
        (broker.draining, !status.voters.contains(&broker.id.0), broker.id)
    };
    let mut ranked = brokers.clone();
    ranked.sort_by_key(|broker| rank(broker));
    let voters: BTreeSet<NodeId> = ranked.iter().take(most).map(|broker| broker.id.0).collect();
    let learners = brokers.iter().map(|broker| broker.id.0).filter(|node| !voters.contains(node)).collect();
    Wanted { voters, learners }
}

/// See the module.
pub(super) struct Membership {
    pub(super) node: BrokerId,
    pub(super) config: Config,
    pub(super) control: Control,
    pub(super) coordinators: Coordinators,
    pub(super) routing: Arc<Routing>,
    pub(super) hub: Hub,
    pub(super) metrics: Metrics,
    pub(super) tasks: Tasks,
    /// How long after it was acknowledged what is written is on the disks of the brokers.
    pub(super) settles_in: Duration,
}

/// A partition that is looked at.
struct Place<'a> {
    topic: &'a Arc<Topic>,
    number: u32,
    assignment: &'a PartitionAssignment,
    under_way: &'a Arc<UnderWay>,
    room: &'a Arc<Semaphore>,
}

impl Place<'_> {
    fn group(&self) -> GroupId {
        group_of(self.topic, self.number)
    }
}

/// This broker has let others lead a group because of something that it could not read.
struct Resigned {
    term: u64,
    at: Instant,
    unreadable: String,
}

impl Resigned {
    /// Whether it may do so again: another time in the same term, or for another reason, or after a while.
    fn allows(&self, again: &Resigned) -> bool {
        self.term == again.term || self.unreadable != again.unreadable || again.at - self.at >= RESIGN_AGAIN
    }
}

/// Whether there is something to decide: by a leader that knows what was agreed on, or by one that cannot read.
fn decides(status: &Status) -> bool {
    status.is_ready_leader() || status.role == Role::Leader && status.unreadable.is_some()
}

/// A leader that acts on what it knows of its group.
struct Knows {
    members: Members,
    term: u64,
    /// How long it waits before it acts.
    after: Duration,
}

impl Knows {
    /// Waits, and makes sure that it still led after that, in the same term: nobody else has changed the members meanwhile. One
    /// that was replaced does not notice that by itself.
    async fn is_so(&self) -> bool {
        tokio::time::sleep(self.after).await;
        let confirmed = self.members.confirm(CONFIRM_TIMEOUT).await;
        let status = self.members.status().now();
        confirmed.is_ok() && status.is_ready_leader() && status.term == self.term
    }
}

/// Takes from a status that something is unreadable, if others were let lead for that a short while ago.
fn limit_resigning(group: GroupId, status: &mut Status, resigned: &mut HashMap<GroupId, Resigned>) {
    let Some(unreadable) = status.unreadable.take() else { return };
    let resigns = Resigned { term: status.term, at: Instant::now(), unreadable: unreadable.to_string() };
    if resigned.get(&group).is_none_or(|before| before.allows(&resigns)) {
        status.unreadable = Some(unreadable);
        resigned.insert(group, resigns);
    }
}

/// What is under way.
#[derive(Default)]
struct UnderWay {
    groups: Mutex<HashSet<GroupId>>,
}

impl UnderWay {
    fn begin(&self, group: GroupId) -> bool {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).insert(group)
    }

    fn end(&self, group: GroupId) {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }
}

impl Membership {
    /// Runs until it is dropped.
    pub(super) async fn run(self) {
        let under_way = Arc::new(UnderWay::default());
        let room = Arc::new(Semaphore::new(STEPS_AT_ONCE));
        let mut seen: HashMap<GroupId, u64> = HashMap::new();
        let mut resigned: HashMap<GroupId, Resigned> = HashMap::new();
        let mut patience = Patience::default();
        let mut balanced = Instant::now();
        let mut settled: Option<(Arc<State>, Instant)> = None;
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let rests = settled.as_ref().is_some_and(|(state, at)| {
                Arc::ptr_eq(state, &self.control.state()) && at.elapsed() < LOOK_AT_ALL_EVERY
            });
            if !rests {
                let partitions = self.routing.partitions();
                seen.retain(|group, _| partitions.contains_key(group));
                resigned.retain(|group, _| !group.is_partition() || partitions.contains_key(group));
                self.see_terms(&mut seen).await;
            }
            let state = self.control.state();
            self.look_at_system_groups(&state, &under_way, &room, &mut resigned);
            if !rests {
                let all_done = self.look_at_partitions(&state, &under_way, &room, &seen, &mut resigned);
                settled = all_done.then(|| (Arc::clone(&state), Instant::now()));
                if self.control.status().now().is_ready_leader() {
                    self.give_turns(&state, &mut patience).await;
                }
            }
            if balanced.elapsed() >= self.config.balance_interval {
                balanced = Instant::now();
                balance(self.node, &state, &self.routing, &self.coordinators, &self.hub).await;
            }
        }
    }

    fn look_at_system_groups(
        &self,
        state: &State,
        under_way: &Arc<UnderWay>,
        room: &Arc<Semaphore>,
        resigned: &mut HashMap<GroupId, Resigned>,
    ) {
        let coordinators = self.coordinators.all().iter().map(super::coordinator::Coordinator::members);
        for members in std::iter::once(self.control.members()).chain(coordinators) {
            let mut status = members.status().now();
            if !decides(&status) {
                continue;
            }
            limit_resigning(members.group(), &mut status, resigned);
            let wanted = wanted_in_system_groups(state, &status, &self.config);
            match decide(self.node, &self.hub, &members, &status, &|_| false, |it| it.next(&wanted)) {
                Next::Do(step) => self.spawn_step(members, step, under_way, room),
                Next::HandOver(heir) => self.spawn_transfer(members, heir),
                _ => {}
            }
        }
    }

    /// Takes the next step for each partition that this broker leads, and reports damage of the replicas here. Whether no
    /// step is left to take.
    fn look_at_partitions(
        &self,
        state: &State,
        under_way: &Arc<UnderWay>,
        room: &Arc<Semaphore>,
        seen: &HashMap<GroupId, u64>,
        resigned: &mut HashMap<GroupId, Resigned>,
    ) -> bool {
        let mut all_done = true;
        for topic in state.topics() {
            for (number, assignment) in topic.partitions.iter().enumerate() {
                let place = Place { topic, number: number as u32, assignment, under_way, room };
                let Some(known) = self.routing.partition(place.group()) else { continue };
                if let Some(damage) = known.damage() {
                    self.report_damage(&place, damage);
                }
                let Some(replica) = known.replica() else { continue };
                let mut status = replica.status().now();
                if !decides(&status) {
                    continue;
                }
                limit_resigning(place.group(), &mut status, resigned);
                // In a new term the metadata must first be as new as the members that the last leader has left.
                let knows = !status.is_ready_leader() || seen.get(&place.group()) == Some(&status.term);
                all_done &= knows && self.look_at_partition(&place, &replica.members(), &status);
            }
        }
        all_done
    }

    /// Asks for the repair of the replica here, if others could help.
    fn report_damage(&self, place: &Place<'_>, damage: String) {
        let Place { topic, number: partition, assignment, .. } = *place;
        // What is reported already waits for its turn, or is on its way.
        if !assignment.can_repair(self.node) || assignment.is_damaged(self.node) {
            return;
        }
        let reason = damage.chars().take(REASON_CHARS_MAX).collect();
        let begin = Command::BeginRepair {
            topic: topic.id,
            partition,
            revision: assignment.revision,
            broker: self.node,
            reason,
        };
        self.spawn_change(place, None, begin, move |_, topic| {
            warn!(name: "replica.damaged", topic, partition, damage, "a damaged replica is to get its records anew from the others");
        });
    }

    /// Takes the next step for a partition that this broker leads. Whether none is left to take.
    fn look_at_partition(&self, place: &Place<'_>, members: &Members, status: &Status) -> bool {
        let Place { topic, number: partition, assignment, .. } = *place;
        let damaged = |node| assignment.is_damaged(BrokerId(node));
        let revision = assignment.revision;
        let knows = |after| Some(Knows { members: members.clone(), term: status.term, after });
        match decide(self.node, &self.hub, members, status, &damaged, |it| it.next_of_partition(assignment)) {
            Next::HandOver(heir) => self.spawn_transfer(members.clone(), heir),
            Next::Do(step) => self.spawn_step(members.clone(), step, place.under_way, place.room),
            Next::Wait => {}
            Next::Advance(from) => {
                let over = Command::AdvanceRepair { topic: topic.id, partition, revision, from };
                // Then another one is emptied, or this one, that may be the last to have a record on its disk.
                self.spawn_change(place, knows(self.settles_in), over, move |metrics, topic| {
                    if from == RepairStage::Joining {
                        metrics.cluster.repaired();
                        info!(name: "replica.repaired", topic, partition, "a replica that was damaged has everything again");
                    }
                });
            }
            Next::FinishMove => {
                let finish = Command::FinishMove { topic: topic.id, partition, revision };
                // Then the old replicas are deleted, whose records may have been on the disk for long.
                let knows = knows(self.settles_in);
                self.spawn_change(place, knows, finish, |metrics, _| metrics.cluster.moved());
            }
            Next::Done => return true,
        }
        false
    }

    /// Learns what is agreed on now, and takes note of the terms that began before. What a replica that leads anew
    /// takes must be measured, too.
    async fn see_terms(&self, seen: &mut HashMap<GroupId, u64>) {
        let mut fresh = Vec::new();
        for (group, known) in self.routing.partitions().iter() {
            let Some(replica) = known.replica() else { continue };
            let status = replica.status().now();
            if status.is_ready_leader() && seen.get(group) != Some(&status.term) {
                fresh.push((*group, status.term, replica));
            }
        }
        if fresh.is_empty() || !self.control.catch_up().await {
            return;
        }
        for (group, term, replica) in fresh {
            seen.insert(group, term);
            self.tasks.spawn_until_stopped("measure", Criticality::BestEffort, async move {
                // Its size is shown too large until the next trim.
                let _ = replica.measure().await;
            });
        }
    }

    fn spawn_step(&self, members: Members, step: Step, under_way: &Arc<UnderWay>, room: &Arc<Semaphore>) {
        let group = members.group();
        if !under_way.begin(group) {
            return;
        }
        let (under_way, room) = (Arc::clone(under_way), Arc::clone(room));
        self.tasks.spawn_until_stopped("change members", Criticality::BestEffort, async move {
            let _permit = room.acquire_owned().await;
            info!(name: "members.changing", %group, step = ?step, "changing the members of a group");
            let change = async {
                match &step {
                    Step::Invite(node) => members.invite(*node).await,
                    Step::GiveVotes(voters) => members.give_votes(voters.clone()).await,
                    Step::Expel(node) => members.expel(*node).await,
                }
            };
            // A leader that lost its majority waits for ever; what is then is looked at anew.
            let failure = match tokio::time::timeout(STEP_TIMEOUT, change).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no majority agreed within {STEP_TIMEOUT:?}")),
            };
            if let Some(failure) = failure {
                warn!(%group, step = ?step, failure, "the members of a group did not change; trying again");
            }
            under_way.end(group);
        });
    }

    fn spawn_transfer(&self, members: Members, to: NodeId) {
        self.tasks.spawn_until_stopped("transfer", Criticality::BestEffort, async move {
            // Tried again at the next look.
            let _ = members.transfer_leadership(to).await;
        });
    }

    /// Changes the metadata of a partition, and does `then` if that succeeds. If it follows from what the leader `knows`, that
    /// must be so.
    fn spawn_change(
        &self,
        place: &Place<'_>,
        knows: Option<Knows>,
        command: Command,
        then: impl FnOnce(&Metrics, &str) + Send + 'static,
    ) {
        let group = place.group();
        if !place.under_way.begin(group) {
            return;
        }
        let (control, metrics, topic) =
            (self.control.clone(), self.metrics.clone(), place.topic.name.clone());
        let (under_way, room) = (Arc::clone(place.under_way), Arc::clone(place.room));
        self.tasks.spawn_until_stopped("change replicas", Criticality::BestEffort, async move {
            let _permit = room.acquire_owned().await;
            let is_so = match &knows {
                Some(knows) => knows.is_so().await,
                None => true,
            };
            if is_so {
                match control.change(&command).await {
                    Ok(_) => then(&metrics, &topic),
                    Err(error) => {
                        warn!(%group, error = %error, "what became of replicas was not noted; trying again")
                    }
                }
            }
            under_way.end(group);
        });
    }

    /// Lets those begin whose turn it is: repairs first, then moves away from brokers that are to go.
    async fn give_turns(&self, state: &State, patience: &mut Patience) {
        let reached = |id: BrokerId| self.hub.is_up(id.0);
        let leads = |group| match self.routing.partition(group) {
            Some(known) => (known.leader().is_some(), known.leader_damage().is_none()),
            None => (false, true),
        };
        let stuck = patience.stuck(state, leads, reached);
        let places = self.config.moves_at_once as usize;
        let Turns { commands, free } = turns::turns(state, places, &stuck, |group| leads(group).0, reached);
        for command in commands {
            if let Err(error) = self.control.change(&command).await {
                warn!(error = %error, "a repair was not given its turn; trying again");
                return;
            }
        }
        self.relieve(state, free).await;
    }

    /// Gives at most `free` partitions of brokers that are to lose their replicas other ones.
    async fn relieve(&self, state: &State, mut free: usize) {
        let leaving: BTreeSet<BrokerId> =
            state.brokers().filter(|broker| !broker.takes_replicas()).map(|broker| broker.id).collect();
        if leaving.is_empty() {
            return;
        }
        let mut assignments = Vec::new();
        for topic in state.topics() {
            for (number, assignment) in topic.partitions.iter().enumerate() {
                assignments.push((topic.clone(), number as u32, assignment.clone()));
            }
        }
        let mut candidates: Vec<Candidate> = placement::candidates(state, |id| self.hub.is_up(id.0));
        for (topic, partition, assignment) in assignments {
            if free == 0 {
                return;
            }
            if assignment.is_moving() || !assignment.replicas.iter().any(|id| leaving.contains(id)) {
                continue;
            }
            let Ok(replicas) = placement::replace(&candidates, &assignment) else { continue };
            for candidate in candidates.iter_mut().filter(|one| replicas.contains(&one.id)) {
                candidate.replicas += usize::from(!assignment.replicas.contains(&candidate.id));
            }
            info!(name: "partition.moving", topic = &*topic.name, partition, to = ?replicas, "a partition moves away from a broker that is to go");
            let name = topic.name.clone();
            if let Err(error) =
                self.control.change(&Command::ReassignPartition { name, partition, replicas }).await
            {
                warn!(topic = &*topic.name, partition, error = %error, "a partition was not given other replicas; trying again");
                return;
            }
            free -= 1;
        }
        let replaced: Vec<BrokerId> =
            state.brokers().filter(|broker| broker.replaced_by.is_some()).map(|broker| broker.id).collect();
        for id in replaced {
            if state.replicas_of(id) == 0 && self.control.change(&Command::RemoveBroker { id }).await.is_ok()
            {
                info!(name: "broker.removed", broker_id = id.0, "a broker that was replaced is removed");
            }
        }
    }

    /// Hands leaderships to other brokers, as far as they can take them, until `over`. Returns whether all are gone.
    pub(super) async fn hand_over(node: BrokerId, groups: Vec<Members>, hub: &Hub, over: Instant) -> bool {
        let work = groups.into_iter().map(|members| async move {
            let mut status = members.status();
            let now = status.now();
            if now.leader != Some(node.0) {
                return true;
            }
            let reached = now.voters.iter().copied().filter(|node| hub.is_up(*node));
            let heir = decide(node, hub, &members, &now, &|_| false, |it| it.best_heir(reached));
            let Some(heir) = heir else { return false };
            if members.transfer_leadership(heir).await.is_err() {
                return false;
            }
            let gone = status.wait_for(|status| status.leader != Some(node.0));
            tokio::time::timeout_at(over, gone).await.is_ok_and(|gone| gone.is_ok())
        });
        let handed = futures_util::future::join_all(work).await;
        let count = handed.iter().filter(|handed| **handed).count();
        if count > 0 {
            info!(name: "broker.handed_over", groups = handed.len(), handed = count, "leaderships are handed over");
        }
        count == handed.len()
    }
}

/// Hands leaderships that `node` has to those who should have them, and gives how many.
pub(super) async fn balance(
    node: BrokerId,
    state: &State,
    routing: &Routing,
    coordinators: &Coordinators,
    hub: &Hub,
) -> usize {
    let able = |id: BrokerId| state.broker(id).is_some_and(|broker| broker.takes_replicas());
    let mut transferred = 0;
    for topic in state.topics() {
        for (number, assignment) in topic.partitions.iter().enumerate() {
            let preferred = assignment.replicas.first().copied();
            let damaged = |id| assignment.repair_of(id).is_some();
            let preferred =
                preferred.filter(|id| *id != node && able(*id) && !assignment.is_moving() && !damaged(*id));
            let partition = routing.partition(group_of(topic, number as u32));
            let replica = partition.and_then(|known| known.replica());
            let (Some(preferred), Some(replica)) = (preferred, replica) else { continue };
            if transferred < TRANSFERS_PER_ROUND
                && transfer_if_able(node, &replica.members(), preferred.0, hub).await
            {
                transferred += 1;
            }
        }
    }
    for (shard, coordinator) in coordinators.all().iter().enumerate() {
        let members = coordinator.members();
        let voters = Arc::clone(&members.status().now().voters);
        let Some(preferred) = voters.get(shard % voters.len().max(1)).copied() else { continue };
        if preferred != node.0
            && able(BrokerId(preferred))
            && transfer_if_able(node, &members, preferred, hub).await
        {
            transferred += 1;
        }
    }
    transferred
}

/// Hands a leadership that this broker has to `to`, if that can take it at once, and serve.
async fn transfer_if_able(node: BrokerId, members: &Members, to: NodeId, hub: &Hub) -> bool {
    let status = members.status().now();
    let able = decide(node, hub, members, &status, &|_| false, |it| it.may_be_handed_to(to));
    able && members.transfer_leadership(to).await.is_ok()
}

/// What is decided about a group that this broker leads.
fn decide<T>(
    node: BrokerId,
    hub: &Hub,
    members: &Members,
    status: &Status,
    damaged: &dyn Fn(NodeId) -> bool,
    decide: impl FnOnce(&Leading<'_>) -> T,
) -> T {
    let (followers, standing) = (members.followers(), |node| hub.standing(node));
    decide(&Leading { node: node.0, status, followers: &followers, standing: &standing, damaged })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(voters: &[NodeId], members: &[NodeId]) -> Status {
        Status {
            role: Role::Leader,
            leader: Some(1),
            last_index: Some(999),
            voters: voters.into(),
            members: members.into(),
            ..Status::default()
        }
    }

    fn wanted(voters: &[NodeId], learners: &[NodeId]) -> Wanted {
        Wanted { voters: voters.iter().copied().collect(), learners: learners.iter().copied().collect() }
    }

    #[tokio::test(start_paused = true)]
    async fn for_the_same_reason_others_are_let_lead_once_a_minute() {
        let mut resigned = HashMap::new();
        let mut may = |term: u64, what: &'static str| {
            let group = GroupId(7);
            let unreadable = Some(crate::raft::Error::Corrupt { group, what });
            let mut status = Status { term, unreadable, ..Status::default() };
            limit_resigning(group, &mut status, &mut resigned);
            status.unreadable.is_some()
        };
        assert!(may(1, "row 7"));
        assert!(may(1, "row 7"), "it leads still");
        assert!(!may(3, "row 7"), "nobody else could read it either");
        assert!(may(3, "row 8"));
        assert!(!may(5, "row 8"));
        tokio::time::advance(RESIGN_AGAIN).await;
        assert!(may(5, "row 8"));
    }

    #[test]
    fn an_odd_number_of_brokers_votes_in_the_groups_that_all_share() {
        let mut state = State::default();
        let broker = crate::metadata::Broker::fake::<&str>;
        state.apply(Command::RegisterBroker(broker("1"))).expect("the first");
        let of = |state: &State, voters: &[NodeId]| {
            wanted_in_system_groups(state, &status(voters, voters), &Config::default())
        };
        assert_eq!(of(&state, &[1]), wanted(&[1], &[]));
        state.apply(Command::AdmitBroker(broker("2"))).expect("admitted");
        assert_eq!(of(&state, &[1]), wanted(&[1], &[2]), "two votes would stop with either of two");
        state.apply(Command::AdmitBroker(broker("3"))).expect("admitted");
        assert_eq!(of(&state, &[1]), wanted(&[1, 2, 3], &[]));
        state.apply(Command::AdmitBroker(broker("4"))).expect("admitted");
        assert_eq!(of(&state, &[2, 3, 4]), wanted(&[2, 3, 4], &[1]), "who votes goes on");
        state.apply(Command::DrainBroker { id: BrokerId(3), draining: true }).expect("known");
        assert_eq!(of(&state, &[2, 3, 4]), wanted(&[1, 2, 4], &[3]));
        state.apply(Command::AdmitBroker(broker("2"))).expect("admitted");
        assert_eq!(of(&state, &[1, 2, 4]), wanted(&[1, 4, 5], &[3]), "2 was replaced by 5");
    }
}
