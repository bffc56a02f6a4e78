//! The embedded engine: its tables, their settings, and the bounds on what it keeps in memory.
//!
//! A partition's log has a table of its own, whose keys only grow: compaction moves files instead of rewriting them, and
//! retention drops whole files. Everything else shares a few tables.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry,
};
use fjall::{AbstractTree, KeyspaceCreateOptions, PersistMode};
#[cfg(not(test))]
pub use fjall::{Database, Guard, Keyspace};

use super::batch::{Batch, Op, Table};
use super::engine_log;
use super::index_tables::IndexTables;
use super::keys::{self, GroupId, Round};
#[cfg(test)]
pub use super::simulated::{Database, Guard, Keyspace};
use super::{Config, Error};

/// Memory is measured after this share of the write buffer has been written.
const CHECKS_PER_BUFFER: u64 = 16;
/// The engine seals a journal file only when a table is written. With many partitions no table may be due for long, so
/// one is forced after this many bytes.
const JOURNAL_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// How often a writer that waits for memory looks again.
const MEMORY_POLL: Duration = Duration::from_millis(1);
/// Tables waiting in memory per group before writers wait. At 4 the engine itself waits, in steps of 100 ms.
const SEALED_MAX: usize = 3;
/// With so many the engine itself waits, in steps of 100 ms.
const ENGINE_SEALED_MAX: usize = 4;
/// No full file of a group is begun while this many wait to be written.
const WAITING_FILES_MAX: usize = 2;
/// A table is written early to free space only if that frees at least this share of a full one.
const RECLAIMABLE_SHARE: u64 = 8;

/// The table that holds a group's log rows.
#[derive(Clone)]
pub struct LogTable {
    pub(super) rows: Keyspace,
}

impl fmt::Debug for LogTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogTable").field(&self.rows.name()).finish()
    }
}

/// The open engine. Dropping the last handle writes nothing and closes the files.
pub struct Engine {
    database: Database,
    pub meta: Keyspace,
    pub state: Keyspace,
    pub index: IndexTables,
    system_log: Keyspace,
    partitions: Mutex<HashMap<GroupId, LogTable>>,
    table_bytes: u64,
    write_buffer_bytes: u64,
    /// By the engine's numbers of tables.
    unwritten: Mutex<HashMap<u64, Unwritten>>,
    journal_bytes: u64,
    since_check: AtomicU64,
    since_rotation: AtomicU64,
}

impl Engine {
    /// Opens the engine in `directory`, replaying its journals. Blocking.
    pub fn open(directory: &Path, config: &Config) -> Result<Self, Error> {
        Self::open_with(directory, config, config.flush_threads)
    }

    /// As [`Engine::open`], for one that turns no memory into tables, and merges none. Blocking.
    pub(super) fn open_without_threads(directory: &Path, config: &Config) -> Result<Self, Error> {
        Self::open_with(directory, config, 0)
    }

    fn open_with(directory: &Path, config: &Config, threads: usize) -> Result<Self, Error> {
        engine_log::install();
        let database = Database::builder(directory)
            .cache_size(config.cache_bytes)
            .max_journaling_size(config.journal_bytes)
            .journal_compression(fjall::CompressionType::None)
            .manual_journal_persist(true)
            .worker_threads_unchecked(threads)
            .open()
            .map_err(|source| Error::path("open the tables in", directory, source))?;
        Self::on(database, config)
    }

    /// The tables of an open database. Blocking.
    pub(super) fn on(database: Database, config: &Config) -> Result<Self, Error> {
        let small = |name: &str| {
            database
                .keyspace(name, small_rows)
                .map_err(|source| Error::storage("open a shared table", source))
        };
        let system_log = database
            .keyspace(keys::SYSTEM_LOG, log_rows)
            .map_err(|source| Error::storage("open a shared table", source))?;
        let state = small(keys::STATE)?;
        let engine = Self {
            meta: small(keys::META)?,
            index: IndexTables::open(&database, &state)?,
            state,
            system_log,
            partitions: Mutex::default(),
            table_bytes: config.table_bytes(),
            write_buffer_bytes: config.write_buffer_bytes,
            unwritten: Mutex::default(),
            journal_bytes: config.journal_bytes,
            since_check: AtomicU64::new(0),
            since_rotation: AtomicU64::new(0),
            database,
        };
        for name in engine.database.list_keyspace_names() {
            if let Some(group) = keys::group_of_table(&name) {
                engine.log_table(group)?;
            }
        }
        Ok(engine)
    }

