//! Each rule by an example.

use super::super::*;

const LEASE: Duration = Duration::from_secs(30);
const SPEC: LeaseSpec = LeaseSpec { lease: LEASE, deliveries_max: 3 };
const ANN: SessionId = SessionId(1);
const BOB: SessionId = SessionId(2);

fn range(first: u64, last: u64) -> OffsetRange {
    OffsetRange::new(Offset(first), Offset(last))
}

fn lease(first: u64, last: u64, delivery_count: u32) -> Lease {
    Lease { range: range(first, last), delivery_count }
}

fn new() -> Leases {
    Leases::new(&Progress::starting_at(Offset(10)), 100)
}

/// Leases with offsets 10 to 19 at Ann.
fn leased(now: Instant) -> Leases {
    let mut leases = new();
    assert_eq!(leases.acquire(now, ANN, SPEC, range(10, 19), 10), [lease(10, 19, 1)]);
    leases
}

#[test]
fn new_records_are_leased_in_order_and_once() {
    let now = Instant::now();
    let mut leases = new();
    assert_eq!(leases.acquire(now, ANN, SPEC, range(5, 29), 4), [lease(10, 13, 1)]);
    assert_eq!(leases.acquire(now, BOB, SPEC, range(5, 29), 100), [lease(14, 29, 1)]);
    assert_eq!(leases.acquire(now, ANN, SPEC, range(5, 29), 100), []);
    assert_eq!((leases.next_offset(), leases.leased(), leases.start()), (Offset(30), 20, Offset(10)));
}

#[test]
fn no_new_record_is_passed_over() {
    let mut leases = new();
    assert_eq!(leases.acquire(Instant::now(), ANN, SPEC, range(11, 29), 100), []);
    assert_eq!(leases.next_offset(), Offset(10));
}

#[test]
fn an_accepted_record_is_nobodys_until_the_accept_is_committed() {
    let now = Instant::now();
    let mut leases = leased(now);
    assert_eq!(leases.accept(ANN, range(10, 12)), Ok(ShareUpdate::Accept(range(10, 12))));
    assert_eq!(leases.expire(now + LEASE).records, 7);
    assert_eq!(leases.drop_holder(ANN), Returned::default());
    assert_eq!(leases.redeliverable(now + LEASE), Some(range(13, 19)));
    assert_eq!((leases.start(), leases.leased()), (Offset(10), 0));

    leases.committed(range(10, 12));
    assert_eq!((leases.start(), leases.unfinished()), (Offset(13), 7));
}

#[test]
fn a_record_whose_accept_failed_comes_back_after_its_lease() {
    let now = Instant::now();
    let mut leases = leased(now);
    leases.accept(ANN, range(10, 19)).unwrap();
    leases.failed(range(10, 19));
    assert_eq!(leases.redeliverable(now), None);
    assert_eq!(leases.deadline(), Some(now + LEASE));
    leases.expire(now + LEASE);
    assert_eq!(leases.acquire(now + LEASE, BOB, SPEC, range(10, 19), 10), [lease(10, 19, 2)]);
}

#[test]
fn a_record_that_is_done_is_done_whatever_was_thought_of_its_accept() {
    let now = Instant::now();
    let mut leases = leased(now);
    leases.accept(ANN, range(10, 19)).unwrap();
    leases.failed(range(10, 19));
    leases.committed(range(10, 18));
    assert_eq!((leases.start(), leases.leased()), (Offset(19), 1));
    assert_eq!(leases.accept(ANN, range(18, 19)), Err(LeaseExpired { offset: Offset(18) }));
}

#[test]
fn an_acknowledgement_holds_for_all_of_its_records_or_for_none() {
    let now = Instant::now();
    let mut leases = leased(now);
    leases.acquire(now, BOB, SPEC, range(20, 24), 10);
    leases.accept(ANN, range(15, 15)).unwrap();

    let expired = |offset| Err(LeaseExpired { offset: Offset(offset) });
    assert_eq!(leases.accept(ANN, range(10, 16)), expired(15));
    assert_eq!(leases.accept(ANN, range(16, 22)), expired(20));
    assert_eq!(leases.accept(BOB, range(20, 25)), expired(25));
    assert_eq!(leases.accept(BOB, range(9, 25)), expired(9));
    assert_eq!(leases.accept(BOB, range(21, 20)), expired(21));
    assert_eq!(leases.extend(now, ANN, range(14, 15)).unwrap_err().offset, Offset(15));
    assert_eq!(leases.release(now, ANN, range(14, 15), LEASE).unwrap_err().offset, Offset(15));
    assert_eq!(leases.reject(ANN, range(14, 15), &"".into()).unwrap_err().offset, Offset(15));
    assert_eq!((leases.leased(), leases.redeliverable(now), leases.dead().count()), (14, None, 0));
}

