//! The order of one partition's batches: which one is sent next, with which sequence, and what follows from an
//! answer, a lost stream or the passing of time. Pure bookkeeping; the driver does what it says.
//!
//! A lane *flows* until a batch fails in a way that a retry may mend, or that leaves a gap in the sequence. Then it
//! *rewinds*: nothing is sent until every batch in flight is answered (the broker refuses those behind a gap), and
//! then it is *parked* until the driver restarts it, which sends what is left from the oldest batch on, in order.
//! A repeated batch keeps its sequence. Sequences are given anew only where no batch that is still here can have been
//! written under its old one.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::buffer::Batch;
use super::delivery::Committed;
use crate::client::{Error, ErrorCode, ProducerIdentity};
use crate::record::ProducerSequence;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Flowing,
    Rewinding,
    Parked,
}

/// What has to happen before a parked lane may flow again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Repairs {
    /// Learn who leads the partition.
    pub(super) reroute: bool,
    /// Get a new producer id.
    pub(super) renew: bool,
    /// What the broker asked to wait.
    pub(super) retry_after: Option<Duration>,
}

impl Repairs {
    pub(super) fn add(&mut self, more: Repairs) {
        self.reroute |= more.reroute;
        self.renew |= more.renew;
        self.retry_after = self.retry_after.max(more.retry_after);
    }
}

/// A batch in its queue.
#[derive(Debug)]
struct Queued {
    batch: Batch,
    flight: Option<Flight>,
    /// Whether it was refused once for a sequence or producer that the broker did not expect, although nothing
    /// before it was missing.
    renewed: bool,
}

/// An attempt that is not answered yet.
#[derive(Clone, Copy, Debug)]
struct Flight {
    correlation: u32,
    /// Position among the requests of its stream.
    position: u64,
}

/// A batch to be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) correlation: u32,
    pub(super) payload: Bytes,
    pub(super) sequence: Option<ProducerSequence>,
    pub(super) trace: Option<opentelemetry::trace::SpanContext>,
}

/// A batch whose outcome is decided.
pub(super) type Decided = (Batch, Result<Committed, Error>);

/// The batches of one partition that the driver has taken and that are not done.
#[derive(Debug)]
pub(super) struct Lane {
    /// Oldest first. INVARIANT: while flowing, the first `in_flight` are in flight and no others.
    queue: VecDeque<Queued>,
    in_flight: usize,
    phase: Phase,
    /// `None` if the producer is not idempotent.
    identity: Option<ProducerIdentity>,
    next_sequence: u32,
    /// The first sequence that the broker still waits for although its batch was given up.
    gap: Option<u32>,
    next_correlation: u32,
    repairs: Repairs,
    /// Failed attempts since the last success.
    failures: u32,
    last_error: Option<Error>,
}

impl Lane {
    pub(super) fn new(identity: Option<ProducerIdentity>) -> Lane {
        Lane {
            queue: VecDeque::new(),
            in_flight: 0,
            phase: Phase::Flowing,
            identity,
            next_sequence: 0,
            gap: None,
            next_correlation: 0,
            repairs: Repairs::default(),
            failures: 0,
            last_error: None,
        }
    }

