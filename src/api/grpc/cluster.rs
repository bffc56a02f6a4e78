//! `streambus.v1.ClusterService`.

use tonic::{Request, Response, Status};

use super::Context;
use crate::api::status::Failure;
use crate::proto::v1;
use crate::proto::v1::cluster_service_server::ClusterService;

pub(super) struct Service(pub(super) Context);

#[tonic::async_trait]
impl ClusterService for Service {
    async fn describe_cluster(
        &self,
        request: Request<v1::DescribeClusterRequest>,
    ) -> Result<Response<v1::DescribeClusterResponse>, Status> {
        let info = self.0.broker().describe_cluster(&request.into_inner().topics).map_err(Failure::from)?;
        Ok(Response::new(info.into()))
    }
}
