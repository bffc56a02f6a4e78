//! Produce, over a real connection.

use futures_util::StreamExt as _;
use tokio_stream::iter;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::proto::v1;
use crate::proto::v1::produce_result::Outcome;
use crate::proto::v1::produce_service_client::ProduceServiceClient;
use crate::proto::v1::topic_service_client::TopicServiceClient;

fn request(correlation_id: u64, topic: &str, partition: u32) -> v1::ProduceStreamRequest {
    v1::ProduceStreamRequest {
        correlation_id,
        topic: topic.to_owned(),
        partition,
        batch: batch(b"value"),
        ..Default::default()
    }
}

async fn results(api: &Api, requests: Vec<v1::ProduceStreamRequest>) -> Vec<v1::ProduceResult> {
    let mut client = ProduceServiceClient::new(api.channel().await);
    let responses = within(client.produce_stream(iter(requests))).await.unwrap().into_inner();
    let responses: Vec<_> = within(responses.collect()).await;
    responses.into_iter().flat_map(|response| response.unwrap().results).collect()
}

#[tokio::test]
async fn an_unknown_topic_is_a_status_with_a_reason() {
    let api = Api::start().await;
    let mut client = ProduceServiceClient::new(api.channel().await);
    let request =
        v1::ProduceRequest { topic: "nowhere".to_owned(), batch: batch(b"x"), ..Default::default() };
    let status = within(client.produce(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.get_details_error_info().unwrap().reason, "UNKNOWN_TOPIC");
}

#[tokio::test]
async fn a_stream_answers_every_batch_in_the_order_of_its_partition() {
    let api = Api::with(Config { stream_window_batches: 7, ..Config::default() }).await;
    let requests = (0..1_000).map(|id| request(id, "orders", (id % 2) as u32)).collect();
    let results = results(&api, requests).await;
    for parity in 0..2 {
        let of_partition = results.iter().filter(|result| result.correlation_id % 2 == parity);
        for (expected, result) in of_partition.enumerate() {
            assert_eq!(result.correlation_id, 2 * expected as u64 + parity);
            let Some(Outcome::Committed(committed)) = &result.outcome else { panic!("{result:?}") };
            assert_eq!(committed.base_offset, expected as u64);
        }
    }
    assert_eq!(results.len(), 1_000);
}

#[tokio::test]
async fn a_batch_that_fails_does_not_end_the_stream() {
    let api = Api::start().await;
    let malformed =
        v1::ProduceStreamRequest { batch: Bytes::from_static(b"\xff\xff"), ..request(2, "orders", 0) };
    let requests = vec![
        request(0, "orders", 0),
        request(1, "nowhere", 0),
        malformed,
        request(3, "orders", 9),
        request(4, "orders", 0),
    ];
    let mut results = results(&api, requests).await;
    results.sort_by_key(|result| result.correlation_id);
    let codes: Vec<_> = results
        .iter()
        .map(|result| match result.outcome.as_ref().unwrap() {
            Outcome::Committed(_) => None,
            Outcome::Error(error) => Some(error.code()),
        })
        .collect();
    use v1::ErrorCode::{MalformedBatch, UnknownPartition, UnknownTopic};
    assert_eq!(codes, [None, Some(UnknownTopic), Some(MalformedBatch), Some(UnknownPartition), None]);
}

#[tokio::test]
async fn results_that_are_ready_together_share_a_response() {
    let api = Api::start().await;
    let mut client = ProduceServiceClient::new(api.channel().await);
    let requests: Vec<_> = (0..1_000).map(|id| request(id, "orders", 0)).collect();
    let responses = within(client.produce_stream(iter(requests))).await.unwrap().into_inner();
    let responses: Vec<_> = within(responses.collect()).await;
    assert!(responses.len() < 500, "{} responses", responses.len());
}

#[tokio::test]
async fn a_call_whose_deadline_passes_ends_and_says_what_may_have_happened() {
    let api = Api::start().await;
    let append =
        || v1::ProduceRequest { topic: "orders".to_owned(), batch: batch(b"x"), ..Default::default() };
    let mut produce = ProduceServiceClient::new(api.with_deadline("0n").await);
    let status = within(produce.produce(append())).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("may have been carried out"), "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "OUTCOME_UNKNOWN");

    let mut topics = TopicServiceClient::new(api.with_deadline("0n").await);
    let create = v1::CreateTopicRequest { name: "late".to_owned(), partition_count: 1, ..Default::default() };
    let status = within(topics.create_topic(create)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let ended = "streambus_network_requests_total{outcome=\"server_error\",protocol=\"grpc\"}";
    assert_eq!(api.metric(ended), 2.0);

    let mut produce = ProduceServiceClient::new(api.with_deadline("1M").await);
    within(produce.produce(append())).await.unwrap();
}
