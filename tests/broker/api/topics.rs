//! Creating, listing, describing, altering and deleting topics.

use std::time::{Duration, SystemTime};

use streambus::proto::v1;
use tonic::Code;

use crate::support::asking::append;
use crate::support::endpoint::{duration, produce};
use crate::support::{Refusal, TestBroker, batch};

fn create(name: &str) -> v1::CreateTopicRequest {
    v1::CreateTopicRequest { name: name.to_owned(), ..Default::default() }
}

fn describe(name: &str) -> v1::DescribeTopicRequest {
    v1::DescribeTopicRequest { name: name.to_owned() }
}

async fn names(broker: &TestBroker) -> Vec<String> {
    let listed = broker.topics().await.list_topics(v1::ListTopicsRequest::default()).await.expect("a list");
    listed.into_inner().topics.into_iter().map(|topic| topic.name).collect()
}

#[tokio::test]
async fn a_topic_is_created_with_its_settings_and_defaults_for_the_rest() {
    let broker = TestBroker::start().await;
    let config = v1::TopicConfig {
        retention_bytes: Some(1 << 30),
        record_bytes_max: Some(1_000),
        ..Default::default()
    };

    let topic = broker.create_topic_with("orders", 3, config).await;

    assert_eq!((topic.name.as_str(), topic.partition_count, topic.replication_factor), ("orders", 3, 1));
    let expected = v1::TopicConfig {
        retention_time: Some(duration(Duration::from_secs(7 * 24 * 3600))),
        retention_bytes: Some(1 << 30),
        record_bytes_max: Some(1_000),
        batch_bytes_max: Some(4 << 20),
        codecs_allowed: Some(v1::AllowedCodecs { codecs: vec![0, 1, 2] }),
    };
    assert_eq!(topic.config, Some(expected));
    let created = SystemTime::try_from(topic.create_time.expect("a time")).expect("a time");
    assert!(created.elapsed().expect("not in the future") < Duration::from_secs(60));

    append(&broker, "orders", 1, batch::values(["a", "b"])).await;
    let described =
        broker.topics().await.describe_topic(describe("orders")).await.expect("there").into_inner();
    assert_eq!(described.topic, Some(topic));
    let numbers: Vec<_> = described.partitions.iter().map(|partition| partition.partition).collect();
    assert_eq!(numbers, [0, 1, 2]);
    let [empty, filled, _] = &described.partitions[..] else { panic!("three") };
    assert_eq!((empty.log_start_offset, empty.high_watermark, empty.size_bytes), (0, 0, 0));
    assert_eq!((filled.log_start_offset, filled.high_watermark), (0, 2));
    assert_eq!(filled.size_bytes, batch::values(["a", "b"]).len() as u64);
    assert_eq!(filled.replica_ids, [filled.leader_id.expect("a leader")]);
}

#[tokio::test]
async fn altering_changes_what_is_named_and_nothing_else() {
    let broker = TestBroker::start().await;
    let before = broker.create_topic("orders", 1).await;
    let config = v1::TopicConfig { retention_bytes: Some(7), ..Default::default() };

    let request = v1::AlterTopicRequest { name: "orders".to_owned(), config: Some(config) };
    let after = broker.topics().await.alter_topic(request).await.expect("altered").into_inner().topic;

    let expected = v1::TopicConfig { retention_bytes: Some(7), ..before.config.clone().expect("settings") };
    assert_eq!(after, Some(v1::Topic { config: Some(expected), ..before }));

    let forever = v1::TopicConfig { retention_time: Some(duration(Duration::ZERO)), ..Default::default() };
    let request = v1::AlterTopicRequest { name: "orders".to_owned(), config: Some(forever) };
    let after = broker.topics().await.alter_topic(request).await.expect("altered").into_inner().topic;
    let config = after.expect("a topic").config.expect("settings");
    assert_eq!((config.retention_time, config.retention_bytes), (Some(duration(Duration::ZERO)), Some(7)));
}

#[tokio::test]
async fn partitions_can_be_added_and_used_but_not_taken_away() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    let add = |partition_count| v1::AddTopicPartitionsRequest { name: "orders".to_owned(), partition_count };
    let mut topics = broker.topics().await;

    let topic =
        topics.add_topic_partitions(add(4)).await.expect("added").into_inner().topic.expect("a topic");

    assert_eq!(topic.partition_count, 4);
    assert_eq!(append(&broker, "orders", 3, batch::values(["a"])).await.base_offset, 0);
    for count in [0, 3, 4] {
        Refusal::of(topics.add_topic_partitions(add(count)).await)
            .is(Code::InvalidArgument, "INVALID_ARGUMENT")
            .says("4");
        let described = topics.describe_topic(describe("orders")).await.expect("there").into_inner();
        assert_eq!((described.topic.expect("a topic").partition_count, described.partitions.len()), (4, 4));
    }
    assert_eq!(append(&broker, "orders", 3, batch::values(["b"])).await.base_offset, 1);
}

