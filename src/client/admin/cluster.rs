//! Looking at the cluster, and changing who is in it and who has which replicas.

use super::Admin;
use crate::client::Error;
use crate::client::connection::Broker;
use crate::client::routing::Repeat;
use crate::proto::v1;

/// What is not as it should be, and how brokers share the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Every broker, by id.
    pub brokers: Vec<BrokerStatus>,
    /// Who leads the control group.
    pub controller_id: Option<u64>,
    /// Who votes in it.
    pub controller_voters: Vec<u64>,
    /// Who coordinates the groups of each shard.
    pub coordinators: Vec<Option<u64>>,
    /// Number of partitions in the cluster.
    pub partitions: u32,
    /// Partitions that are not as they should be, by topic and number.
    pub problems: Vec<PartitionProblem>,
}

/// How a broker does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerStatus {
    /// Its number.
    pub broker_id: u64,
    /// Where clients reach its gRPC API.
    pub grpc_address: String,
    /// Its version.
    pub version: String,
    /// Where it stands; empty if nobody said.
    pub rack: String,
    /// Whether the broker that answered reaches it.
    pub reached: bool,
    /// It is to lose all its replicas.
    pub draining: bool,
    /// The broker that took over its address with an empty disk.
    pub replaced_by: Option<u64>,
    /// Replicas that it has, or is to have.
    pub replicas: u32,
    /// Partitions that it leads.
    pub leaders: u32,
    /// Votes that it has on the metadata and on the offsets of each shard of consumer groups.
    pub votes: u32,
}

/// What is wrong with a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// It has no leader, and none can be elected: a majority of its replicas is on brokers that are not reached.
    Offline,
    /// It has no leader, and one may be elected.
    Leaderless,
    /// Replicas lag behind or are not reached.
    UnderReplicated,
    /// Replicas are on their way to other brokers, or wait until they can leave one that is drained or was replaced.
    Moving,
    /// A replica has lost what it wrote. If there are others, it gets everything from them.
    Damaged,
    /// Something that this version does not know.
    Other,
}

/// A partition that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionProblem {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: u32,
    /// What is wrong.
    pub kind: ProblemKind,
    /// Its leader.
    pub leader: Option<u64>,
    /// Brokers that have its replicas, or are to have them.
    pub replicas: Vec<u64>,
    /// While they move: brokers that had its replicas before.
    pub moving_from: Vec<u64>,
    /// Those that lag behind or are not reached.
    pub lagging: Vec<u64>,
    /// Why, and what to do.
    pub reason: String,
}

fn known(id: u64) -> Option<u64> {
    (id != 0).then_some(id)
}

impl From<v1::GetClusterStatusResponse> for ClusterStatus {
    fn from(status: v1::GetClusterStatusResponse) -> Self {
        ClusterStatus {
            brokers: status.brokers.into_iter().map(BrokerStatus::from).collect(),
            controller_id: known(status.controller_id),
            controller_voters: status.controller_voter_ids,
            coordinators: status.coordinator_ids.into_iter().map(known).collect(),
            partitions: status.partition_count,
            problems: status.problems.into_iter().map(PartitionProblem::from).collect(),
        }
    }
}

impl From<v1::BrokerStatus> for BrokerStatus {
    fn from(status: v1::BrokerStatus) -> Self {
        BrokerStatus {
            broker_id: status.broker_id,
            grpc_address: status.grpc_address,
            version: status.version,
            rack: status.rack,
            reached: status.reached,
            draining: status.draining,
            replaced_by: known(status.replaced_by),
            replicas: status.replica_count,
            leaders: status.leader_count,
            votes: status.vote_count,
        }
    }
}

impl From<v1::PartitionProblem> for PartitionProblem {
    fn from(problem: v1::PartitionProblem) -> Self {
        let kind = match problem.kind() {
            v1::PartitionProblemKind::Offline => ProblemKind::Offline,
            v1::PartitionProblemKind::Leaderless => ProblemKind::Leaderless,
            v1::PartitionProblemKind::UnderReplicated => ProblemKind::UnderReplicated,
            v1::PartitionProblemKind::Moving => ProblemKind::Moving,
            v1::PartitionProblemKind::Damaged => ProblemKind::Damaged,
            v1::PartitionProblemKind::Unspecified => ProblemKind::Other,
        };
        PartitionProblem {
            topic: problem.topic,
            partition: problem.partition,
            kind,
            leader: known(problem.leader_id),
            replicas: problem.replica_ids,
            moving_from: problem.moving_from_ids,
            lagging: problem.lagging_ids,
            reason: problem.reason,
        }
    }
}

impl Admin {
    /// What is not as it should be, and how brokers share the work, as one broker sees it.
    ///
    /// # Errors
    ///
    /// That no broker answered.
    pub async fn cluster_status(&self) -> Result<ClusterStatus, Error> {
        let call = |broker: Broker| async move {
            broker.cluster().get_cluster_status(v1::GetClusterStatusRequest {}).await
        };
        Ok(self.router.call(Repeat::Harmless, call).await?.into())
    }

    /// Moves all replicas and leaderships away from a broker, which goes on after the call, or with `cancel` lets it have
    /// some again. Returns how many partitions it has a replica of now.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if there is no such broker, or the others are too few.
    pub async fn drain_broker(&self, broker_id: u64, cancel: bool) -> Result<u32, Error> {
        let call = |broker: Broker| async move {
            broker.cluster().drain_broker(v1::DrainBrokerRequest { broker_id, cancel }).await
        };
        Ok(self.router.call(Repeat::Harmless, call).await?.replica_count)
    }

    /// Removes a broker that has no replicas.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if there is no such broker, or it has replicas.
    pub async fn remove_broker(&self, broker_id: u64) -> Result<(), Error> {
        let call = |broker: Broker| async move {
            broker.cluster().remove_broker(v1::RemoveBrokerRequest { broker_id }).await
        };
        self.router.call(Repeat::Harmful, call).await.map(drop)
    }

    /// Gives a partition other replicas, which move after the call. The first should lead.
    ///
    /// # Errors
    ///
    /// `UnknownTopic`, `UnknownPartition`, `InvalidArgument` for brokers that are not there.
    pub async fn reassign_partition(
        &self,
        topic: &str,
        partition: u32,
        replicas: Vec<u64>,
    ) -> Result<(), Error> {
        let topic = topic.to_owned();
        let request = v1::ReassignPartitionRequest { topic, partition, replica_ids: replicas };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.cluster().reassign_partition(request).await }
        };
        self.router.call(Repeat::Harmless, call).await.map(drop)
    }

    /// Hands the leadership of a partition to another of its replicas, and waits until that leads.
    ///
    /// # Errors
    ///
    /// `UnknownTopic`, `UnknownPartition`, `InvalidArgument` if the broker has no replica, `NotReady` if its replica
    /// cannot lead now.
    pub async fn transfer_leader(&self, topic: &str, partition: u32, broker_id: u64) -> Result<(), Error> {
        let request = v1::TransferLeaderRequest { topic: topic.to_owned(), partition, broker_id };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.cluster().transfer_leader(request).await }
        };
        self.router.call(Repeat::Harmless, call).await.map(drop)
    }

    /// Hands leaderships to those who should have them, and returns how many.
    ///
    /// # Errors
    ///
    /// That no broker answered.
    pub async fn balance_leaders(&self) -> Result<u32, Error> {
        let call = |broker: Broker| async move {
            broker.cluster().balance_leaders(v1::BalanceLeadersRequest {}).await
        };
        Ok(self.router.call(Repeat::Harmless, call).await?.transfer_count)
    }
}
