//! `streambus.v1.ControlService`.

use prost::Message;
use tonic::{Code, Request, Response, Status};

use super::Context;
use super::forward::{self, Method};
use crate::api::convert::control as convert;
use crate::api::rpc::Peer;
use crate::api::status::Failure;
use crate::broker::{ErrorCode, Order};
use crate::proto::v1;
use crate::proto::v1::control_service_server::ControlService;
use crate::record::Offset;

/// Most batches that a look-up by trace gives.
const FOUND_MAX: usize = 100;

pub(super) struct Service(pub(super) Context);

/// A request for a change, as brokers pass it on.
trait Change: Message + Clone + Default + Send + Sync + 'static {
    type Answer: Message + Default + Send + Sync + 'static;
    fn terms(&mut self) -> &mut v1::OverrideTerms;
    fn outcomes(answer: Self::Answer) -> Vec<v1::ControlOutcome>;
}

macro_rules! change {
    ($request:ident, $response:ident) => {
        impl Change for v1::$request {
            type Answer = v1::$response;

            fn terms(&mut self) -> &mut v1::OverrideTerms {
                self.terms.get_or_insert_default()
            }

            fn outcomes(answer: v1::$response) -> Vec<v1::ControlOutcome> {
                answer.outcomes
            }
        }
    };
}

change!(SetLogFilterRequest, SetLogFilterResponse);
change!(ClearLogFilterRequest, ClearLogFilterResponse);
change!(SetSamplingRequest, SetSamplingResponse);
change!(ClearSamplingRequest, ClearSamplingResponse);

const fn method(path: &'static str) -> Method {
    Method { path, writes: true }
}

impl Service {
    fn id(&self) -> u64 {
        self.0.broker().id().unwrap_or_default()
    }

    /// Does `change` here, and has the other brokers do it unless the caller wants otherwise. If it cannot be done here it
    /// is not done anywhere.
    async fn everywhere<C: Change>(
        &self,
        mut request: Request<C>,
        method: Method,
        change: impl FnOnce(&Service, C, Order) -> Result<(), Failure>,
    ) -> Result<Vec<v1::ControlOutcome>, Status> {
        let forwarded = forward::is_forwarded(request.metadata());
        let only_here = forwarded || request.get_mut().terms().only_this_broker;
        if !forwarded {
            identify(&mut request)?;
        }
        let mut wanted = request.get_ref().clone();
        let order = Order::from(wanted.terms().clone());
        change(self, wanted, order)?;
        let mut outcomes = vec![v1::ControlOutcome { broker_id: self.id(), error: None }];
        if !only_here {
            let peers = self.0.broker().peers();
            for (peer, answer) in self.0.forward_to_all::<C, C::Answer>(&peers, method, &request).await {
                match answer {
                    Ok(answer) => outcomes.extend(C::outcomes(answer)),
                    Err(status) => {
                        let code = match status.code() {
                            Code::InvalidArgument => ErrorCode::InvalidArgument,
                            Code::Unavailable => ErrorCode::NotReady,
                            _ => ErrorCode::OutcomeUnknown,
                        };
                        let failure = Failure::new(code, status.message());
                        outcomes
                            .push(v1::ControlOutcome { broker_id: peer, error: Some(failure.into_proto()) });
                    }
                }
            }
            outcomes.extend(self.unreached(&peers).into_iter().map(|broker_id| {
                let failure =
                    Failure::new(ErrorCode::NotReady, "the broker is not reached; nothing was changed there");
                v1::ControlOutcome { broker_id, error: Some(failure.into_proto()) }
            }));
        }
        Ok(outcomes)
    }

    /// Brokers of the cluster that are neither this one nor `reached`.
    fn unreached(&self, reached: &[u64]) -> Vec<u64> {
        let Ok(cluster) = self.0.broker().describe_cluster(&[]) else { return Vec::new() };
        let ids = cluster.brokers.iter().map(|broker| broker.id);
        ids.filter(|id| *id != cluster.broker_id && !reached.contains(id)).collect()
    }

