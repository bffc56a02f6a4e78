//! Every call of the API, as a client that was generated from `proto/` sees it.
//!
//! The tests of this file walk through each service once. The modules below go into what it promises:
//!
//! | module | what it proves |
//! |---|---|
//! | `topics` | creating, listing, describing, altering and deleting topics |
//! | `offsets` | deleting records and resolving positions |
//! | `appending` | batches one by one and in a stream, and recognising retries |
//! | `fetching` | reading with a long poll |
//! | `subscribing` | deliveries as far as the credit goes |
//! | `codecs` | compressed batches |
//! | `retention` | records and disk space really go |
//! | `watching` | reflection and health |

mod appending;
mod codecs;
mod fetching;
mod offsets;
mod retention;
mod subscribing;
mod topics;
mod watching;

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use streambus::proto::v1;
use streambus::proto::v1::position::At;
use streambus::proto::v1::produce_result::Outcome;
use streambus::proto::v1::subscribe_request::Action;
use streambus::telemetry::catalog;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};

use crate::support::endpoint::{duration, fetch, from, produce, reason};
use crate::support::{Endpoint, PATIENCE, TestBroker, batch, eventually, within};

fn says(status: &Status) -> (Code, String) {
    let (code, reason, _) = reason(status);
    (code, reason)
}

fn invalid() -> (Code, String) {
    (Code::InvalidArgument, "INVALID_ARGUMENT".to_owned())
}

fn unknown_topic() -> (Code, String) {
    (Code::NotFound, "UNKNOWN_TOPIC".to_owned())
}

async fn put(broker: &Endpoint, topic: &str, partition: u32, batch: Bytes) -> v1::ProduceResponse {
    broker.produce().await.produce(produce(topic, partition, batch)).await.expect("committed").into_inner()
}

