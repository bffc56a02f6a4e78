//! The interface of [flume] as far as fjall uses it, with a bound that only [`Sender::try_send`] keeps.
//!
//! fjall tells its threads what to do through a channel for 1,000 messages. Opening a store sends one message for each table
//! that has files to be merged or memory to be written, before there is a thread that takes any: with more than 1,000 such
//! tables, and each partition has one, the store never opens again. Later the only thread may send to the channel from
//! which it takes, and waits for itself if that is full.
//!
//! So here [`Sender::send`] takes every message. There are never more of those than there are tables with something to do. What fjall
//! sends again and again while much is written, it sends with `try_send`, which refuses as it always did.
//!
//! [flume]: https://crates.io/crates/flume/0.12.0

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A channel in which [`Sender::try_send`] refuses what is more than `capacity`.
#[must_use]
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        messages: Mutex::default(),
        came: Condvar::new(),
        capacity,
        senders: AtomicUsize::new(1),
        receivers: AtomicUsize::new(1),
    });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

struct Shared<T> {
    messages: Mutex<VecDeque<T>>,
    came: Condvar,
    capacity: usize,
    senders: AtomicUsize,
    receivers: AtomicUsize,
}

impl<T> Shared<T> {
    /// A queue is valid at every step, so that of a thread that panicked is, too.
    fn messages(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends messages. The channel is open as long as one of its clones lives.
pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// Sends a message, without waiting.
    ///
    /// # Errors
    /// Nobody can receive it any more.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        if self.0.receivers.load(Ordering::Acquire) == 0 {
            return Err(SendError(message));
        }
        self.0.messages().push_back(message);
        self.0.came.notify_one();
        Ok(())
    }

    /// Sends a message if there is room for it.
    ///
    /// # Errors
    /// The channel is full, or nobody can receive it any more.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        if self.0.receivers.load(Ordering::Acquire) == 0 {
            return Err(TrySendError::Disconnected(message));
        }
        let mut messages = self.0.messages();
        if messages.len() >= self.0.capacity {
            return Err(TrySendError::Full(message));
        }
        messages.push_back(message);
        drop(messages);
        self.0.came.notify_one();
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::Relaxed);
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            // With the lock, so that nobody is between looking and waiting.
            let _messages = self.0.messages();
            self.0.came.notify_all();
        }
    }
}

/// Receives messages, each of which goes to one of its clones.
pub struct Receiver<T>(Arc<Shared<T>>);

impl<T> Receiver<T> {
    /// Waits for the oldest message.
    ///
    /// # Errors
    /// There is none, and nobody can send one any more.
    pub fn recv(&self) -> Result<T, RecvError> {
        let mut messages = self.0.messages();
        loop {
            if let Some(message) = messages.pop_front() {
                return Ok(message);
            }
            if self.0.senders.load(Ordering::Acquire) == 0 {
                return Err(RecvError);
            }
            messages = self.0.came.wait(messages).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes the oldest message, if there is one.
    ///
    /// # Errors
    /// There is none.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        match self.0.messages().pop_front() {
            Some(message) => Ok(message),
            None if self.0.senders.load(Ordering::Acquire) == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }

    /// Takes all messages that are there.
    pub fn drain(&self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut *self.0.messages()).into_iter()
    }

    /// How many messages are there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.messages().len()
    }

    /// Whether there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.receivers.fetch_add(1, Ordering::Relaxed);
        Receiver(Arc::clone(&self.0))
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.receivers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A message that nobody can receive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SendError<T>(pub T);

/// A message that was not sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// There was no room for it.
    Full(T),
    /// Nobody can receive it.
    Disconnected(T),
}

/// Nobody sends any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvError;

/// There is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRecvError {
    /// There may be one later.
    Empty,
    /// Nobody sends any more.
    Disconnected,
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SendError(..)")
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "Full(..)",
            TrySendError::Disconnected(_) => "Disconnected(..)",
        })
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody receives")
    }
}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "the channel is full",
            TrySendError::Disconnected(_) => "nobody receives",
        })
    }
}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody sends")
    }
}

impl fmt::Display for TryRecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TryRecvError::Empty => "there is no message",
            TryRecvError::Disconnected => "nobody sends",
        })
    }
}

impl<T> Error for SendError<T> {}
impl<T> Error for TrySendError<T> {}
impl Error for RecvError {}
impl Error for TryRecvError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_try_send_keeps_the_bound() {
        let (sender, receiver) = bounded(2);
        assert_eq!((sender.try_send(1), sender.try_send(2)), (Ok(()), Ok(())));
        assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
        assert_eq!(sender.send(3), Ok(()));
        assert_eq!((receiver.recv(), receiver.try_recv()), (Ok(1), Ok(2)));
        assert_eq!(receiver.drain().collect::<Vec<_>>(), [3]);
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn the_end_is_noticed_on_both_sides() {
        let (sender, receiver) = bounded(2);
        let others = (sender.clone(), receiver.clone());
        let waiting = std::thread::spawn(move || (receiver.recv(), receiver.recv()));
        sender.send(1).expect("somebody receives");
        drop((sender, others));
        assert_eq!(waiting.join().expect("no panic"), (Ok(1), Err(RecvError)));
        let (sender, receiver) = bounded(2);
        drop(receiver);
        assert_eq!(sender.send(1), Err(SendError(1)));
        assert_eq!(sender.try_send(1), Err(TrySendError::Disconnected(1)));
    }
}
