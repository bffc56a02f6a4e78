//! A sample as plain text, for pipes and files.

use std::fmt::Write as _;

use super::sample::Sample;
use super::words::{bytes, count, seconds};
use crate::cli::output;

/// Topics, partitions and groups that are written.
const LINES_MAX: usize = 10;

/// The sample in a few lines. Every line of a list begins with what it is about, so that `grep` finds it.
// INVARIANT of every `writeln!` below: writing into a `String` cannot fail, so its result is not looked at.
pub(super) fn text(sample: &Sample) -> String {
    let health = &sample.health;
    let mut text =
        format!("time       {}, over {:.1} s\n", output::time(sample.at), sample.interval.as_secs_f64());
    let _ = writeln!(
        text,
        "cluster    {} of {} brokers reached, controller {}; {} partitions: {} leaderless, {} under-replicated, {} moving",
        health.reached,
        health.brokers,
        health.controller.map_or_else(|| "none".to_owned(), |id| id.to_string()),
        health.partitions,
        health.leaderless,
        health.under_replicated,
        health.moving,
    );
    for (name, flow) in [("produced", sample.produced), ("consumed", sample.consumed)] {
        let _ = writeln!(text, "{name:<10} {} records/s, {}/s", count(flow.records), bytes(flow.bytes));
    }
    let phases: Vec<_> =
        sample.phases.iter().map(|(phase, p99)| format!("{phase} {}", seconds(*p99))).collect();
    let _ = writeln!(
        text,
        "p99        produce {} ({}), consume {}",
        seconds(sample.produce_p99),
        phases.join(", "),
        seconds(sample.consume_p99)
    );
    for group in sample.groups.iter().take(LINES_MAX) {
        let lag = output::grouped(group.messages as u64);
        let _ = writeln!(
            text,
            "group      {}: {lag} messages, {} behind",
            group.group,
            seconds(Some(group.seconds))
        );
    }
    for topic in sample.topics.iter().take(LINES_MAX) {
        let _ = writeln!(
            text,
            "topic      {}: in {} records/s, {}/s; out {} records/s, {}/s",
            topic.topic,
            count(topic.produced.records),
            bytes(topic.produced.bytes),
            count(topic.consumed.records),
            bytes(topic.consumed.bytes)
        );
    }
    for partition in sample.partitions.iter().take(LINES_MAX) {
        let _ = writeln!(
            text,
            "partition  {}/{}: {} records/s at broker {}",
            partition.topic,
            partition.partition,
            count(partition.records),
            partition.leader
        );
    }
    for (id, reason) in &sample.missing {
        let _ = writeln!(text, "missing    broker {id}: {reason}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::sample::tests::sample;

    #[test]
    fn the_text_has_a_line_for_each_thing() {
        let text = text(&sample());
        for expected in [
            "cluster    2 of 3 brokers reached, controller 1; 12 partitions: 1 leaderless, 1 under-replicated, 0 moving",
            "produced   24 records/s, 2.0 KiB/s",
            "p99        produce - (admit -, append 9.9 ms,",
            "group      billing: 12 messages, 2.5 s behind",
            "topic      orders: in 24 records/s",
            "partition  orders/4: 20 records/s at broker 1",
            "missing    broker 3: it is away",
        ] {
            assert!(text.lines().any(|line| line.starts_with(expected)), "{expected:?} is not in\n{text}");
        }
    }
}
