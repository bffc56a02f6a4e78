//! The task of a producer: moves batches from the buffers through the lanes into the pipes, and outcomes back.
//!
//! Mending what keeps a lane from sending is in [`repair`].

mod repair;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesUnordered, SelectAll, StreamExt};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::buffer::{Batch, Buffer};
use super::delivery::Committed;
use super::lane::{Decided, Lane, Outgoing, Repairs};
use super::pipe::{News, Pipe};
use super::topics::Shared;
use crate::client::routing::{Route, Router};
use crate::client::telemetry::WireContext;
use crate::client::{Error, ProducerIdentity};
use crate::proto::v1;
use crate::proto::v1::produce_result::Outcome;

/// Index of a lane; also the upper half of its correlation ids.
type LaneId = u32;

/// How often batches are looked over for their delivery timeout, and routing for its age, at the latest.
const SWEEP_MAX: Duration = Duration::from_secs(1);
/// And at the earliest.
const SWEEP_MIN: Duration = Duration::from_millis(5);

/// A lane with what the driver knows about it.
struct Slot {
    buffer: Arc<Buffer>,
    lane: Lane,
    /// Who leads the partition, as far as known.
    broker: Option<u64>,
    /// Whether it is in its outlet's queue.
    queued: bool,
    /// Whether the open batch is to be sent although it is not full.
    due: bool,
    /// When `due` will be set.
    lingers_until: Option<Instant>,
    /// What has to happen before the lane restarts.
    repairs: Repairs,
    stage: Stage,
}

/// What is under way for a parked lane. At most one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// Its repair is due at some time.
    Waiting,
    /// A call for it is under way.
    Calling,
}

/// What leads to one broker.
#[derive(Default)]
struct Outlet {
    pipe: Option<Pipe>,
    /// Tells the news of this pipe from those of an earlier one.
    generation: u64,
    /// Lanes that may have something to send, in turn.
    queue: VecDeque<LaneId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Linger(LaneId),
    Repair(LaneId),
}

/// The end of a call that the driver began.
enum Answer {
    Routed { topic: Arc<str>, result: Result<Arc<Route>, Error> },
    Identified { lane: LaneId, result: Result<ProducerIdentity, Error> },
}

struct PipeNews {
    broker: u64,
    generation: u64,
    news: News,
}

