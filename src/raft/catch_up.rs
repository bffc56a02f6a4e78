//! How much is read at once for followers that lack what is in no leader's memory any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::storage::GroupId;

/// What all groups of a broker share. What one reads is in memory until its follower has it.
const SHARED_BYTES: u64 = 64 << 20;
/// The smallest share: less would be mostly overhead.
const SHARE_BYTES_MIN: u64 = 64 << 10;
/// How long a group that read has a share.
const LASTS: Duration = Duration::from_secs(2);

/// The groups of a broker that read from the disk for a follower. A broker that comes back may lack something of every group:
/// each that read as much as one may alone would take the leader's memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct CatchUp(Arc<Mutex<HashMap<GroupId, Instant>>>);

impl CatchUp {
    /// The bytes that `group` may read now, of which it would like `wanted`.
    pub(super) fn share(&self, group: GroupId, wanted: u64, now: Instant) -> u64 {
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reading.retain(|_, last| now.duration_since(*last) < LASTS);
        reading.insert(group, now);
        wanted.min((SHARED_BYTES / reading.len() as u64).max(SHARE_BYTES_MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_groups_read_what_they_want_and_many_share() {
        const WANTED: u64 = 4 << 20;
        let (catch_up, now) = (CatchUp::default(), Instant::now());
        let share = |number: u32, at| catch_up.share(GroupId::partition(1, number), WANTED, at);
        for number in 0..16 {
            assert_eq!(share(number, now), WANTED);
        }
        assert_eq!(share(0, now), WANTED, "it has one share, however often it reads");
        for number in 16..64 {
            share(number, now);
        }
        assert_eq!(share(5, now), 1 << 20);
        for number in 64..5_000 {
            share(number, now);
        }
        assert_eq!(share(5, now), SHARE_BYTES_MIN);
        assert_eq!(share(5, now + LASTS), WANTED, "the others read no more");
    }
}
