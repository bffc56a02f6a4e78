//! One member of a share group: a stream to which records are leased, and over which they are acknowledged.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::sync::oneshot;
use tracing::warn;

use super::journal::{Delivery, Journal, Place};
use super::live::{Notice, SessionId};
use super::member::{AssignedPartition, Join, MemberEvent, member_id, optional, topic_filter};
use super::offsets::TopicPartition;
use super::queue::{Queue, QueueMember, Said, range_of};
use super::start::{Found, Start};
use crate::broker::fetch::{Cursor, Fetched, FetchedBatch};
use crate::broker::{Broker, Error};
use crate::clock::Timestamp;
use crate::cluster::coordinator;
use crate::coordination::{
    Command, Kind, LeaseSpec, Leases, OffsetRange, Outcome, PartitionKey, Progress, Returned, ShareUpdate,
};
use crate::record::{CodecSet, Offset, SpanLink};
use crate::task::Criticality;
use crate::telemetry::{AckKind as Acked, GroupMetrics};

/// How long records are leased to a member that does not say.
const LEASE: Duration = Duration::from_secs(30);
const LEASE_MIN: Duration = Duration::from_secs(1);
const LEASE_MAX: Duration = Duration::from_secs(3600);
/// How often a record is delivered at most if the member does not say, and if it does.
const DELIVERIES_MAX: u32 = 5;
const DELIVERIES_MAX_LIMIT: u32 = 1_000;
/// Records that are leased to a member that does not say how many.
const IN_FLIGHT: u64 = 500;
/// Longest delay of a release.
const DELAY_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest reason of a rejection, in bytes.
const REASON_BYTES_MAX: usize = 1 << 10;
/// Requests to acknowledge that may be on their way.
const ACKS_IN_FLIGHT: usize = 64;
/// Delivered batches whose way to their acknowledgement is timed.
const TIMED_BATCHES: usize = 1_024;

/// A member that wants to join a share group.
#[derive(Clone, Debug)]
pub struct ShareJoin {
    /// What every member says.
    pub join: Join,
    /// How long records are leased.
    pub lease: Option<Duration>,
    /// How often a record is delivered; zero is the default.
    pub deliveries_max: u32,
    /// Where records go that are delivered as often as that; empty is the default.
    pub dead_letter_topic: String,
}

/// What a member says of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AckKind {
    /// Done.
    Accept,
    /// Deliver them again, after the delay.
    Release(Duration),
    /// To the dead-letter topic, with the reason.
    Reject(String),
    /// The lease begins anew.
    Extend,
}

/// Something said of a run of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: u32,
    /// The first record.
    pub first: Offset,
    /// The last record.
    pub last: Offset,
    /// What is said.
    pub kind: AckKind,
}

/// Consecutive records that are leased to the member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeasedRange {
    /// The first record.
    pub first: Offset,
    /// The last record.
    pub last: Offset,
    /// How often they were delivered, this time included.
    pub delivery_count: u32,
}

type Answers = FuturesOrdered<Pin<Box<dyn Future<Output = (u64, Vec<Option<Error>>)> + Send>>>;

/// See the module. Dropping it ends its leases.
pub struct ShareMember {
    broker: Broker,
    queue: Arc<Queue>,
    metrics: Arc<GroupMetrics>,
    member: QueueMember,
    session: SessionId,
    join: Join,
    spec: LeaseSpec,
    in_flight_max: u64,
    accepted: CodecSet,
    /// As in [`crate::broker::Subscription`].
    credit: i64,
    epoch: u64,
    /// What it reads, in the order of keys; the bell's slots are one above the place in `slots`.
    reading: BTreeMap<PartitionKey, Found>,
    slots: Vec<PartitionKey>,
    /// Whose turn it is.
    turn: usize,
    /// When the batches of which records are with the member were appended: last offset and time, by first offset.
    given: HashMap<PartitionKey, BTreeMap<Offset, (Offset, Timestamp)>>,
    answers: Answers,
    ready: VecDeque<MemberEvent>,
}

