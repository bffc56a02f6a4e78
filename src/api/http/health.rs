//! `/health` and the probes below it.

use std::time::SystemTime;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::{Shared, answer_json};
use crate::api::health::{not_ready, not_started};
use crate::broker::{Check, Health, Phase};
use crate::units::rfc3339_seconds;

/// 200 if every check passes, else 503 with the reasons.
pub(super) async fn overall(State(sources): Shared, RawQuery(query): RawQuery) -> Response {
    let health = sources.health.borrow().clone();
    let healthy = is_healthy(&health);
    let mut body = json!({
        "status": if healthy { "healthy" } else { "unhealthy" },
        "timestamp": rfc3339_seconds(SystemTime::now()),
        "checks": checks(&health),
    });
    if is_verbose(query.as_deref()) {
        body["phase"] = phase(&health).into();
        body["version"] = env!("CARGO_PKG_VERSION").into();
        body["ready"] = not_ready(&health).is_none().into();
        body["waiting_for"] = not_started(&health).into();
    }
    answer_json(status(healthy), &body)
}

/// 200 as long as the process can answer. It depends on nothing else: a restart would not help a full disk.
pub(super) async fn live() -> Response {
    answer_json(StatusCode::OK, &json!({ "status": "live", "timestamp": rfc3339_seconds(SystemTime::now()) }))
}

/// 200 while the broker takes traffic.
pub(super) async fn ready(State(sources): Shared, RawQuery(query): RawQuery) -> Response {
    let health = sources.health.borrow().clone();
    probe("ready", not_ready(&health), &health, query.as_deref())
}

/// 200 once the broker has started.
pub(super) async fn startup(State(sources): Shared, RawQuery(query): RawQuery) -> Response {
    let health = sources.health.borrow().clone();
    let waiting = not_started(&health).map(|what| format!("waiting for {what}"));
    probe("started", waiting, &health, query.as_deref())
}

fn probe(state: &str, missing: Option<String>, health: &Health, query: Option<&str>) -> Response {
    let passes = missing.is_none();
    let mut body = json!({
        "status": if passes { state.to_owned() } else { format!("not {state}") },
        "timestamp": rfc3339_seconds(SystemTime::now()),
    });
    if let Some(reason) = missing {
        body["reason"] = reason.into();
    }
    if is_verbose(query) {
        body["phase"] = phase(health).into();
        body["checks"] = checks(health);
    }
    answer_json(status(passes), &body)
}

fn status(passes: bool) -> StatusCode {
    if passes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn is_healthy(health: &Health) -> bool {
    health.phase == Phase::Running
        && [&health.broker, &health.storage, &health.cluster].into_iter().all(|check| *check == Check::Ok)
}

fn checks(health: &Health) -> Value {
    // A broker that does not run is not "ok", whatever its parts say.
    let broker = match (&health.broker, health.phase == Phase::Running) {
        (Check::Ok, false) => not_ready(health).unwrap_or_default(),
        (check, _) => described(check),
    };
    json!({ "broker": broker, "storage": described(&health.storage), "cluster": described(&health.cluster) })
}

fn described(check: &Check) -> String {
    match check {
        Check::Ok => "ok".to_owned(),
        Check::Failing { reason } => reason.clone(),
    }
}

fn phase(health: &Health) -> &'static str {
    match health.phase {
        Phase::Starting { .. } => "starting",
        Phase::Running => "running",
        Phase::Draining => "draining",
        Phase::Stopped => "stopped",
        Phase::Left { .. } => "left",
    }
}

/// `?verbose`, with or without a value.
fn is_verbose(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("verbose")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(phase: Phase) -> Health {
        Health { broker: Check::Ok, storage: Check::Ok, cluster: Check::Ok, majority: Check::Ok, phase }
    }

    #[test]
    fn a_running_broker_without_failing_checks_is_healthy() {
        let health = health(Phase::Running);
        assert!(is_healthy(&health));
        assert_eq!(checks(&health), json!({ "broker": "ok", "storage": "ok", "cluster": "ok" }));
    }

    #[test]
    fn a_failing_check_shows_its_reason() {
        let disk = Check::Failing { reason: "disk full".to_owned() };
        let health = Health { storage: disk, ..health(Phase::Running) };
        assert!(!is_healthy(&health));
        assert_eq!(checks(&health)["storage"], "disk full");
    }

    #[test]
    fn a_broker_that_starts_says_what_it_waits_for() {
        let health = health(Phase::Starting { waiting_for: "partition leaders".to_owned() });
        assert!(!is_healthy(&health));
        assert_eq!(checks(&health)["broker"], "starting: waiting for partition leaders");
    }

    #[test]
    fn verbose_is_a_query_key() {
        assert!(is_verbose(Some("verbose")) && is_verbose(Some("a=b&verbose=1")));
        assert!(!is_verbose(Some("a=verbose")) && !is_verbose(None));
    }
}
