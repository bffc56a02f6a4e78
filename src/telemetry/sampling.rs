//! Which traces are recorded. Decided once per request, before anything is built.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

use super::instruments::Count;
use super::traceparent::TraceParent;

/// How traces are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Whether the caller's decision is followed where there is a caller.
    pub parent_based: bool,
    /// The share of traces that are recorded where this process decides, from 0 to 1.
    pub ratio: f64,
}

/// Marks a context in which the decision to record has been taken already.
#[derive(Debug)]
pub(super) struct Chosen;

impl Sampling {
    /// Nothing is recorded.
    pub const NEVER: Sampling = Sampling { parent_based: false, ratio: 0.0 };

    /// Takes the decision for a request.
    pub(super) fn chooses(&self, parent: Option<&TraceParent>) -> bool {
        match parent {
            Some(parent) if self.parent_based => parent.sampled,
            Some(parent) => self.below(u128::from_be_bytes(parent.ids.trace) as u64),
            None => self.ratio > 0.0 && self.below(rand::random()),
        }
    }

    /// Whether an evenly distributed number falls into the share. The same trace id falls the same way everywhere.
    fn below(&self, number: u64) -> bool {
        self.ratio >= 1.0 || (number >> 1) < (self.ratio.max(0.0) * (1_u64 << 63) as f64) as u64
    }
}

/// Takes decisions by rules that can be replaced while the process runs. Clones share them. A decision costs one more
/// load of a pointer.
#[derive(Clone, Debug)]
pub struct Sampler {
    configured: Sampling,
    rules: Arc<ArcSwap<Rules>>,
    limit: Option<Arc<Limit>>,
}

#[derive(Debug)]
struct Rules {
    default: Sampling,
    topics: BTreeMap<String, Sampling>,
}

impl From<Sampling> for Sampler {
    fn from(configured: Sampling) -> Self {
        Sampler::new(configured)
    }
}

impl Sampler {
    /// Decides as `configured`, until told otherwise.
    pub fn new(configured: Sampling) -> Self {
        let rules = Rules { default: configured, topics: BTreeMap::new() };
        Sampler { configured, rules: Arc::new(ArcSwap::from_pointee(rules)), limit: None }
    }

    /// Lets shares below 1 choose no more than `per_second`, and counts in `left_out` what that leaves out. Callers'
    /// decisions, and who asks for all, are not limited.
    pub(super) fn limited(self, per_second: NonZeroU32, left_out: Count) -> Self {
        let bucket = Bucket::new(per_second);
        Sampler { limit: Some(Arc::new(Limit { bucket, started: Instant::now(), left_out })), ..self }
    }

    /// What the configuration says.
    pub(super) fn configured(&self) -> Sampling {
        self.configured
    }

    /// Decides by other shares from now on: `default` if it is some, and those of topics.
    pub(super) fn replace<'a>(&self, default: Option<f64>, topics: impl Iterator<Item = (&'a str, f64)>) {
        let with = |ratio| Sampling { ratio, ..self.configured };
        let rules = Rules {
            default: default.map_or(self.configured, with),
            topics: topics.map(|(topic, ratio)| (topic.to_owned(), with(ratio))).collect(),
        };
        self.rules.store(Arc::new(rules));
    }

    /// Whether nothing is recorded, whatever is asked.
    pub(super) fn is_never(&self) -> bool {
        let rules = self.rules.load();
        rules.default == Sampling::NEVER && rules.topics.is_empty()
    }

    /// Takes the decision for a request.
    pub(super) fn chooses(&self, parent: Option<&TraceParent>) -> bool {
        self.decides(&self.rules.load().default, parent)
    }

    /// Takes the decision for a request that produces to a topic.
    pub(super) fn chooses_for(&self, topic: &str, parent: Option<&TraceParent>) -> bool {
        let rules = self.rules.load();
        // Most of the time there is no rule of a topic, and then no name is compared.
        let rule = if rules.topics.is_empty() { None } else { rules.topics.get(topic) };
        self.decides(rule.unwrap_or(&rules.default), parent)
    }

    fn decides(&self, rule: &Sampling, parent: Option<&TraceParent>) -> bool {
        let follows = rule.parent_based && parent.is_some();
        let chosen = rule.chooses(parent);
        match &self.limit {
            Some(limit) if chosen && !follows && rule.ratio < 1.0 => limit.lets(),
            _ => chosen,
        }
    }
}

/// How many requests may be chosen.
#[derive(Debug)]
struct Limit {
    bucket: Bucket,
    started: Instant,
    left_out: Count,
}

impl Limit {
    fn lets(&self) -> bool {
        let lets = self.bucket.take(self.started.elapsed());
        if !lets {
            self.left_out.add(1);
        }
        lets
    }
}

/// A token bucket that holds the tokens of one second and is full in the beginning, kept as the time for which tokens are
/// spent (the generic cell rate algorithm, ITU-T I.371).
#[derive(Debug)]
struct Bucket {
    /// Nanoseconds that one token takes to come.
    interval: u64,
    /// Nanoseconds, on the callers' clock plus a second.
    spent_until: AtomicU64,
}

impl Bucket {
    const SECOND: u64 = 1_000_000_000;

