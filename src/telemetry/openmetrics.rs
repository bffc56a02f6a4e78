//! Writes what the Prometheus exporter gathered, under the catalogue's names, as text or OpenMetrics.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::UNIX_EPOCH;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::catalog::{Kind, ROWS, Row};
use super::exemplars::{Exemplar, Exemplars, Labels, Store};
use super::negotiation::Format;

/// The family that carries the resource's attributes.
const TARGET_INFO: &str = "target_info";

/// The label of the series that takes what exceeds a budget.
const OVERFLOW: &str = "otel_metric_overflow";

/// An exposition and what is in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exposition {
    pub(super) text: String,
    /// How many samples.
    pub(super) series: u64,
    /// How many families exceed their budget.
    pub(super) overflowing: u64,
}

/// Writes `families` in the order of the catalogue.
pub(super) fn encode(families: Vec<MetricFamily>, exemplars: &Store, format: Format) -> Exposition {
    let mut families: BTreeMap<String, MetricFamily> =
        families.into_iter().map(|family| (family.name().to_owned(), family)).collect();
    let mut encoder = Encoder { format, exemplars, text: String::with_capacity(64 << 10), series: 0 };
    let mut overflowing = 0;
    for row in ROWS {
        if let Some(family) = families.remove(&row.sanitized()) {
            let beyond = |metric: &Metric| metric.get_label().iter().any(|label| label.name() == OVERFLOW);
            overflowing += u64::from(family.get_metric().iter().any(beyond));
            encoder.row(row, family.get_metric());
        }
    }
    if let Some(family) = families.remove(TARGET_INFO) {
        encoder.target_info(&family);
    }
    // INVARIANT: instruments are created only from rows, so nothing else is left.
    debug_assert!(families.is_empty(), "not in the catalogue: {:?}", families.keys());
    if format == Format::OpenMetrics {
        encoder.text.push_str("# EOF\n");
    }
    Exposition { text: encoder.text, series: encoder.series, overflowing }
}

struct Encoder<'a> {
    format: Format,
    exemplars: &'a Store,
    text: String,
    series: u64,
}

// INVARIANT of every `write!` below: writing into a `String` cannot fail, so its result is not looked at.
impl Encoder<'_> {
    fn row(&mut self, row: &Row, metrics: &[Metric]) {
        // OpenMetrics names a counter's family without the suffix that its samples have.
        let family = match (self.format, row.kind) {
            (Format::OpenMetrics, Kind::Counter) => row.prometheus.trim_end_matches("_total"),
            _ => row.prometheus,
        };
        self.header(family, row.kind.prometheus(), unit_of(row), row.help);
        for metric in metrics {
            match row.kind {
                Kind::Counter => {
                    self.sample(row.prometheus, "", metric.get_label(), metric.get_counter().get_value());
                }
                Kind::Gauge | Kind::UpDown => {
                    self.sample(row.prometheus, "", metric.get_label(), metric.get_gauge().get_value());
                }
                Kind::Histogram => self.histogram(row, metric),
            }
        }
    }

    fn header(&mut self, family: &str, kind: &str, unit: Option<&str>, help: &str) {
        header(&mut self.text, self.format, family, kind, unit, help);
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &[LabelPair], value: f64) {
        let _ = write!(self.text, "{name}{suffix}");
        self.labels(labels, None);
        let _ = writeln!(self.text, " {}", number(value));
        self.series += 1;
    }

    fn labels(&mut self, labels: &[LabelPair], bound: Option<&str>) {
        let pairs = labels.iter().map(|label| (label.name(), label.value()));
        let mut separator = '{';
        for (name, value) in pairs.chain(bound.map(|bound| ("le", bound))) {
            let _ = write!(self.text, "{separator}{name}=\"{}\"", escape(value, true));
            separator = ',';
        }
        if separator == ',' {
            self.text.push('}');
        }
    }

    fn histogram(&mut self, row: &Row, metric: &Metric) {
        let histogram = metric.get_histogram();
        let exemplars = self.exemplars_of(row, metric.get_label());
        let finite =
            histogram.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
        let all = finite.chain([(f64::INFINITY, histogram.get_sample_count())]);
        for (index, (bound, count)) in all.enumerate() {
            let _ = write!(self.text, "{}_bucket", row.prometheus);
            self.labels(metric.get_label(), Some(&self.bound(bound)));
            let _ = write!(self.text, " {count}");
            // A bucket that was seen empty has no exemplar: the value was measured after the counts were taken.
            if let Some(exemplar) = exemplars.as_ref().filter(|_| count > 0).and_then(|all| all.get(index)) {
                self.exemplar(&exemplar);
            }
            self.text.push('\n');
            self.series += 1;
        }
        self.sample(row.prometheus, "_sum", metric.get_label(), histogram.get_sample_sum());
        self.sample(row.prometheus, "_count", metric.get_label(), histogram.get_sample_count() as f64);
    }

    fn exemplars_of(&self, row: &Row, labels: &[LabelPair]) -> Option<std::sync::Arc<Exemplars>> {
        if self.format != Format::OpenMetrics {
            return None;
        }
        let mut labels: Labels =
            labels.iter().map(|label| (label.name().to_owned(), label.value().to_owned())).collect();
        labels.sort();
        self.exemplars.find(row.prometheus, labels)
    }

    fn exemplar(&mut self, exemplar: &Exemplar) {
        let at = exemplar.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let _ = write!(
            self.text,
            " # {{trace_id=\"{}\",span_id=\"{}\"}} {} {}.{:03}",
            exemplar.ids.trace_hex(),
            exemplar.ids.span_hex(),
            number(exemplar.value),
            at.as_secs(),
            at.subsec_millis(),
        );
    }

    /// A bucket's bound. OpenMetrics wants a decimal point in every one.
    fn bound(&self, bound: f64) -> String {
        match self.format {
            Format::OpenMetrics if bound.is_finite() && bound.fract() == 0.0 => format!("{bound:.1}"),
            _ => number(bound),
        }
    }

    fn target_info(&mut self, family: &MetricFamily) {
        debug_assert_eq!(family.get_field_type(), MetricType::GAUGE);
        match self.format {
            Format::Text => self.header(TARGET_INFO, "gauge", None, "Attributes of the process."),
            Format::OpenMetrics => self.header("target", "info", None, "Attributes of the process."),
        }
        for metric in family.get_metric() {
            self.sample(TARGET_INFO, "", metric.get_label(), metric.get_gauge().get_value());
        }
    }
}

