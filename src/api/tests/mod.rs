//! Both ports over real sockets.

mod connections;
mod consuming;
mod draining;
mod endpoints;
mod groups;
mod producing;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::http::HeaderValue;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::util::BoxCloneService;

use super::*;
use crate::broker::groups::{Config as GroupsConfig, Groups};
use crate::broker::{self, Broker, Parts, TopicChanges};
use crate::clock::Clock;
use crate::cluster::coordinator::Coordinators;
use crate::cluster::identity::Identity;
use crate::cluster::{self, Cluster};
use crate::record::{BatchBuilder, Codec, Draft};
use crate::storage::{self, Store};
use crate::telemetry::Telemetry;
use crate::{metadata, partition, raft};

type Unwatched = BoxCloneService<Request<Body>, Response<Incoming>, hyper::Error>;

const PATIENCE: Duration = Duration::from_secs(10);
const BATCH_BYTES_MAX: u64 = 256 * 1024;

/// A served API over a broker with the topic `orders` of two partitions.
struct Api {
    broker: Broker,
    coordinators: Coordinators,
    telemetry: Telemetry,
    running: Running,
    load: Load,
    grpc: SocketAddr,
    http: SocketAddr,
    _data: TempDir,
}

impl Api {
    async fn start() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let data = tempfile::tempdir().unwrap();
        let telemetry = Telemetry::for_tests();
        let tasks = Tasks::new();
        let identity = Identity::found(data.path()).unwrap();
        let hub = Hub::new(identity.clone(), telemetry.metrics().clone(), telemetry.tracer().clone(), &tasks);
        let (broker, coordinators) = open_broker(&data, identity, hub.clone(), &telemetry, &tasks).await;
        broker.create_topic("orders", 2, 1, TopicChanges::default(), false).await.unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config { grpc_listen: any, http_listen: any, ..config };
        let scraped = telemetry.clone();
        let detailed = telemetry.clone();
        let watched = Watched {
            broker: broker.clone(),
            metrics: telemetry.metrics().clone(),
            scraper: Arc::new(move |accept, encoding| scraped.scrape(Some(accept), Some(encoding))),
            detailer: Arc::new(move |families, partitions, accept, encoding| {
                detailed.detail(families, partitions, Some(accept), Some(encoding))
            }),
            tasks,
        };
        let environment = Environment {
            watched,
            peers: hub,
            tracer: telemetry.tracer().clone(),
            batch_bytes_max: BATCH_BYTES_MAX,
            http: None,
        };
        let server = Server::bind(&config, environment).await.unwrap();
        let (grpc, http) = (server.grpc_addr(), server.http_addr());
        let load = server.load.clone();
        Api { broker, coordinators, telemetry, running: server.serve(), load, grpc, http, _data: data }
    }

    fn enter(&self, phase: Phase) {
        self.broker.lifecycle().enter(phase);
    }

    /// The value of the series that begins with `series`, zero if there is none.
    fn metric(&self, series: &str) -> f64 {
        let scrape = self.telemetry.scrape(None, None).expect("metrics are on");
        let text = std::str::from_utf8(&scrape.body).unwrap();
        let line = text.lines().find(|line| line.starts_with(series));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    fn errors(&self, kind: &str) -> f64 {
        self.metric(&format!("streambus_network_errors_total{{kind=\"{kind}\"}}"))
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap().connect().await.unwrap()
    }

    /// A connection whose calls have this `grpc-timeout`. Only the server watches it; a [`Channel`] would as well.
    async fn with_deadline(&self, grpc_timeout: &'static str) -> Unwatched {
        let stream = TokioIo::new(TcpStream::connect(self.grpc).await.unwrap());
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
        let (requests, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let broker = self.grpc;
        BoxCloneService::new(tower::service_fn(move |mut request: Request<Body>| {
            let mut requests = requests.clone();
            request.headers_mut().insert("grpc-timeout", HeaderValue::from_static(grpc_timeout));
            *request.uri_mut() = format!("http://{broker}{}", request.uri().path()).parse().unwrap();
            async move { requests.send_request(request).await }
        }))
    }

    /// The status line's code and the body of the answer to a request without body.
    async fn http(&self, method: &str, path: &str) -> (u16, String) {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        let answer = String::from_utf8(exchange(self.http, request.as_bytes()).await).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn get_json(&self, path: &str) -> (u16, serde_json::Value) {
        let (status, body) = self.http("GET", path).await;
        (status, serde_json::from_str(&body).unwrap())
    }
}

async fn open_broker(
    data: &TempDir,
    identity: Identity,
    hub: Hub,
    telemetry: &Telemetry,
    tasks: &Tasks,
) -> (Broker, Coordinators) {
    let clock = Clock::system();
    let metrics = telemetry.metrics().clone();
    let storage =
        storage::Config { data_dir: data.path().to_owned(), reserve_bytes: 0, ..Default::default() };
    let broker = Broker::new(Parts {
        config: Default::default(),
        storage: storage.clone(),
        metrics: metrics.clone(),
        tracer: telemetry.tracer().clone(),
        control: telemetry.control().clone(),
        clock: clock.clone(),
    });
    let store = Store::open(&storage, None).unwrap();
    let raft = raft::Env::new(store.clone(), tasks.clone(), Default::default(), Arc::new(hub.clone()));
    let partitions = partition::Env::new(store, raft, clock.clone(), metrics, Default::default());
    let registration = metadata::Broker {
        id: identity.broker,
        grpc_address: "localhost:1".to_owned(),
        http_address: "localhost:2".to_owned(),
        version: "1".to_owned(),
        started: clock.now(),
        rack: String::new(),
        draining: false,
        replaced_by: None,
        storage_sync: String::new(),
    };
    let open = cluster::Open {
        identity,
        broker: registration,
        config: Default::default(),
        coordinator: &Default::default(),
        hub,
        env: partitions.clone(),
        waiting: watch::Sender::new(""),
    };
    let cluster = Cluster::open(open, tasks).await.unwrap();
    let coordinators = cluster.coordinators().clone();
    let metrics = telemetry.metrics().clone();
    let config = GroupsConfig { retention_interval: Duration::from_millis(50), ..Default::default() };
    let groups = Groups::new(config, coordinators.clone(), metrics, tasks.child());
    broker.open(broker::Open { cluster, partitions, groups });
    (broker, coordinators)
}

/// Sends `bytes` and reads until the server closes.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    read_to_close(&mut stream).await
}

async fn read_to_close(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    // A reset after the answer is a close, too.
    let _ = read.expect("the server closes the connection");
    answer
}

/// A batch with one record of this value.
fn batch(value: &[u8]) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(value.len() + 64);
    builder.push(&Draft {
        key: None,
        value: Some(value),
        headers: std::iter::empty::<(&str, &[u8])>(),
        timestamp_ms: 0,
    });
    builder.finish(Codec::None).unwrap()
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}
