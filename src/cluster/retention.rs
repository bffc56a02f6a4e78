//! Trims what topics do not keep.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::routing::Routing;
use crate::clock::Clock;
use crate::partition::retention::Policy;

/// Looks at every partition that this broker leads, time and again.
pub(super) async fn run(routing: Arc<Routing>, clock: Clock, interval: Duration) {
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        for route in routing.all().values() {
            let settings = &route.topic.settings;
            let policy = Policy { time: settings.retention, bytes: settings.retention_bytes };
            for (number, partition) in route.partitions.iter().enumerate() {
                let Some(partition) = partition.replica() else { continue };
                if !partition.status().now().is_ready_leader() {
                    continue;
                }
                if let Err(failure) = partition.retain(policy, clock.now()).await {
                    warn!(topic = %route.topic.name, partition = number, error = %failure, "retention failed");
                }
            }
        }
    }
}
