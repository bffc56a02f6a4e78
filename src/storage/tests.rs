//! The store as its users see it: order, durability, damage, retention.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::AbstractTree as _;

use super::engine::Engine;
use super::*;

const GROUP: GroupId = GroupId::partition(1, 0);
const OTHER: GroupId = GroupId::partition(1, 1);
const SYSTEM: GroupId = GroupId::CONTROL;

fn config(directory: &Path) -> Config {
    Config { reserve_bytes: 0, ..Config::in_dir(directory.join("data")) }
}

fn open(directory: &Path) -> Store {
    Store::open(&config(directory), None).expect("the store opens")
}

fn row(index: u64, payload: &[u8]) -> Row {
    Row::encode(Position { index, term: 1, leader: 7 }, Kind::Command, Command::copy_from_slice(payload))
}

fn append(store: &Store, log: &Log, index: u64, payload: &[u8]) {
    let mut batch = store.batch();
    log.append(&mut batch, &row(index, payload));
    store.commit_blocking(batch, Durability::Sync).expect("the row is written");
}

fn at(index: u64) -> Position {
    Position { index, term: 1, leader: 7 }
}

/// What a process that is killed now would leave behind.
fn crash_image(directory: &Path) -> tempfile::TempDir {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // The engine's threads may begin and remove files meanwhile, and a copy is not made at once as a crash is.
        let before = names(directory);
        let image = tempfile::tempdir().expect("a temporary directory");
        let copied = copy(directory, image.path());
        if copied.is_ok() && names(directory) == before {
            return image;
        }
        assert!(Instant::now() < deadline, "the files do not come to rest: {copied:?}");
    }
}

/// The files below a directory; those that are removed meanwhile may be missing.
fn names(directory: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names = BTreeSet::new();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() {
            names.append(&mut self::names(&path));
        }
        names.insert(path);
    }
    names
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            // Without the holes of preallocated journals, which are 64 MiB of zeros.
            std::fs::write(&target, journal::read_data(&entry.path())?)?;
            std::fs::OpenOptions::new().write(true).open(&target)?.set_len(entry.metadata()?.len())?;
        }
    }
    Ok(())
}

fn newest_journal(directory: &Path) -> std::path::PathBuf {
    let tables = directory.join("data/tables");
    let mut journals: Vec<_> = std::fs::read_dir(tables)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .collect();
    journals.sort();
    journals.pop().expect("a journal")
}

/// Changes one byte of the newest journal, `offset` bytes from where `pattern` starts.
fn flip(directory: &Path, pattern: &[u8], offset: isize) {
    let path = newest_journal(directory);
    let bytes = journal::read_data(&path).expect("a journal");
    let found = bytes.windows(pattern.len()).position(|window| window == pattern).expect("the pattern");
    let place = found.checked_add_signed(offset).expect("a place in the file");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("the journal");
    file.write_all_at(&[bytes[place] ^ 0x40], place as u64).expect("a damaged journal");
}

fn payloads(log: &Log, from: u64, to: u64) -> Vec<Bytes> {
    log.read(from, to, u64::MAX).expect("rows").into_iter().map(|row| row.payload).collect()
}

fn bytes_on_disk(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        // The engine deletes files while this looks at them.
        let Ok(found) = std::fs::metadata(&path) else { continue };
        bytes += if found.is_dir() { bytes_on_disk(&path) } else { found.blocks() * 512 };
    }
    bytes
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn acknowledged_rows_survive_a_crash_in_order() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let (log, system) = (store.log(GROUP).expect("a log"), store.log(SYSTEM).expect("a log"));
    for index in 1..=100 {
        append(&store, &log, index, format!("p{index}").as_bytes());
        append(&store, &system, index, format!("s{index}").as_bytes());
    }

    let image = crash_image(directory.path());
    let reopened = open(image.path());

    let (log, system) = (reopened.log(GROUP).expect("a log"), reopened.log(SYSTEM).expect("a log"));
    let expected: Vec<Bytes> = (1..=100).map(|index| format!("p{index}").into()).collect();
    assert_eq!(payloads(&log, 1, 200), expected);
    assert_eq!(system.last().expect("a position"), Some(at(100)));
    assert_eq!(reopened.groups().expect("groups"), vec![SYSTEM, GROUP]);
}

