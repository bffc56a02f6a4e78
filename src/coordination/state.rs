//! A shard's state and the commands that change it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use super::share::{Progress, ShareUpdate};
use super::{Error, PartitionKey, validate_group_name, validate_metadata};
use crate::clock::Timestamp;
use crate::metadata::TopicId;
use crate::record::Offset;

/// How a group shares the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Each partition is read by one member, which commits how far it is.
    Consumer,
    /// Records are leased to members one by one, which acknowledge each.
    Share,
}

impl Kind {
    /// What groups of the kind are called.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Consumer => "consumer",
            Kind::Share => "share",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a group is with a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The next record to read.
    pub offset: Offset,
    /// What the application keeps with it.
    pub metadata: Arc<str>,
    /// When it was committed, by the leader's clock.
    pub at: Timestamp,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: Kind,
    /// When something was last done to it, by the leader's clock. Never moves back.
    pub last_active: Timestamp,
    pub(super) offsets: BTreeMap<PartitionKey, Committed>,
    pub(super) shares: BTreeMap<PartitionKey, Progress>,
}

impl Group {
    /// What a consumer group has committed. Empty for share groups.
    pub fn offsets(&self) -> &BTreeMap<PartitionKey, Committed> {
        &self.offsets
    }

    /// How far a share group is. Empty for consumer groups.
    pub fn shares(&self) -> &BTreeMap<PartitionKey, Progress> {
        &self.shares
    }

    fn touch(&mut self, at: Timestamp) {
        self.last_active = self.last_active.max(at);
    }

    /// What stands for a partition: the committed offset, or where the progress starts.
    fn position(&self, key: &PartitionKey) -> Option<Offset> {
        match self.kind {
            Kind::Consumer => self.offsets.get(key).map(|committed| committed.offset),
            Kind::Share => self.shares.get(key).map(Progress::start),
        }
    }

    fn set(&mut self, key: PartitionKey, offset: Offset, at: Timestamp) {
        match self.kind {
            Kind::Consumer => {
                self.offsets.insert(key, Committed { offset, metadata: Arc::default(), at });
            }
            Kind::Share => {
                self.shares.insert(key, Progress::starting_at(offset));
            }
        }
    }

    /// The topics that something is kept for.
    fn topics(&self) -> BTreeSet<TopicId> {
        self.offsets.keys().chain(self.shares.keys()).map(|key| key.topic).collect()
    }

    fn forget(&mut self, topic: TopicId) {
        let all = PartitionKey { topic, partition: 0 }..=PartitionKey { topic, partition: u32::MAX };
        let offsets: Vec<_> = self.offsets.range(all.clone()).map(|(key, _)| *key).collect();
        let shares: Vec<_> = self.shares.range(all).map(|(key, _)| *key).collect();
        offsets.iter().for_each(|key| drop(self.offsets.remove(key)));
        shares.iter().for_each(|key| drop(self.shares.remove(key)));
    }
}

/// A change of the state. `at` is the leader's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Creates a group. Done if it exists with that kind, which is then active now.
    CreateGroup {
        /// Its name.
        group: Arc<str>,
        /// Its kind.
        kind: Kind,
        /// Now.
        at: Timestamp,
    },
    /// Commits offsets, with their metadata. Creates a consumer group if there is none of the name.
    CommitOffsets {
        /// The group.
        group: Arc<str>,
        /// Now.
        at: Timestamp,
        /// The next record to read, and what to keep with it.
        offsets: Vec<(PartitionKey, Offset, Arc<str>)>,
    },
    /// Says where a group of either kind begins in partitions that it has not begun. Gives [`Outcome::Offsets`].
    InitOffsets {
        /// The group.
        group: Arc<str>,
        /// Now.
        at: Timestamp,
        /// Where to begin.
        offsets: Vec<(PartitionKey, Offset)>,
    },
    /// Moves a share group on. Partitions that it has not begun are left out.
    UpdateShares {
        /// The group.
        group: Arc<str>,
        /// Now.
        at: Timestamp,
        /// What changes, in order.
        updates: Vec<(PartitionKey, Vec<ShareUpdate>)>,
    },
    /// Replaces what is known of partitions by a new beginning.
    SetOffsets {
        /// The group, of either kind.
        group: Arc<str>,
        /// Now.
        at: Timestamp,
        /// Where to begin.
        offsets: Vec<(PartitionKey, Offset)>,
    },
    /// Notes that the group is active, or was until now.
    Touch {
        /// The group.
        group: Arc<str>,
        /// Now.
        at: Timestamp,
    },
    /// Forgets partitions of a group.
    DeleteOffsets {
        /// The group.
        group: Arc<str>,
        /// The partitions. Nothing for those that are not known.
        partitions: Vec<PartitionKey>,
    },
    /// Deletes a group with all that it has committed.
    DeleteGroup {
        /// The group.
        group: Arc<str>,
    },
    /// Forgets a topic in all groups.
    ForgetTopic {
        /// The topic.
        topic: TopicId,
    },
}

