//! openraft's view of the other nodes, over a [`Transport`].

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{self, TransferLeaderError};
use openraft::{RPCTypes, RaftNetworkFactory, RaftNetworkV2};

use super::checkpoint::Checkpoint;
use super::log_store::{entry_from, row_from};
use super::message::{
    Append, Appended, Ballot, Request, Response, SnapshotRequest, TransferRequest, Transferred, VoteRequest,
    VoteResponse,
};
use super::shared::Shared;
use super::types::{LeaderId, Snapshot, Types, Vote, log_id, position};
use super::{NodeId, Replica};
use crate::storage::{self, GroupId, Position, Row};

/// Why a message to another node has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// The node cannot be reached now. The message did not arrive.
    #[error("node {node} cannot be reached: {reason}")]
    Unreachable {
        /// Which node.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// No answer in time. The message may have arrived. A transport says so only when its patience is over: a snapshot
    /// is sent again at once, which would go round in a circle. [`TransportError::Unreachable`] makes it wait.
    #[error("node {node} did not answer within {after:?}")]
    Timeout {
        /// Which node.
        node: NodeId,
        /// How long the sender waited.
        after: Duration,
    },
    /// The node answered with something else than an answer. The message may have been acted on.
    #[error("node {node} failed: {reason}")]
    Failed {
        /// Which node.
        node: NodeId,
        /// What it said.
        reason: String,
    },
}

/// Carries messages to the replicas of a group on other nodes.
pub trait Transport: Send + Sync + 'static {
    /// Sends `request` to the replica of `group` on node `to` and waits for its answer, at most about
    /// `patience`. Messages may be lost, but those of one group to one node must not overtake each other.
    fn call(
        &self,
        to: NodeId,
        group: GroupId,
        request: Request,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Response, TransportError>>;

    /// A replica can answer from now on.
    fn attach(&self, _replica: Replica) {}

    /// The replica of `group` answers no more.
    fn detach(&self, _group: GroupId) {}

    /// A replica on this node became its group's leader.
    fn elected(&self, _group: GroupId) {}

    /// A replica on this node became a leader that may answer for its group, or ceased to be one.
    fn led(&self, _group: GroupId) {}

    /// A follower has entries on its disk, the last of which this node appended so long ago.
    fn replicated(&self, _took: Duration) {}

    /// The spans of a command that somebody follows, whatever the command is. Asked of every command that this node
    /// stores as a follower, so the answer must be quick.
    fn spans_of(&self, _group: GroupId, _command: &Bytes) -> Vec<SpanIds> {
        Vec::new()
    }

    /// This node has stored, as a follower, commands with these spans.
    fn stored(&self, _group: GroupId, _spans: &[SpanIds], _received: Instant) {}

    /// A replica on this node has lost an entry of its log.
    fn damaged(&self, _group: GroupId) {}

    /// A replica on this node took over a snapshot.
    fn installed(&self, _group: GroupId) {}
}

/// W3C trace id and span id.
pub type SpanIds = ([u8; 16], [u8; 8]);

/// How long replication to a node rests that was not reached.
const BACKOFF: Duration = Duration::from_millis(100);

/// The transport of a broker that is alone: nobody can be reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl Transport for NoPeers {
    fn call(
        &self,
        to: NodeId,
        _: GroupId,
        _: Request,
        _: Duration,
    ) -> BoxFuture<'static, Result<Response, TransportError>> {
        let reason = "this broker runs without peers".to_owned();
        Box::pin(std::future::ready(Err(TransportError::Unreachable { node: to, reason })))
    }
}

/// Makes a [`Peer`] for each other member of a group.
pub(super) struct Peers {
    pub(super) group: GroupId,
    pub(super) node: NodeId,
    pub(super) transport: Arc<dyn Transport>,
    /// How long a message with entries may take.
    pub(super) append_timeout: Duration,
    pub(super) shared: Arc<Shared>,
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, (): &()) -> Peer {
        Peer {
            group: self.group,
            from: self.node,
            to: target,
            transport: Arc::clone(&self.transport),
            append_timeout: self.append_timeout,
            shared: Arc::clone(&self.shared),
        }
    }
}

/// One other member of a group.
pub(super) struct Peer {
    group: GroupId,
    from: NodeId,
    to: NodeId,
    transport: Arc<dyn Transport>,
    append_timeout: Duration,
    shared: Arc<Shared>,
}

