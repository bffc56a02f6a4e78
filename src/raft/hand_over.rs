//! A leadership on its way to another node.
//!
//! openraft's leader takes no more commands once it was asked to hand over, and goes on leading if its successor never
//! stands: the request may be lost, or the successor gone. So a leadership that was to end and does not is let go, by
//! keeping silent until the others elect somebody.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// The hand-over of one replica, if there is one under way.
pub(super) struct HandOver {
    /// How long a successor may take.
    patience: Duration,
    begun: Notify,
    under_way: Mutex<Option<UnderWay>>,
}

#[derive(Clone, Copy)]
struct UnderWay {
    /// The term whose leader is to change.
    term: u64,
    /// When the successor is late. Nothing once that was noticed.
    late_at: Option<Instant>,
}

impl HandOver {
    pub(super) fn new(patience: Duration) -> Self {
        HandOver { patience, begun: Notify::new(), under_way: Mutex::default() }
    }

    /// The leadership of `term` is to end. Said again, it is not given more time.
    pub(super) fn begin(&self, term: u64) {
        let mut under_way = self.lock();
        if under_way.is_none_or(|handed| handed.term != term) {
            *under_way = Some(UnderWay { term, late_at: Some(Instant::now() + self.patience) });
            self.begun.notify_one();
        }
    }

    /// Completes when a hand-over takes too long, once for each. Cancel-safe.
    pub(super) async fn late(&self) {
        loop {
            let late_at = self.lock().and_then(|under_way| under_way.late_at);
            let Some(late_at) = late_at else {
                self.begun.notified().await;
                continue;
            };
            sleep_until(late_at).await;
            if let Some(under_way) = self.lock().as_mut()
                && under_way.late_at == Some(late_at)
            {
                under_way.late_at = None;
                return;
            }
        }
    }

    /// Takes note of what the replica does, and tells whether a hand-over has ended with it.
    pub(super) fn ends_with(&self, leads: bool, term: u64) -> bool {
        let mut under_way = self.lock();
        let ends = under_way.is_some_and(|handed| !leads || term != handed.term);
        if ends {
            *under_way = None;
        }
        ends
    }

    fn lock(&self) -> MutexGuard<'_, Option<UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn asking_again_gives_a_successor_no_more_time() {
        let hand_over = HandOver::new(Duration::from_secs(1));
        let begun = Instant::now();
        hand_over.begin(7);
        tokio::time::advance(Duration::from_millis(600)).await;
        hand_over.begin(7);
        hand_over.late().await;
        assert!(begun.elapsed() < Duration::from_millis(1_100), "{:?}", begun.elapsed());
        assert!(hand_over.ends_with(false, 7) && !hand_over.ends_with(false, 7));
    }
}
