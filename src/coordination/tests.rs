use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::clock::Timestamp;
use crate::record::Offset;

fn key(topic: u32, partition: u32) -> PartitionKey {
    PartitionKey { topic: TopicId(topic), partition }
}

fn range(first: u64, last: u64) -> OffsetRange {
    OffsetRange::new(Offset(first), Offset(last))
}

fn create(group: &str, kind: Kind) -> Command {
    Command::CreateGroup { group: group.into(), kind, at: Timestamp(1) }
}

fn commit(group: &str, partition: PartitionKey, offset: u64, at: i64) -> Command {
    let offsets = vec![(partition, Offset(offset), "m".into())];
    Command::CommitOffsets { group: group.into(), at: Timestamp(at), offsets }
}

fn init(group: &str, offsets: &[(PartitionKey, u64)]) -> Command {
    let offsets = offsets.iter().map(|(key, offset)| (*key, Offset(*offset))).collect();
    Command::InitOffsets { group: group.into(), at: Timestamp(2), offsets }
}

fn share(group: &str, partition: PartitionKey, updates: Vec<ShareUpdate>) -> Command {
    Command::UpdateShares { group: group.into(), at: Timestamp(3), updates: vec![(partition, updates)] }
}

fn state(commands: impl IntoIterator<Item = Command>) -> State {
    let mut state = State::default();
    for command in commands {
        state.apply(command).expect("fits");
    }
    state
}

fn mismatch(group: &str, kind: Kind) -> Error {
    Error::KindMismatch { group: group.to_owned(), kind }
}

#[test]
fn a_commit_makes_the_group_and_replaces_earlier_offsets() {
    let state =
        state([commit("g", key(1, 0), 5, 10), commit("g", key(1, 0), 3, 20), commit("g", key(1, 1), 9, 15)]);
    let group = state.group("g").expect("exists");
    assert_eq!(group.kind, Kind::Consumer);
    assert_eq!(group.last_active, Timestamp(20), "a clock that goes back does not make it older");
    let committed = Committed { offset: Offset(3), metadata: "m".into(), at: Timestamp(20) };
    assert_eq!(group.offsets()[&key(1, 0)], committed);
    assert_eq!(group.offsets().len(), 2);
    assert!(group.shares().is_empty());
}

#[test]
fn a_group_keeps_its_kind() {
    let mut state = state([create("c", Kind::Consumer), create("s", Kind::Share), create("s", Kind::Share)]);
    let before = state.clone();
    assert_eq!(state.apply(create("c", Kind::Share)), Err(mismatch("c", Kind::Consumer)));
    assert_eq!(state.apply(create("s", Kind::Consumer)), Err(mismatch("s", Kind::Share)));
    assert_eq!(state.apply(commit("s", key(1, 0), 1, 99)), Err(mismatch("s", Kind::Share)));
    let accept = ShareUpdate::Accept(range(0, 0));
    assert_eq!(state.apply(share("c", key(1, 0), vec![accept])), Err(mismatch("c", Kind::Consumer)));
    assert_eq!(state, before);
}

#[test]
fn what_is_out_of_limits_is_refused_and_changes_nothing() {
    let mut state = State::default();
    assert!(matches!(state.apply(commit("a b", key(1, 0), 1, 1)), Err(Error::InvalidName { .. })));
    let long: Arc<str> = "x".repeat(METADATA_BYTES_MAX + 1).into();
    let offsets = vec![(key(1, 0), Offset(1), Arc::from("ok")), (key(1, 1), Offset(1), long)];
    let refused = state.apply(Command::CommitOffsets { group: "g".into(), at: Timestamp(1), offsets });
    assert_eq!(refused, Err(Error::MetadataTooLong { bytes: METADATA_BYTES_MAX + 1 }));
    assert!(state.is_empty());

    state.apply(create("s", Kind::Share)).expect("created");
    state.apply(init("s", &[(key(1, 0), 0)])).expect("begun");
    let before = state.clone();
    for bad in [range(5, 4), range(5, u64::MAX)] {
        let updates = vec![ShareUpdate::Accept(range(0, 1)), ShareUpdate::Attempts(bad, 1)];
        assert!(matches!(state.apply(share("s", key(1, 0), updates)), Err(Error::Malformed(_))), "{bad:?}");
    }
    assert_eq!(state, before);
}

