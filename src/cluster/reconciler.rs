//! Makes this broker's partitions what the metadata says: opens, closes, deletes, applies settings.
//!
//! One task owns the open replicas. It compares and acts whenever the metadata changes, and at the start deletes the
//! data of partitions that this broker is not to have, which a crash during a deletion can leave behind.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::control::Control;
use super::partition_ref::PartitionRef;
use super::peers::{Book, Hub};
use super::routing::{Route, Routes, Routing};
use crate::metadata::{BrokerId, Command, PartitionAssignment, RepairStage, State, Topic};
use crate::partition::{self, Partition};
use crate::raft;
use crate::storage::{self, GroupId};
use crate::task::{Criticality, Tasks};
use crate::telemetry::StorageFailure;

/// Partitions that are opened at a time: each waits for the disk.
const OPENING: usize = 16;
/// After a failure the reconciler tries again this much later.
const RETRY: Duration = Duration::from_secs(1);
/// How often the first replica of a new partition asks the others for their votes, which may not be open yet, and for how
/// long.
const ELECT_EVERY: Duration = Duration::from_millis(50);
const ELECT_FOR: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Reconciler {
    pub(super) node: BrokerId,
    pub(super) control: Control,
    pub(super) hub: Hub,
    pub(super) env: partition::Env,
    pub(super) routing: Arc<Routing>,
    pub(super) tasks: Tasks,
    /// The last metadata that the partitions were made to follow.
    pub(super) reconciled: watch::Sender<Arc<State>>,
    /// Replicas on this broker.
    pub(super) open: HashMap<GroupId, Partition>,
    /// All partitions of the cluster.
    pub(super) known: HashMap<GroupId, PartitionRef>,
    /// What is noted of where the other brokers are.
    pub(super) book: Book,
}

/// A replica that this broker is to have.
#[derive(Clone)]
struct Wanted {
    group: GroupId,
    topic: Arc<Topic>,
    number: u32,
}

impl Wanted {
    fn assignment(&self) -> &PartitionAssignment {
        &self.topic.partitions[self.number as usize]
    }
}

/// A damaged replica that is to be emptied.
struct Emptying {
    topic: Arc<Topic>,
    partition: u32,
    revision: u32,
}

/// The group of a partition.
pub fn group_of(topic: &Topic, partition: u32) -> GroupId {
    GroupId(u64::from(topic.id.0) << 32 | u64::from(partition))
}

impl Reconciler {
    /// Runs until the broker stops, and closes all partitions then.
    pub(super) async fn run(mut self) {
        let mut metadata = self.control.watch();
        let stop = self.tasks.token().clone();
        let mut retry = true;
        loop {
            let state = metadata.borrow_and_update().clone();
            self.hub.know(&state, self.control.ready_now().is_some());
            self.keep_book().await;
            retry |= !self.reconcile(&state).await;
            tokio::select! {
                () = stop.cancelled() => break,
                changed = metadata.changed() => if changed.is_err() {
                    // The control replica has ended, as it does when the store fails. Topics are still there, and so are
                    // their leaders on other brokers.
                    stop.cancelled().await;
                    break;
                },
                () = tokio::time::sleep(RETRY), if retry => retry = self.delete_orphans().await.is_err(),
            }
        }
        self.routing.replace(Routes::new(), HashMap::new());
        for partition in self.known.values() {
            partition.close();
        }
        futures_util::stream::iter(self.open.into_values())
            .for_each_concurrent(OPENING, |partition| async move { partition.close().await })
            .await;
    }

    /// Returns whether everything is as `state` says.
    async fn reconcile(&mut self, state: &Arc<State>) -> bool {
        let wanted = self.wanted(state);
        self.route(state);
        let missing: Vec<_> =
            wanted.iter().filter(|wanted| !self.open.contains_key(&wanted.group)).cloned().collect();
        let mut complete = true;
        let mut opening = futures_util::stream::iter(missing)
            .map(|wanted| {
                let (node, env, tasks) = (self.node, &self.env, &self.tasks);
                async move { (open(node, &wanted, env, tasks).await, wanted) }
            })
            .buffer_unordered(OPENING);
        let mut opened = Vec::new();
        while let Some((result, wanted)) = opening.next().await {
            match result {
                Ok(replica) => {
                    if let Some(known) = self.known.get(&wanted.group) {
                        known.set_replica(Some(replica.clone()));
                    }
                    opened.push((wanted.group, replica));
                }
                Err(failure) => {
                    complete = false;
                    if failure.is_damage()
                        && let Some(known) = self.known.get(&wanted.group)
                        && known.set_broken(failure.clone())
                    {
                        self.env.metrics.storage.failed(StorageFailure::Corrupt);
                    }
                    error!(topic = %wanted.topic.name, partition = wanted.number, error = %failure, "partition cannot be opened");
                }
            }
        }
        drop(opening);
        self.open.extend(opened);
        complete &= self.delete_unwanted(state).await;
        // Also when something failed: the rest serves, health names what does not, and a retry follows.
        self.reconciled.send_replace(state.clone());
        complete
    }

