//! The other brokers of the cluster: connections to them, and what they ask of this one.
//!
//! | file | idea |
//! |---|---|
//! | [`link`] | the connection to one broker: raft messages of all groups on one stream |
//! | [`service`] | the receiving end, `streambus.internal.v1.PeerService` on the gRPC port |
//! | [`client`] | calls of partitions and of the control group to their leaders elsewhere |
//! | [`reports`] | what leaders tell the other brokers of their partitions |
//! | [`codec`], [`error`] | how messages and errors travel |
//! | `fuzzing` | for the fuzz targets: doors to these two |
//!
//! A [`Hub`] exists before the store is open, so that the port can serve peers from the beginning. Invariants: what
//! comes from a broker of another cluster is refused. Every queue is bounded: what does not fit is lost, as on a network,
//! and raft sends it again.

mod client;
mod codec;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod link;
mod reports;
mod service;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use opentelemetry::KeyValue;
use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use link::Link;

use super::control::Control;
use super::identity::Identity;
use super::partition_ref::DESERTED;
use super::routing::Routing;
use super::words::Words;
use crate::metadata::State;
use crate::proto::internal::peer_service_server::PeerServiceServer;
use crate::raft::message::{Request, Response};
use crate::raft::{Members, NodeId, Replica, SpanIds, Transport, TransportError};
use crate::record::command::Command;
use crate::storage::{self, GroupId, Store};
use crate::task::{Criticality, Tasks};
use crate::telemetry::{Metrics, StorageFailure, TraceIds, Tracer, replication_of};

pub use link::never_sent;
pub use service::{Newcomer, Service};

pub(super) use client::{Unconfirmed, identify, join};

/// The version of what brokers say to each other and of the commands that they agree on. Higher with every release that adds
/// something which older ones would not understand.
pub(super) const PROTOCOL: u32 = 1;
/// Metadata of calls between brokers.
const CLUSTER: &str = "streambus-cluster";
const BROKER: &str = "streambus-broker";

/// A handle of everything about other brokers. Clones share it.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    identity: Identity,
    replicas: RwLock<HashMap<GroupId, Replica>>,
    links: Mutex<BTreeMap<NodeId, Known>>,
    /// Gone once the cluster is closed: what it holds holds the hub.
    serving: RwLock<Option<Arc<Serving>>>,
    changed: watch::Sender<u64>,
    /// Whether this broker serves clients.
    ready: watch::Sender<bool>,
    metrics: Metrics,
    tracer: Tracer,
    tasks: Tasks,
}

/// Where other brokers are, kept in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Book(BTreeMap<NodeId, String>);

impl Book {
    /// The name under which the store keeps it.
    const META: &str = "peers";

    /// Reads it. Blocking.
    ///
    /// # Errors
    /// The store failed.
    pub(super) fn load(store: &Store) -> Result<Self, storage::Error> {
        let text = store.meta_get(Self::META)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // A line that cannot be read is a broker that is not found before there is a leader.
        let entry = |line: &str| {
            let (node, address) = line.split_once(' ')?;
            Some((node.parse().ok()?, address.to_owned()))
        };
        Ok(Book(text.lines().filter_map(entry).collect()))
    }

    /// Writes it. Blocking.
    ///
    /// # Errors
    /// The store failed.
    pub(super) fn save(&self, store: &Store) -> Result<(), storage::Error> {
        let text: String = self.0.iter().map(|(node, address)| format!("{node} {address}\n")).collect();
        store.meta_put(Self::META, text)
    }
}

/// How a broker stands, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// It is not reached.
    Away,
    /// It takes part in its groups, and refuses clients: it starts, or stops.
    NotReady,
    /// It serves clients.
    Ready,
}

/// Another broker.
struct Known {
    address: String,
    link: Arc<Link>,
    /// For calls that clients made here and that go on there.
    forwarding: Channel,
}

/// What calls of other brokers need.
struct Serving {
    control: Control,
    routing: Arc<Routing>,
}

impl Hub {
    /// A hub without peers.
    pub fn new(identity: Identity, metrics: Metrics, tracer: Tracer, tasks: &Tasks) -> Self {
        Hub(Arc::new(Inner {
            identity,
            replicas: RwLock::default(),
            links: Mutex::default(),
            serving: RwLock::default(),
            changed: watch::Sender::new(0),
            ready: watch::Sender::new(false),
            metrics,
            tracer,
            tasks: tasks.child(),
        }))
    }

