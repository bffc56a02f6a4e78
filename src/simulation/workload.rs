//! What clients do in a run: produce, read, commit offsets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::World;
use super::node::Broker;
use crate::clock::Timestamp;
use crate::cluster::coordinator;
use crate::coordination::{Command, PartitionKey};
use crate::metadata::TopicId;
use crate::partition::producers::Refusal;
use crate::partition::{self, Committed};
use crate::raft::{self, NodeId};
use crate::record::{Codec, FrameHeader, Offset, ProducerSequence};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A batch that is not known to be in the log.
struct Pending {
    batch: Bytes,
    header: FrameHeader,
}

/// Sends batches to a partition until the run heals, and then goes on until all are acknowledged. Up to four are in
/// flight; what has no good answer is sent again, in order, wherever there may be a leader.
pub(super) async fn produce(world: Arc<World>, producer_id: u64, partition: usize) {
    let group = world.partitions()[partition];
    let mut next = 0_u32;
    let mut pending: Vec<Pending> = Vec::new();
    let mut target = None;
    loop {
        if pending.is_empty() {
            if world.is_healing() {
                return;
            }
            sleep(world.chance.millis(1..120)).await;
            for _ in 0..world.chance.within(1..5) {
                let records = world.chance.within(1..5) as u32;
                let padding = ".".repeat(world.chance.up_to(200));
                let batch = format!("producer {producer_id}, records from {next}, {padding}");
                let sequence = ProducerSequence { producer_id, epoch: 0, base_sequence: next };
                let header = FrameHeader {
                    records,
                    codec: Codec::None,
                    producer: Some(sequence),
                    max_timestamp_ms: 0,
                    span: None,
                };
                pending.push(Pending { batch: batch.into(), header });
                next += records;
            }
        }
        let Some(broker) = choose(&world, &mut target).await else { continue };
        let results = send(&broker, partition, &pending).await;
        let mut acked = 0;
        let mut in_order = true;
        for (result, sent) in results.into_iter().zip(&pending) {
            match result {
                Ok(committed) => {
                    world.trace.fold(6, [producer_id, committed.base_offset.0, sent.header.records.into()]);
                    world.checker.acked(group, &sent.batch, sent.header.records, &committed);
                    // One before it may be in the log too; what comes of sending it again will tell.
                    acked += usize::from(in_order);
                }
                Err(error) => {
                    if let Some(partition::Error::Refused(refusal)) = &error
                        && in_order
                    {
                        refused(&world, producer_id, *refusal, &sent.header);
                    }
                    in_order = false;
                    target = hint(&world, error);
                }
            }
        }
        pending.drain(..acked);
        if !in_order {
            sleep(world.chance.millis(1..100)).await;
        }
    }
}

/// Everything before the batch is acknowledged, so there is no reason to refuse it.
fn refused(world: &World, producer: u64, refusal: Refusal, header: &FrameHeader) {
    let at = header.producer.map_or(0, |sequence| sequence.base_sequence);
    world.checker.fail(format!("producer {producer} is refused at sequence {at}, which is due: {refusal}"));
}

/// Sends all that is pending to one broker. Nothing in place of an error: its outcome is unknown.
async fn send(
    broker: &Broker,
    partition: usize,
    pending: &[Pending],
) -> Vec<Result<Committed, Option<partition::Error>>> {
    let mut waits = Vec::new();
    for Pending { batch, header } in pending {
        let Some(partition) = &broker.partitions[partition] else {
            waits.push(Err(partition::Error::Raft(raft::Error::NotLeader { leader: None })));
            continue;
        };
        let submit = partition.submit(batch.clone(), *header, std::time::Instant::now());
        waits.push(within(broker, submit).await.unwrap_or(Err(partition::Error::Stopped)));
    }
    let mut results = Vec::new();
    for wait in waits {
        results.push(match wait {
            Ok(outcome) => match within(broker, outcome).await {
                Some(Ok(Ok(committed))) => Ok(committed),
                Some(Ok(Err(error))) => Err(Some(error)),
                Some(Err(_)) | None => Err(None),
            },
            Err(error) => Err(Some(error)),
        });
    }
    results
}

