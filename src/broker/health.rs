//! Whether the broker can do its work, and if not, why.

use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use super::{Broker, Open};
use crate::cluster::partition_ref::DESERTED;
use crate::storage;

/// How often the checks look. Health flips within this time.
const INTERVAL: Duration = Duration::from_millis(250);

/// Where the broker is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It cannot serve yet.
    Starting {
        /// What it waits for.
        waiting_for: String,
    },
    /// It serves.
    Running,
    /// It finishes what is under way and takes nothing new.
    Draining,
    /// It is about to end.
    Stopped,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// All is well.
    Ok,
    /// Something is not.
    Failing {
        /// What, and what to do.
        reason: String,
    },
}

impl Check {
    /// Whether all is well.
    pub fn is_ok(&self) -> bool {
        *self == Check::Ok
    }

    fn failing(reason: impl Into<String>) -> Self {
        Check::Failing { reason: reason.into() }
    }
}

/// The broker's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether the broker serves.
    pub broker: Check,
    /// Whether its disk takes writes.
    pub storage: Check,
    /// Whether its groups agree.
    pub cluster: Check,
    /// Where the broker is in its life.
    pub phase: Phase,
}

impl Health {
    /// Health of a broker that has just begun to start.
    pub fn starting(waiting_for: &str) -> Self {
        Health {
            broker: Check::failing(format!("starting: {waiting_for}")),
            storage: Check::failing("not open yet"),
            cluster: Check::failing("not open yet"),
            phase: Phase::Starting { waiting_for: waiting_for.to_owned() },
        }
    }

    /// Whether every check passes.
    pub fn is_healthy(&self) -> bool {
        self.broker.is_ok() && self.storage.is_ok() && self.cluster.is_ok()
    }
}

/// Holds the health and where the broker is in its life.
#[derive(Clone, Debug)]
pub struct Reporter {
    health: watch::Sender<Health>,
}

impl Default for Reporter {
    fn default() -> Self {
        Reporter { health: watch::Sender::new(Health::starting("the store")) }
    }
}

impl Reporter {
    /// Health, now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Whether the broker serves, or finishes what it began.
    pub(super) fn is_serving(&self) -> bool {
        matches!(self.health.borrow().phase, Phase::Running | Phase::Draining)
    }

    /// Notes that the broker has come further in its life.
    pub fn enter(&self, phase: Phase) {
        self.health.send_modify(|health| {
            health.broker = match &phase {
                Phase::Starting { waiting_for } => Check::failing(format!("starting: {waiting_for}")),
                Phase::Running => Check::Ok,
                Phase::Draining => Check::failing("draining: the broker is stopping"),
                Phase::Stopped => Check::failing("stopped"),
            };
            health.phase = phase;
        });
    }

    fn note(&self, storage: Check, cluster: Check) {
        self.health.send_if_modified(|health| {
            if health.storage == storage && health.cluster == cluster {
                return false;
            }
            report("storage", &health.storage, &storage);
            report("cluster", &health.cluster, &cluster);
            health.storage = storage;
            health.cluster = cluster;
            true
        });
    }
}

fn report(name: &'static str, before: &Check, now: &Check) {
    match now {
        Check::Failing { reason } if now != before => warn!(check = name, reason, "health check fails"),
        Check::Ok if before != now => info!(check = name, "health check passes"),
        _ => {}
    }
}

impl Broker {
    /// Looks at storage and cluster, once.
    pub fn check_health(&self) {
        if let Some(open) = self.0.open.get() {
            self.0.health.note(check_storage(open), check_cluster(open));
        }
    }

    /// Looks at storage and cluster time and again.
    pub async fn watch_health(self) {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.check_health();
        }
    }
}

fn check_storage(open: &Open) -> Check {
    match open.partitions.store.writable() {
        Ok(()) => Check::Ok,
        Err(full @ storage::Error::DiskFull { .. }) => {
            Check::failing(format!("{full}; delete topics or records, shorten retention, or grow the disk"))
        }
        Err(error) => Check::failing(format!("{error}; look at the log and restart the broker")),
    }
}

fn check_cluster(open: &Open) -> Check {
    let control = open.cluster.control_status().now();
    if let Some(error) = &control.failed {
        return Check::failing(format!("the control group has failed: {error}"));
    }
    if control.leader.is_none() {
        return Check::failing("the control group has no leader");
    }
    if open.cluster.control_members().quorum_age().is_some_and(|age| age > DESERTED) {
        let away: Vec<String> = open
            .cluster
            .hub()
            .peers()
            .into_iter()
            .filter(|(_, up)| !up)
            .map(|(id, _)| id.to_string())
            .collect();
        return Check::failing(format!(
            "no majority follows this broker as the leader of the control group; brokers {} are not reached",
            away.join(", ")
        ));
    }
    for coordinator in open.cluster.coordinators().all() {
        let (shard, status) = (coordinator.shard(), coordinator.status().now());
        if let Some(error) = &status.failed {
            return Check::failing(format!("coordinator shard {shard} has failed: {error}"));
        }
        if status.leader.is_none() {
            return Check::failing(format!("coordinator shard {shard} has no leader"));
        }
    }
    let (mut total, mut leaderless) = (0, 0);
    let mut example = None;
    for route in open.cluster.routing().all().values() {
        for (number, partition) in route.partitions.iter().enumerate() {
            total += 1;
            if partition.leader().is_none() {
                leaderless += 1;
                example.get_or_insert_with(|| format!("{}/{number}", route.topic.name));
            }
        }
    }
    match example {
        Some(example) => {
            Check::failing(format!("{leaderless} of {total} partitions have no leader, {example} for one"))
        }
        None => Check::Ok,
    }
}
