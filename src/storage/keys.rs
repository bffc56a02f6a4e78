//! Every key and every fixed-size value on disk. All integers in keys are big endian, so that byte order is numeric
//! order; integers in values are little endian.
//!
//! | table | key | value |
//! |---|---|---|
//! | `log.<group, 16 hex digits>` (one per partition) | index u64 | log row ([`super::log_row`]) |
//! | `log.<group, 16 hex digits>` | index u64, `0` | empty: rows up to the index are purged ([`purge_mark`]) |
//! | `system_log` (all groups below 2^32) | group u64, index u64 | log row |
//! | `index` | group u64, offset u64 | raft index u64, append time i64 (ms), detail (the rest) |
//! | `index.<number>` | group u64, offset u64 | the same, of groups that do not use `index` ([`super::index_tables`]) |
//! | `state` | group u64, `0` | the group exists: empty, or `emptying` until all but `1` and `6` of it is gone |
//! | `state` | group u64, `1` | vote, opaque |
//! | `state` | group u64, `2` | committed: [`Position`] |
//! | `state` | group u64, `3` | purged: [`Position`] |
//! | `state` | group u64, `4` | snapshot, opaque |
//! | `state` | group u64, `5`, raft index u64 | checkpoint, opaque |
//! | `state` | group u64, `6` | up to where the log reached before it was emptied: [`Position`] |
//! | `state` | group u64, `7` | number u64 of the table that has the group's index rows; `index` if there is none |
//! | `state` | group u64, `8` | empty: the end of the log may be lost ([`super::boot`]) |
//! | `meta` | `m`, name | opaque |
//! | `meta` | `!streambus.boot` | which run of the operating system may lose ends of logs ([`super::boot`]) |
//! | `meta` | `!streambus.round` | round u64, synced round u64 |
//!
//! The last row is part of every write: [`super::journal`] uses it to tell a torn tail from lost data.

use std::fmt;

use bytes::Bytes;

/// Name of the table of small broker-wide records.
pub const META: &str = "meta";
/// Name of the table of per-group records.
pub const STATE: &str = "state";
/// Name of the first table of index rows.
const INDEX: &str = "index";
/// Name of the table of the system groups' log rows.
pub const SYSTEM_LOG: &str = "system_log";
/// Key of the round record in [`META`]. No other key of any table has this length and prefix.
pub const ROUND: &[u8] = b"!streambus.round";
/// Key of the note of the operating system's run in [`META`].
pub const BOOT: &[u8] = b"!streambus.boot";

const PARTITION_PREFIX: &str = "log.";
const EXISTS: u8 = 0;
const VOTE: u8 = 1;
const COMMITTED: u8 = 2;
const PURGED: u8 = 3;
const SNAPSHOT: u8 = 4;
const CHECKPOINT: u8 = 5;
const PROMISED: u8 = 6;
const INDEX_NUMBER: u8 = 7;
const DOUBTED: u8 = 8;

/// One Raft group of this broker: `topic_id << 32 | partition` for a partition, a number below 2^32 for a group of the
/// system itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

impl GroupId {
    /// The control group.
    pub const CONTROL: Self = Self(0);

    /// The group of a topic's partition. Topic ids start at 1.
    pub const fn partition(topic_id: u32, partition: u32) -> Self {
        Self((topic_id as u64) << 32 | partition as u64)
    }

    /// Whether the group is a topic partition and so has a table of its own.
    pub const fn is_partition(self) -> bool {
        self.0 >> 32 != 0
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_partition() {
            write!(f, "{}/{}", self.0 >> 32, self.0 & 0xffff_ffff)
        } else {
            write!(f, "system/{}", self.0)
        }
    }
}

/// A place in a group's log: which entry, and the leadership that wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// Node that led that term.
    pub leader: u64,
}