#[test]
fn callbacks_run_in_commit_order_and_a_panic_in_one_stops_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");
    let seen = Arc::new(Mutex::new(Vec::new()));
    for index in 1..=50 {
        let mut batch = store.batch();
        log.append(&mut batch, &row(index, b"x"));
        let seen = Arc::clone(&seen);
        let durability = if index % 2 == 0 { Durability::Sync } else { Durability::Lazy };
        let done = move |outcome: Result<(), Error>| {
            assert!(outcome.is_ok());
            seen.lock().expect("no poison").push(index);
            assert_ne!(index, 10, "a defect of the caller");
        };
        store.commit(batch, durability, Box::new(done));
    }

    store.clone().close().expect("closes");

    // The panic happened while the lock was held.
    let seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    assert_eq!(seen[..10], (1..=10).collect::<Vec<u64>>());
    assert!(store.stats().commits.load(Ordering::Relaxed) >= 50);
    assert!(matches!(store.commit_blocking(Batch::new(), Durability::Sync), Err(Error::Closed)));
}

#[test]
fn the_last_of_two_rows_with_one_key_stands_after_a_crash_too() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");
    let mut batch = store.batch();
    batch.put_vote(GROUP, &b"first"[..]);
    batch.put_vote(GROUP, &b"second"[..]);
    batch.put_checkpoint(GROUP, 3, &b"state"[..]);
    batch.remove_checkpoint(GROUP, 3);
    store.commit_blocking(batch, Durability::Sync).expect("written");
    assert_eq!(log.vote().expect("a vote").as_deref(), Some(&b"second"[..]));

    let image = crash_image(directory.path());
    let log = open(image.path()).log(GROUP).expect("a log");

    assert_eq!(log.vote().expect("a vote").as_deref(), Some(&b"second"[..]));
    assert_eq!(log.checkpoint_at(u64::MAX).expect("a checkpoint"), None);
}

#[test]
fn truncation_sees_rows_that_still_wait_and_keeps_later_ones() {
    for group in [GROUP, SYSTEM] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = open(directory.path());
        let log = store.log(group).expect("a log");
        for index in 1..=20 {
            let mut batch = store.batch();
            log.append(&mut batch, &row(index, b"old"));
            store.commit(batch, Durability::Lazy, Box::new(|_| ()));
        }
        let mut batch = store.batch();
        log.truncate_after(&mut batch, 10);
        log.append(&mut batch, &row(11, b"new"));
        store.commit_blocking(batch, Durability::Sync).expect("written");

        let image = crash_image(directory.path());
        for store in [store, open(image.path())] {
            let log = store.log(group).expect("a log");
            assert_eq!(log.last_index().expect("an index"), Some(11));
            assert_eq!(payloads(&log, 10, 100), vec![Bytes::from("old"), Bytes::from("new")]);
        }
    }
}

#[test]
fn a_torn_last_write_is_cut_off_and_the_rest_is_kept() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");
    append(&store, &log, 1, b"first-row-payload");
    append(&store, &log, 2, b"second-row-payload");
    let image = crash_image(directory.path());
    flip(image.path(), b"second-row-payload", 3);

    let reopened = open(image.path());
    let log = reopened.log(GROUP).expect("a log");

    assert_eq!(payloads(&log, 1, 10), vec![Bytes::from("first-row-payload")]);
    append(&reopened, &log, 2, b"again");
    let again = open(crash_image(image.path()).path());
    assert_eq!(again.log(GROUP).expect("a log").last_index().expect("an index"), Some(2));
}

#[test]
fn damage_before_acknowledged_data_refuses_to_open() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");
    append(&store, &log, 1, b"first-row-payload");
    append(&store, &log, 2, b"second-row-payload");
    append(&store, &log, 3, b"third-row-payload");
    // A payload byte, the length of the stored value, and the tag that starts the item. The engine alone would report
    // the first and silently drop the rows after the others.
    let item_header = -(32 + 8 + 4 + 4 + 2 + 8 + 1 + 1 + 1);
    for offset in [3, -(32 + 8 + 2), item_header, item_header - 13] {
        let image = crash_image(directory.path());
        flip(image.path(), b"second-row-payload", offset);

        let outcome = Store::open(&config(image.path()), None).map(drop);

        assert!(
            matches!(&outcome, Err(Error::CorruptJournal { file, position, .. })
                if *position > 0 && *file == newest_journal(image.path())),
            "flip at {offset}: {outcome:?}"
        );
    }
}

#[test]
fn damage_to_the_last_write_is_found_after_a_clean_close() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");
    append(&store, &log, 1, b"only-row-payload");
    drop(log);
    store.close().expect("closes");
    flip(directory.path(), b"only-row-payload", 0);

    let outcome = Store::open(&config(directory.path()), None).map(drop);

    assert!(matches!(outcome, Err(Error::CorruptJournal { .. })), "{outcome:?}");
}

