//! A broker in the test's own process that behaves as a script says, over real connections.

pub(super) mod group;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::{Backoff, Client, ClientConfig, ErrorCode, ProducerConfig, ProducerRecord};
use crate::proto::v1;
use crate::proto::v1::cluster_service_server::{ClusterService, ClusterServiceServer};
use crate::proto::v1::consume_service_server::{ConsumeService, ConsumeServiceServer};
use crate::proto::v1::group_service_server::GroupServiceServer;
use crate::proto::v1::position::At;
use crate::proto::v1::produce_result::Outcome;
use crate::proto::v1::produce_service_server::{ProduceService, ProduceServiceServer};
use crate::proto::v1::subscribe_request::Action;
use crate::record::decode;

const BROKER: u64 = 1;
const PATIENCE: Duration = Duration::from_secs(30);
/// Larger than anything in the tests.
const BATCH_BYTES_MAX: usize = 64 << 20;

/// What the broker does with a batch. Batches beyond the script are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Commit,
    Refuse(ErrorCode),
    /// Appends and then breaks the stream instead of answering.
    CommitAndBreak,
    /// Breaks the stream without having appended.
    Break,
    /// Forgets all producers, then judges the batch.
    Forget,
    /// Never answers.
    Ignore,
}

/// What the broker does with a subscription before its next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disturb {
    Nothing,
    Break,
    Fail(ErrorCode),
}

/// A batch as it was appended.
#[derive(Clone, Debug)]
pub(super) struct Appended {
    pub(super) batch: Bytes,
    pub(super) producer: Option<v1::ProducerSequence>,
    pub(super) base_offset: u64,
    pub(super) records: u32,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) partitions: u32,
    pub(super) codecs_allowed: Option<v1::AllowedCodecs>,
    pub(super) logs: HashMap<u32, Vec<Appended>>,
    pub(super) log_start: u64,
    pub(super) script: VecDeque<Act>,
    pub(super) disturbances: VecDeque<Disturb>,
    /// While set, batches are appended but not answered.
    pub(super) held: bool,
    /// Everything that arrived.
    pub(super) requests: Vec<v1::ProduceStreamRequest>,
    pub(super) duplicates: usize,
    pub(super) producers_made: u64,
    pub(super) streams: usize,
    pub(super) subscriptions: Vec<v1::StartSubscription>,
    /// Largest number of bytes sent beyond what was granted, and largest sum in the client's hands.
    pub(super) credit_overdrawn: u64,
    pub(super) grants: usize,
    pub(super) groups: group::Groups,
    /// Expected sequence by producer and partition.
    expected: HashMap<(u64, u32), u32>,
}

impl State {
    pub(super) fn values(&self, partition: u32) -> Vec<String> {
        let batches = self.logs.get(&partition).into_iter().flatten();
        batches
            .flat_map(|appended| decode(&appended.batch, BATCH_BYTES_MAX).expect("a good batch"))
            .map(|record| String::from_utf8(record.value.expect("a value").to_vec()).expect("text"))
            .collect()
    }

    fn append(&mut self, request: &v1::ProduceStreamRequest) -> Outcome {
        let records = u32::try_from(decode(&request.batch, BATCH_BYTES_MAX).expect("a good batch").len());
        let records = records.expect("few records");
        let log = self.logs.entry(request.partition).or_default();
        if let Some(id) = request.producer {
            let known = self.expected.get(&(id.producer_id, request.partition)).copied();
            let expected = known.unwrap_or(0);
            if id.base_sequence < expected {
                let before = log.iter().find(|appended| appended.producer == Some(id));
                let before = before.expect("a duplicate repeats a batch as it was");
                self.duplicates += 1;
                return committed(before.base_offset, true);
            }
            if id.base_sequence > expected {
                return refused(match known {
                    Some(_) => ErrorCode::SequenceOutOfOrder,
                    None => ErrorCode::UnknownProducer,
                });
            }
            self.expected.insert((id.producer_id, request.partition), expected + records);
        }
        let base_offset = log.last().map_or(0, |last| last.base_offset + u64::from(last.records));
        log.push(Appended { batch: request.batch.clone(), producer: request.producer, base_offset, records });
        committed(base_offset, false)
    }
}

