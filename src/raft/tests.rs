//! Behaviour of whole replicas over a real store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::checkpoint::Checkpoint;
use super::message::{Append, Ballot, Request, Response, SnapshotRequest, VoteRequest};
use super::testing::{Broker, Cluster, GROUP, Notebook, command, eventually, leads};
use super::types::{Membership, StoredMembership, log_id};
use super::{Config, Env, Error, Group, NoPeers, NodeId, Role, Status};
use crate::storage::{self, Batch, Disk, Durability, Position, Store};
use crate::task::Tasks;

/// How long a majority has to answer a leader that asks.
const CONFIRM: Duration = Duration::from_millis(300);

fn small_checkpoints() -> Config {
    Config { checkpoint_bytes: 1, ..Config::default() }
}

async fn write(group: &Group<Notebook>, texts: impl IntoIterator<Item = &str>) {
    for text in texts {
        group.propose(command(text)).await.unwrap();
    }
}

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("command {number}")).collect()
}

fn strs(texts: &[String]) -> impl Iterator<Item = &str> {
    texts.iter().map(String::as_str)
}

async fn started(broker: &Broker) -> (Group<Notebook>, Notebook) {
    let (group, notebook) = broker.open(1).await;
    group.bootstrap([1]).await.unwrap();
    leads(&group).await;
    (group, notebook)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_in_flight_are_applied_and_answered_in_the_order_of_the_calls() {
    let broker = Broker::alone(Config::default());
    let (group, notebook) = started(&broker).await;

    let texts = numbered(0..500);
    let proposals: Vec<_> = texts.iter().map(|text| group.propose(command(text))).collect();

    let mut last = None;
    for (place, proposal) in proposals.into_iter().enumerate() {
        let proposed = proposal.await.unwrap();
        assert_eq!(proposed.reply, (place, texts[place].clone()));
        assert!(Some(proposed.index) > last);
        assert!(proposed.timing.appended <= proposed.timing.committed);
        assert!(proposed.timing.committed <= proposed.timing.applied);
        last = Some(proposed.index);
    }
    assert_eq!(notebook.seen().commands, texts);
    assert_eq!(notebook.seen().published, texts.len());
    group.shutdown().await;
}

#[tokio::test]
async fn status_tells_what_the_replica_does() {
    let broker = Broker::alone(Config::default());
    let (group, _) = broker.open(1).await;
    assert_eq!(group.status().now().role, Role::Learner);
    group.bootstrap([1]).await.unwrap();
    let proposed = group.propose(command("a")).await;
    // The election may still be under way, in which case nothing was written.
    assert!(matches!(proposed, Ok(_) | Err(Error::NotLeader { .. })), "{proposed:?}");
    leads(&group).await;

    let index = group.propose(command("b")).await.unwrap().index;

    let status = group.status().now();
    assert_eq!((status.role, status.leader, &status.voters[..]), (Role::Leader, Some(1), &[1][..]));
    assert_eq!(
        (status.last_index, status.committed, status.applied),
        (Some(index), Some(index), Some(index))
    );
    assert!(status.failed.is_none() && status.term > 0);
    group.shutdown().await;
    let status = group.status().now();
    assert!(status.role == Role::Stopped && status.failed.is_none());
}

#[tokio::test]
async fn a_replica_stops_before_a_command_that_it_does_not_know_until_a_newer_version_opens_it() {
    let broker = Broker::alone(Config::default());
    let old = || Notebook { unknown: Some("new"), ..Notebook::default() };
    let (group, notebook) = broker.open_version(1, old()).await;
    group.bootstrap([1]).await.unwrap();
    leads(&group).await;

    let proposals = ["known", "new", "known later"].map(|text| group.propose(command(text)));
    let [before, new, after] = proposals;
    let before = before.await.unwrap();
    for unknown in [new.await, after.await] {
        assert!(matches!(unknown, Err(Error::OutcomeUnknown)), "{unknown:?}");
    }
    let status = eventually(&group, "it stops", |status| status.role == Role::Stopped).await;
    let stopped = |failed: Option<Error>| {
        let failed = failed.expect("failed");
        assert!(!failed.is_damage());
        assert!(
            matches!(failed, Error::UnknownCommand { index, .. } if index == before.index + 1),
            "{failed:?}"
        );
    };
    stopped(status.failed);
    assert_eq!((notebook.seen().commands, notebook.seen().published), (vec!["known".to_owned()], 1));
    let refused = group.propose(command("refused")).await;
    assert!(matches!(refused, Err(Error::UnknownCommand { .. })), "{refused:?}");

    group.shutdown().await;
    let broker = broker.reopen(group).await;
    let (group, _) = broker.open_version(1, old()).await;
    let status = eventually(&group, "it stops again", |status| status.role == Role::Stopped).await;
    stopped(status.failed);

    group.shutdown().await;
    let broker = broker.reopen(group).await;
    let (group, notebook) = broker.open(1).await;
    leads(&group).await;
    assert_eq!(notebook.seen().commands, ["known", "new", "known later"]);
    group.shutdown().await;
}

#[tokio::test]
async fn a_group_without_members_writes_nothing() {
    let broker = Broker::alone(Config::default());
    let (group, notebook) = broker.open(1).await;
    let refused = group.propose(command("a")).await;
    assert!(matches!(refused, Err(Error::NotLeader { leader: None })), "{refused:?}");
    assert_eq!(notebook.seen().commands, [""; 0]);
    group.shutdown().await;
}

#[tokio::test]
async fn bootstrapping_again_changes_nothing() {
    let broker = Broker::alone(Config::default());
    let (group, _) = started(&broker).await;
    let before = group.status().now();
    group.bootstrap([1]).await.unwrap();
    group.bootstrap([1, 2]).await.unwrap();
    let after = group.status().now();
    assert_eq!((before.term, before.last_index, before.voters), (after.term, after.last_index, after.voters));
    group.shutdown().await;
}

#[tokio::test]
async fn a_node_cannot_bootstrap_a_group_that_it_is_no_member_of() {
    let broker = Broker::alone(Config::default());
    let (group, _) = broker.open(1).await;
    assert!(matches!(group.bootstrap([2]).await, Err(Error::Membership { .. })));
    group.shutdown().await;
}

#[tokio::test]
async fn a_stopped_replica_refuses_commands() {
    let broker = Broker::alone(Config::default());
    let (group, _) = started(&broker).await;
    group.shutdown().await;
    assert!(matches!(group.propose(command("a")).await, Err(Error::Stopped)));
    assert!(matches!(group.purge_to(1).await, Err(Error::Stopped)));
    group.shutdown().await;
}

#[tokio::test]
async fn commands_in_flight_at_shutdown_are_applied_or_unknown() {
    let broker = Broker::alone(Config::default());
    let (group, notebook) = started(&broker).await;
    let proposals: Vec<_> = (0..200).map(|_| group.propose(command("a"))).collect();
    group.shutdown().await;
    let mut applied = 0;
    for proposal in proposals {
        match proposal.await {
            Ok(_) => applied += 1,
            Err(error) => assert!(matches!(error, Error::OutcomeUnknown), "{error:?}"),
        }
    }
    assert!(notebook.seen().commands.len() >= applied);
}

#[tokio::test]
async fn a_restart_without_a_checkpoint_applies_the_log_again() {
    let broker = Broker::alone(Config::default());
    let (group, _) = started(&broker).await;
    let texts = numbered(0..100);
    write(&group, strs(&texts)).await;
    group.stop_without_checkpoint().await;

    let broker = broker.reopen(group).await;
    let (group, notebook) = broker.open(1).await;
    leads(&group).await;
    assert_eq!(notebook.seen().commands, texts);
    assert_eq!(notebook.seen().applied.len(), texts.len());
    group.shutdown().await;
}

#[tokio::test]
async fn a_restart_after_a_shutdown_applies_nothing_again() {
    let broker = Broker::alone(Config::default());
    let (group, _) = started(&broker).await;
    let texts = numbered(0..100);
    write(&group, strs(&texts)).await;
    group.shutdown().await;

    let broker = broker.reopen(group).await;
    let (group, notebook) = broker.open(1).await;
    leads(&group).await;
    assert_eq!(notebook.seen().commands, texts);
    assert_eq!(notebook.seen().applied, [0; 0]);
    write(&group, ["one more"]).await;
    assert_eq!(notebook.seen().commands.len(), 101);
    group.shutdown().await;
}

#[tokio::test]
async fn the_only_voter_leads_again_at_once_after_a_restart() {
    let broker = Broker::alone(Config::default());
    let (group, _) = started(&broker).await;
    group.shutdown().await;
    let broker = broker.reopen(group).await;
    let begun = Instant::now();
    let (group, _) = broker.open(1).await;
    leads(&group).await;
    let shortest_election = Config::default().election_min;
    assert!(begun.elapsed() < shortest_election, "took {:?}", begun.elapsed());
    group.shutdown().await;
}

#[tokio::test]
async fn purging_keeps_state_and_later_entries_across_a_restart() {
    let broker = Broker::alone(small_checkpoints());
    let (group, _) = started(&broker).await;
    let texts = numbered(0..60);
    write(&group, strs(&texts)).await;
    let last = group.status().now().applied.unwrap();

    let purged = group.purge_to(last - 20).await.unwrap().unwrap();

    assert!(purged <= last - 20 && purged > 0, "purged to {purged} of {last}");
    let log = broker.env.store.log(GROUP).unwrap();
    assert_eq!(log.first_index().unwrap(), Some(purged + 1));
    assert_eq!(group.purge_to(purged).await.unwrap(), Some(purged), "purging again does nothing");
    group.stop_without_checkpoint().await;

    drop(log);
    let broker = broker.reopen(group).await;
    let (group, notebook) = broker.open(1).await;
    leads(&group).await;
    assert_eq!(notebook.seen().commands, texts);
    assert_eq!(group.status().now().purged, Some(purged));
    write(&group, ["one more"]).await;
    group.shutdown().await;
}

#[tokio::test]
async fn purging_an_idle_group_to_its_end_leaves_no_entry() {
    let broker = Broker::alone(Config::default());
    let (group, _) = started(&broker).await;
    write(&group, strs(&numbered(0..10))).await;
    let last = group.status().now().applied.unwrap();

    assert_eq!(group.purge_to(last).await.unwrap(), Some(last));

    let log = broker.env.store.log(GROUP).unwrap();
    assert_eq!(log.first_index().unwrap(), None);
    drop(log);
    group.shutdown().await;
    let broker = broker.reopen(group).await;
    let (group, notebook) = broker.open(1).await;
    leads(&group).await;
    write(&group, ["one more"]).await;
    assert_eq!(notebook.seen().commands.len(), 11);
    group.shutdown().await;
}

#[tokio::test]
async fn nothing_is_purged_below_the_first_checkpoint() {
    let broker = Broker::alone(Config::default());
    let (group, _) = started(&broker).await;
    write(&group, strs(&numbered(0..10))).await;
    assert_eq!(group.purge_to(3).await.unwrap(), None);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_agree_and_survive_the_loss_of_their_leader() {
    let mut cluster = Cluster::start(4 << 20).await;
    let first = cluster.leader(&[]).await;
    let texts = numbered(0..50);
    write(cluster.group(first), strs(&texts)).await;
    for node in 1..=3 {
        cluster.catches_up(node, first).await;
        assert_eq!(cluster.notebook(node).seen().commands, texts);
    }
    let follower = (1..=3).find(|node| *node != first).unwrap();
    let refused = cluster.group(follower).propose(command("no")).await;
    assert!(matches!(refused, Err(Error::NotLeader { leader }) if leader == Some(first)), "{refused:?}");

    cluster.switch.cut(first);
    let second = cluster.leader(&[first]).await;
    write(cluster.group(second), ["after"]).await;
    cluster.switch.join(first);
    cluster.catches_up(first, second).await;
    assert_eq!(cluster.notebook(first).seen().commands.last().unwrap(), "after");

    cluster.restart(second).await;
    let third = cluster.leader(&[]).await;
    write(cluster.group(third), ["after the restart"]).await;
    cluster.catches_up(second, third).await;
    let expected = cluster.notebook(third).seen().commands;
    assert_eq!(expected.len(), 52);
    for node in 1..=3 {
        cluster.catches_up(node, third).await;
        assert_eq!(cluster.notebook(node).seen().commands, expected);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_no_majority_has_are_replaced_by_the_new_leaders() {
    let cluster = Cluster::start(4 << 20).await;
    let first = cluster.leader(&[]).await;
    write(cluster.group(first), ["agreed"]).await;
    cluster.switch.cut(first);
    let lost: Vec<_> = (0..10).map(|_| cluster.group(first).propose(command("lost"))).collect();
    let second = cluster.leader(&[first]).await;
    write(cluster.group(second), ["kept"]).await;

    cluster.switch.join(first);
    cluster.catches_up(first, second).await;

    for proposal in lost {
        assert!(matches!(proposal.await, Err(Error::OutcomeUnknown | Error::NotLeader { .. })));
    }
    for node in 1..=3 {
        cluster.catches_up(node, second).await;
        assert_eq!(cluster.notebook(node).seen().commands, ["agreed", "kept"]);
    }
    assert_eq!(cluster.group(first).entries(), cluster.group(second).entries());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_comes_back_with_less_than_it_had_catches_up() {
    let mut cluster = Cluster::start(4 << 20).await;
    let leader = cluster.leader(&[]).await;
    let texts = numbered(0..50);
    write(cluster.group(leader), strs(&texts)).await;
    let follower = (1..=3).find(|node| *node != leader).unwrap();
    cluster.catches_up(follower, leader).await;

    cluster.restart_with_less(follower, 20).await;

    write(cluster.group(leader), ["after"]).await;
    cluster.catches_up(follower, leader).await;
    assert_eq!(cluster.notebook(follower).seen().commands.len(), 51);
    assert_eq!(cluster.group(leader).status().now().role, Role::Leader, "nobody else had to be elected");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_lags_behind_the_log_start_gets_the_snapshot_and_every_retained_entry() {
    let mut cluster = Cluster::start(1).await;
    let leader = cluster.leader(&[]).await;
    write(cluster.group(leader), ["before"]).await;
    let lagging = (1..=3).find(|node| *node != leader).unwrap();
    cluster.catches_up(lagging, leader).await;
    cluster.switch.cut(lagging);
    let lagging_at = cluster.group(lagging).status().now().last_index.unwrap();
    write(cluster.group(leader), strs(&numbered(0..200))).await;
    let last = cluster.group(leader).status().now().applied.unwrap();
    let purged = cluster.group(leader).purge_to(last - 10).await.unwrap().unwrap();
    assert!(purged > lagging_at, "purged to {purged}, the follower has {lagging_at}");

    cluster.switch.join(lagging);
    cluster.catches_up(lagging, leader).await;

    assert_eq!(*cluster.switch.snapshots.lock().unwrap(), 1);
    assert_eq!(cluster.notebook(lagging).seen().commands, cluster.notebook(leader).seen().commands);
    eventually(cluster.group(lagging), "the follower purged", |status| status.purged == Some(purged)).await;
    let (theirs, ours) = (cluster.group(lagging).entries(), cluster.group(leader).entries());
    assert_eq!(theirs, ours);
    assert_eq!(theirs.first().unwrap().0, purged + 1);

    cluster.restart(lagging).await;
    let leader = cluster.leader(&[]).await;
    write(cluster.group(leader), ["after"]).await;
    cluster.catches_up(lagging, leader).await;
    assert_eq!(cluster.notebook(lagging).seen().commands, cluster.notebook(leader).seen().commands);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_gets_what_its_leader_has_lost_from_who_has_it() {
    let mut cluster = Cluster::start(1).await;
    let leader = cluster.leader(&[]).await;
    let [lagging, other] = [1, 2, 3].into_iter().filter(|node| *node != leader).collect::<Vec<_>>()[..]
    else {
        unreachable!()
    };
    write(cluster.group(leader), ["before"]).await;
    cluster.catches_up(lagging, leader).await;
    cluster.switch.cut(lagging);
    write(cluster.group(leader), strs(&numbered(0..20))).await;
    cluster.catches_up(other, leader).await;
    let last = cluster.group(leader).status().now().applied.unwrap();

    cluster.restart_without(leader, last - 5).await;
    cluster.restart_without(other, last - 10).await;
    let leader = cluster.leader(&[lagging]).await;
    write(cluster.group(leader), ["after"]).await;
    cluster.switch.join(lagging);
    cluster.catches_up(lagging, leader).await;

    assert_eq!(cluster.notebook(lagging).seen().commands.len(), 22);
    let status = cluster.group(leader).status().now();
    assert!(status.damaged.is_some_and(|error| error.is_damage()));
    assert!(status.unreadable.is_none(), "no other leader is wanted");
    let indexes: Vec<u64> = cluster.group(lagging).entries().into_iter().map(|(index, _)| index).collect();
    assert_eq!(indexes, (0..=*indexes.last().unwrap()).collect::<Vec<_>>());
    cluster.stop().await;
}

#[tokio::test]
async fn a_purge_does_not_replace_a_newer_snapshot_that_a_leader_sends_meanwhile() {
    let disk = Disk::new();
    let open = async || {
        let store = Store::simulated(&disk, storage::Sync::Always, Arc::new(|_| {})).unwrap();
        let slow_disk = store.clone();
        let writer = tokio::spawn(async move {
            loop {
                slow_disk.batch_came().await;
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                while slow_disk.step() {}
            }
        });
        let (config, transport) = (small_checkpoints(), Arc::new(NoPeers));
        let env = Env::new(store, Tasks::new(), config, transport);
        let notebook = Notebook::default();
        (Group::open(GROUP, 1, notebook.clone(), &env).await.unwrap(), notebook, writer)
    };
    let (group, _, writer) = open().await;
    group.bootstrap([1]).await.unwrap();
    leads(&group).await;
    write(&group, ["known"]).await;
    let ballot = Ballot { term: 9, node: 2, granted: true };
    let append = Append { ballot, previous: None, rows: Vec::new(), committed: None };
    group.replica().handle(Request::Append(append)).await.unwrap();

    let members = Membership::new_with_defaults(vec![BTreeSet::from([1, 2])], BTreeSet::new());
    let checkpoint = Checkpoint {
        applied: log_id(Position { index: 100, term: 9, leader: 2 }),
        members: StoredMembership::new(Some(log_id(Position { index: 50, term: 9, leader: 2 })), members),
        state: "known\nsent".into(),
    };
    let sent = Request::Snapshot(SnapshotRequest { ballot, checkpoint: checkpoint.encode() });
    let replica = group.replica();
    let (purged, installed) = tokio::join!(group.purge_to(u64::MAX), replica.handle(sent));
    purged.unwrap();
    installed.unwrap();
    eventually(&group, "the log is purged", |status| status.purged == Some(100)).await;
    group.stop_without_checkpoint().await;
    writer.abort();

    let (group, notebook, writer) = open().await;
    assert_eq!(group.status().now().applied, Some(100));
    assert_eq!(notebook.seen().commands, ["known", "sent"]);
    group.stop_without_checkpoint().await;
    writer.abort();
}

#[tokio::test]
async fn a_replica_without_a_state_for_what_is_left_of_its_log_is_damaged() {
    let broker = Broker::alone(Config::default());
    let at = |index| Position { index, term: 1, leader: 1 };
    let (applied, members, state) = (log_id(at(5)), StoredMembership::default(), Default::default());
    let mut batch = Batch::new();
    batch.put_snapshot(GROUP, Checkpoint { applied, members, state }.encode());
    let store = &broker.env.store;
    store.commit_and_wait(batch, Durability::Sync).await.unwrap();
    store.log(GROUP).unwrap().purge_to(at(7)).unwrap();

    let opened = Group::open(GROUP, 1, Notebook::default(), &broker.env).await;

    let refused = opened.err().expect("6 and 7 are nowhere");
    assert!(refused.is_damage(), "{refused}");
}

#[tokio::test]
async fn a_replica_whose_log_ends_before_its_state_is_damaged() {
    let broker = Broker::alone(small_checkpoints());
    let (group, _) = started(&broker).await;
    write(&group, ["a"]).await;
    group.purge_to(u64::MAX).await.unwrap();
    write(&group, ["b", "c"]).await;
    group.shutdown().await;
    let store = &broker.env.store;
    let (log, mut batch) = (store.log(GROUP).unwrap(), Batch::new());
    log.truncate_after(&mut batch, log.last_index().unwrap().unwrap() - 1);
    store.commit_and_wait(batch, Durability::Sync).await.unwrap();

    let opened = Group::open(GROUP, 1, Notebook::default(), &broker.env).await;

    let refused = opened.err().expect("it would pass for one that has everything");
    assert!(refused.is_damage(), "{refused}");
}

#[tokio::test]
async fn a_vote_survives_a_power_failure_although_records_may_not() {
    let disk = Disk::new();
    let store = Store::simulated(&disk, storage::Sync::Interval, Arc::new(|_| {})).unwrap();
    let pen = store.clone();
    let writer = tokio::spawn(async move {
        loop {
            pen.batch_came().await;
            while pen.step() {}
        }
    });
    let (config, transport) = (Config::default(), Arc::new(NoPeers));
    let env = Env::new(store.clone(), Tasks::new(), config, transport);
    let group = Group::open(GROUP, 1, Notebook::default(), &env).await.unwrap();
    let ballot = Ballot { term: 9, node: 2, granted: false };
    let plea = Request::Vote(VoteRequest { ballot, last: None, transfer: false });
    let Response::Vote(answer) = group.replica().handle(plea).await.unwrap() else {
        panic!("another answer")
    };
    assert!(answer.granted);
    group.stop_without_checkpoint().await;
    writer.abort();

    let disk = store.crash(|_| 0, |_| 0).expect("a simulated store");

    let store = Store::simulated(&disk, storage::Sync::Interval, Arc::new(|_| {})).unwrap();
    let vote = store.log(GROUP).unwrap().vote().unwrap().and_then(|bytes| super::vote::decode(&bytes));
    assert_eq!(vote, Some(super::types::Vote::new(9, 2)));
}

#[tokio::test]
async fn a_follower_whose_disk_is_nearly_full_takes_no_entries_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let settings = storage::Config { reserve_bytes: u64::MAX, ..storage::Config::in_dir(dir.path()) };
    let store = Store::open(&settings, None).unwrap();
    let (config, transport) = (Config::default(), Arc::new(NoPeers));
    let env = Env::new(store, Tasks::new(), config, transport);
    let ballot = Ballot { term: 9, node: 2, granted: true };
    let at = Position { index: 0, term: 9, leader: 2 };
    let row = storage::Row::encode(at, storage::Kind::Blank, storage::Command::copy_from_slice(b""));
    for (id, takes) in [(GROUP, false), (storage::GroupId::CONTROL, true)] {
        let group = Group::open(id, 1, Notebook::default(), &env).await.unwrap();
        let send = async |rows| {
            let append = Append { ballot, previous: None, rows, committed: None };
            group.replica().handle(Request::Append(append)).await
        };
        let sent = send(vec![row.bytes().clone()]).await;
        assert_eq!(sent.is_ok(), takes, "{sent:?}");
        assert!(takes || matches!(sent, Err(Error::Storage(storage::Error::DiskFull { .. }))), "it says why");
        send(Vec::new()).await.expect("it hears its leader");
        assert_eq!(group.status().now().role, Role::Learner);
        group.stop_without_checkpoint().await;
    }
}

#[tokio::test]
async fn a_replica_votes_once_in_a_term() {
    let broker = Broker::alone(Config::default());
    let (group, _) = broker.open(3).await;
    group.bootstrap([1, 2, 3]).await.unwrap();
    let ask = async |term, node| {
        let ballot = Ballot { term, node, granted: false };
        let last = Some(Position { index: 99, term: 9, leader: node });
        let request = Request::Vote(VoteRequest { ballot, last, transfer: false });
        match group.replica().handle(request).await.unwrap() {
            Response::Vote(answer) => answer.granted,
            other => panic!("{other:?}"),
        }
    };

    assert!(ask(10, 1).await);
    assert!(ask(10, 1).await, "the same candidate may ask again");
    assert!(!ask(10, 2).await, "the term's vote is given, whatever the number of the next candidate");
    assert!(ask(11, 2).await);
    group.shutdown().await;
}

#[tokio::test]
async fn an_emptied_replica_votes_only_for_who_has_what_it_had() {
    let broker = Broker::alone(Config::default());
    let (group, _) = started(&broker).await;
    write(&group, ["a", "b"]).await;
    group.shutdown().await;
    let had = broker.env.store.log(GROUP).unwrap().last().unwrap().unwrap();
    super::empty(&broker.env.store, GROUP).unwrap();

    let (group, _) = broker.open(1).await;
    let status = group.status().now();
    assert_eq!((status.last_index, status.role), (None, Role::Learner));
    let ask = async |term, last: Option<Position>| {
        let ballot = Ballot { term, node: 2, granted: false };
        let plea = VoteRequest { ballot, last, transfer: false };
        let mut answers = Vec::new();
        for request in [Request::PreVote(plea.clone()), Request::Vote(plea)] {
            let Response::Vote(answer) = group.replica().handle(request).await.unwrap() else {
                panic!("another answer")
            };
            answers.push((answer.granted, answer.last == Some(had)));
        }
        answers
    };
    let older = Position { index: had.index - 1, ..had };
    assert_eq!(ask(had.term + 1, None).await, [(false, true); 2]);
    assert_eq!(ask(had.term + 1, Some(older)).await, [(false, true); 2]);
    assert!(!ask(had.term, Some(had)).await[1].0, "that term's vote was given before it was emptied");
    assert_eq!(ask(had.term + 1, Some(had)).await, [(true, false); 2]);
    group.shutdown().await;

    // A second time, before anything came back.
    super::empty(&broker.env.store, GROUP).unwrap();
    let log = broker.env.store.log(GROUP).unwrap();
    assert_eq!(log.promised().unwrap(), Some(had));
}

#[tokio::test]
async fn an_emptied_replica_leads_nobody_before_it_has_what_it_had() {
    let broker = Broker::alone(Config::default());
    let (group, _) = started(&broker).await;
    write(&group, ["a", "b"]).await;
    group.shutdown().await;
    let log = broker.env.store.log(GROUP).unwrap();
    let rows = log.read(0, u64::MAX, u64::MAX).unwrap();
    super::empty(&broker.env.store, GROUP).unwrap();

    let (first, others) = rows.split_first().unwrap();
    let parts = [(None, std::slice::from_ref(first)), (Some(first.position()), others)];
    for (term, (previous, rows)) in (10..).zip(parts) {
        let (group, _) = broker.open(1).await;
        let ballot = Ballot { term, node: 2, granted: true };
        let rows = rows.iter().map(|row| row.bytes().clone()).collect();
        let request = Request::Append(Append { ballot, previous, rows, committed: None });
        group.replica().handle(request).await.unwrap();
        group.shutdown().await;

        // By its log it is the only member.
        let (group, _) = broker.open(1).await;
        let mut status = group.status();
        let leads = tokio::time::timeout(Duration::from_secs(1), status.wait_for(Status::is_ready_leader));
        assert_eq!(leads.await.is_ok(), previous.is_some());
        group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_on_request() {
    let cluster = Cluster::start(4 << 20).await;
    let first = cluster.leader(&[]).await;
    let next = (1..=3).find(|node| *node != first).unwrap();
    cluster.catches_up(next, first).await;
    cluster.group(first).transfer_leadership(next).await.unwrap();
    leads(cluster.group(next)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_goes_on_when_its_leadership_is_not_taken_over() {
    let cluster = Cluster::start(4 << 20).await;
    let first = cluster.leader(&[]).await;
    let (next, third) = (first % 3 + 1, (first + 1) % 3 + 1);
    cluster.catches_up(third, first).await;
    let term = cluster.group(first).status().now().term;
    cluster.switch.cut(next);

    cluster.group(first).transfer_leadership(next).await.unwrap();

    let elected = eventually(cluster.group(third), "somebody is elected", |status| {
        status.term > term && status.leader.is_some_and(|leader| leader != next)
    });
    let second = elected.await.leader.unwrap();
    leads(cluster.group(second)).await;
    write(cluster.group(second), ["after"]).await;
    cluster.stop().await;
}

#[tokio::test]
async fn the_only_voter_is_sure_that_it_leads() {
    let broker = Broker::alone(Config::default());
    let (group, notebook) = started(&broker).await;
    write(&group, ["a"]).await;
    group.members().confirm(Duration::ZERO).await.unwrap();
    assert_eq!(notebook.seen().published, 1);
    group.shutdown().await;
    assert!(matches!(group.members().confirm(CONFIRM).await, Err(Error::NotLeader { leader: None })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_heard_a_majority_is_sure_without_asking() {
    let cluster = Cluster::start(4 << 20).await;
    let leader = cluster.leader(&[]).await;
    write(cluster.group(leader), ["heard"]).await;
    let others = (1..=3).filter(|node| *node != leader);
    others.clone().for_each(|node| cluster.switch.cut(node));

    cluster.group(leader).members().confirm(Duration::ZERO).await.unwrap();

    for node in others {
        let told = cluster.group(node).members().confirm(CONFIRM).await;
        assert!(matches!(told, Err(Error::NotLeader { .. })), "{told:?}");
        cluster.switch.join(node);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_replaced_unnoticed_is_not_sure_that_it_leads() {
    let cluster = Cluster::start(4 << 20).await;
    let first = cluster.leader(&[]).await;
    write(cluster.group(first), ["known"]).await;
    cluster.switch.cut(first);
    let second = cluster.leader(&[first]).await;
    write(cluster.group(second), ["not known to the first"]).await;

    assert_eq!(cluster.group(first).status().now().role, Role::Leader);
    let told = cluster.group(first).members().confirm(CONFIRM).await;
    assert!(matches!(told, Err(Error::NotLeader { .. })), "{told:?}");
    cluster.group(second).members().confirm(CONFIRM).await.unwrap();

    cluster.switch.join(first);
    cluster.catches_up(first, second).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_leader_whose_store_has_failed_lets_another_one_lead() {
    let cluster = Cluster::start(4 << 20).await;
    let first = cluster.leader(&[]).await;
    write(cluster.group(first), ["before"]).await;

    cluster.break_disk(first);

    let status = eventually(cluster.group(first), "it stops", |status| status.role == Role::Stopped).await;
    assert!(matches!(status.failed, Some(Error::Storage(_))), "{:?}", status.failed);
    assert!(matches!(cluster.group(first).propose(command("refused")).await, Err(Error::Storage(_))));
    let second = cluster.leader(&[first]).await;
    write(cluster.group(second), ["after"]).await;
    assert_eq!(cluster.notebook(second).seen().commands, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_leaves_its_group_only_after_it_has_handed_over() {
    let cluster = Cluster::start(4 << 20).await;
    let leaving = cluster.leader(&[]).await;
    let group = cluster.group(leaving);
    let others: BTreeSet<NodeId> = (1..=3).filter(|node| *node != leaving).collect();
    let next = *others.first().unwrap();
    cluster.catches_up(next, leaving).await;

    for refused in [
        group.change_voters(others.clone()).await,
        group.members().give_votes(others.clone()).await,
        group.members().expel(leaving).await,
    ] {
        assert!(matches!(refused, Err(Error::Membership { .. })), "{refused:?}");
    }
    group.transfer_leadership(next).await.unwrap();
    leads(cluster.group(next)).await;
    let told = group.change_voters(others.clone()).await;
    assert!(matches!(told, Err(Error::NotLeader { .. })), "{told:?}");
    cluster.group(next).change_voters(others).await.unwrap();
    let refused = group.propose(command("no")).await;

    assert!(matches!(refused, Err(Error::NotLeader { leader }) if leader != Some(leaving)), "{refused:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_to_other_voters_only() {
    let cluster = Cluster::start(4 << 20).await;
    let leader = cluster.leader(&[]).await;
    for to in [leader, 4] {
        let refused = cluster.group(leader).transfer_leadership(to).await;
        assert!(matches!(refused, Err(Error::Membership { .. })), "{refused:?}");
    }
    write(cluster.group(leader), ["still"]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_grows_and_shrinks() {
    let cluster = Cluster::start_unformed(4 << 20).await;
    let group = cluster.group(1);
    group.bootstrap([1]).await.unwrap();
    leads(group).await;
    write(group, ["alone"]).await;
    group.add_learner(2).await.unwrap();
    group.change_voters([1, 2]).await.unwrap();
    write(group, ["together"]).await;
    cluster.catches_up(2, 1).await;
    assert_eq!(cluster.notebook(2).seen().commands, ["alone", "together"]);
    group.change_voters([1]).await.unwrap();
    cluster.switch.cut(2);
    write(group, ["alone again"]).await;
    cluster.stop().await;
}
