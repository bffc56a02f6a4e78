//! Share groups that retention overtakes.

use std::time::Duration;

use streambus::proto::v1;
use streambus::proto::v1::AckKind;
use streambus::proto::v1::subscribe_request::Action;
use streambus::proto::v1::subscribe_response::Event;
use streambus::telemetry::catalog;

use super::{put, put_numbers, trim};
use crate::support::endpoint::duration;
use crate::support::group::{describe, join_share};
use crate::support::{Endpoint, GroupStream, PATIENCE, TestBroker, eventually};

const LONG: Duration = Duration::from_secs(600);

fn worker(reset: v1::OffsetReset, in_flight: u32) -> v1::JoinGroup {
    v1::JoinGroup {
        offset_reset: reset.into(),
        in_flight_records_max: in_flight,
        ..join_share("workers", &["jobs"], LONG, 5)
    }
}

/// The error with which the partition is delivered.
async fn refusal(member: &mut GroupStream) -> v1::ErrorCode {
    loop {
        match member.event().await.expect("open").expect("open") {
            Event::Records(records) => break records.error.expect("an error and no records").code(),
            Event::Keepalive(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Accepts records, and gives the error with which the partition is delivered then, before or after the answer.
async fn refusal_upon(member: &mut GroupStream, first: u64, last: u64) -> v1::ErrorCode {
    let accepted = v1::Acknowledgement {
        topic: "jobs".to_owned(),
        first_offset: first,
        last_offset: last,
        kind: AckKind::Accept.into(),
        ..Default::default()
    };
    let acknowledge = v1::Acknowledge { correlation_id: 7, acknowledgements: vec![accepted] };
    member.send(Action::Acknowledge(acknowledge)).await;
    let (mut refused, mut answered) = (None, false);
    loop {
        match member.event().await.expect("open").expect("open") {
            Event::Records(records) => refused = Some(records.error.expect("an error and no records").code()),
            Event::Acknowledged(acknowledged) => {
                assert_eq!(acknowledged.results[0].error, None);
                answered = true;
            }
            Event::Keepalive(_) => {}
            other => panic!("{other:?}"),
        }
        if let (Some(code), true) = (refused, answered) {
            break code;
        }
    }
}

/// Waits until everything before an offset is done.
async fn moved_on(broker: &Endpoint, to: u64) {
    eventually(PATIENCE, "the group has moved on", async || {
        let described = describe(broker, "workers").await.expect("there");
        (described.partitions[0].committed_offset == Some(to)).then_some(())
    })
    .await;
}

async fn missed(broker: &TestBroker) -> f64 {
    let labels = &[("group", "workers"), ("topic", "jobs")];
    broker.scrape().await.get(&catalog::GROUP_MISSED, labels).unwrap_or(0.0)
}

/// A topic with ten records, of which a group without members has done two, and of which retention leaves three.
async fn left_behind(broker: &Endpoint) {
    put_numbers(broker, "jobs", 0, 0, 10).await;
    let mut member = GroupStream::join(broker, worker(v1::OffsetReset::Earliest, 2)).await;
    member.records(2).await;
    assert_eq!(member.acknowledge("jobs", &[(0, 0, 1)], AckKind::Accept).await, [None]);
    member.leave().await;
    trim(broker, "jobs", 7).await;
}

#[tokio::test]
async fn without_members_a_group_goes_on_with_what_is_left() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    left_behind(&broker).await;
    let mut member = GroupStream::join(&broker, worker(v1::OffsetReset::Earliest, 100)).await;
    let assigned = member.assignment().await;
    assert_eq!((assigned.partitions[0].start_offset, assigned.partitions[0].missed_records), (7, 5));
    assert_eq!(member.records(3).await[0].offset, 7);
    assert_eq!(missed(&broker).await, 5.0);
    broker.stop().await;
}

#[tokio::test]
async fn with_latest_a_group_that_has_lost_its_place_goes_on_at_the_end() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    put_numbers(&broker, "jobs", 0, 0, 10).await;
    let mut member = GroupStream::join(&broker, worker(v1::OffsetReset::Earliest, 2)).await;
    member.records(2).await;
    member.leave().await;
    trim(&broker, "jobs", 7).await;
    let mut member = GroupStream::join(&broker, worker(v1::OffsetReset::Latest, 100)).await;
    let assigned = member.assignment().await;
    assert_eq!((assigned.partitions[0].start_offset, assigned.partitions[0].missed_records), (10, 10));
    put(&broker, "jobs", 0, &["new"]).await;
    assert_eq!(member.record().await.value, "new");
    assert_eq!(missed(&broker).await, 10.0);
    broker.stop().await;
}

#[tokio::test]
async fn with_latest_a_member_that_is_overtaken_goes_on_at_the_end() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    put_numbers(&broker, "jobs", 0, 0, 10).await;
    let mut member = GroupStream::join(&broker, worker(v1::OffsetReset::Earliest, 1)).await;
    assert_eq!(member.record().await.offset, 0);
    assert_eq!(member.acknowledge("jobs", &[(0, 0, 0)], AckKind::Accept).await, [None]);
    member.leave().await;
    let mut member = GroupStream::join(&broker, worker(v1::OffsetReset::Latest, 1)).await;
    let got = member.record().await;
    trim(&broker, "jobs", 6).await;
    assert_eq!(
        member.acknowledge("jobs", &[(0, got.offset, got.offset)], AckKind::Accept).await,
        [None],
        "what it has is its own"
    );
    moved_on(&broker, 10).await;
    put(&broker, "jobs", 0, &["new"]).await;
    assert_eq!(member.record().await.value, "new");
    broker.stop().await;
}

#[tokio::test]
async fn with_latest_what_was_given_back_and_deleted_costs_the_group_nothing_else() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    put_numbers(&broker, "jobs", 0, 0, 10).await;
    put_numbers(&broker, "jobs", 0, 10, 10).await;
    let mut member = GroupStream::join(&broker, worker(v1::OffsetReset::Earliest, 10)).await;
    member.records(10).await;
    let later = v1::Acknowledgement {
        topic: "jobs".to_owned(),
        last_offset: 9,
        kind: AckKind::Release.into(),
        delay: Some(duration(LONG)),
        ..Default::default()
    };
    let mut other = GroupStream::join(&broker, worker(v1::OffsetReset::Latest, 10)).await;
    assert_eq!(other.record().await.offset, 10);
    assert_eq!(member.acknowledge_with(vec![later]).await, [None]);
    trim(&broker, "jobs", 6).await;
    put(&broker, "jobs", 0, &["new"]).await;
    let next = other.records(9).await.pop().map(|got| got.offset);
    assert_eq!(next, Some(19), "the rest of what it has");
    drop(member);
    assert_eq!(other.acknowledge("jobs", &[(0, 10, 19)], AckKind::Accept).await, [None]);
    assert_eq!(other.record().await.value, "new");
    assert_eq!(missed(&broker).await, 6.0);
    broker.stop().await;
}

