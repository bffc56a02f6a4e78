//! `/metrics/detailed`: what is known of each partition, for those who ask.
//!
//! `/metrics` adds partitions up, so that its size follows topics and not partitions. Here they are apart. Nothing is
//! kept for it: levels are read when somebody asks, and written as they are.

use std::fmt::Write;
use std::sync::Arc;

use super::catalog::{self, DETAILED, Row};
use super::negotiation::Format;
use super::openmetrics::{header, unit_of};

/// What is known of a partition that has a replica on this broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionLevels {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: u32,
    /// Offset of the oldest retained record.
    pub log_start: u64,
    /// Offset after the last committed record.
    pub high_watermark: u64,
    /// Bytes of retained batches in the replica here.
    pub size_bytes: u64,
    /// Whether this broker leads.
    pub leads: bool,
    /// The newest Raft term.
    pub term: u64,
    /// If this broker leads: the other members' brokers, and the committed entries that each is not known to have.
    pub followers: Vec<(u64, u64)>,
}

/// Some families of [`DETAILED`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetailedFamilies(Vec<usize>);

impl DetailedFamilies {
    /// All of them.
    pub fn all() -> Self {
        DetailedFamilies((0..DETAILED.len()).collect())
    }

    /// Those with these names, in the order of the catalogue; all if there are none.
    ///
    /// # Errors
    /// The first name that no family has.
    pub fn named<'a>(names: &[&'a str]) -> Result<Self, &'a str> {
        if names.is_empty() {
            return Ok(DetailedFamilies::all());
        }
        let position = |name: &&'a str| DETAILED.iter().position(|row| row.prometheus == *name).ok_or(*name);
        let mut chosen = names.iter().map(position).collect::<Result<Vec<_>, _>>()?;
        chosen.sort_unstable();
        chosen.dedup();
        Ok(DetailedFamilies(chosen))
    }

    /// The names of all families, for those who asked for another.
    pub fn names() -> Vec<&'static str> {
        DETAILED.iter().map(|row| row.prometheus).collect()
    }
}

/// Writes `families` of `partitions`.
pub(super) fn encode(families: &DetailedFamilies, partitions: &[PartitionLevels], format: Format) -> String {
    let mut text = String::with_capacity(512 + 96 * partitions.len() * families.0.len());
    // Names need no escape, but a label value has one way to be written.
    let labels: Vec<String> = partitions
        .iter()
        .map(|one| format!("topic=\"{}\"", one.topic.replace('\\', "\\\\").replace('"', "\\\"")))
        .collect();
    for row in families.0.iter().filter_map(|at| DETAILED.get(*at)) {
        header(&mut text, format, row.prometheus, row.kind.prometheus(), unit_of(row), row.help);
        for (one, topic) in partitions.iter().zip(&labels) {
            write_samples(&mut text, row, one, topic);
        }
    }
    if format == Format::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

// INVARIANT of every `write!` below: writing into a `String` cannot fail, so its result is not looked at.
fn write_samples(text: &mut String, row: &Row, one: &PartitionLevels, topic: &str) {
    let (name, partition) = (row.prometheus, one.partition);
    let value = match row.otel {
        otel if otel == catalog::PARTITION_LOG_START.otel => one.log_start,
        otel if otel == catalog::PARTITION_HIGH_WATERMARK.otel => one.high_watermark,
        otel if otel == catalog::PARTITION_SIZE.otel => one.size_bytes,
        otel if otel == catalog::PARTITION_LEADER.otel => u64::from(one.leads),
        otel if otel == catalog::PARTITION_TERM.otel => one.term,
        otel => {
            debug_assert_eq!(otel, catalog::REPLICA_LAG.otel, "every row of the catalogue is written here");
            for (replica, lag) in &one.followers {
                let _ =
                    writeln!(text, "{name}{{partition=\"{partition}\",replica=\"{replica}\",{topic}}} {lag}");
            }
            return;
        }
    };
    let _ = writeln!(text, "{name}{{partition=\"{partition}\",{topic}}} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(topic: &str, partition: u32) -> PartitionLevels {
        PartitionLevels {
            topic: topic.into(),
            partition,
            log_start: 3,
            high_watermark: 10,
            size_bytes: 700,
            leads: true,
            term: 2,
            followers: vec![(2, 0), (3, 41)],
        }
    }

    #[test]
    fn shows_every_family_of_every_partition() {
        let text =
            encode(&DetailedFamilies::all(), &[partition("orders", 0), partition("orders", 1)], Format::Text);
        for line in [
            "# TYPE streambus_partition_size_bytes gauge",
            "streambus_partition_log_start_offset{partition=\"0\",topic=\"orders\"} 3",
            "streambus_partition_high_watermark_offset{partition=\"1\",topic=\"orders\"} 10",
            "streambus_partition_size_bytes{partition=\"1\",topic=\"orders\"} 700",
            "streambus_partition_leader{partition=\"0\",topic=\"orders\"} 1",
            "streambus_partition_raft_term{partition=\"0\",topic=\"orders\"} 2",
            "streambus_replica_lag_entries{partition=\"0\",replica=\"3\",topic=\"orders\"} 41",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("# EOF"));
    }

    #[test]
    fn only_chosen_families_are_shown_each_once() {
        let name = catalog::PARTITION_TERM.prometheus;
        let families = DetailedFamilies::named(&[name, name]).expect("a family");
        let text = encode(&families, &[partition("orders", 0)], Format::OpenMetrics);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_largest_answer_is_written_in_no_time() {
        let partitions: Vec<_> =
            (0..catalog::DETAILED_PARTITIONS_MAX as u32).map(|number| partition("orders", number)).collect();
        let started = std::time::Instant::now();
        let text = encode(&DetailedFamilies::all(), &partitions, Format::Text);
        let took = started.elapsed();
        println!("{} bytes of {} partitions in {took:?}", text.len(), partitions.len());
        assert_eq!(text.lines().count(), 2 * DETAILED.len() + 7 * partitions.len());
        assert!(took < std::time::Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn an_unknown_family_is_named() {
        assert_eq!(DetailedFamilies::named(&["streambus_partition_leader", "guess"]), Err("guess"));
    }
}
