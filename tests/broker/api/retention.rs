//! Records and disk space really go.

use std::time::Duration;

use streambus::proto::v1;
use streambus::proto::v1::position::At;
use streambus::telemetry::catalog;

use crate::support::asking::{append, error, read};
use crate::support::endpoint::duration;
use crate::support::{PATIENCE, TestBroker, batch, eventually};

const MIB: u64 = 1 << 20;
/// Batches of 1 MiB that a filled topic has.
const BATCHES: u64 = 12;

/// A broker that looks often and writes small tables, with a topic of [`BATCHES`] batches whose tables are on the disk.
async fn filled() -> TestBroker {
    let broker = TestBroker::with(|config| {
        config.partition.retention_interval = Duration::from_millis(50);
        config.storage.table_bytes = Some(MIB);
        // Entries go up to a checkpoint.
        config.raft.checkpoint_bytes = MIB;
        // Durability is not at stake here.
        config.storage.sync = streambus::storage::Sync::Interval;
    })
    .await;
    let config = v1::TopicConfig { retention_time: Some(duration(Duration::ZERO)), ..Default::default() };
    broker.create_topic_with("orders", 1, config).await;
    for seed in 0..BATCHES {
        append(&broker, "orders", 0, batch::noise(seed, 8, 128 * 1024)).await;
        // Journals hold everything once, tables hold it once more. What waits to be written comes into one file, and
        // files go as a whole, so each batch waits for the one before.
        eventually(PATIENCE, "tables are written", async || {
            (used(&broker).await >= (2 * seed + 1) * MIB).then_some(())
        })
        .await;
    }
    broker
}

async fn used(broker: &TestBroker) -> u64 {
    broker.scrape().await.or_zero(&catalog::STORAGE_USED, &[]) as u64
}

async fn alter(broker: &TestBroker, config: v1::TopicConfig) {
    let request = v1::AlterTopicRequest { name: "orders".to_owned(), config: Some(config) };
    broker.topics().await.alter_topic(request).await.expect("altered");
}

async fn partition(broker: &TestBroker) -> v1::PartitionDescription {
    let request = v1::DescribeTopicRequest { name: "orders".to_owned() };
    let described = broker.topics().await.describe_topic(request).await.expect("there").into_inner();
    described.partitions.into_iter().next().expect("one partition")
}

/// Waits until no more of the disk is used than for the journals, which have every batch once, and `tables` MiB.
async fn falls(broker: &TestBroker, tables: u64) {
    eventually(PATIENCE, "disk usage falls", async || {
        (used(broker).await <= (BATCHES + tables) * MIB).then_some(())
    })
    .await;
}

#[tokio::test]
async fn retention_by_size_keeps_the_newest_and_frees_the_disk() {
    let broker = filled().await;

    alter(&broker, v1::TopicConfig { retention_bytes: Some(3 * MIB), ..Default::default() }).await;

    let kept = eventually(PATIENCE, "old batches go", async || {
        Some(partition(&broker).await).filter(|partition| partition.size_bytes < BATCHES * MIB)
    })
    .await;
    // At least what was promised, and not a whole batch more.
    assert!((3 * MIB..4 * MIB + 65_536).contains(&kept.size_bytes), "{kept:?}");
    assert_eq!((kept.log_start_offset, kept.high_watermark), (8 * (BATCHES - 3), 8 * BATCHES));
    let gone = read(&broker, "orders", 0, At::Offset(kept.log_start_offset - 1), &[]).await;
    assert_eq!(error(&gone).0, v1::ErrorCode::OffsetOutOfRange);
    let rest = read(&broker, "orders", 0, At::Earliest(()), &[]).await;
    let expected: Vec<_> = (BATCHES - 3..BATCHES).map(|seed| batch::noise(seed, 8, 128 * 1024)).collect();
    assert!(rest.batches.iter().map(|stored| &stored.batch).eq(&expected));
    falls(&broker, 3 + 1).await;
    // Less is kept than was allowed only when nothing is missing.
    assert_eq!(partition(&broker).await.log_start_offset, kept.log_start_offset);
    broker.stop().await;
}

