//! The HTTP endpoints: metrics, of the broker and of each partition, and health, for scrapers, probes and people.

mod detailed;
mod health;
mod metrics;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt as _;

use super::load::Load;
use super::{Config, Detailer, Scraper};
use crate::broker::{Broker, Health};
use crate::telemetry::Metrics;
use crate::telemetry::{Outcome, Protocol};

/// The endpoints.
#[derive(Clone)]
pub(super) struct Site {
    router: Router,
    metrics: Metrics,
    load: Load,
    request_timeout: Duration,
}

/// What the endpoints read.
pub(super) struct Sources {
    broker: Broker,
    health: watch::Receiver<Health>,
    scraper: Scraper,
    detailer: Detailer,
    scrapes: Arc<Semaphore>,
    grpc_port: u16,
}

impl Sources {
    pub(super) fn new(
        config: &Config,
        broker: Broker,
        scraper: Scraper,
        detailer: Detailer,
        grpc_port: u16,
    ) -> Self {
        let scrapes = Arc::new(Semaphore::new(config.concurrent_scrapes_max));
        Sources { health: broker.health(), broker, scraper, detailer, scrapes, grpc_port }
    }
}

type Shared = State<Arc<Sources>>;

impl Site {
    pub(super) fn new(config: &Config, sources: Sources, metrics: Metrics, load: Load) -> Self {
        let router = Router::new()
            .route("/", get(index))
            .route("/metrics", get(metrics::scrape))
            .route("/metrics/detailed", get(detailed::scrape))
            .route("/health", get(health::overall))
            .route("/health/live", get(health::live))
            .route("/health/ready", get(health::ready))
            .route("/health/startup", get(health::startup))
            .fallback(unknown_path)
            .method_not_allowed_fallback(wrong_method)
            .with_state(Arc::new(sources));
        Site { router, metrics, load, request_timeout: config.http_request_timeout }
    }

    /// Answers one request.
    pub(super) async fn answer(self, request: hyper::Request<Incoming>) -> Response {
        let _open = self.load.request();
        let answer = tokio::time::timeout(self.request_timeout, self.router.oneshot(request));
        let response = match answer.await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => {
                answer_json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": "the answer took too long" }))
            }
        };
        self.metrics.network.request_ended(Protocol::Http, outcome(response.status()));
        response
    }
}

fn outcome(status: StatusCode) -> Outcome {
    if status.is_server_error() {
        Outcome::ServerError
    } else if status.is_client_error() {
        Outcome::ClientError
    } else {
        Outcome::Ok
    }
}

async fn index(State(sources): Shared) -> Response {
    let page = format!(
        "StreamBus {}\n\n\
         /metrics          metrics for Prometheus\n\
         /metrics/detailed metrics of each partition: ?family=…&topic=…\n\
         /health           all health checks\n\
         /health/live      the process runs\n\
         /health/ready     the broker takes traffic\n\
         /health/startup   the broker has started\n\n\
         Add ?verbose to a health check for details. gRPC is on port {}.\n",
        env!("CARGO_PKG_VERSION"),
        sources.grpc_port
    );
    page.into_response()
}

async fn unknown_path(uri: Uri) -> Response {
    let error = format!("there is nothing at {}: / lists what there is", uri.path());
    answer_json(StatusCode::NOT_FOUND, &json!({ "error": error }))
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let error = format!("{} does not answer {method}: use GET", uri.path());
    answer_json(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": error }))
}

/// Answers that describe the moment must not be kept by anyone.
fn answer_json(status: StatusCode, body: &Value) -> Response {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
    (status, [(CONTENT_TYPE, JSON), (CACHE_CONTROL, NO_STORE)], body.to_string()).into_response()
}
