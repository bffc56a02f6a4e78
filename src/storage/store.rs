//! The store: one per process, opened first and closed last.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinError;

use super::background_sync::BackgroundSync;
use super::batch::{Batch, Table};
use super::boot;
use super::committer::{Committer, Done, Permit, Queue, Stats, SyncObserver};
#[cfg(test)]
use super::engine::Database;
use super::engine::Engine;
use super::index_tables;
use super::keys::{self, GroupId, Position, Round};
use super::log::{Log, PurgePoints, damage};
#[cfg(test)]
use super::simulated::Disk;
use super::space::Space;
use super::{Config, Durability, Error, journal};

/// Format of the data directory that this release writes, and the newest that it reads.
const FORMAT: u32 = 1;
const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";
const TABLES_DIR: &str = "tables";
/// Is there while the tables of index rows are to be looked at, because one was found damaged, or the engine failed.
const CHECK_FILE: &str = "check";
/// Rows removed by one commit when a group's rows in shared tables are deleted.
pub(super) const REMOVE_CHUNK: usize = 4096;

/// A handle of the open store. Clones share everything.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<Engine>,
    queue: Arc<Queue>,
    space: Space,
    tables_dir: PathBuf,
    purge_points: PurgePoints,
    settles_in: Duration,
    check_file: CheckFile,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Released when the last handle is gone, after the engine's own files are closed.
    _lock: Option<File>,
    #[cfg(test)]
    simulated: Option<Simulated>,
}

/// What a store on a simulated disk has in place of a thread.
#[cfg(test)]
struct Simulated {
    disk: Disk,
    committer: Mutex<Committer>,
    observer: StateObserver,
}

/// The state of a group as of one log entry.
#[cfg(test)]
pub struct ObservedState {
    /// Which group.
    pub group: GroupId,
    /// The entry.
    pub at: keys::Position,
    /// The members, encoded.
    pub members: Bytes,
    /// What the machine encoded.
    pub state: Bytes,
}

/// Told of every state that a group's machine is in.
#[cfg(test)]
pub type StateObserver = Arc<dyn Fn(ObservedState) + Send + std::marker::Sync>;

/// What the store takes of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in tables and journals.
    pub used_bytes: u64,
    /// Bytes that may still be written before the reserve is touched.
    pub available_bytes: u64,
    /// Files that hold log rows.
    pub segments: u64,
    /// Compactions finished since the store was opened.
    pub compactions: u64,
}

/// Value of the key that says that a group exists, while the group is emptied.
const EMPTYING: &[u8] = b"emptying";

/// Whether a key of a group is of what stays when the group is emptied.
fn is_kept(group: GroupId) -> impl Fn(&[u8]) -> bool {
    let kept = [keys::vote(group), keys::promised(group)];
    move |key| kept.iter().any(|kept| kept[..] == *key)
}

