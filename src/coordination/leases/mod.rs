//! Leases of records to the members of a share group.
//!
//! One [`Leases`] serves one partition of one group, at the broker that leads the group's shard. It is rebuilt from
//! the replicated [`Progress`] when a broker begins to lead, and told the time with each call. A record that is not
//! done is in exactly one of these states:
//!
//! | state | it was | how it goes on |
//! |---|---|---|
//! | new | never leased | [`acquire`](Leases::acquire), in the order of offsets, within the window |
//! | waiting | released, or its lease ended | [`acquire`](Leases::acquire), when its delay is over |
//! | leased | handed to a member | [`accept`](Leases::accept), [`release`](Leases::release), [`reject`](Leases::reject), [`extend`](Leases::extend); its time is over ([`expire`](Leases::expire)); its member is gone ([`drop_holder`](Leases::drop_holder)) |
//! | accepting | accepted by its member | [`committed`](Leases::committed): done; [`failed`](Leases::failed): leased, as before |
//! | dead | rejected, or delivered too often | [`copy_first_dead`](Leases::copy_first_dead) |
//! | copying | on its way to the dead-letter topic | [`buried`](Leases::buried), after its copy is there; [`not_copied`](Leases::not_copied): dead, as before |
//! | burying | copied to the dead-letter topic | [`committed`](Leases::committed): done; [`failed`](Leases::failed): dead, as before |
//!
//! What must outlive the broker comes out as [`ShareUpdate`]s, for the caller to propose. What does not: who holds a
//! lease and for how long, the delay of a release, a rejection, and the delivery that was under way when the broker
//! failed, which is not counted. All of it errs to the side of delivering once more.
//!
//! Records in the same state are kept as one run, so the cost of a call follows the number of runs it touches, and not
//! that of records.

mod runs;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::record::Offset;

use super::{Attempts, OffsetRange, Progress, SessionId, ShareUpdate};

use runs::{Death, Held, Runs, State};

/// What a member asks for with its leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseSpec {
    /// How long a lease lasts, from when it is acquired or extended.
    pub lease: Duration,
    /// How often a record is delivered before it is dead. Zero counts as one.
    pub deliveries_max: u32,
}

impl LeaseSpec {
    fn is_last(&self, deliveries: u32) -> bool {
        deliveries >= self.deliveries_max.max(1)
    }
}

/// Records that a member was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The records.
    pub range: OffsetRange,
    /// How often these records were delivered, this time included.
    pub delivery_count: u32,
}

/// Nothing was done, since a record is not leased to the member (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record at offset {offset} is not leased to this member, or not any more")]
pub struct LeaseExpired {
    /// The first such record of those that the member named.
    pub offset: Offset,
}

/// Why a record goes to the dead-letter topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeathReason {
    /// It was delivered as often as it may be.
    MaxDeliveries,
    /// A member said that it cannot be processed.
    Rejected {
        /// What the member said of it; may be empty.
        detail: Arc<str>,
    },
}

/// A record that waits for its copy in the dead-letter topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// Where it is.
    pub offset: Offset,
    /// Why.
    pub reason: DeathReason,
    /// How often it was delivered.
    pub delivery_count: u32,
}

/// What became of records whose leases ended without an accept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Returned {
    /// To be replicated, in this order. Nothing waits for it.
    pub updates: Vec<ShareUpdate>,
    /// How many leases of records ended.
    pub records: u64,
    /// How many of the records became dead; see [`Leases::dead`].
    pub dead: u64,
    /// How many of the records are lost, since retention has deleted them meanwhile.
    pub missed: u64,
}

/// What retention took away; see [`Leases::trimmed`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// To be replicated, if the log start moved.
    pub update: Option<ShareUpdate>,
    /// How many records are lost that were not done, and not with a member either.
    pub missed: u64,
}

/// Who has which records of a partition. See the [module](self).
#[derive(Debug)]
pub struct Leases {
    /// Every record from the log start to `next` that is not done, and those below it that members still have.
    runs: Runs,
    /// INVARIANT: no run reaches it, and it is not below `log_start`.
    next: Offset,
    /// Retention has deleted what lies below, or the group does without it.
    log_start: Offset,
    window: u64,
}

