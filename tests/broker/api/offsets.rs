//! Deleting records and resolving positions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use streambus::proto::v1;
use streambus::proto::v1::position::At;
use tonic::Code;

use crate::support::asking::{append, error, offsets, read};
use crate::support::endpoint::from;
use crate::support::{PATIENCE, Refusal, TestBroker, batch, eventually};

fn delete(partition: u32, before_offset: u64) -> v1::DeleteRecordsRequest {
    v1::DeleteRecordsRequest { topic: "orders".to_owned(), partition, before_offset }
}

/// The moment this many nanoseconds after `millis` since the epoch.
fn moment(millis: i64, nanos: u64) -> At {
    let time = UNIX_EPOCH + Duration::from_millis(millis.try_into().expect("after 1970"));
    At::Time(prost_types::Timestamp::from(time + Duration::from_nanos(nanos)))
}

/// Three batches of three records each.
async fn nine_records() -> TestBroker {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    for _ in 0..3 {
        append(&broker, "orders", 0, batch::values(["a", "b", "c"])).await;
    }
    broker
}

#[tokio::test]
async fn records_below_an_offset_are_deleted_and_the_others_stay() {
    let broker = nine_records().await;
    let mut topics = broker.topics().await;

    let deleted = topics.delete_records(delete(0, 4)).await.expect("deleted").into_inner();

    assert_eq!(deleted.log_start_offset, 4);
    let from_start = read(&broker, "orders", 0, At::Earliest(()), &[]).await;
    // The batch that holds the log start is served whole.
    assert_eq!((from_start.log_start_offset, offsets(&from_start)), (4, vec![3, 6]));
    let below = read(&broker, "orders", 0, At::Offset(3), &[]).await;
    assert_eq!(error(&below).0, v1::ErrorCode::OffsetOutOfRange);
    // What was deleted stays so.
    let deleted = topics.delete_records(delete(0, 2)).await.expect("no change").into_inner();
    assert_eq!(deleted.log_start_offset, 4);
}

#[tokio::test]
async fn all_records_can_be_deleted_and_offsets_go_on() {
    let broker = nine_records().await;

    let deleted = broker.topics().await.delete_records(delete(0, 9)).await.expect("deleted").into_inner();

    assert_eq!(deleted.log_start_offset, 9);
    let nothing = read(&broker, "orders", 0, At::Earliest(()), &[]).await;
    assert_eq!((nothing.next_offset, offsets(&nothing)), (9, vec![]));
    assert_eq!(append(&broker, "orders", 0, batch::values(["d"])).await.base_offset, 9);
    // Also for a broker that learns it from its disk.
    let broker = broker.restart_with(|_| {}).await;
    let after = read(&broker, "orders", 0, At::Earliest(()), &[]).await;
    assert_eq!((after.log_start_offset, offsets(&after)), (9, vec![9]));
}

#[tokio::test]
async fn records_that_do_not_exist_are_not_deleted() {
    let broker = nine_records().await;
    let mut topics = broker.topics().await;

    let refusal = Refusal::of(topics.delete_records(delete(0, 10)).await);

    let refusal = refusal.is(Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    let facts = ["offset", "log_start_offset", "high_watermark", "topic", "partition"];
    assert_eq!(facts.map(|fact| refusal.fact(fact)), ["10", "0", "9", "orders", "0"]);
    let refusal = Refusal::of(topics.delete_records(delete(1, 1)).await);
    let refusal = refusal.is(Code::NotFound, "UNKNOWN_PARTITION");
    assert_eq!((refusal.fact("partition"), refusal.fact("partitions")), ("1", "1"));
}

#[tokio::test]
async fn positions_are_resolved_one_by_one_and_errors_stay_apart() {
    let broker = nine_records().await;
    broker.topics().await.delete_records(delete(0, 3)).await.expect("deleted");
    let positions = vec![
        from("orders", 0, At::Earliest(())),
        from("nowhere", 0, At::Earliest(())),
        from("orders", 0, At::Latest(())),
        from("orders", 1, At::Latest(())),
        from("orders", 0, At::Offset(4)),
        from("orders", 0, At::Offset(2)),
        from("orders", 0, At::Offset(10)),
    ];

    let answer = broker.topics().await.list_offsets(v1::ListOffsetsRequest { positions }).await;

    use v1::ErrorCode::{OffsetOutOfRange, UnknownPartition, UnknownTopic};
    let resolved: Vec<_> = answer.expect("an answer").into_inner().offsets;
    let resolved: Vec<_> = resolved
        .iter()
        .map(|one| one.error.as_ref().map_or(Ok(one.offset), |error| Err(error.code())))
        .collect();
    let expected = [
        Ok(3),
        Err(UnknownTopic),
        Ok(9),
        Err(UnknownPartition),
        Ok(4),
        Err(OffsetOutOfRange),
        Err(OffsetOutOfRange),
    ];
    assert_eq!(resolved, expected);
}

#[tokio::test]
async fn a_time_is_resolved_to_the_first_record_appended_at_it_or_later() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    let first = append(&broker, "orders", 0, batch::values(["a", "b"])).await;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    eventually(PATIENCE, "the clock moves on", async || (now() > first.append_time_ms + 1).then_some(()))
        .await;
    let second = append(&broker, "orders", 0, batch::values(["c"])).await;
    assert!(second.append_time_ms > first.append_time_ms);
    let moments = [
        (moment(0, 0), 0),
        (moment(first.append_time_ms, 0), 0),
        // Times of records have whole milliseconds, so this is after the first batch.
        (moment(first.append_time_ms, 1), 2),
        (moment(first.append_time_ms + 1, 0), 2),
        (moment(second.append_time_ms, 0), 2),
        (moment(second.append_time_ms + 1, 0), 3),
        (moment(now() + 3_600_000, 0), 3),
    ];
    let positions = moments.iter().map(|(at, _)| from("orders", 0, *at)).collect();

    let answer = broker.topics().await.list_offsets(v1::ListOffsetsRequest { positions }).await;

    let resolved: Vec<_> =
        answer.expect("an answer").into_inner().offsets.iter().map(|one| one.offset).collect();
    assert_eq!(resolved, moments.map(|(_, offset)| offset));
    let fetched = read(&broker, "orders", 0, moment(second.append_time_ms, 0), &[]).await;
    assert_eq!(offsets(&fetched), [2]);
}

#[tokio::test]
async fn lists_of_positions_have_bounds_and_name_what_is_missing() {
    let broker = TestBroker::start().await;
    let mut topics = broker.topics().await;
    let good = from("orders", 0, At::Latest(()));
    let unset = v1::PartitionPosition { position: None, ..good.clone() };
    let bad_time = from("orders", 0, At::Time(prost_types::Timestamp { seconds: 0, nanos: -1 }));
    let cases = [
        (vec![], "positions"),
        (vec![good.clone(); 1_001], "positions"),
        (vec![good.clone(), unset], "positions[1].position"),
        (vec![bad_time], "positions[0].position.time"),
    ];
    for (positions, field) in cases {
        Refusal::of(topics.list_offsets(v1::ListOffsetsRequest { positions }).await).names_field(field);
    }
}