/// The task of a producer.
pub(super) struct Driver {
    shared: Arc<Shared>,
    router: Arc<Router>,
    identity: Option<ProducerIdentity>,
    slots: Vec<Slot>,
    by_partition: HashMap<(Arc<str>, u32), LaneId>,
    outlets: HashMap<u64, Outlet>,
    generations: u64,
    news: SelectAll<BoxStream<'static, PipeNews>>,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Topics whose routing is being asked for.
    routing: HashSet<Arc<str>>,
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    next_sweep: Instant,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        router: Arc<Router>,
        identity: Option<ProducerIdentity>,
    ) -> Driver {
        Driver {
            next_sweep: Instant::now() + sweep_interval(&shared),
            shared,
            router,
            identity,
            slots: Vec::new(),
            by_partition: HashMap::new(),
            outlets: HashMap::new(),
            generations: 0,
            news: SelectAll::new(),
            answers: FuturesUnordered::new(),
            routing: HashSet::new(),
            timers: BinaryHeap::new(),
        }
    }

    /// Runs until the producer is closed and everything is delivered or given up.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut timer = Box::pin(sleep_until(self.next_sweep));
        loop {
            // Asked once a round: only a round that knew of the end has taken everything from the buffers.
            let is_closing = self.shared.is_closing();
            self.collect(is_closing);
            self.pump();
            if is_closing && self.has_nothing_left() {
                return;
            }
            let wake_at = self.next_wake();
            if timer.deadline() != wake_at {
                timer.as_mut().reset(wake_at);
            }
            tokio::select! {
                () = shared.wake.notified() => {}
                Some(news) = self.news.next() => {
                    self.hear(news);
                    // What is there already costs no further round.
                    while let Some(Some(news)) = self.news.next().now_or_never() {
                        self.hear(news);
                    }
                }
                Some(answer) = self.answers.next() => self.answered(answer),
                () = &mut timer => self.tick(Instant::now()),
            }
        }
    }

    // Taking from the buffers.

    fn collect(&mut self, is_closing: bool) {
        let inbox = self.shared.take_inbox();
        for buffer in inbox.announced {
            let lane = self.lane_of(&buffer);
            self.collect_from(lane);
        }
        for latch in inbox.latches {
            self.flush(Some(latch));
        }
        if is_closing {
            for topic in self.shared.topics() {
                topic.buffers().iter().for_each(|buffer| buffer.close());
            }
            self.flush(None);
        }
    }

    fn collect_from(&mut self, id: LaneId) {
        let linger = self.shared.config.linger;
        let slot = &mut self.slots[id as usize];
        let found = slot.buffer.take_full();
        accept(&mut slot.lane, found.full);
        match found.open_since {
            Some(since) if since + linger <= Instant::now() => slot.due = true,
            Some(since) if slot.lingers_until != Some(since + linger) => {
                slot.lingers_until = Some(since + linger);
                self.timers.push(Reverse((since + linger, Timer::Linger(id))));
            }
            _ => {}
        }
        self.after_change(id);
    }

    /// Takes all batches, also open ones, and attaches `latch` to every batch that is not done.
    fn flush(&mut self, latch: Option<oneshot::Sender<()>>) {
        let latch = latch.map(Arc::new);
        for topic in self.shared.topics() {
            for buffer in topic.buffers().iter() {
                let batches = buffer.take_all(topic.compression(&self.shared));
                if !batches.is_empty() {
                    let lane = self.lane_of(buffer);
                    accept(&mut self.slots[lane as usize].lane, batches);
                    topic.move_on(buffer.partition);
                    self.after_change(lane);
                }
            }
        }
        if let Some(latch) = latch {
            for batch in self.slots.iter_mut().flat_map(|slot| slot.lane.batches_mut()) {
                batch.latches.push(Arc::clone(&latch));
            }
        }
    }

    fn lane_of(&mut self, buffer: &Arc<Buffer>) -> LaneId {
        let key = (Arc::clone(&buffer.topic), buffer.partition);
        if let Some(id) = self.by_partition.get(&key) {
            return *id;
        }
        let id = LaneId::try_from(self.slots.len()).expect("2^32 partitions do not fit into memory");
        let broker = self.router.cached(&buffer.topic).and_then(|route| route.leader(buffer.partition));
        self.slots.push(Slot {
            buffer: Arc::clone(buffer),
            lane: Lane::new(self.identity),
            broker,
            queued: false,
            due: false,
            lingers_until: None,
            repairs: Repairs::default(),
            stage: Stage::Idle,
        });
        self.by_partition.insert(key, id);
        if broker.is_none() {
            let slot = &mut self.slots[id as usize];
            slot.lane.park();
            slot.repairs.reroute = true;
        }
        id
    }

    // Sending.

    /// Lets a lane take part if it may have something to send.
    fn enqueue(&mut self, id: LaneId) {
        let slot = &mut self.slots[id as usize];
        let Some(broker) = slot.broker else { return };
        if !slot.queued && (slot.lane.has_next() || (slot.due && slot.lane.is_flowing())) {
            slot.queued = true;
            self.outlets.entry(broker).or_default().queue.push_back(id);
        }
    }

    fn pump(&mut self) {
        let brokers: Vec<u64> =
            self.outlets.iter().filter(|(_, outlet)| !outlet.queue.is_empty()).map(|(id, _)| *id).collect();
        for broker in brokers {
            self.pump_into(broker);
        }
    }

    /// Sends batches of the waiting lanes in turn until the window is full.
    fn pump_into(&mut self, broker: u64) {
        if self.outlets.get(&broker).is_none_or(|outlet| outlet.pipe.is_none()) {
            self.open_pipe(broker);
        }
        let Some(Outlet { pipe: Some(pipe), queue, .. }) = self.outlets.get_mut(&broker) else { return };
        let now = Instant::now();
        while pipe.has_room() {
            let Some(id) = queue.pop_front() else { break };
            let slot = &mut self.slots[id as usize];
            slot.queued = false;
            if slot.broker != Some(broker) {
                // It moved to another broker while it waited, and waits there.
                continue;
            }
            if !slot.lane.has_next() && slot.due {
                slot.take_open(&self.shared);
            }
            let Some(outgoing) = slot.lane.next(pipe.position(), now) else { continue };
            pipe.send(request(id, &slot.buffer, outgoing));
            if slot.lane.has_next() || slot.due {
                slot.queued = true;
                queue.push_back(id);
            }
        }
    }

    fn open_pipe(&mut self, broker: u64) {
        self.generations += 1;
        let generation = self.generations;
        let (pipe, news) = Pipe::open(&self.router, broker, self.shared.config.max_in_flight);
        self.news.push(news.map(move |news| PipeNews { broker, generation, news }).boxed());
        let outlet = self.outlets.entry(broker).or_default();
        outlet.pipe = Some(pipe);
        outlet.generation = generation;
    }

    // Hearing from the brokers.

    fn hear(&mut self, PipeNews { broker, generation, news }: PipeNews) {
        let Some(outlet) = self.outlets.get_mut(&broker) else { return };
        if outlet.generation != generation {
            return;
        }
        match news {
            News::Results(results) => {
                if let Some(pipe) = &mut outlet.pipe {
                    pipe.answered(results.len());
                }
                results.into_iter().for_each(|result| self.result(result));
            }
            News::Closed { taken, error } => self.pipe_lost(broker, taken, &error),
        }
    }

    fn result(&mut self, result: v1::ProduceResult) {
        let id = (result.correlation_id >> 32) as LaneId;
        // The lower half is what the lane chose.
        #[allow(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
        let correlation = result.correlation_id as u32;
        let Some(slot) = self.slots.get_mut(id as usize) else { return };
        match result.outcome {
            Some(Outcome::Committed(response)) => {
                if let Some(batch) = slot.lane.committed(correlation) {
                    batch.finish(Ok(Committed {
                        base_offset: response.base_offset,
                        append_time_ms: response.append_time_ms,
                    }));
                }
            }
            Some(Outcome::Error(error)) => {
                slot.lane.refused(correlation, error.into()).into_iter().for_each(decide);
            }
            None => {
                let what = "a produce result has no outcome".into();
                let error = Error::InvalidResponse { what };
                slot.lane.refused(correlation, error).into_iter().for_each(decide);
            }
        }
        self.after_change(id);
    }

    fn pipe_lost(&mut self, broker: u64, taken: u64, error: &Error) {
        let was_open = self.outlets.get_mut(&broker).is_some_and(|outlet| outlet.pipe.take().is_some());
        if was_open {
            tracing::warn!(broker, %error, "produce stream lost; unacknowledged batches are sent again");
            self.router.suspect_broker(broker);
        }
        for id in self.lane_ids() {
            let slot = &mut self.slots[id as usize];
            if slot.broker == Some(broker) {
                slot.lane.lost(taken, error.clone());
                self.after_change(id);
            }
        }
    }

    /// Looks after a lane whose batches or phase may have changed.
    fn after_change(&mut self, id: LaneId) {
        if self.slots[id as usize].lane.is_parked() {
            self.schedule_repair(id);
        } else {
            self.enqueue(id);
        }
    }

    // The passing of time.

    fn tick(&mut self, now: Instant) {
        while let Some(Reverse((at, timer))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::Linger(id) => {
                    self.slots[id as usize].lingers_until = None;
                    self.collect_from(id);
                }
                Timer::Repair(id) => {
                    self.slots[id as usize].stage = Stage::Idle;
                    self.repair(id);
                }
            }
        }
        if self.next_sweep <= now {
            self.sweep(now);
            self.next_sweep = now + sweep_interval(&self.shared);
        }
    }

    /// Gives up what is too old, and asks for routing that is too old.
    fn sweep(&mut self, now: Instant) {
        let timeout = self.shared.config.delivery_timeout;
        let mut silent = HashSet::new();
        for id in self.lane_ids() {
            let slot = &mut self.slots[id as usize];
            if slot.buffer.open_since().is_some_and(|since| now.duration_since(since) >= timeout) {
                slot.take_open(&self.shared);
            }
            let (decided, in_flight) = slot.lane.expire(now, timeout);
            if decided.is_empty() {
                continue;
            }
            silent.extend(slot.broker.filter(|_| in_flight));
            decided.into_iter().for_each(decide);
            self.after_change(id);
        }
        for broker in silent {
            // A stream that leaves a batch unanswered for so long is dead, whatever its connection says. Its requests
            // count as taken: dropping it takes none of them back.
            let error = Error::Timeout { from: self.router.address(broker).ok(), after: timeout };
            self.pipe_lost(broker, u64::MAX, &error);
        }
        let age_max = self.router.config().routing_age_max;
        for topic in self.shared.topics() {
            let old = |route: Arc<Route>| route.learned.elapsed() >= age_max;
            // One that is not known any more was deleted; it is asked for again when something is sent to it.
            if self.router.cached(&topic.name).is_some_and(old) {
                self.reroute(Arc::clone(&topic.name));
            }
        }
    }

    fn next_wake(&self) -> Instant {
        match self.timers.peek() {
            Some(Reverse((at, _))) => self.next_sweep.min(*at),
            None => self.next_sweep,
        }
    }

    fn has_nothing_left(&self) -> bool {
        self.slots.iter().all(|slot| slot.lane.is_empty())
    }

    fn lane_ids(&self) -> impl Iterator<Item = LaneId> + use<> {
        0..LaneId::try_from(self.slots.len()).unwrap_or(LaneId::MAX)
    }
}

