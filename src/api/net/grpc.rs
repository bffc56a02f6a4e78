//! Connections to the gRPC port.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BufMut as _;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tracing::debug;

use super::io::Connection;
use super::preface::{self, Spoken};
use super::{Protocol, Stop, until_stopped};
use crate::api::Config;
use crate::api::rpc::{Calls, Unread};
use crate::api::where_http_is;
use crate::broker::Room;
use crate::telemetry::Metrics;
use crate::telemetry::NetworkError;

/// HTTP/2 for gRPC.
pub(in crate::api) struct Grpc {
    calls: Calls,
    http2: http2::Builder<TokioExecutor>,
    handshake_timeout: Duration,
    message_timeout: Duration,
    /// Room for what clients do not read.
    fetched_room: Room,
    /// Where HTTP is, for those who speak it here.
    http_port: u16,
    metrics: Metrics,
}

impl Grpc {
    pub(in crate::api) fn new(
        config: &Config,
        calls: Calls,
        fetched_room: Room,
        http_port: u16,
        metrics: Metrics,
    ) -> Self {
        // Each call runs as a task that belongs to its connection and ends with it, so `Tasks` need not know it.
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_frame_size(at_most_u32(config.frame_bytes_max))
            .initial_stream_window_size(at_most_u32(config.stream_window_bytes))
            .initial_connection_window_size(at_most_u32(config.connection_window_bytes))
            .max_concurrent_streams(config.concurrent_streams_max)
            .max_header_list_size(at_most_u32(config.header_bytes_max))
            .max_send_buf_size(at_most_u32(config.send_buffer_bytes) as usize)
            .keep_alive_interval(config.keepalive_interval)
            .keep_alive_timeout(config.keepalive_timeout)
            .auto_date_header(false);
        let (handshake_timeout, message_timeout) = (config.handshake_timeout, config.message_timeout);
        Grpc { calls, http2, handshake_timeout, message_timeout, fetched_room, http_port, metrics }
    }

    /// Checks that the client speaks HTTP/2. Answers and counts the others.
    async fn greet(&self, mut connection: Connection) -> Option<Connection> {
        let peer = connection.peer();
        match tokio::time::timeout(self.handshake_timeout, preface::recognise(&mut connection)).await {
            Err(_) => {
                self.failed(NetworkError::HandshakeTimeout);
                debug!(%peer, "the client sent no HTTP/2 preface in time");
            }
            Ok(Err(error)) => {
                self.failed(NetworkError::Reset);
                debug!(%peer, %error, "the connection broke before the HTTP/2 preface");
            }
            Ok(Ok(Spoken::Http2)) => {
                connection.replay_preface();
                return Some(connection);
            }
            Ok(Ok(Spoken::Nothing)) => debug!(%peer, "the client closed without a word"),
            Ok(Ok(Spoken::Http1)) => {
                self.failed(NetworkError::HttpOnGrpcPort);
                debug!(%peer, "an HTTP/1 request came to the gRPC port");
                connection.close_with(&self.http1_answer()).await;
            }
            Ok(Ok(spoken @ (Spoken::Tls | Spoken::Garbage))) => {
                self.failed(NetworkError::Protocol);
                debug!(%peer, ?spoken, "the client does not speak HTTP/2");
            }
        }
        None
    }

    fn http1_answer(&self) -> Vec<u8> {
        let text = where_http_is(self.http_port);
        format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        )
        .into_bytes()
    }

    fn note_end(&self, peer: SocketAddr, lost: bool, error: &hyper::Error) {
        debug!(%peer, %error, "the connection ended early");
        self.failed(if error.is_timeout() {
            NetworkError::KeepaliveTimeout
        } else if lost {
            NetworkError::Reset
        } else {
            NetworkError::Protocol
        });
    }

    fn failed(&self, error: NetworkError) {
        self.metrics.network.failed(error);
    }
}

impl Protocol for Grpc {
    const TASK: &'static str = "grpc connection";

    async fn serve(&self, connection: Connection, stop: Stop) {
        let greeted = tokio::select! {
            () = stop.drain.cancelled() => return,
            greeted = self.greet(connection) => greeted,
        };
        let Some(mut connection) = greeted else { return };
        connection.linger_in(stop.drain.clone());
        let (peer, lost, sent) = (connection.peer(), connection.lost(), connection.sent());
        let unread = Unread::default();
        let calls = self.calls.from(peer, unread.clone());
        let served = self.http2.serve_connection(TokioIo::new(connection), calls);
        let result = tokio::select! {
            result = until_stopped(served, |served| served.graceful_shutdown(), &stop) => result,
            () = unread.stall(|| sent.get(), &self.fetched_room, self.message_timeout) => {
                self.failed(NetworkError::Stalled);
                debug!(%peer, "the client did not read its answers, and others need their room");
                return;
            }
        };
        if let Some(Err(error)) = result {
            self.note_end(peer, lost.get(), &error);
        }
    }

    /// Speaks as much HTTP/2 as it takes to say why: SETTINGS, then GOAWAY with the reason as debug data.
    async fn refuse(&self, connection: Connection, connections_max: usize) {
        let reason = format!(
            "this broker serves at most {connections_max} connections at a time (api.connections_max): close some or use another broker"
        );
        connection.close_with(&goaway(&reason)).await;
    }
}

/// Empty SETTINGS, then GOAWAY (ENHANCE_YOUR_CALM) with `reason`.
fn goaway(reason: &str) -> Vec<u8> {
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const ENHANCE_YOUR_CALM: u32 = 11;
    let mut frames = Vec::with_capacity(26 + reason.len());
    frame_header(&mut frames, SETTINGS, 0);
    frame_header(&mut frames, GOAWAY, 8 + reason.len());
    frames.put_u32(0);
    frames.put_u32(ENHANCE_YOUR_CALM);
    frames.put_slice(reason.as_bytes());
    frames
}

/// The 9 bytes before a frame of the connection's own stream, without flags.
fn frame_header(frames: &mut Vec<u8>, kind: u8, payload: usize) {
    frames.put_uint(payload as u64, 3);
    frames.put_u8(kind);
    frames.put_u8(0);
    frames.put_u32(0);
}

fn at_most_u32(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_settings_then_goaway_with_the_reason() {
        let frames = goaway("full");
        assert_eq!(&frames[..9], &[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        assert_eq!(&frames[9..18], &[0, 0, 12, 7, 0, 0, 0, 0, 0]);
        assert_eq!(&frames[18..26], &[0, 0, 0, 0, 0, 0, 0, 11]);
        assert_eq!(&frames[26..], b"full");
    }
}
