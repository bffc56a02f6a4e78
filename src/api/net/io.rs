//! A client's socket, with its bytes counted.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::preface::PREFACE;
use crate::telemetry::Metrics;

/// How long a client may still send after the last word was said to it.
const LINGER: Duration = Duration::from_secs(1);
/// How much it may still send if that word was that it is not served.
const REFUSED_BYTES: usize = 64 * 1024;

/// A client's connection.
pub(in crate::api) struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    metrics: Metrics,
    lost: Lost,
    sent: Sent,
    /// How much of the HTTP/2 preface, which was read to recognise the protocol, is still to be read again.
    replay: &'static [u8],
    linger: Linger,
}

/// How the connection is closed.
enum Linger {
    /// At once.
    Off,
    /// Reading on for a while, if it is closed because the broker drains.
    InDrain(CancellationToken),
    /// The write side is closed; the read side will be when the client closes its own or time is up.
    Until(Pin<Box<Sleep>>),
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

/// How many bytes the peer has taken.
#[derive(Clone, Default)]
pub(super) struct Sent(Arc<AtomicU64>);

impl Sent {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, metrics: Metrics) -> Self {
        Connection {
            stream,
            peer,
            metrics,
            lost: Lost::default(),
            sent: Sent::default(),
            replay: &[],
            linger: Linger::Off,
        }
    }

    /// The client's address.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(super) fn lost(&self) -> Lost {
        self.lost.clone()
    }

    pub(super) fn sent(&self) -> Sent {
        self.sent.clone()
    }

    /// Makes the next reads yield the HTTP/2 preface again.
    pub(super) fn replay_preface(&mut self) {
        self.replay = PREFACE;
    }

    /// Makes a shutdown after `drain` close the write side and then read and discard until the client closes too, for a
    /// short time at most. A client that is still sending would otherwise be answered with a reset, and that destroys
    /// what it has received but not read: its last results and its status.
    pub(super) fn linger_in(&mut self, drain: CancellationToken) {
        self.linger = Linger::InDrain(drain);
    }

    /// Sends a last answer and closes in a way that lets the client read it: closing while the client's bytes are
    /// unread would reset the connection and discard the answer.
    pub(super) async fn close_with(mut self, answer: &[u8]) {
        let farewell = async {
            self.write_all(answer).await?;
            self.shutdown().await?;
            let mut scratch = [0_u8; 1_024];
            let mut read = 0;
            while read < REFUSED_BYTES {
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
    /// Reads until the client has closed its side, in whatever way.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0_u8; 8 * 1024];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            let result = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf));
            if result.is_err() || buf.filled().is_empty() {
                return Poll::Ready(());
            }
            self.metrics.network.received(buf.filled().len() as u64);
        }
    }

    fn wrote(&self, result: io::Result<usize>) -> io::Result<usize> {
        match &result {
            Ok(written) => {
                self.metrics.network.sent(*written as u64);
                self.sent.0.fetch_add(*written as u64, Ordering::Relaxed);
            }
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
        let me = &mut *self;
        if !matches!(me.linger, Linger::Until(_)) {
            ready!(Pin::new(&mut me.stream).poll_shutdown(cx))?;
        }
        let time_is_up = match &mut me.linger {
            Linger::Off => true,
            Linger::InDrain(drain) if !drain.is_cancelled() => true,
            Linger::Until(deadline) => deadline.as_mut().poll(cx).is_ready(),
            Linger::InDrain(_) => {
                let mut deadline = Box::pin(tokio::time::sleep(LINGER));
                let time_is_up = deadline.as_mut().poll(cx).is_ready();
                me.linger = Linger::Until(deadline);
                time_is_up
            }
        };
        if time_is_up { Poll::Ready(Ok(())) } else { me.poll_discard(cx).map(Ok) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::telemetry::Telemetry;

    #[tokio::test]
    async fn a_client_that_still_sends_in_a_drain_gets_all_that_was_said_to_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let mut connection = Connection::new(stream, peer, Telemetry::for_tests().metrics().clone());
        let drain = CancellationToken::new();
        connection.linger_in(drain.clone());
        drain.cancel();
        // Unread bytes make a close a reset.
        client.write_all(&[7; 64 * 1024]).await.unwrap();
        let served = tokio::spawn(async move {
            connection.write_all(b"the last result").await.unwrap();
            connection.shutdown().await.unwrap();
        });
        let mut said = Vec::new();
        client.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"the last result");
        client.write_all(&[7; 64 * 1024]).await.unwrap();
        assert!(!served.is_finished(), "the broker waits for the client");
        drop(client);
        served.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_does_not_close_is_left_after_a_while() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let mut connection = Connection::new(stream, peer, Telemetry::for_tests().metrics().clone());
        let drain = CancellationToken::new();
        connection.linger_in(drain.clone());
        drain.cancel();
        let began = tokio::time::Instant::now();
        connection.shutdown().await.unwrap();
        assert!(began.elapsed() >= LINGER);
        drop(client);
    }
}
