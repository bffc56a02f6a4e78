//! The thread that writes log lines to standard error.
//!
//! Whoever logs leaves a line here and goes on. A terminal that is paused, or a log collector that hangs, stops this
//! thread and not the broker: what does not fit is dropped and counted, and a line says so once there is room again.

use std::io::Write;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::warn;

use super::instruments::lock;

/// Bytes of lines that may wait while others are written.
const WAITING_MAX: usize = 1 << 20;

/// The writer of the process, once there is one.
static OF_THE_PROCESS: OnceLock<LogWriter> = OnceLock::new();

/// Leaves lines for the thread that writes them. Clones leave them for the same.
#[derive(Clone, Debug)]
pub(super) struct LogWriter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    is_writing: bool,
    /// Lines that were dropped, and how many of them a line has told.
    dropped: u64,
    told: u64,
}

impl LogWriter {
    /// The one that writes to standard error. The first call starts its thread.
    pub(super) fn of_the_process() -> std::io::Result<&'static Self> {
        if OF_THE_PROCESS.get().is_none() {
            let _ = OF_THE_PROCESS.set(LogWriter::start(std::io::stderr())?);
        }
        // INVARIANT: it has just been set, here or by somebody else.
        Ok(OF_THE_PROCESS.get().expect("set above"))
    }

    fn start(output: impl Write + Send + 'static) -> std::io::Result<Self> {
        let writer = LogWriter(Arc::default());
        let shared = writer.0.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_to(output))?;
        Ok(writer)
    }

    /// Leaves a line, which has its line feed, or drops it. Does not wait.
    pub(super) fn leave(&self, line: &[u8]) {
        let mut state = lock(&self.0.state);
        if state.waiting.len() + line.len() > WAITING_MAX {
            state.dropped += 1;
            return;
        }
        // Otherwise the thread looks by itself, or has been woken already.
        let sleeps = state.waiting.is_empty() && !state.is_writing;
        state.waiting.extend_from_slice(line);
        drop(state);
        if sleeps {
            self.0.changed.notify_all();
        }
    }

    /// Lines dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        lock(&self.0.state).dropped
    }

    /// Waits until every line is written, or for `deadline`. Returns whether they are.
    fn finish(&self, deadline: Duration) -> bool {
        let state = lock(&self.0.state);
        let is_busy = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        let waited = self.0.changed.wait_timeout_while(state, deadline, is_busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Shared {
    fn write_to(&self, mut output: impl Write) {
        let mut lines = Vec::new();
        loop {
            let mut state = lock(&self.state);
            while state.waiting.is_empty() {
                state.is_writing = false;
                self.changed.notify_all();
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.is_writing = true;
            mem::swap(&mut state.waiting, &mut lines);
            let dropped = state.dropped;
            let untold = dropped - mem::replace(&mut state.told, dropped);
            drop(state);
            // Lines that cannot be written are lost: there is no other place to say so.
            let _ = output.write_all(&lines);
            lines.clear();
            if untold > 0 {
                warn!(
                    name: "log.lines_dropped",
                    lines = untold,
                    "standard error was not read in time: {untold} lines are missing here"
                );
            }
        }
    }
}

/// Waits until the log lines of the process are written, or for `deadline`. Call it before the process ends, or says
/// something on standard error by another way. Returns whether they are written.
pub fn finish_log(deadline: Duration) -> bool {
    OF_THE_PROCESS.get().is_none_or(|writer| writer.finish(deadline))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// An output that writes nothing until it is told to, and then passes on what it gets.
    struct Gate {
        opened: Receiver<()>,
        passed: Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.opened.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.passed.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (LogWriter, Sender<()>, Receiver<Vec<u8>>) {
        let (open, opened) = channel();
        let (passed, written) = channel();
        (LogWriter::start(Gate { opened, passed }).expect("a thread"), open, written)
    }

    #[test]
    fn lines_are_written_in_their_order_and_waited_for() {
        let (writer, open, written) = gated();
        writer.leave(b"a\n");
        writer.leave(b"b\n");
        assert!(!writer.finish(Duration::from_millis(1)), "nothing can be written yet");
        for _ in 0..2 {
            open.send(()).expect("the thread lives");
        }
        assert!(writer.finish(PATIENCE));
        drop(open);
        let text: Vec<u8> = written.try_iter().flatten().collect();
        assert_eq!(text, b"a\nb\n");
    }

    #[test]
    fn an_output_that_hangs_delays_nobody_and_costs_lines_that_are_counted() {
        let (writer, open, written) = gated();
        let line = [b'x'; 1 << 10];
        writer.leave(b"first");
        let has_begun = |state: &mut State| !state.is_writing;
        let state = lock(&writer.0.state);
        drop(writer.0.changed.wait_timeout_while(state, PATIENCE, has_begun).expect("no panic"));
        for _ in 0..(WAITING_MAX / line.len()) + 3 {
            writer.leave(&line);
        }
        assert_eq!(writer.dropped(), 3);
        for _ in 0..2 {
            open.send(()).expect("the thread lives");
        }
        assert!(writer.finish(PATIENCE));
        assert_eq!(written.try_iter().map(|bytes| bytes.len()).collect::<Vec<_>>(), [5, WAITING_MAX]);
    }
}
