//! The tables of index rows, and what is done when one of them is damaged.
//!
//! Groups share a table, so that a broker with many quiet partitions has few files. A damaged block of it is therefore
//! met by several groups, and it stays where it is: the engine cannot merge a file that it cannot read, and removing a
//! group's rows needs their keys. Nothing in the table is needed to know what was agreed on, because index rows follow
//! from the log. So
//! - a group that is emptied, and whose rows cannot be removed, has its rows in another table afterwards ([`begin_after`]);
//!   what is left of it in the old one is never looked at again;
//! - the only replica of a partition that cannot be opened without them does the same, and applies its log once more
//!   ([`Store::remake_index`](super::Store::remake_index));
//! - at the next start the damaged table is replaced ([`renew`]): rows of groups that are intact are copied, and groups that
//!   are not apply their log once more, which makes their rows anew.
//!
//! Tables are numbered, and the newest takes new groups. Which one a group uses is in its record in the state table.
//!
//! [`begin_after`]: IndexTables::begin_after

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fjall::PersistMode;

use super::engine::{Database, Engine, Keyspace, small_rows};
use super::keys::{self, GroupId};
use super::{Config, Error};

/// See the module.
pub struct IndexTables(RwLock<Tables>);

struct Tables {
    /// By number. There is at least one.
    tables: BTreeMap<u64, Keyspace>,
    /// Groups whose rows are not in table 0.
    numbers: HashMap<GroupId, u64>,
}

impl IndexTables {
    /// The tables of a database, of which the first one is created if there is none. Blocking.
    pub fn open(database: &Database, state: &Keyspace) -> Result<Self, Error> {
        let names = database.list_keyspace_names();
        let mut found: Vec<u64> = names.iter().filter_map(|name| keys::number_of_index_table(name)).collect();
        if found.is_empty() {
            found.push(0);
        }
        let mut tables = BTreeMap::new();
        for number in found {
            tables.insert(number, open(database, number)?);
        }
        let mut numbers = HashMap::new();
        if tables.keys().any(|number| *number > 0) {
            for row in state.iter() {
                let (key, value) = row.into_inner().map_err(|source| Error::storage(LISTING, source))?;
                let number = keys::decode_index_number(&value);
                numbers.extend(keys::group_of_index_number(&key).zip(number));
            }
        }
        Ok(IndexTables(RwLock::new(Tables { tables, numbers })))
    }

    /// The table that has, or is to have, the rows of a group.
    pub fn of(&self, group: GroupId) -> Keyspace {
        let inner = self.read();
        let number = inner.numbers.get(&group).copied().unwrap_or(0);
        let table = inner.tables.get(&number).or_else(|| inner.tables.values().next_back());
        table.expect("there is at least one").clone()
    }

    /// The number of the table that takes groups that begin.
    pub fn newest(&self) -> u64 {
        self.read().tables.keys().next_back().copied().unwrap_or(0)
    }

    /// The rows of a group are in this table from now on.
    pub fn assign(&self, group: GroupId, number: u64) {
        let mut inner = self.write();
        // The first table needs no note: it is the one of groups without.
        match number {
            0 => inner.numbers.remove(&group),
            number => inner.numbers.insert(group, number),
        };
    }

    /// Has groups that begin use another table than that which `group` uses. Blocking.
    pub fn begin_after(&self, database: &Database, group: GroupId) -> Result<(), Error> {
        let mut inner = self.write();
        let number = inner.numbers.get(&group).copied().unwrap_or(0);
        if inner.tables.keys().next_back() <= Some(&number) {
            inner.tables.insert(number + 1, open(database, number + 1)?);
        }
        Ok(())
    }

    pub fn all(&self) -> Vec<Keyspace> {
        self.read().tables.values().cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

const LISTING: &str = "list the tables of index rows";
const RENEWING: &str = "replace a table of index rows";

fn open(database: &Database, number: u64) -> Result<Keyspace, Error> {
    let table = database.keyspace(&keys::index_table(number), small_rows);
    table.map_err(|source| Error::storage("open a shared table", source))
}

/// What [`renew`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// Groups whose rows were copied.
    pub copied: usize,
    /// Groups that apply their log once more.
    pub applied_anew: usize,
}

/// Reads all index rows, and replaces their tables by one if one of them is damaged. After a crash half-way it begins
/// again, because groups go over to the new table at once. Nobody else may use the engine's directory. Blocking.
pub fn renew(directory: &Path, config: &Config) -> Result<Option<Renewed>, Error> {
    // Without threads, because the first thing that they do is to merge files, and a damaged one ends them.
    let engine = Engine::open_without_threads(directory, config)?;
    let groups = engine.groups_with_state()?;
    let (intact, damaged): (Vec<GroupId>, Vec<GroupId>) = groups.into_iter().partition(|group| {
        let rows = engine.index.of(*group).prefix(keys::group_prefix(*group));
        rows.map(|row| row.into_inner()).all(|row| row.is_ok())
    });
    // Rows of groups that are gone may be what is damaged.
    let readable = |table: &Keyspace| table.iter().map(|row| row.key()).all(|key| key.is_ok());
    if damaged.is_empty() && engine.index.all().iter().all(readable) {
        return Ok(None);
    }
    let number = engine.index.newest() + 1;
    let fresh = open(engine.database(), number)?;
    let failed = |source| Error::storage(RENEWING, source);
    let mut copy = fresh.start_ingestion().map_err(failed)?;
    for group in &intact {
        for row in engine.index.of(*group).prefix(keys::group_prefix(*group)) {
            let (key, value) = row.into_inner().map_err(failed)?;
            copy.write(key, value).map_err(failed)?;
        }
    }
    copy.finish().map_err(failed)?;
    let mut unit = engine.database().batch().durability(Some(PersistMode::SyncAll));
    for group in intact.iter().chain(&damaged) {
        unit.insert(&engine.state, keys::index_number(*group), keys::encode_index_number(number));
    }
    for group in &damaged {
        // It goes on from its snapshot, or from the beginning, and so makes a row for each entry.
        for index in engine.checkpoints(*group)? {
            unit.remove(&engine.state, keys::checkpoint(*group, index));
        }
    }
    unit.commit().map_err(failed)?;
    for old in engine.index.all() {
        engine.database().delete_keyspace(old).map_err(failed)?;
    }
    Ok(Some(Renewed { copied: intact.len(), applied_anew: damaged.len() }))
}
