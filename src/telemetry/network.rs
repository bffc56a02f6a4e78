//! Connections and calls.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use opentelemetry::KeyValue;
use tonic::Code;

use super::catalog;
use super::instruments::{Count, Counts, Distribution, Distributions, Instruments, label};
use super::trace::{code_name, is_server_error};
use super::traceparent::TraceIds;

label! {
    /// Why a connection was refused, broken or not understood.
    NetworkError, "kind" {
        /// The peer broke the protocol.
        Protocol = "protocol",
        /// HTTP/1 on the gRPC port.
        HttpOnGrpcPort = "http_on_grpc_port",
        /// The peer connected and then said nothing in time.
        HandshakeTimeout = "handshake_timeout",
        /// More connections than allowed.
        ConnectionLimit = "connection_limit",
        /// The peer vanished in the middle of something.
        Reset = "reset",
        /// A message larger than allowed.
        Oversized = "oversized",
        /// The operating system refused a new connection.
        Accept = "accept",
        /// The peer stopped answering keep-alive probes.
        KeepaliveTimeout = "keepalive_timeout",
        /// A message began and did not come in full, or an answer was not read.
        Stalled = "stalled",
    }
}

label! {
    /// What was spoken.
    Protocol, "protocol" {
        /// gRPC, unary or stream.
        Grpc = "grpc",
        /// The HTTP endpoints.
        Http = "http",
    }
}

label! {
    /// How a request ended.
    Outcome, "outcome" {
        /// As asked.
        Ok = "ok",
        /// The request could not be served and the client has to change something.
        ClientError = "client_error",
        /// The broker failed.
        ServerError = "server_error",
    }
}

impl Outcome {
    /// How a call with this status ended, by the semantic conventions for servers.
    pub fn of(code: Code) -> Self {
        match code {
            Code::Ok => Outcome::Ok,
            code if is_server_error(code) => Outcome::ServerError,
            _ => Outcome::ClientError,
        }
    }
}

/// Instruments of the network.
#[derive(Debug)]
pub struct NetworkMetrics {
    received: Count,
    sent: Count,
    connections: Count,
    requests: Counts<(Outcome, Protocol)>,
    errors: Counts<NetworkError>,
    calls: Distributions,
    bound_calls: RwLock<HashMap<(&'static str, i32), Arc<Distribution>>>,
}

impl NetworkMetrics {
    pub(super) fn new(instruments: &Instruments) -> Self {
        NetworkMetrics {
            received: instruments.count(catalog::NETWORK_IN),
            sent: instruments.count(catalog::NETWORK_OUT),
            connections: instruments.count(catalog::NETWORK_CONNECTIONS),
            requests: instruments.counts(catalog::NETWORK_REQUESTS),
            errors: instruments.counts(catalog::NETWORK_ERRORS),
            calls: instruments.distributions(catalog::RPC_DURATION),
            bound_calls: RwLock::default(),
        }
    }

    /// Bytes came from a client socket.
    pub fn received(&self, bytes: u64) {
        self.received.add(bytes);
    }

    /// Bytes went to a client socket.
    pub fn sent(&self, bytes: u64) {
        self.sent.add(bytes);
    }

    /// A client connected.
    pub fn connected(&self) {
        self.connections.add(1);
    }

    /// A connection failed.
    pub fn failed(&self, error: NetworkError) {
        self.errors.add(error, 1);
    }

    /// A gRPC call (unary or stream) or an HTTP request ended.
    pub fn request_ended(&self, protocol: Protocol, outcome: Outcome) {
        self.requests.add((outcome, protocol), 1);
    }

    /// A unary call ended. `method` is the full name without leading slash, or `_OTHER` for an unknown one.
    /// Count it with [`NetworkMetrics::request_ended`] too.
    pub fn call_ended(&self, method: &'static str, code: Code, took: Duration, trace: Option<TraceIds>) {
        if self.calls.is_on() {
            self.call(method, code).record_duration(took, trace);
        }
    }

    fn call(&self, method: &'static str, code: Code) -> Arc<Distribution> {
        let key = (method, code as i32);
        if let Some(call) = self.bound_calls.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return call.clone();
        }
        let mut attributes = Vec::with_capacity(4);
        if is_server_error(code) {
            attributes.push(KeyValue::new("error.type", code_name(code)));
        }
        attributes.push(KeyValue::new("rpc.method", method));
        attributes.push(KeyValue::new("rpc.status_code", code_name(code)));
        attributes.push(KeyValue::new("rpc.system.name", "grpc"));
        let mut calls = self.bound_calls.write().unwrap_or_else(PoisonError::into_inner);
        calls.entry(key).or_insert_with(|| Arc::new(self.calls.with(attributes))).clone()
    }
}
