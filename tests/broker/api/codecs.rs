//! Compressed batches: untouched for who knows the codec, plain for who does not, and never trusted.

use bytes::Bytes;
use prost::Message as _;
use streambus::proto::v1;
use streambus::proto::v1::Codec::{Lz4, Zstd};
use streambus::proto::v1::position::At;
use streambus::telemetry::catalog;
use tonic::Code;

use crate::support::asking::{append, error, offsets, read};
use crate::support::endpoint::{fetch, from, produce};
use crate::support::{Refusal, Subscriber, TestBroker, batch};

async fn orders() -> TestBroker {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    broker
}

/// A batch that compresses well.
fn plain() -> Bytes {
    batch::of((0..10).map(|n| batch::keyed(format!("key {n}"), vec![b'x'; 1_000])))
}

/// A compressed batch of which something was changed afterwards.
fn lying(codec: v1::Codec, change: impl FnOnce(&mut v1::RecordBatch)) -> Bytes {
    let mut decoded = v1::RecordBatch::decode(batch::compressed(&plain(), codec)).expect("a batch");
    change(&mut decoded);
    decoded.encode_to_vec().into()
}

#[tokio::test]
async fn a_batch_goes_untouched_to_who_knows_its_codec_and_plain_to_who_does_not() {
    let broker = orders().await;
    let compressed = [Lz4, Zstd].map(|codec| batch::compressed(&plain(), codec));
    for (batch, base) in compressed.iter().zip([0, 10]) {
        assert!(batch.len() < plain().len() / 2);
        assert_eq!(append(&broker, "orders", 0, batch.clone()).await.base_offset, base);
    }
    let cases = [
        (vec![Lz4, Zstd], [compressed[0].clone(), compressed[1].clone()]),
        (vec![Zstd], [plain(), compressed[1].clone()]),
        (vec![Lz4], [compressed[0].clone(), plain()]),
        (vec![], [plain(), plain()]),
    ];
    for (codecs, expected) in cases {
        let fetched = read(&broker, "orders", 0, At::Earliest(()), &codecs).await;
        let start = v1::StartSubscription {
            partitions: vec![from("orders", 0, At::Earliest(()))],
            credit_bytes: 1 << 20,
            accepted_codecs: codecs.iter().map(|codec| (*codec).into()).collect(),
        };
        let mut subscriber = Subscriber::start_with(&broker, start).await;
        let mut delivered = subscriber.delivery().await;
        if delivered.next_offset < 20 {
            delivered.batches.extend(subscriber.delivery().await.batches);
        }
        for records in [&fetched, &delivered] {
            assert_eq!(offsets(records), [0, 10]);
            let batches: Vec<_> = records.batches.iter().map(|stored| stored.batch.clone()).collect();
            assert!(batches == expected, "{codecs:?}");
            assert!(records.batches.iter().all(|stored| stored.record_count == 10));
        }
    }
}

#[tokio::test]
async fn a_codec_that_the_topic_does_not_allow_is_refused() {
    let broker = TestBroker::start().await;
    let codecs_allowed = Some(v1::AllowedCodecs { codecs: vec![Zstd.into()] });
    broker.create_topic_with("orders", 1, v1::TopicConfig { codecs_allowed, ..Default::default() }).await;
    append(&broker, "orders", 0, batch::compressed(&plain(), Zstd)).await;
    for (batch, name) in [(plain(), "none"), (batch::compressed(&plain(), Lz4), "lz4")] {
        let refusal = Refusal::of(broker.produce().await.produce(produce("orders", 0, batch)).await);
        refusal
            .is(Code::InvalidArgument, "CODEC_NOT_ALLOWED")
            .says(name)
            .says("it allows: zstd")
            .states(&[("codec", name), ("allowed", "zstd")]);
    }
}

