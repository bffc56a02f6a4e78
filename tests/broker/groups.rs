//! Consumer and share groups, as generated clients have them.

mod lag;
mod membership;
mod offsets;
mod share;
mod start;

use crate::support::asking::append;
use crate::support::{Endpoint, batch};

/// Appends records with these values to a partition, in one batch, and gives the first offset.
async fn put(broker: &Endpoint, topic: &str, partition: u32, values: &[&str]) -> u64 {
    let batch = batch::values(values.iter().map(|value| (*value).to_owned()));
    append(broker, topic, partition, batch).await.base_offset
}

/// Appends `count` records, numbered from `from`, to a partition.
async fn put_numbers(broker: &Endpoint, topic: &str, partition: u32, from: u64, count: u64) {
    let batch = batch::values((from..from + count).map(|number| number.to_string()));
    append(broker, topic, partition, batch).await;
}