#[test]
fn unsynced_rounds_after_a_lost_block_are_cut_off() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let interval =
        Config { sync: Sync::Interval, sync_interval: Duration::from_secs(3600), ..config(directory.path()) };
    let store = Store::open(&interval, None).expect("the store opens");
    let log = store.log(GROUP).expect("a log");
    append(&store, &log, 1, b"first-row-payload");
    append(&store, &log, 2, b"second-row-payload");
    append(&store, &log, 3, b"third-row-payload");
    let image = crash_image(directory.path());
    flip(image.path(), b"second-row-payload", 3);

    let reopened = open(image.path());

    assert_eq!(reopened.log(GROUP).expect("a log").last_index().expect("an index"), Some(1));
}

#[test]
fn a_damaged_table_is_reported_with_its_row_and_serves_nothing_corrupt() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");
    for index in 1..=5 {
        append(&store, &log, index, format!("payload-number-{index}-{}", "x".repeat(40_000)).as_bytes());
    }
    let LogTableForTest(table) = table_of(&store);
    table.rotate_memtable_and_wait().expect("a table file");
    drop((log, table));
    store.close().expect("closes");
    let damaged = damage_tables(&directory.path().join("data/tables/keyspaces"), b"payload-number-3-");
    assert_eq!(damaged, 1);

    // The journal is intact and would replay the rows; it must not hide what the table has.
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");

    assert_eq!(log.read(1, 3, u64::MAX).expect("rows before the damage").len(), 2);
    assert_eq!(log.read_intact(1, 6, u64::MAX).expect("rows before the damage").len(), 2);
    assert_eq!(log.read(4, 6, u64::MAX).expect("rows after the damage").len(), 2);
    assert!(log.read_intact(3, 6, u64::MAX).is_err());
    let outcome = log.read(1, 6, u64::MAX);
    assert!(matches!(outcome, Err(Error::Corrupt { group: GROUP, index: 3, .. })), "{outcome:?}");
}

/// Writes so many index rows of a group, each of a block's tenth.
fn write_index(store: &Store, group: GroupId, rows: std::ops::Range<u64>) {
    let mut batch = store.batch();
    for offset in rows {
        let detail = format!("{group}-{offset}-{}", "x".repeat(400)).into();
        batch.put_index_row(group, &IndexRow { offset, index: offset + 1, append_time_ms: 1, detail });
    }
    store.commit_blocking(batch, Durability::Lazy).expect("written");
}

fn offsets(log: &Log) -> Vec<u64> {
    log.index_from(0, usize::MAX).expect("rows").iter().map(|row| row.offset).collect()
}

/// A store with index rows of two groups in a file, of which one block of the first group is damaged.
fn with_damaged_index(directory: &Path) -> Store {
    let store = open(directory);
    for group in [GROUP, OTHER] {
        store.log(group).expect("a log");
        write_index(&store, group, 0..100);
        let mut batch = store.batch();
        batch.put_checkpoint(group, 7, &b"checkpoint"[..]);
        batch.put_snapshot(group, &b"snapshot"[..]);
        store.commit_blocking(batch, Durability::Lazy).expect("written");
    }
    store.engine().index.of(GROUP).rotate_memtable_and_wait().expect("a file");
    store.close().expect("closes");
    assert_eq!(damage_tables(&directory.join("data/tables/keyspaces"), b"1/0-50-"), 1);
    open(directory)
}

fn index_tables(store: &Store) -> Vec<String> {
    store.engine().index.all().iter().map(|table| table.name().to_owned()).collect()
}

#[test]
fn a_group_whose_index_rows_are_damaged_is_emptied_and_begins_in_another_table() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = with_damaged_index(directory.path());
    let (log, other) = (store.log(GROUP).expect("a log"), store.log(OTHER).expect("a log"));
    assert_eq!(log.verify_index(0, 10).expect("it is before the damage"), Some(10));
    assert!(log.index_at(50).expect_err("it is damaged").is_damage());
    assert!(log.verify_index(0, 100).expect_err("one is damaged").is_damage());
    assert_eq!(offsets(&other), (0..100).collect::<Vec<_>>());

    drop(log);
    store.empty_group(GROUP, &b"v"[..], at(1)).expect("emptied");
    let log = store.log(GROUP).expect("a log");
    assert_eq!(log.index_at(u64::MAX).expect("no row"), None);
    write_index(&store, GROUP, 0..10);
    write_index(&store, OTHER, 100..110);

    // The one before is replaced, and everything is in one table again.
    drop((log, other));
    for _ in 0..2 {
        let image = crash_image(directory.path());
        let reopened = open(image.path());
        let (log, other) = (reopened.log(GROUP).expect("a log"), reopened.log(OTHER).expect("a log"));
        assert_eq!(offsets(&log), (0..10).collect::<Vec<_>>());
        assert_eq!(offsets(&other), (0..110).collect::<Vec<_>>());
        assert_eq!(index_tables(&reopened), ["index.2"]);
        drop((log, other));
        reopened.close().expect("closes");
        assert_eq!(index_tables(&open(image.path())), ["index.2"], "once is enough");
    }
    assert_eq!(index_tables(&store), ["index", "index.1"]);
}

