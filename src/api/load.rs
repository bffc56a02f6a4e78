//! How many connections and calls are open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Levels that are read when metrics are collected. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Load(Arc<Levels>);

#[derive(Debug, Default)]
struct Levels {
    connections: AtomicU64,
    requests: AtomicU64,
    client_calls: AtomicU64,
    /// Rings when the last call of a client has ended.
    idle: Notify,
}

impl Load {
    /// Open client connections of both ports.
    pub(super) fn connections(&self) -> u64 {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// Calls and HTTP requests whose answer is not complete.
    pub(super) fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn connection(&self) -> Open {
        Open::new(self, |levels| &levels.connections)
    }

    /// Counts a call or request until the guard is dropped.
    pub(super) fn request(&self) -> Open {
        Open::new(self, |levels| &levels.requests)
    }

    /// Counts a call of a client, which a drain waits for, until the guard is dropped. Not a request by itself.
    pub(super) fn client_call(&self) -> Open {
        Open::new(self, |levels| &levels.client_calls)
    }

    /// Completes at a moment when no call of a client is open.
    pub(super) async fn clients_are_served(&self) {
        loop {
            let idle = self.0.idle.notified();
            if self.0.client_calls.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// Something that is open.
pub(super) struct Open {
    load: Load,
    level: fn(&Levels) -> &AtomicU64,
}

impl Open {
    fn new(load: &Load, level: fn(&Levels) -> &AtomicU64) -> Self {
        level(&load.0).fetch_add(1, Ordering::Relaxed);
        Open { load: load.clone(), level }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let levels = &*self.load.0;
        let level = (self.level)(levels);
        if level.fetch_sub(1, Ordering::AcqRel) == 1 && std::ptr::eq(level, &levels.client_calls) {
            levels.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn levels_follow_what_is_open() {
        let load = Load::default();
        let (first, second) = (load.connection(), load.connection());
        let request = load.request();
        assert_eq!((load.connections(), load.requests()), (2, 1));
        drop((first, request));
        assert_eq!((load.connections(), load.requests()), (1, 0));
        drop(second);
        assert_eq!(load.connections(), 0);
    }

    #[tokio::test]
    async fn clients_are_served_when_the_last_call_ends() {
        let load = Load::default();
        load.clients_are_served().await;
        let (first, second) = (load.client_call(), load.client_call());
        let served = load.clients_are_served();
        tokio::pin!(served);
        assert_eq!((&mut served).now_or_never(), None);
        drop(first);
        assert_eq!((&mut served).now_or_never(), None);
        drop(second);
        served.await;
    }
}
