//! What a replica owes that was emptied, or has lost the end of its log.
//!
//! Whoever acknowledges entries promises not to vote for anybody who lacks them: agreement rests on that (Ongaro, Ousterhout:
//! "In Search of an Understandable Consensus Algorithm", 2014, section 5.4.1). A replica that is emptied and joins anew under
//! the same number has lost the log that would hold it to that. A member of long ago which was away, and still counts it among
//! its voters, could win with its help and lack what was agreed on since. So the vote and the last position of the log stay,
//! and until the new log reaches that position, the replica neither votes for a log that does not, nor stands for election.
//!
//! A machine that ends without a sync takes the ends of logs with it where records need not be on disk before they are
//! acknowledged (`storage.sync = "interval"`). How far they reached nobody knows, but not beyond the term of the vote, which is
//! on disk always. So such a replica owes all of that term, and goes over to the next one, in which nobody leads: whoever is
//! elected without its help has what was agreed on, and gives it an entry of a later term. If that does not happen for
//! [`DOUBT`], the others have lost the same, or are away, and those that are there go on with what they have.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::types::{LeaderId, Vote};
use super::{Error, NodeId, vote};
use crate::storage::{self, Batch, Durability, GroupId, Log, Position, Store};

/// No node has this number. Whoever meets a vote for itself would believe that it stands for election.
const NOBODY: NodeId = 0;

/// How long a replica waits for a leader that has what it may have lost.
const DOUBT: Duration = Duration::from_secs(30);
/// The index of the position that is owed for so long only.
const DOUBTED: u64 = u64::MAX - 1;

/// The position that the log of a replica once reached, and has not reached again.
pub(super) struct Promise {
    owed: Mutex<Option<Position>>,
    since: Instant,
}

impl Promise {
    /// What is owed by a replica whose log ends at `last`.
    pub(super) fn new(promised: Option<Position>, last: Option<Position>) -> Self {
        let owed = Mutex::new(promised.filter(|promised| !reaches(last, promised)));
        Promise { owed, since: Instant::now() }
    }

    /// Notes that the log ends at `last` now.
    pub(super) fn log_ends(&self, last: Position) {
        self.take_if(|promised| reaches(Some(last), promised));
    }

    /// What a majority had, all of the others have: there is no more than one.
    pub(super) fn others_have_all(&self) {
        self.take_if(|promised| is_doubt(promised));
    }

    fn take_if(&self, over: impl FnOnce(&mut Position) -> bool) {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).take_if(over);
    }

    /// Up to where a log must reach to be voted for, beyond what the log here says.
    pub(super) fn owed(&self) -> Option<Position> {
        let owed = *self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        owed.filter(|owed| !is_doubt(owed) || self.since.elapsed() < DOUBT)
    }

    /// What is owed to a candidate whose log ends at `last`, if that must not be voted for.
    pub(super) fn against(&self, last: Option<Position>) -> Option<Position> {
        self.owed().filter(|promised| !reaches(last, promised))
    }
}

/// Whether a log that ends at `last` is at least as new as one that ends at `promised`. There is one leader in a term.
fn reaches(last: Option<Position>, promised: &Position) -> bool {
    last.is_some_and(|last| (last.term, last.index) >= (promised.term, promised.index))
}

fn is_doubt(promised: &Position) -> bool {
    promised.index == DOUBTED
}

/// Has the replica of a log whose end may be lost promise what it may have acknowledged. Gives its vote and all that it has
/// promised from now on. Blocking.
///
/// # Errors
/// [`Error::Storage`].
pub(super) fn doubt(
    log: &Log,
    voted: Option<Vote>,
    promised: Option<Position>,
) -> Result<(Option<Vote>, Option<Position>), Error> {
    let of = |voted: Vote| (voted.leader_id.term, voted.leader_id.node_id);
    // Who has voted for nobody has followed nobody.
    let doubt = voted.map(of).map(|(term, leader)| Position { term, index: DOUBTED, leader });
    let promised = doubt.into_iter().chain(promised).max_by_key(|at| (at.term, at.index));
    let voted = voted.map(|voted| Vote::new(voted.leader_id.term + 1, NOBODY));
    let mut batch = Batch::new();
    if let Some(voted) = &voted {
        batch.put_vote(log.group(), vote::encode(voted));
    }
    batch.put_promised(log.group(), promised);
    log.store().commit_blocking(batch, Durability::Always)?;
    Ok((voted, promised))
}

