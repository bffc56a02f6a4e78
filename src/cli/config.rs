//! `streambus config`.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::config::{Entry, Loaded, Mistake, Mistakes};

use super::output::{Format, line, note, table};
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

impl Config {
    pub(super) fn run(self, format: Format) -> anyhow::Result<()> {
        match self {
            Config::Show { settings } => show(&load(settings)?, format),
            Config::Check { settings } => {
                let loaded = load(settings).inspect_err(|error| {
                    if let (Format::Json, Some(Mistakes(mistakes))) = (format, error.downcast_ref()) {
                        let mistakes: Vec<_> = mistakes.iter().map(mistake_json).collect();
                        // If nobody reads, there is still the exit code.
                        let _ = line(json!({"ok": false, "mistakes": mistakes}));
                    }
                })?;
                match format {
                    Format::Json => line(json!({"ok": true, "warnings": loaded.warnings})),
                    Format::Text => line("the configuration is valid"),
                }
            }
        }
    }
}

fn mistake_json(mistake: &Mistake) -> Value {
    let Mistake { origin, key, what, suggestion } = mistake;
    json!({"origin": origin.to_string(), "key": key, "what": what, "suggestion": suggestion})
}

fn load(settings: Settings) -> anyhow::Result<Loaded> {
    let loaded = settings.load()?;
    for warning in &loaded.warnings {
        note(format_args!("warning: {warning}"));
    }
    Ok(loaded)
}

fn show(loaded: &Loaded, format: Format) -> anyhow::Result<()> {
    let entries = &loaded.entries;
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

/// The value, unless it is nobody's business: headers may hold credentials.
fn shown(entry: &Entry) -> Value {
    let is_secret = entry.key.starts_with("telemetry.otlp.") && entry.key.contains(".headers.");
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
        assert_eq!(shown(&entry("telemetry.otlp.logs.headers.api-key", json!("secret"))), json!("***"));
        assert_eq!(shown(&entry("telemetry.otlp.headers", json!({}))), json!({}));
        assert_eq!(shown(&entry("storage.sync", json!("always"))), json!("always"));
    }
}