#[tokio::test]
async fn retention_by_time_deletes_what_is_too_old_and_frees_the_disk() {
    let broker = filled().await;

    alter(
        &broker,
        v1::TopicConfig { retention_time: Some(duration(Duration::from_secs(1))), ..Default::default() },
    )
    .await;

    let end = 8 * BATCHES;
    let kept = eventually(PATIENCE, "old batches go", async || {
        Some(partition(&broker).await).filter(|kept| kept.log_start_offset == end && kept.size_bytes == 0)
    })
    .await;
    assert_eq!((kept.high_watermark, kept.size_bytes), (end, 0));
    falls(&broker, 1).await;
    // The partition goes on where it was.
    assert_eq!(append(&broker, "orders", 0, batch::values(["new"])).await.base_offset, end);
    assert_eq!(read(&broker, "orders", 0, At::Earliest(()), &[]).await.log_start_offset, end);
    broker.stop().await;
}

#[tokio::test]
async fn a_deleted_topic_frees_the_disk() {
    let broker = filled().await;
    broker
        .topics()
        .await
        .delete_topic(v1::DeleteTopicRequest { name: "orders".to_owned() })
        .await
        .expect("deleted");
    falls(&broker, 1).await;
    broker.stop().await;
}

#[tokio::test]
async fn records_younger_than_the_retention_stay() {
    let broker = filled().await;
    alter(
        &broker,
        v1::TopicConfig {
            retention_time: Some(duration(Duration::from_secs(3600))),
            retention_bytes: Some(100 * MIB),
            ..Default::default()
        },
    )
    .await;
    // A topic that is trimmed shows that retention has looked at all of them since.
    let config = v1::TopicConfig { retention_bytes: Some(1), ..Default::default() };
    broker.create_topic_with("other", 1, config).await;
    append(&broker, "other", 0, batch::values(["a"])).await;
    append(&broker, "other", 0, batch::values(["b"])).await;
    eventually(PATIENCE, "the other topic is trimmed", async || {
        (read(&broker, "other", 0, At::Earliest(()), &[]).await.log_start_offset > 0).then_some(())
    })
    .await;
    let kept = partition(&broker).await;
    assert_eq!((kept.log_start_offset, kept.high_watermark), (0, 8 * BATCHES));
    broker.stop().await;
}

#[tokio::test]
async fn topics_deleted_while_their_tables_are_written_leave_the_store_working() {
    let broker = TestBroker::with(|config| {
        config.storage.table_bytes = Some(MIB);
        config.storage.sync = streambus::storage::Sync::Interval;
    })
    .await;
    broker.create_topic("other", 1).await;
    const ROUNDS: u64 = 5;
    for round in 0..ROUNDS {
        broker.create_topic("orders", 1).await;
        for seed in 0..6 {
            append(&broker, "orders", 0, batch::noise(seed, 8, 128 * 1024)).await;
        }
        let delete = v1::DeleteTopicRequest { name: "orders".to_owned() };
        broker.topics().await.delete_topic(delete).await.expect("deleted");
        assert_eq!(append(&broker, "other", 0, batch::values(["a"])).await.base_offset, round);
    }
    assert_eq!(broker.health("/health").await.0, 200);
    // Journals have all of it, tables none of what was deleted.
    eventually(PATIENCE, "the tables go", async || {
        (used(&broker).await < (ROUNDS * 6 + 2) * MIB).then_some(())
    })
    .await;
    let broker = broker.restart_with(|_| {}).await;
    let listed = broker.topics().await.list_topics(v1::ListTopicsRequest::default()).await.expect("listed");
    let names: Vec<_> = listed.into_inner().topics.into_iter().map(|topic| topic.name).collect();
    assert_eq!(names, ["other"]);
    assert_eq!(read(&broker, "other", 0, At::Earliest(()), &[]).await.high_watermark, ROUNDS);
    assert_eq!(append(&broker, "other", 0, batch::values(["b"])).await.base_offset, ROUNDS);
    broker.stop().await;
}
