//! What every gRPC call gets: a server span, its metrics, a limit on its messages, room for its answer, an end at its
//! deadline and when the broker drains.

mod answers;
mod deadline;
mod handover;
mod limit;
mod method;
mod observed;
mod unread;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::http::{HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service as _;

pub(super) use self::answers::Answers;
use self::answers::{Admission, Waiting};
pub(super) use self::deadline::Deadline;
pub(super) use self::handover::Handover;
pub(super) use self::limit::{Limited, Limits};
pub(super) use self::method::{Kind, Method};
use self::observed::{Call, Observed};
pub(super) use self::unread::Unread;
use super::load::Load;
use super::status;
use crate::telemetry::Metrics;
use crate::telemetry::{NetworkError, RequestTrace, Tracer};

const TRACEPARENT: &str = "traceparent";

/// Where a call came from. Only calls that may be audited carry it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// What ends the streams that watch for no drain themselves.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends {
    /// Of health and reflection.
    pub(super) watchers: CancellationToken,
    /// Of other brokers. The calls of clients need them: what this broker proposed as a leader comes back from the next one.
    pub(super) peers: CancellationToken,
}

/// Answers the calls of all connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct Calls {
    routes: Routes,
    metrics: Metrics,
    tracer: Tracer,
    load: Load,
    limits: Limits,
    /// Ends streams that watch for no drain themselves.
    ends: Ends,
    /// Where HTTP is, for those who ask for a page here.
    http_port: u16,
    /// The other end of the connection, once there is one.
    peer: Option<SocketAddr>,
    /// What its client has not read.
    unread: Unread,
}

impl Calls {
    pub(super) fn new(
        routes: Routes,
        metrics: Metrics,
        tracer: Tracer,
        load: Load,
        limits: Limits,
        ends: Ends,
        http_port: u16,
    ) -> Self {
        let routes = routes.prepare();
        let (peer, unread) = (None, Unread::default());
        Calls { routes, metrics, tracer, load, limits, ends, http_port, peer, unread }
    }

    /// For the calls of a connection.
    pub(super) fn from(&self, peer: SocketAddr, unread: Unread) -> Self {
        Calls { peer: Some(peer), unread, ..self.clone() }
    }

    /// What a request gets that is no call, since calls are posted.
    fn where_http_is(&self) -> Response<Body> {
        self.metrics.network.failed(NetworkError::HttpOnGrpcPort);
        let mut response = Response::new(Body::new(super::where_http_is(self.http_port)));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        // Not for the client, but for those who count how calls end.
        headers.insert(Status::GRPC_STATUS, HeaderValue::from(Code::InvalidArgument as i32));
        response
    }

    /// Begins the server span of a call.
    ///
    /// A stream has none: it would last for hours and say nothing; its batches have their own. A produce without a
    /// caller's context has none either, because the broker may find one in the batch's records.
    fn span(&self, method: Method, headers: &HeaderMap) -> RequestTrace {
        match method.kind() {
            Kind::Stream | Kind::Infrastructure => RequestTrace::NONE,
            Kind::Produce if !headers.contains_key(TRACEPARENT) => RequestTrace::NONE,
            Kind::Produce | Kind::Unary => self.tracer.server(method.name(), headers),
        }
    }
}

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Observed>;
    type Error = std::convert::Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let method = Method::of_path(request.uri().path());
        let infrastructure = method.kind() == Kind::Infrastructure;
        let open = (self.load.request(), (!infrastructure).then(|| self.load.client_call()));
        let started = Instant::now();
        let foreign = (request.method() != hyper::Method::POST).then(|| self.where_http_is());
        let span = self.span(method, request.headers());
        let mut request = request.map(|body| {
            Body::new(match method.is_of_peers() {
                true => Limited::of_peers(body, self.metrics.clone()),
                false => Limited::new(body, &self.limits, self.metrics.clone()),
            })
        });
        request.extensions_mut().insert(span.clone());
        if let (Kind::Unary, Some(peer)) = (method.kind(), self.peer) {
            request.extensions_mut().insert(Peer(peer));
        }
        // A stream lasts as long as its client wants; the client ends it at its deadline.
        let deadline = Deadline::of(request.headers(), started).filter(|_| method.is_unary());
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(deadline);
        }
        let end = if method.is_of_peers() { &self.ends.peers } else { &self.ends.watchers };
        let end = infrastructure.then(|| end.clone());
        Answer {
            foreign,
            answer: self.routes.clone().call(request),
            method,
            time_is_up: deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.at().into()))),
            call: Some(Call::new(method, started, span, open, self.metrics.clone(), end)),
            unread: self.unread.clone(),
            answers: self.limits.answers.clone(),
            waiting: None,
        }
    }
}

/// A call on its way to the head of its response.
pub(super) struct Answer {
    /// The answer to a request that is no call.
    foreign: Option<Response<Body>>,
    answer: <Routes as tower::Service<Request<Body>>>::Future,
    method: Method,
    /// Set for unary calls with a deadline.
    time_is_up: Option<Pin<Box<Sleep>>>,
    call: Option<Call>,
    unread: Unread,
    answers: Answers,
    /// Set while there is no room for the answer.
    waiting: Option<Waiting>,
}

impl Answer {
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        match Pin::new(&mut self.answer).poll(cx) {
            Poll::Ready(Ok(response)) => Poll::Ready(response),
            Poll::Ready(Err(never)) => match never {},
            Poll::Pending => self.poll_deadline(cx),
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        let Some(time_is_up) = &mut self.time_is_up else { return Poll::Pending };
        ready!(time_is_up.as_mut().poll(cx));
        Poll::Ready(status::deadline_exceeded(self.method.writes()).into_http())
    }

    /// The answer, once there is room for it. Those to produced batches are small, and those of streams have their own bounds.
    fn poll_with_room(&mut self, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        if self.waiting.is_none() {
            let response = ready!(self.poll_answer(cx));
            if self.method.kind() != Kind::Unary {
                return Poll::Ready(response);
            }
            match self.answers.admit(response, self.method.writes(), cx) {
                Admission::Given(response) => return Poll::Ready(response),
                Admission::Waits(waiting) => self.waiting = Some(waiting),
            }
        }
        match self.waiting.as_mut().map(|waiting| waiting.poll(cx)) {
            Some(Poll::Ready(response)) => Poll::Ready(response),
            _ => self.poll_deadline(cx),
        }
    }
}

impl Future for Answer {
    type Output = Result<Response<Observed>, std::convert::Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = match self.foreign.take() {
            Some(response) => response,
            None => ready!(self.poll_with_room(cx)),
        };
        let call = self.call.take().expect("a future is not polled after it is ready");
        Poll::Ready(Ok(call.observe(response, &self.unread)))
    }
}
