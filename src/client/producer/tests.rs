//! Producers against a scripted broker.

use std::time::Duration;

use opentelemetry::trace::{SpanKind, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracerProvider;
use prost::Message as _;

use super::*;
use crate::client::testing::{Act, Fake, Kept};
use crate::client::{Codec, ErrorCode};
use crate::proto::v1;
use crate::record::{decode, partition_for_key};

/// Each record is a batch, sent at once.
fn unbatched() -> ProducerConfig {
    ProducerConfig { linger: Duration::ZERO, max_batch_records: 1, ..ProducerConfig::default() }
}

async fn send_numbers(producer: &Producer, numbers: std::ops::Range<u32>) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for number in numbers {
        let record = ProducerRecord::new("t").partition(0).value(number.to_string());
        deliveries.push(producer.send(record).await.expect("taken"));
    }
    deliveries
}

fn numbers(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

/// Every record is delivered, at the offset of its position.
async fn all_in_order(deliveries: Vec<Delivery>) {
    for (offset, delivery) in deliveries.into_iter().enumerate() {
        assert_eq!(delivery.await.expect("delivered").offset.0, offset as u64);
    }
}

#[tokio::test]
async fn records_get_the_offsets_of_their_order() {
    let fake = Fake::start(1).await;
    let config = ProducerConfig { max_batch_records: 7, ..ProducerConfig::default() };
    let producer = fake.client().await.producer(config).await.expect("started");

    all_in_order(send_numbers(&producer, 0..100).await).await;

    assert_eq!(fake.state().values(0), numbers(0..100));
    assert_eq!(fake.state().requests.len(), 15, "14 full batches and the rest");
    assert_eq!(producer.buffered_bytes(), 0);
}

#[tokio::test]
async fn a_busy_broker_gets_everything_once_and_in_order() {
    let fake = Fake::start(1).await;
    let busy = Act::Refuse(ErrorCode::Busy);
    fake.state().script = [Act::Commit, Act::Commit, busy, Act::Commit, busy, busy, busy].into();
    let producer = fake.client().await.producer(unbatched()).await.expect("started");

    all_in_order(send_numbers(&producer, 0..50).await).await;

    assert_eq!(fake.state().values(0), numbers(0..50));
    assert_eq!(fake.state().producers_made, 1);
}

#[tokio::test]
async fn an_append_whose_answer_is_lost_is_not_repeated() {
    let fake = Fake::start(1).await;
    fake.state().script = [Act::Commit, Act::Commit, Act::CommitAndBreak].into();
    let producer = fake.client().await.producer(unbatched()).await.expect("started");

    all_in_order(send_numbers(&producer, 0..20).await).await;

    assert_eq!(fake.state().values(0), numbers(0..20));
    assert!(fake.state().duplicates >= 1, "the broker recognised the retry");
    assert_eq!(fake.state().streams, 2);
}

#[tokio::test]
async fn what_a_broken_stream_lost_is_sent_again() {
    let fake = Fake::start(1).await;
    fake.state().script = [Act::Break, Act::Commit, Act::Break, Act::CommitAndBreak, Act::Break].into();
    let producer = fake.client().await.producer(unbatched()).await.expect("started");

    all_in_order(send_numbers(&producer, 0..30).await).await;

    assert_eq!(fake.state().values(0), numbers(0..30));
}

#[tokio::test]
async fn a_batch_of_unknown_outcome_is_appended_once() {
    let fake = Fake::start(1).await;
    fake.state().script = [Act::Commit, Act::Refuse(ErrorCode::OutcomeUnknown)].into();
    let producer = fake.client().await.producer(unbatched()).await.expect("started");

    all_in_order(send_numbers(&producer, 0..10).await).await;

    assert_eq!(fake.state().values(0), numbers(0..10));
}

#[tokio::test]
async fn a_refused_batch_fails_alone() {
    let fake = Fake::start(1).await;
    fake.state().script = [Act::Commit, Act::Refuse(ErrorCode::RecordTooLarge)].into();
    let producer = fake.client().await.producer(unbatched()).await.expect("started");

    let mut results = Vec::new();
    for delivery in send_numbers(&producer, 0..10).await {
        results.push(delivery.await);
    }

    let refused = results.remove(1).expect_err("refused");
    assert_eq!(refused.code(), Some(ErrorCode::RecordTooLarge));
    assert!(!refused.may_have_been_written());
    assert!(results.iter().all(Result::is_ok));
    let mut expected = numbers(0..10);
    expected.remove(1);
    assert_eq!(fake.state().values(0), expected);
    assert_eq!(fake.state().producers_made, 1, "the sequence was mended without a new id");
}

#[tokio::test]
async fn a_forgotten_producer_begins_anew() {
    let fake = Fake::start(1).await;
    let producer = fake.client().await.producer(unbatched()).await.expect("started");
    all_in_order(send_numbers(&producer, 0..3).await).await;
    fake.state().script = [Act::Forget].into();

    for delivery in send_numbers(&producer, 3..10).await {
        delivery.await.expect("delivered");
    }

    assert_eq!(fake.state().values(0), numbers(0..10));
    assert_eq!(fake.state().producers_made, 2);
}

#[tokio::test]
async fn a_silent_broker_ends_in_a_timeout_that_says_so() {
    let fake = Fake::start(1).await;
    fake.state().script = [Act::Ignore].into();
    let config = ProducerConfig { delivery_timeout: Duration::from_secs(1), ..unbatched() };
    let producer = fake.client().await.producer(config).await.expect("started");

    let first = send_numbers(&producer, 0..1).await.remove(0).await.expect_err("no answer");
    let second = send_numbers(&producer, 1..2).await.remove(0).await;

    assert!(matches!(first, Error::DeliveryTimeout { may_have_been_written: true, .. }), "{first:?}");
    second.expect("delivered under a new id");
    assert_eq!(fake.state().values(0), ["1"]);
    assert_eq!(fake.state().producers_made, 2);
}

#[tokio::test]
async fn the_window_bounds_what_is_in_flight() {
    let fake = Fake::start(1).await;
    fake.state().held = true;
    let config = ProducerConfig { max_in_flight: 2, ..unbatched() };
    let producer = fake.client().await.producer(config).await.expect("started");

    let deliveries = send_numbers(&producer, 0..5).await;
    fake.until(|state| !state.requests.is_empty()).await;
    assert!(fake.state().requests.len() <= 2);
    fake.change(|state| state.held = false);

    all_in_order(deliveries).await;
    assert_eq!(fake.state().values(0), numbers(0..5));
}

#[tokio::test]
async fn a_full_buffer_makes_senders_wait() {
    let fake = Fake::start(1).await;
    fake.state().held = true;
    let config = ProducerConfig { buffer_bytes: 1_000, ..unbatched() };
    let producer = fake.client().await.producer(config).await.expect("started");
    let record = || ProducerRecord::new("t").value(vec![0; 900]);
    let first = producer.send(record()).await.expect("taken");

    assert!(matches!(producer.try_send(record()), Err(Error::BufferFull { limit: 1_000 })));
    let second = tokio::spawn({
        let (producer, record) = (producer.clone(), record());
        async move { producer.send(record).await.expect("taken").await }
    });
    fake.until(|state| state.requests.len() == 1).await;
    assert!(!second.is_finished());
    fake.change(|state| state.held = false);

    first.await.expect("delivered");
    second.await.expect("no panic").expect("delivered");
}

#[tokio::test]
async fn oversized_records_are_refused_at_once() {
    let fake = Fake::start(1).await;
    let producer = fake.client().await.producer(unbatched()).await.expect("started");

    let record = ProducerRecord::new("t").value(vec![0; (1 << 20) + 1]);
    let error = producer.send(record).await.expect_err("too large");

    assert!(
        matches!(error, Error::RecordTooLarge { limit_name: "record_bytes_max", limit: 1_048_576, .. }),
        "{error:?}"
    );
    assert_eq!(producer.buffered_bytes(), 0);
}

#[tokio::test]
async fn keys_choose_partitions_and_unknown_ones_are_refused() {
    let fake = Fake::start(3).await;
    let producer = fake.client().await.producer(ProducerConfig::default()).await.expect("started");

    for key in ["a", "b", "c", "d", "e"] {
        let delivery = producer.send(ProducerRecord::new("t").key(key).value(key)).await.expect("taken");
        assert_eq!(delivery.await.expect("delivered").partition, partition_for_key(key.as_bytes(), 3));
    }
    let error = producer.send(ProducerRecord::new("t").partition(3).value("x")).await.expect_err("missing");
    assert!(matches!(error, Error::UnknownPartition { partition: 3, partitions: 3, .. }), "{error:?}");
    let error = producer.send(ProducerRecord::new("nowhere").value("x")).await.expect_err("missing");
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
}

#[tokio::test]
async fn records_without_a_key_fill_partitions_in_turn() {
    let fake = Fake::start(4).await;
    let config = ProducerConfig { max_batch_records: 5, ..ProducerConfig::default() };
    let producer = fake.client().await.producer(config).await.expect("started");

    for _ in 0..40 {
        producer.try_send_after_prepare("v").await;
    }
    producer.flush().await;

    let state = fake.state();
    let counts: Vec<usize> = (0..4).map(|partition| state.values(partition).len()).collect();
    assert_eq!(counts, [10; 4]);
    assert_eq!(state.requests.len(), 8, "no batch was split");
}

#[tokio::test]
async fn small_batches_without_keys_come_to_each_partition_in_runs() {
    let fake = Fake::start(4).await;
    let config = ProducerConfig {
        batch_bytes: 16 << 10,
        linger: Duration::from_secs(60),
        ..ProducerConfig::default()
    };
    let producer = fake.client().await.producer(config).await.expect("started");

    let value = "v".repeat(1_000);
    for _ in 0..4 * 8 * 16 {
        producer.try_send_after_prepare(&value).await;
    }
    producer.flush().await;

    let state = fake.state();
    let counts: Vec<usize> = (0..4).map(|partition| state.values(partition).len()).collect();
    assert_eq!(counts, [8 * 16; 4]);
    assert_eq!(state.requests.len(), 4 * 8, "no record without room was left behind in a batch of its own");
}

impl Producer {
    async fn try_send_after_prepare(&self, value: &str) {
        self.prepare("t").await.expect("known");
        drop(self.try_send(ProducerRecord::new("t").value(value.to_owned())).expect("taken"));
    }
}

#[tokio::test]
async fn compressed_batches_arrive_whole() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let fake = Fake::start(1).await;
        let config = ProducerConfig { compression: codec, ..ProducerConfig::default() };
        let producer = fake.client().await.producer(config).await.expect("started");
        let value = "again and ".repeat(100);
        let record = || ProducerRecord::new("t").value(value.clone());
        drop(producer.send(record()).await.expect("taken"));
        drop(producer.send(record()).await.expect("taken"));

        producer.flush().await;

        let state = fake.state();
        assert_eq!(state.values(0), [value.clone(), value.clone()]);
        assert!(state.requests[0].batch.len() < value.len(), "{codec}");
    }
}

