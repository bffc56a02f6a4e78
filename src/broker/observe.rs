//! What metrics read of the broker when they are collected.

use std::sync::Arc;

use super::Broker;
use super::cluster::is_to_move;
use crate::cluster::partition_ref::{DESERTED, PartitionRef};
use crate::metadata::BrokerId;
use crate::raft::{Members, Role};
use crate::telemetry::{BufferLevels, ClusterLevels, PeerLevels, RaftLevels, StorageLevels, TopicLevels};

impl Broker {
    /// Registers the broker's observers. They hold it weakly, so that a stopped broker is not kept.
    pub(super) fn observe(&self) {
        let metrics = &self.0.metrics;
        macro_rules! observer {
            ($read:path) => {{
                let weak = Arc::downgrade(&self.0);
                Arc::new(move || $read(&Broker(weak.upgrade()?)))
            }};
        }
        metrics.observe_topics(observer!(Broker::topic_levels));
        metrics.observe_cluster(observer!(Broker::cluster_levels));
        metrics.observe_raft(observer!(Broker::raft_levels));
        metrics.observe_storage(observer!(Broker::storage_levels));
        metrics.observe_produce_buffer(observer!(Broker::buffer_levels));
        metrics.observe_consume(observer!(Broker::consume_levels));
        metrics.observe_groups(observer!(Broker::group_levels));
    }

    fn topic_levels(&self) -> Option<TopicLevels> {
        let routes = self.0.open.get()?.cluster.routing().all();
        let partitions = || routes.values().flat_map(|route| &route.partitions);
        Some(TopicLevels {
            topics: routes.len() as u64,
            partitions: partitions().count() as u64,
            replicas: partitions().filter(|partition| partition.replica().is_some()).count() as u64,
        })
    }

    fn cluster_levels(&self) -> Option<ClusterLevels> {
        let cluster = &self.0.open.get()?.cluster;
        let this = cluster.identity().broker;
        let mut levels = ClusterLevels {
            brokers: cluster.state().brokers().count() as u64,
            leader: cluster.controller() == Some(this),
            ..ClusterLevels::default()
        };
        let reached = |id: BrokerId| cluster.hub().is_up(id.0);
        let state = cluster.state();
        let stays = |id| state.broker(id).is_some_and(|broker| broker.takes_replicas());
        for route in cluster.routing().all().values() {
            for (assignment, partition) in route.topic.partitions.iter().zip(&route.partitions) {
                levels.moving += u64::from(is_to_move(assignment, stays));
                let Some(leader) = partition.leader() else {
                    levels.leaderless += 1;
                    levels.offline += u64::from(assignment.lacks_majority(reached));
                    continue;
                };
                if leader == this {
                    let lagging = partition.lagging();
                    let under = assignment.replicas.iter().any(|id| lagging.contains(id) || !reached(*id));
                    levels.under_replicated += u64::from(under);
                    levels.misplaced += u64::from(assignment.replicas.first() != Some(&this));
                }
            }
        }
        let lags = cluster.lags();
        let peers = cluster.hub().peers().into_iter();
        levels.peers = peers
            .map(|(peer, connected)| PeerLevels {
                peer: peer.to_string(),
                connected,
                lag: lags.get(&peer).copied().unwrap_or(0),
            })
            .collect();
        Some(levels)
    }

    fn raft_levels(&self) -> Option<RaftLevels> {
        let cluster = &self.0.open.get()?.cluster;
        let control = cluster.control_status().now();
        let (mut leading, mut following, mut leaderless) = (0, 0, 0);
        let reached = |leader: u64| cluster.hub().is_up(leader);
        let mut count = |members: &Members| {
            let status = members.status().now();
            match status.role {
                Role::Leader if members.quorum_age().is_none_or(|age| age <= DESERTED) => leading += 1,
                Role::Leader => leaderless += 1,
                _ if status.leader.is_some_and(reached) => following += 1,
                _ => leaderless += 1,
            }
        };
        count(&cluster.control_members());
        for coordinator in cluster.coordinators().all() {
            count(&coordinator.members());
        }
        for route in cluster.routing().all().values() {
            for replica in route.partitions.iter().filter_map(PartitionRef::replica) {
                count(&replica.members());
            }
        }
        let commit_index = control.committed.unwrap_or(0);
        Some(RaftLevels { term: control.term, commit_index, leading, following, leaderless })
    }

    fn storage_levels(&self) -> Option<StorageLevels> {
        let store = &self.0.open.get()?.partitions.store;
        let usage = store.usage();
        Some(StorageLevels {
            used_bytes: usage.used_bytes,
            available_bytes: usage.available_bytes,
            reserve_bytes: self.0.storage.reserve_bytes,
            writable: store.writable().is_ok(),
            segments: usage.segments,
            compactions: usage.compactions,
            queue_bytes: store.stats().queued_bytes.load(std::sync::atomic::Ordering::Relaxed),
        })
    }

    fn buffer_levels(&self) -> Option<BufferLevels> {
        let partitions = &self.0.open.get()?.partitions;
        let limit_bytes = partitions.config.buffer_bytes;
        let free = partitions.buffer.available_permits() as u64;
        Some(BufferLevels { used_bytes: limit_bytes.saturating_sub(free), limit_bytes })
    }

    fn consume_levels(&self) -> Option<crate::telemetry::ConsumeLevels> {
        Some(self.0.levels.read())
    }
}
