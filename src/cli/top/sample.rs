//! From two readings of all brokers to what happened between them. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::page::Page;
use crate::cli::output;
use crate::client::{ClusterStatus, ProblemKind};
use crate::telemetry::Phase;
use crate::telemetry::catalog::{self, Row};

/// Topics, partitions and groups that a sample names, the first ones by what they do.
pub(super) const LISTED_MAX: usize = 100;

/// The families that are read of `/metrics`.
pub(super) const READ: &[Row] = &[
    catalog::MESSAGES_PRODUCED,
    catalog::BYTES_PRODUCED,
    catalog::MESSAGES_CONSUMED,
    catalog::BYTES_CONSUMED,
    catalog::PRODUCE_LATENCY,
    catalog::PRODUCE_PHASE,
    catalog::CONSUME_LATENCY,
    catalog::GROUP_LAG,
    catalog::GROUP_LAG_TIME,
];

/// What was read of one broker.
#[derive(Clone, Debug)]
pub(super) struct BrokerReading {
    pub(super) id: u64,
    /// Its metrics and when they were read, or why there are none.
    pub(super) page: Result<(Page, Instant), String>,
}

/// What was read of all brokers at about one time.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) at: SystemTime,
    pub(super) brokers: Vec<BrokerReading>,
    pub(super) status: ClusterStatus,
}

/// Records and bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Flow {
    pub(super) records: f64,
    pub(super) bytes: f64,
}

/// What a topic does.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TopicFlow {
    pub(super) topic: String,
    pub(super) produced: Flow,
    pub(super) consumed: Flow,
}

/// What a partition does.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PartitionFlow {
    pub(super) topic: String,
    pub(super) partition: String,
    /// The broker that leads it.
    pub(super) leader: u64,
    /// Records per second that were committed.
    pub(super) records: f64,
}

/// How far a group is behind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct GroupLag {
    pub(super) group: String,
    /// Over all its partitions.
    pub(super) messages: f64,
    /// Of the partition that is furthest behind.
    pub(super) seconds: f64,
}

/// How the cluster does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) brokers: usize,
    /// Brokers that the answering one reaches.
    pub(super) reached: usize,
    pub(super) controller: Option<u64>,
    pub(super) partitions: u32,
    pub(super) leaderless: usize,
    pub(super) under_replicated: usize,
    pub(super) moving: usize,
}

/// What happened between two readings.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) at: SystemTime,
    /// The time between the readings; the shortest, if brokers were read at different times.
    pub(super) interval: Duration,
    pub(super) produced: Flow,
    pub(super) consumed: Flow,
    /// In seconds; none if nothing was produced.
    pub(super) produce_p99: Option<f64>,
    pub(super) consume_p99: Option<f64>,
    pub(super) phases: Vec<(&'static str, Option<f64>)>,
    /// Those with the largest lag in time first.
    pub(super) groups: Vec<GroupLag>,
    /// The busiest first.
    pub(super) topics: Vec<TopicFlow>,
    /// The busiest first.
    pub(super) partitions: Vec<PartitionFlow>,
    pub(super) health: Health,
    /// Brokers that no rates were got of, and why.
    pub(super) missing: Vec<(u64, String)>,
}

/// The phases in the order in which a batch passes them.
const PHASES: [Phase; 5] = [Phase::Admit, Phase::Append, Phase::Replicate, Phase::Apply, Phase::Respond];

