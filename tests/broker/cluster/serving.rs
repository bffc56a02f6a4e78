//! Any broker serves any request.

use streambus::client::GroupConfig;
use streambus::proto::v1;
use streambus::proto::v1::position::At;

use futures_util::StreamExt as _;

use crate::support::asking::{append, offsets, read};
use crate::support::endpoint::from;
use crate::support::{Cluster, GroupStream, PATIENCE, Subscriber, batch, eventually, group, within};

const PARTITIONS: u32 = 6;

/// Three brokers with a topic that has one replica per partition, so that most requests meet a broker without one.
async fn sparse() -> Cluster {
    let cluster = Cluster::start(3).await;
    cluster.create_topic("sparse", PARTITIONS, 1).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_and_leaders_are_spread_evenly() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic("spread", PARTITIONS, 3).await;
    cluster.settled().await;
    let status = cluster.status_at(2).await.expect("a status");
    for broker in &status.brokers {
        assert_eq!((broker.replicas, broker.leaders), (PARTITIONS, 2), "{broker:?}");
    }
    for (_, broker) in cluster.running() {
        let described = broker.client().await.admin().describe_cluster().await.expect("an answer");
        assert_eq!(described.brokers.len(), 3);
        assert_eq!(described.controller_id, status.controller_id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_another_broker_has_just_made_is_known_to_all() {
    let cluster = Cluster::start(3).await;
    let controller = cluster.status_at(1).await.and_then(|status| status.controller_id);
    let maker = cluster.broker(controller.expect("there is one"));
    let (_, late) = cluster.running().find(|(id, _)| Some(*id) != controller).expect("there are three");
    for number in 0..20 {
        let topics = vec![format!("new-{number}")];
        let described = v1::DescribeClusterRequest { topics: topics.clone() };
        let mut asked = late.cluster().await;
        late.freeze();
        let request =
            v1::CreateTopicRequest { name: topics[0].clone(), partition_count: 1, ..Default::default() };
        let mut topic_service = maker.topics().await;
        let making = tokio::spawn(async move { topic_service.create_topic(request).await });
        let made = async || {
            let answer = maker.cluster().await.describe_cluster(described.clone()).await.expect("an answer");
            (!answer.into_inner().topics.is_empty()).then_some(())
        };
        eventually(PATIENCE, "the topic is made", made).await;
        // It hears of the topic and is asked for it at once, in no order.
        late.thaw();
        let answer = within("an answer", asked.describe_cluster(described)).await.expect("an answer");
        assert_eq!(answer.into_inner().topics.len(), 1, "{topics:?} is not known");
        within("an answer", making).await.expect("no panic").expect("made");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_broker_appends_and_reads() {
    let cluster = sparse().await;
    for partition in 0..PARTITIONS {
        for (number, (id, broker)) in cluster.running().enumerate() {
            let appended = append(broker, "sparse", partition, batch::values([format!("from {id}")])).await;
            assert_eq!(appended.base_offset, number as u64);
        }
    }
    for (_, broker) in cluster.running() {
        for partition in 0..PARTITIONS {
            let records = read(broker, "sparse", partition, At::Earliest(()), &[]).await;
            assert_eq!(records.error, None);
            assert_eq!(offsets(&records), [0, 1, 2]);
            let late = read(broker, "sparse", partition, At::Offset(7), &[]).await;
            assert_eq!(late.error.expect("refused").code(), v1::ErrorCode::OffsetOutOfRange);
        }
        let positions = (0..PARTITIONS).map(|number| from("sparse", number, At::Latest(()))).collect();
        let request = v1::ListOffsetsRequest { positions };
        let ends = broker.topics().await.list_offsets(request).await.expect("an answer").into_inner();
        assert!(ends.offsets.iter().all(|end| end.offset == 3 && end.error.is_none()), "{ends:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_at_any_broker_sees_records_as_they_come() {
    let cluster = sparse().await;
    let (_, reader) = cluster.running().last().expect("a broker");
    let all = (0..PARTITIONS).map(|number| from("sparse", number, At::Earliest(()))).collect();
    let mut subscriber = Subscriber::start(reader, all, 1 << 20).await;
    let (_, writer) = cluster.running().next().expect("a broker");
    for partition in 0..PARTITIONS {
        append(writer, "sparse", partition, batch::values(["first"])).await;
        let records = subscriber.delivery().await;
        assert_eq!((records.partition, offsets(&records)), (partition, vec![0]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_deleted_through_any_broker() {
    let cluster = sparse().await;
    let (_, first) = cluster.running().next().expect("a broker");
    for partition in 0..PARTITIONS {
        append(first, "sparse", partition, batch::values(["a", "b", "c"])).await;
        let (_, last) = cluster.running().last().expect("a broker");
        let request = v1::DeleteRecordsRequest { topic: "sparse".into(), partition, before_offset: 2 };
        let deleted = last.topics().await.delete_records(request).await.expect("deleted").into_inner();
        assert_eq!(deleted.log_start_offset, 2);
        let gone = read(first, "sparse", partition, At::Offset(0), &[]).await;
        assert_eq!(gone.error.expect("gone").code(), v1::ErrorCode::OffsetOutOfRange);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_managed_through_any_broker() {
    let cluster = Cluster::start(3).await;
    for (id, broker) in cluster.running() {
        let name = format!("made-at-{id}");
        broker.create_topic(&name, 1).await;
        // The broker that was asked knows the topic at once.
        append(broker, &name, 0, batch::values(["x"])).await;
        let config = v1::TopicConfig { retention_bytes: Some(1 << 20), ..Default::default() };
        let request = v1::AlterTopicRequest { name: name.clone(), config: Some(config) };
        let altered = broker.topics().await.alter_topic(request).await.expect("altered").into_inner();
        let config = altered.topic.expect("a topic").config.expect("settings");
        assert_eq!(config.retention_bytes, Some(1 << 20));
        let request = v1::CreateTopicRequest { name: name.clone(), ..Default::default() };
        let again = broker.topics().await.create_topic(request).await.expect_err("it exists");
        assert_eq!(again.code(), tonic::Code::AlreadyExists);
        broker.topics().await.delete_topic(v1::DeleteTopicRequest { name }).await.expect("deleted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_joins_its_group_through_any_broker() {
    let cluster = sparse().await;
    let (_, first) = cluster.running().next().expect("a broker");
    for partition in 0..PARTITIONS {
        append(first, "sparse", partition, batch::values(["a", "b"])).await;
    }
    for (id, broker) in cluster.running() {
        let name = format!("group-{id}");
        let mut member = GroupStream::join(broker, group::join(&name, &["sparse"])).await;
        let got = member.records(2 * PARTITIONS as usize).await;
        let ends: Vec<(u32, u64)> = (0..PARTITIONS).map(|partition| (partition, 2)).collect();
        assert!(got.iter().all(|record| record.offset < 2));
        let results = member.commit("sparse", &ends).await;
        assert!(results.iter().all(Option::is_none), "{results:?}");
        member.leave().await;
        for (_, other) in cluster.running() {
            let committed = group::committed(other, &name, "sparse").await;
            assert_eq!(committed, ends.iter().copied().collect());
            let described = group::describe(other, &name).await.expect("there");
            assert!(described.partitions.iter().all(|at| at.lag == 0), "{described:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_library_produces_and_consumes_in_a_cluster() {
    let cluster = Cluster::start(3).await;
    cluster.create_topic("orders", PARTITIONS, 3).await;
    let client = cluster.client().await;
    let producer = client.producer(Default::default()).await.expect("a producer");
    for number in 0..600_u32 {
        let record = streambus::client::ProducerRecord::new("orders")
            .key(number.to_string())
            .value(number.to_string());
        drop(producer.send(record).await.expect("taken"));
    }
    within("delivery", producer.close()).await;
    let config = GroupConfig::new("billing", ["orders"]);
    let mut consumer = within("a member", client.group_consumer(config)).await.expect("a member");
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 600 {
        let record = within("a record", consumer.next()).await.expect("more").expect("a record");
        let value = record.value.clone().expect("a value");
        assert!(seen.insert(value), "delivered twice");
    }
    within("the member leaves", consumer.close()).await.expect("closed");
}
