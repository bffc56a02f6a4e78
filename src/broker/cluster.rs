//! Looking at the cluster, and changing who is in it and who has which replicas.

use std::time::Duration;

use super::produce::in_partition;
use super::{Broker, Error};
use crate::cluster::partition_ref::PartitionRef;
use crate::cluster::placement::{self, Candidate};
use crate::cluster::turns::can_leave;
use crate::cluster::words::Words;
use crate::metadata::{self, BrokerId, Command, PartitionAssignment, Repair, RepairStage};
use crate::{partition, raft};

/// How long a hand-over may take before it counts as failed.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Why what could begin waits.
const TURNS: &str = "since no more than cluster.moves_at_once partitions are repaired or move";

/// The cluster as this broker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Every broker, by id.
    pub brokers: Vec<BrokerStatus>,
    /// Who leads the control group.
    pub controller: Option<u64>,
    /// Who votes in it.
    pub controller_voters: Vec<u64>,
    /// Who coordinates the groups of each shard.
    pub coordinators: Vec<Option<u64>>,
    /// Partitions of the cluster.
    pub partitions: usize,
    /// Those that are not as they should be.
    pub problems: Vec<PartitionProblem>,
}

/// How a broker does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerStatus {
    /// Its number.
    pub id: u64,
    /// Where clients reach it.
    pub grpc_address: String,
    /// Its version.
    pub version: String,
    /// Where it stands.
    pub rack: String,
    /// Whether this broker reaches it.
    pub reached: bool,
    /// It is to lose all its replicas.
    pub draining: bool,
    /// Who took over its address.
    pub replaced_by: Option<u64>,
    /// Replicas that it has, or is to have.
    pub replicas: usize,
    /// Partitions that it leads.
    pub leaders: usize,
    /// Votes that it has on the metadata and on the offsets of each shard of consumer groups.
    pub votes: usize,
}

/// What is wrong with a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It has no leader, and none can be elected: a majority of its replicas is on brokers that are not reached.
    Offline,
    /// It has no leader, and one may be elected.
    Leaderless,
    /// Replicas lag behind or are not reached.
    UnderReplicated,
    /// Replicas are on their way to other brokers, or wait until they can leave one that is drained or was replaced.
    Moving,
    /// A replica has lost what it wrote. If there are others, it gets everything from them.
    Damaged,
}

/// A partition that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionProblem {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: u32,
    /// What is wrong.
    pub problem: Problem,
    /// Its leader.
    pub leader: Option<u64>,
    /// Brokers that have its replicas, or are to have them.
    pub replicas: Vec<u64>,
    /// While they move: brokers that had its replicas before.
    pub moving_from: Vec<u64>,
    /// Those that lag behind or are not reached.
    pub lagging: Vec<u64>,
    /// Why, and what to do.
    pub reason: String,
}

impl Broker {
    /// What is not as it should be, and how brokers share the work.
    ///
    /// # Errors
    /// The broker is not ready.
    pub fn cluster_status(&self) -> Result<ClusterStatus, Error> {
        let cluster = &self.running()?.cluster;
        let state = cluster.state();
        let hub = cluster.hub();
        let routes = cluster.routing().all();
        let candidates = placement::candidates(&state, |id| hub.is_up(id.0));
        let mut problems = Vec::new();
        let mut leaders = std::collections::BTreeMap::<BrokerId, usize>::new();
        let mut names: Vec<_> = routes.keys().collect();
        names.sort();
        for route in names.into_iter().filter_map(|name| routes.get(name)) {
            for (number, (assignment, partition)) in
                route.topic.partitions.iter().zip(&route.partitions).enumerate()
            {
                let leader = partition.leader();
                if let Some(leader) = leader {
                    *leaders.entry(leader).or_default() += 1;
                }
                if let Some((problem, lagging, reason)) = problem_of(
                    assignment,
                    partition,
                    &candidates,
                    |id| hub.is_up(id.0),
                    |id| state.broker(id).is_some_and(|broker| broker.replaced_by.is_some()),
                ) {
                    problems.push(PartitionProblem {
                        topic: route.topic.name.to_string(),
                        partition: number as u32,
                        problem,
                        leader: leader.map(|id| id.0),
                        replicas: assignment.replicas.iter().map(|id| id.0).collect(),
                        moving_from: assignment.moving_from.iter().map(|id| id.0).collect(),
                        lagging: lagging.iter().map(|id| id.0).collect(),
                        reason,
                    });
                }
            }
        }
        let brokers = state.brokers().map(|broker| BrokerStatus {
            id: broker.id.0,
            grpc_address: broker.grpc_address.clone(),
            version: broker.version.clone(),
            rack: broker.rack.clone(),
            reached: hub.is_up(broker.id.0),
            draining: broker.draining,
            replaced_by: broker.replaced_by.map(|id| id.0),
            replicas: state.replicas_of(broker.id),
            leaders: leaders.get(&broker.id).copied().unwrap_or(0),
            votes: cluster.votes_of(broker.id),
        });
        let coordinators = cluster.coordinators().all().iter().map(|shard| hub.leader_of(&shard.members()));
        Ok(ClusterStatus {
            brokers: brokers.collect(),
            controller: cluster.controller().map(|id| id.0),
            controller_voters: cluster.control_status().now().voters.to_vec(),
            coordinators: coordinators.collect(),
            partitions: state.partition_count(),
            problems,
        })
    }

