//! `streambus.v1.TopicService`.

use tonic::{Request, Response, Status};

use super::Context;
use super::forward::Method;
use crate::api::convert;
use crate::api::status::Failure;
use crate::proto::v1;
use crate::proto::v1::topic_service_server::TopicService;
use crate::record::Offset;

pub(super) struct Service(pub(super) Context);

#[tonic::async_trait]
impl TopicService for Service {
    async fn create_topic(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        const METHOD: Method = Method { path: "/streambus.v1.TopicService/CreateTopic", writes: true };
        if let Some(to) = self.0.controller_elsewhere(&request) {
            let name = request.get_ref().name.clone();
            let answer = self.0.forward(to, METHOD, request).await?;
            self.0.broker().catch_up(&name).await;
            return Ok(answer);
        }
        let v1::CreateTopicRequest { name, partition_count, replication_factor, config, validate_only } =
            request.into_inner();
        let changes = convert::changes(config).map_err(Failure::from)?;
        let created =
            self.0.broker().create_topic(&name, partition_count, replication_factor, changes, validate_only);
        let topic = created.await.map_err(Failure::from)?;
        Ok(Response::new(v1::CreateTopicResponse { topic: Some(topic.into()) }))
    }

    async fn list_topics(
        &self,
        request: Request<v1::ListTopicsRequest>,
    ) -> Result<Response<v1::ListTopicsResponse>, Status> {
        let v1::ListTopicsRequest { page_size, page_token } = request.into_inner();
        let (topics, next_page_token) =
            self.0.broker().list_topics(page_size, &page_token).map_err(Failure::from)?;
        let topics = topics.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListTopicsResponse { topics, next_page_token }))
    }

    async fn describe_topic(
        &self,
        request: Request<v1::DescribeTopicRequest>,
    ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
        let name = request.into_inner().name;
        self.0.broker().look_for(std::slice::from_ref(&name)).await;
        let (topic, partitions) = self.0.broker().describe_topic(&name).map_err(Failure::from)?;
        let partitions = partitions.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::DescribeTopicResponse { topic: Some(topic.into()), partitions }))
    }

    async fn alter_topic(
        &self,
        request: Request<v1::AlterTopicRequest>,
    ) -> Result<Response<v1::AlterTopicResponse>, Status> {
        const METHOD: Method = Method { path: "/streambus.v1.TopicService/AlterTopic", writes: true };
        if let Some(to) = self.0.controller_elsewhere(&request) {
            let name = request.get_ref().name.clone();
            let answer = self.0.forward(to, METHOD, request).await?;
            self.0.broker().catch_up(&name).await;
            return Ok(answer);
        }
        let v1::AlterTopicRequest { name, config } = request.into_inner();
        let changes = convert::changes(config).map_err(Failure::from)?;
        let topic = self.0.broker().alter_topic(&name, changes).await.map_err(Failure::from)?;
        Ok(Response::new(v1::AlterTopicResponse { topic: Some(topic.into()) }))
    }

    async fn add_topic_partitions(
        &self,
        request: Request<v1::AddTopicPartitionsRequest>,
    ) -> Result<Response<v1::AddTopicPartitionsResponse>, Status> {
        const METHOD: Method = Method { path: "/streambus.v1.TopicService/AddTopicPartitions", writes: true };
        if let Some(to) = self.0.controller_elsewhere(&request) {
            let name = request.get_ref().name.clone();
            let answer = self.0.forward(to, METHOD, request).await?;
            self.0.broker().catch_up(&name).await;
            return Ok(answer);
        }
        let v1::AddTopicPartitionsRequest { name, partition_count } = request.into_inner();
        let added = self.0.broker().add_topic_partitions(&name, partition_count).await;
        let topic = added.map_err(Failure::from)?;
        Ok(Response::new(v1::AddTopicPartitionsResponse { topic: Some(topic.into()) }))
    }

    async fn delete_topic(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        const METHOD: Method = Method { path: "/streambus.v1.TopicService/DeleteTopic", writes: true };
        if let Some(to) = self.0.controller_elsewhere(&request) {
            let name = request.get_ref().name.clone();
            let answer = self.0.forward(to, METHOD, request).await?;
            self.0.broker().catch_up(&name).await;
            return Ok(answer);
        }
        self.0.broker().delete_topic(&request.into_inner().name).await.map_err(Failure::from)?;
        Ok(Response::new(v1::DeleteTopicResponse {}))
    }

    async fn delete_records(
        &self,
        request: Request<v1::DeleteRecordsRequest>,
    ) -> Result<Response<v1::DeleteRecordsResponse>, Status> {
        let v1::DeleteRecordsRequest { topic, partition, before_offset } = request.into_inner();
        let deleted = self.0.broker().delete_records(&topic, partition, Offset(before_offset)).await;
        let log_start = deleted.map_err(Failure::from)?;
        Ok(Response::new(v1::DeleteRecordsResponse { log_start_offset: log_start.0 }))
    }

    async fn list_offsets(
        &self,
        request: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        let positions =
            convert::positions(request.into_inner().positions, "positions").map_err(Failure::from)?;
        let resolved = self.0.broker().list_offsets(positions).await;
        let offsets = resolved
            .into_iter()
            .map(|(topic, partition, offset)| match offset {
                Ok(offset) => v1::ResolvedOffset { topic, partition, offset: offset.0, error: None },
                Err(error) => {
                    let error = Some(Failure::from(error).into_proto());
                    v1::ResolvedOffset { topic, partition, offset: 0, error }
                }
            })
            .collect();
        Ok(Response::new(v1::ListOffsetsResponse { offsets }))
    }
}
