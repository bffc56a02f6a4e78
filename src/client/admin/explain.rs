//! What became of a record.

use std::time::SystemTime;

use super::Admin;
use crate::client::connection::Broker;
use crate::client::routing::Repeat;
use crate::client::{Error, Offset, TopicPartition};
use crate::proto::v1;

/// What is known of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// From the log.
    pub record: RecordFacts,
    /// Every group that has a position in the partition, by name.
    pub groups: Vec<GroupFacts>,
    /// Brokers that did not answer: what they remember of the groups that they coordinate is missing.
    pub unreached: Vec<u64>,
}

/// A trace context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceReference {
    /// W3C trace id, 32 hexadecimal digits.
    pub trace_id: String,
    /// W3C span id, 16 hexadecimal digits.
    pub span_id: String,
}

/// Who sent a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerFacts {
    /// The producer.
    pub id: u64,
    /// Its incarnation.
    pub epoch: u32,
    /// The record's number among those that it sent to the partition, modulo 2^32.
    pub sequence: u32,
    /// What the program calls itself that got the producer id, if a broker remembers.
    pub user_agent: Option<String>,
}

/// A replica of the record's partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaFacts {
    /// Its broker.
    pub broker_id: u64,
    /// Whether the leader knows that it has the record.
    pub stored: bool,
}

/// What the log says of a record, and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFacts {
    /// The partition.
    pub at: TopicPartition,
    /// The record.
    pub offset: Offset,
    /// First record of its batch.
    pub batch_base: Offset,
    /// Records of its batch.
    pub batch_records: u32,
    /// Encoded bytes of its batch.
    pub batch_bytes: u64,
    /// Who sent it; none if its producer was not idempotent.
    pub producer: Option<ProducerFacts>,
    /// When the leader appended it.
    pub append_time: Option<SystemTime>,
    /// The span in which a broker got the batch, if that was sampled.
    pub append_span: Option<TraceReference>,
    /// Index of its entry in the partition's Raft log.
    pub raft_index: u64,
    /// The term in which the entry was proposed.
    pub raft_term: u64,
    /// The broker that led in that term.
    pub appended_by: u64,
    /// The broker that leads now.
    pub leader_id: u64,
    /// The term now.
    pub leader_term: u64,
    /// The replicas as they are assigned now.
    pub replicas: Vec<ReplicaFacts>,
    /// Offset of the oldest retained record.
    pub log_start: Offset,
    /// Offset after the last committed record.
    pub high_watermark: Offset,
}

/// Whether something happened, as far as the group's coordinator knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenKnown {
    /// It did, first at this time, if that is remembered.
    Done(Option<SystemTime>),
    /// It did not.
    NotYet,
    /// It is older than the coordinator's memory.
    NotKnown,
}

/// What is known of a record and a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupFacts {
    /// The group.
    pub group: String,
    /// `consumer` or `share`.
    pub kind: String,
    /// The broker that coordinates it, if there is one at the moment.
    pub coordinator_id: Option<u64>,
    /// What is committed in the partition now.
    pub committed: Offset,
    /// When that was committed; none for share groups.
    pub commit_time: Option<SystemTime>,
    /// Whether the record was delivered to the group.
    pub delivery: WhenKnown,
    /// The member that it was first delivered to, if that is remembered.
    pub member_id: Option<String>,
    /// The span of that delivery, if it was sampled.
    pub delivery_span: Option<TraceReference>,
    /// Whether the group is done with the record.
    pub acknowledgement: WhenKnown,
    /// How far the coordinator's memory of this group and partition reaches back; none if it has none.
    pub memory_since: Option<SystemTime>,
}

/// A batch that a trace wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundBatch {
    /// The partition.
    pub at: TopicPartition,
    /// First record.
    pub base: Offset,
    /// Number of records.
    pub records: u32,
    /// When it was appended.
    pub append_time: Option<SystemTime>,
}

/// Batches that a trace wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundBatches {
    /// Oldest first; at most 100.
    pub batches: Vec<FoundBatch>,
    /// Brokers that did not answer: what they remember may be missing.
    pub unreached: Vec<u64>,
}