impl Leases {
    /// The machine of a partition whose replicated state is `progress`. `window` is the most records between the
    /// first that is not done and the last that is leased.
    ///
    /// Every record that was ever leased as far as `progress` tells, and is not done, waits.
    #[must_use]
    pub fn new(progress: &Progress, window: u64) -> Self {
        let start = progress.start();
        let mut leases = Leases { runs: Runs::default(), next: start, log_start: start, window };
        let attempts = progress.attempt_ranges().map(|attempts| attempts.range);
        if let Some(last) = progress.done_ranges().chain(attempts).map(|range| range.last).max() {
            leases.next = start.max(last.saturating_add(1));
        }
        if let Some(range) = between(start, leases.next) {
            leases.runs.set(range, Some(State::Waiting { deliveries: 0, ready_at: None }));
        }
        for Attempts { range, count: deliveries } in progress.attempt_ranges() {
            leases.runs.set(range, Some(State::Waiting { deliveries, ready_at: None }));
        }
        for range in progress.done_ranges() {
            leases.runs.set(range, None);
        }
        leases
    }

    /// The first record that is not done; everything retained before it is.
    #[must_use]
    pub fn start(&self) -> Offset {
        let retained = self.runs.iter().find(|(range, _)| range.last >= self.log_start);
        retained.map_or(self.next, |(range, _)| range.first.max(self.log_start))
    }

