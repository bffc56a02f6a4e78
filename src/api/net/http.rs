//! Connections to the HTTP port.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tracing::debug;

use super::io::Connection;
use super::{Protocol, Stop, until_stopped};
use crate::api::Config;
use crate::api::http::Site;
use crate::telemetry::Metrics;
use crate::telemetry::NetworkError;

/// HTTP/1.1 for probes, scrapes and people.
pub(in crate::api) struct Http {
    site: Site,
    http1: http1::Builder,
    metrics: Metrics,
}

impl Http {
    pub(in crate::api) fn new(config: &Config, site: Site, metrics: Metrics) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(config.handshake_timeout.max(config.keepalive_interval))
            .max_buf_size(usize::try_from(config.header_bytes_max).unwrap_or(usize::MAX).max(8_192));
        Http { site, http1, metrics }
    }

    fn note_end(&self, served_any: bool, lost: bool, error: &hyper::Error) {
        debug!(%error, "an HTTP connection ended early");
        // After an answer the same timer closes connections that are merely idle.
        if error.is_timeout() && served_any {
            return;
        }
        self.metrics.network.failed(if error.is_timeout() {
            NetworkError::HandshakeTimeout
        } else if error.is_parse() || !lost {
            NetworkError::Protocol
        } else {
            NetworkError::Reset
        });
    }
}

impl Protocol for Http {
    const TASK: &'static str = "http connection";

    async fn serve(&self, connection: Connection, stop: Stop) {
        let lost = connection.lost();
        let served_any = Arc::new(AtomicBool::new(false));
        let site = self.site.clone();
        let service = {
            let served_any = Arc::clone(&served_any);
            service_fn(move |request: hyper::Request<Incoming>| {
                served_any.store(true, Ordering::Release);
                let site = site.clone();
                async move { Ok::<_, Infallible>(site.answer(request).await) }
            })
        };
        let served = self.http1.serve_connection(TokioIo::new(connection), service);
        let result = until_stopped(served, |served| served.graceful_shutdown(), &stop).await;
        if let Some(Err(error)) = result {
            self.note_end(served_any.load(Ordering::Acquire), lost.get(), &error);
        }
    }

    async fn refuse(&self, connection: Connection, connections_max: usize) {
        let text = format!(
            "This broker serves at most {connections_max} HTTP connections at a time (api.http_connections_max).\n"
        );
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{text}",
            text.len()
        );
        connection.close_with(answer.as_bytes()).await;
    }
}
