//! Appending a batch: check, find the partition, wait for room, enqueue; then wait for the commit.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use tokio::sync::oneshot;
use tonic::Code;
use tracing::info;

use super::memory::{Memory, TracedBatch};
use super::{Broker, Error};
use crate::clock::Timestamp;
use crate::cluster::routing::Route;
use crate::partition::{self, Committed};
use crate::record::{FrameHeader, Offset, ProducerSequence, SpanLink, skim};
use crate::telemetry::{Metrics, ProducePhases, RequestTrace, TopicMetrics, TraceIds, TraceParent};

/// The method whose span a batch gets when its records, not its call, carry the trace.
const METHOD: &str = "streambus.v1.ProduceService/Produce";

/// A batch to append.
#[derive(Debug)]
pub struct Produce {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: u32,
    /// The `RecordBatch` as it came.
    pub batch: Bytes,
    /// What makes a retry recognisable.
    pub producer: Option<ProducerSequence>,
    /// The call's or the batch's span. If it is [`RequestTrace::NONE`], a sampled `traceparent` of the records is
    /// taken up instead, or else the broker decides by itself whether to sample.
    pub trace: RequestTrace,
    /// When the broker had read the request.
    pub received: Instant,
    /// Whether the batch may go to the partition's leader through this broker. Otherwise another leader is an error
    /// that names it.
    pub may_forward: bool,
}

/// A committed batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// When the leader appended it.
    pub append_time: Timestamp,
    /// Whether an earlier attempt had appended it.
    pub duplicate: bool,
}

/// A batch that is on its way. Resolves when it is committed; dropping it does not withdraw it.
#[derive(Debug)]
pub struct PendingProduce {
    outcome: oneshot::Receiver<Result<Committed, partition::Error>>,
    topic: Arc<str>,
    partition: u32,
    metrics: Metrics,
    /// The counters of the topic, and what the batch adds to them if it is accepted.
    counters: Arc<TopicMetrics>,
    records: u64,
    bytes: u64,
    trace: RequestTrace,
    /// The trace that the batch is marked with, and who remembers it.
    marked: Option<([u8; 16], Arc<Memory>)>,
    /// Whether the span was begun here, and so ends here.
    owns_span: bool,
}

impl Broker {
    /// Checks a batch and enqueues it behind those of earlier calls, waiting for room in the buffer.
    ///
    /// # Errors
    /// The batch is malformed or too large, the partition is unknown, the broker or its disk is full or not ready.
    /// Nothing was written.
    pub async fn produce(&self, request: Produce) -> Result<PendingProduce, Error> {
        let route = self.route(&request.topic)?;
        let partition = self.partition(&route, request.partition)?;
        let skimmed = skim(&request.batch, &route.limits)?;
        let of_record = skimmed.traceparent.clone().and_then(|at| TraceParent::parse(&request.batch[at]));
        let (trace, owns_span) = match request.trace {
            RequestTrace::Unsampled(None) => (self.begin_span(of_record, &route, request.partition), true),
            trace => (trace, false),
        };
        trace.annotate(|| attributes(&route, request.partition, skimmed.records));
        // Deliveries look for trace contexts only in batches that are marked with a span: the broker's own, or else
        // that of the first sampled record.
        let ids = trace.ids().or(of_record.map(|parent| parent.ids));
        let span = ids.map(|TraceIds { trace, span }| SpanLink { trace_id: trace, span_id: span });
        let header = FrameHeader::new(&skimmed, request.producer, span);
        let bytes = request.batch.len() as u64;
        let submitted = partition.submit(request.batch, header, request.received, request.may_forward).await;
        let outcome = submitted.map_err(|source| in_partition(&route.topic.name, request.partition, source));
        let outcome = outcome.inspect_err(|_| {
            if owns_span {
                trace.finish(Code::Unavailable);
            }
        })?;
        Ok(PendingProduce {
            outcome,
            topic: route.topic.name.clone(),
            partition: request.partition,
            metrics: self.0.metrics.clone(),
            counters: route.metrics.clone(),
            records: skimmed.records.into(),
            bytes,
            trace,
            marked: span.map(|span| (span.trace_id, self.0.memory.clone())),
            owns_span,
        })
    }

