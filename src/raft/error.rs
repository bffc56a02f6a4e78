//! What can go wrong in a group.

use std::sync::Arc;

use super::{MachineError, NodeId};
use crate::storage::{self, GroupId};

/// Why a group could not do what was asked. Each variant says whether a proposed command may have been
/// written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// This replica does not lead the group. Nothing was written.
    #[error("this broker does not lead the group; {}", name(*leader))]
    NotLeader {
        /// Who leads, as far as this replica knows.
        leader: Option<NodeId>,
    },
    /// So many commands wait that the group's queue is full. Nothing was written.
    #[error("too many commands wait in the group")]
    Busy,
    /// Leadership was lost, or the replica stopped, while the command was in flight. It may have been
    /// written, now or later; whoever retries must recognise duplicates.
    #[error("leadership changed or the replica stopped while the command was in flight")]
    OutcomeUnknown,
    /// The store failed, and with it this replica, for good. A command refused with this was not written; a
    /// command that was already in flight gets [`Error::OutcomeUnknown`].
    #[error("the store of the group failed")]
    Storage(#[from] storage::Error),
    /// The replica is shut down, or its agreement stopped by itself. Nothing was written.
    #[error("the replica is stopped")]
    Stopped,
    /// What the store holds for the group contradicts itself. Nothing was written.
    #[error("stored data of group {group} is corrupt: {what}")]
    Corrupt {
        /// Whose data.
        group: GroupId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The machine does not understand a state that was stored or sent to it. Nothing was written.
    #[error("the state of group {group} cannot be restored")]
    Restore {
        /// Whose state.
        group: GroupId,
        /// What the machine says about it.
        #[source]
        source: Arc<MachineError>,
    },
    /// An entry that was agreed on is no command that the machine knows: a newer version wrote it. The replica stops before
    /// it, and goes on when it is opened by a version that knows the command. Nothing was written.
    #[error(
        "entry {index} of group {group} is no command of this version; a newer one wrote it, and can go on"
    )]
    UnknownCommand {
        /// Whose entry.
        group: GroupId,
        /// Which one.
        index: u64,
        /// What the machine says about it.
        #[source]
        source: Arc<MachineError>,
    },
    /// The change of members is not possible now: another one is under way, or a named node is not known to
    /// the group. Nothing was written.
    #[error("the members cannot be changed: {reason}")]
    Membership {
        /// What stands in the way.
        reason: String,
    },
    /// The settings contradict themselves. Nothing was written.
    #[error("the settings of the group are invalid: {reason}")]
    Config {
        /// Which setting, and why.
        reason: String,
    },
}

impl Error {
    /// Whether this replica does not have the bytes any more that it wrote. Others may.
    pub fn is_damage(&self) -> bool {
        match self {
            Error::Storage(error) => error.is_damage(),
            Error::Corrupt { .. } | Error::Restore { .. } => true,
            _ => false,
        }
    }
}

fn name(leader: Option<NodeId>) -> String {
    match leader {
        Some(broker) => format!("broker {broker} did when it was last heard of, and may be away by now"),
        None => "nobody is known to".to_owned(),
    }
}
