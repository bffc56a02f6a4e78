//! Replicated groups: agreement on one log per group, a state machine fed by it, and nothing else.
//!
//! A [`Group`] is a handle to one replica. Proposals are enqueued in call order and resolve when their entry
//! is applied on this node. The log is kept by [`crate::storage`]; the entries that are appended but not yet
//! applied are also held in memory, so applying never reads the disk. A checkpoint of the machine's state is
//! written every so often; the newest checkpoint at or below the log start is the group's snapshot, so a
//! lagging follower never skips a retained entry.
//!
//! The agreement protocol is openraft's. It is named in this folder only, and what is on disk or on the wire
//! is encoded here, never by it.
//!
//! | file | idea |
//! |---|---|
//! | `machine` | what a state machine must do |
//! | `group` | the handle: open, bootstrap, propose, purge, shut down |
//! | `proposal` | the future of one proposal, and its timing |
//! | `status` | what is known about the replica from outside |
//! | `shared` | what log store, state machine and handle share: tail, marks, first failure |
//! | `log_store` | openraft's log trait over [`crate::storage`] |
//! | `apply` | openraft's state machine trait over a [`Machine`] |
//! | `checkpoint`, `membership`, `vote` | disk layouts |
//! | `members` | who belongs to a group, and how that changes |
//! | `message` | what replicas say to each other |
//! | `hand_over` | a leadership on its way to another node, and what if it does not arrive |
//! | `observe` | the status, from what openraft says; what is due |
//! | `pace` | when leaders send heartbeats, and when followers let time pass |
//! | `promise` | what a replica owes that was emptied, or has lost the end of its log |
//! | `network` | openraft's network traits over a [`Transport`] |
//! | `types` | openraft's type parameters, chosen once for all groups |
//! | `fuzzing` | for the fuzz targets: doors to the layouts |
//! | `runtime` | in test builds: what openraft runs on, with the chance taken out |

mod apply;
mod catch_up;
mod checkpoint;
mod config;
#[cfg(test)]
mod conformance;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod group;
mod hand_over;
mod log_store;
mod machine;
mod members;
mod membership;
pub mod message;
mod network;
mod observe;
mod pace;
mod promise;
mod proposal;
#[cfg(test)]
pub(crate) mod runtime;
mod shared;
mod status;
mod tail;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod types;
mod vote;

pub use config::Config;
pub use error::Error;
pub use group::{Env, Group, Replica};
pub use machine::{Machine, MachineError};
pub use members::{Follower, Members};
pub use network::{NoPeers, SpanIds, Transport, TransportError};
pub use promise::empty;
pub use proposal::{Proposal, Proposed, Timing};
pub use status::{Role, Status, Watch};

/// A broker's number in the cluster.
pub type NodeId = u64;
