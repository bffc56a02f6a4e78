//! Counting what became of records.

use std::collections::{BTreeMap, VecDeque};

use crate::client::{Delivery, Error, RecordMetadata};

/// The outcomes of records, in the order in which they were sent.
#[derive(Debug, Default)]
pub(super) struct Tally {
    waiting: VecDeque<Delivery>,
    settled: u64,
    acknowledged: BTreeMap<u32, u64>,
    refused: Option<Refused>,
}

/// The first record that was not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// Its number, from 1.
    pub(super) line: u64,
    /// Why.
    pub(super) error: Error,
}

impl Tally {
    /// A further record was sent.
    pub(super) fn sent(&mut self, delivery: Delivery) {
        self.waiting.push_back(delivery);
    }

    /// Counts the outcomes that are known, up to the first that is not.
    pub(super) fn settle_known(&mut self) -> Result<(), Refused> {
        while let Some(result) = self.waiting.front().and_then(Delivery::peek) {
            self.waiting.pop_front();
            self.count(result);
        }
        self.result()
    }

    /// Waits for every outcome.
    pub(super) async fn settle(&mut self) -> Result<(), Refused> {
        while let Some(delivery) = self.waiting.pop_front() {
            let result = delivery.await;
            self.count(result);
        }
        self.result()
    }

    /// Number of acknowledged records.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.values().sum()
    }

    /// Number of acknowledged records by partition.
    pub(super) fn partitions(&self) -> &BTreeMap<u32, u64> {
        &self.acknowledged
    }

    fn result(&self) -> Result<(), Refused> {
        match &self.refused {
            None => Ok(()),
            Some(refused) => Err(refused.clone()),
        }
    }

    fn count(&mut self, result: Result<RecordMetadata, Error>) {
        self.settled += 1;
        match result {
            Ok(metadata) => *self.acknowledged.entry(metadata.partition).or_default() += 1,
            Err(error) => {
                let line = self.settled;
                self.refused.get_or_insert(Refused { line, error });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Offset;

    fn acknowledged(partition: u32) -> Result<RecordMetadata, Error> {
        Ok(RecordMetadata { topic: "t".into(), partition, offset: Offset(0), append_time_ms: 0 })
    }

    #[test]
    fn outcomes_are_counted_by_partition_and_the_first_refusal_is_kept() {
        let mut tally = Tally::default();
        for result in [
            acknowledged(3),
            Err(Error::BufferFull { limit: 1 }),
            acknowledged(0),
            Err(Error::BufferFull { limit: 2 }),
            acknowledged(3),
        ] {
            tally.count(result);
        }
        assert_eq!(tally.acknowledged(), 3);
        assert_eq!(tally.partitions(), &BTreeMap::from([(0, 1), (3, 2)]));
        let refused = tally.settle_known().expect_err("a refusal");
        assert!(matches!(refused, Refused { line: 2, error: Error::BufferFull { limit: 1 } }));
    }
}
