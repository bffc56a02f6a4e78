//! Many connections, too many connections, clients that do not read.

use bytes::Bytes;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use streambus::proto::v1;
use streambus::proto::v1::position::At;
use streambus::telemetry::catalog;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::HELLO;
use crate::support::endpoint::{exchange, from, produce};
use crate::support::{Endpoint, PATIENCE, Process, Subscriber, TestBroker, batch, eventually, within};

const MIB: u64 = 1 << 20;

/// Lets this process, and those it starts from now on, have as many open files as the system allows.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .expect("up to the maximum is allowed");
}

/// Opens a connection, says hello and reads the broker's hello.
async fn connected(broker: &Endpoint) -> TcpStream {
    let mut stream = TcpStream::connect(broker.grpc).await.expect("a connection");
    stream.write_all(HELLO).await.expect("sent");
    within("the broker's hello", stream.read_exact(&mut [0; 9])).await.expect("a frame");
    stream
}

async fn append(broker: &Endpoint, batch: Bytes) {
    let request = produce("orders", 0, batch);
    within("a commit", broker.produce().await.produce(request)).await.expect("committed");
}

#[tokio::test]
async fn thousands_of_idle_connections_cost_bounded_memory_and_disturb_nobody() {
    const CONNECTIONS: usize = 2_000;
    raise_open_files();
    let broker = Process::start(&[]).await;
    broker.create_topic("orders", 1).await;
    append(&broker, batch::values(["before"])).await;
    let before = broker.resident_bytes();

    let mut idle = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        idle.push(connected(&broker).await);
    }

    let view = broker.scrape().await;
    assert!(view.or_zero(&catalog::BROKER_CONNECTIONS, &[]) >= CONNECTIONS as f64);
    append(&broker, batch::values(["during"])).await;
    let cost = broker.resident_bytes().saturating_sub(before);
    assert!(cost < 100 * MIB, "{} KiB each", cost / 1024 / CONNECTIONS as u64);
    drop(idle);
    eventually(PATIENCE, "their places are given back", async || {
        (broker.scrape().await.or_zero(&catalog::BROKER_CONNECTIONS, &[]) < 10.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_connection_too_many_is_refused_with_the_limit_and_its_setting() {
    let broker = TestBroker::with(|config| {
        config.api.connections_max = 3;
        config.api.http_connections_max = 1;
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(connected(&broker).await);
    }

    let refused = exchange(broker.grpc, HELLO).await;
    let text = String::from_utf8_lossy(&refused);
    assert!(text.contains("at most 3 connections at a time (api.connections_max)"), "{text}");
    const GOAWAY: u8 = 7;
    assert_eq!((refused[3], refused[9 + 3]), (4, GOAWAY), "settings, then the reason: {refused:?}");

    // Clients cannot shut out probes: the other port has a limit of its own.
    let idle = TcpStream::connect(broker.http).await.expect("a connection");
    let refused = eventually(PATIENCE, "the idle connection has the only place", async || {
        let answer = broker.get("/health").await;
        (answer.status == 503 && answer.body.contains("HTTP connections")).then_some(answer)
    })
    .await;
    assert!(refused.body.contains("at most 1 HTTP connections at a time (api.http_connections_max)"));
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    drop(idle);
    eventually(PATIENCE, "the place is given back", async || {
        (broker.get("/health").await.status == 200).then_some(())
    })
    .await;

    // One leaves, one may come, and not two.
    held.pop();
    let next = eventually(PATIENCE, "the place is given back", async || {
        let mut stream = TcpStream::connect(broker.grpc).await.expect("a connection");
        stream.write_all(HELLO).await.expect("sent");
        let mut hello = [0; 9 + 4];
        within("an answer", stream.read_exact(&mut hello)).await.expect("two frames");
        (hello[9 + 3] != GOAWAY).then_some(stream)
    })
    .await;
    let text = exchange(broker.grpc, HELLO).await;
    assert!(String::from_utf8_lossy(&text).contains("api.connections_max"));
    drop((held, next));
    eventually(PATIENCE, "refusals are counted", async || {
        let refusals =
            broker.scrape().await.or_zero(&catalog::NETWORK_ERRORS, &[("kind", "connection_limit")]);
        (refusals >= 3.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_lack_of_file_descriptors_is_counted_and_passes() {
    let broker = Process::start(&[]).await;
    let pid = Pid::from_raw(broker.pid().cast_signed());
    let limit = prlimit(pid, Resource::Nofile, getrlimit(Resource::Nofile)).expect("a child's limit");
    let open =
        std::fs::read_dir(format!("/proc/{}/fd", broker.pid())).expect("the process lives").count() as u64;
    // This connection is there already when descriptors run out.
    let mut client = broker.produce().await;
    client.init_producer(v1::InitProducerRequest {}).await.expect("served");

    prlimit(pid, Resource::Nofile, Rlimit { current: Some(open + 3), ..limit }).expect("a lower limit");
    let mut waiting = Vec::new();
    for _ in 0..10 {
        waiting.push(TcpStream::connect(broker.grpc).await.expect("the kernel accepts"));
    }
    eventually(PATIENCE, "the broker says so", async || {
        let warned = broker.log().iter().any(|line| line.to_string().contains("could not be accepted"));
        warned.then_some(())
    })
    .await;
    client.init_producer(v1::InitProducerRequest {}).await.expect("who is connected is served");

    prlimit(pid, Resource::Nofile, limit).expect("the old limit");
    drop(waiting);
    broker.produce().await.init_producer(v1::InitProducerRequest {}).await.expect("served");
    let view = broker.scrape().await;
    assert!(view.or_zero(&catalog::NETWORK_ERRORS, &[("kind", "accept")]) >= 1.0);
}

#[tokio::test]
async fn clients_that_never_read_cost_bounded_memory_and_disturb_nobody() {
    const STALLED: usize = 8;
    const BATCHES: u64 = 16;
    let broker = Process::start(&[("storage.sync", "interval")]).await;
    broker.create_topic("orders", 1).await;
    for seed in 0..BATCHES {
        append(&broker, batch::noise(seed, 1, 1_000_000)).await;
    }
    let all = v1::StartSubscription {
        partitions: vec![from("orders", 0, At::Earliest(()))],
        credit_bytes: u64::MAX,
        ..Default::default()
    };
    let before = broker.resident_bytes();
    let sent_before = broker.scrape().await.or_zero(&catalog::NETWORK_OUT, &[]);

    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        stalled.push(Subscriber::start_with(&broker, all.clone()).await);
    }

    // Something was sent to each of them, so all are being served.
    eventually(PATIENCE, "all are served", async || {
        let view = broker.scrape().await;
        let sent = view.or_zero(&catalog::NETWORK_OUT, &[]) - sent_before;
        let open = view.or_zero(&catalog::SUBSCRIPTIONS, &[]);
        (open == STALLED as f64 && sent > STALLED as f64 * 65_000.0).then_some(())
    })
    .await;
    // Others read everything, and producers go on.
    let mut reader = Subscriber::start_with(&broker, all).await;
    assert_eq!(reader.offsets_to(BATCHES).await.len() as u64, BATCHES);
    append(&broker, batch::values(["during"])).await;
    assert_eq!(reader.offsets_to(BATCHES + 1).await, [BATCHES]);
    // Without a bound it would be all of the batches for each of them.
    let cost = broker.resident_bytes().saturating_sub(before);
    assert!(cost < STALLED as u64 * 6 * MIB, "{} KiB each", cost / 1024 / STALLED as u64);
    // Who begins to read gets all, in order.
    let mut late = stalled.pop().expect("one of them");
    let read = within("the rest is read", late.offsets_to(BATCHES + 1)).await;
    assert!(read.into_iter().eq(0..=BATCHES));
}