impl Position {
    const BYTES: usize = 24;

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut value = [0; Self::BYTES];
        value[..8].copy_from_slice(&self.index.to_le_bytes());
        value[8..16].copy_from_slice(&self.term.to_le_bytes());
        value[16..].copy_from_slice(&self.leader.to_le_bytes());
        value
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let value: &[u8; Self::BYTES] = value.try_into().ok()?;
        Some(Self { index: u64_le(value, 0), term: u64_le(value, 8), leader: u64_le(value, 16) })
    }
}

/// Where the records from `offset` on are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexRow {
    /// Offset of the first record that the row describes; the row's key.
    pub offset: u64,
    /// Raft index of the entry that holds the records. Never falls as offsets rise.
    pub index: u64,
    /// When the leader appended the entry, in milliseconds since 1970. Never falls as offsets rise.
    pub append_time_ms: i64,
    /// What else the owner of the log wants to know, opaque here.
    pub detail: Bytes,
}

impl IndexRow {
    const FIXED_BYTES: usize = 16;

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(Self::FIXED_BYTES + self.detail.len());
        value.extend_from_slice(&self.index.to_le_bytes());
        value.extend_from_slice(&self.append_time_ms.to_le_bytes());
        value.extend_from_slice(&self.detail);
        value
    }

    pub(super) fn decode(key: &[u8], value: &Bytes) -> Option<Self> {
        if key.len() != 16 || value.len() < Self::FIXED_BYTES {
            return None;
        }
        Some(Self {
            offset: u64_be(key, 8),
            index: u64_le(value, 0),
            append_time_ms: i64::from_le_bytes(value[8..16].try_into().ok()?),
            detail: value.slice(Self::FIXED_BYTES..),
        })
    }
}

/// The record in every write: which write it is, and up to which one everything was on disk before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    pub number: u64,
    pub synced: u64,
}

impl Round {
    pub fn encode(self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.number.to_le_bytes());
        value[8..].copy_from_slice(&self.synced.to_le_bytes());
        value
    }

    pub fn decode(value: &[u8]) -> Option<Self> {
        (value.len() == 16).then(|| Self { number: u64_le(value, 0), synced: u64_le(value, 8) })
    }
}

/// Name of a partition's own table.
pub fn partition_table(group: GroupId) -> String {
    format!("{PARTITION_PREFIX}{:016x}", group.0)
}

/// The group whose own table has this name.
pub fn group_of_table(name: &str) -> Option<GroupId> {
    let digits = name.strip_prefix(PARTITION_PREFIX)?;
    u64::from_str_radix(digits, 16).ok().map(GroupId)
}

/// Name of a table of index rows.
pub fn index_table(number: u64) -> String {
    if number == 0 { INDEX.to_owned() } else { format!("{INDEX}.{number}") }
}

/// The number of the table of index rows that has this name.
pub fn number_of_index_table(name: &str) -> Option<u64> {
    match name.strip_prefix(INDEX)? {
        "" => Some(0),
        rest => rest.strip_prefix('.')?.parse().ok(),
    }
}

/// Key of a log row in its group's table.
pub fn log_row(group: GroupId, index: u64) -> Bytes {
    if group.is_partition() { Bytes::copy_from_slice(&index.to_be_bytes()) } else { pair(group, index) }
}

/// Raft index in a key made by [`log_row`].
pub fn log_row_index(group: GroupId, key: &[u8]) -> Option<u64> {
    let length = if group.is_partition() { 8 } else { 16 };
    (key.len() == length).then(|| u64_be(key, length - 8))
}

/// Key behind a partition's log row of an index and before the next one. An empty row with this key can follow the
/// purge of everything up to the index, as the newest row of a table that has no other.
pub fn purge_mark(index: u64) -> [u8; 9] {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&index.to_be_bytes());
    key
}

/// Key of an index row.
pub fn index_row(group: GroupId, offset: u64) -> Bytes {
    pair(group, offset)
}