/// What an applied command gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing but the change itself.
    Done,
    /// What stands now for the partitions of the command, in its order.
    Offsets(Vec<(PartitionKey, Offset)>),
}

/// The state of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub(super) groups: BTreeMap<Arc<str>, Group>,
}

impl State {
    /// Groups by name.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// Groups whose names come after `name`, by name.
    pub fn groups_after(&self, name: &str) -> impl Iterator<Item = &Group> {
        self.groups.range::<str, _>((Bound::Excluded(name), Bound::Unbounded)).map(|(_, group)| group)
    }

    /// The group of a name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name)
    }

    /// How many groups there are.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there is no group.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The topics that some group has something of. Looks at all offsets.
    pub fn topics(&self) -> BTreeSet<TopicId> {
        self.groups.values().flat_map(Group::topics).collect()
    }

    /// Changes the state as `command` says. The cost follows the size of the command, but for
    /// [`Command::ForgetTopic`], which looks at every group.
    ///
    /// # Errors
    /// The command does not fit the state, which is then unchanged.
    pub fn apply(&mut self, command: Command) -> Result<Outcome, Error> {
        match command {
            Command::CreateGroup { group, kind, at } => self.ensure(&group, kind, at).map(|_| Outcome::Done),
            Command::CommitOffsets { group, at, offsets } => {
                offsets.iter().try_for_each(|(_, _, metadata)| validate_metadata(metadata))?;
                let group = self.ensure(&group, Kind::Consumer, at)?;
                for (key, offset, metadata) in offsets {
                    group.offsets.insert(key, Committed { offset, metadata, at });
                }
                Ok(Outcome::Done)
            }
            Command::InitOffsets { group, at, offsets } => {
                let group = self.active(&group, at)?;
                let stands = offsets.into_iter().map(|(key, offset)| {
                    let present = group.position(&key);
                    if present.is_none() {
                        group.set(key, offset, at);
                    }
                    (key, present.unwrap_or(offset))
                });
                Ok(Outcome::Offsets(stands.collect()))
            }
            Command::UpdateShares { group, at, updates } => self.update_shares(&group, at, &updates),
            Command::SetOffsets { group, at, offsets } => {
                let group = self.active(&group, at)?;
                offsets.into_iter().for_each(|(key, offset)| group.set(key, offset, at));
                Ok(Outcome::Done)
            }
            Command::Touch { group, at } => self.active(&group, at).map(|_| Outcome::Done),
            Command::DeleteOffsets { group, partitions } => {
                let group = self.known(&group)?;
                for key in partitions {
                    group.offsets.remove(&key);
                    group.shares.remove(&key);
                }
                Ok(Outcome::Done)
            }
            Command::DeleteGroup { group } => match self.groups.remove(&group) {
                Some(_) => Ok(Outcome::Done),
                None => Err(Error::UnknownGroup(group.to_string())),
            },
            Command::ForgetTopic { topic } => {
                self.groups.values_mut().for_each(|group| group.forget(topic));
                Ok(Outcome::Done)
            }
        }
    }

    fn update_shares(
        &mut self,
        group: &Arc<str>,
        at: Timestamp,
        updates: &[(PartitionKey, Vec<ShareUpdate>)],
    ) -> Result<Outcome, Error> {
        updates.iter().flat_map(|(_, updates)| updates).try_for_each(ShareUpdate::check)?;
        let known = self.known(group)?;
        require(known, Kind::Share)?;
        known.touch(at);
        for (key, updates) in updates {
            if let Some(progress) = known.shares.get_mut(key) {
                updates.iter().for_each(|update| progress.update(*update));
            }
        }
        Ok(Outcome::Done)
    }

    fn known(&mut self, name: &Arc<str>) -> Result<&mut Group, Error> {
        self.groups.get_mut(name).ok_or_else(|| Error::UnknownGroup(name.to_string()))
    }

    fn active(&mut self, name: &Arc<str>, at: Timestamp) -> Result<&mut Group, Error> {
        let group = self.known(name)?;
        group.touch(at);
        Ok(group)
    }

    /// The group of a name and kind, made if there is none.
    fn ensure(&mut self, name: &Arc<str>, kind: Kind, at: Timestamp) -> Result<&mut Group, Error> {
        if !self.groups.contains_key(name) {
            validate_group_name(name)?;
        }
        let group = self.groups.entry(name.clone()).or_insert_with(|| Group {
            name: name.clone(),
            kind,
            last_active: at,
            offsets: BTreeMap::new(),
            shares: BTreeMap::new(),
        });
        require(group, kind)?;
        group.touch(at);
        Ok(group)
    }
}

fn require(group: &Group, kind: Kind) -> Result<(), Error> {
    if group.kind == kind {
        return Ok(());
    }
    Err(Error::KindMismatch { group: group.name.to_string(), kind: group.kind })
}
