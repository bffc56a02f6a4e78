//! Replicas whose bytes on disk are not those that were written.

use bytes::Bytes;
use streambus::client::{ClusterStatus, ProblemKind};
use streambus::proto::v1;
use streambus::proto::v1::position::At;
use streambus::telemetry::catalog;

use crate::support::asking::{append, error, offsets, read, read_soon};
use crate::support::endpoint::{produce, reason};
use crate::support::{Cluster, PATIENCE, batch, damage, eventually};

const TOPIC: &str = "kept";
/// Batches of four records each, enough to be moved from memory to tables.
const BATCHES: u64 = 24;
const RECORDS: u64 = 4 * BATCHES;
/// The first table is written before all of them are there.
const SMALL_TABLES: (&str, &str) = ("storage.table_bytes", "1048576");
/// The first record of the batch that gets damaged.
const DAMAGED: u64 = 8;

fn noise(number: u64) -> Bytes {
    batch::noise(number, 4, 32 << 10)
}

/// What identifies the damaged batch.
fn mark() -> Bytes {
    batch::records(&noise(DAMAGED / 4))[0].value.clone().expect("a value")
}

async fn fill(cluster: &Cluster) {
    let (_, broker) = cluster.running().next().expect("a broker");
    for number in 0..BATCHES {
        append(broker, TOPIC, 0, noise(number)).await;
    }
}

/// Brokers of which none leads because it should, with a topic that has so many replicas and records.
async fn filled(brokers: u64, replicas: u32, settings: &[(&str, &str)]) -> Cluster {
    let settings = [&[("cluster.balance_interval", "1h"), SMALL_TABLES], settings].concat();
    let cluster = Cluster::with(brokers, &settings).await;
    cluster.create_topic(TOPIC, 1, replicas).await;
    cluster.settled().await;
    fill(&cluster).await;
    cluster
}

async fn in_a_table(cluster: &Cluster, id: u64) {
    let directory = cluster.data_dir(id);
    eventually(PATIENCE, "the records are in a table", async || {
        damage::find_in_tables(&directory, &mark()).map(drop)
    })
    .await;
}

/// Damages the replica of a broker while that is down. Ended in order it has nothing to apply at its next start, and may
/// not notice then.
async fn damage(cluster: &mut Cluster, id: u64, in_order: bool) {
    in_a_table(cluster, id).await;
    match in_order {
        true => cluster.stop(id).await,
        false => cluster.kill(id),
    }
    damage::inflict(&cluster.data_dir(id), &mark());
    cluster.restart(id).await;
}

async fn repairs(cluster: &Cluster) -> f64 {
    let mut total = 0.0;
    for (_, broker) in cluster.running() {
        total += broker.scrape().await.get(&catalog::REPLICA_REPAIRS, &[]).unwrap_or_default();
    }
    total
}

async fn repaired(cluster: &Cluster) {
    eventually(PATIENCE, "a replica was repaired", async || (repairs(cluster).await == 1.0).then_some(()))
        .await;
    cluster.settled().await;
}

/// The broker is the only one that is asked, has everything, and has what was damaged on its own disk again.
async fn has_everything(cluster: &Cluster, id: u64) {
    let admin = cluster.client().await.admin();
    eventually(PATIENCE, "it leads", async || admin.transfer_leader(TOPIC, 0, id).await.ok()).await;
    let before = corruptions(cluster, id).await;
    let mut found = Vec::new();
    while (found.len() as u64) < BATCHES {
        let next = found.last().map_or(0, |last| last + 4);
        let records = read_soon(cluster.broker(id), TOPIC, 0, At::Offset(next)).await;
        assert_eq!(records.error, None);
        assert_eq!(records.high_watermark, RECORDS);
        for stored in &records.batches {
            assert!(stored.batch == noise(stored.base_offset / 4), "{}", stored.base_offset);
        }
        found.extend(offsets(&records));
    }
    assert_eq!(found, (0..BATCHES).map(|number| 4 * number).collect::<Vec<_>>());
    // Else it would have got them from another replica.
    assert_eq!(corruptions(cluster, id).await, before, "broker {id} has met no damage");
}

/// The log of each broker that is asked has these events.
fn logged(cluster: &Cluster, event: &str) -> usize {
    cluster.running().map(|(_, broker)| broker.events(event).len()).sum()
}

fn damaged(status: &ClusterStatus) -> bool {
    status.problems.iter().any(|problem| problem.kind == ProblemKind::Damaged)
}

