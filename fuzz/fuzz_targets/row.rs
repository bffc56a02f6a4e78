//! A row of a Raft log that is read is written again as the same row.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use streambus::storage::{Command, GroupId, Row};

const CRC_BYTES: usize = 4;

fuzz_target!(|data: &[u8]| {
    let group = GroupId(7);
    assert!(data.len() >= CRC_BYTES || Row::decode(group, 1, Bytes::copy_from_slice(data)).is_err());
    let Some(content) = data.get(CRC_BYTES..) else { return };
    // The checksum is made right, or nothing would get past it.
    let bytes = [&crc32c::crc32c(content).to_le_bytes()[..], content].concat();
    let Ok(row) = Row::decode(group, 1, bytes.into()) else { return };
    let again = Row::encode(row.position(), row.kind, Command::copy_from_slice(&row.payload));
    let again = Row::decode(group, 1, again.bytes().clone()).expect("what is written can be read");
    assert_eq!((again.position(), again.kind, again.payload), (row.position(), row.kind, row.payload));
});
