//! Acknowledgements that wait to be sent, and those under way. Pure.
//!
//! Few requests are under way at a time. What is acknowledged meanwhile gathers, and consecutive records of which the
//! same is said travel as one run; so a program that acknowledges much sends few large requests, and one that
//! acknowledges little waits for nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::SpanContext;
use tokio::sync::oneshot;

use crate::client::{Error, ErrorCode, Offset, TopicPartition};
use crate::proto::v1;

/// Requests that may be under way.
const REQUESTS_MAX: usize = 4;
/// Runs that one request takes.
const RUNS_MAX: usize = 1_000;
/// How often an acknowledgement is sent that the broker is too busy for.
const ATTEMPTS_MAX: u32 = 10;

/// What is said of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Say {
    Accept,
    Release(Duration),
    Reject(String),
    Extend,
}

/// Something said of one record.
#[derive(Debug)]
pub(super) struct Ack {
    pub(super) at: TopicPartition,
    pub(super) offset: Offset,
    pub(super) say: Say,
    /// Absent if nobody wants to know what became of it.
    pub(super) waiter: Option<oneshot::Sender<Result<(), Error>>>,
    /// The sampled context in which the record was created.
    pub(super) created: Option<SpanContext>,
    /// The sampled context in which the program acknowledged.
    pub(super) parent: Option<opentelemetry::Context>,
    attempts: u32,
    /// Not to be put into a run with others: it was in one that failed as a whole.
    alone: bool,
}

impl Ack {
    pub(super) fn new(at: TopicPartition, offset: Offset, say: Say) -> Ack {
        Ack { at, offset, say, waiter: None, created: None, parent: None, attempts: 0, alone: false }
    }

    /// Tells what became of it, if somebody wants to know.
    pub(super) fn tell(self, result: Result<(), Error>) {
        if let Some(waiter) = self.waiter {
            let _ = waiter.send(result);
        }
    }
}

/// Consecutive records of which the same is said.
#[derive(Debug)]
struct Run {
    acks: Vec<Ack>,
}

impl Run {
    fn takes(&self, ack: &Ack) -> bool {
        self.acks.last().is_some_and(|last| {
            !last.alone
                && !ack.alone
                && last.at == ack.at
                && last.offset.saturating_add(1) == ack.offset
                && last.say == ack.say
        })
    }

    fn to_request(&self) -> v1::Acknowledgement {
        let (first, last) = (&self.acks[0], &self.acks[self.acks.len() - 1]);
        let mut acknowledgement = v1::Acknowledgement {
            topic: first.at.topic.to_string(),
            partition: first.at.partition,
            first_offset: first.offset.0,
            last_offset: last.offset.0,
            ..v1::Acknowledgement::default()
        };
        let kind = match &first.say {
            Say::Accept => v1::AckKind::Accept,
            Say::Release(delay) => {
                acknowledgement.delay = (*delay).try_into().ok();
                v1::AckKind::Release
            }
            Say::Reject(reason) => {
                acknowledgement.reason.clone_from(reason);
                v1::AckKind::Reject
            }
            Say::Extend => v1::AckKind::Extend,
        };
        acknowledgement.set_kind(kind);
        acknowledgement
    }
}

/// A request under way.
#[derive(Debug)]
struct Request {
    runs: Vec<Run>,
    began: SystemTime,
}

/// What became of acknowledgements of one request.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) began: SystemTime,
    /// What is known of, with the error of those that failed.
    pub(super) acks: Vec<(Ack, Option<Error>)>,
    /// Something is to be tried again, after as long as the broker asks for.
    pub(super) retry: Option<Option<Duration>>,
}

/// Acknowledgements that wait to be sent, and those under way.
#[derive(Debug, Default)]
pub(super) struct Acks {
    /// At most one for each record that is leased, and extensions.
    waiting: VecDeque<Ack>,
    /// To be sent again after a while.
    later: Vec<Ack>,
    under_way: BTreeMap<u64, Request>,
    made: u64,
}

