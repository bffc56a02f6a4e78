//! Building batches, for producers.

use bytes::{BufMut, Bytes, BytesMut};

use super::compression::compress_batch;
use super::fields::{batch, header, record};
use super::wire::{delimited_len, put_delimited, put_delimiter, put_varint, varint_len, varint_tag};
use super::{Codec, CodecSet, Error};

/// A record that is about to be encoded; everything is borrowed. `H` yields the headers' names and values in
/// order, and the same ones each time it is cloned.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a, H> {
    /// Chooses the partition and names what the record is about.
    pub key: Option<&'a [u8]>,
    /// The payload. `None` is distinct from empty: it marks the deletion of its key.
    pub value: Option<&'a [u8]>,
    /// Names and values.
    pub headers: H,
    /// When the event happened, in milliseconds since the Unix epoch; zero for unknown.
    pub timestamp_ms: i64,
}

impl<'a, H> Draft<'a, H>
where
    H: Iterator<Item = (&'a str, &'a [u8])> + Clone,
{
    /// Length of the encoded record, which is what `record_bytes_max` limits.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let bytes = |field: Option<&[u8]>| field.map_or(0, |bytes| delimited_len(bytes.len()));
        let headers: usize =
            self.headers.clone().map(|(key, value)| delimited_len(header_len(key, value))).sum();
        let timestamp = match self.timestamp_ms {
            0 => 0,
            time => 1 + varint_len(time.cast_unsigned()),
        };
        bytes(self.key) + bytes(self.value) + headers + timestamp
    }

    fn encode(&self, buf: &mut BytesMut) {
        if let Some(key) = self.key {
            put_delimited(buf, record::KEY, key);
        }
        if let Some(value) = self.value {
            put_delimited(buf, record::VALUE, value);
        }
        for (key, value) in self.headers.clone() {
            put_delimiter(buf, record::HEADERS, header_len(key, value));
            put_unless_empty(buf, header::KEY, key.as_bytes());
            put_unless_empty(buf, header::VALUE, value);
        }
        if self.timestamp_ms != 0 {
            buf.put_u8(varint_tag(record::TIMESTAMP_MS));
            put_varint(buf, self.timestamp_ms.cast_unsigned());
        }
    }
}

/// Encodes records into one growing buffer.
///
/// It knows no limits: ask [`would_be_len`](Self::would_be_len) before each record, and begin the next batch when
/// it exceeds the topic's `batch_bytes_max`.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    buf: BytesMut,
    records: u32,
    capacity: usize,
}

impl BatchBuilder {
    /// A builder that makes room for `capacity` bytes at each batch's first record.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        BatchBuilder { capacity, ..BatchBuilder::default() }
    }

    /// Number of records so far.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Whether there is no record yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Length of the batch so far, in bytes, before compression.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Length that the batch would have with `draft`, in bytes, before compression.
    #[must_use]
    pub fn would_be_len<'a, H>(&self, draft: &Draft<'a, H>) -> usize
    where
        H: Iterator<Item = (&'a str, &'a [u8])> + Clone,
    {
        self.len() + delimited_len(draft.encoded_len())
    }

    /// Adds a record.
    pub fn push<'a, H>(&mut self, draft: &Draft<'a, H>)
    where
        H: Iterator<Item = (&'a str, &'a [u8])> + Clone,
    {
        let len = draft.encoded_len();
        let room = if self.is_empty() { self.capacity } else { 0 };
        self.buf.reserve(delimited_len(len).max(room));
        put_delimiter(&mut self.buf, batch::RECORDS, len);
        let start = self.buf.len();
        draft.encode(&mut self.buf);
        debug_assert_eq!(self.buf.len() - start, len);
        self.records += 1;
    }

    /// The batch, compressed with `codec` if that makes it smaller. Leaves the builder empty for the next batch.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyBatch`] without records; otherwise as [`compress_batch`].
    pub fn finish(&mut self, codec: Codec) -> Result<Bytes, Error> {
        self.finish_for(codec, CodecSet::ALL)
    }

    /// As [`finish`](Self::finish), for a topic that takes batches in these codecs: without [`Codec::None`] among them
    /// the batch is compressed even if that makes it larger.
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish).
    pub fn finish_for(&mut self, codec: Codec, allowed: CodecSet) -> Result<Bytes, Error> {
        if self.is_empty() {
            return Err(Error::EmptyBatch);
        }
        let records = std::mem::take(&mut self.records);
        compress_batch(&self.buf.split().freeze(), records, codec, allowed)
    }
}

fn header_len(key: &str, value: &[u8]) -> usize {
    let field = |bytes: &[u8]| if bytes.is_empty() { 0 } else { delimited_len(bytes.len()) };
    field(key.as_bytes()) + field(value)
}

fn put_unless_empty(buf: &mut BytesMut, field: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_delimited(buf, field, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Record, decode};

    fn draft(value: &[u8]) -> Draft<'_, std::iter::Empty<(&str, &[u8])>> {
        Draft { key: None, value: Some(value), headers: std::iter::empty(), timestamp_ms: 0 }
    }

    #[test]
    fn knows_its_size_beforehand() {
        let mut builder = BatchBuilder::default();
        for len in [0, 1, 123, 124, 125, 126, 127, 128, 16_383, 16_384] {
            let value = vec![b'v'; len];
            let would_be = builder.would_be_len(&draft(&value));
            builder.push(&draft(&value));
            assert_eq!(builder.len(), would_be, "after a value of {len} bytes");
        }
        assert_eq!(builder.records(), 10);
    }

    #[test]
    fn is_empty_again_after_a_batch() {
        let mut builder = BatchBuilder::with_capacity(100);
        builder.push(&draft(b"first"));
        builder.finish(Codec::None).unwrap();
        assert_eq!((builder.len(), builder.records()), (0, 0));
        assert_eq!(builder.finish(Codec::None), Err(Error::EmptyBatch));

        builder.push(&draft(b"second"));
        let records: Vec<_> = decode(&builder.finish(Codec::None).unwrap(), 100).unwrap().collect();
        assert_eq!(records, [Record { value: Some("second".into()), ..Record::default() }]);
    }

    #[test]
    fn absent_and_empty_fields_differ() {
        let mut builder = BatchBuilder::default();
        builder.push(&Draft { key: None, value: None, headers: std::iter::empty(), timestamp_ms: 0 });
        builder.push(&Draft { key: Some(b""), ..draft(b"") });
        assert_eq!(builder.finish(Codec::None).unwrap()[..], [0x0a, 0, 0x0a, 4, 0x0a, 0, 0x12, 0]);
    }
}
