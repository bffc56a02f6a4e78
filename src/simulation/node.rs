//! The brokers of a run: real groups, partitions and coordinators on a simulated disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::network::Port;
use super::{COORDINATOR, World};
use crate::clock::{Clock, Timestamp};
use crate::cluster::coordinator::{self, Coordinators};
use crate::partition::{self, Partition};
use crate::raft::{self, NodeId, Replica};
use crate::storage::{Disk, Faults, GroupId, Store, Sync};
use crate::task::Tasks;

/// How a broker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The process is killed: the operating system keeps what was written.
    Kill,
    /// The power fails: what was not synced may be lost.
    Power,
}

/// What there is of a broker whether it runs or not.
pub(super) struct Node {
    pub(super) disk: Disk,
    pub(super) clock: Clock,
    /// What the clock is ahead of the run's time, in milliseconds.
    pub(super) ahead: i64,
    /// Counts starts.
    pub(super) life: u64,
    /// Whether it is being started or stopped.
    pub(super) busy: bool,
    pub(super) running: Option<Broker>,
    /// The disk does nothing until then.
    pub(super) stalled_until: Instant,
    /// Whether it may lack what it acknowledged and had not synced when the power failed, and whether it is to be told.
    pub(super) lacks: bool,
    pub(super) to_doubt: bool,
    /// Groups whose replicas here are to be emptied before the next start, and those that were. The latter found nothing
    /// any more: their groups are there, and take them in again.
    pub(super) to_empty: BTreeSet<GroupId>,
    pub(super) emptied: BTreeSet<GroupId>,
}

impl Node {
    pub(super) fn new() -> Self {
        Node {
            disk: Disk::new(),
            clock: Clock::fixed(Timestamp(0)),
            ahead: 0,
            life: 0,
            busy: false,
            running: None,
            stalled_until: Instant::now(),
            lacks: false,
            to_doubt: false,
            to_empty: BTreeSet::new(),
            emptied: BTreeSet::new(),
        }
    }
}

/// A running broker. Clones share it.
#[derive(Clone)]
pub(super) struct Broker {
    pub(super) node: NodeId,
    pub(super) life: u64,
    pub(super) store: Store,
    /// By number. One that is damaged may not be open.
    pub(super) partitions: Vec<Option<Partition>>,
    pub(super) coordinators: Coordinators,
    pub(super) replicas: Arc<BTreeMap<GroupId, Replica>>,
    tasks: Tasks,
    /// Cancelled when the broker ends in whatever way.
    pub(super) gone: CancellationToken,
}

impl Broker {
    /// What its replica of a group says, if that is open.
    pub(super) fn status(&self, group: GroupId) -> Option<raft::Status> {
        Some(self.replicas.get(&group)?.handle_of_any().status().now())
    }
}

/// Starts a broker that does not run.
pub(super) async fn start(world: &Arc<World>, node: NodeId) {
    let mut to_empty = Vec::new();
    let (disk, clock, life, emptied, doubted) = {
        let mut nodes = world.nodes();
        let own = nodes.get_mut(&node).expect("a node of the run");
        if own.running.is_some() || own.busy {
            return;
        }
        own.life += 1;
        own.busy = true;
        for group in std::mem::take(&mut own.to_empty) {
            to_empty.push(group);
            own.emptied.insert(group);
            world.damaged().remove(&(node, group));
            world.trace.tell(format!("node {node} has emptied group {group}"));
        }
        let doubted = std::mem::take(&mut own.to_doubt);
        (own.disk.clone(), own.clock.clone(), own.life, own.emptied.clone(), doubted)
    };
    world.trace.tell(format!("node {node} starts, life {life}"));
    if doubted {
        world.trace.tell(format!("node {node} doubts its logs"));
    }
    let emptying = (&to_empty[..], &emptied);
    let opened = open(world, node, life, &disk, &clock, doubted, emptying).await;
    let mut nodes = world.nodes();
    let own = nodes.get_mut(&node).expect("a node of the run");
    own.busy = false;
    match opened {
        Ok(broker) => own.running = Some(broker),
        Err(error) => world.checker.fail(format!("node {node} does not open what is on its disk: {error}")),
    }
}

