//! HTTP endpoints, gRPC health and reflection.

use serde_json::json;
use tokio_stream::iter;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::*;

fn named(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn health_is_the_specified_document() {
    let api = Api::start().await;
    let (status, mut body) = api.get_json("/health").await;
    let timestamp = body["timestamp"].take();
    assert!(timestamp.as_str().unwrap().ends_with('Z'), "{timestamp}");
    let checks = json!({ "broker": "ok", "storage": "ok", "cluster": "ok" });
    assert_eq!(body, json!({ "status": "healthy", "timestamp": null, "checks": checks }));
    assert_eq!(status, 200);

    api.enter(Phase::Draining);
    let (status, body) = api.get_json("/health").await;
    assert_eq!((status, &body["status"]), (503, &json!("unhealthy")));
    assert!(body["checks"]["broker"].as_str().unwrap().contains("draining"), "{body}");
}

#[tokio::test]
async fn a_coordinator_that_does_not_work_is_named() {
    let api = Api::start().await;
    api.coordinators.close().await;
    api.broker.check_health();
    let (status, body) = api.get_json("/health").await;
    assert_eq!((status, &body["status"]), (503, &json!("unhealthy")));
    let cluster = body["checks"]["cluster"].as_str().unwrap();
    assert!(cluster.contains("coordinator shard 0"), "{cluster}");
    assert_eq!(api.get_json("/health/ready").await.0, 200, "the others work");
}

#[tokio::test]
async fn probes_follow_the_broker_through_its_life() {
    let api = Api::start().await;
    let phases = [
        (Phase::Starting { waiting_for: "leaders".to_owned() }, [200, 503, 503]),
        (Phase::Running, [200, 200, 200]),
        (Phase::Draining, [200, 503, 200]),
    ];
    for (phase, expected) in phases {
        api.enter(phase.clone());
        for (probe, expected) in ["live", "ready", "startup"].into_iter().zip(expected) {
            let (status, body) = api.get_json(&format!("/health/{probe}?verbose")).await;
            assert_eq!(status, expected, "{phase:?} {probe}: {body}");
        }
    }
    api.enter(Phase::Starting { waiting_for: "leaders".to_owned() });
    assert!(api.get_json("/health/startup").await.1["reason"].as_str().unwrap().contains("leaders"));
}

#[tokio::test]
async fn grpc_health_follows_the_broker() {
    let api = Api::start().await;
    let mut client = HealthClient::new(api.channel().await);
    let mut statuses = within(client.watch(named(grpc::PRODUCE))).await.unwrap().into_inner();
    let mut next = async || within(statuses.message()).await.unwrap().unwrap().status();
    assert_eq!(next().await, ServingStatus::Serving);
    api.enter(Phase::Draining);
    assert_eq!(next().await, ServingStatus::NotServing);
    let check = within(client.check(named(grpc::CONSUME))).await.unwrap().into_inner();
    assert_eq!(check.status(), ServingStatus::NotServing);
    api.enter(Phase::Running);
    assert_eq!(next().await, ServingStatus::Serving);
    let unknown = within(client.check(named("nobody"))).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let api = Api::start().await;
    let mut client = ServerReflectionClient::new(api.channel().await);
    let list = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut answers = within(client.server_reflection_info(iter([list]))).await.unwrap().into_inner();
    let answer = within(answers.message()).await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else { panic!() };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    for service in [grpc::PRODUCE, grpc::CONSUME, grpc::GROUP, grpc::TOPIC, grpc::CLUSTER, grpc::CONTROL] {
        assert!(names.contains(&service), "{names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("internal")), "{names:?}");
}

#[tokio::test]
async fn metrics_come_in_the_accepted_type_and_encoding() {
    let api = Api::start().await;
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = String::from_utf8(exchange(api.http, request).await).unwrap();
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("\nstreambus_broker_status 2\n"), "{answer}");

    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept: application/openmetrics-text; version=1.0.0\r\naccept-encoding: gzip\r\nconnection: close\r\n\r\n";
    let answer = exchange(api.http, request).await;
    let head = String::from_utf8_lossy(&answer[..300]).into_owned();
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    assert!(head.contains("content-encoding: gzip\r\n"), "{head}");
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_apart() {
    let api = Api::start().await;
    let (status, body) = api.get_json("/metric").await;
    assert_eq!(status, 404);
    assert!(body["error"].as_str().unwrap().contains("/metric"), "{body}");
    assert_eq!(api.http("POST", "/health").await.0, 405);
    assert!(api.http("GET", "/").await.1.contains("/health/startup"));
}
