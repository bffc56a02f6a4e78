//! Overrides, and what became of a record.

use std::time::SystemTime;

use super::{Error, timestamp_to_proto};
use crate::broker::groups::Known;
use crate::broker::{GroupFacts, Order, Overrides, RecordFacts, TracedBatch};
use crate::proto::v1;
use crate::record::SpanLink;
use crate::telemetry::{LogOverride, Override, SamplingOverride};

/// What a change says, once it is known to be there.
pub(in crate::api) fn terms(terms: Option<v1::OverrideTerms>) -> Result<v1::OverrideTerms, Error> {
    terms.ok_or_else(|| Error::missing("terms", "the duration, who asks and why"))
}

/// For how long a change is to be in force.
pub(in crate::api) fn duration(terms: &v1::OverrideTerms) -> Result<std::time::Duration, Error> {
    let duration = terms.duration.ok_or_else(|| Error::missing("terms.duration", "from 1 s to 24 h"))?;
    super::duration_from_proto(duration, "terms.duration")
}

impl From<v1::OverrideTerms> for Order {
    fn from(terms: v1::OverrideTerms) -> Self {
        Order { by: terms.requested_by, reason: terms.reason }
    }
}

/// What is in force at the broker `broker_id`.
pub(in crate::api) fn overrides(broker_id: u64, overrides: Overrides) -> v1::GetOverridesResponse {
    v1::GetOverridesResponse {
        broker_id,
        configured_log_filter: overrides.configured_log_filter,
        log_filter: overrides.log.map(Into::into),
        configured_ratio: overrides.configured_ratio,
        sampling: overrides.sampling.into_iter().map(Into::into).collect(),
        traces_exported: overrides.traces_exported,
        traces_enabled: overrides.traces_enabled,
    }
}

impl From<LogOverride> for v1::LogFilterOverride {
    fn from(log: LogOverride) -> Self {
        v1::LogFilterOverride { filter: log.filter, terms: Some(log.terms.into()) }
    }
}

impl From<SamplingOverride> for v1::SamplingOverride {
    fn from(one: SamplingOverride) -> Self {
        let topic = one.topic.unwrap_or_default();
        v1::SamplingOverride { topic, ratio: one.ratio, terms: Some(one.terms.into()) }
    }
}

impl From<Override> for v1::ActiveOverride {
    fn from(terms: Override) -> Self {
        let time = |time: SystemTime| Some(time.into());
        v1::ActiveOverride {
            requested_by: terms.by,
            reason: terms.reason,
            set_time: time(terms.set_at),
            expire_time: time(terms.expires_at),
        }
    }
}

/// What is known of a record from its log.
pub(in crate::api) fn record(topic: String, partition: u32, facts: RecordFacts) -> v1::RecordFacts {
    let origin = facts.origin;
    let producer = origin.producer;
    let within = facts.offset.saturating_since(origin.base) as u32;
    v1::RecordFacts {
        topic,
        partition,
        offset: facts.offset.0,
        batch_base_offset: origin.base.0,
        batch_record_count: origin.records,
        batch_size_bytes: origin.size_bytes,
        has_producer: producer.is_some(),
        producer_id: producer.map_or(0, |producer| producer.producer_id),
        producer_epoch: producer.map_or(0, |producer| producer.epoch),
        sequence: producer.map_or(0, |producer| producer.base_sequence.wrapping_add(within)),
        producer_user_agent: facts.producer_name.map(|name| name.to_string()).unwrap_or_default(),
        append_time: Some(timestamp_to_proto(origin.append_time)),
        append_span: origin.span.map(reference),
        raft_index: origin.raft_index,
        raft_term: origin.term,
        appended_by_broker_id: origin.leader,
        leader_id: facts.leader,
        leader_term: facts.leader_term,
        replicas: facts.replicas.into_iter().map(replica).collect(),
        log_start_offset: facts.log_start.0,
        high_watermark: facts.high_watermark.0,
    }
}

fn replica((broker_id, stored): (u64, bool)) -> v1::ReplicaFacts {
    let state = if stored { v1::ReplicaState::Stored } else { v1::ReplicaState::NotKnown };
    v1::ReplicaFacts { broker_id, state: state.into() }
}

/// A trace context in hexadecimal digits.
pub(in crate::api) fn reference(span: SpanLink) -> v1::TraceReference {
    let ids = crate::telemetry::TraceIds { trace: span.trace_id, span: span.span_id };
    v1::TraceReference { trace_id: ids.trace_hex(), span_id: ids.span_hex() }
}

/// What is known of a record and a group.
pub(in crate::api) fn group(facts: GroupFacts) -> v1::GroupFacts {
    use v1::GroupRecordState as State;
    let mut group = v1::GroupFacts {
        group: facts.group.to_string(),
        kind: facts.kind.as_str().to_owned(),
        coordinator_id: facts.coordinator.unwrap_or_default(),
        committed_offset: facts.committed.0,
        commit_time: facts.committed_at.map(timestamp_to_proto),
        memory_since: facts.since.map(timestamp_to_proto),
        ..Default::default()
    };
    match facts.delivery {
        Known::First(delivery) => {
            group.set_delivery(State::Done);
            group.delivery_time = Some(timestamp_to_proto(delivery.at));
            group.delivery_member_id = delivery.member.to_string();
            group.delivery_span = delivery.span.map(reference);
        }
        Known::Never => group.set_delivery(State::NotYet),
        Known::Forgotten => group.set_delivery(State::NotKnown),
    }
    // Whether it is done is durable; only the time is remembered.
    group.set_acknowledgement(if facts.done { State::Done } else { State::NotYet });
    if let Known::First(at) = facts.acknowledgement {
        group.acknowledgement_time = Some(timestamp_to_proto(at));
    }
    group
}

impl From<TracedBatch> for v1::FoundBatch {
    fn from(batch: TracedBatch) -> Self {
        v1::FoundBatch {
            topic: batch.topic.to_string(),
            partition: batch.partition,
            base_offset: batch.base.0,
            record_count: batch.records,
            append_time: Some(timestamp_to_proto(batch.append_time)),
        }
    }
}

/// A trace id from its 32 hexadecimal digits.
pub(in crate::api) fn trace_id(text: &str) -> Result<[u8; 16], Error> {
    let invalid =
        || Error::invalid("trace_id", text.chars().take(64).collect::<String>(), "32 hexadecimal digits");
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()
        .ok_or_else(invalid)?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len() != 32 {
        return Err(invalid());
    }
    bytes.try_into().map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_id_has_32_digits() {
        let id = trace_id("0af7651916cd43dd8448eb211c80319C").expect("an id");
        assert_eq!((id[0], id[15]), (0x0a, 0x9c));
        for wrong in [
            "",
            "0af7",
            "0af7651916cd43dd8448eb211c80319",
            "0af7651916cd43dd8448eb211c80319cc",
            "0af7651916cd43dd8448eb211c80319ü",
        ] {
            assert!(trace_id(wrong).is_err(), "{wrong}");
        }
    }
}
