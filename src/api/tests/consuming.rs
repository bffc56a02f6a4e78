//! Fetch and subscribe, over a real connection.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::*;
use crate::broker::{FetchPartition, Position, Produce};
use crate::proto::v1;
use crate::proto::v1::consume_service_client::ConsumeServiceClient;
use crate::proto::v1::position::At;
use crate::proto::v1::subscribe_request::Action;
use crate::record::CodecSet;
use crate::telemetry::RequestTrace;

fn from(topic: &str, at: At) -> v1::PartitionPosition {
    v1::PartitionPosition {
        topic: topic.to_owned(),
        partition: 0,
        position: Some(v1::Position { at: Some(at) }),
    }
}

async fn append(api: &Api, value: &'static [u8]) {
    let produce = Produce {
        topic: "orders".to_owned(),
        partition: 0,
        batch: batch(value),
        producer: None,
        trace: RequestTrace::NONE,
        received: std::time::Instant::now(),
        may_forward: true,
    };
    api.broker.produce(produce).await.unwrap().await.unwrap();
}

struct Client {
    requests: mpsc::Sender<v1::SubscribeRequest>,
    responses: Streaming<v1::SubscribeResponse>,
}

impl Client {
    async fn open(api: &Api) -> Self {
        let (requests, received) = mpsc::channel(16);
        let mut client = ConsumeServiceClient::new(api.channel().await);
        let responses = within(client.subscribe(ReceiverStream::new(received))).await.unwrap().into_inner();
        Client { requests, responses }
    }

    async fn send(&self, action: Action) {
        self.requests.send(v1::SubscribeRequest { action: Some(action) }).await.unwrap();
    }

    async fn start(&self, partitions: Vec<v1::PartitionPosition>, credit_bytes: u64) {
        self.send(Action::Start(v1::StartSubscription { partitions, credit_bytes, ..Default::default() }))
            .await;
    }

    async fn next(&mut self) -> v1::PartitionRecords {
        within(self.responses.message()).await.unwrap().unwrap().into_records().unwrap()
    }

    async fn failure(&mut self) -> tonic::Status {
        within(self.responses.message()).await.unwrap_err()
    }
}

#[tokio::test]
async fn fetch_returns_the_bytes_that_were_produced() {
    let api = Api::start().await;
    append(&api, b"one").await;
    let mut client = ConsumeServiceClient::new(api.channel().await);
    let request =
        v1::FetchRequest { partitions: vec![from("orders", At::Earliest(()))], ..Default::default() };
    let fetched = within(client.fetch(request)).await.unwrap().into_inner();
    assert_eq!(fetched.partitions[0].batches[0].batch, batch(b"one"));
    assert_eq!(fetched.partitions[0].next_offset, 1);
}

#[tokio::test]
async fn fetch_reports_an_unknown_topic_beside_the_others() {
    let api = Api::start().await;
    append(&api, b"one").await;
    let mut client = ConsumeServiceClient::new(api.channel().await);
    let partitions = vec![from("nowhere", At::Latest(())), from("orders", At::Earliest(()))];
    let fetched = within(client.fetch(v1::FetchRequest { partitions, ..Default::default() }))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(fetched.partitions[0].error.as_ref().unwrap().code(), v1::ErrorCode::UnknownTopic);
    assert_eq!(fetched.partitions[1].batches.len(), 1);
}

#[tokio::test]
async fn a_subscription_delivers_what_is_there_and_what_comes() {
    let api = Api::start().await;
    append(&api, b"one").await;
    let mut client = Client::open(&api).await;
    client.start(vec![from("orders", At::Earliest(()))], 1 << 20).await;
    assert_eq!(client.next().await.batches[0].batch, batch(b"one"));
    append(&api, b"two").await;
    assert_eq!(client.next().await.batches[0].batch, batch(b"two"));
}

#[tokio::test]
async fn a_subscription_without_credit_sends_nothing_until_it_gets_some() {
    let api = Api::start().await;
    append(&api, b"one").await;
    let mut client = Client::open(&api).await;
    client.start(vec![from("orders", At::Earliest(()))], 0).await;
    // The answer to this comes first, although the record was there before.
    client.send(Action::Add(v1::AddPartitions { partitions: vec![from("nowhere", At::Earliest(()))] })).await;
    assert_eq!(client.next().await.error.unwrap().code(), v1::ErrorCode::UnknownTopic);
    client.send(Action::Credit(v1::GrantCredit { bytes: 1 })).await;
    assert_eq!(client.next().await.batches.len(), 1);
}

#[tokio::test]
async fn a_subscription_must_begin_with_start_and_only_begin_with_it() {
    let api = Api::start().await;
    let mut client = Client::open(&api).await;
    client.send(Action::Credit(v1::GrantCredit { bytes: 1 })).await;
    let status = client.failure().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("must be start"), "{status:?}");

    let mut client = Client::open(&api).await;
    client.start(vec![from("orders", At::Latest(()))], 1).await;
    client.start(vec![from("orders", At::Latest(()))], 1).await;
    assert!(client.failure().await.message().contains("only once"));
}

#[tokio::test]
async fn a_subscription_without_partitions_or_positions_is_refused_by_field() {
    let api = Api::start().await;
    let mut client = Client::open(&api).await;
    client.start(vec![], 1).await;
    assert!(client.failure().await.message().contains("start.partitions"));
}

#[tokio::test]
async fn a_half_closed_subscription_ends_when_its_credit_is_used() {
    let api = Api::start().await;
    append(&api, b"one").await;
    let client = Client::open(&api).await;
    client.start(vec![from("orders", At::Earliest(()))], 1).await;
    let Client { requests, mut responses } = client;
    drop(requests);
    assert!(within(responses.message()).await.unwrap().is_some());
    assert!(within(responses.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_subscription_that_adds_and_removes_without_end_holds_only_what_it_reads() {
    let api = Api::start().await;
    let mut subscription = api.broker.subscribe(CodecSet::ALL);
    let partition =
        |number, position| FetchPartition { topic: "orders".to_owned(), partition: number, position };
    assert!(subscription.add(vec![partition(1, Position::Latest)]).await.is_empty());
    for round in 0..20 {
        assert!(subscription.add(vec![partition(0, Position::Latest)]).await.is_empty());
        // This rings; without credit nobody takes note of it.
        append(&api, b"value").await;
        // The second addition of a partition takes the place of the first.
        assert!(subscription.add(vec![partition(0, Position::Earliest)]).await.is_empty());
        append(&api, b"value").await;
        subscription.remove(&[("orders".to_owned(), 0)]);
        assert!(subscription.slots() <= 2, "round {round}: {} slots", subscription.slots());
    }
    // Nothing of the removed partition is delivered, and what is added again is.
    subscription.grant(1 << 20);
    let waiting = tokio::time::timeout(Duration::from_millis(20), subscription.next()).await;
    assert!(waiting.is_err(), "{waiting:?}");
    assert!(subscription.add(vec![partition(0, Position::Earliest)]).await.is_empty());
    assert_eq!(within(subscription.next()).await.0.batches.len(), 40);
}

#[tokio::test]
async fn a_fetch_answers_before_the_deadline_of_its_call() {
    let api = Api::start().await;
    let mut client = ConsumeServiceClient::new(api.with_deadline("500m").await);
    let fetch = v1::FetchRequest {
        partitions: vec![from("orders", At::Latest(()))],
        max_wait: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..Default::default()
    };
    let answer = within(client.fetch(fetch)).await.unwrap().into_inner();
    assert!(answer.partitions[0].batches.is_empty() && answer.partitions[0].error.is_none());
}
