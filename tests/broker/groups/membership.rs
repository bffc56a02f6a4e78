//! Members come, go, fall silent and are replaced; partitions move, and nobody else notices.

use std::time::Duration;

use streambus::proto::v1;
use streambus::proto::v1::subscribe_response::Event;
use tonic::Code;

use super::{put, put_numbers};
use crate::support::endpoint::{duration, reason};
use crate::support::group::{commit, committed, describe, join};
use crate::support::{Endpoint, GroupStream, PATIENCE, TestBroker, eventually};

async fn members(broker: &Endpoint, group: &str) -> usize {
    describe(broker, group).await.map_or(0, |described| described.members.len())
}

#[tokio::test]
async fn a_lone_member_gets_everything_and_goes_on_where_it_committed() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 3).await;
    for partition in 0..3 {
        put_numbers(&broker, "orders", partition, 0, 10).await;
    }
    let mut member = GroupStream::join(&broker, join("billing", &["orders"])).await;
    assert_eq!(member.assigned().await, [(0, 0), (1, 0), (2, 0)]);
    let mut records = member.records(30).await;
    records.sort_by_key(|got| (got.partition, got.offset));
    for (number, got) in records.iter().enumerate() {
        assert_eq!((got.partition, got.offset), (number as u32 / 10, number as u64 % 10));
        assert_eq!(got.value, got.offset.to_string());
    }
    assert_eq!(member.commit("orders", &[(0, 4), (1, 10)]).await, [None, None]);
    member.leave().await;

    let mut member = GroupStream::join(&broker, join("billing", &["orders"])).await;
    assert_eq!(member.assigned().await, [(0, 4), (1, 10), (2, 0)]);
    assert_eq!(member.records(16).await.len(), 16);
    put(&broker, "orders", 1, &["new"]).await;
    let got = member.record().await;
    assert_eq!((got.partition, got.offset, got.value.as_str()), (1, 10, "new"));
    broker.stop().await;
}

#[tokio::test]
async fn partitions_move_only_when_released_and_the_others_are_not_mentioned() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 4).await;
    for partition in 0..4 {
        put_numbers(&broker, "orders", partition, 0, 5).await;
    }
    let mut first = GroupStream::join(&broker, join("billing", &["orders"])).await;
    first.until_assigned(4).await;
    first.records(20).await;
    let mut second = GroupStream::join(&broker, join("billing", &["orders"])).await;
    let moved = first.revoked().await;
    assert_eq!(moved.len(), 2, "half of the partitions move, the others are not mentioned");
    // Until they are released the first member may commit, and nobody else has them.
    let offsets: Vec<_> = moved.iter().map(|partition| (*partition, 3)).collect();
    assert_eq!(first.commit("orders", &offsets).await, [None, None]);
    assert_eq!(second.commit("orders", &[(moved[0], 1)]).await, [Some(v1::ErrorCode::MemberFenced)]);
    first.release("orders", &moved).await;
    second.until_assigned(2).await;
    for partition in &moved {
        assert_eq!(second.assigned[&("orders".to_owned(), *partition)], 3, "where the first has committed");
    }
    assert_eq!(second.records(4).await.iter().map(|got| got.offset).max(), Some(4));
    // What was released is not the first member's any more.
    assert_eq!(first.commit("orders", &[(moved[0], 5)]).await, [Some(v1::ErrorCode::MemberFenced)]);
    assert_eq!(second.commit("orders", &[(moved[0], 5)]).await, [None]);
    // What stayed goes on without an event.
    let stays = (0..4).find(|partition| !moved.contains(partition)).expect("two stayed");
    put(&broker, "orders", stays, &["more"]).await;
    assert_eq!(first.record().await.value, "more");
    broker.stop().await;
}

#[tokio::test]
async fn a_member_whose_stream_ends_is_gone_at_once() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    let mut first = GroupStream::join(&broker, join("billing", &["orders"])).await;
    first.until_assigned(2).await;
    let mut second = GroupStream::join(&broker, join("billing", &["orders"])).await;
    let moved = first.revoked().await;
    first.release("orders", &moved).await;
    second.until_assigned(1).await;
    drop(first);
    second.until_assigned(2).await;
    assert_eq!(members(&broker, "billing").await, 1);
    broker.stop().await;
}

