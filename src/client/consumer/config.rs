//! How a consumer behaves.

use crate::client::{CodecSet, Error};
use crate::proto::v1;

/// What to do when the offset to be read is not there any more or not there yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffsetReset {
    /// Tell the error and stop reading the partition.
    #[default]
    Fail,
    /// Go on at the oldest retained record.
    Earliest,
    /// Go on at the end.
    Latest,
}

impl OffsetReset {
    /// The same, for a member of a group.
    pub(in crate::client) fn for_group(self) -> v1::OffsetReset {
        match self {
            OffsetReset::Fail => v1::OffsetReset::Error,
            OffsetReset::Earliest => v1::OffsetReset::Earliest,
            OffsetReset::Latest => v1::OffsetReset::Latest,
        }
    }
}

/// How a consumer behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// Bytes of batches that a broker may send ahead of what is handed out, per broker. The last batch may exceed it.
    /// Default 8 MiB.
    pub credit_bytes: u64,
    /// Codecs that batches may arrive in; a broker decompresses the others. Default all.
    pub accepted_codecs: CodecSet,
    /// What to do about offsets out of range. Default fail.
    pub on_out_of_range: OffsetReset,
    /// Largest batch after decompression that is accepted, in bytes. Default 64 MiB.
    pub uncompressed_bytes_max: usize,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        ConsumerConfig {
            credit_bytes: 8 << 20,
            accepted_codecs: CodecSet::ALL,
            on_out_of_range: OffsetReset::Fail,
            uncompressed_bytes_max: 64 << 20,
        }
    }
}

impl ConsumerConfig {
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.credit_bytes == 0 {
            return Err(Error::InvalidConfig {
                field: "credit_bytes",
                reason: "it must be at least 1".into(),
            });
        }
        Ok(())
    }
}
