//! Reading all brokers of a cluster.

use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;

use super::page::Page;
use super::sample::{BrokerReading, READ, Reading};
use crate::cli::http;
use crate::client::{Admin, BrokerDescription};
use crate::telemetry::catalog;

/// Partitions that are looked at on each broker to find the busiest.
const PARTITIONS_MAX: usize = 5_000;

/// Asks the cluster who its brokers are and how they do, and each for its metrics. A broker that does not answer within
/// `deadline` is part of the reading, with the reason.
///
/// # Errors
/// No broker answers over gRPC.
pub(super) async fn read(admin: &Admin, deadline: Duration) -> anyhow::Result<Reading> {
    let (cluster, status) = tokio::try_join!(admin.describe_cluster(), admin.cluster_status())?;
    let brokers = join_all(cluster.brokers.iter().map(|broker| read_broker(broker, deadline))).await;
    Ok(Reading { at: SystemTime::now(), brokers, status })
}

async fn read_broker(broker: &BrokerDescription, deadline: Duration) -> BrokerReading {
    let page = pages(&broker.http_address, deadline).await.map_err(|error| format!("{error:#}"));
    BrokerReading { id: broker.broker_id, page }
}

async fn pages(address: &str, deadline: Duration) -> anyhow::Result<(Page, Instant)> {
    let family = catalog::PARTITION_HIGH_WATERMARK.prometheus;
    let detailed = format!("/metrics/detailed?family={family}&leading=true&limit={PARTITIONS_MAX}");
    let text = http::get(address, "/metrics", deadline).await?;
    let at = Instant::now();
    let wanted = |name: &str| {
        READ.iter().any(|row| {
            name.strip_prefix(row.prometheus).is_some_and(|rest| rest.is_empty() || rest == "_bucket")
        })
    };
    let mut page = Page::parse(&text, wanted);
    // An older broker does not know it; then there are no busy partitions to show, and that is all.
    if let Ok(text) = http::get(address, &detailed, deadline).await {
        page.add(Page::parse(&text, |name| name == family));
    }
    Ok((page, at))
}
