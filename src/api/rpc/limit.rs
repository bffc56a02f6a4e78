//! Refusing messages that are too large before they are read.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tonic::Status;

use crate::api::status::Failure;
use crate::telemetry::Metrics;
use crate::telemetry::NetworkError;

/// Length of what precedes each gRPC message: a compression flag and a big-endian length.
const PREFIX: usize = 5;

/// A request body whose messages are at most so large. A larger one ends the call with a precise error.
pub(in crate::api) struct Limited<B = Incoming> {
    body: B,
    lengths: Lengths,
    metrics: Metrics,
}

impl<B> Limited<B> {
    pub(super) fn new(body: B, message_bytes_max: u64, metrics: Metrics) -> Self {
        Limited { body, lengths: Lengths::new(message_bytes_max), metrics }
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
        let polled = Pin::new(&mut me.body).poll_frame(cx).map_err(Into::into);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && let Err(found) = me.lengths.advance(data)
        {
            me.metrics.network.failed(NetworkError::Oversized);
            let status = Status::from(Failure::oversized(found, me.lengths.most));
            return Poll::Ready(Some(Err(status.into())));
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

/// Follows the lengths of messages through arbitrary pieces of a stream.
struct Lengths {
    most: u64,
    prefix: [u8; PREFIX],
    prefix_filled: usize,
    /// Bytes of the present message that are still to come.
    remaining: usize,
}

impl Lengths {
    fn new(most: u64) -> Self {
        Lengths { most, prefix: [0; PREFIX], prefix_filled: 0, remaining: 0 }
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
                self.remaining = length as usize;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
}
