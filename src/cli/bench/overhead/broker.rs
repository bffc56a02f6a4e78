//! A broker in a process of its own that does not outlive its handle.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a broker may take to start.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Lines of its log that are kept, to be told if it fails.
const LINES_KEPT: usize = 5;
/// The name of the log event that says that a broker serves.
const READY: &str = "broker.ready";

/// A running broker. Dropping it kills the process and removes its data.
#[derive(Debug)]
pub(super) struct Broker {
    // Before the directory: the process must be gone when that is removed.
    process: Process,
    _directory: Directory,
    /// Where clients find it.
    pub(super) grpc: String,
    /// Where its metrics are.
    pub(super) http: SocketAddr,
}

impl Broker {
    /// Starts a broker of this very program with a directory below `parent`.
    ///
    /// # Errors
    /// If it does not become ready, with what it said.
    pub(super) async fn start(
        parent: &Path,
        more: &[String],
        settings: &[(&'static str, String)],
    ) -> anyhow::Result<Broker> {
        let directory = Directory::create(parent)?;
        let mut process = Process::spawn(&directory.0, more, settings)?;
        let Log { ready, last } = process.log()?;
        let said = || {
            let lines = last.lock().unwrap_or_else(PoisonError::into_inner);
            lines.iter().cloned().collect::<Vec<_>>().join("\n")
        };
        let ready = match timeout(START_DEADLINE, ready).await {
            Ok(Ok(ready)) => ready,
            Ok(Err(_)) => bail!("a broker ended instead of starting; it said:\n{}", said()),
            Err(_) => bail!("a broker was not ready within {START_DEADLINE:?}; it said:\n{}", said()),
        };
        let address = |field: &str| ready[field].as_str().and_then(|text| text.parse::<SocketAddr>().ok());
        let (grpc, http) =
            address("grpc").zip(address("http")).context("a broker does not say where it is")?;
        Ok(Broker { process, _directory: directory, grpc: grpc.to_string(), http })
    }

    /// The processor time that it has used so far. None where the system does not tell.
    pub(super) fn processor_time(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.0.id())).ok()?;
        // The name in parentheses may hold anything; after it come the state and then, as the 12th and 13th, the ticks.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second().max(1) as f64))
    }
}

/// What a process logs.
struct Log {
    /// The event that says that it is ready. Fails if it ends without being that.
    ready: oneshot::Receiver<Value>,
    /// Its last lines.
    last: Arc<Mutex<VecDeque<String>>>,
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn spawn(
        directory: &Path,
        more: &[String],
        settings: &[(&'static str, String)],
    ) -> anyhow::Result<Process> {
        let program = std::env::current_exe().context("the path of this program cannot be told")?;
        let mut command = Command::new(program);
        command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            // What is meant for this process, or for a broker that stays, must not change what is measured.
            let text = name.to_string_lossy();
            if text.starts_with("OTEL_") || text.starts_with("STREAMBUS_") || text == "RUST_LOG" {
                command.env_remove(&name);
            }
        }
        let anywhere = "127.0.0.1:0";
        command.args(["--grpc-listen", anywhere, "--http-listen", anywhere, "--data-dir"]).arg(directory);
        for set in more {
            command.args(["--set", set]);
        }
        for (key, value) in settings {
            command.args(["--set", &format!("{key}={value}")]);
        }
        Ok(Process(command.spawn().context("a broker cannot be started")?))
    }

    /// Reads what the process logs until it ends.
    fn log(&mut self) -> anyhow::Result<Log> {
        let stderr = self.0.stderr.take().context("a broker's log cannot be read")?;
        let (sender, ready) = oneshot::channel();
        let last = Arc::default();
        let kept = Arc::clone(&last);
        std::thread::Builder::new()
            .name("broker-log".to_owned())
            .spawn(move || read(stderr, sender, &kept))
            .context("a thread cannot be started")?;
        Ok(Log { ready, last })
    }
}

fn read(stderr: ChildStderr, ready: oneshot::Sender<Value>, kept: &Mutex<VecDeque<String>>) {
    let mut ready = Some(ready);
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let event = serde_json::from_str::<Value>(&line).ok().filter(|event| event["event"] == READY);
        if let Some((event, ready)) = event.and_then(|event| Some((event, ready.take()?))) {
            // Nobody waits any more if the command is being stopped.
            let _ = ready.send(event);
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == LINES_KEPT {
            kept.pop_front();
        }
        kept.push_back(line);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory that is removed when it is dropped.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn create(parent: &Path) -> anyhow::Result<Directory> {
        let mut number = 0;
        loop {
            let path = parent.join(format!("streambus-overhead-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Directory(path)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
                Err(error) => {
                    let advice = "name an existing directory that can be written to with --data-dir";
                    return Err(error).with_context(|| format!("cannot create {}; {advice}", path.display()));
                }
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // There is nothing more to be done about what cannot be removed.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_new_and_gone_afterwards() {
        let parent = tempfile::tempdir().expect("a directory");
        let (one, two) = (Directory::create(parent.path()), Directory::create(parent.path()));
        let (one, two) = (one.expect("created"), two.expect("created"));
        assert_ne!(one.0, two.0);
        std::fs::write(one.0.join("file"), "data").expect("written");
        drop((one, two));
        assert_eq!(std::fs::read_dir(parent.path()).expect("the parent").count(), 0);
    }

    #[test]
    fn a_place_that_is_not_there_is_named_with_the_way_out() {
        let error = Directory::create(Path::new("/no/such/place")).expect_err("it cannot work");
        assert!(error.to_string().contains("--data-dir"), "{error}");
    }
}
