//! Metrics as somebody sees them: a scraper on `/metrics`, or a collector over OTLP.

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, metric, number_data_point};
use streambus::telemetry::catalog::{Kind, Row};

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A scrape.
    Prometheus,
    /// An export.
    Otlp,
}

/// What a metric declares of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// `counter`, `gauge`, `updown` (OTLP only) or `histogram`.
    pub kind: String,
    /// The unit (OTLP only).
    pub unit: String,
    /// The help text.
    pub help: String,
}

/// All metrics at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// Who looked.
    pub source: Source,
    /// By series, as `name{label="value",…}` with sorted labels whose dots are underscores.
    pub values: BTreeMap<String, f64>,
    /// By family.
    pub declared: BTreeMap<String, Declared>,
}

/// Labels of a series, in any order.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

fn series(name: &str, labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return name.to_owned();
    }
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
    format!("{name}{{{}}}", labels.join(","))
}

impl View {
    /// Parses the text format.
    pub fn prometheus(text: &str) -> Self {
        let mut view =
            View { source: Source::Prometheus, values: BTreeMap::new(), declared: BTreeMap::new() };
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                view.declared.entry(name.to_owned()).or_default().kind = kind.to_owned();
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                view.declared.entry(name.to_owned()).or_default().help = help.to_owned();
            } else if !line.starts_with('#') && !line.is_empty() {
                let (left, value) = line.rsplit_once(' ').expect("a sample");
                let (name, labels) = match left.split_once('{') {
                    Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}').expect("closed"))),
                    None => (left, BTreeMap::new()),
                };
                let value = value.parse().expect("a number");
                let again = view.values.insert(series(name, &labels), value);
                assert!(again.is_none(), "{line} appears twice");
            }
        }
        view
    }

    /// Reads one export.
    pub fn otlp(request: &ExportMetricsServiceRequest) -> Self {
        let mut view = View { source: Source::Otlp, values: BTreeMap::new(), declared: BTreeMap::new() };
        let scopes = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
        for metric in scopes.flat_map(|scope| &scope.metrics) {
            let kind = match metric.data.as_ref().expect("data") {
                metric::Data::Gauge(gauge) => {
                    for point in &gauge.data_points {
                        view.add(&metric.name, &point.attributes, number(point.value.as_ref()));
                    }
                    "gauge"
                }
                metric::Data::Sum(sum) => {
                    assert_eq!(sum.aggregation_temporality, AggregationTemporality::Cumulative as i32);
                    for point in &sum.data_points {
                        view.add(&metric.name, &point.attributes, number(point.value.as_ref()));
                    }
                    if sum.is_monotonic { "counter" } else { "updown" }
                }
                metric::Data::Histogram(histogram) => {
                    assert_eq!(histogram.aggregation_temporality, AggregationTemporality::Cumulative as i32);
                    for point in &histogram.data_points {
                        let name = &metric.name;
                        view.add(&format!("{name}_count"), &point.attributes, point.count as f64);
                        view.add(&format!("{name}_sum"), &point.attributes, point.sum.unwrap_or(0.0));
                    }
                    "histogram"
                }
                other => panic!("{} is of an unexpected kind: {other:?}", metric.name),
            };
            let declared = Declared {
                kind: kind.to_owned(),
                unit: metric.unit.clone(),
                help: metric.description.clone(),
            };
            view.declared.insert(metric.name.clone(), declared);
        }
        view
    }

    fn add(&mut self, name: &str, attributes: &[KeyValue], value: f64) {
        let labels = attributes
            .iter()
            .map(|attribute| (attribute.key.replace('.', "_"), text(attribute.value.as_ref())));
        let again = self.values.insert(series(name, &labels.collect()), value);
        assert!(again.is_none(), "{name} {attributes:?} appears twice");
    }

    /// The row's name in this view.
    pub fn name(&self, row: &Row) -> &'static str {
        match self.source {
            Source::Prometheus => row.prometheus,
            Source::Otlp => row.otel,
        }
    }

    /// The value of one series of a row; of a histogram `suffix` chooses `_count` or `_sum`.
    pub fn part(&self, row: &Row, suffix: &str, labels: Labels<'_>) -> Option<f64> {
        let labels = labels.iter().map(|(key, value)| (key.replace('.', "_"), (*value).to_owned())).collect();
        self.values.get(&series(&format!("{}{suffix}", self.name(row)), &labels)).copied()
    }

    /// The value of one series of a row that is not a histogram.
    pub fn get(&self, row: &Row, labels: Labels<'_>) -> Option<f64> {
        self.part(row, "", labels)
    }

    /// The value of one series, 0 if it does not exist (yet).
    pub fn or_zero(&self, row: &Row, labels: Labels<'_>) -> f64 {
        self.get(row, labels).unwrap_or(0.0)
    }

    /// Number of recorded values of a histogram, over all its series.
    pub fn count(&self, row: &Row) -> f64 {
        self.total(row, "_count")
    }

    /// Sum of recorded values of a histogram, over all its series.
    pub fn sum(&self, row: &Row) -> f64 {
        self.total(row, "_sum")
    }

    /// Sum over all series of a row.
    pub fn total(&self, row: &Row, suffix: &str) -> f64 {
        self.series_of(row, suffix).map(|(_, value)| value).sum()
    }

    /// Every series of a row.
    pub fn series_of<'a>(&'a self, row: &Row, suffix: &str) -> impl Iterator<Item = (&'a str, f64)> {
        let name = format!("{}{suffix}", self.name(row));
        self.values
            .iter()
            .filter(move |(series, _)| series.split('{').next() == Some(&name))
            .map(|(series, value)| (series.as_str(), *value))
    }

    /// Whether any series carries this label value.
    pub fn mentions(&self, key: &str, value: &str) -> bool {
        let label = format!("{key}=\"{value}\"");
        self.values.keys().any(|series| series.contains(&label))
    }

    /// Names of all families.
    pub fn families(&self) -> BTreeSet<&str> {
        self.declared.keys().map(String::as_str).collect()
    }

    /// How this view declares the kind of a row.
    pub fn kind_of(&self, kind: Kind) -> &'static str {
        match (self.source, kind) {
            (Source::Prometheus, kind) => kind.prometheus(),
            (Source::Otlp, Kind::Counter) => "counter",
            (Source::Otlp, Kind::Gauge) => "gauge",
            (Source::Otlp, Kind::UpDown) => "updown",
            (Source::Otlp, Kind::Histogram) => "histogram",
        }
    }
}

fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once("=\"") {
        let (value, after) = after.split_once('"').expect("a closed value");
        assert!(!value.ends_with('\\'), "the tests use no label values with quotes");
        labels.insert(key.trim_start_matches(',').to_owned(), value.to_owned());
        rest = after;
    }
    labels
}

fn number(value: Option<&number_data_point::Value>) -> f64 {
    match value {
        Some(number_data_point::Value::AsDouble(value)) => *value,
        Some(number_data_point::Value::AsInt(value)) => *value as f64,
        None => panic!("a point without a value"),
    }
}

/// A value as text.
pub fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        Some(any_value::Value::IntValue(value)) => value.to_string(),
        other => panic!("an unexpected value: {other:?}"),
    }
}
