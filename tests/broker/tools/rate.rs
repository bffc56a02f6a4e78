//! A load with a rate.

use std::time::{Duration, Instant};

use streambus::telemetry::catalog;

use crate::support::tool::streambus;
use crate::support::{PATIENCE, Process, TestBroker, eventually};

/// How long the broker does nothing.
const FROZEN: Duration = Duration::from_millis(400);

#[tokio::test(flavor = "multi_thread")]
async fn a_load_with_a_rate_keeps_it_and_counts_what_waited_for_a_broker_that_stood_still() {
    let broker = Process::start(&[]).await;
    let load = ["bench", "produce", "--rate", "1000", "--records", "2000", "--record-bytes", "100"];
    let ran = async {
        let started = Instant::now();
        (streambus(&broker, &load).await, started.elapsed())
    };
    let freeze = async {
        eventually(PATIENCE, "the load has begun", async || {
            let stored = broker.scrape().await.get(&catalog::MESSAGES_STORED, &[("topic", "bench")]);
            (stored >= Some(100.0)).then_some(())
        })
        .await;
        broker.freeze();
        tokio::time::sleep(FROZEN).await;
        broker.thaw();
    };
    let ((ran, took), ()) = tokio::join!(ran, freeze);
    assert!(took >= Duration::from_millis(1_999), "the last record is due after two seconds: {took:?}");
    let line = ran.json();
    assert_eq!((&line["rate"], &line["records"]), (&1000.into(), &2000.into()), "{line}");
    // A fifth of all records were due while the broker stood still. A load that waits for it would have sent few.
    let p99 = Duration::from_micros(line["p99_us"].as_f64().expect("a number") as u64);
    assert!(p99 >= FROZEN * 9 / 10, "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_refused_where_it_would_have_no_effect() {
    let broker = TestBroker::start().await;
    let ran = streambus(&broker, &["bench", "latency", "--rate", "10"]).await;
    assert!(!ran.success && ran.errors.contains("--rate is for `bench produce`"), "{ran:?}");
}
