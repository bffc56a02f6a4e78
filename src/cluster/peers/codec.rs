//! Between what replicas say ([`crate::raft::message`]) and how it travels.

use crate::proto::internal as wire;
use crate::proto::internal::peer_frame::Body;
use crate::proto::internal::{raft_appended, raft_transferred};
use crate::raft::message::{
    Append, Appended, Ballot, EntriesRequest, Request, Response, SnapshotRequest, TransferRequest,
    Transferred, VoteRequest, VoteResponse,
};
use crate::storage::Position;

/// How a request travels.
pub(super) fn request_to_wire(request: Request) -> Body {
    match request {
        Request::Append(append) => Body::Append(wire::RaftAppend {
            ballot: Some(ballot(append.ballot)),
            previous: append.previous.map(position),
            rows: append.rows,
            committed: append.committed.map(position),
        }),
        Request::Vote(request) => Body::Vote(vote(&request)),
        Request::PreVote(request) => Body::PreVote(vote(&request)),
        Request::Snapshot(request) => Body::Snapshot(wire::RaftSnapshot {
            ballot: Some(ballot(request.ballot)),
            checkpoint: request.checkpoint,
        }),
        Request::TransferLeader(request) => Body::Transfer(wire::RaftTransfer {
            from: Some(ballot(request.from)),
            to: request.to,
            last: request.last.map(position),
        }),
        Request::Entries(EntriesRequest { ballot: of, from, to, bytes_max }) => {
            Body::AskEntries(wire::RaftAskEntries { ballot: Some(ballot(of)), from, to, bytes_max })
        }
    }
}

/// The request in a frame; nothing if the frame holds none.
pub(super) fn request_from_wire(body: Body) -> Option<Request> {
    Some(match body {
        Body::Append(append) => Request::Append(Append {
            ballot: ballot_from(append.ballot?),
            previous: append.previous.map(position_from),
            rows: append.rows,
            committed: append.committed.map(position_from),
        }),
        Body::Vote(request) => Request::Vote(vote_from(request)?),
        Body::PreVote(request) => Request::PreVote(vote_from(request)?),
        Body::Snapshot(request) => Request::Snapshot(SnapshotRequest {
            ballot: ballot_from(request.ballot?),
            checkpoint: request.checkpoint,
        }),
        Body::Transfer(request) => Request::TransferLeader(TransferRequest {
            from: ballot_from(request.from?),
            to: request.to,
            last: request.last.map(position_from),
        }),
        Body::AskEntries(wire::RaftAskEntries { ballot, from, to, bytes_max }) => {
            Request::Entries(EntriesRequest { ballot: ballot_from(ballot?), from, to, bytes_max })
        }
        _ => return None,
    })
}

/// How an answer travels.
pub(super) fn response_to_wire(response: Response) -> Body {
    match response {
        Response::Append(appended) => Body::Appended(wire::RaftAppended {
            outcome: Some(match appended {
                Appended::All => raft_appended::Outcome::All(true),
                Appended::UpTo(last) => {
                    raft_appended::Outcome::UpTo(wire::RaftUpTo { position: last.map(position) })
                }
                Appended::Conflict => raft_appended::Outcome::Conflict(true),
                Appended::HigherBallot(higher) => raft_appended::Outcome::Higher(ballot(higher)),
            }),
        }),
        Response::Vote(response) => Body::Voted(wire::RaftVoteResponse {
            ballot: Some(ballot(response.ballot)),
            granted: response.granted,
            last: response.last.map(position),
        }),
        Response::Snapshot(of) => Body::Installed(ballot(of)),
        Response::Entries(rows) => Body::Entries(wire::RaftEntries { rows }),
        Response::TransferLeader(transferred) => Body::Transferred(wire::RaftTransferred {
            outcome: Some(match transferred {
                Transferred::Accepted => raft_transferred::Outcome::Accepted(true),
                Transferred::BallotChanged { expected, actual } => {
                    raft_transferred::Outcome::BallotChanged(wire::RaftBallotChanged {
                        expected: Some(ballot(expected)),
                        actual: Some(ballot(actual)),
                    })
                }
                Transferred::Behind { expected, actual } => {
                    raft_transferred::Outcome::Behind(wire::RaftBehind {
                        expected: expected.map(position),
                        actual: actual.map(position),
                    })
                }
            }),
        }),
    }
}

