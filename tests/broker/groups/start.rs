//! Where groups begin, and what they are told of records that are gone.

use streambus::client::{GroupConfig, OffsetReset};
use streambus::proto::v1;
use streambus::proto::v1::subscribe_response::Event;
use streambus::telemetry::catalog;

use super::{put, put_numbers, trim};
use crate::support::group::{committed, join};
use crate::support::{GroupStream, PATIENCE, Process, TestBroker};

fn with_reset(reset: v1::OffsetReset) -> v1::JoinGroup {
    v1::JoinGroup { offset_reset: reset.into(), ..join("billing", &["orders"]) }
}

#[tokio::test]
async fn a_new_group_begins_where_it_says() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    put_numbers(&broker, "orders", 0, 0, 10).await;
    for (group, reset, start) in [
        ("a", v1::OffsetReset::Earliest, 0),
        ("b", v1::OffsetReset::Latest, 10),
        ("c", v1::OffsetReset::Unspecified, 0),
    ] {
        let join = v1::JoinGroup { offset_reset: reset.into(), ..join(group, &["orders"]) };
        let mut member = GroupStream::join(&broker, join).await;
        assert_eq!(member.assigned().await, [(0, start)], "{reset:?}");
        assert_eq!(committed(&broker, group, "orders").await[&0], start, "it is kept at once");
    }
    let mut member = GroupStream::join(
        &broker,
        v1::JoinGroup { group: "d".to_owned(), ..with_reset(v1::OffsetReset::Error) },
    )
    .await;
    let error = loop {
        match member.event().await.expect("open").expect("open") {
            Event::Records(records) => break records.error.expect("an error"),
            Event::Assigned(assigned) => assert_eq!(assigned.partitions, []),
            Event::Keepalive(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error.code(), v1::ErrorCode::OffsetOutOfRange);
    broker.stop().await;
}

#[tokio::test]
async fn what_comes_between_joining_and_the_first_commit_is_not_skipped() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    put_numbers(&broker, "orders", 0, 0, 3).await;
    let mut member = GroupStream::join(&broker, with_reset(v1::OffsetReset::Latest)).await;
    member.until_assigned(1).await;
    drop(member);
    put(&broker, "orders", 0, &["while nobody looks"]).await;
    let broker = broker.restart_with(|_| {}).await;
    let mut member = GroupStream::join(&broker, with_reset(v1::OffsetReset::Latest)).await;
    assert_eq!(member.record().await.value, "while nobody looks");
    broker.stop().await;
}

#[tokio::test]
async fn records_that_are_gone_are_counted_and_said() {
    let broker = Process::start(&[]).await;
    broker.create_topic("orders", 1).await;
    put_numbers(&broker, "orders", 0, 0, 10).await;
    let mut member = GroupStream::join(&broker, with_reset(v1::OffsetReset::Earliest)).await;
    member.records(10).await;
    assert_eq!(member.commit("orders", &[(0, 2)]).await, [None]);
    member.leave().await;
    trim(&broker, "orders", 7).await;
    let mut member = GroupStream::join(&broker, with_reset(v1::OffsetReset::Earliest)).await;
    let assigned = member.assignment().await;
    assert_eq!((assigned.partitions[0].start_offset, assigned.partitions[0].missed_records), (7, 5));
    assert_eq!(member.records(3).await[0].offset, 7);
    let labels = &[("group", "billing"), ("topic", "orders")];
    let missed = broker.scrape().await.get(&catalog::GROUP_MISSED, labels);
    assert_eq!(missed, Some(5.0));
    let said = &broker.events("group.records_missed")[0];
    assert_eq!((said["missed"].as_u64(), said["group"].as_str()), (Some(5), Some("billing")));
    member.leave().await;

    // Said once: the group does not miss the same records again.
    let mut member = GroupStream::join(&broker, with_reset(v1::OffsetReset::Latest)).await;
    let assigned = member.assignment().await;
    assert_eq!((assigned.partitions[0].start_offset, assigned.partitions[0].missed_records), (7, 0));
    broker.stop().await;
}

#[tokio::test]
async fn a_member_that_retention_overtakes_goes_on_behind_the_gap() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    for number in 0..10 {
        put(&broker, "orders", 0, &[&number.to_string()]).await;
    }
    let slow = v1::JoinGroup { in_flight_records_max: 1, ..with_reset(v1::OffsetReset::Earliest) };
    let mut member = GroupStream::join(&broker, slow).await;
    assert_eq!(member.record().await.offset, 0);
    trim(&broker, "orders", 6).await;
    member.pending.clear();
    assert_eq!(member.commit("orders", &[(0, 1)]).await, [None]);
    let mut missed = 0;
    let next = loop {
        if let Some(got) = member.pending.pop_front() {
            break got;
        }
        match member.event().await.expect("open").expect("open") {
            Event::Assigned(assigned) => missed += assigned.partitions[0].missed_records,
            Event::Records(records) => {
                let offset = records.batches[0].base_offset;
                if offset >= 6 {
                    break crate::support::group::Got {
                        partition: 0,
                        offset,
                        value: String::new(),
                        deliveries: 0,
                    };
                }
                // Was on its way before the records were deleted.
                assert_eq!(member.commit("orders", &[(0, offset + 1)]).await, [None]);
            }
            _ => {}
        }
    };
    assert_eq!(next.offset, 6);
    assert!((1..=5).contains(&missed), "{missed}");
    broker.stop().await;
}

#[tokio::test]
async fn a_program_is_told_that_its_group_cannot_begin() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    let config = GroupConfig { offset_reset: OffsetReset::Fail, ..GroupConfig::new("billing", ["orders"]) };
    let mut consumer = broker.client().await.group_consumer(config).await.expect("a member");
    let told = tokio::time::timeout(PATIENCE, consumer.next_batch()).await.expect("it is told");
    let code = told.expect("no end").err().and_then(|error| error.code());
    assert_eq!(code, Some(v1::ErrorCode::OffsetOutOfRange));
    consumer.close().await.expect("it leaves");
    broker.stop().await;
}
