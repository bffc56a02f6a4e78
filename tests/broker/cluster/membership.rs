//! Brokers that join, leave, lose their disks, and lag.

use streambus::client::{BrokerStatus, ClusterStatus};
use streambus::proto::v1;
use streambus::proto::v1::position::At;

use crate::support::asking::{append, offsets, read, read_soon};
use crate::support::{Cluster, PATIENCE, Process, batch, eventually};

/// Fills partition 0 of a topic with `count` batches of noise of 10 KB each.
async fn fill(cluster: &Cluster, topic: &str, count: u64) {
    let (_, broker) = cluster.running().next().expect("a broker");
    for number in 0..count {
        append(broker, topic, 0, batch::noise(number, 10, 1_000)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_founds_no_cluster_anew() {
    let mut cluster = Cluster::start(3).await;
    let id = async |cluster: &Cluster, at| {
        cluster.broker(at).client().await.admin().describe_cluster().await.expect("an answer").cluster_id
    };
    let before = id(&cluster, 1).await;
    for broker in 1..=3 {
        cluster.kill(broker);
    }
    cluster.restart_together(&[1, 2, 3]).await;
    cluster.settled().await;
    for broker in 1..=3 {
        assert_eq!(id(&cluster, broker).await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_with_data_of_another_cluster_is_refused() {
    let cluster = Cluster::start(1).await;
    let stranger = Process::start(&[]).await;
    let seed = cluster.broker(1).grpc.to_string();
    let refused = stranger.kill().set("cluster.seeds", &seed).fails().await;
    assert!(refused.contains("belongs to cluster") && refused.contains("cluster.seeds"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_waits_for_others_can_be_stopped() {
    let [this, other] = [(), ()].map(|()| crate::support::free_address());
    let settings = [("cluster.seeds", format!("{other},{this}")), ("api.grpc_listen", this)];
    let settings = settings.map(|(key, value)| (key.to_owned(), value));
    let (ended, said) = Process::stopped_while_it_waits(&settings).await;
    assert!(ended.success(), "{ended}: {said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_with_the_same_list_of_seeds_found_one_cluster() {
    let ports: Vec<String> = (0..3).map(|_| crate::support::free_address()).collect();
    let seeds = ports.join(",");
    let starts = ports.iter().map(|port| {
        let settings = [("cluster.seeds", seeds.as_str()), ("api.grpc_listen", port.as_str())];
        async move { Process::start(&settings).await }
    });
    let brokers = futures_util::future::join_all(starts).await;
    let mut ids = std::collections::BTreeSet::new();
    for broker in &brokers {
        let cluster = broker.client().await.admin().describe_cluster().await.expect("an answer");
        ids.insert(cluster.cluster_id.clone());
        eventually(PATIENCE, "all three are known", async || {
            let cluster = broker.client().await.admin().describe_cluster().await.ok()?;
            (cluster.brokers.len() == 3).then_some(())
        })
        .await;
    }
    assert_eq!(ids.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_its_disk_comes_back_as_another_and_gets_every_record() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic("kept", 3, 3).await;
    cluster.settled().await;
    fill(&cluster, "kept", 50).await;
    cluster.kill(2);
    let id = cluster.replace(2).await;
    assert_eq!(id, 4);
    cluster
        .until(1, "the old broker is gone and the new one has its replicas", |status| {
            let ids: Vec<u64> = status.brokers.iter().map(|broker| broker.broker_id).collect();
            let full = status.brokers.iter().any(|broker| broker.broker_id == 4 && broker.replicas == 3);
            ids == [1, 3, 4] && full && status.problems.is_empty()
        })
        .await;
    // It has all of it itself: the others are not needed to read.
    let admin = cluster.client().await.admin();
    eventually(PATIENCE, "the new broker leads", async || admin.transfer_leader("kept", 0, 4).await.ok())
        .await;
    let records = read_soon(cluster.broker(4), "kept", 0, At::Earliest(())).await;
    assert_eq!((records.error.as_ref(), records.high_watermark), (None, 500));
    assert_eq!(offsets(&records).first(), Some(&0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_broker_with_votes_is_removed_only_after_another_has_them() {
    let mut cluster = Cluster::start(2).await;
    let admin = cluster.client().await.admin();
    let voter = |status: &ClusterStatus| status.controller_voters == [1];
    cluster.until(2, "the first broker has the only vote", voter).await;
    let refused = admin.remove_broker(1).await.expect_err("nothing could be agreed on without it");
    assert!(refused.to_string().contains("drain it first"), "{refused}");
    admin.drain_broker(1, false).await.expect("known");
    // At once, although others are to get its votes first.
    eventually(PATIENCE, "it is removed", async || match admin.remove_broker(1).await {
        Ok(()) => Some(()),
        Err(refused) => {
            let text = refused.to_string();
            assert!(text.contains("still has votes") || refused.is_retriable(), "{refused}");
            None
        }
    })
    .await;
    // It still runs, and says that it has left; a client that names it first goes on to the other one.
    let alone = cluster.broker(1).topics().await;
    eventually(PATIENCE, "it knows that it was removed", async || {
        let listed = alone.clone().list_topics(v1::ListTopicsRequest::default()).await;
        listed.is_err().then_some(())
    })
    .await;
    cluster.client().await.admin().list_topics().await.expect("the other one serves");
    cluster.kill(1);
    cluster.create_topic("kept", 1, 1).await;
    append(cluster.broker(2), "kept", 0, batch::values(["kept"])).await;
    let alone = |status: &ClusterStatus| status.brokers.len() == 1 && status.controller_voters == [2];
    cluster.until(2, "the other one is the cluster", alone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_broker_has_nothing_left_and_can_be_removed() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic("moved", 6, 2).await;
    cluster.settled().await;
    fill(&cluster, "moved", 20).await;
    let admin = cluster.client().await.admin();
    let refused = admin.remove_broker(3).await.expect_err("it has replicas");
    assert!(refused.to_string().contains("drain it first"), "{refused}");
    let fourth = cluster.grow().await;
    admin.drain_broker(3, false).await.expect("known");
    cluster
        .until(1, "nothing is left", |status| {
            let empty =
                |broker: &BrokerStatus| broker.broker_id == 3 && broker.replicas == 0 && broker.votes == 0;
            status.brokers.iter().any(empty) && status.problems.is_empty()
        })
        .await;
    admin.remove_broker(3).await.expect("removed");
    cluster.kill(3);
    cluster
        .until(fourth, "the others are one cluster", |status| {
            status.brokers.len() == 3 && status.controller_voters.len() == 3 && status.problems.is_empty()
        })
        .await;
    let records = read(cluster.broker(1), "moved", 0, At::Earliest(()), &[]).await;
    assert_eq!(records.high_watermark, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_brokers_are_told() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic("all", 1, 3).await;
    let admin = cluster.client().await.admin();
    let refused = admin.drain_broker(2, false).await.expect_err("three replicas need three brokers");
    assert!(refused.to_string().contains("add a broker first"), "{refused}");
    let request = v1::CreateTopicRequest { name: "more".into(), replication_factor: 4, ..Default::default() };
    let refused = cluster.broker(2).topics().await.create_topic(request).await.expect_err("four");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_reassigned_by_hand() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic("one", 1, 1).await;
    fill(&cluster, "one", 30).await;
    let from = cluster.leader("one", 0).await;
    let to = from % 3 + 1;
    cluster.client().await.admin().reassign_partition("one", 0, vec![to]).await.expect("known brokers");
    cluster
        .until(to, "the partition has moved", |status| {
            let has = |id| {
                let broker = status.brokers.iter().find(|broker| broker.broker_id == id);
                broker.map(|one| (one.replicas, one.leaders))
            };
            has(from) == Some((0, 0)) && has(to) == Some((1, 1)) && status.problems.is_empty()
        })
        .await;
    let records = read(cluster.broker(from), "one", 0, At::Earliest(()), &[]).await;
    assert_eq!(records.high_watermark, 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_lags_behind_the_log_start_catches_up() {
    let mut cluster = Cluster::with(3, &[("raft.checkpoint_bytes", "16384")]).await;
    cluster.create_topic("trimmed", 1, 3).await;
    cluster.settled().await;
    let leader = cluster.leader("trimmed", 0).await;
    let follower = leader % 3 + 1;
    fill(&cluster, "trimmed", 10).await;
    cluster.kill(follower);
    fill(&cluster, "trimmed", 60).await;
    let request = v1::DeleteRecordsRequest { topic: "trimmed".into(), partition: 0, before_offset: 500 };
    let broker = cluster.broker(leader);
    let deleted = broker.topics().await.delete_records(request).await.expect("deleted").into_inner();
    assert_eq!(deleted.log_start_offset, 500);
    fill(&cluster, "trimmed", 10).await;
    cluster.restart(follower).await;
    cluster.settled().await;
    let admin = cluster.client().await.admin();
    eventually(PATIENCE, "it leads, so it has everything", async || {
        admin.transfer_leader("trimmed", 0, follower).await.ok()
    })
    .await;
    let records = read(cluster.broker(follower), "trimmed", 0, At::Earliest(()), &[]).await;
    assert_eq!((records.log_start_offset, records.high_watermark), (500, 800));
    assert_eq!(offsets(&records).first(), Some(&500));
}
