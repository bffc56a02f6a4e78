//! What a scrape of a broker with 1,000 topics costs: `cargo bench --bench metrics`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use streambus::telemetry::{Config, Identity, Telemetry};

const TOPICS: usize = 1_000;
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

criterion_group!(benches, scrape);
criterion_main!(benches);
