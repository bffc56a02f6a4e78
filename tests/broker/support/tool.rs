//! The command line, as people and scripts use it.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Endpoint, PATIENCE};

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

/// Runs `streambus` with these arguments against a broker.
pub async fn streambus(broker: &Endpoint, arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streambus"));
    command.args(arguments).args(["--broker", &broker.grpc.to_string()]).env_remove("RUST_LOG");
    command.env("USER", "ann").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ended = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(PATIENCE, ended).await.expect("it ends");
    let output = output.expect("no panic").expect("the binary runs");
    Ran {
        success: output.status.success(),
        text: String::from_utf8(output.stdout).expect("text"),
        errors: String::from_utf8(output.stderr).expect("text"),
    }
}
