//! How long many groups take to share out partitions, and what the others notice when a member dies.

mod report;
mod tally;

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use futures_util::stream::{FuturesUnordered, StreamExt as _, TryStreamExt as _};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::{
    Client, ErrorCode, GroupConfig, GroupConsumer, ProducerConfig, ProducerRecord, TopicSpec,
};
use crate::units::HumanDuration;

use super::payload::Payload;
use crate::cli::Global;
use crate::cli::connect::connect;
use crate::cli::failure::Usage;
use crate::cli::output::line;
use report::Report;
use tally::{Gaps, Listener, Tally};

/// An assignment that did not change for so long is taken to be final.
const STABLE: Duration = Duration::from_secs(2);
/// How long the members may take to share out the partitions.
const DEADLINE: Duration = Duration::from_secs(120);
/// Calls of one kind that are under way at the same time, where nothing is measured.
const CALLS: usize = 16;
const RECORD_BYTES: usize = 100;

/// How many groups and members, and what they read.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Settle {
    /// Number of groups
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    groups: usize,
    /// Members of each group; each has a connection of its own
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    members: usize,
    /// Partitions of the topic that all groups read
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    partitions: u32,
    /// Groups in which a member dies
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    kill: usize,
    /// Each partition gets a record every so often
    #[arg(long, default_value = "100ms", value_name = "TIME")]
    every: HumanDuration,
    /// How long deliveries are watched, before members die and from then on
    #[arg(long, default_value = "5s", value_name = "TIME")]
    watch: HumanDuration,
    /// Topic to use. It is deleted if it exists, and created anew
    #[arg(long, default_value = "bench", value_name = "TOPIC")]
    topic: String,
    /// Groups are named so, with a number behind. They are deleted if they exist
    #[arg(long, default_value = "bench", value_name = "GROUP")]
    group: String,
    /// Worker threads of this process
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    threads: usize,
}

/// A member that reads until it is dropped.
struct Member {
    gaps: Arc<Gaps>,
    /// Dropped, it ends the member as the death of its process would.
    _life: oneshot::Sender<()>,
}

