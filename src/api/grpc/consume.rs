//! `streambus.v1.ConsumeService`.

use std::borrow::Cow;
use std::ops::ControlFlow;

use opentelemetry::KeyValue;
use tonic::{Request, Response, Status, Streaming};

use super::subscribe::{self, Deliveries};
use super::{Context, forward, request_trace};
use crate::api::convert::{self, FetchPlan};
use crate::api::rpc::{Deadline, Handover};
use crate::api::status::Failure;
use crate::broker::{Fetch, Fetched, Responding, Share};
use crate::proto::v1;
use crate::proto::v1::consume_service_server::ConsumeService;
use crate::record::{SpanLink, for_each_traceparent};
use crate::telemetry::{LINKS_MAX, RequestTrace};
use crate::telemetry::{TraceIds, TraceParent};

pub(super) struct Service(pub(super) Context);

impl Service {
    async fn read(
        &self,
        request: v1::FetchRequest,
        trace: &RequestTrace,
        deadline: Option<Deadline>,
    ) -> Result<(v1::FetchResponse, Option<(Responding, Share)>), Failure> {
        let FetchPlan { partitions, min_bytes, max_bytes, max_wait, accepted } = request.try_into()?;
        let max_wait = deadline.map_or(max_wait, |deadline| max_wait.min(deadline.wait_max()));
        let (trace_of_fetch, room) = (trace.clone(), self.0.fetched_room().clone());
        let fetch =
            Fetch { partitions, min_bytes, max_bytes, max_wait, accepted, trace: trace_of_fetch, room };
        let (fetched, answer) = tokio::select! {
            fetched = self.0.broker().fetch(fetch) => fetched?,
            () = self.0.drain().cancelled() => return Err(Failure::stopping()),
        };
        let partitions =
            fetched.into_iter().map(|fetched| deliver(&self.0, fetched, trace, None).0).collect();
        Ok((v1::FetchResponse { partitions }, answer))
    }
}

#[tonic::async_trait]
impl ConsumeService for Service {
    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<v1::FetchResponse>, Status> {
        let trace = request_trace(request.extensions());
        let deadline = request.extensions().get::<Deadline>().copied();
        match self.read(request.into_inner(), &trace, deadline).await {
            Ok((fetched, answer)) => {
                let handover = Handover::default();
                if let Some((responding, share)) = answer {
                    handover.made(Some(responding));
                    handover.holds(share);
                }
                Ok(with_handover(fetched, handover))
            }
            Err(failure) => Err(self.0.consume_refused(failure).into()),
        }
    }

    type SubscribeStream = Deliveries;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Deliveries>, Status> {
        let handover = Handover::default();
        let forwarded = forward::is_forwarded(request.metadata());
        let requests = request.into_inner();
        let deliveries = subscribe::deliveries(self.0.clone(), requests, handover.clone(), forwarded);
        Ok(with_handover(deliveries, handover))
    }
}

fn with_handover<T>(message: T, handover: Handover) -> Response<T> {
    let mut response = Response::new(message);
    response.extensions_mut().insert(handover);
    response
}

/// Turns what was read into what is sent, and leaves a delivery span that links to the records' own traces. Gives the span
/// too, if it is sampled.
pub(super) fn deliver(
    context: &Context,
    mut fetched: Fetched,
    request: &RequestTrace,
    group: Option<&str>,
) -> (v1::PartitionRecords, Option<SpanLink>) {
    let error = fetched.error.take().map(|error| context.consume_refused(error));
    if fetched.batches.is_empty() {
        return (convert::records(fetched, error), None);
    }
    let span = context.tracer().delivery(request, links(&fetched), || describe(&fetched, group));
    let records = convert::records(fetched, error);
    span.end(None);
    let link = span.ids().map(|TraceIds { trace, span }| SpanLink { trace_id: trace, span_id: span });
    (records, link)
}

/// The sampled contexts in which the batches were written and their records created, as many as a span can link to.
fn links(fetched: &Fetched) -> Vec<TraceIds> {
    let mut links = Vec::new();
    for batch in &fetched.batches {
        // A batch without a span has no sampled record either; see `broker::produce`.
        let Some(SpanLink { trace_id, span_id }) = batch.span else { continue };
        links.push(TraceIds { trace: trace_id, span: span_id });
        for_each_traceparent(&batch.batch, |_, value| {
            links.extend(TraceParent::parse(value).map(|parent| parent.ids));
            if links.len() < LINKS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if links.len() >= LINKS_MAX {
            break;
        }
    }
    links
}

fn describe(fetched: &Fetched, group: Option<&str>) -> (Cow<'static, str>, Vec<KeyValue>) {
    let records: i64 = fetched.batches.iter().map(|batch| i64::from(batch.record_count)).sum();
    let mut attributes = vec![
        KeyValue::new("messaging.system", "streambus"),
        KeyValue::new("messaging.destination.name", fetched.topic.to_string()),
        KeyValue::new("messaging.destination.partition.id", fetched.partition.to_string()),
        KeyValue::new("messaging.batch.message_count", records),
    ];
    attributes.extend(group.map(|group| KeyValue::new("messaging.consumer.group.name", group.to_owned())));
    (Cow::Owned(format!("deliver {}", fetched.topic)), attributes)
}
