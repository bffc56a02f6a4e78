//! Damage on disks, and what brokers do about it.
//!
//! Rows of one or two replicas of a group are damaged that the others have. Everything is decided as brokers decide it
//! ([`steps`](crate::cluster::steps), [`turns`]). The control group is one that always answers; but brokers act on what they
//! knew of it some time ago, and what they say to it may arrive late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::World;
use super::nemesis::leader;
use super::node::{self, Broker, End};
use crate::clock::Timestamp;
use crate::cluster::peers::Standing;
use crate::cluster::steps::{Leading, Next, Step};
use crate::cluster::turns::{self, Patience};
use crate::metadata::{self, BrokerId, Command, PartitionAssignment, RepairStage, Settings, State, TopicId};
use crate::raft::{Members, NodeId, Role};
use crate::record::CodecSet;
use crate::storage::GroupId;

const TOPIC: TopicId = TopicId(1);
const NAME: &str = "simulated";
/// Partitions that are repaired at the same time.
const PLACES: usize = 1;
/// How long a repair may not go on before others have its place.
const PATIENCE: Duration = Duration::from_secs(2);
const STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long nobody leads before somebody comes.
const OPERATOR: Duration = Duration::from_secs(5);
/// Bytes that are verified at once.
const CHUNK_BYTES: u64 = 2_000;

/// What all brokers would agree on.
pub(super) fn control(nodes: &[NodeId], voters: &[NodeId], partitions: usize) -> State {
    let mut state = State::default();
    let broker = |id: NodeId| metadata::Broker { id: BrokerId(id), ..metadata::Broker::fake(id) };
    let settings = Settings {
        retention: None,
        retention_bytes: None,
        record_bytes_max: 1_000,
        batch_bytes_max: 1_000,
        codecs: CodecSet::ALL,
    };
    let replicas = voters.iter().copied().map(BrokerId).collect();
    let create = Command::CreateTopic {
        name: NAME.into(),
        settings,
        replication_factor: voters.len() as u32,
        created: Timestamp(0),
        partitions: vec![PartitionAssignment::new(replicas); partitions],
    };
    let first = Command::RegisterBroker(broker(nodes[0]));
    let others = nodes[1..].iter().map(|node| Command::AdmitBroker(broker(*node)));
    for command in [first].into_iter().chain(others).chain([create]) {
        state.apply(command).expect("a new cluster");
    }
    state
}

/// Damages rows of one or two replicas of a group, and sees to it that they are repaired.
pub(super) fn damage(world: &Arc<World>) {
    let number = world.chance.up_to(world.plan.partitions - 1);
    let group = world.partitions()[number];
    let Some((_, replica)) = leader(world, group) else { return };
    let status = replica.status().now();
    if status.voters.len() < 3 || status.voters != status.lasting_voters || !world.changing().insert(group) {
        return;
    }
    let mut intact = status.voters.to_vec();
    let mut victims = Vec::new();
    for _ in 0..*world.chance.pick(&[1, 2, 2]) {
        let at = world.chance.up_to(intact.len() - 1);
        victims.push(intact.remove(at));
    }
    let first = status.purged.map_or(0, |purged| purged + 1);
    let rows: Vec<u64> = {
        let nodes = world.nodes();
        let last = status.committed.unwrap_or_default();
        let kept = |row: &u64| intact.iter().all(|node| nodes[node].disk.has_durably(group, *row));
        (first..=last).filter(kept).collect()
    };
    for victim in victims.iter().filter(|_| !rows.is_empty()) {
        let damaged: BTreeSet<u64> =
            (0..world.chance.within(1..4)).map(|_| *world.chance.pick(&rows)).collect();
        let disk = world.nodes()[victim].disk.clone();
        let damaged: Vec<u64> = damaged.into_iter().filter(|row| disk.damage_row(group, *row)).collect();
        world.trace.tell(format!("node {victim} loses {damaged:?} of group {group}"));
        if !damaged.is_empty() {
            world.damaged().insert((*victim, group), damaged);
        }
    }
    let repairs = Repairs { world: Arc::clone(world), group, number: number as u32, busy: Arc::default() };
    let replicas = status.voters.iter().copied().map(BrokerId).collect();
    tokio::spawn(repairs.run(replicas));
}

/// The repair of the replicas of one group.
#[derive(Clone)]
struct Repairs {
    world: Arc<World>,
    group: GroupId,
    number: u32,
    /// Brokers that are doing something about it.
    busy: Arc<Mutex<BTreeSet<NodeId>>>,
}