    /// The table of a group's log rows, created when missing. Blocking.
    pub fn log_table(&self, group: GroupId) -> Result<LogTable, Error> {
        if !group.is_partition() {
            return Ok(LogTable { rows: self.system_log.clone() });
        }
        let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = partitions.get(&group) {
            return Ok(table.clone());
        }
        let rows = self
            .database
            .keyspace(&keys::partition_table(group), log_rows)
            .map_err(|source| Error::storage("open a partition's table", source))?;
        let table = LogTable { rows };
        partitions.insert(group, table.clone());
        Ok(table)
    }

    /// Removes a partition's table and all its files. Blocking.
    pub fn delete_partition(&self, group: GroupId) -> Result<(), Error> {
        let table = self.partitions.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
        let Some(LogTable { rows }) = table else { return Ok(()) };
        // Journals keep a handle of every table they mention, so without this the files would stay until those
        // journals are gone.
        rows.clear().map_err(|source| Error::storage("empty a partition's table", source))?;
        self.release_files()?;
        self.database
            .delete_keyspace(rows)
            .map_err(|source| Error::storage("delete a partition's table", source))
    }

    /// Whether purged rows take so much space, in the newest file or in memory, that a new file should be begun.
    /// Only then can what is before it be dropped. `index` is that of the last purged row. Blocking, cheap.
    pub fn reclaimable(&self, table: &LogTable, index: u64) -> Reclaimable {
        #[cfg(test)]
        if table.rows.is_simulated() {
            return Reclaimable::Nothing;
        }
        let tree = &table.rows.tree;
        // What was begun before is not done yet.
        if tree.sealed_memtable_count() > 0 {
            return Reclaimable::Nothing;
        }
        let mark = keys::purge_mark(index);
        let worthwhile = |bytes: u64| bytes >= self.table_bytes / RECLAIMABLE_SHARE;
        let memory = tree.active_memtable();
        let last_in_memory = memory.iter().next_back();
        let memory_purged = last_in_memory.is_none_or(|last| last.key.user_key[..] <= mark[..]);
        if memory_purged && worthwhile(memory.size()) {
            return Reclaimable::Memory;
        }
        let version = tree.current_version();
        let newest = version.iter_tables().max_by_key(|file| file.get_highest_seqno());
        match newest {
            Some(file)
                if file.metadata.key_range.max()[..] <= mark[..] && worthwhile(file.metadata.file_size) =>
            {
                if memory_purged {
                    Reclaimable::NewestFile
                } else {
                    Reclaimable::NewestFileBehindRows
                }
            }
            _ => Reclaimable::Nothing,
        }
    }

    /// Begins a new file of a table with what is in memory. The engine's own threads write it.
    pub fn begin_file(&self, table: &LogTable) -> Result<(), Error> {
        table.rows.rotate_memtable().map_err(|source| Error::storage("write a table", source))?;
        Ok(())
    }

