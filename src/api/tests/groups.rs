//! What becomes of the offsets of consumer groups.

use super::*;
use crate::clock::Timestamp;
use crate::coordination::{Command, PartitionKey};
use crate::record::Offset;

#[tokio::test]
async fn an_offset_that_comes_after_its_topic_is_gone_does_not_stay() {
    let api = Api::start().await;
    tokio::spawn(api.broker.clone().keep_groups());
    let topic = metadata::TopicId(api.broker.describe_topic("orders").unwrap().0.id);
    let coordinator = api.coordinators.of("late");
    let commit = |offset| {
        let offsets = vec![(PartitionKey { topic, partition: 0 }, Offset(offset), "".into())];
        coordinator.change(Command::CommitOffsets { group: "late".into(), at: Timestamp(1), offsets })
    };
    let forgotten = async || {
        within(async {
            while coordinator.read(|state| state.topics().contains(&topic)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    commit(1).await.unwrap();
    api.broker.delete_topic("orders").await.unwrap();
    forgotten().await;
    commit(2).await.unwrap();
    forgotten().await;
    // Nor does one of the same name have it.
    api.broker.create_topic("orders", 1, 1, TopicChanges::default(), false).await.unwrap();
    assert_ne!(api.broker.describe_topic("orders").unwrap().0.id, topic.0);
}