impl Store {
    /// Opens the data directory, creating it when missing, and starts the committer. Blocking.
    ///
    /// # Errors
    /// - [`Error::Config`]: a setting cannot be used.
    /// - [`Error::Locked`]: another process uses the directory.
    /// - [`Error::FormatTooNew`]: a newer release wrote it.
    /// - [`Error::CorruptJournal`]: acknowledged data would be lost; restore the file or discard the directory.
    /// - [`Error::Storage`]: the file system or the engine failed.
    pub fn open(config: &Config, observer: Option<SyncObserver>) -> Result<Self, Error> {
        if let Some((name, what)) = config.problems().into_iter().next() {
            return Err(Error::Config(format!("storage.{name}: {what}")));
        }
        let data_dir = &config.data_dir;
        std::fs::create_dir_all(data_dir)
            .map_err(|source| Error::path("create the data directory", data_dir, source))?;
        let lock = lock(data_dir)?;
        check_format(data_dir)?;
        let tables_dir = data_dir.join(TABLES_DIR);
        journal::check(&tables_dir)?;
        let check_file = CheckFile(Some(data_dir.join(CHECK_FILE)));
        let engine = catch_unwind(AssertUnwindSafe(|| {
            if check_file.is_there() {
                renew_index(&tables_dir, config)?;
                check_file.remove()?;
            }
            Engine::open(&tables_dir, config)
        }))
        .unwrap_or_else(|_| {
            // The engine asserts where it finds its own files inconsistent; a broker should say so instead of aborting.
            let contradiction = std::io::Error::other("the files contradict each other");
            Err(Error::path("open the tables in", &tables_dir, contradiction))
        })?;
        let engine = Arc::new(engine);
        let last_round = last_round(&engine)?;
        let queue = Arc::new(Queue::new(config, check_file.clone()));
        let background =
            BackgroundSync::start(tables_dir.clone(), last_round, Arc::clone(&queue), observer.clone())?;
        let committer = Committer::new(
            config,
            Arc::clone(&queue),
            Arc::clone(&engine),
            last_round,
            observer,
            Some(background),
        );
        let thread = std::thread::Builder::new()
            .name("storage-commit".to_owned())
            .spawn(move || committer.run())
            .map_err(|source| Error::storage("start the committer", source))?;
        let shared = Shared {
            engine,
            queue,
            space: Space::new(data_dir, config.reserve_bytes),
            tables_dir,
            purge_points: PurgePoints::default(),
            settles_in: match config.sync {
                super::Sync::Always => Duration::ZERO,
                super::Sync::Interval => config.sync_interval * 2,
            },
            check_file,
            thread: Mutex::new(Some(thread)),
            _lock: Some(lock),
            #[cfg(test)]
            simulated: None,
        };
        let store = Self { shared: Arc::new(shared) };
        boot::note(&store, config.sync)?;
        Ok(store)
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        Batch::new()
    }

    /// Waits for room for `bytes` in the commit queue. Tie the permit to the batch with [`Batch::hold`] before
    /// committing it. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Store::close`].
    pub async fn reserve(&self, bytes: u64) -> Result<Permit, Error> {
        self.shared.queue.reserve(bytes).await
    }

    /// Hands a batch to the committer. Never blocks, so a caller that may produce faster than the disk should have
    /// reserved room. Batches are written in the order of these calls; `done` runs on the committer's thread, must be
    /// short and must not block.
    pub fn commit(&self, batch: Batch, durability: Durability, done: Done) {
        self.shared.queue.push(batch, durability, done);
    }

    /// Reserves room, commits, and waits until the promise of `durability` holds. Once the room is there the batch is
    /// written even when the future is dropped.
    ///
    /// # Errors
    /// [`Error::Storage`] for the batches that a failed write took with it, [`Error::Failed`] for those after it,
    /// [`Error::Closed`] after [`Store::close`].
    pub async fn commit_and_wait(&self, mut batch: Batch, durability: Durability) -> Result<(), Error> {
        if !batch.holds_permit() {
            batch.hold(self.reserve(batch.bytes()).await?);
        }
        let (tx, rx) = tokio::sync::oneshot::channel();
        self.commit(batch, durability, Box::new(move |outcome| drop(tx.send(outcome))));
        rx.await.unwrap_or(Err(Error::Closed))
    }

    /// [`Store::commit_and_wait`] for code outside the runtime. Blocking.
    ///
    /// # Errors
    /// As for [`Store::commit_and_wait`].
    pub fn commit_blocking(&self, batch: Batch, durability: Durability) -> Result<(), Error> {
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        self.commit(batch, durability, Box::new(move |outcome| drop(tx.send(outcome))));
        #[cfg(test)]
        while self.step() {}
        rx.recv().unwrap_or(Err(Error::Closed))
    }

