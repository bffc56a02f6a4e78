//! The bound on what a producer holds in memory.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Bytes that may be in use at a time. Taking some is one atomic operation unless they are used up.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
    released: Notify,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Budget {
        Budget { limit, used: AtomicUsize::new(0), released: Notify::new() }
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes` unless that would exceed the limit.
    pub(super) fn try_acquire(&self, bytes: usize) -> bool {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .is_ok()
    }

    /// Takes `bytes`, which must not exceed the limit, as soon as they are free. Waiters are not served in order.
    pub(super) async fn acquire(&self, bytes: usize) {
        loop {
            if self.try_acquire(bytes) {
                return;
            }
            let mut released = std::pin::pin!(self.released.notified());
            // From here on no release is missed, so the second look decides.
            released.as_mut().enable();
            if self.try_acquire(bytes) {
                return;
            }
            released.await;
        }
    }

    pub(super) fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
        self.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn refuses_what_exceeds_the_limit() {
        let budget = Budget::new(10);
        assert!(budget.try_acquire(7));
        assert!(!budget.try_acquire(4));
        assert!(budget.try_acquire(3));
        assert_eq!(budget.used(), 10);
    }

    #[test]
    fn a_waiter_goes_on_when_enough_is_released() {
        let budget = Budget::new(10);
        assert!(budget.try_acquire(10));
        let mut waiter = std::pin::pin!(budget.acquire(5));
        assert!(waiter.as_mut().now_or_never().is_none());
        budget.release(4);
        assert!(waiter.as_mut().now_or_never().is_none());
        budget.release(1);
        assert!(waiter.as_mut().now_or_never().is_some());
    }
}
