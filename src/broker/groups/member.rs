//! One member of a consumer group: a stream that is given partitions, delivers them, and commits.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;

use super::commit::{CommitResult, Committer, OffsetToCommit};
use super::journal::{Delivery, Place};
use super::live::{Live, Notice, SessionId};
use super::mailbox::Mailbox;
use super::offsets::TopicPartition;
use super::registry::Coordinated as _;
use super::share::LeasedRange;
use super::start::{Owner, Start};
use crate::broker::fetch::{FetchPartition, Fetched, Position, Responding};
use crate::broker::{Broker, Error, ErrorCode, Subscription};
use crate::clock::Timestamp;
use crate::coordination::membership::{MemberSpec, TopicFilter};
use crate::coordination::{Command, Kind, PartitionKey};
use crate::record::{CodecSet, Offset, SpanLink};
use crate::task::Criticality;
use crate::telemetry::GroupMetrics;

/// Commits of a member that may be on their way. While there are so many, the member's requests are not read.
const COMMITS_IN_FLIGHT: usize = 64;
/// After how long a partition is looked at again that cannot be read yet.
const BEGIN_AGAIN: Duration = Duration::from_millis(200);
/// Delivered batches of a partition whose way to their commit is timed. Of a member that commits more rarely than
/// that, only the newest batches are timed.
const TIMED_BATCHES: usize = 1_024;

/// Where a group begins where it has no usable committed offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffsetReset {
    /// At the oldest retained record.
    #[default]
    Earliest,
    /// At the next record to be appended.
    Latest,
    /// Nowhere: the partition is delivered as an error.
    Error,
}

/// A member that wants to join. Durations that are `None` get the configured default.
#[derive(Clone, Debug)]
pub struct Join {
    /// The group.
    pub group: String,
    /// The member's id; made up if empty.
    pub member_id: String,
    /// Makes it static, if not empty.
    pub instance_id: String,
    /// Where it runs, if not empty.
    pub rack: String,
    /// What the program calls itself.
    pub client_id: String,
    /// Topics to read.
    pub topics: Vec<String>,
    /// Also topics whose names match, if not empty.
    pub topic_pattern: String,
    /// Bytes that may be delivered before more credit is granted.
    pub credit_bytes: u64,
    /// Records that may be delivered and not committed; zero is without limit.
    pub in_flight_records_max: u32,
    /// After how long without a word the member is removed.
    pub session_timeout: Option<Duration>,
    /// How long it may take to release what is revoked.
    pub rebalance_timeout: Option<Duration>,
    /// Where to begin without a usable offset.
    pub offset_reset: OffsetReset,
    /// Codecs that it knows.
    pub accepted: CodecSet,
}

/// A partition that a member is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedPartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: u32,
    /// The first offset that is delivered.
    pub start: Offset,
    /// What was committed with it.
    pub metadata: Arc<str>,
    /// Records that were deleted before the group read them.
    pub missed: u64,
}

/// What a member's stream delivers.
#[derive(Debug)]
pub enum MemberEvent {
    /// It is in the group.
    Joined {
        /// Its id.
        member_id: Arc<str>,
        /// Its epoch.
        epoch: u64,
        /// The timeout that applies.
        session_timeout: Duration,
    },
    /// It is given partitions.
    Assigned {
        /// Its epoch from now on.
        epoch: u64,
        /// What is new.
        partitions: Vec<AssignedPartition>,
    },
    /// It is to give up partitions.
    Revoked {
        /// Its epoch from now on.
        epoch: u64,
        /// What is taken.
        partitions: Vec<TopicPartition>,
        /// How long it may take.
        deadline: Duration,
    },
    /// Batches of a partition, with what times their way to the client; or its error.
    Records(Fetched, Option<Responding>),
    /// What became of a commit.
    Committed {
        /// Of the commit.
        correlation_id: u64,
        /// One for each offset.
        results: Vec<CommitResult>,
    },
    /// Records of a partition that are leased to a member of a share group.
    Leased {
        /// The batches that hold them.
        fetched: Fetched,
        /// Times their way to the client.
        responding: Responding,
        /// Which of their records are leased.
        leases: Vec<LeasedRange>,
    },
    /// What became of acknowledgements.
    Acknowledged {
        /// Of the request.
        correlation_id: u64,
        /// Why nothing happened, for each acknowledgement.
        results: Vec<Option<Error>>,
    },
    /// It is asked for a sign of life.
    Keepalive,
}

