//! Records of share groups.

use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::acks::Say;
use super::state::{SessionId, Shared};
use crate::client::{ConsumedRecord, Error};

/// A record that is leased to the program. It can be read like a [`ConsumedRecord`], and must be acknowledged: dropped
/// without, it is released, to be delivered again at once.
///
/// The header [`DELIVERY_COUNT`](Self::DELIVERY_COUNT) is added to those of the record.
pub struct SharedRecord {
    record: ConsumedRecord,
    delivery_count: u32,
    lease: Option<(Arc<Shared>, SessionId)>,
}

impl SharedRecord {
    /// Name of the header with the [delivery count](Self::delivery_count), as decimal text.
    pub const DELIVERY_COUNT: &'static str = "streambus-delivery-count";

    pub(super) fn new(
        record: ConsumedRecord,
        delivery_count: u32,
        shared: Arc<Shared>,
        session: SessionId,
    ) -> SharedRecord {
        SharedRecord { record, delivery_count, lease: Some((shared, session)) }
    }

    /// How often the record was delivered, this time included.
    #[must_use]
    pub fn delivery_count(&self) -> u32 {
        self.delivery_count
    }

    /// The record is done: it is never delivered again.
    pub fn accept(mut self) -> Acknowledged {
        self.settle(Say::Accept)
    }

    /// The record is not done: it is delivered again after `delay`, to any member.
    pub fn release(mut self, delay: Duration) -> Acknowledged {
        self.settle(Say::Release(delay))
    }

    /// The record cannot be done: it goes to the dead-letter topic, where `reason` (at most 1 KiB) is in its headers.
    pub fn reject(mut self, reason: impl Into<String>) -> Acknowledged {
        self.settle(Say::Reject(reason.into()))
    }

    /// The record is not done yet: its lease begins anew.
    pub fn extend(&self) -> Acknowledged {
        match &self.lease {
            Some((shared, session)) => shared.acknowledge(&self.record, *session, Say::Extend),
            None => Acknowledged::failed(),
        }
    }

    fn settle(&mut self, say: Say) -> Acknowledged {
        match self.lease.take() {
            Some((shared, session)) => shared.acknowledge(&self.record, session, say),
            None => Acknowledged::failed(),
        }
    }
}

impl Deref for SharedRecord {
    type Target = ConsumedRecord;

    fn deref(&self) -> &ConsumedRecord {
        &self.record
    }
}

impl Drop for SharedRecord {
    fn drop(&mut self) {
        if self.lease.is_some() {
            drop(self.settle(Say::Release(Duration::ZERO)));
        }
    }
}

impl fmt::Debug for SharedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedRecord")
            .field("record", &self.record)
            .field("delivery_count", &self.delivery_count)
            .finish_non_exhaustive()
    }
}

/// An acknowledgement that is on its way, whether this is awaited or not. Awaiting it tells what became of it: success
/// means that it is on the disks of a majority, the code
/// [`LeaseExpired`](crate::client::ErrorCode::LeaseExpired) that the record was not leased to this member any more.
#[derive(Debug)]
pub struct Acknowledged {
    outcome: oneshot::Receiver<Result<(), Error>>,
}

impl Acknowledged {
    pub(super) fn new(outcome: oneshot::Receiver<Result<(), Error>>) -> Acknowledged {
        Acknowledged { outcome }
    }

    /// Of a record without a lease.
    fn failed() -> Acknowledged {
        let (outcome, receiver) = oneshot::channel();
        let _ = outcome.send(Err(Error::LeaseOver { reason: "it was acknowledged before".into() }));
        Acknowledged { outcome: receiver }
    }
}

impl Future for Acknowledged {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let gone = || Error::Connection { reason: "the consumer is gone".into() };
        self.outcome.poll_unpin(cx).map(|outcome| outcome.unwrap_or_else(|_| Err(gone())))
    }
}
