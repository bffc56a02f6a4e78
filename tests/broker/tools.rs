//! Looking closer at a running cluster.

mod control;
mod detailed;
mod explain;
mod top;
mod topic;
