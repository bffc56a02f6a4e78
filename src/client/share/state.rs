//! What the consumer, its task and its records share.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use opentelemetry::trace::SpanContext;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::acks::{Ack, Acks, Answered, Say};
use super::config::ShareConfig;
use super::record::Acknowledged;
use crate::client::consumer::Received;
use crate::client::member::Requests;
use crate::client::routing::Router;
use crate::client::telemetry::{Polling, Settle, Settled, Telemetry, creation_context, sampled_current};
use crate::client::{ConsumedRecord, Error, ErrorCode, Offset, TopicPartition};
use crate::proto::v1;
use crate::proto::v1::subscribe_request::Action;

/// Credit is granted again in this many steps rather than for every batch.
const GRANT_STEPS: u64 = 4;

/// Numbers the memberships of a consumer; leases end with them.
pub(super) type SessionId = u64;

/// What the consumer, its task and its records share.
pub(super) struct Shared {
    pub(super) config: ShareConfig,
    pub(super) router: Arc<Router>,
    pub(super) telemetry: Arc<Telemetry>,
    state: Mutex<State>,
    /// Acknowledgements were answered, or records were let go.
    pub(super) answered: Notify,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) member_id: String,
    pub(super) session: Option<Session>,
    sessions_made: SessionId,
    partitions: BTreeMap<TopicPartition, Partition>,
    /// What was received and is not handed out yet. Bounded by the credit.
    ready: VecDeque<Ready>,
    acks: Acks,
    pub(super) leaving: bool,
    ended: bool,
    waker: Option<Waker>,
}

pub(super) struct Session {
    id: SessionId,
    pub(super) requests: Requests,
    /// Bytes to be granted.
    owed: u64,
}

#[derive(Default)]
struct Partition {
    /// When it must be released at the latest, if it is to be.
    release_by: Option<Instant>,
    leases: BTreeMap<Offset, Lease>,
}

/// A record that is leased to the member and not acknowledged.
struct Lease {
    delivery_count: u32,
    /// Whether the program has it.
    held: bool,
    until: Instant,
}

enum Ready {
    Batch { session: SessionId, at: TopicPartition, received: Received },
    Failure(Error),
}

/// What is handed out next.
pub(super) enum Next {
    Batch { session: SessionId, at: TopicPartition, received: Received },
    Failure(Error),
    End,
}