impl Sample {
    /// What happened between two readings.
    pub(super) fn between(before: &Reading, after: &Reading) -> Self {
        let mut missing = Vec::new();
        let mut interval: Option<Duration> = None;
        let mut topics: BTreeMap<String, TopicFlow> = BTreeMap::new();
        let mut partitions = Vec::new();
        let mut groups: BTreeMap<String, GroupLag> = BTreeMap::new();
        let mut produce = Buckets::default();
        let mut consume = Buckets::default();
        let mut phases: BTreeMap<&str, Buckets> = BTreeMap::new();
        for broker in &after.brokers {
            let page = match &broker.page {
                Ok((page, _)) => page,
                Err(reason) => {
                    missing.push((broker.id, reason.clone()));
                    continue;
                }
            };
            // Lag is a level, so one reading is enough.
            add_lags(&mut groups, page);
            let earlier = before.brokers.iter().find(|earlier| earlier.id == broker.id);
            let Some(Ok((old, then))) = earlier.map(|earlier| &earlier.page) else {
                missing.push((broker.id, "it was not read before: there are rates the next time".to_owned()));
                continue;
            };
            let took = broker.page.as_ref().map_or(Duration::ZERO, |(_, now)| now.duration_since(*then));
            let seconds = took.as_secs_f64().max(f64::MIN_POSITIVE);
            interval = Some(interval.map_or(took, |least| least.min(took)));
            add_topics(&mut topics, page, old, seconds);
            partitions.extend(partition_flows(broker.id, page, old, seconds));
            produce.add(page, old, &catalog::PRODUCE_LATENCY, None);
            consume.add(page, old, &catalog::CONSUME_LATENCY, None);
            for phase in PHASES {
                phases.entry(phase.as_str()).or_default().add(
                    page,
                    old,
                    &catalog::PRODUCE_PHASE,
                    Some(("phase", phase.as_str())),
                );
            }
        }
        let sum = |flow: fn(&TopicFlow) -> Flow| {
            topics.values().map(flow).fold(Flow::default(), |sum, one| Flow {
                records: sum.records + one.records,
                bytes: sum.bytes + one.bytes,
            })
        };
        let p99 = |phase: Phase| phases.get(phase.as_str()).and_then(|buckets| buckets.quantile(0.99));
        Sample {
            at: after.at,
            interval: interval.unwrap_or_default(),
            produced: sum(|topic| topic.produced),
            consumed: sum(|topic| topic.consumed),
            produce_p99: produce.quantile(0.99),
            consume_p99: consume.quantile(0.99),
            phases: PHASES.map(|phase| (phase.as_str(), p99(phase))).into(),
            groups: first(groups.into_values(), |group| (group.seconds, group.messages)),
            topics: first(topics.into_values(), |topic| {
                (topic.produced.bytes + topic.consumed.bytes, topic.produced.records)
            }),
            partitions: first(partitions.into_iter(), |partition| (partition.records, 0.0)),
            health: Health::of(&after.status),
            missing,
        }
    }

    /// The sample as JSON.
    pub(super) fn json(&self) -> Value {
        let flow = |flow: Flow| json!({ "records_per_second": flow.records, "bytes_per_second": flow.bytes });
        let phases: serde_json::Map<String, Value> =
            self.phases.iter().map(|(phase, p99)| ((*phase).to_owned(), json!(p99))).collect();
        json!({
            "time": output::time(self.at),
            "interval_seconds": self.interval.as_secs_f64(),
            "produced": flow(self.produced),
            "consumed": flow(self.consumed),
            "produce_p99_seconds": self.produce_p99,
            "consume_p99_seconds": self.consume_p99,
            "produce_phase_p99_seconds": phases,
            "groups": self.groups.iter().map(|group| json!({
                "group": group.group, "lag": group.messages, "lag_seconds": group.seconds,
            })).collect::<Value>(),
            "topics": self.topics.iter().map(|topic| json!({
                "topic": topic.topic, "produced": flow(topic.produced), "consumed": flow(topic.consumed),
            })).collect::<Value>(),
            "partitions": self.partitions.iter().map(|partition| json!({
                "topic": partition.topic,
                "partition": partition.partition.parse::<u32>().ok(),
                "leader_id": partition.leader,
                "records_per_second": partition.records,
            })).collect::<Value>(),
            "cluster": {
                "brokers": self.health.brokers,
                "brokers_reached": self.health.reached,
                "controller_id": self.health.controller,
                "partitions": self.health.partitions,
                "leaderless": self.health.leaderless,
                "under_replicated": self.health.under_replicated,
                "moving": self.health.moving,
            },
            "brokers_missing": self.missing.iter().map(|(id, reason)| json!({
                "broker_id": id, "reason": reason,
            })).collect::<Value>(),
        })
    }
}

impl Health {
    fn of(status: &ClusterStatus) -> Self {
        let count = |kind| status.problems.iter().filter(|problem| problem.kind == kind).count();
        Health {
            brokers: status.brokers.len(),
            reached: status.brokers.iter().filter(|broker| broker.reached).count(),
            controller: status.controller_id,
            partitions: status.partitions,
            leaderless: count(ProblemKind::Leaderless) + count(ProblemKind::Offline),
            under_replicated: count(ProblemKind::UnderReplicated),
            moving: count(ProblemKind::Moving),
        }
    }
}