/// A partition that the member has.
struct Held {
    topic: Arc<str>,
    /// Nothing of it is delivered until the member resumes it.
    paused: bool,
    /// The offset after what was delivered.
    next: Offset,
    /// What is known to be committed.
    committed: Offset,
    /// Delivered and not committed batches: the offset after the last record, and when they were appended.
    batches: VecDeque<(Offset, Timestamp)>,
}

impl Held {
    fn new(topic: Arc<str>, start: Offset) -> Held {
        Held { topic, paused: false, next: start, committed: start, batches: VecDeque::new() }
    }

    fn in_flight(&self) -> u64 {
        self.next.saturating_since(self.committed)
    }
}

type Commits = FuturesOrdered<Pin<Box<dyn Future<Output = (u64, Vec<CommitResult>)> + Send>>>;

/// See the module. Dropping it is what the end of its stream is for the group: a dynamic member is gone, a static one
/// has until its session times out to come back.
pub struct Member {
    broker: Broker,
    live: Arc<Live>,
    metrics: Arc<GroupMetrics>,
    id: Arc<str>,
    session: SessionId,
    epoch: u64,
    mailbox: Arc<Mailbox<Notice>>,
    subscription: Subscription,
    reset: OffsetReset,
    in_flight_max: u64,
    held: HashMap<PartitionKey, Held>,
    commits: Commits,
    /// Events that are ready to be delivered.
    ready: VecDeque<MemberEvent>,
}

impl Broker {
    /// Makes a stream a member of a group.
    ///
    /// # Errors
    /// A field is out of range, the group is of the other kind or full, there are too many groups, or its coordinator is
    /// not here.
    pub async fn join(&self, join: Join) -> Result<Member, Error> {
        let groups = self.groups()?;
        groups.admit(&join.group, Kind::Consumer)?;
        let filter = topic_filter(&join.topics, &join.topic_pattern)?;
        let session_timeout = self.session_timeout(join.session_timeout)?;
        let rebalance_timeout = join.rebalance_timeout.unwrap_or(groups.config.rebalance_timeout);
        if rebalance_timeout.is_zero() || rebalance_timeout > Duration::from_secs(3600) {
            let problem = format!("{rebalance_timeout:?} is not above 0 s and at most 1 h");
            return Err(Error::InvalidArgument { field: "rebalance_timeout", problem });
        }
        let id = member_id(&join.member_id)?;
        let group: Arc<str> = join.group.as_str().into();
        let at = self.0.clock.now();
        let create = Command::CreateGroup { group: group.clone(), kind: Kind::Consumer, at };
        groups.coordinators.of(&group).change(create).await?;

        let spec = MemberSpec {
            member_id: id.clone(),
            instance_id: optional("instance_id", &join.instance_id)?,
            rack: optional("rack", &join.rack)?,
            client_id: optional("client_id", &join.client_id)?,
            topics: filter,
            session_timeout,
            rebalance_timeout,
        };
        let session = groups.next_session();
        let mailbox: Arc<Mailbox<Notice>> = Arc::default();
        let topics = self.topic_view()?;
        let (live, epoch) = loop {
            let live = groups.live_or_new(&group)?;
            let members = live.member_count();
            if members >= groups.config.members_max as usize && !live.has_member(&id) {
                let (what, setting) = ("members of a group", "groups.members_max");
                return Err(Error::LimitReached { what, limit: groups.config.members_max.into(), setting });
            }
            if let Some(epoch) = live.join(Instant::now(), spec.clone(), session, mailbox.clone(), &topics) {
                break (live, epoch);
            }
        };
        groups.changed.notify_one();
        let mut subscription = self.subscribe(join.accepted);
        subscription.grant(join.credit_bytes);
        let joined = MemberEvent::Joined { member_id: id.clone(), epoch, session_timeout };
        Ok(Member {
            broker: self.clone(),
            metrics: self.0.metrics.group(&group),
            live,
            id,
            session,
            epoch,
            mailbox,
            subscription,
            reset: join.offset_reset,
            in_flight_max: match join.in_flight_records_max {
                0 => u64::MAX,
                limit => limit.into(),
            },
            held: HashMap::new(),
            commits: FuturesOrdered::new(),
            ready: VecDeque::from([joined]),
        })
    }

    pub(super) fn session_timeout(&self, wanted: Option<Duration>) -> Result<Duration, Error> {
        let config = &self.groups()?.config;
        let timeout = wanted.unwrap_or(config.session_timeout);
        let (least, most) = (config.session_timeout_min, config.session_timeout_max);
        if timeout < least || timeout > most {
            let problem = format!(
                "{timeout:?} is not from {least:?} (groups.session_timeout_min) to {most:?} (groups.session_timeout_max)"
            );
            return Err(Error::InvalidArgument { field: "session_timeout", problem });
        }
        Ok(timeout)
    }
}