    /// What this broker alone knows: of groups that others coordinate only if `all` are wanted.
    async fn explain_here(
        &self,
        request: &v1::ExplainRecordRequest,
        all: bool,
    ) -> Result<v1::ExplainRecordResponse, Failure> {
        let broker = self.0.broker();
        let v1::ExplainRecordRequest { topic, partition, offset, producer_id } = request;
        let offset = Offset(*offset);
        let record = match broker.leader_elsewhere(topic, *partition)? {
            Some(_) => None,
            None => {
                let facts = broker.explain_record(topic, *partition, offset).await?;
                Some(convert::record(topic.clone(), *partition, facts))
            }
        };
        let groups = broker.explain_groups(topic, *partition, offset).await?.into_iter();
        let name = producer_id.and_then(|id| broker.producer_name(id));
        Ok(v1::ExplainRecordResponse {
            record,
            groups: groups.filter(|facts| all || facts.coordinated_here).map(convert::group).collect(),
            unreached_broker_ids: Vec::new(),
            producer_user_agent: name.map(|name| name.to_string()).unwrap_or_default(),
        })
    }
}

/// Adds to what the caller says of itself what the broker sees.
fn identify<C: Change>(request: &mut Request<C>) -> Result<(), Failure> {
    let peer = request.extensions().get::<Peer>().map_or_else(|| "?".to_owned(), |peer| peer.0.to_string());
    let agent = request.metadata().get("user-agent").and_then(|agent| agent.to_str().ok()).unwrap_or("?");
    let agent: String = agent.chars().take(128).collect();
    let terms = request.get_mut().terms();
    if terms.requested_by.len() > 255 {
        let bytes = terms.requested_by.len();
        let text = format!("field `terms.requested_by`: has {bytes} bytes, at most 255 are allowed");
        return Err(Failure::new(ErrorCode::InvalidArgument, text));
    }
    let name = if terms.requested_by.is_empty() { "somebody" } else { &terms.requested_by };
    terms.requested_by = format!("{name} from {peer} with {agent}");
    Ok(())
}

#[tonic::async_trait]
impl ControlService for Service {
    async fn get_overrides(
        &self,
        _request: Request<v1::GetOverridesRequest>,
    ) -> Result<Response<v1::GetOverridesResponse>, Status> {
        Ok(Response::new(convert::overrides(self.id(), self.0.broker().overrides())))
    }

    async fn set_log_filter(
        &self,
        request: Request<v1::SetLogFilterRequest>,
    ) -> Result<Response<v1::SetLogFilterResponse>, Status> {
        convert::terms(request.get_ref().terms.clone()).map_err(Failure::from)?;
        let method = method("/streambus.v1.ControlService/SetLogFilter");
        let outcomes = self.everywhere(request, method, |service, mut wanted, order| {
            let duration = convert::duration(wanted.terms())?;
            Ok(service.0.broker().set_log_filter(&wanted.filter, duration, order)?)
        });
        Ok(Response::new(v1::SetLogFilterResponse { outcomes: outcomes.await? }))
    }

    async fn clear_log_filter(
        &self,
        request: Request<v1::ClearLogFilterRequest>,
    ) -> Result<Response<v1::ClearLogFilterResponse>, Status> {
        let method = method("/streambus.v1.ControlService/ClearLogFilter");
        let outcomes = self.everywhere(request, method, |service, _, order| {
            Ok(service.0.broker().clear_log_filter(&order)?)
        });
        Ok(Response::new(v1::ClearLogFilterResponse { outcomes: outcomes.await? }))
    }

    async fn set_sampling(
        &self,
        request: Request<v1::SetSamplingRequest>,
    ) -> Result<Response<v1::SetSamplingResponse>, Status> {
        convert::terms(request.get_ref().terms.clone()).map_err(Failure::from)?;
        let method = method("/streambus.v1.ControlService/SetSampling");
        let outcomes = self.everywhere(request, method, |service, mut wanted, order| {
            let duration = convert::duration(wanted.terms())?;
            Ok(service.0.broker().set_sampling(&wanted.topic, wanted.ratio, duration, order)?)
        });
        Ok(Response::new(v1::SetSamplingResponse { outcomes: outcomes.await? }))
    }

    async fn clear_sampling(
        &self,
        request: Request<v1::ClearSamplingRequest>,
    ) -> Result<Response<v1::ClearSamplingResponse>, Status> {
        let method = method("/streambus.v1.ControlService/ClearSampling");
        let outcomes = self.everywhere(request, method, |service, wanted, order| {
            Ok(service.0.broker().clear_sampling(&wanted.topic, wanted.all, &order)?)
        });
        Ok(Response::new(v1::ClearSamplingResponse { outcomes: outcomes.await? }))
    }

