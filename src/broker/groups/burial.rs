//! Records that no member could process go to the group's dead-letter topic.
//!
//! A record is done only when its copy is acknowledged: a broker that dies in between copies it again, so a dead-letter
//! topic may hold a record twice, but never misses one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::lock;
use super::queue::Queue;
use super::start::Found;
use crate::broker::fetch::Cursor;
use crate::broker::produce::in_partition;
use crate::broker::{Broker, Error, ErrorCode, Produce, TopicChanges};
use crate::coordination::{Command, Dead, DeathReason, OffsetRange, PartitionKey};
use crate::record::dead_letter::{self, ADDED_BYTES_MAX, Death, Reason};
use crate::record::{Codec, CodecSet, Offset};
use crate::telemetry::RequestTrace;

/// Records of a partition that are copied in one go.
const AT_ONCE: usize = 100;
/// After how long a copy that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Broker {
    /// Copies dead records until the broker stops.
    pub(super) async fn keep_burials(&self) {
        while let Ok(groups) = self.groups() {
            let notified = groups.dead.notified();
            let queues: Vec<_> = lock(&groups.queues).values().cloned().collect();
            let (mut more, mut failed) = (false, false);
            for queue in queues {
                for (key, dead) in queue.dead(AT_ONCE) {
                    more |= dead.len() == AT_ONCE;
                    if let Err(failure) = self.bury(&queue, key, dead).await {
                        failed = true;
                        warn!(
                            name: "group.dead_letter_failed",
                            group = &*queue.name, error = %failure,
                            "records cannot be copied to the dead-letter topic yet"
                        );
                    }
                }
            }
            if failed {
                tokio::time::sleep(RETRY).await;
            } else if !more {
                notified.await;
            }
        }
    }

    async fn bury(&self, queue: &Arc<Queue>, key: PartitionKey, dead: Vec<Dead>) -> Result<(), Error> {
        let Some(found) = self.find(&[key])?.pop() else { return Ok(()) };
        let topic = queue.dead_letter_topic();
        self.make_dead_letter_topic(&topic, &found).await?;
        for dead in dead {
            self.bury_one(queue, &found, &topic, &dead).await?;
        }
        Ok(())
    }

    async fn bury_one(
        &self,
        queue: &Arc<Queue>,
        found: &Found,
        topic: &Arc<str>,
        dead: &Dead,
    ) -> Result<(), Error> {
        let (source, partition) = (found.route.topic.name.clone(), found.key.partition);
        let stored = self.stored_batch(found, dead.offset).await?;
        let (reason, detail) = match &dead.reason {
            DeathReason::MaxDeliveries => (Reason::MaxDeliveries, ""),
            DeathReason::Rejected { detail } => (Reason::Rejected, &**detail),
        };
        let death = Death {
            topic: &source,
            partition,
            offset: dead.offset,
            group: &queue.name,
            delivery_count: dead.delivery_count,
            reason,
            detail,
            at_ms: self.0.clock.now().0,
        };
        let (base, batch) = stored;
        let limits = self.route(topic)?.limits;
        let most = found.route.limits.batch_bytes_max as usize;
        let copy = dead_letter::copy(&batch, base, most, &death, &limits).map_err(Error::DeadLetter)?;
        let produce = Produce {
            topic: topic.to_string(),
            partition: 0,
            batch: copy,
            producer: None,
            trace: RequestTrace::NONE,
            received: Instant::now(),
            may_forward: true,
        };
        let produced = self.produce(produce).await?.await?;
        info!(
            name: "group.dead_letter",
            group = &*queue.name, topic = &*source, partition, offset = dead.offset.0,
            dead_letter_topic = &**topic, dead_letter_offset = produced.base_offset.0, reason = reason.name(),
            deliveries = dead.delivery_count,
            "record copied to the dead-letter topic"
        );
        self.0.metrics.group(&queue.name).dead_lettered(&source, 1);
        let range = OffsetRange { first: dead.offset, last: dead.offset };
        let coordinator = self.groups()?.coordinators.of(&queue.name);
        let slot = coordinator.reserve().await?;
        let Some(updates) = queue.with(found.key, |leases| leases.buried(range)) else { return Ok(()) };
        if updates.is_empty() {
            return Ok(());
        }
        let updates = vec![(found.key, updates)];
        let at = self.0.clock.now();
        let command = Command::UpdateShares { group: queue.name.clone(), at, updates };
        let receiver = slot.submit_in(queue.term.into(), command);
        match receiver.await {
            Ok(Ok(_)) => {
                queue.with(found.key, |leases| leases.committed(range));
                queue.ring();
                Ok(())
            }
            Ok(Err(error)) => {
                queue.reopen(found.key);
                Err(error.into())
            }
            Err(_) => {
                queue.reopen(found.key);
                Err(Error::Coordinator(crate::raft::Error::OutcomeUnknown))
            }
        }
    }

    /// The batch that holds a record, not compressed, with the offset of its first record.
    async fn stored_batch(&self, found: &Found, offset: Offset) -> Result<(Offset, bytes::Bytes), Error> {
        let cursor = Cursor {
            route: found.route.clone(),
            number: found.key.partition,
            partition: found.partition.clone(),
            next: offset,
        };
        let fetched = self.read(&cursor, 1, CodecSet::EMPTY.with(Codec::None)).await;
        if let Some(error) = fetched.error {
            return Err(error);
        }
        let missing = || {
            let bounds = found.partition.bounds();
            let source = crate::partition::Error::OffsetOutOfRange {
                offset,
                log_start: bounds.log_start,
                high_watermark: bounds.high_watermark,
            };
            in_partition(&found.route.topic.name, found.key.partition, source)
        };
        let batch = fetched.batches.into_iter().next().ok_or_else(missing)?;
        Ok((batch.base_offset, batch.batch))
    }

    async fn make_dead_letter_topic(&self, name: &str, found: &Found) -> Result<(), Error> {
        if self.route(name).is_ok() {
            return Ok(());
        }
        let settings = &found.route.topic.settings;
        let batch_limit = u32::try_from(self.0.config.batch_bytes_max).unwrap_or(u32::MAX);
        let record = settings.record_bytes_max.saturating_add(ADDED_BYTES_MAX).min(batch_limit);
        let changes = TopicChanges {
            record_bytes_max: Some(record),
            batch_bytes_max: Some(settings.batch_bytes_max.max(record)),
            ..TopicChanges::default()
        };
        let replicas = found.route.topic.replication_factor;
        match self.create_topic(name, 1, replicas, changes, false).await {
            Err(error) if error.code() != ErrorCode::TopicExists => Err(error),
            _ => Ok(()),
        }
    }
}
