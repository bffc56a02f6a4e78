//! Looking closer at a running cluster.

mod control;
mod detailed;
mod explain;
mod rate;
mod reading;
mod sending;
mod silence;
mod top;
mod topic;
