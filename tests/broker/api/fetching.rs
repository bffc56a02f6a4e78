//! Reading with a long poll.

use std::time::{Duration, Instant};

use streambus::proto::v1;
use streambus::proto::v1::position::At;
use streambus::telemetry::catalog;
use tokio::task::JoinHandle;

use crate::support::asking::{append, error, offsets, read};
use crate::support::endpoint::{duration, fetch, from};
use crate::support::{Endpoint, PATIENCE, Refusal, TestBroker, batch, eventually, within};

/// Longer than any test waits: an answer that comes only now is a failure.
const VERY_LONG: Duration = Duration::from_secs(60);

/// Begins a fetch of `orders/0` from its end and returns once the broker holds it.
async fn waiting(broker: &Endpoint, min_bytes: u32) -> JoinHandle<v1::PartitionRecords> {
    let request = v1::FetchRequest {
        min_bytes,
        max_wait: Some(duration(VERY_LONG)),
        ..fetch("orders", 0, At::Latest(()))
    };
    let mut client = broker.consume().await;
    let fetching = tokio::spawn(async move {
        let answer = client.fetch(request).await.expect("an answer").into_inner();
        answer.partitions.into_iter().next().expect("one partition")
    });
    eventually(PATIENCE, "the fetch waits", async || {
        (broker.scrape().await.or_zero(&catalog::FETCHES_WAITING, &[]) == 1.0).then_some(())
    })
    .await;
    fetching
}

async fn orders(partitions: u32) -> TestBroker {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", partitions).await;
    broker
}

#[tokio::test]
async fn a_fetch_waits_until_there_are_min_bytes() {
    let broker = orders(1).await;
    let batch = batch::values([vec![b'x'; 100]]);
    let fetching = waiting(&broker, 2 * batch.len() as u32).await;

    append(&broker, "orders", 0, batch.clone()).await;
    // The scrape gives the broker time to answer, which it must not.
    assert_eq!(broker.scrape().await.or_zero(&catalog::FETCHES_WAITING, &[]), 1.0);
    assert!(!fetching.is_finished());
    append(&broker, "orders", 0, batch).await;

    let records = within("the answer", fetching).await.expect("no panic");
    assert_eq!(offsets(&records), [0, 1]);
    assert_eq!(records.next_offset, 2);
}

#[tokio::test]
async fn a_fetch_is_answered_after_max_wait_with_what_there_is() {
    let broker = orders(1).await;
    let wait = Duration::from_millis(150);
    let request = v1::FetchRequest {
        min_bytes: 1 << 20,
        max_wait: Some(duration(wait)),
        ..fetch("orders", 0, At::Earliest(()))
    };
    for expected in [vec![], vec![0]] {
        let started = Instant::now();
        let answer = broker.consume().await.fetch(request.clone()).await.expect("an answer").into_inner();
        assert!(started.elapsed() >= wait);
        assert_eq!((answer.partitions[0].error.clone(), offsets(&answer.partitions[0])), (None, expected));
        append(&broker, "orders", 0, batch::values(["a"])).await;
    }
}

#[tokio::test]
async fn max_bytes_bounds_an_answer_but_lets_one_batch_through() {
    let broker = orders(2).await;
    let batch = batch::values([vec![b'x'; 1_000]]);
    for _ in 0..5 {
        append(&broker, "orders", 0, batch.clone()).await;
        append(&broker, "orders", 1, batch.clone()).await;
    }
    let size = batch.len() as u32;
    for (max_bytes, expected) in [(1, 1), (size - 1, 1), (2 * size, 2), (3 * size - 1, 2), (100 * size, 5)] {
        let request = v1::FetchRequest { max_bytes, ..fetch("orders", 0, At::Earliest(())) };
        let answer = broker.consume().await.fetch(request).await.expect("an answer").into_inner();
        let records = &answer.partitions[0];
        assert_eq!((records.batches.len(), records.next_offset), (expected, expected as u64), "{max_bytes}");
        assert_eq!(records.high_watermark, 5);
    }
    // The bound is one for all partitions, and what it leaves out is read next time.
    let partitions = vec![from("orders", 0, At::Offset(3)), from("orders", 1, At::Offset(2))];
    let request = v1::FetchRequest { partitions, max_bytes: 3 * size, ..Default::default() };
    let answer = broker.consume().await.fetch(request.clone()).await.expect("an answer").into_inner();
    let read: Vec<_> =
        answer.partitions.iter().map(|records| (offsets(records), records.next_offset)).collect();
    assert_eq!(read, [(vec![3, 4], 5), (vec![2], 3)]);
    let request = v1::FetchRequest { max_bytes: 1, ..request };
    let answer = broker.consume().await.fetch(request).await.expect("an answer").into_inner();
    let read: Vec<_> =
        answer.partitions.iter().map(|records| (offsets(records), records.next_offset)).collect();
    assert_eq!(read, [(vec![3], 4), (vec![], 2)]);
}