/// The series that takes what exceeds a budget has a label of its own instead of the usual ones.
const BEYOND: &str = "(others)";

fn add_topics(topics: &mut BTreeMap<String, TopicFlow>, page: &Page, before: &Page, seconds: f64) {
    type Field = fn(&mut TopicFlow) -> &mut f64;
    let fields: [(&Row, Field); 4] = [
        (&catalog::MESSAGES_PRODUCED, |topic| &mut topic.produced.records),
        (&catalog::BYTES_PRODUCED, |topic| &mut topic.produced.bytes),
        (&catalog::MESSAGES_CONSUMED, |topic| &mut topic.consumed.records),
        (&catalog::BYTES_CONSUMED, |topic| &mut topic.consumed.bytes),
    ];
    for (row, field) in fields {
        for (sample, grown) in page.growth(before, row.prometheus) {
            let name = sample.label("topic").unwrap_or(BEYOND);
            let topic = topics
                .entry(name.to_owned())
                .or_insert_with(|| TopicFlow { topic: name.to_owned(), ..Default::default() });
            *field(topic) += grown / seconds;
        }
    }
}

fn partition_flows<'a>(
    leader: u64,
    page: &'a Page,
    before: &'a Page,
    seconds: f64,
) -> impl Iterator<Item = PartitionFlow> + 'a {
    let name = catalog::PARTITION_HIGH_WATERMARK.prometheus;
    let known: BTreeMap<_, f64> = before
        .samples(name)
        .iter()
        .filter_map(|sample| Some(((sample.label("topic")?, sample.label("partition")?), sample.value)))
        .collect();
    page.samples(name).iter().filter_map(move |sample| {
        let (topic, partition) = (sample.label("topic")?, sample.label("partition")?);
        // A partition that this broker did not lead before has no earlier value here, and so no rate yet.
        let grown = sample.value - known.get(&(topic, partition))?;
        (grown > 0.0).then(|| PartitionFlow {
            topic: topic.to_owned(),
            partition: partition.to_owned(),
            leader,
            records: grown / seconds,
        })
    })
}

fn add_lags(groups: &mut BTreeMap<String, GroupLag>, page: &Page) {
    let mut each = |row: &Row, add: fn(&mut GroupLag, f64)| {
        for sample in page.samples(row.prometheus) {
            let name = sample.label("group").unwrap_or(BEYOND);
            let group = groups
                .entry(name.to_owned())
                .or_insert_with(|| GroupLag { group: name.to_owned(), ..Default::default() });
            add(group, sample.value);
        }
    };
    each(&catalog::GROUP_LAG, |group, messages| group.messages += messages);
    each(&catalog::GROUP_LAG_TIME, |group, seconds| group.seconds = group.seconds.max(seconds));
}

/// The first [`LISTED_MAX`] by a key, largest first. Those with the same key keep their order.
fn first<T>(all: impl Iterator<Item = T>, key: impl Fn(&T) -> (f64, f64)) -> Vec<T> {
    let mut all: Vec<T> = all.collect();
    all.sort_by(|a, b| {
        let (a, b) = (key(a), key(b));
        b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1))
    });
    all.truncate(LISTED_MAX);
    all
}

/// How often values fell into the buckets of a histogram, added up over brokers.
#[derive(Clone, Debug, Default)]
struct Buckets {
    /// Upper bound and how many values were at or below it, by bound.
    cumulative: Vec<(f64, f64)>,
}

impl Buckets {
    /// Adds what was recorded between two pages, in the series that has `label` if one is given.
    fn add(&mut self, page: &Page, before: &Page, row: &Row, label: Option<(&str, &str)>) {
        let name = format!("{}_bucket", row.prometheus);
        for (sample, grown) in page.growth(before, &name) {
            if label.is_some_and(|(key, value)| sample.label(key) != Some(value)) {
                continue;
            }
            let bound = match sample.label("le") {
                Some("+Inf") => f64::INFINITY,
                Some(bound) => match bound.parse() {
                    Ok(bound) => bound,
                    Err(_) => continue,
                },
                None => continue,
            };
            match self.cumulative.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += grown,
                None => self.cumulative.push((bound, grown)),
            }
        }
        self.cumulative.sort_by(|a, b| a.0.total_cmp(&b.0));
    }

    fn quantile(&self, quantile: f64) -> Option<f64> {
        histogram_quantile(quantile, &self.cumulative)
    }
}

