//! Which settings exist, learnt from the defaults.

use serde_json::Value;

/// What a path means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A setting, or an entry of a setting that is a map.
    Setting,
    /// A group of settings.
    Section,
    /// Nothing.
    Unknown,
}

/// What `key` means in a configuration with these defaults.
pub(super) fn kind(defaults: &Value, key: &str) -> Kind {
    let mut at = defaults;
    for name in key.split('.') {
        match at {
            // An empty map: its entries are the user's to name.
            Value::Object(fields) if fields.is_empty() => return Kind::Setting,
            Value::Object(fields) => match fields.get(name) {
                Some(inner) => at = inner,
                None => return Kind::Unknown,
            },
            _ => return Kind::Unknown,
        }
    }
    match at {
        Value::Object(fields) if !fields.is_empty() => Kind::Section,
        _ => Kind::Setting,
    }
}

/// Every setting with its value, in the order of keys.
pub(super) fn leaves(tree: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    collect("", tree, &mut found);
    found
}

fn collect<'a>(prefix: &str, at: &'a Value, found: &mut Vec<(String, &'a Value)>) {
    match at {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, inner) in fields {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                collect(&key, inner, found);
            }
        }
        leaf => found.push((prefix.to_owned(), leaf)),
    }
}

/// Puts `value` at `key`. In a map whose entries are the user's to name, what is left of the key is one name.
pub(super) fn put(defaults: &Value, tree: &mut Value, key: &str, value: Value) {
    let (mut at, mut defaults, mut rest) = (tree, Some(defaults), Some(key));
    while let Some(key) = rest {
        let is_users = defaults.and_then(Value::as_object).is_some_and(serde_json::Map::is_empty);
        let name = match key.split_once('.') {
            Some((name, inner)) if !is_users => {
                rest = Some(inner);
                name
            }
            _ => {
                rest = None;
                key
            }
        };
        if !at.is_object() {
            *at = Value::Object(serde_json::Map::new());
        }
        at = &mut at[name];
        defaults = defaults.and_then(|defaults| defaults.get(name));
    }
    *at = value;
}

/// The setting that is most like `key`, if one is much like it. A right name in a wrong section counts as alike.
pub(super) fn nearest(defaults: &Value, key: &str) -> Option<String> {
    let flat = |key: &str| key.replace(['.', '-'], "_").to_ascii_lowercase();
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let wanted = flat(key);
    let distance = |known: &str| {
        let whole = distance(&wanted, &flat(known));
        let name = flat(&last(known));
        let same_name = flat(&last(key)) == name || wanted.ends_with(&format!("_{name}"));
        if same_name { whole.min(2) } else { whole }
    };
    leaves(defaults)
        .into_iter()
        .map(|(known, _)| (distance(&known), known))
        .min()
        .filter(|(distance, _)| *distance <= 2.max(wanted.len() / 4))
        .map(|(_, known)| known)
}

/// How many letters must be inserted, deleted or replaced to make `b` of `a`.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Value {
        serde_json::json!({
            "storage": {"data_dir": "data", "sync": "always", "cache_bytes": 1},
            "telemetry": {"otlp": {"endpoint": null}, "resource": {}},
        })
    }

    #[test]
    fn paths_mean_settings_sections_or_nothing() {
        let kind = |key| kind(&defaults(), key);
        assert_eq!(kind("storage.sync"), Kind::Setting);
        assert_eq!(kind("telemetry.otlp.endpoint"), Kind::Setting);
        assert_eq!(kind("telemetry.resource.team"), Kind::Setting);
        assert_eq!(kind("telemetry.otlp"), Kind::Section);
        assert_eq!(kind("storage.sync.x"), Kind::Unknown);
        assert_eq!(kind("storag.sync"), Kind::Unknown);
    }

    #[test]
    fn what_follows_the_name_of_a_map_is_one_name() {
        let mut tree = defaults();
        for (key, value) in [("storage.sync", "never"), ("telemetry.resource.team.name", "payments")] {
            put(&defaults(), &mut tree, key, Value::from(value));
        }
        put(&defaults(), &mut tree, "telemetry.resource.service.name", Value::from("bus"));
        assert_eq!(tree["storage"]["sync"], "never");
        let expected = serde_json::json!({"team.name": "payments", "service.name": "bus"});
        assert_eq!(tree["telemetry"]["resource"], expected);
    }

    #[test]
    fn a_likely_setting_is_found() {
        let nearest = |key| nearest(&defaults(), key);
        assert_eq!(nearest("storage.cach_bytes").as_deref(), Some("storage.cache_bytes"));
        assert_eq!(nearest("data_dir").as_deref(), Some("storage.data_dir"));
        assert_eq!(nearest("storage_data_dir").as_deref(), Some("storage.data_dir"));
        assert_eq!(nearest("broker.data-dir").as_deref(), Some("storage.data_dir"));
        assert_eq!(nearest("something.else.altogether"), None);
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
