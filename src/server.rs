//! One broker process: start, run, drain. Everything that is composed is composed here.

mod search;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::broker::{self, Broker, Phase};
use crate::clock::Clock;
use crate::cluster::peers::Hub;
use crate::cluster::{self, Cluster, control, identity, join};
use crate::config::Config;
use crate::metadata::BrokerId;
use crate::storage::{self, Store, SyncObservation};
use crate::task::{Criticality, Tasks};
use crate::telemetry::{self, Metrics, Telemetry};
use crate::{api, metadata, partition, raft};

/// How long partitions, store and exporters may take to close, each.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// How long log lines may take to be written when a second signal ends the process.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How often a broker that stops looks for leaderships that came meanwhile.
const HAND_OVER_AGAIN: Duration = Duration::from_millis(50);

/// Why a broker does not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker's identity cannot be told.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The broker does not become a member of a cluster.
    #[error(transparent)]
    Join(#[from] join::Error),
    /// Telemetry cannot be set up.
    #[error("telemetry cannot be set up")]
    Telemetry(#[from] telemetry::Error),
    /// A port cannot be opened.
    #[error(transparent)]
    Api(#[from] api::Error),
    /// The data cannot be opened.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The metadata cannot be opened.
    #[error("the cluster's metadata cannot be opened")]
    Cluster(#[from] control::Error),
    /// A task that the broker cannot do without has panicked; the log says which.
    #[error("a critical task failed; see the log")]
    TaskFailed,
    /// The disk or the engine failed at a write. What has not been acknowledged may be lost, what has been is there at the
    /// next start, and nothing can be written before it.
    #[error("the store failed, and works again only after a start, which looks at what is on the disk")]
    StoreFailed(#[source] storage::Error),
    /// A signal handler cannot be set up.
    #[error("signals cannot be watched")]
    Signals(#[source] std::io::Error),
}

/// A running broker.
pub struct Server {
    identity: identity::Identity,
    telemetry: Telemetry,
    broker: Broker,
    api: api::Running,
    store: Store,
    tasks: Tasks,
    ports: Tasks,
    grpc_addr: SocketAddr,
    http_addr: SocketAddr,
    /// Where clients reach the gRPC port.
    advertised: String,
    drain_timeout: Duration,
}

impl Server {
    /// Starts a broker. Its ports are open from the beginning; it serves when this returns.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start(config: Config) -> Result<Self, Error> {
        let data_dir = config.storage.data_dir.clone();
        let (identity, http) = search::identity(&config).await?;
        let telemetry = Telemetry::install(
            &config.telemetry,
            &telemetry::Identity {
                cluster_id: identity.cluster.to_string(),
                broker_id: identity.broker.to_string(),
            },
        )?;
        let metrics = telemetry.metrics().clone();
        metrics.observe_runtime(&tokio::runtime::Handle::current());
        let (tasks, clock) = (Tasks::new(), Clock::system());
        // The ports outlive the rest: HTTP says how the drain goes.
        let ports = Tasks::new();
        let broker = new_broker(&config, &telemetry, clock.clone());
        let hub = Hub::new(identity.clone(), metrics.clone(), telemetry.tracer().clone(), &tasks);
        let api = api::Server::bind(
            &api::fit_to_open_files(&config.api),
            api::Environment {
                watched: watched(&broker, &telemetry, &ports),
                peers: hub.clone(),
                tracer: telemetry.tracer().clone(),
                batch_bytes_max: config.broker.batch_bytes_max,
                http,
            },
        )
        .await?;
        let (grpc_addr, http_addr) = (api.grpc_addr(), api.http_addr());
        info!(name: "broker.starting", grpc = %grpc_addr, http = %http_addr, data_dir = %config.storage.data_dir.display(), "starting");
        let api = api.serve();

        let storage_config = config.storage.clone();
        let observer = observe_syncs(metrics.clone());
        let store = blocking(move || Store::open(&storage_config, Some(observer))).await?;
        {
            let (identity, store) = (identity.clone(), store.clone());
            blocking(move || identity.establish(&data_dir, &store)).await?;
        }
        let (waiting, waiting_for) = watch::channel("the metadata");
        let raft = raft::Env::new(store.clone(), tasks.clone(), config.raft.clone(), Arc::new(hub.clone()));
        let partitions = partition::Env::new(
            store.clone(),
            raft,
            clock.clone(),
            metrics.clone(),
            config.partition.clone(),
        );
        let open = cluster::Open {
            identity: identity.clone(),
            broker: describe(&config, identity.broker, grpc_addr, http_addr, clock.now()),
            config: config.cluster.clone(),
            coordinator: &config.coordinator,
            hub: hub.clone(),
            env: partitions.clone(),
            waiting,
        };
        let cluster = tokio::select! {
            cluster = Cluster::open(open, &tasks) => cluster?,
            failure = store.failed() => return Err(Error::StoreFailed(failure)),
            () = tasks.failed() => return Err(Error::TaskFailed),
            never = broker.tell_waiting(|| format!("{}{}", *waiting_for.borrow(), hub.and_away())) => match never {},
        };
        let coordinators = cluster.coordinators().clone();
        let groups =
            broker::groups::Groups::new(config.groups.clone(), coordinators, metrics.clone(), tasks.child());
        broker.open(broker::Open { cluster, partitions, groups });
        tasks.spawn_until_stopped("health", Criticality::Critical, broker.clone().watch_health());
        tasks.spawn_until_stopped("groups", Criticality::Critical, broker.clone().keep_groups());
        tasks.spawn_until_stopped("overrides", Criticality::Critical, broker.clone().keep_overrides());
        let advertised = config.server.grpc_advertised(grpc_addr);
        let drain_timeout = config.server.drain_timeout;
        Ok(Server {
            identity,
            telemetry,
            broker,
            api,
            store,
            tasks,
            ports,
            grpc_addr,
            http_addr,
            advertised,
            drain_timeout,
        })
    }

    /// Where gRPC is served.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where `/metrics` and `/health` are served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Tells who starts the broker that it is up, and where.
    fn announce(&self, took: Duration) {
        let Server { identity, grpc_addr, http_addr, advertised, .. } = self;
        info!(
            name: "broker.ready",
            target: telemetry::NOTICE,
            grpc = %grpc_addr,
            http = %http_addr,
            %advertised,
            cluster_id = %identity.cluster,
            broker_id = identity.broker.0,
            took_ms = took.as_millis() as u64,
            "ready: gRPC on {grpc_addr}, which clients reach at {advertised}; /metrics and /health on http://{http_addr}"
        );
    }

    /// Completes when the broker cannot do its work any more, with the reason: a task has panicked that it cannot do
    /// without, or its store failed. Who supervises the process starts it again.
    pub async fn failed(&self) -> Error {
        tokio::select! {
            () = self.tasks.failed() => Error::TaskFailed,
            () = self.ports.failed() => Error::TaskFailed,
            failure = self.store.failed() => Error::StoreFailed(failure),
        }
    }

    /// Stops in order: not ready, the dead letter under way is noted, leaderships go, calls finish, partitions close, the
    /// store closes, telemetry is flushed.
    pub async fn stop(self) {
        let Server { telemetry, broker, api, store, tasks, drain_timeout, .. } = self;
        info!(name: "broker.draining", "draining");
        broker.lifecycle().enter(Phase::Draining);
        broker.end_burials(CLOSE_DEADLINE).await;
        broker.hand_over().await;
        let in_time = tokio::select! {
            in_time = api.drain(drain_timeout) => in_time,
            never = hand_over_what_comes(&broker) => match never {},
        };
        if !in_time {
            warn!(name: "broker.drain_cut", "calls that did not finish in time were cut");
        }
        broker.close(CLOSE_DEADLINE).await;
        broker.lifecycle().enter(Phase::Stopped);
        if !tasks.stop(CLOSE_DEADLINE).await {
            warn!("background tasks did not end in time");
        }
        match tokio::task::spawn_blocking(move || store.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                warn!(error = %failure, "the store did not close cleanly; nothing acknowledged is lost")
            }
            Err(_) => warn!("closing the store panicked"),
        }
        info!(name: "broker.stopped", "stopped");
        api.close_http(CLOSE_DEADLINE).await;
        telemetry.shutdown(CLOSE_DEADLINE).await;
    }
}

/// Hands on leaderships that others hand to this broker, or elect it to, while it stops. They do not know that it does.
async fn hand_over_what_comes(broker: &Broker) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(HAND_OVER_AGAIN).await;
        broker.hand_over().await;
    }
}

/// Runs a broker until SIGTERM or SIGINT, or until it cannot go on, and drains it then. A second signal ends the process at once. `warnings` of
/// the configuration are logged once there is a log.
///
/// # Errors
/// See [`Error`].
pub async fn run(config: Config, warnings: &[String]) -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let started = Instant::now();
    let server = tokio::select! {
        server = Server::start(config) => server?,
        _ = terminate.recv() => {
            stopped_early();
            return Ok(());
        }
        _ = interrupt.recv() => {
            stopped_early();
            return Ok(());
        }
    };
    server.announce(started.elapsed());
    for warning in warnings {
        // Also if the filter is what has no effect.
        warn!(name: "config.no_effect", target: telemetry::NOTICE, "{warning}");
    }
    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        failure = server.failed() => Some(failure),
    };
    tokio::select! {
        () = server.stop() => {}
        _ = terminate.recv() => end_at_once(),
        _ = interrupt.recv() => end_at_once(),
    }
    failed.map_or(Ok(()), Err)
}

