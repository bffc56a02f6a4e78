//! Settings that are changed while a broker runs.

use std::time::Duration;

use serde_json::Value;
use streambus::proto::v1;
use streambus::proto::v1::control_service_client::ControlServiceClient;
use streambus::telemetry::catalog;
use tonic::Code;
use tonic::transport::Channel;

use crate::support::asking::append;
use crate::support::endpoint::{duration, reason};
use crate::support::tool::streambus;
use crate::support::{Cluster, Collector, Endpoint, PATIENCE, Process, batch, eventually, within};

async fn control(broker: &Endpoint) -> ControlServiceClient<Channel> {
    ControlServiceClient::new(broker.channel().await)
}

fn terms(time: Duration) -> Option<v1::OverrideTerms> {
    Some(v1::OverrideTerms {
        duration: Some(duration(time)),
        requested_by: "ann".to_owned(),
        reason: "a test".to_owned(),
        only_this_broker: false,
    })
}

/// The audit of a setting: action, old and new value of each change.
fn audit(broker: &Process, setting: &str) -> Vec<[String; 3]> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let events = broker.events("control.changed").into_iter().filter(|event| event["setting"] == setting);
    events.map(|event| ["action", "old", "new"].map(|field| text(&event[field]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_filter_counts_at_once_and_ends_by_itself() {
    let broker = Process::start(&[("telemetry.log.filter", "info")]).await;
    let details = |broker: &Process| broker.log().iter().filter(|line| line["level"] == "DEBUG").count();
    assert_eq!(details(&broker), 0);
    let mut client = control(&broker).await;
    let request =
        v1::SetLogFilterRequest { filter: "debug".to_owned(), terms: terms(Duration::from_secs(5)) };
    let set = client.set_log_filter(request).await.expect("set").into_inner();
    assert_eq!(set.outcomes, [v1::ControlOutcome { broker_id: 1, error: None }]);
    let log = client.get_overrides(v1::GetOverridesRequest {}).await.expect("an answer").into_inner();
    assert_eq!(log.configured_log_filter, "info");
    let now = log.log_filter.expect("in force");
    let terms = now.terms.expect("terms");
    assert_eq!((now.filter.as_str(), terms.reason.as_str()), ("debug", "a test"));
    assert!(terms.requested_by.starts_with("ann from 127.0.0.1:"), "{}", terms.requested_by);
    assert_eq!(broker.scrape().await.get(&catalog::CONTROL_OVERRIDES, &[("kind", "log")]), Some(1.0));
    // Whatever the broker does: it speaks of it now.
    eventually(PATIENCE, "details are logged", async || {
        broker.get("/health").await;
        drop(broker.channel().await);
        (details(&broker) > 0).then_some(())
    })
    .await;
    eventually(PATIENCE, "it is over", async || {
        let now = broker.scrape().await.get(&catalog::CONTROL_OVERRIDES, &[("kind", "log")]);
        (now == Some(0.0)).then_some(())
    })
    .await;
    let audited = eventually(PATIENCE, "the end is audited", async || {
        Some(audit(&broker, "log")).filter(|audit| audit.len() == 2)
    })
    .await;
    let expected = [["set", "info", "debug"], ["expire", "debug", "info"]];
    assert_eq!(audited, expected.map(|change| change.map(str::to_owned)));
    let event = &broker.events("control.changed")[0];
    assert_eq!((&event["level"], &event["target"]), (&"INFO".into(), &"streambus::audit".into()));
    assert!(event["by"].as_str().is_some_and(|by| by.contains("ann from")), "{event}");
    assert!(event["expires"].as_str().is_some_and(|at| at.ends_with('Z')), "{event}");

    // Whoever switches logging off is still audited, by the new filter.
    let off =
        v1::SetLogFilterRequest { filter: "off".to_owned(), terms: self::terms(Duration::from_secs(3600)) };
    client.set_log_filter(off).await.expect("set");
    eventually(PATIENCE, "the change is audited", async || (audit(&broker, "log").len() == 3).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_of_traces_change_for_all_and_for_topics() {
    let collector = Collector::start().await;
    let broker = Process::start(&[
        ("telemetry.otlp.endpoint", collector.endpoint()),
        ("telemetry.otlp.batch_delay", "20ms"),
        ("telemetry.trace.sample_ratio", "0"),
    ])
    .await;
    for topic in ["loud", "quiet"] {
        broker.create_topic(topic, 1).await;
    }
    let traced = |topic: &str| {
        let of = |span: &opentelemetry_proto::tonic::trace::v1::Span| {
            span.name == "streambus.v1.ProduceService/Produce"
                && format!("{:?}", span.attributes).contains(&format!("\"{topic}\""))
        };
        collector.spans().iter().filter(|span| of(span)).count()
    };
    let mut client = control(&broker).await;
    let set = |topic: &str, ratio: f64| v1::SetSamplingRequest {
        topic: topic.to_owned(),
        ratio,
        terms: terms(Duration::from_secs(3600)),
    };
    append(&broker, "loud", 0, batch::values(["unseen"])).await;
    client.set_sampling(set("loud", 1.0)).await.expect("set");
    append(&broker, "quiet", 0, batch::values(["unseen"])).await;
    append(&broker, "loud", 0, batch::values(["seen"])).await;
    eventually(PATIENCE, "a trace", async || (traced("loud") == 1).then_some(())).await;
    assert_eq!(traced("quiet"), 0);

    client.set_sampling(set("", 1.0)).await.expect("set");
    client.set_sampling(set("loud", 0.0)).await.expect("set");
    append(&broker, "loud", 0, batch::values(["unseen"])).await;
    append(&broker, "quiet", 0, batch::values(["seen"])).await;
    eventually(PATIENCE, "a trace", async || (traced("quiet") == 1).then_some(())).await;
    assert_eq!(traced("loud"), 1);
    let view = broker.scrape().await;
    assert_eq!(view.get(&catalog::CONTROL_OVERRIDES, &[("kind", "sampling")]), Some(2.0));

    let clear = v1::ClearSamplingRequest { all: true, ..Default::default() };
    client.clear_sampling(clear).await.expect("cleared");
    append(&broker, "quiet", 0, batch::values(["unseen"])).await;
    broker.stop().await;
    assert_eq!((traced("loud"), traced("quiet")), (1, 1), "a broker that ends exports all it has");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_with_the_field() {
    let broker = Process::start(&[("telemetry.trace.enabled", "false")]).await;
    let mut client = control(&broker).await;
    let hour = || terms(Duration::from_secs(3600));
    let log = |filter: &str, terms| v1::SetLogFilterRequest { filter: filter.to_owned(), terms };
    let sampling = |ratio| v1::SetSamplingRequest { ratio, terms: hour(), ..Default::default() };
    let long = "x".repeat(300);
    let mut refusals = Vec::new();
    refusals.push((client.set_log_filter(log("info,a=loud", hour())).await.expect_err("refused"), "filter"));
    refusals.push((client.set_log_filter(log("", hour())).await.expect_err("refused"), "filter"));
    refusals.push((client.set_log_filter(log("info", None)).await.expect_err("refused"), "terms"));
    let day = terms(Duration::from_secs(24 * 3600 + 1));
    refusals.push((client.set_log_filter(log("info", day)).await.expect_err("refused"), "terms.duration"));
    let unnamed = Some(v1::OverrideTerms { duration: None, ..hour().expect("terms") });
    refusals
        .push((client.set_log_filter(log("info", unnamed)).await.expect_err("refused"), "terms.duration"));
    let verbose = Some(v1::OverrideTerms { reason: long, ..hour().expect("terms") });
    refusals.push((client.set_log_filter(log("info", verbose)).await.expect_err("refused"), "terms.reason"));
    refusals.push((client.set_sampling(sampling(1.5)).await.expect_err("refused"), "ratio"));
    refusals.push((client.set_sampling(sampling(f64::NAN)).await.expect_err("refused"), "ratio"));
    let off = client.set_sampling(sampling(0.5)).await.expect_err("refused");
    assert!(off.message().contains("telemetry.trace.enabled"), "{off}");
    refusals.push((off, "ratio"));
    for (refusal, field) in refusals {
        let (code, reason, _) = reason(&refusal);
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"), "{refusal}");
        assert!(refusal.message().contains(field), "{field}: {refusal}");
    }
    assert!(broker.events("control.changed").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_changes_every_broker_and_names_one_that_is_away() {
    let mut cluster = Box::pin(Cluster::start(3)).await;
    let ran =
        streambus(cluster.broker(2), &["control", "log", "set", "info,streambus=debug", "--for", "1h"]).await;
    assert!(ran.success, "{ran:?}");
    for id in 1..=3 {
        let line = format!("broker {id} logs by info,streambus=debug");
        assert!(ran.text.lines().any(|found| found == line), "{}", ran.text);
        let show = streambus(cluster.broker(id), &["control", "log", "show", "-o", "json"]).await.json();
        assert_eq!(show["override"]["filter"], "info,streambus=debug", "broker {id}: {show}");
        assert!(
            show["override"]["terms"]["requested_by"].as_str().is_some_and(|by| by.starts_with("ann from "))
        );
    }
    let only = ["control", "log", "clear", "--this-broker", "--reason", "enough"];
    assert!(streambus(cluster.broker(1), &only).await.success);
    let shown = |ran: crate::support::tool::Ran| ran.json()["override"].is_null();
    assert!(shown(streambus(cluster.broker(1), &["control", "log", "show", "-o", "json"]).await));
    assert!(!shown(streambus(cluster.broker(2), &["control", "log", "show", "-o", "json"]).await));
    assert_eq!(cluster.broker(1).events("control.changed").last().expect("audited")["reason"], "enough");

    cluster.kill(3);
    within("the loss is noticed", async {
        while Box::pin(cluster.status_at(1))
            .await
            .expect("a status")
            .brokers
            .iter()
            .all(|broker| broker.reached)
        {}
    })
    .await;
    let ran = streambus(
        cluster.broker(1),
        &["control", "sampling", "set", "0.5", "--topic", "orders", "--for", "1m"],
    )
    .await;
    assert!(!ran.success, "one broker did not take it");
    assert!(ran.text.contains("broker 1 traces 0.5 of what is produced to orders"), "{ran:?}");
    assert!(ran.text.contains("broker 3: ") && ran.errors.contains("1 of 3 brokers"), "{ran:?}");
    let show = streambus(cluster.broker(2), &["control", "sampling", "show", "-o", "json"]).await.json();
    assert_eq!(
        (&show["overrides"][0]["topic"], &show["overrides"][0]["ratio"]),
        (&"orders".into(), &0.5.into())
    );
}
