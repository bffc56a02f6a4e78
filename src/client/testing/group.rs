//! The scripted broker's groups. There is one, whatever it is called; each member has what the script says.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Fake, Reader, error};
use crate::client::ErrorCode;
use crate::proto::v1;
use crate::proto::v1::group_service_server::GroupService;
use crate::proto::v1::subscribe_request::Action;
use crate::proto::v1::subscribe_response::Event;

/// What a member did.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::client) enum Did {
    Join {
        member_id: String,
    },
    Heartbeat,
    Commit(Vec<(u32, u64)>),
    Release(Vec<u32>),
    Pause(Vec<u32>),
    Resume(Vec<u32>),
    Acknowledge(Vec<v1::Acknowledgement>),
    Leave,
    /// The stream ended.
    Gone,
    /// What a test noted in between.
    Note(&'static str),
}

/// What the broker does with its newest member.
#[derive(Clone, Debug)]
pub(in crate::client) enum Order {
    Keepalive,
    Assign(Vec<u32>),
    Revoke(Vec<u32>, Duration),
    Break,
    Fence,
    Fail(u32, ErrorCode),
}

#[derive(Debug, Default)]
pub(in crate::client) struct Groups {
    /// What members did, in order.
    pub(in crate::client) did: Vec<Did>,
    pub(in crate::client) joins: Vec<v1::JoinGroup>,
    /// What a member is given when it joins.
    pub(in crate::client) assignment: Vec<u32>,
    pub(in crate::client) committed: BTreeMap<u32, (u64, String)>,
    pub(in crate::client) orders: VecDeque<Order>,
    /// How the next joins are refused.
    pub(in crate::client) refusals: VecDeque<ErrorCode>,
    /// How the next commits are refused.
    pub(in crate::client) commit_refusals: VecDeque<ErrorCode>,
    /// Offsets whose lease is over.
    pub(in crate::client) expired: BTreeSet<u64>,
    /// While set, acknowledgements are not answered.
    pub(in crate::client) acks_held: bool,
    /// While set, nothing is delivered beyond so many uncommitted records.
    pub(in crate::client) in_flight_max: Option<u64>,
    /// Pages that were asked for.
    pub(in crate::client) pages: usize,
    pub(in crate::client) resets: Vec<v1::ResetOffsetsRequest>,
    epochs: u64,
}

impl Groups {
    /// What members did besides proving that they live.
    pub(in crate::client) fn deeds(&self) -> Vec<Did> {
        self.did.iter().filter(|did| **did != Did::Heartbeat).cloned().collect()
    }

    pub(in crate::client) fn commits(&self) -> Vec<Vec<(u32, u64)>> {
        let commits = self.did.iter().filter_map(|did| match did {
            Did::Commit(offsets) => Some(offsets.clone()),
            _ => None,
        });
        commits.collect()
    }

    pub(in crate::client) fn acknowledged(&self) -> Vec<v1::Acknowledgement> {
        let acknowledged = self.did.iter().filter_map(|did| match did {
            Did::Acknowledge(all) => Some(all.clone()),
            _ => None,
        });
        acknowledged.flatten().collect()
    }
}

fn numbers(partitions: &[v1::TopicPartition]) -> Vec<u32> {
    partitions.iter().map(|at| at.partition).collect()
}

/// A status as the broker makes it.
fn status(code: ErrorCode) -> Status {
    let name = code.as_str_name();
    let reason = name.strip_prefix("ERROR_CODE_").expect("codes begin so");
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "streambus", HashMap::new());
    Status::with_error_details(Code::FailedPrecondition, name, details)
}

/// A member's stream.
pub(super) struct Membership {
    reader: Reader,
    share: bool,
    /// What the member may commit.
    owned: BTreeSet<u32>,
    /// Where to go on with what is paused.
    paused: BTreeMap<u32, u64>,
    held: VecDeque<v1::Acknowledged>,
    join: v1::JoinGroup,
}

