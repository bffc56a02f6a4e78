//! What the coordinators of consumer groups agree on, and the machines that they run in memory.
//!
//! Pure and deterministic: no I/O, no clock, no chance, no unordered iteration. Time is an argument.
//!
//! - [`share`] is how far a share group is with a partition, as it is replicated.
//! - [`leases`] leases the records of one partition of a share group to its members.

mod leases;
mod share;

pub use leases::{Dead, DeathReason, Lease, LeaseExpired, LeaseSpec, Leases, Returned, Trimmed};
pub use share::{Attempts, OffsetRange, Progress, ShareUpdate};

/// An open stream of a member, as the broker that holds it has numbered it. Never used twice by a coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);
