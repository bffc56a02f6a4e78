//! One group's log and what belongs to it. All reads are blocking, and see what has been written, not what still waits in
//! the commit queue.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::batch::{Batch, Table};
use super::engine::{Guard, LogTable, Reclaimable};
use super::keys::{self, GroupId, IndexRow, Position};
use super::log_row::Row;
use super::store::{REMOVE_CHUNK, Store};
use super::{Durability, Error};

/// A handle of one group's log. Clones are cheap.
#[derive(Clone)]
pub struct Log {
    store: Store,
    group: GroupId,
    table: LogTable,
    /// Highest purged index plus one, shared by all handles of the group. Rows below it may still be in files, but are
    /// never returned.
    start: Arc<AtomicU64>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("group", &self.group).finish_non_exhaustive()
    }
}

impl Log {
    pub(super) fn open(
        store: Store,
        group: GroupId,
        table: LogTable,
        start: Arc<AtomicU64>,
    ) -> Result<Self, Error> {
        let log = Self { store, group, table, start };
        if let Some(purged) = log.purged()? {
            log.start.fetch_max(purged.index + 1, Ordering::AcqRel);
        }
        Ok(log)
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The store that holds the log.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Adds a row to a batch, sharing its bytes.
    pub fn append(&self, batch: &mut Batch, row: &Row) {
        batch.put(Table::Log(self.table.clone()), keys::log_row(self.group, row.index), row.bytes().clone());
    }

    /// Removes every row above `index`, also those that are committed but not yet written when this is called. Rows
    /// that are added later in the same batch stay.
    pub fn truncate_after(&self, batch: &mut Batch, index: u64) {
        if let Some(from) = index.checked_add(1) {
            batch.remove_log_from(self.group, self.table.clone(), from);
        }
    }

    /// Removes every row, as [`Log::truncate_after`] would with an index below the first.
    pub fn clear(&self, batch: &mut Batch) {
        batch.remove_log_from(self.group, self.table.clone(), 0);
    }

    /// Reads rows from `from` up to and without `to`, until their bytes exceed `max_bytes`; at least one if there is
    /// one. Every checksum is verified. Payloads share the engine's memory.
    ///
    /// # Errors
    /// - [`Error::Purged`]: `from` is below the start of the log.
    /// - [`Error::Corrupt`]: a row is damaged, or missing while later ones exist; it names that row.
    /// - [`Error::Storage`].
    pub fn read(&self, from: u64, to: u64, max_bytes: u64) -> Result<Vec<Row>, Error> {
        match self.read_some(from, to, max_bytes)? {
            (rows, None) => Ok(rows),
            (_, Some(error)) => Err(error),
        }
    }

    /// As [`Log::read`], but stops before a row that cannot be read, so that the rows before it can still be served.
    /// Reading from that row on is the error.
    ///
    /// # Errors
    /// As for [`Log::read`], about the row at `from` only.
    pub fn read_intact(&self, from: u64, to: u64, max_bytes: u64) -> Result<Vec<Row>, Error> {
        match self.read_some(from, to, max_bytes)? {
            (rows, Some(error)) if rows.is_empty() => Err(error),
            (rows, _) => Ok(rows),
        }
    }

    /// The rows that can be read, and why there are not more of them if that is an error.
    fn read_some(&self, from: u64, to: u64, max_bytes: u64) -> Result<(Vec<Row>, Option<Error>), Error> {
        self.check_start(from)?;
        let mut rows = Rows { group: self.group, next: from, found: Vec::new(), bytes: 0, max_bytes };
        if from >= to {
            return Ok((rows.found, None));
        }
        let range = keys::log_row(self.group, from)..=keys::log_row(self.group, to - 1);
        for item in self.table.rows.range(range) {
            let outcome = match item.into_inner() {
                Ok((key, value)) => rows.add(keys::log_row_index(self.group, &key), value.into()),
                // The engine reads ahead, so the damage may be in a later row than the one that is due.
                Err(_) => self.read_singly(&mut rows, to),
            };
            match outcome {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    // A purge may have run since the start was checked.
                    self.check_start(from)?;
                    return Ok((rows.found, Some(error)));
                }
            }
        }
        Ok((rows.found, None))
    }

    /// Goes on row by row, so that damage is blamed on the row that has it. Returns whether there is more to read.
    fn read_singly(&self, rows: &mut Rows, to: u64) -> Result<bool, Error> {
        while rows.next < to {
            let found = self.table.rows.get(keys::log_row(self.group, rows.next));
            let Some(value) = found.map_err(|source| read_error(self.group, rows.next, source))? else {
                break;
            };
            if !rows.add(Some(rows.next), value.into())? {
                break;
            }
        }
        Ok(false)
    }

