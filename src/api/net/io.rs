//! A client's socket, with its bytes counted.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::preface::PREFACE;
use crate::telemetry::Metrics;

/// How long and how much a client may still send after it was told that it is not served.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;

/// A client's connection.
pub(in crate::api) struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    metrics: Metrics,
    lost: Lost,
    /// How much of the HTTP/2 preface, which was read to recognise the protocol, is still to be read again.
    replay: &'static [u8],
}

/// Whether the peer or the network ended the connection, as opposed to the protocol.
#[derive(Clone, Default)]
pub(super) struct Lost(Arc<AtomicBool>);

impl Lost {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, metrics: Metrics) -> Self {
        Connection { stream, peer, metrics, lost: Lost::default(), replay: &[] }
    }

    /// The client's address.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(super) fn lost(&self) -> Lost {
        self.lost.clone()
    }

    /// Makes the next reads yield the HTTP/2 preface again.
    pub(super) fn replay_preface(&mut self) {
        self.replay = PREFACE;
    }

    /// Sends a last answer and closes in a way that lets the client read it: closing while the client's bytes are
    /// unread would reset the connection and discard the answer.
    pub(super) async fn close_with(mut self, answer: &[u8]) {
        let farewell = async {
            self.write_all(answer).await?;
            self.shutdown().await?;
            let mut scratch = [0_u8; 1_024];
            let mut read = 0;
            while read < LINGER_BYTES {
                match self.read(&mut scratch).await? {
                    0 => break,
                    more => read += more,
                }
            }
            io::Result::Ok(())
        };
        // The client is gone or too slow: either way there is nobody left to tell.
        let _ = tokio::time::timeout(LINGER, farewell).await;
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        if !me.replay.is_empty() {
            let (now, later) = me.replay.split_at(me.replay.len().min(buf.remaining()));
            buf.put_slice(now);
            me.replay = later;
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut me.stream).poll_read(cx, buf));
        let read = buf.filled().len() - before;
        if read == 0 {
            me.lost.set();
        } else {
            me.metrics.network.received(read as u64);
        }
        Poll::Ready(result)
    }
}

impl Connection {
    fn wrote(&self, result: io::Result<usize>) -> io::Result<usize> {
        match &result {
            Ok(written) => self.metrics.network.sent(*written as u64),
            Err(_) => self.lost.set(),
        }
        result
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        Poll::Ready(self.wrote(result))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        Poll::Ready(self.wrote(result))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
