//! What happened in a run: all of it as one number, what a person wants to read as text.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::chance::mix;

/// Lines that are kept.
const LINES_MAX: usize = 4_000;

/// See the module.
pub(super) struct Trace {
    begun: Instant,
    /// Whether lines are printed at once.
    aloud: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    hash: u64,
    events: u64,
    lines: std::collections::VecDeque<String>,
}

impl Trace {
    pub(super) fn new() -> Self {
        let aloud = std::env::var_os("STREAMBUS_SIM_TRACE").is_some();
        Trace { begun: Instant::now(), aloud, inner: Mutex::default() }
    }

    /// Virtual milliseconds since the run began.
    pub(super) fn millis(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// Notes an event that is of no interest by itself.
    pub(super) fn fold(&self, what: u64, numbers: [u64; 3]) {
        let at = self.millis();
        let mut inner = self.lock();
        inner.events += 1;
        if self.aloud && inner.events.is_multiple_of(10_000) {
            println!("{at} ms, {} events", inner.events);
        }
        for number in [at, what].into_iter().chain(numbers) {
            inner.hash = mix(inner.hash.rotate_left(5) ^ number);
        }
    }

    /// Notes an event and what to tell of it.
    pub(super) fn tell(&self, line: impl AsRef<str>) {
        let line = line.as_ref();
        self.fold(super::chance::digest(line.as_bytes()), [0; 3]);
        let at = self.millis();
        let mut inner = self.lock();
        if inner.lines.len() == LINES_MAX {
            inner.lines.pop_front();
        }
        let line = format!("{:>4}.{:03}  {line}", at / 1_000, at % 1_000);
        if self.aloud {
            println!("{line}");
        }
        inner.lines.push_back(line);
    }

    /// A number that stands for every event in its order, and how many there were.
    pub(super) fn sum(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.hash, inner.events)
    }

    /// The last lines.
    pub(super) fn text(&self, lines: usize) -> String {
        let inner = self.lock();
        let mut text = String::new();
        for line in inner.lines.iter().skip(inner.lines.len().saturating_sub(lines)) {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
