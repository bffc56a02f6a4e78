//! Settings of telemetry that are changed at run time, for a while.
//!
//! Whoever changes one says for how long. Until then the change takes the place of the configuration; [`Control::expire`]
//! ends what is over. Logging and sampling read the result through a pointer that is swapped, so they pay nothing for it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use super::catalog;
use super::instruments::{Instruments, Label, label, lock};
use super::live_filter::LiveFilters;
use super::metrics::Metrics;
use super::sampling::Sampler;

/// Topics with a share of traces of their own.
const TOPICS_MAX: usize = 1_000;

label! {
    /// What is changed.
    OverrideKind, "kind" {
        /// The log filter.
        Log = "log",
        /// A share of traces.
        Sampling = "sampling",
    }
}

/// The metric of overrides.
#[derive(Debug)]
pub struct ControlMetrics(Arc<[AtomicU64; 2]>);

impl ControlMetrics {
    pub(super) fn new(instruments: &Instruments) -> Self {
        let active: Arc<[AtomicU64; 2]> = Arc::default();
        let series: Vec<_> =
            OverrideKind::all().into_iter().map(|kind| (kind.index(), kind.attributes())).collect();
        let read = active.clone();
        instruments.integers(catalog::CONTROL_OVERRIDES, move |sink| {
            for (index, attributes) in &series {
                sink(read[*index].load(Ordering::Relaxed), attributes);
            }
        });
        ControlMetrics(active)
    }

    fn set(&self, kind: OverrideKind, count: usize) {
        self.0[kind.index()].store(count as u64, Ordering::Relaxed);
    }
}

/// Who changed something, why, and until when it is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Who.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
    /// Since when.
    pub set_at: SystemTime,
    /// Until when.
    pub expires_at: SystemTime,
}

/// A log filter that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOverride {
    /// The filter.
    pub filter: String,
    /// By whom, until when.
    pub terms: Override,
}

/// A share of traces that is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOverride {
    /// Of requests that produce to this topic; of all requests if there is none.
    pub topic: Option<String>,
    /// The share.
    pub ratio: f64,
    /// By whom, until when.
    pub terms: Override,
}

/// Something that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What.
    pub kind: OverrideKind,
    /// For which topic only, if it is that.
    pub topic: Option<String>,
    /// What was in force before.
    pub old: String,
    /// What is in force now.
    pub new: String,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OverrideError {
    /// The filter is empty or malformed.
    #[error("{0}")]
    Filter(String),
    /// The share is not from 0 to 1.
    #[error("{0} is not from 0 to 1")]
    Ratio(f64),
    /// No traces are made.
    #[error(
        "this broker makes no traces (telemetry.trace.enabled = false), so there is no share of them to change"
    )]
    TracesOff,
    /// There are too many topics with a share of their own.
    #[error("{TOPICS_MAX} topics have a share of their own already: clear some first")]
    TooManyTopics,
}

/// See the module. Clones share it.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    filters: LiveFilters,
    sampler: Sampler,
    traces_enabled: bool,
    traces_exported: bool,
    metrics: Metrics,
    active: Mutex<Active>,
}

#[derive(Default)]
struct Active {
    log: Option<LogOverride>,
    /// By topic; that of all requests has none.
    sampling: BTreeMap<Option<String>, SamplingOverride>,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Control")
    }
}

impl Control {
    pub(super) fn new(
        filters: LiveFilters,
        sampler: Sampler,
        traces_enabled: bool,
        traces_exported: bool,
        metrics: &Metrics,
    ) -> Self {
        let active = Mutex::default();
        let metrics = metrics.clone();
        Control(Arc::new(Inner { filters, sampler, traces_enabled, traces_exported, metrics, active }))
    }

    /// The log filter of the configuration, and what is in force instead.
    pub fn log(&self) -> (&str, Option<LogOverride>) {
        (self.0.filters.configured(), lock(&self.0.active).log.clone())
    }

    /// The share of traces of the configuration, and what is in force instead: of all requests first, then by topic.
    pub fn sampling(&self) -> (f64, Vec<SamplingOverride>) {
        let active = lock(&self.0.active);
        (self.0.sampler.configured().ratio, active.sampling.values().cloned().collect())
    }

    /// Whether there are traces at all.
    pub fn traces_enabled(&self) -> bool {
        self.0.traces_enabled
    }

    /// Whether traces are exported.
    pub fn traces_exported(&self) -> bool {
        self.0.traces_exported
    }