impl Broker {
    /// Makes a stream a member of a share group.
    ///
    /// # Errors
    /// A field is out of range, the group is of the other kind or full, there are too many groups, or its coordinator is
    /// not here.
    pub async fn join_share(&self, share: ShareJoin) -> Result<ShareMember, Error> {
        let ShareJoin { join, lease, deliveries_max, dead_letter_topic } = share;
        let groups = self.groups()?;
        groups.admit(&join.group, Kind::Share)?;
        let spec = LeaseSpec {
            lease: lease.unwrap_or(LEASE),
            deliveries_max: if deliveries_max == 0 { DELIVERIES_MAX } else { deliveries_max },
        };
        if !(LEASE_MIN..=LEASE_MAX).contains(&spec.lease) {
            let problem = format!("{:?} is not from 1 s to 1 h", spec.lease);
            return Err(Error::InvalidArgument { field: "share.lease", problem });
        }
        if spec.deliveries_max > DELIVERIES_MAX_LIMIT {
            let problem = format!("{deliveries_max} is above {DELIVERIES_MAX_LIMIT}");
            return Err(Error::InvalidArgument { field: "share.deliveries_max", problem });
        }
        if !dead_letter_topic.is_empty() {
            crate::metadata::validate_name(&dead_letter_topic).map_err(|error| Error::InvalidArgument {
                field: "share.dead_letter_topic",
                problem: error.to_string(),
            })?;
        }
        let member = QueueMember::new(
            member_id(&join.member_id)?,
            optional("client_id", &join.client_id)?,
            optional("rack", &join.rack)?,
            topic_filter(&join.topics, &join.topic_pattern)?,
            self.session_timeout(join.session_timeout)?,
        );
        let group: Arc<str> = join.group.as_str().into();
        let create = Command::CreateGroup { group: group.clone(), kind: Kind::Share, at: self.0.clock.now() };
        groups.coordinators.of(&group).change(create).await?;
        let session = groups.next_session();
        let dead_letters = (!dead_letter_topic.is_empty()).then(|| Arc::from(dead_letter_topic.as_str()));
        let (queue, epoch, said) = loop {
            let queue = groups.queue_or_new(&group)?;
            if queue.member_count() >= groups.config.members_max as usize && !queue.has_member(&member.id) {
                let (what, setting) = ("members of a group", "groups.members_max");
                return Err(Error::LimitReached { what, limit: groups.config.members_max.into(), setting });
            }
            if let Some((epoch, said)) = queue.join(session, member.clone(), dead_letters.clone()) {
                break (queue, epoch, said);
            }
        };
        self.0.metrics.group(&group).share();
        // From here on the stream is a member, which its drop undoes.
        let session_timeout = member.session_timeout;
        let joined = MemberEvent::Joined { member_id: member.id.clone(), epoch, session_timeout };
        member.mailbox.push(Notice::Topics);
        let member = ShareMember {
            broker: self.clone(),
            metrics: self.0.metrics.group(&group),
            queue: queue.clone(),
            member,
            session,
            spec,
            in_flight_max: match join.in_flight_records_max {
                0 => IN_FLIGHT,
                limit => limit.into(),
            },
            accepted: join.accepted,
            credit: i64::try_from(join.credit_bytes).unwrap_or(i64::MAX),
            join,
            epoch,
            reading: BTreeMap::new(),
            slots: Vec::new(),
            turn: 0,
            given: HashMap::new(),
            answers: FuturesOrdered::new(),
            ready: VecDeque::from([joined]),
        };
        self.replicate(&queue, said).await?;
        groups.changed.notify_one();
        Ok(member)
    }

