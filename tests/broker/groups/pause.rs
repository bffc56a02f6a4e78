//! Partitions that a member has and does not want to read for a while.

use std::time::Duration;

use futures_util::StreamExt as _;
use streambus::client::{CommitMode, GroupConfig, TopicPartition};
use streambus::proto::v1;
use streambus::proto::v1::subscribe_request::Action;
use streambus::telemetry::catalog;

use super::{put, put_numbers, trim};
use crate::support::group::{describe, join, join_share};
use crate::support::{Endpoint, GroupStream, PATIENCE, TestBroker, eventually, within};

fn partitions(numbers: &[u32]) -> Vec<v1::TopicPartition> {
    let at = |partition: &u32| v1::TopicPartition { topic: "orders".to_owned(), partition: *partition };
    numbers.iter().map(at).collect()
}

/// Pauses partitions, and commits an offset of partition 0: its result says that the broker has read both.
async fn pause(member: &mut GroupStream, numbers: &[u32], committed: u64) {
    member.send(Action::Pause(v1::PausePartitions { partitions: partitions(numbers) })).await;
    assert_eq!(member.commit("orders", &[(0, committed)]).await, [None]);
}

async fn resume(member: &GroupStream, numbers: &[u32]) {
    member.send(Action::Resume(v1::ResumePartitions { partitions: partitions(numbers) })).await;
}

async fn lag(broker: &Endpoint, partition: &str) -> Option<f64> {
    let labels = &[("group", "billing"), ("partition", partition), ("topic", "orders")];
    broker.scrape().await.get(&catalog::GROUP_LAG, labels)
}

#[tokio::test]
async fn a_paused_partition_waits_and_its_lag_counts_while_others_go_on() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    put_numbers(&broker, "orders", 0, 0, 5).await;
    let mut member = GroupStream::join(&broker, join("billing", &["orders"])).await;
    member.records(5).await;
    pause(&mut member, &[0, 1, 9], 4).await;
    resume(&member, &[1, 9]).await;
    for round in 0..3 {
        put(&broker, "orders", 0, &["paused"]).await;
        put(&broker, "orders", 1, &["other"]).await;
        let got = member.record().await;
        assert_eq!((got.partition, got.offset), (1, round));
        assert_eq!(lag(&broker, "0").await, Some(2.0 + round as f64));
    }
    assert_eq!(member.commit("orders", &[(0, 5)]).await, [None], "what it has got is its own");
    assert_eq!(lag(&broker, "0").await, Some(3.0));
    let described = describe(&broker, "billing").await.expect("there");
    assert_eq!(described.members.len(), 1);
    assert!(described.partitions.iter().all(|at| at.member_id == member.id), "{described:?}");
    resume(&member, &[0, 1]).await;
    let got = member.records(3).await;
    let offsets: Vec<_> = got.iter().map(|got| (got.partition, got.offset)).collect();
    assert_eq!(offsets, [(0, 5), (0, 6), (0, 7)]);
    member.leave().await;
    broker.stop().await;
}

#[tokio::test]
async fn what_retention_deletes_during_a_pause_is_missed_after_it() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    put_numbers(&broker, "orders", 0, 0, 5).await;
    let mut member = GroupStream::join(&broker, join("billing", &["orders"])).await;
    member.records(5).await;
    pause(&mut member, &[0], 5).await;
    put_numbers(&broker, "orders", 0, 5, 5).await;
    trim(&broker, "orders", 8).await;
    member.assigned.clear();
    resume(&member, &[0]).await;
    let assigned = member.assignment().await.partitions.remove(0);
    assert_eq!((assigned.start_offset, assigned.missed_records), (8, 3));
    assert_eq!(member.record().await.offset, 8);
    broker.stop().await;
}

#[tokio::test]
async fn records_of_a_paused_partition_are_not_in_flight() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    put_numbers(&broker, "orders", 0, 0, 5).await;
    let limited = v1::JoinGroup { in_flight_records_max: 5, ..join("billing", &["orders"]) };
    let mut member = GroupStream::join(&broker, limited).await;
    member.records(5).await;
    put(&broker, "orders", 1, &["other"]).await;
    pause(&mut member, &[0], 0).await;
    assert_eq!(member.record().await.partition, 1);
    resume(&member, &[0]).await;
    put(&broker, "orders", 1, &["more"]).await;
    assert_eq!(member.commit("orders", &[(0, 5)]).await, [None]);
    assert_eq!(member.record().await.value, "more");
    broker.stop().await;
}

#[tokio::test]
async fn members_of_share_groups_have_nothing_to_pause() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    let share = join_share("workers", &["orders"], Duration::from_secs(60), 5);
    let mut member = GroupStream::join(&broker, share).await;
    member.send(Action::Pause(v1::PausePartitions { partitions: partitions(&[0]) })).await;
    assert_eq!(member.failure().await.code(), tonic::Code::InvalidArgument);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_library_pauses_and_resumes_without_leaving() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    put_numbers(&broker, "orders", 0, 0, 5).await;
    let client = broker.client().await;
    let config = GroupConfig { commit: CommitMode::Manual, ..GroupConfig::new("billing", ["orders"]) };
    let mut consumer = within("a member", client.group_consumer(config)).await.expect("a member");
    for number in 0..3 {
        let record = within("a record", consumer.next()).await.expect("no end").expect("readable");
        assert_eq!((record.partition, record.offset.0), (0, number));
    }
    let paused = [TopicPartition::new("orders", 0)];
    consumer.pause(&paused);
    within("a commit", consumer.commit()).await.expect("committed");
    put_numbers(&broker, "orders", 0, 5, 5).await;
    put(&broker, "orders", 1, &["other"]).await;
    let record = within("a record", consumer.next()).await.expect("no end").expect("readable");
    assert_eq!(record.partition, 1);
    eventually(PATIENCE, "what is paused counts as lag", async || {
        (lag(&broker, "0").await == Some(7.0)).then_some(())
    })
    .await;
    assert_eq!(describe(&broker, "billing").await.expect("there").members.len(), 1);
    consumer.resume(&paused);
    for number in 3..10 {
        let record = within("a record", consumer.next()).await.expect("no end").expect("readable");
        assert_eq!((record.partition, record.offset.0), (0, number));
    }
    within("the member leaves", consumer.close()).await.expect("closed");
    broker.stop().await;
}
