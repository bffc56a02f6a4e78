//! Compressing and decompressing batches.

use std::io::{Read, Write};

use bytes::{Bytes, BytesMut};
use lz4_flex::frame::{FrameDecoder, FrameEncoder, FrameInfo};
use zstd::zstd_safe;

use super::fields::{RecordField, batch};
use super::skim::{Envelope, walk};
use super::wire::{Cursor, delimited_len, put_delimited, put_varint, varint_len, varint_tag};
use super::{Codec, CodecSet, Error};

/// Zstandard's own default: better compression costs the producer disproportionately more time.
const ZSTD_LEVEL: i32 = 3;
/// First bytes of an LZ4 frame. The legacy format and skippable frames start differently.
const LZ4_MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
/// First bytes of a Zstandard frame. Skippable frames start differently.
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// Compresses an uncompressed batch of `records` records with `codec`.
///
/// Returns the batch as it is with [`Codec::None`], and if it would not get smaller, unless `allowed` has no
/// [`Codec::None`]: whoever takes only compressed batches gets one that grew.
///
/// # Errors
///
/// [`Error::BatchTooLarge`] if the batch does not fit a size of 32 bits, [`Error::NotCompressed`] if the
/// compressor fails, which takes a lack of memory.
pub fn compress_batch(batch: &Bytes, records: u32, codec: Codec, allowed: CodecSet) -> Result<Bytes, Error> {
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
    if len >= batch.len() && allowed.contains(Codec::None) {
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
    if u32::try_from(batch.len()).is_err() {
        return Err(Error::BatchTooLarge { bytes: batch.len(), limit: u32::MAX });
    }
    let envelope = check_structure(batch)?;
    envelope.check_fields()?;
    let Some(body) = envelope.compressed_records.filter(|_| envelope.codec != Codec::None) else {
        return Ok(OpenBatch { batch: batch.clone(), records: envelope.records });
    };
    let declared = envelope.uncompressed_bytes as usize;
    if declared > uncompressed_bytes_max {
        let limit = u32::try_from(uncompressed_bytes_max).unwrap_or(u32::MAX);
        return Err(Error::BatchTooLarge { bytes: declared, limit });
    }
    let opened = Bytes::from(decompress(envelope.codec, body.rest(), declared)?);
    let inner = check_structure(&opened)?;
    if inner.codec != Codec::None {
        return Err(Error::NestedField { field: "codec" });
    }
    if let Some(field) = inner.field_beside_records() {
        return Err(Error::NestedField { field });
    }
    if inner.records != envelope.record_count {
        return Err(Error::CountMismatch { declared: envelope.record_count, records: inner.records });
    }
    let records = inner.records;
    Ok(OpenBatch { batch: opened, records })
}

/// Checks that `batch` and each of its records are well-formed.
fn check_structure(batch: &[u8]) -> Result<Envelope<'_>, Error> {
    walk(batch, |_, mut record: Cursor<'_>| {
        while RecordField::next(&mut record)?.is_some() {}
        Ok(())
    })
}

/// Checks that `body` starts as a frame of `codec` does.
pub(super) fn check_frame(codec: Codec, body: &[u8]) -> Result<(), Error> {
    let (magic, what) = match codec {
        Codec::None => return Ok(()),
        Codec::Lz4 => (LZ4_MAGIC, "it does not start with an LZ4 frame"),
        Codec::Zstd => (ZSTD_MAGIC, "it does not start with a Zstandard frame"),
    };
    if body.starts_with(&magic) { Ok(()) } else { Err(Error::Corrupt { codec, reason: what.to_owned() }) }
}

