//! Share groups: records are leased one by one, acknowledged, released, given up on, and never lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use streambus::proto::v1;
use streambus::proto::v1::AckKind;
use streambus::proto::v1::position::At;
use streambus::telemetry::catalog;

use super::{put, put_numbers};
use crate::support::asking::read;
use crate::support::endpoint::{duration, reason};
use crate::support::group::{describe, join_share};
use crate::support::{Endpoint, GroupStream, PATIENCE, Process, TestBroker, batch, eventually};

const LONG: Duration = Duration::from_secs(600);

async fn member(broker: &Endpoint, lease: Duration, deliveries_max: u32) -> GroupStream {
    GroupStream::join(broker, join_share("workers", &["jobs"], lease, deliveries_max)).await
}

/// Headers of the records of the dead-letter topic.
async fn dead_letters(broker: &Endpoint) -> Vec<(v1::Record, BTreeMap<String, String>)> {
    let records = read(broker, "workers.dead-letter", 0, At::Earliest(()), &[]).await;
    let all = records.batches.iter().flat_map(|stored| batch::records(&stored.batch));
    all.map(|record| {
        let headers = record.headers.iter();
        let headers =
            headers.map(|h| (h.key.clone(), String::from_utf8_lossy(&h.value).into_owned())).collect();
        (record, headers)
    })
    .collect()
}

#[tokio::test]
async fn each_record_goes_to_one_member_and_what_is_accepted_never_comes_again() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 2).await;
    for number in 0..20 {
        put_numbers(&broker, "jobs", number % 2, 0, 5).await;
    }
    let few = |mut join: v1::JoinGroup| {
        join.in_flight_records_max = 10;
        join
    };
    let mut first = GroupStream::join(&broker, few(join_share("workers", &["jobs"], LONG, 5))).await;
    let mut second = GroupStream::join(&broker, few(join_share("workers", &["jobs"], LONG, 5))).await;
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        for member in [&mut first, &mut second] {
            for got in member.records(10).await {
                assert_eq!(got.deliveries, 1);
                assert!(seen.insert((got.partition, got.offset)), "delivered twice: {got:?}");
                let one = (got.partition, got.offset, got.offset);
                assert_eq!(member.acknowledge("jobs", &[one], AckKind::Accept).await, [None]);
            }
        }
    }
    assert_eq!(seen.len(), 100);
    let described = describe(&broker, "workers").await.expect("there");
    assert_eq!(described.kind(), v1::GroupKind::Share);
    assert!(
        described.partitions.iter().all(|at| (at.committed_offset, at.lag, at.leased) == (Some(50), 0, 0))
    );
    broker.stop().await;
}

#[tokio::test]
async fn what_is_released_comes_again_after_its_delay_and_is_counted() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    put(&broker, "jobs", 0, &["a", "b"]).await;
    let mut worker = member(&broker, LONG, 5).await;
    assert_eq!(worker.records(2).await.len(), 2);
    let delay = Duration::from_millis(400);
    let later = v1::Acknowledgement {
        topic: "jobs".to_owned(),
        kind: AckKind::Release.into(),
        delay: Some(duration(delay)),
        ..Default::default()
    };
    let at_once = v1::Acknowledgement { first_offset: 1, last_offset: 1, delay: None, ..later.clone() };
    let released = std::time::Instant::now();
    assert_eq!(worker.acknowledge_with(vec![later, at_once]).await, [None, None]);
    let again = worker.records(2).await;
    assert_eq!([again[0].value.as_str(), again[1].value.as_str()], ["b", "a"]);
    assert_eq!((again[0].deliveries, again[1].deliveries), (2, 2));
    assert!(released.elapsed() >= delay);
    broker.stop().await;
}