/// What a broker answers while it is there and the client waits.
async fn within<T>(broker: &Broker, answer: impl Future<Output = T>) -> Option<T> {
    let answer = broker.gone.run_until_cancelled(timeout(PATIENCE, answer));
    answer.await.and_then(Result::ok)
}

/// The broker to ask: the last one that knew something, or any.
async fn choose(world: &World, target: &mut Option<NodeId>) -> Option<Broker> {
    let node = target.unwrap_or_else(|| *world.chance.pick(&world.plan.nodes));
    let broker = world.broker(node);
    match &broker {
        Some(_) => *target = Some(node),
        None => {
            *target = None;
            sleep(world.chance.millis(5..50)).await;
        }
    }
    broker
}

/// Who may lead, as an error says.
fn hint(world: &World, error: Option<partition::Error>) -> Option<NodeId> {
    match error {
        Some(partition::Error::Raft(raft::Error::NotLeader { leader })) => leader,
        Some(_) => None,
        None => {
            world.checker.count(|counts| counts.unknown += 1);
            None
        }
    }
}

/// Reads a partition from its start on, wherever it can be read, until the run is over.
pub(super) async fn consume(world: Arc<World>, partition: usize) {
    let group = world.partitions()[partition];
    let mut position = Offset(0);
    loop {
        sleep(world.chance.millis(5..80)).await;
        let node = *world.chance.pick(&world.plan.nodes);
        let Some(broker) = world.broker(node) else { continue };
        let Some(replica) = &broker.partitions[partition] else { continue };
        let read = replica.read(position, world.chance.within(1..3_000) as usize);
        match within(&broker, read).await {
            Some(Ok(batches)) => {
                world.checker.read(node, group, position, &batches);
                position = batches.last().map_or(position, |last| last.end());
            }
            Some(Err(partition::Error::OffsetOutOfRange { log_start, .. })) => {
                position = position.max(log_start);
            }
            // Others have it.
            Some(Err(error)) if error.is_damage() && world.damaged().contains_key(&(node, group)) => {}
            // Trimmed while it was read.
            Some(Err(partition::Error::Storage(crate::storage::Error::Purged { .. }))) => {}
            Some(Err(error)) if !broker.gone.is_cancelled() && broker.store.healthy().is_ok() => {
                let error = super::node::chain(&error);
                world.checker.fail(format!("group {group} cannot be read on node {node}: {error}"));
            }
            Some(Err(_)) | None => {}
        }
        // From the start again now and then: what was read once must stay.
        if world.chance.percent(2) {
            position = Offset(0);
        }
    }
}

/// Commits rising offsets of a group of consumers until the run heals, and then until the last one is acknowledged.
pub(super) async fn commit(world: Arc<World>, number: u64) {
    let name = format!("group-{number}");
    let key = PartitionKey { topic: TopicId(1), partition: 0 };
    let mut offset = 0;
    let mut target = None;
    let mut pending = false;
    loop {
        if !pending {
            if world.is_healing() {
                return;
            }
            sleep(world.chance.millis(1..150)).await;
            offset += world.chance.within(1..10);
            pending = true;
        }
        let Some(broker) = choose(&world, &mut target).await else { continue };
        let at = Timestamp(world.trace.millis() as i64);
        let offsets = vec![(key, Offset(offset), "".into())];
        let command = Command::CommitOffsets { group: name.as_str().into(), at, offsets };
        match within(&broker, broker.coordinators.of(&name).change(command)).await {
            Some(Ok(_)) => {
                world.trace.fold(7, [number, offset, 0]);
                world.checker.offset_committed(&name, key, Offset(offset));
                pending = false;
            }
            Some(Err(coordinator::Error::Refused(refusal))) => {
                world.checker.fail(format!("a commit of group {name} is refused: {refusal}"));
            }
            Some(Err(coordinator::Error::Raft(raft::Error::NotLeader { leader }))) => {
                target = leader;
                sleep(world.chance.millis(1..100)).await;
            }
            Some(Err(_)) | None => {
                target = None;
                world.checker.count(|counts| counts.unknown += 1);
                // What is sent again may be newer than what has no answer; never older.
                offset += world.chance.within(0..3);
                sleep(world.chance.millis(1..100)).await;
            }
        }
    }
}