    /// Has time-outs of a share group replicated, and gives when the next is due.
    pub(super) async fn tick_queue(&self, queue: &Arc<Queue>, now: Instant) -> Option<Instant> {
        let (said, next) = queue.tick(now);
        let group = self.0.metrics.group(&queue.name);
        let expired = said.iter().map(|said| said.expired).sum();
        group.acknowledgements(Acked::Expire, expired);
        if let Err(failure) = self.replicate(queue, said).await {
            // The deliveries were not counted; they are delivered again all the same.
            warn!(group = &*queue.name, error = %failure, "expired leases were not noted");
        }
        next
    }

    /// Hands what leases had to say to the coordinator. Nothing waits for it.
    async fn replicate(&self, queue: &Queue, said: Vec<Said>) -> Result<(), Error> {
        if said.is_empty() {
            return Ok(());
        }
        let groups = self.groups()?;
        let names = self.topic_names()?;
        for said in said.iter().filter(|said| said.missed > 0) {
            if let Some(route) = names.get(&said.key.topic) {
                self.0.metrics.group(&queue.name).missed(&route.topic.name, said.missed);
            }
        }
        let updates = said.into_iter().map(|said| (said.key, said.updates)).collect();
        let command = Command::UpdateShares { group: queue.name.clone(), at: self.0.clock.now(), updates };
        let slot = groups.coordinators.of(&queue.name).reserve().await?;
        drop(slot.submit_in(queue.term.into(), command));
        groups.dead.notify_one();
        Ok(())
    }
}

