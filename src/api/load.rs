//! How many connections and calls are open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Levels that are read when metrics are collected. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Load(Arc<Levels>);

#[derive(Debug, Default)]
struct Levels {
    connections: AtomicU64,
    requests: AtomicU64,
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
        (self.level)(&self.load.0).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
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
}
