//! `streambus consume` and what it needs to know of the cluster.

use crate::support::endpoint::produce;
use crate::support::tool::{Running, streambus};
use crate::support::{TestBroker, batch, within};

/// A topic with three records in partition 0 and one in partition 1.
async fn uneven() -> TestBroker {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 2).await;
    for (partition, values) in [(0, vec!["a", "b", "c"]), (1, vec!["d"])] {
        let request = produce("orders", partition, batch::values(values));
        within("a commit", broker.produce().await.produce(request)).await.expect("committed");
    }
    broker
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_do_not_reach_the_offset_begin_at_their_end_and_are_named() {
    let broker = uneven().await;
    let ran = streambus(&broker, &["consume", "orders", "--from", "2"]).await;
    assert!(ran.success, "{ran:?}");
    assert_eq!(ran.text, "c\n");
    assert!(ran.errors.contains("partition 1 ends at 1") && !ran.errors.contains("partition 0"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_do_not_go_back_to_the_offset_begin_at_their_log_start_and_are_named() {
    let broker = uneven().await;
    let ran =
        streambus(&broker, &["topic", "delete-records", "orders", "--partition", "0", "--before", "2"]).await;
    assert!(ran.success, "{ran:?}");
    let ran = streambus(&broker, &["consume", "orders", "--from", "0"]).await;
    assert!(ran.success, "{ran:?}");
    let mut read: Vec<_> = ran.text.lines().collect();
    read.sort_unstable();
    assert_eq!(read, ["c", "d"]);
    assert!(ran.errors.contains("partition 0 begins at 2") && !ran.errors.contains("partition 1"), "{ran:?}");
    // With nothing left there is nothing to print.
    let gone = ["topic", "delete-records", "orders", "--partition", "0", "--before", "3"];
    assert!(streambus(&broker, &gone).await.success);
    let ran = streambus(&broker, &["consume", "orders", "--partition", "0", "--from", "1"]).await;
    assert_eq!((ran.success, &ran.text[..]), (true, ""), "{ran:?}");
    assert!(ran.errors.contains("partition 0 begins at 3"), "{ran:?}");
    // Whoever follows begins there too.
    let arguments = ["consume", "orders", "--follow", "--partition", "0", "--from", "1"];
    let mut following = Running::start(&broker, &arguments);
    following
        .until_said("it says where it begins", |said| said.iter().any(|line| line.contains("begins at 3")))
        .await;
    let request = produce("orders", 0, batch::values(["e"]));
    within("a commit", broker.produce().await.produce(request)).await.expect("committed");
    following.until("it goes on", |lines| lines == ["e"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_no_partition_reaches_is_a_failure() {
    let broker = uneven().await;
    let ran = streambus(&broker, &["consume", "orders", "--from", "7"]).await;
    assert!(!ran.success, "{ran:?}");
    assert!(ran.errors.contains("partition 0 ends at 3, partition 1 ends at 1"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_are_described_with_their_racks() {
    let broker = TestBroker::with(|config| config.cluster.rack = "berlin-1".to_owned()).await;
    let ran = streambus(&broker, &["cluster", "describe", "-o", "json"]).await;
    assert_eq!(ran.json()["brokers"][0]["rack"], "berlin-1");
    let ran = streambus(&broker, &["cluster", "describe"]).await;
    assert!(ran.text.contains("RACK") && ran.text.contains("berlin-1"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_group_that_is_read_one_record_at_a_time_loses_none_to_its_dead_letter_topic() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders", 1).await;
    let request = produce("orders", 0, batch::values((0..12).map(|number| number.to_string())));
    within("a commit", broker.produce().await.produce(request)).await.expect("committed");
    // More often than a record is delivered before it is given up.
    for number in 0..12 {
        let ran = streambus(&broker, &["consume", "orders", "--group", "g", "--share", "--count", "1"]).await;
        assert_eq!((ran.success, ran.text), (true, format!("{number}\n")), "{}", ran.errors);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_terminated_commits_what_it_printed_and_leaves() {
    let broker = uneven().await;
    let mut following = Running::start(&broker, &["consume", "orders", "--group", "g", "--follow"]);
    following.until("it prints everything", |lines| lines.len() == 4).await;
    assert!(following.terminated().await);
    let ran = streambus(&broker, &["consume", "orders", "--group", "g"]).await;
    assert_eq!((ran.success, &ran.text[..]), (true, ""), "{ran:?}");
}
