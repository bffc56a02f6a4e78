//! What a scrape of a broker with 1,000 topics costs, and what consumer groups that lag in 10,000 partitions add:
//! `cargo bench --bench metrics`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use streambus::telemetry::{Config, GroupLag, GroupLevels, Identity, Telemetry};

const TOPICS: usize = 1_000;
const GROUPS: usize = 100;
const PARTITIONS: u32 = 100;
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0";

fn scrape(c: &mut Criterion) {
    let identity = Identity { cluster_id: "bench".to_owned(), broker_id: "1".to_owned() };
    let telemetry = Telemetry::install(&Config::default(), &identity).expect("the defaults are valid");
    let metrics = telemetry.metrics();
    let topics: Vec<_> = (0..TOPICS).map(|number| metrics.topic(&format!("topic-{number:04}"))).collect();
    for topic in &topics {
        metrics.produce.accepted(topic, 100, 100_000);
        metrics.produce.stored(topic, 100, 100_000);
        metrics.consume.delivered(topic, 100, 100_000);
    }
    let mut group = c.benchmark_group("scrape_1000_topics");
    for (name, accept, encoding) in
        [("text", None, None), ("openmetrics", Some(OPENMETRICS), None), ("text_gzip", None, Some("gzip"))]
    {
        group.bench_function(name, |b| b.iter(|| black_box(telemetry.scrape(accept, encoding))));
    }
    group.bench_function("count_one_batch", |b| {
        b.iter(|| metrics.produce.accepted(black_box(&topics[0]), 100, 100_000));
    });
    group.finish();
}

fn scrape_groups(c: &mut Criterion) {
    let identity = Identity { cluster_id: "bench".to_owned(), broker_id: "1".to_owned() };
    let telemetry = Telemetry::install(&Config::default(), &identity).expect("the defaults are valid");
    let metrics = telemetry.metrics();
    let mut levels = GroupLevels { groups: GROUPS as u64, members: GROUPS as u64, ..GroupLevels::default() };
    for number in 0..GROUPS {
        let group: Arc<str> = format!("group-{number:04}").into();
        let topic: Arc<str> = format!("topic-{number:04}").into();
        let handle = metrics.group(&group);
        handle.delivered(Duration::from_millis(3));
        handle.missed(&topic, 1);
        for partition in 0..PARTITIONS {
            let (group, topic) = (group.clone(), topic.clone());
            levels.lags.push(GroupLag { group, topic, partition, messages: 1000, seconds: 1.5 });
        }
    }
    metrics.observe_groups(Arc::new(move || Some(levels.clone())));
    let mut group = c.benchmark_group("scrape_100_groups_10000_lags");
    group.bench_function("text", |b| b.iter(|| black_box(telemetry.scrape(None, None))));
    let handle = metrics.group("group-0000");
    group.bench_function("count_one_delivery", |b| {
        b.iter(|| handle.delivered(black_box(Duration::from_millis(3))));
    });
    group.finish();
}

criterion_group!(benches, scrape, scrape_groups);
criterion_main!(benches);