impl Acks {
    pub(super) fn push(&mut self, ack: Ack) {
        self.waiting.push_back(ack);
    }

    /// The next request to send, if there is something to say and room under way.
    pub(super) fn next_request(&mut self) -> Option<v1::Acknowledge> {
        if self.waiting.is_empty() || self.under_way.len() >= REQUESTS_MAX {
            return None;
        }
        let mut acks: Vec<Ack> = std::mem::take(&mut self.waiting).into();
        // Stable: what is said of one record stays in its order.
        acks.sort_by(|a, b| (&a.at, a.offset).cmp(&(&b.at, b.offset)));
        let mut runs: Vec<Run> = Vec::new();
        let mut acks = acks.into_iter();
        while let Some(ack) = acks.next() {
            if let Some(run) = runs.last_mut().filter(|run| run.takes(&ack)) {
                run.acks.push(ack);
            } else if runs.len() < RUNS_MAX {
                runs.push(Run { acks: vec![ack] });
            } else {
                self.waiting.push_back(ack);
                self.waiting.extend(acks);
                break;
            }
        }
        self.made += 1;
        let acknowledgements = runs.iter().map(Run::to_request).collect();
        self.under_way.insert(self.made, Request { runs, began: SystemTime::now() });
        Some(v1::Acknowledge { correlation_id: self.made, acknowledgements })
    }

    /// The broker said what became of a request.
    ///
    /// # Errors
    ///
    /// If it contradicts what was sent.
    pub(super) fn answered(&mut self, answer: v1::Acknowledged) -> Result<Answered, Error> {
        let request = self.under_way.remove(&answer.correlation_id).filter(|request| {
            // A wrong number of results cannot be told from results of something else.
            request.runs.len() == answer.results.len()
        });
        let Some(request) = request else {
            let what = format!("acknowledgement {} was not sent like that", answer.correlation_id);
            return Err(Error::InvalidResponse { what });
        };
        let mut answered = Answered { began: request.began, acks: Vec::new(), retry: None };
        for (run, result) in request.runs.into_iter().zip(answer.results) {
            let error = result.error.map(Error::from);
            let many = run.acks.len() > 1;
            for mut ack in run.acks {
                ack.attempts += 1;
                match &error {
                    Some(error) if many && error.code() == Some(ErrorCode::LeaseExpired) => {
                        // One of them spoiled it for all; which one shows when each is sent alone.
                        ack.alone = true;
                        self.waiting.push_back(ack);
                    }
                    Some(error) if error.is_retriable() && ack.attempts < ATTEMPTS_MAX => {
                        answered.retry = Some(error.retry_after());
                        self.later.push(ack);
                    }
                    _ => answered.acks.push((ack, error.clone())),
                }
            }
        }
        Ok(answered)
    }

    /// Sends again what the broker was too busy for.
    pub(super) fn retry(&mut self) {
        self.waiting.extend(self.later.drain(..));
    }

    /// Takes everything: what was never sent or was refused, and what may have been carried out.
    pub(super) fn take(&mut self) -> (Vec<Ack>, Vec<Ack>) {
        let unsent = self.waiting.drain(..).chain(self.later.drain(..)).collect();
        let requests = std::mem::take(&mut self.under_way).into_values();
        (unsent, requests.flat_map(|request| request.runs).flat_map(|run| run.acks).collect())
    }

    /// Whether what is said now is sent at once.
    pub(super) fn has_room(&self) -> bool {
        self.under_way.len() < REQUESTS_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.later.is_empty() && self.under_way.is_empty()
    }

