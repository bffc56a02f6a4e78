//! The broker as a whole.

use std::time::Instant;

use opentelemetry::KeyValue;

use super::catalog;
use super::instruments::{Instruments, Observer, Slot};

/// What the broker is doing, with the numbers that `/metrics` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Does nothing any more.
    Stopped = 0,
    /// Opens its store, elects leaders, opens its ports.
    Starting = 1,
    /// Serves.
    Running = 2,
    /// Drains.
    Stopping = 3,
}

/// Levels of the broker.
#[derive(Clone, Copy, Debug)]
pub struct BrokerLevels {
    /// What the broker is doing.
    pub status: Status,
    /// Open client connections.
    pub connections: u64,
    /// Calls and HTTP requests whose answer is not complete; an open stream counts as one.
    pub active_requests: u64,
}

/// The result of one health check.
#[derive(Clone, Copy, Debug)]
pub struct HealthCheck {
    /// Which check: `broker`, `storage`, `cluster`, …; a closed set.
    pub check: &'static str,
    /// Whether it passes.
    pub ok: bool,
}

/// Instruments of the broker as a whole.
#[derive(Debug)]
pub struct BrokerMetrics {
    levels: Slot<BrokerLevels>,
    health: Slot<Vec<HealthCheck>>,
}

impl BrokerMetrics {
    pub(super) fn new(instruments: &Instruments) -> Self {
        let levels = instruments.slot();
        instruments.level(catalog::BROKER_STATUS, &levels, |levels: &BrokerLevels| levels.status as u64);
        instruments.level(catalog::BROKER_CONNECTIONS, &levels, |levels| levels.connections);
        instruments.level(catalog::BROKER_ACTIVE_REQUESTS, &levels, |levels| levels.active_requests);
        let health = instruments.slot();
        instruments.each(catalog::HEALTH_CHECK, &health, |checks: &Vec<HealthCheck>, sink| {
            for check in checks {
                sink(u64::from(check.ok), &[KeyValue::new("check", check.check)]);
            }
        });
        let started = Instant::now();
        instruments.floats(catalog::BROKER_UPTIME, move |sink| sink(started.elapsed().as_secs_f64(), &[]));
        let build = [KeyValue::new("version", env!("CARGO_PKG_VERSION"))];
        instruments.integers(catalog::BUILD_INFO, move |sink| sink(1, &build));
        BrokerMetrics { levels, health }
    }

    pub(super) fn observe(&self, observer: Observer<BrokerLevels>) {
        self.levels.set(observer);
    }

    pub(super) fn observe_health(&self, observer: Observer<Vec<HealthCheck>>) {
        self.health.set(observer);
    }
}