    async fn explain_record(
        &self,
        mut request: Request<v1::ExplainRecordRequest>,
    ) -> Result<Response<v1::ExplainRecordResponse>, Status> {
        const METHOD: Method = Method { path: "/streambus.v1.ControlService/ExplainRecord", writes: false };
        if forward::is_forwarded(request.metadata()) {
            return Ok(Response::new(self.explain_here(request.get_ref(), false).await?));
        }
        let asked = request.get_ref();
        let broker = self.0.broker();
        let leader = broker.leader_elsewhere(&asked.topic, asked.partition).map_err(Failure::from)?;
        // The leader first: without the record there is nothing to explain.
        let mut answer: v1::ExplainRecordResponse = match leader {
            Some(to) => self.0.forward(to, METHOD, forward::copy(&request)).await?.into_inner(),
            None => self.explain_here(asked, true).await?,
        };
        let Some(record) = &mut answer.record else {
            let text = "the partition is getting another leader; retry";
            return Err(Failure::new(ErrorCode::NotReady, text).into());
        };
        request.get_mut().producer_id = record.has_producer.then_some(record.producer_id);
        let reached = broker.peers();
        let peers: Vec<u64> = reached.iter().copied().filter(|peer| Some(*peer) != leader).collect();
        let mut others: Vec<(u64, Result<v1::ExplainRecordResponse, Status>)> =
            self.0.forward_to_all(&peers, METHOD, &request).await;
        answer.unreached_broker_ids = self.unreached(&reached);
        if leader.is_some() {
            // What is replicated is known here too, so groups whose coordinator does not answer are not left out.
            let here = self.explain_here(request.get_ref(), true).await?;
            let coordinated = std::mem::replace(&mut answer.groups, here.groups);
            others.push((self.id(), Ok(v1::ExplainRecordResponse { groups: coordinated, ..here })));
        }
        for (peer, other) in others {
            match other {
                Ok(other) => {
                    for group in other.groups {
                        match answer.groups.iter_mut().find(|known| known.group == group.group) {
                            Some(known) => *known = group,
                            None => answer.groups.push(group),
                        }
                    }
                    if record.producer_user_agent.is_empty() {
                        record.producer_user_agent = other.producer_user_agent;
                    }
                }
                Err(_) => answer.unreached_broker_ids.push(peer),
            }
        }
        answer.producer_user_agent.clear();
        answer.unreached_broker_ids.sort_unstable();
        answer.groups.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(Response::new(answer))
    }

    async fn find_records(
        &self,
        request: Request<v1::FindRecordsRequest>,
    ) -> Result<Response<v1::FindRecordsResponse>, Status> {
        const METHOD: Method = Method { path: "/streambus.v1.ControlService/FindRecords", writes: false };
        let forwarded = forward::is_forwarded(request.metadata());
        let trace = convert::trace_id(&request.get_ref().trace_id).map_err(Failure::from)?;
        let here = self.0.broker().traced_batches(trace);
        let mut batches: Vec<v1::FoundBatch> = here.into_iter().map(Into::into).collect();
        let mut unreached = Vec::new();
        if !forwarded {
            let peers = self.0.broker().peers();
            unreached = self.unreached(&peers);
            let others = self.0.forward_to_all::<_, v1::FindRecordsResponse>(&peers, METHOD, &request).await;
            for (peer, other) in others {
                match other {
                    Ok(other) => batches.extend(other.batches),
                    Err(_) => unreached.push(peer),
                }
            }
        }
        let when = |batch: &v1::FoundBatch| batch.append_time.map(|time| (time.seconds, time.nanos));
        batches.sort_by(|a, b| {
            (when(a), &a.topic, a.partition, a.base_offset).cmp(&(
                when(b),
                &b.topic,
                b.partition,
                b.base_offset,
            ))
        });
        // A batch that came through one broker to another may be remembered by both.
        batches.dedup_by(|a, b| {
            (&a.topic, a.partition, a.base_offset) == (&b.topic, b.partition, b.base_offset)
        });
        batches.truncate(FOUND_MAX);
        unreached.sort_unstable();
        Ok(Response::new(v1::FindRecordsResponse { batches, unreached_broker_ids: unreached }))
    }
}
