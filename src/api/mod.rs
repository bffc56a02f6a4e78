//! The doors of the broker: gRPC for clients, HTTP for scrapers and probes.
//!
//! ```text
//! socket ── net (accept, limit, greet, count) ─┬─ rpc (span, metrics, message limit) ── grpc ─┬─ broker
//!                                              └─ http (metrics, health) ────────────── health ┘
//! ```
//!
//! - `net`: the accept loop of both ports; what a connection may cost.
//! - `rpc`: what every call gets, whichever its service.
//! - `grpc`: the services of `streambus.v1`, a file each; [`convert`] between their types and the broker's.
//! - `http`: `/metrics`, `/metrics/detailed`, `/health` and the probes. `health`: the same over gRPC.
//! - [`status`]: the only table from error codes to what clients see.
//!
//! Handlers decide nothing: they convert, call the broker, and convert back. Whatever a client does, the memory it
//! can make the broker hold is bounded by [`Config`].

mod config;
pub mod convert;
mod grpc;
mod health;
mod http;
mod load;
mod net;
mod open_files;
mod probes;
mod rpc;
pub mod status;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

pub use self::config::Config;
use self::load::Load;
use self::net::{Grpc, Http, Port, Stop};
pub use self::open_files::fit_to_open_files;
pub use self::probes::Probes;
use self::rpc::{Answers, Calls, Ends, Limits};
use crate::broker::{Broker, Check, Health, Phase, Room};
use crate::cluster::peers::Hub;
use crate::task::{Criticality, Tasks};
use crate::telemetry::{
    BrokerLevels, DetailedFamilies, HealthCheck, Metrics, MetricsOff, PartitionLevels, Scrape, Status, Tracer,
};

/// What a message may have beyond its batch: topic, trace context, lengths.
const MESSAGE_OVERHEAD_BYTES: u64 = 64 * 1024;
/// How long connections may take to notice that they are to end now.
const KILL_DEADLINE: Duration = Duration::from_secs(1);

