//! Connections: accepting, limiting, understanding and ending them.
//!
//! Both ports share one accept loop. A [`Protocol`] says what happens on a connection once it is accepted; it runs in
//! a task of its own. The number of connections is bounded, a connection must show within a deadline that it speaks
//! the port's protocol, and dead peers are found by pings, so that a flood of connections costs bounded memory.

mod grpc;
mod http;
mod io;
mod preface;

use std::future::Future;
use std::io as std_io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub(super) use self::grpc::Grpc;
pub(super) use self::http::Http;
pub(super) use self::io::Connection;
use super::load::Load;
use crate::task::{Criticality, Tasks};
use crate::telemetry::Metrics;
use crate::telemetry::NetworkError;

/// Connections that the kernel holds ready while the accept loop is busy.
const BACKLOG: u32 = 4_096;
/// Pause after a failed accept, which is mostly a lack of file descriptors that others must give back first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Refused connections that are answered at a time. Further ones are closed without a word.
const REFUSALS_MAX: usize = 64;
/// How often it is logged that connections cannot be accepted. All are counted.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What a port does with its connections.
pub(super) trait Protocol: Send + Sync + 'static {
    /// Name of the task of one connection.
    const TASK: &'static str;

    /// Serves the connection until its end.
    fn serve(&self, connection: Connection, stop: Stop) -> impl Future<Output = ()> + Send;

    /// Tells the client that there are too many connections.
    fn refuse(&self, connection: Connection, connections_max: usize) -> impl Future<Output = ()> + Send;
}

/// How connections are told to end.
#[derive(Clone, Default)]
pub(super) struct Stop {
    /// Finish what is in flight, begin nothing new.
    pub(super) drain: CancellationToken,
    /// End now.
    pub(super) kill: CancellationToken,
}

/// Serves a connection until its end. Told to drain, it `finish`es what is in flight; told to end now, it is dropped and
/// there is no result.
async fn until_stopped<C: Future>(
    connection: C,
    finish: impl FnOnce(Pin<&mut C>),
    stop: &Stop,
) -> Option<C::Output> {
    let mut connection = pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return Some(result),
        () = stop.drain.cancelled() => {}
    }
    finish(connection.as_mut());
    stop.kill.run_until_cancelled(connection).await
}

/// Opens a listening socket.
///
/// # Errors
/// If the address is taken, not this machine's, or not permitted.
pub(super) fn listen(address: SocketAddr) -> std_io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A broker that restarts must not wait for the connections of its predecessor to leave TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// One port.
pub(super) struct Port<P> {
    protocol: P,
    metrics: Metrics,
    load: Load,
    connections_max: usize,
    connections: AtomicUsize,
    refusals: AtomicUsize,
}

impl<P: Protocol> Port<P> {
    pub(super) fn new(protocol: P, connections_max: usize, metrics: Metrics, load: Load) -> Arc<Self> {
        Arc::new(Port {
            protocol,
            metrics,
            load,
            connections_max,
            connections: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
        })
    }

    /// Accepts connections until it is told to drain.
    pub(super) async fn accept(self: Arc<Self>, listener: TcpListener, tasks: Tasks, stop: Stop) {
        let mut told: Option<tokio::time::Instant> = None;
        loop {
            let accepted = tokio::select! {
                () = stop.drain.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer, &tasks, &stop),
                Err(error) => {
                    self.metrics.network.failed(NetworkError::Accept);
                    if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
                        told = Some(tokio::time::Instant::now());
                        warn!(%error, "a connection could not be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, tasks: &Tasks, stop: &Stop) {
        // Without this a small answer waits for the acknowledgement of the one before it, up to 40 ms.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "the client disconnected before it was served");
            return;
        }
        self.metrics.network.connected();
        let connection = Connection::new(stream, peer, self.metrics.clone());
        match Place::take(self, Pool::Served) {
            Some(place) => {
                let stop = stop.clone();
                tasks.spawn(P::TASK, Criticality::BestEffort, async move {
                    let _open = place.port.load.connection();
                    place.port.protocol.serve(connection, stop).await;
                });
            }
            None => self.refuse(connection, tasks, stop),
        }
    }

    fn refuse(self: &Arc<Self>, connection: Connection, tasks: &Tasks, stop: &Stop) {
        self.metrics.network.failed(NetworkError::ConnectionLimit);
        let Some(place) = Place::take(self, Pool::Refused) else { return };
        let kill = stop.kill.clone();
        tasks.spawn("refusal", Criticality::BestEffort, async move {
            let most = place.port.connections_max;
            kill.run_until_cancelled(place.port.protocol.refuse(connection, most)).await;
        });
    }
}

#[derive(Clone, Copy)]
enum Pool {
    Served,
    Refused,
}

impl Pool {
    fn of<P>(self, port: &Port<P>) -> (&AtomicUsize, usize) {
        match self {
            Pool::Served => (&port.connections, port.connections_max),
            Pool::Refused => (&port.refusals, REFUSALS_MAX),
        }
    }
}

/// One of a port's places for connections, given back when dropped.
struct Place<P> {
    port: Arc<Port<P>>,
    pool: Pool,
}

impl<P> Place<P> {
    fn take(port: &Arc<Port<P>>, pool: Pool) -> Option<Self> {
        let (taken, most) = pool.of(port);
        taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| (taken < most).then_some(taken + 1))
            .ok()
            .map(|_| Place { port: Arc::clone(port), pool })
    }
}

impl<P> Drop for Place<P> {
    fn drop(&mut self) {
        self.pool.of(&self.port).0.fetch_sub(1, Ordering::AcqRel);
    }
}