    pub(super) fn push(&mut self, batch: Batch) {
        self.queue.push_back(Queued { batch, flight: None, renewed: false });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn is_flowing(&self) -> bool {
        self.phase == Phase::Flowing
    }

    /// Whether [`next`](Self::next) has something to send.
    pub(super) fn has_next(&self) -> bool {
        self.is_flowing() && self.in_flight < self.queue.len()
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn last_error(&self) -> Option<&Error> {
        self.last_error.as_ref()
    }

    pub(super) fn batches_mut(&mut self) -> impl Iterator<Item = &mut Batch> {
        self.queue.iter_mut().map(|queued| &mut queued.batch)
    }

    /// The next batch, which the caller sends as request number `position` of its stream.
    pub(super) fn next(&mut self, position: u64, now: Instant) -> Option<Outgoing> {
        if !self.is_flowing() {
            return None;
        }
        let queued = self.queue.get_mut(self.in_flight)?;
        let batch = &mut queued.batch;
        if let (Some(identity), None) = (self.identity, batch.sequence) {
            batch.sequence = Some(ProducerSequence {
                producer_id: identity.id,
                epoch: identity.epoch,
                base_sequence: self.next_sequence,
            });
            self.next_sequence = self.next_sequence.wrapping_add(batch.records);
        }
        match batch.first_sent {
            None => batch.first_sent = Some(now),
            Some(_) => batch.way.resends = batch.way.resends.saturating_add(1),
        }
        if self.failures > 0 {
            batch.way.held_up_by = self.last_error.as_ref().map(Error::kind);
        }
        let correlation = self.next_correlation;
        self.next_correlation = correlation.wrapping_add(1);
        queued.flight = Some(Flight { correlation, position });
        self.in_flight += 1;
        Some(Outgoing {
            correlation,
            payload: batch.payload.clone(),
            sequence: batch.sequence,
            trace: batch.trace.clone(),
        })
    }

    /// A batch is committed. `None` if it is not waited for any more.
    pub(super) fn committed(&mut self, correlation: u32) -> Option<Batch> {
        let at = self.find(correlation)?;
        self.in_flight -= 1;
        self.failures = 0;
        let batch = self.queue.remove(at)?.batch;
        self.settle();
        Some(batch)
    }

    /// A batch is refused, or its outcome is unknown. Returns it if that is final.
    pub(super) fn refused(&mut self, correlation: u32, error: Error) -> Option<Decided> {
        let at = self.find(correlation)?;
        self.in_flight -= 1;
        let queued = &mut self.queue[at];
        queued.flight = None;
        queued.batch.uncertain |= error.may_have_been_written();
        let decided = self.judge(at, error);
        self.settle();
        decided
    }

    fn judge(&mut self, at: usize, error: Error) -> Option<Decided> {
        let queued = &mut self.queue[at];
        let sequenced = queued.batch.sequence.is_some();
        let code = error.code();
        let unexpected =
            sequenced && matches!(code, Some(ErrorCode::SequenceOutOfOrder | ErrorCode::UnknownProducer));
        if unexpected && self.phase == Phase::Rewinding {
            // It came behind a batch that failed, and is sent again after that one.
            return None;
        }
        if unexpected && !queued.batch.uncertain && !queued.renewed {
            // The broker has forgotten this producer. Nothing here was written, so a new id may begin anew.
            queued.renewed = true;
            self.repairs.renew = true;
            self.rewind(error);
            return None;
        }
        if error.is_retriable() {
            self.repairs.reroute |= matches!(code, Some(ErrorCode::NotLeader | ErrorCode::NotReady));
            self.repairs.retry_after = self.repairs.retry_after.max(error.retry_after());
            self.rewind(error);
            return None;
        }
        self.repairs.reroute |= matches!(code, Some(ErrorCode::UnknownTopic | ErrorCode::UnknownPartition));
        let error = if unexpected && queued.batch.uncertain {
            Error::OutcomeUnknown { reason: error.to_string() }
        } else {
            error
        };
        let batch = self.queue.remove(at)?.batch;
        self.close_gap(&batch);
        Some((batch, Err(error)))
    }

    /// A batch is given up. If it has a sequence, those behind it need others.
    fn close_gap(&mut self, gone: &Batch) {
        let Some(sequence) = gone.sequence else { return };
        if gone.uncertain {
            // The broker may or may not expect this sequence next, so only a new id is sure to be understood.
            self.repairs.renew = true;
        } else if self.gap.is_none_or(|gap| is_before(sequence.base_sequence, gap)) {
            // It was not written, so nothing behind it can have been.
            self.gap = Some(sequence.base_sequence);
        }
        if self.phase == Phase::Flowing {
            self.phase = Phase::Rewinding;
        }
    }

    /// The stream is lost after the transport took its first `taken` requests.
    pub(super) fn lost(&mut self, taken: u64, error: Error) {
        if self.in_flight == 0 {
            return;
        }
        for queued in &mut self.queue {
            if let Some(flight) = queued.flight.take() {
                queued.batch.uncertain |= flight.position < taken;
            }
        }
        self.in_flight = 0;
        self.repairs.reroute = true;
        self.rewind(error);
        self.settle();
    }

    fn rewind(&mut self, error: Error) {
        if self.phase == Phase::Flowing {
            self.phase = Phase::Rewinding;
            self.failures = self.failures.saturating_add(1);
        }
        self.last_error = Some(error);
    }

    fn settle(&mut self) {
        if self.phase == Phase::Rewinding && self.in_flight == 0 {
            self.phase = Phase::Parked;
        }
    }

    pub(super) fn is_parked(&self) -> bool {
        self.phase == Phase::Parked
    }

    /// What the driver has to do before it restarts a parked lane; told once.
    pub(super) fn take_repairs(&mut self) -> Repairs {
        std::mem::take(&mut self.repairs)
    }

    /// Stops sending until [`restart`](Self::restart), for example because nobody leads the partition.
    pub(super) fn park(&mut self) {
        debug_assert_eq!(self.in_flight, 0);
        self.phase = Phase::Parked;
    }

    /// One more attempt to repair failed.
    pub(super) fn repair_failed(&mut self, error: Error) {
        self.failures = self.failures.saturating_add(1);
        self.last_error = Some(error);
    }

    /// Begins a new sequence under a new id. Returns the batches of which nobody can say whether they were written
    /// under the old one: sending them anew could append them twice.
    pub(super) fn renew(&mut self, identity: ProducerIdentity) -> Vec<Decided> {
        let mut given_up = Vec::new();
        let reason = || self.last_error.as_ref().map_or_else(String::new, Error::to_string);
        let unknown = Error::OutcomeUnknown { reason: reason() };
        for mut queued in std::mem::take(&mut self.queue) {
            if queued.batch.uncertain && queued.batch.sequence.is_some() {
                given_up.push((queued.batch, Err(unknown.clone())));
            } else {
                queued.batch.sequence = None;
                self.queue.push_back(queued);
            }
        }
        self.identity = Some(identity);
        self.next_sequence = 0;
        self.gap = None;
        given_up
    }

    /// Lets a parked lane flow: its batches are sent from the oldest on.
    pub(super) fn restart(&mut self) {
        debug_assert_eq!(self.in_flight, 0);
        if let Some(gap) = self.gap.take() {
            for queued in &mut self.queue {
                let sequence = queued.batch.sequence;
                queued.batch.sequence = sequence.filter(|sequence| is_before(sequence.base_sequence, gap));
            }
            self.next_sequence = gap;
        }
        self.phase = Phase::Flowing;
    }

    /// Gives up everything, because `error` cannot be mended.
    pub(super) fn fail_all(&mut self, error: &Error) -> Vec<Decided> {
        self.in_flight = 0;
        let decided: Vec<Decided> = std::mem::take(&mut self.queue)
            .into_iter()
            .map(|queued| {
                let error = if queued.batch.uncertain {
                    Error::OutcomeUnknown { reason: error.to_string() }
                } else {
                    error.clone()
                };
                (queued.batch, Err(error))
            })
            .collect();
        for (batch, _) in &decided {
            self.close_gap(batch);
        }
        self.settle();
        decided
    }

    /// Gives up the batches that are older than `timeout`. Says whether one of them was in flight, so that its
    /// stream has not answered for that long.
    pub(super) fn expire(&mut self, now: Instant, timeout: Duration) -> (Vec<Decided>, bool) {
        let mut decided = Vec::new();
        let mut silent = false;
        while let Some(queued) = self.queue.front() {
            if now.duration_since(queued.batch.created) < timeout {
                break;
            }
            let Some(mut queued) = self.queue.pop_front() else { break };
            if queued.flight.is_some() {
                self.in_flight -= 1;
                queued.batch.uncertain = true;
                silent = true;
            }
            let error = Error::DeliveryTimeout {
                after: timeout,
                may_have_been_written: queued.batch.uncertain,
                last: self.last_error.clone().map(Box::new),
            };
            self.close_gap(&queued.batch);
            decided.push((queued.batch, Err(error)));
        }
        self.settle();
        (decided, silent)
    }

    fn find(&self, correlation: u32) -> Option<usize> {
        let answers = |queued: &Queued| queued.flight.is_some_and(|flight| flight.correlation == correlation);
        self.queue.iter().position(answers)
    }
}

/// Whether sequence `a` comes before `b`; they wrap around.
fn is_before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 31
}
