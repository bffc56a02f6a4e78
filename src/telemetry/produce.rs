//! The way of a batch from a client into the log.

use std::time::Duration;

use super::catalog;
use super::instruments::{Distribution, Instruments, NamedCounts, Observer, Slot, label};
use super::topics::TopicMetrics;
use super::traceparent::TraceIds;

label! {
    /// A phase of a produce; the order is that of time.
    Phase, "phase" {
        /// From receipt until the batch is checked, routed and handed to the appender.
        Admit = "admit",
        /// Until the log entry is durable on this broker.
        Append = "append",
        /// Until a majority has it.
        Replicate = "replicate",
        /// Until its offsets are assigned.
        Apply = "apply",
        /// Until the answer is handed to the transport.
        Respond = "respond",
    }
}

/// How long each phase of a produce took. Their sum is the produce latency, by construction.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProducePhases {
    /// See [`Phase::Admit`].
    pub admit: Duration,
    /// See [`Phase::Append`].
    pub append: Duration,
    /// See [`Phase::Replicate`].
    pub replicate: Duration,
    /// See [`Phase::Apply`].
    pub apply: Duration,
    /// See [`Phase::Respond`].
    pub respond: Duration,
}

/// Bytes of batches that wait to be written.
#[derive(Clone, Copy, Debug)]
pub struct BufferLevels {
    /// Bytes waiting now.
    pub used_bytes: u64,
    /// The bytes above which more batches are refused.
    pub limit_bytes: u64,
}

/// Instruments of producing.
#[derive(Debug)]
pub struct ProduceMetrics {
    latency: Distribution,
    phases: Vec<Distribution>,
    group: Distribution,
    rejections: NamedCounts,
    buffer: Slot<BufferLevels>,
}

impl ProduceMetrics {
    pub(super) fn new(instruments: &Instruments) -> Self {
        let buffer = instruments.slot();
        instruments.level(catalog::PRODUCE_BUFFER, &buffer, |levels: &BufferLevels| levels.used_bytes);
        instruments.level(catalog::PRODUCE_BUFFER_LIMIT, &buffer, |levels| levels.limit_bytes);
        ProduceMetrics {
            latency: instruments.distribution(catalog::PRODUCE_LATENCY),
            phases: instruments.phases::<Phase>(catalog::PRODUCE_PHASE),
            group: instruments.distribution(catalog::APPEND_GROUP),
            rejections: instruments.named_counts(catalog::PRODUCE_REJECTIONS, "code"),
            buffer,
        }
    }

    /// A client's batch is acknowledged, be it new or recognised as a retry. On the broker that the client speaks to.
    pub fn accepted(&self, topic: &TopicMetrics, records: u64, bytes: u64) {
        topic.produced(records, bytes);
    }

    /// A batch is committed and applied on this broker. On every replica.
    pub fn stored(&self, topic: &TopicMetrics, records: u64, bytes: u64) {
        topic.stored(records, bytes);
    }

    /// An entry with this many batches is proposed.
    pub fn grouped(&self, batches: usize) {
        self.group.record(batches as f64, None);
    }

    /// A batch is acknowledged. `trace` names the request's span if it is sampled.
    pub fn completed(&self, phases: &ProducePhases, trace: Option<TraceIds>) {
        let durations = [phases.admit, phases.append, phases.replicate, phases.apply, phases.respond];
        for (distribution, duration) in self.phases.iter().zip(durations) {
            distribution.record_duration(duration, trace);
        }
        self.latency.record_duration(durations.iter().sum(), trace);
    }

    /// A batch is answered with an error. `code` is the error code's name in lower case, from a closed set.
    pub fn rejected(&self, code: &'static str) {
        self.rejections.add(code, 1);
    }

    pub(super) fn observe(&self, observer: Observer<BufferLevels>) {
        self.buffer.set(observer);
    }
}
