//! A toy machine, brokers in one process and the network between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::message::{Request, Response};
use super::{
    Config, Env, Group, Machine, MachineError, NoPeers, NodeId, Replica, Role, Status, Transport,
    TransportError,
};
use crate::storage::{self, Batch, CommandBuf, Durability, GroupId, Store};
use crate::task::Tasks;

const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const GROUP: GroupId = GroupId::partition(1, 0);

/// Remembers every command and counts what is done to it.
#[derive(Clone, Default)]
pub(super) struct Notebook {
    pub(super) seen: Arc<Mutex<Seen>>,
    /// A command that this version of the machine does not know.
    pub(super) unknown: Option<&'static str>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// All commands, those of a restored state included.
    pub(super) commands: Vec<String>,
    /// Log indexes of the commands applied since the machine was made.
    pub(super) applied: Vec<u64>,
    /// How many of `commands` readers may know of.
    pub(super) published: usize,
}

impl Notebook {
    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Machine for Notebook {
    /// The command's place, and the command.
    type Reply = (usize, String);

    fn apply(
        &mut self,
        index: u64,
        _: u64,
        command: &Bytes,
        batch: &mut Batch,
    ) -> Result<Self::Reply, MachineError> {
        let mut seen = self.seen.lock().unwrap();
        let command = String::from_utf8(command.to_vec()).unwrap();
        if self.unknown.is_some_and(|unknown| unknown == command) {
            return Err(MachineError { reason: command });
        }
        seen.commands.push(command.clone());
        seen.applied.push(index);
        let offset = seen.commands.len() as u64 - 1;
        let row = storage::IndexRow { offset, index, append_time_ms: offset as i64, detail: Bytes::new() };
        batch.put_index_row(GROUP, &row);
        Ok((offset as usize, command))
    }

    fn applied(&mut self) {
        let mut seen = self.seen.lock().unwrap();
        seen.published = seen.commands.len();
    }

    fn encode(&self) -> Vec<u8> {
        self.seen.lock().unwrap().commands.join("\n").into_bytes()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        let text = std::str::from_utf8(state).map_err(|error| MachineError { reason: error.to_string() })?;
        self.seen.lock().unwrap().commands = text.lines().map(str::to_owned).collect();
        Ok(())
    }
}

pub(super) fn command(text: &str) -> CommandBuf {
    let mut command = CommandBuf::with_capacity(text.len());
    command.extend_from_slice(text.as_bytes());
    command
}

/// A directory with one store, and what groups opened on it share.
pub(super) struct Broker {
    pub(super) env: Env,
    dir: tempfile::TempDir,
}

impl Broker {
    pub(super) fn new(config: Config, transport: Arc<dyn Transport>) -> Self {
        Self::on(tempfile::tempdir().unwrap(), config, transport)
    }

    pub(super) fn alone(config: Config) -> Self {
        Self::new(config, Arc::new(NoPeers))
    }

    fn on(dir: tempfile::TempDir, config: Config, transport: Arc<dyn Transport>) -> Self {
        let store = Store::open(&Self::settings(&dir), None).unwrap();
        Broker { env: Env::new(store, Tasks::new(), config, transport), dir }
    }

    fn settings(dir: &tempfile::TempDir) -> storage::Config {
        storage::Config { sync: storage::Sync::Interval, ..storage::Config::in_dir(dir.path()) }
    }

    /// Closes the store and opens it again. `group`, its only group, must be shut down.
    pub(super) async fn reopen(self, group: Group<Notebook>) -> Self {
        let Broker { env: Env { store, config, transport, tasks, .. }, dir } = self;
        drop(group);
        assert!(tasks.stop(PATIENCE).await, "the group's tasks end with it");
        store.close().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let store = loop {
            // The last handle of a stopped group goes when its last task is dropped.
            match Store::open(&Self::settings(&dir), None) {
                Ok(store) => break store,
                Err(storage::Error::Locked { .. }) if Instant::now() < deadline => {
                    tokio::task::yield_now().await
                }
                Err(error) => panic!("{error}"),
            }
        };
        Broker { env: Env::new(store, Tasks::new(), config, transport), dir }
    }

