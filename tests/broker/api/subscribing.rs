//! Deliveries as far as the credit goes.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use streambus::proto::v1;
use streambus::proto::v1::position::At;
use streambus::proto::v1::subscribe_request::Action;
use tonic::Code;

use crate::support::asking::{append, error, offsets};
use crate::support::endpoint::from;
use crate::support::{Endpoint, Refusal, Subscriber, TestBroker, batch};

const PLENTY: u64 = 1 << 30;

async fn orders(partitions: u32) -> TestBroker {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", partitions).await;
    broker
}

/// A batch of a thousand bytes and a few.
fn large() -> Bytes {
    batch::values([vec![b'x'; 1_000]])
}

/// Returns when the broker has done what the subscriber asked for before: requests are handled in order, and this one is
/// answered without credit.
async fn settle(subscriber: &mut Subscriber) {
    subscriber.add("nowhere", 0, At::Latest(())).await;
    assert_eq!(error(&subscriber.next().await).0, v1::ErrorCode::UnknownTopic);
}

async fn start(broker: &Endpoint, at: At, credit: u64) -> Subscriber {
    Subscriber::start(broker, vec![from("orders", 0, at)], credit).await
}

#[tokio::test]
async fn a_subscription_begins_where_it_is_told_and_follows() {
    let broker = orders(1).await;
    let mut times = Vec::new();
    for _ in 0..3 {
        times.push(append(&broker, "orders", 0, batch::values(["a"])).await.append_time_ms);
    }
    let last = UNIX_EPOCH + Duration::from_millis(times[2] as u64);
    let first_of_last = times.iter().position(|time| *time == times[2]).expect("itself") as u64;
    let cases = [
        (At::Earliest(()), vec![0, 1, 2, 3]),
        (At::Offset(1), vec![1, 2, 3]),
        (At::Time(last.into()), (first_of_last..=3).collect()),
        (At::Latest(()), vec![3]),
    ];
    let mut subscribers = Vec::new();
    for (at, expected) in cases {
        let mut subscriber = start(&broker, at, PLENTY).await;
        settle_after(&mut subscriber, &expected).await;
        subscribers.push((subscriber, expected));
    }
    append(&broker, "orders", 0, batch::values(["b"])).await;
    for (mut subscriber, expected) in subscribers {
        assert_eq!(subscriber.offsets_to(4).await, expected[expected.len() - 1..]);
    }
}

/// Takes what is there already, all but the last of `expected`.
async fn settle_after(subscriber: &mut Subscriber, expected: &[u64]) {
    if expected.len() == 1 {
        // Only to be sure that the position was resolved before the next batch comes.
        settle(subscriber).await;
    } else {
        assert_eq!(subscriber.offsets_to(3).await, expected[..expected.len() - 1]);
    }
}

#[tokio::test]
async fn nothing_more_is_sent_without_credit() {
    let broker = orders(1).await;
    for _ in 0..3 {
        append(&broker, "orders", 0, large()).await;
    }
    // The last batch may exceed the credit.
    assert_eq!(start(&broker, At::Earliest(()), 0).await.rest().await, [0; 0]);
    assert_eq!(start(&broker, At::Earliest(()), 1).await.rest().await, [0]);
    let size = large().len() as u64;
    assert_eq!(start(&broker, At::Earliest(()), size).await.rest().await, [0]);
    assert_eq!(start(&broker, At::Earliest(()), size + 1).await.rest().await, [0, 1]);
}

#[tokio::test]
async fn overspent_credit_must_be_made_up_for() {
    let broker = orders(1).await;
    for _ in 0..3 {
        append(&broker, "orders", 0, large()).await;
    }
    let size = large().len() as u64;
    for (granted, expected) in [(0, vec![]), (1, vec![]), (size - 1, vec![]), (size, vec![1])] {
        let mut subscriber = start(&broker, At::Earliest(()), 1).await;
        assert_eq!(offsets(&subscriber.delivery().await), [0]);
        subscriber.grant(granted).await;
        assert_eq!(subscriber.rest().await, expected, "after {granted}");
    }
}

#[tokio::test]
async fn credit_granted_in_any_amount_never_overflows() {
    let broker = orders(1).await;
    let mut subscriber = start(&broker, At::Earliest(()), u64::MAX).await;
    subscriber.grant(u64::MAX).await;
    append(&broker, "orders", 0, large()).await;
    assert_eq!(subscriber.offsets_to(1).await, [0]);
}

