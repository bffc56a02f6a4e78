//! Brokers that die, stop and come back under load.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use streambus::client::{
    Client, ClusterStatus, Offset, Position, ProducerConfig, ProducerRecord, TopicPartition,
};
use streambus::proto::v1;
use streambus::proto::v1::position::At;

use crate::support::asking::{append, read};
use crate::support::cluster::other_leader;
use crate::support::endpoint::reason;
use crate::support::group::{commit, committed, describe};
use crate::support::tool::{self, streambus};
use crate::support::{Cluster, Endpoint, PATIENCE, batch, eventually, within};

const PARTITIONS: u32 = 3;

/// What a producer was told.
#[derive(Default)]
struct Told {
    /// Number of the record by partition and offset.
    acknowledged: BTreeMap<(u32, u64), u64>,
    /// The longest time that nothing was acknowledged, by partition.
    longest: BTreeMap<u32, Duration>,
    last: BTreeMap<u32, Instant>,
    slowest: Duration,
    failed: Vec<String>,
}

/// A producer that sends numbered records until it is told to stop.
struct Feed {
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u64>,
}

impl Feed {
    fn start(client: Client, topic: &'static str) -> Self {
        let (told, stop) = (Arc::new(Mutex::new(Told::default())), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn(feed(client, topic, told.clone(), stop.clone()));
        Feed { told, stop, task }
    }

    fn so_far(&self) -> usize {
        self.told.lock().expect("no panic").acknowledged.len()
    }

    /// Waits until `more` records are acknowledged in every partition after now.
    async fn flows(&self) {
        let now = Instant::now();
        eventually(PATIENCE, "records are acknowledged in all partitions", async || {
            let told = self.told.lock().expect("no panic");
            let fresh = told.last.values().filter(|at| **at > now).count();
            (fresh == PARTITIONS as usize).then_some(())
        })
        .await;
    }

    /// Forgets how long nothing was acknowledged.
    fn measure_anew(&self) {
        let mut told = self.told.lock().expect("no panic");
        told.longest.clear();
        told.slowest = Duration::ZERO;
    }

    fn longest_gap(&self) -> Duration {
        self.told.lock().expect("no panic").longest.values().max().copied().unwrap_or_default()
    }

    async fn end(self) -> (u64, Told) {
        self.stop.store(true, Ordering::Release);
        let sent = within("the producer ends", self.task).await.expect("no panic");
        let told = std::mem::take(&mut *self.told.lock().expect("no panic"));
        (sent, told)
    }
}

async fn feed(client: Client, topic: &'static str, told: Arc<Mutex<Told>>, stop: Arc<AtomicBool>) -> u64 {
    let config =
        ProducerConfig { linger: Duration::from_millis(2), batch_bytes: 4096, ..ProducerConfig::default() };
    let producer = client.producer(config).await.expect("a producer");
    let in_flight = Arc::new(tokio::sync::Semaphore::new(300));
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        let permit = in_flight.clone().acquire_owned().await.expect("open");
        let record = ProducerRecord::new(topic)
            .partition((number % u64::from(PARTITIONS)) as u32)
            .value(number.to_string());
        let (told, sent) = (told.clone(), Instant::now());
        producer
            .send_with(record, move |outcome| {
                drop(permit);
                let mut told = told.lock().expect("no panic");
                match outcome {
                    Ok(at) => {
                        let again = told.acknowledged.insert((at.partition, at.offset.0), number);
                        assert_eq!(again, None, "one offset was given to two records");
                        let now = Instant::now();
                        if let Some(before) = told.last.insert(at.partition, now) {
                            let longest = told.longest.entry(at.partition).or_default();
                            *longest = (*longest).max(now - before);
                        }
                        told.slowest = told.slowest.max(sent.elapsed());
                    }
                    Err(error) => told.failed.push(format!("{number}: {error}")),
                }
            })
            .await
            .expect("taken");
        number += 1;
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    within("what was sent is delivered", producer.close()).await;
    number
}

/// Every value of the topic, by partition and offset, as one broker gives them.
async fn everything(broker: &Endpoint, topic: &str) -> BTreeMap<(u32, u64), u64> {
    let mut found = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let mut next = 0;
        loop {
            let records = read(broker, topic, partition, At::Offset(next), &[]).await;
            assert_eq!(records.error, None);
            for stored in &records.batches {
                for (number, record) in batch::records(&stored.batch).into_iter().enumerate() {
                    let value = String::from_utf8(record.value.expect("a value").to_vec()).expect("text");
                    let at = (partition, stored.base_offset + number as u64);
                    assert_eq!(found.insert(at, value.parse().expect("a number")), None);
                }
            }
            if records.next_offset == records.high_watermark {
                break;
            }
            next = records.next_offset;
        }
    }
    found
}

