//! A partition of the cluster, wherever its leader is: through the replica here, or through the leader elsewhere.
//!
//! Batches go to the leader. Reads are served by the replica here as far as it reaches, since what it has applied is
//! committed; beyond that, and without one, by the leader. While a partition has no leader, reads find nothing new and
//! readers are woken when it has one again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::peers::Hub;
use crate::clock::Timestamp;
use crate::metadata::BrokerId;
use crate::partition::signal::{Listeners, Signal};
use crate::partition::view::Bounds;
use crate::partition::{self, Committed, Partition, StoredBatch, Timing};
use crate::proto::internal::PartitionReport;
use crate::proto::internal::locate_request::What;
use crate::raft::{self, NodeId, Role};
use crate::record::command::AppendWriter;
use crate::record::{FrameHeader, Offset};
use crate::storage::GroupId;
use crate::task::{Criticality, Tasks};
use crate::telemetry::TopicMetrics;

/// Batches that may wait to be forwarded, beside the limit in bytes.
const QUEUE_BATCHES: usize = 1_024;
/// Readers that met a partition without a leader look again after this time.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A leader that no majority has followed for so long is none.
pub const DESERTED: Duration = Duration::from_secs(3);
/// How long a leader that was replaced may take to answer what it got before.
const REPLACED: Duration = Duration::from_secs(2);
/// How long a reader waits for a partition to have a leader.
const LEADER_WAIT: Duration = Duration::from_secs(2);
const LEADER_LOOK: Duration = Duration::from_millis(10);
/// How long a partition that this broker has just come to know may be without a leader: all those of a new topic elect
/// at the same time.
const FIRST_LEADER_WAIT: Duration = Duration::from_secs(5);
/// A member that was silent for so long, or lacks so many entries, lags.
const SILENT: Duration = Duration::from_secs(2);
const BEHIND_ENTRIES: u64 = 1_000;

/// See the module. Clones share it.
#[derive(Clone)]
pub struct PartitionRef(Arc<Inner>);

struct Inner {
    group: GroupId,
    node: BrokerId,
    hub: Hub,
    env: partition::Env,
    topic: Arc<TopicMetrics>,
    replica: ArcSwapOption<Partition>,
    holders: Mutex<Arc<[NodeId]>>,
    known_since: tokio::time::Instant,
    /// Why the replica here cannot be opened, if it is damaged.
    broken: Mutex<Option<partition::Error>>,
    reported: Mutex<Reported>,
    forwarder: OnceLock<mpsc::Sender<Forward>>,
    closed: AtomicBool,
    tasks: Tasks,
}

/// What other brokers say of the partition, and who is woken when they say something new.
#[derive(Default)]
struct Reported {
    leader: Option<NodeId>,
    term: u64,
    bounds: Bounds,
    size_bytes: u64,
    lagging: Vec<NodeId>,
    damage: Option<String>,
    listeners: Listeners,
}

/// A batch on its way to the leader.
struct Forward {
    header: FrameHeader,
    batch: Bytes,
    received: Instant,
    /// The batch's share of the broker's buffer, held until it is answered.
    permit: OwnedSemaphorePermit,
    done: oneshot::Sender<Result<Committed, partition::Error>>,
}

impl PartitionRef {
    pub(super) fn new(
        group: GroupId,
        node: BrokerId,
        hub: Hub,
        env: partition::Env,
        topic: Arc<TopicMetrics>,
        tasks: Tasks,
    ) -> Self {
        PartitionRef(Arc::new(Inner {
            group,
            node,
            hub,
            env,
            topic,
            replica: ArcSwapOption::empty(),
            holders: Mutex::default(),
            known_since: tokio::time::Instant::now(),
            broken: Mutex::default(),
            reported: Mutex::default(),
            forwarder: OnceLock::new(),
            closed: AtomicBool::new(false),
            tasks,
        }))
    }

    /// The partition's Raft group.
    pub fn group(&self) -> GroupId {
        self.0.group
    }

