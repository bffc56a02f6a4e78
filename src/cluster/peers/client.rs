//! Calls to the broker that leads a partition or the control group.

use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{Hub, error, link};
use crate::clock::Timestamp;
use crate::metadata::codec::{load_broker, load_topic, store_broker};
use crate::metadata::{self, BrokerId, Outcome};
use crate::partition::view::Bounds;
use crate::partition::{self, StoredBatch};
use crate::proto::internal as wire;
use crate::proto::internal::change_metadata_response::Outcome as WireOutcome;
use crate::proto::internal::locate_request::What;
use crate::proto::internal::peer_service_client::PeerServiceClient;
use crate::raft::{self, NodeId};
use crate::record::{Codec, Offset, SpanLink};
use crate::storage::GroupId;

/// How long a call may take that changes nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a leader has to say that a majority follows it, which it may have to ask first.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long a change may take before its outcome counts as unknown.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A batch that was forwarded, as the leader answered it.
pub(in crate::cluster) struct Forwarded {
    pub(in crate::cluster) base_offset: Offset,
    pub(in crate::cluster) append_time: Timestamp,
    pub(in crate::cluster) duplicate: bool,
}

/// Why a broker does not say that a majority follows it.
pub(in crate::cluster) enum Unconfirmed {
    /// It did not answer, leads no more, or nobody follows.
    NotSaid,
    /// It knows that the broker that asked has left the cluster, and says why.
    Left(String),
}