    /// Where to read records that were never leased.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.next
    }

    /// How many records may be leased from [`next_offset`](Self::next_offset) on before the window is full.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.window.saturating_sub(self.next.saturating_since(self.start()))
    }

    /// Number of records that are leased.
    #[must_use]
    pub fn leased(&self) -> u64 {
        self.runs.leased()
    }

    /// Number of records that are leased to `holder`.
    #[must_use]
    pub fn leased_to(&self, holder: SessionId) -> u64 {
        let held = |state: &State| matches!(state, State::Leased(held) if held.holder == holder);
        self.runs.iter().filter(|(_, state)| held(state)).map(|(range, _)| range.count()).sum()
    }

    /// Number of retained records below [`next_offset`](Self::next_offset) that are not done.
    #[must_use]
    pub fn unfinished(&self) -> u64 {
        between(self.log_start, self.next)
            .map_or(0, |retained| self.runs.within(retained).map(|(range, _)| range.count()).sum())
    }

    /// Leases at most `records_max` records of `available`, lowest first, to `holder`.
    ///
    /// `available` is what the caller has read and can deliver. Records that were never leased are only leased if
    /// [`next_offset`](Self::next_offset) lies in it, so that none is passed over. Records that were delivered as often
    /// as `spec` allows already, to members that allowed more or before another broker led, become dead instead; so
    /// the answer may be empty although records were [redeliverable](Self::redeliverable).
    pub fn acquire(
        &mut self,
        now: Instant,
        holder: SessionId,
        spec: LeaseSpec,
        available: OffsetRange,
        records_max: u64,
    ) -> Vec<Lease> {
        let mut given = Given { leases: Vec::new(), left: records_max };
        let lease = |deliveries| State::Leased(Held { holder, until: now + spec.lease, spec, deliveries });
        for (range, deliveries) in self.ready(now, available) {
            if given.left == 0 {
                break;
            }
            if spec.is_last(deliveries) {
                let death = Death { reason: DeathReason::MaxDeliveries, deliveries };
                self.runs.set(range, Some(State::Dead(death)));
                continue;
            }
            let deliveries = deliveries.saturating_add(1);
            if let Some(range) = given.take(range, deliveries) {
                self.runs.set(range, Some(lease(deliveries)));
            }
        }
        if let Some(range) = self.never_leased(available)
            && let Some(range) = given.take(range, 1)
        {
            self.runs.set(range, Some(lease(1)));
            self.next = range.last.saturating_add(1);
        }
        given.leases
    }

    /// The first records that wait to be leased again and may be, as one range. To be read and offered to
    /// [`acquire`](Self::acquire) before what was never leased.
    #[must_use]
    pub fn redeliverable(&self, now: Instant) -> Option<OffsetRange> {
        let mut found: Option<OffsetRange> = None;
        for (range, state) in self.runs.waiting() {
            let ready = is_ready(state, now).is_some();
            match &mut found {
                None if ready => found = Some(range),
                Some(run) if ready && run.last.checked_add(1) == Some(range.first) => run.last = range.last,
                None => {}
                Some(_) => break,
            }
        }
        found
    }

    /// Begins the leases of `range` anew, for as long as when they were acquired.
    ///
    /// # Errors
    ///
    /// [`LeaseExpired`] if not all of `range` is leased to `holder`; nothing happens then.
    pub fn extend(
        &mut self,
        now: Instant,
        holder: SessionId,
        range: OffsetRange,
    ) -> Result<(), LeaseExpired> {
        for (range, held) in self.held(holder, range)? {
            let until = now + held.spec.lease;
            self.runs.set(range, Some(State::Leased(Held { until, ..held })));
        }
        Ok(())
    }

    /// `holder` is done with `range`. The update must be proposed, and [`committed`](Self::committed) or
    /// [`failed`](Self::failed) called with the same range; until then nobody can have the records.
    ///
    /// # Errors
    ///
    /// [`LeaseExpired`] if not all of `range` is leased to `holder`; nothing happens then.
    pub fn accept(&mut self, holder: SessionId, range: OffsetRange) -> Result<ShareUpdate, LeaseExpired> {
        for (range, held) in self.held(holder, range)? {
            self.runs.set(range, Some(State::Accepting(held)));
        }
        Ok(ShareUpdate::Accept(range))
    }

    /// `holder` gives `range` back, to be delivered again when `delay` is over.
    ///
    /// # Errors
    ///
    /// [`LeaseExpired`] if not all of `range` is leased to `holder`; nothing happens then.
    pub fn release(
        &mut self,
        now: Instant,
        holder: SessionId,
        range: OffsetRange,
        delay: Duration,
    ) -> Result<Returned, LeaseExpired> {
        let ready_at = (!delay.is_zero()).then(|| now + delay);
        let held = self.held(holder, range)?;
        Ok(self.give_back(held, |held| back(held, ready_at)))
    }

    /// `holder` says that `range` cannot be processed: it is dead.
    ///
    /// # Errors
    ///
    /// [`LeaseExpired`] if not all of `range` is leased to `holder`; nothing happens then.
    pub fn reject(
        &mut self,
        holder: SessionId,
        range: OffsetRange,
        detail: &Arc<str>,
    ) -> Result<Returned, LeaseExpired> {
        let held = self.held(holder, range)?;
        Ok(self.give_back(held, |held| {
            let reason = DeathReason::Rejected { detail: Arc::clone(detail) };
            State::Dead(Death { reason, deliveries: held.deliveries })
        }))
    }

    /// Ends the leases whose time is over. Until this is called a member may still accept, release, reject and extend
    /// what it holds.
    pub fn expire(&mut self, now: Instant) -> Returned {
        let mut over = Vec::new();
        while let Some((at, range, state)) = self.runs.next_timer()
            && at <= now
        {
            match state.clone() {
                State::Leased(held) => {
                    // Takes the timer away. What becomes of it follows below, in the order of offsets.
                    let waiting = State::Waiting { deliveries: held.deliveries, ready_at: None };
                    self.runs.set(range, Some(waiting));
                    over.push((range, held));
                }
                State::Waiting { deliveries, .. } => {
                    self.runs.set(range, Some(State::Waiting { deliveries, ready_at: None }));
                }
                State::Accepting(_) | State::Dead(_) | State::Copying(_) | State::Burying(_) => {
                    unreachable!("only leases and delays have a time")
                }
            }
        }
        over.sort_by_key(|(range, _)| range.first);
        self.give_back(over, |held| back(held, None))
    }

    /// Ends all leases of `holder`, which is gone. What it accepted and is not committed yet is not affected.
    pub fn drop_holder(&mut self, holder: SessionId) -> Returned {
        let leased = self.runs.iter().filter_map(|(range, state)| match state {
            State::Leased(held) if held.holder == holder => Some((range, held.clone())),
            _ => None,
        });
        let held = leased.collect();
        self.give_back(held, |held| back(held, None))
    }

    /// When [`expire`](Self::expire) is next needed: a lease ends, or a delay is over and there is something
    /// [redeliverable](Self::redeliverable).
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.runs.next_timer().map(|(at, ..)| at)
    }

    /// The dead records that are not on their way to the dead-letter topic yet, lowest first.
    pub fn dead(&self) -> impl Iterator<Item = Dead> {
        self.runs.dead().flat_map(|(range, state)| {
            let death = match state {
                State::Dead(death) => Some(death),
                _ => None,
            };
            let offsets = (range.first.0..=range.last.0).map(Offset);
            death.into_iter().flat_map(move |death| {
                let (reason, delivery_count) = (&death.reason, death.deliveries);
                offsets.clone().map(move |offset| Dead { offset, reason: reason.clone(), delivery_count })
            })
        })
    }

    /// The first dead record from `from` on, which is to be copied to the dead-letter topic now. Until [`buried`](Self::buried) or
    /// [`not_copied`](Self::not_copied) is called, it is not lost if retention deletes it.
    pub fn copy_first_dead(&mut self, from: Offset) -> Option<Dead> {
        let dead = self.dead().find(|dead| dead.offset >= from)?;
        let death = Death { reason: dead.reason.clone(), deliveries: dead.delivery_count };
        self.runs.set(OffsetRange { first: dead.offset, last: dead.offset }, Some(State::Copying(death)));
        Some(dead)
    }

    /// No copies came about of the records of `range` that were being copied. They are dead, as before, but for those that
    /// retention has deleted meanwhile. Gives how many these are: they are lost.
    pub fn not_copied(&mut self, range: OffsetRange) -> u64 {
        let mut missed = 0;
        for (range, state) in self.pieces(range) {
            if let State::Copying(death) = state {
                missed += self.dies_again(range, death);
            }
        }
        missed
    }

    /// The records of `range` that were being copied are in the dead-letter topic. The updates must be proposed, and
    /// [`committed`](Self::committed) or [`failed`](Self::failed) called with the same ranges.
    pub fn buried(&mut self, range: OffsetRange) -> Vec<ShareUpdate> {
        let mut updates = Vec::new();
        for (range, state) in self.pieces(range) {
            if let State::Copying(death) = state {
                self.runs.set(range, Some(State::Burying(death)));
                push(&mut updates, ShareUpdate::Accept(range));
            }
        }
        updates
    }

    /// An [`Accept`](ShareUpdate::Accept) of `range` is committed: the records are done, whatever they were here.
    pub fn committed(&mut self, range: OffsetRange) {
        for (range, _) in self.pieces(range) {
            self.runs.set(range, None);
        }
    }

    /// An [`Accept`](ShareUpdate::Accept) of `range` was proposed and will never be committed. The records are again
    /// what they were: leased, so that the member can accept them once more until its lease ends, or dead.
    ///
    /// Whoever cannot know whether the proposal may still be committed must build a new machine instead, from the
    /// state in which that has been decided.
    pub fn failed(&mut self, range: OffsetRange) {
        for (range, state) in self.pieces(range) {
            match state {
                State::Accepting(held) => self.runs.set(range, Some(State::Leased(held))),
                State::Burying(death) => {
                    // What is gone is in the dead-letter topic.
                    self.dies_again(range, death);
                }
                State::Waiting { .. } | State::Leased(_) | State::Dead(_) | State::Copying(_) => {}
            }
        }
    }

    /// Makes records dead, and forgets those that retention has deleted. Gives how many these are.
    fn dies_again(&mut self, range: OffsetRange, death: Death) -> u64 {
        let (gone, kept) = split(range, self.log_start);
        if let Some(gone) = gone {
            self.runs.set(gone, None);
        }
        if let Some(kept) = kept {
            self.runs.set(kept, Some(State::Dead(death)));
        }
        gone.map_or(0, |gone| gone.count())
    }

    /// The first record that is lost if retention has deleted everything below `log_start`; see
    /// [`trimmed`](Self::trimmed), which has not been told yet.
    #[must_use]
    pub fn first_lost(&self, log_start: Offset) -> Option<Offset> {
        let deleted = between(self.log_start, log_start)?;
        let mut gone = self.runs.within(deleted).filter(|(_, state)| is_nobodys(state));
        let first = gone.next().map(|(range, _)| range.first);
        first.or((self.next < log_start).then_some(self.next))
    }

    /// Retention has deleted everything below `log_start`, or the group does without it.
    ///
    /// Records that wait, are dead or were never leased are lost. A member that has leased such a record may still do
    /// with it what it likes; if it gives the record back, it is lost then ([`Returned::missed`]).
    pub fn trimmed(&mut self, log_start: Offset) -> Trimmed {
        let Some(deleted) = between(self.log_start, log_start) else { return Trimmed::default() };
        self.log_start = log_start;
        let mut missed = log_start.saturating_since(self.next);
        self.next = self.next.max(log_start);
        for (range, state) in self.pieces(deleted) {
            if is_nobodys(&state) {
                self.runs.set(range, None);
                missed += range.count();
            }
        }
        Trimmed { update: Some(ShareUpdate::AdvanceTo(log_start)), missed }
    }

    /// What waits in `available` and is not delayed, with how often it was delivered.
    fn ready(&self, now: Instant, available: OffsetRange) -> Vec<(OffsetRange, u32)> {
        let within = self.runs.within(available);
        within
            .filter_map(|(range, state)| is_ready(state, now).map(|deliveries| (range, deliveries)))
            .collect()
    }

    /// What of `available` may be leased for the first time.
    fn never_leased(&self, available: OffsetRange) -> Option<OffsetRange> {
        let end = self.next.saturating_add(self.room());
        let (_, new) = split(available, self.next);
        new.filter(|new| new.first == self.next).and_then(|new| split(new, end).0)
    }

    /// The parts of `range`, if all of it is leased to `holder`.
    fn held(&self, holder: SessionId, range: OffsetRange) -> Result<Vec<(OffsetRange, Held)>, LeaseExpired> {
        let mut held = Vec::new();
        let mut next = range.first;
        for (part, state) in self.runs.within(range) {
            match state {
                State::Leased(lease) if lease.holder == holder && part.first == next => {
                    held.push((part, lease.clone()));
                    next = part.last.saturating_add(1);
                }
                _ => return Err(LeaseExpired { offset: next }),
            }
        }
        if held.is_empty() || next <= range.last { Err(LeaseExpired { offset: next }) } else { Ok(held) }
    }

    /// Puts what was leased and is not done into the state that `to` says.
    fn give_back(&mut self, leases: Vec<(OffsetRange, Held)>, to: impl Fn(&Held) -> State) -> Returned {
        let mut returned = Returned::default();
        for (range, held) in leases {
            returned.records += range.count();
            let (gone, kept) = split(range, self.log_start);
            if let Some(gone) = gone {
                self.runs.set(gone, None);
                returned.missed += gone.count();
            }
            if let Some(kept) = kept {
                let state = to(&held);
                returned.dead += if matches!(state, State::Dead(_)) { kept.count() } else { 0 };
                self.runs.set(kept, Some(state));
                push(&mut returned.updates, ShareUpdate::Attempts(kept, held.deliveries));
            }
        }
        returned
    }

    fn pieces(&self, range: OffsetRange) -> Vec<(OffsetRange, State)> {
        self.runs.within(range).map(|(range, state)| (range, state.clone())).collect()
    }
}

