//! Stored forms of log entries and state: the messages of `proto/streambus/internal/v1/coordination.proto`.
//!
//! Maps are written in key order, so equal states have equal bytes. A log entry holds a sequence of commands; entries
//! written one after the other are the entry of all their commands.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::BufMut;
use prost::Message as _;

use super::share::{Attempts, OffsetRange, Progress, ShareUpdate};
use super::state::{Command, Committed, Group, Kind, State};
use super::{Error, PartitionKey};
use crate::clock::Timestamp;
use crate::metadata::TopicId;
use crate::proto::internal as stored;
use crate::proto::internal::coordinator_command::Command as StoredCommand;
use crate::proto::internal::stored_share_update::Update as StoredUpdate;
use crate::record::Offset;

/// A log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The term in which the commands were decided. In another one they must not be applied. None: they hold in every
    /// term.
    pub term: Option<u64>,
    /// What to apply, one by one.
    pub commands: Vec<Command>,
}

/// The stored form of a log entry that holds in every term.
pub fn encode_entry(commands: &[Command]) -> Vec<u8> {
    let commands = commands.iter().map(store_command).collect();
    stored::CoordinatorEntry { commands, term: None }.encode_to_vec()
}

/// Makes an entry one that holds in `term` only.
pub fn put_term(entry: &mut impl BufMut, term: u64) {
    let term = stored::CoordinatorEntry { commands: Vec::new(), term: Some(term) }.encode_to_vec();
    entry.put_slice(&term);
}

/// Reads the stored form of a log entry.
///
/// # Errors
/// [`Error::Malformed`]: the bytes are no commands that this version knows.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, Error> {
    let entry = stored::CoordinatorEntry::decode(bytes).map_err(|e| Error::Malformed(e.to_string()))?;
    let commands = entry.commands.into_iter().map(load_command).collect::<Result<_, _>>()?;
    Ok(Entry { term: entry.term, commands })
}

impl State {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        // One group at a time, so that the messages of a large state do not all exist at once.
        let mut bytes = Vec::new();
        for group in self.groups.values() {
            let one = stored::CoordinatorState { groups: vec![store_group(group)] };
            bytes.extend_from_slice(&one.encode_to_vec());
        }
        bytes
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`Error::Malformed`]: the bytes are no state of this format.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let state = stored::CoordinatorState::decode(bytes).map_err(|e| Error::Malformed(e.to_string()))?;
        let groups = state.groups.into_iter().map(|group| load_group(group).map(|g| (g.name.clone(), g)));
        Ok(State { groups: ascending("groups", groups)? })
    }
}

fn missing(field: &str) -> Error {
    Error::Malformed(format!("field `{field}` is missing"))
}

/// A map of entries that come in the order of their keys.
fn ascending<K: Ord, V>(
    what: &str,
    entries: impl Iterator<Item = Result<(K, V), Error>>,
) -> Result<BTreeMap<K, V>, Error> {
    let mut map = BTreeMap::new();
    for entry in entries {
        let (key, value) = entry?;
        if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
            return Err(Error::Malformed(format!("{what} are not in order")));
        }
        map.insert(key, value);
    }
    Ok(map)
}

fn store_command(command: &Command) -> stored::CoordinatorCommand {
    let command = match command {
        Command::CreateGroup { group, kind, at } => StoredCommand::CreateGroup(stored::CreateGroup {
            group: group.to_string(),
            kind: store_kind(*kind).into(),
            at_ms: at.0,
        }),
        Command::CommitOffsets { group, at, offsets } => StoredCommand::CommitOffsets(stored::GroupOffsets {
            group: group.to_string(),
            at_ms: at.0,
            offsets: offsets.iter().map(|(key, offset, text)| store_position(*key, *offset, text)).collect(),
        }),
        Command::InitOffsets { group, at, offsets } => {
            StoredCommand::InitOffsets(store_offsets(group, *at, offsets))
        }
        Command::UpdateShares { group, at, updates } => StoredCommand::UpdateShares(stored::UpdateShares {
            group: group.to_string(),
            at_ms: at.0,
            updates: updates
                .iter()
                .map(|(key, updates)| stored::StoredShareUpdates {
                    partition: Some(store_key(*key)),
                    updates: updates.iter().map(store_update).collect(),
                })
                .collect(),
        }),
        Command::SetOffsets { group, at, offsets } => {
            StoredCommand::SetOffsets(store_offsets(group, *at, offsets))
        }
        Command::Touch { group, at } => {
            StoredCommand::Touch(stored::TouchGroup { group: group.to_string(), at_ms: at.0 })
        }
        Command::DeleteOffsets { group, partitions } => {
            StoredCommand::DeleteOffsets(stored::DeleteGroupOffsets {
                group: group.to_string(),
                partitions: partitions.iter().map(|key| store_key(*key)).collect(),
            })
        }
        Command::DeleteGroup { group } => {
            StoredCommand::DeleteGroup(stored::DeleteGroup { group: group.to_string() })
        }
        Command::ForgetTopic { topic } => {
            StoredCommand::ForgetTopic(stored::ForgetTopic { topic_id: topic.0 })
        }
    };
    stored::CoordinatorCommand { command: Some(command) }
}

