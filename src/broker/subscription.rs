//! Batches as they are committed, as far as the consumer's credit goes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::fetch::{Cursor, FetchPartition, Fetched, Responding};
use super::produce::in_partition;
use super::{Broker, levels};
use crate::partition::{self, signal::Signal};
use crate::record::CodecSet;

/// An open subscription. Reads only when asked, so a consumer that does not ask costs nothing but its cursors.
pub struct Subscription {
    broker: Broker,
    accepted: CodecSet,
    /// Negative after a batch that was larger than what was left: clients grant back every byte they got, so what
    /// was overspent must be made up for.
    credit: i64,
    /// Records that the next delivery may hold, beyond its first batch.
    records_max: u64,
    /// By slot. The number of a slot is never used again, so a late ring of a removed partition finds nothing.
    cursors: HashMap<usize, Cursor>,
    next_slot: usize,
    /// Slots that may have something to read, each at most once.
    ready: VecDeque<usize>,
    signal: Arc<Signal>,
    asked: Instant,
    _open: levels::Guard,
}

impl Broker {
    /// Opens a subscription without partitions and credit.
    pub fn subscribe(&self, accepted: CodecSet) -> Subscription {
        Subscription {
            broker: self.clone(),
            accepted,
            credit: 0,
            records_max: u64::MAX,
            cursors: HashMap::new(),
            next_slot: 0,
            ready: VecDeque::new(),
            signal: Signal::new(),
            asked: Instant::now(),
            _open: self.0.levels.subscribed(),
        }
    }
}

impl Subscription {
    /// Reads further partitions, or repositions ones that are being read. Those that cannot be read are given back
    /// with their error.
    pub async fn add(&mut self, partitions: Vec<FetchPartition>) -> Vec<Fetched> {
        let mut failed = Vec::new();
        for wanted in partitions {
            match self.broker.cursor(&wanted).await {
                Ok(cursor) => {
                    self.forget(&wanted.topic, wanted.partition);
                    let slot = self.next_slot;
                    self.next_slot += 1;
                    cursor.partition.listen(&self.signal, slot);
                    self.cursors.insert(slot, cursor);
                    self.ready.push_back(slot);
                }
                Err(error) => failed.push(Fetched::failed(&wanted.topic, wanted.partition, error)),
            }
        }
        failed
    }

    /// Stops reading partitions. Unknown ones are passed over.
    pub fn remove(&mut self, partitions: &[(String, u32)]) {
        for (topic, number) in partitions {
            self.forget(topic, *number);
        }
    }

    /// Whether a partition is being read.
    pub(super) fn reads(&self, topic: &str, number: u32) -> bool {
        self.slot_of(topic, number).is_some()
    }

    /// Lets `bytes` more be delivered.
    pub fn grant(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Lets the deliveries from now on hold at most so many records, or one batch.
    pub(super) fn limit_records(&mut self, most: u64) {
        self.records_max = most;
    }

    /// Whether anything may be delivered before more credit is granted.
    pub fn has_credit(&self) -> bool {
        self.credit > 0
    }

    /// The next batches of some partition, partitions taking turns. Waits while there is no credit or nothing new.
    /// With batches comes what times their way to the client. Cancel-safe: what is not returned is read again.
    pub async fn next(&mut self) -> (Fetched, Option<Responding>) {
        loop {
            if self.credit <= 0 {
                std::future::pending::<()>().await;
            }
            let Some(&slot) = self.ready.front() else {
                let rung = self.signal.wait().await;
                self.asked = Instant::now();
                for slot in rung {
                    if !self.ready.contains(&slot) {
                        self.ready.push_back(slot);
                    }
                }
                continue;
            };
            if let Some(delivery) = self.read(slot).await {
                return delivery;
            }
        }
    }

    /// Reads the partition at the head of the queue. Nothing is noted until the read is complete.
    async fn read(&mut self, slot: usize) -> Option<(Fetched, Option<Responding>)> {
        let Some(cursor) = self.cursors.get(&slot) else {
            self.ready.pop_front();
            return None;
        };
        let started = Instant::now();
        let budget = self.credit.unsigned_abs().min(self.broker.0.config.delivery_bytes);
        let mut fetched = self.broker.read(cursor, budget, self.accepted).await;
        self.ready.pop_front();
        fetched.keep_records(self.records_max);
        if fetched.error.is_none() && fetched.batches.is_empty() {
            if !self.is_gone(slot) {
                return None;
            }
            fetched.error = Some(in_partition(&fetched.topic, fetched.partition, partition::Error::Stopped));
        }
        if fetched.error.is_some() {
            self.drop_slot(slot);
            return Some((fetched, None));
        }
        let bytes = i64::try_from(fetched.bytes()).unwrap_or(i64::MAX);
        self.credit = self.credit.saturating_sub(bytes);
        if let Some(cursor) = self.cursors.get_mut(&slot) {
            cursor.next = fetched.next_offset;
            if cursor.next < cursor.partition.bounds().high_watermark {
                self.ready.push_back(slot);
            }
            self.broker.count_delivery(cursor, &fetched);
        }
        let responding = self.broker.responding(self.asked, started, None);
        self.asked = Instant::now();
        Some((fetched, Some(responding)))
    }

    /// Whether the slot's partition was closed, because its topic was deleted or the broker stops.
    fn is_gone(&self, slot: usize) -> bool {
        self.cursors.get(&slot).is_some_and(|cursor| cursor.partition.is_closed())
    }

    fn forget(&mut self, topic: &str, number: u32) {
        if let Some(slot) = self.slot_of(topic, number) {
            self.drop_slot(slot);
        }
    }

    fn slot_of(&self, topic: &str, number: u32) -> Option<usize> {
        let same = |cursor: &Cursor| &*cursor.route.topic.name == topic && cursor.number == number;
        self.cursors.iter().find_map(|(slot, cursor)| same(cursor).then_some(*slot))
    }

    fn drop_slot(&mut self, slot: usize) {
        if let Some(cursor) = self.cursors.remove(&slot) {
            cursor.partition.unlisten(&self.signal, slot);
        }
        self.signal.forget(slot);
        self.ready.retain(|ready| *ready != slot);
    }

    /// How many slots are noted anywhere.
    #[cfg(test)]
    pub(crate) fn slots(&self) -> usize {
        self.cursors.len() + self.ready.len() + self.signal.rung()
    }
}