    /// Logs by `filter` until the terms are over.
    ///
    /// # Errors
    /// It is empty or malformed.
    pub fn set_log(&self, filter: &str, terms: Override) -> Result<Change, OverrideError> {
        if filter.trim().is_empty() {
            return Err(OverrideError::Filter(
                "is empty: write a level such as debug, or directives".to_owned(),
            ));
        }
        let mut active = lock(&self.0.active);
        self.0.filters.replace(filter).map_err(|error| OverrideError::Filter(error.in_full()))?;
        let old = active.log.replace(LogOverride { filter: filter.to_owned(), terms });
        self.0.metrics.control.set(OverrideKind::Log, 1);
        let old = old.map_or_else(|| self.0.filters.configured().to_owned(), |old| old.filter);
        Ok(Change { kind: OverrideKind::Log, topic: None, old, new: filter.to_owned() })
    }

    /// Logs as configured again. None if nothing else was in force.
    pub fn clear_log(&self) -> Option<Change> {
        let mut active = lock(&self.0.active);
        let old = active.log.take()?;
        Some(self.log_ended(old))
    }

    fn log_ended(&self, old: LogOverride) -> Change {
        let configured = self.0.filters.configured();
        self.0.filters.replace(configured).expect("it was in force before");
        self.0.metrics.control.set(OverrideKind::Log, 0);
        Change { kind: OverrideKind::Log, topic: None, old: old.filter, new: configured.to_owned() }
    }

    /// Traces this share of the requests without a caller's decision that produce to `topic`, or of all, until the terms
    /// are over.
    ///
    /// # Errors
    /// The share is none, traces are off, or too many topics have a share of their own.
    pub fn set_sampling(
        &self,
        topic: Option<String>,
        ratio: f64,
        terms: Override,
    ) -> Result<Change, OverrideError> {
        if !(0.0..=1.0).contains(&ratio) {
            return Err(OverrideError::Ratio(ratio));
        }
        if !self.0.traces_enabled {
            return Err(OverrideError::TracesOff);
        }
        let mut active = lock(&self.0.active);
        let topics = active.sampling.keys().flatten().count();
        if topic.is_some() && topics >= TOPICS_MAX && !active.sampling.contains_key(&topic) {
            return Err(OverrideError::TooManyTopics);
        }
        let old = self.ratio_of(&active, topic.as_ref());
        active.sampling.insert(topic.clone(), SamplingOverride { topic: topic.clone(), ratio, terms });
        self.apply(&active);
        Ok(Change { kind: OverrideKind::Sampling, topic, old: old.to_string(), new: ratio.to_string() })
    }

    /// Ends the override of a topic, or that of all requests. None if there is none.
    pub fn clear_sampling(&self, topic: Option<&str>) -> Option<Change> {
        let mut active = lock(&self.0.active);
        let old = active.sampling.remove(&topic.map(str::to_owned))?;
        self.apply(&active);
        Some(self.sampling_ended(&active, old))
    }

    /// Ends every override of a share of traces.
    pub fn clear_all_sampling(&self) -> Vec<Change> {
        let mut active = lock(&self.0.active);
        let ended = std::mem::take(&mut active.sampling);
        self.apply(&active);
        ended.into_values().map(|old| self.sampling_ended(&active, old)).collect()
    }

    fn sampling_ended(&self, active: &Active, old: SamplingOverride) -> Change {
        let new = self.ratio_of(active, old.topic.as_ref()).to_string();
        Change { kind: OverrideKind::Sampling, topic: old.topic, old: old.ratio.to_string(), new }
    }

    /// What is in force for a topic, or for all requests.
    fn ratio_of(&self, active: &Active, topic: Option<&String>) -> f64 {
        let own = active.sampling.get(&topic.cloned());
        let found = own.or_else(|| active.sampling.get(&None));
        found.map_or_else(|| self.0.sampler.configured().ratio, |found| found.ratio)
    }

    fn apply(&self, active: &Active) {
        let default = active.sampling.get(&None).map(|all| all.ratio);
        let topics = active.sampling.values().filter_map(|one| Some((one.topic.as_deref()?, one.ratio)));
        self.0.sampler.replace(default, topics);
        self.0.metrics.control.set(OverrideKind::Sampling, active.sampling.len());
    }

    /// When the next override ends.
    pub fn next_expiry(&self) -> Option<SystemTime> {
        let active = lock(&self.0.active);
        let log = active.log.iter().map(|log| log.terms.expires_at);
        log.chain(active.sampling.values().map(|one| one.terms.expires_at)).min()
    }

