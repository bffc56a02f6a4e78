//! Where batches lie: one row per log entry that holds any.
//!
//! A row's key is the base offset (see `storage`); its value is
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0..8 | Raft index | u64, little-endian like all numbers |
//! | 8..16 | append time | i64, milliseconds since the Unix epoch |
//! | 16..24 | bytes before | u64, bytes of all batches of the partition before this entry |
//! | 24..32 | end offset | u64, offset after the entry's last record |
//! | 32.. | skipped batches | u32 each, numbers of the batches that were refused or duplicates |

use std::ops::ControlFlow;

use bytes::{Buf, Bytes};

use crate::clock::Timestamp;
use crate::record::command::{self, Command};
use crate::record::{Frame, Offset};

const FIXED_LEN: usize = 32;

/// The batches of one log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Offset of the first record.
    pub base: Offset,
    /// Offset after the last record.
    pub end: Offset,
    /// The log entry.
    pub raft_index: u64,
    /// When the batches were appended.
    pub append_time: Timestamp,
    /// Bytes of all batches of the partition before this entry.
    pub bytes_before: u64,
    /// Numbers of the batches in the log entry that were not appended, ascending.
    pub skipped: Vec<u32>,
}

impl Entry {
    /// The row's value.
    pub fn encode(&self) -> Bytes {
        let mut value = Vec::with_capacity(FIXED_LEN + 4 * self.skipped.len());
        value.extend_from_slice(&self.raft_index.to_le_bytes());
        value.extend_from_slice(&self.append_time.0.to_le_bytes());
        value.extend_from_slice(&self.bytes_before.to_le_bytes());
        value.extend_from_slice(&self.end.0.to_le_bytes());
        for number in &self.skipped {
            value.extend_from_slice(&number.to_le_bytes());
        }
        value.into()
    }

    /// Reads a row's value. `None`: the bytes are no such value.
    pub fn decode(base: Offset, mut value: &[u8]) -> Option<Self> {
        if value.len() < FIXED_LEN || !(value.len() - FIXED_LEN).is_multiple_of(4) {
            return None;
        }
        let raft_index = value.get_u64_le();
        let append_time = Timestamp(value.get_i64_le());
        let bytes_before = value.get_u64_le();
        let end = Offset(value.get_u64_le());
        let skipped = value.chunks_exact(4).map(|mut number| number.get_u32_le()).collect();
        (end > base).then_some(Entry { base, end, raft_index, append_time, bytes_before, skipped })
    }

    /// Visits the appended batches of the entry with their base offsets. `command` is the log entry's.
    ///
    /// # Errors
    /// The command cannot be read, or does not hold what this row says: one of the two is damaged.
    pub fn visit(
        &self,
        command: &Bytes,
        mut visit: impl FnMut(Offset, Frame) -> ControlFlow<()>,
    ) -> Result<(), Damage> {
        let Command::Append(append) = Command::decode(command)? else {
            return Err(Damage::NoAppend);
        };
        let mut skipped = self.skipped.iter().peekable();
        let mut next = self.base;
        for (number, frame) in append.frames().enumerate() {
            if skipped.next_if(|skip| **skip as usize == number).is_some() {
                continue;
            }
            let base = next;
            next = Offset(base.0 + u64::from(frame.header.records));
            if visit(base, frame).is_break() {
                return Ok(());
            }
        }
        if next == self.end { Ok(()) } else { Err(Damage::Count { found: next, expected: self.end }) }
    }
}

/// Why a log entry does not hold what its index row says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The log entry is no command of a partition.
    #[error(transparent)]
    Command(#[from] command::Error),
    /// The log entry appends nothing.
    #[error("the log entry is not an append")]
    NoAppend,
    /// The log entry holds fewer or more records.
    #[error("the log entry's records end at offset {found}, its index row says {expected}")]
    Count {
        /// Where the records end.
        found: Offset,
        /// Where they should end.
        expected: Offset,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            base: Offset(100),
            end: Offset(103),
            raft_index: 0x0102,
            append_time: Timestamp(-2),
            bytes_before: 0x0a0b,
            skipped: vec![1, 7],
        }
    }

    #[test]
    fn rows_have_golden_bytes() {
        let golden = [
            2, 1, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0b, 0x0a, 0, 0, 0, 0,
            0, 0, 103, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0,
        ];
        assert_eq!(&entry().encode()[..], golden);
        assert_eq!(Entry::decode(Offset(100), &golden), Some(entry()));
    }

    #[test]
    fn values_that_are_no_row_are_refused() {
        let value = entry().encode();
        assert_eq!(Entry::decode(Offset(100), &value[..31]), None);
        assert_eq!(Entry::decode(Offset(100), &value[..34]), None);
        assert_eq!(Entry::decode(Offset(103), &value), None);
    }
}
