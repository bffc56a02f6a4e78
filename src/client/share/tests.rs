//! Members of share groups against a scripted broker.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};

use super::*;
use crate::client::testing::Fake;
use crate::client::testing::group::{Did, Order};
use crate::client::{ErrorCode, Offset};
use crate::proto::v1::AckKind;

/// A broker whose partitions hold numbers up to `counts`, ten to a batch, all of which are leased to whoever joins.
async fn with_numbers(counts: &[u32]) -> Fake {
    let partitions = u32::try_from(counts.len()).expect("few");
    let fake = Fake::start(partitions).await;
    for (partition, count) in (0..).zip(counts) {
        fake.fill(partition, *count).await;
    }
    fake.state().groups.assignment = (0..partitions).collect();
    fake
}

fn config() -> ShareConfig {
    ShareConfig::new("g", ["t"])
}

async fn join(fake: &Fake, config: ShareConfig) -> ShareConsumer {
    fake.client().await.share_consumer(config).await.expect("joined")
}

async fn take(consumer: &mut ShareConsumer, count: usize) -> Vec<SharedRecord> {
    let mut records = Vec::new();
    while records.len() < count {
        records.push(consumer.next().await.expect("no end").expect("readable"));
    }
    records
}

/// What was acknowledged, as kind and range.
fn acknowledged(fake: &Fake) -> Vec<(AckKind, u64, u64)> {
    let acknowledged = fake.state().groups.acknowledged();
    acknowledged.iter().map(|ack| (ack.kind(), ack.first_offset, ack.last_offset)).collect()
}

fn order(fake: &Fake, order: Order) {
    fake.change(|state| state.groups.orders.push_back(order));
}

#[tokio::test]
async fn records_tell_how_often_they_were_delivered() {
    let fake = with_numbers(&[3]).await;
    let mut consumer = join(&fake, config()).await;
    let records = take(&mut consumer, 3).await;
    assert_eq!(records[2].offset, Offset(2));
    assert_eq!(records[2].delivery_count(), 1);
    assert_eq!(records[2].header("streambus-delivery-count").map(|value| &value[..]), Some(&b"1"[..]));
    assert_eq!(fake.state().groups.joins[0].share.as_ref().map(|share| share.deliveries_max), Some(5));
}

#[tokio::test]
async fn acknowledgements_are_batched_and_each_is_told() {
    let fake = with_numbers(&[100]).await;
    let mut consumer = join(&fake, config()).await;
    let records = take(&mut consumer, 100).await;
    fake.state().groups.acks_held = true;
    fake.state().groups.expired.insert(50);

    let outcomes: Vec<Acknowledged> = records.into_iter().map(SharedRecord::accept).collect();
    fake.until(|state| state.groups.did.iter().filter(|did| matches!(did, Did::Acknowledge(_))).count() == 4)
        .await;
    fake.change(|state| state.groups.acks_held = false);

    for (offset, outcome) in outcomes.into_iter().enumerate() {
        let outcome = outcome.await;
        if offset == 50 {
            assert_eq!(outcome.expect_err("its lease is over").code(), Some(ErrorCode::LeaseExpired));
        } else {
            outcome.unwrap_or_else(|error| panic!("{offset}: {error}"));
        }
    }
    let requests = fake.state().groups.did.iter().filter(|did| matches!(did, Did::Acknowledge(_))).count();
    assert!(requests <= 6, "{requests} requests for 100 acknowledgements");
}

#[tokio::test]
async fn each_kind_of_acknowledgement_says_what_it_should() {
    let fake = with_numbers(&[4]).await;
    let mut consumer = join(&fake, config()).await;
    let mut records = take(&mut consumer, 4).await.into_iter();
    let mut record = || records.next().expect("four");

    record().accept().await.expect("accepted");
    record().release(Duration::from_millis(1_500)).await.expect("released");
    record().reject("no such customer").await.expect("rejected");
    let last = record();
    last.extend().await.expect("extended");
    drop(last);

    fake.until(|state| state.groups.acknowledged().len() == 5).await;
    let kinds = [AckKind::Accept, AckKind::Release, AckKind::Reject, AckKind::Extend, AckKind::Release];
    let expected: Vec<_> = kinds.into_iter().zip([0, 1, 2, 3, 3]).map(|(kind, at)| (kind, at, at)).collect();
    assert_eq!(acknowledged(&fake), expected);
    let details = fake.state().groups.acknowledged();
    assert_eq!(details[1].delay, Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }));
    assert_eq!(details[2].reason, "no such customer");
}