#[test]
fn a_group_whose_index_rows_are_lost_goes_on_from_its_snapshot() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = with_damaged_index(directory.path());
    assert!(store.log(GROUP).expect("a log").index_at(50).is_err());
    store.close().expect("closes");

    let store = open(directory.path());
    let (log, other) = (store.log(GROUP).expect("a log"), store.log(OTHER).expect("a log"));
    assert_eq!((offsets(&log), log.checkpoint_at(u64::MAX).expect("a checkpoint")), (vec![], None));
    assert_eq!(log.snapshot().expect("a snapshot").as_deref(), Some(&b"snapshot"[..]));
    assert_eq!(offsets(&other), (0..100).collect::<Vec<_>>());
    assert!(other.checkpoint_at(u64::MAX).expect("a checkpoint").is_some());
    let third = store.log(GroupId::partition(2, 0)).expect("a log");
    write_index(&store, third.group(), 0..3);
    drop((log, other, third));
    store.close().expect("closes");
    let store = open(directory.path());
    assert_eq!(offsets(&store.log(GroupId::partition(2, 0)).expect("a log")), [0, 1, 2]);
    assert_eq!(index_tables(&store), ["index.1"]);
}

#[test]
fn an_index_that_is_begun_anew_goes_on_from_the_snapshot_too() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = with_damaged_index(directory.path());
    let lost = store.log(GROUP).expect("a log").index_at(50).expect_err("it is damaged");
    assert!(matches!(lost, Error::IndexDamaged { group: GROUP }), "{lost:?}");
    store.remake_index(GROUP).expect("begun");
    let log = store.log(GROUP).expect("a log");
    assert_eq!((offsets(&log), log.checkpoint_at(u64::MAX).expect("a checkpoint")), (vec![], None));
    write_index(&store, GROUP, 0..5);
    drop(log);

    let image = crash_image(directory.path());
    let reopened = open(image.path());
    assert_eq!(offsets(&reopened.log(GROUP).expect("a log")), [0, 1, 2, 3, 4]);
}

#[test]
fn a_store_that_fails_where_it_merges_damaged_files_works_after_the_next_start() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = with_damaged_index(directory.path());
    store.log(OTHER).expect("a log");
    eventually("the damaged file is merged, and the store fails", || {
        let mut batch = store.batch();
        batch
            .put_index_row(OTHER, &IndexRow { offset: 7, index: 8, append_time_ms: 1, detail: Bytes::new() });
        let _ = store.commit_blocking(batch, Durability::Sync);
        let _ = store.engine().index.of(OTHER).rotate_memtable();
        std::thread::sleep(Duration::from_millis(10));
        store.healthy().is_err()
    });
    drop(store);

    let store = open(directory.path());
    let other = store.log(OTHER).expect("a log");
    assert_eq!(offsets(&other), (0..100).collect::<Vec<_>>());
    for _ in 0..10 {
        write_index(&store, OTHER, 0..3);
        store.engine().index.of(OTHER).rotate_memtable_and_wait().expect("a file");
    }
    store.engine().index.of(OTHER).major_compact().expect("nothing is damaged");
    store.healthy().expect("it works");
}

#[test]
fn a_start_without_the_tables_is_refused_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");
    append(&store, &log, 1, b"kept");
    drop((log, store));
    let tables = directory.path().join("data/tables/keyspaces");
    let aside = directory.path().join("aside");
    std::fs::rename(&tables, &aside).expect("moved away");

    for _ in 0..2 {
        let Err(refused) = Store::open(&config(directory.path()), None) else {
            panic!("the tables are gone")
        };
        let why = std::error::Error::source(&refused).expect("a cause").to_string();
        assert!(why.contains("nothing was changed"), "{refused:?}: {why}");
    }

    std::fs::rename(&aside, &tables).expect("nothing is in its place");
    let store = open(directory.path());
    assert_eq!(payloads(&store.log(GROUP).expect("a log"), 1, 100), ["kept"]);
}

struct LogTableForTest(engine::Keyspace);

fn table_of(store: &Store) -> LogTableForTest {
    LogTableForTest(store.engine().log_table(GROUP).expect("a table").rows)
}

fn damage_tables(directory: &Path, pattern: &[u8]) -> usize {
    let mut damaged = 0;
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            damaged += damage_tables(&path, pattern);
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("a file");
        if let Some(found) = bytes.windows(pattern.len()).position(|window| window == pattern) {
            bytes[found + 100] ^= 1;
            std::fs::write(&path, bytes).expect("a damaged file");
            damaged += 1;
        }
    }
    damaged
}

