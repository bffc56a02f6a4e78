//! Looking at consumer groups and managing their offsets.

use std::time::{Duration, SystemTime};

use super::Admin;
use crate::client::connection::Broker;
use crate::client::routing::{Repeat, Router};
use crate::client::{Error, Offset, OffsetCommit, TopicPartition};
use crate::proto::v1;

const GROUP_PAGE: u32 = 1_000;
/// Partitions that one call takes.
const PARTITIONS_MAX: usize = 1_000;

/// How a group shares out the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupKind {
    /// Each partition belongs to one member at a time, which reads it in order and commits offsets.
    Consumer,
    /// Records are leased one by one to any member, and acknowledged one by one.
    Share,
    /// Something that this version does not know.
    Unknown,
}

impl GroupKind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            GroupKind::Consumer => "consumer",
            GroupKind::Share => "share",
            GroupKind::Unknown => "unknown",
        }
    }
}

impl From<v1::GroupKind> for GroupKind {
    fn from(kind: v1::GroupKind) -> Self {
        match kind {
            v1::GroupKind::Consumer => GroupKind::Consumer,
            v1::GroupKind::Share => GroupKind::Share,
            v1::GroupKind::Unspecified => GroupKind::Unknown,
        }
    }
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    /// Name.
    pub group: String,
    /// Kind.
    pub kind: GroupKind,
    /// Members now.
    pub members: u32,
}

/// A group, its members, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// Name.
    pub group: String,
    /// Kind.
    pub kind: GroupKind,
    /// Grows with every change of the assignment.
    pub epoch: u64,
    /// Broker that coordinates the group.
    pub coordinator_id: u64,
    /// Members in the order of their ids.
    pub members: Vec<GroupMember>,
    /// Every partition that the group has committed to or reads, by topic and number.
    pub partitions: Vec<GroupPartition>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Its name within the group.
    pub member_id: String,
    /// Of a static member.
    pub instance_id: Option<String>,
    /// What the program calls itself.
    pub client_id: Option<String>,
    /// Where it runs.
    pub rack: Option<String>,
    /// Its epoch.
    pub epoch: u64,
    /// False while a static member is away and its session has not timed out.
    pub connected: bool,
    /// What it may read now.
    pub assigned: Vec<TopicPartition>,
    /// What it was told to give up and has not released yet.
    pub revoking: Vec<TopicPartition>,
}

/// How far a group is with a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPartition {
    /// The partition.
    pub at: TopicPartition,
    /// What is committed; of a share group: everything before it is done.
    pub committed: Option<Offset>,
    /// What was committed together with the offset.
    pub metadata: String,
    /// When it was committed.
    pub commit_time: Option<SystemTime>,
    /// Offset of the oldest retained record.
    pub log_start: Offset,
    /// Offset after the last committed record of the log.
    pub high_watermark: Offset,
    /// Retained records that the group has not consumed; of a share group: not acknowledged.
    pub lag: u64,
    /// How long ago the first of them was appended; zero if there is none.
    pub lag_time: Duration,
    /// The member that reads it.
    pub member_id: Option<String>,
    /// Of a share group: records that are leased now.
    pub leased: u64,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The partition.
    pub at: TopicPartition,
    /// `None` if nothing is committed.
    pub offset: Option<Offset>,
    /// What was committed together with the offset.
    pub metadata: String,
    /// When it was committed.
    pub commit_time: Option<SystemTime>,
}

/// Where offsets are moved. What lies outside of the log is moved to its nearest end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// The oldest retained record.
    Earliest,
    /// The next record to be appended.
    Latest,
    /// This offset.
    Offset(Offset),
    /// The first record whose append time is at or after this time.
    Time(SystemTime),
    /// This many records forward, or back if negative.
    Shift(i64),
}

/// Which offsets of a group are to be moved, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetSpec {
    group: String,
    to: ResetTo,
    partitions: Vec<TopicPartition>,
    topics: Vec<String>,
    execute: bool,
}

impl ResetSpec {
    /// Says what would change if every committed offset of `group` were moved.
    #[must_use]
    pub fn new(group: impl Into<String>, to: ResetTo) -> Self {
        let (partitions, topics) = (Vec::new(), Vec::new());
        ResetSpec { group: group.into(), to, partitions, topics, execute: false }
    }

