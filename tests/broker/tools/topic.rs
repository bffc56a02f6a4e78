//! `streambus topic`.

use serde_json::json;
use streambus::proto::v1;

use crate::support::TestBroker;
use crate::support::tool::streambus;

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_gets_as_many_partitions_as_the_broker_says_unless_told() {
    let broker = TestBroker::with(|config| config.broker.default_partitions = 3).await;
    for (arguments, partitions) in [(&["a"][..], 3), (&["b", "--partitions", "1"][..], 1)] {
        let ran = streambus(&broker, &[&["topic", "create", "-o", "json"][..], arguments].concat()).await;
        assert_eq!(ran.json()["partition_count"], partitions, "{ran:?}");
    }
    assert!(!streambus(&broker, &["topic", "create", "c", "--partitions", "0"]).await.success);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_before_a_failure_is_told() {
    let broker = TestBroker::start().await;
    broker.create_topic("here", 1).await;
    let ran = streambus(&broker, &["topic", "delete", "here", "missing", "-o", "json"]).await;
    assert_eq!(ran.json(), json!({"deleted": ["here"]}));
    assert!(!ran.success && ran.errors.contains("missing"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_a_replica_is_told_from_those_that_have_one() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    let admin = broker.client().await.admin();
    let error = admin.transfer_leader("orders", 0, 9).await.expect_err("there is no such broker");
    let message = error.to_string();
    assert!(message.contains("broker 9 has no replica; those that have one: 1"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_allows_one_codec_takes_what_is_produced_with_it() {
    let broker = TestBroker::start().await;
    let codecs_allowed = Some(v1::AllowedCodecs { codecs: vec![v1::Codec::Zstd.into()] });
    broker.create_topic_with("orders", 1, v1::TopicConfig { codecs_allowed, ..Default::default() }).await;
    let data = tempfile::tempdir().expect("a directory");
    let file = data.path().join("lines");
    std::fs::write(&file, "a\n").expect("written");
    let file = file.to_str().expect("text");
    let produced = streambus(&broker, &["produce", "orders", file, "--compression", "zstd"]).await;
    assert!(produced.success, "{produced:?}");
    let refused = streambus(&broker, &["produce", "orders", file]).await;
    assert!(!refused.success, "{refused:?}");
    assert!(refused.errors.contains("it allows: zstd"), "{refused:?}");
    assert!(refused.errors.contains("with --compression"), "{refused:?}");
}
