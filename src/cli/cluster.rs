//! `streambus cluster`.

use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::{Value, json};

use super::Global;
use super::connect::connect;
use super::output::{self, Format, line, list, note, table};
use crate::client::{
    Admin, BrokerDescription, BrokerStatus, ClusterStatus, PartitionProblem, ProblemKind, TopicDescription,
    TopicSummary,
};

/// How often the progress of a drain is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After which time without progress it is said what the partitions wait for, and of how many.
const STALLED: Duration = Duration::from_secs(3);
const STALLED_PARTITIONS_MAX: usize = 20;

/// Looks at the cluster, and changes who is in it and who has which replicas.
#[derive(Debug, Subcommand)]
pub(super) enum Cluster {
    /// Show the cluster and its brokers
    Describe,
    /// Show what is not as it should be; exits with 1 if a partition has no leader
    Status,
    /// Show brokers with their replicas and leaderships
    Brokers,
    /// Move all replicas away from a broker, and show the progress until it has none
    Drain {
        /// The broker
        broker_id: u64,
        /// Let it have replicas again instead
        #[arg(long)]
        cancel: bool,
        /// Return at once; the moves go on
        #[arg(long)]
        no_wait: bool,
    },
    /// Remove a broker that has no replicas
    Remove {
        /// The broker
        broker_id: u64,
    },
    /// Give a partition other replicas
    Reassign {
        /// The topic
        topic: String,
        /// The partition
        partition: u32,
        /// The brokers that are to have its replicas; the first should lead
        #[arg(required = true, value_delimiter = ',', value_name = "BROKER_ID")]
        replicas: Vec<u64>,
    },
    /// Hand the leadership of a partition to another of its replicas
    TransferLeader {
        /// The topic
        topic: String,
        /// The partition
        partition: u32,
        /// The broker that is to lead
        broker_id: u64,
    },
    /// Hand leaderships to the first replica of each partition; exits with 1 if one has no leader
    Balance,
}

impl Cluster {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let admin = connect(global).await?.admin();
        let json = global.output == Format::Json;
        match self {
            Cluster::Describe => describe(&admin, json).await,
            Cluster::Status => status(&admin, json).await,
            Cluster::Brokers => brokers(&admin, json).await,
            Cluster::Drain { broker_id, cancel, no_wait } => {
                let left = admin.drain_broker(broker_id, cancel).await?;
                if !cancel && !no_wait {
                    return wait_for_drain(&admin, broker_id, json).await;
                }
                if json {
                    return line(json!({ "broker_id": broker_id, "draining": !cancel, "replicas": left }));
                }
                match cancel {
                    true => line(format_args!("broker {broker_id} may have replicas again; it has {left}")),
                    false => line(format_args!("broker {broker_id} has {left} replicas left")),
                }
            }
            Cluster::Remove { broker_id } => {
                admin.remove_broker(broker_id).await?;
                if json {
                    line(json!({ "removed": broker_id }))
                } else {
                    line(format_args!("broker {broker_id} removed"))
                }
            }
            Cluster::Reassign { topic, partition, replicas } => {
                admin.reassign_partition(&topic, partition, replicas.clone()).await?;
                if let Ok(TopicDescription { topic: TopicSummary { replication_factor: wanted, .. }, .. }) =
                    admin.describe_topic(&topic).await
                    && (replicas.len() as u32) < wanted
                {
                    note(format_args!(
                        "the replication factor of {topic} is {wanted}; {topic}/{partition} will have {} of its replicas",
                        replicas.len()
                    ));
                }
                if json {
                    return line(json!({ "topic": topic, "partition": partition, "replicas": replicas }));
                }
                let ids = list(&replicas);
                line(format_args!(
                    "{topic}/{partition} moves to brokers {ids}; `streambus cluster status` shows how far"
                ))
            }
            Cluster::TransferLeader { topic, partition, broker_id } => {
                admin.transfer_leader(&topic, partition, broker_id).await?;
                if json {
                    return line(json!({ "topic": topic, "partition": partition, "leader": broker_id }));
                }
                line(format_args!("broker {broker_id} leads {topic}/{partition}"))
            }
            Cluster::Balance => {
                let moved = admin.balance_leaders().await?;
                if json {
                    line(json!({ "transferred": moved }))?;
                } else {
                    line(format_args!("{moved} leaderships handed over"))?;
                }
                // Who leads nothing hands nothing over.
                check_leaders(&admin.cluster_status().await?)
            }
        }
    }
}

