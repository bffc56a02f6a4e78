//! Reading once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use tokio::time::{Instant, timeout};
use tonic::Request;
use tonic::metadata::MetadataValue;

use super::batch::{ConsumedBatch, Received};
use crate::client::message::partition_position;
use crate::client::routing::Router;
use crate::client::telemetry::{TRACEPARENT, TRACESTATE, Telemetry, current_wire_context};
use crate::client::{CodecSet, Error, Offset, Position, TopicPartition};
use crate::proto::v1;
use crate::record::Codec;

/// How to read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchOptions {
    /// Answer as soon as this many bytes are there. Default 1.
    pub min_bytes: u32,
    /// Answer with at most about this many bytes, but at least one batch. Default 1 MiB.
    pub max_bytes: u32,
    /// Answer after this time even if there is nothing. Default 500 ms, at most 60 s.
    pub max_wait: Duration,
    /// Codecs that batches may arrive in; a broker decompresses the others. Default all.
    pub accepted_codecs: CodecSet,
    /// Largest batch after decompression that is accepted, in bytes. Default 64 MiB.
    pub uncompressed_bytes_max: usize,
}

impl Default for FetchOptions {
    fn default() -> Self {
        FetchOptions {
            min_bytes: 1,
            max_bytes: 1 << 20,
            max_wait: Duration::from_millis(500),
            accepted_codecs: CodecSet::ALL,
            uncompressed_bytes_max: 64 << 20,
        }
    }
}

/// What was read from a partition.
#[derive(Clone, Debug)]
pub struct FetchedPartition {
    /// The partition.
    pub at: TopicPartition,
    /// Offset of the oldest retained record.
    pub log_start: Offset,
    /// Offset after the last committed record.
    pub high_watermark: Offset,
    /// Where to read next.
    pub next_offset: Offset,
    /// The batches; none if there is nothing new.
    pub batches: Vec<ConsumedBatch>,
}

pub(in crate::client) async fn fetch(
    router: &Arc<Router>,
    telemetry: &Arc<Telemetry>,
    partitions: &[(TopicPartition, Position)],
    options: &FetchOptions,
) -> Result<Vec<Result<FetchedPartition, Error>>, Error> {
    let mut by_leader: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (number, (at, _)) in partitions.iter().enumerate() {
        let route = router.route(&at.topic).await?;
        route.check(at.partition)?;
        let leader = route.leader(at.partition).ok_or_else(|| Error::no_leader(&at.topic, at.partition))?;
        by_leader.entry(leader).or_default().push(number);
    }
    let calls = by_leader.into_iter().map(async |(leader, numbers)| {
        let wanted: Vec<_> = numbers.iter().map(|number| partitions[*number].clone()).collect();
        let answers = fetch_from(router, telemetry, leader, &wanted, options).await?;
        Ok::<_, Error>(numbers.into_iter().zip(answers))
    });
    let mut answers: Vec<_> = try_join_all(calls).await?.into_iter().flatten().collect();
    answers.sort_by_key(|(number, _)| *number);
    Ok(answers.into_iter().map(|(_, answer)| answer).collect())
}

async fn fetch_from(
    router: &Router,
    telemetry: &Arc<Telemetry>,
    leader: u64,
    wanted: &[(TopicPartition, Position)],
    options: &FetchOptions,
) -> Result<Vec<Result<FetchedPartition, Error>>, Error> {
    let (began, since) = (SystemTime::now(), Instant::now());
    let address = router.address(leader)?;
    let call = router.connections().shared(&address).await?;
    let mut request = Request::new(v1::FetchRequest {
        partitions: wanted.iter().map(|(at, position)| partition_position(at, *position)).collect(),
        min_bytes: options.min_bytes,
        max_bytes: options.max_bytes,
        max_wait: options.max_wait.try_into().ok(),
        accepted_codecs: options.accepted_codecs.iter().map(Codec::number).collect(),
    });
    carry_context(&mut request);
    let limit = router.config().request_timeout + options.max_wait;
    let response = match timeout(limit, call.consume().fetch(request)).await {
        Ok(result) => result.map_err(Error::from),
        Err(_) => Err(Error::Timeout { from: Some(address.clone()), after: limit }),
    };
    let response = match response {
        Ok(response) => response.into_inner(),
        Err(error) => {
            if matches!(error, Error::Connection { .. } | Error::Timeout { .. }) {
                router.connections().forget(&address);
            }
            telemetry.poll_failed(since.elapsed(), &error);
            return Err(error);
        }
    };
    if response.partitions.len() != wanted.len() {
        let what = format!("{} partitions instead of {}", response.partitions.len(), wanted.len());
        return Err(Error::InvalidResponse { what });
    }
    let opened = response.partitions.into_iter().zip(wanted).map(|(records, (at, position))| {
        let fetched = open(records, at, *position, options)?;
        let count = fetched.batches.iter().map(ConsumedBatch::record_count).sum();
        if count > 0 {
            telemetry.polling(&at.topic).handed_out(count, since.elapsed());
            let contexts: Vec<_> = fetched.batches.iter().flat_map(ConsumedBatch::sampled_contexts).collect();
            telemetry.polled(&at.topic, at.partition, count, began, &contexts);
        }
        Ok(fetched)
    });
    Ok(opened.collect())
}

fn open(
    records: v1::PartitionRecords,
    at: &TopicPartition,
    position: Position,
    options: &FetchOptions,
) -> Result<FetchedPartition, Error> {
    if let Some(error) = records.error {
        return Err(Error::from(error).at(&at.topic, at.partition));
    }
    let (high_watermark, log_start) = (records.high_watermark, records.log_start_offset);
    let open = |stored: v1::StoredBatch| {
        let from = match position {
            Position::Offset(from) => from,
            _ => Offset(stored.base_offset),
        };
        Received::new(stored, from, high_watermark, log_start).open(at, options.uncompressed_bytes_max)
    };
    Ok(FetchedPartition {
        at: at.clone(),
        log_start: Offset(log_start),
        high_watermark: Offset(high_watermark),
        next_offset: Offset(records.next_offset),
        batches: records.batches.into_iter().map(open).collect::<Result<_, _>>()?,
    })
}

/// Lets the broker's span become a child of the current one, if that is sampled.
fn carry_context<T>(request: &mut Request<T>) {
    let Some(context) = current_wire_context() else { return };
    for (name, value) in [(TRACEPARENT, context.traceparent), (TRACESTATE, context.tracestate)] {
        // A state that does not fit into a header is left out.
        if let Ok(value) = MetadataValue::try_from(value)
            && !value.is_empty()
        {
            request.metadata_mut().insert(name, value);
        }
    }
}