    /// The replica on this broker, if it has one.
    pub fn replica(&self) -> Option<Partition> {
        self.0.replica.load().as_deref().cloned()
    }

    pub(super) fn is(&self, other: &PartitionRef) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Takes note of the brokers that have a replica.
    pub(super) fn set_holders(&self, holders: Arc<[NodeId]>) {
        *lock(&self.0.holders) = holders;
    }

    /// The replica here is damaged so that it cannot be opened. Returns whether that is new.
    pub(super) fn set_broken(&self, damage: partition::Error) -> bool {
        lock(&self.0.broken).replace(damage).is_none()
    }

    pub(super) fn set_replica(&self, replica: Option<Partition>) {
        lock(&self.0.broken).take();
        // Held all the time: who begins to listen meanwhile must not miss the new replica.
        let mut reported = self.reported();
        if let Some(replica) = &replica {
            for (signal, slot) in reported.listeners.alive() {
                replica.view().listen(&signal, slot);
            }
        }
        self.0.replica.store(replica.map(Arc::new));
        reported.listeners.ring();
    }

    /// The counters of the topic.
    pub fn topic(&self) -> &Arc<TopicMetrics> {
        &self.0.topic
    }

    /// Who leads, as far as this broker knows. A leader that no majority follows any more, or that is not reached, does
    /// not count.
    pub fn leader(&self) -> Option<BrokerId> {
        let here = self.replica().and_then(|replica| self.0.hub.leader_of(&replica.members()));
        here.or_else(|| self.reported().leader).map(BrokerId)
    }

    /// Whether nobody leads, although there has been time for the first election.
    pub fn lacks_leader(&self) -> bool {
        self.0.known_since.elapsed() >= FIRST_LEADER_WAIT && self.leader().is_none()
    }

    /// The newest term that this broker knows of.
    pub fn term(&self) -> u64 {
        let here = self.replica().map_or(0, |replica| replica.status().now().term);
        here.max(self.reported().term)
    }

    /// Whether this broker leads and may answer for the partition.
    pub fn leads_here(&self) -> bool {
        self.leading().is_some()
    }

    /// Whether this broker leads, once somebody does who has applied what was agreed on before. Waits for that a moment.
    async fn leads_here_soon(&self) -> bool {
        let decided = async {
            loop {
                if self.leads_here() {
                    return true;
                }
                if self.leader_elsewhere().is_ok() || self.is_closed() {
                    return false;
                }
                tokio::time::sleep(LEADER_LOOK).await;
            }
        };
        tokio::time::timeout(LEADER_WAIT, decided).await.unwrap_or(false)
    }

    /// The replica here if it takes batches, or can say best why nobody does.
    fn taking(&self) -> Option<Partition> {
        let replica = self.replica()?;
        let status = replica.status().now();
        let alone = status.voters.len() < 2;
        let takes =
            status.role == Role::Leader || status.role == Role::Stopped && alone && !replica.is_closed();
        takes.then_some(replica)
    }

    /// Whether this broker leads at some moment after the call, and has applied what was agreed on before it. Waits a
    /// moment for somebody to lead.
    async fn surely_leads_here(&self) -> bool {
        let Some(replica) = self.replica() else { return false };
        self.leads_here_soon().await && replica.members().confirm(LEADER_WAIT).await.is_ok()
    }

    fn leading(&self) -> Option<Partition> {
        self.replica().filter(|replica| replica.status().now().is_ready_leader())
    }

    /// Why the replica here cannot take part, if that is so.
    pub fn failed(&self) -> Option<raft::Error> {
        self.replica().and_then(|replica| replica.status().now().failed.clone())
    }

    /// What the replica here has lost of what it wrote, if that is known.
    pub fn damage(&self) -> Option<String> {
        let broken = || lock(&self.0.broken).as_ref().map(|error| partition::in_full(error));
        self.replica().and_then(|replica| replica.damage()).or_else(broken)
    }

    /// The same of the leader's replica.
    pub fn leader_damage(&self) -> Option<String> {
        if self.leads_here() { self.damage() } else { self.reported().damage.clone() }
    }

