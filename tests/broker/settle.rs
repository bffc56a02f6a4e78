//! `streambus bench settle` settles groups, and sees what members notice when others come and go.

use serde_json::Value;

use crate::support::TestBroker;
use crate::support::tool::streambus;

const SMALL: [&str; 16] = [
    "bench",
    "settle",
    "--groups",
    "3",
    "--members",
    "3",
    "--partitions",
    "6",
    "--kill",
    "2",
    "--fed",
    "6",
    "--every",
    "20ms",
    "--watch",
    "1s",
];

#[tokio::test(flavor = "multi_thread")]
async fn groups_settle_and_only_what_must_moves() {
    let broker = TestBroker::start().await;
    let ran = streambus(&broker, &SMALL).await;
    assert!(ran.success, "{ran:?}");
    let report = ran.json();
    assert_eq!(
        (&report["groups"], &report["members"], &report["partitions"]),
        (&3.into(), &3.into(), &6.into())
    );
    let number = |of: &Value, name: &str| of[name].as_f64().unwrap_or_else(|| panic!("{name} in {report}"));
    assert!(number(&report, "settled_ms") >= number(&report, "joined_ms"), "{report}");
    // A third of the partitions of two groups go with the member that dies, and as many come back with it. Of those who
    // stay nobody loses one to another of them.
    let (quiet, leave, join) = (&report["quiet"], &report["leave"], &report["join"]);
    for (phase, moved, watched) in [(quiet, 0, 18), (leave, 4, 14), (join, 4, 14)] {
        assert_eq!((&phase["moved"], &phase["watched"]), (&moved.into(), &watched.into()), "{report}");
        assert_eq!(phase["moved_needlessly"], 0, "{report}");
        assert!(number(phase, "gap_ms") > 0.0 && number(phase, "produce_gap_ms") > 0.0, "{report}");
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_make_no_sense_are_refused() {
    let broker = TestBroker::start().await;
    for wrong in [["--members", "7"], ["--kill", "4"], ["--fed", "7"], ["--groups", "0"], ["--watch", "1ms"]]
    {
        let at = SMALL.iter().position(|argument| *argument == wrong[0]).expect("a setting");
        let mut arguments = SMALL;
        arguments[at + 1] = wrong[1];
        let ran = streambus(&broker, &arguments).await;
        assert!(!ran.success && ran.errors.contains(wrong[0]), "{wrong:?}: {ran:?}");
    }
    broker.stop().await;
}
