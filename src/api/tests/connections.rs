//! What connections that are not as they should be get.

use super::*;
use crate::proto::v1;
use crate::proto::v1::produce_service_client::ProduceServiceClient;
use tonic::Code;
use tonic_types::StatusExt as _;

#[tokio::test]
async fn http1_on_the_grpc_port_is_told_where_http_is() {
    let api = Api::start().await;
    let answer = exchange(api.grpc, b"GET /metrics HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains(&format!("port {}", api.http.port())), "{answer}");
    assert_eq!(api.errors("http_on_grpc_port"), 1.0);
}

#[tokio::test]
async fn garbage_on_the_grpc_port_is_closed_and_others_are_served() {
    let api = Api::start().await;
    assert_eq!(exchange(api.grpc, b"\x00\xff\x00\xffgarbage").await, b"");
    assert_eq!(exchange(api.grpc, b"\x16\x03\x01\x02\x00\x01").await, b"");
    let mut client = ProduceServiceClient::new(api.channel().await);
    within(client.init_producer(v1::InitProducerRequest {})).await.unwrap();
    assert_eq!(api.errors("protocol"), 2.0);
}

#[tokio::test]
async fn a_broken_frame_after_the_preface_ends_the_connection() {
    let api = Api::start().await;
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend_from_slice(&[0xff; 64]);
    let answer = exchange(api.grpc, &sent).await;
    const GOAWAY: u8 = 7;
    assert!(answer.len() > 9 && answer[3] == 4, "settings come first: {answer:?}");
    assert!(answer.windows(4).any(|bytes| bytes[3] == GOAWAY), "{answer:?}");
    assert_eq!(api.errors("protocol"), 1.0);
}

#[tokio::test]
async fn garbage_on_the_http_port_gets_status_400() {
    let api = Api::start().await;
    let answer = exchange(api.http, b"\x00\xff\x00\xff\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
    assert_eq!(api.errors("protocol"), 1.0);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_disconnected() {
    let short = Duration::from_millis(50);
    let config = Config { handshake_timeout: short, keepalive_interval: short, ..Config::default() };
    let api = Api::with(config).await;
    for address in [api.grpc, api.http] {
        assert_eq!(exchange(address, b"").await, b"", "{address}");
    }
    assert_eq!(api.errors("handshake_timeout"), 2.0);
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_disconnected() {
    let short = Duration::from_millis(50);
    let config = Config { keepalive_interval: short, keepalive_timeout: short, ..Config::default() };
    let api = Api::with(config).await;
    let answer =
        exchange(api.grpc, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await;
    assert!(!answer.is_empty());
    assert_eq!(api.errors("keepalive_timeout"), 1.0);
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_told_so() {
    let api = Api::with(Config { connections_max: 1, http_connections_max: 1, ..Config::default() }).await;
    let first = api.channel().await;
    within(ProduceServiceClient::new(first.clone()).init_producer(v1::InitProducerRequest {})).await.unwrap();
    let refused =
        String::from_utf8_lossy(&exchange(api.grpc, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await).into_owned();
    assert!(refused.contains("at most 1 connections at a time (api.connections_max)"), "{refused}");

    let idle = TcpStream::connect(api.http).await.unwrap();
    let refused = exchange(api.http, b"GET / HTTP/1.1\r\n\r\n").await;
    assert!(refused.starts_with(b"HTTP/1.1 503 "), "{refused:?}");
    drop(idle);
    assert_eq!(api.errors("connection_limit"), 2.0);
}

#[tokio::test]
async fn places_of_closed_connections_are_given_back() {
    let api = Api::with(Config { connections_max: 1, ..Config::default() }).await;
    for _ in 0..5 {
        within(async {
            while !exchange(api.grpc, b"garbage\r\n").await.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn an_oversized_message_is_refused_by_name_and_limit() {
    let api = Api::start().await;
    let mut client = ProduceServiceClient::new(api.channel().await);
    let request = v1::ProduceRequest {
        topic: "orders".to_owned(),
        batch: batch(&vec![7; 2 * BATCH_BYTES_MAX as usize]),
        ..Default::default()
    };
    let status = within(client.produce(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "BATCH_TOO_LARGE");
    assert!(status.message().contains("broker.batch_bytes_max"), "{status:?}");
    // The connection goes on.
    within(client.init_producer(v1::InitProducerRequest {})).await.unwrap();
    assert_eq!(api.errors("oversized"), 1.0);
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_setting() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = listen("api.http_listen", address).unwrap_err().to_string();
    assert!(error.contains("api.http_listen") && error.contains(&address.to_string()), "{error}");
}
