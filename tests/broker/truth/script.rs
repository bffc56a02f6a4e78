//! What happens to the broker, and what must therefore be counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use streambus::proto::v1;
use streambus::proto::v1::consume_service_client::ConsumeServiceClient;
use streambus::proto::v1::position::At;
use streambus::proto::v1::produce_service_client::ProduceServiceClient;
use streambus::proto::v1::subscribe_request::Action;
use streambus::proto::v1::topic_service_client::TopicServiceClient;
use streambus::telemetry::catalog::{self, Row};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::CONNECTIONS_MAX;
use super::proof::{Moment, Proof, same, within};
use crate::support::collector::Mood;
use crate::support::endpoint::{HttpAnswer, exchange, fetch, from, produce, reason};
use crate::support::process::Remains;
use crate::support::{Collector, Endpoint, PATIENCE, Process, View, batch, damage, eventually};

/// Connections that [`Script::hold_open`] holds.
pub const HELD_CONNECTIONS: usize = 3;
/// Raft groups of the broker itself: the control group and the coordinator shards.
pub const SYSTEM_GROUPS: f64 = 5.0;
/// What an HTTP/2 client sends first: the preface and an empty SETTINGS frame.
pub const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Seed of the first batch of the topic `cold`.
const COLD: u64 = 100;

const PRODUCE: &str = "streambus.v1.ProduceService/Produce";
const INIT: &str = "streambus.v1.ProduceService/InitProducer";
const FETCH: &str = "streambus.v1.ConsumeService/Fetch";
const CREATE: &str = "streambus.v1.TopicService/CreateTopic";

/// Records and bytes.
type Flow = BTreeMap<&'static str, (u64, u64)>;

/// What has happened since the broker was idle.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    produced: Flow,
    stored: Flow,
    consumed: Flow,
    trimmed: Flow,
    /// Batches that were acknowledged.
    acknowledged: u64,
    /// Batches that reached the log.
    appended: u64,
    produce_refused: BTreeMap<&'static str, u64>,
    consume_refused: BTreeMap<&'static str, u64>,
    /// Answers with records.
    answers: u64,
    /// Entries of the control group.
    control: u64,
    topics: u64,
    partitions: u64,
    calls: BTreeMap<(&'static str, &'static str), u64>,
    requests: BTreeMap<(&'static str, &'static str), u64>,
    connects: u64,
    scrapes: u64,
    spans: u64,
}

fn count(flow: &mut Flow, topic: &'static str, records: u64, bytes: u64) {
    let entry = flow.entry(topic).or_default();
    *entry = (entry.0 + records, entry.1 + bytes);
}

/// The script and its clients, which share one connection.
pub struct Script<'a> {
    broker: &'a Process,
    endpoint: Endpoint,
    collector: Collector,
    channel: Channel,
    produce: ProduceServiceClient<Channel>,
    consume: ConsumeServiceClient<Channel>,
    topics: TopicServiceClient<Channel>,
    tally: Tally,
    trace: u64,
}

/// What [`Script::hold_open`] holds.
pub struct Open {
    raw: Vec<TcpStream>,
    requests: mpsc::Sender<v1::SubscribeRequest>,
    deliveries: Streaming<v1::SubscribeResponse>,
    fetch: JoinHandle<Result<v1::FetchResponse, Status>>,
}

/// What [`Script::load`] did.
pub struct Load {
    elapsed: Duration,
    bytes: u64,
}

impl<'a> Script<'a> {
    pub async fn new(broker: &'a Process, collector: &Collector) -> Self {
        let channel = broker.channel().await;
        Script {
            broker,
            endpoint: **broker,
            collector: collector.clone(),
            produce: ProduceServiceClient::new(channel.clone()),
            consume: ConsumeServiceClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            topics: TopicServiceClient::new(channel.clone()),
            channel,
            tally: Tally::default(),
            trace: 0,
        }
    }

    /// What must have been counted so far.
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    async fn get(&mut self, path: &str) -> HttpAnswer {
        let answer = self.endpoint.get(path).await;
        let outcome = match answer.status {
            200..400 => "ok",
            400..500 => "client_error",
            _ => "server_error",
        };
        *self.tally.requests.entry((outcome, "http")).or_default() += 1;
        self.tally.connects += 1;
        answer
    }

    pub async fn scrape(&mut self) -> (View, HttpAnswer) {
        let answer = self.get("/metrics").await;
        assert_eq!(answer.status, 200);
        self.tally.scrapes += 1;
        (View::prometheus(&answer.body), answer)
    }

    /// What both see now.
    pub async fn moment(&mut self) -> Moment {
        let (scrape, _) = self.scrape().await;
        Moment { scrape, export: self.collector.fresh_metrics().await }
    }

