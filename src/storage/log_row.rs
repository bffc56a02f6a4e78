//! One row of a Raft log on disk and on the wire between brokers.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | crc32c of everything that follows, u32 little endian |
//! | 4 | version, 1 |
//! | 5 | kind: 0 blank, 1 command, 2 membership |
//! | 6..8 | reserved, 0 |
//! | 8..16 | term, u64 little endian |
//! | 16..24 | node that leads the term, u64 little endian |
//! | 24..32 | reserved, 0 |
//! | 32.. | payload |
//!
//! The payload is large and is written once: [`CommandBuf`] keeps room for the header in front of it, so the bytes that
//! were built for the proposal are the bytes that go to the journal, to the table and to consumers of the tail.

use bytes::{Bytes, BytesMut};

use super::{Error, GroupId, Position};

/// Bytes of the header in front of every payload.
pub const HEADER_BYTES: usize = 32;

const VERSION: u8 = 1;
const CRC_BYTES: usize = 4;

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An entry without content, written by a new leader.
    Blank,
    /// A command of the group's state machine.
    Command,
    /// A change of the group's members.
    Membership,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Blank => 0,
            Self::Command => 1,
            Self::Membership => 2,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Blank),
            1 => Some(Self::Command),
            2 => Some(Self::Membership),
            _ => None,
        }
    }
}

/// A command being written, with room for the row header in front.
#[derive(Debug)]
pub struct CommandBuf {
    /// INVARIANT: at least `HEADER_BYTES` long.
    bytes: BytesMut,
}

impl CommandBuf {
    /// An empty command with room for `payload_bytes`.
    pub fn with_capacity(payload_bytes: usize) -> Self {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + payload_bytes);
        bytes.resize(HEADER_BYTES, 0);
        Self { bytes }
    }

    /// Appends bytes to the payload.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The buffer, to append to. What is in it already must stay.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// The payload so far.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// The payload so far, to fill in a count or a length after the fact.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADER_BYTES..]
    }

    /// Bytes of payload so far.
    pub fn len(&self) -> usize {
        self.bytes.len() - HEADER_BYTES
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes the command immutable and cheap to clone.
    pub fn freeze(self) -> Command {
        Command { bytes: self.bytes.freeze() }
    }
}

/// A finished command, or the payload of any other entry, that still has room for its row header. A clone shares the
/// bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// INVARIANT: at least `HEADER_BYTES` long.
    bytes: Bytes,
}

impl Command {
    /// Copies a payload that was not built in a [`CommandBuf`].
    pub fn copy_from_slice(payload: &[u8]) -> Self {
        let mut buffer = CommandBuf::with_capacity(payload.len());
        buffer.extend_from_slice(payload);
        buffer.freeze()
    }

    /// The payload, sharing the bytes.
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(HEADER_BYTES..)
    }

    /// Bytes of payload.
    pub fn len(&self) -> usize {
        self.bytes.len() - HEADER_BYTES
    }

    /// Whether the payload is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Raft index.
    pub index: u64,
    /// What the entry is for.
    pub kind: Kind,
    /// Raft term.
    pub term: u64,
    /// Node that led that term.
    pub leader: u64,
    /// The entry's content.
    pub payload: Bytes,
    /// Header and payload.
    bytes: Bytes,
}

impl Row {
    /// Completes a command into a row. No payload is copied when `command` is the last handle on its bytes; otherwise
    /// it is copied once.
    pub fn encode(at: Position, kind: Kind, command: Command) -> Self {
        let mut bytes = command.bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        bytes[CRC_BYTES] = VERSION;
        bytes[5] = kind.code();
        bytes[6..8].fill(0);
        bytes[8..16].copy_from_slice(&at.term.to_le_bytes());
        bytes[16..24].copy_from_slice(&at.leader.to_le_bytes());
        bytes[24..HEADER_BYTES].fill(0);
        let checksum = crc32c::crc32c(&bytes[CRC_BYTES..]);
        bytes[..CRC_BYTES].copy_from_slice(&checksum.to_le_bytes());
        let bytes = bytes.freeze();
        Self {
            index: at.index,
            kind,
            term: at.term,
            leader: at.leader,
            payload: bytes.slice(HEADER_BYTES..),
            bytes,
        }
    }

