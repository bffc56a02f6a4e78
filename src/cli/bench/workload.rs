//! The workloads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::{BufMut as _, BytesMut};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::client::{Client, ConsumerConfig, Delivery, Position, Producer, ProducerConfig, ProducerRecord};

use super::Load;
use super::payload::Payload;
use super::report::Measured;

pub(super) const RECORDS: u64 = 200_000;
const RECORDS_ONE_BY_ONE: u64 = 10_000;
const IN_FLIGHT: usize = 1_000;
const LINGER: Duration = Duration::from_millis(5);
/// Rounds before the measured ones, so that connections are there.
const WARM_UP: u64 = 100;
/// One in this many records of `produce` is timed, so that looking at the clock does not slow the others.
const TIMED: u64 = 8;
/// Bytes at the start of a record of `e2e` that say which one it is.
const NUMBER_BYTES: usize = 8;

/// Sends as fast as records are acknowledged, or at the rate that was asked for.
pub(super) async fn produce(client: &Client, load: &Load) -> anyhow::Result<Measured> {
    let in_flight = load.in_flight.unwrap_or(IN_FLIGHT);
    let config = load.producer_config(LINGER, in_flight);
    let records = load.records.unwrap_or(RECORDS);
    let (topic, payload) = (load.topic(), load.payload());
    let mut producers = Vec::with_capacity(load.producers);
    for _ in 0..load.producers {
        let producer = client.producer(config.clone()).await?;
        producer.prepare(&topic).await?;
        producers.push(producer);
    }
    let count = load.producers as u64;
    let started = Instant::now();
    let tasks = producers.into_iter().zip(0u64..).map(|(producer, number)| {
        let share = records / count + u64::from(number < records % count);
        let (topic, payload) = (Arc::clone(&topic), payload.clone());
        let rate = load.rate.map(|rate| f64::from(rate) / count as f64);
        tokio::spawn(async move {
            match rate {
                Some(rate) => send_at(rate, producer, topic, payload, share, in_flight).await,
                None => send(producer, topic, payload, share, in_flight).await,
            }
        })
    });
    let mut latency = Histogram::new(3)?;
    for result in try_join_all(tasks).await? {
        latency.add(result?)?;
    }
    let took = started.elapsed();
    let partitions = client.partitions(&topic).await?.len();
    let (linger, latency) = (config.linger, Some(latency));
    Ok(Measured { workload: "produce", records, took, latency, in_flight, linger, partitions })
}

async fn send(
    producer: Producer,
    topic: Arc<str>,
    mut payload: Payload,
    records: u64,
    in_flight: usize,
) -> anyhow::Result<Histogram<u64>> {
    let mut waiting = VecDeque::with_capacity(in_flight);
    let mut latency = Histogram::new(3)?;
    for number in 0..records {
        if waiting.len() == in_flight
            && let Some(oldest) = waiting.pop_front()
        {
            acknowledged(oldest, &mut latency).await?;
        }
        let record = ProducerRecord::new(Arc::clone(&topic)).value(payload.next());
        let sent = number.is_multiple_of(TIMED).then(Instant::now);
        waiting.push_back((producer.send(record).await?, sent));
    }
    if !waiting.is_empty() {
        producer.flush().await;
    }
    for oldest in waiting {
        acknowledged(oldest, &mut latency).await?;
    }
    Ok(latency)
}

/// Sends `rate` records per second, and times each from when it was due. Timers of the runtime tick every millisecond, which
/// is part of what is measured.
async fn send_at(
    rate: f64,
    producer: Producer,
    topic: Arc<str>,
    mut payload: Payload,
    records: u64,
    in_flight: usize,
) -> anyhow::Result<Histogram<u64>> {
    let (sent, mut waiting) = mpsc::channel(in_flight);
    let sends = async move {
        let started = Instant::now();
        for number in 0..records {
            let due = started + Duration::from_secs_f64(number as f64 / rate);
            if due > Instant::now() {
                tokio::time::sleep_until(due.into()).await;
            }
            let record = ProducerRecord::new(Arc::clone(&topic)).value(payload.next());
            // Nobody takes it if a delivery has failed, which ends both.
            let _ = sent.send((producer.send(record).await?, Some(due))).await;
        }
        producer.flush().await;
        anyhow::Ok(())
    };
    let acknowledgements = async move {
        let mut latency = Histogram::new(3)?;
        while let Some(oldest) = waiting.recv().await {
            acknowledged(oldest, &mut latency).await?;
        }
        Ok(latency)
    };
    let ((), latency) = tokio::try_join!(sends, acknowledgements)?;
    Ok(latency)
}

/// Waits for the oldest record under way, and notes how long it took if it is timed.
async fn acknowledged(
    (delivery, sent): (Delivery, Option<Instant>),
    latency: &mut Histogram<u64>,
) -> anyhow::Result<()> {
    delivery.await?;
    if let Some(sent) = sent {
        latency.record(nanos(sent.elapsed()))?;
    }
    Ok(())
}

/// Reads all partitions from the start.
pub(super) async fn consume(client: &Client, load: &Load) -> anyhow::Result<Measured> {
    let records = load.records.unwrap_or(RECORDS);
    let partitions = client.partitions(&load.topic).await?;
    let count = partitions.len();
    check_stored(client, load, records).await?;
    let started = Instant::now();
    let start = partitions.into_iter().map(|at| (at, Position::Earliest));
    let mut consumer = client.consumer(start, ConsumerConfig::default()).await?;
    let (mut seen, mut bytes) = (0, 0);
    while seen < records {
        let batch = consumer.next_batch().await.context("no partition is left to read")??;
        for record in batch {
            seen += 1;
            bytes += record.value.map_or(0, |value| value.len());
        }
    }
    let took = started.elapsed();
    check_bytes(load, seen, bytes)?;
    Ok(Measured {
        workload: "consume",
        records: seen,
        took,
        latency: None,
        in_flight: 0,
        linger: Duration::ZERO,
        partitions: count,
    })
}