    /// Makes a broker lose all its replicas, or lets it have some again. Gives how many it has now.
    ///
    /// # Errors
    /// There is no such broker, the others are too few for what topics want, or agreement failed.
    pub async fn drain_broker(&self, id: u64, draining: bool) -> Result<usize, Error> {
        let cluster = &self.running()?.cluster;
        let _alone = self.0.changing.lock().await;
        let (id, state) = (BrokerId(id), cluster.state());
        let others = state.brokers().filter(|broker| broker.takes_replicas() && broker.id != id).count();
        let most = state.topics().filter(|topic| topic.partitions.iter().any(|one| one.involves(id)));
        if let Some(topic) = most.max_by_key(|topic| topic.replication_factor)
            && draining
            && topic.replication_factor as usize > others
        {
            return Err(Error::InvalidArgument {
                field: "broker_id",
                problem: format!(
                    "topic {:?} needs {} replicas and only {others} other brokers can have one: add a broker first",
                    topic.name, topic.replication_factor
                ),
            });
        }
        cluster.change(&Command::DrainBroker { id, draining }).await?;
        Ok(cluster.state().replicas_of(id))
    }

    /// Removes a broker that has neither replicas nor votes.
    ///
    /// # Errors
    /// There is no such broker, it has replicas or votes, or agreement failed.
    pub async fn remove_broker(&self, id: u64) -> Result<(), Error> {
        let cluster = &self.running()?.cluster;
        let (id, state) = (BrokerId(id), cluster.state());
        // The others connect no more to a broker that is removed. One whose vote they still need would take their majority
        // with it. Replicas are looked at when it is removed.
        if let Some(broker) = state.broker(id)
            && state.replicas_of(id) == 0
            && cluster.votes_of(id) > 0
        {
            let text = match broker.draining {
                true => format!(
                    "broker {id} still has votes, which others are about to get: try again in a moment"
                ),
                false => {
                    format!("broker {id} still has votes; drain it first: `streambus cluster drain {id}`")
                }
            };
            return Err(Error::Metadata(metadata::Error::Refused(text)));
        }
        cluster.change(&Command::RemoveBroker { id }).await?;
        Ok(())
    }

    /// Gives a partition other replicas, which move from now on.
    ///
    /// # Errors
    /// There is no such partition or broker, or agreement failed.
    pub async fn reassign(&self, topic: &str, partition: u32, replicas: Vec<u64>) -> Result<(), Error> {
        let route = self.route(topic)?;
        self.partition(&route, partition)?;
        let replicas = replicas.into_iter().map(BrokerId).collect();
        let command = Command::ReassignPartition { name: topic.into(), partition, replicas };
        self.running()?.cluster.change(&command).await?;
        Ok(())
    }

    /// The broker that leads a partition, if it is another one.
    ///
    /// # Errors
    /// There is no such partition.
    pub fn leader_elsewhere(&self, topic: &str, partition: u32) -> Result<Option<u64>, Error> {
        let route = self.route(topic)?;
        let leader = self.partition(&route, partition)?.leader().map(|id| id.0);
        Ok(leader.filter(|leader| Some(*leader) != self.id()))
    }