    /// The service that other brokers call.
    pub fn service(&self) -> PeerServiceServer<Service> {
        PeerServiceServer::new(Service(self.clone()))
            .max_decoding_message_size(link::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(link::MESSAGE_BYTES_MAX)
    }

    /// Lets calls of other brokers reach metadata and partitions.
    pub(super) fn serve(&self, control: Control, routing: Arc<Routing>) {
        let serving = Arc::new(Serving { control, routing });
        *self.0.serving.write().unwrap_or_else(PoisonError::into_inner) = Some(serving);
    }

    /// Connects to the brokers that the metadata names, wherever they are now. If the metadata may be old, brokers that it
    /// does not name are kept.
    pub(super) fn know(&self, state: &State, current: bool) {
        let this = self.0.identity.broker;
        let brokers = state.brokers().filter(|broker| broker.id != this && broker.replaced_by.is_none());
        let wanted: BTreeMap<NodeId, String> =
            brokers.map(|broker| (broker.id.0, broker.grpc_address.clone())).collect();
        self.connect_to(wanted, current);
    }

    /// Connects to brokers where they were when this one last ran: who restarts together with all others must find them
    /// before there is a leader to ask.
    pub(super) fn remember(&self, book: &Book) {
        self.connect_to(book.0.clone(), false);
    }

    /// Where the other brokers are.
    pub(super) fn book(&self) -> Book {
        Book(self.links().iter().map(|(node, known)| (*node, known.address.clone())).collect())
    }

    fn connect_to(&self, wanted: BTreeMap<NodeId, String>, only: bool) {
        let mut links = self.links();
        links.retain(|node, known| match wanted.get(node) {
            Some(address) => *address == known.address,
            None => !only,
        });
        for (node, address) in wanted {
            if links.contains_key(&node) {
                continue;
            }
            match Link::open(self, node, &address) {
                Ok(link) => {
                    reports::follow(self, node, &link);
                    match link::endpoint(&address) {
                        Ok(endpoint) => {
                            let forwarding = endpoint.connect_lazy();
                            links.insert(node, Known { address, link, forwarding });
                        }
                        Err(problem) => tracing::error!(peer = node, problem, "a broker's address is none"),
                    }
                }
                Err(problem) => {
                    tracing::error!(peer = node, address, problem, "a broker's address is none");
                }
            }
        }
        drop(links);
        self.peer_changed();
    }

    /// Every other broker, and whether it is reached.
    pub fn peers(&self) -> Vec<(NodeId, bool)> {
        self.links().iter().map(|(node, known)| (*node, known.link.is_up())).collect()
    }

    /// Names the other brokers that are not reached, and where they were last, as the end of a reason; nothing if there are
    /// none.
    pub fn and_away(&self) -> String {
        let links = self.links();
        let away = links.iter().filter(|(_, known)| !known.link.is_up());
        let away: Vec<String> = away.map(|(node, known)| format!("{node} ({})", known.address)).collect();
        match away.is_empty() {
            true => String::new(),
            false => {
                let Words { brokers, are, .. } = Words::of(&away);
                format!("; {brokers} {are} not reached")
            }
        }
    }

    /// Whether `node` is reached.
    pub fn is_up(&self, node: NodeId) -> bool {
        node == self.0.identity.broker.0 || self.links().get(&node).is_some_and(|known| known.link.is_up())
    }

    /// Who leads a group, as far as this broker knows. A leader that no majority follows any more, or that is not
    /// reached, does not count: a follower knows the last one for as long as there is no other.
    pub fn leader_of(&self, members: &Members) -> Option<NodeId> {
        let leader = members.status().now().leader?;
        let counts = match leader == self.0.identity.broker.0 {
            true => members.quorum_age().is_none_or(|age| age <= DESERTED),
            false => self.is_up(leader),
        };
        counts.then_some(leader)
    }

    /// How `node` stands.
    pub(super) fn standing(&self, node: NodeId) -> Standing {
        let here = node == self.0.identity.broker.0;
        let ready = match here {
            true => *self.0.ready.borrow(),
            false => match self.links().get(&node) {
                Some(known) if known.link.is_up() => known.link.is_ready(),
                _ => return Standing::Away,
            },
        };
        if ready { Standing::Ready } else { Standing::NotReady }
    }

    /// Tells the other brokers whether this one serves clients from now on.
    pub(super) fn set_ready(&self, ready: bool) {
        self.0.ready.send_replace(ready);
    }

    /// A number that changes when a broker is reached or is not any more.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    fn peer_changed(&self) {
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// A connection to `node` that forwarded calls share.
    pub fn channel(&self, node: NodeId) -> Option<Channel> {
        self.links().get(&node).map(|known| known.forwarding.clone())
    }

    /// A new connection to `node`.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn connect(&self, node: NodeId) -> Result<Channel, String> {
        let address = self.links().get(&node).map(|known| known.address.clone());
        let address = address.ok_or("its address is not known")?;
        link::endpoint(&address)?.connect().await.map_err(|error| error.to_string())
    }