#[tokio::test]
async fn a_lease_that_ends_makes_room_for_another_member() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    put(&broker, "jobs", 0, &["a"]).await;
    // It has credit for one delivery, so the record does not come back to it.
    let once = join_share("workers", &["jobs"], Duration::from_secs(1), 5);
    let mut slow = GroupStream::join(&broker, v1::JoinGroup { credit_bytes: 1, ..once }).await;
    assert_eq!(slow.record().await.deliveries, 1);
    let mut other = member(&broker, LONG, 5).await;
    let got = other.record().await;
    assert_eq!((got.value.as_str(), got.deliveries), ("a", 2));
    let late = slow.acknowledge("jobs", &[(0, 0, 0)], AckKind::Accept).await;
    assert_eq!(late, [Some(v1::ErrorCode::LeaseExpired)]);
    assert_eq!(other.acknowledge("jobs", &[(0, 0, 0)], AckKind::Accept).await, [None]);
    broker.stop().await;
}

#[tokio::test]
async fn a_lease_that_is_extended_does_not_end() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    put(&broker, "jobs", 0, &["a"]).await;
    let mut slow = member(&broker, Duration::from_secs(1), 5).await;
    slow.record().await;
    let began = std::time::Instant::now();
    eventually(PATIENCE, "two leases' time is over", async || {
        assert_eq!(slow.acknowledge("jobs", &[(0, 0, 0)], AckKind::Extend).await, [None]);
        (began.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .await;
    assert!(slow.pending.is_empty());
    assert_eq!(slow.acknowledge("jobs", &[(0, 0, 0)], AckKind::Accept).await, [None]);
    broker.stop().await;
}

#[tokio::test]
async fn the_leases_of_a_member_that_is_gone_end_at_once() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    put(&broker, "jobs", 0, &["a", "b"]).await;
    let mut gone = member(&broker, LONG, 5).await;
    assert_eq!(gone.records(2).await.len(), 2);
    assert_eq!(gone.acknowledge("jobs", &[(0, 0, 0)], AckKind::Accept).await, [None]);
    let mut other = member(&broker, LONG, 5).await;
    drop(gone);
    let got = other.record().await;
    assert_eq!((got.value.as_str(), got.deliveries), ("b", 2));
    broker.stop().await;
}

#[tokio::test]
async fn hopeless_and_rejected_records_go_to_the_dead_letter_topic() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    let record = v1::Record {
        key: Some("k".into()),
        value: Some("poison".into()),
        headers: vec![v1::Header { key: "h".to_owned(), value: "v".into() }],
        timestamp_ms: 77,
    };
    crate::support::asking::append(&broker, "jobs", 0, batch::of([record.clone(), batch::record("bad")]))
        .await;
    let mut worker = member(&broker, LONG, 2).await;
    for deliveries in 1..=2 {
        let got = worker.record().await;
        assert_eq!((got.offset, got.deliveries), (0, deliveries));
        assert_eq!(worker.acknowledge("jobs", &[(0, 0, 0)], AckKind::Release).await, [None]);
        worker.pending.retain(|got| got.offset != 1);
    }
    let reject = v1::Acknowledgement {
        topic: "jobs".to_owned(),
        first_offset: 1,
        last_offset: 1,
        kind: AckKind::Reject.into(),
        reason: "not a job".to_owned(),
        ..Default::default()
    };
    assert_eq!(worker.acknowledge_with(vec![reject]).await, [None]);
    let letters = eventually(PATIENCE, "both are copied", async || {
        let exists = v1::DescribeTopicRequest { name: "workers.dead-letter".to_owned() };
        broker.topics().await.describe_topic(exists).await.ok()?;
        Some(dead_letters(&broker).await).filter(|letters| letters.len() == 2)
    })
    .await;
    for (letter, headers) in letters {
        assert_eq!(headers["streambus-dead-letter-topic"], "jobs");
        assert_eq!(headers["streambus-dead-letter-partition"], "0");
        assert_eq!(headers["streambus-dead-letter-group"], "workers");
        if headers["streambus-dead-letter-offset"] == "0" {
            assert_eq!(headers["streambus-dead-letter-reason"], "max_deliveries");
            assert_eq!(headers["streambus-dead-letter-delivery-count"], "2");
            assert_eq!(
                (letter.key, letter.value, letter.timestamp_ms),
                (record.key.clone(), record.value.clone(), 77)
            );
            assert_eq!(letter.headers[0], record.headers[0]);
        } else {
            assert_eq!(headers["streambus-dead-letter-reason"], "rejected");
            assert_eq!(headers["streambus-dead-letter-detail"], "not a job");
            assert_eq!(letter.value, Some("bad".into()));
        }
    }
    eventually(PATIENCE, "the group is done with both", async || {
        let described = describe(&broker, "workers").await.expect("there");
        (described.partitions[0].committed_offset == Some(2) && described.partitions[0].lag == 0)
            .then_some(())
    })
    .await;
    let labels = &[("group", "workers"), ("topic", "jobs")];
    assert_eq!(broker.scrape().await.get(&catalog::GROUP_DEAD_LETTERS, labels), Some(2.0));
    broker.stop().await;
}

