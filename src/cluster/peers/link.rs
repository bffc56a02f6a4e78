//! The connection to one other broker: requests of all groups on one stream, and the calls beside it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, info, warn};

use super::{Hub, codec};
use crate::proto::internal::peer_frame::Body;
use crate::proto::internal::peer_service_client::PeerServiceClient;
use crate::proto::internal::{PeerFrame, PeerFrames};
use crate::raft::message::{Request, Response};
use crate::raft::{NodeId, TransportError};
use crate::storage::GroupId;

/// Requests that may wait to be sent to a broker. A full queue loses further ones, as a network would.
const QUEUE_FRAMES: usize = 4_096;
/// Bytes of entries and snapshots that may wait to be sent to a broker. What has none, such as a vote, waits for no room.
const QUEUE_BYTES: usize = 64 << 20;
/// Frames that travel in one message, at most.
const FRAMES_PER_MESSAGE: usize = 256;
/// Bytes of entries after which a message is closed.
pub(super) const MESSAGE_BYTES: usize = 1 << 20;
/// Messages that may wait for the connection.
const MESSAGES_AHEAD: usize = 4;
/// How long a connection attempt may take, and how long to wait after one that failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RECONNECT: Duration = Duration::from_millis(200);
/// A connection that is silent for so long is asked for a sign of life, and given up when none comes.
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest message between brokers: a log entry of the largest batch, and some.
pub(super) const MESSAGE_BYTES_MAX: usize = 256 << 20;
const WINDOW_BYTES: u32 = 4 << 20;
const FRAME_BYTES_MAX: u32 = 1 << 20;

type Answer = oneshot::Sender<Result<Response, TransportError>>;

/// A request on its way to the connection.
struct Outgoing {
    group: GroupId,
    request: Request,
    answer: Answer,
    /// Given back when the request is in a message.
    _room: Option<OwnedSemaphorePermit>,
}

/// See the module. The connection is made, and made anew, by a task of the link's own.
pub(super) struct Link {
    node: NodeId,
    queue: mpsc::Sender<Outgoing>,
    room: Arc<Semaphore>,
    channel: Channel,
    up: Arc<AtomicBool>,
    ready: AtomicBool,
}

impl Link {
    /// A link to `node` at `address`, `host:port`.
    ///
    /// # Errors
    /// The address is none.
    pub(super) fn open(hub: &Hub, node: NodeId, address: &str) -> Result<Arc<Link>, String> {
        let channel = endpoint(address)?.connect_lazy();
        let (queue, requests) = mpsc::channel(QUEUE_FRAMES);
        let up = Arc::new(AtomicBool::new(false));
        let ready = AtomicBool::new(false);
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        let link = Arc::new(Link { node, queue, room, channel: channel.clone(), up: Arc::clone(&up), ready });
        let runner = Runner { hub: hub.clone(), node, address: address.to_owned(), channel, requests, up };
        hub.spawn("peer link", runner.run());
        Ok(link)
    }

    /// Whether requests get through.
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Whether the broker serves clients, as it says.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// The connection, for calls beside the stream.
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Sends a request and waits for its answer. Waits for room if it carries much; who gives up before it is sent has
    /// not sent it.
    pub(super) async fn call(&self, group: GroupId, request: Request) -> Result<Response, TransportError> {
        let node = self.node;
        let unreachable = |reason: &str| TransportError::Unreachable { node, reason: reason.to_owned() };
        let bytes = request.payload_bytes().min(QUEUE_BYTES) as u32;
        let room = match bytes {
            0 => None,
            bytes => Arc::clone(&self.room).acquire_many_owned(bytes).await.ok(),
        };
        let (answer, answered) = oneshot::channel();
        self.queue
            .try_send(Outgoing { group, request, answer, _room: room })
            .map_err(|_| unreachable("too many requests wait for it"))?;
        answered.await.unwrap_or_else(|_| Err(unreachable("the connection broke")))
    }
}

/// How a broker's address is connected to.
///
/// # Errors
/// It is no address.
pub(super) fn endpoint(address: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| format!("{address} is not an address; write host:port"))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX))
}

/// The link's task.
struct Runner {
    hub: Hub,
    node: NodeId,
    address: String,
    channel: Channel,
    requests: mpsc::Receiver<Outgoing>,
    up: Arc<AtomicBool>,
}

impl Runner {
    async fn run(mut self) {
        let mut told = false;
        loop {
            let reason = match self.connect().await {
                Ok(()) => {
                    told = false;
                    "the connection broke".to_owned()
                }
                Err(reason) => reason,
            };
            self.up.store(false, Ordering::Relaxed);
            self.hub.peer_changed();
            if self.requests.is_closed() {
                return;
            }
            if !told {
                told = true;
                warn!(name: "peer.unreachable", peer = self.node, address = self.address, reason, "broker {} is not reached", self.node);
            }
            let retry = tokio::time::sleep(RECONNECT);
            tokio::pin!(retry);
            // Until then nothing gets through, and nobody should wait to learn it.
            loop {
                tokio::select! {
                    () = &mut retry => break,
                    lost = self.requests.recv() => match lost {
                        Some(lost) => {
                            let lost_answer = TransportError::Unreachable { node: self.node, reason: reason.clone() };
                            let _ = lost.answer.send(Err(lost_answer));
                        }
                        None => return,
                    },
                }
            }
        }
    }

