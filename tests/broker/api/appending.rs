//! Appending batches, one by one and in a stream, and recognising retries.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use streambus::proto::v1;
use streambus::proto::v1::position::At;
use streambus::proto::v1::produce_result::Outcome;
use tonic::Code;

use crate::support::asking::{append, offsets, read};
use crate::support::endpoint::produce;
use crate::support::{Endpoint, Refusal, TestBroker, batch, within};

fn streamed(
    correlation_id: u64,
    topic: &str,
    partition: u32,
    batch: bytes::Bytes,
) -> v1::ProduceStreamRequest {
    v1::ProduceStreamRequest {
        correlation_id,
        topic: topic.to_owned(),
        partition,
        batch,
        ..Default::default()
    }
}

/// Sends all batches on one stream and gives the results in the order in which they came.
async fn stream(broker: &Endpoint, requests: Vec<v1::ProduceStreamRequest>) -> Vec<v1::ProduceResult> {
    let responses = broker.produce().await.produce_stream(tokio_stream::iter(requests)).await;
    let responses: Vec<_> = within("all results", responses.expect("a stream").into_inner().collect()).await;
    responses.into_iter().flat_map(|response| response.expect("no failure of the stream").results).collect()
}

fn sequence(producer_id: u64, epoch: u32, base_sequence: u32) -> Option<v1::ProducerSequence> {
    Some(v1::ProducerSequence { producer_id, epoch, base_sequence })
}

fn sequenced(producer: Option<v1::ProducerSequence>, values: &[&'static str]) -> v1::ProduceRequest {
    v1::ProduceRequest { producer, ..produce("orders", 0, batch::values(values.iter().copied())) }
}

/// A broker with a topic of one partition, a producer id, and a client.
async fn producer()
-> (TestBroker, u64, v1::produce_service_client::ProduceServiceClient<tonic::transport::Channel>) {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    let mut client = broker.produce().await;
    let init = client.init_producer(v1::InitProducerRequest {}).await.expect("an id").into_inner();
    assert_eq!(init.epoch, 0);
    (broker, init.producer_id, client)
}

#[tokio::test]
async fn records_come_back_as_they_were_sent() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    let header = |key: &str, value: &'static [u8]| v1::Header { key: key.to_owned(), value: value.into() };
    let headers = vec![
        header("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        header("again", b"\xff\x00"),
        header("again", b""),
    ];
    let sent = batch::of([
        v1::Record { headers, timestamp_ms: -5, ..batch::keyed("key", "value") },
        v1::Record { value: None, ..batch::keyed("", "") },
        v1::Record { key: None, value: Some("".into()), ..Default::default() },
        v1::Record::default(),
    ]);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    let before = now();

    let first = append(&broker, "orders", 0, sent.clone()).await;
    let second = append(&broker, "orders", 0, sent.clone()).await;

    assert_eq!((first.base_offset, first.duplicate), (0, false));
    assert_eq!((second.base_offset, second.duplicate), (4, false));
    assert!(
        (before..=second.append_time_ms).contains(&first.append_time_ms) && second.append_time_ms <= now()
    );
    let read = read(&broker, "orders", 0, At::Earliest(()), &[]).await;
    assert_eq!((read.next_offset, read.high_watermark), (8, 8));
    for (stored, answer) in read.batches.iter().zip([first, second]) {
        assert_eq!(stored.batch, sent);
        assert_eq!((stored.base_offset, stored.record_count), (answer.base_offset, 4));
        assert_eq!(stored.append_time_ms, answer.append_time_ms);
    }
}

#[tokio::test]
async fn an_unknown_partition_is_refused_with_the_number_there_are() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    let refusal =
        Refusal::of(broker.produce().await.produce(produce("orders", 2, batch::values(["a"]))).await);
    let refusal = refusal.is(Code::NotFound, "UNKNOWN_PARTITION");
    assert_eq!(["topic", "partition", "partitions"].map(|fact| refusal.fact(fact)), ["orders", "2", "2"]);
}

#[tokio::test]
async fn results_of_a_stream_come_in_the_order_of_each_partition() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 3).await;
    let requests =
        (0..300).map(|id| streamed(id, "orders", (id % 3) as u32, batch::values(["a", "b"]))).collect();

    let results = stream(&broker, requests).await;

    assert_eq!(results.len(), 300);
    for partition in 0..3 {
        let of_partition = results.iter().filter(|result| result.correlation_id % 3 == partition);
        for (position, result) in of_partition.enumerate() {
            assert_eq!(result.correlation_id, 3 * position as u64 + partition);
            let Some(Outcome::Committed(committed)) = &result.outcome else { panic!("{result:?}") };
            assert_eq!(committed.base_offset, 2 * position as u64);
        }
    }
}

#[tokio::test]
async fn a_batch_that_fails_is_named_and_the_stream_goes_on() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    let good = || batch::values(["a"]);
    let large = batch::values([vec![b'x'; 1 << 20]]);
    let out_of_order =
        v1::ProduceStreamRequest { producer: sequence(1, 0, 5), ..streamed(15, "orders", 0, good()) };
    let requests = vec![
        streamed(10, "orders", 0, good()),
        streamed(11, "nowhere", 0, good()),
        streamed(12, "orders", 7, good()),
        streamed(13, "orders", 0, "\u{7f}".into()),
        streamed(14, "orders", 0, large),
        out_of_order,
        streamed(16, "orders", 0, good()),
    ];

    let mut results = stream(&broker, requests).await;

    results.sort_by_key(|result| result.correlation_id);
    use v1::ErrorCode::{MalformedBatch, RecordTooLarge, UnknownPartition, UnknownProducer, UnknownTopic};
    let outcomes: Vec<_> = results
        .iter()
        .map(|result| match result.outcome.as_ref().expect("an outcome") {
            Outcome::Committed(committed) => (result.correlation_id, Ok(committed.base_offset)),
            Outcome::Error(error) => {
                assert!(!error.may_have_been_written && error.retry_after.is_none(), "{error:?}");
                (result.correlation_id, Err(error.code()))
            }
        })
        .collect();
    let expected = [
        (10, Ok(0)),
        (11, Err(UnknownTopic)),
        (12, Err(UnknownPartition)),
        (13, Err(MalformedBatch)),
        (14, Err(RecordTooLarge)),
        (15, Err(UnknownProducer)),
        (16, Ok(1)),
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(offsets(&read(&broker, "orders", 0, At::Earliest(()), &[]).await), [0, 1]);
}

