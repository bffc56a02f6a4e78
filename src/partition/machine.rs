//! The state of a partition and what each log entry does to it: offsets are given here.
//!
//! Pure and deterministic: every replica that applies the same entries holds the same bytes of state.

use prost::Message as _;

use super::index::Entry;
use super::producers::{Producer, Producers, Refusal, Run, Verdict};
use crate::clock::Timestamp;
use crate::proto::internal as stored;
use crate::record::Offset;
use crate::record::command::Append;

/// What became of one batch of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was given offsets from this one on.
    Appended(Offset),
    /// It had been appended before, at this offset.
    Duplicate(Offset),
    /// It was not appended.
    Refused(Refusal),
}

/// What an append did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Of each batch, in order.
    pub outcomes: Vec<Outcome>,
    /// When the batches count as appended.
    pub append_time: Timestamp,
    /// Where the batches lie. Absent if none was appended.
    pub entry: Option<Entry>,
}

/// A partition's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    log_start: Offset,
    next_offset: Offset,
    /// Bytes of all batches ever appended.
    bytes_end: u64,
    last_append: Timestamp,
    producers: Producers,
}

impl State {
    /// Offset of the oldest retained record.
    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    /// Offset that the next record gets.
    pub fn next_offset(&self) -> Offset {
        self.next_offset
    }

    /// Bytes of all batches ever appended.
    pub fn bytes_end(&self) -> u64 {
        self.bytes_end
    }

    /// When the last batch was appended; 1970 if none was.
    pub fn last_append(&self) -> Timestamp {
        self.last_append
    }

    /// Gives offsets to the batches of a log entry.
    pub fn append(&mut self, raft_index: u64, append: &Append) -> Appended {
        // A new leader's clock may be behind the old one's; append times never decrease all the same.
        self.last_append = self.last_append.max(Timestamp(append.append_time_ms()));
        let (base, bytes_before) = (self.next_offset, self.bytes_end);
        let mut skipped = Vec::new();
        let mut outcomes = Vec::with_capacity(append.frame_count() as usize);
        for (number, frame) in append.frames().enumerate() {
            let records = frame.header.records;
            let verdict = match frame.header.producer {
                Some(sequence) => self.producers.judge(sequence, records),
                None => Verdict::Append,
            };
            outcomes.push(match verdict {
                Verdict::Append => {
                    let offset = self.next_offset;
                    if let Some(sequence) = frame.header.producer {
                        self.producers.appended(sequence, records, offset, self.last_append);
                    }
                    self.next_offset = Offset(offset.0 + u64::from(records));
                    self.bytes_end += frame.batch.len() as u64;
                    Outcome::Appended(offset)
                }
                Verdict::Duplicate(offset) => {
                    skipped.push(number as u32);
                    Outcome::Duplicate(offset)
                }
                Verdict::Refuse(refusal) => {
                    skipped.push(number as u32);
                    Outcome::Refused(refusal)
                }
            });
        }
        let entry = (self.next_offset > base).then_some(Entry {
            base,
            end: self.next_offset,
            raft_index,
            append_time: self.last_append,
            bytes_before,
            skipped,
        });
        Appended { outcomes, append_time: self.last_append, entry }
    }

