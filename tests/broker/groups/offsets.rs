//! Committed offsets: plain clients, restarts, resets, deletion, expiry.

use std::time::Duration;

use streambus::proto::v1;
use streambus::proto::v1::reset_offsets_request::To;
use streambus::telemetry::catalog;

use super::put_numbers;
use crate::support::endpoint::reason;
use crate::support::group::{commit, committed, describe, join};
use crate::support::{Endpoint, GroupStream, PATIENCE, Process, TestBroker, eventually};

async fn commit_plainly(
    broker: &Endpoint,
    group: &str,
    offsets: Vec<v1::OffsetCommit>,
) -> Vec<Option<v1::ErrorCode>> {
    let request = v1::CommitOffsetsRequest { group: group.to_owned(), membership: None, offsets };
    let answer = broker.groups().await.commit_offsets(request).await.expect("answered").into_inner();
    answer.results.iter().map(|result| result.error.as_ref().map(v1::Error::code)).collect()
}

async fn reset(broker: &Endpoint, to: To, execute: bool) -> Vec<(u32, Option<u64>, u64)> {
    let request =
        v1::ResetOffsetsRequest { group: "billing".to_owned(), to: Some(to), execute, ..Default::default() };
    let answer = broker.groups().await.reset_offsets(request).await.expect("answered").into_inner();
    assert!(answer.offsets.iter().all(|offset| offset.error.is_none()), "{answer:?}");
    answer.offsets.iter().map(|offset| (offset.partition, offset.from_offset, offset.to_offset)).collect()
}

#[tokio::test]
async fn a_program_without_a_stream_commits_and_looks_up() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    put_numbers(&broker, "orders", 0, 0, 10).await;
    let with_metadata = v1::OffsetCommit { metadata: "from host a".to_owned(), ..commit("orders", 0, 7) };
    assert_eq!(commit_plainly(&broker, "billing", vec![with_metadata]).await, [None]);
    let all = v1::FetchOffsetsRequest { group: "billing".to_owned(), partitions: Vec::new() };
    let mut groups = broker.groups().await;
    let found = groups.fetch_offsets(all).await.expect("answered").into_inner().offsets;
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].partition, found[0].offset, found[0].metadata.as_str()),
        (0, Some(7), "from host a")
    );
    assert!(found[0].commit_time.is_some());
    let one = v1::TopicPartition { topic: "orders".to_owned(), partition: 1 };
    let some = v1::FetchOffsetsRequest { group: "billing".to_owned(), partitions: vec![one] };
    let found = groups.fetch_offsets(some).await.expect("answered").into_inner().offsets;
    assert_eq!((found.len(), found[0].offset), (1, None));
    let unknown = v1::FetchOffsetsRequest { group: "nobody".to_owned(), partitions: Vec::new() };
    let refused = groups.fetch_offsets(unknown).await.expect_err("there is no such group");
    assert_eq!(reason(&refused).1, "UNKNOWN_GROUP");
    broker.stop().await;
}

#[tokio::test]
async fn offsets_that_cannot_be_are_refused_one_by_one() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    put_numbers(&broker, "orders", 0, 0, 10).await;
    let trim = v1::DeleteRecordsRequest { topic: "orders".to_owned(), partition: 0, before_offset: 5 };
    broker.topics().await.delete_records(trim).await.expect("trimmed");
    let long = v1::OffsetCommit { metadata: "x".repeat(4097), ..commit("orders", 0, 6) };
    let offsets = vec![
        commit("orders", 0, 11),
        commit("orders", 1, 0),
        commit("absent", 0, 0),
        long,
        commit("orders", 0, 2),
    ];
    let results = commit_plainly(&broker, "billing", offsets).await;
    let expected = [
        Some(v1::ErrorCode::OffsetOutOfRange),
        Some(v1::ErrorCode::UnknownPartition),
        Some(v1::ErrorCode::UnknownTopic),
        Some(v1::ErrorCode::InvalidArgument),
        None,
    ];
    assert_eq!(results, expected);
    assert_eq!(committed(&broker, "billing", "orders").await[&0], 2, "below the log start is no mistake");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_survives_kills() {
    let mut broker = Process::start(&[]).await;
    broker.create_topic("orders", 1).await;
    put_numbers(&broker, "orders", 0, 0, 100).await;
    for round in 1..=5_u64 {
        let mut member = GroupStream::join(&broker, join("billing", &["orders"])).await;
        assert_eq!(member.assigned().await, [(0, (round - 1) * 20)]);
        for offset in (round - 1) * 20 + 1..=round * 20 {
            assert_eq!(member.commit("orders", &[(0, offset)]).await, [None]);
        }
        broker = broker.kill().start().await;
        assert_eq!(committed(&broker, "billing", "orders").await[&0], round * 20);
    }
    broker.stop().await;
}