/// Removes everything of a group but what its replica here owes if it ever comes back. The replica must be closed. Blocking.
///
/// # Errors
/// [`Error::Storage`]. What is damaged is no hindrance, as long as the log or the vote can be read.
pub fn empty(store: &Store, group: GroupId) -> Result<(), Error> {
    let log = store.log(group)?;
    let voted = match log.vote() {
        Err(error) if error.is_damage() => None,
        voted => voted?.and_then(|bytes| vote::decode(&bytes)),
    };
    let reached = || Ok(log.last()?.into_iter().chain(log.promised()?).max_by_key(|at| (at.term, at.index)));
    let all_of = |voted: Vote| {
        let term = voted.leader_id.term;
        let all = Position { term, index: u64::MAX, leader: voted.leader_id.node_id };
        (LeaderId { term: term + 1, node_id: NOBODY }, Some(all))
    };
    let (voted, promised) = match (voted, reached()) {
        // No entry is of a later term than the vote. The replica is in a term that nobody leads, so that there will be a
        // later one when it joins; and whoever leads that has what was agreed on.
        (Some(voted), Err::<_, storage::Error>(error)) if error.is_damage() => all_of(voted),
        (Some(voted), _) if log.is_doubted()? => all_of(voted),
        (Some(voted), reached) => (voted.leader_id, reached?),
        (None, reached) => {
            let reached = reached?;
            let (term, node_id) = reached.map_or((0, 0), |at| (at.term, at.leader));
            (LeaderId { term, node_id }, reached)
        }
    };
    let Some(mut promised) = promised else { return Ok(store.delete_group(group)?) };
    if is_doubt(&promised) {
        // What was lost before may come back, what is emptied does not.
        promised.index = u64::MAX;
    }
    // As a vote that nobody has won yet: without its log the replica is nobody's leader.
    let voted = Vote::new(voted.term, voted.node_id);
    Ok(store.empty_group(group, vote::encode(&voted), promised)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::{Batch, Command, Disk, Durability, Kind, Row, Sync};

    const GROUP: GroupId = GroupId::partition(1, 0);

    /// What is left of a log up to index 41 of term 4, when it is emptied: the vote, and the promise.
    fn left(vote: &[u8], damaged: Option<u64>) -> Result<(Option<Vote>, Option<Position>), Error> {
        let disk = Disk::new();
        let store = Store::simulated(&disk, Sync::Always, Arc::new(|_| {})).expect("a store");
        let log = store.log(GROUP).expect("a log");
        let mut batch = Batch::new();
        for index in 1..=41 {
            log.append(&mut batch, &Row::encode(at(4, index), Kind::Command, Command::copy_from_slice(b"x")));
        }
        batch.put_vote(GROUP, vote.to_vec());
        store.commit_blocking(batch, Durability::Sync).expect("written");
        if let Some(index) = damaged {
            assert!(disk.damage_row(GROUP, index));
        }
        empty(&store, GROUP)?;
        assert_eq!(log.last_index().expect("no row"), None);
        let vote = log.vote().expect("a vote").and_then(|bytes| vote::decode(&bytes));
        Ok((vote, log.promised().expect("a position")))
    }

    #[test]
    fn a_vote_and_the_end_of_the_log_stay() {
        let vote = vote::encode(&Vote::new_committed(6, 2));
        assert_eq!(left(&vote, None).unwrap(), (Some(Vote::new(6, 2)), Some(at(4, 41))));
        assert_eq!(left(&vote, Some(7)).unwrap(), (Some(Vote::new(6, 2)), Some(at(4, 41))));
    }

    #[test]
    fn an_end_that_cannot_be_read_is_before_the_next_term() {
        let vote = vote::encode(&Vote::new_committed(6, 2));
        let all = Position { index: u64::MAX, term: 6, leader: 2 };
        assert_eq!(left(&vote, Some(41)).unwrap(), (Some(Vote::new(7, NOBODY)), Some(all)));
        let promise = Promise::new(Some(all), None);
        assert_eq!(promise.against(Some(at(6, 90))), Some(all));
        assert_eq!(promise.against(Some(at(8, 42))), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_has_lost_its_end_owes_all_of_its_term_for_a_while() {
        let disk = Disk::new();
        let store = Store::simulated(&disk, Sync::Interval, Arc::new(|_| {})).expect("a store");
        let log = store.log(GROUP).expect("a log");
        let mut batch = Batch::new();
        log.append(&mut batch, &Row::encode(at(4, 41), Kind::Command, Command::copy_from_slice(b"x")));
        batch.put_vote(GROUP, vote::encode(&Vote::new_committed(6, 2)));
        store.commit_blocking(batch, Durability::Sync).expect("written");
        assert!(!log.is_doubted().expect("read"));
        store.doubt_logs().expect("marked");
        assert!(log.is_doubted().expect("read"));

        let (voted, promised) = doubt(&log, Some(Vote::new_committed(6, 2)), None).expect("promised");
        assert_eq!(voted, Some(Vote::new(7, NOBODY)));
        assert_eq!(log.vote().expect("a vote").as_deref(), Some(&vote::encode(&Vote::new(7, NOBODY))[..]));
        assert_eq!(log.promised().expect("a position"), promised);
        assert!(!log.is_doubted().expect("read"));

        let promise = || Promise::new(promised, Some(at(4, 41)));
        let (waits, learns, small) = (promise(), promise(), promise());
        for old in [None, Some(at(6, 90))] {
            assert_eq!(waits.against(old), promised, "{old:?}");
        }
        assert_eq!(waits.against(Some(at(8, 42))), None);
        learns.log_ends(at(8, 42));
        assert_eq!(learns.owed(), None);
        small.others_have_all();
        assert_eq!(small.owed(), None);
        tokio::time::advance(DOUBT - Duration::from_millis(1)).await;
        assert_eq!(waits.owed(), promised);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(waits.owed(), None, "nobody has more");

        empty(&store, GROUP).expect("emptied");
        let promised = log.promised().expect("a position");
        assert_eq!(promised.map(|at| (at.term, at.index)), Some((6, u64::MAX)), "it waits for ever now");
    }

    #[test]
    fn a_vote_that_cannot_be_read_is_no_hindrance() {
        assert_eq!(left(b"?", None).unwrap(), (Some(Vote::new(4, 4)), Some(at(4, 41))));
        assert!(left(b"?", Some(41)).unwrap_err().is_damage(), "nothing is known of it");
    }

    fn at(term: u64, index: u64) -> Position {
        Position { index, term, leader: term }
    }

    #[test]
    fn a_log_that_lacks_what_was_promised_gets_no_vote() {
        let promise = Promise::new(Some(at(4, 41)), None);
        for old in [None, Some(at(4, 40)), Some(at(3, 90))] {
            assert_eq!(promise.against(old), Some(at(4, 41)), "{old:?}");
        }
        for new in [at(4, 41), at(4, 42), at(5, 7)] {
            assert_eq!(promise.against(Some(new)), None, "{new:?}");
        }
    }

    #[test]
    fn a_promise_is_kept_when_the_log_reaches_as_far_again() {
        let promise = Promise::new(Some(at(4, 41)), Some(at(4, 40)));
        promise.log_ends(at(3, 90));
        assert_eq!(promise.owed(), Some(at(4, 41)));
        promise.log_ends(at(4, 41));
        assert_eq!(promise.owed(), None);
        assert_eq!(Promise::new(Some(at(4, 41)), Some(at(5, 3))).owed(), None);
    }
}
