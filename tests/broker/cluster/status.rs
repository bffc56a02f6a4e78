//! What brokers say of a cluster that is not as it should be.

use streambus::client::{PartitionProblem, ProblemKind};
use streambus::telemetry::catalog;

use crate::support::tool::streambus;
use crate::support::{Cluster, PATIENCE, eventually};

/// The problem of a partition, as soon as it is of the wished kind at broker 1.
async fn problem(cluster: &Cluster, topic: &str, kind: ProblemKind) -> PartitionProblem {
    eventually(PATIENCE, &format!("{topic} is {kind:?}"), async || {
        let problems = cluster.status_at(1).await?.problems;
        problems.into_iter().find(|problem| problem.topic == topic && problem.kind == kind)
    })
    .await
}

async fn offline_in_metrics(cluster: &Cluster) -> Option<f64> {
    cluster.broker(1).scrape().await.get(&catalog::CLUSTER_PARTITIONS, &[("state", "offline")])
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_without_a_majority_are_offline_wherever_they_move() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic("three", 1, 3).await;
    cluster.create_topic("moves", 1, 1).await;
    cluster.settled().await;
    let admin = cluster.client().await.admin();
    admin.reassign_partition("moves", 0, vec![2]).await.expect("known");
    cluster.settled().await;
    cluster.kill(2);
    let lost = problem(&cluster, "moves", ProblemKind::Offline).await;
    assert!(lost.reason.contains("brokers 2 are not reached"), "{lost:?}");
    problem(&cluster, "three", ProblemKind::UnderReplicated).await;

    // Its only replica does not leave a broker that is down, so where it goes it is of no use yet.
    cluster.client().await.admin().reassign_partition("moves", 0, vec![1]).await.expect("known");
    eventually(PATIENCE, "it moves", async || {
        let lost = problem(&cluster, "moves", ProblemKind::Offline).await;
        (lost.replicas == [1]).then_some(())
    })
    .await;
    assert_eq!(offline_in_metrics(&cluster).await, Some(1.0));

    cluster.kill(3);
    let lost = problem(&cluster, "three", ProblemKind::Offline).await;
    assert!(lost.reason.contains("brokers 2, 3 are not reached, so there is no majority"), "{lost:?}");
    let told = streambus(cluster.broker(1), &["cluster", "status"]).await;
    assert!(!told.success && told.text.contains("leaderless        2, of which 2 are offline"), "{told:?}");
    assert_eq!(offline_in_metrics(&cluster).await, Some(2.0));
}