    /// Replicas that do not keep up, as the leader says.
    pub fn lagging(&self) -> Vec<BrokerId> {
        let lagging = match self.leading() {
            Some(replica) => lagging(&replica),
            None => self.reported().lagging.clone(),
        };
        lagging.into_iter().map(BrokerId).collect()
    }

    /// What can be read, as far as this broker knows.
    pub fn bounds(&self) -> Bounds {
        let reported = self.reported().bounds;
        match self.replica() {
            Some(replica) => {
                let here = replica.bounds();
                Bounds {
                    log_start: here.log_start.max(reported.log_start),
                    high_watermark: here.high_watermark.max(reported.high_watermark),
                }
            }
            None => reported,
        }
    }

    /// What can be read, as the leader knows it: all that was acknowledged before the call. A leader that a majority does not
    /// follow does not know.
    ///
    /// # Errors
    /// The leader is not known or not reached.
    pub async fn fresh_bounds(&self) -> Result<Bounds, partition::Error> {
        if self.surely_leads_here().await {
            return Ok(self.bounds());
        }
        let leader = self.leader_elsewhere()?;
        let (bounds, _) = self.0.hub.locate(leader, self.0.group, None).await?;
        self.learn_bounds(bounds);
        Ok(self.bounds())
    }

    /// [`PartitionRef::bounds`], refreshed if `offset` lies beyond what this broker knows of.
    ///
    /// # Errors
    /// As [`PartitionRef::fresh_bounds`].
    pub async fn bounds_for(&self, offset: Offset) -> Result<Bounds, partition::Error> {
        let known = self.bounds();
        if offset <= known.high_watermark {
            return Ok(known);
        }
        self.fresh_bounds().await
    }

    /// Bytes of retained batches.
    pub fn size_bytes(&self) -> u64 {
        match self.leading() {
            Some(replica) => replica.view().size_bytes(),
            None => match self.reported().size_bytes {
                0 => self.replica().map_or(0, |replica| replica.view().size_bytes()),
                reported => reported,
            },
        }
    }

