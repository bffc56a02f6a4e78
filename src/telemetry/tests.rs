//! Telemetry as a whole: what is recorded arrives, on `/metrics` and at a collector.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};
use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider as _;
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
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{ManualReader, SdkMeterProvider};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status as RpcStatus};
use tracing::Dispatch;
use tracing_subscriber::layer::SubscriberExt as _;

use super::catalog::{self, ROWS};
use super::instruments::{Collection, lock};
use super::*;

const PRODUCE: &str = "streambus.v1.ProduceService/Produce";

fn sampled_by_the_caller() -> HeaderMap {
    let header = HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    HeaderMap::from_iter([(http::HeaderName::from_static("traceparent"), header)])
}

pub(super) fn scrape(telemetry: &Telemetry, accept: Option<&str>) -> String {
    String::from_utf8(telemetry.scrape(accept, None).expect("metrics are on").body.to_vec()).expect("utf-8")
}

pub(super) fn value(text: &str, series: &str) -> Option<f64> {
    let line =
        text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line[series.len()..].trim().parse().ok()
}

/// Registers every observer and calls every verb once.
fn move_everything(telemetry: &Telemetry) {
    let metrics = telemetry.metrics();
    metrics.observe_broker(Arc::new(|| {
        Some(BrokerLevels { status: Status::Running, connections: 3, active_requests: 2 })
    }));
    metrics.observe_health(Arc::new(|| Some(vec![HealthCheck { check: "storage", ok: true }])));
    metrics.observe_topics(Arc::new(|| Some(TopicLevels { topics: 1, partitions: 4, replicas: 4 })));
    let peer = PeerLevels { peer: "2".to_owned(), connected: true, lag: 3 };
    metrics.observe_cluster(Arc::new(move || {
        Some(ClusterLevels {
            brokers: 2,
            leader: true,
            peers: vec![peer.clone()],
            ..ClusterLevels::default()
        })
    }));
    metrics.observe_raft(Arc::new(|| {
        Some(RaftLevels { term: 7, commit_index: 42, leading: 5, following: 0, leaderless: 0 })
    }));
    metrics.observe_storage(Arc::new(|| {
        Some(StorageLevels {
            used_bytes: 100,
            available_bytes: 900,
            reserve_bytes: 10,
            writable: true,
            segments: 6,
            compactions: 2,
            queue_bytes: 0,
        })
    }));
    metrics.observe_produce_buffer(Arc::new(|| Some(BufferLevels { used_bytes: 1, limit_bytes: 64 })));
    metrics.observe_consume(Arc::new(|| Some(ConsumeLevels { subscriptions: 1, fetches_waiting: 1 })));
    metrics.observe_groups(Arc::new(|| {
        let group: Arc<str> = "billing".into();
        let lag = GroupLag {
            group: group.clone(),
            topic: "orders".into(),
            partition: 3,
            messages: 12,
            seconds: 1.5,
        };
        Some(GroupLevels { groups: 2, members: 3, leased: vec![(group, 4)], lags: vec![lag] })
    }));
    metrics.exporting.lines_dropped.set(Arc::new(|| Some(6)));
    metrics.observe_runtime(&tokio::runtime::Handle::current());
    let topic = metrics.topic("orders");
    metrics.produce.accepted(&topic, 10, 1000);
    metrics.produce.stored(&topic, 10, 1000);
    metrics.produce.grouped(4);
    metrics
        .produce
        .completed(&ProducePhases { append: Duration::from_millis(2), ..Default::default() }, None);
    metrics.produce.rejected("busy");
    metrics.consume.delivered(&topic, 5, 500);
    metrics.consume.completed(&FetchPhases { wait: Duration::from_secs(9), ..Default::default() }, None);
    metrics.consume.rejected("offset_out_of_range");
    metrics.storage.committed(3, 4096);
    metrics.storage.synced(Duration::from_micros(200));
    metrics.storage.failed(StorageFailure::Corrupt);
    metrics.storage.trimmed(&topic, 2, 200);
    metrics.groups.committed(CommitOutcome::Fenced);
    metrics.groups.commit_answered(Duration::from_millis(2), None);
    metrics.groups.rebalanced(RebalanceCause::SessionTimeout);
    metrics.groups.settled(Duration::from_secs(2));
    let group = metrics.group("billing");
    group.delivered(Duration::from_millis(3));
    group.missed("orders", 1);
    group.redelivered("orders", 2);
    group.dead_lettered("orders", 3);
    group.acknowledgements(AckKind::Accept, 4);
    metrics.network.received(11);
    metrics.network.sent(22);
    metrics.network.connected();
    metrics.network.failed(NetworkError::HttpOnGrpcPort);
    metrics.network.request_ended(Protocol::Grpc, Outcome::of(Code::NotFound));
    metrics.network.call_ended(PRODUCE, Code::Internal, Duration::from_millis(3), None);
}

