//! The future of one proposed command.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use openraft::raft::responder::Responder;
use tokio::sync::oneshot;

use super::types::{LogId, Types};
use super::{Error, NodeId};

/// A command that was applied.
#[derive(Debug)]
pub struct Proposed<R> {
    /// What the machine answered.
    pub reply: R,
    /// The log index of the command.
    pub index: u64,
    /// When it passed each stage.
    pub timing: Timing,
}

/// When a command passed each stage, on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// It was durable here, as durable as the store's settings promise. Equals `committed` when a majority
    /// without this node was faster.
    pub appended: Instant,
    /// It was known to be durable on a majority. Never before `appended`.
    pub committed: Instant,
    /// The machine had applied it.
    pub applied: Instant,
}

/// Resolves when the command is applied here. Dropping it does not withdraw the command.
#[must_use = "the outcome of a command is known only from its proposal"]
pub struct Proposal<R> {
    state: State,
    reply: PhantomData<fn() -> R>,
}

enum State {
    Refused(Option<Error>),
    /// By which node.
    Enqueued(NodeId, oneshot::Receiver<Answer<ClientWriteResult<Types>>>),
}

impl<R> Proposal<R> {
    pub(super) fn refused(error: Error) -> Self {
        Proposal { state: State::Refused(Some(error)), reply: PhantomData }
    }

    pub(super) fn enqueued(
        node: NodeId,
        answer: oneshot::Receiver<Answer<ClientWriteResult<Types>>>,
    ) -> Self {
        Proposal { state: State::Enqueued(node, answer), reply: PhantomData }
    }
}

impl<R: Send + 'static> Future for Proposal<R> {
    type Output = Result<Proposed<R>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            State::Refused(error) => Poll::Ready(Err(error.take().unwrap_or(Error::Stopped))),
            State::Enqueued(node, answer) => match Pin::new(answer).poll(cx) {
                Poll::Pending => Poll::Pending,
                // The waiter was dropped unanswered: the replica stopped with the command somewhere on its
                // way.
                Poll::Ready(Err(_)) => Poll::Ready(Err(Error::OutcomeUnknown)),
                Poll::Ready(Ok(answer)) => Poll::Ready(conclude(*node, answer)),
            },
        }
    }
}

/// Who leads, for somebody who was told that `node` does not. A leader that was removed from its group goes on naming
/// itself.
pub(super) fn other(node: NodeId, leader: Option<NodeId>) -> Option<NodeId> {
    leader.filter(|leader| *leader != node)
}

fn conclude<R: 'static>(
    node: NodeId,
    answer: Answer<ClientWriteResult<Types>>,
) -> Result<Proposed<R>, Error> {
    let response = match answer.result {
        Ok(response) => response,
        Err(ClientWriteError::ForwardToLeader(forward)) => {
            return Err(Error::NotLeader { leader: other(node, forward.leader_id) });
        }
        Err(ClientWriteError::LogEntryDiscarded(_)) => return Err(Error::OutcomeUnknown),
        Err(ClientWriteError::ChangeMembershipError(error)) => {
            return Err(Error::Membership { reason: error.to_string() });
        }
        Err(ClientWriteError::PreconditionFailed(error)) => {
            return Err(Error::Membership { reason: error.to_string() });
        }
    };
    let (reply, appended) = response.data.into_parts();
    let Some(reply) = reply else { return Err(Error::OutcomeUnknown) };
    let reply =
        *reply.downcast::<R>().expect("a group's replies come from the machine the group was opened with");
    let committed = answer.committed.unwrap_or(answer.applied);
    let appended = appended.unwrap_or(committed).min(committed);
    let timing = Timing { appended, committed, applied: answer.applied };
    Ok(Proposed { reply, index: response.log_id.index, timing })
}

/// What openraft calls when a proposal is committed and when it is done with.
pub struct Waiter<T> {
    sender: oneshot::Sender<Answer<T>>,
    committed: Option<Instant>,
}

/// The result of a proposal as openraft gives it, with the instants at which it came.
pub struct Answer<T> {
    result: T,
    committed: Option<Instant>,
    applied: Instant,
}

impl<T> Waiter<T> {
    pub(super) fn new() -> (Self, oneshot::Receiver<Answer<T>>) {
        let (sender, receiver) = oneshot::channel();
        (Waiter { sender, committed: None }, receiver)
    }
}

impl<T: Send + 'static> Responder<Types, T> for Waiter<T> {
    fn on_commit(&mut self, _: LogId) {
        self.committed = Some(Instant::now());
    }

    fn on_complete(self, result: T) {
        // A proposer that no longer listens is no concern of the group.
        let _ = self.sender.send(Answer { result, committed: self.committed, applied: Instant::now() });
    }
}
