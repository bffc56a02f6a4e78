//! Short ways to append and read, and to look at what was read.

use bytes::Bytes;
use streambus::proto::v1;
use streambus::proto::v1::position::At;

use super::endpoint::{fetch, produce};
use super::{Endpoint, PATIENCE, eventually, within};

/// Appends a batch to a partition and gives the answer.
pub async fn append(broker: &Endpoint, topic: &str, partition: u32, batch: Bytes) -> v1::ProduceResponse {
    let answer = within("a commit", broker.produce().await.produce(produce(topic, partition, batch))).await;
    answer.expect("the batch is committed").into_inner()
}

/// Fetches one partition from `at` without waiting, for a client that knows these codecs.
pub async fn read(
    broker: &Endpoint,
    topic: &str,
    partition: u32,
    at: At,
    codecs: &[v1::Codec],
) -> v1::PartitionRecords {
    let request = v1::FetchRequest {
        accepted_codecs: codecs.iter().map(|codec| (*codec).into()).collect(),
        max_bytes: 64 << 20,
        ..fetch(topic, partition, at)
    };
    let answer = within("an answer", broker.consume().await.fetch(request)).await.expect("an answer");
    let [records] = answer.into_inner().partitions.try_into().expect("one partition");
    records
}

/// As [`read`], again and again while the broker says that it cannot answer yet, as it does while leaders change.
pub async fn read_soon(broker: &Endpoint, topic: &str, partition: u32, at: At) -> v1::PartitionRecords {
    eventually(PATIENCE, "the partition can be read", async || {
        let records = read(broker, topic, partition, at, &[]).await;
        let later = records.error.as_ref().is_some_and(|error| error.retry_after.is_some());
        (!later).then_some(records)
    })
    .await
}

/// Offsets of the batches.
pub fn offsets(records: &v1::PartitionRecords) -> Vec<u64> {
    records.batches.iter().map(|batch| batch.base_offset).collect()
}

/// The error of a partition, as its code and message.
#[track_caller]
pub fn error(records: &v1::PartitionRecords) -> (v1::ErrorCode, &str) {
    let error = records.error.as_ref().expect("the partition has an error");
    (error.code(), &error.message)
}
