//! The asynchronous runtime, as far as its stable interface tells.

use std::sync::{Arc, Mutex};

use tokio::runtime::{Handle, RuntimeMetrics as Tokio};

use super::catalog;
use super::instruments::{Instruments, lock};

/// Instruments of the runtime that serves requests.
#[derive(Debug)]
pub struct RuntimeMetrics(Arc<Mutex<Option<Tokio>>>);

impl RuntimeMetrics {
    pub(super) fn new(instruments: &Instruments) -> Self {
        let runtime: Arc<Mutex<Option<Tokio>>> = Arc::default();
        let integers = |row, read: fn(&Tokio) -> usize| {
            let runtime = runtime.clone();
            instruments.integers(row, move |sink| {
                if let Some(runtime) = lock(&runtime).as_ref() {
                    sink(read(runtime) as u64, &[]);
                }
            });
        };
        integers(catalog::RUNTIME_WORKERS, Tokio::num_workers);
        integers(catalog::RUNTIME_TASKS, Tokio::num_alive_tasks);
        integers(catalog::RUNTIME_QUEUE, Tokio::global_queue_depth);
        let busy = runtime.clone();
        instruments.floats(catalog::RUNTIME_BUSY, move |sink| {
            if let Some(runtime) = lock(&busy).as_ref() {
                let seconds: f64 = (0..runtime.num_workers())
                    .map(|worker| runtime.worker_total_busy_duration(worker).as_secs_f64())
                    .sum();
                sink(seconds, &[]);
            }
        });
        RuntimeMetrics(runtime)
    }

    pub(super) fn observe(&self, handle: &Handle) {
        *lock(&self.0) = Some(handle.metrics());
    }
}