impl Repairs {
    async fn run(self, replicas: Vec<BrokerId>) {
        let (name, partition) = (NAME.into(), self.number);
        self.agree(Command::ReassignPartition { name, partition, replicas });
        let revision = self.assignment().revision;
        self.agree(Command::FinishMove { topic: TOPIC, partition, revision });
        let mut patience = Patience::new(PATIENCE);
        let mut led_at = Instant::now();
        // What each broker knows, since some term.
        let mut known: BTreeMap<NodeId, (u64, PartitionAssignment)> = BTreeMap::new();
        while !self.is_done() {
            sleep(self.world.chance.millis(20..150)).await;
            for broker in self.world.brokers() {
                self.look(&broker, &mut known).await;
            }
            self.give_turns(&mut patience);
            self.restore(&mut led_at);
        }
        self.world.trace.tell(format!("group {} is repaired", self.group));
        self.world.changing().remove(&self.group);
    }

    fn is_done(&self) -> bool {
        let damaged = self.world.damaged().keys().any(|(_, group)| *group == self.group);
        !damaged && self.assignment().repairs.is_empty()
    }

    fn assignment(&self) -> PartitionAssignment {
        let state = self.world.control();
        state.topic(NAME).expect("it is there").partitions[self.number as usize].clone()
    }

    fn agree(&self, command: Command) {
        self.world.trace.tell(format!("agreed: {command:?}"));
        if let Err(error) = self.world.control().apply(command) {
            self.world.checker.fail(format!("the control group refuses: {error}"));
        }
    }

    /// What a broker says may be late.
    fn agree_later(&self, node: NodeId, command: Command) {
        let this = self.clone();
        self.work(node, async move {
            sleep(this.world.chance.millis(0..400)).await;
            this.agree(command);
        });
    }

