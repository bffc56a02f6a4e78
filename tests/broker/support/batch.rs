//! Batches as a generated client makes them: with an ordinary protobuf encoder, not with the broker's own code.

use bytes::Bytes;
use prost::Message as _;
use streambus::proto::v1;

/// A record with only a value.
pub fn record(value: impl Into<Bytes>) -> v1::Record {
    v1::Record { value: Some(value.into()), ..v1::Record::default() }
}

/// A record with a key.
pub fn keyed(key: impl Into<Bytes>, value: impl Into<Bytes>) -> v1::Record {
    v1::Record { key: Some(key.into()), ..record(value) }
}

/// An uncompressed batch.
pub fn of(records: impl IntoIterator<Item = v1::Record>) -> Bytes {
    v1::RecordBatch { records: records.into_iter().collect(), ..v1::RecordBatch::default() }
        .encode_to_vec()
        .into()
}

/// An uncompressed batch of records with these values.
pub fn values(values: impl IntoIterator<Item = impl Into<Bytes>>) -> Bytes {
    of(values.into_iter().map(record))
}

/// A batch of `count` records of `bytes` bytes each that do not compress and differ from those of other seeds.
pub fn noise(seed: u64, count: usize, bytes: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    of((0..count).map(|_| {
        let mut value = Vec::with_capacity(bytes + 8);
        while value.len() < bytes {
            // xorshift64: cheap, and good enough not to be compressible.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            value.extend_from_slice(&state.to_le_bytes());
        }
        value.truncate(bytes);
        record(value)
    }))
}

/// The same records in a compressed batch.
pub fn compressed(batch: &Bytes, codec: v1::Codec) -> Bytes {
    let inner = v1::RecordBatch::decode(batch.clone()).expect("a batch");
    let compressed_records = match codec {
        v1::Codec::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            std::io::Write::write_all(&mut encoder, batch).expect("memory");
            encoder.finish().expect("memory")
        }
        v1::Codec::Zstd => zstd::encode_all(&batch[..], 3).expect("memory"),
        v1::Codec::Unspecified => panic!("no codec"),
    };
    v1::RecordBatch {
        codec: codec.into(),
        compressed_records: compressed_records.into(),
        record_count: inner.records.len() as u32,
        uncompressed_bytes: batch.len() as u32,
        records: Vec::new(),
    }
    .encode_to_vec()
    .into()
}

/// The records of an uncompressed batch.
pub fn records(batch: &Bytes) -> Vec<v1::Record> {
    let batch = v1::RecordBatch::decode(batch.clone()).expect("a batch");
    assert_eq!(batch.codec, i32::from(v1::Codec::Unspecified), "the batch is compressed");
    batch.records
}
