//! What is not kept goes from the disks of all replicas.

use bytes::Bytes;
use streambus::proto::v1;
use streambus::proto::v1::position::At;

use crate::support::asking::{append, offsets, read_soon};
use crate::support::{Cluster, PATIENCE, batch, damage, eventually};

const TOPIC: &str = "kept";
/// Batches of 128 KiB, enough for several tables and checkpoints of 1 MiB.
const BATCHES: u64 = 40;

fn noise(number: u64) -> Bytes {
    batch::noise(number, 4, 32 << 10)
}

/// Whether a batch is in a table of the broker.
fn has(cluster: &Cluster, id: u64, number: u64) -> bool {
    let mark = batch::records(&noise(number))[0].value.clone().expect("a value");
    damage::find_in_tables(&cluster.data_dir(id), &mark).is_some()
}

async fn on_all(cluster: &Cluster, what: &str, holds: impl Fn(u64) -> bool) {
    for (id, _) in cluster.running() {
        eventually(PATIENCE, &format!("broker {id}: {what}"), async || holds(id).then_some(())).await;
    }
}

async fn delete_before(cluster: &Cluster, offset: u64) {
    let leader = cluster.leader(TOPIC, 0).await;
    let request = v1::DeleteRecordsRequest { topic: TOPIC.to_owned(), partition: 0, before_offset: offset };
    let answer = cluster.broker(leader).topics().await.delete_records(request).await.expect("deleted");
    assert_eq!(answer.into_inner().log_start_offset, offset);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_frees_its_disk_of_what_was_trimmed() {
    let settings = [
        ("cluster.balance_interval", "1h"),
        ("partition.retention_interval", "100ms"),
        ("raft.checkpoint_bytes", "1MiB"),
        ("storage.table_bytes", "1MiB"),
    ];
    let mut cluster = Cluster::with(3, &settings).await;
    cluster.create_topic(TOPIC, 1, 3).await;
    cluster.settled().await;
    let leader = cluster.leader(TOPIC, 0).await;
    for number in 0..BATCHES {
        append(cluster.broker(leader), TOPIC, 0, noise(number)).await;
    }
    on_all(&cluster, "the first batch is in a table", |id| has(&cluster, id, 0)).await;

    delete_before(&cluster, 4 * (BATCHES - 1)).await;
    on_all(&cluster, "the first batch is gone", |id| !has(&cluster, id, 0)).await;

    // Who followed has what is kept, and goes on with it.
    let next = leader % 3 + 1;
    let admin = cluster.client().await.admin();
    eventually(PATIENCE, "another one leads", async || admin.transfer_leader(TOPIC, 0, next).await.ok())
        .await;
    let kept = read_soon(cluster.broker(next), TOPIC, 0, At::Earliest(())).await;
    assert_eq!((offsets(&kept), kept.log_start_offset), (vec![4 * (BATCHES - 1)], 4 * (BATCHES - 1)));
    assert_eq!(append(cluster.broker(next), TOPIC, 0, noise(BATCHES)).await.base_offset, 4 * BATCHES);

    // Nothing is kept, and nothing new comes; one was away when that was decided.
    let away = next % 3 + 1;
    cluster.kill(away);
    delete_before(&cluster, 4 * (BATCHES + 1)).await;
    cluster.restart(away).await;
    on_all(&cluster, "nothing is left", |id| (0..=BATCHES).all(|number| !has(&cluster, id, number))).await;
}
