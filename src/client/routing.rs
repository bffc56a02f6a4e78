//! Who leads which partition, and calls that any broker can serve.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::time::{Instant, timeout_at};

use super::admin::known_codecs;
use super::connection::{Broker, Connections};
use super::{ClientConfig, CodecSet, Error, ErrorCode};
use crate::proto::v1;

/// What a topic allows by default, as the protocol says; used if a broker leaves it out.
const RECORD_BYTES_MAX: u32 = 1 << 20;
const BATCH_BYTES_MAX: u32 = 4 << 20;

/// A topic's leaders and limits at some moment.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) topic: Arc<str>,
    /// By partition number; `None` while a partition has no leader.
    pub(super) leaders: Vec<Option<u64>>,
    pub(super) record_bytes_max: usize,
    pub(super) batch_bytes_max: usize,
    pub(super) codecs: CodecSet,
    pub(super) learned: Instant,
}

impl Route {
    fn new(routing: v1::TopicRouting) -> Route {
        let config = routing.config.unwrap_or_default();
        Route {
            topic: routing.topic.into(),
            leaders: routing.leader_ids.into_iter().map(|id| (id != 0).then_some(id)).collect(),
            record_bytes_max: config.record_bytes_max.unwrap_or(RECORD_BYTES_MAX) as usize,
            batch_bytes_max: config.batch_bytes_max.unwrap_or(BATCH_BYTES_MAX) as usize,
            codecs: config.codecs_allowed.map_or(CodecSet::ALL, known_codecs),
            learned: Instant::now(),
        }
    }

    pub(super) fn partitions(&self) -> u32 {
        u32::try_from(self.leaders.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn leader(&self, partition: u32) -> Option<u64> {
        self.leaders.get(partition as usize).copied().flatten()
    }

    /// Fails unless the topic has this partition.
    pub(super) fn check(&self, partition: u32) -> Result<(), Error> {
        if partition < self.partitions() {
            return Ok(());
        }
        let topic = self.topic.to_string();
        Err(Error::UnknownPartition { topic, partition, partitions: self.partitions() })
    }
}

/// Whether repeating a call that may have been served can do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It cannot: the call reads, or its second execution changes nothing.
    Harmless,
    /// It can: only a call that certainly was not served is repeated.
    Harmful,
}

/// Knows the brokers and the leaders, and finds a broker for calls that any of them can serve.
#[derive(Debug)]
pub(super) struct Router {
    connections: Connections,
    bootstrap: Vec<String>,
    config: ClientConfig,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Address of each broker by id.
    brokers: HashMap<u64, String>,
    topics: HashMap<Arc<str>, Arc<Route>>,
    /// The address that answered last.
    preferred: Option<String>,
    /// Addresses whose connections broke or fell silent, and that did not answer since; the last one at the end.
    suspects: Vec<String>,
}

impl Table {
    fn answered(&mut self, address: &str) {
        self.suspects.retain(|suspect| suspect != address);
        self.preferred = Some(address.to_owned());
    }
}

impl Router {
    pub(super) fn new(connections: Connections, bootstrap: Vec<String>, config: ClientConfig) -> Router {
        Router { connections, bootstrap, config, table: Mutex::default() }
    }

    pub(super) fn config(&self) -> &ClientConfig {
        &self.config
    }

    pub(super) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Learns the brokers from the first address that answers, without retries.
    pub(super) async fn discover(&self) -> Result<(), Error> {
        let call = |broker: Broker| async move {
            broker.cluster().describe_cluster(v1::DescribeClusterRequest::default()).await
        };
        let (address, response) = self.try_each(self.deadline(), &call).await?;
        self.learn(&address, response);
        Ok(())
    }

    /// The cluster, and the routing of `topics`; remembers both.
    pub(super) async fn describe(
        &self,
        topics: Vec<String>,
    ) -> Result<(Arc<[Arc<Route>]>, v1::DescribeClusterResponse), Error> {
        let request = v1::DescribeClusterRequest { topics };
        let call = |broker: Broker| {
            let request = request.clone();
            async move { broker.cluster().describe_cluster(request).await }
        };
        let (address, response) = self.call_at(Repeat::Harmless, call).await?;
        let routes = self.learn(&address, response.clone());
        Ok((routes, response))
    }

    /// What is known of `topic`, without asking.
    pub(super) fn cached(&self, topic: &str) -> Option<Arc<Route>> {
        self.lock().topics.get(topic).cloned()
    }

    /// The routing of `topic`: the known one unless it is old.
    pub(super) async fn route(&self, topic: &str) -> Result<Arc<Route>, Error> {
        match self.cached(topic) {
            Some(route) if route.learned.elapsed() < self.config.routing_age_max => Ok(route),
            _ => self.refresh(topic).await,
        }
    }

    /// The routing of `topic` as a broker tells it now.
    pub(super) async fn refresh(&self, topic: &str) -> Result<Arc<Route>, Error> {
        let (routes, _) = self.describe(vec![topic.to_owned()]).await?;
        match routes.iter().find(|route| &*route.topic == topic) {
            Some(route) => Ok(Arc::clone(route)),
            None => {
                self.lock().topics.remove(topic);
                Err(Error::UnknownTopic { topic: topic.to_owned() })
            }
        }
    }

    /// Where the broker is reached.
    pub(super) fn address(&self, broker: u64) -> Result<String, Error> {
        self.lock().brokers.get(&broker).cloned().ok_or_else(|| Error::Unreachable {
            address: format!("broker {broker}"),
            reason: "its address is not known".into(),
        })
    }