    /// Whether the replica here is damaged and has left its group.
    fn is_to_empty(&self, assignment: &PartitionAssignment) -> bool {
        assignment.repair_of(self.node).is_some_and(|repair| repair.stage == RepairStage::Emptying)
    }

    /// Damaged replicas here that have left their groups.
    fn to_empty(&self, state: &State) -> HashMap<GroupId, Emptying> {
        let mut found = HashMap::new();
        for topic in state.topics() {
            for (number, assignment) in topic.partitions.iter().enumerate() {
                if self.is_to_empty(assignment) {
                    let partition = number as u32;
                    let emptying =
                        Emptying { topic: topic.clone(), partition, revision: assignment.revision };
                    found.insert(group_of(topic, partition), emptying);
                }
            }
        }
        found
    }

    /// Closes replicas that this broker is not to have any more or that are to be emptied, and deletes their data. Returns
    /// whether nothing is left to do.
    async fn delete_unwanted(&mut self, state: &State) -> bool {
        let keep: HashSet<GroupId> = self.wanted(state).into_iter().map(|wanted| wanted.group).collect();
        let open = self.open.keys().copied().filter(|group| !keep.contains(group));
        let unwanted: HashSet<GroupId> = open.chain(self.to_empty(state).into_keys()).collect();
        if unwanted.is_empty() {
            return true;
        }
        for group in &unwanted {
            self.close(*group).await;
        }
        // What this broker knows may be old: the replica may be a member again, with what it has acknowledged since. It
        // acknowledges nothing any more, so whatever made it a member was agreed on before now.
        if !self.control.catch_up().await {
            return false;
        }
        let newest = self.control.state();
        let keep: HashSet<GroupId> = self.wanted(&newest).into_iter().map(|wanted| wanted.group).collect();
        let to_empty = self.to_empty(&newest);
        let mut complete = unwanted.is_disjoint(&keep);
        for group in unwanted.difference(&keep) {
            let deleted = self.delete(*group, &newest).await;
            complete &= deleted;
            if deleted && let Some(emptied) = to_empty.get(group) {
                self.let_join_anew(emptied);
                complete = false;
            }
        }
        complete
    }

    fn let_join_anew(&self, emptied: &Emptying) {
        let Emptying { topic, partition, revision } = emptied;
        info!(name: "replica.emptied", topic = &*topic.name, partition, "a damaged replica is empty, and joins its group anew");
        let command = Command::AdvanceRepair {
            topic: topic.id,
            partition: *partition,
            revision: *revision,
            from: RepairStage::Emptying,
        };
        let control = self.control.clone();
        self.tasks.spawn_until_stopped("empty replica", Criticality::BestEffort, async move {
            // Done again if it does not succeed.
            let _ = control.change(&command).await;
        });
    }

    /// Notes where the other brokers are, for the next start.
    async fn keep_book(&mut self) {
        let book = self.hub.book();
        if book == self.book {
            return;
        }
        let (store, kept) = (self.env.store.clone(), book.clone());
        match tokio::task::spawn_blocking(move || kept.save(&store)).await {
            Ok(Ok(())) => self.book = book,
            Ok(Err(failure)) => warn!(error = %failure, "where the other brokers are was not noted"),
            Err(_) => {}
        }
    }

