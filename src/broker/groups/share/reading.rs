//! The partitions that a member reads, and what retention takes from them.

use std::collections::HashMap;
use std::time::Duration;

use super::{MemberEvent, ShareMember};
use crate::broker::Error;
use crate::broker::fetch::Fetched;
use crate::broker::groups::member::{AssignedPartition, OffsetReset};
use crate::broker::groups::offsets::TopicPartition;
use crate::broker::groups::queue::Said;
use crate::broker::groups::start::Found;
use crate::coordination::{Command, Leases, PartitionKey, Progress};
use crate::record::Offset;

/// The slot of the member's bell that all partitions share: all of them are looked at in turn.
const RECORDS: usize = 1;

impl ShareMember {
    /// Reads what the topics of its choice have by now.
    pub(super) async fn follow_topics(&mut self) -> Result<(), Error> {
        let names = self.broker.topic_names()?;
        let chosen = names.values().filter(|route| self.member.topics.matches(&route.topic.name));
        let keys: Vec<_> = chosen
            .flat_map(|route| {
                let topic = route.topic.id;
                (0..route.partitions.len() as u32).map(move |partition| PartitionKey { topic, partition })
            })
            .collect();
        let found = self.broker.find(&keys)?;
        let gone: Vec<_> = self.reading.keys().filter(|key| !keys.contains(key)).copied().collect();
        let unread = |found: &Found| {
            !self.reading.contains_key(&found.key)
                || self.stopped.contains(&found.key)
                || self.queue.with(found.key, |_| ()).is_none()
        };
        let fresh: Vec<_> = found.into_iter().filter(unread).collect();
        let standing = if fresh.is_empty() {
            HashMap::new()
        } else {
            self.broker.standing(&self.queue.name, self.join.offset_reset, &fresh).await?
        };
        let mut events = Vec::from_iter(self.let_go(&gone));
        let mut assigned = Vec::new();
        for found in fresh {
            let (topic, partition) = (found.route.topic.name.clone(), found.key.partition);
            match self.begin(&found, standing.get(&found.key).copied()).await? {
                Ok((start, missed)) => {
                    found.partition.listen(&self.member.signal, RECORDS);
                    let was_stopped = self.stopped.remove(&found.key);
                    if self.reading.insert(found.key, found).is_none() || was_stopped {
                        assigned.push(AssignedPartition {
                            topic,
                            partition,
                            start,
                            metadata: "".into(),
                            missed,
                        });
                    }
                }
                Err(error) => {
                    events.push(MemberEvent::Records(Fetched::failed(&topic, partition, error), None));
                }
            }
        }
        if !assigned.is_empty() {
            events.push(MemberEvent::Assigned { epoch: self.epoch, partitions: assigned });
        }
        self.ready.extend(events);
        self.take_turns();
        Ok(())
    }

    /// Does not read partitions any more, which are gone.
    fn let_go(&mut self, gone: &[PartitionKey]) -> Option<MemberEvent> {
        let mut taken = Vec::new();
        for key in gone {
            self.given.remove(key);
            self.stopped.remove(key);
            if let Some(found) = self.reading.remove(key) {
                found.partition.unlisten(&self.member.signal, RECORDS);
                let topic = found.route.topic.name.to_string();
                taken.push(TopicPartition { topic, partition: key.partition });
            }
        }
        let (epoch, deadline) = (self.epoch, Duration::ZERO);
        (!taken.is_empty()).then_some(MemberEvent::Revoked { epoch, partitions: taken, deadline })
    }

    /// Everybody who can be read has a turn, beginning with the first.
    fn take_turns(&mut self) {
        self.slots = self.reading.keys().filter(|key| !self.stopped.contains(key)).copied().collect();
        self.turn = 0;
    }

    /// Begins to read a partition in which the group has come as far as `standing`, if it has begun. Gives the first
    /// record that is not done, and how many are lost; or why the partition cannot be read.
    async fn begin(
        &mut self,
        found: &Found,
        standing: Option<Offset>,
    ) -> Result<Result<(Offset, u64), Error>, Error> {
        let Some(standing) = standing else {
            return Ok(Err(found.out_of_range(Offset::ZERO, found.partition.bounds())));
        };
        if self.queue.with(found.key, |_| ()).is_none() {
            if let Err(error) = self.return_from_beyond(found, standing).await? {
                return Ok(Err(error));
            }
            self.open_leases(found);
        }
        let missed = match self.keep_up(found).await {
            Ok(missed) => missed,
            Err(error) => return Ok(Err(error)),
        };
        let start = self.queue.with(found.key, |leases| leases.start()).unwrap_or(standing);
        Ok(Ok((start, missed)))
    }

