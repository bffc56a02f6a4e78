//! Speaking to a broker over its two ports.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use streambus::client::{Client, ClientConfig};
use streambus::proto::v1;
use streambus::proto::v1::cluster_service_client::ClusterServiceClient;
use streambus::proto::v1::consume_service_client::ConsumeServiceClient;
use streambus::proto::v1::position::At;
use streambus::proto::v1::produce_service_client::ProduceServiceClient;
use streambus::proto::v1::topic_service_client::TopicServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{View, within};

/// Where a broker is reached.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Its gRPC port.
    pub grpc: SocketAddr,
    /// Its HTTP port.
    pub http: SocketAddr,
}

/// An answer over HTTP/1.1.
#[derive(Debug)]
pub struct HttpAnswer {
    /// Status code.
    pub status: u16,
    /// Header lines in lower case.
    pub head: String,
    /// The body.
    pub body: String,
    /// Bytes of the request as it was sent.
    pub bytes_sent: u64,
    /// Bytes of the whole answer.
    pub bytes_received: u64,
}

impl Endpoint {
    /// A new connection to the gRPC port.
    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.grpc)).expect("an address");
        within("a connection", endpoint.connect()).await.expect("the broker accepts connections")
    }

    /// The produce service on a connection of its own.
    pub async fn produce(&self) -> ProduceServiceClient<Channel> {
        ProduceServiceClient::new(self.channel().await)
    }

    /// The consume service on a connection of its own.
    pub async fn consume(&self) -> ConsumeServiceClient<Channel> {
        ConsumeServiceClient::new(self.channel().await).max_decoding_message_size(usize::MAX)
    }

    /// The topic service on a connection of its own.
    pub async fn topics(&self) -> TopicServiceClient<Channel> {
        TopicServiceClient::new(self.channel().await)
    }

    /// The cluster service on a connection of its own.
    pub async fn cluster(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel().await)
    }

    /// The client library.
    pub async fn client(&self) -> Client {
        let client = Client::connect(self.grpc.to_string(), ClientConfig::default());
        within("the client library connects", client).await.expect("the broker answers")
    }

    /// Creates a topic with the defaults.
    pub async fn create_topic(&self, name: &str, partitions: u32) -> v1::Topic {
        self.create_topic_with(name, partitions, v1::TopicConfig::default()).await
    }

    /// Creates a topic.
    pub async fn create_topic_with(&self, name: &str, partitions: u32, config: v1::TopicConfig) -> v1::Topic {
        let request = v1::CreateTopicRequest {
            name: name.to_owned(),
            partition_count: partitions,
            config: Some(config),
            ..Default::default()
        };
        let created = self.topics().await.create_topic(request).await.expect("the topic is created");
        created.into_inner().topic.expect("the topic")
    }

    /// Asks the HTTP port with `GET`, on a connection of its own.
    pub async fn get(&self, path: &str) -> HttpAnswer {
        let request = format!("GET {path} HTTP/1.1\r\nhost: broker\r\nconnection: close\r\n\r\n");
        self.http(&request).await
    }

    /// Sends a whole HTTP/1.1 request and reads the answer until the broker closes.
    pub async fn http(&self, request: &str) -> HttpAnswer {
        let answer = exchange(self.http, request.as_bytes()).await;
        let text = String::from_utf8(answer).expect("the answer is text");
        let (head, body) = text.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        HttpAnswer {
            status,
            head: head.to_lowercase(),
            body: body.to_owned(),
            bytes_sent: request.len() as u64,
            bytes_received: text.len() as u64,
        }
    }

    /// Scrapes `/metrics`.
    pub async fn scrape(&self) -> View {
        self.scrape_counted().await.0
    }

    /// Scrapes `/metrics`, and also gives the answer as it was.
    pub async fn scrape_counted(&self) -> (View, HttpAnswer) {
        let answer = self.get("/metrics").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        (View::prometheus(&answer.body), answer)
    }

    /// `/health` or one of its kind, as JSON.
    pub async fn health(&self, path: &str) -> (u16, serde_json::Value) {
        let answer = self.get(path).await;
        (answer.status, serde_json::from_str(&answer.body).expect("the body is JSON"))
    }
}

/// Sends `bytes` and reads until the peer closes.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(bytes).await.expect("the request is sent");
        let mut answer = Vec::new();
        // A reset after the answer is the end of it as well.
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    within("the peer answers and closes", talk).await
}

/// A produce request without a sequence.
pub fn produce(topic: &str, partition: u32, batch: Bytes) -> v1::ProduceRequest {
    v1::ProduceRequest { topic: topic.to_owned(), partition, batch, producer: None }
}

/// A partition and where to read it from.
pub fn from(topic: &str, partition: u32, at: At) -> v1::PartitionPosition {
    v1::PartitionPosition {
        topic: topic.to_owned(),
        partition,
        position: Some(v1::Position { at: Some(at) }),
    }
}

/// A fetch of one partition from `at` that waits for nothing.
pub fn fetch(topic: &str, partition: u32, at: At) -> v1::FetchRequest {
    v1::FetchRequest {
        partitions: vec![from(topic, partition, at)],
        max_wait: Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 }),
        accepted_codecs: vec![v1::Codec::Lz4.into(), v1::Codec::Zstd.into()],
        ..Default::default()
    }
}

/// A protocol duration.
pub fn duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().expect("a short duration")
}

/// What a failed call says: status, reason of its `google.rpc.ErrorInfo`, and whether it advises a retry.
pub fn reason(status: &Status) -> (Code, String, bool) {
    let info = status.get_details_error_info();
    let reason = info.map_or_else(String::new, |info| {
        assert_eq!(info.domain, "streambus");
        info.reason
    });
    (status.code(), reason, status.get_details_retry_info().is_some())
}
