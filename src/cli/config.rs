//! `streambus config`.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::config::Entry;

use super::output::{Format, line, table};
use super::serve::Settings;

/// Looks at the configuration that `serve` would run with, given the same file, environment and flags.
#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Show every setting, its effective value, and where that comes from
    Show {
        #[command(flatten)]
        settings: Settings,
    },
    /// Report every mistake, or that there is none
    Check {
        #[command(flatten)]
        settings: Settings,
    },
}

/// Settings below it may hold credentials.
const SECRETS: &str = "telemetry.otlp.headers";

impl Config {
    pub(super) fn run(self, format: Format) -> anyhow::Result<()> {
        match self {
            Config::Show { settings } => show(&settings.load()?.entries, format),
            Config::Check { settings } => {
                settings.load()?;
                match format {
                    Format::Json => line(json!({"ok": true})),
                    Format::Text => line("the configuration is valid"),
                }
            }
        }
    }
}

fn show(entries: &[Entry], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => {
            let entry = |entry: &Entry| json!({"key": entry.key, "value": shown(entry), "origin": entry.origin.to_string()});
            line(entries.iter().map(entry).collect::<Value>())
        }
        Format::Text => {
            let row = |entry: &Entry| [entry.key.clone(), shown(entry).to_string(), entry.origin.to_string()];
            let rows: Vec<_> = entries.iter().map(row).collect();
            table(["SETTING", "VALUE", "ORIGIN"], &rows)
        }
    }
}

/// The value, unless it is nobody's business.
fn shown(entry: &Entry) -> Value {
    let is_secret = entry.key.strip_prefix(SECRETS).is_some_and(|rest| rest.starts_with('.'));
    if is_secret { Value::from("***") } else { entry.value.clone() }
}

#[cfg(test)]
mod tests {
    use crate::config::Origin;

    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        let entry = |key: &str, value: Value| Entry { key: key.to_owned(), value, origin: Origin::Default };
        assert_eq!(shown(&entry("telemetry.otlp.headers.api-key", json!("secret"))), json!("***"));
        assert_eq!(shown(&entry("telemetry.otlp.headers", json!({}))), json!({}));
        assert_eq!(shown(&entry("storage.sync", json!("always"))), json!("always"));
    }
}
