//! `streambus bench`.
//!
//! Each workload prints one line of JSON. What it measures is the broker together with the client library, over one
//! connection for each producer and consumer. `overhead` runs a workload against brokers of its own, and `fsync`
//! measures the disk below them.

mod fsync;
mod group;
mod overhead;
mod payload;
mod report;
mod settle;
mod workload;

use std::sync::Arc;

use clap::{Args, Subcommand};

use crate::client::{Client, ErrorCode, ProducerConfig, TopicConfig, TopicSpec};
use crate::units::{ByteSize, HumanDuration};

use super::Global;
use super::connect::connect;
use super::failure::Usage;
use super::output::line;
use payload::Payload;
use report::Report;

/// Measures a running broker. Prints one line of JSON: records/s, MB/s (10^6 bytes of payload), latencies in
/// microseconds where they are measured, and when the broker forces writes to its disk.
#[derive(Debug, Subcommand)]
pub(super) enum Bench {
    /// Send records as fast as they are acknowledged, one in eight timed from send to acknowledgement; or at a `--rate`, each
    /// timed from when it was due
    Produce(Workload),
    /// Read from the start what `bench produce` has sent
    Consume(Workload),
    /// Read from the start what `bench produce` has sent, as the only member of a group, which is made anew
    Group(Workload),
    /// Commit offsets as fast as they are acknowledged: as many members as --producers, each with --in-flight commits of
    /// one offset under way. The topic is made anew
    Commits(Workload),
    /// Send one record at a time, each timed from send to acknowledgement
    Latency(Workload),
    /// Send records and receive them, each timed from send to receipt
    E2e(Workload),
    /// Make empty calls one at a time: the floor under `latency`
    Rpc(Workload),
    /// Append to a file and force each write to the disk: the floor under `latency` with `storage.sync = "always"`
    Fsync(fsync::Fsync),
    /// Share out the partitions of a topic in many groups at once, and see what others notice when members die
    Settle(settle::Settle),
    /// Compare what telemetry costs: starts brokers of its own with telemetry off and on, in turns
    Overhead(overhead::Overhead),
}

/// A load on the broker that `--broker` names.
#[derive(Clone, Debug, Args)]
pub(super) struct Workload {
    #[command(flatten)]
    load: Load,
    /// Use the topic as it is if it exists
    #[arg(long)]
    keep: bool,
}

/// What is sent, and how.
#[derive(Clone, Debug, Args)]
pub(super) struct Load {
    /// Number of records, commits or calls [default: 200000; with latency, e2e and rpc 10000; with
    /// overhead 1000000, or 200000 if they are single]
    #[arg(long, value_name = "COUNT")]
    records: Option<u64>,
    /// Bytes of each record's value, which cannot be compressed
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    record_bytes: usize,
    /// Number of producers, with commits of members; each has a connection of its own
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    producers: usize,
    /// Records of a producer that may be unacknowledged (e2e: not received; commits: commits of a member) [default: 1000;
    /// with commits 64; with e2e 1]
    #[arg(long, value_name = "COUNT")]
    in_flight: Option<usize>,
    /// Records per second, of all producers together: with produce, and overhead. Each is timed from when it was due, so that
    /// what waits because the broker is slow counts [default: as fast as records are acknowledged]
    #[arg(long, value_name = "COUNT")]
    rate: Option<u32>,
    /// Topic to use. It is created anew, and deleted before if it exists, except with consume, group and rpc
    #[arg(long, default_value = "bench", value_name = "TOPIC")]
    topic: String,
    /// Group to use with group and commits. It is deleted before if it exists
    #[arg(long, default_value = "bench", value_name = "GROUP")]
    group: String,
    /// Number of partitions of the new topic
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    partitions: u32,
    /// A batch is sent when it has this size
    #[arg(long, default_value = "128KiB", value_name = "SIZE")]
    batch_bytes: ByteSize,
    /// A batch that is not full is sent after this time [default: 5ms; with latency and e2e 0]
    #[arg(long, value_name = "TIME")]
    linger: Option<HumanDuration>,
    /// Put each record into a batch of its own
    #[arg(long)]
    single: bool,
    /// Worker threads of this process. One is best where broker and bench share few cores
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    threads: usize,
}

impl Bench {
    /// Worker threads that the workload shall run on.
    pub(super) fn threads(&self) -> usize {
        match self {
            Bench::Produce(workload)
            | Bench::Consume(workload)
            | Bench::Group(workload)
            | Bench::Commits(workload)
            | Bench::Latency(workload)
            | Bench::E2e(workload)
            | Bench::Rpc(workload) => workload.load.threads.max(1),
            Bench::Settle(settle) => settle.threads(),
            Bench::Overhead(overhead) => overhead.threads(),
            Bench::Fsync(_) => 1,
        }
    }

    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Bench::Produce(workload) => workload.run(global, Kind::Produce).await,
            Bench::Consume(workload) => workload.run(global, Kind::Consume).await,
            Bench::Group(workload) => workload.run(global, Kind::Group).await,
            Bench::Commits(workload) => workload.run(global, Kind::Commits).await,
            Bench::Latency(workload) => workload.run(global, Kind::Latency).await,
            Bench::E2e(workload) => workload.run(global, Kind::E2e).await,
            Bench::Rpc(workload) => workload.run(global, Kind::Rpc).await,
            Bench::Fsync(fsync) => fsync.run().await,
            Bench::Settle(settle) => settle.run(global).await,
            Bench::Overhead(overhead) => overhead.run(global).await,
        }
    }
}