fn end_at_once() -> ! {
    telemetry::finish_log(LAST_WORDS);
    std::process::exit(1)
}

/// What the cluster should know of this broker.
fn describe(
    config: &Config,
    id: BrokerId,
    grpc: SocketAddr,
    http: SocketAddr,
    started: crate::clock::Timestamp,
) -> metadata::Broker {
    metadata::Broker {
        id,
        grpc_address: config.server.grpc_advertised(grpc),
        http_address: config.server.http_advertised(http),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started,
        rack: config.cluster.rack.clone(),
        draining: false,
        replaced_by: None,
        storage_sync: config.storage.sync.name().to_owned(),
    }
}

fn new_broker(config: &Config, telemetry: &Telemetry, clock: Clock) -> Broker {
    Broker::new(broker::Parts {
        config: config.broker.clone(),
        storage: config.storage.clone(),
        metrics: telemetry.metrics().clone(),
        tracer: telemetry.tracer().clone(),
        control: telemetry.control().clone(),
        clock,
    })
}

/// What the HTTP port shows.
fn watched(broker: &Broker, telemetry: &Telemetry, tasks: &Tasks) -> api::Watched {
    api::Watched {
        broker: broker.clone(),
        metrics: telemetry.metrics().clone(),
        scraper: scraper(telemetry.clone()),
        detailer: detailer(telemetry.clone()),
        tasks: tasks.clone(),
    }
}

fn stopped_early() {
    info!(name: "broker.stopped", "stopped by a signal while starting");
}

fn scraper(telemetry: Telemetry) -> api::Scraper {
    Arc::new(move |accept, accept_encoding| telemetry.scrape(Some(accept), Some(accept_encoding)))
}

fn detailer(telemetry: Telemetry) -> api::Detailer {
    Arc::new(move |families, partitions, accept, accept_encoding| {
        telemetry.detail(families, partitions, Some(accept), Some(accept_encoding))
    })
}

/// Runs disk work off the runtime.
async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Error>
where
    T: Send + 'static,
    E: Send + 'static,
    Error: From<E>,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Error::TaskFailed),
    }
}

fn observe_syncs(metrics: Metrics) -> storage::SyncObserver {
    Arc::new(move |sync: SyncObservation| {
        metrics.storage.synced(sync.duration);
        metrics.storage.committed(usize::try_from(sync.commits).unwrap_or(usize::MAX), sync.bytes);
    })
}
