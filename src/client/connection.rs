//! Connections to brokers.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::Mutex;

use tonic::transport::{Channel, Endpoint};

use super::error::append_sources;
use super::{ClientConfig, Error};
use crate::proto::v1::cluster_service_client::ClusterServiceClient;
use crate::proto::v1::consume_service_client::ConsumeServiceClient;
use crate::proto::v1::control_service_client::ControlServiceClient;
use crate::proto::v1::group_service_client::GroupServiceClient;
use crate::proto::v1::produce_service_client::ProduceServiceClient;
use crate::proto::v1::topic_service_client::TopicServiceClient;

/// Largest HTTP/2 frame that is accepted. The default of 16 KiB halves the throughput of large batches.
const FRAME_BYTES_MAX: u32 = 1 << 20;

/// The connections of a client, one per broker, which its unary calls share.
///
/// Producers and consumers open their own, so that a consumer that does not read cannot use up the connection
/// window of the others.
#[derive(Debug)]
pub(super) struct Connections {
    config: ClientConfig,
    shared: Mutex<HashMap<String, Broker>>,
}

impl Connections {
    pub(super) fn new(config: ClientConfig) -> Self {
        Connections { config, shared: Mutex::default() }
    }

    /// The shared connection to `address`, made if there is none. A failure means that nothing was sent.
    pub(super) async fn shared(&self, address: &str) -> Result<Broker, Error> {
        if let Some(broker) = self.lock().get(address) {
            return Ok(broker.clone());
        }
        let broker = self.open(address).await?;
        Ok(self.lock().entry(address.to_owned()).or_insert(broker).clone())
    }

    /// Drops the shared connection to `address` because it failed, so that the next call makes a new one and can
    /// tell a connection that did not come about from one that broke.
    pub(super) fn forget(&self, address: &str) {
        self.lock().remove(address);
    }

    /// A new connection to `address`. A failure means that nothing was sent.
    pub(super) async fn open(&self, address: &str) -> Result<Broker, Error> {
        let channel = self.endpoint(address)?.connect().await.map_err(|error| {
            let mut reason = String::new();
            append_sources(&mut reason, error.source());
            Error::Unreachable { address: address.to_owned(), reason }
        })?;
        Ok(Broker { channel, message_bytes_max: self.config.message_bytes_max })
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, Error> {
        let invalid = |reason: String| Error::InvalidConfig { field: "bootstrap", reason };
        let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(uri)
            .map_err(|_| invalid(format!("{address} is not an address; write host:port")))?;
        if endpoint.uri().port().is_none() {
            return Err(invalid(format!("{address} has no port; write host:port")));
        }
        let agent = self.config.client_id.clone().unwrap_or_else(|| "streambus-rust".into());
        let endpoint = endpoint.user_agent(agent).map_err(|_| Error::InvalidConfig {
            field: "client_id",
            reason: "it must consist of visible ASCII characters".into(),
        })?;
        Ok(endpoint
            .connect_timeout(self.config.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.config.keepalive_interval)
            .keep_alive_timeout(self.config.keepalive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(self.config.stream_window_bytes)
            .initial_connection_window_size(self.config.connection_window_bytes)
            .max_frame_size(FRAME_BYTES_MAX))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Broker>> {
        self.shared.lock().expect("no holder of this lock can panic")
    }
}

/// A connection to one broker.
#[derive(Clone, Debug)]
pub(super) struct Broker {
    channel: Channel,
    message_bytes_max: usize,
}

macro_rules! service {
    ($method:ident, $client:ident) => {
        pub(super) fn $method(&self) -> $client<Channel> {
            $client::new(self.channel.clone())
                .max_decoding_message_size(self.message_bytes_max)
                .max_encoding_message_size(self.message_bytes_max)
        }
    };
}

impl Broker {
    service!(cluster, ClusterServiceClient);
    service!(topics, TopicServiceClient);
    service!(produce, ProduceServiceClient);
    service!(consume, ConsumeServiceClient);
    service!(groups, GroupServiceClient);
    service!(control, ControlServiceClient);
}
