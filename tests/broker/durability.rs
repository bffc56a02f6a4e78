//! What was acknowledged survives the end of the process, however it ends.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use streambus::client::{Client, ProducerConfig, ProducerRecord};
use streambus::proto::v1;
use streambus::proto::v1::position::At;
use streambus::proto::v1::subscribe_request::Action;
use streambus::telemetry::catalog;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::support::endpoint::{fetch, from, produce};
use crate::support::{Endpoint, PATIENCE, Process, batch, eventually, within};

const PARTITIONS: u32 = 3;

/// How often the broker is killed, in each sync mode.
fn kills() -> usize {
    std::env::var("STREAMBUS_TEST_KILLS")
        .map_or(5, |text| text.parse().expect("STREAMBUS_TEST_KILLS is a number"))
}

/// Every record of a partition, as offset and value.
async fn read_all(broker: &Endpoint, topic: &str, partition: u32) -> Vec<(u64, String)> {
    let mut consume = broker.consume().await;
    let mut found = Vec::new();
    let mut next = 0;
    loop {
        let request = v1::FetchRequest { max_bytes: 1 << 20, ..fetch(topic, partition, At::Offset(next)) };
        let answer = consume.fetch(request).await.expect("an answer").into_inner();
        let records = &answer.partitions[0];
        assert_eq!(records.error, None);
        for stored in &records.batches {
            for (number, record) in batch::records(&stored.batch).into_iter().enumerate() {
                let value = String::from_utf8(record.value.expect("a value").to_vec()).expect("text");
                found.push((stored.base_offset + number as u64, value));
            }
        }
        if records.next_offset == records.high_watermark {
            return found;
        }
        next = records.next_offset;
    }
}

/// What the broker acknowledged: value by partition and offset.
type Acknowledged = Arc<Mutex<BTreeMap<(u32, u64), u64>>>;

/// Sends numbered records, round robin over the partitions, until it is told to stop; gives how many.
async fn feed(client: Client, acknowledged: Acknowledged, stop: Arc<AtomicBool>) -> u64 {
    let config =
        ProducerConfig { linger: Duration::from_millis(1), batch_bytes: 4096, ..ProducerConfig::default() };
    let producer = client.producer(config).await.expect("a producer");
    let failed = Arc::new(AtomicUsize::new(0));
    let in_flight = Arc::new(tokio::sync::Semaphore::new(500));
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        let permit = in_flight.clone().acquire_owned().await.expect("open");
        let partition = (number % u64::from(PARTITIONS)) as u32;
        let record = ProducerRecord::new("numbers").partition(partition).value(number.to_string());
        let (acknowledged, failed) = (acknowledged.clone(), failed.clone());
        producer
            .send_with(record, move |outcome| {
                drop(permit);
                match outcome {
                    Ok(at) => {
                        let mut acknowledged = acknowledged.lock().expect("no panic while held");
                        let again = acknowledged.insert((at.partition, at.offset.0), number);
                        assert_eq!(again, None, "one offset was given to two records");
                    }
                    Err(error) => {
                        eprintln!("record {number} failed: {error}");
                        failed.fetch_add(1, Ordering::AcqRel);
                    }
                }
            })
            .await
            .expect("taken");
        number += 1;
    }
    within("what was sent is delivered", producer.close()).await;
    assert_eq!(failed.load(Ordering::Acquire), 0, "retries deliver every record in the end");
    number
}