impl Settle {
    pub(super) fn threads(&self) -> usize {
        self.threads.max(1)
    }

    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        self.check()?;
        let global = global.clone();
        // On a worker thread, so that there are as many busy threads as were asked for and not one more.
        line(tokio::spawn(async move { self.measure(&global).await }).await??)
    }

    fn check(&self) -> Result<(), Usage> {
        let wrong = |what: &str| Err(Usage(what.to_owned()));
        if self.groups == 0 || self.members == 0 || self.partitions == 0 {
            return wrong("--groups, --members and --partitions must be at least 1");
        }
        if self.members > self.partitions as usize {
            return wrong("each member needs a partition: --partitions must be at least --members");
        }
        if self.kill > self.groups || (self.kill > 0 && self.members < 2) {
            return wrong("--kill takes at most --groups, and needs --members of at least 2");
        }
        if self.every.0.is_zero() || self.watch.0 < self.every.0 {
            return wrong("--every must be longer than nothing, and --watch not shorter than --every");
        }
        Ok(())
    }

    async fn measure(self, global: &Global) -> anyhow::Result<Report> {
        let client = connect(global).await?;
        self.prepare(&client).await?;
        // Everything ends with this.
        let mut tasks = JoinSet::new();
        let produced = Arc::new(Gaps::default());
        tasks.spawn(produce(client.clone(), self.clone(), Arc::clone(&produced)));

        let tally = Arc::new(Tally::new(self.groups, self.members, self.partitions));
        let started = Instant::now();
        let mut members = self.join(&client, &tally, &mut tasks).await?;
        let joined = started.elapsed();
        let settled = self.settled(&tally, &mut tasks).await?.saturating_duration_since(started);
        self.agree(&client, self.members).await?;
        let before = tally.assignment();

        let all = || members_of(&members).chain([&produced]);
        all().for_each(|gaps| gaps.restart());
        idle(self.watch.0, &mut tasks).await?;
        let has = |group: usize, member: usize, partition| before[group][member].contains(&partition);
        let gap_before = self.largest_gap(&members, has);

        all().for_each(|gaps| gaps.restart());
        let taken_before = tally.taken();
        let killed = Instant::now();
        for group in self.victims() {
            // The first member of each.
            members[group][0] = None;
            tally.died(group, 0);
        }
        let resettled = self.settled(&tally, &mut tasks).await?.saturating_duration_since(killed);
        idle(self.watch.0.saturating_sub(killed.elapsed()), &mut tasks).await?;
        let after = tally.assignment();
        let stayed = |group: usize, member: usize, partition| {
            has(group, member, partition) && after[group][member].contains(&partition)
        };
        let gap = self.largest_gap(&members, stayed);
        let produce_gap = produced.largest(|_| true);
        let moved = tally::moved(&before, &after);
        let of_the_dead = self.victims().map(|group| before[group][0].len()).sum::<usize>();
        let brokers = client.admin().describe_cluster().await?.brokers;
        Ok(Report {
            joined,
            settled,
            resettled,
            moved,
            moved_of_others: moved - of_the_dead + usize::try_from(tally.taken() - taken_before)?,
            gap_before,
            gap,
            produce_gap,
            sync: brokers.into_iter().map(|broker| broker.storage_sync).find(|sync| !sync.is_empty()),
            settle: self,
        })
    }

    /// Makes topic and groups anew.
    async fn prepare(&self, client: &Client) -> anyhow::Result<()> {
        let admin = client.admin();
        match admin.delete_topic(&self.topic).await {
            Err(error) if error.code() != Some(ErrorCode::UnknownTopic) => return Err(error.into()),
            _ => {}
        }
        admin.create_topic(TopicSpec::new(&self.topic).partitions(self.partitions)).await?;
        let deletions = (0..self.groups).map(|number| {
            let (admin, name) = (client.admin(), self.group_name(number));
            async move {
                match admin.delete_group(&name).await {
                    Err(error) if error.code() != Some(ErrorCode::UnknownGroup) => Err(error),
                    _ => Ok(()),
                }
            }
        });
        Ok(futures_util::stream::iter(deletions).buffer_unordered(CALLS).try_collect().await?)
    }

    fn group_name(&self, number: usize) -> String {
        format!("{}-{number:04}", self.group)
    }

    /// The groups in which a member dies, spread over all.
    fn victims(&self) -> impl Iterator<Item = usize> + use<> {
        let step = self.groups / self.kill.max(1);
        (0..self.kill).map(move |number| number * step)
    }

    /// Starts all members at once, and gives them by group.
    async fn join(
        &self,
        client: &Client,
        tally: &Arc<Tally>,
        tasks: &mut JoinSet<anyhow::Result<()>>,
    ) -> anyhow::Result<Vec<Vec<Option<Member>>>> {
        let joining: FuturesUnordered<_> = (0..self.groups * self.members)
            .map(|number| {
                let (group, member) = (number / self.members, number % self.members);
                let config = GroupConfig {
                    member_id: Some(format!("member-{member:04}")),
                    ..GroupConfig::new(self.group_name(group), [&self.topic])
                };
                let joining = client.group_consumer_with(config, Listener::new(tally, group, member));
                async move { anyhow::Ok((group, member, joining.await?)) }
            })
            .collect();
        let mut members: Vec<Vec<_>> =
            (0..self.groups).map(|_| (0..self.members).map(|_| None).collect()).collect();
        let mut joining = joining;
        while let Some((group, member, consumer)) = joining.try_next().await? {
            let gaps = Arc::new(Gaps::default());
            let (life, death) = oneshot::channel();
            tasks.spawn(read(consumer, Arc::clone(&gaps), death));
            members[group][member] = Some(Member { gaps, _life: life });
        }
        Ok(members)
    }

    /// Waits until the assignment is complete, balanced and stable; tells since when it is.
    async fn settled(
        &self,
        tally: &Tally,
        tasks: &mut JoinSet<anyhow::Result<()>>,
    ) -> anyhow::Result<Instant> {
        tokio::select! {
            failure = failed(tasks) => Err(failure),
            settled = timeout(DEADLINE, tally.settled(STABLE)) => {
                settled.with_context(|| format!("the groups did not settle in {DEADLINE:?}: {tally}"))
            }
        }
    }

    /// Fails unless the broker sees the same members, and has nothing more to move.
    async fn agree(&self, client: &Client, members: usize) -> anyhow::Result<()> {
        let looks = (0..self.groups).map(|number| {
            let (admin, name) = (client.admin(), self.group_name(number));
            async move { admin.describe_group(&name).await }
        });
        let mut looks = futures_util::stream::iter(looks).buffer_unordered(CALLS);
        while let Some(group) = looks.try_next().await? {
            let assigned: usize = group.members.iter().map(|member| member.assigned.len()).sum();
            let revoking = group.members.iter().any(|member| !member.revoking.is_empty());
            if group.members.len() != members || assigned != self.partitions as usize || revoking {
                bail!("members and broker disagree on the assignment of group {}", group.group);
            }
        }
        Ok(())
    }

    /// The largest gap between deliveries of partitions that are `wanted`, by group, member and partition.
    fn largest_gap(
        &self,
        members: &[Vec<Option<Member>>],
        wanted: impl Fn(usize, usize, u32) -> bool,
    ) -> Duration {
        let mut largest = Duration::ZERO;
        for (group, of_group) in members.iter().enumerate() {
            for (number, member) in of_group.iter().enumerate() {
                let Some(member) = member else { continue };
                largest = largest.max(member.gaps.largest(|partition| wanted(group, number, partition)));
            }
        }
        largest
    }
}