#[tokio::test]
async fn with_error_a_group_that_has_lost_records_waits_for_somebody_to_reset_it() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    left_behind(&broker).await;
    for _ in 0..2 {
        let mut member = GroupStream::join(&broker, worker(v1::OffsetReset::Error, 100)).await;
        assert_eq!(refusal(&mut member).await, v1::ErrorCode::OffsetOutOfRange);
        member.leave().await;
    }
    assert_eq!(missed(&broker).await, 0.0, "nothing was given up");
    let reset = v1::ResetOffsetsRequest {
        group: "workers".to_owned(),
        to: Some(v1::reset_offsets_request::To::Earliest(())),
        execute: true,
        ..Default::default()
    };
    broker.groups().await.reset_offsets(reset).await.expect("reset");
    let mut member = GroupStream::join(&broker, worker(v1::OffsetReset::Error, 100)).await;
    assert_eq!(member.record().await.offset, 7);
    broker.stop().await;
}

#[tokio::test]
async fn with_error_a_member_that_is_overtaken_reads_no_further() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    put_numbers(&broker, "jobs", 0, 0, 10).await;
    let mut first = GroupStream::join(&broker, worker(v1::OffsetReset::Earliest, 1)).await;
    assert_eq!(first.record().await.offset, 0);
    let mut member = GroupStream::join(&broker, worker(v1::OffsetReset::Error, 1)).await;
    assert_eq!(member.record().await.offset, 1);
    // What members have is theirs, so nothing is lost.
    trim(&broker, "jobs", 2).await;
    assert_eq!(member.acknowledge("jobs", &[(0, 1, 1)], AckKind::Accept).await, [None]);
    assert_eq!(member.record().await.offset, 2);
    trim(&broker, "jobs", 6).await;
    assert_eq!(refusal_upon(&mut member, 2, 2).await, v1::ErrorCode::OffsetOutOfRange);
    drop(member);
    // Members with another policy go on.
    assert_eq!(first.acknowledge("jobs", &[(0, 0, 0)], AckKind::Accept).await, [None]);
    assert_eq!(first.record().await.offset, 6);
    moved_on(&broker, 6).await;
    broker.stop().await;
}

#[tokio::test]
async fn with_error_a_member_that_reads_no_further_finishes_what_it_has() {
    let broker = TestBroker::start().await;
    broker.create_topic("jobs", 1).await;
    put_numbers(&broker, "jobs", 0, 0, 10).await;
    let mut member = GroupStream::join(&broker, worker(v1::OffsetReset::Error, 3)).await;
    assert_eq!(refusal(&mut member).await, v1::ErrorCode::OffsetOutOfRange, "the group has not begun");
    member.leave().await;
    let mut first = GroupStream::join(&broker, worker(v1::OffsetReset::Earliest, 1)).await;
    assert_eq!(first.record().await.offset, 0);
    let mut member = GroupStream::join(&broker, worker(v1::OffsetReset::Error, 3)).await;
    assert_eq!(member.records(3).await[2].offset, 3);
    trim(&broker, "jobs", 6).await;
    assert_eq!(refusal_upon(&mut member, 1, 1).await, v1::ErrorCode::OffsetOutOfRange);
    assert_eq!(member.acknowledge("jobs", &[(0, 2, 3)], AckKind::Accept).await, [None]);
    assert_eq!(missed(&broker).await, 0.0, "nobody has given up anything");
    broker.stop().await;
}
