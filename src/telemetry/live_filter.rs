//! A log filter that can be replaced while the process runs.
//!
//! Each layer has a filter of its own, because a filter remembers which spans it cares about. An event pays for one more
//! load of a pointer, and only if `tracing` has not remembered already that nobody wants it.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::{Context, Filter};

use super::config::Error;
use super::instruments::lock;
use super::logs::{env_filter, feeds_back};

/// Events of this target are logged whatever the filter says: who changed what must not be lost in the change.
pub(super) const AUDIT: &str = "streambus::audit";

/// Events of this target are logged whatever the filter says: what everybody wants to know who starts a broker.
pub const NOTICE: &str = "streambus::notice";

fn is_always_logged(metadata: &Metadata<'_>) -> bool {
    [AUDIT, NOTICE].contains(&metadata.target())
}

/// The filters of all layers. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct LiveFilters(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    configured: String,
    layers: Mutex<Vec<Arc<ArcSwap<EnvFilter>>>>,
}

impl LiveFilters {
    /// Filters that begin with `configured`.
    ///
    /// # Errors
    /// It is malformed.
    pub(super) fn new(configured: &str) -> Result<Self, Error> {
        env_filter(configured)?;
        Ok(LiveFilters(Arc::new(Inner { configured: configured.to_owned(), layers: Mutex::default() })))
    }

    /// What the configuration says.
    pub(super) fn configured(&self) -> &str {
        &self.0.configured
    }

    /// A filter for one more layer that writes lines or counts.
    pub(super) fn layer(&self) -> LiveFilter {
        self.layer_for(false)
    }

    /// A filter for one more layer whose output is exported. It leaves out what exporting itself causes.
    pub(super) fn export_layer(&self) -> LiveFilter {
        self.layer_for(true)
    }

    fn layer_for(&self, exports: bool) -> LiveFilter {
        let filter = env_filter(&self.0.configured).expect("it was read before");
        let filter = Arc::new(ArcSwap::from_pointee(filter));
        lock(&self.0.layers).push(filter.clone());
        LiveFilter { filter, exports }
    }

    /// Filters by `filter` from now on.
    ///
    /// # Errors
    /// It is malformed; nothing has changed.
    pub(super) fn replace(&self, filter: &str) -> Result<(), Error> {
        env_filter(filter)?;
        for layer in lock(&self.0.layers).iter() {
            layer.store(Arc::new(env_filter(filter)?));
        }
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }
}

/// The filter of one layer.
#[derive(Debug)]
pub(super) struct LiveFilter {
    filter: Arc<ArcSwap<EnvFilter>>,
    /// This is part of the filter because one beside it would have to say how much it lets through, or nobody could skip
    /// anything in advance.
    exports: bool,
}

impl LiveFilter {
    fn feeds_back(&self, metadata: &Metadata<'_>) -> bool {
        self.exports && feeds_back(metadata.target())
    }
}

impl<S: Subscriber> Filter<S> for LiveFilter
where
    EnvFilter: Filter<S>,
{
    fn enabled(&self, metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool {
        if self.feeds_back(metadata) {
            return false;
        }
        is_always_logged(metadata) || Filter::<S>::enabled(&**self.filter.load(), metadata, context)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.feeds_back(metadata) {
            return Interest::never();
        }
        if is_always_logged(metadata) {
            return Interest::always();
        }
        Filter::<S>::callsite_enabled(&**self.filter.load(), metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let hint = Filter::<S>::max_level_hint(&**self.filter.load());
        hint.map(|level| level.max(LevelFilter::INFO))
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        Filter::<S>::on_new_span(&**self.filter.load(), attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        Filter::<S>::on_record(&**self.filter.load(), id, values, context);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        Filter::<S>::on_enter(&**self.filter.load(), id, context);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        Filter::<S>::on_exit(&**self.filter.load(), id, context);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        Filter::<S>::on_close(&**self.filter.load(), id, context);
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::Layer as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::telemetry::LogFormat;
    use crate::telemetry::logs::Lines;

    #[test]
    fn a_replaced_filter_counts_at_once_and_never_for_the_audit() {
        let filters = LiveFilters::new("info").expect("a filter");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = lines.clone();
        let output = move |line: &[u8]| lock(&seen).push(String::from_utf8_lossy(line).into_owned());
        let layer = Lines::new(LogFormat::Text, output).with_filter(filters.layer());
        let subscriber = tracing_subscriber::registry().with(layer);
        // One callsite each, so that what `tracing` remembers of them is tested too.
        let say = || {
            tracing::debug!("a detail");
            tracing::info!("news");
            tracing::info!(target: AUDIT, "a change");
        };
        let said = |lines: &Mutex<Vec<String>>| {
            let said: Vec<_> = lock(lines).drain(..).collect();
            ["a detail", "news", "a change"].map(|text| said.iter().any(|line| line.contains(text)))
        };
        tracing::subscriber::with_default(subscriber, || {
            say();
            assert_eq!(said(&lines), [false, true, true]);
            filters.replace("debug").expect("a filter");
            say();
            assert_eq!(said(&lines), [true, true, true]);
            filters.replace("off").expect("a filter");
            say();
            assert_eq!(said(&lines), [false, false, true]);
            assert!(filters.replace("info,streambus=loud").is_err());
            say();
            assert_eq!(said(&lines), [false, false, true], "a malformed filter changes nothing");
        });
    }
}
