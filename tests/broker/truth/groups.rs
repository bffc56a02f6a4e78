//! Consumer and share groups: a broker of their own, so that what they do is all there is to count.

use std::time::{Duration, Instant};

use streambus::proto::v1;
use streambus::telemetry::catalog;

use super::proof::{Moment, Proof, within};
use crate::support::asking::append;
use crate::support::group::{describe, join, join_share};
use crate::support::{Collector, GroupStream, PATIENCE, Process, batch, eventually};

const LONG: Duration = Duration::from_secs(600);
const ORDERS_0: &[(&str, &str)] = &[("group", "billing"), ("partition", "0"), ("topic", "orders")];
const ORDERS_1: &[(&str, &str)] = &[("group", "billing"), ("partition", "1"), ("topic", "orders")];
const JOBS: &[(&str, &str)] = &[("group", "workers"), ("topic", "jobs")];

async fn moment(broker: &Process, collector: &Collector) -> Moment {
    let scrape = broker.scrape().await;
    Moment { scrape, export: collector.fresh_metrics().await }
}

/// Claims something of every row of the family. Gives a moment in which each of them has a series.
pub async fn prove(proof: &mut Proof) -> Moment {
    let collector = Collector::start().await;
    let broker = Process::start(&[
        ("telemetry.otlp.endpoint", collector.endpoint()),
        ("telemetry.otlp.metrics_interval", "100ms"),
    ])
    .await;
    broker.create_topic("orders", 2).await;
    let began = Instant::now();
    for (partition, records) in [(0, 5), (0, 5), (1, 4)] {
        append(&broker, "orders", partition, batch::values((0..records).map(|n: u64| n.to_string()))).await;
    }
    consumers(proof, &broker, &collector, began).await;
    let all = workers(proof, &broker, &collector).await;

    let delete = v1::DeleteGroupRequest { group: "billing".to_owned() };
    assert!(all.scrape.mentions("group", "billing") && all.export.mentions("group", "billing"));
    broker.groups().await.delete_group(delete).await.expect("deleted");
    let after = moment(&broker, &collector).await;
    for view in after.views() {
        assert!(!view.mentions("group", "billing"), "{:?}: a deleted group still has series", view.source);
    }
    proof.equals(&after, &catalog::GROUPS, &[], 1.0);
    broker.stop().await;
    all
}

