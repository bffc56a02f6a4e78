//! Named background tasks with an owner: spawned in one place, cancelled together, drained with a deadline.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

/// What it means when a task ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criticality {
    /// The process cannot do its work without the task: its panic stops the process.
    Critical,
    /// The process goes on; the panic is logged.
    BestEffort,
}

/// Spawns tasks, and stops and joins them. Clones share the same tasks.
#[derive(Clone, Debug)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tracker: TaskTracker,
    stop: CancellationToken,
    failed: CancellationToken,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// A set without tasks.
    pub fn new() -> Self {
        Self::with_token(CancellationToken::new(), CancellationToken::new())
    }

    /// A set whose tasks stop when `self`'s do, and which can be stopped alone.
    pub fn child(&self) -> Self {
        Self::with_token(self.inner.stop.child_token(), self.inner.failed.clone())
    }

    fn with_token(stop: CancellationToken, failed: CancellationToken) -> Self {
        Tasks { inner: Arc::new(Inner { tracker: TaskTracker::new(), stop, failed }) }
    }

    /// Runs `future` until it ends. It must watch [`Tasks::stopping`] if it would not end by itself.
    pub fn spawn<F>(&self, name: &'static str, criticality: Criticality, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let failed = self.inner.failed.clone();
        let inner = tokio::spawn(future);
        self.inner.tracker.spawn(async move {
            match inner.await {
                Ok(()) => debug!(task = name, "task ended"),
                Err(join) if join.is_cancelled() => debug!(task = name, "task cancelled"),
                Err(_) => {
                    error!(task = name, "task panicked");
                    if criticality == Criticality::Critical {
                        failed.cancel();
                    }
                }
            }
        });
    }

    /// Runs `future`, dropping it when the set stops. Only for futures that may be dropped at any await.
    pub fn spawn_until_stopped<F>(&self, name: &'static str, criticality: Criticality, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.inner.stop.clone();
        self.spawn(name, criticality, async move {
            stop.run_until_cancelled(future).await;
        });
    }

    /// Completes when the set is told to stop.
    pub async fn stopping(&self) {
        self.inner.stop.cancelled().await;
    }

    /// A token that is cancelled when the set is told to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.inner.stop
    }

    /// Completes when a critical task of this set, of its parent or of a sibling has panicked.
    pub async fn failed(&self) {
        self.inner.failed.cancelled().await;
    }

    /// Tells every task to stop and waits for them. Returns whether all ended before the deadline.
    pub async fn stop(&self, deadline: Duration) -> bool {
        self.inner.stop.cancel();
        self.inner.tracker.close();
        tokio::time::timeout(deadline, self.inner.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stop_ends_tasks_of_a_child_set() {
        let parent = Tasks::new();
        let child = parent.child();
        child.spawn_until_stopped("waits", Criticality::BestEffort, std::future::pending());
        parent.stop(Duration::from_secs(5)).await;
        assert!(child.stop(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn stop_reports_a_task_that_does_not_end() {
        let tasks = Tasks::new();
        tasks.spawn("deaf", Criticality::BestEffort, std::future::pending());
        assert!(!tasks.stop(Duration::from_millis(10)).await);
    }

    #[tokio::test]
    async fn panic_of_a_critical_task_is_reported() {
        let tasks = Tasks::new();
        tasks.child().spawn("panics", Criticality::Critical, async { panic!("expected by the test") });
        tokio::time::timeout(Duration::from_secs(5), tasks.failed()).await.expect("failure reported");
    }
}