/// Start of every key of a group in the shared tables.
pub fn group_prefix(group: GroupId) -> [u8; 8] {
    group.0.to_be_bytes()
}

/// Key of the record that says that the group exists.
pub fn exists(group: GroupId) -> Bytes {
    state(group, EXISTS)
}

/// Group in a key made by [`exists`]; nothing for any other key of the table.
pub fn group_of_exists(key: &[u8]) -> Option<GroupId> {
    (key.len() == 9 && key[8] == EXISTS).then(|| GroupId(u64_be(key, 0)))
}

/// Key of the vote.
pub fn vote(group: GroupId) -> Bytes {
    state(group, VOTE)
}

/// Whether a key was made by [`vote`].
#[cfg(test)]
pub fn is_vote(key: &[u8]) -> bool {
    key.len() == 9 && key[8] == VOTE
}

/// Key of the position up to which an emptied log reached.
pub fn promised(group: GroupId) -> Bytes {
    state(group, PROMISED)
}

/// Group in a key made by [`promised`]; nothing for any other key of the table.
pub fn group_of_promised(key: &[u8]) -> Option<GroupId> {
    (key.len() == 9 && key[8] == PROMISED).then(|| GroupId(u64_be(key, 0)))
}

/// Key of the number of the table that has the group's index rows.
pub fn index_number(group: GroupId) -> Bytes {
    state(group, INDEX_NUMBER)
}

/// Group in a key made by [`index_number`]; nothing for any other key of the table.
pub fn group_of_index_number(key: &[u8]) -> Option<GroupId> {
    (key.len() == 9 && key[8] == INDEX_NUMBER).then(|| GroupId(u64_be(key, 0)))
}

/// The value of a key made by [`index_number`].
pub fn encode_index_number(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_le_bytes())
}

/// The number in a value made by [`encode_index_number`].
pub fn decode_index_number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_le_bytes)
}

/// Key of the record that says that the end of the group's log may be lost.
pub fn doubted(group: GroupId) -> Bytes {
    state(group, DOUBTED)
}

/// Key of the committed position.
pub fn committed(group: GroupId) -> Bytes {
    state(group, COMMITTED)
}

/// Key of the purged position.
pub fn purged(group: GroupId) -> Bytes {
    state(group, PURGED)
}

/// Key of the snapshot.
pub fn snapshot(group: GroupId) -> Bytes {
    state(group, SNAPSHOT)
}

/// Key of the checkpoint as of a Raft index.
pub fn checkpoint(group: GroupId, index: u64) -> Bytes {
    let mut key = [0; 17];
    key[..8].copy_from_slice(&group.0.to_be_bytes());
    key[8] = CHECKPOINT;
    key[9..].copy_from_slice(&index.to_be_bytes());
    Bytes::copy_from_slice(&key)
}

/// Raft index in a key made by [`checkpoint`].
pub fn checkpoint_index(key: &[u8]) -> Option<u64> {
    (key.len() == 17 && key[8] == CHECKPOINT).then(|| u64_be(key, 9))
}

/// Key of a broker-wide record.
pub fn meta(name: &str) -> Bytes {
    let mut key = Vec::with_capacity(1 + name.len());
    key.push(b'm');
    key.extend_from_slice(name.as_bytes());
    key.into()
}

fn state(group: GroupId, kind: u8) -> Bytes {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&group.0.to_be_bytes());
    key[8] = kind;
    Bytes::copy_from_slice(&key)
}

fn pair(group: GroupId, number: u64) -> Bytes {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&group.0.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    Bytes::copy_from_slice(&key)
}

fn u64_be(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(number)
}