    /// Moves the log start up to `before`, but not past the log end, and gives the new log start.
    pub fn trim(&mut self, before: Offset) -> Offset {
        self.log_start = self.log_start.max(before.min(self.next_offset));
        self.log_start
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let producers = self.producers.known.iter().map(|(id, producer)| stored::ProducerState {
            producer_id: *id,
            epoch: producer.epoch,
            next_sequence: producer.next,
            last_append_ms: producer.last_append.0,
            runs: producer
                .runs
                .iter()
                .map(|run| stored::ProducerRun {
                    sequence: run.sequence,
                    offset: run.offset.0,
                    records: run.records,
                })
                .collect(),
        });
        stored::PartitionState {
            log_start: self.log_start.0,
            next_offset: self.next_offset.0,
            bytes_end: self.bytes_end,
            last_append_ms: self.last_append.0,
            producers: producers.collect(),
        }
        .encode_to_vec()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// The bytes are no partition state.
    pub fn decode(bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        let state = stored::PartitionState::decode(bytes)?;
        let known = state.producers.into_iter().map(|producer| {
            let runs = producer.runs.into_iter().map(|run| Run {
                sequence: run.sequence,
                offset: Offset(run.offset),
                records: run.records,
            });
            let loaded = Producer {
                epoch: producer.epoch,
                next: producer.next_sequence,
                last_append: Timestamp(producer.last_append_ms),
                runs: runs.collect(),
            };
            (producer.producer_id, loaded)
        });
        Ok(State {
            log_start: Offset(state.log_start),
            next_offset: Offset(state.next_offset),
            bytes_end: state.bytes_end,
            last_append: Timestamp(state.last_append_ms),
            producers: Producers { known: known.collect() },
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;

    use super::*;
    use crate::record::command::{AppendWriter, Command};
    use crate::record::{Codec, FrameHeader, ProducerSequence};

    fn append(at: i64, batches: &[(u32, Option<ProducerSequence>)]) -> Append {
        let mut buf = BytesMut::new();
        let mut writer = AppendWriter::new(&mut buf, at);
        for (records, producer) in batches {
            let header = FrameHeader {
                records: *records,
                codec: Codec::None,
                producer: *producer,
                max_timestamp_ms: 0,
                span: None,
            };
            writer.push(&header, b"0123456789");
        }
        writer.finish();
        match Command::decode(&Bytes::from(buf)) {
            Ok(Command::Append(append)) => append,
            other => panic!("an append was written: {other:?}"),
        }
    }

    fn sequence(producer_id: u64, base_sequence: u32) -> Option<ProducerSequence> {
        Some(ProducerSequence { producer_id, epoch: 0, base_sequence })
    }

    #[test]
    fn offsets_are_dense() {
        let mut state = State::default();
        let first = state.append(5, &append(1, &[(3, None), (2, None)]));
        assert_eq!(first.outcomes, [Outcome::Appended(Offset(0)), Outcome::Appended(Offset(3))]);
        let second = state.append(6, &append(1, &[(1, None)]));
        assert_eq!(second.outcomes, [Outcome::Appended(Offset(5))]);
        let entry = second.entry.expect("something was appended");
        assert_eq!(
            (entry.base, entry.end, entry.raft_index, entry.bytes_before),
            (Offset(5), Offset(6), 6, 20)
        );
    }

    #[test]
    fn a_duplicate_takes_no_offsets_and_is_marked_in_the_entry() {
        let mut state = State::default();
        state.append(1, &append(1, &[(3, sequence(7, 0))]));
        let retried = state.append(2, &append(1, &[(3, sequence(7, 0)), (1, sequence(7, 3))]));
        assert_eq!(retried.outcomes, [Outcome::Duplicate(Offset(0)), Outcome::Appended(Offset(3))]);
        assert_eq!(retried.entry.expect("one was appended").skipped, [0]);
        let nothing = state.append(3, &append(1, &[(3, sequence(7, 0))]));
        assert_eq!(nothing.entry, None);
        assert_eq!(state.next_offset(), Offset(4));
    }

    #[test]
    fn append_times_never_decrease() {
        let mut state = State::default();
        state.append(1, &append(100, &[(1, None)]));
        assert_eq!(state.append(2, &append(50, &[(1, None)])).append_time, Timestamp(100));
    }

    #[test]
    fn trim_moves_up_only_and_stops_at_the_end() {
        let mut state = State::default();
        state.append(1, &append(1, &[(10, None)]));
        assert_eq!(state.trim(Offset(4)), Offset(4));
        assert_eq!(state.trim(Offset(2)), Offset(4));
        assert_eq!(state.trim(Offset(99)), Offset(10));
    }

    proptest! {
        /// Whenever a replica is restored from a checkpoint, it goes on exactly like one that never stopped.
        #[test]
        fn replicas_agree_wherever_they_were_restored(
            steps in prop::collection::vec(
                (0_i64..100, prop::collection::vec((1_u32..4, prop::option::of((1_u64..3, 0_u32..6))), 1..4), 0_u64..40),
                1..30,
            ),
            restore_at in 0_usize..30,
        ) {
            let (mut steady, mut restored) = (State::default(), State::default());
            for (number, (at, batches, trim)) in steps.iter().enumerate() {
                if number == restore_at {
                    restored = State::decode(&restored.encode()).expect("readable");
                }
                let batches: Vec<_> =
                    batches.iter().map(|(n, p)| (*n, p.and_then(|(id, s)| sequence(id, s)))).collect();
                let command = append(*at, &batches);
                let index = number as u64;
                prop_assert_eq!(steady.append(index, &command), restored.append(index, &command));
                prop_assert_eq!(steady.trim(Offset(*trim)), restored.trim(Offset(*trim)));
                prop_assert_eq!(steady.encode(), restored.encode());
            }
        }
    }
}
