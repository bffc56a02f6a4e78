//! Consumers against a scripted broker.

use futures_util::StreamExt as _;

use super::*;
use crate::client::testing::{Disturb, Fake};

/// A broker whose partition 0 holds the numbers up to `count`, ten to a batch.
async fn with_numbers(count: u32) -> Fake {
    let fake = Fake::start(2).await;
    fake.fill(0, count).await;
    fake
}

fn partition() -> TopicPartition {
    TopicPartition::new("t", 0)
}

async fn consumer(fake: &Fake, position: Position, config: ConsumerConfig) -> Consumer {
    fake.client().await.consumer([(partition(), position)], config).await.expect("opened")
}

/// Reads so many records, checking that they follow `from` without gap or repetition.
async fn read(consumer: &mut Consumer, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let record = consumer.next().await.expect("no end").expect("readable");
        assert_eq!(record.offset, Offset(number));
        assert_eq!(record.value.as_deref(), Some(number.to_string().as_bytes()));
    }
}

#[tokio::test]
async fn reads_from_the_start_in_order() {
    let fake = with_numbers(95).await;
    let mut consumer = consumer(&fake, Position::Earliest, ConsumerConfig::default()).await;
    read(&mut consumer, 0..95).await;
    assert_eq!(consumer.position(&partition()), Some(Position::Offset(Offset(95))));
}

#[tokio::test]
async fn skips_records_below_the_asked_offset() {
    let fake = with_numbers(30).await;
    let from = Position::Offset(Offset(13));
    let mut consumer = consumer(&fake, from, ConsumerConfig::default()).await;

    let batch = consumer.next_batch().await.expect("no end").expect("readable");

    assert_eq!((batch.base_offset(), batch.next_offset(), batch.record_count()), (Offset(13), Offset(20), 7));
    assert_eq!(batch.into_iter().next().expect("one").value.as_deref(), Some(&b"13"[..]));
    read(&mut consumer, 20..30).await;
}

#[tokio::test]
async fn credit_bounds_what_is_sent_ahead_and_is_granted_again() {
    let fake = with_numbers(200).await;
    let batch_bytes = fake.state().logs[&0][5].batch.len() as u64;
    let config = ConsumerConfig { credit_bytes: 2 * batch_bytes, ..ConsumerConfig::default() };
    let mut consumer = consumer(&fake, Position::Earliest, config).await;

    read(&mut consumer, 0..200).await;

    let state = fake.state();
    assert!(state.grants >= 5, "{} grants", state.grants);
    assert!(state.credit_overdrawn < batch_bytes, "only the last batch may exceed the credit");
}

#[tokio::test]
async fn resumes_at_the_next_offset_when_the_stream_breaks() {
    let fake = with_numbers(60).await;
    fake.state().disturbances =
        [Disturb::Nothing, Disturb::Nothing, Disturb::Break, Disturb::Nothing, Disturb::Break].into();
    let mut consumer = consumer(&fake, Position::Earliest, ConsumerConfig::default()).await;

    read(&mut consumer, 0..60).await;

    let positions: Vec<_> =
        fake.state().subscriptions.iter().map(|start| start.partitions[0].position).collect();
    let offset = |offset| Some(v1::Position::from(Position::Offset(Offset(offset))));
    assert_eq!(positions[1..], [offset(20), offset(30)]);
}

#[tokio::test]
async fn a_moved_partition_is_assigned_again() {
    let fake = with_numbers(40).await;
    let moved = Disturb::Fail(ErrorCode::NotLeader);
    fake.state().disturbances = [Disturb::Nothing, moved, moved].into();
    let mut consumer = consumer(&fake, Position::Earliest, ConsumerConfig::default()).await;

    // What the failing messages would have carried is read again from where it was.
    read(&mut consumer, 0..40).await;
    assert_eq!(fake.state().subscriptions.len(), 1, "the session went on");
}

#[tokio::test]
async fn tells_an_offset_that_is_gone_and_ends() {
    let fake = with_numbers(40).await;
    fake.state().log_start = 20;
    let from = Position::Offset(Offset(5));
    let mut consumer = consumer(&fake, from, ConsumerConfig::default()).await;

    let error = consumer.next().await.expect("an item").expect_err("out of range");
    assert_eq!(error.code(), Some(ErrorCode::OffsetOutOfRange));
    assert!(consumer.next().await.is_none(), "nothing is left to read");

    consumer.seek(partition(), Position::Earliest).await.expect("known");
    read(&mut consumer, 20..40).await;
}

#[tokio::test]
async fn goes_on_at_the_oldest_record_when_told_to() {
    let fake = with_numbers(40).await;
    fake.state().log_start = 20;
    let config = ConsumerConfig { on_out_of_range: OffsetReset::Earliest, ..ConsumerConfig::default() };
    let mut consumer = consumer(&fake, Position::Offset(Offset(5)), config).await;
    read(&mut consumer, 20..40).await;
}

#[tokio::test]
async fn seeking_hands_out_nothing_of_before() {
    let fake = with_numbers(60).await;
    let mut consumer = consumer(&fake, Position::Earliest, ConsumerConfig::default()).await;
    read(&mut consumer, 0..25).await;

    consumer.seek(partition(), Position::Offset(Offset(3))).await.expect("known");
    read(&mut consumer, 3..60).await;
}

#[tokio::test]
async fn a_removed_partition_is_silent() {
    let fake = with_numbers(30).await;
    let mut consumer = consumer(&fake, Position::Earliest, ConsumerConfig::default()).await;
    read(&mut consumer, 0..5).await;

    consumer.remove([&partition()]);

    assert!(consumer.next().await.is_none());
    assert_eq!(consumer.position(&partition()), None);
}

#[tokio::test]
async fn a_partition_that_does_not_exist_is_refused() {
    let fake = with_numbers(1).await;
    let start = [(TopicPartition::new("t", 2), Position::Earliest)];
    let result = fake.client().await.consumer(start, ConsumerConfig::default()).await;
    assert!(matches!(result, Err(Error::UnknownPartition { partition: 2, partitions: 2, .. })));
}

#[tokio::test]
async fn fetches_once() {
    let fake = with_numbers(30).await;
    let wanted =
        [(TopicPartition::new("t", 1), Position::Earliest), (partition(), Position::Offset(Offset(25)))];

    let mut fetched =
        fake.client().await.fetch(&wanted, &FetchOptions::default()).await.expect("answered").into_iter();

    let empty = fetched.next().expect("two answers").expect("readable");
    assert!(empty.batches.is_empty());
    let last = fetched.next().expect("two answers").expect("readable");
    assert_eq!((last.high_watermark, last.next_offset), (Offset(30), Offset(30)));
    assert_eq!(last.batches[0].record_count(), 5);
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named() {
    let fake = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = fake.local_addr().expect("an address").to_string();
    drop(fake);
    let error = crate::client::Client::connect(address.clone(), crate::client::ClientConfig::default())
        .await
        .expect_err("nobody listens");
    assert!(error.to_string().starts_with(&format!("cannot reach {address}: ")), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(!error.may_have_been_written());
}
