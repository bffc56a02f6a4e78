//! How the API ends.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::proto::v1;
use crate::proto::v1::consume_service_client::ConsumeServiceClient;
use crate::proto::v1::position::At;
use crate::proto::v1::produce_service_client::ProduceServiceClient;

#[tokio::test]
async fn a_drain_ends_streams_with_unavailable_and_in_time() {
    let api = Api::start().await;
    let (requests, received) = mpsc::channel(4);
    let mut producer = ProduceServiceClient::new(api.channel().await);
    let mut results =
        within(producer.produce_stream(ReceiverStream::new(received))).await.unwrap().into_inner();
    let request =
        v1::ProduceStreamRequest { topic: "orders".to_owned(), batch: batch(b"x"), ..Default::default() };
    requests.send(request).await.unwrap();
    assert_eq!(within(results.message()).await.unwrap().unwrap().results.len(), 1);

    let position = v1::Position { at: Some(At::Latest(())) };
    let partition =
        v1::PartitionPosition { topic: "orders".to_owned(), partition: 1, position: Some(position) };
    let fetch = v1::FetchRequest {
        partitions: vec![partition],
        max_wait: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..Default::default()
    };
    let mut consumer = ConsumeServiceClient::new(api.channel().await);
    let waiting = tokio::spawn(async move { consumer.fetch(fetch).await });

    let mut watch = HealthClient::new(api.channel().await);
    let mut statuses = within(watch.watch(HealthCheckRequest::default())).await.unwrap().into_inner();
    assert_eq!(within(statuses.message()).await.unwrap().unwrap().status(), ServingStatus::Serving);
    // The long poll must have arrived before the drain begins.
    within(async {
        while api.load.requests() < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    assert!(api.running.drain(PATIENCE).await);
    assert_eq!(within(results.message()).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(within(waiting).await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert_eq!(within(statuses.message()).await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(within(statuses.message()).await.unwrap_err().code(), Code::Unavailable);
    assert!(TcpStream::connect(api.grpc).await.is_err());
    assert_eq!(api.http("GET", "/health/live").await.0, 200);
    assert!(api.running.close_http(PATIENCE).await);
}

#[tokio::test]
async fn a_client_that_does_not_leave_is_closed_after_the_deadline() {
    let api = Api::start().await;
    let mut client = TcpStream::connect(api.grpc).await.unwrap();
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await.unwrap();
    // The server's settings show that it serves the connection.
    client.read_exact(&mut [0; 9]).await.unwrap();
    assert!(!api.running.drain(Duration::from_millis(50)).await);
    read_to_close(&mut client).await;
}