impl Membership {
    pub(super) fn new(mut reader: Reader, join: v1::JoinGroup) -> Membership {
        reader.credit = i64::try_from(join.credit_bytes).expect("little credit");
        let (owned, held) = (BTreeSet::new(), VecDeque::new());
        Membership { reader, share: join.share.is_some(), owned, paused: BTreeMap::new(), held, join }
    }

    pub(super) async fn run(mut self, mut requests: Streaming<v1::SubscribeRequest>) {
        let fake = self.reader.fake.clone();
        let member_id = self.join.member_id.clone();
        fake.change(|state| {
            state.groups.joins.push(self.join.clone());
            state.groups.did.push(Did::Join { member_id });
        });
        let refusal = fake.state().groups.refusals.pop_front();
        if let Some(code) = refusal {
            let _ = self.reader.answers.send(Err(status(code))).await;
            return;
        }
        let named = Some(self.join.member_id.clone()).filter(|id| !id.is_empty());
        let epoch = self.next_epoch();
        self.tell(Event::Joined(v1::GroupJoined {
            group: self.join.group.clone(),
            member_id: named.unwrap_or_else(|| "member-1".into()),
            epoch,
            session_timeout: self.join.session_timeout,
        }))
        .await;
        let assignment = fake.state().groups.assignment.clone();
        self.assign(&assignment).await;
        loop {
            let changed = fake.changed.notified();
            let order = fake.state().groups.orders.pop_front();
            if let Some(order) = order {
                fake.changed.notify_waiters();
                if self.carry_out(order).await {
                    break;
                }
                continue;
            }
            while !self.held.is_empty() && !fake.state().groups.acks_held {
                let answer = self.held.pop_front().expect("looked at above");
                self.tell(Event::Acknowledged(answer)).await;
            }
            if let Some(records) = self.deliver() {
                self.tell(Event::Records(records)).await;
                continue;
            }
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => {
                        if self.apply(request.action.expect("an action")).await {
                            return;
                        }
                    }
                    _ => break,
                },
                () = changed => {}
            }
        }
        fake.change(|state| state.groups.did.push(Did::Gone));
    }

    async fn tell(&self, event: Event) {
        // A client that is gone shows when its requests end.
        let _ = self.reader.answers.send(Ok(v1::SubscribeResponse::of(event))).await;
    }

    fn next_epoch(&self) -> u64 {
        let mut state = self.reader.fake.state();
        state.groups.epochs += 1;
        state.groups.epochs
    }

    /// Says whether the stream is over.
    async fn carry_out(&mut self, order: Order) -> bool {
        match order {
            Order::Keepalive => self.tell(Event::Keepalive(v1::Keepalive {})).await,
            Order::Assign(partitions) => self.assign(&partitions).await,
            Order::Revoke(partitions, deadline) => {
                self.reader.positions.retain(|partition, _| !partitions.contains(partition));
                let epoch = self.next_epoch();
                let at = |partition: &u32| v1::TopicPartition { topic: "t".into(), partition: *partition };
                self.tell(Event::Revoked(v1::PartitionsRevoked {
                    epoch,
                    partitions: partitions.iter().map(at).collect(),
                    deadline: deadline.try_into().ok(),
                }))
                .await;
            }
            Order::Break => {
                let broken = Status::unavailable("broken on purpose");
                let _ = self.reader.answers.send(Err(broken)).await;
                return true;
            }
            Order::Fence => {
                let _ = self.reader.answers.send(Err(status(ErrorCode::MemberFenced))).await;
                return true;
            }
            Order::Fail(partition, code) => {
                self.reader.positions.remove(&partition);
                let error = Some(error(code));
                let topic = "t".into();
                self.tell(Event::Records(v1::PartitionRecords {
                    topic,
                    partition,
                    error,
                    ..Default::default()
                }))
                .await;
            }
        }
        false
    }

    async fn assign(&mut self, partitions: &[u32]) {
        if partitions.is_empty() {
            return;
        }
        let epoch = self.next_epoch();
        let committed = self.reader.fake.state().groups.committed.clone();
        let assigned = partitions.iter().map(|partition| {
            let (start_offset, metadata) = committed.get(partition).cloned().unwrap_or_default();
            self.owned.insert(*partition);
            self.reader.positions.insert(*partition, start_offset);
            let (topic, partition) = ("t".into(), *partition);
            v1::AssignedPartition { topic, partition, start_offset, metadata, missed_records: 0 }
        });
        let partitions = assigned.collect();
        self.tell(Event::Assigned(v1::PartitionsAssigned { epoch, partitions })).await;
    }

    fn deliver(&mut self) -> Option<v1::PartitionRecords> {
        {
            let state = self.reader.fake.state();
            let committed =
                |partition| state.groups.committed.get(partition).map_or(0, |(offset, _)| *offset);
            let in_flight: u64 = self
                .reader
                .positions
                .iter()
                .map(|(partition, position)| position.saturating_sub(committed(partition)))
                .sum();
            if state.groups.in_flight_max.is_some_and(|max| in_flight >= max) {
                return None;
            }
        }
        let mut records = self.reader.next()?;
        if self.share {
            let lease = |batch: &v1::StoredBatch| v1::Lease {
                first_offset: batch.base_offset,
                last_offset: batch.base_offset + u64::from(batch.record_count) - 1,
                delivery_count: 1,
            };
            records.leases = records.batches.iter().map(lease).collect();
        }
        Some(records)
    }

    /// Says whether the member left.
    async fn apply(&mut self, action: Action) -> bool {
        let did = match action {
            Action::Credit(_) => {
                self.reader.apply(action);
                return false;
            }
            Action::Heartbeat(_) => Did::Heartbeat,
            Action::Leave(_) => Did::Leave,
            Action::Release(release) => {
                let partitions = numbers(&release.partitions);
                self.owned.retain(|partition| !partitions.contains(partition));
                Did::Release(partitions)
            }
            Action::Pause(pause) => {
                let partitions = numbers(&pause.partitions);
                for partition in &partitions {
                    let position = self.reader.positions.remove(partition);
                    self.paused.extend(position.map(|position| (*partition, position)));
                }
                Did::Pause(partitions)
            }
            Action::Resume(resume) => {
                let partitions = numbers(&resume.partitions);
                for partition in &partitions {
                    let position = self.paused.remove(partition);
                    self.reader.positions.extend(position.map(|position| (*partition, position)));
                }
                Did::Resume(partitions)
            }
            Action::Commit(commit) => {
                let did = Did::Commit(commit.offsets.iter().map(|o| (o.partition, o.offset)).collect());
                self.reader.fake.change(|state| state.groups.did.push(did));
                let answer = self.commit(commit);
                self.tell(Event::Committed(answer)).await;
                return false;
            }
            Action::Acknowledge(request) => {
                let answer = self.acknowledge(&request);
                self.held.push_back(answer);
                Did::Acknowledge(request.acknowledgements)
            }
            other => panic!("a member does not {other:?}"),
        };
        let leaves = did == Did::Leave;
        self.reader.fake.change(|state| state.groups.did.push(did));
        leaves
    }

    fn commit(&self, commit: v1::Commit) -> v1::Committed {
        let mut results = Vec::new();
        self.reader.fake.change(|state| {
            let refusal = state.groups.commit_refusals.pop_front();
            for offset in commit.offsets {
                let fenced = (!self.owned.contains(&offset.partition)).then_some(ErrorCode::MemberFenced);
                let code = refusal.or(fenced);
                if code.is_none() {
                    state.groups.committed.insert(offset.partition, (offset.offset, offset.metadata));
                }
                let (topic, partition, error) = (offset.topic, offset.partition, code.map(error));
                results.push(v1::OffsetCommitResult { topic, partition, error });
            }
        });
        v1::Committed { correlation_id: commit.correlation_id, results }
    }

    fn acknowledge(&self, request: &v1::Acknowledge) -> v1::Acknowledged {
        let state = self.reader.fake.state();
        let result = |ack: &v1::Acknowledgement| {
            let lost = state.groups.expired.range(ack.first_offset..=ack.last_offset).next().is_some();
            v1::AcknowledgementResult { error: lost.then(|| error(ErrorCode::LeaseExpired)) }
        };
        let results = request.acknowledgements.iter().map(result).collect();
        v1::Acknowledged { correlation_id: request.correlation_id, results }
    }
}

