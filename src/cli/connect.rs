//! Connecting to a broker.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::client::{Client, ClientBuilder, ClientConfig};

use super::Global;

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
    Client::builder().bootstrap(&global.broker).config(config)
}

/// Prints what the client library has to say, by default warnings only; `RUST_LOG` chooses.
fn log_to_standard_error() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time();
    // A second connection of the same process finds the subscriber in place.
    let _ = subscriber.try_init();
}