/// The id that a member asks for, or one that nobody else has.
pub(super) fn member_id(wanted: &str) -> Result<Arc<str>, Error> {
    Ok(match optional("member_id", wanted)? {
        Some(id) => id,
        None => uuid::Uuid::new_v4().to_string().into(),
    })
}

/// A short text that may be absent.
pub(super) fn optional(field: &'static str, text: &str) -> Result<Option<Arc<str>>, Error> {
    if text.len() > 255 {
        let problem = format!("has {} bytes, at most 255 are allowed", text.len());
        return Err(Error::InvalidArgument { field, problem });
    }
    Ok((!text.is_empty()).then(|| text.into()))
}

pub(super) fn topic_filter(topics: &[String], pattern: &str) -> Result<TopicFilter, Error> {
    if topics.is_empty() && pattern.is_empty() {
        let problem = "is empty: name topics, or give a topic_pattern".to_owned();
        return Err(Error::InvalidArgument { field: "topics", problem });
    }
    for topic in topics {
        crate::metadata::validate_name(topic)
            .map_err(|error| Error::InvalidArgument { field: "topics", problem: error.to_string() })?;
    }
    let names = topics.iter().map(|topic| Arc::from(topic.as_str()));
    TopicFilter::new(names, (!pattern.is_empty()).then_some(pattern))
        .map_err(|error| Error::InvalidArgument { field: "topic_pattern", problem: error.to_string() })
}

