//! Holds the source to the layers that `src/lib.rs` describes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module with what it may use. A module may always use itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("clock", &[]),
    ("units", &[]),
    ("telemetry", &["proto", "units"]),
    ("record", &["proto"]),
    ("task", &["clock", "telemetry"]),
    ("metadata", &["proto", "clock", "record"]),
    ("coordination", &["proto", "clock", "record", "metadata"]),
    ("storage", &["record", "telemetry", "task", "units"]),
    ("raft", &["proto", "clock", "telemetry", "task", "storage", "units"]),
    ("partition", &["proto", "clock", "telemetry", "record", "task", "storage", "raft", "units"]),
    (
        "cluster",
        &[
            "proto",
            "clock",
            "telemetry",
            "record",
            "task",
            "metadata",
            "coordination",
            "storage",
            "raft",
            "partition",
            "units",
        ],
    ),
    (
        "broker",
        &[
            "clock",
            "telemetry",
            "record",
            "task",
            "metadata",
            "coordination",
            "storage",
            "raft",
            "partition",
            "cluster",
            "units",
        ],
    ),
    ("api", &["proto", "clock", "telemetry", "record", "task", "metadata", "cluster", "broker", "units"]),
    ("client", &["proto", "clock", "telemetry", "record", "task", "units"]),
    ("config", &["telemetry", "storage", "raft", "partition", "cluster", "broker", "api", "units"]),
    (
        "server",
        &[
            "clock",
            "telemetry",
            "task",
            "metadata",
            "storage",
            "raft",
            "partition",
            "cluster",
            "broker",
            "api",
            "config",
        ],
    ),
    ("cli", &["client", "config", "server", "record", "telemetry", "units", "clock"]),
];

/// An outside library and the only modules that may name it.
const OWNERS: &[(&str, &[&str])] = &[
    ("fjall::", &["storage"]),
    ("openraft::", &["raft"]),
    ("opentelemetry_sdk::", &["telemetry", "cli"]),
    ("opentelemetry_otlp::", &["telemetry", "cli"]),
    ("opentelemetry_prometheus::", &["telemetry"]),
    ("opentelemetry_proto::", &["telemetry"]),
    ("rustls::", &["telemetry"]),
    ("rustls_native_certs::", &["telemetry"]),
    ("axum::", &["api"]),
    ("ratatui::", &["cli"]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a source folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Files and folders that are compiled for tests only, and may use whatever they test with.
const TESTS: [&str; 4] = ["tests", "testing", "conformance", "simulation"];

fn is_test(path: &Path) -> bool {
    path.with_extension("").iter().any(|part| TESTS.iter().any(|name| part == *name))
}

/// The module that a file belongs to, and its code without comments, tests that follow it and doc text.
fn modules() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files.retain(|path| !is_test(path.strip_prefix(&root).expect("below src")));
    let of = |path: PathBuf| {
        let relative = path.strip_prefix(&root).expect("below src").to_owned();
        let first = relative.iter().next().expect("a name").to_string_lossy();
        let text = fs::read_to_string(&path).expect("readable");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        (first.trim_end_matches(".rs").to_owned(), relative, code.join("\n"))
    };
    files.into_iter().map(of).filter(|(name, ..)| name != "lib" && name != "main").collect()
}

/// The modules that `code` names behind `crate::`.
fn used(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = list.split(';').next().unwrap_or_default();
                let mut depth = 0;
                for part in list.split_inclusive([',', '{', '}']) {
                    let name: String =
                        part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    if depth == 0 && !name.is_empty() {
                        found.insert(name);
                    }
                    depth += part.matches('{').count() as i32 - part.matches('}').count() as i32;
                    if depth < 0 {
                        break;
                    }
                }
            }
            None => {
                found.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            }
        }
    }
    found
}

#[test]
fn modules_use_only_lower_layers() {
    let known: BTreeSet<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    let mut violations = Vec::new();
    for (module, file, code) in modules() {
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
            violations.push(format!("src/{}: module `{module}` has no layer", file.display()));
            continue;
        };
        for name in used(&code).iter().filter(|name| known.contains(name.as_str()) && **name != module) {
            if !allowed.contains(&name.as_str()) {
                violations.push(format!("src/{} uses crate::{name}", file.display()));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn outside_libraries_have_one_owner() {
    let mut violations = Vec::new();
    for (module, file, code) in modules() {
        for (library, owners) in OWNERS {
            let named = code
                .match_indices(library)
                .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
            if named && !owners.contains(&module.as_str()) {
                violations.push(format!("src/{} names {library}", file.display()));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn metric_names_are_spelled_in_the_catalogue_only() {
    let mut violations = Vec::new();
    // `proto` names the file with the protocol's description, which begins in the same way.
    let elsewhere = |module: &str| module != "telemetry" && module != "proto";
    for (module, file, code) in modules().into_iter().filter(|(module, ..)| elsewhere(module)) {
        for (number, line) in code.lines().enumerate() {
            if line.contains("\"streambus_") && module != "cli" {
                violations.push(format!("src/{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}
