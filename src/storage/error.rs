//! What can go wrong on the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::GroupId;

/// An error of the storage module. Cloneable, because one failed write fails every batch that was part of it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A stored row does not have the bytes that were written. Nothing of it was returned.
    #[error("row {index} of group {group} is corrupt: {what}")]
    Corrupt {
        /// The group whose row it is.
        group: GroupId,
        /// Raft index of the row.
        index: u64,
        /// What about it is wrong.
        what: &'static str,
    },

    /// A journal lost bytes that were acknowledged. The store refuses to open, because replay would drop intact rows.
    #[error(
        "journal {} is corrupt at byte {position}: {what}; acknowledged data follows it, so it is not cut off",
        file.display()
    )]
    CorruptJournal {
        /// The damaged file.
        file: PathBuf,
        /// Byte position of the first write that cannot be read.
        position: u64,
        /// What about it is wrong.
        what: &'static str,
    },

    /// A record of the store itself (vote, purge point, index row), or a block of rows, does not have the bytes that were
    /// written.
    #[error("{what} of group {group} is corrupt")]
    BadRecord {
        /// The group whose record it is.
        group: GroupId,
        /// Which record.
        what: &'static str,
    },

    /// A block of index rows does not have the bytes that were written. They can be made anew from the log.
    #[error("a block of the index of group {group} is corrupt")]
    IndexDamaged {
        /// The group whose rows were read.
        group: GroupId,
    },

    /// Rows at or below `purged` were removed by retention.
    #[error("row {requested} of group {group} was purged; the log starts after {purged}")]
    Purged {
        /// The group that was read.
        group: GroupId,
        /// Raft index that was asked for.
        requested: u64,
        /// Highest purged Raft index.
        purged: u64,
    },

    /// Less than the reserve is free. Deleting or expiring data makes the store writable again.
    #[error("the disk is nearly full: {available} bytes are free and {reserve} bytes are reserved")]
    DiskFull {
        /// Free bytes on the file system.
        available: u64,
        /// The configured reserve in bytes.
        reserve: u64,
    },

    /// Another process uses the data directory.
    #[error("data directory {} is in use by another process", data_dir.display())]
    Locked {
        /// The directory.
        data_dir: PathBuf,
    },

    /// A newer release wrote the data directory.
    #[error("data directory {} has format {found}, this release reads up to {supported}: upgrade this broker, or use another data directory", data_dir.display())]
    FormatTooNew {
        /// The directory.
        data_dir: PathBuf,
        /// Format found there.
        found: u32,
        /// Newest format this release knows.
        supported: u32,
    },

    /// A setting cannot be used.
    #[error("{0}")]
    Config(String),

    /// The file system or the storage engine failed.
    #[error("storage failed to {doing}")]
    Storage {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },

    /// A file or directory cannot be used.
    #[error("cannot {doing} {}", path.display())]
    Path {
        /// What was being done to it.
        doing: &'static str,
        /// It.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },

    /// An earlier write or sync failed, so nothing more is written until the process is restarted.
    #[error("the store has failed and accepts no more writes")]
    Failed {
        /// The failure.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },

    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// Whether bytes of a group are not those that were written. What a group has lost others may still have.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Corrupt { .. } | Error::BadRecord { .. } | Error::IndexDamaged { .. })
    }

    pub(super) fn storage(
        doing: &'static str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Storage { doing, source: Arc::new(source) }
    }

    pub(super) fn path(
        doing: &'static str,
        path: &Path,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Path { doing, path: path.to_owned(), source: Arc::new(source) }
    }
}
