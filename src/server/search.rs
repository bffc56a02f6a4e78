//! A broker that finds out who it is. Without seeds it knows at once. With seeds it asks them, which may take as long as it
//! takes for others to start; meanwhile its HTTP port is open, and its health and its log say whom it waits for.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;
use tracing::instrument::WithSubscriber as _;

use super::{Error, describe, new_broker, watched};
use crate::api;
use crate::clock::{Clock, Timestamp};
use crate::cluster::identity::Identity;
use crate::cluster::join;
use crate::config::Config;
use crate::metadata::BrokerId;
use crate::task::Tasks;
use crate::telemetry::Telemetry;

/// How long answers over HTTP may take that are under way when the search is over.
const ANSWERS_DEADLINE: Duration = Duration::from_secs(1);

/// Who this broker is, and its HTTP port if that is open.
pub(super) async fn identity(config: &Config) -> Result<(Identity, Option<TcpListener>), Error> {
    let (waiting, waiting_for) = watch::channel("the seeds to answer".to_owned());
    if config.cluster.seeds.is_empty() {
        return Ok((ask(config, &waiting).await?, None));
    }
    // What is exported and logged says which broker it is of, so that it begins anew once this one has a number.
    let (telemetry, log) = Telemetry::unnamed(&config.telemetry)?;
    telemetry.metrics().observe_runtime(&tokio::runtime::Handle::current());
    let tasks = Tasks::new();
    let broker = new_broker(config, &telemetry, Clock::system());
    let probes = api::Probes::open(&config.api, watched(&broker, &telemetry, &tasks))?;
    let searching = async {
        info!(name: "broker.searching", grpc = %config.api.grpc_listen, http = %probes.address(), seeds = config.cluster.seeds.join(","), "asking the seeds for the cluster");
        tokio::select! {
            identity = ask(config, &waiting) => identity,
            never = broker.tell_waiting(|| waiting_for.borrow().clone()) => match never {},
        }
    };
    let identity = searching.with_subscriber(log).await?;
    Ok((identity, Some(probes.end(ANSWERS_DEADLINE).await?)))
}

async fn ask(config: &Config, waiting: &watch::Sender<String>) -> Result<Identity, join::Error> {
    let describe = |grpc| describe(config, BrokerId(0), grpc, config.api.http_listen, Timestamp(0));
    join::identity(&config.storage.data_dir, &config.cluster, config.api.grpc_listen, describe, waiting).await
}
