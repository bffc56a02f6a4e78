//! `streambus top`: what a cluster does, live.
//!
//! | file | idea |
//! |---|---|
//! | [`page`] | the text format of metrics, read |
//! | [`sample`] | pure: from two readings to rates, quantiles, lags |
//! | [`gather`] | reading all brokers |
//! | [`view`] | the screen and its keys |
//! | [`plain`], [`words`] | text for pipes; numbers as people read them |
//!
//! Everything shown comes from what brokers tell everybody: `/metrics` and `/metrics/detailed` of each broker, added up,
//! and the cluster's description and status over gRPC.

mod gather;
mod page;
mod plain;
mod sample;
mod view;
mod words;

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::{DefaultTerminal, try_init, try_restore};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::Global;
use super::connect::connect;
use super::failure::Usage;
use super::output::{Format, line};
use crate::client::Admin;
use crate::units::HumanDuration;
use sample::{Reading, Sample};
use view::{After, View};

/// How often the thread that reads keys looks whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// How long each broker has to tell its metrics. One that hangs must not hold up what is known of the others.
const PATIENCE: Duration = Duration::from_secs(2);
/// Events of the terminal that may wait.
const EVENTS_MAX: usize = 64;

/// Shows what a cluster does: records and bytes per second, the 99th percentile of each phase of a produce, lag of each
/// group in messages and seconds, the busiest topics and partitions, and what is wrong with the cluster.
///
/// Keys: q, Esc or Ctrl-C end; Tab and the left and right arrows choose a list; the up and down arrows, PgUp, PgDn, Home
/// and End scroll it. When standard output is no terminal, each sample is printed as text, or as JSON with -o json.
#[derive(Debug, Args)]
pub(super) struct Top {
    /// Time between two readings, at least 100ms. Rates are over this time
    #[arg(long, short, default_value = "2s", value_name = "TIME")]
    interval: HumanDuration,
    /// Print one sample, over one interval, and end
    #[arg(long)]
    once: bool,
}

impl Top {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let interval = self.interval.0;
        if interval < INTERVAL_MIN {
            return Err(Usage(format!("an interval of {interval:?} is below {INTERVAL_MIN:?}")).into());
        }
        let admin = connect(global).await?.admin();
        let source = Source { admin, interval, deadline: global.timeout.0.min(PATIENCE) };
        let live = !self.once && global.output == Format::Text && std::io::stdout().is_terminal();
        if live {
            return source.watch(global.broker.first()).await;
        }
        let mut before = source.read().await?;
        loop {
            tokio::time::sleep(interval).await;
            let after = source.read().await?;
            let sample = Sample::between(&before, &after);
            match global.output {
                Format::Json => line(sample.json())?,
                Format::Text => line(plain::text(&sample))?,
            }
            if self.once {
                return Ok(());
            }
            before = after;
        }
    }
}

/// Where samples come from.
struct Source {
    admin: Admin,
    interval: Duration,
    deadline: Duration,
}

impl Source {
    async fn read(&self) -> anyhow::Result<Reading> {
        gather::read(&self.admin, self.deadline).await
    }

    /// Shows the cluster until a key ends it.
    async fn watch(&self, broker: &str) -> anyhow::Result<()> {
        let mut terminal = try_init().context("the terminal cannot be used")?;
        let result = self.run(&mut terminal, broker).await;
        try_restore().context("the terminal cannot be restored")?;
        result
    }

    async fn run(&self, terminal: &mut DefaultTerminal, broker: &str) -> anyhow::Result<()> {
        let (sender, mut events) = mpsc::channel(EVENTS_MAX);
        // A thread of its own: reading a terminal blocks. It ends when nobody receives any more.
        let reader = std::thread::spawn(move || read_events(&sender));
        let mut view = View::new(broker);
        let mut before: Option<Reading> = None;
        let mut next = Instant::now();
        let ended = 'watch: loop {
            if let Err(error) = terminal.draw(|frame| view.draw(frame)) {
                break Err(error).context("the terminal cannot be drawn");
            }
            let due = next;
            let reading = async {
                sleep_until(due).await;
                self.read().await
            };
            tokio::pin!(reading);
            let read = loop {
                tokio::select! {
                    read = &mut reading => break read,
                    event = events.recv() => match event {
                        Some(Event::Key(key)) if key.kind != KeyEventKind::Release => match view.key(key) {
                            After::Quit => break 'watch Ok(()),
                            After::Draw => {}
                            After::Ignore => continue,
                        },
                        Some(_) => {}
                        None => break 'watch Err(anyhow::anyhow!("the terminal cannot be read any more")),
                    },
                }
                if let Err(error) = terminal.draw(|frame| view.draw(frame)) {
                    break 'watch Err(error).context("the terminal cannot be drawn");
                }
            };
            next = Instant::now() + self.interval;
            match read {
                Ok(after) => {
                    if let Some(before) = &before {
                        view.show(Sample::between(before, &after));
                    }
                    before = Some(after);
                }
                Err(error) => view.fail(format!("{error:#}")),
            }
        };
        drop(events);
        // It looks at least every `LOOK_EVERY`.
        let _ = reader.join();
        ended
    }
}

/// Reads events of the terminal until nobody receives them or it cannot be read.
fn read_events(events: &mpsc::Sender<Event>) {
    while !events.is_closed() {
        match event::poll(LOOK_EVERY) {
            Ok(false) => {}
            Ok(true) => {
                let Ok(event) = event::read() else { return };
                if events.blocking_send(event).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
