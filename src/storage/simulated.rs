//! A disk in memory, for tests that decide what a crash leaves of it. In test builds the types here stand in front of the
//! engine's own, which they pass everything on to unless the store was opened on a [`Disk`].
//!
//! A write of the committer, a *round*, is atomic, as the engine's journal makes it: after a crash it is there or not.
//! What is written but not synced may be lost, from the end: the rounds that survive are a prefix of those written.

use std::collections::BTreeMap;
use std::io;
use std::ops::{Bound, Deref, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fjall::{CompressionType, KeyspaceCreateOptions, KvPair, PersistMode, Slice, UserKey, UserValue};

use super::keys::{self, GroupId};

type Rows = BTreeMap<Bytes, Bytes>;

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Every write fails.
    pub writes_fail: bool,
    /// A sync says that it is done and does nothing.
    pub syncs_lie: bool,
}

/// A disk. Clones share it.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Content>>);

#[derive(Clone, Default)]
struct Content {
    tables: BTreeMap<Arc<str>, Rows>,
    /// What takes back each round that is not synced, oldest first.
    unsynced: Vec<Vec<Change>>,
    faults: Faults,
}

/// A row as it becomes, or was.
#[derive(Clone)]
pub struct Change {
    table: Arc<str>,
    key: Bytes,
    value: Option<Bytes>,
}

