//! What became of a record: where it came from, where it is, and which groups got it and are done with it.

use std::sync::Arc;

use super::groups::{Delivery, Kind, Known};
use super::memory::TracedBatch;
use super::produce::in_partition;
use super::{Broker, Error};
use crate::clock::Timestamp;
use crate::partition::{self, Origin};
use crate::raft;
use crate::record::Offset;

/// What its log says of a record, and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFacts {
    /// The record.
    pub offset: Offset,
    /// Its log entry and its batch.
    pub origin: Origin,
    /// What the program calls itself that got the producer id, if this broker remembers.
    pub producer_name: Option<Arc<str>>,
    /// The broker that leads now: this one.
    pub leader: u64,
    /// The term now.
    pub leader_term: u64,
    /// The replicas as they are assigned, and whether each is known to have the record.
    pub replicas: Vec<(u64, bool)>,
    /// Offset of the oldest retained record.
    pub log_start: Offset,
    /// Offset after the last committed record.
    pub high_watermark: Offset,
}

/// What is known of a record and a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupFacts {
    /// The group.
    pub group: Arc<str>,
    /// Its kind.
    pub kind: Kind,
    /// The broker that coordinates it, if there is one at the moment.
    pub coordinator: Option<u64>,
    /// Whether that is this broker. If not, what is remembered is not known here, and what is replicated may be newer there.
    pub coordinated_here: bool,
    /// What is committed: every record below is done.
    pub committed: Offset,
    /// When it was committed; none for share groups.
    pub committed_at: Option<Timestamp>,
    /// Whether the group is done with the record.
    pub done: bool,
    /// The first delivery.
    pub delivery: Known<Delivery>,
    /// The first time that the group was done with it.
    pub acknowledgement: Known<Timestamp>,
    /// How far the memory reaches back.
    pub since: Option<Timestamp>,
}

impl Broker {
    /// What is known of a record whose partition this broker leads.
    ///
    /// # Errors
    /// There is no such partition or record, or another broker leads.
    pub async fn explain_record(
        &self,
        topic: &str,
        partition: u32,
        offset: Offset,
    ) -> Result<RecordFacts, Error> {
        let route = self.route(topic)?;
        let known = self.partition(&route, partition)?;
        let fail = |source| in_partition(topic, partition, source);
        let replica = known.replica().filter(|_| known.leads_here());
        let Some(replica) = replica else {
            let leader = known.leader().map(|id| id.0);
            return Err(fail(partition::Error::Raft(raft::Error::NotLeader { leader })));
        };
        let origin = replica.origin(offset).await.map_err(fail)?;
        let (here, followers) = (self.id().unwrap_or_default(), replica.members().followers());
        let has = |id: u64| {
            let matched = |follower: &raft::Follower| {
                follower.node == id && follower.matched >= Some(origin.raft_index)
            };
            id == here || followers.iter().any(matched)
        };
        let replicas = &route.topic.partitions[partition as usize].replicas;
        let bounds = replica.bounds();
        Ok(RecordFacts {
            offset,
            producer_name: origin
                .producer
                .and_then(|producer| self.0.memory.producer_name(producer.producer_id)),
            leader: here,
            leader_term: known.term(),
            replicas: replicas.iter().map(|id| (id.0, has(id.0))).collect(),
            log_start: bounds.log_start,
            high_watermark: bounds.high_watermark,
            origin,
        })
    }

    /// What is known of a record and each group that has a position in the partition, by name.
    ///
    /// # Errors
    /// There is no such partition, or its leader does not say when the record was appended.
    pub async fn explain_groups(
        &self,
        topic: &str,
        partition: u32,
        offset: Offset,
    ) -> Result<Vec<GroupFacts>, Error> {
        let route = self.route(topic)?;
        let known = self.partition(&route, partition)?;
        let appended = known.append_time(offset).await;
        let appended = appended.map_err(|source| in_partition(topic, partition, source))?;
        let Some(appended) = appended else { return Ok(Vec::new()) };
        Ok(self.groups()?.explain(self.partition_key(topic, partition)?, offset, appended))
    }

    /// Batches that came in a trace, as far as this broker remembers, oldest first.
    pub fn traced_batches(&self, trace: [u8; 16]) -> Vec<TracedBatch> {
        self.0.memory.batches(trace)
    }

    /// Remembers what a program calls itself that got a producer id.
    pub fn remember_producer(&self, id: u64, name: &str) {
        self.0.memory.producer(id, name);
    }

    /// What a program calls itself that got a producer id, if this broker remembers.
    pub fn producer_name(&self, id: u64) -> Option<Arc<str>> {
        self.0.memory.producer_name(id)
    }
}
