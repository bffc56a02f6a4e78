//! The catalogue as a registry of semantic conventions, in the YAML that OpenTelemetry's `weaver` reads.

use std::fmt::Write;

use super::{Kind, ROWS, Row};

/// An attribute of metrics.
struct Attribute {
    key: &'static str,
    /// What it says, in one sentence.
    brief: &'static str,
    /// Some of its values.
    examples: &'static [&'static str],
}

const fn attribute(key: &'static str, brief: &'static str, examples: &'static [&'static str]) -> Attribute {
    Attribute { key, brief, examples }
}

/// Every attribute of [`ROWS`], by key.
const ATTRIBUTES: &[Attribute] = &[
    attribute("cause", "Why a consumer group was rebalanced.", &["joined", "left", "session_timeout"]),
    attribute("check", "Which health check.", &["broker", "storage", "cluster"]),
    attribute("code", "The error code of a refusal, in lower case.", &["busy", "unknown_topic"]),
    attribute("error.type", "The gRPC status of a call that failed on the server's side.", &["INTERNAL"]),
    attribute("group", "Name of the consumer group.", &["billing"]),
    attribute(
        "kind",
        "What kind of error, acknowledgement or change it is; a closed set for each metric.",
        &["corrupt", "accept", "log"],
    ),
    attribute("level", "Level of a log event.", &["warn", "error"]),
    attribute("outcome", "How a request or a commit ended.", &["ok", "client_error", "committed"]),
    attribute("partition", "Number of the partition.", &["0", "17"]),
    attribute("peer", "Number of another broker of the cluster.", &["2"]),
    attribute("phase", "Which part of the time.", &["admit", "append", "replicate", "apply", "respond"]),
    attribute("protocol", "Which port was asked.", &["grpc", "http"]),
    attribute("reason", "Why telemetry was lost.", &["queue_full", "export_failed"]),
    attribute("role", "What the broker does in a Raft group.", &["leader", "follower", "leaderless"]),
    attribute("rpc.method", "Full name of the gRPC method.", &["streambus.v1.ProduceService/Produce"]),
    attribute("rpc.status_code", "The gRPC status.", &["OK", "NOT_FOUND"]),
    attribute("rpc.system.name", "The system of remote calls.", &["grpc"]),
    attribute("signal", "A kind of telemetry.", &["traces", "metrics", "logs"]),
    attribute("stage", "How far a delivery has come.", &["delivered", "acknowledged"]),
    attribute("state", "What is the matter with partitions.", &["leaderless", "under_replicated"]),
    attribute("topic", "Name of the topic.", &["orders"]),
    attribute("version", "Version of the broker.", &[env!("CARGO_PKG_VERSION")]),
];

/// The text of `docs/semconv/registry.yaml`.
pub fn registry() -> String {
    let mut out = String::from(
        "# Generated from src/telemetry/catalog; a test fails when it is out of date\n\
         # (`UPDATE_DOCS=1 cargo test --lib telemetry::catalog` rewrites it).\n\
         #\n\
         # The metrics that a broker sends over OTLP, as a registry of OpenTelemetry semantic conventions for `weaver`.\n\
         # It stands alone: attributes of the general conventions that brokers use are described here as well.\n\
         groups:\n\
         \x20 - id: registry.streambus\n\
         \x20   type: attribute_group\n\
         \x20   brief: Attributes of the metrics of StreamBus.\n\
         \x20   attributes:\n",
    );
    ATTRIBUTES.iter().for_each(|attribute| define(&mut out, attribute));
    ROWS.iter().for_each(|row| group(&mut out, row));
    out
}

// INVARIANT of every `write!` below: writing into a `String` cannot fail, so its result is not looked at.
fn define(out: &mut String, attribute: &Attribute) {
    let examples: Vec<_> = attribute.examples.iter().map(|example| quoted(example)).collect();
    let _ = writeln!(out, "      - id: {}", attribute.key);
    let _ = writeln!(out, "        type: string");
    let _ = writeln!(out, "        stability: development");
    let _ = writeln!(out, "        brief: {}", quoted(attribute.brief));
    let _ = writeln!(out, "        examples: [{}]", examples.join(", "));
}

fn group(out: &mut String, row: &Row) {
    let _ = writeln!(out, "  - id: metric.{}", row.otel);
    let _ = writeln!(out, "    type: metric");
    let _ = writeln!(out, "    metric_name: {}", row.otel);
    let _ = writeln!(out, "    stability: development");
    let _ = writeln!(out, "    brief: {}", quoted(row.help));
    let _ = writeln!(out, "    note: {}", quoted(&note(row)));
    let _ = writeln!(out, "    instrument: {}", instrument(row.kind));
    let _ = writeln!(out, "    unit: {}", quoted(row.unit));
    if row.attributes.is_empty() {
        return;
    }
    let _ = writeln!(out, "    attributes:");
    for key in row.attributes {
        // Only a call that failed has it.
        let level =
            if *key == "error.type" { "conditionally_required: if the call failed" } else { "required" };
        let _ = writeln!(out, "      - ref: {key}");
        match level.split_once(": ") {
            Some((level, when)) => {
                let _ = writeln!(out, "        requirement_level:\n          {level}: {}", quoted(when));
            }
            None => {
                let _ = writeln!(out, "        requirement_level: {level}");
            }
        }
    }
}

fn note(row: &Row) -> String {
    let mut note = format!("{} On `/metrics` it is `{}`.", row.moves, row.prometheus);
    if !row.bounds.is_empty() {
        let bounds: Vec<_> = row.bounds.iter().map(f64::to_string).collect();
        let _ = write!(note, " Upper bounds of its buckets: {}.", bounds.join(", "));
    }
    note
}

fn instrument(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::UpDown => "updowncounter",
        Kind::Histogram => "histogram",
    }
}

/// A YAML string in double quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_attribute_is_described_once_and_used() {
        let described: Vec<_> = ATTRIBUTES.iter().map(|attribute| attribute.key).collect();
        let used: BTreeSet<_> = ROWS.iter().flat_map(|row| row.attributes).copied().collect();
        assert!(described.is_sorted());
        assert_eq!(described, used.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_metric_is_a_group_with_its_unit_instrument_and_attributes() {
        let text = registry();
        let start = text.find("  - id: metric.streambus.group.lag.size\n").expect("the metric");
        let group: Vec<&str> = text[start..].lines().take(15).collect();
        assert_eq!(
            group[1..4],
            ["    type: metric", "    metric_name: streambus.group.lag.size", "    stability: development"]
        );
        assert_eq!(
            group[6..11],
            [
                "    instrument: updowncounter",
                "    unit: \"{message}\"",
                "    attributes:",
                "      - ref: group",
                "        requirement_level: required"
            ]
        );
    }

    #[test]
    fn text_is_quoted() {
        assert_eq!(quoted(r#"a "b" \c"#), r#""a \"b\" \\c""#);
    }

    #[test]
    fn the_registry_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/semconv/registry.yaml");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("docs/semconv can be made");
            std::fs::write(&path, registry()).expect("docs/semconv/registry.yaml can be written");
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(text == registry(), "docs/semconv/registry.yaml is out of date: run with UPDATE_DOCS=1");
    }
}
