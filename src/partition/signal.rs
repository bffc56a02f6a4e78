//! Wakes one reader that waits for several partitions.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

/// A reader's bell. Each partition it waits for has a slot; ringing notes the slot and wakes the reader.
#[derive(Debug, Default)]
pub struct Signal {
    /// INVARIANT: no slot twice, so at most as long as there are slots.
    rung: Mutex<Vec<usize>>,
    notify: Notify,
}

impl Signal {
    /// A bell that nobody has rung.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Notes `slot` and wakes the reader.
    pub fn ring(&self, slot: usize) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if !rung.contains(&slot) {
            rung.push(slot);
        }
        drop(rung);
        self.notify.notify_one();
    }

    /// Forgets that `slot` was rung. Its partition must not ring it any more.
    pub fn forget(&self, slot: usize) {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner).retain(|rung| *rung != slot);
    }

    /// How many slots are rung.
    #[cfg(test)]
    pub(crate) fn rung(&self) -> usize {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits until a slot was rung and takes all that were. Cancel-safe: what was not taken stays rung.
    pub async fn wait(&self) -> Vec<usize> {
        loop {
            let rung = std::mem::take(&mut *self.rung.lock().unwrap_or_else(PoisonError::into_inner));
            if !rung.is_empty() {
                return rung;
            }
            self.notify.notified().await;
        }
    }
}

/// The bells to ring when a partition has something new. Dead ones are dropped on the way.
#[derive(Debug, Default)]
pub struct Listeners(Vec<(Weak<Signal>, usize)>);

impl Listeners {
    /// Rings `signal` at `slot` from now on.
    pub fn add(&mut self, signal: &Arc<Signal>, slot: usize) {
        self.0.retain(|(listener, _)| listener.strong_count() > 0);
        self.0.push((Arc::downgrade(signal), slot));
    }

    /// Rings `signal` at `slot` no more.
    pub fn remove(&mut self, signal: &Arc<Signal>, slot: usize) {
        self.0.retain(|(listener, s)| !(std::ptr::eq(listener.as_ptr(), Arc::as_ptr(signal)) && *s == slot));
    }

    /// Every bell that somebody still has.
    pub fn alive(&self) -> Vec<(Arc<Signal>, usize)> {
        self.0.iter().filter_map(|(listener, slot)| Some((listener.upgrade()?, *slot))).collect()
    }

    /// Rings all.
    pub fn ring(&mut self) {
        self.0.retain(|(listener, slot)| match listener.upgrade() {
            Some(signal) => {
                signal.ring(*slot);
                true
            }
            None => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_rung_slot_is_taken_once() {
        let signal = Signal::new();
        let mut listeners = Listeners::default();
        listeners.add(&signal, 3);
        listeners.ring();
        listeners.ring();
        assert_eq!(signal.wait().await, vec![3]);
        listeners.ring();
        assert_eq!(signal.wait().await, vec![3]);
    }

    #[tokio::test]
    async fn a_removed_or_dropped_listener_is_not_rung() {
        let signal = Signal::new();
        let mut listeners = Listeners::default();
        listeners.add(&signal, 0);
        listeners.add(&signal, 1);
        listeners.remove(&signal, 0);
        listeners.ring();
        assert_eq!(signal.wait().await, vec![1]);
        drop(signal);
        listeners.ring();
        assert!(listeners.0.is_empty());
    }
}
