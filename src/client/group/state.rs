//! What the consumer, its tasks and its committers share.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::sync::{Notify, Semaphore};

use super::commits::Commits;
use super::config::GroupConfig;
use super::progress::Progress;
use super::{AssignedPartition, CommitMode};
use crate::client::consumer::Received;
use crate::client::member::Requests;
use crate::client::routing::Router;
use crate::client::telemetry::{Polling, Telemetry};
use crate::client::{ConsumedRecord, Error, Offset, TopicPartition};
use crate::proto::v1;
use crate::proto::v1::subscribe_request::Action;

/// Credit is granted again in this many steps rather than for every batch.
const GRANT_STEPS: u64 = 4;

/// Partitions of one request.
const PARTITIONS_MAX: usize = 1_000;

/// Names an assignment of a partition: one that is assigned again has another.
pub(super) type ClaimId = u64;

/// What the consumer, its tasks and its committers share.
pub(super) struct Shared {
    pub(super) config: GroupConfig,
    pub(super) router: Arc<Router>,
    pub(super) telemetry: Arc<Telemetry>,
    state: Mutex<State>,
    /// Something was processed that somebody may wait for.
    pub(super) settled: Notify,
    /// Commits should not wait for their interval.
    pub(super) commit_now: Notify,
    /// One for each commit that may be under way.
    pub(super) permits: Arc<Semaphore>,
}

/// The changing part.
#[derive(Default)]
pub(super) struct State {
    pub(super) member_id: String,
    pub(super) session: Option<Session>,
    claims: BTreeMap<ClaimId, Claim>,
    by_partition: HashMap<TopicPartition, ClaimId>,
    claims_made: ClaimId,
    /// The claim of what the program was given last.
    last: Option<ClaimId>,
    /// What was received and is not handed out yet, except of paused partitions. Bounded by the credit.
    ready: VecDeque<Ready>,
    /// What the program has paused. Of those that are lost too, since they may come back.
    paused: BTreeSet<TopicPartition>,
    pub(super) commits: Commits,
    /// Records handed out since a commit was made.
    delivered: u64,
    pub(super) leaving: bool,
    ended: bool,
    waker: Option<Waker>,
}

/// A stream on which the member is in the group.
pub(super) struct Session {
    pub(super) requests: Requests,
    pub(super) epoch: u64,
    /// Bytes to be granted. Negative after a pause: what was put aside does not count, and counts again then.
    ///
    /// INVARIANT: together with what the broker may still send, and what is ready, these are the credit.
    owed: i64,
}

/// A partition that the member has.
struct Claim {
    at: TopicPartition,
    phase: Phase,
    paused: bool,
    /// What was received and is not handed out because of the pause. The broker stops sending when it hears of the pause,
    /// so this is bounded by the credit.
    aside: VecDeque<Received>,
    progress: Progress,
    polling: Arc<Polling>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The listener does not know of it yet; nothing is handed out.
    Assigned,
    /// Records are handed out.
    Active,
    /// The error that keeps it from being read was told.
    Failed,
    /// It is to be released; nothing is handed out any more.
    Revoking,
}

/// Whether the program is given something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandOut {
    Given,
    /// Not while the partition is paused.
    Paused,
    /// The claim is not the member's any more.
    Over,
}

enum Ready {
    Batch { claim: ClaimId, received: Received },
    Failure(Error),
}

/// What the program is given next.
pub(super) enum Next {
    Batch { claim: ClaimId, at: TopicPartition, polling: Arc<Polling>, received: Received },
    Failure(Error),
    End,
}

impl Shared {
    pub(super) fn new(config: GroupConfig, router: Arc<Router>, telemetry: Arc<Telemetry>) -> Shared {
        let permits = Arc::new(Semaphore::new(config.commits_in_flight_max.min(Semaphore::MAX_PERMITS)));
        let member_id = config.member_id.clone().unwrap_or_default();
        let state = Mutex::new(State { member_id, ..State::default() });
        let (settled, commit_now) = (Notify::new(), Notify::new());
        Shared { config, router, telemetry, state, settled, commit_now, permits }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }

