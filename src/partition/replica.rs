//! Joins the pure state to its Raft group: reads commands, writes index rows, shows the result to readers.

use std::sync::Arc;

use bytes::Bytes;

use super::index::Entry;
use super::machine::{Appended, State};
use super::view::{Bounds, View};
use crate::raft::{Machine, MachineError};
use crate::record::Offset;
use crate::record::command::Command;
use crate::storage::{Batch, GroupId};
use crate::telemetry::{Metrics, TopicMetrics};

/// What a log entry gave.
#[derive(Debug)]
pub enum Applied {
    /// Of an append.
    Appended(Appended),
    /// Of a trim: the log start.
    Trimmed(Offset),
}

/// A partition's state machine.
pub struct Replica {
    state: State,
    group: GroupId,
    view: Arc<View>,
    metrics: Metrics,
    topic: Arc<TopicMetrics>,
    /// Log entries up to this one were applied by an earlier run of the broker and are not counted again.
    counted_to: Option<u64>,
    /// Applied, but not yet shown.
    fresh: Vec<(Arc<Entry>, Bytes)>,
}

impl Replica {
    /// The replica of a partition. Entries above `counted_to` are counted as stored.
    pub(super) fn new(
        group: GroupId,
        view: Arc<View>,
        metrics: Metrics,
        topic: Arc<TopicMetrics>,
        counted_to: Option<u64>,
    ) -> Self {
        Replica { state: State::default(), group, view, metrics, topic, counted_to, fresh: Vec::new() }
    }

    /// Where nothing is retained there is no index row to tell how much lies below the log start.
    fn note_empty(&self) {
        if self.state.log_start() == self.state.next_offset() {
            self.view.set_bytes_start(self.state.bytes_end());
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds { log_start: self.state.log_start(), high_watermark: self.state.next_offset() }
    }
}

impl Machine for Replica {
    type Reply = Applied;

    fn apply(
        &mut self,
        index: u64,
        _term: u64,
        command: &Bytes,
        batch: &mut Batch,
    ) -> Result<Applied, MachineError> {
        match Command::decode(command).map_err(|e| MachineError { reason: e.to_string() })? {
            Command::Append(append) => {
                let bytes_before = self.state.bytes_end();
                let appended = self.state.append(index, &append);
                if let Some(entry) = &appended.entry {
                    batch.put_index_row(self.group, &entry.to_row());
                    if self.counted_to.is_none_or(|counted| index > counted) {
                        let records = entry.end.0 - entry.base.0;
                        let bytes = self.state.bytes_end() - bytes_before;
                        self.metrics.produce.stored(&self.topic, records, bytes);
                    }
                    self.fresh.push((Arc::new(entry.clone()), command.clone()));
                }
                Ok(Applied::Appended(appended))
            }
            Command::Trim { before } => {
                let log_start = self.state.trim(before);
                self.note_empty();
                Ok(Applied::Trimmed(log_start))
            }
        }
    }

    fn applied(&mut self) {
        let bounds = self.bounds();
        self.view.publish(self.fresh.drain(..), bounds, self.state.bytes_end());
    }

    fn encode(&self) -> Vec<u8> {
        self.state.encode()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        self.state = State::decode(state).map_err(|e| MachineError { reason: e.to_string() })?;
        self.fresh.clear();
        self.view.restored(self.bounds(), self.state.bytes_end(), self.state.last_append());
        self.note_empty();
        Ok(())
    }
}