/// Starts a broker that does not run, after a while.
pub(super) fn start_later(world: &Arc<World>, node: NodeId, millis: std::ops::Range<u64>) {
    let pause = world.chance.millis(millis);
    let world = Arc::clone(world);
    tokio::spawn(async move {
        sleep(pause).await;
        start(&world, node).await;
    });
}

async fn open(
    world: &Arc<World>,
    node: NodeId,
    life: u64,
    disk: &Disk,
    clock: &Clock,
    doubted: bool,
    (to_empty, emptied): (&[GroupId], &BTreeSet<GroupId>),
) -> Result<Broker, String> {
    let observer = {
        let world = Arc::downgrade(world);
        Arc::new(move |state| {
            if let Some(world) = world.upgrade() {
                world.checker.state(&world.trace, (node, life), &state);
            }
        })
    };
    let store = Store::simulated(disk, world.plan.sync, observer).map_err(|e| e.to_string())?;
    if doubted {
        store.doubt_logs().map_err(|error| error.to_string())?;
    }
    for group in to_empty {
        let emptied = match world.plan.mutation {
            Some(super::Mutation::EmptyVoters) => store.delete_group(*group).map_err(raft::Error::from),
            _ => raft::empty(&store, *group),
        };
        emptied.map_err(|error| format!("emptying {group}: {}", chain(&error)))?;
        store.sync_simulated();
    }
    let gone = CancellationToken::new();
    tokio::spawn(write(Arc::clone(world), node, store.clone(), gone.clone()));
    let tasks = Tasks::new();
    let raft = raft::Env::new(
        store.clone(),
        tasks.clone(),
        raft::Config {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(350),
            election_max: world.plan.election_max,
            // Small, so that there are many checkpoints and short messages.
            checkpoint_bytes: 1_500,
            append_bytes_max: 1_000,
            append_timeout: Duration::from_millis(500),
            snapshot_timeout: Duration::from_millis(500),
        },
        Arc::new(Port { world: Arc::downgrade(world), node, life }),
    );
    // Small tails, so that much is read from the disk.
    let config = partition::Config { tail_bytes: 4_000, partition_tail_bytes: 1_000, ..Default::default() };
    let env = partition::Env::new(store.clone(), raft.clone(), clock.clone(), world.metrics.clone(), config);
    let mut partitions = Vec::new();
    let mut replicas = BTreeMap::new();
    // A node that is not among the first voters waits until a group takes it in.
    let founders = world.plan.voters.contains(&node).then_some(&world.plan.voters[..]);
    for group in world.partitions() {
        let topic = world.metrics.topic("simulated");
        let founders = founders.filter(|_| !emptied.contains(&group));
        let partition = Partition::open(group, node, founders, topic, &env, &tasks).await;
        partitions.push(match partition {
            Ok(partition) => {
                replicas.insert(group, partition.replica());
                Some(partition)
            }
            Err(error) if error.is_damage() && world.damaged().contains_key(&(node, group)) => None,
            Err(error) => return Err(format!("partition {group}: {}", chain(&error))),
        });
    }
    let config = coordinator::Config { shards: 1, log_bytes: 4 << 10, ..Default::default() };
    let coordinators = Coordinators::open(1, &config, node, founders, &raft, &tasks).await;
    let coordinators = coordinators.map_err(|error| format!("coordinator: {}", chain(&error)))?;
    let shard = &coordinators.all()[0];
    assert_eq!(shard.group(), COORDINATOR);
    replicas.insert(COORDINATOR, shard.replica());
    Ok(Broker { node, life, store, partitions, coordinators, replicas: Arc::new(replicas), tasks, gone })
}