    /// Lets a broker do something, unless it is doing something else.
    fn work(&self, node: NodeId, work: impl Future<Output = ()> + Send + 'static) {
        if !self.busy().insert(node) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            work.await;
            this.busy().remove(&node);
        });
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, BTreeSet<NodeId>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the control leader does.
    fn give_turns(&self, patience: &mut Patience) {
        let state = self.world.control().clone();
        let reached = |id: BrokerId| self.world.broker(id.0).is_some();
        let leads = |group| match leader(&self.world, group) {
            Some((node, _)) => (true, !self.world.damaged().contains_key(&(node, group))),
            None => (false, true),
        };
        let stuck = patience.stuck(&state, leads, reached);
        let led = |group| leads(group).0;
        for command in turns::turns(&state, PLACES, &stuck, led, reached).commands {
            self.agree(command);
        }
    }

    /// What a broker does.
    async fn look(&self, broker: &Broker, known: &mut BTreeMap<NodeId, (u64, PartitionAssignment)>) {
        let (group, node, chance) = (self.group, broker.node, &self.world.chance);
        let partition = broker.partitions[self.number as usize].as_ref();
        if chance.percent(10)
            && let Some(partition) = partition
        {
            self.verify(broker, partition).await;
        }
        let newest = self.assignment();
        let damage = match partition {
            Some(partition) => partition.damage(),
            None => Some("it cannot be opened".to_owned()),
        };
        if let Some(reason) = damage
            && newest.can_repair(BrokerId(node))
            && !newest.is_damaged(BrokerId(node))
        {
            let (topic, partition, revision) = (TOPIC, self.number, newest.revision);
            let broker = BrokerId(node);
            self.agree_later(node, Command::BeginRepair { topic, partition, revision, broker, reason });
        }
        if newest.repair_of(BrokerId(node)).is_some_and(|repair| repair.stage == RepairStage::Emptying) {
            self.work(node, self.clone().empty(node));
        }
        let Some(replica) = broker.replicas.get(&group) else { return };
        let members = replica.handle_of_any().members();
        let status = members.status().now();
        if !status.is_ready_leader() && (status.role != Role::Leader || status.unreadable.is_none()) {
            return;
        }
        let (term, assignment) = known.entry(node).or_insert((0, newest.clone()));
        if *term != status.term || chance.percent(50) {
            (*term, *assignment) = (status.term, newest);
        }
        let followers = members.followers();
        let leading = Leading {
            node,
            status: &status,
            followers: &followers,
            standing: &|node| match self.world.broker(node) {
                Some(_) => Standing::Ready,
                None => Standing::Away,
            },
            damaged: &|node| assignment.is_damaged(BrokerId(node)),
        };
        let next = leading.next_of_partition(assignment);
        let empties_voters = self.world.empties_voters();
        match next {
            Next::Do(_) | Next::Wait if empties_voters && self.is_leaving(assignment) => {
                let (topic, partition, revision) = (TOPIC, self.number, assignment.revision);
                let from = RepairStage::Leaving;
                self.agree_later(node, Command::AdvanceRepair { topic, partition, revision, from });
            }
            Next::Do(step) => self.work(node, take(members, step)),
            Next::HandOver(heir) => self.work(node, async move {
                // Whether it did is seen by who leads next.
                let _ = timeout(STEP_TIMEOUT, members.transfer_leadership(heir)).await;
            }),
            Next::Advance(from) => {
                let (topic, partition, revision) = (TOPIC, self.number, assignment.revision);
                self.agree_later(node, Command::AdvanceRepair { topic, partition, revision, from });
            }
            Next::Wait | Next::FinishMove | Next::Done => {}
        }
    }

    /// An operator restores what a broker has lost if the others do not agree on anything for long: too many replicas cannot
    /// be opened, or the one with the newest entry cannot give the others what comes before.
    fn restore(&self, led_at: &mut Instant) {
        let (world, group) = (&self.world, self.group);
        let brokers = world.brokers();
        let status = |broker: &Broker| broker.status(group).filter(|status| status.role != Role::Stopped);
        let leads = |broker: &Broker| {
            let members = broker.replicas.get(&group).map(|replica| replica.handle_of_any().members());
            let followed = members.and_then(|members| members.quorum_age()).unwrap_or_default() < PATIENCE;
            followed && status(broker).is_some_and(|status| status.is_ready_leader())
        };
        if brokers.iter().any(leads) {
            *led_at = Instant::now();
        }
        if led_at.elapsed() < OPERATOR {
            return;
        }
        *led_at = Instant::now();
        let damaged = brokers.iter().filter(|broker| world.damaged().contains_key(&(broker.node, group)));
        let Some(node) = damaged.min_by_key(|broker| (status(broker).is_some(), broker.node)) else { return };
        let node = node.node;
        let rows = world.damaged().remove(&(node, group)).unwrap_or_default();
        world
            .trace
            .tell(format!("node {node} is stopped, and its rows {rows:?} of group {group} are restored"));
        node::crash(world, node, End::Kill);
        let disk = world.nodes()[&node].disk.clone();
        for row in rows {
            // Turned around once more. It may have been trimmed.
            disk.damage_row(group, row);
        }
        node::start_later(world, node, 20..500);
    }

    fn is_leaving(&self, assignment: &PartitionAssignment) -> bool {
        assignment.under_repair().is_some_and(|repair| repair.stage == RepairStage::Leaving)
    }

    /// Reads the replica. If all is there, what was damaged was deleted meanwhile.
    async fn verify(&self, broker: &Broker, partition: &crate::partition::Partition) {
        let applied = partition.status().now().applied;
        let mut next = 0;
        loop {
            match partition.verify(next, CHUNK_BYTES).await {
                Ok(Some(after)) => next = after,
                Ok(None) => break,
                Err(_) => return,
            }
        }
        let mut damaged = self.world.damaged();
        let key = (broker.node, self.group);
        if !self.assignment().is_damaged(BrokerId(broker.node))
            && damaged.get(&key).is_some_and(|rows| applied >= rows.last().copied())
        {
            damaged.remove(&key);
        }
    }

    /// A broker deletes its replica, and says so.
    async fn empty(self, node: NodeId) {
        let (world, group) = (&self.world, self.group);
        world.nodes().get_mut(&node).expect("a node of the run").to_empty.insert(group);
        while world.nodes()[&node].to_empty.contains(&group) {
            node::crash(world, node, End::Kill);
            node::start(world, node).await;
            sleep(Duration::from_millis(20)).await;
        }
        sleep(world.chance.millis(0..400)).await;
        let (topic, partition, revision) = (TOPIC, self.number, self.assignment().revision);
        let from = RepairStage::Emptying;
        world.checker.count(|counts| counts.repairs += 1);
        self.agree(Command::AdvanceRepair { topic, partition, revision, from });
    }
}

/// Changes the members of a group by a step.
async fn take(members: Members, step: Step) {
    let change = async {
        match step {
            Step::Invite(node) => members.invite(node).await,
            Step::GiveVotes(voters) => members.give_votes(voters).await,
            Step::Expel(node) => members.expel(node).await,
        }
    };
    // What came of it is looked at anew.
    let _ = timeout(STEP_TIMEOUT, change).await;
}