/// A consumer group: joins, commits of every outcome, a rebalance, missed records.
async fn consumers(proof: &mut Proof, broker: &Process, collector: &Collector, began: Instant) {
    let idle = moment(broker, collector).await;
    proof.equals(&idle, &catalog::GROUPS, &[], 0.0);
    proof.equals(&idle, &catalog::GROUP_MEMBERS, &[], 0.0);

    let mut first = GroupStream::join(broker, join("billing", &["orders"])).await;
    first.records(14).await;
    let read = moment(broker, collector).await;
    proof.equals(&read, &catalog::GROUPS, &[], 1.0);
    proof.equals(&read, &catalog::GROUP_MEMBERS, &[], 1.0);
    proof.equals(&read, &catalog::GROUP_LAG, ORDERS_0, 10.0);
    proof.equals(&read, &catalog::GROUP_LAG, ORDERS_1, 4.0);
    let age = began.elapsed().as_secs_f64() + 0.1;
    proof.at(&read, &catalog::GROUP_LAG_TIME, |view| {
        within("seconds", view.get(&catalog::GROUP_LAG_TIME, ORDERS_0), 0.0, age)
    });
    proof.equals(&read, &catalog::GROUP_REBALANCES, &[("cause", "joined")], 1.0);
    proof.recorded([&idle, &read], &catalog::GROUP_DELIVERY, 3.0);

    assert_eq!(first.commit("orders", &[(0, 5), (1, 4)]).await, [None, None]);
    let fenced = first.commit_with(first.epoch + 1, "orders", &[(0, 6)]).await;
    assert_eq!(fenced, [Some(v1::ErrorCode::MemberFenced)]);
    let refused = first.commit("orders", &[(0, 999)]).await;
    assert_eq!(refused, [Some(v1::ErrorCode::OffsetOutOfRange)]);
    let committed = moment(broker, collector).await;
    for (outcome, count) in [("committed", 2.0), ("fenced", 1.0), ("refused", 1.0), ("failed", 0.0)] {
        proof.equals(&committed, &catalog::GROUP_COMMITS, &[("outcome", outcome)], count);
    }
    proof.recorded([&idle, &committed], &catalog::COMMIT_LATENCY, 3.0);
    proof.recorded([&read, &committed], &catalog::GROUP_DELIVERY, 2.0);
    proof.equals(&committed, &catalog::GROUP_LAG, ORDERS_0, 5.0);
    proof.equals(&committed, &catalog::GROUP_LAG, ORDERS_1, 0.0);
    proof.equals(&committed, &catalog::GROUP_LAG_TIME, ORDERS_1, 0.0);

    let mut second = GroupStream::join(broker, join("billing", &["orders"])).await;
    let moved = first.revoked().await;
    first.release("orders", &moved).await;
    second.until_assigned(1).await;
    drop(second);
    first.until_assigned(2).await;
    let rebalanced = moment(broker, collector).await;
    proof.equals(&rebalanced, &catalog::GROUP_REBALANCES, &[("cause", "joined")], 2.0);
    proof.equals(&rebalanced, &catalog::GROUP_REBALANCES, &[("cause", "left")], 1.0);
    proof.recorded([&idle, &rebalanced], &catalog::GROUP_REBALANCE_TIME, 3.0);
    proof.equals(&rebalanced, &catalog::GROUP_MEMBERS, &[], 1.0);

    first.leave().await;
    let trim = v1::DeleteRecordsRequest { topic: "orders".to_owned(), partition: 0, before_offset: 8 };
    broker.topics().await.delete_records(trim).await.expect("trimmed");
    let mut again = GroupStream::join(broker, join("billing", &["orders"])).await;
    again.until_assigned(2).await;
    let missed = moment(broker, collector).await;
    proof.equals(&missed, &catalog::GROUP_MISSED, &[("group", "billing"), ("topic", "orders")], 3.0);
    proof.equals(&missed, &catalog::GROUP_LAG, ORDERS_0, 2.0);
    again.leave().await;
}

/// A share group: leases, every kind of acknowledgement, a redelivery, a dead letter.
async fn workers(proof: &mut Proof, broker: &Process, collector: &Collector) -> Moment {
    broker.create_topic("jobs", 1).await;
    append(broker, "jobs", 0, batch::values(["good", "bad"])).await;
    let mut worker = GroupStream::join(broker, join_share("workers", &["jobs"], LONG, 5)).await;
    worker.records(2).await;
    let leased = moment(broker, collector).await;
    proof.equals(&leased, &catalog::GROUP_LEASED, &[("group", "workers")], 2.0);
    assert_eq!(worker.acknowledge("jobs", &[(0, 0, 0)], v1::AckKind::Release).await, [None]);
    assert_eq!(worker.record().await.deliveries, 2);
    assert_eq!(worker.acknowledge("jobs", &[(0, 0, 1)], v1::AckKind::Extend).await, [None]);
    assert_eq!(worker.acknowledge("jobs", &[(0, 0, 0)], v1::AckKind::Accept).await, [None]);
    assert_eq!(worker.acknowledge("jobs", &[(0, 1, 1)], v1::AckKind::Reject).await, [None]);
    eventually(PATIENCE, "the group is done with both", async || {
        let described = describe(broker, "workers").await.expect("there");
        (described.partitions[0].lag == 0).then_some(())
    })
    .await;
    let done = moment(broker, collector).await;
    proof.equals(&done, &catalog::GROUP_LEASED, &[("group", "workers")], 0.0);
    proof.equals(&done, &catalog::GROUP_REDELIVERIES, JOBS, 1.0);
    proof.equals(&done, &catalog::GROUP_DEAD_LETTERS, JOBS, 1.0);
    for (kind, count) in
        [("accept", 1.0), ("release", 1.0), ("reject", 1.0), ("extend", 2.0), ("expire", 0.0)]
    {
        let labels = &[("group", "workers"), ("kind", kind)];
        proof.equals(&done, &catalog::GROUP_ACKNOWLEDGEMENTS, labels, count);
    }
    proof.equals(&done, &catalog::GROUPS, &[], 2.0);
    worker.leave().await;
    done
}
