//! `streambus bench overhead`: what telemetry costs.
//!
//! Every measurement has a broker of its own, fresh and on an empty directory, so that nothing of the one before
//! disturbs it. A round measures the modes in one order and then in the opposite one, which cancels a drift of the
//! machine; comparisons are made within a round.

mod broker;
mod mode;
mod report;
mod scrape;
mod sink;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use hdrhistogram::Histogram;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::connect::connect;
use crate::cli::failure::Usage;
use crate::cli::output::note;
use crate::cli::{Brokers, Global};
use crate::telemetry::Signal;

use super::{Load, workload};
use broker::Broker;
use mode::{MODES, Mode, Sync};
use report::Summary;
use scrape::{Counts, Scraper};
use sink::Sink;

const RECORDS: u64 = 1_000_000;
const RECORDS_SINGLE: u64 = 200_000;
/// This share of the records is sent before those that are measured.
const WARM_UP_SHARE: u64 = 10;
/// How long after a measurement the broker may take to have exported something.
const EXPORT_DEADLINE: Duration = Duration::from_secs(10);
const EXPORT_POLL: Duration = Duration::from_millis(100);

/// What is compared, and on what.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Overhead {
    #[command(flatten)]
    load: Load,
    /// Rounds; each measures every mode twice, in one order and then in the opposite one
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    rounds: u32,
    /// When the brokers force records to the disk
    #[arg(long, value_enum, default_value_t = Sync::Interval, value_name = "WHEN")]
    sync: Sync,
    /// Collector that the brokers export to, such as http://localhost:4317. Without one this command takes the exports
    /// itself and throws them away
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Where the brokers' data directories are made, and removed afterwards [default: the system's directory for
    /// temporary files]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Another setting of all brokers, for example `--set server.worker_threads=1`
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

/// One measurement of one mode.
#[derive(Debug)]
struct Run {
    took: Duration,
    /// Nanoseconds.
    latency: Histogram<u64>,
    /// Processor time of the broker, if the system tells.
    processor: Option<Duration>,
    scrapes: u64,
    /// Spans that were exported, and that were dropped.
    spans: Counts,
}

impl Overhead {
    pub(super) fn threads(&self) -> usize {
        self.load.threads.max(1)
    }

    pub(super) async fn run(mut self, global: &Global) -> anyhow::Result<()> {
        self.check()?;
        self.load.records.get_or_insert(if self.load.single { RECORDS_SINGLE } else { RECORDS });
        let format = global.output;
        let global = global.clone();
        let mut work = tokio::spawn(async move { self.measure(&global).await });
        tokio::select! {
            summary = &mut work => summary??.print(format),
            signal = stopped() => {
                // Dropping the measurement ends its broker and removes what that has written.
                work.abort();
                let _ = work.await;
                signal?;
                bail!("stopped by a signal; nothing was measured to the end")
            }
        }
    }

    fn check(&self) -> Result<(), Usage> {
        self.load.check()?;
        if self.rounds == 0 {
            return Err(Usage("--rounds must be at least 1".to_owned()));
        }
        let decided = |set: &&String| mode::DECIDED.iter().any(|prefix| set.starts_with(prefix));
        match self.set.iter().find(decided) {
            Some(set) => Err(Usage(format!("--set {set}: this command decides that itself"))),
            None => Ok(()),
        }
    }

    async fn measure(self, global: &Global) -> anyhow::Result<Summary> {
        let (endpoint, _sink) = match &self.otlp_endpoint {
            Some(endpoint) => (endpoint.clone(), None),
            None => {
                let sink = Sink::start().await?;
                (sink.endpoint(), Some(sink))
            }
        };
        note("a run that does not count");
        self.run_mode(global, Mode::Off, &endpoint).await?;
        let mut rounds = Vec::new();
        for number in 1..=self.rounds {
            let mut round = MODES.map(|_| Vec::new());
            for at in (0..MODES.len()).chain((0..MODES.len()).rev()) {
                let mode = MODES[at];
                let run = self.run_mode(global, mode, &endpoint).await?;
                let speed = report::mb_per_s(&self.load, run.took);
                note(format_args!("round {number} of {}: {} {speed:.1} MB/s", self.rounds, mode.name()));
                round[at].push(run);
            }
            rounds.push(round);
        }
        Ok(Summary { load: self.load, sync: self.sync, rounds })
    }

    async fn run_mode(&self, global: &Global, mode: Mode, endpoint: &str) -> anyhow::Result<Run> {
        let parent = self.data_dir.clone().unwrap_or_else(std::env::temp_dir);
        let broker = Broker::start(&parent, &self.set, &mode.settings(self.sync, endpoint)).await?;
        let client =
            connect(&Global { broker: Brokers(vec![broker.grpc.clone()]), ..global.clone() }).await?;
        self.load.create_topic(&client, false).await?;
        let records = self.load.records.unwrap_or(RECORDS);
        let warm_up = Load { records: Some(records.div_ceil(WARM_UP_SHARE)), ..self.load.clone() };
        workload::produce(&client, &warm_up).await?;
        let scraper = mode.measures().then(|| Scraper::start(broker.http));
        let before = broker.processor_time();
        let measured = workload::produce(&client, &self.load).await?;
        let processor =
            broker.processor_time().zip(before).map(|(after, before)| after.saturating_sub(before));
        let scrapes = match scraper {
            Some(scraper) => scraper.stop().await?,
            None => 0,
        };
        let spans = self.exported(mode, &broker, endpoint).await?;
        let latency = measured.latency.context("the workload times records")?;
        Ok(Run { took: measured.took, latency, processor, scrapes, spans })
    }

    /// Makes sure that what the mode promises to export has found a taker, so that its cost is in the figures.
    async fn exported(&self, mode: Mode, broker: &Broker, endpoint: &str) -> anyhow::Result<Counts> {
        if !mode.measures() {
            return Ok(Counts::default());
        }
        let started = Instant::now();
        loop {
            let page = scrape::page(broker.http).await?;
            let (spans, metrics) = (page.counts(Signal::Traces), page.counts(Signal::Metrics));
            let missing = if metrics.exported == 0 {
                "metrics"
            } else if spans.exported == 0 && mode.traces_all() {
                "spans"
            } else {
                return Ok(spans);
            };
            if started.elapsed() > EXPORT_DEADLINE {
                bail!(
                    "the broker could not export {missing} to {endpoint}; is an OTLP/gRPC collector listening there? \
                     Without --otlp-endpoint this command is the collector itself"
                );
            }
            tokio::time::sleep(EXPORT_POLL).await;
        }
    }
}

/// Waits for a signal that ends the command.
async fn stopped() -> anyhow::Result<()> {
    let watch = |kind| signal(kind).context("signals cannot be watched");
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut terminate = watch(SignalKind::terminate())?;
    let mut hangup = watch(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}