/// What a [`Workload`] does.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Produce,
    Consume,
    Group,
    Commits,
    Latency,
    E2e,
    Rpc,
}

impl Workload {
    async fn run(self, global: &Global, kind: Kind) -> anyhow::Result<()> {
        self.load.check()?;
        if self.load.rate.is_some() && !matches!(kind, Kind::Produce) {
            return Err(Usage("--rate is for `bench produce` and `bench overhead`".to_owned()).into());
        }
        if let Kind::Commits = kind {
            group::check(&self.load)?;
        }
        let global = global.clone();
        // On a worker thread, so that there are as many busy threads as were asked for and not one more.
        let report = tokio::spawn(async move { self.measure(&global, kind).await }).await??;
        line(report)
    }

    async fn measure(self, global: &Global, kind: Kind) -> anyhow::Result<Report> {
        let client = connect(global).await?;
        let Workload { load, keep } = self;
        if let Kind::Produce | Kind::Commits | Kind::Latency | Kind::E2e = kind {
            load.create_topic(&client, keep).await?;
        }
        let measured = match kind {
            Kind::Produce => workload::produce(&client, &load).await?,
            Kind::Consume => workload::consume(&client, &load).await?,
            Kind::Group => group::consume(&client, &load).await?,
            Kind::Commits => group::commits(&client, &load).await?,
            Kind::Latency => workload::latency(&client, &load).await?,
            Kind::E2e => workload::end_to_end(&client, &load).await?,
            Kind::Rpc => workload::rpc(global.broker.first(), &load).await?,
        };
        let brokers = client.admin().describe_cluster().await?.brokers;
        let sync = brokers.into_iter().map(|broker| broker.storage_sync).find(|sync| !sync.is_empty());
        Ok(Report { load, measured, sync })
    }
}

impl Load {
    fn check(&self) -> Result<(), Usage> {
        let positive = [
            ("--records", self.records != Some(0)),
            ("--record-bytes", self.record_bytes > 0),
            ("--producers", self.producers > 0),
            ("--in-flight", self.in_flight != Some(0)),
            ("--rate", self.rate != Some(0)),
            ("--partitions", self.partitions > 0),
        ];
        match positive.into_iter().find(|(_, is_positive)| !is_positive) {
            Some((name, _)) => Err(Usage(format!("{name} must be at least 1"))),
            None => Ok(()),
        }
    }

    /// Makes the topic, anew unless the existing one is to be kept.
    async fn create_topic(&self, client: &Client, keep: bool) -> anyhow::Result<()> {
        let admin = client.admin();
        if !keep {
            match admin.delete_topic(&self.topic).await {
                Err(error) if error.code() != Some(ErrorCode::UnknownTopic) => return Err(error.into()),
                _ => {}
            }
        }
        let mut config = TopicConfig::default();
        // A record has some bytes besides its value, and a batch some besides its records.
        let record_bytes = u32::try_from(self.record_bytes).unwrap_or(u32::MAX).saturating_add(1 << 10);
        if record_bytes > 1 << 20 {
            config.record_bytes_max = Some(record_bytes);
            config.batch_bytes_max = Some(record_bytes.saturating_add(1 << 10).max(4 << 20));
        }
        let spec = TopicSpec::new(&self.topic).partitions(self.partitions).config(config);
        match admin.create_topic(spec).await {
            Err(error) if keep && error.code() == Some(ErrorCode::TopicExists) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    fn topic(&self) -> Arc<str> {
        Arc::from(self.topic.as_str())
    }

    fn payload(&self) -> Payload {
        Payload::new(self.record_bytes)
    }

    /// How a producer batches, with `linger` unless another time was given.
    fn producer_config(&self, linger: std::time::Duration, in_flight: usize) -> ProducerConfig {
        let defaults = ProducerConfig::default();
        let linger = if self.single { std::time::Duration::ZERO } else { linger };
        ProducerConfig {
            linger: self.linger.map_or(linger, |linger| linger.0),
            batch_bytes: usize::try_from(self.batch_bytes.0).unwrap_or(usize::MAX),
            max_batch_records: if self.single { 1 } else { defaults.max_batch_records },
            max_in_flight: if self.single { in_flight } else { defaults.max_in_flight },
            // The window of records is the limit, not this.
            buffer_bytes: defaults.buffer_bytes.max(in_flight.saturating_mul(2 * self.record_bytes + 256)),
            ..defaults
        }
    }
}