/// Kills the broker again and again while a producer sends, and compares what was acknowledged with what is there.
async fn survives_kills(sync: &str) {
    let mut broker = Process::start(&[("storage.sync", sync)]).await;
    // The producer lives on, so the broker must come back where it was.
    let grpc = broker.grpc.to_string();
    broker.create_topic("numbers", PARTITIONS).await;
    let (acknowledged, stop) = (Acknowledged::default(), Arc::new(AtomicBool::new(false)));
    let feeding = tokio::spawn(feed(broker.client().await, acknowledged.clone(), stop.clone()));
    let so_far = || acknowledged.lock().expect("no panic while held").len();
    let kills = kills();
    for kill in 0..kills {
        let target = so_far() + 50 + kill * 97 % 400;
        eventually(PATIENCE, "records are acknowledged", async || {
            assert!(!feeding.is_finished());
            (so_far() >= target).then_some(())
        })
        .await;
        broker = broker.kill().set("api.grpc_listen", &grpc).start().await;
    }
    let target = so_far() + 50;
    eventually(PATIENCE, "records are acknowledged after the last kill", async || {
        (so_far() >= target).then_some(())
    })
    .await;
    stop.store(true, Ordering::Release);
    let sent = within("the producer ends", feeding).await.expect("no panic");
    let broker = broker.stop().await.start().await;

    let acknowledged = acknowledged.lock().expect("no panic while held").clone();
    assert_eq!(acknowledged.len() as u64, sent);
    for partition in 0..PARTITIONS {
        let found = read_all(&broker, "numbers", partition).await;
        let expected: Vec<_> = (u64::from(partition)..sent)
            .step_by(PARTITIONS as usize)
            .enumerate()
            .map(|(offset, number)| (offset as u64, number.to_string()))
            .collect();
        let differ = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        assert_eq!(
            differ,
            None,
            "partition {partition}: first difference of {} and {}",
            found.len(),
            expected.len()
        );
        assert_eq!(found.len(), expected.len(), "partition {partition}: lost, doubled or extra records");
        for (offset, value) in found {
            assert_eq!(
                acknowledged[&(partition, offset)].to_string(),
                value,
                "partition {partition}, {offset}"
            );
        }
    }
    println!("sync = {sync}: {kills} kills, {sent} records, each acknowledged and read back once, in order");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_that_was_acknowledged_with_sync_always() {
    survives_kills("always").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_that_was_acknowledged_with_sync_interval() {
    survives_kills("interval").await;
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_cut_and_nothing_acknowledged_is_lost() {
    let broker = Process::start(&[]).await;
    broker.create_topic("t", 1).await;
    let mut client = broker.produce().await;
    for number in 0..50 {
        client.produce(produce("t", 0, batch::values([number.to_string()]))).await.expect("committed");
    }
    let remains = broker.kill();
    let mut found = Vec::new();
    files(&remains.data_dir(), &mut found);
    let journal =
        found.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "jnl"));
    let newest = journal.max().expect("a journal");
    let bytes = std::fs::read(&newest).expect("readable");
    // A write that was under way when the power failed: the beginning of one like the last.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let torn = bytes[end.saturating_sub(60)..end].to_vec();
    let mut file = std::fs::OpenOptions::new().write(true).open(&newest).expect("writable");
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(end as u64)).expect("seekable");
    file.write_all(&torn[..torn.len() / 2]).expect("written");
    drop(file);

    let broker = remains.start().await;
    let found = read_all(&broker, "t", 0).await;
    assert_eq!(found, (0..50).map(|number| (number, number.to_string())).collect::<Vec<_>>());
    let answer =
        broker.produce().await.produce(produce("t", 0, batch::values(["next"]))).await.expect("committed");
    assert_eq!(answer.into_inner().base_offset, 50);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_topics_records_offsets_and_producers() {
    let broker = Process::start(&[]).await;
    let config = v1::TopicConfig { retention_bytes: Some(12_345_678), ..Default::default() };
    broker.create_topic_with("kept", 2, config).await;
    broker.create_topic("gone", 1).await;
    broker
        .topics()
        .await
        .delete_topic(v1::DeleteTopicRequest { name: "gone".to_owned() })
        .await
        .expect("deleted");
    let mut client = broker.produce().await;
    let id = client.init_producer(v1::InitProducerRequest {}).await.expect("an id").into_inner();
    let request = v1::ProduceRequest {
        producer: Some(v1::ProducerSequence {
            producer_id: id.producer_id,
            epoch: id.epoch,
            base_sequence: 0,
        }),
        ..produce("kept", 1, batch::values(["a", "b", "c"]))
    };
    client.produce(request.clone()).await.expect("committed");
    let delete = v1::DeleteRecordsRequest { topic: "kept".to_owned(), partition: 1, before_offset: 2 };
    broker.topics().await.delete_records(delete).await.expect("deleted");
    let describe = v1::DescribeTopicRequest { name: "kept".to_owned() };
    let before =
        broker.topics().await.describe_topic(describe.clone()).await.expect("described").into_inner();
    let cluster = broker.cluster().await.describe_cluster(v1::DescribeClusterRequest::default()).await;
    let cluster = cluster.expect("described").into_inner();

    let broker = broker.stop().await.start().await;
    let after = broker.topics().await.describe_topic(describe).await.expect("described").into_inner();
    assert_eq!(after.topic, before.topic);
    let offsets = |described: &v1::DescribeTopicResponse| -> Vec<_> {
        described.partitions.iter().map(|p| (p.log_start_offset, p.high_watermark, p.size_bytes)).collect()
    };
    assert_eq!(offsets(&after), offsets(&before));
    assert_eq!((after.partitions[1].log_start_offset, after.partitions[1].high_watermark), (2, 3));
    let topics = broker.topics().await.list_topics(v1::ListTopicsRequest::default()).await.expect("listed");
    assert_eq!(topics.into_inner().topics.len(), 1);
    let again = broker.produce().await.produce(request).await.expect("recognised").into_inner();
    assert_eq!((again.base_offset, again.duplicate), (0, true), "a retry is recognised after a restart");
    let other =
        broker.produce().await.init_producer(v1::InitProducerRequest {}).await.expect("an id").into_inner();
    assert!(other.producer_id > id.producer_id, "a producer id is given once");
    let same = broker.cluster().await.describe_cluster(v1::DescribeClusterRequest::default()).await;
    let same = same.expect("described").into_inner();
    assert_eq!((same.cluster_id, same.broker_id), (cluster.cluster_id, cluster.broker_id));
    broker.stop().await;
}

/// A subscription to much data whose client never reads. It keeps a drain from finishing.
async fn stuck_subscription(
    broker: &Endpoint,
) -> (Streaming<v1::SubscribeResponse>, mpsc::Sender<v1::SubscribeRequest>) {
    broker.create_topic("much", 1).await;
    let mut client = broker.produce().await;
    for seed in 0..6 {
        client.produce(produce("much", 0, batch::noise(seed, 8, 64 << 10))).await.expect("committed");
    }
    let (requests, receiver) = mpsc::channel(4);
    let start = v1::StartSubscription {
        partitions: vec![from("much", 0, At::Earliest(()))],
        credit_bytes: 1 << 40,
        accepted_codecs: Vec::new(),
    };
    requests.send(v1::SubscribeRequest { action: Some(Action::Start(start)) }).await.expect("open");
    let stream =
        broker.consume().await.subscribe(ReceiverStream::new(receiver)).await.expect("a subscription");
    eventually(PATIENCE, "the subscription is stuck", async || {
        let view = broker.scrape().await;
        (view.total(&catalog::MESSAGES_CONSUMED, "") >= 1.0).then_some(())
    })
    .await;
    (stream.into_inner(), requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_acknowledges_what_is_in_flight_and_ends_streams_with_unavailable() {
    let mut broker = Process::start(&[]).await;
    broker.create_topic("t", 1).await;
    let mut client = broker.produce().await;
    let (requests, receiver) = mpsc::channel(64);
    let mut results =
        client.produce_stream(ReceiverStream::new(receiver)).await.expect("a stream").into_inner();
    let sending = tokio::spawn(async move {
        for number in 0_u64.. {
            let request = v1::ProduceStreamRequest {
                correlation_id: number,
                topic: "t".to_owned(),
                batch: batch::values([number.to_string()]),
                ..Default::default()
            };
            if requests.send(request).await.is_err() {
                return;
            }
        }
    });
    let mut acknowledged = Vec::new();
    let mut terminated = None;
    let status = loop {
        match within("the stream goes on or ends", results.message()).await {
            Ok(Some(answer)) => {
                for result in answer.results {
                    match result.outcome.expect("an outcome") {
                        v1::produce_result::Outcome::Committed(committed) => {
                            acknowledged.push((committed.base_offset, result.correlation_id.to_string()));
                        }
                        v1::produce_result::Outcome::Error(error) => {
                            assert_eq!(error.code(), v1::ErrorCode::NotReady, "{error:?}");
                        }
                    }
                }
            }
            Ok(None) => panic!("the stream ended without a status"),
            Err(status) => break status,
        }
        if acknowledged.len() >= 100 && terminated.is_none() {
            broker.terminate();
            terminated = Some(Instant::now());
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let ended = broker.ended(Duration::from_secs(5)).await;
    assert!(ended.success(), "the exit code is 0, not {ended}");
    println!("drained in {:?}", terminated.expect("terminated").elapsed());
    sending.abort();
    let broker = broker.kill().start().await;
    // What was acknowledged is exactly what is there: nothing that was read from the stream went without its result.
    assert_eq!(read_all(&broker, "t", 0).await, acknowledged);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_flips_before_anything_ends_and_a_stuck_client_is_cut() {
    let mut broker = Process::start(&[("server.drain_timeout", "1s")]).await;
    let (stuck, _requests) = stuck_subscription(&broker).await;
    assert_eq!(broker.get("/health/ready").await.status, 200);
    broker.terminate();
    let reason = eventually(PATIENCE, "the broker is not ready any more", async || {
        let (status, body) = broker.health("/health/ready").await;
        (status == 503).then_some(body)
    })
    .await;
    assert_eq!(reason["reason"], "draining");
    assert_eq!(broker.get("/health/live").await.status, 200);
    assert_eq!(broker.get("/health/startup").await.status, 200);
    let (status, health) = broker.health("/health").await;
    assert_eq!((status, health["status"].as_str()), (503, Some("unhealthy")));
    assert_eq!(broker.scrape().await.get(&catalog::BROKER_STATUS, &[]), Some(3.0), "stopping");
    let ended = broker.ended(Duration::from_secs(5)).await;
    assert!(ended.success(), "{ended}");
    drop(stuck);
    assert_eq!(broker.events("broker.draining").len(), 1);
    assert_eq!(broker.events("broker.drain_cut").len(), 1, "the log says that a call was cut");
    assert_eq!(broker.events("broker.stopped").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_the_process_at_once() {
    let mut broker = Process::start(&[("server.drain_timeout", "10m")]).await;
    let (stuck, _requests) = stuck_subscription(&broker).await;
    broker.terminate();
    eventually(PATIENCE, "the broker drains", async || {
        (broker.get("/health/ready").await.status == 503).then_some(())
    })
    .await;
    broker.terminate();
    let ended = broker.ended(Duration::from_secs(2)).await;
    assert_eq!(ended.code(), Some(1));
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_store_fails_ends_and_has_everything_after_the_next_start() {
    let settings = [("storage.table_bytes", "1MiB"), ("server.drain_timeout", "1s")];
    let mut broker = Process::start(&settings).await;
    broker.create_topic("orders", 1).await;
    let value = |number: u64| format!("{number} {}", "x".repeat(60_000));
    let mut produce_client = broker.produce().await;
    let mut put = async |number: u64| {
        produce_client.produce(produce("orders", 0, batch::values([value(number)]))).await
    };
    put(0).await.expect("committed");
    let mut acknowledged = 1;
    // The next table cannot be written: its directory is not there.
    let tables = broker.data_dir().join("tables/keyspaces");
    let aside = broker.data_dir().join("aside");
    std::fs::rename(&tables, &aside).expect("moved away");
    let deadline = Instant::now() + PATIENCE;
    while put(acknowledged).await.is_ok() {
        acknowledged += 1;
        assert!(Instant::now() < deadline, "the store does not fail");
    }
    let ended = broker.ended(PATIENCE).await;
    assert_eq!(ended.code(), Some(1));
    let why = broker.events("storage.engine");
    let reason = why.first().and_then(|line| line["reason"].as_str()).expect("the engine's reason");
    assert!(reason.contains("NotFound"), "{reason}");
    assert_eq!(broker.events("storage.failed").len(), 1);
    assert_eq!(broker.events("broker.stopped").len(), 1, "in order");
    let last = "works again only after a start";
    eventually(PATIENCE, "it says why", async || broker.said().contains(last).then_some(())).await;
    std::fs::rename(&aside, &tables).expect("moved back");

    let broker = broker.kill().start().await;
    let found = read_all(&broker, "orders", 0).await;
    assert!(found.len() as u64 >= acknowledged, "{} of {acknowledged}", found.len());
    assert!(
        found.iter().zip(0..).all(|((offset, read), number)| *offset == number && *read == value(number))
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_broker_starts_and_stops_quickly() {
    let started = Instant::now();
    let mut broker = Process::start(&[]).await;
    let ready = broker.events("broker.ready");
    let took = ready[0]["took_ms"].as_u64().expect("a number");
    println!("ready after {took} ms, {:?} with the process", started.elapsed());
    broker.terminate();
    assert!(broker.ended(Duration::from_secs(5)).await.success());
    let mut all = broker.log();
    all.retain(|line| line["level"] != "INFO");
    assert_eq!(all, Vec::<serde_json::Value>::new(), "a quiet life logs no warning");
}
