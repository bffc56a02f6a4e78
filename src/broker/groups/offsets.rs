//! What a group has committed: commits without a stream, look-ups, resets, and how far behind the group is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::commit::{CommitResult, Committer, OffsetToCommit};
use crate::broker::fetch::Position;
use crate::broker::produce::in_partition;
use crate::broker::{Broker, Error};
use crate::clock::Timestamp;
use crate::cluster::partition_ref::PartitionRef;
use crate::cluster::routing::Route;
use crate::coordination::{Command, Group, Kind, PartitionKey};
use crate::record::Offset;

/// Most groups of a page.
const PAGE_MAX: u32 = 1_000;

/// A partition by names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: u32,
}

/// A member that commits outside of its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberClaim {
    /// Its id.
    pub member_id: String,
    /// Its epoch.
    pub epoch: u64,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: u32,
    /// The offset, what was committed with it, and when. None if nothing is committed.
    pub committed: Option<(Offset, Arc<str>, Timestamp)>,
}

/// Where offsets are to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// To what the position gives. An offset outside of the log is moved to its nearest end.
    Position(Position),
    /// By so many records from what is committed.
    Shift(i64),
}

/// An order to move offsets.
#[derive(Clone, Debug)]
pub struct Reset {
    /// The group.
    pub group: String,
    /// What to move; nothing and no topics: everything that is committed.
    pub partitions: Vec<TopicPartition>,
    /// Every partition of these topics too.
    pub topics: Vec<String>,
    /// Where to.
    pub to: ResetTo,
    /// False: only tell.
    pub execute: bool,
}

/// An offset that is moved.
#[derive(Debug)]
pub struct ResetOffset {
    /// The partition.
    pub at: TopicPartition,
    /// What is committed.
    pub from: Option<Offset>,
    /// What takes its place, or why nothing can.
    pub to: Result<Offset, Error>,
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    /// Name.
    pub name: Arc<str>,
    /// Kind.
    pub kind: Kind,
    /// Members now.
    pub members: usize,
}

/// How far a group is with a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: u32,
    /// The committed offset. For share groups: everything before it is done.
    pub committed: Offset,
    /// What was committed with it.
    pub metadata: Arc<str>,
    /// When it was committed; none for share groups.
    pub committed_at: Option<Timestamp>,
    /// Offset of the oldest retained record.
    pub log_start: Offset,
    /// Offset after the last record.
    pub high_watermark: Offset,
    /// Retained records that the group has not consumed.
    pub lag: u64,
    /// When the first of them was appended.
    pub lag_since: Option<Timestamp>,
    /// Share groups: records that are leased now.
    pub leased: u64,
}

impl Broker {
    /// Groups whose names come after `page_token`, and the token of the next page.
    ///
    /// # Errors
    /// The broker is not ready.
    pub fn list_groups(
        &self,
        page_size: u32,
        page_token: &str,
    ) -> Result<(Vec<GroupListing>, String), Error> {
        let groups = self.groups()?;
        let size = if page_size == 0 { PAGE_MAX } else { page_size.min(PAGE_MAX) } as usize;
        let mut found: BTreeMap<Arc<str>, Kind> = BTreeMap::new();
        for coordinator in groups.coordinators.all() {
            coordinator.read(|state| {
                // One more than fits tells whether there is a further page.
                let of_shard = state.groups_after(page_token).take(size + 1);
                found.extend(of_shard.map(|group| (group.name.clone(), group.kind)));
            });
        }
        let more = found.len() > size;
        let page: Vec<_> = found
            .into_iter()
            .take(size)
            .map(|(name, kind)| GroupListing { members: groups.member_count(&name), name, kind })
            .collect();
        let token = page.last().filter(|_| more).map(|last| last.name.to_string()).unwrap_or_default();
        Ok((page, token))
    }

    /// Deletes a group with its offsets.
    ///
    /// # Errors
    /// There is no such group, it has members, or agreement failed.
    pub async fn delete_group(&self, name: &str) -> Result<(), Error> {
        let groups = self.groups()?;
        let _alone = groups.keep_empty(name).await?;
        let coordinator = groups.coordinators.of(name);
        coordinator.change(Command::DeleteGroup { group: name.into() }).await?;
        groups.forget(name);
        Ok(())
    }

