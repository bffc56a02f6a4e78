//! A member of a group as a generated client has it, and the group service.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use streambus::proto::v1;
use streambus::proto::v1::group_service_client::GroupServiceClient;
use streambus::proto::v1::subscribe_request::Action;
use streambus::proto::v1::subscribe_response::Event;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::endpoint::duration;
use super::{Endpoint, batch, within};

/// Credit that no test uses up.
const PLENTY: u64 = 1 << 30;

impl Endpoint {
    /// The group service on a connection of its own.
    pub async fn groups(&self) -> GroupServiceClient<Channel> {
        GroupServiceClient::new(self.channel().await)
    }
}

/// A request to join with plenty of credit.
pub fn join(group: &str, topics: &[&str]) -> v1::JoinGroup {
    v1::JoinGroup {
        group: group.to_owned(),
        topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
        credit_bytes: PLENTY,
        ..Default::default()
    }
}

/// A request to join a share group with plenty of credit.
pub fn join_share(group: &str, topics: &[&str], lease: Duration, deliveries_max: u32) -> v1::JoinGroup {
    let share = v1::ShareOptions { lease: Some(duration(lease)), deliveries_max, ..Default::default() };
    v1::JoinGroup { share: Some(share), ..join(group, topics) }
}

/// A partition's number and offset, for topics that are clear.
pub type At = (u32, u64);

/// A record as a member got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// Its value as text.
    pub value: String,
    /// How often it was delivered; zero where it is not leased.
    pub deliveries: u32,
}

/// An open member stream. Keepalives are answered while it waits, unless it is made silent.
pub struct GroupStream {
    requests: Option<mpsc::Sender<v1::SubscribeRequest>>,
    responses: Streaming<v1::SubscribeResponse>,
    /// Its id.
    pub id: String,
    /// Its epoch.
    pub epoch: u64,
    /// The topic of what it has, by partition.
    pub assigned: BTreeMap<(String, u32), u64>,
    /// Records that came while something else was waited for.
    pub pending: VecDeque<Got>,
    silent: bool,
    correlation: u64,
}

impl GroupStream {
    /// Joins, and waits until the broker says so.
    pub async fn join(broker: &Endpoint, join: v1::JoinGroup) -> Self {
        Self::try_join(broker, join).await.expect("the member joins")
    }

    /// Joins, or gives the refusal.
    pub async fn try_join(broker: &Endpoint, join: v1::JoinGroup) -> Result<Self, Status> {
        let (requests, received) = mpsc::channel(1_024);
        let request = v1::SubscribeRequest { action: Some(Action::Join(join)) };
        requests.send(request).await.expect("open");
        let mut client = broker.consume().await;
        let opened = within("the stream opens", client.subscribe(ReceiverStream::new(received))).await?;
        let mut stream = GroupStream {
            requests: Some(requests),
            responses: opened.into_inner(),
            id: String::new(),
            epoch: 0,
            assigned: BTreeMap::new(),
            pending: VecDeque::new(),
            silent: false,
            correlation: 0,
        };
        match stream.event().await?.expect("an event") {
            Event::Joined(joined) => {
                stream.id = joined.member_id;
                stream.epoch = joined.epoch;
                Ok(stream)
            }
            other => panic!("the first event is {other:?}"),
        }
    }

    /// Does not answer keepalives any more.
    pub fn be_silent(&mut self) {
        self.silent = true;
    }

    /// Sends a request.
    pub async fn send(&self, action: Action) {
        let requests = self.requests.as_ref().expect("not half-closed");
        requests.send(v1::SubscribeRequest { action: Some(action) }).await.expect("the stream is open");
    }

