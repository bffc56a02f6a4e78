//! Histograms whose series come and go with what they describe.
//!
//! The SDK keeps every series of a histogram for as long as the process lives. These are kept here instead, and every
//! reader adds them to what the SDK collected: see [`Removable::families`] for `/metrics` and [`Removable::metrics`] for
//! OTLP. A series is gone as soon as its owner does not show it any more.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Histogram, HistogramDataPoint, Metric, metric::Data,
};
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};

use super::catalog::Row;
use super::exemplars::labels;
use super::instruments::lock;

/// One series: durations, counted in the buckets of its row.
#[derive(Debug)]
pub(super) struct Timings {
    row: Row,
    attributes: Vec<KeyValue>,
    /// One count per bound and one for what is above the last.
    counts: Box<[AtomicU64]>,
    nanos: AtomicU64,
    since: SystemTime,
}

impl Timings {
    /// An empty series of `row` with these labels, sorted by key.
    pub(super) fn new(row: Row, attributes: Vec<KeyValue>) -> Self {
        Timings {
            row,
            counts: (0..=row.bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            nanos: AtomicU64::new(0),
            since: SystemTime::now(),
            attributes,
        }
    }

    /// Counts `took`.
    pub(super) fn record(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        // A bucket's upper bound belongs to it.
        let bucket = self.row.bounds.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    fn seconds(&self) -> f64 {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64()
    }

    fn prometheus(&self) -> proto::Metric {
        let label = |(name, value)| {
            let mut label = LabelPair::default();
            label.set_name(name);
            label.set_value(value);
            label
        };
        let counts = self.counts();
        let mut below = 0;
        let buckets = self.row.bounds.iter().zip(&counts).map(|(bound, count)| {
            below += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(self.seconds());
        let mut metric = proto::Metric::default();
        metric.set_label(labels(&self.attributes).into_iter().map(label).collect());
        metric.set_histogram(histogram);
        metric
    }

    fn otlp(&self, now: u64) -> HistogramDataPoint {
        let counts = self.counts();
        HistogramDataPoint {
            attributes: self.attributes.iter().map(Into::into).collect(),
            start_time_unix_nano: nanos(self.since),
            time_unix_nano: now,
            count: counts.iter().sum(),
            sum: Some(self.seconds()),
            bucket_counts: counts,
            explicit_bounds: self.row.bounds.to_vec(),
            ..HistogramDataPoint::default()
        }
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Shows the series of a row that are there.
type Read = Box<dyn Fn(&mut dyn FnMut(&Timings)) + Send + Sync>;

/// All histograms with series that come and go.
#[derive(Default)]
pub(super) struct Removable(Mutex<Vec<(Row, Read)>>);

impl std::fmt::Debug for Removable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Removable")
    }
}

impl Removable {
    /// From now on the series of `row` are those that `read` shows.
    pub(super) fn register(&self, row: Row, read: impl Fn(&mut dyn FnMut(&Timings)) + Send + Sync + 'static) {
        lock(&self.0).push((row, Box::new(read)));
    }

    /// The histograms as the Prometheus exporter would have gathered them.
    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        for (row, read) in lock(&self.0).iter() {
            let mut metrics = Vec::new();
            read(&mut |series| metrics.push(series.prometheus()));
            if !metrics.is_empty() {
                let mut family = MetricFamily::default();
                family.set_name(row.sanitized());
                family.set_field_type(MetricType::HISTOGRAM);
                family.set_metric(metrics);
                families.push(family);
            }
        }
        families
    }

    /// The histograms as they go to a collector.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let now = nanos(SystemTime::now());
        let mut metrics = Vec::new();
        for (row, read) in lock(&self.0).iter() {
            let mut data_points = Vec::new();
            read(&mut |series| data_points.push(series.otlp(now)));
            if !data_points.is_empty() {
                let aggregation_temporality = AggregationTemporality::Cumulative.into();
                metrics.push(Metric {
                    name: row.otel.to_owned(),
                    description: row.help.to_owned(),
                    unit: row.unit.to_owned(),
                    metadata: Vec::new(),
                    data: Some(Data::Histogram(Histogram { data_points, aggregation_temporality })),
                });
            }
        }
        metrics
    }
}
