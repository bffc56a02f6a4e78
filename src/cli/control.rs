//! `streambus control`.

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Global;
use super::connect::connect;
use super::failure::Usage;
use super::output::{self, Format, line, table};
use crate::client::{ControlOutcome, OverrideTerms, Overrides, SamplingScope, TermsInForce};
use crate::units::HumanDuration;

/// Changes what brokers log and trace for a while, without a restart.
#[derive(Debug, Subcommand)]
pub(super) enum Control {
    /// The log filter
    #[command(subcommand)]
    Log(Log),
    /// The share of requests that are traced
    #[command(subcommand)]
    Sampling(Sampling),
}

/// The log filter.
#[derive(Debug, Subcommand)]
pub(super) enum Log {
    /// Show the filter of the configuration, and the one in force instead
    Show,
    /// Log by another filter for a while
    Set {
        /// A level such as debug, or directives such as info,streambus::raft=debug
        filter: String,
        #[command(flatten)]
        terms: Terms,
    },
    /// Log as configured again
    Clear {
        #[command(flatten)]
        order: Order,
    },
}

/// The share of traces.
#[derive(Debug, Subcommand)]
pub(super) enum Sampling {
    /// Show the share of the configuration, and those in force instead
    Show,
    /// Trace another share of requests for a while. Where a caller has decided, that counts
    Set {
        /// The share, from 0 to 1
        ratio: f64,
        /// Only of requests that produce to this topic
        #[arg(long)]
        topic: Option<String>,
        #[command(flatten)]
        terms: Terms,
    },
    /// Trace as configured again
    Clear {
        /// Only end what was set for this topic
        #[arg(long, conflicts_with = "all")]
        topic: Option<String>,
        /// End what was set for all requests and for every topic
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        order: Order,
    },
}

/// Terms of a change.
#[derive(Debug, Args)]
pub(super) struct Terms {
    /// For how long, from 1s to 24h
    #[arg(long = "for", value_name = "TIME")]
    duration: HumanDuration,
    #[command(flatten)]
    order: Order,
}

/// Who and why.
#[derive(Debug, Args)]
pub(super) struct Order {
    /// Why; kept in the brokers' audit log
    #[arg(long, default_value = "")]
    reason: String,
    /// Change only the broker that is called, not all brokers
    #[arg(long)]
    this_broker: bool,
}

impl Terms {
    fn terms(self) -> OverrideTerms {
        self.order.terms(self.duration.0)
    }
}

impl Order {
    fn terms(self, duration: std::time::Duration) -> OverrideTerms {
        let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
        OverrideTerms::new(duration).requested_by(user).reason(self.reason).only_this_broker(self.this_broker)
    }

    /// For what ends something.
    fn clearing(self) -> OverrideTerms {
        self.terms(std::time::Duration::ZERO)
    }
}

impl Control {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        // What needs no broker is checked before one is looked for.
        if let Control::Sampling(Sampling::Set { ratio, .. }) = &self
            && !(0.0..=1.0).contains(ratio)
        {
            return Err(Usage(format!("the share {ratio} is not from 0 to 1")).into());
        }
        let (admin, format) = (connect(global).await?.admin(), global.output);
        let scope = |topic: Option<String>| topic.map_or(SamplingScope::All, SamplingScope::Topic);
        match self {
            Control::Log(Log::Show) => show_log(&admin.overrides().await?, format),
            Control::Log(Log::Set { filter, terms }) => {
                let what = format!("logs by {filter}");
                print(&admin.set_log_filter(&filter, terms.terms()).await?, &what, format)
            }
            Control::Log(Log::Clear { order }) => {
                print(&admin.clear_log_filter(order.clearing()).await?, "logs as configured", format)
            }
            Control::Sampling(Sampling::Show) => show_sampling(&admin.overrides().await?, format),
            Control::Sampling(Sampling::Set { ratio, topic, terms }) => {
                let what = format!("traces {ratio} of {}", of(topic.as_deref()));
                let set = admin.set_sampling(scope(topic), ratio, terms.terms());
                print(&set.await?, &what, format)
            }
            Control::Sampling(Sampling::Clear { topic, all, order }) => {
                let what = format!("traces {} as configured", of(topic.as_deref()));
                let scope = (!all).then(|| scope(topic));
                print(&admin.clear_sampling(scope, order.clearing()).await?, &what, format)
            }
        }
    }
}

