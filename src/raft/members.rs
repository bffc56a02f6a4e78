//! Who is a member of a group, and how that is changed. Only the leader's replica can change anything.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::raft::linearizable_read::LinearizerOption;
use openraft::{ChangeMembers, Instant as _};

use super::group::Core;
use super::proposal;
use super::{Error, NodeId, Role, Status, Watch};
use crate::storage::GroupId;

/// A handle of one replica, whatever its machine, that sees and changes the members of its group.
#[derive(Clone)]
pub struct Members {
    pub(super) core: Arc<Core>,
}

/// What the leader knows of another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    /// The member.
    pub node: NodeId,
    /// The last entry that it is known to have on disk.
    pub matched: Option<u64>,
    /// How long ago it last answered; none if it never did in this term.
    pub heard: Option<Duration>,
}

impl Members {
    /// Which group this is.
    pub fn group(&self) -> GroupId {
        self.core.shared.group
    }

    /// What is known about the replica, now and whenever it changes.
    pub fn status(&self) -> Watch {
        self.core.shared.watch()
    }

    /// If this replica leads: the other members, by number. Empty otherwise.
    pub fn followers(&self) -> Vec<Follower> {
        let observed = self.core.agreement.data_metrics();
        let observed = observed.borrow_watched();
        let Some(replication) = &observed.replication else { return Vec::new() };
        let heard = |node: &NodeId| {
            let at = observed.heartbeat.as_ref()?.get(node)?.as_ref()?;
            Some(at.elapsed())
        };
        let others = replication.iter().filter(|(node, _)| **node != self.core.node);
        others
            .map(|(node, matched)| Follower {
                node: *node,
                matched: matched.as_ref().map(|at| at.index),
                heard: heard(node),
            })
            .collect()
    }

    /// If this replica leads with others: how long ago it was last known that a majority follows. None if it does not
    /// lead, or leads alone.
    pub fn quorum_age(&self) -> Option<Duration> {
        if self.core.shared.status().voters.len() < 2 {
            return None;
        }
        let observed = self.core.agreement.data_metrics();
        let observed = observed.borrow_watched();
        observed.replication.as_ref()?;
        Some(observed.last_quorum_acked.as_ref().map_or(Duration::ZERO, |at| at.elapsed()))
    }

    /// Makes sure that this replica leads at some moment after the call, not only as far as it knows, and has applied
    /// everything that was agreed on before. That a majority follows may be known already; otherwise it is asked, and has
    /// until `patience` is over.
    ///
    /// # Errors
    /// [`Error::NotLeader`], also if no majority answers or the replica has ended.
    pub async fn confirm(&self, patience: Duration) -> Result<(), Error> {
        let how = LinearizerOption::new(None, true).with_wait_timeout(patience);
        match self.core.agreement.ensure_linearizable(how).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(Error::NotLeader { leader: proposal::other(self.core.node, forward.leader_id) })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) | RaftError::Fatal(_)) => {
                Err(Error::NotLeader { leader: None })
            }
        }
    }

    /// Adds a member that receives entries but has no vote, without waiting until it has caught up.
    ///
    /// # Errors
    /// [`Error::NotLeader`], [`Error::Membership`] while another change is under way,
    /// [`Error::OutcomeUnknown`].
    pub async fn invite(&self, node: NodeId) -> Result<(), Error> {
        self.core.changed(self.core.agreement.add_learner(node, (), false).await)
    }

    /// Makes `voters` the members with a vote; each must be a member already, and the leader must be one of them. Who loses
    /// its vote stays a member.
    ///
    /// # Errors
    /// As [`Members::invite`]; [`Error::Membership`] also if a node is no member, or if the leader would lose its vote: it
    /// must hand over first.
    pub async fn give_votes(&self, voters: BTreeSet<NodeId>) -> Result<(), Error> {
        self.core.replace_voters(voters, true).await
    }

    /// Removes a member that has no vote and does not lead.
    ///
    /// # Errors
    /// As [`Members::give_votes`].
    pub async fn expel(&self, node: NodeId) -> Result<(), Error> {
        if node == self.core.node {
            return Err(self.core.must_hand_over());
        }
        let change = ChangeMembers::<NodeId, ()>::RemoveNodes(BTreeSet::from([node]));
        // What an earlier leader began is finished with this change. Who loses its vote by that, maybe this leader, stays.
        self.core.changed(self.core.agreement.change_membership(change, true).await)
    }

    /// Asks the leader, if it is this node, to hand its leadership to `to`. It takes no more commands from then on. Whether
    /// it did is seen in [`Status`]; if `to` does not take over in time, the members elect whom they can.
    ///
    /// # Errors
    /// [`Error::Membership`] if `to` is this node or has no vote, and what ended the replica.
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), Error> {
        let Status { role, term, voters, .. } = self.status().now();
        if role != Role::Leader {
            return Ok(());
        }
        if to == self.core.node || !voters.contains(&to) {
            let reason = format!("node {to} is not another voter that could lead");
            return Err(Error::Membership { reason });
        }
        self.core.hand_over.begin(term, to);
        self.core.agreement.trigger().transfer_leader(to).await.map_err(|_| self.core.shared.stopped())
    }

    /// Starts an election now instead of when the leader was not heard for long.
    ///
    /// # Errors
    /// What ended the replica.
    pub async fn elect(&self) -> Result<(), Error> {
        if self.core.shared.promise.owed().is_some() {
            return Ok(());
        }
        self.core.agreement.trigger().elect(true).await.map_err(|_| self.core.shared.stopped())
    }
}
