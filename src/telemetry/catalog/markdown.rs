//! The metrics reference, made from the catalogue.

use std::fmt::Write;

use super::{DETAILED, Family, ROWS, Row};

/// The text of `docs/METRICS.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Metrics\n\n\
         Generated from `src/telemetry/catalog/rows.rs`; a test fails when it is out of date \
         (`UPDATE_DOCS=1 cargo test --lib telemetry::catalog` rewrites it).\n\n\
         `/metrics` serves the Prometheus names. Over OTLP the same instruments carry the dotted names and UCUM units. \
         Scrape a broker or let it push, but do not bring both into one database: that stores every series twice.\n\n\
         *Series* is the largest number of label sets on one broker. What exceeds it is summed in one series with the \
         label `otel_metric_overflow=\"true\"`, and `streambus_telemetry_overflowing_metrics` says so.\n",
    );
    for family in Family::ALL {
        section(&mut out, family);
    }
    detailed(&mut out);
    out
}

/// What only `/metrics/detailed` shows.
fn detailed(out: &mut String) {
    out.push_str(
        "\n## Partitions, on demand\n\n\
         `/metrics/detailed` shows these of each partition that has a replica on the broker. They are not on `/metrics` \
         and not sent over OTLP. `?family=` and `?topic=` choose, see the README.\n\n\
         | Prometheus | Type | Unit | Labels | Meaning | Moves |\n|---|---|---|---|---|---|\n",
    );
    for row in DETAILED {
        let _ = writeln!(
            out,
            "| `{}` | {} | `{}` | {} | {} | {} |",
            row.prometheus,
            row.kind.prometheus(),
            row.unit,
            labels(row),
            row.help,
            row.moves,
        );
    }
}

fn section(out: &mut String, family: Family) {
    // INVARIANT of every `write!` below: writing into a `String` cannot fail, so its result is not looked at.
    let _ = write!(out, "\n## {}\n\n", family.title());
    out.push_str("| Prometheus | OTLP | Type | Unit | Labels | Series | Meaning | Moves |\n");
    out.push_str("|---|---|---|---|---|---|---|---|\n");
    let rows = || ROWS.iter().filter(|row| row.family == family);
    for row in rows() {
        let _ = writeln!(
            out,
            "| `{}` | `{}` | {} | `{}` | {} | {} | {} | {} |",
            row.prometheus,
            row.otel,
            row.kind.prometheus(),
            row.unit,
            labels(row),
            row.series,
            row.help,
            row.moves,
        );
    }
    let mut bounds: Vec<&[f64]> = Vec::new();
    for row in rows().filter(|row| !row.bounds.is_empty()) {
        if bounds.contains(&row.bounds) {
            continue;
        }
        bounds.push(row.bounds);
        let users: Vec<_> = rows()
            .filter(|other| other.bounds == row.bounds)
            .map(|other| format!("`{}`", other.prometheus))
            .collect();
        let values: Vec<_> = row.bounds.iter().map(|bound| bound.to_string()).collect();
        let _ = write!(out, "\nBuckets of {}: {}.\n", users.join(", "), values.join(", "));
    }
}

fn labels(row: &Row) -> String {
    if row.attributes.is_empty() {
        return "none".to_owned();
    }
    let labels: Vec<_> = row.attributes.iter().map(|key| format!("`{}`", key.replace('.', "_"))).collect();
    labels.join(", ")
}