    fn wanted(&self, state: &State) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for topic in state.topics() {
            for (number, assignment) in topic.partitions.iter().enumerate() {
                if assignment.involves(self.node) && !self.is_to_empty(assignment) {
                    let number = number as u32;
                    wanted.push(Wanted { group: group_of(topic, number), topic: topic.clone(), number });
                }
            }
        }
        wanted
    }

    /// Shows the topics of `state`; partitions that are new among them have no replica here yet.
    fn route(&mut self, state: &State) {
        let before = self.routing.all();
        let mut routes = Routes::with_capacity(state.topic_count());
        let mut known = HashMap::with_capacity(state.partition_count());
        for topic in state.topics() {
            let metrics = self.env.metrics.topic(&topic.name);
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for (number, assignment) in topic.partitions.iter().enumerate() {
                let group = group_of(topic, number as u32);
                let partition = self.known.remove(&group).unwrap_or_else(|| {
                    let (hub, env, tasks) = (self.hub.clone(), self.env.clone(), self.tasks.clone());
                    PartitionRef::new(group, self.node, hub, env, metrics.clone(), tasks)
                });
                partition.set_holders(assignment.holders().map(|id| id.0).collect());
                known.insert(group, partition.clone());
                partitions.push(partition);
            }
            routes.insert(topic.name.clone(), Arc::new(Route::new(topic.clone(), metrics, partitions)));
        }
        for name in before.keys().filter(|name| !routes.contains_key(*name)) {
            self.env.metrics.remove_topic(name);
        }
        let gone = std::mem::replace(&mut self.known, known);
        self.routing.replace(routes, self.known.clone());
        for partition in gone.into_values() {
            partition.close();
            // Whoever still holds it must not keep the replica in memory.
            partition.set_replica(None);
        }
    }

    async fn close(&mut self, group: GroupId) {
        if let Some(known) = self.known.get(&group) {
            known.set_replica(None);
        }
        if let Some(partition) = self.open.remove(&group) {
            partition.close().await;
        }
    }

    /// Deletes the data of a replica that is closed. Where the topic is still there the replica may come back, and the group
    /// counts on what it has acknowledged and voted.
    async fn delete(&self, group: GroupId, state: &State) -> bool {
        let store = self.env.store.clone();
        let may_come_back = has_topic(state, group);
        let delete = move || match may_come_back {
            true => raft::empty(&store, group),
            false => Ok(store.delete_group(group)?),
        };
        match tokio::task::spawn_blocking(delete).await {
            Ok(Ok(())) => true,
            Ok(Err(failure)) => {
                warn!(%group, error = %failure, "data of a deleted partition is still there; trying again");
                false
            }
            Err(_) => false,
        }
    }

    async fn delete_orphans(&self) -> Result<(), ()> {
        // What this broker knows may be old.
        if !self.control.catch_up().await {
            return Err(());
        }
        let store = self.env.store.clone();
        let listed = tokio::task::spawn_blocking(move || Ok((store.groups()?, store.emptied_groups()?)));
        let (stored, emptied) = match listed.await {
            Ok(Ok(listed)) => listed,
            Ok::<Result<_, storage::Error>, _>(Err(failure)) => {
                warn!(error = %failure, "the store's groups cannot be listed; trying again");
                return Err(());
            }
            Err(_) => return Err(()),
        };
        let state = self.control.state();
        let keep: HashSet<GroupId> = self.wanted(&state).into_iter().map(|wanted| wanted.group).collect();
        let mut complete = true;
        let orphan =
            |group: &GroupId| group.is_partition() && !keep.contains(group) && !self.open.contains_key(group);
        for group in stored.into_iter().filter(orphan) {
            info!(%group, "deleting the data of a partition that this broker is not to have");
            complete &= self.delete(group, &state).await;
        }
        for group in emptied.into_iter().filter(|group| !has_topic(&state, *group)) {
            complete &= self.delete(group, &state).await;
        }
        if complete { Ok(()) } else { Err(()) }
    }
}

/// Whether the group is of a topic that exists.
fn has_topic(state: &State, group: GroupId) -> bool {
    state.topics().any(|topic| u64::from(topic.id.0) == group.0 >> 32)
}

async fn open(
    node: BrokerId,
    wanted: &Wanted,
    env: &partition::Env,
    tasks: &Tasks,
) -> Result<Partition, partition::Error> {
    let assignment = wanted.assignment();
    let replicas: Vec<u64> = assignment.replicas.iter().map(|id| id.0).collect();
    // The group is there since an earlier revision, and its leader adds this replica.
    let founds = assignment.revision == 0 && assignment.replicas.first() == Some(&node);
    let founders = founds.then_some(&replicas[..]);
    let metrics = env.metrics.topic(&wanted.topic.name);
    let partition = Partition::open(wanted.group, node.0, founders, metrics, env, tasks).await?;
    if replicas == [node.0] && !assignment.is_moving() {
        if let Err(failure) = partition.ready().await {
            partition.close().await;
            if failure.is_of_index() {
                // Nobody else has the records.
                remake_index(wanted.group, env).await;
            }
            return Err(failure);
        }
    } else if founds && partition.status().now().leader.is_none() {
        tasks.spawn_until_stopped("first election", Criticality::BestEffort, elect(partition.clone()));
    }
    Ok(partition)
}

/// Has the next try to open a partition find an index that can be read.
async fn remake_index(group: GroupId, env: &partition::Env) {
    let store = env.store.clone();
    if let Ok(Err(failure)) = tokio::task::spawn_blocking(move || store.remake_index(group)).await {
        warn!(%group, error = %failure, "the index of a partition was not made anew; trying again");
    }
}