#[tokio::test]
async fn closing_waits_for_results_and_leaves_the_rest_to_the_broker() {
    let fake = with_numbers(&[20]).await;
    let mut consumer = join(&fake, config()).await;
    let mut records = take(&mut consumer, 5).await;
    let kept = records.pop().expect("five");
    records.into_iter().for_each(|record| drop(record.accept()));

    consumer.close().await.expect("closed");

    let mut offsets: Vec<(AckKind, u64)> = Vec::new();
    for (kind, first, last) in acknowledged(&fake) {
        offsets.extend((first..=last).map(|offset| (kind, offset)));
    }
    offsets.sort_by_key(|(_, offset)| *offset);
    // Of what is released before a member leaves, the broker delivers it some once more, and counts that.
    assert_eq!(offsets, (0..4).map(|offset| (AckKind::Accept, offset)).collect::<Vec<_>>());
    assert_eq!(fake.state().groups.deeds().last(), Some(&Did::Leave));
    assert_eq!(kept.accept().await.expect_err("it was given back").code(), Some(ErrorCode::LeaseExpired));
}

#[tokio::test]
async fn leases_end_with_the_membership() {
    let fake = with_numbers(&[20]).await;
    let mut consumer = join(&fake, config()).await;
    let before = take(&mut consumer, 3).await;

    order(&fake, Order::Break);
    fake.until(|state| state.groups.joins.len() == 2).await;
    let again = take(&mut consumer, 20).await;

    // What was received and not handed out before comes once, with the new lease.
    let offsets: Vec<u64> = again.iter().map(|record| record.offset.0).collect();
    assert_eq!(offsets, (0..20).collect::<Vec<_>>());
    for record in before {
        let error = record.accept().await.expect_err("its lease is over");
        assert_eq!(error.code(), Some(ErrorCode::LeaseExpired));
    }
    for record in again {
        record.accept().await.expect("its lease is new");
    }
}

#[tokio::test]
async fn a_revoked_partition_is_released_when_the_program_is_done_with_it() {
    let fake = with_numbers(&[20]).await;
    let mut consumer = join(&fake, config()).await;
    let mut records = take(&mut consumer, 2).await;

    order(&fake, Order::Revoke(vec![0], Duration::from_secs(60)));
    // What the program does not have goes back at once.
    fake.until(|state| {
        let released = |ack: &v1::Acknowledgement| ack.kind() == AckKind::Release && ack.last_offset == 19;
        state.groups.acknowledged().iter().any(released)
    })
    .await;
    assert!(consumer.next().now_or_never().is_none(), "nothing of it is handed out any more");
    records.pop().expect("two").accept().await.expect("accepted");
    assert!(!fake.state().groups.did.contains(&Did::Release(vec![0])), "one is left");
    records.pop().expect("one").accept().await.expect("accepted");

    fake.until(|state| state.groups.did.contains(&Did::Release(vec![0]))).await;
}

#[tokio::test(start_paused = true)]
async fn leases_are_extended_on_request() {
    let fake = with_numbers(&[1]).await;
    let mut consumer = join(&fake, ShareConfig { auto_extend: true, ..config() }).await;
    let record = take(&mut consumer, 1).await.pop().expect("one");

    // Well beyond the lease of 30 s.
    fake.until(|state| state.groups.acknowledged().len() == 9).await;

    assert!(acknowledged(&fake).iter().all(|ack| *ack == (AckKind::Extend, 0, 0)));
    record.accept().await.expect("it is leased still");
}

#[tokio::test(start_paused = true)]
async fn a_record_whose_lease_ran_out_in_the_buffer_is_not_handed_out() {
    let fake = with_numbers(&[20]).await;
    let mut consumer = join(&fake, config()).await;
    let records = take(&mut consumer, 1).await;
    tokio::time::advance(Duration::from_secs(31)).await;
    fake.fill(0, 21).await;
    let next = take(&mut consumer, 1).await;
    assert_eq!(next[0].offset, Offset(20));
    drop(records);
}

#[tokio::test]
async fn a_keepalive_is_answered_while_the_program_is_busy() {
    let fake = with_numbers(&[1]).await;
    let consumer = join(&fake, config()).await;
    order(&fake, Order::Keepalive);
    fake.until(|state| state.groups.did.contains(&Did::Heartbeat)).await;
    drop(consumer);
}

#[tokio::test]
async fn an_acknowledgement_links_to_the_spans_that_made_its_records() {
    use crate::client::{ProducerConfig, ProducerRecord};
    const MADE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fake = with_numbers(&[0]).await;
    let producer = fake.client().await.producer(ProducerConfig::default()).await.expect("started");
    let record = ProducerRecord::new("t").partition(0).value("v").header("traceparent", MADE);
    producer.send(record).await.expect("taken").await.expect("delivered");
    let (client, _provider, kept) = fake.traced_client().await;
    let mut consumer = client.share_consumer(config()).await.expect("joined");

    take(&mut consumer, 1).await.pop().expect("one").accept().await.expect("accepted");

    let spans = kept.spans();
    let span = spans.iter().find(|span| span.name == "ack t").expect("a span");
    assert_eq!(span.links.links[0].span_context.span_id().to_string(), "00f067aa0ba902b7");
    let group = opentelemetry::KeyValue::new("messaging.consumer.group.name", "g");
    assert!(span.attributes.contains(&group));
}