    pub(super) async fn open(&self, node: NodeId) -> (Group<Notebook>, Notebook) {
        self.open_version(node, Notebook::default()).await
    }

    pub(super) async fn open_version(&self, node: NodeId, notebook: Notebook) -> (Group<Notebook>, Notebook) {
        let group = Group::open(GROUP, node, notebook.clone(), &self.env).await.unwrap();
        (group, notebook)
    }
}

/// Waits until the status is as wished, and fails the test if it does not become so.
pub(super) async fn eventually(
    group: &Group<Notebook>,
    what: &str,
    wish: impl FnMut(&Status) -> bool,
) -> Status {
    let mut status = group.status();
    let reached = tokio::time::timeout(PATIENCE, status.wait_for(wish)).await;
    match reached {
        Ok(Ok(status)) => status,
        _ => panic!("never came true: {what}; status {:?}", group.status().now()),
    }
}

pub(super) async fn leads(group: &Group<Notebook>) {
    eventually(group, "the replica leads", Status::is_ready_leader).await;
}

/// Carries messages between replicas in this process; nodes can be cut off.
#[derive(Default)]
pub(super) struct Switch {
    replicas: Mutex<BTreeMap<NodeId, Replica>>,
    down: Mutex<BTreeSet<NodeId>>,
    /// Snapshots that were carried.
    pub(super) snapshots: Mutex<usize>,
}

/// One node's end of the switch.
pub(super) struct Port {
    pub(super) node: NodeId,
    pub(super) switch: Arc<Switch>,
}

impl Switch {
    pub(super) fn plug(&self, node: NodeId, replica: Replica) {
        self.replicas.lock().unwrap().insert(node, replica);
        self.down.lock().unwrap().remove(&node);
    }

    fn unplug(&self, node: NodeId) {
        self.replicas.lock().unwrap().remove(&node);
    }

    /// Loses every message from and to `node`.
    pub(super) fn cut(&self, node: NodeId) {
        self.down.lock().unwrap().insert(node);
    }

    pub(super) fn join(&self, node: NodeId) {
        self.down.lock().unwrap().remove(&node);
    }

    fn between(&self, from: NodeId, to: NodeId) -> Option<Replica> {
        let down = self.down.lock().unwrap();
        if down.contains(&from) || down.contains(&to) {
            return None;
        }
        self.replicas.lock().unwrap().get(&to).cloned()
    }
}

impl Transport for Port {
    fn call(
        &self,
        to: NodeId,
        _: GroupId,
        request: Request,
        _: Duration,
    ) -> BoxFuture<'static, Result<Response, TransportError>> {
        let replica = self.switch.between(self.node, to);
        if matches!(request, Request::Snapshot(_)) && replica.is_some() {
            *self.switch.snapshots.lock().unwrap() += 1;
        }
        Box::pin(async move {
            let unreachable = || TransportError::Unreachable { node: to, reason: "it is cut off".to_owned() };
            let answer = replica.ok_or_else(unreachable)?.handle(request).await;
            answer.map_err(|error| TransportError::Failed { node: to, reason: error.to_string() })
        })
    }
}

/// Three brokers with a replica each.
pub(super) struct Cluster {
    pub(super) switch: Arc<Switch>,
    brokers: BTreeMap<NodeId, Broker>,
    pub(super) groups: BTreeMap<NodeId, (Group<Notebook>, Notebook)>,
}

impl Cluster {
    pub(super) async fn start(checkpoint_bytes: u64) -> Self {
        let cluster = Self::start_unformed(checkpoint_bytes).await;
        cluster.groups[&1].0.bootstrap([1, 2, 3]).await.unwrap();
        cluster
    }

