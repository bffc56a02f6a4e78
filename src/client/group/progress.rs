//! How far a member is with a partition. Pure.

use std::collections::BTreeMap;

use crate::client::Offset;

/// How far a member is with a partition that it was assigned.
///
/// INVARIANT: `committed <= settled` unless the program commits otherwise, `settled <= handed_out <= received`.
#[derive(Debug)]
pub(super) struct Progress {
    /// After the last record that was received.
    received: Offset,
    /// After the last record that the program was given.
    handed_out: Offset,
    /// What is below was processed, as far as no handler runs on it: the program asked for what comes next.
    settled: Offset,
    /// How many handlers run on a record; zero for one at or above `settled` whose handlers are done.
    handlers: BTreeMap<Offset, u32>,
    /// What the group has committed.
    committed: Offset,
    /// What it will have committed if all commits under way succeed.
    asked: Offset,
}

impl Progress {
    pub(super) fn new(start: Offset) -> Progress {
        Progress {
            received: start,
            handed_out: start,
            settled: start,
            handlers: BTreeMap::new(),
            committed: start,
            asked: start,
        }
    }

    /// The first offset that was not received before.
    pub(super) fn received(&self) -> Offset {
        self.received
    }

    /// Notes that everything below `next` was received.
    pub(super) fn receive(&mut self, next: Offset) {
        self.received = self.received.max(next);
    }

    /// The offset after the last record that the program was given.
    pub(super) fn position(&self) -> Offset {
        self.handed_out
    }

    /// Gives the program what is below `next`. Asking for it says that what it had before is processed.
    pub(super) fn hand_out(&mut self, next: Offset) {
        self.settle();
        self.handed_out = next;
    }

    /// The program asked for what comes next.
    pub(super) fn settle(&mut self) {
        self.settled = self.handed_out;
        self.handlers.retain(|_, running| *running > 0);
    }

    /// A handler begins with a record. Says whether the program has the record from this assignment.
    pub(super) fn begin(&mut self, offset: Offset) -> bool {
        if offset >= self.handed_out {
            return false;
        }
        *self.handlers.entry(offset).or_default() += 1;
        true
    }

    /// A handler is done with a record, or was given up before it was.
    pub(super) fn end(&mut self, offset: Offset, done: bool) {
        let Some(running) = self.handlers.get_mut(&offset) else { return };
        *running = running.saturating_sub(1);
        if *running > 0 {
            return;
        }
        if offset < self.settled || !done {
            self.handlers.remove(&offset);
        }
        while let Some(entry) = self.handlers.first_entry()
            && *entry.key() == self.settled
            && *entry.get() == 0
        {
            entry.remove();
            self.settled = self.settled.saturating_add(1);
        }
    }

    /// What is below has been processed.
    pub(super) fn processed(&self) -> Offset {
        let running = self.handlers.iter().find(|(_, running)| **running > 0);
        running.map_or(self.settled, |(offset, _)| self.settled.min(*offset))
    }

    /// Whether the program is done with everything that it was given.
    pub(super) fn is_quiet(&self) -> bool {
        self.processed() == self.handed_out
    }

    /// What is to be committed and was not asked for yet.
    pub(super) fn uncommitted(&self) -> Option<Offset> {
        let processed = self.processed();
        (processed > self.asked).then_some(processed)
    }

    /// What is to be committed and was not acknowledged yet.
    pub(super) fn unacknowledged(&self) -> Option<Offset> {
        let processed = self.processed();
        (processed > self.committed).then_some(processed)
    }

    /// A commit is under way.
    pub(super) fn ask(&mut self, offset: Offset) {
        self.asked = offset;
    }

    /// A commit was answered.
    pub(super) fn answered(&mut self, offset: Offset, committed: bool) {
        if committed {
            self.committed = offset;
        } else if self.asked == offset {
            self.asked = self.committed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed_out(next: u64) -> Progress {
        let mut progress = Progress::new(Offset(0));
        progress.hand_out(Offset(next));
        progress
    }

    #[test]
    fn what_was_handed_out_last_is_not_processed() {
        let mut progress = handed_out(1);
        assert_eq!(progress.uncommitted(), None);
        progress.hand_out(Offset(2));
        assert_eq!(progress.uncommitted(), Some(Offset(1)));
        assert!(!progress.is_quiet());
        progress.settle();
        assert_eq!(progress.uncommitted(), Some(Offset(2)));
        assert!(progress.is_quiet());
    }

    #[test]
    fn a_handler_that_is_done_settles_its_record() {
        let mut progress = handed_out(1);
        assert!(progress.begin(Offset(0)));
        assert_eq!(progress.processed(), Offset(0));
        progress.end(Offset(0), true);
        assert!(progress.is_quiet());
    }

    #[test]
    fn a_running_handler_holds_back_what_follows() {
        let mut progress = handed_out(1);
        progress.begin(Offset(0));
        progress.hand_out(Offset(2));
        progress.begin(Offset(1));
        progress.hand_out(Offset(3));
        progress.end(Offset(1), true);
        assert_eq!(progress.processed(), Offset(0));
        progress.end(Offset(0), true);
        assert_eq!(progress.processed(), Offset(2));
    }

    #[test]
    fn a_handler_in_the_midst_of_a_batch_covers_nothing_before_its_record() {
        let mut progress = handed_out(10);
        progress.begin(Offset(4));
        progress.end(Offset(4), true);
        assert_eq!(progress.processed(), Offset(0));
        for before in 0..4 {
            progress.begin(Offset(before));
            progress.end(Offset(before), true);
        }
        assert_eq!(progress.processed(), Offset(5));
    }

    #[test]
    fn a_handler_that_was_given_up_settles_nothing_by_itself() {
        let mut progress = handed_out(1);
        progress.begin(Offset(0));
        progress.end(Offset(0), false);
        assert_eq!(progress.processed(), Offset(0));
        progress.settle();
        assert_eq!(progress.processed(), Offset(1));
    }

    #[test]
    fn records_of_another_assignment_are_not_held_back_for() {
        assert!(!handed_out(3).begin(Offset(3)));
    }

    #[test]
    fn a_commit_that_failed_is_asked_for_again() {
        let mut progress = handed_out(5);
        progress.settle();
        progress.ask(Offset(5));
        assert_eq!((progress.uncommitted(), progress.unacknowledged()), (None, Some(Offset(5))));
        progress.answered(Offset(5), false);
        assert_eq!(progress.uncommitted(), Some(Offset(5)));
        progress.ask(Offset(5));
        progress.answered(Offset(5), true);
        assert_eq!((progress.uncommitted(), progress.unacknowledged()), (None, None));
    }
}
