//! The broker's health as gRPC health checks see it.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health as HealthProtocol, HealthServer};
use tonic_health::server::{HealthReporter, HealthService};

use super::grpc;
use crate::broker::{Check, Health, Phase};

/// The name that stands for the whole server.
const SERVER: &str = "";
/// Services that serve whenever the broker does.
const SERVICES: [&str; 6] = [SERVER, grpc::CONSUME, grpc::GROUP, grpc::TOPIC, grpc::CLUSTER, grpc::CONTROL];

/// Why the broker cannot take traffic, or `None` if it can. What only stops writes, such as a full disk, is no reason
/// to send readers away, and a partition without a leader none to send away those who use others.
pub(super) fn not_ready(health: &Health) -> Option<String> {
    match &health.phase {
        Phase::Starting { waiting_for } => return Some(format!("starting: waiting for {waiting_for}")),
        Phase::Draining => return Some("draining".to_owned()),
        Phase::Stopped => return Some("stopped".to_owned()),
        Phase::Left { reason } => return Some(reason.clone()),
        Phase::Running => {}
    }
    [("broker", &health.broker), ("cluster", &health.majority)].into_iter().find_map(|(name, check)| {
        match check {
            Check::Ok => None,
            Check::Failing { reason } => Some(format!("{name}: {reason}")),
        }
    })
}

/// What the startup still waits for, or `None` if it is over.
pub(super) fn not_started(health: &Health) -> Option<&str> {
    match &health.phase {
        Phase::Starting { waiting_for } => Some(waiting_for),
        Phase::Running | Phase::Draining | Phase::Stopped | Phase::Left { .. } => None,
    }
}

/// Makes the health service, with every service not serving yet.
pub(super) async fn service() -> (HealthReporter, HealthServer<impl HealthProtocol>) {
    let reporter = HealthReporter::new();
    set(&reporter, &SERVICES, Statuses::NONE.serving).await;
    set(&reporter, &[grpc::PRODUCE], Statuses::NONE.writable).await;
    let server = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    (reporter, server)
}

/// Keeps the service's answers up to date until the broker stops or `drain` is cancelled; then nothing serves any
/// more. Who watches is told changes only: the reporter would repeat a status that is set again. Cancels `told` once
/// the watchers of a drained server can see that it serves no more.
pub(super) async fn follow(
    reporter: HealthReporter,
    mut health: watch::Receiver<Health>,
    drain: CancellationToken,
    told: CancellationToken,
) {
    let mut reported = Statuses::NONE;
    loop {
        let statuses = Statuses::of(&health.borrow_and_update());
        reported = report(&reporter, reported, statuses).await;
        tokio::select! {
            () = drain.cancelled() => break,
            changed = health.changed() => if changed.is_err() { break },
        }
    }
    report(&reporter, reported, Statuses::NONE).await;
    drain.cancelled().await;
    told.cancel();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Statuses {
    serving: bool,
    writable: bool,
}

impl Statuses {
    const NONE: Statuses = Statuses { serving: false, writable: false };

    fn of(health: &Health) -> Self {
        let serving = not_ready(health).is_none();
        Statuses { serving, writable: serving && matches!(health.storage, Check::Ok) }
    }
}

async fn report(reporter: &HealthReporter, before: Statuses, now: Statuses) -> Statuses {
    if now.serving != before.serving {
        set(reporter, &SERVICES, now.serving).await;
    }
    if now.writable != before.writable {
        set(reporter, &[grpc::PRODUCE], now.writable).await;
    }
    now
}

async fn set(reporter: &HealthReporter, services: &[&str], serves: bool) {
    for service in services {
        reporter.set_service_status(service, status(serves)).await;
    }
}

fn status(serving: bool) -> ServingStatus {
    if serving { ServingStatus::Serving } else { ServingStatus::NotServing }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn health(phase: Phase) -> Health {
        Health { broker: Check::Ok, storage: Check::Ok, cluster: Check::Ok, majority: Check::Ok, phase }
    }

    fn failing() -> Check {
        Check::Failing { reason: "why".to_owned() }
    }

    #[test]
    fn a_full_disk_stops_producing_only() {
        let health = Health { storage: failing(), ..health(Phase::Running) };
        assert_eq!(Statuses::of(&health), Statuses { serving: true, writable: false });
    }

    #[test]
    fn groups_without_a_leader_stop_nothing() {
        let health = Health { cluster: failing(), ..health(Phase::Running) };
        assert_eq!(Statuses::of(&health), Statuses { serving: true, writable: true });
    }

    #[test]
    fn nothing_serves_before_the_broker_runs_while_it_drains_or_without_a_majority() {
        for health in [
            health(Phase::Starting { waiting_for: "leaders".to_owned() }),
            health(Phase::Draining),
            health(Phase::Stopped),
            Health { cluster: failing(), majority: failing(), ..health(Phase::Running) },
        ] {
            assert_eq!(Statuses::of(&health), Statuses::NONE);
        }
        assert!(
            not_ready(&health(Phase::Starting { waiting_for: "leaders".to_owned() }))
                .unwrap()
                .contains("leaders")
        );
    }

    #[tokio::test]
    async fn who_watches_is_told_changes_only() {
        use tokio_stream::StreamExt;
        use tonic::Request;
        use tonic_health::pb::HealthCheckRequest;
        use tonic_health::pb::health_check_response::ServingStatus as Told;

        let (health, seen) = watch::channel(health(Phase::Running));
        let (drain, told) = (CancellationToken::new(), CancellationToken::new());
        let reporter = HealthReporter::new();
        set(&reporter, &SERVICES, false).await;
        set(&reporter, &[grpc::PRODUCE], false).await;
        let service = HealthService::from_health_reporter(reporter.clone());
        let following = tokio::spawn(follow(reporter, seen, drain.clone(), told.clone()));
        let request = HealthCheckRequest { service: grpc::PRODUCE.to_owned() };
        let mut watch = service.watch(Request::new(request)).await.expect("a known service").into_inner();
        let mut next = async || watch.next().await.expect("open").expect("a status").status();
        while next().await != Told::Serving {}
        // One reason after the other, then a drain that the phase tells of as well: each status once.
        for reason in ["a", "b", "c"] {
            health.send_modify(|health| health.storage = Check::Failing { reason: reason.to_owned() });
            tokio::task::yield_now().await;
        }
        assert_eq!(next().await, Told::NotServing);
        health.send_modify(|health| health.storage = Check::Ok);
        assert_eq!(next().await, Told::Serving);
        health.send_modify(|health| health.phase = Phase::Draining);
        assert_eq!(next().await, Told::NotServing);
        drain.cancel();
        told.cancelled().await;
        following.await.expect("no panic");
        assert!(tokio::time::timeout(Duration::ZERO, next()).await.is_err(), "nothing changed");
    }

    #[test]
    fn startup_is_over_once_and_for_all() {
        assert_eq!(not_started(&health(Phase::Starting { waiting_for: "x".to_owned() })), Some("x"));
        assert_eq!(not_started(&health(Phase::Draining)), None);
    }
}