const JOBS: u64 = 300;
/// Of them, what one member has at a time.
const SHARE: u32 = 60;

/// A broker with jobs and their dead-letter topic.
async fn with_jobs() -> TestBroker {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    broker.create_topic("workers.dead-letter", 1).await;
    put_numbers(&broker, "jobs", 0, 0, JOBS).await;
    broker
}

#[tokio::test]
async fn a_record_that_does_not_fit_into_the_dead_letter_topic_keeps_no_others_waiting() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    let small = v1::TopicConfig { record_bytes_max: Some(2_000), ..Default::default() };
    broker.create_topic_with("workers.dead-letter", 1, small).await;
    put(&broker, "jobs", 0, &["large ".repeat(1_000).as_str(), "small"]).await;
    let mut worker = member(&broker, LONG, 5).await;
    worker.records(2).await;
    let all = [(0, 0, 1)];
    assert!(worker.acknowledge("jobs", &all, AckKind::Reject).await.iter().all(Option::is_none));
    let letters = eventually(PATIENCE, "the other one is copied", async || {
        Some(dead_letters(&broker).await).filter(|letters| !letters.is_empty())
    })
    .await;
    assert_eq!(letters[0].1["streambus-dead-letter-offset"], "1");
    broker.stop().await;
}

/// Rejects with a new member its share of the jobs. Their copies are under way then.
async fn reject_some(broker: &Endpoint) -> GroupStream {
    // With credit for one delivery.
    let join = v1::JoinGroup {
        credit_bytes: 1,
        in_flight_records_max: SHARE,
        ..join_share("workers", &["jobs"], LONG, 5)
    };
    let mut worker = GroupStream::join(broker, join).await;
    let mut given = worker.records(1).await;
    given.extend(worker.pending.drain(..));
    let all: Vec<_> = given.iter().map(|got| (got.partition, got.offset, got.offset)).collect();
    assert!(worker.acknowledge("jobs", &all, AckKind::Reject).await.iter().all(Option::is_none));
    worker
}

