//! What clients leave unread or unfinished holds bounded memory, and its room is given back.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::{Body, Frame};
use streambus::proto::v1;
use streambus::proto::v1::position::At;
use streambus::telemetry::catalog;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};
use tower::ServiceExt as _;

use super::foreign::counted;
use crate::support::endpoint::{fetch, produce};
use crate::support::{Endpoint, PATIENCE, Refusal, TestBroker, batch, eventually, within};

const MIB: u64 = 1 << 20;
/// Who waits would have been served in this time.
const MOMENT: Duration = Duration::from_millis(300);

/// A broker with a topic that has one batch of 900 KB.
async fn with_noise(fetched_bytes_max: u64, message_timeout: Duration) -> TestBroker {
    let broker = TestBroker::with(|config| {
        config.api.fetched_bytes_max = fetched_bytes_max;
        config.api.message_timeout = message_timeout;
    })
    .await;
    broker.create_topic("orders", 1).await;
    let request = produce("orders", 0, batch::noise(1, 1, 900_000));
    within("a commit", broker.produce().await.produce(request)).await.expect("committed");
    broker
}

/// A fetch whose answer has begun and is not read, beyond a window of 1,000 bytes.
async fn unread(broker: &Endpoint) -> Streaming<v1::FetchResponse> {
    let endpoint = Channel::from_shared(format!("http://{}", broker.grpc)).expect("an address");
    let channel = endpoint.initial_stream_window_size(1_000).connect().await.expect("a connection");
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("connected");
    let codec = tonic_prost::ProstCodec::<v1::FetchRequest, v1::FetchResponse>::default();
    let path = "/streambus.v1.ConsumeService/Fetch".parse().expect("a path");
    let request = Request::new(fetch("orders", 0, At::Earliest(())));
    within("an answer", client.server_streaming(request, path, codec)).await.expect("served").into_inner()
}

/// Positions in a topic that does not exist, of which each is answered with an error of some 600 bytes.
fn positions() -> v1::ListOffsetsRequest {
    let position = v1::PartitionPosition {
        topic: "x".repeat(249),
        partition: 0,
        position: Some(v1::Position { at: Some(At::Latest(())) }),
    };
    v1::ListOffsetsRequest { positions: vec![position; 1_000] }
}

async fn positions_of(broker: Endpoint) -> Result<usize, tonic::Status> {
    Ok(broker.topics().await.list_offsets(positions()).await?.into_inner().offsets.len())
}

async fn fetched(broker: Endpoint) -> usize {
    let answer = broker.consume().await.fetch(fetch("orders", 0, At::Earliest(()))).await.expect("served");
    answer.into_inner().partitions[0].batches.len()
}

#[tokio::test]
async fn fetches_wait_for_the_room_of_answers_that_are_not_read() {
    let broker = with_noise(MIB, PATIENCE).await;
    let mut first = unread(&broker).await;
    let mut waiting = tokio::spawn(fetched(*broker));
    assert!(tokio::time::timeout(MOMENT, &mut waiting).await.is_err(), "the first answer has all room");

    // Whoever waits for something to read needs none, and other calls go on.
    let latest = v1::FetchRequest {
        max_wait: Some(Duration::from_millis(1).try_into().expect("short")),
        ..fetch("orders", 0, At::Latest(()))
    };
    within("no news", broker.consume().await.fetch(latest)).await.expect("served");
    let timely = async {
        let mut request = Request::new(fetch("orders", 0, At::Earliest(())));
        request.set_timeout(MOMENT);
        broker.consume().await.fetch(request).await.expect_err("its time is up").code()
    };
    assert!(matches!(within("the deadline", timely).await, Code::DeadlineExceeded | Code::Cancelled));

    let read = within("the first answer", first.message()).await.expect("served").expect("an answer");
    assert_eq!(read.partitions[0].batches.len(), 1);
    assert_eq!(within("the second one", waiting).await.expect("no panic"), 1);
    broker.stop().await;
}

#[tokio::test]
async fn the_room_of_an_answer_is_given_back_when_its_client_leaves() {
    let broker = with_noise(MIB, PATIENCE).await;
    let first = unread(&broker).await;
    let mut waiting = tokio::spawn(fetched(*broker));
    assert!(tokio::time::timeout(MOMENT, &mut waiting).await.is_err());
    drop(first);
    assert_eq!(within("an answer", waiting).await.expect("no panic"), 1);
    broker.stop().await;
}

#[tokio::test]
async fn who_never_reads_is_disconnected_when_others_need_the_room() {
    let broker = with_noise(MIB, MOMENT).await;
    let mut first = unread(&broker).await;
    assert_eq!(within("an answer", fetched(*broker)).await, 1);
    assert!(within("the end", first.message()).await.is_err());
    counted(&broker, &[("stalled", 1.0)]).await;
    broker.stop().await;
}