/// What an [`acquire`](Leases::acquire) has given so far.
struct Given {
    leases: Vec<Lease>,
    /// How many more records may be given.
    left: u64,
}

impl Given {
    /// Gives as much of `range` as may be, and says what that is.
    fn take(&mut self, range: OffsetRange, delivery_count: u32) -> Option<OffsetRange> {
        let (range, _) = split(range, range.first.saturating_add(self.left));
        let range = range?;
        self.left -= range.count();
        match self.leases.last_mut() {
            Some(before) if before.delivery_count == delivery_count && touch(before.range, range) => {
                before.range.last = range.last;
            }
            _ => self.leases.push(Lease { range, delivery_count }),
        }
        Some(range)
    }
}

/// What becomes of a record whose lease ended without a word against the record.
fn back(held: &Held, ready_at: Option<Instant>) -> State {
    let deliveries = held.deliveries;
    if held.spec.is_last(deliveries) {
        State::Dead(Death { reason: DeathReason::MaxDeliveries, deliveries })
    } else {
        State::Waiting { deliveries, ready_at }
    }
}

/// Whether records are lost when they are deleted: no member has them, and they are not on their way to being done.
fn is_nobodys(state: &State) -> bool {
    matches!(state, State::Waiting { .. } | State::Dead(_))
}

