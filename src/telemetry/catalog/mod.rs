//! The catalogue: every instrument of the process, once.
//!
//! Instruments, the names on `/metrics`, `docs/METRICS.md`, `docs/semconv/registry.yaml` and the tests' expectations all
//! come from [`ROWS`]. No other file spells a metric name: code refers to a row by its constant, such as
//! [`PRODUCE_LATENCY`]. [`DETAILED`] has what `/metrics/detailed` shows on demand.
//!
//! Over OTLP an instrument carries its dotted name and UCUM unit; `/metrics` shows the Prometheus name of the row,
//! which is a contract with dashboards and alerts and is therefore written down, not derived.

mod markdown;
mod rows;
mod semconv;
#[cfg(test)]
mod tests;

pub use markdown::markdown;
pub use rows::*;
pub use semconv::registry;

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives. Read from an atomic at collection.
    Counter,
    /// A level that is not meaningful to add up over brokers. Read at collection.
    Gauge,
    /// A level that is meaningful to add up over brokers; a gauge for Prometheus. Read at collection.
    UpDown,
    /// A distribution. Recorded when it happens.
    Histogram,
}

impl Kind {
    /// The type that `/metrics` declares.
    pub fn prometheus(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge | Kind::UpDown => "gauge",
            Kind::Histogram => "histogram",
        }
    }

    /// Whether the value is read at collection (true) or recorded when it happens (false).
    pub fn observed(self) -> bool {
        self != Kind::Histogram
    }
}

/// The part of the system that a metric speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// The broker as a whole.
    Broker,
    /// Records and bytes that pass through.
    Message,
    /// Topics and their partitions.
    Topic,
    /// Latencies.
    Performance,
    /// The disk and what is on it.
    Storage,
    /// Connections and calls.
    Network,
    /// Brokers among themselves.
    Cluster,
    /// Agreement.
    Raft,
    /// Consumer groups and their members.
    Group,
    /// The operating system's view.
    Process,
    /// The asynchronous runtime.
    Runtime,
    /// Telemetry about telemetry.
    Telemetry,
}

impl Family {
    /// All families in the order of the reference.
    pub const ALL: [Family; 12] = [
        Family::Broker,
        Family::Message,
        Family::Topic,
        Family::Performance,
        Family::Storage,
        Family::Network,
        Family::Cluster,
        Family::Raft,
        Family::Group,
        Family::Process,
        Family::Runtime,
        Family::Telemetry,
    ];

    /// The heading in the reference.
    pub fn title(self) -> &'static str {
        match self {
            Family::Broker => "Broker",
            Family::Message => "Messages",
            Family::Topic => "Topics",
            Family::Performance => "Performance",
            Family::Storage => "Storage",
            Family::Network => "Network",
            Family::Cluster => "Cluster",
            Family::Raft => "Raft",
            Family::Group => "Consumer groups",
            Family::Process => "Process",
            Family::Runtime => "Runtime",
            Family::Telemetry => "Telemetry",
        }
    }
}

/// One instrument.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The name over OTLP: dotted, without unit and without `total`.
    pub otel: &'static str,
    /// The family name on `/metrics`.
    pub prometheus: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// The UCUM unit; annotations such as `{message}` count things.
    pub unit: &'static str,
    /// All attribute keys it can carry.
    pub attributes: &'static [&'static str],
    /// Upper bounds of the buckets, in `unit`; empty unless a histogram.
    pub bounds: &'static [f64],
    /// What it is, in one sentence.
    pub help: &'static str,
    /// The source file, below `src/`, that creates and moves the instrument.
    pub recorded_in: &'static str,
    /// When it changes, in one sentence.
    pub moves: &'static str,
    /// The largest number of label sets it may have on one broker; more become one overflow series.
    pub series: usize,
    /// What it speaks about.
    pub family: Family,
}

impl Row {
    /// The instrument's name as the exporter sanitises it: dots become underscores.
    pub fn sanitized(&self) -> String {
        self.otel.replace('.', "_")
    }
}

/// The topic-labelled rows hold this many topics apart; traffic of further topics is summed in one overflow series.
pub const TOPICS_MAX: usize = 10_000;

/// The group-labelled rows hold this many consumer groups apart; further groups share overflow series.
pub const GROUPS_MAX: usize = 1_000;

/// The rows with a group and a topic hold this many pairs apart; further pairs are summed in one overflow series.
pub const GROUP_TOPICS_MAX: usize = 10_000;

/// Other brokers that a broker's rows tell apart.
pub const PEERS_MAX: usize = 100;

/// The lag rows hold this many partitions of groups apart: those with the largest lag, if there are more. The others
/// share one overflow series.
pub const LAGS_MAX: usize = 100_000;

/// One answer of `/metrics/detailed` shows at most so many partitions.
pub const DETAILED_PARTITIONS_MAX: usize = 10_000;

/// Members of a partition's group beside its leader that `/metrics/detailed` shows. While replicas move there are more
/// than the replication factor.
pub const DETAILED_REPLICAS_MAX: usize = 16;