    /// Carries requests until the connection breaks or the link is dropped.
    async fn connect(&mut self) -> Result<(), String> {
        let (outgoing, messages) = mpsc::channel(MESSAGES_AHEAD);
        let mut client = PeerServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let request = self.hub.introduce(ReceiverStream::new(messages));
        let opening = tokio::time::timeout(CONNECT_TIMEOUT + KEEPALIVE, client.exchange(request));
        let response = match opening.await {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => return Err(reason_of(&status)),
            Err(_) => return Err("it does not answer".to_owned()),
        };
        let mut answers = response.into_inner();
        self.up.store(true, Ordering::Relaxed);
        self.hub.peer_changed();
        info!(name: "peer.connected", peer = self.node, address = self.address, "connected to broker {}", self.node);
        let mut pending: HashMap<u64, Answer> = HashMap::new();
        let mut next_call = 0_u64;
        let mut gathered = Vec::new();
        let broken = loop {
            tokio::select! {
                biased;
                message = answers.next() => match message {
                    Some(Ok(message)) => {
                        for frame in message.frames {
                            if let Some(answer) = pending.remove(&frame.call) {
                                let _ = answer.send(self.response(frame.body));
                            }
                        }
                    }
                    Some(Err(status)) => break reason_of(&status),
                    None => break "it ended the stream".to_owned(),
                },
                permit = outgoing.reserve(), if !gathered.is_empty() => {
                    let Ok(permit) = permit else { break "the connection broke".to_owned() };
                    let mut frames = Vec::new();
                    let mut bytes = 0;
                    let mut rest = gathered.drain(..).peekable();
                    while let Some(Outgoing { group, request, answer, .. }) =
                        rest.next_if(|_| bytes < MESSAGE_BYTES && frames.len() < FRAMES_PER_MESSAGE)
                    {
                        if answer.is_closed() {
                            continue;
                        }
                        bytes += request.payload_bytes();
                        next_call += 1;
                        pending.insert(next_call, answer);
                        let body = Some(codec::request_to_wire(request));
                        frames.push(PeerFrame { call: next_call, group: group.0, body });
                    }
                    let rest: Vec<Outgoing> = rest.collect();
                    gathered = rest;
                    if !frames.is_empty() {
                        permit.send(PeerFrames { frames });
                    }
                    // Requests whose askers gave up are not waited for any longer.
                    if pending.len() > QUEUE_FRAMES {
                        pending.retain(|_, answer| !answer.is_closed());
                    }
                }
                count = self.requests.recv_many(&mut gathered, FRAMES_PER_MESSAGE), if gathered.is_empty() => {
                    if count == 0 {
                        return Ok(());
                    }
                }
            }
        };
        debug!(peer = self.node, reason = broken, "the stream to a broker ended");
        for answer in pending.into_values() {
            // It may have arrived, and been acted on.
            let _ = answer.send(Err(TransportError::Failed { node: self.node, reason: broken.clone() }));
        }
        for lost in gathered {
            let answer = TransportError::Unreachable { node: self.node, reason: broken.clone() };
            let _ = lost.answer.send(Err(answer));
        }
        Ok(())
    }

    fn response(&self, body: Option<Body>) -> Result<Response, TransportError> {
        let failed = |reason: String| TransportError::Failed { node: self.node, reason };
        match body {
            Some(Body::Failed(reason)) => Err(failed(reason)),
            Some(Body::Absent(_)) => {
                let reason = "it has no replica of the group".to_owned();
                Err(TransportError::Unreachable { node: self.node, reason })
            }
            Some(body) => codec::response_from_wire(body)
                .ok_or_else(|| failed("it answered with a question".to_owned())),
            None => Err(failed("its answer is empty".to_owned())),
        }
    }
}

/// Whether a call failed because there was no connection, so that the other broker has never heard of it. Of a call that
/// failed in another way nobody knows.
pub fn never_sent(status: &tonic::Status) -> bool {
    use std::error::Error as _;
    let mut source = status.source();
    while let Some(cause) = source {
        if cause.is::<tonic::ConnectError>() {
            return true;
        }
        source = cause.source();
    }
    false
}

/// The text of a status, with the cause that tonic hides behind `transport error`.
pub(super) fn reason_of(status: &tonic::Status) -> String {
    use std::error::Error as _;
    let mut reason = status.message().to_owned();
    let mut source = status.source();
    while let Some(cause) = source {
        reason = cause.to_string();
        source = cause.source();
    }
    reason
}