#[test]
fn only_the_first_beginning_counts() {
    for kind in [Kind::Consumer, Kind::Share] {
        let mut state = state([create("g", kind), init("g", &[(key(1, 0), 7)])]);
        let outcome = state.apply(init("g", &[(key(1, 1), 4), (key(1, 0), 100)]));
        let standing = vec![(key(1, 1), Offset(4)), (key(1, 0), Offset(7))];
        assert_eq!(outcome, Ok(Outcome::Offsets(standing)), "{kind}");
    }
    assert_eq!(State::default().apply(init("g", &[])), Err(Error::UnknownGroup("g".to_owned())));
}

#[test]
fn a_reset_replaces_what_was_there() {
    let reset = |offset| Command::SetOffsets {
        group: "g".into(),
        at: Timestamp(9),
        offsets: vec![(key(1, 0), Offset(offset))],
    };
    let consumer = state([commit("g", key(1, 0), 5, 1), reset(2)]);
    let committed = Committed { offset: Offset(2), metadata: "".into(), at: Timestamp(9) };
    assert_eq!(consumer.group("g").expect("exists").offsets()[&key(1, 0)], committed);

    let updates = vec![ShareUpdate::Accept(range(9, 12)), ShareUpdate::Attempts(range(5, 6), 2)];
    let shared = state([
        create("g", Kind::Share),
        init("g", &[(key(1, 0), 5)]),
        share("g", key(1, 0), updates),
        reset(2),
    ]);
    let progress = &shared.group("g").expect("exists").shares()[&key(1, 0)];
    assert_eq!(progress, &Progress::starting_at(Offset(2)));
}

#[test]
fn updates_of_partitions_that_were_not_begun_are_left_out() {
    let accept = ShareUpdate::Accept(range(0, 0));
    let state = state([create("s", Kind::Share), share("s", key(1, 0), vec![accept])]);
    assert!(state.group("s").expect("exists").shares().is_empty());
}

#[test]
fn a_topic_is_forgotten_in_all_groups_and_nothing_else_is() {
    let mut state = state([
        commit("c", key(1, 3), 1, 1),
        commit("c", key(2, 0), 1, 1),
        commit("c", key(2, u32::MAX), 1, 1),
        commit("c", key(3, 0), 1, 1),
        create("s", Kind::Share),
        init("s", &[(key(2, 1), 0), (key(3, 1), 0)]),
    ]);
    assert_eq!(state.topics().into_iter().collect::<Vec<_>>(), [TopicId(1), TopicId(2), TopicId(3)]);
    state.apply(Command::ForgetTopic { topic: TopicId(2) }).expect("forgotten");
    let kept: Vec<_> = state.group("c").expect("exists").offsets().keys().copied().collect();
    assert_eq!(kept, [key(1, 3), key(3, 0)]);
    let kept: Vec<_> = state.group("s").expect("exists").shares().keys().copied().collect();
    assert_eq!(kept, [key(3, 1)]);
}

#[test]
fn partitions_and_groups_are_deleted() {
    let mut state =
        state([commit("g", key(1, 0), 1, 1), commit("g", key(1, 1), 1, 1), commit("h", key(1, 0), 1, 1)]);
    let partitions = vec![key(1, 0), key(9, 9)];
    state.apply(Command::DeleteOffsets { group: "g".into(), partitions }).expect("deleted");
    assert_eq!(state.group("g").expect("exists").offsets().keys().copied().collect::<Vec<_>>(), [key(1, 1)]);
    state.apply(Command::DeleteGroup { group: "g".into() }).expect("deleted");
    assert_eq!(state.groups().map(|group| &*group.name).collect::<Vec<_>>(), ["h"]);
    let unknown = || Err(Error::UnknownGroup("g".to_owned()));
    assert_eq!(state.apply(Command::DeleteGroup { group: "g".into() }), unknown());
    assert_eq!(state.apply(Command::Touch { group: "g".into(), at: Timestamp(1) }), unknown());
    assert_eq!(state.apply(Command::DeleteOffsets { group: "g".into(), partitions: vec![] }), unknown());
}