#[test]
fn purging_hides_rows_at_once_and_frees_disk_space() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");
    let payload = vec![7; 100_000];
    for index in 1..=120 {
        let mut batch = store.batch();
        log.append(&mut batch, &row(index, &payload));
        batch.put_index_row(
            GROUP,
            &IndexRow { offset: index * 10, index, append_time_ms: 5, detail: Bytes::new() },
        );
        batch.put_checkpoint(GROUP, index, &b"state"[..]);
        store.commit_blocking(batch, Durability::Lazy).expect("written");
        if index % 20 == 0 {
            table_of(&store).0.rotate_memtable_and_wait().expect("a table file");
        }
    }
    let tables = directory.path().join("data/tables/keyspaces");
    let (before, used_before) = (bytes_on_disk(&tables), store.usage().used_bytes);
    assert!(before > 11_000_000 && store.usage().segments > 3, "{before} bytes in {:?}", store.usage());

    log.purge_to(at(110)).expect("purged");

    assert!(matches!(log.read(110, 112, 1), Err(Error::Purged { purged: 110, .. })));
    assert_eq!(log.first_index().expect("an index"), Some(111));
    assert_eq!(log.index_from(0, 1).expect("rows")[0].offset, 1110);
    assert_eq!(log.checkpoints().expect("checkpoints")[0], 110);
    eventually("files are deleted", || bytes_on_disk(&tables) < 4_000_000);
    assert!(store.usage().used_bytes + 8_000_000 < used_before);

    log.purge_to(at(50)).expect("a lower purge changes nothing");
    log.purge_to(at(120)).expect("purged");
    let image = crash_image(directory.path());
    let reopened = open(image.path());
    let log = reopened.log(GROUP).expect("a log");
    assert_eq!(log.purged().expect("a position"), Some(at(120)));
    assert_eq!(log.first_index().expect("an index"), None);
    assert_eq!(log.last().expect("a position"), Some(at(120)));
}

#[test]
fn what_a_purge_leaves_in_memory_and_in_the_newest_file_is_reclaimed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store =
        Store::open(&Config { table_bytes: Some(1 << 20), ..config(directory.path()) }, None).expect("open");
    let log = store.log(GROUP).expect("a log");
    let payload = vec![7; 100_000];
    for index in 1..=30 {
        append(&store, &log, index, &payload);
    }
    let tables = directory.path().join("data/tables/keyspaces");
    for kept in [30, 31] {
        log.purge_to(at(30)).expect("purged");
        eventually("nothing but small files is left", || {
            log.reclaim().expect("reclaimed");
            let rows = &table_of(&store).0;
            bytes_on_disk(&tables) < 200_000 && rows.tree.version_memtable_size_sum() < 200_000
        });
        let files = store.usage().segments;
        log.reclaim().expect("reclaimed");
        assert_eq!(store.usage().segments, files, "what is small is let alone");
        assert_eq!(log.last().expect("a position"), Some(at(kept)));
        // A row behind the purge point keeps its place, in memory and in files.
        if kept == 30 {
            append(&store, &log, 31, b"kept");
        }
        assert_eq!(payloads(&log, 31, 100), ["kept"]);
    }
    table_of(&store).0.rotate_memtable_and_wait().expect("a table file");
    let image = crash_image(directory.path());
    let reopened = open(image.path());
    let log = reopened.log(GROUP).expect("a log");
    assert_eq!(log.first_index().expect("an index"), Some(31));
    assert_eq!(payloads(&log, 31, 100), ["kept"]);
    log.purge_to(at(31)).expect("purged");
    append(&reopened, &log, 32, b"next");
    assert_eq!(payloads(&log, 32, 100), ["next"]);
}

#[test]
fn purging_a_system_group_removes_its_rows_and_only_its_rows() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let (log, other) = (store.log(SYSTEM).expect("a log"), store.log(GroupId(1)).expect("a log"));
    for index in 1..=10 {
        append(&store, &log, index, b"x");
        append(&store, &other, index, b"y");
    }

    log.purge_to(at(7)).expect("purged");

    assert_eq!(payloads(&log, 8, 100).len(), 3);
    assert_eq!(payloads(&other, 1, 100).len(), 10);
}

