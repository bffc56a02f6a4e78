//! `streambus top`, where it prints.

use streambus::client::{ProducerConfig, ProducerRecord};

use crate::support::endpoint::produce;
use crate::support::tool::streambus;
use crate::support::{Cluster, GroupStream, Process, batch, group, within};

#[tokio::test(flavor = "multi_thread")]
async fn once_prints_what_happened_in_one_interval() {
    let broker = Process::start(&[]).await;
    broker.create_topic("orders", 2).await;
    let mut member = GroupStream::join(&broker, group::join("billing", &["orders"])).await;
    member.until_assigned(2).await;
    let producer = broker.client().await.producer(ProducerConfig::default()).await.expect("a producer");
    let producing = async {
        loop {
            let record = ProducerRecord::new("orders").partition(1).value("some bytes of an order");
            producer.send(record).await.expect("taken").await.expect("written");
        }
    };
    let asked = async { streambus(&broker, &["top", "--once", "--interval", "1s", "-o", "json"]).await };
    let ran = tokio::select! {
        () = producing => unreachable!("it never ends"),
        ran = asked => ran,
    };
    assert!(ran.success, "{ran:?}");
    let sample = ran.json();
    let rate = |path: &str| sample.pointer(path).and_then(serde_json::Value::as_f64);
    let produced = rate("/produced/records_per_second").expect("a rate");
    assert!(produced > 1.0, "{sample:#}");
    assert!(rate("/produced/bytes_per_second").expect("a rate") > 20.0 * produced, "{sample:#}");
    assert!(rate("/consumed/records_per_second").expect("a rate") > 0.0, "{sample:#}");
    for p99 in
        ["/produce_p99_seconds", "/produce_phase_p99_seconds/append", "/produce_phase_p99_seconds/respond"]
    {
        assert!(rate(p99).expect("a time") > 0.0, "{p99}: {sample:#}");
    }
    assert_eq!(sample["topics"][0]["topic"], "orders");
    assert_eq!(
        (&sample["partitions"][0]["partition"], &sample["partitions"][0]["leader_id"]),
        (&1.into(), &1.into())
    );
    assert_eq!(sample["groups"][0]["group"], "billing");
    assert!(rate("/groups/0/lag").expect("a number") >= 1.0, "nothing was committed: {sample:#}");
    assert!(rate("/groups/0/lag_seconds").expect("a time") > 0.0, "{sample:#}");
    assert_eq!(
        (&sample["cluster"]["partitions"], &sample["cluster"]["brokers_reached"]),
        (&2.into(), &1.into())
    );
    assert_eq!(sample["brokers_missing"], serde_json::json!([]));
    assert!((0.9..10.0).contains(&rate("/interval_seconds").expect("a time")), "{sample:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_are_added_up_and_those_that_are_away_are_named() {
    // A leadership that moves in between has no rate yet.
    let mut cluster = Box::pin(Cluster::with(3, &[("cluster.balance_interval", "1h")])).await;
    cluster.create_topic("spread", 3, 3).await;
    cluster.settled().await;
    cluster.kill(3);
    let broker = cluster.broker(1);
    within("the loss is noticed", async {
        loop {
            let status = Box::pin(cluster.status_at(1)).await.expect("a status");
            if status.brokers.iter().any(|broker| !broker.reached)
                && status.problems.iter().all(|one| one.leader.is_some_and(|leader| leader != 3))
            {
                return;
            }
        }
    })
    .await;
    let mut client = broker.produce().await;
    let producing = async {
        loop {
            for partition in 0..3 {
                // Until the lost leaders are replaced, some are refused.
                let _ =
                    within("an answer", client.produce(produce("spread", partition, batch::values(["x"]))))
                        .await;
            }
        }
    };
    let asked = async { streambus(broker, &["top", "--once", "--interval", "500ms"]).await };
    let ran = tokio::select! {
        () = producing => unreachable!("it never ends"),
        ran = asked => ran,
    };
    assert!(ran.success, "{ran:?}");
    let has = |start: &str| ran.text.lines().any(|line| line.starts_with(start));
    assert!(has("cluster    2 of 3 brokers reached"), "{}", ran.text);
    assert!(ran.text.contains("0 leaderless, 3 under-replicated"), "{}", ran.text);
    assert!(has("missing    broker 3: "), "{}", ran.text);
    assert!(has("topic      spread: in "), "{}", ran.text);
    // Two brokers lead the three partitions, and each partition is there once.
    for partition in 0..3 {
        let lines =
            ran.text.lines().filter(|line| line.starts_with(&format!("partition  spread/{partition}: ")));
        assert_eq!(lines.count(), 1, "{}", ran.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_that_makes_no_sense_is_a_mistake() {
    let broker = Process::start(&[]).await;
    let ran = streambus(&broker, &["top", "--once", "--interval", "1ms"]).await;
    assert!(!ran.success && ran.errors.contains("below 100ms"), "{ran:?}");
}
