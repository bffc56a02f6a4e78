//! A record's way is one trace: from its producer through the broker to its consumer.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use opentelemetry::trace::{FutureExt as _, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prost::Message as _;
use streambus::client::{Client, ConsumerConfig, Position, ProducerConfig, ProducerRecord};
use streambus::proto::v1;
use streambus::proto::v1::position::At;
use tonic::Request;

use crate::support::endpoint::{fetch, produce};
use crate::support::view::text;
use crate::support::{Collector, PATIENCE, Process, batch, eventually, within};

const SERVER: &str = "streambus";
const PROGRAM: &str = "shop";

async fn broker_that_samples(collector: &Collector, ratio: &str) -> Process {
    Process::start(&[
        ("telemetry.otlp.endpoint", collector.endpoint()),
        ("telemetry.otlp.batch_delay", "20ms"),
        ("telemetry.otlp.metrics_interval", "100ms"),
        ("telemetry.trace.sample_ratio", ratio),
    ])
    .await
}

/// The telemetry of a program that uses the client library.
fn program(collector: &Collector) -> SdkTracerProvider {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(collector.endpoint())
        .build()
        .expect("an exporter");
    SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_attribute(KeyValue::new("service.name", PROGRAM)).build())
        .with_batch_exporter(exporter)
        .build()
}

/// Waits until a trace has spans of all these names.
async fn trace_with(collector: &Collector, trace: &[u8], names: &[&str]) -> Vec<(String, Span)> {
    eventually(PATIENCE, &format!("the trace has {names:?}"), async || {
        let spans = collector.trace(trace);
        names.iter().all(|name| spans.iter().any(|(_, span)| span.name == *name)).then_some(spans)
    })
    .await
}

fn one<'a>(spans: &'a [(String, Span)], service: &str, name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|(from, span)| from == service && span.name == name);
    let span = found.next().unwrap_or_else(|| panic!("no {name} of {service} in {spans:#?}"));
    assert!(found.next().is_none(), "{name} of {service} appears twice");
    &span.1
}

fn attributes(span: &Span) -> BTreeMap<&str, String> {
    span.attributes.iter().map(|attribute| (attribute.key.as_str(), text(attribute.value.as_ref()))).collect()
}

/// The broker's span of a produce and what must be below it.
fn check_server_side(spans: &[(String, Span)], method: &str, parent: &[u8]) -> Span {
    let server = one(spans, SERVER, method);
    assert_eq!(server.parent_span_id, parent, "{method} is the child of the caller's span");
    assert_eq!(server.kind, SpanKind::Server as i32);
    let described = attributes(server);
    assert_eq!(described["rpc.system.name"], "grpc");
    assert_eq!(described["rpc.method"], method);
    assert_eq!(described["messaging.destination.name"], "orders");
    let mut earlier = server.start_time_unix_nano;
    for name in ["append", "replicate", "commit"] {
        let child = one(spans, SERVER, name);
        assert_eq!(child.parent_span_id, server.span_id, "{name} is inside of {method}");
        assert!(child.start_time_unix_nano <= child.end_time_unix_nano);
        // Instants become wall time once per span, which costs some microseconds of precision.
        assert!(
            child.start_time_unix_nano + 1_000_000 >= earlier,
            "{name} does not begin before what precedes it"
        );
        assert!(
            child.end_time_unix_nano <= server.end_time_unix_nano + 1_000_000,
            "{name} ends with {method}"
        );
        earlier = child.start_time_unix_nano;
    }
    server.clone()
}

