//! StreamBus: a message broker whose telemetry is part of its contract.
//!
//! # The way of a record
//!
//! A client builds a batch ([`client`], with [`record::BatchBuilder`]) and sends it over gRPC. [`api`] takes it off the
//! socket as opaque bytes and hands it to [`broker`], the only door to everything below: it skims the bytes once
//! ([`record::skim()`]), finds the partition in the routing table of [`cluster`], and enqueues the batch at the
//! partition's appender. The appender ([`partition`]) makes one log entry of all batches that wait and proposes it to
//! the partition's Raft group ([`raft`]). The group's log is the record log: the entry is written once, by the one
//! committer thread of [`storage`], with one sync for everything that waits on the whole broker. Committed, it is
//! applied: the pure state machine ([`partition::machine`]) gives offsets, recognises duplicates and notes where the
//! batches lie. The batch is acknowledged, and readers are woken: they get the same bytes from memory or from disk.
//!
//! What topics and partitions there are is itself agreed on, by the control group; its state is [`metadata`]. The
//! reconciler of [`cluster`] makes the broker's partitions follow it. One broker is a cluster of one.
//!
//! [`telemetry`] owns every instrument, span and log format; the other layers tell it what happened, one verb per
//! fact. [`server`] composes a process of all this, [`config`] its settings, [`cli`] the command line.
//!
//! # Layers
//!
//! Lowest first. A module uses only modules before it in this list; a test holds that.
//!
//! `proto`, `clock`, `units` · `telemetry`, `record` · `task` · `metadata` · `coordination` · `storage` · `raft` ·
//! `partition` · `cluster` · `broker` · `api` · `client` (only `proto`, `clock`, `units`, `record`, `telemetry`,
//! `task`) · `config` · `server` · `cli`.

pub mod api;
pub mod broker;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod coordination;
pub mod metadata;
pub mod partition;
pub mod proto;
pub mod raft;
pub mod record;
pub mod server;
#[cfg(test)]
mod simulation;
pub mod storage;
pub mod task;
pub mod telemetry;
pub mod units;