    /// Scrapes until `condition` holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&View) -> bool) {
        let started = Instant::now();
        loop {
            let (view, _) = self.scrape().await;
            if condition(&view) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        }
    }

    /// Waits until spans and log records are with the collector.
    pub async fn telemetry_sent(&mut self) {
        self.until("no telemetry waits", |view| view.total(&catalog::TELEMETRY_QUEUE, "") == 0.0).await;
    }

    /// What both see once nothing is under way any more.
    pub async fn quiet(&mut self) -> Moment {
        let collector = self.collector.clone();
        self.until("nothing is under way", |view| {
            view.get(&catalog::BROKER_CONNECTIONS, &[]) == Some(2.0)
                && view.get(&catalog::BROKER_ACTIVE_REQUESTS, &[]) == Some(1.0)
                && view.get(&catalog::PRODUCE_BUFFER, &[]) == Some(0.0)
                && view.get(&catalog::STORAGE_QUEUE, &[]) == Some(0.0)
                && view.total(&catalog::TELEMETRY_QUEUE, "") == 0.0
                && view.get(&catalog::TELEMETRY_EXPORTED, &[("signal", "traces")])
                    == Some(collector.spans().len() as f64)
                && view.get(&catalog::TELEMETRY_EXPORTED, &[("signal", "logs")])
                    == Some(collector.logs().len() as f64)
        })
        .await;
        self.moment().await
    }

    fn called(&mut self, method: &'static str, code: Code) {
        let name = match code {
            Code::Ok => "OK",
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::NotFound => "NOT_FOUND",
            Code::FailedPrecondition => "FAILED_PRECONDITION",
            Code::AlreadyExists => "ALREADY_EXISTS",
            Code::Unimplemented => "UNIMPLEMENTED",
            other => panic!("the script does not expect {other:?}"),
        };
        *self.tally.calls.entry((method, name)).or_default() += 1;
        let outcome = match code {
            Code::Ok => "ok",
            Code::Unimplemented => "server_error",
            _ => "client_error",
        };
        *self.tally.requests.entry((outcome, "grpc")).or_default() += 1;
    }

    async fn create(&mut self, name: &'static str, partitions: u32, config: v1::TopicConfig) {
        let request = v1::CreateTopicRequest {
            name: name.to_owned(),
            partition_count: partitions,
            config: Some(config),
            ..Default::default()
        };
        self.topics.create_topic(request).await.expect("the topic is created");
        self.called(CREATE, Code::Ok);
        self.tally.control += 1;
        self.tally.topics += 1;
        self.tally.partitions += u64::from(partitions);
    }

    async fn put(
        &mut self,
        request: Request<v1::ProduceRequest>,
        topic: &'static str,
        records: u64,
        duplicate: bool,
    ) {
        let bytes = request.get_ref().batch.len() as u64;
        let answer = self.produce.produce(request).await.expect("the batch is committed").into_inner();
        assert_eq!(answer.duplicate, duplicate);
        self.called(PRODUCE, Code::Ok);
        self.tally.acknowledged += 1;
        self.tally.appended += 1;
        count(&mut self.tally.produced, topic, records, bytes);
        if !duplicate {
            count(&mut self.tally.stored, topic, records, bytes);
        }
    }

    async fn refuse(&mut self, request: v1::ProduceRequest, label: &'static str) {
        let status = self.produce.produce(request).await.expect_err("the batch is refused");
        assert_eq!(reason(&status).1, label.to_uppercase());
        self.called(PRODUCE, status.code());
        *self.tally.produce_refused.entry(label).or_default() += 1;
    }

    async fn take(&mut self, topic: &'static str, partition: u32, at: At) -> u64 {
        let request = v1::FetchRequest { max_bytes: 16 << 20, ..fetch(topic, partition, at) };
        let answer = self.consume.fetch(request).await.expect("an answer").into_inner();
        self.called(FETCH, Code::Ok);
        self.took(topic, &answer.partitions[0])
    }

    fn took(&mut self, topic: &'static str, records: &v1::PartitionRecords) -> u64 {
        assert_eq!(records.error, None);
        let number = records.batches.iter().map(|batch| u64::from(batch.record_count)).sum();
        let bytes = records.batches.iter().map(|batch| batch.batch.len() as u64).sum();
        count(&mut self.tally.consumed, topic, number, bytes);
        self.tally.answers += u64::from(number > 0);
        number
    }

    fn traced<T>(&mut self, message: T) -> Request<T> {
        self.trace += 1;
        // The server span, append, replicate and commit.
        self.tally.spans += 4;
        let mut request = Request::new(message);
        let traceparent = format!("00-{:032x}-{:016x}-01", self.trace, self.trace);
        request.metadata_mut().insert("traceparent", traceparent.parse().expect("text"));
        request
    }

    /// Topics, records in, records out, refusals.
    pub async fn traffic(&mut self) {
        self.create("orders", 2, v1::TopicConfig::default()).await;
        self.create("audit", 1, v1::TopicConfig { record_bytes_max: Some(100), ..Default::default() }).await;
        self.create("doomed", 3, v1::TopicConfig::default()).await;
        for number in 0..10 {
            let values = (0..3).map(|record| format!("order {number}, line {record}"));
            self.put(Request::new(produce("orders", 0, batch::values(values))), "orders", 3, false).await;
        }
        self.put(Request::new(produce("doomed", 2, batch::values(["a", "b"]))), "doomed", 2, false).await;
        for _ in 0..2 {
            let request = self.traced(produce("audit", 0, batch::values(["traced"])));
            self.put(request, "audit", 1, false).await;
        }
        self.stream().await;
        self.sequences().await;

        self.refuse(produce("nowhere", 0, batch::values(["x"])), "unknown_topic").await;
        self.refuse(produce("nowhere", 0, batch::values(["x"])), "unknown_topic").await;
        self.refuse(produce("orders", 2, batch::values(["x"])), "unknown_partition").await;
        self.refuse(produce("orders", 0, Bytes::from_static(b"\xff\xff\xff")), "malformed_batch").await;
        self.refuse(produce("audit", 0, batch::values([vec![7; 200]])), "record_too_large").await;

        assert_eq!(self.take("orders", 0, At::Earliest(())).await, 30);
        assert_eq!(self.take("orders", 0, At::Offset(28)).await, 3, "the batch that holds the offset");
        assert_eq!(self.take("orders", 0, At::Latest(())).await, 0);
        for (request, label) in [
            (fetch("nowhere", 0, At::Earliest(())), "unknown_topic"),
            (fetch("orders", 0, At::Offset(31)), "offset_out_of_range"),
        ] {
            let answer = self.consume.fetch(request).await.expect("an answer").into_inner();
            assert!(answer.partitions[0].error.is_some());
            self.called(FETCH, Code::Ok);
            *self.tally.consume_refused.entry(label).or_default() += 1;
        }
        let status = self.consume.fetch(v1::FetchRequest::default()).await.expect_err("no partitions");
        self.called(FETCH, status.code());
        *self.tally.consume_refused.entry("invalid_argument").or_default() += 1;
    }

    async fn stream(&mut self) {
        let requests: Vec<_> = (0..5_u64)
            .map(|number| v1::ProduceStreamRequest {
                correlation_id: number,
                topic: "orders".to_owned(),
                partition: 1,
                batch: batch::values([format!("{number}"), "second".to_owned()]),
                ..Default::default()
            })
            .collect();
        for request in &requests {
            let bytes = request.batch.len() as u64;
            count(&mut self.tally.produced, "orders", 2, bytes);
            count(&mut self.tally.stored, "orders", 2, bytes);
        }
        let answers = self.produce.produce_stream(tokio_stream::iter(requests)).await.expect("a stream");
        let results: Vec<_> =
            answers.into_inner().map(|answer| answer.expect("results").results).concat().await;
        assert_eq!(results.len(), 5);
        self.tally.acknowledged += 5;
        self.tally.appended += 5;
        *self.tally.requests.entry(("ok", "grpc")).or_default() += 1;
    }

    async fn sequences(&mut self) {
        let producer =
            self.produce.init_producer(v1::InitProducerRequest {}).await.expect("an id").into_inner();
        self.called(INIT, Code::Ok);
        self.tally.control += 1;
        let with = |base_sequence, text: &str| v1::ProduceRequest {
            producer: Some(v1::ProducerSequence {
                producer_id: producer.producer_id,
                epoch: producer.epoch,
                base_sequence,
            }),
            ..produce("audit", 0, batch::values([text.to_owned()]))
        };
        self.put(Request::new(with(0, "once")), "audit", 1, false).await;
        self.put(Request::new(with(0, "once")), "audit", 1, true).await;
        // It reaches the log, whose state refuses it.
        self.refuse(with(9, "gap"), "sequence_out_of_order").await;
        self.tally.appended += 1;
    }

    /// Leaves connections, a subscription and a waiting fetch open.
    pub async fn hold_open(&mut self) -> Open {
        let mut raw = Vec::new();
        for _ in 0..HELD_CONNECTIONS {
            raw.push(self.hello().await);
        }
        let (requests, receiver) = mpsc::channel(4);
        let start = v1::StartSubscription {
            partitions: vec![from("orders", 1, At::Earliest(()))],
            credit_bytes: 1 << 20,
            accepted_codecs: Vec::new(),
        };
        requests.send(v1::SubscribeRequest { action: Some(Action::Start(start)) }).await.expect("open");
        let opened = self.consume.subscribe(ReceiverStream::new(receiver)).await.expect("a subscription");
        let mut deliveries = opened.into_inner();
        let mut received = 0;
        while received < 10 {
            let delivery = deliveries.next().await.expect("open").expect("a delivery");
            received += self.took("orders", &delivery.into_records().expect("records"));
        }
        let mut consume = self.consume.clone();
        let fetch = tokio::spawn(async move {
            let request = v1::FetchRequest {
                max_wait: Some(prost_types::Duration { seconds: 50, nanos: 0 }),
                ..fetch("audit", 0, At::Latest(()))
            };
            consume.fetch(request).await.map(tonic::Response::into_inner)
        });
        self.until("a fetch waits", |view| view.get(&catalog::FETCHES_WAITING, &[]) == Some(1.0)).await;
        Open { raw, requests, deliveries, fetch }
    }

    /// A connection that has spoken HTTP/2 and was answered.
    async fn hello(&mut self) -> TcpStream {
        self.tally.connects += 1;
        let mut stream = TcpStream::connect(self.endpoint.grpc).await.expect("a connection");
        stream.write_all(HELLO).await.expect("sent");
        let mut settings = [0; 9];
        stream.read_exact(&mut settings).await.expect("the broker's settings");
        stream
    }

    /// Ends what was held open.
    pub async fn let_go(&mut self, open: Open) {
        self.put(Request::new(produce("audit", 0, batch::values(["news"]))), "audit", 1, false).await;
        let answer = open.fetch.await.expect("no panic").expect("an answer");
        self.called(FETCH, Code::Ok);
        assert_eq!(self.took("audit", &answer.partitions[0]), 1);
        // A stream whose client leaves has ended as its client wanted.
        drop((open.deliveries, open.requests));
        *self.tally.requests.entry(("ok", "grpc")).or_default() += 1;
        part(open.raw).await;
    }

    /// Connections and calls that go wrong; gives the kinds of network errors.
    pub async fn calls(&mut self) -> BTreeMap<&'static str, u64> {
        let mut errors = BTreeMap::new();
        exchange(self.endpoint.grpc, b"\0\x01\x02 this is no HTTP/2").await;
        exchange(self.endpoint.http, b"\0\x01\x02 nor is it HTTP\r\n\r\n").await;
        errors.insert("protocol", 2);
        let answer = exchange(self.endpoint.grpc, b"GET / HTTP/1.1\r\nhost: broker\r\n\r\n").await;
        assert!(answer.starts_with(b"HTTP/1.1 400"));
        errors.insert("http_on_grpc_port", 1);
        assert_eq!(exchange(self.endpoint.grpc, b"").await, b"");
        errors.insert("handshake_timeout", 1);
        self.tally.connects += 4;
        let cut = self.hello().await;
        cut.set_zero_linger().expect("an open socket");
        drop(cut);
        errors.insert("reset", 1);
        let settled = |view: &View| view.get(&catalog::BROKER_CONNECTIONS, &[]) == Some(2.0);
        self.until("all other connections are closed", settled).await;

        let mut crowd = Vec::new();
        for _ in 0..CONNECTIONS_MAX - 1 {
            crowd.push(self.hello().await);
        }
        let refusal = exchange(self.endpoint.grpc, HELLO).await;
        self.tally.connects += 1;
        assert!(String::from_utf8_lossy(&refusal).contains("api.connections_max"), "{refusal:?}");
        errors.insert("connection_limit", 1);
        part(crowd).await;
        self.until("the crowd has gone", settled).await;

        let too_large = produce("orders", 0, Bytes::from(vec![0; 18 << 20]));
        let status = self.produce.produce(too_large).await.expect_err("it is too large");
        assert_eq!(reason(&status), (Code::InvalidArgument, "BATCH_TOO_LARGE".to_owned(), false));
        self.called(PRODUCE, status.code());
        errors.insert("oversized", 1);

        let mut stranger = tonic::client::Grpc::new(self.channel.clone());
        stranger.ready().await.expect("connected");
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let path = "/nobody.Knows/This".parse().expect("a path");
        let status = stranger.unary(Request::new(()), path, codec).await.expect_err("unknown");
        self.called("_OTHER", status.code());
        assert_eq!(self.get("/nothing/here").await.status, 404);
        assert_eq!(self.get("/health").await.status, 200);
        errors
    }

    /// Bytes on the network are counted to the last one, and scrapes tell of the one before.
    pub async fn exact_bytes(&mut self, proof: &mut Proof) {
        let scrapes = self.tally.scrapes as f64;
        let (first, answer) = self.scrape().await;
        let (second, second_answer) = self.scrape().await;
        let export = self.collector.fresh_metrics().await;
        let (row_in, row_out) = (&catalog::NETWORK_IN, &catalog::NETWORK_OUT);
        let grown =
            |row: &Row, before: &View, after: &View| Some(after.or_zero(row, &[]) - before.or_zero(row, &[]));
        let sent = Some(second_answer.bytes_sent as f64);
        proof.claim(row_in, &second, same("bytes of one scrape", grown(row_in, &first, &second), sent));
        proof.claim(row_in, &export, same("bytes since", grown(row_in, &second, &export), Some(0.0)));
        let received = Some(answer.bytes_received as f64);
        proof.claim(row_out, &second, same("bytes of one answer", grown(row_out, &first, &second), received));
        let received = Some(second_answer.bytes_received as f64);
        proof.claim(row_out, &export, same("bytes since", grown(row_out, &second, &export), received));

        let row = &catalog::TELEMETRY_SERIES;
        proof.claim(row, &second, same("samples", second.get(row, &[]), Some(first.values.len() as f64)));
        proof.claim(row, &export, same("samples", export.get(row, &[]), Some(second.values.len() as f64)));
        let row = &catalog::TELEMETRY_SCRAPE;
        proof.claim(row, &second, same("scrapes", Some(second.count(row)), Some(scrapes + 1.0)));
        proof.claim(row, &export, same("scrapes", Some(export.count(row)), Some(scrapes + 2.0)));
        proof.claim(row, &second, within("seconds", Some(second.sum(row)), 1e-6, 60.0));

        let number = self.collector.metric_exports();
        let newest = self.collector.metrics(number - 1).expect("exports");
        let row = &catalog::TELEMETRY_EXPORTED;
        let expected = Some((number - 1) as f64);
        proof.claim(
            row,
            &newest,
            same("exports before", newest.get(row, &[("signal", "metrics")]), expected),
        );
        let (scrape, _) = self.scrape().await;
        let found = scrape.get(row, &[("signal", "metrics")]);
        let most = self.collector.metric_exports() as f64;
        proof.claim(row, &scrape, within("exports so far", found, number as f64 - 1.0, most));
        for view in [&scrape, &newest] {
            let row = &catalog::TELEMETRY_AGE;
            proof.claim(row, view, within("age", view.get(row, &[("signal", "metrics")]), 0.0, 5.0));
        }
    }

    /// Writes as fast as the broker takes it until every queue was seen in use.
    pub async fn load(&mut self, proof: &mut Proof) -> Load {
        let started = Instant::now();
        let bulk = v1::TopicConfig { retention_bytes: Some(2 << 20), ..Default::default() };
        self.create("bulk", 1, bulk.clone()).await;
        self.create("wide", 8, bulk).await;
        self.create("cold", 1, v1::TopicConfig::default()).await;
        let mut lone = 0;
        for seed in 0..24 {
            let noise = batch::noise(COLD + seed, 4, 32 << 10);
            lone += noise.len() as u64;
            self.put(Request::new(produce("cold", 0, noise)), "cold", 4, false).await;
        }
        // Before the load, because looking for them takes longer the more there is.
        let directory = self.broker.data_dir();
        eventually(PATIENCE, "the records are in a table", async || {
            damage::find_in_tables(&directory, &cold_bytes()).map(drop)
        })
        .await;
        let full = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let noise = batch::noise(7, 4, 32 << 10);
        let bytes = noise.len() as u64;
        let requests = {
            let (full, sent, noise) = (full.clone(), sent.clone(), noise.clone());
            futures_util::stream::iter(0_u64..)
                .take_while(move |_| std::future::ready(!full.load(Ordering::Acquire)))
                .map(move |number| {
                    sent.fetch_add(1, Ordering::AcqRel);
                    v1::ProduceStreamRequest {
                        correlation_id: number,
                        topic: "wide".to_owned(),
                        partition: (number % 8) as u32,
                        batch: noise.clone(),
                        ..Default::default()
                    }
                })
        };
        let mut client = self.produce.clone();
        let pump = tokio::spawn(async move {
            let mut answers = client.produce_stream(requests).await.expect("a stream").into_inner();
            let mut results = 0;
            while let Some(answer) = answers.next().await {
                results += answer.expect("results").results.len() as u64;
            }
            results
        });
        let rows = [catalog::PRODUCE_BUFFER, catalog::STORAGE_QUEUE];
        let (mut on_metrics, mut over_otlp) = (BTreeSet::new(), BTreeSet::new());
        let mut next = self.collector.metric_exports();
        while on_metrics.len() + over_otlp.len() < 2 * rows.len() {
            assert!(started.elapsed() < PATIENCE, "seen in use: {on_metrics:?}, {over_otlp:?}");
            let (view, _) = self.scrape().await;
            for row in &rows {
                if view.get(row, &[]).is_some_and(|level| level > 0.0) && on_metrics.insert(row.otel) {
                    proof.claim(
                        row,
                        &view,
                        within("level under load", view.get(row, &[]), 1.0, f64::from(96 << 20)),
                    );
                }
            }
            while let Some(view) = self.collector.metrics(next) {
                next += 1;
                for row in &rows {
                    if view.get(row, &[]).is_some_and(|level| level > 0.0) && over_otlp.insert(row.otel) {
                        proof.claim(
                            row,
                            &view,
                            within("level under load", view.get(row, &[]), 1.0, f64::from(96 << 20)),
                        );
                    }
                }
            }
        }
        full.store(true, Ordering::Release);
        let results = match pump.await {
            Ok(results) => results,
            Err(panic) => panic!("{panic}; the broker says {:#?}", self.broker.log()),
        };
        assert_eq!(results, sent.load(Ordering::Acquire));
        *self.tally.requests.entry(("ok", "grpc")).or_default() += 1;
        self.tally.acknowledged += results;
        self.tally.appended += results;
        count(&mut self.tally.produced, "wide", 4 * results, bytes * results);
        count(&mut self.tally.stored, "wide", 4 * results, bytes * results);
        for _ in 0..48 {
            lone += bytes;
            self.put(Request::new(produce("bulk", 0, noise.clone())), "bulk", 4, false).await;
        }
        self.until("tables and compactions", |view| {
            view.or_zero(&catalog::SEGMENTS, &[]) >= 1.0 && view.or_zero(&catalog::COMPACTIONS, &[]) >= 1.0
        })
        .await;
        Load { elapsed: started.elapsed(), bytes: bytes * results + lone }
    }

    /// Retention, deleted records, a deleted topic.
    pub async fn deletions(&mut self, proof: &mut Proof, before: &Moment) {
        // Retention trims as long as there is something to trim; then what it deleted is what is missing.
        let (records, bytes) = self.tally.produced["bulk"];
        let started = Instant::now();
        let (log_start, size) = loop {
            let request = v1::DescribeTopicRequest { name: "bulk".to_owned() };
            let described = self.topics.describe_topic(request).await.expect("described").into_inner();
            self.called("streambus.v1.TopicService/DescribeTopic", Code::Ok);
            let partition = &described.partitions[0];
            assert_eq!(partition.high_watermark, records);
            if partition.size_bytes < (2 << 20) + (1 << 20) + (256 << 10) {
                break (partition.log_start_offset, partition.size_bytes);
            }
            assert!(started.elapsed() < PATIENCE, "retention left {} bytes", partition.size_bytes);
            tokio::task::yield_now().await;
        };
        assert!(size >= 2 << 20, "retention kept only {size} bytes");
        self.tally.trimmed.insert("bulk", (log_start, bytes - size));

        let request =
            v1::DeleteRecordsRequest { topic: "orders".to_owned(), partition: 0, before_offset: 15 };
        let deleted = self.topics.delete_records(request).await.expect("deleted").into_inner();
        self.called("streambus.v1.TopicService/DeleteRecords", Code::Ok);
        assert_eq!(deleted.log_start_offset, 15);
        let bytes = (0..5).map(|number| {
            batch::values((0..3).map(|record| format!("order {number}, line {record}"))).len() as u64
        });
        self.tally.trimmed.insert("orders", (15, bytes.sum()));

        assert!(before.scrape.mentions("topic", "doomed") && before.export.mentions("topic", "doomed"));
        self.topics
            .delete_topic(v1::DeleteTopicRequest { name: "doomed".to_owned() })
            .await
            .expect("deleted");
        self.called("streambus.v1.TopicService/DeleteTopic", Code::Ok);
        let (next, _) = self.scrape().await;
        assert!(!next.mentions("topic", "doomed"), "a deleted topic still has series at the next scrape");
        self.tally.control += 1;
        self.tally.topics -= 1;
        self.tally.partitions -= 3;
        for flow in [&mut self.tally.produced, &mut self.tally.stored] {
            flow.remove("doomed");
        }
        let after = self.quiet().await;
        assert!(!after.export.mentions("topic", "doomed"), "a deleted topic still has series over OTLP");
        check_levels(proof, &after, &self.tally);
        for (topic, (records, bytes)) in self.tally.trimmed.clone() {
            proof.equals(&after, &catalog::RETENTION_MESSAGES, &[("topic", topic)], records as f64);
            proof.equals(&after, &catalog::RETENTION_BYTES, &[("topic", topic)], bytes as f64);
        }
        proof.equals(&after, &catalog::RETENTION_MESSAGES, &[("topic", "audit")], 0.0);
        let most = size_of(&self.broker.data_dir()) as f64 * 1.1 + 1e6;
        let least = self.tally.stored["cold"].1 as f64;
        proof.at(&after, &catalog::STORAGE_USED, |view| {
            within("bytes", view.get(&catalog::STORAGE_USED, &[]), least, most)
        });
        let free = rustix::fs::statvfs(self.broker.data_dir()).expect("a file system");
        let free = (free.f_bavail * free.f_frsize) as f64;
        proof.at(&after, &catalog::STORAGE_AVAILABLE, |view| {
            within("bytes", view.get(&catalog::STORAGE_AVAILABLE, &[]), free - 4e9, free + 4e9)
        });
    }

    /// A collector that takes no traces: what is lost is counted, nothing is lost twice.
    pub async fn trouble_with_traces(&mut self, proof: &mut Proof, queue: u64) {
        self.collector.set_traces(Mood::Hanging);
        for _ in 0..40 {
            let request = self.traced(produce("audit", 0, batch::values(["t"])));
            self.put(request, "audit", 1, false).await;
        }
        let during = self.moment().await;
        proof.at(&during, &catalog::TELEMETRY_QUEUE, |view| {
            within(
                "waiting spans",
                view.get(&catalog::TELEMETRY_QUEUE, &[("signal", "traces")]),
                1.0,
                queue as f64,
            )
        });
        proof.at(&during, &catalog::TELEMETRY_DROPPED, |view| {
            let found =
                view.get(&catalog::TELEMETRY_DROPPED, &[("reason", "queue_full"), ("signal", "traces")]);
            within("spans that found the queue full", found, 1.0, 160.0)
        });
        self.collector.set_traces(Mood::Refusing);
        let after = self.settled().await;
        let spans = self.tally.spans as f64;
        proof.at(&after, &catalog::TELEMETRY_DROPPED, |view| {
            let lost = |reason| {
                view.or_zero(&catalog::TELEMETRY_DROPPED, &[("reason", reason), ("signal", "traces")])
            };
            let exported = view.or_zero(&catalog::TELEMETRY_EXPORTED, &[("signal", "traces")]);
            same(
                "spans exported and lost",
                Some(exported + lost("queue_full") + lost("export_failed")),
                Some(spans),
            )
        });

        let refused = self.collector.refused("traces");
        let request = self.traced(produce("audit", 0, batch::values(["t"])));
        self.put(request, "audit", 1, false).await;
        eventually(PATIENCE, "a refused export", async || {
            (self.collector.refused("traces") > refused).then_some(())
        })
        .await;
        let later = self.settled().await;
        let refused = (self.collector.refused("traces") - refused) as f64;
        proof.grew([&after, &later], &catalog::TELEMETRY_FAILURES, &[("signal", "traces")], refused);
        let lost: &[(&str, &str)] = &[("reason", "export_failed"), ("signal", "traces")];
        proof.grew([&after, &later], &catalog::TELEMETRY_DROPPED, lost, 4.0);
        self.collector.set_traces(Mood::Taking);
        let spans = self.collector.spans().len() as f64;
        proof.equals(&later, &catalog::TELEMETRY_EXPORTED, &[("signal", "traces")], spans);
    }

    /// What both see once no telemetry waits.
    async fn settled(&mut self) -> Moment {
        self.telemetry_sent().await;
        let tally = self.tally.spans as f64;
        self.until("every span is accounted for", |view| {
            let lost: f64 = view
                .series_of(&catalog::TELEMETRY_DROPPED, "")
                .filter(|(series, _)| series.contains("traces"))
                .map(|(_, value)| value)
                .sum();
            lost + view.or_zero(&catalog::TELEMETRY_EXPORTED, &[("signal", "traces")]) >= tally
        })
        .await;
        self.moment().await
    }

    /// A collector that takes no metrics for a while.
    pub async fn trouble_with_metrics(&mut self, proof: &mut Proof) {
        let began = Instant::now();
        self.collector.set_metrics(Mood::Refusing);
        eventually(PATIENCE, "refused exports", async || {
            (self.collector.refused("metrics") >= 5).then_some(())
        })
        .await;
        let (scrape, _) = self.scrape().await;
        let next = self.collector.metric_exports();
        let lasted = began.elapsed().as_secs_f64();
        let row = &catalog::TELEMETRY_AGE;
        let age = scrape.get(row, &[("signal", "metrics")]);
        proof.claim(row, &scrape, within("age while refused", age, 0.2, lasted + 5.0));
        self.collector.set_metrics(Mood::Taking);
        let first = eventually(PATIENCE, "an export", async || self.collector.metrics(next)).await;
        let age = first.get(row, &[("signal", "metrics")]);
        proof.claim(row, &first, within("age at the first success", age, 0.2, lasted + 5.0));
        let after = self.moment().await;
        let refused = self.collector.refused("metrics") as f64;
        proof.equals(&after, &catalog::TELEMETRY_FAILURES, &[("signal", "metrics")], refused);
        let lost: &[(&str, &str)] = &[("reason", "export_failed"), ("signal", "metrics")];
        proof.equals(&after, &catalog::TELEMETRY_DROPPED, lost, refused);
        // Traces failed last; one that arrives completes the recovery.
        let request = self.traced(produce("audit", 0, batch::values(["t"])));
        self.put(request, "audit", 1, false).await;
        for event in ["telemetry.export.failing", "telemetry.export.recovered"] {
            let broker = self.broker;
            eventually(PATIENCE, event, async || (!broker.events(event).is_empty()).then_some(())).await;
        }
    }
}

