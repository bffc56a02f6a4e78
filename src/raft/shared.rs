//! What the parts of one replica share: its place in the store, the tail of its log, and what outsiders may
//! know.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::catch_up::CatchUp;
use super::network::Transport;
use super::promise::Promise;
use super::tail::Tail;
use super::types::Vote;
use super::{Error, Role, Status, Watch};
use crate::storage::{self, GroupId, Log, Store};

/// Shared by a replica's log store, state machine and handle. Its locks guard leaf data and are never held
/// together.
pub(super) struct Shared {
    pub(super) group: GroupId,
    pub(super) store: Store,
    pub(super) log: Log,
    /// The most bytes of entries read at once for a follower.
    pub(super) append_bytes_max: u64,
    /// What this group may read of that from the disk.
    pub(super) catch_up: CatchUp,
    /// The world outside.
    pub(super) transport: Arc<dyn Transport>,
    /// Removal of purged rows, under way.
    pub(super) purges: TaskTracker,
    /// What the store's callbacks need. They must not keep the store itself alive: they run on its thread.
    pub(super) progress: Arc<Progress>,
    /// The newest snapshot that was stored since the replica opened. Held while one is being stored, so that none replaces
    /// a newer one.
    pub(super) snapshot: tokio::sync::Mutex<Option<u64>>,
    vote: Mutex<Option<Vote>>,
    pub(super) promise: Promise,
    /// When a leader last spoke to this replica.
    heard: Mutex<Option<tokio::time::Instant>>,
    status: watch::Sender<Status>,
    /// Whether this replica leads and keeps silent, so that the others elect somebody.
    silent: AtomicBool,
    /// When entries up to an index were appended, for groups with followers.
    appends: Mutex<VecDeque<(u64, Instant)>>,
}

/// Appends whose times are kept. Followers that lack more are told of by their lag.
const APPENDS_MAX: usize = 256;

/// How far the store got with a group's writes, and whether it failed.
pub(super) struct Progress {
    group: GroupId,
    tail: Mutex<Tail>,
    /// The first failure; what follows from it is not interesting.
    failure: Mutex<Option<Error>>,
}

impl Shared {
    pub(super) fn new(
        log: Log,
        append_bytes_max: u64,
        catch_up: CatchUp,
        tail: Tail,
        vote: Option<Vote>,
        promise: Promise,
        transport: Arc<dyn Transport>,
    ) -> Arc<Self> {
        let group = log.group();
        Arc::new(Shared {
            group,
            store: log.store().clone(),
            log,
            append_bytes_max,
            catch_up,
            transport,
            purges: TaskTracker::new(),
            progress: Arc::new(Progress { group, tail: Mutex::new(tail), failure: Mutex::new(None) }),
            snapshot: tokio::sync::Mutex::default(),
            vote: Mutex::new(vote),
            promise,
            heard: Mutex::default(),
            status: watch::Sender::new(Status::default()),
            silent: AtomicBool::new(false),
            appends: Mutex::default(),
        })
    }

    pub(super) fn tail(&self) -> MutexGuard<'_, Tail> {
        self.progress.tail()
    }

    /// Notes that entries up to `last` are appended now, if somebody follows.
    pub(super) fn note_append(&self, last: u64) {
        if self.status.borrow().members.len() < 2 {
            return;
        }
        let mut appends = lock(&self.appends);
        if appends.len() == APPENDS_MAX {
            appends.pop_front();
        }
        appends.push_back((last, Instant::now()));
    }

    /// How long ago the entry at `index` was appended, if that is known.
    pub(super) fn since_append(&self, index: u64) -> Option<Duration> {
        let appends = lock(&self.appends);
        let at = appends.partition_point(|(last, _)| *last < index);
        // Before the first one that is kept nothing is known.
        let (_, appended) = appends.get(at).filter(|_| at > 0 || appends[0].0 == index)?;
        Some(appended.elapsed())
    }

    /// Notes that a leader speaks to this replica now.
    pub(super) fn hear(&self) {
        *lock(&self.heard) = Some(tokio::time::Instant::now());
    }

    /// When a leader last spoke to this replica.
    pub(super) fn heard(&self) -> Option<tokio::time::Instant> {
        *lock(&self.heard)
    }

    pub(super) fn vote(&self) -> MutexGuard<'_, Option<Vote>> {
        lock(&self.vote)
    }

    /// What outsiders may know, as it is now.
    pub(super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The same, and whenever it changes.
    pub(super) fn watch(&self) -> Watch {
        Watch(self.status.subscribe())
    }

    /// Changes the status and wakes those who watch it.
    pub(super) fn update_status(&self, change: impl FnOnce(&mut Status)) {
        self.update_status_if(|status| {
            change(status);
            true
        });
    }

    /// Changes the status, and wakes those who watch it if `change` says so. The transport hears if that makes this
    /// replica a leader that may answer, or ends it.
    pub(super) fn update_status_if(&self, change: impl FnOnce(&mut Status) -> bool) {
        let mut turned = false;
        self.status.send_if_modified(|status| {
            let before = status.is_ready_leader();
            let changed = change(status);
            turned = status.is_ready_leader() != before;
            changed
        });
        if turned {
            self.transport.led(self.group);
        }
    }

    /// Notes why the replica cannot go on, and gives openraft an error to stop with.
    pub(super) fn fail(&self, error: impl Into<Error>) -> io::Error {
        self.progress.fail(error)
    }

    /// What an operation gets for an error: the first failure if there was one, otherwise that the replica is stopped.
    pub(super) fn stopped(&self) -> Error {
        self.failure().unwrap_or(Error::Stopped)
    }

    /// The first failure.
    pub(super) fn failure(&self) -> Option<Error> {
        lock(&self.progress.failure).clone()
    }

    /// Begins or ends the silence of a leader whose leadership is let go.
    pub(super) fn keep_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    pub(super) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Whether the replica will do nothing more.
    pub(super) fn is_stopped(&self) -> bool {
        self.status.borrow().role == Role::Stopped
    }
}

impl Progress {
    pub(super) fn tail(&self) -> MutexGuard<'_, Tail> {
        lock(&self.tail)
    }

    /// Notes why the replica cannot go on, unless an earlier reason is known, and gives openraft an error to stop with.
    pub(super) fn fail(&self, error: impl Into<Error>) -> io::Error {
        let error = error.into();
        let message = error.to_string();
        let mut failure = lock(&self.failure);
        if failure.is_none() {
            *failure = Some(error);
        }
        io::Error::other(message)
    }

    /// A store error with nobody to return it to. The next append fails too and stops the replica.
    pub(super) fn fail_in_background(&self, error: storage::Error) {
        tracing::error!(group = %self.group, error = %error, "the store refused rows of a group");
        let _ = self.fail(error);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data stays consistent at every step, so a panic of another holder does not matter.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
