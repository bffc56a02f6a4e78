//! For the fuzz targets: what is read from a disk or a peer, written and read again is the same.

use bytes::BytesMut;

use super::checkpoint::{CRC_BYTES, Checkpoint};
use super::{membership, vote};

/// A checkpoint or snapshot. Its checksum is made right first, or nothing would get past it.
pub fn checkpoint(bytes: &[u8]) {
    if bytes.len() < CRC_BYTES {
        return;
    }
    let mut bytes = BytesMut::from(bytes);
    let checksum = crc32c::crc32c(&bytes[CRC_BYTES..]);
    bytes[..CRC_BYTES].copy_from_slice(&checksum.to_le_bytes());
    let Some(read) = Checkpoint::decode(&bytes.freeze()) else { return };
    assert_eq!(Checkpoint::decode(&read.encode()), Some(read));
}

/// The members of a group.
pub fn members(bytes: &[u8]) {
    let Some(read) = membership::decode(bytes) else { return };
    assert_eq!(membership::decode(&membership::encode(&read)), Some(read));
}

/// A vote.
pub fn ballot(bytes: &[u8]) {
    let Some(read) = vote::decode(bytes) else { return };
    assert_eq!(vote::decode(&vote::encode(&read)), Some(read));
}
