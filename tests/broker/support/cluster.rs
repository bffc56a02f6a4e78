//! Several brokers in processes of their own that form a cluster.

use std::collections::BTreeMap;

use streambus::client::{Client, ClientConfig, ClusterStatus, TopicSpec};

use super::process::Remains;
use super::{Endpoint, PATIENCE, Process, eventually, within};

/// Brokers by their numbers. Each keeps its ports when it is started again.
pub struct Cluster {
    running: BTreeMap<u64, Process>,
    down: BTreeMap<u64, Remains>,
    settings: Vec<(String, String)>,
    seed: String,
}

impl Cluster {
    /// A cluster of `count` brokers that all reach each other and vote as they should.
    pub async fn start(count: u64) -> Self {
        Self::with(count, &[]).await
    }

    /// As [`Cluster::start`], with settings for all brokers.
    pub async fn with(count: u64, settings: &[(&str, &str)]) -> Self {
        Self::with_founder(count, settings, &[]).await
    }

    /// As [`Cluster::with`], with further settings for the first broker.
    pub async fn with_founder(count: u64, settings: &[(&str, &str)], founder: &[(&str, &str)]) -> Self {
        let mut all: Vec<(&str, &str)> = vec![
            // Fast enough for tests, slow enough for a busy machine.
            ("raft.heartbeat", "100ms"),
            ("raft.election_min", "700ms"),
            ("raft.election_max", "1400ms"),
            ("cluster.balance_interval", "1s"),
        ];
        all.extend(settings);
        let founder = Process::start(&[&all[..], founder].concat()).await;
        let seed = founder.grpc.to_string();
        let settings = all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut cluster =
            Cluster { running: BTreeMap::from([(1, founder)]), down: BTreeMap::new(), settings, seed };
        for _ in 1..count {
            cluster.grow().await;
        }
        cluster.settled().await;
        cluster
    }

    /// Starts one more broker, and gives its number.
    pub async fn grow(&mut self) -> u64 {
        let mut settings: Vec<(&str, &str)> =
            self.settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        settings.push(("cluster.seeds", &self.seed));
        let process = Process::start(&settings).await;
        let id = process.broker_id();
        self.running.insert(id, process);
        id
    }

    /// A running broker.
    pub fn broker(&self, id: u64) -> &Process {
        &self.running[&id]
    }

    /// Every running broker.
    pub fn running(&self) -> impl Iterator<Item = (u64, &Process)> {
        self.running.iter().map(|(id, process)| (*id, process))
    }

    /// Where a broker has its data, whether it runs or not.
    pub fn data_dir(&self, id: u64) -> std::path::PathBuf {
        self.running.get(&id).map_or_else(|| self.down[&id].data_dir(), Process::data_dir)
    }

    /// Kills a broker with SIGKILL.
    pub fn kill(&mut self, id: u64) {
        let process = self.running.remove(&id).expect("it runs");
        self.down.insert(id, remember(process, Process::kill));
    }

    /// Ends a broker with SIGTERM, which must succeed.
    pub async fn stop(&mut self, id: u64) {
        let process = self.running.remove(&id).expect("it runs");
        let grpc = process.grpc.to_string();
        let remains = process.stop().await.set("api.grpc_listen", &grpc);
        self.down.insert(id, remains);
    }

    /// Starts a broker that is down.
    pub async fn restart(&mut self, id: u64) {
        let process = self.down.remove(&id).expect("it is down").start().await;
        self.running.insert(id, process);
    }

    /// Starts a broker that is down, and gives it as soon as its ports are open.
    pub async fn begin_restart(&mut self, id: u64) -> Process {
        self.down.remove(&id).expect("it is down").start_until("broker.starting").await
    }

    /// Starts a broker that is down and must not come up, and gives what it says.
    pub async fn refuses(&mut self, id: u64) -> String {
        self.down.remove(&id).expect("it is down").fails().await
    }

    /// Starts brokers that are down at the same time.
    pub async fn restart_together(&mut self, ids: &[u64]) {
        let remains: Vec<_> = ids.iter().map(|id| self.down.remove(id).expect("it is down")).collect();
        let started = futures_util::future::join_all(remains.into_iter().map(Remains::start)).await;
        self.running.extend(ids.iter().copied().zip(started));
    }

