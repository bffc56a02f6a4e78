//! What a command says of brokers that do not answer.

use crate::support::tool::streambus;
use crate::support::{Process, TestBroker, free_address};

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_does_not_answer_is_named_with_what_to_look_at() {
    let broker = Process::start(&[]).await;
    broker.freeze();
    let ran = streambus(&broker, &["topic", "list", "--timeout", "1s"]).await;
    broker.thaw();
    assert!(!ran.success);
    assert!(ran.errors.contains(&format!("no answer from {} within 1s", broker.grpc)), "{ran:?}");
    assert!(ran.errors.contains("/health") && ran.errors.contains("--timeout"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_brokers_one_that_answers_is_enough() {
    let broker = TestBroker::start().await;
    let both = format!("{},{}", free_address(), broker.grpc);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_streambus"));
    command.args(["topic", "list", "--broker", &both]).env_remove("RUST_LOG");
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
}