    /// Removes the files of a partition's table that hold only rows up to `index`. The newest file stays: the engine
    /// learns from it which journals it no longer needs. Blocking.
    pub fn drop_log_files(&self, table: &LogTable, index: u64) -> Result<bool, Error> {
        #[cfg(test)]
        if table.rows.is_simulated() {
            return Ok(false);
        }
        let version = table.rows.tree.current_version();
        let newest = version.iter_tables().max_by_key(|file| file.get_highest_seqno());
        let Some(newest) = newest else { return Ok(false) };
        let kept = newest.metadata.key_range.min().clone();
        let bound = keys::purge_mark(index);
        let droppable = version.iter_tables().any(|file| {
            let last = file.metadata.key_range.max();
            last[..] <= bound[..] && last[..] < kept[..]
        });
        drop(version);
        if !droppable {
            return Ok(false);
        }
        let doing = "drop purged files";
        if kept[..] <= bound[..] {
            table.rows.tree.drop_range(..kept).map_err(|source| Error::storage(doing, source))?;
        } else {
            table.rows.tree.drop_range(..=bound).map_err(|source| Error::storage(doing, source))?;
        }
        Ok(true)
    }

    /// Makes the engine delete files that nothing refers to any more, which it otherwise does with the next table.
    /// Blocking.
    pub fn release_files(&self) -> Result<(), Error> {
        self.state.rotate_memtable().map_err(|source| Error::storage("write a table", source))?;
        Ok(())
    }

    /// Forgets which table has the index rows of a group, because it has none any more.
    pub fn forget_index_table(&self, group: GroupId) {
        self.index.assign(group, 0);
    }

    /// Has groups that begin keep their index rows in another table than that of `group`. Blocking.
    pub fn leave_index_table(&self, group: GroupId) -> Result<(), Error> {
        self.index.begin_after(&self.database, group)
    }

    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    /// Groups that are noted in the state table, in order. Blocking.
    pub fn groups_with_state(&self) -> Result<BTreeSet<GroupId>, Error> {
        let mut groups = BTreeSet::new();
        // Each group has few keys in this table: its checkpoints are the only ones that can be many.
        for row in self.state.iter() {
            let key = row.key().map_err(|source| Error::storage("list the groups", source))?;
            groups.extend(keys::group_of_exists(&key));
        }
        Ok(groups)
    }

    /// Raft indexes of all checkpoints of a group, in order. Blocking.
    pub fn checkpoints(&self, group: GroupId) -> Result<Vec<u64>, Error> {
        let range = keys::checkpoint(group, 0)..=keys::checkpoint(group, u64::MAX);
        let mut found = Vec::new();
        for row in self.state.range(range) {
            let key = row.key().map_err(|source| Error::storage("list checkpoints", source))?;
            found.extend(keys::checkpoint_index(&key));
        }
        Ok(found)
    }

    /// Partitions that have a table.
    pub fn partitions(&self) -> Vec<GroupId> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Whether the batch must be the first of its round.
    pub fn needs_own_round(&self, batch: &Batch) -> bool {
        batch.ops.iter().any(|op| matches!(op, Op::RemoveLogFrom { .. }))
    }

