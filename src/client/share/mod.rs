//! Reading as a member of a share group: a queue.
//!
//! A [`ShareConsumer`] is given records one by one under a lease, and says of each what is to become of it. Its task
//! ([`membership`]) serves the stream; what it, the program and the records share is in [`state`], and how
//! acknowledgements travel in [`acks`].

mod acks;
mod config;
mod membership;
mod record;
mod state;

#[cfg(test)]
mod tests;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use futures_util::Stream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

pub use config::ShareConfig;
pub use record::{Acknowledged, SharedRecord};

use super::consumer::{ConsumedBatch, Processor};
use super::routing::Router;
use super::telemetry::Telemetry;
use super::{Error, Header, TopicPartition, member};
use crate::proto::v1;
use crate::proto::v1::subscribe_request::Action;
use membership::Member;
use state::{Next, Pollings, SessionId, Shared};

/// Reads the records that its share group gives it. Made by
/// [`Client::share_consumer`](super::Client::share_consumer).
///
/// It is a [`Stream`] of [`SharedRecord`]s. Several may be in the program's hands at a time, and acknowledged in any
/// order. An `Err` item concerns one partition, which is not read any further; or it says why the member cannot join any
/// more, and then the stream ends.
///
/// A task of its own keeps the membership alive while the program is busy, and joins again when it breaks. Leases end
/// with the membership: the records are delivered again, and acknowledging them fails with the code `LeaseExpired`.
pub struct ShareConsumer {
    shared: Arc<Shared>,
    current: Option<(SessionId, ConsumedBatch)>,
    pollings: Pollings,
    waiting: Option<(Instant, SystemTime)>,
    /// Ends when this is dropped.
    tasks: JoinSet<()>,
}

impl ShareConsumer {
    pub(super) async fn join(
        router: Arc<Router>,
        telemetry: &Telemetry,
        mut config: ShareConfig,
    ) -> Result<ShareConsumer, Error> {
        config.check()?;
        if config.client_id.is_none() {
            config.client_id.clone_from(&router.config().client_id);
        }
        let telemetry = Arc::new(telemetry.for_group(&config.group));
        let shared = Arc::new(Shared::new(config, Arc::clone(&router), telemetry));
        let member = Arc::new(Member { shared: Arc::clone(&shared) });
        let (first, joined) = oneshot::channel();
        // A library has no supervisor of its own; the task ends with the consumer.
        let mut tasks = JoinSet::new();
        tasks.spawn(member::run(member, router, first));
        let gone = || Error::Connection { reason: "the runtime is shutting down".into() };
        joined.await.unwrap_or_else(|_| Err(gone()))?;
        Ok(ShareConsumer { shared, current: None, pollings: Pollings::new(), waiting: None, tasks })
    }

    /// The partitions that the member reads, in order, without those that it is to give up.
    #[must_use]
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.shared.lock().assignment()
    }

    /// The member's name within its group.
    #[must_use]
    pub fn member_id(&self) -> String {
        self.shared.lock().member_id.clone()
    }

    /// Makes `process` spans and metrics, also on other tasks. What a handler does with a record has to be said of it
    /// by acknowledging it.
    #[must_use]
    pub fn processor(&self) -> Processor {
        Processor::new(Arc::clone(&self.shared.telemetry))
    }

    /// Waits until every acknowledgement was answered, and leaves the group, which gives back what is not acknowledged.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if the broker did not answer within `request_timeout`. The consumer is closed all the same.
    pub async fn close(mut self) -> Result<(), Error> {
        self.current = None;
        // What is not acknowledged is not released: the broker would deliver it here again, and count that.
        let limit = self.shared.router.config().request_timeout;
        let settled = timeout(limit, self.settled()).await;
        let connected = {
            let mut state = self.shared.lock();
            state.leaving = true;
            if let Some(session) = &state.session {
                session.requests.send(Action::Leave(v1::LeaveGroup {}));
            }
            state.session.is_some()
        };
        if connected {
            // The broker ends the stream when it has carried out everything; whether it says so is of no consequence.
            let _ = timeout(limit, self.tasks.join_next()).await;
        }
        settled.map_err(|_| Error::Timeout { from: None, after: limit })
    }

    async fn settled(&self) {
        loop {
            let mut answered = std::pin::pin!(self.shared.answered.notified());
            answered.as_mut().enable();
            if self.shared.lock().is_settled() {
                return;
            }
            answered.await;
        }
    }

    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(SessionId, ConsumedBatch), Error>>> {
        let Poll::Ready(next) = self.shared.poll_next(cx) else {
            self.waiting.get_or_insert_with(|| (Instant::now(), SystemTime::now()));
            return Poll::Pending;
        };
        let (since, began) = self.waiting.take().unwrap_or_else(|| (Instant::now(), SystemTime::now()));
        let result = match next {
            Next::End => return Poll::Ready(None),
            Next::Failure(error) => Err(error),
            Next::Batch { session, at, received } => {
                let opened = received.open(&at, self.shared.config.uncompressed_bytes_max);
                opened.map(|batch| (session, batch))
            }
        };
        match &result {
            Ok((_, batch)) => {
                let leased =
                    self.shared.waiting(&batch.topic_partition(), batch.base_offset(), batch.next_offset());
                let topic = Arc::clone(batch.topic());
                let polling = self.pollings.entry(topic);
                let polling = polling.or_insert_with_key(|topic| self.shared.polling(topic));
                polling.handed_out(leased, since.elapsed());
                let contexts = batch.sampled_contexts();
                self.shared.telemetry.polled(batch.topic(), batch.partition(), leased, began, &contexts);
            }
            Err(error) => self.shared.telemetry.poll_failed(since.elapsed(), error),
        }
        Poll::Ready(Some(result))
    }
}

impl Stream for ShareConsumer {
    type Item = Result<SharedRecord, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            while let Some((session, batch)) = &mut this.current
                && let Some(mut record) = batch.next_record()
            {
                let at = record.topic_partition();
                let Some(count) = this.shared.hand_out(*session, &at, record.offset) else { continue };
                record.headers.push(Header::new(SharedRecord::DELIVERY_COUNT, count.to_string()));
                let record = SharedRecord::new(record, count, Arc::clone(&this.shared), *session);
                return Poll::Ready(Some(Ok(record)));
            }
            this.current = None;
            match ready!(this.poll_batch(cx)) {
                Some(Ok(current)) => this.current = Some(current),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Drop for ShareConsumer {
    fn drop(&mut self) {
        self.shared.lock().leaving = true;
        self.shared.lost(&Error::Connection { reason: "the consumer was dropped".into() });
    }
}

impl fmt::Debug for ShareConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShareConsumer")
            .field("config", &self.shared.config)
            .field("assignment", &self.assignment())
            .finish_non_exhaustive()
    }
}
