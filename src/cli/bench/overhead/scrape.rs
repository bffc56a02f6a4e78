//! Reading a broker's metrics, as a scraper does.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::cli::http;
use crate::telemetry::{Signal, catalog};

const INTERVAL: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);

/// What became of the items of a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) exported: u64,
    pub(super) dropped: u64,
}

/// Scrapes once a second. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Scraper {
    stop: CancellationToken,
    scraping: AbortOnDropHandle<anyhow::Result<u64>>,
}

impl Scraper {
    pub(super) fn start(http: SocketAddr) -> Scraper {
        let stop = CancellationToken::new();
        let scraping = AbortOnDropHandle::new(tokio::spawn(scrape(http, stop.clone())));
        Scraper { stop, scraping }
    }

    /// Stops and gives the number of scrapes.
    pub(super) async fn stop(self) -> anyhow::Result<u64> {
        self.stop.cancel();
        self.scraping.await?
    }
}

async fn scrape(http: SocketAddr, stop: CancellationToken) -> anyhow::Result<u64> {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut scrapes = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(scrapes),
            _ = ticks.tick() => {}
        }
        page(http).await?;
        scrapes += 1;
    }
}

/// The answer to a scrape.
#[derive(Debug)]
pub(super) struct Page(String);

/// Scrapes once.
pub(super) async fn page(broker: SocketAddr) -> anyhow::Result<Page> {
    Ok(Page(http::get(&broker.to_string(), "/metrics", DEADLINE).await?))
}

impl Page {
    pub(super) fn counts(&self, signal: Signal) -> Counts {
        let label = format!("signal=\"{}\"", signal.as_str());
        let sum = |name: &str| {
            let series = self.0.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
            let values = series.filter_map(|line| line.split_once('}'));
            let matching = values.filter(|(labels, _)| labels.split(',').any(|pair| pair == label));
            matching.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).sum()
        };
        Counts {
            exported: sum(catalog::TELEMETRY_EXPORTED.prometheus),
            dropped: sum(catalog::TELEMETRY_DROPPED.prometheus),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_summed_over_the_other_labels() {
        let (exported, dropped) =
            (catalog::TELEMETRY_EXPORTED.prometheus, catalog::TELEMETRY_DROPPED.prometheus);
        let text = format!(
            "# TYPE {exported} counter\n\
             {exported}{{signal=\"traces\"}} 7\n\
             {exported}{{signal=\"metrics\"}} 100\n\
             {exported}_more{{signal=\"traces\"}} 1000\n\
             {dropped}{{reason=\"queue_full\",signal=\"traces\"}} 2\n\
             {dropped}{{reason=\"export_failed\",signal=\"traces\"}} 3\n"
        );
        assert_eq!(Page(text).counts(Signal::Traces), Counts { exported: 7, dropped: 5 });
    }
}