    /// A log that lost its end, by hand or by a disk, is shorter than what the group has done.
    async fn return_from_beyond(
        &mut self,
        found: &Found,
        standing: Offset,
    ) -> Result<Result<(), Error>, Error> {
        if standing <= found.partition.bounds().high_watermark {
            return Ok(Ok(()));
        }
        // What this broker knows may be older; only the leader can say that it is not there.
        let Ok(bounds) = found.partition.fresh_bounds().await else { return Ok(Ok(())) };
        if standing <= bounds.high_watermark {
            return Ok(Ok(()));
        }
        let group = &self.queue.name;
        let Some(to) = self.join.offset_reset.target(bounds) else {
            found.warn_out_of_range(group, standing, bounds);
            return Ok(Err(found.out_of_range(standing, bounds)));
        };
        found.warn_missed(group, standing, to, 0);
        let (at, offsets) = (self.broker.0.clock.now(), vec![(found.key, to)]);
        let command = Command::SetOffsets { group: group.clone(), at, offsets };
        self.broker.groups()?.coordinators.of(group).change(command).await?;
        Ok(Ok(()))
    }

    fn open_leases(&self, found: &Found) {
        let Ok(groups) = self.broker.groups() else { return };
        let window = self.queue.window;
        let progress = groups.coordinators.of(&self.queue.name).read(|state| {
            let group = state.group(&self.queue.name)?;
            group.shares().get(&found.key).cloned()
        });
        groups.journal.begin(&self.place(found.key), self.broker.now());
        let progress = progress.unwrap_or_else(|| Progress::starting_at(found.partition.bounds().log_start));
        self.queue.open(found.key, || Leases::new(&progress, window));
    }

    /// What retention has deleted is nobody's any more, except for what members have of it. Gives how many records are
    /// lost. Nothing is left to be waited for, so that nothing is half done if this is dropped.
    ///
    /// # Errors
    /// Records would be lost, and this member is not to go on without them.
    pub(super) async fn keep_up(&mut self, found: &Found) -> Result<u64, Error> {
        let (reset, group) = (self.join.offset_reset, &self.queue.name);
        let bounds = found.partition.bounds();
        let log_start = bounds.log_start;
        let first = self.queue.with(found.key, |leases| leases.first_lost(log_start)).flatten();
        let mut end = bounds.high_watermark;
        match (first, reset) {
            (Some(first), OffsetReset::Error) => {
                found.warn_out_of_range(group, first, bounds);
                return Err(found.out_of_range(first, bounds));
            }
            (Some(_), OffsetReset::Latest) => {
                end = found.partition.fresh_bounds().await.map_or(end, |fresh| fresh.high_watermark);
            }
            _ => {}
        }
        let trimmed = self.queue.with(found.key, |leases| {
            // A group that did not get as far as the log goes back has lost its place.
            let is_lost = leases.next_offset() < log_start;
            let to = if is_lost && reset == OffsetReset::Latest { end } else { log_start };
            (leases.trimmed(to), to)
        });
        let Some((trimmed, to)) = trimmed else { return Ok(0) };
        let Some(update) = trimmed.update else { return Ok(0) };
        if let Some(first) = first.filter(|_| trimmed.missed > 0) {
            found.warn_missed(group, first, to, trimmed.missed);
        }
        let said = Said { key: found.key, updates: vec![update], expired: 0, missed: trimmed.missed };
        self.broker.replicate_later(&self.queue, vec![said], "the start of the log was not noted");
        Ok(trimmed.missed)
    }

    /// A partition that cannot be read is not read any more until topics change, and gives its error.
    pub(super) fn stop_reading(&mut self, found: &Found, error: Error) -> MemberEvent {
        found.partition.unlisten(&self.member.signal, RECORDS);
        self.stopped.insert(found.key);
        self.take_turns();
        MemberEvent::Records(Fetched::failed(&found.route.topic.name, found.key.partition, error), None)
    }
}
