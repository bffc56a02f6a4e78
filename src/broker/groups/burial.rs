//! Records that no member could process go to the group's dead-letter topic.
//!
//! A record is done only when its copy is acknowledged and that is agreed on, so the dead-letter topic never misses one.
//! While a record is on its way there nobody else can have it ([`Burial`]), whichever members come and go, and a broker that
//! stops waits for it. What is left is that the group's coordinator, or the leader of the dead-letter topic, fails or is
//! replaced in between: whoever coordinates the group then does not know of the copy, so the record is delivered or copied
//! again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::queue::{Burial, Queue};
use super::registry::Coordinated as _;
use super::start::Found;
use crate::broker::fetch::Cursor;
use crate::broker::produce::in_partition;
use crate::broker::{Broker, Error, ErrorCode, Produce, TopicChanges};
use crate::coordination::{Command, DeathReason, OffsetRange, PartitionKey};
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
            let (mut more, mut failed) = (false, false);
            for queue in groups.queues.all() {
                for key in queue.with_dead() {
                    match self.bury(&queue, key).await {
                        Ok(buried) => more |= buried == AT_ONCE,
                        Err(failure) => {
                            failed = true;
                            warn!(
                                name: "group.dead_letter_failed",
                                group = &*queue.name, error = %failure,
                                "records cannot be copied to the dead-letter topic yet"
                            );
                        }
                    }
                }
                if queue.is_over() {
                    groups.changed.notify_one();
                }
            }
            if failed {
                tokio::time::sleep(RETRY).await;
            } else if !more {
                notified.await;
            }
        }
    }

    /// Begins no copy any more, and waits for the one that is under way.
    pub async fn end_burials(&self, deadline: Duration) {
        let Some(open) = self.0.open.get() else { return };
        let burials = &open.groups.burials;
        let _last = tokio::time::timeout(deadline, burials.acquire()).await;
        burials.close();
    }

    /// Copies dead records of a partition, and gives how many.
    async fn bury(&self, queue: &Arc<Queue>, key: PartitionKey) -> Result<usize, Error> {
        let Some(found) = self.find(&[key])?.pop() else { return Ok(0) };
        let topic = queue.dead_letter_topic();
        self.make_dead_letter_topic(&topic, &found).await?;
        let groups = self.groups()?;
        let (mut from, mut refused) = (Offset::ZERO, None);
        for buried in 0..AT_ONCE {
            let Ok(_turn) = groups.burials.acquire().await else { return Ok(buried) };
            // Somebody else may coordinate the group by now.
            if groups.term(&queue.name).ok() != Some(queue.term()) {
                return Ok(buried);
            }
            let Some(burial) = queue.bury(key, from) else { return refused.map_or(Ok(buried), Err) };
            if let Err(failure) = self.copy(&burial, &found, &topic).await {
                if burial.not_copied() {
                    let lost = burial.dead.offset;
                    found.warn_missed(&queue.name, lost, lost.saturating_add(1), 1);
                    self.0.metrics.group(&queue.name).missed(&found.route.topic.name, 1);
                }
                // One that does not fit into the topic must not keep the others waiting.
                if !matches!(failure, Error::DeadLetter(_)) {
                    return Err(failure);
                }
                from = burial.dead.offset.saturating_add(1);
                refused = Some(failure);
                continue;
            }
            self.note_copy(&burial, &found).await?;
        }
        refused.map_or(Ok(AT_ONCE), Err)
    }

    /// Copies a record to the dead-letter topic.
    async fn copy(&self, burial: &Burial, found: &Found, topic: &Arc<str>) -> Result<(), Error> {
        let Burial { queue, dead, .. } = burial;
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
        let copy =
            dead_letter::copy(&batch, base, batch.len(), &death, &limits).map_err(Error::DeadLetter)?;
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
        Ok(())
    }

    /// Has the group agree that a record which was copied is done.
    async fn note_copy(&self, burial: &Burial, found: &Found) -> Result<(), Error> {
        let Burial { queue, dead, .. } = burial;
        let range = OffsetRange { first: dead.offset, last: dead.offset };
        let coordinator = self.groups()?.coordinators.of(&queue.name);
        let slot = coordinator.reserve().await?;
        // They are gone if somebody else coordinates the group now.
        let Some(updates) = queue.with(found.key, |leases| leases.buried(range)) else { return Ok(()) };
        if updates.is_empty() {
            return Ok(());
        }
        let updates = vec![(found.key, updates)];
        let at = self.0.clock.now();
        let command = Command::UpdateShares { group: queue.name.clone(), at, updates };
        let receiver = slot.submit_in(queue.term().into(), command);
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
