//! A collector that takes everything and keeps nothing, so that it costs as little as one can.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// A running sink. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Sink {
    address: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

impl Sink {
    pub(super) async fn start() -> anyhow::Result<Sink> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener =
            listener.context("cannot listen for exports; name a collector with --otlp-endpoint")?;
        let address = listener.local_addr()?;
        Ok(Sink { address, _accepting: AbortOnDropHandle::new(tokio::spawn(accept(listener))) })
    }

    /// For `telemetry.otlp.endpoint`.
    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn accept(listener: TcpListener) {
    loop {
        // A connection that fails shows as exports that fail, on the broker that makes them.
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    }
}

async fn serve(stream: TcpStream) {
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service_fn(take));
    let _ = connection.await;
}

/// Every service of OTLP has one call, and the answer to it may be empty. An empty message is also what decodes a
/// request: every field is skipped.
async fn take(request: http::Request<Incoming>) -> Result<http::Response<tonic::body::Body>, Infallible> {
    let mut call = tonic::server::Grpc::new(ProstCodec::<(), ()>::default())
        .apply_max_message_size_config(Some(usize::MAX), None);
    let thanks = tower::service_fn(|_: Request<()>| async { Ok::<_, Status>(Response::new(())) });
    Ok(call.unary(thanks, request).await)
}
