//! Brokers among themselves, what they share, and agreement.

use opentelemetry::KeyValue;

use std::time::Duration;

use super::catalog;
use super::instruments::{Count, Distribution, Instruments, Observer, Slot};

/// Numbers of things that topics are made of.
#[derive(Clone, Copy, Debug)]
pub struct TopicLevels {
    /// Topics of the cluster.
    pub topics: u64,
    /// Their partitions.
    pub partitions: u64,
    /// Replicas of partitions on this broker.
    pub replicas: u64,
}

/// Levels of the cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterLevels {
    /// Brokers in the cluster.
    pub brokers: u64,
    /// Whether this broker leads the control group.
    pub leader: bool,
    /// Partitions without a leader.
    pub leaderless: u64,
    /// Those of them of whose replicas no majority is reached, so that none can be elected.
    pub offline: u64,
    /// Partitions that this broker leads and of which replicas do not keep up.
    pub under_replicated: u64,
    /// Partitions whose replicas move, or wait until they can.
    pub moving: u64,
    /// Partitions that this broker leads although another one should.
    pub misplaced: u64,
    /// The other brokers.
    pub peers: Vec<PeerLevels>,
}

/// Another broker.
#[derive(Clone, Debug)]
pub struct PeerLevels {
    /// Its number.
    pub peer: String,
    /// Whether it is reached.
    pub connected: bool,
    /// Most log entries that it lacks in any group that this broker leads.
    pub lag: u64,
}

/// Levels of agreement.
#[derive(Clone, Copy, Debug)]
pub struct RaftLevels {
    /// The control group's term.
    pub term: u64,
    /// The control group's commit index.
    pub commit_index: u64,
    /// Groups that this broker leads.
    pub leading: u64,
    /// Groups in which it follows.
    pub following: u64,
    /// Groups without a leader, as far as this broker knows.
    pub leaderless: u64,
}

/// Instruments of the cluster.
#[derive(Debug)]
pub struct ClusterMetrics {
    topics: Slot<TopicLevels>,
    cluster: Slot<ClusterLevels>,
    raft: Slot<RaftLevels>,
    replication: Distribution,
    elections: Count,
    snapshots: Count,
    moves: Count,
    repairs: Count,
}

impl ClusterMetrics {
    pub(super) fn new(instruments: &Instruments) -> Self {
        let topics = instruments.slot();
        instruments.level(catalog::TOPICS, &topics, |levels: &TopicLevels| levels.topics);
        instruments.level(catalog::PARTITIONS, &topics, |levels| levels.partitions);
        instruments.level(catalog::REPLICAS, &topics, |levels| levels.replicas);
        let cluster = instruments.slot();
        instruments.level(catalog::CLUSTER_SIZE, &cluster, |levels: &ClusterLevels| levels.brokers);
        instruments.level(catalog::CLUSTER_LEADER, &cluster, |levels| u64::from(levels.leader));
        instruments.each(catalog::CLUSTER_PARTITIONS, &cluster, |levels, sink| {
            sink(levels.leaderless, &[KeyValue::new("state", "leaderless")]);
            sink(levels.offline, &[KeyValue::new("state", "offline")]);
            sink(levels.under_replicated, &[KeyValue::new("state", "under_replicated")]);
            sink(levels.moving, &[KeyValue::new("state", "moving")]);
            sink(levels.misplaced, &[KeyValue::new("state", "misplaced")]);
        });
        instruments.each(catalog::PEER_CONNECTED, &cluster, |levels, sink| {
            for peer in &levels.peers {
                sink(u64::from(peer.connected), &[KeyValue::new("peer", peer.peer.clone())]);
            }
        });
        instruments.each(catalog::REPLICATION_LAG, &cluster, |levels, sink| {
            for peer in &levels.peers {
                sink(peer.lag, &[KeyValue::new("peer", peer.peer.clone())]);
            }
        });
        let raft = instruments.slot();
        instruments.level(catalog::RAFT_TERM, &raft, |levels: &RaftLevels| levels.term);
        instruments.level(catalog::RAFT_COMMIT_INDEX, &raft, |levels| levels.commit_index);
        instruments.each(catalog::RAFT_GROUPS, &raft, |levels, sink| {
            sink(levels.leading, &[KeyValue::new("role", "leader")]);
            sink(levels.following, &[KeyValue::new("role", "follower")]);
            sink(levels.leaderless, &[KeyValue::new("role", "leaderless")]);
        });
        ClusterMetrics {
            topics,
            cluster,
            raft,
            replication: instruments.distribution(catalog::REPLICATION_LATENCY),
            elections: instruments.count(catalog::RAFT_ELECTIONS),
            snapshots: instruments.count(catalog::RAFT_SNAPSHOTS),
            moves: instruments.count(catalog::PARTITION_MOVES),
            repairs: instruments.count(catalog::REPLICA_REPAIRS),
        }
    }

    /// A follower has entries on its disk, the last of which was appended here so long ago.
    pub fn replicated(&self, took: Duration) {
        self.replication.record_duration(took, None);
    }

    /// This broker became the leader of a group.
    pub fn elected(&self) {
        self.elections.add(1);
    }

    /// This broker took over a snapshot.
    pub fn installed(&self) {
        self.snapshots.add(1);
    }

    /// The replicas of a partition that this broker leads were moved.
    pub fn moved(&self) {
        self.moves.add(1);
    }

    /// A damaged replica of a partition that this broker leads has everything again.
    pub fn repaired(&self) {
        self.repairs.add(1);
    }

    pub(super) fn observe_topics(&self, observer: Observer<TopicLevels>) {
        self.topics.set(observer);
    }

    pub(super) fn observe_cluster(&self, observer: Observer<ClusterLevels>) {
        self.cluster.set(observer);
    }

    pub(super) fn observe_raft(&self, observer: Observer<RaftLevels>) {
        self.raft.set(observer);
    }
}
