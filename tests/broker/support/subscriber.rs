//! A subscription as a generated client has it.

use streambus::proto::v1;
use streambus::proto::v1::subscribe_request::Action;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::endpoint::from;
use super::{Endpoint, within};

/// Takes what a broker delivers, one response at a time.
pub struct Subscriber {
    requests: Option<mpsc::Sender<v1::SubscribeRequest>>,
    responses: Streaming<v1::SubscribeResponse>,
}

impl Subscriber {
    /// Opens a stream on a connection of its own and says nothing on it.
    pub async fn open(broker: &Endpoint) -> Self {
        let (requests, received) = mpsc::channel(64);
        let mut client = broker.consume().await;
        let responses = within("the stream opens", client.subscribe(ReceiverStream::new(received))).await;
        Subscriber { requests: Some(requests), responses: responses.expect("a stream").into_inner() }
    }

    /// Opens a stream and starts it, for consumers that know no codec.
    pub async fn start(broker: &Endpoint, partitions: Vec<v1::PartitionPosition>, credit_bytes: u64) -> Self {
        Self::start_with(broker, v1::StartSubscription { partitions, credit_bytes, ..Default::default() })
            .await
    }

    /// Opens a stream and starts it.
    pub async fn start_with(broker: &Endpoint, start: v1::StartSubscription) -> Self {
        let subscriber = Self::open(broker).await;
        subscriber.send(Action::Start(start)).await;
        subscriber
    }

    /// Sends a request.
    pub async fn send(&self, action: Action) {
        self.send_raw(v1::SubscribeRequest { action: Some(action) }).await;
    }

    /// Sends any request.
    pub async fn send_raw(&self, request: v1::SubscribeRequest) {
        let requests = self.requests.as_ref().expect("not half-closed");
        requests.send(request).await.expect("the stream is open");
    }

    /// Grants credit.
    pub async fn grant(&self, bytes: u64) {
        self.send(Action::Credit(v1::GrantCredit { bytes })).await;
    }

    /// Adds a partition.
    pub async fn add(&self, topic: &str, partition: u32, at: v1::position::At) {
        let partitions = vec![from(topic, partition, at)];
        self.send(Action::Add(v1::AddPartitions { partitions })).await;
    }

    /// Removes a partition.
    pub async fn remove(&self, topic: &str, partition: u32) {
        let partitions = vec![v1::TopicPartition { topic: topic.to_owned(), partition }];
        self.send(Action::Remove(v1::RemovePartitions { partitions })).await;
    }

    /// Says that no further request comes. The broker then ends the stream when the credit is used up.
    pub fn half_close(&mut self) {
        self.requests = None;
    }

    /// What comes next: a delivery, or the failure of the stream, or `None` at its end.
    pub async fn step(&mut self) -> Result<Option<v1::PartitionRecords>, Status> {
        let response = within("the broker delivers or ends", self.responses.message()).await?;
        Ok(response.map(|response| response.into_records().expect("records")))
    }

    /// The next response.
    pub async fn next(&mut self) -> v1::PartitionRecords {
        self.step().await.expect("the stream goes on").expect("the stream goes on")
    }

    /// The next delivery, which must be without error.
    pub async fn delivery(&mut self) -> v1::PartitionRecords {
        let records = self.next().await;
        assert_eq!(records.error, None);
        records
    }

    /// The offsets of the batches that come until there is a batch that ends at `end`.
    pub async fn offsets_to(&mut self, end: u64) -> Vec<u64> {
        let mut offsets = Vec::new();
        loop {
            let records = self.delivery().await;
            offsets.extend(records.batches.iter().map(|batch| batch.base_offset));
            if records.next_offset >= end {
                return offsets;
            }
        }
    }

    /// The offsets of the batches that still come once nothing more is asked for.
    pub async fn rest(mut self) -> Vec<u64> {
        self.half_close();
        let mut offsets = Vec::new();
        while let Some(records) = self.step().await.expect("no failure") {
            assert_eq!(records.error, None);
            offsets.extend(records.batches.iter().map(|batch| batch.base_offset));
        }
        offsets
    }

    /// The failure that ends the stream.
    pub async fn failure(&mut self) -> Status {
        self.step().await.expect_err("the stream fails")
    }
}