async fn describe(admin: &Admin, json: bool) -> anyhow::Result<()> {
    let cluster = admin.describe_cluster().await?;
    if json {
        return line(json!({
            "cluster_id": cluster.cluster_id,
            "broker_id": cluster.broker_id,
            "controller_id": cluster.controller_id,
            "brokers": cluster.brokers.iter().map(broker_json).collect::<Vec<_>>(),
        }));
    }
    line(format_args!("cluster     {}\ncontroller  {}\n", cluster.cluster_id, id(cluster.controller_id)))?;
    let row = |broker: &BrokerDescription| {
        [
            broker.broker_id.to_string(),
            broker.grpc_address.clone(),
            broker.http_address.clone(),
            broker.rack.clone(),
            broker.version.clone(),
            if broker.storage_sync.is_empty() { "?".to_owned() } else { broker.storage_sync.clone() },
            broker.started.map_or_else(|| "unknown".to_owned(), output::time),
        ]
    };
    let rows: Vec<_> = cluster.brokers.iter().map(row).collect();
    table(["BROKER", "GRPC", "HTTP", "RACK", "VERSION", "SYNC", "STARTED"], &rows)
}

fn broker_json(broker: &BrokerDescription) -> Value {
    json!({
        "broker_id": broker.broker_id,
        "grpc_address": broker.grpc_address,
        "http_address": broker.http_address,
        "rack": (!broker.rack.is_empty()).then_some(&broker.rack),
        "version": broker.version,
        "storage_sync": (!broker.storage_sync.is_empty()).then_some(&broker.storage_sync),
        "started": broker.started.map(output::time),
    })
}

/// Something is so wrong that partitions cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{0} partitions have no leader")]
struct Leaderless(usize);

async fn status(admin: &Admin, json: bool) -> anyhow::Result<()> {
    let status = admin.cluster_status().await?;
    let count = |kind| status.problems.iter().filter(|problem| problem.kind == kind).count();
    let offline = count(ProblemKind::Offline);
    let leaderless = count(ProblemKind::Leaderless) + offline;
    let away = status.brokers.iter().filter(|broker| !broker.reached).count();
    if json {
        line(status_json(&status))?;
    } else {
        line(format_args!(
            "controller        {}, votes: {}\ncoordinators      {}\nbrokers           {}, of which {away} {} not reached\npartitions        {}\nleaderless        {leaderless}, of which {offline} {} offline\nunder-replicated  {}\nmoving            {}\ndamaged           {}",
            id(status.controller_id),
            list(&status.controller_voters),
            status.coordinators.iter().map(|at| id(*at)).collect::<Vec<_>>().join(", "),
            status.brokers.len(),
            is_or_are(away),
            status.partitions,
            is_or_are(offline),
            count(ProblemKind::UnderReplicated),
            count(ProblemKind::Moving),
            count(ProblemKind::Damaged),
        ))?;
        if !status.problems.is_empty() {
            let row = |problem: &PartitionProblem| {
                [
                    format!("{}/{}", problem.topic, problem.partition),
                    kind(problem.kind).to_owned(),
                    id(problem.leader),
                    list(&problem.replicas),
                    problem.reason.clone(),
                ]
            };
            let rows: Vec<_> = status.problems.iter().map(row).collect();
            line("")?;
            table(["PARTITION", "PROBLEM", "LEADER", "REPLICAS", "REASON"], &rows)?;
        }
    }
    check_leaders(&status)
}

/// Fails if there are partitions without a leader.
fn check_leaders(status: &ClusterStatus) -> anyhow::Result<()> {
    let leaderless =
        |problem: &&PartitionProblem| matches!(problem.kind, ProblemKind::Leaderless | ProblemKind::Offline);
    match status.problems.iter().filter(leaderless).count() {
        0 => Ok(()),
        leaderless => Err(Leaderless(leaderless).into()),
    }
}

