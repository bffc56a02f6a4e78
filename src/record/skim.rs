//! Checking a batch as it arrives, once and without allocating.

use std::ops::{ControlFlow, Range};

use super::fields::{BatchField, RecordField};
use super::wire::Cursor;
use super::{Codec, CodecSet, Error, traceparent};

/// An empty record still has a tag and a length in its batch.
const RECORD_BYTES_MIN: u64 = 2;

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
/// Of a compressed batch only the envelope is checked; [`decompress_batch`](super::decompress_batch) checks the
/// rest.
///
/// # Errors
///
/// Everything that is wrong with a batch, naming record, field and limit; see [`Error`]. Of several mistakes, the
/// one that comes first in the bytes is reported.
pub fn skim(batch: &[u8], limits: &Limits) -> Result<Skim, Error> {
    if batch.len() > limits.batch_bytes_max as usize {
        return Err(Error::BatchTooLarge { bytes: batch.len(), limit: limits.batch_bytes_max });
    }
    let mut tally = Tally::default();
    let envelope = walk(batch, |number, record| tally.add(number, record, limits))?;
    envelope.check(limits)?;
    if envelope.codec != Codec::None {
        return Ok(Skim {
            codec: envelope.codec,
            records: narrow(envelope.record_count),
            uncompressed_bytes: narrow(envelope.uncompressed_bytes),
            max_timestamp_ms: 0,
            traceparent: None,
        });
    }
    Ok(Skim {
        codec: Codec::None,
        records: envelope.records,
        uncompressed_bytes: narrow(batch.len() as u64),
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

/// Calls `visit` with the number and the bytes of each record and returns the rest of the batch.
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
    pub(super) record_count: u64,
    pub(super) uncompressed_bytes: u64,
}

impl Envelope<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        self.check_fields()?;
        if !limits.codecs.contains(self.codec) {
            return Err(Error::CodecNotAllowed { codec: self.codec });
        }
        if self.uncompressed_bytes > u64::from(limits.batch_bytes_max) {
            let bytes = usize::try_from(self.uncompressed_bytes).unwrap_or(usize::MAX);
            return Err(Error::BatchTooLarge { bytes, limit: limits.batch_bytes_max });
        }
        Ok(())
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
        let fits = self.uncompressed_bytes / RECORD_BYTES_MIN;
        if self.record_count > fits || u32::try_from(self.uncompressed_bytes).is_err() {
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

/// Narrows a number that has been compared with a limit of 32 bits.
pub(super) fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
