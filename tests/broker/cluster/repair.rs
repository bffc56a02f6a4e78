//! Replicas whose bytes on disk are not those that were written.

use std::time::Duration;

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
/// What an entry that fills a table takes to be found in it, mostly.
const SOON: Duration = Duration::from_millis(300);
/// The first record of the batch that gets damaged.
const DAMAGED: u64 = 8;

fn noise(number: u64) -> Bytes {
    batch::noise(number, 4, 32 << 10)
}

/// What identifies the batch that begins with this record, on disk.
fn mark_of(record: u64) -> Bytes {
    batch::records(&noise(record / 4))[0].value.clone().expect("a value")
}

/// What identifies the damaged batch.
fn mark() -> Bytes {
    mark_of(DAMAGED)
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

async fn in_a_table(cluster: &Cluster, id: u64, mark: &Bytes) {
    let directory = cluster.data_dir(id);
    eventually(PATIENCE, "the records are in a table", async || {
        damage::find_in_tables(&directory, mark).map(drop)
    })
    .await;
}

/// Damages the batch that begins with `record` on a broker that stops in order for it, so that nobody has noticed yet.
async fn damage_unnoticed(cluster: &mut Cluster, id: u64, record: u64) {
    damage_batch(cluster, id, record, true).await;
    cluster.settled().await;
}

/// Damages the replica of a broker while that is down. Ended in order it has nothing to apply at its next start, and may
/// not notice then.
async fn damage(cluster: &mut Cluster, id: u64, in_order: bool) {
    damage_batch(cluster, id, DAMAGED, in_order).await;
}

/// The same to the batch that begins with `record`.
async fn damage_batch(cluster: &mut Cluster, id: u64, record: u64, in_order: bool) {
    in_a_table(cluster, id, &mark_of(record)).await;
    match in_order {
        true => cluster.stop(id).await,
        false => cluster.kill(id),
    }
    damage::inflict(&cluster.data_dir(id), &mark_of(record));
    cluster.restart(id).await;
}

/// Damages the block of a broker's table of index rows that has those of the topic.
async fn damage_index(cluster: &mut Cluster, id: u64) {
    cluster.stop(id).await;
    let directory = cluster.data_dir(id);
    damage::write_out(&directory, "index");
    // How many bytes come before the batch, and its end: nothing else has these next to each other.
    let before: u64 = (0..DAMAGED / 4).map(|number| noise(number).len() as u64).sum();
    let row = [before.to_le_bytes(), (DAMAGED + 4).to_le_bytes()].concat();
    damage::inflict(&directory, &row);
    cluster.restart(id).await;
    cluster.settled().await;
}

async fn repairs(cluster: &Cluster) -> f64 {
    let mut total = 0.0;
    for (_, broker) in cluster.running() {
        total += broker.scrape().await.get(&catalog::REPLICA_REPAIRS, &[]).unwrap_or_default();
    }
    total
}

async fn repaired(cluster: &Cluster) {
    all_repaired(cluster, 1).await;
}

/// So many replicas were repaired, one after the other.
async fn all_repaired(cluster: &Cluster, count: usize) {
    let (id, _) = cluster.running().next().expect("a broker");
    eventually(PATIENCE, "the replicas were repaired", async || {
        let under_way = repairs_under_way(&cluster.status_at(id).await?);
        assert!(under_way <= 1, "{under_way} at once");
        (repairs(cluster).await == count as f64).then_some(())
    })
    .await;
    cluster.settled().await;
}

/// Repairs that have begun and are not over.
fn repairs_under_way(status: &ClusterStatus) -> usize {
    let stages = ["leaves its group", "is emptied", "gets everything"];
    let reasons = status.problems.iter().map(|problem| problem.reason.as_str());
    reasons.map(|reason| stages.iter().map(|stage| reason.matches(stage).count()).sum::<usize>()).sum()
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
    in_a_table(&cluster, victim, &mark()).await;
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
async fn a_replica_whose_last_entry_is_damaged_gets_everything_anew() {
    let mut cluster = Cluster::with(3, &[("cluster.balance_interval", "1h"), SMALL_TABLES]).await;
    cluster.create_topic(TOPIC, 1, 3).await;
    cluster.settled().await;
    let victim = cluster.leader(TOPIC, 0).await % 3 + 1;
    let directory = cluster.data_dir(victim);
    let mut batches = 0;
    // A table ends with the entry that fills it.
    let last = loop {
        append(cluster.broker(victim), TOPIC, 0, noise(batches)).await;
        let mark = mark_of(4 * batches);
        batches += 1;
        let in_a_table = async || damage::find_in_tables(&directory, &mark).map(drop);
        let found = eventually(PATIENCE, "it is in a table", in_a_table);
        if tokio::time::timeout(SOON, found).await.is_ok() {
            break mark;
        }
        assert!(batches < 200, "the last of so many batches is in no table");
    };
    cluster.stop(victim).await;
    damage::inflict(&directory, &last);
    cluster.restart(victim).await;
    repaired(&cluster).await;
    let admin = cluster.client().await.admin();
    eventually(PATIENCE, "it leads", async || admin.transfer_leader(TOPIC, 0, victim).await.ok()).await;
    let records = read_soon(cluster.broker(victim), TOPIC, 0, At::Offset(4 * (batches - 1))).await;
    assert_eq!((records.error, records.high_watermark), (None, 4 * batches));
    assert!(records.batches[0].batch == noise(batches - 1));
    assert!(corruptions(&cluster, victim).await >= 1.0);
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
async fn a_replica_whose_index_is_damaged_is_repaired_and_the_table_is_replaced_at_the_next_start() {
    let mut cluster = filled(3, 3, &[("partition.verify_interval", "300ms")]).await;
    cluster.create_topic("other", 1, 3).await;
    append(cluster.broker(1), "other", 0, noise(0)).await;
    let victim = cluster.leader(TOPIC, 0).await % 3 + 1;
    damage_index(&mut cluster, victim).await;
    eventually(PATIENCE, "it is noticed", async || (logged(&cluster, "index.damaged") == 1).then_some(()))
        .await;
    eventually(PATIENCE, "all are repaired", async || {
        let status = cluster.status_at(victim).await?;
        (repairs(&cluster).await >= 1.0 && status.problems.is_empty()).then_some(())
    })
    .await;
    has_everything(&cluster, victim).await;

    cluster.stop(victim).await;
    cluster.restart(victim).await;
    cluster.settled().await;
    assert_eq!(cluster.broker(victim).events("index.replaced").len(), 1);
    has_everything(&cluster, victim).await;
    let records = read_soon(cluster.broker(victim), "other", 0, At::Earliest(())).await;
    assert_eq!((records.error.as_ref(), offsets(&records)), (None, vec![0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_replica_makes_its_index_anew_from_its_log() {
    let mut cluster = filled(3, 1, &[]).await;
    let owner = cluster.leader(TOPIC, 0).await;
    damage_index(&mut cluster, owner).await;
    assert_eq!(cluster.broker(owner).events("index.remade").len(), 1);
    has_everything(&cluster, owner).await;
    cluster.kill(owner);
    cluster.restart(owner).await;
    cluster.settled().await;
    assert_eq!(cluster.broker(owner).events("index.replaced").len(), 1);
    has_everything(&cluster, owner).await;
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
async fn a_leader_that_cannot_read_what_a_follower_lacks_is_repaired() {
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
async fn a_follower_that_lacks_what_both_others_have_lost_apart_gets_everything() {
    let mut cluster = Cluster::with(3, &[("cluster.balance_interval", "1h"), SMALL_TABLES]).await;
    cluster.create_topic(TOPIC, 1, 3).await;
    cluster.settled().await;
    let late = cluster.leader(TOPIC, 0).await % 3 + 1;
    cluster.kill(late);
    fill(&cluster).await;
    let victims = [late % 3 + 1, (late + 1) % 3 + 1];
    for (victim, record) in victims.into_iter().zip([DAMAGED, DAMAGED + 16]) {
        damage_batch(&mut cluster, victim, record, true).await;
    }
    cluster.restart(late).await;
    all_repaired(&cluster, 2).await;
    for id in 1..=3 {
        has_everything(&cluster, id).await;
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn repairs_wait_until_it_is_their_turn() {
    let settings = [("cluster.balance_interval", "1h"), ("cluster.moves_at_once", "1"), SMALL_TABLES];
    let mut cluster = Cluster::with(3, &settings).await;
    let topics = ["first", "second", "third"];
    for topic in topics {
        cluster.create_topic(topic, 1, 3).await;
    }
    cluster.settled().await;
    // Each batch is there once, so that it is known whose it is.
    let number = |at: u64, batch: u64| 1_000 * (at + 1) + batch;
    for (at, topic) in (0..).zip(topics) {
        for batch in 0..BATCHES {
            append(cluster.broker(1), topic, 0, noise(number(at, batch))).await;
        }
    }
    let marks: Vec<Bytes> = (0..3).map(|at| mark_of(4 * number(at, DAMAGED / 4))).collect();
    for mark in &marks {
        in_a_table(&cluster, 3, mark).await;
    }
    cluster.stop(3).await;
    for mark in &marks {
        damage::inflict(&cluster.data_dir(3), mark);
    }
    cluster.restart(3).await;
    cluster.settled().await;
    for topic in topics {
        let records = read(cluster.broker(3), topic, 0, At::Offset(DAMAGED), &[]).await;
        assert_eq!(records.error, None, "another one has it");
    }
    let waits = |status: &ClusterStatus| {
        assert!(repairs_under_way(status) <= 1, "{status:?}");
        status.problems.iter().any(|problem| problem.reason.contains("waits for its turn"))
    };
    cluster.until(1, "one waits for its turn", waits).await;
    all_repaired(&cluster, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_damaged_replicas_are_repaired_one_after_the_other() {
    let mut cluster = filled(3, 3, &[]).await;
    let (intact, victims) = {
        let leader = cluster.leader(TOPIC, 0).await;
        (leader, [leader % 3 + 1, (leader + 1) % 3 + 1])
    };
    let records = [DAMAGED, DAMAGED + 16];
    for (victim, record) in victims.into_iter().zip(records) {
        damage_unnoticed(&mut cluster, victim, record).await;
    }
    // One that is damaged leads, so that it is to give the other one what that has lost.
    let admin = cluster.client().await.admin();
    eventually(PATIENCE, "a damaged one leads", async || {
        admin.transfer_leader(TOPIC, 0, victims[1]).await.ok()
    })
    .await;
    for (victim, record) in victims.into_iter().zip(records) {
        let found = read(cluster.broker(victim), TOPIC, 0, At::Offset(record), &[]).await;
        assert_eq!((&found.error, offsets(&found).first()), (&None, Some(&record)));
    }
    all_repaired(&cluster, 2).await;
    for id in victims.into_iter().chain([intact]) {
        has_everything(&cluster, id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_are_all_damaged_keep_what_they_have_until_another_one_has_it_all() {
    let mut cluster = filled(3, 3, &[]).await;
    for id in 1..=3 {
        damage_unnoticed(&mut cluster, id, 16 * id).await;
    }
    for id in 1..=3 {
        let found = read(cluster.broker(id), TOPIC, 0, At::Offset(16 * id), &[]).await;
        assert_eq!((&found.error, offsets(&found).first()), (&None, Some(&(16 * id))), "another one has it");
    }
    let kept = |status: &ClusterStatus| {
        let reasons = status.problems.iter().map(|problem| &problem.reason);
        reasons.map(|reason| reason.matches("no other one is intact").count()).sum::<usize>() == 3
    };
    // The first two may have been found before the last one was: one of them was repaired then, or is.
    cluster.until(1, "all are told, or repaired", |status| kept(status) || status.problems.is_empty()).await;
    let fourth = cluster.grow().await;
    let admin = cluster.client().await.admin();
    admin.reassign_partition(TOPIC, 0, vec![1, 2, 3, fourth]).await.expect("known brokers");
    cluster
        .until(1, "all are repaired", |status| {
            let full = status.brokers.iter().any(|broker| broker.broker_id == fourth && broker.replicas == 1);
            full && status.problems.is_empty()
        })
        .await;
    for id in [1, 2, 3, fourth] {
        has_everything(&cluster, id).await;
    }
}
