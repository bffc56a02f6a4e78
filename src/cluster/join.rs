//! How a broker becomes a member of a cluster: it founds one, or joins the one of its seeds.
//!
//! A cluster is founded once. A broker with an empty data directory that has seeds founds one only if it is the first of
//! them and every other seed answers that it belongs to no cluster either: a founder whose disk was lost finds the
//! cluster it founded, and joins it as a new broker.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tracing::warn;
use uuid::Uuid;

use super::Config;
use super::identity::{self, Identity};
use super::peers::{self, PROTOCOL};
use crate::metadata::codec::store_broker;
use crate::metadata::{Broker, BrokerId};
use crate::proto::internal::IdentifyResponse;
use crate::proto::internal::peer_service_server::PeerServiceServer;

/// The pause between two rounds of asking.
const ROUND: Duration = Duration::from_millis(300);

/// Why a broker does not become a member of a cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The identity cannot be read or kept.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// A seed belongs to another cluster than the data of this broker.
    #[error(
        "the data directory belongs to broker {broker} of cluster {ours}, but {seed} belongs to cluster {theirs}: correct cluster.seeds, or use another data directory"
    )]
    OtherCluster {
        /// This broker.
        broker: BrokerId,
        /// Its cluster.
        ours: Uuid,
        /// The seed.
        seed: String,
        /// Its cluster.
        theirs: String,
    },
    /// A seed is of a release that says and agrees on what this one does not know.
    #[error(
        "{seed} speaks version {theirs} of the protocol between brokers, this release up to {PROTOCOL}: upgrade this broker"
    )]
    Newer {
        /// The seed.
        seed: String,
        /// Its version.
        theirs: u32,
    },
    /// The cluster refused the broker.
    #[error("the cluster of {seed} refuses this broker: {reason}")]
    Refused {
        /// Who was asked.
        seed: String,
        /// Why.
        reason: String,
    },
    /// The port on which this broker answers that it is new cannot be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The disk work was cut off.
    #[error("interrupted")]
    Interrupted,
}

/// What a seed answered.
enum Answer {
    /// It belongs to this cluster.
    Member(String),
    /// It belongs to none.
    New,
    /// It is of a newer release, which speaks this version.
    Newer(u32),
    /// Nothing, and why.
    Silent(String),
}

/// Finds out who this broker is: reads it, founds a cluster or joins one. Waits as long as it takes, and says in `waiting`
/// for what.
///
/// `listen` is where the gRPC port will be; as long as the broker is new, it says so there. `describe` gives what the
/// cluster should know of the broker, by its listening address.
///
/// # Errors
/// See [`Error`].
pub async fn identity(
    data_dir: &Path,
    config: &Config,
    listen: SocketAddr,
    describe: impl Fn(SocketAddr) -> Broker,
    waiting: &watch::Sender<String>,
) -> Result<Identity, Error> {
    let known = {
        let data_dir = data_dir.to_owned();
        blocking(move || Identity::load(&data_dir)).await?
    };
    if let Some(known) = known {
        check_seeds(&known, config).await?;
        return Ok(known);
    }
    let data_dir = data_dir.to_owned();
    if config.seeds.is_empty() {
        return blocking(move || Identity::found(&data_dir)).await;
    }
    let fail = |source| Error::Listen { address: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    let listener = listener.into_std().map_err(fail)?;
    let newcomer = Newcomer::serve(listener).map_err(fail)?;
    let identity = join(data_dir, config, describe(address), waiting).await;
    newcomer.end().await;
    identity
}

/// Answers other brokers that this one is new. It has a runtime of its own, which takes its connections with it when it
/// ends: nobody must go on asking it.
struct Newcomer(Option<tokio::runtime::Runtime>);

impl Newcomer {
    fn serve(listener: std::net::TcpListener) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let serving = tonic::transport::Server::builder()
            .add_service(PeerServiceServer::new(peers::Newcomer))
            .serve_with_incoming(TcpListenerStream::new(listener));
        // If it fails nobody hears that this broker is new, and a founder goes on waiting.
        runtime.spawn(async { drop(serving.await) });
        Ok(Newcomer(Some(runtime)))
    }

    /// Frees the port.
    async fn end(mut self) {
        let Some(runtime) = self.0.take() else { return };
        let ending = tokio::task::spawn_blocking(|| runtime.shutdown_timeout(ROUND));
        // A panic leaves a port that cannot be opened, which is told then.
        let _ = ending.await;
    }
}

