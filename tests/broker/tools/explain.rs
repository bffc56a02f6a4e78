//! What became of a record.

use std::time::Duration;

use streambus::client::{
    Client, ClientConfig, Explanation, Offset, ProducerConfig, ProducerRecord, TopicPartition, WhenKnown,
};
use streambus::proto::v1;
use tonic::Request;

use crate::support::asking::append;
use crate::support::endpoint::produce;
use crate::support::tool::streambus;
use crate::support::{Cluster, Endpoint, GroupStream, PATIENCE, Process, batch, eventually, group, within};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

async fn explain(broker: &Endpoint, partition: u32, offset: u64) -> Explanation {
    let admin = broker.client().await.admin();
    let at = TopicPartition::new("orders", partition);
    admin.explain_record(&at, Offset(offset)).await.expect("an explanation")
}

/// Appends a batch in a sampled trace.
async fn append_traced(broker: &Endpoint, partition: u32, values: &[&'static str]) {
    let mut request = Request::new(produce("orders", partition, batch::values(values.iter().copied())));
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01").parse().expect("text");
    request.metadata_mut().insert("traceparent", parent);
    within("a commit", broker.produce().await.produce(request)).await.expect("the batch is committed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_followed_from_its_producer_to_its_groups() {
    let broker = Process::start(&[]).await;
    broker.create_topic("orders", 1).await;
    let mut member = GroupStream::join(&broker, group::join("billing", &["orders"])).await;
    member.until_assigned(1).await;
    let config = ClientConfig { client_id: Some("shop".to_owned()), ..ClientConfig::default() };
    let client = Client::connect(broker.grpc.to_string(), config).await.expect("a client");
    let producer = client.producer(ProducerConfig::default()).await.expect("a producer");
    for value in ["one", "two"] {
        let sent = producer.send(ProducerRecord::new("orders").value(value)).await.expect("taken");
        sent.await.expect("written");
    }
    let fresh = explain(&broker, 0, 1).await;
    let record = &fresh.record;
    let sent_by = record.producer.as_ref().expect("it is idempotent");
    assert_eq!((sent_by.epoch, sent_by.sequence), (0, 1));
    assert!(sent_by.user_agent.as_ref().is_some_and(|agent| agent.starts_with("shop")), "{sent_by:?}");
    assert_eq!((record.batch_base, record.batch_records, record.high_watermark), (Offset(1), 1, Offset(2)));
    assert_eq!((record.appended_by, record.leader_id, record.raft_term), (1, 1, record.leader_term));
    assert!(record.replicas.iter().all(|replica| replica.broker_id == 1 && replica.stored));
    assert!(record.raft_index > 0 && record.append_time.is_some() && record.append_span.is_none());

    member.records(2).await;
    let delivered = explain(&broker, 0, 1).await;
    let [billing] = delivered.groups.as_slice() else { panic!("{delivered:?}") };
    assert!(
        matches!(billing.delivery, WhenKnown::Done(Some(at)) if Some(at) >= record.append_time),
        "{billing:?}"
    );
    assert_eq!(billing.member_id.as_deref(), Some(member.id.as_str()));
    assert_eq!((billing.acknowledgement, billing.committed), (WhenKnown::NotYet, Offset(0)));
    assert_eq!(member.commit("orders", &[(0, 2)]).await, [None]);
    let done = explain(&broker, 0, 1).await;
    let [billing] = done.groups.as_slice() else { panic!("{done:?}") };
    assert!(matches!(billing.acknowledgement, WhenKnown::Done(Some(_))), "{billing:?}");
    assert_eq!(billing.committed, Offset(2));

    append(&broker, "orders", 0, batch::values(["three"])).await;
    let plain = explain(&broker, 0, 2).await;
    assert_eq!(plain.record.producer, None);
    let ran = streambus(&broker, &["explain", "orders/0/1"]).await;
    assert!(ran.success && ran.text.contains("first committed     20"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restart_forgets_is_said_to_be_unknown() {
    let broker = Process::start(&[]).await;
    broker.create_topic("orders", 1).await;
    let mut member = GroupStream::join(&broker, group::join("billing", &["orders"])).await;
    append(&broker, "orders", 0, batch::values(["one", "two"])).await;
    member.records(2).await;
    assert_eq!(member.commit("orders", &[(0, 1)]).await, [None]);
    let broker = broker.stop().await.start().await;
    let explained = eventually(PATIENCE, "the group is coordinated again", async || {
        Some(explain(&broker, 0, 0).await).filter(|explained| !explained.groups.is_empty())
    })
    .await;
    let billing = &explained.groups[0];
    assert_eq!((billing.delivery, billing.acknowledgement), (WhenKnown::NotKnown, WhenKnown::Done(None)));
    assert!(billing.commit_time.is_some() && billing.memory_since.is_none());
    let second = explain(&broker, 0, 1).await;
    assert_eq!(
        (second.groups[0].delivery, second.groups[0].acknowledgement),
        (WhenKnown::NotKnown, WhenKnown::NotYet)
    );
    let ran = streambus(&broker, &["explain", "orders/0/0"]).await;
    assert!(ran.text.contains("first delivered     not known (older than this broker's memory)"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_of_a_share_group_are_told_record_by_record() {
    let broker = Process::start(&[]).await;
    broker.create_topic("orders", 1).await;
    let lease = Duration::from_secs(600);
    let mut worker = GroupStream::join(&broker, group::join_share("workers", &["orders"], lease, 5)).await;
    append(&broker, "orders", 0, batch::values(["one", "two"])).await;
    worker.records(2).await;
    assert_eq!(worker.acknowledge("orders", &[(0, 1, 1)], v1::AckKind::Accept).await, [None]);
    let [first, second] = [explain(&broker, 0, 0).await, explain(&broker, 0, 1).await];
    assert!(matches!(first.groups[0].delivery, WhenKnown::Done(Some(_))), "{first:?}");
    assert_eq!(
        (first.groups[0].acknowledgement, first.groups[0].kind.as_str()),
        (WhenKnown::NotYet, "share")
    );
    assert!(matches!(second.groups[0].acknowledgement, WhenKnown::Done(Some(_))), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_leads_to_its_records_and_to_their_delivery() {
    let broker = Process::start(&[]).await;
    broker.create_topic("orders", 1).await;
    let mut member = GroupStream::join(&broker, group::join("billing", &["orders"])).await;
    member.until_assigned(1).await;
    append(&broker, "orders", 0, batch::values(["untraced"])).await;
    append_traced(&broker, 0, &["one", "two"]).await;
    member.records(3).await;
    let ran = streambus(&broker, &["explain", "--trace", TRACE, "-o", "json"]).await;
    assert!(ran.success, "{ran:?}");
    let found = ran.json();
    assert_eq!(
        (&found[0]["offset"], &found[0]["batch"]["record_count"]),
        (&1.into(), &2.into()),
        "{found:#}"
    );
    assert_eq!(found[0]["append_span"]["trace_id"], TRACE);
    let delivery = &found[0]["groups"][0]["delivery_span"];
    assert_eq!(
        delivery["trace_id"].as_str().map(str::len),
        Some(32),
        "deliveries have traces of their own: {found:#}"
    );
    let unknown = streambus(&broker, &["explain", "--trace", &"1".repeat(32)]).await;
    assert!(
        !unknown.success && unknown.errors.contains("no broker remembers a batch of trace"),
        "{unknown:?}"
    );
    let wrong = streambus(&broker, &["explain", "--trace", "abc"]).await;
    assert!(!wrong.success && wrong.errors.contains("32 hexadecimal digits"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_not_there_is_an_error_that_says_so() {
    let broker = Process::start(&[]).await;
    broker.create_topic("orders", 1).await;
    let admin = broker.client().await.admin();
    let ask = async |topic: &str, partition: u32| {
        let refused = admin.explain_record(&TopicPartition::new(topic, partition), Offset(0)).await;
        refused.expect_err("refused").code().expect("a code")
    };
    assert_eq!(ask("orders", 0).await, streambus::client::ErrorCode::OffsetOutOfRange);
    assert_eq!(ask("orders", 7).await, streambus::client::ErrorCode::UnknownPartition);
    assert_eq!(ask("nothing", 0).await, streambus::client::ErrorCode::UnknownTopic);
    let refused = admin.find_records("xyz").await.expect_err("refused");
    assert_eq!(refused.code(), Some(streambus::client::ErrorCode::InvalidArgument));
}

#[tokio::test(flavor = "multi_thread")]
async fn any_broker_explains_what_others_lead_and_coordinate() {
    const PARTITIONS: u32 = 3;
    // Groups keep their coordinators, and so their memory.
    let mut cluster = Box::pin(Cluster::with(3, &[("cluster.balance_interval", "1h")])).await;
    cluster.create_topic("orders", PARTITIONS, 3).await;
    cluster.settled().await;
    let mut members = Vec::new();
    // Enough groups that every broker coordinates one, most likely.
    for name in ["a", "b", "c", "d", "e", "f"] {
        let mut member = GroupStream::join(cluster.broker(1), group::join(name, &["orders"])).await;
        member.until_assigned(PARTITIONS as usize).await;
        members.push(member);
    }
    for partition in 0..PARTITIONS {
        append_traced(cluster.broker(2), partition, &["one"]).await;
    }
    for member in &mut members {
        member.records(PARTITIONS as usize).await;
    }
    for partition in 0..PARTITIONS {
        let leader = Box::pin(cluster.leader("orders", partition)).await;
        for (id, broker) in cluster.running() {
            let explained = explain(broker, partition, 0).await;
            assert_eq!(
                (explained.record.leader_id, &explained.unreached[..]),
                (leader, &[][..]),
                "asked {id}"
            );
            assert_eq!(explained.record.replicas.len(), 3);
            let names: Vec<_> = explained.groups.iter().map(|group| group.group.as_str()).collect();
            assert_eq!(names, ["a", "b", "c", "d", "e", "f"], "asked {id}");
            for group in &explained.groups {
                assert!(matches!(group.delivery, WhenKnown::Done(Some(_))), "asked {id}: {group:?}");
            }
            let found = broker.client().await.admin().find_records(TRACE).await.expect("an answer");
            assert_eq!(found.batches.len(), PARTITIONS as usize, "asked {id}: each batch once");
        }
    }
    cluster.kill(3);
    let explained = eventually(PATIENCE, "the loss is told", async || {
        let admin = cluster.broker(1).client().await.admin();
        let explained = admin.explain_record(&TopicPartition::new("orders", 0), Offset(0)).await.ok()?;
        (explained.unreached == [3]).then_some(explained)
    })
    .await;
    assert!(explained.record.leader_id != 3);
    let names: Vec<_> = explained.groups.iter().map(|group| group.group.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e", "f"], "what is replicated is told without the coordinator");
}
