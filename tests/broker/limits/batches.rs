//! Batches that are too large or not well-formed change nothing.

use bytes::Bytes;
use prost::Message as _;
use streambus::proto::v1;
use streambus::proto::v1::position::At;
use tonic::Code;

use super::foreign::counted;
use crate::support::endpoint::{fetch, produce};
use crate::support::{Endpoint, Refusal, TestBroker, batch};

const RECORD_BYTES_MAX: u32 = 1_000;
const BATCH_BYTES_MAX: u32 = 4_000;

/// A broker with a topic whose limits are small.
async fn orders() -> TestBroker {
    let broker = TestBroker::start().await;
    let config = v1::TopicConfig {
        record_bytes_max: Some(RECORD_BYTES_MAX),
        batch_bytes_max: Some(BATCH_BYTES_MAX),
        ..Default::default()
    };
    broker.create_topic_with("orders", 1, config).await;
    broker
}

/// A record whose encoding has exactly so many bytes, at least 131.
fn record_of(bytes: u32) -> v1::Record {
    // The value's tag takes one byte, its length two.
    let record = batch::record(vec![b'x'; bytes as usize - 3]);
    assert_eq!(record.encoded_len(), bytes as usize);
    record
}

async fn high_watermark(broker: &Endpoint) -> u64 {
    let answer = broker.consume().await.fetch(fetch("orders", 0, At::Latest(()))).await.expect("an answer");
    answer.into_inner().partitions[0].high_watermark
}

/// A refusal that a retry cannot help, which says that the batch is to blame.
async fn refused(broker: &Endpoint, batch: Bytes) -> Refusal {
    let refusal = Refusal::of(broker.produce().await.produce(produce("orders", 0, batch)).await);
    assert!(!refusal.advises_retry, "{refusal:?}");
    assert_eq!(refusal.fact("field"), "batch", "{refusal:?}");
    refusal
}

async fn accepted(broker: &Endpoint, batch: Bytes) {
    broker.produce().await.produce(produce("orders", 0, batch)).await.expect("accepted");
}

#[tokio::test]
async fn a_record_may_be_as_large_as_allowed_and_not_a_byte_larger() {
    let broker = orders().await;
    accepted(&broker, batch::of([record_of(RECORD_BYTES_MAX)])).await;
    let refusal = refused(&broker, batch::of([batch::record("a"), record_of(RECORD_BYTES_MAX + 1)])).await;
    refusal
        .is(Code::InvalidArgument, "RECORD_TOO_LARGE")
        .says("record 1 ")
        .says("1001")
        .says("record_bytes_max is 1000")
        .states(&[
            ("record", "1"),
            ("limit", "record_bytes_max"),
            ("limit_bytes", "1000"),
            ("found", "1001"),
        ]);
    // Keys and headers count.
    let header = v1::Header { key: "h".to_owned(), value: vec![0; 1_000].into() };
    let with_header = v1::Record { headers: vec![header], ..batch::record("a") };
    for record in [batch::keyed(vec![b'k'; 1_000], "a"), with_header] {
        refused(&broker, batch::of([record]))
            .await
            .is(Code::InvalidArgument, "RECORD_TOO_LARGE")
            .says("record 0 ");
    }
    assert_eq!(high_watermark(&broker).await, 1);
}

#[tokio::test]
async fn a_batch_may_be_as_large_as_the_topic_allows_and_not_a_byte_larger() {
    let broker = orders().await;
    // Each record's tag and length take three bytes.
    let full = |last| batch::of([record_of(997), record_of(997), record_of(997), record_of(last)]);
    assert_eq!(full(997).len(), BATCH_BYTES_MAX as usize);
    accepted(&broker, full(997)).await;
    let refusal = refused(&broker, full(998)).await;
    refusal
        .is(Code::InvalidArgument, "BATCH_TOO_LARGE")
        .says("4001")
        .says("batch_bytes_max is 4000")
        .states(&[("limit", "batch_bytes_max"), ("limit_bytes", "4000"), ("found", "4001")]);
    assert_eq!(high_watermark(&broker).await, 4);
}

#[tokio::test]
async fn a_message_beyond_the_brokers_limit_is_refused_unread_and_its_connection_goes_on() {
    let broker = TestBroker::with(|config| {
        config.broker.batch_bytes_max = 1 << 20;
        config.broker.default_batch_bytes_max = 1 << 20;
    })
    .await;
    broker.create_topic("orders", 1).await;
    let mut client = broker.produce().await;
    let large = || batch::values([vec![b'x'; 2 << 20]]);

    let refusal = Refusal::of(client.produce(produce("orders", 0, large())).await);

    let refusal = refusal.is(Code::InvalidArgument, "BATCH_TOO_LARGE").says("raise broker.batch_bytes_max");
    assert_eq!(refusal.fact("limit"), "broker.batch_bytes_max");
    client.produce(produce("orders", 0, batch::values(["a"]))).await.expect("accepted");
    let request =
        v1::ProduceStreamRequest { topic: "orders".to_owned(), batch: large(), ..Default::default() };
    let mut results =
        client.produce_stream(tokio_stream::iter([request])).await.expect("a stream").into_inner();
    let refusal = Refusal::from(results.message().await.expect_err("the stream fails"));
    refusal.is(Code::InvalidArgument, "BATCH_TOO_LARGE");
    counted(&broker, &[("oversized", 2.0)]).await;
    assert_eq!(high_watermark(&broker).await, 1);
}

