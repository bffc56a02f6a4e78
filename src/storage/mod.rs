//! The disk: one embedded store per broker, one thread that writes to it.
//!
//! | file | idea |
//! |---|---|
//! | [`keys`] | the one table of every key and fixed value on disk |
//! | [`log_row`] | a Raft log row: header, checksum, and the buffers that avoid copying it |
//! | [`batch`] | rows of one group that are written atomically |
//! | [`committer`] | the only writer: gathers waiting batches, writes them at once, syncs once |
//! | [`background_sync`] | syncs journals while the committer writes, and takes them out of the page cache |
//! | [`engine`] | the tables of the embedded engine, and the bounds on its memory |
//! | [`index_tables`] | where index rows are, and how a damaged table of them is replaced |
//! | [`store`] | open, close, groups, identity records, usage |
//! | [`log`] | one group's rows, index, checkpoints, vote and purge point |
//! | [`journal`] | what a journal must look like before it may be replayed |
//! | [`boot`] | whether the machine ended before everything was on disk |
//! | [`space`] | free disk space and the reserve |
//! | `simulated` | in test builds: a disk in memory in the engine's place |
//!
//! Owner: this module is the only one that names fjall, opens files in the data directory or blocks on a disk. Methods
//! marked *blocking* belong on a blocking thread.
//!
//! Invariants:
//! - Batches become visible and durable in the order in which `commit` was called, whatever group they belong to.
//! - A batch committed with [`Durability::Sync`] under [`Sync::Always`] is on disk before its `done` runs.
//! - A row is returned only if its checksum holds; otherwise the caller gets [`Error::Corrupt`].
//! - A store whose journal lost acknowledged rows does not open.

mod background_sync;
mod batch;
mod boot;
mod committer;
mod config;
mod engine;
mod engine_log;
mod error;
mod index_tables;
mod journal;
mod keys;
mod log;
mod log_row;
mod note;
#[cfg(test)]
mod simulated;
mod space;
mod store;

#[cfg(test)]
mod tests;

pub use batch::Batch;
pub use committer::{Permit, Stats, SyncObservation, SyncObserver};
pub use config::{Config, Sync};
pub use error::Error;
#[cfg(feature = "fuzzing")]
pub use journal::follow as follow_journal;
pub use keys::{GroupId, IndexRow, Position};
pub use log::Log;
pub use log_row::{Command, CommandBuf, HEADER_BYTES, Kind, Row};
pub use note::{read_note, read_or_write_note};
#[cfg(test)]
pub use simulated::{Disk, Faults};
#[cfg(test)]
pub use store::{ObservedState, StateObserver};
pub use store::{Store, Usage};

/// What a commit promises when its `done` runs with `Ok`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The rows are on disk.
    Always,
    /// Under [`Sync::Always`] the rows are on disk; under [`Sync::Interval`] the operating system has them.
    Sync,
    /// The rows are visible and in order. They reach the disk with the next sync of anything, at the latest one
    /// `sync_interval` later.
    Lazy,
}