impl Member {
    /// What is next: waits for it. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::MemberFenced`]: the stream is no member any more.
    pub async fn next(&mut self) -> Result<MemberEvent, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let room = self.in_flight_max.saturating_sub(self.in_flight());
            self.subscription.limit_records(room);
            let may_deliver = room > 0;
            tokio::select! {
                biased;
                notice = self.mailbox.front() => self.act(notice).await?,
                Some((correlation_id, results)) = self.commits.next() => {
                    return Ok(self.committed(correlation_id, results));
                }
                (fetched, responding) = self.subscription.next(), if may_deliver => {
                    if let Some(event) = self.delivered(fetched, responding) {
                        return Ok(event);
                    }
                }
            }
        }
    }

    /// The group, for spans.
    pub fn group(&self) -> &str {
        &self.live.name
    }

    /// The member gave a sign of life, whatever it was.
    pub fn heard(&self) {
        self.live.heard(Instant::now(), &self.id, self.session);
    }

    /// Lets `bytes` more be delivered.
    pub fn grant(&mut self, bytes: u64) {
        self.subscription.grant(bytes);
    }

    /// Whether another commit may be begun now.
    pub fn can_commit(&self) -> bool {
        self.commits.len() < COMMITS_IN_FLIGHT
    }

    /// Whether results of commits are on their way.
    pub fn is_committing(&self) -> bool {
        !self.commits.is_empty()
    }

    /// Begins a commit, whose results [`Member::next`] delivers in the order of the commits.
    ///
    /// # Errors
    /// The coordinator cannot take it.
    pub async fn commit(
        &mut self,
        correlation_id: u64,
        epoch: u64,
        offsets: Vec<OffsetToCommit>,
    ) -> Result<(), Error> {
        let committer = Committer::Member {
            live: self.live.clone(),
            member: self.id.clone(),
            session: Some(self.session),
            epoch,
        };
        let pending = self.broker.begin_commit(&self.live.name, &committer, offsets, Instant::now()).await?;
        self.commits.push_back(Box::pin(async move { (correlation_id, pending.outcome().await) }));
        Ok(())
    }

    /// Gives up partitions that were revoked. Unknown ones are passed over.
    pub fn release(&mut self, partitions: &[TopicPartition]) {
        let keys: Vec<_> = partitions.iter().filter_map(|at| self.key_of(&at.topic, at.partition)).collect();
        self.held.retain(|key, _| !keys.contains(key));
        self.live.release(Instant::now(), &self.id, self.session, &keys);
        self.poke();
    }

    /// Delivers nothing of these partitions until they are resumed. Those that are not read are passed over.
    pub fn pause(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            let key = self.key_of(&at.topic, at.partition);
            let held = key.and_then(|key| self.held.get_mut(&key));
            if let Some(held) = held.filter(|_| self.subscription.reads(&at.topic, at.partition)) {
                held.paused = true;
                self.subscription.remove(&[(at.topic.clone(), at.partition)]);
            }
        }
    }

    /// Goes on with paused partitions after what was delivered of them. Unknown ones, and those that are not paused, are
    /// passed over.
    pub async fn resume(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            let Some(key) = self.key_of(&at.topic, at.partition) else { continue };
            let Some(held) = self.held.get_mut(&key).filter(|held| held.paused) else { continue };
            held.paused = false;
            let position = Position::Offset(held.next);
            let wanted = FetchPartition { topic: at.topic.clone(), partition: at.partition, position };
            for failed in self.subscription.add(vec![wanted]).await {
                let event = self.delivered(failed, None);
                self.ready.extend(event);
            }
        }
    }

    /// Leaves the group for good.
    pub fn leave(&mut self) {
        self.live.leave(Instant::now(), &self.id, self.session);
        self.held.clear();
        self.poke();
    }

    fn owner(&self, epoch: u64) -> Owner<'_> {
        Owner { live: &self.live, member: &self.id, session: self.session, epoch }
    }

    fn poke(&self) {
        if let Ok(groups) = self.broker.groups() {
            groups.changed.notify_one();
        }
    }

    fn in_flight(&self) -> u64 {
        // What the member has put aside is not to keep it from reading the rest.
        self.held.values().filter(|held| !held.paused).map(Held::in_flight).sum()
    }

    fn key_of(&self, topic: &str, partition: u32) -> Option<PartitionKey> {
        let of_name = |(key, held): (&PartitionKey, &Held)| {
            (key.partition == partition && &*held.topic == topic).then_some(*key)
        };
        self.held.iter().find_map(of_name)
    }

    /// Acts on the oldest notice, and takes it from the mailbox only then: whoever drops this half-way finds it again.
    async fn act(&mut self, notice: Notice) -> Result<(), Error> {
        let event = match notice {
            Notice::Assign { epoch, partitions } => {
                let found = self.broker.find(&partitions)?;
                let starts = self.broker.starts(&self.owner(epoch), self.reset, found).await?;
                let mut assigned = Vec::with_capacity(starts.len());
                for start in starts {
                    assigned.extend(self.begin(start).await);
                }
                self.epoch = epoch;
                MemberEvent::Assigned { epoch, partitions: assigned }
            }
            Notice::Revoke { epoch, partitions, deadline } => {
                self.epoch = epoch;
                let taken: Vec<_> = partitions
                    .iter()
                    .filter_map(|key| {
                        let topic = self.held.get(key)?.topic.to_string();
                        Some(TopicPartition { topic, partition: key.partition })
                    })
                    .collect();
                let names: Vec<_> = taken.iter().map(|at| (at.topic.clone(), at.partition)).collect();
                self.subscription.remove(&names);
                let unknown: Vec<_> =
                    partitions.iter().filter(|key| !self.held.contains_key(key)).copied().collect();
                if !unknown.is_empty() {
                    // Of a topic that is gone: the client never had it, so there is nothing that it could give up.
                    self.live.release(Instant::now(), &self.id, self.session, &unknown);
                }
                MemberEvent::Revoked { epoch, partitions: taken, deadline }
            }
            Notice::Restart(key) => {
                let mut assigned = Vec::new();
                let held = self.held.get(&key);
                // It may have been taken away, and given anew, since this was said.
                let unread = held.filter(|held| !self.subscription.reads(&held.topic, key.partition));
                let next = unread.map(|held| held.next);
                for found in self.broker.find(&[key])? {
                    let Some(next) = next else { continue };
                    let start = self.broker.restart(&self.owner(self.epoch), self.reset, found, next).await?;
                    assigned.extend(self.begin(start).await);
                }
                MemberEvent::Assigned { epoch: self.epoch, partitions: assigned }
            }
            Notice::Fence(reason) => {
                return Err(Error::MemberFenced {
                    group: self.live.name.to_string(),
                    reason: format!("member {:?}: {reason}", self.id),
                });
            }
            Notice::Keepalive => MemberEvent::Keepalive,
            // Members of consumer groups are told what follows from it.
            Notice::Topics => {
                self.mailbox.pop();
                return Ok(());
            }
        };
        self.mailbox.pop();
        let empty = match &event {
            MemberEvent::Revoked { partitions, .. } => partitions.is_empty(),
            MemberEvent::Assigned { partitions, .. } => partitions.is_empty(),
            _ => false,
        };
        if !empty {
            self.ready.push_back(event);
        }
        Ok(())
    }

    /// Begins to read a partition. None if it cannot be read, which is delivered as its error.
    async fn begin(&mut self, start: Start) -> Option<AssignedPartition> {
        let Start { found, offset, metadata, missed } = start;
        let topic = found.route.topic.name.clone();
        let partition = found.key.partition;
        let failed = match offset {
            Ok(offset) => {
                let position = Position::Offset(offset);
                let wanted = FetchPartition { topic: topic.to_string(), partition, position };
                if let Ok(groups) = self.broker.groups() {
                    groups.journal.begin(&self.place(found.key), self.broker.now());
                }
                let failed = self.subscription.add(vec![wanted]).await;
                self.held.insert(found.key, Held::new(topic.clone(), offset));
                failed
            }
            Err(error) => {
                self.held.insert(found.key, Held::new(topic.clone(), Offset::ZERO));
                vec![Fetched::failed(&topic, partition, error)]
            }
        };
        let readable = failed.is_empty();
        for failed in failed {
            let code = failed.error.as_ref().map(Error::code);
            if matches!(code, Some(ErrorCode::NotLeader | ErrorCode::NotReady)) {
                self.begin_later(found.key);
            } else {
                self.ready.push_back(MemberEvent::Records(failed, None));
            }
        }
        let start = self.held.get(&found.key)?.next;
        readable.then_some(AssignedPartition { topic, partition, start, metadata, missed })
    }

    /// Begins to read a partition in a moment that cannot be read now, because its leader is not known yet.
    fn begin_later(&self, key: PartitionKey) {
        let mailbox = Arc::downgrade(&self.mailbox);
        let Ok(groups) = self.broker.groups() else { return };
        groups.tasks.spawn_until_stopped("begin later", Criticality::BestEffort, async move {
            tokio::time::sleep(BEGIN_AGAIN).await;
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.push(Notice::Restart(key));
            }
        });
    }

    /// Notes what is delivered. None if it is dealt with here.
    fn delivered(&mut self, fetched: Fetched, responding: Option<Responding>) -> Option<MemberEvent> {
        let key = self.key_of(&fetched.topic, fetched.partition)?;
        if fetched.error.as_ref().is_some_and(|error| error.code() == ErrorCode::OffsetOutOfRange) {
            // Retention was faster than the member.
            self.mailbox.push_front(Notice::Restart(key));
            return None;
        }
        let now = self.broker.0.clock.now();
        let held = self.held.get_mut(&key)?;
        for batch in &fetched.batches {
            let end = batch.base_offset.saturating_add(batch.record_count.into());
            self.metrics.delivered(Duration::from_millis(now.millis_since(batch.append_time)));
            if held.batches.len() == TIMED_BATCHES {
                held.batches.pop_front();
            }
            held.batches.push_back((end, batch.append_time));
        }
        // A batch may begin before the member does.
        let from = held.next;
        if fetched.error.is_none() {
            held.next = fetched.next_offset;
        }
        if let (Some(first), Ok(groups)) = (fetched.batches.first(), self.broker.groups()) {
            let delivery = Delivery { at: now, member: self.id.clone(), span: None };
            groups.journal.delivered(
                &self.place(key),
                first.base_offset.max(from)..fetched.next_offset,
                delivery,
            );
        }
        Some(MemberEvent::Records(fetched, responding))
    }

    /// The newest delivery of a partition was traced.
    pub fn delivered_in(&self, topic: &str, partition: u32, span: SpanLink) {
        if let (Some(key), Ok(groups)) = (self.key_of(topic, partition), self.broker.groups()) {
            groups.journal.delivered_in(&self.place(key), span);
        }
    }

    fn place(&self, key: PartitionKey) -> Place<'_> {
        Place { group: &self.live.name, key, term: self.live.term() }
    }

    fn committed(&mut self, correlation_id: u64, results: Vec<CommitResult>) -> MemberEvent {
        let now = self.broker.0.clock.now();
        for result in results.iter().filter(|result| result.error.is_none()) {
            let Some(key) = self.key_of(&result.topic, result.partition) else { continue };
            let Some(held) = self.held.get_mut(&key) else { continue };
            held.committed = result.offset;
            // The batch that holds the last committed record tells how long it took.
            let mut last = None;
            while held.batches.front().is_some_and(|(end, _)| *end <= result.offset) {
                last = held.batches.pop_front().map(|(_, appended)| appended);
            }
            let partly = held.batches.front().filter(|(end, _)| *end > result.offset && last.is_none());
            if let Some(appended) = last.or(partly.map(|(_, appended)| *appended)) {
                self.metrics.acknowledged(Duration::from_millis(now.millis_since(appended)));
            }
        }
        MemberEvent::Committed { correlation_id, results }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.live.disconnected(Instant::now(), &self.id, self.session);
        self.poke();
    }
}