    /// Replicas that have no members yet.
    pub(super) async fn start_unformed(checkpoint_bytes: u64) -> Self {
        let config = Config {
            // Long enough that a machine with other work to do does not depose a leader in the middle of a test.
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(1_000),
            election_max: Duration::from_millis(2_000),
            checkpoint_bytes,
            ..Config::default()
        };
        let switch = Arc::new(Switch::default());
        let mut cluster = Cluster { switch, brokers: BTreeMap::new(), groups: BTreeMap::new() };
        for node in 1..=3 {
            let port = Port { node, switch: Arc::clone(&cluster.switch) };
            cluster.brokers.insert(node, Broker::new(config.clone(), Arc::new(port)));
            cluster.open(node).await;
        }
        cluster
    }

    /// Starts the replica of a node whose broker runs.
    async fn open(&mut self, node: NodeId) {
        let (group, notebook) = self.brokers[&node].open(node).await;
        self.switch.plug(node, group.replica());
        self.groups.insert(node, (group, notebook));
    }

    /// Stops a node and starts it again from its disk.
    pub(super) async fn restart(&mut self, node: NodeId) {
        let (group, _) = self.groups.remove(&node).unwrap();
        self.switch.cut(node);
        group.shutdown().await;
        let broker = self.brokers.remove(&node).unwrap();
        self.switch.unplug(node);
        self.brokers.insert(node, broker.reopen(group).await);
        self.open(node).await;
    }

    /// Stops a node, takes the last `lost` entries from its disk, and starts it again.
    pub(super) async fn restart_with_less(&mut self, node: NodeId, lost: u64) {
        let (group, _) = self.groups.remove(&node).unwrap();
        self.switch.cut(node);
        group.stop_without_checkpoint().await;
        self.switch.unplug(node);
        let store = &self.brokers[&node].env.store;
        let log = store.log(GROUP).unwrap();
        let last = log.last_index().unwrap().unwrap() - lost;
        let mut batch = Batch::new();
        log.truncate_after(&mut batch, last);
        batch.put_committed(GROUP, log.get(last).unwrap().unwrap().position());
        store.commit_and_wait(batch, Durability::Sync).await.unwrap();
        self.open(node).await;
    }

    /// Stops a node, takes one entry from its disk, and starts it again.
    pub(super) async fn restart_without(&mut self, node: NodeId, lost: u64) {
        let (group, _) = self.groups.remove(&node).unwrap();
        self.switch.cut(node);
        group.shutdown().await;
        self.switch.unplug(node);
        let store = &self.brokers[&node].env.store;
        let log = store.log(GROUP).unwrap();
        let later = log.read(lost + 1, u64::MAX, u64::MAX).unwrap();
        let mut batch = Batch::new();
        log.truncate_after(&mut batch, lost - 1);
        later.iter().for_each(|row| log.append(&mut batch, row));
        store.commit_and_wait(batch, Durability::Sync).await.unwrap();
        assert!(log.read(lost, u64::MAX, u64::MAX).is_err_and(|error| error.is_damage()));
        self.open(node).await;
    }

    /// Ends all writing at a node, which notices it only when it looks.
    pub(super) fn break_disk(&self, node: NodeId) {
        self.brokers[&node].env.store.break_down();
    }

    pub(super) fn group(&self, node: NodeId) -> &Group<Notebook> {
        &self.groups[&node].0
    }

    pub(super) fn notebook(&self, node: NodeId) -> &Notebook {
        &self.groups[&node].1
    }

    /// The node that leads, among those not named.
    pub(super) async fn leader(&self, except: &[NodeId]) -> NodeId {
        let candidates = self.groups.iter().filter(|(node, _)| !except.contains(node));
        let waits = candidates.map(|(node, (group, _))| {
            Box::pin(async move {
                leads(group).await;
                *node
            })
        });
        futures_util::future::select_all(waits).await.0
    }

    /// Waits until `node` applied all that `leader` has in its log.
    pub(super) async fn catches_up(&self, node: NodeId, leader: NodeId) {
        let last = self.group(leader).status().now().last_index;
        eventually(self.group(node), "the replica caught up", |status| status.applied >= last).await;
    }

    pub(super) async fn stop(self) {
        for (group, _) in self.groups.values() {
            assert_eq!(group.status().now().failed.as_ref().map(ToString::to_string), None);
            group.shutdown().await;
            assert_eq!(group.status().now().role, Role::Stopped);
        }
    }
}
