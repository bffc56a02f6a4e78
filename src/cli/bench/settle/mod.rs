//! How long many groups take to share out partitions, and what the others notice when a member dies and when one joins.

mod report;
mod tally;

use std::collections::BTreeSet;
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
use report::{Noticed, Report};
use tally::{Assignment, Gaps, Listener, Tally};

/// An assignment that did not change for so long is taken to be final.
const STABLE: Duration = Duration::from_secs(2);
/// How long the members may take to share out the partitions.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long the broker may take to see what the members have heard already, and how often it is asked.
const AGREEMENT: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Calls of one kind that are under way at the same time, where nothing is measured.
const CALLS: usize = 16;
const RECORD_BYTES: usize = 100;
/// The member that dies, of each group in which one does.
const VICTIM: usize = 0;

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
    /// Groups in which a member dies, and joins again
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    kill: usize,
    /// Partitions that get records, spread over all
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    fed: u32,
    /// Each of them gets a record every so often
    #[arg(long, default_value = "100ms", value_name = "TIME")]
    every: HumanDuration,
    /// How long deliveries are watched: before members die, from then on, and from when they join again
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
        if self.fed == 0 || self.fed > self.partitions {
            return wrong("--fed must be at least 1 and at most --partitions");
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
        let mut scene = Scene { settle: self, tally, members: Vec::new(), produced, tasks };
        let started = Instant::now();
        scene.join(&client, scene.settle.everybody()).await?;
        let joined = started.elapsed();
        let settled = scene.settled().await?.saturating_duration_since(started);
        scene.agree(&client).await?;

        let began = scene.begin();
        let before = scene.finish(began).await?;
        let began = scene.begin();
        for group in scene.settle.victims() {
            scene.kill(group);
        }
        let leave = scene.finish(began).await?;
        let began = scene.begin();
        scene.join(&client, scene.settle.victims().map(|group| (group, VICTIM)).collect()).await?;
        let join = scene.finish(began).await?;
        scene.agree(&client).await?;
        let brokers = client.admin().describe_cluster().await?.brokers;
        let sync = brokers.into_iter().map(|broker| broker.storage_sync).find(|sync| !sync.is_empty());
        Ok(Report { settle: scene.settle, joined, settled, before, leave, join, sync })
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

    /// Every member of each group.
    fn everybody(&self) -> Vec<(usize, usize)> {
        (0..self.groups).flat_map(|group| (0..self.members).map(move |member| (group, member))).collect()
    }

    /// The groups in which a member dies, spread over all.
    fn victims(&self) -> impl Iterator<Item = usize> + use<> {
        let step = self.groups / self.kill.max(1);
        (0..self.kill).map(move |number| number * step)
    }

    /// The partitions that get records.
    fn fed(&self) -> impl Iterator<Item = u32> + use<> {
        let step = self.partitions / self.fed;
        (0..self.fed).map(move |number| number * step)
    }
}

/// Members at work.
struct Scene {
    settle: Settle,
    tally: Arc<Tally>,
    /// By group and number.
    members: Vec<Vec<Option<Member>>>,
    produced: Arc<Gaps>,
    /// Ends everything when it is dropped.
    tasks: JoinSet<anyhow::Result<()>>,
}

/// What was before members came or went.
struct Began {
    at: Instant,
    assignment: Assignment,
    taken: u64,
}

impl Scene {
    /// Starts these members at once.
    async fn join(&mut self, client: &Client, who: Vec<(usize, usize)>) -> anyhow::Result<()> {
        self.members.resize_with(self.settle.groups, || (0..self.settle.members).map(|_| None).collect());
        let mut joining: FuturesUnordered<_> = who
            .into_iter()
            .map(|(group, member)| {
                let config = GroupConfig {
                    member_id: Some(format!("member-{member:04}")),
                    ..GroupConfig::new(self.settle.group_name(group), [&self.settle.topic])
                };
                self.tally.comes(group, member);
                let joining = client.group_consumer_with(config, Listener::new(&self.tally, group, member));
                async move { anyhow::Ok((group, member, joining.await?)) }
            })
            .collect();
        while let Some((group, member, consumer)) = joining.try_next().await? {
            let gaps = Arc::new(Gaps::default());
            let (life, death) = oneshot::channel();
            self.tasks.spawn(read(consumer, Arc::clone(&gaps), death));
            self.members[group][member] = Some(Member { gaps, _life: life });
        }
        Ok(())
    }

