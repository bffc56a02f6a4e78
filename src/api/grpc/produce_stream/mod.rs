//! One produce stream.
//!
//! It runs inside the task of its call, without a channel or a task per batch. Each time the transport has room it
//! reads the batches that have arrived, hands them to the broker in their order, collects the results that are ready
//! and sends them as one response. It stops reading while the broker does not admit a batch or the window is full, so
//! the client's sends wait; and because nothing is polled while the client does not read its results, those stay bounded too.

mod lanes;

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use futures_util::Stream;
use tokio_util::sync::{ReusableBoxFuture, WaitForCancellationFutureOwned};
use tonic::{Code, Status, Streaming};

use self::lanes::{LaneId, Lanes};
use super::Context;
use crate::api::convert;
use crate::api::status::Failure;
use crate::broker::{self, Broker, PendingProduce, Produced};
use crate::proto::v1;
use crate::proto::v1::produce_result::Outcome;
use crate::telemetry::RequestTrace;

const METHOD: &str = "streambus.v1.ProduceService/ProduceStream";

/// Batches that are read before their results are looked at, so that neither starves the other.
const BATCHES_PER_TURN: usize = 256;

type Admission = (Broker, Result<PendingProduce, broker::Error>);

/// The responses of a produce stream.
pub(super) struct ProduceStream {
    context: Context,
    requests: Streaming<v1::ProduceStreamRequest>,
    may_forward: bool,
    input: Input,
    /// The broker's answer to the batch that was read last. One allocation serves all batches.
    admission: ReusableBoxFuture<'static, Admission>,
    /// Whose admission is under way. `Err` holds the broker handle while there is none.
    admitting: Result<Ticket, Broker>,
    lanes: Lanes<Waiting>,
    drain: Pin<Box<WaitForCancellationFutureOwned>>,
    done: bool,
}

/// Whether more batches can come.
enum Input {
    Open,
    /// The client has sent all.
    Ended,
    /// The stream ends with this status once all results are sent.
    Failed(Status),
}

/// A batch from its reading until its result.
struct Ticket {
    correlation_id: u64,
    lane: LaneId,
    trace: RequestTrace,
}

/// A batch whose result is not sent.
struct Waiting {
    correlation_id: u64,
    trace: RequestTrace,
    state: State,
}

enum State {
    Pending(PendingProduce),
    Refused(Failure),
}

impl ProduceStream {
    pub(super) fn new(
        context: Context,
        requests: Streaming<v1::ProduceStreamRequest>,
        may_forward: bool,
    ) -> Self {
        let drain = Box::pin(context.drain().clone().cancelled_owned());
        ProduceStream {
            admission: ReusableBoxFuture::new(std::future::pending()),
            admitting: Err(context.broker().clone()),
            lanes: Lanes::default(),
            input: Input::Open,
            done: false,
            may_forward,
            context,
            requests,
            drain,
        }
    }

    /// Reads and admits until there is nothing to read, the window is full or the broker makes it wait. Returns
    /// whether it stopped only to give results their turn.
    fn read(&mut self, cx: &mut TaskContext<'_>) -> bool {
        for _ in 0..BATCHES_PER_TURN {
            if !self.finish_admission(cx) {
                return false;
            }
            if !matches!(self.input, Input::Open) || self.lanes.len() >= self.context.0.stream_window_batches
            {
                return false;
            }
            match Pin::new(&mut self.requests).poll_next(cx) {
                Poll::Pending => return false,
                Poll::Ready(None) => self.input = Input::Ended,
                Poll::Ready(Some(Err(status))) => self.input = Input::Failed(status),
                Poll::Ready(Some(Ok(request))) => self.begin_admission(request),
            }
        }
        true
    }

