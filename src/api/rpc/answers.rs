//! Room for the answers to unary calls, from when they are made until their clients have them.
//!
//! A fetch takes room before it reads. How long other answers are is known only when they are made: they find room then, or
//! wait for it. What waits is bounded as well, by as many bytes; for an answer that may not even wait the client gets a
//! short one that says so.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::Response;
use tonic::Status;
use tonic::body::Body;

use super::handover::Handover;
use crate::api::status::Failure;
use crate::broker::{Room, Share};

/// Answers up to this length need no room.
const SMALL_BYTES: usize = 4 * 1024;

/// What answers of all connections may hold. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::api) struct Answers {
    room: Room,
    waiting: Room,
}

/// Whether an answer may be given.
pub(super) enum Admission {
    Given(Response<Body>),
    Waits(Waiting),
}

/// An answer that waits for room.
pub(super) struct Waiting {
    response: Response<Body>,
    share: Pin<Box<dyn Future<Output = Share> + Send>>,
    _waiting: Share,
}

impl Answers {
    /// `room` is shared with fetches, and has so many bytes.
    pub(in crate::api) fn new(room: Room, bytes: u64) -> Self {
        Answers { room, waiting: Room::new(bytes) }
    }

    /// Looks how long the answer of a unary call is. `writes` says whether the call may have changed something.
    pub(super) fn admit(&self, response: Response<Body>, writes: bool, cx: &mut Context<'_>) -> Admission {
        let has_share = response.extensions().get::<Handover>().is_some_and(Handover::has_share);
        if has_share || response.body().is_end_stream() {
            return Admission::Given(response);
        }
        let (head, mut body) = response.into_parts();
        // The whole message, since it is there already. The encoder keeps nothing.
        let Poll::Ready(first) = Pin::new(&mut body).poll_frame(cx) else {
            return Admission::Given(Response::from_parts(head, body));
        };
        let data = first.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        let bytes = data.map_or(0, Bytes::len);
        let response = Response::from_parts(head, Body::new(Made { first, rest: body }));
        if bytes <= SMALL_BYTES {
            return Admission::Given(response);
        }
        if let Some(share) = self.room.try_take(bytes as u64) {
            return Admission::Given(with_share(response, share));
        }
        match self.waiting.try_take(bytes as u64) {
            None => Admission::Given(Status::from(Failure::no_room_for_answer(bytes, writes)).into_http()),
            Some(waiting) => {
                let share = Box::pin(self.room.clone().take(bytes as u64));
                Admission::Waits(Waiting { response, share, _waiting: waiting })
            }
        }
    }
}

impl Waiting {
    /// Ready when there is room. Not to be polled after that.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        self.share.as_mut().poll(cx).map(|share| with_share(std::mem::take(&mut self.response), share))
    }
}

/// The share goes with the bytes of the answer.
fn with_share(mut response: Response<Body>, share: Share) -> Response<Body> {
    response.extensions_mut().get_or_insert_default::<Handover>().holds(share);
    response
}

/// An answer whose message is encoded.
struct Made {
    first: Option<Result<Frame<Bytes>, Status>>,
    rest: Body,
}

impl http_body::Body for Made {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.first.take() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