#[tonic::async_trait]
impl GroupService for Fake {
    /// Five groups, two to a page.
    async fn list_groups(
        &self,
        request: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        self.change(|state| state.groups.pages += 1);
        let first: u32 = request.into_inner().page_token.parse().unwrap_or(0);
        let end = (first + 2).min(5);
        let listing = |number| v1::GroupListing {
            group: format!("g{number}"),
            kind: v1::GroupKind::Consumer.into(),
            member_count: number,
        };
        let next_page_token = if end < 5 { end.to_string() } else { String::new() };
        Ok(Response::new(v1::ListGroupsResponse {
            groups: (first..end).map(listing).collect(),
            next_page_token,
        }))
    }

    async fn describe_group(
        &self,
        _: Request<v1::DescribeGroupRequest>,
    ) -> Result<Response<v1::DescribeGroupResponse>, Status> {
        Err(status(ErrorCode::UnknownGroup))
    }

    async fn delete_group(
        &self,
        _: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        Err(status(ErrorCode::GroupNotEmpty))
    }

    async fn commit_offsets(
        &self,
        request: Request<v1::CommitOffsetsRequest>,
    ) -> Result<Response<v1::CommitOffsetsResponse>, Status> {
        let request = request.into_inner();
        assert!(request.offsets.len() <= 1_000, "the protocol's limit");
        let mut results = Vec::new();
        self.change(|state| {
            for offset in request.offsets {
                state.groups.committed.insert(offset.partition, (offset.offset, offset.metadata));
                let (topic, partition) = (offset.topic, offset.partition);
                results.push(v1::OffsetCommitResult { topic, partition, error: None });
            }
        });
        Ok(Response::new(v1::CommitOffsetsResponse { results }))
    }

