//! How long the disk takes to keep something.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::json;

use crate::cli::failure::Usage;
use crate::cli::output::line;
use crate::units::ByteSize;

use super::report::put_quantiles;
use super::workload::nanos;

/// Writes before the measured ones.
const WARM_UP: u64 = 20;

/// Where and how much.
#[derive(Debug, Args)]
pub(in crate::cli) struct Fsync {
    /// A directory on the file system to measure, such as the broker's data directory. The file that is written there
    /// is removed afterwards
    #[arg(long, default_value = "data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Number of writes
    #[arg(long, default_value_t = 2_000, value_name = "COUNT")]
    writes: u64,
    /// Bytes of each write
    #[arg(long, default_value = "4KiB", value_name = "SIZE")]
    write_bytes: ByteSize,
}

/// What was found out.
struct Measured {
    writes: u64,
    write_bytes: u64,
    took: Duration,
    /// Nanoseconds.
    latency: Histogram<u64>,
}

impl Fsync {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        if self.writes == 0 || self.write_bytes.0 == 0 {
            return Err(Usage("--writes and --write-bytes must be at least 1".to_owned()).into());
        }
        line(tokio::task::spawn_blocking(move || self.measure()).await??)
    }

    fn measure(&self) -> anyhow::Result<Measured> {
        let mut file = Scratch::create(&self.data_dir)?;
        let block = vec![0x5a; usize::try_from(self.write_bytes.0)?];
        let mut latency = Histogram::new(3)?;
        let mut started = Instant::now();
        for round in 0..WARM_UP + self.writes {
            if round == WARM_UP {
                started = Instant::now();
            }
            let begun = Instant::now();
            file.keep(&block)?;
            if round >= WARM_UP {
                latency.record(nanos(begun.elapsed()))?;
            }
        }
        let took = started.elapsed();
        Ok(Measured { writes: self.writes, write_bytes: self.write_bytes.0, took, latency })
    }
}

/// A file that is removed when it is dropped.
struct Scratch {
    file: File,
    path: PathBuf,
}

impl Scratch {
    fn create(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(format!(".streambus-bench-fsync-{}", std::process::id()));
        let file = OpenOptions::new().create_new(true).append(true).open(&path).with_context(|| {
            format!("cannot write in {}; name an existing directory with --data-dir", directory.display())
        })?;
        Ok(Scratch { file, path })
    }

    /// Appends and waits for the disk.
    fn keep(&mut self, block: &[u8]) -> anyhow::Result<()> {
        let result = self.file.write_all(block).and_then(|()| self.file.sync_data());
        result.with_context(|| format!("cannot write to {}", self.path.display()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // There is nothing more to be done about a file that cannot be removed.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64().max(1e-9);
        let mut line = json!({
            "peer": "disk",
            "workload": "fsync",
            "writes": self.writes,
            "write_bytes": self.write_bytes,
            "writes_per_s": (self.writes as f64 / seconds) as u64,
            "seconds": (seconds * 1e3).round() / 1e3,
        });
        put_quantiles(&mut line, &self.latency);
        line.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_is_timed_and_nothing_is_left_behind() {
        let directory = tempfile::tempdir().expect("a directory");
        let fsync = Fsync { data_dir: directory.path().to_owned(), writes: 3, write_bytes: ByteSize(100) };
        let measured = fsync.measure().expect("measured");
        assert_eq!(measured.latency.len(), 3);
        assert!(measured.to_string().contains("\"p999_us\""), "{measured}");
        assert_eq!(std::fs::read_dir(directory.path()).expect("the directory").count(), 0);
    }

    #[test]
    fn a_missing_directory_is_named_with_the_way_out() {
        let fsync = Fsync { data_dir: "/no/such/place".into(), writes: 1, write_bytes: ByteSize(1) };
        let error = fsync.measure().err().expect("it cannot work").to_string();
        assert!(error.contains("/no/such/place") && error.contains("--data-dir"), "{error}");
    }
}
