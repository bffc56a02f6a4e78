//! Members of consumer groups against a scripted broker.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};

use super::*;
use crate::client::testing::group::{Did, Order};
use crate::client::testing::{Fake, in_time};
use crate::client::{Admin, ErrorCode, OffsetReset};

/// A broker whose partitions hold numbers up to `counts`, ten to a batch, all of which go to whoever joins.
async fn with_numbers(counts: &[u32]) -> Fake {
    let partitions = u32::try_from(counts.len()).expect("few");
    let fake = Fake::start(partitions).await;
    for (partition, count) in (0..).zip(counts) {
        fake.fill(partition, *count).await;
    }
    fake.state().groups.assignment = (0..partitions).collect();
    fake
}

/// A member whose commits do not come by time.
fn config() -> GroupConfig {
    let commit = CommitMode::Auto { interval: Duration::from_secs(100_000) };
    GroupConfig { commit, ..by_time() }
}

fn by_time() -> GroupConfig {
    GroupConfig::new("g", ["t"])
}

fn manual() -> GroupConfig {
    GroupConfig { commit: CommitMode::Manual, ..config() }
}

async fn join(fake: &Fake, config: GroupConfig) -> GroupConsumer {
    fake.client().await.group_consumer(config).await.expect("joined")
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

async fn next(consumer: &mut GroupConsumer) -> ConsumedRecord {
    in_time(consumer.next()).await.expect("no end").expect("readable")
}

/// Reads so many records of partition 0, checking that they follow each other.
async fn read(consumer: &mut GroupConsumer, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let record = next(consumer).await;
        assert_eq!((record.partition, record.offset), (0, Offset(number)));
        assert_eq!(record.value.as_deref(), Some(number.to_string().as_bytes()));
    }
}

fn order(fake: &Fake, order: Order) {
    fake.change(|state| state.groups.orders.push_back(order));
}

/// Waits until the consumer has these partitions.
async fn assigned(consumer: &GroupConsumer, partitions: &[TopicPartition]) {
    while consumer.assignment() != partitions {
        tokio::task::yield_now().await;
    }
}

fn joins(fake: &Fake) -> usize {
    fake.state().groups.joins.len()
}

/// Notes the calls between what the broker sees.
struct Notes(Fake);

impl Notes {
    fn note(&self, what: &'static str) {
        self.0.change(|state| state.groups.did.push(Did::Note(what)));
    }
}

impl RebalanceListener for Notes {
    async fn on_assigned(&self, _: &[AssignedPartition], _: &Committer) {
        self.note("assigned");
    }

    async fn on_revoked(&self, _: &[TopicPartition], _: &Committer) {
        self.note("revoked");
    }

    async fn on_lost(&self, _: &[TopicPartition]) {
        self.note("lost");
    }
}

#[tokio::test]
async fn reads_what_it_is_assigned_from_what_was_committed() {
    let fake = with_numbers(&[40]).await;
    fake.state().groups.committed.insert(0, (13, "here".into()));

    let mut consumer = join(&fake, manual()).await;

    read(&mut consumer, 13..40).await;
    assert_eq!(consumer.assignment(), [at(0)]);
    assert_eq!(consumer.position(&at(0)), Some(Offset(40)));
    let committed = consumer.committed().await.expect("answered");
    assert_eq!((committed[0].offset, committed[0].metadata.as_str()), (Some(Offset(13)), "here"));
}

#[tokio::test]
async fn a_keepalive_is_answered_while_the_program_is_busy() {
    let fake = with_numbers(&[1]).await;
    let mut consumer = join(&fake, config()).await;
    read(&mut consumer, 0..1).await;

    // Nothing polls the consumer from here on.
    order(&fake, Order::Keepalive);
    order(&fake, Order::Keepalive);

    fake.until(|state| state.groups.did.iter().filter(|did| **did == Did::Heartbeat).count() == 2).await;
}

