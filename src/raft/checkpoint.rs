//! The state of a group as of one entry: how checkpoints and snapshots are written to disk.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | crc32c of everything that follows |
//! | 4 | version, 1 |
//! | 5 | 1 if the members come from a log entry, 0 if the group has none yet |
//! | 6..8 | reserved, 0 |
//! | 8..32 | last entry applied: index, term, leader, u64 each |
//! | 32..56 | entry the members come from: index, term, leader, u64 each; 0 if none |
//! | 56..60 | length of the members, u32 |
//! | then | members (see [`super::membership`]) |
//! | rest | the machine's state |
//!
//! All integers are little endian.

use bytes::{BufMut, Bytes, BytesMut};

use super::membership;
use super::types::{LogId, SnapshotMeta, StoredMembership, log_id, position};
use crate::storage::Position;

const VERSION: u8 = 1;
pub(super) const CRC_BYTES: usize = 4;
const HEADER_BYTES: usize = 60;

/// The state of a group as of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// The last entry that is part of the state.
    pub(super) applied: LogId,
    /// The members as of that entry.
    pub(super) members: StoredMembership,
    /// What the machine encoded.
    pub(super) state: Bytes,
}

impl Checkpoint {
    /// Writes the checkpoint.
    pub(super) fn encode(&self) -> Bytes {
        let members = membership::encode(self.members.membership());
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + members.len() + self.state.len());
        bytes.put_u32_le(0);
        bytes.put_u8(VERSION);
        bytes.put_u8(u8::from(self.members.log_id().is_some()));
        bytes.put_u16_le(0);
        put_position(&mut bytes, position(&self.applied));
        put_position(&mut bytes, self.members.log_id().as_ref().map(position).unwrap_or_default());
        bytes.put_u32_le(members.len() as u32);
        bytes.put_slice(&members);
        bytes.put_slice(&self.state);
        let checksum = crc32c::crc32c(&bytes[CRC_BYTES..]);
        bytes[..CRC_BYTES].copy_from_slice(&checksum.to_le_bytes());
        bytes.freeze()
    }

    /// Reads a checkpoint; the state shares `bytes`. Nothing if a single bit differs from what was written.
    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER_BYTES>()?;
        if word(header, 0) as u32 != crc32c::crc32c(&bytes[CRC_BYTES..]) || header[4] != VERSION {
            return None;
        }
        let members_at = (header[5] == 1).then(|| log_id(position_at(header, 32)));
        let length = u32::from_le_bytes([header[56], header[57], header[58], header[59]]) as usize;
        let members = membership::decode(bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?)?)?;
        Some(Checkpoint {
            applied: log_id(position_at(header, 8)),
            members: StoredMembership::new(members_at, members),
            state: bytes.slice(HEADER_BYTES + length..),
        })
    }

    /// What openraft wants to know about the checkpoint as a snapshot.
    pub(super) fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: Some(self.applied), last_membership: self.members.clone() }
    }
}

fn put_position(bytes: &mut BytesMut, at: Position) {
    bytes.put_u64_le(at.index);
    bytes.put_u64_le(at.term);
    bytes.put_u64_le(at.leader);
}

fn position_at(header: &[u8; HEADER_BYTES], at: usize) -> Position {
    Position { index: word(header, at), term: word(header, at + 8), leader: word(header, at + 16) }
}

fn word(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::raft::types::Membership;

    fn example() -> Checkpoint {
        let members = Membership::new_with_defaults(vec![BTreeSet::from([1])], BTreeSet::new());
        Checkpoint {
            applied: log_id(Position { index: 9, term: 2, leader: 1 }),
            members: StoredMembership::new(Some(log_id(Position { index: 0, term: 0, leader: 1 })), members),
            state: Bytes::from_static(b"state"),
        }
    }

    #[test]
    fn bytes_are_as_documented() {
        #[rustfmt::skip]
        let golden = [
            1, 1, 0, 0,
            9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
            20, 0, 0, 0,
            1, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            b's', b't', b'a', b't', b'e',
        ];
        let bytes = example().encode();
        assert_eq!(bytes[CRC_BYTES..], golden);
        assert_eq!(bytes[..CRC_BYTES], crc32c::crc32c(&golden).to_le_bytes());
        assert_eq!(Checkpoint::decode(&bytes), Some(example()));
    }

    #[test]
    fn a_group_without_members_survives() {
        let checkpoint = Checkpoint { members: StoredMembership::default(), ..example() };
        assert_eq!(Checkpoint::decode(&checkpoint.encode()), Some(checkpoint));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let bytes = example().encode();
        for at in 0..bytes.len() {
            assert_eq!(Checkpoint::decode(&bytes.slice(..at)), None, "cut to {at} bytes");
            for bit in 0..8 {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= 1 << bit;
                assert_eq!(Checkpoint::decode(&flipped.into()), None, "bit {bit} of byte {at}");
            }
        }
    }
}