    /// Enqueues a batch that was skimmed; see [`Partition::submit`]. If another broker leads, it is forwarded there, or
    /// refused if `may_forward` is false.
    ///
    /// # Errors
    /// As [`Partition::submit`], and [`raft::Error::NotLeader`]. Nothing was written.
    pub async fn submit(
        &self,
        batch: Bytes,
        header: FrameHeader,
        received: Instant,
        may_forward: bool,
    ) -> Result<oneshot::Receiver<Result<Committed, partition::Error>>, partition::Error> {
        if let Some(replica) = self.taking() {
            return replica.submit(batch, header, received).await;
        }
        if self.is_closed() {
            return Err(partition::Error::Stopped);
        }
        // A client that does not look for leaders itself is spared a short election.
        if may_forward
            && self.leader_elsewhere().is_err()
            && self.leads_here_soon().await
            && let Some(replica) = self.taking()
        {
            return replica.submit(batch, header, received).await;
        }
        let leader = self.leader_elsewhere()?;
        if !may_forward {
            return Err(partition::Error::Raft(raft::Error::NotLeader { leader: Some(leader) }));
        }
        let env = &self.0.env;
        let bytes = u32::try_from((batch.len() as u64).min(env.config.buffer_bytes)).unwrap_or(u32::MAX);
        let room = env.buffer.clone().acquire_many_owned(bytes);
        let permit = match tokio::time::timeout(env.config.admit_timeout, room).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(partition::Error::Stopped),
            Err(_) => return Err(partition::Error::Busy),
        };
        let (done, outcome) = oneshot::channel();
        let forward = Forward { header, batch, received, permit, done };
        self.forwarder().send(forward).await.map_err(|_| partition::Error::Stopped)?;
        Ok(outcome)
    }

    /// Committed batches from the one that holds `from` on; see [`Partition::read`].
    ///
    /// # Errors
    /// As [`Partition::read`].
    pub async fn read(&self, from: Offset, max_bytes: usize) -> Result<Vec<StoredBatch>, partition::Error> {
        if let Some(replica) = self.replica()
            && self.reaches(&replica, from)
        {
            match replica.read(from, max_bytes).await {
                Err(partition::Error::Stopped) => {}
                Err(error) if error.is_damage() => return self.read_elsewhere(from, max_bytes, error).await,
                result => return result,
            }
        }
        let bounds = match self.bounds_for(from).await {
            Ok(bounds) => bounds,
            Err(error) if error.is_damage() => return Err(error),
            Err(_) => return Ok(self.look_again()),
        };
        if from == bounds.high_watermark {
            return Ok(Vec::new());
        }
        if !(bounds.log_start..bounds.high_watermark).contains(&from) {
            return Err(partition::Error::OffsetOutOfRange {
                offset: from,
                log_start: bounds.log_start,
                high_watermark: bounds.high_watermark,
            });
        }
        let read = match self.leader_elsewhere() {
            Ok(leader) => self.0.hub.read(leader, self.0.group, from, max_bytes).await,
            Err(error) => Err(error),
        };
        match read {
            Ok((bounds, batches)) => {
                self.learn_bounds(bounds);
                Ok(batches)
            }
            Err(partition::Error::Raft(raft::Error::NotLeader { .. })) => Ok(self.look_again()),
            // It was deposed, or has just started, and does not know yet what others do.
            Err(partition::Error::OffsetOutOfRange { high_watermark, .. }) if from > high_watermark => {
                Ok(self.look_again())
            }
            Err(error) if error.is_damage() => self.read_elsewhere(from, max_bytes, error).await,
            Err(error) => Err(error),
        }
    }

    /// Reads what one replica has lost from another one that has it.
    async fn read_elsewhere(
        &self,
        from: Offset,
        max_bytes: usize,
        lost: partition::Error,
    ) -> Result<Vec<StoredBatch>, partition::Error> {
        let holders = Arc::clone(&lock(&self.0.holders));
        for node in holders.iter().filter(|node| **node != self.0.node.0) {
            match self.0.hub.read(*node, self.0.group, from, max_bytes).await {
                Ok((_, batches)) if !batches.is_empty() => return Ok(batches),
                _ => {}
            }
        }
        Err(lost)
    }

    /// Whether the replica here can tell what is at `from`. It may have led longer than it knows, so that others have more.
    fn reaches(&self, replica: &Partition, from: Offset) -> bool {
        let end = replica.bounds().high_watermark;
        from < end || from == end && self.leads_here()
    }

    /// Wakes readers a moment later, because nobody else may.
    fn look_again(&self) -> Vec<StoredBatch> {
        let partition = self.clone();
        self.0.tasks.spawn_until_stopped("look again", Criticality::BestEffort, async move {
            tokio::time::sleep(LOOK_AGAIN).await;
            partition.reported().listeners.ring();
        });
        Vec::new()
    }

    /// Offset of the first record that was appended at or after `time`; the high watermark if there is none.
    ///
    /// # Errors
    /// The store failed, or the leader is not reached.
    pub async fn offset_at(&self, time: Timestamp) -> Result<Offset, partition::Error> {
        if self.surely_leads_here().await
            && let Some(replica) = self.leading()
        {
            return replica.offset_at(time).await;
        }
        let leader = self.leader_elsewhere()?;
        let (bounds, found) = self.0.hub.locate(leader, self.0.group, Some(What::OffsetAtMs(time.0))).await?;
        self.learn_bounds(bounds);
        Ok(Offset(found.offset))
    }

    /// When the record at `offset` was appended; none beyond the high watermark.
    ///
    /// # Errors
    /// The store failed, or the leader is not reached.
    pub async fn append_time(&self, offset: Offset) -> Result<Option<Timestamp>, partition::Error> {
        if let Some(replica) = self.replica()
            && self.reaches(&replica, offset)
        {
            return replica.append_time(offset).await;
        }
        let leader = self.leader_elsewhere()?;
        let (bounds, found) =
            self.0.hub.locate(leader, self.0.group, Some(What::AppendTimeOf(offset.0))).await?;
        self.learn_bounds(bounds);
        Ok(found.append_time_ms.map(Timestamp))
    }

    /// [`PartitionRef::append_time`] if that is known without asking or reading.
    pub fn append_time_in_memory(&self, offset: Offset) -> Option<Timestamp> {
        self.replica()?.view().append_time(offset)
    }

    /// Deletes the records below `before` and gives the new log start.
    ///
    /// # Errors
    /// Agreement or the store failed, or the leader is not reached.
    pub async fn trim(&self, before: Offset) -> Result<Offset, partition::Error> {
        self.leads_here_soon().await;
        match self.leading() {
            Some(replica) => replica.trim(before).await,
            None => self.0.hub.trim(self.leader_elsewhere()?, self.0.group, before).await,
        }
    }

    /// Rings `signal` at `slot` whenever something new can be read.
    pub fn listen(&self, signal: &Arc<Signal>, slot: usize) {
        let mut reported = self.reported();
        reported.listeners.add(signal, slot);
        if let Some(replica) = self.replica() {
            replica.view().listen(signal, slot);
        }
    }

    /// Stops ringing `signal` at `slot`.
    pub fn unlisten(&self, signal: &Arc<Signal>, slot: usize) {
        let mut reported = self.reported();
        reported.listeners.remove(signal, slot);
        if let Some(replica) = self.replica() {
            replica.view().unlisten(signal, slot);
        }
    }

    /// Whether the partition is gone, because its topic was deleted or the broker stops.
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// Wakes all readers, to make them look again.
    pub(super) fn ring(&self) {
        self.reported().listeners.ring();
    }

    pub(super) fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.reported().listeners.ring();
    }

    /// Returns when another broker than `leader` has led for so long that an answer of that one would have come.
    async fn replaced(&self, leader: NodeId) {
        let mut since: Option<tokio::time::Instant> = None;
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            match self.leader().filter(|now| now.0 != leader) {
                None => since = None,
                Some(_) => {
                    if since.get_or_insert_with(tokio::time::Instant::now).elapsed() >= REPLACED {
                        return;
                    }
                }
            }
        }
    }

    /// What the other brokers should know, if this one leads.
    pub(super) fn report(&self) -> Option<PartitionReport> {
        let replica = self.leading()?;
        let bounds = replica.bounds();
        Some(PartitionReport {
            group: self.0.group.0,
            term: replica.status().now().term,
            log_start: bounds.log_start.0,
            high_watermark: bounds.high_watermark.0,
            size_bytes: replica.view().size_bytes(),
            lagging: lagging(&replica),
            resigned: false,
            damage: replica.damage().unwrap_or_default(),
        })
    }

    /// Takes up what the broker `node` reports.
    pub(super) fn learn(&self, node: NodeId, report: &PartitionReport) {
        self.reported().take_up(node, report);
    }

    /// Nothing is heard of the broker `node` any more.
    pub(super) fn lost(&self, node: NodeId) {
        let mut reported = self.reported();
        if reported.leader == Some(node) {
            reported.leader = None;
        }
    }

    fn learn_bounds(&self, bounds: Bounds) {
        self.reported().raise(bounds);
    }

    /// The leader, if it is known and is not this broker.
    fn leader_elsewhere(&self) -> Result<NodeId, partition::Error> {
        let this = self.0.node.0;
        let here = self.replica().and_then(|replica| replica.status().now().leader);
        let leader = here.or_else(|| self.reported().leader).filter(|leader| *leader != this);
        leader.ok_or_else(|| self.no_leader())
    }

    /// Why nobody leads: the only replica is damaged, or an election is under way.
    fn no_leader(&self) -> partition::Error {
        let broken = lock(&self.0.broken).clone();
        let alone = **lock(&self.0.holders) == [self.0.node.0];
        let broken = broken.filter(|_| alone);
        broken.unwrap_or(partition::Error::Raft(raft::Error::NotLeader { leader: None }))
    }

    fn forwarder(&self) -> &mpsc::Sender<Forward> {
        self.0.forwarder.get_or_init(|| {
            let (sender, queue) = mpsc::channel(QUEUE_BATCHES);
            let partition = Arc::downgrade(&self.0);
            self.0.tasks.spawn_until_stopped(
                "forward batches",
                Criticality::BestEffort,
                forward(partition, queue),
            );
            sender
        })
    }

    fn reported(&self) -> MutexGuard<'_, Reported> {
        lock(&self.0.reported)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reported {
    fn take_up(&mut self, node: NodeId, report: &PartitionReport) {
        if report.resigned {
            if self.leader == Some(node) && report.term >= self.term {
                self.leader = None;
            }
            return;
        }
        if report.term < self.term {
            return;
        }
        self.leader = Some(node);
        self.term = report.term;
        self.size_bytes = report.size_bytes;
        self.lagging.clone_from(&report.lagging);
        self.damage = Some(report.damage.clone()).filter(|damage| !damage.is_empty());
        let (log_start, high_watermark) = (Offset(report.log_start), Offset(report.high_watermark));
        self.raise(Bounds { log_start, high_watermark });
        self.listeners.ring();
    }

    /// Takes up bounds, which may be older than those that are known: reports wait for a broker that was stopped, and calls
    /// overtake them. Neither bound ever moves back.
    fn raise(&mut self, bounds: Bounds) {
        self.bounds.log_start = self.bounds.log_start.max(bounds.log_start);
        self.bounds.high_watermark = self.bounds.high_watermark.max(bounds.high_watermark);
    }
}

