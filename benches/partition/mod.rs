//! A partition on a real store in a directory that goes away, without a network around it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::try_join_all;
use streambus::clock::Clock;
use streambus::partition::{self, Partition};
use streambus::raft;
use streambus::record::{BatchBuilder, Codec, Draft, FrameHeader, Limits, skim};
use streambus::storage::{self, GroupId, Store, Sync};
use streambus::task::Tasks;
use streambus::telemetry::Metrics;
use tokio::runtime::Runtime;

/// The broker's number; it is alone.
const NODE: u64 = 1;

/// A batch of `records` records with values of 1 KiB, and what the broker notes of it.
pub fn batch(records: u32) -> (Bytes, FrameHeader) {
    let value = [b'x'; 1024];
    let mut builder = BatchBuilder::default();
    for _ in 0..records {
        builder.push(&Draft {
            key: Some(b"order-1234567890"),
            value: Some(&value),
            headers: std::iter::empty::<(&str, &[u8])>(),
            timestamp_ms: 1_760_000_000_000,
        });
    }
    let batch = builder.finish(Codec::None).expect("there are records");
    let header = FrameHeader::new(&skim(&batch, &Limits::default()).expect("a good batch"), None, None);
    (batch, header)
}

/// A runtime, a store and one partition.
pub struct Bench {
    pub runtime: Runtime,
    pub partition: Partition,
    tasks: Tasks,
    store: Option<Store>,
    _directory: tempfile::TempDir,
}

impl Bench {
    /// Opens the partition with `tail_bytes` of memory for its newest batches.
    pub fn open(sync: Sync, tail_bytes: u64) -> Self {
        let runtime = Runtime::new().expect("threads");
        let directory = tempfile::tempdir().expect("a writable directory");
        let settings =
            storage::Config { sync, reserve_bytes: 1, ..storage::Config::in_dir(directory.path()) };
        let store = Store::open(&settings, None).expect("an empty store opens");
        let (tasks, metrics) = (Tasks::new(), Metrics::detached());
        let raft =
            raft::Env::new(store.clone(), tasks.clone(), raft::Config::default(), Arc::new(raft::NoPeers));
        let config = partition::Config { partition_tail_bytes: tail_bytes, ..partition::Config::default() };
        let topic = metrics.topic("bench");
        let env = partition::Env::new(store.clone(), raft, Clock::system(), metrics, config);
        let partition = runtime.block_on(async {
            let id = GroupId::partition(1, 0);
            let partition =
                Partition::open(id, NODE, Some(&[NODE]), topic, &env, &tasks).await.expect("it opens");
            partition.ready().await.expect("a group of one elects itself");
            partition
        });
        Bench { runtime, partition, tasks, store: Some(store), _directory: directory }
    }

    /// Appends `batch` `window` times, all under way at once, and waits for the last.
    pub async fn append(&self, batch: &(Bytes, FrameHeader), window: usize) {
        let mut waiting = Vec::with_capacity(window);
        for _ in 0..window {
            let submitted = self.partition.submit(batch.0.clone(), batch.1, Instant::now()).await;
            waiting.push(submitted.expect("there is room"));
        }
        for outcome in try_join_all(waiting).await.expect("every batch is answered") {
            outcome.expect("the batch is committed");
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.runtime.block_on(async {
            self.partition.close().await;
            self.tasks.stop(Duration::from_secs(10)).await;
        });
        if let Some(store) = self.store.take() {
            store.close().expect("the store closes");
        }
    }
}
