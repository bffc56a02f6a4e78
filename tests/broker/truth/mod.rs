//! Every metric says what happened.
//!
//! One broker process with a collector goes through a scripted workload. For every row of the catalogue the script
//! holds at least one expectation, an exact value, an exact change or a stated bound, for `/metrics` and for OTLP. A
//! row without one fails the test, and so does a family on `/metrics` that is not in the catalogue. Rows that only
//! `/metrics/detailed` shows have theirs in a cluster, where followers can lag.

mod cluster;
mod detailed;
mod floods;
mod groups;
mod overrides;
mod proof;
mod script;

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use streambus::telemetry::catalog::{self, Family, ROWS, Row};

use self::proof::{Moment, Proof, same, within};
use self::script::Script;
use crate::support::view::Source;
use crate::support::{Collector, Process};

/// Spans that may wait for export in this test.
const SPAN_QUEUE: u64 = 32;
const CONNECTIONS_MAX: usize = 24;

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_catalogue_is_true() {
    let collector = Collector::start().await;
    let spawned = SystemTime::now();
    let broker = Process::start(&[
        ("server.worker_threads", "3"),
        ("api.keepalive_interval", "10m"),
        ("api.handshake_timeout", "300ms"),
        ("api.connections_max", &CONNECTIONS_MAX.to_string()),
        ("partition.retention_interval", "100ms"),
        ("storage.table_bytes", "1048576"),
        ("storage.write_buffer_bytes", "4194304"),
        ("storage.round_bytes", "65536"),
        ("raft.checkpoint_bytes", "262144"),
        ("telemetry.otlp.endpoint", collector.endpoint()),
        ("telemetry.otlp.metrics_interval", "100ms"),
        ("telemetry.otlp.batch_delay", "50ms"),
        ("telemetry.otlp.timeout", "1s"),
        ("telemetry.otlp.span_queue", &SPAN_QUEUE.to_string()),
        ("telemetry.otlp.batch", "16"),
        ("telemetry.trace.sample_ratio", "0"),
    ])
    .await;
    let mut proof = Proof::default();
    let mut script = Script::new(&broker, &collector).await;

    script.telemetry_sent().await;
    let idle = script.moment().await;
    let idle_at = Instant::now();
    every_family_is_in_the_catalogue(&idle);
    the_process_is_what_the_system_says(&mut proof, &idle, &broker, spawned);
    idle_levels(&mut proof, &idle);

    // Topics, records in, records out, refusals: everything is counted exactly.
    let at_idle = script.tally();
    script.traffic().await;
    let open = script.hold_open().await;
    let busy = script.moment().await;
    proof.grew([&idle, &busy], &catalog::SUBSCRIPTIONS, &[], 1.0);
    proof.equals(&busy, &catalog::FETCHES_WAITING, &[], 1.0);
    proof.grew([&idle, &busy], &catalog::BROKER_ACTIVE_REQUESTS, &[], 2.0);
    proof.grew([&idle, &busy], &catalog::BROKER_CONNECTIONS, &[], script::HELD_CONNECTIONS as f64);
    proof.between([&idle, &busy], &catalog::RUNTIME_TASKS, |before, after| {
        let (row, held) = (&catalog::RUNTIME_TASKS, script::HELD_CONNECTIONS as f64);
        within("growth", Some(after.or_zero(row, &[]) - before.or_zero(row, &[])), held, 1e4)
    });
    script.let_go(open).await;
    let quiet = script.quiet().await;
    let at_quiet = script.tally();
    script::check_tally(&mut proof, (&idle, &at_idle), (&quiet, &at_quiet));
    proof.equals(&quiet, &catalog::SUBSCRIPTIONS, &[], 0.0);
    proof.equals(&quiet, &catalog::FETCHES_WAITING, &[], 0.0);

    // Calls and connections that go wrong.
    let errors = script.calls().await;
    let after_calls = script.quiet().await;
    script::check_errors(&mut proof, [&quiet, &after_calls], &errors);
    script::check_tally(&mut proof, (&idle, &at_idle), (&after_calls, &script.tally()));
    script.exact_bytes(&mut proof).await;

    // Load, which fills buffers and tables; retention and deletion, which empty them.
    let before_load = script.moment().await;
    let load = script.load(&mut proof).await;
    let after_load = script.quiet().await;
    script::check_load(&mut proof, [&before_load, &after_load], &load);
    script::check_tally(&mut proof, (&idle, &at_idle), (&after_load, &script.tally()));
    script.deletions(&mut proof, &after_load).await;

    // The collector fails in every way it can.
    script.trouble_with_traces(&mut proof, SPAN_QUEUE).await;
    script.trouble_with_metrics(&mut proof).await;

    let last = script.quiet().await;
    proof.between([&idle, &last], &catalog::BROKER_UPTIME, |before, after| {
        let row = &catalog::BROKER_UPTIME;
        let grown = after.or_zero(row, &[]) - before.or_zero(row, &[]);
        within("growth", Some(grown), 0.0, idle_at.elapsed().as_secs_f64() + 0.5)
    });
    proof.between([&idle, &last], &catalog::RUNTIME_BUSY, |before, after| {
        let row = &catalog::RUNTIME_BUSY;
        let grown = after.or_zero(row, &[]) - before.or_zero(row, &[]);
        within("growth", Some(grown), 1e-3, 3.0 * (idle_at.elapsed().as_secs_f64() + 0.5))
    });
    proof.between([&idle, &last], &catalog::PROCESS_CPU, |before, after| {
        let row = &catalog::PROCESS_CPU;
        let grown = after.or_zero(row, &[]) - before.or_zero(row, &[]);
        within("growth", Some(grown), 0.01, 16.0 * idle_at.elapsed().as_secs_f64())
    });
    let warnings = broker.log().iter().filter(|line| line["level"] == "WARN").count();
    let errors = broker.log().iter().filter(|line| line["level"] == "ERROR").count();
    proof.equals(&last, &catalog::LOG_EVENTS, &[("level", "warn")], warnings as f64);
    proof.equals(&last, &catalog::LOG_EVENTS, &[("level", "error")], errors as f64);
    assert!(warnings >= 1 && errors == 0, "{warnings} warnings, {errors} errors: {:#?}", broker.log());
    proof.equals(&last, &catalog::TELEMETRY_PANICS, &[], 0.0);
    proof.equals(&last, &catalog::TELEMETRY_OVERFLOW, &[], 0.0);
    every_family_is_in_the_catalogue(&last);
    // Some families have series only where there are groups, or other brokers.
    every_family_is_declared_as_in_the_catalogue(&last, |row| {
        !matches!(row.family, Family::Group | Family::Cluster | Family::Raft)
    });

    // The end, and another life with a disk that is too small and bytes that have changed.
    drop(script);
    let remains = broker.stop().await;
    let farewell = collector.newest_metrics().expect("exports");
    proof.claim(
        &catalog::BROKER_STATUS,
        &farewell,
        same("status at the end", farewell.get(&catalog::BROKER_STATUS, &[]), Some(0.0)),
    );
    script::another_life(&mut proof, remains, &collector, &last).await;

    let with_groups = groups::prove(&mut proof).await;
    every_family_is_in_the_catalogue(&with_groups);
    every_family_is_declared_as_in_the_catalogue(&with_groups, |row| row.family == Family::Group);

    let with_peers = cluster::prove(&mut proof).await;
    every_family_is_in_the_catalogue(&with_peers);
    every_family_is_declared_as_in_the_catalogue(&with_peers, |row| {
        matches!(row.family, Family::Cluster | Family::Raft)
    });

    overrides::prove(&mut proof).await;
    floods::prove(&mut proof).await;
    Box::pin(detailed::prove(&mut proof)).await;
    proof.close();
}