#[tokio::test]
async fn a_fenced_member_joins_again_and_hands_out_nothing_that_it_lost() {
    let fake = with_numbers(&[30, 30]).await;
    let mut consumer = join(&fake, manual()).await;
    let first = next(&mut consumer).await;
    fake.until(|state| state.groups.did.len() == 1 && state.logs.len() == 2).await;

    // The records of both partitions are here already when the member is given only one of them.
    fake.change(|state| {
        state.groups.assignment = vec![1];
        state.groups.committed.insert(1, (5, String::new()));
        state.groups.orders.push_back(Order::Fence);
    });
    fake.until(|state| state.groups.joins.len() == 2).await;
    fake.until(|state| state.groups.orders.is_empty()).await;
    assigned(&consumer, &[at(1)]).await;

    for offset in 5..30 {
        let record = next(&mut consumer).await;
        assert_eq!((record.partition, record.offset), (1, Offset(offset)), "after {first:?}");
    }
    assert!(consumer.next().now_or_never().is_none(), "nothing else was kept");
    let joins = &fake.state().groups.joins;
    assert_eq!(joins[1].member_id, "member-1", "it comes back under its name");
}

#[tokio::test]
async fn a_revoked_partition_is_told_committed_and_released_in_this_order() {
    let fake = with_numbers(&[30, 0]).await;
    let client = fake.client().await;
    let mut consumer = client.group_consumer_with(config(), Notes(fake.clone())).await.expect("joined");
    read(&mut consumer, 0..5).await;

    order(&fake, Order::Revoke(vec![0], Duration::from_secs(60)));
    // The fifth record is processed when the next one is asked for; there is none any more.
    fake.until(|state| state.groups.orders.is_empty()).await;
    assigned(&consumer, &[at(1)]).await;
    assert!(!fake.state().groups.did.contains(&Did::Note("revoked")), "the fifth record is at hand");
    assert!(consumer.next().now_or_never().is_none());

    fake.until(|state| state.groups.did.contains(&Did::Release(vec![0]))).await;
    let expected = [
        Did::Join { member_id: String::new() },
        Did::Note("assigned"),
        Did::Note("revoked"),
        Did::Commit(vec![(0, 5)]),
        Did::Release(vec![0]),
    ];
    assert_eq!(fake.state().groups.deeds(), expected);
}

#[tokio::test]
async fn a_partition_that_comes_back_begins_at_what_was_committed() {
    let fake = with_numbers(&[30]).await;
    let mut consumer = join(&fake, config()).await;
    read(&mut consumer, 0..5).await;
    let record = next(&mut consumer).await;
    order(&fake, Order::Revoke(vec![0], Duration::from_secs(60)));
    assigned(&consumer, &[]).await;
    // Until its handler is done nothing is committed.
    consumer.process(&record, async |_| ()).await;
    fake.until(|state| state.groups.did.contains(&Did::Release(vec![0]))).await;

    order(&fake, Order::Assign(vec![0]));

    read(&mut consumer, 6..30).await;
}

#[tokio::test(start_paused = true)]
async fn a_program_that_does_not_finish_in_time_does_not_hold_up_the_release() {
    let fake = with_numbers(&[30]).await;
    let client = fake.client().await;
    let mut consumer = client.group_consumer_with(config(), Notes(fake.clone())).await.expect("joined");
    read(&mut consumer, 0..5).await;

    order(&fake, Order::Revoke(vec![0], Duration::from_secs(3)));

    fake.until(|state| state.groups.did.contains(&Did::Release(vec![0]))).await;
    let deeds = fake.state().groups.deeds();
    assert!(deeds.contains(&Did::Note("revoked")));
    assert_eq!(fake.state().groups.commits(), [[(0, 4)]], "what is at hand is not covered");
    drop(consumer);
}

