//! How records are printed.

use std::io::{self, Write};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::client::ConsumedRecord;

/// How records are printed; a line feed follows each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RecordFormat {
    /// The bytes of the value.
    Value,
    /// A JSON object.
    Json,
    /// Text with parts of the record in it.
    Template(Vec<Part>),
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Text(Vec<u8>),
    Key,
    Value,
    Offset,
    Partition,
    Time,
    Headers,
}

/// Why a format cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// Neither a known name nor a template.
    #[error("write value, json, or a template with %k %v %o %p %t %h in it")]
    Unknown,
    /// A percent sign before something without a meaning.
    #[error("%{0} has no meaning; there are %k %v %o %p %t %h %%")]
    Placeholder(char),
    /// A percent sign or a backslash at the end.
    #[error("something must follow the {0} at the end")]
    Unfinished(char),
    /// A backslash before something without a meaning.
    #[error("\\{0} has no meaning; there are \\t \\n \\r \\0 \\\\")]
    Escape(char),
}

impl FromStr for RecordFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "value" => Ok(RecordFormat::Value),
            "json" => Ok(RecordFormat::Json),
            _ if text.contains('%') => parse(text).map(RecordFormat::Template),
            _ => Err(Error::Unknown),
        }
    }
}

fn parse(text: &str) -> Result<Vec<Part>, Error> {
    let mut parts = Vec::new();
    let mut plain = Vec::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let part = match letter {
            '\\' => {
                plain.push(match letters.next().ok_or(Error::Unfinished('\\'))? {
                    't' => b'\t',
                    'n' => b'\n',
                    'r' => b'\r',
                    '0' => 0,
                    '\\' => b'\\',
                    other => return Err(Error::Escape(other)),
                });
                continue;
            }
            '%' => match letters.next().ok_or(Error::Unfinished('%'))? {
                'k' => Part::Key,
                'v' => Part::Value,
                'o' => Part::Offset,
                'p' => Part::Partition,
                't' => Part::Time,
                'h' => Part::Headers,
                '%' => {
                    plain.push(b'%');
                    continue;
                }
                other => return Err(Error::Placeholder(other)),
            },
            other => {
                plain.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
        };
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain)));
        }
        parts.push(part);
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(parts)
}

impl RecordFormat {
    /// Prints a record.
    pub(super) fn write(&self, record: &ConsumedRecord, out: &mut impl Write) -> io::Result<()> {
        match self {
            RecordFormat::Value => out.write_all(record.value.as_deref().unwrap_or_default())?,
            RecordFormat::Json => serde_json::to_writer(&mut *out, &json_of(record))?,
            RecordFormat::Template(parts) => parts.iter().try_for_each(|part| part.write(record, out))?,
        }
        out.write_all(b"\n")
    }
}

impl Part {
    fn write(&self, record: &ConsumedRecord, out: &mut impl Write) -> io::Result<()> {
        match self {
            Part::Text(text) => out.write_all(text),
            Part::Key => out.write_all(record.key.as_deref().unwrap_or_default()),
            Part::Value => out.write_all(record.value.as_deref().unwrap_or_default()),
            Part::Offset => write!(out, "{}", record.offset),
            Part::Partition => write!(out, "{}", record.partition),
            Part::Time => write!(out, "{}", time_of(record)),
            Part::Headers => {
                for (number, header) in record.headers.iter().enumerate() {
                    let gap = if number > 0 { "," } else { "" };
                    write!(out, "{gap}{}=", header.key())?;
                    out.write_all(header.value())?;
                }
                Ok(())
            }
        }
    }
}

/// The producer's time, or else that of the append.
fn time_of(record: &ConsumedRecord) -> i64 {
    if record.timestamp_ms != 0 { record.timestamp_ms } else { record.append_time_ms }
}

fn json_of(record: &ConsumedRecord) -> Value {
    let mut object = Map::new();
    object.insert("topic".to_owned(), json!(&*record.topic));
    object.insert("partition".to_owned(), json!(record.partition));
    object.insert("offset".to_owned(), json!(record.offset.0));
    object.insert("append_time_ms".to_owned(), json!(record.append_time_ms));
    object
        .insert("timestamp_ms".to_owned(), json!((record.timestamp_ms != 0).then_some(record.timestamp_ms)));
    insert_bytes(&mut object, "key", record.key.as_deref());
    insert_bytes(&mut object, "value", record.value.as_deref());
    let headers = record.headers.iter().map(|header| {
        let mut object = Map::new();
        object.insert("key".to_owned(), json!(header.key()));
        insert_bytes(&mut object, "value", Some(header.value()));
        Value::Object(object)
    });
    object.insert("headers".to_owned(), headers.collect());
    Value::Object(object)
}

/// Text as text under `name`, other bytes as Base64 under `name` with `_base64` added.
fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => object.insert(name.to_owned(), Value::Null),
        Some(Ok(text)) => object.insert(name.to_owned(), Value::from(text)),
        Some(Err(bytes)) => object.insert(format!("{name}_base64"), Value::from(STANDARD.encode(bytes))),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Header, Offset};

    fn record() -> ConsumedRecord {
        ConsumedRecord {
            topic: "orders".into(),
            partition: 2,
            offset: Offset(7),
            append_time_ms: 1_000,
            timestamp_ms: 0,
            key: Some("k".into()),
            value: Some(vec![0xff, b'\n', b'v'].into()),
            headers: vec![Header::new("a", "1"), Header::new("b", "2")],
        }
    }

    fn printed(format: &str, record: &ConsumedRecord) -> Vec<u8> {
        let mut out = Vec::new();
        format.parse::<RecordFormat>().expect("a format").write(record, &mut out).expect("memory takes all");
        out
    }

    #[test]
    fn values_are_printed_byte_by_byte() {
        assert_eq!(printed("value", &record()), b"\xff\nv\n");
    }

    #[test]
    fn templates_are_filled_in() {
        assert_eq!(printed(r"%p/%o\t%k=%v %% %h", &record()), b"2/7\tk=\xff\nv % a=1,b=2\n");
        assert_eq!(printed("%t", &record()), b"1000\n");
        assert_eq!(printed("%t", &ConsumedRecord { timestamp_ms: 5, ..record() }), b"5\n");
        assert_eq!(printed("[%k][%v]", &ConsumedRecord { key: None, value: None, ..record() }), b"[][]\n");
    }

    #[test]
    fn formats_without_a_meaning_are_refused() {
        let error = |text: &str| text.parse::<RecordFormat>().expect_err("refused");
        assert_eq!(error("values"), Error::Unknown);
        assert_eq!(error("%x"), Error::Placeholder('x'));
        assert_eq!(error("100%"), Error::Unfinished('%'));
        assert_eq!(error(r"%v\q"), Error::Escape('q'));
    }

    #[test]
    fn json_tells_text_from_other_bytes_and_from_nothing() {
        let json: Value = serde_json::from_slice(&printed("json", &record())).expect("JSON");
        let expected = json!({
            "topic": "orders", "partition": 2, "offset": 7, "append_time_ms": 1000, "timestamp_ms": null,
            "key": "k", "value_base64": "/wp2",
            "headers": [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}],
        });
        assert_eq!(json, expected);
        let json: Value =
            serde_json::from_slice(&printed("json", &ConsumedRecord { value: None, ..record() }))
                .expect("JSON");
        assert_eq!(json["value"], Value::Null);
    }
}