fn committed(base_offset: u64, duplicate: bool) -> Outcome {
    Outcome::Committed(v1::ProduceResponse { base_offset, append_time_ms: 1_000, duplicate })
}

fn refused(code: ErrorCode) -> Outcome {
    Outcome::Error(error(code))
}

fn error(code: ErrorCode) -> v1::Error {
    let retry = matches!(code, ErrorCode::Busy | ErrorCode::NotLeader | ErrorCode::OutcomeUnknown);
    v1::Error {
        code: code as i32,
        message: code.as_str_name().to_owned(),
        retry_after: retry.then_some(prost_types::Duration { seconds: 0, nanos: 1_000_000 }),
        may_have_been_written: code == ErrorCode::OutcomeUnknown,
    }
}

/// Keeps the spans that end.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl Kept {
    pub(super) fn spans(&self) -> Vec<SpanData> {
        self.0.lock().expect("not poisoned").clone()
    }
}

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().expect("not poisoned").extend(batch);
        Ok(())
    }
}

/// A broker with one topic, `t`.
#[derive(Clone, Debug)]
pub(super) struct Fake {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    pub(super) address: SocketAddr,
}

impl Fake {
    pub(super) async fn start(partitions: u32) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = State { partitions, ..State::default() };
        let fake = Fake { state: Arc::new(Mutex::new(state)), changed: Arc::default(), address };
        let server = Server::builder()
            .add_service(ProduceServiceServer::new(fake.clone()))
            .add_service(ConsumeServiceServer::new(fake.clone()))
            .add_service(ClusterServiceServer::new(fake.clone()))
            .add_service(GroupServiceServer::new(fake.clone()))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        tokio::spawn(server);
        fake
    }

    /// Appends to `partition` the numbers from where it ends up to `end`, ten to a batch.
    pub(super) async fn fill(&self, partition: u32, end: u32) {
        let config = ProducerConfig { max_batch_records: 10, ..ProducerConfig::default() };
        let producer = self.client().await.producer(config).await.expect("started");
        let begin = self.state().values(partition).len();
        for number in u32::try_from(begin).expect("few")..end {
            let record = ProducerRecord::new("t").partition(partition).value(number.to_string());
            drop(producer.send(record).await.expect("taken"));
        }
        producer.close().await;
        self.changed.notify_waiters();
    }

    pub(super) async fn client(&self) -> Client {
        let backoff = Backoff { initial: Duration::from_millis(1), max: Duration::from_millis(5) };
        // Where time is paused, hours pass between two packets.
        let keepalive_interval = Duration::from_secs(100_000);
        let config = ClientConfig { backoff, keepalive_interval, ..ClientConfig::default() };
        Client::connect(self.address.to_string(), config).await.expect("the fake answers")
    }

    /// A client whose spans are kept. They are made as long as the provider lives.
    pub(super) async fn traced_client(&self) -> (Client, SdkTracerProvider, Kept) {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build();
        let client = Client::builder()
            .bootstrap(self.address.to_string())
            .config(ClientConfig::default())
            .with_tracer_provider(&provider)
            .connect()
            .await
            .expect("the fake answers");
        (client, provider, kept)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with the lock held")
    }

    /// Changes the state and lets everybody look at it.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }

    /// Waits until the state is as wanted, which it must become in time.
    pub(super) async fn until(&self, wanted: impl Fn(&State) -> bool) {
        let looking = async {
            loop {
                let changed = self.changed.notified();
                if wanted(&self.state()) {
                    return;
                }
                changed.await;
            }
        };
        in_time(looking).await;
    }
}

