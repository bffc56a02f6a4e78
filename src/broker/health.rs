//! Whether the broker can do its work, and if not, why.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use super::{Broker, Open};
use crate::cluster::partition_ref::DESERTED;
use crate::storage;

/// How often the checks look. Health flips within this time.
const INTERVAL: Duration = Duration::from_millis(250);

/// After which time of waiting the log says what a broker that starts waits for, how often it says so again, and how soon
/// if that has changed.
const TELL_AFTER: Duration = Duration::from_secs(3);
const TELL_AGAIN: Duration = Duration::from_secs(30);
const TELL_CHANGE: Duration = Duration::from_secs(5);

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
    /// It does not belong to its cluster any more, and serves nobody.
    Left {
        /// Why, and what to do.
        reason: String,
    },
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
    /// Whether it has a majority: without one it can do nothing for clients, while other groups that do not agree are
    /// only in the way of those who need them. Part of `cluster`, except that an election may last.
    pub majority: Check,
    /// Where the broker is in its life.
    pub phase: Phase,
}

impl Health {
    /// Health of a broker that has just begun to start.
    pub fn starting(waiting_for: &str) -> Self {
        Health {
            broker: starting(waiting_for),
            storage: Check::failing("not open yet"),
            cluster: Check::failing("not open yet"),
            majority: Check::failing("not open yet"),
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
    /// Until when the control group may be without a leader, if it is.
    elects_until: Arc<Mutex<Option<Instant>>>,
}

impl Default for Reporter {
    fn default() -> Self {
        Reporter { health: watch::Sender::new(Health::starting("the store")), elects_until: Arc::default() }
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
                Phase::Starting { waiting_for } => starting(waiting_for),
                Phase::Running => Check::Ok,
                Phase::Draining => Check::failing("draining: the broker is stopping"),
                Phase::Stopped => Check::failing("stopped"),
                Phase::Left { reason } => Check::failing(reason),
            };
            health.phase = phase;
        });
    }

    /// Notes that the broker does not belong to its cluster any more.
    fn leave(&self, reason: String) {
        let running = self.health.borrow().phase == Phase::Running;
        if running {
            self.enter(Phase::Left { reason });
        }
    }

    /// Notes what the broker waits for, as long as it starts.
    fn waits_for(&self, what: String) {
        let waiting_for = match &self.health.borrow().phase {
            Phase::Starting { waiting_for } => waiting_for.clone(),
            _ => return,
        };
        if waiting_for != what {
            self.enter(Phase::Starting { waiting_for: what });
        }
    }

    fn note(&self, storage: Check, control: Control, groups: Check) {
        let mut elects_until = self.elects_until.lock().unwrap_or_else(PoisonError::into_inner);
        let majority = control.majority(&mut elects_until, Instant::now());
        let cluster = match control {
            Control::Agrees => groups,
            Control::Elects(reason) | Control::Stuck(reason) => Check::Failing { reason },
        };
        self.health.send_if_modified(|health| {
            if health.storage == storage && health.cluster == cluster && health.majority == majority {
                return false;
            }
            // A broker that stops gives its leaderships away: that groups have no leader then says nothing.
            if !matches!(health.phase, Phase::Draining | Phase::Stopped) {
                report("storage", &health.storage, &storage);
                report("cluster", &health.cluster, &cluster);
                report("majority", &health.majority, &majority);
            }
            health.storage = storage;
            health.cluster = cluster;
            health.majority = majority;
            true
        });
    }
}

