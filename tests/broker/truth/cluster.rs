//! Several brokers: who reaches whom, what is replicated how fast, and which partitions need attention.

use streambus::proto::v1::position::At;
use streambus::telemetry::catalog;

use super::proof::{Moment, Proof, same, within};
use crate::support::asking::{append, read};
use crate::support::cluster::other_leader;
use crate::support::{Cluster, Collector, PATIENCE, batch, damage, eventually};

const STATES: [&str; 5] = ["leaderless", "offline", "under_replicated", "moving", "misplaced"];

async fn moment(cluster: &Cluster, id: u64, collector: &Collector) -> Moment {
    let scrape = cluster.broker(id).scrape().await;
    Moment { scrape, export: collector.fresh_metrics().await }
}

/// Waits until the broker shows this many partitions in a state.
async fn shows(cluster: &Cluster, id: u64, state: &str, wanted: f64) {
    eventually(PATIENCE, &format!("{wanted} partitions are {state}"), async || {
        let view = cluster.broker(id).scrape().await;
        (view.get(&catalog::CLUSTER_PARTITIONS, &[("state", state)]) == Some(wanted)).then_some(())
    })
    .await;
}

/// Claims something of the rows of the cluster that need several brokers. Gives a moment in which each of them has a
/// series.
pub async fn prove(proof: &mut Proof) -> Moment {
    let collector = Collector::start().await;
    // Only the first broker exports, so that the collector hears of one broker.
    let mut cluster = Cluster::with_founder(
        3,
        &[
            ("cluster.balance_interval", "1h"),
            ("raft.checkpoint_bytes", "16384"),
            ("storage.table_bytes", "1048576"),
        ],
        &[("telemetry.otlp.endpoint", collector.endpoint()), ("telemetry.otlp.metrics_interval", "100ms")],
    )
    .await;
    cluster.create_topic("replicated", 1, 3).await;
    cluster.settled().await;
    let admin = cluster.client().await.admin();
    if cluster.leader("replicated", 0).await != 1 {
        admin.transfer_leader("replicated", 0, 1).await.expect("handed over");
    }
    shows(&cluster, 1, "under_replicated", 0.0).await;

    let healthy = moment(&cluster, 1, &collector).await;
    proof.equals(&healthy, &catalog::CLUSTER_SIZE, &[], 3.0);
    for state in STATES {
        let misplaced = f64::from(state == "misplaced" && !first_replica_is_first_broker(&cluster).await);
        proof.equals(&healthy, &catalog::CLUSTER_PARTITIONS, &[("state", state)], misplaced);
    }
    for peer in ["2", "3"] {
        proof.equals(&healthy, &catalog::PEER_CONNECTED, &[("peer", peer)], 1.0);
        proof.equals(&healthy, &catalog::REPLICATION_LAG, &[("peer", peer)], 0.0);
    }
    proof.at(&healthy, &catalog::RAFT_ELECTIONS, |view| {
        // The control group, four shards and the partition, each at least once.
        within("elections", view.get(&catalog::RAFT_ELECTIONS, &[]), 6.0, 60.0)
    });
    proof.equals(&healthy, &catalog::RAFT_SNAPSHOTS, &[], 0.0);
    proof.equals(&healthy, &catalog::PARTITION_MOVES, &[], 0.0);
    proof.equals(&healthy, &catalog::REPLICA_REPAIRS, &[], 0.0);

    // Ten entries, each of which both followers store.
    for number in 0..10 {
        append(cluster.broker(1), "replicated", 0, batch::values([number.to_string()])).await;
    }
    eventually(PATIENCE, "both followers have all of it", async || {
        let view = cluster.broker(1).scrape().await;
        let behind = ["2", "3"].map(|peer| view.get(&catalog::REPLICATION_LAG, &[("peer", peer)]));
        (behind == [Some(0.0), Some(0.0)]).then_some(())
    })
    .await;
    let written = moment(&cluster, 1, &collector).await;
    proof.between([&healthy, &written], &catalog::REPLICATION_LATENCY, |before, after| {
        let row = &catalog::REPLICATION_LATENCY;
        // One value for each entry and follower; fewer if entries travelled together, more for entries of other groups.
        within("acknowledged", Some(after.count(row) - before.count(row)), 10.0, 60.0)
    });

    // A follower dies: it is not reached, lacks what is written now, and the partition is under-replicated.
    cluster.kill(2);
    shows(&cluster, 1, "under_replicated", 1.0).await;
    for number in 0..5 {
        append(cluster.broker(1), "replicated", 0, batch::noise(number, 10, 1_000)).await;
    }
    let wounded = moment(&cluster, 1, &collector).await;
    proof.equals(&wounded, &catalog::PEER_CONNECTED, &[("peer", "2")], 0.0);
    proof.equals(&wounded, &catalog::PEER_CONNECTED, &[("peer", "3")], 1.0);
    proof.equals(&wounded, &catalog::CLUSTER_PARTITIONS, &[("state", "under_replicated")], 1.0);
    proof.at(&wounded, &catalog::REPLICATION_LAG, |view| {
        within("entries that 2 lacks", view.get(&catalog::REPLICATION_LAG, &[("peer", "2")]), 5.0, 1e3)
    });

    // No majority is left.
    cluster.kill(3);
    shows(&cluster, 1, "offline", 1.0).await;
    let alone = moment(&cluster, 1, &collector).await;
    for (state, count) in [("leaderless", 1.0), ("offline", 1.0), ("under_replicated", 0.0)] {
        proof.equals(&alone, &catalog::CLUSTER_PARTITIONS, &[("state", state)], count);
    }
    cluster.restart_together(&[2, 3]).await;
    cluster.settled().await;

    // The only replica of a partition moves from this broker to another one.
    cluster.create_topic("moving", 3, 1).await;
    let here = async {
        for partition in 0..3 {
            if cluster.leader("moving", partition).await == 1 {
                return partition;
            }
        }
        panic!("three partitions are spread over three brokers");
    };
    let partition = here.await;
    let before = moment(&cluster, 1, &collector).await;
    cluster
        .client()
        .await
        .admin()
        .reassign_partition("moving", partition, vec![2])
        .await
        .expect("reassigned");
    let moves = async |id: u64| {
        let row = &catalog::PARTITION_MOVES;
        cluster.broker(id).scrape().await.get(row, &[]).unwrap_or_default()
    };
    // The leader that has moved it counts, which is the new one.
    eventually(PATIENCE, "the move is counted", async || (moves(2).await == 1.0).then_some(())).await;
    assert_eq!(other_leader(cluster.broker(1), "moving", partition, 1).await, 2);
    cluster
        .client()
        .await
        .admin()
        .reassign_partition("moving", partition, vec![1])
        .await
        .expect("reassigned");
    eventually(PATIENCE, "the move back is counted", async || (moves(1).await >= 1.0).then_some(())).await;
    let after = moment(&cluster, 1, &collector).await;
    proof.grew([&before, &after], &catalog::PARTITION_MOVES, &[], 1.0);

    // A replica of a partition that this broker leads is damaged, and gets its records anew.
    let before = moment(&cluster, 1, &collector).await;
    damage_a_replica(&mut cluster).await;
    let repairs = async || cluster.broker(1).scrape().await.get(&catalog::REPLICA_REPAIRS, &[]);
    eventually(PATIENCE, "the repair is counted", async || (repairs().await == Some(1.0)).then_some(()))
        .await;
    let after = moment(&cluster, 1, &collector).await;
    proof.grew([&before, &after], &catalog::REPLICA_REPAIRS, &[], 1.0);

    // This broker lags behind the start of the log, and takes over a snapshot.
    let heir = 3;
    let admin = cluster.client().await.admin();
    eventually(PATIENCE, "another broker leads", async || {
        admin.transfer_leader("replicated", 0, heir).await.ok()
    })
    .await;
    cluster.kill(1);
    let others = cluster.broker(heir);
    eventually(PATIENCE, "the others take records", async || {
        let request = crate::support::endpoint::produce("replicated", 0, batch::values(["a"]));
        others.produce().await.produce(request).await.ok()
    })
    .await;
    for number in 0..40 {
        append(others, "replicated", 0, batch::noise(number, 10, 1_000)).await;
    }
    let described = others.client().await.admin().describe_topic("replicated").await.expect("there");
    let end = described.partitions[0].high_watermark.0;
    let request = streambus::proto::v1::DeleteRecordsRequest {
        topic: "replicated".into(),
        partition: 0,
        before_offset: end - 10,
    };
    others.topics().await.delete_records(request).await.expect("deleted");
    append(others, "replicated", 0, batch::noise(99, 10, 1_000)).await;
    cluster.restart(1).await;
    cluster.settled().await;
    let back = moment(&cluster, 1, &collector).await;
    proof.at(&back, &catalog::RAFT_SNAPSHOTS, |view| {
        within("snapshots", view.get(&catalog::RAFT_SNAPSHOTS, &[]), 1.0, 10.0)
    });
    proof.at(&back, &catalog::CLUSTER_PARTITIONS, |view| {
        same("leaderless", view.get(&catalog::CLUSTER_PARTITIONS, &[("state", "leaderless")]), Some(0.0))
    });
    back
}