/// Closes connections in order: who closes a socket that has unread bytes resets the connection.
async fn part(connections: Vec<TcpStream>) {
    for mut connection in connections {
        connection.shutdown().await.expect("an open socket");
        connection.read_to_end(&mut Vec::new()).await.expect("the broker closes too");
    }
}

/// Levels of topics, partitions and groups.
pub fn check_levels(proof: &mut Proof, now: &Moment, tally: &Tally) {
    proof.equals(now, &catalog::TOPICS, &[], tally.topics as f64);
    proof.equals(now, &catalog::PARTITIONS, &[], tally.partitions as f64);
    proof.equals(now, &catalog::REPLICAS, &[], tally.partitions as f64);
    proof.equals(now, &catalog::RAFT_GROUPS, &[("role", "leader")], tally.partitions as f64 + SYSTEM_GROUPS);
}

/// Everything that is counted exactly, since the broker was idle.
pub fn check_tally(proof: &mut Proof, idle: (&Moment, &Tally), now: (&Moment, &Tally)) {
    let ((idle, before), (now, tally)) = (idle, now);
    let moments = [idle, now];
    check_levels(proof, now, tally);
    for (flow, records, bytes) in [
        (&tally.produced, &catalog::MESSAGES_PRODUCED, &catalog::BYTES_PRODUCED),
        (&tally.stored, &catalog::MESSAGES_STORED, &catalog::BYTES_STORED),
        (&tally.consumed, &catalog::MESSAGES_CONSUMED, &catalog::BYTES_CONSUMED),
    ] {
        for (topic, count) in flow {
            proof.equals(now, records, &[("topic", topic)], count.0 as f64);
            proof.equals(now, bytes, &[("topic", topic)], count.1 as f64);
        }
    }
    for (refused, row) in [
        (&tally.produce_refused, &catalog::PRODUCE_REJECTIONS),
        (&tally.consume_refused, &catalog::CONSUME_REJECTIONS),
    ] {
        for (code, count) in refused {
            proof.equals(now, row, &[("code", code)], *count as f64);
        }
        let expected = refused.values().sum::<u64>() as f64;
        proof.at(now, row, |view| same("all codes", Some(view.total(row, "")), Some(expected)));
    }

    proof.recorded(moments, &catalog::PRODUCE_LATENCY, tally.acknowledged as f64);
    for phase in ["admit", "append", "replicate", "apply", "respond"] {
        proof.at(now, &catalog::PRODUCE_PHASE, |view| {
            let found = view.part(&catalog::PRODUCE_PHASE, "_count", &[("phase", phase)]);
            same(phase, found, Some(tally.acknowledged as f64))
        });
    }
    proof.at(now, &catalog::PRODUCE_PHASE, |view| {
        let (parts, whole) = (view.sum(&catalog::PRODUCE_PHASE), view.sum(&catalog::PRODUCE_LATENCY));
        within("sum of the phases", Some(parts), whole * 0.999_999, whole * 1.000_001)
    });
    proof.recorded(moments, &catalog::CONSUME_LATENCY, tally.answers as f64);
    for phase in ["wait", "read", "respond"] {
        proof.at(now, &catalog::CONSUME_PHASE, |view| {
            let found = view.part(&catalog::CONSUME_PHASE, "_count", &[("phase", phase)]);
            same(phase, found, Some(tally.answers as f64))
        });
    }
    proof.at(now, &catalog::CONSUME_PHASE, |view| {
        let sum = |phase| view.part(&catalog::CONSUME_PHASE, "_sum", &[("phase", phase)]).unwrap_or(0.0);
        let whole = view.sum(&catalog::CONSUME_LATENCY);
        within("read and respond", Some(sum("read") + sum("respond")), whole * 0.999_999, whole * 1.000_001)
    });
    // No answer is read, or encoded and handed over, in no time at all.
    for phase in ["read", "respond"] {
        proof.at(now, &catalog::CONSUME_PHASE, |view| {
            let sum = view.part(&catalog::CONSUME_PHASE, "_sum", &[("phase", phase)]);
            within(phase, sum, tally.answers as f64 * 100e-9, tally.answers as f64 * 5.0)
        });
    }
    // Every batch was in exactly one entry.
    let row = &catalog::APPEND_GROUP;
    proof.at(now, row, |view| same("batches in entries", Some(view.sum(row)), Some(tally.appended as f64)));
    proof.at(now, row, |view| within("entries", Some(view.count(row)), 1.0, tally.appended as f64));
    proof.grew(moments, &catalog::RAFT_COMMIT_INDEX, &[], tally.control as f64);
    proof.equals(now, &catalog::RAFT_TERM, &[], 1.0);

    // An fsync completes a round of commits; a call that waits for its answer has one of its own.
    let stored: f64 = tally.stored.values().map(|(_, bytes)| *bytes as f64).sum();
    let row = &catalog::STORAGE_WRITTEN;
    proof.between(moments, row, |before, after| {
        let grown = after.or_zero(row, &[]) - before.or_zero(row, &[]);
        within("bytes", Some(grown), stored, stored * 1.2 + 1e6)
    });
    let (fsync, group) = (&catalog::STORAGE_FSYNC, &catalog::STORAGE_COMMIT_GROUP);
    let sequential = *tally.calls.get(&(PRODUCE, "OK")).unwrap_or(&0) as f64;
    proof.between(moments, fsync, |before, after| {
        within("fsyncs", Some(after.count(fsync) - before.count(fsync)), sequential, 1e6)
    });
    proof.at(now, fsync, |view| within("seconds", Some(view.sum(fsync)), 1e-9, 120.0));
    proof.at(now, group, |view| same("rounds", Some(view.count(group)), Some(view.count(fsync))));
    proof.at(now, group, |view| within("commits", Some(view.sum(group)), view.count(group), 1e7));

    for ((outcome, protocol), count) in &tally.requests {
        let labels: &[(&str, &str)] = &[("outcome", outcome), ("protocol", protocol)];
        let already = before.requests.get(&(*outcome, *protocol)).copied().unwrap_or(0);
        proof.grew(moments, &catalog::NETWORK_REQUESTS, labels, (count - already) as f64);
    }
    proof.grew(moments, &catalog::NETWORK_CONNECTIONS, &[], (tally.connects - before.connects) as f64);
    for ((method, code), count) in &tally.calls {
        proof.at(now, &catalog::RPC_DURATION, |view| {
            let mut labels =
                vec![("rpc.method", *method), ("rpc.status_code", *code), ("rpc.system.name", "grpc")];
            if *code == "UNIMPLEMENTED" {
                labels.push(("error.type", *code));
            }
            let found = view.part(&catalog::RPC_DURATION, "_count", &labels);
            same(&format!("{method} {code}"), found, Some(*count as f64))
        });
    }
    let all = tally.calls.values().sum::<u64>() as f64;
    proof.recorded(moments, &catalog::RPC_DURATION, all);
}

