//! Looking closer at a running cluster.

mod control;
mod detailed;
mod explain;
mod silence;
mod top;
mod topic;