// ---- topics

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_created_listed_described_altered_grown_and_deleted() {
    let broker = TestBroker::start().await;
    let mut topics = broker.topics().await;
    let config = v1::TopicConfig {
        retention_time: Some(duration(Duration::from_secs(3600))),
        record_bytes_max: Some(1234),
        codecs_allowed: Some(v1::AllowedCodecs { codecs: vec![0, v1::Codec::Lz4.into()] }),
        ..Default::default()
    };
    let created = broker.create_topic_with("b.topic_1-x", 3, config).await;
    assert_eq!(
        (created.name.as_str(), created.partition_count, created.replication_factor),
        ("b.topic_1-x", 3, 1)
    );
    assert!(created.topic_id >= 1 && created.create_time.is_some());
    let effective = created.config.clone().expect("the effective settings");
    assert_eq!(effective.retention_time, Some(duration(Duration::from_secs(3600))));
    assert_eq!((effective.retention_bytes, effective.record_bytes_max), (Some(0), Some(1234)));
    assert_eq!(effective.batch_bytes_max, Some(4 << 20));
    let allowed = effective.codecs_allowed.expect("the codecs").codecs;
    assert_eq!(allowed, [0, i32::from(v1::Codec::Lz4)]);
    for name in ["c", "a"] {
        broker.create_topic(name, 0).await;
    }

    let page = |page_size, page_token: String| v1::ListTopicsRequest { page_size, page_token };
    let first = topics.list_topics(page(2, String::new())).await.expect("listed").into_inner();
    let names =
        |page: &v1::ListTopicsResponse| page.topics.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&first), ["a", "b.topic_1-x"]);
    let second = topics.list_topics(page(2, first.next_page_token)).await.expect("listed").into_inner();
    assert_eq!((names(&second), second.next_page_token), (vec!["c".to_owned()], String::new()));
    assert_eq!(says(&topics.list_topics(page(1001, String::new())).await.expect_err("too many")), invalid());

    put(&broker, "b.topic_1-x", 1, batch::values(["x", "y"])).await;
    let describe = |name: &str| v1::DescribeTopicRequest { name: name.to_owned() };
    let described = topics.describe_topic(describe("b.topic_1-x")).await.expect("described").into_inner();
    assert_eq!(described.topic, Some(created));
    let partitions: Vec<_> =
        described.partitions.iter().map(|p| (p.partition, p.log_start_offset, p.high_watermark)).collect();
    assert_eq!(partitions, [(0, 0, 0), (1, 0, 2), (2, 0, 0)]);
    let written = &described.partitions[1];
    assert!(written.leader_id.is_some() && written.replica_ids.len() == 1 && written.term >= 1);
    assert_eq!(written.size_bytes, batch::values(["x", "y"]).len() as u64);

    let alter = |config| v1::AlterTopicRequest { name: "b.topic_1-x".to_owned(), config: Some(config) };
    let change = v1::TopicConfig { retention_bytes: Some(1 << 20), ..Default::default() };
    let altered =
        topics.alter_topic(alter(change)).await.expect("altered").into_inner().topic.expect("the topic");
    let config = altered.config.expect("settings");
    assert_eq!((config.retention_bytes, config.record_bytes_max), (Some(1 << 20), Some(1234)), "others stay");

    let grow =
        |count| v1::AddTopicPartitionsRequest { name: "b.topic_1-x".to_owned(), partition_count: count };
    for count in [0, 2, 3] {
        assert_eq!(says(&topics.add_topic_partitions(grow(count)).await.expect_err("not more")), invalid());
    }
    let grown =
        topics.add_topic_partitions(grow(5)).await.expect("grown").into_inner().topic.expect("the topic");
    assert_eq!(grown.partition_count, 5);
    put(&broker, "b.topic_1-x", 4, batch::values(["in a new partition"])).await;

    let delete = |name: &str| v1::DeleteTopicRequest { name: name.to_owned() };
    topics.delete_topic(delete("b.topic_1-x")).await.expect("deleted");
    assert_eq!(says(&topics.delete_topic(delete("b.topic_1-x")).await.expect_err("gone")), unknown_topic());
    assert_eq!(
        says(&topics.describe_topic(describe("b.topic_1-x")).await.expect_err("gone")),
        unknown_topic()
    );
    let anew = broker.create_topic("b.topic_1-x", 1).await;
    let described = topics.describe_topic(describe("b.topic_1-x")).await.expect("described").into_inner();
    assert_eq!(described.partitions[0].high_watermark, 0, "a topic of the same name begins empty");
    assert!(anew.topic_id > grown.topic_id);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_topic_cannot_be_is_refused_and_nothing_is_created() {
    let broker = TestBroker::with(|config| {
        config.broker.topics_max = 2;
        config.broker.partitions_max = 5;
    })
    .await;
    let mut topics = broker.topics().await;
    broker.create_topic("there", 1).await;
    let named = |name: &str| v1::CreateTopicRequest { name: name.to_owned(), ..Default::default() };
    let with = |config| v1::CreateTopicRequest { config: Some(config), ..named("t") };
    let settings = v1::TopicConfig::default;
    let limit = (Code::ResourceExhausted, "LIMIT_REACHED".to_owned());
    let exists = (Code::AlreadyExists, "TOPIC_EXISTS".to_owned());
    let long = "x".repeat(250);
    let mut cases: Vec<(v1::CreateTopicRequest, (Code, String))> =
        ["", ".", "..", "a b", "a/b", "ä", "a\0", &long].map(|name| (named(name), invalid())).into();
    cases.push((named("there"), exists));
    cases.push((v1::CreateTopicRequest { replication_factor: 2, ..named("t") }, invalid()));
    cases.push((v1::CreateTopicRequest { partition_count: 5, ..named("t") }, limit.clone()));
    cases.push((v1::CreateTopicRequest { partition_count: u32::MAX, ..named("t") }, limit.clone()));
    for config in [
        v1::TopicConfig {
            retention_time: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
            ..settings()
        },
        v1::TopicConfig { retention_time: Some(duration(Duration::from_millis(999))), ..settings() },
        v1::TopicConfig { record_bytes_max: Some(0), ..settings() },
        v1::TopicConfig { batch_bytes_max: Some(0), ..settings() },
        v1::TopicConfig { batch_bytes_max: Some((16 << 20) + 1), ..settings() },
        v1::TopicConfig { record_bytes_max: Some(5 << 20), ..settings() },
        v1::TopicConfig { codecs_allowed: Some(v1::AllowedCodecs { codecs: vec![] }), ..settings() },
        v1::TopicConfig { codecs_allowed: Some(v1::AllowedCodecs { codecs: vec![99] }), ..settings() },
    ] {
        cases.push((with(config), invalid()));
    }
    for (request, expected) in cases {
        let status = topics.create_topic(request.clone()).await.expect_err("it is refused");
        assert_eq!(says(&status), expected, "{request:?}: {}", status.message());
        assert!(status.message().len() > 10, "it says what is wrong: {}", status.message());
    }
    let check = v1::CreateTopicRequest { validate_only: true, partition_count: 2, ..named("t") };
    let valid = topics.create_topic(check).await.expect("valid").into_inner().topic.expect("the topic");
    assert_eq!(valid.partition_count, 2);
    let listed = topics.list_topics(v1::ListTopicsRequest::default()).await.expect("listed").into_inner();
    assert_eq!(listed.topics.len(), 1, "nothing was created");
    topics.create_topic(named("second")).await.expect("created");
    assert_eq!(says(&topics.create_topic(named("third")).await.expect_err("too many")), limit);
    broker.stop().await;
}

