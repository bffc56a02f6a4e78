//! What goes wrong in a run, and what operators do meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::World;
use super::network::Weather;
use super::node::{self, Broker, End};
use super::repair;
use crate::raft::{Group, NodeId, Replica, Role};
use crate::record::Offset;
use crate::storage::{Faults, GroupId};

/// Makes trouble until the time of the plan is over.
pub(super) async fn rage(world: Arc<World>) {
    let until = Instant::now() + world.plan.chaos;
    while Instant::now() < until {
        sleep(world.chance.millis(50..900)).await;
        match world.chance.within(0..100) {
            0..18 => crash_one(&world),
            18..22 => blackout(&world),
            22..40 => partition(&world),
            40..46 => change_weather(&world),
            46..54 => stall(&world),
            54..58 => fail_disk(&world),
            58..62 => restart(&world),
            62..71 => change_members(&world),
            71..75 => repair::damage(&world),
            75..81 => transfer(&world),
            81..97 => trim(&world),
            _ => turn_clock(&world),
        }
    }
}

fn any(world: &World) -> NodeId {
    *world.chance.pick(&world.plan.nodes)
}

fn crash_one(world: &Arc<World>) {
    let end = *world.chance.pick(&[End::Kill, End::Power]);
    let node = any(world);
    node::crash(world, node, end);
    node::start_later(world, node, 20..2_000);
}

/// All brokers at once.
fn blackout(world: &Arc<World>) {
    world.trace.tell("blackout");
    for node in world.plan.nodes.clone() {
        node::crash(world, node, End::Power);
        node::start_later(world, node, 20..1_000);
    }
}

fn partition(world: &Arc<World>) {
    let nodes = &world.plan.nodes;
    let mut ways = BTreeSet::new();
    match world.chance.within(0..6) {
        0..3 => {}
        3 => {
            // Two sides.
            let side: BTreeSet<NodeId> = world.chance.some_of(nodes).into_iter().collect();
            for (from, to) in pairs(nodes) {
                if side.contains(&from) != side.contains(&to) {
                    ways.insert((from, to));
                }
            }
        }
        4 => {
            // One is heard by nobody, or hears nobody.
            let alone = any(world);
            let deaf = world.chance.percent(50);
            for (from, to) in pairs(nodes) {
                if (deaf && to == alone) || (!deaf && from == alone) {
                    ways.insert((from, to));
                }
            }
        }
        _ => {
            for way in pairs(nodes) {
                if world.chance.percent(25) {
                    ways.insert(way);
                }
            }
        }
    }
    world.trace.tell(format!("cut ways: {ways:?}"));
    world.network.cut(ways);
}

fn pairs(nodes: &[NodeId]) -> impl Iterator<Item = (NodeId, NodeId)> {
    nodes.iter().flat_map(|from| nodes.iter().map(|to| (*from, *to))).filter(|(from, to)| from != to)
}

fn change_weather(world: &Arc<World>) {
    let weather = match world.chance.within(0..3) {
        0 => world.plan.weather,
        1 => Weather { in_order: world.plan.weather.in_order, ..Weather::FAIR },
        _ => Weather { lost: 20, doubled: 30, late: 40, late_max: 300, ..world.plan.weather },
    };
    world.trace.tell(format!("{weather:?}"));
    world.network.set_weather(weather);
}

fn stall(world: &Arc<World>) {
    let node = any(world);
    let pause = world.chance.millis(50..1_500);
    world.trace.tell(format!("the disk of node {node} stalls for {pause:?}"));
    if let Some(node) = world.nodes().get_mut(&node) {
        node.stalled_until = Instant::now() + pause;
    }
}

fn fail_disk(world: &Arc<World>) {
    let node = any(world);
    if !node::fail_disk(world, node) {
        return;
    }
    let pause = world.chance.millis(20..1_000);
    let world = Arc::clone(world);
    tokio::spawn(async move {
        sleep(pause).await;
        if !world.is_healing() {
            node::crash(&world, node, End::Kill);
            node::start_later(&world, node, 20..500);
        }
    });
}

fn restart(world: &Arc<World>) {
    let node = any(world);
    let world = Arc::clone(world);
    tokio::spawn(async move {
        node::stop(&world, node).await;
        node::start(&world, node).await;
    });
}

fn turn_clock(world: &Arc<World>) {
    let node = any(world);
    let ahead = world.chance.within(0..7_200_000) as i64 - 3_600_000;
    world.trace.tell(format!("the clock of node {node} is {ahead} ms ahead"));
    if let Some(node) = world.nodes().get_mut(&node) {
        node.ahead = ahead;
    }
}

/// The replica that leads a group, as far as the highest term tells.
pub(super) fn leader(world: &World, group: GroupId) -> Option<(NodeId, Group<()>)> {
    let brokers = world.brokers();
    let replicas =
        brokers.iter().filter_map(|broker| Some((broker.node, broker.replicas.get(&group)?.handle_of_any())));
    let leading = replicas.filter(|(_, replica)| replica.status().now().role == Role::Leader);
    leading.max_by_key(|(_, replica)| replica.status().now().term)
}