/// Members that do not keep up with a leader.
fn lagging(leader: &Partition) -> Vec<NodeId> {
    let committed = leader.status().now().committed;
    let followers = leader.members().followers();
    let lags = |follower: &raft::Follower| {
        let silent = follower.heard.is_none_or(|heard| heard > SILENT);
        let missing = committed.map_or(0, |at| at + 1)
            - follower.matched.map_or(0, |at| at + 1).min(committed.map_or(0, |at| at + 1));
        silent || missing > BEHIND_ENTRIES
    };
    followers.iter().filter(|follower| lags(follower)).map(|follower| follower.node).collect()
}

/// Sends batches to the leader, one message at a time, so that their order stays.
async fn forward(partition: std::sync::Weak<Inner>, mut queue: mpsc::Receiver<Forward>) {
    let mut gathered = Vec::new();
    while queue.recv_many(&mut gathered, QUEUE_BATCHES).await > 0 {
        let mut rest = gathered.drain(..).peekable();
        while rest.peek().is_some() {
            let Some(inner) = partition.upgrade() else { return };
            let partition = PartitionRef(inner);
            let entry_bytes = partition.0.env.config.entry_bytes as usize;
            let mut command = BytesMut::new();
            let mut writer = AppendWriter::new(&mut command, 0);
            let mut waiting = Vec::new();
            let mut bytes = 0;
            while let Some(Forward { header, batch, received, permit, done }) =
                rest.next_if(|next| bytes == 0 || bytes + next.batch.len() <= entry_bytes)
            {
                bytes += batch.len();
                writer.push(&header, &batch);
                waiting.push((received, permit, done));
            }
            writer.finish();
            let sent = Instant::now();
            let results = match partition.leader_elsewhere() {
                Ok(leader) => tokio::select! {
                    appended = partition.0.hub.append(leader, partition.0.group, command.freeze()) => {
                        appended.map_err(partition::Error::from)
                    }
                    // It may be one that no majority follows any more, and which has not noticed.
                    () = partition.replaced(leader) => Err(partition::Error::Raft(raft::Error::OutcomeUnknown)),
                },
                Err(error) => Err(error),
            };
            let arrived = Instant::now();
            match results {
                Ok(results) => {
                    let mut results = results.into_iter();
                    for (received, permit, done) in waiting {
                        let result = results
                            .next()
                            .unwrap_or(Err(partition::Error::Raft(raft::Error::OutcomeUnknown)));
                        let _ = done.send(result.map(|forwarded| Committed {
                            base_offset: forwarded.base_offset,
                            append_time: forwarded.append_time,
                            duplicate: forwarded.duplicate,
                            timing: Timing {
                                received,
                                proposed: sent,
                                appended: arrived,
                                committed: arrived,
                                applied: arrived,
                            },
                        }));
                        drop(permit);
                    }
                }
                Err(error) => {
                    for (_, permit, done) in waiting {
                        let _ = done.send(Err(error.clone()));
                        drop(permit);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
impl PartitionRef {
    /// A partition that has no replica here.
    pub(crate) fn fake(number: u32) -> Self {
        use crate::cluster::identity::Identity;
        use crate::storage::{Disk, Store, Sync};
        use crate::telemetry::{Metrics, Tracer};

        let (tasks, metrics) = (Tasks::new(), Metrics::detached());
        let store = Store::simulated(&Disk::new(), Sync::Always, Arc::new(|_| {})).expect("a store");
        let raft =
            raft::Env::new(store.clone(), tasks.clone(), raft::Config::default(), Arc::new(raft::NoPeers));
        let node = BrokerId(1);
        let identity = Identity { cluster: uuid::Uuid::nil(), broker: node };
        let hub = Hub::new(identity, metrics.clone(), Tracer::disabled(), &tasks);
        let (topic, clock) = (metrics.topic("orders"), crate::clock::Clock::system());
        let env = partition::Env::new(store, raft, clock, metrics, partition::Config::default());
        PartitionRef::new(GroupId::partition(1, number), node, hub, env, topic, tasks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_new_partition_may_be_without_a_leader_for_a_while() {
        let (led, partition) = (PartitionRef::fake(0), PartitionRef::fake(0));
        assert!(!partition.lacks_leader());
        tokio::time::advance(FIRST_LEADER_WAIT - Duration::from_millis(1)).await;
        assert!(!partition.lacks_leader(), "all those of a new topic elect at the same time");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(partition.lacks_leader());
        led.reported().take_up(2, &report(1, 1));
        assert!(!led.lacks_leader());
        let resigned = PartitionReport { resigned: true, ..report(1, 1) };
        led.reported().take_up(2, &resigned);
        assert!(led.lacks_leader(), "it is new once");
    }

    fn report(term: u64, high_watermark: u64) -> PartitionReport {
        PartitionReport { term, log_start: 1, high_watermark, ..Default::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_does_not_answer_is_waited_for_until_another_has_led_for_a_while() {
        let partition = PartitionRef::fake(0);
        let answers_late = async |limit| tokio::time::timeout(limit, partition.replaced(2)).await.is_err();
        partition.reported().take_up(2, &report(1, 1));
        assert!(answers_late(10 * REPLACED).await, "it leads");
        partition.reported().take_up(2, &PartitionReport { resigned: true, ..report(1, 1) });
        assert!(answers_late(10 * REPLACED).await, "nobody leads");
        partition.reported().take_up(3, &report(2, 1));
        assert!(answers_late(REPLACED).await, "its answer may be on its way");
        assert!(!answers_late(2 * REPLACED).await);
    }

    #[test]
    fn an_old_report_takes_back_nothing_that_is_known() {
        let mut reported = Reported::default();
        reported.take_up(2, &report(3, 30));
        reported.raise(Bounds { log_start: Offset(5), high_watermark: Offset(40) });
        reported.take_up(2, &report(3, 36));
        reported.take_up(1, &report(2, 50));
        assert_eq!((reported.leader, reported.term), (Some(2), 3));
        assert_eq!((reported.bounds.log_start, reported.bounds.high_watermark), (Offset(5), Offset(40)));
        reported.take_up(1, &report(4, 41));
        assert_eq!((reported.leader, reported.bounds.high_watermark), (Some(1), Offset(41)));
    }
}
