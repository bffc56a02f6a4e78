//! Bytes that are not the port's protocol.

use std::time::Duration;

use streambus::proto::v1;
use streambus::telemetry::catalog;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use super::HELLO;
use crate::support::endpoint::exchange;
use crate::support::{Endpoint, PATIENCE, Refusal, TestBroker, eventually, within};

/// Waits until exactly these network errors are counted, by kind, and no others.
pub(super) async fn counted(broker: &Endpoint, expected: &[(&str, f64)]) {
    let series = |kind| format!("streambus_network_errors_total{{kind=\"{kind}\"}}");
    let mut expected: Vec<_> = expected.iter().map(|(kind, count)| (series(kind), *count)).collect();
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    eventually(PATIENCE, &format!("{expected:?} are counted"), async || {
        let view = broker.scrape().await;
        let errors = view.series_of(&catalog::NETWORK_ERRORS, "").filter(|(_, count)| *count > 0.0);
        errors.map(|(series, count)| (series.to_owned(), count)).eq(expected.iter().cloned()).then_some(())
    })
    .await;
}

/// Shows that the broker serves others.
async fn serves(broker: &Endpoint) {
    broker.produce().await.init_producer(v1::InitProducerRequest {}).await.expect("served");
    assert_eq!(broker.health("/health").await.0, 200);
}

#[tokio::test]
async fn garbage_on_the_grpc_port_ends_its_connection_and_is_counted() {
    let broker = TestBroker::start().await;
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let noise: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for garbage in [&b"\x00\xff\x00\xff"[..], tls, b"PRI * HTTP/3.0\r\n\r\n", b"hello\n", &noise] {
        let mut stream = TcpStream::connect(broker.grpc).await.expect("a connection");
        // The broker may close before it has read all.
        let _ = stream.write_all(garbage).await;
        let mut answer = Vec::new();
        let _ = within("the broker closes", stream.read_to_end(&mut answer)).await;
        assert!(answer.is_empty(), "{answer:?}");
    }
    serves(&broker).await;
    counted(&broker, &[("protocol", 5.0)]).await;
}

#[tokio::test]
async fn frames_that_break_http2_end_their_connection_with_goaway() {
    let broker = TestBroker::start().await;
    // A frame larger than allowed, DATA without a stream, SETTINGS of a wrong length, HEADERS that are no headers.
    let frames: [&[u8]; 4] = [
        &[0xff; 64],
        b"\x00\x00\x01\x00\x00\x00\x00\x00\x00x",
        b"\x00\x00\x05\x04\x00\x00\x00\x00\x00xxxxx",
        b"\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff",
    ];
    for (number, frame) in frames.iter().enumerate() {
        let answer = exchange(broker.grpc, &[HELLO, frame].concat()).await;
        const GOAWAY: u8 = 7;
        let kinds = frame_kinds(&answer);
        assert_eq!(kinds.last(), Some(&GOAWAY), "frame {number}: {kinds:?}");
    }
    serves(&broker).await;
    counted(&broker, &[("protocol", 4.0)]).await;
}

#[tokio::test]
async fn a_request_that_is_not_its_message_is_the_clients_fault() {
    let broker = TestBroker::start().await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", broker.grpc));
    let channel = channel.expect("an address").connect().await.expect("a connection");
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("connected");
    let path = "/streambus.v1.ProduceService/Produce".parse().expect("a path");
    // Another message, whose field 1 is no text.
    let wrong = tonic::Request::new(v1::StoredBatch { base_offset: 7, ..Default::default() });
    let codec = tonic_prost::ProstCodec::<v1::StoredBatch, v1::ProduceResponse>::default();
    let answer = client.unary(wrong, path, codec).await;
    Refusal::of(answer)
        .is(Code::InvalidArgument, "INVALID_ARGUMENT")
        .says("failed to decode Protobuf message");
    serves(&broker).await;
    counted(&broker, &[("protocol", 1.0)]).await;
}

/// The kinds of the HTTP/2 frames in `bytes`.
fn frame_kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [a, b, c, kind, rest @ ..] = bytes {
        kinds.push(*kind);
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        bytes = rest.get(5 + length..).unwrap_or_default();
    }
    kinds
}