impl ShareMember {
    /// What is next: waits for it. Cancel-safe: records are leased only when they are returned.
    ///
    /// # Errors
    /// [`Error::MemberFenced`]: the stream is no member any more.
    pub async fn next(&mut self) -> Result<MemberEvent, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            tokio::select! {
                biased;
                notice = self.member.mailbox.front() => { self.act(notice).await?; continue }
                Some((correlation_id, results)) = self.answers.next() => {
                    return Ok(MemberEvent::Acknowledged { correlation_id, results });
                }
                () = std::future::ready(()) => {}
            }
            if self.may_deliver()
                && let Some(event) = self.take().await
            {
                return Ok(event);
            }
            tokio::select! {
                biased;
                _ = self.member.mailbox.front() => {}
                Some((correlation_id, results)) = self.answers.next() => {
                    return Ok(MemberEvent::Acknowledged { correlation_id, results });
                }
                _ = self.member.signal.wait() => {}
            }
        }
    }

    fn may_deliver(&self) -> bool {
        self.credit > 0 && self.queue.leased_to(self.session) < self.in_flight_max
    }

    /// The group, for spans.
    pub fn group(&self) -> &str {
        &self.queue.name
    }

    /// The member gave a sign of life, whatever it was.
    pub fn heard(&self) {
        self.queue.heard(self.session);
    }

    /// Lets `bytes` more be delivered.
    pub fn grant(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Whether another request to acknowledge may be begun now.
    pub fn can_acknowledge(&self) -> bool {
        self.answers.len() < ACKS_IN_FLIGHT
    }

    /// Whether answers are on their way.
    pub fn is_acknowledging(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Leaves the group: what is leased to it is delivered to others.
    pub async fn leave(&mut self) -> Result<(), Error> {
        let said = self.queue.leave(self.session);
        self.broker.replicate(&self.queue, said).await?;
        self.broker.groups()?.changed.notify_one();
        Ok(())
    }

    /// Does what is said of records. [`ShareMember::next`] delivers the answers in the order of the requests.
    ///
    /// # Errors
    /// The coordinator cannot take it. What is wrong with one acknowledgement is said in the answer.
    pub async fn acknowledge(
        &mut self,
        correlation_id: u64,
        acknowledgements: Vec<Acknowledgement>,
    ) -> Result<(), Error> {
        let broker = self.broker.clone();
        let groups = broker.groups()?;
        // Room first, so that updates are handed over in the order in which the leases made them.
        let slot = groups.coordinators.of(&self.queue.name).reserve().await?;
        let mut errors = Vec::with_capacity(acknowledgements.len());
        let mut updates: BTreeMap<PartitionKey, Vec<ShareUpdate>> = BTreeMap::new();
        let mut accepted = Vec::new();
        for (place, wanted) in acknowledgements.into_iter().enumerate() {
            let done = self.acknowledge_one(&wanted);
            errors.push(done.as_ref().err().cloned());
            let Ok((key, said, accepts)) = done else { continue };
            if !said.is_empty() {
                updates.entry(key).or_default().extend(said);
            }
            if let Some(range) = accepts {
                accepted.push((place, key, range));
            }
        }
        groups.dead.notify_one();
        groups.changed.notify_one();
        if updates.is_empty() {
            self.answers.push_back(Box::pin(std::future::ready((correlation_id, errors))));
            return Ok(());
        }
        let updates = updates.into_iter().collect();
        let at = self.broker.0.clock.now();
        let command = Command::UpdateShares { group: self.queue.name.clone(), at, updates };
        let receiver = slot.submit_in(self.queue.term.into(), command);
        let (queue, journal) = (self.queue.clone(), groups.journal.clone());
        let (done, answer) = oneshot::channel();
        // On a task of its own: the leases must learn what became of it, also if the stream ends.
        groups.tasks.spawn("share acknowledgement", Criticality::BestEffort, async move {
            let _ = done.send(conclude(&queue, &journal, at, receiver, accepted, errors).await);
        });
        self.answers.push_back(Box::pin(async move { (correlation_id, answer.await.unwrap_or_default()) }));
        Ok(())
    }

    /// What one acknowledgement changes: updates to replicate, and the range that is accepted by them.
    fn acknowledge_one(
        &mut self,
        wanted: &Acknowledgement,
    ) -> Result<(PartitionKey, Vec<ShareUpdate>, Option<OffsetRange>), Error> {
        let Acknowledgement { topic, partition, first, last, kind } = wanted;
        let invalid = |field, problem: String| Error::InvalidArgument { field, problem };
        if last < first {
            return Err(invalid("last_offset", format!("{last} is below first_offset, {first}")));
        }
        let expired = || Error::LeaseExpired {
            topic: topic.clone(),
            partition: *partition,
            first: *first,
            last: *last,
        };
        let key = self.key_of(topic, *partition).ok_or_else(expired)?;
        let range = OffsetRange { first: *first, last: *last };
        let records = last.saturating_since(*first).saturating_add(1);
        let (session, now) = (self.session, Instant::now());
        let (acked, done) = match kind {
            AckKind::Accept => {
                let update = self.queue.with(key, |leases| leases.accept(session, range));
                let update = update.ok_or_else(expired)?.map_err(|_| expired())?;
                self.timed(key, range);
                (Acked::Accept, (key, vec![update], Some(range)))
            }
            AckKind::Release(delay) => {
                if *delay > DELAY_MAX {
                    return Err(invalid("delay", format!("{delay:?} is above 24 h")));
                }
                let returned = self.queue.with(key, |leases| leases.release(now, session, range, *delay));
                let returned = returned.ok_or_else(expired)?.map_err(|_| expired())?;
                (Acked::Release, (key, self.returned(topic, returned), None))
            }
            AckKind::Reject(reason) => {
                if reason.len() > REASON_BYTES_MAX {
                    let problem = format!("has {} bytes, at most {REASON_BYTES_MAX} are kept", reason.len());
                    return Err(invalid("reason", problem));
                }
                let detail: Arc<str> = reason.as_str().into();
                let returned = self.queue.with(key, |leases| leases.reject(session, range, &detail));
                let returned = returned.ok_or_else(expired)?.map_err(|_| expired())?;
                (Acked::Reject, (key, self.returned(topic, returned), None))
            }
            AckKind::Extend => {
                let extended = self.queue.with(key, |leases| leases.extend(now, session, range));
                extended.ok_or_else(expired)?.map_err(|_| expired())?;
                (Acked::Extend, (key, Vec::new(), None))
            }
        };
        self.metrics.acknowledgements(acked, records);
        Ok(done)
    }

    fn returned(&self, topic: &str, returned: Returned) -> Vec<ShareUpdate> {
        if returned.missed > 0 {
            self.metrics.missed(topic, returned.missed);
        }
        self.queue.ring();
        returned.updates
    }

    /// Records how long it took from the append of the records to here.
    fn timed(&mut self, key: PartitionKey, range: OffsetRange) {
        let Some(given) = self.given.get_mut(&key) else { return };
        let now = self.broker.0.clock.now();
        let within: Vec<_> = given
            .range(..=range.last)
            .filter(|(_, (last, _))| *last >= range.first)
            .map(|(f, v)| (*f, *v))
            .collect();
        for (first, (last, appended)) in within {
            self.metrics.acknowledged(Duration::from_millis(now.millis_since(appended)));
            if last <= range.last {
                given.remove(&first);
            }
        }
    }

    fn key_of(&self, topic: &str, partition: u32) -> Option<PartitionKey> {
        let same = |found: &&Found| found.key.partition == partition && &*found.route.topic.name == topic;
        self.reading.values().find(same).map(|found| found.key)
    }

    async fn act(&mut self, notice: Notice) -> Result<(), Error> {
        match notice {
            Notice::Topics => self.follow_topics().await?,
            Notice::Keepalive => self.ready.push_back(MemberEvent::Keepalive),
            Notice::Fence(reason) => {
                return Err(Error::MemberFenced {
                    group: self.queue.name.to_string(),
                    reason: format!("member {:?}: {reason}", self.member.id),
                });
            }
            // Members of share groups own no partitions.
            Notice::Assign { .. } | Notice::Revoke { .. } | Notice::Restart(_) => {}
        }
        self.member.mailbox.pop();
        Ok(())
    }

    /// Reads what the topics of its choice have by now.
    async fn follow_topics(&mut self) -> Result<(), Error> {
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
            !self.reading.contains_key(&found.key) || self.queue.with(found.key, |_| ()).is_none()
        };
        let fresh: Vec<_> = found.into_iter().filter(unread).collect();
        let starts = if fresh.is_empty() {
            Vec::new()
        } else {
            self.broker.starts(&self.queue.name, self.join.offset_reset, fresh).await?
        };
        let mut taken = Vec::new();
        for key in gone {
            self.given.remove(&key);
            if let Some(found) = self.reading.remove(&key) {
                found.partition.unlisten(&self.member.signal, 1);
                let topic = found.route.topic.name.to_string();
                taken.push(TopicPartition { topic, partition: key.partition });
            }
        }
        if !taken.is_empty() {
            let (epoch, deadline) = (self.epoch, Duration::ZERO);
            self.ready.push_back(MemberEvent::Revoked { epoch, partitions: taken, deadline });
        }
        let mut assigned = Vec::new();
        for Start { found, offset, metadata, missed } in starts {
            let (topic, partition) = (found.route.topic.name.clone(), found.key.partition);
            let start = match offset {
                Ok(offset) => offset,
                Err(error) => {
                    self.ready
                        .push_back(MemberEvent::Records(Fetched::failed(&topic, partition, error), None));
                    continue;
                }
            };
            self.open_leases(&found);
            // Rings in the one slot that all partitions share: it is looked at all of them in turn.
            found.partition.listen(&self.member.signal, 1);
            if self.reading.insert(found.key, found).is_none() {
                assigned.push(AssignedPartition { topic, partition, start, metadata, missed });
            }
        }
        self.slots = self.reading.keys().copied().collect();
        if !assigned.is_empty() {
            self.ready.push_back(MemberEvent::Assigned { epoch: self.epoch, partitions: assigned });
        }
        Ok(())
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

    /// Leases what there is in the partition whose turn it is, or in the next that has something.
    async fn take(&mut self) -> Option<MemberEvent> {
        for step in 0..self.slots.len() {
            let at = (self.turn + step) % self.slots.len();
            let found = self.reading.get(&self.slots[at])?.clone();
            if let Some(event) = self.take_from(&found).await {
                self.turn = (at + 1) % self.slots.len();
                return Some(event);
            }
        }
        None
    }

    async fn take_from(&mut self, found: &Found) -> Option<MemberEvent> {
        self.follow_log_start(found).await;
        let bounds = found.partition.bounds();
        let now = Instant::now();
        let from = self.queue.with(found.key, |leases| {
            let new = || {
                Some(leases.next_offset()).filter(|next| leases.room() > 0 && *next < bounds.high_watermark)
            };
            leases.redeliverable(now).map(|range| range.first).or_else(new)
        })??;
        let budget = self.credit.unsigned_abs().min(self.broker.0.config.delivery_bytes);
        let cursor = Cursor {
            route: found.route.clone(),
            number: found.key.partition,
            partition: found.partition.clone(),
            next: from,
        };
        let mut fetched = self.broker.read(&cursor, budget, self.accepted).await;
        if fetched.error.is_some() {
            return self.unreadable(found, fetched);
        }
        let room = self.in_flight_max.saturating_sub(self.queue.leased_to(self.session));
        let (session, spec) = (self.session, self.spec);
        if !self.queue.contains(session) {
            return None;
        }
        let mut left = room;
        let mut leases = Vec::new();
        let mut delivered: Vec<FetchedBatch> = Vec::new();
        for batch in std::mem::take(&mut fetched.batches) {
            let available = range_of(batch.base_offset, batch.record_count);
            let got = self.queue.with(found.key, |all| all.acquire(now, session, spec, available, left))?;
            if got.is_empty() {
                continue;
            }
            left -= got.iter().map(|lease| lease.range.count()).sum::<u64>();
            self.note_given(found.key, available.last, &batch);
            leases.extend(got.into_iter().map(|lease| LeasedRange {
                first: lease.range.first,
                last: lease.range.last,
                delivery_count: lease.delivery_count,
            }));
            delivered.push(batch);
        }
        let last = delivered.last()?;
        fetched.next_offset = last.base_offset.saturating_add(last.record_count.into());
        fetched.batches = delivered;
        self.credit = self.credit.saturating_sub(i64::try_from(fetched.bytes()).unwrap_or(i64::MAX));
        self.count(found, &fetched, &leases);
        let responding = self.broker.responding(now, now, None);
        // A lease has begun that ends at some time.
        self.broker.groups().ok()?.changed.notify_one();
        Some(MemberEvent::Leased { fetched, responding, leases })
    }

    /// What retention has deleted is nobody's any more.
    async fn follow_log_start(&mut self, found: &Found) {
        let log_start = found.partition.bounds().log_start;
        let Some(trimmed) = self.queue.with(found.key, |leases| leases.trimmed(log_start)) else { return };
        let Some(update) = trimmed.update else { return };
        let said = Said { key: found.key, updates: vec![update], expired: 0, missed: trimmed.missed };
        if trimmed.missed > 0 {
            warn!(
                name: "group.records_missed",
                group = &*self.queue.name, topic = &*found.route.topic.name, partition = found.key.partition,
                next_offset = log_start.0, missed = trimmed.missed,
                "the group missed records that were deleted before it read them"
            );
        }
        if let Err(failure) = self.broker.replicate(&self.queue, vec![said]).await {
            warn!(group = &*self.queue.name, error = %failure, "the start of the log was not noted");
        }
    }

    /// A partition that cannot be read is not read any more until its topics change.
    fn unreadable(&mut self, found: &Found, fetched: Fetched) -> Option<MemberEvent> {
        let out_of_range =
            fetched.error.as_ref().map(Error::code) == Some(crate::broker::ErrorCode::OffsetOutOfRange);
        if out_of_range {
            // Retention was faster; the next turn follows it.
            return None;
        }
        found.partition.unlisten(&self.member.signal, 1);
        self.reading.remove(&found.key);
        self.slots = self.reading.keys().copied().collect();
        self.turn = 0;
        Some(MemberEvent::Records(fetched, None))
    }

    fn note_given(&mut self, key: PartitionKey, last: Offset, batch: &FetchedBatch) {
        let given = self.given.entry(key).or_default();
        if given.len() >= TIMED_BATCHES {
            given.pop_first();
        }
        given.insert(batch.base_offset, (last, batch.append_time));
    }

    /// The newest delivery of a partition was traced.
    pub fn delivered_in(&self, topic: &str, partition: u32, span: SpanLink) {
        if let (Some(key), Ok(groups)) = (self.key_of(topic, partition), self.broker.groups()) {
            groups.journal.delivered_in(&self.place(key), span);
        }
    }

    fn place(&self, key: PartitionKey) -> Place<'_> {
        Place { group: &self.queue.name, key, term: self.queue.term }
    }

    fn count(&self, found: &Found, fetched: &Fetched, leases: &[LeasedRange]) {
        let now = self.broker.0.clock.now();
        for batch in &fetched.batches {
            self.metrics.delivered(Duration::from_millis(now.millis_since(batch.append_time)));
        }
        let records = |lease: &LeasedRange| lease.last.saturating_since(lease.first).saturating_add(1);
        let again = leases.iter().filter(|lease| lease.delivery_count > 1).map(records).sum();
        if again > 0 {
            self.metrics.redelivered(&found.route.topic.name, again);
        }
        if let Ok(groups) = self.broker.groups() {
            for lease in leases {
                let delivery = Delivery { at: now, member: self.member.id.clone(), span: None };
                let range = lease.first..lease.last.saturating_add(1);
                groups.journal.delivered(&self.place(found.key), range, delivery);
            }
        }
        let all = leases.iter().map(records).sum();
        self.broker.0.metrics.consume.delivered(&found.route.metrics, all, fetched.bytes());
    }
}

