//! StreamBus: a message broker whose telemetry is part of its contract.

pub mod proto;

pub mod api;
pub mod broker;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod metadata;
pub mod partition;
pub mod raft;
pub mod record;
pub mod server;
pub mod storage;
pub mod task;
pub mod telemetry;
pub mod units;
