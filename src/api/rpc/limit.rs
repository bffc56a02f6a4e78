//! What messages on their way in may cost: too large ones are refused before they are read, and large ones need room.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::answers::Answers;
use crate::api::status::Failure;
use crate::broker::{Room, Share};
use crate::telemetry::Metrics;
use crate::telemetry::NetworkError;

/// Length of what precedes each gRPC message: a compression flag and a big-endian length.
const PREFIX: usize = 5;
/// Messages up to this length need no room. It is also what must come of a larger one before its time is up.
pub(super) const SMALL_BYTES: usize = 64 * 1024;
/// How long a message waits for room. Streams that wait are not read, and so may keep those of the same connection that
/// have room from getting on: this must end.
const ROOM_WAIT: Duration = Duration::from_secs(1);

/// What messages of clients, and answers to them, may cost. Clones share the room.
#[derive(Clone)]
pub(in crate::api) struct Limits {
    /// Length of the largest message.
    pub(in crate::api) message_bytes_max: u64,
    /// For all messages that have not come in full.
    pub(in crate::api) room: Room,
    /// How long a message may take to get on.
    pub(in crate::api) timeout: Duration,
    /// For what clients are answered.
    pub(in crate::api) answers: Answers,
}

/// A request body whose messages are at most so large, find room and get on. Otherwise the call ends with a precise
/// error.
pub(in crate::api) struct Limited<B = Incoming> {
    body: B,
    lengths: Lengths,
    /// The large message that has not come in full. Small ones cost nothing here.
    unfinished: Option<Box<Unfinished>>,
    /// None for the calls of other brokers, which must not wait for clients.
    unfinished_limits: Option<(Room, Duration)>,
    metrics: Metrics,
}

impl<B> Limited<B> {
    pub(super) fn new(body: B, limits: &Limits, metrics: Metrics) -> Self {
        Limited {
            body,
            lengths: Lengths::new(limits.message_bytes_max),
            unfinished: None,
            unfinished_limits: Some((limits.room.clone(), limits.timeout)),
            metrics,
        }
    }

    /// For other brokers, who send each other several batches at once.
    pub(super) fn of_peers(body: B, metrics: Metrics) -> Self {
        Limited { body, lengths: Lengths::new(u64::MAX), unfinished: None, unfinished_limits: None, metrics }
    }

