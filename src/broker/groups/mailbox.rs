//! What a coordinator tells one member's session, in order.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Messages for one session, whose owner takes one when it has acted on it.
///
/// It needs no bound of its own: a partition that a member was told to give up is not given to it again before it
/// has released it, and a sign of life is not asked for again before one came or was missed.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    queue: Mutex<VecDeque<T>>,
    arrived: Notify,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Mailbox { queue: Mutex::default(), arrived: Notify::new() }
    }
}

impl<T: Clone> Mailbox<T> {
    /// Puts a message behind the others.
    pub(super) fn push(&self, message: T) {
        self.lock().push_back(message);
        self.arrived.notify_one();
    }

    /// Puts a message before the others.
    pub(super) fn push_front(&self, message: T) {
        self.lock().push_front(message);
        self.arrived.notify_one();
    }

    /// The oldest message, which stays until [`Mailbox::pop`]. Cancel-safe.
    pub(super) async fn front(&self) -> T {
        loop {
            if let Some(message) = self.lock().front().cloned() {
                return message;
            }
            self.arrived.notified().await;
        }
    }

    /// Removes the oldest message.
    pub(super) fn pop(&self) {
        self.lock().pop_front();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_stays_until_it_is_removed() {
        let mailbox = Mailbox::default();
        mailbox.push(1);
        mailbox.push(2);
        assert_eq!((mailbox.front().await, mailbox.front().await), (1, 1));
        mailbox.pop();
        assert_eq!(mailbox.front().await, 2);
    }
}
