//! Telling the program which partitions come and go.

use std::pin::Pin;

use super::Committer;
use crate::client::{Offset, TopicPartition};

/// A partition that a member is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedPartition {
    /// The partition.
    pub at: TopicPartition,
    /// The first offset that is delivered.
    pub start: Offset,
    /// What was committed together with the offset.
    pub metadata: String,
    /// Records between the committed offset and `start`, which retention had deleted before the group read them.
    pub missed_records: u64,
}

/// Is told which partitions a [`GroupConsumer`](super::GroupConsumer) gains and loses.
///
/// The calls come one after the other, on a task of the consumer. Keepalives are answered meanwhile, and records of
/// other partitions are handed out. Each method does nothing unless it is implemented.
pub trait RebalanceListener: Send + Sync + 'static {
    /// Partitions are given to the member. Their records are handed out when this is done.
    fn on_assigned(
        &self,
        partitions: &[AssignedPartition],
        committer: &Committer,
    ) -> impl Future<Output = ()> + Send {
        let _ = (partitions, committer);
        async {}
    }

    /// Partitions are taken from the member, or it is being closed. No further record of them is handed out; the one
    /// that the program was given last has been processed, unless that took longer than half of what the broker
    /// allows. They are released when this is done; until then their offsets can be committed with `committer`.
    fn on_revoked(
        &self,
        partitions: &[TopicPartition],
        committer: &Committer,
    ) -> impl Future<Output = ()> + Send {
        let _ = (partitions, committer);
        async {}
    }

    /// Partitions are lost: the connection broke, or the member was removed from its group. Others may read them
    /// already, and nothing of them can be committed any more.
    fn on_lost(&self, partitions: &[TopicPartition]) -> impl Future<Output = ()> + Send {
        let _ = partitions;
        async {}
    }
}

/// Listens to nothing.
impl RebalanceListener for () {}

type Call<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A [`RebalanceListener`] of any type.
pub(super) trait AnyListener: Send + Sync {
    fn assigned<'a>(&'a self, partitions: &'a [AssignedPartition], committer: &'a Committer) -> Call<'a>;
    fn revoked<'a>(&'a self, partitions: &'a [TopicPartition], committer: &'a Committer) -> Call<'a>;
    fn lost<'a>(&'a self, partitions: &'a [TopicPartition]) -> Call<'a>;
}

impl<L: RebalanceListener> AnyListener for L {
    fn assigned<'a>(&'a self, partitions: &'a [AssignedPartition], committer: &'a Committer) -> Call<'a> {
        Box::pin(self.on_assigned(partitions, committer))
    }

    fn revoked<'a>(&'a self, partitions: &'a [TopicPartition], committer: &'a Committer) -> Call<'a> {
        Box::pin(self.on_revoked(partitions, committer))
    }

    fn lost<'a>(&'a self, partitions: &'a [TopicPartition]) -> Call<'a> {
        Box::pin(self.on_lost(partitions))
    }
}
