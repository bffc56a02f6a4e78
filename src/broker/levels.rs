//! How many consumers wait right now.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::telemetry::ConsumeLevels;

/// Counts of what is open, read when metrics are collected.
#[derive(Debug, Default)]
pub(super) struct Levels {
    subscriptions: Arc<AtomicU64>,
    waiting: Arc<AtomicU64>,
}

/// Counts one until it is dropped.
#[derive(Debug)]
pub(super) struct Guard(Arc<AtomicU64>);

impl Guard {
    fn new(counter: &Arc<AtomicU64>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Guard(counter.clone())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Levels {
    pub(super) fn subscribed(&self) -> Guard {
        Guard::new(&self.subscriptions)
    }

    pub(super) fn waiting(&self) -> Guard {
        Guard::new(&self.waiting)
    }

    pub(super) fn read(&self) -> ConsumeLevels {
        ConsumeLevels {
            subscriptions: self.subscriptions.load(Ordering::Relaxed),
            fetches_waiting: self.waiting.load(Ordering::Relaxed),
        }
    }
}
