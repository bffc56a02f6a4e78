//! Reads every replica of this broker now and then, so that damage is found while others still have what is lost.

use std::sync::Arc;
use std::time::Duration;

use tracing::error;

use super::routing::Routing;
use crate::partition::{self, Partition, in_full};
use crate::record::Offset;

/// Bytes that are read at once.
const CHUNK_BYTES: u64 = 1 << 20;
/// So many index rows take about as much.
const CHUNK_ROWS: usize = 1 << 14;

/// Rests, reads all, and begins again.
pub(super) async fn run(routing: Arc<Routing>, config: partition::Config) {
    let pause = Duration::from_secs_f64(CHUNK_BYTES as f64 / config.verify_bytes_per_second as f64);
    loop {
        tokio::time::sleep(config.verify_interval).await;
        for route in routing.all().values() {
            for (number, partition) in route.partitions.iter().enumerate() {
                let Some(replica) = partition.replica() else { continue };
                if let Err(damage) = verify(&replica, pause).await
                    && !replica.is_closed()
                {
                    let (topic, partition) = (&*route.topic.name, number);
                    error!(name: "replica.unreadable", topic, partition, error = in_full(&damage), "a replica cannot be read");
                }
            }
        }
    }
}

async fn verify(replica: &Partition, pause: Duration) -> Result<(), partition::Error> {
    let mut next = 0;
    while !replica.is_closed() {
        match replica.verify(next, CHUNK_BYTES).await? {
            Some(after) => next = after,
            None => break,
        }
        tokio::time::sleep(pause).await;
    }
    let mut next = Offset(0);
    while !replica.is_closed() {
        match replica.verify_index(next, CHUNK_ROWS).await? {
            Some(after) => next = after,
            None => break,
        }
        tokio::time::sleep(pause).await;
    }
    Ok(())
}