    async fn fetch_offsets(
        &self,
        request: Request<v1::FetchOffsetsRequest>,
    ) -> Result<Response<v1::FetchOffsetsResponse>, Status> {
        let request = request.into_inner();
        assert!(request.partitions.len() <= 1_000, "the protocol's limit");
        let state = self.state();
        let mut partitions: Vec<u32> = request.partitions.iter().map(|at| at.partition).collect();
        if partitions.is_empty() {
            partitions.extend(state.groups.committed.keys());
        }
        let offset = |partition: u32| {
            let committed = state.groups.committed.get(&partition).cloned();
            let (offset, metadata) = committed.map_or((None, String::new()), |(o, m)| (Some(o), m));
            v1::CommittedOffset { topic: "t".into(), partition, offset, metadata, commit_time: None }
        };
        let offsets = partitions.into_iter().map(offset).collect();
        Ok(Response::new(v1::FetchOffsetsResponse { offsets }))
    }

    async fn reset_offsets(
        &self,
        request: Request<v1::ResetOffsetsRequest>,
    ) -> Result<Response<v1::ResetOffsetsResponse>, Status> {
        self.change(|state| state.groups.resets.push(request.into_inner()));
        let moved = |partition, error| v1::ResetOffset {
            topic: "t".into(),
            partition,
            from_offset: Some(7),
            to_offset: 3,
            error,
        };
        let offsets = vec![moved(0, None), moved(1, Some(error(ErrorCode::UnknownPartition)))];
        Ok(Response::new(v1::ResetOffsetsResponse { offsets }))
    }
}