#[tokio::test]
async fn offsets_are_reset_only_when_told_and_only_without_members() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    put_numbers(&broker, "orders", 0, 0, 10).await;
    commit_plainly(&broker, "billing", vec![commit("orders", 0, 7)]).await;
    assert_eq!(reset(&broker, To::Earliest(()), false).await, [(0, Some(7), 0)]);
    assert_eq!(committed(&broker, "billing", "orders").await[&0], 7, "a dry run changes nothing");
    for (to, offset) in [
        (To::Earliest(()), 0),
        (To::Latest(()), 10),
        (To::Offset(4), 4),
        (To::Shift(3), 7),
        (To::Shift(-100), 0),
        (To::Offset(1_000), 10),
        (To::Time(prost_types::Timestamp { seconds: 1, nanos: 0 }), 0),
        (To::Time(prost_types::Timestamp { seconds: 9_999_999_999, nanos: 0 }), 10),
    ] {
        let moved = reset(&broker, to, true).await;
        assert_eq!((moved[0].0, moved[0].2), (0, offset), "{to:?}");
        assert_eq!(committed(&broker, "billing", "orders").await[&0], offset, "{to:?}");
    }
    let whole = v1::ResetOffsetsRequest {
        group: "billing".to_owned(),
        topics: vec!["orders".to_owned()],
        to: Some(To::Earliest(())),
        execute: true,
        ..Default::default()
    };
    let mut groups = broker.groups().await;
    let answer = groups.reset_offsets(whole.clone()).await.expect("answered").into_inner();
    assert_eq!(answer.offsets.len(), 2);
    assert_eq!(committed(&broker, "billing", "orders").await.len(), 2);
    let mut member = GroupStream::join(&broker, join("billing", &["orders"])).await;
    member.until_assigned(2).await;
    let refused = groups.reset_offsets(whole).await.expect_err("there is a member");
    assert_eq!(reason(&refused).1, "GROUP_NOT_EMPTY");
    let delete = v1::DeleteGroupRequest { group: "billing".to_owned() };
    let refused = groups.delete_group(delete.clone()).await.expect_err("there is a member");
    assert_eq!(reason(&refused).1, "GROUP_NOT_EMPTY");
    member.leave().await;
    groups.delete_group(delete.clone()).await.expect("deleted");
    let refused = groups.delete_group(delete).await.expect_err("it is gone");
    assert_eq!(reason(&refused).1, "UNKNOWN_GROUP");
    broker.stop().await;
}

#[tokio::test]
async fn groups_are_listed_in_pages() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    let mut names: Vec<_> = (0..25).map(|number| format!("group-{number}")).collect();
    for name in &names {
        commit_plainly(&broker, name, vec![commit("orders", 0, 0)]).await;
    }
    names.sort();
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListGroupsRequest { page_size: 7, page_token };
        let page = broker.groups().await.list_groups(request).await.expect("listed").into_inner();
        assert!(page.groups.len() <= 7);
        found.extend(page.groups.into_iter().map(|listing| listing.group));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, names);
    broker.stop().await;
}

#[tokio::test]
async fn a_topic_that_is_created_again_inherits_no_offsets() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    put_numbers(&broker, "orders", 0, 0, 10).await;
    commit_plainly(&broker, "billing", vec![commit("orders", 0, 7)]).await;
    let delete = v1::DeleteTopicRequest { name: "orders".to_owned() };
    broker.topics().await.delete_topic(delete).await.expect("deleted");
    broker.create_topic("orders", 1).await;
    assert_eq!(committed(&broker, "billing", "orders").await.len(), 0);
    put_numbers(&broker, "orders", 0, 0, 2).await;
    let mut member = GroupStream::join(&broker, join("billing", &["orders"])).await;
    assert_eq!(member.assigned().await, [(0, 0)]);
    broker.stop().await;
}

#[tokio::test]
async fn groups_that_nobody_uses_expire_and_their_series_with_them() {
    let broker = TestBroker::with(|config| {
        config.groups.retention = Duration::from_secs(1);
        config.groups.retention_interval = Duration::from_millis(50);
    })
    .await;
    broker.create_topic("orders", 1).await;
    put_numbers(&broker, "orders", 0, 0, 10).await;
    commit_plainly(&broker, "idle", vec![commit("orders", 0, 7)]).await;
    let mut member = GroupStream::join(&broker, join("busy", &["orders"])).await;
    member.until_assigned(1).await;
    let idle = &[("group", "idle"), ("partition", "0"), ("topic", "orders")];
    assert_eq!(broker.scrape().await.get(&catalog::GROUP_LAG, idle), Some(3.0));
    eventually(PATIENCE, "the idle group expires", async || {
        describe(&broker, "idle").await.is_err().then_some(())
    })
    .await;
    assert_eq!(broker.scrape().await.get(&catalog::GROUP_LAG, idle), None);
    assert!(describe(&broker, "busy").await.is_ok(), "a group with members stays");
    broker.stop().await;
}

#[tokio::test]
async fn a_group_that_has_members_when_its_broker_is_killed_is_there_when_they_come_back() {
    let settings = [("groups.retention", "5s"), ("groups.retention_interval", "50ms")];
    let broker = Process::start(&settings).await;
    broker.create_topic("orders", 1).await;
    put_numbers(&broker, "orders", 0, 0, 10).await;
    let mut member = GroupStream::join(&broker, join("busy", &["orders"])).await;
    member.records(10).await;
    assert_eq!(member.commit("orders", &[(0, 7)]).await, [None]);
    commit_plainly(&broker, "idle", vec![commit("orders", 0, 7)]).await;
    eventually(PATIENCE, "an idle group expires", async || {
        describe(&broker, "idle").await.is_err().then_some(())
    })
    .await;
    let broker = broker.kill().start().await;
    let mut member = GroupStream::join(&broker, join("busy", &["orders"])).await;
    assert_eq!(member.assigned().await, [(0, 7)]);
    broker.stop().await;
}
