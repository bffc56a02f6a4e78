//! What other brokers ask of this one.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::link::MESSAGE_BYTES;
use super::{BROKER, CLUSTER, Hub, PROTOCOL, Serving, codec, error, reports};
use crate::clock::Timestamp;
use crate::cluster::control;
use crate::cluster::identity::Identity;
use crate::metadata::codec::{load_broker, store_broker, store_topic};
use crate::metadata::{BrokerId, Command, Outcome};
use crate::partition::view::Bounds;
use crate::partition::{self, Partition, StoredBatch};
use crate::proto::internal as wire;
use crate::proto::internal::change_metadata_response::Outcome as WireOutcome;
use crate::proto::internal::locate_request::What;
use crate::proto::internal::peer_frame::Body;
use crate::proto::internal::peer_service_server::PeerService;
use crate::proto::internal::{PeerFrame, PeerFrames};
use crate::raft;
use crate::record::command::Command as LogCommand;
use crate::record::{Offset, SpanLink};
use crate::storage::GroupId;

/// Requests of one broker that are worked on at a time. Further ones wait on the connection.
const REQUESTS_AT_ONCE: usize = 4_096;
/// Messages with answers that may wait for the connection.
const MESSAGES_AHEAD: usize = 16;
/// How long a majority has to say that this broker leads, for who asks the leader.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);
/// Most bytes of batches in one answer to a read.
const READ_BYTES_MAX: usize = 16 << 20;

type Frames = Pin<Box<dyn Stream<Item = Result<PeerFrames, Status>> + Send>>;
type Reports = Pin<Box<dyn Stream<Item = Result<wire::PartitionReports, Status>> + Send>>;

/// The service of a broker that belongs to a cluster.
#[derive(Clone)]
pub struct Service(pub(super) Hub);

/// The service of a broker that belongs to no cluster yet: it only says so.
#[derive(Clone, Copy, Debug)]
pub struct Newcomer;

impl Service {
    /// Checks that the caller is of this cluster, and has not left it, and gives its number.
    fn admit<T>(&self, request: &Request<T>) -> Result<raft::NodeId, Status> {
        let Identity { cluster, .. } = &self.0.0.identity;
        let text = |key| request.metadata().get(key).and_then(|value| value.to_str().ok());
        let theirs = text(CLUSTER).unwrap_or("none");
        if theirs != cluster.to_string() {
            return Err(Status::failed_precondition(format!(
                "this broker belongs to cluster {cluster}, the caller to {theirs}: check the addresses of brokers"
            )));
        }
        let caller = text(BROKER).and_then(|id| id.parse().ok());
        let nobody = || Status::invalid_argument("the caller does not say which broker it is");
        let caller = caller.ok_or_else(nobody)?;
        let state = self.0.serving().map(|serving| serving.control.state());
        match state.and_then(|state| state.has_left(BrokerId(caller))) {
            Some(left) => Err(Status::permission_denied(left)),
            None => Ok(caller),
        }
    }

    fn serving(&self) -> Result<Arc<Serving>, Status> {
        self.0.serving().ok_or_else(|| Status::unavailable("the broker is starting"))
    }

    fn replica(&self, group: u64) -> Result<Partition, partition::Error> {
        let not_here = partition::Error::Raft(raft::Error::NotLeader { leader: None });
        let serving = self.0.serving().ok_or(not_here.clone())?;
        let known = serving.routing.partition(GroupId(group)).ok_or(not_here.clone())?;
        known.replica().ok_or(not_here)
    }

    async fn handle(self, frame: PeerFrame) -> PeerFrame {
        let PeerFrame { call, group, body } = frame;
        let body = match (self.0.replica(GroupId(group)), body.and_then(codec::request_from_wire)) {
            (None, _) => Body::Absent(true),
            (_, None) => Body::Failed("the request is none that this version knows".to_owned()),
            (Some(replica), Some(request)) => match replica.handle(request).await {
                Ok(response) => codec::response_to_wire(response),
                Err(error) => Body::Failed(error.to_string()),
            },
        };
        PeerFrame { call, group, body: Some(body) }
    }