    /// Hands the leadership of a partition that this broker leads to `to`, and waits until that leads.
    ///
    /// # Errors
    /// There is no such partition, this broker does not lead it, `to` has no replica, or it cannot lead now.
    pub async fn transfer_leader(&self, topic: &str, partition: u32, to: u64) -> Result<(), Error> {
        let cluster = &self.running()?.cluster;
        let route = self.route(topic)?;
        let known = self.partition(&route, partition)?;
        let fail = |source| in_partition(topic, partition, source);
        let assignment = &route.topic.partitions[partition as usize];
        if !assignment.replicas.contains(&BrokerId(to)) {
            let replicas: Vec<_> = assignment.replicas.iter().map(ToString::to_string).collect();
            let problem = format!("broker {to} has no replica; those that have one: {}", replicas.join(", "));
            return Err(Error::InvalidArgument { field: "broker_id", problem });
        }
        if known.leader() == Some(BrokerId(to)) {
            return Ok(());
        }
        if !known.leads_here() {
            let leader = known.leader().map(|id| id.0);
            return Err(fail(partition::Error::Raft(raft::Error::NotLeader { leader })));
        }
        cluster.transfer(known, BrokerId(to)).await.map_err(|error| match error {
            raft::Error::Membership { .. } => Error::InvalidArgument {
                field: "broker_id",
                problem: format!("broker {to} cannot lead: its replica has no vote, or not yet"),
            },
            error => fail(error.into()),
        })?;
        let led = async {
            while known.leader() != Some(BrokerId(to)) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        match tokio::time::timeout(TRANSFER_TIMEOUT, led).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::NotReady("waiting for a replica that does not keep up to lead")),
        }
    }

    /// Hands leaderships that this broker has to those who should have them. Gives how many.
    ///
    /// # Errors
    /// The broker is not ready.
    pub async fn balance_leaders(&self) -> Result<usize, Error> {
        Ok(self.running()?.cluster.balance().await)
    }
}

/// What is wrong with a partition, which replicas it concerns, and why.
fn problem_of(
    assignment: &PartitionAssignment,
    partition: &PartitionRef,
    candidates: &[Candidate],
    reached: impl Fn(BrokerId) -> bool,
    replaced: impl Fn(BrokerId) -> bool,
) -> Option<(Problem, Vec<BrokerId>, String)> {
    let away: Vec<BrokerId> = assignment.replicas.iter().copied().filter(|id| !reached(*id)).collect();
    let damage = damage_of(assignment, partition, &reached);
    if partition.leader().is_none() {
        let mut reason = why_leaderless(assignment, &reached, replaced);
        if let Some(damage) = damage {
            reason = format!("{reason}; {damage}");
        }
        let problem = match assignment.lacks_majority(&reached) {
            true => Problem::Offline,
            false => Problem::Leaderless,
        };
        return Some((problem, away, reason));
    }
    let mut lagging = partition.lagging();
    lagging.retain(|id| assignment.replicas.contains(id));
    for id in away {
        if !lagging.contains(&id) {
            lagging.push(id);
        }
    }
    lagging.sort();
    if let Some(reason) = damage {
        return Some((Problem::Damaged, lagging, reason));
    }
    if let Some(reason) = move_in_words(assignment, candidates, &reached) {
        return Some((Problem::Moving, lagging, reason));
    }
    if lagging.is_empty() {
        return None;
    }
    let reason = why_under_replicated(&lagging, &reached);
    Some((Problem::UnderReplicated, lagging, reason))
}

/// Whether replicas of a partition move, or are to leave a broker that `stays` says loses its replicas, and wait.
pub(super) fn is_to_move(assignment: &PartitionAssignment, stays: impl Fn(BrokerId) -> bool) -> bool {
    assignment.is_moving() || assignment.replicas.iter().any(|id| !stays(*id))
}

/// How far a move is, and what it waits for; also of one that has still to begin, because a broker is to lose its replicas.
fn move_in_words(
    assignment: &PartitionAssignment,
    candidates: &[Candidate],
    reached: impl Fn(BrokerId) -> bool,
) -> Option<String> {
    let PartitionAssignment { replicas, moving_from, .. } = assignment;
    let stays = |id: BrokerId| candidates.iter().any(|candidate| candidate.id == id);
    if !is_to_move(assignment, stays) {
        return None;
    }
    if assignment.is_moving() {
        let away: Vec<BrokerId> = replicas.iter().copied().filter(|id| !reached(*id)).collect();
        let missing = match away.is_empty() {
            true => String::new(),
            false => {
                let Words { brokers, are, them } = Words::of(&away);
                format!(
                    "; it waits for {brokers}, which {are} not reached: start {them}, or reassign the partition"
                )
            }
        };
        return Some(format!("replicas move from {} to {}{missing}", list(moving_from), list(replicas)));
    }
    let leaving: Vec<BrokerId> = replicas.iter().copied().filter(|id| !stays(*id)).collect();
    let waits = match placement::replace(candidates, assignment) {
        Err(too_few) => {
            format!("have nowhere to go: {too_few}; add a broker, or reassign the partition to fewer")
        }
        Ok(_) => format!("wait for their turn, {TURNS}"),
    };
    Some(format!("replicas are to leave {} and {waits}", Words::of(&leaving).brokers))
}

