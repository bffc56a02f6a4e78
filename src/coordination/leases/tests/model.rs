//! All rules together, against a model that keeps each record by itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::*;

const WINDOW: u64 = 25;
const START: u64 = 5;

/// A lease in the model; times are milliseconds since the test began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    holder: u64,
    until: u64,
    lease: u64,
    most: u32,
    deliveries: u32,
}

/// What holds of one record. One that is not in the model was never leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Waiting { deliveries: u32, ready_at: Option<u64> },
    Leased(Kept),
    Accepting(Kept),
    Dead { rejected: bool, deliveries: u32 },
    Copying { rejected: bool, deliveries: u32 },
    Burying { rejected: bool, deliveries: u32 },
    Done,
    Lost,
}

#[derive(Clone, Debug)]
enum Step {
    /// Offers what a caller would have read next, or anything.
    Acquire {
        holder: u64,
        what: Offer,
        records: u64,
        max: u64,
        lease: u64,
        most: u32,
    },
    /// Acknowledges some records, most of the time such that are leased to the holder.
    Acknowledge {
        record: Index,
        records: u64,
        stranger: bool,
        kind: Acknowledgement,
    },
    /// Copies the first dead record.
    Copy,
    /// Copies are there, or did not come about.
    Bury {
        record: Index,
        records: u64,
        copied: bool,
    },
    /// Decides the oldest update that was proposed.
    Decide {
        committed: bool,
    },
    Wait {
        millis: u64,
    },
    Expire,
    Drop {
        holder: u64,
    },
    Trim {
        records: u64,
    },
    /// Another broker leads, after some of the proposed updates were committed.
    Lead {
        committed: Index,
    },
}

#[derive(Clone, Copy, Debug)]
enum Offer {
    New,
    Again,
    At(u64),
}

#[derive(Clone, Copy, Debug)]
enum Acknowledgement {
    Accept,
    Release { delay: u64 },
    Reject,
    Extend,
}

fn any_step() -> impl Strategy<Value = Step> {
    use Acknowledgement::{Accept, Extend, Reject, Release};
    let offer =
        prop_oneof![3 => Just(Offer::New), 3 => Just(Offer::Again), 1 => (0..60u64).prop_map(Offer::At)];
    let kind = prop_oneof![
        3 => Just(Accept),
        2 => prop_oneof![Just(0), 1..15u64].prop_map(|delay| Release { delay }),
        1 => Just(Reject),
        1 => Just(Extend),
    ];
    let acquire = (0..3u64, offer, 1..20u64, 0..12u64, 1..20u64, 0..4u32).prop_map(
        |(holder, what, records, max, lease, most)| Step::Acquire { holder, what, records, max, lease, most },
    );
    let acknowledge = (any::<Index>(), 1..8u64, prop::bool::weighted(0.1), kind)
        .prop_map(|(record, records, stranger, kind)| Step::Acknowledge { record, records, stranger, kind });
    prop_oneof![
        6 => acquire,
        8 => acknowledge,
        3 => Just(Step::Copy),
        2 => (any::<Index>(), 1..4u64, prop::bool::weighted(0.7))
            .prop_map(|(record, records, copied)| Step::Bury { record, records, copied }),
        5 => prop::bool::weighted(0.8).prop_map(|committed| Step::Decide { committed }),
        3 => (0..12u64).prop_map(|millis| Step::Wait { millis }),
        3 => Just(Step::Expire),
        1 => (0..3u64).prop_map(|holder| Step::Drop { holder }),
        1 => (1..12u64).prop_map(|records| Step::Trim { records }),
        1 => any::<Index>().prop_map(|committed| Step::Lead { committed }),
    ]
}

struct World {
    began: Instant,
    now: u64,
    leases: Leases,
    records: BTreeMap<u64, Fate>,
    next: u64,
    log_start: u64,
    /// Where the group began, or what was replicated as its start when the leader changed.
    floor: u64,
    progress: Progress,
    /// What was proposed and is not decided.
    proposed: VecDeque<ShareUpdate>,
    /// Told by committed updates, beside `progress`.
    done: BTreeSet<u64>,
    attempts: BTreeMap<u64, u32>,
}

