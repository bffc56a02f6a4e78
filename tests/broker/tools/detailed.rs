//! `/metrics/detailed`.

use std::time::{Duration, Instant};

use streambus::proto::v1;
use streambus::telemetry::catalog;

use crate::support::asking::append;
use crate::support::{Process, TestBroker, View, batch};

fn at<'a>(partition: &'a str, topic: &'a str) -> [(&'a str, &'a str); 2] {
    [("partition", partition), ("topic", topic)]
}

async fn problem(broker: &TestBroker, query: &str, status: u16) -> String {
    let answer = broker.get(&format!("/metrics/detailed{query}")).await;
    assert_eq!(answer.status, status, "{query}: {}", answer.body);
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    let body: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    body["error"].as_str().expect("a text").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_apart_and_what_is_chosen_is_shown() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    broker.create_topic("audit", 1).await;
    append(&broker, "orders", 1, batch::values(["a", "b"])).await;
    let all = View::prometheus(&broker.get("/metrics/detailed").await.body);
    for row in catalog::DETAILED.iter().filter(|row| row.otel != catalog::REPLICA_LAG.otel) {
        assert_eq!(all.series_of(row, "").count(), 3, "{}", row.prometheus);
    }
    assert_eq!(all.get(&catalog::PARTITION_HIGH_WATERMARK, &at("1", "orders")), Some(2.0));
    assert_eq!(all.get(&catalog::PARTITION_HIGH_WATERMARK, &at("0", "orders")), Some(0.0));
    assert!(
        all.declared.contains_key(catalog::REPLICA_LAG.prometheus),
        "a family without series is declared"
    );

    let family = catalog::PARTITION_LEADER.prometheus;
    let one =
        View::prometheus(&broker.get(&format!("/metrics/detailed?family={family}&topic=audit")).await.body);
    assert_eq!((one.values.len(), one.families().len()), (1, 1));
    assert_eq!(one.get(&catalog::PARTITION_LEADER, &at("0", "audit")), Some(1.0));

    let usual = broker.scrape().await;
    assert!(catalog::DETAILED.iter().all(|row| !usual.families().contains(row.prometheus)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_every_partition_once_in_order() {
    let broker = TestBroker::start().await;
    broker.create_topic("b", 3).await;
    broker.create_topic("a.x", 2).await;
    let family = catalog::PARTITION_TERM.prometheus;
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let answer = broker.get(&format!("/metrics/detailed?family={family}&limit=2{after}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let samples = answer.body.lines().filter(|line| !line.starts_with('#'));
        seen.extend(samples.map(|line| line.split(' ').next().expect("a series").to_owned()));
        let next = answer.head.lines().find_map(|line| line.strip_prefix("streambus-next: "));
        match next {
            Some(next) => after = format!("&after={}", next.trim()),
            None => break,
        }
    }
    let expected = [("a.x", 0), ("a.x", 1), ("b", 0), ("b", 1), ("b", 2)]
        .map(|(topic, number)| format!("{family}{{partition=\"{number}\",topic=\"{topic}\"}}"));
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_format_is_negotiated_as_for_metrics() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    let request = "GET /metrics/detailed HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\
                   accept: application/openmetrics-text\r\n\r\n";
    let answer = broker.http(request).await;
    assert!(
        answer.head.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{}",
        answer.head
    );
    assert!(answer.body.ends_with("# EOF\n"));
    assert!(answer.body.contains("# UNIT streambus_partition_size_bytes bytes\n"), "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_get_a_precise_answer() {
    let broker = TestBroker::start().await;
    let unknown = problem(&broker, "?family=streambus_guess", 400).await;
    assert!(
        unknown.contains("streambus_guess") && unknown.contains("streambus_partition_leader"),
        "{unknown}"
    );
    assert!(problem(&broker, "?famly=x", 400).await.contains("there is no parameter \"famly\""));
    assert!(problem(&broker, "?limit=10001", 400).await.contains("from 1 to 10000"));
    assert!(problem(&broker, "?topic=nothing", 404).await.contains("there is no topic \"nothing\""));
    let off = TestBroker::with(|config| config.telemetry.metrics.enabled = false).await;
    assert!(problem(&off, "", 404).await.contains("telemetry.metrics.enabled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_of_many_partitions_is_quick() {
    const PARTITIONS: u32 = 50;
    let broker = Process::start(&[]).await;
    broker.create_topic("many", PARTITIONS).await;
    let started = Instant::now();
    let answer = broker.get("/metrics/detailed").await;
    let took = started.elapsed();
    assert_eq!(answer.status, 200);
    let samples = answer.body.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(samples, 5 * PARTITIONS as usize);
    println!("{samples} samples of {PARTITIONS} partitions in {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    let deleted = v1::DeleteTopicRequest { name: "many".to_owned() };
    broker.topics().await.delete_topic(deleted).await.expect("deleted");
    let after = View::prometheus(&broker.get("/metrics/detailed").await.body);
    assert!(!after.mentions("topic", "many"), "a deleted topic still has series");
}
