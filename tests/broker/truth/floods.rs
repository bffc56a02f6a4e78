//! More telemetry than there may be: traces over the limit, and log lines that nobody reads.

use streambus::telemetry::catalog;

use super::proof::{Moment, Proof, within};
use crate::support::endpoint::produce;
use crate::support::view::View;
use crate::support::{Collector, PATIENCE, Process, batch, eventually};

/// `SPAN_KIND_SERVER` of OTLP.
const SERVER_SPAN: i32 = 2;

/// Claims that what is left out is counted.
pub async fn prove(proof: &mut Proof) {
    traces_over_the_limit(proof).await;
    lines_that_nobody_reads(proof).await;
}

async fn traces_over_the_limit(proof: &mut Proof) {
    let collector = Collector::start().await;
    let broker = Process::start(&[
        ("telemetry.otlp.endpoint", collector.endpoint()),
        ("telemetry.otlp.metrics_interval", "100ms"),
        ("telemetry.otlp.batch_delay", "50ms"),
        // A share below 1 that leaves out one request of a million million.
        ("telemetry.trace.sample_ratio", "0.999999999999"),
        ("telemetry.trace.max_per_second", "3"),
    ])
    .await;
    broker.create_topic("orders", 1).await;
    let mut client = broker.produce().await;
    for _ in 0..100 {
        client.produce(produce("orders", 0, batch::values(["x"]))).await.expect("committed");
    }
    let requests = |view: &View| -> f64 {
        view.series_of(&catalog::NETWORK_REQUESTS, "")
            .filter(|(series, _)| series.contains("grpc"))
            .map(|(_, value)| value)
            .sum()
    };
    let traced = || collector.spans().iter().filter(|span| span.kind == SERVER_SPAN).count() as f64;
    let limited = eventually(PATIENCE, "each request is traced or counted as left out", async || {
        let view = broker.scrape().await;
        let limited = view.get(&catalog::TRACES_LIMITED, &[])?;
        (traced() > 0.0 && traced() + limited == requests(&view)).then_some(limited)
    })
    .await;
    let now = Moment { scrape: broker.scrape().await, export: collector.fresh_metrics().await };
    proof.at(&now, &catalog::TRACES_LIMITED, |view| {
        within("requests left out", view.get(&catalog::TRACES_LIMITED, &[]), limited, limited)
    });
    assert!(limited > 50.0 && traced() >= 3.0, "{} traces", traced());
    broker.stop().await;
}

async fn lines_that_nobody_reads(proof: &mut Proof) {
    let collector = Collector::start().await;
    let broker = Process::start(&[
        ("telemetry.otlp.endpoint", collector.endpoint()),
        ("telemetry.otlp.metrics_interval", "100ms"),
        // Many lines for each call.
        ("telemetry.log.filter", "info,h2=trace"),
    ])
    .await;
    broker.create_topic("orders", 1).await;
    let mut client = broker.produce().await;
    broker.read_log(false);
    eventually(PATIENCE, "lines are dropped, and the broker goes on", async || {
        for _ in 0..20 {
            client.produce(produce("orders", 0, batch::values(["x"]))).await.expect("committed");
        }
        let dropped = broker.scrape().await.get(&catalog::LOG_LINES_DROPPED, &[])?;
        (dropped > 0.0).then_some(())
    })
    .await;
    assert_eq!(broker.get("/health").await.status, 200);
    broker.read_log(true);
    let dropped = eventually(PATIENCE, "the log tells how many lines are missing", async || {
        let told = broker.events("log.lines_dropped");
        let told: f64 = told.iter().filter_map(|line| line["lines"].as_f64()).sum();
        (broker.scrape().await.get(&catalog::LOG_LINES_DROPPED, &[]) == Some(told)).then_some(told)
    })
    .await;
    let now = Moment { scrape: broker.scrape().await, export: collector.fresh_metrics().await };
    proof.equals(&now, &catalog::LOG_LINES_DROPPED, &[], dropped);
    broker.stop().await;
}
