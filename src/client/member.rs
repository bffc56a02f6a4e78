//! Being a member of a group: joining, and joining again.
//!
//! What a member does with what it is sent is the business of its [`Role`]; consumer groups and share groups have one
//! each. The [`run`] loop is the same for both: it joins, lets the role serve the stream until that breaks, tells the
//! role what it has lost, and joins again under the same name, so that a session that the broker still believes in is
//! replaced.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use super::routing::Router;
use super::{Error, ErrorCode};
use crate::proto::v1;
use crate::proto::v1::subscribe_request::Action;
use crate::proto::v1::subscribe_response::Event;

/// What a member is sent.
pub(super) type Responses = Streaming<v1::SubscribeResponse>;

/// Sends requests on a member's stream.
///
/// Unbounded, since what goes through it is bounded otherwise: grants by the credit, heartbeats and releases by what
/// the broker sends, commits and acknowledgements by the number that may be under way.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    sender: mpsc::UnboundedSender<v1::SubscribeRequest>,
}

impl Requests {
    /// Sends a request. A stream that is over says so when it is read.
    pub(super) fn send(&self, action: Action) {
        let _ = self.sender.send(v1::SubscribeRequest { action: Some(action) });
    }
}

/// What a member does with its membership.
pub(super) trait Role: Send + Sync + 'static {
    /// Asks to join, under the name that the member had before if it had one.
    fn request(&self) -> v1::JoinGroup;

    /// The member is in the group.
    fn joined(&self, joined: v1::GroupJoined, requests: Requests);

    /// Serves the stream until it breaks; says why it did.
    fn serve(&self, responses: &mut Responses) -> impl Future<Output = Error> + Send;

    /// The membership is over, and with it everything that the member had.
    fn lost(&self, error: &Error);

    /// The member will not join again.
    fn failed(&self, error: Error);

    /// Whether the program asked to leave, so that the end of the stream is what was wanted.
    fn leaving(&self) -> bool;
}

/// Keeps a member in its group until it leaves or until joining fails for good. `first` is told what became of the
/// first attempt to join, which is repeated until `request_timeout` if that may help.
pub(super) async fn run<R: Role>(
    role: Arc<R>,
    router: Arc<Router>,
    first: oneshot::Sender<Result<(), Error>>,
) {
    let mut first = Some(first);
    let mut failures = 0;
    let give_up = Instant::now() + router.config().request_timeout;
    loop {
        let error = match join(&router, failures, role.request()).await {
            Ok((joined, requests, mut responses)) => {
                role.joined(joined, requests);
                if let Some(first) = first.take() {
                    // Nobody waits if the member was dropped, which ends this task too.
                    let _ = first.send(Ok(()));
                }
                let since = Instant::now();
                let error = role.serve(&mut responses).await;
                role.lost(&error);
                if role.leaving() {
                    return;
                }
                // Two programs under one name replace each other; what holds for a moment only is no success.
                if since.elapsed() > router.config().backoff.max {
                    failures = 0;
                }
                error
            }
            Err(error) => error,
        };
        failures += 1;
        let delay = router.config().backoff.delay_after(failures, &error);
        let in_time = first.is_none() || Instant::now() + delay < give_up;
        if !(may_join_again(&error) && in_time) {
            match first {
                Some(first) => drop(first.send(Err(error))),
                None => role.failed(error),
            }
            return;
        }
        // Ever more rarely: while a coordinator is away, attempts are many.
        if first.is_none() && failures.is_power_of_two() {
            tracing::warn!(%error, attempt = failures, "membership lost; joining again");
        }
        tokio::time::sleep(delay).await;
    }
}

/// Whether joining anew can help.
fn may_join_again(error: &Error) -> bool {
    error.is_retriable() || error.code() == Some(ErrorCode::MemberFenced)
}

async fn join(
    router: &Router,
    failures: u32,
    request: v1::JoinGroup,
) -> Result<(v1::GroupJoined, Requests, Responses), Error> {
    // A broker that could not help is not asked again before the others were.
    let candidates = router.candidates();
    let address = &candidates[failures as usize % candidates.len()];
    let limit = router.config().request_timeout;
    let joining = async {
        let connection = router.connections().open(address).await?;
        let (sender, outgoing) = mpsc::unbounded_channel();
        let requests = Requests { sender };
        requests.send(Action::Join(request));
        let outgoing = UnboundedReceiverStream::new(outgoing);
        let mut responses = connection.consume().subscribe(outgoing).await?.into_inner();
        loop {
            let response = responses.message().await?.ok_or_else(ended)?;
            match response.event {
                Some(Event::Joined(joined)) => return Ok((joined, requests, responses)),
                Some(Event::Keepalive(_)) => requests.send(Action::Heartbeat(v1::Heartbeat {})),
                // Something that this version does not know.
                None => {}
                Some(_) => {
                    let what = "a member's stream must begin with joined".into();
                    return Err(Error::InvalidResponse { what });
                }
            }
        }
    };
    let silence = || Error::Timeout { from: Some(address.clone()), after: limit };
    timeout_at(Instant::now() + limit, joining).await.unwrap_or_else(|_| Err(silence()))
}

/// What a member reads from a stream that ended without a status.
pub(super) fn ended() -> Error {
    Error::Connection { reason: "the broker ended the membership".into() }
}

/// A time in a request. None that a configuration takes is too long for the protocol.
pub(super) fn duration(time: Duration) -> Option<prost_types::Duration> {
    time.try_into().ok()
}
