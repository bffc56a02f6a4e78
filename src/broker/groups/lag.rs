//! How far behind groups are, in records and in time, as metrics show it.
//!
//! Records are counted when they are asked for. The age of the oldest unread record needs the time of its append. For
//! records that are still in memory that is looked up at once; for older ones [`Ages`] remembers it, and a task looks
//! up anew what has moved since.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Groups;
use super::offsets::standing;
use crate::broker::{Broker, Error};
use crate::clock::Timestamp;
use crate::cluster::partition_ref::PartitionRef;
use crate::coordination::{Kind, PartitionKey};
use crate::record::Offset;
use crate::telemetry::{GroupLag, GroupLevels};

/// Append times of the first unread records that are not in memory.
#[derive(Debug, Default)]
pub(super) struct Ages(Mutex<Known>);

/// The record and its append time, by group and partition.
type Known = HashMap<(Arc<str>, PartitionKey), (Offset, Timestamp)>;

/// A partition of a group that has unread records.
struct Behind {
    group: Arc<str>,
    key: PartitionKey,
    partition: PartitionRef,
    first: Offset,
}

impl Ages {
    fn of(&self, group: &Arc<str>, key: PartitionKey) -> Option<(Offset, Timestamp)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(group.clone(), key)).copied()
    }
}

impl Broker {
    /// What metrics show of groups. One broker shows each group: the one that leads its shard.
    pub(in crate::broker) fn group_levels(&self) -> Option<GroupLevels> {
        let groups = self.groups().ok()?;
        let names = self.topic_names().ok()?;
        let now = self.0.clock.now();
        let mut levels = GroupLevels { members: groups.members() as u64, ..GroupLevels::default() };
        for coordinator in groups.coordinators.all().iter().filter(|shard| shard.leading().is_some()) {
            coordinator.read(|state| {
                for group in state.groups() {
                    levels.groups += 1;
                    let mut leased = 0;
                    for (key, (committed, ..)) in standing(group) {
                        let Some(route) = names.get(&key.topic) else { continue };
                        let Some(partition) = route.partitions.get(key.partition as usize) else {
                            continue;
                        };
                        let bounds = partition.bounds();
                        let first = committed.max(bounds.log_start);
                        let done = group.shares().get(&key).map_or(0, |progress| progress.done_count());
                        let messages = bounds.high_watermark.saturating_since(first).saturating_sub(done);
                        let seconds = if messages == 0 {
                            0.0
                        } else {
                            let since = groups.appended(&group.name, key, partition, first);
                            since.map_or(0, |since| now.millis_since(since)) as f64 / 1000.0
                        };
                        leased += groups.leased(&group.name, key);
                        let (group, topic) = (group.name.clone(), route.topic.name.clone());
                        levels.lags.push(GroupLag {
                            group,
                            topic,
                            partition: key.partition,
                            messages,
                            seconds,
                        });
                    }
                    if group.kind == Kind::Share {
                        levels.leased.push((group.name.clone(), leased));
                    }
                }
            });
        }
        Some(levels)
    }

    /// Looks up the append times that have become unknown, and forgets those that nobody asks for any more.
    ///
    /// # Errors
    /// The broker stops.
    pub(super) async fn refresh_ages(&self) -> Result<(), Error> {
        let groups = self.groups()?;
        let mut kept = HashMap::new();
        for behind in self.behind()? {
            let Behind { group, key, partition, first } = behind;
            if partition.append_time_in_memory(first).is_some() {
                continue;
            }
            let known = groups.ages.of(&group, key).filter(|(offset, _)| *offset == first);
            let found = match known {
                Some((_, at)) => Some(at),
                // A partition that cannot be read says so elsewhere; what was known of it stays.
                None => partition.append_time(first).await.unwrap_or_default(),
            };
            if let Some(at) = found {
                kept.insert((group, key), (first, at));
            }
        }
        *groups.ages.0.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        Ok(())
    }

    fn behind(&self) -> Result<Vec<Behind>, Error> {
        let groups = self.groups()?;
        let names = self.topic_names()?;
        let mut found = Vec::new();
        for coordinator in groups.coordinators.all().iter().filter(|shard| shard.leading().is_some()) {
            coordinator.read(|state| {
                for group in state.groups() {
                    for (key, (committed, ..)) in standing(group) {
                        let Some(route) = names.get(&key.topic) else { continue };
                        let Some(partition) = route.partitions.get(key.partition as usize) else {
                            continue;
                        };
                        let bounds = partition.bounds();
                        let first = committed.max(bounds.log_start);
                        if first < bounds.high_watermark {
                            let (group, partition) = (group.name.clone(), partition.clone());
                            found.push(Behind { group, key, partition, first });
                        }
                    }
                }
            });
        }
        Ok(found)
    }
}

impl Groups {
    /// When the first unread record was appended. If it has moved since it was last looked up, its predecessor's time
    /// stands in for it for a moment.
    fn appended(
        &self,
        group: &Arc<str>,
        key: PartitionKey,
        partition: &PartitionRef,
        first: Offset,
    ) -> Option<Timestamp> {
        let in_memory = partition.append_time_in_memory(first);
        in_memory.or_else(|| self.ages.of(group, key).map(|(_, at)| at))
    }
}
