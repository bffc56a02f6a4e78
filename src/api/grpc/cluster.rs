//! `streambus.v1.ClusterService`.

use tonic::{Code, Request, Response, Status};

use super::Context;
use super::forward::{self, Method};
use crate::api::status::Failure;
use crate::proto::v1;
use crate::proto::v1::cluster_service_server::ClusterService;

pub(super) struct Service(pub(super) Context);

const fn method(path: &'static str) -> Method {
    Method { path, writes: true }
}

#[tonic::async_trait]
impl ClusterService for Service {
    async fn describe_cluster(
        &self,
        request: Request<v1::DescribeClusterRequest>,
    ) -> Result<Response<v1::DescribeClusterResponse>, Status> {
        let topics = request.into_inner().topics;
        self.0.broker().look_for(&topics).await;
        let info = self.0.broker().describe_cluster(&topics).map_err(Failure::from)?;
        Ok(Response::new(info.into()))
    }

    async fn get_cluster_status(
        &self,
        _request: Request<v1::GetClusterStatusRequest>,
    ) -> Result<Response<v1::GetClusterStatusResponse>, Status> {
        let status = self.0.broker().cluster_status().map_err(Failure::from)?;
        Ok(Response::new(status.into()))
    }

    async fn drain_broker(
        &self,
        request: Request<v1::DrainBrokerRequest>,
    ) -> Result<Response<v1::DrainBrokerResponse>, Status> {
        if let Some(to) = self.0.controller_elsewhere(&request) {
            return self.0.forward(to, method("/streambus.v1.ClusterService/DrainBroker"), request).await;
        }
        let v1::DrainBrokerRequest { broker_id, cancel } = request.into_inner();
        let left = self.0.broker().drain_broker(broker_id, !cancel).await.map_err(Failure::from)?;
        Ok(Response::new(v1::DrainBrokerResponse { replica_count: left as u32 }))
    }

    async fn remove_broker(
        &self,
        request: Request<v1::RemoveBrokerRequest>,
    ) -> Result<Response<v1::RemoveBrokerResponse>, Status> {
        if let Some(to) = self.0.controller_elsewhere(&request) {
            return self.0.forward(to, method("/streambus.v1.ClusterService/RemoveBroker"), request).await;
        }
        let v1::RemoveBrokerRequest { broker_id } = request.into_inner();
        self.0.broker().remove_broker(broker_id).await.map_err(Failure::from)?;
        Ok(Response::new(v1::RemoveBrokerResponse {}))
    }

    async fn reassign_partition(
        &self,
        request: Request<v1::ReassignPartitionRequest>,
    ) -> Result<Response<v1::ReassignPartitionResponse>, Status> {
        if let Some(to) = self.0.controller_elsewhere(&request) {
            let method = method("/streambus.v1.ClusterService/ReassignPartition");
            return self.0.forward(to, method, request).await;
        }
        let v1::ReassignPartitionRequest { topic, partition, replica_ids } = request.into_inner();
        self.0.broker().reassign(&topic, partition, replica_ids).await.map_err(Failure::from)?;
        Ok(Response::new(v1::ReassignPartitionResponse {}))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let v1::TransferLeaderRequest { topic, partition, broker_id } = request.get_ref().clone();
        let leader = self.0.broker().leader_elsewhere(&topic, partition).map_err(Failure::from)?;
        if let Some(to) = leader.filter(|_| !forward::is_forwarded(request.metadata())) {
            return self.0.forward(to, method("/streambus.v1.ClusterService/TransferLeader"), request).await;
        }
        self.0.broker().transfer_leader(&topic, partition, broker_id).await.map_err(Failure::from)?;
        Ok(Response::new(v1::TransferLeaderResponse {}))
    }

    async fn balance_leaders(
        &self,
        request: Request<v1::BalanceLeadersRequest>,
    ) -> Result<Response<v1::BalanceLeadersResponse>, Status> {
        let mut transferred = self.0.broker().balance_leaders().await.map_err(Failure::from)? as u32;
        if !forward::is_forwarded(request.metadata()) {
            let peers = self.0.broker().peers();
            let method = method("/streambus.v1.ClusterService/BalanceLeaders");
            for (_, there) in
                self.0.forward_to_all::<_, v1::BalanceLeadersResponse>(&peers, method, &request).await
            {
                transferred += match there {
                    // A broker that starts or stops has no leaderships to hand over.
                    Err(status) if status.code() == Code::Unavailable => 0,
                    there => there?.transfer_count,
                };
            }
        }
        Ok(Response::new(v1::BalanceLeadersResponse { transfer_count: transferred }))
    }
}