    /// Runs disk work on a thread where it may block.
    ///
    /// # Errors
    /// The work panicked, or the runtime is shutting down.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        #[cfg(test)]
        if self.shared.simulated.is_some() {
            // Another thread would take turns with this one as chance has it.
            return Ok(work());
        }
        tokio::task::spawn_blocking(work).await
    }

    /// How long after it was acknowledged what is written with [`Durability::Sync`] is on the disk, unless that is very busy.
    pub fn settles_in(&self) -> Duration {
        self.shared.settles_in
    }

    /// The log of a group; the group exists from now on. Blocking.
    ///
    /// # Errors
    /// [`Error::Storage`], or any error of a commit.
    pub fn log(&self, group: GroupId) -> Result<Log, Error> {
        let mut exists = self.get(Table::State, &keys::exists(group))?;
        if exists.take_if(|value| **value == *EMPTYING).is_some() {
            // A crash came in between. What is left would pass for a log that ends where its state does.
            self.remove_group(group, is_kept(group))?;
        }
        if exists.is_none() {
            let mut batch = Batch::new();
            batch.put(Table::State, keys::exists(group), Bytes::new());
            let number = self.shared.engine.index.newest();
            self.shared.engine.index.assign(group, number);
            if number > 0 {
                let number = keys::encode_index_number(number);
                batch.put(Table::State, keys::index_number(group), number);
            }
            self.commit_blocking(batch, Durability::Sync)?;
        }
        let table = self.shared.engine.log_table(group)?;
        Log::open(self.clone(), group, table, self.shared.purge_points.of(group))
    }

    /// Has a group that is not open begin its index anew, and make its rows from its log when it is opened next. Blocking.
    ///
    /// # Errors
    /// [`Error::Storage`], or any error of a commit.
    pub fn remake_index(&self, group: GroupId) -> Result<(), Error> {
        let engine = &self.shared.engine;
        engine.leave_index_table(group)?;
        let number = engine.index.newest();
        let mut batch = Batch::new();
        batch.put(Table::State, keys::index_number(group), keys::encode_index_number(number));
        for index in engine.checkpoints(group)? {
            batch.remove_checkpoint(group, index);
        }
        self.commit_blocking(batch, Durability::Always)?;
        engine.index.assign(group, number);
        tracing::warn!(name: "index.remade", %group, "the damaged index of a partition is made anew from its log");
        Ok(())
    }

    /// Removes everything of a group and gives its disk space back. The caller has stopped using the group's logs. A
    /// crash half-way leaves the group in [`Store::groups`], and deleting it again finishes the work. Blocking.
    ///
    /// # Errors
    /// [`Error::Storage`], or any error of a commit.
    pub fn delete_group(&self, group: GroupId) -> Result<(), Error> {
        self.remove_group(group, |_| false)
    }

    /// As [`Store::delete_group`], for a group that may come back to this node: `vote` and `promised`, the position up to
    /// which the log reached, stay, and are on disk before anything else goes. After a crash half-way [`Store::log`] finishes
    /// the work, too. Blocking.
    ///
    /// # Errors
    /// As for [`Store::delete_group`].
    pub fn empty_group(
        &self,
        group: GroupId,
        vote: impl Into<Bytes>,
        promised: Position,
    ) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.put_vote(group, vote);
        batch.put(Table::State, keys::promised(group), Bytes::copy_from_slice(&promised.encode()));
        batch.put(Table::State, keys::exists(group), Bytes::from_static(EMPTYING));
        self.commit_blocking(batch, Durability::Always)?;
        self.remove_group(group, is_kept(group))
    }

    fn remove_group(&self, group: GroupId, keep: impl Fn(&[u8]) -> bool) -> Result<(), Error> {
        // What was committed before must not be written after its table is gone.
        self.commit_blocking(Batch::new(), Durability::Sync)?;
        let prefix = keys::group_prefix(group);
        if group.is_partition() {
            self.shared.engine.delete_partition(group)?;
        } else {
            let log = self.shared.engine.log_table(group)?;
            self.remove_where(&Table::Log(log), prefix, |_| true)?;
        }
        if let Err(error) = self.remove_where(&Table::Index(group), prefix, |_| true) {
            if !error.is_damage() {
                return Err(error);
            }
            // What is left is never looked at, because the group begins in another table.
            self.shared.engine.leave_index_table(group)?;
        }
        self.remove_where(&Table::State, prefix, |key| keys::group_of_exists(key).is_none() && !keep(key))?;
        let mut batch = Batch::new();
        batch.remove(Table::State, keys::exists(group));
        self.commit_blocking(batch, Durability::Sync)?;
        self.shared.purge_points.forget(group);
        self.shared.engine.forget_index_table(group);
        self.shared.engine.release_files()
    }

    /// Every group that exists here, in order. Blocking.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn groups(&self) -> Result<Vec<GroupId>, Error> {
        let mut groups: BTreeSet<GroupId> = self.shared.engine.partitions().into_iter().collect();
        groups.extend(self.shared.engine.groups_with_state()?);
        Ok(groups.into_iter().collect())
    }

    /// Every group of which only what [`Store::empty_group`] keeps is here, in order. Blocking.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn emptied_groups(&self) -> Result<Vec<GroupId>, Error> {
        let (mut emptied, mut existing) = (BTreeSet::new(), BTreeSet::new());
        for row in self.shared.engine.state.iter() {
            let key = row.key().map_err(|source| Error::storage("list the emptied groups", source))?;
            existing.extend(keys::group_of_exists(&key));
            emptied.extend(keys::group_of_promised(&key));
        }
        Ok(emptied.difference(&existing).copied().collect())
    }

    /// A record of the broker itself, such as its id. Blocking.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn meta_get(&self, name: &str) -> Result<Option<Bytes>, Error> {
        self.get(Table::Meta, &keys::meta(name))
    }

    /// Replaces a record of the broker itself and waits until it is on disk. Blocking.
    ///
    /// # Errors
    /// Any error of a commit.
    pub fn meta_put(&self, name: &str, value: impl Into<Bytes>) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.put(Table::Meta, keys::meta(name), value.into());
        self.commit_blocking(batch, Durability::Sync)
    }

    /// What the store takes of the disk. Costs a look at each table, not at its rows.
    pub fn usage(&self) -> Usage {
        let (used_bytes, segments, compactions) =
            self.shared.engine.usage(&self.shared.tables_dir).unwrap_or_else(|error| {
                tracing::warn!(error = &error as &dyn std::error::Error, "disk usage is unknown");
                Default::default()
            });
        Usage { used_bytes, available_bytes: self.shared.space.available(), segments, compactions }
    }

    /// Whether records may be written. The committer does not ask: what frees space must go through.
    ///
    /// # Errors
    /// [`Error::DiskFull`] while less than the reserve is free, [`Error::Failed`] after a failed write.
    pub fn writable(&self) -> Result<(), Error> {
        self.healthy()?;
        self.shared.space.writable()
    }

    /// Whether records may be written that others agree on. Their leaders have not looked at this disk; and the groups that all
    /// brokers share, through which space is freed, need what is left.
    ///
    /// # Errors
    /// [`Error::DiskFull`] while less than half of the reserve is free.
    pub fn can_follow(&self) -> Result<(), Error> {
        self.shared.space.has(self.shared.space.reserve() / 2)
    }

    /// Whether writing works at all.
    ///
    /// # Errors
    /// [`Error::Failed`] after a failed write.
    pub fn healthy(&self) -> Result<(), Error> {
        self.shared.queue.healthy()
    }

    /// Completes when a write has failed, with [`Error::Failed`]. Cancel-safe.
    pub async fn failed(&self) -> Error {
        let queue = &self.shared.queue;
        queue.over.cancelled().await;
        queue.healthy().err().unwrap_or(Error::Closed)
    }

    /// What the committer did so far.
    pub fn stats(&self) -> &Stats {
        &self.shared.queue.stats
    }

    /// Writes and syncs what waits, and stops the committer. Later commits fail with [`Error::Closed`]; the directory
    /// is free for another process when the last handle is gone. Blocking.
    ///
    /// # Errors
    /// [`Error::Failed`] if something could not be written, now or before.
    pub fn close(self) -> Result<(), Error> {
        self.shared.stop();
        self.healthy()
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// What it means that index rows of a group cannot be read. If they are damaged the table is replaced at the next start.
    pub(super) fn index_error(&self, group: GroupId, source: fjall::Error) -> Error {
        let Some(what) = damage(&source) else { return Error::storage("read the index", source) };
        if self.shared.check_file.put() {
            tracing::error!(
                name: "index.damaged",
                %group,
                reason = what,
                "a table of index rows is damaged; replicas that meet it are repaired, and the next start replaces it"
            );
        }
        Error::IndexDamaged { group }
    }

    /// The value of a key as of now.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let value = self
            .shared
            .engine
            .rows(&table)
            .get(key)
            .map_err(|source| Error::storage("read a record", source))?;
        Ok(value.map(Bytes::from))
    }

    /// Removes the keys of a group in a shared table that `chosen` picks, a chunk at a time.
    fn remove_where(
        &self,
        table: &Table,
        prefix: [u8; 8],
        chosen: impl Fn(&[u8]) -> bool,
    ) -> Result<(), Error> {
        let mut batch = Batch::new();
        for row in self.shared.engine.rows(table).prefix(prefix) {
            let key = row.key().map_err(|source| match table {
                Table::Index(group) => self.index_error(*group, source),
                _ => Error::storage("read keys", source),
            })?;
            if chosen(&key) {
                batch.remove(table.clone(), key.into());
            }
            if batch.len() >= REMOVE_CHUNK {
                self.commit_blocking(std::mem::take(&mut batch), Durability::Lazy)?;
            }
        }
        self.commit_blocking(batch, Durability::Lazy)
    }
}