/// Errors of the network, by kind.
pub fn check_errors(proof: &mut Proof, moments: [&Moment; 2], errors: &BTreeMap<&'static str, u64>) {
    for (kind, count) in errors {
        proof.grew(moments, &catalog::NETWORK_ERRORS, &[("kind", kind)], *count as f64);
    }
    let row = &catalog::NETWORK_ERRORS;
    let expected = errors.values().sum::<u64>() as f64;
    proof.between(moments, row, |before, after| {
        same("all kinds", Some(after.total(row, "") - before.total(row, "")), Some(expected))
    });
}

/// What load leaves behind.
pub fn check_load(proof: &mut Proof, moments: [&Moment; 2], load: &Load) {
    let elapsed = load.elapsed.as_secs_f64();
    let row = &catalog::STORAGE_FSYNC;
    proof.between(moments, row, |before, after| {
        within("seconds", Some(after.sum(row) - before.sum(row)), 1e-6, elapsed + 1.0)
    });
    let row = &catalog::STORAGE_WRITTEN;
    proof.between(moments, row, |before, after| {
        let grown = after.or_zero(row, &[]) - before.or_zero(row, &[]);
        within("bytes", Some(grown), load.bytes as f64, load.bytes as f64 * 1.2 + 1e6)
    });
    for row in [&catalog::SEGMENTS, &catalog::COMPACTIONS] {
        proof.between(moments, row, |before, after| {
            let grown = after.or_zero(row, &[]) - before.or_zero(row, &[]);
            within("growth", Some(grown), 1.0, 1e6)
        });
    }
}