fn load_command(command: stored::CoordinatorCommand) -> Result<Command, Error> {
    Ok(match command.command.ok_or_else(|| missing("command"))? {
        StoredCommand::CreateGroup(c) => {
            Command::CreateGroup { group: c.group.into(), kind: load_kind(c.kind)?, at: Timestamp(c.at_ms) }
        }
        StoredCommand::CommitOffsets(c) => Command::CommitOffsets {
            group: c.group.into(),
            at: Timestamp(c.at_ms),
            offsets: c.offsets.into_iter().map(load_position).collect::<Result<_, _>>()?,
        },
        StoredCommand::InitOffsets(c) => Command::InitOffsets {
            group: c.group.as_str().into(),
            at: Timestamp(c.at_ms),
            offsets: load_offsets(c)?,
        },
        StoredCommand::UpdateShares(c) => Command::UpdateShares {
            group: c.group.into(),
            at: Timestamp(c.at_ms),
            updates: c.updates.into_iter().map(load_updates).collect::<Result<_, _>>()?,
        },
        StoredCommand::SetOffsets(c) => Command::SetOffsets {
            group: c.group.as_str().into(),
            at: Timestamp(c.at_ms),
            offsets: load_offsets(c)?,
        },
        StoredCommand::Touch(c) => Command::Touch { group: c.group.into(), at: Timestamp(c.at_ms) },
        StoredCommand::DeleteOffsets(c) => Command::DeleteOffsets {
            group: c.group.into(),
            partitions: c.partitions.into_iter().map(load_key).collect(),
        },
        StoredCommand::DeleteGroup(c) => Command::DeleteGroup { group: c.group.into() },
        StoredCommand::ForgetTopic(c) => Command::ForgetTopic { topic: TopicId(c.topic_id) },
    })
}

fn store_kind(kind: Kind) -> stored::StoredGroupKind {
    match kind {
        Kind::Consumer => stored::StoredGroupKind::Consumer,
        Kind::Share => stored::StoredGroupKind::Share,
    }
}

fn load_kind(kind: i32) -> Result<Kind, Error> {
    match stored::StoredGroupKind::try_from(kind) {
        Ok(stored::StoredGroupKind::Consumer) => Ok(Kind::Consumer),
        Ok(stored::StoredGroupKind::Share) => Ok(Kind::Share),
        Ok(stored::StoredGroupKind::Unspecified) | Err(_) => {
            Err(Error::Malformed(format!("unknown kind {kind} of a group")))
        }
    }
}

fn store_key(key: PartitionKey) -> stored::StoredPartition {
    stored::StoredPartition { topic_id: key.topic.0, partition: key.partition }
}

fn load_key(key: stored::StoredPartition) -> PartitionKey {
    PartitionKey { topic: TopicId(key.topic_id), partition: key.partition }
}

fn present_key(key: Option<stored::StoredPartition>) -> Result<PartitionKey, Error> {
    key.map(load_key).ok_or_else(|| missing("partition"))
}

fn store_position(key: PartitionKey, offset: Offset, metadata: &str) -> stored::StoredPosition {
    stored::StoredPosition {
        partition: Some(store_key(key)),
        offset: offset.0,
        metadata: metadata.to_owned(),
    }
}

fn load_position(position: stored::StoredPosition) -> Result<(PartitionKey, Offset, Arc<str>), Error> {
    let key = present_key(position.partition)?;
    // The empty text is one for all.
    let metadata = if position.metadata.is_empty() { Arc::default() } else { position.metadata.into() };
    Ok((key, Offset(position.offset), metadata))
}

fn store_offsets(group: &str, at: Timestamp, offsets: &[(PartitionKey, Offset)]) -> stored::GroupOffsets {
    let offsets = offsets.iter().map(|(key, offset)| store_position(*key, *offset, "")).collect();
    stored::GroupOffsets { group: group.to_owned(), at_ms: at.0, offsets }
}

