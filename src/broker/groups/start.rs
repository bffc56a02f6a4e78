//! Where a group begins to read a partition, and what it has missed.

use std::collections::HashMap;
use std::sync::Arc;

use tracing::warn;

use super::live::{Live, SessionId};
use super::member::OffsetReset;
use super::offsets::standing_at;
use super::registry::Coordinated as _;
use crate::broker::produce::in_partition;
use crate::broker::{Broker, Error};
use crate::cluster::coordinator;
use crate::cluster::partition_ref::PartitionRef;
use crate::cluster::routing::Route;
use crate::coordination::{Command, Outcome, PartitionKey};
use crate::partition::{self, view::Bounds};
use crate::record::Offset;

/// A partition that a member is given, found by its key.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) key: PartitionKey,
    pub(super) route: Arc<Route>,
    pub(super) partition: PartitionRef,
}

impl Found {
    /// The group is to go on at an offset that the log does not have.
    pub(super) fn out_of_range(&self, offset: Offset, bounds: Bounds) -> Error {
        let Bounds { log_start, high_watermark } = bounds;
        let source = partition::Error::OffsetOutOfRange { offset, log_start, high_watermark };
        in_partition(&self.route.topic.name, self.key.partition, source)
    }

    /// Says that a member does not read the partition because of that.
    pub(super) fn warn_out_of_range(&self, group: &str, offset: Offset, bounds: Bounds) {
        warn!(
            name: "group.offset_out_of_range",
            group, topic = &*self.route.topic.name, partition = self.key.partition, offset = offset.0,
            log_start = bounds.log_start.0, high_watermark = bounds.high_watermark.0,
            "the group's offset is not in the log; reset it with `streambus group reset`"
        );
    }

    /// Says that the group goes on elsewhere.
    pub(super) fn warn_missed(&self, group: &str, offset: Offset, next: Offset, missed: u64) {
        warn!(
            name: "group.records_missed",
            group, topic = &*self.route.topic.name, partition = self.key.partition, offset = offset.0,
            next_offset = next.0, missed,
            "the group missed records that were deleted before it read them"
        );
    }
}

impl OffsetReset {
    /// Where a group goes on that has no usable offset, if anywhere.
    pub(super) fn target(self, bounds: Bounds) -> Option<Offset> {
        match self {
            OffsetReset::Earliest => Some(bounds.log_start),
            OffsetReset::Latest => Some(bounds.high_watermark),
            OffsetReset::Error => None,
        }
    }
}

/// A member that is given partitions.
pub(super) struct Owner<'a> {
    pub(super) live: &'a Live,
    pub(super) member: &'a str,
    pub(super) session: SessionId,
    /// Its epoch, once it has them.
    pub(super) epoch: u64,
}

impl Owner<'_> {
    fn may_commit(&self, key: PartitionKey) -> bool {
        self.live.may_commit(self.member, Some(self.session), self.epoch, key).is_ok()
    }
}

/// Where a member of a consumer group begins.
pub(super) struct Start {
    pub(super) found: Found,
    /// The first offset to deliver, or why there is none.
    pub(super) offset: Result<Offset, Error>,
    /// What was committed with the offset.
    pub(super) metadata: Arc<str>,
    /// Records between what was committed and the offset, which are gone.
    pub(super) missed: u64,
}

impl Broker {
    /// Finds partitions by their keys. Those that are gone are left out.
    pub(super) fn find(&self, keys: &[PartitionKey]) -> Result<Vec<Found>, Error> {
        let names = self.topic_names()?;
        let find = |key: &PartitionKey| {
            let route = names.get(&key.topic)?.clone();
            let partition = route.partitions.get(key.partition as usize)?.clone();
            Some(Found { key: *key, route, partition })
        };
        Ok(keys.iter().filter_map(find).collect())
    }

