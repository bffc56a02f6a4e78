//! Several brokers: how they become a cluster, who leads, and what a client sees of it.

mod failover;
mod membership;
mod repair;
mod retention;
mod serving;
mod starting;
mod status;
