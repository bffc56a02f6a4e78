//! A disk below its reserve stops writes only.

use streambus::proto::v1;
use streambus::proto::v1::position::At;
use streambus::proto::v1::produce_result::Outcome;
use streambus::telemetry::catalog;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::endpoint::{fetch, produce};
use crate::support::{PATIENCE, Process, Refusal, batch, eventually, within};

/// More than any disk has.
const RESERVE: &str = "1000000000000000000";

/// A broker whose disk counts as full, with the topic `orders` of two records.
async fn full() -> Process {
    let broker = Process::start(&[]).await;
    broker.create_topic("orders", 1).await;
    for _ in 0..2 {
        let request = produce("orders", 0, batch::values(["a"]));
        broker.produce().await.produce(request).await.expect("committed");
    }
    broker.stop().await.set("storage.reserve_bytes", RESERVE).start().await
}

async fn offsets(broker: &Process) -> Vec<u64> {
    let answer = broker.consume().await.fetch(fetch("orders", 0, At::Earliest(()))).await.expect("an answer");
    answer.into_inner().partitions[0].batches.iter().map(|batch| batch.base_offset).collect()
}

#[tokio::test]
async fn a_full_disk_refuses_records_and_nothing_else() {
    let broker = full().await;
    let request = || produce("orders", 0, batch::values(["b"]));

    let refusal = Refusal::of(broker.produce().await.produce(request()).await);

    let refusal = refusal.is(Code::ResourceExhausted, "DISK_FULL").says(RESERVE);
    assert!(refusal.advises_retry, "{refusal:?}");
    let streamed = v1::ProduceStreamRequest {
        correlation_id: 7,
        topic: "orders".to_owned(),
        batch: batch::values(["b"]),
        ..Default::default()
    };
    let mut results = broker
        .produce()
        .await
        .produce_stream(tokio_stream::iter([streamed]))
        .await
        .expect("a stream")
        .into_inner();
    let response = within("a result", results.message()).await.expect("no failure").expect("a result");
    let Some(Outcome::Error(error)) = &response.results[0].outcome else { panic!("{response:?}") };
    assert_eq!((error.code(), error.may_have_been_written), (v1::ErrorCode::DiskFull, false));
    assert!(error.retry_after.is_some());

    assert_eq!(offsets(&broker).await, [0, 1]);
    let mut topics = broker.topics().await;
    let delete = v1::DeleteRecordsRequest { topic: "orders".to_owned(), partition: 0, before_offset: 1 };
    let deleted = topics.delete_records(delete).await.expect("what frees space is allowed").into_inner();
    assert_eq!(deleted.log_start_offset, 1);
    assert_eq!(offsets(&broker).await, [1]);
    topics.delete_topic(v1::DeleteTopicRequest { name: "orders".to_owned() }).await.expect("deleted");
    let left = topics.list_topics(v1::ListTopicsRequest::default()).await.expect("a list").into_inner();
    assert!(left.topics.is_empty());
}

#[tokio::test]
async fn a_full_disk_is_told_to_probes_watchers_and_scrapers_and_gets_well() {
    let broker = full().await;
    let (status, body) = broker.health("/health").await;
    assert_eq!((status, &body["status"]), (503, &"unhealthy".into()));
    let reason = body["checks"]["storage"].as_str().expect("text");
    assert!(reason.contains(RESERVE) && reason.contains("delete topics"), "{reason}");
    assert_eq!((&body["checks"]["broker"], &body["checks"]["cluster"]), (&"ok".into(), &"ok".into()));
    // Readers are still served, and a restart would not help.
    for path in ["/health/live", "/health/ready", "/health/startup"] {
        assert_eq!(broker.health(path).await.0, 200, "{path}");
    }
    let mut client = HealthClient::new(broker.channel().await);
    for (service, expected) in [
        ("streambus.v1.ProduceService", ServingStatus::NotServing),
        ("streambus.v1.ConsumeService", ServingStatus::Serving),
        ("streambus.v1.TopicService", ServingStatus::Serving),
        ("", ServingStatus::Serving),
    ] {
        let request = HealthCheckRequest { service: service.to_owned() };
        assert_eq!(client.check(request).await.expect("known").into_inner().status(), expected, "{service}");
    }
    let view = broker.scrape().await;
    assert_eq!(view.get(&catalog::STORAGE_WRITABLE, &[]), Some(0.0));
    assert_eq!(view.get(&catalog::STORAGE_AVAILABLE, &[]), Some(0.0));
    assert_eq!(view.get(&catalog::HEALTH_CHECK, &[("check", "storage")]), Some(0.0));

    let broker = broker.stop().await.set("storage.reserve_bytes", "0").start().await;
    eventually(PATIENCE, "the broker is healthy", async || {
        (broker.health("/health").await.0 == 200).then_some(())
    })
    .await;
    let request = produce("orders", 0, batch::values(["b"]));
    let answer = broker.produce().await.produce(request).await.expect("committed").into_inner();
    assert_eq!(answer.base_offset, 2);
    assert_eq!(broker.scrape().await.get(&catalog::STORAGE_WRITABLE, &[]), Some(1.0));
}