    /// Reads a row back and verifies its checksum. The payload shares `bytes`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a single bit differs from what was encoded.
    pub fn decode(group: GroupId, index: u64, bytes: Bytes) -> Result<Self, Error> {
        let corrupt = |what| Error::Corrupt { group, index, what };
        if bytes.len() < HEADER_BYTES {
            return Err(corrupt("it is shorter than its header"));
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        if crc32c::crc32c(&bytes[CRC_BYTES..]) != (word(0) & 0xffff_ffff) as u32 {
            return Err(corrupt("its checksum does not match"));
        }
        if bytes[CRC_BYTES] != VERSION {
            return Err(corrupt("its version is unknown"));
        }
        let kind = Kind::from_code(bytes[5]).ok_or_else(|| corrupt("its kind is unknown"))?;
        let (term, leader) = (word(8), word(16));
        Ok(Self { index, kind, term, leader, payload: bytes.slice(HEADER_BYTES..), bytes })
    }

    /// Where the row stands in its log.
    pub fn position(&self) -> Position {
        Position { index: self.index, term: self.term, leader: self.leader }
    }

    /// Header and payload: what is stored, and what a follower may store as it is.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GROUP: GroupId = GroupId::partition(1, 0);

    #[test]
    fn a_row_has_its_documented_bytes() {
        let at = Position { index: 9, term: 2, leader: 3 };
        let row = Row::encode(at, Kind::Command, Command::copy_from_slice(b"abc"));
        let mut expected =
            vec![1, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        expected.extend_from_slice(b"abc");
        assert_eq!(row.bytes()[CRC_BYTES..], expected);
        assert_eq!(row.bytes()[..CRC_BYTES], crc32c::crc32c(&expected).to_le_bytes());
    }

    #[test]
    fn encoding_the_only_handle_copies_nothing() {
        let mut buffer = CommandBuf::with_capacity(4);
        buffer.extend_from_slice(b"abcd");
        let before = buffer.payload().as_ptr();

        let row = Row::encode(Position::default(), Kind::Command, buffer.freeze());

        assert_eq!(row.payload.as_ptr(), before);
    }

    #[test]
    fn encoding_a_shared_command_leaves_the_other_handle_alone() {
        let command = Command::copy_from_slice(b"abcd");
        let other = command.clone();

        let row = Row::encode(Position { index: 1, term: 1, leader: 1 }, Kind::Command, command);

        assert_eq!(row.payload, other.payload());
        assert_eq!(other, Command::copy_from_slice(b"abcd"));
    }

    #[test]
    fn a_short_row_is_corrupt() {
        let result = Row::decode(GROUP, 1, Bytes::from_static(&[0; 31]));
        assert!(matches!(result, Err(Error::Corrupt { index: 1, .. })));
    }

    proptest! {
        #[test]
        fn rows_round_trip(term: u64, leader: u64, payload: Vec<u8>) {
            let at = Position { index: 7, term, leader };
            let row = Row::encode(at, Kind::Membership, Command::copy_from_slice(&payload));
            let read = Row::decode(GROUP, 7, row.bytes().clone()).expect("an encoded row decodes");
            prop_assert_eq!(&read.payload[..], &payload[..]);
            prop_assert_eq!(read, row);
        }

        #[test]
        fn every_flipped_bit_is_found(payload in proptest::collection::vec(any::<u8>(), 0..64), at: usize, bit in 0_u8..8) {
            let row = Row::encode(Position::default(), Kind::Command, Command::copy_from_slice(&payload));
            let mut bytes = row.bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1u8 << bit;
            prop_assert!(Row::decode(GROUP, 7, bytes.into()).is_err());
        }
    }
}
