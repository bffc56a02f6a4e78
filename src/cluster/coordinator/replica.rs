//! Joins the pure state to its Raft group.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::watch;

use crate::cluster::purge::Growth;
use crate::coordination::{self, Outcome, State, decode_entry};
use crate::raft::{Machine, MachineError};
use crate::storage::Batch;

/// What a log entry gave.
#[derive(Debug)]
pub(super) enum Applied {
    /// The result of each command, in order.
    Commands(Vec<Result<Outcome, coordination::Error>>),
    /// The entry was decided in another term, so it was left out, on every replica alike.
    OtherTerm,
}

/// A shard's state machine.
pub(super) struct Replica {
    /// Written by this machine only; read by everybody else.
    pub(super) state: Arc<RwLock<State>>,
    pub(super) changes: watch::Sender<u64>,
    pub(super) growth: Arc<Growth>,
}

impl Machine for Replica {
    type Reply = Applied;

    fn apply(
        &mut self,
        _index: u64,
        term: u64,
        command: &Bytes,
        _batch: &mut Batch,
    ) -> Result<Applied, MachineError> {
        self.growth.applied(command);
        let entry = decode_entry(command).map_err(|e| MachineError { reason: e.to_string() })?;
        if entry.term.is_some_and(|decided| decided != term) {
            return Ok(Applied::OtherTerm);
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        Ok(Applied::Commands(entry.commands.into_iter().map(|command| state.apply(command)).collect()))
    }

    fn applied(&mut self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn encode(&self) -> Vec<u8> {
        let encoded = self.state.read().unwrap_or_else(PoisonError::into_inner).encode();
        self.growth.encoded(&encoded);
        encoded
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        let restored = State::decode(state).map_err(|e| MachineError { reason: e.to_string() })?;
        self.growth.encoded(state);
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = restored;
        Ok(())
    }
}
