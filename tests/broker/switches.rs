//! What is switched off is off: nothing is measured, nothing leaves the process, and whoever asks is told why.

use streambus::proto::v1::position::At;
use streambus::telemetry::catalog;
use tonic::Request;

use crate::support::endpoint::{fetch, produce};
use crate::support::{Collector, PATIENCE, Process, batch, eventually, within};

/// A broker that exports whatever it has at once, with these settings as well.
async fn broker_with(collector: &Collector, settings: &[(&str, &str)]) -> Process {
    let exporting = [
        ("telemetry.otlp.endpoint", collector.endpoint()),
        ("telemetry.otlp.batch_delay", "20ms"),
        ("telemetry.otlp.metrics_interval", "50ms"),
    ];
    Process::start(&[&exporting, settings].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_logs_only_warnings_still_says_where_it_is_reached() {
    let settings = [("telemetry.log.filter", "warn"), ("server.grpc_advertise", "broker-1:9092")];
    let broker = Process::start(&settings).await;
    let ready = &broker.events("broker.ready")[0];
    assert_eq!(ready["advertised"], "broker-1:9092", "{ready}");
    assert!(ready["message"].as_str().expect("text").contains("reach at broker-1:9092"), "{ready}");
    let of_level = |level: &str| broker.log().iter().filter(|line| line["level"] == level).count();
    assert_eq!(of_level("INFO"), 1, "nothing else is so important");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_filter_selects_nothing_says_so() {
    let broker = Process::start(&[("telemetry.log.filter", "inof")]).await;
    let warning = eventually(PATIENCE, "the warning", async || broker.events("config.no_effect").pop()).await;
    assert!(warning["message"].as_str().expect("text").contains("did you mean info?"), "{warning}");
}

/// Creates a topic, produces and fetches, with this header on each call.
async fn use_it(broker: &Process, traceparent: Option<&str>) {
    broker.create_topic("orders", 1).await;
    let mut write = Request::new(produce("orders", 0, batch::values(["lamp"])));
    let mut read = Request::new(fetch("orders", 0, At::Offset(0)));
    if let Some(traceparent) = traceparent {
        write.metadata_mut().insert("traceparent", traceparent.parse().expect("text"));
        read.metadata_mut().insert("traceparent", traceparent.parse().expect("text"));
    }
    within("a commit", broker.produce().await.produce(write)).await.expect("the batch is committed");
    within("an answer", broker.consume().await.fetch(read)).await.expect("the batch is served");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_metrics_none_are_served_or_exported_and_the_answer_names_the_setting() {
    let collector = Collector::start().await;
    let settings = [("telemetry.metrics.enabled", "false"), ("telemetry.trace.sample_ratio", "1")];
    let broker = broker_with(&collector, &settings).await;
    use_it(&broker, None).await;
    let answer = broker.get("/metrics").await;
    assert_eq!(answer.status, 404, "{}", answer.body);
    assert!(answer.body.contains("telemetry.metrics.enabled"), "{}", answer.body);
    // While the new partition elects its leader it is not.
    eventually(PATIENCE, "health needs no metrics", async || {
        let (status, health) = broker.health("/health").await;
        ((status, &health["status"]) == (200, &"healthy".into())).then_some(())
    })
    .await;
    eventually(PATIENCE, "traces go on", async || (!collector.spans().is_empty()).then_some(())).await;
    // The end of a broker exports whatever there is.
    broker.stop().await;
    assert_eq!(collector.metric_exports(), 0);
    assert!(!collector.logs().is_empty(), "logs go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_traces_no_span_is_made_whatever_callers_ask_for() {
    let collector = Collector::start().await;
    let settings = [("telemetry.trace.enabled", "false"), ("telemetry.trace.sample_ratio", "1")];
    let broker = broker_with(&collector, &settings).await;
    use_it(&broker, Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")).await;
    let view = broker.scrape().await;
    assert_eq!(view.or_zero(&catalog::TELEMETRY_EXPORTED, &[("signal", "traces")]), 0.0);
    broker.stop().await;
    assert!(collector.metric_exports() > 0, "metrics go on");
    assert_eq!(collector.spans().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_ratio_of_zero_only_callers_begin_traces() {
    let collector = Collector::start().await;
    let broker = broker_with(&collector, &[("telemetry.trace.sample_ratio", "0")]).await;
    use_it(&broker, None).await;
    broker.stop().await;
    assert!(collector.metric_exports() > 0, "metrics go on");
    assert_eq!(collector.spans().len(), 0);
}
