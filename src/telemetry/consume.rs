//! The way of records from the log to a consumer.

use std::time::Duration;

use super::catalog;
use super::instruments::{Distribution, Instruments, NamedCounts, Observer, Slot, label};
use super::topics::TopicMetrics;
use super::traceparent::TraceIds;

label! {
    /// A phase of a delivery; the order is that of time.
    FetchPhase, "phase" {
        /// Waiting for records to arrive. Not part of consume latency.
        Wait = "wait",
        /// Reading them.
        Read = "read",
        /// Encoding them and handing them to the transport.
        Respond = "respond",
    }
}

/// How long each phase of a delivery took.
#[derive(Clone, Copy, Debug, Default)]
pub struct FetchPhases {
    /// See [`FetchPhase::Wait`].
    pub wait: Duration,
    /// See [`FetchPhase::Read`].
    pub read: Duration,
    /// See [`FetchPhase::Respond`].
    pub respond: Duration,
}

/// Levels of consuming.
#[derive(Clone, Copy, Debug)]
pub struct ConsumeLevels {
    /// Open subscription streams.
    pub subscriptions: u64,
    /// Fetches that wait for records.
    pub fetches_waiting: u64,
}

/// Instruments of consuming.
#[derive(Debug)]
pub struct ConsumeMetrics {
    latency: Distribution,
    phases: Vec<Distribution>,
    rejections: NamedCounts,
    levels: Slot<ConsumeLevels>,
}

impl ConsumeMetrics {
    pub(super) fn new(instruments: &Instruments) -> Self {
        let levels = instruments.slot();
        instruments.level(catalog::SUBSCRIPTIONS, &levels, |levels: &ConsumeLevels| levels.subscriptions);
        instruments.level(catalog::FETCHES_WAITING, &levels, |levels| levels.fetches_waiting);
        ConsumeMetrics {
            latency: instruments.distribution(catalog::CONSUME_LATENCY),
            phases: instruments.phases::<FetchPhase>(catalog::CONSUME_PHASE),
            rejections: instruments.named_counts(catalog::CONSUME_REJECTIONS, "code"),
            levels,
        }
    }

    /// Records are handed to a consumer, on the broker that the consumer speaks to.
    pub fn delivered(&self, topic: &TopicMetrics, records: u64, bytes: u64) {
        topic.consumed(records, bytes);
    }

    /// The transport has a non-empty answer. `trace` names the request's or delivery's span if it is sampled.
    pub fn completed(&self, phases: &FetchPhases, trace: Option<TraceIds>) {
        let durations = [phases.wait, phases.read, phases.respond];
        for (distribution, duration) in self.phases.iter().zip(durations) {
            distribution.record_duration(duration, trace);
        }
        self.latency.record_duration(phases.read + phases.respond, trace);
    }

    /// A fetch or subscription is answered with an error. `code` as in [`super::ProduceMetrics::rejected`].
    pub fn rejected(&self, code: &'static str) {
        self.rejections.add(code, 1);
    }

    pub(super) fn observe(&self, observer: Observer<ConsumeLevels>) {
        self.levels.set(observer);
    }
}
