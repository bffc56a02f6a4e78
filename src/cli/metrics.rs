//! `streambus metrics`.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::telemetry::catalog::{DETAILED, ROWS, Row};

use super::output::{Format, line, table};

/// Looks at metrics.
#[derive(Debug, Subcommand)]
pub(super) enum Metrics {
    /// List every metric that a broker exports, on /metrics and over OTLP, and those that only /metrics/detailed shows.
    /// Needs no running broker
    Catalog,
}

impl Metrics {
    pub(super) fn run(self, format: Format) -> anyhow::Result<()> {
        let Metrics::Catalog = self;
        match format {
            Format::Json => line(
                ROWS.iter()
                    .map(|row| row_json(row, false))
                    .chain(DETAILED.iter().map(|row| row_json(row, true)))
                    .collect::<Value>(),
            ),
            Format::Text => {
                let row = |(row, detailed): (&Row, bool)| {
                    [
                        if detailed { "Partitions" } else { row.family.title() }.to_owned(),
                        row.prometheus.to_owned(),
                        row.kind.prometheus().to_owned(),
                        row.unit.to_owned(),
                        row.attributes.join(","),
                        row.help.to_owned(),
                    ]
                };
                let exported = ROWS.iter().map(|row| (row, false));
                let rows: Vec<_> = exported.chain(DETAILED.iter().map(|row| (row, true))).map(row).collect();
                table(["FAMILY", "METRIC", "KIND", "UNIT", "LABELS", "MEANING"], &rows)
            }
        }
    }
}

fn row_json(row: &Row, detailed: bool) -> Value {
    json!({
        "detailed_only": detailed,
        "family": row.family.title(),
        "prometheus": row.prometheus,
        "otel": row.otel,
        "kind": row.kind.prometheus(),
        "unit": row.unit,
        "attributes": row.attributes,
        "bounds": row.bounds,
        "help": row.help,
        "moves": row.moves,
        "recorded_in": row.recorded_in,
        "series_max": row.series,
    })
}
