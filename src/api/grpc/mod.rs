//! The gRPC services: each converts a request, calls the broker and converts what it answers.

mod cluster;
mod consume;
mod control;
mod forward;
mod group;
mod membership;
mod produce;
mod produce_stream;
mod subscribe;
mod topic;

use std::borrow::Cow;
use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use tokio_util::sync::CancellationToken;
use tonic::Extensions;
use tonic::service::Routes;
use tonic_reflection::server::Builder as Reflection;

use super::status::{Failure, mapping};
use crate::broker::{Broker, Room};
use crate::cluster::peers::Service;
use crate::proto::DESCRIPTORS;
use crate::proto::internal::peer_service_server::PeerServiceServer;
use crate::proto::v1::cluster_service_server::{self, ClusterServiceServer};
use crate::proto::v1::consume_service_server::{self, ConsumeServiceServer};
use crate::proto::v1::control_service_server::{self, ControlServiceServer};
use crate::proto::v1::group_service_server::{self, GroupServiceServer};
use crate::proto::v1::produce_service_server::{self, ProduceServiceServer};
use crate::proto::v1::topic_service_server::{self, TopicServiceServer};
use crate::telemetry::Metrics;
use crate::telemetry::TraceParent;
use crate::telemetry::{RequestTrace, Tracer};

/// Names of the services, as health checks know them.
pub(super) const PRODUCE: &str = produce_service_server::SERVICE_NAME;
pub(super) const CONSUME: &str = consume_service_server::SERVICE_NAME;
pub(super) const GROUP: &str = group_service_server::SERVICE_NAME;
pub(super) const TOPIC: &str = topic_service_server::SERVICE_NAME;
pub(super) const CLUSTER: &str = cluster_service_server::SERVICE_NAME;
pub(super) const CONTROL: &str = control_service_server::SERVICE_NAME;

/// What all services share.
#[derive(Clone)]
pub(super) struct Context(Arc<Shared>);

struct Shared {
    broker: Broker,
    metrics: Metrics,
    tracer: Tracer,
    /// Batches of one produce stream that may await their commit.
    stream_window_batches: usize,
    /// For answers that their clients have not read.
    fetched_room: Room,
    drain: CancellationToken,
}

impl Context {
    pub(super) fn new(
        broker: Broker,
        metrics: Metrics,
        tracer: Tracer,
        stream_window_batches: usize,
        fetched_room: Room,
        drain: CancellationToken,
    ) -> Self {
        Context(Arc::new(Shared { broker, metrics, tracer, stream_window_batches, fetched_room, drain }))
    }

    fn broker(&self) -> &Broker {
        &self.0.broker
    }

    fn tracer(&self) -> &Tracer {
        &self.0.tracer
    }

    fn fetched_room(&self) -> &Room {
        &self.0.fetched_room
    }

    fn drain(&self) -> &CancellationToken {
        &self.0.drain
    }

    /// A batch is answered with `error`.
    fn produce_refused(&self, error: impl Into<Failure>) -> Failure {
        let failure = error.into();
        self.0.metrics.produce.rejected(mapping(failure.code()).label);
        failure
    }

    /// A fetch, a subscription or one of their partitions is answered with `error`.
    fn consume_refused(&self, error: impl Into<Failure>) -> Failure {
        let failure = error.into();
        self.0.metrics.consume.rejected(mapping(failure.code()).label);
        failure
    }

    /// Begins the span of a batch that came on a stream, in the context that the client sent with it. Without one
    /// the broker may find another in the batch's records.
    fn batch_trace(&self, method: &'static str, traceparent: &str, tracestate: &str) -> RequestTrace {
        if traceparent.is_empty() {
            return RequestTrace::NONE;
        }
        let parent = TraceParent::parse(traceparent.as_bytes());
        self.tracer().start(SpanKind::Server, parent, Some(tracestate.as_bytes()), || {
            let attributes =
                vec![KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", method)];
            (Cow::Borrowed(method), attributes)
        })
    }
}

/// The trace that was begun when the call arrived.
fn request_trace(extensions: &Extensions) -> RequestTrace {
    extensions.get::<RequestTrace>().cloned().unwrap_or(RequestTrace::NONE)
}

/// All services of the gRPC port. `message_bytes_max` bounds what is decoded.
///
/// # Errors
/// If the protocol's descriptors, which are compiled in, cannot be read.
pub(super) fn routes<H>(
    context: &Context,
    health: H,
    peers: PeerServiceServer<Service>,
    message_bytes_max: usize,
) -> Result<Routes, tonic_reflection::server::Error>
where
    H: tonic::server::NamedService
        + tower::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    let reflection = || {
        Reflection::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let produce = ProduceServiceServer::new(produce::Service(context.clone()));
    let consume = ConsumeServiceServer::new(consume::Service(context.clone()));
    let group = GroupServiceServer::new(group::Service(context.clone()));
    let topic = TopicServiceServer::new(topic::Service(context.clone()));
    let cluster = ClusterServiceServer::new(cluster::Service(context.clone()));
    let control = ControlServiceServer::new(control::Service(context.clone()));
    Ok(Routes::new(produce.max_decoding_message_size(message_bytes_max))
        .add_service(consume.max_decoding_message_size(message_bytes_max))
        .add_service(group.max_decoding_message_size(message_bytes_max))
        .add_service(topic.max_decoding_message_size(message_bytes_max))
        .add_service(cluster.max_decoding_message_size(message_bytes_max))
        .add_service(control.max_decoding_message_size(message_bytes_max))
        .add_service(peers)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}
