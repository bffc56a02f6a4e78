//! Compressing and decompressing batches.

use std::io::{Read, Write};

use bytes::{Bytes, BytesMut};
use lz4_flex::frame::{FrameDecoder, FrameEncoder, FrameInfo};
use zstd::zstd_safe;

use super::fields::{RecordField, batch};
use super::skim::{Envelope, narrow, walk};
use super::wire::{Cursor, delimited_len, put_delimited, put_varint, varint_len, varint_tag};
use super::{Codec, Error};

/// Zstandard's own default: better compression costs the producer disproportionately more time.
const ZSTD_LEVEL: i32 = 3;
/// First bytes of an LZ4 frame. The legacy format and skippable frames start differently.
const LZ4_MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();

/// Compresses an uncompressed batch of `records` records with `codec`.
///
/// Returns the batch as it is if it would not get smaller and with [`Codec::None`].
///
/// # Errors
///
/// [`Error::BatchTooLarge`] if the batch does not fit a size of 32 bits, [`Error::NotCompressed`] if the
/// compressor fails, which takes a lack of memory.
pub fn compress_batch(batch: &Bytes, records: u32, codec: Codec) -> Result<Bytes, Error> {
    let uncompressed_bytes = u32::try_from(batch.len())
        .map_err(|_| Error::BatchTooLarge { bytes: batch.len(), limit: u32::MAX })?;
    let body = match codec {
        Codec::None => return Ok(batch.clone()),
        Codec::Lz4 => compress_lz4(batch),
        Codec::Zstd => zstd::bulk::compress(batch, ZSTD_LEVEL),
    };
    let body = body.map_err(|error| Error::NotCompressed { codec, reason: error.to_string() })?;
    let numbers = [
        (batch::CODEC, codec as u64),
        (batch::RECORD_COUNT, records.into()),
        (batch::UNCOMPRESSED_BYTES, uncompressed_bytes.into()),
    ];
    let numbers_len: usize = numbers.iter().map(|(_, number)| 1 + varint_len(*number)).sum();
    let len = numbers_len + delimited_len(body.len());
    if len >= batch.len() {
        return Ok(batch.clone());
    }
    let mut compressed = BytesMut::with_capacity(len);
    for (field, number) in numbers {
        put_varint(&mut compressed, varint_tag(field).into());
        put_varint(&mut compressed, number);
    }
    put_delimited(&mut compressed, batch::COMPRESSED_RECORDS, &body);
    debug_assert_eq!(compressed.len(), len);
    Ok(compressed.freeze())
}

/// The uncompressed form of `batch`: the batch itself if it is not compressed.
///
/// Checks that the batch is well-formed and that its size and its number of records are what it says. Memory: the
/// `uncompressed_bytes` that the batch declares, which `uncompressed_bytes_max` bounds, and while it runs at most
/// 13 MiB (three of the largest LZ4 blocks and a window), however the batch was made.
///
/// # Errors
///
/// [`Error::BatchTooLarge`] if the batch declares more than `uncompressed_bytes_max`, and everything that is
/// wrong with the batch; see [`Error`].
pub fn decompress_batch(batch: &Bytes, uncompressed_bytes_max: usize) -> Result<Bytes, Error> {
    Ok(open_batch(batch, uncompressed_bytes_max)?.batch)
}

/// A batch that is uncompressed and well-formed.
pub(super) struct OpenBatch {
    pub(super) batch: Bytes,
    pub(super) records: u32,
}