fn members_of(members: &[Vec<Option<Member>>]) -> impl Iterator<Item = &Arc<Gaps>> {
    members.iter().flatten().flatten().map(|member| &member.gaps)
}

/// Sends each partition a record every so often, one after the other.
async fn produce(client: Client, settle: Settle, gaps: Arc<Gaps>) -> anyhow::Result<()> {
    let config = ProducerConfig { linger: Duration::ZERO, ..ProducerConfig::default() };
    let producer = client.producer(config).await?;
    let topic: Arc<str> = settle.topic.as_str().into();
    let mut payload = Payload::new(RECORD_BYTES);
    let mut ticks = tokio::time::interval(settle.every.0 / settle.partitions);
    loop {
        for partition in 0..settle.partitions {
            ticks.tick().await;
            let record = ProducerRecord::new(Arc::clone(&topic)).partition(partition).value(payload.next());
            let gaps = Arc::clone(&gaps);
            // A record that is not appended shows as a gap.
            producer
                .send_with(record, move |sent| sent.map(|_| gaps.seen(partition)).unwrap_or_default())
                .await?;
        }
    }
}

/// Reads until `death`, and then closes the connection without a word.
async fn read(
    mut consumer: GroupConsumer,
    gaps: Arc<Gaps>,
    mut death: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            _ = &mut death => return Ok(()),
            batch = consumer.next_batch() => {
                let batch = batch.context("a member cannot read on")??;
                gaps.seen(batch.partition());
            }
        }
    }
}

/// The first failure of a task.
async fn failed(tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Error {
    while let Some(ended) = tasks.join_next().await {
        if let Err(failure) = ended.map_err(anyhow::Error::from).flatten() {
            return failure;
        }
    }
    pending().await
}

/// Lets time pass, unless a task fails.
async fn idle(time: Duration, tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    timeout(time, failed(tasks)).await.map_or(Ok(()), Err)
}