    fn begin_admission(&mut self, request: v1::ProduceStreamRequest) {
        let received = Instant::now();
        let trace = self.context.batch_trace(METHOD, &request.traceparent, &request.tracestate);
        let lane = self.lanes.of(&request.topic, request.partition);
        let ticket = Ticket { correlation_id: request.correlation_id, lane, trace };
        let produce = broker::Produce {
            topic: request.topic,
            partition: request.partition,
            batch: request.batch,
            producer: request.producer.map(convert::producer),
            trace: ticket.trace.clone(),
            received,
            may_forward: self.may_forward,
        };
        if let Err(broker) = std::mem::replace(&mut self.admitting, Ok(ticket)) {
            self.admission.set(async move {
                let admitted = broker.produce(produce).await;
                (broker, admitted)
            });
        }
    }

    /// Returns whether no admission is under way any more.
    fn finish_admission(&mut self, cx: &mut TaskContext<'_>) -> bool {
        if self.admitting.is_err() {
            return true;
        }
        let Poll::Ready((broker, admitted)) = self.admission.poll(cx) else { return false };
        if let Ok(ticket) = std::mem::replace(&mut self.admitting, Err(broker)) {
            let state = match admitted {
                Ok(pending) => State::Pending(pending),
                Err(error) => State::Refused(error.into()),
            };
            self.enqueue(ticket, state);
        }
        true
    }

    fn enqueue(&mut self, ticket: Ticket, state: State) {
        let Ticket { correlation_id, lane, trace } = ticket;
        self.lanes.push(lane, Waiting { correlation_id, trace, state });
    }

    /// Every result that is ready and not behind one of its partition that is not.
    fn collect(&mut self, cx: &mut TaskContext<'_>) -> Vec<v1::ProduceResult> {
        let mut results = Vec::new();
        let context = &self.context;
        self.lanes.drain_ready(|waiting| {
            let outcome = match &mut waiting.state {
                State::Pending(pending) => match Pin::new(pending).poll(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Ok(produced)) => Ok(produced),
                    Poll::Ready(Err(error)) => Err(error.into()),
                },
                State::Refused(failure) => Err(failure.clone()),
            };
            results.push(result(context, waiting, outcome));
            true
        });
        results
    }

    /// Once drained, no further batch is read; those that were keep their results.
    fn watch_drain(&mut self, cx: &mut TaskContext<'_>) {
        if matches!(self.input, Input::Open) && self.drain.as_mut().poll(cx).is_ready() {
            self.input = Input::Failed(Failure::stopping().into());
        }
    }

    fn is_finished(&self) -> bool {
        !matches!(self.input, Input::Open) && self.admitting.is_err() && self.lanes.is_empty()
    }

    fn finish(&mut self) -> Option<Result<v1::ProduceStreamResponse, Status>> {
        self.done = true;
        match std::mem::replace(&mut self.input, Input::Ended) {
            Input::Failed(status) => Some(Err(status)),
            Input::Open | Input::Ended => None,
        }
    }
}

impl Stream for ProduceStream {
    type Item = Result<v1::ProduceStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        let me = &mut *self;
        if me.done {
            return Poll::Ready(None);
        }
        me.watch_drain(cx);
        let more_to_read = me.read(cx);
        let results = me.collect(cx);
        if !results.is_empty() {
            return Poll::Ready(Some(Ok(v1::ProduceStreamResponse { results })));
        }
        if me.is_finished() {
            return Poll::Ready(me.finish());
        }
        if more_to_read {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

fn result(context: &Context, waiting: &Waiting, outcome: Result<Produced, Failure>) -> v1::ProduceResult {
    let outcome = match outcome {
        Ok(produced) => {
            waiting.trace.finish(Code::Ok);
            Outcome::Committed(produced.into())
        }
        Err(failure) => {
            let failure = context.produce_refused(failure);
            waiting.trace.finish(failure.grpc());
            Outcome::Error(failure.into_proto())
        }
    };
    v1::ProduceResult { correlation_id: waiting.correlation_id, outcome: Some(outcome) }
}