#[cfg(test)]
impl Store {
    /// A store on a simulated disk. Nothing is written until [`Store::step`] is called, or somebody blocks.
    pub fn simulated(disk: &Disk, sync: super::Sync, observer: StateObserver) -> Result<Self, Error> {
        let config = Config {
            sync,
            // Real time must not decide anything.
            sync_interval: Duration::MAX,
            reserve_bytes: 0,
            ..Config::in_dir("simulated")
        };
        let engine = Arc::new(Engine::on(Database::Simulated(disk.clone()), &config)?);
        let queue = Arc::new(Queue::new(&config, CheckFile::default()));
        let last_round = last_round(&engine)?;
        let committer =
            Committer::new(&config, Arc::clone(&queue), Arc::clone(&engine), last_round, None, None);
        let shared = Shared {
            engine,
            queue,
            space: Space::new(Path::new("/"), 0),
            tables_dir: PathBuf::new(),
            purge_points: PurgePoints::default(),
            settles_in: Duration::ZERO,
            check_file: CheckFile::default(),
            thread: Mutex::new(None),
            _lock: None,
            simulated: Some(Simulated { disk: disk.clone(), committer: Mutex::new(committer), observer }),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The machine ended without a sync.
    pub fn doubt_logs(&self) -> Result<(), Error> {
        boot::doubt(self).map(drop)
    }

    /// Completes when a batch waits to be written on a simulated disk.
    pub async fn batch_came(&self) {
        self.shared.queue.bell.notified().await;
    }

    /// Writes what waits for a simulated disk, syncs it if somebody wants that, and tells everybody. Returns whether
    /// there was anything.
    pub fn step(&self) -> bool {
        let Some(simulated) = &self.shared.simulated else { return false };
        simulated.committer.lock().unwrap_or_else(PoisonError::into_inner).step()
    }

    /// Syncs a simulated disk.
    pub fn sync_simulated(&self) {
        if self.healthy().is_ok()
            && let Err(error) = self.shared.engine.sync()
        {
            self.shared.queue.fail(&error);
        }
    }

    /// Makes the store fail, as a write does that the disk refuses.
    pub fn break_down(&self) {
        let refused = std::io::Error::other("the disk refuses writes");
        self.shared.queue.fail(&Error::storage("write", refused));
    }

    /// Ends a store on a simulated disk in the middle of what it does, and gives the disk as it is found afterwards.
    /// `begun` says how many of the batches that wait may reach the disk, `survive` how many of the rounds that are not
    /// synced the crash leaves.
    pub fn crash(
        &self,
        begun: impl FnOnce(usize) -> usize,
        survive: impl FnOnce(usize) -> usize,
    ) -> Option<Disk> {
        let simulated = self.shared.simulated.as_ref()?;
        simulated.committer.lock().unwrap_or_else(PoisonError::into_inner).crash(begun);
        Some(simulated.disk.crash(survive))
    }

    /// Tells the observer of a simulated store what state a group is in.
    pub fn observe_state(&self, state: impl FnOnce() -> Option<ObservedState>) {
        if let Some(simulated) = &self.shared.simulated
            && let Some(state) = state()
        {
            (simulated.observer)(state);
        }
    }
}

impl Shared {
    fn stop(&self) {
        self.queue.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last handle may go with a callback on the committer's own thread, which cannot wait for itself.
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the committer panicked");
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A file that has the next start look at the tables of index rows. A simulated store has none.
#[derive(Clone, Debug, Default)]
pub(super) struct CheckFile(Option<PathBuf>);

impl CheckFile {
    fn is_there(&self) -> bool {
        self.0.as_ref().is_some_and(|path| path.exists())
    }

    /// Returns whether it was not there before. A disk that refuses it refuses everything else, too.
    pub(super) fn put(&self) -> bool {
        !self.is_there() && self.0.as_ref().is_some_and(|path| File::create(path).is_ok())
    }

    fn remove(&self) -> Result<(), Error> {
        let Some(path) = &self.0 else { return Ok(()) };
        std::fs::remove_file(path).map_err(|source| Error::path("remove", path, source))
    }
}

fn renew_index(tables_dir: &Path, config: &Config) -> Result<(), Error> {
    if let Some(renewed) = index_tables::renew(tables_dir, config)? {
        tracing::warn!(
            name: "index.replaced",
            copied = renewed.copied,
            applied_anew = renewed.applied_anew,
            "a damaged table of index rows was replaced; replicas whose rows are lost apply their logs once more"
        );
    }
    Ok(())
}

fn last_round(engine: &Engine) -> Result<u64, Error> {
    let value =
        engine.meta.get(keys::ROUND).map_err(|source| Error::storage("read the last round", source))?;
    Ok(value.and_then(|value| Round::decode(&value)).map_or(0, |round| round.number))
}

fn lock(data_dir: &Path) -> Result<File, Error> {
    let path = data_dir.join(LOCK_FILE);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| Error::path("open the lock file", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { data_dir: data_dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(Error::path("lock", &path, source)),
    }
}

/// Reads the format record, or writes it into a new directory.
fn check_format(data_dir: &Path) -> Result<(), Error> {
    let path = data_dir.join(FORMAT_FILE);
    let bad = || Error::path("read the format record", &path, std::io::Error::other("it is not a number"));
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<u32>().map_err(|_| bad())? {
            found if found > FORMAT => {
                Err(Error::FormatTooNew { data_dir: data_dir.to_owned(), found, supported: FORMAT })
            }
            _ => Ok(()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => write_format(data_dir, &path)
            .map_err(|source| Error::path("write the format record", &path, source)),
        Err(source) => Err(Error::path("read the format record", &path, source)),
    }
}

fn write_format(data_dir: &Path, path: &Path) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    writeln!(file, "{FORMAT}")?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    File::open(data_dir)?.sync_all()
}