/// How a row's unit is called on `/metrics`, if its name may end with it.
pub(super) fn unit_of(row: &Row) -> Option<&'static str> {
    match row.unit {
        "s" => Some("seconds"),
        "By" => Some("bytes"),
        _ => None,
    }
}

/// Declares a family.
pub(super) fn header(
    text: &mut String,
    format: Format,
    family: &str,
    kind: &str,
    unit: Option<&str>,
    help: &str,
) {
    match format {
        Format::Text => {
            let _ = writeln!(text, "# HELP {family} {}", escape(help, false));
            let _ = writeln!(text, "# TYPE {family} {kind}");
        }
        Format::OpenMetrics => {
            let _ = writeln!(text, "# TYPE {family} {kind}");
            // A unit may only be declared where the name ends with it.
            if let Some(unit) = unit.filter(|unit| family.ends_with(&format!("_{unit}"))) {
                let _ = writeln!(text, "# UNIT {family} {unit}");
            }
            let _ = writeln!(text, "# HELP {family} {}", escape(help, true));
        }
    }
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() }
    } else {
        value.to_string()
    }
}

fn escape(text: &str, quotes: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '"' if quotes => escaped.push_str("\\\""),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::proto::{Bucket, Counter, Gauge, Histogram};

    use super::*;
    use crate::telemetry::catalog;
    use crate::telemetry::traceparent::TraceIds;

    fn label(name: &str, value: &str) -> LabelPair {
        let mut label = LabelPair::default();
        label.set_name(name.to_owned());
        label.set_value(value.to_owned());
        label
    }

    fn family(name: String, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(name);
        family.set_field_type(kind);
        family.set_metric(metrics);
        family
    }

    fn gauge(value: f64) -> Metric {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        Metric::from_gauge(gauge)
    }

    fn families() -> Vec<MetricFamily> {
        let mut counter = Counter::default();
        counter.set_value(3.0);
        let mut produced = Metric::default();
        produced.set_counter(counter);
        produced.set_label(vec![label("topic", "a\"b\\c\n")]);
        let mut histogram = Histogram::default();
        let buckets = [(0.001, 1), (1.0, 2)].map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        });
        histogram.set_bucket(buckets.to_vec());
        histogram.set_sample_count(3);
        histogram.set_sample_sum(7.5005);
        let mut latency = Metric::default();
        latency.set_histogram(histogram);
        let mut info = gauge(1.0);
        info.set_label(vec![label("service_name", "streambus")]);
        vec![
            family(catalog::PRODUCE_LATENCY.sanitized(), MetricType::HISTOGRAM, vec![latency]),
            family(catalog::MESSAGES_PRODUCED.sanitized(), MetricType::COUNTER, vec![produced]),
            family(catalog::TOPICS.sanitized(), MetricType::GAUGE, vec![gauge(2.0)]),
            family(TARGET_INFO.to_owned(), MetricType::GAUGE, vec![info]),
        ]
    }

    /// The exposition without the families that are written although they were not given.
    fn given(text: &str) -> String {
        let names = ["messages_produced", "topics_total", "produce_latency", "target", "EOF"];
        text.lines()
            .filter(|line| names.iter().any(|name| line.contains(name)))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    #[test]
    fn text_uses_the_names_of_the_catalogue() {
        let exposition = encode(families(), &Store::default(), Format::Text);
        assert_eq!(given(&exposition.text), include_str!("testdata/exposition.txt"));
    }

    #[test]
    fn openmetrics_names_counter_families_and_carries_exemplars() {
        let store = Store::default();
        let bounds: &'static [f64] = &[0.001, 1.0];
        let row = Row { bounds, ..catalog::PRODUCE_LATENCY };
        store.add(row, &[]).keep(0.5, TraceIds { trace: [0xab; 16], span: [0xcd; 8] });
        let exposition = encode(families(), &store, Format::OpenMetrics);
        let mut text = given(&exposition.text);
        // The time of the exemplar is that of the test.
        let from = text.find("} 0.5 ").expect("an exemplar") + "} 0.5 ".len();
        let until = from + text[from..].find('\n').expect("a line end");
        let at = Duration::from_secs_f64(text[from..until].parse().expect("a timestamp"));
        assert!(at > Duration::from_secs(1_700_000_000));
        text.replace_range(from..until, "NOW");
        assert_eq!(text, include_str!("testdata/exposition.openmetrics"));
        assert!(exposition.text.ends_with("# EOF\n"));
    }

    #[test]
    fn overflowing_families_are_counted() {
        let mut families = families();
        families[1].mut_metric()[0].set_label(vec![label(OVERFLOW, "true")]);
        assert_eq!(encode(families, &Store::default(), Format::Text).overflowing, 1);
    }
}