#[tokio::test]
async fn a_listener_can_commit_what_is_revoked() {
    struct Commits;
    impl RebalanceListener for Commits {
        async fn on_revoked(&self, partitions: &[TopicPartition], committer: &Committer) {
            let offset = committer.position(&partitions[0]).expect("it is held still");
            let mut commit = OffsetCommit::new(partitions[0].clone(), offset);
            commit.metadata = "by the listener".into();
            committer.commit_offsets([commit]).await.expect("committed");
        }
    }
    let fake = with_numbers(&[30]).await;
    let mut consumer = fake.client().await.group_consumer_with(manual(), Commits).await.expect("joined");
    read(&mut consumer, 0..7).await;

    order(&fake, Order::Revoke(vec![0], Duration::from_secs(60)));
    assigned(&consumer, &[]).await;
    let released = fake.until(|state| state.groups.did.contains(&Did::Release(vec![0])));
    tokio::select! {
        () = released => {}
        record = consumer.next() => panic!("{record:?} is handed out of a revoked partition"),
    }

    assert_eq!(fake.state().groups.committed[&0], (7, "by the listener".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_automatic_commit_covers_what_is_processed_and_nothing_else() {
    let fake = with_numbers(&[100]).await;
    let mut consumer = join(&fake, by_time()).await;
    read(&mut consumer, 0..25).await;

    fake.until(|state| !state.groups.commits().is_empty()).await;
    assert_eq!(fake.state().groups.commits(), [[(0, 24)]], "the last one may be in the works");

    let record = next(&mut consumer).await;
    consumer.process(&record, async |_| ()).await;
    fake.until(|state| state.groups.commits().len() == 2).await;
    assert_eq!(fake.state().groups.commits()[1], [(0, 26)], "its handler is done");
}

#[tokio::test(start_paused = true)]
async fn a_running_handler_holds_back_the_commit() {
    let fake = with_numbers(&[100]).await;
    let mut consumer = join(&fake, by_time()).await;
    read(&mut consumer, 0..3).await;
    let slow = next(&mut consumer).await;
    let (finish, finished) = oneshot::channel::<()>();
    let mut handling = Box::pin(consumer.process(&slow, async |_| finished.await.expect("sent")));
    assert!(handling.as_mut().now_or_never().is_none());
    read(&mut consumer, 4..10).await;

    fake.until(|state| !state.groups.commits().is_empty()).await;
    assert_eq!(fake.state().groups.commits(), [[(0, 3)]]);

    finish.send(()).expect("it waits");
    handling.await;
    fake.until(|state| state.groups.commits().len() == 2).await;
    assert_eq!(fake.state().groups.commits()[1], [(0, 9)]);
}

#[tokio::test]
async fn closing_commits_and_then_leaves() {
    let fake = with_numbers(&[30]).await;
    let client = fake.client().await;
    let mut consumer = client.group_consumer_with(config(), Notes(fake.clone())).await.expect("joined");
    read(&mut consumer, 0..12).await;

    consumer.close().await.expect("committed");

    let deeds = fake.state().groups.deeds();
    assert_eq!(deeds[2..], [Did::Note("revoked"), Did::Commit(vec![(0, 12)]), Did::Leave]);
    let mut second = join(&fake, config()).await;
    read(&mut second, 12..30).await;
}

#[tokio::test]
async fn closing_a_consumer_that_does_not_commit_itself_leaves_only() {
    let fake = with_numbers(&[30]).await;
    let mut consumer = join(&fake, manual()).await;
    read(&mut consumer, 0..12).await;
    consumer.close().await.expect("left");
    assert_eq!(fake.state().groups.deeds()[1..], [Did::Leave]);
}

#[tokio::test]
async fn closing_tells_that_the_last_commit_failed() {
    let fake = with_numbers(&[30]).await;
    let mut consumer = join(&fake, config()).await;
    read(&mut consumer, 0..12).await;
    fake.state().groups.commit_refusals.push_back(ErrorCode::Storage);
    let error = consumer.close().await.expect_err("not committed");
    assert_eq!(error.code(), Some(ErrorCode::Storage));
    assert_eq!(fake.state().groups.deeds().last(), Some(&Did::Leave));
}

#[tokio::test]
async fn dropping_commits_nothing() {
    let fake = with_numbers(&[30]).await;
    let mut consumer = join(&fake, config()).await;
    read(&mut consumer, 0..12).await;
    let committer = consumer.committer();
    drop(consumer);
    fake.until(|state| state.groups.did.contains(&Did::Gone)).await;
    assert!(fake.state().groups.commits().is_empty());
    let error = committer.commit_offsets([OffsetCommit::new(at(0), Offset(1))]).await;
    assert!(matches!(error, Err(Error::NotMember { .. })), "{error:?}");
}

#[tokio::test]
async fn after_a_broken_connection_only_what_was_not_committed_comes_again() {
    let fake = with_numbers(&[60]).await;
    let client = fake.client().await;
    let mut consumer = client.group_consumer_with(manual(), Notes(fake.clone())).await.expect("joined");
    read(&mut consumer, 0..25).await;
    consumer.commit().await.expect("committed");
    read(&mut consumer, 25..35).await;

    order(&fake, Order::Break);
    fake.until(|state| state.groups.did.contains(&Did::Note("lost"))).await;

    read(&mut consumer, 25..60).await;
    assert_eq!(joins(&fake), 2);
}

#[tokio::test]
async fn a_failure_that_passes_makes_the_member_join_again() {
    let fake = with_numbers(&[20]).await;
    let mut consumer = join(&fake, manual()).await;
    read(&mut consumer, 0..20).await;
    consumer.commit().await.expect("committed");
    order(&fake, Order::Fail(0, ErrorCode::NotLeader));
    fake.until(|state| state.groups.joins.len() == 2).await;
    fake.fill(0, 30).await;
    read(&mut consumer, 20..30).await;
}

#[tokio::test]
async fn an_offset_that_is_gone_is_told() {
    let fake = with_numbers(&[20, 20]).await;
    fake.state().groups.committed.insert(0, (20, String::new()));
    fake.state().groups.committed.insert(1, (15, String::new()));
    let mut consumer = join(&fake, GroupConfig { offset_reset: OffsetReset::Fail, ..config() }).await;
    assert_eq!(fake.state().groups.joins[0].offset_reset(), crate::proto::v1::OffsetReset::Error);
    order(&fake, Order::Fail(0, ErrorCode::OffsetOutOfRange));

    let mut errors = Vec::new();
    let mut offsets = Vec::new();
    while errors.is_empty() || offsets.len() < 5 {
        match consumer.next().await.expect("no end") {
            Ok(record) => offsets.push((record.partition, record.offset.0)),
            Err(error) => errors.push(error),
        }
    }
    assert_eq!(errors[0].code(), Some(ErrorCode::OffsetOutOfRange));
    assert!(errors[0].to_string().starts_with("topic t, partition 0"), "{}", errors[0]);
    assert_eq!(offsets, [(1, 15), (1, 16), (1, 17), (1, 18), (1, 19)]);
}

#[tokio::test]
async fn a_group_of_the_other_kind_is_told_at_once() {
    let fake = with_numbers(&[1]).await;
    fake.state().groups.refusals.push_back(ErrorCode::GroupKindMismatch);
    let error = fake.client().await.group_consumer(config()).await.expect_err("refused");
    assert_eq!(error.code(), Some(ErrorCode::GroupKindMismatch));
    assert_eq!(joins(&fake), 1);
}

#[tokio::test]
async fn a_member_that_cannot_join_again_says_why_and_ends() {
    let fake = with_numbers(&[5]).await;
    let mut consumer = join(&fake, config()).await;
    fake.state().groups.refusals.push_back(ErrorCode::GroupKindMismatch);
    order(&fake, Order::Break);
    let error = loop {
        match consumer.next().await.expect("an item") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Some(ErrorCode::GroupKindMismatch));
    assert!(consumer.next().await.is_none());
}

#[tokio::test]
async fn a_broker_that_is_starting_is_asked_again() {
    let fake = with_numbers(&[5]).await;
    fake.state().groups.refusals.extend([ErrorCode::NotReady, ErrorCode::NotLeader]);
    let mut consumer = join(&fake, config()).await;
    read(&mut consumer, 0..5).await;
    assert_eq!(joins(&fake), 3);
}

#[tokio::test]
async fn commits_say_which_partition_failed_and_why() {
    let fake = with_numbers(&[5]).await;
    let mut consumer = join(&fake, manual()).await;
    read(&mut consumer, 0..5).await;

    let not_mine = OffsetCommit::new(at(7), Offset(1));
    let error = consumer.commit_offsets([not_mine]).await.expect_err("not its own");
    assert_eq!(error.code(), Some(ErrorCode::MemberFenced));
    assert!(error.to_string().starts_with("topic t, partition 7"), "{error}");

    fake.state().groups.commit_refusals.extend([ErrorCode::Busy, ErrorCode::Busy]);
    consumer.commit().await.expect("a busy broker is asked again");
    assert_eq!(fake.state().groups.committed[&0].0, 5);
}

#[tokio::test]
async fn commits_can_be_under_way_together() {
    let fake = with_numbers(&[20]).await;
    let mut consumer = join(&fake, manual()).await;
    read(&mut consumer, 0..20).await;
    let mut pending = Vec::new();
    for offset in 1..=10 {
        pending.push(consumer.commit_async([OffsetCommit::new(at(0), Offset(offset))]).await.expect("sent"));
    }
    for commit in pending {
        commit.await.expect("committed");
    }
    let expected: Vec<_> = (1..=10).map(|offset| vec![(0, offset)]).collect();
    assert_eq!(fake.state().groups.commits(), expected);
}

#[tokio::test]
async fn a_limit_of_records_in_flight_does_not_stall() {
    let fake = with_numbers(&[100]).await;
    fake.state().groups.in_flight_max = Some(20);
    let mut consumer = join(&fake, GroupConfig { in_flight_records_max: 20, ..config() }).await;
    // The last one is processed only when the next is asked for.
    read(&mut consumer, 0..100).await;
}

#[tokio::test]
async fn credit_bounds_what_is_sent_ahead_and_is_granted_again() {
    let fake = with_numbers(&[200]).await;
    let batch_bytes = fake.state().logs[&0][5].batch.len() as u64;
    let mut consumer = join(&fake, GroupConfig { credit_bytes: 2 * batch_bytes, ..config() }).await;
    read(&mut consumer, 0..200).await;
    let state = fake.state();
    assert!(state.grants >= 5, "{} grants", state.grants);
    assert!(state.credit_overdrawn < batch_bytes, "only the last batch may exceed the credit");
}

#[tokio::test]
async fn batches_are_handed_out_whole() {
    let fake = with_numbers(&[20]).await;
    let mut consumer = join(&fake, config()).await;
    read(&mut consumer, 0..3).await;
    let batch = consumer.next_batch().await.expect("no end").expect("readable");
    assert_eq!((batch.base_offset(), batch.next_offset()), (Offset(3), Offset(10)));
    assert_eq!(consumer.position(&at(0)), Some(Offset(10)));
    consumer.close().await.expect("committed");
    assert_eq!(fake.state().groups.committed[&0].0, 10);
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    let fake = Fake::start(1).await;
    let client = fake.client().await;
    let nothing = GroupConfig::new("g", Vec::<String>::new());
    for (config, field) in [
        (nothing, "topics"),
        (GroupConfig { credit_bytes: 0, ..config() }, "credit_bytes"),
        (GroupConfig { commit: CommitMode::Auto { interval: Duration::ZERO }, ..config() }, "commit"),
    ] {
        let error = client.group_consumer(config).await.expect_err("refused");
        assert!(matches!(&error, Error::InvalidConfig { field: named, .. } if *named == field), "{error}");
    }
    assert_eq!(joins(&fake), 0);
}

async fn admin(fake: &Fake) -> Admin {
    fake.client().await.admin()
}

#[tokio::test]
async fn groups_are_listed_page_by_page() {
    let fake = Fake::start(1).await;
    let groups = admin(&fake).await.list_groups().await.expect("answered");
    let names: Vec<_> = groups.iter().map(|group| group.group.as_str()).collect();
    assert_eq!(names, ["g0", "g1", "g2", "g3", "g4"]);
    assert_eq!(fake.state().groups.pages, 3);
}

#[tokio::test]
async fn many_offsets_are_committed_and_fetched_in_several_calls() {
    let fake = Fake::start(1).await;
    let admin = admin(&fake).await;
    let partitions: Vec<_> = (0..2_500).map(at).collect();
    let commits: Vec<_> = partitions
        .iter()
        .map(|at| OffsetCommit::new(at.clone(), Offset(u64::from(at.partition) + 1)))
        .collect();
    let results = admin.commit_offsets("g", &commits).await.expect("answered");
    assert!(results.len() == 2_500 && results.iter().all(Result::is_ok));
    let fetched = admin.fetch_offsets("g", &partitions).await.expect("answered");
    let expected = partitions.iter().map(|at| Some(Offset(u64::from(at.partition) + 1)));
    assert!(fetched.iter().map(|committed| committed.offset).eq(expected));
    assert_eq!(admin.fetch_offsets("g", &[]).await.expect("answered").len(), 2_500);
}

#[tokio::test]
async fn a_reset_asks_for_what_it_is_told_and_tells_each_result() {
    use crate::client::{ResetSpec, ResetTo};
    use crate::proto::v1::reset_offsets_request::To;
    let fake = Fake::start(1).await;
    let spec = ResetSpec::new("g", ResetTo::Shift(-5)).topics(["t"]).partitions([at(3)]).execute(true);

    let moved = admin(&fake).await.reset_offsets(spec).await.expect("answered");

    let request = &fake.state().groups.resets[0];
    assert_eq!(
        (request.to, request.execute, request.topics.as_slice()),
        (Some(To::Shift(-5)), true, &["t".to_owned()][..])
    );
    assert_eq!(request.partitions[0].partition, 3);
    assert_eq!((moved[0].from, moved[0].to.as_ref().ok()), (Some(Offset(7)), Some(&Offset(3))));
    assert_eq!(moved[1].to.as_ref().expect_err("it fails").code(), Some(ErrorCode::UnknownPartition));
}

#[tokio::test]
async fn what_a_member_does_carries_the_name_of_its_group() {
    use opentelemetry::context::FutureExt as _;
    use opentelemetry::trace::{SpanKind, TraceContextExt as _, Tracer as _, TracerProvider as _};
    use opentelemetry::{Context, KeyValue};
    let fake = with_numbers(&[1]).await;
    let (client, provider, kept) = fake.traced_client().await;
    let mut consumer = client.group_consumer(manual()).await.expect("joined");
    let context = Context::new().with_span(provider.tracer("test").start("work"));
    let trace_id = context.span().span_context().trace_id();

    let working = async {
        let record = next(&mut consumer).await;
        consumer.process(&record, async |_| ()).await;
        consumer.commit().await.expect("committed");
    };
    working.with_context(context).await;

    let spans = kept.spans();
    for (name, kind) in
        [("poll t", SpanKind::Client), ("process t", SpanKind::Consumer), ("commit t", SpanKind::Client)]
    {
        let span = spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name}"));
        assert_eq!((&span.span_kind, span.span_context.trace_id()), (&kind, trace_id), "{name}");
        assert!(span.attributes.contains(&KeyValue::new("messaging.consumer.group.name", "g")), "{name}");
    }
    let commit = spans.iter().find(|span| span.name == "commit t").expect("found above");
    assert!(commit.attributes.contains(&KeyValue::new("messaging.operation.type", "settle")));
}

#[tokio::test]
async fn a_paused_partition_gives_nothing_and_goes_on_where_it_was() {
    let fake = with_numbers(&[30, 30]).await;
    let mut consumer = join(&fake, manual()).await;
    let first = next(&mut consumer).await;
    let (paused, other) = (first.partition, 1 - first.partition);
    for number in 1..5 {
        assert_eq!(next(&mut consumer).await.offset, Offset(number), "of the same batch");
    }

    consumer.pause(&[at(paused), at(7)]);

    assert_eq!(consumer.paused(), [at(paused)]);
    for number in 0..30 {
        let record = next(&mut consumer).await;
        assert_eq!((record.partition, record.offset), (other, Offset(number)));
    }
    fake.until(|state| state.groups.did.contains(&Did::Pause(vec![paused]))).await;
    assert!(consumer.next().now_or_never().is_none());
    assert_eq!(consumer.position(&at(paused)), Some(Offset(5)));
    assert_eq!(consumer.assignment(), [at(0), at(1)]);

    consumer.resume(&[at(paused), at(other)]);

    assert_eq!(consumer.paused(), []);
    for number in 5..30 {
        let record = next(&mut consumer).await;
        assert_eq!((record.partition, record.offset), (paused, Offset(number)));
    }
    fake.until(|state| state.groups.did.contains(&Did::Resume(vec![paused]))).await;
    let deeds = fake.state().groups.deeds();
    assert_eq!(deeds[1..], [Did::Pause(vec![paused]), Did::Resume(vec![paused])], "once, and nothing else");
}

#[tokio::test]
async fn what_was_put_aside_keeps_no_credit_from_other_partitions() {
    let fake = with_numbers(&[40, 40]).await;
    // Each batch uses up all of it.
    let mut consumer = join(&fake, GroupConfig { credit_bytes: 1, ..manual() }).await;
    let paused = next(&mut consumer).await.partition;
    let mut batch = consumer.next_batch().await.expect("no end").expect("readable");
    assert_eq!(batch.next_record().map(|record| record.offset), Some(Offset(1)));

    let mut counts = [0, 0];
    counts[paused as usize] = 10;
    // The next batch of each is on its way or here already, one after the other.
    for turn in 0..20 {
        let at = at(if turn % 2 == 0 { paused } else { 1 - paused });
        consumer.pause(std::slice::from_ref(&at));
        let other = 1 - at.partition;
        if counts[other as usize] == 40 {
            consumer.resume(&[at]);
            continue;
        }
        let batch = tokio::time::timeout(Duration::from_secs(60), consumer.next_batch()).await;
        let batch = batch.expect("credit").expect("no end").expect("readable");
        assert_eq!((batch.partition(), batch.base_offset()), (other, Offset(counts[other as usize])));
        counts[other as usize] += 10;
        consumer.resume(&[at]);
    }
    assert_eq!(counts, [40, 40]);
}

#[tokio::test]
async fn a_pause_outlasts_the_connection() {
    let fake = with_numbers(&[30, 30]).await;
    let mut consumer = join(&fake, manual()).await;
    assigned(&consumer, &[at(0), at(1)]).await;
    consumer.pause(&[at(0)]);
    fake.until(|state| state.groups.did.contains(&Did::Pause(vec![0]))).await;

    order(&fake, Order::Break);

    let again = |state: &crate::client::testing::State| {
        state.groups.did.iter().filter(|did| **did == Did::Pause(vec![0])).count() == 2
    };
    fake.until(again).await;
    for number in 0..30 {
        let record = next(&mut consumer).await;
        assert_eq!((record.partition, record.offset), (1, Offset(number)));
    }
    assert!(consumer.next().now_or_never().is_none());
    consumer.resume(&[at(0)]);
    read(&mut consumer, 0..30).await;
}

#[tokio::test]
async fn a_pause_ends_when_the_partition_is_taken_away() {
    let fake = with_numbers(&[30]).await;
    let mut consumer = join(&fake, config()).await;
    read(&mut consumer, 0..5).await;
    consumer.pause(&[at(0)]);
    assert!(consumer.next().now_or_never().is_none(), "and what it had is processed");
    order(&fake, Order::Revoke(vec![0], Duration::from_secs(60)));
    fake.until(|state| state.groups.did.contains(&Did::Release(vec![0]))).await;
    assert_eq!(fake.state().groups.commits(), [[(0, 5)]]);

    order(&fake, Order::Assign(vec![0]));

    read(&mut consumer, 5..30).await;
    assert_eq!(consumer.paused(), []);
}
