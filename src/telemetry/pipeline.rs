//! Bounded queues between the code that makes spans and log records and the thread that exports them.
//!
//! Offering never waits: when the queue is full the item is dropped and counted.

use std::future::Future;
use std::time::Duration;

use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogProcessor, SdkLogRecord};
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::exporting::{Loss, Signal};
use super::metrics::Metrics;

/// The entrance of a queue.
#[derive(Debug)]
pub(super) struct Entrance<T> {
    queue: mpsc::Sender<T>,
    signal: Signal,
    metrics: Metrics,
}

impl<T> Clone for Entrance<T> {
    fn clone(&self) -> Self {
        Entrance { queue: self.queue.clone(), signal: self.signal, metrics: self.metrics.clone() }
    }
}

impl<T> Entrance<T> {
    /// A queue for `limit` items of `signal`.
    pub(super) fn new(signal: Signal, limit: usize, metrics: Metrics) -> (Self, mpsc::Receiver<T>) {
        let (queue, exit) = mpsc::channel(limit);
        (Entrance { queue, signal, metrics }, exit)
    }

    /// How many items wait.
    pub(super) fn waiting(&self) -> u64 {
        (self.queue.max_capacity() - self.queue.capacity()) as u64
    }

    fn offer(&self, item: T) {
        let loss = match self.queue.try_send(item) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => Loss::QueueFull,
            // After shutdown.
            Err(TrySendError::Closed(_)) => Loss::ExportFailed,
        };
        self.metrics.exporting.dropped(self.signal, loss, 1);
    }
}

/// Takes finished spans.
pub(super) type SpanEntrance = Entrance<SpanData>;

/// A log record and where it comes from.
pub(super) type LogItem = Box<(SdkLogRecord, InstrumentationScope)>;

/// Takes log records.
pub(super) type LogEntrance = Entrance<LogItem>;

impl SpanProcessor for SpanEntrance {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.offer(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    /// The export thread flushes; see `Telemetry::shutdown`.
    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl LogProcessor for LogEntrance {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        self.offer(Box::new((record.clone(), scope.clone())));
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// How often a batch that is not full is added to. Waking the export thread for each item would cost whoever offers it
/// more than the item itself.
const GATHER_EVERY: Duration = Duration::from_millis(10);

/// Moves items from `queue` to `export` in batches until `stop`, then what is left.
///
/// A batch is exported when it is seen to be full, or when its first item has waited for `delay`. One export runs at a
/// time.
pub(super) async fn drain<T, E, F>(
    mut queue: mpsc::Receiver<T>,
    batch_max: usize,
    delay: Duration,
    stop: CancellationToken,
    mut export: E,
) where
    E: FnMut(Vec<T>) -> F,
    F: Future<Output = ()>,
{
    while !stop.is_cancelled() {
        let mut batch = Vec::new();
        // Both arms are cancel-safe: `recv_many` takes nothing unless it completes.
        tokio::select! {
            () = stop.cancelled() => break,
            received = queue.recv_many(&mut batch, batch_max) => if received == 0 { return },
        }
        let until = Instant::now() + delay;
        loop {
            while batch.len() < batch_max
                && let Ok(item) = queue.try_recv()
            {
                batch.push(item);
            }
            let now = Instant::now();
            if batch.len() >= batch_max || now >= until {
                break;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep_until(until.min(now + GATHER_EVERY)) => {}
            }
        }
        export(batch).await;
    }
    // No more is taken, so that the flush has an end.
    queue.close();
    loop {
        let mut batch = Vec::new();
        if queue.recv_many(&mut batch, batch_max).await == 0 {
            return;
        }
        export(batch).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entrance(limit: usize) -> (Entrance<u32>, mpsc::Receiver<u32>) {
        Entrance::new(Signal::Traces, limit, Metrics::detached())
    }

    #[tokio::test]
    async fn counts_what_a_full_queue_drops() {
        let (entrance, _exit) = entrance(2);
        (0..5).for_each(|item| entrance.offer(item));
        assert_eq!(entrance.waiting(), 2);
        assert_eq!(entrance.metrics.exporting.dropped_so_far(Signal::Traces, Loss::QueueFull), 3);
    }

    /// Runs a drain; exported batches come out of the receiver.
    fn draining(
        exit: mpsc::Receiver<u32>,
        delay: Duration,
        stop: &CancellationToken,
    ) -> mpsc::UnboundedReceiver<Vec<u32>> {
        let (exported, batches) = mpsc::unbounded_channel();
        tokio::spawn(drain(exit, 2, delay, stop.clone(), move |batch| {
            exported.send(batch).expect("the test listens");
            std::future::ready(())
        }));
        batches
    }

    #[tokio::test]
    async fn exports_a_full_batch_at_once_and_the_rest_when_stopped() {
        let (entrance, exit) = entrance(16);
        let stop = CancellationToken::new();
        let mut batches = draining(exit, Duration::from_secs(3600), &stop);
        (0..3).for_each(|item| entrance.offer(item));
        assert_eq!(batches.recv().await, Some(vec![0, 1]));
        stop.cancel();
        assert_eq!(batches.recv().await, Some(vec![2]));
        assert_eq!(batches.recv().await, None);
        entrance.offer(9);
        assert_eq!(entrance.metrics.exporting.dropped_so_far(Signal::Traces, Loss::ExportFailed), 1);
    }

    #[tokio::test]
    async fn exports_a_batch_that_is_not_full_after_the_delay() {
        let (entrance, exit) = entrance(16);
        let mut batches = draining(exit, Duration::from_millis(1), &CancellationToken::new());
        entrance.offer(7);
        assert_eq!(batches.recv().await, Some(vec![7]));
    }
}