    /// Partitions of which something was said that is not answered yet.
    pub(super) fn partitions(&self) -> BTreeSet<&TopicPartition> {
        let under_way = self.under_way.values().flat_map(|request| &request.runs).flat_map(|run| &run.acks);
        self.waiting.iter().chain(&self.later).chain(under_way).map(|ack| &ack.at).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(partition: u32, offset: u64) -> Ack {
        Ack::new(TopicPartition::new("t", partition), Offset(offset), Say::Accept)
    }

    fn ranges(request: &v1::Acknowledge) -> Vec<(u32, u64, u64)> {
        let all = request.acknowledgements.iter();
        all.map(|ack| (ack.partition, ack.first_offset, ack.last_offset)).collect()
    }

    fn answer(request: &v1::Acknowledge, error: Option<ErrorCode>) -> v1::Acknowledged {
        let error = error.map(|code| v1::Error { code: code.into(), ..v1::Error::default() });
        let results = request.acknowledgements.iter();
        let results = results.map(|_| v1::AcknowledgementResult { error: error.clone() }).collect();
        v1::Acknowledged { correlation_id: request.correlation_id, results }
    }

    #[test]
    fn what_gathers_travels_in_runs() {
        let mut acks = Acks::default();
        for (partition, offset) in [(1, 8), (0, 3), (1, 7), (0, 4), (0, 6)] {
            acks.push(accept(partition, offset));
        }
        let mut rejected = accept(0, 5);
        rejected.say = Say::Reject("bad".into());
        acks.push(rejected);

        let request = acks.next_request().expect("something waits");

        assert_eq!(ranges(&request), [(0, 3, 4), (0, 5, 5), (0, 6, 6), (1, 7, 8)]);
        assert_eq!(request.acknowledgements[1].reason, "bad");
    }

    #[test]
    fn few_requests_are_under_way() {
        let mut acks = Acks::default();
        let mut sent = Vec::new();
        for offset in 0..10 {
            acks.push(accept(0, offset));
            sent.extend(acks.next_request());
        }
        assert_eq!(sent.len(), REQUESTS_MAX);
        assert_eq!(acks.answered(answer(&sent[0], None)).expect("it was sent").acks.len(), 1);
        assert_eq!(ranges(&acks.next_request().expect("there is room")), [(0, 4, 9)]);
    }

    #[test]
    fn a_run_with_a_lost_lease_is_sent_one_by_one() {
        let mut acks = Acks::default();
        (0..3).for_each(|offset| acks.push(accept(0, offset)));
        let request = acks.next_request().expect("something waits");

        let answered = acks.answered(answer(&request, Some(ErrorCode::LeaseExpired))).expect("it was sent");

        assert!(answered.acks.is_empty(), "nobody knows yet whose lease it was");
        let request = acks.next_request().expect("they are sent again");
        assert_eq!(ranges(&request), [(0, 0, 0), (0, 1, 1), (0, 2, 2)]);
        let answered = acks.answered(answer(&request, Some(ErrorCode::LeaseExpired))).expect("it was sent");
        assert_eq!(answered.acks.len(), 3);
        assert!(acks.is_empty());
    }

    #[test]
    fn a_busy_broker_is_asked_again_but_not_for_ever() {
        let mut acks = Acks::default();
        acks.push(accept(0, 0));
        for attempt in 1..=ATTEMPTS_MAX {
            let request = acks.next_request().expect("it waits");
            let answered = acks.answered(answer(&request, Some(ErrorCode::Busy))).expect("it was sent");
            assert_eq!(answered.retry.is_some(), attempt < ATTEMPTS_MAX, "attempt {attempt}");
            assert_eq!(answered.acks.len(), usize::from(attempt == ATTEMPTS_MAX));
            assert!(acks.next_request().is_none(), "not at once");
            acks.retry();
        }
    }

    #[test]
    fn an_answer_that_contradicts_the_request_is_refused() {
        let mut acks = Acks::default();
        acks.push(accept(0, 0));
        acks.next_request();
        let answer = v1::Acknowledged { correlation_id: 1, results: Vec::new() };
        assert!(matches!(acks.answered(answer), Err(Error::InvalidResponse { .. })));
    }
}