/// Why the ports could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is in use, not this machine's, or not permitted.
    #[error("cannot listen on {address} ({setting}): {source}")]
    Listen {
        /// The setting that holds the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The compiled-in protocol description is damaged: a broken build.
    #[error("the protocol's descriptors cannot be read")]
    Descriptors(#[from] tonic_reflection::server::Error),
}

/// What the API needs from the rest of the process.
pub struct Environment {
    /// What HTTP shows.
    pub watched: Watched,
    /// What other brokers ask.
    pub peers: Hub,
    /// Traces requests.
    pub tracer: Tracer,
    /// Largest batch that any topic may allow (`broker.batch_bytes_max`).
    pub batch_bytes_max: u64,
    /// The HTTP port, if it is open already.
    pub http: Option<TcpListener>,
}

/// What the HTTP port needs.
pub struct Watched {
    /// Answers the requests.
    pub broker: Broker,
    /// Counts them.
    pub metrics: Metrics,
    /// Answers `/metrics`.
    pub scraper: Scraper,
    /// Answers `/metrics/detailed`.
    pub detailer: Detailer,
    /// Runs listeners and connections.
    pub tasks: Tasks,
}

/// Collects and encodes all metrics for a client's `Accept` and `Accept-Encoding`. It may block.
pub type Scraper = Arc<dyn Fn(&str, &str) -> Result<Scrape, MetricsOff> + Send + Sync>;

/// Encodes families of partitions for a client's `Accept` and `Accept-Encoding`. It may block.
pub type Detailer = Arc<
    dyn Fn(&DetailedFamilies, &[PartitionLevels], &str, &str) -> Result<Scrape, MetricsOff> + Send + Sync,
>;

/// Both ports, open but not served yet.
pub struct Server {
    grpc: Listening<Grpc>,
    http: Listening<Http>,
    /// Ends the streams of clients.
    streams: CancellationToken,
    broker: Broker,
    reporter: HealthReporter,
    /// Ends the streams of health watchers, after they were told that nothing serves any more.
    ends: Ends,
    load: Load,
}

struct Listening<P> {
    listener: TcpListener,
    address: SocketAddr,
    port: Arc<Port<P>>,
    tasks: Tasks,
    stop: Stop,
}

impl Server {
    /// Opens both ports. Connections are accepted once [`Server::serve`] is called.
    ///
    /// # Errors
    /// If an address cannot be listened on.
    pub async fn bind(config: &Config, environment: Environment) -> Result<Self, Error> {
        let Environment { watched, peers, tracer, batch_bytes_max, http } = environment;
        let (broker, metrics) = (watched.broker.clone(), watched.metrics.clone());
        let (grpc_listener, grpc_address) = listen("api.grpc_listen", config.grpc_listen)?;
        let grpc_tasks = watched.tasks.child();
        let grpc_stop = Stop::of(&grpc_tasks);
        let streams = grpc_stop.drain.child_token();
        let load = Load::default();
        let http = Listening::http(config, watched, http, grpc_address.port(), &load)?;

        let message_bytes_max = batch_bytes_max.saturating_add(MESSAGE_OVERHEAD_BYTES);
        let (reporter, health) = health::service().await;
        let fetched_room = Room::new(config.fetched_bytes_max);
        let context = grpc::Context::new(
            broker.clone(),
            metrics.clone(),
            tracer.clone(),
            config.stream_window_batches,
            fetched_room.clone(),
            streams.clone(),
        );
        let decoded_bytes_max = usize::try_from(message_bytes_max).unwrap_or(usize::MAX);
        let routes = grpc::routes(&context, health, peers.service(), decoded_bytes_max)?;
        let ends = Ends::default();
        let limits = Limits {
            message_bytes_max,
            room: Room::new(config.receiving_bytes_max),
            timeout: config.message_timeout,
            answers: Answers::new(fetched_room.clone(), config.fetched_bytes_max),
        };
        let http_port = http.address.port();
        let calls =
            Calls::new(routes, metrics.clone(), tracer, load.clone(), limits, ends.clone(), http_port);
        let grpc = Grpc::new(config, calls, fetched_room, http_port, metrics.clone());
        Ok(Server {
            grpc: Listening {
                listener: grpc_listener,
                address: grpc_address,
                port: Port::new(grpc, config.connections_max, metrics, load.clone()),
                tasks: grpc_tasks,
                stop: grpc_stop,
            },
            http,
            streams,
            broker,
            reporter,
            ends,
            load,
        })
    }

    /// Where gRPC is served, with the port that the system chose if the configured one is 0.
    #[must_use]
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc.address
    }

    /// Where HTTP is served, with the port that the system chose if the configured one is 0.
    #[must_use]
    pub fn http_addr(&self) -> SocketAddr {
        self.http.address
    }

    /// Begins to accept connections, and to report the broker's health over gRPC.
    #[must_use = "dropping it leaves nobody to drain the server"]
    pub fn serve(self) -> Running {
        let drain = self.grpc.stop.drain.clone();
        let Ends { watchers, peers: end_peers } = self.ends;
        let follow = health::follow(self.reporter, self.broker.health(), drain, watchers);
        self.grpc.tasks.spawn("grpc health", Criticality::BestEffort, follow);
        let leaving = end_when_left(self.broker.health(), self.streams);
        self.grpc.tasks.spawn_until_stopped("leaving", Criticality::BestEffort, leaving);
        let (grpc, http) = (self.grpc.serve("grpc listener"), self.http.serve("http listener"));
        Running { grpc, http, load: self.load, end_peers }
    }
}

impl<P: net::Protocol> Listening<P> {
    fn serve(self, task: &'static str) -> Served {
        let Listening { listener, port, tasks, stop, .. } = self;
        let accept = port.accept(listener, tasks.clone(), stop.clone());
        tasks.spawn(task, Criticality::Critical, accept);
        Served { tasks, stop }
    }
}