impl Shared {
    pub(super) fn new(config: ShareConfig, router: Arc<Router>, telemetry: Arc<Telemetry>) -> Shared {
        let member_id = config.member_id.clone().unwrap_or_default();
        let state = Mutex::new(State { member_id, ..State::default() });
        Shared { config, router, telemetry, state, answered: Notify::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }

    // What the program does.

    pub(super) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.lock();
        match state.ready.pop_front() {
            Some(Ready::Failure(error)) => Poll::Ready(Next::Failure(error)),
            Some(Ready::Batch { session, at, received }) => {
                state.grant(received.bytes(), self.grant_at());
                Poll::Ready(Next::Batch { session, at, received })
            }
            None if state.ended => Poll::Ready(Next::End),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Gives the program a record. `None` if it is not leased to the member, or not any more; otherwise how often it
    /// was delivered.
    pub(super) fn hand_out(&self, session: SessionId, at: &TopicPartition, offset: Offset) -> Option<u32> {
        let mut state = self.lock();
        if state.session.as_ref().is_none_or(|current| current.id != session) {
            return None;
        }
        let leases = &mut state.partitions.get_mut(at)?.leases;
        let lease = leases.get_mut(&offset).filter(|lease| !lease.held)?;
        if lease.until <= Instant::now() {
            leases.remove(&offset);
            return None;
        }
        lease.held = true;
        Some(lease.delivery_count)
    }

    /// How many records of these offsets wait to be handed out.
    pub(super) fn waiting(&self, at: &TopicPartition, from: Offset, to: Offset) -> u32 {
        let state = self.lock();
        let leases = state.partitions.get(at).map(|partition| partition.leases.range(from..to));
        let count = leases.into_iter().flatten().filter(|(_, lease)| !lease.held).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Says something of a record that the program has.
    pub(super) fn acknowledge(&self, record: &ConsumedRecord, session: SessionId, say: Say) -> Acknowledged {
        let (waiter, outcome) = oneshot::channel();
        let at = record.topic_partition();
        let mut ack = Ack::new(at, record.offset, say);
        ack.waiter = Some(waiter);
        if ack.say != Say::Extend {
            ack.created = creation_context(&record.headers).filter(SpanContext::is_sampled);
            ack.parent = sampled_current();
        }
        let mut state = self.lock();
        if state.session.as_ref().is_none_or(|current| current.id != session) {
            let reason = "the membership under which the record was delivered is over".into();
            ack.tell(Err(Error::LeaseOver { reason }));
            return Acknowledged::new(outcome);
        }
        let leases = state.partitions.get_mut(&ack.at).map(|partition| &mut partition.leases);
        let held = match (&ack.say, leases) {
            (Say::Extend, Some(leases)) => leases.contains_key(&ack.offset),
            (_, Some(leases)) => leases.remove(&ack.offset).is_some(),
            (_, None) => false,
        };
        if held {
            state.acks.push(ack);
            state.send_acks();
        } else {
            ack.tell(Err(Error::LeaseOver { reason: "the record was released by the consumer".into() }));
        }
        Acknowledged::new(outcome)
    }

    // What the broker does.

    pub(super) fn joined(&self, joined: v1::GroupJoined, requests: Requests) {
        let mut state = self.lock();
        state.member_id = joined.member_id;
        state.sessions_made += 1;
        state.session = Some(Session { id: state.sessions_made, requests, owed: 0 });
    }

    pub(super) fn assigned(&self, assigned: v1::PartitionsAssigned) {
        let mut state = self.lock();
        for partition in assigned.partitions {
            let at = TopicPartition::new(partition.topic, partition.partition);
            // It may be one that could not be read for a while; what the program has of it is still leased.
            state.partitions.entry(at).or_default().release_by = None;
        }
    }

    /// Takes in records that are leased to the member. A failure that joining anew may cure is returned.
    pub(super) fn received(&self, records: v1::PartitionRecords) -> Result<(), Error> {
        let at = TopicPartition::new(records.topic, records.partition);
        let until = Instant::now() + self.config.lease;
        let mut state = self.lock();
        let Some(session) = state.session.as_ref().map(|session| session.id) else { return Ok(()) };
        let Some(partition) = state.partitions.get_mut(&at) else {
            if let Some(error) = records.error {
                // It cannot be read from where the group is, and was never given to the program.
                let failure = Error::from(error).at(&at.topic, at.partition);
                if failure.is_retriable() {
                    return Err(failure);
                }
                state.ready.push_back(Ready::Failure(failure));
                wake(state);
                return Ok(());
            }
            let bytes = records.batches.iter().map(|batch| batch.batch.len() as u64).sum();
            state.grant(bytes, self.grant_at());
            return Ok(());
        };
        let mut ready = Vec::with_capacity(records.batches.len());
        for stored in records.batches {
            let base = stored.base_offset;
            let last = base.saturating_add(u64::from(stored.record_count)).saturating_sub(1);
            for lease in &records.leases {
                for offset in lease.first_offset.max(base)..=lease.last_offset.min(last) {
                    let (delivery_count, held) = (lease.delivery_count, false);
                    partition.leases.insert(Offset(offset), Lease { delivery_count, held, until });
                }
            }
            let (end, start) = (records.high_watermark, records.log_start_offset);
            let received = Received::new(stored, Offset(base), end, start);
            ready.push(Ready::Batch { session, at: at.clone(), received });
        }
        let is_revoking = partition.release_by.is_some();
        let failure = records.error.map(|error| Error::from(error).at(&at.topic, at.partition));
        let passes = failure.as_ref().is_some_and(Error::is_retriable);
        if !passes {
            ready.extend(failure.clone().map(Ready::Failure));
        }
        state.ready.extend(ready);
        if is_revoking {
            // It was on its way when the partition was revoked.
            state.release_unheld(&at);
        }
        wake(state);
        failure.filter(|_| passes).map_or(Ok(()), Err)
    }

    /// Partitions are to be given up: what the program does not have of them goes back at once.
    pub(super) fn revoked(&self, revoked: v1::PartitionsRevoked) {
        let within = revoked.deadline.and_then(|deadline| Duration::try_from(deadline).ok());
        let by = Instant::now() + within.unwrap_or(self.config.rebalance_timeout) * 9 / 10;
        let mut state = self.lock();
        for at in revoked.partitions.into_iter().map(TopicPartition::from) {
            if let Some(partition) = state.partitions.get_mut(&at) {
                partition.release_by = Some(by);
                state.release_unheld(&at);
            }
        }
        state.release_finished();
    }

    /// Releases partitions whose time has come, and says when the next one's does.
    pub(super) fn release_due(&self) -> Option<Instant> {
        let mut state = self.lock();
        state.release_finished();
        state.partitions.values().filter_map(|partition| partition.release_by).min()
    }

    /// The broker said what became of acknowledgements. Returns after which time some are to be sent again.
    pub(super) fn acknowledged(&self, answer: v1::Acknowledged) -> Result<Option<Option<Duration>>, Error> {
        let mut state = self.lock();
        let answered = state.acks.answered(answer)?;
        let until = Instant::now() + self.config.lease;
        for (ack, _) in answered.acks.iter().filter(|(ack, error)| ack.say == Say::Extend && error.is_none())
        {
            let lease = state.partitions.get_mut(&ack.at).and_then(|held| held.leases.get_mut(&ack.offset));
            if let Some(lease) = lease {
                lease.until = until;
            }
        }
        state.send_acks();
        state.release_finished();
        drop(state);
        self.answered.notify_waiters();
        self.note(&answered);
        let retry = answered.retry;
        for (ack, error) in answered.acks {
            let error = error.map(|error| error.at(&ack.at.topic, ack.at.partition));
            ack.tell(error.map_or(Ok(()), Err));
        }
        Ok(retry)
    }

    pub(super) fn retry_acks(&self) {
        let mut state = self.lock();
        state.acks.retry();
        state.send_acks();
    }

    /// Extends the lease of everything that is leased.
    pub(super) fn extend_all(&self) {
        let mut state = self.lock();
        if !state.acks.has_room() {
            // The broker does not keep up; more extensions would only pile up.
            return;
        }
        let held = state.partitions.iter().flat_map(|(at, partition)| {
            partition.leases.keys().map(|offset| Ack::new(at.clone(), *offset, Say::Extend))
        });
        let acks: Vec<Ack> = held.collect();
        acks.into_iter().for_each(|ack| state.acks.push(ack));
        state.send_acks();
    }

    /// The membership is over, and all leases with it.
    pub(super) fn lost(&self, error: &Error) {
        let mut state = self.lock();
        state.session = None;
        state.partitions.clear();
        state.ready.retain(|ready| matches!(ready, Ready::Failure(_)));
        let (unsent, sent) = state.acks.take();
        wake(state);
        self.answered.notify_waiters();
        for ack in unsent {
            ack.tell(Err(Error::LeaseOver { reason: format!("the membership ended: {error}") }));
        }
        for ack in sent {
            ack.tell(Err(error.clone()));
        }
    }

    pub(super) fn end(&self, error: Option<Error>) {
        let mut state = self.lock();
        state.ready.extend(error.map(Ready::Failure));
        state.ended = true;
        wake(state);
    }

    fn note(&self, answered: &Answered) {
        let mut topics: BTreeMap<&str, Vec<&(Ack, Option<Error>)>> = BTreeMap::new();
        for answer in answered.acks.iter().filter(|(ack, _)| ack.say != Say::Extend) {
            topics.entry(&answer.0.at.topic).or_default().push(answer);
        }
        for (topic, answers) in topics {
            let contexts: Vec<_> = answers.iter().filter_map(|(ack, _)| ack.created.clone()).collect();
            self.telemetry.settled(
                Settle::Acknowledge,
                &Settled {
                    topic,
                    began: answered.began,
                    parent: answers.iter().find_map(|(ack, _)| ack.parent.as_ref()),
                    contexts: &contexts,
                    messages: i64::try_from(answers.len()).ok(),
                    failure: answers.iter().find_map(|(_, error)| error.as_ref()),
                },
            );
        }
        for (ack, error) in &answered.acks {
            if let Some(error) = error.as_ref().filter(|error| error.code() != Some(ErrorCode::LeaseExpired))
            {
                tracing::warn!(%error, topic = &*ack.at.topic, partition = ack.at.partition, "not acknowledged");
            }
        }
    }

    fn grant_at(&self) -> u64 {
        (self.config.credit_bytes / GRANT_STEPS).max(1)
    }

    /// The instruments of reading a topic.
    pub(super) fn polling(&self, topic: &str) -> Polling {
        self.telemetry.polling(topic)
    }
}

fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl State {
    /// The partitions that the member reads, in order.
    pub(super) fn assignment(&self) -> Vec<TopicPartition> {
        let kept = self.partitions.iter().filter(|(_, partition)| partition.release_by.is_none());
        kept.map(|(at, _)| at.clone()).collect()
    }

    /// Whether everything that was said has been answered, or there is nobody to answer.
    pub(super) fn is_settled(&self) -> bool {
        self.session.is_none() || self.acks.is_empty()
    }

    fn send_acks(&mut self) {
        let Some(session) = &self.session else { return };
        while let Some(request) = self.acks.next_request() {
            session.requests.send(Action::Acknowledge(request));
        }
    }

    /// Gives back what the program does not have of a partition.
    fn release_unheld(&mut self, at: &TopicPartition) {
        let Some(partition) = self.partitions.get_mut(at) else { return };
        let acks = &mut self.acks;
        partition.leases.retain(|offset, lease| {
            if !lease.held {
                acks.push(Ack::new(at.clone(), *offset, Say::Release(Duration::ZERO)));
            }
            lease.held
        });
        self.send_acks();
    }

    /// Releases revoked partitions of which nothing is leased, or whose time is over.
    fn release_finished(&mut self) {
        let now = Instant::now();
        let unanswered = self.acks.partitions();
        let is_over = |at: &TopicPartition, partition: &Partition| {
            let done = partition.leases.is_empty() && !unanswered.contains(at);
            partition.release_by.is_some_and(|by| done || by <= now)
        };
        let over = self.partitions.iter().filter(|(at, partition)| is_over(at, partition));
        let over: Vec<TopicPartition> = over.map(|(at, _)| at.clone()).collect();
        if over.is_empty() {
            return;
        }
        for at in &over {
            self.partitions.remove(at);
        }
        if let Some(session) = &self.session {
            let partitions = over.iter().map(v1::TopicPartition::from).collect();
            session.requests.send(Action::Release(v1::ReleasePartitions { partitions }));
        }
    }

    /// Gives back credit that was used, when it is worth a message.
    fn grant(&mut self, bytes: u64, grant_at: u64) {
        let Some(session) = &mut self.session else { return };
        session.owed += bytes;
        if session.owed >= grant_at {
            let bytes = std::mem::take(&mut session.owed);
            session.requests.send(Action::Credit(v1::GrantCredit { bytes }));
        }
    }
}

/// The polling instruments by topic.
pub(super) type Pollings = HashMap<Arc<str>, Polling>;