    /// Writes batches as one atomic unit, to the operating system.
    pub fn write<'a>(&self, batches: impl Iterator<Item = &'a Batch>, round: Round) -> Result<(), Error> {
        let mut unit = self.database.batch().durability(Some(PersistMode::Buffer));
        let mut grown: Vec<&LogTable> = Vec::new();
        for op in batches.flat_map(|batch| &batch.ops) {
            match op {
                Op::Put { table, key, value } => {
                    unit.insert(&self.rows(table), key.clone(), value.clone());
                    if let Table::Log(log) = table
                        && grown.last().is_none_or(|last| last.rows.name() != log.rows.name())
                    {
                        grown.push(log);
                    }
                }
                Op::Remove { table, key } => unit.remove(&self.rows(table), key.clone()),
                Op::RemoveLogFrom { group, log, index } => {
                    for key in log_keys_from(*group, log, *index)? {
                        unit.remove(&log.rows, key);
                    }
                }
            }
        }
        unit.insert(&self.meta, keys::ROUND, &round.encode()[..]);
        self.wait_for_room(&grown)?;
        unit.commit().map_err(|source| Error::storage("write to the journal", source))?;
        grown.into_iter().try_for_each(|log| self.begin_full_file(log))
    }

    /// Waits while a table that is written to has as many memories waiting as the engine allows; after a crash it can have
    /// one from each journal. The engine would wait itself, but also when the threads that write them have failed, and for
    /// ever.
    fn wait_for_room(&self, logs: &[&LogTable]) -> Result<(), Error> {
        #[cfg(test)]
        if self.meta.is_simulated() {
            return Ok(());
        }
        let is_full = |rows: &Keyspace| rows.sealed_memtable_count() >= ENGINE_SEALED_MAX;
        while is_full(&self.meta)
            || is_full(&self.state)
            || logs.iter().any(|log| is_full(&log.rows))
            || self.index.all().iter().any(is_full)
        {
            std::thread::sleep(MEMORY_POLL);
            self.persist_to_system()?;
        }
        Ok(())
    }

    /// An engine whose own threads failed never gets better; this is how it says so.
    fn persist_to_system(&self) -> Result<(), Error> {
        self.database
            .persist(PersistMode::Buffer)
            .map_err(|source| Error::storage("turn memory into tables", source))
    }

    /// Begins a new file of a log's table if enough is in memory for one. While earlier ones still wait to be written,
    /// memory grows instead: the next file is larger, and nobody waits. The engine would do neither, and remembers for
    /// ever how large its files were to be when a table was made.
    fn begin_full_file(&self, log: &LogTable) -> Result<(), Error> {
        #[cfg(test)]
        if log.rows.is_simulated() {
            return Ok(());
        }
        let full = log.rows.tree.active_memtable().size() >= self.table_bytes;
        if full && log.rows.sealed_memtable_count() < WAITING_FILES_MAX {
            // Several may be begun between two looks at all tables, and each counts until it is written.
            let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
            unwritten.entry(log.rows.tree.id()).or_default().look(&log.rows);
            drop(unwritten);
            self.begin_file(log)?;
        }
        Ok(())
    }

    /// Forces everything written so far to the disk.
    pub fn sync(&self) -> Result<(), Error> {
        self.database
            .persist(PersistMode::SyncData)
            .map_err(|source| Error::storage("sync the journal", source))
    }

    /// Keeps memory and journals within their bounds after `bytes` were written: starts turning memory into tables, and
    /// waits while there is too much of it. Returns how long it waited.
    pub fn bound_memory(&self, bytes: u64) -> Result<Duration, Error> {
        let since_check = self.since_check.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.since_rotation.fetch_add(bytes, Ordering::Relaxed);
        if since_check < self.write_buffer_bytes / CHECKS_PER_BUFFER {
            return Ok(Duration::ZERO);
        }
        self.since_check.store(0, Ordering::Relaxed);
        let started = Instant::now();
        let mut waited = false;
        loop {
            let Memory { bytes, crowded } = self.start_flushes()?;
            if !crowded && bytes <= self.write_buffer_bytes {
                break;
            }
            waited = true;
            std::thread::sleep(MEMORY_POLL);
            self.persist_to_system()?;
        }
        Ok(if waited { started.elapsed() } else { Duration::ZERO })
    }

    /// Starts turning the largest tables in memory into files where a bound asks for it.
    fn start_flushes(&self) -> Result<Memory, Error> {
        let mut bytes = 0;
        let mut active = 0;
        let mut crowded = false;
        let mut writing = false;
        let mut growing = Vec::new();
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *unwritten);
        for rows in self.all_tables() {
            let mut memory = before.remove(&rows.tree.id()).unwrap_or_default();
            let size = memory.look(&rows);
            bytes += memory.bytes();
            let sealed = rows.sealed_memtable_count();
            crowded |= sealed >= SEALED_MAX;
            writing |= sealed > 0;
            active += size;
            unwritten.insert(rows.tree.id(), memory);
            if size > 0 {
                growing.push((size, rows));
            }
        }
        drop(unwritten);
        growing.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
        let journals = self
            .database
            .journal_disk_space()
            .map_err(|source| Error::storage("measure the journals", source))?;
        // The engine itself writes what the oldest journal needs. Should that not be enough, everything is written, but not
        // again while that goes on: it would only make many small tables.
        let everything = !writing && journals > self.journal_bytes + 2 * JOURNAL_FILE_BYTES;
        let mut due = self.since_rotation.load(Ordering::Relaxed) >= JOURNAL_FILE_BYTES;
        for (size, rows) in growing {
            if !(everything || due || active > self.write_buffer_bytes / 4 * 3) {
                break;
            }
            rows.rotate_memtable().map_err(|source| Error::storage("write a table", source))?;
            active -= size;
            due = false;
            self.since_rotation.store(0, Ordering::Relaxed);
        }
        Ok(Memory { bytes, crowded })
    }

    /// Bytes in files of tables and journals, files of logs, and finished compactions.
    pub fn usage(&self, directory: &Path) -> Result<(u64, u64, u64), Error> {
        let tables = self.all_tables();
        let used: u64 = tables.iter().map(Keyspace::disk_space).sum();
        let files = tables.iter().filter(|rows| is_log(rows)).map(Keyspace::table_count).sum::<usize>();
        let measured = |source| Error::storage("measure the journals", source);
        let journals = journal_bytes_on_disk(directory).map_err(measured)?;
        let list = bytes_of_list(directory).map_err(measured)?;
        Ok((used + journals + list, files as u64, self.database.compactions_completed() as u64))
    }

    fn all_tables(&self) -> Vec<Keyspace> {
        let mut tables = vec![self.meta.clone(), self.state.clone(), self.system_log.clone()];
        tables.extend(self.index.all());
        let partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        tables.extend(partitions.values().map(|table| table.rows.clone()));
        tables
    }

    /// The rows of a table.
    pub fn rows<'a>(&'a self, table: &'a Table) -> Cow<'a, Keyspace> {
        match table {
            Table::Meta => Cow::Borrowed(&self.meta),
            Table::State => Cow::Borrowed(&self.state),
            Table::Index(group) => Cow::Owned(self.index.of(*group)),
            Table::Log(log) => Cow::Borrowed(&log.rows),
        }
    }
}

