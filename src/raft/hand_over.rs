//! A leadership on its way to another node.
//!
//! openraft's leader takes no more commands once it was asked to hand over, and goes on leading if its successor never
//! stands: the request may be lost, or the successor slow or gone. It is asked again a few times, because to be elected without
//! being asked takes as long. Then a leadership that was to end and does not is let go: what the others lack they still get,
//! and apart from that the leader keeps silent until they elect somebody.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::NodeId;

/// How often a successor is asked.
const ATTEMPTS: u32 = 3;

/// The hand-over of one replica, if there is one under way.
pub(super) struct HandOver {
    /// How long a successor may take each time.
    patience: Duration,
    begun: Notify,
    under_way: Mutex<Option<UnderWay>>,
}

#[derive(Clone, Copy)]
struct UnderWay {
    /// The term whose leader is to change.
    term: u64,
    successor: NodeId,
    /// How often it was asked.
    attempts: u32,
    /// When it is late. Nothing once it is not waited for any more.
    late_at: Option<Instant>,
}

/// What to do about a successor that is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// Ask it once more.
    AskAgain(NodeId),
    /// Let the others elect somebody.
    LetGo,
}

impl HandOver {
    pub(super) fn new(patience: Duration) -> Self {
        HandOver { patience, begun: Notify::new(), under_way: Mutex::default() }
    }

    /// The leadership of `term` is to be `successor`'s, which is asked now. Said again, or of another one, there is not
    /// more time.
    pub(super) fn begin(&self, term: u64, successor: NodeId) {
        let mut under_way = self.lock();
        if let Some(same) = under_way.as_mut().filter(|same| same.term == term) {
            same.successor = successor;
            return;
        }
        let late_at = Some(Instant::now() + self.patience);
        *under_way = Some(UnderWay { term, successor, attempts: 1, late_at });
        self.begun.notify_one();
    }

    /// Completes when a successor is late, each time that it is. Cancel-safe.
    pub(super) async fn late(&self) -> Late {
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
                if under_way.attempts < ATTEMPTS {
                    under_way.attempts += 1;
                    under_way.late_at = Some(Instant::now() + self.patience);
                    return Late::AskAgain(under_way.successor);
                }
                under_way.late_at = None;
                return Late::LetGo;
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

    const PATIENCE: Duration = Duration::from_millis(600);

    #[tokio::test(start_paused = true)]
    async fn a_successor_is_asked_again_before_the_leadership_is_let_go() {
        let hand_over = HandOver::new(PATIENCE);
        hand_over.begin(7, 2);
        let begun = Instant::now();
        for _ in 1..ATTEMPTS {
            assert_eq!(hand_over.late().await, Late::AskAgain(2));
        }
        assert_eq!(hand_over.late().await, Late::LetGo);
        assert_eq!(begun.elapsed().as_millis(), (PATIENCE * ATTEMPTS).as_millis());
        assert!(tokio::time::timeout(PATIENCE * 10, hand_over.late()).await.is_err(), "it was let go once");
        assert!(hand_over.ends_with(false, 7));
        assert!(!hand_over.ends_with(false, 8), "it has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_hands_over_again_and_again_lets_go_in_the_end() {
        let hand_over = HandOver::new(PATIENCE);
        let begun = Instant::now();
        let let_go = async { while hand_over.late().await != Late::LetGo {} };
        let insisting = async {
            loop {
                hand_over.begin(7, 2);
                tokio::time::sleep(PATIENCE / 3).await;
            }
        };
        tokio::select! {
            () = let_go => {}
            () = insisting => {}
        }
        assert!(begun.elapsed() < PATIENCE * (ATTEMPTS + 1), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_successor_that_took_over_is_not_asked_again() {
        let hand_over = HandOver::new(PATIENCE);
        hand_over.begin(7, 2);
        assert!(!hand_over.ends_with(true, 7), "it leads on");
        assert!(hand_over.ends_with(false, 8));
        assert!(tokio::time::timeout(PATIENCE * 10, hand_over.late()).await.is_err());
    }
}