#[test]
fn groups_are_listed_by_name() {
    let state = state(["b", "a", "c"].map(|name| create(name, Kind::Consumer)));
    let names =
        |groups: &mut dyn Iterator<Item = &Group>| groups.map(|g| g.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&mut state.groups()), ["a", "b", "c"]);
    assert_eq!(names(&mut state.groups_after("a")), ["b", "c"]);
    assert_eq!(names(&mut state.groups_after("bb")), ["c"]);
    assert_eq!(state.len(), 3);
}

#[test]
fn unreadable_bytes_are_refused() {
    assert!(matches!(decode_entry(&[0xff, 0x01]), Err(Error::Malformed(_))));
    assert!(matches!(State::decode(&[0xff]), Err(Error::Malformed(_))));
    // A command of a version to come: field 1, with field 99 inside.
    assert!(matches!(decode_entry(&[0x0a, 0x03, 0x9a, 0x06, 0x00]), Err(Error::Malformed(_))));
}

#[test]
fn stored_progress_that_breaks_its_invariant_is_refused() {
    let attempts = |first, last, count| Attempts { range: range(first, last), count };
    let fine =
        Progress::from_parts(5, &[range(7, 8), range(10, 10)], &[attempts(5, 6, 1), attempts(9, 9, 1)]);
    assert!(fine.is_ok(), "{fine:?}");
    let broken: [(&[OffsetRange], &[Attempts]); 8] = [
        (&[range(5, 6)], &[]),
        (&[range(3, 4)], &[]),
        (&[range(7, 8), range(9, 9)], &[]),
        (&[range(10, 10), range(7, 8)], &[]),
        (&[range(8, 7)], &[]),
        (&[range(7, 8)], &[attempts(8, 9, 1)]),
        (&[], &[attempts(6, 6, 1), attempts(7, 7, 1)]),
        (&[], &[attempts(6, 6, 0)]),
    ];
    for (done, attempts) in broken {
        let refused = Progress::from_parts(5, done, attempts);
        assert!(matches!(refused, Err(Error::Malformed(_))), "{done:?} {attempts:?}");
    }
}

#[test]
fn stored_bytes_are_as_they_were() {
    let updates = vec![ShareUpdate::Accept(range(7, 8)), ShareUpdate::Attempts(range(5, 5), 2)];
    let commands = [
        commit("c", key(1, 2), 5, 7),
        create("s", Kind::Share),
        init("s", &[(key(1, 0), 5)]),
        share("s", key(1, 0), updates),
    ];
    let mut entry = encode_entry(&commands);
    put_term(&mut entry, 3);
    #[rustfmt::skip]
    let golden = [
        0x0a, 20, 0x12, 18, 0x0a, 1, b'c', 0x10, 7, 0x1a, 11, 0x0a, 4, 0x08, 1, 0x10, 2, 0x10, 5, 0x1a, 1, b'm',
        0x0a, 9, 0x0a, 7, 0x0a, 1, b's', 0x10, 2, 0x18, 1,
        0x0a, 15, 0x1a, 13, 0x0a, 1, b's', 0x10, 2, 0x1a, 6, 0x0a, 2, 0x08, 1, 0x10, 5,
        0x0a, 33, 0x22, 31, 0x0a, 1, b's', 0x10, 3, 0x1a, 24, 0x0a, 2, 0x08, 1,
        0x12, 6, 0x0a, 4, 0x08, 7, 0x10, 8,
        0x12, 10, 0x12, 8, 0x0a, 4, 0x08, 5, 0x10, 5, 0x10, 2,
        0x10, 3,
    ];
    assert_eq!(entry, golden);
    #[rustfmt::skip]
    let golden = [
        0x0a, 24, 0x0a, 1, b'c', 0x10, 1, 0x18, 7,
        0x22, 15, 0x0a, 11, 0x0a, 4, 0x08, 1, 0x10, 2, 0x10, 5, 0x1a, 1, b'm', 0x10, 7,
        0x0a, 31, 0x0a, 1, b's', 0x10, 2, 0x18, 3,
        0x2a, 22, 0x0a, 2, 0x08, 1, 0x10, 5, 0x1a, 4, 0x08, 7, 0x10, 8, 0x22, 8, 0x0a, 4, 0x08, 5, 0x10, 5, 0x10, 2,
    ];
    assert_eq!(state(commands).encode(), golden);
}

