//! What a replica owes that was emptied.
//!
//! Whoever acknowledges entries promises not to vote for anybody who lacks them: agreement rests on that (Ongaro, Ousterhout:
//! "In Search of an Understandable Consensus Algorithm", 2014, section 5.4.1). A replica that is emptied and joins anew under
//! the same number has lost the log that would hold it to that. A member of long ago which was away, and still counts it among
//! its voters, could win with its help and lack what was agreed on since. So the vote and the last position of the log stay,
//! and until the new log reaches that position, the replica neither votes for a log that does not, nor stands for election.

use std::sync::{Mutex, PoisonError};

use super::types::Vote;
use super::{Error, vote};
use crate::storage::{GroupId, Position, Store};

/// The position that the log of a replica once reached, and has not reached again.
pub(super) struct Promise(Mutex<Option<Position>>);

impl Promise {
    /// What is owed by a replica whose log ends at `last`.
    pub(super) fn new(promised: Option<Position>, last: Option<Position>) -> Self {
        Promise(Mutex::new(promised.filter(|promised| !reaches(last, promised))))
    }

    /// Notes that the log ends at `last` now.
    pub(super) fn log_ends(&self, last: Position) {
        let mut owed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        owed.take_if(|promised| reaches(Some(last), promised));
    }

    /// Up to where a log must reach to be voted for, beyond what the log here says.
    pub(super) fn owed(&self) -> Option<Position> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Removes everything of a group but what its replica here owes if it ever comes back. The replica must be closed. Blocking.
///
/// # Errors
/// [`Error::Storage`], and [`Error::Corrupt`] for a vote that cannot be read.
pub fn empty(store: &Store, group: GroupId) -> Result<(), Error> {
    let log = store.log(group)?;
    let corrupt = Error::Corrupt { group, what: "the vote" };
    let voted = log.vote()?.map(|bytes| vote::decode(&bytes).ok_or(corrupt)).transpose()?;
    let last = match log.last() {
        // The index is in the key, and no entry is newer than the vote.
        Err(error) if error.is_damage() => {
            let term = voted.map_or(0, |voted| voted.leader_id.term);
            log.last_index()?.map(|index| Position { index, term, leader: 0 })
        }
        last => last?,
    };
    let promised = log.promised()?.into_iter().chain(last).max_by_key(|at| (at.term, at.index));
    let Some(promised) = promised else { return Ok(store.delete_group(group)?) };
    // As a vote that nobody has won yet: without its log the replica is nobody's leader.
    let voted = voted.map_or((0, 0), |voted| (voted.leader_id.term, voted.leader_id.node_id));
    let voted = Vote::new(voted.0, voted.1);
    Ok(store.empty_group(group, vote::encode(&voted), promised)?)
}

#[cfg(test)]
mod tests {
    use super::*;

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