impl Drop for Driver {
    /// Without a driver nothing is delivered any more: what is buffered is dropped, which tells everybody who waits.
    fn drop(&mut self) {
        for topic in self.shared.topics() {
            for buffer in topic.buffers().iter() {
                buffer.close();
                drop(buffer.take_all(topic.compression(&self.shared)));
            }
        }
        drop(self.shared.take_inbox());
    }
}

impl Slot {
    /// Takes the open batch over although it is not full.
    fn take_open(&mut self, shared: &Shared) {
        self.due = false;
        let Some(topic) = shared.topic(&self.buffer.topic) else { return };
        accept(&mut self.lane, self.buffer.take_all(topic.compression(shared)));
        topic.move_on(self.buffer.partition);
    }
}

/// Puts batches into a lane, except those that cannot be sent at all.
fn accept(lane: &mut Lane, batches: VecDeque<Batch>) {
    for mut batch in batches {
        match batch.broken.take() {
            None => lane.push(batch),
            Some(error) => batch.finish(Err(error)),
        }
    }
}

fn decide((batch, result): Decided) {
    batch.finish(result);
}

fn request(id: LaneId, buffer: &Buffer, outgoing: Outgoing) -> v1::ProduceStreamRequest {
    let context = outgoing.trace.as_ref().map(WireContext::of);
    let (traceparent, tracestate) =
        context.map(|wire| (wire.traceparent, wire.tracestate)).unwrap_or_default();
    v1::ProduceStreamRequest {
        correlation_id: u64::from(id) << 32 | u64::from(outgoing.correlation),
        topic: buffer.topic.to_string(),
        partition: buffer.partition,
        batch: outgoing.payload,
        producer: outgoing.sequence.map(|sequence| v1::ProducerSequence {
            producer_id: sequence.producer_id,
            epoch: sequence.epoch,
            base_sequence: sequence.base_sequence,
        }),
        traceparent,
        tracestate,
    }
}

fn sweep_interval(shared: &Shared) -> Duration {
    (shared.config.delivery_timeout / 20).clamp(SWEEP_MIN, SWEEP_MAX)
}