fn is_log(rows: &Keyspace) -> bool {
    let name: &str = rows.name();
    name == keys::SYSTEM_LOG || keys::group_of_table(name).is_some()
}

fn log_keys_from(group: GroupId, log: &LogTable, index: u64) -> Result<Vec<Bytes>, Error> {
    log.rows
        .range(keys::log_row(group, index)..=keys::log_row(group, u64::MAX))
        .map(|row| row.key().map(Bytes::from).map_err(|source| Error::storage("read log keys", source)))
        .collect()
}

/// Journals are created with their full size but without blocks, so their length says nothing.
fn journal_bytes_on_disk(directory: &Path) -> std::io::Result<u64> {
    bytes_on_disk(directory, |path| path.extension().is_some_and(|extension| extension == "jnl"))
}

/// Bytes of the engine's own list of tables. It keeps old copies of it until the next start.
fn bytes_of_list(directory: &Path) -> std::io::Result<u64> {
    let list = directory.join("keyspaces/0");
    Ok(bytes_on_disk(&list, |_| true)? + bytes_on_disk(&list.join("tables"), |_| true)?)
}

/// What the files of a directory that are `counted` take of the disk; nothing if it is not there.
fn bytes_on_disk(directory: &Path, counted: impl Fn(&Path) -> bool) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        if counted(&entry.path()) {
            // A file may be deleted between the listing and this look.
            bytes += entry.metadata().map_or(0, |found| found.blocks() * 512);
        }
    }
    Ok(bytes)
}

/// Where purged rows take space that dropping files does not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaimable {
    /// Nowhere, or too little to be worth a file.
    Nothing,
    /// In memory, where nothing else is.
    Memory,
    /// In the newest file, and there are no rows of which a newer one could be made.
    NewestFile,
    /// In the newest file, and there are retained rows in memory.
    NewestFileBehindRows,
}

/// What is in memory and not in files yet.
struct Memory {
    bytes: u64,
    /// Whether a group has too many tables waiting.
    crowded: bool,
}

