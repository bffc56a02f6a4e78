//! Where batches lie: one index row per log entry that holds any.
//!
//! The store keeps the base offset, Raft index and append time of a row; the rest is its detail:
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0..8 | bytes before | u64, little-endian like all numbers: bytes of all batches of the partition before this entry |
//! | 8..16 | end offset | u64, offset after the entry's last record |
//! | 16.. | skipped batches | u32 each, numbers of the batches that were refused or duplicates |

use std::ops::ControlFlow;

use bytes::{Buf, Bytes};

use crate::clock::Timestamp;
use crate::record::command::{self, Command};
use crate::record::{Frame, Offset};
use crate::storage::IndexRow;

const FIXED_LEN: usize = 16;

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
    /// The row as the store keeps it.
    pub fn to_row(&self) -> IndexRow {
        let mut detail = Vec::with_capacity(FIXED_LEN + 4 * self.skipped.len());
        detail.extend_from_slice(&self.bytes_before.to_le_bytes());
        detail.extend_from_slice(&self.end.0.to_le_bytes());
        for number in &self.skipped {
            detail.extend_from_slice(&number.to_le_bytes());
        }
        IndexRow {
            offset: self.base.0,
            index: self.raft_index,
            append_time_ms: self.append_time.0,
            detail: detail.into(),
        }
    }

    /// Reads a row. `None`: its detail is not as the table above says.
    pub fn from_row(row: &IndexRow) -> Option<Self> {
        let mut detail = &row.detail[..];
        if detail.len() < FIXED_LEN || !(detail.len() - FIXED_LEN).is_multiple_of(4) {
            return None;
        }
        let base = Offset(row.offset);
        let bytes_before = detail.get_u64_le();
        let end = Offset(detail.get_u64_le());
        let skipped = detail.chunks_exact(4).map(|mut number| number.get_u32_le()).collect();
        let append_time = Timestamp(row.append_time_ms);
        (end > base).then_some(Entry { base, end, raft_index: row.index, append_time, bytes_before, skipped })
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
    fn details_have_golden_bytes() {
        let row = entry().to_row();
        let golden = [0x0b, 0x0a, 0, 0, 0, 0, 0, 0, 103, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0];
        assert_eq!(&row.detail[..], golden);
        assert_eq!((row.offset, row.index, row.append_time_ms), (100, 0x0102, -2));
        assert_eq!(Entry::from_row(&row), Some(entry()));
    }

    #[test]
    fn details_that_are_none_are_refused() {
        let row = entry().to_row();
        let cut = |length| IndexRow { detail: row.detail.slice(..length), ..row.clone() };
        assert_eq!(Entry::from_row(&cut(15)), None);
        assert_eq!(Entry::from_row(&cut(18)), None);
        assert_eq!(Entry::from_row(&IndexRow { offset: 103, ..row.clone() }), None);
    }
}