/// The value below which a share of the values lies, as Prometheus' `histogram_quantile` estimates it: evenly spread
/// within a bucket, the lowest of which begins at 0; where it falls into the last bucket, which has no bound, the bound
/// below it. None if there are no values.
///
/// `cumulative` has upper bounds and how many values are at or below them, ascending; the last bound is infinite.
pub(super) fn histogram_quantile(quantile: f64, cumulative: &[(f64, f64)]) -> Option<f64> {
    let (last, total) = *cumulative.last()?;
    if !last.is_infinite() || total <= 0.0 {
        return None;
    }
    let rank = quantile * total;
    let at = cumulative.iter().position(|(_, count)| *count >= rank)?;
    let (bound, count) = cumulative[at];
    if bound.is_infinite() {
        return at.checked_sub(1).map(|before| cumulative[before].0);
    }
    let (lower, below) = at.checked_sub(1).map_or((0.0, 0.0), |before| cumulative[before]);
    if count <= below {
        return Some(bound);
    }
    Some(lower + (bound - lower) * (rank - below) / (count - below))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cli::top) fn status() -> ClusterStatus {
        let broker = |broker_id, reached| crate::client::BrokerStatus {
            broker_id,
            grpc_address: format!("b{broker_id}:9092"),
            version: "1".to_owned(),
            rack: String::new(),
            reached,
            draining: false,
            replaced_by: None,
            replicas: 1,
            leaders: 1,
            votes: 0,
        };
        let problem = |kind| crate::client::PartitionProblem {
            topic: "orders".to_owned(),
            partition: 0,
            kind,
            leader: None,
            replicas: vec![1],
            moving_from: vec![],
            lagging: vec![],
            reason: String::new(),
        };
        ClusterStatus {
            brokers: vec![broker(1, true), broker(2, true), broker(3, false)],
            controller_id: Some(1),
            controller_voters: vec![1, 2, 3],
            coordinators: vec![Some(1)],
            partitions: 12,
            // Who is offline has no leader either.
            problems: vec![problem(ProblemKind::Offline), problem(ProblemKind::UnderReplicated)],
        }
    }

    fn reading(at: Instant, pages: &[&str]) -> Reading {
        let broker = |(number, text): (usize, &&str)| BrokerReading {
            id: number as u64 + 1,
            page: match *text {
                "" => Err("it is away".to_owned()),
                text => Ok((Page::parse(text, |_| true), at)),
            },
        };
        let brokers = pages.iter().enumerate().map(broker).collect();
        Reading { at: SystemTime::UNIX_EPOCH, brokers, status: status() }
    }

    /// Two brokers, ten seconds apart. The second one is restarted in between.
    pub(in crate::cli::top) fn sample() -> Sample {
        let started = Instant::now();
        let before = reading(
            started,
            &[
                "streambus_messages_produced_total{topic=\"orders\"} 100\n\
             streambus_bytes_produced_total{topic=\"orders\"} 1000\n\
             streambus_produce_phase_seconds_bucket{phase=\"append\",le=\"0.001\"} 10\n\
             streambus_produce_phase_seconds_bucket{phase=\"append\",le=\"0.01\"} 10\n\
             streambus_produce_phase_seconds_bucket{phase=\"append\",le=\"+Inf\"} 10\n\
             streambus_partition_high_watermark_offset{partition=\"4\",topic=\"orders\"} 50\n",
                "streambus_messages_produced_total{topic=\"orders\"} 900\n",
                "",
            ],
        );
        let after = reading(
            started + Duration::from_secs(10),
            &[
                "streambus_messages_produced_total{topic=\"orders\"} 300\n\
             streambus_bytes_produced_total{topic=\"orders\"} 21000\n\
             streambus_messages_consumed_total{topic=\"audit\"} 10\n\
             streambus_produce_phase_seconds_bucket{phase=\"append\",le=\"0.001\"} 10\n\
             streambus_produce_phase_seconds_bucket{phase=\"append\",le=\"0.01\"} 110\n\
             streambus_produce_phase_seconds_bucket{phase=\"append\",le=\"+Inf\"} 110\n\
             streambus_partition_high_watermark_offset{partition=\"4\",topic=\"orders\"} 250\n\
             streambus_consumer_group_lag{group=\"billing\",partition=\"0\",topic=\"orders\"} 5\n\
             streambus_consumer_group_lag{group=\"billing\",partition=\"1\",topic=\"orders\"} 7\n\
             streambus_consumer_group_lag_seconds{group=\"billing\",partition=\"0\",topic=\"orders\"} 2.5\n\
             streambus_consumer_group_lag_seconds{group=\"billing\",partition=\"1\",topic=\"orders\"} 1\n",
                "streambus_messages_produced_total{topic=\"orders\"} 40\n",
                "",
            ],
        );
        Sample::between(&before, &after)
    }

    #[test]
    fn rates_are_summed_over_brokers_and_survive_a_restart() {
        let sample = sample();
        assert_eq!(sample.interval, Duration::from_secs(10));
        assert_eq!(sample.produced, Flow { records: 24.0, bytes: 2000.0 });
        assert_eq!(sample.consumed, Flow { records: 1.0, bytes: 0.0 });
        let topics: Vec<_> = sample.topics.iter().map(|topic| topic.topic.as_str()).collect();
        assert_eq!(topics, ["orders", "audit"]);
        let [partition] = sample.partitions.as_slice() else { panic!("{sample:?}") };
        assert_eq!((partition.leader, partition.partition.as_str(), partition.records), (1, "4", 20.0));
        assert_eq!(sample.missing, [(3, "it is away".to_owned())]);
    }

    #[test]
    fn lag_is_the_sum_in_messages_and_the_greatest_in_seconds() {
        let expected = GroupLag { group: "billing".to_owned(), messages: 12.0, seconds: 2.5 };
        assert_eq!(sample().groups, [expected]);
    }

    #[test]
    fn phases_have_quantiles_where_something_happened() {
        let sample = sample();
        let append = sample.phases.iter().find(|(phase, _)| *phase == "append").and_then(|(_, p99)| *p99);
        assert!((append.expect("it moved") - 0.00991).abs() < 1e-9, "{append:?}");
        assert_eq!(sample.phases[0], ("admit", None));
        assert_eq!(sample.produce_p99, None);
    }

    #[test]
    fn health_counts_problems_by_kind() {
        let health = sample().health;
        assert_eq!((health.brokers, health.reached), (3, 2));
        assert_eq!((health.leaderless, health.under_replicated, health.moving), (1, 1, 0));
    }

    #[test]
    fn json_has_every_part() {
        let json = sample().json();
        assert_eq!(json["produced"]["records_per_second"], 24.0);
        assert_eq!(json["produce_phase_p99_seconds"]["admit"], Value::Null);
        assert_eq!(json["groups"][0]["lag"], 12.0);
        assert_eq!(json["partitions"][0]["partition"], 4);
        assert_eq!(json["cluster"]["leaderless"], 1);
        assert_eq!(json["brokers_missing"][0]["broker_id"], 3);
    }

    #[test]
    fn a_quantile_is_interpolated_as_prometheus_does() {
        let infinity = f64::INFINITY;
        let buckets = [(1.0, 10.0), (2.0, 30.0), (4.0, 40.0), (infinity, 40.0)];
        assert_eq!(histogram_quantile(0.5, &buckets), Some(1.5));
        assert_eq!(histogram_quantile(0.25, &buckets), Some(1.0));
        assert_eq!(histogram_quantile(0.1, &buckets), Some(0.4));
        assert_eq!(histogram_quantile(1.0, &buckets), Some(4.0));
        assert_eq!(histogram_quantile(0.99, &[(1.0, 1.0), (infinity, 100.0)]), Some(1.0));
        assert_eq!(histogram_quantile(0.99, &[(1.0, 0.0), (infinity, 0.0)]), None);
        assert_eq!(histogram_quantile(0.99, &[(infinity, 5.0)]), None);
        assert_eq!(histogram_quantile(0.99, &[]), None);
    }
}