    /// Only these partitions, whether something is committed or not.
    #[must_use]
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = TopicPartition>) -> Self {
        self.partitions.extend(partitions);
        self
    }

    /// Only every partition of these topics, whether something is committed or not.
    #[must_use]
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.topics.extend(topics.into_iter().map(Into::into));
        self
    }

    /// Moves them instead of only saying what would change.
    #[must_use]
    pub fn execute(mut self, execute: bool) -> Self {
        self.execute = execute;
        self
    }
}

impl From<ResetSpec> for v1::ResetOffsetsRequest {
    fn from(spec: ResetSpec) -> Self {
        use v1::reset_offsets_request::To;
        v1::ResetOffsetsRequest {
            group: spec.group,
            partitions: spec.partitions.iter().map(v1::TopicPartition::from).collect(),
            topics: spec.topics,
            to: Some(match spec.to {
                ResetTo::Earliest => To::Earliest(()),
                ResetTo::Latest => To::Latest(()),
                ResetTo::Offset(offset) => To::Offset(offset.0),
                ResetTo::Time(time) => To::Time(time.into()),
                ResetTo::Shift(records) => To::Shift(records),
            }),
            execute: spec.execute,
        }
    }
}

/// An offset that is moved.
#[derive(Clone, Debug)]
pub struct ResetOffset {
    /// The partition.
    pub at: TopicPartition,
    /// What is committed.
    pub from: Option<Offset>,
    /// What takes its place, or why it cannot be moved.
    pub to: Result<Offset, Error>,
}

impl Admin {
    /// Every group, in the order of their names.
    ///
    /// # Errors
    ///
    /// That no broker answered.
    pub async fn list_groups(&self) -> Result<Vec<GroupListing>, Error> {
        let mut groups = Vec::new();
        let mut request = v1::ListGroupsRequest { page_size: GROUP_PAGE, page_token: String::new() };
        loop {
            let call = |broker: Broker| {
                let request = request.clone();
                async move { broker.groups().list_groups(request).await }
            };
            let page = self.router.call(Repeat::Harmless, call).await?;
            groups.extend(page.groups.into_iter().map(GroupListing::from));
            if page.next_page_token.is_empty() {
                return Ok(groups);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// A group, its members, and how far it is.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::UnknownGroup`](crate::client::ErrorCode::UnknownGroup).
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription, Error> {
        let request = v1::DescribeGroupRequest { group: group.to_owned() };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.groups().describe_group(request).await }
        };
        Ok(self.router.call(Repeat::Harmless, call).await?.into())
    }

    /// Deletes a group with its offsets.
    ///
    /// # Errors
    ///
    /// `UnknownGroup`; [`ErrorCode::GroupNotEmpty`](crate::client::ErrorCode::GroupNotEmpty) while it has members.
    pub async fn delete_group(&self, group: &str) -> Result<(), Error> {
        let request = v1::DeleteGroupRequest { group: group.to_owned() };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.groups().delete_group(request).await }
        };
        self.router.call(Repeat::Harmful, call).await.map(drop)
    }

    /// What a group has committed of `partitions`, in their order; of everything if that is empty.
    ///
    /// # Errors
    ///
    /// `UnknownGroup`.
    pub async fn fetch_offsets(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<CommittedOffset>, Error> {
        fetch_offsets(&self.router, group, partitions).await
    }

    /// Commits offsets on behalf of a group without members, for programs that choose their partitions themselves.
    /// Creates the group if there is none. The results are in the order of `offsets`.
    ///
    /// # Errors
    ///
    /// `GroupNotEmpty` while the group has members. Of more than 1,000 offsets some may have been committed then.
    pub async fn commit_offsets(
        &self,
        group: &str,
        offsets: &[OffsetCommit],
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let mut results = Vec::with_capacity(offsets.len());
        for chunk in offsets.chunks(PARTITIONS_MAX) {
            let request = v1::CommitOffsetsRequest {
                group: group.to_owned(),
                membership: None,
                offsets: chunk.iter().cloned().map(v1::OffsetCommit::from).collect(),
            };
            let call = |broker: Broker| {
                let request = request.clone();
                async move { broker.groups().commit_offsets(request).await }
            };
            let response = self.router.call(Repeat::Harmless, call).await?;
            check_len("commit results", response.results.len(), chunk.len())?;
            results.extend(response.results.into_iter().map(|result| match result.error {
                None => Ok(()),
                Some(error) => Err(Error::from(error).at(&result.topic, result.partition)),
            }));
        }
        Ok(results)
    }

    /// Moves the committed offsets of a group without members, or says what would change. The answers are ordered by
    /// topic and partition.
    ///
    /// # Errors
    ///
    /// `UnknownGroup`; `GroupNotEmpty` while the group has members.
    pub async fn reset_offsets(&self, spec: ResetSpec) -> Result<Vec<ResetOffset>, Error> {
        // A second shift moves further.
        let repeat = match spec.to {
            ResetTo::Shift(_) if spec.execute => Repeat::Harmful,
            _ => Repeat::Harmless,
        };
        let request = v1::ResetOffsetsRequest::from(spec);
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.groups().reset_offsets(request).await }
        };
        let response = self.router.call(repeat, call).await?;
        Ok(response.offsets.into_iter().map(ResetOffset::from).collect())
    }
}