impl Disk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins or ends faults.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// The disk after a crash. `survive` is told how many rounds are not synced, and says how many of them the crash
    /// leaves, counted from the oldest. Whoever used the disk before goes on with a copy that nobody looks at.
    pub fn crash(&self, survive: impl FnOnce(usize) -> usize) -> Disk {
        let mut content = self.lock().clone();
        let survivors = survive(content.unsynced.len());
        for round in content.unsynced.split_off(survivors).into_iter().rev() {
            for change in round.into_iter().rev() {
                content.put(change);
            }
        }
        content.unsynced.clear();
        content.faults.writes_fail = false;
        Disk(Arc::new(Mutex::new(content)))
    }

    /// Forgets every vote, as no disk may.
    pub fn forget_votes(&self) {
        if let Some(rows) = self.lock().tables.get_mut(keys::STATE) {
            rows.retain(|key, _| !keys::is_vote(key));
        }
    }

    /// Whether a crash would leave the log row.
    pub fn has_durably(&self, group: GroupId, index: u64) -> bool {
        let content = self.lock();
        let (table, key) = (keys::partition_table(group), keys::log_row(group, index));
        let rows = content.tables.get(table.as_str());
        let unsynced = |change: &Change| *change.table == *table && change.key[..] == key[..];
        rows.is_some_and(|rows| rows.contains_key(&key[..]))
            && !content.unsynced.iter().flatten().any(unsynced)
    }

    /// Turns the last byte of a partition's log row around, if there is one.
    pub fn damage_row(&self, group: GroupId, index: u64) -> bool {
        let mut content = self.lock();
        let table = content.tables.get_mut(keys::partition_table(group).as_str());
        let Some(row) = table.and_then(|rows| rows.get_mut(&keys::log_row(group, index)[..])) else {
            return false;
        };
        let mut bytes = row.to_vec();
        if let Some(last) = bytes.last_mut() {
            *last ^= 0x55;
        }
        *row = bytes.into();
        true
    }

    fn write(&self, round: Vec<Change>) -> fjall::Result<()> {
        let mut content = self.lock();
        if content.faults.writes_fail {
            return Err(fjall::Error::Io(io::Error::other("the simulated disk failed")));
        }
        let undo = round.into_iter().map(|change| content.put(change)).collect();
        content.unsynced.push(undo);
        Ok(())
    }

    fn sync(&self) -> fjall::Result<()> {
        let mut content = self.lock();
        if content.faults.writes_fail {
            return Err(fjall::Error::Io(io::Error::other("the simulated disk failed")));
        }
        if !content.faults.syncs_lie {
            content.unsynced.clear();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    /// Makes a change, and gives what takes it back.
    fn put(&mut self, change: Change) -> Change {
        let Change { table, key, value } = change;
        let rows = self.tables.entry(Arc::clone(&table)).or_default();
        let before = match value {
            Some(value) => rows.insert(key.clone(), value),
            None => rows.remove(&key),
        };
        Change { table, key, value: before }
    }
}

/// Stands for `fjall::Database`.
pub enum Database {
    /// The engine's own.
    Fjall(fjall::Database),
    /// Tables on a simulated disk.
    Simulated(Disk),
}

impl Deref for Database {
    type Target = fjall::Database;

    fn deref(&self) -> &fjall::Database {
        match self {
            Database::Fjall(database) => database,
            Database::Simulated(_) => panic!("a simulated disk has no files"),
        }
    }
}

/// Stands for `fjall::DatabaseBuilder`.
pub struct Builder(fjall::DatabaseBuilder<fjall::Database>);

impl Builder {
    pub fn cache_size(self, bytes: u64) -> Self {
        Builder(self.0.cache_size(bytes))
    }

    pub fn max_journaling_size(self, bytes: u64) -> Self {
        Builder(self.0.max_journaling_size(bytes))
    }

    pub fn journal_compression(self, kind: CompressionType) -> Self {
        Builder(self.0.journal_compression(kind))
    }

    pub fn manual_journal_persist(self, flag: bool) -> Self {
        Builder(self.0.manual_journal_persist(flag))
    }

    pub fn worker_threads_unchecked(self, count: usize) -> Self {
        Builder(self.0.worker_threads_unchecked(count))
    }

    pub fn open(self) -> fjall::Result<Database> {
        Ok(Database::Fjall(self.0.open()?))
    }
}

impl Database {
    pub fn builder(path: &Path) -> Builder {
        Builder(fjall::Database::builder(path))
    }

    pub fn keyspace(
        &self,
        name: &str,
        options: impl FnOnce() -> KeyspaceCreateOptions,
    ) -> fjall::Result<Keyspace> {
        match self {
            Database::Fjall(database) => Ok(Keyspace::Fjall(database.keyspace(name, options)?)),
            Database::Simulated(disk) => {
                Ok(Keyspace::Simulated(Table { disk: disk.clone(), name: name.into() }))
            }
        }
    }

    pub fn list_keyspace_names(&self) -> Vec<String> {
        match self {
            Database::Fjall(database) => {
                database.list_keyspace_names().iter().map(|name| (**name).to_owned()).collect()
            }
            Database::Simulated(disk) => disk.lock().tables.keys().map(|name| name.to_string()).collect(),
        }
    }

    pub fn delete_keyspace(&self, keyspace: Keyspace) -> fjall::Result<()> {
        match (self, keyspace) {
            (Database::Fjall(database), Keyspace::Fjall(keyspace)) => database.delete_keyspace(keyspace),
            (_, Keyspace::Simulated(table)) => {
                table.disk.lock().tables.remove(&table.name);
                Ok(())
            }
            (Database::Simulated(_), _) => Ok(()),
        }
    }

    pub fn batch(&self) -> WriteBatch {
        match self {
            Database::Fjall(database) => WriteBatch::Fjall(database.batch()),
            Database::Simulated(disk) => WriteBatch::Simulated(disk.clone(), Vec::new()),
        }
    }

    pub fn persist(&self, mode: PersistMode) -> fjall::Result<()> {
        match self {
            Database::Fjall(database) => database.persist(mode),
            Database::Simulated(_) if mode == PersistMode::Buffer => Ok(()),
            Database::Simulated(disk) => disk.sync(),
        }
    }
}

/// Stands for `fjall::OwnedWriteBatch`.
pub enum WriteBatch {
    Fjall(fjall::OwnedWriteBatch),
    Simulated(Disk, Vec<Change>),
}

impl WriteBatch {
    pub fn durability(self, mode: Option<PersistMode>) -> Self {
        match self {
            WriteBatch::Fjall(batch) => WriteBatch::Fjall(batch.durability(mode)),
            simulated @ WriteBatch::Simulated(..) => simulated,
        }
    }

    pub fn insert<K: Into<UserKey>, V: Into<UserValue>>(&mut self, keyspace: &Keyspace, key: K, value: V) {
        match (self, keyspace) {
            (WriteBatch::Fjall(batch), keyspace) => batch.insert(keyspace, key, value),
            (WriteBatch::Simulated(_, changes), Keyspace::Simulated(table)) => {
                changes.push(table.change(key, Some(Bytes::from(value.into()))));
            }
            (WriteBatch::Simulated(..), Keyspace::Fjall(_)) => panic!("a table of another store"),
        }
    }

    pub fn remove<K: Into<UserKey>>(&mut self, keyspace: &Keyspace, key: K) {
        match (self, keyspace) {
            (WriteBatch::Fjall(batch), keyspace) => batch.remove(keyspace, key),
            (WriteBatch::Simulated(_, changes), Keyspace::Simulated(table)) => {
                changes.push(table.change(key, None));
            }
            (WriteBatch::Simulated(..), Keyspace::Fjall(_)) => panic!("a table of another store"),
        }
    }

    pub fn commit(self) -> fjall::Result<()> {
        match self {
            WriteBatch::Fjall(batch) => batch.commit(),
            WriteBatch::Simulated(disk, changes) => disk.write(changes),
        }
    }
}

/// Stands for `fjall::Keyspace`.
#[derive(Clone)]
pub enum Keyspace {
    Fjall(fjall::Keyspace),
    Simulated(Table),
}

/// A table on a simulated disk.
#[derive(Clone)]
pub struct Table {
    disk: Disk,
    name: Arc<str>,
}

impl Deref for Keyspace {
    type Target = fjall::Keyspace;

    fn deref(&self) -> &fjall::Keyspace {
        match self {
            Keyspace::Fjall(keyspace) => keyspace,
            Keyspace::Simulated(_) => panic!("a simulated disk has no files"),
        }
    }
}

impl Keyspace {
    pub fn is_simulated(&self) -> bool {
        matches!(self, Keyspace::Simulated(_))
    }

    pub fn name(&self) -> &str {
        match self {
            Keyspace::Fjall(keyspace) => keyspace.name(),
            Keyspace::Simulated(table) => &table.name,
        }
    }

    pub fn get<K: AsRef<[u8]>>(&self, key: K) -> fjall::Result<Option<UserValue>> {
        match self {
            Keyspace::Fjall(keyspace) => keyspace.get(key),
            Keyspace::Simulated(table) => {
                let content = table.disk.lock();
                let value = content.tables.get(&table.name).and_then(|rows| rows.get(key.as_ref()));
                Ok(value.cloned().map(Slice::from))
            }
        }
    }

    pub fn range<K: AsRef<[u8]>, R: RangeBounds<K>>(&self, range: R) -> Iter {
        match self {
            Keyspace::Fjall(keyspace) => Iter::Fjall(keyspace.range(range)),
            Keyspace::Simulated(table) => {
                let own = |bound: Bound<&K>| bound.map(|key: &K| Bytes::copy_from_slice(key.as_ref()));
                let (start, end) = (own(range.start_bound()), own(range.end_bound()));
                Iter::Simulated(Cursor { table: table.clone(), start, end })
            }
        }
    }

    pub fn prefix<K: AsRef<[u8]>>(&self, prefix: K) -> Iter {
        match self {
            Keyspace::Fjall(keyspace) => Iter::Fjall(keyspace.prefix(prefix)),
            Keyspace::Simulated(table) => {
                let start = Bytes::copy_from_slice(prefix.as_ref());
                let mut end = start.to_vec();
                while end.last() == Some(&u8::MAX) {
                    end.pop();
                }
                let end = match end.last_mut() {
                    Some(last) => {
                        *last += 1;
                        Bound::Excluded(Bytes::from(end))
                    }
                    None => Bound::Unbounded,
                };
                Iter::Simulated(Cursor { table: table.clone(), start: Bound::Included(start), end })
            }
        }
    }

    pub fn iter(&self) -> Iter {
        match self {
            Keyspace::Fjall(keyspace) => Iter::Fjall(keyspace.iter()),
            Keyspace::Simulated(_) => self.range::<&[u8], _>(..),
        }
    }

    /// A simulated disk has no files, so nothing is written anew.
    pub fn rotate_memtable(&self) -> fjall::Result<bool> {
        match self {
            Keyspace::Fjall(keyspace) => keyspace.rotate_memtable(),
            Keyspace::Simulated(_) => Ok(false),
        }
    }

    pub fn clear(&self) -> fjall::Result<()> {
        match self {
            Keyspace::Fjall(keyspace) => keyspace.clear(),
            Keyspace::Simulated(table) => {
                table.disk.lock().tables.remove(&table.name);
                Ok(())
            }
        }
    }

    pub fn disk_space(&self) -> u64 {
        (**self).disk_space()
    }

    pub fn table_count(&self) -> usize {
        (**self).table_count()
    }
}

impl Table {
    fn change(&self, key: impl Into<UserKey>, value: Option<Bytes>) -> Change {
        Change { table: Arc::clone(&self.name), key: Bytes::from(key.into()), value }
    }
}

/// Stands for `fjall::Iter`.
pub enum Iter {
    Fjall(fjall::Iter),
    Simulated(Cursor),
}

/// What is left of a range of a simulated table. It sees what is written meanwhile.
pub struct Cursor {
    table: Table,
    start: Bound<Bytes>,
    end: Bound<Bytes>,
}

impl Cursor {
    fn step(&mut self, forward: bool) -> Option<Guard> {
        if let (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) =
            (&self.start, &self.end)
            && start > end
        {
            return None;
        }
        let content = self.table.disk.lock();
        let range = (self.start.as_ref(), self.end.as_ref());
        let mut rows = content.tables.get(&self.table.name)?.range::<Bytes, _>(range);
        let (key, value) = if forward { rows.next() } else { rows.next_back() }?;
        let (key, value) = (key.clone(), value.clone());
        drop(content);
        let end = if forward { &mut self.start } else { &mut self.end };
        *end = Bound::Excluded(key.clone());
        Some(Guard::Simulated(key, value))
    }
}

impl Iterator for Iter {
    type Item = Guard;

    fn next(&mut self) -> Option<Guard> {
        match self {
            Iter::Fjall(iter) => iter.next().map(Guard::Fjall),
            Iter::Simulated(cursor) => cursor.step(true),
        }
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Guard> {
        match self {
            Iter::Fjall(iter) => iter.next_back().map(Guard::Fjall),
            Iter::Simulated(cursor) => cursor.step(false),
        }
    }
}

/// Stands for `fjall::Guard`.
pub enum Guard {
    Fjall(fjall::Guard),
    Simulated(Bytes, Bytes),
}

impl Guard {
    pub fn key(self) -> fjall::Result<UserKey> {
        match self {
            Guard::Fjall(guard) => guard.key(),
            Guard::Simulated(key, _) => Ok(key.into()),
        }
    }

    pub fn into_inner(self) -> fjall::Result<KvPair> {
        match self {
            Guard::Fjall(guard) => guard.into_inner(),
            Guard::Simulated(key, value) => Ok((key.into(), value.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(disk: &Disk, key: &'static str, value: Option<&'static str>) {
        let change = Change {
            table: "table".into(),
            key: Bytes::from_static(key.as_bytes()),
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
        };
        disk.write(vec![change]).expect("written");
    }

    fn rows(disk: &Disk) -> Vec<(String, String)> {
        let text = |bytes: UserKey| String::from_utf8(bytes.to_vec()).expect("text");
        let table = Keyspace::Simulated(Table { disk: disk.clone(), name: "table".into() });
        let rows = table.iter().map(|row| row.into_inner().expect("a row"));
        rows.map(|(key, value)| (text(key), text(value))).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_crash_takes_back_what_is_not_synced_from_the_end() {
        let disk = Disk::new();
        put(&disk, "a", Some("1"));
        put(&disk, "b", Some("1"));
        disk.sync().expect("synced");
        put(&disk, "a", Some("2"));
        put(&disk, "b", None);
        put(&disk, "a", None);

        assert_eq!(rows(&disk), []);
        assert_eq!(rows(&disk.crash(|unsynced| unsynced)), []);
        assert_eq!(rows(&disk.crash(|_| 2)), pairs(&[("a", "2")]));
        assert_eq!(rows(&disk.crash(|_| 1)), pairs(&[("a", "2"), ("b", "1")]));
        assert_eq!(rows(&disk.crash(|_| 0)), pairs(&[("a", "1"), ("b", "1")]));
    }

    #[test]
    fn a_disk_that_lies_loses_what_it_said_was_synced() {
        let disk = Disk::new();
        disk.set_faults(Faults { syncs_lie: true, ..Faults::default() });
        put(&disk, "a", Some("1"));
        disk.sync().expect("synced, it says");

        assert_eq!(rows(&disk.crash(|_| 0)), []);
    }

    #[test]
    fn ranges_are_read_from_both_ends() {
        let disk = Disk::new();
        for key in ["a", "b", "c", "d"] {
            put(&disk, key, Some("1"));
        }
        let table = Keyspace::Simulated(Table { disk, name: "table".into() });
        let key = |row: Option<Guard>| row.map(|row| row.key().expect("a key")[0] as char);

        let mut range = table.range("b"..="d");
        assert_eq!(key(range.next_back()), Some('d'));
        assert_eq!(key(range.next()), Some('b'));
        assert_eq!(key(range.next_back()), Some('c'));
        assert_eq!(key(range.next()), None);
        assert_eq!(key(range.next_back()), None);
        assert_eq!(key(table.prefix("c").next()), Some('c'));
        assert_eq!(key(table.prefix("x").next()), None);
    }
}