fn load_offsets(command: stored::GroupOffsets) -> Result<Vec<(PartitionKey, Offset)>, Error> {
    let pair = |position| load_position(position).map(|(key, offset, _)| (key, offset));
    command.offsets.into_iter().map(pair).collect()
}

fn store_range(range: OffsetRange) -> stored::StoredRange {
    stored::StoredRange { first: range.first.0, last: range.last.0 }
}

fn load_range(range: stored::StoredRange) -> OffsetRange {
    OffsetRange::new(Offset(range.first), Offset(range.last))
}

fn store_attempts(range: OffsetRange, count: u32) -> stored::StoredAttempts {
    stored::StoredAttempts { range: Some(store_range(range)), count }
}

fn load_attempts(attempts: stored::StoredAttempts) -> Result<Attempts, Error> {
    let range = load_range(attempts.range.ok_or_else(|| missing("range"))?);
    Ok(Attempts { range, count: attempts.count })
}

fn store_update(update: &ShareUpdate) -> stored::StoredShareUpdate {
    let update = match *update {
        ShareUpdate::Accept(range) => StoredUpdate::Accept(store_range(range)),
        ShareUpdate::Attempts(range, count) => StoredUpdate::Attempts(store_attempts(range, count)),
        ShareUpdate::AdvanceTo(offset) => StoredUpdate::AdvanceTo(offset.0),
    };
    stored::StoredShareUpdate { update: Some(update) }
}

fn load_update(update: stored::StoredShareUpdate) -> Result<ShareUpdate, Error> {
    Ok(match update.update.ok_or_else(|| missing("update"))? {
        StoredUpdate::Accept(range) => ShareUpdate::Accept(load_range(range)),
        StoredUpdate::Attempts(attempts) => {
            let Attempts { range, count } = load_attempts(attempts)?;
            ShareUpdate::Attempts(range, count)
        }
        StoredUpdate::AdvanceTo(offset) => ShareUpdate::AdvanceTo(Offset(offset)),
    })
}

fn load_updates(updates: stored::StoredShareUpdates) -> Result<(PartitionKey, Vec<ShareUpdate>), Error> {
    let key = present_key(updates.partition)?;
    Ok((key, updates.updates.into_iter().map(load_update).collect::<Result<_, _>>()?))
}

fn store_group(group: &Group) -> stored::GroupRecord {
    let offset = |(key, committed): (&PartitionKey, &Committed)| stored::CommittedRecord {
        position: Some(store_position(*key, committed.offset, &committed.metadata)),
        at_ms: committed.at.0,
    };
    stored::GroupRecord {
        name: group.name.to_string(),
        kind: store_kind(group.kind).into(),
        last_active_ms: group.last_active.0,
        offsets: group.offsets.iter().map(offset).collect(),
        shares: group.shares.iter().map(|(key, progress)| store_progress(*key, progress)).collect(),
    }
}

fn load_group(group: stored::GroupRecord) -> Result<Group, Error> {
    let kind = load_kind(group.kind)?;
    if (kind == Kind::Share && !group.offsets.is_empty())
        || (kind == Kind::Consumer && !group.shares.is_empty())
    {
        return Err(Error::Malformed(format!("group {:?} has what its kind has not", group.name)));
    }
    let offset = |committed: stored::CommittedRecord| {
        let (key, offset, metadata) = load_position(committed.position.ok_or_else(|| missing("position"))?)?;
        Ok((key, Committed { offset, metadata, at: Timestamp(committed.at_ms) }))
    };
    Ok(Group {
        name: group.name.into(),
        kind,
        last_active: Timestamp(group.last_active_ms),
        offsets: ascending("offsets", group.offsets.into_iter().map(offset))?,
        shares: ascending("shares", group.shares.into_iter().map(load_progress))?,
    })
}

fn store_progress(key: PartitionKey, progress: &Progress) -> stored::ProgressRecord {
    stored::ProgressRecord {
        partition: Some(store_key(key)),
        start: progress.start().0,
        done: progress.done_ranges().map(store_range).collect(),
        attempts: progress.attempt_ranges().map(|a| store_attempts(a.range, a.count)).collect(),
    }
}

fn load_progress(progress: stored::ProgressRecord) -> Result<(PartitionKey, Progress), Error> {
    let key = present_key(progress.partition)?;
    let done: Vec<_> = progress.done.into_iter().map(load_range).collect();
    let attempts = progress.attempts.into_iter().map(load_attempts).collect::<Result<Vec<_>, _>>()?;
    Ok((key, Progress::from_parts(progress.start, &done, &attempts)?))
}
