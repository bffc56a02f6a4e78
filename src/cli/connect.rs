//! Connecting to a broker.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::client::{Client, ClientBuilder, ClientConfig};

use super::Global;
use super::output::note;

/// A client of the broker that the command line names.
///
/// # Errors
/// If no broker answers there.
pub(super) async fn connect(global: &Global) -> anyhow::Result<Client> {
    Ok(builder(global).connect().await?)
}

/// Like [`connect`], for commands that have something to add.
pub(super) fn builder(global: &Global) -> ClientBuilder {
    log_to_standard_error();
    let config = ClientConfig {
        request_timeout: global.timeout.0,
        connect_timeout: ClientConfig::default().connect_timeout.min(global.timeout.0),
        client_id: Some("streambus-cli".to_owned()),
        ..ClientConfig::default()
    };
    let builder = Client::builder().config(config);
    global.broker.0.iter().fold(builder, ClientBuilder::bootstrap)
}

/// Prints what the client library has to say, by default warnings only; `RUST_LOG` chooses.
fn log_to_standard_error() {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.is_empty() => EnvFilter::builder().parse(&text).unwrap_or_else(|error| {
            note(format_args!("warning: RUST_LOG is `{text}`, and is not used: {error}"));
            EnvFilter::new("warn")
        }),
        _ => EnvFilter::new("warn"),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time();
    // A second connection of the same process finds the subscriber in place.
    let _ = subscriber.try_init();
}
