//! What is too old or too much is trimmed.

use std::time::Duration;

use super::{Error, Partition, blocking};
use crate::clock::Timestamp;
use crate::record::Offset;

/// How much a partition keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Records are kept at least this long after their append; none is without limit.
    pub time: Option<Duration>,
    /// Older batches go while this many bytes remain without them; none is without limit.
    pub bytes: Option<u64>,
}

impl Partition {
    /// Trims what the policy does not keep at the time `now`, and gives the log start. Whole log entries go at once.
    /// With nothing to trim, frees disk space that earlier trims, also those of a client, have left behind.
    ///
    /// # Errors
    /// Agreement or the store failed.
    pub async fn retain(&self, policy: Policy, now: Timestamp) -> Result<Offset, Error> {
        let bounds = self.bounds();
        let by_time = match policy.time {
            Some(time) => self.offset_at(expiry(now, time)).await?,
            None => bounds.log_start,
        };
        let by_size = match policy.bytes {
            Some(limit) => self.first_within(limit).await?,
            None => bounds.log_start,
        };
        let before = by_time.max(by_size);
        if before > bounds.log_start {
            return self.trim(before).await;
        }
        self.free_trimmed().await?;
        Ok(bounds.log_start)
    }

    /// Frees the disk space of what was trimmed: by another replica while it led, or by this one, if that could not be
    /// done at once.
    ///
    /// # Errors
    /// The replica or the store failed.
    pub async fn free_trimmed(&self) -> Result<(), Error> {
        self.free().await?;
        self.reclaim().await
    }

    /// Frees the disk space that a purge could not free at once.
    async fn reclaim(&self) -> Result<(), Error> {
        let reader = self.0.reader.clone();
        if !reader.log.has_purged() {
            return Ok(());
        }
        blocking(&self.0.env.store, move || Ok(reader.log.reclaim()?)).await
    }

    /// Where the newest entries begin that hold `limit` bytes or just more.
    async fn first_within(&self, limit: u64) -> Result<Offset, Error> {
        let bounds = self.bounds();
        let end = self.view().bytes_end();
        if self.view().size_bytes() <= limit {
            return Ok(bounds.log_start);
        }
        let reader = self.0.reader.clone();
        reader.rows_arrived().await?;
        blocking(&self.0.env.store, move || {
            // INVARIANT: from `first` on there are at least `limit` bytes, from `too_late` on there are fewer.
            let (mut first, mut next, mut too_late) =
                (bounds.log_start, bounds.log_start, bounds.high_watermark);
            while next < too_late {
                let middle = Offset(next.0 + (too_late.0 - next.0) / 2);
                let Some(entry) = reader.entry_at(middle)? else { break };
                if end - entry.bytes_before >= limit {
                    first = first.max(entry.base);
                    next = entry.end;
                } else {
                    too_late = entry.base;
                }
            }
            Ok(first)
        })
        .await
    }
}

fn expiry(now: Timestamp, time: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(i64::try_from(time.as_millis()).unwrap_or(i64::MAX)))
}
