//! What the replicas of a group say to each other, free of the agreement library's types.
//!
//! A [`super::Transport`] carries a [`Request`] to the same group's [`super::Replica`] on another node and
//! brings back its [`Response`].

use bytes::Bytes;

use super::NodeId;
use crate::storage::Position;

/// A vote: for whom, in which term, and whether a majority granted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ballot {
    /// The term voted in.
    pub term: u64,
    /// The node voted for.
    pub node: NodeId,
    /// Whether a majority granted it, so that `node` leads `term`.
    pub granted: bool,
}

/// What one replica asks of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Store these entries.
    Append(Append),
    /// Vote for the sender.
    Vote(VoteRequest),
    /// Would you vote for the sender? Changes nothing.
    PreVote(VoteRequest),
    /// Replace your state and log by this.
    Snapshot(SnapshotRequest),
    /// Leadership passes to `to`; if that is you, start an election at once.
    TransferLeader(TransferRequest),
    /// Give the sender entries that it has lost.
    Entries(EntriesRequest),
}

/// What a replica answers to the request of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// To [`Request::Append`].
    Append(Appended),
    /// To [`Request::Vote`] and [`Request::PreVote`].
    Vote(VoteResponse),
    /// To [`Request::Snapshot`]: the replica's vote afterwards, higher than the sender's if it refused.
    Snapshot(Ballot),
    /// To [`Request::TransferLeader`].
    TransferLeader(Transferred),
    /// To [`Request::Entries`]: whole log rows ([`crate::storage::Row`]) from the first one asked for on; none if it is not
    /// there, or not known to be committed.
    Entries(Vec<Bytes>),
}

/// Entries from a leader; none in a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// The sender's leadership.
    pub ballot: Ballot,
    /// The entry before the first of `rows`; none if that is the first of the log.
    pub previous: Option<Position>,
    /// Whole log rows ([`crate::storage::Row`]) of the entries after `previous`, in order.
    pub rows: Vec<Bytes>,
    /// What the leader knows to be committed.
    pub committed: Option<Position>,
}

impl Request {
    /// Bytes of what it carries.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Request::Append(append) => append.rows.iter().map(Bytes::len).sum(),
            Request::Snapshot(snapshot) => snapshot.checkpoint.len(),
            Request::Vote(_) | Request::PreVote(_) | Request::TransferLeader(_) | Request::Entries(_) => 0,
        }
    }
}

/// What became of the entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// All are durable.
    All,
    /// Those up to here are durable.
    UpTo(Option<Position>),
    /// `previous` is not in the log.
    Conflict,
    /// The sender's leadership is over.
    HigherBallot(Ballot),
}

/// A candidate's plea.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteRequest {
    /// What to vote.
    pub ballot: Ballot,
    /// The last entry of the candidate's log.
    pub last: Option<Position>,
    /// Whether the leader itself asked for this election, so that its lease does not stand in the way.
    pub transfer: bool,
}

/// A voter's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteResponse {
    /// The voter's vote.
    pub ballot: Ballot,
    /// Whether it went to the candidate.
    pub granted: bool,
    /// The last entry of the voter's log.
    pub last: Option<Position>,
}

/// The state of the group as of the start of the leader's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// The sender's leadership.
    pub ballot: Ballot,
    /// A checkpoint, encoded as on disk.
    pub checkpoint: Bytes,
}

/// A leader's wish to be succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferRequest {
    /// The leadership that ends.
    pub from: Ballot,
    /// Who shall lead.
    pub to: NodeId,
    /// What the successor must have on disk.
    pub last: Option<Position>,
}

/// What became of the wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transferred {
    /// It is followed.
    Accepted,
    /// Another leadership has begun.
    BallotChanged {
        /// The leadership that was to end.
        expected: Ballot,
        /// The replica's vote.
        actual: Ballot,
    },
    /// The successor does not have all entries on disk yet.
    Behind {
        /// What it must have.
        expected: Option<Position>,
        /// What it has.
        actual: Option<Position>,
    },
}

/// A leader's plea for entries that it cannot read itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntriesRequest {
    /// The sender's leadership. What was committed under a later one, the sender may not have had.
    pub ballot: Ballot,
    /// The first entry.
    pub from: u64,
    /// The entry after the last.
    pub to: u64,
    /// How many bytes are wanted, about; an entry above it comes alone.
    pub bytes_max: u64,
}