/// Who is told to stop while it waits drops this among other tasks, where nothing may block.
impl Drop for Newcomer {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn join(
    data_dir: PathBuf,
    config: &Config,
    this: Broker,
    waiting: &watch::Sender<String>,
) -> Result<Identity, Error> {
    let others: Vec<&String> = config.seeds.iter().filter(|seed| **seed != this.grpc_address).collect();
    let first = config.seeds.first() == Some(&this.grpc_address);
    let hint = hint(config, &this);
    let mut hinted = false;
    loop {
        let answers = join_all(others.iter().map(|seed| ask(seed))).await;
        refuse_newer(others.iter().copied().zip(&answers))?;
        let member = others.iter().zip(&answers).find_map(|(seed, answer)| match answer {
            Answer::Member(cluster) => Some((*seed, cluster)),
            _ => None,
        });
        let wait_for = if let Some((seed, cluster)) = member {
            match peers::join(seed, store_broker(&this)).await {
                Ok((cluster, broker, _)) => {
                    let refused = |reason| Error::Refused { seed: (*seed).clone(), reason };
                    let cluster = Uuid::parse_str(&cluster).map_err(|error| refused(error.to_string()))?;
                    let given = Identity { cluster, broker: BrokerId(broker) };
                    return blocking(move || Identity::keep(&data_dir, given)).await;
                }
                Err(reason) if reason.contains(" is alive at ") => {
                    return Err(Error::Refused { seed: (*seed).clone(), reason });
                }
                Err(reason) => format!("{seed} of cluster {cluster} to admit this broker: {reason}"),
            }
        } else if first && answers.iter().all(|answer| matches!(answer, Answer::New)) {
            return blocking(move || Identity::found(&data_dir)).await;
        } else {
            let missing = missing(others.iter().copied().zip(&answers), &config.seeds[0]);
            match &hint {
                None => missing,
                Some(hint) => {
                    // It may wait for ever, so it says so before it has waited for long.
                    if !std::mem::replace(&mut hinted, true) {
                        warn!(name: "broker.not_a_seed", "no seed has said that it belongs to a cluster, and {hint}");
                    }
                    format!("{missing}; {hint}")
                }
            }
        };
        waiting.send_replace(wait_for);
        tokio::time::sleep(ROUND).await;
    }
}

/// Whom a broker waits for that has found no member of a cluster.
fn missing<'a>(answers: impl Iterator<Item = (&'a String, &'a Answer)>, founder: &str) -> String {
    let silent = answers.filter_map(|(seed, answer)| match answer {
        Answer::Silent(reason) => Some(format!("{seed} ({reason})")),
        _ => None,
    });
    match silent.collect::<Vec<_>>() {
        silent if silent.is_empty() => format!("{founder} to found a cluster"),
        silent => format!("seeds to answer: {}", silent.join(", ")),
    }
}

/// What to know of a broker that is none of its own seeds: it founds no cluster, and may be meant to.
fn hint(config: &Config, this: &Broker) -> Option<String> {
    let address = &this.grpc_address;
    let listed = config.seeds.contains(address);
    (!listed).then(|| {
        format!(
            "this broker says that it is at {address}, which is not in cluster.seeds, so it founds no cluster: if it is one of the seeds, set server.grpc_advertise to its address there"
        )
    })
}