#[tokio::test]
async fn garbage_on_the_http_port_is_a_bad_request_and_counted() {
    let broker = TestBroker::start().await;
    for garbage in [&b"\x00\xff\x00\xff\r\n\r\n"[..], b"GET\r\n\r\n", HELLO] {
        let answer = exchange(broker.http, garbage).await;
        let text = String::from_utf8_lossy(&answer);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400 "), "{text}");
    }
    serves(&broker).await;
    counted(&broker, &[("protocol", 3.0)]).await;
}

#[tokio::test]
async fn http_on_the_grpc_port_is_told_where_http_is() {
    let broker = TestBroker::start().await;
    for request in
        ["GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n", "POST / HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc"]
    {
        let answer = String::from_utf8(exchange(broker.grpc, request.as_bytes()).await).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
        assert!(body.contains(&format!("is on port {}", broker.http.port())), "{body}");
    }
    serves(&broker).await;
    counted(&broker, &[("http_on_grpc_port", 2.0)]).await;
}

#[tokio::test]
async fn a_page_that_is_asked_for_on_the_grpc_port_over_http2_is_told_where_http_is() {
    let broker = TestBroker::start().await;
    let mut stream = TcpStream::connect(broker.grpc).await.expect("a connection");
    // HEADERS of a whole request: GET, http, / and an authority, as RFC 7541 numbers them.
    let request = b"\x00\x00\x06\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x01x";
    stream.write_all(&[HELLO, request].concat()).await.expect("sent");
    let expected = format!("HTTP (/metrics, /health) is on port {}.", broker.http.port());
    let mut answer = Vec::new();
    within("an answer", async {
        while !String::from_utf8_lossy(&answer).contains(&expected) {
            assert_ne!(stream.read_buf(&mut answer).await.expect("a connection"), 0, "{answer:?}");
        }
    })
    .await;
    serves(&broker).await;
    counted(&broker, &[("http_on_grpc_port", 1.0)]).await;
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_greeting_is_disconnected_in_time() {
    let broker = TestBroker::with(|config| {
        config.api.handshake_timeout = Duration::from_millis(100);
        config.api.keepalive_interval = Duration::from_millis(100);
    })
    .await;
    // Nothing, half a preface, half a request line that fits HTTP/1, half the head of a request.
    for (port, half) in [
        (broker.grpc, &b""[..]),
        (broker.grpc, &HELLO[..10]),
        (broker.grpc, b"PO"),
        (broker.http, b"GET /hea"),
    ] {
        assert_eq!(exchange(port, half).await, b"", "{half:?}");
    }
    counted(&broker, &[("handshake_timeout", 4.0)]).await;
}

#[tokio::test]
async fn a_client_that_answers_no_pings_is_disconnected() {
    let broker = TestBroker::with(|config| {
        config.api.keepalive_interval = Duration::from_millis(100);
        config.api.keepalive_timeout = Duration::from_millis(100);
    })
    .await;
    let answer = exchange(broker.grpc, HELLO).await;
    const PING: u8 = 6;
    assert!(frame_kinds(&answer).contains(&PING), "{answer:?}");
    counted(&broker, &[("keepalive_timeout", 1.0)]).await;
}

#[tokio::test]
async fn a_client_that_resets_its_connection_is_counted() {
    let broker = TestBroker::start().await;
    let mut stream = TcpStream::connect(broker.grpc).await.expect("a connection");
    stream.write_all(&HELLO[..10]).await.expect("sent");
    // Closing with this option resets the connection instead of ending it.
    #[allow(deprecated, reason = "with a linger of zero closing does not block")]
    stream.set_linger(Some(Duration::ZERO)).expect("a socket option");
    drop(stream);
    counted(&broker, &[("reset", 1.0)]).await;
    serves(&broker).await;
}

#[tokio::test]
async fn a_client_that_leaves_in_order_is_no_error() {
    let broker = TestBroker::start().await;
    drop(TcpStream::connect(broker.grpc).await.expect("a connection"));
    serves(&broker).await;
    counted(&broker, &[]).await;
}