#[test]
fn deleting_a_group_leaves_nothing_of_it_and_all_of_the_others() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    for group in [GROUP, OTHER, SYSTEM] {
        let log = store.log(group).expect("a log");
        append(&store, &log, 1, &vec![1; 3_000_000]);
        let mut batch = store.batch();
        batch
            .put_index_row(group, &IndexRow { offset: 0, index: 1, append_time_ms: 1, detail: Bytes::new() });
        batch.put_vote(group, &b"v"[..]);
        batch.put_committed(group, at(1));
        store.commit_blocking(batch, Durability::Sync).expect("written");
    }
    table_of(&store).0.rotate_memtable_and_wait().expect("a table file");
    let tables = directory.path().join("data/tables/keyspaces");
    let before = bytes_on_disk(&tables);

    store.delete_group(GROUP).expect("deleted");
    store.delete_group(SYSTEM).expect("deleted");

    assert_eq!(store.groups().expect("groups"), vec![OTHER]);
    eventually("the files are gone", || bytes_on_disk(&tables) + 2_900_000 < before);
    let image = crash_image(directory.path());
    let reopened = open(image.path());
    assert_eq!(reopened.groups().expect("groups"), vec![OTHER]);
    for group in [GROUP, SYSTEM] {
        let log = reopened.log(group).expect("a log");
        assert_eq!(log.last_index().expect("an index"), None);
        assert_eq!(log.vote().expect("a vote"), None);
        assert_eq!(log.committed().expect("a position"), None);
        assert_eq!(log.last_index_row().expect("a row"), None);
    }
    let other = reopened.log(OTHER).expect("a log");
    assert_eq!(other.committed().expect("a position"), Some(at(1)));
    assert_eq!(payloads(&other, 1, 2).len(), 1);
}

/// The engine has a queue for 1,000 tables whose memory is to be written, and fills it before anybody takes from it.
#[test]
#[ignore = "takes a minute to make the tables"]
fn more_tables_than_the_engine_has_room_for_in_its_queue_are_recovered() {
    const TABLES: u32 = 1_010;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let engine = Engine::open(directory.path(), &Config::default()).expect("the engine opens");
    let table = |number| engine.log_table(GroupId::partition(1, number)).expect("a table");
    for number in 0..TABLES {
        table(number).rows.insert("row", "value").expect("a row is written");
    }
    // Enough for the engine to begin another journal when it writes a table.
    let large = table(TABLES);
    for number in 0_u32..17 {
        large.rows.insert(number.to_be_bytes(), vec![7; 4 << 20]).expect("a row is written");
    }
    engine.begin_file(&large).expect("begun");
    let deadline = Instant::now() + Duration::from_secs(60);
    while large.rows.sealed_memtable_count() > 0 {
        assert!(Instant::now() < deadline, "the table is not written");
        std::thread::yield_now();
    }

    let image = crash_image(directory.path());
    let (opened, open) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let engine = Engine::open(image.path(), &Config::default()).expect("the engine opens again");
        opened.send(engine.partitions().len())
    });
    assert_eq!(open.recv_timeout(Duration::from_secs(60)), Ok(TABLES as usize + 1));
}

#[test]
fn an_emptied_group_keeps_its_vote_and_how_far_it_reached() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    for group in [GROUP, OTHER] {
        let log = store.log(group).expect("a log");
        append(&store, &log, 1, b"a");
        store.empty_group(group, &b"v"[..], at(1)).expect("emptied");
    }
    assert_eq!(store.groups().expect("groups"), vec![]);
    assert_eq!(store.emptied_groups().expect("groups"), vec![GROUP, OTHER]);
    store.delete_group(OTHER).expect("deleted");

    let image = crash_image(directory.path());
    let reopened = open(image.path());
    assert_eq!(reopened.emptied_groups().expect("groups"), vec![GROUP]);
    let log = reopened.log(GROUP).expect("a log");
    assert_eq!(log.vote().expect("a vote").as_deref(), Some(&b"v"[..]));
    assert_eq!(log.promised().expect("a position"), Some(at(1)));
    assert_eq!(log.last().expect("a position"), None);
    assert_eq!(reopened.emptied_groups().expect("groups"), vec![], "it is back");
}

#[test]
fn a_group_whose_emptying_was_interrupted_is_emptied_before_it_is_used() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");
    append(&store, &log, 1, b"a");
    let mut batch = store.batch();
    batch.put_vote(GROUP, &b"v"[..]);
    batch.put_checkpoint(GROUP, 1, &b"s"[..]);
    batch.put(batch::Table::State, keys::exists(GROUP), Bytes::from_static(b"emptying"));
    store.commit_blocking(batch, Durability::Sync).expect("written");
    drop(log);

    assert_eq!(store.groups().expect("groups"), vec![GROUP]);
    let log = store.log(GROUP).expect("a log");

    assert_eq!(log.last().expect("a position"), None);
    assert_eq!(log.checkpoint_at(u64::MAX).expect("a checkpoint"), None);
    assert_eq!(log.vote().expect("a vote").as_deref(), Some(&b"v"[..]));
    append(&store, &log, 1, b"b");
    let log = store.log(GROUP).expect("the log once more");
    assert_eq!(payloads(&log, 1, 2), vec![Bytes::from_static(b"b")], "it is emptied once");
}

