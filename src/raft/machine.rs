//! What a replicated state machine must do, and the same without its reply type.

use std::any::Any;

use bytes::Bytes;

use crate::storage::Batch;

/// Why a machine cannot restore a state or apply a command.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct MachineError {
    /// What is wrong with the encoded state or command.
    pub reason: String,
}

/// A deterministic state machine, fed with the group's commands in log order.
///
/// After a restart the commands since the last checkpoint are applied again, and the rows they put into the
/// batch are written again with the same values.
pub trait Machine: Send + 'static {
    /// What a command answers to its proposer. Not kept, and not made on other replicas' behalf.
    type Reply: Send + 'static;

    /// Applies one command. Must give the same state and rows on every replica: no clock, no chance, no I/O;
    /// what it stores goes into `batch`, which is handed to the store after the run of commands it belongs
    /// to.
    ///
    /// # Errors
    /// The command is none that this machine knows. Others may know it, so leaving it out would make this replica another
    /// one than theirs: it stops, before the command.
    fn apply(
        &mut self,
        index: u64,
        term: u64,
        command: &Bytes,
        batch: &mut Batch,
    ) -> Result<Self::Reply, MachineError>;

    /// Called after a run of commands whose rows have been handed to the store: what readers wait for may be
    /// published.
    fn applied(&mut self);

    /// The whole state. The same history gives the same bytes on every replica.
    fn encode(&self) -> Vec<u8>;

    /// Replaces the state by one that [`Machine::encode`] gave, on this replica or another.
    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError>;
}

/// What a command answered, whatever its type.
pub(super) type AnyReply = Box<dyn Any + Send>;

/// A machine whose reply type is erased, so that the agreement code exists once for all machines.
pub(super) trait AnyMachine: Send + 'static {
    fn apply(
        &mut self,
        index: u64,
        term: u64,
        command: &Bytes,
        batch: &mut Batch,
    ) -> Result<AnyReply, MachineError>;
    fn applied(&mut self);
    fn encode(&self) -> Vec<u8>;
    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError>;
}

impl<M: Machine> AnyMachine for M {
    fn apply(
        &mut self,
        index: u64,
        term: u64,
        command: &Bytes,
        batch: &mut Batch,
    ) -> Result<AnyReply, MachineError> {
        Ok(Box::new(Machine::apply(self, index, term, command, batch)?))
    }

    fn applied(&mut self) {
        Machine::applied(self);
    }

    fn encode(&self) -> Vec<u8> {
        Machine::encode(self)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        Machine::restore(self, state)
    }
}