fn change_members(world: &Arc<World>) {
    let group = *world.chance.pick(&world.groups());
    let Some((node, replica)) = leader(world, group) else { return };
    if !world.changing().insert(group) {
        return;
    }
    let mut voters: BTreeSet<NodeId> = replica.status().now().voters.iter().copied().collect();
    // One in, one out, or both.
    let change = world.chance.within(0..3);
    let outside: Vec<NodeId> =
        world.plan.nodes.iter().copied().filter(|node| !voters.contains(node)).collect();
    let inside: Vec<NodeId> = voters.iter().copied().collect();
    let mut new = None;
    if change != 0 && !outside.is_empty() {
        new = Some(*world.chance.pick(&outside));
    }
    if change != 1 && inside.len() + usize::from(new.is_some()) > 3 {
        voters.remove(world.chance.pick(&inside));
    }
    voters.extend(new);
    let world = Arc::clone(world);
    world.trace.tell(format!("node {node} changes group {group} to {voters:?}"));
    tokio::spawn(async move {
        let change = async {
            let replica = leader_among(&world, group, &voters).await;
            if let Some(new) = new {
                replica.add_learner(new).await?;
            }
            replica.change_voters(voters).await
        };
        let changed = timeout(Duration::from_secs(5), change).await;
        if matches!(changed, Ok(Ok(()))) {
            world.checker.count(|counts| counts.changes += 1);
        }
        let outcome = changed.map(|outcome| outcome.map_err(|error| error.to_string()));
        world.trace.tell(format!("group {group} was changed: {outcome:?}"));
        world.changing().remove(&group);
    });
}

/// The replica that leads, once that is one of `voters`. One that is not hands over first, as brokers do.
async fn leader_among(world: &World, group: GroupId, voters: &BTreeSet<NodeId>) -> Group<()> {
    loop {
        if let Some((node, replica)) = leader(world, group) {
            if voters.contains(&node) {
                return replica;
            }
            let staying = replica.status().now().voters.iter().copied().find(|node| voters.contains(node));
            if let Some(heir) = staying {
                // Whether it did is seen by who leads next.
                let _ = replica.transfer_leadership(heir).await;
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn transfer(world: &Arc<World>) {
    let group = *world.chance.pick(&world.groups());
    let Some((node, replica)) = leader(world, group) else { return };
    let to = any(world);
    world.trace.tell(format!("node {node} hands group {group} to node {to}"));
    tokio::spawn(async move {
        // Whether it did is seen by its effects.
        let _ = timeout(Duration::from_secs(1), replica.transfer_leadership(to)).await;
    });
}

fn trim(world: &Arc<World>) {
    let number = world.chance.up_to(world.plan.partitions - 1);
    let group = world.partitions()[number];
    let Some((node, _)) = leader(world, group) else { return };
    let Some(broker) = world.broker(node) else { return };
    let Some(partition) = broker.partitions[number].clone() else { return };
    let bounds = partition.bounds();
    let kept = bounds.high_watermark.0 - bounds.log_start.0;
    let before = Offset(bounds.log_start.0 + world.chance.within(0..kept + 1));
    world.trace.tell(format!("node {node} trims group {group} to {before}"));
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let trim = timeout(Duration::from_secs(5), partition.trim(before));
        if let Some(outcome) = broker.gone.run_until_cancelled(trim).await {
            if matches!(outcome, Ok(Ok(_))) {
                world.checker.count(|counts| counts.trims += 1);
            }
            let outcome = outcome.map(|outcome| outcome.map_err(|error| error.to_string()));
            world.trace.tell(format!("group {group} was trimmed: {outcome:?}"));
        }
        free(&world, number).await;
    });
}

/// Every replica of a partition purges what it has heard was trimmed, as each does for itself now and then.
async fn free(world: &Arc<World>, number: usize) {
    for node in world.plan.nodes.clone() {
        let Some(broker) = world.broker(node) else { continue };
        let Some(partition) = broker.partitions[number].clone() else { continue };
        // It may be stopped, or have a damaged disk.
        let freed = timeout(Duration::from_secs(5), partition.free_trimmed());
        if let Some(Ok(outcome)) = broker.gone.run_until_cancelled(freed).await {
            world.trace.tell(format!("node {node} freed what was trimmed: {:?}", outcome.is_ok()));
        }
    }
}

/// Ends all trouble.
pub(super) async fn heal(world: &Arc<World>) {
    world.trace.tell("everything heals");
    world.network.cut(BTreeSet::new());
    world.network.set_weather(Weather::FAIR);
    for node in world.plan.nodes.clone() {
        // Being started, or stopped.
        while world.nodes()[&node].busy {
            sleep(Duration::from_millis(20)).await;
        }
    }
    for node in world.plan.nodes.clone() {
        if let Some(own) = world.nodes().get_mut(&node) {
            own.stalled_until = Instant::now();
            own.disk.set_faults(Faults { syncs_lie: world.lies(), ..Faults::default() });
        }
        let stopped = |replica: &Replica| replica.handle_of_any().status().now().role == Role::Stopped;
        let sick = |broker: Broker| broker.store.healthy().is_err() || broker.replicas.values().any(stopped);
        if world.broker(node).is_some_and(sick) {
            node::crash(world, node, End::Power);
        }
        node::start(world, node).await;
    }
}