/// Fails unless the topic has so many records.
pub(super) async fn check_stored(client: &Client, load: &Load, records: u64) -> anyhow::Result<()> {
    let described = client.admin().describe_topic(&load.topic).await?;
    let of = described
        .partitions
        .iter()
        .map(|partition| partition.high_watermark.saturating_since(partition.log_start));
    let stored: u64 = of.sum();
    if stored < records {
        bail!(
            "topic {} has {stored} records and not {records}; send some with `streambus bench produce`, or read \
             fewer with --records",
            load.topic
        );
    }
    Ok(())
}

/// Fails unless the records that were read have the size that is reported.
pub(super) fn check_bytes(load: &Load, seen: u64, bytes: usize) -> anyhow::Result<()> {
    if bytes as u64 != seen * load.record_bytes as u64 {
        bail!(
            "the records in topic {} do not have {} bytes each; give --record-bytes",
            load.topic,
            load.record_bytes
        );
    }
    Ok(())
}

/// Sends one record at a time.
pub(super) async fn latency(client: &Client, load: &Load) -> anyhow::Result<Measured> {
    let config = load.producer_config(Duration::ZERO, 1);
    let linger = config.linger;
    let records = load.records.unwrap_or(RECORDS_ONE_BY_ONE);
    let producer = client.producer(config).await?;
    let (topic, mut payload) = (load.topic(), load.payload());
    let mut latency = Histogram::new(3)?;
    let mut started = Instant::now();
    for round in 0..WARM_UP + records {
        if round == WARM_UP {
            started = Instant::now();
        }
        let sent = Instant::now();
        producer.send(ProducerRecord::new(Arc::clone(&topic)).value(payload.next())).await?.await?;
        if round >= WARM_UP {
            latency.record(nanos(sent.elapsed()))?;
        }
    }
    let took = started.elapsed();
    producer.close().await;
    let partitions = client.partitions(&topic).await?.len();
    let latency = Some(latency);
    Ok(Measured { workload: "latency", records, took, latency, in_flight: 1, linger, partitions })
}

/// Sends records and receives them.
pub(super) async fn end_to_end(client: &Client, load: &Load) -> anyhow::Result<Measured> {
    let in_flight = load.in_flight.unwrap_or(1);
    let config: ProducerConfig = load.producer_config(Duration::ZERO, in_flight);
    let linger = config.linger;
    let records = load.records.unwrap_or(RECORDS_ONE_BY_ONE) + WARM_UP;
    let topic = load.topic();
    let partitions = client.partitions(&topic).await?;
    let count = partitions.len();
    let start = partitions.into_iter().map(|at| (at, Position::Latest));
    let mut consumer = client.consumer(start, ConsumerConfig::default()).await?;
    let producer = client.producer(config).await?;
    let mut payload = Payload::new(load.record_bytes.saturating_sub(NUMBER_BYTES));
    let mut sent = Vec::with_capacity(usize::try_from(records)?);
    let mut latency = Histogram::new(3)?;
    let (mut received, mut started) = (0, Instant::now());
    while received < records {
        while (sent.len() as u64) < records && sent.len() as u64 - received < in_flight as u64 {
            if sent.len() as u64 == WARM_UP {
                started = Instant::now();
            }
            let mut value = BytesMut::with_capacity(load.record_bytes.max(NUMBER_BYTES));
            value.put_u64(sent.len() as u64);
            value.put(payload.next());
            sent.push(Instant::now());
            // That it was not acknowledged would show by its not coming.
            drop(producer.send(ProducerRecord::new(Arc::clone(&topic)).value(value.freeze())).await?);
        }
        let batch = consumer.next_batch().await.context("no partition is left to read")??;
        for record in batch {
            let number = number_of(record.value.as_deref())?;
            received += 1;
            if let Some(sent) = sent.get(number).filter(|_| number as u64 >= WARM_UP) {
                latency.record(nanos(sent.elapsed()))?;
            }
        }
    }
    let took = started.elapsed();
    producer.close().await;
    let (records, latency) = (records - WARM_UP, Some(latency));
    Ok(Measured { workload: "e2e", records, took, latency, in_flight, linger, partitions: count })
}

fn number_of(value: Option<&[u8]>) -> anyhow::Result<usize> {
    let first = value.and_then(|value| value.first_chunk::<NUMBER_BYTES>());
    let number = first.map(|bytes| u64::from_be_bytes(*bytes));
    let number = number.and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| anyhow!("somebody else sends to the topic; use another with --topic"))
}

/// Makes empty calls one at a time, those of the gRPC health service.
pub(super) async fn rpc(broker: &str, load: &Load) -> anyhow::Result<Measured> {
    let records = load.records.unwrap_or(RECORDS_ONE_BY_ONE);
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{broker}"))?.tcp_nodelay(true);
    let mut health = HealthClient::new(endpoint.connect().await?);
    let mut latency = Histogram::new(3)?;
    let mut started = Instant::now();
    for round in 0..WARM_UP + records {
        if round == WARM_UP {
            started = Instant::now();
        }
        let sent = Instant::now();
        health.check(HealthCheckRequest::default()).await?;
        if round >= WARM_UP {
            latency.record(nanos(sent.elapsed()))?;
        }
    }
    let took = started.elapsed();
    let latency = Some(latency);
    Ok(Measured {
        workload: "rpc",
        records,
        took,
        latency,
        in_flight: 1,
        linger: Duration::ZERO,
        partitions: 0,
    })
}

/// Latencies are far below the 584 years that fit.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
