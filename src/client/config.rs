//! How a client connects.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::global::BoxedTracer;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry::trace::{Span, Tracer, TracerProvider};

use super::connection::Connections;
use super::routing::Router;
use super::telemetry::{self, Telemetry};
use super::{Backoff, Client, Error};

/// How a client connects. The defaults suit a data centre as well as one machine.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// How long a connection may take to come about. Default 5 s.
    pub connect_timeout: Duration,
    /// How long a unary call may take, its retries included. Default 30 s.
    pub request_timeout: Duration,
    /// How often a silent connection is probed. Default 3 s.
    pub keepalive_interval: Duration,
    /// How long a probe may remain unanswered before the connection counts as lost. Default 3 s. Both together bound how
    /// long a client waits for a broker that stopped or was cut off without a word.
    pub keepalive_timeout: Duration,
    /// How many bytes a broker may send on one stream ahead of the program reading them. Default 4 MiB.
    pub stream_window_bytes: u32,
    /// The same for all streams of a connection together. Default 16 MiB.
    pub connection_window_bytes: u32,
    /// Largest message that is sent or accepted. Default 64 MiB.
    pub message_bytes_max: usize,
    /// After this time routing is asked for again even if nothing failed, which is how added partitions are
    /// noticed. Default 60 s.
    pub routing_age_max: Duration,
    /// Waiting times between attempts.
    pub backoff: Backoff,
    /// Name of the program in the `user-agent` of its calls and in `messaging.client.id`. Default none.
    pub client_id: Option<String>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(3),
            keepalive_timeout: Duration::from_secs(3),
            stream_window_bytes: 4 << 20,
            connection_window_bytes: 16 << 20,
            message_bytes_max: 64 << 20,
            routing_age_max: Duration::from_secs(60),
            backoff: Backoff::default(),
            client_id: None,
        }
    }
}

/// Builds a [`Client`].
#[derive(Debug, Default)]
pub struct ClientBuilder {
    bootstrap: Vec<String>,
    config: ClientConfig,
    tracer: Option<BoxedTracer>,
    meter: Option<Meter>,
}

impl ClientBuilder {
    /// Adds the address (`host:port`) of a broker to begin with. Any broker of the cluster will do; several keep the
    /// client able to start while one is down.
    #[must_use]
    pub fn bootstrap(mut self, address: impl Into<String>) -> Self {
        self.bootstrap.push(address.into());
        self
    }

    /// Replaces the configuration.
    #[must_use]
    pub fn config(mut self, config: ClientConfig) -> Self {
        self.config = config;
        self
    }

    /// Makes spans with `provider` instead of the global one.
    #[must_use]
    pub fn with_tracer_provider<P>(mut self, provider: &P) -> Self
    where
        P: TracerProvider,
        P::Tracer: Send + Sync + 'static,
        <P::Tracer as Tracer>::Span: Span + Send + Sync + 'static,
    {
        let tracer = provider.tracer_with_scope(telemetry::scope());
        self.tracer = Some(BoxedTracer::new(Box::new(tracer)));
        self
    }

    /// Records metrics with `provider` instead of the global one.
    #[must_use]
    pub fn with_meter_provider(mut self, provider: &dyn MeterProvider) -> Self {
        self.meter = Some(provider.meter_with_scope(telemetry::scope()));
        self
    }

    /// Connects to the first bootstrap address that answers.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn connect(self) -> Result<Client, Error> {
        if self.bootstrap.is_empty() {
            return Err(Error::InvalidConfig {
                field: "bootstrap",
                reason: "give at least one address, as host:port".into(),
            });
        }
        let tracer =
            self.tracer.unwrap_or_else(|| opentelemetry::global::tracer_with_scope(telemetry::scope()));
        let meter = self.meter.unwrap_or_else(|| opentelemetry::global::meter_with_scope(telemetry::scope()));
        let telemetry = Telemetry::new(tracer, &meter, self.config.client_id.clone());
        let connections = Connections::new(self.config.clone());
        let router = Router::new(connections, self.bootstrap, self.config);
        router.discover().await?;
        Ok(Client::new(Arc::new(router), Arc::new(telemetry)))
    }
}