// ---- produce

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_in_order_and_outlives_batches_that_fail() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let batches: [(u32, Bytes); 6] = [
        (0, batch::values(["a", "b"])),
        (0, Bytes::from_static(b"\xff")),
        (1, batch::values(["c"])),
        (9, batch::values(["no such partition"])),
        (0, batch::values(["d"])),
        (0, batch::values(["e"])),
    ];
    let requests = batches.into_iter().zip(10_u64..).map(|((partition, batch), correlation_id)| {
        v1::ProduceStreamRequest {
            correlation_id,
            topic: "t".to_owned(),
            partition,
            batch,
            ..Default::default()
        }
    });
    let requests: Vec<_> = requests.collect();
    let mut client = broker.produce().await;
    let mut stream =
        client.produce_stream(tokio_stream::iter(requests)).await.expect("a stream").into_inner();
    let mut results = Vec::new();
    while let Some(answer) = within("results", stream.message()).await.expect("the stream ends well") {
        results.extend(answer.results);
    }
    let told = |id: u64| {
        let result = results.iter().find(|result| result.correlation_id == id).expect("a result");
        match result.outcome.clone().expect("an outcome") {
            Outcome::Committed(committed) => Ok(committed.base_offset),
            Outcome::Error(error) => Err(error.code()),
        }
    };
    assert_eq!(results.len(), 6);
    assert_eq!((told(10), told(14), told(15)), (Ok(0), Ok(2), Ok(3)));
    assert_eq!(told(11), Err(v1::ErrorCode::MalformedBatch));
    assert_eq!(told(12), Ok(0));
    assert_eq!(told(13), Err(v1::ErrorCode::UnknownPartition));
    let of_first: Vec<_> =
        results.iter().map(|r| r.correlation_id).filter(|id| [10, 11, 14, 15].contains(id)).collect();
    assert_eq!(of_first, [10, 11, 14, 15], "results of one partition come in the order of its batches");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producers_sequence_makes_retries_harmless_and_gaps_and_ghosts_visible() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.produce().await;
    let id = client.init_producer(v1::InitProducerRequest {}).await.expect("an id").into_inner();
    assert_eq!(id.epoch, 0);
    let with = |epoch, base_sequence, values: &[&'static str]| v1::ProduceRequest {
        producer: Some(v1::ProducerSequence { producer_id: id.producer_id, epoch, base_sequence }),
        ..produce("t", 0, batch::values(values.iter().copied()))
    };
    let first = client.produce(with(0, 0, &["a", "b", "c"])).await.expect("committed").into_inner();
    let second = client.produce(with(0, 3, &["d"])).await.expect("committed").into_inner();
    assert_eq!((first.base_offset, first.duplicate, second.base_offset), (0, false, 3));
    let retry = client.produce(with(0, 0, &["a", "b", "c"])).await.expect("recognised").into_inner();
    assert_eq!((retry.base_offset, retry.duplicate), (0, true));
    let retry = client.produce(with(0, 3, &["d"])).await.expect("recognised").into_inner();
    assert_eq!((retry.base_offset, retry.duplicate), (3, true));
    let failed = |reason: &str| (Code::FailedPrecondition, reason.to_owned());
    let gap = client.produce(with(0, 5, &["f"])).await.expect_err("a gap");
    assert_eq!(says(&gap), failed("SEQUENCE_OUT_OF_ORDER"));
    client.produce(with(1, 0, &["e"])).await.expect("a newer epoch begins anew");
    let ghost = client.produce(with(0, 4, &["x"])).await.expect_err("fenced");
    assert_eq!(says(&ghost), failed("PRODUCER_FENCED"));
    let stranger = v1::ProduceRequest {
        producer: Some(v1::ProducerSequence { producer_id: 999_999, epoch: 0, base_sequence: 7 }),
        ..produce("t", 0, batch::values(["x"]))
    };
    assert_eq!(says(&client.produce(stranger).await.expect_err("unknown")), failed("UNKNOWN_PRODUCER"));
    let answer =
        broker.consume().await.fetch(fetch("t", 0, At::Earliest(()))).await.expect("an answer").into_inner();
    assert_eq!(values(&answer.partitions[0]), ["a", "b", "c", "d", "e"]);
    broker.stop().await;
}

fn values(records: &v1::PartitionRecords) -> Vec<String> {
    let records = records.batches.iter().flat_map(|stored| batch::records(&stored.batch));
    records.map(|record| String::from_utf8(record.value.expect("a value").to_vec()).expect("text")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_a_record_comes_back_as_it_was() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let header = |key: &str, value: &'static [u8]| v1::Header {
        key: key.to_owned(),
        value: Bytes::from_static(value),
    };
    let full = v1::Record {
        key: Some(Bytes::from_static(b"\0key\xff")),
        value: Some(Bytes::from_static(b"value")),
        headers: vec![header("a", b"1"), header("a", b"\xff\0"), header("traceparent", b"not one")],
        timestamp_ms: 1_700_000_000_123,
    };
    let empty = v1::Record { key: Some(Bytes::new()), value: Some(Bytes::new()), ..Default::default() };
    let tombstone = batch::keyed("k", "");
    let tombstone = v1::Record { value: None, ..tombstone };
    let sent = batch::of([full, empty, tombstone, v1::Record::default()]);
    put(&broker, "t", 0, sent.clone()).await;
    let answer =
        broker.consume().await.fetch(fetch("t", 0, At::Earliest(()))).await.expect("an answer").into_inner();
    assert_eq!(answer.partitions[0].batches[0].batch, sent, "byte for byte");
    broker.stop().await;
}