    fn new(per_second: NonZeroU32) -> Self {
        Bucket { interval: Self::SECOND / u64::from(per_second.get()), spent_until: AtomicU64::new(0) }
    }

    /// Takes a token, if there is one. `now` is on a clock that begins with the bucket.
    fn take(&self, now: Duration) -> bool {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX - Self::SECOND) + Self::SECOND;
        let spend = |until: u64| {
            let until = until.max(now - Self::SECOND) + self.interval;
            (until <= now).then_some(until)
        };
        self.spent_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

impl ShouldSample for Sampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        self.rules.load().default.should_sample(parent, trace, name, kind, attributes, links)
    }
}

impl ShouldSample for Sampling {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        _name: &str,
        _kind: &SpanKind,
        _attributes: &[KeyValue],
        _links: &[Link],
    ) -> SamplingResult {
        let span = parent.filter(|context| context.has_active_span()).map(|context| context.span());
        let sampled_by_parent =
            span.as_ref().map(|span| span.span_context()).filter(|context| context.is_valid());
        let record = match sampled_by_parent {
            _ if parent.is_some_and(|context| context.get::<Chosen>().is_some()) => true,
            Some(context) if self.parent_based => context.is_sampled(),
            _ => self.below(u128::from_be_bytes(trace.to_bytes()) as u64),
        };
        SamplingResult {
            decision: if record { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop },
            attributes: Vec::new(),
            trace_state: match sampled_by_parent {
                Some(context) => context.trace_state().clone(),
                None => TraceState::default(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::traceparent::TraceIds;

    fn parent(sampled: bool) -> TraceParent {
        TraceParent { ids: TraceIds { trace: [0xff; 16], span: [1; 8] }, sampled }
    }

    #[test]
    fn follows_the_caller_when_parent_based() {
        let never = Sampling { parent_based: true, ratio: 0.0 };
        let always = Sampling { parent_based: true, ratio: 1.0 };
        assert!(never.chooses(Some(&parent(true))));
        assert!(!always.chooses(Some(&parent(false))));
    }

    #[test]
    fn ignores_the_caller_when_not_parent_based() {
        let always = Sampling { parent_based: false, ratio: 1.0 };
        assert!(always.chooses(Some(&parent(false))));
        assert!(!Sampling::NEVER.chooses(Some(&parent(true))));
    }

    #[test]
    fn chooses_about_the_configured_share_of_requests_without_a_caller() {
        let sampling = Sampling { parent_based: true, ratio: 0.25 };
        let chosen = (0..20_000).filter(|_| sampling.chooses(None)).count();
        // Ten standard deviations around 5,000.
        assert!((4_400..5_600).contains(&chosen), "{chosen}");
    }

    #[test]
    fn a_rule_of_a_topic_counts_before_that_of_all() {
        let sampler = Sampler::new(Sampling { parent_based: true, ratio: 0.0 });
        assert!(!sampler.chooses(None) && !sampler.chooses_for("orders", None));
        sampler.replace(Some(1.0), [("quiet", 0.0)].into_iter());
        assert!(sampler.chooses(None) && sampler.chooses_for("orders", None));
        assert!(!sampler.chooses_for("quiet", None));
        assert!(sampler.chooses_for("quiet", Some(&parent(true))), "the caller's decision counts");
        sampler.replace(None, [("orders", 1.0)].into_iter());
        assert!(!sampler.chooses(None) && sampler.chooses_for("orders", None));
        sampler.replace(None, std::iter::empty());
        assert!(!sampler.chooses_for("orders", None));
    }

    #[test]
    fn a_bucket_holds_one_second_and_fills_evenly() {
        let bucket = Bucket::new(NonZeroU32::new(10).expect("not 0"));
        let taken = |millis: u64| (0..100).filter(|_| bucket.take(Duration::from_millis(millis))).count();
        assert_eq!([taken(0), taken(99), taken(100), taken(450), taken(10_000)], [10, 0, 1, 3, 10]);
    }

    #[test]
    fn a_share_is_limited_and_neither_callers_nor_all() {
        let left_out = Count::default();
        let limited = |ratio| {
            let sampler = Sampler::new(Sampling { parent_based: true, ratio });
            sampler.limited(NonZeroU32::MIN, left_out.clone())
        };
        let (share, all) = (limited(1.0 - f64::EPSILON), limited(1.0));
        let chosen = |sampler: &Sampler, parent| (0..50).filter(|_| sampler.chooses(parent)).count();
        let caller = parent(true);
        assert_eq!(chosen(&share, Some(&caller)), 50);
        assert_eq!(chosen(&all, None), 50);
        assert_eq!(left_out.get(), 0);
        // More than one only if this takes seconds.
        let chosen = chosen(&share, None);
        assert!((1..25).contains(&chosen), "{chosen}");
        assert_eq!(left_out.get(), 50 - chosen as u64);
    }

    #[test]
    fn what_was_off_can_be_switched_on() {
        let sampler = Sampler::new(Sampling::NEVER);
        assert!(sampler.is_never());
        sampler.replace(None, [("orders", 1.0)].into_iter());
        assert!(!sampler.is_never() && sampler.chooses_for("orders", None));
    }
}
