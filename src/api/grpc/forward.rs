//! Calls that another broker must answer: of the control group's leader, and of the coordinator of a group.
//!
//! A plain client may call any broker. What this one cannot do goes on to the one that can, with the caller's trace and
//! deadline, and its answer comes back as it is. A call is passed on once: the second broker answers it or says that it
//! does not lead either, so calls cannot go round in circles.

use std::time::Duration;

use futures_util::future::join_all;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::{Context, request_trace};
use crate::api::rpc::Deadline;
use crate::api::status::Failure;
use crate::broker::ErrorCode;
use crate::cluster::peers::never_sent;
use crate::proto::v1;
use crate::proto::v1::consume_service_client::ConsumeServiceClient;

/// Says that a broker passed the call on, and which.
const FORWARDED: &str = "streambus-forwarded";
/// The client goes to leaders itself and wants to hear who leads.
const ROUTING: &str = "streambus-routing";
const DIRECT: &str = "leader";
/// How long a call without a deadline may take at the other broker.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Requests of a member that may wait for the other broker.
const REQUESTS_AHEAD: usize = 16;

/// Whether another broker passed the call on.
pub(super) fn is_forwarded(metadata: &MetadataMap) -> bool {
    metadata.contains_key(FORWARDED)
}

/// Whether batches of the call may be passed on to their leaders.
pub(super) fn may_forward(metadata: &MetadataMap) -> bool {
    !is_forwarded(metadata) && metadata.get(ROUTING).is_none_or(|value| value != DIRECT)
}

/// The same call, with the caller's trace and deadline.
pub(super) fn copy<Q: Clone>(request: &Request<Q>) -> Request<Q> {
    let mut copy = Request::new(request.get_ref().clone());
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

/// The method of a call as paths name it, and whether it may change something.
#[derive(Clone, Copy)]
pub(super) struct Method {
    pub(super) path: &'static str,
    pub(super) writes: bool,
}

impl Context {
    /// The broker that leads the control group, if that is another one and the call may go there.
    pub(super) fn controller_elsewhere<T>(&self, request: &Request<T>) -> Option<u64> {
        self.elsewhere(request, |context| context.broker().controller_elsewhere())
    }

    /// The broker that coordinates `group`, if that is another one and the call may go there.
    pub(super) fn coordinator_elsewhere<T>(&self, request: &Request<T>, group: &str) -> Option<u64> {
        self.elsewhere(request, |context| context.broker().coordinator_elsewhere(group))
    }

    fn elsewhere<T>(&self, request: &Request<T>, find: impl FnOnce(&Self) -> Option<u64>) -> Option<u64> {
        if is_forwarded(request.metadata()) { None } else { find(self) }
    }

    /// Passes a call on to the broker `to` and gives its answer.
    pub(super) async fn forward<Q, A>(
        &self,
        to: u64,
        method: Method,
        request: Request<Q>,
    ) -> Result<Response<A>, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let channel = self.broker().channel(to).ok_or_else(|| unreachable(to, "its address is not known"))?;
        let trace = request_trace(request.extensions());
        let deadline = request.extensions().get::<Deadline>().copied();
        let mut forwarded = Request::new(request.into_inner());
        forwarded.set_timeout(deadline.map_or(TIMEOUT, Deadline::wait_max));
        self.mark(forwarded.metadata_mut());
        let mut headers = std::mem::take(forwarded.metadata_mut()).into_headers();
        trace.inject(&mut headers);
        *forwarded.metadata_mut() = MetadataMap::from_headers(headers);
        let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(usize::MAX);
        client.ready().await.map_err(|error| unreachable(to, &error.to_string()))?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = client.unary(forwarded, PathAndQuery::from_static(method.path), codec).await;
        answer.map_err(|status| lost(status, to, method.writes))
    }

    /// Passes a call on to each of `peers` at the same time, and gives their answers.
    pub(super) async fn forward_to_all<Q, A>(
        &self,
        peers: &[u64],
        method: Method,
        request: &Request<Q>,
    ) -> Vec<(u64, Result<A, Status>)>
    where
        Q: Message + Clone + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let calls = peers.iter().map(|peer| {
            let copy = copy(request);
            async move { (*peer, self.forward(*peer, method, copy).await.map(Response::into_inner)) }
        });
        join_all(calls).await
    }

    fn mark(&self, metadata: &mut MetadataMap) {
        metadata.insert(FORWARDED, MetadataValue::from(self.broker().id().unwrap_or(0)));
    }

    /// Joins a group at the broker that coordinates it, and carries the member's stream there and back.
    pub(super) async fn join_elsewhere(&self, to: u64, first: v1::SubscribeRequest) -> Result<Relay, Status> {
        // A connection of its own: a member that does not read must not hold up others.
        let channel = self.broker().connect(to).await.map_err(|reason| unreachable(to, &reason))?;
        let (requests, queue) = tokio::sync::mpsc::channel(REQUESTS_AHEAD);
        let _ = requests.try_send(first);
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(queue));
        self.mark(request.metadata_mut());
        let mut client = ConsumeServiceClient::<Channel>::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        let answer = client.subscribe(request).await.map_err(|status| lost(status, to, false))?;
        Ok(Relay { to, requests: Some(requests), responses: answer.into_inner() })
    }
}

