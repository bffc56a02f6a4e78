//! What the tests share: brokers to speak to, a collector to export to, and ways to look at both.

pub mod asking;
pub mod batch;
pub mod broker;
pub mod cluster;
pub mod collector;
pub mod damage;
pub mod endpoint;
pub mod group;
pub mod process;
pub mod refusal;
pub mod subscriber;
pub mod tool;
pub mod view;

use std::future::Future;
use std::time::{Duration, Instant};

pub use broker::TestBroker;
pub use cluster::Cluster;
pub use collector::Collector;
pub use endpoint::Endpoint;
pub use group::GroupStream;
pub use process::Process;
pub use refusal::Refusal;
pub use subscriber::Subscriber;
pub use view::View;

/// An address that nobody listens on, for a port that must be known before it is opened. Outside of the range from which
/// the system chooses ports.
pub fn free_address() -> String {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let next = u32::from(NEXT.fetch_add(1, Ordering::Relaxed)) + std::process::id() * 101;
        let address = format!("127.0.0.1:{}", 20_000 + next % 12_000);
        if std::net::TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

/// How long anything may take that has no deadline of its own. Far above what it takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until `condition` gives something, and fails the test after `deadline`.
///
/// This is the only place where the tests let time pass.
pub async fn eventually<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(started.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for something that has to come by itself, and fails the test if it does not.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}
