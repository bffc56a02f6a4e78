//! `streambus.v1.ProduceService`.

use std::time::Instant;

use tonic::{Request, Response, Status, Streaming};

use super::produce_stream::ProduceStream;
use super::{Context, forward, request_trace};
use crate::api::convert;
use crate::api::status::Failure;
use crate::broker;
use crate::proto::v1;
use crate::proto::v1::produce_service_server::ProduceService;
use crate::telemetry::RequestTrace;

pub(super) struct Service(pub(super) Context);

impl Service {
    async fn append(
        &self,
        request: v1::ProduceRequest,
        may_forward: bool,
        trace: RequestTrace,
    ) -> Result<v1::ProduceResponse, Failure> {
        let request = broker::Produce {
            received: Instant::now(),
            batch: request.batch,
            topic: request.topic,
            partition: request.partition,
            producer: request.producer.map(convert::producer),
            trace,
            may_forward,
        };
        Ok(self.0.broker().produce(request).await?.await?.into())
    }
}

#[tonic::async_trait]
impl ProduceService for Service {
    async fn produce(
        &self,
        request: Request<v1::ProduceRequest>,
    ) -> Result<Response<v1::ProduceResponse>, Status> {
        let trace = request_trace(request.extensions());
        let may_forward = forward::may_forward(request.metadata());
        match self.append(request.into_inner(), may_forward, trace).await {
            Ok(produced) => Ok(Response::new(produced)),
            Err(failure) => Err(self.0.produce_refused(failure).into()),
        }
    }

    type ProduceStreamStream = ProduceStream;

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceStreamRequest>>,
    ) -> Result<Response<ProduceStream>, Status> {
        let may_forward = forward::may_forward(request.metadata());
        Ok(Response::new(ProduceStream::new(self.0.clone(), request.into_inner(), may_forward)))
    }

    async fn init_producer(
        &self,
        request: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        let (producer_id, epoch) = self.0.broker().init_producer().await.map_err(Failure::from)?;
        if let Some(agent) = request.metadata().get("user-agent").and_then(|agent| agent.to_str().ok()) {
            self.0.broker().remember_producer(producer_id, agent);
        }
        Ok(Response::new(v1::InitProducerResponse { producer_id, epoch }))
    }
}
