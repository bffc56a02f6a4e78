//! The one source of chance of a run.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Random numbers from a seed (SplitMix64).
pub(super) struct Chance(Mutex<u64>);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Chance(Mutex::new(seed))
    }

    pub(super) fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(*state)
    }

    /// A number of a range that is not empty.
    pub(super) fn within(&self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// A number from 0 up to and with `most`.
    pub(super) fn up_to(&self, most: usize) -> usize {
        self.within(0..most as u64 + 1) as usize
    }

    pub(super) fn percent(&self, chance: u64) -> bool {
        self.within(0..100) < chance
    }

    pub(super) fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }

    /// One of `items`, which must not be empty.
    pub(super) fn pick<'a, T>(&self, items: &'a [T]) -> &'a T {
        &items[self.up_to(items.len() - 1)]
    }

    /// Some of `items`, each with even chance.
    pub(super) fn some_of<T: Copy>(&self, items: &[T]) -> Vec<T> {
        items.iter().copied().filter(|_| self.percent(50)).collect()
    }
}

/// Spreads a number over all bits.
pub(super) fn mix(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A number that stands for bytes.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
