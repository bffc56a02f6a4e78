//! Checking a batch as it arrives, once and without allocating.

use std::ops::{ControlFlow, Range};

use super::compression::check_frame;
use super::fields::{BatchField, RecordField};
use super::wire::Cursor;
use super::{Codec, CodecSet, Error, traceparent};

/// An empty record still has a tag and a length in its batch.
const RECORD_BYTES_MIN: u32 = 2;

/// What a topic allows. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest encoded record: key, value, headers and their lengths. Not checked inside compressed batches.
    pub record_bytes_max: u32,
    /// Largest batch, both as it is sent and before compression.
    pub batch_bytes_max: u32,
    /// Most headers of a record. Not checked inside compressed batches.
    pub headers_max: u32,
    /// Longest header key. Not checked inside compressed batches.
    pub header_key_bytes_max: u32,
    /// Codecs that batches may use; [`Codec::None`] stands for uncompressed ones.
    pub codecs: CodecSet,
}

/// A topic's defaults: records of 1 MiB in batches of 4 MiB, 128 headers with keys of 255 bytes, every codec.
impl Default for Limits {
    fn default() -> Self {
        Limits {
            record_bytes_max: 1 << 20,
            batch_bytes_max: 4 << 20,
            headers_max: 128,
            header_key_bytes_max: 255,
            codecs: CodecSet::ALL,
        }
    }
}

/// What one look at a batch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skim {
    /// How the records are compressed.
    pub codec: Codec,
    /// Number of records, at least 1. Of a compressed batch it is what the producer says.
    pub records: u32,
    /// Size before compression, in bytes. Of a compressed batch it is what the producer says.
    pub uncompressed_bytes: u32,
    /// The largest record timestamp, in milliseconds since the Unix epoch. Zero if no record has one and for
    /// compressed batches.
    pub max_timestamp_ms: i64,
    /// Where in the batch the value of the first sampled `traceparent` header lies. `None` means that no record
    /// has one, or that the batch is compressed.
    pub traceparent: Option<Range<usize>>,
}

/// Checks that `batch` is a `RecordBatch` within `limits` and tells what is in it.
///
/// Of a compressed batch only the envelope and the first bytes of the frame in it are checked;
/// [`decompress_batch`](super::decompress_batch) checks the rest.
///
/// # Errors
///
/// Everything that is wrong with a batch, naming record, field and limit; see [`Error`]. Of several mistakes, the
/// one that comes first in the bytes is reported.
pub fn skim(batch: &[u8], limits: &Limits) -> Result<Skim, Error> {
    let limit = limits.batch_bytes_max;
    let Some(batch_bytes) = u32::try_from(batch.len()).ok().filter(|bytes| *bytes <= limit) else {
        return Err(Error::BatchTooLarge { bytes: batch.len(), limit });
    };
    let mut tally = Tally::default();
    let envelope = walk(batch, |number, record| tally.add(number, record, limits))?;
    envelope.check(limits)?;
    if envelope.codec != Codec::None {
        return Ok(Skim {
            codec: envelope.codec,
            records: envelope.record_count,
            uncompressed_bytes: envelope.uncompressed_bytes,
            max_timestamp_ms: 0,
            traceparent: None,
        });
    }
    Ok(Skim {
        codec: Codec::None,
        records: envelope.records,
        uncompressed_bytes: batch_bytes,
        max_timestamp_ms: tally.max_timestamp_ms.unwrap_or(0),
        traceparent: tally.traceparent,
    })
}

/// Calls `visit` with the number (from 0) and the value of each sampled `traceparent` header of `batch`, until it
/// breaks or the batch ends. A record with several gets several calls.
///
/// Compressed batches have none. A batch that [`skim`] has not accepted is read up to its first mistake.
pub fn for_each_traceparent<F>(batch: &[u8], mut visit: F)
where
    F: FnMut(u32, &[u8]) -> ControlFlow<()>,
{
    let mut cursor = Cursor::new(batch);
    let mut number = 0;
    while let Ok(Some(field)) = BatchField::next(&mut cursor) {
        let BatchField::Record(mut record) = field else { continue };
        while let Ok(Some(field)) = RecordField::next(&mut record) {
            let RecordField::Header(header) = field else { continue };
            let sampled =
                header.key.rest() == traceparent::HEADER && traceparent::is_sampled(header.value.rest());
            if sampled && visit(number, header.value.rest()).is_break() {
                return;
            }
        }
        number += 1;
    }
}