impl Peer {
    async fn call(
        &self,
        kind: RPCTypes,
        request: Request,
        patience: Duration,
    ) -> Result<Response, RPCError<Types>> {
        let call = self.transport.call(self.to, self.group, request, patience);
        // The transport is trusted with its own deadline; this one keeps replication alive if it is wrong.
        let answer = tokio::time::timeout(patience, call).await;
        let timeout = |after| Timeout { action: kind, id: self.from, target: self.to, timeout: after };
        match answer {
            Err(_) => Err(timeout(patience).into()),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(TransportError::Timeout { after, .. })) => Err(timeout(after).into()),
            // A node that cannot answer will not be able to at once either: it is asked again after a pause.
            Ok(Err(error)) => Err(Unreachable::new(&error).into()),
        }
    }

    async fn ask_for_vote(
        &self,
        rpc: raft::VoteRequest<Types>,
        option: &RPCOption,
        wrap: fn(VoteRequest) -> Request,
    ) -> Result<raft::VoteResponse<Types>, RPCError<Types>> {
        let request = VoteRequest {
            ballot: ballot(&rpc.vote),
            last: rpc.last_log_id.as_ref().map(position),
            transfer: rpc.leadership_transfer,
        };
        match self.call(RPCTypes::Vote, wrap(request), option.hard_ttl()).await? {
            Response::Vote(answer) => Ok(raft::VoteResponse {
                vote: vote(answer.ballot),
                vote_granted: answer.granted,
                last_log_id: answer.last.map(log_id),
            }),
            _ => Err(mismatch(self.to).into()),
        }
    }
}