fn time(time: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    time.and_then(|time| time.try_into().ok())
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl From<v1::TraceReference> for TraceReference {
    fn from(reference: v1::TraceReference) -> Self {
        TraceReference { trace_id: reference.trace_id, span_id: reference.span_id }
    }
}

impl From<v1::RecordFacts> for RecordFacts {
    fn from(facts: v1::RecordFacts) -> Self {
        let stored = v1::ReplicaState::Stored;
        RecordFacts {
            at: TopicPartition::new(facts.topic, facts.partition),
            offset: Offset(facts.offset),
            batch_base: Offset(facts.batch_base_offset),
            batch_records: facts.batch_record_count,
            batch_bytes: facts.batch_size_bytes,
            producer: facts.has_producer.then(|| ProducerFacts {
                id: facts.producer_id,
                epoch: facts.producer_epoch,
                sequence: facts.sequence,
                user_agent: given(facts.producer_user_agent),
            }),
            append_time: time(facts.append_time),
            append_span: facts.append_span.map(Into::into),
            raft_index: facts.raft_index,
            raft_term: facts.raft_term,
            appended_by: facts.appended_by_broker_id,
            leader_id: facts.leader_id,
            leader_term: facts.leader_term,
            replicas: facts
                .replicas
                .iter()
                .map(|one| ReplicaFacts { broker_id: one.broker_id, stored: one.state() == stored })
                .collect(),
            log_start: Offset(facts.log_start_offset),
            high_watermark: Offset(facts.high_watermark),
        }
    }
}

fn when(state: v1::GroupRecordState, at: Option<prost_types::Timestamp>) -> WhenKnown {
    match state {
        v1::GroupRecordState::Done => WhenKnown::Done(time(at)),
        v1::GroupRecordState::NotYet => WhenKnown::NotYet,
        v1::GroupRecordState::NotKnown | v1::GroupRecordState::Unspecified => WhenKnown::NotKnown,
    }
}

impl From<v1::GroupFacts> for GroupFacts {
    fn from(facts: v1::GroupFacts) -> Self {
        GroupFacts {
            delivery: when(facts.delivery(), facts.delivery_time),
            acknowledgement: when(facts.acknowledgement(), facts.acknowledgement_time),
            group: facts.group,
            kind: facts.kind,
            coordinator_id: (facts.coordinator_id != 0).then_some(facts.coordinator_id),
            committed: Offset(facts.committed_offset),
            commit_time: time(facts.commit_time),
            member_id: given(facts.delivery_member_id),
            delivery_span: facts.delivery_span.map(Into::into),
            memory_since: time(facts.memory_since),
        }
    }
}

impl From<v1::FoundBatch> for FoundBatch {
    fn from(batch: v1::FoundBatch) -> Self {
        FoundBatch {
            at: TopicPartition::new(batch.topic, batch.partition),
            base: Offset(batch.base_offset),
            records: batch.record_count,
            append_time: time(batch.append_time),
        }
    }
}

impl Admin {
    /// What became of a record: where it came from, where it is, which groups got it and are done with it.
    ///
    /// # Errors
    ///
    /// `UnknownTopic`, `UnknownPartition`, `OffsetOutOfRange` if there is no such record (any more).
    pub async fn explain_record(&self, at: &TopicPartition, offset: Offset) -> Result<Explanation, Error> {
        let (topic, partition) = (at.topic.to_string(), at.partition);
        let request = v1::ExplainRecordRequest { topic, partition, offset: offset.0, producer_id: None };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.control().explain_record(request).await }
        };
        let answer = self.router.call(Repeat::Harmless, call).await?;
        let missing = || Error::InvalidResponse { what: "an explanation without a record".to_owned() };
        Ok(Explanation {
            record: answer.record.ok_or_else(missing)?.into(),
            groups: answer.groups.into_iter().map(Into::into).collect(),
            unreached: answer.unreached_broker_ids,
        })
    }

    /// The batches that came to brokers in a trace, as far as they remember. `trace_id` has 32 hexadecimal digits.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if it has not.
    pub async fn find_records(&self, trace_id: &str) -> Result<FoundBatches, Error> {
        let request = v1::FindRecordsRequest { trace_id: trace_id.to_owned() };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.control().find_records(request).await }
        };
        let answer = self.router.call(Repeat::Harmless, call).await?;
        let batches = answer.batches.into_iter().map(Into::into).collect();
        Ok(FoundBatches { batches, unreached: answer.unreached_broker_ids })
    }
}