/// A delivery of the broker that links to `trace`.
async fn delivery_that_links_to(collector: &Collector, trace: &[u8]) -> Span {
    eventually(PATIENCE, "a delivery that links to the record", async || {
        let spans = collector.spans();
        spans.into_iter().find(|span| {
            span.name == "deliver orders" && span.links.iter().any(|link| link.trace_id == trace)
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_the_client_library_is_one_trace_from_send_to_process() {
    let collector = Collector::start().await;
    let broker = broker_that_samples(&collector, "0").await;
    broker.create_topic("orders", 1).await;
    let provider = program(&collector);
    let tracer = provider.tracer("shop");
    let client =
        Client::builder().bootstrap(broker.grpc.to_string()).with_tracer_provider(&provider).connect();
    let client = within("the client connects", client).await.expect("the broker answers");

    let root = tracer.start("checkout");
    let context = Context::new().with_span(root);
    let trace = context.span().span_context().trace_id().to_bytes();
    let root_id = context.span().span_context().span_id().to_bytes();
    let producer = client.producer(ProducerConfig::default()).await.expect("a producer");
    let odd_bytes: &[u8] = &[0, 255, 13, 10, 128];
    let record = ProducerRecord::new("orders").key("k").value("v").header("note", odd_bytes);
    let delivery = producer.send(record).with_context(context.clone()).await.expect("taken");
    within("the record is acknowledged", delivery).await.expect("acknowledged");
    context.span().end();

    let start =
        client.partitions("orders").await.expect("known").into_iter().map(|at| (at, Position::Earliest));
    let mut consumer = client.consumer(start, ConsumerConfig::default()).await.expect("a consumer");
    let record = within("the record comes", consumer.next()).await.expect("open").expect("a record");
    assert_eq!(
        record.header("note").map(|value| &value[..]),
        Some(odd_bytes),
        "header bytes are not touched"
    );
    assert!(record.header("traceparent").is_some());
    consumer.process(&record, async |_| ()).await;
    provider.force_flush().expect("exported");

    let names = ["checkout", "send orders", "append", "replicate", "commit", "process orders"];
    let spans = trace_with(&collector, &trace, &names).await;
    let send = one(&spans, PROGRAM, "send orders");
    assert_eq!(send.parent_span_id, root_id);
    assert_eq!(attributes(send)["messaging.system"], "streambus");
    let header = record.header("traceparent").expect("checked above");
    assert_eq!(
        header[..],
        traceparent(&trace, &send.span_id, true).into_bytes(),
        "the record carries its send span"
    );
    let server = check_server_side(&spans, "streambus.v1.ProduceService/ProduceStream", &send.span_id);
    let process = one(&spans, PROGRAM, "process orders");
    assert_eq!(process.parent_span_id, send.span_id, "processing belongs to whoever sent the record");
    assert_eq!(process.kind, SpanKind::Consumer as i32);

    let deliver = delivery_that_links_to(&collector, &trace).await;
    assert!(deliver.links.iter().any(|link| [&send.span_id, &server.span_id].contains(&&link.span_id)));
    assert_ne!(deliver.trace_id, trace, "a delivery on a long stream is a trace of its own");
    let log = eventually(PATIENCE, "a log record of the trace", async || {
        collector.logs().into_iter().find(|record| record.trace_id == trace)
    })
    .await;
    assert_eq!((log.event_name.as_str(), &log.span_id), ("produce.committed", &server.span_id));
    let line =
        broker.events("produce.committed").into_iter().next().expect("the same line on standard error");
    assert_eq!(line["trace_id"], hex(&trace));
    assert_eq!(line["span_id"], hex(&server.span_id));
    producer.close().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_client_joins_with_a_header_of_the_record_or_of_the_call() {
    let collector = Collector::start().await;
    let broker = broker_that_samples(&collector, "0").await;
    broker.create_topic("orders", 1).await;
    let mut client = broker.produce().await;
    let (by_record, by_call) = ([0xa1; 16], [0xb2; 16]);
    let parent = [0xc3; 8];

    // Only the record knows of the trace.
    let header =
        v1::Header { key: "traceparent".to_owned(), value: traceparent(&by_record, &parent, true).into() };
    let record = v1::Record { headers: vec![header.clone()], ..batch::record("x") };
    client.produce(produce("orders", 0, batch::of([record]))).await.expect("committed");
    // Only the call knows of the trace.
    let mut request = Request::new(produce("orders", 0, batch::values(["y"])));
    request.metadata_mut().insert("traceparent", traceparent(&by_call, &parent, true).parse().expect("text"));
    client.produce(request).await.expect("committed");

    for trace in [by_record, by_call] {
        let spans = trace_with(&collector, &trace, &["append", "replicate", "commit"]).await;
        let method = "streambus.v1.ProduceService/Produce";
        eventually(PATIENCE, "the server span", async || {
            collector.trace(&trace).iter().any(|(_, span)| span.name == method).then_some(())
        })
        .await;
        assert!(spans.len() >= 3);
        check_server_side(&collector.trace(&trace), method, &parent);
    }

    // A traced fetch has a server span with the delivery inside.
    let reader = [0xd4; 16];
    let mut request = Request::new(fetch("orders", 0, At::Earliest(())));
    request.metadata_mut().insert("traceparent", traceparent(&reader, &parent, true).parse().expect("text"));
    let answer = broker.consume().await.fetch(request).await.expect("an answer").into_inner();
    let first = v1::RecordBatch::decode(answer.partitions[0].batches[0].batch.clone()).expect("a batch");
    assert_eq!(first.records[0].headers, [header], "the header comes back as it was sent");
    let spans =
        trace_with(&collector, &reader, &["streambus.v1.ConsumeService/Fetch", "deliver orders"]).await;
    let server = one(&spans, SERVER, "streambus.v1.ConsumeService/Fetch");
    let deliver = one(&spans, SERVER, "deliver orders");
    assert_eq!(deliver.parent_span_id, server.span_id);
    assert!(
        deliver.links.iter().any(|link| link.trace_id == by_record),
        "it links to the record's own trace"
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_caller_does_not_sample_leaves_no_trace() {
    let collector = Collector::start().await;
    // The broker would sample everything by itself: the caller's decision counts.
    let broker = broker_that_samples(&collector, "1").await;
    broker.create_topic("orders", 1).await;
    let mut client = broker.produce().await;
    let (unsampled, sampled) = ([0xe5; 16], [0xf6; 16]);
    for (trace, is_sampled) in [(unsampled, false), (sampled, true)] {
        let value = traceparent(&trace, &[1; 8], is_sampled);
        let mut request = Request::new(produce("orders", 0, batch::values(["x"])));
        request.metadata_mut().insert("traceparent", value.parse().expect("text"));
        client.produce(request).await.expect("committed");
    }
    // Spans are exported in order, so once the later trace has come, nothing of the earlier one is still on its way.
    trace_with(&collector, &sampled, &["streambus.v1.ProduceService/Produce"]).await;
    assert_eq!(collector.trace(&unsampled), []);
    // Without a caller's decision the broker's own counts, here: everything.
    client.produce(produce("orders", 0, batch::values(["x"]))).await.expect("committed");
    eventually(PATIENCE, "a trace that begins at the broker", async || {
        let spans = collector.spans();
        spans
            .iter()
            .any(|span| span.name.ends_with("/Produce") && span.parent_span_id.is_empty())
            .then_some(())
    })
    .await;
    broker.stop().await;
    let resource = collector.resource().expect("spans");
    assert_eq!(resource["service.name"], SERVER);
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(resource["service.instance.id"].len(), 36, "a UUID");
    let never: Arc<[&str]> = ["h2", "hyper", "tonic", "tower"].into();
    for span in collector.spans() {
        assert!(
            !never.iter().any(|target| span.name.starts_with(target)),
            "the exporter traces itself: {}",
            span.name
        );
    }
}

fn traceparent(trace: &[u8], span: &[u8], sampled: bool) -> String {
    format!("00-{}-{}-0{}", hex(trace), hex(span), u8::from(sampled))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