    /// What comes next, as it comes.
    pub async fn event(&mut self) -> Result<Option<Event>, Status> {
        let response = within("the broker says something or ends", self.responses.message()).await?;
        let event = response.map(|response| response.event.expect("an event"));
        match &event {
            Some(Event::Assigned(assigned)) => {
                self.epoch = assigned.epoch;
                for at in &assigned.partitions {
                    self.assigned.insert((at.topic.clone(), at.partition), at.start_offset);
                }
            }
            Some(Event::Revoked(revoked)) => self.epoch = revoked.epoch,
            Some(Event::Keepalive(_)) if !self.silent => self.send(Action::Heartbeat(v1::Heartbeat {})).await,
            _ => {}
        }
        Ok(event)
    }

    /// The next event that is no keepalive and no delivery; deliveries are kept.
    async fn told(&mut self) -> Event {
        let told = async {
            loop {
                match self.event().await.expect("the stream goes on").expect("the stream goes on") {
                    Event::Keepalive(_) => {}
                    Event::Records(records) => self.keep(&records),
                    event => return event,
                }
            }
        };
        // Keepalives alone would go on for ever.
        within("the broker tells something", told).await
    }

    fn keep(&mut self, records: &v1::PartitionRecords) {
        assert_eq!(records.error, None);
        let wanted = |offset: u64| -> Option<u32> {
            if records.leases.is_empty() {
                let start = self.assigned.get(&(records.topic.clone(), records.partition)).copied();
                return (offset >= start.unwrap_or(0)).then_some(0);
            }
            let lease = records.leases.iter().find(|l| (l.first_offset..=l.last_offset).contains(&offset))?;
            Some(lease.delivery_count)
        };
        for stored in &records.batches {
            for (number, record) in batch::records(&stored.batch).into_iter().enumerate() {
                let offset = stored.base_offset + number as u64;
                if let Some(deliveries) = wanted(offset) {
                    let value = String::from_utf8(record.value.expect("a value").to_vec()).expect("text");
                    self.pending.push_back(Got { partition: records.partition, offset, value, deliveries });
                }
            }
        }
    }

    /// Waits for an assignment, and gives the partitions with where they begin.
    pub async fn assigned(&mut self) -> Vec<At> {
        self.assignment().await.partitions.iter().map(|at| (at.partition, at.start_offset)).collect()
    }

    /// Waits for an assignment.
    pub async fn assignment(&mut self) -> v1::PartitionsAssigned {
        match self.told().await {
            Event::Assigned(assigned) => assigned,
            other => panic!("an assignment was expected: {other:?}"),
        }
    }

    /// Waits until it has so many partitions.
    pub async fn until_assigned(&mut self, partitions: usize) {
        while self.assigned.len() < partitions {
            self.assigned().await;
        }
    }

    /// Waits for a revocation, and gives the partitions.
    pub async fn revoked(&mut self) -> Vec<u32> {
        match self.told().await {
            Event::Revoked(revoked) => {
                for at in &revoked.partitions {
                    self.assigned.remove(&(at.topic.clone(), at.partition));
                }
                revoked.partitions.iter().map(|at| at.partition).collect()
            }
            other => panic!("a revocation was expected: {other:?}"),
        }
    }

    /// Gives up partitions of a topic.
    pub async fn release(&self, topic: &str, partitions: &[u32]) {
        let partition =
            |partition: &u32| v1::TopicPartition { topic: topic.to_owned(), partition: *partition };
        let partitions = partitions.iter().map(partition).collect();
        self.send(Action::Release(v1::ReleasePartitions { partitions })).await;
    }

    /// Commits offsets of a topic, and gives what became of them, by their error codes.
    pub async fn commit(&mut self, topic: &str, offsets: &[At]) -> Vec<Option<v1::ErrorCode>> {
        self.commit_with(self.epoch, topic, offsets).await
    }

    /// Commits offsets with an epoch of the caller's choice.
    pub async fn commit_with(
        &mut self,
        epoch: u64,
        topic: &str,
        offsets: &[At],
    ) -> Vec<Option<v1::ErrorCode>> {
        self.correlation += 1;
        let offsets = offsets.iter().map(|(partition, offset)| commit(topic, *partition, *offset)).collect();
        self.send(Action::Commit(v1::Commit { correlation_id: self.correlation, epoch, offsets })).await;
        match self.told().await {
            Event::Committed(committed) => {
                assert_eq!(committed.correlation_id, self.correlation);
                committed.results.iter().map(|result| result.error.as_ref().map(v1::Error::code)).collect()
            }
            other => panic!("the result of a commit was expected: {other:?}"),
        }
    }