    fn serving(&self) -> Option<Arc<Serving>> {
        self.0.serving.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn link(&self, node: NodeId) -> Option<Arc<Link>> {
        self.links().get(&node).map(|known| Arc::clone(&known.link))
    }

    fn replica(&self, group: GroupId) -> Option<Replica> {
        self.0.replicas.read().unwrap_or_else(PoisonError::into_inner).get(&group).cloned()
    }

    /// A call that says who makes it.
    fn introduce<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let Identity { cluster, broker, .. } = &self.0.identity;
        let metadata = request.metadata_mut();
        if let Ok(cluster) = MetadataValue::try_from(cluster.to_string()) {
            metadata.insert(CLUSTER, cluster);
        }
        metadata.insert(BROKER, MetadataValue::from(broker.0));
        request
    }

    fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn_until_stopped(name, Criticality::BestEffort, future);
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<NodeId, Known>> {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all connections.
    pub(super) async fn close(&self, deadline: Duration) {
        self.0.serving.write().unwrap_or_else(PoisonError::into_inner).take();
        self.0.tasks.stop(deadline).await;
        self.links().clear();
    }
}

impl Transport for Hub {
    fn call(
        &self,
        to: NodeId,
        group: GroupId,
        request: Request,
        _patience: Duration,
    ) -> BoxFuture<'static, Result<Response, TransportError>> {
        let link = self.link(to);
        Box::pin(async move {
            match link {
                Some(link) => link.call(group, request).await,
                None => {
                    let reason = "the metadata does not name it yet".to_owned();
                    Err(TransportError::Unreachable { node: to, reason })
                }
            }
        })
    }

    fn attach(&self, replica: Replica) {
        self.0.replicas.write().unwrap_or_else(PoisonError::into_inner).insert(replica.id(), replica);
    }

    fn elected(&self, _: GroupId) {
        self.0.metrics.cluster.elected();
    }

    fn led(&self, group: GroupId) {
        if let Some(serving) = self.serving()
            && let Some(partition) = serving.routing.partition(group)
        {
            partition.ring();
        }
    }

    fn replicated(&self, took: Duration) {
        self.0.metrics.cluster.replicated(took);
    }

    fn spans_of(&self, group: GroupId, command: &Bytes) -> Vec<SpanIds> {
        if !group.is_partition() || !self.0.tracer.is_on() {
            return Vec::new();
        }
        let Ok(Command::Append(append)) = Command::decode(command) else { return Vec::new() };
        let spans = append.frames().filter_map(|frame| frame.header.span);
        spans.map(|span| (span.trace_id, span.span_id)).collect()
    }

    fn stored(&self, group: GroupId, spans: &[SpanIds], received: Instant) {
        let stored = Instant::now();
        for (trace, span) in spans {
            let parent = replication_of(TraceIds { trace: *trace, span: *span });
            self.0.tracer.remote_child(parent, "append", received, stored, || {
                vec![
                    KeyValue::new("streambus.replica.role", "follower"),
                    KeyValue::new("streambus.broker.id", self.0.identity.broker.0 as i64),
                    KeyValue::new("streambus.raft.group", group.to_string()),
                ]
            });
        }
    }

    fn damaged(&self, group: GroupId) {
        // Partitions count their own damage, however it is noticed.
        if !group.is_partition() {
            self.0.metrics.storage.failed(StorageFailure::Corrupt);
        }
    }

    fn installed(&self, _: GroupId) {
        self.0.metrics.cluster.installed();
    }

    fn detach(&self, group: GroupId) {
        self.0.replicas.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }
}
