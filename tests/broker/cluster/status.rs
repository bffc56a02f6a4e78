//! What brokers say of a cluster that is not as it should be.

use streambus::client::{PartitionProblem, ProblemKind};
use streambus::proto::v1;
use streambus::proto::v1::position::At;
use streambus::telemetry::catalog;
use tonic::Code;

use crate::support::asking::append;
use crate::support::endpoint::{from, produce};
use crate::support::tool::{Running, streambus};
use crate::support::{Cluster, PATIENCE, Subscriber, batch, eventually};

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
    assert!(lost.reason.contains("broker 2 is not reached"), "{lost:?}");
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

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_wait_for_their_turn_to_move_are_moving_in_metrics_too() {
    let mut cluster = Cluster::with(3, &[("cluster.moves_at_once", "1")]).await;
    cluster.create_topic("moved", 3, 3).await;
    cluster.settled().await;
    // Where they go is not reached, so none of them arrives.
    let fourth = cluster.grow().await;
    cluster.kill(fourth);
    cluster.client().await.admin().drain_broker(3, false).await.expect("known");
    let moving = |problem: &&PartitionProblem| problem.kind == ProblemKind::Moving;
    let waits = |problem: &PartitionProblem| problem.reason.contains("wait for their turn");
    cluster
        .until(1, "one moves, and the others wait", |status| {
            let waiting = status.problems.iter().filter(moving).filter(|problem| waits(problem)).count();
            (status.problems.iter().filter(moving).count(), waiting) == (3, 2)
        })
        .await;
    let scrape = cluster.broker(1).scrape().await;
    assert_eq!(scrape.get(&catalog::CLUSTER_PARTITIONS, &[("state", "moving")]), Some(3.0));
}

/// Waits until a broker is not ready, and gives the reason.
async fn not_ready(cluster: &Cluster, id: u64) -> String {
    eventually(PATIENCE, &format!("broker {id} is not ready"), async || {
        let (status, answer) = cluster.broker(id).health("/health/ready").await;
        (status == 503).then(|| answer["reason"].as_str().expect("a reason").to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_a_vote_is_ready_only_while_there_is_a_majority() {
    let mut cluster = Cluster::start(4).await;
    let status = cluster.status_at(4).await.expect("a status");
    let (leader, voters) = (status.controller_id.expect("a leader"), status.controller_voters);
    let voteless = (1..=4).find(|id| !voters.contains(id)).expect("three of four vote");
    let others: Vec<u64> = voters.into_iter().filter(|id| *id != leader).collect();
    others.iter().for_each(|id| cluster.kill(*id));
    let reason = not_ready(&cluster, voteless).await;
    assert!(reason.starts_with("cluster: "), "{reason}");
    // It reaches the leader all the while.
    let status = cluster.status_at(voteless).await.expect("a status");
    assert_eq!(status.controller_id, None);
    assert!(status.brokers.iter().any(|broker| broker.broker_id == leader && broker.reached), "{status:?}");
    cluster.restart(others[0]).await;
    eventually(PATIENCE, "it is ready again", async || {
        (cluster.broker(voteless).health("/health/ready").await.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_removed_unnoticed_learns_it_and_serves_nobody() {
    let mut cluster = Cluster::start(4).await;
    cluster.create_topic("kept", 1, 1).await;
    let leader = cluster.leader("kept", 0).await;
    let admin = cluster.client().await.admin();
    if leader == 4 {
        admin.reassign_partition("kept", 0, vec![1]).await.expect("known");
        cluster.settled().await;
    }
    append(cluster.broker(1), "kept", 0, batch::values(["a"])).await;
    let removed = cluster.broker(4);
    let mut subscriber = Subscriber::start(removed, vec![from("kept", 0, At::Earliest(()))], 1 << 20).await;
    subscriber.delivery().await;
    removed.freeze();
    // It hears nothing of it.
    let admin = cluster.broker(1).client().await.admin();
    eventually(PATIENCE, "it is removed", async || admin.remove_broker(4).await.ok()).await;
    removed.thaw();
    let reason = not_ready(&cluster, 4).await;
    let wished = "broker 4 was removed from the cluster: stop it; with an empty data directory";
    assert!(reason.starts_with(wished), "{reason}");
    let (status, health) = removed.health("/health").await;
    assert_eq!(status, 503);
    assert_eq!(health["checks"]["broker"], reason.as_str());
    assert_eq!(removed.health("/health/live").await.0, 200);
    assert_eq!(removed.events("broker.left").len(), 1);
    let refused = removed.produce().await.produce(produce("kept", 0, batch::values(["a"]))).await;
    let refused = refused.expect_err("it is no member");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("no member of its cluster any more"), "{refused}");
    let request = v1::DeleteTopicRequest { name: "kept".into() };
    let refused = removed.topics().await.delete_topic(request).await.expect_err("nothing is passed on");
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(subscriber.failure().await.code(), Code::Unavailable);

    cluster.stop(4).await;
    let said = cluster.refuses(4).await;
    assert!(said.contains(wished), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_cannot_go_on_says_why() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic("wide", 1, 1).await;
    // More replicas than the topic wants, so that the drain is not refused.
    let admin = cluster.client().await.admin();
    admin.reassign_partition("wide", 0, vec![1, 2, 3]).await.expect("known");
    cluster.settled().await;
    let mut drain = Running::start(cluster.broker(1), &["cluster", "drain", "3"]);
    let why = "wide/0: replicas are to leave broker 3 and have nowhere to go: 3 replicas need as many brokers, \
               and 2 can take one";
    let told = |lines: &[String]| lines.iter().any(|line| line.contains(why));
    drain.until_said("it says why it does not go on", told).await;
    let waits = problem(&cluster, "wide", ProblemKind::Moving).await;
    assert!(waits.reason.contains("nowhere to go"), "{waits:?}");
    admin.reassign_partition("wide", 0, vec![1, 2]).await.expect("known");
    eventually(PATIENCE, "the broker has nothing left", async || {
        let status = cluster.status_at(1).await?;
        (status.brokers.iter().any(|one| one.broker_id == 3 && one.replicas == 0)).then_some(())
    })
    .await;
}
