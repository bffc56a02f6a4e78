//! `streambus cluster`.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::client::BrokerDescription;

use super::Global;
use super::connect::connect;
use super::output::{self, Format, line, table};

/// Looks at the cluster.
#[derive(Debug, Subcommand)]
pub(super) enum Cluster {
    /// Show the cluster and its brokers
    Describe,
}

impl Cluster {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let Cluster::Describe = self;
        let cluster = connect(global).await?.admin().describe_cluster().await?;
        if global.output == Format::Json {
            return line(json!({
                "cluster_id": cluster.cluster_id,
                "broker_id": cluster.broker_id,
                "controller_id": cluster.controller_id,
                "brokers": cluster.brokers.iter().map(broker_json).collect::<Vec<_>>(),
            }));
        }
        line(format_args!(
            "cluster     {}\ncontroller  {}\n",
            cluster.cluster_id,
            cluster.controller_id.map_or_else(|| "none".to_owned(), |id| id.to_string()),
        ))?;
        let row = |broker: &BrokerDescription| {
            [
                broker.broker_id.to_string(),
                broker.grpc_address.clone(),
                broker.http_address.clone(),
                broker.version.clone(),
                if broker.storage_sync.is_empty() { "?".to_owned() } else { broker.storage_sync.clone() },
                broker.started.map_or_else(|| "unknown".to_owned(), output::time),
            ]
        };
        let rows: Vec<_> = cluster.brokers.iter().map(row).collect();
        table(["BROKER", "GRPC", "HTTP", "VERSION", "SYNC", "STARTED"], &rows)
    }
}

fn broker_json(broker: &BrokerDescription) -> Value {
    json!({
        "broker_id": broker.broker_id,
        "grpc_address": broker.grpc_address,
        "http_address": broker.http_address,
        "version": broker.version,
        "storage_sync": (!broker.storage_sync.is_empty()).then_some(&broker.storage_sync),
        "started": broker.started.map(output::time),
    })
}