/// Waits for what a test needs, and fails if it takes too long by a clock that goes on where the runtime's is paused.
pub(super) async fn in_time<T>(what: impl Future<Output = T>) -> T {
    let (_waits, waiting) = std::sync::mpsc::channel::<()>();
    let (late, is_late) = oneshot::channel();
    std::thread::spawn(move || {
        if waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let _ = late.send(());
        }
    });
    tokio::select! {
        happened = what => happened,
        Ok(()) = is_late => panic!("it did not come about in {PATIENCE:?}"),
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ProduceService for Fake {
    async fn produce(&self, _: Request<v1::ProduceRequest>) -> Result<Response<v1::ProduceResponse>, Status> {
        Err(Status::unimplemented("the client uses streams"))
    }

    type ProduceStreamStream = Answers<v1::ProduceStreamResponse>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceStreamRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let (answers, receiver) = mpsc::channel(1_024);
        self.change(|state| state.streams += 1);
        let fake = self.clone();
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let act = fake.state().script.pop_front().unwrap_or(Act::Commit);
                let mut outcome = None;
                fake.change(|state| {
                    if act == Act::Forget {
                        state.expected.clear();
                    }
                    outcome = match act {
                        Act::Refuse(code) => Some(refused(code)),
                        Act::Break | Act::Ignore => None,
                        Act::Commit | Act::CommitAndBreak | Act::Forget => Some(state.append(&request)),
                    };
                    state.requests.push(request.clone());
                });
                if matches!(act, Act::Break | Act::CommitAndBreak) {
                    let _ = answers.send(Err(Status::unavailable("broken on purpose"))).await;
                    return;
                }
                fake.until(|state| !state.held).await;
                let Some(outcome) = outcome else { continue };
                let result =
                    v1::ProduceResult { correlation_id: request.correlation_id, outcome: Some(outcome) };
                if answers.send(Ok(v1::ProduceStreamResponse { results: vec![result] })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn init_producer(
        &self,
        _: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        let mut producer_id = 0;
        self.change(|state| {
            state.producers_made += 1;
            producer_id = state.producers_made;
        });
        Ok(Response::new(v1::InitProducerResponse { producer_id, epoch: 0 }))
    }
}

#[tonic::async_trait]
impl ClusterService for Fake {
    async fn describe_cluster(
        &self,
        request: Request<v1::DescribeClusterRequest>,
    ) -> Result<Response<v1::DescribeClusterResponse>, Status> {
        let (partitions, codecs_allowed) = {
            let state = self.state();
            (state.partitions as usize, state.codecs_allowed.clone())
        };
        let known = request.into_inner().topics.into_iter().filter(|topic| topic == "t");
        Ok(Response::new(v1::DescribeClusterResponse {
            cluster_id: "fake".into(),
            broker_id: BROKER,
            controller_id: BROKER,
            brokers: vec![v1::Broker {
                broker_id: BROKER,
                grpc_address: self.address.to_string(),
                ..v1::Broker::default()
            }],
            topics: known
                .map(|topic| v1::TopicRouting {
                    topic,
                    topic_id: 1,
                    config: Some(v1::TopicConfig {
                        record_bytes_max: Some(1 << 20),
                        batch_bytes_max: Some(4 << 20),
                        codecs_allowed: codecs_allowed.clone(),
                        ..v1::TopicConfig::default()
                    }),
                    leader_ids: vec![BROKER; partitions],
                })
                .collect(),
        }))
    }

    async fn get_cluster_status(
        &self,
        _: Request<v1::GetClusterStatusRequest>,
    ) -> Result<Response<v1::GetClusterStatusResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn drain_broker(
        &self,
        _: Request<v1::DrainBrokerRequest>,
    ) -> Result<Response<v1::DrainBrokerResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn remove_broker(
        &self,
        _: Request<v1::RemoveBrokerRequest>,
    ) -> Result<Response<v1::RemoveBrokerResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn reassign_partition(
        &self,
        _: Request<v1::ReassignPartitionRequest>,
    ) -> Result<Response<v1::ReassignPartitionResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn transfer_leader(
        &self,
        _: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn balance_leaders(
        &self,
        _: Request<v1::BalanceLeadersRequest>,
    ) -> Result<Response<v1::BalanceLeadersResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }
}

/// One subscription's reading.
struct Reader {
    fake: Fake,
    answers: mpsc::Sender<Result<v1::SubscribeResponse, Status>>,
    positions: HashMap<u32, u64>,
    credit: i64,
}

impl Reader {
    fn apply(&mut self, action: Action) {
        match action {
            Action::Start(start) => {
                self.credit = i64::try_from(start.credit_bytes).expect("little credit");
                self.place(&start.partitions);
                self.fake.change(|state| state.subscriptions.push(start));
            }
            Action::Credit(credit) => {
                self.credit += i64::try_from(credit.bytes).expect("little credit");
                self.fake.change(|state| state.grants += 1);
            }
            Action::Add(add) => self.place(&add.partitions),
            Action::Remove(remove) => {
                for partition in remove.partitions {
                    self.positions.remove(&partition.partition);
                }
            }
            other => panic!("{other:?} is for members of groups"),
        }
    }

    fn place(&mut self, partitions: &[v1::PartitionPosition]) {
        let log_start = self.fake.state().log_start;
        for partition in partitions {
            let at = partition.position.expect("a position").at.expect("one that is set");
            let offset = match at {
                At::Offset(offset) => offset,
                At::Earliest(()) => log_start,
                other => panic!("the client resolves {other:?}"),
            };
            self.positions.insert(partition.partition, offset);
        }
    }

    /// The next batch of some partition, if there is one and credit for it.
    fn next(&mut self) -> Option<v1::PartitionRecords> {
        let mut state = self.fake.state();
        let log_start = state.log_start;
        for (partition, position) in &mut self.positions {
            let log = state.logs.get(partition).map(Vec::as_slice).unwrap_or_default();
            let end = log.last().map_or(0, |last| last.base_offset + u64::from(last.records));
            let mut records = v1::PartitionRecords {
                topic: "t".into(),
                partition: *partition,
                log_start_offset: log_start,
                high_watermark: end,
                next_offset: *position,
                ..v1::PartitionRecords::default()
            };
            if *position < log_start {
                records.error = Some(error(ErrorCode::OffsetOutOfRange));
                let partition = *partition;
                self.positions.remove(&partition);
                return Some(records);
            }
            let wanted =
                |appended: &&Appended| appended.base_offset + u64::from(appended.records) > *position;
            let Some(appended) = log.iter().find(wanted).cloned() else { continue };
            if self.credit <= 0 {
                return None;
            }
            self.credit -= i64::try_from(appended.batch.len()).expect("small");
            let overdrawn = u64::try_from(-self.credit).unwrap_or(0);
            state.credit_overdrawn = state.credit_overdrawn.max(overdrawn);
            *position = appended.base_offset + u64::from(appended.records);
            records.next_offset = *position;
            records.batches.push(v1::StoredBatch {
                base_offset: appended.base_offset,
                record_count: appended.records,
                append_time_ms: 1_000,
                batch: appended.batch,
            });
            return Some(records);
        }
        None
    }

    async fn run(mut self, mut requests: Streaming<v1::SubscribeRequest>) {
        let fake = self.fake.clone();
        loop {
            let changed = fake.changed.notified();
            if let Some(mut records) = self.next() {
                let disturb = fake.state().disturbances.pop_front().unwrap_or(Disturb::Nothing);
                let message = match disturb {
                    Disturb::Nothing => Ok(records.into()),
                    Disturb::Break => Err(Status::unavailable("broken on purpose")),
                    Disturb::Fail(code) => {
                        records.batches.clear();
                        records.error = Some(error(code));
                        self.positions.remove(&records.partition);
                        Ok(records.into())
                    }
                };
                if self.answers.send(message).await.is_err() || disturb == Disturb::Break {
                    return;
                }
                continue;
            }
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.apply(request.action.expect("an action")),
                    _ => return,
                },
                () = changed => {}
            }
        }
    }
}

#[tonic::async_trait]
impl ConsumeService for Fake {
    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<v1::FetchResponse>, Status> {
        let request = request.into_inner();
        let (answers, _receiver) = mpsc::channel(1);
        let mut reader = Reader { fake: self.clone(), answers, positions: HashMap::new(), credit: i64::MAX };
        let partitions = request.partitions.iter().map(|wanted| {
            reader.place(std::slice::from_ref(wanted));
            let records = reader.next();
            reader.positions.clear();
            records.unwrap_or_else(|| v1::PartitionRecords {
                topic: wanted.topic.clone(),
                partition: wanted.partition,
                ..v1::PartitionRecords::default()
            })
        });
        Ok(Response::new(v1::FetchResponse { partitions: partitions.collect() }))
    }

    type SubscribeStream = Answers<v1::SubscribeResponse>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (answers, receiver) = mpsc::channel(1_024);
        let mut reader = Reader { fake: self.clone(), answers, positions: HashMap::new(), credit: 0 };
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            let Ok(Some(first)) = requests.message().await else { return };
            match first.action.expect("an action") {
                Action::Join(join) => group::Membership::new(reader, join).run(requests).await,
                other => {
                    reader.apply(other);
                    reader.run(requests).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
