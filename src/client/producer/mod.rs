//! Sending records.
//!
//! A record is encoded straight into its partition's open batch ([`buffer`]) by the thread that sends it. One task
//! per producer ([`driver`]) takes full and due batches, keeps each partition's order and sequence ([`lane`]), and
//! sends them over one stream per broker ([`pipe`]). What became of a batch is stored once, and its records'
//! [`Delivery`]s look there ([`delivery`]).

mod budget;
mod buffer;
mod config;
mod delivery;
mod driver;
mod lane;
mod pipe;
mod topics;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

pub use config::ProducerConfig;
pub use delivery::Delivery;

use super::admin::init_producer;
use super::routing::Router;
use super::telemetry::Telemetry;
use super::{Error, ProducerRecord, RecordMetadata};
use buffer::Callback;
use driver::Driver;
use topics::{Admitted, Shared, Topic};

/// Sends records. Cheap to clone; clones share batches, and may be used from several threads. Made by
/// [`Client::producer`](super::Client::producer).
///
/// When the last clone is dropped without [`close`](Self::close), what was sent is still delivered in the background
/// as long as the runtime lives.
#[derive(Clone)]
pub struct Producer {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    router: Arc<Router>,
    finished: watch::Receiver<bool>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("config", &self.inner.shared.config).finish_non_exhaustive()
    }
}

impl Producer {
    pub(super) async fn start(
        router: Arc<Router>,
        telemetry: Arc<Telemetry>,
        config: ProducerConfig,
    ) -> Result<Producer, Error> {
        config.check()?;
        let identity = if config.idempotent { Some(init_producer(&router).await?) } else { None };
        let shared = Arc::new(Shared::new(config, telemetry));
        let (finish, finished) = watch::channel(false);
        let driver = Driver::new(Arc::clone(&shared), Arc::clone(&router), identity);
        // A library has no supervisor of its own; the task ends with the last handle, and `finished` tells its end.
        tokio::spawn(async move {
            driver.run().await;
            // Nobody waits if all handles are gone.
            let _ = finish.send(true);
        });
        Ok(Producer { inner: Arc::new(Inner { shared, router, finished }) })
    }

    /// Puts a record into its partition's batch, waiting while the buffer is full. The [`Delivery`] tells what
    /// became of it; it may be dropped.
    ///
    /// Records for one partition are appended in the order in which their `send` calls finish.
    ///
    /// # Errors
    ///
    /// At once, and without the record having been sent: [`Error::UnknownTopic`], [`Error::UnknownPartition`],
    /// [`Error::RecordTooLarge`], [`Error::InvalidRecord`], [`Error::Closed`], or that the topic could not be looked up.
    ///
    /// # Cancellation
    ///
    /// A call that is dropped before it finishes has not sent the record.
    pub async fn send(&self, record: ProducerRecord) -> Result<Delivery, Error> {
        self.admit(record, None).await
    }

    /// Like [`send`](Self::send), and calls `callback` with the outcome. The callback runs on the producer's task:
    /// it must be short and must not block. If this call fails, it is not called.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn send_with(
        &self,
        record: ProducerRecord,
        callback: impl FnOnce(Result<RecordMetadata, Error>) + Send + 'static,
    ) -> Result<(), Error> {
        self.admit(record, Some(Box::new(callback))).await.map(drop)
    }

    /// Like [`send`](Self::send), but never waits.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), also [`Error::BufferFull`], and [`Error::NotPrepared`] for a topic that was neither
    /// sent to nor [prepared](Self::prepare).
    pub fn try_send(&self, record: ProducerRecord) -> Result<Delivery, Error> {
        let shared = &self.inner.shared;
        let Some(topic) = shared.topic(&record.topic) else {
            return Err(Error::NotPrepared { topic: record.topic.to_string() });
        };
        let admitted = topic.admit(&record, shared)?;
        if !shared.budget.try_acquire(admitted.bytes) {
            return Err(Error::BufferFull { limit: shared.config.buffer_bytes });
        }
        topic.append(&record, admitted, None, shared)
    }

    /// Learns what sending to `topic` needs, and returns its number of partitions. Optional: the first `send` does
    /// the same.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTopic`], or that no broker answered.
    pub async fn prepare(&self, topic: &str) -> Result<u32, Error> {
        Ok(self.topic(topic).await?.partitions())
    }

    /// Sends what is waiting without regard to `linger`, and waits until the outcome of every record that was sent
    /// before this call is known. Outcomes are told by the [`Delivery`]s and callbacks.
    pub async fn flush(&self) {
        let (latch, flushed) = oneshot::channel();
        self.inner.shared.flush(latch);
        // The latch is dropped when the last batch that it was attached to is done.
        let _ = flushed.await;
    }

    /// Flushes, refuses further records in all clones, and ends the producer's task and connections.
    pub async fn close(&self) {
        self.inner.shared.close();
        let mut finished = self.inner.finished.clone();
        // An error means that the task is gone, which is what is waited for.
        let _ = finished.wait_for(|finished| *finished).await;
    }

    /// Bytes of records that are buffered or not yet acknowledged.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.inner.shared.budget.used()
    }

    async fn admit(&self, record: ProducerRecord, callback: Option<Callback>) -> Result<Delivery, Error> {
        let shared = &self.inner.shared;
        let topic = match shared.topic(&record.topic) {
            Some(topic) => topic,
            None => self.topic(&record.topic).await?,
        };
        let admitted: Admitted = topic.admit(&record, shared)?;
        shared.budget.acquire(admitted.bytes).await;
        topic.append(&record, admitted, callback, shared)
    }

    async fn topic(&self, name: &str) -> Result<Arc<Topic>, Error> {
        let route = self.inner.router.route(name).await?;
        Ok(self.inner.shared.learn(&route))
    }
}
