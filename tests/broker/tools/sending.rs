//! `streambus produce`.

use std::io::Write as _;
use std::process::Stdio;

use streambus::telemetry::catalog;

use crate::support::tool::command;
use crate::support::{PATIENCE, Process, eventually, within};

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_not_acknowledged_in_time_end_it_and_those_that_were_are_counted() {
    let broker = Process::start(&[]).await;
    broker.create_topic("orders", 1).await;
    let mut produce = command(&broker, &["produce", "orders", "--timeout", "2s"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = produce.stdin.take().expect("standard input is piped");
    lines.write_all(b"a\n").expect("taken");
    eventually(PATIENCE, "the first record is stored", async || {
        let stored = broker.scrape().await.or_zero(&catalog::MESSAGES_STORED, &[("topic", "orders")]);
        (stored > 0.0).then_some(())
    })
    .await;
    broker.freeze();
    lines.write_all(b"b\n").expect("taken");
    drop(lines);
    let ended = tokio::task::spawn_blocking(move || produce.wait_with_output());
    let output = within("it ends", ended).await.expect("no panic").expect("it ran");
    broker.thaw();
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    // The answer to the first record may have been on its way when the broker stopped.
    assert!(said.contains(" acknowledged, then: not delivered within 2s"), "{said}");
    assert!(said.contains("cluster status"), "it says what to look at: {said}");
}
