//! A configuration with mistakes names them all.

use std::process::{Command, Output};

/// Runs `streambus serve`, which must end by itself.
fn serve(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streambus"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STREAMBUS_") {
            command.env_remove(name);
        }
    }
    command.arg("serve").args(arguments).envs(environment.iter().copied()).output().expect("the binary runs")
}

#[test]
fn every_mistake_of_file_environment_and_flags_is_told_at_once() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (file, data) = (directory.path().join("broker.toml"), directory.path().join("data"));
    let text = "[storage]\nsync = \"sometimes\"\nreserve = 5\n\n[no_such_section]\nx = 1\n\n[api]\nconnections_max = 0\n";
    std::fs::write(&file, text).expect("written");
    let (file, data) = (file.to_string_lossy(), data.to_string_lossy());

    let output = serve(
        &["--config", &file, "--data-dir", &data, "--set", "partition.entry_bytes=lots", "--set", "nonsense"],
        &[("STREAMBUS_STORAGE__RESERVE_BYTE", "5"), ("STREAMBUS_RAFT__HEARTBEAT", "soon")],
    );

    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).expect("text");
    let lines: Vec<_> = told.lines().collect();
    let mistakes = [
        ("broker.toml:2", "storage.sync"),
        ("broker.toml:3", "storage.reserve"),
        ("broker.toml:", "no_such_section"),
        ("broker.toml:9", "api.connections_max"),
        ("STREAMBUS_STORAGE__RESERVE_BYTE", "did you mean STREAMBUS_STORAGE__RESERVE_BYTES?"),
        ("STREAMBUS_RAFT__HEARTBEAT", "raft.heartbeat"),
        ("--set", "partition.entry_bytes"),
        ("--set", "nonsense"),
    ];
    for (origin, what) in mistakes {
        assert!(
            lines.iter().any(|line| line.contains(origin) && line.contains(what)),
            "{origin}: {what}\n{told}"
        );
    }
    assert!(told.contains(&format!("{} mistakes", mistakes.len())), "{told}");
    assert!(!std::path::Path::new(&*data).exists(), "nothing was begun");
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let missing = directory.path().join("missing.toml");
    let broken = directory.path().join("broken.toml");
    std::fs::write(&broken, "[api\n").expect("written");
    for file in [missing, broken] {
        let file = file.to_string_lossy();
        let output = serve(&["--config", &file], &[]);
        assert_eq!(output.status.code(), Some(2));
        let told = String::from_utf8(output.stderr).expect("text");
        assert!(told.contains(&*file), "{told}");
    }
}

#[test]
fn values_that_contradict_each_other_are_mistakes_too() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data = directory.path().join("data");
    let output = serve(
        &["--data-dir", &data.to_string_lossy(), "--set", "broker.batch_bytes_max=1MiB"],
        &[("STREAMBUS_RAFT__ELECTION_MIN", "10ms")],
    );
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).expect("text");
    for key in ["broker.default_batch_bytes_max", "raft.election_min"] {
        assert!(told.contains(key), "{told}");
    }
    assert!(!data.exists(), "nothing was begun");
}