#[tokio::test]
async fn a_silent_member_is_removed_and_one_that_answers_stays() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    let short = v1::JoinGroup {
        session_timeout: Some(duration(Duration::from_secs(1))),
        ..join("billing", &["orders"])
    };
    let mut silent = GroupStream::join(&broker, short.clone()).await;
    silent.until_assigned(2).await;
    silent.be_silent();
    let mut alive = GroupStream::join(&broker, short).await;
    let mut keepalives = 0;
    while alive.assigned.len() < 2 {
        match alive.event().await.expect("the stream goes on").expect("the stream goes on") {
            Event::Keepalive(_) => keepalives += 1,
            Event::Assigned(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(keepalives > 0, "it was asked for a sign of life and gave one");
    let failure = silent.failure().await;
    let (code, name, _) = reason(&failure);
    assert_eq!((code, name.as_str()), (Code::FailedPrecondition, "MEMBER_FENCED"));
    assert_eq!(members(&broker, "billing").await, 1);
    broker.stop().await;
}

#[tokio::test]
async fn a_member_that_does_not_release_in_time_is_removed() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    let short = v1::JoinGroup {
        rebalance_timeout: Some(duration(Duration::from_millis(300))),
        ..join("billing", &["orders"])
    };
    let mut stubborn = GroupStream::join(&broker, short).await;
    stubborn.until_assigned(2).await;
    let mut other = GroupStream::join(&broker, join("billing", &["orders"])).await;
    other.until_assigned(2).await;
    let (_, name, _) = reason(&stubborn.failure().await);
    assert_eq!(name, "MEMBER_FENCED");
    broker.stop().await;
}

#[tokio::test]
async fn a_static_member_comes_back_to_its_partitions_and_nobody_notices() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 4).await;
    let fixed = v1::JoinGroup { instance_id: "worker-1".to_owned(), ..join("billing", &["orders"]) };
    let mut fixed_member = GroupStream::join(&broker, fixed.clone()).await;
    fixed_member.until_assigned(4).await;
    let mut other = GroupStream::join(&broker, join("billing", &["orders"])).await;
    let moved = fixed_member.revoked().await;
    fixed_member.release("orders", &moved).await;
    other.until_assigned(2).await;
    let kept: Vec<_> = fixed_member.assigned.keys().cloned().collect();
    drop(fixed_member);
    eventually(PATIENCE, "the member is known to be away", async || {
        let described = describe(&broker, "billing").await.expect("there");
        described.members.iter().any(|member| !member.connected).then_some(())
    })
    .await;
    let mut back = GroupStream::join(&broker, fixed).await;
    back.until_assigned(2).await;
    assert_eq!(back.assigned.keys().cloned().collect::<Vec<_>>(), kept);
    // The other member heard nothing of all that: the first that it hears is a record.
    put(&broker, "orders", moved[0], &["for the other"]).await;
    match other.event().await.expect("open").expect("open") {
        Event::Records(records) => assert_eq!(records.partition, moved[0]),
        event => panic!("{event:?}"),
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_second_stream_of_the_same_member_replaces_the_first() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    let named = v1::JoinGroup { member_id: "m".to_owned(), ..join("billing", &["orders"]) };
    let mut first = GroupStream::join(&broker, named.clone()).await;
    first.until_assigned(2).await;
    let mut second = GroupStream::join(&broker, named).await;
    let (_, name, _) = reason(&first.failure().await);
    assert_eq!(name, "MEMBER_FENCED");
    second.until_assigned(2).await;
    assert_eq!(members(&broker, "billing").await, 1);
    broker.stop().await;
}

#[tokio::test]
async fn commits_are_held_to_the_member_its_epoch_and_its_partitions() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    put_numbers(&broker, "orders", 0, 0, 10).await;
    let mut member = GroupStream::join(&broker, join("billing", &["orders"])).await;
    let joined_at = member.epoch;
    member.until_assigned(1).await;
    let fenced = Some(v1::ErrorCode::MemberFenced);
    assert_eq!(member.commit_with(joined_at - 1, "orders", &[(0, 1)]).await, [fenced], "before it had it");
    assert_eq!(member.commit_with(member.epoch + 1, "orders", &[(0, 1)]).await, [fenced], "from the future");
    assert_eq!(member.commit("orders", &[(0, 5)]).await, [None]);
    // Beside its stream the member can commit as well; others cannot.
    let claim = |member_id: &str, epoch| v1::CommitOffsetsRequest {
        group: "billing".to_owned(),
        membership: Some(v1::Membership { member_id: member_id.to_owned(), epoch }),
        offsets: vec![commit("orders", 0, 6)],
    };
    let mut groups = broker.groups().await;
    let answer = groups.commit_offsets(claim(&member.id, member.epoch)).await.expect("answered").into_inner();
    assert_eq!(answer.results[0].error, None);
    let answer = groups.commit_offsets(claim("stranger", member.epoch)).await.expect("answered").into_inner();
    assert_eq!(answer.results[0].error.as_ref().map(v1::Error::code), fenced);
    let outsider = v1::CommitOffsetsRequest { membership: None, ..claim("", 0) };
    let refused = groups.commit_offsets(outsider).await.expect_err("the group has a member");
    assert_eq!(reason(&refused).1, "GROUP_NOT_EMPTY");
    assert_eq!(committed(&broker, "billing", "orders").await[&0], 6);
    broker.stop().await;
}