#[test]
fn what_must_be_on_disk_is_synced_although_records_need_not_be() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = Config {
        sync: Sync::Interval,
        sync_interval: Duration::from_secs(3_600),
        ..config(directory.path())
    };
    let store = Store::open(&config, None).expect("the store opens");
    let mut synced = |durability| {
        let before = store.stats().syncs.load(Ordering::Relaxed);
        let mut batch = store.batch();
        batch.put_vote(GROUP, &b"v"[..]);
        store.commit_blocking(batch, durability).expect("written");
        store.stats().syncs.load(Ordering::Relaxed) - before
    };
    assert_eq!([Durability::Sync, Durability::Lazy, Durability::Always].map(&mut synced), [0, 0, 1]);
}

#[test]
fn the_index_is_found_by_offset_and_by_time() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");
    let mut batch = store.batch();
    for (offset, time) in [(0, 10), (5, 10), (9, 20), (100, 30), (101, 30), (5000, 40)] {
        let detail = Bytes::from(format!("d{offset}"));
        batch.put_index_row(GROUP, &IndexRow { offset, index: offset + 1, append_time_ms: time, detail });
    }
    batch.put_index_row(OTHER, &IndexRow { offset: 7, index: 1, append_time_ms: 1, detail: Bytes::new() });
    store.commit_blocking(batch, Durability::Lazy).expect("written");

    let offset_at = |offset| log.index_at(offset).expect("a row").map(|row| row.offset);
    assert_eq!([0, 4, 5, 99, 100, u64::MAX].map(offset_at), [0, 0, 5, 9, 100, 5000].map(Some));
    assert_eq!(log.index_at(6).expect("a row").expect("a row").detail, "d5");
    let offset_at_time = |time| log.index_at_time(time).expect("a row").map(|row| row.offset);
    assert_eq!(
        [0, 10, 11, 20, 21, 30, 31, 40].map(offset_at_time),
        [0, 0, 9, 9, 100, 100, 5000, 5000].map(Some)
    );
    assert_eq!(offset_at_time(41), None);
    // Neighbours of every distance, the smallest ones above all.
    for distance in 1..10 {
        let group = GroupId::partition(2, distance as u32);
        let log = store.log(group).expect("a log");
        let mut batch = store.batch();
        for (offset, time) in [(0, 10), (distance, 20)] {
            let detail = Bytes::new();
            batch.put_index_row(group, &IndexRow { offset, index: offset + 1, append_time_ms: time, detail });
        }
        store.commit_blocking(batch, Durability::Lazy).expect("written");
        let found = log.index_at_time(15).expect("a row").map(|row| row.offset);
        assert_eq!(found, Some(distance));
    }
    assert_eq!(
        log.index_from(6, 2).expect("rows").iter().map(|row| row.offset).collect::<Vec<_>>(),
        [9, 100]
    );
}

#[test]
fn reads_stop_at_the_byte_limit_but_return_at_least_one_row() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");
    for index in 1..=5 {
        append(&store, &log, index, &[0; 100]);
    }

    assert_eq!(log.read(1, 100, 1).expect("rows").len(), 1);
    assert_eq!(log.read(1, 100, 2 * (100 + HEADER_BYTES as u64)).expect("rows").len(), 2);
    assert_eq!(log.read(4, 5, u64::MAX).expect("rows").len(), 1);
    assert_eq!(log.read(6, 100, u64::MAX).expect("rows").len(), 0);
    assert_eq!(log.get(9).expect("no row"), None);
}

#[test]
fn a_missing_row_is_corruption() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let log = store.log(GROUP).expect("a log");
    append(&store, &log, 1, b"a");
    append(&store, &log, 3, b"c");

    assert_eq!(log.read_intact(1, 4, u64::MAX).expect("the row before it").len(), 1);
    assert!(matches!(log.read(1, 4, u64::MAX), Err(Error::Corrupt { index: 2, .. })));
}

#[test]
fn a_directory_is_used_by_one_store_at_a_time() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());

    assert!(matches!(Store::open(&config(directory.path()), None), Err(Error::Locked { .. })));

    store.close().expect("closes");
    drop(open(directory.path()));
}

#[test]
fn a_newer_format_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    drop(open(directory.path()));
    std::fs::write(directory.path().join("data/format"), "2\n").expect("a format record");

    let outcome = Store::open(&config(directory.path()), None).map(drop);

    assert!(matches!(outcome, Err(Error::FormatTooNew { found: 2, supported: 1, .. })), "{outcome:?}");
}

#[test]
fn a_creation_that_was_interrupted_is_repeated() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tables = directory.path().join("data/tables");
    std::fs::create_dir_all(tables.join("keyspaces")).expect("directories");
    std::fs::write(tables.join("0.jnl"), [0; 100]).expect("an empty journal");

    let store = open(directory.path());

    assert_eq!(store.groups().expect("groups"), vec![]);
}

