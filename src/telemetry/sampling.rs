//! Which traces are recorded. Decided once per request, before anything is built.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

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
        Sampler { configured, rules: Arc::new(ArcSwap::from_pointee(rules)) }
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
        self.rules.load().default.chooses(parent)
    }

    /// Takes the decision for a request that produces to a topic.
    pub(super) fn chooses_for(&self, topic: &str, parent: Option<&TraceParent>) -> bool {
        let rules = self.rules.load();
        // Most of the time there is no rule of a topic, and then no name is compared.
        let rule = if rules.topics.is_empty() { None } else { rules.topics.get(topic) };
        rule.unwrap_or(&rules.default).chooses(parent)
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
    fn what_was_off_can_be_switched_on() {
        let sampler = Sampler::new(Sampling::NEVER);
        assert!(sampler.is_never());
        sampler.replace(None, [("orders", 1.0)].into_iter());
        assert!(!sampler.is_never() && sampler.chooses_for("orders", None));
    }
}
