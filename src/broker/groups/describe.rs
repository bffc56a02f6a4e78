//! What can be told of a group.

use std::sync::Arc;

use super::offsets::{GroupPartition, TopicPartition};
use crate::broker::{Broker, Error};
use crate::coordination::{Kind, PartitionKey};

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its id.
    pub member_id: Arc<str>,
    /// Of a static member.
    pub instance_id: Option<Arc<str>>,
    /// What the program calls itself.
    pub client_id: Option<Arc<str>>,
    /// Where it runs.
    pub rack: Option<Arc<str>>,
    /// Its epoch.
    pub epoch: u64,
    /// Whether its stream is there.
    pub connected: bool,
    /// What it may read.
    pub assigned: Vec<TopicPartition>,
    /// What it is to give up.
    pub revoking: Vec<TopicPartition>,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its name.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: Kind,
    /// Grows with every change of the assignment; zero while there are no members.
    pub epoch: u64,
    /// The broker that coordinates it.
    pub coordinator: u64,
    /// Members by id.
    pub members: Vec<MemberDescription>,
    /// Partitions by topic and number, each with the member that reads it.
    pub partitions: Vec<(GroupPartition, Option<Arc<str>>)>,
}

impl Broker {
    /// Describes a group.
    ///
    /// # Errors
    /// There is no such group, or a partition's log cannot be read.
    pub async fn describe_group(&self, name: &str) -> Result<GroupDescription, Error> {
        let groups = self.groups()?;
        let (name, kind) = groups.with_group(name, |group| (group.name.clone(), group.kind))?;
        let progress = self.progress_of(&name).await?;
        let (epoch, members) = match kind {
            Kind::Consumer => self.consumers(&name)?,
            Kind::Share => self.sharers(&name)?,
        };
        let owner = |at: &GroupPartition| {
            let owns = |member: &&MemberDescription| {
                let held = member.assigned.iter().chain(&member.revoking);
                held.into_iter().any(|held| held.topic == *at.topic && held.partition == at.partition)
            };
            let member = members.iter().find(owns).filter(|_| kind == Kind::Consumer);
            member.map(|member| member.member_id.clone())
        };
        let partitions =
            progress.into_iter().map(|at| (owner(&at), at)).map(|(owner, at)| (at, owner)).collect();
        let coordinator = self.running()?.cluster.identity().broker.0;
        Ok(GroupDescription { name, kind, epoch, coordinator, members, partitions })
    }

    fn consumers(&self, group: &str) -> Result<(u64, Vec<MemberDescription>), Error> {
        let Some(live) = self.groups()?.live(group) else { return Ok((0, Vec::new())) };
        let described = live.describe();
        let names = |keys: &[PartitionKey]| self.names_of(keys);
        let mut members = Vec::with_capacity(described.members.len());
        for member in described.members {
            members.push(MemberDescription {
                assigned: names(&member.assigned)?,
                revoking: names(&member.revoking)?,
                member_id: member.member_id,
                instance_id: member.instance_id,
                client_id: member.client_id,
                rack: member.rack,
                epoch: member.epoch,
                connected: member.connected,
            });
        }
        members.sort_by(|a, b| a.member_id.cmp(&b.member_id));
        Ok((described.epoch, members))
    }

    fn sharers(&self, group: &str) -> Result<(u64, Vec<MemberDescription>), Error> {
        let Some(queue) = self.groups()?.queue(group) else { return Ok((0, Vec::new())) };
        let (epoch, members, partitions) = queue.describe();
        let found = self.find(&partitions.into_iter().collect::<Vec<_>>())?;
        let mut described: Vec<_> = members
            .into_iter()
            .map(|member| {
                let read = found.iter().filter(|found| member.topics.matches(&found.route.topic.name));
                let assigned = read.map(|found| TopicPartition {
                    topic: found.route.topic.name.to_string(),
                    partition: found.key.partition,
                });
                MemberDescription {
                    assigned: assigned.collect(),
                    revoking: Vec::new(),
                    member_id: member.id,
                    instance_id: None,
                    client_id: member.client_id,
                    rack: member.rack,
                    epoch,
                    connected: true,
                }
            })
            .collect();
        described.sort_by(|a, b| a.member_id.cmp(&b.member_id));
        Ok((epoch, described))
    }

    /// The names of partitions that are there, sorted.
    fn names_of(&self, keys: &[PartitionKey]) -> Result<Vec<TopicPartition>, Error> {
        let mut names: Vec<_> = self
            .find(keys)?
            .into_iter()
            .map(|found| TopicPartition {
                topic: found.route.topic.name.to_string(),
                partition: found.key.partition,
            })
            .collect();
        names.sort();
        Ok(names)
    }
}