    /// Commits offsets outside of a member's stream.
    ///
    /// # Errors
    /// The group has members and `claim` is none of them; the group is of the other kind; there are too many groups.
    /// What is wrong with one offset is said in its result.
    pub async fn commit_offsets(
        &self,
        group: &str,
        claim: Option<&MemberClaim>,
        offsets: Vec<OffsetToCommit>,
    ) -> Result<Vec<CommitResult>, Error> {
        let received = Instant::now();
        let groups = self.groups()?;
        let committer = match claim {
            Some(claim) => {
                let fenced = |reason: &str| Error::MemberFenced {
                    group: group.to_owned(),
                    reason: format!("member {:?} {reason}", claim.member_id),
                };
                let live = groups.live(group).ok_or_else(|| fenced("is not in the group"))?;
                Committer::Member {
                    live,
                    member: claim.member_id.as_str().into(),
                    session: None,
                    epoch: claim.epoch,
                }
            }
            None => {
                groups.admit(group, Kind::Consumer)?;
                let members = groups.member_count(group);
                if members > 0 {
                    return Err(Error::GroupNotEmpty { group: group.to_owned(), members });
                }
                Committer::Outsider
            }
        };
        let pending = self.begin_commit(group, &committer, offsets, received).await?;
        Ok(pending.outcome().await)
    }