    /// Ends what is over at `now`, and gives what that changed with its terms.
    pub fn expire(&self, now: SystemTime) -> Vec<(Change, Override)> {
        let mut active = lock(&self.0.active);
        let mut ended = Vec::new();
        if let Some(log) = active.log.take_if(|log| log.terms.expires_at <= now) {
            let terms = log.terms.clone();
            ended.push((self.log_ended(log), terms));
        }
        let over: Vec<_> = active
            .sampling
            .iter()
            .filter(|(_, one)| one.terms.expires_at <= now)
            .map(|(key, _)| key.clone())
            .collect();
        let over: Vec<_> = over.iter().filter_map(|key| active.sampling.remove(key)).collect();
        if !over.is_empty() {
            self.apply(&active);
        }
        for old in over {
            let terms = old.terms.clone();
            ended.push((self.sampling_ended(&active, old), terms));
        }
        ended
    }

    /// A note for the audit, which no filter suppresses.
    pub fn audit(action: &'static str, change: &Change, by: &str, reason: &str, expires: Option<SystemTime>) {
        tracing::info!(
            name: "control.changed",
            target: super::live_filter::AUDIT,
            action,
            setting = change.kind.as_str(),
            topic = change.topic.as_deref().unwrap_or_default(),
            old = %change.old,
            new = %change.new,
            by,
            reason,
            expires = expires.map(crate::units::rfc3339_seconds).unwrap_or_default(),
            "a setting of telemetry was changed at run time"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::Sampling;

    fn control(traces_enabled: bool) -> (Control, Sampler) {
        let sampler = Sampler::new(Sampling { parent_based: true, ratio: 0.0 });
        let filters = LiveFilters::new("info").expect("a filter");
        (Control::new(filters, sampler.clone(), traces_enabled, false, &Metrics::detached()), sampler)
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn until(second: u64) -> Override {
        Override { by: "ann".to_owned(), reason: String::new(), set_at: at(0), expires_at: at(second) }
    }

    #[test]
    fn a_log_filter_is_in_force_until_it_is_cleared_or_over() {
        let (control, _) = control(true);
        let set = control.set_log("debug", until(60)).expect("a filter");
        assert_eq!((set.old.as_str(), set.new.as_str()), ("info", "debug"));
        assert_eq!(control.next_expiry(), Some(at(60)));
        assert_eq!(control.expire(at(59)), []);
        let again = control.set_log("trace", until(90)).expect("a filter");
        assert_eq!(again.old, "debug");
        let ended = control.expire(at(90));
        assert_eq!((ended.len(), ended[0].0.old.as_str(), ended[0].0.new.as_str()), (1, "trace", "info"));
        assert_eq!((control.log().1, control.clear_log(), control.next_expiry()), (None, None, None));
    }

    #[test]
    fn shares_of_topics_and_of_all_end_each_at_its_time() {
        let (control, sampler) = control(true);
        control.set_sampling(None, 1.0, until(10)).expect("a share");
        let set = control.set_sampling(Some("quiet".to_owned()), 0.0, until(20)).expect("a share");
        assert_eq!((set.old.as_str(), set.new.as_str()), ("1", "0"));
        assert!(sampler.chooses_for("orders", None) && !sampler.chooses_for("quiet", None));
        let ended = control.expire(at(10));
        assert_eq!((ended.len(), &ended[0].0.topic), (1, &None));
        assert!(!sampler.chooses_for("orders", None));
        assert_eq!(control.sampling().1.len(), 1);
        assert_eq!(control.clear_all_sampling()[0].new, "0");
        assert_eq!(control.clear_sampling(Some("quiet")), None);
    }

    #[test]
    fn refuses_what_makes_no_sense_and_changes_nothing() {
        let (control, sampler) = control(true);
        assert!(matches!(control.set_log("info,a=loud", until(1)), Err(OverrideError::Filter(_))));
        assert!(matches!(control.set_log("  ", until(1)), Err(OverrideError::Filter(_))));
        for ratio in [-0.1, 1.1, f64::NAN] {
            assert!(matches!(control.set_sampling(None, ratio, until(1)), Err(OverrideError::Ratio(_))));
        }
        assert!(control.next_expiry().is_none() && !sampler.chooses(None));
        let (off, _) = self::control(false);
        assert!(matches!(off.set_sampling(None, 1.0, until(1)), Err(OverrideError::TracesOff)));
    }

    #[test]
    fn the_number_of_topics_is_bounded() {
        let (control, _) = control(true);
        let set = |topic: String| control.set_sampling(Some(topic), 0.5, until(1));
        control.set_sampling(None, 0.5, until(1)).expect("a share");
        (0..TOPICS_MAX).for_each(|number| drop(set(format!("t{number}")).expect("room")));
        assert!(matches!(set("one-more".to_owned()), Err(OverrideError::TooManyTopics)));
        set("t0".to_owned()).expect("it has a place");
    }
}