#[tokio::test]
async fn every_row_of_the_catalogue_can_be_moved_and_is_shown() {
    let (telemetry, _dispatch) = exporting_to("http://127.0.0.1:9", "", |_| {});
    move_everything(&telemetry);
    let text = scrape(&telemetry, None);
    let missing: Vec<_> = ROWS
        .iter()
        .filter(|row| !text.lines().any(|line| line.starts_with(row.prometheus)))
        .map(|row| row.prometheus)
        .collect();
    assert!(missing.is_empty(), "{missing:?}\n{text}");
    for (series, expected) in [
        ("streambus_broker_status", 2.0),
        ("streambus_messages_produced_total{topic=\"orders\"}", 10.0),
        ("streambus_bytes_consumed_total{topic=\"orders\"}", 500.0),
        ("streambus_retention_deleted_bytes_total{topic=\"orders\"}", 200.0),
        ("streambus_produce_rejections_total{code=\"busy\"}", 1.0),
        ("streambus_network_errors_total{kind=\"http_on_grpc_port\"}", 1.0),
        ("streambus_network_errors_total{kind=\"reset\"}", 0.0),
        ("streambus_network_requests_total{outcome=\"client_error\",protocol=\"grpc\"}", 1.0),
        ("streambus_storage_fsync_seconds_bucket{le=\"0.0001\"}", 0.0),
        ("streambus_storage_fsync_seconds_bucket{le=\"0.00025\"}", 1.0),
        ("streambus_produce_latency_seconds_bucket{le=\"0.001\"}", 0.0),
        ("streambus_produce_latency_seconds_bucket{le=\"5\"}", 1.0),
        ("streambus_raft_groups{role=\"leader\"}", 5.0),
        ("streambus_consumer_groups_total", 2.0),
        ("streambus_consumer_group_members_total", 3.0),
        ("streambus_consumer_group_lag{group=\"billing\",partition=\"3\",topic=\"orders\"}", 12.0),
        ("streambus_consumer_group_lag_seconds{group=\"billing\",partition=\"3\",topic=\"orders\"}", 1.5),
        ("streambus_consumer_group_leased_records{group=\"billing\"}", 4.0),
        ("streambus_commit_latency_seconds_bucket{le=\"0.001\"}", 0.0),
        ("streambus_commit_latency_seconds_bucket{le=\"0.005\"}", 1.0),
        ("streambus_telemetry_overflowing_metrics", 0.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
    let call = "rpc_server_call_duration_seconds_count{error_type=\"INTERNAL\",rpc_method=\"streambus.v1.ProduceService/Produce\",\
                rpc_status_code=\"INTERNAL\",rpc_system_name=\"grpc\"}";
    assert_eq!(value(&text, call), Some(1.0), "{text}");
    assert!(text.contains("service_name=\"streambus\""), "{text}");
    assert!(!text.contains("otel_scope"), "{text}");
    assert!(value(&text, "process_resident_memory_bytes").is_some_and(|bytes| bytes > 1e6), "{text}");
}

#[tokio::test]
#[ignore = "needs promtool, which comes with Prometheus, on the PATH"]
async fn promtool_complains_of_the_specified_gauges_and_of_nothing_else() {
    let (telemetry, _dispatch) = exporting_to("http://127.0.0.1:9", "", |_| {});
    move_everything(&telemetry);
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("promtool is installed");
    let mut stdin = promtool.stdin.take().expect("piped");
    stdin.write_all(scrape(&telemetry, None).as_bytes()).expect("promtool reads");
    drop(stdin);
    let output = promtool.wait_with_output().expect("promtool ends");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let mut complaints: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    complaints.sort_unstable();
    let expected =
        ["consumer_group_members", "consumer_groups", "partitions", "replicas", "segments", "topics"].map(
            |name| format!("streambus_{name}_total non-counter metrics should not have \"_total\" suffix"),
        );
    assert_eq!(complaints, expected);
}

#[test]
fn phases_add_up_to_the_latency() {
    let telemetry = Telemetry::for_tests();
    let phases = ProducePhases {
        admit: Duration::from_micros(10),
        append: Duration::from_micros(200),
        replicate: Duration::from_micros(3000),
        apply: Duration::from_micros(40),
        respond: Duration::from_micros(5),
    };
    telemetry.metrics().produce.completed(&phases, None);
    let text = scrape(&telemetry, None);
    let sum: f64 = ["admit", "append", "replicate", "apply", "respond"]
        .iter()
        .filter_map(|phase| {
            value(&text, &format!("streambus_produce_phase_seconds_sum{{phase=\"{phase}\"}}"))
        })
        .sum();
    let total = value(&text, "streambus_produce_latency_seconds_sum").expect("recorded");
    assert!((sum - 0.003_255).abs() < 1e-12 && (sum - total).abs() < 1e-12, "{sum} {total}");
}

#[test]
fn exemplars_are_those_of_sampled_requests_and_only_in_openmetrics() {
    let telemetry = Telemetry::for_tests();
    let trace = telemetry.tracer().server(PRODUCE, &sampled_by_the_caller());
    let produce = &telemetry.metrics().produce;
    produce.completed(&ProducePhases { append: Duration::from_millis(3), ..Default::default() }, trace.ids());
    produce.completed(&ProducePhases { append: Duration::from_millis(300), ..Default::default() }, None);
    let text = scrape(&telemetry, Some("application/openmetrics-text"));
    let with_exemplar: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("streambus_produce_latency") && line.contains(" # {"))
        .collect();
    let span = trace.ids().expect("sampled").span_hex();
    let expected = format!(
        "streambus_produce_latency_seconds_bucket{{le=\"0.005\"}} 1 # {{trace_id=\"0af7651916cd43dd8448eb211c80319c\",span_id=\"{span}\"}} 0.003 "
    );
    assert!(matches!(with_exemplar[..], [line] if line.starts_with(&expected)), "{with_exemplar:?}");
    assert!(!scrape(&telemetry, None).contains(" # {"));
}

#[test]
fn a_scrape_is_compressed_when_asked() {
    let telemetry = Telemetry::for_tests();
    let scrape =
        telemetry.scrape(Some("application/openmetrics-text"), Some("gzip")).expect("metrics are on");
    assert_eq!(scrape.encoding, Some("gzip"));
    assert_eq!(scrape.content_type, Format::OpenMetrics.content_type());
    let mut text = String::new();
    flate2::read::GzDecoder::new(&scrape.body[..]).read_to_string(&mut text).expect("gzip");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn an_observer_that_panics_loses_only_its_own_samples() {
    let telemetry = Telemetry::for_tests();
    telemetry.metrics().observe_cluster(Arc::new(|| panic!("expected by the test")));
    telemetry
        .metrics()
        .observe_topics(Arc::new(|| Some(TopicLevels { topics: 1, partitions: 2, replicas: 3 })));
    scrape(&telemetry, None);
    let text = scrape(&telemetry, None);
    assert_eq!(value(&text, "streambus_cluster_size"), None);
    assert_eq!(value(&text, "streambus_partitions_total"), Some(2.0));
    assert!(value(&text, "streambus_telemetry_observer_panics_total").is_some_and(|panics| panics >= 1.0));
}

#[test]
fn levels_are_read_once_per_collection() {
    let telemetry = Telemetry::for_tests();
    let calls = Arc::new(Mutex::new(0));
    let counted = calls.clone();
    telemetry.metrics().observe_topics(Arc::new(move || {
        *lock(&counted) += 1;
        Some(TopicLevels { topics: *lock(&counted), partitions: 0, replicas: 0 })
    }));
    scrape(&telemetry, None);
    let text = scrape(&telemetry, None);
    assert_eq!((*lock(&calls), value(&text, "streambus_topics_total")), (2, Some(2.0)));
}

#[test]
fn a_removed_topic_is_gone_at_the_next_collection_of_every_reader() {
    let readers = [Shared::default(), Shared::default()];
    let provider =
        SdkMeterProvider::builder().with_reader(readers[0].clone()).with_reader(readers[1].clone()).build();
    let collection = Arc::new(Collection::default());
    let metrics = Metrics::new(provider.meter("test"), collection.clone(), Arc::default());
    metrics.produce.accepted(&metrics.topic("gone"), 1, 1);
    metrics.produce.accepted(&metrics.topic("stays"), 1, 1);
    let seen = [0, 1].map(|_| Default::default());
    let collect = |reader: usize| {
        let mut data = ResourceMetrics::default();
        collection.run(&seen[reader], || readers[reader].0.collect(&mut data)).expect("collected");
        format!("{data:?}")
    };
    // The first reader's collection leaves the series with the second reader.
    assert!(collect(0).contains("gone"));
    metrics.remove_topic("gone");
    for reader in [1, 0] {
        let data = collect(reader);
        assert!(data.contains("stays") && !data.contains("gone"), "reader {reader}");
    }
}

#[test]
fn topics_beyond_the_budget_share_one_series() {
    let telemetry = Telemetry::for_tests();
    let metrics = telemetry.metrics();
    for number in 0..catalog::TOPICS_MAX + 5 {
        metrics.produce.accepted(&metrics.topic(&format!("topic-{number}")), 1, 1);
    }
    let text = scrape(&telemetry, None);
    assert_eq!(value(&text, "streambus_messages_produced_total{otel_metric_overflow=\"true\"}"), Some(6.0));
    let text = scrape(&telemetry, None);
    assert!(value(&text, "streambus_telemetry_overflowing_metrics").is_some_and(|metrics| metrics >= 1.0));
}

#[test]
fn a_request_follows_the_callers_decision_and_passes_it_on() {
    let telemetry = Telemetry::for_tests();
    let sampled = telemetry.tracer().server(PRODUCE, &sampled_by_the_caller());
    let mut headers = HeaderMap::new();
    sampled.inject(&mut headers);
    let onward = TraceParent::parse(headers["traceparent"].as_bytes()).expect("valid");
    assert!(onward.sampled && Some(onward.ids) == sampled.ids());
    assert_eq!(onward.ids.trace_hex(), "0af7651916cd43dd8448eb211c80319c");

    let unsampled = telemetry.tracer().server(PRODUCE, &HeaderMap::new());
    assert!(!unsampled.is_sampled() && unsampled.ids().is_none());
    unsampled.inject(&mut headers);
    let onward = TraceParent::parse(headers["traceparent"].as_bytes()).expect("valid");
    assert!(!onward.sampled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_links_to_the_writers_and_is_a_trace_of_its_own_on_a_long_stream() {
    let (collector, endpoint) = Collector::start().await;
    let (telemetry, _dispatch) = exporting_to(&endpoint, "", |_| {});
    let writer = |number: u8| TraceIds { trace: [number; 16], span: [number; 8] };
    let describe = || (std::borrow::Cow::Borrowed("deliver"), Vec::new());
    let tracer = telemetry.tracer();
    // Unsampled writers have no ids; neighbours of one batch share theirs.
    let links = (0..=200).flat_map(|number| [writer(number), writer(number)]);
    let delivery = tracer.delivery(&RequestTrace::NONE, links, describe);
    delivery.end(None);
    assert!(!tracer.delivery(&RequestTrace::NONE, [writer(0)], describe).is_sampled());
    assert!(telemetry.shutdown(Duration::from_secs(10)).await);

    let traces = lock(&collector.traces);
    let spans = &traces[0].resource_spans[0].scope_spans[0].spans;
    assert_eq!(spans.len(), 1);
    assert_eq!((spans[0].links.len(), spans[0].parent_span_id.len()), (LINKS_MAX, 0));
    assert_eq!(spans[0].links[0].trace_id, [1; 16]);
    let attributes = format!("{:?}", spans[0].attributes);
    assert!(
        attributes.contains("streambus.links.dropped") && attributes.contains("IntValue(72)"),
        "{attributes}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_comes_back_is_used_again_and_one_line_says_so() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let more = "otlp.timeout = '200ms'\notlp.metrics_interval = '20ms'";
    let (telemetry, _dispatch) = exporting_to(&format!("http://{closed}"), more, move |line| {
        let _ = sender.send(String::from_utf8_lossy(line).into_owned());
    });
    let line = lines.recv().await.expect("a complaint");
    assert!(line.contains("telemetry.export.failing"), "{line}");
    Collector::serve(TcpListener::bind(closed).await.expect("the same port"));
    let line = lines.recv().await.expect("the all-clear");
    assert!(line.contains("telemetry.export.recovered"), "{line}");
    assert!(telemetry.metrics().exporting.exported_so_far(Signal::Metrics) > 0);
}

/// A reader that the test and the provider hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared(pub(super) Arc<ManualReader>);

impl MetricReader for Shared {
    fn register_pipeline(&self, pipeline: std::sync::Weak<opentelemetry_sdk::metrics::Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, data: &mut ResourceMetrics) -> opentelemetry_sdk::error::OTelSdkResult {
        self.0.collect(data)
    }

    fn force_flush(&self) -> opentelemetry_sdk::error::OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> opentelemetry_sdk::error::OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(
        &self,
        kind: opentelemetry_sdk::metrics::InstrumentKind,
    ) -> opentelemetry_sdk::metrics::Temporality {
        self.0.temporality(kind)
    }
}

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
pub(super) struct Collector {
    traces: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    pub(super) metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
    logs: Arc<Mutex<Vec<ExportLogsServiceRequest>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, RpcStatus> {
        lock(&self.traces).push(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, RpcStatus> {
        lock(&self.metrics).push(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, RpcStatus> {
        lock(&self.logs).push(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

impl Collector {
    /// Serves on a port of its own.
    pub(super) async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        (Collector::serve(listener), endpoint)
    }

    fn serve(listener: TcpListener) -> Self {
        let collector = Collector::default();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(MetricsServiceServer::new(collector.clone()))
            .add_service(LogsServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        collector
    }
}

pub(super) fn exporting_to(
    endpoint: &str,
    more: &str,
    output: impl Fn(&[u8]) + Send + Sync + 'static,
) -> (Telemetry, Dispatch) {
    let text = format!("otlp.endpoint = '{endpoint}'\ntrace.sample_ratio = 1.0\n{more}");
    let config = toml::from_str(&text).expect("valid configuration");
    let identity = Identity { cluster_id: "test".to_owned(), broker_id: "1".to_owned() };
    Telemetry::build(&config, &identity, output).expect("valid configuration")
}

#[test]
fn with_metrics_off_nothing_is_recorded_and_a_scrape_says_why() {
    let config = toml::from_str("metrics.enabled = false").expect("valid configuration");
    let identity = Identity { cluster_id: "test".to_owned(), broker_id: "1".to_owned() };
    let (telemetry, _) = Telemetry::build(&config, &identity, |_| {}).expect("valid");
    let asked = Arc::new(AtomicBool::new(false));
    let note = asked.clone();
    telemetry.metrics().observe_produce_buffer(Arc::new(move || {
        note.store(true, Ordering::SeqCst);
        None
    }));
    let trace = telemetry.tracer().server(PRODUCE, &sampled_by_the_caller());
    telemetry.metrics().produce.completed(&ProducePhases::default(), trace.ids());
    telemetry.metrics().network.call_ended(PRODUCE, Code::Ok, Duration::ZERO, trace.ids());
    let produce = format!("{:?}", telemetry.metrics().produce);
    assert!(produce.contains("latency: Distribution(None)") && !produce.contains("Recorded"), "{produce}");
    let refused = telemetry.scrape(None, None).expect_err("there is nothing to scrape");
    assert!(refused.to_string().contains("telemetry.metrics.enabled"), "{refused}");
    assert!(!asked.load(Ordering::SeqCst), "levels are nobody's business");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_three_signals_arrive_at_the_collector_and_belong_together() {
    let (collector, endpoint) = Collector::start().await;
    let (telemetry, dispatch) = exporting_to(&endpoint, "log.filter = 'trace'", |_| {});
    telemetry.metrics().network.received(77);
    let trace = telemetry.tracer().server(PRODUCE, &sampled_by_the_caller());
    tracing::dispatcher::with_default(&dispatch, || {
        let _attached = trace.attach();
        tracing::info!(name: "batch.written", "inside");
        // What the exporter itself would say must not come back.
        tracing::info!(target: "h2::client", "feedback");
        tracing::info_span!(target: "tonic::transport", "feedback").in_scope(|| {});
    });
    let now = Instant::now();
    trace
        .child("append", now - Duration::from_millis(5), now, || vec![KeyValue::new("streambus.batches", 2)]);
    trace.finish(Code::Internal);
    assert!(telemetry.shutdown(Duration::from_secs(10)).await);

    let traces = lock(&collector.traces).clone();
    let spans: Vec<_> = traces
        .iter()
        .flat_map(|request| &request.resource_spans)
        .flat_map(|resource| &resource.scope_spans)
        .flat_map(|scope| &scope.spans)
        .collect();
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["append", PRODUCE]);
    let ids = trace.ids().expect("sampled");
    assert_eq!((&spans[1].trace_id[..], &spans[1].span_id[..]), (&ids.trace[..], &ids.span[..]));
    assert_eq!(spans[0].parent_span_id, ids.span);
    assert_eq!(spans[0].end_time_unix_nano - spans[0].start_time_unix_nano, 5_000_000);
    let attribute = |key: &str| spans[1].attributes.iter().any(|attribute| attribute.key == key);
    assert!(attribute("rpc.method") && attribute("rpc.status_code") && attribute("error.type"));
    let resource = format!("{:?}", traces[0].resource_spans[0].resource);
    assert!(resource.contains("service.instance.id") && resource.contains("\"streambus\""), "{resource}");

    let records: Vec<_> = lock(&collector.logs)
        .iter()
        .flat_map(|request| request.resource_logs.clone())
        .flat_map(|resource| resource.scope_logs)
        .flat_map(|scope| scope.log_records)
        .collect();
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0].event_name, "batch.written");
    assert_eq!((&records[0].trace_id[..], &records[0].span_id[..]), (&ids.trace[..], &ids.span[..]));

    let metrics = format!("{:?}", lock(&collector.metrics));
    assert!(metrics.contains(catalog::NETWORK_IN.otel) && metrics.contains("AsInt(77)"), "{metrics}");
    let exporting = &telemetry.metrics().exporting;
    assert_eq!(exporting.exported_so_far(Signal::Traces), 2);
    assert_eq!(exporting.exported_so_far(Signal::Logs), 1);
    assert_eq!(exporting.failures_so_far(Signal::Metrics), 0);
}

/// Notes what is said, and by whom.
#[derive(Clone, Default)]
struct Callsites(Arc<Mutex<Vec<&'static tracing::Metadata<'static>>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Callsites {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        lock(&self.0).push(event.metadata());
    }

    fn on_new_span(
        &self,
        span: &tracing::span::Attributes<'_>,
        _: &tracing::span::Id,
        _: tracing_subscriber::layer::Context<'_, S>,
    ) {
        lock(&self.0).push(span.metadata());
    }
}

#[tokio::test]
async fn what_no_filter_lets_through_is_skipped_in_advance_with_a_collector_too() {
    let callsites = Callsites::default();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(callsites.clone()), || {
        tracing::debug!(target: "openraft::core", "a detail");
        let _ = tracing::debug_span!(target: "streambus::partition", "a detail");
        tracing::trace!(target: "h2::codec", "a frame");
        tracing::info!(target: "streambus::server", "news");
    });
    let (_collector, endpoint) = Collector::start().await;
    let (_telemetry, dispatch) = exporting_to(&endpoint, "", |_| {});
    let skipped: Vec<_> =
        lock(&callsites.0).iter().map(|callsite| dispatch.register_callsite(callsite).is_never()).collect();
    assert_eq!(skipped, [true, true, true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_losses_are_counted_and_one_line_says_so() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let seen = lines.clone();
    let more =
        "otlp.timeout = '1s'\notlp.span_queue = 4\notlp.batch_delay = '10ms'\notlp.metrics_interval = '20ms'";
    // The port is that of a listener which is gone.
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let (telemetry, dispatch) = exporting_to(&format!("http://{closed}"), more, move |line| {
        lock(&seen).push(String::from_utf8_lossy(line).into_owned());
    });
    tracing::dispatcher::with_default(&dispatch, || tracing::info!("hello"));
    let tracer = telemetry.tracer().clone();
    let started = Instant::now();
    for _ in 0..1000 {
        tracer.server(PRODUCE, &HeaderMap::new()).finish(Code::Ok);
    }
    assert!(started.elapsed() < Duration::from_secs(1), "a request waited for the exporter");
    telemetry.shutdown(Duration::from_secs(20)).await;

    let exporting = &telemetry.metrics().exporting;
    let lost = |loss| exporting.dropped_so_far(Signal::Traces, loss);
    assert_eq!(lost(Loss::QueueFull) + lost(Loss::ExportFailed), 1000);
    assert!(lost(Loss::QueueFull) > 0 && lost(Loss::ExportFailed) > 0);
    assert!(exporting.failures_so_far(Signal::Metrics) > 0);
    let lines = lock(&lines);
    let complaints = lines.iter().filter(|line| line.contains("telemetry.export.failing")).count();
    assert_eq!((complaints, lines.len()), (1, 2), "{lines:?}");
    drop(dispatch);
}