/// The answer in a frame; nothing if the frame holds none.
pub(super) fn response_from_wire(body: Body) -> Option<Response> {
    Some(match body {
        Body::Appended(appended) => Response::Append(match appended.outcome? {
            raft_appended::Outcome::All(_) => Appended::All,
            raft_appended::Outcome::UpTo(last) => Appended::UpTo(last.position.map(position_from)),
            raft_appended::Outcome::Conflict(_) => Appended::Conflict,
            raft_appended::Outcome::Higher(higher) => Appended::HigherBallot(ballot_from(higher)),
        }),
        Body::Voted(response) => Response::Vote(VoteResponse {
            ballot: ballot_from(response.ballot?),
            granted: response.granted,
            last: response.last.map(position_from),
        }),
        Body::Installed(of) => Response::Snapshot(ballot_from(of)),
        Body::Entries(entries) => Response::Entries(entries.rows),
        Body::Transferred(transferred) => Response::TransferLeader(match transferred.outcome? {
            raft_transferred::Outcome::Accepted(_) => Transferred::Accepted,
            raft_transferred::Outcome::BallotChanged(changed) => Transferred::BallotChanged {
                expected: ballot_from(changed.expected?),
                actual: ballot_from(changed.actual?),
            },
            raft_transferred::Outcome::Behind(behind) => Transferred::Behind {
                expected: behind.expected.map(position_from),
                actual: behind.actual.map(position_from),
            },
        }),
        _ => return None,
    })
}

fn ballot(of: Ballot) -> wire::RaftBallot {
    wire::RaftBallot { term: of.term, node: of.node, granted: of.granted }
}

fn ballot_from(of: wire::RaftBallot) -> Ballot {
    Ballot { term: of.term, node: of.node, granted: of.granted }
}

fn position(at: Position) -> wire::RaftPosition {
    wire::RaftPosition { index: at.index, term: at.term, leader: at.leader }
}

fn position_from(at: wire::RaftPosition) -> Position {
    Position { index: at.index, term: at.term, leader: at.leader }
}

fn vote(request: &VoteRequest) -> wire::RaftVoteRequest {
    wire::RaftVoteRequest {
        ballot: Some(ballot(request.ballot)),
        last: request.last.map(position),
        transfer: request.transfer,
    }
}

fn vote_from(request: wire::RaftVoteRequest) -> Option<VoteRequest> {
    Some(VoteRequest {
        ballot: ballot_from(request.ballot?),
        last: request.last.map(position_from),
        transfer: request.transfer,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const AT: Position = Position { index: 7, term: 3, leader: 2 };
    const BALLOT: Ballot = Ballot { term: 3, node: 2, granted: true };

    #[test]
    fn requests_arrive_as_they_were_sent() {
        let vote = VoteRequest { ballot: BALLOT, last: Some(AT), transfer: true };
        let requests = [
            Request::Append(Append {
                ballot: BALLOT,
                previous: Some(AT),
                rows: vec![Bytes::from_static(b"row")],
                committed: None,
            }),
            Request::Vote(vote.clone()),
            Request::PreVote(vote),
            Request::Snapshot(SnapshotRequest { ballot: BALLOT, checkpoint: Bytes::from_static(b"state") }),
            Request::TransferLeader(TransferRequest { from: BALLOT, to: 3, last: Some(AT) }),
            Request::Entries(EntriesRequest { ballot: BALLOT, from: 3, to: 7, bytes_max: 100 }),
        ];
        for request in requests {
            assert_eq!(request_from_wire(request_to_wire(request.clone())), Some(request));
        }
    }

    #[test]
    fn answers_arrive_as_they_were_sent() {
        let responses = [
            Response::Append(Appended::All),
            Response::Append(Appended::UpTo(None)),
            Response::Append(Appended::UpTo(Some(AT))),
            Response::Append(Appended::Conflict),
            Response::Append(Appended::HigherBallot(BALLOT)),
            Response::Vote(VoteResponse { ballot: BALLOT, granted: false, last: None }),
            Response::Snapshot(BALLOT),
            Response::Entries(Vec::new()),
            Response::Entries(vec![Bytes::from_static(b"row"), Bytes::from_static(b"next")]),
            Response::TransferLeader(Transferred::Accepted),
            Response::TransferLeader(Transferred::BallotChanged { expected: BALLOT, actual: BALLOT }),
            Response::TransferLeader(Transferred::Behind { expected: Some(AT), actual: None }),
        ];
        for response in responses {
            assert_eq!(response_from_wire(response_to_wire(response.clone())), Some(response));
        }
    }

    #[test]
    fn a_question_is_no_answer() {
        assert_eq!(response_from_wire(Body::Vote(wire::RaftVoteRequest::default())), None);
        assert_eq!(request_from_wire(Body::Installed(wire::RaftBallot::default())), None);
    }
}