async fn ask(seed: &str) -> Answer {
    peers::identify(seed).await.map_or_else(Answer::Silent, answer)
}

fn answer(who: IdentifyResponse) -> Answer {
    match who {
        IdentifyResponse { protocol, .. } if protocol > PROTOCOL => Answer::Newer(protocol),
        IdentifyResponse { cluster_id, .. } if cluster_id.is_empty() => Answer::New,
        IdentifyResponse { cluster_id, .. } => Answer::Member(cluster_id),
    }
}

/// What a newer release says and agrees on would be misunderstood here, or left out.
fn refuse_newer<'a>(answers: impl IntoIterator<Item = (&'a String, &'a Answer)>) -> Result<(), Error> {
    let newer = answers.into_iter().find_map(|(seed, answer)| match answer {
        Answer::Newer(theirs) => Some(Error::Newer { seed: seed.clone(), theirs: *theirs }),
        _ => None,
    });
    newer.map_or(Ok(()), Err)
}

/// Refuses to start with the data of another cluster than that of the seeds. Seeds that do not answer prove nothing.
async fn check_seeds(known: &Identity, config: &Config) -> Result<(), Error> {
    let answers = join_all(config.seeds.iter().map(|seed| ask(seed))).await;
    refuse_newer(config.seeds.iter().zip(&answers))?;
    for (seed, answer) in config.seeds.iter().zip(answers) {
        if let Answer::Member(theirs) = answer
            && theirs != known.cluster.to_string()
        {
            let (broker, ours) = (known.broker, known.cluster);
            return Err(Error::OtherCluster { broker, ours, seed: seed.clone(), theirs });
        }
    }
    Ok(())
}

/// Runs disk work off the runtime.
fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, identity::Error> + Send + 'static,
) -> impl Future<Output = Result<T, Error>> {
    let work = tokio::task::spawn_blocking(work);
    async move { Ok(work.await.map_err(|_| Error::Interrupted)??) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_that_are_missing_are_named_with_the_reason() {
        let seeds = ["a:9092", "b:9092", "c:9092"].map(str::to_owned);
        let told = |answers: [Answer; 3]| missing(seeds.iter().zip(&answers), "a:9092");
        let silent = || Answer::Silent("refused".to_owned());
        let missing = told([Answer::New, silent(), silent()]);
        assert_eq!(missing, "seeds to answer: b:9092 (refused), c:9092 (refused)");
        assert_eq!(told([Answer::New, Answer::New, Answer::New]), "a:9092 to found a cluster");
    }

    #[test]
    fn a_broker_that_is_none_of_its_seeds_is_told_so() {
        let seeded = |seeds: &[&str]| Config {
            seeds: seeds.iter().copied().map(str::to_owned).collect(),
            ..Config::default()
        };
        let this = Broker::fake("b:9092");
        assert_eq!(hint(&seeded(&["a:9092", "b:9092"]), &this), None);
        let told = hint(&seeded(&["a:9092", "localhost:9092"]), &this).expect("it is none");
        assert!(told.contains("b:9092") && told.contains("server.grpc_advertise"), "{told}");
    }

    #[test]
    fn a_seed_of_a_newer_release_is_refused() {
        let seeds = ["a:9092", "b:9092"].map(str::to_owned);
        let from = |protocol, cluster: &str| {
            answer(IdentifyResponse { protocol, cluster_id: cluster.to_owned(), broker_id: 1 })
        };
        let refused = |answers: [Answer; 2]| {
            refuse_newer(seeds.iter().zip(&answers)).err().map(|error| error.to_string())
        };
        assert_eq!(refused([from(PROTOCOL, "ours"), from(0, "")]), None);
        for cluster in ["ours", ""] {
            let told = refused([from(PROTOCOL, "ours"), from(PROTOCOL + 1, cluster)]).expect("it is newer");
            assert!(told.contains("b:9092") && told.contains("upgrade this broker"), "{told}");
        }
    }
}
