//! Reflection and health.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{TestBroker, within};

const SERVICES: [&str; 6] = [
    "streambus.v1.ClusterService",
    "streambus.v1.ConsumeService",
    "streambus.v1.ControlService",
    "streambus.v1.GroupService",
    "streambus.v1.ProduceService",
    "streambus.v1.TopicService",
];

fn named(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

/// Whether `text` is a time in the specified form, such as `2024-11-10T10:00:00Z`.
fn is_time(text: &str) -> bool {
    let form: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    form == "0000-00-00T00:00:00Z"
}

#[tokio::test]
async fn reflection_lists_the_services_and_describes_them() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
    let broker = TestBroker::start().await;
    let mut client = ServerReflectionClient::new(broker.channel().await);
    let ask = |question| ServerReflectionRequest { message_request: Some(question), ..Default::default() };
    let symbol = MessageRequest::FileContainingSymbol("streambus.v1.ProduceRequest".to_owned());
    let questions = [ask(MessageRequest::ListServices(String::new())), ask(symbol)];

    let answers = client.server_reflection_info(tokio_stream::iter(questions)).await;

    let mut answers = within("the stream opens", async { answers }).await.expect("a stream").into_inner();
    let mut next = async || -> ServerReflectionResponse {
        within("an answer", answers.message()).await.expect("an answer").expect("an answer")
    };
    let Some(MessageResponse::ListServicesResponse(list)) = next().await.message_response else {
        panic!("no list")
    };
    let listed: BTreeSet<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    let others = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"];
    let expected: BTreeSet<_> = SERVICES.into_iter().chain(others).collect();
    assert_eq!(listed, expected);
    let Some(MessageResponse::FileDescriptorResponse(files)) = next().await.message_response else {
        panic!("no description")
    };
    // Clients in other languages see an ordinary message, although the broker passes the batch through.
    let text = files.file_descriptor_proto.concat();
    let mentions = |name: &str| text.windows(name.len()).any(|window| window == name.as_bytes());
    assert!(mentions(".streambus.v1.RecordBatch"));
}

#[tokio::test]
async fn every_service_reports_that_it_serves() {
    let broker = TestBroker::start().await;
    let mut client = HealthClient::new(broker.channel().await);
    for service in SERVICES.iter().chain(&[""]) {
        let checked = client.check(named(service)).await.expect("known").into_inner();
        assert_eq!(checked.status(), ServingStatus::Serving, "{service}");
    }
    assert_eq!(client.check(named("nobody")).await.expect_err("unknown").code(), Code::NotFound);
}

#[tokio::test]
async fn watchers_of_every_service_see_the_broker_stop() {
    let broker = TestBroker::start().await;
    let mut client = HealthClient::new(broker.channel().await);
    let mut watchers = Vec::new();
    for service in SERVICES.iter().chain(&[""]) {
        let mut watcher = client.watch(named(service)).await.expect("a stream").into_inner();
        let first = within("the status now", watcher.message()).await.expect("a status").expect("a status");
        assert_eq!(first.status(), ServingStatus::Serving, "{service}");
        watchers.push((service, watcher));
    }

    let stopping = tokio::spawn(broker.stop());

    for (service, mut watcher) in watchers {
        let last =
            within("the status changes", watcher.message()).await.expect("a status").expect("a status");
        assert_eq!(last.status(), ServingStatus::NotServing, "{service}");
    }
    drop(client);
    within("the broker stops", stopping).await.expect("no panic");
}

#[tokio::test]
async fn health_is_exactly_the_specified_document() {
    let broker = TestBroker::start().await;
    let answer = broker.get("/health").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    let mut body: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert!(body["timestamp"].as_str().is_some_and(is_time), "{body}");
    body["timestamp"] = "2024-11-10T10:00:00Z".into();
    let specified = json!({
        "status": "healthy",
        "timestamp": "2024-11-10T10:00:00Z",
        "checks": { "broker": "ok", "storage": "ok", "cluster": "ok" }
    });
    assert_eq!(body, specified);
}

#[tokio::test]
async fn probes_pass_on_a_running_broker_and_details_come_when_asked_for() {
    let broker = TestBroker::start().await;
    for (path, status) in
        [("/health/live", "live"), ("/health/ready", "ready"), ("/health/startup", "started")]
    {
        let (code, body) = broker.health(path).await;
        assert_eq!((code, body["status"].as_str()), (200, Some(status)), "{path}");
        assert!(body["timestamp"].as_str().is_some_and(is_time), "{body}");
    }
    let (_, body) = broker.health("/health?verbose").await;
    assert_eq!((&body["phase"], &body["ready"]), (&json!("running"), &json!(true)));
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_told_apart() {
    let broker = TestBroker::start().await;
    let unknown = broker.get("/metric").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.body.contains("/metric"), "{}", unknown.body);
    let wrong = broker
        .http("POST /health HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .await;
    assert_eq!(wrong.status, 405);
}