fn u64_le(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_have_their_documented_bytes() {
        let partition = GroupId::partition(1, 2);
        let system = GroupId(3);
        assert_eq!(partition_table(partition), "log.0000000100000002");
        assert_eq!(&log_row(partition, 0x0102)[..], [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(&log_row(system, 0x0102)[..], [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(&index_row(partition, 5)[..], [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 5]);
        assert_eq!(&exists(partition)[..], [0, 0, 0, 1, 0, 0, 0, 2, 0]);
        assert_eq!(&vote(partition)[..], [0, 0, 0, 1, 0, 0, 0, 2, 1]);
        assert_eq!(&committed(partition)[..], [0, 0, 0, 1, 0, 0, 0, 2, 2]);
        assert_eq!(&purged(partition)[..], [0, 0, 0, 1, 0, 0, 0, 2, 3]);
        assert_eq!(&promised(partition)[..], [0, 0, 0, 1, 0, 0, 0, 2, 6]);
        assert_eq!(&index_number(partition)[..], [0, 0, 0, 1, 0, 0, 0, 2, 7]);
        assert_eq!(&doubted(partition)[..], [0, 0, 0, 1, 0, 0, 0, 2, 8]);
        assert_eq!([0, 12].map(index_table), ["index", "index.12"]);
        assert_eq!(&snapshot(partition)[..], [0, 0, 0, 1, 0, 0, 0, 2, 4]);
        assert_eq!(&checkpoint(partition, 9)[..], [0, 0, 0, 1, 0, 0, 0, 2, 5, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(&meta("broker")[..], b"mbroker");
    }

    #[test]
    fn fixed_values_have_their_documented_bytes() {
        let position = Position { index: 1, term: 2, leader: 3 };
        assert_eq!(
            position.encode(),
            [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(Round { number: 1, synced: 2 }.encode(), [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let row = IndexRow { offset: 7, index: 1, append_time_ms: -2, detail: Bytes::from_static(b"d") };
        assert_eq!(row.encode(), [1, 0, 0, 0, 0, 0, 0, 0, 254, 255, 255, 255, 255, 255, 255, 255, b'd']);
    }

    #[test]
    fn short_values_are_not_decoded() {
        assert_eq!(Position::decode(&[0; 23]), None);
        assert_eq!(Round::decode(&[0; 15]), None);
        assert_eq!(decode_index_number(&[0; 7]), None);
        assert_eq!(IndexRow::decode(&[0; 16], &Bytes::from_static(&[0; 15])), None);
    }

    proptest! {
        #[test]
        fn key_order_is_numeric_order(a: (u64, u64), b: (u64, u64)) {
            let (left, right) = (index_row(GroupId(a.0), a.1), index_row(GroupId(b.0), b.1));
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            let group = GroupId(a.0);
            prop_assert_eq!(log_row(group, a.1).cmp(&log_row(group, b.1)), a.1.cmp(&b.1));
            prop_assert_eq!(checkpoint(group, a.1).cmp(&checkpoint(group, b.1)), a.1.cmp(&b.1));
        }

        #[test]
        fn keys_and_values_round_trip(group: u64, number: u64, term: u64, time: i64, detail: Vec<u8>) {
            let group = GroupId(group);
            prop_assert_eq!(log_row_index(group, &log_row(group, number)), Some(number));
            prop_assert_eq!(checkpoint_index(&checkpoint(group, number)), Some(number));
            prop_assert_eq!(group_of_exists(&exists(group)), Some(group));
            prop_assert_eq!(group_of_table(&partition_table(group)), Some(group));
            prop_assert_eq!(number_of_index_table(&index_table(number)), Some(number));
            prop_assert_eq!(group_of_index_number(&index_number(group)), Some(group));
            prop_assert_eq!(decode_index_number(&encode_index_number(number)), Some(number));
            let position = Position { index: number, term, leader: group.0 };
            prop_assert_eq!(Position::decode(&position.encode()), Some(position));
            let row = IndexRow { offset: number, index: term, append_time_ms: time, detail: detail.into() };
            prop_assert_eq!(IndexRow::decode(&index_row(group, number), &row.encode().into()), Some(row));
        }
    }
}