    /// Makes a call that any broker can serve; retries what [`Error::is_retriable`] allows, with backoff, until
    /// `request_timeout`.
    pub(super) async fn call<T, F>(&self, repeat: Repeat, call: impl Fn(Broker) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        self.call_at(repeat, call).await.map(|(_, response)| response)
    }

    async fn call_at<T, F>(&self, repeat: Repeat, call: impl Fn(Broker) -> F) -> Result<(String, T), Error>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let deadline = self.deadline();
        let mut failures = 0;
        loop {
            let error = match self.try_each(deadline, &call).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            failures += 1;
            let delay = self.config.backoff.delay_after(failures, &error);
            let may_repeat = repeat == Repeat::Harmless || !error.may_have_been_written();
            // A full disk and an unreachable cluster can last: these are told at once rather than waited for.
            let worth_waiting =
                !matches!(error, Error::Unreachable { .. }) && error.code() != Some(ErrorCode::DiskFull);
            let in_time = Instant::now() + delay < deadline;
            if !(error.is_retriable() && may_repeat && worth_waiting && in_time) {
                return Err(error);
            }
            tokio::time::sleep(delay).await;
        }
    }

    /// Makes a call at the first address that can be reached and whose broker serves.
    async fn try_each<T, F>(
        &self,
        deadline: Instant,
        call: &impl Fn(Broker) -> F,
    ) -> Result<(String, T), Error>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let mut unreachable: Vec<(String, String)> = Vec::new();
        let mut not_ready = None;
        for address in self.candidates() {
            let broker = match self.connections.shared(&address).await {
                Ok(broker) => broker,
                Err(Error::Unreachable { address, reason }) => {
                    unreachable.push((address, reason));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let result = match timeout_at(deadline, call(broker)).await {
                Ok(result) => result.map_err(Error::from),
                Err(_) => {
                    Err(Error::Timeout { from: Some(address.clone()), after: self.config.request_timeout })
                }
            };
            return match result {
                Ok(response) => {
                    self.lock().answered(&address);
                    Ok((address, response.into_inner()))
                }
                // It starts or stops, or has left the cluster, and has done nothing.
                Err(error) if error.code() == Some(ErrorCode::NotReady) => {
                    self.suspect(&address);
                    self.lock().preferred = None;
                    not_ready = Some(error);
                    continue;
                }
                Err(error) => {
                    if matches!(error, Error::Connection { .. } | Error::Timeout { .. }) {
                        self.connections.forget(&address);
                        self.suspect(&address);
                    }
                    self.lock().preferred = None;
                    Err(error)
                }
            };
        }
        if let Some(error) = not_ready {
            return Err(error);
        }
        let (addresses, mut reasons): (Vec<_>, Vec<_>) = unreachable.into_iter().unzip();
        reasons.dedup();
        Err(Error::Unreachable { address: addresses.join(", "), reason: reasons.join("; ") })
    }

    /// Addresses worth trying, in order: those that failed come after the others, the one that failed last at the end. A
    /// broker that is stopped or cut off still takes connections, or seems to, and would be waited for again and again.
    pub(super) fn candidates(&self) -> Vec<String> {
        let table = self.lock();
        let mut known: Vec<&String> = table.brokers.values().collect();
        known.sort();
        let mut candidates = Vec::new();
        for address in table.preferred.iter().chain(&self.bootstrap).chain(known) {
            if !candidates.contains(address) {
                candidates.push(address.clone());
            }
        }
        candidates.sort_by_key(|address| table.suspects.iter().position(|suspect| suspect == address));
        candidates
    }

    /// Notes that a connection to `address` broke or fell silent.
    fn suspect(&self, address: &str) {
        let mut table = self.lock();
        table.suspects.retain(|suspect| suspect != address);
        table.suspects.push(address.to_owned());
    }

    /// Notes that a connection to the broker broke or fell silent.
    pub(super) fn suspect_broker(&self, broker: u64) {
        if let Ok(address) = self.address(broker) {
            self.suspect(&address);
        }
    }

    /// Remembers an answer that came from `address`.
    fn learn(&self, address: &str, response: v1::DescribeClusterResponse) -> Arc<[Arc<Route>]> {
        let mut table = self.lock();
        table.brokers =
            response.brokers.iter().map(|broker| (broker.broker_id, broker.grpc_address.clone())).collect();
        // The only broker of a cluster is reached where it was found, whatever address it announces.
        if table.brokers.len() <= 1 {
            table.brokers = HashMap::from([(response.broker_id, address.to_owned())]);
        }
        let Table { brokers, suspects, .. } = &mut *table;
        suspects.retain(|one| self.bootstrap.contains(one) || brokers.values().any(|known| known == one));
        let routes: Arc<[Arc<Route>]> =
            response.topics.into_iter().map(|routing| Arc::new(Route::new(routing))).collect();
        for route in routes.iter() {
            table.topics.insert(Arc::clone(&route.topic), Arc::clone(route));
        }
        routes
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.config.request_timeout
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of this lock can panic")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_failed_come_last_until_they_answer() {
        let config = ClientConfig::default();
        let bootstrap: Vec<String> = ["a:1", "b:1", "c:1"].map(str::to_owned).into();
        let router = Router::new(Connections::new(config.clone()), bootstrap, config);
        assert_eq!(router.candidates(), ["a:1", "b:1", "c:1"]);
        router.suspect("a:1");
        assert_eq!(router.candidates(), ["b:1", "c:1", "a:1"]);
        router.suspect("c:1");
        assert_eq!(router.candidates(), ["b:1", "a:1", "c:1"]);
        router.suspect("a:1");
        assert_eq!(router.candidates(), ["b:1", "c:1", "a:1"]);
        router.lock().answered("c:1");
        assert_eq!(router.candidates(), ["c:1", "b:1", "a:1"]);
    }
}
