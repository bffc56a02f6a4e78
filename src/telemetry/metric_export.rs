//! Sends metrics to the collector.
//!
//! The exporter of `opentelemetry-otlp` takes only what the SDK collected; the histograms of [`super::histograms`] have to
//! go into the same request.

use std::error::Error as _;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use tokio::time::sleep;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Extensions, Request, Status};

use super::config::{Compression, Error};
use super::route::Route;

/// How long to wait before each further attempt. One that is not made is made up for by the next export: all sums are
/// cumulative.
const RETRIES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1600)];

/// The way of metrics to the collector.
#[derive(Debug)]
pub(super) struct MetricExporter {
    client: MetricsServiceClient<Channel>,
    metadata: MetadataMap,
}

impl MetricExporter {
    /// Connects when it is first used. Must be called in the runtime that will use it. Each attempt of an export ends
    /// after the route's timeout.
    pub(super) fn new(route: &Route) -> Result<Self, Error> {
        let client = MetricsServiceClient::new(route.channel()?);
        let client = match route.compression {
            Compression::None => client,
            Compression::Gzip => {
                client.send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip)
            }
        };
        Ok(MetricExporter { client, metadata: route.metadata() })
    }

    /// Sends what was collected, and `more` as if the SDK had collected it too.
    pub(super) async fn export(&self, collected: &ResourceMetrics, more: &[Metric]) -> OTelSdkResult {
        let mut delays = RETRIES.into_iter();
        loop {
            let status = match self.attempt(collected, more).await {
                Ok(()) => return Ok(()),
                Err(status) => status,
            };
            match delays.next() {
                Some(delay) if is_transient(status.code()) => sleep(delay).await,
                _ => return Err(failure(&status)),
            }
        }
    }

    async fn attempt(&self, collected: &ResourceMetrics, more: &[Metric]) -> Result<(), Status> {
        let request =
            Request::from_parts(self.metadata.clone(), Extensions::default(), request(collected, more));
        self.client.clone().export(request).await.map(drop)
    }
}

/// All instruments are of one scope, and so is `more`.
fn request(collected: &ResourceMetrics, more: &[Metric]) -> ExportMetricsServiceRequest {
    let mut request = ExportMetricsServiceRequest::from(collected);
    let scopes = request.resource_metrics.iter_mut().flat_map(|resource| &mut resource.scope_metrics);
    if let Some(scope) = scopes.into_iter().next() {
        scope.metrics.extend_from_slice(more);
    }
    request
}

/// Whether the OTLP specification lets the client try again. A collector that is overloaded is not asked again before
/// the next export.
fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The message of `status` is left out: a collector may repeat credentials in it.
fn failure(status: &Status) -> OTelSdkError {
    let mut text = format!("the collector answered {:?}", status.code());
    let mut source = status.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    OTelSdkError::InternalFailure(text)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
    use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
        MetricsService, MetricsServiceServer,
    };
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Response, transport::Server};

    use super::*;
    use crate::telemetry::instruments::lock;
    use crate::telemetry::{Config, Signal};

    /// Answers with these codes, then takes everything; keeps the header `key` of each request.
    #[derive(Clone, Default)]
    struct Moody(Arc<Mutex<(VecDeque<Code>, Vec<String>)>>);

    #[tonic::async_trait]
    impl MetricsService for Moody {
        async fn export(
            &self,
            request: Request<ExportMetricsServiceRequest>,
        ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
            let mut state = lock(&self.0);
            let key = request.metadata().get("key").map(|key| key.to_str().expect("text").to_owned());
            state.1.push(key.unwrap_or_default());
            match state.0.pop_front() {
                Some(code) => Err(Status::new(code, "secret")),
                None => Ok(Response::new(Default::default())),
            }
        }
    }

    /// What an export says to a collector that first answers with `codes`, and how often that was asked.
    async fn export(codes: &[Code]) -> (OTelSdkResult, usize) {
        let moody = Moody::default();
        lock(&moody.0).0.extend(codes);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let service = MetricsServiceServer::new(moody.clone());
        tokio::spawn(
            Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let text = format!("otlp.endpoint = '{endpoint}'\notlp.headers = {{ key = 'value' }}");
        let config: Config = toml::from_str(&text).expect("valid configuration");
        let route = config.route(Signal::Metrics).expect("metrics are exported");
        let exporter = MetricExporter::new(&route).expect("an endpoint");
        let result = exporter.export(&ResourceMetrics::default(), &[]).await;
        let asked = lock(&moody.0).1.clone();
        assert!(asked.iter().all(|key| key == "value"), "{asked:?}");
        (result, asked.len())
    }

    #[tokio::test]
    async fn a_collector_that_is_away_for_a_moment_is_asked_again() {
        let (result, asked) = export(&[Code::Unavailable, Code::Aborted]).await;
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(asked, 3);
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_its_message_is_not_repeated() {
        let (result, asked) = export(&[Code::InvalidArgument]).await;
        let error = result.expect_err("refused").to_string();
        assert!(error.contains("InvalidArgument") && !error.contains("secret"), "{error}");
        assert_eq!(asked, 1);
    }
}
