//! A configuration with mistakes names them all.

use std::process::{Command, Output};

/// Runs `streambus serve`, which must end by itself.
fn serve(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    streambus(&[&["serve"], arguments].concat(), environment)
}

/// Runs `streambus` with nothing in its environment but this.
fn streambus(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streambus"));
    command.env_clear().args(arguments).envs(environment.iter().copied()).output().expect("the binary runs")
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

#[test]
fn mistakes_in_standard_variables_and_in_telemetry_are_told_with_all_others_before_anything_is_written() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data = directory.path().join("data");
    let place = data.to_string_lossy();
    let flags = ["--sync", "bogus", "--log-format", "zzz", "--grpc-listen", "localhost:1"];
    let settings = ["--set", "telemetry.otlp.batch=0", "--set", "telemetry.trace.sample_ratio=7"];
    let arguments = [&["--data-dir", &*place][..], &flags, &settings].concat();
    let environment = [
        ("RUST_LOG", "info,streambus=loud"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ];
    let mistakes = [
        ("--sync", "expected `always` or `interval`"),
        ("--log-format", "expected `json` or `text`"),
        ("--grpc-listen", "\"localhost:1\" is not IP:PORT"),
        ("--set", "telemetry.otlp.batch: is 0"),
        ("--set", "telemetry.trace.sample_ratio: is 7"),
        ("RUST_LOG", "telemetry.log.filter"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "expected a whole number"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "this build can only do grpc"),
        ("OTEL_TRACES_EXPORTER", "expected otlp or none"),
    ];
    for command in [&["serve"][..], &["config", "check"], &["config", "show"]] {
        let output = streambus(&[command, &arguments].concat(), &environment);
        let told = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{command:?}: {told}");
        for (origin, what) in mistakes {
            let is_it = |line: &str| line.trim().starts_with(&format!("{origin}: ")) && line.contains(what);
            assert!(told.lines().any(is_it), "{command:?}: {origin}: {what}\n{told}");
        }
        assert!(told.contains(&format!("{} mistakes", mistakes.len())), "{told}");
    }
    assert!(!data.exists(), "nothing was begun");
    let output = streambus(&[&["config", "check", "-o", "json"][..], &arguments].concat(), &environment);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &told["ok"]), (Some(2), &false.into()));
    assert_eq!(told["mistakes"].as_array().map(Vec::len), Some(mistakes.len()));
}

#[test]
fn mistakes_in_what_tls_needs_are_told_at_once_with_setting_and_path() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let empty = directory.path().join("empty.pem").to_string_lossy().into_owned();
    std::fs::write(&empty, "").expect("written");
    let missing = directory.path().join("missing.pem").to_string_lossy().into_owned();
    let data = directory.path().join("data").to_string_lossy().into_owned();
    let endpoint = "telemetry.otlp.endpoint=https://collector:4317";
    let key = format!("telemetry.otlp.traces.client_key={empty}");
    let arguments = ["--data-dir", &data, "--set", endpoint, "--set", &key];
    let environment = [
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", &missing[..]),
        ("STREAMBUS_TELEMETRY__OTLP__LOGS__CERTIFICATE", &empty),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "lzma"),
    ];
    let output = serve(&arguments, &environment[..2]);
    let told = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{told}");
    for (origin, setting, what) in [
        (
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            "telemetry.otlp.certificate",
            format!("is `{missing}`: cannot be read"),
        ),
        (
            "STREAMBUS_TELEMETRY__OTLP__LOGS__CERTIFICATE",
            "telemetry.otlp.logs.certificate",
            format!("is `{empty}`: holds no certificate"),
        ),
        ("--set", "telemetry.otlp.traces.client_key", format!("is `{empty}`: needs its certificate")),
    ] {
        let line = format!("{origin}: {setting}: {what}");
        assert!(told.lines().any(|told| told.trim().starts_with(&line)), "{line}\n{told}");
    }
    assert!(told.contains("3 mistakes"), "{told}");
    let output = streambus(&["config", "check"], &environment[2..]);
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(
        told.contains("OTEL_EXPORTER_OTLP_COMPRESSION: telemetry.otlp.compression: unknown variant"),
        "{told}"
    );
    assert!(!std::path::Path::new(&data).exists(), "nothing was begun");
}

#[test]
fn a_filter_that_selects_nothing_is_warned_of_also_where_it_hides_all_else() {
    let said =
        String::from_utf8(streambus(&["config", "check"], &[("RUST_LOG", "inof")]).stderr).expect("text");
    let expected = "warning: RUST_LOG: telemetry.log.filter: `inof` is no level";
    assert!(said.starts_with(expected) && said.trim().ends_with("did you mean info?"), "{said}");
    let quiet =
        streambus(&["config", "check"], &[("RUST_LOG", "info,h2=warn,openraft,tonic::transport=debug")]);
    assert_eq!(String::from_utf8(quiet.stderr).expect("text"), "");
}

#[test]
fn what_standard_variables_decide_is_shown_and_what_has_no_effect_is_warned_of() {
    let environment = [
        ("RUST_LOG", "warn"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "key=secret"),
        ("OTEL_PROPAGATORS", "b3"),
    ];
    let output = streambus(&["config", "show"], &environment);
    let (shown, said) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
    let (shown, said) = (shown.expect("text"), said.expect("text"));
    for (key, value, origin) in [
        ("telemetry.log.filter", "\"warn\"", "RUST_LOG"),
        ("telemetry.otlp.endpoint", "\"http://collector:4317\"", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ("telemetry.otlp.headers.key", "\"***\"", "OTEL_EXPORTER_OTLP_HEADERS"),
    ] {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(shown.lines().any(|line| words(line) == [key, value, origin]), "{key}\n{shown}");
    }
    assert!(said.contains("warning: OTEL_PROPAGATORS"), "{said}");
    assert!(streambus(&["config", "check"], &environment).status.success());
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("file");
    std::fs::write(&file, "").expect("written");
    let any = ["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    for data in [file.clone(), file.join("below")] {
        let data = data.to_string_lossy();
        let output = serve(&[&["--data-dir", &data][..], &any].concat(), &[]);
        let told = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(&*data), "{told}");
    }
}
