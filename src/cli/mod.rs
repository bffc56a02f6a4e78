//! The command line: one file per command.
//!
//! What a command answers goes to standard output, as text or with `-o json` as one JSON document on one line; everything
//! else goes to standard error. The exit code is 0 if the command did what it was told, 1 if it failed, and 2 if it was
//! told something that makes no sense. A reader that closes standard output ends a command without complaint.

mod bench;
mod cluster;
mod completions;
mod config;
mod connect;
mod consume;
mod control;
mod explain;
mod failure;
mod group;
mod http;
mod metrics;
mod observe;
mod output;
mod position;
mod produce;
mod serve;
mod top;
mod topic;

use std::future::Future;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::units::HumanDuration;

/// A message broker whose telemetry is part of its contract.
#[derive(Debug, Parser)]
#[command(name = "streambus", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Clone, Debug, Args)]
struct Global {
    /// The broker to talk to. Any broker of a cluster will do; of several, with commas between, the first that is reached
    #[arg(
        long,
        global = true,
        env = "STREAMBUS_BROKER",
        default_value = "localhost:9092",
        value_name = "HOST:PORT,...",
        value_parser = brokers,
        help_heading = "Global options"
    )]
    broker: Brokers,
    /// How long to wait for an answer, retries included
    #[arg(
        long,
        global = true,
        env = "STREAMBUS_TIMEOUT",
        default_value = "30s",
        value_name = "TIME",
        help_heading = "Global options"
    )]
    timeout: HumanDuration,
    /// How answers are printed
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    output: output::Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker until SIGTERM or Ctrl-C
    Serve(serve::Serve),
    /// Create, look at, change and delete topics
    #[command(subcommand)]
    Topic(topic::Topic),
    /// Send the lines of a file or of standard input as records
    Produce(produce::Produce),
    /// Print the records of a topic, alone or as a member of a group
    Consume(consume::Consume),
    /// Look at consumer groups, move their offsets, delete them
    #[command(subcommand)]
    Group(group::Group),
    /// Look at the cluster
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Watch a cluster: throughput, latency, lag, hot topics, health
    Top(top::Top),
    /// Tell what became of a record: who sent it, where it is, which groups got it
    Explain(explain::Explain),
    /// Change what brokers log and trace for a while, without a restart
    #[command(subcommand)]
    Control(control::Control),
    /// Measure a running broker, and print one line of JSON
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Look at the metrics that a broker exports
    #[command(subcommand)]
    Metrics(metrics::Metrics),
    /// Look at the configuration that `serve` would run with
    #[command(subcommand)]
    Config(config::Config),
    /// Print a script that completes this command in a shell
    Completions(completions::Completions),
}

/// Addresses of brokers; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Brokers(Vec<String>);

impl Brokers {
    fn first(&self) -> &str {
        &self.0[0]
    }
}

fn brokers(text: &str) -> Result<Brokers, String> {
    let addresses: Vec<_> = text.split(',').map(|address| address.trim().to_owned()).collect();
    match addresses.iter().find(|address| !is_host_and_port(address)) {
        Some(wrong) => Err(format!("`{wrong}` is not HOST:PORT, such as localhost:9092")),
        None => Ok(Brokers(addresses)),
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains([' ', '/']) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// Worker threads of a command that talks to a broker. The command itself runs on the main thread.
const CLIENT_THREADS: usize = 2;

/// Runs the command that this process was started with.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => match run(cli) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failure::tell(&error),
        },
        Err(error) => {
            // Help and version come this way too. Nobody may be reading.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::USAGE))
        }
    }
}

fn run(Cli { global, command }: Cli) -> anyhow::Result<()> {
    match command {
        Command::Serve(serve) => serve.run(),
        Command::Topic(topic) => as_client(topic.run(&global)),
        Command::Produce(produce) => as_client(produce.run(&global)),
        Command::Consume(consume) => as_client(consume.run(&global)),
        Command::Group(group) => as_client(group.run(&global)),
        Command::Cluster(cluster) => as_client(cluster.run(&global)),
        Command::Top(top) => as_client(top.run(&global)),
        Command::Explain(explain) => as_client(explain.run(&global)),
        Command::Control(control) => as_client(control.run(&global)),
        Command::Bench(bench) => on_runtime(bench.threads(), bench.run(&global)),
        Command::Metrics(metrics) => metrics.run(global.output),
        Command::Config(config) => config.run(global.output),
        Command::Completions(completions) => completions.run(),
    }
}

fn as_client(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    on_runtime(CLIENT_THREADS, command)
}

fn on_runtime(threads: usize, command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("streambus")
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_broker_needs_a_host_and_a_port() {
        for right in ["localhost:9092", "10.0.0.1:1", "[::1]:9092"] {
            assert!(brokers(right).is_ok(), "{right}");
        }
        for wrong in ["", "localhost", ":9092", "localhost:", "localhost:0", "localhost:70000", "http://b:1"]
        {
            assert!(brokers(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn of_several_brokers_the_wrong_one_is_named() {
        let several = brokers("a:1, b:2").expect("two");
        assert_eq!((several.first(), &several.0[1][..]), ("a:1", "b:2"));
        assert!(brokers("a:1,b").expect_err("no port").starts_with("`b` is not HOST:PORT"));
    }

    #[test]
    fn global_options_may_follow_the_command() {
        let cli = Cli::try_parse_from(["streambus", "topic", "list", "-o", "json", "--broker", "b:1"])
            .expect("parses");
        assert_eq!(cli.global.broker.first(), "b:1");
        assert_eq!(cli.global.output, output::Format::Json);
    }
}