#[tokio::test]
async fn a_topic_without_uncompressed_batches_gets_none() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let fake = Fake::start(1).await;
        fake.state().codecs_allowed = Some(v1::AllowedCodecs { codecs: vec![codec.into()] });
        let config = ProducerConfig { compression: codec, ..ProducerConfig::default() };
        let producer = fake.client().await.producer(config).await.expect("started");

        // Too little to become smaller; once a batch that lingered, once one that was flushed.
        producer.send(ProducerRecord::new("t").value("a")).await.expect("taken").await.expect("delivered");
        drop(producer.send(ProducerRecord::new("t").value("b")).await.expect("taken"));
        producer.flush().await;

        let state = fake.state();
        assert_eq!(state.values(0), ["a", "b"]);
        for request in &state.requests {
            let batch = v1::RecordBatch::decode(request.batch.clone()).expect("a batch");
            assert_eq!(batch.codec(), v1::Codec::try_from(codec.number()).expect("known"));
        }
    }
}

#[tokio::test]
async fn closing_delivers_what_was_sent_and_refuses_the_rest() {
    let fake = Fake::start(1).await;
    let config = ProducerConfig { linger: Duration::from_secs(60), ..ProducerConfig::default() };
    let producer = fake.client().await.producer(config).await.expect("started");
    let deliveries = send_numbers(&producer, 0..3).await;

    producer.close().await;

    assert!(deliveries.iter().all(|delivery| delivery.peek().is_some_and(|result| result.is_ok())));
    let error = producer.send(ProducerRecord::new("t").value("late")).await.expect_err("closed");
    assert!(matches!(error, Error::Closed { may_have_been_written: false }));
    assert_eq!(producer.buffered_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn closing_delivers_what_was_sent_just_before_however_it_meets_the_task() {
    let fake = Fake::start(1).await;
    let client = fake.client().await;
    // The moment at which the task could miss the record is short.
    for attempt in 0..1_000 {
        let producer = client.producer(ProducerConfig::default()).await.expect("started");
        producer.prepare("t").await.expect("known");
        let delivery = producer.send(ProducerRecord::new("t").value("v")).await.expect("taken");
        producer.close().await;
        delivery.await.unwrap_or_else(|error| panic!("attempt {attempt}: {error}"));
    }
}

#[tokio::test]
async fn callbacks_hear_outcomes() {
    let fake = Fake::start(1).await;
    let producer = fake.client().await.producer(ProducerConfig::default()).await.expect("started");
    let (heard, outcome) = oneshot::channel();
    let record = ProducerRecord::new("t").value("v");
    producer.send_with(record, move |result| drop(heard.send(result))).await.expect("taken");

    assert_eq!(outcome.await.expect("called").expect("delivered").offset.0, 0);
}

#[tokio::test]
async fn a_producer_without_ids_sends_none() {
    let fake = Fake::start(1).await;
    fake.state().script = [Act::Refuse(ErrorCode::Busy)].into();
    let config = ProducerConfig { idempotent: false, ..unbatched() };
    let producer = fake.client().await.producer(config).await.expect("started");

    for delivery in send_numbers(&producer, 0..1).await {
        delivery.await.expect("delivered");
    }

    assert_eq!(fake.state().producers_made, 0);
    assert!(fake.state().requests.iter().all(|request| request.producer.is_none()));
}

async fn traced(fake: &Fake) -> (Producer, SdkTracerProvider, Kept) {
    let (client, provider, kept) = fake.traced_client().await;
    (client.producer(unbatched()).await.expect("started"), provider, kept)
}

#[tokio::test]
async fn a_record_of_a_sampled_span_carries_its_send_span() {
    let fake = Fake::start(1).await;
    let (producer, provider, kept) = traced(&fake).await;
    let context = Context::new().with_span(provider.tracer("test").start("work"));
    let trace_id = context.span().span_context().trace_id();

    let delivery = {
        use opentelemetry::context::FutureExt as _;
        producer.send(ProducerRecord::new("t").value("v")).with_context(context).await.expect("taken")
    };
    delivery.await.expect("delivered");

    let spans = kept.spans();
    let span = spans.iter().find(|span| span.name == "send t").expect("a send span");
    let expected = format!("00-{trace_id}-{}-01", span.span_context.span_id());
    assert_eq!(span.span_kind, SpanKind::Producer);
    assert!(span.attributes.contains(&KeyValue::new("messaging.destination.partition.id", "0")));
    let request = fake.state().requests[0].clone();
    assert_eq!(request.traceparent, expected);
    let record = decode(&request.batch, 1 << 20).expect("good").next().expect("one");
    assert_eq!(record.header("traceparent").expect("injected"), expected.as_bytes());
}

#[tokio::test]
async fn a_send_span_says_what_held_its_record_up() {
    use opentelemetry::context::FutureExt as _;
    let fake = Fake::start(1).await;
    let (producer, provider, kept) = traced(&fake).await;
    // Of three records that are sent together the first is refused twice, and the others come behind it.
    let busy = Act::Refuse(ErrorCode::Busy);
    fake.state().script = [busy, Act::Refuse(ErrorCode::SequenceOutOfOrder), busy].into();
    let root = Context::new().with_span(provider.tracer("test").start("work"));
    let send = |value: &'static str| {
        producer.send(ProducerRecord::new("t").partition(0).value(value)).with_context(root.clone())
    };
    let first = send("a").await.expect("taken");
    let second = send("b").await.expect("taken");
    first.await.expect("delivered");
    second.await.expect("delivered");
    send("c").await.expect("taken").await.expect("delivered");

    let way = |number: usize| {
        let spans = kept.spans();
        let sends: Vec<_> = spans.iter().filter(|span| span.name == "send t").collect();
        let value = |key: &str| {
            sends[number]
                .attributes
                .iter()
                .find(|found| found.key.as_str() == key)
                .map(|found| found.value.to_string())
        };
        (value("streambus.send.resend_count"), value("streambus.send.held_up_by"))
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(way(0), (text("2"), text("BUSY")));
    assert_eq!(way(1).1, text("BUSY"), "it was behind the one that was refused");
    assert_eq!(way(2), (None, None));
}

#[tokio::test]
async fn a_traceparent_of_the_record_is_left_alone_and_linked() {
    const OWN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fake = Fake::start(1).await;
    let (producer, _provider, kept) = traced(&fake).await;

    let record = ProducerRecord::new("t").value("v").header("traceparent", OWN);
    producer.send(record).await.expect("taken").await.expect("delivered");

    let spans = kept.spans();
    assert_eq!(spans[0].span_kind, SpanKind::Client);
    assert_eq!(spans[0].links.links[0].span_context.span_id().to_string(), "00f067aa0ba902b7");
    let request = fake.state().requests[0].clone();
    assert!(request.traceparent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
    let record = decode(&request.batch, 1 << 20).expect("good").next().expect("one");
    assert_eq!(record.headers.len(), 1);
    assert_eq!(record.header("traceparent").expect("kept"), OWN.as_bytes());
}

#[tokio::test]
async fn without_a_sampled_context_there_is_no_span_and_no_header() {
    let fake = Fake::start(1).await;
    let (producer, _provider, kept) = traced(&fake).await;

    producer.send(ProducerRecord::new("t").value("v")).await.expect("taken").await.expect("delivered");

    assert!(kept.spans().is_empty());
    let request = fake.state().requests[0].clone();
    assert_eq!(request.traceparent, "");
    assert!(decode(&request.batch, 1 << 20).expect("good").next().expect("one").headers.is_empty());
}
