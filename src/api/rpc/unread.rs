//! Large answers that a connection's client has not read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::limit::SMALL_BYTES;
use crate::broker::Room;

/// The answers of one connection that hold room. Clones share them.
#[derive(Clone, Debug, Default)]
pub(in crate::api) struct Unread(Arc<Answers>);

#[derive(Debug, Default)]
struct Answers {
    made: AtomicU64,
    gone: AtomicU64,
    /// Rings when there is the first one.
    some: Notify,
}

/// One of them, until it is written or given up.
pub(super) struct Answer(Unread);

impl Unread {
    pub(super) fn answer(&self) -> Answer {
        if self.0.made.fetch_add(1, Ordering::Relaxed) == self.0.gone.load(Ordering::Relaxed) {
            self.0.some.notify_one();
        }
        Answer(self.clone())
    }

    /// Completes when the client has left answers unread for `timeout` while others wait for their room. `sent` tells how
    /// many bytes the client has taken.
    pub(in crate::api) async fn stall(&self, sent: impl Fn() -> u64, room: &Room, timeout: Duration) {
        loop {
            let gone = self.0.gone.load(Ordering::Relaxed);
            if gone == self.0.made.load(Ordering::Relaxed) {
                self.0.some.notified().await;
                continue;
            }
            let before = sent();
            tokio::time::sleep(timeout).await;
            let none_gone = gone == self.0.gone.load(Ordering::Relaxed);
            if none_gone && sent() - before < SMALL_BYTES as u64 && room.is_wanted() {
                return;
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.0.0.gone.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_client_stalls_if_it_leaves_an_answer_that_others_need_the_room_of() {
        let (unread, room) = (Unread::default(), Room::new(10));
        let _all = room.try_take(10);
        let stall = || unread.stall(|| 0, &room, TIMEOUT);
        assert!(timeout(2 * TIMEOUT, stall()).await.is_err(), "there is no answer");
        let answer = unread.answer();
        assert!(timeout(2 * TIMEOUT, stall()).await.is_err(), "nobody needs the room");
        let other = tokio::spawn(room.clone().take(1));
        tokio::task::yield_now().await;
        let began = Instant::now();
        stall().await;
        assert_eq!(began.elapsed(), TIMEOUT);
        let taken = || began.elapsed().as_millis() as u64 * 10;
        assert!(timeout(2 * TIMEOUT, unread.stall(taken, &room, TIMEOUT)).await.is_err(), "it reads");
        let read = async {
            let mut answer = Some(answer);
            loop {
                sleep(TIMEOUT / 2).await;
                answer.replace(unread.answer());
            }
        };
        tokio::select! {
            () = read => {}
            stalled = timeout(4 * TIMEOUT, stall()) => assert!(stalled.is_err(), "it reads small answers"),
        }
        other.abort();
    }
}