fn list(ids: &[BrokerId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Why a partition has no leader, and what to do. While replicas move, those who had them before may still vote, and
/// which ones do is known to the leader only.
fn why_leaderless(
    assignment: &PartitionAssignment,
    reached: impl Fn(BrokerId) -> bool,
    replaced: impl Fn(BrokerId) -> bool,
) -> String {
    let PartitionAssignment { replicas, moving_from, .. } = assignment;
    let had = if assignment.is_moving() { moving_from } else { replicas };
    let lost: Vec<_> = had.iter().copied().filter(|id| replaced(*id)).collect();
    if lost.len() * 2 >= had.len() && !lost.is_empty() {
        let Words { brokers, .. } = Words::of(&lost);
        return format!(
            "{brokers} lost the disk with too many of its {} replicas, and was replaced: there is no majority any more, \
             and nothing will bring it back; delete the topic",
            had.len()
        );
    }
    let mut away: Vec<_> = replicas.iter().chain(moving_from).copied().filter(|id| !reached(*id)).collect();
    away.sort();
    away.dedup();
    let damaged = replicas.iter().filter(|id| assignment.is_damaged(**id)).count();
    if away.is_empty() {
        return match damaged * 2 >= replicas.len() {
            true => {
                "the replicas that are not damaged are no majority; those that cannot be opened must be restored"
            }
            false => "an election is under way",
        }
        .to_owned();
    }
    let Words { brokers, are, them } = Words::of(&away);
    let consequence = match assignment.lacks_majority(&reached) {
        true if assignment.is_moving() => format!(", so there may be no majority: start {them}"),
        true => format!(", so there is no majority: start {them}"),
        false => "; an election is under way".to_owned(),
    };
    format!("{brokers} {are} not reached{consequence}")
}

/// Which of the `lagging` brokers are not reached, and which are and lag all the same.
fn why_under_replicated(lagging: &[BrokerId], reached: impl Fn(BrokerId) -> bool) -> String {
    let (behind, away): (Vec<_>, Vec<_>) = lagging.iter().copied().partition(|id| reached(*id));
    let mut parts = Vec::new();
    if !away.is_empty() {
        let Words { brokers, are, .. } = Words::of(&away);
        parts.push(format!("{brokers} {are} not reached"));
    }
    if !behind.is_empty() {
        let lag = if behind.len() == 1 { "lags" } else { "lag" };
        parts.push(format!("{} {lag} behind", Words::of(&behind).brokers));
    }
    parts.join("; ")
}

/// Which replicas of a partition are damaged, and what becomes of them.
fn damage_of(
    assignment: &PartitionAssignment,
    partition: &PartitionRef,
    reached: impl Fn(BrokerId) -> bool,
) -> Option<String> {
    if !assignment.repairs.is_empty() {
        let repairs = assignment.repairs.iter().map(|repair| repair_in_words(assignment, repair, &reached));
        return Some(repairs.collect::<Vec<_>>().join("; "));
    }
    let alone = if assignment.replicas.len() > 1 { "" } else { ", and there is no other" };
    match partition.leader() {
        Some(leader) => {
            let damage = partition.leader_damage()?;
            Some(format!("the replica of broker {leader}, which leads, is damaged{alone}: {damage}"))
        }
        None => Some(format!("the replica of this broker is damaged{alone}: {}", partition.damage()?)),
    }
}

/// How far a repair is, and what it waits for.
fn repair_in_words(
    assignment: &PartitionAssignment,
    repair: &Repair,
    reached: impl Fn(BrokerId) -> bool,
) -> String {
    let Repair { broker, stage, reason, .. } = repair;
    let next = match stage {
        RepairStage::Waiting if assignment.replicas.iter().all(|id| assignment.is_damaged(*id)) => {
            "keeps what it has, because no other one is intact".to_owned()
        }
        RepairStage::Waiting if assignment.under_repair().is_some() => {
            "waits until another one of the partition is repaired".to_owned()
        }
        RepairStage::Waiting if assignment.is_moving() => "waits until the replicas have moved".to_owned(),
        RepairStage::Waiting if !can_leave(assignment, *broker, &reached) => {
            let away = assignment.replicas.iter().filter(|id| !reached(**id));
            let away: Vec<_> = away.map(ToString::to_string).collect();
            format!("is needed for a majority until brokers {} are reached", away.join(", "))
        }
        RepairStage::Waiting => format!("waits for its turn, {TURNS}"),
        RepairStage::Leaving => "leaves its group once a majority of the others has everything".to_owned(),
        RepairStage::Emptying => "is emptied".to_owned(),
        RepairStage::Joining => "gets everything from the others".to_owned(),
    };
    format!("the replica of broker {broker} is damaged and {next}: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moving(from: &[u64], to: &[u64]) -> PartitionAssignment {
        let ids = |ids: &[u64]| ids.iter().copied().map(BrokerId).collect();
        PartitionAssignment { replicas: ids(to), moving_from: ids(from), ..PartitionAssignment::default() }
    }

    #[test]
    fn a_partition_without_a_leader_names_the_brokers_that_are_missing() {
        let why = |assignment: &PartitionAssignment, away: &[u64]| {
            why_leaderless(assignment, |id| !away.contains(&id.0), |id| id.0 == 9)
        };
        let (one, three) = (moving(&[], &[3]), moving(&[], &[1, 2, 3]));
        assert_eq!(why(&three, &[]), "an election is under way");
        assert_eq!(why(&three, &[2]), "broker 2 is not reached; an election is under way");
        assert_eq!(why(&three, &[2, 3]), "brokers 2, 3 are not reached, so there is no majority: start them");
        assert_eq!(why(&one, &[3]), "broker 3 is not reached, so there is no majority: start it");
        let lost = why(&moving(&[9], &[1]), &[9]);
        assert!(lost.starts_with("broker 9 lost the disk") && lost.ends_with("delete the topic"), "{lost}");
        assert_eq!(why(&moving(&[], &[1, 2, 9]), &[9]), "broker 9 is not reached; an election is under way");
        // The group is where the replicas move from, until they have moved.
        let leaves = moving(&[3], &[1]);
        let missing = "broker 3 is not reached, so there may be no majority: start it";
        assert_eq!(why(&leaves, &[3]), missing);
        assert_eq!(why(&leaves, &[2]), "an election is under way");
        let last_moves = moving(&[1, 2, 3], &[1, 2, 4]);
        assert_eq!(why(&last_moves, &[3]), "broker 3 is not reached; an election is under way");
    }

    #[test]
    fn a_move_says_what_it_waits_for() {
        let candidate = |id: u64| Candidate {
            id: BrokerId(id),
            reached: true,
            rack: String::new(),
            replicas: 0,
            leaders: 0,
        };
        let says = |assignment: &PartitionAssignment, candidates: &[u64], away: u64| {
            let candidates: Vec<_> = candidates.iter().copied().map(candidate).collect();
            move_in_words(assignment, &candidates, |id| id.0 != away)
        };
        let moves = moving(&[1, 3], &[1, 4]);
        assert_eq!(says(&moves, &[1, 4], 3).as_deref(), Some("replicas move from 1, 3 to 1, 4"));
        let waits = says(&moves, &[1, 4], 4).expect("it moves");
        assert!(waits.contains("waits for broker 4, which is not reached: start it"), "{waits}");
        let stays = moving(&[], &[1, 3]);
        assert_eq!(says(&stays, &[1, 2, 3], 0), None);
        let drained = says(&stays, &[1, 2], 0).expect("3 is drained");
        assert!(drained.starts_with("replicas are to leave broker 3 and wait for their turn"), "{drained}");
        let stuck = says(&stays, &[1], 0).expect("3 is drained");
        assert!(
            stuck.contains("nowhere to go: 2 replicas need as many brokers, and 1 can take one"),
            "{stuck}"
        );
    }

    #[test]
    fn brokers_that_are_not_reached_are_told_from_those_that_lag() {
        let why = |lagging: &[BrokerId]| why_under_replicated(lagging, |id| id.0 != 2);
        assert_eq!(why(&[BrokerId(2)]), "broker 2 is not reached");
        assert_eq!(why(&[BrokerId(3)]), "broker 3 lags behind");
        assert_eq!(why(&[BrokerId(2), BrokerId(3)]), "broker 2 is not reached; broker 3 lags behind");
    }
}
