//! Why a batch is refused.

use super::{Codec, CodecSet};

/// Why a batch is refused. `record` and `header` count from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are not a protobuf `RecordBatch`.
    #[error("the batch is not a well-formed RecordBatch: {what} at byte {at}")]
    Malformed {
        /// Position in the batch.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// There is no record.
    #[error("the batch has no records")]
    EmptyBatch,
    /// A record's encoded size, header included, exceeds the limit.
    #[error("record {record} of the batch has {bytes} bytes; record_bytes_max is {limit}")]
    RecordTooLarge {
        /// Which record.
        record: u32,
        /// Its size.
        bytes: usize,
        /// The topic's `record_bytes_max`.
        limit: u32,
    },
    /// The batch, before or after compression, exceeds the limit.
    #[error("the batch has {bytes} bytes; batch_bytes_max is {limit}")]
    BatchTooLarge {
        /// Its size.
        bytes: usize,
        /// The topic's `batch_bytes_max`.
        limit: u32,
    },
    /// A record has too many headers.
    #[error("record {record} of the batch has more than {limit} headers")]
    TooManyHeaders {
        /// Which record.
        record: u32,
        /// How many are allowed.
        limit: u32,
    },
    /// A header has no name.
    #[error("header {header} of record {record} has an empty key")]
    HeaderKeyEmpty {
        /// Which record.
        record: u32,
        /// Which header of it.
        header: u32,
    },
    /// A header's name is too long.
    #[error("the key of header {header} of record {record} has {bytes} bytes; at most {limit} are allowed")]
    HeaderKeyTooLong {
        /// Which record.
        record: u32,
        /// Which header of it.
        header: u32,
        /// Size of the name.
        bytes: usize,
        /// The largest size allowed.
        limit: u32,
    },
    /// The codec's number is unknown.
    #[error("field codec: number {number} is not a known codec")]
    UnknownCodec {
        /// The number.
        number: i32,
    },
    /// The topic does not allow the codec.
    #[error("the topic does not allow batches with codec {codec}; it allows: {allowed}")]
    CodecNotAllowed {
        /// The batch's codec.
        codec: Codec,
        /// What the topic allows.
        allowed: CodecSet,
    },
    /// A compressed batch does not say how many records it has.
    #[error("field record_count is missing; it is required with codec {codec}")]
    CountMissing {
        /// The batch's codec.
        codec: Codec,
    },
    /// A compressed batch says that it has more records than fit.
    #[error(
        "field record_count says {records}, which cannot fit into uncompressed_bytes {uncompressed_bytes}"
    )]
    CountImplausible {
        /// What `record_count` says.
        records: u32,
        /// What `uncompressed_bytes` says.
        uncompressed_bytes: u32,
    },
    /// A compressed batch does not say how large it becomes.
    #[error("field uncompressed_bytes is missing; it is required with codec {codec}")]
    UncompressedBytesMissing {
        /// The batch's codec.
        codec: Codec,
    },
    /// A compressed batch has no `compressed_records`.
    #[error("field compressed_records is missing; it is required with codec {codec}")]
    CompressedRecordsMissing {
        /// The batch's codec.
        codec: Codec,
    },
    /// A compressed batch also has records outside of `compressed_records`.
    #[error("field records must be empty with codec {codec}")]
    InlineRecords {
        /// The batch's codec.
        codec: Codec,
    },
    /// An uncompressed batch has a field that belongs to compressed ones.
    #[error("field {field} must be left out without a codec")]
    FieldWithoutCodec {
        /// The field's name.
        field: &'static str,
    },
    /// `compressed_records` cannot be decompressed, or does not even start as it should.
    #[error("field compressed_records is not valid {codec}: {reason}")]
    Corrupt {
        /// The batch's codec.
        codec: Codec,
        /// What the decompressor says.
        reason: String,
    },
    /// `compressed_records` becomes larger than the batch says.
    #[error("field compressed_records decompresses to more than uncompressed_bytes {declared}")]
    LargerThanDeclared {
        /// What `uncompressed_bytes` says.
        declared: usize,
    },
    /// `compressed_records` becomes smaller than the batch says.
    #[error("field compressed_records decompresses to {bytes} bytes; uncompressed_bytes says {declared}")]
    SmallerThanDeclared {
        /// What `uncompressed_bytes` says.
        declared: usize,
        /// What came out.
        bytes: usize,
    },
    /// What comes out of `compressed_records` has more than records.
    #[error("field compressed_records holds field {field}; only records are allowed inside")]
    NestedField {
        /// The field's name.
        field: &'static str,
    },
    /// `compressed_records` has another number of records than the batch says.
    #[error("field compressed_records holds {records} records; record_count says {declared}")]
    CountMismatch {
        /// What `record_count` says.
        declared: u32,
        /// What is inside.
        records: u32,
    },
    /// The compressor failed.
    #[error("cannot compress the batch with {codec}: {reason}")]
    NotCompressed {
        /// The codec.
        codec: Codec,
        /// What the compressor says.
        reason: String,
    },
}

impl Error {
    /// Kept out of line so that the walk over a good batch stays small.
    #[cold]
    #[inline(never)]
    pub(super) fn malformed(at: usize, what: &'static str) -> Error {
        Error::Malformed { at, what }
    }
}
