//! One subscription stream: of partitions that the client chose, or of a member of a group.
//!
//! It runs inside the task of its call and only when the transport has room, so a client that does not read makes the
//! broker hold one delivery and the transport's bounded buffer.

use std::collections::VecDeque;
use std::pin::Pin;

use futures_util::{Stream, stream};
use tonic::{Status, Streaming};

use super::Context;
use super::consume::deliver;
use super::forward::Relay;
use super::membership::Session;
use crate::api::convert;
use crate::api::rpc::Handover;
use crate::api::status::Failure;
use crate::broker::{ErrorCode, Fetched, Subscription};
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
    forwarded: bool,
) -> Deliveries {
    let subscriber = Subscriber::new(context, requests, handover, forwarded);
    let stream = stream::unfold(Some(Box::new(subscriber)), |subscriber| async {
        let mut subscriber = subscriber?;
        match subscriber.next().await {
            Ok(Some(response)) => Some((Ok(response), Some(subscriber))),
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
    /// Another broker passed the stream on.
    forwarded: bool,
    /// No further request can come.
    half_closed: bool,
    reading: Reading,
    /// Partitions that could not be added.
    refused: VecDeque<Fetched>,
}

/// What the stream has become by its first request.
enum Reading {
    Nothing,
    Partitions(Subscription),
    Group(Box<Session>),
    /// A member of a group that another broker coordinates.
    Elsewhere(Box<Relay>),
}

impl Reading {
    /// What comes next. Cancel-safe.
    async fn next(
        &mut self,
        context: &Context,
        handover: &Handover,
    ) -> Result<Option<v1::SubscribeResponse>, Status> {
        match self {
            Reading::Nothing => std::future::pending().await,
            Reading::Partitions(subscription) => {
                let (fetched, responding) = subscription.next().await;
                handover.made(responding);
                Ok(Some(deliver(context, fetched, &RequestTrace::NONE, None).0.into()))
            }
            Reading::Group(session) => {
                let next = session.next(context, handover).await;
                next.map(Some).map_err(|failure| context.consume_refused(failure).into())
            }
            Reading::Elsewhere(relay) => relay.next().await,
        }
    }

    /// Whether there is nothing to wait for once no further request can come.
    fn is_over(&self) -> bool {
        match self {
            Reading::Nothing => true,
            Reading::Partitions(subscription) => !subscription.has_credit(),
            Reading::Group(session) => !session.is_answering(),
            // The other broker ends the stream.
            Reading::Elsewhere(_) => false,
        }
    }

    /// Whether another request may be read now.
    fn takes_requests(&self) -> bool {
        match self {
            Reading::Nothing | Reading::Partitions(_) => true,
            Reading::Group(session) => session.takes_requests(),
            Reading::Elsewhere(relay) => relay.takes_requests(),
        }
    }

    /// Whether the member has left, so that the stream ends when the last answer is given.
    fn has_left(&self) -> bool {
        matches!(self, Reading::Group(session) if session.has_left())
    }
}

impl Subscriber {
    fn new(
        context: Context,
        requests: Streaming<v1::SubscribeRequest>,
        handover: Handover,
        forwarded: bool,
    ) -> Self {
        Subscriber {
            context,
            requests,
            handover,
            forwarded,
            half_closed: false,
            reading: Reading::Nothing,
            refused: VecDeque::new(),
        }
    }

    /// The next response; `None` when there can be no further one.
    async fn next(&mut self) -> Result<Option<v1::SubscribeResponse>, Status> {
        let drain = self.context.drain().clone();
        loop {
            if let Some(refused) = self.refused.pop_front() {
                return Ok(Some(deliver(&self.context, refused, &RequestTrace::NONE, None).0.into()));
            }
            if (self.half_closed || self.reading.has_left()) && self.reading.is_over() {
                return Ok(None);
            }
            let takes_requests = !self.half_closed && self.reading.takes_requests();
            // Every arm is cancel-safe: a request or a delivery is taken only when its arm wins.
            tokio::select! {
                biased;
                () = drain.cancelled() => return Err(self.refuse(Failure::stopping())),
                request = self.requests.message(), if takes_requests => match request? {
                    Some(request) => {
                        let Some(request) = self.take_elsewhere(request).await? else { continue };
                        if let Err(failure) = self.act(request).await {
                            return Err(self.refuse(failure));
                        }
                    }
                    None => {
                        self.half_closed = true;
                        if let Reading::Elsewhere(relay) = &mut self.reading {
                            relay.half_close();
                        }
                    }
                },
                response = self.reading.next(&self.context, &self.handover) => return response,
            }
        }
    }

    /// Takes a request of a member whose group another broker coordinates; gives others back.
    async fn take_elsewhere(
        &mut self,
        request: v1::SubscribeRequest,
    ) -> Result<Option<v1::SubscribeRequest>, Status> {
        match (&self.reading, &request.action) {
            (Reading::Elsewhere(relay), _) => {
                relay.pass(request);
                Ok(None)
            }
            (Reading::Nothing, Some(Action::Join(join))) if !self.forwarded => {
                let Some(to) = self.context.broker().coordinator_elsewhere(&join.group) else {
                    return Ok(Some(request));
                };
                let relay = self.context.join_elsewhere(to, request).await?;
                self.reading = Reading::Elsewhere(Box::new(relay));
                Ok(None)
            }
            _ => Ok(Some(request)),
        }
    }

    async fn act(&mut self, request: v1::SubscribeRequest) -> Result<(), Failure> {
        let action = request.action.ok_or_else(|| {
            invalid(
                "action is missing: set one of start, credit, add, remove, join, commit, release, acknowledge, heartbeat, leave, pause, resume",
            )
        })?;
        match &mut self.reading {
            Reading::Nothing => self.begin(action).await,
            Reading::Group(session) => session.act(action).await,
            Reading::Elsewhere(_) => Ok(()),
            Reading::Partitions(subscription) => {
                match action {
                    Action::Credit(credit) => subscription.grant(credit.bytes),
                    Action::Add(add) => {
                        let partitions = convert::positions(add.partitions, "add.partitions")?;
                        self.refused.extend(subscription.add(partitions).await);
                    }
                    Action::Remove(remove) => {
                        let partitions = remove.partitions.into_iter();
                        let partitions: Vec<_> = partitions.map(|at| (at.topic, at.partition)).collect();
                        subscription.remove(&partitions);
                    }
                    Action::Start(_) => {
                        return Err(invalid("start must come only once: use add to read further partitions"));
                    }
                    Action::Join(_)
                    | Action::Commit(_)
                    | Action::Release(_)
                    | Action::Acknowledge(_)
                    | Action::Heartbeat(_)
                    | Action::Leave(_)
                    | Action::Pause(_)
                    | Action::Resume(_) => {
                        return Err(invalid(
                            "the stream began with start and is no member of a group: begin it with join",
                        ));
                    }
                }
                Ok(())
            }
        }
    }

    async fn begin(&mut self, action: Action) -> Result<(), Failure> {
        match action {
            Action::Start(start) => self.start(start).await,
            Action::Join(join) => {
                let session = Session::join(&self.context, join).await?;
                self.reading = Reading::Group(Box::new(session));
                Ok(())
            }
            _ => Err(invalid("the first request of a subscription must be start or join")),
        }
    }

    async fn start(&mut self, start: v1::StartSubscription) -> Result<(), Failure> {
        let partitions = convert::positions(start.partitions, "start.partitions")?;
        let accepted = convert::accepted_codecs(&start.accepted_codecs)?;
        let mut subscription = self.context.broker().subscribe(accepted);
        subscription.grant(start.credit_bytes);
        self.refused.extend(subscription.add(partitions).await);
        self.reading = Reading::Partitions(subscription);
        Ok(())
    }

    fn refuse(&self, failure: Failure) -> Status {
        self.context.consume_refused(failure).into()
    }
}

pub(super) fn invalid(message: &str) -> Failure {
    Failure::new(ErrorCode::InvalidArgument, message)
}