#[tokio::test]
async fn topics_that_match_a_pattern_are_read_as_they_come() {
    let broker = TestBroker::start().await;
    broker.create_topic("eu.orders", 1).await;
    broker.create_topic("orders.eu", 1).await;
    let pattern = v1::JoinGroup {
        topics: vec!["later".to_owned()],
        topic_pattern: r"eu\..*".to_owned(),
        ..join("billing", &[])
    };
    let mut member = GroupStream::join(&broker, pattern).await;
    member.until_assigned(1).await;
    broker.create_topic("eu.invoices", 2).await;
    member.until_assigned(3).await;
    broker.create_topic("later", 1).await;
    member.until_assigned(4).await;
    let mut topics: Vec<_> = member.assigned.keys().map(|(topic, _)| topic.as_str()).collect();
    topics.dedup();
    assert_eq!(topics, ["eu.invoices", "eu.orders", "later"]);
    // A topic that goes away is taken back.
    let delete = v1::DeleteTopicRequest { name: "eu.orders".to_owned() };
    broker.topics().await.delete_topic(delete).await.expect("deleted");
    eventually(PATIENCE, "the group does not know the topic any more", async || {
        let described = describe(&broker, "billing").await.expect("there");
        (described.partitions.iter().all(|at| at.topic != "eu.orders")).then_some(())
    })
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn delivery_pauses_while_too_much_is_not_committed() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    for number in 0..20 {
        put(&broker, "orders", 0, &[&number.to_string()]).await;
    }
    let few = v1::JoinGroup { in_flight_records_max: 5, ..join("billing", &["orders"]) };
    let mut member = GroupStream::join(&broker, few).await;
    let mut got = member.records(5).await;
    let mut committed = 0;
    while got.len() < 20 {
        let delivered = got.len() + member.pending.len();
        assert!(delivered <= committed + 5, "{delivered} delivered, {committed} committed");
        committed = got.len();
        // The answer to a commit comes although no record may.
        assert_eq!(member.commit("orders", &[(0, committed as u64)]).await, [None]);
        got.push(member.record().await);
    }
    assert!(got.iter().map(|got| got.offset).eq(0..20));
    broker.stop().await;
}

#[tokio::test]
async fn joins_that_make_no_sense_are_refused_precisely() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    let refusal = async |join: v1::JoinGroup| {
        let status = GroupStream::try_join(&broker, join).await.err().expect("refused");
        (reason(&status).1, status.message().to_owned())
    };
    let base = join("billing", &["orders"]);
    let cases = [
        (v1::JoinGroup { group: String::new(), ..base.clone() }, "group"),
        (v1::JoinGroup { group: "a b".to_owned(), ..base.clone() }, "group"),
        (join("billing", &[]), "topics"),
        (join("billing", &["no/name"]), "topics"),
        (v1::JoinGroup { topic_pattern: "(".to_owned(), ..base.clone() }, "topic_pattern"),
        (v1::JoinGroup { member_id: "m".repeat(256), ..base.clone() }, "member_id"),
        (
            v1::JoinGroup { session_timeout: Some(duration(Duration::ZERO)), ..base.clone() },
            "session_timeout",
        ),
        (
            v1::JoinGroup { rebalance_timeout: Some(duration(Duration::ZERO)), ..base.clone() },
            "rebalance_timeout",
        ),
        (v1::JoinGroup { offset_reset: 9, ..base.clone() }, "offset_reset"),
    ];
    for (join, field) in cases {
        let (code, message) = refusal(join).await;
        assert_eq!(code, "INVALID_ARGUMENT", "{field}: {message}");
        assert!(message.contains(field), "{field}: {message}");
    }
    let share = v1::JoinGroup { share: Some(v1::ShareOptions::default()), ..base.clone() };
    let member = GroupStream::join(&broker, base).await;
    assert_eq!(refusal(share).await.0, "GROUP_KIND_MISMATCH");
    drop(member);
    broker.stop().await;
}