/// The memory of one table that is not in files yet, the oldest first. The last one grows, the others wait to be written.
///
/// The engine's own sum counts memory once for each version of the table that refers to it, and after it was written until
/// something else is.
#[derive(Default)]
struct Unwritten(VecDeque<(u64, Box<dyn Fn() -> u64 + Send>)>);

impl Unwritten {
    /// Takes note of what the table has now, and gives the bytes of what grows.
    fn look(&mut self, rows: &Keyspace) -> u64 {
        let active = rows.tree.active_memtable();
        if self.0.back().is_none_or(|(id, _)| *id != active.id()) {
            let memory = Arc::downgrade(&active);
            let size = move || memory.upgrade().map_or(0, |memory| memory.size());
            self.0.push_back((active.id(), Box::new(size)));
        }
        // What is begun between two looks is small, or the same table would be crowded.
        let written = self.0.len().saturating_sub(rows.sealed_memtable_count() + 1);
        self.0.drain(..written);
        active.size()
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, size)| size()).sum()
    }
}

/// Large rows, written once, read in order: no filters, no compression (payloads are compressed by producers or not at
/// all). When a file is begun is [`Engine`]'s to say.
fn log_rows() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(u64::MAX)
        .manual_journal_persist(true)
        .data_block_size_policy(BlockSizePolicy::all(16 * 1024))
        .data_block_compression_policy(CompressionPolicy::disabled())
        .index_block_compression_policy(CompressionPolicy::disabled())
        .filter_policy(FilterPolicy::disabled())
        .expect_point_read_hits(true)
}

