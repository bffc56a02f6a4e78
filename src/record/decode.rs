//! Reading batches, for consumers.

use bytes::Bytes;

use super::compression::{OpenBatch, open_batch};
use super::fields::{BatchField, HeaderFields, RecordField};
use super::wire::Cursor;
use super::{Draft, Error};

/// A header of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// INVARIANT: UTF-8.
    key: Bytes,
    value: Bytes,
}

impl Header {
    /// A header. The broker takes keys of 1 to 255 bytes.
    #[must_use]
    pub fn new(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Header { key: Bytes::from(key.into()), value: value.into() }
    }

    /// The name.
    #[must_use]
    pub fn key(&self) -> &str {
        std::str::from_utf8(&self.key).expect("a header's key is checked or made from text")
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &Bytes {
        &self.value
    }
}

/// A record. Keys and values that come from a batch are slices of it and keep it in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Chooses the partition and names what the record is about.
    pub key: Option<Bytes>,
    /// The payload. `None` is distinct from empty: it marks the deletion of its key.
    pub value: Option<Bytes>,
    /// Headers in the producer's order; keys may repeat.
    pub headers: Vec<Header>,
    /// When the event happened by the producer's clock, in milliseconds since the Unix epoch; zero if it gave none.
    pub timestamp_ms: i64,
}

impl Record {
    /// The value of the first header named `key`.
    #[must_use]
    pub fn header(&self, key: &str) -> Option<&Bytes> {
        self.headers.iter().find(|header| header.key == key.as_bytes()).map(Header::value)
    }

    /// The record as [`BatchBuilder`](super::BatchBuilder) takes it.
    pub fn draft(&self) -> Draft<'_, impl Iterator<Item = (&str, &[u8])> + Clone> {
        Draft {
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: self.headers.iter().map(|header| (header.key(), &header.value[..])),
            timestamp_ms: self.timestamp_ms,
        }
    }
}

/// The records of `batch`, in order. Of a compressed batch at most `uncompressed_bytes_max` bytes are
/// decompressed.
///
/// All of the batch is checked here, so the iteration cannot fail.
///
/// # Errors
///
/// As [`decompress_batch`](super::decompress_batch).
pub fn decode(batch: &Bytes, uncompressed_bytes_max: usize) -> Result<Records, Error> {
    let OpenBatch { batch, records } = open_batch(batch, uncompressed_bytes_max)?;
    Ok(Records { batch, at: 0, left: records })
}

/// The records of a batch; see [`decode`].
#[derive(Clone, Debug)]
pub struct Records {
    /// INVARIANT: an uncompressed, well-formed batch with exactly `left` records from byte `at` on.
    batch: Bytes,
    at: usize,
    left: u32,
}

impl Iterator for Records {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        self.left = self.left.checked_sub(1)?;
        Some(self.read().expect("the batch was checked when it was opened"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Records {}

impl Records {
    fn read(&mut self) -> Result<Record, Error> {
        let mut cursor = Cursor::starting_at(&self.batch, self.at);
        loop {
            match BatchField::next(&mut cursor)? {
                Some(BatchField::Record(record)) => {
                    self.at = cursor.at();
                    return read_record(&self.batch, record);
                }
                Some(_) => {}
                None => return Err(Error::EmptyBatch),
            }
        }
    }
}

fn read_record(batch: &Bytes, mut cursor: Cursor<'_>) -> Result<Record, Error> {
    let mut record = Record::default();
    while let Some(field) = RecordField::next(&mut cursor)? {
        match field {
            RecordField::Key(key) => record.key = Some(batch.slice(key.range())),
            RecordField::Value(value) => record.value = Some(batch.slice(value.range())),
            RecordField::Header(header) => record.headers.push(read_header(batch, header)),
            RecordField::TimestampMs(time) => record.timestamp_ms = time,
        }
    }
    Ok(record)
}

fn read_header(batch: &Bytes, header: HeaderFields<'_>) -> Header {
    Header { key: batch.slice(header.key.range()), value: batch.slice(header.value.range()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchBuilder, Codec};

    fn record() -> Record {
        Record {
            key: Some("key".into()),
            value: Some("value".into()),
            headers: vec![Header::new("a", "1"), Header::new("b", "2"), Header::new("a", "3")],
            timestamp_ms: -1,
        }
    }

    fn batch() -> Bytes {
        let mut builder = BatchBuilder::default();
        builder.push(&record().draft());
        builder.finish(Codec::None).unwrap()
    }

    #[test]
    fn yields_slices_of_the_batch() {
        let batch = batch();
        let record = decode(&batch, 0).unwrap().next().unwrap();
        let range = batch.as_ptr_range();
        for part in [record.key.unwrap(), record.value.unwrap(), record.headers[1].value().clone()] {
            assert!(range.contains(&part.as_ptr()));
        }
    }

    #[test]
    fn finds_the_first_header_of_a_name() {
        let record = decode(&batch(), 0).unwrap().next().unwrap();
        assert_eq!(record.header("a").map(|value| &value[..]), Some(&b"1"[..]));
        assert_eq!(record.header("c"), None);
        assert_eq!(record.headers[2].key(), "a");
    }

    #[test]
    fn one_bad_record_refuses_the_whole_batch() {
        let mut bytes = batch().to_vec();
        bytes.extend([0x0a, 1, 0x80]);
        assert!(matches!(decode(&bytes.into(), 0), Err(Error::Malformed { .. })));
    }

    #[test]
    fn unknown_fields_between_records_are_skipped() {
        let mut bytes = batch().to_vec();
        bytes.extend([0x78, 1, 0x0a, 0, 0x78, 1]);
        let records: Vec<_> = decode(&bytes.into(), 0).unwrap().collect();
        assert_eq!(records, [record(), Record::default()]);
    }
}
