use std::path::Path;
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::clock::Timestamp;
use crate::cluster::control::Control;
use crate::cluster::identity::Identity;
use crate::cluster::peers::Hub;
use crate::coordination::{Kind, PartitionKey, ShareUpdate};
use crate::metadata::{self, BrokerId, TopicId};
use crate::record::Offset;
use crate::storage::{self, Store};

const PATIENCE: Duration = Duration::from_secs(60);
const NODE: NodeId = 1;

/// A store, and what groups on it need.
struct Home {
    env: raft::Env,
    tasks: Tasks,
}

impl Home {
    fn open(dir: &Path) -> Self {
        let settings = storage::Config {
            sync: storage::Sync::Interval,
            reserve_bytes: 0,
            ..storage::Config::in_dir(dir)
        };
        let deadline = Instant::now() + PATIENCE;
        let store = loop {
            // The last handle of a group that was open before goes when its last task is dropped.
            match Store::open(&settings, None) {
                Ok(store) => break store,
                Err(storage::Error::Locked { .. }) if Instant::now() < deadline => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        let tasks = Tasks::new();
        let env = raft::Env::new(store, tasks.clone(), Default::default(), Arc::new(raft::NoPeers));
        Home { env, tasks }
    }

    async fn coordinators(&self, config: &Config) -> Coordinators {
        let open = Coordinators::open(config.shards, config, NODE, Some(&[NODE]), &self.env, &self.tasks);
        let coordinators = open.await.expect("opened");
        coordinators.ready().await.expect("ready");
        coordinators
    }

    async fn control(&self, log_bytes: u64) -> Control {
        let identity = Identity { cluster: uuid::Uuid::nil(), broker: BrokerId(NODE) };
        let hub = Hub::new(
            identity,
            crate::telemetry::Metrics::detached(),
            crate::telemetry::Tracer::disabled(),
            &self.tasks,
        );
        let open = Control::open(NODE, true, log_bytes, hub, &self.env, &self.tasks);
        let control = open.await.expect("opened");
        control.ready().await.expect("ready");
        control
    }

    async fn close(self) {
        assert!(self.tasks.stop(PATIENCE).await, "the tasks end");
        self.env.store.close().expect("closed");
    }
}

fn key(partition: u32) -> PartitionKey {
    PartitionKey { topic: TopicId(1), partition }
}

fn commit(group: &str, partition: u32, offset: u64) -> Command {
    let offsets = vec![(key(partition), Offset(offset), "".into())];
    Command::CommitOffsets { group: group.into(), at: Timestamp(1), offsets }
}

fn committed(coordinators: &Coordinators, group: &str, partition: u32) -> Option<u64> {
    coordinators.of(group).read(|state| {
        let committed = state.group(group)?.offsets().get(&key(partition))?;
        Some(committed.offset.0)
    })
}

fn encoded(coordinators: &Coordinators) -> Vec<Vec<u8>> {
    coordinators.all().iter().map(|shard| shard.read(State::encode)).collect()
}

/// Fills every shard with groups of both kinds.
async fn fill(coordinators: &Coordinators) {
    for number in 0..20 {
        let (consumer, shared) = (format!("consumer-{number}"), format!("share-{number}"));
        coordinators.of(&consumer).change(commit(&consumer, 0, number)).await.expect("committed");
        let create =
            Command::CreateGroup { group: shared.as_str().into(), kind: Kind::Share, at: Timestamp(1) };
        let init = Command::InitOffsets {
            group: shared.as_str().into(),
            at: Timestamp(1),
            offsets: vec![(key(0), Offset(number))],
        };
        let range = crate::coordination::OffsetRange::new(Offset(number + 5), Offset(number + 9));
        let accept = Command::UpdateShares {
            group: shared.as_str().into(),
            at: Timestamp(2),
            updates: vec![(key(0), vec![ShareUpdate::Accept(range)])],
        };
        for command in [create, init, accept] {
            coordinators.of(&shared).change(command).await.expect("applied");
        }
    }
    let used = coordinators.all().iter().filter(|shard| shard.read(|state| !state.is_empty())).count();
    assert_eq!(used, coordinators.all().len(), "groups are in every shard");
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let dir = TempDir::new().expect("a directory");
    let config = Config::default();
    let home = Home::open(dir.path());
    let coordinators = home.coordinators(&config).await;
    fill(&coordinators).await;
    let before = encoded(&coordinators);
    coordinators.close().await;
    drop(coordinators);
    home.close().await;

    let home = Home::open(dir.path());
    let coordinators = home.coordinators(&config).await;
    assert_eq!(encoded(&coordinators), before);
    assert_eq!(committed(&coordinators, "consumer-7", 0), Some(7));
    coordinators.close().await;
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_crash() {
    let dir = TempDir::new().expect("a directory");
    let config = Config::default();
    let home = Home::open(dir.path());
    let coordinators = home.coordinators(&config).await;
    fill(&coordinators).await;
    let before = encoded(&coordinators);
    for shard in coordinators.all() {
        shard.0.tasks.stop(PATIENCE).await;
        shard.0.group.stop_without_checkpoint().await;
        let log = home.env.store.log(group_of_shard(shard.shard())).expect("a log");
        assert_eq!(log.checkpoints().expect("listed"), [0; 0], "all of it must come from the log");
    }
    drop(coordinators);
    home.close().await;

    let home = Home::open(dir.path());
    let coordinators = home.coordinators(&config).await;
    assert_eq!(encoded(&coordinators), before);
    coordinators.close().await;
}

#[tokio::test]
async fn commands_that_wait_share_log_entries() {
    let dir = TempDir::new().expect("a directory");
    let home = Home::open(dir.path());
    let coordinators = home.coordinators(&Config { shards: 1, ..Config::default() }).await;
    let shard = &coordinators.all()[0];
    let changes = shard.changes();
    let seen = *changes.borrow();
    let mut outcomes = Vec::new();
    for offset in 1..=5_000 {
        outcomes.push(shard.submit(commit("g", 0, offset)).await.expect("enqueued"));
    }
    for outcome in outcomes {
        assert_eq!(outcome.await.expect("answered").expect("committed"), Outcome::Done);
    }
    assert_eq!(committed(&coordinators, "g", 0), Some(5_000), "in the order of the calls");
    assert!(*changes.borrow() > seen);
    let entries = shard.status().now().last_index.expect("entries");
    assert!(entries < 1_000, "{entries} entries for 5,000 commits");
    coordinators.close().await;
}

#[tokio::test]
async fn each_command_of_an_entry_has_its_own_outcome() {
    let dir = TempDir::new().expect("a directory");
    let home = Home::open(dir.path());
    let coordinators = home.coordinators(&Config { shards: 1, ..Config::default() }).await;
    let shard = &coordinators.all()[0];
    let create = Command::CreateGroup { group: "s".into(), kind: Kind::Share, at: Timestamp(1) };
    let init =
        Command::InitOffsets { group: "s".into(), at: Timestamp(1), offsets: vec![(key(3), Offset(4))] };
    let mut outcomes = Vec::new();
    for command in [create, commit("s", 0, 1), commit("c", 0, 1), init] {
        outcomes.push(shard.submit(command).await.expect("enqueued").await.expect("answered"));
    }
    let mismatch = coordination::Error::KindMismatch { group: "s".to_owned(), kind: Kind::Share };
    assert!(matches!(&outcomes[0], Ok(Outcome::Done)), "{outcomes:?}");
    assert!(matches!(&outcomes[1], Err(Error::Refused(error)) if *error == mismatch), "{outcomes:?}");
    assert!(matches!(&outcomes[2], Ok(Outcome::Done)), "{outcomes:?}");
    assert!(matches!(&outcomes[3], Ok(Outcome::Offsets(stands)) if *stands == [(key(3), Offset(4))]));
    coordinators.close().await;
}

#[tokio::test]
async fn what_was_decided_in_another_term_changes_nothing() {
    let dir = TempDir::new().expect("a directory");
    let home = Home::open(dir.path());
    let coordinators = home.coordinators(&Config { shards: 1, ..Config::default() }).await;
    let shard = &coordinators.all()[0];
    let term = shard.leading().expect("leads");
    // Both are in one queue, so they could share an entry.
    let current = shard.reserve().await.expect("a place").submit_in(term, commit("g", 0, 1));
    let earlier = shard.reserve().await.expect("a place").submit_in(term - 1, commit("g", 1, 1));
    assert!(matches!(current.await.expect("answered"), Ok(Outcome::Done)));
    let refused = earlier.await.expect("answered");
    assert!(matches!(refused, Err(Error::Raft(raft::Error::NotLeader { .. }))), "{refused:?}");
    assert_eq!(committed(&coordinators, "g", 0), Some(1));
    assert_eq!(committed(&coordinators, "g", 1), None);
    coordinators.close().await;
}

#[tokio::test]
async fn a_full_buffer_makes_callers_wait() {
    let dir = TempDir::new().expect("a directory");
    let home = Home::open(dir.path());
    let config = Config { shards: 1, buffer_bytes: 64 << 10, ..Config::default() };
    let coordinators = home.coordinators(&config).await;
    let shard = &coordinators.all()[0];
    let mut places = Vec::new();
    for _ in 0..16 {
        places.push(shard.reserve().await.expect("a place"));
    }
    let mut waiting = Box::pin(shard.reserve());
    assert!(futures_util::poll!(&mut waiting).is_pending(), "there is no room");
    let outcome = places.pop().expect("a place").submit(commit("g", 0, 1));
    assert!(waiting.await.is_ok(), "what a small command does not need is free at once");
    outcome.await.expect("answered").expect("committed");
    drop(places);
    // Larger than the whole buffer.
    let offsets = (0..1_000).map(|n| (key(n), Offset(1), "m".repeat(200).into())).collect();
    let large = Command::CommitOffsets { group: "g".into(), at: Timestamp(1), offsets };
    shard.change(large).await.expect("committed");
    assert_eq!(committed(&coordinators, "g", 999), Some(1));
    coordinators.close().await;
    assert!(matches!(shard.change(commit("g", 0, 2)).await, Err(Error::Stopped)));
}

/// Waits until the log of a group has at most so many rows.
async fn short(home: &Home, group: GroupId, status: raft::Watch, rows: u64) {
    let deadline = Instant::now() + PATIENCE;
    let log = home.env.store.log(group).expect("a log");
    loop {
        let last = status.now().last_index.expect("entries");
        let first = log.first_index().expect("read").unwrap_or(last + 1);
        if last + 1 - first <= rows {
            return;
        }
        assert!(Instant::now() < deadline, "the log still has rows {first} to {last}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn many_commits_leave_a_short_log_and_nothing_is_lost_with_it() {
    let dir = TempDir::new().expect("a directory");
    let config = Config { shards: 1, log_bytes: 16 << 10, ..Config::default() };
    let home = Home::open(dir.path());
    let coordinators = home.coordinators(&config).await;
    let shard = &coordinators.all()[0];
    // Groups of ten, so that there are many entries.
    for offset in 0..1_000 {
        let mut outcomes = Vec::new();
        for partition in 0..10 {
            outcomes.push(shard.submit(commit("g", partition, offset)).await.expect("enqueued"));
        }
        for outcome in outcomes {
            outcome.await.expect("answered").expect("committed");
        }
    }
    let entries = shard.status().now().last_index.expect("entries");
    assert!(entries >= 1_000, "{entries} entries");
    // 16 KiB of rows of at least 64 bytes.
    short(&home, group_of_shard(0), shard.status(), 256).await;
    let log = home.env.store.log(group_of_shard(0)).expect("a log");
    assert!(log.checkpoints().expect("listed").len() <= 2);
    let before = encoded(&coordinators);
    shard.0.tasks.stop(PATIENCE).await;
    shard.0.group.stop_without_checkpoint().await;
    drop((log, coordinators));
    home.close().await;

    let home = Home::open(dir.path());
    let coordinators = home.coordinators(&config).await;
    assert_eq!(encoded(&coordinators), before, "the checkpoint and the rest of the log give it back");
    assert_eq!(committed(&coordinators, "g", 9), Some(999));
    coordinators.close().await;
}

#[tokio::test]
async fn a_log_that_earlier_runs_left_is_purged_at_the_start() {
    let dir = TempDir::new().expect("a directory");
    let config = Config { shards: 1, ..Config::default() };
    let home = Home::open(dir.path());
    let coordinators = home.coordinators(&config).await;
    let shard = &coordinators.all()[0];
    for offset in 0..150 {
        shard.change(commit("g", 0, offset)).await.expect("committed");
    }
    assert_eq!(shard.status().now().purged, None, "it was not long enough yet");
    coordinators.close().await;
    drop(coordinators);
    home.close().await;

    let home = Home::open(dir.path());
    let coordinators = home.coordinators(&config).await;
    short(&home, group_of_shard(0), coordinators.all()[0].status(), 2).await;
    assert_eq!(committed(&coordinators, "g", 0), Some(149));
    coordinators.close().await;
}

#[tokio::test]
async fn the_control_log_is_purged_too() {
    let dir = TempDir::new().expect("a directory");
    let home = Home::open(dir.path());
    let control = home.control(4 << 10).await;
    for _ in 0..300 {
        control.change(&metadata::Command::AllocateProducerId).await.expect("allocated");
    }
    short(&home, GroupId::CONTROL, control.status(), 70).await;
    let before = control.state();
    control.close().await;
    drop(control);
    home.close().await;

    let home = Home::open(dir.path());
    let control = home.control(4 << 10).await;
    assert_eq!(control.state(), before);
    let next = control.change(&metadata::Command::AllocateProducerId).await.expect("allocated");
    assert_eq!(next, metadata::Outcome::ProducerId(301));
    control.close().await;
}

#[tokio::test]
async fn the_number_of_shards_is_that_of_the_first_start() {
    let dir = TempDir::new().expect("a directory");
    for (configured, present) in [(3, 3), (8, 3)] {
        let home = Home::open(dir.path());
        let control = home.control(1 << 20).await;
        let config = Config { shards: configured, ..Config::default() };
        let shards = super::super::fixed_shards(&control, &config).await.expect("known");
        assert_eq!(shards, present);
        assert_eq!(control.state().coordinator_shards(), Some(present));
        control.close().await;
        drop(control);
        home.close().await;
    }
}

#[test]
fn every_setting_out_of_range_is_named() {
    assert_eq!(Config::default().problems(), []);
    let config = Config { shards: 0, buffer_bytes: 1, log_bytes: 1 };
    let names: Vec<_> = config.problems().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["shards", "buffer_bytes", "log_bytes"]);
    let config = Config { shards: 257, ..Config::default() };
    assert_eq!(config.problems(), [("shards", "257 is not between 1 and 256".to_owned())]);
}

/// Commits per second of one shard, and what its log leaves on disk. Run in release, alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_commits_of_one_shard() {
    const COMMITTERS: u64 = 100;
    const COMMITS: u64 = 5_000;
    let dir = TempDir::new().expect("a directory");
    let home = Home::open(dir.path());
    let coordinators = home.coordinators(&Config { shards: 1, ..Config::default() }).await;
    let started = Instant::now();
    let committers = (0..COMMITTERS).map(|number| {
        let shard = coordinators.all()[0].clone();
        tokio::spawn(async move {
            let group = format!("group-{number}");
            for offset in 0..COMMITS {
                shard.change(commit(&group, (offset % 10) as u32, offset)).await.expect("committed");
            }
        })
    });
    for committer in committers.collect::<Vec<_>>() {
        committer.await.expect("done");
    }
    let took = started.elapsed();
    let entries = coordinators.all()[0].status().now().last_index.expect("entries");
    let rate = (COMMITTERS * COMMITS) as f64 / took.as_secs_f64();
    let used = home.env.store.usage().used_bytes;
    eprintln!("{rate:.0} commits/s, {entries} entries, {used} bytes on disk");
    coordinators.close().await;
}
