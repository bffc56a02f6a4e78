//! What is known about a replica from outside.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;

use super::{Error, NodeId};

/// What a replica does in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It receives entries but has no vote; also a replica that belongs to no group yet.
    #[default]
    Learner,
    /// It follows a leader, or waits for one.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It leads.
    Leader,
    /// It is shut down or failed, and will do nothing more.
    Stopped,
}

/// A replica's view of its group. Indexes are of the Raft log, whose first entry has index 0.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// What this replica does.
    pub role: Role,
    /// Who leads, as far as this replica knows.
    pub leader: Option<NodeId>,
    /// The term this replica is in.
    pub term: u64,
    /// The last entry handed to this node's store.
    pub last_index: Option<u64>,
    /// The last entry known here to be committed.
    pub committed: Option<u64>,
    /// The last entry applied here.
    pub applied: Option<u64>,
    /// The term of the last entry applied here.
    pub applied_term: u64,
    /// The log was purged up to and including this entry.
    pub purged: Option<u64>,
    /// Why the last purge did not get to its end; what it left goes with the next one.
    pub purge_failed: Option<Error>,
    /// Who has a vote, in ascending order; during a change of members, in the old or the new configuration.
    pub voters: Arc<[NodeId]>,
    /// Those of them who have a vote in the old and in the new configuration: all, unless members change.
    pub lasting_voters: Arc<[NodeId]>,
    /// All members, in ascending order: those with a vote, and those who only receive entries.
    pub members: Arc<[NodeId]>,
    /// Whether this replica knows that these members are agreed on, and not only proposed.
    pub members_agreed: bool,
    /// An entry that a follower needed cannot be read here.
    pub damaged: Option<Error>,
    /// Nor did another member give it. Another leader is wanted, which has it.
    pub unreadable: Option<Error>,
    /// Why the replica stopped, if it did so by itself.
    pub failed: Option<Error>,
}

impl Status {
    /// Whether this replica leads and has applied all that earlier leaders committed.
    pub fn is_ready_leader(&self) -> bool {
        self.role == Role::Leader && self.applied.is_some() && self.applied_term == self.term
    }
}

/// A replica's [`Status`], now and whenever it changes.
///
/// It gives copies only. Whoever held the status itself and looked at it again meanwhile would wait for ever, if somebody
/// came to change it in between: behind who waits to write nobody reads any more.
#[derive(Clone, Debug)]
pub struct Watch(pub(super) watch::Receiver<Status>);

impl Watch {
    /// As it is now.
    pub fn now(&self) -> Status {
        self.0.borrow().clone()
    }

    /// Waits until it is as wished.
    ///
    /// # Errors
    /// The replica is gone.
    pub async fn wait_for(&mut self, wish: impl FnMut(&Status) -> bool) -> Result<Status, RecvError> {
        self.0.wait_for(wish).await.map(|status| status.clone())
    }
}
