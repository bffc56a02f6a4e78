//! Syncing beside writing, for `sync = "interval"`: the committer goes on while the disk works.
//!
//! The engine's own sync holds its journal, so that nothing can be written meanwhile. A sync through handles of our own
//! on the same files does not: the system syncs the file, whoever wrote to it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use super::Error;
use super::committer::{Queue, SyncObservation, SyncObserver};

/// What is to be synced.
struct Request {
    /// Every round up to this one was written.
    round: u64,
    observation: SyncObservation,
}

/// A thread that syncs the journals when it is told to.
pub struct BackgroundSync {
    requests: Option<SyncSender<Request>>,
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Progress {
    busy: AtomicBool,
    /// Every round up to this one is on disk.
    synced: AtomicU64,
}

impl BackgroundSync {
    /// Starts the thread. A sync that fails ends writing, like a write that fails.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        directory: PathBuf,
        last_round: u64,
        queue: Arc<Queue>,
        observer: Option<SyncObserver>,
    ) -> Result<Self, Error> {
        let (requests, receiver) = sync_channel(1);
        let progress = Arc::new(Progress { synced: AtomicU64::new(last_round), ..Progress::default() });
        let shared = Arc::clone(&progress);
        let thread = std::thread::Builder::new()
            .name("storage-sync".to_owned())
            .spawn(move || run(&directory, &receiver, &shared, &queue, observer.as_ref()))
            .map_err(|source| Error::storage("start the syncer", source))?;
        Ok(BackgroundSync { requests: Some(requests), progress, thread: Some(thread) })
    }

    /// Begins to sync everything up to `round`, unless a sync is under way. Returns whether it began.
    pub fn begin(&self, round: u64, observation: SyncObservation) -> bool {
        if self.is_busy() {
            return false;
        }
        self.progress.busy.store(true, Ordering::Release);
        self.requests
            .as_ref()
            .is_some_and(|requests| requests.try_send(Request { round, observation }).is_ok())
    }

    /// Whether a sync is under way.
    pub fn is_busy(&self) -> bool {
        self.progress.busy.load(Ordering::Acquire)
    }

    /// The last round that is on disk.
    pub fn synced(&self) -> u64 {
        self.progress.synced.load(Ordering::Acquire)
    }
}

impl Drop for BackgroundSync {
    /// Waits for the sync that is under way.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the syncer panicked");
        }
    }
}

fn run(
    directory: &Path,
    requests: &Receiver<Request>,
    progress: &Progress,
    queue: &Queue,
    observer: Option<&SyncObserver>,
) {
    while let Ok(Request { round, observation }) = requests.recv() {
        let started = Instant::now();
        match sync_journals(directory) {
            Ok(()) => progress.synced.store(round, Ordering::Release),
            Err(source) => queue.fail(&Error::storage("sync the journal", source)),
        }
        queue.stats.syncs.fetch_add(1, Ordering::Relaxed);
        if let Some(observer) = observer {
            observer(SyncObservation { duration: started.elapsed(), ..observation });
        }
        progress.busy.store(false, Ordering::Release);
    }
}

/// Syncs every journal file. One that disappears meanwhile is in tables, which the engine has synced.
fn sync_journals(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "jnl") {
            continue;
        }
        match File::open(&path).and_then(|journal| journal.sync_data()) {
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}