#[test]
fn records_of_the_broker_are_kept() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    store.meta_put("cluster_id", &b"c1"[..]).expect("written");
    store.close().expect("closes");

    let store = open(directory.path());

    assert_eq!(store.meta_get("cluster_id").expect("a record").as_deref(), Some(&b"c1"[..]));
    assert_eq!(store.meta_get("broker_id").expect("no record"), None);
}

#[test]
fn a_full_disk_refuses_producers_but_not_the_committer() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let full = Config { reserve_bytes: u64::MAX, ..config(directory.path()) };
    let store = Store::open(&full, None).expect("the store opens");
    let log = store.log(GROUP).expect("a log");

    assert!(matches!(store.writable(), Err(Error::DiskFull { reserve: u64::MAX, .. })));
    assert_eq!(store.usage().available_bytes, 0);
    append(&store, &log, 1, b"still written");
}

#[test]
fn each_sync_is_observed_and_lazy_rows_are_synced_in_time() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (tx, rx) = mpsc::channel();
    let observer: SyncObserver = Arc::new(move |seen| {
        let _ = tx.send(seen);
    });
    let quick = Config { sync_interval: Duration::from_millis(1), ..config(directory.path()) };
    let store = Store::open(&quick, Some(observer)).expect("the store opens");
    let mut batch = store.batch();
    batch.put_vote(GROUP, &b"v"[..]);
    store.commit_blocking(batch, Durability::Lazy).expect("written");

    let seen = rx.recv_timeout(Duration::from_secs(20)).expect("a sync");

    assert_eq!(seen.commits, 1);
    assert!(seen.bytes > 0);
}

#[tokio::test]
async fn a_full_queue_makes_reservations_wait() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let small = Config { commit_queue_bytes: 1024 * 1024, ..config(directory.path()) };
    let store = tokio::task::spawn_blocking(move || Store::open(&small, None).expect("the store opens"))
        .await
        .expect("no panic");
    let held = store.reserve(800 * 1024).await.expect("room");
    let waiting = store.reserve(u64::MAX);
    tokio::pin!(waiting);
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());

    drop(held);

    let all = waiting.await.expect("room for one batch larger than the queue");
    let mut batch = store.batch();
    batch.put_vote(GROUP, &b"v"[..]);
    batch.hold(all);
    store.commit_and_wait(batch, Durability::Sync).await.expect("written");
    store.reserve(1024 * 1024).await.expect("the room of a written batch is free again");
}

#[test]
#[cfg(target_os = "linux")]
fn journals_leave_the_page_cache_once_they_are_on_disk() {
    const ROW_BYTES: usize = 1024 * 1024;
    const ROWS: u64 = 48;
    let directory = tempfile::tempdir().expect("a temporary directory");
    if !forgets(directory.path()) {
        // The file system keeps its files in memory in any case.
        return;
    }
    for sync in [Sync::Always, Sync::Interval] {
        let home = directory.path().join(sync.name());
        let config = Config {
            sync,
            // Only the amount that was written may make it sync.
            sync_interval: Duration::from_secs(3_600),
            ..config(&home)
        };
        let store = Store::open(&config, None).expect("the store opens");
        let log = store.log(GROUP).expect("a log");
        let oldest = newest_journal(&home);

        for index in 0..ROWS {
            append(&store, &log, index, &vec![7; ROW_BYTES]);
        }

        eventually("the start of the journal is not in memory", || !is_cached(&oldest));
    }
}

/// Whether the file system has a file's first page in memory.
#[cfg(target_os = "linux")]
fn is_cached(path: &Path) -> bool {
    use std::io::IoSliceMut;

    use rustix::io::{Errno, ReadWriteFlags, preadv2};

    let file = std::fs::File::open(path).expect("a file");
    let mut byte = [0];
    match preadv2(file, &mut [IoSliceMut::new(&mut byte)], 0, ReadWriteFlags::NOWAIT) {
        Ok(_) => true,
        Err(Errno::AGAIN) => false,
        // It cannot tell.
        Err(error) => panic!("reading without waiting: {error}"),
    }
}

/// Whether the file system gives up what it has in memory, and says so.
#[cfg(target_os = "linux")]
fn forgets(directory: &Path) -> bool {
    use rustix::fs::{Advice, fadvise};

    let path = directory.join("probe");
    std::fs::write(&path, [7; 4096]).expect("a file");
    let file = std::fs::File::open(&path).expect("the file");
    file.sync_all().expect("a sync");
    fadvise(&file, 0, None, Advice::DontNeed).is_ok() && !is_cached(&path)
}
