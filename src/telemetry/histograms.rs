//! Histograms: counted here, and added by every reader to what the SDK collected.
//!
//! A value costs two atomic additions and a search among the bounds, a quarter of what the SDK's histograms cost, even bound
//! ones; a produce records six. And the SDK keeps every series for as long as the process lives, while these are gone as
//! soon as their owner does not show them any more. See [`Histograms::families`] for `/metrics` and
//! [`Histograms::metrics`] for OTLP, where they are always cumulative.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Histogram, HistogramDataPoint, Metric, metric::Data,
};
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};

use super::catalog::Row;
use super::exemplars::labels;
use super::instruments::lock;

/// One series: values, counted in the buckets of its row.
#[derive(Debug)]
pub(super) struct Series {
    row: Row,
    attributes: Vec<KeyValue>,
    /// One count per bound and one for what is above the last.
    counts: Box<[AtomicU64]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
    since: SystemTime,
}

impl Series {
    /// An empty series of `row` with these labels, sorted by key.
    pub(super) fn new(row: Row, attributes: Vec<KeyValue>) -> Self {
        Series {
            row,
            counts: (0..=row.bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0.0_f64.to_bits()),
            since: SystemTime::now(),
            attributes,
        }
    }

    /// Counts `value`, in the row's unit.
    pub(super) fn record(&self, value: f64) {
        // A bucket's upper bound belongs to it.
        let bucket = self.row.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let add = |sum| Some((f64::from_bits(sum) + value).to_bits());
        // It always has a new value to offer, so it does not fail.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    pub(super) fn attributes(&self) -> &[KeyValue] {
        &self.attributes
    }

    fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
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
        histogram.set_sample_sum(self.sum());
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
            sum: Some(self.sum()),
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
type Read = Box<dyn Fn(&mut dyn FnMut(&Series)) + Send + Sync>;

/// All histograms.
#[derive(Default)]
pub(super) struct Histograms(Mutex<Vec<(Row, Read)>>);

impl std::fmt::Debug for Histograms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Histograms")
    }
}

impl Histograms {
    /// From now on the series of `row` are those that `read` shows.
    pub(super) fn register(&self, row: Row, read: impl Fn(&mut dyn FnMut(&Series)) + Send + Sync + 'static) {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::catalog;
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_nothing_is_lost_between_threads() {
        let row = catalog::PRODUCE_LATENCY;
        let series = Arc::new(Series::new(row, Vec::new()));
        let (first, last) = (row.bounds[0], row.bounds[row.bounds.len() - 1]);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        series.record(first);
                        series.record(last + 0.5);
                    }
                });
            }
        });
        let point = series.otlp(0);
        assert_eq!((point.bucket_counts[0], *point.bucket_counts.last().expect("+Inf")), (20_000, 20_000));
        assert_eq!(point.count, 40_000);
        let wanted = 20_000.0 * (first + last + 0.5);
        assert!((point.sum.expect("a sum") - wanted).abs() < 1e-6 * wanted, "{point:?}");
    }
}
