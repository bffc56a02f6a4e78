use std::collections::BTreeSet;
use std::path::Path;

use super::*;

fn all() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().chain(DETAILED)
}

#[test]
fn names_are_unique() {
    let otel: BTreeSet<_> = all().map(|row| row.otel).collect();
    let prometheus: BTreeSet<_> = all().map(|row| row.prometheus).collect();
    let sanitized: BTreeSet<_> = all().map(Row::sanitized).collect();
    let rows = all().count();
    assert_eq!((otel.len(), prometheus.len(), sanitized.len()), (rows, rows, rows));
}

#[test]
fn otel_names_follow_the_semantic_conventions() {
    for row in all() {
        let valid = row.otel.split('.').all(|part| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        });
        assert!(valid && row.otel.contains('.'), "{} is not dotted lower case", row.otel);
        assert!(!row.otel.contains("total"), "{} contains total", row.otel);
        for unit in ["seconds", "bytes"] {
            assert!(!row.otel.contains(unit), "{} contains its unit", row.otel);
        }
        let own = ["streambus.", "process.", "rpc."].iter().any(|prefix| row.otel.starts_with(prefix));
        assert!(own, "{} is in no namespace of ours", row.otel);
        assert!(!row.unit.is_empty() && row.unit != "1", "{} needs a unit", row.otel);
    }
}

#[test]
fn prometheus_names_follow_its_conventions_but_for_the_specified_gauges() {
    let specified = [
        "streambus_topics_total",
        "streambus_partitions_total",
        "streambus_replicas_total",
        "streambus_segments_total",
        "streambus_consumer_groups_total",
        "streambus_consumer_group_members_total",
    ];
    for row in all() {
        let name = row.prometheus;
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        let total = name.ends_with("_total");
        assert_eq!(total, row.kind == Kind::Counter || specified.contains(&name), "{name}");
        assert_eq!(row.unit == "s", name.contains("_seconds"), "{name} and its unit {}", row.unit);
        assert_eq!(row.unit == "By", name.contains("_bytes"), "{name} and its unit {}", row.unit);
    }
}

#[test]
fn rows_are_complete() {
    for row in all() {
        assert!(row.help.ends_with('.') && row.moves.ends_with('.'), "{} has no sentence", row.otel);
        assert_eq!(row.bounds.is_empty(), row.kind != Kind::Histogram, "{}", row.otel);
        assert!(row.bounds.windows(2).all(|pair| pair[0] < pair[1]), "{} has unsorted bounds", row.otel);
        assert!(
            row.attributes.is_sorted(),
            "{} has unsorted labels: the SDK would look them up twice",
            row.otel
        );
        assert!(row.series > 0 && (row.series == 1 || !row.attributes.is_empty()), "{}", row.otel);
    }
}

#[test]
fn every_row_is_used_by_the_file_it_names() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (row, identifier) in all().zip(IDENTIFIERS.iter().chain(DETAILED_IDENTIFIERS)) {
        let text = std::fs::read_to_string(src.join(row.recorded_in))
            .unwrap_or_else(|error| panic!("{}: {}: {error}", row.otel, row.recorded_in));
        let used = text.match_indices(&format!("catalog::{identifier}")).any(|(at, found)| {
            !text[at + found.len()..].starts_with(|next: char| next.is_ascii_uppercase() || next == '_')
        });
        assert!(used, "{} does not use catalog::{identifier}", row.recorded_in);
    }
}

#[test]
fn the_reference_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, markdown()).expect("docs/METRICS.md can be written");
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == markdown(), "docs/METRICS.md is out of date: run with UPDATE_DOCS=1");
}
