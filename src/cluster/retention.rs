//! Trims what topics do not keep, and frees the disks of all replicas.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tracing::warn;

use super::partition_ref::PartitionRef;
use super::routing::{Route, Routing};
use crate::clock::Clock;
use crate::partition::Partition;
use crate::partition::retention::Policy;
use crate::raft::Role;

/// Partitions that are looked at together: one that waits for its purge holds up no others.
const AT_ONCE: usize = 16;

/// Looks at every partition that this broker has a replica of, time and again.
pub(super) async fn run(routing: Arc<Routing>, clock: Clock, interval: Duration) {
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let mut partitions = Vec::new();
        for route in routing.all().values() {
            let replicas = route.partitions.iter().map(PartitionRef::replica).enumerate();
            partitions
                .extend(replicas.filter_map(|(number, replica)| Some((Arc::clone(route), number, replica?))));
        }
        stream::iter(partitions)
            .for_each_concurrent(AT_ONCE, |(route, number, partition)| {
                look_at(route, number, partition, clock.clone())
            })
            .await;
    }
}

async fn look_at(route: Arc<Route>, number: usize, partition: Partition, clock: Clock) {
    let settings = &route.topic.settings;
    let policy = Policy { time: settings.retention, bytes: settings.retention_bytes };
    let status = partition.status().now();
    let done = match status.role {
        Role::Stopped => Ok(()),
        _ if status.is_ready_leader() => partition.retain(policy, clock.now()).await.map(drop),
        // What the leader trims goes here, too, once this replica has heard of it.
        _ => partition.free_trimmed().await,
    };
    if let Err(failure) = done {
        warn!(topic = %route.topic.name, partition = number, error = %failure, "retention failed");
    }
}