fn range(first: u64, last: u64) -> OffsetRange {
    OffsetRange::new(Offset(first), Offset(last))
}

fn offsets(range: OffsetRange) -> std::ops::RangeInclusive<u64> {
    range.first.0..=range.last.0
}

impl World {
    fn new() -> Self {
        let progress = Progress::starting_at(Offset(START));
        World {
            began: Instant::now(),
            now: 0,
            leases: Leases::new(&progress, WINDOW),
            records: BTreeMap::new(),
            next: START,
            log_start: START,
            floor: START,
            progress,
            proposed: VecDeque::new(),
            done: BTreeSet::new(),
            attempts: BTreeMap::new(),
        }
    }

    fn at(&self, millis: u64) -> Instant {
        self.began + Duration::from_millis(millis)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Acquire { holder, what, records, max, lease, most } => {
                let first = match what {
                    Offer::New => self.next,
                    Offer::Again => match self.leases.redeliverable(self.at(self.now)) {
                        Some(range) => range.first.0,
                        None => return,
                    },
                    Offer::At(offset) => offset,
                };
                self.acquire(holder, range(first, first + records - 1), max, lease, most);
            }
            Step::Acknowledge { record, records, stranger, kind } => {
                let leased: Vec<(u64, u64)> = self
                    .records
                    .iter()
                    .filter_map(|(offset, fate)| match fate {
                        Fate::Leased(kept) => Some((*offset, kept.holder)),
                        _ => None,
                    })
                    .collect();
                if !leased.is_empty() {
                    let (first, holder) = *record.get(&leased);
                    let holder = if stranger { holder + 1 } else { holder };
                    self.acknowledge(holder, range(first, first + records - 1), kind);
                }
            }
            Step::Copy => {
                self.copy();
            }
            Step::Bury { record, records, copied } => {
                let copying = self.copying();
                if !copying.is_empty() {
                    let first = *record.get(&copying);
                    let range = range(first, first + records - 1);
                    if copied { self.bury(range) } else { self.not_copied(range) }
                }
            }
            Step::Decide { committed } => {
                if let Some(update) = self.proposed.pop_front() {
                    self.decide(update, committed);
                }
            }
            Step::Wait { millis } => self.now += millis,
            Step::Expire => self.expire(),
            Step::Drop { holder } => {
                let returned = self.leases.drop_holder(SessionId(holder));
                self.give_back(&returned, |kept| kept.holder == holder, |kept| back(kept, None));
            }
            Step::Trim { records } => self.trim(self.log_start + records),
            Step::Lead { committed } => self.lead(committed),
        }
        self.check();
    }

    fn acquire(&mut self, holder: u64, available: OffsetRange, max: u64, lease: u64, most: u32) {
        let spec = LeaseSpec { lease: Duration::from_millis(lease), deliveries_max: most };
        let start = self.start();
        let given = self.leases.acquire(self.at(self.now), SessionId(holder), spec, available, max);
        let mut given: VecDeque<(u64, u32)> = given
            .iter()
            .flat_map(|lease| offsets(lease.range).map(|offset| (offset, lease.delivery_count)))
            .collect();
        let mut left = max;
        for offset in offsets(available) {
            if left == 0 {
                break;
            }
            let deliveries = match self.records.get(&offset) {
                Some(Fate::Waiting { deliveries, ready_at }) if ready_at.is_none_or(|at| at <= self.now) => {
                    *deliveries
                }
                None if offset == self.next && offset - start < WINDOW => {
                    self.next += 1;
                    0
                }
                _ => continue,
            };
            if deliveries >= most.max(1) {
                self.records.insert(offset, Fate::Dead { rejected: false, deliveries });
                continue;
            }
            left -= 1;
            let deliveries = deliveries + 1;
            assert_eq!(given.pop_front(), Some((offset, deliveries)));
            assert!(!self.done.contains(&offset), "offset {offset} is done, and delivered again");
            let kept = Kept { holder, until: self.now + lease, lease, most, deliveries };
            self.records.insert(offset, Fate::Leased(kept));
        }
        assert!(given.is_empty(), "leased, though it must not be: {given:?}");
    }

    fn acknowledge(&mut self, holder: u64, range: OffsetRange, kind: Acknowledgement) {
        let is_held =
            |offset: &u64| matches!(self.records.get(offset), Some(Fate::Leased(k)) if k.holder == holder);
        let missing = offsets(range).find(|offset| !is_held(offset));
        let (now, at, session) = (self.now, self.at(self.now), SessionId(holder));
        let result = match kind {
            Acknowledgement::Accept => self.leases.accept(session, range).map(|update| {
                assert_eq!(update, ShareUpdate::Accept(range));
                self.proposed.push_back(update);
                self.change(range, |fate| match fate {
                    Fate::Leased(kept) => Fate::Accepting(kept),
                    fate => fate,
                });
            }),
            Acknowledgement::Extend => self.leases.extend(at, session, range).map(|()| {
                self.change(range, |fate| match fate {
                    Fate::Leased(kept) => Fate::Leased(Kept { until: now + kept.lease, ..kept }),
                    fate => fate,
                });
            }),
            Acknowledgement::Release { delay } => {
                self.leases.release(at, session, range, Duration::from_millis(delay)).map(|returned| {
                    let ready_at = (delay > 0).then_some(now + delay);
                    self.give_back_range(range, &returned, |kept| back(kept, ready_at));
                })
            }
            Acknowledgement::Reject => self.leases.reject(session, range, &"why".into()).map(|returned| {
                let to = |kept: Kept| Fate::Dead { rejected: true, deliveries: kept.deliveries };
                self.give_back_range(range, &returned, to);
            }),
        };
        assert_eq!(result.err().map(|expired| expired.offset.0), missing);
    }

    fn change(&mut self, range: OffsetRange, to: impl Fn(Fate) -> Fate) {
        for (_, fate) in self.records.range_mut(offsets(range)) {
            *fate = to(*fate);
        }
    }

    fn give_back_range(&mut self, range: OffsetRange, returned: &Returned, to: impl Fn(Kept) -> Fate) {
        let within = offsets(range);
        let mut changed = BTreeMap::new();
        for (offset, fate) in self.records.range(within) {
            if let Fate::Leased(kept) = fate {
                changed.insert(*offset, *kept);
            }
        }
        self.gave_back(&changed, returned, to);
    }

    fn give_back(&mut self, returned: &Returned, which: impl Fn(&Kept) -> bool, to: impl Fn(Kept) -> Fate) {
        let changed = self.records.iter().filter_map(|(offset, fate)| match fate {
            Fate::Leased(kept) if which(kept) => Some((*offset, *kept)),
            _ => None,
        });
        let changed = changed.collect();
        self.gave_back(&changed, returned, to);
    }

    /// Checks what was answered for the records of `changed`, whose leases ended, and does the same.
    fn gave_back(&mut self, changed: &BTreeMap<u64, Kept>, returned: &Returned, to: impl Fn(Kept) -> Fate) {
        let (mut dead, mut missed, mut attempts) = (0, 0, Vec::new());
        for (offset, kept) in changed {
            let fate = if *offset < self.log_start { Fate::Lost } else { to(*kept) };
            dead += u64::from(matches!(fate, Fate::Dead { .. }));
            match fate {
                Fate::Lost => missed += 1,
                _ => attempts.push((*offset, kept.deliveries)),
            }
            self.records.insert(*offset, fate);
        }
        let told: Vec<(u64, u32)> = returned
            .updates
            .iter()
            .flat_map(|update| match update {
                ShareUpdate::Attempts(range, count) => offsets(*range).map(|offset| (offset, *count)),
                update => panic!("{update:?} of records that are not done"),
            })
            .collect();
        assert_eq!(told, attempts);
        assert_eq!((returned.records, returned.dead, returned.missed), (changed.len() as u64, dead, missed));
        self.proposed.extend(&returned.updates);
    }

    /// Records that are on their way to the dead-letter topic.
    fn copying(&self) -> Vec<u64> {
        let copying = self.records.iter().filter(|(_, fate)| matches!(fate, Fate::Copying { .. }));
        copying.map(|(offset, _)| *offset).collect()
    }

    fn copy(&mut self) -> bool {
        let first = self.leases.copy_first_dead(Offset::ZERO).map(|dead| dead.offset.0);
        let dead = self.records.iter_mut().find_map(|(offset, fate)| match *fate {
            Fate::Dead { rejected, deliveries } => {
                Some((*offset, fate, Fate::Copying { rejected, deliveries }))
            }
            _ => None,
        });
        assert_eq!(first, dead.as_ref().map(|(offset, ..)| *offset));
        if let Some((_, fate, copying)) = dead {
            *fate = copying;
        }
        first.is_some()
    }

    fn not_copied(&mut self, range: OffsetRange) {
        let told = self.leases.not_copied(range);
        let (mut missed, log_start) = (0, self.log_start);
        for (offset, fate) in self.records.range_mut(offsets(range)) {
            if let Fate::Copying { rejected, deliveries } = *fate {
                let is_lost = *offset < log_start;
                missed += u64::from(is_lost);
                *fate = if is_lost { Fate::Lost } else { Fate::Dead { rejected, deliveries } };
            }
        }
        assert_eq!(told, missed);
    }

    fn bury(&mut self, range: OffsetRange) {
        let updates = self.leases.buried(range);
        let mut expected = Vec::new();
        for (offset, fate) in self.records.range_mut(offsets(range)) {
            if let Fate::Copying { rejected, deliveries } = *fate {
                *fate = Fate::Burying { rejected, deliveries };
                expected.push(*offset);
            }
        }
        let told: Vec<u64> = updates
            .iter()
            .flat_map(|update| match update {
                ShareUpdate::Accept(range) => offsets(*range),
                update => panic!("{update:?} of records that are in the dead-letter topic"),
            })
            .collect();
        assert_eq!(told, expected);
        self.proposed.extend(updates);
    }

    fn decide(&mut self, update: ShareUpdate, committed: bool) {
        if committed {
            self.replicate(update);
        }
        let ShareUpdate::Accept(range) = update else { return };
        if committed {
            self.leases.committed(range)
        } else {
            self.leases.failed(range)
        }
        let log_start = self.log_start;
        for (offset, fate) in self.records.range_mut(offsets(range)) {
            *fate = match *fate {
                Fate::Accepting(_) | Fate::Burying { .. } if committed => Fate::Done,
                Fate::Accepting(kept) => Fate::Leased(kept),
                Fate::Burying { .. } if *offset < log_start => Fate::Done,
                Fate::Burying { rejected, deliveries } => Fate::Dead { rejected, deliveries },
                fate => fate,
            };
        }
    }

    fn replicate(&mut self, update: ShareUpdate) {
        self.progress.update(update);
        match update {
            ShareUpdate::Accept(range) => self.done.extend(offsets(range)),
            ShareUpdate::Attempts(range, count) => self.attempts.extend(offsets(range).map(|o| (o, count))),
            ShareUpdate::AdvanceTo(offset) => self.done.extend(START..offset.0),
        }
    }

    fn expire(&mut self) {
        let now = self.now;
        let returned = self.leases.expire(self.at(now));
        self.give_back(&returned, |kept| kept.until <= now, |kept| back(kept, None));
        for fate in self.records.values_mut() {
            if let Fate::Waiting { ready_at, .. } = fate
                && ready_at.is_some_and(|at| at <= now)
            {
                *ready_at = None;
            }
        }
    }

    fn trim(&mut self, log_start: u64) {
        let first_lost = self.leases.first_lost(Offset(log_start));
        let trimmed = self.leases.trimmed(Offset(log_start));
        let moved = log_start > self.log_start.max(self.floor);
        self.log_start = self.log_start.max(log_start);
        let (mut missed, mut first) = (0, None);
        for offset in self.floor..self.log_start {
            match self.records.get(&offset) {
                None | Some(Fate::Waiting { .. } | Fate::Dead { .. }) => {
                    missed += 1;
                    first = first.or(Some(Offset(offset)));
                    self.records.insert(offset, Fate::Lost);
                }
                Some(_) => {}
            }
        }
        self.next = self.next.max(self.log_start);
        let update = moved.then_some(ShareUpdate::AdvanceTo(Offset(log_start)));
        assert_eq!(trimmed, Trimmed { update, missed });
        assert_eq!(first_lost, first);
        self.proposed.extend(update);
    }

    fn lead(&mut self, committed: Index) {
        let committed = committed.index(self.proposed.len() + 1);
        for update in std::mem::take(&mut self.proposed).into_iter().take(committed) {
            self.replicate(update);
        }
        let known = self.done.iter().chain(self.attempts.keys()).max();
        self.next = known.map_or(START, |last| last + 1);
        self.floor = (START..).find(|offset| !self.done.contains(offset)).unwrap_or_default();
        self.next = self.next.max(self.floor);
        let waiting = |offset: &u64| Fate::Waiting {
            deliveries: self.attempts.get(offset).copied().unwrap_or(0),
            ready_at: None,
        };
        let open = (self.floor..self.next).filter(|offset| !self.done.contains(offset));
        let open: BTreeMap<u64, Fate> = open.map(|offset| (offset, waiting(&offset))).collect();
        self.records = self.done.iter().map(|offset| (*offset, Fate::Done)).chain(open).collect();
        self.leases = Leases::new(&self.progress, WINDOW);
        // A leader looks at once where the log begins.
        let log_start = std::mem::replace(&mut self.log_start, self.floor);
        self.trim(log_start);
    }

    fn start(&self) -> u64 {
        let done = |offset: &u64| matches!(self.records.get(offset), Some(Fate::Done | Fate::Lost));
        (self.log_start..self.next).find(|offset| !done(offset)).unwrap_or(self.next)
    }

    /// Compares the machine with the model, record by record.
    fn check(&self) {
        self.leases.runs.check();
        assert_eq!(self.leases.next_offset().0, self.next);
        assert_eq!(self.leases.start().0, self.start());
        assert_eq!(self.leases.room(), WINDOW.saturating_sub(self.next - self.start()));
        for offset in 0..self.next + WINDOW {
            let state = self.leases.runs.within(range(offset, offset)).next().map(|(_, state)| state.clone());
            assert_eq!(state, self.records.get(&offset).and_then(|fate| self.expected(*fate)), "of {offset}");
        }
        let of = |which: fn(&Fate) -> bool| {
            self.records.iter().filter(move |(_, fate)| which(fate)).map(|(o, _)| *o)
        };
        assert_eq!(self.leases.leased() as usize, of(|fate| matches!(fate, Fate::Leased(_))).count());
        let dead: Vec<u64> = self.leases.dead().map(|dead| dead.offset.0).collect();
        assert_eq!(dead, of(|fate| matches!(fate, Fate::Dead { .. })).collect::<Vec<_>>());
        let unfinished = of(|fate| !matches!(fate, Fate::Done | Fate::Lost)).filter(|o| *o >= self.log_start);
        assert_eq!(self.leases.unfinished() as usize, unfinished.count());
        self.check_redeliverable();
        let timers = self.records.values().filter_map(|fate| match fate {
            Fate::Leased(kept) => Some(kept.until),
            Fate::Waiting { ready_at, .. } => *ready_at,
            _ => None,
        });
        assert_eq!(self.leases.deadline(), timers.min().map(|at| self.at(at)));
    }

    fn check_redeliverable(&self) {
        let ready = |offset: &u64| match self.records.get(offset) {
            Some(Fate::Waiting { ready_at, .. }) => ready_at.is_none_or(|at| at <= self.now),
            _ => false,
        };
        let first = (0..self.next).find(ready);
        let expected = first.map(|first| range(first, (first..).take_while(ready).last().unwrap_or(first)));
        assert_eq!(self.leases.redeliverable(self.at(self.now)), expected);
    }

    fn expected(&self, fate: Fate) -> Option<State> {
        let held = |kept: Kept| Held {
            holder: SessionId(kept.holder),
            until: self.at(kept.until),
            spec: LeaseSpec { lease: Duration::from_millis(kept.lease), deliveries_max: kept.most },
            deliveries: kept.deliveries,
        };
        let death = |rejected, deliveries| Death {
            reason: if rejected {
                DeathReason::Rejected { detail: "why".into() }
            } else {
                DeathReason::MaxDeliveries
            },
            deliveries,
        };
        match fate {
            Fate::Waiting { deliveries, ready_at } => {
                Some(State::Waiting { deliveries, ready_at: ready_at.map(|at| self.at(at)) })
            }
            Fate::Leased(kept) => Some(State::Leased(held(kept))),
            Fate::Accepting(kept) => Some(State::Accepting(held(kept))),
            Fate::Dead { rejected, deliveries } => Some(State::Dead(death(rejected, deliveries))),
            Fate::Copying { rejected, deliveries } => Some(State::Copying(death(rejected, deliveries))),
            Fate::Burying { rejected, deliveries } => Some(State::Burying(death(rejected, deliveries))),
            Fate::Done | Fate::Lost => None,
        }
    }

    /// Delivers everything that is left to one member that accepts it, and counts what comes.
    fn drain(&mut self) -> BTreeMap<u64, u32> {
        let mut delivered = BTreeMap::new();
        let end = self.next + 10;
        while let Some(update) = self.proposed.pop_front() {
            self.decide(update, true);
        }
        for _ in 0..1_000 {
            self.now += 1_000;
            self.expire();
            while self.copy() {}
            for copied in self.copying() {
                // What retention has deleted since is not owed any more.
                if copied >= self.log_start {
                    *delivered.entry(copied).or_default() += 1;
                }
                self.bury(range(copied, copied));
            }
            while let Some(update) = self.proposed.pop_front() {
                self.decide(update, true);
            }
            self.check();
            if self.start() >= end {
                break;
            }
            let again = self.leases.redeliverable(self.at(self.now));
            let offer = again.unwrap_or(range(self.next, end - 1));
            let spec = LeaseSpec { lease: Duration::from_secs(1), deliveries_max: 100 };
            for lease in self.leases.acquire(self.at(self.now), SessionId(9), spec, offer, 10) {
                for offset in offsets(lease.range) {
                    *delivered.entry(offset).or_default() += 1;
                    let kept = Kept {
                        holder: 9,
                        until: self.now + 1_000,
                        lease: 1_000,
                        most: 100,
                        deliveries: lease.delivery_count,
                    };
                    self.records.insert(offset, Fate::Leased(kept));
                }
                self.next = self.next.max(lease.range.last.0 + 1);
                self.acknowledge(9, lease.range, Acknowledgement::Accept);
            }
        }
        assert!(self.start() >= end, "what is left never became done");
        delivered
    }
}

fn back(kept: Kept, ready_at: Option<u64>) -> Fate {
    let deliveries = kept.deliveries;
    if deliveries >= kept.most {
        Fate::Dead { rejected: false, deliveries }
    } else {
        Fate::Waiting { deliveries, ready_at }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn does_what_a_model_of_single_records_does(steps in vec(any_step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        // Nothing is lost: what is neither done nor deleted by now comes once more, and becomes done.
        let end = world.next + 10;
        let over = |fate: &Fate| matches!(fate, Fate::Done | Fate::Lost | Fate::Accepting(_) | Fate::Burying { .. });
        let owed: BTreeSet<u64> = (world.log_start..end)
            .filter(|offset| !world.records.get(offset).is_some_and(over))
            .collect();
        let delivered = world.drain();
        prop_assert_eq!(delivered.keys().copied().collect::<BTreeSet<_>>(), owed);
        prop_assert!(delivered.values().all(|times| *times == 1));
    }
}