/// Lets the third broker have a damaged replica of a partition that the first one leads, and notice it.
async fn damage_a_replica(cluster: &mut Cluster) {
    cluster.create_topic("damaged", 1, 3).await;
    cluster.settled().await;
    let admin = cluster.client().await.admin();
    eventually(PATIENCE, "the first broker leads", async || {
        admin.transfer_leader("damaged", 0, 1).await.ok()
    })
    .await;
    for number in 0..24 {
        append(cluster.broker(1), "damaged", 0, batch::noise(number, 4, 32 << 10)).await;
    }
    let mark = batch::records(&batch::noise(2, 4, 32 << 10))[0].value.clone().expect("a value");
    let directory = cluster.data_dir(3);
    eventually(PATIENCE, "the records are in a table", async || {
        damage::find_in_tables(&directory, &mark).map(drop)
    })
    .await;
    cluster.stop(3).await;
    damage::inflict(&directory, &mark);
    cluster.restart(3).await;
    cluster.settled().await;
    let records = read(cluster.broker(3), "damaged", 0, At::Offset(8), &[]).await;
    assert_eq!(records.error, None, "others have it");
}

async fn first_replica_is_first_broker(cluster: &Cluster) -> bool {
    let described = cluster.client().await.admin().describe_topic("replicated").await.expect("there");
    described.partitions[0].replica_ids.first() == Some(&1)
}