#[tokio::test]
async fn partitions_are_added_moved_and_removed_while_others_are_read() {
    let broker = orders(2).await;
    append(&broker, "orders", 0, batch::values(["a"])).await;
    append(&broker, "orders", 1, batch::values(["b"])).await;
    let mut subscriber = start(&broker, At::Earliest(()), PLENTY).await;
    let next = async |subscriber: &mut Subscriber| {
        let records = subscriber.delivery().await;
        (records.partition, offsets(&records))
    };
    assert_eq!(next(&mut subscriber).await, (0, vec![0]));

    subscriber.add("orders", 1, At::Earliest(())).await;
    assert_eq!(next(&mut subscriber).await, (1, vec![0]));
    append(&broker, "orders", 0, batch::values(["c"])).await;
    assert_eq!(next(&mut subscriber).await, (0, vec![1]));
    // Adding what is read already moves it.
    subscriber.add("orders", 0, At::Offset(0)).await;
    assert_eq!(next(&mut subscriber).await, (0, vec![0, 1]));

    subscriber.remove("orders", 0).await;
    subscriber.remove("nowhere", 9).await;
    settle(&mut subscriber).await;
    append(&broker, "orders", 0, batch::values(["d"])).await;
    append(&broker, "orders", 1, batch::values(["e"])).await;
    assert_eq!(next(&mut subscriber).await, (1, vec![1]));
    append(&broker, "orders", 1, batch::values(["f"])).await;
    assert_eq!(next(&mut subscriber).await, (1, vec![2]));
}

#[tokio::test]
async fn a_partition_that_cannot_be_read_is_an_error_and_the_stream_stays_open() {
    let broker = orders(1).await;
    append(&broker, "orders", 0, batch::values(["a"])).await;
    let partitions = vec![
        from("nowhere", 0, At::Earliest(())),
        from("orders", 5, At::Earliest(())),
        from("orders", 0, At::Offset(9)),
    ];
    let mut subscriber = Subscriber::start(&broker, partitions, PLENTY).await;
    use v1::ErrorCode::{OffsetOutOfRange, UnknownPartition, UnknownTopic};
    for (partition, code) in [(0, UnknownTopic), (5, UnknownPartition), (0, OffsetOutOfRange)] {
        let records = subscriber.next().await;
        assert_eq!((records.partition, error(&records).0), (partition, code));
        if code == OffsetOutOfRange {
            assert_eq!((records.log_start_offset, records.high_watermark), (0, 1));
        }
    }
    subscriber.add("orders", 0, At::Earliest(())).await;
    assert_eq!(offsets(&subscriber.delivery().await), [0]);
}

#[tokio::test]
async fn a_topic_deleted_under_a_subscription_is_an_error_and_the_stream_stays_open() {
    let broker = orders(1).await;
    broker.create_topic("invoices", 1).await;
    let partitions = vec![from("orders", 0, At::Latest(())), from("invoices", 0, At::Latest(()))];
    let mut subscriber = Subscriber::start(&broker, partitions, PLENTY).await;
    settle(&mut subscriber).await;

    let delete = v1::DeleteTopicRequest { name: "orders".to_owned() };
    broker.topics().await.delete_topic(delete).await.expect("deleted");

    let records = subscriber.next().await;
    assert_eq!((records.topic.as_str(), records.partition), ("orders", 0));
    assert!(records.error.is_some() && records.batches.is_empty(), "{records:?}");
    append(&broker, "invoices", 0, batch::values(["a"])).await;
    assert_eq!(subscriber.delivery().await.topic, "invoices");
    // A new topic of the same name is another one: it is read once it is added.
    broker.create_topic("orders", 1).await;
    append(&broker, "orders", 0, batch::values(["b"])).await;
    subscriber.add("orders", 0, At::Earliest(())).await;
    assert_eq!(subscriber.delivery().await.topic, "orders");
}

#[tokio::test]
async fn requests_that_break_the_protocol_end_the_stream_and_say_why() {
    let broker = orders(1).await;
    let begin = || {
        let partitions = vec![from("orders", 0, At::Latest(()))];
        v1::StartSubscription { partitions, credit_bytes: 1, ..Default::default() }
    };
    let unset = v1::PartitionPosition { position: None, ..from("orders", 0, At::Latest(())) };
    let cases = [
        (vec![Some(Action::Credit(v1::GrantCredit { bytes: 1 }))], "must be start"),
        (vec![Some(Action::Start(begin())), Some(Action::Start(begin()))], "only once"),
        (vec![Some(Action::Start(begin())), None], "action is missing"),
        (vec![Some(Action::Start(v1::StartSubscription::default()))], "start.partitions"),
        (
            vec![
                Some(Action::Start(begin())),
                Some(Action::Add(v1::AddPartitions { partitions: vec![unset] })),
            ],
            "add.partitions[0].position",
        ),
        (
            vec![Some(Action::Start(v1::StartSubscription { accepted_codecs: vec![7], ..begin() }))],
            "accepted_codecs[0]",
        ),
    ];
    for (actions, text) in cases {
        let mut subscriber = Subscriber::open(&broker).await;
        for action in actions {
            subscriber.send_raw(v1::SubscribeRequest { action }).await;
        }
        let refusal = Refusal::from(subscriber.failure().await);
        refusal.is(Code::InvalidArgument, "INVALID_ARGUMENT").says(text);
    }
}
