//! Watching a response until its status is known.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::Response;
use hyper::http::{HeaderMap, HeaderValue};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::{Code, Status};

use super::handover::Handover;
use super::method::Method;
use super::unread::Unread;
use crate::api::load::Open;
use crate::api::status::Failure;
use crate::broker::ErrorCode;
use crate::telemetry::Metrics;
use crate::telemetry::RequestTrace;
use crate::telemetry::{NetworkError, Outcome, Protocol};

/// How prost begins to say that bytes are not the message that they should be.
const NOT_DECODED: &str = "failed to decode Protobuf message";

/// A call whose status is not known yet. If it is dropped before, the client has gone and the call is cancelled.
pub(super) struct Call {
    method: Method,
    started: Instant,
    span: RequestTrace,
    open: Option<(Open, Option<Open>)>,
    metrics: Metrics,
    end_early: Option<CancellationToken>,
}

impl Call {
    pub(super) fn new(
        method: Method,
        started: Instant,
        span: RequestTrace,
        open: (Open, Option<Open>),
        metrics: Metrics,
        end_early: Option<CancellationToken>,
    ) -> Self {
        Call { method, started, span, open: Some(open), metrics, end_early }
    }

    /// Goes on with the response's body, unless its head already has the status.
    pub(super) fn observe(mut self, mut response: Response<Body>, unread: &Unread) -> Response<Observed> {
        if let Some(code) = self.status(response.headers_mut()) {
            self.end(code);
        }
        let end_early = self.end_early.take().map(|end| Box::pin(end.cancelled_owned()));
        let handover = response.extensions_mut().remove::<Handover>();
        if let Some(handover) = &handover {
            handover.is_of(unread);
        }
        response.map(|body| Observed { body, call: self, end_early, handover })
    }

    /// The status in `headers`, if it is there. A request that is no message is the client's fault, which tonic does not
    /// say.
    fn status(&self, headers: &mut HeaderMap) -> Option<Code> {
        let code = code_in(headers)?;
        let Some(status) = undecodable(code, headers) else { return Some(code) };
        self.metrics.network.failed(NetworkError::Protocol);
        status.add_header(headers).ok()?;
        Some(status.code())
    }

    fn end(&mut self, code: Code) {
        if self.open.take().is_none() {
            return;
        }
        // Clients leave streams by cancelling them; that is no failure.
        let left = code == Code::Cancelled && !self.method.is_unary();
        let outcome = if left { Outcome::Ok } else { Outcome::of(code) };
        self.metrics.network.request_ended(Protocol::Grpc, outcome);
        if self.method.is_unary() {
            let took = self.started.elapsed();
            self.metrics.network.call_ended(self.method.name(), code, took, self.span.ids());
            self.span.finish(code);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The body of a response. It ends the call when the trailers pass by.
pub(in crate::api) struct Observed {
    body: Body,
    call: Call,
    /// Set for streams that nothing in the service itself would end.
    end_early: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Set where it matters when the transport has an answer.
    handover: Option<Handover>,
}

impl Observed {
    fn poll_end_early(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.end_early {
            Some(end_early) => end_early.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl http_body::Body for Observed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = &mut *self;
        match Pin::new(&mut me.body).poll_frame(cx) {
            Poll::Pending if me.poll_end_early(cx).is_ready() => {
                me.end_early = None;
                me.body = Body::empty();
                me.call.end(Code::Unavailable);
                Poll::Ready(Some(trailers(Failure::stopping().into()).map(Frame::trailers)))
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(code) = frame.trailers_mut().and_then(|trailers| me.call.status(trailers)) {
                    me.call.end(code);
                }
                let frame = match &me.handover {
                    Some(handover) => frame.map_data(|data| handover.framed(data)),
                    None => frame,
                };
                Poll::Ready(Some(Ok(frame)))
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn trailers(status: Status) -> Result<HeaderMap, Status> {
    let mut trailers = HeaderMap::with_capacity(3);
    status.add_header(&mut trailers)?;
    Ok(trailers)
}

/// What to say instead if tonic could not decode the request.
fn undecodable(code: Code, headers: &HeaderMap) -> Option<Status> {
    if code != Code::Internal {
        return None;
    }
    let status = Status::from_header_map(headers)?;
    // The broker's own failures have details.
    if !status.details().is_empty() || !status.message().starts_with(NOT_DECODED) {
        return None;
    }
    let message = format!("the request is not a well-formed message: {}", status.message());
    Some(Failure::new(ErrorCode::InvalidArgument, message).into())
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(HeaderValue::as_bytes).map(Code::from_bytes)
}
