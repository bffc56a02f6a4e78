//! What records are filled with.

use bytes::{Bytes, BytesMut};
use rand::RngCore as _;

/// Larger than what compressors look back at, and small enough to stay in the cache.
const POOL_BYTES: usize = 1 << 20;

/// Values that do not compress, neither each alone nor many together, and cost nothing to make: pieces of one pool of
/// random bytes.
#[derive(Clone, Debug)]
pub(super) struct Payload {
    pool: Bytes,
    record_bytes: usize,
    at: usize,
}

impl Payload {
    /// Values of `record_bytes` each.
    pub(super) fn new(record_bytes: usize) -> Payload {
        let mut pool = BytesMut::zeroed(POOL_BYTES.max(2 * record_bytes));
        rand::rng().fill_bytes(&mut pool);
        Payload { pool: pool.freeze(), record_bytes, at: 0 }
    }

    /// The next value.
    pub(super) fn next(&mut self) -> Bytes {
        if self.at + self.record_bytes > self.pool.len() {
            self.at = 0;
        }
        let value = self.pool.slice(self.at..self.at + self.record_bytes);
        self.at += self.record_bytes;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_size_asked_for_and_follow_each_other_through_the_pool() {
        for record_bytes in [1, 1000, POOL_BYTES, 3 * POOL_BYTES] {
            let mut payload = Payload::new(record_bytes);
            let values: Vec<_> = (0..1_100).map(|_| payload.next()).collect();
            assert!(values.iter().all(|value| value.len() == record_bytes));
            assert_ne!(values[0].as_ptr(), values[1].as_ptr());
        }
    }
}
