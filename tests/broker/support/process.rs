//! A broker in a process of its own: the real binary, which can be killed.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{Endpoint, PATIENCE, eventually};

/// The lines that a process wrote to standard error, as far as they were read. Clones share them.
#[derive(Clone, Default)]
struct Lines(Arc<Kept>);

#[derive(Default)]
struct Kept {
    lines: Mutex<Vec<String>>,
    is_paused: Mutex<bool>,
    changed: Condvar,
}

impl Lines {
    /// Keeps a line, once reading is not paused.
    fn push(&self, line: String) {
        let paused = self.0.is_paused.lock().expect("no panic while held");
        drop(self.0.changed.wait_while(paused, |paused| *paused).expect("no panic while held"));
        self.all().push(line);
    }

    fn pause(&self, is_paused: bool) {
        *self.0.is_paused.lock().expect("no panic while held") = is_paused;
        self.0.changed.notify_all();
    }

    fn all(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn joined(&self) -> String {
        self.all().join("\n")
    }
}

/// A running broker. Dropping it kills the process.
pub struct Process {
    endpoint: Endpoint,
    child: Child,
    lines: Lines,
    settings: Vec<(String, String)>,
    directory: Arc<TempDir>,
}

impl Deref for Process {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Process {
    /// Starts a broker in a directory of its own. Settings are `section.key` and value, as in the environment.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_until("broker.ready", settings).await
    }

    /// Starts a broker that may not become ready, and gives it as soon as it has logged `event`, which says where it is.
    pub async fn start_until(event: &str, settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        Self::spawn(event, settings, directory).await
    }

    fn run(settings: &[(String, String)], directory: &TempDir) -> (Child, Lines) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_streambus"));
        command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            // What the machine that runs the tests exports must not change what they see.
            if name.starts_with("OTEL_") || name.starts_with("STREAMBUS_") || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        let mut set = |key: &str, value: &str| {
            command.env(format!("STREAMBUS_{}", key.replace('.', "__").to_uppercase()), value);
        };
        set("api.grpc_listen", "127.0.0.1:0");
        set("api.http_listen", "127.0.0.1:0");
        set("storage.data_dir", &directory.path().join("data").to_string_lossy());
        set("storage.reserve_bytes", "1048576");
        for (key, value) in settings {
            set(key, value);
        }
        let mut child = command.spawn().expect("the binary runs");
        let lines = Lines::default();
        let stderr = child.stderr.take().expect("standard error is piped");
        let seen = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                seen.push(line);
            }
        });
        (child, lines)
    }

    /// Starts a broker that waits for others, stops it once it says so, and gives how it ended and what it said.
    pub async fn stopped_while_it_waits(settings: &[(String, String)]) -> (ExitStatus, String) {
        let directory = TempDir::new().expect("a temporary directory");
        let (mut child, lines) = Self::run(settings, &directory);
        let said = || lines.joined();
        eventually(PATIENCE, "it waits", async || said().contains("waiting for").then_some(())).await;
        kill_process(Pid::from_child(&child), Signal::TERM).expect("the process lives");
        let ended = eventually(PATIENCE, "it ends", async || child.try_wait().expect("a child")).await;
        (ended, said())
    }

    async fn spawn(event: &str, settings: Vec<(String, String)>, directory: Arc<TempDir>) -> Self {
        let (mut child, lines) = Self::run(&settings, &directory);
        let ready = eventually(PATIENCE, &format!("the broker logs {event}"), async || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the broker ended with {status}:\n{}", lines.joined());
            }
            find(&lines, event).into_iter().next()
        })
        .await;
        let address = |field: &str| -> SocketAddr {
            ready[field].as_str().and_then(|text| text.parse().ok()).expect("an address")
        };
        let endpoint = Endpoint { grpc: address("grpc"), http: address("http") };
        Process { endpoint, child, lines, settings, directory }
    }

    /// Its number in the cluster.
    pub fn broker_id(&self) -> u64 {
        self.events("broker.ready")[0]["broker_id"].as_u64().expect("a number")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its data is.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Log events of this name.
    pub fn events(&self, name: &str) -> Vec<Value> {
        find(&self.lines, name)
    }

    /// Everything that it has logged.
    pub fn log(&self) -> Vec<Value> {
        self.lines.all().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Everything that it has written to standard error.
    pub fn said(&self) -> String {
        self.lines.joined()
    }

    /// Whether standard error is read. If it is not, the process can soon write no more to it.
    pub fn read_log(&self, reads: bool) {
        self.lines.pause(!reads);
    }

    /// A file of `/proc/<pid>/`.
    pub fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(Path::new("/proc").join(self.pid().to_string()).join(file))
            .expect("the process lives")
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("the process lives");
    }

    /// Stops the process where it is, with SIGSTOP. Its connections stay open, and nobody answers on them.
    pub fn freeze(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).expect("the process lives");
    }

    /// Lets the process go on.
    pub fn thaw(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).expect("the process lives");
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self, deadline: Duration) -> ExitStatus {
        eventually(deadline, "the process ends", async || self.child.try_wait().expect("a child")).await
    }

    /// Kills the process with SIGKILL. Gives what it takes to start it again.
    pub fn kill(mut self) -> Remains {
        self.child.kill().expect("the process lives");
        self.child.wait().expect("a child");
        Remains { settings: self.settings.clone(), directory: self.directory.clone() }
    }

    /// Ends the process with SIGTERM, which must succeed. Gives what it takes to start it again.
    pub async fn stop(mut self) -> Remains {
        self.terminate();
        let status = self.ended(PATIENCE).await;
        assert!(status.success(), "the broker ended with {status}");
        Remains { settings: self.settings.clone(), directory: self.directory.clone() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ended = self.child.try_wait();
            let lines = self.lines.joined();
            eprintln!("the broker of the failed test (ended: {ended:?}) said:\n{lines}");
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process leaves behind.
pub struct Remains {
    settings: Vec<(String, String)>,
    directory: Arc<TempDir>,
}

impl Remains {
    /// Where the data is.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Changes a setting for the next start.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.retain(|(existing, _)| existing != key);
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Starts a broker on the data that must not come up, and gives what it says.
    pub async fn fails(self) -> String {
        let (mut child, lines) = Process::run(&self.settings, &self.directory);
        let ended =
            eventually(PATIENCE, "the process ends", async || child.try_wait().expect("a child")).await;
        assert!(!ended.success());
        // The reader of its output may be a moment behind.
        eventually(PATIENCE, "it says why", async || {
            let said = lines.joined();
            said.contains("error").then_some(said)
        })
        .await
    }

    /// Starts a broker on the data.
    pub async fn start(self) -> Process {
        self.start_until("broker.ready").await
    }

    /// As [`Process::start_until`], on the data.
    pub async fn start_until(self, event: &str) -> Process {
        Process::spawn(event, self.settings, self.directory).await
    }
}

fn find(lines: &Lines, event: &str) -> Vec<Value> {
    lines
        .all()
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["event"] == event)
        .collect()
}