/// As [`decompress_batch`].
pub(super) fn open_batch(batch: &Bytes, uncompressed_bytes_max: usize) -> Result<OpenBatch, Error> {
    let envelope = check_structure(batch)?;
    envelope.check_fields()?;
    let Some(body) = envelope.compressed_records.filter(|_| envelope.codec != Codec::None) else {
        return Ok(OpenBatch { batch: batch.clone(), records: envelope.records });
    };
    let declared = narrow(envelope.uncompressed_bytes) as usize;
    let declared_records = narrow(envelope.record_count);
    if declared > uncompressed_bytes_max {
        let limit = u32::try_from(uncompressed_bytes_max).unwrap_or(u32::MAX);
        return Err(Error::BatchTooLarge { bytes: declared, limit });
    }
    let batch = Bytes::from(decompress(envelope.codec, body.rest(), declared)?);
    let inner = check_structure(&batch)?;
    if inner.codec != Codec::None {
        return Err(Error::NestedField { field: "codec" });
    }
    if let Some(field) = inner.field_beside_records() {
        return Err(Error::NestedField { field });
    }
    if inner.records != declared_records {
        return Err(Error::CountMismatch { declared: declared_records, records: inner.records });
    }
    Ok(OpenBatch { batch, records: declared_records })
}

/// Checks that `batch` and each of its records are well-formed.
fn check_structure(batch: &[u8]) -> Result<Envelope<'_>, Error> {
    walk(batch, |_, mut record: Cursor<'_>| {
        while RecordField::next(&mut record)?.is_some() {}
        Ok(())
    })
}

/// Decompresses `body` into exactly `declared` bytes.
fn decompress(codec: Codec, body: &[u8], declared: usize) -> Result<Vec<u8>, Error> {
    let bytes = match codec {
        Codec::None => body.to_vec(),
        Codec::Lz4 => decompress_lz4(body, declared)?,
        Codec::Zstd => decompress_zstd(body, declared)?,
    };
    if bytes.len() < declared {
        return Err(Error::SmallerThanDeclared { declared, bytes: bytes.len() });
    }
    Ok(bytes)
}

fn compress_lz4(batch: &[u8]) -> std::io::Result<Vec<u8>> {
    let info = FrameInfo::new().content_size(Some(batch.len() as u64));
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::with_capacity(batch.len() / 2));
    encoder.write_all(batch)?;
    Ok(encoder.finish()?)
}

fn decompress_lz4(body: &[u8], declared: usize) -> Result<Vec<u8>, Error> {
    let corrupt = |reason: String| Error::Corrupt { codec: Codec::Lz4, reason };
    if !body.starts_with(&LZ4_MAGIC) {
        return Err(corrupt("it does not start with an LZ4 frame".into()));
    }
    let mut decoder = FrameDecoder::new(body);
    // One byte more than declared is enough to tell that there is more, and keeps the buffer from growing.
    let mut bytes = Vec::with_capacity(declared + 1);
    let limit = declared as u64 + 1;
    decoder.by_ref().take(limit).read_to_end(&mut bytes).map_err(|error| corrupt(error.to_string()))?;
    if bytes.len() > declared {
        return Err(Error::LargerThanDeclared { declared });
    }
    let after = decoder.into_inner().len();
    if after > 0 {
        return Err(corrupt(format!("{after} bytes follow the frame")));
    }
    Ok(bytes)
}

fn decompress_zstd(body: &[u8], declared: usize) -> Result<Vec<u8>, Error> {
    let corrupt = |reason: String| Error::Corrupt { codec: Codec::Zstd, reason };
    let mut bytes = Vec::with_capacity(declared);
    // Decompressing in one pass needs no window beside the output.
    let outcome = zstd_safe::DCtx::create().decompress(&mut bytes, body);
    match outcome {
        Ok(_) if bytes.len() > declared => Err(Error::LargerThanDeclared { declared }),
        Ok(_) => Ok(bytes),
        Err(code) if is_too_small(code) => Err(Error::LargerThanDeclared { declared }),
        Err(code) => Err(corrupt(zstd_safe::get_error_name(code).to_owned())),
    }
}

/// Whether Zstandard failed because the output did not fit. Its functions return errors as negative numbers.
fn is_too_small(code: zstd_safe::ErrorCode) -> bool {
    code.wrapping_neg() == zstd_safe::zstd_sys::ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall as usize
}
