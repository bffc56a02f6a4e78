//! Settings from a TOML file, each with its line.

use std::path::Path;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::source::{Given, Setting};
use super::{Mistake, Origin};

/// Reads `path` and adds what it sets, or what keeps it from being read.
///
/// Of a file with syntax errors only these are reported, since what else it says is guesswork.
pub(super) fn read(path: &Path, settings: &mut Vec<Setting>, mistakes: &mut Vec<Mistake>) {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text, settings, mistakes),
        Err(error) => mistakes.push(Mistake {
            origin: Origin::File { path: path.to_owned(), line: 0 },
            key: String::new(),
            what: format!("cannot be read: {error}"),
            suggestion: None,
        }),
    }
}

fn parse(path: &Path, text: &str, settings: &mut Vec<Setting>, mistakes: &mut Vec<Mistake>) {
    let origin_at = |at: usize| Origin::File { path: path.to_owned(), line: line_of(text, at) };
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let mut walk = Walk { origin_at: &origin_at, settings };
        walk.table("", table.get_ref());
    }
    mistakes.extend(errors.into_iter().map(|error| Mistake {
        origin: origin_at(error.span().map_or(0, |span| span.start)),
        key: String::new(),
        what: format!("not valid TOML: {}", error.message()),
        suggestion: None,
    }));
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
}

struct Walk<'a> {
    origin_at: &'a dyn Fn(usize) -> Origin,
    settings: &'a mut Vec<Setting>,
}

impl Walk<'_> {
    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            match value.get_ref() {
                // An empty table sets nothing, but its name may be wrong.
                DeValue::Table(inner) if !inner.is_empty() => self.table(&key, inner),
                other => {
                    let origin = (self.origin_at)(name.span().start);
                    self.settings.push(Setting { key, given: Given::Typed(to_json(other)), origin });
                }
            }
        }
    }
}

/// The value as JSON. Numbers that JSON lacks become text, which the setting's type then refuses by name.
pub(super) fn to_json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Boolean(flag) => Value::from(*flag),
        DeValue::Integer(number) => {
            let (digits, radix) = (number.as_str(), number.radix());
            match (i64::from_str_radix(digits, radix), u64::from_str_radix(digits, radix)) {
                (_, Ok(unsigned)) => Value::from(unsigned),
                (Ok(signed), Err(_)) => Value::from(signed),
                (Err(_), Err(_)) => Value::from(number.to_string()),
            }
        }
        DeValue::Float(number) => {
            let finite = number.as_str().parse::<f64>().ok().and_then(serde_json::Number::from_f64);
            finite.map_or_else(|| Value::from(number.to_string()), Value::Number)
        }
        DeValue::Datetime(time) => Value::from(time.to_string()),
        DeValue::Array(items) => items.iter().map(|item| to_json(item.get_ref())).collect(),
        DeValue::Table(table) => {
            let field = |(name, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                let name: &std::borrow::Cow<'_, str> = name.get_ref();
                (name.to_string(), to_json(value.get_ref()))
            };
            Value::Object(table.iter().map(field).collect::<Map<_, _>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Vec<Setting>, Vec<Mistake>) {
        let (mut settings, mut mistakes) = (Vec::new(), Vec::new());
        parse(Path::new("a.toml"), text, &mut settings, &mut mistakes);
        (settings, mistakes)
    }

    #[test]
    fn every_value_carries_its_line() {
        let (settings, mistakes) = parsed("# first\n[storage]\n\nsync = \"always\"\ncache_bytes = 0x10\n");
        assert!(mistakes.is_empty());
        let mut found: Vec<_> = settings.iter().map(|s| (s.origin.to_string(), s.key.as_str())).collect();
        found.sort();
        assert_eq!(found, [("a.toml:4".into(), "storage.sync"), ("a.toml:5".into(), "storage.cache_bytes")]);
    }

    #[test]
    fn every_syntax_error_is_reported_with_its_line() {
        let (settings, mistakes) = parsed("[a]\nb = \nc = 1\nd == 2\n");
        assert!(settings.is_empty());
        let origins: Vec<_> = mistakes.iter().map(|mistake| mistake.origin.to_string()).collect();
        assert!(
            origins.contains(&"a.toml:2".to_owned()) && origins.contains(&"a.toml:4".to_owned()),
            "{origins:?}"
        );
    }

    #[test]
    fn a_missing_file_is_a_mistake() {
        let (mut settings, mut mistakes) = (Vec::new(), Vec::new());
        read(Path::new("/nonexistent/a.toml"), &mut settings, &mut mistakes);
        assert!(
            mistakes[0].to_string().starts_with("/nonexistent/a.toml: cannot be read: "),
            "{}",
            mistakes[0]
        );
    }
}