#[test]
fn names_of_allowed_characters_are_valid() {
    for name in ["a", "billing", "Billing.v1_eu-west", "_x", &"n".repeat(249)] {
        assert_eq!(validate_group_name(name), Ok(()), "{name}");
    }
}

#[test]
fn names_that_break_a_rule_are_refused() {
    for name in ["", ".", "..", "__internal", "a b", "a/b", "ä", "a\n", &"n".repeat(250)] {
        assert!(matches!(validate_group_name(name), Err(Error::InvalidName { .. })), "{name:?}");
    }
}

#[test]
fn groups_stay_in_their_shard_for_ever() {
    let shards = |shards| ["billing", "audit", "g-1", "g-2", "g-3", "g-4"].map(|name| shard_of(name, shards));
    assert_eq!(shards(4), [1, 2, 0, 3, 2, 2]);
    assert_eq!(shards(16), [1, 14, 12, 15, 2, 14]);
    assert_eq!(shards(1), [0; 6]);
}

#[test]
fn groups_are_spread_over_all_shards() {
    let mut count = [0; 4];
    for number in 0..1_000 {
        count[shard_of(&format!("group-{number}"), 4) as usize] += 1;
    }
    assert!(count.iter().all(|count| (200..300).contains(count)), "{count:?}");
}

fn keys() -> impl Strategy<Value = PartitionKey> {
    (1..4u32, 0..3u32).prop_map(|(topic, partition)| key(topic, partition))
}

fn names() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![Just("a".into()), Just("b".into()), Just("c".into())]
}

fn ranges() -> impl Strategy<Value = OffsetRange> {
    (0..40u64, 0..12u64).prop_map(|(first, more)| range(first, first + more))
}

fn updates() -> impl Strategy<Value = ShareUpdate> {
    prop_oneof![
        3 => ranges().prop_map(ShareUpdate::Accept),
        3 => (ranges(), 0..4u32).prop_map(|(range, count)| ShareUpdate::Attempts(range, count)),
        1 => (0..45u64).prop_map(|offset| ShareUpdate::AdvanceTo(Offset(offset))),
    ]
}

fn commands() -> impl Strategy<Value = Command> {
    let kinds = prop_oneof![Just(Kind::Consumer), Just(Kind::Share)];
    let at = || (0..100i64).prop_map(Timestamp);
    let offsets = || vec((keys(), (0..50u64).prop_map(Offset)), 0..4);
    let committed = (keys(), (0..50u64).prop_map(Offset), prop_oneof![Just("".into()), Just("m".into())]);
    prop_oneof![
        1 => (names(), kinds, at()).prop_map(|(group, kind, at)| Command::CreateGroup { group, kind, at }),
        1 => (names(), at(), vec(committed, 0..4))
            .prop_map(|(group, at, offsets)| Command::CommitOffsets { group, at, offsets }),
        1 => (names(), at(), offsets()).prop_map(|(group, at, offsets)| Command::InitOffsets { group, at, offsets }),
        4 => (names(), at(), vec((keys(), vec(updates(), 0..4)), 0..3))
            .prop_map(|(group, at, updates)| Command::UpdateShares { group, at, updates }),
        1 => (names(), at(), offsets()).prop_map(|(group, at, offsets)| Command::SetOffsets { group, at, offsets }),
        1 => (names(), at()).prop_map(|(group, at)| Command::Touch { group, at }),
        1 => (names(), vec(keys(), 0..3))
            .prop_map(|(group, partitions)| Command::DeleteOffsets { group, partitions }),
        1 => names().prop_map(|group| Command::DeleteGroup { group }),
        1 => (1..4u32).prop_map(|topic| Command::ForgetTopic { topic: TopicId(topic) }),
    ]
}