#[tokio::test]
async fn producer_ids_are_not_given_twice_not_even_after_a_restart() {
    let (broker, first, mut client) = producer().await;
    let second =
        client.init_producer(v1::InitProducerRequest {}).await.expect("an id").into_inner().producer_id;
    let broker = broker.restart_with(|_| {}).await;
    let mut client = broker.produce().await;
    let third =
        client.init_producer(v1::InitProducerRequest {}).await.expect("an id").into_inner().producer_id;
    assert!(first < second && second < third, "{first} {second} {third}");
}

#[tokio::test]
async fn a_retry_gets_the_offset_of_the_first_attempt_and_appends_nothing() {
    let (broker, id, mut client) = producer().await;
    append(&broker, "orders", 0, batch::values(["somebody else's"])).await;
    let mut send = async |base, values: &[&'static str]| {
        let answer = client.produce(sequenced(sequence(id, 0, base), values)).await;
        let answer = answer.expect("accepted").into_inner();
        (answer.base_offset, answer.duplicate)
    };
    assert_eq!(send(0, &["a", "b"]).await, (1, false));
    assert_eq!(send(2, &["c"]).await, (3, false));
    assert_eq!(send(0, &["a", "b"]).await, (1, true));
    assert_eq!(send(2, &["c"]).await, (3, true));
    assert_eq!(send(3, &["d"]).await, (4, false));
    assert_eq!(read(&broker, "orders", 0, At::Earliest(()), &[]).await.high_watermark, 5);
    // The broker knows its producers from the disk as well.
    let broker = broker.restart_with(|_| {}).await;
    let answer = broker.produce().await.produce(sequenced(sequence(id, 0, 2), &["c"])).await;
    let answer = answer.expect("accepted").into_inner();
    assert_eq!((answer.base_offset, answer.duplicate), (3, true));
}

#[tokio::test]
async fn a_retry_that_overtakes_its_answer_is_recognised_in_the_same_stream() {
    let (broker, id, _client) = producer().await;
    let request = |correlation_id, base| v1::ProduceStreamRequest {
        producer: sequence(id, 0, base),
        ..streamed(correlation_id, "orders", 0, batch::values(["a", "b"]))
    };
    let results = stream(&broker, vec![request(0, 0), request(1, 0), request(2, 2), request(3, 2)]).await;
    let committed: Vec<_> = results
        .iter()
        .map(|result| match result.outcome.as_ref() {
            Some(Outcome::Committed(committed)) => (committed.base_offset, committed.duplicate),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(committed, [(0, false), (0, true), (2, false), (2, true)]);
}

#[tokio::test]
async fn a_gap_in_a_producers_sequence_is_refused_with_what_was_expected() {
    let (broker, id, mut client) = producer().await;
    client.produce(sequenced(sequence(id, 0, 0), &["a", "b"])).await.expect("the first");

    let refusal = Refusal::of(client.produce(sequenced(sequence(id, 0, 3), &["d"])).await);

    let refusal = refusal.is(Code::FailedPrecondition, "SEQUENCE_OUT_OF_ORDER");
    assert_eq!(refusal.fact("expected_sequence"), "2");
    assert_eq!(read(&broker, "orders", 0, At::Earliest(()), &[]).await.high_watermark, 2);
    client.produce(sequenced(sequence(id, 0, 2), &["c"])).await.expect("what was expected");
}

#[tokio::test]
async fn an_older_epoch_of_a_producer_is_fenced() {
    let (broker, id, mut client) = producer().await;
    client.produce(sequenced(sequence(id, 0, 0), &["a"])).await.expect("the first");
    let refusal = Refusal::of(client.produce(sequenced(sequence(id, 1, 1), &["b"])).await);
    refusal.is(Code::FailedPrecondition, "SEQUENCE_OUT_OF_ORDER");
    client.produce(sequenced(sequence(id, 1, 0), &["b"])).await.expect("a new epoch begins at 0");

    for base in [0, 1] {
        let refusal = Refusal::of(client.produce(sequenced(sequence(id, 0, base), &["a"])).await);
        refusal.is(Code::FailedPrecondition, "PRODUCER_FENCED").says("epoch 1");
    }
    assert_eq!(read(&broker, "orders", 0, At::Earliest(()), &[]).await.high_watermark, 2);
}

#[tokio::test]
async fn a_producer_that_the_partition_does_not_know_must_begin_at_zero() {
    let (broker, id, mut client) = producer().await;
    let refusal = Refusal::of(client.produce(sequenced(sequence(id, 0, 1), &["b"])).await);
    refusal.is(Code::FailedPrecondition, "UNKNOWN_PRODUCER");
    assert_eq!(read(&broker, "orders", 0, At::Earliest(()), &[]).await.high_watermark, 0);
}