/// How often a record was delivered that may be leased now; `None` if it may not.
fn is_ready(state: &State, now: Instant) -> Option<u32> {
    match state {
        State::Waiting { deliveries, ready_at } if ready_at.is_none_or(|at| at <= now) => Some(*deliveries),
        _ => None,
    }
}

/// Adds an update, as one with the last if they say the same of neighbours.
fn push(updates: &mut Vec<ShareUpdate>, update: ShareUpdate) {
    match (updates.last_mut(), &update) {
        (Some(ShareUpdate::Accept(before)), ShareUpdate::Accept(range)) if touch(*before, *range) => {
            before.last = range.last;
        }
        (Some(ShareUpdate::Attempts(before, one)), ShareUpdate::Attempts(range, other))
            if one == other && touch(*before, *range) =>
        {
            before.last = range.last;
        }
        _ => updates.push(update),
    }
}

fn touch(before: OffsetRange, after: OffsetRange) -> bool {
    before.last.checked_add(1) == Some(after.first)
}

/// The offsets from `first` up to but not including `end`, if there are any.
fn between(first: Offset, end: Offset) -> Option<OffsetRange> {
    end.checked_sub(1).filter(|last| first <= *last).map(|last| OffsetRange { first, last })
}

/// What of `range` lies before `at`, and what does not.
fn split(range: OffsetRange, at: Offset) -> (Option<OffsetRange>, Option<OffsetRange>) {
    let before =
        between(range.first, at).map(|before| OffsetRange { last: before.last.min(range.last), ..before });
    let first = range.first.max(at);
    let after = (first <= range.last).then_some(OffsetRange { first, last: range.last });
    (before.filter(|_| range.first <= range.last), after)
}