/// Compares what was acknowledged with what every broker has: nothing lost, doubled or out of order.
async fn check(cluster: &Cluster, topic: &str, sent: u64, told: &Told) {
    assert!(told.failed.is_empty(), "retries deliver every record in the end: {:?}", told.failed);
    assert_eq!(told.acknowledged.len() as u64, sent);
    for (id, broker) in cluster.running() {
        // Others than the leader learn a moment later what was acknowledged last.
        let found = eventually(PATIENCE, "a broker has as many records as were acknowledged", async || {
            let found = everything(broker, topic).await;
            (found.len() >= told.acknowledged.len()).then_some(found)
        })
        .await;
        assert_eq!(found.len(), told.acknowledged.len(), "broker {id}");
        assert!(found == told.acknowledged, "broker {id} has other records than were acknowledged");
        for partition in 0..PARTITIONS {
            let numbers: Vec<u64> =
                found.range((partition, 0)..=(partition, u64::MAX)).map(|(_, n)| *n).collect();
            assert!(numbers.is_sorted(), "partition {partition} of broker {id} is out of order");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_loses_nothing_and_another_takes_over() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic("numbers", PARTITIONS, 3).await;
    cluster.settled().await;
    let feed = Feed::start(cluster.client().await, "numbers");
    for round in 0..3 {
        feed.flows().await;
        feed.measure_anew();
        let victim = cluster.leader("numbers", round % PARTITIONS).await;
        cluster.kill(victim);
        feed.flows().await;
        let gap = feed.longest_gap();
        println!("leader {victim} killed: writes resumed after {gap:?}");
        assert!(gap < Duration::from_secs(10), "{gap:?}");
        cluster.restart(victim).await;
        cluster.settled().await;
    }
    feed.flows().await;
    let (sent, told) = feed.end().await;
    assert!(sent > 1_000, "{sent}");
    check(&cluster, "numbers", sent, &told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stands_still_is_left_behind_and_loses_nothing() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic("numbers", PARTITIONS, 3).await;
    cluster.settled().await;
    // The client knows the address of broker 1 first, and would ask it for ever.
    let feed = Feed::start(cluster.client().await, "numbers");
    feed.flows().await;
    feed.measure_anew();
    cluster.broker(1).freeze();
    feed.flows().await;
    let gap = feed.longest_gap();
    println!("broker 1 stands still: writes resumed after {gap:?}");
    assert!(gap < Duration::from_secs(15), "{gap:?}");
    cluster.broker(1).thaw();
    cluster.settled().await;
    feed.flows().await;
    let (sent, told) = feed.end().await;
    check(&cluster, "numbers", sent, &told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_fails_no_produce() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic("numbers", PARTITIONS, 3).await;
    cluster.settled().await;
    let feed = Feed::start(cluster.client().await, "numbers");
    feed.flows().await;
    feed.measure_anew();
    for id in 1..=3 {
        cluster.stop(id).await;
        cluster.restart(id).await;
        cluster.settled().await;
        feed.flows().await;
    }
    let gap = feed.longest_gap();
    let (sent, told) = feed.end().await;
    println!(
        "rolling restart: {sent} records, longest gap of a partition {gap:?}, slowest record {:?}",
        told.slowest
    );
    check(&cluster, "numbers", sent, &told).await;
    assert!(told.slowest < Duration::from_secs(3), "{:?}", told.slowest);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_acknowledged_and_with_one_all_goes_on() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic("numbers", PARTITIONS, 3).await;
    cluster.settled().await;
    let feed = Feed::start(cluster.client().await, "numbers");
    feed.flows().await;
    cluster.kill(2);
    cluster.kill(3);
    let stuck = eventually(PATIENCE, "health names what is missing", async || {
        let (status, health) = cluster.broker(1).health("/health").await;
        (status == 503).then_some(health)
    })
    .await;
    println!("{stuck}");
    eventually(PATIENCE, "it is not ready", async || {
        (cluster.broker(1).health("/health/ready").await.0 == 503).then_some(())
    })
    .await;
    let (live, _) = cluster.broker(1).health("/health/live").await;
    assert_eq!(live, 200, "liveness does not depend on others");
    let acknowledged = feed.so_far();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(feed.so_far() <= acknowledged + 300, "what was under way at most");
    cluster.restart(2).await;
    feed.flows().await;
    cluster.restart(3).await;
    cluster.settled().await;
    let (sent, told) = feed.end().await;
    check(&cluster, "numbers", sent, &told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_without_a_majority_says_so() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic("numbers", PARTITIONS, 3).await;
    cluster.settled().await;
    let controller =
        cluster.status_at(1).await.and_then(|status| status.controller_id).expect("a controller");
    let left = controller % 3 + 1;
    let other = 6 - controller - left;
    // The follower goes first, so that nobody else can lead and the one that is left hears of no other leader.
    cluster.kill(other);
    cluster.kill(controller);
    let broker = cluster.broker(left);
    let reason = eventually(PATIENCE, "it is not ready", async || {
        let (status, health) = broker.health("/health/ready").await;
        (status == 503).then(|| health["reason"].as_str().expect("a reason").to_owned())
    })
    .await;
    assert!(reason.contains("control group has no leader"), "{reason}");
    // It stays so through the elections that it begins.
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for path in ["/health", "/health/ready"] {
            assert_eq!(broker.health(path).await.0, 503, "{path}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster
        .until(left, "nobody leads", |status| {
            status.controller_id.is_none()
                && status.coordinators.iter().all(Option::is_none)
                && status.problems.len() == PARTITIONS as usize
                && status.problems.iter().all(|problem| problem.reason.contains("there is no majority"))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_are_ready_while_the_only_replica_of_a_partition_is_away() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic("single", PARTITIONS, 1).await;
    cluster.settled().await;
    cluster.kill(3);
    eventually(PATIENCE, "health names what is missing", async || {
        let (status, health) = cluster.broker(1).health("/health").await;
        let reason = health["checks"]["cluster"].as_str().unwrap_or_default();
        (status == 503 && reason.contains("partitions have no leader")).then_some(())
    })
    .await;
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        for (id, broker) in cluster.running() {
            let (status, health) = broker.health("/health/ready").await;
            assert_eq!(status, 200, "{id}: {health}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = cluster.status_at(1).await.expect("a status");
    let reason = "broker 3 is not reached, so there is no majority: start it";
    assert_eq!(status.problems.iter().map(|problem| &*problem.reason).collect::<Vec<_>>(), [reason]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_topic_has_no_replicas_on_a_broker_that_is_away() {
    let mut cluster = Cluster::start(3).await;
    cluster.settled().await;
    cluster.kill(2);
    let away = |status: &ClusterStatus| {
        status.controller_id.is_some()
            && status.brokers.iter().any(|broker| broker.broker_id == 2 && !broker.reached)
    };
    for id in [1, 3] {
        cluster.until(id, "the dead broker is missed", away).await;
    }
    cluster.create_topic("single", 6, 1).await;
    cluster.create_topic("double", 6, 2).await;
    for (topic, partition) in (0..6).flat_map(|partition| [("single", partition), ("double", partition)]) {
        assert_ne!(cluster.leader(topic, partition).await, 2);
    }
    let status = cluster.status_at(1).await.expect("a status");
    let replicas: Vec<_> = status.brokers.iter().map(|broker| (broker.broker_id, broker.replicas)).collect();
    assert_eq!(replicas, [(1, 9), (2, 0), (3, 9)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_offsets_survive_their_coordinator() {
    use crate::support::{GroupStream, group};
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic("numbers", PARTITIONS, 3).await;
    cluster.settled().await;
    let broker = cluster.broker(1);
    for partition in 0..PARTITIONS {
        crate::support::asking::append(broker, "numbers", partition, batch::values(["a", "b", "c"])).await;
    }
    let mut member = GroupStream::join(broker, group::join("readers", &["numbers"])).await;
    member.records(9).await;
    let ends = [(0, 3), (1, 2), (2, 1)];
    assert!(member.commit("numbers", &ends).await.iter().all(Option::is_none));
    let coordinator = group::describe(broker, "readers").await.expect("there").coordinator_id;
    cluster.kill(coordinator);
    let (_, other) = cluster.running().next().expect("a broker");
    let committed = eventually(PATIENCE, "another coordinator answers", async || {
        let request =
            streambus::proto::v1::FetchOffsetsRequest { group: "readers".into(), partitions: vec![] };
        let answer = other.groups().await.fetch_offsets(request).await.ok()?.into_inner();
        let described = group::describe(other, "readers").await.ok()?;
        (described.coordinator_id != coordinator).then_some(answer)
    })
    .await;
    let found: BTreeMap<u32, u64> =
        committed.offsets.iter().filter_map(|at| Some((at.partition, at.offset?))).collect();
    assert_eq!(found, BTreeMap::from(ends));
    // A member that joins now gets what was not committed, and only that.
    let mut member = eventually(PATIENCE, "the coordinator takes members", async || {
        GroupStream::try_join(other, group::join("readers", &["numbers"])).await.ok()
    })
    .await;
    let got = member.records(3).await;
    let mut got: Vec<(u32, u64)> = got.iter().map(|record| (record.partition, record.offset)).collect();
    got.sort_unstable();
    assert_eq!(got, [(1, 2), (2, 1), (2, 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_the_metadata_that_comes_back_knows_what_was_made_without_it() {
    let mut cluster = Cluster::start(3).await;
    for topic in ["first", "second"] {
        cluster.settled().await;
        let controller = cluster.status_at(1).await.expect("a status").controller_id.expect("a controller");
        cluster.kill(controller);
        let next = |status: &ClusterStatus| status.controller_id.is_some_and(|id| id != controller);
        cluster.until(controller % 3 + 1, "another one leads the metadata", next).await;
        cluster.create_topic(topic, PARTITIONS, 3).await;
        cluster.restart(controller).await;
        let records = read(cluster.broker(controller), topic, 0, At::Offset(0), &[]).await;
        assert!(records.error.is_none(), "it is ready: {:?}", records.error);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leadership_is_handed_over_on_demand() {
    let cluster = Cluster::with(3, &[("cluster.balance_interval", "1h")]).await;
    cluster.create_topic("numbers", PARTITIONS, 3).await;
    cluster.settled().await;
    let admin = cluster.client().await.admin();
    let before = cluster.leader("numbers", 0).await;
    let heir = before % 3 + 1;
    admin.transfer_leader("numbers", 0, heir).await.expect("handed over");
    assert_eq!(other_leader(cluster.broker(1), "numbers", 0, before).await, heir);
    assert!(admin.balance_leaders().await.expect("balanced") >= 1);
    assert_eq!(other_leader(cluster.broker(1), "numbers", 0, heir).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_follows_a_topic_goes_on_when_leaders_change() {
    let mut cluster = Cluster::with(3, &[("cluster.balance_interval", "1h")]).await;
    cluster.create_topic("numbers", 1, 3).await;
    cluster.settled().await;
    let first = cluster.broker(1);
    let mut alone = tool::Running::start(first, &["consume", "numbers", "--follow"]);
    let mut member = tool::Running::start(first, &["consume", "numbers", "--follow", "--group", "readers"]);
    // A leader that hands over, one that ends in order, one that is killed, and each time one that comes back.
    for change in 0..6 {
        let (id, broker) = cluster.running().last().expect("a broker");
        crate::support::asking::append(broker, "numbers", 0, batch::values([change.to_string()])).await;
        let wanted: Vec<String> = (0..=change).map(|number| number.to_string()).collect();
        let what = format!("all is read before change {change}, written at {id}");
        assert_eq!(alone.until(&what, |lines| lines.len() >= wanted.len()).await, wanted);
        // What was not committed in time is read again.
        member.until(&what, |lines| wanted.iter().all(|value| lines.contains(value))).await;
        let leader = cluster.leader("numbers", 0).await;
        match change % 3 {
            0 => {
                let admin = cluster.client().await.admin();
                admin.transfer_leader("numbers", 0, leader % 3 + 1).await.expect("handed over");
            }
            1 => {
                cluster.stop(leader).await;
                other_leader(cluster.running().next().expect("a broker").1, "numbers", 0, leader).await;
                cluster.restart(leader).await;
                cluster.settled().await;
            }
            _ => {
                cluster.kill(leader);
                other_leader(cluster.running().next().expect("a broker").1, "numbers", 0, leader).await;
                cluster.restart(leader).await;
                cluster.settled().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_broker_says_of_all_when_they_sync() {
    let cluster = Cluster::with_founder(3, &[], &[("storage.sync", "interval")]).await;
    for (_, broker) in cluster.running() {
        let described = streambus(broker, &["cluster", "describe", "--output", "json"]).await.json();
        let of = |at: usize| described["brokers"][at]["storage_sync"].as_str().map(str::to_owned);
        assert_eq!(
            [of(0), of(1), of(2)].map(Option::unwrap),
            ["interval", "always", "always"],
            "{described}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_found_although_their_partition_has_just_lost_its_leader() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic("orders", 1, 3).await;
    cluster.settled().await;
    append(cluster.broker(1), "orders", 0, batch::values(["a", "b"])).await;
    let leader = cluster.leader("orders", 0).await;
    let admin = cluster.broker(leader % 3 + 1).client().await.admin();
    cluster.kill(leader);
    let end = (TopicPartition::new("orders", 0), Position::Latest);
    let found = admin.list_offsets(&[end]).await.expect("somebody answers");
    assert_eq!(found[0].as_ref().ok(), Some(&Offset(2)), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_deleted_without_a_majority_is_there_afterwards() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic("orders", 1, 3).await;
    cluster.settled().await;
    append(cluster.broker(1), "orders", 0, batch::values(["a", "b"])).await;
    let offsets = vec![commit("orders", 0, 1)];
    let request = v1::CommitOffsetsRequest { group: "billing".to_owned(), membership: None, offsets };
    cluster.broker(1).groups().await.commit_offsets(request).await.expect("committed");
    let coordinator = describe(cluster.broker(1), "billing").await.expect("it is there").coordinator_id;
    let others: Vec<u64> = (1..=3).filter(|id| *id != coordinator).collect();
    others.iter().for_each(|id| cluster.kill(*id));
    let deserted = |status: &ClusterStatus| status.coordinators.iter().all(Option::is_none);
    cluster.until(coordinator, "it knows that nobody follows it", deserted).await;
    let delete = v1::DeleteGroupRequest { group: "billing".to_owned() };
    let refused = within("an answer", async {
        cluster.broker(coordinator).groups().await.delete_group(delete).await.expect_err("nobody agrees")
    })
    .await;
    let (_, code, _) = reason(&refused);
    assert!(["NOT_LEADER", "NOT_READY"].contains(&code.as_str()), "nothing was changed: {refused:?}");
    for id in others {
        cluster.restart(id).await;
    }
    cluster.settled().await;
    assert_eq!(committed(cluster.broker(coordinator), "billing", "orders").await[&0], 1);
}