#[tokio::test]
async fn a_deleted_topic_is_gone_and_its_name_free_for_another() {
    let broker = TestBroker::start().await;
    let first = broker.create_topic("orders", 1).await;
    append(&broker, "orders", 0, batch::values(["a"])).await;
    let mut topics = broker.topics().await;

    topics.delete_topic(v1::DeleteTopicRequest { name: "orders".to_owned() }).await.expect("deleted");

    Refusal::of(topics.describe_topic(describe("orders")).await).is(Code::NotFound, "UNKNOWN_TOPIC");
    assert!(names(&broker).await.is_empty());
    let second = broker.create_topic("orders", 1).await;
    assert_ne!(first.topic_id, second.topic_id);
    assert_eq!(append(&broker, "orders", 0, batch::values(["b"])).await.base_offset, 0);
}

#[tokio::test]
async fn every_call_names_an_unknown_topic() {
    let broker = TestBroker::start().await;
    let mut topics = broker.topics().await;
    let name = || "nowhere".to_owned();
    let refusals = [
        Refusal::of(topics.describe_topic(describe("nowhere")).await),
        Refusal::of(topics.alter_topic(v1::AlterTopicRequest { name: name(), config: None }).await),
        Refusal::of(
            topics
                .add_topic_partitions(v1::AddTopicPartitionsRequest { name: name(), partition_count: 2 })
                .await,
        ),
        Refusal::of(topics.delete_topic(v1::DeleteTopicRequest { name: name() }).await),
        Refusal::of(
            topics.delete_records(v1::DeleteRecordsRequest { topic: name(), ..Default::default() }).await,
        ),
        Refusal::of(broker.produce().await.produce(produce("nowhere", 0, batch::values(["a"]))).await),
    ];
    for refusal in refusals {
        let refusal = refusal.is(Code::NotFound, "UNKNOWN_TOPIC").says("nowhere");
        assert_eq!(refusal.fact("topic"), "nowhere");
        assert!(!refusal.advises_retry);
    }
}

#[tokio::test]
async fn a_topic_that_exists_is_not_created_again() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    for validate_only in [false, true] {
        let request = v1::CreateTopicRequest { validate_only, ..create("orders") };
        let refusal = Refusal::of(broker.topics().await.create_topic(request).await);
        assert_eq!(refusal.is(Code::AlreadyExists, "TOPIC_EXISTS").fact("topic"), "orders");
    }
}

#[tokio::test]
async fn bad_names_are_refused_by_field_and_create_nothing() {
    let broker = TestBroker::start().await;
    let mut topics = broker.topics().await;
    for name in ["", ".", "..", "__internal", "a b", "a/b", "ä", "a\n", &"n".repeat(250)] {
        Refusal::of(topics.create_topic(create(name)).await).names_field("name");
    }
    assert!(names(&broker).await.is_empty());
    for name in ["a", "Orders.v1_eu-west", &"n".repeat(249)] {
        topics.create_topic(create(name)).await.expect("a good name");
    }
}

#[tokio::test]
async fn settings_out_of_range_are_refused_by_field_and_change_nothing() {
    let broker = TestBroker::start().await;
    broker.create_topic("present", 1).await;
    let mut topics = broker.topics().await;
    let before = topics.describe_topic(describe("present")).await.expect("there").into_inner();
    let none = v1::TopicConfig::default;
    let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let codecs = |codecs: &[i32]| Some(v1::AllowedCodecs { codecs: codecs.to_vec() });
    let bad = [
        (v1::TopicConfig { retention_time: time(0, 999_999_999), ..none() }, "config.retention_time"),
        (v1::TopicConfig { retention_time: time(-1, 0), ..none() }, "config.retention_time"),
        (v1::TopicConfig { record_bytes_max: Some(0), ..none() }, "config.record_bytes_max"),
        (v1::TopicConfig { record_bytes_max: Some((4 << 20) + 1), ..none() }, "config.record_bytes_max"),
        (v1::TopicConfig { batch_bytes_max: Some(0), ..none() }, "config.batch_bytes_max"),
        (v1::TopicConfig { batch_bytes_max: Some((16 << 20) + 1), ..none() }, "config.batch_bytes_max"),
        (v1::TopicConfig { codecs_allowed: codecs(&[]), ..none() }, "config.codecs_allowed.codecs"),
        (v1::TopicConfig { codecs_allowed: codecs(&[0, 9]), ..none() }, "config.codecs_allowed.codecs[1]"),
    ];
    for (config, field) in bad {
        let request = v1::CreateTopicRequest { config: Some(config.clone()), ..create("new") };
        Refusal::of(topics.create_topic(request).await).names_field(field);
        let request = v1::AlterTopicRequest { name: "present".to_owned(), config: Some(config) };
        Refusal::of(topics.alter_topic(request).await).names_field(field);
    }
    let request = v1::CreateTopicRequest { replication_factor: 2, ..create("new") };
    Refusal::of(topics.create_topic(request).await).names_field("replication_factor");
    let after = topics.describe_topic(describe("present")).await.expect("there").into_inner();
    assert_eq!(before, after);
    assert_eq!(names(&broker).await, ["present"]);
}