    /// The row of exactly this index.
    ///
    /// # Errors
    /// As for [`Log::read`].
    pub fn get(&self, index: u64) -> Result<Option<Row>, Error> {
        Ok(self.read(index, index.saturating_add(1), 0)?.pop())
    }

    /// Index of the first row, if there is one.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn first_index(&self) -> Result<Option<u64>, Error> {
        let start = self.start.load(Ordering::Acquire);
        let first = self
            .table
            .rows
            .range(keys::log_row(self.group, start)..=keys::log_row(self.group, u64::MAX))
            .next();
        self.index_of(first)
    }

    /// Index of the last row, if there is one.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn last_index(&self) -> Result<Option<u64>, Error> {
        let start = self.start.load(Ordering::Acquire);
        let range = keys::log_row(self.group, start)..=keys::log_row(self.group, u64::MAX);
        self.index_of(self.table.rows.range(range).next_back())
    }

    /// Position of the last row, or of the purge point when no row is left.
    ///
    /// # Errors
    /// As for [`Log::read`].
    pub fn last(&self) -> Result<Option<Position>, Error> {
        match self.last_index()? {
            Some(index) => Ok(self.get(index)?.map(|row| row.position())),
            None => self.purged(),
        }
    }

    /// Up to where rows were purged.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::BadRecord`].
    pub fn purged(&self) -> Result<Option<Position>, Error> {
        self.position(&keys::purged(self.group), "the purge point")
    }

    /// Up to where the log was known to be committed.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::BadRecord`].
    pub fn committed(&self) -> Result<Option<Position>, Error> {
        self.position(&keys::committed(self.group), "the committed position")
    }

    /// Up to where the log reached before [`Store::empty_group`], if that ever happened.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::BadRecord`].
    pub fn promised(&self) -> Result<Option<Position>, Error> {
        self.position(&keys::promised(self.group), "the promised position")
    }

    /// Whether what was acknowledged last may be missing, because the machine ended before it was on disk, and nobody has
    /// [promised](Batch::put_promised) anything since.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn is_doubted(&self) -> Result<bool, Error> {
        Ok(self.store.get(Table::State, &keys::doubted(self.group))?.is_some())
    }

    /// The vote, as it was put.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn vote(&self) -> Result<Option<Bytes>, Error> {
        self.store.get(Table::State, &keys::vote(self.group))
    }

    /// The snapshot, as it was put.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn snapshot(&self) -> Result<Option<Bytes>, Error> {
        self.store.get(Table::State, &keys::snapshot(self.group))
    }

    /// The latest checkpoint at or below a Raft index, with its index.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn checkpoint_at(&self, index: u64) -> Result<Option<(u64, Bytes)>, Error> {
        let range = keys::checkpoint(self.group, 0)..=keys::checkpoint(self.group, index);
        let Some(row) = self.store.engine().state.range(range).next_back() else { return Ok(None) };
        let (key, value) = row.into_inner().map_err(|source| Error::storage("read a checkpoint", source))?;
        Ok(keys::checkpoint_index(&key).map(|found| (found, value.into())))
    }

    /// Raft indexes of all checkpoints, in order.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn checkpoints(&self) -> Result<Vec<u64>, Error> {
        self.store.engine().checkpoints(self.group)
    }

    /// The index row that covers an offset: the last one that starts at or below it.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::BadRecord`].
    pub fn index_at(&self, offset: u64) -> Result<Option<IndexRow>, Error> {
        self.index_rows(0, offset).next_back().transpose()
    }

    /// Index rows from `offset` on, at most `max`.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::BadRecord`].
    pub fn index_from(&self, offset: u64, max: usize) -> Result<Vec<IndexRow>, Error> {
        self.index_rows(offset, u64::MAX).take(max).collect()
    }

    /// The last index row.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::BadRecord`].
    pub fn last_index_row(&self) -> Result<Option<IndexRow>, Error> {
        self.index_at(u64::MAX)
    }

    /// The first index row whose entry was appended at or after a time, found by halving the offsets in between.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::BadRecord`].
    pub fn index_at_time(&self, append_time_ms: i64) -> Result<Option<IndexRow>, Error> {
        let Some(first) = self.index_from(0, 1)?.pop() else { return Ok(None) };
        if first.append_time_ms >= append_time_ms {
            return Ok(Some(first));
        }
        let Some(last) = self.last_index_row()?.filter(|last| last.append_time_ms >= append_time_ms) else {
            return Ok(None);
        };
        // INVARIANT: the row at `early` is before the time, the row at `late` is not.
        let (mut early, mut late) = (first.offset, last);
        while let Some(middle) = self.row_between(early, late.offset)? {
            if middle.append_time_ms >= append_time_ms {
                late = middle;
            } else {
                early = middle.offset;
            }
        }
        Ok(Some(late))
    }

    /// Reads the index rows from `offset` on, so many of them, to see whether they are intact. Gives where to go on.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::BadRecord`].
    pub fn verify_index(&self, offset: u64, rows: usize) -> Result<Option<u64>, Error> {
        let last = self.index_rows(offset, u64::MAX).take(rows).last().transpose()?;
        Ok(last.and_then(|row| row.offset.checked_add(1)))
    }

    /// Removes all rows up to and with `position`, the index rows that point at them, and the checkpoints below the
    /// last one that is still at or below it, and frees the disk space of every file that held nothing else. A file that
    /// also holds later rows stays until those are purged. The newest file and what is in memory stay for now, see
    /// [`Log::reclaim`]. Lower positions than before change nothing.
    ///
    /// # Errors
    /// [`Error::Storage`], or any error of a commit.
    pub fn purge_to(&self, position: Position) -> Result<(), Error> {
        if self.start.load(Ordering::Acquire) > position.index {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.put(Table::State, keys::purged(self.group), Bytes::copy_from_slice(&position.encode()));
        self.store.commit_blocking(batch, Durability::Sync)?;
        self.start.fetch_max(position.index + 1, Ordering::AcqRel);
        self.remove_index_rows(position.index)?;
        self.remove_checkpoints(position.index)?;
        if !self.group.is_partition() {
            return self.remove_rows(position.index);
        }
        self.drop_files(position)
    }

    /// Whether rows were ever purged. Without that there is nothing to reclaim.
    pub fn has_purged(&self) -> bool {
        self.start.load(Ordering::Acquire) > 0
    }

    /// Frees what a purge could not free at once: files that were still being written, and the newest file and memory
    /// where they hold only purged rows and are not small. It takes several calls, since files are written in the
    /// background: one call begins at most one file, which is small unless purged rows in memory are a part of it.
    /// Blocking, cheap when there is nothing to do.
    ///
    /// # Errors
    /// As for [`Log::purge_to`].
    pub fn reclaim(&self) -> Result<(), Error> {
        if !self.has_purged() || !self.group.is_partition() {
            return Ok(());
        }
        let Some(position) = self.purged()? else { return Ok(()) };
        self.drop_files(position)?;
        let engine = self.store.engine();
        match engine.reclaimable(&self.table, position.index) {
            Reclaimable::Nothing => Ok(()),
            Reclaimable::Memory | Reclaimable::NewestFileBehindRows => engine.begin_file(&self.table),
            Reclaimable::NewestFile => {
                let mut batch = Batch::new();
                let mark = Bytes::copy_from_slice(&keys::purge_mark(position.index));
                batch.put(Table::Log(self.table.clone()), mark, Bytes::new());
                self.store.commit_blocking(batch, Durability::Lazy)?;
                engine.begin_file(&self.table)
            }
        }
    }

    fn drop_files(&self, position: Position) -> Result<(), Error> {
        if self.store.engine().drop_log_files(&self.table, position.index)? {
            // The engine deletes files only once a later write is visible.
            self.store.commit_blocking(self.rewrite_purge_point(position), Durability::Lazy)?;
            self.store.engine().release_files()?;
        }
        Ok(())
    }

    fn rewrite_purge_point(&self, position: Position) -> Batch {
        let mut batch = Batch::new();
        batch.put(Table::State, keys::purged(self.group), Bytes::copy_from_slice(&position.encode()));
        batch
    }

    fn remove_rows(&self, last: u64) -> Result<(), Error> {
        let range = keys::log_row(self.group, 0)..=keys::log_row(self.group, last);
        let mut batch = Batch::new();
        for row in self.table.rows.range(range) {
            let key = row.key().map_err(|source| Error::storage("read log keys", source))?;
            batch.remove(Table::Log(self.table.clone()), key.into());
            self.flush_chunk(&mut batch)?;
        }
        self.store.commit_blocking(batch, Durability::Lazy)
    }

    fn remove_index_rows(&self, last: u64) -> Result<(), Error> {
        let mut batch = Batch::new();
        for row in self.index_rows(0, u64::MAX) {
            let row = row?;
            if row.index > last {
                break;
            }
            batch.remove_index_row(self.group, row.offset);
            self.flush_chunk(&mut batch)?;
        }
        self.store.commit_blocking(batch, Durability::Lazy)
    }

    fn remove_checkpoints(&self, last: u64) -> Result<(), Error> {
        let Some((kept, _)) = self.checkpoint_at(last)? else { return Ok(()) };
        let mut batch = Batch::new();
        for index in self.checkpoints()?.into_iter().take_while(|index| *index < kept) {
            batch.remove_checkpoint(self.group, index);
        }
        self.store.commit_blocking(batch, Durability::Lazy)
    }

    fn flush_chunk(&self, batch: &mut Batch) -> Result<(), Error> {
        if batch.len() < REMOVE_CHUNK {
            return Ok(());
        }
        self.store.commit_blocking(std::mem::take(batch), Durability::Lazy)
    }

    /// A row strictly between two offsets, as near to their middle as there is one.
    fn row_between(&self, early: u64, late: u64) -> Result<Option<IndexRow>, Error> {
        if late - early < 2 {
            return Ok(None);
        }
        let middle = early + (late - early) / 2;
        if let Some(below) = self.index_rows(early + 1, middle).next_back() {
            return below.map(Some);
        }
        if middle + 1 == late {
            return Ok(None);
        }
        self.index_rows(middle + 1, late - 1).next().transpose()
    }

    fn index_rows(
        &self,
        from: u64,
        to: u64,
    ) -> impl DoubleEndedIterator<Item = Result<IndexRow, Error>> + use<> {
        let group = self.group;
        // An empty range must not have its ends the wrong way round.
        let to = keys::index_row(group, to.max(from));
        let (store, rows) = (self.store.clone(), self.store.engine().index.of(group));
        rows.range(keys::index_row(group, from)..=to).map(move |row| {
            let (key, value) = row.into_inner().map_err(|source| store.index_error(group, source))?;
            IndexRow::decode(&key, &value.into()).ok_or(Error::BadRecord { group, what: "an index row" })
        })
    }

    fn position(&self, key: &[u8], what: &'static str) -> Result<Option<Position>, Error> {
        let Some(value) = self.store.get(Table::State, key)? else { return Ok(None) };
        Position::decode(&value).map(Some).ok_or(Error::BadRecord { group: self.group, what })
    }

    fn check_start(&self, from: u64) -> Result<(), Error> {
        let start = self.start.load(Ordering::Acquire);
        if from < start {
            return Err(Error::Purged { group: self.group, requested: from, purged: start - 1 });
        }
        Ok(())
    }

    fn index_of(&self, row: Option<Guard>) -> Result<Option<u64>, Error> {
        let Some(row) = row else { return Ok(None) };
        let key = row.key().map_err(|source| match damage(&source) {
            Some(_) => Error::BadRecord { group: self.group, what: "a block of the log" },
            None => Error::storage("read log keys", source),
        })?;
        Ok(keys::log_row_index(self.group, &key))
    }
}

