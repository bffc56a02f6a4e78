//! Keeps the logs of the system's own groups short: what a checkpoint holds is purged from the log.
//!
//! A partition's log is its data, and goes when retention says so. The log of a group whose state is all that matters
//! goes as soon as it has grown enough to be worth a checkpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tracing::warn;

use crate::raft::{Error, Group, Machine, Role};

/// What a log row costs beside its command, in bytes, roughly.
const ROW_BYTES: u64 = 64;
/// A checkpoint writes the whole state, so the log grows to this many times the state before it is purged.
const LOG_PER_STATE: u64 = 4;
/// A log with more rows than this is purged when it is opened: what earlier runs left in it is not counted otherwise.
const ROWS_AT_OPEN: u64 = 100;

/// How far a log has grown since it was last purged. The group's machine counts, the purger acts.
#[derive(Debug)]
pub(super) struct Growth {
    limit: u64,
    bytes: AtomicU64,
    state_bytes: AtomicU64,
    due: Notify,
}

impl Growth {
    /// Of a log that is purged every `limit` bytes, or more rarely if the state is large.
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Growth {
            limit,
            bytes: AtomicU64::new(0),
            state_bytes: AtomicU64::new(0),
            due: Notify::new(),
        })
    }

    /// Counts a command that was applied.
    pub(super) fn applied(&self, command: &[u8]) {
        let added = command.len() as u64 + ROW_BYTES;
        let bytes = self.bytes.fetch_add(added, Ordering::Relaxed) + added;
        if bytes >= self.limit.max(self.state_bytes.load(Ordering::Relaxed).saturating_mul(LOG_PER_STATE)) {
            self.due.notify_one();
        }
    }

    /// Notes how large the state is.
    pub(super) fn encoded(&self, state: &[u8]) {
        self.state_bytes.store(state.len() as u64, Ordering::Relaxed);
    }
}

/// Purges the log of a group whenever it has grown enough, until the group stops. May be dropped at any point.
pub(super) async fn run<M: Machine>(group: Group<M>, growth: Arc<Growth>) {
    if !opened(&group).await {
        return;
    }
    loop {
        growth.due.notified().await;
        growth.bytes.store(0, Ordering::Relaxed);
        if !purge(&group).await {
            return;
        }
    }
}

/// Purges what earlier runs left. Returns whether the group goes on.
async fn opened<M: Machine>(group: &Group<M>) -> bool {
    let mut status = group.status();
    let applied = status.wait_for(|s| s.failed.is_some() || (s.leader.is_some() && s.applied >= s.committed));
    let rows = match applied.await {
        Ok(status) if status.failed.is_some() => return false,
        Ok(status) => status.last_index.unwrap_or(0).saturating_sub(status.purged.unwrap_or(0)),
        Err(_) => return false,
    };
    rows <= ROWS_AT_OPEN || purge(group).await
}

/// Returns whether the group goes on.
async fn purge<M: Machine>(group: &Group<M>) -> bool {
    match group.purge_to(u64::MAX).await {
        Ok(_) => true,
        Err(Error::Stopped) => false,
        Err(error) => {
            // It is tried again when the log has grown as much once more.
            warn!(group = %group.id(), error = %error, "the log of a group could not be purged");
            group.status().now().role != Role::Stopped
        }
    }
}