/// Decompresses `body` into exactly `declared` bytes.
fn decompress(codec: Codec, body: &[u8], declared: usize) -> Result<Vec<u8>, Error> {
    check_frame(codec, body)?;
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

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::v1;

    const MAX: usize = 1 << 20;
    const CODECS: [Codec; 2] = [Codec::Lz4, Codec::Zstd];

    fn plain(records: usize) -> Bytes {
        let record = v1::Record { value: Some(Bytes::from_static(&[b'v'; 100])), ..Default::default() };
        v1::RecordBatch { records: vec![record; records], ..Default::default() }.encode_to_vec().into()
    }

    fn compressed(codec: Codec) -> v1::RecordBatch {
        let batch = compress_batch(&plain(50), 50, codec, CodecSet::ALL).unwrap();
        v1::RecordBatch::decode(batch).unwrap()
    }

    fn open(batch: &v1::RecordBatch) -> Result<Bytes, Error> {
        decompress_batch(&batch.encode_to_vec().into(), MAX)
    }

    #[test]
    fn compressing_is_undone() {
        for codec in CODECS {
            let batch = compress_batch(&plain(50), 50, codec, CodecSet::ALL).unwrap();
            assert!(batch.len() < plain(50).len() / 10, "{codec}: {} bytes", batch.len());
            assert_eq!(decompress_batch(&batch, MAX), Ok(plain(50)));
        }
    }

    #[test]
    fn other_ways_to_write_an_lz4_frame_are_read() {
        use lz4_flex::frame::{BlockMode, BlockSize};
        let info = FrameInfo::new().block_size(BlockSize::Max64KB).block_mode(BlockMode::Linked);
        let mut encoder =
            FrameEncoder::with_frame_info(info.content_checksum(true).block_checksums(true), vec![]);
        let batch = plain(5000);
        encoder.write_all(&batch).unwrap();
        let envelope = v1::RecordBatch {
            codec: v1::Codec::Lz4.into(),
            compressed_records: encoder.finish().unwrap().into(),
            record_count: 5000,
            uncompressed_bytes: batch.len() as u32,
            ..Default::default()
        };
        assert_eq!(open(&envelope), Ok(batch));
    }

    #[test]
    fn an_uncompressed_batch_stays_the_same_bytes() {
        let batch = plain(3);
        let same = decompress_batch(&batch, 0).unwrap();
        assert_eq!(same.as_ptr(), batch.as_ptr());
    }

    #[test]
    fn a_batch_that_would_grow_stays_uncompressed() {
        for codec in CODECS {
            let plain = Bytes::from_static(&[0x0a, 0]);
            assert_eq!(compress_batch(&plain, 1, codec, CodecSet::ALL), Ok(plain));
        }
    }

    #[test]
    fn a_batch_that_grows_is_compressed_if_nothing_else_is_allowed() {
        for codec in CODECS {
            let plain = Bytes::from_static(&[0x0a, 0]);
            let batch = compress_batch(&plain, 1, codec, CodecSet::EMPTY.with(codec)).unwrap();
            assert_eq!(v1::RecordBatch::decode(batch.clone()).unwrap().codec, codec.number());
            assert_eq!(decompress_batch(&batch, MAX), Ok(plain));
        }
    }

    #[test]
    fn a_size_that_is_a_lie_is_found_out() {
        for codec in CODECS {
            let batch = compressed(codec);
            let declared = batch.uncompressed_bytes as usize;
            let too_small =
                v1::RecordBatch { uncompressed_bytes: batch.uncompressed_bytes - 1, ..batch.clone() };
            let too_large = v1::RecordBatch { uncompressed_bytes: batch.uncompressed_bytes + 1, ..batch };
            assert_eq!(open(&too_small), Err(Error::LargerThanDeclared { declared: declared - 1 }));
            let smaller = Error::SmallerThanDeclared { declared: declared + 1, bytes: declared };
            assert_eq!(open(&too_large), Err(smaller));
        }
    }

    #[test]
    fn a_bomb_stops_at_the_declared_size() {
        let zeros = vec![0; 64 << 20];
        for (codec, bomb) in [
            (Codec::Lz4, compress_lz4(&zeros).unwrap()),
            (Codec::Zstd, zstd::bulk::compress(&zeros, 3).unwrap()),
        ] {
            let result = decompress(codec, &bomb, 1000);
            assert_eq!(result, Err(Error::LargerThanDeclared { declared: 1000 }), "{codec}");
        }
    }

    #[test]
    fn a_declared_size_beyond_the_limit_is_refused_before_anything_else() {
        let batch = v1::RecordBatch { compressed_records: "junk".into(), ..compressed(Codec::Zstd) };
        let bytes = batch.uncompressed_bytes as usize;
        let refused = decompress_batch(&batch.encode_to_vec().into(), 5000);
        assert_eq!(refused, Err(Error::BatchTooLarge { bytes, limit: 5000 }));
    }

    #[test]
    fn a_record_count_that_is_a_lie_is_found_out() {
        for codec in CODECS {
            let batch = v1::RecordBatch { record_count: 49, ..compressed(codec) };
            assert_eq!(open(&batch), Err(Error::CountMismatch { declared: 49, records: 50 }));
        }
    }

    #[test]
    fn only_records_are_allowed_inside() {
        let inner: Bytes = compressed(Codec::Zstd).encode_to_vec().into();
        for codec in CODECS {
            // Padding makes the nested batch compressible, so that it is nested at all.
            let mut padded = inner.to_vec();
            padded.extend([0x7a, 0xe8, 0x07].into_iter().chain([0; 1000]));
            let nested = compress_batch(&padded.into(), 50, codec, CodecSet::ALL).unwrap();
            assert_eq!(decompress_batch(&nested, MAX), Err(Error::NestedField { field: "codec" }));
        }
    }

    #[test]
    fn damage_names_the_codec() {
        for codec in CODECS {
            let batch = v1::RecordBatch { compressed_records: "not compressed".into(), ..compressed(codec) };
            let error = open(&batch).unwrap_err();
            assert!(matches!(&error, Error::Corrupt { codec: named, .. } if *named == codec), "{error}");
        }
    }

    #[test]
    fn bytes_after_an_lz4_frame_are_refused() {
        let mut batch = compressed(Codec::Lz4);
        let mut body = batch.compressed_records.to_vec();
        body.extend(b"more");
        batch.compressed_records = body.into();
        assert!(matches!(open(&batch), Err(Error::Corrupt { .. })));
    }
}
