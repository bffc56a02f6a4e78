//! The interface of [base2histogram] as far as openraft uses it, without the histograms.
//!
//! openraft keeps 16 histograms for every Raft group: how many entries it applied at once, how many messages it
//! handled in one turn, and the like. They can be read only if openraft is built with its feature `runtime-stats`,
//! which StreamBus does not turn on, because it has metrics of its own; yet they are made and counted in all the same. Each takes 2 KiB, so
//! a group without a record held 35 KiB of them, and the first one of a process fills tables of 26 MiB for every resolution
//! that the crate knows, of which openraft uses the smallest. That was more than half of what an idle broker held.
//!
//! So here a histogram takes no memory and forgets what it is told. Everything else about openraft is as published.
//! Whoever wants to read `runtime-stats` removes the line `[patch.crates-io]` of the broker's `Cargo.toml`; nothing else
//! depends on it.
//!
//! [base2histogram]: https://crates.io/crates/base2histogram/0.2.3

use std::fmt;
use std::marker::PhantomData;

/// A histogram that forgets what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()>(PhantomData<T>);

impl<T> Histogram<T> {
    /// A histogram.
    #[must_use]
    pub const fn new() -> Self {
        Histogram(PhantomData)
    }

    /// Forgets a value.
    pub fn record(&mut self, _: u64) {}

    /// Forgets a value that was seen several times.
    pub fn record_n(&mut self, _: u64, _: u64) {}

    /// What is known of no values.
    #[must_use]
    pub const fn percentile_stats(&self) -> PercentileStats {
        PercentileStats { samples: 0, p0_1: 0, p1: 0, p5: 0, p10: 0, p50: 0, p90: 0, p99: 0, p99_9: 0 }
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Values below which a share of all values lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say which share, in percent")]
pub struct PercentileStats {
    /// How many values there were.
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[samples: 0]")
    }
}

/// A drawing of histograms, which is empty.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart;

impl AsciiChart {
    /// A drawing of nothing.
    #[must_use]
    pub const fn new() -> Self {
        AsciiChart
    }

    /// The same drawing.
    #[must_use]
    #[allow(clippy::should_implement_trait, reason = "the name is openraft's")]
    pub fn add<T>(self, _: impl fmt::Display, _: Histogram<T>) -> Self {
        self
    }

    /// The same drawing.
    #[must_use]
    pub const fn detailed(&self) -> &str {
        ""
    }
}
