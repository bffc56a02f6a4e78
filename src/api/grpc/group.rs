//! `streambus.v1.GroupService`.

use tonic::{Code, Request, Response, Status};

use super::Context;
use super::forward::{self, Method};
use crate::api::convert::groups;
use crate::api::status::Failure;
use crate::broker::groups::{MemberClaim, Reset};
use crate::proto::v1;
use crate::proto::v1::group_service_server::GroupService;

pub(super) struct Service(pub(super) Context);

#[tonic::async_trait]
impl GroupService for Service {
    async fn list_groups(
        &self,
        request: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        const METHOD: Method = Method { path: "/streambus.v1.GroupService/ListGroups", writes: false };
        let forwarded = forward::is_forwarded(request.metadata());
        let v1::ListGroupsRequest { page_size, page_token } = request.get_ref();
        let (groups, next_page_token) =
            self.0.broker().list_groups(*page_size, page_token).map_err(Failure::from)?;
        let mut groups: Vec<v1::GroupListing> = groups.into_iter().map(Into::into).collect();
        if !forwarded {
            // Every broker knows all groups, but only the members of those that it coordinates.
            let peers = self.0.broker().peers();
            for (_, answer) in
                self.0.forward_to_all::<_, v1::ListGroupsResponse>(&peers, METHOD, &request).await
            {
                let answer = match answer {
                    // A broker that starts or stops coordinates nothing.
                    Err(status) if status.code() == Code::Unavailable => continue,
                    answer => answer?,
                };
                for there in answer.groups {
                    if let Some(here) = groups.iter_mut().find(|here| here.group == there.group) {
                        here.member_count = here.member_count.max(there.member_count);
                    }
                }
            }
        }
        Ok(Response::new(v1::ListGroupsResponse { groups, next_page_token }))
    }

    async fn describe_group(
        &self,
        request: Request<v1::DescribeGroupRequest>,
    ) -> Result<Response<v1::DescribeGroupResponse>, Status> {
        const METHOD: Method = Method { path: "/streambus.v1.GroupService/DescribeGroup", writes: false };
        if let Some(to) = self.0.coordinator_elsewhere(&request, &request.get_ref().group) {
            return self.0.forward(to, METHOD, request).await;
        }
        let described =
            self.0.broker().describe_group(&request.into_inner().group).await.map_err(Failure::from)?;
        Ok(Response::new(groups::description(described, self.0.broker().now())))
    }

    async fn delete_group(
        &self,
        request: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        const METHOD: Method = Method { path: "/streambus.v1.GroupService/DeleteGroup", writes: true };
        if let Some(to) = self.0.coordinator_elsewhere(&request, &request.get_ref().group) {
            return self.0.forward(to, METHOD, request).await;
        }
        self.0.broker().delete_group(&request.into_inner().group).await.map_err(Failure::from)?;
        Ok(Response::new(v1::DeleteGroupResponse {}))
    }

    async fn commit_offsets(
        &self,
        request: Request<v1::CommitOffsetsRequest>,
    ) -> Result<Response<v1::CommitOffsetsResponse>, Status> {
        const METHOD: Method = Method { path: "/streambus.v1.GroupService/CommitOffsets", writes: true };
        if let Some(to) = self.0.coordinator_elsewhere(&request, &request.get_ref().group) {
            return self.0.forward(to, METHOD, request).await;
        }
        let v1::CommitOffsetsRequest { group, membership, offsets } = request.into_inner();
        let offsets = groups::commits(offsets, "offsets").map_err(Failure::from)?;
        let claim = membership.map(MemberClaim::from);
        let committed = self.0.broker().commit_offsets(&group, claim.as_ref(), offsets);
        let results = groups::commit_results(committed.await.map_err(Failure::from)?);
        Ok(Response::new(v1::CommitOffsetsResponse { results }))
    }

    async fn fetch_offsets(
        &self,
        request: Request<v1::FetchOffsetsRequest>,
    ) -> Result<Response<v1::FetchOffsetsResponse>, Status> {
        const METHOD: Method = Method { path: "/streambus.v1.GroupService/FetchOffsets", writes: false };
        if let Some(to) = self.0.coordinator_elsewhere(&request, &request.get_ref().group) {
            return self.0.forward(to, METHOD, request).await;
        }
        let v1::FetchOffsetsRequest { group, partitions } = request.into_inner();
        let partitions = groups::partitions(partitions, "partitions").map_err(Failure::from)?;
        let found = self.0.broker().committed_offsets(&group, &partitions).await.map_err(Failure::from)?;
        let offsets = found.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::FetchOffsetsResponse { offsets }))
    }

    async fn reset_offsets(
        &self,
        request: Request<v1::ResetOffsetsRequest>,
    ) -> Result<Response<v1::ResetOffsetsResponse>, Status> {
        const METHOD: Method = Method { path: "/streambus.v1.GroupService/ResetOffsets", writes: true };
        if let Some(to) = self.0.coordinator_elsewhere(&request, &request.get_ref().group) {
            return self.0.forward(to, METHOD, request).await;
        }
        let reset = Reset::try_from(request.into_inner()).map_err(Failure::from)?;
        let moved = self.0.broker().reset_offsets(reset).await.map_err(Failure::from)?;
        Ok(Response::new(v1::ResetOffsetsResponse { offsets: moved.into_iter().map(Into::into).collect() }))
    }
}