/// Small rows, read by key and by range.
pub(super) fn small_rows() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(8 * 1024 * 1024)
        .manual_journal_persist(true)
        .data_block_compression_policy(CompressionPolicy::disabled())
        .index_block_compression_policy(CompressionPolicy::disabled())
        .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_counts_once_while_it_waits_and_not_when_it_is_written() {
        const ROWS: u64 = 1_000;
        const ROW_BYTES: usize = 1_000;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let engine = Engine::open(directory.path(), &Config::default()).expect("the engine opens");
        let table = engine.log_table(GroupId::partition(1, 0)).expect("a table");
        let write = |from: u64| {
            for index in from..from + ROWS {
                table.rows.insert(index.to_be_bytes(), vec![7; ROW_BYTES]).expect("a row is written");
            }
        };
        let mut memory = Unwritten::default();
        write(0);
        let first = memory.look(&table.rows);
        assert!(first >= ROWS * ROW_BYTES as u64, "{first}");
        assert_eq!(memory.bytes(), first);

        // Held back, so that what is sealed waits.
        let flushing = table.rows.tree.get_flush_lock();
        table.rows.rotate_memtable().expect("the table is sealed");
        write(ROWS);
        let second = memory.look(&table.rows);
        assert_eq!(memory.bytes(), first + second);
        drop(flushing);

        until_written(&table.rows);
        memory.look(&table.rows);
        assert_eq!(memory.bytes(), second);
    }

    #[test]
    fn files_are_begun_as_large_as_is_configured_now_and_none_while_two_wait() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let open = |table_bytes: u64| {
            let config = Config { table_bytes: Some(table_bytes), ..Config::default() };
            Engine::open(directory.path(), &config).expect("the engine opens")
        };
        let group = GroupId::partition(1, 0);
        let mut round = 0;
        let mut write = |engine: &Engine, bytes: usize| {
            let log = engine.log_table(group).expect("a table");
            round += 1;
            let mut batch = Batch::new();
            batch.put(Table::Log(log), keys::log_row(group, round), vec![7; bytes].into());
            engine.write(std::iter::once(&batch), Round { number: round, synced: 0 }).expect("written");
        };
        let rows = |engine: &Engine| engine.log_table(group).expect("a table").rows;
        let engine = open(32 << 20);
        write(&engine, 2 << 20);
        assert_eq!((rows(&engine).sealed_memtable_count(), rows(&engine).table_count()), (0, 0));
        drop(engine);

        let engine = open(1 << 20);
        let rows = rows(&engine);
        // Held back, so that what is begun waits.
        let held = rows.tree.get_flush_lock();
        for (waiting, growing) in [(1, 0), (2, 0), (2, 1), (2, 2)] {
            write(&engine, 1 << 20);
            let found = (rows.sealed_memtable_count(), rows.tree.active_memtable().size() >> 20);
            assert_eq!(found, (waiting, growing));
        }
        drop(held);
        until_written(&rows);
        write(&engine, 1);
        until_written(&rows);
        assert_eq!(rows.tree.active_memtable().size(), 0, "what has grown is written at the next chance");
    }

    #[test]
    fn a_write_that_waits_for_tables_ends_when_those_cannot_be_written() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let engine = Engine::open(directory.path(), &Config::default()).expect("the engine opens");
        let meta = engine.meta.clone();
        // Held back, so that what is begun waits.
        let held = meta.tree.get_flush_lock();
        for _ in 0..ENGINE_SEALED_MAX {
            meta.insert("row", "value").expect("a row is written");
            meta.rotate_memtable().expect("begun");
        }
        std::fs::rename(directory.path().join("keyspaces"), directory.path().join("aside")).expect("moved");
        let (tell, told) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            let batch = Batch::new();
            tell.send(()).expect("somebody listens");
            let outcome = engine.write(std::iter::once(&batch), Round { number: 1, synced: 0 });
            tell.send(()).expect("somebody listens");
            outcome
        });
        let deadline = Duration::from_secs(30);
        told.recv_timeout(deadline).expect("it writes");
        drop(held);
        told.recv_timeout(deadline).expect("it does not wait for ever");
        writer.join().expect("no panic").expect_err("the tables are gone");
    }

    #[test]
    fn long_journals_have_everything_written_but_not_while_something_is_being_written() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = Config::default();
        let engine = Engine::open(directory.path(), &config).expect("the engine opens");
        let tables =
            [0, 1].map(|number| engine.log_table(GroupId::partition(1, number)).expect("a table").rows);
        let write = || tables.iter().for_each(|rows| rows.insert("row", "value").expect("a row is written"));
        let waiting = || tables.each_ref().map(|rows| rows.sealed_memtable_count());
        let growing = || tables.each_ref().map(|rows| rows.tree.active_memtable().size() > 0);
        write();
        engine.start_flushes().expect("measured");
        assert_eq!(waiting(), [0, 0], "journals are short");

        lengthen_journal(directory.path(), config.journal_bytes + 3 * JOURNAL_FILE_BYTES);
        // Held back, so that what is begun waits.
        let held = tables.each_ref().map(|rows| rows.tree.get_flush_lock());
        engine.start_flushes().expect("measured");
        assert_eq!((waiting(), growing()), ([1, 1], [false, false]));
        write();
        engine.start_flushes().expect("measured");
        assert_eq!((waiting(), growing()), ([1, 1], [true, true]), "what was begun is not written yet");
        drop(held);
        tables.iter().for_each(until_written);

        engine.start_flushes().expect("measured");
        assert_eq!(growing(), [false, false]);
    }

    /// Waits until everything that was begun of a table is written.
    fn until_written(rows: &Keyspace) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while rows.sealed_memtable_count() > 0 {
            assert!(Instant::now() < deadline, "the table is not written");
            std::thread::yield_now();
        }
    }

    /// Makes the only journal so long; it takes no more of the disk than before.
    fn lengthen_journal(directory: &Path, bytes: u64) {
        let files = std::fs::read_dir(directory).expect("a directory").flatten().map(|entry| entry.path());
        let journals: Vec<_> = files.filter(|path| path.extension().is_some_and(|is| is == "jnl")).collect();
        assert_eq!(journals.len(), 1, "{journals:?}");
        let journal = std::fs::OpenOptions::new().write(true).open(&journals[0]).expect("a journal");
        journal.set_len(bytes).expect("a sparse file");
    }
}