#[tokio::test]
async fn a_batch_that_lies_about_itself_is_an_error_that_names_its_offsets() {
    for codec in [Lz4, Zstd] {
        let broker = orders().await;
        let lies = [
            lying(codec, |batch| batch.record_count = 12),
            lying(codec, |batch| batch.uncompressed_bytes += 1),
            lying(codec, |batch| batch.uncompressed_bytes -= 1),
            lying(codec, |batch| {
                let mut body = batch.compressed_records[..4].to_vec();
                body.extend(b"no such thing");
                batch.compressed_records = body.into();
            }),
        ];
        append(&broker, "orders", 0, plain()).await;
        let mut bounds = Vec::new();
        for lie in &lies {
            let base = append(&broker, "orders", 0, lie.clone()).await.base_offset;
            let count = v1::RecordBatch::decode(lie.clone()).expect("a batch").record_count;
            bounds.push((base, base + u64::from(count)));
        }
        let end = append(&broker, "orders", 0, plain()).await.base_offset;

        // What is before is served; the next read meets the lie.
        let before = read(&broker, "orders", 0, At::Earliest(()), &[]).await;
        assert_eq!((before.error.clone(), offsets(&before), before.next_offset), (None, vec![0], 10));
        for (base, behind) in bounds {
            let records = read(&broker, "orders", 0, At::Offset(base), &[]).await;
            let (code, message) = error(&records);
            assert_eq!(code, v1::ErrorCode::MalformedBatch);
            let blamed = format!("the producer's batch at offset {base} cannot be decompressed");
            assert!(message.contains(&blamed), "{message}");
            assert!(message.ends_with(&format!("read on at {behind}")), "{message}");
            assert!(records.batches.is_empty());
            let mut subscriber =
                Subscriber::start(&broker, vec![from("orders", 0, At::Offset(base))], 1 << 20).await;
            assert_eq!(error(&subscriber.next().await).0, v1::ErrorCode::MalformedBatch);
            // The stream stays open for what lies behind.
            subscriber.add("orders", 0, At::Offset(end)).await;
            assert_eq!(offsets(&subscriber.delivery().await), [end]);
        }
        // Who knows the codec gets the bytes and judges them itself.
        let all = read(&broker, "orders", 0, At::Earliest(()), &[codec]).await;
        assert_eq!(all.batches.len(), 6);
        // Nothing is wrong with what is stored.
        let view = broker.scrape().await;
        assert!(view.series_of(&catalog::STORAGE_ERRORS, "").all(|(_, count)| count == 0.0));
    }
}

#[tokio::test]
async fn a_batch_that_was_allowed_is_read_when_the_topic_allows_less() {
    let broker = orders().await;
    let plain = batch::values([vec![b'x'; 200_000]]);
    append(&broker, "orders", 0, batch::compressed(&plain, Zstd)).await;
    let config = v1::TopicConfig {
        record_bytes_max: Some(1 << 16),
        batch_bytes_max: Some(1 << 16),
        ..Default::default()
    };
    let request = v1::AlterTopicRequest { name: "orders".to_owned(), config: Some(config) };
    broker.topics().await.alter_topic(request).await.expect("altered");

    let records = read(&broker, "orders", 0, At::Earliest(()), &[]).await;

    assert_eq!(records.error, None);
    assert!(records.batches[0].batch == plain);
}

#[tokio::test]
async fn envelopes_that_cannot_be_right_are_refused_at_once() {
    let broker = orders().await;
    let cases = [
        (lying(Zstd, |batch| batch.record_count = 0), "record_count"),
        (lying(Zstd, |batch| batch.uncompressed_bytes = 0), "uncompressed_bytes"),
        (lying(Zstd, |batch| batch.record_count = u32::MAX), "record_count"),
        (lying(Zstd, |batch| batch.compressed_records = Bytes::new()), "compressed_records"),
        (lying(Zstd, |batch| batch.compressed_records = "garbage".into()), "not valid zstd"),
        (lying(Lz4, |batch| batch.compressed_records = "garbage".into()), "not valid lz4"),
        (lying(Zstd, |batch| batch.records.push(batch::record("beside"))), "records"),
        (lying(Zstd, |batch| batch.codec = 9), "codec"),
        (lying(Zstd, |batch| batch.codec = 0), "compressed_records"),
    ];
    let mut client = broker.produce().await;
    for (batch, text) in cases {
        let refusal = Refusal::of(client.produce(produce("orders", 0, batch)).await);
        refusal.is(Code::InvalidArgument, "MALFORMED_BATCH").says(text);
    }
    let large = lying(Zstd, |batch| batch.uncompressed_bytes = (4 << 20) + 1);
    let refusal = Refusal::of(client.produce(produce("orders", 0, large)).await);
    refusal.is(Code::InvalidArgument, "BATCH_TOO_LARGE").says("4194304");
    assert_eq!(read(&broker, "orders", 0, At::Earliest(()), &[]).await.high_watermark, 0);
}

#[tokio::test]
async fn max_bytes_bounds_what_small_batches_become_when_they_are_decompressed() {
    let broker = orders().await;
    let plain = batch::values([vec![0; 1 << 19]]);
    let small = batch::compressed(&plain, Zstd);
    assert!(small.len() < 1_000);
    for _ in 0..8 {
        append(&broker, "orders", 0, small.clone()).await;
    }
    let request = v1::FetchRequest {
        max_bytes: 1 << 20,
        accepted_codecs: vec![],
        ..fetch("orders", 0, At::Earliest(()))
    };
    let answer = broker.consume().await.fetch(request).await.expect("an answer").into_inner();
    // The first batch, and no more than fits.
    assert_eq!(offsets(&answer.partitions[0]), [0]);
    assert_eq!(answer.partitions[0].next_offset, 1);
}