/// Rows on their way to a reader.
struct Rows {
    group: GroupId,
    /// Index of the row that is due.
    next: u64,
    found: Vec<Row>,
    bytes: u64,
    max_bytes: u64,
}

impl Rows {
    /// Verifies and adds the row that is due. Returns whether another one may follow.
    fn add(&mut self, index: Option<u64>, value: Bytes) -> Result<bool, Error> {
        if index != Some(self.next) {
            return Err(Error::Corrupt { group: self.group, index: self.next, what: "it is missing" });
        }
        let bytes = self.bytes + value.len() as u64;
        if !self.found.is_empty() && bytes > self.max_bytes {
            return Ok(false);
        }
        self.found.push(Row::decode(self.group, self.next, value)?);
        self.bytes = bytes;
        self.next += 1;
        Ok(true)
    }
}

/// Damage that the engine found by itself is corruption of the row that was being read.
fn read_error(group: GroupId, index: u64, source: fjall::Error) -> Error {
    match damage(&source) {
        Some(what) => Error::Corrupt { group, index, what },
        None => Error::storage("read the log", source),
    }
}

/// What about a block is wrong, if that is the engine's error.
pub(super) fn damage(source: &fjall::Error) -> Option<&'static str> {
    use fjall::LsmError;
    match source {
        fjall::Error::Storage(LsmError::ChecksumMismatch { .. }) => {
            Some("the checksum of its block does not match")
        }
        fjall::Error::Storage(
            LsmError::InvalidTag(_)
            | LsmError::InvalidTrailer
            | LsmError::InvalidHeader(_)
            | LsmError::Decompress(_),
        ) => Some("its block cannot be read"),
        _ => None,
    }
}

/// Where each group's log starts, shared by all handles of the group.
#[derive(Default)]
pub(super) struct PurgePoints {
    starts: Mutex<HashMap<GroupId, Arc<AtomicU64>>>,
}

impl PurgePoints {
    pub fn of(&self, group: GroupId) -> Arc<AtomicU64> {
        Arc::clone(self.starts.lock().unwrap_or_else(PoisonError::into_inner).entry(group).or_default())
    }

    pub fn forget(&self, group: GroupId) {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }
}
