//! Choosing a partition by key.

/// The partition of `key` among `partitions`: the one that Kafka's default partitioner chooses,
/// `(murmur2(key) & 0x7fff_ffff) % partitions`.
///
/// With zero partitions there is no choice and the answer is 0.
#[must_use]
pub fn partition_for_key(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff).checked_rem(partitions).unwrap_or(0)
}

/// The 32-bit hash `MurmurHash2` with the seed that Kafka uses.
fn murmur2(key: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    // The hash is defined over the low 32 bits of the length.
    #[allow(clippy::cast_possible_truncation, reason = "the definition wraps")]
    let mut hash = SEED ^ key.len() as u32;
    let (words, tail) = key.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        let mut last = [0; 4];
        last[..tail.len()].copy_from_slice(tail);
        hash = (hash ^ u32::from_le_bytes(last)).wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_kafka_does() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn clears_the_sign_before_it_divides() {
        assert_eq!(partition_for_key(b"21", 1000), (-973_932_308i32 & 0x7fff_ffff) as u32 % 1000);
        assert_eq!(partition_for_key(b"abc", 1000), 107);
    }

    #[test]
    fn one_partition_or_none_leaves_no_choice() {
        assert_eq!(partition_for_key(b"any", 1), 0);
        assert_eq!(partition_for_key(b"any", 0), 0);
    }
}