    /// Acknowledges records of a topic, and gives what became of it, by error codes.
    pub async fn acknowledge(
        &mut self,
        topic: &str,
        records: &[(u32, u64, u64)],
        kind: v1::AckKind,
    ) -> Vec<Option<v1::ErrorCode>> {
        let acknowledgements = records
            .iter()
            .map(|(partition, first, last)| v1::Acknowledgement {
                topic: topic.to_owned(),
                partition: *partition,
                first_offset: *first,
                last_offset: *last,
                kind: kind.into(),
                ..Default::default()
            })
            .collect();
        self.acknowledge_with(acknowledgements).await
    }

    /// Sends acknowledgements, and gives what became of them, by error codes.
    pub async fn acknowledge_with(
        &mut self,
        acknowledgements: Vec<v1::Acknowledgement>,
    ) -> Vec<Option<v1::ErrorCode>> {
        self.correlation += 1;
        let correlation_id = self.correlation;
        self.send(Action::Acknowledge(v1::Acknowledge { correlation_id, acknowledgements })).await;
        match self.told().await {
            Event::Acknowledged(acknowledged) => {
                assert_eq!(acknowledged.correlation_id, correlation_id);
                acknowledged.results.iter().map(|result| result.error.as_ref().map(v1::Error::code)).collect()
            }
            other => panic!("the answer to acknowledgements was expected: {other:?}"),
        }
    }

    /// The next record.
    pub async fn record(&mut self) -> Got {
        let record = async {
            loop {
                if let Some(got) = self.pending.pop_front() {
                    return got;
                }
                match self.event().await.expect("the stream goes on").expect("the stream goes on") {
                    Event::Records(records) => self.keep(&records),
                    Event::Keepalive(_) | Event::Assigned(_) => {}
                    other => panic!("records were expected: {other:?}"),
                }
            }
        };
        within("a record comes", record).await
    }

    /// The next `count` records.
    pub async fn records(&mut self, count: usize) -> Vec<Got> {
        let mut got = Vec::with_capacity(count);
        while got.len() < count {
            got.push(self.record().await);
        }
        got
    }

    /// The failure that ends the stream.
    pub async fn failure(&mut self) -> Status {
        let failure = async {
            loop {
                match self.event().await {
                    Err(status) => return status,
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("the stream ended without a failure"),
                }
            }
        };
        within("the stream fails", failure).await
    }

    /// Leaves, and waits for the end of the stream.
    pub async fn leave(mut self) {
        self.send(Action::Leave(v1::LeaveGroup {})).await;
        while self.event().await.expect("no failure").is_some() {}
    }
}

/// An offset to commit.
pub fn commit(topic: &str, partition: u32, offset: u64) -> v1::OffsetCommit {
    v1::OffsetCommit { topic: topic.to_owned(), partition, offset, metadata: String::new() }
}

/// Describes a group.
pub async fn describe(broker: &Endpoint, group: &str) -> Result<v1::DescribeGroupResponse, Status> {
    let request = v1::DescribeGroupRequest { group: group.to_owned() };
    Ok(broker.groups().await.describe_group(request).await?.into_inner())
}

/// What a group has committed, by partition, in a topic.
pub async fn committed(broker: &Endpoint, group: &str, topic: &str) -> BTreeMap<u32, u64> {
    let request = v1::FetchOffsetsRequest { group: group.to_owned(), partitions: Vec::new() };
    let found = broker.groups().await.fetch_offsets(request).await.expect("the group exists").into_inner();
    let of_topic = found.offsets.into_iter().filter(|at| at.topic == topic);
    of_topic.filter_map(|at| Some((at.partition, at.offset?))).collect()
}
