//! A subscription at one broker.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use super::ConsumerConfig;
use crate::client::message::partition_position;
use crate::client::routing::Router;
use crate::client::{Error, Position, TopicPartition};
use crate::proto::v1;
use crate::proto::v1::subscribe_request::Action;
use crate::record::Codec;

/// Credit is granted again in this many steps rather than for every batch.
const GRANT_STEPS: u64 = 4;

/// A subscription at one broker.
pub(super) struct Session {
    generation: u64,
    /// Unbounded, since what goes through it is bounded otherwise: by the credit, of which each grant gives back a
    /// good part, and by the program's own calls.
    requests: mpsc::UnboundedSender<v1::SubscribeRequest>,
    stage: Stage,
    /// Partitions of which records may still arrive.
    read: HashSet<TopicPartition>,
    /// Bytes to be granted.
    owed: u64,
    grant_at: u64,
}

/// The subscription is over; [`Session::take_error`] says why.
#[derive(Debug)]
pub(super) struct Lost;

enum Stage {
    Opening(BoxFuture<'static, Result<Streaming<v1::SubscribeResponse>, Error>>),
    Open(Streaming<v1::SubscribeResponse>),
    Lost(Error),
}

impl Session {
    /// Subscribes; the connection is made when the session is polled first.
    pub(super) fn open(
        router: &Arc<Router>,
        broker: u64,
        generation: u64,
        partitions: &[(TopicPartition, Position)],
        config: &ConsumerConfig,
    ) -> Session {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let router = Arc::clone(router);
        let opening = async move {
            let connection = router.connections().open(&router.address(broker)?).await?;
            let outgoing = UnboundedReceiverStream::new(outgoing);
            Ok(connection.consume().subscribe(outgoing).await?.into_inner())
        };
        let mut session = Session {
            generation,
            requests,
            stage: Stage::Opening(opening.boxed()),
            read: HashSet::new(),
            owed: 0,
            grant_at: (config.credit_bytes / GRANT_STEPS).max(1),
        };
        let start = v1::StartSubscription {
            partitions: session.note(partitions),
            credit_bytes: config.credit_bytes,
            accepted_codecs: config.accepted_codecs.iter().map(Codec::number).collect(),
        };
        session.request(Action::Start(start));
        session
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn add(&mut self, partitions: &[(TopicPartition, Position)]) {
        let partitions = self.note(partitions);
        self.request(Action::Add(v1::AddPartitions { partitions }));
    }

    pub(super) fn remove(&mut self, at: &TopicPartition) {
        let partition = v1::TopicPartition { topic: at.topic.to_string(), partition: at.partition };
        self.request(Action::Remove(v1::RemovePartitions { partitions: vec![partition] }));
    }

    /// The broker said that it does not read this partition any more.
    pub(super) fn ended(&mut self, at: &TopicPartition) {
        self.read.remove(at);
    }

    /// Whether records of this partition may still arrive.
    pub(super) fn has_read(&self, at: &TopicPartition) -> bool {
        self.read.contains(at)
    }

    /// Gives back credit that was used, when it is worth a message.
    pub(super) fn grant(&mut self, bytes: u64) {
        self.owed += bytes;
        if self.owed >= self.grant_at {
            let bytes = std::mem::take(&mut self.owed);
            self.request(Action::Credit(v1::GrantCredit { bytes }));
        }
    }

    /// What arrives next: records, `None` if only the session moved on, or that it is lost.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<v1::PartitionRecords>, Lost>> {
        let lost = match &mut self.stage {
            Stage::Opening(opening) => match std::task::ready!(opening.poll_unpin(cx)) {
                Ok(stream) => {
                    self.stage = Stage::Open(stream);
                    return Poll::Ready(Ok(None));
                }
                Err(error) => error,
            },
            Stage::Open(stream) => match std::task::ready!(stream.poll_next_unpin(cx)) {
                Some(Ok(response)) => return Poll::Ready(Ok(response.into_records())),
                Some(Err(status)) => status.into(),
                None => Error::Connection { reason: "the broker ended the subscription".into() },
            },
            Stage::Lost(_) => return Poll::Ready(Err(Lost)),
        };
        self.stage = Stage::Lost(lost);
        Poll::Ready(Err(Lost))
    }

    /// Why the session is lost.
    pub(super) fn take_error(&mut self) -> Error {
        let gone = Error::Connection { reason: "the subscription is over".into() };
        match std::mem::replace(&mut self.stage, Stage::Lost(gone.clone())) {
            Stage::Lost(error) => error,
            Stage::Opening(_) | Stage::Open(_) => gone,
        }
    }

    fn note(&mut self, partitions: &[(TopicPartition, Position)]) -> Vec<v1::PartitionPosition> {
        self.read.extend(partitions.iter().map(|(at, _)| at.clone()));
        partitions.iter().map(|(at, position)| partition_position(at, *position)).collect()
    }

    fn request(&self, action: Action) {
        // A subscription that is over says so when it is polled.
        let _ = self.requests.send(v1::SubscribeRequest { action: Some(action) });
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("generation", &self.generation).finish_non_exhaustive()
    }
}