/// Waits for what becomes of acknowledgements, and tells the leases.
async fn conclude(
    queue: &Queue,
    journal: &Journal,
    at: Timestamp,
    receiver: oneshot::Receiver<Result<Outcome, coordinator::Error>>,
    accepted: Vec<(usize, PartitionKey, OffsetRange)>,
    mut errors: Vec<Option<Error>>,
) -> Vec<Option<Error>> {
    let unknown = Err(coordinator::Error::Raft(crate::raft::Error::OutcomeUnknown));
    let outcome = receiver.await.unwrap_or(unknown);
    for (place, key, range) in accepted {
        match &outcome {
            Ok(_) => {
                queue.with(key, |leases| leases.committed(range));
                let place = Place { group: &queue.name, key, term: queue.term };
                journal.acknowledged(&place, range.first..range.last.saturating_add(1), at);
                // There is room in the window again.
                queue.ring();
            }
            Err(error) => {
                // It may be committed yet: what is replicated by the time that somebody reads the partition again
                // decides.
                queue.reopen(key);
                errors[place] = Some(Error::from(error.clone()));
            }
        }
    }
    errors
}

impl Drop for ShareMember {
    fn drop(&mut self) {
        let said = self.queue.leave(self.session);
        // A broker that stops has no use for counts of deliveries.
        let Ok(groups) = self.broker.groups() else { return };
        groups.changed.notify_one();
        if said.is_empty() {
            return;
        }
        let (broker, queue) = (self.broker.clone(), self.queue.clone());
        groups.tasks.spawn("share leaving", Criticality::BestEffort, async move {
            if let Err(failure) = broker.replicate(&queue, said).await {
                warn!(group = &*queue.name, error = %failure, "the leases of a member that left were not noted");
            }
        });
    }
}
