//! Consumer groups on `/metrics` and at a collector: every verb moves its row, and what is removed is gone.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, HistogramDataPoint};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;

use super::*;
use crate::telemetry::catalog::{GROUP_TOPICS_MAX, GROUPS_MAX};
use crate::telemetry::instruments::{Collection, lock};
use crate::telemetry::tests::{Collector, Shared, exporting_to, scrape, value};
use crate::telemetry::traceparent::TraceIds;
use crate::telemetry::{Metrics, Telemetry};

/// The samples of consumer groups, without the buckets of histograms.
fn samples(telemetry: &Telemetry) -> BTreeMap<String, f64> {
    scrape(telemetry, None)
        .lines()
        .filter(|line| line.starts_with("streambus_consumer_group") || line.starts_with("streambus_commit"))
        .filter(|line| !line.contains("_bucket{"))
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a sample");
            (series.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

/// What `act` changed, each as `series=growth` in the order of the series.
fn changes(telemetry: &Telemetry, act: impl FnOnce()) -> Vec<String> {
    let before = samples(telemetry);
    act();
    samples(telemetry)
        .into_iter()
        .map(|(series, value)| (value - before.get(&series).copied().unwrap_or(0.0), series))
        .filter(|(growth, _)| *growth != 0.0)
        .map(|(growth, series)| {
            format!("{}={growth}", series.trim_start_matches("streambus_").replace('"', ""))
        })
        .collect()
}

fn lag(group: &str, topic: &str, partition: u32, messages: u64) -> GroupLag {
    GroupLag { group: group.into(), topic: topic.into(), partition, messages, seconds: messages as f64 / 2.0 }
}

#[test]
fn every_verb_moves_its_row_and_no_other() {
    let telemetry = Telemetry::for_tests();
    let groups = &telemetry.metrics().groups;
    let group = telemetry.metrics().group("g");
    let second = Duration::from_secs(1);
    for (outcome, name) in [
        (CommitOutcome::Committed, "committed"),
        (CommitOutcome::Fenced, "fenced"),
        (CommitOutcome::Refused, "refused"),
        (CommitOutcome::Failed, "failed"),
    ] {
        let expected = [format!("consumer_group_commits_total{{outcome={name}}}=1")];
        assert_eq!(changes(&telemetry, || groups.committed(outcome)), expected);
    }
    assert_eq!(
        changes(&telemetry, || groups.commit_answered(second, None)),
        ["commit_latency_seconds_count=1", "commit_latency_seconds_sum=1"]
    );
    for (cause, name) in [
        (RebalanceCause::Joined, "joined"),
        (RebalanceCause::Left, "left"),
        (RebalanceCause::SessionTimeout, "session_timeout"),
        (RebalanceCause::ReleaseTimeout, "release_timeout"),
        (RebalanceCause::TopicsChanged, "topics_changed"),
        (RebalanceCause::Replaced, "replaced"),
        (RebalanceCause::FailOver, "fail_over"),
    ] {
        let expected = [format!("consumer_group_rebalances_total{{cause={name}}}=1")];
        assert_eq!(changes(&telemetry, || groups.rebalanced(cause)), expected);
    }
    assert_eq!(
        changes(&telemetry, || groups.settled(second)),
        ["consumer_group_rebalance_seconds_count=1", "consumer_group_rebalance_seconds_sum=1"]
    );
    for (stage, record) in [
        ("delivered", GroupMetrics::delivered as fn(&GroupMetrics, Duration)),
        ("acknowledged", GroupMetrics::acknowledged),
    ] {
        let series = format!("{{group=g,stage={stage}}}=1");
        let name = "consumer_group_delivery_seconds";
        let expected = [format!("{name}_count{series}"), format!("{name}_sum{series}")];
        assert_eq!(changes(&telemetry, || record(&group, second)), expected);
    }
    for (name, count) in [
        ("missed_messages", GroupMetrics::missed as fn(&GroupMetrics, &str, u64)),
        ("redeliveries", GroupMetrics::redelivered),
        ("dead_letters", GroupMetrics::dead_lettered),
    ] {
        let expected = [format!("consumer_group_{name}_total{{group=g,topic=t}}=5")];
        assert_eq!(changes(&telemetry, || count(&group, "t", 5)), expected);
    }
    for (kind, name) in [
        (AckKind::Accept, "accept"),
        (AckKind::Release, "release"),
        (AckKind::Reject, "reject"),
        (AckKind::Extend, "extend"),
        (AckKind::Expire, "expire"),
    ] {
        let expected = [format!("consumer_group_acknowledgements_total{{group=g,kind={name}}}=7")];
        assert_eq!(changes(&telemetry, || group.acknowledgements(kind, 7)), expected);
    }
    let levels = GroupLevels {
        groups: 2,
        members: 3,
        leased: vec![("g".into(), 4)],
        lags: vec![lag("g", "t", 0, 8), lag("g", "t", 1, 6)],
    };
    let observed = changes(&telemetry, || {
        telemetry.metrics().observe_groups(Arc::new(move || Some(levels.clone())));
    });
    assert_eq!(
        observed,
        [
            "consumer_group_lag_seconds{group=g,partition=0,topic=t}=4",
            "consumer_group_lag_seconds{group=g,partition=1,topic=t}=3",
            "consumer_group_lag{group=g,partition=0,topic=t}=8",
            "consumer_group_lag{group=g,partition=1,topic=t}=6",
            "consumer_group_leased_records{group=g}=4",
            "consumer_group_members_total=3",
            "consumer_groups_total=2",
        ]
    );
}

#[test]
fn a_sampled_commit_leaves_an_exemplar() {
    let telemetry = Telemetry::for_tests();
    let ids = TraceIds { trace: [0xab; 16], span: [0xcd; 8] };
    telemetry.metrics().groups.commit_answered(Duration::from_millis(2), Some(ids));
    let text = scrape(&telemetry, Some("application/openmetrics-text"));
    let bucket = "streambus_commit_latency_seconds_bucket{le=\"0.005\"} 1 # {trace_id=\"abab";
    assert!(text.contains(bucket), "{text}");
}

#[test]
fn durations_fall_into_the_buckets_of_the_row() {
    let telemetry = Telemetry::for_tests();
    let group = telemetry.metrics().group("g");
    for millis in [0, 1, 2, 300_000, 300_001] {
        group.delivered(Duration::from_millis(millis));
    }
    let text = scrape(&telemetry, None);
    let bucket = |bound: &str| {
        let labels = format!("group=\"g\",stage=\"delivered\",le=\"{bound}\"");
        value(&text, &format!("streambus_consumer_group_delivery_seconds_bucket{{{labels}}}"))
    };
    for (bound, expected) in [("0.001", 2.0), ("0.005", 3.0), ("120", 3.0), ("300", 4.0), ("+Inf", 5.0)] {
        assert_eq!(bucket(bound), Some(expected), "{bound}");
    }
    let sum = "streambus_consumer_group_delivery_seconds_sum{group=\"g\",stage=\"delivered\"}";
    assert!(value(&text, sum).is_some_and(|sum| (sum - 600.004).abs() < 1e-9), "{text}");
    assert!(text.contains("# TYPE streambus_consumer_group_delivery_seconds histogram\n"), "{text}");
}

#[test]
fn only_share_groups_have_the_series_of_share_groups() {
    let telemetry = Telemetry::for_tests();
    let classic = telemetry.metrics().group("classic");
    classic.missed("t", 0);
    let share = telemetry.metrics().group("share");
    share.missed("t", 0);
    share.share();
    let samples = samples(&telemetry);
    let of = |group: &str| samples.keys().filter(|series| series.contains(group)).count();
    // Delivery has two stages with a sum and a count each.
    assert_eq!((of("\"classic\""), of("\"share\"")), (4 + 1, 4 + 1 + 5 + 2), "{samples:?}");
}

/// Moves every row that has a group label.
fn use_group(metrics: &Metrics, name: &str) -> Arc<GroupMetrics> {
    let group = metrics.group(name);
    group.delivered(Duration::from_millis(7));
    group.acknowledged(Duration::from_millis(8));
    group.missed("t", 1);
    group.redelivered("t", 1);
    group.dead_lettered("t", 1);
    group.acknowledgements(AckKind::Accept, 1);
    group
}

#[test]
fn a_removed_group_is_gone_and_its_name_starts_again_at_zero() {
    let telemetry = Telemetry::for_tests();
    let metrics = telemetry.metrics();
    let old = use_group(metrics, "gone");
    use_group(metrics, "stays");
    let kept = |samples: &BTreeMap<String, f64>| samples.keys().filter(|s| s.contains("\"stays\"")).count();
    let before = samples(&telemetry);
    metrics.remove_group("gone");
    let after = samples(&telemetry);
    assert!(!after.keys().any(|series| series.contains("\"gone\"")), "{after:?}");
    assert!(kept(&before) == 12 && kept(&after) == 12, "{after:?}");

    let new = metrics.group("gone");
    // What still holds the old handle counts for nobody.
    old.missed("t", 5);
    old.delivered(Duration::from_secs(1));
    new.share();
    new.missed("t", 2);
    let again = samples(&telemetry);
    let moved: Vec<_> = again.iter().filter(|(s, value)| s.contains("\"gone\"") && **value != 0.0).collect();
    assert_eq!(
        moved,
        [(&"streambus_consumer_group_missed_messages_total{group=\"gone\",topic=\"t\"}".to_owned(), &2.0)]
    );
}

#[test]
fn a_removed_topic_is_gone_from_all_groups() {
    let telemetry = Telemetry::for_tests();
    let metrics = telemetry.metrics();
    let group = use_group(metrics, "g");
    group.missed("other", 1);
    metrics.remove_topic("t");
    let after = samples(&telemetry);
    assert!(!after.keys().any(|series| series.contains("topic=\"t\"")), "{after:?}");
    let series = |topic: &str| {
        format!("streambus_consumer_group_missed_messages_total{{group=\"g\",topic=\"{topic}\"}}")
    };
    assert_eq!(after.get(&series("other")), Some(&1.0));
    group.missed("t", 3);
    assert_eq!(samples(&telemetry).get(&series("t")), Some(&3.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_group_is_gone_from_the_next_export() {
    let (collector, endpoint) = Collector::start().await;
    let (telemetry, _dispatch) = exporting_to(&endpoint, "otlp.metrics_interval = '20ms'", |_| {});
    let metrics = telemetry.metrics();
    use_group(metrics, "gone");
    use_group(metrics, "stays");
    metrics.observe_groups(Arc::new(|| {
        Some(GroupLevels { leased: vec![("stays".into(), 1)], ..GroupLevels::default() })
    }));
    let exports = || lock(&collector.metrics).len();
    let export = async |at: usize| {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(request) = lock(&collector.metrics).get(at) {
                return request.clone();
            }
            assert!(Instant::now() < deadline, "no export");
            tokio::task::yield_now().await;
        }
    };
    // The export that is under way may have begun earlier.
    let with = export(exports() + 1).await;
    let metric = with.resource_metrics[0].scope_metrics[0]
        .metrics
        .iter()
        .find(|metric| metric.name == catalog::GROUP_DELIVERY.otel)
        .expect("exported with the others");
    assert_eq!((&metric.unit[..], &metric.description[..]), ("s", catalog::GROUP_DELIVERY.help));
    let Some(Data::Histogram(histogram)) = &metric.data else { panic!("{metric:?}") };
    assert_eq!(histogram.aggregation_temporality(), AggregationTemporality::Cumulative);
    let point = |point: &&HistogramDataPoint| {
        let attributes = format!("{:?}", point.attributes);
        attributes.contains("\"gone\"") && attributes.contains("\"acknowledged\"")
    };
    let point = histogram.data_points.iter().find(point).expect("a series");
    assert_eq!((point.count, point.sum), (1, Some(0.008)));
    assert_eq!(point.explicit_bounds, catalog::CONSUMER_BOUNDS);
    assert_eq!((point.bucket_counts.len(), point.bucket_counts[2]), (catalog::CONSUMER_BOUNDS.len() + 1, 1));
    assert!(0 < point.start_time_unix_nano && point.start_time_unix_nano < point.time_unix_nano);

    metrics.remove_group("gone");
    let without = format!("{:?}", export(exports() + 1).await);
    assert!(without.contains("\"stays\"") && !without.contains("\"gone\""), "{without}");
}

#[test]
fn levels_that_vanish_are_gone_at_the_next_collection_of_every_reader() {
    let readers = [Shared::default(), Shared::default()];
    let provider =
        SdkMeterProvider::builder().with_reader(readers[0].clone()).with_reader(readers[1].clone()).build();
    let collection = Arc::new(Collection::default());
    let metrics = Metrics::new(provider.meter("test"), collection.clone(), Arc::default());
    let levels = Arc::new(Mutex::new(GroupLevels {
        lags: vec![lag("gone", "t", 0, 1), lag("stays", "t", 0, 1)],
        ..GroupLevels::default()
    }));
    let shown = levels.clone();
    metrics.observe_groups(Arc::new(move || Some(lock(&shown).clone())));
    let seen = [0, 1].map(|_| Default::default());
    let collect = |reader: usize| {
        let mut data = ResourceMetrics::default();
        collection.run(&seen[reader], || readers[reader].0.collect(&mut data)).expect("collected");
        format!("{data:?}")
    };
    // The first reader's collection leaves the series with the second reader.
    assert!(collect(1).contains("gone") && collect(0).contains("gone"));
    lock(&levels).lags.remove(0);
    for reader in [1, 0] {
        let data = collect(reader);
        assert!(data.contains("stays") && !data.contains("gone"), "reader {reader}");
    }
}

#[test]
fn more_lags_than_the_sdk_keeps_by_default_are_kept_apart() {
    let telemetry = Telemetry::for_tests();
    let lags: Vec<_> = (0..2500).map(|partition| lag("g", "t", partition, 1)).collect();
    telemetry
        .metrics()
        .observe_groups(Arc::new(move || Some(GroupLevels { lags: lags.clone(), ..GroupLevels::default() })));
    let samples = samples(&telemetry);
    let of = |name: &str| samples.keys().filter(|series| series.starts_with(name)).count();
    let counted = (of("streambus_consumer_group_lag{"), of("streambus_consumer_group_lag_seconds{"));
    assert_eq!(counted, (2500, 2500));
}

#[test]
fn groups_beyond_the_budget_share_series() {
    let telemetry = Telemetry::for_tests();
    let metrics = telemetry.metrics();
    for number in 0..GROUPS_MAX + 5 {
        use_group(metrics, &format!("group-{number}"));
    }
    let leased: Vec<_> = (0..GROUPS_MAX + 5).map(|number| (format!("group-{number}").into(), 1)).collect();
    metrics.observe_groups(Arc::new(move || {
        Some(GroupLevels { leased: leased.clone(), ..GroupLevels::default() })
    }));
    let all = samples(&telemetry);
    let beyond: BTreeMap<_, _> = all
        .iter()
        .filter(|(series, value)| series.contains("otel_metric_overflow=\"true\"") && **value != 0.0)
        .map(|(series, value)| {
            (series.trim_start_matches("streambus_consumer_group_").replace('"', ""), *value)
        })
        .collect();
    let expected = [
        ("acknowledgements_total{kind=accept,otel_metric_overflow=true}", 6.0),
        ("dead_letters_total{otel_metric_overflow=true}", 6.0),
        ("delivery_seconds_count{otel_metric_overflow=true,stage=acknowledged}", 6.0),
        ("delivery_seconds_count{otel_metric_overflow=true,stage=delivered}", 6.0),
        ("delivery_seconds_sum{otel_metric_overflow=true,stage=acknowledged}", 0.048),
        ("delivery_seconds_sum{otel_metric_overflow=true,stage=delivered}", 0.042),
        ("leased_records{otel_metric_overflow=true}", 6.0),
        ("missed_messages_total{otel_metric_overflow=true}", 6.0),
        ("redeliveries_total{otel_metric_overflow=true}", 6.0),
    ];
    assert_eq!(beyond, expected.map(|(series, value)| (series.to_owned(), value)).into());
    // A removed group makes room for another one.
    metrics.remove_group("group-0");
    use_group(metrics, "late");
    let late = "streambus_consumer_group_missed_messages_total{group=\"late\",topic=\"t\"}";
    assert_eq!(samples(&telemetry).get(late), Some(&1.0));
}

#[test]
fn topics_of_groups_beyond_the_budget_share_one_series() {
    let telemetry = Telemetry::for_tests();
    let metrics = telemetry.metrics();
    let (many, other) = (metrics.group("many"), metrics.group("other"));
    for number in 0..GROUP_TOPICS_MAX {
        many.missed(&format!("topic-{number}"), 1);
    }
    other.missed("t", 4);
    let beyond = "streambus_consumer_group_missed_messages_total{otel_metric_overflow=\"true\"}";
    assert_eq!(samples(&telemetry).get(beyond), Some(&5.0));
    // What is removed makes room.
    metrics.remove_topic("topic-1");
    other.missed("one", 3);
    other.missed("none", 1);
    metrics.remove_group("many");
    other.missed("two", 2);
    let samples = samples(&telemetry);
    let series = |topic| {
        format!("streambus_consumer_group_missed_messages_total{{group=\"other\",topic=\"{topic}\"}}")
    };
    let counted = ["one", "none", "two"].map(|topic| samples.get(&series(topic)).copied());
    assert_eq!(counted, [Some(3.0), None, Some(2.0)]);
}