#[tokio::test]
async fn large_answers_of_any_call_wait_for_room_and_those_that_wait_are_bounded() {
    let broker = with_noise(MIB, PATIENCE).await;
    let mut first = unread(&broker).await;
    let mut waiting = tokio::spawn(positions_of(*broker));
    assert!(
        tokio::time::timeout(MOMENT, &mut waiting).await.is_err(),
        "the first answer has most of the room"
    );

    let refused = within("an answer", positions_of(*broker)).await.expect_err("too many wait");
    let refusal = Refusal::from(refused);
    let refusal = refusal.is(Code::ResourceExhausted, "BUSY").says("api.fetched_bytes_max");
    assert!(refusal.advises_retry, "{refusal:?}");
    let small = v1::ListTopicsRequest::default();
    within("a small answer", broker.topics().await.list_topics(small)).await.expect("it needs no room");

    within("the first answer", first.message()).await.expect("served").expect("an answer");
    let found = within("the second one", waiting).await.expect("no panic");
    assert_eq!(found.expect("answered"), 1_000);
    assert_eq!(within("one more", positions_of(*broker)).await.expect("its room was given back"), 1_000);
    broker.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_not_read_holds_room_whatever_the_call() {
    let broker = with_noise(MIB, MOMENT).await;
    let channel = Channel::from_shared(format!("http://{}", broker.grpc)).expect("an address");
    let channel = channel.initial_stream_window_size(1_000).connect().await.expect("a connection");
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("connected");
    let codec = tonic_prost::ProstCodec::<v1::ListOffsetsRequest, v1::ListOffsetsResponse>::default();
    let path = "/streambus.v1.TopicService/ListOffsets".parse().expect("a path");
    let answer = within("a head", client.server_streaming(Request::new(positions()), path, codec)).await;
    let mut answer = answer.expect("served").into_inner();

    // Others need the room, so who does not read is disconnected.
    assert_eq!(within("another one", positions_of(*broker)).await.expect("answered"), 1_000);
    assert!(within("the end", answer.message()).await.is_err());
    counted(&broker, &[("stalled", 1.0)]).await;
    broker.stop().await;
}

/// A request body that a test sends in pieces.
struct Pieces(mpsc::UnboundedReceiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// A produce call that sends the first tenth of a message, and the status that it ends with.
async fn unfinished(
    broker: &Endpoint,
    length: u32,
) -> (mpsc::UnboundedSender<Bytes>, tokio::task::JoinHandle<Code>) {
    let (pieces, sent) = mpsc::unbounded_channel();
    let mut begin = BytesMut::new();
    begin.put_u8(0);
    begin.put_u32(length);
    begin.put_bytes(b'x', length as usize / 10);
    pieces.send(begin.freeze()).expect("open");
    let request = http::Request::post(format!("http://{}/streambus.v1.ProduceService/Produce", broker.grpc))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Pieces(sent)))
        .expect("a request");
    let before = received(broker).await;
    let answer = broker.channel().await.oneshot(request);
    let status = async {
        let answer = answer.await.expect("an answer");
        Code::from_bytes(answer.headers()["grpc-status"].as_bytes())
    };
    let status = tokio::spawn(status);
    received_more(broker, before).await;
    (pieces, status)
}

async fn received(broker: &Endpoint) -> f64 {
    broker.scrape().await.series_of(&catalog::NETWORK_IN, "").map(|(_, bytes)| bytes).sum()
}

/// The broker has begun to read a large message.
async fn received_more(broker: &Endpoint, before: f64) {
    eventually(PATIENCE, "more is received", async || {
        (received(broker).await >= before + f64::from(64 << 10)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn messages_that_do_not_come_in_full_hold_bounded_room_for_a_while() {
    let broker = TestBroker::with(|config| {
        config.api.receiving_bytes_max = MIB;
        config.api.message_timeout = Duration::from_secs(4);
    })
    .await;
    broker.create_topic("orders", 1).await;
    let (_open, first) = unfinished(&broker, MIB as u32).await;

    let large = || produce("orders", 0, batch::noise(1, 1, 900_000));
    let small = produce("orders", 0, batch::values(["small"]));
    within("a commit", broker.produce().await.produce(small)).await.expect("small ones need no room");
    let refusal = Refusal::of(within("an answer", broker.produce().await.produce(large())).await);
    let refusal = refusal.is(Code::ResourceExhausted, "BUSY").says("api.receiving_bytes_max");
    assert!(refusal.advises_retry, "{refusal:?}");

    assert_eq!(within("the end", first).await.expect("no panic"), Code::ResourceExhausted);
    counted(&broker, &[("stalled", 1.0)]).await;
    within("a commit", broker.produce().await.produce(large())).await.expect("there is room");

    // One that is given up gives its room back at once; one that waits is taken when there is room.
    let (open, second) = unfinished(&broker, MIB as u32).await;
    let (before, mut client) = (received(&broker).await, broker.produce().await);
    let waiting = tokio::spawn(async move { client.produce(large()).await });
    received_more(&broker, before).await;
    second.abort();
    drop(open);
    within("a commit", waiting).await.expect("no panic").expect("committed");
    broker.stop().await;
}
