//! Telemetry: metrics, traces and logs, and how they leave the process.
//!
//! * [`catalog`] has every instrument once; [`Metrics`] are the instruments in groups, with one verb per fact.
//! * [`Tracer`] and [`RequestTrace`] are the spans of requests.

pub mod catalog;
pub mod traceparent;

mod broker;
mod cluster;
mod consume;
mod exemplars;
mod exporting;
mod instruments;
mod metrics;
mod network;
mod process;
mod produce;
mod runtime;
mod sampling;
mod storage;
mod topics;
mod trace;

pub use broker::{BrokerLevels, HealthCheck, Status};
pub use cluster::{ClusterLevels, RaftLevels, TopicLevels};
pub use consume::{ConsumeLevels, ConsumeMetrics, FetchPhase, FetchPhases};
pub use exporting::{ExportingMetrics, LogLevel, Loss, Signal};
pub use instruments::Observer;
pub use metrics::{Groups, Metrics};
pub use network::{NetworkError, NetworkMetrics, Outcome, Protocol};
pub use produce::{BufferLevels, Phase, ProduceMetrics, ProducePhases};
pub use sampling::Sampling;
pub use storage::{StorageFailure, StorageLevels, StorageMetrics};
pub use topics::TopicMetrics;
pub use trace::{LINKS_MAX, RequestTrace, SampledRequest, Tracer, code_name, is_server_error};
pub use traceparent::{TraceIds, TraceParent};
