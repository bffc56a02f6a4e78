//! Where a record's key comes from.

use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// How a line becomes a key and a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyRule<'a> {
    /// No key; the line is the value.
    None,
    /// The key is a field of the JSON object that the line is; the line is the value.
    Field(&'a str),
    /// The key is what is before this text, and the value what is after it.
    Separator(&'a str),
}

/// Why a line has no key.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It is no JSON, or something else than an object.
    #[error("the line is not a JSON object: {0}")]
    NotAnObject(serde_json::Error),
    /// The object lacks the field.
    #[error("the line has no field \"{0}\"")]
    NoField(String),
    /// The field holds something that makes no key.
    #[error("field \"{field}\" is {found}; a key must be a string, a number or a boolean")]
    NotAKey {
        /// The field.
        field: String,
        /// What it holds.
        found: &'static str,
    },
    /// The line lacks the separator.
    #[error("the line has no \"{0}\" that ends the key")]
    NoSeparator(String),
}

impl<'a> KeyRule<'a> {
    /// At most one of the two may be given.
    pub(super) fn new(field: Option<&'a str>, separator: Option<&'a str>) -> Self {
        match (field, separator) {
            (Some(field), _) => KeyRule::Field(field),
            (None, Some(separator)) => KeyRule::Separator(separator),
            (None, None) => KeyRule::None,
        }
    }

    /// The key and the value of a line.
    pub(super) fn apply(self, line: Bytes) -> Result<(Option<Bytes>, Bytes), Error> {
        match self {
            KeyRule::None => Ok((None, line)),
            KeyRule::Field(field) => Ok((Some(key_in(&line, field)?), line)),
            KeyRule::Separator(separator) => {
                let at = find(&line, separator.as_bytes());
                let at = at.ok_or_else(|| Error::NoSeparator(separator.to_owned()))?;
                Ok((Some(line.slice(..at)), line.slice(at + separator.len()..)))
            }
        }
    }
}

fn find(line: &[u8], text: &[u8]) -> Option<usize> {
    if text.is_empty() {
        return Some(0);
    }
    line.windows(text.len()).position(|window| window == text)
}

fn key_in(line: &[u8], field: &str) -> Result<Bytes, Error> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let value = json.deserialize_map(Field(field)).and_then(|value| json.end().map(|()| value));
    match value.map_err(Error::NotAnObject)? {
        None => Err(Error::NoField(field.to_owned())),
        Some(Value::String(text)) => Ok(text.into()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string().into()),
        Some(value) => {
            let found = match value {
                Value::Null => "null",
                Value::Array(_) => "an array",
                _ => "an object",
            };
            Err(Error::NotAKey { field: field.to_owned(), found })
        }
    }
}

/// Reads one field of an object and skips the others. The last of several of that name counts.
struct Field<'a>(&'a str);

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_wanted) = map.next_key_seed(Is(self.0))? {
            if is_wanted {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Whether a name is this one.
struct Is<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(line: &'static str) -> Result<String, String> {
        let (key, value) = KeyRule::Field("carrier")
            .apply(Bytes::from_static(line.as_bytes()))
            .map_err(|e| e.to_string())?;
        assert_eq!(value, line, "the value is the whole line");
        Ok(String::from_utf8(key.expect("a key").to_vec()).expect("text"))
    }

    #[test]
    fn a_field_gives_the_key_and_leaves_the_line_alone() {
        assert_eq!(key(r#"{"a":[1,{"carrier":"no"}], "carrier" : "UA","z":null}"#).as_deref(), Ok("UA"));
        assert_eq!(key(r#"{"carrier":"\u00dc\"x"}"#).as_deref(), Ok("Ü\"x"));
        assert_eq!(key(r#"{"carrier":12}"#).as_deref(), Ok("12"));
        assert_eq!(key(r#"{"carrier":true}"#).as_deref(), Ok("true"));
        assert_eq!(key(r#"{"carrier":""}"#).as_deref(), Ok(""));
    }

    #[test]
    fn lines_without_a_key_are_refused_with_the_reason() {
        for (line, reason) in [
            (r#"{"flight":1}"#, "no field \"carrier\""),
            (r#"{"carrier":null}"#, "is null"),
            (r#"{"carrier":["UA"]}"#, "is an array"),
            (r#"{"carrier":{}}"#, "is an object"),
            (r#"["carrier"]"#, "not a JSON object"),
            (r#"{"carrier":"UA""#, "not a JSON object"),
            (r#"{"carrier":"UA"} more"#, "not a JSON object"),
            ("", "not a JSON object"),
        ] {
            let told = key(line).unwrap_err();
            assert!(told.contains(reason), "{line}: {told}");
        }
    }

    #[test]
    fn a_separator_divides_the_line_where_it_comes_first() {
        let apply = |line: &'static str| KeyRule::Separator("::").apply(Bytes::from_static(line.as_bytes()));
        let (key, value) = apply("k::v::w").expect("divided");
        assert_eq!((key.as_deref(), &value[..]), (Some(&b"k"[..]), &b"v::w"[..]));
        let (key, value) = apply("::").expect("divided");
        assert_eq!((key.as_deref(), &value[..]), (Some(&b""[..]), &b""[..]));
        assert!(apply("k:v").is_err());
    }
}