    fn begin_span(&self, parent: Option<TraceParent>, route: &Route, partition: u32) -> RequestTrace {
        self.0.tracer.start_for_topic(&route.topic.name, SpanKind::Server, parent, || {
            let mut attributes = attributes(route, partition, 0);
            attributes.pop();
            attributes.push(KeyValue::new("rpc.system.name", "grpc"));
            attributes.push(KeyValue::new("rpc.method", METHOD));
            (Cow::Borrowed(METHOD), attributes)
        })
    }
}

fn attributes(route: &Route, partition: u32, records: u32) -> Vec<KeyValue> {
    vec![
        KeyValue::new("messaging.system", "streambus"),
        KeyValue::new("messaging.destination.name", route.topic.name.to_string()),
        KeyValue::new("messaging.destination.partition.id", partition.to_string()),
        KeyValue::new("messaging.batch.message_count", i64::from(records)),
    ]
}

pub(super) fn in_partition(topic: &str, partition: u32, source: partition::Error) -> Error {
    Error::Partition { topic: topic.to_owned(), partition, source }
}

impl Future for PendingProduce {
    type Output = Result<Produced, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Poll::Ready(outcome) = Pin::new(&mut self.outcome).poll(cx) else { return Poll::Pending };
        // The appender answers everybody it took a batch from; if it is gone, the batch may be in the log all the same.
        let outcome = outcome.unwrap_or(Err(partition::Error::Raft(crate::raft::Error::OutcomeUnknown)));
        Poll::Ready(match outcome {
            Ok(committed) => Ok(self.conclude(&committed)),
            Err(source) => {
                if self.owns_span {
                    self.trace.finish(Code::Unknown);
                }
                Err(in_partition(&self.topic, self.partition, source))
            }
        })
    }
}

impl PendingProduce {
    fn conclude(&self, committed: &Committed) -> Produced {
        let timing = &committed.timing;
        let phases = ProducePhases {
            admit: timing.proposed.saturating_duration_since(timing.received),
            append: timing.appended.saturating_duration_since(timing.proposed),
            replicate: timing.committed.saturating_duration_since(timing.appended),
            apply: timing.applied.saturating_duration_since(timing.committed),
            respond: timing.applied.elapsed(),
        };
        self.metrics.produce.accepted(&self.counters, self.records, self.bytes);
        self.metrics.produce.completed(&phases, self.trace.ids());
        if let Some((trace, memory)) = &self.marked {
            memory.batch(
                *trace,
                TracedBatch {
                    topic: self.topic.clone(),
                    partition: self.partition,
                    base: committed.base_offset,
                    records: u32::try_from(self.records).unwrap_or(u32::MAX),
                    append_time: committed.append_time,
                },
            );
        }
        if self.trace.is_sampled() {
            self.record_spans(committed);
        }
        if self.owns_span {
            self.trace.finish(Code::Ok);
        }
        Produced {
            base_offset: committed.base_offset,
            append_time: committed.append_time,
            duplicate: committed.duplicate,
        }
    }

    fn record_spans(&self, committed: &Committed) {
        let timing = &committed.timing;
        self.trace.child("append", timing.proposed, timing.appended, Vec::new);
        self.trace.replication(timing.appended, timing.committed);
        self.trace.child("commit", timing.committed, timing.applied, || {
            vec![KeyValue::new("streambus.offset", committed.base_offset.0 as i64)]
        });
        let _current = self.trace.attach();
        info!(
            name: "produce.committed",
            topic = &*self.topic,
            partition = self.partition,
            offset = committed.base_offset.0,
            duplicate = committed.duplicate,
            "batch committed"
        );
    }
}
