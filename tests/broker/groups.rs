//! Consumer and share groups, as generated clients have them.

mod lag;
mod membership;
mod offsets;
mod overtaken;
mod pause;
mod share;
mod start;

use streambus::proto::v1;

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

/// Deletes the records of partition 0 before an offset.
async fn trim(broker: &Endpoint, topic: &str, before: u64) {
    let request = v1::DeleteRecordsRequest { topic: topic.to_owned(), partition: 0, before_offset: before };
    broker.topics().await.delete_records(request).await.expect("trimmed");
}
