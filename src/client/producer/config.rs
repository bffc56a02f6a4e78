//! How a producer behaves.

use std::time::Duration;

use crate::client::{Codec, Error};

/// How a producer behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerConfig {
    /// How long a batch that is not full waits for more records. Zero sends at once what is there, and batches only
    /// what arrives while earlier batches fill the window. Default 5 ms.
    pub linger: Duration,
    /// A batch is full at this size, before compression, or at the topic's `batch_bytes_max` if that is less. A
    /// single record may be larger. Default 128 KiB.
    pub batch_bytes: usize,
    /// A batch is also full with this many records; 1 turns batching off. Default unlimited.
    pub max_batch_records: u32,
    /// Bytes of records that may be buffered or unacknowledged; `send` waits beyond it. Default 64 MiB.
    pub buffer_bytes: usize,
    /// Batches that may be unacknowledged per broker. Default 1,024.
    pub max_in_flight: usize,
    /// How batches are compressed, on the thread that fills them. Default not at all.
    pub compression: Codec,
    /// Whether the broker recognises repeated batches, so that retries neither duplicate nor reorder. Without it
    /// a retry after a lost answer may do both. Default true.
    pub idempotent: bool,
    /// How long after it was taken a record may remain undelivered, all retries included. Default 2 min.
    pub delivery_timeout: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        ProducerConfig {
            linger: Duration::from_millis(5),
            batch_bytes: 128 << 10,
            max_batch_records: u32::MAX,
            buffer_bytes: 64 << 20,
            max_in_flight: 1_024,
            compression: Codec::None,
            idempotent: true,
            delivery_timeout: Duration::from_secs(120),
        }
    }
}

impl ProducerConfig {
    pub(super) fn check(&self) -> Result<(), Error> {
        let positive = [
            ("batch_bytes", self.batch_bytes),
            ("max_batch_records", self.max_batch_records as usize),
            ("buffer_bytes", self.buffer_bytes),
            ("max_in_flight", self.max_in_flight),
        ];
        if let Some((field, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::InvalidConfig { field, reason: "it must be at least 1".into() });
        }
        if self.delivery_timeout <= self.linger {
            return Err(Error::InvalidConfig {
                field: "delivery_timeout",
                reason: format!("{:?} is not longer than linger, {:?}", self.delivery_timeout, self.linger),
            });
        }
        Ok(())
    }
}
