//! `streambus bench overhead` measures every mode, and leaves no process and no file behind, however it ends.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{PATIENCE, eventually};

fn overhead(directory: &Path, more: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streambus"));
    command.args(["bench", "overhead", "--set", "storage.reserve_bytes=1MiB", "--data-dir"]).arg(directory);
    command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the binary runs")
}

async fn ended(child: Child) -> Output {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output());
    let output = tokio::time::timeout(4 * PATIENCE, output).await.expect("it ends");
    output.expect("no panic").expect("a child")
}

fn left_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("the directory");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Command lines of processes that name this directory.
fn processes_on(directory: &Path) -> Vec<String> {
    let directory = directory.to_string_lossy();
    let processes = fs::read_dir("/proc").expect("processes").filter_map(Result::ok);
    let lines = processes.filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok());
    lines.filter(|line| line.contains("serve\0") && line.contains(&*directory)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_is_measured_and_has_exported_what_it_should() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = ended(overhead(directory.path(), &["--rounds", "1", "--records", "3000", "--single"])).await;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    let lines = String::from_utf8(output.stdout).expect("text");
    let modes: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let named: Vec<_> = modes.iter().map(|mode| mode["mode"].as_str().expect("a name")).collect();
    assert_eq!(named, ["off", "metrics", "metrics, 1 % traces", "metrics, 100 % traces"]);
    for mode in &modes {
        assert!(mode["mb_per_s"].as_f64().expect("a speed") > 0.0, "{mode}");
        assert!(mode["p99_us"].as_f64() >= mode["p50_us"].as_f64(), "{mode}");
        assert_eq!(mode["runs_mb_per_s"].as_array().map(Vec::len), Some(2), "{mode}");
        assert_eq!(mode["sync"], "interval");
    }
    assert_eq!(modes[0]["ratio"], 1.0);
    let spans = |at: usize| modes[at]["spans_exported"].as_u64().expect("a number");
    assert_eq!((spans(0), spans(1)), (0, 0));
    assert!(spans(3) > 0, "{}", modes[3]);
    assert!(modes[0]["scrapes"] == 0 && modes[1]["scrapes"].as_u64() >= Some(2), "{lines}");
    assert_eq!(left_in(directory.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_brokers_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let child = overhead(directory.path(), &["--records", "100000000"]);
    eventually(PATIENCE, "a broker runs", async || {
        (!processes_on(directory.path()).is_empty() && !left_in(directory.path()).is_empty()).then_some(())
    })
    .await;
    kill_process(Pid::from_child(&child), Signal::INT).expect("the process lives");
    let output = ended(child).await;
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(processes_on(directory.path()), Vec::<String>::new());
    assert_eq!(left_in(directory.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let more = ["--records", "100", "--otlp-endpoint", "http://127.0.0.1:1"];
    let output = ended(overhead(directory.path(), &more)).await;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("127.0.0.1:1") && errors.contains("--otlp-endpoint"), "{errors}");
    assert_eq!(left_in(directory.path()), Vec::<String>::new());
}