/// Accepts with a new member what the group is not done with, and checks that each job is either accepted or a dead
/// letter, and is so once.
async fn accept_the_rest(broker: &Endpoint) {
    let mut accepted = Vec::new();
    let mut last = member(broker, LONG, 5).await;
    let done = eventually(PATIENCE, "the group is done with all records", async || {
        let described = describe(broker, "workers").await.expect("there");
        (described.partitions[0].committed_offset == Some(JOBS)).then_some(())
    });
    tokio::pin!(done);
    loop {
        let got = tokio::select! {
            () = &mut done => break,
            got = last.record() => got,
        };
        let one = (got.partition, got.offset, got.offset);
        assert_eq!(last.acknowledge("jobs", &[one], AckKind::Accept).await, [None]);
        accepted.push(got.offset);
    }
    let dead: Vec<u64> = dead_letters(broker)
        .await
        .iter()
        .map(|(_, headers)| headers["streambus-dead-letter-offset"].parse().expect("an offset"))
        .collect();
    let mut all = [accepted, dead].concat();
    all.sort_unstable();
    assert_eq!(all, (0..JOBS).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_one_dead_letter_and_is_not_accepted_too_when_the_last_member_goes() {
    let broker = with_jobs().await;
    for _ in 0..4 {
        reject_some(&broker).await.leave().await;
    }
    accept_the_rest(&broker).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_one_dead_letter_and_is_not_accepted_too_when_the_broker_stops_in_order() {
    let mut broker = with_jobs().await;
    for _ in 0..4 {
        let _worker = reject_some(&broker).await;
        broker = broker.restart_with(|_| {}).await;
    }
    accept_the_rest(&broker).await;
    broker.stop().await;
}

#[tokio::test]
async fn acknowledgements_that_make_no_sense_are_refused_one_by_one() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    put(&broker, "jobs", 0, &["a", "b"]).await;
    let mut worker = member(&broker, LONG, 5).await;
    worker.records(2).await;
    let expired = Some(v1::ErrorCode::LeaseExpired);
    assert_eq!(worker.acknowledge("jobs", &[(0, 0, 2)], AckKind::Accept).await, [expired]);
    assert_eq!(worker.acknowledge("jobs", &[(7, 0, 0)], AckKind::Accept).await, [expired]);
    let backwards = worker.acknowledge("jobs", &[(0, 1, 0)], AckKind::Accept).await;
    assert_eq!(backwards, [Some(v1::ErrorCode::InvalidArgument)]);
    assert_eq!(worker.acknowledge("jobs", &[(0, 0, 1)], AckKind::Accept).await, [None]);
    assert_eq!(worker.acknowledge("jobs", &[(0, 0, 0)], AckKind::Accept).await, [expired]);
    let commit = v1::subscribe_request::Action::Commit(v1::Commit {
        correlation_id: 1,
        epoch: worker.epoch,
        offsets: vec![crate::support::group::commit("jobs", 0, 1)],
    });
    worker.send(commit).await;
    assert_eq!(reason(&worker.failure().await).1, "INVALID_ARGUMENT");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn across_kills_nothing_accepted_comes_again_and_nothing_else_is_lost() {
    const RECORDS: u64 = 300;
    let mut broker = Process::start(&[]).await;
    broker.create_topic("jobs", 1).await;
    for number in (0..RECORDS).step_by(10) {
        put_numbers(&broker, "jobs", 0, number, 10).await;
    }
    let mut accepted = BTreeSet::new();
    let mut rounds = 0;
    while accepted.len() < RECORDS as usize {
        rounds += 1;
        assert!(rounds < 50, "{} of {RECORDS} after {rounds} kills", accepted.len());
        let mut worker = member(&broker, LONG, 1_000).await;
        let want = (RECORDS as usize - accepted.len()).min(60);
        for got in worker.records(want).await {
            assert_eq!(got.value, got.offset.to_string());
            assert!(!accepted.contains(&got.offset), "accepted, and delivered again: {got:?}");
            // Every third is left alone this time.
            if (got.offset + rounds) % 3 != 0 {
                assert_eq!(
                    worker.acknowledge("jobs", &[(0, got.offset, got.offset)], AckKind::Accept).await,
                    [None]
                );
                accepted.insert(got.offset);
            }
        }
        broker = broker.kill().start().await;
    }
    let described = describe(&broker, "workers").await.expect("there");
    assert_eq!((described.partitions[0].committed_offset, described.partitions[0].lag), (Some(RECORDS), 0));
    println!("{RECORDS} records over {rounds} kills: each accepted once, none lost");
    broker.stop().await;
}