fn idle_levels(proof: &mut Proof, idle: &Moment) {
    proof.equals(idle, &catalog::BROKER_STATUS, &[], 2.0);
    for check in ["broker", "storage", "cluster"] {
        proof.equals(idle, &catalog::HEALTH_CHECK, &[("check", check)], 1.0);
    }
    proof.equals(idle, &catalog::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    proof.equals(idle, &catalog::PRODUCE_BUFFER, &[], 0.0);
    proof.equals(idle, &catalog::PRODUCE_BUFFER_LIMIT, &[], f64::from(64 << 20));
    proof.equals(idle, &catalog::TOPICS, &[], 0.0);
    proof.equals(idle, &catalog::PARTITIONS, &[], 0.0);
    proof.equals(idle, &catalog::REPLICAS, &[], 0.0);
    proof.equals(idle, &catalog::STORAGE_RESERVE, &[], f64::from(1 << 20));
    proof.equals(idle, &catalog::STORAGE_WRITABLE, &[], 1.0);
    proof.equals(idle, &catalog::STORAGE_QUEUE, &[], 0.0);
    proof.equals(idle, &catalog::CLUSTER_SIZE, &[], 1.0);
    proof.equals(idle, &catalog::CLUSTER_LEADER, &[], 1.0);
    proof.equals(idle, &catalog::RAFT_GROUPS, &[("role", "leader")], script::SYSTEM_GROUPS);
    proof.equals(idle, &catalog::RAFT_GROUPS, &[("role", "follower")], 0.0);
    proof.equals(idle, &catalog::RAFT_GROUPS, &[("role", "leaderless")], 0.0);
    proof.equals(idle, &catalog::RUNTIME_WORKERS, &[], 3.0);
    proof.at(idle, &catalog::RUNTIME_QUEUE, |view| {
        within("depth while idle", view.get(&catalog::RUNTIME_QUEUE, &[]), 0.0, 16.0)
    });
    for kind in ["log", "sampling"] {
        proof.equals(idle, &catalog::CONTROL_OVERRIDES, &[("kind", kind)], 0.0);
    }
    for signal in ["traces", "logs"] {
        proof.equals(idle, &catalog::TELEMETRY_QUEUE, &[("signal", signal)], 0.0);
    }
    for signal in ["traces", "metrics", "logs"] {
        proof.equals(idle, &catalog::TELEMETRY_FAILURES, &[("signal", signal)], 0.0);
        for loss in ["queue_full", "export_failed"] {
            proof.equals(idle, &catalog::TELEMETRY_DROPPED, &[("reason", loss), ("signal", signal)], 0.0);
        }
    }
    proof.equals(idle, &catalog::STORAGE_ERRORS, &[("kind", "corrupt")], 0.0);
}

fn the_process_is_what_the_system_says(
    proof: &mut Proof,
    idle: &Moment,
    broker: &Process,
    spawned: SystemTime,
) {
    let stat = broker.proc("stat");
    let field = |number: usize| -> f64 {
        let rest = &stat[stat.rfind(')').expect("a name") + 2..];
        rest.split(' ').nth(number - 3).and_then(|field| field.parse().ok()).expect("a number")
    };
    let resident = broker.resident_bytes() as f64;
    proof.at(idle, &catalog::PROCESS_MEMORY, |view| {
        within("bytes", view.get(&catalog::PROCESS_MEMORY, &[]), resident * 0.6, resident * 1.2)
    });
    proof.at(idle, &catalog::PROCESS_VIRTUAL, |view| {
        within("bytes", view.get(&catalog::PROCESS_VIRTUAL, &[]), field(23) * 0.7, field(23) * 1.3)
    });
    let threads = field(20);
    proof.at(idle, &catalog::PROCESS_THREADS, |view| {
        within("threads", view.get(&catalog::PROCESS_THREADS, &[]), threads - 4.0, threads + 4.0)
    });
    let path = format!("/proc/{}/fd", broker.pid());
    let open = std::fs::read_dir(path).expect("the process lives").count() as f64;
    proof.at(idle, &catalog::PROCESS_FDS, |view| {
        within("descriptors", view.get(&catalog::PROCESS_FDS, &[]), open - 4.0, open + 4.0)
    });
    let limits = broker.proc("limits");
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
    let limit: f64 = limit.split_whitespace().next().and_then(|limit| limit.parse().ok()).expect("a number");
    proof.equals(idle, &catalog::PROCESS_FDS_MAX, &[], limit);
    let spawned = spawned.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    proof.at(idle, &catalog::PROCESS_START, |view| {
        within("start", view.get(&catalog::PROCESS_START, &[]), spawned - 2.0, spawned + 2.0)
    });
}

fn every_family_is_in_the_catalogue(moment: &Moment) {
    // The resource is no instrument, but Prometheus wants it as a metric.
    let known: BTreeSet<&str> = ROWS.iter().map(|row| row.prometheus).chain(["target_info"]).collect();
    let shown = moment.scrape.families();
    let strangers: Vec<_> = shown.difference(&known).collect();
    assert!(strangers.is_empty(), "/metrics shows families that the catalogue does not have: {strangers:?}");
    let known: BTreeSet<&str> = ROWS.iter().map(|row| row.otel).collect();
    let exported = moment.export.families();
    let strangers: Vec<_> = exported.difference(&known).collect();
    assert!(strangers.is_empty(), "OTLP has instruments that the catalogue does not have: {strangers:?}");
}

fn every_family_is_declared_as_in_the_catalogue(moment: &Moment, concerns: fn(&Row) -> bool) {
    let mut wrong = Vec::new();
    for row in ROWS.iter().filter(|row| concerns(row)) {
        for view in moment.views() {
            let name = view.name(row);
            let Some(declared) = view.declared.get(name) else {
                wrong.push(format!("{name} is missing ({:?})", view.source));
                continue;
            };
            let unit = match view.source {
                Source::Prometheus => declared.unit.as_str(),
                Source::Otlp => row.unit,
            };
            let expected = (view.kind_of(row.kind), row.help, unit);
            let found = (declared.kind.as_str(), declared.help.as_str(), declared.unit.as_str());
            if found != expected {
                wrong.push(format!("{name} is declared as {found:?} instead of {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
