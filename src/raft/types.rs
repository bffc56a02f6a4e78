//! The type parameters of openraft, chosen once for all groups so that its code is compiled once.

use std::any::Any;
use std::cmp::Ordering;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use openraft::vote::RaftLeaderId;

use super::NodeId;
use super::machine::AnyReply;
use super::proposal::Waiter;
use crate::storage::{self, Position, Row};

/// How openraft is set up for every group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types;

impl openraft::RaftTypeConfig for Types {
    type D = Command;
    type R = Reply;
    type NodeId = NodeId;
    type Node = ();
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    #[cfg(not(test))]
    type AsyncRuntime = openraft::impls::TokioRuntime;
    #[cfg(test)]
    type AsyncRuntime = super::runtime::Runtime;
    type Responder<T>
        = Waiter<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(super) type LogId = openraft::LogId<Elected>;
pub(super) type Vote = openraft::Vote<LeaderId>;
pub(super) type Membership = openraft::Membership<NodeId, ()>;
pub(super) type StoredMembership = openraft::StoredMembership<Elected, NodeId, ()>;
pub(super) type Payload = openraft::EntryPayload<Command, NodeId, ()>;
pub(super) type Entry = openraft::Entry<Elected, Payload>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<Elected, NodeId, ()>;
pub(super) type Snapshot = openraft::Snapshot<Elected, NodeId, (), Bytes>;

/// Who leads a term, or asks to.
///
/// INVARIANT: a term has at most one leader. Two who ask for the same term cannot be compared, so nobody who voted for one
/// votes for the other. Fencing by terms, as that of consumer groups, depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderId {
    pub(super) term: u64,
    pub(super) node_id: NodeId,
}

/// Who was elected for a term. That nobody else was lets it be written down and compared with its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Elected {
    pub(super) term: u64,
    pub(super) node_id: NodeId,
}

impl RaftLeaderId for LeaderId {
    type Term = u64;
    type NodeId = NodeId;
    type Committed = Elected;

    fn new(term: u64, node_id: NodeId) -> Self {
        LeaderId { term, node_id }
    }

    fn term(&self) -> u64 {
        self.term
    }

    fn node_id(&self) -> &NodeId {
        &self.node_id
    }

    fn to_committed(&self) -> Elected {
        Elected { term: self.term, node_id: self.node_id }
    }
}

impl PartialOrd for LeaderId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match self.term.cmp(&other.term) {
            Ordering::Equal => (self.node_id == other.node_id).then_some(Ordering::Equal),
            terms => Some(terms),
        }
    }
}

impl PartialEq<Elected> for LeaderId {
    fn eq(&self, _: &Elected) -> bool {
        false
    }
}

impl PartialOrd<Elected> for LeaderId {
    /// Who was elected comes after all who asked for the term.
    fn partial_cmp(&self, other: &Elected) -> Option<Ordering> {
        Some(self.term.cmp(&other.term).then(Ordering::Less))
    }
}

impl fmt::Display for LeaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {} of node {}", self.term, self.node_id)
    }
}

impl fmt::Display for Elected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {} of node {}", self.term, self.node_id)
    }
}

/// The store's way to write a log id, as openraft writes it.
pub(super) fn log_id(at: Position) -> LogId {
    LogId { leader_id: Elected { term: at.term, node_id: at.leader }, index: at.index }
}

/// openraft's way to write a log id, as the store writes it.
pub(super) fn position(at: &LogId) -> Position {
    Position { index: at.index, term: at.leader_id.term, leader: at.leader_id.node_id }
}

/// A command on its way through openraft.
pub enum Command {
    /// As proposed: the head-room for the row header is still empty.
    Proposed(storage::Command),
    /// As stored or received.
    Row(Row),
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Proposed(command) => write!(f, "proposed({} bytes)", command.len()),
            Command::Row(row) => write!(f, "row({} bytes)", row.payload.len()),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry answers: nothing for an entry without a command.
pub struct Reply {
    // openraft wants `Sync`. The lock is never contended: only `into_parts` looks inside, by value.
    value: Mutex<Option<AnyReply>>,
    appended: Option<Instant>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("appended", &self.appended).finish_non_exhaustive()
    }
}

impl Reply {
    pub(super) fn new(value: Option<AnyReply>) -> Self {
        Reply { value: Mutex::new(value), appended: None }
    }

    /// Notes when the entry was durable here.
    pub(super) fn set_appended(&mut self, at: Option<Instant>) {
        self.appended = at;
    }

    /// The machine's reply, and when the entry was durable here, if that was noticed.
    pub(super) fn into_parts(self) -> (Option<Box<dyn Any + Send>>, Option<Instant>) {
        (self.value.into_inner().unwrap_or_else(PoisonError::into_inner), self.appended)
    }
}