    /// Works on a broker's requests until it goes away.
    async fn exchange_frames(
        self,
        mut incoming: Streaming<PeerFrames>,
        outgoing: mpsc::Sender<Result<PeerFrames, Status>>,
    ) {
        let mut working = FuturesUnordered::new();
        let mut open = true;
        while open || !working.is_empty() {
            tokio::select! {
                biased;
                Some(done) = working.next() => {
                    let mut frames: Vec<PeerFrame> = vec![done];
                    let mut bytes = frames[0].encoded_len();
                    while bytes < MESSAGE_BYTES
                        && let Some(Some(done)) = working.next().now_or_never()
                    {
                        bytes += done.encoded_len();
                        frames.push(done);
                    }
                    if outgoing.send(Ok(PeerFrames { frames })).await.is_err() {
                        return;
                    }
                }
                message = incoming.next(), if open && working.len() < REQUESTS_AT_ONCE => match message {
                    Some(Ok(message)) => {
                        working.extend(message.frames.into_iter().map(|frame| self.clone().handle(frame)));
                    }
                    Some(Err(_)) | None => open = false,
                },
            }
        }
    }

    async fn change(&self, command: &[u8]) -> Result<wire::ChangeMetadataResponse, Status> {
        if command.is_empty() {
            let index = self.serving()?.control.leading_index().await;
            let index = index.ok_or_else(|| Status::unavailable("the broker does not lead the metadata"))?;
            return Ok(wire::ChangeMetadataResponse { index, outcome: Some(WireOutcome::Done(true)) });
        }
        let command =
            Command::decode(command).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (index, outcome) = match self.serving()?.control.change_here(&command).await {
            Ok((index, Ok(outcome))) => (index, store_outcome(outcome)),
            Ok((index, Err(refused))) => (index, WireOutcome::Refused(error::metadata_to_wire(&refused))),
            Err(failed) => (0, WireOutcome::Failed(error::raft_to_wire(&failed))),
        };
        Ok(wire::ChangeMetadataResponse { index, outcome: Some(outcome) })
    }

    async fn append_batches(&self, group: u64, command: Bytes) -> Result<Vec<wire::AppendResult>, Status> {
        let Ok(LogCommand::Append(append)) = LogCommand::decode(&command) else {
            return Err(Status::invalid_argument("the command is no append"));
        };
        let received = std::time::Instant::now();
        let partition = self.replica(group);
        let mut waiting = Vec::new();
        for frame in append.frames() {
            waiting.push(match &partition {
                Ok(partition) => partition.submit(frame.batch, frame.header, received).await,
                Err(error) => Err(error.clone()),
            });
        }
        let mut results = Vec::with_capacity(waiting.len());
        for outcome in waiting {
            let outcome = match outcome {
                Ok(outcome) => {
                    outcome.await.unwrap_or(Err(partition::Error::Raft(raft::Error::OutcomeUnknown)))
                }
                Err(error) => Err(error),
            };
            results.push(match outcome {
                Ok(committed) => wire::AppendResult {
                    base_offset: committed.base_offset.0,
                    append_time_ms: committed.append_time.0,
                    duplicate: committed.duplicate,
                    error: None,
                },
                Err(error) => {
                    wire::AppendResult { error: Some(error::to_wire(&error)), ..Default::default() }
                }
            });
        }
        Ok(results)
    }

    async fn read_batches(
        &self,
        request: &wire::ReadRequest,
    ) -> Result<(Bounds, Vec<StoredBatch>), partition::Error> {
        let partition = self.replica(request.group)?;
        // Whoever asks knows that there is something, so this replica does not lead any more, or did not yet see it.
        if Offset(request.offset) > partition.bounds().high_watermark {
            return Err(partition::Error::Raft(raft::Error::NotLeader { leader: None }));
        }
        let most = usize::try_from(request.max_bytes).unwrap_or(usize::MAX).min(READ_BYTES_MAX);
        let batches = partition.read(Offset(request.offset), most).await?;
        Ok((partition.bounds(), batches))
    }

