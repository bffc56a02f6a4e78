//! Bad input and greedy clients cost bounded memory, get precise errors, and harm nobody else.
//!
//! The tests of this file show each kind of harm once. The modules below go into the details:
//!
//! | module | what it proves |
//! |---|---|
//! | `batches` | batches that are too large or not well-formed change nothing |
//! | `foreign` | bytes that are not the port's protocol, each kind counted |
//! | `connections` | many connections, too many connections, clients that do not read |
//! | `held` | what clients leave unread or unfinished holds bounded memory |
//! | `disk` | a disk below its reserve stops writes only |
//! | `settings` | a configuration with mistakes names them all |

mod batches;
mod connections;
mod disk;
mod foreign;
mod held;
mod settings;

use std::time::Duration;

use bytes::Bytes;
use streambus::proto::v1;
use streambus::proto::v1::position::At;
use streambus::proto::v1::subscribe_request::Action;
use streambus::telemetry::catalog;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::endpoint::{exchange, fetch, from, produce, reason};
use crate::support::{Endpoint, PATIENCE, Process, TestBroker, batch, eventually};

const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn refused(broker: &Endpoint, partition: u32, batch: Bytes) -> (Code, String, String) {
    let status =
        broker.produce().await.produce(produce("t", partition, batch)).await.expect_err("it is refused");
    let (code, reason, retry) = reason(&status);
    assert!(!retry, "the same batch fails again: {status:?}");
    (code, reason, status.message().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_oversized_batches_are_refused_precisely_and_change_nothing() {
    let broker = TestBroker::start().await;
    let config =
        v1::TopicConfig { record_bytes_max: Some(1000), batch_bytes_max: Some(4000), ..Default::default() };
    broker.create_topic_with("t", 1, config).await;
    let header = |key: &str| v1::Header { key: key.to_owned(), value: Bytes::new() };
    let with = |headers: Vec<v1::Header>| batch::of([v1::Record { headers, ..batch::record("x") }]);
    let cases: Vec<(&str, Bytes, &str)> = vec![
        ("no bytes", Bytes::new(), "MALFORMED_BATCH"),
        ("no protobuf", Bytes::from_static(b"\xff\xff\xff\xff"), "MALFORMED_BATCH"),
        ("a record that ends early", Bytes::from_static(b"\x0a\x7f\x12\x01x"), "MALFORMED_BATCH"),
        ("a large record", batch::values([vec![1; 1200]]), "RECORD_TOO_LARGE"),
        ("a large batch", batch::values(vec![vec![1; 500]; 9]), "BATCH_TOO_LARGE"),
        ("129 headers", with(vec![header("h"); 129]), "MALFORMED_BATCH"),
        ("a header without a name", with(vec![header("")]), "MALFORMED_BATCH"),
        ("a long header name", with(vec![header(&"k".repeat(256))]), "MALFORMED_BATCH"),
    ];
    for (what, bytes, expected) in cases {
        let (code, reason, message) = refused(&broker, 0, bytes).await;
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, expected), "{what}: {message}");
        assert!(!message.is_empty());
    }
    let (_, _, message) = refused(&broker, 0, batch::values([vec![1; 1200]])).await;
    assert!(
        message.contains("1000") && message.contains("record 0"),
        "it names the record and the limit: {message}"
    );
    assert_eq!(refused(&broker, 7, batch::values(["x"])).await.0, Code::NotFound);
    let answer =
        broker.consume().await.fetch(fetch("t", 0, At::Earliest(()))).await.expect("an answer").into_inner();
    assert_eq!(answer.partitions[0].high_watermark, 0, "nothing was written");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_foreign_protocols_get_helpful_answers_and_are_counted() {
    let broker = TestBroker::start().await;
    for request in [
        "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        "POST /streambus.v1 HTTP/1.1\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\n\r\n",
    ] {
        let answer = String::from_utf8(exchange(broker.grpc, request.as_bytes()).await).expect("text");
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert!(answer.contains(&format!("port {}", broker.http.port())), "it says where HTTP is: {answer}");
    }
    for garbage in
        [&b"\x00\x01\x02\x03"[..], b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-OpenSSH\r\n", &[0xff; 4096]]
    {
        assert_eq!(exchange(broker.grpc, garbage).await, b"", "what cannot be understood is not answered");
    }
    let mut broken = HELLO.to_vec();
    broken.extend_from_slice(&[0xff; 64]);
    exchange(broker.grpc, &broken).await;
    for garbage in [&b"\x00\x01\x02\x03\r\n\r\n"[..], b"GET / HTTP/9.9\r\n\r\n", b"NONSENSE\r\n\r\n"] {
        exchange(broker.http, garbage).await;
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(64 << 10));
    exchange(broker.http, long.as_bytes()).await;
    let view = broker.scrape().await;
    assert_eq!(view.get(&catalog::NETWORK_ERRORS, &[("kind", "http_on_grpc_port")]), Some(3.0));
    let protocol = view.or_zero(&catalog::NETWORK_ERRORS, &[("kind", "protocol")]);
    assert!((8.0..=9.0).contains(&protocol), "{protocol}");
    broker.create_topic("t", 1).await;
    broker
        .produce()
        .await
        .produce(produce("t", 0, batch::values(["still serving"])))
        .await
        .expect("committed");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_idle_connections_cost_bounded_memory() {
    const CONNECTIONS: usize = 2_000;
    let broker = Process::start(&[]).await;
    let before = broker.resident_bytes();
    let mut idle = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(broker.grpc).await.expect("a connection");
        stream.write_all(HELLO).await.expect("sent");
        idle.push(stream);
    }
    for stream in &mut idle {
        stream.read_exact(&mut [0; 9]).await.expect("the broker's settings");
    }
    let open = broker.scrape().await.or_zero(&catalog::BROKER_CONNECTIONS, &[]);
    assert_eq!(open, CONNECTIONS as f64 + 1.0);
    let each = (broker.resident_bytes().saturating_sub(before)) / CONNECTIONS as u64;
    println!("an idle connection costs {each} bytes");
    assert!(each < 64 << 10, "an idle connection costs {each} bytes");
    broker.create_topic("t", 1).await;
    broker.produce().await.produce(produce("t", 0, batch::values(["x"]))).await.expect("others are served");
    drop(idle);
    eventually(PATIENCE, "the connections are given back", async || {
        (broker.scrape().await.or_zero(&catalog::BROKER_CONNECTIONS, &[]) <= 2.0).then_some(())
    })
    .await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_told_so_and_probes_still_come_through() {
    let broker = TestBroker::with(|config| config.api.connections_max = 3).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(broker.grpc).await.expect("a connection");
        stream.write_all(HELLO).await.expect("sent");
        stream.read_exact(&mut [0; 9]).await.expect("the broker's settings");
        open.push(stream);
    }
    let answer = exchange(broker.grpc, HELLO).await;
    assert!(String::from_utf8_lossy(&answer).contains("at most 3 connections"), "{answer:?}");
    assert_eq!(broker.get("/health").await.status, 200, "HTTP has a limit of its own");
    let view = broker.scrape().await;
    assert_eq!(view.get(&catalog::NETWORK_ERRORS, &[("kind", "connection_limit")]), Some(1.0));
    drop(open);
    eventually(PATIENCE, "a place is free again", async || {
        (broker.scrape().await.or_zero(&catalog::BROKER_CONNECTIONS, &[]) <= 1.0).then_some(())
    })
    .await;
    broker.create_topic("t", 1).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_never_reads_costs_bounded_memory() {
    let broker =
        Process::start(&[("partition.tail_bytes", "1MiB"), ("partition.partition_tail_bytes", "1MiB")]).await;
    broker.create_topic("t", 1).await;
    let mut client = broker.produce().await;
    let noise = batch::noise(1, 16, 64 << 10);
    for _ in 0..32 {
        client.produce(produce("t", 0, noise.clone())).await.expect("committed");
    }
    let before = broker.resident_bytes();
    let mut held = Vec::new();
    for _ in 0..8 {
        let (requests, receiver) = mpsc::channel(4);
        let start = v1::StartSubscription {
            partitions: vec![from("t", 0, At::Earliest(()))],
            credit_bytes: 1 << 40,
            accepted_codecs: Vec::new(),
        };
        requests.send(v1::SubscribeRequest { action: Some(Action::Start(start)) }).await.expect("open");
        let stream =
            broker.consume().await.subscribe(ReceiverStream::new(receiver)).await.expect("a subscription");
        held.push((requests, stream));
    }
    eventually(PATIENCE, "all subscriptions have begun", async || {
        (broker.scrape().await.total(&catalog::MESSAGES_CONSUMED, "") >= 8.0 * 16.0).then_some(())
    })
    .await;
    // 32 MiB are there for each of the 8; what a broker may hold is a delivery and a transport buffer for each.
    for _ in 0..20 {
        client.produce(produce("t", 0, batch::values(["meanwhile"]))).await.expect("producers do not notice");
    }
    let grown = broker.resident_bytes().saturating_sub(before);
    println!("eight subscriptions that are not read cost {grown} bytes");
    assert!(grown < 64 << 20, "eight subscriptions that are not read cost {grown} bytes");
    let consumed = broker.scrape().await.total(&catalog::MESSAGES_CONSUMED, "");
    assert!(consumed < 8.0 * 32.0 * 16.0 / 2.0, "{consumed} records were read for clients that do not read");
    drop(held);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nearly_full_disk_refuses_writes_and_serves_everything_else() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    broker.produce().await.produce(produce("t", 0, batch::values(["a", "b"]))).await.expect("committed");
    let broker = broker.restart_with(|config| config.storage.reserve_bytes = 1 << 60).await;
    let status =
        broker.produce().await.produce(produce("t", 0, batch::values(["c"]))).await.expect_err("no room");
    assert_eq!(reason(&status), (Code::ResourceExhausted, "DISK_FULL".to_owned(), true));
    assert!(status.message().contains("reserve"), "{}", status.message());
    let answer =
        broker.consume().await.fetch(fetch("t", 0, At::Earliest(()))).await.expect("reads work").into_inner();
    assert_eq!(answer.partitions[0].high_watermark, 2);
    let (code, health) = eventually(PATIENCE, "the check fails", async || {
        let (code, health) = broker.health("/health").await;
        (code == 503).then_some((code, health))
    })
    .await;
    assert_eq!((code, health["status"].as_str()), (503, Some("unhealthy")));
    let reason = health["checks"]["storage"].as_str().expect("a reason");
    assert!(reason.contains("disk") && reason.contains("retention"), "{reason}");
    assert_eq!(health["checks"]["broker"], "ok");
    assert_eq!(broker.get("/health/ready").await.status, 200, "readers are not sent away");
    assert_eq!(broker.get("/health/live").await.status, 200);
    let view = broker.scrape().await;
    assert_eq!(view.get(&catalog::STORAGE_WRITABLE, &[]), Some(0.0));
    assert_eq!(view.get(&catalog::HEALTH_CHECK, &[("check", "storage")]), Some(0.0));
    let delete = v1::DeleteRecordsRequest { topic: "t".to_owned(), partition: 0, before_offset: 1 };
    broker.topics().await.delete_records(delete).await.expect("records can be deleted");
    broker
        .topics()
        .await
        .delete_topic(v1::DeleteTopicRequest { name: "t".to_owned() })
        .await
        .expect("so can topics");
    let broker = broker.restart_with(|config| config.storage.reserve_bytes = 0).await;
    broker.create_topic("t", 1).await;
    broker.produce().await.produce(produce("t", 0, batch::values(["c"]))).await.expect("room again");
    assert_eq!(broker.get("/health").await.status, 200);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_buffer_pushes_back_and_says_when_to_retry() {
    let broker = TestBroker::with(|config| {
        config.partition.buffer_bytes = 1 << 20;
        config.partition.admit_timeout = Duration::from_millis(1);
    })
    .await;
    broker.create_topic("t", 1).await;
    let noise = batch::noise(3, 14, 64 << 10);
    let client = broker.produce().await;
    let mut busy = 0;
    let mut committed = 0_u64;
    // Each batch takes most of the buffer, so of several that come at once some find it full.
    while busy == 0 {
        let calls = (0..16).map(|_| {
            let (mut client, request) = (client.clone(), produce("t", 0, noise.clone()));
            tokio::spawn(async move { client.produce(request).await })
        });
        for call in calls.collect::<Vec<_>>() {
            match call.await.expect("no panic") {
                Ok(_) => committed += 1,
                Err(status) => {
                    assert_eq!(reason(&status), (Code::ResourceExhausted, "BUSY".to_owned(), true));
                    busy += 1;
                }
            }
        }
    }
    let answer =
        broker.consume().await.fetch(fetch("t", 0, At::Latest(()))).await.expect("an answer").into_inner();
    assert_eq!(answer.partitions[0].high_watermark, committed * 14, "what was refused was not written");
    let view = broker.scrape().await;
    assert_eq!(view.get(&catalog::PRODUCE_REJECTIONS, &[("code", "busy")]), Some(f64::from(busy)));
    broker.stop().await;
}