pub(in crate::client) async fn fetch_offsets(
    router: &Router,
    group: &str,
    partitions: &[TopicPartition],
) -> Result<Vec<CommittedOffset>, Error> {
    let mut offsets = Vec::with_capacity(partitions.len());
    // One call without partitions asks for all.
    let mut chunks = partitions.chunks(PARTITIONS_MAX);
    let mut chunk = chunks.next().unwrap_or_default();
    loop {
        let request = v1::FetchOffsetsRequest {
            group: group.to_owned(),
            partitions: chunk.iter().map(v1::TopicPartition::from).collect(),
        };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.groups().fetch_offsets(request).await }
        };
        let response = router.call(Repeat::Harmless, call).await?;
        if !chunk.is_empty() {
            check_len("offsets", response.offsets.len(), chunk.len())?;
        }
        offsets.extend(response.offsets.into_iter().map(CommittedOffset::from));
        match chunks.next() {
            Some(next) => chunk = next,
            None => return Ok(offsets),
        }
    }
}

fn check_len(what: &str, got: usize, wanted: usize) -> Result<(), Error> {
    if got == wanted {
        return Ok(());
    }
    Err(Error::InvalidResponse { what: format!("{got} {what} instead of {wanted}") })
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl From<v1::GroupListing> for GroupListing {
    fn from(listing: v1::GroupListing) -> Self {
        GroupListing { kind: listing.kind().into(), members: listing.member_count, group: listing.group }
    }
}

impl From<v1::DescribeGroupResponse> for GroupDescription {
    fn from(described: v1::DescribeGroupResponse) -> Self {
        GroupDescription {
            kind: described.kind().into(),
            group: described.group,
            epoch: described.epoch,
            coordinator_id: described.coordinator_id,
            members: described.members.into_iter().map(GroupMember::from).collect(),
            partitions: described.partitions.into_iter().map(GroupPartition::from).collect(),
        }
    }
}

impl From<v1::GroupMember> for GroupMember {
    fn from(member: v1::GroupMember) -> Self {
        GroupMember {
            member_id: member.member_id,
            instance_id: given(member.instance_id),
            client_id: given(member.client_id),
            rack: given(member.rack),
            epoch: member.epoch,
            connected: member.connected,
            assigned: member.assigned.into_iter().map(TopicPartition::from).collect(),
            revoking: member.revoking.into_iter().map(TopicPartition::from).collect(),
        }
    }
}

impl From<v1::GroupPartition> for GroupPartition {
    fn from(partition: v1::GroupPartition) -> Self {
        GroupPartition {
            at: TopicPartition::new(partition.topic, partition.partition),
            committed: partition.committed_offset.map(Offset),
            metadata: partition.metadata,
            commit_time: partition.commit_time.and_then(|time| time.try_into().ok()),
            log_start: Offset(partition.log_start_offset),
            high_watermark: Offset(partition.high_watermark),
            lag: partition.lag,
            lag_time: partition.lag_time.and_then(|time| time.try_into().ok()).unwrap_or_default(),
            member_id: given(partition.member_id),
            leased: partition.leased,
        }
    }
}

impl From<v1::CommittedOffset> for CommittedOffset {
    fn from(committed: v1::CommittedOffset) -> Self {
        CommittedOffset {
            at: TopicPartition::new(committed.topic, committed.partition),
            offset: committed.offset.map(Offset),
            metadata: committed.metadata,
            commit_time: committed.commit_time.and_then(|time| time.try_into().ok()),
        }
    }
}

impl From<v1::ResetOffset> for ResetOffset {
    fn from(reset: v1::ResetOffset) -> Self {
        ResetOffset {
            to: match reset.error {
                None => Ok(Offset(reset.to_offset)),
                Some(error) => Err(Error::from(error).at(&reset.topic, reset.partition)),
            },
            at: TopicPartition::new(reset.topic, reset.partition),
            from: reset.from_offset.map(Offset),
        }
    }
}
