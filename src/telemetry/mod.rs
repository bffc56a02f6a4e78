//! Telemetry: metrics, traces and logs, and how they leave the process.
//!
//! * [`catalog`] has every instrument once. [`Metrics`] are the instruments in groups, with one verb per fact; owners
//!   of levels register an [`Observer`].
//! * [`Tracer`] and [`RequestTrace`] are the spans of requests; a request that is not sampled pays almost nothing.
//!   `tracing` spans are for background work and administration only.
//! * [`Control`] changes the log filter and the sampling of traces for a while, without a restart.
//! * [`Telemetry`] puts it together: [`Telemetry::install`], [`Telemetry::scrape`], [`Telemetry::shutdown`].
//!
//! Invariants:
//! - Exporting happens on a thread of its own, writing log lines on another. No request waits for them, and every
//!   queue to them is bounded.
//! - Nothing is global but the subscriber of `tracing` and the writer of its lines; providers are passed by handle.
//! - `/metrics` and OTLP read the same instruments.

pub mod catalog;
pub mod traceparent;

mod broker;
mod cluster;
mod config;
mod consume;
mod control;
mod detailed;
mod exemplars;
mod export;
mod exporting;
mod groups;
mod histograms;
mod install;
mod instruments;
mod live_filter;
mod log_writer;
mod logs;
mod metric_export;
mod metrics;
mod negotiation;
mod network;
mod openmetrics;
mod pipeline;
mod process;
mod produce;
mod resource;
mod route;
mod runtime;
mod sampling;
mod storage;
#[cfg(test)]
mod tests;
mod tls;
mod topics;
mod trace;
mod unnamed;

pub use broker::{BrokerLevels, HealthCheck, Status};
pub use cluster::{ClusterLevels, PeerLevels, RaftLevels, TopicLevels};
pub use config::{
    Compression, Config, Error, LogConfig, LogFormat, MetricsConfig, OtlpConfig, SignalConfig, TraceConfig,
};
pub use consume::{ConsumeLevels, ConsumeMetrics, FetchPhase, FetchPhases};
pub use control::{
    Change, Control, ControlMetrics, LogOverride, Override, OverrideError, OverrideKind, SamplingOverride,
};
pub use detailed::{DetailedFamilies, PartitionLevels};
pub use exporting::{ExportingMetrics, LogLevel, Loss, Signal};
pub use groups::{
    AckKind, CommitOutcome, ConsumerGroups, DeliveryStage, GroupLag, GroupLevels, GroupMetrics,
    RebalanceCause,
};
pub use install::{MetricsOff, Scrape, Telemetry};
pub use instruments::Observer;
pub use live_filter::NOTICE;
pub use log_writer::finish_log;
pub use metrics::{Groups, Metrics};
pub use negotiation::Format;
pub use network::{NetworkError, NetworkMetrics, Outcome, Protocol};
pub use produce::{BufferLevels, Phase, ProduceMetrics, ProducePhases};
pub use resource::Identity;
pub use route::Route;
pub use sampling::{Sampler, Sampling};
pub use storage::{StorageFailure, StorageLevels, StorageMetrics};
pub use topics::TopicMetrics;
pub use trace::{
    LINKS_MAX, RequestTrace, SampledRequest, Tracer, code_name, is_server_error, replication_of,
};
pub use traceparent::{TraceIds, TraceParent};