/// An error with what caused it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Writes what waits for a disk, as slowly as the disk is.
async fn write(world: Arc<World>, node: NodeId, store: Store, gone: CancellationToken) {
    let run = async {
        loop {
            store.batch_came().await;
            loop {
                sleep(world.disk_delay(node)).await;
                if !store.step() {
                    break;
                }
                world.trace.fold(4, [node, 0, 0]);
                if world.chance.percent(10) {
                    store.sync_simulated();
                }
            }
        }
    };
    gone.run_until_cancelled(run).await;
}

/// Ends a running broker without warning.
pub(super) fn crash(world: &Arc<World>, node: NodeId, end: End) {
    let broker = {
        let mut nodes = world.nodes();
        let own = nodes.get_mut(&node).expect("a node of the run");
        match own.running.take() {
            Some(broker) if !own.busy => broker,
            other => {
                own.running = other;
                return;
            }
        }
    };
    finish(world, broker, end);
}

/// Takes the disk from a broker, and lets what is left of it come to its end unheard.
fn finish(world: &Arc<World>, broker: Broker, end: End) {
    let Broker { node, store, replicas, tasks, gone, partitions, coordinators, .. } = broker;
    gone.cancel();
    let mut lost = 0;
    let power = end == End::Power && world.may_lose(node);
    let survive = |unsynced: usize| {
        let survivors = if power { world.chance.up_to(unsynced) } else { unsynced };
        lost = unsynced - survivors;
        survivors
    };
    let disk = store.crash(|waiting| world.chance.up_to(waiting), survive);
    let disk = disk.expect("the store is a simulated one");
    if world.plan.mutation == Some(super::Mutation::ForgetVotes) {
        disk.forget_votes();
    }
    world.trace.tell(format!("node {node} ends ({end:?}), {lost} rounds are lost"));
    {
        let mut nodes = world.nodes();
        let own = nodes.get_mut(&node).expect("a node of the run");
        own.disk = disk;
        if power && world.plan.sync == Sync::Interval {
            own.lacks = true;
            own.to_doubt = world.plan.mutation != Some(super::Mutation::TrustLogs);
            world.checker.count(|counts| counts.lost += lost as u64);
        }
    }
    drop((partitions, coordinators));
    tokio::spawn(async move {
        for replica in replicas.values() {
            replica.handle_of_any().stop_without_checkpoint().await;
        }
        tasks.stop(Duration::from_secs(1)).await;
    });
}

/// Stops a running broker in order.
pub(super) async fn stop(world: &Arc<World>, node: NodeId) {
    let broker = {
        let mut nodes = world.nodes();
        let own = nodes.get_mut(&node).expect("a node of the run");
        match &own.running {
            Some(broker) if !own.busy => {
                own.busy = true;
                broker.clone()
            }
            _ => return,
        }
    };
    world.trace.tell(format!("node {node} is told to stop"));
    let close = async {
        for partition in broker.partitions.iter().flatten() {
            partition.close().await;
        }
        broker.coordinators.close().await;
    };
    let closed = tokio::time::timeout(Duration::from_secs(5), close).await;
    world.trace.tell(format!("node {node} is closed: {}", closed.is_ok()));
    {
        let mut nodes = world.nodes();
        let own = nodes.get_mut(&node).expect("a node of the run");
        own.busy = false;
        own.running = None;
    }
    finish(world, broker, End::Kill);
}

/// Makes the disk of a running broker fail every write until the broker is started again. Returns whether it did.
pub(super) fn fail_disk(world: &Arc<World>, node: NodeId) -> bool {
    let nodes = world.nodes();
    let own = &nodes[&node];
    let runs = own.running.is_some() && !own.busy;
    if runs {
        world.trace.tell(format!("the disk of node {node} fails"));
        own.disk.set_faults(Faults { writes_fail: true, syncs_lie: world.lies() });
    }
    runs
}
