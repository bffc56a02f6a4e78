//! The workloads of consumer groups.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::client::{
    AssignedPartition, Client, CommitMode, Committer, ErrorCode, GroupConfig, GroupConsumer, Offset,
    OffsetCommit, RebalanceListener, TopicPartition,
};

use super::Load;
use super::report::Measured;
use super::workload::{RECORDS, check_bytes, check_stored, nanos};
use crate::cli::failure::Usage;

const COMMITS_IN_FLIGHT: usize = 64;
/// How long the members may take to share out the partitions.
const BALANCE_DEADLINE: Duration = Duration::from_secs(30);

/// Reads all partitions from the start, as the only member of a new group.
pub(super) async fn consume(client: &Client, load: &Load) -> anyhow::Result<Measured> {
    let records = load.records.unwrap_or(RECORDS);
    let partitions = client.partitions(&load.topic).await?.len();
    check_stored(client, load, records).await?;
    delete_group(client, load).await?;
    let started = Instant::now();
    let mut consumer = client.group_consumer(GroupConfig::new(&load.group, [&load.topic])).await?;
    let (mut seen, mut bytes) = (0, 0);
    while seen < records {
        let batch = consumer.next_batch().await.context("the member cannot read on")??;
        for record in batch {
            seen += 1;
            bytes += record.value.map_or(0, |value| value.len());
        }
    }
    let took = started.elapsed();
    check_bytes(load, seen, bytes)?;
    consumer.close().await?;
    Ok(Measured {
        workload: "group",
        records: seen,
        took,
        latency: None,
        in_flight: 0,
        linger: Duration::ZERO,
        partitions,
    })
}

/// Fails unless each member can have a partition.
pub(super) fn check(load: &Load) -> Result<(), Usage> {
    if (load.partitions as usize) < load.producers {
        let what = format!("each member needs a partition: give --partitions {}", load.producers);
        return Err(Usage(what));
    }
    Ok(())
}

/// Commits offsets on the streams of several members.
pub(super) async fn commits(client: &Client, load: &Load) -> anyhow::Result<Measured> {
    let records = load.records.unwrap_or(RECORDS);
    let in_flight = load.in_flight.unwrap_or(COMMITS_IN_FLIGHT);
    let partitions = client.partitions(&load.topic).await?.len();
    delete_group(client, load).await?;
    let members = balanced(client, load, partitions, in_flight).await?;
    let count = members.len() as u64;
    let started = Instant::now();
    let tasks = members.iter().zip(0u64..).map(|(member, number)| {
        let share = records / count + u64::from(number < records % count);
        let at = member.assignment().into_iter().next().context("each member has a partition");
        let committer = member.committer();
        tokio::spawn(async move { commit(committer, at?, share, in_flight).await })
    });
    let latencies = try_join_all(tasks).await?;
    let took = started.elapsed();
    let mut latency = Histogram::new(3)?;
    for of_member in latencies {
        latency.add(of_member?)?;
    }
    for member in members {
        member.close().await?;
    }
    let (latency, linger) = (Some(latency), Duration::ZERO);
    Ok(Measured { workload: "commits", records, took, latency, in_flight, linger, partitions })
}

/// Commits one offset again and again, with so many commits under way.
async fn commit(
    committer: Committer,
    at: TopicPartition,
    commits: u64,
    in_flight: usize,
) -> anyhow::Result<Histogram<u64>> {
    let mut latency = Histogram::new(3)?;
    let mut waiting = VecDeque::with_capacity(in_flight);
    for _ in 0..commits {
        if waiting.len() == in_flight
            && let Some((sent, oldest)) = waiting.pop_front()
        {
            committed(sent, oldest, &mut latency).await?;
        }
        // The only offset that an empty partition has.
        let commit = OffsetCommit::new(at.clone(), Offset(0));
        waiting.push_back((Instant::now(), committer.commit_async([commit]).await?));
    }
    for (sent, oldest) in waiting {
        committed(sent, oldest, &mut latency).await?;
    }
    Ok(latency)
}

async fn committed(
    sent: Instant,
    commit: crate::client::PendingCommit,
    latency: &mut Histogram<u64>,
) -> anyhow::Result<()> {
    commit.await?;
    latency.record(nanos(sent.elapsed()))?;
    Ok(())
}

/// Says when the assignment of some member changed.
struct Changes(watch::Sender<()>);

impl RebalanceListener for Changes {
    async fn on_assigned(&self, _: &[AssignedPartition], _: &Committer) {
        let _ = self.0.send(());
    }
}

/// Members of which each has partitions, and all together have all.
async fn balanced(
    client: &Client,
    load: &Load,
    partitions: usize,
    in_flight: usize,
) -> anyhow::Result<Vec<GroupConsumer>> {
    let (sender, mut changed) = watch::channel(());
    let mut members = Vec::with_capacity(load.producers);
    for _ in 0..load.producers {
        let config = GroupConfig {
            commit: CommitMode::Manual,
            commits_in_flight_max: in_flight,
            ..GroupConfig::new(&load.group, [&load.topic])
        };
        members.push(client.group_consumer_with(config, Changes(sender.clone())).await?);
    }
    let balance = async {
        loop {
            let counts: Vec<usize> = members.iter().map(|member| member.assignment().len()).collect();
            if counts.iter().all(|count| *count > 0) && counts.iter().sum::<usize>() == partitions {
                return;
            }
            // The sender is here, so that there is always somebody to wait for.
            let _ = changed.changed().await;
        }
    };
    if timeout(BALANCE_DEADLINE, balance).await.is_err() {
        bail!("the partitions were not shared out among {} members in time", load.producers);
    }
    Ok(members)
}

async fn delete_group(client: &Client, load: &Load) -> anyhow::Result<()> {
    match client.admin().delete_group(&load.group).await {
        Err(error) if error.code() != Some(ErrorCode::UnknownGroup) => Err(error.into()),
        _ => Ok(()),
    }
}