fn size_of(directory: &std::path::Path) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        // Files come and go meanwhile.
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += size_of(&entry.path()),
            Ok(metadata) => bytes += metadata.len(),
            Err(_) => {}
        }
    }
    bytes
}

/// What identifies the third batch of the topic `cold`.
fn cold_bytes() -> Bytes {
    let records = batch::records(&batch::noise(COLD + 2, 1, 64));
    records[0].value.clone().expect("a value")
}

/// The same data after a restart, with a reserve larger than any disk and damaged tables.
pub async fn another_life(proof: &mut Proof, remains: Remains, collector: &Collector, last: &Moment) {
    damage::inflict(&remains.data_dir(), &cold_bytes());
    let broker = remains
        .set("storage.reserve_bytes", "9000000000000000")
        .set("api.keepalive_interval", "200ms")
        .set("api.keepalive_timeout", "200ms")
        .start()
        .await;
    let mut script = Script::new(&broker, collector).await;
    let status = script
        .produce
        .produce(produce("audit", 0, batch::values(["no room"])))
        .await
        .expect_err("the disk is full");
    assert_eq!(reason(&status), (Code::ResourceExhausted, "DISK_FULL".to_owned(), true));
    script
        .until("the check fails", |view| {
            view.get(&catalog::HEALTH_CHECK, &[("check", "storage")]) == Some(0.0)
        })
        .await;
    assert_eq!(script.get("/health").await.status, 503);
    let mute = script.hello().await;
    script
        .until("the mute client is disconnected", |view| {
            view.or_zero(&catalog::NETWORK_ERRORS, &[("kind", "keepalive_timeout")]) >= 1.0
        })
        .await;
    drop(mute);
    let answer = script.consume.fetch(fetch("cold", 0, At::Offset(8))).await.expect("an answer").into_inner();
    let damage = answer.partitions[0].error.clone().expect("the damage is found");
    assert_eq!(damage.code(), v1::ErrorCode::Corrupt, "{damage:?}");
    assert!(damage.message.contains("cold/0"), "it says where: {damage:?}");
    let now = script.moment().await;
    proof.equals(&now, &catalog::STORAGE_WRITABLE, &[], 0.0);
    proof.equals(&now, &catalog::STORAGE_RESERVE, &[], 9e15);
    proof.equals(&now, &catalog::HEALTH_CHECK, &[("check", "storage")], 0.0);
    proof.equals(&now, &catalog::HEALTH_CHECK, &[("check", "broker")], 1.0);
    proof.equals(&now, &catalog::PRODUCE_REJECTIONS, &[("code", "disk_full")], 1.0);
    proof.equals(&now, &catalog::NETWORK_REQUESTS, &[("outcome", "server_error"), ("protocol", "http")], 1.0);
    proof.equals(&now, &catalog::NETWORK_ERRORS, &[("kind", "keepalive_timeout")], 1.0);
    // What an earlier life stored is not counted again, and what it agreed on is still there.
    proof.equals(&now, &catalog::MESSAGES_STORED, &[("topic", "orders")], 0.0);
    proof.between([last, &now], &catalog::TOPICS, |before, after| {
        same("topics", after.get(&catalog::TOPICS, &[]), before.get(&catalog::TOPICS, &[]))
    });
    proof.between([last, &now], &catalog::RAFT_TERM, |before, after| {
        let (before, after) = (before.or_zero(&catalog::RAFT_TERM, &[]), after.get(&catalog::RAFT_TERM, &[]));
        within("term", after, before, before + 2.0)
    });
    proof.between([last, &now], &catalog::RAFT_COMMIT_INDEX, |before, after| {
        let row = &catalog::RAFT_COMMIT_INDEX;
        within("index", after.get(row, &[]), before.or_zero(row, &[]), before.or_zero(row, &[]) + 3.0)
    });
    let row = &catalog::STORAGE_ERRORS;
    proof.at(&now, row, |view| same("failures", Some(view.total(row, "")), Some(1.0)));
    proof.equals(&now, &catalog::CONSUME_REJECTIONS, &[("code", "corrupt")], 1.0);
    drop(script);
    broker.stop().await;
}