    /// How far `group` is in partitions that a member is given.
    ///
    /// A partition without a committed offset gets one at once, where the reset policy says: so what is produced from
    /// now on is not skipped if the member dies before its first commit, and lag is defined. If the policy says nowhere
    /// there is none. The look-up goes through the coordinator's log, behind everything that earlier owners have
    /// committed.
    ///
    /// # Errors
    /// The coordinator failed.
    pub(super) async fn standing(
        &self,
        group: &Arc<str>,
        reset: OffsetReset,
        found: &[Found],
    ) -> Result<HashMap<PartitionKey, Offset>, Error> {
        let groups = self.groups()?;
        let coordinator = groups.coordinators.of(group);
        let known =
            |key| coordinator.read(|state| state.group(group).is_some_and(|g| standing_at(g, key).is_some()));
        let mut offsets = Vec::new();
        for found in found {
            let known_bounds = found.partition.bounds();
            // Without a leader nothing is appended either, so what is known is the end.
            let bounds = found.partition.fresh_bounds().await.unwrap_or(known_bounds);
            match reset.target(bounds) {
                Some(offset) => offsets.push((found.key, offset)),
                // Any offset will do to ask with.
                None if known(found.key) => offsets.push((found.key, bounds.log_start)),
                None => {}
            }
        }
        let command = Command::InitOffsets { group: group.clone(), at: self.0.clock.now(), offsets };
        let Outcome::Offsets(standing) = coordinator.change(command).await? else {
            return Err(Error::Internal("offsets were asked for and something else given"));
        };
        Ok(standing.into_iter().collect())
    }

    /// Where a consumer group begins to read partitions that a member is given.
    ///
    /// # Errors
    /// The coordinator failed. What is wrong with one partition is said in its [`Start::offset`].
    pub(super) async fn starts(
        &self,
        owner: &Owner<'_>,
        reset: OffsetReset,
        found: Vec<Found>,
    ) -> Result<Vec<Start>, Error> {
        let standing = self.standing(&owner.live.name, reset, &found).await?;
        let mut starts = Vec::with_capacity(found.len());
        for found in found {
            let committed = standing.get(&found.key).copied();
            starts.push(self.start(owner, reset, found, committed).await?);
        }
        Ok(starts)
    }

    /// Where to go on in a partition whose next record is gone.
    ///
    /// # Errors
    /// See [`Broker::starts`].
    pub(super) async fn restart(
        &self,
        owner: &Owner<'_>,
        reset: OffsetReset,
        found: Found,
        next: Offset,
    ) -> Result<Start, Error> {
        self.start(owner, reset, found, Some(next)).await
    }

    async fn start(
        &self,
        owner: &Owner<'_>,
        reset: OffsetReset,
        found: Found,
        committed: Option<Offset>,
    ) -> Result<Start, Error> {
        let group = &owner.live.name;
        let mut bounds = found.partition.bounds();
        // What this broker knows may be older than what was committed; only the leader can say that it is not there.
        let fresh = match committed {
            Some(from) if from > bounds.high_watermark => found.partition.fresh_bounds().await.ok(),
            _ => Some(bounds),
        };
        let metadata = self.groups()?.coordinators.of(group).read(|state| {
            let standing = state.group(group).and_then(|group| standing_at(group, found.key));
            standing.map_or_else(|| "".into(), |(_, metadata, _)| metadata)
        });
        let Some(from) = committed else {
            let offset = Err(found.out_of_range(Offset::ZERO, bounds));
            return Ok(Start { found, offset, metadata, missed: 0 });
        };
        let Some(fresh) = fresh else {
            return Ok(Start { found, offset: Ok(from), metadata, missed: 0 });
        };
        bounds = fresh;
        // A log that lost its end, by hand or by a disk, is shorter than what was committed.
        if (bounds.log_start..=bounds.high_watermark).contains(&from) {
            return Ok(Start { found, offset: Ok(from), metadata, missed: 0 });
        }
        let Some(to) = reset.target(bounds) else {
            found.warn_out_of_range(group, from, bounds);
            let offset = Err(found.out_of_range(from, bounds));
            return Ok(Start { found, offset, metadata, missed: 0 });
        };
        let missed = to.saturating_since(from);
        found.warn_missed(group, from, to, missed);
        self.0.metrics.group(group).missed(&found.route.topic.name, missed);
        // Room first, as for every commit: whoever does not own the partition any more must not set back its new owner.
        let slot = self.groups()?.coordinators.of(group).reserve().await?;
        if owner.may_commit(found.key) {
            let offsets = vec![(found.key, to, metadata.clone())];
            let command = Command::CommitOffsets { group: group.clone(), at: self.0.clock.now(), offsets };
            let unknown = Err(coordinator::Error::Raft(crate::raft::Error::OutcomeUnknown));
            slot.submit_in(owner.live.term().into(), command).await.unwrap_or(unknown)?;
        }
        Ok(Start { found, offset: Ok(to), metadata, missed })
    }
}