    async fn look_up(&self, request: &wire::LocateRequest) -> Result<wire::LocateResponse, partition::Error> {
        let partition = self.replica(request.group)?;
        // Whoever asks counts on all that was acknowledged before, which a leader that was replaced unnoticed does not know.
        partition.members().confirm(CONFIRM_TIMEOUT).await?;
        let mut found = wire::LocateResponse::default();
        match &request.what {
            Some(What::OffsetAtMs(time)) => found.offset = partition.offset_at(Timestamp(*time)).await?.0,
            Some(What::AppendTimeOf(offset)) => {
                found.append_time_ms = partition.append_time(Offset(*offset)).await?.map(|time| time.0);
            }
            None => {}
        }
        let Bounds { log_start, high_watermark } = partition.bounds();
        Ok(wire::LocateResponse { log_start: log_start.0, high_watermark: high_watermark.0, ..found })
    }
}

fn store_outcome(outcome: Outcome) -> WireOutcome {
    match outcome {
        Outcome::Done => WireOutcome::Done(true),
        Outcome::Topic(topic) => WireOutcome::Topic(store_topic(&topic)),
        Outcome::ProducerId(id) => WireOutcome::ProducerId(id),
        Outcome::CoordinatorShards(shards) => WireOutcome::CoordinatorShards(shards),
        Outcome::Broker(id) => WireOutcome::BrokerId(id.0),
    }
}

fn store_span(span: Option<SpanLink>) -> Bytes {
    span.map_or_else(Bytes::new, |span| [&span.trace_id[..], &span.span_id[..]].concat().into())
}

#[tonic::async_trait]
impl PeerService for Service {
    type ExchangeStream = Frames;
    type ReportStream = Reports;

