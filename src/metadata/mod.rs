//! What the control group agrees on: brokers, topics, their settings and partitions, producer ids.
//!
//! Pure and deterministic. The leader puts clock readings and placement into a [`Command`]; [`State::apply`] obeys,
//! so every replica that applies the same commands holds the same bytes of state. A command that does not fit the
//! state is refused with an [`Error`] and changes nothing.

pub(crate) mod codec;
mod state;
mod topic;

pub use state::{Broker, Command, Outcome, State};
pub use topic::{PartitionAssignment, Repair, RepairStage, Settings, Topic, TopicId, validate_name};

/// Number of a broker, unique in its cluster and kept across restarts. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BrokerId(pub u64);

impl std::fmt::Display for BrokerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a command was refused, or could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name breaks a rule of topic names.
    #[error("topic name {name:?} {problem}")]
    InvalidName {
        /// The name.
        name: String,
        /// The rule it breaks.
        problem: &'static str,
    },
    /// There is a topic of that name.
    #[error("topic {0:?} exists already")]
    TopicExists(String),
    /// There is no topic of that name.
    #[error("there is no topic {0:?}")]
    UnknownTopic(String),
    /// Partitions can only be added.
    #[error("topic {name:?} has {present} partitions; the new total must be larger, not {requested}")]
    PartitionsNotMore {
        /// The topic.
        name: String,
        /// How many partitions it has.
        present: u32,
        /// How many were asked for.
        requested: u32,
    },
    /// There is no broker of that number (any more).
    #[error(
        "there is no broker {0} in the cluster; a broker that was removed joins anew with an empty data directory"
    )]
    UnknownBroker(BrokerId),
    /// The change contradicts the state; the text says why and what to do.
    #[error("{0}")]
    Refused(String),
    /// Stored bytes are not a command or state of this format.
    #[error("stored metadata cannot be read: {0}")]
    Malformed(String),
}
