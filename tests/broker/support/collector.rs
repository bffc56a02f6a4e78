//! A collector that keeps what it is sent, and can be told to misbehave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::transport::ServerTlsConfig;
use tonic::{Request, Response, Status};

use super::view::text;
use super::{PATIENCE, View, eventually};

/// How a signal's service behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// Takes what comes.
    #[default]
    Taking,
    /// Refuses it for good.
    Refusing,
    /// Never answers.
    Hanging,
}

#[derive(Debug, Default)]
struct Kept {
    spans: Vec<(Resource, Span)>,
    logs: Vec<(Resource, LogRecord)>,
    metrics: Vec<ExportMetricsServiceRequest>,
    traces_mood: Mood,
    metrics_mood: Mood,
    refused: HashMap<&'static str, u64>,
    /// How the newest export of each signal was compressed.
    encodings: HashMap<&'static str, String>,
}

/// A running collector. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Collector {
    kept: Arc<Mutex<Kept>>,
    endpoint: String,
}

impl Collector {
    /// Starts one on a port that the system chooses.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        Collector::serve(listener, endpoint, tonic::transport::Server::builder())
    }

    /// Starts one that speaks TLS, as `localhost`.
    pub async fn start_with(tls: ServerTlsConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server =
            tonic::transport::Server::builder().tls_config(tls).expect("certificates that can be used");
        Collector::serve(listener, format!("https://localhost:{port}"), server)
    }

    fn serve(listener: TcpListener, endpoint: String, mut server: tonic::transport::Server) -> Self {
        let collector = Collector { kept: Arc::default(), endpoint };
        let server = server
            .add_service(TraceServiceServer::new(collector.clone()).accept_compressed(Gzip))
            .add_service(MetricsServiceServer::new(collector.clone()).accept_compressed(Gzip))
            .add_service(LogsServiceServer::new(collector.clone()).accept_compressed(Gzip))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        collector
    }

    /// Where it is, for `telemetry.otlp.endpoint`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no panic while held")
    }

    /// How traces are treated from now on.
    pub fn set_traces(&self, mood: Mood) {
        self.kept().traces_mood = mood;
    }

    /// How metrics are treated from now on.
    pub fn set_metrics(&self, mood: Mood) {
        self.kept().metrics_mood = mood;
    }

    /// Exports of `signal` (`traces` or `metrics`) that were refused.
    pub fn refused(&self, signal: &str) -> u64 {
        self.kept().refused.get(signal).copied().unwrap_or(0)
    }

    /// How the newest export of `signal` was compressed; none if there was no export.
    pub fn encoding(&self, signal: &str) -> Option<String> {
        self.kept().encodings.get(signal).cloned()
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        self.kept().spans.iter().map(|(_, span)| span.clone()).collect()
    }

    /// Every span of a trace so far, with the name of the service that sent it.
    pub fn trace(&self, trace_id: &[u8]) -> Vec<(String, Span)> {
        let kept = self.kept();
        let of_trace = kept.spans.iter().filter(|(_, span)| span.trace_id == trace_id);
        of_trace.map(|(resource, span)| (service(resource), span.clone())).collect()
    }

    /// Every log record so far.
    pub fn logs(&self) -> Vec<LogRecord> {
        self.kept().logs.iter().map(|(_, record)| record.clone()).collect()
    }

    /// What identifies whoever sent the first span.
    pub fn resource(&self) -> Option<HashMap<String, String>> {
        let kept = self.kept();
        let (resource, _) = kept.spans.first()?;
        Some(resource.attributes.iter().map(|a| (a.key.clone(), text(a.value.as_ref()))).collect())
    }

    /// Number of metric exports so far.
    pub fn metric_exports(&self) -> usize {
        self.kept().metrics.len()
    }

    /// The metric export of this number, from 0.
    pub fn metrics(&self, number: usize) -> Option<View> {
        self.kept().metrics.get(number).map(View::otlp)
    }

    /// The newest metric export.
    pub fn newest_metrics(&self) -> Option<View> {
        self.kept().metrics.last().map(View::otlp)
    }

    /// Metrics that were certainly collected after this was called.
    pub async fn fresh_metrics(&self) -> View {
        // The next export may have been collected before; the one after it was not.
        let seen = self.metric_exports();
        eventually(PATIENCE, "two more exports of metrics", async || self.metrics(seen + 1)).await
    }
}

fn service(resource: &Resource) -> String {
    let name = resource.attributes.iter().find(|attribute| attribute.key == "service.name");
    name.map(|attribute| text(attribute.value.as_ref())).unwrap_or_default()
}

impl Collector {
    fn note_encoding<T>(&self, signal: &'static str, request: &Request<T>) {
        let encoding = request.metadata().get("grpc-encoding").and_then(|encoding| encoding.to_str().ok());
        self.kept().encodings.insert(signal, encoding.unwrap_or("identity").to_owned());
    }

    async fn treat(
        &self,
        signal: &'static str,
        mood: impl Fn(&Kept) -> Mood,
        keep: impl FnOnce(&mut Kept),
    ) -> Result<(), Status> {
        let mood = mood(&self.kept());
        match mood {
            Mood::Taking => keep(&mut self.kept()),
            Mood::Refusing => {
                *self.kept().refused.entry(signal).or_default() += 1;
                return Err(Status::invalid_argument("refused by the test"));
            }
            Mood::Hanging => std::future::pending().await,
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.note_encoding("traces", &request);
        let keep = |kept: &mut Kept| {
            for resource in request.into_inner().resource_spans {
                let from = resource.resource.unwrap_or_default();
                let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                kept.spans.extend(spans.map(|span| (from.clone(), span)));
            }
        };
        self.treat("traces", |kept| kept.traces_mood, keep).await?;
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.note_encoding("metrics", &request);
        let keep = |kept: &mut Kept| kept.metrics.push(request.into_inner());
        self.treat("metrics", |kept| kept.metrics_mood, keep).await?;
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.note_encoding("logs", &request);
        let keep = |kept: &mut Kept| {
            for resource in request.into_inner().resource_logs {
                let from = resource.resource.unwrap_or_default();
                let records = resource.scope_logs.into_iter().flat_map(|scope| scope.log_records);
                kept.logs.extend(records.map(|record| (from.clone(), record)));
            }
        };
        self.treat("logs", |_| Mood::Taking, keep).await?;
        Ok(Response::new(Default::default()))
    }
}
