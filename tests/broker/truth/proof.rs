//! Keeps account of which rows of the catalogue were proven, and where.

use std::collections::BTreeMap;

use streambus::telemetry::catalog::{DETAILED, DETAILED_IDENTIFIERS, IDENTIFIERS, ROWS, Row};

use crate::support::View;
use crate::support::view::{Labels, Source};

/// Both views of one moment: a scrape, and an export that was collected a little later.
pub struct Moment {
    /// What `/metrics` showed.
    pub scrape: View,
    /// What the collector got.
    pub export: View,
}

impl Moment {
    /// Both views.
    pub fn views(&self) -> [&View; 2] {
        [&self.scrape, &self.export]
    }
}

/// What a claim about a row comes to: nothing, or how it fails.
pub type Verdict = Result<(), String>;

/// The account.
#[derive(Default)]
pub struct Proof {
    /// Number of claims by row and source.
    claims: BTreeMap<&'static str, [u32; 2]>,
    failures: Vec<String>,
}

impl Proof {
    /// A claim about a row, as one view shows it.
    pub fn claim(&mut self, row: &Row, view: &View, verdict: Verdict) {
        assert!(ROWS.iter().any(|known| known.otel == row.otel), "{} is not in the catalogue", row.otel);
        self.claims.entry(row.otel).or_default()[view.source as usize] += 1;
        if let Err(failure) = verdict {
            self.failures.push(format!("{} ({:?}): {failure}", view.name(row), view.source));
        }
    }

    /// A claim about a row that only `/metrics/detailed` shows.
    pub fn detailed(&mut self, row: &Row, view: &View, labels: Labels<'_>, expected: f64) {
        assert!(DETAILED.iter().any(|known| known.otel == row.otel), "{} is not in the catalogue", row.otel);
        self.claims.entry(row.otel).or_default()[view.source as usize] += 1;
        if let Err(failure) = same(&format!("{labels:?}"), view.get(row, labels), Some(expected)) {
            self.failures.push(format!("{} (detailed): {failure}", row.prometheus));
        }
    }

    /// A claim that both views of a moment must bear out.
    pub fn at(&mut self, moment: &Moment, row: &Row, claim: impl Fn(&View) -> Verdict) {
        for view in moment.views() {
            self.claim(row, view, claim(view));
        }
    }

    /// A claim about what changed between two moments, in each view.
    pub fn between(&mut self, moments: [&Moment; 2], row: &Row, claim: impl Fn(&View, &View) -> Verdict) {
        let [before, after] = moments;
        for (before, after) in before.views().into_iter().zip(after.views()) {
            self.claim(row, after, claim(before, after));
        }
    }

    /// The series has exactly this value, in both views.
    pub fn equals(&mut self, moment: &Moment, row: &Row, labels: Labels<'_>, expected: f64) {
        self.at(moment, row, |view| {
            let found = view.get(row, labels);
            same(&format!("{labels:?}"), found, Some(expected))
        });
    }

    /// The series grew by exactly this much, in both views. One that does not exist yet counts as 0.
    pub fn grew(&mut self, moments: [&Moment; 2], row: &Row, labels: Labels<'_>, expected: f64) {
        self.between(moments, row, |before, after| {
            let grown = after.or_zero(row, labels) - before.or_zero(row, labels);
            same(&format!("growth of {labels:?}"), Some(grown), Some(expected))
        });
    }

    /// The histogram got exactly so many values more, in both views, over all its series.
    pub fn recorded(&mut self, moments: [&Moment; 2], row: &Row, expected: f64) {
        self.between(moments, row, |before, after| {
            same("recorded values", Some(after.count(row) - before.count(row)), Some(expected))
        });
    }

    /// Rows that no claim was made about in one of the views.
    fn unproven(&self) -> Vec<String> {
        let mut unproven = Vec::new();
        for (row, identifier) in ROWS.iter().zip(IDENTIFIERS) {
            let claims = self.claims.get(row.otel).copied().unwrap_or_default();
            for source in [Source::Prometheus, Source::Otlp] {
                if claims[source as usize] == 0 {
                    unproven.push(format!("{identifier} has no expectation ({source:?})"));
                }
            }
        }
        for (row, identifier) in DETAILED.iter().zip(DETAILED_IDENTIFIERS) {
            if self.claims.get(row.otel).is_none_or(|claims| claims[Source::Prometheus as usize] == 0) {
                unproven.push(format!("{identifier} has no expectation (detailed)"));
            }
        }
        unproven
    }

    /// Ends the account. Fails the test if a claim failed or a row has none.
    pub fn close(self) {
        let mut problems = self.unproven();
        let proven = ROWS.len()
            - ROWS
                .iter()
                .filter(|row| {
                    let names = [row.otel, row.prometheus];
                    self.claims.get(row.otel).is_none_or(|claims| claims.contains(&0))
                        || self
                            .failures
                            .iter()
                            .any(|failure| names.contains(&failure.split(' ').next().unwrap_or("")))
                })
                .count();
        let detailed = DETAILED.iter().filter(|row| self.claims.contains_key(row.otel)).count();
        println!("rows proven / rows: {proven} / {}, detailed: {detailed} / {}", ROWS.len(), DETAILED.len());
        problems.extend(self.failures);
        assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    }
}

/// Equal, but for the rounding of sums.
pub fn same(what: &str, found: Option<f64>, expected: Option<f64>) -> Verdict {
    let equal = match (found, expected) {
        (Some(found), Some(expected)) => (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
        (found, expected) => found == expected,
    };
    if equal { Ok(()) } else { Err(format!("{what}: expected {expected:?}, found {found:?}")) }
}

/// Between two bounds, both included.
pub fn within(what: &str, found: Option<f64>, least: f64, most: f64) -> Verdict {
    match found {
        Some(found) if found >= least && found <= most => Ok(()),
        found => Err(format!("{what}: expected {least} to {most}, found {found:?}")),
    }
}