    /// Takes the next piece of the stream into account.
    fn advance(&mut self, piece: &[u8]) -> Result<(), Failure> {
        if let Err(found) = self.lengths.advance(piece) {
            self.metrics.network.failed(NetworkError::Oversized);
            return Err(Failure::oversized(found, self.lengths.most));
        }
        let Some((room, timeout)) = &self.unfinished_limits else { return Ok(()) };
        if self.lengths.remaining == 0 || self.lengths.length <= SMALL_BYTES {
            self.unfinished = None;
            return Ok(());
        }
        match &mut self.unfinished {
            Some(unfinished) if unfinished.number == self.lengths.number => unfinished.came(piece.len()),
            unfinished => {
                // The one before is handed on, and its room can be this one's.
                *unfinished = None;
                *unfinished = Some(Box::new(Unfinished::new(&self.lengths, room, *timeout)));
            }
        }
        Ok(())
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match &mut self.unfinished {
            Some(unfinished) => unfinished.poll_room(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Ready when the message that has not come in full has waited for too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let Some(unfinished) = &mut self.unfinished else { return Poll::Pending };
        let (length, remaining) = (self.lengths.length, self.lengths.remaining);
        unfinished.poll_stalled(cx).map(|()| {
            self.metrics.network.failed(NetworkError::Stalled);
            Failure::stalled(length - remaining, length, unfinished.timeout)
        })
    }
}

impl<B> Body for Limited<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let me = &mut *self;
        let failed = |failure| Poll::Ready(Some(Err(Status::from(failure).into())));
        match me.poll_room(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(failure)) => return failed(failure),
            Poll::Pending => return Poll::Pending,
        }
        let polled = Pin::new(&mut me.body).poll_frame(cx).map_err(Into::into);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref()
                    && let Err(failure) = me.advance(data)
                {
                    return failed(failure);
                }
            }
            Poll::Ready(_) => me.unfinished = None,
            Poll::Pending => {
                if let Poll::Ready(failure) = me.poll_stalled(cx) {
                    return failed(failure);
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A large message of which a part has come.
struct Unfinished {
    number: u64,
    has: Has,
    /// Ends the wait for room, and then each wait for the client.
    timer: Pin<Box<Sleep>>,
    timeout: Duration,
    /// What came since the timer was set for the client. None if it is not set.
    came: Option<usize>,
}

enum Has {
    Room(#[expect(dead_code, reason = "held until the message is handed on")] Share),
    Waits(Pin<Box<dyn Future<Output = Share> + Send>>),
}

impl Unfinished {
    fn new(lengths: &Lengths, room: &Room, timeout: Duration) -> Self {
        let bytes = lengths.length as u64;
        let has = match room.try_take(bytes) {
            Some(share) => Has::Room(share),
            None => Has::Waits(Box::pin(room.clone().take(bytes))),
        };
        let timer = Box::pin(tokio::time::sleep(ROOM_WAIT));
        Unfinished { number: lengths.number, has, timer, timeout, came: None }
    }

    fn came(&mut self, bytes: usize) {
        self.came = self.came.map(|came| came + bytes).filter(|came| *came < SMALL_BYTES);
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if let Has::Waits(share) = &mut self.has {
            match share.as_mut().poll(cx) {
                Poll::Ready(share) => self.has = Has::Room(share),
                Poll::Pending => return self.timer.as_mut().poll(cx).map(|()| Err(Failure::no_room())),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The time of a client that sends a little now and then goes on.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.came.is_none() {
            self.came = Some(0);
            self.timer.as_mut().reset(Instant::now() + self.timeout);
        }
        self.timer.as_mut().poll(cx)
    }
}

/// Follows the lengths of messages through arbitrary pieces of a stream.
struct Lengths {
    most: u64,
    prefix: [u8; PREFIX],
    prefix_filled: usize,
    /// How many messages have begun.
    number: u64,
    /// Length of the present message.
    length: usize,
    /// Bytes of it that are still to come.
    remaining: usize,
}

impl Lengths {
    fn new(most: u64) -> Self {
        Lengths { most, prefix: [0; PREFIX], prefix_filled: 0, number: 0, length: 0, remaining: 0 }
    }

    /// Takes the next piece. Fails with the length of a message that is too large.
    fn advance(&mut self, mut piece: &[u8]) -> Result<(), u64> {
        while !piece.is_empty() {
            if self.remaining > 0 {
                let now = self.remaining.min(piece.len());
                self.remaining -= now;
                piece = &piece[now..];
                continue;
            }
            let now = (PREFIX - self.prefix_filled).min(piece.len());
            let (head, rest) = piece.split_at(now);
            self.prefix[self.prefix_filled..self.prefix_filled + now].copy_from_slice(head);
            self.prefix_filled += now;
            piece = rest;
            if self.prefix_filled == PREFIX {
                self.prefix_filled = 0;
                let [_, length @ ..] = self.prefix;
                let length = u32::from_be_bytes(length);
                if u64::from(length) > self.most {
                    return Err(length.into());
                }
                self.number += 1;
                self.length = length as usize;
                self.remaining = self.length;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::sync::mpsc;
    use tonic::Code;

    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.resize(PREFIX + length as usize, 0xff);
        bytes
    }

    #[test]
    fn accepts_messages_up_to_the_limit_in_pieces_of_any_size() {
        let stream = [message(0), message(10), message(3), message(10)].concat();
        for size in 1..=stream.len() {
            let mut lengths = Lengths::new(10);
            assert!(stream.chunks(size).all(|piece| lengths.advance(piece).is_ok()), "pieces of {size}");
        }
    }

    #[test]
    fn refuses_a_large_message_as_soon_as_its_length_is_known() {
        let stream = [message(10), message(11)].concat();
        for size in 1..=stream.len() {
            let mut lengths = Lengths::new(10);
            let refused = stream.chunks(size).find_map(|piece| lengths.advance(piece).err());
            assert_eq!(refused, Some(11), "pieces of {size}");
        }
        assert_eq!(Lengths::new(10).advance(&[0, 0, 0, 0, 11]), Err(11));
    }

    /// A body whose frames come from a channel.
    struct Sent(mpsc::UnboundedReceiver<Bytes>);

    impl Body for Sent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }

    const LARGE: u32 = 200_000;
    const TIMEOUT: Duration = Duration::from_secs(30);

    fn limited(limits: &Limits) -> (mpsc::UnboundedSender<Bytes>, Limited<Sent>) {
        let (client, sent) = mpsc::unbounded_channel();
        (client, Limited::new(Sent(sent), limits, Metrics::detached()))
    }

    fn limits(room: u64) -> Limits {
        let answers = Answers::new(Room::new(room), room);
        Limits { message_bytes_max: 1 << 20, room: Room::new(room), timeout: TIMEOUT, answers }
    }

    /// The bytes of the next frame, or the call's failure.
    async fn next(body: &mut Limited<Sent>) -> Result<usize, Status> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await.expect("a frame");
        frame.map(|frame| frame.into_data().unwrap().len()).map_err(|error| *error.downcast().unwrap())
    }

    fn is_waiting(body: &mut Limited<Sent>) -> bool {
        next(body).now_or_never().is_none()
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_is_not_read_on_before_there_is_room() {
        let limits = limits(LARGE.into());
        let (first_client, mut first) = limited(&limits);
        let (second_client, mut second) = limited(&limits);
        let bytes = Bytes::from(message(LARGE));
        for (client, body) in [(&first_client, &mut first), (&second_client, &mut second)] {
            client.send(bytes.slice(..100)).unwrap();
            client.send(bytes.slice(100..150_000)).unwrap();
            assert_eq!(next(body).await.unwrap(), 100);
        }
        assert!(is_waiting(&mut second), "the first one has all room");
        assert_eq!(next(&mut first).await.unwrap(), 149_900);
        assert!(is_waiting(&mut second));
        first_client.send(bytes.slice(150_000..)).unwrap();
        next(&mut first).await.unwrap();
        assert_eq!(next(&mut second).await.unwrap(), 149_900, "the first one was handed on");
        drop(second);
        assert!(limits.room.try_take(LARGE.into()).is_some(), "a call that ends gives its room back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_finds_no_room_in_time_ends_its_call() {
        let limits = limits(LARGE.into());
        let taken = limits.room.try_take(1).unwrap();
        let (client, mut body) = limited(&limits);
        client.send(Bytes::from(message(LARGE)).slice(..100)).unwrap();
        next(&mut body).await.unwrap();
        let status = next(&mut body).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        drop((taken, body));
        assert!(limits.room.try_take(LARGE.into()).is_some(), "it waits no more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_larger_than_all_room_passes_alone() {
        let limits = limits(1_000);
        let (client, mut body) = limited(&limits);
        let bytes = Bytes::from(message(LARGE));
        for piece in [bytes.slice(..100_000), bytes.slice(100_000..)] {
            client.send(piece.clone()).unwrap();
            assert_eq!(next(&mut body).await.unwrap(), piece.len());
        }
        assert!(limits.room.try_take(1_000).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn small_and_whole_messages_need_no_room() {
        let limits = limits(1_000);
        let _taken = limits.room.try_take(1_000).unwrap();
        let (client, mut body) = limited(&limits);
        let small = Bytes::from(message(SMALL_BYTES as u32));
        for piece in [small.slice(..100), small.slice(100..), Bytes::from(message(LARGE)), small] {
            client.send(piece.clone()).unwrap();
            assert_eq!(next(&mut body).await.unwrap(), piece.len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_get_on_ends_its_call() {
        let limits = limits(1 << 20);
        for trickle in [0, 1, SMALL_BYTES] {
            let (client, mut body) = limited(&limits);
            let bytes = Bytes::from(message(LARGE));
            client.send(bytes.slice(..100)).unwrap();
            next(&mut body).await.unwrap();
            assert!(is_waiting(&mut body));
            tokio::time::sleep(TIMEOUT - Duration::from_secs(1)).await;
            assert!(is_waiting(&mut body), "there is time left");
            if trickle > 0 {
                client.send(bytes.slice(100..100 + trickle)).unwrap();
                next(&mut body).await.unwrap();
            }
            assert!(is_waiting(&mut body));
            let since = Instant::now();
            let status = next(&mut body).await.unwrap_err();
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            assert_eq!(
                since.elapsed() > Duration::from_secs(10),
                trickle == SMALL_BYTES,
                "after {trickle} bytes"
            );
            drop(body);
            assert!(limits.room.try_take(1 << 20).is_some());
        }
    }
}