impl Listening<Http> {
    /// The HTTP port, which shows what is `watched` and what is `load`ed on it.
    fn http(
        config: &Config,
        watched: Watched,
        open: Option<TcpListener>,
        grpc_port: u16,
        load: &Load,
    ) -> Result<Self, Error> {
        let Watched { broker, metrics, scraper, detailer, tasks } = watched;
        let (setting, address) = ("api.http_listen", config.http_listen);
        let (listener, address) = match open {
            Some(listener) => {
                let chosen = listener.local_addr();
                (listener, chosen.map_err(|source| Error::Listen { setting, address, source })?)
            }
            None => listen(setting, address)?,
        };
        observe(&metrics, &broker, load);
        let sources = http::Sources::new(config, broker, scraper, detailer, grpc_port);
        let site = http::Site::new(config, sources, metrics.clone(), load.clone());
        let http = Http::new(config, site, metrics.clone());
        let port = Port::new(http, config.http_connections_max, metrics, load.clone());
        let tasks = tasks.child();
        let stop = Stop::of(&tasks);
        Ok(Listening { listener, address, port, tasks, stop })
    }
}

/// Both ports, served.
pub struct Running {
    grpc: Served,
    http: Served,
    load: Load,
    end_peers: CancellationToken,
}

struct Served {
    tasks: Tasks,
    stop: Stop,
}

impl Running {
    /// Ends the gRPC port in order: no new connections; clients are told to go away; calls that are in flight
    /// finish; streams get the results of what was read and end with `UNAVAILABLE`. What is left after `deadline` is
    /// closed. Other brokers' streams end last. HTTP goes on, so that probes see the drain. Returns whether all ended by
    /// themselves.
    pub async fn drain(&self, deadline: Duration) -> bool {
        let peers = async {
            self.load.clients_are_served().await;
            self.end_peers.cancel();
        };
        tokio::join!(self.grpc.end(deadline), peers).0
    }

    /// Ends the HTTP port in the same way.
    pub async fn close_http(&self, deadline: Duration) -> bool {
        self.http.end(deadline).await
    }
}

impl Served {
    async fn end(&self, deadline: Duration) -> bool {
        let in_time = self.tasks.stop(deadline).await;
        if !in_time {
            self.stop.kill.cancel();
            self.tasks.stop(KILL_DEADLINE).await;
        }
        in_time
    }
}

impl Stop {
    /// Drains when `tasks` are told to stop.
    fn of(tasks: &Tasks) -> Self {
        Stop { drain: tasks.token().clone(), ..Stop::default() }
    }
}

/// For those who come to the gRPC port with something else.
fn where_http_is(http_port: u16) -> String {
    format!(
        "This is the gRPC port of StreamBus, which takes gRPC over HTTP/2 only. HTTP (/metrics, /health) is on port {http_port}.\n"
    )
}

fn listen(setting: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let listen = || {
        let listener = net::listen(address)?;
        let chosen = listener.local_addr()?;
        Ok((listener, chosen))
    };
    listen().map_err(|source| Error::Listen { setting, address, source })
}

/// Shows the broker's state and load, and its health checks, on every scrape.
fn observe(metrics: &Metrics, broker: &Broker, load: &Load) {
    let (health, load) = (broker.health(), load.clone());
    metrics.observe_broker(Arc::new(move || {
        let status = status_of(&health.borrow().phase);
        Some(BrokerLevels { status, connections: load.connections(), active_requests: load.requests() })
    }));
    let health = broker.health();
    metrics.observe_health(Arc::new(move || Some(checks_of(&health.borrow()))));
}

/// Ends the streams of clients once the broker does not belong to its cluster any more. New ones are refused.
async fn end_when_left(mut health: watch::Receiver<Health>, streams: CancellationToken) {
    if health.wait_for(|health| matches!(health.phase, Phase::Left { .. })).await.is_ok() {
        streams.cancel();
    }
}

fn status_of(phase: &Phase) -> Status {
    match phase {
        Phase::Starting { .. } => Status::Starting,
        Phase::Running => Status::Running,
        Phase::Draining => Status::Stopping,
        Phase::Stopped | Phase::Left { .. } => Status::Stopped,
    }
}

fn checks_of(health: &Health) -> Vec<HealthCheck> {
    [("broker", &health.broker), ("storage", &health.storage), ("cluster", &health.cluster)]
        .into_iter()
        .map(|(check, result)| HealthCheck { check, ok: *result == Check::Ok })
        .collect()
}
