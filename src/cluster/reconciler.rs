//! Makes this broker's partitions what the metadata says: opens, closes, deletes, applies settings.
//!
//! One task owns the open partitions. It compares and acts whenever the metadata changes, and at the start deletes the
//! data of partitions that no topic has any more, which a crash during a deletion can leave behind.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::control::Control;
use super::routing::{Route, Routes, Routing};
use crate::metadata::{BrokerId, State, Topic};
use crate::partition::{self, Partition};
use crate::storage::GroupId;
use crate::task::Tasks;

/// Partitions that are opened at a time: each waits for the disk.
const OPENING: usize = 16;
/// After a failure the reconciler tries again this much later.
const RETRY: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Reconciler {
    pub(super) node: BrokerId,
    pub(super) control: Control,
    pub(super) env: partition::Env,
    pub(super) routing: Arc<Routing>,
    pub(super) tasks: Tasks,
    /// The last metadata that the partitions were made to follow.
    pub(super) reconciled: watch::Sender<Arc<State>>,
    pub(super) open: HashMap<GroupId, Partition>,
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
        let mut retry = self.delete_orphans().await.is_err();
        loop {
            let state = metadata.borrow_and_update().clone();
            retry |= !self.reconcile(&state).await;
            tokio::select! {
                () = stop.cancelled() => break,
                changed = metadata.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(RETRY), if retry => retry = self.delete_orphans().await.is_err(),
            }
        }
        self.routing.replace(Routes::new());
        futures_util::stream::iter(self.open.into_values())
            .for_each_concurrent(OPENING, |partition| async move { partition.close().await })
            .await;
    }

    /// Returns whether everything is as `state` says.
    async fn reconcile(&mut self, state: &Arc<State>) -> bool {
        let wanted = self.wanted(state);
        let missing: Vec<_> =
            wanted.iter().filter(|(group, ..)| !self.open.contains_key(group)).cloned().collect();
        let mut complete = true;
        let mut opening = futures_util::stream::iter(missing)
            .map(|(group, topic, number)| {
                let (node, env, tasks) = (self.node, &self.env, &self.tasks);
                async move { (group, number, open(node, group, &topic, number, env, tasks).await, topic) }
            })
            .buffer_unordered(OPENING);
        let mut opened = Vec::new();
        while let Some((group, number, result, topic)) = opening.next().await {
            match result {
                Ok(partition) => opened.push((group, partition)),
                Err(failure) => {
                    complete = false;
                    error!(topic = %topic.name, partition = number, error = %failure, "partition cannot be opened");
                }
            }
        }
        drop(opening);
        self.open.extend(opened);
        let keep: HashSet<GroupId> = wanted.iter().map(|(group, ..)| *group).collect();
        let gone: Vec<GroupId> = self.open.keys().filter(|group| !keep.contains(group)).copied().collect();
        self.route(state);
        for group in gone {
            complete &= self.delete(group).await;
        }
        // Also when something failed: the rest serves, health names what does not, and a retry follows.
        self.reconciled.send_replace(state.clone());
        complete
    }

    fn wanted(&self, state: &State) -> Vec<(GroupId, Arc<Topic>, u32)> {
        let mut wanted = Vec::new();
        for topic in state.topics() {
            for (number, assignment) in topic.partitions.iter().enumerate() {
                if assignment.replicas.contains(&self.node) {
                    let number = number as u32;
                    wanted.push((group_of(topic, number), topic.clone(), number));
                }
            }
        }
        wanted
    }

    fn route(&self, state: &State) {
        let before = self.routing.all();
        let mut routes = Routes::with_capacity(state.topic_count());
        for topic in state.topics() {
            let partitions = (0..topic.partitions.len() as u32)
                .map(|number| self.open.get(&group_of(topic, number)).cloned())
                .collect();
            let metrics = self.env.metrics.topic(&topic.name);
            routes.insert(topic.name.clone(), Arc::new(Route::new(topic.clone(), metrics, partitions)));
        }
        for name in before.keys().filter(|name| !routes.contains_key(*name)) {
            self.env.metrics.remove_topic(name);
        }
        self.routing.replace(routes);
    }

    /// Closes a partition that no topic has any more, and deletes its data.
    async fn delete(&mut self, group: GroupId) -> bool {
        if let Some(partition) = self.open.remove(&group) {
            partition.close().await;
        }
        let store = self.env.store.clone();
        match tokio::task::spawn_blocking(move || store.delete_group(group)).await {
            Ok(Ok(())) => true,
            Ok(Err(failure)) => {
                warn!(%group, error = %failure, "data of a deleted partition is still there; trying again");
                false
            }
            Err(_) => false,
        }
    }

    async fn delete_orphans(&mut self) -> Result<(), ()> {
        let store = self.env.store.clone();
        let stored = match tokio::task::spawn_blocking(move || store.groups()).await {
            Ok(Ok(stored)) => stored,
            Ok(Err(failure)) => {
                warn!(error = %failure, "the store's groups cannot be listed; trying again");
                return Err(());
            }
            Err(_) => return Err(()),
        };
        let state = self.control.state();
        let keep: HashSet<GroupId> = self.wanted(&state).into_iter().map(|(group, ..)| group).collect();
        let mut complete = true;
        for group in stored.into_iter().filter(|group| group.is_partition() && !keep.contains(group)) {
            info!(%group, "deleting the data of a partition that no topic has");
            complete &= self.delete(group).await;
        }
        if complete { Ok(()) } else { Err(()) }
    }
}

async fn open(
    node: BrokerId,
    group: GroupId,
    topic: &Topic,
    number: u32,
    env: &partition::Env,
    tasks: &Tasks,
) -> Result<Partition, partition::Error> {
    let voters: Vec<u64> = topic.partitions[number as usize].replicas.iter().map(|id| id.0).collect();
    let metrics = env.metrics.topic(&topic.name);
    let partition = Partition::open(group, node.0, &voters, metrics, env, tasks).await?;
    partition.ready().await?;
    Ok(partition)
}
