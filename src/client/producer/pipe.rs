//! One produce stream to one broker.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::stream::{BoxStream, Stream, StreamExt, unfold};
use tokio::sync::{mpsc, oneshot};
use tonic::Streaming;

use crate::client::Error;
use crate::client::routing::Router;
use crate::proto::v1;

/// What a pipe tells the driver.
#[derive(Debug)]
pub(super) enum News {
    Results(Vec<v1::ProduceResult>),
    /// The last news: the stream is over, after the transport took so many of its requests. The others were not sent.
    Closed {
        taken: u64,
        error: Error,
    },
}

/// The sending half of a produce stream.
#[derive(Debug)]
pub(super) struct Pipe {
    requests: mpsc::Sender<v1::ProduceStreamRequest>,
    /// Requests sent so far.
    position: u64,
    in_flight: usize,
    window: usize,
    /// Ends the news, and with them the call, when the pipe is dropped.
    _open: oneshot::Sender<()>,
}

impl Pipe {
    /// A pipe to `broker` and its news. The connection is made when the news are polled first; requests wait for it.
    pub(super) fn open(router: &Arc<Router>, broker: u64, window: usize) -> (Pipe, BoxStream<'static, News>) {
        let (requests, queued) = mpsc::channel(window);
        let taken = Arc::new(AtomicU64::new(0));
        let outgoing = Taken { queued, taken: Arc::clone(&taken) };
        let router = Arc::clone(router);
        let state = State::Connecting { router, broker, outgoing };
        let news = unfold(state, move |state| news(state, Arc::clone(&taken)));
        let (open, dropped) = oneshot::channel::<()>();
        let pipe = Pipe { requests, position: 0, in_flight: 0, window, _open: open };
        (pipe, news.take_until(dropped).boxed())
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight < self.window
    }

    /// Number that the next request gets.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Sends a request; there must be room. If the stream is over already, its `Closed` will tell that this request
    /// was not taken.
    pub(super) fn send(&mut self, request: v1::ProduceStreamRequest) {
        self.position += 1;
        self.in_flight += 1;
        // The channel has room for the whole window, so this fails only when the stream is over.
        let _ = self.requests.try_send(request);
    }

    pub(super) fn answered(&mut self, requests: usize) {
        self.in_flight = self.in_flight.saturating_sub(requests);
    }
}

/// The requests as the transport takes them, counted.
#[derive(Debug)]
struct Taken {
    queued: mpsc::Receiver<v1::ProduceStreamRequest>,
    taken: Arc<AtomicU64>,
}

impl Stream for Taken {
    type Item = v1::ProduceStreamRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.queued.poll_recv(cx);
        if let Poll::Ready(Some(_)) = next {
            self.taken.fetch_add(1, Ordering::Release);
        }
        next
    }
}

enum State {
    Connecting { router: Arc<Router>, broker: u64, outgoing: Taken },
    Streaming(Streaming<v1::ProduceStreamResponse>),
    Closed,
}

async fn news(state: State, taken: Arc<AtomicU64>) -> Option<(News, State)> {
    let mut responses = match state {
        State::Connecting { router, broker, outgoing } => match connect(&router, broker, outgoing).await {
            Ok(responses) => responses,
            Err(error) => return Some(closed(error, &taken)),
        },
        State::Streaming(responses) => responses,
        State::Closed => return None,
    };
    let error = match responses.message().await {
        Ok(Some(response)) => return Some((News::Results(response.results), State::Streaming(responses))),
        Ok(None) => Error::Connection { reason: "the broker ended the stream".into() },
        Err(status) => status.into(),
    };
    Some(closed(error, &taken))
}

async fn connect(
    router: &Router,
    broker: u64,
    outgoing: Taken,
) -> Result<Streaming<v1::ProduceStreamResponse>, Error> {
    let connection = router.connections().open(&router.address(broker)?).await?;
    let mut request = tonic::Request::new(outgoing);
    // This client goes to leaders, and wants to hear of another one rather than have its batches passed on.
    request.metadata_mut().insert("streambus-routing", tonic::metadata::MetadataValue::from_static("leader"));
    Ok(connection.produce().produce_stream(request).await?.into_inner())
}

fn closed(error: Error, taken: &AtomicU64) -> (News, State) {
    (News::Closed { taken: taken.load(Ordering::Acquire), error }, State::Closed)
}