impl Hub {
    fn client(&self, node: NodeId) -> Result<PeerServiceClient<Channel>, raft::Error> {
        let link = self.link(node).ok_or(raft::Error::NotLeader { leader: Some(node) })?;
        Ok(PeerServiceClient::new(link.channel())
            .max_decoding_message_size(link::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(link::MESSAGE_BYTES_MAX))
    }

    /// Proposes a change of the metadata to `leader`. Gives its index in the control group's log and what it gave.
    pub(in crate::cluster) async fn change_metadata(
        &self,
        leader: NodeId,
        command: Vec<u8>,
    ) -> Result<(u64, Result<Outcome, metadata::Error>), raft::Error> {
        let mut client = self.client(leader)?;
        let request = self.introduce(wire::ChangeMetadataRequest { command: command.into() });
        let response = within(WRITE_TIMEOUT, client.change_metadata(request)).await;
        let response = response.map_err(|status| written(&status, leader))?;
        let outcome = match response.outcome {
            Some(WireOutcome::Done(_)) => Ok(Outcome::Done),
            Some(WireOutcome::Topic(topic)) => load_topic(topic).map(|topic| Outcome::Topic(topic.into())),
            Some(WireOutcome::ProducerId(id)) => Ok(Outcome::ProducerId(id)),
            Some(WireOutcome::CoordinatorShards(shards)) => Ok(Outcome::CoordinatorShards(shards)),
            Some(WireOutcome::BrokerId(id)) => Ok(Outcome::Broker(BrokerId(id))),
            Some(WireOutcome::Refused(refused)) => Err(error::metadata_from_wire(refused)),
            Some(WireOutcome::Failed(failed)) => return Err(error::raft_from_wire(failed)),
            None => return Err(raft::Error::OutcomeUnknown),
        };
        Ok((response.index, outcome))
    }

    /// Tells the cluster through the broker at `address` where this broker is now.
    ///
    /// # Errors
    /// Why the cluster does not want it; nothing if that broker could not be asked or could not do it now.
    pub(in crate::cluster) async fn announce(
        &self,
        address: &str,
        broker: &metadata::Broker,
    ) -> Result<(), Option<metadata::Error>> {
        let channel = link::endpoint(address).map_err(|_| None)?.connect_lazy();
        let mut client = PeerServiceClient::new(channel);
        let request = self.introduce(wire::JoinRequest { broker: Some(store_broker(broker)) });
        match within(READ_TIMEOUT, client.join(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::PermissionDenied => {
                Err(Some(metadata::Error::Refused(status.message().to_owned())))
            }
            Err(_) => Err(None),
        }
    }

    /// Asks `node` whether a majority follows it as the leader of the control group.
    ///
    /// # Errors
    /// Why it does not say so.
    pub(in crate::cluster) async fn confirm_majority(&self, node: NodeId) -> Result<(), Unconfirmed> {
        let mut client = self.client(node).map_err(|_| Unconfirmed::NotSaid)?;
        let request = self.introduce(wire::ChangeMetadataRequest { command: bytes::Bytes::new() });
        match within(CONFIRM_TIMEOUT, client.change_metadata(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::PermissionDenied => {
                Err(Unconfirmed::Left(status.message().to_owned()))
            }
            Err(_) => Err(Unconfirmed::NotSaid),
        }
    }

    /// How far `leader` has applied the control group's log.
    pub(in crate::cluster) async fn metadata_index(&self, leader: NodeId) -> Result<u64, raft::Error> {
        let mut client = self.client(leader)?;
        let request = self.introduce(wire::ChangeMetadataRequest { command: bytes::Bytes::new() });
        let response = within(READ_TIMEOUT, client.change_metadata(request)).await;
        Ok(response.map_err(|status| written(&status, leader))?.index)
    }

    /// Appends the batches of an append command to a partition that `leader` leads.
    pub(in crate::cluster) async fn append(
        &self,
        leader: NodeId,
        group: GroupId,
        command: bytes::Bytes,
    ) -> Result<Vec<Result<Forwarded, partition::Error>>, raft::Error> {
        let mut client = self.client(leader)?;
        let request = self.introduce(wire::AppendRequest { group: group.0, command });
        let response = within(WRITE_TIMEOUT, client.append(request)).await;
        let response = response.map_err(|status| written(&status, leader))?;
        let result = |result: wire::AppendResult| match result.error {
            Some(failed) => Err(error::from_wire(failed)),
            None => Ok(Forwarded {
                base_offset: Offset(result.base_offset),
                append_time: Timestamp(result.append_time_ms),
                duplicate: result.duplicate,
            }),
        };
        Ok(response.results.into_iter().map(result).collect())
    }

    /// Reads committed batches of a partition that `node` has.
    pub(in crate::cluster) async fn read(
        &self,
        node: NodeId,
        group: GroupId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<(Bounds, Vec<StoredBatch>), partition::Error> {
        let mut client = self.client(node)?;
        let request = wire::ReadRequest { group: group.0, offset: from.0, max_bytes: max_bytes as u64 };
        let response = within(READ_TIMEOUT, client.read(self.introduce(request))).await;
        let response = response.map_err(|status| unread(&status, node))?;
        if let Some(failed) = response.error {
            return Err(error::from_wire(failed));
        }
        let bounds =
            Bounds { log_start: Offset(response.log_start), high_watermark: Offset(response.high_watermark) };
        let batches = response.batches.into_iter().map(|batch| {
            let unknown = || partition::Error::Damaged(format!("codec {} is not known", batch.codec));
            let codec = Codec::ALL.get(batch.codec as usize).copied().ok_or_else(unknown)?;
            Ok(StoredBatch {
                base: Offset(batch.base_offset),
                records: batch.record_count,
                append_time: Timestamp(batch.append_time_ms),
                codec,
                span: span_from(&batch.span),
                batch: batch.batch,
            })
        });
        Ok((bounds, batches.collect::<Result<_, partition::Error>>()?))
    }

    /// Looks something up in a partition that `leader` leads.
    pub(in crate::cluster) async fn locate(
        &self,
        leader: NodeId,
        group: GroupId,
        what: Option<What>,
    ) -> Result<(Bounds, wire::LocateResponse), partition::Error> {
        let mut client = self.client(leader)?;
        let request = self.introduce(wire::LocateRequest { group: group.0, what });
        let response = within(READ_TIMEOUT, client.locate(request)).await;
        let mut response = response.map_err(|status| unread(&status, leader))?;
        if let Some(failed) = response.error.take() {
            return Err(error::from_wire(failed));
        }
        let bounds =
            Bounds { log_start: Offset(response.log_start), high_watermark: Offset(response.high_watermark) };
        Ok((bounds, response))
    }

    /// Deletes records below `before` of a partition that `leader` leads.
    pub(in crate::cluster) async fn trim(
        &self,
        leader: NodeId,
        group: GroupId,
        before: Offset,
    ) -> Result<Offset, partition::Error> {
        let mut client = self.client(leader)?;
        let request = self.introduce(wire::TrimRequest { group: group.0, before: before.0 });
        let response = within(WRITE_TIMEOUT, client.trim(request)).await;
        let response = response.map_err(|status| written(&status, leader))?;
        match response.error {
            Some(failed) => Err(error::from_wire(failed)),
            None => Ok(Offset(response.log_start)),
        }
    }
}

/// Who answers at an address, if somebody does.
///
/// # Errors
/// Why nobody does.
pub(in crate::cluster) async fn identify(address: &str) -> Result<wire::IdentifyResponse, String> {
    let channel = link::endpoint(address)?.connect().await.map_err(|error| {
        use std::error::Error as _;
        error.source().map_or_else(|| error.to_string(), ToString::to_string)
    })?;
    let mut client = PeerServiceClient::new(channel);
    let response = within(READ_TIMEOUT, client.identify(wire::IdentifyRequest {})).await;
    response.map_err(|status| link::reason_of(&status))
}

/// Asks the broker at `address` to make this one a member of its cluster.
///
/// # Errors
/// Why it does not.
pub(in crate::cluster) async fn join(
    address: &str,
    broker: wire::BrokerRecord,
) -> Result<(String, u64, Vec<metadata::Broker>), String> {
    let channel = link::endpoint(address)?.connect().await.map_err(|error| error.to_string())?;
    let mut client = PeerServiceClient::new(channel);
    let request = wire::JoinRequest { broker: Some(broker) };
    let response = within(WRITE_TIMEOUT, client.join(request)).await;
    let response = response.map_err(|status| link::reason_of(&status))?;
    let brokers = response.brokers.into_iter().map(load_broker).collect();
    Ok((response.cluster_id, response.broker_id, brokers))
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the broker did not answer in time")),
    }
}

/// What a change means that failed on the way: only a connection that did not come about promises that nothing was
/// written.
fn written(status: &Status, leader: NodeId) -> raft::Error {
    match status.code() {
        Code::FailedPrecondition | Code::Unimplemented | Code::PermissionDenied => {
            raft::Error::NotLeader { leader: None }
        }
        _ if link::never_sent(status) => raft::Error::NotLeader { leader: Some(leader) },
        _ => raft::Error::OutcomeUnknown,
    }
}

/// What a look-up means that failed on the way: another broker may lead by now.
fn unread(_status: &Status, leader: NodeId) -> partition::Error {
    partition::Error::Raft(raft::Error::NotLeader { leader: Some(leader) })
}

fn span_from(bytes: &[u8]) -> Option<SpanLink> {
    let (trace, span) = bytes.split_first_chunk::<16>()?;
    Some(SpanLink { trace_id: *trace, span_id: span.try_into().ok()? })
}
