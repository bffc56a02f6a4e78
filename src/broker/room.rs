//! Room in bytes that many share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many bytes may be held at a time. Who finds no room waits, in turn. Clones share it.
#[derive(Clone, Debug)]
pub struct Room {
    free: Arc<Semaphore>,
    all: u32,
    waiting: Arc<AtomicUsize>,
}

/// Bytes of a [`Room`], given back when dropped.
#[derive(Debug)]
pub struct Share(OwnedSemaphorePermit);

impl Room {
    /// Room for `bytes`, at most 4 GiB.
    pub fn new(bytes: u64) -> Self {
        let all = u32::try_from(bytes).unwrap_or(u32::MAX);
        Room { free: Arc::new(Semaphore::new(all as usize)), all, waiting: Arc::default() }
    }

    /// Waits for `bytes`. More than there is at all waits until nobody else holds any.
    pub async fn take(self, bytes: u64) -> Share {
        if let Some(share) = self.try_take(bytes) {
            return share;
        }
        let wanted = self.at_most_all(bytes);
        let _waiting = Waiting::new(&self.waiting);
        Share(self.free.acquire_many_owned(wanted).await.expect("it is never closed"))
    }

    /// Whether somebody waits.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// The same if there is room now, and nobody waits for it.
    pub fn try_take(&self, bytes: u64) -> Option<Share> {
        Arc::clone(&self.free).try_acquire_many_owned(self.at_most_all(bytes)).ok().map(Share)
    }

    fn at_most_all(&self, bytes: u64) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.all)
    }
}

struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn new(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(Arc::clone(waiting))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Share {
    /// Gives back what exceeds `bytes`.
    pub fn keep(&mut self, bytes: u64) {
        let excess = self.0.num_permits().saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
        drop(self.0.split(excess));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn who_finds_no_room_waits_until_some_is_given_back() {
        let room = Room::new(10);
        let mut first = room.try_take(8).unwrap();
        let mut second = Box::pin(room.clone().take(5));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(room.try_take(1).is_none(), "nobody overtakes");
        assert!(room.is_wanted());
        first.keep(5);
        let second = second.now_or_never().expect("there is room");
        assert!(room.try_take(1).is_none());
        drop((first, second));
        assert!(room.try_take(10).is_some());
    }

    #[test]
    fn more_than_there_is_takes_all_of_it() {
        let room = Room::new(10);
        let mut all = room.try_take(1 << 40).unwrap();
        assert!(room.try_take(1).is_none());
        all.keep(11);
        assert!(room.try_take(1).is_none());
        drop(all);
        assert!(room.try_take(10).is_some());
    }

    #[test]
    fn who_gives_up_waiting_takes_nothing() {
        let room = Room::new(10);
        let held = room.try_take(10);
        let mut waiting = Box::pin(room.clone().take(10));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(room.is_wanted());
        drop(waiting);
        assert!(!room.is_wanted());
        drop(held);
        assert!(room.try_take(10).is_some());
    }
}