    /// Waits until the state is as wanted, which can only come about by something being processed or lost.
    pub(super) async fn until(&self, wanted: impl Fn(&State) -> bool) {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            if wanted(&self.lock()) {
                return;
            }
            settled.await;
        }
    }

    // What the program does.

    /// Gives the program what is below `next`, unless the claim is paused or not the member's any more.
    pub(super) fn hand_out(&self, claim: ClaimId, next: Offset) -> HandOut {
        let mut state = self.lock();
        let settled = state.last != Some(claim) && state.settle_last();
        let given = match state.claims.get_mut(&claim).filter(|held| held.phase == Phase::Active) {
            Some(held) if held.paused => HandOut::Paused,
            Some(held) => {
                held.progress.hand_out(next);
                state.last = Some(claim);
                HandOut::Given
            }
            None => HandOut::Over,
        };
        drop(state);
        if settled {
            self.settled.notify_waiters();
        }
        given
    }

    /// What is to be handed out next. Asking says that everything before is processed.
    pub(super) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.lock();
        let settled = state.settle_last();
        let found = state.ready.iter().position(|ready| state.is_deliverable(ready));
        let next = match found.and_then(|at| state.ready.remove(at)) {
            Some(Ready::Failure(error)) => Some(Next::Failure(error)),
            Some(Ready::Batch { claim, received }) => {
                state.grant(received.bytes(), self.grant_at());
                state.delivered += u64::from(received.records());
                let held = state.claims.get(&claim).map(|held| (held.at.clone(), Arc::clone(&held.polling)));
                held.map(|(at, polling)| Next::Batch { claim, at, polling, received })
            }
            None if state.ended => Some(Next::End),
            None => None,
        };
        let in_flight_max = u64::from(self.config.in_flight_records_max);
        // The broker may be waiting for a commit.
        if in_flight_max > 0 && (next.is_none() || state.delivered >= in_flight_max.div_ceil(2)) {
            state.delivered = 0;
            self.commit_now.notify_one();
        }
        if next.is_none() {
            state.waker = Some(cx.waker().clone());
        }
        drop(state);
        if settled {
            self.settled.notify_waiters();
        }
        next.map_or(Poll::Pending, Poll::Ready)
    }

    /// A partition whose batch cannot be used gives nothing more.
    pub(super) fn spoil(&self, claim: ClaimId) {
        let mut state = self.lock();
        if let Some(held) = state.claims.get_mut(&claim).filter(|held| held.phase == Phase::Active) {
            held.phase = Phase::Failed;
        }
        state.drop_ready(&[claim], self.grant_at());
    }

    /// Has the broker send nothing more of partitions that the member has, and hands nothing more of them out.
    pub(super) fn pause(&self, partitions: &[TopicPartition]) {
        let mut state = self.lock();
        let mut pausing = Vec::new();
        for at in partitions {
            let Some(claim) = state.by_partition.get(at).copied() else { continue };
            let held = state.claims.get_mut(&claim);
            let Some(held) = held.filter(|held| !held.paused && held.phase != Phase::Revoking) else {
                continue;
            };
            held.paused = true;
            state.paused.insert(at.clone());
            state.put_aside(claim, self.grant_at());
            pausing.push(at.clone());
        }
        state.tell_paused(&pausing);
    }

    /// Ends the pause of partitions.
    pub(super) fn resume(&self, partitions: &[TopicPartition]) {
        let mut state = self.lock();
        let mut resuming = Vec::new();
        for at in partitions {
            state.paused.remove(at);
            let Some(claim) = state.by_partition.get(at).copied() else { continue };
            let Some(held) = state.claims.get_mut(&claim).filter(|held| held.paused) else { continue };
            held.paused = false;
            let aside = std::mem::take(&mut held.aside);
            if let Some(session) = &mut state.session {
                session.owed -= signed(aside.iter().map(Received::bytes).sum());
            }
            state.ready.extend(aside.into_iter().map(|received| Ready::Batch { claim, received }));
            resuming.push(v1::TopicPartition::from(at));
        }
        for partitions in resuming.chunks(PARTITIONS_MAX) {
            let partitions = partitions.to_vec();
            state.send(Action::Resume(v1::ResumePartitions { partitions }));
        }
        wake(state);
    }

    /// A handler begins with a record. `None` for a record of an assignment that is over.
    pub(super) fn begin(self: &Arc<Self>, record: &ConsumedRecord) -> Option<Handling> {
        let mut state = self.lock();
        let claim = *state.by_partition.get(&record.topic_partition())?;
        let began = state.claims.get_mut(&claim)?.progress.begin(record.offset);
        began.then(|| Handling { shared: Arc::clone(self), claim, offset: record.offset, done: false })
    }

    // What the broker does.

    pub(super) fn joined(&self, joined: v1::GroupJoined, requests: Requests) {
        let mut state = self.lock();
        state.member_id = joined.member_id;
        state.session = Some(Session { requests, epoch: joined.epoch, owed: 0 });
    }

    /// The member is given partitions, which are handed out once they are [activated](Self::activate).
    pub(super) fn assigned(&self, assigned: v1::PartitionsAssigned) -> Vec<(ClaimId, AssignedPartition)> {
        let mut state = self.lock();
        state.enter_epoch(assigned.epoch);
        let mut claims = Vec::with_capacity(assigned.partitions.len());
        for partition in assigned.partitions {
            let at = TopicPartition::new(partition.topic, partition.partition);
            let start = Offset(partition.start_offset);
            state.claims_made += 1;
            let claim = state.claims_made;
            let polling = state.polling(&self.telemetry, &at.topic);
            let paused = state.paused.contains(&at);
            let held = Claim {
                at: at.clone(),
                phase: Phase::Assigned,
                paused,
                aside: VecDeque::new(),
                progress: Progress::new(start),
                polling,
            };
            if let Some(old) = state.by_partition.insert(at.clone(), claim) {
                state.drop_ready(&[old], self.grant_at());
                state.claims.remove(&old);
            }
            state.claims.insert(claim, held);
            let (metadata, missed_records) = (partition.metadata, partition.missed_records);
            claims.push((claim, AssignedPartition { at, start, metadata, missed_records }));
        }
        let paused = claims.iter().map(|(_, assigned)| &assigned.at).filter(|at| state.paused.contains(*at));
        let paused: Vec<_> = paused.cloned().collect();
        state.tell_paused(&paused);
        claims
    }

    /// Begins to hand out what these partitions give.
    pub(super) fn activate(&self, claims: &[ClaimId]) {
        let mut state = self.lock();
        for claim in claims {
            if let Some(held) = state.claims.get_mut(claim).filter(|held| held.phase == Phase::Assigned) {
                held.phase = Phase::Active;
            }
        }
        wake(state);
    }

    /// Takes in records. A failure that joining anew may cure is returned.
    pub(super) fn received(&self, records: v1::PartitionRecords) -> Result<(), Error> {
        let at = TopicPartition::new(records.topic, records.partition);
        let mut state = self.lock();
        let claim = state.by_partition.get(&at).copied().unwrap_or_default();
        let wanted = state.claims.get_mut(&claim);
        let wanted = wanted.filter(|held| matches!(held.phase, Phase::Assigned | Phase::Active));
        let Some(held) = wanted else {
            let failure = records.error.map(|error| Error::from(error).at(&at.topic, at.partition));
            if let Some(failure) = failure.filter(|_| claim == ClaimId::default()) {
                // It is the member's, and cannot be read from where the group is. It was never given to the program.
                if failure.is_retriable() {
                    return Err(failure);
                }
                state.ready.push_back(Ready::Failure(failure));
                wake(state);
                return Ok(());
            }
            // It was revoked while this was on its way.
            let bytes = records.batches.iter().map(|batch| batch.batch.len() as u64).sum();
            state.grant(bytes, self.grant_at());
            return Ok(());
        };
        let mut batches = Vec::with_capacity(records.batches.len());
        let mut skipped = 0;
        for stored in records.batches {
            let end = Offset(stored.base_offset).saturating_add(u64::from(stored.record_count));
            let from = held.progress.received();
            if end <= from {
                skipped += stored.batch.len() as u64;
                continue;
            }
            held.progress.receive(end);
            let received = Received::new(stored, from, records.high_watermark, records.log_start_offset);
            batches.push(Ready::Batch { claim, received });
        }
        let failure = records.error.map(Error::from);
        let passes = failure.as_ref().is_some_and(Error::is_retriable);
        if failure.is_some() && !passes {
            // What was received before can be handed out all the same; it is ahead in the queue.
            batches
                .push(Ready::Failure(failure.clone().expect("looked at above").at(&at.topic, at.partition)));
        }
        let paused = held.paused;
        state.ready.extend(batches);
        if paused {
            state.put_aside(claim, self.grant_at());
        }
        state.grant(skipped, self.grant_at());
        wake(state);
        match failure {
            Some(error) if passes => Err(error.at(&at.topic, at.partition)),
            _ => Ok(()),
        }
    }

    /// Partitions are to be released: nothing of them is handed out any more.
    pub(super) fn revoked(&self, revoked: &v1::PartitionsRevoked) -> Vec<ClaimId> {
        let mut state = self.lock();
        state.enter_epoch(revoked.epoch);
        let named = revoked.partitions.iter();
        let claims: Vec<ClaimId> = named
            .filter_map(|at| {
                state.by_partition.get(&TopicPartition::new(at.topic.as_str(), at.partition)).copied()
            })
            .collect();
        self.revoke(&mut state, &claims);
        claims
    }

    /// The same for all partitions, because the member is to leave.
    pub(super) fn revoke_all(&self) -> Vec<ClaimId> {
        let mut state = self.lock();
        let claims: Vec<ClaimId> = state.claims.keys().copied().collect();
        self.revoke(&mut state, &claims);
        claims
    }

    fn revoke(&self, state: &mut State, claims: &[ClaimId]) {
        for claim in claims {
            if let Some(held) = state.claims.get_mut(claim) {
                held.phase = Phase::Revoking;
                held.aside.clear();
                state.paused.remove(&held.at);
            }
        }
        state.drop_ready(claims, self.grant_at());
    }

    /// Gives up partitions that were revoked.
    pub(super) fn release(&self, claims: &[ClaimId]) {
        let mut state = self.lock();
        let partitions: Vec<_> = claims
            .iter()
            .filter_map(|claim| state.forget(*claim))
            .map(|at| v1::TopicPartition::from(&at))
            .collect();
        if let Some(session) = state.session.as_ref().filter(|_| !partitions.is_empty()) {
            session.requests.send(Action::Release(v1::ReleasePartitions { partitions }));
        }
    }

    /// Leaves the group with everything that the member has.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.leaving = true;
        state.claims.clear();
        state.by_partition.clear();
        if let Some(session) = &state.session {
            session.requests.send(Action::Leave(v1::LeaveGroup {}));
        }
    }

    /// The membership is over. Returns what the member had.
    pub(super) fn lost(&self) -> Vec<TopicPartition> {
        let mut state = self.lock();
        state.session = None;
        state.ready.retain(|ready| matches!(ready, Ready::Failure(_)));
        state.by_partition.clear();
        let claims = std::mem::take(&mut state.claims);
        wake(state);
        self.settled.notify_waiters();
        claims.into_values().map(|held| held.at).collect()
    }

    /// Nothing comes any more, except for the error if there is one.
    pub(super) fn end(&self, error: Option<Error>) {
        let mut state = self.lock();
        state.ready.extend(error.map(Ready::Failure));
        state.ended = true;
        wake(state);
    }

    /// The consumer is gone; what its committers do comes too late.
    pub(super) fn close(&self) {
        self.lock().leaving = true;
        self.lost();
        self.fail_commits(&Error::Connection { reason: "the consumer was dropped".into() });
    }

    fn grant_at(&self) -> u64 {
        (self.config.credit_bytes / GRANT_STEPS).max(1)
    }

    pub(super) fn commits_itself(&self) -> bool {
        matches!(self.config.commit, CommitMode::Auto { .. })
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl State {
    /// The partitions that the member has and is not to give up.
    pub(super) fn assignment(&self) -> Vec<TopicPartition> {
        let held = self.claims.values().filter(|held| held.phase != Phase::Revoking);
        let mut assignment: Vec<_> = held.map(|held| held.at.clone()).collect();
        assignment.sort();
        assignment
    }

    pub(super) fn partitions(&self, claims: &[ClaimId]) -> Vec<TopicPartition> {
        claims.iter().filter_map(|claim| self.claims.get(claim)).map(|held| held.at.clone()).collect()
    }

    pub(super) fn holds(&self, claim: ClaimId) -> bool {
        self.claims.contains_key(&claim)
    }

    pub(super) fn position(&self, at: &TopicPartition) -> Option<Offset> {
        let claim = self.by_partition.get(at)?;
        self.claims.get(claim).map(|held| held.progress.position())
    }

    /// Whether the program is done with everything that it was given of these partitions.
    pub(super) fn is_quiet(&self, claims: &[ClaimId]) -> bool {
        claims.iter().filter_map(|claim| self.claims.get(claim)).all(|held| held.progress.is_quiet())
    }

    /// The program asked for what comes next. Says whether there was something before.
    fn settle_last(&mut self) -> bool {
        let last = self.last.take().and_then(|claim| self.claims.get_mut(&claim));
        last.map(|held| held.progress.settle()).is_some()
    }

    /// The program says that it is done with everything that it was given.
    pub(super) fn settle_all(&mut self) {
        self.last = None;
        self.claims.values_mut().for_each(|held| held.progress.settle());
    }

    /// What `wanted` finds in the progress of each claim.
    pub(super) fn progress_of<T>(
        &self,
        claims: Option<&[ClaimId]>,
        wanted: impl Fn(&Progress) -> Option<T>,
    ) -> Vec<(TopicPartition, T)> {
        self.claims
            .iter()
            .filter(|(claim, _)| claims.is_none_or(|claims| claims.contains(claim)))
            .filter_map(|(_, held)| wanted(&held.progress).map(|found| (held.at.clone(), found)))
            .collect()
    }

    pub(super) fn progress_mut(&mut self, at: &TopicPartition) -> Option<&mut Progress> {
        let claim = self.by_partition.get(at)?;
        self.claims.get_mut(claim).map(|held| &mut held.progress)
    }

    /// The partitions of the assignment that are paused.
    pub(super) fn paused(&self) -> Vec<TopicPartition> {
        let mut paused = self.assignment();
        paused.retain(|at| self.paused.contains(at));
        paused
    }

    pub(super) fn is_paused(&self, claim: ClaimId) -> bool {
        self.claims.get(&claim).is_some_and(|held| held.paused)
    }

    /// Keeps what is ready of a claim for later, and gives back its credit, which others may need.
    fn put_aside(&mut self, claim: ClaimId, grant_at: u64) {
        let Some(held) = self.claims.get_mut(&claim) else { return };
        let mut bytes = 0;
        for ready in std::mem::take(&mut self.ready) {
            match ready {
                Ready::Batch { claim: of, received } if of == claim => {
                    bytes += received.bytes();
                    held.aside.push_back(received);
                }
                other => self.ready.push_back(other),
            }
        }
        self.grant(bytes, grant_at);
    }

    fn tell_paused(&self, partitions: &[TopicPartition]) {
        for partitions in partitions.chunks(PARTITIONS_MAX) {
            let partitions = partitions.iter().map(v1::TopicPartition::from).collect();
            self.send(Action::Pause(v1::PausePartitions { partitions }));
        }
    }

    /// Says something to the broker, if the member is in its group.
    fn send(&self, action: Action) {
        if let Some(session) = &self.session {
            session.requests.send(action);
        }
    }

    fn is_deliverable(&self, ready: &Ready) -> bool {
        match ready {
            Ready::Failure(_) => true,
            Ready::Batch { claim, .. } => {
                self.claims.get(claim).is_some_and(|held| held.phase == Phase::Active)
            }
        }
    }

    fn enter_epoch(&mut self, epoch: u64) {
        if let Some(session) = &mut self.session {
            session.epoch = session.epoch.max(epoch);
        }
    }

    fn forget(&mut self, claim: ClaimId) -> Option<TopicPartition> {
        let held = self.claims.remove(&claim)?;
        if self.by_partition.get(&held.at) == Some(&claim) {
            self.by_partition.remove(&held.at);
        }
        Some(held.at)
    }

    /// Drops what was received of claims and not handed out.
    fn drop_ready(&mut self, claims: &[ClaimId], grant_at: u64) {
        let mut dropped = 0;
        self.ready.retain(|ready| match ready {
            Ready::Batch { claim, received } if claims.contains(claim) => {
                dropped += received.bytes();
                false
            }
            _ => true,
        });
        self.grant(dropped, grant_at);
    }

    /// Gives back credit that was used, when it is worth a message.
    fn grant(&mut self, bytes: u64, grant_at: u64) {
        let Some(session) = &mut self.session else { return };
        session.owed += signed(bytes);
        if session.owed >= signed(grant_at) {
            let bytes = std::mem::take(&mut session.owed).unsigned_abs();
            session.requests.send(Action::Credit(v1::GrantCredit { bytes }));
        }
    }

    /// The instruments of a topic; its partitions share them.
    fn polling(&self, telemetry: &Arc<Telemetry>, topic: &str) -> Arc<Polling> {
        let known = self.claims.values().find(|held| &*held.at.topic == topic);
        known.map_or_else(|| Arc::new(telemetry.polling(topic)), |held| Arc::clone(&held.polling))
    }
}

/// A handler that runs on a record. Dropped before it is [done](Self::done), the record counts as processed only when
/// the program asks for what follows.
pub(super) struct Handling {
    shared: Arc<Shared>,
    claim: ClaimId,
    offset: Offset,
    done: bool,
}

impl Handling {
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        if let Some(held) = self.shared.lock().claims.get_mut(&self.claim) {
            held.progress.end(self.offset, self.done);
        }
        self.shared.settled.notify_waiters();
    }
}