#[test]
fn a_lease_ends_at_its_time_and_not_before() {
    let now = Instant::now();
    let mut leases = leased(now);
    let just_before = now + LEASE - Duration::from_nanos(1);
    assert_eq!(leases.expire(just_before), Returned::default());

    let returned = leases.expire(now + LEASE);
    assert_eq!(returned.updates, [ShareUpdate::Attempts(range(10, 19), 1)]);
    assert_eq!((returned.records, returned.dead, returned.missed), (10, 0, 0));
    assert_eq!(leases.accept(ANN, range(10, 10)), Err(LeaseExpired { offset: Offset(10) }));
    assert_eq!(
        leases.acquire(now + LEASE, BOB, SPEC, range(10, 30), 12),
        [lease(10, 19, 2), lease(20, 21, 1)]
    );
}

#[test]
fn an_extended_lease_begins_anew() {
    let now = Instant::now();
    let mut leases = leased(now);
    let later = now + LEASE / 2;
    leases.extend(later, ANN, range(12, 13)).unwrap();
    let updates = leases.expire(now + LEASE).updates;
    assert_eq!(updates, [10..=11, 14..=19].map(|o| ShareUpdate::Attempts(range(*o.start(), *o.end()), 1)));
    assert_eq!(leases.deadline(), Some(later + LEASE));
    assert_eq!(leases.leased(), 2);
}

#[test]
fn a_released_record_waits_for_its_delay() {
    let now = Instant::now();
    let mut leases = leased(now);
    let delay = Duration::from_secs(5);
    leases.release(now, ANN, range(10, 11), delay).unwrap();
    leases.release(now, ANN, range(13, 14), Duration::ZERO).unwrap();
    assert_eq!(leases.redeliverable(now), Some(range(13, 14)));
    assert_eq!(leases.acquire(now, BOB, SPEC, range(10, 19), 10), [lease(13, 14, 2)]);
    assert_eq!(leases.deadline(), Some(now + delay));

    leases.expire(now + delay);
    assert_eq!(leases.redeliverable(now + delay), Some(range(10, 11)));
    assert_eq!(leases.deadline(), Some(now + LEASE));
}

#[test]
fn leases_of_a_member_that_is_gone_end_at_once() {
    let now = Instant::now();
    let mut leases = leased(now);
    leases.acquire(now, BOB, SPEC, range(20, 21), 10);
    assert_eq!((leases.leased_to(ANN), leases.leased_to(BOB)), (10, 2));
    let returned = leases.drop_holder(ANN);
    assert_eq!((leases.leased_to(ANN), leases.leased_to(BOB)), (0, 2));
    assert_eq!((returned.records, leases.leased()), (10, 2));
    assert_eq!(leases.redeliverable(now), Some(range(10, 19)));
}

#[test]
fn a_record_that_was_delivered_too_often_is_dead() {
    let now = Instant::now();
    let mut leases = new();
    for delivery_count in 1..=3 {
        assert_eq!(leases.acquire(now, ANN, SPEC, range(10, 10), 1), [lease(10, 10, delivery_count)]);
        assert_eq!(leases.dead().count(), 0);
        let returned = leases.release(now, ANN, range(10, 10), Duration::ZERO).unwrap();
        assert_eq!(returned.updates, [ShareUpdate::Attempts(range(10, 10), delivery_count)]);
        assert_eq!(returned.dead, u64::from(delivery_count == 3));
    }
    let dead = Dead { offset: Offset(10), reason: DeathReason::MaxDeliveries, delivery_count: 3 };
    assert_eq!(leases.dead().collect::<Vec<_>>(), [dead]);
    assert_eq!((leases.redeliverable(now), leases.deadline(), leases.start()), (None, None, Offset(10)));
}

#[test]
fn a_rejected_record_is_dead_until_its_copy_is_committed() {
    let now = Instant::now();
    let mut leases = leased(now);
    leases.reject(ANN, range(10, 11), &"no such order".into()).unwrap();
    let reason = DeathReason::Rejected { detail: "no such order".into() };
    let dead = [10, 11].map(|o| Dead { offset: Offset(o), reason: reason.clone(), delivery_count: 1 });
    assert_eq!(leases.dead().collect::<Vec<_>>(), dead);
    assert_eq!(leases.buried(range(0, 99)), [], "there is no copy yet");

    assert_eq!(
        [leases.copy_first_dead(Offset::ZERO), leases.copy_first_dead(Offset::ZERO)],
        dead.clone().map(Some)
    );
    assert_eq!(leases.copy_first_dead(Offset::ZERO), None);
    assert_eq!(leases.buried(range(0, 99)), [ShareUpdate::Accept(range(10, 11))]);
    assert_eq!((leases.dead().count(), leases.start()), (0, Offset(10)));
    leases.failed(range(10, 11));
    assert_eq!(leases.dead().count(), 2);
    assert_eq!([leases.copy_first_dead(Offset::ZERO), leases.copy_first_dead(Offset::ZERO)], dead.map(Some));
    leases.buried(range(10, 11));
    leases.committed(range(10, 11));
    assert_eq!((leases.dead().count(), leases.start()), (0, Offset(12)));
}

