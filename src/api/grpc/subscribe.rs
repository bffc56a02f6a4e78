//! One subscription stream.
//!
//! It runs inside the task of its call and only when the transport has room, so a client that does not read makes the
//! broker hold one delivery and the transport's bounded buffer.

use std::collections::VecDeque;
use std::pin::Pin;

use futures_util::{Stream, stream};
use tonic::{Status, Streaming};

use super::Context;
use super::consume::deliver;
use crate::api::convert;
use crate::api::rpc::Handover;
use crate::api::status::Failure;
use crate::broker::{ErrorCode, Fetched, Responding, Subscription};
use crate::proto::v1;
use crate::proto::v1::subscribe_request::Action;
use crate::telemetry::RequestTrace;

/// What a subscription sends.
pub(super) type Deliveries = Pin<Box<dyn Stream<Item = Result<v1::SubscribeResponse, Status>> + Send>>;

/// Serves a subscription until the client leaves, breaks the protocol, or the broker drains.
pub(super) fn deliveries(
    context: Context,
    requests: Streaming<v1::SubscribeRequest>,
    handover: Handover,
) -> Deliveries {
    let stream =
        stream::unfold(Some(Box::new(Subscriber::new(context, requests, handover))), |subscriber| async {
            let mut subscriber = subscriber?;
            match subscriber.next().await {
                Ok(Some(fetched)) => {
                    let records = deliver(&subscriber.context, fetched, &RequestTrace::NONE);
                    Some((Ok(v1::SubscribeResponse { records: Some(records) }), Some(subscriber)))
                }
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
    Box::pin(stream)
}

struct Subscriber {
    context: Context,
    requests: Streaming<v1::SubscribeRequest>,
    handover: Handover,
    /// No further request can come.
    half_closed: bool,
    subscription: Option<Subscription>,
    /// Partitions that could not be added.
    refused: VecDeque<Fetched>,
}

impl Subscriber {
    fn new(context: Context, requests: Streaming<v1::SubscribeRequest>, handover: Handover) -> Self {
        Subscriber {
            context,
            requests,
            handover,
            half_closed: false,
            subscription: None,
            refused: VecDeque::new(),
        }
    }

    /// The next delivery; `None` when there can be no further one.
    async fn next(&mut self) -> Result<Option<Fetched>, Status> {
        let drain = self.context.drain().clone();
        loop {
            if let Some(refused) = self.refused.pop_front() {
                return Ok(Some(refused));
            }
            if self.half_closed && !self.subscription.as_ref().is_some_and(Subscription::has_credit) {
                return Ok(None);
            }
            // Every arm is cancel-safe: a request or a delivery is taken only when its arm wins.
            tokio::select! {
                biased;
                () = drain.cancelled() => return Err(self.refuse(Failure::stopping())),
                request = self.requests.message(), if !self.half_closed => match request? {
                    Some(request) => {
                        if let Err(failure) = self.act(request).await {
                            return Err(self.refuse(failure));
                        }
                    }
                    None => self.half_closed = true,
                },
                (fetched, responding) = next_of(&mut self.subscription) => {
                    self.handover.made(responding);
                    return Ok(Some(fetched));
                }
            }
        }
    }

    async fn act(&mut self, request: v1::SubscribeRequest) -> Result<(), Failure> {
        let action = request
            .action
            .ok_or_else(|| invalid("action is missing: set one of start, credit, add, remove"))?;
        let Some(subscription) = &mut self.subscription else {
            let Action::Start(start) = action else {
                return Err(invalid("the first request of a subscription must be start"));
            };
            return self.start(start).await;
        };
        match action {
            Action::Start(_) => {
                return Err(invalid("start must come only once: use add to read further partitions"));
            }
            Action::Credit(credit) => subscription.grant(credit.bytes),
            Action::Add(add) => {
                let partitions = convert::positions(add.partitions, "add.partitions")?;
                self.refused.extend(subscription.add(partitions).await);
            }
            Action::Remove(remove) => {
                let partitions: Vec<_> = remove
                    .partitions
                    .into_iter()
                    .map(|partition| (partition.topic, partition.partition))
                    .collect();
                subscription.remove(&partitions);
            }
        }
        Ok(())
    }

    async fn start(&mut self, start: v1::StartSubscription) -> Result<(), Failure> {
        let partitions = convert::positions(start.partitions, "start.partitions")?;
        let accepted = convert::accepted_codecs(&start.accepted_codecs)?;
        let mut subscription = self.context.broker().subscribe(accepted);
        subscription.grant(start.credit_bytes);
        self.refused.extend(subscription.add(partitions).await);
        self.subscription = Some(subscription);
        Ok(())
    }

    fn refuse(&self, failure: Failure) -> Status {
        self.context.consume_refused(failure).into()
    }
}

async fn next_of(subscription: &mut Option<Subscription>) -> (Fetched, Option<Responding>) {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}

fn invalid(message: &str) -> Failure {
    Failure::new(ErrorCode::InvalidArgument, message)
}
