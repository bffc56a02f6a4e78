//! Settings of the process as a whole.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Threads, advertised addresses, shutdown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Threads that serve requests. 0 means one per core, at most 16. Disk and telemetry have threads of their own.
    pub worker_threads: usize,
    /// `host:port` of the gRPC port as clients reach it. By default the address it listens on, with this machine's name
    /// in the place of an unspecified address.
    pub grpc_advertise: Option<String>,
    /// The same for the HTTP port.
    pub http_advertise: Option<String>,
    /// How long calls in flight may take to finish after a signal to stop, before they are cut.
    #[serde(with = "crate::units::duration")]
    pub drain_timeout: Duration,
}

const WORKER_THREADS_MAX: usize = 1024;
const WORKER_THREADS_CHOSEN_MAX: usize = 16;

impl Default for Server {
    fn default() -> Self {
        Server {
            worker_threads: 0,
            grpc_advertise: None,
            http_advertise: None,
            drain_timeout: Duration::from_secs(4),
        }
    }
}

impl Server {
    /// The number of worker threads to start.
    #[must_use]
    pub fn effective_worker_threads(&self) -> usize {
        match self.worker_threads {
            0 => std::thread::available_parallelism()
                .map_or(1, |cores| cores.get().min(WORKER_THREADS_CHOSEN_MAX)),
            threads => threads,
        }
    }

    /// Where clients reach the gRPC port that listens on `listening`.
    #[must_use]
    pub fn grpc_advertised(&self, listening: SocketAddr) -> String {
        self.grpc_advertise.clone().unwrap_or_else(|| reachable(listening))
    }

    /// Where the HTTP port that listens on `listening` is reached.
    #[must_use]
    pub fn http_advertised(&self, listening: SocketAddr) -> String {
        self.http_advertise.clone().unwrap_or_else(|| reachable(listening))
    }

    /// Every setting that is out of range, by name, with what is wrong.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.worker_threads > WORKER_THREADS_MAX {
            let text = format!("{} is more than {WORKER_THREADS_MAX}", self.worker_threads);
            problems.push(("worker_threads", text));
        }
        if self.drain_timeout.is_zero() {
            problems.push(("drain_timeout", "must be longer than zero".to_owned()));
        }
        for (name, address) in
            [("grpc_advertise", &self.grpc_advertise), ("http_advertise", &self.http_advertise)]
        {
            if address.as_deref().is_some_and(|address| !is_host_and_port(address)) {
                problems.push((name, "must have the form host:port".to_owned()));
            }
        }
        problems
    }
}

fn reachable(listening: SocketAddr) -> String {
    if !listening.ip().is_unspecified() {
        return listening.to_string();
    }
    let name = rustix::system::uname();
    let host = name.nodename().to_str().ok().filter(|name| !name.is_empty()).unwrap_or("localhost");
    format!("{host}:{}", listening.port())
}

fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|p| p > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_out_of_range_is_named() {
        let server = Server {
            worker_threads: 2_000,
            grpc_advertise: Some("http://broker-1:9092".to_owned()),
            http_advertise: Some("broker-1".to_owned()),
            drain_timeout: Duration::ZERO,
        };
        let names: Vec<_> = server.problems().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["worker_threads", "drain_timeout", "grpc_advertise", "http_advertise"]);
    }

    #[test]
    fn addresses_with_host_and_port_are_accepted() {
        for address in ["broker-1:9092", "10.0.0.1:9092", "[::1]:9092"] {
            assert!(is_host_and_port(address), "{address}");
        }
    }
}
