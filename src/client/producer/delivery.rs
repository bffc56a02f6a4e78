//! What became of records.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};

use crate::client::{Error, Offset, RecordMetadata};

/// Tells what became of a record: where it is, or why it is not there. May be dropped; the record is sent all the
/// same.
///
/// It is a handle to its batch's outcome and allocates nothing of its own.
#[derive(Debug)]
#[must_use = "a delivery that is not awaited tells nothing; drop it on purpose"]
pub struct Delivery {
    outcome: Arc<Outcome>,
    /// Position in the batch.
    index: u32,
    /// Position of this delivery's waker among the outcome's.
    waker: Option<usize>,
}

impl Delivery {
    pub(super) fn new(outcome: Arc<Outcome>, index: u32) -> Delivery {
        Delivery { outcome, index, waker: None }
    }

    /// What became of the record, if that is known already.
    #[must_use]
    pub fn peek(&self) -> Option<Result<RecordMetadata, Error>> {
        self.outcome.of_record(self.index)
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.peek() {
            return Poll::Ready(result);
        }
        let waker = self.outcome.register(self.waker, cx.waker());
        self.waker = Some(waker);
        // The outcome may have come before the waker was registered.
        self.peek().map_or(Poll::Pending, Poll::Ready)
    }
}

/// Where a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) base_offset: u64,
    pub(super) append_time_ms: i64,
}

/// What became of a batch; shared by the batch and its records' deliveries.
#[derive(Debug)]
pub(super) struct Outcome {
    topic: Arc<str>,
    partition: u32,
    result: OnceLock<Result<Committed, Error>>,
    wakers: Mutex<Vec<Waker>>,
}

impl Outcome {
    pub(super) fn new(topic: Arc<str>, partition: u32) -> Outcome {
        Outcome { topic, partition, result: OnceLock::new(), wakers: Mutex::default() }
    }

    /// Sets the result; only the first one counts.
    pub(super) fn set(&self, result: Result<Committed, Error>) {
        if self.result.set(result).is_ok() {
            let wakers = std::mem::take(&mut *self.lock());
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    pub(super) fn of_record(&self, index: u32) -> Option<Result<RecordMetadata, Error>> {
        Some(match self.result.get()? {
            Ok(committed) => Ok(RecordMetadata {
                topic: Arc::clone(&self.topic),
                partition: self.partition,
                offset: Offset(committed.base_offset + u64::from(index)),
                append_time_ms: committed.append_time_ms,
            }),
            Err(error) => Err(error.clone()),
        })
    }

    /// Sees to it that `waker` is woken. A task that awaits many records of a batch is registered once, so a waker
    /// that is in the list already is never replaced, only added to.
    fn register(&self, position: Option<usize>, waker: &Waker) -> usize {
        let mut wakers = self.lock();
        let known = |at: &usize| wakers.get(*at).is_some_and(|known| known.will_wake(waker));
        let last = wakers.len().saturating_sub(1);
        if let Some(at) = position.filter(known).or(Some(last).filter(known)) {
            return at;
        }
        wakers.push(waker.clone());
        wakers.len() - 1
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.wakers.lock().expect("no holder of this lock can panic")
    }
}
