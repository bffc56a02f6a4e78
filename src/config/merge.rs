//! Merging settings into a configuration, with every mistake told.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use toml::de::DeValue;

use super::known::{self, Kind};
use super::source::{Given, Setting};
use super::{Mistake, Mistakes, Origin, Problem, environment, file};

/// A setting of a finished configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Path with dots between the levels.
    pub key: String,
    /// Effective value; null for an optional setting that is not set.
    pub value: Value,
    /// The source that decided it.
    pub origin: Origin,
}

#[derive(Debug)]
pub(super) struct Merged<C> {
    pub(super) config: C,
    pub(super) entries: Vec<Entry>,
}

impl<C> Merged<C> {
    /// A problem with the origin of its setting.
    pub(super) fn told(&self, problem: Problem) -> Mistake {
        let entry = self.entries.iter().find(|entry| entry.key == problem.key);
        let origin = entry.map_or(Origin::Default, |entry| entry.origin.clone());
        Mistake { origin, key: problem.key, what: problem.what, suggestion: None }
    }
}

/// Lays `settings`, later ones over earlier ones, over the defaults of `C`.
///
/// Each setting is tried alone on the defaults, so that a wrong one is blamed by its own origin and hides no other.
/// `problems` then looks at the whole of the good ones.
pub(super) fn merge<C>(
    settings: Vec<Setting>,
    mut mistakes: Vec<Mistake>,
    problems: impl FnOnce(&C) -> Vec<Problem>,
) -> Result<Merged<C>, Mistakes>
where
    C: Default + Serialize + DeserializeOwned,
{
    let defaults = serde_json::to_value(C::default()).expect("a configuration is made of what JSON can say");
    let mut tree = defaults.clone();
    let mut origins = BTreeMap::new();
    for setting in settings {
        match accept::<C>(&defaults, &setting) {
            Ok(Some(value)) => {
                known::put(&defaults, &mut tree, &setting.key, value);
                origins.insert(setting.key, setting.origin);
            }
            Ok(None) => {}
            Err(mistake) => mistakes.push(mistake),
        }
    }
    let config = match serde_json::from_value::<C>(tree.clone()) {
        Ok(config) => config,
        Err(error) => {
            mistakes.push(contradiction(&error));
            return Err(Mistakes(mistakes));
        }
    };
    mistakes.extend(problems(&config).into_iter().map(|problem| Mistake {
        origin: origin_of(&origins, &problem.key),
        key: problem.key,
        what: problem.what,
        suggestion: None,
    }));
    if !mistakes.is_empty() {
        return Err(Mistakes(mistakes));
    }
    // Written anew, so that every value is shown in its usual form.
    let tree = serde_json::to_value(&config).unwrap_or(tree);
    let entries = known::leaves(&tree)
        .into_iter()
        .map(|(key, value)| Entry { origin: origin_of(&origins, &key), value: value.clone(), key })
        .collect();
    Ok(Merged { config, entries })
}

fn contradiction(error: &serde_json::Error) -> Mistake {
    let what = format!("these settings cannot be combined: {error}");
    Mistake { origin: Origin::Default, key: String::new(), what, suggestion: None }
}

/// The origin of `key`, or of the map that it is in.
fn origin_of(origins: &BTreeMap<String, Origin>, key: &str) -> Origin {
    let mut at = key;
    loop {
        if let Some(origin) = origins.get(at) {
            return origin.clone();
        }
        match at.rsplit_once('.') {
            Some((outer, _)) => at = outer,
            None => return Origin::Default,
        }
    }
}