#[tokio::test]
async fn headers_have_limits_that_are_named() {
    let broker = orders().await;
    let header = |key: String| v1::Header { key, value: Bytes::new() };
    let with = |headers| batch::of([batch::record("a"), v1::Record { headers, ..batch::record("b") }]);
    accepted(&broker, with(vec![header("h".to_owned()); 128])).await;
    accepted(&broker, with(vec![header("h".repeat(255))])).await;
    let cases = [
        (vec![header("h".to_owned()); 129], "record 1 of the batch has more than 128 headers"),
        (vec![header("h".to_owned()), header(String::new())], "header 1 of record 1 has an empty key"),
        (vec![header("h".repeat(256))], "header 0 of record 1 has 256 bytes; at most 255"),
    ];
    for (headers, text) in cases {
        refused(&broker, with(headers)).await.is(Code::InvalidArgument, "MALFORMED_BATCH").says(text);
    }
    assert_eq!(high_watermark(&broker).await, 4);
}

#[tokio::test]
async fn batches_that_are_not_well_formed_are_refused_and_change_nothing() {
    let broker = orders().await;
    let good = batch::of([batch::keyed("key", "value")]);
    let bytes = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
    let cases = [
        (Bytes::new(), "no records"),
        (bytes(b"\xff\xff\xff"), "at byte"),
        (bytes(b"{\"records\": []}"), "at byte"),
        // A record that goes on behind the end of the batch.
        (bytes(b"\x0a\x05\x0a\x01k"), "at byte"),
        (good.slice(..good.len() - 1), "at byte"),
        // A field inside a record that goes on behind the record's end.
        (bytes(b"\x0a\x03\x12\x05v\x00\x00\x00\x00"), "at byte"),
        // Field number 0, and a group that never ends.
        (bytes(b"\x0a\x00\x00\x00"), "at byte"),
        (bytes(b"\x0a\x00\x33"), "at byte"),
        // A header whose name is not text.
        (bytes(b"\x0a\x06\x1a\x04\x0a\x02\xff\xfe"), "UTF-8"),
        // Fields of compressed batches in an uncompressed one.
        (bytes(b"\x0a\x00\x20\x01"), "record_count"),
        (bytes(b"\x0a\x00\x28\x01"), "uncompressed_bytes"),
        (bytes(b"\x0a\x00\x10\x63"), "99"),
    ];
    for (batch, text) in cases {
        refused(&broker, batch).await.is(Code::InvalidArgument, "MALFORMED_BATCH").says(text);
    }
    assert_eq!(high_watermark(&broker).await, 0);
    // What is unknown but well-formed may come from a newer client, and is kept.
    accepted(&broker, [&good[..], b"\x50\x01"].concat().into()).await;
}

#[tokio::test]
async fn every_piece_of_a_batch_is_refused_or_a_batch_itself() {
    let broker = orders().await;
    let whole = batch::of((0..4).map(|n| batch::keyed(format!("key {n}"), "value")));
    let mut client = broker.produce().await;
    let mut expected = 0;
    for end in 0..=whole.len() {
        let piece = whole.slice(..end);
        let records = v1::RecordBatch::decode(piece.clone()).map_or(0, |batch| batch.records.len() as u64);
        match client.produce(produce("orders", 0, piece)).await {
            Ok(answer) => {
                assert_eq!(answer.into_inner().base_offset, expected);
                expected += records;
                assert_ne!(records, 0, "up to {end}");
            }
            refused => {
                Refusal::of(refused).is(Code::InvalidArgument, "MALFORMED_BATCH");
                assert_eq!(records, 0, "up to {end}");
            }
        }
    }
    assert_eq!((high_watermark(&broker).await, expected), (10, 10));
}

#[tokio::test]
async fn names_of_any_length_are_unknown_topics_and_not_repeated_in_full() {
    let broker = orders().await;
    let mut client = broker.produce().await;
    for name in ["", "no\u{0}where", "n/a", &"n".repeat(60_000)] {
        let refusal = Refusal::of(client.produce(produce(name, 0, batch::values(["a"]))).await);
        let refusal = refusal.is(Code::NotFound, "UNKNOWN_TOPIC");
        assert!(refusal.message.len() < 1_000, "{} bytes", refusal.message.len());
    }
    let request = v1::CreateTopicRequest { name: "n".repeat(60_000), ..Default::default() };
    let refusal = Refusal::of(broker.topics().await.create_topic(request).await).names_field("name");
    assert!(refusal.message.len() < 1_000, "{} bytes", refusal.message.len());
}
