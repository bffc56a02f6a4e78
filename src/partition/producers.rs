//! Which batches of which producers a partition holds: recognises retries and gaps.
//!
//! Pure and deterministic: time comes from the append commands. The rules are those of Kafka's idempotent producer
//! (KIP-98): a producer numbers the records it sends to a partition; the broker appends a batch only if it follows
//! the last one, and answers a batch it already has with the offset of the first attempt.

use std::collections::{BTreeMap, VecDeque};

use crate::clock::Timestamp;
use crate::record::{Offset, ProducerSequence};

/// Runs kept per producer. A producer that is alone on a partition needs one, however many batches are in flight.
const RUNS_MAX: usize = 128;
/// Producers kept per partition. Beyond it those that appended longest ago are forgotten.
const PRODUCERS_MAX: usize = 10_240;
/// New producers between two sweeps. INVARIANT: divides [`PRODUCERS_MAX`].
const SWEEP_EVERY: usize = 256;
/// A producer that appended nothing for this long is forgotten, in milliseconds.
const EXPIRY_MS: u64 = 24 * 60 * 60 * 1000;

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It follows the producer's last batch.
    Append,
    /// It was appended before, beginning at this offset.
    Duplicate(Offset),
    /// It cannot be appended.
    Refuse(Refusal),
}

/// Why a batch is not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A batch before it is missing, or it was appended so long ago that its offset is forgotten.
    #[error("expected sequence {expected}, got {actual}")]
    SequenceOutOfOrder {
        /// The sequence that would follow.
        expected: u32,
        /// The batch's.
        actual: u32,
    },
    /// A newer incarnation of the producer exists.
    #[error("producer epoch {actual} is fenced by epoch {current}")]
    Fenced {
        /// The newest epoch.
        current: u32,
        /// The batch's.
        actual: u32,
    },
    /// The partition holds nothing of this producer, yet the sequence does not start at zero.
    #[error("producer is not known to this partition, and its sequence begins at {actual}, not 0")]
    UnknownProducer {
        /// The batch's sequence.
        actual: u32,
    },
}

/// Consecutive sequences that lie at consecutive offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) sequence: u32,
    pub(super) offset: Offset,
    pub(super) records: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Producer {
    pub(super) epoch: u32,
    /// Sequence that follows the last appended record.
    pub(super) next: u32,
    pub(super) last_append: Timestamp,
    /// INVARIANT: in append order, none empty, the last one ends at `next`.
    pub(super) runs: VecDeque<Run>,
}

/// The producers of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producers {
    pub(super) known: BTreeMap<u64, Producer>,
}

impl Producers {
    /// Judges a batch of `records` records; changes nothing.
    pub fn judge(&self, id: ProducerSequence, records: u32) -> Verdict {
        let sequence = id.base_sequence;
        let Some(producer) = self.known.get(&id.producer_id) else {
            return match sequence {
                0 => Verdict::Append,
                actual => Verdict::Refuse(Refusal::UnknownProducer { actual }),
            };
        };
        if id.epoch < producer.epoch {
            return Verdict::Refuse(Refusal::Fenced { current: producer.epoch, actual: id.epoch });
        }
        if id.epoch > producer.epoch {
            return match sequence {
                0 => Verdict::Append,
                actual => Verdict::Refuse(Refusal::SequenceOutOfOrder { expected: 0, actual }),
            };
        }
        if sequence == producer.next {
            return Verdict::Append;
        }
        match producer.find(sequence, records) {
            Some(offset) => Verdict::Duplicate(offset),
            None => {
                Verdict::Refuse(Refusal::SequenceOutOfOrder { expected: producer.next, actual: sequence })
            }
        }
    }

    /// Notes a batch that [`Producers::judge`] let through and that got `offset`.
    pub fn appended(&mut self, id: ProducerSequence, records: u32, offset: Offset, at: Timestamp) {
        if !self.known.contains_key(&id.producer_id) {
            self.make_room(at);
        }
        let producer = self.known.entry(id.producer_id).or_insert_with(|| Producer {
            epoch: id.epoch,
            next: 0,
            last_append: at,
            runs: VecDeque::new(),
        });
        if id.epoch > producer.epoch {
            producer.epoch = id.epoch;
            producer.runs.clear();
        }
        producer.last_append = at;
        producer.next = id.base_sequence.wrapping_add(records);
        producer.extend(Run { sequence: id.base_sequence, offset, records });
    }

    /// Sweeps now and then, not at every new producer: a sweep looks at all of them.
    fn make_room(&mut self, now: Timestamp) {
        let count = self.known.len();
        if !count.is_power_of_two() && !count.is_multiple_of(SWEEP_EVERY) {
            return;
        }
        self.known.retain(|_, producer| now.millis_since(producer.last_append) < EXPIRY_MS);
        if self.known.len() >= PRODUCERS_MAX {
            let mut by_age: Vec<_> =
                self.known.iter().map(|(id, producer)| (producer.last_append, *id)).collect();
            by_age.sort_unstable();
            for (_, id) in &by_age[..SWEEP_EVERY] {
                self.known.remove(id);
            }
        }
    }
}