/// What [`Progress`] is to be, record by record.
#[derive(Default)]
struct Naive {
    start: u64,
    /// Whether it is done, and how often it was delivered.
    records: BTreeMap<u64, (bool, u32)>,
}

impl Naive {
    fn update(&mut self, update: ShareUpdate) {
        match update {
            ShareUpdate::Accept(range) => {
                self.records.extend((range.first.0..=range.last.0).map(|at| (at, (true, 0))));
            }
            ShareUpdate::Attempts(range, count) => {
                for at in range.first.0.max(self.start)..=range.last.0 {
                    let record = self.records.entry(at).or_default();
                    if !record.0 {
                        record.1 = count;
                    }
                }
            }
            ShareUpdate::AdvanceTo(offset) => self.start = self.start.max(offset.0),
        }
        while self.records.get(&self.start).is_some_and(|record| record.0) {
            self.start += 1;
        }
        self.records.retain(|at, _| *at >= self.start);
    }
}

proptest! {
    #[test]
    fn entries_survive_storage_alone_and_joined(
        history in vec(commands(), 0..8),
        split in 0..8usize,
        term in proptest::option::of(any::<u64>()),
    ) {
        let (first, second) = history.split_at(split.min(history.len()));
        let mut joined = [encode_entry(first), encode_entry(second)].concat();
        if let Some(term) = term {
            put_term(&mut joined, term);
        }
        prop_assert_eq!(decode_entry(&joined), Ok(Entry { term, commands: history.clone() }));
        if term.is_none() {
            prop_assert_eq!(joined, encode_entry(&history));
        }
    }

    #[test]
    fn the_same_history_gives_the_same_bytes_however_often_it_is_stored(history in vec(commands(), 0..60)) {
        let (mut direct, mut stored) = (State::default(), State::default());
        for command in history {
            let before = direct.clone();
            let outcome = direct.apply(command.clone());
            if outcome.is_err() {
                prop_assert_eq!(&direct, &before, "a refused command changes nothing");
            }
            stored = State::decode(&stored.encode()).expect("readable");
            let replayed = decode_entry(&encode_entry(&[command])).expect("readable").commands;
            for command in replayed {
                prop_assert_eq!(stored.apply(command), outcome.clone());
            }
            prop_assert_eq!(direct.encode(), stored.encode());
            prop_assert_eq!(&direct, &stored);
        }
    }

    #[test]
    fn progress_is_what_it_would_be_record_by_record(start in 0..20u64, updates in vec(updates(), 0..40)) {
        let mut progress = Progress::starting_at(Offset(start));
        let mut naive = Naive { start, ..Naive::default() };
        for update in updates {
            progress.update(update);
            naive.update(update);
            prop_assert_eq!(progress.start(), Offset(naive.start));
            for at in 0..80 {
                let (done, attempts) = match naive.records.get(&at) {
                    _ if at < naive.start => (true, 0),
                    Some((done, attempts)) => (*done, *attempts),
                    None => (false, 0),
                };
                prop_assert_eq!(progress.is_done(Offset(at)), done, "{}", at);
                prop_assert_eq!(progress.attempts(Offset(at)), attempts, "{}", at);
            }
            let done = naive.records.values().filter(|record| record.0).count() as u64;
            prop_assert_eq!(progress.done_count(), done);
            prop_assert_eq!(progress.done_ranges().map(OffsetRange::count).sum::<u64>(), done);
            // One representation: the parts are those that a fresh progress has.
            let parts = (progress.done_ranges().collect::<Vec<_>>(), progress.attempt_ranges().collect::<Vec<_>>());
            let again = Progress::from_parts(progress.start().0, &parts.0, &parts.1);
            prop_assert_eq!(again, Ok(progress.clone()));
        }
    }

    #[test]
    fn no_bytes_make_decoding_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode_entry(&bytes);
        let _ = State::decode(&bytes);
    }
}