fn of(topic: Option<&str>) -> String {
    topic.map_or_else(|| "all requests".to_owned(), |topic| format!("what is produced to {topic}"))
}

fn print(outcomes: &[ControlOutcome], what: &str, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        let one = |one: &ControlOutcome| {
            let error = one.error.as_ref().map(ToString::to_string);
            json!({ "broker_id": one.broker_id, "error": error })
        };
        line(json!({ "outcomes": outcomes.iter().map(one).collect::<Value>() }))?;
    } else {
        for one in outcomes {
            match &one.error {
                None => line(format_args!("broker {} {what}", one.broker_id))?,
                Some(error) => line(format_args!("broker {}: {error}", one.broker_id))?,
            }
        }
    }
    let failed = outcomes.iter().filter(|one| one.error.is_some()).count();
    if failed > 0 {
        bail!("{failed} of {} brokers did not take the change", outcomes.len());
    }
    Ok(())
}

fn terms_json(terms: &TermsInForce) -> Value {
    json!({
        "requested_by": terms.requested_by,
        "reason": terms.reason,
        "set": terms.set.map(output::time),
        "expires": terms.expires.map(output::time),
    })
}

fn until(terms: &TermsInForce) -> String {
    terms.expires.map_or_else(|| "?".to_owned(), output::time)
}

fn show_log(overrides: &Overrides, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        let log = overrides.log_filter.as_ref();
        return line(json!({
            "broker_id": overrides.broker_id,
            "configured": overrides.configured_log_filter,
            "override": log.map(|log| json!({ "filter": log.filter, "terms": terms_json(&log.terms) })),
        }));
    }
    line(format_args!(
        "broker      {}\nconfigured  {}",
        overrides.broker_id, overrides.configured_log_filter
    ))?;
    match &overrides.log_filter {
        None => line("in force    the configuration"),
        Some(log) => line(format_args!(
            "in force    {}\nuntil       {}\nby          {}\nreason      {}",
            log.filter,
            until(&log.terms),
            log.terms.requested_by,
            if log.terms.reason.is_empty() { "-" } else { &log.terms.reason },
        )),
    }
}

fn show_sampling(overrides: &Overrides, format: Format) -> anyhow::Result<()> {
    let topic = |scope: &SamplingScope| match scope {
        SamplingScope::All => None,
        SamplingScope::Topic(topic) => Some(topic.clone()),
    };
    if format == Format::Json {
        let one = |one: &crate::client::SamplingOverride| json!({ "topic": topic(&one.scope), "ratio": one.ratio, "terms": terms_json(&one.terms) });
        return line(json!({
            "broker_id": overrides.broker_id,
            "configured": overrides.configured_ratio,
            "traces_enabled": overrides.traces_enabled,
            "traces_exported": overrides.traces_exported,
            "overrides": overrides.sampling.iter().map(one).collect::<Value>(),
        }));
    }
    let export = match (overrides.traces_enabled, overrides.traces_exported) {
        (false, _) => "off (telemetry.trace.enabled = false)",
        (true, false) => {
            "not exported: no collector is configured; made for traces of callers and for overrides only"
        }
        (true, true) => "exported",
    };
    line(format_args!(
        "broker      {}\ntraces      {export}\nconfigured  {}",
        overrides.broker_id, overrides.configured_ratio
    ))?;
    if overrides.sampling.is_empty() {
        return line("in force    the configuration");
    }
    let row = |one: &crate::client::SamplingOverride| {
        [
            topic(&one.scope).unwrap_or_else(|| "(all requests)".to_owned()),
            one.ratio.to_string(),
            until(&one.terms),
            one.terms.requested_by.clone(),
            one.terms.reason.clone(),
        ]
    };
    let rows: Vec<_> = overrides.sampling.iter().map(row).collect();
    line("")?;
    table(["TOPIC", "SHARE", "UNTIL", "BY", "REASON"], &rows)
}