/// An answer of another kind than the question.
fn mismatch(node: NodeId) -> NetworkError<Types> {
    NetworkError::from_string(format!("node {node} answered another question"))
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: raft::AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<raft::AppendEntriesResponse<Types>, RPCError<Types>> {
        if self.shared.is_silent() && rpc.entries.is_empty() {
            // The others elect somebody only once they hear nothing. What they lack they get all the same: this replica votes
            // for nobody who has less than it has.
            let reason = "this node lets its leadership go".to_owned();
            return Err(Unreachable::new(&TransportError::Unreachable { node: self.to, reason }).into());
        }
        let request = Append {
            ballot: ballot(&rpc.vote),
            previous: rpc.prev_log_id.as_ref().map(position),
            rows: rpc.entries.into_iter().map(|entry| row_from(entry).bytes().clone()).collect(),
            committed: rpc.leader_commit.as_ref().map(position),
        };
        let last = match request.rows.len() as u64 {
            0 => None,
            rows => Some(request.previous.map_or(0, |previous| previous.index + 1) + rows - 1),
        };
        // openraft's patience is one heartbeat, too short for entries on their way to a busy disk.
        let patience = match request.rows.is_empty() {
            true => option.hard_ttl(),
            false => option.hard_ttl().max(self.append_timeout),
        };
        match self.call(RPCTypes::AppendEntries, Request::Append(request), patience).await? {
            Response::Append(Appended::All) => {
                if let Some(took) = last.and_then(|last| self.shared.since_append(last)) {
                    self.transport.replicated(took);
                }
                Ok(raft::AppendEntriesResponse::Success)
            }
            Response::Append(Appended::UpTo(last)) => {
                Ok(raft::AppendEntriesResponse::PartialSuccess(last.map(log_id)))
            }
            Response::Append(Appended::Conflict) => Ok(raft::AppendEntriesResponse::Conflict),
            Response::Append(Appended::HigherBallot(higher)) => {
                Ok(raft::AppendEntriesResponse::HigherVote(vote(higher)))
            }
            _ => Err(mismatch(self.to).into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: raft::VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<raft::VoteResponse<Types>, RPCError<Types>> {
        self.ask_for_vote(rpc, &option, Request::Vote).await
    }

    async fn pre_vote(
        &mut self,
        rpc: raft::VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<raft::VoteResponse<Types>, RPCError<Types>> {
        self.ask_for_vote(rpc, &option, Request::PreVote).await
    }

    async fn full_snapshot(
        &mut self,
        leader: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<raft::SnapshotResponse<Types>, StreamingError<Types>> {
        let Some(applied) = snapshot.meta.last_log_id else {
            return Err(NetworkError::from_string("a snapshot without a last entry").into());
        };
        let checkpoint =
            Checkpoint { applied, members: snapshot.meta.last_membership, state: snapshot.snapshot };
        let request = SnapshotRequest { ballot: ballot(&leader), checkpoint: checkpoint.encode() };
        let call = self.call(RPCTypes::InstallSnapshot, Request::Snapshot(request), option.hard_ttl());
        let response = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            response = call => response?,
        };
        match response {
            Response::Snapshot(ballot) => Ok(raft::SnapshotResponse { vote: vote(ballot) }),
            _ => Err(mismatch(self.to).into()),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(BACKOFF)))
    }

    async fn transfer_leader(
        &mut self,
        req: raft::TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<raft::TransferLeaderResponse<Types>, RPCError<Types>> {
        let request = TransferRequest {
            from: ballot(req.from_leader()),
            to: *req.to_node_id(),
            last: req.last_log_id().map(position),
        };
        match self.call(RPCTypes::TransferLeader, Request::TransferLeader(request), option.hard_ttl()).await?
        {
            Response::TransferLeader(Transferred::Accepted) => Ok(Ok(())),
            Response::TransferLeader(Transferred::BallotChanged { expected, actual }) => {
                Ok(Err(TransferLeaderError::VoteChanged { expected: vote(expected), actual: vote(actual) }))
            }
            Response::TransferLeader(Transferred::Behind { expected, actual }) => {
                Ok(Err(TransferLeaderError::LogNotFlushed {
                    expected: expected.map(log_id),
                    actual: actual.map(log_id),
                }))
            }
            _ => Err(mismatch(self.to).into()),
        }
    }
}

pub(super) fn ballot(vote: &Vote) -> Ballot {
    Ballot { term: vote.leader_id.term, node: vote.leader_id.node_id, granted: vote.committed }
}

fn vote(ballot: Ballot) -> Vote {
    Vote { leader_id: LeaderId { term: ballot.term, node_id: ballot.node }, committed: ballot.granted }
}

// The receiving side of the same conversions.

/// What openraft makes of received entries.
///
/// # Errors
/// [`storage::Error::Corrupt`] if a row is not as it was sent.
pub(super) fn append_from(
    group: GroupId,
    request: Append,
) -> Result<raft::AppendEntriesRequest<Types>, storage::Error> {
    let first = request.previous.map_or(0, |previous| previous.index + 1);
    let mut entries = Vec::with_capacity(request.rows.len());
    for (index, bytes) in (first..).zip(request.rows) {
        let row = Row::decode(group, index, bytes)?;
        let entry = entry_from(row);
        entries.push(entry.ok_or(storage::Error::Corrupt {
            group,
            index,
            what: "its members cannot be read",
        })?);
    }
    Ok(raft::AppendEntriesRequest {
        vote: vote(request.ballot),
        prev_log_id: request.previous.map(log_id),
        entries,
        leader_commit: request.committed.map(log_id),
    })
}

pub(super) fn appended_from(response: raft::AppendEntriesResponse<Types>) -> Appended {
    match response {
        raft::AppendEntriesResponse::Success => Appended::All,
        raft::AppendEntriesResponse::PartialSuccess(last) => Appended::UpTo(last.as_ref().map(position)),
        raft::AppendEntriesResponse::Conflict => Appended::Conflict,
        raft::AppendEntriesResponse::HigherVote(higher) => Appended::HigherBallot(ballot(&higher)),
    }
}

pub(super) fn vote_from(request: &VoteRequest) -> raft::VoteRequest<Types> {
    raft::VoteRequest {
        vote: vote(request.ballot),
        last_log_id: request.last.map(log_id),
        leadership_transfer: request.transfer,
    }
}

pub(super) fn voted_from(response: &raft::VoteResponse<Types>) -> VoteResponse {
    VoteResponse {
        ballot: ballot(&response.vote),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(position),
    }
}

/// The answer to a candidate that lacks what was promised.
pub(super) fn refused(voted: Option<Vote>, promised: Position) -> VoteResponse {
    VoteResponse { ballot: ballot(&voted.unwrap_or(Vote::new(0, 0))), granted: false, last: Some(promised) }
}

/// The leadership and the snapshot in a request; nothing if the snapshot is not as it was sent.
pub(super) fn snapshot_from(request: &SnapshotRequest) -> Option<(Vote, Snapshot)> {
    let checkpoint = Checkpoint::decode(&request.checkpoint)?;
    Some((vote(request.ballot), Snapshot { meta: checkpoint.meta(), snapshot: checkpoint.state }))
}

pub(super) fn installed_from(response: &raft::SnapshotResponse<Types>) -> Ballot {
    ballot(&response.vote)
}

pub(super) fn transfer_from(request: &TransferRequest) -> raft::TransferLeaderRequest<Types> {
    raft::TransferLeaderRequest::new(vote(request.from), request.to, request.last.map(log_id))
}

pub(super) fn transferred_from(response: raft::TransferLeaderResponse<Types>) -> Transferred {
    match response {
        Ok(()) => Transferred::Accepted,
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            Transferred::BallotChanged { expected: ballot(&expected), actual: ballot(&actual) }
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => Transferred::Behind {
            expected: expected.as_ref().map(position),
            actual: actual.as_ref().map(position),
        },
    }
}