impl Producer {
    fn find(&self, sequence: u32, records: u32) -> Option<Offset> {
        self.runs.iter().rev().find_map(|run| {
            let into = sequence.wrapping_sub(run.sequence);
            let fits = into < run.records && records <= run.records - into;
            fits.then(|| Offset(run.offset.0 + u64::from(into)))
        })
    }

    fn extend(&mut self, run: Run) {
        if let Some(last) = self.runs.back_mut() {
            let adjoins = last.offset.0 + u64::from(last.records) == run.offset.0
                && last.sequence.wrapping_add(last.records) == run.sequence;
            if let (true, Some(records)) = (adjoins, last.records.checked_add(run.records)) {
                last.records = records;
                return;
            }
        }
        if self.runs.len() == RUNS_MAX {
            self.runs.pop_front();
        }
        self.runs.push_back(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000);

    fn id(producer_id: u64, epoch: u32, base_sequence: u32) -> ProducerSequence {
        ProducerSequence { producer_id, epoch, base_sequence }
    }

    fn append(producers: &mut Producers, id: ProducerSequence, records: u32, offset: u64) {
        assert_eq!(producers.judge(id, records), Verdict::Append);
        producers.appended(id, records, Offset(offset), NOW);
    }

    #[test]
    fn a_retry_gets_the_offset_of_the_first_attempt() {
        let mut producers = Producers::default();
        append(&mut producers, id(1, 0, 0), 3, 10);
        append(&mut producers, id(1, 0, 3), 2, 20);
        assert_eq!(producers.judge(id(1, 0, 0), 3), Verdict::Duplicate(Offset(10)));
        assert_eq!(producers.judge(id(1, 0, 3), 2), Verdict::Duplicate(Offset(20)));
    }

    #[test]
    fn a_retry_inside_a_merged_run_is_found() {
        let mut producers = Producers::default();
        for i in 0..1_000 {
            append(&mut producers, id(1, 0, i), 1, 50 + u64::from(i));
        }
        assert_eq!(producers.known[&1].runs.len(), 1);
        assert_eq!(producers.judge(id(1, 0, 700), 1), Verdict::Duplicate(Offset(750)));
    }

    #[test]
    fn a_gap_is_refused() {
        let mut producers = Producers::default();
        append(&mut producers, id(1, 0, 0), 3, 0);
        assert_eq!(
            producers.judge(id(1, 0, 4), 1),
            Verdict::Refuse(Refusal::SequenceOutOfOrder { expected: 3, actual: 4 })
        );
    }

    #[test]
    fn a_batch_that_overlaps_the_end_is_refused() {
        let mut producers = Producers::default();
        append(&mut producers, id(1, 0, 0), 3, 0);
        assert!(matches!(
            producers.judge(id(1, 0, 2), 2),
            Verdict::Refuse(Refusal::SequenceOutOfOrder { .. })
        ));
    }

    #[test]
    fn an_old_epoch_is_fenced_and_a_new_one_starts_at_zero() {
        let mut producers = Producers::default();
        append(&mut producers, id(1, 1, 0), 1, 0);
        assert_eq!(
            producers.judge(id(1, 0, 1), 1),
            Verdict::Refuse(Refusal::Fenced { current: 1, actual: 0 })
        );
        assert!(matches!(
            producers.judge(id(1, 2, 1), 1),
            Verdict::Refuse(Refusal::SequenceOutOfOrder { .. })
        ));
        append(&mut producers, id(1, 2, 0), 1, 1);
        assert_eq!(producers.judge(id(1, 2, 0), 1), Verdict::Duplicate(Offset(1)));
    }

    #[test]
    fn an_unknown_producer_must_start_at_zero() {
        let producers = Producers::default();
        assert_eq!(producers.judge(id(9, 0, 5), 1), Verdict::Refuse(Refusal::UnknownProducer { actual: 5 }));
    }

    #[test]
    fn sequences_wrap_around() {
        let mut producers = Producers::default();
        append(&mut producers, id(1, 0, 0), u32::MAX, 0);
        append(&mut producers, id(1, 0, u32::MAX), 2, u64::from(u32::MAX));
        assert_eq!(producers.judge(id(1, 0, 1), 1), Verdict::Append);
        assert_eq!(producers.judge(id(1, 0, u32::MAX), 2), Verdict::Duplicate(Offset(u64::from(u32::MAX))));
    }

    #[test]
    fn memory_is_bounded_in_runs_and_in_producers() {
        let mut producers = Producers::default();
        for i in 0..RUNS_MAX as u32 + 10 {
            append(&mut producers, id(1, 0, i), 1, u64::from(i) * 2);
        }
        assert_eq!(producers.known[&1].runs.len(), RUNS_MAX);
        for producer in 2..PRODUCERS_MAX as u64 + 10 {
            append(&mut producers, id(producer, 0, 0), 1, producer);
        }
        assert!(producers.known.len() <= PRODUCERS_MAX);
        assert!(producers.known.contains_key(&(PRODUCERS_MAX as u64 + 9)), "the newest stays");
    }

    #[test]
    fn an_idle_producer_is_forgotten_when_another_one_comes() {
        let mut producers = Producers::default();
        append(&mut producers, id(1, 0, 0), 1, 0);
        producers.appended(id(2, 0, 0), 1, Offset(1), Timestamp(NOW.0 + EXPIRY_MS as i64));
        assert!(!producers.known.contains_key(&1));
    }
}