/// The value to put for `setting`, if it has a known key and a fitting type. `None` for an empty section, which sets
/// nothing.
fn accept<C: DeserializeOwned>(defaults: &Value, setting: &Setting) -> Result<Option<Value>, Mistake> {
    let mistake = |what: String, suggestion| {
        Err(Mistake { origin: setting.origin.clone(), key: setting.key.clone(), what, suggestion })
    };
    match known::kind(defaults, &setting.key) {
        Kind::Unknown => {
            let nearest = known::nearest(defaults, &setting.key);
            let nearest = nearest.map(|key| match setting.origin {
                Origin::Environment { .. } => environment::variable_of(&key),
                _ => key,
            });
            mistake("there is no such setting".to_owned(), nearest)
        }
        Kind::Section if setting.given == Given::Typed(Value::Object(serde_json::Map::new())) => Ok(None),
        Kind::Section => mistake("this is a section; give a value to a setting in it".to_owned(), None),
        Kind::Setting => match try_on::<C>(defaults, &setting.key, &setting.given) {
            Ok(value) => Ok(Some(value)),
            Err(what) => mistake(what, None),
        },
    }
}

/// Tries the value alone on the defaults. Text is tried as what it looks like, then as text.
fn try_on<C: DeserializeOwned>(defaults: &Value, key: &str, given: &Given) -> Result<Value, String> {
    let attempt = |value: Value| {
        let mut tree = defaults.clone();
        known::put(defaults, &mut tree, key, value.clone());
        match serde_json::from_value::<C>(tree) {
            Ok(_) => Ok(value),
            Err(error) => Err(in_words(&error.to_string())),
        }
    };
    match given {
        Given::Typed(value) => attempt(value.clone()),
        Given::Text(text) => match looks_like(text) {
            Some(value) => {
                attempt(value).or_else(|error| attempt(Value::from(text.as_str())).map_err(|_| error))
            }
            None => attempt(Value::from(text.as_str())),
        },
    }
}

/// The number, truth value or list that `text` spells, if it does.
fn looks_like(text: &str) -> Option<Value> {
    let parsed = DeValue::parse(text.trim()).ok()?;
    match parsed.get_ref() {
        DeValue::Datetime(_) => None,
        value => Some(file::to_json(value)),
    }
}