/// Calls `visit` with the number and the bytes of each record and returns the rest of the batch. The batch must
/// have at most `u32::MAX` bytes, so that the number of records has 32 bits.
#[inline(always)]
pub(super) fn walk<'a, F>(batch: &'a [u8], mut visit: F) -> Result<Envelope<'a>, Error>
where
    F: FnMut(u32, Cursor<'a>) -> Result<(), Error>,
{
    let mut envelope = Envelope::default();
    let mut cursor = Cursor::new(batch);
    while let Some(field) = BatchField::next(&mut cursor)? {
        match field {
            BatchField::Record(record) => {
                visit(envelope.records, record)?;
                envelope.records += 1;
            }
            BatchField::Codec(number) => envelope.codec = Codec::try_from(number)?,
            BatchField::CompressedRecords(bytes) => envelope.compressed_records = Some(bytes),
            BatchField::RecordCount(count) => envelope.record_count = count,
            BatchField::UncompressedBytes(bytes) => envelope.uncompressed_bytes = bytes,
        }
    }
    Ok(envelope)
}

/// What a batch says beside its records.
#[derive(Default)]
pub(super) struct Envelope<'a> {
    pub(super) codec: Codec,
    /// Number of records outside of `compressed_records`.
    pub(super) records: u32,
    pub(super) compressed_records: Option<Cursor<'a>>,
    pub(super) record_count: u32,
    pub(super) uncompressed_bytes: u32,
}