/// Makes the first replica of a partition the leader as soon as a majority of the others is there.
async fn elect(partition: Partition) {
    let mut status = partition.status();
    let until_led = status.wait_for(|status| status.leader.is_some() || status.failed.is_some());
    let asking = async {
        let over = tokio::time::Instant::now() + ELECT_FOR;
        while tokio::time::Instant::now() < over {
            tokio::time::sleep(ELECT_EVERY).await;
            if partition.members().elect().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = until_led => {}
        () = asking => {}
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::clock::{Clock, Timestamp};
    use crate::cluster::identity::Identity;
    use crate::metadata::{Broker, Settings};
    use crate::record::CodecSet;
    use crate::storage::Store;
    use crate::telemetry::{Metrics, Tracer};

    const NODE: BrokerId = BrokerId(1);
    const PATIENCE: Duration = Duration::from_secs(60);

    fn registration() -> Command {
        Command::RegisterBroker(Broker::fake("localhost:1"))
    }

    fn creation(name: &str) -> Command {
        let settings = Settings {
            retention: None,
            retention_bytes: None,
            record_bytes_max: 1_000,
            batch_bytes_max: 2_000,
            codecs: CodecSet::ALL,
        };
        Command::CreateTopic {
            name: name.into(),
            settings,
            replication_factor: 1,
            created: Timestamp(7),
            partitions: vec![PartitionAssignment::new(vec![NODE])],
        }
    }

    /// A broker alone, with its topic `orders`.
    struct Alone {
        control: Control,
        store: Store,
        routing: Arc<Routing>,
        tasks: Tasks,
        run: std::pin::Pin<Box<dyn Future<Output = ()>>>,
        _directory: tempfile::TempDir,
    }

    impl Alone {
        async fn start() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let settings = storage::Config { reserve_bytes: 0, ..storage::Config::in_dir(directory.path()) };
            let store = Store::open(&settings, None).expect("opened");
            let tasks = Tasks::new();
            let metrics = Metrics::detached();
            let raft =
                raft::Env::new(store.clone(), tasks.clone(), Default::default(), Arc::new(raft::NoPeers));
            let identity = Identity { cluster: uuid::Uuid::nil(), broker: NODE };
            let hub = Hub::new(identity, metrics.clone(), Tracer::disabled(), &tasks);
            let control =
                Control::open(NODE.0, true, 1 << 20, hub.clone(), &raft, &tasks).await.expect("opened");
            control.ready().await.expect("ready");
            for command in [registration(), creation("orders")] {
                control.change(&command).await.expect("changed");
            }
            let env = partition::Env::new(store.clone(), raft, Clock::system(), metrics, Default::default());
            let routing = Arc::new(Routing::default());
            let (reconciled, _) = watch::channel(Arc::default());
            let reconciler = Reconciler {
                node: NODE,
                control: control.clone(),
                hub,
                env,
                routing: routing.clone(),
                tasks: tasks.clone(),
                reconciled,
                open: HashMap::new(),
                known: HashMap::new(),
                book: Book::default(),
            };
            let run = Box::pin(reconciler.run());
            let mut this = Alone { control, store, routing, tasks, run, _directory: directory };
            this.until(|routing| routing.topic("orders").is_some()).await;
            this
        }

        /// Lets the reconciler run until the topics are as wished.
        async fn until(&mut self, wish: impl Fn(&Routing) -> bool) {
            let wished = async {
                while !wish(&self.routing) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                () = &mut self.run => panic!("it runs until the broker stops"),
                wished = tokio::time::timeout(PATIENCE, wished) => wished.expect("in time"),
            }
        }
    }

    #[tokio::test]
    async fn a_deleted_partition_leaves_memory_whoever_still_holds_it() {
        let mut alone = Alone::start().await;
        let partition = |routing: &Routing| routing.partitions().values().next().cloned();
        alone.until(|routing| partition(routing).is_some_and(|known| known.replica().is_some())).await;
        let held = partition(&alone.routing).expect("it is there");
        let view = Arc::downgrade(held.replica().expect("it is open").view());
        alone.control.change(&Command::DeleteTopic { name: "orders".into() }).await.expect("deleted");
        alone.until(|_| view.strong_count() == 0).await;
        assert!(held.is_closed() && held.replica().is_none());
        alone.tasks.stop(PATIENCE).await;
    }

    #[tokio::test]
    async fn topics_stay_when_the_control_replica_ends_with_its_store() {
        let Alone { control, store, routing, tasks, mut run, _directory } = Alone::start().await;

        store.break_down();
        let mut metadata = control.watch();
        let ended = async { while metadata.changed().await.is_ok() {} };
        tokio::time::timeout(PATIENCE, ended).await.expect("the control replica ends with its store");

        assert!(run.as_mut().now_or_never().is_none(), "it runs until the broker stops");
        assert!(routing.topic("orders").is_some());
        tasks.stop(PATIENCE).await;
        run.await;
        assert!(routing.all().is_empty());
    }
}