    /// Looks up committed offsets; all of the group's if `partitions` is empty.
    ///
    /// # Errors
    /// There is no such group, or this broker does not coordinate it.
    pub async fn committed_offsets(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<CommittedOffset>, Error> {
        let groups = self.groups()?;
        groups.coordinators.of(group).confirm().await?;
        let names = self.topic_names()?;
        groups.with_group(group, |group| {
            if partitions.is_empty() {
                return standing(group)
                    .filter_map(|(key, committed)| {
                        let topic = names.get(&key.topic)?.topic.name.to_string();
                        Some(CommittedOffset { topic, partition: key.partition, committed: Some(committed) })
                    })
                    .collect();
            }
            let committed = |at: &TopicPartition| {
                let key = self.partition_key(&at.topic, at.partition).ok()?;
                standing_at(group, key)
            };
            let look_up = |at: &TopicPartition| CommittedOffset {
                topic: at.topic.clone(),
                partition: at.partition,
                committed: committed(at),
            };
            partitions.iter().map(look_up).collect()
        })
    }

    /// Moves the committed offsets of a group without members, or tells what would change.
    ///
    /// # Errors
    /// There is no such group, it has members, or agreement failed.
    pub async fn reset_offsets(&self, reset: Reset) -> Result<Vec<ResetOffset>, Error> {
        let groups = self.groups()?;
        let _alone = groups.keep_empty(&reset.group).await?;
        let mut chosen: Vec<TopicPartition> = reset.partitions.clone();
        for topic in &reset.topics {
            let route = self.route(topic)?;
            let all = (0..route.partitions.len() as u32).map(|partition| (topic.clone(), partition));
            chosen.extend(all.map(|(topic, partition)| TopicPartition { topic, partition }));
        }
        if chosen.is_empty() {
            let committed = self.committed_offsets(&reset.group, &[]).await?;
            chosen.extend(
                committed.into_iter().map(|at| TopicPartition { topic: at.topic, partition: at.partition }),
            );
        }
        chosen.sort();
        chosen.dedup();
        let mut moved = Vec::with_capacity(chosen.len());
        let mut offsets = Vec::new();
        for at in chosen {
            let key = self.partition_key(&at.topic, at.partition);
            let from = match &key {
                Ok(key) => {
                    groups.with_group(&reset.group, |group| standing_at(group, *key))?.map(|(at, ..)| at)
                }
                Err(_) => None,
            };
            let to = match &key {
                Ok(_) => self.reset_target(&at, from, reset.to).await,
                Err(error) => Err(error.clone()),
            };
            if let (Ok(key), Ok(to)) = (key, &to) {
                offsets.push((key, *to));
            }
            moved.push(ResetOffset { at, from, to });
        }
        if reset.execute && !offsets.is_empty() {
            let group: Arc<str> = reset.group.as_str().into();
            let at = self.0.clock.now();
            let coordinator = groups.coordinators.of(&group);
            coordinator.change(Command::SetOffsets { group, at, offsets }).await?;
        }
        Ok(moved)
    }

    async fn reset_target(
        &self,
        at: &TopicPartition,
        from: Option<Offset>,
        to: ResetTo,
    ) -> Result<Offset, Error> {
        let route = self.route(&at.topic)?;
        let partition = self.partition(&route, at.partition)?;
        let bounds = partition.fresh_bounds().await;
        let bounds = bounds.map_err(|source| in_partition(&at.topic, at.partition, source))?;
        let offset = match to {
            ResetTo::Position(Position::Earliest) => bounds.log_start,
            ResetTo::Position(Position::Latest) => bounds.high_watermark,
            ResetTo::Position(Position::Offset(offset)) => offset,
            ResetTo::Position(Position::Time(time)) => {
                let found = partition.offset_at(time).await;
                found.map_err(|source| in_partition(&at.topic, at.partition, source))?
            }
            ResetTo::Shift(by) => {
                let from = from.ok_or(Error::InvalidArgument {
                    field: "shift",
                    problem:
                        "nothing is committed that could be shifted; use offset, earliest, latest or time"
                            .to_owned(),
                })?;
                Offset(from.0.saturating_add_signed(by))
            }
        };
        Ok(offset.clamp(bounds.log_start, bounds.high_watermark))
    }

    /// How far `group` is with each of its partitions, by topic and number.
    pub(super) async fn progress_of(&self, group: &str) -> Result<Vec<GroupPartition>, Error> {
        let groups = self.groups()?;
        let names = self.topic_names()?;
        let mut found = groups.with_group(group, |group| {
            let known = |key: PartitionKey| {
                let route = names.get(&key.topic)?;
                Some((route.clone(), route.partitions.get(key.partition as usize)?.clone()))
            };
            standing(group)
                .filter_map(|(key, (committed, metadata, at))| {
                    let (route, partition) = known(key)?;
                    let committed_at = (group.kind == Kind::Consumer).then_some(at);
                    let done = group.shares().get(&key).map_or(0, |progress| progress.done_count());
                    let one = one_partition(&route, key, &partition, committed, done);
                    Some((GroupPartition { metadata, committed_at, ..one }, partition))
                })
                .collect::<Vec<_>>()
        })?;
        found.sort_by(|(a, _), (b, _)| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        let mut described = Vec::with_capacity(found.len());
        for (mut one, partition) in found {
            if one.lag > 0 {
                let first = one.committed.max(one.log_start);
                let since = partition.append_time(first).await;
                one.lag_since = since.map_err(|source| in_partition(&one.topic, one.partition, source))?;
            }
            one.leased = groups.leased(group, self.partition_key(&one.topic, one.partition)?);
            described.push(one);
        }
        Ok(described)
    }

    /// The key under which a partition's offset is kept.
    pub(in crate::broker) fn partition_key(&self, topic: &str, number: u32) -> Result<PartitionKey, Error> {
        let route = self.route(topic)?;
        self.partition(&route, number)?;
        Ok(PartitionKey { topic: route.topic.id, partition: number })
    }

    /// Topics by id.
    pub(super) fn topic_names(&self) -> Result<BTreeMap<crate::metadata::TopicId, Arc<Route>>, Error> {
        let routes = self.running()?.cluster.routing().all();
        Ok(routes.values().map(|route| (route.topic.id, route.clone())).collect())
    }
}

/// What stands for each partition of a group, by key. For share groups: the first offset that is not done.
pub(super) fn standing(
    group: &Group,
) -> impl Iterator<Item = (PartitionKey, (Offset, Arc<str>, Timestamp))> + '_ {
    let committed = group.offsets().iter().map(|(key, at)| (*key, (at.offset, at.metadata.clone(), at.at)));
    let none: Arc<str> = "".into();
    let shared = group
        .shares()
        .iter()
        .map(move |(key, progress)| (*key, (progress.start(), none.clone(), group.last_active)));
    committed.chain(shared)
}

/// What stands for one partition of a group.
pub(super) fn standing_at(group: &Group, key: PartitionKey) -> Option<(Offset, Arc<str>, Timestamp)> {
    if let Some(at) = group.offsets().get(&key) {
        return Some((at.offset, at.metadata.clone(), at.at));
    }
    let progress = group.shares().get(&key)?;
    Some((progress.start(), "".into(), group.last_active))
}

/// What can be told of one partition without looking into its log.
fn one_partition(
    route: &Route,
    key: PartitionKey,
    partition: &PartitionRef,
    committed: Offset,
    done_above: u64,
) -> GroupPartition {
    let bounds = partition.bounds();
    let from = committed.max(bounds.log_start);
    GroupPartition {
        topic: route.topic.name.clone(),
        partition: key.partition,
        committed,
        metadata: "".into(),
        committed_at: None,
        log_start: bounds.log_start,
        high_watermark: bounds.high_watermark,
        lag: bounds.high_watermark.saturating_since(from).saturating_sub(done_above),
        lag_since: None,
        leased: 0,
    }
}
