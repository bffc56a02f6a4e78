//! A broker inside the test's own process.

use std::ops::Deref;

use streambus::config::Config;
use streambus::server::Server;
use tempfile::TempDir;

use super::{Endpoint, within};

/// A broker in a temporary directory, on ports that the system chose. It logs nothing but errors.
pub struct TestBroker {
    endpoint: Endpoint,
    server: Server,
    config: Config,
    directory: TempDir,
}

impl Deref for TestBroker {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl TestBroker {
    /// Starts one with the defaults.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts one with changed settings.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        let any = "127.0.0.1:0".parse().expect("an address");
        config.api.grpc_listen = any;
        config.api.http_listen = any;
        config.storage.reserve_bytes = 1 << 20;
        config.telemetry.log.filter = "error".to_owned();
        change(&mut config);
        Self::open(config, tempfile::tempdir().expect("a temporary directory")).await
    }

    async fn open(mut config: Config, directory: TempDir) -> Self {
        config.storage.data_dir = directory.path().join("data");
        let server =
            within("the broker starts", Box::pin(Server::start(config.clone()))).await.expect("it starts");
        let endpoint = Endpoint { grpc: server.grpc_addr(), http: server.http_addr() };
        TestBroker { endpoint, server, config, directory }
    }

    /// Stops it in order.
    pub async fn stop(self) {
        within("the broker stops", self.server.stop()).await;
    }

    /// Stops it in order and starts it again on the same data, with changed settings.
    pub async fn restart_with(self, change: impl FnOnce(&mut Config)) -> Self {
        let TestBroker { server, mut config, directory, .. } = self;
        within("the broker stops", server.stop()).await;
        change(&mut config);
        Self::open(config, directory).await
    }
}