impl Envelope<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        self.check_fields()?;
        if !limits.codecs.contains(self.codec) {
            return Err(Error::CodecNotAllowed { codec: self.codec, allowed: limits.codecs });
        }
        if self.uncompressed_bytes > limits.batch_bytes_max {
            let (bytes, limit) = (self.uncompressed_bytes as usize, limits.batch_bytes_max);
            return Err(Error::BatchTooLarge { bytes, limit });
        }
        self.compressed_records.map_or(Ok(()), |body| check_frame(self.codec, body.rest()))
    }

    /// Checks that the fields fit together, whatever the limits.
    pub(super) fn check_fields(&self) -> Result<(), Error> {
        if self.codec == Codec::None { self.check_uncompressed() } else { self.check_compressed() }
    }

    fn check_uncompressed(&self) -> Result<(), Error> {
        if let Some(field) = self.field_beside_records() {
            return Err(Error::FieldWithoutCodec { field });
        }
        if self.records == 0 {
            return Err(Error::EmptyBatch);
        }
        Ok(())
    }

    fn check_compressed(&self) -> Result<(), Error> {
        let codec = self.codec;
        if self.records > 0 {
            return Err(Error::InlineRecords { codec });
        }
        if self.compressed_records.is_none_or(|bytes| bytes.is_empty()) {
            return Err(Error::CompressedRecordsMissing { codec });
        }
        if self.record_count == 0 {
            return Err(Error::CountMissing { codec });
        }
        if self.uncompressed_bytes == 0 {
            return Err(Error::UncompressedBytesMissing { codec });
        }
        if self.record_count > self.uncompressed_bytes / RECORD_BYTES_MIN {
            let (records, uncompressed_bytes) = (self.record_count, self.uncompressed_bytes);
            return Err(Error::CountImplausible { records, uncompressed_bytes });
        }
        Ok(())
    }

    /// A field that only compressed batches have, apart from the codec.
    pub(super) fn field_beside_records(&self) -> Option<&'static str> {
        match self {
            _ if self.compressed_records.is_some_and(|bytes| !bytes.is_empty()) => Some("compressed_records"),
            _ if self.record_count != 0 => Some("record_count"),
            _ if self.uncompressed_bytes != 0 => Some("uncompressed_bytes"),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Tally {
    max_timestamp_ms: Option<i64>,
    traceparent: Option<Range<usize>>,
}

impl Tally {
    #[inline(always)]
    fn add(&mut self, number: u32, mut record: Cursor<'_>, limits: &Limits) -> Result<(), Error> {
        if record.len() > limits.record_bytes_max as usize {
            let (bytes, limit) = (record.len(), limits.record_bytes_max);
            return Err(Error::RecordTooLarge { record: number, bytes, limit });
        }
        let mut headers = 0;
        let mut timestamp_ms = 0;
        while let Some(field) = RecordField::next(&mut record)? {
            match field {
                RecordField::Header(header) => {
                    check_header(number, headers, header.key.len(), limits)?;
                    headers += 1;
                    if self.traceparent.is_none()
                        && header.key.rest() == traceparent::HEADER
                        && traceparent::is_sampled(header.value.rest())
                    {
                        self.traceparent = Some(header.value.range());
                    }
                }
                RecordField::TimestampMs(time) => timestamp_ms = time,
                RecordField::Key(_) | RecordField::Value(_) => {}
            }
        }
        // Zero means that the producer gave none.
        if timestamp_ms != 0 {
            self.max_timestamp_ms = self.max_timestamp_ms.max(Some(timestamp_ms));
        }
        Ok(())
    }
}

#[inline(always)]
fn check_header(record: u32, header: u32, key_bytes: usize, limits: &Limits) -> Result<(), Error> {
    if header >= limits.headers_max {
        return Err(Error::TooManyHeaders { record, limit: limits.headers_max });
    }
    if key_bytes == 0 {
        return Err(Error::HeaderKeyEmpty { record, header });
    }
    if key_bytes > limits.header_key_bytes_max as usize {
        let limit = limits.header_key_bytes_max;
        return Err(Error::HeaderKeyTooLong { record, header, bytes: key_bytes, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::v1;

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    fn header(key: &str, value: &'static str) -> v1::Header {
        v1::Header { key: key.into(), value: value.into() }
    }

    fn record(headers: Vec<v1::Header>) -> v1::Record {
        v1::Record { value: Some("value".into()), headers, ..Default::default() }
    }

    fn encode(records: Vec<v1::Record>) -> Vec<u8> {
        v1::RecordBatch { records, ..Default::default() }.encode_to_vec()
    }

    fn compressed() -> v1::RecordBatch {
        v1::RecordBatch {
            codec: v1::Codec::Zstd.into(),
            compressed_records: b"\x28\xb5\x2f\xfdanything"[..].into(),
            record_count: 10,
            uncompressed_bytes: 20,
            ..Default::default()
        }
    }

    fn skim_default(batch: &[u8]) -> Result<Skim, Error> {
        skim(batch, &Limits::default())
    }

    fn traceparents(batch: &[u8]) -> Vec<u32> {
        let mut numbers = Vec::new();
        for_each_traceparent(batch, |number, _| {
            numbers.push(number);
            ControlFlow::Continue(())
        });
        numbers
    }

    #[test]
    fn refuses_a_batch_without_records() {
        assert_eq!(skim_default(b""), Err(Error::EmptyBatch));
    }

    #[test]
    fn accepts_a_record_without_any_field() {
        assert_eq!(skim_default(&[0x0a, 0]).map(|skim| skim.records), Ok(1));
    }

    #[test]
    fn holds_the_size_limits_exactly() {
        let batch = encode(vec![record(vec![]), record(vec![header("k", "v")])]);
        let exact = Limits { record_bytes_max: 15, batch_bytes_max: 26, ..Limits::default() };
        assert_eq!(batch.len(), 26);
        assert!(skim(&batch, &exact).is_ok());

        let record_limit = Limits { record_bytes_max: 14, ..exact };
        assert_eq!(
            skim(&batch, &record_limit),
            Err(Error::RecordTooLarge { record: 1, bytes: 15, limit: 14 })
        );
        let batch_limit = Limits { batch_bytes_max: 25, ..exact };
        assert_eq!(skim(&batch, &batch_limit), Err(Error::BatchTooLarge { bytes: 26, limit: 25 }));
    }

    #[test]
    fn holds_the_header_limits_exactly() {
        let limits = Limits { headers_max: 2, header_key_bytes_max: 3, ..Limits::default() };
        let with = |keys: &[&str]| {
            let headers = keys.iter().map(|key| header(key, "v")).collect();
            skim(&encode(vec![record(vec![]), record(headers)]), &limits).map(|skim| skim.records)
        };
        assert_eq!(with(&["abc", "a"]), Ok(2));
        assert_eq!(with(&["a", "b", "c"]), Err(Error::TooManyHeaders { record: 1, limit: 2 }));
        let too_long = Error::HeaderKeyTooLong { record: 1, header: 1, bytes: 4, limit: 3 };
        assert_eq!(with(&["a", "abcd"]), Err(too_long));
        assert_eq!(with(&["a", ""]), Err(Error::HeaderKeyEmpty { record: 1, header: 1 }));
    }

    #[test]
    fn says_where_a_batch_is_malformed() {
        for (batch, at, what) in [
            (&[0x0a, 5, 0x0a, 1][..], 1, "length exceeds what is left"),
            (&[0x0a, 2, 0x0a, 1], 3, "length exceeds what is left"),
            (&[0x0a, 1, 0x80], 2, "number cut short"),
            (&[0x0a, 0, 0x08, 1], 2, "wrong wire type for the field"),
            (&[0x0a, 2, 0x25, 1], 2, "wrong wire type for the field"),
            (&[0x0a, 0, 0x00, 1], 2, "field number out of range"),
            (&[0x0a, 0, 0x7b, 0x7c], 2, "groups are not allowed"),
            (&[0x0a, 0, 0x7f], 2, "unknown wire type"),
            (&[0x0a, 0, 0x7d, 0, 0, 0], 3, "field cut short"),
            (&[0x0a, 5, 0x1a, 3, 0x0a, 1, 0xff], 6, "header key is not UTF-8"),
        ] {
            assert_eq!(skim_default(batch), Err(Error::Malformed { at, what }), "{batch:x?}");
        }
    }

    #[test]
    fn skips_well_formed_unknown_fields() {
        let unknown = [0x78, 0x96, 1, 0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7a, 1, 9, 0x7d, 1, 2, 3, 4];
        let mut batch = vec![0x0a, unknown.len() as u8];
        batch.extend(unknown);
        batch.extend(unknown);
        assert_eq!(skim_default(&batch).map(|skim| skim.records), Ok(1));
    }

    #[test]
    fn a_repeated_timestamp_counts_once_with_its_last_value() {
        let batch = [0x0a, 4, 0x20, 9, 0x20, 5, 0x0a, 2, 0x20, 3];
        assert_eq!(skim_default(&batch).map(|skim| skim.max_timestamp_ms), Ok(5));
    }

    #[test]
    fn a_time_before_1970_is_later_than_none() {
        let at = |timestamp_ms| v1::Record { timestamp_ms, ..Default::default() };
        let skim = skim_default(&encode(vec![at(0), at(-5), at(-9)])).unwrap();
        assert_eq!(skim.max_timestamp_ms, -5);
    }

    #[test]
    fn finds_sampled_trace_contexts() {
        let batch = encode(vec![
            record(vec![header("traceparent", UNSAMPLED)]),
            record(vec![header("a", SAMPLED), header("traceparent", SAMPLED)]),
            record(vec![header("traceparent", SAMPLED)]),
        ]);
        let found = skim_default(&batch).unwrap().traceparent.unwrap();
        assert_eq!(&batch[found.clone()], SAMPLED.as_bytes());
        assert!(found.end < batch.len() - SAMPLED.len(), "the first one is reported");
        assert_eq!(traceparents(&batch), [1, 2]);

        let unsampled = encode(vec![record(vec![header("traceparent", UNSAMPLED)])]);
        assert_eq!(skim_default(&unsampled).unwrap().traceparent, None);
    }

    #[test]
    fn stops_collecting_trace_contexts_when_told() {
        let batch = encode(vec![record(vec![header("traceparent", SAMPLED)]); 5]);
        let mut calls = 0;
        for_each_traceparent(&batch, |_, _| {
            calls += 1;
            if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(calls, 2);
    }

    #[test]
    fn takes_a_compressed_batch_at_its_word() {
        let skim = skim_default(&compressed().encode_to_vec()).unwrap();
        assert_eq!((skim.codec, skim.records, skim.uncompressed_bytes), (Codec::Zstd, 10, 20));
    }

    #[test]
    fn refuses_a_compressed_batch_with_a_bad_envelope() {
        let codec = Codec::Zstd;
        let whole = compressed;
        for (batch, error) in [
            (v1::RecordBatch { record_count: 0, ..whole() }, Error::CountMissing { codec }),
            (
                v1::RecordBatch { record_count: 11, ..whole() },
                Error::CountImplausible { records: 11, uncompressed_bytes: 20 },
            ),
            (v1::RecordBatch { uncompressed_bytes: 0, ..whole() }, Error::UncompressedBytesMissing { codec }),
            (
                v1::RecordBatch { uncompressed_bytes: 1001, ..whole() },
                Error::BatchTooLarge { bytes: 1001, limit: 1000 },
            ),
            (
                v1::RecordBatch { compressed_records: "".into(), ..whole() },
                Error::CompressedRecordsMissing { codec },
            ),
            (v1::RecordBatch { records: vec![record(vec![])], ..whole() }, Error::InlineRecords { codec }),
            (v1::RecordBatch { codec: 9, ..whole() }, Error::UnknownCodec { number: 9 }),
        ] {
            let limits = Limits { batch_bytes_max: 1000, ..Limits::default() };
            assert_eq!(skim(&batch.encode_to_vec(), &limits), Err(error));
        }
    }

    #[test]
    fn refuses_what_does_not_start_as_a_frame_of_its_codec() {
        let zstd: &[u8] = b"\x28\xb5\x2f\xfd";
        let lz4: &[u8] = b"\x04\x22\x4d\x18";
        let skippable: &[u8] = b"\x50\x2a\x4d\x18";
        for (codec, good, bad) in [
            (v1::Codec::Zstd, zstd, [lz4, skippable, &zstd[..3], b"garbage"]),
            (v1::Codec::Lz4, lz4, [zstd, skippable, &lz4[..3], b"garbage"]),
        ] {
            let batch = |body: &[u8]| v1::RecordBatch {
                codec: codec.into(),
                compressed_records: body.to_vec().into(),
                ..compressed()
            };
            assert!(skim_default(&batch(good).encode_to_vec()).is_ok());
            for body in bad {
                let refused = skim_default(&batch(body).encode_to_vec());
                assert!(matches!(refused, Err(Error::Corrupt { .. })), "{codec:?} {body:?}: {refused:?}");
            }
        }
    }

    #[test]
    fn refuses_fields_of_compressed_batches_in_others() {
        let batch = v1::RecordBatch { codec: 0, records: vec![record(vec![])], ..compressed() };
        for (batch, field) in [
            (v1::RecordBatch { ..batch.clone() }, "compressed_records"),
            (v1::RecordBatch { compressed_records: "".into(), ..batch.clone() }, "record_count"),
            (
                v1::RecordBatch { compressed_records: "".into(), record_count: 0, ..batch },
                "uncompressed_bytes",
            ),
        ] {
            assert_eq!(skim_default(&batch.encode_to_vec()), Err(Error::FieldWithoutCodec { field }));
        }
    }

    #[test]
    fn refuses_codecs_that_the_topic_does_not_allow() {
        let only_lz4 = Limits { codecs: CodecSet::EMPTY.with(Codec::Lz4), ..Limits::default() };
        let refused = |codec| Err(Error::CodecNotAllowed { codec, allowed: only_lz4.codecs });
        assert_eq!(skim(&compressed().encode_to_vec(), &only_lz4), refused(Codec::Zstd));
        assert_eq!(skim(&encode(vec![record(vec![])]), &only_lz4), refused(Codec::None));
    }

    #[test]
    fn error_messages_name_the_facts() {
        let error = Error::RecordTooLarge { record: 3, bytes: 2_000_000, limit: 1_048_576 };
        assert_eq!(error.to_string(), "record 3 of the batch has 2000000 bytes; record_bytes_max is 1048576");
    }
}