    /// Ends a member of a group as the death of its process would.
    fn kill(&mut self, group: usize) {
        self.members[group][VICTIM] = None;
        self.tally.died(group, VICTIM);
    }

    /// Waits until the assignment is complete, balanced and stable; tells since when it is.
    async fn settled(&mut self) -> anyhow::Result<Instant> {
        tokio::select! {
            failure = failed(&mut self.tasks) => Err(failure),
            settled = timeout(DEADLINE, self.tally.settled(STABLE)) => {
                settled.with_context(|| format!("the groups did not settle in {DEADLINE:?}: {}", self.tally))
            }
        }
    }

    /// Waits until the broker sees the same members, and has nothing more to move.
    async fn agree(&mut self, client: &Client) -> anyhow::Result<()> {
        let deadline = Instant::now() + AGREEMENT;
        while let Some(group) = self.disagreement(client).await? {
            if Instant::now() >= deadline {
                bail!("members and broker disagree on the assignment of group {group}");
            }
            idle(ASK_AGAIN, &mut self.tasks).await?;
        }
        Ok(())
    }

    /// A group of which the broker sees other members, or has something to move.
    async fn disagreement(&self, client: &Client) -> anyhow::Result<Option<String>> {
        let looks = (0..self.settle.groups).map(|number| {
            let (admin, name) = (client.admin(), self.settle.group_name(number));
            async move { admin.describe_group(&name).await }
        });
        let mut looks = futures_util::stream::iter(looks).buffer_unordered(CALLS);
        while let Some(group) = looks.try_next().await? {
            let assigned: usize = group.members.iter().map(|member| member.assigned.len()).sum();
            let revoking = group.members.iter().any(|member| !member.revoking.is_empty());
            let complete = assigned == self.settle.partitions as usize && !revoking;
            if group.members.len() != self.settle.members || !complete {
                return Ok(Some(group.group));
            }
        }
        Ok(None)
    }

    /// Begins to watch what members notice.
    fn begin(&self) -> Began {
        let members = self.members.iter().flatten().flatten().map(|member| &member.gaps);
        members.chain([&self.produced]).for_each(|gaps| gaps.restart());
        Began { at: Instant::now(), assignment: self.tally.assignment(), taken: self.tally.taken() }
    }

    /// Waits until the groups are settled again and the time to watch is over, and tells what was noticed.
    async fn finish(&mut self, began: Began) -> anyhow::Result<Noticed> {
        let settled = self.settled().await?.saturating_duration_since(began.at);
        idle(self.settle.watch.0.saturating_sub(began.at.elapsed()), &mut self.tasks).await?;
        let after = self.tally.assignment();
        let kept = |group: usize, member: usize, partition: &u32| {
            began.assignment[group][member].contains(partition) && after[group][member].contains(partition)
        };
        let produced = self.settle.fed().filter_map(|partition| self.produced.of(partition));
        let produce_gap = produced.max().unwrap_or_default();
        let mut noticed = Noticed { settled, produce_gap, ..Noticed::default() };
        for (group, members) in self.members.iter().enumerate() {
            for (number, member) in members.iter().enumerate() {
                let Some(member) = member else { continue };
                for partition in self.settle.fed().filter(|at| kept(group, number, at)) {
                    noticed.watched += 1;
                    let gap = member.gaps.of(partition);
                    noticed.gap = noticed.gap.max(gap.unwrap_or_else(|| began.at.elapsed()));
                }
            }
        }
        noticed.moved = tally::moved(&began.assignment, &after);
        let had_none = |(before, after): (&BTreeSet<u32>, &BTreeSet<u32>)| {
            if before.is_empty() { after.len() } else { 0 }
        };
        let pairs = began.assignment.iter().flatten().zip(after.iter().flatten());
        let came: usize = pairs.map(had_none).sum();
        noticed.needless = usize::try_from(self.tally.taken() - began.taken)?.saturating_sub(came);
        Ok(noticed)
    }
}

/// Sends each partition that is fed a record every so often, one after the other.
async fn produce(client: Client, settle: Settle, gaps: Arc<Gaps>) -> anyhow::Result<()> {
    let config = ProducerConfig { linger: Duration::ZERO, ..ProducerConfig::default() };
    let producer = client.producer(config).await?;
    let topic: Arc<str> = settle.topic.as_str().into();
    let mut payload = Payload::new(RECORD_BYTES);
    let mut ticks = tokio::time::interval(settle.every.0 / settle.fed);
    loop {
        for partition in settle.fed() {
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
