//! Damage to the tables of a broker's store.

use std::path::{Path, PathBuf};

/// The table below `directory` that holds `bytes`, and where.
pub fn find_in_tables(directory: &Path, bytes: &[u8]) -> Option<(PathBuf, usize)> {
    std::fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return find_in_tables(&path, bytes);
        }
        if path.extension().is_some_and(|extension| extension == "jnl") {
            return None;
        }
        let table = std::fs::read(&path).ok()?;
        let at = (0..table.len()).find(|at| table[*at] == bytes[0] && table[*at..].starts_with(bytes))?;
        Some((path, at))
    })
}

/// Has the store of a broker that does not run write a table out of memory, as happens after a while.
pub fn write_out(directory: &Path, table: &str) {
    let database = fjall::Database::builder(directory.join("tables")).open().expect("the store's tables");
    let rows = database.keyspace(table, fjall::KeyspaceCreateOptions::default).expect("a table");
    rows.rotate_memtable_and_wait().expect("written");
}

/// Turns a byte of what a table holds around; it must be in one.
#[track_caller]
pub fn inflict(directory: &Path, bytes: &[u8]) {
    let (path, at) = find_in_tables(directory, bytes).expect("it is in a table");
    let mut table = std::fs::read(&path).expect("a table");
    table[at] ^= 0x55;
    std::fs::write(&path, table).expect("written");
}
