//! What a broker says while it waits for others.

use serde_json::Value;
use streambus::telemetry::catalog;

use crate::support::{Cluster, PATIENCE, Process, eventually, free_address};

/// Waits until `/health` says of the check `broker` what is wished, and gives that.
async fn waits_for(broker: &Process, wish: &str) -> String {
    eventually(PATIENCE, &format!("its health says {wish}"), async || {
        let (status, health) = broker.health("/health").await;
        assert_eq!((status, &health["status"]), (503, &Value::from("unhealthy")), "{health}");
        let says = health["checks"]["broker"].as_str().expect("a text").to_owned();
        says.contains(wish).then_some(says)
    })
    .await
}

/// Waits until the log says what the broker waits for.
async fn logged(broker: &Process) -> String {
    let told = async || broker.events("broker.waiting").first().cloned();
    let event = eventually(PATIENCE, "the log says what it waits for", told).await;
    event["waiting_for"].as_str().expect("a text").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_looks_for_its_cluster_says_whom_it_waits_for() {
    let [this, other] = [(), ()].map(|()| free_address());
    let seeds = format!("{this},{other}");
    let of = |grpc| [("cluster.seeds", seeds.as_str()), ("api.grpc_listen", grpc)];
    let first = Process::start_until("broker.searching", &of(&this)).await;
    waits_for(&first, &format!("starting: waiting for seeds to answer: {other} (")).await;
    for (probe, wished) in [("live", 200), ("startup", 503), ("ready", 503)] {
        let (status, answer) = first.health(&format!("/health/{probe}")).await;
        assert_eq!(status, wished, "{probe}: {answer}");
        let reason = answer["reason"].as_str().unwrap_or_default();
        assert_eq!(reason.contains(&other), wished == 503, "{probe}: {answer}");
    }
    let (_, health) = first.health("/health").await;
    for check in ["broker", "storage", "cluster"] {
        assert_ne!(health["checks"][check], "ok", "{health}");
    }
    assert_eq!(first.scrape().await.get(&catalog::BROKER_STATUS, &[]), Some(1.0));
    assert!(logged(&first).await.contains(&other));

    // The port that was open goes on.
    let second = Process::start(&of(&other)).await;
    for broker in [&first, &second] {
        eventually(PATIENCE, "it is ready", async || {
            (broker.health("/health/ready").await.0 == 200).then_some(())
        })
        .await;
    }
    assert_eq!(first.scrape().await.get(&catalog::BROKER_STATUS, &[]), Some(2.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_none_of_its_seeds_says_so() {
    let [this, other, name] = [(), (), ()].map(|()| free_address());
    // The one that would found the cluster knows itself under another name than its seeds.
    let seeds = format!("{this},{other}");
    let settings = |grpc, name| {
        [("cluster.seeds", seeds.as_str()), ("api.grpc_listen", grpc), ("server.grpc_advertise", name)]
    };
    let first = Process::start_until("broker.searching", &settings(&this, &name)).await;
    let second = Process::start_until("broker.searching", &settings(&other, &other)).await;
    waits_for(&second, &format!("{this} to found a cluster")).await;
    let says = waits_for(&first, &format!("{this} to found a cluster")).await;
    assert!(says.contains(&name) && says.contains("set server.grpc_advertise"), "{says}");
    assert_eq!(first.events("broker.not_a_seed").len(), 1);
    assert_eq!(second.events("broker.not_a_seed").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_starts_without_a_majority_names_those_that_are_missing() {
    let mut cluster = Cluster::start(3).await;
    let addresses = [2, 3].map(|id| cluster.broker(id).grpc.to_string());
    for broker in 1..=3 {
        cluster.kill(broker);
    }
    let alone = cluster.begin_restart(1).await;
    let [second, third] = &addresses;
    let missing = format!("brokers 2 ({second}), 3 ({third}) are not reached");
    let says = waits_for(&alone, &missing).await;
    assert!(says.contains("a leader of the control group"), "{says}");
    let (status, answer) = alone.health("/health/startup").await;
    assert_eq!(status, 503);
    assert!(answer["reason"].as_str().expect("a reason").contains(&missing), "{answer}");
    assert!(logged(&alone).await.contains(&missing));
    cluster.restart(2).await;
    eventually(PATIENCE, "two of three are enough", async || {
        (alone.health("/health/ready").await.0 == 200).then_some(())
    })
    .await;
}
