//! Free space of the file system that holds the data directory.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Error;

/// How old an answer may be. `statvfs` costs about a microsecond, so this only keeps it off the path of every write.
const FRESH: Duration = Duration::from_millis(250);

/// Watches free space against the reserve.
#[derive(Debug)]
pub struct Space {
    directory: PathBuf,
    reserve: u64,
    started: Instant,
    /// Milliseconds since `started` of the last look, plus one; 0 means never.
    looked_at: AtomicU64,
    free: AtomicU64,
}

impl Space {
    /// Starts watching.
    pub fn new(directory: &Path, reserve: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            reserve,
            started: Instant::now(),
            looked_at: AtomicU64::new(0),
            free: AtomicU64::new(u64::MAX),
        }
    }

    /// Bytes free for this process, at most 250 ms old. When the file system does not answer, the last answer stands.
    pub fn free(&self) -> u64 {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let last = self.looked_at.load(Ordering::Acquire);
        let stale = last == 0 || now - last.min(now) >= FRESH.as_millis() as u64;
        if stale && self.looked_at.compare_exchange(last, now, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            match rustix::fs::statvfs(&self.directory) {
                Ok(found) => {
                    self.free.store(found.f_bavail.saturating_mul(found.f_frsize), Ordering::Release)
                }
                Err(error) => tracing::warn!(%error, "free disk space is unknown"),
            }
        }
        self.free.load(Ordering::Acquire)
    }

    /// Bytes that may still be written before the reserve is touched.
    pub fn available(&self) -> u64 {
        self.free().saturating_sub(self.reserve)
    }

    /// What is kept free.
    pub fn reserve(&self) -> u64 {
        self.reserve
    }

    /// An error while less than the reserve is free.
    pub fn writable(&self) -> Result<(), Error> {
        self.has(self.reserve)
    }

    /// An error while less than so many bytes are free.
    pub fn has(&self, reserve: u64) -> Result<(), Error> {
        let available = self.free();
        if available < reserve { Err(Error::DiskFull { available, reserve }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_larger_than_the_disk_refuses_writes() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let space = Space::new(directory.path(), u64::MAX);

        assert!(matches!(space.writable(), Err(Error::DiskFull { reserve: u64::MAX, .. })));
        assert_eq!(space.available(), 0);
    }

    #[test]
    fn free_space_is_known_and_writable_without_a_reserve() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let space = Space::new(directory.path(), 0);

        assert!(space.free() < u64::MAX);
        assert!(space.writable().is_ok());
    }
}
