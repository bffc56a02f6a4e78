//! Settings that are changed at run time: set, cleared and over.

use std::time::Duration;

use streambus::client::{OverrideTerms, SamplingScope};
use streambus::telemetry::catalog;

use super::proof::{Moment, Proof};
use crate::support::{Collector, PATIENCE, Process, eventually};

const LOG: &[(&str, &str)] = &[("kind", "log")];
const SAMPLING: &[(&str, &str)] = &[("kind", "sampling")];

/// Claims how many are active while some are set, and when they are cleared or over.
pub async fn prove(proof: &mut Proof) {
    let collector = Collector::start().await;
    let broker = Process::start(&[
        ("telemetry.otlp.endpoint", collector.endpoint()),
        ("telemetry.otlp.metrics_interval", "100ms"),
    ])
    .await;
    let moment = async || Moment { scrape: broker.scrape().await, export: collector.fresh_metrics().await };
    let admin = broker.client().await.admin();
    let long = || OverrideTerms::new(Duration::from_secs(3600));
    let topic = |name: &str| SamplingScope::Topic(name.to_owned());
    admin.set_log_filter("info", long()).await.expect("set");
    admin.set_log_filter("info,streambus::raft=debug", long()).await.expect("set");
    for scope in [SamplingScope::All, topic("orders"), topic("audit")] {
        admin.set_sampling(scope, 0.5, long()).await.expect("set");
    }
    let set = moment().await;
    proof.equals(&set, &catalog::CONTROL_OVERRIDES, LOG, 1.0);
    proof.equals(&set, &catalog::CONTROL_OVERRIDES, SAMPLING, 3.0);
    admin.clear_log_filter(long()).await.expect("cleared");
    admin.clear_sampling(Some(topic("audit")), long()).await.expect("cleared");
    admin
        .set_sampling(SamplingScope::All, 0.5, OverrideTerms::new(Duration::from_secs(1)))
        .await
        .expect("set");
    eventually(PATIENCE, "one is over", async || {
        let view = broker.scrape().await;
        (view.get(&catalog::CONTROL_OVERRIDES, SAMPLING) == Some(1.0)).then_some(())
    })
    .await;
    let over = moment().await;
    proof.equals(&over, &catalog::CONTROL_OVERRIDES, LOG, 0.0);
    proof.equals(&over, &catalog::CONTROL_OVERRIDES, SAMPLING, 1.0);
    broker.stop().await;
}
