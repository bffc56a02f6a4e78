//! Lag is what the offsets say, whoever is there to consume.

use std::time::Instant;

use streambus::proto::v1;
use streambus::proto::v1::subscribe_request::Action;
use streambus::telemetry::catalog;

use super::put_numbers;
use crate::support::group::{committed, describe, join};
use crate::support::{Endpoint, GroupStream, PATIENCE, TestBroker, eventually};

const LABELS: &[(&str, &str)] = &[("group", "billing"), ("partition", "0"), ("topic", "orders")];

async fn lag(broker: &Endpoint) -> (Option<f64>, Option<f64>) {
    let view = broker.scrape().await;
    (view.get(&catalog::GROUP_LAG, LABELS), view.get(&catalog::GROUP_LAG_TIME, LABELS))
}

/// What the lag must be: the end of the log less what is committed.
async fn by_hand(broker: &Endpoint) -> f64 {
    let request = v1::DescribeTopicRequest { name: "orders".to_owned() };
    let topic = broker.topics().await.describe_topic(request).await.expect("there").into_inner();
    let end = topic.partitions[0].high_watermark;
    (end - committed(broker, "billing", "orders").await[&0]) as f64
}

#[tokio::test]
async fn lag_follows_commits_and_appends_with_and_without_members() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    put_numbers(&broker, "orders", 0, 0, 10).await;
    assert_eq!(lag(&broker).await, (None, None), "there is no group");
    let mut member = GroupStream::join(&broker, join("billing", &["orders"])).await;
    member.records(10).await;
    assert_eq!(lag(&broker).await.0, Some(10.0), "delivered is not consumed");
    assert_eq!(lag(&broker).await.0, Some(by_hand(&broker).await));
    assert!(lag(&broker).await.1.expect("shown") > 0.0);
    member.commit("orders", &[(0, 4)]).await;
    assert_eq!(lag(&broker).await.0, Some(6.0));
    assert_eq!(lag(&broker).await.0, Some(by_hand(&broker).await));
    member.commit("orders", &[(0, 10)]).await;
    assert_eq!(lag(&broker).await, (Some(0.0), Some(0.0)), "caught up");
    member.leave().await;
    put_numbers(&broker, "orders", 0, 10, 5).await;
    assert_eq!(lag(&broker).await.0, Some(5.0), "nobody is there");
    let described = describe(&broker, "billing").await.expect("there");
    assert_eq!((described.partitions[0].lag, described.partitions[0].member_id.as_str()), (5, ""));
    assert!(described.partitions[0].lag_time.is_some());
    // Records that retention deletes are not lag.
    let trim = v1::DeleteRecordsRequest { topic: "orders".to_owned(), partition: 0, before_offset: 13 };
    broker.topics().await.delete_records(trim).await.expect("trimmed");
    assert_eq!(lag(&broker).await.0, Some(2.0));

    let broker = broker.restart_with(|_| {}).await;
    assert_eq!(lag(&broker).await.0, Some(2.0), "after a restart");
    eventually(PATIENCE, "the age of records that are not in memory is looked up", async || {
        lag(&broker).await.1.filter(|seconds| *seconds > 0.0)
    })
    .await;
    let delete = v1::DeleteGroupRequest { group: "billing".to_owned() };
    broker.groups().await.delete_group(delete).await.expect("deleted");
    assert_eq!(lag(&broker).await, (None, None), "gone at the next scrape");
    broker.stop().await;
}

#[tokio::test]
async fn lag_in_seconds_is_the_age_of_the_first_unread_record() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    put_numbers(&broker, "orders", 0, 0, 1).await;
    let mut member = GroupStream::join(&broker, join("billing", &["orders"])).await;
    member.records(1).await;
    let older = eventually(PATIENCE, "the first record is a while old", async || {
        lag(&broker).await.1.filter(|seconds| *seconds > 0.3)
    })
    .await;
    let second = Instant::now();
    put_numbers(&broker, "orders", 0, 1, 1).await;
    assert!(lag(&broker).await.1.expect("shown") >= older, "the first unread record counts, not the newest");
    member.commit("orders", &[(0, 1)]).await;
    let age = lag(&broker).await.1.expect("shown");
    // However long all of this took, the first record is older by `older` than what began with the second.
    assert!(age < second.elapsed().as_secs_f64() + older / 2.0, "{age} s");
    broker.stop().await;
}

#[tokio::test]
async fn lag_is_exact_to_the_record() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    // Without credit it reads nothing.
    let unread = v1::JoinGroup { credit_bytes: 0, ..join("billing", &["orders"]) };
    let mut member = GroupStream::join(&broker, unread).await;
    member.until_assigned(1).await;
    for from in (0..10_000).step_by(1_000) {
        put_numbers(&broker, "orders", 0, from, 1_000).await;
    }
    assert_eq!(lag(&broker).await.0, Some(10_000.0));
    assert_eq!(by_hand(&broker).await, 10_000.0);
    member.send(Action::Credit(v1::GrantCredit { bytes: 1 << 30 })).await;
    assert_eq!(member.records(10_000).await[9_999].offset, 9_999);
    assert_eq!(lag(&broker).await.0, Some(10_000.0), "it was read and not committed");
    member.commit("orders", &[(0, 9_999)]).await;
    assert_eq!(lag(&broker).await.0, Some(1.0));
    member.commit("orders", &[(0, 10_000)]).await;
    assert_eq!(lag(&broker).await, (Some(0.0), Some(0.0)));
    broker.stop().await;
}
