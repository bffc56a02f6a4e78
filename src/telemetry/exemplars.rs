//! Exemplars: for each bucket of a latency histogram, the last sampled request that fell into it.
//!
//! The SDK collects none, so they are kept here and joined by the OpenMetrics encoder. A request that is not
//! sampled never comes here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use opentelemetry::KeyValue;

use super::catalog::Row;
use super::instruments::lock;
use super::traceparent::TraceIds;

/// One measured value and the span during which it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Exemplar {
    pub(super) ids: TraceIds,
    pub(super) value: f64,
    pub(super) at: SystemTime,
}

/// The exemplars of one series: one slot per bucket, the last being that of +Inf.
#[derive(Debug)]
pub(super) struct Exemplars {
    bounds: &'static [f64],
    slots: Box<[Mutex<Option<Exemplar>>]>,
}

impl Exemplars {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Exemplars { bounds, slots: (0..=bounds.len()).map(|_| Mutex::new(None)).collect() }
    }

    /// Remembers `value` as the last of its bucket.
    pub(super) fn keep(&self, value: f64, ids: TraceIds) {
        // A bucket's upper bound belongs to it.
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        *lock(&self.slots[bucket]) = Some(Exemplar { ids, value, at: SystemTime::now() });
    }

    /// What bucket `index` holds.
    pub(super) fn get(&self, index: usize) -> Option<Exemplar> {
        self.slots.get(index).and_then(|slot| *lock(slot))
    }
}

/// The labels of a series as `/metrics` shows them, sorted.
pub(super) type Labels = Vec<(String, String)>;

/// How `/metrics` shows `attributes`.
pub(super) fn labels(attributes: &[KeyValue]) -> Labels {
    let mut labels: Labels = attributes
        .iter()
        .map(|attribute| (attribute.key.as_str().replace('.', "_"), attribute.value.to_string()))
        .collect();
    labels.sort();
    labels
}

/// All series that keep exemplars.
#[derive(Debug, Default)]
pub(super) struct Store(Mutex<BTreeMap<(&'static str, Labels), Arc<Exemplars>>>);

impl Store {
    /// The exemplars of the series of `row` with `attributes`.
    pub(super) fn add(&self, row: Row, attributes: &[KeyValue]) -> Arc<Exemplars> {
        lock(&self.0)
            .entry((row.prometheus, labels(attributes)))
            .or_insert_with(|| Arc::new(Exemplars::new(row.bounds)))
            .clone()
    }

    /// The exemplars of the series with this family name and these sorted labels.
    pub(super) fn find(&self, prometheus: &'static str, labels: Labels) -> Option<Arc<Exemplars>> {
        lock(&self.0).get(&(prometheus, labels)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(last: u8) -> TraceIds {
        TraceIds { trace: [last; 16], span: [last; 8] }
    }

    #[test]
    fn keeps_the_last_sampled_value_of_each_bucket() {
        let exemplars = Exemplars::new(&[1.0, 2.0]);
        exemplars.keep(1.0, ids(1));
        exemplars.keep(0.5, ids(2));
        exemplars.keep(1.5, ids(3));
        exemplars.keep(9.0, ids(4));
        let kept: Vec<_> =
            (0..4).map(|index| exemplars.get(index).map(|e| (e.value, e.ids.span[0]))).collect();
        assert_eq!(kept, [Some((0.5, 2)), Some((1.5, 3)), Some((9.0, 4)), None]);
    }
}
