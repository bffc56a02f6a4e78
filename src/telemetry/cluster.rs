//! Brokers among themselves, what they share, and agreement.

use opentelemetry::KeyValue;

use super::catalog;
use super::instruments::{Instruments, Observer, Slot};

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
#[derive(Clone, Copy, Debug)]
pub struct ClusterLevels {
    /// Brokers in the cluster.
    pub brokers: u64,
    /// Whether this broker leads the control group.
    pub leader: bool,
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
        let raft = instruments.slot();
        instruments.level(catalog::RAFT_TERM, &raft, |levels: &RaftLevels| levels.term);
        instruments.level(catalog::RAFT_COMMIT_INDEX, &raft, |levels| levels.commit_index);
        instruments.each(catalog::RAFT_GROUPS, &raft, |levels, sink| {
            sink(levels.leading, &[KeyValue::new("role", "leader")]);
            sink(levels.following, &[KeyValue::new("role", "follower")]);
            sink(levels.leaderless, &[KeyValue::new("role", "leaderless")]);
        });
        ClusterMetrics { topics, cluster, raft }
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