async fn brokers(admin: &Admin, json: bool) -> anyhow::Result<()> {
    let status = admin.cluster_status().await?;
    if json {
        return line(status_json(&status)["brokers"].clone());
    }
    let row = |broker: &BrokerStatus| {
        let state = match broker {
            BrokerStatus { replaced_by: Some(by), .. } => format!("replaced by {by}"),
            BrokerStatus { draining: true, reached: false, .. } => "draining, not reached".to_owned(),
            BrokerStatus { draining: true, .. } => "draining".to_owned(),
            BrokerStatus { reached: false, .. } => "not reached".to_owned(),
            _ => "ok".to_owned(),
        };
        [
            broker.broker_id.to_string(),
            broker.grpc_address.clone(),
            broker.rack.clone(),
            broker.version.clone(),
            state,
            broker.replicas.to_string(),
            broker.leaders.to_string(),
            broker.votes.to_string(),
        ]
    };
    let rows: Vec<_> = status.brokers.iter().map(row).collect();
    table(["BROKER", "GRPC", "RACK", "VERSION", "STATE", "REPLICAS", "LEADERS", "VOTES"], &rows)
}

async fn wait_for_drain(admin: &Admin, broker_id: u64, json: bool) -> anyhow::Result<()> {
    let started = Instant::now();
    let (mut told, mut moved) = (None, started);
    let mut explained = Vec::new();
    loop {
        let status = admin.cluster_status().await?;
        let broker = status.brokers.iter().find(|broker| broker.broker_id == broker_id);
        let left = broker.map_or(0, |broker| broker.replicas + broker.leaders + broker.votes);
        if left == 0 {
            let seconds = started.elapsed().as_secs_f64();
            if json {
                return line(json!({ "broker_id": broker_id, "replicas": 0, "seconds": seconds }));
            }
            return line(format_args!(
                "broker {broker_id} has no replicas left, after {seconds:.1} s; `streambus cluster remove {broker_id}` removes it"
            ));
        }
        let replicas = broker.map_or(0, |broker| broker.replicas);
        if told != Some(replicas) {
            told = Some(replicas);
            moved = Instant::now();
            note(format_args!("broker {broker_id}: {replicas} replicas left"));
        }
        let waits = what_waits(&status, broker_id);
        if moved.elapsed() >= STALLED && waits != explained {
            waits.iter().for_each(note);
            explained = waits;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What the partitions wait for of which a broker still has replicas.
fn what_waits(status: &ClusterStatus, broker_id: u64) -> Vec<String> {
    let has = |problem: &&PartitionProblem| {
        problem.replicas.contains(&broker_id) || problem.moving_from.contains(&broker_id)
    };
    let mut waits: Vec<String> = status
        .problems
        .iter()
        .filter(has)
        .map(|PartitionProblem { topic, partition, reason, .. }| format!("{topic}/{partition}: {reason}"))
        .collect();
    let more = waits.len().saturating_sub(STALLED_PARTITIONS_MAX);
    waits.truncate(STALLED_PARTITIONS_MAX);
    if more > 0 {
        waits.push(format!("and {more} more; `streambus cluster status` shows all"));
    }
    waits
}

fn status_json(status: &ClusterStatus) -> Value {
    let broker = |broker: &BrokerStatus| {
        json!({
            "broker_id": broker.broker_id,
            "grpc_address": broker.grpc_address,
            "version": broker.version,
            "rack": broker.rack,
            "reached": broker.reached,
            "draining": broker.draining,
            "replaced_by": broker.replaced_by,
            "replicas": broker.replicas,
            "leaders": broker.leaders,
            "votes": broker.votes,
        })
    };
    let problem = |problem: &PartitionProblem| {
        json!({
            "topic": problem.topic,
            "partition": problem.partition,
            "problem": kind(problem.kind),
            "leader": problem.leader,
            "replicas": problem.replicas,
            "moving_from": problem.moving_from,
            "lagging": problem.lagging,
            "reason": problem.reason,
        })
    };
    json!({
        "controller_id": status.controller_id,
        "controller_voters": status.controller_voters,
        "coordinators": status.coordinators,
        "partitions": status.partitions,
        "brokers": status.brokers.iter().map(broker).collect::<Vec<_>>(),
        "problems": status.problems.iter().map(problem).collect::<Vec<_>>(),
    })
}

fn kind(kind: ProblemKind) -> &'static str {
    match kind {
        ProblemKind::Offline => "offline",
        ProblemKind::Leaderless => "leaderless",
        ProblemKind::UnderReplicated => "under-replicated",
        ProblemKind::Moving => "moving",
        ProblemKind::Damaged => "damaged",
        ProblemKind::Other => "other",
    }
}

fn id(id: Option<u64>) -> String {
    id.map_or_else(|| "none".to_owned(), |id| id.to_string())
}

fn is_or_are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}
