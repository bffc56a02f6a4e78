//! The fields of `RecordBatch`, `Record` and `Header` on the wire.
//!
//! One reading of them serves the broker's check and the client's decoding, so that both accept the same batches.
//!
//! | message | field | number | wire type |
//! |---|---|---|---|
//! | `RecordBatch` | `records` | 1 | length-delimited |
//! | | `codec` | 2 | varint |
//! | | `compressed_records` | 3 | length-delimited |
//! | | `record_count` | 4 | varint |
//! | | `uncompressed_bytes` | 5 | varint |
//! | `Record` | `key` | 1 | length-delimited |
//! | | `value` | 2 | length-delimited |
//! | | `headers` | 3 | length-delimited |
//! | | `timestamp_ms` | 4 | varint |
//! | `Header` | `key` | 1 | length-delimited, UTF-8 |
//! | | `value` | 2 | length-delimited |

use super::Error;
use super::wire::{Cursor, bytes_tag, varint_tag};

pub(super) mod batch {
    pub(in crate::record) const RECORDS: u8 = 1;
    pub(in crate::record) const CODEC: u8 = 2;
    pub(in crate::record) const COMPRESSED_RECORDS: u8 = 3;
    pub(in crate::record) const RECORD_COUNT: u8 = 4;
    pub(in crate::record) const UNCOMPRESSED_BYTES: u8 = 5;
}

pub(super) mod record {
    pub(in crate::record) const KEY: u8 = 1;
    pub(in crate::record) const VALUE: u8 = 2;
    pub(in crate::record) const HEADERS: u8 = 3;
    pub(in crate::record) const TIMESTAMP_MS: u8 = 4;
}

pub(super) mod header {
    pub(in crate::record) const KEY: u8 = 1;
    pub(in crate::record) const VALUE: u8 = 2;
}

/// A field of a `RecordBatch`.
pub(super) enum BatchField<'a> {
    Record(Cursor<'a>),
    Codec(i32),
    CompressedRecords(Cursor<'a>),
    RecordCount(u32),
    UncompressedBytes(u32),
}

impl<'a> BatchField<'a> {
    /// The next known field of the batch at `cursor`, or `None` at its end.
    #[inline(always)]
    pub(super) fn next(cursor: &mut Cursor<'a>) -> Result<Option<Self>, Error> {
        const RECORDS: u64 = bytes_tag(batch::RECORDS) as u64;
        const CODEC: u64 = varint_tag(batch::CODEC) as u64;
        const COMPRESSED_RECORDS: u64 = bytes_tag(batch::COMPRESSED_RECORDS) as u64;
        const RECORD_COUNT: u64 = varint_tag(batch::RECORD_COUNT) as u64;
        const UNCOMPRESSED_BYTES: u64 = varint_tag(batch::UNCOMPRESSED_BYTES) as u64;
        while !cursor.is_empty() {
            let tag_at = cursor.at();
            return Ok(Some(match cursor.varint()? {
                RECORDS => BatchField::Record(cursor.delimited()?),
                CODEC => BatchField::Codec(low_32(cursor.varint()?).cast_signed()),
                COMPRESSED_RECORDS => BatchField::CompressedRecords(cursor.delimited()?),
                RECORD_COUNT => BatchField::RecordCount(low_32(cursor.varint()?)),
                UNCOMPRESSED_BYTES => BatchField::UncompressedBytes(low_32(cursor.varint()?)),
                tag => {
                    cursor.skip(tag, tag_at, batch::UNCOMPRESSED_BYTES.into())?;
                    continue;
                }
            }));
        }
        Ok(None)
    }
}

/// A field of a `Record`.
pub(super) enum RecordField<'a> {
    Key(Cursor<'a>),
    Value(Cursor<'a>),
    Header(HeaderFields<'a>),
    TimestampMs(i64),
}

impl<'a> RecordField<'a> {
    /// The next known field of the record at `cursor`, or `None` at its end.
    #[inline(always)]
    pub(super) fn next(cursor: &mut Cursor<'a>) -> Result<Option<Self>, Error> {
        const KEY: u64 = bytes_tag(record::KEY) as u64;
        const VALUE: u64 = bytes_tag(record::VALUE) as u64;
        const HEADERS: u64 = bytes_tag(record::HEADERS) as u64;
        const TIMESTAMP_MS: u64 = varint_tag(record::TIMESTAMP_MS) as u64;
        while !cursor.is_empty() {
            let tag_at = cursor.at();
            return Ok(Some(match cursor.varint()? {
                KEY => RecordField::Key(cursor.delimited()?),
                VALUE => RecordField::Value(cursor.delimited()?),
                HEADERS => RecordField::Header(HeaderFields::read(cursor.delimited()?)?),
                TIMESTAMP_MS => RecordField::TimestampMs(cursor.varint()?.cast_signed()),
                tag => {
                    cursor.skip(tag, tag_at, record::TIMESTAMP_MS.into())?;
                    continue;
                }
            }));
        }
        Ok(None)
    }
}

/// A `Header`. Absent fields are empty.
#[derive(Clone, Copy)]
pub(super) struct HeaderFields<'a> {
    /// INVARIANT: UTF-8.
    pub(super) key: Cursor<'a>,
    pub(super) value: Cursor<'a>,
}

impl<'a> HeaderFields<'a> {
    #[inline(always)]
    fn read(cursor: Cursor<'a>) -> Result<Self, Error> {
        match cursor.short_pair(header::KEY, header::VALUE) {
            Some((key, value)) => Ok(HeaderFields { key: utf8(key)?, value }),
            None => Self::read_any(cursor),
        }
    }

    #[inline(never)]
    fn read_any(mut cursor: Cursor<'a>) -> Result<Self, Error> {
        const KEY: u64 = bytes_tag(header::KEY) as u64;
        const VALUE: u64 = bytes_tag(header::VALUE) as u64;
        let mut fields = HeaderFields { key: Cursor::new(&[]), value: Cursor::new(&[]) };
        while !cursor.is_empty() {
            let tag_at = cursor.at();
            match cursor.varint()? {
                KEY => fields.key = utf8(cursor.delimited()?)?,
                VALUE => fields.value = cursor.delimited()?,
                tag => cursor.skip(tag, tag_at, header::VALUE.into())?,
            }
        }
        Ok(fields)
    }
}

#[inline(always)]
fn utf8(text: Cursor<'_>) -> Result<Cursor<'_>, Error> {
    // Nearly every key is a few ASCII bytes, for which the general check costs more than this one.
    if !text.rest().is_ascii() && std::str::from_utf8(text.rest()).is_err() {
        return Err(Error::malformed(text.at(), "header key is not UTF-8"));
    }
    Ok(text)
}

/// Protobuf drops the high bits of a number that is too large for its field.
#[allow(clippy::cast_possible_truncation, reason = "the wire format truncates")]
fn low_32(number: u64) -> u32 {
    number as u32
}
