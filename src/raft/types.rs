//! The type parameters of openraft, chosen once for all groups so that its code is compiled once.

use std::any::Any;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use openraft::vote::leader_id_adv;

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

pub(super) type LeaderId = leader_id_adv::LeaderId<u64, NodeId>;
pub(super) type LogId = openraft::LogId<LeaderId>;
pub(super) type Vote = openraft::Vote<LeaderId>;
pub(super) type Membership = openraft::Membership<NodeId, ()>;
pub(super) type StoredMembership = openraft::StoredMembership<LeaderId, NodeId, ()>;
pub(super) type Payload = openraft::EntryPayload<Command, NodeId, ()>;
pub(super) type Entry = openraft::Entry<LeaderId, Payload>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, NodeId, ()>;
pub(super) type Snapshot = openraft::Snapshot<LeaderId, NodeId, (), Bytes>;

/// The store's way to write a log id, as openraft writes it.
pub(super) fn log_id(at: Position) -> LogId {
    LogId { leader_id: LeaderId { term: at.term, node_id: at.leader }, index: at.index }
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
