//! Leasing records to a member.

use std::time::{Duration, Instant};

use super::{MemberEvent, ShareMember};
use crate::broker::ErrorCode;
use crate::broker::fetch::{Cursor, Fetched, FetchedBatch};
use crate::broker::groups::journal::Delivery;
use crate::broker::groups::queue::range_of;
use crate::broker::groups::start::Found;
use crate::coordination::PartitionKey;
use crate::record::Offset;

/// Delivered batches whose way to their acknowledgement is timed.
const TIMED_BATCHES: usize = 1_024;

/// Consecutive records that are leased to the member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeasedRange {
    /// The first record.
    pub first: Offset,
    /// The last record.
    pub last: Offset,
    /// How often they were delivered, this time included.
    pub delivery_count: u32,
}

impl ShareMember {
    /// Whether records may be leased to the member now.
    pub(super) fn may_deliver(&self) -> bool {
        self.credit > 0 && self.queue.leased_to(self.session) < self.in_flight_max
    }

    /// Leases what there is in the partition whose turn it is, or in the next that has something.
    pub(super) async fn take(&mut self) -> Option<MemberEvent> {
        for step in 0..self.slots.len() {
            let at = (self.turn + step) % self.slots.len();
            let found = self.reading.get(&self.slots[at])?.clone();
            if let Some(event) = self.take_from(&found).await {
                // It may be the error of the last partition that was read.
                self.turn = (at + 1) % self.slots.len().max(1);
                return Some(event);
            }
        }
        None
    }

    async fn take_from(&mut self, found: &Found) -> Option<MemberEvent> {
        if let Err(error) = self.keep_up(found).await {
            return Some(self.stop_reading(found, error));
        }
        let bounds = found.partition.bounds();
        let now = Instant::now();
        let from = self.queue.with(found.key, |leases| {
            let new = || {
                Some(leases.next_offset()).filter(|next| leases.room() > 0 && *next < bounds.high_watermark)
            };
            leases.redeliverable(now).map(|range| range.first).or_else(new)
        })??;
        let budget = self.credit.unsigned_abs().min(self.broker.0.config.delivery_bytes);
        let cursor = Cursor {
            route: found.route.clone(),
            number: found.key.partition,
            partition: found.partition.clone(),
            next: from,
        };
        let mut fetched = self.broker.read(&cursor, budget, self.accepted).await;
        if let Some(error) = fetched.error {
            // Retention was faster; the next turn follows it.
            let overtaken = error.code() == ErrorCode::OffsetOutOfRange;
            return (!overtaken).then(|| self.stop_reading(found, error));
        }
        let room = self.in_flight_max.saturating_sub(self.queue.leased_to(self.session));
        let (session, spec) = (self.session, self.spec);
        if !self.queue.contains(session) {
            return None;
        }
        let mut left = room;
        let mut leases = Vec::new();
        let mut delivered: Vec<FetchedBatch> = Vec::new();
        for batch in std::mem::take(&mut fetched.batches) {
            let available = range_of(batch.base_offset, batch.record_count);
            let got = self.queue.with(found.key, |all| all.acquire(now, session, spec, available, left))?;
            if got.is_empty() {
                // They may have been delivered as often as is allowed, and be dead now.
                self.broker.groups().ok()?.dead.notify_one();
                continue;
            }
            left -= got.iter().map(|lease| lease.range.count()).sum::<u64>();
            self.note_given(found.key, available.last, &batch);
            leases.extend(got.into_iter().map(|lease| LeasedRange {
                first: lease.range.first,
                last: lease.range.last,
                delivery_count: lease.delivery_count,
            }));
            delivered.push(batch);
        }
        let last = delivered.last()?;
        fetched.next_offset = last.base_offset.saturating_add(last.record_count.into());
        fetched.batches = delivered;
        self.credit = self.credit.saturating_sub(i64::try_from(fetched.bytes()).unwrap_or(i64::MAX));
        self.count(found, &fetched, &leases);
        let responding = self.broker.responding(now, now, None);
        // A lease has begun that ends at some time.
        self.broker.groups().ok()?.changed.notify_one();
        Some(MemberEvent::Leased { fetched, responding, leases })
    }

    fn note_given(&mut self, key: PartitionKey, last: Offset, batch: &FetchedBatch) {
        let given = self.given.entry(key).or_default();
        if given.len() >= TIMED_BATCHES {
            given.pop_first();
        }
        given.insert(batch.base_offset, (last, batch.append_time));
    }

    fn count(&self, found: &Found, fetched: &Fetched, leases: &[LeasedRange]) {
        let now = self.broker.0.clock.now();
        for batch in &fetched.batches {
            self.metrics.delivered(Duration::from_millis(now.millis_since(batch.append_time)));
        }
        let records = |lease: &LeasedRange| lease.last.saturating_since(lease.first).saturating_add(1);
        let again = leases.iter().filter(|lease| lease.delivery_count > 1).map(records).sum();
        if again > 0 {
            self.metrics.redelivered(&found.route.topic.name, again);
        }
        if let Ok(groups) = self.broker.groups() {
            for lease in leases {
                let delivery = Delivery { at: now, member: self.member.id.clone(), span: None };
                let range = lease.first..lease.last.saturating_add(1);
                groups.journal.delivered(&self.place(found.key), range, delivery);
            }
        }
        let all = leases.iter().map(records).sum();
        self.broker.0.metrics.consume.delivered(&found.route.metrics, all, fetched.bytes());
    }
}
