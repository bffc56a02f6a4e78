//! Work on the journals beside writing: the committer goes on while the disk works.
//!
//! The engine's own sync holds its journal, so that nothing can be written meanwhile. A sync through handles of our own
//! on the same files does not: the system syncs the file, whoever wrote to it.
//!
//! What is on disk is taken out of the system's page cache: nothing but a start after a crash reads a journal, and the
//! memory is worth more for what consumers read. It is also where the next write finds memory without asking for more.

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

/// What is to be done with every journal.
enum Request {
    /// Sync it, and forget it.
    Sync {
        /// Every round up to this one was written.
        round: u64,
        observation: SyncObservation,
    },
    /// Take what is on disk out of the page cache.
    Forget,
}

/// A thread that syncs and forgets the journals when it is told to.
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
            .spawn(move || {
                let work = || run(&directory, &receiver, &shared, &queue, observer.as_ref());
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                    queue.fail(&Error::storage("sync the journal", io::Error::other("the syncer panicked")));
                }
            })
            .map_err(|source| Error::storage("start the syncer", source))?;
        Ok(BackgroundSync { requests: Some(requests), progress, thread: Some(thread) })
    }

    /// Begins to sync everything up to `round`, unless the thread is busy. Returns whether it began.
    pub fn begin(&self, round: u64, observation: SyncObservation) -> bool {
        self.request(Request::Sync { round, observation })
    }

    /// Begins to take what was synced out of the page cache, unless the thread is busy. Returns whether it began.
    pub fn forget(&self) -> bool {
        self.request(Request::Forget)
    }

    fn request(&self, request: Request) -> bool {
        if self.is_busy() {
            return false;
        }
        self.progress.busy.store(true, Ordering::Release);
        self.requests.as_ref().is_some_and(|requests| requests.try_send(request).is_ok())
    }

    /// Whether the thread is at work.
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
    while let Ok(request) = requests.recv() {
        match request {
            Request::Sync { round, observation } => {
                let started = Instant::now();
                match for_journals(directory, File::sync_data) {
                    Ok(()) => progress.synced.store(round, Ordering::Release),
                    Err(source) => queue.fail(&Error::storage("sync the journal", source)),
                }
                queue.stats.syncs.fetch_add(1, Ordering::Relaxed);
                if let Some(observer) = observer {
                    observer(SyncObservation { duration: started.elapsed(), ..observation });
                }
            }
            Request::Forget => {}
        }
        // Memory is all that is at stake here.
        if let Err(error) = for_journals(directory, forget) {
            tracing::debug!(%error, "the journals stay in the page cache");
        }
        progress.busy.store(false, Ordering::Release);
    }
}

/// Does something to every journal file. One that disappears meanwhile is in tables, which the engine has synced.
fn for_journals(directory: &Path, act: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "jnl") {
            continue;
        }
        match File::open(&path) {
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
            opened => act(&opened?)?,
        }
    }
    Ok(())
}

/// Pages that are not on disk yet stay, and the system begins to write them.
#[cfg(target_os = "linux")]
fn forget(journal: &File) -> io::Result<()> {
    Ok(rustix::fs::fadvise(journal, 0, None, rustix::fs::Advice::DontNeed)?)
}

/// Other systems have no such call, or another one.
#[cfg(not(target_os = "linux"))]
fn forget(_journal: &File) -> io::Result<()> {
    Ok(())
}
