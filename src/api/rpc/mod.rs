//! What every gRPC call gets: a server span, its metrics, a limit on its messages, an end at its deadline and when the
//! broker drains.

mod deadline;
mod handover;
mod limit;
mod method;
mod observed;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use hyper::body::Incoming;
use hyper::http::HeaderMap;
use hyper::{Request, Response};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

pub(super) use self::deadline::Deadline;
pub(super) use self::handover::Handover;
pub(super) use self::limit::Limited;
pub(super) use self::method::{Kind, Method};
use self::observed::{Call, Observed};
use super::load::Load;
use super::status;
use crate::telemetry::Metrics;
use crate::telemetry::{RequestTrace, Tracer};

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
    message_bytes_max: u64,
    /// Ends streams that watch for no drain themselves.
    ends: Ends,
    /// The other end of the connection, once there is one.
    peer: Option<SocketAddr>,
}

impl Calls {
    pub(super) fn new(
        routes: Routes,
        metrics: Metrics,
        tracer: Tracer,
        load: Load,
        message_bytes_max: u64,
        ends: Ends,
    ) -> Self {
        let routes = routes.prepare();
        Calls { routes, metrics, tracer, load, message_bytes_max, ends, peer: None }
    }

    /// For the calls of a connection.
    pub(super) fn from(&self, peer: SocketAddr) -> Self {
        Calls { peer: Some(peer), ..self.clone() }
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
        let span = self.span(method, request.headers());
        // Brokers send each other several batches at once.
        let limit = if method.is_of_peers() { u64::MAX } else { self.message_bytes_max };
        let mut request = request.map(|body| Body::new(Limited::new(body, limit, self.metrics.clone())));
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
            answer: self.routes.clone().call(request),
            method,
            time_is_up: deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.at().into()))),
            call: Some(Call::new(method, started, span, open, self.metrics.clone(), end)),
        }
    }
}

/// A call on its way to the head of its response.
pub(super) struct Answer {
    answer: <Routes as tower::Service<Request<Body>>>::Future,
    method: Method,
    /// Set for unary calls with a deadline.
    time_is_up: Option<Pin<Box<Sleep>>>,
    call: Option<Call>,
}

impl Future for Answer {
    type Output = Result<Response<Observed>, std::convert::Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = match Pin::new(&mut self.answer).poll(cx) {
            Poll::Ready(Ok(response)) => response,
            Poll::Ready(Err(never)) => match never {},
            Poll::Pending => {
                let Some(time_is_up) = &mut self.time_is_up else { return Poll::Pending };
                ready!(time_is_up.as_mut().poll(cx));
                status::deadline_exceeded(self.method.writes()).into_http()
            }
        };
        let call = self.call.take().expect("a future is not polled after it is ready");
        Poll::Ready(Ok(call.observe(response)))
    }
}
