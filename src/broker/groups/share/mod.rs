//! One member of a share group: a stream to which records are leased, and over which they are acknowledged.
//!
//! | file | idea |
//! |---|---|
//! | this one | joining, the stream, leaving |
//! | [`reading`] | the partitions that are read, and what retention takes from them |
//! | [`delivery`] | leasing records |
//! | [`acknowledgement`] | what the member says of them |
//!
//! Who has leased what is in the group's [`Queue`], which its members share; each reads for itself.

mod acknowledgement;
mod delivery;
mod reading;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tracing::warn;

use super::journal::Place;
use super::live::{Notice, SessionId};
use super::member::{Join, MemberEvent, member_id, optional, topic_filter};
use super::queue::{Queue, QueueMember, Said};
use super::registry::Coordinated as _;
use super::start::Found;
use crate::broker::{Broker, Error};
use crate::clock::Timestamp;
use crate::coordination::{Command, Kind, LeaseSpec, PartitionKey};
use crate::record::{CodecSet, Offset, SpanLink};
use crate::task::Criticality;
use crate::telemetry::{AckKind as Acked, GroupMetrics};

pub use acknowledgement::{AckKind, Acknowledgement};
pub use delivery::LeasedRange;

use acknowledgement::Answers;

/// How long records are leased to a member that does not say.
const LEASE: Duration = Duration::from_secs(30);
const LEASE_MIN: Duration = Duration::from_secs(1);
const LEASE_MAX: Duration = Duration::from_secs(3600);
/// How often a record is delivered at most if the member does not say, and if it does.
const DELIVERIES_MAX: u32 = 5;
const DELIVERIES_MAX_LIMIT: u32 = 1_000;
/// Records that are leased to a member that does not say how many.
const IN_FLIGHT: u64 = 500;

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
    /// Those of them that cannot be read until topics change. What the member has of them it can acknowledge.
    stopped: BTreeSet<PartitionKey>,
    /// Those that can, in the order of their turns.
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
            stopped: BTreeSet::new(),
            slots: Vec::new(),
            turn: 0,
            given: HashMap::new(),
            answers: Answers::new(),
            ready: VecDeque::from([joined]),
        };
        self.replicate(&queue, said).await?;
        groups.changed.notify_one();
        Ok(member)
    }

    /// Has time-outs of a share group replicated, and gives when the next is due.
    pub(super) fn tick_queue(&self, queue: &Arc<Queue>, now: Instant) -> Option<Instant> {
        let (said, next) = queue.tick(now);
        let group = self.0.metrics.group(&queue.name);
        let expired = said.iter().map(|said| said.expired).sum();
        group.acknowledgements(Acked::Expire, expired);
        self.replicate_later(queue, said, "expired leases were not noted");
        next
    }

    /// The same as [`Broker::replicate`], without waiting for room. `failed` is told if nothing comes of it: the deliveries
    /// were not counted then, and the records are delivered again all the same.
    fn replicate_later(&self, queue: &Arc<Queue>, said: Vec<Said>, failed: &'static str) {
        // A broker that stops has no use for counts of deliveries.
        let Ok(groups) = self.groups() else { return };
        if said.is_empty() {
            return;
        }
        let (broker, queue) = (self.clone(), queue.clone());
        groups.tasks.spawn("share updates", Criticality::BestEffort, async move {
            if let Err(failure) = broker.replicate(&queue, said).await {
                warn!(group = &*queue.name, error = %failure, "{failed}");
            }
        });
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
        drop(slot.submit_in(queue.term().into(), command));
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

    /// Leaves the group: what is leased to it is delivered to others.
    pub async fn leave(&mut self) -> Result<(), Error> {
        let said = self.queue.leave(self.session);
        self.broker.replicate(&self.queue, said).await?;
        self.broker.groups()?.changed.notify_one();
        Ok(())
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

    /// The newest delivery of a partition was traced.
    pub fn delivered_in(&self, topic: &str, partition: u32, span: SpanLink) {
        if let (Some(key), Ok(groups)) = (self.key_of(topic, partition), self.broker.groups()) {
            groups.journal.delivered_in(&self.place(key), span);
        }
    }

    fn place(&self, key: PartitionKey) -> Place<'_> {
        Place { group: &self.queue.name, key, term: self.queue.term() }
    }
}

impl Drop for ShareMember {
    fn drop(&mut self) {
        let said = self.queue.leave(self.session);
        self.broker.replicate_later(&self.queue, said, "the leases of a member that left were not noted");
        if let Ok(groups) = self.broker.groups() {
            groups.changed.notify_one();
        }
    }
}
