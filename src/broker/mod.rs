//! mock.
#![allow(missing_docs)]
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use crate::clock::Timestamp;
use crate::record::{self, CodecSet, Offset};
use crate::telemetry::RequestTrace;

macro_rules! codes { ($($name:ident = $text:literal,)*) => {
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum ErrorCode { $($name),* }
    impl ErrorCode {
        pub const ALL: &[ErrorCode] = &[$(ErrorCode::$name),*];
        pub fn as_str(self) -> &'static str { match self { $(ErrorCode::$name => $text),* } }
    }
} }
codes! {
    InvalidArgument = "INVALID_ARGUMENT", MalformedBatch = "MALFORMED_BATCH", RecordTooLarge = "RECORD_TOO_LARGE",
    BatchTooLarge = "BATCH_TOO_LARGE", CodecNotAllowed = "CODEC_NOT_ALLOWED", UnknownTopic = "UNKNOWN_TOPIC",
    UnknownPartition = "UNKNOWN_PARTITION", TopicExists = "TOPIC_EXISTS", OffsetOutOfRange = "OFFSET_OUT_OF_RANGE",
    SequenceOutOfOrder = "SEQUENCE_OUT_OF_ORDER", ProducerFenced = "PRODUCER_FENCED",
    UnknownProducer = "UNKNOWN_PRODUCER", LimitReached = "LIMIT_REACHED", Busy = "BUSY", DiskFull = "DISK_FULL",
    NotLeader = "NOT_LEADER", NotReady = "NOT_READY", OutcomeUnknown = "OUTCOME_UNKNOWN", Corrupt = "CORRUPT",
    Storage = "STORAGE", Internal = "INTERNAL",
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    code: ErrorCode,
    message: String,
}
impl Error {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Error { code, message: message.into() }
    }
    pub fn code(&self) -> ErrorCode {
        self.code
    }
    pub fn retry_after(&self) -> Option<Duration> {
        None
    }
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

pub struct Produce {
    pub topic: String,
    pub partition: u32,
    pub batch: Bytes,
    pub producer: Option<record::ProducerSequence>,
    pub trace: RequestTrace,
    pub received: Instant,
}
#[derive(Debug)]
pub struct Produced {
    pub base_offset: Offset,
    pub append_time: Timestamp,
    pub duplicate: bool,
}
pub struct PendingProduce(tokio::sync::oneshot::Receiver<Result<Produced, Error>>);
impl Future for PendingProduce {
    type Output = Result<Produced, Error>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|r| r.unwrap_or_else(|_| Err(Error::new(ErrorCode::OutcomeUnknown, "lost"))))
    }
}
#[derive(Clone, Debug)]
pub enum Position {
    Offset(Offset),
    Earliest,
    Latest,
    Time(Timestamp),
}
#[derive(Clone, Debug)]
pub struct FetchPartition {
    pub topic: String,
    pub partition: u32,
    pub position: Position,
}
pub struct Fetch {
    pub partitions: Vec<FetchPartition>,
    pub min_bytes: u32,
    pub max_bytes: u32,
    pub max_wait: Duration,
    pub accepted: CodecSet,
    pub trace: RequestTrace,
}
pub struct FetchedBatch {
    pub base_offset: Offset,
    pub record_count: u32,
    pub append_time: Timestamp,
    pub batch: Bytes,
}
pub struct Fetched {
    pub topic: Arc<str>,
    pub partition: u32,
    pub log_start: Offset,
    pub high_watermark: Offset,
    pub next_offset: Offset,
    pub batches: Vec<FetchedBatch>,
    pub error: Option<Error>,
}
#[derive(Clone, Debug)]
pub struct TopicSettings {
    pub retention: Option<Duration>,
    pub retention_bytes: Option<u64>,
    pub record_bytes_max: u32,
    pub batch_bytes_max: u32,
    pub codecs: CodecSet,
}
#[derive(Clone, Debug, Default)]
pub struct TopicChanges {
    pub retention: Option<Option<Duration>>,
    pub retention_bytes: Option<Option<u64>>,
    pub record_bytes_max: Option<u32>,
    pub batch_bytes_max: Option<u32>,
    pub codecs: Option<CodecSet>,
}
#[derive(Clone, Debug)]
pub struct Topic {
    pub id: u32,
    pub name: Arc<str>,
    pub settings: TopicSettings,
    pub partition_count: u32,
    pub replication_factor: u32,
    pub created: Timestamp,
}
pub struct PartitionInfo {
    pub partition: u32,
    pub leader: Option<u64>,
    pub replicas: Vec<u64>,
    pub log_start: Offset,
    pub high_watermark: Offset,
    pub size_bytes: u64,
    pub term: u64,
}
pub struct BrokerInfo {
    pub id: u64,
    pub grpc_address: String,
    pub http_address: String,
    pub version: String,
    pub started: Timestamp,
    pub storage_sync: String,
}
pub struct RoutingInfo {
    pub topic: Topic,
    pub leaders: Vec<Option<u64>>,
}
pub struct ClusterInfo {
    pub cluster_id: String,
    pub broker_id: u64,
    pub controller_id: Option<u64>,
    pub brokers: Vec<BrokerInfo>,
    pub topics: Vec<RoutingInfo>,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    Ok,
    Failing { reason: String },
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Starting { waiting_for: String },
    Running,
    Draining,
    Stopped,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub broker: Check,
    pub storage: Check,
    pub cluster: Check,
    pub phase: Phase,
}