async fn corruptions(cluster: &Cluster, id: u64) -> f64 {
    cluster.broker(id).scrape().await.or_zero(&catalog::STORAGE_ERRORS, &[("kind", "corrupt")])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_damaged_when_it_is_opened_gets_everything_anew() {
    let mut cluster = filled(3, 3, &[]).await;
    let victim = cluster.leader(TOPIC, 0).await % 3 + 1;
    // Kept for long enough to be seen: nobody can take the vote of the damaged one while one of the others is away.
    let other = victim % 3 + 1;
    let away = if other == cluster.leader(TOPIC, 0).await { other % 3 + 1 } else { other };
    in_a_table(&cluster, victim).await;
    cluster.kill(victim);
    cluster.kill(away);
    damage::inflict(&cluster.data_dir(victim), &mark());
    cluster.restart(victim).await;
    cluster
        .until(victim, "the damage is told", |status| !status.problems.is_empty() && problem(status))
        .await;
    assert!(repairs(&cluster).await == 0.0, "a majority is more than one");
    cluster.restart(away).await;
    repaired(&cluster).await;
    assert!(corruptions(&cluster, victim).await >= 1.0);
    assert!(logged(&cluster, "replica.emptied") >= 1);
    assert_eq!(logged(&cluster, "replica.repaired"), 1);
    has_everything(&cluster, victim).await;
}

/// Whether the damage is named.
fn problem(status: &ClusterStatus) -> bool {
    status.problems.iter().any(|problem| problem.reason.contains("damaged"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_gets_what_one_replica_has_lost_from_another_and_it_is_repaired() {
    let mut cluster = filled(3, 3, &[]).await;
    let victim = cluster.leader(TOPIC, 0).await;
    damage(&mut cluster, victim, true).await;
    cluster.settled().await;
    assert_eq!(repairs(&cluster).await, 0.0, "nobody has noticed");
    let records = read(cluster.broker(victim), TOPIC, 0, At::Offset(DAMAGED), &[]).await;
    assert_eq!(records.error, None);
    assert_eq!(offsets(&records).first(), Some(&DAMAGED));
    assert!(corruptions(&cluster, victim).await >= 1.0, "it was this replica that was asked first");
    repaired(&cluster).await;
    assert_eq!(logged(&cluster, "replica.damaged"), 1);
    has_everything(&cluster, victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_before_somebody_reads() {
    let mut cluster = filled(3, 3, &[("partition.verify_interval", "300ms")]).await;
    let victim = cluster.leader(TOPIC, 0).await % 3 + 1;
    damage(&mut cluster, victim, true).await;
    repaired(&cluster).await;
    assert!(logged(&cluster, "replica.unreadable") >= 1);
    has_everything(&cluster, victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_read_what_a_follower_lacks_lets_another_lead() {
    let mut cluster = Cluster::with(3, &[("cluster.balance_interval", "1h"), SMALL_TABLES]).await;
    cluster.create_topic(TOPIC, 1, 3).await;
    cluster.settled().await;
    let victim = cluster.leader(TOPIC, 0).await;
    let late = victim % 3 + 1;
    cluster.kill(late);
    let admin = cluster.client().await.admin();
    fill(&cluster).await;
    damage(&mut cluster, victim, true).await;
    eventually(PATIENCE, "the damaged one leads", async || {
        admin.transfer_leader(TOPIC, 0, victim).await.ok()
    })
    .await;
    cluster.restart(late).await;
    repaired(&cluster).await;
    assert_ne!(cluster.leader(TOPIC, 0).await, victim);
    has_everything(&cluster, late).await;
    has_everything(&cluster, victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_replica_is_refused_with_what_is_wrong_with_it() {
    let mut cluster = filled(3, 1, &[]).await;
    let owner = cluster.leader(TOPIC, 0).await;
    damage(&mut cluster, owner, true).await;
    cluster.settled().await;
    let records = read(cluster.broker(owner), TOPIC, 0, At::Offset(DAMAGED), &[]).await;
    let (code, message) = error(&records);
    assert_eq!(code, v1::ErrorCode::Corrupt);
    assert!(message.contains("kept/0") && message.contains("8"), "{message}");
    for at in 1..=3 {
        cluster.until(at, "the damage is told", damaged).await;
        let status = cluster.status_at(at).await.expect("a status");
        assert!(status.problems[0].reason.contains("no other"), "{status:?}");
    }
    // What is intact is served as before.
    let records = read(cluster.broker(owner), TOPIC, 0, At::Offset(DAMAGED + 4), &[]).await;
    assert_eq!(offsets(&records).first(), Some(&(DAMAGED + 4)));
    assert_eq!(repairs(&cluster).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_replica_that_cannot_be_opened_is_told_and_counted() {
    let mut cluster = filled(3, 1, &[]).await;
    let owner = cluster.leader(TOPIC, 0).await;
    damage(&mut cluster, owner, false).await;
    cluster.until(owner, "the damage is told", problem).await;
    assert!(corruptions(&cluster, owner).await >= 1.0);
    let more = produce(TOPIC, 0, batch::values(["more"]));
    let refused = cluster.broker(owner).produce().await.produce(more).await.expect_err("it is not open");
    assert_eq!(reason(&refused).1, "CORRUPT", "{refused:?}");
    let records = read(cluster.broker(owner), TOPIC, 0, At::Offset(DAMAGED), &[]).await;
    assert_eq!(error(&records).0, v1::ErrorCode::Corrupt);
    assert_eq!(repairs(&cluster).await, 0.0);
}