// ---- fetch

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_waits_for_enough_bytes_and_no_longer_than_it_may() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut consume = broker.consume().await;
    let waiting = |min_bytes, max_wait, at| v1::FetchRequest {
        min_bytes,
        max_wait: Some(duration(max_wait)),
        ..fetch("t", 0, at)
    };
    let started = Instant::now();
    let wait = Duration::from_millis(200);
    let nothing = consume.fetch(waiting(1, wait, At::Earliest(()))).await.expect("an answer").into_inner();
    assert!(nothing.partitions[0].batches.is_empty() && started.elapsed() >= wait, "{:?}", started.elapsed());

    let one = batch::values(["x"]).len() as u32;
    let mut other = consume.clone();
    let request = waiting(3 * one, PATIENCE, At::Earliest(()));
    let pending = tokio::spawn(async move { other.fetch(request).await.expect("an answer").into_inner() });
    for _ in 0..3 {
        eventually(PATIENCE, "the fetch waits", async || {
            (broker.scrape().await.get(&catalog::FETCHES_WAITING, &[]) == Some(1.0)).then_some(())
        })
        .await;
        assert!(!pending.is_finished());
        put(&broker, "t", 0, batch::values(["x"])).await;
    }
    let enough = within("enough bytes", pending).await.expect("no panic");
    assert_eq!(values(&enough.partitions[0]), ["x"; 3]);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_gives_at_least_one_batch_at_most_about_what_was_asked_and_tells_what_it_cannot_read() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    for number in 0..10 {
        put(&broker, "t", 0, batch::values([format!("{number}"), "x".repeat(1000)])).await;
    }
    put(&broker, "t", 1, batch::values(["other"])).await;
    let mut consume = broker.consume().await;
    let limited = v1::FetchRequest { max_bytes: 3100, ..fetch("t", 0, At::Earliest(())) };
    let answer = consume.fetch(limited).await.expect("an answer").into_inner();
    assert_eq!((answer.partitions[0].batches.len(), answer.partitions[0].next_offset), (3, 6));
    let tiny = v1::FetchRequest { max_bytes: 1, ..fetch("t", 0, At::Offset(7)) };
    let answer = consume.fetch(tiny).await.expect("an answer").into_inner();
    let stored = &answer.partitions[0].batches[..];
    assert_eq!(
        (stored.len(), stored[0].base_offset, stored[0].record_count),
        (1, 6, 2),
        "the batch that holds it"
    );
    assert!(stored[0].append_time_ms > 1_600_000_000_000);

    let mixed = v1::FetchRequest {
        partitions: vec![
            from("t", 1, At::Earliest(())),
            from("t", 0, At::Offset(21)),
            from("nowhere", 0, At::Earliest(())),
            from("t", 2, At::Earliest(())),
        ],
        ..fetch("t", 0, At::Earliest(()))
    };
    let answer = consume.fetch(mixed).await.expect("an answer").into_inner();
    let told: Vec<_> = answer.partitions.iter().map(|p| p.error.as_ref().map(v1::Error::code)).collect();
    let out = Some(v1::ErrorCode::OffsetOutOfRange);
    assert_eq!(told, [None, out, Some(v1::ErrorCode::UnknownTopic), Some(v1::ErrorCode::UnknownPartition)]);
    assert_eq!(values(&answer.partitions[0]), ["other"], "the others are unaffected");
    for broken in [
        v1::FetchRequest::default(),
        v1::FetchRequest { partitions: vec![v1::PartitionPosition::default()], ..Default::default() },
        v1::FetchRequest { partitions: vec![from("t", 0, At::Earliest(())); 1001], ..Default::default() },
        v1::FetchRequest {
            max_wait: Some(duration(Duration::from_secs(61))),
            ..fetch("t", 0, At::Earliest(()))
        },
        v1::FetchRequest { accepted_codecs: vec![77], ..fetch("t", 0, At::Earliest(())) },
    ] {
        assert_eq!(says(&consume.fetch(broken).await.expect_err("it is refused")), invalid());
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_batches_pass_through_and_are_decompressed_for_those_who_cannot() {
    let broker = TestBroker::start().await;
    let only_lz4 = v1::AllowedCodecs { codecs: vec![v1::Codec::Lz4.into()] };
    let config = v1::TopicConfig { codecs_allowed: Some(only_lz4), ..Default::default() };
    broker.create_topic("t", 1).await;
    broker.create_topic_with("lz4", 1, config).await;
    let plain = batch::values((0..50).map(|number| format!("a compressible record, number {number}")));
    let mut consume = broker.consume().await;
    for (codec, at) in [(v1::Codec::Lz4, 0), (v1::Codec::Zstd, 50)] {
        let sent = batch::compressed(&plain, codec);
        assert_eq!(put(&broker, "t", 0, sent.clone()).await.base_offset, at);
        let request =
            v1::FetchRequest { accepted_codecs: vec![codec.into()], ..fetch("t", 0, At::Offset(at)) };
        let answer = consume.fetch(request).await.expect("an answer").into_inner();
        assert_eq!(answer.partitions[0].batches[0].batch, sent, "{codec:?} passes through");
        assert_eq!(answer.partitions[0].batches[0].record_count, 50);
        let request = v1::FetchRequest { accepted_codecs: Vec::new(), ..fetch("t", 0, At::Offset(at)) };
        let answer = consume.fetch(request).await.expect("an answer").into_inner();
        assert_eq!(
            batch::records(&answer.partitions[0].batches[0].batch),
            batch::records(&plain),
            "{codec:?}"
        );
    }
    for refused in [plain.clone(), batch::compressed(&plain, v1::Codec::Zstd)] {
        let status =
            broker.produce().await.produce(produce("lz4", 0, refused)).await.expect_err("not allowed");
        assert_eq!(says(&status), (Code::InvalidArgument, "CODEC_NOT_ALLOWED".to_owned()));
    }
    put(&broker, "lz4", 0, batch::compressed(&plain, v1::Codec::Lz4)).await;
    let lying = v1::RecordBatch {
        codec: v1::Codec::Lz4.into(),
        compressed_records: Bytes::from_static(b"this is not lz4"),
        ..Default::default()
    };
    let status = broker.produce().await.produce(produce("t", 0, lying.encode_to_vec().into())).await;
    assert_eq!(says(&status.expect_err("no count")), (Code::InvalidArgument, "MALFORMED_BATCH".to_owned()));
    broker.stop().await;
}

// ---- subscribe

struct Subscription {
    requests: mpsc::Sender<v1::SubscribeRequest>,
    deliveries: Streaming<v1::SubscribeResponse>,
}

impl Subscription {
    async fn open(broker: &Endpoint, partitions: Vec<v1::PartitionPosition>, credit_bytes: u64) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let start = v1::StartSubscription { partitions, credit_bytes, accepted_codecs: Vec::new() };
        requests.send(v1::SubscribeRequest { action: Some(Action::Start(start)) }).await.expect("open");
        let stream =
            broker.consume().await.subscribe(ReceiverStream::new(receiver)).await.expect("a subscription");
        Subscription { requests, deliveries: stream.into_inner() }
    }

    async fn act(&self, action: Action) {
        self.requests.send(v1::SubscribeRequest { action: Some(action) }).await.expect("open");
    }

    async fn next(&mut self) -> v1::PartitionRecords {
        let delivery = within("a delivery", self.deliveries.next()).await.expect("open").expect("a delivery");
        delivery.into_records().expect("records")
    }

    /// Values of the next `count` records.
    async fn values(&mut self, count: usize) -> Vec<String> {
        let mut found = Vec::new();
        while found.len() < count {
            found.extend(values(&self.next().await));
        }
        found
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_begins_where_it_is_told_and_goes_on_with_what_comes() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    put(&broker, "t", 0, batch::values(["a"])).await;
    let first = put(&broker, "t", 0, batch::values(["b"])).await.append_time_ms;
    // The next append has a later time.
    let second = eventually(PATIENCE, "time passes", async || {
        let now = put(&broker, "t", 0, batch::values(["c"])).await.append_time_ms;
        (now > first).then_some(now)
    })
    .await;
    let time = prost_types::Timestamp {
        seconds: second.div_euclid(1000),
        nanos: (second.rem_euclid(1000) * 1_000_000) as i32,
    };
    let describe = v1::DescribeTopicRequest { name: "t".to_owned() };
    let end =
        broker.topics().await.describe_topic(describe).await.expect("described").into_inner().partitions[0]
            .high_watermark;
    for (at, first_offset) in
        [(At::Earliest(()), 0), (At::Offset(1), 1), (At::Latest(()), end), (At::Time(time), end - 1)]
    {
        let resolve = v1::ListOffsetsRequest { positions: vec![from("t", 0, at)] };
        let resolved = broker.topics().await.list_offsets(resolve).await.expect("resolved").into_inner();
        assert_eq!((resolved.offsets[0].offset, &resolved.offsets[0].error), (first_offset, &None), "{at:?}");
    }
    let mut earliest = Subscription::open(&broker, vec![from("t", 0, At::Earliest(()))], 1 << 20).await;
    let mut at_time = Subscription::open(&broker, vec![from("t", 0, At::Time(time))], 1 << 20).await;
    assert_eq!(earliest.values(2).await[..2], ["a", "b"]);
    assert_eq!(at_time.next().await.batches[0].base_offset, end - 1);
    let mut latest = Subscription::open(&broker, vec![from("t", 0, At::Latest(()))], 1 << 20).await;
    eventually(PATIENCE, "three subscriptions are open", async || {
        (broker.scrape().await.get(&catalog::SUBSCRIPTIONS, &[]) == Some(3.0)).then_some(())
    })
    .await;
    // Whether the position was resolved already cannot be seen, so more may come than the first.
    let mut seen = Vec::new();
    while seen.is_empty() {
        put(&broker, "t", 0, batch::values(["new"])).await;
        seen = latest.values(1).await;
    }
    assert_eq!(seen[0], "new");
    assert_eq!(at_time.values(1).await[0], "new");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_without_credit_and_everything_with_it() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    for number in 0..10 {
        put(&broker, "t", 0, batch::values([format!("{number}"), "x".repeat(1000)])).await;
    }
    let consumed = async || broker.scrape().await.or_zero(&catalog::MESSAGES_CONSUMED, &[("topic", "t")]);
    let mut subscription = Subscription::open(&broker, vec![from("t", 0, At::Earliest(()))], 0).await;
    // An unknown partition is answered in order, so when its answer is here, nothing else was sent before it.
    subscription
        .act(Action::Add(v1::AddPartitions { partitions: vec![from("nowhere", 0, At::Earliest(()))] }))
        .await;
    assert_eq!(subscription.next().await.error.expect("an error").code(), v1::ErrorCode::UnknownTopic);
    assert_eq!(consumed().await, 0.0, "nothing was read without credit");
    subscription.act(Action::Credit(v1::GrantCredit { bytes: 1 })).await;
    assert_eq!(subscription.next().await.batches.len(), 1, "the last batch may exceed the credit");
    subscription.act(Action::Credit(v1::GrantCredit { bytes: 1 })).await;
    subscription
        .act(Action::Add(v1::AddPartitions { partitions: vec![from("nowhere", 0, At::Earliest(()))] }))
        .await;
    assert!(subscription.next().await.error.is_some(), "credit that was overspent must be paid back first");
    assert_eq!(consumed().await, 2.0);
    subscription.act(Action::Credit(v1::GrantCredit { bytes: 1 << 20 })).await;
    let rest = subscription.values(18).await;
    assert_eq!((rest.len(), rest[0].as_str(), rest[16].as_str()), (18, "1", "9"));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_come_and_go_while_a_subscription_is_open() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    broker.create_topic("doomed", 1).await;
    for partition in 0..2 {
        put(&broker, "t", partition, batch::values([format!("{partition}")])).await;
    }
    let start = vec![from("t", 0, At::Earliest(())), from("doomed", 0, At::Latest(()))];
    let mut subscription = Subscription::open(&broker, start, 1 << 20).await;
    assert_eq!(subscription.values(1).await, ["0"]);
    subscription
        .act(Action::Add(v1::AddPartitions { partitions: vec![from("t", 1, At::Earliest(()))] }))
        .await;
    assert_eq!(subscription.values(1).await, ["1"]);
    subscription.act(Action::Add(v1::AddPartitions { partitions: vec![from("t", 0, At::Offset(0))] })).await;
    assert_eq!(subscription.values(1).await, ["0"], "a partition that is being read is repositioned");
    let partition = v1::TopicPartition { topic: "t".to_owned(), partition: 0 };
    subscription.act(Action::Remove(v1::RemovePartitions { partitions: vec![partition] })).await;
    subscription
        .act(Action::Add(v1::AddPartitions { partitions: vec![from("t", 7, At::Earliest(()))] }))
        .await;
    assert_eq!(subscription.next().await.error.expect("an error").code(), v1::ErrorCode::UnknownPartition);
    put(&broker, "t", 0, batch::values(["not wanted"])).await;
    put(&broker, "t", 1, batch::values(["wanted"])).await;
    assert_eq!(subscription.values(1).await, ["wanted"]);
    broker
        .topics()
        .await
        .delete_topic(v1::DeleteTopicRequest { name: "doomed".to_owned() })
        .await
        .expect("deleted");
    let gone = subscription.next().await;
    assert_eq!(gone.topic, "doomed");
    assert!(gone.error.is_some(), "the end of a topic is told");
    put(&broker, "t", 1, batch::values(["still open"])).await;
    assert_eq!(subscription.values(1).await, ["still open"]);

    for first in
        [Action::Credit(v1::GrantCredit { bytes: 1 }), Action::Start(v1::StartSubscription::default())]
    {
        let (requests, receiver) = mpsc::channel(4);
        requests.send(v1::SubscribeRequest { action: Some(first) }).await.expect("open");
        let opened = broker.consume().await.subscribe(ReceiverStream::new(receiver)).await;
        let status = match opened {
            Ok(stream) => within("the refusal", stream.into_inner().message()).await.expect_err("refused"),
            Err(status) => status,
        };
        assert_eq!(says(&status), invalid());
    }
    broker.stop().await;
}

// ---- deleting

#[tokio::test(flavor = "multi_thread")]
async fn deleted_records_are_gone_and_offsets_stay() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    for number in 0..5 {
        put(&broker, "t", 0, batch::values([number.to_string(), "x".to_owned()])).await;
    }
    let mut topics = broker.topics().await;
    let delete =
        |before_offset| v1::DeleteRecordsRequest { topic: "t".to_owned(), partition: 0, before_offset };
    let status = topics.delete_records(delete(11)).await.expect_err("beyond the end");
    assert_eq!(says(&status), (Code::OutOfRange, "OFFSET_OUT_OF_RANGE".to_owned()));
    let deleted = topics.delete_records(delete(5)).await.expect("deleted").into_inner();
    assert_eq!(deleted.log_start_offset, 5);
    let again = topics.delete_records(delete(3)).await.expect("nothing to do").into_inner();
    assert_eq!(again.log_start_offset, 5, "the log start never moves back");
    let mut consume = broker.consume().await;
    let below = consume.fetch(fetch("t", 0, At::Offset(4))).await.expect("an answer").into_inner();
    assert_eq!(
        below.partitions[0].error.as_ref().map(v1::Error::code),
        Some(v1::ErrorCode::OffsetOutOfRange)
    );
    let rest = consume.fetch(fetch("t", 0, At::Earliest(()))).await.expect("an answer").into_inner();
    assert_eq!((rest.partitions[0].log_start_offset, rest.partitions[0].next_offset), (5, 10));
    topics.delete_records(delete(10)).await.expect("everything");
    assert_eq!(put(&broker, "t", 0, batch::values(["next"])).await.base_offset, 10);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_by_size_and_by_time_deletes() {
    let broker =
        TestBroker::with(|config| config.partition.retention_interval = Duration::from_millis(50)).await;
    let by_size = v1::TopicConfig { retention_bytes: Some(100_000), ..Default::default() };
    let by_time =
        v1::TopicConfig { retention_time: Some(duration(Duration::from_secs(1))), ..Default::default() };
    broker.create_topic_with("by_size", 1, by_size).await;
    broker.create_topic_with("by_time", 1, by_time).await;
    for seed in 0..20 {
        put(&broker, "by_size", 0, batch::noise(seed, 1, 20_000)).await;
    }
    let written = Instant::now();
    put(&broker, "by_time", 0, batch::values(["old"])).await;
    let mut topics = broker.topics().await;
    let mut describe = async |name: &str| {
        let request = v1::DescribeTopicRequest { name: name.to_owned() };
        topics.describe_topic(request).await.expect("described").into_inner().partitions[0].clone()
    };
    let kept = eventually(PATIENCE, "retention by size", async || {
        let partition = describe("by_size").await;
        (partition.size_bytes < 120_000).then_some(partition)
    })
    .await;
    assert!(kept.size_bytes >= 100_000, "no more goes than has to: {}", kept.size_bytes);
    assert_eq!((kept.log_start_offset, kept.high_watermark), (15, 20));
    eventually(PATIENCE, "retention by time", async || {
        let partition = describe("by_time").await;
        (partition.log_start_offset == 1 && partition.size_bytes == 0).then_some(())
    })
    .await;
    assert!(written.elapsed() >= Duration::from_secs(1), "not before its time");
    assert_eq!(put(&broker, "by_time", 0, batch::values(["new"])).await.base_offset, 1);
    broker.stop().await;
}

// ---- cluster, health, reflection

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_describes_itself_and_who_leads_what() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 3).await;
    let request = v1::DescribeClusterRequest { topics: vec!["t".to_owned(), "nowhere".to_owned()] };
    let cluster = broker.cluster().await.describe_cluster(request).await.expect("described").into_inner();
    assert_eq!(cluster.cluster_id.len(), 36);
    assert_eq!(cluster.controller_id, cluster.broker_id);
    let me = &cluster.brokers[0];
    assert_eq!((cluster.brokers.len(), me.broker_id), (1, cluster.broker_id));
    assert_eq!(
        (me.grpc_address.clone(), me.http_address.clone()),
        (broker.grpc.to_string(), broker.http.to_string())
    );
    assert_eq!(me.version, env!("CARGO_PKG_VERSION"));
    let routing = &cluster.topics[..];
    assert_eq!(
        (routing.len(), routing[0].topic.as_str(), &routing[0].leader_ids),
        (1, "t", &vec![me.broker_id; 3])
    );
    assert!(routing[0].config.as_ref().is_some_and(|config| config.batch_bytes_max.is_some()));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_per_service_and_watched_until_the_end() {
    let broker = TestBroker::start().await;
    let mut health = HealthClient::new(broker.channel().await);
    let named = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in [
        "",
        "streambus.v1.ProduceService",
        "streambus.v1.ConsumeService",
        "streambus.v1.TopicService",
        "streambus.v1.ClusterService",
    ] {
        let answer = health.check(named(service)).await.expect("a known service").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    assert_eq!(health.check(named("nobody")).await.expect_err("unknown").code(), Code::NotFound);
    let mut watch = health.watch(named("streambus.v1.ProduceService")).await.expect("a watch").into_inner();
    let now = within("the status", watch.message()).await.expect("open").expect("a status");
    assert_eq!(now.status(), ServingStatus::Serving);
    let stopping = tokio::spawn(broker.stop());
    let end =
        within("the end", watch.message()).await.expect("told before the stream ends").expect("a status");
    assert_eq!(end.status(), ServingStatus::NotServing);
    let status = within("the end of the stream", watch.message()).await.expect_err("the stream ends");
    assert_eq!(status.code(), Code::Unavailable);
    within("the broker stops", stopping).await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_every_service_and_its_messages() {
    let broker = TestBroker::start().await;
    let mut reflection = ServerReflectionClient::new(broker.channel().await);
    let asks = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("streambus.v1.ProduceRequest".to_owned()),
    ];
    let requests =
        asks.map(|ask| ServerReflectionRequest { host: String::new(), message_request: Some(ask) });
    let answers = reflection.server_reflection_info(tokio_stream::iter(requests)).await.expect("a stream");
    let answers: Vec<_> =
        answers.into_inner().map(|answer| answer.expect("an answer").message_response).collect().await;
    let Some(MessageResponse::ListServicesResponse(services)) = &answers[0] else { panic!("{answers:?}") };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    for service in ["ProduceService", "ConsumeService", "TopicService", "ClusterService"] {
        assert!(names.contains(&format!("streambus.v1.{service}").as_str()), "{service} is not in {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("internal")), "{names:?}");
    let Some(MessageResponse::FileDescriptorResponse(file)) = &answers[1] else { panic!("{answers:?}") };
    let file =
        prost_types::FileDescriptorProto::decode(&file.file_descriptor_proto[0][..]).expect("a descriptor");
    let request =
        file.message_type.iter().find(|message| message.name() == "ProduceRequest").expect("the message");
    let field = request.field.iter().find(|field| field.name() == "batch").expect("the field");
    assert_eq!(field.type_name(), ".streambus.v1.RecordBatch", "clients see an ordinary message, not bytes");
    broker.stop().await;
}

// ---- HTTP

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_served_as_text_and_as_openmetrics_with_exemplars() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut request = tonic::Request::new(produce("t", 0, batch::values(["x"])));
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let traceparent = format!("00-{trace}-b7ad6b7169203331-01");
    request.metadata_mut().insert("traceparent", traceparent.parse().expect("text"));
    broker.produce().await.produce(request).await.expect("committed");

    let text = broker.get("/metrics").await;
    assert!(text.head.contains("content-type: text/plain; version=0.0.4"), "{}", text.head);
    assert!(!text.body.contains(" # {"), "the text format has no exemplars");
    let ask = "GET /metrics HTTP/1.1\r\nhost: b\r\nconnection: close\r\naccept: application/openmetrics-text\r\n\r\n";
    let open = broker.http(ask).await;
    assert!(open.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n"));
    let exemplar = open
        .body
        .lines()
        .find(|line| line.starts_with("streambus_produce_latency_seconds_bucket") && line.contains(trace));
    assert!(exemplar.is_some(), "the sampled request is an exemplar of its latency");

    assert_eq!(broker.get("/").await.status, 200);
    assert_eq!(broker.get("/nothing").await.status, 404);
    assert_eq!(
        broker
            .http("POST /metrics HTTP/1.1\r\nhost: b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            .await
            .status,
        405
    );
    let (status, health) = broker.health("/health").await;
    assert_eq!((status, health["status"].as_str()), (200, Some("healthy")));
    for check in ["broker", "storage", "cluster"] {
        assert_eq!(health["checks"][check], "ok");
    }
    for probe in ["live", "ready", "startup"] {
        assert_eq!(broker.get(&format!("/health/{probe}")).await.status, 200, "{probe}");
    }
    broker.stop().await;
}