    async fn identify(
        &self,
        _: Request<wire::IdentifyRequest>,
    ) -> Result<Response<wire::IdentifyResponse>, Status> {
        let Identity { cluster, broker, .. } = &self.0.0.identity;
        let cluster_id = cluster.to_string();
        Ok(Response::new(wire::IdentifyResponse { cluster_id, broker_id: broker.0, protocol: PROTOCOL }))
    }

    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let missing = || Status::invalid_argument("field `broker` is missing");
        let known = request.get_ref().broker.as_ref().is_some_and(|broker| broker.broker_id != 0);
        if known {
            self.admit(&request)?;
        }
        let broker = load_broker(request.into_inner().broker.ok_or_else(missing)?);
        let serving = self.serving()?;
        let admitted = match known {
            true => {
                let id = broker.id;
                serving.control.change(&Command::RegisterBroker(broker)).await.map(|_| id)
            }
            false => serving.control.admit(broker).await,
        };
        let admitted = admitted.map_err(|error| match error {
            control::Error::Refused(refused) => Status::permission_denied(refused.to_string()),
            control::Error::Raft(error) => Status::unavailable(error.to_string()),
        })?;
        let state = serving.control.state();
        Ok(Response::new(wire::JoinResponse {
            cluster_id: self.0.0.identity.cluster.to_string(),
            broker_id: admitted.0,
            brokers: state.brokers().map(store_broker).collect(),
        }))
    }

    async fn exchange(&self, request: Request<Streaming<PeerFrames>>) -> Result<Response<Frames>, Status> {
        self.admit(&request)?;
        let (outgoing, answers) = mpsc::channel(MESSAGES_AHEAD);
        self.0.spawn("peer requests", self.clone().exchange_frames(request.into_inner(), outgoing));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn report(&self, request: Request<wire::ReportRequest>) -> Result<Response<Reports>, Status> {
        self.admit(&request)?;
        let (outgoing, answers) = mpsc::channel(MESSAGES_AHEAD);
        let routing = Arc::clone(&self.serving()?.routing);
        let ready = self.0.0.ready.subscribe();
        self.0.spawn("reports to a peer", reports::tell(routing, ready, outgoing));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn change_metadata(
        &self,
        request: Request<wire::ChangeMetadataRequest>,
    ) -> Result<Response<wire::ChangeMetadataResponse>, Status> {
        self.admit(&request)?;
        Ok(Response::new(self.change(&request.into_inner().command).await?))
    }

    async fn append(
        &self,
        request: Request<wire::AppendRequest>,
    ) -> Result<Response<wire::AppendResponse>, Status> {
        self.admit(&request)?;
        let wire::AppendRequest { group, command } = request.into_inner();
        let results = self.append_batches(group, command).await?;
        Ok(Response::new(wire::AppendResponse { results }))
    }

    async fn read(
        &self,
        request: Request<wire::ReadRequest>,
    ) -> Result<Response<wire::ReadResponse>, Status> {
        self.admit(&request)?;
        let response = match self.read_batches(&request.into_inner()).await {
            Ok((bounds, batches)) => wire::ReadResponse {
                batches: batches
                    .into_iter()
                    .map(|stored| wire::ReadBatch {
                        base_offset: stored.base.0,
                        record_count: stored.records,
                        append_time_ms: stored.append_time.0,
                        codec: stored.codec as u32,
                        span: store_span(stored.span),
                        batch: stored.batch,
                    })
                    .collect(),
                log_start: bounds.log_start.0,
                high_watermark: bounds.high_watermark.0,
                error: None,
            },
            Err(error) => wire::ReadResponse { error: Some(error::to_wire(&error)), ..Default::default() },
        };
        Ok(Response::new(response))
    }

    async fn locate(
        &self,
        request: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateResponse>, Status> {
        self.admit(&request)?;
        let response = self.look_up(&request.into_inner()).await.unwrap_or_else(|error| {
            wire::LocateResponse { error: Some(error::to_wire(&error)), ..Default::default() }
        });
        Ok(Response::new(response))
    }

    async fn trim(
        &self,
        request: Request<wire::TrimRequest>,
    ) -> Result<Response<wire::TrimResponse>, Status> {
        self.admit(&request)?;
        let wire::TrimRequest { group, before } = request.into_inner();
        let trimmed = match self.replica(group) {
            Ok(partition) => partition.trim(Offset(before)).await,
            Err(error) => Err(error),
        };
        Ok(Response::new(match trimmed {
            Ok(log_start) => wire::TrimResponse { log_start: log_start.0, error: None },
            Err(error) => wire::TrimResponse { log_start: 0, error: Some(error::to_wire(&error)) },
        }))
    }
}

fn newcomer() -> Status {
    Status::failed_precondition("this broker belongs to no cluster yet")
}

#[tonic::async_trait]
impl PeerService for Newcomer {
    type ExchangeStream = Frames;
    type ReportStream = Reports;

    async fn identify(
        &self,
        _: Request<wire::IdentifyRequest>,
    ) -> Result<Response<wire::IdentifyResponse>, Status> {
        Ok(Response::new(wire::IdentifyResponse { protocol: PROTOCOL, ..Default::default() }))
    }

    async fn join(&self, _: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        Err(newcomer())
    }

    async fn exchange(&self, _: Request<Streaming<PeerFrames>>) -> Result<Response<Frames>, Status> {
        Err(newcomer())
    }

    async fn report(&self, _: Request<wire::ReportRequest>) -> Result<Response<Reports>, Status> {
        Err(newcomer())
    }

    async fn change_metadata(
        &self,
        _: Request<wire::ChangeMetadataRequest>,
    ) -> Result<Response<wire::ChangeMetadataResponse>, Status> {
        Err(newcomer())
    }

    async fn append(
        &self,
        _: Request<wire::AppendRequest>,
    ) -> Result<Response<wire::AppendResponse>, Status> {
        Err(newcomer())
    }

    async fn read(&self, _: Request<wire::ReadRequest>) -> Result<Response<wire::ReadResponse>, Status> {
        Err(newcomer())
    }

    async fn locate(
        &self,
        _: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateResponse>, Status> {
        Err(newcomer())
    }

    async fn trim(&self, _: Request<wire::TrimRequest>) -> Result<Response<wire::TrimResponse>, Status> {
        Err(newcomer())
    }
}