#[tokio::test]
async fn the_brokers_own_limit_bounds_what_a_fetch_may_ask_for() {
    let broker = TestBroker::with(|config| config.broker.fetch_bytes_max = 4_096).await;
    broker.create_topic("orders", 1).await;
    for _ in 0..10 {
        append(&broker, "orders", 0, batch::values([vec![b'x'; 1_000]])).await;
    }
    let request = v1::FetchRequest { max_bytes: u32::MAX, ..fetch("orders", 0, At::Earliest(())) };
    let answer = broker.consume().await.fetch(request).await.expect("an answer").into_inner();
    assert_eq!(offsets(&answer.partitions[0]), [0, 1, 2, 3]);
}

#[tokio::test]
async fn a_fetch_that_may_not_hold_min_bytes_does_not_wait_for_them() {
    let broker = orders(1).await;
    for _ in 0..3 {
        append(&broker, "orders", 0, batch::values([vec![b'x'; 1_000]])).await;
    }
    let request = v1::FetchRequest {
        min_bytes: 1 << 20,
        max_bytes: 1_500,
        max_wait: Some(duration(VERY_LONG)),
        ..fetch("orders", 0, At::Earliest(()))
    };
    let answer = within("an answer", broker.consume().await.fetch(request)).await.expect("an answer");
    assert_eq!(offsets(&answer.into_inner().partitions[0]), [0]);
}

#[tokio::test]
async fn offsets_out_of_range_are_errors_of_their_partition_that_say_what_there_is() {
    let broker = orders(1).await;
    for _ in 0..4 {
        append(&broker, "orders", 0, batch::values(["a"])).await;
    }
    let delete = v1::DeleteRecordsRequest { topic: "orders".to_owned(), partition: 0, before_offset: 2 };
    broker.topics().await.delete_records(delete).await.expect("deleted");
    for offset in [0, 1, 5, u64::MAX] {
        let records = read(&broker, "orders", 0, At::Offset(offset), &[]).await;
        let (code, message) = error(&records);
        assert_eq!(code, v1::ErrorCode::OffsetOutOfRange);
        assert!(message.contains(&format!("offset {offset} ")), "{message}");
        assert!(message.contains("starts at 2") && message.contains("ends at 4"), "{message}");
        // A program finds its way without reading the message.
        assert_eq!((records.log_start_offset, records.high_watermark), (2, 4));
        assert!(records.batches.is_empty());
    }
    for offset in 2..=4 {
        let records = read(&broker, "orders", 0, At::Offset(offset), &[]).await;
        assert_eq!((records.error.clone(), offsets(&records)), (None, (offset..4).collect()));
    }
}

#[tokio::test]
async fn a_partition_that_cannot_be_read_leaves_the_others_alone() {
    let broker = orders(1).await;
    append(&broker, "orders", 0, batch::values(["a"])).await;
    let partitions = vec![
        from("nowhere", 0, At::Earliest(())),
        from("orders", 1, At::Earliest(())),
        from("orders", 0, At::Earliest(())),
    ];
    let request = v1::FetchRequest {
        partitions,
        min_bytes: 1 << 20,
        max_wait: Some(duration(VERY_LONG)),
        ..Default::default()
    };

    let answer = within("an answer at once", broker.consume().await.fetch(request)).await.expect("an answer");

    let [topic, partition, good] = &answer.into_inner().partitions[..] else { panic!("three") };
    assert_eq!((topic.topic.as_str(), error(topic).0), ("nowhere", v1::ErrorCode::UnknownTopic));
    assert_eq!((partition.partition, error(partition).0), (1, v1::ErrorCode::UnknownPartition));
    assert!(error(partition).1.contains("has no partition 1"));
    assert_eq!((good.error.clone(), offsets(good)), (None, vec![0]));
}

#[tokio::test]
async fn a_fetch_ends_when_its_topic_is_deleted() {
    let broker = orders(1).await;
    let fetching = waiting(&broker, 1).await;
    broker
        .topics()
        .await
        .delete_topic(v1::DeleteTopicRequest { name: "orders".to_owned() })
        .await
        .expect("deleted");
    let records = within("the answer", fetching).await.expect("no panic");
    assert!(records.error.is_some(), "{records:?}");
    broker.stop().await;
}

#[tokio::test]
async fn what_cannot_be_understood_is_refused_by_field() {
    let broker = orders(1).await;
    let good = || fetch("orders", 0, At::Earliest(()));
    let position = from("orders", 0, At::Earliest(()));
    let unset = v1::PartitionPosition { position: Some(v1::Position { at: None }), ..position.clone() };
    let wait = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let cases = [
        (v1::FetchRequest { partitions: vec![], ..good() }, "partitions"),
        (v1::FetchRequest { partitions: vec![position.clone(); 1_001], ..good() }, "partitions"),
        (v1::FetchRequest { partitions: vec![position, unset], ..good() }, "partitions[1].position"),
        (v1::FetchRequest { max_wait: wait(61), ..good() }, "max_wait"),
        (v1::FetchRequest { max_wait: wait(-1), ..good() }, "max_wait"),
        (v1::FetchRequest { accepted_codecs: vec![1, 3], ..good() }, "accepted_codecs[1]"),
    ];
    let mut client = broker.consume().await;
    for (request, field) in cases {
        Refusal::of(client.fetch(request).await).names_field(field);
    }
}