#[tokio::test]
async fn validating_creates_nothing() {
    let broker = TestBroker::start().await;
    let request = v1::CreateTopicRequest { partition_count: 3, validate_only: true, ..create("orders") };

    let checked = broker.topics().await.create_topic(request).await.expect("valid").into_inner();

    assert_eq!(checked.topic.map(|topic| topic.partition_count), Some(3));
    assert!(names(&broker).await.is_empty());
}

#[tokio::test]
async fn limits_on_topics_and_partitions_hold_and_name_their_setting() {
    let broker = TestBroker::with(|config| {
        config.broker.topics_max = 2;
        config.broker.partitions_max = 4;
    })
    .await;
    let mut topics = broker.topics().await;
    let sized = |name, partition_count| v1::CreateTopicRequest { partition_count, ..create(name) };
    let limited = |refusal: Refusal, setting: &str, limit: &str| {
        let refusal = refusal.is(Code::ResourceExhausted, "LIMIT_REACHED").says(setting);
        assert_eq!((refusal.fact("setting"), refusal.fact("limit")), (setting, limit));
        assert!(!refusal.advises_retry);
    };

    for count in [5, u32::MAX] {
        let refusal = Refusal::of(topics.create_topic(sized("a", count)).await);
        limited(refusal, "broker.partitions_max", "4");
    }
    topics.create_topic(sized("a", 3)).await.expect("room");
    for count in [5, u32::MAX] {
        let add = v1::AddTopicPartitionsRequest { name: "a".to_owned(), partition_count: count };
        limited(Refusal::of(topics.add_topic_partitions(add).await), "broker.partitions_max", "4");
    }
    topics.create_topic(sized("b", 1)).await.expect("room");
    limited(Refusal::of(topics.create_topic(sized("c", 1)).await), "broker.topics_max", "2");
    // What is deleted makes room.
    topics.delete_topic(v1::DeleteTopicRequest { name: "a".to_owned() }).await.expect("deleted");
    topics.create_topic(sized("c", 3)).await.expect("room");
}

#[tokio::test]
async fn pages_list_every_topic_once_in_the_order_of_names() {
    let broker = TestBroker::start().await;
    for name in ["c", "a", "e", "b", "d"] {
        broker.create_topic(name, 1).await;
    }
    let mut topics = broker.topics().await;
    let mut pages = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListTopicsRequest { page_size: 2, page_token };
        let page = topics.list_topics(request).await.expect("a page").into_inner();
        pages.push(page.topics.into_iter().map(|topic| topic.name).collect::<Vec<_>>().concat());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, ["ab", "cd", "e"]);
    assert_eq!(names(&broker).await, ["a", "b", "c", "d", "e"]);
    // A page that is just full is the last one.
    let request = v1::ListTopicsRequest { page_size: 5, page_token: String::new() };
    assert_eq!(topics.list_topics(request).await.expect("a page").into_inner().next_page_token, "");
    let request = v1::ListTopicsRequest { page_size: 1_001, page_token: String::new() };
    Refusal::of(topics.list_topics(request).await).names_field("page_size").says("1000");
}

#[tokio::test]
async fn the_cluster_names_its_broker_and_who_leads_the_topics_asked_for() {
    let broker = TestBroker::start().await;
    let topic = broker.create_topic("orders", 2).await;
    let request = v1::DescribeClusterRequest { topics: vec!["orders".to_owned(), "nowhere".to_owned()] };

    let cluster = broker.cluster().await.describe_cluster(request).await.expect("an answer").into_inner();

    let [only] = &cluster.brokers[..] else { panic!("one broker") };
    assert_eq!((only.broker_id, cluster.controller_id), (cluster.broker_id, cluster.broker_id));
    assert_eq!(only.grpc_address, broker.grpc.to_string());
    assert_eq!(only.http_address, broker.http.to_string());
    assert_eq!((only.version.as_str(), only.storage_sync.as_str()), (env!("CARGO_PKG_VERSION"), "always"));
    assert!(!cluster.cluster_id.is_empty());
    let [routing] = &cluster.topics[..] else { panic!("one topic: {:?}", cluster.topics) };
    assert_eq!((routing.topic.as_str(), routing.topic_id), ("orders", topic.topic_id));
    assert_eq!(routing.leader_ids, [cluster.broker_id; 2]);
    assert_eq!(routing.config, topic.config);
}