/// A member's stream that goes on to another broker.
pub(super) struct Relay {
    to: u64,
    /// Gone when the client sends nothing more.
    requests: Option<tokio::sync::mpsc::Sender<v1::SubscribeRequest>>,
    responses: Streaming<v1::SubscribeResponse>,
}

impl Relay {
    /// Whether there is room for a request.
    pub(super) fn takes_requests(&self) -> bool {
        self.requests.as_ref().is_some_and(|requests| requests.capacity() > 0)
    }

    /// Passes a request on. There must be room.
    pub(super) fn pass(&self, request: v1::SubscribeRequest) {
        if let Some(requests) = &self.requests {
            // A stream that has ended says so with its response.
            let _ = requests.try_send(request);
        }
    }

    /// The client sends nothing more.
    pub(super) fn half_close(&mut self) {
        self.requests = None;
    }

    /// What comes next; `None` at the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<v1::SubscribeResponse>, Status> {
        let to = self.to;
        self.responses.message().await.map_err(|status| lost(status, to, false))
    }
}

fn unreachable(to: u64, reason: &str) -> Status {
    let text =
        format!("broker {to}, which must answer, is not reached ({reason}); nothing was changed: retry");
    Failure::new(ErrorCode::NotReady, text).into()
}

/// The other broker's refusal as it is; a connection that broke, or did not come about, as what it means.
fn lost(status: Status, to: u64, writes: bool) -> Status {
    use std::error::Error as _;
    if status.source().is_none() {
        return status;
    }
    if writes && !never_sent(&status) {
        let text = format!(
            "the connection to broker {to}, which had the call, broke ({}); it may have been carried out",
            status.message()
        );
        return Failure::new(ErrorCode::OutcomeUnknown, text).into();
    }
    unreachable(to, status.message())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;
    use tonic_types::StatusExt as _;

    use super::*;

    /// What a change that goes on to `address` fails with, as the client is told.
    async fn change_at(address: std::net::SocketAddr) -> (tonic::Code, String) {
        let channel = Channel::from_shared(format!("http://{address}")).expect("an address").connect_lazy();
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.expect("it connects with the call");
        let path = PathAndQuery::from_static("/streambus.v1.TopicService/DeleteTopic");
        let codec = ProstCodec::<v1::DeleteTopicRequest, v1::DeleteTopicResponse>::default();
        let failed = client.unary(Request::new(v1::DeleteTopicRequest::default()), path, codec).await;
        let told = lost(failed.expect_err("nobody answers"), 2, true);
        let reason = told.get_details_error_info().expect("a reason").reason;
        (told.code(), reason)
    }

    #[tokio::test]
    async fn a_call_that_was_never_sent_is_told_from_one_that_may_have_been_carried_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let breaks = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            // The answer to HTTP/2 is the end of the connection once something has come.
            stream.read_buf(&mut Vec::new()).await.expect("something comes");
        });
        assert_eq!(change_at(address).await, (tonic::Code::Unknown, "OUTCOME_UNKNOWN".to_owned()));
        breaks.await.expect("no panic");
        assert_eq!(change_at(address).await, (tonic::Code::Unavailable, "NOT_READY".to_owned()));
    }
}
