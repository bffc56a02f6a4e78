//! The command line, as people and scripts use it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Endpoint, PATIENCE, eventually};

/// What a command gave.
#[derive(Debug)]
pub struct Ran {
    /// Whether it succeeded.
    pub success: bool,
    /// What it printed.
    pub text: String,
    /// What it said on standard error.
    pub errors: String,
}

impl Ran {
    /// What it printed, as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A command of `streambus` against a broker.
pub fn command(broker: &Endpoint, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streambus"));
    command.args(arguments).args(["--broker", &broker.grpc.to_string()]).env_remove("RUST_LOG");
    command.env("USER", "ann").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs `streambus` with these arguments against a broker.
pub async fn streambus(broker: &Endpoint, arguments: &[&str]) -> Ran {
    let mut command = command(broker, arguments);
    let ended = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(PATIENCE, ended).await.expect("it ends");
    let output = output.expect("no panic").expect("the binary runs");
    Ran {
        success: output.status.success(),
        text: String::from_utf8(output.stdout).expect("text"),
        errors: String::from_utf8(output.stderr).expect("text"),
    }
}

/// A command that goes on until it is dropped.
pub struct Running {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Running {
    /// Starts `streambus` with these arguments against a broker.
    pub fn start(broker: &Endpoint, arguments: &[&str]) -> Self {
        let mut child = command(broker, arguments).spawn().expect("the binary runs");
        let lines = gather(child.stdout.take().expect("standard output is piped"));
        let errors = gather(child.stderr.take().expect("standard error is piped"));
        Running { child, lines, errors }
    }

    /// Waits until what it has printed is as wished, and gives it.
    pub async fn until(&mut self, what: &str, wish: impl Fn(&[String]) -> bool) -> Vec<String> {
        let lines = Arc::clone(&self.lines);
        self.wait(what, &lines, wish).await
    }

    /// The same of what it has said on standard error.
    pub async fn until_said(&mut self, what: &str, wish: impl Fn(&[String]) -> bool) -> Vec<String> {
        let errors = Arc::clone(&self.errors);
        self.wait(what, &errors, wish).await
    }

    /// Ends it with SIGTERM, and gives whether it succeeded.
    pub async fn terminated(mut self) -> bool {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("the process lives");
        let ended = eventually(PATIENCE, "it ends", async || self.child.try_wait().expect("a child")).await;
        ended.success()
    }

    async fn wait(
        &mut self,
        what: &str,
        lines: &Mutex<Vec<String>>,
        wish: impl Fn(&[String]) -> bool,
    ) -> Vec<String> {
        eventually(PATIENCE, what, async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the command ended with {status}: {:?}", self.errors.lock().expect("no panic"));
            }
            let lines = lines.lock().expect("no panic");
            wish(&lines).then(|| lines.clone())
        })
        .await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gather(output: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::<Mutex<Vec<String>>>::default();
    let seen = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            seen.lock().expect("no panic").push(line);
        }
    });
    lines
}