fn starting(waiting_for: &str) -> Check {
    Check::failing(format!("starting: waiting for {waiting_for}"))
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
            self.0.health.note(check_storage(open), check_control(open), check_groups(open));
            if let Some(left) = open.cluster.left() {
                self.0.health.leave(left);
            }
        }
    }

    /// Says what a broker that starts waits for: in its health at once, in the log if it takes long.
    pub async fn tell_waiting(&self, waiting_for: impl Fn() -> String) -> Infallible {
        let (mut told, started) = (None, Instant::now());
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let waiting_for = waiting_for();
            self.0.health.waits_for(waiting_for.clone());
            if is_to_be_told(&waiting_for, told.as_ref(), started) {
                warn!(name: "broker.waiting", waiting_for, "the broker cannot serve yet: after {} s it is waiting for {waiting_for}", started.elapsed().as_secs());
                told = Some((waiting_for, Instant::now()));
            }
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

/// Whether the log is to say what is waited for: at first, if that has changed, and now and then.
fn is_to_be_told(waiting_for: &str, told: Option<&(String, Instant)>, started: Instant) -> bool {
    match told {
        None => started.elapsed() >= TELL_AFTER,
        Some((before, at)) if before == waiting_for => at.elapsed() >= TELL_AGAIN,
        Some((_, at)) => at.elapsed() >= TELL_CHANGE,
    }
}

fn check_storage(open: &Open) -> Check {
    match open.partitions.store.writable() {
        Ok(()) => Check::Ok,
        Err(full @ storage::Error::DiskFull { .. }) => {
            Check::failing(format!("{full}; delete topics or records, shorten retention, or grow the disk"))
        }
        Err(error) => Check::failing(format!("{error}; the broker ends, to be started again")),
    }
}

/// How the control group is.
#[derive(Debug)]
enum Control {
    Agrees,
    /// It has no leader that is reached: an election, which is soon over, or there is no majority.
    Elects(String),
    Stuck(String),
}

impl Control {
    /// Whether there is a majority. An election is over within [`DESERTED`], so that brokers do not all turn clients away
    /// whenever one of them dies.
    fn majority(&self, elects_until: &mut Option<Instant>, now: Instant) -> Check {
        match self {
            Control::Agrees => {
                *elects_until = None;
                Check::Ok
            }
            Control::Elects(reason) => {
                let until = *elects_until.get_or_insert(now + DESERTED);
                if now < until { Check::Ok } else { Check::failing(reason) }
            }
            Control::Stuck(reason) => {
                *elects_until = Some(now);
                Check::failing(reason)
            }
        }
    }
}

fn check_control(open: &Open) -> Control {
    let cluster = &open.cluster;
    let control = cluster.control_status().now();
    if let Some(error) = &control.failed {
        return Control::Stuck(format!("the control group has failed: {error}"));
    }
    if cluster.controller().is_some() {
        return Control::Agrees;
    }
    let away = cluster.hub().and_away();
    if control.leader == Some(cluster.identity().broker.0) {
        let reason = format!("no majority follows this broker as the leader of the control group{away}");
        return Control::Stuck(reason);
    }
    match cluster.doubted_controller() {
        Some(leader) => Control::Stuck(format!(
            "broker {leader}, which leads the control group, does not say that a majority follows it{away}"
        )),
        None => Control::Elects(format!("the control group has no leader{away}")),
    }
}

fn check_groups(open: &Open) -> Check {
    let hub = open.cluster.hub();
    for coordinator in open.cluster.coordinators().all() {
        let (shard, status) = (coordinator.shard(), coordinator.status().now());
        if let Some(error) = &status.failed {
            return Check::failing(format!("coordinator shard {shard} has failed: {error}"));
        }
        if hub.leader_of(&coordinator.members()).is_none() {
            return Check::failing(format!("coordinator shard {shard} has no leader"));
        }
    }
    let (mut total, mut leaderless) = (0, 0);
    let mut example = None;
    for route in open.cluster.routing().all().values() {
        for (number, partition) in route.partitions.iter().enumerate() {
            total += 1;
            if partition.lacks_leader() {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(control: Control, groups: Check) -> Health {
        let reporter = Reporter::default();
        reporter.note(Check::Ok, control, groups);
        reporter.watch().borrow().clone()
    }

    #[test]
    fn groups_that_do_not_agree_leave_the_majority() {
        let health = noted(Control::Agrees, Check::failing("1 of 9 partitions have no leader"));
        assert_eq!((health.cluster.is_ok(), health.majority), (false, Check::Ok));
        let health = noted(Control::Stuck("failed".to_owned()), Check::Ok);
        assert_eq!((health.cluster, health.majority), (Check::failing("failed"), Check::failing("failed")));
        let health = noted(Control::Elects("no leader".to_owned()), Check::Ok);
        assert_eq!((health.cluster, health.majority), (Check::failing("no leader"), Check::Ok));
    }

    #[test]
    fn an_election_that_lasts_is_no_majority() {
        let (mut until, began) = (None, Instant::now());
        let elects = Control::Elects("no leader".to_owned());
        let mut later = |control: &Control, seconds| {
            control.majority(&mut until, began + Duration::from_secs(seconds)).is_ok()
        };
        assert!(later(&elects, 0) && later(&elects, 2));
        assert!(!later(&elects, 4));
        assert!(later(&Control::Agrees, 5));
        assert!(later(&elects, 6), "another election");
        assert!(!later(&Control::Stuck("deserted".to_owned()), 7));
        assert!(!later(&elects, 8), "there has been no majority in between");
    }
}
