//! Settings of the listeners.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// Where the broker listens, and what one client may cost it.
///
/// Memory that clients can make the broker hold is bounded by these settings: an idle connection costs some tens of
/// KiB; a connection whose requests wait holds at most `connection_window_bytes` of unread requests; large messages that
/// come in part hold at most `receiving_bytes_max`, and small ones 64 KiB per stream; a stream that its client does not read
/// holds at most `send_buffer_bytes` and one delivery; answers to fetches and other large answers hold at most
/// `fetched_bytes_max`, and as much again while they wait for that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address of the gRPC port. Port 0 lets the system choose.
    #[serde(deserialize_with = "listening_address")]
    pub grpc_listen: SocketAddr,
    /// Address of the HTTP port (`/metrics`, `/health`). Port 0 lets the system choose.
    #[serde(deserialize_with = "listening_address")]
    pub http_listen: SocketAddr,
    /// Most connections to the gRPC port at a time. A further one is told so in an HTTP/2 GOAWAY and closed.
    pub connections_max: usize,
    /// Most connections to the HTTP port at a time. They have a limit of their own so that clients cannot shut out
    /// probes and scrapes. A further one gets status 503.
    pub http_connections_max: usize,
    /// How long a new gRPC connection may take to send the HTTP/2 preface. An HTTP client has this long, or
    /// `keepalive_interval` if that is longer, for the headers of a request and between requests.
    #[serde(with = "crate::units::duration")]
    pub handshake_timeout: Duration,
    /// How long an HTTP request may take to be answered, scrapes included.
    #[serde(with = "crate::units::duration")]
    pub http_request_timeout: Duration,
    /// After this time without a frame from a client it is sent a ping.
    #[serde(with = "crate::units::duration")]
    pub keepalive_interval: Duration,
    /// A client that does not answer a ping for this long is disconnected.
    #[serde(with = "crate::units::duration")]
    pub keepalive_timeout: Duration,
    /// Most calls and streams at a time on one gRPC connection. The client waits with further ones.
    pub concurrent_streams_max: u32,
    /// Bytes that a client may send on one stream before the broker has read them: the largest useful product of
    /// bandwidth and round-trip time.
    #[serde(with = "crate::units::size")]
    pub stream_window_bytes: u64,
    /// Bytes that a client may send on all streams of a connection before the broker has read them.
    #[serde(with = "crate::units::size")]
    pub connection_window_bytes: u64,
    /// Bytes of messages of clients, of all connections, that have begun to come and are not complete. Only those above 64
    /// KiB count. One that finds no room for a second is refused with `BUSY`. A single message may exceed it.
    #[serde(with = "crate::units::size")]
    pub receiving_bytes_max: u64,
    /// A message above 64 KiB of which not as much comes in this time ends its call. A client that takes not as much in this
    /// time, while others wait for the room of its answers, is disconnected.
    #[serde(with = "crate::units::duration")]
    pub message_timeout: Duration,
    /// Largest HTTP/2 frame that clients may send. Small ones cost time, large ones memory: for a
    /// message that comes in one frame it is asked for twice.
    #[serde(with = "crate::units::size")]
    pub frame_bytes_max: u64,
    /// Largest set of request headers.
    #[serde(with = "crate::units::size")]
    pub header_bytes_max: u64,
    /// Bytes of an answer that wait for a client to read them, per stream.
    #[serde(with = "crate::units::size")]
    pub send_buffer_bytes: u64,
    /// Bytes of answers to fetches, of all connections, that are being read from the log or wait for their clients. Further
    /// fetches wait for room. Other answers above 4 KiB count, too: they wait for room when they are made, as many as fit
    /// into as many bytes; others are refused with `BUSY`. A single answer may exceed it.
    #[serde(with = "crate::units::size")]
    pub fetched_bytes_max: u64,
    /// Batches of one produce stream that may await their commit. When so many wait the broker stops reading the
    /// stream. Their bytes are bounded by the broker's buffer for waiting batches.
    pub stream_window_batches: usize,
    /// Scrapes of `/metrics` that run at a time. A further one gets status 503.
    pub concurrent_scrapes_max: usize,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Reads an address, or says what is one: a name, which can stand for several addresses and change, is none.
fn listening_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        D::Error::custom(format!(
            "\"{text}\" is not IP:PORT of this machine, such as 127.0.0.1:9092, or 0.0.0.0:9092 or [::]:9092 for all its \
             addresses; a host name cannot be listened on"
        ))
    })
}

impl Default for Config {
    fn default() -> Self {
        Config {
            grpc_listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9092)),
            http_listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            connections_max: 10_000,
            http_connections_max: 256,
            handshake_timeout: Duration::from_secs(10),
            http_request_timeout: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            concurrent_streams_max: 1_000,
            stream_window_bytes: 4 * MIB,
            connection_window_bytes: 16 * MIB,
            receiving_bytes_max: 256 * MIB,
            message_timeout: Duration::from_secs(30),
            frame_bytes_max: 256 * KIB,
            header_bytes_max: 16 * KIB,
            send_buffer_bytes: MIB,
            fetched_bytes_max: 256 * MIB,
            stream_window_batches: 4_096,
            concurrent_scrapes_max: 4,
        }
    }
}

/// The largest window that HTTP/2 allows.
const WINDOW_BYTES_MAX: u64 = (1 << 31) - 1;

impl Config {
    /// Everything that is out of range, each as the setting's name and what is wrong with it.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut within = |name, value: u64, least: u64, most: u64| {
            if value < least || value > most {
                problems.push((name, format!("{value} is not between {least} and {most}")));
            }
        };
        within("connections_max", self.connections_max as u64, 1, 10_000_000);
        within("http_connections_max", self.http_connections_max as u64, 1, 1_000_000);
        within("concurrent_streams_max", u64::from(self.concurrent_streams_max), 1, 1_000_000);
        within("stream_window_bytes", self.stream_window_bytes, 64 * KIB - 1, WINDOW_BYTES_MAX);
        within("connection_window_bytes", self.connection_window_bytes, 64 * KIB - 1, WINDOW_BYTES_MAX);
        within("receiving_bytes_max", self.receiving_bytes_max, MIB, u32::MAX.into());
        within("frame_bytes_max", self.frame_bytes_max, 16 * KIB, 16 * MIB - 1);
        within("header_bytes_max", self.header_bytes_max, 4 * KIB, MIB);
        within("send_buffer_bytes", self.send_buffer_bytes, 16 * KIB, 1024 * MIB);
        within("fetched_bytes_max", self.fetched_bytes_max, MIB, u32::MAX.into());
        within("stream_window_batches", self.stream_window_batches as u64, 1, 1_000_000);
        within("concurrent_scrapes_max", self.concurrent_scrapes_max as u64, 1, 1_000);
        for (name, duration) in [
            ("handshake_timeout", self.handshake_timeout),
            ("http_request_timeout", self.http_request_timeout),
            ("keepalive_interval", self.keepalive_interval),
            ("keepalive_timeout", self.keepalive_timeout),
            ("message_timeout", self.message_timeout),
        ] {
            if duration.is_zero() {
                problems.push((name, "must be longer than zero".to_owned()));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_have_no_problems() {
        assert_eq!(Config::default().problems(), vec![]);
    }

    #[test]
    fn every_value_out_of_range_is_named() {
        let config = Config {
            connections_max: 0,
            frame_bytes_max: 1,
            keepalive_interval: Duration::ZERO,
            ..Config::default()
        };
        let names: Vec<_> = config.problems().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["connections_max", "frame_bytes_max", "keepalive_interval"]);
    }
}