#[test]
fn a_record_that_retention_deletes_while_it_is_copied_is_lost_only_if_there_is_no_copy() {
    let rejected = |now| {
        let mut leases = leased(now);
        leases.reject(ANN, range(10, 11), &"".into()).unwrap();
        assert_eq!(leases.copy_first_dead(Offset::ZERO).map(|dead| dead.offset), Some(Offset(10)));
        leases
    };
    let mut leases = rejected(Instant::now());
    assert_eq!(leases.first_lost(Offset(20)), Some(Offset(11)));
    assert_eq!(leases.trimmed(Offset(20)).missed, 1, "nobody was copying 11");
    assert_eq!(leases.buried(range(10, 10)), [ShareUpdate::Accept(range(10, 10))]);
    assert_eq!(leases.not_copied(range(10, 10)), 0);

    let mut leases = rejected(Instant::now());
    leases.trimmed(Offset(20));
    assert_eq!(leases.not_copied(range(10, 10)), 1);
    assert_eq!((leases.buried(range(10, 10)), leases.dead().count()), (vec![], 0));

    let mut leases = rejected(Instant::now());
    assert_eq!((leases.not_copied(range(10, 11)), leases.dead().count()), (0, 2));
}

#[test]
fn a_member_that_allows_fewer_deliveries_does_not_get_a_record_that_had_them() {
    let now = Instant::now();
    let mut leases = leased(now);
    leases.release(now, ANN, range(10, 19), Duration::ZERO).unwrap();
    let once = LeaseSpec { deliveries_max: 1, ..SPEC };
    assert_eq!(leases.acquire(now, BOB, once, range(10, 20), 10), [lease(20, 20, 1)]);
    assert_eq!(leases.dead().count(), 10);
}

#[test]
fn the_window_holds_from_the_first_record_that_is_not_done() {
    let now = Instant::now();
    let mut leases = new();
    assert_eq!(leases.acquire(now, ANN, SPEC, range(10, 500), 500), [lease(10, 109, 1)]);
    leases.accept(ANN, range(11, 109)).unwrap();
    leases.committed(range(11, 109));
    assert_eq!((leases.room(), leases.acquire(now, ANN, SPEC, range(110, 500), 500)), (0, vec![]));

    leases.accept(ANN, range(10, 10)).unwrap();
    assert_eq!(leases.room(), 0);
    leases.committed(range(10, 10));
    assert_eq!(leases.acquire(now, ANN, SPEC, range(110, 500), 500), [lease(110, 209, 1)]);
}

#[test]
fn what_retention_deleted_is_lost_unless_a_member_has_it() {
    let now = Instant::now();
    let mut leases = leased(now);
    leases.release(now, ANN, range(10, 11), Duration::ZERO).unwrap();
    leases.reject(ANN, range(12, 12), &"".into()).unwrap();

    assert_eq!(leases.first_lost(Offset(10)), None);
    assert_eq!(leases.first_lost(Offset(25)), Some(Offset(10)));
    let trimmed = leases.trimmed(Offset(25));
    assert_eq!(leases.first_lost(Offset(25)), None, "it was told");
    assert_eq!(trimmed, Trimmed { update: Some(ShareUpdate::AdvanceTo(Offset(25))), missed: 3 + 5 });
    assert_eq!((leases.start(), leases.next_offset(), leases.unfinished()), (Offset(25), Offset(25), 0));
    assert_eq!((leases.dead().count(), leases.redeliverable(now)), (0, None));

    assert_eq!(leases.accept(ANN, range(13, 13)), Ok(ShareUpdate::Accept(range(13, 13))));
    leases.committed(range(13, 13));
    let returned = leases.expire(now + LEASE);
    assert_eq!((returned.records, returned.missed, returned.updates), (6, 6, vec![]));
    assert_eq!(leases.trimmed(Offset(20)), Trimmed::default());
}

#[test]
fn a_new_leader_delivers_what_is_not_done_with_its_count() {
    let now = Instant::now();
    let mut progress = Progress::starting_at(Offset(10));
    progress.update(ShareUpdate::Accept(range(12, 13)));
    progress.update(ShareUpdate::Attempts(range(11, 11), 2));
    progress.update(ShareUpdate::Attempts(range(15, 15), 1));
    let mut leases = Leases::new(&progress, 100);
    assert_eq!((leases.start(), leases.next_offset(), leases.unfinished()), (Offset(10), Offset(16), 4));
    assert_eq!(leases.redeliverable(now), Some(range(10, 11)));
    let given = leases.acquire(now, ANN, SPEC, range(10, 16), 100);
    assert_eq!(
        given,
        [lease(10, 10, 1), lease(11, 11, 3), lease(14, 14, 1), lease(15, 15, 2), lease(16, 16, 1)]
    );
}

#[test]
fn records_that_are_acknowledged_as_one_stay_one_run() {
    let now = Instant::now();
    let mut leases = Leases::new(&Progress::starting_at(Offset(0)), 2_000);
    for first in (0..2_000).step_by(100) {
        leases.acquire(now, ANN, SPEC, range(first, first + 99), 100);
    }
    assert_eq!(leases.runs.iter().count(), 1);
    for first in (0..2_000).step_by(2) {
        leases.release(now, ANN, range(first, first), Duration::ZERO).unwrap();
    }
    assert_eq!(leases.runs.iter().count(), 2_000);
    leases.drop_holder(ANN);
    assert_eq!(leases.runs.iter().count(), 1);
}
