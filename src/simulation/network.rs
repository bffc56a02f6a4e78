//! The network between the brokers of a run: it delays, loses, repeats and reorders, and is cut.
//!
//! A [`Transport`] must not let messages of one group to one node overtake each other. In most runs this one does, which
//! proves that nothing depends on it but speed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Mutation, World};
use crate::raft::message::{Appended, Request, Response};
use crate::raft::{NodeId, Transport, TransportError};
use crate::storage::GroupId;

/// How badly the network behaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// Messages that are lost, in percent.
    pub(super) lost: u64,
    /// Requests that arrive twice, in percent.
    pub(super) doubled: u64,
    /// Messages that are late, in percent.
    pub(super) late: u64,
    /// How late, at most, in milliseconds.
    pub(super) late_max: u64,
    /// Whether messages from one node to another arrive in the order in which they were sent.
    pub(super) in_order: bool,
}

impl Weather {
    pub(super) const FAIR: Self = Weather { lost: 0, doubled: 0, late: 0, late_max: 1, in_order: true };
}

/// See the module.
pub(super) struct Network(Mutex<Inner>);

struct Inner {
    weather: Weather,
    /// Ways from one node to another on which everything is lost.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// When the last message of a way arrives.
    last: BTreeMap<(NodeId, NodeId), Instant>,
}

impl Network {
    pub(super) fn new(weather: Weather) -> Self {
        Network(Mutex::new(Inner { weather, cut: BTreeSet::new(), last: BTreeMap::new() }))
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Loses everything on these ways, and on no others.
    pub(super) fn cut(&self, ways: BTreeSet<(NodeId, NodeId)>) {
        self.lock().cut = ways;
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.lock().cut.contains(&(from, to))
    }

    /// When a message that is sent now arrives; never if it is lost.
    fn arrival(&self, world: &World, from: NodeId, to: NodeId) -> Option<Instant> {
        let chance = &world.chance;
        let mut inner = self.lock();
        let Weather { lost, late, late_max, in_order, .. } = inner.weather;
        if inner.cut.contains(&(from, to)) || chance.percent(lost) {
            return None;
        }
        let usual = chance.within(1..4);
        let delay = if chance.percent(late) { usual + chance.within(0..late_max) } else { usual };
        let mut at = Instant::now() + Duration::from_millis(delay);
        if in_order {
            let last = inner.last.entry((from, to)).or_insert(at);
            at = at.max(*last);
            *last = at;
        }
        Some(at)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One life of a broker on the network.
pub(super) struct Port {
    pub(super) world: Weak<World>,
    pub(super) node: NodeId,
    pub(super) life: u64,
}

impl Transport for Port {
    fn call(
        &self,
        to: NodeId,
        group: GroupId,
        request: Request,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Response, TransportError>> {
        let (from, life) = (self.node, self.life);
        let Some(world) = self.world.upgrade() else {
            return Box::pin(std::future::pending());
        };
        Box::pin(async move {
            let Some(answer) = send(&world, (from, life), to, group, &request) else {
                let reason = "its broker is not there".to_owned();
                return Err(TransportError::Unreachable { node: to, reason });
            };
            // The run may end meanwhile.
            drop(world);
            let deadline = Instant::now() + patience;
            match timeout_at(deadline, answer).await {
                Ok(Ok(answer)) => answer,
                _ => {
                    // Nobody learns at once that a message is lost.
                    sleep_until(deadline).await;
                    Err(TransportError::Timeout { node: to, after: patience })
                }
            }
        })
    }
}

type Answer = Result<Response, TransportError>;

/// Sends a request. The receiver gets the answer if there is one. Nothing if it is known at once that there is nobody.
fn send(
    world: &Arc<World>,
    (from, life): (NodeId, u64),
    to: NodeId,
    group: GroupId,
    request: &Request,
) -> Option<oneshot::Receiver<Answer>> {
    if world.life_of(from) != Some(life) {
        // A broker that crashed says no more.
        return Some(oneshot::channel().1);
    }
    world.checker.sent(from, group, request);
    if world.life_of(to).is_none() && world.chance.percent(50) {
        return None;
    }
    let copies = if world.chance.percent(world.network.lock().weather.doubled) { 2 } else { 1 };
    let (sender, answer) = oneshot::channel();
    let mut sender = Some(sender);
    for _ in 0..copies {
        let arrival = world.network.arrival(world, from, to);
        world.trace.fold(1, [from << 32 | to, group.0, arrival.map_or(0, |_| kind(request))]);
        if let Some(at) = arrival {
            let delivery = Delivery { from, life, to, group, request: request.clone(), at };
            tokio::spawn(delivery.run(Arc::downgrade(world), sender.take()));
        }
    }
    Some(answer)
}

/// A request on its way.
struct Delivery {
    from: NodeId,
    life: u64,
    to: NodeId,
    group: GroupId,
    request: Request,
    at: Instant,
}

impl Delivery {
    async fn run(self, world: Weak<World>, sender: Option<oneshot::Sender<Answer>>) {
        let Delivery { from, life, to, group, request, at } = self;
        sleep_until(at).await;
        let Some(world) = world.upgrade() else { return };
        if world.network.is_cut(from, to) {
            return;
        }
        let Some((there, replica)) = world.replica(to, group) else { return };
        world.trace.fold(2, [from << 32 | to, group.0, kind(&request)]);
        let answer = match forged(&world, &request) {
            Some(forged) => Ok(forged),
            None => {
                let answer = replica.handle(request.clone()).await;
                answer.map_err(|error| TransportError::Failed { node: to, reason: error.to_string() })
            }
        };
        drop(replica);
        let answer = answer.map(|answer| bent(&world, &request, answer));
        if world.life_of(to) != Some(there) {
            return;
        }
        let Some(at) = world.network.arrival(&world, to, from) else { return };
        sleep_until(at).await;
        if !world.network.is_cut(to, from) && world.life_of(from) == Some(life) {
            world.trace.fold(3, [to << 32 | from, group.0, u64::from(answer.is_ok())]);
            // Whoever asked may have given up.
            let _ = sender.map(|sender| sender.send(answer));
        }
    }
}

/// An answer of somebody else than the receiver, who never sees the request.
fn forged(world: &World, request: &Request) -> Option<Response> {
    match request {
        Request::Append(append)
            if world.plan.mutation == Some(Mutation::ForgeAppends)
                && !append.rows.is_empty()
                && world.chance.percent(50) =>
        {
            Some(Response::Append(Appended::All))
        }
        _ => None,
    }
}

/// An answer that is changed on its way.
fn bent(world: &World, request: &Request, answer: Response) -> Response {
    match (request, answer) {
        (Request::Vote(asked) | Request::PreVote(asked), Response::Vote(mut answer))
            if world.plan.mutation == Some(Mutation::ForgeVotes) =>
        {
            answer.granted = true;
            answer.ballot = asked.ballot;
            Response::Vote(answer)
        }
        (_, answer) => answer,
    }
}

fn kind(request: &Request) -> u64 {
    match request {
        Request::Append(append) => 10 + append.rows.len() as u64,
        Request::Vote(_) => 1,
        Request::PreVote(_) => 2,
        Request::Snapshot(_) => 3,
        Request::TransferLeader(_) => 4,
        Request::Entries(_) => 5,
    }
}