/// Replaces the names of Rust types.
fn in_words(message: &str) -> String {
    const TYPES: &[(&str, &str)] = &[
        ("u8", "a whole number from 0 to 255"),
        ("u16", "a whole number from 0 to 65535"),
        ("u32", "a whole number from 0 to 4294967295"),
        ("u64", "a whole number, not negative"),
        ("usize", "a whole number, not negative"),
        ("i64", "a whole number"),
        ("f64", "a number"),
        ("a boolean", "true or false"),
        ("path string", "a path"),
    ];
    let said = message.rsplit_once(", expected ");
    let replaced = said.and_then(|(found, expected)| {
        let (_, words) = TYPES.iter().find(|(name, _)| *name == expected)?;
        Some(format!("{found}, expected {words}"))
    });
    replaced.unwrap_or_else(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Whole {
        disk: Disk,
        otlp: Otlp,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Disk {
        dir: PathBuf,
        sync: Sync,
        #[serde(with = "crate::units::size")]
        cache_bytes: u64,
        threads: u32,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Sync {
        #[default]
        Always,
        Interval,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Otlp {
        endpoint: Option<String>,
        #[serde(with = "crate::units::duration")]
        every: Duration,
        resource: BTreeMap<String, String>,
        ports: Vec<u16>,
    }

    impl Default for Disk {
        fn default() -> Self {
            Disk { dir: "data".into(), sync: Sync::Always, cache_bytes: 1 << 20, threads: 1 }
        }
    }

    fn problems(whole: &Whole) -> Vec<Problem> {
        let none = whole.disk.threads == 0;
        none.then(|| Problem { key: "disk.threads".into(), what: "must be at least 1".into() })
            .into_iter()
            .collect()
    }

    fn variable(name: &str, text: &str) -> Setting {
        let key = name.to_ascii_lowercase().replace("__", ".");
        let origin = Origin::Environment { variable: format!("STREAMBUS_{name}") };
        Setting { key, given: Given::Text(text.into()), origin }
    }

    fn line(key: &str, value: impl Into<Value>) -> Setting {
        let origin = Origin::File { path: "s.toml".into(), line: 3 };
        Setting { key: key.into(), given: Given::Typed(value.into()), origin }
    }

    fn merged(settings: Vec<Setting>) -> Result<Merged<Whole>, Mistakes> {
        merge::<Whole>(settings, Vec::new(), problems)
    }

    #[test]
    fn later_sources_win_and_are_named_as_origin() {
        let merged = merged(vec![
            line("disk.threads", 2),
            line("disk.cache_bytes", "2MiB"),
            variable("DISK__THREADS", "3"),
            Setting::flag("--threads", "disk.threads", "4"),
        ])
        .expect("no mistake");
        assert_eq!(merged.config.disk.threads, 4);
        let origin =
            |key| merged.entries.iter().find(|entry| entry.key == key).map(|entry| entry.origin.to_string());
        assert_eq!(origin("disk.threads").as_deref(), Some("--threads"));
        assert_eq!(origin("disk.cache_bytes").as_deref(), Some("s.toml:3"));
        assert_eq!(origin("disk.sync").as_deref(), Some("default"));
        assert_eq!(origin("otlp.endpoint").as_deref(), Some("default"));
    }

    #[test]
    fn text_takes_the_type_of_its_setting() {
        let merged = merged(vec![
            variable("DISK__DIR", "2024"),
            variable("DISK__SYNC", "interval"),
            variable("OTLP__ENDPOINT", "http://localhost:4317"),
            variable("OTLP__EVERY", "1m30s"),
            variable("OTLP__PORTS", "[1, 2]"),
            variable("OTLP__RESOURCE.TEAM", "payments"),
            variable("DISK__CACHE_BYTES", "4096"),
        ])
        .expect("no mistake");
        let expected = Whole {
            disk: Disk { dir: "2024".into(), sync: Sync::Interval, cache_bytes: 4096, threads: 1 },
            otlp: Otlp {
                endpoint: Some("http://localhost:4317".into()),
                every: Duration::from_secs(90),
                resource: BTreeMap::from([("team".into(), "payments".into())]),
                ports: vec![1, 2],
            },
        };
        assert_eq!(merged.config, expected);
    }

    #[test]
    fn every_mistake_of_every_source_is_reported() {
        let mistakes = merged(vec![
            line("disk.cach_bytes", 5),
            line("disk.sync", "sometimes"),
            line("otlp", 5),
            line("otlp.every", 5),
            variable("DISK__THREADS", "many"),
            variable("OTLP_ENDPOINT", "x"),
            Setting::flag("--set", "disk.threads", "0"),
            Setting::flag("--set", "disk.cache_bytes", "5 apples"),
        ])
        .expect_err("mistakes");
        let told: Vec<_> = mistakes.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "s.toml:3: disk.cach_bytes: there is no such setting; did you mean disk.cache_bytes?",
                "s.toml:3: disk.sync: unknown variant `sometimes`, expected `always` or `interval`",
                "s.toml:3: otlp: this is a section; give a value to a setting in it",
                "s.toml:3: otlp.every: invalid type: integer `5`, expected a duration with its unit, such as \"250ms\", \
                 \"5s\" or \"1h30m\"",
                "STREAMBUS_DISK__THREADS: disk.threads: invalid type: string \"many\", expected a whole number from 0 to \
                 4294967295",
                "STREAMBUS_OTLP_ENDPOINT: otlp_endpoint: there is no such setting; did you mean \
                 STREAMBUS_OTLP__ENDPOINT?",
                "--set: disk.cache_bytes: \"5 apples\" is not a size such as 4096, 64KiB or 1GB",
                "--set: disk.threads: must be at least 1",
            ]
        );
    }

    #[test]
    fn an_empty_section_sets_nothing() {
        let merged = merged(vec![line("disk", Value::Object(serde_json::Map::new()))]).expect("no mistake");
        assert_eq!(merged.config, Whole::default());
        assert!(merged.entries.iter().all(|entry| entry.origin == Origin::Default));
    }
}