    /// Empties the directory of a broker that is down and starts it as a new one, at the same address. Gives its number.
    pub async fn replace(&mut self, id: u64) -> u64 {
        let remains =
            self.down.remove(&id).expect("it is down").set("cluster.seeds", &self.seeds_without(id));
        std::fs::remove_dir_all(remains.data_dir()).expect("removed");
        let process = remains.start().await;
        let id = process.broker_id();
        self.running.insert(id, process);
        id
    }

    fn seeds_without(&self, id: u64) -> String {
        let others = self.running.iter().filter(|(other, _)| **other != id);
        others.map(|(_, process)| process.grpc.to_string()).collect::<Vec<_>>().join(",")
    }

    /// A client that knows all running brokers.
    pub async fn client(&self) -> Client {
        let addresses = self.running.values().map(|process| process.grpc.to_string());
        let builder = addresses.fold(Client::builder(), streambus::client::ClientBuilder::bootstrap);
        builder.config(ClientConfig::default()).connect().await.expect("a client")
    }

    /// The cluster as one of the running brokers sees it.
    pub async fn status_at(&self, id: u64) -> Option<ClusterStatus> {
        let client =
            Client::connect(self.running[&id].grpc.to_string(), ClientConfig::default()).await.ok()?;
        client.admin().cluster_status().await.ok()
    }

    /// Waits until the cluster, as one broker sees it, is as wished; says how it was if it does not become so.
    pub async fn until(&self, id: u64, what: &str, mut wish: impl FnMut(&ClusterStatus) -> bool) {
        let mut last = None;
        let wished = tokio::time::timeout(PATIENCE, async {
            loop {
                last = self.status_at(id).await;
                if last.as_ref().is_some_and(&mut wish) {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        });
        if wished.await.is_err() {
            panic!("not within {PATIENCE:?} at broker {id}: {what}: {last:#?}");
        }
    }

    /// Waits until all running brokers reach each other, enough of them vote, and no partition has a problem.
    pub async fn settled(&self) {
        for id in self.running.keys() {
            self.until(*id, "the cluster is settled", |status| self.is_settled(status)).await;
        }
    }

    fn is_settled(&self, status: &ClusterStatus) -> bool {
        let lasting = status.brokers.iter().filter(|broker| broker.replaced_by.is_none()).count();
        let voters = 3.min(lasting) - usize::from(3.min(lasting).is_multiple_of(2));
        let reached = status.brokers.iter().filter(|broker| broker.reached).count();
        reached >= self.running.len()
            && status.controller_id.is_some()
            && status.controller_voters.len() == voters
            && status.coordinators.iter().all(Option::is_some)
            && status.problems.is_empty()
    }

    /// Creates a topic with replicas.
    pub async fn create_topic(&self, name: &str, partitions: u32, replicas: u32) {
        let spec = TopicSpec::new(name).partitions(partitions).replication_factor(replicas);
        self.client().await.admin().create_topic(spec).await.expect("created");
    }

    /// The leader of a partition, as a broker sees it.
    pub async fn leader(&self, topic: &str, partition: u32) -> u64 {
        let at = self.running.values().next().expect("a broker");
        within("a leader", async {
            loop {
                if let Some(leader) = leader_at(at, topic, partition).await {
                    return leader;
                }
            }
        })
        .await
    }
}

/// Who leads a partition, as a broker sees it.
pub async fn leader_at(broker: &Endpoint, topic: &str, partition: u32) -> Option<u64> {
    let client = Client::connect(broker.grpc.to_string(), ClientConfig::default()).await.ok()?;
    let described = client.admin().describe_topic(topic).await.ok()?;
    described.partitions.get(partition as usize)?.leader_id
}

/// Waits until a broker sees a leader of the partition other than `not`, and gives it.
pub async fn other_leader(broker: &Endpoint, topic: &str, partition: u32, not: u64) -> u64 {
    eventually(PATIENCE, "another leader", async || {
        leader_at(broker, topic, partition).await.filter(|leader| *leader != not)
    })
    .await
}

fn remember(process: Process, end: impl FnOnce(Process) -> Remains) -> Remains {
    let grpc = process.grpc.to_string();
    end(process).set("api.grpc_listen", &grpc)
}