#[derive(Clone)]
pub struct Broker(Arc<Inner>);
struct Inner {
    topics: Mutex<BTreeMap<String, Topic>>,
    logs: Mutex<HashMap<(String, u32), Vec<(u64, u32, Bytes)>>>,
    appended: watch::Sender<u64>,
    health: watch::Sender<Health>,
}

impl Broker {
    pub fn mock() -> Self {
        let health = Health {
            broker: Check::Ok,
            storage: Check::Ok,
            cluster: Check::Ok,
            phase: Phase::Starting { waiting_for: "a test".to_owned() },
        };
        Broker(Arc::new(Inner {
            topics: Mutex::default(),
            logs: Mutex::default(),
            appended: watch::channel(0).0,
            health: watch::channel(health).0,
        }))
    }
    pub fn set_phase(&self, phase: Phase) {
        self.0.health.send_modify(|health| health.phase = phase);
    }
    pub fn set_storage(&self, check: Check) {
        self.0.health.send_modify(|health| health.storage = check);
    }
    fn topic(&self, name: &str, partition: u32) -> Result<Topic, Error> {
        let topic = self.0.topics.lock().unwrap().get(name).cloned();
        let topic =
            topic.ok_or_else(|| Error::new(ErrorCode::UnknownTopic, format!("there is no topic {name}")))?;
        if partition >= topic.partition_count {
            return Err(Error::new(ErrorCode::UnknownPartition, "no such partition"));
        }
        Ok(topic)
    }
    pub async fn produce(&self, request: Produce) -> Result<PendingProduce, Error> {
        self.topic(&request.topic, request.partition)?;
        let skim = record::skim(
            &request.batch,
            &record::Limits { record_bytes_max: 1 << 20, batch_bytes_max: 4 << 20, ..Default::default() },
        )
        .map_err(|e| Error::new(ErrorCode::MalformedBatch, e.to_string()))?;
        let (tx, rx) = tokio::sync::oneshot::channel();
        let mut logs = self.0.logs.lock().unwrap();
        let log = logs.entry((request.topic, request.partition)).or_default();
        let base = log.last().map_or(0, |(base, count, _)| base + u64::from(*count));
        log.push((base, skim.records, request.batch));
        let _ =
            tx.send(Ok(Produced { base_offset: Offset(base), append_time: Timestamp(1), duplicate: false }));
        drop(logs);
        self.0.appended.send_modify(|n| *n += 1);
        Ok(PendingProduce(rx))
    }
    fn read(&self, want: &FetchPartition, from: &mut Option<u64>) -> Fetched {
        let mut fetched = Fetched {
            topic: want.topic.as_str().into(),
            partition: want.partition,
            log_start: Offset(0),
            high_watermark: Offset(0),
            next_offset: Offset(0),
            batches: Vec::new(),
            error: None,
        };
        if let Err(error) = self.topic(&want.topic, want.partition) {
            fetched.error = Some(error);
            return fetched;
        }
        let logs = self.0.logs.lock().unwrap();
        let empty = Vec::new();
        let log = logs.get(&(want.topic.clone(), want.partition)).unwrap_or(&empty);
        let end = log.last().map_or(0, |(base, count, _)| base + u64::from(*count));
        let start = *from.get_or_insert(match want.position {
            Position::Offset(o) => o.0,
            Position::Earliest | Position::Time(_) => 0,
            Position::Latest => end,
        });
        fetched.batches = log
            .iter()
            .filter(|(base, count, _)| base + u64::from(*count) > start)
            .map(|(base, count, batch)| FetchedBatch {
                base_offset: Offset(*base),
                record_count: *count,
                append_time: Timestamp(1),
                batch: batch.clone(),
            })
            .collect();
        fetched.high_watermark = Offset(end);
        fetched.next_offset = Offset(end);
        *from = Some(end);
        fetched
    }
    pub async fn fetch(&self, request: Fetch) -> Result<Vec<Fetched>, Error> {
        let mut appended = self.0.appended.subscribe();
        let mut from = vec![None; request.partitions.len()];
        let deadline = tokio::time::Instant::now() + request.max_wait;
        loop {
            let fetched: Vec<_> =
                request.partitions.iter().zip(&mut from).map(|(want, from)| self.read(want, from)).collect();
            if fetched.iter().any(|f| !f.batches.is_empty() || f.error.is_some()) {
                return Ok(fetched);
            }
            if tokio::time::timeout_at(deadline, appended.changed()).await.is_err() {
                return Ok(fetched);
            }
        }
    }
    pub fn subscribe(&self, _accepted: CodecSet) -> Subscription {
        Subscription {
            broker: self.clone(),
            wanted: Vec::new(),
            credit: 0,
            appended: self.0.appended.subscribe(),
        }
    }
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        replication_factor: u32,
        _changes: TopicChanges,
        validate_only: bool,
    ) -> Result<Topic, Error> {
        let mut topics = self.0.topics.lock().unwrap();
        if topics.contains_key(name) {
            return Err(Error::new(ErrorCode::TopicExists, format!("topic {name} exists")));
        }
        let settings = TopicSettings {
            retention: None,
            retention_bytes: None,
            record_bytes_max: 1 << 20,
            batch_bytes_max: 4 << 20,
            codecs: CodecSet::ALL,
        };
        let topic = Topic {
            id: topics.len() as u32 + 1,
            name: name.into(),
            settings,
            partition_count: partitions.max(1),
            replication_factor: replication_factor.max(1),
            created: Timestamp(0),
        };
        if !validate_only {
            topics.insert(name.to_owned(), topic.clone());
        }
        Ok(topic)
    }
    pub fn list_topics(&self, _page_size: u32, _page_token: &str) -> Result<(Vec<Topic>, String), Error> {
        Ok((self.0.topics.lock().unwrap().values().cloned().collect(), String::new()))
    }
    pub fn describe_topic(&self, name: &str) -> Result<(Topic, Vec<PartitionInfo>), Error> {
        Ok((self.topic(name, 0)?, Vec::new()))
    }
    pub async fn alter_topic(&self, name: &str, _changes: TopicChanges) -> Result<Topic, Error> {
        self.topic(name, 0)
    }
    pub async fn add_topic_partitions(&self, name: &str, _count: u32) -> Result<Topic, Error> {
        self.topic(name, 0)
    }
    pub async fn delete_topic(&self, name: &str) -> Result<(), Error> {
        self.topic(name, 0)?;
        self.0.topics.lock().unwrap().remove(name);
        Ok(())
    }
    pub async fn delete_records(&self, topic: &str, partition: u32, before: Offset) -> Result<Offset, Error> {
        self.topic(topic, partition)?;
        Ok(before)
    }
    pub async fn list_offsets(
        &self,
        positions: Vec<FetchPartition>,
    ) -> Vec<(String, u32, Result<Offset, Error>)> {
        positions
            .into_iter()
            .map(|p| (p.topic.clone(), p.partition, self.topic(&p.topic, p.partition).map(|_| Offset(0))))
            .collect()
    }
    pub async fn init_producer(&self) -> Result<(u64, u32), Error> {
        Ok((1, 0))
    }
    pub fn describe_cluster(&self, _topics: &[String]) -> ClusterInfo {
        ClusterInfo {
            cluster_id: "c".to_owned(),
            broker_id: 1,
            controller_id: Some(1),
            brokers: Vec::new(),
            topics: Vec::new(),
        }
    }
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }
}
pub struct Subscription {
    broker: Broker,
    wanted: Vec<(FetchPartition, Option<u64>)>,
    credit: i64,
    appended: watch::Receiver<u64>,
}
impl Subscription {
    pub async fn add(&mut self, partitions: Vec<FetchPartition>) -> Vec<Fetched> {
        let mut failed = Vec::new();
        for p in partitions {
            match self.broker.topic(&p.topic, p.partition) {
                Ok(_) => self.wanted.push((p, None)),
                Err(_) => failed.push(self.broker.read(&p, &mut None)),
            }
        }
        failed
    }
    pub fn remove(&mut self, partitions: &[(String, u32)]) {
        self.wanted.retain(|(p, _)| !partitions.contains(&(p.topic.clone(), p.partition)));
    }
    pub fn grant(&mut self, bytes: u64) {
        self.credit += bytes as i64;
    }
    pub async fn next(&mut self) -> Fetched {
        loop {
            self.appended.borrow_and_update();
            if self.credit > 0 {
                for (want, from) in &mut self.wanted {
                    let fetched = self.broker.read(want, from);
                    if !fetched.batches.is_empty() {
                        self.credit -= fetched.batches.iter().map(|b| b.batch.len() as i64).sum::<i64>();
                        return fetched;
                    }
                }
                if self.appended.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            } else {
                std::future::pending::<()>().await;
            }
        }
    }
}
