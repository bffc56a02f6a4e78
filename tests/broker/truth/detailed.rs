//! What `/metrics/detailed` shows of each partition, in a cluster of three.

use streambus::client::{Offset, TopicPartition};
use streambus::telemetry::catalog;

use super::proof::Proof;
use crate::support::asking::append;
use crate::support::{Cluster, Endpoint, PATIENCE, View, batch, eventually};

const AT: &[(&str, &str)] = &[("partition", "0"), ("topic", "orders")];

async fn detailed(broker: &Endpoint) -> View {
    let answer = broker.get("/metrics/detailed?topic=orders").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    View::prometheus(&answer.body)
}

/// Claims every row: while all is well, after records were deleted, while a follower is away, after a hand-over.
pub async fn prove(proof: &mut Proof) {
    // Leaderships stay where this puts them.
    let mut cluster = Box::pin(Cluster::with(3, &[("cluster.balance_interval", "1h")])).await;
    cluster.create_topic("orders", 1, 3).await;
    cluster.settled().await;
    let leader = Box::pin(cluster.leader("orders", 0)).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let [kept, lost] = others.as_slice() else { panic!("{others:?}") };
    let lag = |id: u64, view: &View| {
        let id = id.to_string();
        view.get(&catalog::REPLICA_LAG, &[("partition", "0"), ("replica", &id), ("topic", "orders")])
    };
    let batches = [batch::values(["a", "b"]), batch::values(["c"])];
    for batch in &batches {
        append(cluster.broker(leader), "orders", 0, batch.clone()).await;
    }
    let settled = eventually(PATIENCE, "the followers have everything", async || {
        let view = detailed(cluster.broker(leader)).await;
        (others.iter().all(|id| lag(*id, &view) == Some(0.0))).then_some(view)
    })
    .await;
    let bytes = batches.iter().map(bytes::Bytes::len).sum::<usize>() as f64;
    proof.detailed(&catalog::PARTITION_LOG_START, &settled, AT, 0.0);
    proof.detailed(&catalog::PARTITION_HIGH_WATERMARK, &settled, AT, 3.0);
    proof.detailed(&catalog::PARTITION_SIZE, &settled, AT, bytes);
    proof.detailed(&catalog::PARTITION_LEADER, &settled, AT, 1.0);
    for id in &others {
        let replica = id.to_string();
        let labels = [("partition", "0"), ("replica", replica.as_str()), ("topic", "orders")];
        proof.detailed(&catalog::REPLICA_LAG, &settled, &labels, 0.0);
        let follower = eventually(PATIENCE, "the follower shows everything", async || {
            let view = detailed(cluster.broker(*id)).await;
            (view.get(&catalog::PARTITION_HIGH_WATERMARK, AT) == Some(3.0)).then_some(view)
        })
        .await;
        proof.detailed(&catalog::PARTITION_LEADER, &follower, AT, 0.0);
        assert_eq!(follower.series_of(&catalog::REPLICA_LAG, "").count(), 0, "only the leader knows");
    }

    let admin = cluster.client().await.admin();
    admin.delete_records(&TopicPartition::new("orders", 0), Offset(2)).await.expect("deleted");
    let trimmed = detailed(cluster.broker(leader)).await;
    proof.detailed(&catalog::PARTITION_LOG_START, &trimmed, AT, 2.0);
    proof.detailed(&catalog::PARTITION_SIZE, &trimmed, AT, batches[1].len() as f64);

    // What is appended while a follower is away is what it lacks. Each batch alone is an entry.
    let caught_up = eventually(PATIENCE, "the followers have the deletion", async || {
        let view = detailed(cluster.broker(leader)).await;
        (lag(*lost, &view) == Some(0.0)).then_some(view)
    })
    .await;
    let term = caught_up.get(&catalog::PARTITION_TERM, AT).expect("a term");
    cluster.kill(*lost);
    for _ in 0..5 {
        append(cluster.broker(leader), "orders", 0, batch::values(["x"])).await;
    }
    let replica = lost.to_string();
    let labels = [("partition", "0"), ("replica", replica.as_str()), ("topic", "orders")];
    // The last acknowledgement may be a moment ahead of what the leader notes as committed.
    let behind = eventually(PATIENCE, "the leader notes the commits", async || {
        let view = detailed(cluster.broker(leader)).await;
        (view.get(&catalog::PARTITION_HIGH_WATERMARK, AT) == Some(8.0) && lag(*lost, &view) >= Some(5.0))
            .then_some(view)
    })
    .await;
    proof.detailed(&catalog::REPLICA_LAG, &behind, &labels, 5.0);

    admin.transfer_leader("orders", 0, *kept).await.expect("handed over");
    let after = eventually(PATIENCE, "the other leads", async || {
        let view = detailed(cluster.broker(*kept)).await;
        (view.get(&catalog::PARTITION_LEADER, AT) == Some(1.0)).then_some(view)
    })
    .await;
    assert!(after.get(&catalog::PARTITION_TERM, AT) > Some(term), "an election has a new term");
    // Both brokers that are left know of the same term.
    let newest = after.get(&catalog::PARTITION_TERM, AT).expect("a term");
    let former = eventually(PATIENCE, "the former leader follows", async || {
        let view = detailed(cluster.broker(leader)).await;
        (view.get(&catalog::PARTITION_LEADER, AT) == Some(0.0)).then_some(view)
    })
    .await;
    proof.detailed(&catalog::PARTITION_TERM, &former, AT, newest);
}
