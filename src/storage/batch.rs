//! Rows that become visible and durable together.

use bytes::Bytes;

use super::committer::Permit;
use super::engine::LogTable;
use super::keys::{self, GroupId, IndexRow, Position};

/// Rows to be written atomically, in the order in which they were added. Adding a row does no I/O; only
/// [`super::Store::commit`] writes. When two rows have one key, the later one stands.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) ops: Vec<Op>,
    bytes: u64,
    permit: Option<Permit>,
}

/// One change to one table.
#[derive(Debug)]
pub(super) enum Op {
    Put {
        table: Table,
        key: Bytes,
        value: Bytes,
    },
    Remove {
        table: Table,
        key: Bytes,
    },
    /// Removes the rows of the group at and above an index, as of the moment of writing.
    RemoveLogFrom {
        group: GroupId,
        log: LogTable,
        index: u64,
    },
}

/// The table that a change is for.
#[derive(Clone, Debug)]
pub(super) enum Table {
    Meta,
    State,
    /// That which the group's index rows are in.
    Index(GroupId),
    Log(LogTable),
}

/// What a row costs beside its key and value, in the journal and in memory.
const ROW_OVERHEAD_BYTES: u64 = 64;

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an index row, replacing the row of the same offset.
    pub fn put_index_row(&mut self, group: GroupId, row: &IndexRow) {
        self.put(Table::Index(group), keys::index_row(group, row.offset), row.encode().into());
    }

    /// Removes the index row of exactly this offset, if there is one.
    pub fn remove_index_row(&mut self, group: GroupId, offset: u64) {
        self.remove(Table::Index(group), keys::index_row(group, offset));
    }

    /// Adds the state of the group's machine as of a Raft index.
    pub fn put_checkpoint(&mut self, group: GroupId, index: u64, state: impl Into<Bytes>) {
        self.put(Table::State, keys::checkpoint(group, index), state.into());
    }

    /// Removes the checkpoint of exactly this Raft index, if there is one.
    pub fn remove_checkpoint(&mut self, group: GroupId, index: u64) {
        self.remove(Table::State, keys::checkpoint(group, index));
    }

    /// Replaces the group's vote.
    pub fn put_vote(&mut self, group: GroupId, vote: impl Into<Bytes>) {
        self.put(Table::State, keys::vote(group), vote.into());
    }

    /// Replaces the position up to which the group's log once reached, which then is in no doubt any more.
    pub fn put_promised(&mut self, group: GroupId, promised: Option<Position>) {
        if let Some(promised) = promised {
            self.put(Table::State, keys::promised(group), Bytes::copy_from_slice(&promised.encode()));
        }
        self.remove(Table::State, keys::doubted(group));
    }

    /// Replaces the position up to which the group's log is known to be committed.
    pub fn put_committed(&mut self, group: GroupId, committed: Position) {
        self.put(Table::State, keys::committed(group), Bytes::copy_from_slice(&committed.encode()));
    }

    /// Replaces the group's snapshot.
    pub fn put_snapshot(&mut self, group: GroupId, snapshot: impl Into<Bytes>) {
        self.put(Table::State, keys::snapshot(group), snapshot.into());
    }

    /// Bytes the batch takes in the queue and in the journal, about.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Changes in the batch.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether committing the batch would change nothing.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Ties room in the commit queue to the batch; it is given back when the batch has been written.
    pub fn hold(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    pub(super) fn holds_permit(&self) -> bool {
        self.permit.is_some()
    }

    pub(super) fn put(&mut self, table: Table, key: Bytes, value: Bytes) {
        self.bytes += (key.len() + value.len()) as u64 + ROW_OVERHEAD_BYTES;
        self.ops.push(Op::Put { table, key, value });
    }

    pub(super) fn remove(&mut self, table: Table, key: Bytes) {
        self.bytes += key.len() as u64 + ROW_OVERHEAD_BYTES;
        self.ops.push(Op::Remove { table, key });
    }

    pub(super) fn remove_log_from(&mut self, group: GroupId, log: LogTable, index: u64) {
        self.bytes += ROW_OVERHEAD_BYTES;
        self.ops.push(Op::RemoveLogFrom { group, log, index });
    }
}
